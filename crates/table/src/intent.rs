use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use imbl::OrdMap;
use serde::{Deserialize, Serialize};

use crate::{BackendTarget, Forward, Ipv4Net, Ipv4Range, Label, Mac, Name, Record, RecordType, Vhost};

/// Who owns an object: what stands in the file is changed in the file only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// The configuration file.
    Config,
    /// The admin API.
    Api,
    /// A lease: the object comes and goes with it.
    Lease,
}

/// An object with its owner.
pub type Owned<T> = (Source, Arc<T>);

/// What the administrator asked for, by file and by API. The maps are persistent: changing one object of
/// ten thousand copies a path, not the map.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Intent {
    /// Host name of the appliance itself.
    pub hostname: Label,
    /// Domain of the appliance itself.
    pub domain: Name,
    /// The link to the outside.
    pub wan_interface: Arc<str>,
    /// App networks; at least one.
    pub networks: Vec<Arc<Network>>,
    /// Reservations by network and hardware address.
    #[serde(with = "crate::pairs")]
    pub reservations: OrdMap<(Arc<str>, Mac), Owned<Reservation>>,
    /// Records by owner and type.
    #[serde(with = "crate::pairs")]
    pub records: OrdMap<(Name, RecordType), Owned<Vec<Record>>>,
    /// Virtual hosts by app name.
    #[serde(with = "crate::pairs")]
    pub vhosts: OrdMap<Label, Owned<Vhost>>,
    /// Port forwards by protocol and port.
    #[serde(with = "crate::pairs")]
    pub forwards: OrdMap<(Protocol, u16), Owned<Forward>>,
    /// Ports on which the appliance itself is reached: no forward may take them.
    pub own_ports: Vec<(Protocol, u16)>,
    /// Where the proxy listens, if it does; processes of before this field say nothing of it.
    #[serde(default)]
    pub proxy_listen: Vec<SocketAddr>,
    /// The same of the admin API.
    #[serde(default)]
    pub admin_listen: Vec<SocketAddr>,
    /// Whether app networks reach the internet through masquerading.
    pub masquerade: bool,
    /// Whether apps are kept from the WAN's own subnet and from the admin port.
    pub isolate_management: bool,
    /// Whether app names are answered on the WAN too.
    pub wan_dns: bool,
    /// Domains that servers of their own are asked about, special or not.
    #[serde(default)]
    pub forwarded: Vec<Name>,
}

/// One app network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Unique name.
    pub name: Arc<str>,
    /// Link that carries it.
    pub interface: Arc<str>,
    /// The appliance's own address on it, with the prefix length.
    pub address: Ipv4Net,
    /// Whether the appliance brings the link up and gives it the address.
    pub manage_link: bool,
    /// Domain of its host names.
    pub domain: Name,
    /// Whether DHCP is served.
    pub dhcp_enabled: bool,
    /// Dynamic addresses.
    pub range: Ipv4Range,
    /// Lease time in seconds.
    pub lease_time: u32,
    /// Option 3; the appliance unless told otherwise.
    pub router: Ipv4Addr,
    /// Option 6; the appliance unless told otherwise.
    pub dns: Vec<Ipv4Addr>,
    /// Option 119.
    pub domain_search: Vec<Name>,
    /// Option 42.
    pub ntp: Vec<Ipv4Addr>,
    /// Option 26.
    pub mtu: Option<u16>,
    /// Further options, sent when the client asks for them.
    pub options: Vec<CustomOption>,
    /// Vhosts made from leases.
    pub auto_vhost: AutoVhost,
}

/// Vhosts made from leased host names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AutoVhost {
    /// Whether a leased host name becomes a vhost.
    pub enabled: bool,
    /// Ports probed in order; the first that passes is the backend's.
    pub ports: Vec<u16>,
}

/// A DHCP option by its number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CustomOption {
    /// Option code, 1 to 254.
    pub code: u8,
    /// Value in wire form, at most 255 octets.
    pub value: Vec<u8>,
}

/// A fixed address (and name) for a hardware address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reservation {
    /// Network it belongs to.
    pub network: Arc<str>,
    /// The client.
    pub mac: Mac,
    /// The address; inside the network, inside or outside the range.
    pub ip: Ipv4Addr,
    /// The name; wins over what the client sends, and resolves without a lease.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<Label>,
}

/// Transport of a port forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Protocol {
    Tcp,
    Udp,
}

