//! nginx's "combined" format with times at the end, as this `log_format` writes it:
//!
//! ```text
//! log_format timed '$remote_addr - $remote_user [$time_local] "$request" $status $body_bytes_sent '
//!                  '"$http_referer" "$http_user_agent" rt=$request_time urt="$upstream_response_time" '
//!                  'upstream="$upstream_addr" session="$cookie_sessionid" msec=$msec';
//! ```
//!
//! Only one of the two times is needed. Bare numbers after "combined" are `$request_time` and, if there are two,
//! `$upstream_response_time`. Without `msec` the moments are whole seconds: the lines of one are then spread evenly
//! over it. nginx writes a line when the response has ended, so an exchange came that much earlier.

use std::borrow::Cow;
use std::time::Duration;

use super::line::{At, Exchange, LeftOut, Line, Pin, Read, span, stands_for};
use super::stamp;

/// Fields after "combined" that are looked at.
const MOST_FIELDS: usize = 64;

/// Reads one line.
pub(super) fn read(line: &str) -> Read<'_> {
    let combined = combined(line).ok_or("not nginx's combined format")?;
    let extra = Extra::of(combined.rest);
    if combined.status == 101 {
        return Ok(Line::LeftOut(LeftOut::Tunnel));
    }
    let latency = match (extra.upstream_time, extra.request_time) {
        (Some(text), _) => match last(text).parse::<f64>() {
            Ok(seconds) => span(seconds, 1.0)?,
            // nginx answered it alone.
            Err(_) => return Ok(Line::LeftOut(LeftOut::NoServer)),
        },
        (None, Some(text)) => span(text.parse().map_err(|_| "a duration that is no number")?, 1.0)?,
        (None, None) => return Err("neither $request_time nor $upstream_response_time at the end"),
    };
    let whole = At::EndedInSecond(combined.at);
    Ok(Line::of(Exchange {
        at: extra.moment.and_then(stamp::unix_seconds).map_or(whole, At::Ended),
        queued: Duration::ZERO,
        connecting: Duration::ZERO,
        latency,
        pool: None,
        server: extra.server.map(last).filter(|server| !matches!(*server, "" | "-")).map(Cow::Borrowed),
        session: extra.session.filter(|session| !matches!(*session, "" | "-")).map(stands_for),
        client: stands_for(combined.client),
        failed: combined.status >= 500,
        pin: Pin::Unknown,
    }))
}

/// What every line has.
struct Combined<'a> {
    client: &'a str,
    at: i64,
    status: u16,
    rest: &'a str,
}

fn combined(line: &str) -> Option<Combined<'_>> {
    let (client, rest) = line.split_once(' ')?;
    let (_user, rest) = rest.split_once(" [")?;
    let (moment, rest) = rest.split_once("] ")?;
    let (_request, rest) = quoted(rest)?;
    let (status, rest) = rest.trim_start().split_once(' ')?;
    let (_bytes, rest) = rest.split_once(' ')?;
    let (_referer, rest) = quoted(rest)?;
    let (_agent, rest) = quoted(rest.trim_start())?;
    let at = stamp::common_log(moment).filter(|_| moment.contains(' '))?;
    Some(Combined { client, at, status: status.parse().ok()?, rest })
}

/// The text between the quotes that `text` begins with, and what follows. A quote inside has a backslash before it.
fn quoted(text: &str) -> Option<(&str, &str)> {
    let inside = text.strip_prefix('"')?;
    let mut escaped = false;
    let end = inside.bytes().position(|byte| {
        let ends = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        ends
    })?;
    Some((inside.get(..end)?, inside.get(end + 1..)?))
}

/// What follows "combined".
#[derive(Default)]
struct Extra<'a> {
    request_time: Option<&'a str>,
    upstream_time: Option<&'a str>,
    server: Option<&'a str>,
    session: Option<&'a str>,
    moment: Option<&'a str>,
}

impl<'a> Extra<'a> {
    fn of(mut rest: &'a str) -> Self {
        let mut extra = Extra::default();
        for _ in 0..MOST_FIELDS {
            rest = rest.trim_start();
            if rest.is_empty() {
                break;
            }
            let (label, value, after) = field(rest);
            extra.take(label, value);
            rest = after;
        }
        extra
    }

    fn take(&mut self, label: Label<'_>, value: &'a str) {
        // nginx writes times with decimals: what has no label and none of them is a length, a port, a count.
        let is_time = is_seconds(value) && value.contains('.');
        let is_last_time =
            (is_seconds(last(value)) && last(value).contains('.')) || (value == "-" && label == Label::Bare);
        let place = match label {
            Label::Named("rt" | "request_time") => &mut self.request_time,
            Label::Named("urt" | "upstream_response_time") => &mut self.upstream_time,
            Label::Named("upstream" | "upstream_addr" | "ua") => &mut self.server,
            Label::Named("session" | "cookie" | "sid") => &mut self.session,
            Label::Named("msec") => &mut self.moment,
            Label::Named(_) => return,
            Label::Bare | Label::Quoted if is_time && self.request_time.is_none() => &mut self.request_time,
            Label::Bare | Label::Quoted if is_last_time && self.upstream_time.is_none() => &mut self.upstream_time,
            Label::Bare | Label::Quoted => return,
        };
        *place = Some(value);
    }
}

