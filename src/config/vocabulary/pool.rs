//! The pools: servers, pins, health, time limits, connections.

use super::Absent::{Computed, Default as Is, Nothing, Required};
use super::{ANY_COUNT, ANY_SIZE, Kind, Table, key, session, stateless, words};
use crate::affinity::SameSite;
use crate::balance::Balance;
use crate::pool::WhenUnavailable;
use crate::twin::Discipline;

pub(super) static POOL: Table = Table {
    path: "pool",
    doc: "A named set of servers with one mode and one balance policy.",
    keys: &[
        key("name", Kind::Text, Required, "Its identity, also in metrics and logs."),
        key(
            "mode",
            Kind::Word(|| vec!["none", "sticky", "shared", "stateless"]),
            Is("\"sticky\""),
            "How sessions are kept.",
        ),
        key("balance", Kind::Word(|| words(Balance::ALL, Balance::as_str)), Is("\"p2c\""), "Where newcomers go."),
        key("host", Kind::Text, Nothing("\"shop.internal\""), "Host that servers see; absent: as the client sent it."),
        key("debug_headers", Kind::Bool, Is("false"), "Clients see Steadfast-Verdict."),
        key("server", Kind::Tables(&SERVER), Required, "One upstream member."),
        key("sticky", Kind::Table(&STICKY), Nothing(""), "The pin cookie; only with mode = \"sticky\"."),
        key("shared", Kind::Table(&session::SHARED), Nothing(""), "Sessions in a store; only with mode = \"shared\"."),
        key(
            "stateless",
            Kind::Table(&stateless::STATELESS),
            Nothing(""),
            "Signed tokens; only with mode = \"stateless\".",
        ),
        key("health", Kind::Table(&HEALTH), Nothing(""), "Active probes."),
        key("outlier", Kind::Table(&OUTLIER), Nothing(""), "Passive ejection."),
        key("timeouts", Kind::Table(&TIMEOUTS), Nothing(""), "How long servers may take."),
        key("connections", Kind::Table(&CONNECTIONS), Nothing(""), "Connections to servers."),
        key("drain", Kind::Table(&DRAIN), Nothing(""), "Taking a server out without losing its sessions."),
        key("slow_start", Kind::Table(&SLOW_START), Nothing(""), "Easing in a server that joins."),
        key("rebalance", Kind::Table(&REBALANCE), Nothing(""), "Bringing sessions over to servers that have joined."),
        key("twin", Kind::Table(&TWIN), Nothing(""), "What the same traffic would meet under other policies."),
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
        key(
            "capacity",
            Kind::Integer { min: 0, max: 1_000_000 },
            Is("0"),
            "Requests it serves at full speed at once, for the twin; 0: estimated.",
        ),
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

static SLOW_START: Table = Table {
    path: "pool.slow_start",
    doc: "Easing in a server that joins: new in the file, up again, no longer ejected, out of a drain.",
    keys: &[key("window", Kind::Duration, Is("\"0s\""), "Over which its share of new sessions grows; 0: at once.")],
};

static REBALANCE: Table = Table {
    path: "pool.rebalance",
    doc: "Bringing sessions over to servers that have joined; only with soft pins.",
    keys: &[key(
        "moves_per_second",
        Kind::Integer { min: 0, max: 1_000_000 },
        Is("0"),
        "How many idle sessions may move; 0: none, so only new ones go there.",
    )],
};

static TWIN: Table = Table {
    path: "pool.twin",
    doc: "A model beside the pool: what its very traffic would meet if it were sticky, soft or shared.",
    keys: &[
        key("enabled", Kind::Bool, Is("true"), "false: no model, and no figures."),
        key(
            "events_per_second",
            Kind::Integer { min: 1, max: 1_000_000 },
            Is("20_000"),
            "Requests that are modelled, each counted for every policy that is another one; above, only a sample of the sessions is.",
        ),
        key(
            "discipline",
            Kind::Word(|| [vec!["auto"], words(Discipline::ALL, Discipline::as_str)].concat()),
            Is("\"auto\""),
            "How servers work: workers and a queue (fifo), all at once (sharing), or what fits better.",
        ),
        key(
            "window",
            Kind::Duration,
            Is("\"10s\""),
            "What the figures are about: the traffic of so long, and longer where there is little.",
        ),
        key(
            "warm_up",
            Kind::Duration,
            Is("\"5ms\""),
            "What a request costs more on a server that its session is new to.",
        ),
        key(
            "store_round_trip",
            Kind::Duration,
            Is("\"1ms\""),
            "What a look into a store costs, where none is measured.",
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
