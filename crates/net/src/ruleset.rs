//! The planned table as typed data. `Display` is `nft` syntax, so a plan can be read, compared in tests
//! and fed to `nft -f`.

use crate::policy::{Ipv4Net, Protocol};
use std::collections::BTreeSet;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};

/// Name of the set that holds the leased addresses; its elements live outside the plan.
pub const LEASED: &str = "leased";

/// One owned table of family `inet`.
///
/// `inet` rather than `ip`: the same few rules then also close IPv6 (an app's link-local address must not
/// reach the admin port, and nothing may be forwarded past the isolation over IPv6). NAT in `inet` tables
/// exists since Linux 5.2, below our floor of 5.10, and works in unprivileged user namespaces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ruleset {
    /// Table name.
    pub table: String,
    /// Named sets, in order of creation.
    pub sets: Vec<Set>,
    /// Base chains, in order of creation.
    pub chains: Vec<Chain>,
}

impl Ruleset {
    /// The set of that name.
    pub fn set(&self, name: &str) -> Option<&Set> {
        self.sets.iter().find(|set| set.name == name)
    }

    /// The rule with that id, in whichever chain.
    pub fn rule(&self, id: &str) -> Option<&Rule> {
        self.chains.iter().flat_map(|chain| &chain.rules).find(|rule| rule.id == id)
    }
}

/// A named set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    /// Name that rules refer to.
    pub name: &'static str,
    /// Elements.
    pub content: SetContent,
}

/// Elements of a set; the variant decides the set's type in the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SetContent {
    /// `ipv4_addr`, elements kept outside the plan: they change many times per ruleset.
    ///
    /// The size is fixed because the kernel's growing hash table rehashes in the background, and a list of
    /// its elements read meanwhile misses some.
    Leased {
        /// Most elements the set can hold.
        size: u32,
    },
    /// `ipv4_addr`
    Addresses(BTreeSet<Ipv4Addr>),
    /// `ipv4_addr` with `flags interval`; disjoint, not adjacent, ascending, inclusive at both ends.
    Ranges(Vec<(Ipv4Addr, Ipv4Addr)>),
    /// `ifname`
    Interfaces(BTreeSet<String>),
}

/// A base chain. Policy is always `accept`: we judge our own interfaces' traffic by rules and never break
/// another interface's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Chain name.
    pub name: &'static str,
    /// Where the chain hooks in; decides its type and priority as well.
    pub hook: Hook,
    /// Rules, first to last.
    pub rules: Vec<Rule>,
}

/// Hook of a base chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// `type nat hook prerouting priority dstnat`
    Prerouting,
    /// `type filter hook input priority filter`
    Input,
    /// `type filter hook forward priority filter`
    Forward,
    /// `type nat hook postrouting priority srcnat`
    Postrouting,
}

impl Hook {
    /// Chain type as the kernel names it.
    pub fn chain_type(self) -> &'static str {
        match self {
            Hook::Prerouting | Hook::Postrouting => "nat",
            Hook::Input | Hook::Forward => "filter",
        }
    }

    /// Priority number (`NF_IP_PRI_*`).
    pub fn priority(self) -> i32 {
        match self {
            Hook::Prerouting => -100,
            Hook::Input | Hook::Forward => 0,
            Hook::Postrouting => 100,
        }
    }

    /// Hook number (`NF_INET_*`).
    pub fn number(self) -> u32 {
        match self {
            Hook::Prerouting => 0,
            Hook::Input => 1,
            Hook::Forward => 2,
            Hook::Postrouting => 4,
        }
    }
}

/// A rule: all matches hold → verdict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Stable name: the rule's comment in the kernel and the key of its counter.
    pub id: String,
    /// Conditions, tested in order.
    pub matches: Vec<Match>,
    /// Whether packets and bytes are counted.
    pub counted: bool,
    /// What happens then.
    pub verdict: Verdict,
}

impl Rule {
    /// Fingerprint of what the rule does and of its name; kept with the rule in the kernel, so that a rule
    /// somebody replaced is noticed.
    pub fn fingerprint(&self) -> u64 {
        // FNV-1a: stable over builds and machines, unlike the standard library's hasher.
        self.to_string()
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
    }
}

