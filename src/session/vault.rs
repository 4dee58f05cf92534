//! The cookie vault: cookies in which a framework keeps its own session stay at the proxy, in the session's record.
//!
//! A server sets them and gets them back as if the proxy were its browser (RFC 6265, sections 5.1 to 5.4); the browser
//! itself has the session cookie only. So what a framework signs and leaves at the client becomes a session that every
//! server can serve, that nobody can copy, and that ends when it is ended.
//!
//! This is the browser of one realm and one user (pools of a realm share what is kept): what says to whom a cookie may be shown (`Domain`, `Secure`,
//! `HttpOnly`, `SameSite`) says nothing here. Names that servers set are compared byte by byte. Names that clients send
//! are read as the most careless server would: nobody plants what the framework would believe. As in a browser, a
//! cookie that is too large is not kept, and past a number of them the oldest goes; but cookies that are too large together
//! are an error, as one of them is the session.

use std::borrow::Cow;
use std::cmp::Reverse;

use bytes::Bytes;
use cookie::time::{Date, Month};
use data_encoding::BASE64URL_NOPAD;
use http::Method;
use http::header::{COOKIE, HeaderMap, HeaderValue, SET_COOKIE};
use percent_encoding::percent_decode;
use zeroize::Zeroizing;

use crate::keys::{Entropy, fresh};

/// Cookies of one session.
pub const MOST_COOKIES: usize = 16;
/// Bytes of a cookie's name and value: what browsers take.
pub const MOST_COOKIE_BYTES: usize = 4 * 1024;
/// Bytes of a cookie's path; a longer one that a server names is as if it had named none.
pub const MOST_PATH_BYTES: usize = 1024;
/// Bytes of all cookies of one session.
pub const MOST_BYTES: usize = 32 * 1024;

/// The cookies of one session, the longest known first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Jar(Vec<Kept>);

/// A cookie as a server has set it. Two of one name live side by side where their paths differ.
#[derive(Clone, PartialEq, Eq)]
pub struct Kept {
    pub name: Box<str>,
    pub value: Box<[u8]>,
    pub path: Box<str>,
    /// In seconds since 1970; none: it lives as long as the session.
    pub expires_at: Option<u64>,
}

impl std::fmt::Debug for Kept {
    /// Without its value: whoever has that has the framework's session.
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Kept({} of {}, {} bytes, until {:?})", self.name, self.path, self.value.len(), self.expires_at)
    }
}

/// What a response says of one cookie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    Set(Kept),
    Delete { name: Box<str>, path: Box<str> },
}

/// Cookies that are more than a session keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TooMuch {
    #[error("a cookie for the vault is too large")]
    Cookie,
    #[error("there are too many cookies for the vault")]
    Count,
    #[error("the cookies for the vault are too large together")]
    Total,
}

/// Takes the cookies of these names out of a response, whether or not they can be read, and gives what it says of them;
/// of one cookie the last word. `path`: what the browser asked for, in its normal form.
pub fn take(headers: &mut HeaderMap, names: &[Box<str>], now: u64, path: &str) -> Vec<Change> {
    let lines = headers.get_all(SET_COOKIE);
    if !lines.iter().any(|line| own_name(names, line.as_bytes()).is_some()) {
        return Vec::new();
    }
    let lines: Vec<HeaderValue> = lines.iter().cloned().collect();
    headers.remove(SET_COOKIE);
    let mut changes: Vec<Change> = Vec::new();
    for line in lines {
        let Some(name) = own_name(names, line.as_bytes()) else {
            headers.append(SET_COOKIE, line);
            continue;
        };
        if let Some(change) = read_line(name, line.as_bytes(), now, path) {
            changes.retain(|before| before.key() != change.key());
            changes.push(change);
        }
    }
    changes
}

/// Whether there is something to be kept, for which there has to be a session.
pub fn keeps_something(changes: &[Change]) -> bool {
    changes.iter().any(|change| matches!(change, Change::Set(_)))
}

/// Writes the Cookie line that a server is to see: ours first, as where a name comes twice most servers take the first;
/// then the client's, without what might be taken for one of ours. Gives how many of those there were.
pub fn add_to_request(headers: &mut HeaderMap, names: &[Box<str>], jar: Option<&Jar>, path: &str, now: u64) -> usize {
    let is_planted = |pair: &&[u8]| might_be_ours(names, pair);
    let planted = pairs(headers).filter(is_planted).count();
    let ours = jar.and_then(|jar| jar.cookie_header(names, path, now));
    if planted == 0 && ours.is_none() {
        return 0;
    }
    let theirs = pairs(headers).filter(|pair| !pair.is_empty() && !is_planted(pair));
    let line = ours.as_deref().into_iter().chain(theirs).collect::<Vec<&[u8]>>().join(&b"; "[..]);
    match HeaderValue::from_maybe_shared(Bytes::from(line)) {
        Ok(line) if !line.is_empty() => drop(headers.insert(COOKIE, line)),
        _ => drop(headers.remove(COOKIE)),
    }
    planted
}

impl Jar {
    /// Whether nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What is kept, in bytes: it counts as the session's.
    pub fn bytes(&self) -> usize {
        self.0.iter().map(Kept::bytes).sum()
    }

    /// Those of the changes that are any for who was shown this jar. One that is none may as well have happened before
    /// what others did meanwhile: a cookie that is only set again must not undo a login that went on beside it.
    pub fn news(&self, mut changes: Vec<Change>, now: u64) -> Vec<Change> {
        changes.retain(|change| {
            let known = self.0.iter().find(|kept| kept.key() == change.key() && kept.counts(now));
            match change {
                Change::Set(new) => !known.is_some_and(|known| new.adds_nothing_to(known, now)),
                Change::Delete { .. } => known.is_some(),
            }
        });
        changes
    }

