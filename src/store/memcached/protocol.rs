//! The words of memcached: commands as they are sent, answers as they are read.
//!
//! Only meta commands are spoken (`mg`, `ms`, `md`; `protocol.txt` of memcached, tried with 1.6.18). Each carries an
//! opaque number that the node says again, so an answer tells which command it is for. Refusals are the exception: a
//! line of `SERVER_ERROR` names no command. It is taken for the oldest one without an answer; if it was not, the next
//! answer shows.
//!
//! Nothing is asked quietly (`q`): every command has an answer. A line and a value have bounds, and what is no answer
//! ends the connection.

use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};

/// The longest line of an answer; memcached itself takes no longer one.
const MOST_LINE: usize = 2 << 10;
/// The largest value: what memcached takes with its usual settings.
pub(super) const MOST_VALUE: usize = 1 << 20;
/// What is quoted of a refusal.
const MOST_QUOTED: usize = 120;
/// Up to here a life is told in seconds; what is larger, memcached takes for a point in time.
const MOST_SECONDS: u64 = 30 * 24 * 3_600;
/// The last point in time that memcached can be told, in seconds since 1970.
const LATEST: u64 = i32::MAX as u64;

/// What a node is told to do with one record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Command {
    /// Its value, the number of its writes as the node counts them (`cas`), and its life.
    Get {
        key: String,
    },
    /// The number only.
    Look {
        key: String,
    },
    /// It lives on, if it is there.
    Touch {
        key: String,
        expiry: u64,
    },
    Store {
        key: String,
        value: Bytes,
        expiry: u64,
        only: Only,
    },
    /// It goes; where a number is given, only if nobody has written to it since.
    Delete {
        key: String,
        only_if: Option<u64>,
    },
}

/// Under what condition a record is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Only {
    Absent,
    /// Nobody has written to it since its number was this.
    Unchanged(u64),
}

impl Command {
    /// Adds it to what is to be sent.
    pub(super) fn write(&self, opaque: u64, out: &mut BytesMut) {
        let line = match self {
            Command::Get { key } => format!("mg {key} v t c O{opaque}\r\n"),
            Command::Look { key } => format!("mg {key} c O{opaque}\r\n"),
            Command::Touch { key, expiry } => format!("mg {key} T{expiry} O{opaque}\r\n"),
            Command::Store { key, value, expiry, only: Only::Absent } => {
                format!("ms {key} {} T{expiry} ME c O{opaque}\r\n", value.len())
            }
            Command::Store { key, value, expiry, only: Only::Unchanged(cas) } => {
                format!("ms {key} {} T{expiry} C{cas} O{opaque}\r\n", value.len())
            }
            Command::Delete { key, only_if: None } => format!("md {key} O{opaque}\r\n"),
            Command::Delete { key, only_if: Some(cas) } => format!("md {key} C{cas} O{opaque}\r\n"),
        };
        out.extend_from_slice(line.as_bytes());
        if let Command::Store { value, .. } = self {
            out.extend_from_slice(value);
            out.extend_from_slice(b"\r\n");
        }
    }

    /// Whether an answer can be one to this command.
    pub(super) fn fits(&self, reply: &Reply) -> bool {
        match (self, reply.code) {
            (Command::Get { .. }, Code::Value) => reply.cas.is_some() && reply.left.is_some(),
            (Command::Look { .. } | Command::Store { only: Only::Absent, .. }, Code::Done) => reply.cas.is_some(),
            (Command::Get { .. } | Command::Look { .. } | Command::Touch { .. }, Code::Miss) => true,
            (Command::Store { only: Only::Absent, .. }, code) => code == Code::NotStored,
            (Command::Store { .. }, code) => !matches!(code, Code::Value | Code::Miss),
            (Command::Delete { .. }, code) => matches!(code, Code::Done | Code::NotFound | Code::Exists),
            (Command::Touch { .. }, code) => code == Code::Done,
            (Command::Get { .. } | Command::Look { .. }, _) => false,
        }
    }
}

