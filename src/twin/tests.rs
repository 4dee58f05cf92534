use super::*;
use crate::pool::{PinKind, Queue, WhenUnavailable};

const EVER: Moment = Moment::from_nanos(u64::MAX);

const fn micro(number: u64) -> Moment {
    Moment::from_nanos(number * 1_000)
}

const fn milli(number: u64) -> Moment {
    micro(number * 1_000)
}

const fn ms(number: u64) -> Duration {
    Duration::from_millis(number)
}

fn server(name: &str, discipline: Discipline, capacity: u32) -> ServerModel {
    ServerModel {
        name: name.into(),
        weight: 1,
        live_weight: None,
        max_requests: 0,
        backup: false,
        drains: false,
        capacity,
        discipline,
        speed: 1.0,
        from: Moment::default(),
        until: EVER,
    }
}

fn servers(count: usize, discipline: Discipline, capacity: u32) -> Vec<ServerModel> {
    (0..count).map(|at| server(&format!("s{at}"), discipline, capacity)).collect()
}

fn policy(pins: Option<PinRules>) -> PolicyModel {
    PolicyModel {
        is_hashed: false,
        name: "shop".into(),
        balance: Balance::P2c,
        pins,
        is_in_force: false,
        warm_up: Duration::ZERO,
        store_round_trip: Duration::ZERO,
    }
}

const HARD: PinRules = PinRules {
    kind: PinKind::Hard,
    when_unavailable: WhenUnavailable::Move,
    queue: Queue { length: 0, timeout: Duration::ZERO },
};
const SOFT: PinRules = PinRules { kind: PinKind::Soft { margin: 4 }, ..HARD };

fn arrival(at: u64, session: u64, demand: u64) -> Arrival {
    Arrival {
        at: milli(at),
        session: (session > 0).then_some(session),
        demand: ms(demand),
        key: session,
        pinned: Pinned::No,
    }
}

fn outcome(servers: &[ServerModel], policy: PolicyModel, arrivals: impl IntoIterator<Item = Arrival>) -> Outcome {
    let mut model = Model::new(servers, policy, 1);
    arrivals.into_iter().for_each(|arrival| model.offer(arrival));
    model.finish()
}

/// What came of each request that was served, in the order of ends: its server, and its begin and end in milliseconds.
fn settled(servers: &[ServerModel], policy: PolicyModel, arrivals: &[Arrival]) -> (Vec<(usize, u64, u64)>, Outcome) {
    let mut model = Model::new(servers, policy, 1);
    model.keep_settled();
    arrivals.iter().for_each(|arrival| model.offer(*arrival));
    model.drain();
    let millis = |moment: Moment| (moment.as_nanos() + 500_000) / 1_000_000;
    let settled = model.take_settled();
    (settled.iter().map(|seen| (seen.server, millis(seen.begun), millis(seen.ended))).collect(), model.so_far())
}

fn exponential(random: &mut fastrand::Rng, mean: f64) -> f64 {
    -(1.0 - random.f64()).ln() * mean
}

/// Poisson arrivals that are `load` of what `capacity` servers can do with demands of 10 ms in the mean, of sessions
/// that ask as often as each other.
fn poisson(count: usize, load: f64, capacity: f64, demand: impl Fn(&mut fastrand::Rng) -> f64) -> Vec<Arrival> {
    let mut random = fastrand::Rng::with_seed(11);
    let mut now = 0.0;
    let one = |_| {
        now += exponential(&mut random, 10e6 / load / capacity);
        let session = random.u64(1..500);
        let demand = Duration::from_nanos((demand(&mut random) * 10e6) as u64);
        Arrival { at: Moment::from_nanos(now as u64), session: Some(session), demand, key: session, pinned: Pinned::No }
    };
    (0..count).map(one).collect()
}

fn markovian(random: &mut fastrand::Rng) -> f64 {
    exponential(random, 1.0)
}

/// Nine in ten take half of the mean, the others eleven times as long.
fn uneven(random: &mut fastrand::Rng) -> f64 {
    if random.f64() < 0.9 { 0.5 } else { 5.5 }
}

fn is_near(what: f64, wanted: f64, error: f64) -> bool {
    (what / wanted - 1.0).abs() <= error
}

