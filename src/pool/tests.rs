use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::*;
use crate::affinity::{LearnedTable, PinSealer, SameSite, Source, StickySettings};
use crate::health::RiseFall;
use crate::keys::{KeyRing, RingKey};
use crate::metrics::Metrics;
use crate::names::{MovedWhy, NewWhy, NoneWhy, RefusedWhy};

const NOW: Moment = Moment::from_nanos(1_000_000_000);
const FIRST: Preference = Preference::New(NewWhy::First);

fn server(name: &str) -> ServerSettings {
    ServerSettings { name: name.into(), weight: 1, max_requests: 0, backup: false }
}

fn pool(balance: Balance, servers: &[ServerSettings]) -> Pool {
    let metrics = Metrics::new(1).pool("shop");
    let build = |settings: &ServerSettings| {
        Server::new(settings.clone(), Arc::new(ServerState::new(metrics.server(&settings.name))))
    };
    let parts = PoolParts::plain(balance, servers.iter().map(build).collect(), Arc::clone(&metrics));
    let pool = Pool::build(parts, &mut fastrand::Rng::with_seed(1));
    pool.adopt();
    pool
}

fn ask(pool: &Pool, preference: Preference, tried: &[usize], may_wait: bool) -> Result<Picked, NoServer> {
    let tried = Tried(tried.to_vec());
    let ask = Ask { preference, tried: &tried, key: 0, worker: WorkerId(0), now: NOW, may_wait, alone: true };
    pool.pick(&ask, &mut fastrand::Rng::with_seed(3))
}

fn pick(pool: &Pool, preference: Preference, tried: &[usize]) -> Result<Pick, NoServer> {
    match ask(pool, preference, tried, false)? {
        Picked::Server(pick) => Ok(pick),
        Picked::Line { .. } => panic!("nobody said that it may wait"),
    }
}

fn with_rules(mut pool: Pool, rules: PinRules) -> Pool {
    pool.rules = rules;
    pool
}

fn take_down(pool: &Pool, server: usize) {
    pool.servers[server].state.vitals.probed(false, RiseFall { rise: 1, fall: 1 });
}

fn pinned(server: usize) -> Preference {
    Preference::Pinned { server, session: 42 }
}

#[test]
fn a_pinned_session_stays_while_its_server_can_serve_and_moves_with_the_reason_when_not() {
    let shop = pool(Balance::P2c, &[server("a"), server("b"), ServerSettings { max_requests: 1, ..server("c") }]);
    assert_eq!(pick(&shop, pinned(1), &[]).unwrap().verdict, Verdict::Kept);
    assert_eq!(pick(&shop, pinned(1), &[1]).unwrap().verdict, Verdict::Moved(MovedWhy::Failed));
    take_down(&shop, 1);
    let moved = pick(&shop, pinned(1), &[]).unwrap();
    assert_eq!(moved.verdict, Verdict::Moved(MovedWhy::Down));
    assert_ne!(moved.server, 1);
    drop(moved);
    let held = pick(&shop, pinned(2), &[]).unwrap();
    assert_eq!(pick(&shop, pinned(2), &[]).unwrap().verdict, Verdict::Moved(MovedWhy::Full));
    drop(held);
    assert_eq!(pick(&shop, pinned(2), &[]).unwrap().verdict, Verdict::Kept);
    assert_eq!(pick(&shop, Preference::Gone { session: 1 }, &[]).unwrap().verdict, Verdict::Moved(MovedWhy::Gone));
}

#[test]
fn all_requests_of_one_session_move_to_the_same_place() {
    let names: Vec<ServerSettings> = ["a", "b", "c", "d", "e"].map(server).to_vec();
    let shop = pool(Balance::RoundRobin, &names);
    take_down(&shop, 0);
    for session in 0..50 {
        let to: Vec<usize> =
            (0..5).map(|_| pick(&shop, Preference::Pinned { server: 0, session }, &[]).unwrap().server).collect();
        assert!(to.iter().all(|server| *server == to[0]), "{to:?}");
    }
}

