//! Sessions that have ended a moment ago, for whatever is still open of theirs: each worker looks for what is new.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::session::Sid;

/// Sessions remembered. Whoever looks too rarely misses some, and finds out by looking at the sessions themselves.
const MOST: usize = 16_384;

/// The sessions, numbered as they ended.
#[derive(Default)]
pub struct EndedSessions {
    count: AtomicU64,
    recent: Mutex<VecDeque<Sid>>,
}

impl EndedSessions {
    /// Notes sessions that have ended.
    pub fn note(&self, ended: &[Sid]) {
        let mut recent = self.recent.lock();
        for sid in ended {
            if recent.len() >= MOST {
                recent.pop_front();
            }
            recent.push_back(*sid);
        }
        self.count.fetch_add(ended.len() as u64, Ordering::Release);
    }

    /// Those that ended since `seen`, which is brought up to date; nearly always none, at the price of one load.
    pub fn since(&self, seen: &mut u64) -> Vec<Sid> {
        let count = self.count.load(Ordering::Acquire);
        if count == *seen {
            return Vec::new();
        }
        let recent = self.recent.lock();
        let count = self.count.load(Ordering::Acquire);
        let new = usize::try_from(count - *seen).unwrap_or(usize::MAX).min(recent.len());
        *seen = count;
        recent.iter().rev().take(new).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_seen_once_by_each_who_looks() {
        let ended = EndedSessions::default();
        let (mut first, mut second) = (0, 0);
        ended.note(&[Sid([1; 16]), Sid([2; 16])]);
        assert_eq!(ended.since(&mut first).len(), 2);
        assert!(ended.since(&mut first).is_empty());
        ended.note(&[Sid([3; 16])]);
        assert_eq!(ended.since(&mut first), [Sid([3; 16])]);
        assert_eq!(ended.since(&mut second).len(), 3);
    }
}
