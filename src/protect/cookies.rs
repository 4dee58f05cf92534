//! The cookies that servers set, made as safe as browsers let them be (RFC 6265bis).
//!
//! A line is read as browsers read it, and what is missing is written behind it: attributes that come last are the ones
//! that count, so what a server wrote is passed on byte for byte. A line that no browser would keep, or that would make
//! a cookie of the proxy's own, is taken out; everything else is the application's business. Values are not looked at.
//!
//! It is for what servers say only: the proxy's own cookies are added afterwards. Which names are reserved is asked of
//! whoever knows, also for a cookie without a name, as browsers send its value alone: `=session=x` comes back as
//! `session=x`.

use std::borrow::Cow;
use std::net::Ipv4Addr;

use bytes::Bytes;
use http::header::{HeaderMap, HeaderValue, SET_COOKIE};

use crate::headers::split_cookie;
use crate::names::{CookieDeed, CookieFault, CookieMode, SameSite};

/// What name and value may have together; browsers ignore a cookie of more.
const MOST_BYTES: usize = 4096;
/// Browsers ignore an attribute with a longer value.
const MOST_ATTRIBUTE_BYTES: usize = 1024;

impl CookieMode {
    /// What is done about a fault.
    pub const fn deed(self, fault: CookieFault) -> CookieDeed {
        match (fault, self) {
            (CookieFault::ReservedName, _) => CookieDeed::Dropped,
            (_, CookieMode::Off) | (CookieFault::DomainWide | CookieFault::PrefixMisspelt, _) => CookieDeed::Passed,
            // Another Domain or Path would make it another cookie. It is for browsers to refuse it.
            (CookieFault::PrefixBroken, CookieMode::Fix) => CookieDeed::Passed,
            (CookieFault::NoSecure | CookieFault::NoHttpOnly | CookieFault::NoSameSite, CookieMode::Fix) => {
                CookieDeed::Fixed
            }
            (_, CookieMode::Fix | CookieMode::Reject) => CookieDeed::Dropped,
        }
    }
}

/// What is asked of cookies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CookieRules {
    pub mode: CookieMode,
    /// For cookies that say nothing of it, or nothing that browsers know.
    pub same_site: SameSite,
    /// The names of cookies that scripts may read.
    pub allow_script: Vec<Glob>,
}

/// Where the browser is that the cookies go to.
#[derive(Clone, Copy, Debug)]
pub struct CookieFacts<'a> {
    /// The external scheme.
    pub https: bool,
    /// The external host, in lower case; an IPv6 address in brackets.
    pub host: &'a str,
}

/// Cleans the `Set-Cookie` lines of a server's response, and counts what was wrong with each. What has nothing to be
/// changed costs no allocation.
pub fn clean_set_cookies(
    headers: &mut HeaderMap,
    rules: &CookieRules,
    facts: &CookieFacts<'_>,
    is_reserved: impl Fn(&[u8]) -> bool,
    mut count: impl FnMut(CookieFault, CookieDeed),
) {
    let mut dropped = false;
    for (_, line) in headers.iter_mut().filter(|(name, _)| **name == SET_COOKIE) {
        let faults = faults(line.as_bytes(), rules, facts, &is_reserved);
        if let Some(worst) = faults.iter().find(|fault| rules.mode.deed(*fault) == CookieDeed::Dropped) {
            count(worst, CookieDeed::Dropped);
            *line = TAKEN_OUT;
            dropped = true;
            continue;
        }
        faults.iter().for_each(|fault| count(fault, rules.mode.deed(fault)));
        if let Some(fixed) = fixed(line, faults, rules, facts) {
            *line = fixed;
        }
    }
    if dropped {
        take_out(headers);
    }
}

/// Stands for a line that is to go. One that was empty before is no cookie either.
const TAKEN_OUT: HeaderValue = HeaderValue::from_static("");

fn take_out(headers: &mut HeaderMap) {
    let kept: Vec<HeaderValue> = headers.get_all(SET_COOKIE).iter().filter(|line| !line.is_empty()).cloned().collect();
    headers.remove(SET_COOKIE);
    for line in kept {
        headers.append(SET_COOKIE, line);
    }
}

