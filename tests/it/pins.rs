//! Pins in large numbers: what one proxy of a key ring has pinned, all know; and nothing but a pin is taken for one.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

use crate::support::{PATIENCE, Proxy, eventually, server};

const PINS: usize = 100_000;
/// Requests on their way at once, on each connection.
const BATCH: usize = 64;
const CONNECTIONS: usize = 4;

/// A server that answers every request with its own letter, as fast as that can be done.
fn start_origin(letter: char) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        // It ends with the test's process: it costs nothing while nobody asks.
        for stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || answer_all(stream, letter));
        }
    });
    address
}

fn answer_all(mut stream: TcpStream, letter: char) {
    let _ = stream.set_nodelay(true);
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut line = String::new();
    while reader.read_line(&mut line).is_ok_and(|read| read > 0) {
        let ends = line == "\r\n";
        line.clear();
        if ends && write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{letter}").is_err() {
            return;
        }
    }
}

/// Who answered, and the pin that came with it.
type Answer = (char, Option<String>);

/// Asks once for each user, with the pin that the user has.
fn ask_for_all(address: SocketAddr, pins: &[String]) -> Vec<Answer> {
    let share = pins.len().div_ceil(CONNECTIONS);
    std::thread::scope(|scope| {
        let asking: Vec<_> = pins.chunks(share).map(|pins| scope.spawn(move || ask_for(address, pins))).collect();
        asking.into_iter().flat_map(|asking| asking.join().unwrap()).collect()
    })
}

fn ask_for(address: SocketAddr, pins: &[String]) -> Vec<Answer> {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut answers = Vec::with_capacity(pins.len());
    for batch in pins.chunks(BATCH) {
        let requests = batch.iter().map(|pin| match pin.as_str() {
            "" => "GET / HTTP/1.1\r\nHost: shop\r\n\r\n".to_owned(),
            pin => format!("GET / HTTP/1.1\r\nHost: shop\r\nCookie: {pin}\r\n\r\n"),
        });
        stream.write_all(requests.collect::<String>().as_bytes()).unwrap();
        answers.extend(batch.iter().map(|_| read_answer(&mut reader)));
    }
    answers
}

fn read_answer(reader: &mut impl BufRead) -> Answer {
    let (mut line, mut pin) = (String::new(), None);
    loop {
        line.clear();
        assert!(reader.read_line(&mut line).unwrap() > 0, "the connection was closed");
        if let Some(cookie) = line.strip_prefix("set-cookie: ") {
            pin = cookie.split(';').next().map(str::to_owned);
        }
        assert!(!line.starts_with("HTTP/1.1") || line.starts_with("HTTP/1.1 200"), "{line}");
        if line == "\r\n" {
            let mut letter = [0];
            reader.read_exact(&mut letter).unwrap();
            return (char::from(letter[0]), pin);
        }
    }
}

/// A proxy with the ring of this file over servers of one letter each.
fn start(servers: &str, more: &str) -> Proxy {
    let directory = tempfile::tempdir().unwrap();
    let key = steadfast::keys::RingKey::from_secret([11; 32]);
    std::fs::write(directory.path().join("ring.key"), key.to_line().as_bytes()).unwrap();
    let configuration = format!(
        "[process]\nworkers = 2\naccess_log = \"off\"\nwatch = false\n[keys]\nring = [\"file:ring.key\"]\n\
         [[listener]]\nname = \"main\"\naddress = \"127.0.0.1:0\"\n[[route]]\npool = \"shop\"\n\
         [[pool]]\nname = \"shop\"\nbalance = \"round-robin\"\n{servers}[pool.health]\ntype = \"off\"\n{more}"
    );
    Proxy::start_in(directory, &configuration)
}

fn start_origins(count: usize) -> String {
    let name = |letter: char| server(&letter.to_string(), &start_origin(letter).to_string());
    ('a'..).take(count).map(name).collect()
}

fn verdicts(proxy: &Proxy, label: &str) -> usize {
    proxy.metric("steadfast_affinity_total", &[label]) as usize
}

