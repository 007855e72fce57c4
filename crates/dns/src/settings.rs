use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use thiserror::Error;

/// What the administrator decides about DNS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsSettings {
    /// Who is asked about names of others. Empty: such names are refused.
    pub upstream: Vec<Upstream>,
    /// How many answers of upstreams are kept.
    pub cache_size: u64,
}

/// A server that is asked about names of others.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
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
    /// DNS over HTTPS (RFC 8484): `https://1.1.1.1/dns-query`.
    Https {
        /// The URL as written.
        url: String,
    },
}

/// Why a text names no upstream.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "`{0}` is not an upstream: write an address such as 8.8.8.8 or 8.8.8.8:53, tls://1.1.1.1#name or https://1.1.1.1/dns-query"
)]
pub struct UpstreamError(pub String);

impl Default for DnsSettings {
    fn default() -> DnsSettings {
        let plain = |ip: [u8; 4]| Upstream::Plain(SocketAddr::from((ip, 53)));
        DnsSettings { upstream: vec![plain([8, 8, 8, 8]), plain([1, 1, 1, 1])], cache_size: 8192 }
    }
}

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
            let (host, path) = rest.split_once('/').ok_or_else(wrong)?;
            return if host.is_empty() || path.is_empty() {
                Err(wrong())
            } else {
                Ok(Upstream::Https { url: text.to_owned() })
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
            Upstream::Https { url } => f.write_str(url),
        }
    }
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
        ];
        for (text, printed) in cases {
            let upstream: Upstream = text.parse().unwrap();
            assert_eq!(upstream.to_string(), printed);
            assert_eq!(printed.parse(), Ok(upstream));
        }
    }

    #[test]
    fn what_is_no_upstream_says_what_would_be() {
        for text in ["dns.google", "8.8.8.8:0", "0.0.0.0", "tls://1.1.1.1#", "https://x", "", "udp://1.1.1.1"]
        {
            let error = text.parse::<Upstream>().unwrap_err();
            assert!(error.to_string().contains("8.8.8.8:53"), "{error}");
        }
    }
}