#[test]
fn an_ejected_server_gets_no_newcomers_but_keeps_its_sessions() {
    let shop = pool(Balance::RoundRobin, &[server("a"), server("b")]);
    assert_eq!(shop.observe(0, false, NOW), None);
    assert_eq!(shop.observe(0, false, NOW), Some(Duration::from_secs(10)));
    assert!((0..8).all(|_| pick(&shop, FIRST, &[]).unwrap().server == 1));
    assert_eq!(pick(&shop, pinned(0), &[]).unwrap().verdict, Verdict::Kept);
    // Half of the pool is out: the other half stays whatever happens.
    assert!((0..9).all(|_| shop.observe(1, false, NOW).is_none()));
}

#[test]
fn a_backup_serves_only_when_nobody_else_can_and_nobody_is_an_immediate_answer() {
    let shop = pool(Balance::P2c, &[server("a"), ServerSettings { backup: true, ..server("spare") }]);
    assert_eq!(pick(&shop, FIRST, &[]).unwrap().server, 0);
    assert_eq!(pick(&shop, FIRST, &[0]).unwrap().server, 1);
    take_down(&shop, 0);
    assert_eq!(pick(&shop, FIRST, &[]).unwrap().server, 1);
    assert_eq!(pick(&shop, pinned(0), &[]).unwrap().server, 1);
    take_down(&shop, 1);
    assert_eq!(pick(&shop, FIRST, &[]).err(), Some(NoServer(Verdict::None(NoneWhy::NoServer))));
}

#[test]
fn weight_0_gets_no_newcomers_and_keeps_its_sessions() {
    let shop = pool(Balance::P2c, &[ServerSettings { weight: 0, ..server("a") }, server("b")]);
    assert!((0..8).all(|_| pick(&shop, FIRST, &[]).unwrap().server == 1));
    assert_eq!(pick(&shop, pinned(0), &[]).unwrap().verdict, Verdict::Kept);
}

#[test]
fn a_cap_is_never_exceeded_and_is_given_back() {
    let shop = pool(Balance::RoundRobin, &[ServerSettings { max_requests: 2, ..server("a") }]);
    let held: Vec<Pick> = (0..2).map(|_| pick(&shop, FIRST, &[]).unwrap()).collect();
    assert!(pick(&shop, FIRST, &[]).is_err());
    assert_eq!(shop.servers[0].state.in_flight(), 2, "a refused entry leaves no trace");
    drop(held);
    assert_eq!(shop.servers[0].state.in_flight(), 0);
}

#[test]
fn retries_stay_within_their_budget() {
    let shop = pool(Balance::RoundRobin, &[server("a")]);
    let budget = RetryBudget { share: 0.2, floor: 3 };
    let taken: Vec<_> = (0..5).filter_map(|_| shop.try_retry(budget)).collect();
    assert_eq!(taken.len(), 3);
    drop(taken);
    let busy: Vec<Pick> = (0..50).map(|_| pick(&shop, FIRST, &[]).unwrap()).collect();
    let taken: Vec<_> = (0..30).filter_map(|_| shop.try_retry(budget)).collect();
    assert_eq!((busy.len(), taken.len()), (50, 10));
}

#[test]
fn a_soft_pin_is_kept_within_its_margin_and_moves_beyond_it() {
    let rules = PinRules { kind: PinKind::Soft { margin: 4 }, ..PinRules::default() };
    let shop = with_rules(pool(Balance::P2c, &[server("a"), server("b"), server("c")]), rules);
    let mut held: Vec<Pick> = Vec::new();
    for _ in 0..5 {
        held.push(pick(&shop, pinned(0), &[]).unwrap());
    }
    assert!(held.iter().all(|pick| pick.verdict == Verdict::Kept), "4 above the best, and itself");
    let beyond = pick(&shop, pinned(0), &[]).unwrap();
    assert_eq!(beyond.verdict, Verdict::Moved(MovedWhy::Margin));
    assert_ne!(beyond.server, 0);
    held.clear();
    assert_eq!(pick(&shop, pinned(0), &[]).unwrap().verdict, Verdict::Kept);
    shop.observe(0, false, NOW);
    shop.observe(0, false, NOW);
    assert_eq!(pick(&shop, pinned(0), &[]).unwrap().verdict, Verdict::Moved(MovedWhy::Ejected));
}

