//! Policy → ruleset. Pure: the whole firewall can be read and tested here without a kernel.

use crate::policy::{Ipv4Net, LanPolicy, Policy, PortForward, Protocol};
use crate::ruleset::{Chain, Hook, LEASED, Match, Rule, Ruleset, Set, SetContent, Verdict};
use std::collections::BTreeSet;
use std::net::Ipv4Addr;

/// Interfaces of the app networks.
const LAN: &str = "lan";
/// The appliance's own addresses.
const OWN: &str = "own";
/// The uplink's subnets.
const WAN_SUBNETS: &str = "wan_subnets";

/// Why a policy cannot become a ruleset.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// The kernel allows 1–15 bytes without `/` and white space.
    #[error("\"{0}\" cannot be an interface name: use 1 to 15 characters without /, quotes or spaces")]
    InterfaceName(String),
    /// We keep to letters, digits and `_`, so that the text form needs no quoting.
    #[error("\"{0}\" cannot be a table name: start with a letter, go on with letters, digits and _")]
    TableName(String),
    /// One interface in two roles.
    #[error("interface {0} is used twice: the uplink and every network need an interface of their own")]
    InterfaceTwice(String),
    /// Two forwards of one port.
    #[error("{0} port {1} is forwarded twice: remove one of the two forwards")]
    ForwardTwice(Protocol, u16),
}

/// Derives the table from the policy.
///
/// Rule ids, by chain (each is the rule's comment and the key of its counter):
/// - `prerouting`: `forward-<proto>-<port>`, `hairpin-<proto>-<port>`
/// - `input`: `loopback`, `input-established`, `admin-from-lan-<port>`, `spoof-input-<interface>`,
///   `wan-dhcp`, `wan-dns-udp`, `wan-dns-tcp` (with DNS on the uplink: `wan-dns-<proto>-to-<interface>`),
///   `proxied-<proto>-<port>`
/// - `forward`: `forward-established`, `invalid-from-lan`, `invalid-to-lan`, `spoof-<interface>`,
///   `isolate-management`, `leased-out`, `static-out`, `within-<interface>`, `published`,
///   `between-networks`, `management-to-lan`, `to-lan`, `from-lan`
/// - `postrouting`: `masquerade-<interface>`, `hairpin-snat-<interface>`
pub fn plan(policy: &Policy) -> Result<Ruleset, PlanError> {
    check(policy)?;
    let lans = policy.networks.iter().map(|lan| lan.interface.clone()).collect();
    let gateways = policy.networks.iter().map(|lan| lan.gateway);
    let own = gateways.chain(policy.wan_addresses.iter().map(|net| net.addr)).collect();
    Ok(Ruleset {
        table: policy.table_name.clone(),
        sets: vec![
            Set { name: LAN, content: SetContent::Interfaces(lans) },
            Set { name: OWN, content: SetContent::Addresses(own) },
            Set { name: WAN_SUBNETS, content: SetContent::Ranges(merged(&policy.wan_addresses)) },
            Set { name: LEASED, content: SetContent::Leased { size: leased_size(policy) } },
        ],
        chains: vec![
            Chain { name: "prerouting", hook: Hook::Prerouting, rules: prerouting(policy) },
            Chain { name: "input", hook: Hook::Input, rules: input(policy) },
            Chain { name: "forward", hook: Hook::Forward, rules: forward(policy) },
            Chain { name: "postrouting", hook: Hook::Postrouting, rules: postrouting(policy) },
        ],
    })
}

/// Room for every address of every network, and for a batch in which old ones go while new ones come.
fn leased_size(policy: &Policy) -> u32 {
    const MOST: u32 = 1 << 20;
    const BATCH: u32 = 4096;
    let size = |lan: &LanPolicy| 1u32.checked_shl(32 - u32::from(lan.subnet.prefix)).unwrap_or(MOST);
    let all = policy.networks.iter().map(size).fold(0u32, u32::saturating_add).clamp(1, MOST);
    all + all.min(BATCH)
}

