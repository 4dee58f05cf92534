//! Heavy sessions: which of a window's sessions cost most, and how much of the work is theirs.
//!
//! Exact for up to [`PLACES`] sessions. Beyond, Space-Saving (Metwally, Agrawal, El Abbadi: Efficient computation of frequent
//! and top-k elements in data streams, ICDT 2005), by work and not by number: a session without a place takes that of the
//! lightest, and what was counted there along. So what is counted at all places together is all the work there was, and
//! the lightest, and with it what anybody took along, is never more than one part in [`PLACES`] of it.
//!
//! Only what is certain is said: what a session had since it took its place. Beyond [`PLACES`] sessions a session has that or up
//! to 1/65,536 of the work more, and the heaviest 1 % of n sessions up to n/100 times as much more: 1.5 % of the work for
//! 100,000 sessions. How many sessions there were is then off by a standard error of 1.6 %.
//!
//! The same exchanges in the same order give the same answer: of equals the one with the smaller number is the first.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use foldhash::HashMap;

use crate::clock::Moment;
use crate::pool::Sessions;

/// Sessions that are counted one by one; 10 MiB where a window of a pool has so many.
const PLACES: usize = 65_536;
/// Sessions that are named.
const NAMED: usize = 5;
/// For sessions that are only counted, all of a window is one moment; they do not age in it.
const MOMENT: Moment = Moment::from_nanos(0);
const AGE: Duration = Duration::from_secs(1);

/// The heavy sessions of a window.
#[derive(Clone, Debug, PartialEq)]
pub struct Heavy {
    /// How many sessions there were.
    pub sessions: u64,
    /// The heaviest 1 % of them, and at least one, had this share of the work, sessions or not.
    pub top_share: f64,
    /// Each session had a place; otherwise shares and requests are what is certain, and there may be a little more.
    pub is_exact: bool,
    /// A few, the heaviest first.
    pub top: Vec<HeavySession>,
}

/// One of the heaviest sessions.
#[derive(Clone, Debug, PartialEq)]
pub struct HeavySession {
    /// What it is known by in here. It is not to be shown: the log has a keyed hash of it.
    pub session: u64,
    /// Which served it last.
    pub server: Box<str>,
    pub requests: u64,
    /// Of the work, of requests without a session too.
    pub share: f64,
}

/// What the sessions of a window cost.
pub(super) struct SessionWork {
    places: usize,
    /// Nanoseconds of everybody, those without a session too.
    all: u128,
    each: HashMap<u64, Counted>,
    /// Once there have been more sessions than places.
    beyond: Option<Beyond>,
}

/// What is counted at one place.
#[derive(Clone, Copy, Default)]
struct Counted {
    /// Nanoseconds of those who had the place before.
    inherited: u64,
    /// Nanoseconds since.
    work: u64,
    requests: u64,
    server: usize,
}

impl Counted {
    fn weight(&self) -> u64 {
        self.inherited.saturating_add(self.work)
    }
}

/// What is needed where there are more sessions than places.
struct Beyond {
    /// Each place's weight when it was last looked at here, the lightest first. Weights only grow, so a place need not be
    /// found when it gets heavier: it is put right when it comes up.
    lightest: BinaryHeap<Reverse<(u64, u64)>>,
    /// All sessions.
    seen: Sessions,
}

impl Default for SessionWork {
    fn default() -> Self {
        Self::with_places(PLACES)
    }
}

impl SessionWork {
    fn with_places(places: usize) -> Self {
        SessionWork { places, all: 0, each: HashMap::default(), beyond: None }
    }

    /// A request of this demand, which the server at this position served. Says whether it is its session's first, as far
    /// as that is known here.
    pub(super) fn add(&mut self, session: Option<u64>, server: usize, demand: Duration) -> bool {
        let work = u64::try_from(demand.as_nanos()).unwrap_or(u64::MAX);
        self.all += u128::from(work);
        let Some(session) = session else { return true };
        let inherited = self.make_place(session);
        let counted = self.each.entry(session).or_insert(Counted { inherited, ..Counted::default() });
        counted.work = counted.work.saturating_add(work);
        counted.requests += 1;
        counted.server = server;
        counted.requests == 1
    }

