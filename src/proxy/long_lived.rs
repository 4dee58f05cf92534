//! Exchanges that may last for hours: tunnels and event streams. They are shown, and a drain's deadline ends them.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::poll_fn;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::session::Watch;
use super::stateless::TokenWatch;
use crate::clock::{Clock, Moment};
use crate::names::LongLivedKind;
use crate::pool::ServerState;
use crate::session::Sid;
use crate::tasks;

/// The long-lived exchanges of one worker.
#[derive(Default)]
pub(super) struct LongLived {
    under_way: RefCell<HashMap<u64, Rc<Stay>>>,
    entered: Cell<u64>,
}

/// One long-lived exchange.
struct Stay {
    server: Arc<ServerState>,
    /// Whose it is, where the proxy keeps sessions, and when that is to be looked at again.
    owner: Option<(Owner, Cell<Moment>)>,
    is_over: Cell<bool>,
    waker: RefCell<Option<Waker>>,
    /// What can be let go of whoever does not look any more: a client that takes nothing is never asked for more.
    abandoned: RefCell<Option<Weak<dyn Abandon>>>,
}

/// Something that can be given up without its owner.
pub(super) trait Abandon {
    fn abandon(&self);
}

/// Whose a long-lived exchange is: it ends with that.
pub(super) enum Owner {
    Session(Watch),
    Token(TokenWatch),
}

/// How often tokens are looked at: that takes no store.
const TOKENS_EVERY: Duration = Duration::from_secs(1);

impl Owner {
    fn every(&self) -> Duration {
        match self {
            Owner::Session(watch) => watch.every(),
            Owner::Token(_) => TOKENS_EVERY,
        }
    }

    async fn lives(&self) -> bool {
        match self {
            Owner::Session(watch) => watch.lives().await,
            Owner::Token(watch) => watch.lives(),
        }
    }
}

impl Stay {
    fn end(&self) {
        self.is_over.set(true);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn let_go(&self) {
        let abandoned = self.abandoned.take().and_then(|abandoned| abandoned.upgrade());
        if let Some(abandoned) = abandoned {
            abandoned.abandon();
        }
    }
}

impl LongLived {
    /// Notes one more, for as long as the guard lives.
    pub(super) fn enter(
        self: &Rc<Self>,
        kind: LongLivedKind,
        server: &Arc<ServerState>,
        owner: Option<Owner>,
    ) -> StayGuard {
        server.long_lived[kind.index()].fetch_add(1, Ordering::Relaxed);
        let stay = Rc::new(Stay {
            server: Arc::clone(server),
            owner: owner.map(|owner| {
                let first = Clock::now() + owner.every();
                (owner, Cell::new(first))
            }),
            is_over: Cell::new(false),
            waker: RefCell::new(None),
            abandoned: RefCell::new(None),
        });
        let id = self.entered.get();
        self.entered.set(id + 1);
        self.under_way.borrow_mut().insert(id, Rc::clone(&stay));
        StayGuard { long_lived: Rc::clone(self), id, kind, stay }
    }

    pub(super) fn count(&self) -> usize {
        self.under_way.borrow().len()
    }

    /// Ends those on servers whose drain has had its time, and lets go of those that did not end since the last sweep.
    pub(super) fn sweep(&self, now: Moment) {
        self.recheck(now);
        // Letting go ends a stay, which leaves the table: it must not be borrowed then.
        let under_way = self.under_way.borrow();
        let late = under_way.values().filter(|stay| stay.server.wishes.is_drained(now));
        let late: Vec<Rc<Stay>> = late.map(Rc::clone).collect();
        drop(under_way);
        for stay in late {
            if stay.is_over.get() { stay.let_go() } else { stay.end() }
        }
    }

    /// Ends those of these sessions.
    pub(super) fn end_sessions(&self, ended: &[Sid]) {
        let under_way = self.under_way.borrow();
        let of = |stay: &&Rc<Stay>| match &stay.owner {
            Some((Owner::Session(watch), _)) => ended.contains(&watch.sid()),
            Some((Owner::Token(_), _)) | None => false,
        };
        under_way.values().filter(of).for_each(|stay| stay.end());
    }

    /// Looks whether sessions still are, each in its own time. What ends them does so with the store's deadline.
    fn recheck(&self, now: Moment) {
        for stay in self.under_way.borrow().values() {
            let Some((owner, due)) = &stay.owner else { continue };
            if due.get() > now || stay.is_over.get() {
                continue;
            }
            due.set(now + owner.every());
            let stay = Rc::clone(stay);
            tasks::spawn(async move {
                if let Some((owner, _)) = &stay.owner
                    && !owner.lives().await
                {
                    stay.end();
                }
            });
        }
    }

    /// Ends all.
    pub(super) fn end_all(&self) {
        self.under_way.borrow().values().for_each(|stay| stay.end());
    }
}

/// A long-lived exchange under way.
pub(super) struct StayGuard {
    long_lived: Rc<LongLived>,
    id: u64,
    kind: LongLivedKind,
    stay: Rc<Stay>,
}

impl StayGuard {
    /// Says what is to be let go of if the exchange does not end when it is told to.
    pub(super) fn may_abandon(&self, what: Weak<dyn Abandon>) {
        *self.stay.abandoned.borrow_mut() = Some(what);
    }

    /// Ready when the exchange is to end; else the task is woken when it is.
    pub(super) fn poll_over(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.stay.is_over.get() {
            return Poll::Ready(());
        }
        let mut waker = self.stay.waker.borrow_mut();
        if !waker.as_ref().is_some_and(|known| known.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Waits until the exchange is to end.
    pub(super) async fn over(&self) {
        poll_fn(|cx| self.poll_over(cx)).await;
    }
}

impl Drop for StayGuard {
    fn drop(&mut self) {
        self.stay.server.long_lived[self.kind.index()].fetch_sub(1, Ordering::Relaxed);
        self.long_lived.under_way.borrow_mut().remove(&self.id);
    }
}