#[test]
fn a_queue_with_even_gaps_and_demands_by_hand() {
    // Every 10 ms one of 15 ms: the k-th waits k times 5 ms.
    let arrivals: Vec<Arrival> = (0..4).map(|at| arrival(at * 10, 0, 15)).collect();
    let one = servers(1, Discipline::Fifo, 1);
    let (seen, outcome) = settled(&one, policy(None), &arrivals);
    assert_eq!(seen, [(0, 0, 15), (0, 10, 30), (0, 20, 45), (0, 30, 60)]);
    assert_eq!(outcome.latency.mean(), Duration::from_micros(22_500));
    // Until the last arrival, at 30 ms: one for 10, two for 5, one for 5, two for 10.
    assert!(is_near(outcome.servers[0].in_flight, 45.0 / 30.0, 1e-9), "{:?}", outcome.servers);
    assert_eq!((outcome.servers[0].busy, outcome.requests, outcome.servers[0].requests), (1.0, 4, 4));
}

#[test]
fn the_mean_of_one_worker_is_that_of_theory_under_both_disciplines() {
    let arrivals = poisson(200_000, 0.7, 1.0, markovian);
    for discipline in Discipline::ALL {
        let outcome = outcome(&servers(1, *discipline, 1), policy(None), arrivals.iter().copied());
        // M/M/1: the mean demand over one minus the load.
        let mean = outcome.latency.mean().as_secs_f64();
        assert!(is_near(mean, 0.010 / 0.3, 0.05), "{discipline}: {mean}");
        assert!(is_near(outcome.servers[0].in_flight, 0.7 / 0.3, 0.05), "{discipline}: Little's law");
        assert!(is_near(outcome.servers[0].busy, 0.7, 0.02), "{discipline}");
    }
}

#[test]
fn sharing_does_not_mind_how_uneven_demands_are_and_a_queue_does() {
    let arrivals = poisson(200_000, 0.6, 1.0, uneven);
    let mean = |discipline| {
        let outcome = outcome(&servers(1, discipline, 1), policy(None), arrivals.iter().copied());
        outcome.latency.mean().as_secs_f64()
    };
    let sharing = mean(Discipline::Sharing);
    assert!(is_near(sharing, 0.010 / 0.4, 0.05), "as with exponential demands: {sharing}");
    // Pollaczek and Khinchine: the wait is load / (1 - load) times the mean residual demand, E[S^2] / 2 E[S].
    let residual = (0.9 * 0.25 + 0.1 * 30.25) / 2.0 * 0.010;
    let fifo = mean(Discipline::Fifo);
    assert!(is_near(fifo, 0.010 + 1.5 * residual, 0.05), "{fifo}");
}

#[test]
fn all_work_is_done_and_no_more() {
    for discipline in Discipline::ALL {
        for pins in [None, Some(HARD), Some(SOFT)] {
            let mut arrivals = poisson(20_000, 0.8, 12.0, uneven);
            let wanted: f64 = arrivals.iter().map(|arrival| arrival.demand.as_secs_f64()).sum();
            let end = arrivals.last().map(|last| last.at + Duration::from_secs(3_600)).unwrap();
            arrivals.push(Arrival { at: end, session: None, demand: Duration::ZERO, key: 0, pinned: Pinned::No });
            let outcome = outcome(&servers(3, *discipline, 4), policy(pins), arrivals.iter().copied());
            let span = end.since(arrivals[0].at).as_secs_f64();
            let done: f64 = outcome.servers.iter().map(|server| server.busy * 4.0 * span).sum();
            assert!(is_near(done, wanted, 1e-5), "{discipline}: {done} for {wanted}");
            assert_eq!(outcome.latency.count() + outcome.refused + outcome.failed, 20_001);
            let of_sessions = outcome.kept + outcome.moved + outcome.placed;
            assert_eq!(of_sessions, if pins.is_some() { 20_000 } else { 0 });
        }
    }
}

#[test]
fn the_same_input_gives_the_same_outcome_bit_for_bit_and_another_seed_another() {
    let arrivals = poisson(20_000, 0.85, 16.0, uneven);
    let mut servers = servers(4, Discipline::Sharing, 4);
    servers[3].from = milli(5_000);
    servers[0].until = milli(9_000);
    servers[1].max_requests = 8;
    for balance in Balance::ALL {
        let run = |seed| {
            let queue = Queue { length: 4, timeout: ms(50) };
            let policy = PolicyModel { balance: *balance, ..policy(Some(PinRules { queue, ..HARD })) };
            let mut model = Model::new(&servers, policy, seed);
            arrivals.iter().for_each(|arrival| model.offer(*arrival));
            model.finish()
        };
        assert_eq!(run(1), run(1), "{balance}");
        if *balance == Balance::P2c {
            assert_ne!(run(1), run(2));
        }
    }
}