#[test]
fn a_pinned_exchange_waits_for_its_own_full_server() {
    let rules = PinRules { queue: Queue { length: 1, timeout: Duration::from_secs(1) }, ..PinRules::default() };
    let capped = ServerSettings { max_requests: 1, ..server("a") };
    let shop = with_rules(pool(Balance::P2c, &[capped, server("b")]), rules);
    let held = pick(&shop, pinned(0), &[]).unwrap();
    let Ok(Picked::Line { server: 0, waiting, .. }) = ask(&shop, pinned(0), &[], true) else { panic!("it waits") };
    assert_eq!(waiting.position, 1);
    let Ok(Picked::Server(past)) = ask(&shop, pinned(0), &[], true) else { panic!("the line has its length") };
    assert_eq!((past.server, past.verdict), (1, Verdict::Moved(MovedWhy::Full)));
    assert_eq!(pick(&shop, pinned(0), &[]).unwrap().verdict, Verdict::Moved(MovedWhy::Full), "it has waited enough");
    assert_eq!(pick(&shop, FIRST, &[]).unwrap().server, 1, "newcomers do not wait");
    drop((held, waiting));
    assert_eq!(shop.servers[0].state.in_flight(), 0);
}

#[test]
fn with_fail_a_session_is_refused_instead_of_moved() {
    let rules = PinRules { when_unavailable: WhenUnavailable::Fail, ..PinRules::default() };
    let capped = ServerSettings { max_requests: 1, ..server("a") };
    let shop = with_rules(pool(Balance::P2c, &[capped, server("b")]), rules);
    let held = pick(&shop, pinned(0), &[]).unwrap();
    let refused = |why| Some(NoServer(Verdict::Refused(why)));
    assert_eq!(pick(&shop, pinned(0), &[]).err(), refused(RefusedWhy::QueueTimeout));
    drop(held);
    assert_eq!(pick(&shop, pinned(0), &[0]).err(), refused(RefusedWhy::Down));
    take_down(&shop, 0);
    assert_eq!(pick(&shop, pinned(0), &[]).err(), refused(RefusedWhy::Down));
    let gone = pick(&shop, Preference::Gone { session: 1 }, &[]).unwrap();
    assert_eq!(gone.verdict, Verdict::Moved(MovedWhy::Gone), "what is gone cannot be waited for");
}

#[test]
fn a_hashed_session_has_a_home_and_is_never_new() {
    let names: Vec<ServerSettings> = ["a", "b", "c"].map(server).to_vec();
    let shop = pool(Balance::P2c, &names);
    let homes: Vec<usize> = (0..30).map(|key| pick(&shop, Preference::Hashed { key }, &[]).unwrap().server).collect();
    assert!((0..3).all(|server| homes.contains(&server)), "{homes:?}");
    take_down(&shop, 0);
    for (key, home) in (0u64..).zip(homes) {
        let now = pick(&shop, Preference::Hashed { key }, &[]).unwrap();
        let wanted = if home == 0 { Verdict::Moved(MovedWhy::Down) } else { Verdict::Kept };
        assert_eq!(now.verdict, wanted);
    }
}

