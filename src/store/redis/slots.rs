//! Which node of a cluster has what: the arithmetic, and how nodes say it. No connection here.
//!
//! See the Redis Cluster specification, "Key distribution model" and "Redirection and resharding".

use redis::{ServerError, ServerErrorKind, Value};

use super::commands;
use super::settings::Address;
use crate::session::store::Key;

/// Slots of a cluster.
pub const SLOTS: u16 = 16_384;

/// The slot of a key: of what stands in braces in it, which is its tag.
pub fn slot(key: &Key) -> u16 {
    crc16(key.tag.to_string().as_bytes()) % SLOTS
}

/// CRC-16/XMODEM.
fn crc16(bytes: &[u8]) -> u16 {
    let mut crc = 0;
    for byte in bytes {
        crc ^= u16::from(*byte) << 8;
        for _ in 0..u8::BITS {
            crc = if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 };
        }
    }
    crc
}

/// Slots from one to another, both included, and the primary that has them.
#[derive(Debug, PartialEq, Eq)]
pub struct Range {
    pub first: u16,
    pub last: u16,
    pub primary: Address,
}

/// Reads the reply to CLUSTER SLOTS of the node at `asked`. None: it is no such reply, or names slots more than once.
pub fn ranges(reply: &Value, asked: &Address) -> Option<Vec<Range>> {
    let Value::Array(entries) = reply else { return None };
    let ranges: Vec<Range> = entries.iter().map(|entry| range(entry, asked)).collect::<Option<_>>()?;
    let covered: usize = ranges.iter().map(|range| usize::from(range.last - range.first) + 1).sum();
    (covered <= usize::from(SLOTS)).then_some(ranges)
}

fn range(entry: &Value, asked: &Address) -> Option<Range> {
    let Value::Array(words) = entry else { return None };
    // The primary stands first; its replicas follow.
    let [Value::Int(first), Value::Int(last), Value::Array(primary), ..] = &words[..] else { return None };
    let [host, Value::Int(port), ..] = &primary[..] else { return None };
    let host = match host {
        Value::Nil => "",
        host => commands::text(host)?,
    };
    let (first, last) = (number(*first)?, number(*last)?);
    (first <= last).then_some(Range { first, last, primary: address(host, *port, asked)? })
}

fn number(slot: i64) -> Option<u16> {
    u16::try_from(slot).ok().filter(|slot| *slot < SLOTS)
}

/// A node that does not know its own host leaves it out: it is the host that was asked.
fn address(host: &str, port: i64, asked: &Address) -> Option<Address> {
    Address::told(if matches!(host, "" | "?") { &asked.host } else { host }, port)
}

/// What a node wants that does not do what it was asked. It did nothing.
#[derive(Debug, PartialEq, Eq)]
pub enum Redirection {
    /// The slot is another node's.
    Moved(Address),
    /// The slot is on its way to another node, which has this key already.
    Ask(Address),
    /// The cluster is busy with the slot, or has nobody for it at the moment.
    Wait,
}

/// Reads what the node at `asked` says; none: it is another refusal.
pub fn redirection(error: &ServerError, asked: &Address) -> Option<Redirection> {
    match error.kind()? {
        ServerErrorKind::Moved => Some(Redirection::Moved(target(error, asked)?)),
        ServerErrorKind::Ask => Some(Redirection::Ask(target(error, asked)?)),
        ServerErrorKind::TryAgain | ServerErrorKind::ClusterDown => Some(Redirection::Wait),
        _ => None,
    }
}

