//! What a question is answered from the World, or that it has to be asked elsewhere.

use std::net::IpAddr;

use proximity_table::{Apex, NodeRef, RRsetRef, Timestamp, World, Zones};

use crate::delegation::{self, Delegated};
use crate::ede::Ede;
use crate::foreign::{Foreign, ForeignName, is_within};
use crate::query::{DropReason, Edns, Malformed, Query, Unanswerable};
use crate::reply::{OUR_UDP_SIZE, Place, QUESTION, Rcode, Reply, Section, bare};
use crate::special::{Special, special};

/// How long "there is nothing" may be kept, in seconds: an app that comes up is found within a minute.
pub(crate) const NEGATIVE_TTL: u32 = 60;
/// How many aliases are followed.
const MAX_ALIASES: usize = 8;

pub(crate) const A: u16 = 1;
const NS: u16 = 2;
const CNAME: u16 = 5;
const SOA: u16 = 6;
const PTR: u16 = 12;
const HINFO: u16 = 13;
const MX: u16 = 15;
const AAAA: u16 = 28;
const SRV: u16 = 33;
const DS: u16 = 43;
const OPT: u16 = 41;
const SVCB: u16 = 64;
const HTTPS: u16 = 65;
pub(crate) const ANY: u16 = 255;
const CLASS_IN: u16 = 1;

/// Who asks, and over what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asker {
    /// The client's address.
    pub client: IpAddr,
    /// What the reply goes back over.
    pub transport: Transport,
}

/// What a reply goes back over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// Datagrams: at most what the client announced, never more than [`OUR_UDP_SIZE`].
    Udp,
    /// A stream: at most 65,535 octets.
    Tcp,
}

/// What became of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
// A question for an upstream lies in place: if its answer is kept, nothing is allocated.
#[expect(clippy::large_enum_variant)]
pub enum Outcome {
    /// The reply stands in the buffer.
    Answered(Rcode),
    /// FORMERR stands in the buffer.
    Malformed(Malformed),
    /// An upstream has to be asked. The buffer holds the reply so far: the question, and the aliases that led
    /// out of our zones.
    Forward(Foreign),
    /// The servers of a delegated name have to be asked. The buffer is as with `Forward`.
    Delegated(Delegated),
    /// Nothing is sent.
    Drop(DropReason),
}

/// Answers one message from a snapshot.
///
/// `out` is emptied and then holds the reply, if there is one; it is the caller's so that a batch of queries
/// costs no allocation. Records whose lease has ended at `now` do not exist.
pub fn answer(world: &World, now: Timestamp, asker: Asker, message: &[u8], out: &mut Vec<u8>) -> Outcome {
    let query = match Query::parse(message) {
        Ok(query) => query,
        Err(unanswerable) => return to_no_query(unanswerable, message, out),
    };
    let limit = limit(asker.transport, query.edns);
    let recursion = recursion_allowed(world, asker.client);
    let mut reply = Reply::to(&query, limit, recursion, out);
    if let Some(rcode) = unanswerable(&query) {
        return Outcome::Answered(reply.finish(rcode));
    }
    match (Lookup { world, now, query: &query }).run(&mut reply) {
        End::Answered(rcode) => Outcome::Answered(reply.finish(rcode)),
        End::Elsewhere { name, aliased } => {
            if recursion && query.recursion_desired() && !reply.is_truncated() {
                let (name, flags) = (ForeignName::of(name), query.flags);
                let foreign = Foreign { name, qtype: query.qtype, flags, edns: query.edns, limit, aliased };
                reply.suspend();
                return Outcome::Forward(foreign);
            }
            if !recursion && !aliased {
                reply.explain(Ede::Prohibited);
            }
            // A stranger gets what is ours: the aliases. For another's name that is nothing.
            Outcome::Answered(reply.finish(if aliased { Rcode::NoError } else { Rcode::Refused }))
        }
        End::Delegated { name, cut } => {
            let wanted = recursion && query.recursion_desired() && !reply.is_truncated();
            let lookup = Lookup { world, now, query: &query };
            // Whoever wants to be told the end is: stub resolvers follow no referrals.
            let servers = if wanted { lookup.servers_behind(cut) } else { Vec::new() };
            if !servers.is_empty() {
                reply.suspend();
                let (name, cut) = (name.into(), cut.into());
                return Outcome::Delegated(Delegated {
                    name,
                    qtype: query.qtype,
                    edns: query.edns,
                    limit,
                    cut,
                    servers,
                });
            }
            lookup.referral(&mut reply, cut);
            Outcome::Answered(reply.finish(Rcode::NoError))
        }
    }
}