#[test]
fn a_draining_server_gets_no_newcomers_and_keeps_its_sessions_until_the_deadline() {
    let shop = pool(Balance::P2c, &[server("a"), server("b")]);
    let wishes = &shop.servers[0].state.wishes;
    wishes.set(Wish::Drain, None);
    assert!((0..8).all(|_| pick(&shop, FIRST, &[]).unwrap().server == 1));
    assert_eq!(pick(&shop, pinned(0), &[]).unwrap().verdict, Verdict::Kept);
    wishes.set(Wish::Drain, Some(NOW));
    assert_eq!(pick(&shop, pinned(0), &[]).unwrap().verdict, Verdict::Moved(MovedWhy::Draining));
    wishes.set(Wish::Maint, None);
    assert_eq!(pick(&shop, pinned(0), &[]).unwrap().verdict, Verdict::Moved(MovedWhy::Maint));
    wishes.set(Wish::Ready, None);
    assert_eq!(pick(&shop, pinned(0), &[]).unwrap().verdict, Verdict::Kept);
}

#[test]
fn a_weight_set_while_running_counts_from_then_on() {
    let shop = pool(Balance::RoundRobin, &[server("a"), server("b")]);
    shop.servers[0].state.wishes.set_weight(3, 1);
    shop.reweigh();
    let of_a = (0..40).filter(|_| pick(&shop, FIRST, &[]).unwrap().server == 0).count();
    assert_eq!(of_a, 30);
}

/// Another moment, `millis` later.
fn later(millis: u64) -> Moment {
    NOW + Duration::from_millis(millis)
}

/// A pool of which the last `newcomers` servers are new.
fn grown(mut pool: Pool, newcomers: usize) -> Pool {
    pool.look_for_joins(NOW);
    let first = pool.servers.len() - newcomers;
    for server in &mut pool.servers[first..] {
        let metrics = Arc::clone(&server.state.metrics);
        *server = Server::new(server.settings.clone(), Arc::new(ServerState::newcomer(metrics)));
    }
    pool
}

#[test]
fn a_server_that_joins_is_admitted_new_sessions_step_by_step() {
    let mut shop = grown(pool(Balance::RoundRobin, &["a", "b", "c", "d"].map(server)), 1);
    shop.slow_start = Some(Duration::from_secs(10));
    let mut random = fastrand::Rng::with_seed(5);
    let mut share = |now: Moment| {
        let tried = Tried::default();
        let ask =
            Ask { preference: FIRST, tried: &tried, key: 0, worker: WorkerId(0), now, may_wait: false, alone: true };
        let mut to_newcomer = || matches!(shop.pick(&ask, &mut random), Ok(Picked::Server(pick)) if pick.server == 3);
        (0..4_000).filter(|_| to_newcomer()).count()
    };
    assert!((60..150).contains(&share(NOW)), "a tenth of what the others get, though nobody has looked at it yet");
    shop.look_for_joins(NOW);
    assert!((500..640).contains(&share(later(5_000))), "half of what the others get");
    assert!((950..1_050).contains(&share(later(10_000))));
    for other in 0..3 {
        take_down(&shop, other);
    }
    assert_eq!(share(later(1)), 4_000, "it is better than nobody");
}

fn rebalanced(moves: u32) -> Pool {
    let mut shop = grown(pool(Balance::P2c, &["a", "b", "c", "d", "e", "f"].map(server)), 2);
    shop.rules.kind = PinKind::Soft { margin: 4 };
    shop.rebalance = Some(Rate::new(moves, Duration::from_secs(1), moves));
    shop
}

fn at(shop: &Pool, session: u64, server: usize, alone: bool, now: Moment) -> Pick {
    let (tried, preference) = (Tried::default(), Preference::Pinned { server, session });
    let ask = Ask { preference, tried: &tried, key: 0, worker: WorkerId(0), now, may_wait: false, alone };
    match shop.pick(&ask, &mut fastrand::Rng::with_seed(session)) {
        Ok(Picked::Server(pick)) => pick,
        _ => panic!("every server can serve"),
    }
}

