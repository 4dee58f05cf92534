//! HAProxy's HTTP log format (`option httplog`), with or without what syslog puts before it.
//!
//! ```text
//! haproxy[14389]: 10.0.1.2:33317 [06/Feb/2026:12:14:14.655] web static/srv1 10/0/30/69/109 200 2750
//! JSESSIONID=a1b2 - ---- 1/1/1/1/0 0/0 {1wt.eu} {} "GET /index.html HTTP/1.1"        (one line)
//! ```
//!
//! The timers are TR/Tw/Tc/Tr/Ta: the request, the queue, the connection, the server until its head, and all together.
//! What counts as the server's time is Tr, as the rest of a response may wait for the client.

use std::borrow::Cow;

use super::line::{At, Exchange, LeftOut, Line, Pin, Read, span, stands_for};
use super::stamp;

/// Reads one line.
pub(super) fn read(line: &str) -> Read<'_> {
    let (client, at, rest) = opening(line).ok_or("no client and time as HAProxy writes them")?;
    let mut fields = rest.split_ascii_whitespace();
    let mut next = || fields.next().ok_or("too few fields");
    let (_frontend, place, timers, status) = (next()?, next()?, timers(next()?)?, next()?);
    let (_bytes, sent, set) = (next()?, next()?, next()?);
    let (_state, connections) = (next()?, next()?);
    let (pool, server) = place.split_once('/').ok_or("no backend and server")?;
    if connections.split('/').count() != 5 || status.parse::<i32>().is_err() {
        return Err("no status and counts as HAProxy writes them");
    }
    let [request, queue, connect, response] = timers;
    if server.starts_with('<') || response < 0 || queue < 0 || connect < 0 {
        return Ok(Line::LeftOut(LeftOut::NoServer));
    }
    if status == "101" {
        return Ok(Line::LeftOut(LeftOut::Tunnel));
    }
    // The cookie of a session that has just begun comes with the response.
    let cookie = [sent, set].into_iter().find(|cookie| *cookie != "-");
    Ok(Line::of(Exchange {
        at: At::Came(at.saturating_add(request.clamp(0, i64::from(i32::MAX)) * 1_000)),
        queued: span(queue as f64, 1_000.0)?,
        connecting: span(connect as f64, 1_000.0)?,
        latency: span(response as f64, 1_000.0)?,
        pool: Some(Cow::Borrowed(pool)),
        server: Some(Cow::Borrowed(server)),
        session: cookie.map(stands_for),
        client: stands_for(client),
        failed: status.starts_with('5'),
        pin: Pin::Unknown,
    }))
}

/// Bytes in which a moment has to end: a hostile line has brackets without end.
const LONGEST_MOMENT: usize = 40;

/// The client's address, the moment, and what follows.
fn opening(line: &str) -> Option<(&str, i64, &str)> {
    line.match_indices(" [").find_map(|(open, _)| {
        let (before, after) = (line.get(..open)?, line.get(open + 2..)?);
        let end = after.bytes().take(LONGEST_MOMENT).position(|byte| byte == b']')?;
        let (moment, rest) = (after.get(..end)?, after.get(end + 1..)?.strip_prefix(' ')?);
        // With a zone it would be another program's.
        let at = stamp::common_log(moment).filter(|_| !moment.contains(' '))?;
        let (address, port) = before.rsplit(' ').next()?.rsplit_once(':')?;
        port.parse::<u16>().ok()?;
        Some((address, at, rest))
    })
}

