//! Servers that are asked about names of others, as a configuration writes them.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use thiserror::Error;

use crate::Name;

/// A server that is asked about names of others.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Upstream {
    /// DNS over UDP, and over TCP when an answer is too long: `8.8.8.8`, `8.8.8.8:53`, `[2001:db8::1]:53`.
    Plain(SocketAddr),
    /// DNS over TLS (RFC 7858): `tls://1.1.1.1#cloudflare-dns.com`.
    Tls {
        /// Address and port.
        addr: SocketAddr,
        /// Name that the certificate must carry; the address when none is written.
        server_name: String,
    },
    /// DNS over HTTPS (RFC 8484): `https://1.1.1.1/dns-query`, `https://dns.example/dns-query`.
    Https {
        /// An address or a name.
        host: String,
        /// 443 unless written.
        port: u16,
        /// Path of the URL, with its slash.
        path: String,
    },
}

/// Why a text names no upstream.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "`{0}` is not an upstream: write an address such as 8.8.8.8 or 8.8.8.8:53, tls://1.1.1.1#name or https://1.1.1.1/dns-query"
)]
pub struct UpstreamError(pub String);

impl FromStr for Upstream {
    type Err = UpstreamError;

    fn from_str(text: &str) -> Result<Upstream, UpstreamError> {
        let wrong = || UpstreamError(text.to_owned());
        if let Some(rest) = text.strip_prefix("tls://") {
            let (host, name) = rest.split_once('#').map_or((rest, None), |(host, name)| (host, Some(name)));
            let addr = address(host, 853).ok_or_else(wrong)?;
            let server_name = name.map_or_else(|| addr.ip().to_string(), str::to_owned);
            return if server_name.is_empty() {
                Err(wrong())
            } else {
                Ok(Upstream::Tls { addr, server_name })
            };
        }
        if let Some(rest) = text.strip_prefix("https://") {
            let (authority, path) = rest.split_once('/').ok_or_else(wrong)?;
            let (host, port) = host_and_port(authority).ok_or_else(wrong)?;
            let good =
                !path.is_empty() && path.bytes().all(|octet| octet.is_ascii_graphic() && octet != b'#');
            return match good {
                true => Ok(Upstream::Https { host, port, path: format!("/{path}") }),
                false => Err(wrong()),
            };
        }
        address(text, 53).map(Upstream::Plain).ok_or_else(wrong)
    }
}

impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Upstream::Plain(addr) if addr.port() == 53 => write!(f, "{}", addr.ip()),
            Upstream::Plain(addr) => write!(f, "{addr}"),
            Upstream::Tls { addr, server_name } => write!(f, "tls://{addr}#{server_name}"),
            Upstream::Https { host, port, path } => {
                let port = if *port == 443 { String::new() } else { format!(":{port}") };
                match host.contains(':') {
                    true => write!(f, "https://[{host}]{port}{path}"),
                    false => write!(f, "https://{host}{port}{path}"),
                }
            }
        }
    }
}

impl Upstream {
    /// Its address, unless that has to be looked up first.
    pub fn ip(&self) -> Option<IpAddr> {
        match self {
            Upstream::Plain(addr) | Upstream::Tls { addr, .. } => Some(addr.ip()),
            Upstream::Https { host, .. } => host.parse().ok(),
        }
    }

    /// Address and port of one that is spoken to in the clear.
    pub fn plain(&self) -> Option<SocketAddr> {
        match self {
            Upstream::Plain(addr) => Some(*addr),
            _ => None,
        }
    }
}

/// Host and port of a URL. A host is an address or a name.
fn host_and_port(authority: &str) -> Option<(String, u16)> {
    if let Some(addr) = address(authority, 443) {
        return Some((addr.ip().to_string(), addr.port()));
    }
    let (host, port) = match authority.split_once(':') {
        Some((host, port)) => (host, port.parse().ok().filter(|port| *port != 0)?),
        None => (authority, 443),
    };
    let is_name = host.parse::<Name>().is_ok() && host.parse::<IpAddr>().is_err();
    is_name.then(|| (host.to_ascii_lowercase(), port))
}

/// An address with or without a port that one can send to.
fn address(text: &str, default_port: u16) -> Option<SocketAddr> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let addr = match bare.parse::<IpAddr>() {
        Ok(ip) => SocketAddr::new(ip, default_port),
        Err(_) => text.parse().ok()?,
    };
    (addr.port() != 0 && !addr.ip().is_unspecified() && !addr.ip().is_multicast()).then_some(addr)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_to_write_an_upstream_is_understood() {
        let cases = [
            ("8.8.8.8", "8.8.8.8"),
            ("8.8.8.8:53", "8.8.8.8"),
            ("127.0.0.1:5353", "127.0.0.1:5353"),
            ("2001:db8::1", "2001:db8::1"),
            ("[2001:db8::1]:5300", "[2001:db8::1]:5300"),
            ("tls://1.1.1.1#cloudflare-dns.com", "tls://1.1.1.1:853#cloudflare-dns.com"),
            ("tls://1.1.1.1", "tls://1.1.1.1:853#1.1.1.1"),
            ("https://1.1.1.1/dns-query", "https://1.1.1.1/dns-query"),
            ("https://Dns.Example:8443/q?x=1", "https://dns.example:8443/q?x=1"),
            ("https://[2001:db8::1]:444/q", "https://[2001:db8::1]:444/q"),
        ];
        for (text, printed) in cases {
            let upstream: Upstream = text.parse().unwrap();
            assert_eq!(upstream.to_string(), printed);
            assert_eq!(printed.parse(), Ok(upstream));
        }
    }

    #[test]
    fn what_is_no_upstream_says_what_would_be() {
        for text in [
            "dns.google",
            "8.8.8.8:0",
            "0.0.0.0",
            "tls://1.1.1.1#",
            "https://x",
            "https:///q",
            "https://x:0/q",
            "https://a b/q",
            "",
            "udp://1.1.1.1",
        ] {
            let error = text.parse::<Upstream>().unwrap_err();
            assert!(error.to_string().contains("8.8.8.8:53"), "{error}");
        }
    }
}