#[test]
fn demands_are_found_again_in_what_was_observed() {
    for discipline in Discipline::ALL {
        for (count, capacity, speed) in [(1, 1, 1.0), (3, 4, 1.0), (2, 2, 0.5)] {
            let arrivals = poisson(5_000, 0.9, count as f64 * f64::from(capacity) * speed, markovian);
            let servers: Vec<ServerModel> = servers(count, *discipline, capacity)
                .into_iter()
                .map(|server| ServerModel { speed, ..server })
                .collect();
            let mut model = Model::new(&servers, policy(None), 1);
            model.keep_settled();
            arrivals.iter().for_each(|arrival| model.offer(*arrival));
            model.drain();
            let known = Known { capacity, discipline: Some(*discipline), speed };
            let mut demands = Demands::<()>::new(&vec![known; count], 5_000);
            model.take_settled().into_iter().for_each(|observed| demands.offer(observed, ()));
            let found = demands.finish();
            assert_eq!((found.len(), demands.left_out()), (5_000, 0));
            for ((found, ()), wanted) in found.iter().zip(&arrivals) {
                assert_eq!((found.at, found.session, found.key), (wanted.at, wanted.session, wanted.key));
                let off = found.demand.abs_diff(wanted.demand);
                assert!(off < wanted.demand / 100 + Duration::from_nanos(10), "{discipline}: {found:?} for {wanted:?}");
            }
        }
    }
}

#[test]
fn capacity_and_discipline_are_found_out() {
    for discipline in Discipline::ALL {
        let arrivals = poisson(30_000, 0.85, 8.0, markovian);
        let mut model = Model::new(&servers(1, *discipline, 8), policy(None), 1);
        model.keep_settled();
        let mut demands = Demands::<()>::new(&[Known { capacity: 0, discipline: None, speed: 1.0 }], 10_000);
        let mut found = 0;
        for arrival in arrivals {
            model.offer(arrival);
            model.take_settled().into_iter().for_each(|observed| demands.offer(observed, ()));
            demands.settle(Moment::from_nanos(arrival.at.as_nanos().saturating_sub(2_000_000_000)));
            found += std::iter::from_fn(|| demands.arrival()).count();
        }
        assert_eq!(demands.discipline(0), Some(*discipline), "{:?}", demands.misfit(0));
        let capacity = demands.capacity(0).unwrap();
        assert!((7..=9).contains(&capacity), "{discipline}: {capacity}");
        assert!(demands.left_out() == 0 && found > 28_000, "{found} in time, {} left out", demands.left_out());
    }
}

#[test]
fn an_idle_server_shows_no_knee() {
    let arrivals = poisson(10_000, 0.2, 8.0, markovian);
    let mut model = Model::new(&servers(1, Discipline::Sharing, 8), policy(None), 1);
    model.keep_settled();
    arrivals.iter().for_each(|arrival| model.offer(*arrival));
    model.drain();
    let mut demands = Demands::<()>::new(&[Known { capacity: 0, discipline: None, speed: 1.0 }], 10_000);
    model.take_settled().into_iter().for_each(|observed| demands.offer(observed, ()));
    demands.finish();
    assert_eq!(demands.capacity(0), None);
}

#[test]
fn a_server_that_dies_fails_what_it_has_and_loses_its_sessions() {
    let mut two = servers(2, Discipline::Fifo, 1);
    two[1].from = milli(50);
    two[0].until = milli(200);
    let arrivals = [
        arrival(0, 1, 10),
        arrival(5, 2, 10),
        // One under way and two that wait when it goes.
        arrival(190, 1, 40),
        arrival(191, 2, 40),
        arrival(192, 1, 40),
        arrival(300, 1, 10),
        arrival(320, 2, 10),
        arrival(400, 1, 10),
    ];
    let (seen, hard) = settled(&two, policy(Some(HARD)), &arrivals);
    assert_eq!(seen, [(0, 0, 10), (0, 5, 20), (1, 300, 310), (1, 320, 330), (1, 400, 410)]);
    assert_eq!((hard.requests, hard.failed, hard.refused, hard.latency.count()), (8, 3, 0, 5));
    assert_eq!((hard.sessions_lost, hard.placed, hard.kept, hard.moved), (2, 2, 4, 2));
    let soft = outcome(&two, policy(Some(SOFT)), arrivals);
    assert_eq!((soft.sessions_lost, soft.failed, soft.placed), (0, 3, 2));
    let fails = PinRules { when_unavailable: WhenUnavailable::Fail, ..HARD };
    let refused = outcome(&two, policy(Some(fails)), arrivals);
    assert_eq!((refused.sessions_lost, refused.refused), (2, 3), "their cookies still name who is gone");
}

