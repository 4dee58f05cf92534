//! What is said to a node, and what its replies mean. No connection here: words only.
//!
//! An ask is one thing, or several that have nothing to do with each other: its *parts*. A part has as many commands as
//! any other of its ask, all about one slot, and a reply of its own to each.

use std::sync::LazyLock;
use std::time::Duration;

use bytes::Bytes;
use redis::{Pipeline, ServerError, ServerErrorKind, Value};

use crate::session::store::{Answer, Ask, Change, Entry, Guard, Key, Put};

/// Longer than any session, and short enough that Redis can add it to the time of day.
const LONGEST_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// No record of ours is larger. What somebody else has put in its place may be, and is not read to its end.
const LARGEST_RECORD: usize = 32 << 20;

/// Bytes of the revision that every record begins with.
const REVISION_BYTES: usize = size_of::<u64>();

/// Makes a change. KEYS: the guard's record, what is written, what is deleted. ARGV: the revision that the guard's record
/// must have, or nothing if there must be no such record; then a value and its milliseconds for each record written.
const CHANGE_SOURCE: &str = "\
local guard, expected = KEYS[1], ARGV[1]
if expected == '' then
  if redis.call('EXISTS', guard) == 1 then
    return 0
  end
elseif redis.call('GETRANGE', guard, 0, 7) ~= expected then
  return 0
end
local puts = (#ARGV - 1) / 2
for put = 1, puts do
  redis.call('SET', KEYS[1 + put], ARGV[2 * put], 'PX', ARGV[2 * put + 1])
end
for deleted = puts + 2, #KEYS do
  redis.call('DEL', KEYS[deleted])
end
return 1
";

static CHANGE: LazyLock<redis::Script> = LazyLock::new(|| redis::Script::new(CHANGE_SOURCE));

/// How the script of changes is called: the command, and what follows it.
pub type Script = (&'static str, &'static str);

/// By its hash, which a node knows once it was told the source.
pub fn by_hash() -> Script {
    ("EVALSHA", CHANGE.get_hash())
}

/// By its source.
pub const BY_SOURCE: Script = ("EVAL", CHANGE_SOURCE);

/// The answer to one part of an ask.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece {
    Entry(Option<Entry>),
    Changed(bool),
    Done,
}

/// A node answers a part, or refuses it.
pub type Part = Result<Piece, ServerError>;

/// Whether an ask is about something that has to survive its node. Whatever is deleted is deleted for good: a logout, or
/// what was owed one.
pub fn has_to_last(ask: &Ask) -> bool {
    match ask {
        Ask::Read(_) | Ask::Touch(_) => false,
        Ask::Change(change) => change.durable,
        Ask::Delete(_) => true,
    }
}

/// Whether an ask does no harm when it is asked twice.
pub const fn is_repeatable(ask: &Ask) -> bool {
    matches!(ask, Ask::Read(_))
}

/// A key of each part: it says where the part belongs.
pub fn places(ask: &Ask) -> Vec<Key> {
    match ask {
        Ask::Read(keys) | Ask::Delete(keys) => keys.clone(),
        // All its keys are in one place.
        Ask::Change(change) => vec![change.guard.key()],
        Ask::Touch(touched) => touched.iter().map(|(key, _)| *key).collect(),
    }
}

/// The ask of some parts only.
pub fn some_parts(ask: &Ask, wanted: &[usize]) -> Ask {
    fn some<T: Clone>(all: &[T], wanted: &[usize]) -> Vec<T> {
        wanted.iter().filter_map(|at| all.get(*at).cloned()).collect()
    }
    match ask {
        Ask::Read(keys) => Ask::Read(some(keys, wanted)),
        Ask::Change(change) => Ask::Change(change.clone()),
        Ask::Touch(touched) => Ask::Touch(some(touched, wanted)),
        Ask::Delete(keys) => Ask::Delete(some(keys, wanted)),
    }
}

