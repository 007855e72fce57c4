//! Ruleset → netlink messages, by libnftnl.

#![allow(unsafe_code)] // libnftnl writes into buffers by pointer.

use crate::netlink::Message;
use crate::nft_elements::{IFNAME_LEN, elements, ifname, planned_elements, userdata};
use crate::policy::{Ipv4Net, Protocol};
use crate::ruleset::{Chain, Hook, Match, Rule, Ruleset, Set, SetContent, Verdict};
use nftnl::expr::{
    Bitwise, Cmp, CmpOp, ConntrackStatus, Expression, IcmpCode, Immediate, Lookup, Masquerade, Meta, Nat,
    NatType, Register, RejectionType, States,
};
use nftnl::set::SetKey;
use nftnl::{ChainType, MsgType, NlMsg, ProtoFamily, nft_expr};
use nftnl_sys as sys;
use std::collections::BTreeMap;
use std::ffi::CString;
use std::net::Ipv4Addr;

/// Family of our table.
pub(crate) const FAMILY: u8 = libc::NFPROTO_INET as u8;
// linux/netfilter/nf_tables.h
const NFTA_RULE_USERDATA: u16 = 7;
const NFTA_SET_USERDATA: u16 = 13;

/// Set userdata entry that tells `nft` the byte order of keys.
const UDATA_SET_KEY_BYTE_ORDER: u8 = 0;
const HOST_BYTE_ORDER: u32 = 1;

/// A message and what to call it when the kernel refuses it.
pub(crate) type Step = (String, Message);

/// Packets and bytes counted by a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counter {
    /// Packets.
    pub packets: u64,
    /// Bytes, IP headers included.
    pub bytes: u64,
}

/// What makes the table anew: create (so that delete cannot fail), delete, create, fill. Counters start
/// from `counters`, by rule id.
pub(crate) fn replace_table(ruleset: &Ruleset, counters: &BTreeMap<String, Counter>) -> Vec<Step> {
    let mut steps = delete_table(&ruleset.table);
    let table = nftnl::Table::new(c_string(&ruleset.table), ProtoFamily::Inet);
    steps.push((format!("create table {}", ruleset.table), message(&table, MsgType::Add)));
    let mut sets = BTreeMap::new();
    for (id, set) in ruleset.sets.iter().enumerate() {
        let kernel = AnySet::new(set, id as u32 + 1, &table);
        steps.push((format!("create set {}", set.name), kernel.message()));
        steps.extend(elements(libc::NFT_MSG_NEWSETELEM, &ruleset.table, set.name, &planned_elements(set)));
        sets.insert(set.name, kernel);
    }
    for chain in &ruleset.chains {
        let kernel = base_chain(chain, &table);
        steps.push((format!("create chain {}", chain.name), message(&kernel, MsgType::Add)));
        for rule in &chain.rules {
            let step = format!("add rule {} to chain {}", rule.id, chain.name);
            let counter = counters.get(&rule.id).copied().unwrap_or_default();
            steps.push((step, rule_message(rule, &kernel, &sets, counter)));
        }
    }
    steps
}

/// What removes the table, whether it is there or not.
pub(crate) fn delete_table(name: &str) -> Vec<Step> {
    let table = nftnl::Table::new(c_string(name), ProtoFamily::Inet);
    vec![
        (format!("create table {name}"), message(&table, MsgType::Add)),
        (format!("delete table {name}"), message(&table, MsgType::Del)),
    ]
}

