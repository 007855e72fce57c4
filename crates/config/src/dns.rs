//! `[dns]`: names of apps are served, names of others are asked of upstreams.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use imbl::OrdMap;
use proximity_table::{Label, Name, Owned, Record, RecordType, Upstream};

use crate::objects;
use crate::section::Section;

/// Most answers that may be kept: each takes up to a kilobyte.
const MOST_KEPT: u32 = 4_000_000;

/// `[dns]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dns {
    /// Whether names are served.
    pub enabled: bool,
    /// Addresses to listen on; empty: port 53 of every network's own address.
    pub listen: Vec<SocketAddr>,
    /// Servers that names of others are asked of.
    pub upstream: Vec<Upstream>,
    /// A PEM file of further authorities for the certificates of upstreams.
    pub upstream_ca: Option<PathBuf>,
    /// Servers that names of a domain are asked of.
    pub forward: Vec<(Name, Vec<Upstream>)>,
    /// How many answers of upstreams are kept.
    pub cache_size: u32,
    /// Seconds that answers are kept at least.
    pub cache_min_ttl: u32,
    /// Seconds that answers are kept at most.
    pub cache_max_ttl: u32,
    /// Seconds that "there is nothing" is kept at most.
    pub negative_max_ttl: u32,
    /// Seconds after its time for which an answer is given out when upstreams fail.
    pub serve_stale: u32,
    /// Whether popular names are asked for again before their time is over.
    pub prefetch: bool,
    /// Whether answers of upstreams that lead into private networks are kept from clients.
    pub rebind_protection: bool,
    /// Domains of which such answers are let through.
    pub rebind_exempt: Vec<Name>,
    /// Names of others that are blocked.
    pub block: Vec<Block>,
    /// Queries in a second that one client may ask; 0 = any number.
    pub client_rate: u32,
    /// Responses of a kind in a second that one network on the WAN gets; 0 = any number.
    pub response_rate: u32,
}

/// `[[dns.block]]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// A file of names.
    pub list: Option<PathBuf>,
    /// Further names, each with all below it.
    pub names: Vec<Name>,
    /// Names that are let through, each with all below it.
    pub allow: Vec<Name>,
    /// The app networks that it holds for; with `apps` empty too: everybody.
    pub networks: Vec<Label>,
    /// The apps that it holds for.
    pub apps: Vec<Label>,
    /// What is said about a blocked name.
    pub answer: Blocked,
    /// Seconds until it is looked whether the file has changed.
    pub refresh: u32,
}

/// What is said about a blocked name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blocked {
    /// The addresses 0.0.0.0 and ::.
    Zero,
    /// There is no such name.
    NxDomain,
    /// REFUSED.
    Refused,
}

/// Records by owner and type.
type Records = OrdMap<(Name, RecordType), Owned<Vec<Record>>>;

/// Reads `[dns]`, and the records in it, whose names are relative to `domain`.
pub fn read(root: &mut Section<'_>, domain: &Name) -> (Dns, Records) {
    let mut table = root.table("dns");
    let mut dns = Dns {
        enabled: table.boolean("enabled", true),
        listen: table.addresses("listen", 53, &[]),
        upstream: table.upstreams("upstream", &["8.8.8.8", "1.1.1.1"]),
        upstream_ca: table.file("upstream_ca").map(PathBuf::from),
        forward: Vec::new(),
        cache_size: table.number("cache_size", 8192, 1..=MOST_KEPT),
        cache_min_ttl: table.duration("cache_min_ttl", 0, 0),
        cache_max_ttl: table.duration("cache_max_ttl", 86_400, 1),
        negative_max_ttl: table.duration("negative_max_ttl", 900, 0),
        serve_stale: table.duration("serve_stale", 86_400, 0),
        prefetch: table.boolean("prefetch", true),
        rebind_protection: table.boolean("rebind_protection", true),
        rebind_exempt: domains(&mut table, "rebind_exempt"),
        block: Vec::new(),
        client_rate: table.number("client_rate", 100_000, 0..=1_000_000),
        response_rate: table.number("response_rate", 50, 0..=1_000_000),
    };
    if dns.cache_min_ttl > dns.cache_max_ttl {
        table.refuse("cache_min_ttl", "dns.cache_min_ttl is more than dns.cache_max_ttl", "write less");
    }
    for mut forward in table.tables("forward") {
        let name: Option<Name> = forward.required("domain", "corp.example");
        let upstream = forward.upstreams("upstream", &[]);
        if upstream.is_empty() {
            let hint = "write upstream = [\"10.1.1.1\"], the servers that know the domain";
            forward.refuse_all("dns.forward without upstream", hint);
        }
        if let Some(name) = name {
            if dns.forward.iter().any(|(other, _)| *other == name) {
                forward.refuse(
                    "domain",
                    &format!("{name} is forwarded twice"),
                    "write all its upstreams in one place",
                );
            }
            dns.forward.push((name, upstream));
        }
        forward.finish();
    }
    table.bound("forward", dns.forward.len());
    dns.block = table.tables("block").into_iter().map(block).collect();
    table.bound("block", dns.block.len());
    let records = objects::records(&mut table, domain);
    table.finish();
    (dns, records)
}

