//! Where the sessions of a model are pinned: what clients' cookies would say.
//!
//! Two generations bound it: a full young one becomes the old one, and the old one is forgotten. So what is forgotten are
//! sessions that nobody has asked for in a long time, as those whose cookie has run out.

use foldhash::HashMap;

/// Sessions of one generation.
const GENERATION: usize = 1 << 18;

#[derive(Default)]
pub(super) struct Pins {
    young: HashMap<u64, usize>,
    old: HashMap<u64, usize>,
}

impl Pins {
    /// The server of a session that asks again.
    pub(super) fn recall(&mut self, session: u64) -> Option<usize> {
        if let Some(server) = self.young.get(&session) {
            return Some(*server);
        }
        let server = *self.old.get(&session)?;
        self.pin(session, server);
        Some(server)
    }

    /// The session belongs to this server from now on.
    pub(super) fn pin(&mut self, session: u64, server: usize) {
        self.old.remove(&session);
        if self.young.len() >= GENERATION && !self.young.contains_key(&session) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(session, server);
    }

    /// Those that belong to a server.
    pub(super) fn of(&self, server: usize) -> impl Iterator<Item = u64> + '_ {
        let all = self.young.iter().chain(&self.old);
        all.filter(move |(_, other)| **other == server).map(|(session, _)| *session)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_stays_and_who_does_not_is_forgotten() {
        let mut pins = Pins::default();
        pins.pin(0, 3);
        pins.pin(1, 4);
        for session in 2..3 * GENERATION as u64 {
            pins.pin(session, 5);
            if session % 1_000 == 0 {
                assert_eq!(pins.recall(0), Some(3));
            }
        }
        assert_eq!((pins.recall(1), pins.of(3).count(), pins.of(4).count()), (None, 1, 0));
        assert!(pins.young.len() + pins.old.len() <= 2 * GENERATION);
    }

    #[test]
    fn a_session_counts_once_wherever_it_was() {
        let mut pins = Pins::default();
        pins.pin(7, 1);
        pins.pin(8, 1);
        pins.old = std::mem::take(&mut pins.young);
        assert_eq!(pins.recall(7), Some(1));
        assert_eq!(pins.of(1).count(), 2);
        pins.pin(8, 2);
        assert_eq!((pins.of(1).count(), pins.of(2).count()), (1, 1));
    }
}