/// What an ask is in the words of Redis; `script` is how the script of changes is called.
pub fn commands(ask: &Ask, script: Script) -> Pipeline {
    let mut pipeline = Pipeline::new();
    match ask {
        Ask::Read(keys) => {
            for key in keys.iter().map(Key::text) {
                pipeline.cmd("GETRANGE").arg(&key).arg(0).arg(LARGEST_RECORD - 1);
                pipeline.cmd("PTTL").arg(&key);
            }
        }
        Ask::Change(change) => add_change(&mut pipeline, change, script),
        Ask::Touch(touched) => {
            for (key, life) in touched {
                pipeline.cmd("PEXPIRE").arg(key.text()).arg(milliseconds(*life));
            }
        }
        Ask::Delete(keys) => {
            for key in keys {
                pipeline.cmd("UNLINK").arg(key.text());
            }
        }
    }
    pipeline
}

fn add_change(pipeline: &mut Pipeline, change: &Change, script: Script) {
    let guard = change.guard.key();
    let written = change.put.iter().map(|put| &put.key);
    let keys = std::iter::once(&guard).chain(written).chain(&change.delete);
    pipeline.cmd(script.0).arg(script.1).arg(1 + change.put.len() + change.delete.len());
    keys.for_each(|key| {
        pipeline.arg(key.text());
    });
    match change.guard {
        Guard::Absent(_) => pipeline.arg(""),
        Guard::Unchanged(_, revision) => pipeline.arg(&revision.to_be_bytes()[..]),
    };
    for put in &change.put {
        pipeline.arg(stored(put)).arg(milliseconds(put.expires_in));
    }
}

/// A record as Redis keeps it.
fn stored(put: &Put) -> Vec<u8> {
    [&put.revision.to_be_bytes()[..], &put.value].concat()
}

/// At least one: Redis refuses a life of none, and would do so in the middle of a script.
fn milliseconds(life: Duration) -> u64 {
    u64::try_from(life.min(LONGEST_LIFE).as_millis()).unwrap_or(u64::MAX).max(1)
}

/// The same commands for a node that is about to have their slot, and does not serve it yet to those who do not say that
/// they were sent: each is preceded by ASKING, which holds for one command.
pub fn each_asking(pipeline: &Pipeline) -> Pipeline {
    let mut asking = Pipeline::new();
    for command in pipeline.cmd_iter() {
        asking.cmd("ASKING");
        asking.add_command(command.clone());
    }
    asking
}

/// The replies to [`each_asking`], without those to ASKING.
pub fn without_asking(replies: Vec<Value>) -> Vec<Value> {
    replies.into_iter().skip(1).step_by(2).collect()
}

/// Whether the script has to be sent as a whole. Then it did nothing.
pub fn lacks_the_script(replies: &[Value]) -> bool {
    let is_lacking = |error: &ServerError| error.kind() == Some(ServerErrorKind::NoScript);
    replies.iter().any(|reply| matches!(reply, Value::ServerError(error) if is_lacking(error)))
}

/// What the replies to an ask's commands say of each part; none: they are no replies to these.
pub fn parts(ask: &Ask, replies: Vec<Value>) -> Option<Vec<Part>> {
    match ask {
        Ask::Read(_) => {
            let mut parts = Vec::with_capacity(replies.len() / 2);
            let mut replies = replies.into_iter();
            while let Some(value) = replies.next() {
                parts.push(entry(value, replies.next()?)?);
            }
            Some(parts)
        }
        Ask::Change(_) => replies.into_iter().map(|reply| part(reply, changed)).collect(),
        Ask::Touch(_) | Ask::Delete(_) => replies.into_iter().map(|reply| part(reply, |_| Some(Piece::Done))).collect(),
    }
}

fn part(reply: Value, piece: impl Fn(i64) -> Option<Piece>) -> Option<Part> {
    match reply {
        Value::ServerError(error) => Some(Err(error)),
        Value::Int(number) => piece(number).map(Ok),
        _ => None,
    }
}

fn changed(held: i64) -> Option<Piece> {
    matches!(held, 0 | 1).then_some(Piece::Changed(held == 1))
}