/// The line with what it lacks behind it; nothing when it lacks nothing.
fn fixed(line: &HeaderValue, faults: Faults, rules: &CookieRules, facts: &CookieFacts<'_>) -> Option<HeaderValue> {
    let is_due = |fault| faults.has(fault) && rules.mode.deed(fault) == CookieDeed::Fixed;
    let same_site = match rules.same_site {
        SameSite::Strict => "; SameSite=Strict",
        // Browsers refuse SameSite=None without Secure.
        SameSite::None if facts.https => "; SameSite=None",
        SameSite::None | SameSite::Lax => "; SameSite=Lax",
    };
    let behind = [
        (CookieFault::NoSecure, "; Secure"),
        (CookieFault::NoHttpOnly, "; HttpOnly"),
        (CookieFault::NoSameSite, same_site),
    ];
    if !behind.iter().any(|(fault, _)| is_due(*fault)) {
        return None;
    }
    let mut text = Vec::with_capacity(line.len() + 40);
    text.extend_from_slice(line.as_bytes());
    for (_, attribute) in behind.iter().filter(|(fault, _)| is_due(*fault)) {
        text.extend_from_slice(attribute.as_bytes());
    }
    let mut fixed = HeaderValue::from_maybe_shared(Bytes::from(text)).ok()?;
    fixed.set_sensitive(line.is_sensitive());
    Some(fixed)
}

/// The faults of one line, one bit each.
#[derive(Clone, Copy, Default)]
struct Faults(u16);

impl Faults {
    fn add(&mut self, fault: CookieFault, is_there: bool) {
        self.0 |= u16::from(is_there) << fault.index();
    }

    const fn has(self, fault: CookieFault) -> bool {
        self.0 & (1 << fault.index()) != 0
    }

    /// What weighs most first.
    fn iter(self) -> impl Iterator<Item = CookieFault> {
        CookieFault::ALL.iter().copied().filter(move |fault| self.has(*fault))
    }
}

fn faults(line: &[u8], rules: &CookieRules, facts: &CookieFacts<'_>, is_reserved: impl Fn(&[u8]) -> bool) -> Faults {
    let mut faults = Faults::default();
    let cookie = SetCookie::parse(line);
    faults.add(CookieFault::ReservedName, is_reserved(cookie.name_in_requests()));
    if rules.mode == CookieMode::Off {
        return faults;
    }
    let prefix = Prefix::of(cookie.name);
    faults.add(CookieFault::Malformed, is_never_for_servers(cookie.name));
    faults.add(CookieFault::ControlBytes, line.iter().any(|byte| byte.is_ascii_control() && *byte != b'\t'));
    faults.add(CookieFault::TooLarge, cookie.name.len() + cookie.value.len() > MOST_BYTES);
    if let Some(fault) = domain_fault(cookie.domain, facts.host) {
        faults.add(fault, true);
    }
    faults.add(CookieFault::PrefixBroken, prefix.is_some_and(|prefix| prefix.is_broken(&cookie, facts)));
    faults.add(CookieFault::NoSecure, facts.https && !cookie.secure);
    faults.add(CookieFault::NoHttpOnly, !cookie.http_only && !is_for_scripts(cookie.name, prefix, rules));
    faults.add(CookieFault::NoSameSite, !cookie.same_site);
    faults.add(CookieFault::PrefixMisspelt, is_misspelt(cookie.name));
    faults
}

/// Whether scripts may read it. What its own name promises comes before what the rules allow.
fn is_for_scripts(name: &[u8], prefix: Option<&Prefix>, rules: &CookieRules) -> bool {
    !prefix.is_some_and(|prefix| prefix.http) && rules.allow_script.iter().any(|glob| glob.matches(name))
}

/// A `Set-Cookie` line as browsers read it. Of an attribute that is there twice the last one counts.
struct SetCookie<'a> {
    name: &'a [u8],
    value: &'a [u8],
    secure: bool,
    http_only: bool,
    /// Whether it says one that browsers know.
    same_site: bool,
    /// Without the dot that it may begin with. Empty: the cookie is the host's alone.
    domain: &'a [u8],
    path: &'a [u8],
}

