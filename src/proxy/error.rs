//! Why an exchange gets no answer from a server.

use http::{HeaderValue, StatusCode};

use crate::names::{CsrfReason, HeaderReason, StepUpReason, TokenReason, words};

words! {
    /// Which side an error is the fault of.
    Side {
        Downstream = "downstream",
        Upstream = "upstream",
        Local = "local",
    }
}

/// What went wrong. `reply` turns it into a status, and nobody else does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The request's head cannot be served.
    Head(HeaderReason),
    HeadTooLarge,
    /// Without its cookies the head would not be too large. `cleared`: the browser is told to forget them.
    CookiesTooLarge {
        cleared: bool,
    },
    NoRoute,
    /// Too many requests of one client or session; there is a place again after so many seconds.
    RateExceeded {
        retry_after: u32,
    },
    BodyTooLarge,
    BodyMalformed,
    /// The client stopped in the middle of its body.
    BodyStalled,
    ClientGone,
    /// No server is eligible.
    NoServer,
    ConnectFailed,
    ConnectTimedOut,
    /// The connection broke before the response's head.
    Broken,
    FirstByteTimedOut,
    /// The server answered something that cannot be passed on.
    BadResponse,
    /// Two session cookies: whose session it is cannot be told.
    TwoSessions,
    /// The route is for those who have logged in.
    LoginRequired,
    /// Another site has sent the request.
    Csrf(CsrfReason),
    /// The route is for those who have shown more of who they are, or more recently.
    StepUp(StepUpReason),
    /// The token does not count.
    Token(TokenReason),
    /// Tokens cannot be checked now: there are no keys, or nobody can tell what is revoked.
    TokensUnchecked,
    /// The session has changed or ended meanwhile. `ran`: a server has run an unsafe request.
    SessionConflict {
        ran: bool,
    },
    /// The session store does not answer.
    SessionStore {
        ran: bool,
    },
    /// The server said something about the session that cannot be followed.
    BadDirective,
}

/// One error of one exchange.
#[derive(Clone, Debug)]
pub(super) struct Error {
    pub(super) kind: Kind,
    /// For the log, never for the client.
    pub(super) detail: Option<String>,
    /// A Set-Cookie line that goes out with it.
    pub(super) cookie: Option<HeaderValue>,
    /// What would be needed: WWW-Authenticate.
    pub(super) challenge: Option<HeaderValue>,
}

impl Error {
    pub(super) const fn new(kind: Kind) -> Self {
        Error { kind, detail: None, cookie: None, challenge: None }
    }

    pub(super) fn because(kind: Kind, why: &dyn std::fmt::Display) -> Self {
        Error { kind, detail: Some(why.to_string()), cookie: None, challenge: None }
    }
}

impl Kind {
    pub(super) const fn side(self) -> Side {
        match self {
            Kind::Head(_)
            | Kind::HeadTooLarge
            | Kind::CookiesTooLarge { .. }
            | Kind::BodyTooLarge
            | Kind::BodyMalformed
            | Kind::BodyStalled
            | Kind::ClientGone
            | Kind::TwoSessions
            | Kind::Csrf(_)
            | Kind::StepUp(_)
            | Kind::Token(_)
            | Kind::LoginRequired => Side::Downstream,
            Kind::NoRoute
            | Kind::NoServer
            | Kind::RateExceeded { .. }
            | Kind::SessionConflict { .. }
            | Kind::TokensUnchecked
            | Kind::SessionStore { .. } => Side::Local,
            Kind::ConnectFailed
            | Kind::ConnectTimedOut
            | Kind::Broken
            | Kind::FirstByteTimedOut
            | Kind::BadResponse
            | Kind::BadDirective => Side::Upstream,
        }
    }

