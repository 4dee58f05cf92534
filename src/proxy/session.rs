//! The session of an exchange, where the proxy keeps it: found before a server is chosen, told to it, and changed by
//! what it answers before the client hears of it.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use cookie::{Cookie, SameSite};
use foldhash::HashMap;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};

use super::error::{Error, Kind};
use super::exchange::Exchange;
use super::identify::Identity;
use super::stateless::Guest;
use super::{Worker, protect};
use crate::clock::Clock;
use crate::config::{Route, SharedSettings};
use crate::headers::{self, SharedCaching};
use crate::keys::SystemEntropy;
use crate::metrics::PoolMetrics;
use crate::names::{CookieDeed, CookieFault, HeldBy, OnStoreError, SessionEvent, SessionNeed};
use crate::runtime::{LiveAttempt, PoolEntry, SharedPool, Snapshot, StatelessPool};
use crate::session::contract::{self, Nonce, Said};
use crate::session::store::StoreError;
use crate::session::token::{Parties, REUSED_FOR, Signer, TokenKeys};
use crate::session::vault::{self, Jar};
use crate::session::{
    self, Absence, Committed, Committer, CookieDecision, Directives, How, Lately, Recall, Refusal, Session,
    SessionCookie, Sid, Turn,
};
use crate::store::{Client, Store};
use crate::tasks;

/// The session side of one exchange.
pub(super) struct Visit {
    worker: Rc<Worker>,
    snapshot: Rc<Arc<Snapshot>>,
    /// The pool's position.
    at: usize,
    pool: Rc<SharedPool>,
    client: Rc<Client>,
    found: Recall,
    /// The store did not answer, and the request goes on without its session.
    degraded: bool,
    /// The browser sees https, or this is localhost: a cookie can be set.
    may_set_cookie: bool,
    https: bool,
    is_navigation: bool,
    is_safe: bool,
    /// What its servers are told.
    pub(super) token: HeaderValue,
    /// What the browser asked for: method and path.
    asked: (Method, Box<str>),
    live: RefCell<Option<Arc<LiveAttempt>>>,
    nonce: RefCell<Option<Nonce>>,
}

/// What one worker keeps for sessions.
#[derive(Default)]
pub(super) struct Sessions {
    pools: RefCell<Vec<Option<Rc<SharedPool>>>>,
    clients: RefCell<Vec<(Arc<Store>, Rc<Client>)>>,
    signer: RefCell<Option<(Arc<TokenKeys>, Signer)>>,
    /// Tokens that were signed a moment ago: a busy session is signed a few times a minute.
    tokens: RefCell<Signed>,
    /// Sessions that were found a moment ago.
    lately: Lately,
}

/// Whom a token is for and what it is of: the pool's position, and a session and its version.
type TokenOf = (usize, Option<(Sid, u64)>);

/// Tokens remembered by one worker, in each of two generations.
const MOST_TOKENS: usize = 4_096;

/// What was signed a moment ago, and when. A full generation becomes the old one; nothing is searched through for room.
#[derive(Default)]
struct Signed {
    young: HashMap<TokenOf, (HeaderValue, u64)>,
    old: HashMap<TokenOf, (HeaderValue, u64)>,
}

impl Signed {
    fn get(&self, key: &TokenOf, now: u64) -> Option<HeaderValue> {
        let found = self.young.get(key).or_else(|| self.old.get(key));
        found.filter(|(_, made)| now < made + REUSED_FOR).map(|(token, _)| token.clone())
    }

    fn keep(&mut self, key: TokenOf, token: HeaderValue, now: u64) {
        if self.young.len() >= MOST_TOKENS {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, (token, now));
    }

    fn clear(&mut self) {
        self.young.clear();
        self.old.clear();
    }
}

impl Sessions {
    /// The worker's own way to a store.
    fn client(&self, worker: &Worker, store: &Arc<Store>) -> Rc<Client> {
        let mut clients = self.clients.borrow_mut();
        if let Some((_, client)) = clients.iter().find(|(known, _)| Arc::ptr_eq(known, store)) {
            return Rc::clone(client);
        }
        let client = store.client(worker.id);
        clients.push((Arc::clone(store), Rc::clone(&client)));
        client
    }

