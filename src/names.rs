//! The words of steadfast: one declaration each, read by the cookie, the metrics, the access log and the API.
//!
//! Every enum here is a closed vocabulary. Its text form (`as_str`) is what users see in labels and log fields, so a
//! word is never renamed, and a label never comes from a request.

/// Declares a closed vocabulary: the enum, all its values in order, their text, and their position.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$value_doc:meta])* $value:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$value_doc])* $value,)+ }

        #[allow(dead_code, reason = "not every vocabulary is asked for everything")]
        impl $name {
            /// Every value, in the order of declaration.
            pub const ALL: &[$name] = &[$($name::$value,)+];

            /// The word that users see.
            pub const fn as_str(self) -> &'static str {
                match self { $($name::$value => $text,)+ }
            }

            /// The position in [`Self::ALL`].
            pub const fn index(self) -> usize {
                self as usize
            }

            /// The value whose word is `text`.
            pub fn from_word(text: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|value| value.as_str() == text)
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                out.write_str(self.as_str())
            }
        }
    };
}
pub(crate) use words;

words! {
    /// Why an exchange had no affinity at all.
    NoneWhy {
        NotSticky = "not_sticky",
        Rejected = "rejected",
        Preflight = "preflight",
        NoServer = "no_server",
    }
}

words! {
    /// Why a session was placed afresh.
    NewWhy {
        First = "first",
        Expired = "expired",
        Invalid = "invalid",
        UnknownKey = "unknown_key",
        OtherPool = "other_pool",
    }
}

words! {
    /// Why a session left the server it was pinned to.
    MovedWhy {
        Gone = "gone",
        Draining = "draining",
        Maint = "maint",
        Down = "down",
        Ejected = "ejected",
        Failed = "failed",
        Full = "full",
        Margin = "margin",
        Rebalance = "rebalance",
    }
}

words! {
    /// Why a pinned exchange was refused instead of moved.
    RefusedWhy {
        Full = "full",
        Down = "down",
        Ejected = "ejected",
        QueueTimeout = "queue_timeout",
    }
}

/// What became of the affinity on one exchange. Drives the cookie, the metric labels and the log field alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The exchange has no affinity.
    None(NoneWhy),
    /// The session was placed afresh.
    New(NewWhy),
    /// The pinned server answered.
    Kept,
    /// The pinned server answered, after the exchange had waited in its line.
    Waited,
    /// Another server than the pinned one answered.
    Moved(MovedWhy),
    /// The pinned server could not serve, and the pool says not to move.
    Refused(RefusedWhy),
}

impl Verdict {
    /// How many different verdicts there are, reasons included.
    pub const COUNT: usize = NoneWhy::ALL.len() + NewWhy::ALL.len() + 2 + MovedWhy::ALL.len() + RefusedWhy::ALL.len();

    /// The verdict without its reason.
    pub const fn as_str(self) -> &'static str {
        match self {
            Verdict::None(_) => "none",
            Verdict::New(_) => "new",
            Verdict::Kept => "kept",
            Verdict::Waited => "waited",
            Verdict::Moved(_) => "moved",
            Verdict::Refused(_) => "refused",
        }
    }

    /// The reason, empty where there is none.
    pub const fn reason(self) -> &'static str {
        match self {
            Verdict::None(why) => why.as_str(),
            Verdict::New(why) => why.as_str(),
            Verdict::Kept | Verdict::Waited => "",
            Verdict::Moved(why) => why.as_str(),
            Verdict::Refused(why) => why.as_str(),
        }
    }

    /// A dense position below [`Self::COUNT`], for counters.
    pub const fn index(self) -> usize {
        const NEW: usize = NoneWhy::ALL.len();
        const KEPT: usize = NEW + NewWhy::ALL.len();
        const MOVED: usize = KEPT + 2;
        const REFUSED: usize = MOVED + MovedWhy::ALL.len();
        match self {
            Verdict::None(why) => why.index(),
            Verdict::New(why) => NEW + why.index(),
            Verdict::Kept => KEPT,
            Verdict::Waited => KEPT + 1,
            Verdict::Moved(why) => MOVED + why.index(),
            Verdict::Refused(why) => REFUSED + why.index(),
        }
    }

    /// Every verdict, in the order of [`Self::index`].
    pub fn all() -> impl Iterator<Item = Verdict> {
        let none = NoneWhy::ALL.iter().map(|why| Verdict::None(*why));
        let new = NewWhy::ALL.iter().map(|why| Verdict::New(*why));
        let moved = MovedWhy::ALL.iter().map(|why| Verdict::Moved(*why));
        let refused = RefusedWhy::ALL.iter().map(|why| Verdict::Refused(*why));
        none.chain(new).chain([Verdict::Kept, Verdict::Waited]).chain(moved).chain(refused)
    }
}

