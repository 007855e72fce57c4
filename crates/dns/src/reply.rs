//! A reply, written straight into wire form behind a copy of its question.

use crate::ede::{Ede, opt_length, put_opt};
use crate::query::{HEADER, Query};

/// Largest UDP payload we send and announce: it fits every link without fragments (RFC 9715 §3).
pub const OUR_UDP_SIZE: u16 = 1232;

/// Where the question's name stands in every message.
pub(crate) const QUESTION: Place = Place(HEADER as u16);

const QR: u16 = 0x8000;
const AA: u16 = 0x0400;
pub(crate) const TC: u16 = 0x0200;
const RA: u16 = 0x0080;
/// What is copied from a query: opcode, RD, and CD (RFC 4035 §3.2.2).
const COPIED: u16 = 0x7910;
/// Offsets beyond cannot be pointed at (RFC 1035 §4.1.4).
const FURTHEST: usize = 0x3fff;

/// A response code (RFC 1035 §4.1.1, RFC 6891 §9, RFC 7873 §8).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Rcode {
    NoError = 0,
    FormErr = 1,
    ServFail = 2,
    NxDomain = 3,
    NotImp = 4,
    Refused = 5,
    BadVers = 16,
    BadCookie = 23,
}

/// Where a name stands in the message, for owners that repeat it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place(u16);

/// A section that records go to; they are filled in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Section {
    Answer = 0,
    Authority = 1,
    Additional = 2,
}

/// A reply that is being written.
pub(crate) struct Reply<'r> {
    out: &'r mut Vec<u8>,
    query: &'r Query<'r>,
    /// How long records may make the message.
    limit: usize,
    counts: [u16; 3],
    overflow: bool,
    flags: u16,
    ede: Option<Ede>,
}