/// The replies to GETRANGE, which has nothing where there is no record, and PTTL. They are two moments: what expires between
/// them is gone.
fn entry(value: Value, life: Value) -> Option<Part> {
    match (value, life) {
        (Value::ServerError(error), _) | (_, Value::ServerError(error)) => Some(Err(error)),
        (Value::BulkString(_), Value::Int(-2)) => Some(Ok(Piece::Entry(None))),
        (Value::BulkString(record), Value::Int(_)) if record.is_empty() => Some(Ok(Piece::Entry(None))),
        (Value::BulkString(record), Value::Int(life)) => {
            // Without an end it is not ours; it is not to be kept any longer for that.
            let expires_in = Duration::from_millis(u64::try_from(life).unwrap_or(0));
            let (revision, value) = split(record.into());
            Some(Ok(Piece::Entry(Some(Entry { revision, value, expires_in }))))
        }
        _ => None,
    }
}

/// Revision and sealed value of a record. What is too short for both is somebody else's and will not open.
fn split(record: Bytes) -> (u64, Bytes) {
    match record.first_chunk::<REVISION_BYTES>() {
        Some(revision) => (u64::from_be_bytes(*revision), record.slice(REVISION_BYTES..)),
        None => (0, record),
    }
}

/// The answer that the parts of an ask make; none: they are not all of it.
pub fn whole(ask: &Ask, pieces: Vec<Piece>) -> Option<Answer> {
    if pieces.len() != count(ask) {
        return None;
    }
    let entry = |piece: Piece| match piece {
        Piece::Entry(entry) => Some(entry),
        Piece::Changed(_) | Piece::Done => None,
    };
    match ask {
        Ask::Read(_) => pieces.into_iter().map(entry).collect::<Option<_>>().map(Answer::Entries),
        Ask::Change(_) => match pieces[..] {
            [Piece::Changed(held)] => Some(Answer::Changed(held)),
            _ => None,
        },
        Ask::Touch(_) | Ask::Delete(_) => Some(Answer::Done),
    }
}

/// How many parts an ask has.
fn count(ask: &Ask) -> usize {
    match ask {
        Ask::Read(keys) | Ask::Delete(keys) => keys.len(),
        Ask::Change(_) => 1,
        Ask::Touch(touched) => touched.len(),
    }
}

/// What a step of a scan found: where the next begins, and keys.
pub fn scanned(reply: Value) -> Option<(Vec<u8>, Vec<Key>)> {
    let Value::Array(reply) = reply else { return None };
    let [Value::BulkString(next), Value::Array(keys)] = <[Value; 2]>::try_from(reply).ok()? else { return None };
    let key = |key: Value| match key {
        Value::BulkString(text) => std::str::from_utf8(&text).ok().and_then(Key::parse),
        _ => None,
    };
    Some((next, keys.into_iter().filter_map(key).collect()))
}

/// What a node is, as far as it says.
#[derive(Debug, PartialEq, Eq)]
pub enum Role {
    Primary {
        replicas: usize,
    },
    Other,
    /// It may not be asked, or does not understand.
    Untold,
}

/// Reads the reply to ROLE.
pub fn role(reply: &Value) -> Option<Role> {
    match reply {
        Value::ServerError(_) => Some(Role::Untold),
        Value::Array(parts) => match (text(parts.first()?)?, parts.get(2)) {
            ("master", Some(Value::Array(replicas))) => Some(Role::Primary { replicas: replicas.len() }),
            ("master", _) => None,
            _ => Some(Role::Other),
        },
        _ => None,
    }
}

/// Whether a node keeps everything that it was given, by what it says of its memory: it refuses when it is full, or is
/// never full. What it does not say counts as no.
pub fn keeps_everything(info: &Value) -> Option<bool> {
    let mut lines = text(info)?.lines().filter_map(|line| line.split_once(':'));
    Some(lines.any(|line| matches!(line, ("maxmemory_policy", "noeviction") | ("maxmemory", "0"))))
}

