use std::net::Ipv4Addr;
use std::sync::Arc;

use imbl::OrdMap;
use proximity_table::{
    AutoVhost, CustomOption, Ipv4Net, Ipv4Range, Label, Mac, Name, Network, Owned, Reservation, Source,
};

use crate::section::Section;

/// What the `[[network]]` tables say.
pub struct Networks {
    pub networks: Vec<Arc<Network>>,
    pub reservations: OrdMap<(Arc<str>, Mac), Owned<Reservation>>,
}

/// Options that the server itself sets, so that they cannot be written by number (RFC 2132).
const OWN_OPTIONS: [u8; 15] = [0, 1, 3, 6, 12, 15, 50, 51, 52, 53, 54, 58, 59, 119, 255];

pub fn read_all(root: &mut Section<'_>, domain: &Name) -> Networks {
    let mut found = Networks { networks: Vec::new(), reservations: OrdMap::new() };
    let tables = root.tables("network");
    if tables.is_empty() {
        // None written: the seed's one app network.
        found.add(&mut root.absent(), domain, 0);
    }
    for (index, mut table) in tables.into_iter().enumerate() {
        found.add(&mut table, domain, index);
        table.finish();
    }
    found
}

impl Networks {
    fn add(&mut self, table: &mut Section<'_>, domain: &Name, index: usize) {
        let default_name = if index == 0 { "apps".to_owned() } else { format!("apps{}", index + 1) };
        let name: Label = table.parsed("name", &default_name);
        let name: Arc<str> = name.as_str().into();
        let interface = table.interface("interface", &format!("eth{}", index + 1));
        let address: Ipv4Net = table.parsed("address", &format!("10.{}.0.1/24", 20 + index));
        let manage_link = table.boolean("manage_link", true);
        let domain: Name = table.parsed("domain", &domain.to_string());

        let mut dhcp = table.table("dhcp");
        let dhcp_enabled = dhcp.boolean("enabled", true);
        let range: Ipv4Range = dhcp.parsed("range", &default_range(address).to_string());
        let lease_time = dhcp.duration("lease_time", 12 * 3600, 60);
        let ip_list = |dhcp: &mut Section<'_>, key| -> Option<Vec<Ipv4Addr>> {
            dhcp.list(key, "IPv4 addresses in quotes", |text| text.parse().ok())
        };
        let router = dhcp.optional("router", "an IPv4 address").unwrap_or(address.addr);
        let dns = ip_list(&mut dhcp, "dns").unwrap_or_else(|| vec![address.addr]);
        let domain_search = dhcp
            .list("domain_search", "domains in quotes", |text| text.parse().ok())
            .unwrap_or_else(|| vec![domain.clone()]);
        let ntp = ip_list(&mut dhcp, "ntp").unwrap_or_default();
        let mtu = dhcp.integer("mtu", 576..=9216).map(|mtu| mtu as u16);
        let options = dhcp.tables("options").into_iter().filter_map(custom_option).collect();
        dhcp.finish();

        let mut auto = table.table("auto_vhost");
        let auto_vhost =
            AutoVhost { enabled: auto.boolean("enabled", true), ports: auto.ports("ports", &[80]) };
        auto.finish();

