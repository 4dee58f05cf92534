//! The protocol as a model: every order in which concurrent requests can happen, and what must hold in all of them.
//!
//! Three requests of four steps each (send, load, commit, deliver) have 34,650 orders. Between commit and deliver lies
//! the network: responses arrive in any order. Then two requests with every single operation on the store as a step.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::commit::{Committed, Committer, CookieDecision, Directives, How, Refusal, Turn};
use super::cookie::SessionCookie;
use super::realm::{OnReuse, Realm, Rules, mute};
use super::recall::{Absence, Recall, Session, recall};
use super::record::{Handle, HandleState, Sid};
use super::store::{Answer, Ask, Asking, Entry, Guard, Id, Key, Kind, Put, SessionStore};
use crate::keys::{Entropy, KeyRing, RingKey};

const NOW: u64 = 1_800_000_000;

/// A rule that is broken on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// A write makes what is not there.
    Upsert,
    /// A cookie from before a login leads to the session after it, for a moment.
    GraceAcrossLogin,
}

/// What `retire` would do with that fault.
pub(super) fn grace_across_login(realm: &Realm, session: &Session, after: &Session, now: u64) -> Vec<Put> {
    let key = |id: &Id| Key { tag: session.cookie.tag, kind: Kind::Handle, id: *id };
    if after.lineage_key == session.lineage_key {
        return session.lineage.handles.iter().map(|id| mute(key(id), None)).collect();
    }
    let state = HandleState::Superseded { at: now, key: after.cookie.key, successor: after.cookie.secret.clone() };
    let handle = Handle { state, ..after.handle.clone() };
    realm
        .put_handle(&session.cookie, &handle, session.handle_revision + 1, Duration::from_secs(60))
        .into_iter()
        .collect()
}

/// Bytes that are the same in every run.
#[derive(Clone, Default)]
pub(super) struct Counted(pub(super) u64);

impl Entropy for Counted {
    fn fill(&mut self, bytes: &mut [u8]) {
        for piece in bytes.chunks_mut(8) {
            self.0 += 1;
            piece.copy_from_slice(&xxhash_rust::xxh3::xxh3_64(&self.0.to_be_bytes()).to_be_bytes()[..piece.len()]);
        }
    }
}

/// A store that answers at once.
#[derive(Clone, Default)]
pub(super) struct Records {
    records: RefCell<HashMap<Key, Entry>>,
    upserts: bool,
}

impl Records {
    /// What a store that mixes its records up would do.
    pub(super) fn swap(&self, one: Key, other: Key) {
        let mut records = self.records.borrow_mut();
        let (first, second) = (records.remove(&one).unwrap(), records.remove(&other).unwrap());
        records.insert(one, second);
        records.insert(other, first);
    }

    /// Everything that the store has.
    pub(super) fn dump(&self) -> Vec<u8> {
        let records = self.records.borrow();
        records.iter().flat_map(|(key, entry)| [key.text().as_bytes(), &entry.value].concat()).collect()
    }

    fn answer(&self, ask: Ask) -> Answer {
        let mut records = self.records.borrow_mut();
        match ask {
            Ask::Read(keys) => Answer::Entries(keys.iter().map(|key| records.get(key).cloned()).collect()),
            Ask::Change(change) => {
                let holds = match change.guard {
                    Guard::Absent(key) => !records.contains_key(&key),
                    Guard::Unchanged(key, revision) => match records.get(&key) {
                        Some(entry) => entry.revision == revision,
                        None => self.upserts,
                    },
                };
                if holds {
                    for put in change.put {
                        let Put { key, revision, value, expires_in, .. } = put;
                        records.insert(key, Entry { revision, value, expires_in });
                    }
                    change.delete.iter().for_each(|key| drop(records.remove(key)));
                }
                Answer::Changed(holds)
            }
            Ask::Touch(_) => Answer::Done,
            Ask::Delete(keys) => {
                keys.iter().for_each(|key| drop(records.remove(key)));
                Answer::Done
            }
        }
    }
}

impl SessionStore for Records {
    fn ask(&self, ask: Ask) -> Asking<'_> {
        Box::pin(std::future::ready(Ok(self.answer(ask))))
    }
}

/// Runs what never has to wait.
pub(super) fn at_once<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("the model's store answers at once"),
    }
}

