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

impl Place {
    fn grant(&self) -> Option<Waker> {
        let mut turn = self.0.lock();
        turn.granted = true;
        turn.waker.take()
    }
}

#[derive(Default)]
struct Turn {
    granted: bool,
    waker: Option<Waker>,
}

impl Line {
    pub(super) fn length(&self) -> u32 {
        self.length.load(Ordering::Relaxed)
    }

    /// Gives up one place: to the first in the line, or back to the count. Joining holds the same lock, so a place never
    /// frees unseen; and a grant is noted under it, so who leaves is either still in the line or has the place.
    pub(super) fn release(&self, server: &ServerState) {
        let mut waiting = self.waiting.lock();
        let cap = server.cap();
        let over = cap > 0 && server.in_flight() > cap;
        let mut called = Vec::new();
        match waiting.pop_front() {
            Some(first) if !over => called.extend(first.grant()),
            first => {
                if let Some(first) = first {
                    waiting.push_front(first);
                }
                server.uncount();
            }
        }
        called.extend(self.grant_free(&mut waiting, server));
        drop(waiting);
        called.into_iter().for_each(Waker::wake);
    }

    /// Calls as many as there are places: the cap may have been raised.
    pub(super) fn call(&self, server: &ServerState) {
        let mut waiting = self.waiting.lock();
        let called = self.grant_free(&mut waiting, server);
        drop(waiting);
        called.into_iter().for_each(Waker::wake);
    }

    fn grant_free(&self, waiting: &mut VecDeque<Arc<Place>>, server: &ServerState) -> Vec<Waker> {
        let mut called = Vec::new();
        while !waiting.is_empty() && server.try_count().is_some() {
            called.extend(waiting.pop_front().and_then(|place| place.grant()));
        }
        self.note_length(waiting);
        called
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
        if waiting.is_empty() && server.state.try_count().is_some() {
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
        let server = Server::new(settings, Arc::new(ServerState::new(Metrics::new(1).pool("p").server("a"))));
        server.adopt();
        server
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
    fn a_cap_that_a_reload_changes_strands_nobody() {
        let uncapped = server(0);
        let old: Vec<InFlight> = (0..4).map(|_| InFlight::enter(&uncapped).unwrap()).collect();
        uncapped.state.set_cap(2);
        let mut waiting: Vec<Waiting> = (0..3).map(|_| Waiting::join(&uncapped, 9).unwrap()).collect();
        drop(old);
        assert!(poll(&mut waiting[0]).is_ready(), "entered without a cap, left with one");
        let mut ready = Vec::new();
        uncapped.state.set_cap(0);
        for place in &mut waiting[1..] {
            let Poll::Ready(guard) = poll(place) else { panic!("no cap any more") };
            ready.push(guard);
        }
        drop((ready, waiting));
        assert_eq!(uncapped.state.in_flight(), 0);
        uncapped.state.set_cap(3);
        let held: Vec<InFlight> = (0..3).map(|_| InFlight::enter(&uncapped).unwrap()).collect();
        let mut late = Waiting::join(&uncapped, 9).unwrap();
        uncapped.state.set_cap(1);
        let mut held = held.into_iter();
        drop((held.next(), held.next()));
        assert!(poll(&mut late).is_pending(), "still one, and one is the cap");
        drop(held);
        assert!(poll(&mut late).is_ready());
    }

    #[test]
    fn a_place_that_freed_before_joining_is_not_missed() {
        let server = server(1);
        let mut late = Waiting::join(&server, 1).unwrap();
        assert!(poll(&mut late).is_ready());
    }
}