        for mut reservation in table.tables("reservation") {
            let hostname = reservation.optional("hostname", "a host name such as \"db\"");
            let mac = reservation.required("mac", "bc:24:11:00:00:01");
            let ip = reservation.required("ip", "10.20.0.10");
            if let (Some(mac), Some(ip)) = (mac, ip) {
                self.reserve(&reservation, Reservation { network: name.clone(), mac, ip, hostname }, address);
            }
            reservation.finish();
        }
        let network = Network {
            name: name.clone(),
            interface,
            address,
            manage_link,
            domain,
            dhcp_enabled,
            range,
            lease_time,
            router,
            dns,
            domain_search,
            ntp,
            mtu,
            options,
            auto_vhost,
        };
        self.check(table, &network);
        self.networks.push(Arc::new(network));
    }

    fn reserve(&mut self, table: &Section<'_>, new: Reservation, net: Ipv4Net) {
        let usable = net.contains(new.ip) && new.ip != net.network() && new.ip != net.broadcast();
        if !usable || new.ip == net.addr {
            let hint = "take a free address of that network other than the appliance's own";
            table.refuse("ip", &format!("{} cannot be reserved in {net}", new.ip), hint);
        }
        let others = self.reservations.values().map(|(_, other)| other);
        for other in others.filter(|other| other.network == new.network) {
            let hint = "each address, MAC and name is reserved once";
            if other.ip == new.ip {
                table.refuse("ip", &format!("{} is reserved twice", new.ip), hint);
            }
            if other.mac == new.mac {
                table.refuse("mac", &format!("{} has two reservations", new.mac), hint);
            }
            if other.hostname.is_some() && other.hostname == new.hostname {
                table.refuse("hostname", "two reservations carry this name", hint);
            }
        }
        self.reservations.insert((new.network.clone(), new.mac), (Source::Config, Arc::new(new)));
    }

    fn check(&self, table: &Section<'_>, new: &Network) {
        let net = new.address;
        if !(8..=30).contains(&net.prefix) || net.addr == net.network() || net.addr == net.broadcast() {
            let hint = "write the appliance's own address in a network of /8 to /30, such as 10.20.0.1/24";
            table.refuse("address", &format!("{net} cannot carry apps"), hint);
        }
        if new.dhcp_enabled {
            let range = new.range;
            if !net.contains(range.start) || !net.contains(range.end) {
                let hint = "choose both ends inside the network, or change network.address";
                table.refuse("dhcp", &format!("the DHCP range {range} is not inside {net}"), hint);
            } else if range.start == net.network() || range.end == net.broadcast() {
                let hint = "leave out the first and the last address of the network";
                table.refuse(
                    "dhcp",
                    &format!("the DHCP range {range} holds the network or broadcast address"),
                    hint,
                );
            }
            if range.contains(net.addr) {
                let hint = "move the range, so that no app is given the gateway's address";
                table.refuse(
                    "dhcp",
                    &format!("the DHCP range {range} holds the appliance's own address"),
                    hint,
                );
            }
        }
        for other in &self.networks {
            let hint = "give each network its own name, interface and addresses";
            if other.name == new.name {
                table.refuse("name", &format!("two networks are called `{}`", new.name), hint);
            }
            if other.interface == new.interface {
                table.refuse("interface", &format!("two networks use {}", new.interface), hint);
            }
            if other.address.overlaps(net) {
                table.refuse(
                    "address",
                    &format!("{net} overlaps {} of `{}`", other.address, other.name),
                    hint,
                );
            }
        }
    }
}

/// The seed's .100 to .250 where the network has room for it, else its upper half.
fn default_range(net: Ipv4Net) -> Ipv4Range {
    let first = u32::from(net.network());
    let last = u32::from(net.broadcast());
    let (start, end) = match last - first {
        size @ 255.. => (first + 100, first + 250.min(size - 1)),
        size => (first + size / 2 + 1, last.saturating_sub(1).max(first + size / 2 + 1)),
    };
    Ipv4Range { start: Ipv4Addr::from(start), end: Ipv4Addr::from(end) }
}

fn custom_option(mut table: Section<'_>) -> Option<CustomOption> {
    let code = table.integer("code", 1..=254).map(|code| code as u8);
    let kind = table.word("type", &["string", "ip", "hex", "u8", "u16", "u32"]);
    let text: Option<String> = table.required("value", "10.20.0.1");
    let option = code.zip(text).and_then(|(code, text)| {
        let value = match kind {
            "ip" => {
                let parts: Option<Vec<Ipv4Addr>> = text.split(',').map(|ip| ip.trim().parse().ok()).collect();
                parts.map(|ips| ips.iter().flat_map(|ip| ip.octets()).collect())
            }
            "hex" => hex(&text),
            "u8" => text.parse().ok().map(|number: u8| vec![number]),
            "u16" => text.parse().ok().map(|number: u16| number.to_be_bytes().to_vec()),
            "u32" => text.parse().ok().map(|number: u32| number.to_be_bytes().to_vec()),
            _ => Some(text.clone().into_bytes()),
        };
        if OWN_OPTIONS.contains(&code) {
            let hint =
                "use router, dns, domain, domain_search or lease_time; the server sets this option itself";
            table.refuse("code", &format!("option {code} cannot be written by number"), hint);
            return None;
        }
        match value {
            Some(value) if (1..=255).contains(&value.len()) => Some(CustomOption { code, value }),
            _ => {
                let hint = format!("write 1 to 255 octets of type {kind}");
                table.refuse("value", &format!("`{text}` is not a value of type {kind}"), &hint);
                None
            }
        }
    });
    table.finish();
    option
}

fn hex(text: &str) -> Option<Vec<u8>> {
    let digits: String = text.chars().filter(|c| !matches!(c, ':' | ' ')).collect();
    if !digits.len().is_multiple_of(2) || !digits.is_ascii() {
        return None;
    }
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).ok()).collect()
}
