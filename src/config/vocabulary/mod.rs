//! Every table and key of the configuration file, as data: name, kind, default, meaning.
//!
//! This is the one declaration of the file's language. Loading checks against it and takes its defaults, unknown keys
//! are compared with it, the JSON Schema is written from it, and a test holds `config.example.toml` to it.

mod edge;
mod pool;
mod protect;
mod route;
mod session;
mod stateless;

/// What a value has to be.
#[derive(Clone, Copy)]
pub enum Kind {
    Text,
    Bool,
    Integer {
        min: i64,
        max: i64,
    },
    /// "250ms", "30s", "10m", "8h", "1d".
    Duration,
    /// A duration for which 0 would mean that nothing works.
    LongerThanZero,
    /// "0B", "64KiB", "10MiB", within bounds in bytes.
    Size {
        min: u64,
        max: u64,
    },
    /// "20%".
    Percent,
    /// One of these words.
    Word(fn() -> Vec<&'static str>),
    TextList,
    /// Whole numbers within bounds.
    IntegerList {
        min: i64,
        max: i64,
    },
    /// Names and texts of the user's choice.
    TextMap,
    /// `[table]` or an inline one.
    Table(&'static Table),
    /// `[[table]]` or a list of inline ones.
    Tables(&'static Table),
}

/// What an absent key means.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Absent {
    /// It must be there.
    Required,
    /// Nothing; the text is an example value, in TOML.
    Nothing(&'static str),
    /// This value, in TOML.
    Default(&'static str),
    /// A value that follows from others; the text says which.
    Computed(&'static str),
}

/// One key.
pub struct Key {
    pub name: &'static str,
    pub kind: Kind,
    pub absent: Absent,
    pub doc: &'static str,
}

/// One table.
pub struct Table {
    /// As it is written between brackets.
    pub path: &'static str,
    pub doc: &'static str,
    pub keys: &'static [Key],
}

impl Table {
    /// The key of this name.
    pub fn key(&self, name: &str) -> Option<&'static Key> {
        self.keys.iter().find(|key| key.name == name)
    }
}

const fn key(name: &'static str, kind: Kind, absent: Absent, doc: &'static str) -> Key {
    Key { name, kind, absent, doc }
}

fn words<T: Copy + 'static>(all: &[T], text: fn(T) -> &'static str) -> Vec<&'static str> {
    all.iter().map(|value| text(*value)).collect()
}

const ANY_SIZE: Kind = Kind::Size { min: 0, max: 1 << 50 };
const ANY_COUNT: Kind = Kind::Integer { min: 0, max: 1_000_000_000 };

/// The file itself.
pub static ROOT: Table = Table {
    path: "",
    doc: "Configuration of steadfast.",
    keys: &[
        key("process", Kind::Table(&edge::PROCESS), Absent::Nothing(""), "The proxy as a process."),
        key("keys", Kind::Table(&edge::KEYS), Absent::Nothing(""), "The key ring that seals cookies and tickets."),
        key(
            "session_api",
            Kind::Table(&session::SESSION_API),
            Absent::Nothing(""),
            "Where servers of shared pools read and write sessions; never a public address.",
        ),
        key("store", Kind::Tables(&session::STORE), Absent::Nothing(""), "Where sessions are kept."),
        key(
            "protect",
            Kind::Table(&protect::PROTECT),
            Absent::Nothing(""),
            "What the edge enforces, whatever the mode of a pool.",
        ),
        key("admin", Kind::Table(&edge::ADMIN), Absent::Nothing(""), "Where metrics and health are served."),
        key("listener", Kind::Tables(&edge::LISTENER), Absent::Required, "A bound address with its TLS and limits."),
        key(
            "route",
            Kind::Tables(&route::ROUTE),
            Absent::Required,
            "A match on host and path, giving a pool and policies.",
        ),
        key(
            "pool",
            Kind::Tables(&pool::POOL),
            Absent::Nothing(""),
            "A named set of servers with one mode and one balance policy.",
        ),
    ],
};

/// Every table, the root first.
pub fn tables() -> Vec<&'static Table> {
    let mut found = vec![&ROOT];
    let mut next = 0;
    while let Some(table) = found.get(next) {
        let inner = table.keys.iter().filter_map(|key| match key.kind {
            Kind::Table(table) | Kind::Tables(table) => Some(table),
            _ => None,
        });
        let inner: Vec<&'static Table> =
            inner.filter(|inner| !found.iter().any(|known| std::ptr::eq(*known, *inner))).collect();
        found.extend(inner);
        next += 1;
    }
    found
}