enum AnySet<'a> {
    Addresses(nftnl::set::Set<'a, Ipv4Addr>),
    Interfaces(nftnl::set::Set<'a, InterfaceKey>),
}

impl<'a> AnySet<'a> {
    fn new(set: &Set, id: u32, table: &'a nftnl::Table) -> Self {
        let name = c_string(set.name);
        if let SetContent::Interfaces(_) = set.content {
            return AnySet::Interfaces(nftnl::set::Set::new_named(&name, id, table, ProtoFamily::Inet));
        }
        let kernel = nftnl::set::Set::new_named(&name, id, table, ProtoFamily::Inet);
        let option = match set.content {
            SetContent::Ranges(_) => Some((sys::NFTNL_SET_FLAGS, libc::NFT_SET_INTERVAL as u32)),
            SetContent::Leased { size } => Some((sys::NFTNL_SET_DESC_SIZE, size)),
            _ => None,
        };
        if let Some((attribute, value)) = option {
            // SAFETY: the pointer is valid for as long as `kernel` lives; both attributes are u32.
            unsafe { sys::nftnl_set_set_u32(kernel.as_ptr().as_ptr(), attribute as u16, value) };
        }
        AnySet::Addresses(kernel)
    }

    fn message(&self) -> Message {
        match self {
            AnySet::Addresses(set) => message(set, MsgType::Add),
            AnySet::Interfaces(set) => {
                let mut message = message(set, MsgType::Add);
                // Without it `nft list` reads the names backwards.
                let mut userdata = vec![UDATA_SET_KEY_BYTE_ORDER, 4];
                userdata.extend(HOST_BYTE_ORDER.to_ne_bytes());
                message.put(NFTA_SET_USERDATA, &userdata);
                message
            }
        }
    }

    fn lookup(&self) -> Lookup {
        match self {
            AnySet::Addresses(set) => Lookup::new(set),
            AnySet::Interfaces(set) => Lookup::new(set),
        }
    }
}

struct InterfaceKey([u8; IFNAME_LEN]);

impl SetKey for InterfaceKey {
    /// `nft`'s number for the type `ifname`.
    const TYPE: u32 = 41;
    const LEN: u32 = IFNAME_LEN as u32;

    fn data(&self) -> Box<[u8]> {
        Box::new(self.0)
    }
}

fn base_chain<'a>(chain: &Chain, table: &'a nftnl::Table) -> nftnl::Chain<'a> {
    let mut kernel = nftnl::Chain::new(c_string(chain.name), table);
    let (kind, hook) = match chain.hook {
        Hook::Prerouting => (ChainType::Nat, nftnl::Hook::PreRouting),
        Hook::Input => (ChainType::Filter, nftnl::Hook::In),
        Hook::Forward => (ChainType::Filter, nftnl::Hook::Forward),
        Hook::Postrouting => (ChainType::Nat, nftnl::Hook::PostRouting),
    };
    kernel.set_hook(hook, chain.hook.priority());
    kernel.set_type(kind);
    kernel.set_policy(nftnl::Policy::Accept);
    kernel
}

fn rule_message(
    rule: &Rule,
    chain: &nftnl::Chain<'_>,
    sets: &BTreeMap<&'static str, AnySet<'_>>,
    counter: Counter,
) -> Message {
    let mut kernel = nftnl::Rule::new(chain);
    let mut ipv4_known = false;
    for condition in &rule.matches {
        add_match(&mut kernel, condition, sets, &mut ipv4_known);
    }
    if rule.counted {
        kernel.add_expr(&StartedCounter(counter));
    }
    add_verdict(&mut kernel, rule.verdict);
    let mut message = message(&kernel, MsgType::Add);
    message.put(NFTA_RULE_USERDATA, &userdata(rule));
    message
}

fn add_match(
    rule: &mut nftnl::Rule<'_>,
    condition: &Match,
    sets: &BTreeMap<&'static str, AnySet<'_>>,
    ipv4_known: &mut bool,
) {
    // An address can only be read from the packet once it is known to be IPv4: once per rule.
    let mut require_ipv4 = |rule: &mut nftnl::Rule<'_>| {
        if !std::mem::replace(ipv4_known, true) {
            rule.add_expr(&Meta::NfProto);
            rule.add_expr(&Cmp::new(CmpOp::Eq, libc::NFPROTO_IPV4 as u8));
        }
    };
    // Plans name only sets they define; a rule that lost its set must match nothing rather than everything.
    let look_up = |rule: &mut nftnl::Rule<'_>, set: &str| match sets.get(set) {
        Some(set) => rule.add_expr(&set.lookup()),
        None => rule.add_expr(&nft_expr!(verdict break)),
    };
    match condition {
        Match::InputInterface(name) => {
            rule.add_expr(&Meta::IifName);
            rule.add_expr(&Cmp::new(CmpOp::Eq, &ifname(name)[..]));
        }
        Match::OutputInterface(name) => {
            rule.add_expr(&Meta::OifName);
            rule.add_expr(&Cmp::new(CmpOp::Eq, &ifname(name)[..]));
        }
        Match::InputInterfaceIn(set) => {
            rule.add_expr(&Meta::IifName);
            look_up(rule, set);
        }
        Match::OutputInterfaceIn(set) => {
            rule.add_expr(&Meta::OifName);
            look_up(rule, set);
        }
        Match::Established => add_state(rule, States::ESTABLISHED | States::RELATED),
        Match::Invalid => add_state(rule, States::INVALID),
        Match::DestinationTranslated => {
            rule.add_expr(&nft_expr!(ct status));
            add_any_bit(rule, ConntrackStatus::DST_NAT.bits());
        }
        Match::Ipv4 => require_ipv4(rule),
        Match::Source(net) => {
            require_ipv4(rule);
            rule.add_expr(&nft_expr!(payload ipv4 saddr));
            add_subnet(rule, *net, CmpOp::Eq);
        }
        Match::SourceNot(net) => {
            require_ipv4(rule);
            rule.add_expr(&nft_expr!(payload ipv4 saddr));
            add_subnet(rule, *net, CmpOp::Neq);
        }
        Match::Destination(net) => {
            require_ipv4(rule);
            rule.add_expr(&nft_expr!(payload ipv4 daddr));
            add_subnet(rule, *net, CmpOp::Eq);
        }
        Match::SourceIn(set) => {
            require_ipv4(rule);
            rule.add_expr(&nft_expr!(payload ipv4 saddr));
            look_up(rule, set);
        }
        Match::DestinationIn(set) => {
            require_ipv4(rule);
            rule.add_expr(&nft_expr!(payload ipv4 daddr));
            look_up(rule, set);
        }
        Match::Port(protocol, port) => {
            let number = match protocol {
                Protocol::Tcp => libc::IPPROTO_TCP,
                Protocol::Udp => libc::IPPROTO_UDP,
            };
            rule.add_expr(&Meta::L4Proto);
            rule.add_expr(&Cmp::new(CmpOp::Eq, number as u8));
            rule.add_expr(&nft_expr!(payload tcp dport)); // UDP has its port at the same place
            rule.add_expr(&Cmp::new(CmpOp::Eq, &port.to_be_bytes()[..]));
        }
    }
}

