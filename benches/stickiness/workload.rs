//! What is asked of the origins: sessions, robots among them, and how long each request takes to serve.

use std::time::Duration;

/// What an origin does at once at full speed.
pub const WORKERS: usize = 8;
const SERVICE_MEAN: f64 = 0.030;
const ROBOTS: f64 = 0.01;

/// One request: when it comes, whose it is, and how long it takes to serve.
pub struct Arrival {
    pub at: Duration,
    pub session: u32,
    pub service: Duration,
}

/// Arrivals that are this share of what so many origins can do.
pub fn workload(seconds: f64, seed: u64, origins: usize, load: f64) -> Vec<Arrival> {
    let mut random = fastrand::Rng::with_seed(seed);
    let rate = (origins * WORKERS) as f64 / SERVICE_MEAN * load;
    let exponential = |random: &mut fastrand::Rng, mean: f64| -random.f64().max(1e-12).ln() * mean;
    let mut arrivals = Vec::new();
    let (mut session, mut expected) = (0, 0.0);
    // Sessions that began before the first second are under way in it.
    while expected < rate * seconds {
        let robot = random.f64() < ROBOTS;
        let requests = if robot { 1_500 } else { (3.3 / random.f64().max(1e-9).powf(1.0 / 1.5)).min(500.0) as usize };
        let think = if robot { 0.04 } else { 2.0 };
        let mut at = random.f64() * (seconds + 60.0) - 60.0;
        for _ in 0..requests {
            if (0.0..seconds).contains(&at) {
                let service = Duration::from_secs_f64(exponential(&mut random, SERVICE_MEAN));
                arrivals.push(Arrival { at: Duration::from_secs_f64(at), session, service });
                expected += 1.0;
            }
            at += exponential(&mut random, think);
        }
        session += 1;
    }
    arrivals.sort_by_key(|arrival| arrival.at);
    arrivals
}

/// The same requests at the same moments, each with so many times the work.
pub fn scaled(arrivals: Vec<Arrival>, factor: f64) -> Vec<Arrival> {
    let scale = |arrival: Arrival| Arrival { service: arrival.service.mul_f64(factor), ..arrival };
    arrivals.into_iter().map(scale).collect()
}
