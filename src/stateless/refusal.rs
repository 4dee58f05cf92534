//! Why a token does not count, and what its sender is told (RFC 6750, section 3).

pub use crate::names::TokenReason;

/// A token that does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the token is refused: {reason}")]
pub struct Refused {
    pub reason: TokenReason,
    /// The issuer whose keys may have changed since they were fetched: a key that is not known is no proof of a bad
    /// token.
    pub refetch: Option<usize>,
}

impl From<TokenReason> for Refused {
    fn from(reason: TokenReason) -> Self {
        Refused { reason, refetch: None }
    }
}

/// A request that carries more than one token: another reader could take the other one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the request carries more than one token")]
pub struct TwoCarriers;

impl From<TwoCarriers> for Refused {
    fn from(_: TwoCarriers) -> Self {
        TokenReason::TwoCarriers.into()
    }
}

/// The WWW-Authenticate that goes with a refusal; with no reason, there was no token. An honest client learns that its
/// token has expired, which is said only of one that was signed; whoever is trying learns nothing.
pub const fn challenge(reason: Option<TokenReason>) -> &'static str {
    match reason {
        None => r#"Bearer realm="session""#,
        Some(TokenReason::Expired) => {
            r#"Bearer realm="session", error="invalid_token", error_description="The token has expired""#
        }
        Some(TokenReason::TwoCarriers) => {
            r#"Bearer realm="session", error="invalid_request", error_description="Send one token, in one way""#
        }
        Some(_) => r#"Bearer realm="session", error="invalid_token", error_description="The token is not valid""#,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_challenge_tells_expired_tokens_from_others_and_nothing_more() {
        let invalid = challenge(Some(TokenReason::Signature));
        for reason in TokenReason::ALL {
            let said = challenge(Some(*reason));
            match reason {
                TokenReason::Expired => assert!(said.contains("invalid_token") && said.contains("expired")),
                TokenReason::TwoCarriers => assert!(said.contains("invalid_request")),
                _ => assert_eq!(said, invalid, "{reason}"),
            }
            assert!(http::HeaderValue::from_static(said).to_str().is_ok());
        }
        assert_eq!(challenge(None), "Bearer realm=\"session\"", "no error where there was no token");
    }
}
