//! The routes, and what they change and answer.

use super::Absent::{Computed, Default as Is, Nothing, Required};
use super::{ANY_SIZE, Kind, Table, key, words};
use crate::names::{Csrf, RateBy, SessionNeed};

pub(super) static ROUTE: Table = Table {
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
        key(
            "rate",
            Kind::Table(&RATE),
            Nothing("{ requests = 20, per = \"1s\", burst = 40, by = \"client\" }"),
            "How often somebody may ask; 429 with Retry-After past it.",
        ),
        key("sticky", Kind::Bool, Is("true"), "false: these requests neither read nor write pins."),
        key(
            "session",
            Kind::Word(|| words(SessionNeed::ALL, SessionNeed::as_str)),
            Is("\"optional\""),
            "Whether these requests have a session or token; only for shared and stateless pools.",
        ),
        key(
            "csrf",
            Kind::Word(|| words(Csrf::ALL, Csrf::as_str)),
            Computed("the value of `[protect] csrf`"),
            "What becomes of requests that another site has sent.",
        ),
        key("protect_safe", Kind::Bool, Is("false"), "true: the rules for requests from other sites hold for GET too."),
        key(
            "require",
            Kind::Table(&REQUIRE),
            Nothing("{ acr = [\"mfa\"], max_age = \"10m\" }"),
            "Step-up: how, and how recently, somebody has to have shown who they are (RFC 9470).",
        ),
        key("login_url", Kind::Text, Nothing("\"/login\""), "Where navigations go that need a session, or a step-up."),
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

static REQUIRE: Table = Table {
    path: "route.require",
    doc: "How, and how recently, somebody has to have shown who they are.",
    keys: &[
        key("acr", Kind::TextList, Is("[]"), "One of these levels (`acr`); []: any."),
        key("max_age", Kind::LongerThanZero, Nothing("\"10m\""), "The login is no older than this."),
    ],
};

const RATE_COUNT: Kind = Kind::Integer { min: 1, max: 1_000_000_000 };

static RATE: Table = Table {
    path: "route.rate",
    doc: "A rate of requests, for each client or session.",
    keys: &[
        key("requests", RATE_COUNT, Required, "This many in every `per`."),
        key("per", Kind::LongerThanZero, Is("\"1s\""), "What `requests` is counted over."),
        key("burst", RATE_COUNT, Computed("the value of requests"), "This many at once."),
        key(
            "by",
            Kind::Word(|| words(RateBy::ALL, RateBy::as_str)),
            Is("\"client\""),
            "\"client\": address, or IPv6 network of 64 bits; \"session\": requests without one count by client.",
        ),
    ],
};