fn add_state(rule: &mut nftnl::Rule<'_>, states: States) {
    rule.add_expr(&nft_expr!(ct state));
    add_any_bit(rule, states.bits());
}

/// Holds if the register has any of the bits.
fn add_any_bit(rule: &mut nftnl::Rule<'_>, bits: u32) {
    rule.add_expr(&Bitwise::new(bits, 0u32));
    rule.add_expr(&Cmp::new(CmpOp::Neq, 0u32));
}

fn add_subnet(rule: &mut nftnl::Rule<'_>, net: Ipv4Net, op: CmpOp) {
    if net.prefix < 32 {
        rule.add_expr(&Bitwise::new(net.mask(), Ipv4Addr::UNSPECIFIED));
    }
    rule.add_expr(&Cmp::new(op, net.network()));
}

fn add_verdict(rule: &mut nftnl::Rule<'_>, verdict: Verdict) {
    match verdict {
        Verdict::Accept => rule.add_expr(&nft_expr!(verdict accept)),
        Verdict::Drop => rule.add_expr(&nft_expr!(verdict drop)),
        Verdict::RejectProhibited => {
            rule.add_expr(&nftnl::expr::Verdict::Reject(RejectionType::Icmp(IcmpCode::AdminProhibited)));
        }
        Verdict::RejectReset => rule.add_expr(&nftnl::expr::Verdict::Reject(RejectionType::TcpRst)),
        Verdict::Masquerade => rule.add_expr(&Masquerade),
        Verdict::Dnat(to) => {
            rule.add_expr(&Immediate::new(to.ip().octets(), Register::Reg1));
            rule.add_expr(&Immediate::new(to.port().to_be_bytes(), Register::Reg2));
            rule.add_expr(&Nat {
                nat_type: NatType::DNat,
                family: ProtoFamily::Ipv4,
                ip_register: Register::Reg1,
                port_register: Some(Register::Reg2),
            });
        }
    }
}

/// A counter that does not start from zero, so that replacing the table loses no counts.
struct StartedCounter(Counter);

impl Expression for StartedCounter {
    fn to_expr(&self, rule: &nftnl::Rule<'_>) -> std::ptr::NonNull<sys::nftnl_expr> {
        let expr = nftnl::expr::Counter.to_expr(rule);
        // SAFETY: `expr` is a fresh counter expression; both attributes are u64.
        unsafe {
            sys::nftnl_expr_set_u64(expr.as_ptr(), sys::NFTNL_EXPR_CTR_PACKETS as u16, self.0.packets);
            sys::nftnl_expr_set_u64(expr.as_ptr(), sys::NFTNL_EXPR_CTR_BYTES as u16, self.0.bytes);
        }
        expr
    }
}

/// What libnftnl writes for an object, as bytes of our own.
fn message(object: &impl NlMsg, kind: MsgType) -> Message {
    // Words, because the header wants the alignment of a u32.
    let mut words = vec![0u64; (nftnl::nft_nlmsg_maxsize() as usize).div_ceil(8)];
    // SAFETY: `write` needs room for nft_nlmsg_maxsize() bytes, which the buffer has.
    unsafe { object.write(words.as_mut_ptr().cast(), 0, kind) };
    let bytes = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    Message::from_bytes(bytes).expect("libnftnl writes whole messages into a buffer of its own maximum size")
}

/// Plans hold no zero bytes (checked when planned); cut there if one ever does.
fn c_string(text: &str) -> CString {
    CString::new(text.split('\0').next().unwrap_or_default()).unwrap_or_default()
}
