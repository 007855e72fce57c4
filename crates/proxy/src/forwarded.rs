use std::fmt;
use std::io::Write;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use proximity_table::is_token_octet;
use thiserror::Error;

use crate::Reason;

/// Proxies that are believed one behind the other; a longer chain is refused.
const MOST_HOPS: usize = 16;
/// Longest host that is taken over.
const LONGEST_HOST: usize = 255 + 6;

/// The scheme a client used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// In clear.
    #[default]
    Http,
    /// Over TLS.
    Https,
}

/// Who sent a request, as far as it can be believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The client: the rightmost address in the chain that is not a trusted proxy's.
    pub client: IpAddr,
    /// The way of the request up to the peer that handed it to us, the client first and without the peer;
    /// empty when the peer is the client. It goes in front of the peer in the fields for the backend.
    pub before: Vec<IpAddr>,
    /// What the client used, if the proxies said so.
    pub scheme: Option<Scheme>,
    /// The host the client asked for, if the proxies said so; not yet checked to be a name.
    pub host: Option<String>,
}

/// The fields in which proxies tell of the client, each with its values in the order of the message.
#[derive(Clone, Copy, Debug, Default)]
pub struct Told<'a> {
    /// `X-Forwarded-For`.
    pub x_for: &'a [&'a [u8]],
    /// `X-Forwarded-Proto`.
    pub x_proto: &'a [&'a [u8]],
    /// `X-Forwarded-Host`.
    pub x_host: &'a [&'a [u8]],
    /// `Forwarded` (RFC 7239).
    pub forwarded: &'a [&'a [u8]],
}

/// What a trusted proxy said cannot be read. To go on would take the proxy for the client, with all that the
/// proxy may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ForwardedError {
    /// An address is none.
    #[error("a trusted proxy sent an X-Forwarded-For that is not a list of addresses")]
    BadAddress,
    /// Not RFC 7239 §4.
    #[error("a trusted proxy sent a Forwarded field that is not as RFC 7239 has it")]
    BadForwarded,
    /// More trusted proxies than are followed.
    #[error("more than {MOST_HOPS} trusted proxies one behind the other: is there a loop?")]
    TooManyHops,
}

/// One element of `Forwarded` (RFC 7239 §4).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Element {
    /// Who made the request to the proxy.
    pub node: Option<Node>,
    /// What it used.
    pub scheme: Option<Scheme>,
    /// The host it asked for.
    pub host: Option<String>,
}

/// A node of RFC 7239 §6, without its port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Node {
    /// An address.
    Ip(IpAddr),
    /// `unknown`, or an identifier that only its proxy understands.
    Hidden,
}

/// One element of a `Forwarded` field that we write.
#[derive(Clone, Copy, Debug)]
pub struct Hop<'a> {
    /// Who made the request to us.
    pub client: SocketAddr,
    /// Whether to tell the port.
    pub with_port: bool,
    /// The host it asked for.
    pub host: &'a str,
    /// What it used.
    pub scheme: Scheme,
}

/// Tells who sent a request that came from `peer`.
///
/// What the fields say is believed only as far as trusted proxies wrote it: from the right, each address was
/// noted by the proxy that the address to its right belongs to. `X-Forwarded-For` wins over `Forwarded`,
/// which proxies that do not know it pass on as the client sent it.
pub fn origin(
    peer: IpAddr,
    told: &Told<'_>,
    is_trusted: impl Fn(IpAddr) -> bool,
) -> Result<Origin, ForwardedError> {
    let peer = peer.to_canonical();
    let direct = Origin { client: peer, before: Vec::new(), scheme: None, host: None };
    if !is_trusted(peer) {
        return Ok(direct);
    }
    if !told.x_for.is_empty() {
        from_x_forwarded(peer, told, is_trusted)
    } else if !told.forwarded.is_empty() {
        from_forwarded(peer, told.forwarded, is_trusted)
    } else {
        let (scheme, host) = (from_the_right(told.x_proto).next(), from_the_right(told.x_host).next());
        Ok(Origin { scheme: scheme.and_then(self::scheme), host: host.and_then(self::host), ..direct })
    }
}

/// Reads a `Forwarded` field. Unknown parameters are passed over.
pub fn parse_forwarded(value: &[u8]) -> Result<Vec<Element>, ForwardedError> {
    let mut elements = Vec::new();
    let mut rest = value.trim_ascii();
    let mut element = Element::default();
    let mut seen = Seen::default();
    while !rest.is_empty() {
        // RFC 9110 §5.6.1: empty elements of a list are ignored.
        if rest[0] != b',' && rest[0] != b';' {
            rest = element.take_pair(rest, &mut seen)?;
        }
        let after = rest.trim_ascii_start();
        match after.first() {
            None => rest = after,
            Some(b';') => rest = after[1..].trim_ascii_start(),
            Some(b',') => {
                rest = after[1..].trim_ascii_start();
                if std::mem::take(&mut seen) != Seen::default() {
                    elements.push(std::mem::take(&mut element));
                }
            }
            Some(_) => return Err(ForwardedError::BadForwarded),
        }
    }
    if seen != Seen::default() {
        elements.push(element);
    }
    Ok(elements)
}

