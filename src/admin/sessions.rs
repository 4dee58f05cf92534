//! Sessions that the proxy keeps, for operators: who is logged in, and who no longer is to be.

use std::cell::RefCell;
use std::collections::HashSet;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;

use http::StatusCode;
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};

use super::api::{Answer, Refusal, refuse, refuse_for_now};
use crate::keys::SystemEntropy;
use crate::metrics::PoolMetrics;
use crate::names::SessionEvent;
use crate::runtime::{PoolEntry, Runtime, SharedPool};
use crate::session::operate::{self, Named, Reference};
use crate::session::store::StoreError;
use crate::session::{self, Realm, Sid, end_all};
use crate::store::{Client, Store};
use crate::tasks;

/// Sessions that one answer names: more is for nobody to read.
const MOST: usize = 1_000;
/// Records opened before others of the control thread have their turn.
const MOST_OPENED_AT_ONCE: usize = 1_024;

/// Answers what is asked of sessions.
pub(super) struct Sessions {
    runtime: Arc<Runtime>,
    /// Ways to stores, of the control thread.
    clients: RefCell<Vec<(Arc<Store>, Rc<Client>)>>,
}

impl Sessions {
    pub(super) fn new(runtime: Arc<Runtime>) -> Self {
        Sessions { runtime, clients: RefCell::default() }
    }

    /// The sessions of all, of a realm, or of one subject.
    pub(super) async fn list(&self, query: &str) -> Answer {
        let asked = Asked::parse(query)?;
        let mut sessions = Vec::new();
        for realm in self.realms(asked.realm.as_deref())? {
            let found = match &asked.subject {
                Some(subject) => operate::list(&realm.realm, &*realm.client, subject).await,
                None => realm.all(MOST + 1 - sessions.len()).await,
            };
            sessions.append(&mut found.map_err(|error| realm.unanswered(&error))?);
            if sessions.len() > MOST {
                break;
            }
        }
        let more = sessions.len() > MOST;
        sessions.truncate(MOST);
        Ok(json!({ "sessions": sessions.iter().map(described).collect::<Value>(), "more": more }))
    }

    /// One session.
    pub(super) async fn show(&self, reference: &str) -> Answer {
        let (_, session) = self.find(reference).await?;
        Ok(described(&session))
    }

    /// Ends one session.
    pub(super) async fn revoke(&self, reference: &str) -> Answer {
        let (realm, session) = self.find(reference).await?;
        let sid = see_through(async move { realm.end_one(&session.reference).await }).await?;
        sid.map(|sid| ended(&[sid])).ok_or_else(|| unknown(reference))
    }

    /// Ends all sessions of a subject.
    pub(super) async fn revoke_all(&self, query: &str) -> Answer {
        let Asked { realm: Some(realm), subject: Some(subject) } = Asked::parse(query)? else {
            return Err(bad("Say whose sessions are to end: ?realm=REALM&subject=SUBJECT."));
        };
        let Some(realm) = self.realms(Some(&realm))?.pop() else { return Err(no_realm(&realm)) };
        let lived = see_through(async move { realm.end_all(&subject).await }).await?;
        Ok(ended(&lived))
    }

    /// The realms that there are, or the one of this name.
    fn realms(&self, wanted: Option<&str>) -> Result<Vec<Kept>, Refusal> {
        let snapshot = self.runtime.snapshot();
        let mut realms: Vec<Kept> = Vec::new();
        for (entry, shared) in snapshot.pools.iter().filter_map(|entry| Some((entry, entry.shared.as_ref()?))) {
            let name = &shared.realm.name;
            // Pools of one realm share its sessions and its store.
            let is_new = realms.iter().all(|known| known.realm.name != *name);
            if is_new && wanted.is_none_or(|wanted| **name == *wanted) {
                realms.push(self.kept(entry, shared));
            }
        }
        match wanted {
            Some(wanted) if realms.is_empty() => Err(no_realm(wanted)),
            _ => Ok(realms),
        }
    }

    fn kept(&self, entry: &PoolEntry, shared: &SharedPool) -> Kept {
        Kept {
            runtime: Arc::clone(&self.runtime),
            realm: Arc::clone(&shared.realm),
            metrics: Arc::clone(&entry.pool.metrics),
            client: self.client(&shared.store),
        }
    }

