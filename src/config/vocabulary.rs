//! Every table and key of the configuration file, as data: name, kind, default, meaning.
//!
//! This is the one declaration of the file's language. Loading checks against it and takes its defaults, unknown keys
//! are compared with it, the JSON Schema is written from it, and a test holds `config.example.toml` to it.

use crate::affinity::SameSite;
use crate::balance::Balance;
use crate::headers::{ForwardedBy, UnsafeNames};
use crate::listener::ProxyProtocol;
use crate::pool::WhenUnavailable;
use crate::tls::{ClientAuth, MinVersion};

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
use Absent::{Computed, Default as Is, Nothing, Required};

/// The file itself.
pub static ROOT: Table = Table {
    path: "",
    doc: "Configuration of steadfast.",
    keys: &[
        key("process", Kind::Table(&PROCESS), Nothing(""), "The proxy as a process."),
        key("keys", Kind::Table(&KEYS), Nothing(""), "The key ring that seals cookies and tickets."),
        key("admin", Kind::Table(&ADMIN), Nothing(""), "Where metrics and health are served."),
        key("listener", Kind::Tables(&LISTENER), Required, "A bound address with its TLS and limits."),
        key("route", Kind::Tables(&ROUTE), Required, "A match on host and path, giving a pool and policies."),
        key("pool", Kind::Tables(&POOL), Nothing(""), "A named set of servers with one mode and one balance policy."),
    ],
};

static PROCESS: Table = Table {
    path: "process",
    doc: "The proxy as a process.",
    keys: &[
        key(
            "workers",
            Kind::Integer { min: 0, max: 1_024 },
            Is("0"),
            "Worker threads; 0: one per core. A change takes a restart.",
        ),
        key(
            "max_connections",
            Kind::Integer { min: 1, max: 10_000_000 },
            Is("100_000"),
            "Client connections; past it the oldest idle one is closed.",
        ),
        key("connections_per_address", ANY_COUNT, Is("0"), "Connections per client address; 0: no limit."),
        key(
            "shutdown_grace",
            Kind::Duration,
            Is("\"30s\""),
            "How long exchanges under way may take to end at shutdown.",
        ),
        key(
            "shutdown_delay",
            Kind::Duration,
            Is("\"0s\""),
            "/readyz says 503 for this long while listeners still accept.",
        ),
        key("trusted_proxies", Kind::TextList, Is("[]"), "Networks that are believed about client and scheme."),
        key(
            "forwarded",
            Kind::Word(|| words(ForwardedBy::ALL, ForwardedBy::as_str)),
            Is("\"x-forwarded-for\""),
            "Which header trusted proxies write; the other is dropped and made anew.",
        ),
        key("access_log", Kind::Text, Is("\"stdout\""), "\"stdout\", \"off\" or a path."),
        key("watch", Kind::Bool, Is("true"), "Reload when the file changes, after 1 s without a further change."),
        key(
            "resolve",
            Kind::LongerThanZero,
            Is("\"10s\""),
            "Server names are resolved again this often, and when a connect fails.",
        ),
        key("error_pages", Kind::Text, Nothing("\"pages/\""), "A directory with 502.html, 503.html, ..."),
    ],
};

static KEYS: Table = Table {
    path: "keys",
    doc: "The key ring that seals cookies and tickets.",
    keys: &[key(
        "ring",
        Kind::TextList,
        Nothing("[\"file:steadfast.key\"]"),
        "\"file:PATH\" or \"env:NAME\"; the first seals, all open. Absent: a fresh key per start.",
    )],
};

static ADMIN: Table = Table {
    path: "admin",
    doc: "Where metrics and health are served.",
    keys: &[
        key("address", Kind::Text, Is("\"127.0.0.1:9900\""), "A loopback address or \"unix:PATH\"."),
        key(
            "metrics",
            Kind::Text,
            Nothing("\"127.0.0.1:9901\""),
            "A second address with /metrics, /healthz and /readyz only.",
        ),
    ],
};

