//! Tokens that count no more before they expire: one by its name (`jti`), all of a subject until now, all of a key.
//!
//! A deny-list is only as good as its memory, so every revocation says until when it counts, and counts for the
//! longest skew beyond: by then nobody takes what it names. Proxies share revocations over a store, in pages of
//! bounded size; which page a revocation is on follows from what it names, so that two proxies change one entry in one
//! place. What is read of a page is what was written, or nothing: half a deny-list is not taken for a whole one.

use std::collections::HashMap;

use serde_json::{Map, Value};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::claims::Verified;
use super::json::{self, MOST_TEXT_BYTES};
use super::settings::LONGEST_SKEW;

/// How many pages there are.
pub const PAGES: usize = 16;
/// The most revocations that are added to a page.
pub const MOST_A_PAGE: usize = 512;
/// The most that are read of one: proxies that add at the same time may go over the other bound.
const MOST_READ: usize = 2 * MOST_A_PAGE;
/// The longest page. A revocation takes three texts, each byte of which JSON may write as six.
const MOST_PAGE_BYTES: usize = MOST_READ * (3 * 6 * MOST_TEXT_BYTES + 256);
/// Never changes: proxies of two versions have to look on the same page.
const PAGE_SEED: u64 = 0x7374_6561_6466_6173;

/// Tokens that count no more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revocation {
    pub pool: Box<str>,
    pub what: What,
    /// When the last of them has expired; in seconds since 1970, as `at`.
    pub until: u64,
    /// When they were revoked.
    pub at: u64,
}

/// Which tokens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum What {
    /// The one of this name, whoever issued it.
    Jti(Box<str>),
    /// All of a subject that were issued when it was revoked or before, and those that do not say when.
    Subject { issuer: Box<str>, subject: Box<str> },
    /// All that were signed with a key of this name, whether they name it or not.
    Kid(Box<str>),
}

/// Why something is no revocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadRevocation {
    #[error("a revocation names a `jti`, a `kid`, or an `issuer` with a `subject`, and one of them")]
    What,
    #[error("a name has 1 to {MOST_TEXT_BYTES} bytes")]
    Name,
}

impl What {
    /// Reads `jti`, `kid`, or `issuer` and `subject`.
    pub fn read(members: &Map<String, Value>) -> Result<Self, BadRevocation> {
        let name = |member| name(members, member);
        match (name("jti")?, name("kid")?, name("issuer")?, name("subject")?) {
            (Some(jti), None, None, None) => Ok(What::Jti(jti)),
            (None, Some(kid), None, None) => Ok(What::Kid(kid)),
            (None, None, Some(issuer), Some(subject)) => Ok(What::Subject { issuer, subject }),
            _ => Err(BadRevocation::What),
        }
    }

    /// Each name with the word that it is written under.
    fn names(&self) -> Vec<(&'static str, &str)> {
        match self {
            What::Jti(jti) => vec![("jti", &**jti)],
            What::Subject { issuer, subject } => vec![("issuer", &**issuer), ("subject", &**subject)],
            What::Kid(kid) => vec![("kid", &**kid)],
        }
    }
}

fn name(members: &Map<String, Value>, member: &str) -> Result<Option<Box<str>>, BadRevocation> {
    let text = json::text(members, member, MOST_TEXT_BYTES).map_err(|_| BadRevocation::Name)?;
    if text.is_some_and(str::is_empty) { Err(BadRevocation::Name) } else { Ok(text.map(Box::<str>::from)) }
}

impl Revocation {
    /// Whether both name the same tokens.
    pub fn is_of_same(&self, other: &Revocation) -> bool {
        self.pool == other.pool && self.what == other.what
    }

    /// Whether it is still needed. That is for longer than it says: with clocks apart, a token counts beyond its end.
    pub fn counts(&self, now: u64) -> bool {
        counts_until(self.until, now)
    }

    /// As it is written.
    pub fn value(&self) -> Value {
        let mut members = Map::new();
        members.insert("pool".into(), Value::from(&*self.pool));
        for (word, name) in self.what.names() {
            members.insert(word.into(), name.into());
        }
        members.insert("until".into(), self.until.into());
        members.insert("at".into(), self.at.into());
        Value::Object(members)
    }

    /// Reads what [`Self::value`] wrote.
    pub fn read(value: &Value) -> Option<Self> {
        let members = value.as_object()?;
        Some(Revocation {
            pool: name(members, "pool").ok()??,
            what: What::read(members).ok()?,
            until: members.get("until")?.as_u64()?,
            at: members.get("at")?.as_u64()?,
        })
    }
}

fn counts_until(until: u64, now: u64) -> bool {
    now < until.saturating_add(LONGEST_SKEW.as_secs())
}

