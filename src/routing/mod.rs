//! Which route an exchange takes: pure values and one lookup.
//!
//! A route matches on the host (exact before wildcard before any), the normalised path (a prefix on segment
//! boundaries, the longest wins) and the listeners it is limited to. The best match is the maximum over that ordered
//! summary; the table only makes finding it cheap: per host a map from prefix to routes, asked from the longest
//! segment boundary of the path that any prefix of that host reaches down to `/`. So the cost is bound by the
//! configuration and not by what the client sends.

mod host;
mod path;

use foldhash::HashMap;
pub use host::{Authority, HostPattern};
pub use path::{PathError, normalise, prefix};

/// What a route matches on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteMatch {
    pub host: HostPattern,
    /// A prefix in the form of [`prefix`].
    pub path: Box<str>,
    /// Positions of listeners; `None`: any.
    pub listeners: Option<Vec<usize>>,
}

/// Two routes that match the same exchanges, by position.
#[derive(Debug, PartialEq, Eq)]
pub struct Equal(pub usize, pub usize);

/// All routes of a snapshot, by position in the configuration.
#[derive(Default)]
pub struct RouteTable {
    exact: HashMap<Box<str>, Paths>,
    /// Keyed by what follows the `*`, with its dot.
    wildcard: HashMap<Box<str>, Paths>,
    any: Paths,
}

#[derive(Default)]
struct Paths {
    longest: usize,
    by_prefix: HashMap<Box<str>, Vec<Candidate>>,
}

struct Candidate {
    route: usize,
    listeners: Option<Vec<usize>>,
}

impl RouteTable {
    /// Builds the table; every pair of equal routes is an error.
    pub fn build(routes: &[RouteMatch]) -> Result<Self, Vec<Equal>> {
        let mut table = RouteTable::default();
        let mut equal = Vec::new();
        for (position, route) in routes.iter().enumerate() {
            let paths = match &route.host {
                HostPattern::Exact(host) => table.exact.entry(host.clone()).or_default(),
                HostPattern::Wildcard(suffix) => table.wildcard.entry(suffix.clone()).or_default(),
                HostPattern::Any => &mut table.any,
            };
            if let Some(earlier) = paths.add(position, route) {
                equal.push(Equal(earlier, position));
            }
        }
        if equal.is_empty() { Ok(table) } else { Err(equal) }
    }

    /// The best match for a lower-case host and a normalised path.
    pub fn find(&self, host: &str, path: &str, listener: usize) -> Option<usize> {
        let exact = self.exact.get(host).and_then(|paths| paths.find(path, listener));
        exact.or_else(|| self.find_wildcard(host, path, listener)).or_else(|| self.any.find(path, listener))
    }

    /// The longest suffix wins; `*.example.com` stands for one or more labels, not for `example.com` itself.
    fn find_wildcard(&self, host: &str, path: &str, listener: usize) -> Option<usize> {
        if self.wildcard.is_empty() {
            return None;
        }
        let dots = memchr::memchr_iter(b'.', host.as_bytes()).filter(|at| *at > 0);
        dots.filter_map(|at| self.wildcard.get(&host[at..])).find_map(|paths| paths.find(path, listener))
    }
}

impl Paths {
    /// Adds a route; returns an earlier one that it equals.
    fn add(&mut self, position: usize, route: &RouteMatch) -> Option<usize> {
        self.longest = self.longest.max(route.path.len());
        let candidates = self.by_prefix.entry(route.path.clone()).or_default();
        let earlier = candidates.iter().find(|other| overlap(&other.listeners, &route.listeners));
        let earlier = earlier.map(|other| other.route);
        candidates.push(Candidate { route: position, listeners: route.listeners.clone() });
        // One that names listeners is more specific than one that takes any.
        candidates.sort_by_key(|candidate| candidate.listeners.is_none());
        earlier
    }

