//! A way to a node, that is there again when a connection is lost.

use std::cell::RefCell;
use std::rc::Rc;

use tokio::sync::watch;

use super::commands::{Part, has_to_last};
use super::connection::{Connection, Course, Failure};
use super::dialer::{Dialer, Target};
use crate::session::store::{Ask, StoreError};
use crate::tasks;

/// A connection that several asks share, made when one of them finds none.
pub struct Link {
    dialer: Rc<Dialer>,
    target: Target,
    /// The latest attempt to connect; the connection, if that was made, is in it.
    attempt: RefCell<Option<Attempt>>,
}

/// Nothing yet, or what became of it.
type Attempt = watch::Receiver<Option<Result<Rc<Connection>, StoreError>>>;

impl Link {
    /// A way that nobody has gone yet.
    pub fn new(dialer: &Rc<Dialer>, target: Target) -> Self {
        Link { dialer: Rc::clone(dialer), target, attempt: RefCell::default() }
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
        self.open_connection().is_some()
    }

    /// The connection that there is, or the one that comes of an attempt.
    async fn connection(&self) -> Result<Rc<Connection>, StoreError> {
        if let Some(connection) = self.open_connection() {
            return Ok(connection);
        }
        let mut attempt = self.attempt_under_way();
        let given_up = || StoreError::Unavailable("the attempt to connect was given up".to_owned());
        let made = attempt.wait_for(Option::is_some).await.map_err(|_| given_up())?;
        made.clone().unwrap_or_else(|| Err(given_up()))
    }

    fn open_connection(&self) -> Option<Rc<Connection>> {
        match &*self.attempt.borrow().as_ref()?.borrow() {
            Some(Ok(connection)) if connection.is_open() => Some(Rc::clone(connection)),
            _ => None,
        }
    }

    /// Joins the attempt that is under way, or starts one.
    fn attempt_under_way(&self) -> Attempt {
        let mut latest = self.attempt.borrow_mut();
        // One without a result whose task has gone will have none.
        let is_under_way = |attempt: &&Attempt| attempt.borrow().is_none() && attempt.has_changed().is_ok();
        match latest.as_ref().filter(is_under_way) {
            Some(attempt) => attempt.clone(),
            None => latest.insert(self.start_attempt()).clone(),
        }
    }

    fn start_attempt(&self) -> Attempt {
        let (outcome, attempt) = watch::channel(None);
        let (dialer, target) = (Rc::clone(&self.dialer), self.target.clone());
        // Owned by nobody, as no ask may end it for the others: it ends by itself, within the time to connect.
        tasks::spawn(async move {
            let connected = dialer.connect(&target).await;
            // Nobody is there to be told if the store has been dropped meanwhile.
            let _ = outcome.send(Some(connected));
        });
        attempt
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
