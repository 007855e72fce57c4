use std::net::IpAddr;
use std::sync::Arc;

use axum::http::{HeaderMap, StatusCode, header};
use proximity_table::World;

use crate::Problem;

/// The secret that opens the API over TCP.
#[derive(Clone)]
pub struct Token(Arc<str>);

impl Token {
    /// A token of this text.
    pub fn new(text: &str) -> Token {
        Token(text.into())
    }

    /// Whether a request carries it.
    pub fn check(&self, headers: &HeaderMap) -> Result<(), Problem> {
        let sent = headers.get(header::AUTHORIZATION).map(|value| value.as_bytes());
        let bearer = sent.and_then(|value| {
            let (scheme, secret) = value.split_at_checked(7)?;
            scheme.eq_ignore_ascii_case(b"bearer ").then_some(secret)
        });
        match bearer {
            Some(secret) if equal(secret, self.0.as_bytes()) => Ok(()),
            Some(_) => Err(Problem::new(StatusCode::UNAUTHORIZED, "the token is wrong", HINT)),
            None => Err(Problem::new(StatusCode::UNAUTHORIZED, "the request carries no token", HINT)),
        }
    }
}

const HINT: &str = "send `Authorization: Bearer <token>`; the token is in state_dir/admin.token";

/// The API is for the management side: whoever comes from an app network is turned away, whatever token it
/// carries. The firewall does the same; this holds when the firewall does not.
pub fn admit(world: &World, peer: IpAddr) -> Result<(), Problem> {
    // A listener on [::] sees IPv4 peers as mapped addresses.
    let from_app = match peer.to_canonical() {
        IpAddr::V4(ip) => {
            world.facts.intent().isolate_management && world.facts.intent().network_of(ip).is_some()
        }
        IpAddr::V6(_) => false,
    };
    if from_app {
        let hint = "use the management network, or set firewall.isolate_management = false";
        return Err(Problem::new(StatusCode::FORBIDDEN, "the admin API is not for app networks", hint));
    }
    Ok(())
}

/// Compares without telling by its time how much was right.
fn equal(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_token_opens() {
        let token = Token::new("s3cret");
        let with = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, value.parse().unwrap());
            token.check(&headers).is_ok()
        };
        assert!(with("Bearer s3cret") && with("bearer s3cret"));
        for wrong in ["Bearer s3cre", "Bearer s3crets", "Bearer ", "s3cret", "Basic s3cret", "B"] {
            assert!(!with(wrong), "{wrong}");
        }
        assert!(token.check(&HeaderMap::new()).is_err());
    }
}