    pub(super) const fn status(self) -> StatusCode {
        match self {
            Kind::Head(HeaderReason::TransferCoding | HeaderReason::Method) => StatusCode::NOT_IMPLEMENTED,
            Kind::Head(HeaderReason::Misdirected) => StatusCode::MISDIRECTED_REQUEST,
            Kind::Head(_) | Kind::BodyMalformed | Kind::ClientGone | Kind::TwoSessions => StatusCode::BAD_REQUEST,
            Kind::Token(TokenReason::TwoCarriers) => StatusCode::BAD_REQUEST,
            Kind::LoginRequired | Kind::StepUp(_) | Kind::Token(_) => StatusCode::UNAUTHORIZED,
            Kind::Csrf(_) => StatusCode::FORBIDDEN,
            Kind::SessionConflict { .. } => StatusCode::CONFLICT,
            Kind::HeadTooLarge | Kind::CookiesTooLarge { .. } => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Kind::NoRoute => StatusCode::NOT_FOUND,
            Kind::RateExceeded { .. } => StatusCode::TOO_MANY_REQUESTS,
            Kind::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Kind::BodyStalled => StatusCode::REQUEST_TIMEOUT,
            Kind::NoServer | Kind::SessionStore { .. } | Kind::TokensUnchecked => StatusCode::SERVICE_UNAVAILABLE,
            Kind::ConnectFailed | Kind::Broken | Kind::BadResponse | Kind::BadDirective => StatusCode::BAD_GATEWAY,
            Kind::ConnectTimedOut | Kind::FirstByteTimedOut => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    /// A sentence for the person at the other end; it names no server.
    pub(super) const fn sentence(self) -> &'static str {
        match self {
            Kind::Head(HeaderReason::BadHost) => "The request names no host, several, or one that is none.",
            Kind::Head(HeaderReason::BadPath) => "The path of the request is ambiguous.",
            Kind::Head(HeaderReason::UnsafeName) => "A header name has characters that are not allowed here.",
            Kind::Head(HeaderReason::TransferCoding) => "The only transfer coding that is understood here is chunked.",
            Kind::Head(HeaderReason::Misdirected) => "This connection is not for that host; open another one.",
            Kind::Head(HeaderReason::Method) => "The method is not served here.",
            Kind::Head(HeaderReason::Malformed) => "The request is malformed.",
            Kind::HeadTooLarge => "The request's head has too many fields, or is too long.",
            Kind::CookiesTooLarge { cleared: true } => {
                "Your browser had more cookies for this site than are allowed here, and was told to forget them. \
                 Please load the page again."
            }
            Kind::CookiesTooLarge { cleared: false } => {
                "Your browser has more cookies for this site than are allowed here. Please delete the cookies of this site."
            }
            Kind::NoRoute => "Nothing is served under this address.",
            Kind::RateExceeded { .. } => "Too many requests. Please slow down.",
            Kind::BodyTooLarge => "The request's body is larger than is allowed here.",
            Kind::BodyMalformed => "The request's body is malformed.",
            Kind::BodyStalled => "The request's body stopped coming.",
            Kind::ClientGone => "The request ended before its body did.",
            Kind::NoServer => "No server can take the request now. Please try again shortly.",
            Kind::ConnectFailed => "The server could not be reached.",
            Kind::ConnectTimedOut => "The server could not be reached in time.",
            Kind::Broken => "The server ended the connection without an answer.",
            Kind::FirstByteTimedOut => "The server did not answer in time.",
            Kind::BadResponse => "The server's answer could not be understood.",
            Kind::TwoSessions => "The request has two session cookies, and it cannot be told which one is meant.",
            Kind::LoginRequired => "This is for those who have logged in.",
            Kind::Csrf(CsrfReason::TokenMissing | CsrfReason::TokenWrong) => {
                "The request lacks the token that shows which site it comes from. Please load the page again."
            }
            Kind::Csrf(_) => "The request comes from another site, which is not allowed here.",
            Kind::StepUp(StepUpReason::Age) => "Please show again who you are: it was too long ago for this.",
            Kind::StepUp(_) => "This asks for a stronger proof of who you are.",
            Kind::Token(TokenReason::Expired) => "The token has expired.",
            Kind::Token(TokenReason::TwoCarriers) => {
                "The request has two tokens, and it cannot be told which one is meant."
            }
            Kind::Token(_) => "The token does not count here.",
            Kind::TokensUnchecked => "Tokens cannot be checked now. Please try again shortly.",
            Kind::SessionConflict { .. } => "The session was changed or ended while the request was on its way.",
            Kind::SessionStore { .. } => "Sessions cannot be read or written now. Please try again shortly.",
            Kind::BadDirective => "The server's answer about the session could not be followed.",
        }
    }

    /// A stable word, for the log and for `type` in the problem details.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Kind::Head(reason) => reason.as_str(),
            Kind::HeadTooLarge => "head_too_large",
            Kind::CookiesTooLarge { .. } => "cookies_too_large",
            Kind::NoRoute => "no_route",
            Kind::RateExceeded { .. } => "rate_exceeded",
            Kind::BodyTooLarge => "body_too_large",
            Kind::BodyMalformed => "body_malformed",
            Kind::BodyStalled => "body_stalled",
            Kind::ClientGone => "client_gone",
            Kind::NoServer => "no_server",
            Kind::ConnectFailed => "connect_failed",
            Kind::ConnectTimedOut => "connect_timed_out",
            Kind::Broken => "broken",
            Kind::FirstByteTimedOut => "first_byte_timed_out",
            Kind::BadResponse => "bad_response",
            Kind::TwoSessions => "two_sessions",
            Kind::LoginRequired => "login_required",
            Kind::Csrf(_) => "csrf",
            Kind::StepUp(_) => "step_up_required",
            Kind::Token(TokenReason::TwoCarriers) => "two_tokens",
            Kind::Token(TokenReason::Expired) => "token_expired",
            Kind::Token(_) => "token_invalid",
            Kind::TokensUnchecked => "tokens_unchecked",
            Kind::SessionConflict { .. } => "session_conflict",
            Kind::SessionStore { .. } => "session_store",
            Kind::BadDirective => "bad_directive",
        }
    }

    /// Which of several reasons it was, where that helps the honest and tells others nothing.
    pub(super) const fn reason(self) -> Option<&'static str> {
        match self {
            Kind::Csrf(reason) => Some(reason.as_str()),
            Kind::StepUp(reason) => Some(reason.as_str()),
            _ => None,
        }
    }

    /// In how many seconds it is worth another try, where that is known.
    pub(super) const fn retry_after(self) -> Option<u32> {
        match self {
            // Whoever sends an unsafe request again might have it done twice.
            Kind::NoServer | Kind::SessionStore { ran: false } | Kind::TokensUnchecked => Some(1),
            Kind::RateExceeded { retry_after } => Some(retry_after),
            _ => None,
        }
    }

    /// Whether a server has run an unsafe request whose outcome the client is not told.
    pub(super) const fn has_run(self) -> bool {
        matches!(self, Kind::SessionConflict { ran: true } | Kind::SessionStore { ran: true })
    }

    /// Whether what follows on the client's connection can no longer be told from the body.
    pub(super) const fn framing_is_in_doubt(self) -> bool {
        matches!(
            self,
            Kind::Head(HeaderReason::TransferCoding | HeaderReason::BadHost)
                | Kind::HeadTooLarge
                | Kind::CookiesTooLarge { .. }
                | Kind::BodyMalformed
                | Kind::BodyTooLarge
                | Kind::BodyStalled
                | Kind::ClientGone
        )
    }
}