static LISTENER: Table = Table {
    path: "listener",
    doc: "A bound address with its TLS and limits.",
    keys: &[
        key("name", Kind::Text, Required, "Its identity, also in metrics and logs."),
        key("address", Kind::Text, Required, "IP address and port."),
        key(
            "proxy_protocol",
            Kind::Word(|| words(ProxyProtocol::ALL, ProxyProtocol::as_str)),
            Is("\"off\""),
            "When on it is required, and only trusted_proxies may connect.",
        ),
        key(
            "header_timeout",
            Kind::LongerThanZero,
            Is("\"10s\""),
            "For the whole head of a request, and for the TLS handshake.",
        ),
        key(
            "idle_timeout",
            Kind::LongerThanZero,
            Is("\"75s\""),
            "Between exchanges, and for a client that does not read.",
        ),
        key(
            "header_bytes",
            Kind::Size { min: 1 << 10, max: 1 << 24 },
            Is("\"32KiB\""),
            "Largest request head, HTTP/1 and HTTP/2 alike.",
        ),
        key("header_count", Kind::Integer { min: 1, max: 10_000 }, Is("100"), "Most header fields of a request."),
        key("max_streams", Kind::Integer { min: 1, max: 10_000 }, Is("128"), "HTTP/2 streams per connection."),
        key(
            "unsafe_header_names",
            Kind::Word(|| words(UnsafeNames::ALL, UnsafeNames::as_str)),
            Is("\"strip\""),
            "Legal names with bytes outside A-Z a-z 0-9 -.",
        ),
        key(
            "redirect",
            Kind::Word(|| vec!["https"]),
            Nothing("\"https\""),
            "308 to the same host and path over https.",
        ),
        key("redirect_port", Kind::Integer { min: 1, max: 65_535 }, Is("443"), "Port in that URL; 443 is left out."),
        key("tls", Kind::Table(&TLS), Nothing(""), "Absent: plain HTTP."),
    ],
};

static TLS: Table = Table {
    path: "listener.tls",
    doc: "TLS of a listener.",
    keys: &[
        key(
            "certificates",
            Kind::Tables(&CERTIFICATE),
            Nothing("[{ cert = \"site.pem\", key = \"site.key\" }]"),
            "Picked by SNI from their own names.",
        ),
        key(
            "self_signed",
            Kind::TextList,
            Nothing("[\"localhost\"]"),
            "Instead: a certificate made at start, for development.",
        ),
        key(
            "min_version",
            Kind::Word(|| words(MinVersion::ALL, MinVersion::as_str)),
            Is("\"1.2\""),
            "The oldest TLS version.",
        ),
        key("client_ca", Kind::Text, Nothing("\"clients.pem\""), "Asks for and verifies client certificates."),
        key(
            "client_auth",
            Kind::Word(|| words(ClientAuth::ALL, ClientAuth::as_str)),
            Is("\"required\""),
            "Whether a client must show one; the server sees Client-Cert (RFC 9440).",
        ),
    ],
};

static CERTIFICATE: Table = Table {
    path: "listener.tls.certificates",
    doc: "A certificate chain and its key, in PEM form.",
    keys: &[
        key("cert", Kind::Text, Required, "Path of the chain."),
        key("key", Kind::Text, Required, "Path of the key."),
    ],
};

static ROUTE: Table = Table {
    path: "route",
    doc: "A match on host and path, giving a pool and policies.",
    keys: &[
        key(
            "host",
            Kind::Text,
            Nothing("\"shop.example.com\""),
            "Exact, \"*.example.com\" (one or more labels), or absent: any.",
        ),
        key("path", Kind::Text, Is("\"/\""), "Prefix on segment boundaries; the longest wins."),
        key("listeners", Kind::TextList, Nothing("[\"https\"]"), "Only what came in there; absent: any."),
        key("pool", Kind::Text, Nothing("\"shop\""), "Who serves it."),
        key("strip_prefix", Kind::Bool, Is("false"), "Forward the path without the route's prefix."),
        key(
            "request_headers",
            Kind::Table(&HEADER_CHANGES),
            Nothing("{ set = { X-Tenant = \"a\" }, remove = [\"X-Debug\"] }"),
            "Changes to what the server sees.",
        ),
        key(
            "response_headers",
            Kind::Table(&HEADER_CHANGES),
            Nothing("{ set = {}, remove = [\"Server\"] }"),
            "Changes to what the client sees.",
        ),
        key(
            "respond",
            Kind::Table(&RESPOND),
            Nothing("{ status = 503, body = \"back soon\" }"),
            "Instead of a pool: a fixed reply.",
        ),
        key(
            "redirect_to",
            Kind::Text,
            Nothing("\"https://new.example.com\""),
            "Instead of a pool: 308 to this, with the path appended.",
        ),
        key("body_bytes", ANY_SIZE, Is("\"0B\""), "Largest request body, 413 past it; 0: no limit."),
        key("sticky", Kind::Bool, Is("true"), "false: these requests neither read nor write pins."),
    ],
};

static HEADER_CHANGES: Table = Table {
    path: "route.request_headers",
    doc: "Header fields to set and to remove.",
    keys: &[
        key("set", Kind::TextMap, Is("{}"), "Fields and their values."),
        key("remove", Kind::TextList, Is("[]"), "Names of fields."),
    ],
};

static RESPOND: Table = Table {
    path: "route.respond",
    doc: "A fixed reply.",
    keys: &[
        key("status", Kind::Integer { min: 200, max: 599 }, Required, "Status code."),
        key("body", Kind::Text, Is("\"\""), "Plain text, or HTML when it begins with <."),
    ],
};