/// TR, Tw, Tc and Tr; -1 where it did not come to that.
fn timers(text: &str) -> Result<[i64; 4], &'static str> {
    let mut parts = text.split('/');
    let mut next = || parts.next().and_then(|timer| timer.trim_start_matches('+').parse::<i64>().ok());
    match (next(), next(), next(), next(), next()) {
        (Some(request), Some(queue), Some(connect), Some(response), Some(_)) if parts.next().is_none() => {
            Ok([request, queue, connect, response])
        }
        _ => Err("no timers TR/Tw/Tc/Tr/Ta"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    const GOOD: &str = "Feb  6 12:14:14 localhost haproxy[14389]: 10.0.1.2:33317 [06/Feb/2009:12:14:14.655] http-in static/srv1 10/5/30/69/109 200 2750 - - ---- 1/1/1/1/0 0/0 {1wt.eu} {} \"GET /index.html HTTP/1.1\"";

    fn exchange(line: &str) -> Exchange<'_> {
        match read(line) {
            Ok(Line::Exchange(exchange)) => exchange,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn the_example_of_its_manual_is_read() {
        let read = exchange(GOOD);
        // 2009-02-06 12:14:14.655, and the request was complete 10 ms later.
        assert_eq!(read.at, At::Came(1_233_922_454_665_000));
        assert_eq!(
            (read.queued + read.connecting, read.latency),
            (Duration::from_millis(35), Duration::from_millis(69))
        );
        assert_eq!((read.pool.as_deref(), read.server.as_deref()), (Some("static"), Some("srv1")));
        assert_eq!((read.session, read.client), (None, stands_for("10.0.1.2")));
    }

    #[test]
    fn cookies_ipv6_and_bare_lines_are_read() {
        let bare = &GOOD[GOOD.find("10.0.1.2").unwrap()..];
        assert_eq!(exchange(bare), exchange(GOOD), "no word before the address");
        let six = GOOD.replace("10.0.1.2:", "2001:db8::7:");
        assert_eq!(exchange(&six).client, stands_for("2001:db8::7"));
        let sent = GOOD.replace("2750 - -", "2750 JSESSIONID=a1 -");
        let set = GOOD.replace("2750 - -", "2750 - JSESSIONID=a1");
        assert_eq!(exchange(&sent).session, Some(stands_for("JSESSIONID=a1")));
        assert_eq!(exchange(&set).session, exchange(&sent).session);
        assert_eq!(exchange(&GOOD.replace("/109 ", "/+109 ")).latency, Duration::from_millis(69), "option logasap");
    }

    #[test]
    fn odd_lines_are_left_out_or_refused() {
        let with = |from: &str, to: &str| GOOD.replace(from, to);
        let cases = [
            (with("static/srv1", "static/<NOSRV>"), Ok(LeftOut::NoServer)),
            (with("10/5/30/69/109", "10/5/30/-1/109"), Ok(LeftOut::NoServer)),
            (with("10/5/30/69/109", "-1/-1/-1/-1/109"), Ok(LeftOut::NoServer)),
            (with(" 200 ", " 101 "), Ok(LeftOut::Tunnel)),
            (with("/69/", "/9223372036854775807/"), Ok(LeftOut::TooLong)),
            (with("10/5/30/69/109", "0/0/5007"), Err("no timers TR/Tw/Tc/Tr/Ta")),
            (with("static/srv1", "static"), Err("no backend and server")),
            (with("1/1/1/1/0", "1"), Err("no status and counts as HAProxy writes them")),
            (with("06/Feb", "06/Fev"), Err("no client and time as HAProxy writes them")),
            (GOOD[..GOOD.find("69").unwrap()].to_owned(), Err("no timers TR/Tw/Tc/Tr/Ta")),
            (GOOD[..GOOD.find(" 200").unwrap()].to_owned(), Err("too few fields")),
        ];
        for (line, expected) in cases {
            assert_eq!(read(&line), expected.map(Line::LeftOut), "{line}");
        }
    }

    proptest! {
        #[test]
        fn no_line_makes_it_panic(line in "\\PC{0,80}", cut in 0usize..200) {
            let _ = read(&line);
            let _ = read(GOOD.get(..cut).unwrap_or(GOOD));
            let _ = read(&GOOD.replace("10/5/30/69/109", &line));
        }
    }
}