#[test]
fn idle_sessions_come_over_to_servers_that_have_joined_and_only_the_share_that_is_due() {
    let shop = rebalanced(1_000_000);
    assert_eq!(at(&shop, 1, 0, true, NOW).verdict, Verdict::Kept, "nobody has joined");
    shop.look_for_joins(NOW);
    let mut moved = [0; 6];
    for session in 0..3_000 {
        let home = session as usize % 4;
        assert_eq!(at(&shop, session, home, false, NOW).verdict, Verdict::Kept, "a session that is busy stays");
        let pick = at(&shop, session, home, true, NOW);
        let comes_over = pick.verdict == Verdict::Moved(MovedWhy::Rebalance);
        assert_eq!(comes_over, pick.server >= 4, "{:?} to {}", pick.verdict, pick.server);
        moved[pick.server] += 1;
        assert_eq!(at(&shop, session, pick.server, true, NOW).verdict, Verdict::Kept, "once, and for good");
    }
    assert!(moved.iter().all(|sessions| (440..560).contains(sessions)), "a sixth each: {moved:?}");
}

#[test]
fn moves_are_bounded_and_end_when_the_load_is_even() {
    let shop = rebalanced(10);
    shop.look_for_joins(NOW);
    let moves =
        |now: Moment| (0..1_000).filter(|session| at(&shop, *session, 0, true, now).verdict != Verdict::Kept).count();
    assert_eq!([moves(NOW), moves(NOW), moves(later(500))], [10, 0, 5]);
    let judge = |shares: [f64; 6], uneven: (f64, f64), now: Moment| {
        let servers = shares.map(|share| ServerLoad { share: Some(share), ..ServerLoad::default() }).to_vec();
        shop.judge_rebalancing(&Load { servers, ..Load::default() }, Some(uneven), now, Duration::from_secs(600));
    };
    judge([1.2, 1.2, 1.2, 1.2, 0.6, 0.6], (1.0, 1.0), later(1_000));
    assert!(shop.rebalancing.since().is_some(), "a second is no judgement");
    judge([1.2, 1.2, 1.2, 1.2, 0.6, 0.6], (1.3, 1.1), later(6_000));
    assert_eq!(moves(later(6_000)), 10, "it is not even yet");
    judge([0.9, 1.2, 1.1, 1.2, 0.8, 0.8], (1.3, 1.1), later(8_000));
    assert_eq!(moves(later(8_000)), 0, "who is short gives nothing");
    judge([1.2, 0.9, 1.1, 0.9, 1.0, 1.0], (1.3, 1.1), later(10_000));
    assert_eq!(moves(later(10_000)), 0, "who has its share receives nothing");
    judge([1.1, 1.1, 1.1, 1.1, 1.0, 0.6], (1.15, 1.1), later(11_000));
    assert_eq!(moves(later(11_000)), 10, "even, but one newcomer has not arrived");
    judge([1.1, 1.1, 1.1, 1.0, 0.9, 0.9], (1.15, 1.1), later(12_000));
    assert!(shop.rebalancing.since().is_none() && moves(later(13_000)) == 0, "it is over");
}

#[test]
fn a_session_is_alone_with_its_only_exchange() {
    let shop = rebalanced(10);
    let (first, second) = (shop.use_session(pinned(0)).unwrap(), shop.use_session(pinned(0)).unwrap());
    assert_eq!((first.alone, second.alone), (true, false));
    drop(first);
    assert!(!shop.use_session(pinned(0)).unwrap().alone);
    drop(second);
    assert!(shop.use_session(pinned(0)).unwrap().alone);
    assert!(
        pool(Balance::P2c, &[server("a")]).use_session(pinned(0)).is_none(),
        "where nothing moves, nothing is noted"
    );
}

/// With pins by our own cookie, which is what a shadow is kept for.
fn sticky(mut pool: Pool) -> Pool {
    let settings = StickySettings {
        source: Source::Cookie,
        cookie: StickySettings::default_cookie("shop").into(),
        idle: Duration::from_secs(3_600),
        absolute: Duration::ZERO,
        same_site: SameSite::Lax,
        partitioned: false,
        persistent: false,
    };
    let ring = KeyRing::new(vec![RingKey::from_secret([1; 32])]);
    let (sealer, learned) = (Arc::new(PinSealer::new(&ring)), Arc::new(LearnedTable::new(1)));
    let names = pool.servers.iter().map(|server| &*server.settings.name);
    pool.affinity = Some(Affinity::new(settings, &ring, sealer, learned, "shop", names));
    pool
}

