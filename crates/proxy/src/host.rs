use std::borrow::Cow;

use thiserror::Error;

use crate::Reason;
use crate::http1::{Method, RequestHead, Version};

/// Longest host name, in characters (RFC 1035 §2.3.4 without the root's dot).
const LONGEST: usize = 253;

/// Why the host of a request cannot be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum HostError {
    /// HTTP/1.1 asks for one `Host`.
    #[error("the request has no Host header: send one")]
    Missing,
    /// Not `host[:port]`.
    #[error("the Host header is not a host name with an optional port")]
    Invalid,
    /// An absolute target with another scheme or with user information.
    #[error("the request target is not an http:// or https:// address without user information")]
    Target,
    /// CONNECT asks for a tunnel.
    #[error("CONNECT is not offered: this is not a forward proxy")]
    Connect,
}

/// The authority that a request is for, as it was written, and its target in origin form.
///
/// RFC 9112 §3.2.2: in absolute form the target's host wins over `Host`; §3.2: `Host` must nevertheless be
/// there (from HTTP/1.1 on) and valid. An HTTP/1.0 request without one is for the empty name.
pub fn target<'a>(head: &RequestHead, bytes: &'a [u8]) -> Result<(&'a [u8], &'a [u8]), HostError> {
    if head.method == Method::Connect {
        return Err(HostError::Connect);
    }
    let host = match head.host {
        Some(host) => host.in_(bytes),
        None if head.version == Version::Http10 => b"",
        None => return Err(HostError::Missing),
    };
    let target = head.target.in_(bytes);
    if target.contains(&b'#') {
        return Err(HostError::Target);
    }
    match target.first() {
        Some(b'/') => Ok((host, target)),
        Some(b'*') if target.len() == 1 && head.method == Method::Options => Ok((host, target)),
        _ => {
            if head.host.is_some() && normalise(host).is_none() {
                return Err(HostError::Invalid);
            }
            absolute(target, head.method)
        }
    }
}

/// The authority and the rest of an absolute target.
fn absolute(target: &[u8], method: Method) -> Result<(&[u8], &[u8]), HostError> {
    let begins = |scheme: &[u8]| target.get(..scheme.len()).is_some_and(|x| x.eq_ignore_ascii_case(scheme));
    let scheme = [&b"http://"[..], b"https://"].into_iter().find(|scheme| begins(scheme));
    let rest = &target[scheme.ok_or(HostError::Target)?.len()..];
    let end = rest.iter().position(|byte| matches!(byte, b'/' | b'?')).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    if authority.is_empty() || authority.contains(&b'@') || normalise(authority).is_none() {
        return Err(HostError::Target);
    }
    match path.first() {
        Some(b'/') => Ok((authority, path)),
        // RFC 9112 §3.2.4: an absolute target without path asks about the server as a whole.
        None if method == Method::Options => Ok((authority, b"*")),
        None => Ok((authority, b"/")),
        // A path would have to be put before the query; nobody sends this.
        Some(_) => Err(HostError::Target),
    }
}

/// The host name of `host[:port]`: lower case, without the port and one trailing dot. `None` when it holds
/// anything that a name or an address literal cannot.
pub fn normalise(authority: &[u8]) -> Option<Cow<'_, str>> {
    let text = std::str::from_utf8(authority).ok()?;
    let end = if text.starts_with('[') { text.find(']')? + 1 } else { text.find(':').unwrap_or(text.len()) };
    let (host, port) = text.split_at(end);
    if !port.is_empty() {
        let digits = port.strip_prefix(':')?;
        // RFC 3986 §3.2.3: the port may be empty.
        if !digits.bytes().all(|b| b.is_ascii_digit())
            || (!digits.is_empty() && digits.parse::<u16>().is_err())
        {
            return None;
        }
    }
    let host = match host.strip_prefix('[') {
        Some(literal) => {
            let literal = literal.strip_suffix(']')?;
            literal.parse::<std::net::Ipv6Addr>().ok()?;
            host
        }
        None => {
            let host = host.strip_suffix('.').unwrap_or(host);
            is_name(host).then_some(host)?
        }
    };
    Some(if host.bytes().any(|b| b.is_ascii_uppercase()) {
        Cow::Owned(host.to_ascii_lowercase())
    } else {
        Cow::Borrowed(host)
    })
}

fn is_name(host: &str) -> bool {
    let mut before = b'.';
    for byte in host.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => {}
            b'.' if before != b'.' => {}
            _ => return false,
        }
        before = byte;
    }
    before != b'.' && host.len() <= LONGEST
}

