use std::net::IpAddr;

/// What limits take for one client: an IPv4 address, or the /64 of an IPv6 one. A household gets a /64, and
/// its devices change their addresses in it as they like (RFC 8981).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClientKey {
    is_v6: bool,
    bits: u64,
}

impl From<IpAddr> for ClientKey {
    fn from(ip: IpAddr) -> ClientKey {
        match ip.to_canonical() {
            IpAddr::V4(ip) => ClientKey { is_v6: false, bits: u32::from(ip).into() },
            IpAddr::V6(ip) => ClientKey { is_v6: true, bits: (u128::from(ip) >> 64) as u64 },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv6_network_is_one_client_and_mapped_addresses_are_ipv4() {
        let key = |text: &str| ClientKey::from(text.parse::<IpAddr>().unwrap());
        assert_eq!(key("2001:db8:0:1::1"), key("2001:db8:0:1:ffff::2"));
        assert_ne!(key("2001:db8:0:1::1"), key("2001:db8:0:2::1"));
        assert_eq!(key("::ffff:192.0.2.1"), key("192.0.2.1"));
        assert_ne!(key("192.0.2.1"), key("192.0.2.2"));
        // The same bits in the other family.
        assert_ne!(key("0:0:c000:201::"), key("192.0.2.1"));
    }
}