    /// Lets go of the stores of an older configuration, and of their connections and files.
    pub(super) fn keep_to(&self, snapshot: &Snapshot) {
        let is_in_force = |store: &Arc<Store>| snapshot.stores.iter().any(|known| Arc::ptr_eq(known, store));
        self.clients.borrow_mut().retain(|(store, _)| is_in_force(store));
        let mut pools = self.pools.borrow_mut();
        let old = pools.iter_mut().filter(|pool| pool.as_ref().is_some_and(|pool| !is_in_force(&pool.store)));
        old.for_each(|pool| *pool = None);
    }

    /// The worker's own handle of a pool's settings, so that exchanges of a worker count their uses apart from others.
    fn pool(&self, snapshot: &Snapshot, at: usize, pool: &SharedPool) -> Rc<SharedPool> {
        let mut pools = self.pools.borrow_mut();
        let is_same = |known: &&Rc<SharedPool>| Arc::ptr_eq(&known.settings, &pool.settings);
        if let Some(known) = pools.get(at).and_then(Option::as_ref).filter(is_same) {
            return Rc::clone(known);
        }
        pools.resize(snapshot.pools.len(), None);
        let known = Rc::new(pool.clone());
        pools[at] = Some(Rc::clone(&known));
        known
    }

    fn token(
        &self,
        snapshot: &Snapshot,
        (at, pool): (usize, &SharedPool),
        found: Option<&Session>,
        degraded: bool,
        return_to: Option<&str>,
        now: u64,
    ) -> HeaderValue {
        let key = (at, found.map(|session| (session.lineage.sid, session.lineage.version)));
        let parties = Parties {
            issuer: ISSUER,
            audience: &pool.audience,
            api: snapshot.session_api.as_ref().map(|api| &*api.advertise),
            inline_bytes: pool.settings.inline_bytes,
            return_to,
        };
        let session = found.map(|session| (&*pool.realm, session));
        let sign = |signer: &Signer| signer.sign(&parties, session, degraded, now, &mut SystemEntropy);
        self.signed(snapshot, Some(key).filter(|_| !degraded && return_to.is_none()), now, sign)
    }

    /// The same for somebody whose own token counts, or for nobody.
    pub(super) fn guest_token(
        &self,
        snapshot: &Snapshot,
        (at, pool): (usize, &StatelessPool),
        guest: Option<&Guest>,
        return_to: Option<&str>,
        now: u64,
    ) -> HeaderValue {
        let parties = Parties { issuer: ISSUER, audience: &pool.audience, api: None, inline_bytes: 0, return_to };
        let key = (at, guest.map(|guest| (guest.name(), 0)));
        self.signed(snapshot, Some(key).filter(|_| return_to.is_none()), now, |signer| match guest {
            Some(guest) => signer.sign_bearer(&parties, &guest.bearer(), now, &mut SystemEntropy),
            None => signer.sign(&parties, None, false, now, &mut SystemEntropy),
        })
    }

    /// A token that was signed a moment ago, or a new one; what has no key is not kept.
    fn signed(
        &self,
        snapshot: &Snapshot,
        key: Option<TokenOf>,
        now: u64,
        sign: impl FnOnce(&Signer) -> String,
    ) -> HeaderValue {
        self.sign_as_of_today(snapshot, now);
        let mut tokens = self.tokens.borrow_mut();
        if let Some(token) = key.and_then(|key| tokens.get(&key, now)) {
            return token;
        }
        let token = self.signer.borrow().as_ref().map(|(_, signer)| sign(signer));
        let token = token.and_then(|token| HeaderValue::try_from(token).ok());
        let token = token.unwrap_or_else(|| HeaderValue::from_static(""));
        if let Some(key) = key {
            tokens.keep(key, token.clone(), now);
        }
        token
    }

