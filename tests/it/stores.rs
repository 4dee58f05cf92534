//! What every store has to do, and random histories of sessions over each.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use serde_json::{Map, json};
use steadfast::clock::Clock;
use steadfast::keys::SystemEntropy;
use steadfast::metrics::WorkerId;
use steadfast::session::store::{Answer, Ask, Change, Class, Guard, Key, Kind, Put, SessionStore, StoreError};
use steadfast::session::{
    Absence, Committed, Committer, CookieDecision, Directives, How, Realm, Recall, Refusal, SessionCookie, Sid, Turn,
    recall,
};
use steadfast::store::{Client, KindSettings, MemcachedNode, MemcachedSettings, RedisSettings};
use tokio::task::LocalSet;

use crate::support::memcached::Memcached;
use crate::support::redis::{Cluster, Redis, Sentinels};
use crate::support::stores::{open, realm};
use crate::support::{Client as User, Origin, Proxy, eventually, servers};

/// Runs a test on every store, each with two clients as two workers have them.
fn on_every_store<F: Future<Output = ()>>(test: impl Fn(&'static str, [Rc<Client>; 2]) -> F) {
    let redis = Redis::start();
    let (sentinels, cluster) = (Sentinels::start(), Cluster::start());
    let nodes = [Memcached::start(), Memcached::start()];
    let memcached = MemcachedSettings {
        nodes: nodes.iter().map(|node| MemcachedNode::parse(&node.address()).unwrap()).collect(),
        connect: Duration::from_secs(20),
        timeout: Duration::from_secs(20),
    };
    let directory = tempfile::tempdir().unwrap();
    let mut settings = RedisSettings::parse_url(&redis.url()).unwrap();
    settings.timeout = Duration::from_secs(20);
    settings.connect = Duration::from_secs(20);
    let kinds = [
        ("memory", KindSettings::Embedded { path: None, memory: 64 << 20 }),
        ("file", KindSettings::Embedded { path: Some(directory.path().join("s.redb")), memory: 64 << 20 }),
        ("redis", KindSettings::Redis(settings)),
        ("sentinel", KindSettings::Redis(sentinels.settings())),
        ("cluster", KindSettings::Redis(cluster.settings())),
        ("memcached", KindSettings::Memcached(memcached)),
    ];
    for (name, kind) in kinds {
        let store = open(kind);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        LocalSet::new().block_on(&runtime, async {
            test(name, [store.client(WorkerId(0)), store.client(WorkerId(1))]).await;
        });
    }
}

fn key(number: u8) -> Key {
    Key { tag: 77, kind: Kind::Lineage, id: [number; 20] }
}

fn put(number: u8, revision: u64, value: &'static str) -> Put {
    let expires_in = Duration::from_secs(60);
    Put { key: key(number), revision, value: value.into(), expires_in, class: Class::Authenticated }
}

async fn change(store: &Client, guard: Guard, put: Vec<Put>, delete: Vec<Key>) -> bool {
    for durable in [false, true] {
        let change = Change { guard, put: put.clone(), delete: delete.clone(), durable };
        match store.ask(Ask::Change(change)).await {
            Ok(Answer::Changed(true)) => return true,
            Ok(Answer::Changed(false)) => {}
            other => panic!("{other:?}"),
        }
    }
    false
}

async fn values(store: &Client, numbers: &[u8]) -> Vec<Option<(u64, String)>> {
    match store.ask(Ask::Read(numbers.iter().map(|number| key(*number)).collect())).await.unwrap() {
        Answer::Entries(entries) => entries
            .into_iter()
            .map(|entry| entry.map(|entry| (entry.revision, String::from_utf8_lossy(&entry.value).into_owned())))
            .collect(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_store_does_what_it_has_to() {
    on_every_store(|name, [one, other]| async move {
        assert_eq!(values(&one, &[1, 2]).await, [None, None], "{name}");
        assert!(change(&one, Guard::Absent(key(1)), vec![put(1, 1, "a"), put(2, 1, "b")], vec![]).await, "{name}");
        assert!(!change(&other, Guard::Absent(key(1)), vec![put(1, 9, "z")], vec![]).await, "{name}: it is there");
        let both = [Some((1, "a".into())), Some((1, "b".into()))];
        assert_eq!(values(&other, &[1, 2]).await, both, "{name}: in the order of the question");
        assert!(!change(&other, Guard::Unchanged(key(1), 2), vec![put(1, 3, "z")], vec![key(2)]).await, "{name}");
        assert_eq!(values(&one, &[1, 2]).await, both, "{name}: nothing of it was done");
        let next = vec![put(1, 2, "c"), put(3, 1, "d")];
        assert!(change(&other, Guard::Unchanged(key(1), 1), next, vec![key(2)]).await, "{name}");
        let now = [Some((2, "c".into())), None, Some((1, "d".into()))];
        assert_eq!(values(&one, &[1, 2, 3]).await, now, "{name}: all of it");
        assert!(!change(&one, Guard::Unchanged(key(2), 1), vec![put(2, 2, "z")], vec![]).await, "{name}: gone is gone");
        one.ask(Ask::Touch(vec![(key(2), Duration::from_secs(60))])).await.unwrap();
        assert_eq!(values(&one, &[2]).await, [None], "{name}: a touch revives nothing");
        one.ask(Ask::Touch(vec![(key(1), Duration::from_secs(600))])).await.unwrap();
        let Answer::Entries(entries) = one.ask(Ask::Read(vec![key(1)])).await.unwrap() else { panic!() };
        let left = entries[0].as_ref().unwrap().expires_in;
        assert!(left > Duration::from_secs(500) && left <= Duration::from_secs(600), "{name}: {left:?}");
        other.ask(Ask::Delete(vec![key(1), key(9)])).await.unwrap();
        assert_eq!(values(&one, &[1]).await, [None], "{name}");
        let short = Put { expires_in: Duration::from_millis(1), ..put(5, 1, "short") };
        assert!(change(&one, Guard::Absent(key(5)), vec![short], vec![]).await, "{name}");
        let begun = std::time::Instant::now();
        while values(&one, &[5]).await != [None] {
            assert!(begun.elapsed() < Duration::from_secs(20), "{name}: it expires");
            tokio::task::yield_now().await;
        }
        assert!(!change(&one, Guard::Unchanged(key(5), 1), vec![put(5, 2, "z")], vec![]).await, "{name}");
        if name == "memcached" {
            assert!(one.subjects().await.is_err(), "it has no list of what it holds");
            return;
        }
        let subjects = one.subjects().await.unwrap();
        assert!(subjects.is_empty(), "{name}: {subjects:?}");
        let subject = Key::subject([9; 20]);
        let record = Put { key: subject, ..put(9, 1, "subject") };
        assert!(change(&one, Guard::Absent(subject), vec![record], vec![]).await, "{name}");
        assert_eq!(one.subjects().await.unwrap().len(), 1, "{name}");
    });
}

/// What happened, as those know it who did it.
#[derive(Default)]
struct History {
    /// By user: the cookie that the browser has.
    cookies: Vec<Option<SessionCookie>>,
    /// What sessions became at a login or step-up.
    became: HashMap<Sid, Sid>,
    /// Task, value and session of each acknowledged write.
    acknowledged: Vec<(usize, u64, Sid)>,
    /// Cookies of sessions that were logged out, and those that were given up at logins.
    over: Vec<SessionCookie>,
    conflicts: usize,
}

const USERS: usize = 3;
const TASKS: usize = 6;
const OPERATIONS: u64 = 250;

async fn act(task: usize, realm: &Realm, store: &Client, history: &RefCell<History>) {
    let mut random = fastrand::Rng::with_seed(task as u64);
    let now = Clock::wall(Clock::now()).seconds();
    for number in 1..=OPERATIONS {
        let user = random.usize(..USERS);
        let cookie = history.borrow().cookies[user].clone();
        let found = match &cookie {
            None => Recall::None(Absence::NoCookie),
            Some(cookie) => recall(realm, store, cookie.clone(), now).await.unwrap(),
        };
        let how = || How { acr: "x".into(), ..How::default() };
        let login = || Some(Turn::Login { subject: format!("user-{user}").into(), how: how() });
        let logged_in = found.session().is_some_and(|session| session.lineage.login.is_some());
        let turn = match random.u32(..100) {
            0..6 => login(),
            6..12 if logged_in => Some(Turn::StepUp(how())),
            12..20 if logged_in => Some(Turn::Renew),
            20..24 if logged_in => Some(Turn::Logout),
            _ if !logged_in => login(),
            _ => None,
        };
        let patch = Map::from_iter([(format!("t{task}"), json!(number))]);
        let patch = (!matches!(turn, Some(Turn::Logout))).then_some(patch);
        let directives = Directives { turn: turn.clone(), patch, ..Directives::default() };
        let committer = Committer { realm, store, now };
        match committer.commit(&found, &directives, &mut SystemEntropy).await {
            Ok(committed) => note(&mut history.borrow_mut(), (task, user, number), &found, turn.as_ref(), committed),
            Err(Refusal::Gone | Refusal::Contended | Refusal::Bad(_)) => history.borrow_mut().conflicts += 1,
            Err(other) => panic!("{other}"),
        }
        tokio::task::yield_now().await;
    }
}

fn note(
    history: &mut History,
    (task, user, number): (usize, usize, u64),
    found: &Recall,
    turn: Option<&Turn>,
    committed: Committed,
) {
    let before = found.session();
    if let (Some(before), Some(after)) = (before, &committed.now)
        && before.lineage.sid != after.lineage.sid
    {
        history.became.insert(before.lineage.sid, after.lineage.sid);
        history.over.push(before.cookie.clone());
    }
    if let Some(after) = &committed.now {
        history.acknowledged.push((task, number, after.lineage.sid));
    }
    if let (Some(before), Some(Turn::Logout)) = (before, turn) {
        history.over.push(before.cookie.clone());
    }
    match committed.cookie {
        CookieDecision::Leave => {}
        CookieDecision::Set(cookie) => history.cookies[user] = Some(cookie),
        CookieDecision::Expire => history.cookies[user] = None,
    }
}

#[test]
fn random_histories_lose_and_revive_nothing_on_any_store() {
    on_every_store(|name, clients| async move {
        let realm = realm();
        let history = RefCell::new(History { cookies: vec![None; USERS], ..History::default() });
        let tasks = (0..TASKS).map(|task| act(task, &realm, &clients[task % 2], &history));
        futures_util::future::join_all(tasks).await;
        let history = history.into_inner();
        let now = Clock::wall(Clock::now()).seconds();
        for cookie in &history.over {
            let found = recall(&realm, &*clients[0], cookie.clone(), now).await.unwrap();
            assert!(matches!(found, Recall::None(_)), "{name}: a cookie counts that was given up: {found:?}");
        }
        let mut checked = 0;
        for cookie in history.cookies.iter().flatten() {
            let Recall::Session(session) = recall(&realm, &*clients[1], cookie.clone(), now).await.unwrap() else {
                continue;
            };
            let data: Map<String, serde_json::Value> = serde_json::from_str(&session.lineage.data).unwrap();
            for (task, value, sid) in &history.acknowledged {
                let mut last = *sid;
                while let Some(next) = history.became.get(&last) {
                    last = *next;
                }
                if last == session.lineage.sid {
                    let there = data.get(&format!("t{task}")).and_then(serde_json::Value::as_u64);
                    assert!(there >= Some(*value), "{name}: t{task} is {there:?}, and {value} was acknowledged");
                    checked += 1;
                }
            }
        }
        println!(
            "{name}: {} acknowledged, {} conflicts, {} cookies given up, {checked} writes checked",
            history.acknowledged.len(),
            history.conflicts,
            history.over.len()
        );
        assert!(history.acknowledged.len() > 100 && history.over.len() > 10, "{name}: there was something to look at");
    });
}

#[test]
fn a_store_that_is_not_there_says_so_within_its_time_and_rests() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let store = open(KindSettings::Redis(RedisSettings::parse_url(&format!("redis://127.0.0.1:{port}")).unwrap()));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async {
        let client = store.client(WorkerId(0));
        let mut rested = false;
        for _ in 0..20 {
            let error = client.ask(Ask::Read(vec![key(1)])).await.unwrap_err();
            rested |= error == StoreError::Resting;
        }
        assert!(rested && !store.answers(), "its breaker has opened");
    });
}

/// A proxy whose sessions are in a file.
fn in_a_file(origin: &Origin) -> String {
    format!(
        "[keys]\nring = [\"file:ring.key\"]\n[[listener]]\nname = \"main\"\naddress = \"127.0.0.1:0\"\n\
         [[route]]\npool = \"shop\"\n[[store]]\nname = \"main\"\npath = \"sessions.redb\"\n\
         [[pool]]\nname = \"shop\"\nmode = \"shared\"\n{}[pool.shared]\nstore = \"main\"\n",
        servers(&[origin])
    )
}

#[test]
fn a_store_that_a_reload_gave_up_is_free_again_and_can_be_gone_back_to() {
    let origin = Origin::start("a");
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("ring.key"), "sfk1_MDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDA").unwrap();
    let first = in_a_file(&origin);
    let proxy = Proxy::start_in(directory, &first);
    let mut user = proxy.client().host("localhost");
    user.post("/say", "op login;sub=\"alice\"");
    assert!(proxy.reload(&first.replace("sessions.redb", "others.redb")));
    assert_eq!(user.get("/").status, 200);
    eventually("the first file is free again", || proxy.reload(&first));
    let told: serde_json::Value = serde_json::from_slice(&user.post("/say", "").body).unwrap();
    assert_eq!(told["sub"], "alice", "what it held is there");
}

#[test]
fn what_was_acknowledged_as_lasting_survives_kill_9() {
    let origin = Origin::start("a");
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("ring.key"), "sfk1_MDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDA").unwrap();
    let mut proxy = Proxy::start_in(directory, &in_a_file(&origin));
    let say = |user: &mut User, lines: &str| {
        let reply = user.post("/say", lines.to_owned());
        assert_eq!(reply.status, 200, "{}", reply.text());
        serde_json::from_slice::<serde_json::Value>(&reply.body).unwrap()
    };
    for round in 0..4 {
        let user = || proxy.client().host("localhost");
        let mut writer = user();
        say(&mut writer, "op login;sub=\"writer\"");
        say(&mut writer, &format!("patch {{\"round\":{round}}}"));
        let mut out = user();
        say(&mut out, "op login;sub=\"out\"");
        let mut copy = out.clone();
        say(&mut out, "op logout");
        let mut last = user();
        say(&mut last, "op login;sub=\"last\"");
        let directory = proxy.kill();
        let taken = std::fs::metadata(directory.path().join("sessions.redb")).unwrap().len();
        assert!(taken > 0);
        proxy = Proxy::start_in(directory, &in_a_file(&origin));
        let again = |old: &User| {
            let mut user = proxy.client().host("localhost");
            user.cookies.clone_from(&old.cookies);
            user
        };
        assert_eq!(say(&mut again(&last), "")["sub"], "last", "a login that was acknowledged");
        copy = again(&copy);
        assert_eq!(say(&mut copy, "")["st"], "none", "a logout that was acknowledged");
        assert_eq!(say(&mut again(&writer), "")["d"]["round"], round, "what was written before a login");
    }
    let second = Proxy::try_start(proxy.path(), &in_a_file(&origin));
    assert!(second.contains("in use by another process"), "{second}");
    eventually("the first one is as it was", || proxy.admin("/healthz").is_some());
}