    /// Does what a response says; whether anything is another by that. Of what is too much nothing is done.
    pub fn apply(&mut self, changes: &[Change], now: u64) -> Result<bool, TooMuch> {
        if changes.is_empty() {
            return Ok(false);
        }
        let mut after = self.0.clone();
        after.retain(|kept| kept.counts(now));
        for change in changes {
            let at = after.iter().position(|kept| kept.key() == change.key());
            match (change, at) {
                (Change::Set(new), Some(at)) if new.adds_nothing_to(&after[at], now) => {}
                // It keeps its place among those of equal paths.
                (Change::Set(new), Some(at)) => after[at] = new.clone(),
                (Change::Set(new), None) => after.push(new.clone()),
                (Change::Delete { .. }, Some(at)) => drop(after.remove(at)),
                (Change::Delete { .. }, None) => {}
            }
        }
        // Those that were there longest make room.
        after.drain(..after.len().saturating_sub(MOST_COOKIES));
        check(&after)?;
        let changed = after != self.0;
        self.0 = after;
        Ok(changed)
    }

    /// What a server is shown at this path: cookies of these names, which may be fewer than when they were kept; longer
    /// paths first (RFC 6265, section 5.4).
    pub fn cookie_header(&self, names: &[Box<str>], path: &str, now: u64) -> Option<Vec<u8>> {
        let is_shown = |kept: &&Kept| names.contains(&kept.name) && kept.counts(now) && path_matches(path, &kept.path);
        let mut shown: Vec<&Kept> = self.0.iter().filter(is_shown).collect();
        shown.sort_by_key(|kept| Reverse(kept.path.len()));
        let pairs = shown.iter().map(|kept| [kept.name.as_bytes(), b"=", &kept.value[..]].concat());
        (!shown.is_empty()).then(|| pairs.collect::<Vec<_>>().join(&b"; "[..]))
    }

    fn value(&self, name: &str, path: &str) -> Option<&[u8]> {
        self.0.iter().find(|kept| kept.key() == (name, path)).map(|kept| &*kept.value)
    }

    /// As it is sealed: how many, then each with its texts behind their length.
    pub fn write(&self) -> Zeroizing<Vec<u8>> {
        let mut out = Zeroizing::new(Vec::with_capacity(4 + self.bytes() + 21 * self.0.len()));
        put_count(&mut out, self.0.len());
        for kept in &self.0 {
            for text in [kept.name.as_bytes(), &kept.value[..], kept.path.as_bytes()] {
                put_count(&mut out, text.len());
                out.extend_from_slice(text);
            }
            match kept.expires_at {
                None => out.push(0),
                Some(expires_at) => {
                    out.push(1);
                    out.extend_from_slice(&expires_at.to_be_bytes());
                }
            }
        }
        out
    }

    /// Reads what [`Jar::write`] wrote.
    pub fn read(mut bytes: &[u8]) -> Option<Self> {
        let from = &mut bytes;
        let count = u32::from_be_bytes(array(from)?) as usize;
        if count > MOST_COOKIES {
            return None;
        }
        let mut kept = Vec::with_capacity(count);
        for _ in 0..count {
            kept.push(Kept {
                name: std::str::from_utf8(text(from)?).ok()?.into(),
                value: text(from)?.into(),
                path: std::str::from_utf8(text(from)?).ok()?.into(),
                expires_at: match array(from)? {
                    [0] => None,
                    [1] => Some(u64::from_be_bytes(array(from)?)),
                    _ => return None,
                },
            });
        }
        (bytes.is_empty() && check(&kept).is_ok()).then_some(Jar(kept))
    }
}

fn put_count(out: &mut Vec<u8>, count: usize) {
    // Every list and text is bounded far below this.
    out.extend_from_slice(&u32::try_from(count).unwrap_or(u32::MAX).to_be_bytes());
}

fn array<const N: usize>(from: &mut &[u8]) -> Option<[u8; N]> {
    let (array, rest) = from.split_first_chunk()?;
    *from = rest;
    Some(*array)
}

fn text<'a>(from: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = u32::from_be_bytes(array(from)?) as usize;
    let (text, rest) = from.split_at_checked(length)?;
    *from = rest;
    Some(text)
}

fn check(kept: &[Kept]) -> Result<(), TooMuch> {
    let is_large =
        |kept: &Kept| kept.name.len() + kept.value.len() > MOST_COOKIE_BYTES || kept.path.len() > MOST_PATH_BYTES;
    if kept.iter().any(is_large) {
        return Err(TooMuch::Cookie);
    }
    if kept.len() > MOST_COOKIES {
        return Err(TooMuch::Count);
    }
    if kept.iter().map(Kept::bytes).sum::<usize>() > MOST_BYTES { Err(TooMuch::Total) } else { Ok(()) }
}

impl Kept {
    /// What tells it from others.
    fn key(&self) -> (&str, &str) {
        (&self.name, &self.path)
    }

    fn bytes(&self) -> usize {
        self.name.len() + self.value.len() + self.path.len()
    }

    fn counts(&self, now: u64) -> bool {
        self.expires_at.is_none_or(|end| end > now)
    }

    /// Whether it is the same, and lives so little longer that this is not worth a write: some frameworks set their
    /// cookie with each response.
    fn adds_nothing_to(&self, before: &Kept, now: u64) -> bool {
        let is_as_long = match (self.expires_at, before.expires_at) {
            (Some(end), Some(known)) => known <= end && end - known <= end.saturating_sub(now) / 20,
            (end, known) => end == known,
        };
        is_as_long && self.value == before.value
    }
}