    /// Brings the signing key up to date; tokens of another snapshot may be for other pools.
    fn sign_as_of_today(&self, snapshot: &Snapshot, now: u64) {
        let mut signer = self.signer.borrow_mut();
        let is_right =
            |(keys, signer): &(Arc<TokenKeys>, Signer)| Arc::ptr_eq(keys, &snapshot.token_keys) && signer.is_of(now);
        if !signer.as_ref().is_some_and(is_right) {
            *signer = snapshot.token_keys.signer(now).map(|signer| (Arc::clone(&snapshot.token_keys), signer));
            self.tokens.borrow_mut().clear();
            // What was kept of the snapshot before holds on to its stores.
            self.pools.borrow_mut().clear();
        }
    }
}

const ISSUER: &str = "steadfast";

/// What is to be known of a request before its head is made ready for servers: there its cookie goes.
pub(super) struct Coming {
    shown: Result<SessionCookie, Absence>,
    is_navigation: bool,
    is_safe: bool,
    may_set_cookie: bool,
    https: bool,
    asked: (Method, Box<str>),
    /// Where somebody who logs in goes on.
    return_to: Option<String>,
}

impl Coming {
    pub(super) fn of(settings: &SharedSettings, parts: &Parts, path: &str, identity: &Identity) -> Self {
        let origin = &identity.hop.origin;
        // Over plain http a cookie could be read and planted by anybody on the way; a machine's own loopback has no way.
        let may_set_cookie = origin.https || &*origin.host == "localhost" || origin.host.ends_with(".localhost");
        let name = if origin.https { &*settings.cookie } else { settings.plain_cookie() };
        Coming {
            shown: if may_set_cookie { shown(name, &parts.headers) } else { Err(Absence::Unavailable) },
            is_navigation: protect::is_navigation(parts),
            is_safe: parts.method.is_safe(),
            may_set_cookie,
            https: origin.https,
            asked: (parts.method.clone(), path.into()),
            return_to: protect::return_to(parts),
        }
    }
}

/// The session cookie of a request.
fn shown(name: &str, headers: &HeaderMap) -> Result<SessionCookie, Absence> {
    let mut found = headers::cookies(headers).filter(|(other, _)| *other == name.as_bytes());
    match (found.next(), found.next()) {
        (None, _) => Err(Absence::NoCookie),
        (Some(_), Some(_)) => Err(Absence::Several),
        (Some((_, value)), None) => SessionCookie::parse(value).ok_or(Absence::Malformed),
    }
}

/// A session that the application keeps itself is only counted, by its cookie.
pub(super) fn count_only(exchange: &mut Exchange, cookie: &str, parts: &Parts) {
    let mut found = headers::cookies(&parts.headers).filter(|(name, _)| *name == cookie.as_bytes());
    exchange.session = found.next().map(|(_, value)| xxhash_rust::xxh3::xxh3_64(value));
}