impl Dns {
    /// What is wrong about upstreams in view of the appliance's own addresses: message and hint of each.
    pub fn upstream_trouble(&self, own: &[SocketAddr]) -> Vec<(String, &'static str)> {
        let all = || self.forward.iter().flat_map(|(_, upstreams)| upstreams).chain(&self.upstream);
        let has_plain = self.upstream.iter().any(|upstream| upstream.plain().is_some());
        let mut trouble = Vec::new();
        for upstream in all() {
            if upstream.ip().is_none() && !has_plain {
                trouble.push((
                    format!("nobody can be asked where `{upstream}` is"),
                    "write its address instead of its name, or a plain upstream such as \"1.1.1.1\" beside it",
                ));
            }
            let is_own = |addr: &SocketAddr| {
                let everywhere = |ip: IpAddr| ip.is_unspecified() && addr.ip().is_loopback();
                own.iter()
                    .any(|own| own.port() == addr.port() && (own.ip() == addr.ip() || everywhere(own.ip())))
            };
            if upstream.plain().as_ref().is_some_and(is_own) {
                trouble.push((
                    format!("upstream {upstream} is the appliance itself"),
                    "name another server: questions would go round in a circle",
                ));
            }
        }
        trouble
    }
}

fn block(mut table: Section<'_>) -> Block {
    let mut labels = |key, expected| {
        let labels = table.list(key, expected, |text| text.parse().ok()).unwrap_or_default();
        table.bound(key, labels.len());
        labels
    };
    let networks = labels("networks", "names of app networks such as \"apps\"");
    let apps = labels("apps", "names of apps such as \"jellyfin\"");
    let list = table.text("list");
    if let Some(list) = &list {
        let is_url = list.contains("://");
        if is_url || !list.starts_with('/') || list.len() > 4096 || list.contains(char::is_control) {
            let hint = match is_url {
                true => {
                    "lists are read from files: have a timer fetch it, such as `curl -fsSo /var/lib/lists/ads.txt URL`, and write that path"
                }
                false => "begin the path with /",
            };
            table.refuse("list", &format!("`{list}` is not the path of a file"), hint);
        }
    }
    let block = Block {
        list: list.map(PathBuf::from),
        names: domains(&mut table, "names"),
        allow: domains(&mut table, "allow"),
        networks,
        apps,
        answer: match table.word("answer", &["zero", "nxdomain", "refused"]) {
            "nxdomain" => Blocked::NxDomain,
            "refused" => Blocked::Refused,
            _ => Blocked::Zero,
        },
        refresh: table.duration("refresh", 86_400, 60),
    };
    if block.list.is_none() && block.names.is_empty() && block.allow.is_empty() {
        let hint = "write list = \"/etc/proximity/ads.txt\" or names = [\"ads.example\"]";
        table.refuse_all("dns.block without names", hint);
    }
    table.finish();
    block
}

fn domains(table: &mut Section<'_>, key: &'static str) -> Vec<Name> {
    let parse = |text: &str| text.trim_start_matches("*.").parse().ok();
    let names = table.list(key, "a domain such as \"plex.direct\"", parse).unwrap_or_default();
    table.bound(key, names.len());
    names
}
