//! The access log: one JSON object a line, written by a thread of its own.
//!
//! A worker appends to its own buffer under a lock that only the writer contends for, ten times a second. A buffer has
//! a bound: when the disk is slower than the traffic, lines are dropped and counted, and no exchange waits.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;

use crate::clock::Wall;
use crate::config::AccessLog;
use crate::metrics::{Metrics, WorkerId};
use crate::names::{Limit, Verdict};

/// A worker's unwritten lines, at most.
const MOST_BYTES: usize = 4 * 1024 * 1024;
/// How long lines wait to be written together.
const GATHER: Duration = Duration::from_millis(100);

/// Where the workers put their lines.
pub struct AccessLogs {
    buffers: Box<[Mutex<Vec<u8>>]>,
    metrics: Arc<Metrics>,
    reopen: AtomicBool,
    end: Mutex<bool>,
    ended: Condvar,
}

/// The writer, as its owner holds it.
pub struct Writer {
    logs: Arc<AccessLogs>,
    thread: Option<JoinHandle<()>>,
}

impl AccessLogs {
    /// Starts the writer. `None` where the log is off.
    pub fn start(
        destination: &AccessLog,
        workers: usize,
        metrics: Arc<Metrics>,
    ) -> io::Result<Option<(Arc<Self>, Writer)>> {
        let output = match destination {
            AccessLog::Off => return Ok(None),
            AccessLog::Stdout => Output::Stdout(io::stdout()),
            AccessLog::File(path) => Output::File(open(path)?, path.clone()),
        };
        let logs = Arc::new(AccessLogs {
            buffers: (0..workers).map(|_| Mutex::default()).collect(),
            metrics,
            reopen: AtomicBool::new(false),
            end: Mutex::new(false),
            ended: Condvar::new(),
        });
        let writing = Arc::clone(&logs);
        let thread = std::thread::Builder::new().name("access-log".into()).spawn(move || writing.write_all(output))?;
        let writer = Writer { logs: Arc::clone(&logs), thread: Some(thread) };
        Ok(Some((logs, writer)))
    }

    /// Adds one line.
    pub fn write(&self, worker: WorkerId, line: impl FnOnce(&mut Vec<u8>)) {
        let mut buffer = self.buffers[worker.0].lock();
        if buffer.len() > MOST_BYTES {
            drop(buffer);
            self.metrics.limit_reached(worker, Limit::AccessLog);
            return;
        }
        line(&mut buffer);
    }

    /// Opens the file again, after it was moved away.
    pub fn reopen(&self) {
        self.reopen.store(true, Ordering::Relaxed);
    }

    fn write_all(&self, mut output: Output) {
        let mut lines = Vec::new();
        loop {
            let last = {
                let mut end = self.end.lock();
                if !*end {
                    self.ended.wait_for(&mut end, GATHER);
                }
                *end
            };
            if self.reopen.swap(false, Ordering::Relaxed) {
                output.reopen();
            }
            for buffer in &self.buffers {
                std::mem::swap(&mut *buffer.lock(), &mut lines);
                if let Err(error) = output.write(&lines) {
                    tracing::warn!(%error, "the access log cannot be written");
                }
                lines.clear();
            }
            if last {
                return;
            }
        }
    }
}

