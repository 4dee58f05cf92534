//! The attempts under way whose servers may ask for their session: what a nonce stands for.
//!
//! An attempt is in the table from when its server is told of it to five seconds after its response's head has left, and
//! only where there is a session API to ask. One that was given up is out at once: a server that comes back from the
//! dead with an old nonce writes nothing.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::snapshot::SharedPool;
use crate::clock::{Clock, Moment};
use crate::session::contract::Nonce;
use crate::session::{Committed, Recall};

const SHARDS: usize = 16;
/// How long after its response's head a nonce counts.
const LINGERS: Duration = Duration::from_secs(5);
/// Before any moment: its time is over.
const OVER: u64 = 1;
/// Attempts that linger; past it they are forgotten at once.
const MOST_LINGERING: usize = 65_536;

/// The table.
#[derive(Default)]
pub struct Attempts {
    /// Whether anybody can ask.
    pub is_asked: AtomicBool,
    shards: [Mutex<HashMap<Nonce, Arc<LiveAttempt>>>; SHARDS],
    lingering: AtomicUsize,
}

/// One attempt that may be asked about.
pub struct LiveAttempt {
    nonce: Nonce,
    pub pool: SharedPool,
    /// Held while its session is changed, by the side API or by its response.
    pub state: tokio::sync::Mutex<AttemptState>,
    /// When its nonce no longer counts, in nanoseconds; 0: it is in flight.
    ends: AtomicU64,
}

/// How far an attempt is.
pub struct AttemptState {
    pub found: Recall,
    /// What the side API did, and the response still has to say.
    pub pending: Option<Committed>,
    pub head_has_left: bool,
}

impl Attempts {
    fn shard(&self, nonce: &Nonce) -> &Mutex<HashMap<Nonce, Arc<LiveAttempt>>> {
        &self.shards[nonce.first_byte() as usize % SHARDS]
    }

    /// Whether there is anybody to ask.
    pub fn are_asked_about(&self) -> bool {
        self.is_asked.load(Ordering::Relaxed)
    }

    /// Notes an attempt, if anybody can ask about it.
    pub fn begin(
        &self,
        nonce: Nonce,
        pool: impl FnOnce() -> SharedPool,
        (found, pending): (Recall, Option<Committed>),
    ) -> Option<Arc<LiveAttempt>> {
        if !self.are_asked_about() {
            return None;
        }
        let state = AttemptState { found, pending, head_has_left: false };
        let live = LiveAttempt { nonce, pool: pool(), state: tokio::sync::Mutex::new(state), ends: AtomicU64::new(0) };
        let live = Arc::new(live);
        self.shard(&nonce).lock().insert(nonce, Arc::clone(&live));
        Some(live)
    }

    /// The attempt that a nonce stands for.
    pub fn find(&self, nonce: &Nonce) -> Option<Arc<LiveAttempt>> {
        let found = self.shard(nonce).lock().get(nonce).map(Arc::clone)?;
        found.counts().then_some(found)
    }

    /// Its nonce counts no more, also for calls that have begun.
    pub fn forget(&self, live: &LiveAttempt) {
        live.ends.store(OVER, Ordering::Relaxed);
        self.shard(&live.nonce).lock().remove(&live.nonce);
    }

    /// Its response's head leaves: its nonce counts a little longer.
    pub fn linger(&self, live: &LiveAttempt) {
        if self.lingering.load(Ordering::Relaxed) >= MOST_LINGERING {
            return self.forget(live);
        }
        self.lingering.fetch_add(1, Ordering::Relaxed);
        live.ends.store((Clock::now() + LINGERS).as_nanos(), Ordering::Relaxed);
    }

    /// Forgets those whose time is over; to be called about once a second.
    pub fn sweep(&self, now: Moment) {
        for shard in &self.shards {
            let mut shard = shard.lock();
            let before = shard.len();
            shard.retain(|_, live| {
                let ends = live.ends.load(Ordering::Relaxed);
                ends == 0 || now.as_nanos() < ends
            });
            self.lingering.fetch_sub(before - shard.len(), Ordering::Relaxed);
        }
    }
}

impl LiveAttempt {
    /// Whether its server may still speak.
    pub fn counts(&self) -> bool {
        let ends = self.ends.load(Ordering::Relaxed);
        ends == 0 || Clock::now().as_nanos() < ends
    }

    /// What a server that is given up has done to the session: the next one goes on from there.
    pub async fn hand_over(&self) -> (Recall, Option<Committed>) {
        let mut state = self.state.lock().await;
        (state.found.clone(), state.pending.take())
    }

    /// The response itself has changed the session.
    pub async fn becomes(&self, found: Recall) {
        self.state.lock().await.found = found;
    }

    /// From now on no cookie can go out. Gives what was found, and what the side API did to it.
    pub async fn head_leaves(&self) -> (Recall, Option<Committed>) {
        let mut state = self.state.lock().await;
        state.head_has_left = true;
        (state.found.clone(), state.pending.take())
    }
}