fn check(policy: &Policy) -> Result<(), PlanError> {
    let mut letters = policy.table_name.chars();
    if !letters.next().is_some_and(|c| c.is_ascii_alphabetic())
        || !letters.all(|c| c.is_ascii_alphanumeric() || c == '_')
        || policy.table_name.len() > 60
    {
        return Err(PlanError::TableName(policy.table_name.clone()));
    }
    let mut interfaces = BTreeSet::new();
    let lans = policy.networks.iter().map(|lan| &lan.interface);
    for name in std::iter::once(&policy.wan_interface).chain(lans) {
        let printable = |c: char| c.is_ascii_graphic() && !matches!(c, '/' | '"' | '\\' | '*');
        if name.is_empty() || name.len() > 15 || !name.chars().all(printable) {
            return Err(PlanError::InterfaceName(name.clone()));
        }
        if !interfaces.insert(name) {
            return Err(PlanError::InterfaceTwice(name.clone()));
        }
    }
    let mut ports = BTreeSet::new();
    let translated = policy.forwards.iter().map(|forward| (forward.protocol, forward.port));
    for (protocol, port) in translated.chain(policy.proxied.iter().copied()) {
        if !ports.insert((protocol, port)) {
            return Err(PlanError::ForwardTwice(protocol, port));
        }
    }
    Ok(())
}

/// Port forwards, from the uplink and (hairpin) from the apps themselves, only when addressed to us: a
/// packet that is merely routed through to the same port is not ours to redirect.
fn prerouting(policy: &Policy) -> Vec<Rule> {
    let both = |forward: &PortForward| {
        let PortForward { protocol, port, to } = *forward;
        let rule = |id: &str, from: Match| {
            let matches = vec![from, Match::DestinationIn(OWN), Match::Port(protocol, port)];
            counted(format!("{id}-{protocol}-{port}"), matches, Verdict::Dnat(to))
        };
        [
            rule("forward", Match::InputInterface(policy.wan_interface.clone())),
            rule("hairpin", Match::InputInterfaceIn(LAN)),
        ]
    };
    policy.forwards.iter().flat_map(both).collect()
}

fn input(policy: &Policy) -> Vec<Rule> {
    let mut rules = vec![
        silent("loopback", vec![Match::InputInterface("lo".to_owned())], Verdict::Accept),
        silent("input-established", vec![Match::Established], Verdict::Accept),
    ];
    if policy.isolate_management {
        for &port in &policy.admin_ports {
            let matches = vec![Match::InputInterfaceIn(LAN), Match::Port(Protocol::Tcp, port)];
            rules.push(counted(format!("admin-from-lan-{port}"), matches, Verdict::RejectReset));
        }
    }
    for lan in &policy.networks {
        // 0.0.0.0 is how a DHCP client speaks before it has an address.
        let nobody = Ipv4Net::new(Ipv4Addr::UNSPECIFIED, 32).expect("32 is a valid prefix length");
        let matches = vec![from_lan(lan), Match::SourceNot(lan.subnet.subnet()), Match::SourceNot(nobody)];
        rules.push(counted(format!("spoof-input-{}", lan.interface), matches, Verdict::Drop));
    }
    let wan = || Match::InputInterface(policy.wan_interface.clone());
    rules.push(counted("wan-dhcp", vec![wan(), Match::Port(Protocol::Udp, 67)], Verdict::Drop));
    for protocol in [Protocol::Udp, Protocol::Tcp] {
        let dns = Match::Port(protocol, policy.dns_port);
        if !policy.wan_dns {
            rules.push(counted(format!("wan-dns-{protocol}"), vec![wan(), dns], Verdict::Drop));
            continue;
        }
        // Linux answers for any of its addresses on any link. A query from the uplink to a gateway address
        // would reach the apps' resolver, which forwards for its clients: an open resolver.
        for lan in &policy.networks {
            let gateway = Ipv4Net::new(lan.gateway, 32).expect("32 is a valid prefix length");
            let matches = vec![wan(), Match::Destination(gateway), dns.clone()];
            let id = format!("wan-dns-{protocol}-to-{}", lan.interface);
            rules.push(counted(id, matches, Verdict::Drop));
        }
    }
    for &(protocol, port) in &policy.proxied {
        let id = format!("proxied-{protocol}-{port}");
        rules.push(counted(id, vec![Match::Port(protocol, port)], Verdict::Accept));
    }
    rules
}

