//! What is wanted of a server while it runs: by the operator, and by the server itself.
//!
//! The most restrictive word wins. Wishes belong to the live state: they survive reloads, and end with the process.

use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

use crate::clock::Moment;
use crate::names::words;

words! {
    /// Ordered: the later is the more restrictive.
    Wish {
        Ready = "ready",
        /// No new sessions.
        Drain = "drain",
        /// Nobody.
        Maint = "maint",
    }
}

const NO_DEADLINE: u64 = 0;
const WHOLE: u32 = 100;

/// The wishes for one server.
pub struct Wishes {
    operator: AtomicU8,
    own: AtomicU8,
    /// When a drain ends for those who are still there; nanoseconds of a `Moment`.
    deadline: AtomicU64,
    /// The same for the drain that the server itself asked for.
    own_deadline: AtomicU64,
    /// The server's own word on its weight, in per cent.
    percent: AtomicU32,
    /// The operator's weight, and the file's when it was set: it holds until the file's changes. 0: none.
    weight: AtomicU64,
}

impl Default for Wishes {
    fn default() -> Self {
        Wishes {
            operator: AtomicU8::new(0),
            own: AtomicU8::new(0),
            deadline: AtomicU64::new(NO_DEADLINE),
            own_deadline: AtomicU64::new(NO_DEADLINE),
            percent: AtomicU32::new(WHOLE),
            weight: AtomicU64::new(0),
        }
    }
}

impl Wishes {
    /// The operator's wish; a drain may have a deadline.
    pub fn set(&self, wish: Wish, deadline: Option<Moment>) {
        self.deadline.store(deadline.map_or(NO_DEADLINE, Moment::as_nanos), Ordering::Relaxed);
        self.operator.store(wish as u8, Ordering::Relaxed);
    }

    /// The server's own word: its wish, and the share of its weight that it wants, in per cent. Says whether a drain
    /// begins with it; `deadline` is for that one.
    pub fn set_own(&self, wish: Wish, percent: u32, deadline: Option<Moment>) -> bool {
        let before = self.own.swap(wish as u8, Ordering::Relaxed);
        self.percent.store(percent.min(WHOLE), Ordering::Relaxed);
        let begins = wish == Wish::Drain && before != Wish::Drain as u8;
        // A drain that becomes maint keeps its deadline.
        if begins || wish == Wish::Ready {
            let deadline = deadline.filter(|_| begins).map_or(NO_DEADLINE, Moment::as_nanos);
            self.own_deadline.store(deadline, Ordering::Relaxed);
        }
        begins
    }

    /// The server says nothing any more.
    pub fn forget_own(&self) {
        self.set_own(Wish::Ready, WHOLE, None);
    }

    /// What counts now.
    pub fn effective(&self) -> Wish {
        let wish = self.operator.load(Ordering::Relaxed).max(self.own.load(Ordering::Relaxed));
        Wish::ALL[usize::from(wish).min(Wish::ALL.len() - 1)]
    }

    /// The operator's wish alone.
    pub fn of_operator(&self) -> Wish {
        Wish::ALL[usize::from(self.operator.load(Ordering::Relaxed)).min(Wish::ALL.len() - 1)]
    }

    /// The server's own word alone.
    pub fn of_server(&self) -> (Wish, u32) {
        let wish = Wish::ALL[usize::from(self.own.load(Ordering::Relaxed)).min(Wish::ALL.len() - 1)];
        (wish, self.percent.load(Ordering::Relaxed))
    }

    /// When the drain ends, the operator's or the server's own, whichever is sooner.
    pub fn deadline(&self) -> Option<Moment> {
        let read = |deadline: &AtomicU64| match deadline.load(Ordering::Relaxed) {
            NO_DEADLINE => None,
            nanos => Some(Moment::from_nanos(nanos)),
        };
        [read(&self.deadline), read(&self.own_deadline)].into_iter().flatten().min()
    }

    /// Whether a drain has had its time.
    pub fn is_past_deadline(&self, now: Moment) -> bool {
        self.deadline().is_some_and(|deadline| now >= deadline)
    }

    /// Whether it is to take its leave, and has had its time for it.
    pub fn is_drained(&self, now: Moment) -> bool {
        self.effective() != Wish::Ready && self.is_past_deadline(now)
    }

