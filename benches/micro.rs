//! What single steps of an exchange cost, by criterion:
//!
//!     cargo bench --bench micro
//!     cargo bench --bench micro -- pick      # only those whose name has this in it
//!
//! `pick` is a newcomer's choice and its place in flight, given back at once; `kept` is a pinned session's, with what keeping
//! it costs (regret and shadow) and without.

#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods, reason = "a test or a bench may")]

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use http::{HeaderMap, HeaderValue, header};
use steadfast::affinity::{Affinity, Asked, LearnedTable, PinSealer, Preference, SameSite, Source, StickySettings};
use steadfast::balance::{Balance, mix};
use steadfast::clock::{Moment, Wall};
use steadfast::headers;
use steadfast::keys::{KeyRing, RingKey};
use steadfast::metrics::{Metrics, WorkerId};
use steadfast::names::{NewWhy, Verdict};
use steadfast::pool::{Ask, Pool, PoolParts, Server, ServerSettings, ServerState, Tried};
use steadfast::proxy::Record;
use steadfast::routing::{HostPattern, RouteMatch, RouteTable, normalise};

const NOW: Wall = Wall(1_800_000_000_000_000);
const MOMENT: Moment = Moment::from_nanos(60_000_000_000);

fn affinity(servers: &[String]) -> Affinity {
    let settings = StickySettings {
        source: Source::Cookie,
        cookie: StickySettings::default_cookie("shop").into(),
        idle: Duration::from_secs(86_400),
        absolute: Duration::ZERO,
        same_site: SameSite::Lax,
        partitioned: false,
        persistent: false,
    };
    let ring = KeyRing::new(vec![RingKey::from_secret([7; 32])]);
    let sealer = Arc::new(PinSealer::new(&ring));
    Affinity::new(settings, &ring, sealer, Arc::new(LearnedTable::new(1)), "shop", servers.iter().map(String::as_str))
}

fn pool(balance: Balance, count: usize, is_sticky: bool) -> Pool {
    let metrics = Metrics::new(1).pool("shop");
    let names: Vec<String> = (0..count).map(|at| format!("shop-{at}")).collect();
    let server = |name: &String| {
        let settings = ServerSettings { name: name.as_str().into(), weight: 1, max_requests: 0, backup: false };
        let state = Arc::new(ServerState::new(metrics.server(name)));
        state.latency.observe(Duration::from_micros(500 + mix(name.len() as u64) % 1_000), false, MOMENT);
        Server::new(settings, state)
    };
    let servers = names.iter().map(server).collect();
    let affinity = is_sticky.then(|| affinity(&names));
    let parts = PoolParts { affinity, ..PoolParts::plain(balance, servers, Arc::clone(&metrics)) };
    let pool = Pool::build(parts, &mut fastrand::Rng::with_seed(1));
    pool.adopt();
    pool
}

fn ask(tried: &Tried, preference: Preference, key: u64) -> Ask<'_> {
    Ask { preference, tried, key, worker: WorkerId(0), now: MOMENT, may_wait: true, alone: true }
}

fn picks(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("pick");
    for balance in Balance::ALL {
        for count in [4, 100, 1_000] {
            let pool = pool(*balance, count, false);
            let (mut random, tried, mut key) = (fastrand::Rng::with_seed(2), Tried::default(), 0);
            group.bench_function(BenchmarkId::new(balance.as_str(), count), |bencher| {
                bencher.iter(|| {
                    key += 1;
                    drop(black_box(pool.pick(&ask(&tried, Preference::New(NewWhy::First), mix(key)), &mut random)));
                });
            });
        }
    }
    group.finish();
    let mut group = criterion.benchmark_group("kept");
    for (name, balance) in
        [("p2c", Balance::P2c), ("least-requests", Balance::LeastRequests), ("without shadow", Balance::Hash)]
    {
        for count in [4, 100, 1_000] {
            let pool = pool(balance, count, true);
            let (mut random, tried) = (fastrand::Rng::with_seed(2), Tried::default());
            group.bench_function(BenchmarkId::new(name, count), |bencher| {
                bencher.iter(|| {
                    let preference = Preference::Pinned { server: random.usize(..count), session: 42 };
                    drop(black_box(pool.pick(&ask(&tried, preference, 42), &mut random)));
                });
            });
        }
    }
    group.finish();
}