fn forward(policy: &Policy) -> Vec<Rule> {
    let from_lans = || Match::InputInterfaceIn(LAN);
    let to_lans = || Match::OutputInterfaceIn(LAN);
    let to_wan = || Match::OutputInterface(policy.wan_interface.clone());
    let mut rules = vec![
        silent("forward-established", vec![Match::Established], Verdict::Accept),
        counted("invalid-from-lan", vec![from_lans(), Match::Invalid], Verdict::Drop),
        counted("invalid-to-lan", vec![to_lans(), Match::Invalid], Verdict::Drop),
    ];
    for lan in &policy.networks {
        let matches = vec![from_lan(lan), Match::SourceNot(lan.subnet.subnet())];
        rules.push(counted(format!("spoof-{}", lan.interface), matches, Verdict::Drop));
    }
    if policy.isolate_management {
        let matches = vec![from_lans(), to_wan(), Match::DestinationIn(WAN_SUBNETS)];
        rules.push(counted("isolate-management", matches, Verdict::RejectProhibited));
    }
    let leased = vec![from_lans(), to_wan(), Match::SourceIn(LEASED)];
    rules.push(counted("leased-out", leased, Verdict::Accept));
    // Addresses set by hand. The spoof rules above already hold them to their network's subnet.
    rules.push(counted("static-out", vec![from_lans(), to_wan(), Match::Ipv4], Verdict::Accept));
    for lan in &policy.networks {
        let matches = vec![from_lan(lan), Match::OutputInterface(lan.interface.clone())];
        rules.push(counted(format!("within-{}", lan.interface), matches, Verdict::Accept));
    }
    rules.push(counted("published", vec![to_lans(), Match::DestinationTranslated], Verdict::Accept));
    rules.push(counted("between-networks", vec![from_lans(), to_lans()], Verdict::Drop));
    let from_wan = Match::InputInterface(policy.wan_interface.clone());
    let management = vec![from_wan, to_lans(), Match::SourceIn(WAN_SUBNETS)];
    rules.push(counted("management-to-lan", management, Verdict::Accept));
    rules.push(counted("to-lan", vec![to_lans()], Verdict::Drop));
    rules.push(counted("from-lan", vec![from_lans()], Verdict::Drop));
    rules
}

fn postrouting(policy: &Policy) -> Vec<Rule> {
    let mut rules = Vec::new();
    for lan in &policy.networks {
        let source = || Match::Source(lan.subnet.subnet());
        if policy.masquerade {
            let matches = vec![Match::OutputInterface(policy.wan_interface.clone()), source()];
            rules.push(counted(format!("masquerade-{}", lan.interface), matches, Verdict::Masquerade));
        }
        // An app that reaches its neighbour by our address must get the answer from our address.
        if !policy.forwards.is_empty() {
            let out = Match::OutputInterface(lan.interface.clone());
            let matches = vec![out, source(), Match::DestinationTranslated];
            rules.push(counted(format!("hairpin-snat-{}", lan.interface), matches, Verdict::Masquerade));
        }
    }
    rules
}

fn from_lan(lan: &LanPolicy) -> Match {
    Match::InputInterface(lan.interface.clone())
}

fn counted(id: impl Into<String>, matches: Vec<Match>, verdict: Verdict) -> Rule {
    Rule { id: id.into(), matches, counted: true, verdict }
}

fn silent(id: impl Into<String>, matches: Vec<Match>, verdict: Verdict) -> Rule {
    Rule { id: id.into(), matches, counted: false, verdict }
}