/// A life as memcached is told it: in whole seconds, at least one, as none would be for ever. A long one is told as the
/// point in time where it ends; where that is past what memcached can be told, thirty days have to do.
pub(super) fn expiry(life: Duration, now: u64) -> u64 {
    let seconds = life.as_secs().saturating_add(u64::from(life.subsec_nanos() > 0)).max(1);
    let end = now.saturating_add(seconds).min(LATEST);
    if seconds > MOST_SECONDS && end > now.saturating_add(MOST_SECONDS) { end } else { seconds.min(MOST_SECONDS) }
}

crate::names::words! {
    /// How an answer begins.
    Code {
        Value = "VA",
        Done = "HD",
        Miss = "EN",
        NotStored = "NS",
        Exists = "EX",
        NotFound = "NF",
    }
}

/// An answer to one command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reply {
    pub code: Code,
    /// Which command it is for.
    pub opaque: u64,
    /// The number of the record's writes.
    pub cas: Option<u64>,
    /// Until the record is forgotten.
    pub left: Option<Duration>,
    pub value: Bytes,
}

/// The node says no, in its own words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal(pub String);

impl Refusal {
    /// Whether it has no room.
    pub(super) fn is_full(&self) -> bool {
        self.0.contains("out of memory") || self.0.contains("too large")
    }
}

/// What came back for one command.
pub(super) type Told = Result<Reply, Refusal>;

/// What came back is no answer: nothing on this connection can be believed any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Nonsense {
    Unreadable,
    /// The node makes no sense of what it was told.
    Misunderstood(Refusal),
}

/// Takes the next answer; none: not all of it is there yet.
pub(super) fn take(input: &mut BytesMut) -> Result<Option<Told>, Nonsense> {
    let Some((line, rest)) = split_line(input)? else { return Ok(None) };
    let mut whole = line.len() + 2;
    if line.starts_with(b"SERVER_ERROR") {
        let refusal = quoted(line);
        input.advance(whole);
        return Ok(Some(Err(refusal)));
    }
    if line.starts_with(b"CLIENT_ERROR") || line.starts_with(b"ERROR") {
        return Err(Nonsense::Misunderstood(quoted(line)));
    }
    let (mut reply, length) = std::str::from_utf8(line).ok().and_then(read_line).ok_or(Nonsense::Unreadable)?;
    if let Some(length) = length {
        let Some((value, rest)) = rest.split_at_checked(length) else { return Ok(None) };
        let Some(end) = rest.first_chunk::<2>() else { return Ok(None) };
        if end != b"\r\n" {
            return Err(Nonsense::Unreadable);
        }
        // A copy: a part of the buffer would keep all of it, for as long as somebody remembers the record.
        reply.value = Bytes::copy_from_slice(value);
        whole += length + 2;
    }
    input.advance(whole);
    Ok(Some(Ok(reply)))
}

/// A line without its end, and what follows it.
type LineAndRest<'a> = (&'a [u8], &'a [u8]);

/// The first line, and what comes behind it.
fn split_line(input: &[u8]) -> Result<Option<LineAndRest<'_>>, Nonsense> {
    let begin = input.get(..MOST_LINE).unwrap_or(input);
    match memchr::memmem::find(begin, b"\r\n") {
        Some(end) => Ok(input.split_at_checked(end).zip(input.get(end + 2..)).map(|((line, _), rest)| (line, rest))),
        None if begin.len() < MOST_LINE => Ok(None),
        None => Err(Nonsense::Unreadable),
    }
}

/// An answer without its value, and how long that is.
fn read_line(line: &str) -> Option<(Reply, Option<usize>)> {
    let mut words = line.split(' ');
    let code = Code::from_word(words.next()?)?;
    let length = match code {
        Code::Value => Some(usize::try_from(number(words.next()?)?).ok().filter(|length| *length <= MOST_VALUE)?),
        _ => None,
    };
    let (mut opaque, mut cas, mut left) = (None, None, None);
    for flag in words {
        let (name, token) = flag.split_at_checked(1)?;
        match name {
            "O" => set_once(&mut opaque, number(token)?)?,
            "c" => set_once(&mut cas, number(token)?)?,
            "t" => set_once(&mut left, life(token)?)?,
            // What somebody else's command left on the record (stale, won): it says nothing to us.
            _ => {}
        }
    }
    Some((Reply { code, opaque: opaque?, cas, left, value: Bytes::new() }, length))
}

