//! The waiting line of a server that is at its cap: first come, first served.
//!
//! A place that frees is handed to the first in the line, never to whoever happens to ask next: the count of exchanges
//! in flight does not fall in between, so nobody overtakes. The line keeps no time; who waits decides how long, and
//! leaving it at any moment loses no place.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;

use super::server::{InFlight, Server, ServerState};

/// Who waits for places of one server.
#[derive(Default)]
pub(super) struct Line {
    /// How many wait, for whoever only wants to know.
    length: AtomicU32,
    waiting: Mutex<VecDeque<Arc<Place>>>,
}

#[derive(Default)]
struct Place(Mutex<Turn>);

#[derive(Default)]
struct Turn {
    granted: bool,
    waker: Option<Waker>,
}

impl Line {
    pub(super) fn length(&self) -> u32 {
        self.length.load(Ordering::Relaxed)
    }

    /// Gives up one place of a capped server: to the first in the line, or back to the count. Joining holds the same
    /// lock, so a place never frees unseen.
    pub(super) fn release(&self, in_flight: &AtomicU32) {
        let mut waiting = self.waiting.lock();
        let Some(first) = waiting.pop_front() else {
            in_flight.fetch_sub(1, Ordering::Relaxed);
            return;
        };
        self.note_length(&waiting);
        drop(waiting);
        let mut turn = first.0.lock();
        turn.granted = true;
        if let Some(waker) = turn.waker.take() {
            waker.wake();
        }
    }

    fn note_length(&self, waiting: &VecDeque<Arc<Place>>) {
        self.length.store(u32::try_from(waiting.len()).unwrap_or(u32::MAX), Ordering::Relaxed);
    }

    fn leave(&self, place: &Arc<Place>) {
        let mut waiting = self.waiting.lock();
        waiting.retain(|other| !Arc::ptr_eq(other, place));
        self.note_length(&waiting);
    }
}

/// A place in a line. Ready with a place on the server; dropped, it leaves the line.
pub struct Waiting {
    state: Arc<ServerState>,
    place: Arc<Place>,
    /// Where in the line it began: 1 is the first.
    pub position: u32,
    done: bool,
}

impl Waiting {
    /// Joins the line of a server, unless it has its length.
    pub fn join(server: &Server, most: u32) -> Option<Self> {
        let line = &server.state.line;
        let place = Arc::<Place>::default();
        let mut waiting = line.waiting.lock();
        let position = u32::try_from(waiting.len()).unwrap_or(u32::MAX).saturating_add(1);
        if waiting.is_empty() && server.state.try_count(server.settings.max_requests).is_some() {
            // A place has freed since the server was found full.
            place.0.lock().granted = true;
        } else if position > most {
            return None;
        } else {
            waiting.push_back(Arc::clone(&place));
            line.note_length(&waiting);
        }
        Some(Waiting { state: Arc::clone(&server.state), place: Arc::clone(&place), position, done: false })
    }
}

impl Future for Waiting {
    type Output = InFlight;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<InFlight> {
        {
            let mut turn = self.place.0.lock();
            if !turn.granted {
                turn.waker = Some(cx.waker().clone());
                return Poll::Pending;
            }
        }
        self.done = true;
        Poll::Ready(InFlight::handed_over(&self.state))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        self.state.line.leave(&self.place);
        // Granted after the last look: the place goes to the next, or back.
        if self.place.0.lock().granted {
            drop(InFlight::handed_over(&self.state));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;
    use crate::pool::ServerSettings;

    fn server(cap: u32) -> Server {
        let settings = ServerSettings { name: "a".into(), weight: 1, max_requests: cap, backup: false };
        Server::new(settings, Arc::new(ServerState::new(Metrics::new(1).pool("p").server("a"))))
    }

    fn poll(waiting: &mut Waiting) -> Poll<InFlight> {
        Pin::new(waiting).poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn places_go_to_the_line_in_order_and_never_past_it() {
        let server = server(1);
        let held = InFlight::enter(&server).unwrap();
        let mut first = Waiting::join(&server, 2).unwrap();
        let mut second = Waiting::join(&server, 2).unwrap();
        assert!(Waiting::join(&server, 2).is_none(), "the line has its length");
        assert_eq!((first.position, second.position), (1, 2));
        assert!(poll(&mut first).is_pending() && poll(&mut second).is_pending());
        drop(held);
        assert!(InFlight::enter(&server).is_none(), "nobody overtakes");
        assert!(poll(&mut second).is_pending());
        let Poll::Ready(held) = poll(&mut first) else { panic!("the first has its turn") };
        assert_eq!(server.state.in_flight(), 1);
        drop(held);
        assert!(poll(&mut second).is_ready());
        assert_eq!((server.state.in_flight(), server.state.line.length()), (0, 0));
    }

    #[test]
    fn who_leaves_loses_no_place() {
        let server = server(1);
        let held = InFlight::enter(&server).unwrap();
        let first = Waiting::join(&server, 9).unwrap();
        let mut second = Waiting::join(&server, 9).unwrap();
        drop(held);
        drop(first);
        assert!(poll(&mut second).is_ready(), "the granted place was passed on");
        assert_eq!(server.state.in_flight(), 0);
        let held = InFlight::enter(&server).unwrap();
        drop(Waiting::join(&server, 9));
        drop(held);
        assert!(InFlight::enter(&server).is_some());
    }

    #[test]
    fn a_place_that_freed_before_joining_is_not_missed() {
        let server = server(1);
        let mut late = Waiting::join(&server, 1).unwrap();
        assert!(poll(&mut late).is_ready());
    }
}
