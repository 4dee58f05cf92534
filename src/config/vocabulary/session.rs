//! Where sessions are kept, and how.

use super::Absent::{Computed, Default as Is, Nothing, Required};
use super::{ANY_SIZE, Kind, Table, edge, key, words};
use crate::names::{HeldBy, OnStoreError};
use crate::session::OnReuse;

pub(super) static STORE: Table = Table {
    path: "store",
    doc: "Where sessions are kept.",
    keys: &[
        key("name", Kind::Text, Required, "Its identity: pools and metrics name it."),
        key("kind", Kind::Word(|| vec!["embedded", "redis", "memcached"]), Is("\"embedded\""), "What it is."),
        key("path", Kind::Text, Nothing("\"sessions.redb\""), "embedded: a file that survives; absent: memory only."),
        key("memory", Kind::Size { min: 1 << 20, max: 1 << 40 }, Is("\"256MiB\""), "embedded: what it may hold."),
        key("url", Kind::Text, Nothing("\"rediss://cache.internal:6380\""), "redis: one node."),
        key(
            "sentinel",
            Kind::Table(&SENTINEL),
            Nothing("{ master = \"mymaster\", nodes = [\"10.0.0.1:26379\"] }"),
            "redis: the primary that these sentinels name.",
        ),
        key(
            "cluster",
            Kind::TextList,
            Nothing("[\"10.0.0.1:6379\", \"10.0.0.2:6379\"]"),
            "redis: a cluster, found by any of these nodes.",
        ),
        key("tls", Kind::Bool, Is("false"), "redis: TLS to `sentinel` and `cluster` nodes; a `url` says it itself."),
        key(
            "nodes",
            Kind::TextList,
            Nothing("[\"10.0.0.1:11211\"]"),
            "memcached: its nodes. A session is on one of them, and stays there.",
        ),
        key("username", Kind::Text, Nothing("\"steadfast\""), "redis: an ACL user."),
        key("password", Kind::Text, Nothing("\"file:redis.password\""), "redis: \"file:PATH\" or \"env:NAME\"."),
        key("ca", Kind::Text, Nothing("\"internal-ca.pem\""), "redis over TLS: authorities; absent: the system's."),
        key("connect", Kind::LongerThanZero, Is("\"250ms\""), "redis, memcached: to a connection."),
        key(
            "timeout",
            Kind::LongerThanZero,
            Is("\"250ms\""),
            "redis, memcached: of one operation; a read is tried twice.",
        ),
        key(
            "near_cache",
            Kind::Duration,
            Is("\"0s\""),
            "redis, memcached: how old reads may be, at most \"1s\"; 0: never.",
        ),
        key(
            "breaker",
            Kind::Table(&BREAKER),
            Nothing("{ failures = 5, within = \"1s\", probe = \"500ms\" }"),
            "redis, memcached: when it is left alone for a while.",
        ),
        key("max_bytes", Kind::Size { min: 256, max: 16 << 20 }, Is("\"64KiB\""), "Data of one session."),
    ],
};

static SENTINEL: Table = Table {
    path: "store.sentinel",
    doc: "A primary that sentinels watch over.",
    keys: &[
        key("master", Kind::Text, Required, "Its name with the sentinels."),
        key("nodes", Kind::TextList, Required, "Sentinels, asked in turn."),
    ],
};

static LOGIN_WHEN: Table = Table {
    path: "pool.shared.login_when",
    doc: "A login that is seen from outside, where the application does not say it.",
    keys: &[
        key("path", Kind::Text, Required, "Exactly this path"),
        key("method", Kind::Text, Is("\"POST\""), "and method,"),
        key("status", Kind::IntegerList { min: 200, max: 599 }, Is("[302, 303]"), "answered with one of these,"),
        key("cookie_changed", Kind::Text, Nothing("\"sessionid\""), "and this cookie of `vault` has another value."),
    ],
};

