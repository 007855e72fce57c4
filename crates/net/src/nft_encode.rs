//! Ruleset → netlink messages, by libnftnl. Set elements and rule userdata, which the `nftnl` crate cannot
//! write, are written here.

#![allow(unsafe_code)] // libnftnl writes into buffers by pointer.

use crate::netlink::Message;
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
/// `ifname` registers and set keys are this long, padded with zeros.
const IFNAME_LEN: usize = 16;
/// Elements per message: 2,000 × 28 bytes stays under the 64 KiB an attribute can hold.
const ELEMENTS_PER_MESSAGE: usize = 2_000;

// linux/netfilter/nf_tables.h
const NFTA_SET_ELEM_LIST_TABLE: u16 = 1;
const NFTA_SET_ELEM_LIST_SET: u16 = 2;
pub(crate) const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
pub(crate) const NFTA_LIST_ELEM: u16 = 1;
pub(crate) const NFTA_SET_ELEM_KEY: u16 = 1;
pub(crate) const NFTA_SET_ELEM_FLAGS: u16 = 3;
pub(crate) const NFTA_DATA_VALUE: u16 = 1;
pub(crate) const NFTA_RULE_USERDATA: u16 = 7;

const NFTA_SET_USERDATA: u16 = 13;

/// Set userdata entry that tells `nft` the byte order of keys.
const UDATA_SET_KEY_BYTE_ORDER: u8 = 0;
const HOST_BYTE_ORDER: u32 = 1;
/// Userdata entry `nft` shows as the rule's comment; a zero-terminated string.
const UDATA_COMMENT: u8 = 0;
/// Userdata entry of our own: the rule's fingerprint. `nft` skips entries it does not know.
const UDATA_FINGERPRINT: u8 = 0xf0;

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

/// A set element as the kernel keeps it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Element {
    pub(crate) key: Vec<u8>,
    /// The element ends an interval (and is itself no part of it).
    pub(crate) interval_end: bool,
}

impl Element {
    pub(crate) fn address(address: Ipv4Addr) -> Self {
        Element { key: address.octets().to_vec(), interval_end: false }
    }
}

/// The elements a planned set has in the kernel. None for [`SetContent::Leased`].
pub(crate) fn planned_elements(set: &Set) -> Vec<Element> {
    match &set.content {
        SetContent::Leased { .. } => Vec::new(),
        SetContent::Addresses(all) => all.iter().copied().map(Element::address).collect(),
        SetContent::Interfaces(all) => {
            all.iter().map(|name| Element { key: ifname(name).to_vec(), interval_end: false }).collect()
        }
        SetContent::Ranges(all) => {
            let ends = |&(first, last): &(Ipv4Addr, Ipv4Addr)| {
                let after = last.to_bits().checked_add(1).map(Ipv4Addr::from_bits);
                let end = after.map(|after| Element { interval_end: true, ..Element::address(after) });
                std::iter::once(Element::address(first)).chain(end)
            };
            all.iter().flat_map(ends).collect()
        }
    }
}

/// Adds (`NFT_MSG_NEWSETELEM`; those already there are fine) or deletes (`NFT_MSG_DELSETELEM`; all must be
/// there) elements, split over as many messages as needed.
pub(crate) fn elements(kind: i32, table: &str, set: &str, elements: &[Element]) -> Vec<Step> {
    let (verb, flags) = match kind {
        libc::NFT_MSG_NEWSETELEM => ("add to", libc::NLM_F_CREATE),
        _ => ("delete from", 0),
    };
    let step = |chunk: &[Element]| {
        let mut message = Message::new(kind, flags, FAMILY);
        message.put_str(NFTA_SET_ELEM_LIST_TABLE, table);
        message.put_str(NFTA_SET_ELEM_LIST_SET, set);
        message.nest(NFTA_SET_ELEM_LIST_ELEMENTS, |list| {
            for element in chunk {
                list.nest(NFTA_LIST_ELEM, |item| {
                    if element.interval_end {
                        item.put_u32(NFTA_SET_ELEM_FLAGS, libc::NFT_SET_ELEM_INTERVAL_END as u32);
                    }
                    item.nest(NFTA_SET_ELEM_KEY, |key| key.put(NFTA_DATA_VALUE, &element.key));
                });
            }
        });
        (format!("{verb} set {set}"), message)
    };
    elements.chunks(ELEMENTS_PER_MESSAGE).map(step).collect()
}

