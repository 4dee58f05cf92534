//! How long a server that comes later waits for its share of the requests.

use std::collections::VecDeque;
use std::time::Duration;

use crate::clock::Moment;

/// What a rate is taken over.
const RATE_OVER: Duration = Duration::from_secs(1);
/// A newcomer has arrived when it has this share of its fair share of requests.
const ARRIVED: f64 = 0.9;

/// Looks at the choices of the last second, while somebody is awaited.
#[derive(Default)]
pub(super) struct ScaleOut {
    newcomers: Vec<Newcomer>,
    /// Weights of those who share what comes now; 0 for others.
    weights: Vec<u32>,
    all_weights: u64,
    picks: VecDeque<(Moment, usize)>,
    /// How many of these each server has.
    counts: Vec<u64>,
}

struct Newcomer {
    server: usize,
    state: State,
}

#[derive(Clone, Copy)]
enum State {
    Awaited,
    Since(Moment),
    Arrived(Duration),
    Gone,
}

impl ScaleOut {
    /// Servers that share with these weights, and those that will come.
    pub(super) fn new(weights: Vec<u32>, newcomers: Vec<usize>) -> Self {
        let await_it = |server| Newcomer { server, state: State::Awaited };
        ScaleOut {
            newcomers: newcomers.into_iter().map(await_it).collect(),
            counts: vec![0; weights.len()],
            all_weights: weights.iter().map(|weight| u64::from(*weight)).sum(),
            weights,
            picks: VecDeque::new(),
        }
    }

    /// A server shares with this weight from now on.
    pub(super) fn came(&mut self, server: usize, weight: u32, now: Moment) {
        self.set_weight(server, weight);
        self.change(server, |state| if matches!(state, State::Awaited) { State::Since(now) } else { state });
    }

    /// It shares no more.
    pub(super) fn went(&mut self, server: usize) {
        self.set_weight(server, 0);
        self.change(server, |state| if matches!(state, State::Arrived(_)) { state } else { State::Gone });
    }

    fn set_weight(&mut self, server: usize, weight: u32) {
        if let Some(before) = self.weights.get_mut(server) {
            self.all_weights = self.all_weights - u64::from(*before) + u64::from(weight);
            *before = weight;
        }
    }

    fn change(&mut self, server: usize, to: impl Fn(State) -> State) {
        for newcomer in self.newcomers.iter_mut().filter(|newcomer| newcomer.server == server) {
            newcomer.state = to(newcomer.state);
        }
    }

    fn is_over(&self) -> bool {
        self.newcomers.iter().all(|newcomer| matches!(newcomer.state, State::Arrived(_) | State::Gone))
    }

    /// A server was given a request.
    pub(super) fn picked(&mut self, server: usize, now: Moment) {
        if self.is_over() {
            return;
        }
        self.picks.push_back((now, server));
        self.counts[server] += 1;
        while let Some((_, old)) = self.picks.front().copied().filter(|(at, _)| now.since(*at) > RATE_OVER) {
            self.picks.pop_front();
            self.counts[old] -= 1;
        }
        for newcomer in &mut self.newcomers {
            let State::Since(came) = newcomer.state else { continue };
            let part = f64::from(self.weights[newcomer.server]) / self.all_weights.max(1) as f64;
            let fair = self.picks.len() as f64 * part;
            if self.counts[newcomer.server] as f64 >= fair * ARRIVED {
                newcomer.state = State::Arrived(now.since(came));
            }
        }
    }

    /// Each newcomer, and how long it took.
    pub(super) fn took(&self) -> impl Iterator<Item = (usize, Option<Duration>)> {
        self.newcomers.iter().map(|newcomer| match newcomer.state {
            State::Arrived(took) => (newcomer.server, Some(took)),
            _ => (newcomer.server, None),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn milli(number: u64) -> Moment {
        Moment::from_nanos(number * 1_000_000)
    }

    #[test]
    fn a_newcomer_has_arrived_when_a_second_of_requests_says_so() {
        let mut scale = ScaleOut::new(vec![1, 1, 0], vec![2]);
        // Ten a second for each of the old two, then every fourth for the newcomer, then every third.
        (0..20usize).for_each(|at| scale.picked(at % 2, milli(at as u64 * 50)));
        scale.came(2, 1, milli(1_000));
        for at in 20..60usize {
            scale.picked(if at % 4 == 0 { 2 } else { at % 2 }, milli(at as u64 * 50));
        }
        assert_eq!(scale.took().collect::<Vec<_>>(), [(2, None)]);
        for at in 60..120usize {
            scale.picked(if at % 3 == 0 { 2 } else { at % 2 }, milli(at as u64 * 50));
        }
        let [(2, Some(took))] = scale.took().collect::<Vec<_>>()[..] else { panic!("it has arrived") };
        assert!((2_000..3_100).contains(&took.as_millis()), "{took:?}");
        assert!(scale.is_over());
    }

    #[test]
    fn who_goes_before_never_arrives() {
        let mut scale = ScaleOut::new(vec![1, 0], vec![1]);
        scale.came(1, 1, milli(10));
        scale.went(1);
        scale.picked(0, milli(20));
        assert!(scale.is_over());
        assert_eq!(scale.took().collect::<Vec<_>>(), [(1, None)]);
    }
}
