//! Who asks when. Sessions begin at random moments (a Poisson process), and each asks at moments of its own, whatever
//! becomes of what it has asked before: an open loop, as waiting users would hide most of what a slow server costs. It
//! goes on for ever, and only sessions under way are remembered.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use fastrand::Rng;

use crate::simulate::{Habit, exponential};

const SHOPPER: Habit = Habit::Shopper;
/// Eight requests a second for a minute.
const ROBOT: Habit = Habit::Robot { requests: 480, thought: 0.125 };
/// The share of sessions that are robots; they send about a third of the requests.
const ROBOTS: f64 = 0.01;
/// The share of a shopper's requests that add something to the cart.
const ADDITIONS: f64 = 0.1;
/// For how long sessions have been coming when it begins: robots are there from the first second on.
const BEFORE: Duration = Duration::from_secs(60);

/// The requests of all sessions, in order.
pub struct Schedule {
    random: Rng,
    /// Seconds from one session to the next, in the mean.
    gap: f64,
    /// When the next session begins, and its number. All moments are counted from [`BEFORE`] the beginning.
    begins: Duration,
    session: u64,
    due: BinaryHeap<Reverse<Due>>,
}

/// The next request of a session; the first one due comes first.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Due {
    at: Duration,
    session: u64,
    is_robot: bool,
    /// With this one.
    left: u32,
}

/// One request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn {
    /// Since the beginning.
    pub at: Duration,
    pub session: u64,
    pub is_robot: bool,
    pub act: Act,
}

/// What it is for, once its user has logged in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    Look,
    Add,
    /// The last one.
    Leave,
}

impl Schedule {
    /// So many requests a second, in the mean.
    pub fn new(rate: f64, seed: u64) -> Self {
        let requests = (1.0 - ROBOTS) * SHOPPER.mean_requests() + ROBOTS * ROBOT.mean_requests();
        let mut schedule = Schedule {
            random: Rng::with_seed(seed),
            gap: requests / rate,
            begins: Duration::ZERO,
            session: 0,
            due: BinaryHeap::new(),
        };
        while schedule.next_at() < BEFORE {
            schedule.next();
        }
        schedule
    }

    /// When the next request is due. All sessions that begin before that have begun then.
    fn next_at(&mut self) -> Duration {
        loop {
            match self.due.peek() {
                Some(Reverse(first)) if first.at <= self.begins => return first.at,
                _ => self.begin_session(),
            }
        }
    }

    fn begin_session(&mut self) {
        self.session += 1;
        let is_robot = self.random.f64() < ROBOTS;
        let left = habit(is_robot).requests(&mut self.random);
        self.due.push(Reverse(Due { at: self.begins, session: self.session, is_robot, left }));
        self.begins += Duration::from_secs_f64(exponential(&mut self.random, self.gap));
    }

    fn act(&mut self, due: &Due) -> Act {
        match due.left {
            0 | 1 => Act::Leave,
            _ if !due.is_robot && self.random.f64() < ADDITIONS => Act::Add,
            _ => Act::Look,
        }
    }
}

impl Iterator for Schedule {
    type Item = Turn;

    fn next(&mut self) -> Option<Turn> {
        self.next_at();
        let Reverse(mut due) = self.due.pop()?;
        let act = self.act(&due);
        let turn = Turn { at: due.at.saturating_sub(BEFORE), session: due.session, is_robot: due.is_robot, act };
        if act != Act::Leave {
            due.left -= 1;
            due.at += Duration::from_secs_f64(habit(due.is_robot).thought(&mut self.random));
            self.due.push(Reverse(due));
        }
        Some(turn)
    }
}

const fn habit(is_robot: bool) -> Habit {
    if is_robot { ROBOT } else { SHOPPER }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    const RATE: f64 = 150.0;
    const HOUR: Duration = Duration::from_secs(3_600);

    /// What is due in the first hour.
    fn hour(seed: u64) -> impl Iterator<Item = Turn> {
        Schedule::new(RATE, seed).take_while(|turn| turn.at < HOUR)
    }

    #[test]
    fn requests_come_in_order_at_the_rate_that_was_asked_for() {
        for seed in [1, 2] {
            let turns: Vec<Turn> = hour(seed).collect();
            assert!(turns.is_sorted_by_key(|turn| turn.at));
            let rate = turns.len() as f64 / HOUR.as_secs_f64();
            assert!((rate / RATE - 1.0).abs() < 0.08, "{seed}: {rate}");
            let robots = turns.iter().filter(|turn| turn.is_robot).count() as f64 / turns.len() as f64;
            assert!((0.25..0.45).contains(&robots), "{seed}: {robots}");
            let first = turns.iter().take_while(|turn| turn.at < Duration::from_secs(10)).count() as f64 / 10.0;
            assert!((0.4..1.6).contains(&(first / RATE)), "it begins as it goes on: {first}");
        }
    }

    #[test]
    fn a_robot_asks_eight_times_a_second_for_a_minute_and_leaves() {
        let mut robots: HashMap<u64, Vec<Turn>> = HashMap::new();
        for turn in hour(1).filter(|turn| turn.is_robot) {
            robots.entry(turn.session).or_default().push(turn);
        }
        // Those that were there before, and those that are there still, are not seen whole.
        let whole: Vec<&Vec<Turn>> = robots.values().filter(|turns| turns.len() == 480).collect();
        assert!(whole.len() > 300, "{}", whole.len());
        for turns in whole {
            let lasted = (turns[479].at - turns[0].at).as_secs_f64();
            assert!((45.0..75.0).contains(&lasted), "{lasted}");
            assert!(turns[..479].iter().all(|turn| turn.act == Act::Look) && turns[479].act == Act::Leave);
        }
    }

    #[test]
    fn shoppers_think_add_to_their_carts_and_leave() {
        let mut sessions: HashMap<u64, Vec<Turn>> = HashMap::new();
        for turn in hour(1).filter(|turn| !turn.is_robot) {
            sessions.entry(turn.session).or_default().push(turn);
        }
        let gaps =
            sessions.values().flat_map(|turns| turns.windows(2)).map(|pair| (pair[1].at - pair[0].at).as_secs_f64());
        let (count, sum) = gaps.fold((0, 0.0), |(count, sum), gap| (count + 1, sum + gap));
        let mean = sum / f64::from(count);
        assert!((1.8..2.2).contains(&mean), "{mean}");
        let all: Vec<Act> = sessions.values().flatten().map(|turn| turn.act).collect();
        let share = |act: Act| all.iter().filter(|other| **other == act).count() as f64 / all.len() as f64;
        assert!((0.07..0.12).contains(&share(Act::Add)), "{}", share(Act::Add));
        assert!((0.09..0.14).contains(&share(Act::Leave)), "one in nine is the last: {}", share(Act::Leave));
    }

    #[test]
    fn only_sessions_under_way_are_remembered() {
        let mut schedule = Schedule::new(RATE, 1);
        let most = (0..500_000).map(|_| {
            schedule.next();
            schedule.due.len()
        });
        assert!(most.max() < Some(1_500), "some three hundred would do");
    }

    #[test]
    fn the_seed_is_all_that_it_depends_on() {
        let [one, same, other] = [1, 1, 2].map(|seed| hour(seed).take(10_000).collect::<Vec<_>>());
        assert!(one == same && one != other);
    }
}