#[test]
fn a_key_that_says_where_it_belongs_is_remembered_nowhere() {
    let mut two = servers(2, Discipline::Sharing, 4);
    let arrivals = |from: u64| (1..=100).map(move |key| arrival(from + 10 * key, key, 1));
    let hashed = || PolicyModel { is_hashed: true, ..policy(Some(HARD)) };
    let whole = outcome(&two, hashed(), arrivals(10).chain(arrivals(2_000)));
    let of_all = whole.servers.iter().map(|server| server.requests).collect::<Vec<_>>();
    assert!(of_all.iter().all(|requests| *requests > 60), "{of_all:?}");
    // The second joins between the two rounds: what is its own goes there at once.
    two[1].from = milli(1_500);
    let joined = outcome(&two, hashed(), arrivals(10).chain(arrivals(2_000)));
    assert_eq!(joined.servers[1].requests * 2, of_all[1]);
    let pinned = outcome(&two, policy(Some(HARD)), arrivals(10).chain(arrivals(2_000)));
    assert_eq!(pinned.servers[1].requests, 0, "cookies say another thing");
}

#[test]
fn a_pinned_session_waits_in_its_servers_line() {
    let mut two = servers(2, Discipline::Sharing, 4);
    two[0].max_requests = 1;
    two[1].from = milli(50);
    let arrivals = [
        arrival(0, 1, 10),
        arrival(200, 1, 100),
        arrival(210, 1, 100),
        // The line has its length.
        arrival(220, 1, 100),
        arrival(1_000, 1, 10),
    ];
    let rules = |timeout| PinRules { queue: Queue { length: 1, timeout: ms(timeout) }, ..HARD };
    let warm_up = |timeout| PolicyModel { warm_up: ms(5), ..policy(Some(rules(timeout))) };
    let (seen, waited) = settled(&two, warm_up(1_000), &arrivals);
    assert_eq!(seen, [(0, 0, 10), (0, 200, 300), (1, 220, 325), (0, 300, 400), (0, 1_000, 1_010)]);
    assert_eq!((waited.placed, waited.kept, waited.moved, waited.refused), (1, 3, 1, 0));
    assert!(is_near(waited.latency.max().as_secs_f64(), 0.190, 1e-6), "the line is part of it");
    let (seen, gave_up) = settled(&two, warm_up(20), &arrivals);
    assert_eq!(seen, [(0, 0, 10), (0, 200, 300), (1, 220, 325), (1, 230, 335), (0, 1_000, 1_010)]);
    assert_eq!((gave_up.placed, gave_up.kept, gave_up.moved), (1, 2, 2));
}

#[test]
fn who_waits_for_a_server_that_goes_is_not_forgotten() {
    let mut two = servers(2, Discipline::Sharing, 4);
    (two[0].max_requests, two[0].until) = (1, milli(250));
    two[1].from = milli(50);
    let rules = PinRules { queue: Queue { length: 5, timeout: ms(1_000) }, ..HARD };
    let arrivals = [arrival(0, 1, 10), arrival(200, 1, 100), arrival(210, 1, 100), arrival(220, 1, 100)];
    let (seen, outcome) = settled(&two, policy(Some(rules)), &arrivals);
    assert_eq!(seen, [(0, 0, 10), (1, 250, 350), (1, 250, 350)]);
    assert_eq!((outcome.failed, outcome.sessions_lost, outcome.placed, outcome.moved), (1, 1, 1, 2));
    assert_eq!(outcome.requests, outcome.latency.count() + outcome.failed);
}

