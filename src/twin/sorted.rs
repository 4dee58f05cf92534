//! What waits in no order, and goes in the order of time.

use std::collections::BTreeMap;

use crate::clock::Moment;

/// Things by number, which is theirs for as long as they are there.
pub(super) struct Slab<T> {
    entries: Vec<Option<T>>,
    free: Vec<usize>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Slab { entries: Vec::new(), free: Vec::new() }
    }
}

impl<T> Slab<T> {
    pub(super) fn count(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    /// Gives it a number.
    pub(super) fn put(&mut self, thing: T) -> usize {
        match self.free.pop() {
            Some(number) => {
                self.entries[number] = Some(thing);
                number
            }
            None => {
                self.entries.push(Some(thing));
                self.entries.len() - 1
            }
        }
    }

    pub(super) fn take(&mut self, number: usize) -> Option<T> {
        let thing = self.entries.get_mut(number)?.take()?;
        self.free.push(number);
        Some(thing)
    }
}

/// How much time is sorted at once. What waits for seconds is not kept in order all along, only by spans of this; a span is
/// small enough to be sorted where it is.
const SPAN_NANOS: u64 = 10_000_000;

/// When something is, when it came, and where it lies.
type Key = (Moment, u64, usize);

/// A queue by moments; of one moment, what came first goes first (a calendar queue: R. Brown, CACM 31(10), 1988).
pub(super) struct Sorted<T> {
    things: Slab<T>,
    number: u64,
    /// What is to go next, the last first.
    next: Vec<Key>,
    /// All before this span is in there, and nothing else.
    span: u64,
    /// Spans that follow, in no order within.
    spans: BTreeMap<u64, Vec<Key>>,
    /// Emptied ones, to be used again.
    spare: Vec<Vec<Key>>,
}

impl<T> Default for Sorted<T> {
    fn default() -> Self {
        Sorted {
            things: Slab::default(),
            number: 0,
            next: Vec::new(),
            span: 0,
            spans: BTreeMap::new(),
            spare: Vec::new(),
        }
    }
}

impl<T> Sorted<T> {
    pub(super) fn push(&mut self, at: Moment, thing: T) {
        self.number += 1;
        let key = (at, self.number, self.things.put(thing));
        let span = at.as_nanos() / SPAN_NANOS;
        if span < self.span {
            let place = self.next.partition_point(|other| *other > key);
            self.next.insert(place, key);
        } else {
            self.spans.entry(span).or_insert_with(|| self.spare.pop().unwrap_or_default()).push(key);
        }
    }

    pub(super) fn len(&self) -> usize {
        self.things.count()
    }

    /// The moment of the first.
    pub(super) fn first_at(&mut self) -> Option<Moment> {
        self.refill();
        self.next.last().map(|(at, _, _)| *at)
    }

    pub(super) fn pop(&mut self) -> Option<(Moment, T)> {
        self.refill();
        let (at, _, place) = self.next.pop()?;
        Some((at, self.things.take(place)?))
    }

    /// The first, if its moment is before this one.
    pub(super) fn pop_before(&mut self, until: Moment) -> Option<(Moment, T)> {
        if self.first_at()? < until { self.pop() } else { None }
    }

    /// There is something to go next, if there is anything. That is as late as can be: what comes before it and after this
    /// has to be put in its place one by one.
    fn refill(&mut self) {
        if !self.next.is_empty() {
            return;
        }
        let Some((span, mut keys)) = self.spans.pop_first() else { return };
        keys.sort_unstable_by(|one, other| other.cmp(one));
        self.span = span + 1;
        self.spare.push(std::mem::replace(&mut self.next, keys));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_goes_in_the_order_of_time_and_then_of_coming() {
        let moment = Moment::from_nanos;
        let mut sorted = Sorted::default();
        for (at, what) in [(5, 'a'), (3, 'b'), (5, 'c'), (1, 'd')] {
            sorted.push(moment(at), what);
        }
        assert_eq!((sorted.len(), sorted.first_at()), (4, Some(moment(1))));
        assert_eq!(sorted.pop(), Some((moment(1), 'd')));
        sorted.push(moment(4), 'e');
        assert_eq!(sorted.pop_before(moment(3)), None);
        let rest: String = std::iter::from_fn(|| sorted.pop_before(moment(6))).map(|(_, what)| what).collect();
        assert_eq!(rest, "beac");
        assert_eq!((sorted.len(), sorted.first_at()), (0, None));
        assert_eq!(sorted.things.entries.len(), 4, "places are used again");
    }

    #[test]
    fn however_far_apart_and_whatever_is_taken_meanwhile() {
        let mut random = fastrand::Rng::with_seed(8);
        let (mut sorted, mut plain) = (Sorted::default(), std::collections::BTreeSet::new());
        for number in 1..20_000_u64 {
            // Moments near each other, days ahead, and long past.
            let at = match random.u32(..10) {
                0 => random.u64(..1 << 50),
                1 => random.u64(..1 << 20),
                _ => number * 1_000_000 + random.u64(..50_000_000),
            };
            sorted.push(Moment::from_nanos(at), number);
            plain.insert((at, number));
            while random.u32(..20) > 8 {
                let expected = plain.pop_first().map(|(at, number)| (Moment::from_nanos(at), number));
                assert_eq!(sorted.pop(), expected);
            }
        }
        assert_eq!(sorted.len(), plain.len());
        for (at, number) in plain {
            assert_eq!(sorted.pop(), Some((Moment::from_nanos(at), number)));
        }
    }
}