#[test]
fn every_pick_has_its_place_in_the_shadow_for_as_long_as_it_lasts() {
    let shop = sticky(pool(Balance::LeastRequests, &["a", "b", "c", "d"].map(server)));
    let preference = |number: usize| if number.is_multiple_of(4) { FIRST } else { pinned(0) };
    let picks: Vec<Pick> = (0..200).map(|number| pick(&shop, preference(number), &[]).unwrap()).collect();
    let sums = || {
        let sum = |of: fn(&Server) -> u64| shop.servers.iter().map(of).sum::<u64>();
        let counted = (sum(|server| server.state.metrics.picked()), sum(|server| server.state.metrics.shadowed()));
        let held =
            (sum(|server| server.state.in_flight().into()), sum(|server| server.state.shadow_in_flight().into()));
        (counted, held)
    };
    assert_eq!(sums(), ((200, 200), (200, 200)));
    let shadows: Vec<u32> = shop.servers.iter().map(|server| server.state.shadow_in_flight()).collect();
    assert_eq!(shadows, [50; 4], "the policy alone keeps them even");
    let costs: Vec<Cost> = picks.iter().filter_map(|pick| pick.cost).collect();
    let disagreeing = costs.iter().filter(|cost| cost.disagrees).count();
    assert_eq!(costs.len(), 150, "a newcomer's costs nothing");
    assert!(disagreeing >= 100, "the policy would have left fifty there: {disagreeing}");
    drop(picks);
    assert_eq!(sums(), ((200, 200), (0, 0)));
}

/// The guard of who has its turn in a line.
fn called(waiting: Waiting) -> InFlight {
    match pin!(waiting).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(guard) => guard,
        Poll::Pending => panic!("it has its turn"),
    }
}

/// So many milliseconds are what each server was seen to take.
fn taking(shop: &Pool, millis: &[u64]) {
    for (server, millis) in shop.servers.iter().zip(millis) {
        server.state.latency.observe(Duration::from_millis(*millis), false, NOW);
    }
}

#[test]
fn who_waits_in_line_regrets_the_line_as_it_was_when_it_joined() {
    let rules = PinRules { queue: Queue { length: 9, timeout: Duration::from_secs(1) }, ..PinRules::default() };
    let capped = ServerSettings { max_requests: 1, ..server("a") };
    let shop = sticky(with_rules(pool(Balance::LeastRequests, &[capped, server("b")]), rules));
    taking(&shop, &[100, 30]);
    // Its sessions stay, and the policy would send nobody there.
    shop.servers[0].state.wishes.set(Wish::Drain, None);
    let held = pick(&shop, pinned(0), &[]).unwrap();
    assert_eq!(held.cost, Some(Cost { regret: Duration::from_millis(100 - 30), disagrees: true }));
    let join = || match ask(&shop, pinned(0), &[], true) {
        Ok(Picked::Line { server: 0, waiting, regret }) => (waiting, regret),
        _ => panic!("it waits"),
    };
    let ((first, regret), (second, more)) = (join(), join());
    assert_eq!([regret, more], [200 - 30, 300 - 30].map(Duration::from_millis), "each waits for those before it");
    drop(held);
    drop(second);
    let (tried, guard) = (Tried::default(), called(first));
    let asked = Ask {
        preference: pinned(0),
        tried: &tried,
        key: 0,
        worker: WorkerId(0),
        now: NOW,
        may_wait: true,
        alone: true,
    };
    let waited = shop.pick_of_waiting(0, guard, Some(regret), &asked, &mut fastrand::Rng::with_seed(3));
    assert_eq!((waited.server, waited.verdict), (0, Verdict::Waited));
    assert_eq!(waited.cost, Some(Cost { regret, disagrees: true }));
}

