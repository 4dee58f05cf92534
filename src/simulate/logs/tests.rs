//! Whole logs, from bytes to exchanges.

use super::*;
use proptest::prelude::*;

fn read_log(text: &[u8], pool: Option<&str>) -> Result<Log, SimulateError> {
    gather(text, |_| {}).unwrap().finish(Path::new("/somewhere/else/access.log"), pool, &[])
}

fn ours(second: u32, pool: &str, server: &str, session: &str) -> String {
    format!(
        "{{\"time\":\"2023-11-14T22:13:{second:02}.000000Z\",\"client\":\"192.0.2.7\",\"pool\":\"{pool}\",\"server\":\"{server}\",\
         \"status\":200,\"duration_ms\":12.000,\"upstream_ms\":10.000,\"session\":\"{session}\"}}\n"
    )
}

fn nginx(client: &str, tail: &str) -> String {
    format!("{client} - - [14/Nov/2023:22:13:20 +0000] \"GET / HTTP/1.1\" 200 5 \"-\" \"curl\" {tail}\n")
}

const HAPROXY: &str = "10.0.1.2:33317 [06/Feb/2009:12:14:14.655] web shop/srv1 10/0/30/69/109 200 2750 - - ---- 1/1/1/1/0 0/0 \"GET / HTTP/1.1\"\n";

#[test]
fn the_first_line_that_is_taken_decides_on_the_format() {
    let cases = [
        (ours(1, "shop", "a", "1"), Format::Ours, KnownBy::Field),
        (ours(1, "shop", "a", ""), Format::Ours, KnownBy::Nothing),
        (nginx("192.0.2.7", "0.010"), Format::Nginx, KnownBy::Address),
        (nginx("192.0.2.7", "rt=0.010 session=x"), Format::Nginx, KnownBy::Cookie),
        (HAPROXY.to_owned(), Format::Haproxy, KnownBy::Address),
        (HAPROXY.replace(" - - ", " ID=x - "), Format::Haproxy, KnownBy::Cookie),
    ];
    for (line, format, known_by) in cases {
        let log = read_log(format!("\n# a comment of somebody\n{line}").as_bytes(), None).unwrap();
        assert_eq!((log.format, log.known_by), (format, known_by), "{line}");
        assert_eq!((log.exchanges.len(), log.lines, log.unreadable.count), (1, 2, 1), "{line}");
    }
}

#[test]
fn lines_of_another_format_are_counted_and_three_are_shown() {
    let mut text = "\n".to_owned() + &ours(1, "shop", "a", "1");
    for number in 0..5 {
        text.push_str(&nginx(&format!("192.0.2.{number}"), "\u{1b}[31m"));
    }
    let log = read_log(text.as_bytes(), None).unwrap();
    assert_eq!((log.exchanges.len(), log.unreadable.count), (1, 5));
    assert_eq!(log.unreadable.examples.len(), 3);
    let example = &log.unreadable.examples[0];
    assert_eq!((example.number, example.why), (3, "not a JSON object"));
    assert!(example.text.starts_with("192.0.2.0") && !example.text.contains('\u{1b}'), "{}", example.text);
    assert!(example.text.chars().count() <= EXAMPLE_CHARS * 10);
}

#[test]
fn a_line_too_long_is_passed_over_and_the_next_one_is_read() {
    let mut text = ours(1, "shop", "a", "1").into_bytes();
    text.extend_from_slice(&vec![b'x'; MOST_LINE * 3]);
    text.push(b'\n');
    text.extend_from_slice(ours(2, "shop", "a", "1").as_bytes());
    let log = read_log(&text, None).unwrap();
    assert_eq!((log.exchanges.len(), log.unreadable.count), (2, 1));
    assert_eq!(log.unreadable.examples[0].why, "longer than 64 KiB");
}

