use std::borrow::Cow;

use http::{HeaderMap, HeaderValue, Method, Uri, Version, header};
use thiserror::Error;

use crate::Reason;

/// Longest host name, in characters (RFC 1035 §2.3.4 without the root's dot).
const LONGEST: usize = 253;

/// Which host a request is for.
#[derive(Debug, PartialEq, Eq)]
pub struct Target<'a> {
    /// Lower case, without port and trailing dot; empty for an HTTP/1.0 request without `Host`.
    pub host: Cow<'a, str>,
    /// The authority as the client wrote it, for `X-Forwarded-Host` and the log.
    pub written: HeaderValue,
}

/// Why the host of a request cannot be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum HostError {
    /// HTTP/1.1 asks for one `Host`.
    #[error("the request has no Host header: send one")]
    Missing,
    /// Two hosts may be understood differently along the way.
    #[error("the request has more than one Host header: send exactly one")]
    Duplicate,
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

/// Tells the host of a request by its target and its `Host`.
///
/// RFC 9112 §3.2.2: in absolute form the target's host wins over `Host`; §3.2: `Host` must nevertheless be
/// there (from HTTP/1.1 on), only once, and valid.
pub fn target<'a>(
    method: &Method,
    uri: &'a Uri,
    version: Version,
    headers: &'a HeaderMap,
) -> Result<Target<'a>, HostError> {
    if *method == Method::CONNECT {
        return Err(HostError::Connect);
    }
    let mut hosts = headers.get_all(header::HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(HostError::Duplicate);
    }
    let from_header = match host {
        Some(value) => Some(Target {
            host: normalise(value.as_bytes()).ok_or(HostError::Invalid)?,
            written: value.clone(),
        }),
        None if version < Version::HTTP_11 => None,
        None => return Err(HostError::Missing),
    };
    let Some(authority) = uri.authority() else {
        let empty = || Target { host: Cow::Borrowed(""), written: HeaderValue::from_static("") };
        return Ok(from_header.unwrap_or_else(empty));
    };
    if !matches!(uri.scheme_str(), Some("http" | "https")) {
        return Err(HostError::Target);
    }
    let written = HeaderValue::from_str(authority.as_str()).map_err(|_| HostError::Target)?;
    let host = normalise(authority.as_str().as_bytes()).ok_or(HostError::Target)?;
    Ok(Target { host, written })
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
            HostError::Duplicate => Reason::DuplicateHost,
            HostError::Invalid => Reason::InvalidHost,
            HostError::Target => Reason::InvalidTarget,
            HostError::Connect => Reason::ConnectMethod,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(uri: &str, version: Version, hosts: &[&str]) -> Result<String, HostError> {
        let mut headers = HeaderMap::new();
        for host in hosts {
            headers.append(header::HOST, HeaderValue::from_str(host).unwrap());
        }
        let uri: Uri = uri.parse().unwrap();
        target(&Method::GET, &uri, version, &headers).map(|target| target.host.into_owned())
    }

    #[test]
    fn case_port_and_trailing_dot_do_not_matter() {
        for host in ["nginx.prox.local", "NGINX.Prox.Local", "nginx.prox.local.", "nginx.prox.local.:80"] {
            assert_eq!(ask("/", Version::HTTP_11, &[host]).as_deref(), Ok("nginx.prox.local"), "{host}");
        }
        assert_eq!(ask("/", Version::HTTP_11, &["nginx:"]).as_deref(), Ok("nginx"));
        assert_eq!(ask("/", Version::HTTP_11, &["[FD00::1]:8080"]).as_deref(), Ok("[fd00::1]"));
        assert_eq!(ask("/", Version::HTTP_11, &["10.20.0.1:80"]).as_deref(), Ok("10.20.0.1"));
    }

    // RFC 9112 §3.2: "A server MUST respond with a 400 (Bad Request) status code to any HTTP/1.1 request
    // message that lacks a Host header field and to any request message that contains more than one Host
    // header field line or a Host header field with an invalid field value."
    #[test]
    fn missing_duplicate_and_invalid_hosts_are_refused_by_name() {
        assert_eq!(ask("/", Version::HTTP_11, &[]), Err(HostError::Missing));
        assert_eq!(ask("/", Version::HTTP_10, &[]).as_deref(), Ok(""));
        assert_eq!(ask("/", Version::HTTP_11, &["a", "a"]), Err(HostError::Duplicate));
        assert_eq!(ask("/", Version::HTTP_10, &["a", "b"]), Err(HostError::Duplicate));
        let long = "x".repeat(254);
        for host in [
            "", ".", "a..b", ".a", "a b", "a,b", "a/b", "user@a", "a:b", "a:99999", "a:80:80", "[::1", "[x]",
            "%41", "../etc", &long,
        ] {
            assert_eq!(ask("/", Version::HTTP_11, &[host]), Err(HostError::Invalid), "{host:?}");
        }
        assert_eq!(normalise(b"caf\xc3\xa9"), None);
        assert_eq!(normalise(b"\xff"), None);
    }

    // RFC 9112 §3.2.2: "When an origin server receives a request with an absolute-form of request-target,
    // the origin server MUST ignore the received Host header field (if any) and instead use the host
    // information of the request-target."
    #[test]
    fn an_absolute_target_wins_over_host() {
        assert_eq!(ask("http://B.local:81/x", Version::HTTP_11, &["a"]).as_deref(), Ok("b.local"));
        assert_eq!(ask("http://b/x", Version::HTTP_11, &[]), Err(HostError::Missing));
        assert_eq!(ask("http://b/x", Version::HTTP_11, &["a b"]), Err(HostError::Invalid));
        assert_eq!(ask("http://user@b/x", Version::HTTP_11, &["b"]), Err(HostError::Target));
        assert_eq!(ask("ftp://b/x", Version::HTTP_11, &["b"]), Err(HostError::Target));
    }

    #[test]
    fn connect_is_refused() {
        let uri: Uri = "b:443".parse().unwrap();
        let headers = HeaderMap::new();
        assert_eq!(target(&Method::CONNECT, &uri, Version::HTTP_11, &headers), Err(HostError::Connect));
    }
}
