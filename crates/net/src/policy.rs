//! What the firewall has to achieve, in the words of the configuration. Plain data; [`crate::plan`] turns
//! it into rules.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};

/// Everything the ruleset depends on, except the leased addresses (those are a set that changes on its own).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Name of the one nftables table we own.
    pub table_name: String,
    /// The uplink's interface.
    pub wan_interface: String,
    /// The uplink's own addresses with their prefix lengths (host bits kept): the address tells what is
    /// "us" for port forwards, the subnet is the management LAN that apps are kept out of. May be empty
    /// while the uplink has no address yet. Apply a plan with the new address *before* giving it to the
    /// link, so that isolation is never late.
    pub wan_addresses: Vec<Ipv4Net>,
    /// The app networks.
    pub networks: Vec<LanPolicy>,
    /// Whether traffic from app networks out of the uplink takes the uplink's address.
    pub masquerade: bool,
    /// Whether apps are kept out of the uplink's own subnets and off `admin_ports`.
    pub isolate_management: bool,
    /// TCP ports of the admin API.
    pub admin_ports: Vec<u16>,
    /// Port of our DNS server, UDP and TCP.
    pub dns_port: u16,
    /// Whether DNS may be asked from the uplink (on the uplink's addresses only, never on a gateway address).
    pub wan_dns: bool,
    /// Published ports.
    pub forwards: Vec<PortForward>,
}

impl Policy {
    /// The seed's policy for one uplink: masquerading and isolation on, admin on 9090, DNS on 53, table
    /// `proximity`, no networks and no forwards yet.
    pub fn new(wan_interface: impl Into<String>) -> Self {
        Policy {
            table_name: "proximity".to_owned(),
            wan_interface: wan_interface.into(),
            wan_addresses: Vec::new(),
            networks: Vec::new(),
            masquerade: true,
            isolate_management: true,
            admin_ports: vec![9090],
            dns_port: 53,
            wan_dns: false,
            forwards: Vec::new(),
        }
    }
}

/// One app network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LanPolicy {
    /// Interface the apps are behind.
    pub interface: String,
    /// The network's subnet.
    pub subnet: Ipv4Net,
    /// Our own address in it.
    pub gateway: Ipv4Addr,
}

/// A port of the appliance that leads to an app.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortForward {
    /// Transport protocol.
    pub protocol: Protocol,
    /// Port on the appliance's own addresses.
    pub port: u16,
    /// Where it leads.
    pub to: SocketAddrV4,
}

/// A transport protocol with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP
    Tcp,
    /// UDP
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        })
    }
}

/// An IPv4 address with a prefix length. Host bits are kept: see [`Ipv4Net::network`] for the subnet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ipv4Net {
    addr: Ipv4Addr,
    prefix_len: u8,
}

impl Ipv4Net {
    /// `None` when `prefix_len` is over 32.
    pub const fn new(addr: Ipv4Addr, prefix_len: u8) -> Option<Self> {
        if prefix_len > 32 { None } else { Some(Ipv4Net { addr, prefix_len }) }
    }

    /// The address as given, host bits included.
    pub const fn addr(self) -> Ipv4Addr {
        self.addr
    }

    /// Prefix length in bits, 0–32.
    pub const fn prefix_len(self) -> u8 {
        self.prefix_len
    }

    /// The netmask as an address.
    pub const fn mask(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(mask_bits(self.prefix_len))
    }

    /// The subnet: host bits cleared.
    pub const fn network(self) -> Ipv4Net {
        let bits = self.addr.to_bits() & mask_bits(self.prefix_len);
        Ipv4Net { addr: Ipv4Addr::from_bits(bits), prefix_len: self.prefix_len }
    }

    /// The highest address of the subnet.
    pub const fn last(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.addr.to_bits() | !mask_bits(self.prefix_len))
    }

    /// Whether the subnet holds `addr`.
    pub const fn contains(self, addr: Ipv4Addr) -> bool {
        let mask = mask_bits(self.prefix_len);
        addr.to_bits() & mask == self.addr.to_bits() & mask
    }
}

const fn mask_bits(prefix_len: u8) -> u32 {
    match prefix_len {
        0 => 0,
        n => u32::MAX << (32 - n as u32),
    }
}

impl fmt::Display for Ipv4Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.prefix_len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_net_keeps_its_address_and_knows_its_subnet() {
        let net = Ipv4Net::new(Ipv4Addr::new(192, 168, 1, 77), 26).unwrap();
        assert_eq!(net.addr(), Ipv4Addr::new(192, 168, 1, 77));
        assert_eq!(net.network().to_string(), "192.168.1.64/26");
        assert_eq!(net.last(), Ipv4Addr::new(192, 168, 1, 127));
        assert_eq!(net.mask(), Ipv4Addr::new(255, 255, 255, 192));
        assert!(net.contains(Ipv4Addr::new(192, 168, 1, 64)));
        assert!(!net.contains(Ipv4Addr::new(192, 168, 1, 128)));
    }

    #[test]
    fn prefix_lengths_at_the_edges() {
        assert_eq!(Ipv4Net::new(Ipv4Addr::LOCALHOST, 33), None);
        let all = Ipv4Net::new(Ipv4Addr::LOCALHOST, 0).unwrap();
        assert_eq!((all.network().addr(), all.last()), (Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST));
        let one = Ipv4Net::new(Ipv4Addr::LOCALHOST, 32).unwrap();
        assert_eq!((one.network().addr(), one.last()), (Ipv4Addr::LOCALHOST, Ipv4Addr::LOCALHOST));
    }
}
