//! Nodes that die, are stopped for a while, or give their slots away, under load: what was acknowledged, and what is there
//! afterwards.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::{Map, Value, json};
use steadfast::clock::Clock;
use steadfast::keys::SystemEntropy;
use steadfast::metrics::WorkerId;
use steadfast::session::store::StoreError;
use steadfast::session::{
    Absence, Committed, Committer, CookieDecision, Directives, How, Realm, Recall, Refusal, SessionCookie, Turn, recall,
};
use steadfast::store::{Client, KindSettings, RedisSettings};
use tokio::task::LocalSet;

use crate::support::PATIENCE;
use crate::support::redis::{Cluster, Sentinels, cli};
use crate::support::stores::{open, realm};

const TASKS: usize = 6;
/// Logins and logouts that there have to be for a failover to show something.
const LEAST_CERTAIN: usize = 10;
/// What a node may take with it when it dies: what it had acknowledged so shortly before.
const MOMENT: Duration = Duration::from_secs(1);
/// How long after it its last replies may be read.
const LATE: Duration = Duration::from_secs(3);

/// What became of a session, as those know it who used it.
enum End {
    Open,
    /// Whether a replica had that.
    LoggedOut {
        is_certain: bool,
        at: Instant,
    },
    /// A logout of which nobody knows whether it was done.
    Unknown,
}

/// What is known of a session.
struct Book {
    cookie: SessionCookie,
    /// Cookies that it had before, and that were given up for good.
    given_up: Vec<SessionCookie>,
    began: Instant,
    /// A replica had its login.
    is_certain: bool,
    /// What was written and acknowledged: the last value of each key, and when that was.
    written: BTreeMap<String, (u64, Instant)>,
    end: End,
}

/// Users of a store, and what they know.
struct Load {
    realm: Realm,
    clients: [Rc<Client>; 2],
    is_over: Cell<bool>,
    /// Operations that were acknowledged.
    done: Cell<usize>,
    /// Logins and logouts that a replica had.
    certain: [Cell<usize>; 2],
    conflicts: Cell<usize>,
    failures: RefCell<Vec<StoreError>>,
    books: RefCell<Vec<Book>>,
}

/// What is there afterwards.
#[derive(Debug, Default, PartialEq)]
struct Findings {
    /// Logins and logouts before the node died that a replica had.
    certain: (usize, usize),
    /// Those of them that are undone, which must not be.
    lost_logins: usize,
    revived_logouts: usize,
    /// Those that no replica was known to have, and that are undone.
    undone: usize,
    writes: usize,
    /// Writes of the node's last moment that are lost, and others, which must not be.
    lost_in_its_last_moment: usize,
    lost: usize,
}

fn now() -> u64 {
    Clock::wall(Clock::now()).seconds()
}

/// Runs a test with a store's users, while the store follows its primary as it does in a proxy.
fn with_users<F: Future<Output = ()>>(settings: RedisSettings, test: impl FnOnce(Rc<Load>) -> F) {
    let store = open(KindSettings::Redis(settings));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async {
        let load = Rc::new(Load {
            realm: realm(),
            clients: [store.client(WorkerId(0)), store.client(WorkerId(1))],
            is_over: Cell::new(false),
            done: Cell::new(0),
            certain: Default::default(),
            conflicts: Cell::new(0),
            failures: RefCell::default(),
            books: RefCell::default(),
        });
        tokio::select! {
            () = store.follow() => panic!("it follows for as long as the store is used"),
            () = test(load) => {}
        }
    });
}