words! {
    /// Why a server may not receive an exchange now.
    Ineligible {
        /// Active probes have failed.
        Down = "down",
        /// Taken out by passive observation, for a time.
        Ejected = "ejected",
        /// The operator wants no new sessions there.
        Draining = "draining",
        /// The operator wants nobody there.
        Maint = "maint",
        /// At its `max_requests`.
        Full = "full",
        /// An earlier attempt of this exchange went there.
        Tried = "tried",
        /// Its weight is 0: nothing new.
        Weightless = "weightless",
    }
}

impl Ineligible {
    /// The reason a pinned session gives when it leaves a server for this.
    pub const fn moved(self) -> MovedWhy {
        match self {
            Ineligible::Down => MovedWhy::Down,
            Ineligible::Ejected => MovedWhy::Ejected,
            Ineligible::Draining | Ineligible::Weightless => MovedWhy::Draining,
            Ineligible::Maint => MovedWhy::Maint,
            Ineligible::Full => MovedWhy::Full,
            Ineligible::Tried => MovedWhy::Failed,
        }
    }
}

words! {
    /// What an attempt tells health and the metrics.
    Outcome {
        Informational = "1xx",
        Success = "2xx",
        Redirection = "3xx",
        ClientError = "4xx",
        ServerError = "5xx",
        /// 502, 503 or 504 from the server itself: it could not serve.
        Unavailable = "unavailable",
        Refused = "refused",
        TimedOut = "timed_out",
        Reset = "reset",
        /// Never held against a server.
        ClientLeft = "client_left",
    }
}

impl Outcome {
    /// The outcome of an answer with this status.
    pub const fn answered(status: u16) -> Self {
        match status {
            100..=199 => Outcome::Informational,
            200..=299 => Outcome::Success,
            300..=399 => Outcome::Redirection,
            400..=499 => Outcome::ClientError,
            502..=504 => Outcome::Unavailable,
            _ => Outcome::ServerError,
        }
    }

    /// What this says about the server's health: `Some(true)` good, `Some(false)` bad, `None` nothing.
    pub const fn speaks_for_health(self) -> Option<bool> {
        match self {
            Outcome::Refused | Outcome::TimedOut | Outcome::Reset | Outcome::Unavailable => Some(false),
            Outcome::ClientLeft => None,
            _ => Some(true),
        }
    }
}

words! {
    /// The `code` label of `steadfast_requests_total`.
    CodeClass {
        Informational = "1xx",
        Success = "2xx",
        Redirection = "3xx",
        ClientError = "4xx",
        ServerError = "5xx",
        ClientClosed = "client_closed",
    }
}

impl CodeClass {
    /// The class of a status code.
    pub const fn of(status: u16) -> Self {
        match status {
            100..=199 => CodeClass::Informational,
            200..=299 => CodeClass::Success,
            300..=399 => CodeClass::Redirection,
            400..=499 => CodeClass::ClientError,
            _ => CodeClass::ServerError,
        }
    }
}

words! {
    /// The state of a server, as `steadfast_server_state` shows it.
    ServerCondition {
        Up = "up",
        Down = "down",
        Ejected = "ejected",
        Drain = "drain",
        Maint = "maint",
    }
}

words! {
    /// Exchanges that may last for hours.
    LongLivedKind {
        /// Switched to another protocol: a WebSocket, mostly.
        Tunnel = "tunnel",
        /// Server-sent events.
        EventStream = "event_stream",
    }
}

words! {
    /// A bound that was reached, as `steadfast_limit_reached_total` counts it.
    Limit {
        MaxConnections = "max_connections",
        ConnectionsPerAddress = "connections_per_address",
        HeaderTimeout = "header_timeout",
        IdleTimeout = "idle_timeout",
        WriteTimeout = "write_timeout",
        HeaderSize = "header_size",
        BodyBytes = "body_bytes",
        MaxRequests = "max_requests",
        RetryBudget = "retry_budget",
        AccessLog = "access_log",
        ProxyProtocol = "proxy_protocol",
        /// A connection to an admin address had to make room, or found none.
        AdminConnections = "admin_connections",
        AdminStreams = "admin_streams",
        /// Both sides of an upgraded connection were silent for too long.
        TunnelIdle = "tunnel_idle",
    }
}

