use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use proximity_table::ProxyProtocol;
use thiserror::Error;

use crate::Reason;

/// Longest header of version 1, with its end (specification §2.1).
const LONGEST_V1: usize = 107;
/// Longest header of version 2: no more than fits into one segment of the smallest TCP (§2.2).
pub const LONGEST: usize = 536;
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Octets of version 2 before the addresses.
const FIXED: usize = 16;
const PORTS: usize = 4;

/// A PROXY protocol header (haproxy.org, `proxy-protocol.txt`) at the beginning of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProxyHeader {
    /// Octets it takes; the connection's own begin after them.
    pub length: usize,
    /// Between whom the proxied connection is; `None` when the proxy speaks for itself (its health checks), or
    /// does not know.
    pub addresses: Option<Addresses>,
}

/// The two ends of a proxied connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// The client.
    pub source: SocketAddr,
    /// What the client connected to.
    pub destination: SocketAddr,
}

/// Why a connection does not begin with a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ProxyHeaderError {
    /// It begins with something else.
    #[error("the connection does not begin with a PROXY protocol header: is the sender set up to send one?")]
    Missing,
    /// It goes on longer than it may.
    #[error("the PROXY protocol header is longer than it may be")]
    TooLong,
    /// A line that is not as §2.1 has it.
    #[error("the PROXY protocol line cannot be read")]
    BadLine,
    /// A version, command or family that §2.2 does not know.
    #[error("the PROXY protocol header has an unknown version, command or family")]
    Unknown,
    /// Addresses or extensions that do not fit into the length.
    #[error("the PROXY protocol header is shorter than what it holds")]
    BadLength,
}

impl ProxyHeader {
    /// Reads a header from the beginning of what has come so far; `None` when more has to come. At most
    /// [`LONGEST`] octets are needed.
    ///
    /// §2: the receiver must not guess whether there is a header. So anything else is an error.
    pub fn read(input: &[u8]) -> Result<Option<ProxyHeader>, ProxyHeaderError> {
        if starts_alike(input, SIGNATURE) {
            return read_v2(input);
        }
        if starts_alike(input, b"PROXY ") {
            return read_v1(input);
        }
        Err(ProxyHeaderError::Missing)
    }
}

/// Appends a header; without addresses it says that the proxy speaks for itself.
pub fn write_proxy_header(version: ProxyProtocol, to: &mut Vec<u8>, addresses: Option<Addresses>) {
    match (version, addresses) {
        (ProxyProtocol::V1, None) => to.extend_from_slice(b"PROXY UNKNOWN\r\n"),
        (ProxyProtocol::V1, Some(Addresses { source, destination })) => {
            let (family, from, towards) = match pair(source.ip(), destination.ip()) {
                Pair::V4(from, towards) => ("TCP4", IpAddr::V4(from), IpAddr::V4(towards)),
                Pair::V6(from, towards) => ("TCP6", IpAddr::V6(from), IpAddr::V6(towards)),
            };
            let ports = (source.port(), destination.port());
            // Writing to memory does not fail.
            let _ = write!(to, "PROXY {family} {from} {towards} {} {}\r\n", ports.0, ports.1);
        }
        (ProxyProtocol::V2, None) => write_v2(to, 0x20, 0, &[], &[]),
        (ProxyProtocol::V2, Some(Addresses { source, destination })) => {
            let mut ports = [0; PORTS];
            ports[..2].copy_from_slice(&source.port().to_be_bytes());
            ports[2..].copy_from_slice(&destination.port().to_be_bytes());
            match pair(source.ip(), destination.ip()) {
                Pair::V4(from, towards) => {
                    write_v2(to, 0x21, 0x11, &[from.octets(), towards.octets()].concat(), &ports);
                }
                Pair::V6(from, towards) => {
                    write_v2(to, 0x21, 0x21, &[from.octets(), towards.octets()].concat(), &ports);
                }
            }
        }
    }
}

impl From<ProxyHeaderError> for Reason {
    fn from(_: ProxyHeaderError) -> Reason {
        Reason::ProxyHeader
    }
}

fn starts_alike(input: &[u8], with: &[u8]) -> bool {
    let length = input.len().min(with.len());
    input[..length] == with[..length]
}