impl<'r> Reply<'r> {
    /// Starts a reply of at most `limit` octets in `out`, which is emptied.
    pub fn to(
        query: &'r Query<'r>,
        limit: usize,
        recursion_available: bool,
        out: &'r mut Vec<u8>,
    ) -> Reply<'r> {
        out.clear();
        out.extend_from_slice(&[0; HEADER]);
        out.extend_from_slice(query.question());
        let limit = limit - if query.edns.is_some() { opt_length(None) } else { 0 };
        let flags = QR | if recursion_available { RA } else { 0 } | query.flags & COPIED;
        Reply { out, query, limit, counts: [0; 3], overflow: false, flags, ede: None }
    }

    /// Says why in a reply without records, to a client that speaks EDNS.
    pub fn explain(&mut self, ede: Ede) {
        self.ede = Some(ede);
    }

    /// Says that the name asked for is ours.
    pub fn set_authoritative(&mut self) {
        self.flags |= AA;
    }

    /// Whether something that the answer needs did not fit.
    pub fn is_truncated(&self) -> bool {
        self.overflow
    }

    /// Writes a record; `rdata` is its uncompressed value. Returns where a name in it stands.
    pub fn record(
        &mut self,
        section: Section,
        owner: Place,
        rtype: u16,
        ttl: u32,
        rdata: &[u8],
    ) -> Option<Place> {
        let start = self.out.len();
        self.out.extend_from_slice(&(0xc000 | owner.0).to_be_bytes());
        self.rest_of_record(section, start, rtype, ttl, rdata)
    }

    /// Writes a record whose owner does not stand in the message yet.
    pub fn record_of(&mut self, section: Section, owner: &[u8], rtype: u16, ttl: u32, rdata: &[u8]) {
        let start = self.out.len();
        self.put_name(owner);
        self.rest_of_record(section, start, rtype, ttl, rdata);
    }

    /// Writes a zone's SOA record (RFC 1035 §3.3.13) with the times that we give to every zone.
    pub fn soa(&mut self, section: Section, zone: &[u8], mname: &[u8], rname: &[u8], serial: u32, ttl: u32) {
        /// Refresh, retry and expire in seconds: what a secondary would use (RFC 1912 §2.2).
        const TIMES: [u32; 3] = [3600, 600, 1_209_600];
        let start = self.out.len();
        self.put_name(zone);
        let length_at = self.fixed_part(6, ttl);
        self.put_name(mname);
        self.put_name(rname);
        // RFC 2308 §4: the last field is how long a negative answer may be kept.
        for number in [serial, TIMES[0], TIMES[1], TIMES[2], ttl] {
            self.out.extend_from_slice(&number.to_be_bytes());
        }
        self.end_of_record(section, start, length_at);
    }

    /// Leaves the records out and says so.
    pub fn truncate(&mut self) {
        self.overflow = true;
    }

    /// Ends the reply. What did not fit is left out and TC says so.
    pub fn finish(mut self, rcode: Rcode) -> Rcode {
        if self.overflow {
            // RFC 2181 §9 lets a truncated reply be thrown away; an empty one is asked again over TCP at once.
            self.out.truncate(HEADER + self.query.question().len());
            self.counts = [0; 3];
            self.flags |= TC;
        }
        if self.query.edns.is_some() {
            self.opt(rcode);
        }
        self.write_header(rcode);
        rcode
    }

    fn write_header(self, rcode: Rcode) {
        let Reply { out, query, counts, flags, .. } = self;
        let header = [query.id, flags | rcode.low(), 1, counts[0], counts[1], counts[2]];
        for (place, number) in out.chunks_exact_mut(2).zip(header) {
            place.copy_from_slice(&number.to_be_bytes());
        }
    }

    /// Leaves the reply as it stands, whole but without its OPT record, for whoever adds the rest.
    pub fn suspend(self) {
        self.write_header(Rcode::NoError);
    }

    fn rest_of_record(
        &mut self,
        section: Section,
        start: usize,
        rtype: u16,
        ttl: u32,
        rdata: &[u8],
    ) -> Option<Place> {
        let length_at = self.fixed_part(rtype, ttl);
        let mut name_at = self.out.len();
        // RFC 3597 §4: only the names inside the types of RFC 1035 may be compressed.
        match (rtype, rdata) {
            (2 | 5 | 12, name) => self.put_name(name),
            (15, [high, low, exchange @ ..]) => {
                self.out.extend_from_slice(&[*high, *low]);
                name_at += 2;
                self.put_name(exchange);
            }
            _ => self.out.extend_from_slice(rdata),
        }
        self.end_of_record(section, start, length_at);
        (name_at <= FURTHEST).then_some(Place(name_at as u16))
    }

    /// Type, class IN, TTL and a length still to be filled in, whose place is returned.
    fn fixed_part(&mut self, rtype: u16, ttl: u32) -> usize {
        self.out.extend_from_slice(&rtype.to_be_bytes());
        self.out.extend_from_slice(&1u16.to_be_bytes());
        self.out.extend_from_slice(&ttl.to_be_bytes());
        self.out.extend_from_slice(&[0, 0]);
        self.out.len() - 2
    }

    fn end_of_record(&mut self, section: Section, start: usize, length_at: usize) {
        let length = self.out.len() - length_at - 2;
        let fits = self.out.len() <= self.limit && length <= usize::from(u16::MAX);
        if self.overflow || !fits {
            self.out.truncate(start);
            // RFC 2181 §9: TC is for records that the answer needs, which additional ones are not.
            self.overflow |= section != Section::Additional;
            return;
        }
        self.out[length_at..length_at + 2].copy_from_slice(&(length as u16).to_be_bytes());
        self.counts[section as usize] += 1;
    }

    /// Writes a lower-case name, its end as a pointer to the question where that ends alike.
    fn put_name(&mut self, name: &[u8]) {
        let asked = self.query.name();
        let mut at = 0;
        while let Some(&length) = name.get(at)
            && length != 0
        {
            let rest = &name[at..];
            if let Some(skipped) = asked.len().checked_sub(rest.len())
                && asked[skipped..] == *rest
                && starts_label(asked, skipped)
            {
                self.out.extend_from_slice(&name[..at]);
                self.out.extend_from_slice(&(0xc000 | (HEADER + skipped) as u16).to_be_bytes());
                return;
            }
            at += 1 + usize::from(length);
        }
        self.out.extend_from_slice(name);
    }

    fn opt(&mut self, rcode: Rcode) {
        let dnssec_ok = self.query.edns.is_some_and(|edns| edns.dnssec_ok);
        put_opt(self.out, rcode, dnssec_ok, self.ede);
        self.counts[Section::Additional as usize] += 1;
    }
}

impl Rcode {
    /// Every code that we send.
    pub const ALL: [Rcode; 8] = [
        Rcode::NoError,
        Rcode::FormErr,
        Rcode::ServFail,
        Rcode::NxDomain,
        Rcode::NotImp,
        Rcode::Refused,
        Rcode::BadVers,
        Rcode::BadCookie,
    ];

    /// The name used in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Rcode::NoError => "noerror",
            Rcode::FormErr => "formerr",
            Rcode::ServFail => "servfail",
            Rcode::NxDomain => "nxdomain",
            Rcode::NotImp => "notimp",
            Rcode::Refused => "refused",
            Rcode::BadVers => "badvers",
            Rcode::BadCookie => "badcookie",
        }
    }

    pub(crate) fn low(self) -> u16 {
        self as u16 & 0xf
    }

    pub(crate) fn high(self) -> u8 {
        (self as u16 >> 4) as u8
    }
}

/// A reply to a message whose question could not be read: the header alone.
pub(crate) fn bare(message: &[u8], rcode: Rcode, out: &mut Vec<u8>) {
    out.clear();
    let flags = u16::from_be_bytes([message[2], message[3]]);
    out.extend_from_slice(&message[..2]);
    out.extend_from_slice(&(QR | flags & COPIED | rcode.low()).to_be_bytes());
    out.extend_from_slice(&[0; 8]);
}

/// Whether a label of `name` starts at `at`.
fn starts_label(name: &[u8], at: usize) -> bool {
    let mut label = 0;
    while label < at {
        label += 1 + usize::from(name[label]);
    }
    label == at
}
