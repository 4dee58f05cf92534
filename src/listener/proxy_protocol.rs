//! The PROXY protocol, versions 1 and 2: the client's address from a balancer in front of us.
//!
//! Where it is on, it is required, and only `trusted_proxies` may connect: a header that anyone may send would let
//! anyone choose an address.

use std::net::SocketAddr;

use ppp::{HeaderResult, v1, v2};
use tokio::io::AsyncReadExt;

use super::socket::ClientSocket;
use crate::names::words;

words! {
    /// The `proxy_protocol` key of a listener.
    ProxyProtocol {
        Off = "off",
        V1 = "v1",
        V2 = "v2",
        Any = "any",
    }
}

/// The longest header that is read: a version 2 header with generous extensions.
const MOST_BYTES: usize = 4 * 1024;

/// Why a connection has no usable header.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    #[error("the connection ended before its PROXY header did")]
    Ended(#[from] std::io::Error),
    #[error("the connection does not begin with a PROXY header of an accepted version")]
    Malformed,
}

/// Reads the header. `None`: the balancer speaks for itself (a health check), and its own address counts.
pub(super) async fn read(socket: &mut ClientSocket, accepted: ProxyProtocol) -> Result<Option<SocketAddr>, Refused> {
    let mut bytes = Vec::with_capacity(256);
    loop {
        if socket.read_buf(&mut bytes).await? == 0 {
            return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
        }
        if let Some((client, header_bytes)) = parse(&bytes, accepted)? {
            socket.put_back(&bytes[header_bytes..]);
            return Ok(client);
        }
        if bytes.len() > MOST_BYTES {
            return Err(Refused::Malformed);
        }
    }
}

/// The address and the header's length; `None` while it is incomplete.
fn parse(bytes: &[u8], accepted: ProxyProtocol) -> Result<Option<(Option<SocketAddr>, usize)>, Refused> {
    if !is_whole(bytes)? {
        return Ok(None);
    }
    match HeaderResult::parse(bytes) {
        HeaderResult::V1(Ok(header)) if matches!(accepted, ProxyProtocol::V1 | ProxyProtocol::Any) => {
            let client = match header.addresses {
                v1::Addresses::Tcp4(tcp) => Some(SocketAddr::from((tcp.source_address, tcp.source_port))),
                v1::Addresses::Tcp6(tcp) => Some(SocketAddr::from((tcp.source_address, tcp.source_port))),
                v1::Addresses::Unknown => None,
            };
            Ok(Some((client, header.header.len())))
        }
        HeaderResult::V2(Ok(header)) if matches!(accepted, ProxyProtocol::V2 | ProxyProtocol::Any) => {
            let client = match (&header.command, header.addresses) {
                (v2::Command::Local, _) => None,
                (_, v2::Addresses::IPv4(tcp)) => Some(SocketAddr::from((tcp.source_address, tcp.source_port))),
                (_, v2::Addresses::IPv6(tcp)) => Some(SocketAddr::from((tcp.source_address, tcp.source_port))),
                _ => None,
            };
            Ok(Some((client, header.len())))
        }
        _ => Err(Refused::Malformed),
    }
}

/// Whether the header has come in whole, as far as its own framing says.
fn is_whole(bytes: &[u8]) -> Result<bool, Refused> {
    const V1: &[u8] = b"PROXY ";
    const V1_LONGEST: usize = 107;
    const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
    let begins_with = |signature: &[u8]| bytes.iter().zip(signature).all(|(one, other)| one == other);
    if begins_with(V2) {
        let length = bytes.get(14..16).map(|length| usize::from(u16::from_be_bytes([length[0], length[1]])));
        return Ok(length.is_some_and(|length| bytes.len() >= 16 + length));
    }
    let line = &bytes[..bytes.len().min(V1_LONGEST)];
    if !begins_with(V1) || (line.len() == V1_LONGEST && memchr::memchr(b'\n', line).is_none()) {
        return Err(Refused::Malformed);
    }
    Ok(memchr::memchr(b'\n', line).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_give_the_clients_address_and_what_follows_is_kept() {
        let line = b"PROXY TCP4 1.2.3.4 5.6.7.8 1111 443\r\nGET / HTTP/1.1\r\n";
        let (client, bytes) = parse(line, ProxyProtocol::Any).unwrap().unwrap();
        assert_eq!((client.unwrap().to_string().as_str(), bytes), ("1.2.3.4:1111", 37));
        let mut binary = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
        binary.extend_from_slice(&[1, 2, 3, 4, 5, 6, 7, 8, 0x04, 0x57, 0x01, 0xbb, b'G']);
        let (client, bytes) = parse(&binary, ProxyProtocol::V2).unwrap().unwrap();
        assert_eq!((client.unwrap().to_string().as_str(), bytes), ("1.2.3.4:1111", 28));
        assert!(parse(&binary, ProxyProtocol::V1).is_err());
        assert!(parse(line, ProxyProtocol::V2).is_err());
    }

    #[test]
    fn every_prefix_is_incomplete_and_garbage_is_refused() {
        let line = b"PROXY TCP6 2001:db8::1 ::1 1111 443\r\n";
        for end in 1..line.len() {
            assert!(matches!(parse(&line[..end], ProxyProtocol::Any), Ok(None)), "{end}");
        }
        for garbage in [&b"GET / HTTP/1.1\r\n"[..], b"\x16\x03\x01\x02\x00", b"PROXY TCP4 x y 1 2\r\n"] {
            assert!(parse(garbage, ProxyProtocol::Any).is_err());
        }
        assert!(matches!(parse(b"PROXY UNKNOWN\r\n", ProxyProtocol::Any), Ok(Some((None, 15)))));
    }
}