/// Where to: `3999 127.0.0.1:6381`.
fn target(error: &ServerError, asked: &Address) -> Option<Address> {
    let (slot, target) = error.details()?.split_once(' ')?;
    number(slot.parse().ok()?)?;
    // The host may be an IPv6 address, without brackets.
    let (host, port) = target.rsplit_once(':')?;
    address(host, port.parse().ok()?, asked)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::store::{Kind, TAG_BITS};

    fn address(host: &str, port: u16) -> Address {
        Address { host: host.to_owned(), port }
    }

    fn asked() -> Address {
        address("10.0.0.9", 7009)
    }

    fn bulk(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    fn node(host: Value, port: i64) -> Value {
        Value::Array(vec![host, Value::Int(port), bulk("cf3103945a29075564f557f3b31eb0593bf501ee")])
    }

    fn entry(first: i64, last: i64, nodes: Vec<Value>) -> Value {
        Value::Array([vec![Value::Int(first), Value::Int(last)], nodes].concat())
    }

    /// As the specification has it: what is hashed of a key.
    fn hashed(text: &str) -> &str {
        match text.split_once('{').and_then(|(_, rest)| rest.split_once('}')) {
            Some((tag, _)) if !tag.is_empty() => tag,
            _ => text,
        }
    }

    #[test]
    fn the_checksum_is_that_of_the_specification() {
        assert_eq!(crc16(b"123456789"), 0x31c3);
        assert_eq!(crc16(b""), 0);
        for (text, slot) in [("foo", 12_182), ("bar", 5_061), ("123456789", 12_739)] {
            assert_eq!(crc16(text.as_bytes()) % SLOTS, slot, "{text}: as CLUSTER KEYSLOT says");
        }
    }

    #[test]
    fn a_key_is_where_its_tag_says() {
        let key = |tag| Key { tag, kind: Kind::Lineage, id: [1; 20] };
        for (tag, expected) in [(0, 13_907), (77, 6_838), (16_383, 15_158)] {
            assert_eq!(slot(&key(tag)), expected, "{tag}: as CLUSTER KEYSLOT says");
        }
        for tag in 0..1 << TAG_BITS {
            let text = key(tag).text();
            assert_eq!(slot(&key(tag)), crc16(hashed(&text).as_bytes()) % SLOTS, "{text}");
        }
    }

    #[test]
    fn slots_are_read() {
        let replicas = vec![node(bulk("10.0.0.1"), 7001), node(bulk("10.0.0.2"), 7002)];
        let metadata = Value::Array(vec![bulk("::1"), Value::Int(7003), bulk("id"), Value::Array(vec![bulk("ip")])]);
        let reply = Value::Array(vec![
            entry(0, 99, replicas),
            entry(100, 100, vec![metadata]),
            entry(101, 200, vec![node(Value::Nil, 7004)]),
            entry(201, 300, vec![node(bulk(""), 7005)]),
            entry(301, 16_383, vec![node(bulk("?"), 7006)]),
        ]);
        let range = |first, last, host, port| Range { first, last, primary: address(host, port) };
        let expected = vec![
            range(0, 99, "10.0.0.1", 7001),
            range(100, 100, "::1", 7003),
            range(101, 200, "10.0.0.9", 7004),
            range(201, 300, "10.0.0.9", 7005),
            range(301, 16_383, "10.0.0.9", 7006),
        ];
        assert_eq!(ranges(&reply, &asked()), Some(expected), "a host that is not known is the one that was asked");
        assert_eq!(ranges(&Value::Array(vec![]), &asked()), Some(vec![]));
    }

    #[test]
    fn what_is_no_list_of_slots_is_none() {
        let fine = || node(bulk("10.0.0.1"), 7001);
        for entry in [
            Value::Nil,
            Value::Int(5),
            Value::Array(vec![]),
            entry(0, 5, vec![]),
            entry(0, 5, vec![Value::Nil]),
            entry(0, 5, vec![Value::Array(vec![])]),
            entry(0, 5, vec![Value::Array(vec![bulk("10.0.0.1")])]),
            entry(0, 5, vec![Value::Array(vec![bulk("10.0.0.1"), bulk("7001")])]),
            entry(0, 5, vec![node(Value::Int(1), 7001)]),
            entry(0, 5, vec![node(Value::BulkString(vec![0xff]), 7001)]),
            entry(0, 5, vec![node(bulk("two words"), 7001)]),
            entry(0, 5, vec![node(bulk(&"a".repeat(300)), 7001)]),
            entry(0, 5, vec![node(bulk("10.0.0.1"), 0)]),
            entry(0, 5, vec![node(bulk("10.0.0.1"), 70_000)]),
            entry(-1, 5, vec![fine()]),
            entry(6, 5, vec![fine()]),
            entry(0, 16_384, vec![fine()]),
            entry(0, i64::MAX, vec![fine()]),
        ] {
            assert_eq!(ranges(&Value::Array(vec![entry.clone()]), &asked()), None, "{entry:?}");
        }
        assert_eq!(ranges(&Value::Nil, &asked()), None);
        let twice = Value::Array(vec![entry(0, 16_383, vec![fine()]), entry(7, 7, vec![fine()])]);
        assert_eq!(ranges(&twice, &asked()), None, "no slot has two primaries");
    }

    #[test]
    fn redirections_are_read() {
        use Redirection::{Ask, Moved, Wait};
        for (line, expected) in [
            ("MOVED 3999 127.0.0.1:6381", Some(Moved(address("127.0.0.1", 6381)))),
            ("MOVED 3999 cache.internal:6381", Some(Moved(address("cache.internal", 6381)))),
            ("MOVED 3999 ::1:6381", Some(Moved(address("::1", 6381)))),
            ("MOVED 3999 :6381", Some(Moved(address("10.0.0.9", 6381)))),
            ("MOVED 3999 ?:6381", Some(Moved(address("10.0.0.9", 6381)))),
            ("ASK 16383 127.0.0.1:6381", Some(Ask(address("127.0.0.1", 6381)))),
            ("TRYAGAIN Multiple keys request during rehashing of slot", Some(Wait)),
            ("CLUSTERDOWN The cluster is down", Some(Wait)),
            ("MOVED", None),
            ("MOVED 3999", None),
            ("MOVED 3999 127.0.0.1", None),
            ("MOVED 3999 127.0.0.1:", None),
            ("MOVED 3999 127.0.0.1:0", None),
            ("MOVED 3999 127.0.0.1:65536", None),
            ("MOVED 16384 127.0.0.1:6381", None),
            ("MOVED -1 127.0.0.1:6381", None),
            ("ASK here 127.0.0.1:6381", None),
            ("ASK 3999 two words:6381", None),
            ("CROSSSLOT Keys in request don't hash to the same slot", None),
            ("READONLY You can't write against a read only replica.", None),
            ("OTHER 3999 127.0.0.1:6381", None),
        ] {
            let Ok(Value::ServerError(error)) = redis::parse_redis_value(format!("-{line}\r\n").as_bytes()) else {
                panic!("{line}")
            };
            assert_eq!(redirection(&error, &asked()), expected, "{line}");
        }
    }
}