impl<'a> SetCookie<'a> {
    fn parse(line: &'a [u8]) -> Self {
        let mut parts = line.split(|byte| *byte == b';');
        let pair = parts.next().unwrap_or_default();
        let (name, value) = split_cookie(pair).unwrap_or((&[], pair.trim_ascii()));
        let mut cookie =
            SetCookie { name, value, secure: false, http_only: false, same_site: false, domain: &[], path: &[] };
        for part in parts {
            let (name, value) = split_cookie(part).unwrap_or((part.trim_ascii(), &[]));
            if value.len() <= MOST_ATTRIBUTE_BYTES {
                cookie.take(name, value);
            }
        }
        cookie
    }

    fn take(&mut self, attribute: &[u8], value: &'a [u8]) {
        let is = |name: &str| attribute.eq_ignore_ascii_case(name.as_bytes());
        if is("secure") {
            self.secure = true;
        } else if is("httponly") {
            self.http_only = true;
        } else if is("samesite") {
            self.same_site = SameSite::ALL.iter().any(|word| value.eq_ignore_ascii_case(word.as_str().as_bytes()));
        } else if is("domain") {
            self.domain = value.strip_prefix(b".").unwrap_or(value);
        } else if is("path") {
            self.path = value;
        }
    }

    /// The name that servers find in a request with this cookie. Browsers send one without a name as its value alone.
    fn name_in_requests(&self) -> &'a [u8] {
        if !self.name.is_empty() {
            return self.name;
        }
        split_cookie(self.value).map_or(self.value, |(name, _)| name)
    }
}

/// The beginning of a name by which browsers know what a cookie has to be, in letters of any case (RFC 6265bis,
/// section 4.1.3, and the two of its successor that ask for HttpOnly).
struct Prefix {
    text: &'static str,
    /// No Domain, and `Path=/`.
    host: bool,
    /// HttpOnly.
    http: bool,
}

/// The longest first.
static PREFIXES: [Prefix; 4] = [
    Prefix { text: "__Host-Http-", host: true, http: true },
    Prefix { text: "__Host-", host: true, http: false },
    Prefix { text: "__Http-", host: false, http: true },
    Prefix { text: "__Secure-", host: false, http: false },
];

impl Prefix {
    fn of(name: &[u8]) -> Option<&'static Prefix> {
        PREFIXES.iter().find(|prefix| after_prefix(name, prefix.text.as_bytes()).is_some())
    }

    /// Whether a browser would refuse the cookie whatever flags it still gets.
    fn is_broken(&self, cookie: &SetCookie<'_>, facts: &CookieFacts<'_>) -> bool {
        let is_hosts = cookie.domain.is_empty() && cookie.path == b"/";
        (self.host && !is_hosts) || !(cookie.secure || facts.https)
    }
}

/// Whether a name looks as if somebody had meant a prefix. Written in other letters some browsers do not know it, with
/// another mark none does.
fn is_misspelt(name: &[u8]) -> bool {
    ["__Host", "__Secure", "__Http"].iter().any(|word| {
        let rest = after_prefix(name, word.as_bytes());
        rest.is_some_and(|rest| match rest.first() {
            Some(b'_') => true,
            Some(b'-') => !name.starts_with(word.as_bytes()),
            _ => false,
        })
    })
}

/// What is wrong with a Domain: it may name the host itself, or what is above it and belongs to somebody.
fn domain_fault(domain: &[u8], host: &str) -> Option<CookieFault> {
    if domain.is_empty() || domain.eq_ignore_ascii_case(host.as_bytes()) {
        return None;
    }
    if is_public_suffix(domain) {
        return Some(CookieFault::PublicSuffix);
    }
    Some(if covers(domain, host) { CookieFault::DomainWide } else { CookieFault::DomainRefused })
}

/// Whether strangers have their hosts directly under it: a line of the Public Suffix List, or a name without a dot.
fn is_public_suffix(domain: &[u8]) -> bool {
    let domain = if domain.iter().any(u8::is_ascii_uppercase) {
        Cow::Owned(domain.to_ascii_lowercase())
    } else {
        Cow::Borrowed(domain)
    };
    psl::suffix(&domain).is_some_and(|suffix| suffix.as_bytes() == &*domain)
}