    /// There is a place for the session from now on; gives what is counted there already, if it is another's.
    fn make_place(&mut self, session: u64) -> u64 {
        if self.each.len() < self.places || self.each.contains_key(&session) {
            return 0;
        }
        let each = &self.each;
        let beyond = self.beyond.get_or_insert_with(|| Beyond::new(each));
        beyond.seen.note(session, MOMENT, AGE);
        let Some((weight, lightest)) = beyond.pop_lightest(each) else { return 0 };
        beyond.lightest.push(Reverse((weight, session)));
        self.each.remove(&lightest);
        weight
    }

    fn sessions(&self) -> u64 {
        match &self.beyond {
            Some(beyond) => beyond.seen.count(MOMENT, AGE),
            None => self.each.len() as u64,
        }
    }

    /// Who was heavy, with the names of servers by position.
    pub(super) fn heavy(&self, name_of: impl Fn(usize) -> Box<str>) -> Heavy {
        let mut each: Vec<(u64, Counted)> = self.each.iter().map(|(session, counted)| (*session, *counted)).collect();
        each.sort_unstable_by_key(|(session, counted)| (Reverse(counted.work), *session));
        let share = |work: u128| work as f64 / self.all.max(1) as f64;
        let sessions = self.sessions();
        let heaviest = usize::try_from(sessions.div_ceil(100)).unwrap_or(usize::MAX);
        let named = |(session, counted): &(u64, Counted)| HeavySession {
            session: *session,
            server: name_of(counted.server),
            requests: counted.requests,
            share: share(u128::from(counted.work)),
        };
        Heavy {
            sessions,
            top_share: share(each.iter().take(heaviest).map(|(_, counted)| u128::from(counted.work)).sum()),
            is_exact: self.beyond.is_none(),
            top: each.iter().take(NAMED).map(named).collect(),
        }
    }
}

impl Beyond {
    /// All places are taken, by these.
    fn new(each: &HashMap<u64, Counted>) -> Self {
        let seen = Sessions::default();
        each.keys().for_each(|session| seen.note(*session, MOMENT, AGE));
        let lightest = each.iter().map(|(session, counted)| Reverse((counted.weight(), *session))).collect();
        Beyond { lightest, seen }
    }