/// The text of a reply that is one.
pub fn text(reply: &Value) -> Option<&str> {
    match reply {
        Value::BulkString(text) => std::str::from_utf8(text).ok(),
        Value::SimpleString(text) => Some(text),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::store::{Class, Kind};

    fn key(id: u8) -> Key {
        Key { tag: 7, kind: Kind::Lineage, id: [id; 20] }
    }

    fn put(id: u8, revision: u64, value: &'static [u8], expires_in: Duration) -> Put {
        Put { key: key(id), revision, value: value.into(), expires_in, class: Class::Anonymous }
    }

    fn bulk(bytes: &[u8]) -> Value {
        Value::BulkString(bytes.to_vec())
    }

    fn refusal(line: &str) -> Value {
        redis::parse_redis_value(format!("-{line}\r\n").as_bytes()).unwrap()
    }

    /// Every command of a pipeline: its words, as text where they are.
    fn words_of(pipeline: &Pipeline) -> Vec<Vec<String>> {
        let commands = pipeline.cmd_iter().map(|command| {
            let words = command.args_iter().map(|word| match word {
                redis::Arg::Simple(word) => word.escape_ascii().to_string(),
                _ => "?".to_owned(),
            });
            words.collect()
        });
        commands.collect()
    }

    fn words(ask: &Ask) -> Vec<Vec<String>> {
        words_of(&commands(ask, ("EVALSHA", "hash")))
    }

    /// The answer, where no part was refused.
    fn answer(ask: &Ask, replies: Vec<Value>) -> Option<Answer> {
        let pieces = parts(ask, replies)?.into_iter().collect::<Result<_, _>>().ok()?;
        whole(ask, pieces)
    }

    #[test]
    fn reads_touches_and_deletions_are_a_command_or_two_for_each_record() {
        let (first, second) = (key(1).text(), key(2).text());
        let most = (LARGEST_RECORD - 1).to_string();
        let value = |key: &str| vec!["GETRANGE".to_owned(), key.to_owned(), "0".to_owned(), most.clone()];
        let life = |key: &str| vec!["PTTL".to_owned(), key.to_owned()];
        let read = [value(&first), life(&first), value(&second), life(&second)];
        assert_eq!(words(&Ask::Read(vec![key(1), key(2)])), read);
        let touch = Ask::Touch(vec![(key(1), Duration::from_secs(3)), (key(2), Duration::ZERO)]);
        assert_eq!(words(&touch), [["PEXPIRE", &first, "3000"], ["PEXPIRE", &second, "1"]]);
        assert_eq!(words(&Ask::Delete(vec![key(1), key(2)])), [["UNLINK", &first], ["UNLINK", &second]]);
        assert!(words(&Ask::Read(Vec::new())).is_empty());
    }

    #[test]
    fn a_change_is_one_script_that_names_all_its_keys() {
        let change = Change {
            guard: Guard::Unchanged(key(1), 0x4142),
            put: vec![put(1, 0x4143, b"one", Duration::from_secs(1)), put(2, 1, b"", Duration::MAX)],
            delete: vec![key(3)],
            durable: true,
        };
        let longest = LONGEST_LIFE.as_millis().to_string();
        let (first, second, third) = (key(1).text(), key(2).text(), key(3).text());
        let (zeros, one) = (r"\x00\x00\x00\x00\x00\x00", r"\x00\x00\x00\x00\x00\x00\x00\x01");
        let (expected, written) = (format!("{zeros}AB"), format!("{zeros}ACone"));
        let keys = ["EVALSHA", "hash", "4", &first, &first, &second, &third];
        let arguments = [&expected, &written, "1000", one, &longest];
        assert_eq!(words(&Ask::Change(change.clone())), [[&keys[..], &arguments[..]].concat()]);

        let absent = Change { guard: Guard::Absent(key(1)), put: Vec::new(), ..change };
        assert_eq!(words(&Ask::Change(absent)), [["EVALSHA", "hash", "2", &first, &third, ""]]);
    }

    #[test]
    fn where_a_node_has_to_be_told_that_it_is_asked_each_command_is_preceded_by_that() {
        let text = key(1).text();
        let asking = words_of(&each_asking(&commands(&Ask::Read(vec![key(1)]), by_hash())));
        let most = (LARGEST_RECORD - 1).to_string();
        let value = vec!["GETRANGE", &text, "0", &most];
        assert_eq!(asking, [vec!["ASKING"], value, vec!["ASKING"], vec!["PTTL", &text]]);
        let replies = vec![Value::Okay, bulk(b"record"), Value::Okay, Value::Int(5)];
        assert_eq!(without_asking(replies), [bulk(b"record"), Value::Int(5)]);
    }

    #[test]
    fn some_parts_of_an_ask_are_an_ask_of_the_same_kind() {
        let touched = |id: u8| (key(id), Duration::from_secs(id.into()));
        for (ask, some) in [
            (Ask::Read(vec![key(1), key(2), key(3)]), Ask::Read(vec![key(1), key(3)])),
            (Ask::Delete(vec![key(1), key(2), key(3)]), Ask::Delete(vec![key(1), key(3)])),
            (Ask::Touch(vec![touched(1), touched(2), touched(3)]), Ask::Touch(vec![touched(1), touched(3)])),
        ] {
            assert_eq!(places(&ask), [key(1), key(2), key(3)]);
            assert_eq!(some_parts(&ask, &[0, 2]), some);
            assert_eq!(some_parts(&ask, &[0, 2, 9]), some, "there is no such part");
        }
        let change = Change { guard: Guard::Absent(key(1)), put: Vec::new(), delete: vec![key(2)], durable: false };
        let change = Ask::Change(change);
        assert_eq!(places(&change), [key(1)], "it is one part, whatever it writes");
        assert_eq!(some_parts(&change, &[0]), change);
    }

    #[test]
    fn what_ends_a_session_has_to_last() {
        let change = |durable| Change { guard: Guard::Absent(key(1)), put: Vec::new(), delete: Vec::new(), durable };
        assert!(has_to_last(&Ask::Delete(vec![key(1)])) && has_to_last(&Ask::Change(change(true))));
        assert!(!has_to_last(&Ask::Change(change(false))) && !has_to_last(&Ask::Touch(Vec::new())));
        assert!(!has_to_last(&Ask::Read(vec![key(1)])));
    }

    #[test]
    fn records_are_read_back() {
        let record = stored(&put(1, 258, b"sealed", Duration::ZERO));
        let entry = |revision, value: &'static [u8], milliseconds| {
            Some(Entry { revision, value: value.into(), expires_in: Duration::from_millis(milliseconds) })
        };
        let replies = vec![
            bulk(&record),
            Value::Int(1500),
            bulk(b""),
            Value::Int(-2),
            // It expired between the two commands, or was made between them.
            bulk(&record),
            Value::Int(-2),
            bulk(b""),
            Value::Int(20),
            // Not ours: no end, or too short.
            bulk(&record),
            Value::Int(-1),
            bulk(b"short"),
            Value::Int(5),
        ];
        let read = vec![entry(258, b"sealed", 1500), None, None, None, entry(258, b"sealed", 0), entry(0, b"short", 5)];
        let ask = Ask::Read((1..=6).map(key).collect());
        assert_eq!(answer(&ask, replies), Some(Answer::Entries(read)));
    }

    #[test]
    fn a_part_that_is_refused_leaves_the_others() {
        let ask = Ask::Read(vec![key(1), key(2), key(3)]);
        let moved = || refusal("MOVED 7 10.0.0.1:7000");
        let replies = vec![bulk(b""), Value::Int(-2), moved(), moved(), bulk(b"12345678"), moved()];
        let parts = parts(&ask, replies).unwrap();
        let refused: Vec<bool> = parts.iter().map(Result::is_err).collect();
        assert_eq!(refused, [false, true, true], "a record of which not all was told is not told");
        assert_eq!(parts[0], Ok(Piece::Entry(None)));
    }

    #[test]
    fn replies_to_another_question_are_no_answer() {
        let nine = || bulk(&[0; 9]);
        let read = Ask::Read(vec![key(1)]);
        assert_eq!(answer(&read, vec![Value::Int(1), nine()]), None);
        assert_eq!(answer(&read, vec![nine()]), None);
        assert_eq!(answer(&read, vec![nine(), nine()]), None);
        assert_eq!(answer(&read, vec![]), None);
        let change = Change { guard: Guard::Absent(key(1)), put: Vec::new(), delete: Vec::new(), durable: false };
        let change = Ask::Change(change);
        assert_eq!(answer(&change, vec![Value::Int(1)]), Some(Answer::Changed(true)));
        assert_eq!(answer(&change, vec![Value::Int(0)]), Some(Answer::Changed(false)));
        assert_eq!(answer(&change, vec![Value::Int(1500)]), None);
        assert_eq!(answer(&change, vec![Value::Nil]), None);
        assert_eq!(answer(&Ask::Delete(vec![key(1)]), vec![Value::Int(0)]), Some(Answer::Done));
        assert_eq!(answer(&Ask::Touch(vec![(key(1), Duration::ZERO)]), vec![nine()]), None);
    }

    #[test]
    fn a_node_says_what_it_is_or_nothing() {
        let role = |text: &[u8]| role(&redis::parse_redis_value(text).unwrap());
        let replica = b"*3\r\n$6\r\nmaster\r\n:5\r\n*1\r\n*3\r\n$9\r\n127.0.0.1\r\n$4\r\n7001\r\n$1\r\n5\r\n";
        assert_eq!(role(replica), Some(Role::Primary { replicas: 1 }));
        assert_eq!(role(b"*3\r\n$6\r\nmaster\r\n:5\r\n*0\r\n"), Some(Role::Primary { replicas: 0 }));
        assert_eq!(role(b"*2\r\n$5\r\nslave\r\n$9\r\n127.0.0.1\r\n"), Some(Role::Other));
        assert_eq!(role(b"*1\r\n$8\r\nsentinel\r\n"), Some(Role::Other));
        assert_eq!(role(b"-NOPERM this user has no permissions to run the 'role' command\r\n"), Some(Role::Untold));
        for other in [&b"*1\r\n$6\r\nmaster\r\n"[..], b"*0\r\n", b":1\r\n", b"$-1\r\n", b"*2\r\n*0\r\n:1\r\n"] {
            assert_eq!(role(other), None, "{}", other.escape_ascii());
        }
    }

    #[test]
    fn a_store_that_makes_room_does_not_keep_everything() {
        let says = |text: &str| keeps_everything(&bulk(text.as_bytes()));
        let info = |most: &str, policy: &str| {
            format!(
                "# Memory\r\nused_memory:5\r\nmaxmemory:{most}\r\nmaxmemory_human:0B\r\nmaxmemory_policy:{policy}\r\n"
            )
        };
        assert_eq!(says(&info("0", "allkeys-lru")), Some(true), "it is never full");
        assert_eq!(says(&info("1000000", "noeviction")), Some(true), "it refuses when it is full");
        assert_eq!(says(&info("1000000", "volatile-ttl")), Some(false));
        assert_eq!(says(""), Some(false));
        assert_eq!(keeps_everything(&Value::Int(1)), None);
    }

    #[test]
    fn a_step_of_a_scan_is_read() {
        let subject = Key::subject([9; 20]);
        let keys = vec![bulk(subject.text().as_bytes()), bulk(b"sf1:other"), Value::Int(1)];
        let step = Value::Array(vec![bulk(b"17"), Value::Array(keys)]);
        assert_eq!(scanned(step), Some((b"17".to_vec(), vec![subject])));
        for other in [Value::Nil, Value::Array(vec![]), Value::Array(vec![Value::Int(0), Value::Array(vec![])])] {
            assert_eq!(scanned(other), None);
        }
    }
}
