use super::*;
use crate::pool::Queue;

const WINDOW: Duration = Duration::from_secs(10);
const SETTINGS: LiveSettings = LiveSettings {
    events_per_second: 20_000,
    discipline: Some(Discipline::Sharing),
    window: WINDOW,
    warm_up: Duration::from_millis(5),
    store_round_trip: Duration::from_millis(1),
};
const HARD: PinRules = PinRules {
    kind: PinKind::Hard,
    when_unavailable: WhenUnavailable::Move,
    queue: Queue { length: 128, timeout: Duration::from_secs(2) },
};

/// Two servers, sessions hard-pinned.
fn shop(capacity: u32) -> LivePool {
    let server = |name: &str| LiveServer { name: name.into(), weight: 1, capacity, max_requests: 0, backup: false };
    LivePool {
        is_hashed: false,
        balance: Balance::P2c,
        is_sticky: true,
        pins: HARD,
        has_store: false,
        servers: vec![server("a"), server("b")],
    }
}

fn both() -> Present {
    Present { servers: vec![Takes::Anybody(1); 2], store_round_trip: None }
}

const fn second(number: u64) -> Moment {
    Moment::from_nanos(number * 1_000_000_000)
}

/// What a proxy before two servers sees of Poisson arrivals of 10 ms each, at this load.
fn seen(capacity: u32, discipline: Discipline, load: f64, seconds: u64) -> Vec<Observed> {
    let servers = [1.0, 1.0].map(|speed| truly(capacity, discipline, speed));
    played(&servers, Some(HARD), f64::from(2 * capacity) * load, seconds).0
}

fn truly(capacity: u32, discipline: Discipline, speed: f64) -> ServerModel {
    ServerModel {
        name: "truth".into(),
        weight: 1,
        live_weight: None,
        max_requests: 0,
        backup: false,
        drains: false,
        capacity,
        discipline,
        speed,
        from: Moment::default(),
        until: Moment::from_nanos(u64::MAX),
    }
}

/// What a proxy before these servers sees, and what comes of it, where so many are busy in the mean.
fn played(servers: &[ServerModel], pins: Option<PinRules>, busy: f64, seconds: u64) -> (Vec<Observed>, Outcome) {
    let policy = PolicyModel {
        name: "truth".into(),
        balance: Balance::P2c,
        is_hashed: false,
        pins,
        is_in_force: false,
        warm_up: Duration::ZERO,
        store_round_trip: Duration::ZERO,
    };
    let mut model = Model::new(servers, policy, 99);
    model.keep_settled();
    let mut random = fastrand::Rng::with_seed(5);
    let mut exponential = |mean: f64| Duration::from_secs_f64(-(1.0 - random.f64()).ln() * mean);
    let gap = 0.010 / busy;
    let mut now = Moment::default();
    let mut turn = 0;
    while now < second(seconds) {
        now = now + exponential(gap);
        turn += 1;
        let session = turn * 7_919 % 500;
        model.offer(Arrival {
            at: now,
            session: Some(session),
            demand: exponential(0.010),
            key: session,
            pinned: Pinned::No,
        });
    }
    (model.take_settled(), model.so_far())
}

#[test]
fn what_a_slow_server_makes_of_a_request_is_not_what_the_request_costs_elsewhere() {
    let servers = [1.0, 0.4].map(|speed| truly(8, Discipline::Fifo, speed));
    let settings = LiveSettings { discipline: Some(Discipline::Fifo), ..SETTINGS };
    // The slow one has half of the sessions, and four of its eight workers are busy.
    let (seen, _) = played(&servers, Some(HARD), 4.0, 90);
    let reports = play(&mut twin(settings, shop(8)), &seen, &both());
    let last = reports.last().unwrap();
    assert_eq!(last.servers[0].speed, 1.0);
    assert!((0.3..0.53).contains(&last.servers[1].speed), "{last:?}");
    assert!(last.fit.is_some_and(|fit| (0.9..1.1).contains(&fit)), "{last:?}");
    let (_, shared) = played(&servers, None, 4.0, 90);
    for (said, share) in [(last.policies[3].latency.p50, 0.5), (last.policies[3].latency.p99, 0.99)] {
        // Its store takes a millisecond.
        let really = (shared.latency.quantile(share) + SETTINGS.store_round_trip).as_secs_f64();
        let off = said.as_secs_f64() / really - 1.0;
        assert!(off.abs() < 0.15, "{share}: {off} in {last:?}");
    }
}

