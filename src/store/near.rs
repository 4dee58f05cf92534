//! What was read a moment ago, for stores on the network: reads may be that old, writes never.
//!
//! Off unless it is asked for. What this proxy writes or ends it forgets at once, before and after: an older record that
//! was read meanwhile must not outlive the change.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;

use crate::clock::{Clock, Moment};
use crate::session::store::{Ask, Entry, Key};

/// Records remembered; past it nothing more is, until some have got too old.
const MOST: usize = 65_536;

pub(super) struct Near {
    span: Duration,
    /// What was read, and when; none: it was changed then, and what was read before that counts no more.
    records: Mutex<HashMap<Key, (Option<Entry>, Moment)>>,
}

/// How long a change is remembered: longer than a read may take.
const CHANGES_COUNT_FOR: Duration = Duration::from_secs(5);

impl Near {
    pub(super) fn new(span: Duration) -> Self {
        Near { span, records: Mutex::default() }
    }

    /// The records of all these keys, if all are known well enough.
    pub(super) fn read(&self, keys: &[Key], now: Moment) -> Option<Vec<Option<Entry>>> {
        if self.span.is_zero() {
            return None;
        }
        let records = self.records.lock();
        let fresh = |key: &Key| {
            let (entry, at) = records.get(key)?;
            let age = now.since(*at);
            let aged = |entry: &Entry| Entry { expires_in: entry.expires_in.saturating_sub(age), ..entry.clone() };
            (age < self.span && entry.is_some()).then(|| entry.as_ref().map(aged))
        };
        keys.iter().map(fresh).collect()
    }

    /// Remembers what was read, by a read that began then. That there is no record is not remembered: the next moment may
    /// make it.
    pub(super) fn keep(&self, keys: &[Key], entries: &[Option<Entry>], begun: Moment) {
        if self.span.is_zero() {
            return;
        }
        let mut records = self.records.lock();
        for (key, entry) in keys.iter().zip(entries) {
            let known = records.get(key);
            let was_changed = known.is_some_and(|(entry, at)| entry.is_none() && *at >= begun);
            if entry.is_some() && !was_changed && (records.len() < MOST || known.is_some()) {
                records.insert(*key, (entry.clone(), begun));
            }
        }
    }

    /// Forgets what an operation changes.
    pub(super) fn forget(&self, ask: &Ask, now: Moment) {
        if self.span.is_zero() {
            return;
        }
        let mut records = self.records.lock();
        let mut forget = |key: &Key| drop(records.insert(*key, (None, now)));
        match ask {
            Ask::Read(_) => {}
            Ask::Change(change) => {
                change.put.iter().for_each(|put| forget(&put.key));
                change.delete.iter().for_each(&mut forget);
                forget(&change.guard.key());
            }
            Ask::Touch(keys) => keys.iter().for_each(|(key, _)| forget(key)),
            Ask::Delete(keys) => keys.iter().for_each(forget),
        }
    }

    /// Forgets everything that was read.
    pub(super) fn clear(&self) {
        if !self.span.is_zero() {
            self.records.lock().retain(|_, (entry, _)| entry.is_none());
        }
    }

    /// Forgets what is too old.
    pub(super) fn sweep(&self) {
        if !self.span.is_zero() {
            let now = Clock::now();
            let counts = |entry: &Option<Entry>| if entry.is_some() { self.span } else { CHANGES_COUNT_FOR };
            self.records.lock().retain(|_, (entry, at)| now.since(*at) < counts(entry));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::store::Kind;

    const KEY: Key = Key { tag: 1, kind: Kind::Lineage, id: [1; 20] };

    fn at(millis: u64) -> Moment {
        Moment::from_nanos(millis * 1_000_000)
    }

    fn entry() -> Option<Entry> {
        Some(Entry { revision: 1, value: "x".into(), expires_in: Duration::from_secs(10) })
    }

    #[test]
    fn what_was_read_is_known_for_its_span_and_no_longer() {
        let near = Near::new(Duration::from_secs(1));
        near.keep(&[KEY], &[entry()], at(0));
        let known = near.read(&[KEY], at(900)).unwrap();
        assert_eq!(known[0].as_ref().unwrap().expires_in, Duration::from_millis(9_100));
        assert_eq!(near.read(&[KEY], at(1_000)), None);
        near.keep(&[KEY], &[None], at(2_000));
        assert_eq!(near.read(&[KEY], at(2_000)), None, "absence is not remembered");
    }

    #[test]
    fn what_is_ended_is_forgotten_at_once() {
        let near = Near::new(Duration::from_secs(1));
        near.keep(&[KEY], &[entry()], at(0));
        near.forget(&Ask::Delete(vec![KEY]), at(1));
        assert_eq!(near.read(&[KEY], at(1)), None);
        near.keep(&[KEY], &[entry()], at(0));
        assert_eq!(near.read(&[KEY], at(2)), None, "what a slow read brings is older than the change");
        near.keep(&[KEY], &[entry()], at(2));
        assert!(near.read(&[KEY], at(3)).is_some());
    }

    #[test]
    fn off_is_off() {
        let near = Near::new(Duration::ZERO);
        near.keep(&[KEY], &[entry()], at(0));
        assert_eq!(near.read(&[KEY], at(0)), None);
    }
}