    fn client(&self, store: &Arc<Store>) -> Rc<Client> {
        let snapshot = self.runtime.snapshot();
        let mut clients = self.clients.borrow_mut();
        // A store that the configuration no longer has is to go.
        clients.retain(|(known, _)| snapshot.stores.iter().any(|store| Arc::ptr_eq(known, store)));
        if let Some((_, client)) = clients.iter().find(|(known, _)| Arc::ptr_eq(known, store)) {
            return Rc::clone(client);
        }
        let client = store.client(self.runtime.metrics.control());
        clients.push((Arc::clone(store), Rc::clone(&client)));
        client
    }

    /// The session of a reference, with its realm.
    async fn find(&self, text: &str) -> Result<(Kept, Named), Refusal> {
        let reference = Reference::parse(text).ok_or_else(|| unknown(text))?;
        let mut silent = None;
        for realm in self.realms(None)? {
            match operate::find(&realm.realm, &*realm.client, &reference).await {
                Ok(Some(session)) => return Ok((realm, session)),
                Ok(None) => {}
                // It may still be in another realm, of a store that answers.
                Err(error) => silent = Some(realm.unanswered(&error)),
            }
        }
        Err(silent.unwrap_or_else(|| unknown(text)))
    }
}

/// A realm whose sessions the proxy keeps, and the way to them.
struct Kept {
    runtime: Arc<Runtime>,
    realm: Arc<Realm>,
    /// Of the first pool of the realm.
    metrics: Arc<PoolMetrics>,
    client: Rc<Client>,
}

impl Kept {
    /// Sessions of any subject, in order; not more than `most`.
    async fn all(&self, most: usize) -> Result<Vec<Named>, StoreError> {
        let records = self.client.subjects().await?;
        let mut sessions: Vec<Named> = Vec::new();
        // A scan may come by a record twice.
        let mut seen = HashSet::new();
        for some in records.chunks(MOST_OPENED_AT_ONCE) {
            for (key, entry) in some {
                let mut named = operate::named(&self.realm, *key, entry);
                if sessions.len() < most && !named.is_empty() && seen.insert(*key) {
                    sessions.append(&mut named);
                }
            }
            if sessions.len() >= most {
                break;
            }
            tokio::task::yield_now().await;
        }
        sessions.truncate(most);
        operate::look(&*self.client, &mut sessions).await?;
        let place = |named: &Named| (named.subject.clone(), named.created, named.sid);
        sessions.sort_by_cached_key(place);
        Ok(sessions)
    }

    async fn end_one(&self, reference: &Reference) -> Result<Option<Sid>, Refusal> {
        match operate::end_one(&self.realm, &*self.client, reference).await {
            Ok(None) => Ok(None),
            Ok(Some(sid)) => {
                self.close(&[sid]).await;
                self.count(1);
                tracing::info!(realm = %self.realm.name, %sid, "the operator ended a session");
                Ok(Some(sid))
            }
            Err(refusal) => Err(self.not_ended(&refusal)),
        }
    }

    /// Gives those that lived, as far as they were named.
    async fn end_all(&self, subject: &str) -> Result<Vec<Sid>, Refusal> {
        let before = operate::list(&self.realm, &*self.client, subject).await;
        let before = before.map_err(|error| self.unanswered(&error))?;
        let ended = end_all(&self.realm, &*self.client, subject, None, &mut SystemEntropy).await;
        let ended = ended.map_err(|refusal| self.not_ended(&refusal))?;
        self.close(&ended).await;
        let lived = before.iter().filter(|named| named.live).map(|named| named.sid);
        let lived: Vec<Sid> = lived.filter(|sid| ended.contains(sid)).collect();
        self.count(lived.len());
        tracing::info!(realm = %self.realm.name, lived = lived.len(), "the operator ended all sessions of a subject");
        Ok(lived)
    }

    /// What is open of sessions that have ended is closed here at once, and at other proxies as soon as they hear of it.
    async fn close(&self, ended: &[Sid]) {
        if ended.is_empty() {
            return;
        }
        self.runtime.ended.note(ended);
        self.client.tell_of_ends(ended).await;
    }

    fn count(&self, ended: usize) {
        let cells = self.metrics.cells.of(self.runtime.metrics.control());
        cells.session_events[SessionEvent::Revoked.index()].add(ended as u64);
    }

