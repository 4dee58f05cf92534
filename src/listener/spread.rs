//! Connections, spread evenly over the workers.
//!
//! The kernel deals new connections to the workers' sockets by a hash of their addresses, blindly: of a few busy HTTP/2
//! connections one worker may get nearly all. So a worker that has clearly more than another gives a fresh socket away,
//! before anything is read from it.

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::sync::mpsc;

use super::Endpoint;
use crate::metrics::WorkerId;

/// How many connections each worker has, those on their way to it among them.
pub struct Spread(Box<[Share]>);

/// One worker's. Each has cache lines of its own: the owner writes with every connection.
#[repr(align(128))]
struct Share {
    open: AtomicUsize,
    takes_none: AtomicBool,
    give: mpsc::UnboundedSender<Given>,
}

/// A fresh connection on its way to another worker.
pub(super) struct Given {
    pub(super) tcp: TcpStream,
    pub(super) peer: SocketAddr,
    pub(super) endpoint: Arc<Endpoint>,
    pub(super) place: Place,
}

/// What other workers give to one.
pub struct Taking(mpsc::UnboundedReceiver<Given>);

impl Taking {
    pub(super) async fn next(&mut self) -> Option<Given> {
        self.0.recv().await
    }
}

impl Spread {
    /// For so many workers; what each of them is given comes out of its [`Taking`].
    pub fn new(workers: usize) -> (Arc<Self>, Vec<Taking>) {
        let share = |_| {
            let (give, taking) = mpsc::unbounded_channel();
            let (open, takes_none) = Default::default();
            (Share { open, takes_none, give }, Taking(taking))
        };
        let (shares, taking): (Vec<Share>, Vec<Taking>) = (0..workers).map(share).unzip();
        (Arc::new(Spread(shares.into())), taking)
    }

    /// How many connections a worker has.
    pub fn open(&self, worker: WorkerId) -> usize {
        self.0[worker.0].open.load(Ordering::Acquire)
    }

    /// This worker is given no more.
    pub fn withdraw(&self, worker: WorkerId) {
        self.0[worker.0].takes_none.store(true, Ordering::Release);
    }

    /// Takes a place for one more connection.
    pub(super) fn enter(self: &Arc<Self>, worker: WorkerId) -> Place {
        self.0[worker.0].open.fetch_add(1, Ordering::AcqRel);
        Place { spread: Arc::clone(self), worker }
    }

    /// The worker that a connection accepted by `own` should go to. An eighth more than the least is even enough: to go
    /// to another thread is not free.
    pub(super) fn fairest(&self, own: WorkerId) -> WorkerId {
        let takes = self.0.iter().enumerate().filter(|(_, share)| !share.takes_none.load(Ordering::Acquire));
        let least = takes.map(|(at, share)| (share.open.load(Ordering::Relaxed), at)).min();
        match least {
            Some((least, at)) if self.open(own) > least + least / 8 => WorkerId(at),
            _ => own,
        }
    }

    /// Gives a connection to the worker that its place is with; back where that has ended.
    pub(super) fn give(&self, given: Given) -> Result<(), Given> {
        self.0[given.place.worker.0].give.send(given).map_err(|back| back.0)
    }
}

/// One connection's place with its worker.
pub(super) struct Place {
    spread: Arc<Spread>,
    worker: WorkerId,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.spread.0[self.worker.0].open.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_connections_are_dealt_exactly_and_many_within_an_eighth() {
        let (spread, _taking) = Spread::new(2);
        let mut places: Vec<Place> = Vec::new();
        for _ in 0..8 {
            // The kernel gives all to the first.
            places.push(spread.enter(spread.fairest(WorkerId(0))));
        }
        assert_eq!([0, 1].map(|at| spread.open(WorkerId(at))), [4, 4]);
        for _ in 0..792 {
            places.push(spread.enter(spread.fairest(WorkerId(0))));
        }
        let open = [0, 1].map(|at| spread.open(WorkerId(at)));
        assert_eq!(open[0] + open[1], 800);
        assert!(open[0] > open[1] && open[0] <= open[1] + open[1] / 8 + 1, "{open:?}");
        drop(places);
        assert_eq!([0, 1].map(|at| spread.open(WorkerId(at))), [0, 0]);
    }

    #[test]
    fn a_worker_that_ends_is_given_nothing() {
        let (spread, _taking) = Spread::new(3);
        let _places = [spread.enter(WorkerId(0)), spread.enter(WorkerId(0)), spread.enter(WorkerId(1))];
        assert_eq!(spread.fairest(WorkerId(0)), WorkerId(2));
        spread.withdraw(WorkerId(2));
        assert_eq!(spread.fairest(WorkerId(0)), WorkerId(1));
        spread.withdraw(WorkerId(1));
        assert_eq!(spread.fairest(WorkerId(0)), WorkerId(0));
    }
}
