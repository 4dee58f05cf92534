//! How fast servers are beside each other, read off what requests cost on each.
//!
//! What a request would cost elsewhere has to be known of servers of which one is slow: its work, and not the time that the
//! slow one took. On which server a session is does not depend on what its requests cost, so servers of one speed have
//! costs of one distribution, and one of half the speed has twice of each. The means of their logarithms are compared,
//! in which a few long ones do not drown the others. A server is another one where the difference is no chance (four
//! standard errors) and worth it (a quarter); what is compared with is the server in the middle.
//!
//! Of a session one request is to be told of in each window, or a robot's thousand alike would pass for a thousand
//! sessions. What was found before counts half with every window.

use std::time::Duration;

/// Requests of a server before it is compared.
const ENOUGH: f64 = 30.0;
/// Standard errors that are no chance.
const CERTAIN: f64 = 4.0;
/// A smaller difference is none.
const WORTH_IT: f64 = 1.25;
/// Nothing is taken to be faster or slower than this.
const MOST: f64 = 50.0;

/// What is known of the speeds of a pool's servers.
pub struct Speeds {
    /// By position.
    each: Vec<Logarithms>,
}

/// Mean and variance of logarithms of seconds (Welford's).
#[derive(Clone, Copy, Default)]
struct Logarithms {
    weight: f64,
    mean: f64,
    squares: f64,
}

impl Logarithms {
    fn add(&mut self, value: f64) {
        self.weight += 1.0;
        let before = value - self.mean;
        self.mean += before / self.weight;
        self.squares += before * (value - self.mean);
    }

    fn halve(&mut self) {
        self.weight /= 2.0;
        self.squares /= 2.0;
    }

    /// The variance of the mean.
    fn error(&self) -> f64 {
        self.squares / self.weight.max(1.0) / self.weight.max(1.0)
    }
}

impl Speeds {
    /// Of so many servers nothing is known.
    pub fn new(servers: usize) -> Self {
        Speeds { each: vec![Logarithms::default(); servers] }
    }

    /// A request, of no session or the first of its session in this window, took so long of the time of the server at this
    /// position.
    pub fn note(&mut self, server: usize, took: Duration) {
        if let Some(logarithms) = self.each.get_mut(server).filter(|_| !took.is_zero()) {
            logarithms.add(took.as_secs_f64().ln());
        }
    }

    /// A window ends.
    pub fn end_window(&mut self) {
        self.each.iter_mut().for_each(Logarithms::halve);
    }

    /// By position: 1 is the speed of the server in the middle, and of those that are not known to have another.
    pub fn speeds(&self) -> Vec<f64> {
        let mut known: Vec<&Logarithms> = self.each.iter().filter(|of| of.weight >= ENOUGH).collect();
        known.sort_by(|one, other| one.mean.total_cmp(&other.mean));
        // Of two the faster one: that something is slow is what happens.
        let Some(middle) = known.get(known.len().saturating_sub(1) / 2) else { return vec![1.0; self.each.len()] };
        self.each.iter().map(|of| speed(of, middle)).collect()
    }
}

fn speed(of: &Logarithms, middle: &Logarithms) -> f64 {
    let apart = of.mean - middle.mean;
    let certain = CERTAIN * (of.error() + middle.error()).sqrt();
    if of.weight < ENOUGH || apart.abs() <= certain.max(WORTH_IT.ln()) {
        return 1.0;
    }
    (-apart).exp().clamp(1.0 / MOST, MOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Exponential costs of 10 ms in the mean, of so many sessions, at this speed.
    fn feed(speeds: &mut Speeds, server: usize, sessions: u64, speed: f64) {
        let mut random = fastrand::Rng::with_seed(server as u64 + 7);
        for _ in 0..sessions {
            let took = -(1.0 - random.f64()).ln() * 0.010 / speed;
            speeds.note(server, Duration::from_secs_f64(took));
        }
    }

    #[test]
    fn a_slow_server_is_found_and_the_others_are_alike() {
        let mut speeds = Speeds::new(4);
        for (server, speed) in [1.0, 0.25, 1.0, 1.0].into_iter().enumerate() {
            feed(&mut speeds, server, 100, speed);
        }
        let found = speeds.speeds();
        assert_eq!([found[0], found[2], found[3]], [1.0; 3], "{found:?}");
        assert!((0.17..0.36).contains(&found[1]), "{found:?}");
    }

    #[test]
    fn servers_of_one_speed_are_alike_whatever_chance_does() {
        for seed in 0..200 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut speeds = Speeds::new(8);
            for _ in 0..800 {
                let took = Duration::from_secs_f64(-(1.0 - random.f64()).ln() * 0.010);
                speeds.note(random.usize(..8), took);
            }
            assert_eq!(speeds.speeds(), [1.0; 8], "seed {seed}");
        }
    }

    #[test]
    fn too_few_say_nothing() {
        let mut speeds = Speeds::new(3);
        feed(&mut speeds, 0, 200, 1.0);
        feed(&mut speeds, 1, 200, 1.0);
        feed(&mut speeds, 2, 10, 0.1);
        assert_eq!(speeds.speeds(), [1.0; 3]);
        assert_eq!(Speeds::new(2).speeds(), [1.0; 2], "nothing is known");
        speeds.note(9, Duration::from_secs(1));
        speeds.note(2, Duration::ZERO);
        assert_eq!(speeds.speeds(), [1.0; 3], "and neither is a server, nor a request of no time");
    }

    #[test]
    fn of_two_the_faster_one_counts_and_what_was_is_forgotten() {
        let mut speeds = Speeds::new(2);
        feed(&mut speeds, 0, 200, 0.2);
        feed(&mut speeds, 1, 200, 1.0);
        let found = speeds.speeds();
        assert!((0.14..0.28).contains(&found[0]) && found[1] == 1.0, "{found:?}");
        for _ in 0..6 {
            speeds.end_window();
            feed(&mut speeds, 0, 200, 1.0);
            feed(&mut speeds, 1, 200, 1.0);
        }
        assert_eq!(speeds.speeds(), [1.0; 2], "it has recovered");
    }
}
