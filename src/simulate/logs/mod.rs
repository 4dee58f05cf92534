//! Access logs: ours, nginx's and HAProxy's, from lines to exchanges with their servers, sessions and latencies.
//!
//! The first line that any format takes decides on the format. A line that cannot be read is counted, and the first
//! three are shown; one that says of an exchange what no model has a use for is left out, and counted by reason. Texts
//! of a log are hashed or, where they name servers and pools, kept once; lines, names and exchanges have bounds.

mod haproxy;
mod line;
mod nginx;
mod ours;
mod stamp;

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read as _};
use std::path::Path;
use std::time::Duration;

use line::{At, Exchange, Line, Read};
pub(super) use line::{LeftOut, Pin};

use super::SimulateError;
use crate::names::words;

/// A longer line is none.
const MOST_LINE: usize = 64 * 1024;
/// Exchanges that are replayed; the rest of a longer log is left out.
const MOST_EXCHANGES: usize = 2_000_000;
/// Names of servers, and of pools.
const MOST_NAMES: usize = 1_024;
const MOST_NAME: usize = 256;
/// How far apart, in microseconds, the exchanges of one log may be.
const MOST_SPAN: i64 = 31 * 86_400 * 1_000_000;
const EXAMPLES: usize = 3;
/// How much of a line an example shows.
const EXAMPLE_CHARS: usize = 120;

words! {
    /// Whose log it is.
    Format {
        Ours = "steadfast's JSON lines",
        Nginx = "nginx's combined format with times",
        Haproxy = "HAProxy's HTTP format",
    }
}

words! {
    /// What tells sessions apart.
    KnownBy {
        Field = "the log's `session`",
        Cookie = "the captured cookie",
        Address = "the client's address, as the log has no cookie",
        Nothing = "nothing: the log has no sessions",
    }
}

/// A log as it was read.
pub(super) struct Log {
    pub format: Format,
    pub known_by: KnownBy,
    /// The log's moments are whole seconds, and its lines were spread over them.
    pub was_spread: bool,
    /// In the order of coming; moments are microseconds since 1970.
    pub exchanges: Vec<Logged>,
    /// By the numbers that exchanges have.
    pub servers: Vec<Box<str>>,
    /// The pool that the exchanges are of, where the log has pools.
    pub pool: Option<Box<str>>,
    pub lines: u64,
    pub left_out: [u64; LeftOut::ALL.len()],
    pub unreadable: Unreadable,
}

/// One exchange.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Logged {
    pub came: i64,
    /// From coming to the server's having it: in a line of the proxy, and then for a connection.
    pub queued: Duration,
    pub connecting: Duration,
    pub latency: Duration,
    pub server: Option<u16>,
    pub session: Option<u64>,
    pub pin: Pin,
    pub failed: bool,
    /// Session or client: what `hash` hashes.
    pub key: u64,
    pool: Option<u16>,
}

#[cfg(test)]
impl Logged {
    /// An exchange that did not wait at the proxy.
    pub(super) fn new(came: i64, latency: Duration, server: Option<u16>, session: Option<u64>) -> Self {
        let key = session.unwrap_or_default();
        let (queued, connecting, pin) = (Duration::ZERO, Duration::ZERO, Pin::Unknown);
        Logged { came, queued, connecting, latency, server, session, pin, failed: false, key, pool: None }
    }
}

/// Lines that could not be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Unreadable {
    pub count: u64,
    pub examples: Vec<Example>,
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Example {
    pub number: u64,
    pub why: &'static str,
    /// Its beginning, with nothing in it that a terminal obeys.
    pub text: String,
}

impl Unreadable {
    fn add(&mut self, number: u64, why: &'static str, text: &str) {
        self.count += 1;
        if self.examples.len() < EXAMPLES {
            self.examples.push(Example { number, why, text: shown(text) });
        }
    }
}

/// The beginning of a line, with its control characters spelt out.
fn shown(text: &str) -> String {
    let mut shown = String::new();
    for each in text.chars().take(EXAMPLE_CHARS) {
        match each {
            '"' | '\'' | '\\' => shown.push(each),
            other => shown.extend(other.escape_debug()),
        }
    }
    if text.chars().nth(EXAMPLE_CHARS).is_some() {
        shown.push_str("...");
    }
    shown
}

/// Reads the file, of which only `pool` is wanted; without that, the pool with the most exchanges is.
/// `progress` hears the share that has been read.
pub(super) fn read(
    path: &Path,
    pool: Option<&str>,
    known: &[Box<str>],
    progress: &dyn Fn(f64),
) -> Result<Log, SimulateError> {
    let failed = |error| SimulateError::Read { path: path.to_owned(), error };
    let file = File::open(path).map_err(failed)?;
    let size = file.metadata().map_err(failed)?.len().max(1);
    let mut done = 0;
    let heard = |bytes: usize| {
        done += bytes as u64;
        progress((done as f64 / size as f64).min(1.0));
    };
    gather(BufReader::new(file), heard).map_err(failed)?.finish(path, pool, known)
}

