//! What the edge enforces whatever an application does: requests that other sites forge, cookies that are badly set,
//! transport that must not fall back, and how a route's user has to have logged in.
//!
//! Each part is a decision on values that it is given. Nothing here sends, waits, reads the clock or counts: whoever
//! asks does that.

mod cookies;
mod csrf;
mod step_up;
mod transport;

pub use cookies::{CookieFacts, CookieRules, Glob, clean_set_cookies, is_alias, is_never_for_servers};
pub use csrf::{
    CsrfFacts, CsrfJudgement, CsrfRules, FORM_FIELD, MOST_FORM_BYTES, OriginError, TOKEN_BYTES, TokenPlace,
    TrustedOrigin, X_CSRF_TOKEN, check_token, form_field, judge, token_place, verify_token,
};
pub use step_up::{Require, Shown, is_local_path, return_path};
pub use transport::{HstsError, hsts, parse_hsts};
