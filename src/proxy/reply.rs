//! Replies that the proxy makes itself: errors, redirects, fixed texts.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, Uri, header};
use serde_json::json;

use super::error::{Error, Kind};
use super::exchange::{Exchange, ReplyBody};
use super::identify::Identity;
use crate::config::HeaderChanges;
use crate::protect::is_local_path;

const HTML: HeaderValue = HeaderValue::from_static("text/html; charset=utf-8");
const PROBLEM: HeaderValue = HeaderValue::from_static("application/problem+json");
const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");

/// Whether a browser is asking, and not a program.
pub(super) fn wants_html(headers: &HeaderMap) -> bool {
    let accept = headers.get(header::ACCEPT).map_or(&b""[..], HeaderValue::as_bytes);
    memchr::memmem::find(accept, b"text/html").is_some()
}

/// The one place that turns an error into a response.
pub(super) fn refusal(error: Error, mut exchange: Box<Exchange>) -> Response<ReplyBody> {
    let kind = error.kind;
    let status = kind.status();
    exchange.failed(&error);
    let page = exchange.snapshot().and_then(|snapshot| snapshot.process.error_pages.get(&status.as_u16()).cloned());
    let (content_type, body) = match (exchange.wants_html, page) {
        (true, Some(page)) => (HTML, page),
        (true, None) => (HTML, page_of(status, kind).into()),
        (false, _) => (PROBLEM, problem(status, kind).into()),
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, content_type);
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Some(seconds) = kind.retry_after() {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    if let Some(cookie) = error.cookie {
        headers.append(header::SET_COOKIE, cookie);
    }
    if kind == (Kind::CookiesTooLarge { cleared: true }) {
        headers.insert("clear-site-data", HeaderValue::from_static("\"cookies\""));
    }
    if let Some(challenge) = error.challenge {
        headers.insert(header::WWW_AUTHENTICATE, challenge);
    }
    if kind.framing_is_in_doubt() {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    ReplyBody::local(response, exchange)
}

fn problem(status: StatusCode, kind: Kind) -> String {
    let title = status.canonical_reason().unwrap_or("Error");
    let mut problem = json!({
        "type": format!("urn:steadfast:error:{}", kind.as_str()),
        "title": title, "status": status.as_u16(), "detail": kind.sentence(),
    });
    if let Some(reason) = kind.reason() {
        problem["reason"] = reason.into();
    }
    if kind.has_run() {
        problem["applied"] = "unknown".into();
    }
    problem.to_string()
}

fn page_of(status: StatusCode, kind: Kind) -> String {
    let (code, title) = (status.as_u16(), status.canonical_reason().unwrap_or("Error"));
    let sentence = kind.sentence();
    format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>{code} {title}</title><style>body{{font:1.1rem/1.5 system-ui;max-width:34rem;margin:20vh auto;\
         padding:0 1rem;color-scheme:light dark}}h1{{font-size:1.4rem}}</style><h1>{code} {title}</h1><p>{sentence}</p>\n"
    )
}

/// A reply without its exchange yet.
pub(super) fn fixed(status: StatusCode, body: Bytes, changes: &HeaderChanges) -> Response<Bytes> {
    let content_type = if body.starts_with(b"<") { HTML } else { TEXT };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    changes.apply(response.headers_mut());
    response
}

/// 308 to the same host and path over https.
pub(super) fn redirect_to_https(identity: &Identity, port: u16, uri: &Uri) -> Response<Bytes> {
    let host = &identity.hop.origin.host;
    let target = uri.path_and_query().map_or("/", |target| target.as_str());
    let target = if target.starts_with('/') { target } else { "/" };
    let location =
        if port == 443 { format!("https://{host}{target}") } else { format!("https://{host}:{port}{target}") };
    permanent(location, &HeaderChanges::default())
}

/// To the page where one logs in, which is told where to go on: a path of this host, and nothing else.
pub(super) fn to_login(login: &str, asked: &str) -> Response<Bytes> {
    // `//host` and its like would lead elsewhere.
    let back = if is_local_path(asked) { asked } else { "/" };
    let back = percent_encoding::utf8_percent_encode(back, percent_encoding::NON_ALPHANUMERIC);
    let mark = if login.contains('?') { '&' } else { '?' };
    let mut response = fixed(StatusCode::SEE_OTHER, Bytes::new(), &HeaderChanges::default());
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Ok(location) = HeaderValue::try_from(format!("{login}{mark}return={back}")) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

/// 308 to another place, with path and query appended.
pub(super) fn redirect(to: &str, path: &str, uri: &Uri, changes: &HeaderChanges) -> Response<Bytes> {
    let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    permanent(format!("{to}{path}{query}"), changes)
}

fn permanent(location: String, changes: &HeaderChanges) -> Response<Bytes> {
    let mut response = fixed(StatusCode::PERMANENT_REDIRECT, Bytes::new(), changes);
    if let Ok(location) = HeaderValue::try_from(location) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}
