//! Sessions that the proxy keeps, so that any server can serve any request: the protocol.
//!
//! A cookie leads to a *handle*, the handle to a *lineage*, which is the session. Renewing a cookie makes a new handle
//! for the same lineage; a login, a step-up and a logout end the lineage and mute every handle that it had. Whoever asks
//! with a muted handle has no session and is given none: its response might arrive after the one that carries the new
//! cookie. See [`store`] for what makes concurrent requests safe, [`realm`] for what keeps a stolen store useless, and
//! `model` for every order in which three requests can happen.
//!
//! This module decides; it is given the time, the entropy and the store, and its futures wait for that store only. It
//! does not know HTTP.

pub mod commit;
pub mod contract;
pub mod cookie;
pub mod merge;
pub mod operate;
pub mod realm;
pub mod recall;
pub mod record;
pub mod store;
pub mod token;
pub mod vault;

#[cfg(test)]
pub(crate) mod model;
#[cfg(test)]
mod tests;

pub use commit::{Committed, Committer, CookieDecision, Directives, How, Refusal, Turn, end_all};
pub use cookie::SessionCookie;
pub use realm::{OnReuse, Realm, Rules};
pub use recall::{Absence, Lately, Recall, Session, again, confirm, recall, touch};
pub use record::Sid;