#[test]
fn two_proxies_of_one_ring_agree_on_a_hundred_thousand_pins_before_and_after_both_restart() {
    let servers = start_origins(8);
    let (one, two) = (start(&servers, ""), start(&servers, ""));
    let issued = ask_for_all(one.address("main"), &vec![String::new(); PINS]);
    let homes: String = issued.iter().map(|(home, _)| *home).collect();
    let pins: Vec<String> = issued.into_iter().map(|(_, pin)| pin.expect("a pin for every newcomer")).collect();
    let agrees = |proxy: &Proxy| {
        let answers = ask_for_all(proxy.address("main"), &pins);
        let moved = answers.iter().zip(homes.chars()).filter(|((home, _), pinned)| home != pinned).count();
        assert_eq!(moved, 0);
        assert!(answers.iter().all(|(_, pin)| pin.is_none()), "nothing to write anew");
        eventually("all are counted as kept", || verdicts(proxy, "verdict=\"kept\"") == PINS);
    };
    agrees(&two);
    drop((one, two));
    let (one, two) = (start(&servers, ""), start(&servers, ""));
    agrees(&one);
    agrees(&two);
}

/// The same cookie with one bit of one character of its value changed, for every bit that leaves a cookie's value.
fn flipped(pin: &str) -> Vec<String> {
    let begins = pin.find('=').unwrap() + 1;
    let changed = (begins..pin.len()).flat_map(|at| (0..7).map(move |bit| (at, 1u8 << bit)));
    let changed = changed.map(|(at, bit)| {
        let mut bytes = pin.as_bytes().to_vec();
        bytes[at] ^= bit;
        String::from_utf8(bytes).unwrap()
    });
    let legal = |byte: u8| byte.is_ascii_graphic() && !br#"",;\"#.contains(&byte);
    changed.filter(|pin| pin[begins..].bytes().all(legal)).collect()
}

#[test]
fn no_flipped_bit_and_no_cut_is_taken_for_a_pin() {
    let proxy = start(&start_origins(2), "");
    let pin = ask_for(proxy.address("main"), &[String::new()])[0].1.clone().unwrap();
    let value_begins = pin.find('=').unwrap() + 1;
    let mut forgeries = flipped(&pin);
    forgeries.extend((value_begins..pin.len()).map(|end| pin[..end].to_owned()));
    forgeries.extend(["A", "=", "==", "AAAA"].map(|more| format!("{pin}{more}")));
    let answers = ask_for(proxy.address("main"), &forgeries);
    assert!(forgeries.len() > 500 && answers.iter().all(|(_, pin)| pin.is_some()), "each is placed anew");
    let reasons = || (verdicts(&proxy, "reason=\"invalid\""), verdicts(&proxy, "reason=\"unknown_key\""));
    eventually("each is counted by its reason", || reasons().0 + reasons().1 == forgeries.len());
    assert!((20..50).contains(&reasons().1), "a key's id is four bytes: {:?}", reasons());
    assert_eq!(verdicts(&proxy, "verdict=\"kept\""), 0);
    let to_a = answers.iter().filter(|(home, _)| *home == 'a').count();
    assert!(to_a.abs_diff(forgeries.len() / 2) <= 2, "placed as newcomers are: {to_a} of {}", forgeries.len());
}

#[test]
fn an_expired_pin_stays_expired_however_often_it_is_replayed() {
    let proxy = start(&start_origins(2), "[pool.sticky]\nidle = \"1s\"\n");
    let pin = ask_for(proxy.address("main"), &[String::new()])[0].1.clone().unwrap();
    let ask = |count: usize| ask_for(proxy.address("main"), &vec![pin.clone(); count]);
    eventually("the pin is over", || {
        ask(1);
        verdicts(&proxy, "reason=\"expired\"") > 0
    });
    let (kept, expired) = (verdicts(&proxy, "verdict=\"kept\""), verdicts(&proxy, "reason=\"expired\""));
    let answers = ask(400);
    eventually("each is counted", || verdicts(&proxy, "reason=\"expired\"") == expired + 400);
    assert_eq!(verdicts(&proxy, "verdict=\"kept\""), kept);
    let to_a = answers.iter().filter(|(home, _)| *home == 'a').count();
    assert!((190..=210).contains(&to_a), "it leads nowhere: {to_a}");
}