impl Writer {
    /// Writes what is left, and ends the thread.
    pub fn finish(mut self) {
        *self.logs.end.lock() = true;
        self.logs.ended.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

enum Output {
    Stdout(io::Stdout),
    File(File, PathBuf),
}

impl Output {
    fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        if lines.is_empty() {
            return Ok(());
        }
        match self {
            Output::Stdout(stdout) => stdout.write_all(lines).and_then(|()| stdout.flush()),
            Output::File(file, _) => file.write_all(lines),
        }
    }

    fn reopen(&mut self) {
        if let Output::File(file, path) = self {
            match open(path) {
                Ok(opened) => *file = opened,
                Err(error) => tracing::warn!(%error, path = %path.display(), "the access log cannot be opened again"),
            }
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

/// What a line tells of an exchange.
pub struct Record<'a> {
    pub time: Wall,
    pub id: &'a str,
    pub client: IpAddr,
    pub listener: &'a str,
    pub route: &'a str,
    pub pool: &'a str,
    pub server: &'a str,
    pub method: &'a str,
    pub host: &'a str,
    pub path: &'a str,
    pub http2: bool,
    pub status: u16,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub duration: Duration,
    pub upstream: Duration,
    pub regret: Duration,
    pub attempts: u32,
    pub verdict: Option<Verdict>,
    pub session: Option<u64>,
    pub in_flight: u32,
    /// The place in the line of a server that was full, and the wait there.
    pub queued: Option<(u32, Duration)>,
    pub error: &'a str,
    pub detail: Option<&'a str>,
    pub traceparent: &'a str,
}

impl Record<'_> {
    /// Appends the line.
    pub fn write(&self, out: &mut Vec<u8>) {
        let mut line = Line::new(out);
        line.time(self.time);
        line.text("id", self.id);
        line.display("client", &self.client);
        line.text("listener", self.listener);
        line.text("route", self.route);
        line.text("pool", self.pool);
        line.text("server", self.server);
        line.text("method", self.method);
        line.text("host", self.host);
        line.text("path", self.path);
        line.text("protocol", if self.http2 { "HTTP/2" } else { "HTTP/1.1" });
        line.number("status", u64::from(self.status));
        line.number("bytes_in", self.bytes_in);
        line.number("bytes_out", self.bytes_out);
        line.millis("duration_ms", self.duration);
        line.millis("upstream_ms", self.upstream);
        line.millis("regret_ms", self.regret);
        line.number("attempts", u64::from(self.attempts));
        line.text("verdict", self.verdict.map_or("", Verdict::as_str));
        line.text("reason", self.verdict.map_or("", Verdict::reason));
        match self.session {
            Some(hash) => line.display("session", &format_args!("{hash:016x}")),
            None => line.text("session", ""),
        }
        line.number("in_flight", u64::from(self.in_flight));
        if let Some((position, waited)) = self.queued {
            line.number("queue_position", u64::from(position));
            line.millis("queue_ms", waited);
        }
        line.text("error", self.error);
        if let Some(detail) = self.detail {
            line.text("detail", detail);
        }
        line.text("traceparent", self.traceparent);
        line.end();
    }
}

/// One line being written.
struct Line<'a> {
    out: &'a mut Vec<u8>,
    first: bool,
}

/// RFC 3339, in microseconds.
const TIME: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]Z");

impl<'a> Line<'a> {
    fn new(out: &'a mut Vec<u8>) -> Self {
        out.push(b'{');
        Line { out, first: true }
    }

    fn key(&mut self, key: &str) {
        if !self.first {
            self.out.push(b',');
        }
        self.first = false;
        self.out.push(b'"');
        self.out.extend_from_slice(key.as_bytes());
        self.out.extend_from_slice(b"\":");
    }

    fn text(&mut self, key: &str, value: &str) {
        self.key(key);
        // Writing to memory does not fail.
        let _ = serde_json::to_writer(&mut *self.out, value);
    }

    /// A value whose text needs no escapes.
    fn display(&mut self, key: &str, value: &dyn std::fmt::Display) {
        self.key(key);
        let _ = write!(self.out, "\"{value}\"");
    }

    fn number(&mut self, key: &str, value: u64) {
        self.key(key);
        let _ = write!(self.out, "{value}");
    }

    /// Milliseconds with three decimals.
    fn millis(&mut self, key: &str, value: Duration) {
        self.key(key);
        let micros = value.as_micros();
        let _ = write!(self.out, "{}.{:03}", micros / 1_000, micros % 1_000);
    }

    fn time(&mut self, wall: Wall) {
        self.key("time");
        let time = OffsetDateTime::from_unix_timestamp_nanos(i128::from(wall.0) * 1_000);
        let time = time.unwrap_or(OffsetDateTime::UNIX_EPOCH);
        self.out.push(b'"');
        let _ = time.format_into(&mut *self.out, TIME);
        self.out.push(b'"');
    }

    fn end(self) {
        self.out.extend_from_slice(b"}\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_one_json_object_whatever_the_values() {
        let mut out = Vec::new();
        let mut line = Line::new(&mut out);
        line.time(Wall(1_700_000_000_000_042));
        line.text("path", "/a\"b\n\u{1}");
        line.number("status", 200);
        line.millis("duration_ms", Duration::from_micros(12_345));
        line.end();
        let parsed: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(parsed["time"], "2023-11-14T22:13:20.000042Z");
        assert_eq!(parsed["path"], "/a\"b\n\u{1}");
        assert_eq!(parsed["duration_ms"], 12.345);
        assert_eq!(out.iter().filter(|byte| **byte == b'\n').count(), 1);
    }
}