pub(crate) fn rules() -> Rules {
    Rules {
        idle: Duration::from_secs(1_800),
        absolute: Duration::from_secs(28_800),
        anonymous: Duration::from_secs(86_400),
        renew: Duration::from_secs(900),
        grace: Duration::from_secs(30),
        on_reuse: OnReuse::Kill,
        carry: None,
        most_bytes: 65_536,
    }
}

pub(super) fn realm(fault: Option<Fault>) -> Realm {
    let ring = KeyRing::new(vec![RingKey::from_secret([7; 32])]);
    let mut realm = Realm::new("shop", &ring, rules());
    realm.fault = fault;
    realm
}

/// What a request is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// Writes this key.
    Write(&'static str),
    Login,
    StepUp,
    /// No directive, but the cookie has got old.
    Renew,
    Logout,
    LogoutAll,
    /// Writes this key with the cookie that was planted on the user, and keeps what it is given.
    Attack(&'static str),
}

impl Role {
    fn is_attack(self) -> bool {
        matches!(self, Role::Attack(_))
    }

    fn directives(self) -> Directives {
        let how = || How { acr: "mfa".into(), ..How::default() };
        let turn = match self {
            Role::Write(_) | Role::Attack(_) | Role::Renew => None,
            Role::Login => Some(Turn::Login { subject: "alice".into(), how: how() }),
            Role::StepUp => Some(Turn::StepUp(how())),
            Role::Logout => Some(Turn::Logout),
            Role::LogoutAll => Some(Turn::LogoutAll),
        };
        let patch = match self {
            Role::Write(key) | Role::Attack(key) => Some(one(key)),
            _ => None,
        };
        Directives { patch, turn, ..Directives::default() }
    }
}

fn one(key: &str) -> Map<String, Value> {
    Map::from_iter([(key.to_owned(), json!(1))])
}

/// Where a request is on its way.
#[derive(Clone, Default)]
struct Progress {
    steps: usize,
    shown: Option<SessionCookie>,
    found: Option<Recall>,
    done: Option<Result<Committed, Refusal>>,
}

const STEPS: usize = 4;

#[derive(Clone)]
struct World {
    store: Records,
    entropy: Counted,
    browser: Option<SessionCookie>,
    attacker: Option<SessionCookie>,
    requests: Vec<Progress>,
    /// Every cookie that was ever made.
    issued: Vec<SessionCookie>,
    /// Writes that were acknowledged, with the lineage that they were made in.
    acknowledged: Vec<(&'static str, Key)>,
    /// What lineages became at a login or step-up.
    became: HashMap<Key, Key>,
    /// Sessions that were logged out.
    logged_out: Vec<Sid>,
    all_are_logged_out: bool,
    login_arrived: bool,
}

/// How the world is when the requests begin.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Beginning {
    Anonymous,
    /// Logged in, and the cookie is due for renewal.
    LoggedIn,
}

impl World {
    fn begin(realm: &Realm, beginning: Beginning, requests: usize) -> World {
        let mut world = World {
            store: Records { upserts: realm.fault == Some(Fault::Upsert), ..Records::default() },
            entropy: Counted::default(),
            browser: None,
            attacker: None,
            requests: vec![Progress::default(); requests],
            issued: Vec::new(),
            acknowledged: Vec::new(),
            became: HashMap::new(),
            logged_out: Vec::new(),
            all_are_logged_out: false,
            login_arrived: false,
        };
        let turn =
            (beginning == Beginning::LoggedIn).then(|| Turn::Login { subject: "alice".into(), how: How::default() });
        let directives = Directives { patch: Some(one("first")), turn, ..Directives::default() };
        let before = Recall::None(Absence::NoCookie);
        let committer = Committer { realm, store: &world.store, now: NOW - 1_000 };
        let made = at_once(committer.commit(&before, &directives, &mut world.entropy)).expect("a session is made");
        let CookieDecision::Set(cookie) = made.cookie else { panic!("it has a cookie") };
        world.acknowledged.push(("first", made.now.expect("it is there").lineage_key));
        world.issued.push(cookie.clone());
        // Planted: who has it first is not asked.
        (world.browser, world.attacker) = (Some(cookie.clone()), Some(cookie));
        world
    }

    fn look(&self, realm: &Realm, cookie: &SessionCookie) -> Recall {
        at_once(recall(realm, &self.store.clone(), cookie.clone(), NOW)).expect("the model's store answers")
    }

    fn jar(&mut self, role: Role) -> &mut Option<SessionCookie> {
        if role.is_attack() { &mut self.attacker } else { &mut self.browser }
    }

    fn step(&mut self, realm: &Realm, roles: &[Role], at: usize) {
        let role = roles[at];
        match self.requests[at].steps {
            0 => self.requests[at].shown = self.jar(role).clone(),
            1 => {
                let found = match &self.requests[at].shown {
                    None => Recall::None(Absence::NoCookie),
                    Some(cookie) => self.look(realm, cookie),
                };
                self.requests[at].found = Some(found);
            }
            2 => {
                let found = self.requests[at].found.clone().expect("it was loaded");
                let done = at_once(commit(realm, &self.store, &found, role, &mut self.entropy));
                self.committed(at, role, &found, done);
            }
            _ => self.deliver(at, role),
        }
        self.requests[at].steps += 1;
    }

    fn committed(&mut self, at: usize, role: Role, found: &Recall, done: Result<Committed, Refusal>) {
        if let Ok(committed) = &done {
            if let CookieDecision::Set(cookie) = &committed.cookie {
                self.issued.push(cookie.clone());
            }
            let before = found.session().map(|session| session.lineage_key);
            let after = committed.now.as_ref().map(|session| session.lineage_key);
            match (role, before, after) {
                (Role::Write(key) | Role::Attack(key), _, Some(lineage)) => self.acknowledged.push((key, lineage)),
                (Role::Login | Role::StepUp, Some(before), Some(after)) => drop(self.became.insert(before, after)),
                _ => {}
            }
            if matches!(role, Role::Logout | Role::LogoutAll) {
                self.logged_out.extend(&committed.ended);
                self.all_are_logged_out |= role == Role::LogoutAll;
            }
        }
        self.requests[at].done = Some(done);
    }

    fn deliver(&mut self, at: usize, role: Role) {
        let Some(Ok(committed)) = self.requests[at].done.clone() else { return };
        let is_set = matches!(committed.cookie, CookieDecision::Set(_));
        match committed.cookie {
            CookieDecision::Leave => {}
            CookieDecision::Set(cookie) => *self.jar(role) = Some(cookie),
            CookieDecision::Expire => *self.jar(role) = None,
        }
        self.login_arrived |= matches!(role, Role::Login | Role::StepUp) && is_set;
    }

    /// What must hold when all is over; `None`: it does.
    fn violation(&self, realm: &Realm, roles: &[Role]) -> Option<&'static str> {
        let is_logged_in = |found: &Recall| found.session().is_some_and(|session| session.lineage.login.is_some());
        let was_planted = roles.iter().any(|role| role.is_attack());
        if was_planted {
            let seen = roles.iter().zip(&self.requests).filter(|(role, _)| role.is_attack());
            let mut seen = seen.filter_map(|(_, request)| request.found.as_ref());
            let holds = [self.issued.first(), self.attacker.as_ref()];
            let mut held = holds.into_iter().flatten().map(|cookie| self.look(realm, cookie));
            if seen.any(is_logged_in) || held.any(|found| is_logged_in(&found)) {
                return Some("fixation: a cookie from before the login has the session after it");
            }
        }
        if !self.logged_out.is_empty() {
            let records = self.store.records.borrow();
            let is_out = |key: &&Key| self.logged_out.contains(&realm.sid(&key.id));
            let is_there = records.keys().filter(|key| key.kind == Kind::Lineage).any(|key| is_out(&key));
            // Who logs in after the logout has a session; nobody else.
            let logs_in = roles.contains(&Role::Login);
            let mut cookies = self.issued.iter().filter(|_| !logs_in);
            if is_there || cookies.any(|cookie| is_logged_in(&self.look(realm, cookie))) {
                return Some("a session lives that was logged out");
            }
        }
        for (key, lineage) in &self.acknowledged {
            let mut last = *lineage;
            while let Some(next) = self.became.get(&last) {
                last = *next;
            }
            let data = self.issued.iter().find_map(|cookie| {
                let found = self.look(realm, cookie);
                found
                    .session()
                    .filter(|session| session.lineage_key == last)
                    .map(|session| session.lineage.data.clone())
            });
            let was_logged_out = self.all_are_logged_out || self.logged_out.contains(&realm.sid(&last.id));
            match data {
                Some(data) if !data.contains(&format!("\"{key}\":1")) => return Some("an acknowledged write is lost"),
                None if !was_logged_out => return Some("a session with an acknowledged write is lost"),
                _ => {}
            }
        }
        // Which one the browser keeps, of a renewed cookie and that of a login, is the network's choice.
        let stays = self.logged_out.is_empty() && !roles.contains(&Role::Renew);
        let browser = self.browser.as_ref().map(|cookie| self.look(realm, cookie));
        if self.login_arrived && stays && !browser.as_ref().is_some_and(is_logged_in) {
            return Some("a user is logged out by their own login");
        }
        None
    }
}