#[test]
fn the_store_is_asked_for_requests_with_a_session_only() {
    let shared = PolicyModel { store_round_trip: ms(3), ..policy(None) };
    let arrivals = [arrival(0, 1, 10), arrival(1, 0, 10), arrival(100, 2, 10)];
    let (seen, outcome) = settled(&servers(1, Discipline::Fifo, 4), shared, &arrivals);
    assert_eq!(seen, [(0, 1, 11), (0, 3, 13), (0, 103, 113)]);
    assert_eq!(outcome.latency.max(), ms(13));
    assert_eq!((outcome.kept, outcome.moved, outcome.placed), (0, 0, 0), "nothing is pinned");
}

#[test]
fn soft_pins_even_out_what_hard_pins_leave_uneven() {
    // Half of all requests are of 25 of the 500 sessions.
    let heavy = |arrival: Arrival| {
        let session = arrival.session.map(|session| if session % 2 == 0 { session % 50 } else { session });
        Arrival { session, ..arrival }
    };
    let arrivals: Vec<Arrival> = poisson(60_000, 0.7, 16.0, markovian).into_iter().map(heavy).collect();
    let run = |pins| outcome(&servers(4, Discipline::Fifo, 4), policy(pins), arrivals.iter().copied());
    let (hard, soft, shared) = (run(Some(HARD)), run(Some(SOFT)), run(None));
    let uneven = |outcome: &Outcome| outcome.imbalance.max_over_mean;
    assert!(uneven(&hard) > 1.04 && uneven(&shared) < 1.02, "{} and {}", uneven(&hard), uneven(&shared));
    assert!(uneven(&soft) - 1.0 < (uneven(&hard) - 1.0) / 2.0, "{} and {}", uneven(&soft), uneven(&hard));
    let p99 = |outcome: &Outcome| outcome.latency.quantile(0.99);
    assert!(p99(&hard) > p99(&soft) && p99(&soft) < p99(&shared).mul_f64(1.2));
    assert_eq!((hard.moved, hard.failed), (0, 0));
    assert!(soft.moved > 0 && soft.kept > soft.moved);
}

#[test]
fn a_server_that_joins_gets_its_share_at_once_or_with_pins_perhaps_never() {
    let mut three = servers(3, Discipline::Sharing, 4);
    three[2].from = milli(10_000);
    let arrivals = poisson(20_000, 0.5, 12.0, markovian);
    let without = outcome(&three, policy(None), arrivals.iter().copied());
    let [(name, Some(took))] = &without.scale_out[..] else { panic!("{:?}", without.scale_out) };
    assert!(&**name == "s2" && *took < Duration::from_secs(2), "{took:?}");
    let pinned = outcome(&three, policy(Some(HARD)), arrivals.iter().copied());
    assert_eq!(pinned.scale_out, [(Box::<str>::from("s2"), None::<Duration>)]);
    assert!(outcome(&three[..2], policy(None), arrivals).scale_out.is_empty());
}

#[test]
fn without_any_server_everything_is_refused_and_a_backup_is_one() {
    let arrivals = || (0..10).map(|at| arrival(at, 1, 10));
    let nobody = outcome(&[], policy(None), arrivals());
    assert_eq!((nobody.requests, nobody.refused, nobody.imbalance.max_over_mean), (10, 10, 1.0));
    let mut two = servers(2, Discipline::Fifo, 1);
    (two[0].until, two[1].backup) = (milli(5), true);
    let outcome = outcome(&two, policy(None), arrivals());
    assert_eq!((outcome.failed, outcome.servers[0].requests, outcome.servers[1].requests), (5, 5, 5));
}

#[test]
fn windows_add_up() {
    let arrivals = poisson(5_000, 0.8, 8.0, uneven);
    let fleet = servers(2, Discipline::Sharing, 4);
    let mut model = Model::new(&fleet, policy(Some(SOFT)), 1);
    let mut windows = Vec::new();
    for part in arrivals.chunks(1_000) {
        part.iter().for_each(|arrival| model.offer(*arrival));
        windows.push(model.take_window());
    }
    windows.push(model.finish());
    let whole = outcome(&fleet, policy(Some(SOFT)), arrivals.iter().copied());
    let mut latency = Latencies::default();
    windows.iter().for_each(|window| latency.merge(&window.latency));
    assert_eq!(latency, whole.latency);
    let sum = |count: fn(&Outcome) -> u64| windows.iter().map(count).sum::<u64>();
    assert_eq!(sum(|window| window.requests), whole.requests);
    assert_eq!(sum(|window| window.kept), whole.kept);
    assert_eq!(sum(|window| window.servers[0].requests), whole.servers[0].requests);
    let busy: Vec<f64> = windows[..5].iter().map(|window| window.servers[0].busy).collect();
    assert!(busy.iter().all(|busy| is_near(*busy, 0.8, 0.3)), "{busy:?}");
}

