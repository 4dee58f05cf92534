//! Sessions learned from the application's own cookie: which server set which value, and when it was last seen.
//!
//! An entry is a 64-bit hash of the cookie's value, the server and a time: about 40 bytes a session, whatever the
//! cookie's length.

use crate::recent::Recent;

/// Which server a session's cookie came from.
pub struct LearnedTable(Recent<Learned>);

#[derive(Clone, Copy)]
struct Learned {
    /// What stands for the server's name.
    server: u64,
    /// Wall-clock seconds since 1970.
    seen: u32,
}

impl LearnedTable {
    /// An empty table; `secret` is random.
    pub fn new(secret: u64) -> Self {
        LearnedTable(Recent::new(secret))
    }

    /// The server of a session, if it was seen within `idle` seconds.
    pub(super) fn find(&self, session: u64, now: u32, idle: u64) -> Option<u64> {
        let found = self.0.get(session)?;
        (u64::from(now.saturating_sub(found.seen)) <= idle).then_some(found.server)
    }

    /// Remembers the server of a session; `most` bounds the whole table.
    pub(super) fn note(&self, session: u64, server: u64, now: u32, most: usize) {
        self.0.put(session, Learned { server, seen: now }, most);
    }

    /// Remembers a session that came with a cookie nobody has seen set: after a restart that is everybody's. It takes
    /// only room that is free, so made-up cookies push out no session.
    pub(super) fn adopt(&self, session: u64, server: u64, now: u32, most: usize) {
        self.0.put_if_free(session, Learned { server, seen: now }, most);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_seen_for_idle_is_over() {
        let table = LearnedTable::new(9);
        table.note(5, 9, 100, 1_000);
        assert_eq!((table.find(5, 160, 60), table.find(5, 161, 60)), (Some(9), None));
        table.note(5, 8, 161, 1_000);
        assert_eq!(table.find(5, 161, 60), Some(8));
    }
}
