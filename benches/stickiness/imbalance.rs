//! What stickiness costs, and what soft pins save.

use std::time::{Duration, Instant};

use steadfast::twin::Discipline;

use crate::origins::Origins;
use crate::proxy::Proxy;
use crate::users::Users;
use crate::workload::{Arrival, workload};
use crate::{HARD, SOFT, block_on};

pub fn run(seconds: u64, seed: u64) {
    let arrivals = workload(seconds as f64, seed, 8, 0.8);
    println!("{} exchanges in {seconds} s, eight origins at 80 %, seed {seed}\n", arrivals.len());
    println!("| pins | max/mean of in flight | Jain | kept | median | p99 | failed |\n|---|---|---|---|---|---|---|");
    for (name, keys) in [("hard", HARD), ("soft, margin 4", SOFT)] {
        println!("| {name} | {} |", block_on(one(&arrivals, Duration::from_secs(seconds), keys)));
    }
}

async fn one(arrivals: &[Arrival], length: Duration, keys: &str) -> String {
    let origins = Origins::start(8, Discipline::Fifo).await;
    let proxy = Proxy::start(0, &origins.addresses, keys);
    let users = Users::of(proxy.port());
    let began = Instant::now();
    users.send(arrivals, began).await.join_all().await;
    // Over the time of the arrivals; what is still under way then may end.
    let loads = origins.gauges.iter().map(|gauge| gauge.mean_in_flight(began, began + length));
    let measures = steadfast::imbalance::measure(&loads.collect::<Vec<f64>>()).unwrap();
    let (kept, all) = proxy.verdicts().await;
    let [median, p99] = users.quantiles(&(Duration::ZERO..length), [0.5, 0.99]).map(|latency| latency.as_millis());
    format!(
        "{:.2} | {:.3} | {:.1} % | {median} ms | {p99} ms | {}",
        measures.max_over_mean,
        measures.jain,
        kept / all * 100.0,
        users.failed()
    )
}
