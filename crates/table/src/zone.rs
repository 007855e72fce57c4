use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use crate::nodes::{NodeRef, Nodes};
use crate::{Name, Timestamp};

const NS: u16 = 2;

/// Authoritative data as the DNS hot path wants it: a query's lower-case name finds its node, and every
/// value is already in wire form.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Zones {
    apexes: Arc<[Apex]>,
    nodes: Nodes,
    /// How many names below an apex are delegated.
    cuts: usize,
    /// How many names outside the zones have records.
    foreign: usize,
}

/// The top of a zone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Apex {
    /// Name of the zone.
    pub name: Name,
    /// Name server, the appliance.
    pub primary: Name,
    /// Whether it is a reverse zone.
    pub reverse: bool,
}

/// What stands at one name. A node without RRsets is an empty non-terminal (RFC 8020): it answers NODATA.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// The RRsets, one for each type.
    pub rrsets: Vec<RRset>,
    /// How many nodes with RRsets lie below.
    pub below: u32,
}

/// All records of one type at one name (RFC 2181 §5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RRset {
    /// Type code.
    pub rtype: u16,
    /// Time to live in seconds, at most.
    pub ttl: u32,
    /// Nothing may be cached past this moment: the end of the lease behind the records.
    pub expires: Timestamp,
    /// Values in uncompressed wire form.
    pub rdata: Vec<Box<[u8]>>,
}

impl Zones {
    pub(crate) fn of(apexes: Vec<Apex>) -> Zones {
        Zones { apexes: apexes.into(), ..Zones::default() }
    }

    /// The zones, in no order.
    pub fn apexes(&self) -> &[Apex] {
        &self.apexes
    }

    /// The closest zone above a lower-case wire name; `None` when the name is not ours to answer.
    pub fn apex_of(&self, wire: &[u8]) -> Option<&Apex> {
        self.apexes
            .iter()
            .filter(|apex| is_suffix(wire, apex.name.as_wire()))
            .max_by_key(|apex| apex.name.as_wire().len())
    }

    /// The node at a lower-case wire name.
    pub fn node(&self, wire: &[u8]) -> Option<NodeRef<'_>> {
        self.nodes.get(wire)
    }

    /// The highest name between a zone's apex and a name in it that is delegated to other servers (RFC 1034 §4.2.1):
    /// it and what is below is theirs to answer.
    pub fn cut_above<'n>(&self, apex: &Apex, wire: &'n [u8]) -> Option<&'n [u8]> {
        if self.cuts == 0 {
            return None;
        }
        let (mut name, mut highest) = (wire, None);
        while name != apex.name.as_wire() && name.len() > 1 {
            if self.node(name).is_some_and(|node| node.rrsets().any(|rrset| rrset.rtype == NS)) {
                highest = Some(name);
            }
            name = &name[1 + usize::from(name[0])..];
        }
        highest
    }

    /// Whether any name outside the zones has records.
    pub fn has_foreign(&self) -> bool {
        self.foreign > 0
    }

    /// All names with RRsets, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], NodeRef<'_>)> {
        self.nodes.iter().filter(|(_, node)| !node.is_empty())
    }

    /// Puts these RRsets at these names, none to empty one; keeps the counts of the nodes above right.
    pub(crate) fn set(&mut self, changes: impl IntoIterator<Item = (Name, Vec<RRset>)>) {
        let mut changed: HashMap<Name, Node> = HashMap::new();
        for (name, rrsets) in changes {
            let apex = self.apex_of(name.as_wire()).map(|apex| apex.name.clone());
            let is_delegated = |rrsets: &[RRset]| rrsets.iter().any(|rrset| rrset.rtype == NS);
            let node = draft(&self.nodes, &mut changed, name.clone());
            let (was_empty, is_empty) = (node.rrsets.is_empty(), rrsets.is_empty());
            let (was_cut, is_cut) = (is_delegated(&node.rrsets), is_delegated(&rrsets));
            node.rrsets = rrsets;
            match &apex {
                Some(apex) if *apex != name => {
                    self.cuts = self.cuts + usize::from(is_cut) - usize::from(was_cut)
                }
                Some(_) => {}
                None => self.foreign = self.foreign + usize::from(was_empty) - usize::from(is_empty),
            }
            if was_empty == is_empty {
                continue;
            }
            let mut above = name;
            while Some(&above) != apex.as_ref()
                && let Some(parent) = above.parent()
            {
                above = parent.clone();
                let node = draft(&self.nodes, &mut changed, parent);
                node.below = if is_empty { node.below.saturating_sub(1) } else { node.below + 1 };
            }
        }
        let is_same = |name: &Name, node: &Node| match self.nodes.get(name.as_wire()) {
            Some(before) => before.to_node() == *node,
            None => *node == Node::default(),
        };
        changed.retain(|name, node| !is_same(name, node));
        self.nodes.put(changed);
    }
}