/// The reply to a message that is no query.
pub(crate) fn to_no_query(unanswerable: Unanswerable, message: &[u8], out: &mut Vec<u8>) -> Outcome {
    match unanswerable {
        Unanswerable::Drop(reason) => {
            out.clear();
            Outcome::Drop(reason)
        }
        Unanswerable::NotImplemented => {
            bare(message, Rcode::NotImp, out);
            Outcome::Answered(Rcode::NotImp)
        }
        Unanswerable::Malformed(reason) => {
            bare(message, Rcode::FormErr, out);
            Outcome::Malformed(reason)
        }
    }
}

/// The code for a query that asks for nothing that can be looked up.
pub(crate) fn unanswerable(query: &Query<'_>) -> Option<Rcode> {
    match query.edns {
        Some(edns) if edns.version > 0 => Some(Rcode::BadVers),
        _ if query.qclass != CLASS_IN || is_meta(query.qtype) => Some(Rcode::Refused),
        _ => None,
    }
}

/// Whether a lower-case wire name is ours to answer; such a name is never forwarded.
pub fn in_zone(world: &World, name: &[u8]) -> bool {
    world.zones.apex_of(name).is_some()
}

/// Whether names of others are looked up for this client: it is on an app network or on this host.
pub fn recursion_allowed(world: &World, client: IpAddr) -> bool {
    match client.to_canonical() {
        IpAddr::V4(ip) => {
            ip.is_loopback() || world.facts.intent().networks.iter().any(|net| net.address.contains(ip))
        }
        IpAddr::V6(ip) => ip.is_loopback(),
    }
}

/// The longest reply that a client takes.
pub(crate) fn limit(transport: Transport, edns: Option<Edns>) -> usize {
    match transport {
        Transport::Tcp => usize::from(u16::MAX),
        // RFC 6891 §6.2.5: values lower than 512 are treated as 512.
        Transport::Udp => edns.map_or(512, |edns| usize::from(edns.size.clamp(512, OUR_UDP_SIZE))),
    }
}

/// Types that ask for something else than records: zone transfers, TSIG, TKEY (RFC 6895 §3.1).
fn is_meta(qtype: u16) -> bool {
    matches!(qtype, 0 | OPT | 128..ANY)
}

pub(crate) struct Lookup<'a> {
    pub world: &'a World,
    pub now: Timestamp,
    pub query: &'a Query<'a>,
}

enum End<'a> {
    Answered(Rcode),
    Elsewhere {
        name: &'a [u8],
        aliased: bool,
    },
    /// The name is at or below `cut`, which other servers answer for.
    Delegated {
        name: &'a [u8],
        cut: &'a [u8],
    },
}

enum Found<'a> {
    Node(NodeRef<'a>),
    /// The name exists without records of its own.
    Empty,
    Nothing,
}