/// Plays what was seen, with a turn each second; gives all reports.
fn play(twin: &mut LiveTwin, seen: &[Observed], present: &Present) -> Vec<LiveReport> {
    play_after(twin, seen, present, Duration::ZERO)
}

/// The same, where each had waited for so long before it was given to its server.
fn play_after(twin: &mut LiveTwin, seen: &[Observed], present: &Present, waited: Duration) -> Vec<LiveReport> {
    let mut reports = Vec::new();
    let mut turn = 1;
    for observed in seen {
        while observed.ended >= second(turn) {
            reports.extend(twin.turn(second(turn), present.clone(), 0));
            turn += 1;
        }
        if observed.session.is_none_or(|session| twin.sample().takes(session)) {
            twin.offer(Settled { arrived: before(observed.begun, waited), ..settled(observed) });
        }
    }
    reports
}

fn settled(observed: &Observed) -> Settled {
    let Observed { server, begun, ended, session, key } = *observed;
    Settled { server, session, key, pinned: Pinned::Already(server), arrived: begun, begun, ended, failed: false }
}

fn twin(settings: LiveSettings, pool: LivePool) -> LiveTwin {
    LiveTwin::new(settings, pool, both(), Moment::default())
}

#[test]
fn the_policy_in_force_comes_out_as_it_was_measured() {
    for discipline in Discipline::ALL {
        let settings = LiveSettings { discipline: Some(*discipline), ..SETTINGS };
        let mut twin = twin(settings, shop(4));
        let reports = play(&mut twin, &seen(4, *discipline, 0.6, 45), &both());
        assert!(reports.len() >= 2, "{discipline}: {}", reports.len());
        let last = reports.last().unwrap();
        assert!(last.doubts.is_empty(), "{discipline}: {last:?}");
        assert_eq!((last.sampled, last.dropped, last.left_out), (1.0, 0, 0));
        assert!(last.exchanges > 4_000 && last.window >= WINDOW, "{last:?}");
        let order: Vec<LivePolicy> = last.policies.iter().map(|report| report.policy).collect();
        assert_eq!(order, LivePolicy::ALL);
        let [actual, sticky, soft, shared] = &last.policies[..] else { panic!("{last:?}") };
        assert_eq!(actual.latency, sticky.latency, "it is what is in force");
        assert_eq!((actual.kept, shared.kept), (Some(1.0), None));
        assert!(soft.kept.unwrap() > 0.5 && soft.max_over_mean <= actual.max_over_mean + 0.05, "{last:?}");
        assert_eq!(last.servers[0].capacity, Some(4.0));
    }
}

#[test]
fn above_the_budget_sessions_are_sampled_and_servers_scaled() {
    let settings = LiveSettings { events_per_second: 1_500, ..SETTINGS };
    let mut twin = twin(settings, shop(16));
    let reports = play(&mut twin, &seen(16, Discipline::Sharing, 0.5, 45), &both());
    let last = reports.last().unwrap();
    assert_eq!(last.sampled, 0.25, "1,600 a second under three policies, and there is time for 500");
    assert_eq!(last.servers[0].capacity, Some(16.0));
    assert_eq!((last.heavy.sessions, last.heavy.is_exact), (123, true), "of 500, those of the sample");
    assert!(!last.doubts.contains(&Doubt::ThinSample), "{last:?}");
    let ratio = last.policies[0].latency.p50.as_secs_f64() / last.measured.p50.as_secs_f64();
    assert!((0.8..1.25).contains(&ratio), "{last:?}");
}

