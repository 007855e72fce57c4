use std::net::Ipv4Addr;

use proximity_table::Mac;
use thiserror::Error;

/// A UDP datagram with its addresses, as it travels in an Ethernet frame.
///
/// The server sends whole frames because a client without an address answers no ARP, and because the
/// kernel would leave the UDP checksum to hardware that a veth does not have: guests drop such packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagram<'a> {
    /// Ethernet source.
    pub source_mac: Mac,
    /// Ethernet destination.
    pub target_mac: Mac,
    /// IP source.
    pub source: Ipv4Addr,
    /// IP destination.
    pub target: Ipv4Addr,
    /// UDP source port.
    pub source_port: u16,
    /// UDP destination port.
    pub target_port: u16,
    /// UDP payload.
    pub payload: &'a [u8],
}

/// Why a frame holds no usable datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum FrameError {
    /// Shorter than its headers say.
    #[error("frame is cut short")]
    Truncated,
    /// Not IPv4 over Ethernet, not UDP, or a fragment.
    #[error("frame is not a whole IPv4 UDP datagram")]
    NotUdp,
    /// IP header checksum is wrong.
    #[error("IP header checksum is wrong")]
    IpChecksum,
    /// UDP checksum is wrong.
    #[error("UDP checksum is wrong")]
    UdpChecksum,
}

const ETHERNET: usize = 14;
const IP: usize = 20;
const UDP: usize = 8;

/// Reads the datagram of an Ethernet frame. `checksum_ready` is false for frames of this host whose UDP
/// checksum is still to be filled in by hardware; then it is not looked at.
pub fn parse(frame: &[u8], checksum_ready: bool) -> Result<Datagram<'_>, FrameError> {
    let (ethernet, packet) = frame.split_at_checked(ETHERNET).ok_or(FrameError::Truncated)?;
    if ethernet[12..14] != [0x08, 0x00] {
        return Err(FrameError::NotUdp);
    }
    let first = *packet.first().ok_or(FrameError::Truncated)?;
    let header = usize::from(first & 0x0f) * 4;
    if first >> 4 != 4 || header < IP {
        return Err(FrameError::NotUdp);
    }
    let total = usize::from(read_u16(packet, 2)?);
    let packet = packet.get(..total).ok_or(FrameError::Truncated)?;
    let ip = packet.get(..header).ok_or(FrameError::Truncated)?;
    // Fragment offset and "more fragments": DHCP messages are never worth reassembling.
    if ip[9] != 17 || u16::from_be_bytes([ip[6], ip[7]]) & 0x3fff != 0 {
        return Err(FrameError::NotUdp);
    }
    if fold(sum(ip, 0)) != 0 {
        return Err(FrameError::IpChecksum);
    }
    let udp = &packet[header..];
    let length = usize::from(read_u16(udp, 4)?);
    let udp = udp.get(..length).filter(|udp| udp.len() >= UDP).ok_or(FrameError::Truncated)?;
    let address = |at: usize| Ipv4Addr::new(ip[at], ip[at + 1], ip[at + 2], ip[at + 3]);
    let (source, target) = (address(12), address(16));
    // RFC 768: a checksum of zero was not computed.
    if checksum_ready && udp[6..8] != [0, 0] && fold(sum(udp, pseudo_header(source, target, length))) != 0 {
        return Err(FrameError::UdpChecksum);
    }
    let mac = |at: usize| {
        let mut bytes = [0; 6];
        bytes.copy_from_slice(&ethernet[at..at + 6]);
        Mac(bytes)
    };
    Ok(Datagram {
        source_mac: mac(6),
        target_mac: mac(0),
        source,
        target,
        source_port: u16::from_be_bytes([udp[0], udp[1]]),
        target_port: u16::from_be_bytes([udp[2], udp[3]]),
        payload: &udp[UDP..],
    })
}