async fn commit(
    realm: &Realm,
    store: &Records,
    found: &Recall,
    role: Role,
    entropy: &mut Counted,
) -> Result<Committed, Refusal> {
    let committer = Committer { realm, store, now: NOW };
    match (role, found) {
        (Role::Renew, Recall::Session(session)) => committer.renew_if_due(session, entropy).await,
        (Role::Renew, Recall::None(_)) => Err(Refusal::Gone),
        _ => committer.commit(found, &role.directives(), entropy).await,
    }
}

/// What was broken, and in which order of steps.
type Violation = (&'static str, Vec<(Role, &'static str)>);

/// Every order of the steps of three requests; how many there are, and the first that breaks something.
fn every_order(beginning: Beginning, roles: &[Role; 3], fault: Option<Fault>) -> (u32, Option<Violation>) {
    fn walk(world: &World, realm: &Realm, roles: &[Role], orders: &mut u32) -> Option<Violation> {
        let open: Vec<usize> = (0..roles.len()).filter(|at| world.requests[*at].steps < STEPS).collect();
        if open.is_empty() {
            *orders += 1;
            return world.violation(realm, roles).map(|what| (what, Vec::new()));
        }
        open.into_iter().find_map(|at| {
            let mut next = world.clone();
            next.step(realm, roles, at);
            let (what, mut order) = walk(&next, realm, roles, orders)?;
            order.insert(0, (roles[at], ["sends", "loads", "commits", "receives"][world.requests[at].steps]));
            Some((what, order))
        })
    }
    let realm = realm(fault);
    let mut orders = 0;
    let violation = walk(&World::begin(&realm, beginning, roles.len()), &realm, roles, &mut orders);
    (orders, violation)
}

