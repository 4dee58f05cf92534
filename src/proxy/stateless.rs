//! Who asks, where a signed token says it: checked here, and told to servers in the proxy's own words.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use cookie::Cookie;
use http::{HeaderMap, HeaderValue, header};

use super::Worker;
use super::error::{Error, Kind};
use super::exchange::Exchange;
use super::protect::Known;
use crate::clock::Clock;
use crate::config::StatelessSettings;
use crate::headers;
use crate::names::TokenReason;
use crate::runtime::{Snapshot, StatelessPool};
use crate::session::Sid;
use crate::session::token::Bearer;
use crate::stateless::{Cache, Carrier, Refused, TokenHash, Verified, carried, challenge, token_hash};

/// What one worker remembers of tokens, by pool: until a reload.
#[derive(Default)]
pub(super) struct Tokens(RefCell<Vec<(Arc<StatelessSettings>, Cache)>>);

/// The token that a request shows; it may be anything.
pub(super) type ShownToken = Option<Vec<u8>>;

/// Somebody whose token counts.
pub(super) struct Guest {
    pub(super) verified: Rc<Verified>,
    hash: TokenHash,
    /// What their forms have to show, under each key of the ring; none where browsers do not carry the token by
    /// themselves.
    pub(super) csrf: Vec<[u8; 32]>,
}

/// A token that something long-lived belongs to.
pub(super) struct TokenWatch {
    pub(super) verified: Rc<Verified>,
    pub(super) pool: Arc<StatelessPool>,
}

impl TokenWatch {
    /// Whether it still counts.
    pub(super) fn lives(&self) -> bool {
        let now = Clock::wall(Clock::now()).seconds();
        let Some(issuer) = self.pool.verifier.issuer(self.verified.issuer) else { return false };
        let is_revoked = self
            .pool
            .revoked
            .current()
            .is_some_and(|revoked| revoked.is_revoked(&self.pool.audience, issuer, &self.verified, now));
        now < self.verified.expires_at + self.pool.settings.verify.skew.as_secs() && !is_revoked
    }
}

/// Takes the token out of a request: no server is to see it, as the proxy says what it says.
pub(super) fn take(
    worker: &Worker,
    pool: &StatelessPool,
    https: bool,
    headers: &mut HeaderMap,
) -> Result<ShownToken, Error> {
    let carrier = &pool.settings.verify.carrier;
    let shown = carried(carrier, headers).map(|token| token.map(<[u8]>::to_vec));
    let shown = shown.map_err(|_| refuse(worker, pool, https, TokenReason::TwoCarriers))?;
    match carrier {
        Carrier::Header if shown.is_some() => drop(headers.remove(header::AUTHORIZATION)),
        Carrier::Cookie(name) if shown.is_some() => remove_cookie(headers, name),
        Carrier::Header | Carrier::Cookie(_) => {}
    }
    Ok(shown)
}

fn remove_cookie(headers: &mut HeaderMap, name: &str) {
    match headers::rewritten_cookies(headers, |other| other == name.as_bytes()) {
        Some(Some(line)) => drop(headers.insert(header::COOKIE, line)),
        Some(None) => drop(headers.remove(header::COOKIE)),
        None => {}
    }
}

/// Finds out who asks, and refuses whose token does not count: also where none is needed.
pub(super) fn enter(
    worker: &Worker,
    exchange: &mut Exchange,
    snapshot: &Snapshot,
    pool: &StatelessPool,
    https: bool,
    shown: ShownToken,
) -> Result<Option<Guest>, Error> {
    let Some(token) = shown else { return Ok(None) };
    let now = Clock::wall(exchange.arrived).seconds();
    let hash = token_hash(&token);
    let verified = worker.guests.verify(pool, &token, hash, now);
    let verified = verified.map_err(|refused| of_verifier(worker, exchange, pool, https, refused))?;
    let Some(revoked) = pool.revoked.current() else {
        return Err(Error::because(Kind::TokensUnchecked, &"what is revoked was not read from the store yet"));
    };
    let issuer = &pool.settings.verify.issuers[verified.issuer].issuer;
    if revoked.is_revoked(&pool.audience, issuer, &verified, now) {
        return Err(refuse(worker, pool, https, TokenReason::Revoked));
    }
    exchange.session = Some(xxhash_rust::xxh3::xxh3_64(&verified.reference));
    exchange.token = Some(Rc::clone(&verified));
    let by_cookie = matches!(pool.settings.verify.carrier, Carrier::Cookie(_));
    let hashers = snapshot.token_csrf.iter().filter(|_| by_cookie);
    let csrf = hashers.map(|hasher| hasher.tag(&verified.reference)).collect();
    Ok(Some(Guest { verified, hash, csrf }))
}

