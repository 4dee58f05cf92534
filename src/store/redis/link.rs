//! A way to a node, that is there again when a connection is lost.

use std::rc::Rc;

use super::commands::{Part, has_to_last};
use super::connection::{Connection, Course, Failure};
use super::dialer::{Dialer, Target};
use crate::session::store::{Ask, StoreError};
use crate::store::joint::Joint;

/// A connection that several asks share, made when one of them finds none.
pub struct Link {
    dialer: Rc<Dialer>,
    target: Target,
    joint: Joint<Connection>,
}

impl Link {
    /// A way that nobody has gone yet.
    pub fn new(dialer: &Rc<Dialer>, target: Target) -> Self {
        Link { dialer: Rc::clone(dialer), target, joint: Joint::default() }
    }

    /// Does something on the connection.
    pub async fn carry_out<T>(
        &self,
        course: &Course,
        work: impl AsyncFn(&Connection) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        self.carry_out_once(course, &work).await
    }

    /// The same, and once more on a second connection when the first one is lost: for what is harmless to repeat.
    pub async fn carry_out_again<T>(
        &self,
        course: &Course,
        work: impl AsyncFn(&Connection) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        match self.carry_out_once(course, &work).await {
            Err(failure) if failure.is_loss() => self.carry_out_once(course, &work).await,
            done => done,
        }
    }

    /// As [`Link::carry_out`], for work that is done with others too.
    pub async fn carry_out_once<T>(
        &self,
        course: &Course,
        work: &impl AsyncFn(&Connection) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let connection = self.connection().await.map_err(Failure::NotConnected)?;
        course.note(&connection);
        let done = work(&connection).await;
        if done.as_ref().is_err_and(Failure::spoils_the_connection) {
            connection.retire();
        }
        done
    }

    /// Whether there is a connection.
    pub fn is_connected(&self) -> bool {
        self.joint.open().is_some()
    }

    async fn connection(&self) -> Result<Rc<Connection>, StoreError> {
        let connect = || {
            let (dialer, target) = (Rc::clone(&self.dialer), self.target.clone());
            async move { dialer.connect(&target).await }
        };
        self.joint.get(connect).await
    }
}

/// A node as one worker uses it.
pub struct Node {
    /// For nearly everything.
    pub everyday: Link,
    /// For changes that have to last. WAIT is about what its own connection has written, and stops it meanwhile.
    lasting: Link,
}

impl Node {
    /// A node that is connected to when it is first asked.
    pub fn new(dialer: &Rc<Dialer>, target: Target) -> Self {
        Node { everyday: Link::new(dialer, target.clone()), lasting: Link::new(dialer, target) }
    }

    /// Asks, and gives the answer to each part. `asking`: the node is told that it was named for this.
    pub async fn ask(&self, ask: &Ask, asking: bool, course: &Course) -> Result<Vec<Part>, Failure> {
        if has_to_last(ask) {
            self.lasting.carry_out(course, async |connection| connection.ask_to_last(ask, asking, course).await).await
        } else {
            self.everyday.carry_out(course, async |connection| connection.ask(ask, asking).await).await
        }
    }
}