/// Appends `Forwarded` elements for the way of a request up to us: the proxies it came through (the client
/// first) and the hop to us.
pub fn write_forwarded(to: &mut Vec<u8>, before: &[IpAddr], hop: &Hop<'_>) {
    write_forwarded_for(to, before, hop.client, hop.with_port);
    write_forwarded_rest(to, hop.host, hop.scheme);
}

/// The beginning of [`write_forwarded`], up to what is asked for.
pub fn write_forwarded_for(to: &mut Vec<u8>, before: &[IpAddr], client: SocketAddr, with_port: bool) {
    for ip in before {
        to.extend_from_slice(b"for=");
        write_node(to, *ip, None);
        to.extend_from_slice(b", ");
    }
    to.extend_from_slice(b"for=");
    write_node(to, client.ip(), with_port.then(|| client.port()));
}

/// The rest of [`write_forwarded`].
pub fn write_forwarded_rest(to: &mut Vec<u8>, host: &str, scheme: Scheme) {
    if !host.is_empty() {
        to.extend_from_slice(b";host=");
        write_value(to, host);
    }
    to.extend_from_slice(b";proto=");
    to.extend_from_slice(scheme.as_str().as_bytes());
}

/// Appends the value of `X-Forwarded-For` for the way of a request up to us.
pub fn write_x_forwarded_for(to: &mut Vec<u8>, before: &[IpAddr], peer: IpAddr) {
    for ip in before {
        write_ip(to, *ip);
        to.extend_from_slice(b", ");
    }
    write_ip(to, peer);
}

impl Scheme {
    /// The scheme's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Scheme::Http => "http",
            Scheme::Https => "https",
        }
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl From<ForwardedError> for Reason {
    fn from(_: ForwardedError) -> Reason {
        Reason::ForwardedHeader
    }
}

/// The way back from the peer, as far as trusted proxies tell it.
struct WayBack {
    /// The peer's client first.
    hops: Vec<IpAddr>,
}

impl WayBack {
    fn add(&mut self, ip: IpAddr) -> Result<(), ForwardedError> {
        if self.hops.len() >= MOST_HOPS {
            return Err(ForwardedError::TooManyHops);
        }
        self.hops.push(ip);
        Ok(())
    }

    fn origin(mut self, peer: IpAddr, scheme: Option<Scheme>, host: Option<String>) -> Origin {
        let client = self.hops.last().copied().unwrap_or(peer);
        self.hops.reverse();
        Origin { client, before: self.hops, scheme, host }
    }
}

fn from_x_forwarded(
    peer: IpAddr,
    told: &Told<'_>,
    is_trusted: impl Fn(IpAddr) -> bool,
) -> Result<Origin, ForwardedError> {
    let mut way = WayBack { hops: Vec::new() };
    for entry in from_the_right(told.x_for) {
        match address(entry) {
            Some(ip) => way.add(ip)?,
            // The proxy keeps its client to itself, and stands for it.
            None if entry.eq_ignore_ascii_case(b"unknown") => break,
            None => return Err(ForwardedError::BadAddress),
        }
        if !way.hops.last().is_some_and(|&ip| is_trusted(ip)) {
            break;
        }
    }
    // Most proxies replace the other lists, some append to them all: then the same place is the same hop.
    let count = from_the_right(told.x_for).count();
    let at_hop = |list| {
        let is_parallel = from_the_right(list).count() == count;
        from_the_right(list).nth(if is_parallel { way.hops.len().saturating_sub(1) } else { 0 })
    };
    let (scheme, host) = (at_hop(told.x_proto).and_then(scheme), at_hop(told.x_host).and_then(host));
    Ok(way.origin(peer, scheme, host))
}

fn from_forwarded(
    peer: IpAddr,
    fields: &[&[u8]],
    is_trusted: impl Fn(IpAddr) -> bool,
) -> Result<Origin, ForwardedError> {
    let mut way = WayBack { hops: Vec::new() };
    let (mut scheme, mut host) = (None, None);
    // Field by field, so that what a client sent in one of its own cannot spoil those of the proxies.
    'fields: for field in fields.iter().rev() {
        for element in parse_forwarded(field)?.into_iter().rev() {
            (scheme, host) = (element.scheme, element.host);
            match element.node {
                Some(Node::Ip(ip)) => way.add(ip)?,
                Some(Node::Hidden) | None => break 'fields,
            }
            if !way.hops.last().is_some_and(|&ip| is_trusted(ip)) {
                break 'fields;
            }
        }
    }
    Ok(way.origin(peer, scheme, host))
}