/// What keeping a session on this server costs now.
fn regret(shop: &Pool, server: usize) -> Duration {
    let kept = pick(shop, pinned(server), &[]).unwrap();
    assert_eq!((kept.server, kept.verdict), (server, Verdict::Kept));
    kept.cost.unwrap().regret
}

#[test]
fn the_best_server_is_one_that_the_policy_could_pick_now() {
    let spare = ServerSettings { backup: true, ..server("spare") };
    let shop = pool(Balance::P2c, &[server("a"), server("b"), spare]);
    taking(&shop, &[400, 200, 1]);
    let millis = Duration::from_millis;
    assert_eq!(regret(&shop, 0), millis(400 - 200), "the backup is not for newcomers");
    assert_eq!(regret(&shop, 1), millis(0), "it is the best one");
    take_down(&shop, 1);
    assert_eq!(regret(&shop, 0), millis(0), "there is no other");
    shop.servers[0].state.wishes.set(Wish::Drain, None);
    assert_eq!(regret(&shop, 0), millis(400 - 1), "now the backup takes the newcomers");
    take_down(&shop, 2);
    assert_eq!(regret(&shop, 0), millis(0), "nobody takes them");
    let shop = pool(Balance::P2c, &[server("a"), ServerSettings { backup: true, ..server("spare") }]);
    taking(&shop, &[10, 100]);
    assert_eq!(regret(&shop, 1), millis(100 - 10), "a session may have stayed with a backup");
}

#[test]
fn in_a_large_pool_one_that_can_serve_is_found_before_a_backup() {
    let names: Vec<String> = (0..40).map(|at| format!("s{at}")).collect();
    let mut settings: Vec<ServerSettings> = names.iter().map(|name| server(name)).collect();
    settings[39].backup = true;
    let shop = pool(Balance::P2c, &settings);
    let mut millis = vec![100; 39];
    millis.push(1);
    taking(&shop, &millis);
    assert_eq!(regret(&shop, 7), Duration::ZERO, "all are alike");
    (0..38).filter(|at| *at != 7).for_each(|at| take_down(&shop, at));
    shop.servers[7].state.latency.observe(Duration::from_millis(300), false, NOW);
    // Of the 39 that are no backups two can serve: sixteen draws find neither in four of ten times.
    let mut random = fastrand::Rng::with_seed(9);
    let tried = Tried::default();
    let preference = pinned(7);
    let asked = Ask { preference, tried: &tried, key: 0, worker: WorkerId(0), now: NOW, may_wait: false, alone: true };
    for _ in 0..100 {
        let Ok(Picked::Server(kept)) = shop.pick(&asked, &mut random) else { panic!("it is kept") };
        let regret = kept.cost.unwrap().regret.as_millis();
        assert!([0, 200].contains(&regret), "300 here, and 100 there where that was seen: {regret}");
    }
}

#[test]
fn regret_is_finite_and_never_negative_whatever_was_measured_or_not() {
    let shop = pool(Balance::P2c, &["a", "b"].map(server));
    assert_eq!(regret(&shop, 0), Duration::ZERO, "nothing is known of either");
    let micros = Duration::from_micros;
    shop.servers[0].state.latency.observe(Duration::from_millis(20), false, NOW);
    assert_eq!(regret(&shop, 0), Duration::ZERO, "of the other nothing is known");
    assert_eq!(regret(&shop, 1), Duration::ZERO, "nor of its own");
    shop.servers[1].state.latency.observe(Duration::from_millis(5), false, NOW);
    assert_eq!(regret(&shop, 0), micros(15_000));
    shop.servers[1].state.latency.observe(Duration::MAX, true, NOW);
    assert_eq!(regret(&shop, 0), Duration::ZERO);
    assert_eq!(regret(&shop, 1), Duration::from_nanos(u64::MAX), "the most that is counted");
}