/// The userdata of a rule: comment and fingerprint, each as type, length, value.
pub(crate) fn userdata(rule: &Rule) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut comment = rule.id.clone().into_bytes();
    comment.truncate(127);
    comment.push(0);
    for (kind, value) in
        [(UDATA_COMMENT, &comment[..]), (UDATA_FINGERPRINT, &rule.fingerprint().to_be_bytes())]
    {
        bytes.extend([kind, value.len() as u8]);
        bytes.extend_from_slice(value);
    }
    bytes
}

/// Reads a rule's userdata: its comment and its fingerprint.
pub(crate) fn read_userdata(mut bytes: &[u8]) -> (Option<String>, Option<u64>) {
    let (mut comment, mut fingerprint) = (None, None);
    while let [kind, len, rest @ ..] = bytes {
        let Some((value, next)) = rest.split_at_checked(usize::from(*len)) else { break };
        match *kind {
            UDATA_COMMENT => {
                comment =
                    Some(String::from_utf8_lossy(value.strip_suffix(&[0]).unwrap_or(value)).into_owned());
            }
            UDATA_FINGERPRINT => fingerprint = value.try_into().ok().map(u64::from_be_bytes),
            _ => {}
        }
        bytes = next;
    }
    (comment, fingerprint)
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
    if net.prefix_len() < 32 {
        rule.add_expr(&Bitwise::new(net.mask(), Ipv4Addr::UNSPECIFIED));
    }
    rule.add_expr(&Cmp::new(op, net.network().addr()));
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

fn ifname(name: &str) -> [u8; IFNAME_LEN] {
    let mut bytes = [0; IFNAME_LEN];
    for (to, from) in bytes.iter_mut().zip(name.bytes().take(IFNAME_LEN - 1)) {
        *to = from;
    }
    bytes
}

/// Plans hold no zero bytes (checked when planned); cut there if one ever does.
fn c_string(text: &str) -> CString {
    CString::new(text.split('\0').next().unwrap_or_default()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn userdata_reads_back_and_damage_is_harmless() {
        let rule = Rule { id: "leased-out".into(), matches: vec![], counted: true, verdict: Verdict::Accept };
        let bytes = userdata(&rule);
        assert_eq!(read_userdata(&bytes), (Some("leased-out".into()), Some(rule.fingerprint())));
        for end in 0..bytes.len() {
            assert_eq!(read_userdata(&bytes[..end]).1, None);
        }
        assert_eq!(read_userdata(&[0, 255, 1]), (None, None));
    }

    #[test]
    fn ranges_up_to_the_last_address_have_no_end() {
        let set = |first, last| Set { name: "s", content: SetContent::Ranges(vec![(first, last)]) };
        let all = planned_elements(&set(Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST));
        assert_eq!(all, [Element::address(Ipv4Addr::UNSPECIFIED)]);
        let some = planned_elements(&set(Ipv4Addr::new(10, 0, 0, 0), Ipv4Addr::new(10, 0, 0, 255)));
        assert_eq!(some[1], Element { key: vec![10, 0, 1, 0], interval_end: true });
    }

    #[test]
    fn many_elements_are_split_into_messages_an_attribute_can_hold() {
        let addresses: Vec<_> = (0..5_000u32).map(|n| Element::address(Ipv4Addr::from_bits(n))).collect();
        let steps = elements(libc::NFT_MSG_NEWSETELEM, "t", "s", &addresses);
        assert_eq!(steps.len(), 3);
        assert!(steps.into_iter().all(|(_, message)| message.finish(0, false).len() < 65_000));
    }
}