fn pins(criterion: &mut Criterion) {
    let names: Vec<String> = (0..4).map(|at| format!("shop-{at}")).collect();
    let affinity = affinity(&names);
    let mut random = fastrand::Rng::with_seed(3);
    let asked = |headers| Asked { headers, https: true, client: [127, 0, 0, 1].into(), now: NOW };
    let empty = HeaderMap::new();
    let newcomer = affinity.recall(&asked(&empty));
    let (cookie, _) = affinity.set_cookie(&newcomer, 2, true, NOW, &mut random).unwrap();
    let pair = cookie.to_str().unwrap().split(';').next().unwrap().to_owned();
    let line = HeaderValue::try_from(format!("theme=dark; {pair}; cart=3")).unwrap();
    let headers = HeaderMap::from_iter([(header::COOKIE, line)]);
    criterion.bench_function("pin/seal", |bencher| {
        bencher.iter(|| black_box(affinity.set_cookie(&newcomer, 2, true, NOW, &mut random)));
    });
    criterion.bench_function("pin/open", |bencher| bencher.iter(|| black_box(affinity.recall(&asked(&headers)))));
}

fn routes(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("route");
    for count in [10, 1_000, 10_000] {
        let route = |at: usize| RouteMatch {
            host: HostPattern::parse(&format!("shop-{}.example.com", at / 10)).unwrap(),
            path: format!("/part/{}", at % 10).into(),
            listeners: None,
        };
        let table = RouteTable::build(&(0..count).map(route).collect::<Vec<_>>()).ok().unwrap();
        let host = format!("shop-{}.example.com", count / 20);
        group.bench_function(BenchmarkId::from_parameter(count), |bencher| {
            bencher.iter(|| {
                let path = normalise(black_box("/part/7/of/the/path.html")).ok().unwrap();
                black_box(table.find(&host, &path, 0))
            });
        });
    }
    group.finish();
}

fn cleaning(criterion: &mut Criterion) {
    let pairs = [
        ("host", "shop.example.com"),
        ("user-agent", "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko)"),
        ("accept", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"),
        ("accept-encoding", "gzip, deflate, br"),
        ("accept-language", "en-GB,en;q=0.9"),
        ("connection", "keep-alive"),
        ("cookie", "theme=dark; __Host-sf-f3fbbc38=aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa; cart=3"),
    ];
    let built: HeaderMap =
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value))).collect();
    criterion.bench_function("headers/clean", |bencher| {
        bencher.iter_batched_ref(
            || built.clone(),
            |headers| {
                assert!(headers::unsafe_names(headers).is_empty() && headers::transfer_coding_is_plain(headers));
                headers::remove_hop_by_hop(headers);
                black_box(headers::rewritten_cookies(headers, |name| name == b"__Host-sf-f3fbbc38"))
            },
            criterion::BatchSize::SmallInput,
        );
    });
}

fn log_line(criterion: &mut Criterion) {
    let record = Record {
        time: NOW,
        id: "0192f0c1e7a97b3c9d5e8f2a4b6c8d0e",
        client: [192, 0, 2, 1].into(),
        listener: "https",
        route: "shop.example.com/",
        pool: "shop",
        server: "shop-2",
        method: "GET",
        host: "shop.example.com",
        path: "/cart/items?page=2",
        http2: true,
        status: 200,
        bytes_in: 0,
        bytes_out: 10_240,
        duration: Duration::from_micros(12_345),
        upstream: Duration::from_micros(12_001),
        regret: Duration::ZERO,
        attempts: 1,
        verdict: Some(Verdict::Kept),
        session: Some(42),
        in_flight: 3,
        queued: None,
        error: "",
        detail: None,
        traceparent: "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    };
    let mut line = Vec::with_capacity(1_024);
    criterion.bench_function("log/line", |bencher| {
        bencher.iter(|| {
            line.clear();
            black_box(&record).write(&mut line);
            black_box(line.len())
        });
    });
}

criterion_group! {
    name = steps;
    config = Criterion::default().warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    targets = picks, pins, routes, cleaning, log_line
}
criterion_main!(steps);
