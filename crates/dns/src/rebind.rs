use std::net::{IpAddr, Ipv4Addr};

use proximity_table::Ipv4Net;

/// Whether an address is none that a name of others has any business to lead to: one of a private network, of this
/// host or of this link (RFC 6890), written in whatever way, or one of `own`.
pub(crate) fn is_private(ip: IpAddr, own: &[Ipv4Net]) -> bool {
    let v6 = match ip.to_canonical() {
        IpAddr::V4(ip) => return is_private_v4(ip, own),
        IpAddr::V6(ip) => ip,
    };
    let octets = v6.octets();
    let tail = |at: usize| Ipv4Addr::new(octets[at], octets[at + 1], octets[at + 2], octets[at + 3]);
    match v6.segments() {
        // "::" and "::1", and the old way to write an IPv4 address.
        [0, 0, 0, 0, 0, 0, ..] => is_private_v4(tail(12), own) || octets[12..15] == [0; 3],
        // RFC 6052 §2.1 and RFC 3056: an IPv4 address is meant.
        [0x64, 0xff9b, 0, 0, 0, 0, ..] => is_private_v4(tail(12), own),
        [0x2002, ..] => is_private_v4(tail(2), own),
        _ => v6.is_unique_local() || v6.is_unicast_link_local() || octets[..2] == [0xfe, 0xc0],
    }
}

fn is_private_v4(ip: Ipv4Addr, own: &[Ipv4Net]) -> bool {
    let [first, second, ..] = ip.octets();
    ip.is_private()
        || ip.is_loopback()
        || ip.is_link_local()
        || ip.is_broadcast()
        || first == 0
        // RFC 6598: between a provider and its customers.
        || (first == 100 && second & 0xc0 == 64)
        || own.iter().any(|net| net.contains(ip))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_addresses_are_known_in_every_dress() {
        let own = ["203.0.113.0/24".parse().unwrap()];
        for private in [
            "10.0.0.1",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
            "127.0.0.1",
            "169.254.1.1",
            "0.0.0.0",
            "100.64.0.1",
            "203.0.113.9",
            "::",
            "::1",
            "::ffff:10.0.0.1",
            "::10.0.0.1",
            "64:ff9b::192.168.0.1",
            "2002:c0a8:1::1",
            "fd00::1",
            "fc00::1",
            "fe80::1",
            "fec0::1",
        ] {
            assert!(is_private(private.parse().unwrap(), &own), "{private}");
        }
        for public in
            ["8.8.8.8", "172.32.0.1", "100.128.0.1", "2001:db8::1", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8"]
        {
            assert!(!is_private(public.parse().unwrap(), &own), "{public}");
        }
    }
}
