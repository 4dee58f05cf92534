//! What the demo's servers answer: small bodies that are there whole.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::Full;

use super::sessions::Fields;

pub type Reply = Response<Full<Bytes>>;

pub fn reply(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Reply {
    let mut reply = Response::new(Full::new(body.into()));
    *reply.status_mut() = status;
    reply.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    reply.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    reply
}

pub fn text(status: StatusCode, body: impl Into<Bytes>) -> Reply {
    reply(status, "text/plain; charset=utf-8", body)
}

pub fn html(status: StatusCode, page: String) -> Reply {
    reply(status, "text/html; charset=utf-8", page)
}

pub fn no_page() -> Reply {
    text(StatusCode::NOT_FOUND, "There is no such page.")
}

/// The way to go on after a form, with a word for those who do not go there.
pub fn see_other(place: &str, said: impl Into<Bytes>) -> Reply {
    let mut reply = text(StatusCode::SEE_OTHER, said);
    let location = HeaderValue::try_from(place).unwrap_or(HeaderValue::from_static("/"));
    reply.headers_mut().insert(header::LOCATION, location);
    reply
}

pub fn with_fields(mut reply: Reply, fields: Fields) -> Reply {
    for (name, value) in fields {
        if let Ok(value) = HeaderValue::try_from(value) {
            reply.headers_mut().append(name, value);
        }
    }
    reply
}