/// Adds a revocation to others. One of the same tokens is merged with it: both hold.
pub fn merge(known: &mut Vec<Revocation>, new: Revocation) {
    match known.iter_mut().find(|other| other.is_of_same(&new)) {
        Some(same) => (same.until, same.at) = (same.until.max(new.until), same.at.max(new.at)),
        None => known.push(new),
    }
}

/// Forgets revocations that are not needed any more.
pub fn expire(known: &mut Vec<Revocation>, now: u64) {
    known.retain(|revocation| revocation.counts(now));
}

/// The page that a revocation is on, of [`PAGES`].
pub fn page_of(revocation: &Revocation) -> usize {
    let mut named = Vec::new();
    let names = revocation.what.names();
    for (word, name) in [("pool", &*revocation.pool)].into_iter().chain(names) {
        // With its length, so that no two lists of names are one.
        named.extend_from_slice(word.as_bytes());
        named.extend_from_slice(&(name.len() as u64).to_be_bytes());
        named.extend_from_slice(name.as_bytes());
    }
    (xxh3_64_with_seed(&named, PAGE_SEED) % PAGES as u64) as usize
}

/// A page as it is kept. What nobody could read is left out: one entry must not cost the others.
pub fn write_page(revocations: &[Revocation]) -> Vec<u8> {
    let values = revocations.iter().map(Revocation::value);
    let readable: Vec<Value> = values.filter(|value| Revocation::read(value).is_some()).take(MOST_READ).collect();
    let mut page = Map::new();
    page.insert("revoked".into(), readable.into());
    Value::Object(page).to_string().into_bytes()
}

/// Reads a page; nothing where it is not one as a whole.
pub fn read_page(page: &[u8]) -> Option<Vec<Revocation>> {
    if page.len() > MOST_PAGE_BYTES {
        return None;
    }
    let members = json::object(page)?;
    let values = members.get("revoked")?.as_array().filter(|values| values.len() <= MOST_READ)?;
    values.iter().map(Revocation::read).collect()
}

/// What is revoked, to be asked at every request: each question is a few look-ups.
#[derive(Debug, Default)]
pub struct Revocations(HashMap<Box<str>, OfPool>);

#[derive(Debug, Default)]
struct OfPool {
    /// Until when each counts.
    jtis: HashMap<Box<str>, u64>,
    kids: HashMap<Box<str>, u64>,
    /// By issuer, then by subject.
    subjects: HashMap<Box<str>, HashMap<Box<str>, OfSubject>>,
}

#[derive(Clone, Copy, Debug, Default)]
struct OfSubject {
    until: u64,
    at: u64,
}

impl Revocations {
    /// Those of all pools.
    pub fn new(revocations: impl IntoIterator<Item = Revocation>) -> Self {
        let mut pools: HashMap<Box<str>, OfPool> = HashMap::new();
        for Revocation { pool, what, until, at } in revocations {
            pools.entry(pool).or_default().add(what, until, at);
        }
        Revocations(pools)
    }

    /// Whether a good token of this issuer counts no more.
    pub fn is_revoked(&self, pool: &str, issuer: &str, token: &Verified, now: u64) -> bool {
        self.0.get(pool).is_some_and(|of_pool| of_pool.has(issuer, token, now))
    }
}

impl OfPool {
    fn add(&mut self, what: What, until: u64, at: u64) {
        let later = |known: &mut u64| *known = until.max(*known);
        match what {
            What::Jti(jti) => later(self.jtis.entry(jti).or_default()),
            What::Kid(kid) => later(self.kids.entry(kid).or_default()),
            What::Subject { issuer, subject } => {
                let known = self.subjects.entry(issuer).or_default().entry(subject).or_default();
                later(&mut known.until);
                known.at = known.at.max(at);
            }
        }
    }

