//! Tokens that are to count no more, in stateless mode: by their id, by whose they are, or by the key that signed them.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use http::StatusCode;
use percent_encoding::percent_decode_str;
use serde_json::{Map, Value, json};

use super::api::{Answer, Refusal, refuse, refuse_for_now};
use crate::clock::Clock;
use crate::config::parse_duration;
use crate::runtime::{RevocationBook, RevokeError, Runtime};
use crate::stateless::{MOST_TEXT_BYTES, Revocation, What};
use crate::store::{Client, Store};

/// Answers what is asked of revocations.
pub(super) struct Tokens {
    runtime: Arc<Runtime>,
    clients: RefCell<Vec<(Arc<Store>, Rc<Client>)>>,
}

impl Tokens {
    pub(super) fn new(runtime: Arc<Runtime>) -> Self {
        Tokens { runtime, clients: RefCell::default() }
    }

    /// Every revocation that still counts.
    pub(super) fn list(&self) -> Value {
        let snapshot = self.runtime.snapshot();
        let all = snapshot.revocation_books().into_iter().flat_map(|book| book.list());
        let now = Clock::wall(Clock::now()).seconds();
        let revocations: Vec<Value> = all.filter(|one| one.counts(now)).map(|one| described(&one)).collect();
        json!({ "revocations": revocations })
    }

    /// Revokes.
    pub(super) async fn add(&self, body: &Value) -> Answer {
        let now = Clock::wall(Clock::now()).seconds();
        let fields = body.as_object().cloned().unwrap_or_default();
        let until = until(fields.get("until"), now)?;
        let revocation = self.read(&fields, until, now)?;
        let book = self.book_of(&revocation.pool)?;
        let client = self.client(&book);
        match book.add(revocation.clone(), client.as_deref(), now).await {
            Ok(()) => {
                tracing::info!(pool = %revocation.pool, "the operator revoked tokens");
                Ok(described(&revocation))
            }
            Err(error @ RevokeError::Full) => Err(refuse(StatusCode::INSUFFICIENT_STORAGE, error.to_string())),
            Err(error @ RevokeError::Later(_)) => Err(refuse_for_now(error.to_string())),
        }
    }

    /// Takes a revocation back.
    pub(super) async fn remove(&self, query: &str) -> Answer {
        let now = Clock::wall(Clock::now()).seconds();
        let revocation = self.read(&fields_of(query)?, now, now)?;
        let book = self.book_of(&revocation.pool)?;
        let client = self.client(&book);
        match book.remove(&revocation, client.as_deref(), now).await {
            Ok(true) => Ok(json!({ "removed": described(&revocation) })),
            Ok(false) => Err(refuse(StatusCode::NOT_FOUND, "There is no such revocation.")),
            Err(error) => Err(refuse_for_now(format!("It still counts: {error}. Try again."))),
        }
    }

    /// What is meant: one pool, and exactly one way to say which tokens.
    fn read(&self, fields: &Map<String, Value>, until: u64, at: u64) -> Result<Revocation, Refusal> {
        let known = ["pool", "jti", "issuer", "subject", "kid", "until"];
        if let Some(other) = fields.keys().find(|name| !known.contains(&name.as_str())) {
            return Err(bad(format!("There is no field {other}; there are {}.", known.join(", "))));
        }
        let text = |name: &str| match fields.get(name) {
            None => Ok(None),
            Some(Value::String(text)) if !text.is_empty() && text.len() <= MOST_TEXT_BYTES => {
                Ok(Some(Box::<str>::from(text.as_str())))
            }
            Some(_) => Err(bad(format!("`{name}` is a text of 1 to {MOST_TEXT_BYTES} bytes."))),
        };
        let pool = text("pool")?.ok_or_else(|| bad("Say of which `pool`."))?;
        let what = match (text("jti")?, text("issuer")?, text("subject")?, text("kid")?) {
            (Some(jti), None, None, None) => What::Jti(jti),
            (None, Some(issuer), Some(subject), None) => What::Subject { issuer, subject },
            (None, None, None, Some(kid)) => What::Kid(kid),
            _ => return Err(bad("Say which tokens: `jti`, or `issuer` and `subject`, or `kid`.")),
        };
        self.check_issuer(&pool, &what)?;
        Ok(Revocation { pool, what, until, at })
    }