/// The items of a list that may be split over fields (RFC 9110 §5.2), the last first.
fn from_the_right<'a>(fields: &'a [&'a [u8]]) -> impl Iterator<Item = &'a [u8]> {
    let items = fields.iter().rev().flat_map(|field| field.rsplit(|&byte| byte == b','));
    items.map(<[u8]>::trim_ascii).filter(|item| !item.is_empty())
}

/// Which parameters an element has had.
#[derive(Debug, Default, PartialEq, Eq)]
struct Seen {
    node: bool,
    by: bool,
    scheme: bool,
    host: bool,
    other: bool,
}

impl Element {
    /// Takes `name=value` from the beginning of `text` and returns what follows.
    fn take_pair<'a>(&mut self, text: &'a [u8], seen: &mut Seen) -> Result<&'a [u8], ForwardedError> {
        let bad = ForwardedError::BadForwarded;
        let end = text.iter().position(|&byte| !is_token_octet(byte)).ok_or(bad)?;
        let (name, rest) = text.split_at(end);
        let rest = rest.strip_prefix(b"=").filter(|_| end > 0).ok_or(bad)?;
        let (value, rest) = take_value(rest).ok_or(bad)?;
        // RFC 7239 §4: a parameter must not be there more than once.
        let first = |seen: &mut bool| if std::mem::replace(seen, true) { Err(bad) } else { Ok(()) };
        match name.to_ascii_lowercase().as_slice() {
            b"for" => {
                first(&mut seen.node)?;
                self.node = Some(node(&value).ok_or(bad)?);
            }
            b"by" => first(&mut seen.by)?,
            b"proto" => {
                first(&mut seen.scheme)?;
                self.scheme = scheme(&value);
            }
            b"host" => {
                first(&mut seen.host)?;
                self.host = host(&value);
            }
            _ => seen.other = true,
        }
        Ok(rest)
    }
}

/// Takes a token or a quoted string (RFC 9110 §5.6.4).
fn take_value(text: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let Some(quoted) = text.strip_prefix(b"\"") else {
        let end = text.iter().position(|&byte| !is_token_octet(byte)).unwrap_or(text.len());
        return (end > 0).then(|| (text[..end].to_vec(), &text[end..]));
    };
    let mut value = Vec::new();
    let mut octets = quoted.iter().enumerate();
    while let Some((at, &byte)) = octets.next() {
        match byte {
            b'"' => return Some((value, &quoted[at + 1..])),
            b'\\' => value.push(*octets.next()?.1),
            _ => value.push(byte),
        }
    }
    None
}

/// RFC 7239 §6.
fn node(text: &[u8]) -> Option<Node> {
    let is_hidden =
        text.eq_ignore_ascii_case(b"unknown") || text.to_ascii_lowercase().starts_with(b"unknown:");
    if is_hidden || text.starts_with(b"_") {
        return Some(Node::Hidden);
    }
    // A port may be hidden as well.
    if let Some(at) = text.windows(2).position(|pair| pair == b":_") {
        return address(&text[..at]).map(Node::Ip);
    }
    address(text).map(Node::Ip)
}

/// An address with or without port, IPv6 with or without brackets.
fn address(text: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(text).ok()?;
    let bracketed = || text.strip_prefix('[')?.strip_suffix(']')?.parse::<Ipv6Addr>().ok().map(IpAddr::V6);
    let with_port = || text.parse::<SocketAddr>().ok().map(|addr| addr.ip());
    let ip = text.parse::<IpAddr>().ok().or_else(bracketed).or_else(with_port)?;
    Some(ip.to_canonical())
}

fn scheme(name: &[u8]) -> Option<Scheme> {
    match name {
        _ if name.eq_ignore_ascii_case(b"http") || name.eq_ignore_ascii_case(b"ws") => Some(Scheme::Http),
        _ if name.eq_ignore_ascii_case(b"https") || name.eq_ignore_ascii_case(b"wss") => Some(Scheme::Https),
        _ => None,
    }
}

fn host(name: &[u8]) -> Option<String> {
    let is_fine = !name.is_empty() && name.len() <= LONGEST_HOST && name.iter().all(u8::is_ascii_graphic);
    is_fine.then(|| String::from_utf8_lossy(name).into_owned())
}

/// RFC 7239 §6: IPv6 in brackets, and whatever holds a colon in quotes.
fn write_node(to: &mut Vec<u8>, ip: IpAddr, port: Option<u16>) {
    // Writing to memory does not fail.
    let _ = match (ip.to_canonical(), port) {
        (IpAddr::V4(ip), None) => write!(to, "{ip}"),
        (IpAddr::V4(ip), Some(port)) => write!(to, "\"{ip}:{port}\""),
        (IpAddr::V6(ip), None) => write!(to, "\"[{ip}]\""),
        (IpAddr::V6(ip), Some(port)) => write!(to, "\"[{ip}]:{port}\""),
    };
}

fn write_ip(to: &mut Vec<u8>, ip: IpAddr) {
    let _ = write!(to, "{}", ip.to_canonical());
}

fn write_value(to: &mut Vec<u8>, value: &str) {
    if value.bytes().all(is_token_octet) {
        to.extend_from_slice(value.as_bytes());
        return;
    }
    to.push(b'"');
    for byte in value.bytes().filter(|byte| *byte >= b' ' && *byte != 0x7f) {
        if matches!(byte, b'"' | b'\\') {
            to.push(b'\\');
        }
        to.push(byte);
    }
    to.push(b'"');
}

#[cfg(test)]
#[path = "forwarded_tests.rs"]
mod tests;