/// Takes in all lines.
fn gather(mut reader: impl BufRead, mut heard: impl FnMut(usize)) -> io::Result<Gathered> {
    let mut gathered = Gathered::default();
    let (mut line, mut unheard) = (Vec::new(), 0);
    while let Some(bytes) = next_line(&mut reader, &mut line)? {
        gathered.take(&line);
        unheard += bytes;
        if unheard >= 1 << 20 {
            heard(std::mem::take(&mut unheard));
        }
    }
    Ok(gathered)
}

/// Fills `line` with the next one, or with a little more than the bound of one that is too long; says how many bytes it had.
fn next_line(reader: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<Option<usize>> {
    line.clear();
    let bytes = reader.by_ref().take(MOST_LINE as u64 + 1).read_until(b'\n', line)?;
    if bytes == 0 {
        return Ok(None);
    }
    let whole = line.last() == Some(&b'\n');
    let skipped = if whole || bytes <= MOST_LINE { 0 } else { reader.skip_until(b'\n')? };
    Ok(Some(bytes + skipped))
}

/// What was gathered so far.
#[derive(Default)]
struct Gathered {
    /// The number of the line at hand, and how many of them had anything in them.
    number: u64,
    lines: u64,
    format: Option<Format>,
    servers: Names,
    pools: Names,
    /// With the moment as the line has it, and the client: who knows yet what sessions are known by?
    found: Vec<(At, u64, Logged)>,
    left_out: [u64; LeftOut::ALL.len()],
    unreadable: Unreadable,
}

/// Names with their numbers.
#[derive(Default)]
struct Names {
    list: Vec<Box<str>>,
    numbers: HashMap<Box<str>, u16>,
}

impl Names {
    fn number(&mut self, name: &str) -> Result<u16, &'static str> {
        if let Some(number) = self.numbers.get(name) {
            return Ok(*number);
        }
        let number = u16::try_from(self.list.len()).unwrap_or(u16::MAX);
        if name.len() > MOST_NAME || usize::from(number) >= MOST_NAMES {
            return Err("one name too many of a server or pool, or one too long");
        }
        self.list.push(name.into());
        self.numbers.insert(name.into(), number);
        Ok(number)
    }
}

impl Format {
    fn read(self, line: &str) -> Read<'_> {
        match self {
            Format::Ours => ours::read(line),
            Format::Nginx => nginx::read(line),
            Format::Haproxy => haproxy::read(line),
        }
    }
}

impl Gathered {
    fn take(&mut self, line: &[u8]) {
        self.number += 1;
        let text = String::from_utf8_lossy(line);
        let text = text.trim();
        if text.is_empty() {
            return;
        }
        self.lines += 1;
        let read = if line.len() > MOST_LINE { Err("longer than 64 KiB") } else { self.read(text) };
        let taken = read.and_then(|line| match line {
            Line::Exchange(exchange) => self.add(exchange),
            Line::LeftOut(why) => Ok(Some(why)),
        });
        match taken {
            Ok(None) => {}
            Ok(Some(why)) => self.left_out[why.index()] += 1,
            Err(why) => self.unreadable.add(self.number, why, text),
        }
    }