words! {
    /// Why a request was cleaned or refused, as `steadfast_protect_total` counts it for the rule `header`.
    HeaderReason {
        /// A legal name with bytes outside `A-Z a-z 0-9 -`.
        UnsafeName = "unsafe_name",
        /// No Host, two of them, or one that is no authority.
        BadHost = "bad_host",
        /// A path that decodes to something ambiguous.
        BadPath = "bad_path",
        /// A transfer coding other than `chunked`.
        TransferCoding = "transfer_coding",
        /// Bytes that are no HTTP.
        Malformed = "malformed",
        /// The certificate of the connection does not cover the host.
        Misdirected = "misdirected",
        /// A method this proxy does not serve.
        Method = "method",
    }
}

words! {
    /// Whose requests a route's rate counts together; the reason in `steadfast_protect_total` of the rule `rate`.
    RateBy {
        /// One address, or one IPv6 network of 64 bits.
        Client = "client",
        /// One session; requests without one count by client.
        Session = "session",
    }
}

words! {
    /// What a session store is asked, as `steadfast_store_operation_seconds` tells it apart.
    StoreOp {
        Read = "read",
        Change = "change",
        Touch = "touch",
        Delete = "delete",
    }
}

words! {
    /// How a session store fails.
    StoreFault {
        Unavailable = "unavailable",
        TimedOut = "timed_out",
        /// The breaker is open.
        Resting = "resting",
        Full = "full",
        Confused = "confused",
        /// Done, and confirmed by no replica: a failover may lose it.
        Unreplicated = "unreplicated",
    }
}

words! {
    /// Whether requests of a route have a session.
    SessionNeed {
        Off = "off",
        Optional = "optional",
        Required = "required",
    }
}

words! {
    /// Who keeps the sessions of a shared pool.
    HeldBy {
        Proxy = "proxy",
        /// In a store of its own; the proxy only counts them.
        Application = "application",
    }
}

words! {
    /// What becomes of a request with a session whose store does not answer.
    OnStoreError {
        Fail = "fail",
        /// Safe methods go on without one.
        Anonymous = "anonymous",
    }
}

words! {
    /// What happened to a session, as `steadfast_session_events_total` counts it.
    SessionEvent {
        Created = "created",
        Renewed = "renewed",
        /// A login or a step-up: another lineage.
        Rotated = "rotated",
        LoggedOut = "logged_out",
        /// By an operator, or from another session of the subject.
        Revoked = "revoked",
        Expired = "expired",
        /// A cookie of ours that nothing is known of.
        Missing = "missing",
        /// A cookie that was given up for another at a login or logout.
        Muted = "muted",
        /// A cookie that was given up at a renewal, after its successor had been used: somebody has a copy.
        Reused = "reused",
        /// Two session cookies, or one that is none.
        Malformed = "malformed",
        UnknownKey = "unknown_key",
        /// What the store holds does not open.
        Unreadable = "unreadable",
        Conflict = "conflict",
        /// What an application has said that does not count.
        BadDirective = "bad_directive",
        /// A directive that is not of the request's own attempt.
        ForeignDirective = "foreign_directive",
        StoreError = "store_error",
        Degraded = "degraded",
    }
}

words! {
    /// What becomes of a request that another site may have forged.
    Csrf {
        Enforce = "enforce",
        /// It is counted, and goes on.
        Report = "report",
        Off = "off",
    }
}

words! {
    /// When a request with a session has to show a token.
    CsrfToken {
        Off = "off",
        /// Where no header says where the request comes from.
        Fallback = "fallback",
        /// With every method that changes something.
        Required = "required",
    }
}

words! {
    /// Why a request is taken for forged, as `steadfast_protect_total` counts it for the rule `csrf`.
    CsrfReason {
        CrossSite = "cross_site",
        SameSite = "same_site",
        /// A `Sec-Fetch-Site` that no browser sends.
        UnknownFetchSite = "unknown_fetch_site",
        SeveralFetchSites = "several_fetch_sites",
        OriginMismatch = "origin_mismatch",
        /// A page that has no origin: sandboxed, or out of a file.
        OriginNull = "origin_null",
        OriginMalformed = "origin_malformed",
        SeveralOrigins = "several_origins",
        TokenMissing = "token_missing",
        TokenWrong = "token_wrong",
    }
}