/// The Ethernet frame of a datagram, both checksums filled in. The payload must fit an IP packet; DHCP
/// messages do.
pub fn build(datagram: &Datagram<'_>) -> Vec<u8> {
    let udp_length = UDP + datagram.payload.len();
    let total = (IP + udp_length) as u16;
    let mut frame = Vec::with_capacity(ETHERNET + IP + udp_length);
    frame.extend(datagram.target_mac.0);
    frame.extend(datagram.source_mac.0);
    frame.extend([0x08, 0x00]);
    // Version 4, no options; TOS "low delay" as DHCP servers set it; don't fragment; TTL 64; UDP.
    frame.extend([0x45, 0x10]);
    frame.extend(total.to_be_bytes());
    frame.extend([0, 0, 0x40, 0, 64, 17, 0, 0]);
    frame.extend(datagram.source.octets());
    frame.extend(datagram.target.octets());
    let checksum = fold(sum(&frame[ETHERNET..], 0));
    frame[ETHERNET + 10..ETHERNET + 12].copy_from_slice(&checksum.to_be_bytes());
    frame.extend(datagram.source_port.to_be_bytes());
    frame.extend(datagram.target_port.to_be_bytes());
    frame.extend((udp_length as u16).to_be_bytes());
    frame.extend([0, 0]);
    frame.extend(datagram.payload);
    let pseudo = pseudo_header(datagram.source, datagram.target, udp_length);
    let checksum = match fold(sum(&frame[ETHERNET + IP..], pseudo)) {
        // RFC 768: zero means "not computed", so a computed zero is sent as all ones.
        0 => 0xffff,
        checksum => checksum,
    };
    frame[ETHERNET + IP + 6..ETHERNET + IP + 8].copy_from_slice(&checksum.to_be_bytes());
    frame
}

fn read_u16(bytes: &[u8], at: usize) -> Result<u16, FrameError> {
    match bytes.get(at..at + 2) {
        Some(pair) => Ok(u16::from_be_bytes([pair[0], pair[1]])),
        None => Err(FrameError::Truncated),
    }
}

fn pseudo_header(source: Ipv4Addr, target: Ipv4Addr, length: usize) -> u32 {
    let start = sum(&source.octets(), 17 + length as u32);
    sum(&target.octets(), start)
}

/// The Internet checksum's sum (RFC 1071) over 16-bit words, not yet folded.
fn sum(bytes: &[u8], start: u32) -> u32 {
    bytes.chunks(2).fold(start, |sum, pair| {
        sum + u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]))
    })
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn datagram(payload: &[u8]) -> Datagram<'_> {
        Datagram {
            source_mac: Mac([2, 0, 0, 0, 0, 1]),
            target_mac: Mac::BROADCAST,
            source: Ipv4Addr::new(10, 20, 0, 1),
            target: Ipv4Addr::BROADCAST,
            source_port: 67,
            target_port: 68,
            payload,
        }
    }

    #[test]
    fn what_is_built_is_read_again() {
        for payload in [&b""[..], b"x", b"odd", b"even"] {
            let frame = build(&datagram(payload));
            assert_eq!(parse(&frame, true), Ok(datagram(payload)));
        }
    }

    /// RFC 768: "Checksum is the 16-bit one's complement of the one's complement sum of a pseudo header of
    /// information from the IP header, the UDP header, and the data". Expected value worked out by hand.
    #[test]
    fn the_udp_checksum_is_right() {
        let frame = build(&Datagram {
            source: Ipv4Addr::new(1, 2, 3, 4),
            target: Ipv4Addr::new(5, 6, 7, 8),
            source_port: 1,
            target_port: 2,
            ..datagram(&[0, 3])
        });
        // 0102+0304+0506+0708 + 17+10 + 1+2+10+0 + 3 = 0x1014 + 0x2b
        assert_eq!(u16::from_be_bytes([frame[40], frame[41]]), !(0x1014 + 0x2b));
    }

    #[test]
    fn damage_is_named() {
        let frame = build(&datagram(b"hello"));
        let mut broken = frame.clone();
        broken[45] ^= 1;
        assert_eq!(parse(&broken, true), Err(FrameError::UdpChecksum));
        assert!(parse(&broken, false).is_ok());
        let mut broken = frame.clone();
        broken[26] ^= 1;
        assert_eq!(parse(&broken, true), Err(FrameError::IpChecksum));
        for length in 0..frame.len() {
            assert!(parse(&frame[..length], true).is_err());
        }
    }

    #[test]
    fn trailing_padding_is_not_payload() {
        let mut frame = build(&datagram(b"x"));
        frame.resize(60, 0);
        assert_eq!(parse(&frame, true).unwrap().payload, b"x");
    }
}
