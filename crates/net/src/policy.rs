//! What the firewall has to achieve, in the words of the configuration. Plain data; [`crate::plan`] turns
//! it into rules.

use std::net::{Ipv4Addr, SocketAddrV4};

pub use proximity_table::{Ipv4Net, Protocol};

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
    /// Published ports that lead to apps.
    pub forwards: Vec<PortForward>,
    /// Published ports that the appliance itself listens on, and carries to apps.
    pub proxied: Vec<(Protocol, u16)>,
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
            proxied: Vec::new(),
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