#[test]
fn a_sample_too_thin_for_its_servers_is_said_to_be() {
    let settings = LiveSettings { events_per_second: 300, ..SETTINGS };
    let mut twin = twin(settings, shop(3));
    let reports = play(&mut twin, &seen(3, Discipline::Sharing, 0.5, 45), &both());
    assert!(reports.last().unwrap().doubts.contains(&Doubt::ThinSample), "{reports:?}");
}

#[test]
fn who_takes_no_newcomers_is_not_in_the_models() {
    let mut twin = twin(SETTINGS, shop(4));
    let one = Present { servers: vec![Takes::Anybody(1), Takes::Nobody], store_round_trip: None };
    let mut seen = seen(4, Discipline::Sharing, 0.4, 40);
    seen.iter_mut().for_each(|observed| observed.server = 0);
    let reports = play(&mut twin, &seen, &one);
    let last = reports.last().unwrap();
    assert!(last.policies.iter().all(|policy| policy.max_over_mean == 1.0), "{last:?}");
    let mut both = twin_of_the_same(&seen, &both());
    let other = both.pop().unwrap();
    assert!(other.policies[3].latency.p99 < last.policies[3].latency.p99, "two are faster than one");
    assert_eq!(other.policies[0].latency, last.policies[0].latency, "who is pinned to one stays there");
}

#[test]
fn what_was_thought_before_the_capacity_was_found_is_not_held_against_it() {
    let settings = LiveSettings { discipline: None, ..SETTINGS };
    for discipline in Discipline::ALL {
        let mut twin = twin(settings, shop(0));
        let seen = seen(4, *discipline, 0.95, 150);
        let reports = play(&mut twin, &seen, &both());
        let known = reports.iter().filter(|report| report.servers[0].capacity.is_some());
        let fits: Vec<f64> = known.map(|report| report.fit.unwrap()).collect();
        assert!(fits.len() >= 5, "{discipline}: {fits:?}");
        // In the first the discipline need not be known.
        assert!(fits[1..].iter().all(|fit| (0.7..1.4).contains(fit)), "{discipline}: {fits:?}");
    }
}

#[test]
fn who_was_never_busy_is_taken_to_be_like_those_that_were() {
    let settings = LiveSettings { discipline: None, ..SETTINGS };
    let mut twin = twin(settings, shop(0));
    let mut seen = seen(2, Discipline::Fifo, 0.9, 90);
    // What two did was done by one, which is then as large as both.
    seen.iter_mut().for_each(|observed| observed.server = 0);
    let reports = play(&mut twin, &seen, &both());
    let last = reports.last().unwrap();
    let [busy, idle] = &last.servers[..] else { panic!("{last:?}") };
    assert!(busy.capacity.is_some_and(|capacity| (3.0..=5.0).contains(&capacity)), "{last:?}");
    assert_eq!((idle.capacity, idle.discipline), (busy.capacity, busy.discipline));
    assert!(!last.doubts.contains(&Doubt::NoLimit), "{last:?}");
}

fn twin_of_the_same(seen: &[Observed], present: &Present) -> Vec<LiveReport> {
    play(&mut twin(SETTINGS, shop(4)), seen, present)
}

#[test]
fn who_lasts_too_long_is_left_out_and_that_is_said() {
    let mut twin = twin(SETTINGS, shop(4));
    let mut seen = seen(4, Discipline::Sharing, 0.5, 40);
    for observed in seen.iter_mut().step_by(10) {
        observed.ended = observed.begun + Duration::from_secs(9);
    }
    seen.sort_by_key(|observed| observed.ended);
    let reports = play(&mut twin, &seen, &both());
    let last = reports.last().unwrap();
    assert!(last.left_out > 0 && last.doubts.contains(&Doubt::LeftOut), "{last:?}");
    assert!(twin.restored.len() < 10_000, "what was played is forgotten: {}", twin.restored.len());
}