/// What tells a field's meaning. A quoted "-" is some header that was not sent, a bare one a time that there was not.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Label<'a> {
    Named(&'a str),
    Bare,
    Quoted,
}

/// One field: what tells its meaning, its value, and what follows.
fn field(text: &str) -> (Label<'_>, &str, &str) {
    let is_name = |byte: u8| byte.is_ascii_lowercase() || byte == b'_';
    let named = text.split_once('=').filter(|(label, _)| !label.is_empty() && label.bytes().all(is_name));
    let (name, rest) = named.map_or((None, text), |(label, rest)| (Some(label), rest));
    let (label, (value, after)) = match quoted(rest) {
        Some(found) => (Label::Quoted, found),
        None => (Label::Bare, bare(rest)),
    };
    (name.map_or(label, Label::Named), value, after)
}

/// Up to the next space; a list of several tries, "0.010, 0.020" or "0.010 : 0.020", is one value.
fn bare(text: &str) -> (&str, &str) {
    let ends = |at: usize| !text[..at].ends_with([',', ':']) && !text[at..].starts_with(" : ");
    let end = text.match_indices(' ').map(|(at, _)| at).find(|at| ends(*at));
    text.split_at(end.unwrap_or(text.len()))
}

fn is_seconds(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') && text.parse::<f64>().is_ok()
}

/// The last of several tries: who answered.
fn last(list: &str) -> &str {
    let last = list.rsplit([',', ' ']).find(|part| !part.is_empty() && *part != ":");
    last.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const COMBINED: &str =
        r#"192.0.2.7 - - [14/Nov/2023:22:13:20 +0000] "GET /a?b=1 HTTP/1.1" 200 2326 "-" "Mozilla/5.0 (X; \"Y\" [Z])""#;

    fn exchange(line: &str) -> Exchange<'_> {
        match read(line) {
            Ok(Line::Exchange(exchange)) => exchange,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn the_documented_format_is_read() {
        let line =
            format!(r#"{COMBINED} rt=0.123 urt="0.120" upstream="10.0.0.1:80" session="abc def" msec=1700000000.500"#);
        let read = exchange(&line);
        assert_eq!(read.at, At::Ended(1_700_000_000_500_000));
        assert_eq!(read.latency, Duration::from_millis(120));
        assert_eq!(read.server.as_deref(), Some("10.0.0.1:80"));
        assert_eq!((read.session, read.client), (Some(stands_for("abc def")), stands_for("192.0.2.7")));
    }

    #[test]
    fn times_alone_are_enough() {
        let whole = At::EndedInSecond(1_700_000_000_000_000);
        for (tail, millis) in [
            (" 0.123", 123),
            (" 0.123 0.120", 120),
            (" rt=0.5", 500),
            (r#" urt="0.007""#, 7),
            (r#" "-" 0.123"#, 123),
            (r#" 0.123 "-""#, 123),
            (" 0.1, 0.2", 200),
        ] {
            let line = format!("{COMBINED}{tail}");
            let read = exchange(&line);
            assert_eq!((read.at, read.latency), (whole, Duration::from_millis(millis)), "{tail}");
            assert_eq!((read.server, read.session), (None, None));
        }
    }

    #[test]
    fn of_several_tries_the_last_counts() {
        for tail in [
            r#"urt="0.010, 0.020" upstream="10.0.0.1:80, 10.0.0.2:80""#,
            "urt=0.010, 0.020 upstream=10.0.0.1:80, 10.0.0.2:80",
            "urt=0.010 : 0.020 upstream=10.0.0.1:80 : 10.0.0.2:80",
        ] {
            let line = format!("{COMBINED} {tail}");
            let read = exchange(&line);
            assert_eq!(
                (read.latency, read.server.as_deref()),
                (Duration::from_millis(20), Some("10.0.0.2:80")),
                "{tail}"
            );
        }
    }

    #[test]
    fn odd_lines_are_left_out_or_refused() {
        let cases = [
            (format!("{COMBINED} rt=0.0 urt=\"-\""), Ok(LeftOut::NoServer)),
            (format!("{COMBINED} 0.001 -"), Ok(LeftOut::NoServer)),
            (format!("{COMBINED} 3601.0"), Ok(LeftOut::TooLong)),
            (format!("{COMBINED} 0.1").replace(" 200 ", " 101 "), Ok(LeftOut::Tunnel)),
            (COMBINED.to_owned(), Err("neither $request_time nor $upstream_response_time at the end")),
            (format!("{COMBINED} rt=soon"), Err("a duration that is no number")),
            (format!("{COMBINED} rt=-4"), Err("a duration that is none")),
            (COMBINED.replace("14/Nov", "14/Dez") + " 0.1", Err("not nginx's combined format")),
            (r#"::1 - - [14/Nov/2023:22:13:20 +0000] "GET / HTTP/1.1"#.to_owned(), Err("not nginx's combined format")),
        ];
        for (line, expected) in cases {
            assert_eq!(read(&line), expected.map(Line::LeftOut), "{line}");
        }
    }

    proptest! {
        #[test]
        fn no_line_makes_it_panic(line in "\\PC{0,80}", cut in 0usize..200) {
            let tailed = format!("{COMBINED} {line}");
            let _ = (read(&line), read(&tailed), read(tailed.get(..cut).unwrap_or(COMBINED)));
        }
    }
}