/// As `eventually`, beside a load that goes on.
async fn comes_about(what: &str, holds: impl Fn() -> bool + Send + Sync + 'static) {
    let holds = Arc::new(holds);
    let deadline = Instant::now() + PATIENCE;
    loop {
        let asked = Arc::clone(&holds);
        if tokio::task::spawn_blocking(move || asked()).await.unwrap() {
            return;
        }
        assert!(Instant::now() < deadline, "it never came about that {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

impl Load {
    /// Uses sessions until something has happened; says what that came to.
    async fn while_used<T>(&self, happening: impl Future<Output = T>) -> T {
        let happening = async {
            let came_to = happening.await;
            self.is_over.set(true);
            came_to
        };
        let tasks = join_all((0..TASKS).map(|task| self.use_sessions(task)));
        tokio::join!(happening, tasks).0
    }

    /// Waits until so many more operations are acknowledged.
    async fn comes_to(&self, more: usize) {
        let (wanted, deadline) = (self.done.get() + more, Instant::now() + PATIENCE);
        while self.done.get() < wanted {
            assert!(Instant::now() < deadline, "{} of {wanted} operations: {:?}", self.done.get(), self.failures());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Waits until there is something that a node's death must not undo.
    async fn has_something_to_lose(&self) {
        let deadline = Instant::now() + PATIENCE;
        while self.certain.iter().any(|certain| certain.get() < 2 * LEAST_CERTAIN) {
            assert!(Instant::now() < deadline, "{:?}: {:?}", self.certain, self.failures());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    fn note_certain(&self, which: usize, is_certain: bool) {
        self.certain[which].set(self.certain[which].get() + usize::from(is_certain));
    }

    /// One session after the other: a login, some writes, and for every other one a logout.
    async fn use_sessions(&self, task: usize) {
        let client = &self.clients[task % 2];
        let mut random = fastrand::Rng::with_seed(task as u64);
        let mut users = (0..).map(|user| format!("user-{task}-{user}"));
        while !self.is_over.get() {
            let Some(mut book) = self.log_in(client, &users.next().unwrap()).await else { continue };
            for number in 0..random.u64(3..9) {
                self.write(client, &mut book, number).await;
            }
            if random.bool() {
                self.log_out(client, &mut book).await;
            }
            self.books.borrow_mut().push(book);
        }
    }

    async fn log_in(&self, client: &Client, user: &str) -> Option<Book> {
        let turn = Turn::Login { subject: user.into(), how: How::default() };
        let directives = Directives { turn: Some(turn), ..Directives::default() };
        let (committed, is_certain) = self.commit(client, &Recall::None(Absence::NoCookie), &directives).await?;
        let CookieDecision::Set(cookie) = committed.cookie else { panic!("a login sets a cookie") };
        self.note_certain(0, is_certain);
        let (given_up, written) = (Vec::new(), BTreeMap::new());
        Some(Book { cookie, given_up, began: Instant::now(), is_certain, written, end: End::Open })
    }

    /// Where no failure is expected.
    async fn surely_log_in(&self, client: &Client, user: &str) -> Book {
        self.log_in(client, user).await.unwrap_or_else(|| panic!("no login: {:?}", self.failures()))
    }

    async fn write(&self, client: &Client, book: &mut Book, number: u64) {
        let Some(found) = self.session(client, book).await else { return };
        let key = format!("n{}", number % 100);
        let patch = Some(Map::from_iter([(key.clone(), json!(number))]));
        if self.commit(client, &found, &Directives { patch, ..Directives::default() }).await.is_some() {
            book.written.insert(key, (number, Instant::now()));
        }
    }

    async fn log_out(&self, client: &Client, book: &mut Book) {
        let Some(found) = self.session(client, book).await else { return };
        let directives = Directives { turn: Some(Turn::Logout), ..Directives::default() };
        book.end = match self.commit(client, &found, &directives).await {
            Some((_, is_certain)) => {
                self.note_certain(1, is_certain);
                End::LoggedOut { is_certain, at: Instant::now() }
            }
            None => End::Unknown,
        };
    }

    /// Another cookie, for the same session or for what it becomes.
    async fn turn(&self, client: &Client, book: &mut Book, turn: Turn) {
        let Some(found) = self.session(client, book).await else { return };
        let gives_up = matches!(turn, Turn::StepUp(_));
        let directives = Directives { turn: Some(turn), ..Directives::default() };
        let Some((committed, _)) = self.commit(client, &found, &directives).await else { return };
        if let CookieDecision::Set(cookie) = committed.cookie {
            let before = std::mem::replace(&mut book.cookie, cookie);
            book.given_up.extend(gives_up.then_some(before));
        }
    }

    /// What its cookie leads to, if that is a session.
    async fn session(&self, client: &Client, book: &Book) -> Option<Recall> {
        match recall(&self.realm, client, book.cookie.clone(), now()).await {
            Ok(found @ Recall::Session(_)) => Some(found),
            Ok(Recall::None(_)) => None,
            Err(error) => {
                self.failed(error).await;
                None
            }
        }
    }

    /// Does something, and says whether all of it that has to last is at a replica too.
    async fn commit(&self, client: &Client, found: &Recall, directives: &Directives) -> Option<(Committed, bool)> {
        let unreplicated = client.unreplicated();
        let committer = Committer { realm: &self.realm, store: client, now: now() };
        match committer.commit(found, directives, &mut SystemEntropy).await {
            Ok(committed) => {
                self.done.set(self.done.get() + 1);
                Some((committed, client.unreplicated() == unreplicated))
            }
            Err(Refusal::Store(error)) => {
                self.failed(error).await;
                None
            }
            Err(Refusal::Gone | Refusal::Contended) => {
                self.conflicts.set(self.conflicts.get() + 1);
                None
            }
            Err(other) => panic!("{other}"),
        }
    }

    /// Who has failed waits a moment before he tries again.
    async fn failed(&self, error: StoreError) {
        self.failures.borrow_mut().push(error);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    /// What failures there were, and how many of each.
    fn failures(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for error in &*self.failures.borrow() {
            *counts.entry(error.to_string()).or_default() += 1;
        }
        counts
    }

    /// Looks at everything again. `died`: when a node did.
    async fn look(&self, died: Instant) -> Findings {
        let mut findings = Findings::default();
        for book in &self.books.take() {
            let found = self.surely(&book.cookie).await;
            let was_before = |at: &Instant| usize::from(*at < died);
            match (&book.end, found.session()) {
                (End::Unknown, _) => {}
                (End::LoggedOut { is_certain, at }, session) => {
                    findings.certain.1 += if *is_certain { was_before(at) } else { 0 };
                    findings.revived_logouts += usize::from(*is_certain && session.is_some());
                    findings.undone += usize::from(!*is_certain && session.is_some());
                }
                (End::Open, None) => {
                    findings.lost_logins += usize::from(book.is_certain);
                    findings.undone += usize::from(!book.is_certain);
                }
                (End::Open, Some(session)) => {
                    findings.certain.0 += if book.is_certain { was_before(&book.began) } else { 0 };
                    findings.compare(book, &serde_json::from_str(&session.lineage.data).unwrap(), died);
                }
            }
            for cookie in &book.given_up {
                findings.revived_logouts += usize::from(self.surely(cookie).await.session().is_some());
            }
        }
        findings
    }

    /// What a cookie leads to, once the store says so.
    async fn surely(&self, cookie: &SessionCookie) -> Recall {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match recall(&self.realm, &*self.clients[0], cookie.clone(), now()).await {
                Ok(found) => return found,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn report(&self, what: &str, findings: &Findings) {
        println!(
            "{what}: {} operations, {} conflicts, failures {:?}; unreplicated {}; {findings:?}",
            self.done.get(),
            self.conflicts.get(),
            self.failures(),
            self.clients.iter().map(|client| client.unreplicated()).sum::<u64>()
        );
    }
}

impl Findings {
    /// Compares what was acknowledged with what is there.
    fn compare(&mut self, book: &Book, data: &Map<String, Value>, died: Instant) {
        for (key, (value, at)) in &book.written {
            self.writes += 1;
            if data.get(key).and_then(Value::as_u64) < Some(*value) {
                // The last replies may have been read a while after, when this process was busy.
                let is_of_its_last_moment = *at + MOMENT > died && *at < died + LATE;
                self.lost_in_its_last_moment += usize::from(is_of_its_last_moment);
                self.lost += usize::from(!is_of_its_last_moment);
            }
        }
    }

    /// Nothing is undone that must not be, and there was something to look at.
    fn hold(&self) {
        assert_eq!((self.lost_logins, self.revived_logouts, self.lost), (0, 0, 0), "{self:?}");
        let (logins, logouts) = self.certain;
        assert!(
            logins >= LEAST_CERTAIN && logouts >= LEAST_CERTAIN && self.writes > 100,
            "there was something to look at: {self:?}"
        );
    }
}

#[test]
fn a_master_that_dies_takes_no_login_and_no_logout_with_it_that_a_replica_had() {
    let sentinels = Arc::new(Sentinels::start());
    with_users(sentinels.settings(), |load| async move {
        let old = sentinels.master().expect("there is a master");
        let happening = async {
            load.comes_to(500).await;
            load.has_something_to_lose().await;
            let died = Instant::now();
            sentinels.kill(old);
            let watched = Arc::clone(&sentinels);
            comes_about("there is another master", move || watched.master().is_some_and(|now| now != old)).await;
            load.comes_to(300).await;
            died
        };
        let died = load.while_used(happening).await;
        let findings = load.look(died).await;
        load.report("a master that died", &findings);
        findings.hold();
    });
}

#[test]
fn the_busiest_node_of_a_cluster_takes_no_login_and_no_logout_with_it_that_its_replica_had() {
    let cluster = Arc::new(Cluster::start());
    with_users(cluster.settings(), |load| async move {
        let happening = async {
            load.comes_to(800).await;
            load.has_something_to_lose().await;
            let old = cluster.busiest();
            let died = Instant::now();
            cluster.kill(old);
            let watched = Arc::clone(&cluster);
            let is_replaced = move || watched.primaries().len() == 3 && !watched.primaries().contains(&old);
            comes_about("its replica has its slots", is_replaced).await;
            load.comes_to(400).await;
            died
        };
        let died = load.while_used(happening).await;
        let findings = load.look(died).await;
        load.report("a node of a cluster that died", &findings);
        findings.hold();
    });
}

#[test]
fn nobody_goes_on_with_a_master_that_was_only_stopped() {
    let sentinels = Arc::new(Sentinels::start());
    with_users(sentinels.settings(), |load| async move {
        let old = sentinels.master().expect("there is a master");
        let happening = async {
            load.comes_to(500).await;
            load.has_something_to_lose().await;
            let stopped = Instant::now();
            sentinels.pause(old);
            let watched = Arc::clone(&sentinels);
            comes_about("there is another master", move || watched.master().is_some_and(|now| now != old)).await;
            load.comes_to(200).await;
            sentinels.wake(old);
            comes_about("it answers again", move || cli(old, &["ping"]).contains("PONG")).await;
            // What was in its buffers is done by now, for nobody.
            let before = tokio::task::spawn_blocking(move || changes(old)).await.unwrap();
            load.comes_to(300).await;
            let after = tokio::task::spawn_blocking(move || changes(old)).await.unwrap();
            (stopped, before, after)
        };
        let (stopped, before, after) = load.while_used(happening).await;
        let findings = load.look(stopped).await;
        load.report("a master that was stopped for a while", &findings);
        println!("scripts on the old master: {before:?} when it woke, {after:?} later");
        assert!(before.is_master, "it did not know yet, and would have taken anything");
        assert_eq!(before.scripts, after.scripts, "nobody asked it");
        findings.hold();
    });
}

/// What a node thinks that it is, and how many changes it was ever asked for.
#[derive(Debug)]
struct Changes {
    is_master: bool,
    scripts: u64,
}

fn changes(port: u16) -> Changes {
    let calls = |line: &str| {
        let rest = line.strip_prefix("cmdstat_eval").and_then(|rest| rest.split_once("calls="))?.1;
        rest.split(',').next()?.parse::<u64>().ok()
    };
    let scripts = cli(port, &["info", "commandstats"]).lines().filter_map(calls).sum();
    Changes { is_master: cli(port, &["role"]).starts_with("master"), scripts }
}

/// Sessions of a task, each used again and again.
async fn use_again(load: &Load, task: usize, mut books: Vec<Book>) {
    let client = &load.clients[task % 2];
    let mut random = fastrand::Rng::with_seed(task as u64);
    for number in 0.. {
        if load.is_over.get() {
            break;
        }
        let book = random.choice(&mut books).expect("it has some");
        match random.u32(..100) {
            0..15 => load.turn(client, book, Turn::StepUp(How::default())).await,
            15..25 => load.turn(client, book, Turn::Renew).await,
            25..28 => {
                load.log_out(client, book).await;
                let next = load.surely_log_in(client, &format!("again-{task}-{number}")).await;
                load.books.borrow_mut().push(std::mem::replace(book, next));
            }
            _ => load.write(client, book, number).await,
        }
    }
    load.books.borrow_mut().extend(books);
}

#[test]
fn slots_that_move_while_they_are_used_take_everything_along_and_nobody_is_refused() {
    let cluster = Arc::new(Cluster::start());
    with_users(cluster.settings(), |load| async move {
        let mut books: Vec<Vec<Book>> = Vec::new();
        for task in 0..TASKS {
            let client = &load.clients[task % 2];
            let users = (0..4).map(|user| format!("user-{task}-{user}"));
            let mut some = Vec::new();
            for user in users {
                some.push(load.surely_log_in(client, &user).await);
            }
            books.push(some);
        }
        let tags: Vec<u16> = books.iter().flatten().map(|book| book.cookie.tag).collect();
        let (nodes, moved) = (Arc::clone(&cluster), tags.len() * 2);
        let moving = async {
            load.comes_to(100).await;
            let move_all = move || {
                let slots: Vec<String> = tags.iter().map(|tag| nodes.slot(*tag)).collect();
                // However fast the machine is, one of them is used between two owners. Who had one may have logged out.
                let is_asked = || nodes.said("ASK") > 0;
                for slot in slots.iter().chain(&slots) {
                    nodes.move_slot(slot, || {
                        let deadline = Instant::now() + Duration::from_secs(2);
                        while !is_asked() && Instant::now() < deadline {
                            std::thread::sleep(Duration::from_millis(10));
                        }
                    });
                }
            };
            tokio::task::spawn_blocking(move_all).await.unwrap();
            load.comes_to(100).await;
            load.is_over.set(true);
        };
        let users = books.into_iter().enumerate().map(|(task, books)| use_again(&load, task, books));
        tokio::join!(moving, join_all(users));
        let findings = load.look(Instant::now() + PATIENCE).await;
        load.report(&format!("{moved} moves of slots"), &findings);
        let redirections = ["MOVED", "ASK", "TRYAGAIN"].map(|word| cluster.said(word));
        println!("MOVED, ASK and TRYAGAIN were said {redirections:?} times");
        assert!(load.failures().is_empty(), "{:?}", load.failures());
        let nothing = (findings.lost_logins, findings.revived_logouts, findings.undone);
        assert_eq!(nothing, (0, 0, 0), "{findings:?}");
        assert_eq!((findings.lost, findings.lost_in_its_last_moment), (0, 0), "{findings:?}");
        assert!(findings.writes > 100 && findings.certain.1 > 0, "there was something to look at: {findings:?}");
        assert!(redirections[0] > 0 && redirections[1] > 0, "slots were used while they moved");
    });
}
