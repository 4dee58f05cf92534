//! What a pin cookie says, and what would become of it now.

use http::StatusCode;
use serde_json::{Value, json};

use super::api::{Answer, refuse};
use super::describe;
use crate::affinity::Preference;
use crate::clock::Clock;
use crate::metrics::WorkerId;
use crate::names::Verdict;
use crate::pool::{Ask, NoServer, Tried};
use crate::runtime::Snapshot;

/// Explains the cookie of a request's body.
pub(super) fn explain(snapshot: &Snapshot, body: &Value) -> Answer {
    let Some(cookie) = body.get("cookie").and_then(Value::as_str) else {
        return Err(refuse(StatusCode::BAD_REQUEST, "Give the value of a pin cookie: {\"cookie\": \"...\"}."));
    };
    // People paste `name=value` too.
    let value = cookie.rsplit('=').next().unwrap_or_default().trim();
    let now = Clock::now();
    let opened = snapshot.pools.iter().find_map(|entry| {
        let affinity = entry.pool.affinity.as_ref()?;
        affinity.explain(value.as_bytes(), Clock::wall(now)).map(|opened| (entry, opened))
    });
    let Some((entry, (recalled, pin))) = opened else {
        return Ok(json!({
            "valid": false,
            "would": { "verdict": "new", "why": "No key of the ring opens it, or it is for no pool that is configured." },
        }));
    };
    let mut random = fastrand::Rng::with_seed(pin.session);
    let ask = Ask {
        preference: recalled.preference,
        tried: &Tried::default(),
        key: pin.session,
        worker: WorkerId(0),
        now,
        may_wait: true,
        alone: true,
    };
    let preview = entry.pool.preview(&ask, &mut random);
    let name = |at: usize| entry.pool.servers[at].settings.name.to_string();
    let (server, verdict) = match preview {
        Ok((server, verdict)) => (Some(name(server)), verdict),
        Err(NoServer(verdict)) => (None, verdict),
    };
    let pinned = match recalled.preference {
        Preference::Pinned { server, .. } => Some(name(server)),
        _ => None,
    };
    Ok(json!({
        "valid": true,
        "pool": &*entry.pool.name,
        "server": pinned,
        "session": describe::session(&snapshot.session_hasher, pin.session),
        "issued": pin.issued,
        "last_seen": pin.seen,
        "would": { "verdict": verdict.as_str(), "reason": verdict.reason(), "server": server, "why": sentence(verdict) },
    }))
}

fn sentence(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Kept => "The pinned server can serve.",
        Verdict::Waited => "The pinned server is at its cap: the request would wait in its line.",
        Verdict::Moved(_) => "The pinned server cannot serve: the session moves to the first of its rendezvous order.",
        Verdict::Refused(_) => "The pinned server cannot serve, and the pool says not to move.",
        Verdict::New(_) => "The pin no longer counts: the session is placed afresh.",
        Verdict::None(_) => "No server can serve now.",
    }
}