    fn not_ended(&self, refusal: &session::Refusal) -> Refusal {
        match refusal {
            session::Refusal::Store(error) => self.unanswered(error),
            session::Refusal::Gone => refuse(
                StatusCode::CONFLICT,
                "The session ended or became another just then: list the sessions of its subject again.",
            ),
            // The record of a subject who logs in and out all the time.
            other => refuse_for_now(format!("The sessions may not have ended: {other}. Try again.")),
        }
    }

    fn unanswered(&self, error: &StoreError) -> Refusal {
        refuse_for_now(format!("The sessions of realm {} are out of reach: {error}. Try again.", self.realm.name))
    }
}

/// Does it to the end, also when whoever asked hangs up meanwhile: what is open of an ended session is closed after it.
async fn see_through<T: 'static>(work: impl Future<Output = Result<T, Refusal>> + 'static) -> Result<T, Refusal> {
    // It ends with the store's deadlines.
    let done = tasks::spawn(work).await;
    done.unwrap_or_else(|_| Err(refuse_for_now("The proxy is shutting down; the sessions may not have ended.")))
}

fn described(session: &Named) -> Value {
    json!({
        "ref": session.reference.text(),
        "realm": &*session.realm,
        "subject": &*session.subject,
        "sid": session.sid.to_string(),
        "created": session.created,
        "live": session.live,
    })
}

fn ended(sids: &[Sid]) -> Value {
    json!({ "ended": sids.iter().map(Sid::to_string).collect::<Value>() })
}

fn unknown(reference: &str) -> Refusal {
    let why = format!("There is no session {reference}. GET /api/v1/sessions lists those that there are.");
    refuse(StatusCode::NOT_FOUND, why)
}

fn no_realm(name: &str) -> Refusal {
    refuse(StatusCode::NOT_FOUND, format!("No pool keeps sessions of a realm {name}: see [pool.shared] realm."))
}

/// Whose sessions are meant.
#[derive(Debug, Default, PartialEq, Eq)]
struct Asked {
    realm: Option<String>,
    subject: Option<String>,
}

impl Asked {
    /// Reads a query. A parameter with a wrong name is refused: without it, the answer would be about others.
    fn parse(query: &str) -> Result<Self, Refusal> {
        let mut asked = Asked::default();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let field = match name {
                "realm" => &mut asked.realm,
                "subject" => &mut asked.subject,
                _ => return Err(bad(format!("There is no parameter {name}; there are `realm` and `subject`."))),
            };
            // A form writes a space so, and a plus as %2B.
            let value = value.replace('+', " ");
            let value = percent_decode_str(&value).decode_utf8();
            let value = value.map_err(|_| bad(format!("`{name}` is no UTF-8 text.")))?.into_owned();
            if field.replace(value).is_some() {
                return Err(bad(format!("`{name}` is given twice.")));
            }
        }
        asked.realm = asked.realm.filter(|realm| !realm.is_empty());
        asked.subject = asked.subject.filter(|subject| !subject.is_empty());
        if asked.subject.is_some() && asked.realm.is_none() {
            return Err(bad("A subject is one of a realm: give `realm` too."));
        }
        Ok(asked)
    }
}

fn bad(why: impl Into<String>) -> Refusal {
    refuse(StatusCode::BAD_REQUEST, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_says_whose_sessions_are_meant() {
        let asked = |realm: Option<&str>, subject: Option<&str>| {
            Some(Asked { realm: realm.map(str::to_owned), subject: subject.map(str::to_owned) })
        };
        for (query, meant) in [
            ("", asked(None, None)),
            ("realm=&subject=", asked(None, None)),
            ("realm=shop", asked(Some("shop"), None)),
            ("subject=alice&realm=shop", asked(Some("shop"), Some("alice"))),
            ("realm=a%26b&subject=Zo%C3%AB+x%2By", asked(Some("a&b"), Some("Zoë x+y"))),
            ("subject=alice", None),
            ("realm=&subject=alice", None),
            ("relm=shop", None),
            ("realm=shop&realm=blog", None),
            ("realm=%FF", None),
        ] {
            assert_eq!(Asked::parse(query).ok(), meant, "{query}");
        }
    }
}
