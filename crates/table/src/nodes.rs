use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::zone::{Node, RRset};
use crate::{Name, Timestamp};

/// Children of the root, and shards of each: 1,024 in all, so that of a hundred thousand names a change copies some
/// hundred, and two levels of pointers stay in the processor's cache.
const FANOUT: usize = 32;
/// A place of a shard's index where nothing is.
const NOWHERE: u32 = u32::MAX;

/// Names and what stands at them, made for looking up: a name costs two places in memory, its place in an index and
/// the octets that hold the name and its records, whether there are ten or a hundred thousand.
///
/// It is a value: a clone is cheap, and what a change leaves alone is shared with the clone.
#[derive(Clone)]
pub struct Nodes {
    root: Arc<[Arc<[Arc<Shard>; FANOUT]>; FANOUT]>,
}

/// The nodes whose names have the same first bits in their hash. The same nodes make the same octets in whatever order
/// they came.
#[derive(Default, PartialEq, Eq)]
struct Shard {
    /// A hash table with open addressing: the rest of the hash, and where in `octets`; at most half full.
    index: Box<[(u32, u32)]>,
    /// Each name in wire form and its node, in the order of the names.
    octets: Box<[u8]>,
}

/// A node as it stands among the octets of its shard.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct NodeRef<'a> {
    /// How many nodes with RRsets lie below.
    pub below: u32,
    count: u16,
    octets: &'a [u8],
}

/// An RRset as it stands there.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct RRsetRef<'a> {
    /// Type code.
    pub rtype: u16,
    /// Time to live in seconds, at most.
    pub ttl: u32,
    /// Nothing may be cached past this moment.
    pub expires: Timestamp,
    count: u16,
    octets: &'a [u8],
}

impl Nodes {
    /// The node at a lower-case wire name.
    pub fn get(&self, wire: &[u8]) -> Option<NodeRef<'_>> {
        let hash = hash(wire);
        self.shard(hash).get(wire, hash as u32)
    }

    /// All names and their nodes, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], NodeRef<'_>)> {
        self.root.iter().flat_map(|branch| branch.iter()).flat_map(|shard| shard.iter())
    }

    /// Puts these nodes at these names; an empty node is removed.
    pub fn put(&mut self, changes: impl IntoIterator<Item = (Name, Node)>) {
        let mut by_shard: BTreeMap<usize, BTreeMap<Name, Node>> = BTreeMap::new();
        for (name, node) in changes {
            by_shard.entry(place(hash(name.as_wire()))).or_default().insert(name, node);
        }
        for (place, changes) in by_shard {
            let branch = &mut Arc::make_mut(&mut self.root)[place / FANOUT];
            let shard = &mut Arc::make_mut(branch)[place % FANOUT];
            *shard = Arc::new(shard.with(changes));
        }
    }

    fn shard(&self, hash: u64) -> &Shard {
        let place = place(hash);
        &self.root[place / FANOUT][place % FANOUT]
    }
}

impl Default for Nodes {
    fn default() -> Nodes {
        let empty = Arc::<Shard>::default();
        let branch = Arc::new(std::array::from_fn(|_| empty.clone()));
        Nodes { root: Arc::new(std::array::from_fn(|_| branch.clone())) }
    }
}

impl PartialEq for Nodes {
    fn eq(&self, other: &Nodes) -> bool {
        let shards = |nodes: &Nodes| nodes.root.iter().flat_map(|branch| branch.to_vec()).collect::<Vec<_>>();
        shards(self) == shards(other)
    }
}

impl Eq for Nodes {}

impl fmt::Debug for Nodes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter().map(|(name, node)| (Name::from_wire(name), node))).finish()
    }
}

impl Shard {
    fn get(&self, wire: &[u8], tag: u32) -> Option<NodeRef<'_>> {
        let mask = self.index.len().checked_sub(1)?;
        let mut at = tag as usize & mask;
        loop {
            let (found, offset) = self.index[at];
            if offset == NOWHERE {
                return None;
            }
            if found == tag
                && let Some(rest) = self.octets[offset as usize..].strip_prefix(wire)
            {
                return Some(NodeRef::read(rest).0);
            }
            at = (at + 1) & mask;
        }
    }

    fn iter(&self) -> impl Iterator<Item = (&[u8], NodeRef<'_>)> {
        let mut rest = &*self.octets;
        std::iter::from_fn(move || {
            let (name, behind) = rest.split_at(name_length(rest)?);
            let (node, behind) = NodeRef::read(behind);
            rest = behind;
            Some((name, node))
        })
    }

    /// This one with other nodes at these names.
    fn with(&self, changes: BTreeMap<Name, Node>) -> Shard {
        let mut next = Draft::default();
        let mut changes = changes.into_iter().peekable();
        for (name, node) in self.iter() {
            while let Some((changed, new)) = changes.next_if(|(changed, _)| changed.as_wire() < name) {
                next.add_new(&changed, &new);
            }
            match changes.next_if(|(changed, _)| changed.as_wire() == name) {
                Some((changed, new)) => next.add_new(&changed, &new),
                None => next.add(name, node),
            }
        }
        changes.for_each(|(name, node)| next.add_new(&name, &node));
        Shard { index: index(&next.offsets), octets: next.octets.into() }
    }
}

