//! The connections of one admin address: scrapes and people, no crowds. Past the bound the oldest one goes that nobody
//! vouches for, so that whoever only holds places shuts out nobody.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::rc::{Rc, Weak};

use tokio::task::AbortHandle;

use crate::tasks;

/// Connections served at once, per address.
const MOST: usize = 64;

/// The open connections, the oldest first.
#[derive(Default)]
pub(super) struct Connections(RefCell<VecDeque<(Weak<Place>, AbortHandle)>>);

/// The place of one connection.
#[derive(Default)]
pub(super) struct Place {
    kept: Cell<bool>,
}

impl Place {
    /// Somebody who may has used it: it does not have to make room.
    pub(super) fn keep(&self) {
        self.kept.set(true);
    }
}

/// Whether there was a place for one more connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    Free,
    /// At the bound: an older connection had to go, or this one.
    Made,
}

impl Connections {
    /// Serves one more. It ends by the client, by one of the timeouts, or to make room.
    pub(super) fn open<F: Future<Output = ()> + 'static>(&self, serve: impl FnOnce(Rc<Place>) -> F) -> Room {
        let mut open = self.0.borrow_mut();
        open.retain(|(place, _)| place.strong_count() > 0);
        let room = if open.len() < MOST { Room::Free } else { Room::Made };
        if room == Room::Made {
            let kept = |place: &Weak<Place>| place.upgrade().is_some_and(|place| place.kept.get());
            let Some(oldest) = open.iter().position(|(place, _)| !kept(place)) else { return room };
            if let Some((_, connection)) = open.remove(oldest) {
                connection.abort();
            }
        }
        let place = Rc::<Place>::default();
        let weak = Rc::downgrade(&place);
        open.push_back((weak, tasks::spawn(serve(place)).abort_handle()));
        room
    }
}