static BREAKER: Table = Table {
    path: "store.breaker",
    doc: "A store that fails is asked less.",
    keys: &[
        key("failures", Kind::Integer { min: 1, max: 1_000_000 }, Is("5"), "So many failures"),
        key("within", Kind::LongerThanZero, Is("\"1s\""), "within this time open it;"),
        key("probe", Kind::LongerThanZero, Is("\"500ms\""), "then one operation is let through in each of these."),
    ],
};

pub(super) static SHARED: Table = Table {
    path: "pool.shared",
    doc: "Sessions in a store, so that any server serves any request.",
    keys: &[
        key("store", Kind::Text, Nothing("\"main\""), "Where they are kept."),
        key("realm", Kind::Text, Computed("the pool's name"), "Pools of one realm share their sessions."),
        key(
            "held_by",
            Kind::Word(|| words(HeldBy::ALL, HeldBy::as_str)),
            Is("\"proxy\""),
            "\"application\": it keeps its own, we only count them by `cookie`.",
        ),
        key(
            "cookie",
            Kind::Text,
            Computed("\"__Host-Http-session\""),
            "Name of the cookie; the application's own with held_by.",
        ),
        key(
            "profile",
            Kind::Word(|| vec!["aal1", "aal2", "aal3"]),
            Nothing("\"aal1\""),
            "Sets the clocks below at once.",
        ),
        key("idle", Kind::LongerThanZero, Is("\"30m\""), "Without a request."),
        key("absolute", Kind::LongerThanZero, Is("\"8h\""), "From the login on."),
        key("anonymous", Kind::LongerThanZero, Is("\"24h\""), "Without a request, before a login."),
        key("renew", Kind::LongerThanZero, Is("\"15m\""), "How long a cookie is used before it gets a successor."),
        key("grace", Kind::Duration, Is("\"30s\""), "How long it still counts then."),
        key(
            "on_reuse",
            Kind::Word(|| words(OnReuse::ALL, OnReuse::as_str)),
            Is("\"kill\""),
            "A cookie is shown whose successor is in use: one of the two is a copy.",
        ),
        key("carry", Kind::TextList, Is("[\"*\"]"), "Keys of the data that survive a login."),
        key("inline_bytes", ANY_SIZE, Is("\"2KiB\""), "Data in Steadfast-Session; more: by the session API."),
        key(
            "on_store_error",
            Kind::Word(|| words(OnStoreError::ALL, OnStoreError::as_str)),
            Is("\"fail\""),
            "\"anonymous\": safe methods go on without a session.",
        ),
        key(
            "clear_site_data",
            Kind::TextList,
            Is("[\"cache\", \"cookies\", \"storage\"]"),
            "What browsers are to forget at a logout; []: nothing.",
        ),
        key("tunnel_recheck", Kind::LongerThanZero, Is("\"30s\""), "How often sessions of open tunnels are looked at."),
        key(
            "vault",
            Kind::TextList,
            Is("[]"),
            "Cookies of the application that are kept here: the browser never has them.",
        ),
        key(
            "login_when",
            Kind::Table(&LOGIN_WHEN),
            Nothing("{ path = \"/login\", method = \"POST\", status = [302, 303], cookie_changed = \"sessionid\" }"),
            "A login that is seen from outside: the session gets a new cookie then.",
        ),
    ],
};

pub(super) static SESSION_API: Table = Table {
    path: "session_api",
    doc: "Where servers of shared pools read and write sessions.",
    keys: &[
        key("address", Kind::Text, Required, "\"unix:PATH\", a loopback address, or a private one with `tls`."),
        key("advertise", Kind::Text, Computed("the address"), "How servers reach this proxy's own."),
        key(
            "tls",
            Kind::Table(&edge::ADMIN_TLS),
            Nothing("{ cert = \"api.pem\", key = \"api.key\" }"),
            "Needed off loopback.",
        ),
    ],
};