#[test]
fn what_is_too_little_to_tell_and_what_was_dropped_are_said() {
    let mut twin = twin(SETTINGS, shop(0));
    let mut reports = Vec::new();
    for number in 1..90 {
        let (begun, ended) = (second(number), second(number) + Duration::from_millis(10));
        twin.offer(settled(&Observed { server: 0, begun, ended, session: Some(number), key: 0 }));
        reports.extend(twin.turn(second(number + 1), both(), 1));
    }
    let [only] = &reports[..] else { panic!("one window of a minute: {reports:?}") };
    assert!(only.exchanges < ENOUGH && only.window >= LONGEST_WINDOW, "{only:?}");
    assert_eq!(only.doubts, [Doubt::TooFew, Doubt::NoLimit, Doubt::Dropped]);
    assert!(only.dropped >= 60, "{only:?}");
    assert_eq!(only.heavy.sessions, only.exchanges, "each is a session's first, and all are of this window");
}

#[test]
fn a_session_that_asks_more_than_the_others_is_named_with_its_server() {
    let mut twin = twin(SETTINGS, shop(4));
    let mut seen = seen(4, Discipline::Sharing, 0.5, 45);
    for (number, observed) in seen.iter_mut().enumerate() {
        match number % 20 {
            // A robot has a fifth of all requests,
            3 | 8 | 13 | 18 => (observed.session, observed.server) = (Some(9_999), 1),
            // and another fifth is nobody's.
            0 | 5 | 10 | 15 => observed.session = None,
            _ => {}
        }
    }
    let reports = play(&mut twin, &seen, &both());
    assert!(reports.len() >= 2, "{}", reports.len());
    for Heavy { sessions, top_share, is_exact, top } in reports.iter().map(|report| &report.heavy) {
        assert!((250..=501).contains(sessions) && *is_exact, "{sessions}");
        let robot = &top[0];
        assert_eq!((robot.session, &*robot.server, top.len()), (9_999, "b", 5));
        assert!((0.12..0.28).contains(&robot.share), "{robot:?}");
        assert!(top.windows(2).all(|pair| pair[0].share >= pair[1].share) && top[1].share < 0.02, "{top:?}");
        assert!(*top_share > robot.share && *top_share < robot.share + 0.1, "{top_share}: {top:?}");
    }
    let last = reports.last().unwrap();
    let fifth = last.exchanges as f64 / 5.0;
    assert!((last.heavy.top[0].requests as f64 / fifth - 1.0).abs() < 0.05, "{last:?}");
}

#[test]
fn what_a_header_says_is_hashed_and_not_who_asks() {
    let mut twin = twin(SETTINGS, LivePool { is_hashed: true, ..shop(4) });
    let mut reports = Vec::new();
    for number in 1..3_000_u64 {
        let arrived = Moment::from_nanos(number * 10_000_000);
        let (session, ended) = (Some(number % 160), arrived + Duration::from_millis(8));
        // All from one address.
        twin.offer(settled(&Observed { server: 0, begun: arrived, ended, session, key: 7 }));
        if number % 100 == 0 {
            reports.extend(twin.turn(ended, both(), 0));
        }
    }
    let actual = &reports.last().unwrap().policies[0];
    assert!(actual.max_over_mean < 1.4, "{actual:?}");
}

#[test]
fn a_waiting_line_before_the_server_is_part_of_what_was_measured() {
    let mut twin = twin(SETTINGS, shop(4));
    let mut reports = Vec::new();
    for number in 1..3_000_u64 {
        let arrived = Moment::from_nanos(number * 10_000_000);
        let begun = arrived + Duration::from_millis(30);
        let ended = begun + Duration::from_millis(8);
        let observed = Observed { server: 0, begun, ended, session: None, key: number };
        twin.offer(Settled { pinned: Pinned::No, arrived, ..settled(&observed) });
        if number % 100 == 0 {
            reports.extend(twin.turn(ended, both(), 0));
        }
    }
    let last = reports.last().unwrap();
    assert!(last.measured.p50.abs_diff(Duration::from_millis(38)) < Duration::from_millis(1), "{last:?}");
    assert!(last.policies[0].latency.p50.abs_diff(Duration::from_millis(8)) < Duration::from_millis(1), "{last:?}");
    assert!(last.doubts.contains(&Doubt::Misfit), "no line was configured that would explain it");
}

