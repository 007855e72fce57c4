//! Configuration file format v1: text to typed [`Config`], every problem reported at once.
//!
//! Every key is optional; an empty text is exactly the seed's appliance. Parsing touches no file, no
//! interface and no clock: the caller reads the text and decides what to do with the problems.

#![forbid(unsafe_code)]

mod check;
mod dns;
mod forward;
mod header_edits;
mod json;
mod network;
mod objects;
mod places;
mod problem;
mod proxy;
mod section;
mod vhost;
mod vhost_policy;
mod waiting;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use proximity_table::{Intent, Ipv4Net, Label, Name, Protocol};

pub use dns::{Block, Blocked, Dns};
pub use json::{forward_from_json, vhost_from_json};
use places::Places;
pub use problem::{Problem, Report};
pub use proxy::Proxy;
use section::Section;
pub use section::{Spelling, parse_duration};
pub use waiting::{Until, Waiting};

/// Where `proximity run` looks for its configuration.
pub const DEFAULT_PATH: &str = "/etc/proximity/proximity.toml";

const DEFAULT_RUN_DIR: &str = "/run/proximity";

/// What a configuration file says, defaults filled in.
#[derive(Clone, Debug)]
pub struct Config {
    /// The appliance itself.
    pub appliance: Appliance,
    /// How the outside link gets its address.
    pub wan: WanAddress,
    /// The name service.
    pub dns: Dns,
    /// The reverse proxy.
    pub proxy: Proxy,
    /// The admin API.
    pub admin: Admin,
    /// Everything that the world is derived from.
    pub intent: Intent,
}

/// `[appliance]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Appliance {
    /// Durable state: leases, API objects, the admin token.
    pub state_dir: PathBuf,
    /// Access logs.
    pub log_dir: PathBuf,
    /// The admin socket.
    pub run_dir: PathBuf,
    /// Least severe level that is logged.
    pub log_level: LogLevel,
}

/// Severity of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum LogLevel {
    Debug,
    Info,
    Warn,
    Error,
}

/// `[wan] address`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WanAddress {
    /// By a DHCP client of our own.
    Dhcp,
    /// Fixed.
    Static {
        /// Address and prefix length.
        address: Ipv4Net,
        /// Default gateway.
        gateway: Option<Ipv4Addr>,
    },
    /// The link is left alone.
    Unmanaged,
}

/// `[admin]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admin {
    /// Whether the API is served on TCP; the unix socket is always there.
    pub enabled: bool,
    /// Addresses to listen on.
    pub listen: Vec<SocketAddr>,
}

impl Config {
    /// Reads a configuration; either all of it is right, or every problem is told. Files that it names are not
    /// looked at.
    pub fn parse(text: &str) -> Result<Config, Report> {
        Config::parse_with(text, |_| Ok(()))
    }

    /// As [`Config::parse`], and has `look` say what is wrong with each file of certificates that it names, as
    /// `what: what to do`.
    pub fn parse_with(text: &str, look: impl Fn(&str) -> Result<(), String>) -> Result<Config, Report> {
        let document = toml_edit::Document::parse(text).map_err(|error| Report::syntax(text, &error))?;
        let report = Report::collector(text);
        let mut root = Section::root(document.as_table(), &report);
        let config = Config::read(&mut root);
        root.finish();
        check::all(&config, Places(document.as_table()), &report);
        report.check_files(look);
        report.into_result(config)
    }

    /// Where the admin socket of an appliance with this file is, even while the file is wrong otherwise: the
    /// commands that help to mend it must find the running appliance.
    pub fn run_dir(text: &str) -> PathBuf {
        let document = toml_edit::Document::parse(text).ok();
        let written =
            document.as_ref().and_then(|document| document.get("appliance")?.get("run_dir")?.as_str());
        written.unwrap_or(DEFAULT_RUN_DIR).into()
    }

    /// What is right and perhaps not meant, in words, as far as the file alone tells.
    pub fn warnings(&self) -> Vec<String> {
        self.intent.warnings(&self.wan_addresses())
    }

    /// The addresses that the WAN link has whatever its network says.
    fn wan_addresses(&self) -> Vec<Ipv4Net> {
        match self.wan {
            WanAddress::Static { address, .. } => vec![address],
            WanAddress::Dhcp | WanAddress::Unmanaged => Vec::new(),
        }
    }