/// A shard that is being written.
#[derive(Default)]
struct Draft {
    octets: Vec<u8>,
    /// What the index is made of.
    offsets: Vec<(u32, u32)>,
}

impl Draft {
    fn add(&mut self, name: &[u8], node: NodeRef<'_>) {
        self.offsets.push((hash(name) as u32, self.octets.len() as u32));
        self.octets.extend_from_slice(name);
        node.write(&mut self.octets);
    }

    fn add_new(&mut self, name: &Name, node: &Node) {
        if *node != Node::default() {
            let mut octets = Vec::new();
            node.rrsets.iter().for_each(|rrset| rrset.write(&mut octets));
            let count = node.rrsets.len() as u16;
            self.add(name.as_wire(), NodeRef { below: node.below, count, octets: &octets });
        }
    }
}

impl<'a> NodeRef<'a> {
    /// The RRsets, one for each type.
    pub fn rrsets(self) -> impl Iterator<Item = RRsetRef<'a>> {
        let mut rest = self.octets;
        (0..self.count).map(move |_| {
            let (rrset, behind) = RRsetRef::read(rest);
            rest = behind;
            rrset
        })
    }

    /// Whether there is none: an empty non-terminal.
    pub fn is_empty(self) -> bool {
        self.count == 0
    }

    /// A node of its own.
    pub fn to_node(self) -> Node {
        Node { rrsets: self.rrsets().map(RRsetRef::to_rrset).collect(), below: self.below }
    }

    /// Reads a node, and gives what is behind it.
    fn read(octets: &'a [u8]) -> (NodeRef<'a>, &'a [u8]) {
        let (below, rest) = number::<4>(octets);
        let (count, rest) = number::<2>(rest);
        let (length, rest) = number::<4>(rest);
        let (octets, behind) = rest.split_at(u32::from_be_bytes(length) as usize);
        let (below, count) = (u32::from_be_bytes(below), u16::from_be_bytes(count));
        (NodeRef { below, count, octets }, behind)
    }

    fn write(self, to: &mut Vec<u8>) {
        to.extend_from_slice(&self.below.to_be_bytes());
        to.extend_from_slice(&self.count.to_be_bytes());
        to.extend_from_slice(&(self.octets.len() as u32).to_be_bytes());
        to.extend_from_slice(self.octets);
    }
}

impl<'a> RRsetRef<'a> {
    /// The values in uncompressed wire form.
    pub fn rdata(self) -> impl Iterator<Item = &'a [u8]> {
        let mut rest = self.octets;
        (0..self.count).map(move |_| {
            let (length, behind) = number::<2>(rest);
            let (rdata, behind) = behind.split_at(u16::from_be_bytes(length).into());
            rest = behind;
            rdata
        })
    }

    fn to_rrset(self) -> RRset {
        let rdata = self.rdata().map(Box::from).collect();
        RRset { rtype: self.rtype, ttl: self.ttl, expires: self.expires, rdata }
    }

    fn read(octets: &'a [u8]) -> (RRsetRef<'a>, &'a [u8]) {
        let (rtype, rest) = number::<2>(octets);
        let (ttl, rest) = number::<4>(rest);
        let (expires, rest) = number::<8>(rest);
        let (count, rest) = number::<2>(rest);
        let (length, rest) = number::<4>(rest);
        let (octets, behind) = rest.split_at(u32::from_be_bytes(length) as usize);
        let rrset = RRsetRef {
            rtype: u16::from_be_bytes(rtype),
            ttl: u32::from_be_bytes(ttl),
            expires: Timestamp(u64::from_be_bytes(expires)),
            count: u16::from_be_bytes(count),
            octets,
        };
        (rrset, behind)
    }
}

impl fmt::Debug for NodeRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_node().fmt(f)
    }
}

impl RRset {
    fn write(&self, to: &mut Vec<u8>) {
        to.extend_from_slice(&self.rtype.to_be_bytes());
        to.extend_from_slice(&self.ttl.to_be_bytes());
        to.extend_from_slice(&self.expires.0.to_be_bytes());
        // A value is at most as long as a message, and so are all of them: what does not fit is not written.
        let values =
            self.rdata.iter().map(|rdata| &**rdata).filter(|rdata| rdata.len() <= usize::from(u16::MAX));
        let values: Vec<&[u8]> = values.take(usize::from(u16::MAX)).collect();
        to.extend_from_slice(&(values.len() as u16).to_be_bytes());
        let length: usize = values.iter().map(|rdata| 2 + rdata.len()).sum();
        to.extend_from_slice(&(length as u32).to_be_bytes());
        for rdata in values {
            to.extend_from_slice(&(rdata.len() as u16).to_be_bytes());
            to.extend_from_slice(rdata);
        }
    }
}

