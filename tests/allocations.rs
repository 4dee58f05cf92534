//! How often a kept exchange asks the allocator: a number that may fall, and rises only with a reason.
//!
//! The whole proxy runs in this process, beside an origin and a client that allocate nothing once they run. Plain HTTP/1.1:
//! what TLS allocates for a record is rustls' business.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test may")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

/// What one kept request may ask for.
const MOST: u64 = 12;
const REQUESTS: u64 = 2_000;

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 2\r\n\r\nhi";

/// Answers whatever comes; a head is smaller than the buffer.
fn serve(mut socket: TcpStream) {
    let mut buffer = [0; 4_096];
    let mut filled = 0;
    while let Ok(read) = socket.read(&mut buffer[filled..]) {
        filled += read;
        if read == 0 {
            return;
        }
        if buffer[..filled].ends_with(b"\r\n\r\n") {
            filled = 0;
            socket.write_all(ANSWER).unwrap();
        }
    }
}

/// One request; gives what came into the buffer.
fn ask<'b>(client: &mut TcpStream, request: &[u8], buffer: &'b mut [u8]) -> &'b [u8] {
    client.write_all(request).unwrap();
    let mut filled = 0;
    while !buffer[..filled].ends_with(b"\r\n\r\nhi") {
        let read = client.read(&mut buffer[filled..]).unwrap();
        assert!(read > 0, "closed after {:?}", String::from_utf8_lossy(&buffer[..filled]));
        filled += read;
    }
    &buffer[..filled]
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn connect(address: SocketAddr) -> TcpStream {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match TcpStream::connect(address) {
            Ok(client) => return client,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        std::thread::yield_now();
    }
}

#[test]
fn a_kept_exchange_allocates_no_more_than_this() {
    let origin = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = origin.local_addr().unwrap();
    std::thread::spawn(move || {
        origin.incoming().flatten().for_each(|socket| drop(std::thread::spawn(|| serve(socket))))
    });
    let (listener, admin) = (free_address(), free_address());
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("steadfast.toml");
    let configuration = format!(
        "[process]\nworkers = 1\naccess_log = \"off\"\nwatch = false\n[admin]\naddress = \"{admin}\"\n\
         [[listener]]\nname = \"http\"\naddress = \"{listener}\"\n[[route]]\npool = \"p\"\n\
         [[pool]]\nname = \"p\"\nmode = \"sticky\"\n[pool.health]\ntype = \"off\"\n\
         [[pool.server]]\nname = \"s\"\naddress = \"{server}\"\n"
    );
    std::fs::write(&file, configuration).unwrap();
    steadfast::tls::install_provider();
    std::thread::spawn(move || steadfast::app::run(&file).unwrap());
    let mut client = connect(listener);
    let mut buffer = [0; 4_096];
    let first = ask(&mut client, b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n", &mut buffer);
    let first = String::from_utf8_lossy(first).into_owned();
    let cookie = first.lines().find_map(|line| line.strip_prefix("set-cookie: ")).expect("a pin");
    let pair = cookie.split(';').next().unwrap();
    let request = format!("GET / HTTP/1.1\r\nhost: localhost\r\nuser-agent: test\r\ncookie: {pair}\r\n\r\n");
    for _ in 0..200 {
        let kept = ask(&mut client, request.as_bytes(), &mut buffer);
        assert!(!kept.windows(10).any(|window| window == b"set-cookie"), "the pin is kept");
    }
    let _profiler = dhat::Profiler::builder().testing().build();
    for _ in 0..REQUESTS {
        ask(&mut client, request.as_bytes(), &mut buffer);
    }
    // What the ticks and the kept time allocate meanwhile is less than one for each request.
    let each = dhat::HeapStats::get().total_blocks / REQUESTS;
    assert!(each <= MOST, "{each} allocations for each request, and not {MOST}");
    assert!(each > 0, "nothing was counted");
}
