//! Set elements and rule userdata, which the `nftnl` crate cannot write (elements it can, but not delete,
//! nor add where they may be there already). Pure.

use crate::netlink::{Attributes, Message};
use crate::nft_encode::{FAMILY, Step};
use crate::ruleset::{Rule, Set, SetContent};
use std::net::Ipv4Addr;

/// `ifname` registers and set keys are this long, padded with zeros.
pub(crate) const IFNAME_LEN: usize = 16;
/// Elements per message: 2,000 × 28 bytes stays under the 64 KiB an attribute can hold.
const ELEMENTS_PER_MESSAGE: usize = 2_000;

// linux/netfilter/nf_tables.h
pub(crate) const NFTA_SET_ELEM_LIST_TABLE: u16 = 1;
pub(crate) const NFTA_SET_ELEM_LIST_SET: u16 = 2;
pub(crate) const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_SET_ELEM_KEY: u16 = 1;
const NFTA_SET_ELEM_FLAGS: u16 = 3;
const NFTA_DATA_VALUE: u16 = 1;

/// Userdata entry `nft` shows as the rule's comment; a zero-terminated string.
const UDATA_COMMENT: u8 = 0;
/// Userdata entry of our own: the rule's fingerprint. `nft` skips entries it does not know.
const UDATA_FINGERPRINT: u8 = 0xf0;

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

/// Reads the elements of one `NFT_MSG_NEWSETELEM` list.
pub(crate) fn read_elements(list: &[u8]) -> Vec<Element> {
    let element = |(kind, item): (u16, _)| {
        let item = Attributes::nested(item);
        let key = Attributes::nested(item.find(NFTA_SET_ELEM_KEY)?).find(NFTA_DATA_VALUE)?;
        let flags = item.u32(NFTA_SET_ELEM_FLAGS).unwrap_or_default();
        let interval_end = flags & libc::NFT_SET_ELEM_INTERVAL_END as u32 != 0;
        (kind == NFTA_LIST_ELEM).then(|| Element { key: key.to_vec(), interval_end })
    };
    Attributes::nested(list).filter_map(element).collect()
}

/// An interface name as the kernel compares it: padded with zeros.
pub(crate) fn ifname(name: &str) -> [u8; IFNAME_LEN] {
    let mut bytes = [0; IFNAME_LEN];
    for (to, from) in bytes.iter_mut().zip(name.bytes().take(IFNAME_LEN - 1)) {
        *to = from;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ruleset::Verdict;

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