static POOL: Table = Table {
    path: "pool",
    doc: "A named set of servers with one mode and one balance policy.",
    keys: &[
        key("name", Kind::Text, Required, "Its identity, also in metrics and logs."),
        key("mode", Kind::Word(|| vec!["none", "sticky"]), Is("\"sticky\""), "How sessions are kept."),
        key("balance", Kind::Word(|| words(Balance::ALL, Balance::as_str)), Is("\"p2c\""), "Where newcomers go."),
        key("host", Kind::Text, Nothing("\"shop.internal\""), "Host that servers see; absent: as the client sent it."),
        key("debug_headers", Kind::Bool, Is("false"), "Clients see Steadfast-Verdict."),
        key("server", Kind::Tables(&SERVER), Required, "One upstream member."),
        key("sticky", Kind::Table(&STICKY), Nothing(""), "The pin cookie; only with mode = \"sticky\"."),
        key("health", Kind::Table(&HEALTH), Nothing(""), "Active probes."),
        key("outlier", Kind::Table(&OUTLIER), Nothing(""), "Passive ejection."),
        key("timeouts", Kind::Table(&TIMEOUTS), Nothing(""), "How long servers may take."),
        key("connections", Kind::Table(&CONNECTIONS), Nothing(""), "Connections to servers."),
        key("drain", Kind::Table(&DRAIN), Nothing(""), "Taking a server out without losing its sessions."),
        key("retry", Kind::Table(&RETRY), Nothing(""), "Further attempts."),
        key("tls", Kind::Table(&POOL_TLS), Nothing(""), "TLS to the servers; absent: none."),
        key("http", Kind::Table(&HTTP), Nothing(""), "HTTP to the servers."),
    ],
};

static SERVER: Table = Table {
    path: "pool.server",
    doc: "One upstream member.",
    keys: &[
        key("name", Kind::Text, Required, "Its identity: pins, metrics and logs go by it."),
        key(
            "address",
            Kind::Text,
            Required,
            "host:port or unix:PATH. Several addresses of a name are tried in turn as one server.",
        ),
        key("weight", Kind::Integer { min: 0, max: 1_000 }, Is("1"), "Share of newcomers; 0: none."),
        key("max_requests", ANY_COUNT, Is("0"), "In flight at once; 0: no cap."),
        key("backup", Kind::Bool, Is("false"), "Used when no other is eligible."),
        key(
            "suffix",
            Kind::Text,
            Computed("the name"),
            "For source = \"suffix\": what the session cookie ends with after a dot.",
        ),
    ],
};

static STICKY: Table = Table {
    path: "pool.sticky",
    doc: "The pin cookie of a sticky pool.",
    keys: &[
        key(
            "source",
            Kind::Word(|| vec!["cookie", "learned", "suffix", "header", "address"]),
            Is("\"cookie\""),
            "How a session is known: our sealed cookie, the application's own (learned, or by its suffix), a header, the client's address.",
        ),
        key("cookie", Kind::Text, Computed("\"__Host-sf-5d41402a\", opaque, one per pool"), "Name of the cookie."),
        key("header", Kind::Text, Nothing("\"X-User\""), "For source = \"header\": hashed, rendezvous."),
        key(
            "table",
            Kind::Integer { min: 1_000, max: 1_000_000_000 },
            Is("1_000_000"),
            "For source = \"learned\": sessions remembered, about 40 bytes each.",
        ),
        key(
            "pin",
            Kind::Word(|| vec!["hard", "soft"]),
            Is("\"hard\""),
            "hard: state lives on the server, move only when it cannot serve. soft: affinity is for warmth.",
        ),
        key(
            "margin",
            Kind::Integer { min: 0, max: 1_000_000 },
            Is("4"),
            "soft: requests in flight above the best server that a pin may cost, per unit of weight.",
        ),
        key(
            "when_unavailable",
            Kind::Word(|| words(WhenUnavailable::ALL, WhenUnavailable::as_str)),
            Is("\"move\""),
            "\"fail\": 503, the cookie kept.",
        ),
        key(
            "queue",
            Kind::Table(&QUEUE),
            Nothing("{ length = 128, timeout = \"2s\" }"),
            "A pinned request waits for its own full server this long.",
        ),
        key("idle", Kind::LongerThanZero, Is("\"24h\""), "A pin not seen for so long is over."),
        key("absolute", Kind::Duration, Is("\"0s\""), "A pin this old is over; 0: never."),
        key(
            "same_site",
            Kind::Word(|| words(SameSite::ALL, SameSite::as_str)),
            Is("\"Lax\""),
            "\"None\" where other sites POST users back into a session.",
        ),
        key("partitioned", Kind::Bool, Is("false"), "With same_site = \"None\", for frames."),
        key("persistent", Kind::Bool, Is("false"), "With a Max-Age of idle."),
    ],
};