    fn find(&self, path: &str, listener: usize) -> Option<usize> {
        if self.by_prefix.is_empty() {
            return None;
        }
        let mut end = path.len();
        if end > self.longest {
            // No prefix reaches further than `longest`: begin at the last boundary at or before it.
            end = if path.as_bytes()[self.longest] == b'/' {
                self.longest
            } else {
                memchr::memrchr(b'/', &path.as_bytes()[..self.longest]).unwrap_or(0)
            };
        }
        loop {
            let prefix = if end == 0 { "/" } else { &path[..end] };
            if let Some(route) = self.at(prefix, listener) {
                return Some(route);
            }
            if end == 0 || path == "/" {
                return None;
            }
            end = memchr::memrchr(b'/', &path.as_bytes()[..end]).unwrap_or(0);
        }
    }

    fn at(&self, prefix: &str, listener: usize) -> Option<usize> {
        let candidates = self.by_prefix.get(prefix)?;
        let takes = |candidate: &&Candidate| candidate.listeners.as_ref().is_none_or(|some| some.contains(&listener));
        candidates.iter().find(takes).map(|candidate| candidate.route)
    }
}

/// Whether two routes of one host and prefix could both take an exchange with equal right.
fn overlap(one: &Option<Vec<usize>>, other: &Option<Vec<usize>>) -> bool {
    match (one, other) {
        (None, None) => true,
        (Some(one), Some(other)) => one.iter().any(|listener| other.contains(listener)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn route(host: &str, path: &str) -> RouteMatch {
        RouteMatch { host: HostPattern::parse(host).unwrap(), path: prefix(path).unwrap(), listeners: None }
    }

    #[test]
    fn exact_before_wildcard_before_any_and_the_longest_prefix() {
        let routes = [
            route("*", "/"),
            route("*.example.com", "/"),
            route("shop.example.com", "/"),
            route("shop.example.com", "/app"),
            route("*.b.example.com", "/"),
        ];
        let table = RouteTable::build(&routes).unwrap();
        for (host, path, wanted) in [
            ("other.org", "/x", 0),
            ("example.com", "/", 0),
            ("blog.example.com", "/", 1),
            ("a.blog.example.com", "/", 1),
            ("a.b.example.com", "/", 4),
            ("shop.example.com", "/", 2),
            ("shop.example.com", "/apple", 2),
            ("shop.example.com", "/app", 3),
            ("shop.example.com", "/app/", 3),
            ("shop.example.com", "/app/deep/er", 3),
        ] {
            assert_eq!(table.find(host, path, 0), Some(wanted), "{host}{path}");
        }
    }

    #[test]
    fn a_host_whose_paths_do_not_match_falls_through() {
        let table = RouteTable::build(&[route("a.test", "/api"), route("*", "/")]).unwrap();
        assert_eq!(table.find("a.test", "/api/x", 0), Some(0));
        assert_eq!(table.find("a.test", "/", 0), Some(1));
        let table = RouteTable::build(&[route("a.test", "/api")]).unwrap();
        assert_eq!(table.find("a.test", "/", 0), None);
    }

    #[test]
    fn equal_routes_are_named() {
        let mut limited = route("*", "/a");
        limited.listeners = Some(vec![1]);
        let routes = [route("*", "/a"), limited, route("*", "/a/")];
        assert_eq!(RouteTable::build(&routes).err(), Some(vec![Equal(0, 2)]));
        let table = RouteTable::build(&routes[..2]).unwrap();
        assert_eq!((table.find("x", "/a", 1), table.find("x", "/a", 0)), (Some(1), Some(0)));
    }

    proptest! {
        /// The table against the definition: the maximum over all matches.
        #[test]
        fn the_table_finds_what_a_scan_finds(
            paths in proptest::collection::btree_set("(/[ab]{1,2}){0,3}", 1..8),
            asked in "(/[ab]{1,3}){0,4}/?",
        ) {
            let asked = if asked.is_empty() { "/".to_owned() } else { asked };
            let routes: Vec<_> = paths.iter().map(|path| route("*", if path.is_empty() { "/" } else { path })).collect();
            let covers = |prefix: &str| prefix == "/" || asked == prefix || asked.starts_with(&format!("{prefix}/"));
            let scan = (0..routes.len()).filter(|at| covers(&routes[*at].path)).max_by_key(|at| routes[*at].path.len());
            prop_assert_eq!(RouteTable::build(&routes).unwrap().find("h", &asked, 0), scan);
        }
    }
}