    fn read(root: &mut Section<'_>) -> Config {
        let mut table = root.table("appliance");
        let hostname: Label = table.parsed("hostname", "prox-appliance");
        let domain: Name = table.parsed("domain", "prox.local");
        let appliance = Appliance {
            state_dir: table.path("state_dir", "/var/lib/proximity"),
            log_dir: table.path("log_dir", "/var/log/proximity"),
            run_dir: table.path("run_dir", DEFAULT_RUN_DIR),
            log_level: match table.word("log_level", &["info", "debug", "warn", "error"]) {
                "debug" => LogLevel::Debug,
                "warn" => LogLevel::Warn,
                "error" => LogLevel::Error,
                _ => LogLevel::Info,
            },
        };
        table.finish();

        let mut table = root.table("wan");
        let wan_interface = table.interface("interface", "eth0");
        let wan = wan_address(&mut table);
        let wan_dns = table.word("dns", &["off", "authoritative"]) == "authoritative";
        table.finish();

        let networks = network::read_all(root, &domain);

        let (dns, records) = dns::read(root, &domain);
        let proxy = proxy::read(root);
        let vhosts = vhost::read_all(root, &domain);

        let mut table = root.table("nat");
        let nat = table.boolean("enabled", true);
        table.finish();

        let forwards = forward::read_all(root);

        let mut table = root.table("firewall");
        let isolate_management = table.boolean("isolate_management", true);
        table.finish();

        let mut table = root.table("admin");
        let admin = Admin {
            enabled: table.boolean("enabled", true),
            listen: table.addresses("listen", 9090, &["0.0.0.0:9090"]),
        };
        table.finish();

        let intent = Intent {
            hostname,
            domain,
            wan_interface,
            networks: networks.networks,
            reservations: networks.reservations,
            records,
            vhosts,
            forwards,
            own_ports: own_ports(&dns, &proxy, &admin),
            proxy_listen: proxy.listen.iter().copied().filter(|_| proxy.enabled).collect(),
            admin_listen: admin.listen.iter().copied().filter(|_| admin.enabled).collect(),
            masquerade: nat,
            isolate_management,
            wan_dns,
            forwarded: dns.forward.iter().map(|(name, _)| name.clone()).collect(),
        };
        Config { appliance, wan, dns, proxy, admin, intent }
    }
}

/// Ports on which the appliance is reached from outside or from apps.
fn own_ports(dns: &Dns, proxy: &Proxy, admin: &Admin) -> Vec<(Protocol, u16)> {
    let mut ports = vec![(Protocol::Udp, 67), (Protocol::Udp, 68)];
    let listening = |enabled: bool, listen: &[SocketAddr]| -> Vec<u16> {
        listen.iter().map(SocketAddr::port).filter(|_| enabled).collect()
    };
    ports.extend(listening(proxy.enabled, &proxy.listen).into_iter().map(|port| (Protocol::Tcp, port)));
    ports.extend(listening(admin.enabled, &admin.listen).into_iter().map(|port| (Protocol::Tcp, port)));
    let mut names = listening(dns.enabled, &dns.listen);
    names.extend(dns.enabled.then_some(53));
    ports.extend(names.into_iter().flat_map(|port| [(Protocol::Tcp, port), (Protocol::Udp, port)]));
    ports
}

impl Default for Config {
    fn default() -> Config {
        Config::parse("").expect("the empty configuration is right")
    }
}

fn wan_address(table: &mut Section<'_>) -> WanAddress {
    let gateway: Option<Ipv4Addr> = table.optional("gateway", "an IPv4 address such as 192.168.1.1");
    let text = table.string("address", "dhcp");
    let address = match text.as_str() {
        "dhcp" => WanAddress::Dhcp,
        "unmanaged" => WanAddress::Unmanaged,
        cidr => match cidr.parse::<Ipv4Net>() {
            Ok(address) => WanAddress::Static { address, gateway },
            Err(_) => {
                let hint = "write \"dhcp\", \"unmanaged\", or an address with prefix length such as \"192.168.1.2/24\"";
                table.refuse("address", &format!("`{cidr}` is not a WAN address"), hint);
                WanAddress::Dhcp
            }
        },
    };
    if gateway.is_some() && !matches!(address, WanAddress::Static { .. }) {
        let hint = "remove gateway, or write a fixed address beside it";
        table.refuse("gateway", "a gateway goes with a fixed address only", hint);
    }
    address
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod vhost_tests;