static QUEUE: Table = Table {
    path: "pool.sticky.queue",
    doc: "The waiting line of a pinned session's server.",
    keys: &[
        key("length", ANY_COUNT, Is("128"), "How many may wait; 0: nobody."),
        key("timeout", Kind::LongerThanZero, Is("\"2s\""), "How long."),
    ],
};

static HEALTH: Table = Table {
    path: "pool.health",
    doc: "Active probes. A server is eligible until the first probe failed `fall` times.",
    keys: &[
        key(
            "type",
            Kind::Word(|| vec!["tcp", "http", "off"]),
            Computed("\"tcp\", or \"http\" when path is set"),
            "What a probe is.",
        ),
        key("path", Kind::Text, Nothing("\"/healthz\""), "What an http probe asks for."),
        key("interval", Kind::LongerThanZero, Is("\"2s\""), "Between probes."),
        key("timeout", Kind::LongerThanZero, Is("\"1s\""), "Of one probe."),
        key("rise", Kind::Integer { min: 1, max: 100 }, Is("2"), "Good probes in a row until up."),
        key("fall", Kind::Integer { min: 1, max: 100 }, Is("3"), "Bad probes in a row until down."),
        key("expect", Kind::Text, Is("\"200-399\""), "Status codes of a good answer."),
    ],
};

static OUTLIER: Table = Table {
    path: "pool.outlier",
    doc: "Passive ejection, by what exchanges show.",
    keys: &[
        key(
            "consecutive_failures",
            ANY_COUNT,
            Is("5"),
            "Refused, timeout, reset before the head, 502, 503, 504; 0: off.",
        ),
        key("ejection", Kind::LongerThanZero, Is("\"10s\""), "Doubles each time, up to 5m."),
        key("max_ejected", Kind::Percent, Is("\"50%\""), "Of the pool's servers."),
    ],
};

static TIMEOUTS: Table = Table {
    path: "pool.timeouts",
    doc: "How long servers may take.",
    keys: &[
        key("connect", Kind::LongerThanZero, Is("\"1s\""), "Connection and TLS handshake."),
        key(
            "first_byte",
            Kind::Duration,
            Is("\"60s\""),
            "From the last request byte sent to the response head; not for application/grpc. 0: none.",
        ),
        key("between_bytes", Kind::Duration, Is("\"0s\""), "0: none; a silent stream is legal."),
        key(
            "keep_alive",
            Kind::Duration,
            Is("\"30s\""),
            "An unused connection; the server's own Keep-Alive less 1 s when shorter.",
        ),
        key("tunnel_idle", Kind::Duration, Is("\"1h\""), "Upgraded connections, both directions silent. 0: none."),
    ],
};

static CONNECTIONS: Table = Table {
    path: "pool.connections",
    doc: "Connections to servers.",
    keys: &[key("idle", Kind::Integer { min: 0, max: 100_000 }, Is("32"), "Kept per server and worker.")],
};

static DRAIN: Table = Table {
    path: "pool.drain",
    doc: "Taking a server out without losing its sessions.",
    keys: &[
        key(
            "deadline",
            Kind::Duration,
            Is("\"0s\""),
            "Then the sessions that are left move; 0: wait for the last one.",
        ),
        key(
            "idle",
            Kind::LongerThanZero,
            Is("\"10m\""),
            "A session not seen for so long no longer counts as remaining.",
        ),
    ],
};

static RETRY: Table = Table {
    path: "pool.retry",
    doc: "Further attempts of an exchange.",
    keys: &[
        key(
            "attempts",
            Kind::Integer { min: 1, max: 10 },
            Is("2"),
            "In all, the first included; what was not sent goes on to every untried server.",
        ),
        key("body_bytes", ANY_SIZE, Is("\"64KiB\""), "Buffered for a second send."),
        key(
            "budget",
            Kind::Percent,
            Is("\"20%\""),
            "Of requests in flight, never under 10; attempts that sent nothing are not charged.",
        ),
    ],
};

static POOL_TLS: Table = Table {
    path: "pool.tls",
    doc: "TLS to the servers.",
    keys: &[
        key("verify", Kind::Bool, Is("true"), "false: any certificate is taken."),
        key("ca", Kind::Text, Nothing("\"internal-ca.pem\""), "Authorities; absent: the system's roots."),
        key(
            "server_name",
            Kind::Text,
            Nothing("\"shop.internal\""),
            "Name on the certificates; absent: the address's name.",
        ),
    ],
};

static HTTP: Table = Table {
    path: "pool.http",
    doc: "HTTP to the servers.",
    keys: &[key("version", Kind::Word(|| vec!["1.1", "2"]), Is("\"1.1\""), "An upgrade always goes over 1.1.")],
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