impl Change {
    fn key(&self) -> (&str, &str) {
        match self {
            Change::Set(kept) => kept.key(),
            Change::Delete { name, path } => (name, path),
        }
    }
}

/// When a response shows that somebody has logged in, where the application does not say so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoginWhen {
    /// In its normal form.
    pub path: Box<str>,
    pub method: Method,
    pub status: Vec<u16>,
    /// A cookie of the vault that has to have got another value.
    pub cookie_changed: Option<Box<str>>,
}

impl LoginWhen {
    /// Whether this exchange was a login. `path`: what the browser asked for, in its normal form; `before`: what the
    /// server was shown.
    pub fn happened(&self, method: &Method, path: &str, status: u16, changes: &[Change], before: &Jar) -> bool {
        let is_another = |kept: &Kept| before.value(&kept.name, &kept.path) != Some(&*kept.value);
        let has_changed = |name: &str| {
            changes.iter().any(|change| matches!(change, Change::Set(kept) if *kept.name == *name && is_another(kept)))
        };
        *method == self.method
            && *path == *self.path
            && self.status.contains(&status)
            && self.cookie_changed.as_deref().is_none_or(has_changed)
    }

    /// Whether the framework has taken back what it set at the login: a logout, if this was one.
    pub fn is_undone(&self, changes: &[Change]) -> bool {
        let mark = self.cookie_changed.as_deref();
        changes.iter().any(|change| matches!(change, Change::Delete { name, .. } if Some(&**name) == mark))
    }
}

/// A name for somebody who has logged in, where only the framework knows who it is: another at each login, so that
/// such sessions are listed, and can be ended one by one.
pub fn subject(entropy: &mut dyn Entropy) -> Box<str> {
    format!("{SUBJECT}{}", BASE64URL_NOPAD.encode(&fresh::<16>(entropy))).into()
}

const SUBJECT: &str = "vault:";

/// Whether this is the name of somebody whose login was seen from outside.
pub fn is_subject(name: &str) -> bool {
    name.starts_with(SUBJECT)
}

/// The name of a Set-Cookie line, if it is one of these.
fn own_name<'a>(names: &'a [Box<str>], line: &[u8]) -> Option<&'a str> {
    let name = trim(before(b'=', before(b';', line)));
    names.iter().map(|own| &**own).find(|own| own.as_bytes() == name)
}

/// What a Set-Cookie line says; nothing where it has a name and no value (RFC 6265, section 5.2).
fn read_line(name: &str, line: &[u8], now: u64, asked: &str) -> Option<Change> {
    let mut parts = line.split(|byte| *byte == b';');
    let (_, value) = name_and_value(parts.next()?)?;
    let (mut max_age, mut expires, mut path) = (None, None, None);
    for part in parts {
        let (key, value) = name_and_value(part).unwrap_or((trim(part), &[]));
        if key.eq_ignore_ascii_case(b"max-age") {
            max_age = seconds(value).or(max_age);
        } else if key.eq_ignore_ascii_case(b"expires") {
            expires = date(value).or(expires);
        } else if key.eq_ignore_ascii_case(b"path") {
            let named = std::str::from_utf8(value).ok();
            path = named.filter(|path| path.starts_with('/') && path.len() <= MOST_PATH_BYTES);
        }
    }
    let expires_at = max_age.map(|age| now.saturating_add(age)).or(expires);
    let path =
        path.unwrap_or_else(|| Some(default_path(asked)).filter(|path| path.len() <= MOST_PATH_BYTES).unwrap_or("/"));
    let (name, path): (Box<str>, Box<str>) = (name.into(), path.into());
    if expires_at.is_some_and(|end| end <= now) {
        return Some(Change::Delete { name, path });
    }
    // Browsers take no larger one either.
    let fits = name.len() + value.len() <= MOST_COOKIE_BYTES;
    fits.then(|| Change::Set(Kept { name, value: value.into(), path, expires_at }))
}

/// A `Max-Age`; less than none is none.
fn seconds(text: &[u8]) -> Option<u64> {
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = std::str::from_utf8(digits).ok()?.parse().unwrap_or(u64::MAX);
    Some(if digits.len() < text.len() { 0 } else { number })
}

/// The path that a cookie has which names none (RFC 6265, section 5.1.4).
fn default_path(asked: &str) -> &str {
    match asked.rfind('/') {
        Some(end) if end > 0 && asked.starts_with('/') => &asked[..end],
        _ => "/",
    }
}

/// Whether a cookie of this path is shown at another (RFC 6265, section 5.1.4).
fn path_matches(asked: &str, path: &str) -> bool {
    let rest = asked.strip_prefix(path);
    rest.is_some_and(|rest| rest.is_empty() || path.ends_with('/') || rest.starts_with('/'))
}

/// A date as browsers read it (RFC 6265, section 5.1.1), in seconds since 1970.
fn date(text: &[u8]) -> Option<u64> {
    let (mut time, mut day, mut month, mut year) = (None, None, None, None);
    for token in text.split(|byte| is_delimiter(*byte)) {
        if time.is_none() && clock(token).is_some() {
            time = clock(token);
        } else if day.is_none() && number(token, 1, 2).is_some() {
            day = number(token, 1, 2);
        } else if month.is_none() && month_of(token).is_some() {
            month = month_of(token);
        } else if year.is_none() {
            year = number(token, 2, 4);
        }
    }
    let year = match year?.0 {
        year @ 70..=99 => year + 1900,
        year @ 0..=69 => year + 2000,
        year => Some(year).filter(|year| *year >= 1601)?,
    };
    let (hour, minute, second) = time?;
    let date = Date::from_calendar_date(i32::from(year), month?, u8::try_from(day?.0).ok()?).ok()?;
    let date = date.with_hms(hour, minute, second).ok()?.assume_utc().unix_timestamp();
    Some(u64::try_from(date).unwrap_or(0))
}