fn read_v1(input: &[u8]) -> Result<Option<ProxyHeader>, ProxyHeaderError> {
    let within = &input[..input.len().min(LONGEST_V1)];
    let Some(end) = memchr::memchr(b'\n', within) else {
        return if within.len() < LONGEST_V1 { Ok(None) } else { Err(ProxyHeaderError::TooLong) };
    };
    let addresses = line(&within[..end]).ok_or(ProxyHeaderError::BadLine)?;
    Ok(Some(ProxyHeader { length: end + 1, addresses }))
}

/// The addresses of a line up to its line feed. The outer `None` is a line that cannot be read.
fn line(line: &[u8]) -> Option<Option<Addresses>> {
    let text = std::str::from_utf8(line.strip_suffix(b"\r")?).ok()?;
    let mut words = text.strip_prefix("PROXY ")?.split(' ');
    let family = words.next()?;
    if family == "UNKNOWN" {
        // §2.1: the receiver must ignore anything before the end of the line.
        return Some(None);
    }
    let mut ip = || match family {
        "TCP4" => words.next()?.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
        "TCP6" => words.next()?.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
        _ => None,
    };
    let (from, towards) = (ip()?, ip()?);
    let mut port = || {
        let digits = words.next()?;
        let is_plain =
            digits.bytes().all(|byte| byte.is_ascii_digit()) && (digits == "0" || !digits.starts_with('0'));
        digits.parse::<u16>().ok().filter(|_| is_plain)
    };
    let (from_port, to_port) = (port()?, port()?);
    let addresses = addresses(from, from_port, towards, to_port);
    words.next().is_none().then_some(Some(addresses))
}

fn read_v2(input: &[u8]) -> Result<Option<ProxyHeader>, ProxyHeaderError> {
    let Some((fixed, rest)) = input.split_at_checked(FIXED) else { return Ok(None) };
    let (command, family) = (fixed[12], fixed[13]);
    let length = usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
    if !matches!(command, 0x20 | 0x21) {
        return Err(ProxyHeaderError::Unknown);
    }
    if FIXED + length > LONGEST {
        return Err(ProxyHeaderError::TooLong);
    }
    let Some(body) = rest.get(..length) else { return Ok(None) };
    let header = |addresses| Ok(Some(ProxyHeader { length: FIXED + length, addresses }));
    if command == 0x20 {
        // §2.2: LOCAL; the receiver must ignore the addresses.
        return header(None);
    }
    let size = match family {
        0x00 => return header(None),
        0x11 | 0x12 => 2 * 4 + PORTS,
        0x21 | 0x22 => 2 * 16 + PORTS,
        0x31 | 0x32 => 2 * 108,
        _ => return Err(ProxyHeaderError::Unknown),
    };
    let (block, extensions) = body.split_at_checked(size).ok_or(ProxyHeaderError::BadLength)?;
    pass_over(extensions)?;
    // Datagrams and local sockets have no place before a TCP connection's octets: nothing is known of it.
    header(match family {
        0x11 => Some(v2_addresses::<4>(block)),
        0x21 => Some(v2_addresses::<16>(block)),
        _ => None,
    })
}

/// Reads two addresses of `SIZE` octets and two ports; what a short block lacks is taken to be zero.
fn v2_addresses<const SIZE: usize>(block: &[u8]) -> Addresses
where
    IpAddr: From<[u8; SIZE]>,
{
    let ip = |at: usize| IpAddr::from(octets::<SIZE>(block, at));
    let port = |at: usize| u16::from_be_bytes(octets::<2>(block, at));
    addresses(ip(0), port(2 * SIZE), ip(SIZE), port(2 * SIZE + 2))
}

fn octets<const SIZE: usize>(block: &[u8], at: usize) -> [u8; SIZE] {
    block.get(at..at + SIZE).and_then(|part| part.try_into().ok()).unwrap_or([0; SIZE])
}

/// §2.2: the extensions (type, length, value) after the addresses. None is used, all have to fit.
fn pass_over(mut extensions: &[u8]) -> Result<(), ProxyHeaderError> {
    while let Some((head, rest)) = extensions.split_at_checked(3) {
        let length = usize::from(u16::from_be_bytes([head[1], head[2]]));
        extensions = rest.get(length..).ok_or(ProxyHeaderError::BadLength)?;
    }
    if extensions.is_empty() { Ok(()) } else { Err(ProxyHeaderError::BadLength) }
}

fn addresses(from: IpAddr, from_port: u16, towards: IpAddr, to_port: u16) -> Addresses {
    Addresses {
        source: SocketAddr::new(from.to_canonical(), from_port),
        destination: SocketAddr::new(towards.to_canonical(), to_port),
    }
}

