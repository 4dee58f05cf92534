//! What stickiness costs, what other ways cost instead, and whether the twin knows: one open-loop workload, really served.
//!
//!     cargo bench --bench stickiness                     # all four, 60 s each run, seed 1 (and 2 and 3 for the twin)
//!     cargo bench --bench stickiness -- --seconds 20 --seed 7
//!     cargo bench --bench stickiness -- --only truth     # or: untold, imbalance, scale-out
//!
//! Origins have eight workers each: an exchange holds one while the origin sleeps for its service time (30 ms in the mean,
//! exponential), so the machine's speed does not matter. Sessions come at random; most ask a few times (Pareto, two seconds
//! of thought between), one in a hundred is a robot that asks twenty-five times a second for a minute. The load is open:
//! what comes does not wait for what is slow. All runs of a table get the same arrivals, sessions and service times.
//!
//! **imbalance**: eight origins at 80 % of what they can do, with hard and with soft pins.
//!
//! **scale-out**: four origins at 40 %, and a third into the run two more join by a reload. How long until both newcomers
//! have 90 % of their fair share of requests (over two seconds)?
//!
//! **truth**: eight origins; the same workload under hard pins, soft pins and with sessions in the proxy. The twin of the
//! first says what the other two come to, and `simulate` says it from that one's log; both are held against the others.
//! **untold**: the same, where the twin has to find out by itself what servers can do.

#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods, reason = "a test or a bench may")]

mod imbalance;
mod origins;
mod proxy;
mod scale_out;
mod truth;
mod users;
mod workload;

/// The pools' keys.
const HARD: &str = "mode = \"sticky\"\n[pool.sticky]\npin = \"hard\"\n";
const SOFT: &str = "mode = \"sticky\"\n[pool.sticky]\npin = \"soft\"\nmargin = 4\n";

fn main() {
    let seconds = argument("--seconds").unwrap_or(60);
    let seed = argument("--seed").unwrap_or(1);
    let only = text_argument("--only");
    let is_wanted = |part: &str| only.as_deref().is_none_or(|only| only == part);
    if is_wanted("imbalance") {
        imbalance::run(seconds, seed);
    }
    if is_wanted("scale-out") {
        scale_out::run(seconds, seed);
    }
    if is_wanted("truth") {
        truth::run(seconds, seed);
    }
    if is_wanted("untold") {
        truth::run_untold(seconds, seed);
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap().block_on(future)
}

fn argument(name: &str) -> Option<u64> {
    text_argument(name)?.parse().ok()
}

fn text_argument(name: &str) -> Option<String> {
    let arguments: Vec<String> = std::env::args().collect();
    let at = arguments.iter().position(|argument| argument == name)?;
    arguments.get(at + 1).cloned()
}