/// Finds the session.
pub(super) async fn enter(
    worker: &Rc<Worker>,
    exchange: &mut Exchange,
    snapshot: &Rc<Arc<Snapshot>>,
    route: &Route,
    (at, pool): (usize, &SharedPool),
    coming: Coming,
) -> Result<Visit, Error> {
    let now = Clock::wall(exchange.arrived).seconds();
    let client = worker.sessions.client(worker, &pool.store);
    let metrics = &snapshot.pools[at].pool.metrics;
    let mut degraded = false;
    let found = match coming.shown {
        Err(absence) => Recall::None(absence),
        Ok(cookie) => match worker.sessions.lately.recall(&pool.realm, &*client, cookie, now).await {
            Ok(Recall::Session(found)) if pool.store.owes_end(&found.lineage_key) => Recall::None(Absence::Missing),
            Ok(found) => found,
            Err(error) => {
                let is_allowed = pool.settings.on_store_error == OnStoreError::Anonymous && !route.needs_login();
                if !is_allowed || !coming.is_safe {
                    count(worker, metrics, SessionEvent::StoreError);
                    return Err(Error::because(Kind::SessionStore { ran: false }, &error));
                }
                count(worker, metrics, SessionEvent::Degraded);
                degraded = true;
                Recall::None(Absence::Unavailable)
            }
        },
    };
    if let Recall::None(absence) = &found {
        check_absence(worker, metrics, route, *absence, coming.is_safe)?;
    }
    exchange.session = found.session().map(|session| xxhash_rust::xxh3::xxh3_64(&session.lineage.sid.0));
    let token = worker.sessions.token(
        snapshot,
        (at, pool),
        found.session().map(|session| &**session),
        degraded,
        coming.return_to.as_deref(),
        now,
    );
    Ok(Visit {
        worker: Rc::clone(worker),
        snapshot: Rc::clone(snapshot),
        at,
        pool: worker.sessions.pool(snapshot, at, pool),
        client,
        found,
        degraded,
        may_set_cookie: coming.may_set_cookie,
        https: coming.https,
        is_navigation: coming.is_navigation,
        is_safe: coming.is_safe,
        token,
        asked: coming.asked,
        live: RefCell::new(None),
        nonce: RefCell::new(None),
    })
}

/// Counts why there is no session, and refuses where going on without one would be wrong.
fn check_absence(
    worker: &Worker,
    metrics: &PoolMetrics,
    route: &Route,
    absence: Absence,
    is_safe: bool,
) -> Result<(), Error> {
    if let Some(event) = absence.event() {
        count(worker, metrics, event);
    }
    match absence {
        Absence::Several if !is_safe => Err(Error::new(Kind::TwoSessions)),
        // Another proxy of the fleet may know it: this is no reason to send somebody to the login.
        Absence::UnknownKey if route.needs_login() => Err(Error::new(Kind::SessionStore { ran: false })),
        _ => Ok(()),
    }
}

/// What a request without a login is told where one is needed.
pub(super) fn login_required() -> Error {
    let challenge = Some(HeaderValue::from_static("Cookie realm=\"session\""));
    Error { challenge, ..Error::new(Kind::LoginRequired) }
}

fn count(worker: &Worker, metrics: &PoolMetrics, event: SessionEvent) {
    metrics.cells.of(worker.id).session_events[event.index()].add(1);
}

impl Visit {
    pub(super) fn is_logged_in(&self) -> bool {
        self.found.session().is_some_and(|session| session.lineage.login.is_some())
    }

    /// What forms of the session have to show; none where there is no session.
    pub(super) fn csrf(&self) -> Option<Vec<[u8; 32]>> {
        self.found.session().map(|session| self.pool.realm.csrf(&session.handle.lineage))
    }