#[test]
fn a_session_is_where_it_was_pinned_before_the_model_began() {
    let two = servers(2, Discipline::Fifo, 1);
    let arrivals: Vec<Arrival> =
        (0..8).map(|at| Arrival { pinned: Pinned::Already(1), ..arrival(at, at + 1, 50) }).collect();
    let pinned = outcome(&two, policy(Some(HARD)), arrivals.iter().copied());
    assert_eq!((pinned.servers[0].requests, pinned.servers[1].requests), (0, 8));
    assert_eq!((pinned.kept, pinned.placed, pinned.moved), (8, 0, 0));
    let free = outcome(&two, policy(None), arrivals);
    assert!(free.servers[0].requests > 0, "where nothing is pinned it does not matter");
}

#[test]
fn a_newcomer_is_placed_as_it_was_by_the_policy_in_force_and_by_its_own_choice_by_another() {
    let two = servers(2, Discipline::Fifo, 1);
    let newly = (0..8).map(|at| Arrival { pinned: Pinned::Newly(1), ..arrival(at, at + 1, 50) });
    let again = (0..8).map(|at| Arrival { pinned: Pinned::Already(1), ..arrival(1_000 + at, at + 1, 50) });
    let arrivals: Vec<Arrival> = newly.chain(again).collect();
    let in_force = PolicyModel { is_in_force: true, ..policy(Some(HARD)) };
    let real = outcome(&two, in_force, arrivals.iter().copied());
    assert_eq!((real.servers[0].requests, real.servers[1].requests), (0, 16));
    assert_eq!((real.kept, real.placed, real.moved), (8, 8, 0));
    let other = outcome(&two, policy(Some(HARD)), arrivals);
    assert!(other.servers[0].requests >= 6, "{other:?}");
    assert_eq!((other.kept, other.placed, other.moved), (8, 8, 0), "it stays where the model has placed it");
}

#[test]
fn who_drains_has_the_sessions_that_are_pinned_to_it_and_no_others() {
    let mut three = servers(3, Discipline::Fifo, 1);
    three[2].drains = true;
    let newcomers = (0..30).map(|at| arrival(at * 10, at + 1, 5));
    let its_own = (0..30).map(|at| Arrival { pinned: Pinned::Already(2), ..arrival(300 + at * 10, at + 100, 5) });
    let outcome = outcome(&three, policy(Some(HARD)), newcomers.chain(its_own));
    assert_eq!(outcome.servers[2].requests, 30);
    assert_eq!((outcome.kept, outcome.placed), (30, 30));
    assert!(outcome.imbalance.max_over_mean < 1.5, "it is not one of those that share the load: {outcome:?}");
}

#[test]
fn hard_pins_in_force_are_where_they_really_are_whatever_has_moved_them() {
    let two = servers(2, Discipline::Fifo, 1);
    let seen_at = |at, server| Arrival { pinned: Pinned::Already(server), ..arrival(at, 1, 5) };
    let arrivals = [seen_at(0, 0), seen_at(100, 1), seen_at(200, 1)];
    let in_force = PolicyModel { is_in_force: true, ..policy(Some(HARD)) };
    let real = outcome(&two, in_force, arrivals);
    assert_eq!((real.servers[0].requests, real.servers[1].requests, real.moved), (1, 2, 0));
    let other = outcome(&two, policy(Some(HARD)), arrivals);
    assert_eq!((other.servers[0].requests, other.servers[1].requests), (3, 0), "another policy has pins of its own");
}

#[test]
fn a_weight_set_while_running_moves_no_key_and_counts_for_newcomers() {
    let mut two = servers(2, Discipline::Sharing, 4);
    let arrivals = || (1..=200).map(|key| arrival(10 * key, key, 1));
    let hashed = || PolicyModel { is_hashed: true, ..policy(Some(HARD)) };
    let before = outcome(&two, hashed(), arrivals()).servers[1].requests;
    two[1].live_weight = Some(0);
    assert_eq!(outcome(&two, hashed(), arrivals()).servers[1].requests, before);
    assert_eq!(outcome(&two, policy(Some(HARD)), arrivals()).servers[1].requests, 0);
}