    /// Takes the lightest out: its weight, and who has the place.
    fn pop_lightest(&mut self, each: &HashMap<u64, Counted>) -> Option<(u64, u64)> {
        loop {
            let Reverse((known, session)) = self.lightest.pop()?;
            let weight = each.get(&session).map_or(known, Counted::weight);
            if weight == known {
                return Some((weight, session));
            }
            self.lightest.push(Reverse((weight, session)));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const fn ms(number: u64) -> Duration {
        Duration::from_millis(number)
    }

    fn name_of(server: usize) -> Box<str> {
        ["a", "b", "c"][server].into()
    }

    fn named(heavy: &Heavy) -> Vec<u64> {
        heavy.top.iter().map(|session| session.session).collect()
    }

    #[test]
    fn who_has_a_place_is_counted_exactly() {
        let mut work = SessionWork::default();
        for session in 1..=250 {
            for server in [1, 0] {
                work.add(Some(session), server, ms(session));
            }
        }
        // As much again is nobody's.
        work.add(None, 2, ms(62_750));
        let heavy = work.heavy(name_of);
        assert_eq!((heavy.sessions, heavy.is_exact), (250, true));
        assert_eq!(heavy.top_share, 2.0 * (250.0 + 249.0 + 248.0) / 125_500.0, "three are 1 %, rounded up");
        assert_eq!(named(&heavy), [250, 249, 248, 247, 246]);
        let first = HeavySession { session: 250, server: "a".into(), requests: 2, share: 500.0 / 125_500.0 };
        assert_eq!(heavy.top[0], first);
    }

    #[test]
    fn one_session_is_the_heaviest_and_none_is_nothing() {
        let mut work = SessionWork::default();
        let none = Heavy { sessions: 0, top_share: 0.0, is_exact: true, top: Vec::new() };
        assert_eq!(work.heavy(name_of), none);
        work.add(None, 0, ms(30));
        assert_eq!(work.heavy(name_of), none);
        work.add(Some(7), 1, ms(10));
        let only = HeavySession { session: 7, server: "b".into(), requests: 1, share: 0.25 };
        assert_eq!(work.heavy(name_of), Heavy { sessions: 1, top_share: 0.25, is_exact: true, top: vec![only] });
    }

    #[test]
    fn with_more_sessions_than_places_the_heavy_ones_are_still_found() {
        const SESSIONS: f64 = 20_000.0;
        const FEW: usize = 2_048;
        let mut work = SessionWork::with_places(FEW);
        let mut random = fastrand::Rng::with_seed(7);
        let mut really: BTreeMap<u64, u64> = BTreeMap::new();
        for _ in 0..200_000 {
            // As Zipf has it: the second has half as many as the first, the third a third.
            let session = SESSIONS.powf(random.f64()) as u64;
            let millis = random.u64(1..20);
            work.add(Some(session), 0, ms(millis));
            *really.entry(session).or_default() += millis;
        }
        let heavy = work.heavy(name_of);
        let counted = heavy.sessions as f64 / really.len() as f64;
        assert!(!heavy.is_exact && (counted - 1.0).abs() < 0.1, "{} for {}", heavy.sessions, really.len());
        let mut heaviest: Vec<(u64, u64)> = really.into_iter().map(|(session, millis)| (millis, session)).collect();
        heaviest.sort_unstable_by_key(|millis_and_session| Reverse(*millis_and_session));
        assert_eq!(named(&heavy), heaviest.iter().take(NAMED).map(|(_, session)| *session).collect::<Vec<_>>());
        let most = heavy.sessions.div_ceil(100) as usize;
        let sum = |of: &[(u64, u64)]| of.iter().map(|(millis, _)| *millis).sum::<u64>() as f64;
        let share = sum(&heaviest[..most]) / sum(&heaviest);
        let (said, bound) = (heavy.top_share, most as f64 / FEW as f64);
        assert!(said <= share + 1e-9 && share - said <= bound, "{said} for {share}, within {bound}");
        assert!(share > 0.4 && bound < 0.1, "it is worth something: {share}, {bound}");
    }

    #[test]
    fn the_same_exchanges_give_the_same_answer_whatever_order_a_map_has() {
        let answer = || {
            let mut work = SessionWork::with_places(64);
            // All alike.
            for number in 0..5_000u64 {
                work.add(Some(number * 7_919 % 1_000), number as usize % 3, ms(1));
            }
            work.heavy(name_of)
        };
        let first = answer();
        assert_eq!((first.sessions, first.top.len()), (1_000, NAMED));
        assert!((0..10).all(|_| answer() == first));
    }

    proptest! {
        #[test]
        fn nobody_is_said_to_have_more_than_it_had_nor_less_by_more_than_the_bound(
            exchanges in proptest::collection::vec((0u64..60, 0u64..1_000), 0..600),
        ) {
            const FEW: usize = 8;
            let mut work = SessionWork::with_places(FEW);
            let mut really: BTreeMap<u64, u64> = BTreeMap::new();
            for (session, nanos) in exchanges {
                work.add(Some(session), 0, Duration::from_nanos(nanos));
                *really.entry(session).or_default() += nanos;
                let queued = work.beyond.as_ref().map_or(0, |beyond| beyond.lightest.len());
                prop_assert!(work.each.len() <= FEW && queued <= FEW);
            }
            let bound = really.values().sum::<u64>() / FEW as u64;
            for (session, had) in &really {
                let said = work.each.get(session).map_or(0, |counted| counted.work);
                prop_assert!(said <= *had && *had - said <= bound, "{session} had {had} and not {said}");
            }
            let heavy = work.heavy(name_of);
            prop_assert_eq!(heavy.sessions, really.len() as u64);
            prop_assert_eq!(heavy.is_exact, really.len() <= FEW);
        }
    }
}