/// A condition on a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Match {
    /// Came in on this interface.
    InputInterface(String),
    /// Came in on an interface of this set.
    InputInterfaceIn(&'static str),
    /// Leaves by this interface.
    OutputInterface(String),
    /// Leaves by an interface of this set.
    OutputInterfaceIn(&'static str),
    /// Connection is established or related to one that is.
    Established,
    /// Connection tracking cannot make sense of it.
    Invalid,
    /// The connection's destination was translated.
    DestinationTranslated,
    /// Is IPv4.
    Ipv4,
    /// Source address in the subnet.
    Source(Ipv4Net),
    /// IPv4 source address outside the subnet.
    SourceNot(Ipv4Net),
    /// Source address in this set.
    SourceIn(&'static str),
    /// Destination address in the subnet.
    Destination(Ipv4Net),
    /// Destination address in this set.
    DestinationIn(&'static str),
    /// Destination port.
    Port(Protocol, u16),
}

/// What happens to a packet that matched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Let it pass this table.
    Accept,
    /// Discard it silently.
    Drop,
    /// Discard it and answer "administratively prohibited" by ICMP.
    RejectProhibited,
    /// Discard it and reset the TCP connection.
    RejectReset,
    /// Give it the address of the interface it leaves by.
    Masquerade,
    /// Send it elsewhere.
    Dnat(SocketAddrV4),
}

impl fmt::Display for Ruleset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "table inet {} {{", self.table)?;
        for set in &self.sets {
            writeln!(f, "{set}")?;
        }
        for (i, chain) in self.chains.iter().enumerate() {
            writeln!(f, "{}{chain}", if i == 0 { "" } else { "\n" })?;
        }
        writeln!(f, "}}")
    }
}

impl fmt::Display for Set {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, elements) = match &self.content {
            SetContent::Leased { size } => (format!("ipv4_addr\n\t\tsize {size}"), String::new()),
            SetContent::Addresses(all) => ("ipv4_addr".to_owned(), join(all.iter())),
            SetContent::Ranges(all) => {
                let kind = "ipv4_addr\n\t\tflags interval".to_owned();
                (kind, join(all.iter().map(|(first, last)| format!("{first}-{last}"))))
            }
            SetContent::Interfaces(all) => {
                ("ifname".to_owned(), join(all.iter().map(|name| format!("\"{name}\""))))
            }
        };
        writeln!(f, "\tset {} {{\n\t\ttype {kind}", self.name)?;
        if !elements.is_empty() {
            writeln!(f, "\t\telements = {{ {elements} }}")?;
        }
        writeln!(f, "\t}}")
    }
}

fn join<T: ToString>(items: impl Iterator<Item = T>) -> String {
    items.map(|item| item.to_string()).collect::<Vec<_>>().join(", ")
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (hook, priority) = match self.hook {
            Hook::Prerouting => ("prerouting", "dstnat"),
            Hook::Input => ("input", "filter"),
            Hook::Forward => ("forward", "filter"),
            Hook::Postrouting => ("postrouting", "srcnat"),
        };
        writeln!(f, "\tchain {} {{", self.name)?;
        let kind = self.hook.chain_type();
        writeln!(f, "\t\ttype {kind} hook {hook} priority {priority}; policy accept;")?;
        for rule in &self.rules {
            writeln!(f, "\t\t{rule}")?;
        }
        write!(f, "\t}}")
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for condition in &self.matches {
            write!(f, "{condition} ")?;
        }
        if self.counted {
            f.write_str("counter ")?;
        }
        write!(f, "{} comment \"{}\"", self.verdict, self.id)
    }
}

impl fmt::Display for Match {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Match::InputInterface(name) => write!(f, "iifname \"{name}\""),
            Match::InputInterfaceIn(set) => write!(f, "iifname @{set}"),
            Match::OutputInterface(name) => write!(f, "oifname \"{name}\""),
            Match::OutputInterfaceIn(set) => write!(f, "oifname @{set}"),
            Match::Established => f.write_str("ct state established,related"),
            Match::Invalid => f.write_str("ct state invalid"),
            Match::DestinationTranslated => f.write_str("ct status dnat"),
            Match::Ipv4 => f.write_str("meta nfproto ipv4"),
            Match::Source(net) => write!(f, "ip saddr {net}"),
            Match::SourceNot(net) => write!(f, "ip saddr != {net}"),
            Match::SourceIn(set) => write!(f, "ip saddr @{set}"),
            Match::Destination(net) => write!(f, "ip daddr {net}"),
            Match::DestinationIn(set) => write!(f, "ip daddr @{set}"),
            Match::Port(protocol, port) => write!(f, "{protocol} dport {port}"),
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Accept => f.write_str("accept"),
            Verdict::Drop => f.write_str("drop"),
            Verdict::RejectProhibited => f.write_str("reject with icmpx admin-prohibited"),
            Verdict::RejectReset => f.write_str("reject with tcp reset"),
            Verdict::Masquerade => f.write_str("masquerade"),
            Verdict::Dnat(to) => write!(f, "dnat ip to {to}"),
        }
    }
}