impl<'a> Lookup<'a> {
    /// RFC 1034 §4.3.2.
    fn run(&self, reply: &mut Reply<'_>) -> End<'a> {
        let zones = &self.world.zones;
        let mut seen: [&[u8]; MAX_ALIASES] = [b""; MAX_ALIASES];
        let mut name = self.query.name();
        let mut owner = QUESTION;
        for step in 0..=MAX_ALIASES {
            let apex = zones.apex_of(name);
            let node = match apex {
                Some(apex) => {
                    if let Some(cut) = self.cut_above(apex, name) {
                        return End::Delegated { name, cut };
                    }
                    reply.set_authoritative();
                    match self.find(apex, name) {
                        Found::Node(node) => node,
                        Found::Empty => return self.no_data(reply, apex, name, owner),
                        // RFC 6604 §3: after aliases the code is the last name's.
                        Found::Nothing => {
                            self.soa(reply, Section::Authority, apex);
                            return End::Answered(Rcode::NxDomain);
                        }
                    }
                }
                None => {
                    let Some(node) = self.overridden(name) else {
                        return self.outside(reply, name, owner, step);
                    };
                    reply.set_authoritative();
                    node
                }
            };
            let Some(rrset) = self.pick(node) else {
                let Some(apex) = apex else {
                    empty_zone(reply, name);
                    return End::Answered(Rcode::NoError);
                };
                return self.no_data(reply, apex, name, owner);
            };
            let place = self.rrset(reply, Section::Answer, owner, &rrset);
            let alias = rrset.rtype == CNAME && !matches!(self.query.qtype, CNAME | ANY);
            let (true, Some(target), Some(place)) = (alias, rrset.rdata().next(), place) else {
                self.addresses_of_targets(reply, &rrset);
                return End::Answered(Rcode::NoError);
            };
            // A loop, or a chain without end, stays a chain: whoever asked sees where it leads.
            if step == MAX_ALIASES || seen[..step].contains(&target) || target == self.query.name() {
                break;
            }
            seen[step] = target;
            (name, owner) = (target, place);
        }
        End::Answered(Rcode::NoError)
    }

    /// Where the zone ends above a name. The parent's own type is answered by the parent (RFC 4035 §3.1.4.1).
    fn cut_above(&self, apex: &Apex, name: &'a [u8]) -> Option<&'a [u8]> {
        let cut = self.world.zones.cut_above(apex, name)?;
        (self.query.qtype != DS || cut.len() < name.len()).then_some(cut)
    }

    /// What the administrator put at a name outside our zones, or at the nearest wildcard above it.
    fn overridden(&self, name: &[u8]) -> Option<NodeRef<'a>> {
        let zones = &self.world.zones;
        if !zones.has_foreign() {
            return None;
        }
        let live = |name: &[u8]| match self.at(zones, name)? {
            Found::Node(node) => Some(node),
            Found::Empty | Found::Nothing => None,
        };
        if let Some(node) = live(name) {
            return Some(node);
        }
        let mut at = 0;
        while name[at] != 0 && zones.node(&name[at..]).is_none() {
            at += 1 + usize::from(name[at]);
        }
        let encloser = &name[at..];
        // The name itself exists, or its wildcard would not fit.
        if at == 0 || encloser.len() > 253 {
            return None;
        }
        let mut wildcard = [0; 256];
        wildcard[..2].copy_from_slice(b"\x01*");
        wildcard[2..2 + encloser.len()].copy_from_slice(encloser);
        live(&wildcard[..2 + encloser.len()])
    }

    /// The addresses of the servers that a cut leads to, as far as they are known here.
    fn servers_behind(&self, cut: &[u8]) -> Vec<IpAddr> {
        let zones = &self.world.zones;
        let targets = self.servers_of(cut).flat_map(RRsetRef::rdata);
        let glue = targets.filter_map(|target| zones.node(target)).flat_map(NodeRef::rrsets);
        let live = glue.filter(|rrset| self.is_live(rrset));
        live.flat_map(delegation::addresses).take(delegation::MOST_SERVERS).collect()
    }

    /// RFC 1034 §4.3.2 step 3b: the servers in the authority section, their addresses as glue.
    fn referral(&self, reply: &mut Reply<'_>, cut: &[u8]) {
        for rrset in self.servers_of(cut) {
            for rdata in rrset.rdata() {
                reply.record_of(Section::Authority, cut, NS, self.ttl(&rrset), rdata);
            }
            self.addresses_of_targets(reply, &rrset);
        }
    }

    fn servers_of(&self, cut: &[u8]) -> impl Iterator<Item = RRsetRef<'a>> {
        let node = self.world.zones.node(cut);
        node.into_iter().flat_map(NodeRef::rrsets).filter(|rrset| rrset.rtype == NS)
    }