    /// How somebody has shown who they are, if they have.
    pub(super) fn known(&self) -> Option<protect::Known<'_>> {
        let login = self.found.session()?.lineage.login.as_ref()?;
        // What was seen from outside proves nothing: a failed login may look the same.
        if vault::is_subject(&login.subject) {
            return None;
        }
        Some(protect::Known { acr: &login.acr, auth_time: Some(login.at) })
    }

    fn count(&self, event: SessionEvent) {
        count(&self.worker, &self.snapshot.pools[self.at].pool.metrics, event);
    }

    /// Tells the server of one attempt. What the attempt before was told counts no more.
    pub(super) async fn begin_attempt(&self, headers: &mut HeaderMap) {
        let nonce = Nonce::new(&mut SystemEntropy);
        headers.insert(contract::SESSION, self.token.clone());
        if let Ok(text) = HeaderValue::try_from(nonce.text()) {
            headers.insert(contract::REQUEST, text);
        }
        *self.nonce.borrow_mut() = Some(nonce);
        let attempts = &self.worker.runtime.attempts;
        if attempts.are_asked_about() {
            let state = self.hand_over().await.unwrap_or_else(|| (self.found.clone(), None));
            *self.live.borrow_mut() = attempts.begin(nonce, || SharedPool::clone(&self.pool), state);
        }
    }

    /// What the server of an attempt that is given up has done to the session by the side API.
    async fn hand_over(&self) -> Option<(Recall, Option<Committed>)> {
        let before = self.live.borrow().clone()?;
        self.worker.runtime.attempts.forget(&before);
        Some(before.hand_over().await)
    }

    /// No server has answered. What the last one did to the session is done, and its cookie goes out with the error.
    pub(super) async fn give_up(&self, mut error: Error) -> Error {
        if let Some((_, Some(pending))) = self.hand_over().await {
            error.cookie = self.cookie_line(&pending.cookie);
        }
        error
    }

    /// Makes true what the server said. What the client has to know of it is to be written last of all.
    pub(super) async fn conclude(
        &self,
        exchange: &mut Exchange,
        status: StatusCode,
        headers: &mut HeaderMap,
    ) -> Result<Concluded, Error> {
        let news = self.news_of_vault(status, headers);
        let said = self.said(headers);
        let live = self.live.borrow().clone();
        let Some(live) = live else { return self.commit_said(exchange, said?, news, &self.found, None).await };
        let (found, pending) = live.head_leaves().await;
        // Its nonce counts a little longer: for reading, and for data.
        self.live.borrow_mut().take();
        self.worker.runtime.attempts.linger(&live);
        let cookie = pending.as_ref().and_then(|pending| self.cookie_line(&pending.cookie));
        let concluded = match said {
            Ok(said) => self.commit_said(exchange, said, news, &found, pending).await,
            Err(error) => Err(error),
        };
        if let Ok(Concluded { watch: Some(watch), .. }) = &concluded {
            live.becomes(Recall::Session(Arc::clone(&watch.session))).await;
        }
        concluded.map_err(|mut error| {
            // What was done before has been done.
            error.cookie = error.cookie.or(cookie);
            error
        })
    }

    async fn commit_said(
        &self,
        exchange: &mut Exchange,
        mut said: Said,
        news: VaultNews,
        found: &Recall,
        mut pending: Option<Committed>,
    ) -> Result<Concluded, Error> {
        let now = Clock::wall(Clock::now()).seconds();
        self.confirm_if_due(found, now);
        // What the application says itself counts, and not what its cookies look like.
        let implied = news.turn.filter(|_| said.directives.turn.is_none() && pending.is_none());
        let is_implied_logout = matches!(implied, Some(Turn::Logout));
        said.directives.turn = said.directives.turn.or(implied);
        said.directives.vault = news.changes;
        let is_nobody = matches!(found, Recall::None(absence) if !absence.may_begin());
        let committed = if said.directives.is_empty() || (said.directives.is_only_vault() && is_nobody) {
            self.without_directives(found, &said, pending.is_some(), now).await
        } else {
            Box::pin(self.commit(found, said.directives, now)).await?
        };
        if let Some(committed) = committed {
            pending = Some(merge(pending, committed));
        }
        let Some(committed) = pending else {
            let is_to_forget = self.is_navigation && matches!(found, Recall::None(absence) if absence.is_final());
            let decision = if is_to_forget { CookieDecision::Expire } else { CookieDecision::Leave };
            let watch = found.session().map(|session| self.watch(session));
            return Ok(Concluded { watch, cookie: self.cookie_line(&decision), clear: None });
        };
        // One that has just ended is watched too: what lasts longer than this answer ends with the next look at it.
        let session = committed.now.as_ref().or(found.session());
        if let Some(session) = session {
            exchange.session = Some(xxhash_rust::xxh3::xxh3_64(&session.lineage.sid.0));
        }
        // An application that has not said so may still need what it keeps in the browser.
        let clears = committed.logged_out && self.https && !is_implied_logout;
        let clear = self.pool.settings.clear_site_data.clone().filter(|_| clears);
        let watch = session.map(|session| self.watch(session));
        Ok(Concluded { watch, cookie: self.cookie_line(&committed.cookie), clear })
    }

    /// What a response does to the cookies of the vault, and what that says of the session. It takes them out of the
    /// response whatever becomes of them.
    fn news_of_vault(&self, status: StatusCode, headers: &mut HeaderMap) -> VaultNews {
        let settings = &self.pool.settings;
        let (method, path) = &self.asked;
        let now = Clock::wall(Clock::now()).seconds();
        let changes = take_from_response(settings, headers, now, path);
        let is_of_interest = !changes.is_empty() || settings.login_when.is_some();
        if !is_of_interest || !self.may_set_cookie || self.degraded {
            return VaultNews::default();
        }
        let empty = Jar::default();
        let session = self.found.session();
        let before = session.map_or(&empty, |session| &session.lineage.vault);
        // Many frameworks set the same cookie again and again: that is no news.
        let changes = before.news(changes, now);
        let by_vault = session.and_then(|session| session.lineage.login.as_ref());
        let by_vault = by_vault.is_some_and(|login| vault::is_subject(&login.subject));
        let turn = match &settings.login_when {
            Some(when) if when.happened(method, path, status.as_u16(), &changes, before) => {
                Some(Turn::Login { subject: vault::subject(&mut SystemEntropy), how: How::default() })
            }
            Some(when) if by_vault && when.is_undone(&changes) => Some(Turn::Logout),
            _ => None,
        };
        VaultNews { changes, turn }
    }

    fn confirm_if_due(&self, found: &Recall, now: u64) {
        if let Some(session) = found.session().filter(|session| session.is_to_be_confirmed()) {
            self.later(session, |realm, client, session| async move {
                let _ = session::confirm(&realm, &*client, &session, now).await;
            });
        }
    }

    fn watch(&self, session: &Arc<Session>) -> Watch {
        Watch { session: Arc::clone(session), pool: Rc::clone(&self.pool), client: Rc::clone(&self.client) }
    }

    fn said(&self, headers: &HeaderMap) -> Result<Said, Error> {
        if !contract::says_something(headers) {
            return Ok(Said::default());
        }
        let Some(nonce) = *self.nonce.borrow() else { return Ok(Said::default()) };
        let said = contract::directives(headers, &nonce).map_err(|error| {
            self.count(SessionEvent::BadDirective);
            Error::because(Kind::BadDirective, &error)
        })?;
        for _ in 0..said.foreign {
            self.count(SessionEvent::ForeignDirective);
        }
        Ok(said)
    }

    /// Keeps the session alive, and its cookie young.
    async fn without_directives(&self, found: &Recall, said: &Said, has_pending: bool, now: u64) -> Option<Committed> {
        let session = found.session()?;
        if !said.directives.no_touch && session.touch_is_due(&self.pool.realm, now) {
            self.later(session, |realm, client, session| async move {
                let _ = session::touch(&realm, &*client, &session, now).await;
            });
        }
        let may_renew = !said.directives.no_touch && session.renewal_is_due(&self.pool.realm, now);
        if has_pending || (session.successor.is_none() && !may_renew) {
            return None;
        }
        let committer = Committer { realm: &self.pool.realm, store: &*self.client, now };
        // A cookie that is not renewed now is renewed with the next response.
        let renewed = Box::pin(committer.renew_if_due(session, &mut SystemEntropy)).await.ok()?;
        renewed.events.iter().for_each(|event| self.count(*event));
        Some(renewed)
    }

    /// Something that the client need not wait for; it ends with the store's deadline.
    fn later<F: Future<Output = ()> + 'static>(
        &self,
        session: &Session,
        act: impl FnOnce(Arc<session::Realm>, Rc<Client>, Session) -> F,
    ) {
        tasks::spawn(act(Arc::clone(&self.pool.realm), Rc::clone(&self.client), session.clone()));
    }

    /// Does what the server said, to its end: also when the client does not wait for it.
    async fn commit(&self, found: &Recall, mut directives: Directives, now: u64) -> Result<Option<Committed>, Error> {
        if !self.may_set_cookie {
            self.count(SessionEvent::BadDirective);
            return Err(Error::because(Kind::BadDirective, &"sessions need https"));
        }
        if self.degraded {
            return Err(Error::new(Kind::SessionStore { ran: !self.is_safe }));
        }
        let is_only_vault = directives.is_only_vault();
        let is_old = |session: &&Arc<Session>| session.renewal_is_due(&self.pool.realm, now);
        if directives.turn.is_none() && !directives.no_touch && found.session().filter(is_old).is_some() {
            directives.turn = Some(Turn::Renew);
        }
        let turn = directives.turn.clone();
        let (pool, client, worker) = (Rc::clone(&self.pool), Rc::clone(&self.client), Rc::clone(&self.worker));
        let before = found.clone();
        let committing = tasks::spawn(async move {
            let committer = Committer { realm: &pool.realm, store: &*client, now };
            let committed = committer.commit(&before, &directives, &mut SystemEntropy).await;
            if let Ok(committed) = &committed {
                worker.end_sessions(&client, &committed.ended);
            }
            committed
        });
        // It ends with the store's deadlines, and nobody aborts it.
        let committed = committing.await.unwrap_or(Err(Refusal::Contended));
        if let Ok(committed) = &committed {
            committed.events.iter().for_each(|event| self.count(*event));
        }
        match committed {
            Ok(committed) => Ok(Some(committed)),
            // The application knows nothing of it: as if a browser had thrown away what is no longer its session's.
            Err(Refusal::Gone | Refusal::Contended) if is_only_vault => Ok(None),
            Err(refusal) => Err(self.refuse(found, turn.as_ref(), &refusal)),
        }
    }

    fn refuse(&self, found: &Recall, turn: Option<&Turn>, refusal: &Refusal) -> Error {
        let ran = !self.is_safe;
        let (kind, event) = match refusal {
            Refusal::WrongVersion | Refusal::Gone | Refusal::Contended => {
                (Kind::SessionConflict { ran }, SessionEvent::Conflict)
            }
            Refusal::Bad(_) | Refusal::Oversized(_) | Refusal::Vault(_) => {
                (Kind::BadDirective, SessionEvent::BadDirective)
            }
            Refusal::Store(StoreError::Full) => (Kind::SessionStore { ran }, SessionEvent::StoreError),
            Refusal::Store(_) => (Kind::SessionStore { ran }, SessionEvent::StoreError),
        };
        self.count(event);
        let mut error = Error::because(kind, refusal);
        if let (Refusal::Store(_), Some(session)) = (refusal, found.session())
            // A logout of all is not repeated for anybody: who wants it still has the session to say it again.
            && matches!(turn, Some(Turn::Logout))
        {
            // It is over for this proxy, and for all as soon as the store answers.
            self.pool.store.owe_end(session.lineage_key);
            self.worker.end_sessions(&self.client, &[session.lineage.sid]);
            error.cookie = self.cookie_line(&CookieDecision::Expire);
        }
        error
    }

    fn cookie_line(&self, decision: &CookieDecision) -> Option<HeaderValue> {
        let name = if self.https { &*self.pool.settings.cookie } else { self.pool.settings.plain_cookie() };
        let value = match decision {
            CookieDecision::Leave => return None,
            CookieDecision::Set(cookie) => cookie.value().to_string(),
            CookieDecision::Expire => String::new(),
        };
        let mut line = Cookie::build((name, value)).path("/").http_only(true).same_site(SameSite::Lax);
        if self.https {
            line = line.secure(true);
        }
        if *decision == CookieDecision::Expire {
            line = line.max_age(cookie::time::Duration::ZERO);
        }
        HeaderValue::try_from(line.build().to_string()).ok()
    }
}