    /// Reads it by the format that the log has, or finds out which that is.
    fn read<'l>(&mut self, line: &'l str) -> Read<'l> {
        if let Some(format) = self.format {
            return format.read(line);
        }
        let unknown = Err("in no format that is known");
        let taken = Format::ALL.iter().find_map(|format| Some((*format, format.read(line).ok()?)));
        taken.map_or(unknown, |(format, line)| {
            self.format = Some(format);
            Ok(line)
        })
    }

    /// Keeps an exchange, or says why it does not take part.
    fn add(&mut self, exchange: Exchange<'_>) -> Result<Option<LeftOut>, &'static str> {
        let (At::Came(moment) | At::Ended(moment) | At::EndedInSecond(moment)) = exchange.at;
        if self.found.len() >= MOST_EXCHANGES {
            return Ok(Some(LeftOut::TooMany));
        }
        let server = exchange.server.map(|name| self.servers.number(&name)).transpose()?;
        let pool = exchange.pool.map(|name| self.pools.number(&name)).transpose()?;
        let logged = Logged {
            came: moment,
            queued: exchange.queued,
            connecting: exchange.connecting,
            latency: exchange.latency,
            server,
            session: exchange.session,
            pin: exchange.pin,
            failed: exchange.failed,
            key: exchange.session.unwrap_or(exchange.client),
            pool,
        };
        self.found.push((exchange.at, exchange.client, logged));
        Ok(None)
    }

    fn finish(mut self, path: &Path, wanted: Option<&str>, known: &[Box<str>]) -> Result<Log, SimulateError> {
        let file = super::file_name(path);
        if self.lines == 0 {
            return Err(SimulateError::EmptyLog { file });
        }
        let Some(format) = self.format else {
            let first = self.unreadable.examples.first().map(|example| example.text.clone()).unwrap_or_default();
            return Err(SimulateError::NoFormat { file, first });
        };
        self.leave_out_what_is_far_away();
        let pool = self.only_pool(wanted, known);
        if self.found.is_empty() {
            return Err(SimulateError::NothingToReplay { file, why: self.why_nothing(wanted) });
        }
        let was_spread = self.spread_seconds();
        let known_by = self.tell_sessions(format);
        let mut exchanges: Vec<Logged> = self.found.into_iter().map(|(_, _, logged)| logged).collect();
        // Stable: exchanges of one moment stay in the order of their lines.
        exchanges.sort_by_key(|logged| logged.came);
        Ok(Log {
            format,
            known_by,
            was_spread,
            exchanges,
            servers: self.servers.list,
            pool,
            lines: self.lines,
            left_out: self.left_out,
            unreadable: self.unreadable,
        })
    }

    /// Leaves the exchanges of one pool; says which.
    /// A line with an odd date, be it the first, must not cost the others.
    fn leave_out_what_is_far_away(&mut self) {
        let mut moments: Vec<i64> = self.found.iter().map(|(_, _, logged)| logged.came).collect();
        if moments.is_empty() {
            return;
        }
        let middle = moments.len() / 2;
        let middle = *moments.select_nth_unstable(middle).1;
        let before = self.found.len();
        self.found.retain(|(_, _, logged)| logged.came.abs_diff(middle) <= MOST_SPAN.unsigned_abs());
        self.left_out[LeftOut::FarAway.index()] += (before - self.found.len()) as u64;
    }

    /// Keeps the exchanges of one pool: the one wanted, else the busiest, of those that the configuration knows if it knows
    /// any.
    fn only_pool(&mut self, wanted: Option<&str>, known: &[Box<str>]) -> Option<Box<str>> {
        let mut counts = vec![0_u64; self.pools.list.len()];
        for pool in self.found.iter().filter_map(|(_, _, logged)| logged.pool) {
            counts[usize::from(pool)] += 1;
        }
        // Of two that are equal the first named.
        let is_known = |at: &usize| counts[*at] > 0 && known.contains(&self.pools.list[*at]);
        let busiest = (0..counts.len()).rev().max_by_key(|at| (is_known(at), counts[*at]))?;
        let chosen = match wanted {
            Some(name) => self.pools.list.iter().position(|known| **known == *name),
            None => Some(busiest),
        };
        let before = self.found.len();
        self.found.retain(|(_, _, logged)| logged.pool.map(usize::from) == chosen && chosen.is_some());
        self.left_out[LeftOut::OtherPool.index()] += (before - self.found.len()) as u64;
        chosen.map(|at| self.pools.list[at].clone())
    }

    fn why_nothing(&self, wanted: Option<&str>) -> String {
        let most = LeftOut::ALL.iter().max_by_key(|why| self.left_out[why.index()]).copied();
        match (most.filter(|why| self.left_out[why.index()] > 0), wanted) {
            (Some(LeftOut::OtherPool), Some(wanted)) => {
                let known: Vec<String> =
                    self.pools.list.iter().map(|name| format!("`{}`", name.escape_debug())).collect();
                format!("none is of the pool `{wanted}`; the log has {}", known.join(", "))
            }
            (Some(why), _) => format!("what could be read is {why}"),
            (None, _) => "no line could be read".to_owned(),
        }
    }

    /// Turns every moment into the one of coming. The lines of a whole second are spread evenly over it, in their order.
    /// Says whether there are any.
    fn spread_seconds(&mut self) -> bool {
        let mut seconds: HashMap<i64, (i64, i64)> = HashMap::new();
        for (at, ..) in &self.found {
            if let At::EndedInSecond(second) = at {
                seconds.entry(*second).or_default().1 += 1;
            }
        }
        for (at, _, logged) in &mut self.found {
            let ended = match *at {
                At::Came(_) => continue,
                At::Ended(moment) => moment,
                At::EndedInSecond(second) => {
                    let (turn, of) = seconds.entry(second).or_default();
                    *turn += 1;
                    second + (*turn * 2 - 1) * 500_000 / (*of).max(1)
                }
            };
            logged.came = ended - i64::try_from(logged.latency.as_micros()).unwrap_or(0);
        }
        !seconds.is_empty()
    }

    /// Where a log of another proxy has no cookies, its sessions are addresses.
    fn tell_sessions(&mut self, format: Format) -> KnownBy {
        let named = self.found.iter().any(|(_, _, logged)| logged.session.is_some());
        match (format, named) {
            (Format::Ours, true) => KnownBy::Field,
            (Format::Ours, false) => KnownBy::Nothing,
            (_, true) => KnownBy::Cookie,
            (_, false) => {
                self.found.iter_mut().for_each(|(_, client, logged)| logged.session = Some(*client));
                KnownBy::Address
            }
        }
    }
}

#[cfg(test)]
mod tests;