    /// A name that no issuer has would revoke nothing, and nobody would notice.
    fn check_issuer(&self, pool: &str, what: &What) -> Result<(), Refusal> {
        let What::Subject { issuer, .. } = what else { return Ok(()) };
        let snapshot = self.runtime.snapshot();
        let Some(stateless) = snapshot.pool(pool).and_then(|entry| entry.stateless.as_ref()) else { return Ok(()) };
        let names = stateless.settings.verify.issuers.iter().map(|known| &*known.issuer);
        let names: Vec<&str> = names.collect();
        if names.contains(&&**issuer) {
            return Ok(());
        }
        Err(bad(format!("Pool {pool} has no issuer {issuer}; it has {}.", names.join(", "))))
    }

    fn book_of(&self, pool: &str) -> Result<Arc<RevocationBook>, Refusal> {
        let snapshot = self.runtime.snapshot();
        let stateless = snapshot.pool(pool).and_then(|entry| entry.stateless.as_ref());
        let book = stateless.map(|stateless| Arc::clone(&stateless.revoked));
        book.ok_or_else(|| refuse(StatusCode::NOT_FOUND, format!("There is no stateless pool {pool}.")))
    }

    fn client(&self, book: &RevocationBook) -> Option<Rc<Client>> {
        let store = &book.place().store?;
        let snapshot = self.runtime.snapshot();
        let mut clients = self.clients.borrow_mut();
        clients.retain(|(known, _)| snapshot.stores.iter().any(|store| Arc::ptr_eq(known, store)));
        if let Some((_, client)) = clients.iter().find(|(known, _)| Arc::ptr_eq(known, store)) {
            return Some(Rc::clone(client));
        }
        let client = store.client(self.runtime.metrics.control());
        clients.push((Arc::clone(store), Rc::clone(&client)));
        Some(client)
    }
}

/// When a revocation ends: no token that it is about may count for longer.
fn until(said: Option<&Value>, now: u64) -> Result<u64, Refusal> {
    let at = match said {
        Some(Value::Number(seconds)) => seconds.as_u64(),
        Some(Value::String(span)) => parse_duration(span).map(|span| now.saturating_add(span.as_secs())),
        _ => None,
    };
    let at = at.filter(|at| *at > now && *at - now <= LONGEST);
    at.ok_or_else(|| {
        bad("`until` is when the last token that it is about expires: seconds since 1970, or from now as \"24h\"; at most ten years.")
    })
}

/// A key or a habit that lasts longer is none to rely on: ten years.
const LONGEST: u64 = 10 * 366 * 24 * 3_600;

fn fields_of(query: &str) -> Result<Map<String, Value>, Refusal> {
    let mut fields = Map::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = value.replace('+', " ");
        let value = percent_decode_str(&value).decode_utf8();
        let value = value.map_err(|_| bad(format!("`{name}` is no UTF-8 text.")))?.into_owned();
        if fields.insert(name.to_owned(), value.into()).is_some() {
            return Err(bad(format!("`{name}` is given twice.")));
        }
    }
    Ok(fields)
}

fn described(revocation: &Revocation) -> Value {
    let mut value = json!({ "pool": &*revocation.pool, "until": revocation.until, "at": revocation.at });
    match &revocation.what {
        What::Jti(jti) => value["jti"] = (**jti).into(),
        What::Subject { issuer, subject } => {
            value["issuer"] = (**issuer).into();
            value["subject"] = (**subject).into();
        }
        What::Kid(kid) => value["kid"] = (**kid).into(),
    }
    value
}

fn bad(why: impl Into<String>) -> Refusal {
    refuse(StatusCode::BAD_REQUEST, why)
}