impl From<HostError> for Reason {
    fn from(error: HostError) -> Reason {
        match error {
            HostError::Missing => Reason::MissingHost,
            HostError::Invalid => Reason::InvalidHost,
            HostError::Target => Reason::InvalidTarget,
            HostError::Connect => Reason::ConnectMethod,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(method: &str, target: &str, version: &str, hosts: &[&str]) -> Result<(String, String), Reason> {
        let mut text = format!("{method} {target} HTTP/{version}\r\n");
        hosts.iter().for_each(|host| text += &format!("Host: {host}\r\n"));
        text += "\r\n";
        let mut head = RequestHead::default();
        head.parse(text.as_bytes())?.expect("it is whole");
        let (host, target) = super::target(&head, text.as_bytes())?;
        let name = if host.is_empty() { "".into() } else { normalise(host).ok_or(Reason::InvalidHost)? };
        Ok((name.into_owned(), String::from_utf8(target.to_vec()).unwrap()))
    }

    fn host(target: &str, version: &str, hosts: &[&str]) -> Result<String, Reason> {
        ask("GET", target, version, hosts).map(|(host, _)| host)
    }

    #[test]
    fn case_port_and_trailing_dot_do_not_matter() {
        for text in ["nginx.prox.local", "NGINX.Prox.Local", "nginx.prox.local.", "nginx.prox.local.:80"] {
            assert_eq!(host("/", "1.1", &[text]).as_deref(), Ok("nginx.prox.local"), "{text}");
        }
        assert_eq!(host("/", "1.1", &["nginx:"]).as_deref(), Ok("nginx"));
        assert_eq!(host("/", "1.1", &["[FD00::1]:8080"]).as_deref(), Ok("[fd00::1]"));
        assert_eq!(host("/", "1.1", &["10.20.0.1:80"]).as_deref(), Ok("10.20.0.1"));
    }

    // RFC 9112 §3.2: "A server MUST respond with a 400 (Bad Request) status code to any HTTP/1.1 request
    // message that lacks a Host header field and to any request message that contains more than one Host
    // header field line or a Host header field with an invalid field value."
    #[test]
    fn missing_duplicate_and_invalid_hosts_are_refused_by_name() {
        assert_eq!(host("/", "1.1", &[]), Err(Reason::MissingHost));
        assert_eq!(host("/", "1.0", &[]).as_deref(), Ok(""));
        assert_eq!(host("/", "1.1", &["a", "a"]), Err(Reason::DuplicateHost));
        assert_eq!(host("/", "1.0", &["a", "b"]), Err(Reason::DuplicateHost));
        let long = "x".repeat(254);
        for text in [
            ".", "a..b", ".a", "a b", "a,b", "a/b", "user@a", "a:b", "a:99999", "a:80:80", "[::1", "[x]",
            "%41", "../etc", &long,
        ] {
            assert_eq!(host("/", "1.1", &[text]), Err(Reason::InvalidHost), "{text:?}");
        }
        assert_eq!(normalise(b"caf\xc3\xa9"), None);
        assert_eq!(normalise(b"\xff"), None);
        assert_eq!(normalise(b""), None);
    }

    // RFC 9112 §3.2.2: "When an origin server receives a request with an absolute-form of request-target,
    // the origin server MUST ignore the received Host header field (if any) and instead use the host
    // information of the request-target."
    #[test]
    fn an_absolute_target_wins_over_host() {
        let asked = ask("GET", "http://B.local:81/x?y", "1.1", &["a"]);
        assert_eq!(asked, Ok(("b.local".to_owned(), "/x?y".to_owned())));
        assert_eq!(ask("GET", "http://b", "1.1", &["a"]).unwrap().1, "/");
        assert_eq!(ask("OPTIONS", "http://b", "1.1", &["a"]).unwrap().1, "*");
        assert_eq!(host("http://b/x", "1.1", &[]), Err(Reason::MissingHost));
        assert_eq!(host("http://b/x", "1.1", &["a b"]), Err(Reason::InvalidHost));
        for target in ["http://user@b/x", "ftp://b/x", "http:///x", "b:80", "x", "/x#y", "*"] {
            assert_eq!(host(target, "1.1", &["b"]), Err(Reason::InvalidTarget), "{target}");
        }
        assert_eq!(ask("OPTIONS", "*", "1.1", &["a"]).unwrap().1, "*");
    }

    #[test]
    fn connect_is_refused() {
        assert_eq!(ask("CONNECT", "b:443", "1.1", &["b:443"]).unwrap_err(), Reason::ConnectMethod);
    }
}