const fn is_delimiter(byte: u8) -> bool {
    matches!(byte, b'\t' | 0x20..=0x2f | 0x3b..=0x40 | 0x5b..=0x60 | 0x7b..=0x7e)
}

/// The number that a token begins with, if it has so many digits, and what follows them.
fn number(token: &[u8], least: usize, most: usize) -> Option<(u16, &[u8])> {
    let digits = token.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (number, rest) = token.split_at_checked(digits).filter(|_| least <= digits && digits <= most)?;
    Some((std::str::from_utf8(number).ok()?.parse().ok()?, rest))
}

fn clock(token: &[u8]) -> Option<(u8, u8, u8)> {
    let (hour, rest) = number(token, 1, 2)?;
    let (minute, rest) = number(rest.strip_prefix(b":")?, 1, 2)?;
    let (second, _) = number(rest.strip_prefix(b":")?, 1, 2)?;
    // Two digits at most.
    Some((u8::try_from(hour).ok()?, u8::try_from(minute).ok()?, u8::try_from(second).ok()?))
}

fn month_of(token: &[u8]) -> Option<Month> {
    const MONTHS: [&[u8]; 12] =
        [b"jan", b"feb", b"mar", b"apr", b"may", b"jun", b"jul", b"aug", b"sep", b"oct", b"nov", b"dec"];
    let begins = token.first_chunk::<3>()?.to_ascii_lowercase();
    let at = MONTHS.iter().position(|month| **month == begins[..])?;
    Month::try_from(u8::try_from(at + 1).ok()?).ok()
}

/// Whether some server might find one of these names in a pair of a client's Cookie line. Servers trim any white space,
/// decode escapes, fold case, take `.` for `_`, and begin another cookie at a comma or a blank: each of these is done
/// somewhere.
fn might_be_ours(names: &[Box<str>], pair: &[u8]) -> bool {
    let before_values = memchr::memrchr(b'=', pair).map_or(pair, |end| &pair[..end]);
    before_values.split(|byte| *byte == b'=').any(|text| {
        let decoded: Cow<'_, [u8]> = percent_decode(text).into();
        let words = [last_word(text), last_word(&decoded)];
        names.iter().any(|name| words.iter().any(|word| plain(word).eq(plain(name.as_bytes()))))
    })
}

fn last_word(text: &[u8]) -> &[u8] {
    let mut words = text.split(|byte| !byte.is_ascii_graphic() || *byte == b',');
    words.rfind(|word| !word.is_empty()).unwrap_or_default()
}

fn plain(name: &[u8]) -> impl Iterator<Item = u8> {
    name.iter().map(|byte| if byte.is_ascii_alphanumeric() { byte.to_ascii_lowercase() } else { b'-' })
}

/// What stands between the semicolons of all Cookie lines.
fn pairs(headers: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    headers.get_all(COOKIE).iter().flat_map(|line| line.as_bytes().split(|byte| *byte == b';')).map(trim)
}

fn name_and_value(pair: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = memchr::memchr(b'=', pair)?;
    Some((trim(&pair[..at]), trim(&pair[at + 1..])))
}

fn before(end: u8, text: &[u8]) -> &[u8] {
    memchr::memchr(end, text).map_or(text, |at| &text[..at])
}

/// Only SP and HTAB are white space here.
fn trim(mut text: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = text {
        text = rest;
    }
    text
}

#[cfg(test)]
mod tests {
    use cookie::Cookie;
    use cookie::time::OffsetDateTime;
    use proptest::prelude::*;

    use super::*;
    use crate::session::model::Counted;

    const NOW: u64 = 1_800_000_000;
    const ASKED: &str = "/app/page";

    fn names(names: &[&str]) -> Vec<Box<str>> {
        names.iter().map(|name| Box::from(*name)).collect()
    }

    fn kept(name: &str, value: &str, path: &str, expires_at: Option<u64>) -> Kept {
        Kept { name: name.into(), value: value.as_bytes().into(), path: path.into(), expires_at }
    }

    fn set(value: &str, path: &str, expires_at: Option<u64>) -> Option<Change> {
        Some(Change::Set(kept("session", value, path, expires_at)))
    }

    fn delete(path: &str) -> Option<Change> {
        Some(Change::Delete { name: "session".into(), path: path.into() })
    }

    fn jar(cookies: &[Kept]) -> Jar {
        let mut jar = Jar::default();
        let changes: Vec<Change> = cookies.iter().cloned().map(Change::Set).collect();
        jar.apply(&changes, NOW).unwrap();
        jar
    }