enum Pair {
    V4(Ipv4Addr, Ipv4Addr),
    V6(Ipv6Addr, Ipv6Addr),
}

/// Both ends in one family: an IPv4 end beside an IPv6 one is written as mapped.
fn pair(from: IpAddr, towards: IpAddr) -> Pair {
    let v6 = |ip| match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    match (from.to_canonical(), towards.to_canonical()) {
        (IpAddr::V4(from), IpAddr::V4(towards)) => Pair::V4(from, towards),
        (from, towards) => Pair::V6(v6(from), v6(towards)),
    }
}

fn write_v2(to: &mut Vec<u8>, command: u8, family: u8, ips: &[u8], ports: &[u8]) {
    to.extend_from_slice(SIGNATURE);
    to.extend_from_slice(&[command, family]);
    to.extend_from_slice(&((ips.len() + ports.len()) as u16).to_be_bytes());
    to.extend_from_slice(ips);
    to.extend_from_slice(ports);
}

#[cfg(test)]
mod tests {
    use super::*;

    const GET: &[u8] = b"GET / HTTP/1.1\r\n";

    fn ends(source: &str, destination: &str) -> Addresses {
        Addresses { source: source.parse().unwrap(), destination: destination.parse().unwrap() }
    }

    fn v2(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let mut header = Vec::new();
        write_v2(&mut header, command, family, body, &[]);
        header
    }

    /// What is read must not depend on how much came with it or how it was split.
    fn read(input: &[u8]) -> Result<ProxyHeader, ProxyHeaderError> {
        let verdict = ProxyHeader::read(input).map(|header| header.expect("complete"));
        for end in 0..input.len() {
            match (ProxyHeader::read(&input[..end]), verdict) {
                (Ok(None), _) => {}
                (Ok(Some(early)), Ok(header)) => assert_eq!((early, header.length <= end), (header, true)),
                (Err(early), Err(error)) => assert_eq!(early, error),
                (early, _) => panic!("{early:?} at {end}, {verdict:?}"),
            }
        }
        let more = [input, GET].concat();
        assert_eq!(ProxyHeader::read(&more), verdict.map(Some));
        verdict
    }

    #[test]
    fn what_is_written_is_read() {
        let cases = [
            ("192.0.2.1:56324", "10.20.0.9:80"),
            ("[2001:db8::1]:1", "[fd00::9]:65535"),
            ("[2001:db8::1]:1", "10.20.0.9:80"),
        ];
        for version in [ProxyProtocol::V1, ProxyProtocol::V2] {
            for (source, destination) in cases {
                let mut header = Vec::new();
                write_proxy_header(version, &mut header, Some(ends(source, destination)));
                let expected =
                    ProxyHeader { length: header.len(), addresses: Some(ends(source, destination)) };
                assert_eq!(read(&header), Ok(expected));
            }
            let mut own = Vec::new();
            write_proxy_header(version, &mut own, None);
            assert_eq!(read(&own), Ok(ProxyHeader { length: own.len(), addresses: None }));
        }
    }