#[test]
fn an_overload_without_end_is_said_and_not_modelled_for_ever() {
    let mut twin = twin(SETTINGS, LivePool { is_sticky: false, ..shop(4) });
    let mut seen = seen(4, Discipline::Sharing, 0.6, 200);
    // Pinned, all of it would be on one server.
    seen.iter_mut().for_each(|observed| observed.session = Some(1));
    let reports = play(&mut twin, &seen, &both());
    let sticky: Vec<Duration> = reports.iter().map(|report| report.policies[1].latency.p99).collect();
    let end = sticky.iter().position(|p99| *p99 > HOPELESS).expect("it is said");
    assert!(sticky[end + 1] < sticky[end] / 2, "it began anew: {sticky:?}");
    assert!(reports.iter().all(|report| report.policies[0].latency.p99 < Duration::from_secs(1)), "{reports:?}");
}

#[test]
fn a_store_that_is_measured_counts_from_then_on() {
    let pool = LivePool { is_sticky: false, has_store: true, ..shop(4) };
    let mut twin = twin(SETTINGS, pool);
    let mut measured = both();
    let seen = seen(4, Discipline::Sharing, 0.2, 50);
    let (first, second) = seen.split_at(seen.len() / 2);
    // As a proxy sees it that asks a store first: it takes 20 ms.
    let store = Duration::from_millis(20);
    let guessed = play_after(&mut twin, first, &measured, store).pop().unwrap();
    measured.store_round_trip = Some(store);
    let known = play_after(&mut twin, second, &measured, store).pop().unwrap();
    let p50 = |report: &LiveReport| [0, 1].map(|policy| report.policies[policy].latency.p50.as_millis());
    let ([with_guess, pinned], [with_store, still]) = (p50(&guessed), p50(&known));
    assert!(with_guess < 15 && pinned < 15, "it is no work of the servers: {guessed:?}");
    assert!(guessed.doubts.contains(&Doubt::Misfit), "{guessed:?}");
    assert!(with_store > 20 && still < 15, "pins would save it: {known:?}");
    assert!(known.fit.is_some_and(|fit| GOOD_FIT.contains(&fit)), "{known:?}");
}

#[test]
fn policies_are_those_of_the_pool_and_what_it_is_compared_with() {
    let soft = PinRules { kind: PinKind::Soft { margin: 9 }, ..HARD };
    let pool = LivePool { balance: Balance::Hash, pins: soft, has_store: true, ..shop(4) };
    let mut twin = twin(SETTINGS, pool);
    let known = |twin: &LiveTwin| {
        let policies = twin.policies().into_iter();
        let known = |policy: PolicyModel| (policy.balance, policy.pins.map(|pins| pins.kind), policy.store_round_trip);
        policies.map(known).collect::<Vec<_>>()
    };
    let trip = SETTINGS.store_round_trip;
    let expected = [
        (Balance::Hash, Some(PinKind::Soft { margin: 9 }), trip),
        (Balance::P2c, Some(PinKind::Hard), Duration::ZERO),
        (Balance::P2c, Some(PinKind::Soft { margin: 9 }), Duration::ZERO),
        (Balance::P2c, None, trip),
    ];
    assert_eq!(known(&twin), expected);
    twin.sample = Sample::halved(2);
    twin.present.store_round_trip = Some(Duration::from_millis(7));
    let thinned = known(&twin);
    assert_eq!(thinned[2].1, Some(PinKind::Soft { margin: 2 }));
    assert_eq!((thinned[0].2, thinned[3].2), (Duration::from_millis(7), Duration::from_millis(7)));
    assert_eq!(twin.policies()[1].pins.unwrap().queue.length, 32);
}