/// A node that is being changed, as it was if nothing was changed yet.
fn draft<'a>(nodes: &Nodes, changed: &'a mut HashMap<Name, Node>, name: Name) -> &'a mut Node {
    changed
        .entry(name)
        .or_insert_with_key(|name| nodes.get(name.as_wire()).map_or_else(Node::default, NodeRef::to_node))
}

impl RRset {
    pub(crate) fn address(ip: Ipv4Addr, ttl: u32, expires: Timestamp) -> RRset {
        RRset { rtype: 1, ttl, expires, rdata: vec![ip.octets().into()] }
    }

    pub(crate) fn name(rtype: u16, target: &Name, ttl: u32, expires: Timestamp) -> RRset {
        RRset { rtype, ttl, expires, rdata: vec![target.as_wire().into()] }
    }
}

/// Whether `suffix` ends `name` at a label boundary; both well-formed wire names.
fn is_suffix(name: &[u8], suffix: &[u8]) -> bool {
    let mut at = 0;
    while name.len() - at > suffix.len() {
        at += 1 + usize::from(name[at]);
        if at >= name.len() {
            return false;
        }
    }
    name[at..] == *suffix
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_non_terminals_come_and_go_with_what_is_below() {
        let name = |text: &str| text.parse::<Name>().unwrap();
        let apex = Apex { name: name("prox.local"), primary: name("ns.prox.local"), reverse: false };
        let mut zones = Zones::of(vec![apex]);
        let rrset = RRset::address(Ipv4Addr::LOCALHOST, 60, Timestamp::NEVER);
        zones.set([(name("a.b.prox.local"), vec![rrset.clone()])]);
        zones.set([(name("a.b.prox.local"), vec![rrset.clone()])]);
        assert_eq!(zones.node(name("b.prox.local").as_wire()).unwrap().below, 1);
        assert!(zones.node(name("local").as_wire()).is_none());
        zones.set([(name("b.prox.local"), vec![rrset])]);
        zones.set([(name("a.b.prox.local"), vec![])]);
        assert_eq!(zones.node(name("b.prox.local").as_wire()).unwrap().below, 0);
        zones.set([(name("b.prox.local"), vec![])]);
        assert_eq!(zones.nodes.iter().count(), 0);
    }

    #[test]
    fn delegations_and_foreign_names_are_counted() {
        let name = |text: &str| text.parse::<Name>().unwrap();
        let apex = Apex { name: name("prox.local"), primary: name("ns.prox.local"), reverse: false };
        let mut zones = Zones::of(vec![apex.clone()]);
        let ns = || vec![RRset::name(NS, &name("ns.else"), 60, Timestamp::NEVER)];
        let cut = |zones: &Zones, text: &str| {
            zones.cut_above(&apex, name(text).as_wire()).map(|cut| Name::from_wire(cut).unwrap().to_string())
        };
        zones.set([(name("prox.local"), ns())]);
        assert_eq!((cut(&zones, "a.prox.local"), zones.cuts), (None, 0), "an apex is no cut");
        zones.set([(name("lab.prox.local"), ns()), (name("x.lab.prox.local"), ns())]);
        zones.set([(name("lab.prox.local"), ns())]);
        for below in ["lab.prox.local", "a.lab.prox.local", "a.x.lab.prox.local"] {
            assert_eq!(cut(&zones, below).as_deref(), Some("lab.prox.local"));
        }
        assert_eq!(cut(&zones, "xlab.prox.local"), None);
        zones.set([(name("lab.prox.local"), vec![]), (name("x.lab.prox.local"), vec![])]);
        assert_eq!((cut(&zones, "a.lab.prox.local"), zones.cuts), (None, 0));
        let address = || vec![RRset::address(Ipv4Addr::LOCALHOST, 60, Timestamp::NEVER)];
        zones.set([(name("nas.example.com"), address()), (name("nas.example.com"), address())]);
        assert!(zones.has_foreign());
        zones.set([(name("nas.example.com"), vec![])]);
        assert!(!zones.has_foreign());
    }

    #[test]
    fn the_closest_zone_answers() {
        let name = |text: &str| text.parse::<Name>().unwrap();
        let apex = |text: &str| Apex { name: name(text), primary: name("ns.x"), reverse: false };
        let zones = Zones::of(vec![apex("prox.local"), apex("lab.prox.local")]);
        assert_eq!(zones.apex_of(name("a.lab.prox.local").as_wire()).unwrap().name, name("lab.prox.local"));
        assert_eq!(zones.apex_of(name("lab.prox.local").as_wire()).unwrap().name, name("lab.prox.local"));
        assert_eq!(zones.apex_of(name("xlab.prox.local").as_wire()).unwrap().name, name("prox.local"));
        assert!(zones.apex_of(name("local").as_wire()).is_none());
        assert!(zones.apex_of(&[0]).is_none());
    }
}