const SCENARIOS: [(Beginning, [Role; 3]); 9] = [
    (Beginning::Anonymous, [Role::Login, Role::Write("a"), Role::Write("b")]),
    (Beginning::LoggedIn, [Role::Logout, Role::Write("a"), Role::Write("b")]),
    (Beginning::LoggedIn, [Role::Renew, Role::Write("a"), Role::Write("b")]),
    (Beginning::Anonymous, [Role::Login, Role::Write("a"), Role::Attack("b")]),
    (Beginning::Anonymous, [Role::Login, Role::Login, Role::Write("a")]),
    (Beginning::LoggedIn, [Role::StepUp, Role::Renew, Role::Write("a")]),
    (Beginning::LoggedIn, [Role::LogoutAll, Role::StepUp, Role::Write("a")]),
    (Beginning::LoggedIn, [Role::Logout, Role::Renew, Role::Write("a")]),
    (Beginning::LoggedIn, [Role::Logout, Role::StepUp, Role::Write("a")]),
];

#[test]
fn nothing_breaks_in_any_order_of_three_requests() {
    let mut all = 0;
    for (beginning, roles) in SCENARIOS {
        let (orders, violation) = every_order(beginning, &roles, None);
        assert_eq!(violation, None, "{roles:?}");
        assert_eq!(orders, 34_650, "{roles:?}");
        all += orders;
    }
    println!("{} scenarios, {all} orders", SCENARIOS.len());
}

#[test]
fn the_model_notices_an_upsert_and_grace_across_a_login() {
    let (_, revived) = every_order(SCENARIOS[1].0, &SCENARIOS[1].1, Some(Fault::Upsert));
    assert_eq!(revived.map(|(what, _)| what), Some("a session lives that was logged out"));
    let (_, fixed) = every_order(SCENARIOS[3].0, &SCENARIOS[3].1, Some(Fault::GraceAcrossLogin));
    assert_eq!(fixed.map(|(what, _)| what), Some("fixation: a cookie from before the login has the session after it"));
}