#[test]
fn a_log_without_anything_to_replay_says_why() {
    let message = |text: &str, pool| read_log(text.as_bytes(), pool).err().unwrap().to_string();
    assert_eq!(message("", None), "access.log is empty");
    assert_eq!(message("\n \n", None), "access.log is empty");
    let unknown = message("hello\nworld\n", None);
    assert!(unknown.starts_with("access.log is no access log") && unknown.ends_with("begins with: hello"), "{unknown}");
    let unanswered = message(&ours(1, "shop", "-", ""), None);
    assert_eq!(unanswered, "access.log has no exchange to replay: what could be read is answered by no server");
    let other = message(&ours(1, "shop", "a", ""), Some("api"));
    assert_eq!(other, "access.log has no exchange to replay: none is of the pool `api`; the log has `shop`");
}

#[test]
fn one_pool_is_taken_the_named_one_or_the_busiest() {
    let lines = [ours(1, "shop", "a", "1"), ours(2, "api", "b", "2"), ours(3, "shop", "c", "1"), ours(4, "-", "d", "")];
    let text = lines.concat();
    let busiest = read_log(text.as_bytes(), None).unwrap();
    assert_eq!((busiest.pool.as_deref(), busiest.exchanges.len()), (Some("shop"), 2));
    assert_eq!(busiest.left_out[LeftOut::OtherPool.index()], 2);
    let named = read_log(text.as_bytes(), Some("api")).unwrap();
    let servers: Vec<_> =
        named.exchanges.iter().map(|logged| &*named.servers[usize::from(logged.server.unwrap())]).collect();
    assert_eq!((named.pool.as_deref(), servers), (Some("api"), vec!["b"]));
}

#[test]
fn exchanges_are_in_the_order_in_which_they_came() {
    let text = [ours(9, "shop", "a", "9"), ours(3, "shop", "a", "3"), ours(3, "shop", "a", "4")].concat();
    let log = read_log(text.as_bytes(), None).unwrap();
    let sessions: Vec<_> = log.exchanges.iter().filter_map(|logged| logged.session).collect();
    assert_eq!(sessions, [3, 4, 9]);
}

#[test]
fn the_lines_of_a_whole_second_are_spread_over_it() {
    let text: String = (0..4).map(|number| nginx(&format!("192.0.2.{number}"), "0.100")).collect();
    let log = read_log(text.as_bytes(), None).unwrap();
    let came: Vec<i64> = log.exchanges.iter().map(|logged| logged.came - 1_700_000_000_000_000).collect();
    assert_eq!(came, [25_000, 275_000, 525_000, 775_000]);
    let exact = nginx("192.0.2.7", "rt=0.100 msec=1700000000.500");
    let log = read_log(exact.as_bytes(), None).unwrap();
    assert_eq!(log.exchanges[0].came, 1_700_000_000_400_000);
}

#[test]
fn what_is_years_away_and_names_without_end_are_left_out() {
    let mut text = ours(1, "shop", "a", "1");
    text.push_str(&ours(1, "shop", "a", "1").replace("2023", "2026"));
    text.push_str(&ours(1, "shop", &"a".repeat(MOST_NAME + 1), "1"));
    let log = read_log(text.as_bytes(), None).unwrap();
    assert_eq!(log.exchanges.len(), 1);
    assert_eq!((log.left_out[LeftOut::FarAway.index()], log.unreadable.count), (1, 1));
    let many: String = (0..MOST_NAMES + 10).map(|number| ours(1, "shop", &format!("s{number}"), "1")).collect();
    let log = read_log(many.as_bytes(), None).unwrap();
    assert_eq!((log.servers.len(), log.unreadable.count), (MOST_NAMES, 10));
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400), flips in proptest::collection::vec((0usize..600, any::<u8>()), 0..6)) {
        let _ = read_log(&bytes, None);
        for good in [ours(1, "shop", "a", "1"), nginx("::1", "rt=0.1 urt=\"0.1, 0.2\" msec=1700000000.500"), HAPROXY.to_owned()] {
            let mut broken = good.repeat(3).into_bytes();
            for (at, byte) in &flips {
                if let Some(place) = broken.get_mut(*at) {
                    *place = *byte;
                }
            }
            let _ = read_log(&broken, None);
        }
    }
}