    /// What stands at a name: itself, or the wildcard that covers it (RFC 4592 §3.3.1).
    fn find(&self, apex: &Apex, name: &[u8]) -> Found<'a> {
        let zones = &self.world.zones;
        if let Some(found) = self.at(zones, name) {
            return found;
        }
        let mut at = 0;
        while name[at..] != *apex.name.as_wire() {
            at += 1 + usize::from(name[at]);
            let encloser = &name[at..];
            if encloser == apex.name.as_wire() || self.at(zones, encloser).is_some() {
                let mut wildcard = [0; 256];
                wildcard[..2].copy_from_slice(b"\x01*");
                wildcard[2..2 + encloser.len()].copy_from_slice(encloser);
                return self.at(zones, &wildcard[..2 + encloser.len()]).unwrap_or(Found::Nothing);
            }
        }
        // The apex exists, whatever stands there.
        Found::Empty
    }

    fn at(&self, zones: &'a Zones, name: &[u8]) -> Option<Found<'a>> {
        let node = zones.node(name)?;
        match node.rrsets().any(|rrset| self.is_live(&rrset)) {
            true => Some(Found::Node(node)),
            false => (node.below > 0).then_some(Found::Empty),
        }
    }

    /// The RRset that answers: the type asked for, else the alias.
    fn pick(&self, node: NodeRef<'a>) -> Option<RRsetRef<'a>> {
        let qtype = self.query.qtype;
        let mut live = node.rrsets().filter(|rrset| self.is_live(rrset));
        // RFC 8482 §4.1: one RRset is answer enough to ANY.
        live.find(|rrset| rrset.rtype == qtype || rrset.rtype == CNAME || qtype == ANY)
    }

    fn no_data(&self, reply: &mut Reply<'_>, apex: &Apex, name: &[u8], owner: Place) -> End<'a> {
        let at_apex = name == apex.name.as_wire();
        match self.query.qtype {
            SOA if at_apex => self.soa(reply, Section::Answer, apex),
            // RFC 8482 §4.2: a name that has nothing to show says so by a HINFO record.
            ANY if !at_apex => {
                reply.record(Section::Answer, owner, HINFO, NEGATIVE_TTL, b"\x07RFC8482\x00");
            }
            ANY => self.soa(reply, Section::Answer, apex),
            _ => self.soa(reply, Section::Authority, apex),
        }
        End::Answered(Rcode::NoError)
    }

    /// A name in none of our zones.
    fn outside(&self, reply: &mut Reply<'_>, name: &'a [u8], owner: Place, step: usize) -> End<'a> {
        let zones = &self.world.zones;
        match special(name) {
            // Who has servers of its own is not nowhere.
            Some(_) if self.is_forwarded(name) => End::Elsewhere { name, aliased: step > 0 },
            Some(Special::Localhost(zone)) => {
                reply.set_authoritative();
                match self.query.qtype {
                    A => drop(reply.record(Section::Answer, owner, A, NEGATIVE_TTL, &[127, 0, 0, 1])),
                    AAAA => {
                        let loopback = std::net::Ipv6Addr::LOCALHOST.octets();
                        reply.record(Section::Answer, owner, AAAA, NEGATIVE_TTL, &loopback);
                    }
                    _ => empty_zone(reply, zone),
                }
                End::Answered(Rcode::NoError)
            }
            Some(Special::Nowhere(zone)) => {
                reply.set_authoritative();
                if self.query.qtype == PTR && name == b"\x011\x010\x010\x03127\x07in-addr\x04arpa\x00" {
                    reply.record(Section::Answer, owner, PTR, NEGATIVE_TTL, b"\x09localhost\x00");
                    return End::Answered(Rcode::NoError);
                }
                if self.query.qtype == SOA && name == zone {
                    reply.soa(Section::Answer, zone, zone, NOBODY, 1, NEGATIVE_TTL);
                    return End::Answered(Rcode::NoError);
                }
                empty_zone(reply, zone);
                // RFC 8020 §2: NXDOMAIN would deny our own zones below.
                let exists = name == zone
                    || is_above_ours(zones, name)
                    || self.is_above_forwarded(name)
                    || zones.node(name).is_some();
                End::Answered(if exists { Rcode::NoError } else { Rcode::NxDomain })
            }
            None => End::Elsewhere { name, aliased: step > 0 },
        }
    }

    fn is_forwarded(&self, name: &[u8]) -> bool {
        let mut forwarded = self.world.facts.intent().forwarded.iter();
        forwarded.any(|domain| is_within(name, domain.as_wire()))
    }

    fn is_above_forwarded(&self, name: &[u8]) -> bool {
        let mut forwarded = self.world.facts.intent().forwarded.iter();
        forwarded.any(|domain| is_within(domain.as_wire(), name))
    }

    /// Writes an RRset; returns where the name in the last record stands.
    fn rrset(
        &self,
        reply: &mut Reply<'_>,
        section: Section,
        owner: Place,
        rrset: &RRsetRef<'_>,
    ) -> Option<Place> {
        let ttl = self.ttl(rrset);
        let mut place = None;
        // RFC 2181 §10.1: a name has one alias at most.
        let most = if rrset.rtype == CNAME { 1 } else { usize::MAX };
        for rdata in rrset.rdata().take(most) {
            place = reply.record(section, owner, rrset.rtype, ttl, rdata);
        }
        place
    }

    pub fn soa(&self, reply: &mut Reply<'_>, section: Section, apex: &Apex) {
        let zone = apex.name.as_wire();
        let mut rname = [0; 256];
        let rname = match rname.get_mut(..zone.len() + HOSTMASTER.len()) {
            Some(place) if place.len() <= 255 => {
                place[..HOSTMASTER.len()].copy_from_slice(HOSTMASTER);
                place[HOSTMASTER.len()..].copy_from_slice(zone);
                place
            }
            _ => zone,
        };
        let serial = self.world.generation.0 as u32;
        reply.soa(section, zone, apex.primary.as_wire(), rname, serial, NEGATIVE_TTL);
    }

    /// Addresses of the hosts that an answer names, for those that are ours (RFC 1034 §4.3.2 step 6).
    fn addresses_of_targets(&self, reply: &mut Reply<'_>, rrset: &RRsetRef<'_>) {
        let skipped = match rrset.rtype {
            NS => 0,
            MX => 2,
            SRV => 6,
            // RFC 9460 §4.1.
            SVCB | HTTPS => 2,
            _ => return,
        };
        for target in rrset.rdata().filter_map(|rdata| first_name(rdata.get(skipped..)?)) {
            let Some(node) = self.world.zones.node(target) else { continue };
            for rrset in node.rrsets().filter(|rrset| matches!(rrset.rtype, A | AAAA)) {
                if self.is_live(&rrset) {
                    for rdata in rrset.rdata() {
                        let ttl = self.ttl(&rrset);
                        reply.record_of(Section::Additional, target, rrset.rtype, ttl, rdata);
                    }
                }
            }
        }
    }

    fn is_live(&self, rrset: &RRsetRef<'_>) -> bool {
        rrset.expires > self.now
    }

    fn ttl(&self, rrset: &RRsetRef<'_>) -> u32 {
        let left = rrset.expires.seconds_after(self.now);
        rrset.ttl.min(u32::try_from(left).unwrap_or(u32::MAX))
    }
}

const HOSTMASTER: &[u8] = b"\x0ahostmaster";
/// RFC 6303 §3.
const NOBODY: &[u8] = b"\x06nobody\x07invalid\x00";

/// The name that a value begins with.
fn first_name(octets: &[u8]) -> Option<&[u8]> {
    let mut end = 0;
    while *octets.get(end)? != 0 {
        end += 1 + usize::from(octets[end]);
    }
    octets.get(..=end)
}

pub(crate) fn empty_zone(reply: &mut Reply<'_>, zone: &[u8]) {
    reply.soa(Section::Authority, zone, zone, NOBODY, 1, NEGATIVE_TTL);
}

fn is_above_ours(zones: &Zones, name: &[u8]) -> bool {
    zones.apexes().iter().any(|apex| is_within(apex.name.as_wire(), name))
}