fn set_once<T>(slot: &mut Option<T>, value: T) -> Option<()> {
    slot.replace(value).is_none().then_some(())
}

/// Digits only: Rust's own parser takes a sign too.
fn number(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

/// The seconds that a record has left. One without an end (`-1`) is not ours; it is not to be kept any longer for that.
fn life(text: &str) -> Option<Duration> {
    match text.strip_prefix('-') {
        Some(digits) => number(digits).map(|_| Duration::ZERO),
        // So that nobody's sums overflow.
        None => number(text).map(|seconds| Duration::from_secs(seconds.min(LATEST))),
    }
}

fn quoted(line: &[u8]) -> Refusal {
    let printable = |byte: &u8| if byte.is_ascii_graphic() || *byte == b' ' { char::from(*byte) } else { '?' };
    Refusal(line.iter().take(MOST_QUOTED).map(printable).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn reply(code: Code, opaque: u64) -> Reply {
        Reply { code, opaque, cas: None, left: None, value: Bytes::new() }
    }

    fn read(bytes: &[u8]) -> Result<Option<Told>, Nonsense> {
        take(&mut BytesMut::from(bytes))
    }

    #[test]
    fn answers_are_read() {
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        for (text, expected) in [
            ("EN O7\r\n", reply(Code::Miss, 7)),
            ("HD O7\r\n", reply(Code::Done, 7)),
            ("HD c12 O7\r\n", Reply { cas: Some(12), ..reply(Code::Done, 7) }),
            ("HD O7 c12\r\n", Reply { cas: Some(12), ..reply(Code::Done, 7) }),
            ("NS O0\r\n", reply(Code::NotStored, 0)),
            ("EX O18446744073709551615\r\n", reply(Code::Exists, u64::MAX)),
            ("NF O7\r\n", reply(Code::NotFound, 7)),
            (
                "VA 3 t59 c1 O5\r\nabc\r\n",
                Reply { cas: Some(1), left: seconds(59), value: "abc".into(), ..reply(Code::Value, 5) },
            ),
            ("VA 0 t-1 c1 O5\r\n\r\n", Reply { cas: Some(1), left: seconds(0), ..reply(Code::Value, 5) }),
            ("VA 4 O5\r\n\r\n\r\n\r\n", Reply { value: "\r\n\r\n".into(), ..reply(Code::Value, 5) }),
            ("HD t18446744073709551615 O5\r\n", Reply { left: seconds(LATEST), ..reply(Code::Done, 5) }),
            ("HD W X Z kname s3 f0 O5\r\n", reply(Code::Done, 5)),
        ] {
            assert_eq!(read(text.as_bytes()), Ok(Some(Ok(expected))), "{text:?}");
        }
    }

    #[test]
    fn refusals_are_read_and_what_the_node_does_not_understand_ends_it_all() {
        let refusal = |text: &str| Refusal(text.to_owned());
        let full = "SERVER_ERROR out of memory storing object";
        assert_eq!(read(format!("{full}\r\n").as_bytes()), Ok(Some(Err(refusal(full)))));
        assert!(refusal(full).is_full() && refusal("SERVER_ERROR object too large for cache").is_full());
        assert!(!refusal("SERVER_ERROR temporary failure").is_full());
        for line in ["ERROR", "CLIENT_ERROR bad data chunk", "CLIENT_ERROR unauthenticated"] {
            let misunderstood = Nonsense::Misunderstood(refusal(line));
            assert_eq!(read(format!("{line}\r\n").as_bytes()), Err(misunderstood), "{line}");
        }
        let long = [&b"SERVER_ERROR \x1b[31m"[..], &[b'x'; 500][..], b"\r\n"].concat();
        let Ok(Some(Err(Refusal(quoted)))) = read(&long) else { panic!("it is a refusal") };
        assert!(quoted.len() == MOST_QUOTED && quoted.starts_with("SERVER_ERROR ?[31mxxx"), "{quoted}");
    }

    #[test]
    fn whatever_else_comes_is_no_answer() {
        let largest = MOST_VALUE + 1;
        for text in [
            "\r\n",
            " \r\n",
            "HD\r\n",
            "HD \r\n",
            "HD  O7\r\n",
            "HD O7 \r\n",
            "HD O\r\n",
            "HD O+7\r\n",
            "HD O-7\r\n",
            "HD O7x\r\n",
            "HD O18446744073709551616\r\n",
            "HD O7 O7\r\n",
            "HD c1 c2 O7\r\n",
            "HD c O7\r\n",
            "HD t O7\r\n",
            "HD t- O7\r\n",
            "HD t1.5 O7\r\n",
            "HD é O7\r\n",
            "hd O7\r\n",
            "OK O7\r\n",
            "MN\r\n",
            "EN\r\n",
            "VA\r\n",
            "VA O7\r\n",
            "VA -1 O7\r\n\r\n",
            "VA 3 O7\r\nabcd\r\n",
            "VA 3 O7\r\nabc\n\r\n",
            "VA 3\r\nabc\r\n",
            &format!("VA {largest} O7\r\n"),
            "VA 99999999999999999999 O7\r\n",
            "VALUE key 0 3\r\nabc\r\nEND\r\n",
            "END\r\n",
            "STORED\r\n",
            "HTTP/1.1 400 Bad Request\r\n\r\n",
            "-ERR unknown command\r\n",
            &"x".repeat(MOST_LINE),
            &format!("HD O{}\r\n", "0".repeat(MOST_LINE)),
        ] {
            assert_eq!(read(text.as_bytes()), Err(Nonsense::Unreadable), "{text:?}");
        }
        assert_eq!(read(b"HD \xff O7\r\n"), Err(Nonsense::Unreadable));
    }

    #[test]
    fn an_answer_is_taken_once_all_of_it_is_there_and_nothing_behind_it() {
        let text = b"VA 5 t9 c3 O1\r\nab\r\nc\r\nEN O2\r\nSERVER_ERROR x\r\nHD O4\r\n";
        let mut input = BytesMut::new();
        let mut taken = Vec::new();
        for byte in text {
            input.extend_from_slice(&[*byte]);
            taken.extend(take(&mut input).unwrap());
        }
        let expected = [
            Ok(Reply {
                cas: Some(3),
                left: Some(Duration::from_secs(9)),
                value: "ab\r\nc".into(),
                ..reply(Code::Value, 1)
            }),
            Ok(reply(Code::Miss, 2)),
            Err(Refusal("SERVER_ERROR x".to_owned())),
            Ok(reply(Code::Done, 4)),
        ];
        assert_eq!((taken.as_slice(), input.len()), (&expected[..], 0));
    }

    #[test]
    fn commands_are_written() {
        let key = || "sf1:{7}:d:x".to_owned();
        let value = || Bytes::from_static(b"one");
        let absent = Command::Store { key: key(), value: value(), expiry: 60, only: Only::Absent };
        let unchanged = Command::Store { key: key(), value: value(), expiry: 1, only: Only::Unchanged(9) };
        for (command, expected) in [
            (Command::Get { key: key() }, "mg sf1:{7}:d:x v t c O5\r\n"),
            (Command::Look { key: key() }, "mg sf1:{7}:d:x c O5\r\n"),
            (Command::Touch { key: key(), expiry: 60 }, "mg sf1:{7}:d:x T60 O5\r\n"),
            (absent, "ms sf1:{7}:d:x 3 T60 ME c O5\r\none\r\n"),
            (unchanged, "ms sf1:{7}:d:x 3 T1 C9 O5\r\none\r\n"),
            (Command::Delete { key: key(), only_if: None }, "md sf1:{7}:d:x O5\r\n"),
            (Command::Delete { key: key(), only_if: Some(9) }, "md sf1:{7}:d:x C9 O5\r\n"),
        ] {
            let mut out = BytesMut::new();
            command.write(5, &mut out);
            assert_eq!(out, expected);
        }
    }

    #[test]
    fn each_command_has_answers_of_its_own() {
        let key = String::new;
        let store = |only| Command::Store { key: key(), value: Bytes::new(), expiry: 1, only };
        for (command, expected) in [
            (Command::Get { key: key() }, "VA EN"),
            (Command::Look { key: key() }, "HD EN"),
            (Command::Touch { key: key(), expiry: 1 }, "HD EN"),
            (store(Only::Absent), "HD NS"),
            (store(Only::Unchanged(1)), "HD NS EX NF"),
            (Command::Delete { key: key(), only_if: None }, "HD EX NF"),
        ] {
            let all = |code: Code| Reply { cas: Some(1), left: Some(Duration::ZERO), ..reply(code, 0) };
            let fitting: Vec<&str> =
                Code::ALL.iter().filter(|code| command.fits(&all(**code))).map(|code| code.as_str()).collect();
            assert_eq!(fitting.join(" "), expected, "{command:?}");
        }
        assert!(!Command::Get { key: key() }.fits(&Reply { cas: Some(1), ..reply(Code::Value, 0) }));
        assert!(!Command::Look { key: key() }.fits(&reply(Code::Done, 0)));
        assert!(!store(Only::Absent).fits(&reply(Code::Done, 0)));
    }

    #[test]
    fn a_life_is_whole_seconds_or_the_moment_when_it_ends() {
        let now = 1_800_000_000;
        for (life, expected) in [
            (Duration::ZERO, 1),
            (Duration::from_nanos(1), 1),
            (Duration::from_millis(1_000), 1),
            (Duration::from_millis(1_001), 2),
            (Duration::from_secs(MOST_SECONDS), MOST_SECONDS),
            (Duration::from_secs(MOST_SECONDS) + Duration::from_nanos(1), now + MOST_SECONDS + 1),
            (Duration::from_secs(MOST_SECONDS + 7), now + MOST_SECONDS + 7),
            (Duration::MAX, LATEST),
        ] {
            assert_eq!(expiry(life, now), expected, "{life:?}");
        }
        let year = Duration::from_secs(365 * 24 * 3_600);
        for now in [LATEST - MOST_SECONDS, LATEST, LATEST + 1, u64::MAX] {
            assert_eq!(expiry(year, now), MOST_SECONDS, "{now}");
            assert_eq!(expiry(Duration::from_secs(5), now), 5, "{now}");
        }
    }

    /// Takes what there is; what is left has to be the end of it.
    fn take_all(bytes: &[u8]) {
        let mut input = BytesMut::from(bytes);
        while let Ok(Some(_)) = take(&mut input) {}
        assert!(bytes.ends_with(&input), "{bytes:?}");
    }

    proptest! {
        #[test]
        fn garbage_is_no_answer_and_harms_nobody(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            take_all(&bytes);
        }

        #[test]
        fn what_looks_like_an_answer_harms_nobody(
            text in "(VA|HD|EN|NS|EX|NF)( [0-9]{1,4}| [OctWX]-?[0-9]{0,21}){0,5}\r\n.{0,40}",
        ) {
            take_all(text.as_bytes());
        }

        #[test]
        fn any_value_is_read_back(
            value in proptest::collection::vec(any::<u8>(), 0..3_000),
            cas in any::<u64>(),
            cut in any::<usize>(),
        ) {
            let head = format!("VA {} t60 c{cas} O1\r\n", value.len());
            let whole = [head.as_bytes(), &value, b"\r\n"].concat();
            let (first, second) = whole.split_at(cut % whole.len());
            let mut input = BytesMut::from(first);
            prop_assert_eq!(take(&mut input), Ok(None));
            input.extend_from_slice(second);
            let Ok(Some(Ok(reply))) = take(&mut input) else { panic!("it is whole") };
            prop_assert_eq!((&reply.value[..], reply.cas, input.len()), (&value[..], Some(cas), 0));
        }
    }
}
