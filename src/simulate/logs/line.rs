//! What a line of any format tells.

use std::borrow::Cow;
use std::time::Duration;

use xxhash_rust::xxh3::xxh3_64;

use crate::names::words;

/// Who takes longer than this is a tunnel or a stream by another name.
const LONGEST: Duration = Duration::from_secs(3_600);

/// What a line is: an exchange that a server answered, or one that a model has no use for. The error says what is wrong.
pub(super) type Read<'a> = Result<Line<'a>, &'static str>;

/// A line that could be read.
#[derive(Debug, PartialEq)]
pub(super) enum Line<'a> {
    Exchange(Exchange<'a>),
    LeftOut(LeftOut),
}

/// An exchange that a server answered.
#[derive(Debug, PartialEq)]
pub(super) struct Exchange<'a> {
    pub at: At,
    /// How long it waited in a line of the proxy.
    pub queued: Duration,
    /// And then for a connection to the server, where the log tells the two apart.
    pub connecting: Duration,
    /// How long the server took.
    pub latency: Duration,
    pub pool: Option<Cow<'a, str>>,
    pub server: Option<Cow<'a, str>>,
    /// What stands for the session, where the line names one.
    pub session: Option<u64>,
    /// What stands for the client's address.
    pub client: u64,
    /// It was no answer: 500 and above.
    pub failed: bool,
    pub pin: Pin,
}

/// What a line says of its session's pin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Pin {
    #[default]
    Unknown,
    /// It is pinned to the line's server, and was before.
    Old,
    /// It was given to the line's server as a newcomer.
    New,
}

/// The moment that a line names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum At {
    /// It came then.
    Came(i64),
    /// It was answered then.
    Ended(i64),
    /// It was answered within the second that begins then.
    EndedInSecond(i64),
}

words! {
    /// Why an exchange does not take part.
    LeftOut {
        NoServer = "answered by no server",
        Tunnel = "tunnels",
        TooLong = "longer than an hour",
        OtherPool = "of other pools",
        FarAway = "more than 31 days from the middle one",
        TooMany = "past the first 2,000,000",
    }
}

/// A span in seconds or a fraction of them.
pub(super) fn span(value: f64, per_second: f64) -> Result<Duration, &'static str> {
    Duration::try_from_secs_f64(value / per_second).map_err(|_| "a duration that is none")
}

impl<'a> Line<'a> {
    /// The exchange, unless it took so long that it is none.
    pub(super) fn of(exchange: Exchange<'a>) -> Self {
        let too_long = [exchange.latency, exchange.queued, exchange.connecting].iter().any(|span| *span > LONGEST);
        if too_long { Line::LeftOut(LeftOut::TooLong) } else { Line::Exchange(exchange) }
    }
}

/// What stands for a text from the log: texts themselves are not kept.
pub(super) fn stands_for(text: &str) -> u64 {
    xxh3_64(text.as_bytes())
}