    fn has(&self, issuer: &str, token: &Verified, now: u64) -> bool {
        let by_name = |names: &HashMap<Box<str>, u64>, name: &Option<Box<str>>| {
            let until = name.as_deref().and_then(|name| names.get(name));
            until.is_some_and(|until| counts_until(*until, now))
        };
        let of_subject = self.subjects.get(issuer).and_then(|subjects| subjects.get(&*token.subject));
        let by_subject = |of_subject: &OfSubject| {
            counts_until(of_subject.until, now) && token.issued_at.is_none_or(|issued_at| issued_at <= of_subject.at)
        };
        by_name(&self.jtis, &token.jti) || by_name(&self.kids, &token.kid) || of_subject.is_some_and(by_subject)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::stateless::tests::verified;

    const NOW: u64 = 1_800_000_000;
    const ISSUER: &str = "https://id.example.com";

    fn revocation(what: What) -> Revocation {
        Revocation { pool: "shop".into(), what, until: NOW + 600, at: NOW }
    }

    fn of_subject(subject: &str) -> What {
        What::Subject { issuer: ISSUER.into(), subject: subject.into() }
    }

    fn jti(number: usize) -> Revocation {
        revocation(What::Jti(format!("t-{number}").into()))
    }

    #[test]
    fn what_is_revoked_is_what_is_named_and_no_more() {
        let token = verified();
        for (what, is_meant) in [
            (What::Jti("t-1".into()), true),
            (What::Jti("t-2".into()), false),
            (What::Jti("alice".into()), false),
            (What::Kid("k".into()), true),
            (What::Kid("K".into()), false),
            (of_subject("alice"), true),
            (of_subject("bob"), false),
            (What::Subject { issuer: "https://other.example.com".into(), subject: "alice".into() }, false),
        ] {
            let revocations = Revocations::new([revocation(what.clone())]);
            let is_revoked = |pool: &str, now| revocations.is_revoked(pool, ISSUER, &token, now);
            assert_eq!(is_revoked("shop", NOW), is_meant, "{what:?}");
            assert!(!is_revoked("blog", NOW), "{what:?}, in another pool");
            let skew = LONGEST_SKEW.as_secs();
            assert_eq!(
                is_revoked("shop", NOW + 600 + skew - 1),
                is_meant,
                "{what:?}, for as long as clocks may differ"
            );
            assert!(!is_revoked("shop", NOW + 600 + skew), "{what:?}, afterwards");
        }
        assert!(!Revocations::default().is_revoked("shop", ISSUER, &token, NOW));
        let nameless = Verified { jti: None, kid: None, ..verified() };
        let names = [revocation(What::Jti("t-1".into())), revocation(What::Kid("k".into()))];
        assert!(!Revocations::new(names).is_revoked("shop", ISSUER, &nameless, NOW));
    }

    #[test]
    fn a_subject_loses_what_was_issued_until_then_and_what_does_not_say_when() {
        let revocations = Revocations::new([revocation(of_subject("alice"))]);
        for (issued_at, is_revoked) in
            [(Some(NOW - 1), true), (Some(NOW), true), (Some(NOW + 1), false), (None, true), (Some(0), true)]
        {
            let token = Verified { issued_at, ..verified() };
            assert_eq!(revocations.is_revoked("shop", ISSUER, &token, NOW + 2), is_revoked, "{issued_at:?}");
        }
    }

    #[test]
    fn two_revocations_of_the_same_tokens_both_hold() {
        let early = Revocation { until: NOW + 900, at: NOW - 100, ..revocation(of_subject("alice")) };
        let late = revocation(of_subject("alice"));
        let mut known = Vec::new();
        for one in [early.clone(), jti(1), late.clone(), jti(1)] {
            merge(&mut known, one);
        }
        assert_eq!(known, [Revocation { at: NOW, ..early.clone() }, jti(1)]);
        let fresh = Verified { issued_at: Some(NOW), jti: None, ..verified() };
        for both in [[early.clone(), late.clone()], [late, early]] {
            assert!(Revocations::new(both).is_revoked("shop", ISSUER, &fresh, NOW + 899));
        }
    }

    #[test]
    fn a_revocation_is_forgotten_when_it_is_needed_no_more() {
        let skew = LONGEST_SKEW.as_secs();
        let mut known = vec![jti(1), Revocation { until: NOW, ..jti(2) }, Revocation { until: u64::MAX, ..jti(3) }];
        expire(&mut known, NOW + skew - 1);
        assert_eq!(known.len(), 3);
        expire(&mut known, NOW + skew);
        assert_eq!(known.len(), 2);
        expire(&mut known, u64::MAX - 1);
        assert_eq!(known, [Revocation { until: u64::MAX, ..jti(3) }]);
    }

    #[test]
    fn a_page_is_the_same_in_every_version() {
        assert_eq!(page_of(&jti(1)), 5);
        assert_eq!(page_of(&revocation(What::Kid("2026-01".into()))), 5);
        assert_eq!(page_of(&revocation(of_subject("alice"))), 14);
        let later = Revocation { until: NOW + 9_999, at: NOW + 9, ..jti(1) };
        assert_eq!(page_of(&later), page_of(&jti(1)), "whenever it was and ends");
        let mut counts = [0; PAGES];
        (0..16_000).for_each(|number| counts[page_of(&jti(number))] += 1);
        assert!(counts.iter().all(|count| (800..1_200).contains(count)), "{counts:?}");
    }

    #[test]
    fn a_page_reads_back() {
        let names = ["a", "\"", "\u{0}", "Zo\u{eb}", &"x".repeat(MOST_TEXT_BYTES), &"\u{1}".repeat(MOST_TEXT_BYTES)];
        let named =
            names.iter().flat_map(|name| [What::Jti((*name).into()), What::Kid((*name).into()), of_subject(name)]);
        let written: Vec<Revocation> = named.map(revocation).collect();
        assert_eq!(read_page(&write_page(&written)), Some(written));
        assert_eq!(read_page(&write_page(&[])), Some(Vec::new()));
        let expected = r#"{"revoked":[{"pool":"shop","jti":"t-1","until":1800000600,"at":1800000000}]}"#;
        assert_eq!(write_page(&[jti(1)]), expected.as_bytes(), "as it will be read by other versions");
    }

    #[test]
    fn a_full_page_reads_back_and_so_does_one_that_two_proxies_filled() {
        let long = "\u{1}".repeat(MOST_TEXT_BYTES - 8);
        let full: Vec<Revocation> = (0..MOST_READ)
            .map(|number| {
                let what = What::Subject { issuer: long.clone().into(), subject: format!("{long}{number}").into() };
                Revocation { pool: long.clone().into(), ..revocation(what) }
            })
            .collect();
        assert_eq!(read_page(&write_page(&full)), Some(full.clone()));
        let unreadable = revocation(What::Jti("x".repeat(MOST_TEXT_BYTES + 1).into()));
        assert_eq!(read_page(&write_page(&[jti(1), unreadable, jti(2)])), Some(vec![jti(1), jti(2)]));
        let over = [full, vec![jti(1)]].concat();
        assert_eq!(read_page(&write_page(&over)).map(|read| read.len()), Some(MOST_READ));
    }

    #[test]
    fn a_page_with_one_bad_entry_is_no_page() {
        let good = json!({ "pool": "shop", "jti": "t-1", "until": 1, "at": 1 });
        let page = |value: &Value| json!({ "revoked": [&good, value] }).to_string();
        let changed = |name: &str, value: Value| {
            let mut changed = good.clone();
            changed[name] = value;
            changed
        };
        assert!(read_page(page(&good).as_bytes()).is_some());
        for bad in [
            changed("kid", json!("k")),
            changed("subject", json!("alice")),
            changed("jti", json!("")),
            changed("jti", json!(null)),
            changed("jti", json!("x".repeat(MOST_TEXT_BYTES + 1))),
            changed("pool", json!(1)),
            changed("until", json!("1")),
            changed("until", json!(-1)),
            changed("until", json!(1.5)),
            changed("at", json!(null)),
            json!({ "pool": "shop", "until": 1, "at": 1 }),
            json!({ "pool": "shop", "issuer": ISSUER, "until": 1, "at": 1 }),
            json!({ "pool": "shop", "jti": "t-1", "until": 1 }),
            json!([]),
            json!(null),
        ] {
            assert_eq!(read_page(page(&bad).as_bytes()), None, "{bad}");
        }
        let many = vec![good.clone(); MOST_READ + 1];
        for text in [
            json!({ "revoked": many }).to_string(),
            json!({ "revoked": {} }).to_string(),
            json!({}).to_string(),
            json!([good]).to_string(),
            format!("{{\"revoked\":[],\"revoked\":[{good}]}}"),
            format!("{{\"revoked\":[],\"x\":\"{}\"}}", "x".repeat(MOST_PAGE_BYTES)),
            String::new(),
        ] {
            assert_eq!(read_page(text.as_bytes()), None, "{}", &text[..text.len().min(60)]);
        }
    }

    #[test]
    fn what_is_revoked_is_said_in_one_way() {
        let read = |value: Value| What::read(value.as_object().unwrap());
        assert_eq!(read(json!({ "pool": "shop", "jti": "t-1" })), Ok(What::Jti("t-1".into())));
        assert_eq!(read(json!({ "kid": "k" })), Ok(What::Kid("k".into())));
        assert_eq!(read(json!({ "issuer": ISSUER, "subject": "alice" })), Ok(of_subject("alice")));
        for (value, why) in [
            (json!({}), BadRevocation::What),
            (json!({ "subject": "alice" }), BadRevocation::What),
            (json!({ "jti": "t-1", "kid": "k" }), BadRevocation::What),
            (json!({ "jti": "t-1", "issuer": ISSUER, "subject": "alice" }), BadRevocation::What),
            (json!({ "jti": "" }), BadRevocation::Name),
            (json!({ "jti": 1 }), BadRevocation::Name),
            (json!({ "kid": "k".repeat(MOST_TEXT_BYTES + 1) }), BadRevocation::Name),
        ] {
            assert_eq!(read(value.clone()), Err(why), "{value}");
        }
    }

    proptest! {
        #[test]
        fn garbage_is_no_page_and_harms_nobody(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(read_page(&bytes), None);
        }

        #[test]
        fn any_changed_byte_of_a_page_harms_nobody(at in 0usize..1_000, byte in any::<u8>()) {
            let mut page = write_page(&[jti(1), revocation(of_subject("alice"))]);
            let at = at % page.len();
            page[at] = byte;
            if let Some(read) = read_page(&page) {
                prop_assert!(read.len() <= 2);
            }
        }
    }
}