impl Intent {
    /// The network of this name.
    pub fn network(&self, name: &str) -> Option<&Arc<Network>> {
        self.networks.iter().find(|network| &*network.name == name)
    }

    /// The network in whose subnet `ip` lies.
    pub fn network_of(&self, ip: Ipv4Addr) -> Option<&Arc<Network>> {
        self.networks.iter().find(|network| network.address.contains(ip))
    }

    /// Why a forward cannot be: it would cut the appliance off, or leads to a machine that is no app.
    pub fn forward_conflict(&self, forward: &Forward) -> Option<String> {
        if self.own_ports.contains(&(forward.protocol, forward.port)) {
            return Some(format!("the appliance itself uses {} port {}", forward.protocol, forward.port));
        }
        forward.targets().find_map(|target| {
            let is_proxied = forward.proxy.is_some();
            match &target {
                // It would carry its own connections, each of which begins another.
                BackendTarget::App { name, .. } if is_proxied && self.is_own_name(name) => {
                    Some(format!("{name} is the appliance itself"))
                }
                BackendTarget::App { .. } => None,
                BackendTarget::Address(addr) => match self.network_of(*addr.ip()) {
                    None => Some(format!("{} is in no app network", addr.ip())),
                    Some(net) if is_proxied && net.address.addr == *addr.ip() => {
                        Some(format!("{} is the appliance itself", addr.ip()))
                    }
                    Some(_) => None,
                },
            }
        })
    }

    /// Whether an app of this name would be the appliance.
    fn is_own_name(&self, name: &Label) -> bool {
        *name == self.hostname && self.networks.iter().any(|net| net.domain == self.domain)
    }

    /// The records that were written of a name, by type.
    pub fn records_of(&self, name: &Name) -> impl Iterator<Item = (RecordType, &Owned<Vec<Record>>)> {
        let all = (name.clone(), RecordType::FIRST)..=(name.clone(), RecordType::LAST);
        self.records.range(all).map(|((_, rtype), records)| (*rtype, records))
    }

    /// Whether a name can be given to other servers: it lies below a zone's apex, and is one name.
    pub fn may_be_delegated(&self, name: &Name) -> bool {
        self.serves(name) && !self.is_apex(name) && !name.is_wildcard()
    }

    /// Why a record cannot stand at its name, as `what: what to do`.
    pub fn record_trouble(&self, name: &Name, rtype: RecordType) -> Option<String> {
        // RFC 6761 §6.3, §6.4, RFC 7686 §2: whoever asks for these must not be led elsewhere.
        let kept = [&b"\x09localhost\x00"[..], b"\x07invalid\x00", b"\x05onion\x00"];
        let reserved = kept.iter().any(|zone| name.as_wire().ends_with(zone));
        match rtype {
            _ if *name == Name::root() => Some("the root has no records here: write a name".to_owned()),
            _ if reserved => Some(format!("{name} is a name with a meaning of its own: choose another")),
            RecordType::CNAME if self.is_apex(name) => {
                let hint = "write A records, or give the CNAME to a name below";
                Some(format!("{name} has records of its own, which a CNAME cannot stand beside: {hint}"))
            }
            RecordType::NS if !self.may_be_delegated(name) => {
                let what = if self.is_apex(name) {
                    "is served here"
                } else if name.is_wildcard() {
                    "stands for many names"
                } else {
                    "lies in no domain of the appliance"
                };
                Some(format!(
                    "{name} {what}, so it cannot be delegated: write a name below a domain, such as lab"
                ))
            }
            _ => None,
        }
    }

    fn is_apex(&self, name: &Name) -> bool {
        let of_network = |net: &Arc<Network>| *name == net.domain || *name == Name::reverse_zone(net.address);
        *name == self.domain || self.networks.iter().any(of_network)
    }

    /// Whether a name lies in a zone of ours: the appliance's domain, or a network's domain or reverse zone.
    pub fn serves(&self, name: &Name) -> bool {
        let of_network =
            |net: &Arc<Network>| name.is_in(&net.domain) || name.is_in(&Name::reverse_zone(net.address));
        name.is_in(&self.domain) || self.networks.iter().any(of_network)
    }

    /// The reservation that holds `ip`.
    pub fn reservation_at(&self, ip: Ipv4Addr) -> Option<&Arc<Reservation>> {
        self.reservations
            .values()
            .map(|(_, reservation)| reservation)
            .find(|reservation| reservation.ip == ip)
    }
}

impl Protocol {
    /// The word used in the file and the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        }
    }
}

impl std::fmt::Display for Protocol {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}