/// The subnets as disjoint ascending ranges: two uplink addresses may share or nest their subnets, which an
/// interval set refuses.
fn merged(nets: &[Ipv4Net]) -> Vec<(Ipv4Addr, Ipv4Addr)> {
    let mut ranges: Vec<_> = nets.iter().map(|net| (net.network(), net.broadcast())).collect();
    ranges.sort_unstable();
    let mut merged: Vec<(Ipv4Addr, Ipv4Addr)> = Vec::new();
    for (first, last) in ranges {
        match merged.last_mut() {
            Some(open) if first.to_bits() <= open.1.to_bits().saturating_add(1) => open.1 = open.1.max(last),
            _ => merged.push((first, last)),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::PortForward;
    use std::net::SocketAddrV4;

    fn net(a: u8, b: u8, c: u8, d: u8, prefix_len: u8) -> Ipv4Net {
        Ipv4Net::new(Ipv4Addr::new(a, b, c, d), prefix_len).unwrap()
    }

    fn seed() -> Policy {
        Policy {
            wan_addresses: vec![net(192, 168, 1, 5, 24)],
            networks: vec![LanPolicy {
                interface: "eth1".into(),
                subnet: net(10, 20, 0, 0, 24),
                gateway: Ipv4Addr::new(10, 20, 0, 1),
            }],
            ..Policy::new("eth0")
        }
    }

    fn gitea() -> PortForward {
        PortForward {
            protocol: Protocol::Tcp,
            port: 2222,
            to: SocketAddrV4::new(Ipv4Addr::new(10, 20, 0, 101), 22),
        }
    }

    /// `UPDATE=1` rewrites the file instead.
    fn compare(text: &str, file: &str) {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(file);
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&path, text).unwrap();
        }
        assert_eq!(text, std::fs::read_to_string(&path).unwrap(), "actual:\n{text}");
    }

    #[test]
    fn the_seed_with_one_forward() {
        let text = plan(&Policy { forwards: vec![gitea()], ..seed() }).unwrap().to_string();
        compare(&text, "seed-with-forward.nft");
    }

    #[test]
    fn a_port_that_the_proxy_carries_is_open_and_not_translated() {
        let proxied = vec![(Protocol::Tcp, 2222), (Protocol::Udp, 5353)];
        let ruleset = plan(&Policy { proxied: proxied.clone(), ..seed() }).unwrap();
        let rule = ruleset.rule("proxied-udp-5353").unwrap().to_string();
        assert_eq!(rule, "udp dport 5353 counter accept comment \"proxied-udp-5353\"");
        assert!(ruleset.rule("forward-tcp-2222").is_none() && ruleset.rule("hairpin-snat-eth1").is_none());
        let chain = ruleset.chains.iter().find(|chain| chain.hook == Hook::Input).unwrap();
        let at = |id: &str| chain.rules.iter().position(|rule| rule.id == id).unwrap();
        assert!(at("spoof-input-eth1") < at("proxied-tcp-2222"), "a forged source gets nowhere with it");
        let both = Policy { proxied, forwards: vec![gitea()], ..seed() };
        assert_eq!(plan(&both).unwrap_err(), PlanError::ForwardTwice(Protocol::Tcp, 2222));
    }

    #[test]
    fn two_networks_and_dns_on_the_uplink() {
        let mut policy = Policy { wan_dns: true, isolate_management: false, ..seed() };
        policy.networks.push(LanPolicy {
            interface: "eth2".into(),
            subnet: net(10, 21, 0, 0, 16),
            gateway: Ipv4Addr::new(10, 21, 0, 1),
        });
        policy.wan_addresses = vec![];
        policy.masquerade = false;
        let text = plan(&policy).unwrap().to_string();
        compare(&text, "two-networks-open.nft");
    }

    #[test]
    fn every_rule_has_an_id_of_its_own() {
        let mut policy = Policy { forwards: vec![gitea()], admin_ports: vec![9090, 9091], ..seed() };
        policy.forwards.push(PortForward { protocol: Protocol::Udp, ..gitea() });
        let ruleset = plan(&policy).unwrap();
        let ids: Vec<_> = ruleset.chains.iter().flat_map(|chain| &chain.rules).map(|rule| &rule.id).collect();
        let distinct: BTreeSet<_> = ids.iter().collect();
        assert_eq!(ids.len(), distinct.len(), "{ids:?}");
    }

    #[test]
    fn uplink_subnets_that_overlap_or_touch_become_one_range() {
        let nets = [net(10, 0, 1, 9, 24), net(10, 0, 0, 7, 24), net(10, 0, 0, 3, 28), net(172, 16, 0, 1, 30)];
        assert_eq!(
            merged(&nets),
            [
                (Ipv4Addr::new(10, 0, 0, 0), Ipv4Addr::new(10, 0, 1, 255)),
                (Ipv4Addr::new(172, 16, 0, 0), Ipv4Addr::new(172, 16, 0, 3)),
            ]
        );
        assert_eq!(merged(&[net(1, 2, 3, 4, 0), net(255, 255, 255, 255, 32)]).len(), 1);
    }

    #[test]
    fn fingerprints_follow_the_rule() {
        let rules = plan(&seed()).unwrap();
        let open = plan(&Policy { wan_interface: "eth9".into(), ..seed() }).unwrap();
        let of = |ruleset: &Ruleset, id| ruleset.rule(id).unwrap().fingerprint();
        assert_eq!(of(&rules, "from-lan"), of(&open, "from-lan"));
        assert_ne!(of(&rules, "leased-out"), of(&open, "leased-out"));
    }

    #[test]
    fn what_the_kernel_would_not_take_is_refused_with_a_reason() {
        let with_wan = |name: &str| plan(&Policy { wan_interface: name.into(), ..seed() }).unwrap_err();
        for bad in ["", "sixteen-bytes-xx", "a b", "a\"b", "eth*", "a/b"] {
            assert_eq!(with_wan(bad), PlanError::InterfaceName(bad.into()));
        }
        assert_eq!(with_wan("eth1"), PlanError::InterfaceTwice("eth1".into()));
        let twice = Policy { forwards: vec![gitea(), gitea()], ..seed() };
        assert_eq!(plan(&twice).unwrap_err(), PlanError::ForwardTwice(Protocol::Tcp, 2222));
        let table = Policy { table_name: "a; flush ruleset".into(), ..seed() };
        assert!(matches!(plan(&table).unwrap_err(), PlanError::TableName(_)));
    }
}