fn index(offsets: &[(u32, u32)]) -> Box<[(u32, u32)]> {
    if offsets.is_empty() {
        return Box::default();
    }
    let places = (2 * offsets.len()).next_power_of_two();
    let mut index = vec![(0, NOWHERE); places].into_boxed_slice();
    for &(tag, offset) in offsets {
        let mut at = tag as usize & (places - 1);
        while index[at].1 != NOWHERE {
            at = (at + 1) & (places - 1);
        }
        index[at] = (tag, offset);
    }
    index
}

/// The shard of a hash, by its first ten bits.
fn place(hash: u64) -> usize {
    (hash >> 54) as usize
}

/// Mixes eight octets at a time. Names are given by whoever asks for a lease: one that makes many of them collide slows
/// down its own shard.
fn hash(wire: &[u8]) -> u64 {
    const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
    let mix = |hash: u64, word: u64| {
        let wide = u128::from(hash ^ word) * u128::from(FACTOR);
        (wide >> 64) as u64 ^ wide as u64
    };
    let (words, rest) = wire.as_chunks::<8>();
    let hash = words.iter().fold(wire.len() as u64, |hash, word| mix(hash, u64::from_le_bytes(*word)));
    let last = rest.iter().fold(0, |word, octet| word << 8 | u64::from(*octet));
    mix(mix(hash, last), FACTOR)
}

/// Octets of the name at the beginning; `None` when nothing is left.
fn name_length(octets: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        match octets.get(at)? {
            0 => return Some(at + 1),
            length => at += 1 + usize::from(*length),
        }
    }
}

/// The first octets and the rest. What is read was written here, whole.
fn number<const N: usize>(octets: &[u8]) -> ([u8; N], &[u8]) {
    octets.split_first_chunk::<N>().map_or(([0; N], &[]), |(number, rest)| (*number, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    fn node(last: u8, values: usize) -> Node {
        let rdata = (0..values).map(|at| vec![last; at].into()).collect();
        let rrset = RRset { rtype: 16, ttl: 60, expires: Timestamp(u64::from(last)), rdata };
        Node { rrsets: vec![rrset; usize::from(last % 3)], below: u32::from(last) }
    }

    fn all(nodes: &Nodes) -> BTreeMap<Vec<u8>, Node> {
        nodes.iter().map(|(name, node)| (name.to_vec(), node.to_node())).collect()
    }

    #[test]
    fn every_name_is_found_with_what_was_put_there() {
        let mut nodes = Nodes::default();
        let names: Vec<Name> = (0..5000).map(|at| name(&format!("app{at}.prox.local"))).collect();
        nodes.put(names.iter().enumerate().map(|(at, name)| (name.clone(), node(at as u8 | 1, at % 5))));
        for (at, name) in names.iter().enumerate() {
            assert_eq!(nodes.get(name.as_wire()).unwrap().to_node(), node(at as u8 | 1, at % 5), "{name}");
        }
        assert!(nodes.get(name("app5000.prox.local").as_wire()).is_none());
        assert_eq!(all(&nodes).len(), names.len());
        let before = nodes.clone();
        nodes.put([
            (names[7].clone(), Node::default()),
            (names[8].clone(), node(2, 1)),
            (name("new"), node(4, 0)),
        ]);
        assert!(nodes.get(names[7].as_wire()).is_none());
        assert_eq!(nodes.get(names[8].as_wire()).unwrap().to_node(), node(2, 1));
        assert_eq!(nodes.get(name("new").as_wire()).unwrap().below, 4);
        assert_eq!(before.get(names[7].as_wire()).unwrap().below, 7, "a clone stays as it was");
    }

    #[test]
    fn the_same_nodes_are_equal_whatever_their_history() {
        let put = |nodes: &mut Nodes, text: &str, last| nodes.put([(name(text), node(last, 2))]);
        let (mut one, mut other) = (Nodes::default(), Nodes::default());
        (0..2000).for_each(|at| put(&mut one, &format!("h{at}.x"), at as u8 | 1));
        put(&mut other, "gone.x", 5);
        (0..2000).rev().for_each(|at| put(&mut other, &format!("h{at}.x"), at as u8 | 1));
        assert_ne!(one, other);
        other.put([(name("gone.x"), Node::default())]);
        assert_eq!(one, other);
        assert_eq!(all(&one), all(&other));
    }
}