    /// The changes of a response, and the lines that are left of it.
    fn taken<L: AsRef<[u8]>>(own: &[&str], lines: &[L]) -> (Vec<Change>, Vec<Vec<u8>>) {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(SET_COOKIE, HeaderValue::from_bytes(line.as_ref()).unwrap());
        }
        let changes = take(&mut headers, &names(own), NOW, ASKED);
        let left = headers.get_all(SET_COOKIE).iter().map(|line| line.as_bytes().to_vec()).collect();
        (changes, left)
    }

    /// The Cookie line that a server sees, and how many pairs it was not to see.
    fn shown(own: &[&str], jar: Option<&Jar>, lines: &[&[u8]], path: &str) -> (Option<Vec<u8>>, usize) {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(COOKIE, HeaderValue::from_bytes(line).unwrap());
        }
        let planted = add_to_request(&mut headers, &names(own), jar, path, NOW);
        assert!(headers.get_all(COOKIE).iter().count() <= 1 || (jar.is_none() && planted == 0));
        (headers.get(COOKIE).map(|line| line.as_bytes().to_vec()), planted)
    }

    #[test]
    fn what_a_server_says_of_a_cookie_is_read_as_browsers_read_it() {
        for (line, wanted) in [
            ("session=abc", set("abc", "/app", None)),
            ("session=abc; Secure; HttpOnly; SameSite=Strict; Domain=example.com", set("abc", "/app", None)),
            (" session\t= a=b== ; Path=/", set("a=b==", "/", None)),
            ("session=\"a b\"; Path=/", set("\"a b\"", "/", None)),
            ("session=; Path=/", set("", "/", None)),
            ("session=a; Path=/x; PATH = /y", set("a", "/y", None)),
            ("session=a; Path=/x; Path=", set("a", "/app", None)),
            ("session=a; Path=x", set("a", "/app", None)),
            ("session=a; Max-Age=60", set("a", "/app", Some(NOW + 60))),
            ("session=a; max-age=60; Expires=Thu, 01 Jan 1970 00:00:00 GMT", set("a", "/app", Some(NOW + 60))),
            ("session=a; Max-Age=99999999999999999999999", set("a", "/app", Some(u64::MAX))),
            ("session=a; Max-Age=60; Max-Age=soon", set("a", "/app", Some(NOW + 60))),
            ("session=a; Max-Age=", set("a", "/app", None)),
            ("session=a; Max-Age=-", set("a", "/app", None)),
            ("session=a; Max-Age=+60", set("a", "/app", None)),
            ("session=a; Expires=Fri, 15 Jan 2027 08:00:01 GMT", set("a", "/app", Some(NOW + 1))),
            ("session=a; Expires=never", set("a", "/app", None)),
            ("session=a; Path=/; Max-Age=0", delete("/")),
            ("session=a; Max-Age=-99999999999999999999999", delete("/app")),
            ("session=; Expires=Thu, 01-Jan-1970 00:00:10 GMT; Path=/", delete("/")),
            ("session=a; Expires=Fri, 15 Jan 2027 08:00:00 GMT", delete("/app")),
            ("session=a; Expires=Fri, 01 Jan 1601 00:00:00 GMT", delete("/app")),
            ("session", None),
            ("session; Path=/", None),
        ] {
            let (changes, left) = taken(&["session"], &[line]);
            assert_eq!((changes, left.len()), (wanted.into_iter().collect(), 0), "{line}");
        }
        let long = format!("session=a; Path=/{}", "x".repeat(MOST_PATH_BYTES));
        assert_eq!(taken(&["session"], &[long]).0, Vec::from_iter(set("a", "/app", None)));
    }

    #[test]
    fn what_is_not_of_the_vault_goes_on_to_the_browser_as_it_is() {
        let others = ["theme=dark; Path=/", "Session=1", "session.sig=2", "xsession=3", "=session=4", "a=session=5"];
        let lines = [&others[..3], &["session=mine"], &others[3..]].concat();
        let (changes, left) = taken(&["session"], &lines);
        assert_eq!((changes.len(), left), (1, others.map(|line| line.as_bytes().to_vec()).to_vec()));
        let (changes, left) = taken(&["session", "session.sig"], &["session.sig=s; path=/", "session=v; path=/"]);
        assert_eq!((changes.len(), left.len()), (2, 0));
        assert_eq!(taken(&[], &["session=1"]).1.len(), 1);
        assert_eq!(taken::<&str>(&["session"], &[]), (Vec::new(), Vec::new()));
    }

    #[test]
    fn bytes_that_are_no_text_are_kept_too() {
        let (changes, left) = taken(&["session"], &[b"session=\xe9\xff; Path=/\xff"]);
        let value = Box::from(&b"\xe9\xff"[..]);
        let wanted = Kept { value, ..kept("session", "", "/app", None) };
        assert_eq!((changes, left), (vec![Change::Set(wanted)], Vec::new()));
    }

    #[test]
    fn the_last_word_counts() {
        let lines = ["session=1; Path=/", "session=2; Path=/x", "session=3; Path=/", "session=; Path=/x; Max-Age=0"];
        let (changes, _) = taken(&["session"], &lines);
        assert_eq!(changes, Vec::from_iter([set("3", "/", None), delete("/x")].into_iter().flatten()));
        assert!(keeps_something(&changes) && !keeps_something(&changes[1..]));
    }

    #[test]
    fn dates_as_servers_have_written_them() {
        for (text, wanted) in [
            ("Fri, 15 Jan 2027 08:00:00 GMT", Some(NOW)),
            ("Fri, 15-Jan-2027 08:00:00 UTC", Some(NOW)),
            ("Friday, 15-Jan-27 08:00:00 GMT", Some(NOW)),
            ("Fri Jan 15 08:00:00 2027", Some(NOW)),
            ("fri, 15 january 2027 8:0:0", Some(NOW)),
            ("15 Jan 2027 08:00:00.000 +0000", Some(NOW)),
            ("Thu, 01-Jan-70 00:00:00 GMT", Some(0)),
            ("Wed, 31 Dec 1969 23:59:59 GMT", Some(0)),
            ("Fri, 31 Dec 9999 23:59:59 GMT", Some(253_402_300_799)),
            ("Fri, 15 Jan 2027", None),
            ("08:00:00 15 2027", None),
            ("Fri, 15 Jan 08:00:00", None),
            ("Tue, 30 Feb 2027 08:00:00 GMT", None),
            ("Fri, 0 Jan 2027 08:00:00 GMT", None),
            ("Fri, 15 Jan 2027 24:00:00 GMT", None),
            ("Fri, 15 Jan 2027 08:60:00 GMT", None),
            ("Fri, 15 Jan 2027 08:00 GMT", None),
            ("Fri, 15 Jan 1600 08:00:00 GMT", None),
            ("Fri, 15 Jan 20270 08:00:00 GMT", None),
            ("", None),
        ] {
            assert_eq!(date(text.as_bytes()), wanted, "{text}");
        }
    }

    #[test]
    fn cookies_are_shown_below_their_path_and_the_longest_path_first() {
        let jar = jar(&[
            kept("session", "root", "/", None),
            kept("session", "app", "/app", None),
            kept("session", "deep", "/app/a/", None),
            kept("other", "1", "/", None),
            kept("gone", "1", "/", None),
        ]);
        for (path, wanted) in [
            ("/", "session=root; other=1"),
            ("/app", "session=app; session=root; other=1"),
            ("/app/", "session=app; session=root; other=1"),
            ("/apple", "session=root; other=1"),
            ("/app/a", "session=app; session=root; other=1"),
            ("/app/a/b", "session=deep; session=app; session=root; other=1"),
        ] {
            let header = jar.cookie_header(&names(&["other", "session"]), path, NOW);
            assert_eq!(header.as_deref(), Some(wanted.as_bytes()), "{path}");
        }
        assert_eq!(jar.cookie_header(&names(&["unknown"]), "/", NOW), None);
        assert_eq!(Jar::default().cookie_header(&names(&["session"]), "/", NOW), None);
    }

    #[test]
    fn paths_that_are_not_named_come_from_the_request() {
        for (asked, wanted) in [("/", "/"), ("/a", "/"), ("/a/", "/a"), ("/a/b", "/a"), ("*", "/"), ("", "/")] {
            assert_eq!(default_path(asked), wanted, "{asked}");
        }
    }

    #[test]
    fn a_jar_changes_as_it_is_told() {
        let mut jar = jar(&[kept("a", "1", "/", None), kept("b", "1", "/", Some(NOW + 10))]);
        let all = names(&["a", "b", "c"]);
        let mut says = |changes: &[Change], now: u64, changed: bool, wanted: &str| {
            assert_eq!(jar.apply(changes, now), Ok(changed), "{wanted}");
            let header = jar.cookie_header(&all, "/", now).unwrap_or_default();
            assert_eq!(String::from_utf8(header).unwrap(), wanted);
        };
        let set = |name: &str, value: &str, expires_at| Change::Set(kept(name, value, "/", expires_at));
        let delete = |name: &str, path: &str| Change::Delete { name: name.into(), path: path.into() };
        says(&[], NOW, false, "a=1; b=1");
        says(&[set("a", "1", None)], NOW, false, "a=1; b=1");
        says(&[set("a", "2", None), set("c", "", None)], NOW, true, "a=2; b=1; c=");
        says(&[delete("c", "/app"), delete("d", "/")], NOW, false, "a=2; b=1; c=");
        says(&[delete("c", "/")], NOW, true, "a=2; b=1");
        says(&[], NOW + 10, false, "a=2");
        says(&[delete("c", "/")], NOW + 10, true, "a=2");
        says(&[delete("a", "/")], NOW + 10, true, "");
        assert!(jar.is_empty());
    }

    #[test]
    fn a_cookie_that_is_only_set_again_is_not_written_each_time() {
        let mut jar = jar(&[kept("session", "a", "/", Some(NOW + 1000))]);
        for (now, value, expires_at, changed) in [
            (NOW + 50, "a", Some(NOW + 1050), false),
            (NOW + 51, "a", Some(NOW + 1051), true),
            (NOW + 51, "a", Some(NOW + 1050), true),
            (NOW + 51, "b", Some(NOW + 1050), true),
            (NOW + 51, "b", None, true),
            (NOW + 51, "b", None, false),
        ] {
            let change = Change::Set(kept("session", value, "/", expires_at));
            assert_eq!(jar.apply(&[change], now), Ok(changed), "{value} {expires_at:?}");
        }
    }

    #[test]
    fn news_is_what_differs_from_what_was_shown() {
        let jar = jar(&[kept("a", "1", "/", None), kept("b", "1", "/", Some(NOW + 10))]);
        let set = |name: &str, value: &str, expires_at| Change::Set(kept(name, value, "/", expires_at));
        let delete = |name: &str, path: &str| Change::Delete { name: name.into(), path: path.into() };
        let same = vec![set("a", "1", None), delete("c", "/"), delete("a", "/app")];
        assert_eq!(jar.news(same.clone(), NOW), Vec::new());
        let other = vec![set("a", "2", None), delete("b", "/"), set("c", "1", None), set("a", "1", Some(NOW + 10))];
        assert_eq!(jar.news(other.clone(), NOW), other);
        let over = [set("b", "1", Some(NOW + 10)), delete("b", "/")];
        assert_eq!(jar.news(over.to_vec(), NOW), over[1..]);
        assert_eq!(jar.news(over.to_vec(), NOW + 10), over[..1], "what is over was not shown");
    }

    #[test]
    fn what_no_browser_would_keep_is_taken_out_and_not_kept() {
        let mut headers = HeaderMap::new();
        let line = format!("session={}", "x".repeat(MOST_COOKIE_BYTES));
        headers.insert(SET_COOKIE, HeaderValue::try_from(line).unwrap());
        assert_eq!(take(&mut headers, &["session".into()], NOW, "/"), []);
        assert!(headers.is_empty());
        headers.insert(SET_COOKIE, HeaderValue::from_static("session=a"));
        let deep = format!("/{}/page", "d".repeat(MOST_PATH_BYTES));
        let changes = take(&mut headers, &["session".into()], NOW, &deep);
        assert!(matches!(&changes[..], [Change::Set(kept)] if *kept.path == *"/"), "{changes:?}");
    }

    #[test]
    fn what_is_too_much_changes_nothing() {
        let mut jar = jar(&[kept("session", "before", "/", None)]);
        let before = jar.clone();
        let sized = |bytes: usize| Change::Set(kept("session", &"x".repeat(bytes - "session".len()), "/", None));
        let many = |count: usize, bytes: usize| -> Vec<Change> {
            (0..count).map(|at| Change::Set(kept("s", &"x".repeat(bytes), &format!("/{at}"), None))).collect()
        };
        let too_long = Change::Set(kept("session", "a", &"/".repeat(MOST_PATH_BYTES + 1), None));
        for (changes, why) in [
            (vec![sized(MOST_COOKIE_BYTES + 1)], TooMuch::Cookie),
            (vec![too_long], TooMuch::Cookie),
            (many(9, 4090), TooMuch::Total),
        ] {
            assert_eq!(jar.apply(&changes, NOW), Err(why));
            assert_eq!(jar, before);
        }
        assert_eq!(jar.apply(&many(MOST_COOKIES - 1, 1), NOW), Ok(true));
        assert_eq!(jar.apply(&[sized(MOST_COOKIE_BYTES)], NOW), Ok(true));
        assert_eq!(jar.apply(&many(MOST_COOKIES, 2), NOW), Ok(true));
        assert!(jar.0.len() == MOST_COOKIES && jar.value("session", "/").is_none(), "the oldest has made room");
        assert!(jar.bytes() <= MOST_BYTES && Jar::read(&jar.write()).as_ref() == Some(&jar));
    }

    #[test]
    fn nobody_plants_a_cookie_of_the_vault() {
        let own = &["session", "session.sig"];
        let jar = jar(&[kept("session", "ours", "/", None)]);
        let innocent = &b"a=1; xsession=2; sessions=3; my_session=4; title=my session"[..];
        for (line, left) in [
            (&b"session=forged"[..], &b""[..]),
            (b"a=1; session=forged; b=2", b"a=1; b=2"),
            (b"a=1;\tsession\t=forged;;b=2;", b"a=1; b=2"),
            (b"SESSION=forged; a=1", b"a=1"),
            (b"a=1; session.sig=forged; session_sig=forged; Session-Sig=forged", b"a=1"),
            (b"a=1; %73ession=forged; session%20=forged", b"a=1"),
            (b"a=1; \xc2\xa0session\xa0=forged", b"a=1"),
            (b"a=1; session; =session=forged", b"a=1"),
            (b"a=1; b=2, session=forged; c=3", b"a=1; c=3"),
            (b"a=1; b=2 session = forged; c=3", b"a=1; c=3"),
            (b"a=1; b=\"2; session=forged\"; c=3", b"a=1; b=\"2; c=3"),
            (b"$Version=1, session=forged; a=1", b"a=1"),
            (innocent, innocent),
        ] {
            let text = String::from_utf8_lossy(line);
            let with_ours = [&b"session=ours"[..], left].into_iter().filter(|part| !part.is_empty());
            let with_ours = with_ours.collect::<Vec<_>>().join(&b"; "[..]);
            let (seen, planted) = shown(own, Some(&jar), &[line], "/");
            assert_eq!((seen, planted > 0), (Some(with_ours), line != left), "{text}");
            let (seen, planted) = shown(own, None, &[line], "/");
            assert_eq!((seen.unwrap_or_default(), planted > 0), (left.to_vec(), line != left), "{text}");
        }
        // Over several lines, as HTTP/2 has them.
        let (seen, planted) = shown(own, Some(&jar), &[b"a=1", b"session=forged", b"b=2"], "/");
        assert_eq!((seen.as_deref(), planted), (Some(&b"session=ours; a=1; b=2"[..]), 1));
        assert_eq!(shown(&[], None, &[b"session=theirs"], "/"), (Some(b"session=theirs".to_vec()), 0));
        assert_eq!(shown(own, Some(&jar), &[], "/"), (Some(b"session=ours".to_vec()), 0));
    }

    #[test]
    fn a_login_is_seen_by_all_its_marks_together() {
        let when = LoginWhen {
            path: "/login".into(),
            method: Method::POST,
            status: vec![302, 303],
            cookie_changed: Some("session".into()),
        };
        let before = jar(&[kept("session", "before", "/", None)]);
        let changed = [Change::Set(kept("session", "after", "/", None))];
        let same = [Change::Set(kept("session", "before", "/", Some(NOW + 60)))];
        let other = [Change::Set(kept("session.sig", "after", "/", None))];
        let gone = [Change::Delete { name: "session".into(), path: "/".into() }];
        let elsewhere = [Change::Set(kept("session", "before", "/app", None))];
        for (method, path, status, changes, wanted) in [
            (Method::POST, "/login", 302, &changed[..], true),
            (Method::POST, "/login", 303, &changed, true),
            (Method::POST, "/login", 303, &elsewhere, true),
            (Method::POST, "/login", 200, &changed, false),
            (Method::GET, "/login", 302, &changed, false),
            (Method::POST, "/login/", 302, &changed, false),
            (Method::POST, "/Login", 302, &changed, false),
            (Method::POST, "/login", 302, &same, false),
            (Method::POST, "/login", 302, &other, false),
            (Method::POST, "/login", 302, &gone, false),
            (Method::POST, "/login", 302, &[], false),
        ] {
            let happened = when.happened(&method, path, status, changes, &before);
            assert_eq!(happened, wanted, "{method} {path} {status} {changes:?}");
        }
        assert!(when.happened(&Method::POST, "/login", 302, &same, &Jar::default()), "where there was none it is new");
        assert!(when.is_undone(&gone) && !when.is_undone(&changed) && !when.is_undone(&[]));
        let by_status = LoginWhen { cookie_changed: None, ..when };
        assert!(by_status.happened(&Method::POST, "/login", 302, &[], &before) && !by_status.is_undone(&gone));
    }

    #[test]
    fn each_login_has_a_subject_of_its_own() {
        let mut entropy = Counted::default();
        let subjects = [(); 2].map(|()| subject(&mut entropy));
        assert_ne!(subjects[0], subjects[1]);
        assert!(subjects.iter().all(|subject| subject.starts_with("vault:") && subject.len() == 28), "{subjects:?}");
    }

    #[test]
    fn a_jar_that_was_cut_or_has_more_is_none() {
        let whole = jar(&[kept("session", "a", "/", Some(NOW + 1)), kept("session.sig", "", "/app", None)]);
        let bytes = whole.write();
        assert_eq!(Jar::read(&bytes), Some(whole));
        assert_eq!(Jar::read(&Jar::default().write()), Some(Jar::default()));
        for length in 0..bytes.len() {
            assert_eq!(Jar::read(&bytes[..length]), None, "{length}");
        }
        assert_eq!(Jar::read(&[&bytes[..], &[0]].concat()), None);
        assert_eq!(Jar::read(&[0xff; 64]), None);
        let large = Jar(vec![kept("session", &"x".repeat(MOST_COOKIE_BYTES), "/", None)]);
        assert_eq!(Jar::read(&large.write()), None, "more than is ever written");
    }

    #[test]
    fn values_are_not_shown_where_things_are_printed() {
        let jar = jar(&[kept("session", "secret", "/", None)]);
        assert!(!format!("{jar:?} {:?}", Change::Set(jar.0[0].clone())).contains("secret"));
    }

    fn any_kept() -> impl Strategy<Value = Kept> {
        let value = proptest::collection::vec(any::<u8>(), 0..6_000);
        ("[a-c]{1,2}", value, "/[a-c]{0,2}", proptest::option::of(any::<u64>())).prop_map(
            |(name, value, path, expires_at)| Kept {
                name: name.into(),
                value: value.into(),
                path: path.into(),
                expires_at,
            },
        )
    }

    proptest! {
        #[test]
        fn no_line_of_the_vault_reaches_the_browser(
            lines in proptest::collection::vec("[ \t]?(session|Session|sessions|x)[ \t]?[=;]?[ -~]{0,40}", 0..6)
        ) {
            let (_, left) = taken(&["session"], &lines);
            for line in &left {
                let line = String::from_utf8_lossy(line);
                prop_assert!(!Cookie::parse(&*line).is_ok_and(|cookie| cookie.name() == "session"), "{}", line);
            }
            let is_other = |line: &&String| Cookie::parse(&***line).is_ok_and(|cookie| cookie.name() != "session");
            let others = lines.iter().filter(is_other).count();
            prop_assert!(left.len() >= others, "{:?} {:?}", lines, left);
        }

        #[test]
        fn servers_see_our_value_whatever_clients_send(
            pieces in proptest::collection::vec("(session|SESSION|%73ession|a)?[ ,;=\t]{1,2}[a-z]{0,3}", 0..8)
        ) {
            let jar = jar(&[kept("session", "OURS", "/", None)]);
            let (seen, _) = shown(&["session"], Some(&jar), &[pieces.concat().as_bytes()], "/");
            let seen = String::from_utf8(seen.unwrap_or_default()).unwrap();
            let cookies: Vec<Cookie<'_>> = Cookie::split_parse(&seen).flatten().collect();
            prop_assert_eq!(cookies[0].name_value(), ("session", "OURS"));
            let more = cookies[1..].iter().filter(|cookie| cookie.name().eq_ignore_ascii_case("session")).count();
            prop_assert_eq!(more, 0, "{}", seen);
        }

        #[test]
        fn jars_keep_within_bounds_and_read_back(
            told in proptest::collection::vec(proptest::collection::vec(any_kept(), 0..6), 0..8), now in any::<u64>()
        ) {
            let mut jar = Jar::default();
            for kept in told {
                let changes: Vec<Change> = kept.into_iter().map(Change::Set).collect();
                let before = jar.clone();
                let applied = jar.apply(&changes, now);
                prop_assert_eq!(applied == Ok(true), jar != before);
                prop_assert!(jar.bytes() <= MOST_BYTES && jar.0.len() <= MOST_COOKIES);
                prop_assert_eq!(Jar::read(&jar.write()), Some(jar.clone()));
            }
        }

        #[test]
        fn garbage_harms_nobody(bytes in proptest::collection::vec(any::<u8>(), 0..300), text in "[ -~]{0,120}") {
            let counted = [&1_u32.to_be_bytes()[..], &bytes[..]].concat();
            let _ = (Jar::read(&bytes), Jar::read(&counted), date(&bytes), seconds(&bytes));
            let _ = taken(&["session"], &[format!("session={text}")]);
            let _ = shown(&["session"], None, &[text.as_bytes()], &text);
        }

        #[test]
        fn dates_as_servers_write_them_today(seconds in 0_u32..) {
            let when = OffsetDateTime::from_unix_timestamp(i64::from(seconds)).unwrap();
            let line = Cookie::build(("session", "a")).expires(when).build().to_string();
            let (_, written) = line.split_once("Expires=").unwrap();
            prop_assert_eq!(date(written.as_bytes()), Some(u64::from(seconds)));
        }
    }
}