words! {
    /// What becomes of the cookies that servers set.
    CookieMode {
        /// What is missing is added.
        Fix = "fix",
        /// What would have to be fixed is taken out.
        Reject = "reject",
        /// Only reserved names are taken out.
        Off = "off",
    }
}

words! {
    /// The `SameSite` attribute of a cookie that the proxy writes, or completes.
    SameSite {
        Strict = "Strict",
        Lax = "Lax",
        None = "None",
    }
}

words! {
    /// What is wrong with a cookie that a server sets, as `steadfast_protect_total` counts it for the rule `cookie`.
    /// What weighs most comes first: a line that is taken out counts once, with that.
    CookieFault {
        /// The name of a cookie of ours, or one that a server might take for it.
        ReservedName = "reserved_name",
        /// No name, or one that is never passed on to a server.
        Malformed = "malformed",
        ControlBytes = "control_bytes",
        /// Name and value have more than 4096 bytes together.
        TooLarge = "too_large",
        /// Its Domain is one under which strangers have theirs.
        PublicSuffix = "public_suffix",
        /// Its Domain does not cover the host.
        DomainRefused = "domain_refused",
        /// Its name begins like `__Host-`, and its attributes are not what browsers ask of it.
        PrefixBroken = "prefix_broken",
        NoSecure = "no_secure",
        NoHttpOnly = "no_http_only",
        NoSameSite = "no_same_site",
        /// Its Domain covers the host, and others.
        DomainWide = "domain_wide",
        /// Its name begins like `__Host_`, which protects nothing everywhere.
        PrefixMisspelt = "prefix_misspelt",
    }
}

words! {
    /// What was done about a fault of a cookie.
    CookieDeed {
        /// Nothing.
        Passed = "passed",
        Fixed = "fixed",
        /// The line was taken out.
        Dropped = "dropped",
    }
}

words! {
    /// Why a token was refused, as `steadfast_protect_total` counts it for the rule `jwt`.
    TokenReason {
        /// Not three segments of strict base64url, or no JSON object in one of the first two.
        Malformed = "malformed",
        TooLarge = "too_large",
        /// A header parameter that is refused, or not of its type.
        Header = "header",
        /// None that the issuer signs with, or none that its key is for.
        Algorithm = "algorithm",
        /// A `typ` that is not taken.
        Type = "type",
        Issuer = "issuer",
        Audience = "audience",
        /// No key of that name, none that can be told without a name, or no keys at all.
        Key = "key",
        Signature = "signature",
        Expired = "expired",
        NotYetValid = "not_yet_valid",
        /// A claim that is missing or not of its type.
        Claims = "claims",
        Revoked = "revoked",
        /// It came twice, or in two ways.
        TwoCarriers = "two_carriers",
    }
}

words! {
    /// Why somebody who asks for a route that wants more has to show again who they are.
    StepUpReason {
        /// Nobody has logged in.
        NoLogin = "no_login",
        /// None of the levels (`acr`) that it takes.
        Level = "level",
        /// Too long ago.
        Age = "age",
    }
}

words! {
    /// What was done about it.
    Decision {
        Stripped = "stripped",
        Rejected = "rejected",
        /// Counted only.
        Reported = "reported",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_verdict_has_its_own_index() {
        let indexes: Vec<usize> = Verdict::all().map(Verdict::index).collect();
        assert_eq!(indexes, (0..Verdict::COUNT).collect::<Vec<_>>());
    }

    #[test]
    fn words_read_back() {
        for why in MovedWhy::ALL {
            assert_eq!(MovedWhy::from_word(why.as_str()), Some(*why));
        }
        assert_eq!(MovedWhy::from_word("elsewhere"), None);
    }

    #[test]
    fn a_500_is_the_applications_word_and_a_503_is_not() {
        assert_eq!(Outcome::answered(500).speaks_for_health(), Some(true));
        assert_eq!(Outcome::answered(503).speaks_for_health(), Some(false));
        assert_eq!(Outcome::ClientLeft.speaks_for_health(), None);
    }
}
