//! The process, its keys and admin surface, and the listeners with their TLS.

use super::Absent::{Default as Is, Nothing, Required};
use super::{ANY_COUNT, Kind, Table, key, words};
use crate::headers::{ForwardedBy, UnsafeNames};
use crate::listener::ProxyProtocol;
use crate::tls::{ClientAuth, MinVersion};

pub(super) static PROCESS: Table = Table {
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

pub(super) static KEYS: Table = Table {
    path: "keys",
    doc: "The key ring that seals cookies and tickets.",
    keys: &[key(
        "ring",
        Kind::TextList,
        Nothing("[\"file:steadfast.key\"]"),
        "\"file:PATH\" or \"env:NAME\"; the first seals, all open. Absent: a fresh key per start.",
    )],
};

pub(super) static ADMIN: Table = Table {
    path: "admin",
    doc: "Where metrics and health are served.",
    keys: &[
        key(
            "address",
            Kind::Text,
            Is("\"127.0.0.1:9900\""),
            "A loopback address or \"unix:PATH\"; any other needs `token` and `tls`.",
        ),
        key(
            "metrics",
            Kind::Text,
            Nothing("\"127.0.0.1:9901\""),
            "A second address with /metrics, /healthz and /readyz only; no token, no TLS.",
        ),
        key(
            "token",
            Kind::Text,
            Nothing("\"file:admin.token\""),
            "Who knows it is let in; \"file:PATH\" or \"env:NAME\", at least 16 bytes.",
        ),
        key(
            "tls",
            Kind::Table(&ADMIN_TLS),
            Nothing("{ cert = \"admin.pem\", key = \"admin.key\" }"),
            "TLS of the admin address; absent: plain HTTP.",
        ),
    ],
};

pub(super) static ADMIN_TLS: Table = Table {
    path: "admin.tls",
    doc: "The certificate of the admin address.",
    keys: &[
        key("cert", Kind::Text, Required, "Path of the chain, in PEM form."),
        key("key", Kind::Text, Required, "Path of its private key, in PEM form."),
    ],
};

pub(super) static LISTENER: Table = Table {
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