    #[test]
    fn octets_are_those_of_the_specification() {
        let written = |version: ProxyProtocol, source, destination| {
            let mut header = Vec::new();
            write_proxy_header(version, &mut header, Some(ends(source, destination)));
            header
        };
        let v1 = written(ProxyProtocol::V1, "192.168.0.1:56324", "[::ffff:192.168.0.11]:443");
        assert_eq!(v1, b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n");
        let v2 = written(ProxyProtocol::V2, "192.168.0.1:56324", "192.168.0.11:443");
        let expected = b"\x0D\x0A\x0D\x0A\x00\x0D\x0A\x51\x55\x49\x54\x0A\x21\x11\x00\x0C\xC0\xA8\x00\x01\xC0\xA8\x00\x0B\xDC\x04\x01\xBB";
        assert_eq!(v2, expected);
    }

    // §2.1: "the receiver must ignore anything presented before the CRLF is found" after UNKNOWN.
    #[test]
    fn unknown_lines_tell_nothing() {
        let longest = format!("PROXY UNKNOWN {} {} 65535 65535\r\n", "f".repeat(39), "f".repeat(39));
        assert_eq!(longest.len(), 107);
        for line in ["PROXY UNKNOWN\r\n", "PROXY UNKNOWN anything at all\r\n", &longest] {
            assert_eq!(read(line.as_bytes()), Ok(ProxyHeader { length: line.len(), addresses: None }));
        }
    }

    #[test]
    fn lines_are_read_strictly() {
        let bad = [
            "PROXY TCP4 192.0.2.1 192.0.2.2 1 2\n",
            "PROXY TCP4  192.0.2.1 192.0.2.2 1 2\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 1 2 \r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 1\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 01 2\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 +1 2\r\n",
            "PROXY TCP4 192.0.2.1 192.0.2.2 1 65536\r\n",
            "PROXY TCP4 192.0.2.01 192.0.2.2 1 2\r\n",
            "PROXY TCP4 ::1 ::2 1 2\r\n",
            "PROXY TCP6 192.0.2.1 192.0.2.2 1 2\r\n",
            "PROXY UDP4 192.0.2.1 192.0.2.2 1 2\r\n",
            "PROXY \r\n",
        ];
        for line in bad {
            assert_eq!(read(line.as_bytes()), Err(ProxyHeaderError::BadLine), "{line:?}");
        }
        let endless = format!("PROXY UNKNOWN {}", "x".repeat(200));
        assert_eq!(read(endless.as_bytes()), Err(ProxyHeaderError::TooLong));
    }

    #[test]
    fn a_connection_without_header_is_told_at_its_first_octets() {
        for start in ["G", "GET / HTTP/1.1\r\n", "PROXX", "\r\nGET", "proxy TCP4"] {
            assert_eq!(ProxyHeader::read(start.as_bytes()), Err(ProxyHeaderError::Missing), "{start:?}");
        }
        assert_eq!(ProxyHeader::read(b""), Ok(None));
        assert_eq!(ProxyHeader::read(b"PRO"), Ok(None));
        assert_eq!(ProxyHeader::read(b"\r\n\r\n\0"), Ok(None));
    }

    #[test]
    fn extensions_are_passed_over_and_have_to_fit() {
        let ips = [192, 0, 2, 1, 192, 0, 2, 2, 0, 1, 0, 2];
        let with = |extensions: &[u8]| read(&v2(0x21, 0x11, &[&ips, extensions].concat()));
        let expected = Some(ends("192.0.2.1:1", "192.0.2.2:2"));
        assert_eq!(with(&[4, 0, 2, 9, 9, 1, 0, 0]).unwrap().addresses, expected);
        for bad in [&[4][..], &[4, 0], &[4, 0, 1], &[4, 0, 1, 9, 9]] {
            assert_eq!(with(bad), Err(ProxyHeaderError::BadLength), "{bad:?}");
        }
        let long = [&[4, 1, 249][..], &[0; 505]].concat();
        assert_eq!(with(&long).unwrap().length, LONGEST);
        assert_eq!(with(&[&[4, 1, 250][..], &[0; 506]].concat()), Err(ProxyHeaderError::TooLong));
    }

    #[test]
    fn families_are_told_apart_and_bounded() {
        let addresses =
            |command, family, body: &[u8]| read(&v2(command, family, body)).map(|header| header.addresses);
        assert_eq!(addresses(0x20, 0x11, b"what is this"), Ok(None), "LOCAL");
        assert_eq!(addresses(0x21, 0x00, b"xyz"), Ok(None), "UNSPEC");
        assert_eq!(addresses(0x21, 0x12, &[1; 12]), Ok(None), "datagrams");
        assert_eq!(addresses(0x21, 0x31, &[1; 216]), Ok(None), "local sockets");
        assert_eq!(addresses(0x21, 0x11, &[1; 11]), Err(ProxyHeaderError::BadLength));
        assert_eq!(addresses(0x21, 0x21, &[1; 35]), Err(ProxyHeaderError::BadLength));
        assert_eq!(addresses(0x21, 0x41, &[1; 35]), Err(ProxyHeaderError::Unknown));
        assert_eq!(addresses(0x22, 0x11, &[1; 12]), Err(ProxyHeaderError::Unknown));
        assert_eq!(addresses(0x11, 0x11, &[1; 12]), Err(ProxyHeaderError::Unknown));
        let mapped =
            [&[0; 10][..], &[255, 255, 192, 0, 2, 1], &[0; 10], &[255, 255, 192, 0, 2, 2], &[0, 1, 0, 2]];
        assert_eq!(addresses(0x21, 0x21, &mapped.concat()), Ok(Some(ends("192.0.2.1:1", "192.0.2.2:2"))));
    }
}
