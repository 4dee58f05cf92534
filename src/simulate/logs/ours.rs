//! Lines of our own access log.

use std::borrow::Cow;
use std::time::Duration;

use serde_json::{Map, Value};

use super::line::{At, Exchange, LeftOut, Line, Pin, Read, span, stands_for};
use super::stamp;
use crate::names::{MovedWhy, NewWhy, Verdict};

/// Reads one JSON object. The server's time is `upstream_ms`: from the choice to the head of its response.
pub(super) fn read(line: &str) -> Read<'static> {
    let Ok(Value::Object(fields)) = serde_json::from_str::<Value>(line) else { return Err("not a JSON object") };
    let came = text(&fields, "time").and_then(stamp::rfc3339).ok_or("no `time` in RFC 3339")?;
    let total = millis(&fields, "duration_ms")?;
    let latency = millis(&fields, "upstream_ms")?.or(total).ok_or("neither `upstream_ms` nor `duration_ms`")?;
    let server = text(&fields, "server").filter(|server| !matches!(*server, "" | "-"));
    let status = fields.get("status").and_then(Value::as_u64);
    if status == Some(101) {
        return Ok(Line::LeftOut(LeftOut::Tunnel));
    }
    // No head ever came where the server's time is zero.
    let Some(server) = server.filter(|_| !latency.is_zero()) else { return Ok(Line::LeftOut(LeftOut::NoServer)) };
    Ok(Line::of(Exchange {
        at: At::Came(came),
        queued: millis(&fields, "queue_ms")?.unwrap_or(Duration::ZERO),
        connecting: Duration::ZERO,
        latency,
        pool: text(&fields, "pool").map(|pool| Cow::Owned(pool.to_owned())),
        server: Some(Cow::Owned(server.to_owned())),
        session: text(&fields, "session").filter(|session| !session.is_empty()).map(session),
        client: stands_for(text(&fields, "client").unwrap_or_default()),
        failed: status.is_some_and(|status| status >= 500),
        pin: pin(text(&fields, "verdict").unwrap_or_default(), text(&fields, "reason").unwrap_or_default()),
    }))
}

/// Where a session is pinned after this verdict. At a momentary cap it stays where it was, which the line does not say.
fn pin(verdict: &str, reason: &str) -> Pin {
    let is = |known: Verdict| verdict == known.as_str();
    let at_cap = Verdict::Moved(MovedWhy::Full);
    if is(at_cap) && reason == at_cap.reason() {
        Pin::Unknown
    } else if is(at_cap) || is(Verdict::Kept) || is(Verdict::Waited) {
        Pin::Old
    } else if is(Verdict::New(NewWhy::First)) {
        Pin::New
    } else {
        Pin::Unknown
    }
}

fn text<'a>(fields: &'a Map<String, Value>, key: &str) -> Option<&'a str> {
    fields.get(key).and_then(Value::as_str)
}

fn millis(fields: &Map<String, Value>, key: &str) -> Result<Option<Duration>, &'static str> {
    match fields.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => span(value.as_f64().ok_or("a duration that is no number")?, 1_000.0).map(Some),
    }
}

/// The keyed hash as it is written, or anything else that an older or edited log has there.
fn session(text: &str) -> u64 {
    u64::from_str_radix(text, 16).unwrap_or_else(|_| stands_for(text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GOOD: &str = r#"{"time":"2023-11-14T22:13:20.000042Z","id":"a","client":"192.0.2.7","pool":"shop","server":"shop-1","status":200,"duration_ms":14.250,"upstream_ms":12.345,"session":"00000000000000ff","in_flight":3}"#;

    #[test]
    fn a_line_of_ours_is_read_in_full() {
        let Ok(Line::Exchange(exchange)) = read(GOOD) else { panic!("{:?}", read(GOOD)) };
        assert_eq!(exchange.at, At::Came(1_700_000_000_000_042));
        assert_eq!(exchange.latency, Duration::from_micros(12_345));
        assert_eq!((exchange.pool.as_deref(), exchange.server.as_deref()), (Some("shop"), Some("shop-1")));
        assert_eq!((exchange.session, exchange.queued), (Some(255), Duration::ZERO));
    }

    #[test]
    fn what_no_model_wants_is_told_from_what_cannot_be_read() {
        let with = |from: &str, to: &str| GOOD.replace(from, to);
        let cases = [
            (with("\"shop-1\"", "\"-\""), Ok(LeftOut::NoServer)),
            (with("12.345", "0.000"), Ok(LeftOut::NoServer)),
            (with("\"status\":200", "\"status\":101"), Ok(LeftOut::Tunnel)),
            (with("12.345", "3600001.0"), Ok(LeftOut::TooLong)),
            (with("12.345", "-1.0"), Err("a duration that is none")),
            (with("12.345", "1e300"), Err("a duration that is none")),
            (with("12.345", "\"soon\""), Err("a duration that is no number")),
            (with("2023-11-14T", "yesterday "), Err("no `time` in RFC 3339")),
            ("[1]".to_owned(), Err("not a JSON object")),
            ("[".repeat(60_000), Err("not a JSON object")),
            (r#"{"time":"2023-11-14T22:13:20Z"}"#.to_owned(), Err("neither `upstream_ms` nor `duration_ms`")),
        ];
        for (line, expected) in cases {
            assert_eq!(read(&line), expected.map(Line::LeftOut), "{}", &line[..line.len().min(200)]);
        }
    }

    #[test]
    fn where_a_session_is_pinned_is_read_off_the_verdict() {
        let with = |verdict: &str, reason: &str| {
            let line = GOOD
                .replace("\"in_flight\"", &format!("\"verdict\":\"{verdict}\",\"reason\":\"{reason}\",\"in_flight\""));
            let Ok(Line::Exchange(exchange)) = read(&line) else { panic!("{line}") };
            exchange.pin
        };
        let cases = [
            ("kept", "", Pin::Old),
            ("waited", "", Pin::Old),
            ("moved", "down", Pin::Old),
            ("moved", "full", Pin::Unknown),
            ("new", "first", Pin::New),
            ("new", "expired", Pin::New),
            ("none", "not_sticky", Pin::Unknown),
            ("", "", Pin::Unknown),
        ];
        for (verdict, reason, pin) in cases {
            assert_eq!(with(verdict, reason), pin, "{verdict} {reason}");
        }
    }

    #[test]
    fn a_session_that_is_no_hash_is_one_all_the_same() {
        let line = GOOD.replace("00000000000000ff", "alice");
        let Ok(Line::Exchange(exchange)) = read(&line) else { panic!() };
        assert_eq!(exchange.session, Some(stands_for("alice")));
        let Ok(Line::Exchange(exchange)) = read(&GOOD.replace("00000000000000ff", "")) else { panic!() };
        assert_eq!(exchange.session, None);
    }

    proptest! {
        #[test]
        fn no_line_makes_it_panic(line in "\\PC{0,80}", cut in 0usize..200) {
            let _ = (read(&line), read(GOOD.get(..cut).unwrap_or(GOOD)));
        }
    }
}