/// What a response does to the vault.
#[derive(Default)]
struct VaultNews {
    changes: Vec<vault::Change>,
    /// What that looks like from outside.
    turn: Option<Turn>,
}

/// Gives servers the cookies of the vault, which the browser never had; what a client sends under their names goes.
pub(super) fn open_vault(
    worker: &Worker,
    settings: &SharedSettings,
    visit: Option<&Visit>,
    path: &str,
    headers: &mut HeaderMap,
) {
    if settings.vault.is_empty() {
        return;
    }
    let jar = visit.and_then(|visit| visit.found.session()).map(|session| &session.lineage.vault);
    let now = Clock::wall(Clock::now()).seconds();
    for _ in 0..vault::add_to_request(headers, &settings.vault, jar, path, now) {
        worker.runtime.metrics.cookie_fault(worker.id, CookieDeed::Dropped, CookieFault::ReservedName);
    }
}

/// Takes the cookies of the vault out of a response; without them it may look as if everybody could have it.
pub(super) fn take_from_response(
    settings: &SharedSettings,
    headers: &mut HeaderMap,
    now: u64,
    path: &str,
) -> Vec<vault::Change> {
    if settings.vault.is_empty() {
        return Vec::new();
    }
    let before = headers.get_all(header::SET_COOKIE).iter().count();
    let changes = vault::take(headers, &settings.vault, now, path);
    let is_fewer = headers.get_all(header::SET_COOKIE).iter().count() < before;
    if is_fewer && headers::shared_caching(headers) == SharedCaching::Unsaid {
        headers.append(header::CACHE_CONTROL, HeaderValue::from_static("private"));
    }
    changes
}

