//! How long servers that join wait for their share.

use std::time::{Duration, Instant};

use steadfast::twin::Discipline;

use crate::origins::Origins;
use crate::proxy::Proxy;
use crate::users::Users;
use crate::workload::{Arrival, workload};
use crate::{HARD, SOFT, block_on};

const SHARE_OVER: Duration = Duration::from_secs(2);

pub fn run(seconds: u64, seed: u64) {
    let arrivals = workload(seconds as f64, seed, 4, 0.4);
    println!("\n{} exchanges in {seconds} s, four origins at 40 % and two that join, seed {seed}\n", arrivals.len());
    println!(
        "| pins | until both have 90 % of their share | their shares from 10 to 20 s | moved | kept | failed |\n|---|---|---|---|---|---|"
    );
    // A margin that load alone seldom exceeds: what comes over then comes by rebalancing.
    let soft = SOFT.replace("margin = 4", "margin = 16");
    let rebalanced = format!("{soft}[pool.rebalance]\nmoves_per_second = 50\n");
    let rows = [("hard", HARD), ("soft, margin 16", &soft), ("soft, margin 16, 50 moves a second", &rebalanced)];
    for (name, keys) in rows {
        println!("| {name} | {} |", block_on(one(&arrivals, Duration::from_secs(seconds), keys)));
    }
}

async fn one(arrivals: &[Arrival], length: Duration, keys: &str) -> String {
    let origins = Origins::start(6, Discipline::Fifo).await;
    let proxy = Proxy::start(0, &origins.addresses[..4], keys);
    let users = Users::of(proxy.port());
    let began = Instant::now();
    let joining = async {
        tokio::time::sleep(length / 3).await;
        proxy.reconfigure(&origins.addresses).await;
        Instant::now()
    };
    let (asked, joined) = tokio::join!(users.send(arrivals, began), joining);
    let ended = began + length;
    // The newcomers' requests over their fair share.
    let shares = |span: Duration, at: Instant| {
        let requests: Vec<usize> = origins.gauges.iter().map(|gauge| gauge.requests(at, span)).collect();
        let fair = requests.iter().sum::<usize>() as f64 / 6.0;
        [requests[4], requests[5]].map(|count| count as f64 / fair.max(1.0))
    };
    let moments = (1..).map(|step| joined + Duration::from_millis(100) * step).take_while(|at| *at < ended);
    let reached = moments.into_iter().find(|at| shares(SHARE_OVER, *at).iter().all(|share| *share >= 0.9));
    let reached = reached.map_or_else(
        || format!("more than {:.0} s", (ended - joined).as_secs_f64()),
        |at| format!("{:.1} s", (at - joined).as_secs_f64()),
    );
    let [one, other] = shares(Duration::from_secs(10), joined + Duration::from_secs(20));
    asked.join_all().await;
    let (kept, all) = proxy.verdicts().await;
    format!(
        "{reached} | {:.0} %, {:.0} % | {:.0} | {:.1} % | {}",
        one * 100.0,
        other * 100.0,
        all - kept,
        kept / all * 100.0,
        users.failed()
    )
}