/// Runs two requests, each operation on the store a step, in the order that `choices` says; what is not said is the
/// first that can go on. Gives the number of choices at each step.
fn one_order(realm: &Realm, beginning: Beginning, roles: [Role; 2], choices: &[usize]) -> (Vec<usize>, World) {
    let mut world = World::begin(realm, beginning, 2);
    let permits = [Rc::new(Cell::new(0)), Rc::new(Cell::new(0))];
    let shared = world.store.clone();
    let shared = Rc::new(shared);
    let stores = permits.clone().map(|permits| Permitted { store: Rc::clone(&shared), permits });
    let cookie = world.browser.clone().expect("the browser has one");
    let mut entropies = [Counted(1_000_000), Counted(2_000_000)];
    let mut results: [Option<(Recall, Result<Committed, Refusal>)>; 2] = [None, None];
    let mut taken = Vec::new();
    {
        let [first, second] = &mut entropies;
        let run = |store: usize, role: Role, entropy| {
            let (store, cookie) = (&stores[store], cookie.clone());
            async move {
                let found = recall(realm, store, cookie, NOW).await.expect("the model's store answers");
                let committer = Committer { realm, store, now: NOW };
                let done = match (role, &found) {
                    (Role::Renew, Recall::Session(session)) => committer.renew_if_due(session, entropy).await,
                    (Role::Renew, Recall::None(_)) => Err(Refusal::Gone),
                    _ => committer.commit(&found, &role.directives(), entropy).await,
                };
                (found, done)
            }
        };
        let entropy: [&mut Counted; 2] = [first, second];
        let [of_first, of_second] = entropy;
        let mut futures = [Box::pin(run(0, roles[0], of_first)), Box::pin(run(1, roles[1], of_second))];
        let mut cx = Context::from_waker(Waker::noop());
        while results.iter().any(Option::is_none) {
            let open: Vec<usize> = (0..2).filter(|at| results[*at].is_none()).collect();
            let choice = choices.get(taken.len()).copied().unwrap_or(0);
            taken.push(open.len());
            let at = open[choice];
            permits[at].set(1);
            if let Poll::Ready(result) = futures[at].as_mut().poll(&mut cx) {
                results[at] = Some(result);
            }
        }
    }
    world.store.records = shared.records.clone();
    for (at, result) in results.into_iter().enumerate() {
        let (found, done) = result.expect("both have ended");
        world.requests[at].found = Some(found.clone());
        world.committed(at, roles[at], &found, done);
    }
    (taken, world)
}

/// A store of which one request's operations wait to be let.
struct Permitted {
    store: Rc<Records>,
    permits: Rc<Cell<u32>>,
}

impl SessionStore for Permitted {
    fn ask(&self, ask: Ask) -> Asking<'_> {
        let mut ask = Some(ask);
        Box::pin(std::future::poll_fn(move |_| {
            if self.permits.get() == 0 {
                return Poll::Pending;
            }
            self.permits.set(self.permits.get() - 1);
            Poll::Ready(Ok(self.store.answer(ask.take().expect("it is polled until it is ready"))))
        }))
    }
}

/// Every order of the operations of two requests; how many there are.
fn every_order_of_operations(realm: &Realm, both: [Role; 2]) -> u32 {
    let mut choices: Vec<usize> = Vec::new();
    for orders in 1.. {
        let (taken, mut world) = one_order(realm, Beginning::LoggedIn, both, &choices);
        for (at, role) in both.into_iter().enumerate() {
            world.deliver(at, role);
        }
        assert_eq!(world.violation(realm, &both), None, "{both:?} {choices:?}");
        // The next order: the last choice that has another alternative takes it.
        choices.resize(taken.len(), 0);
        while choices.last().is_some_and(|last| last + 1 >= taken[choices.len() - 1]) {
            choices.pop();
        }
        let Some(last) = choices.last_mut() else { return orders };
        *last += 1;
    }
    unreachable!("there are not so many")
}

#[test]
fn nothing_breaks_in_any_order_of_the_operations_of_two_requests() {
    let realm = realm(None);
    let others = [Role::Write("b"), Role::StepUp, Role::Renew, Role::Logout, Role::LogoutAll];
    let roles = [Role::Write("a"), Role::Login, Role::StepUp, Role::Renew, Role::Logout, Role::LogoutAll];
    let pairs = roles.into_iter().flat_map(|first| others.map(|second| [first, second]));
    let orders: u32 = pairs.map(|both| every_order_of_operations(&realm, both)).sum();
    println!("{orders} orders of single operations");
    assert!(orders > 10_000, "{orders}");
}