/// Whether the host lies under the domain (RFC 6265, section 5.1.3). Nothing lies under an address.
fn covers(domain: &[u8], host: &str) -> bool {
    let is_address = host.starts_with('[') || host.parse::<Ipv4Addr>().is_ok();
    !is_address && before_suffix(host.as_bytes(), domain).is_some_and(|rest| rest.ends_with(b"."))
}

/// A pattern for names: `*` stands for anything, letters may have any case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Glob(Box<str>);

impl Glob {
    /// Every text is a pattern.
    pub fn new(text: &str) -> Self {
        Glob(text.into())
    }

    /// Whether a name is of the pattern. It never goes back: each piece is looked for once, behind the one before it.
    pub fn matches(&self, name: &[u8]) -> bool {
        let mut pieces = self.0.split('*').map(str::as_bytes);
        let Some(rest) = pieces.next().and_then(|first| after_prefix(name, first)) else { return false };
        let Some(last) = pieces.next_back() else { return rest.is_empty() };
        let Some(mut rest) = before_suffix(rest, last) else { return false };
        for piece in pieces.filter(|piece| !piece.is_empty()) {
            let found = rest.windows(piece.len()).position(|window| window.eq_ignore_ascii_case(piece));
            let Some(behind) = found.and_then(|at| rest.get(at + piece.len()..)) else { return false };
            rest = behind;
        }
        true
    }
}

/// What follows a prefix, letters of any case.
fn after_prefix<'a>(text: &'a [u8], prefix: &[u8]) -> Option<&'a [u8]> {
    let (head, rest) = text.split_at_checked(prefix.len())?;
    head.eq_ignore_ascii_case(prefix).then_some(rest)
}

/// What precedes a suffix, letters of any case.
fn before_suffix<'a>(text: &'a [u8], suffix: &[u8]) -> Option<&'a [u8]> {
    let (rest, tail) = text.split_at_checked(text.len().checked_sub(suffix.len())?)?;
    tail.eq_ignore_ascii_case(suffix).then_some(rest)
}

/// Whether a cookie of a request goes to no server, whoever set it: it has no name, or one that old servers take for an
/// attribute (`$Version`, `$Path`; RFC 2965).
pub fn is_never_for_servers(name: &[u8]) -> bool {
    name.is_empty() || name.starts_with(b"$")
}

/// Whether some server might take a name for a reserved one, which is in ASCII: servers trim names, some of everything
/// that Unicode calls space, and some do not care for case.
pub fn is_alias(name: &[u8], reserved: &[u8]) -> bool {
    if name.is_ascii() {
        let is_seen = u8::is_ascii_graphic;
        let from = name.iter().position(is_seen).unwrap_or(name.len());
        let to = name.iter().rposition(is_seen).map_or(from, |last| last + 1);
        return name.get(from..to).is_some_and(|name| name.eq_ignore_ascii_case(reserved));
    }
    // Bytes that are no UTF-8 are read as Latin-1, as some servers read all of them.
    let text: String = name
        .utf8_chunks()
        .flat_map(|chunk| chunk.valid().chars().chain(chunk.invalid().iter().copied().map(char::from)))
        .collect();
    folded(text.trim_matches(is_blank)).eq(reserved.iter().map(|byte| char::from(byte.to_ascii_lowercase())))
}

/// Space, what takes no space, and what is none.
fn is_blank(letter: char) -> bool {
    let takes_no_space = matches!(letter, '\u{ad}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2060}' | '\u{feff}');
    letter.is_whitespace() || letter.is_control() || takes_no_space
}

/// Letters in one case. Four that are not of ASCII fold to some that are: the long s, the Kelvin sign, and the two
/// Turkish i, of which the one with its dot leaves that dot over.
fn folded(text: &str) -> impl Iterator<Item = char> {
    let letters = text.chars().flat_map(char::to_uppercase).flat_map(char::to_lowercase);
    letters.filter(|letter| *letter != '\u{307}')
}

#[cfg(test)]
mod tests;