impl Tokens {
    fn verify(&self, pool: &StatelessPool, token: &[u8], hash: TokenHash, now: u64) -> Result<Rc<Verified>, Refused> {
        let mut caches = self.0.borrow_mut();
        let at = caches.iter().position(|(settings, _)| Arc::ptr_eq(settings, &pool.settings));
        let at = at.unwrap_or_else(|| {
            caches.push((Arc::clone(&pool.settings), Cache::new()));
            caches.len() - 1
        });
        let cache = &mut caches[at].1;
        if let Some(known) = cache.get(&hash, now, |issuer| pool.keys[issuer].epoch()) {
            return Ok(known);
        }
        // Read before the keys: what is verified with older ones is not taken for verified with newer ones.
        let epochs: Vec<u64> = pool.keys.iter().map(|keys| keys.epoch()).collect();
        let verified = Rc::new(pool.verifier.verify(token, now, |issuer| pool.keys[issuer].current())?);
        cache.put(hash, Rc::clone(&verified), epochs[verified.issuer], now);
        Ok(verified)
    }

    /// Forgets the pools of an older configuration.
    pub(super) fn keep_to(&self, snapshot: &Snapshot) {
        let is_in_force = |settings: &Arc<StatelessSettings>| {
            snapshot.stateless_pools().any(|pool| Arc::ptr_eq(&pool.settings, settings))
        };
        self.0.borrow_mut().retain(|(settings, _)| is_in_force(settings));
    }
}

/// A key that is not known is no proof of a bad token, as long as nobody has asked for newer ones.
fn of_verifier(worker: &Worker, exchange: &Exchange, pool: &StatelessPool, https: bool, refused: Refused) -> Error {
    let keys = refused.refetch.and_then(|issuer| pool.keys.get(issuer));
    if keys.is_some_and(|keys| keys.may_be_newer(exchange.arrived)) {
        return Error::because(Kind::TokensUnchecked, &"the issuer's keys have to be fetched again first");
    }
    refuse(worker, pool, https, refused.reason)
}

/// Counts a token that is refused. A cookie that does not count is taken back, or its user could not get rid of it.
fn refuse(worker: &Worker, pool: &StatelessPool, https: bool, reason: TokenReason) -> Error {
    worker.runtime.metrics.token_refused(worker.id, reason);
    let cookie = match &pool.settings.verify.carrier {
        // Another proxy may know its key; and of two, one may be good.
        Carrier::Cookie(name) if !matches!(reason, TokenReason::Key | TokenReason::TwoCarriers) => {
            let line = Cookie::build((&**name, "")).path("/").http_only(true).secure(https);
            let line = line.max_age(cookie::time::Duration::ZERO);
            HeaderValue::try_from(line.build().to_string()).ok()
        }
        Carrier::Cookie(_) | Carrier::Header => None,
    };
    let challenge = Some(HeaderValue::from_static(challenge(Some(reason))));
    Error { cookie, challenge, ..Error::because(Kind::Token(reason), &reason) }
}

/// What a request without a token is told where one is needed.
pub(super) fn token_required() -> Error {
    let challenge = Some(HeaderValue::from_static(challenge(None)));
    Error { challenge, ..Error::new(Kind::LoginRequired) }
}

impl Guest {
    /// How somebody has shown who they are.
    pub(super) fn known(&self) -> Known<'_> {
        Known { acr: self.verified.acr.as_deref().unwrap_or_default(), auth_time: self.verified.auth_time }
    }

    /// Stands for this very token.
    pub(super) fn name(&self) -> Sid {
        let mut name = Sid([0; 16]);
        name.0.copy_from_slice(&self.hash[..16]);
        name
    }

    /// What servers are told of it.
    pub(super) fn bearer(&self) -> Bearer<'_> {
        let verified = &self.verified;
        Bearer {
            sid: Sid(verified.reference),
            subject: &verified.subject,
            acr: verified.acr.as_deref(),
            amr: &verified.amr,
            auth_time: verified.auth_time,
            expires_at: verified.expires_at,
            csrf: self.csrf.first(),
            claims: &verified.claims,
        }
    }
}