/// What is left to say to the client, and what the session is by now.
pub(super) struct Concluded {
    /// The session, for what lasts longer than the exchange.
    pub(super) watch: Option<Watch>,
    cookie: Option<HeaderValue>,
    /// What the browser is to forget.
    clear: Option<HeaderValue>,
}

impl Concluded {
    /// Writes the cookie, past all that servers and routes say of the response: no cache may keep it.
    pub(super) fn write(self, headers: &mut HeaderMap) {
        if let Some(clear) = self.clear {
            headers.insert("clear-site-data", clear);
        }
        if let Some(line) = self.cookie {
            headers.append(header::SET_COOKIE, line);
            headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
            headers.remove(header::EXPIRES);
            let others: Vec<HeaderName> =
                headers.keys().filter(|name| headers::is_for_shared_caches(name)).cloned().collect();
            for name in others {
                headers.remove(name);
            }
        }
    }
}

impl Drop for Visit {
    /// An attempt that ends without an answer counts no more.
    fn drop(&mut self) {
        if let Some(live) = self.live.take() {
            self.worker.runtime.attempts.forget(&live);
        }
    }
}

/// What the side API did, and what the response does besides.
fn merge(before: Option<Committed>, after: Committed) -> Committed {
    let Some(before) = before else { return after };
    Committed {
        cookie: if after.cookie == CookieDecision::Leave { before.cookie } else { after.cookie },
        now: after.now.or(before.now),
        logged_out: before.logged_out || after.logged_out,
        events: after.events,
        ended: after.ended,
    }
}

/// A session that something long-lived belongs to.
pub(super) struct Watch {
    session: Arc<Session>,
    pool: Rc<SharedPool>,
    client: Rc<Client>,
}

impl Watch {
    pub(super) fn sid(&self) -> Sid {
        self.session.lineage.sid
    }

    /// How often it is to be looked at.
    pub(super) fn every(&self) -> std::time::Duration {
        self.pool.settings.tunnel_recheck
    }

    /// Whether the session still is; a store that does not answer has not ended it.
    pub(super) async fn lives(&self) -> bool {
        let now = Clock::wall(Clock::now()).seconds();
        let found = session::again(&self.pool.realm, &*self.client, &self.session, now).await;
        !matches!(found, Ok(Recall::None(_))) && !self.pool.store.owes_end(&self.session.lineage_key)
    }
}

/// Whether the proxy keeps the sessions of this pool, for this route.
pub(super) fn is_kept<'e>(entry: &'e PoolEntry, route: &Route) -> Option<&'e SharedPool> {
    let shared = entry.shared.as_ref()?;
    (shared.settings.held_by == HeldBy::Proxy && route.session != SessionNeed::Off).then_some(shared)
}