    /// The operator's weight; `file` is what the configuration says now.
    pub fn set_weight(&self, weight: u32, file: u32) {
        self.weight.store(1 << 63 | u64::from(weight) << 32 | u64::from(file), Ordering::Relaxed);
    }

    /// The file says `file` now: a weight that was set over another one is over.
    pub fn adopt_weight(&self, file: u32) {
        let packed = self.weight.load(Ordering::Relaxed);
        if packed & 0xffff_ffff != u64::from(file) {
            self.weight.store(0, Ordering::Relaxed);
        }
    }

    /// The weight that counts where the file says `file`.
    pub fn weight(&self, file: u32) -> u32 {
        let packed = self.weight.load(Ordering::Relaxed);
        let set = packed >> 63 == 1 && packed & 0xffff_ffff == u64::from(file);
        let weight = if set { (packed >> 32 & 0x7fff_ffff) as u32 } else { file };
        match self.percent.load(Ordering::Relaxed) {
            WHOLE => weight,
            0 => 0,
            percent if weight > 0 => (weight * percent / WHOLE).max(1),
            _ => 0,
        }
    }
}

/// A server's own word, as it says it on probe answers: `ready | drain | maint`, perhaps `; weight=50`. Once the word is
/// read it counts, whatever else stands there: a server that asks to be spared is spared.
pub fn parse_own_word(text: &str) -> Option<(Wish, u32)> {
    let mut parts = text.split(';').map(str::trim);
    let wish = Wish::from_word(parts.next()?)?;
    let weights = parts.filter_map(|part| part.split_once('=')).filter(|(name, _)| name.trim() == "weight");
    let percent = weights.filter_map(|(_, value)| value.trim().parse().ok()).find(|percent| *percent <= WHOLE);
    Some((wish, percent.unwrap_or(WHOLE)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_restrictive_word_wins() {
        let wishes = Wishes::default();
        assert_eq!(wishes.effective(), Wish::Ready);
        assert!(!wishes.set_own(Wish::Maint, 100, None));
        wishes.set(Wish::Drain, None);
        assert_eq!((wishes.effective(), wishes.of_operator()), (Wish::Maint, Wish::Drain));
        wishes.forget_own();
        assert_eq!(wishes.effective(), Wish::Drain);
    }

    #[test]
    fn a_deadline_holds_whoever_wants_more_than_a_drain() {
        let (early, late) = (Moment::from_nanos(10), Moment::from_nanos(30));
        let wishes = Wishes::default();
        wishes.set(Wish::Drain, Some(Moment::from_nanos(20)));
        assert!(!wishes.is_drained(early) && wishes.is_drained(late));
        wishes.set_own(Wish::Maint, 100, None);
        assert!(!wishes.is_drained(early) && wishes.is_drained(late), "the server wants more, and no later");
        wishes.set(Wish::Ready, None);
        assert!(!wishes.is_drained(late), "nobody has set a time");
        wishes.set_own(Wish::Ready, 100, None);
        wishes.set_own(Wish::Drain, 100, Some(Moment::from_nanos(20)));
        wishes.set_own(Wish::Maint, 100, None);
        assert!(wishes.is_drained(late));
    }

    #[test]
    fn a_weight_holds_until_the_files_changes_and_the_server_may_want_less() {
        let wishes = Wishes::default();
        wishes.set_weight(0, 4);
        assert_eq!((wishes.weight(4), wishes.weight(5)), (0, 5));
        wishes.adopt_weight(5);
        assert_eq!(wishes.weight(4), 4, "it does not come back with the file's old weight");
        wishes.set_weight(10, 4);
        wishes.set_own(Wish::Ready, 25, None);
        assert_eq!((wishes.weight(4), wishes.weight(1)), (2, 1));
    }

    #[test]
    fn own_words() {
        assert_eq!(parse_own_word("drain"), Some((Wish::Drain, 100)));
        assert_eq!(parse_own_word("ready; weight=50"), Some((Wish::Ready, 50)));
        for odd in ["drain;", "drain; weight=500", "drain; weight", "drain; weight=-1; rebooting"] {
            assert_eq!(parse_own_word(odd), Some((Wish::Drain, 100)), "{odd}");
        }
        assert_eq!((parse_own_word(""), parse_own_word("stop")), (None, None));
    }
}
