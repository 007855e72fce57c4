//! What of an upstream's message belongs to the question that it was asked, and for how long.

use std::net::IpAddr;

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption};
use hickory_proto::rr::rdata::svcb::SvcParamValue;
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

use crate::ede::Ede;

/// Between which times answers are kept, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TtlBounds {
    /// Answers are kept at least so long, whatever their records say.
    pub min: u32,
    /// Answers are kept so long at most.
    pub max: u32,
    /// "There is nothing" is kept so long at most (RFC 2308 §5).
    pub negative_max: u32,
}

/// What an upstream said to a question.
#[derive(Clone, Debug)]
pub(crate) struct Said {
    pub code: ResponseCode,
    pub answers: Vec<Record>,
    /// With no answers: the record that tells for how long; and what proves it, for those who check.
    pub authority: Vec<Record>,
    /// For how many seconds.
    pub lifetime: u32,
    /// Whether its signatures were checked.
    pub authentic: bool,
    pub ede: Option<Ede>,
}

/// Why a message is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unusable {
    /// It is about another question.
    OtherQuestion,
    /// There is more of it over TCP.
    Truncated,
    /// The server could not find out, and perhaps said why.
    Failed(Ede),
    /// The server does not know EDNS.
    NoEdns,
    /// The server does not look up names of others: it refers us elsewhere, or refuses.
    Lame,
}

impl Said {
    /// Reads a message as the answer to a question. Records are bounded in time and limited to those of the name, and
    /// of the names that its aliases lead to.
    pub fn read(
        message: Message,
        query: &Query,
        dnssec_ok: bool,
        bounds: &TtlBounds,
    ) -> Result<Said, Unusable> {
        if message.queries.iter().any(|other| other != query) {
            return Err(Unusable::OtherQuestion);
        }
        let code = message.metadata.response_code;
        match code {
            _ if message.metadata.truncation => return Err(Unusable::Truncated),
            ResponseCode::NoError | ResponseCode::NXDomain => {}
            ResponseCode::Refused | ResponseCode::NotAuth => return Err(Unusable::Lame),
            ResponseCode::FormErr | ResponseCode::NotImp | ResponseCode::BADVERS => {
                return Err(Unusable::NoEdns);
            }
            _ => return Err(Unusable::Failed(explained(&message))),
        }
        // Without the question nobody knows what it answers.
        if message.queries.is_empty() {
            return Err(Unusable::OtherQuestion);
        }
        let qtype = u16::from(query.query_type());
        let (answers, last) = belonging(query.name().clone(), qtype, &message.answers, dnssec_ok);
        let is_positive = answers.iter().any(|record| answers_type(record, qtype));
        let mut authority = message.authorities;
        let refers = authority.iter().any(|record| record.record_type() == RecordType::NS);
        authority.retain(|record| {
            let proves = dnssec_ok && matches!(u16::from(record.record_type()), 46 | 47 | 50);
            let bounds = record.record_type() == RecordType::SOA && !is_positive;
            (proves || bounds)
                && record.dns_class == DNSClass::IN
                // RFC 5452 §6: a zone that the names asked for are not in says nothing about them.
                && (proves || record.name.zone_of(&last) || record.name.zone_of(query.name()))
        });
        let soa = authority.iter().find_map(|record| match &record.data {
            RData::SOA(soa) => Some(ttl(record).min(soa.minimum)),
            _ => None,
        });
        let is_referral = refers || !message.metadata.recursion_available;
        if code == ResponseCode::NoError && answers.is_empty() && soa.is_none() && is_referral {
            return Err(Unusable::Lame);
        }
        let mut said = Said { code, answers, authority, lifetime: 0, authentic: false, ede: None };
        said.bound(is_positive, soa, bounds);
        Ok(said)
    }

    /// Keeps times within bounds. An alias with nothing behind it is a negative answer (RFC 2308 §2.1) and not to be
    /// kept as long as the alias alone would be.
    fn bound(&mut self, is_positive: bool, soa: Option<u32>, bounds: &TtlBounds) {
        let (least, most) = match is_positive {
            true => (bounds.min.min(bounds.max), bounds.max),
            false => (0, soa.unwrap_or(0).min(bounds.negative_max)),
        };
        for record in self.answers.iter_mut().chain(&mut self.authority) {
            record.ttl = ttl(record).clamp(least, most);
        }
        let records = self.answers.iter().chain(&self.authority);
        self.lifetime = records.map(|record| record.ttl).min().unwrap_or(0);
    }

    /// Takes an answer away that leads into a private network, which no name of others has any business to do (DNS
    /// rebinding). True if it was one.
    pub fn block_private(&mut self, is_private: impl Fn(IpAddr) -> bool) -> bool {
        let leads_inside = |record: &Record| match &record.data {
            RData::A(a) => is_private(IpAddr::V4(a.0)),
            RData::AAAA(aaaa) => is_private(IpAddr::V6(aaaa.0)),
            RData::HTTPS(https) => hints(&https.0.svc_params).any(&is_private),
            RData::SVCB(svcb) => hints(&svcb.svc_params).any(&is_private),
            _ => false,
        };
        if !self.answers.iter().any(leads_inside) {
            return false;
        }
        self.answers.clear();
        self.authority.clear();
        self.ede = Some(Ede::Blocked);
        self.authentic = false;
        true
    }
}

/// The addresses that a service record gives beforehand (RFC 9460 §7.3).
fn hints(
    params: &[(hickory_proto::rr::rdata::svcb::SvcParamKey, SvcParamValue)],
) -> impl Iterator<Item = IpAddr> {
    params.iter().flat_map(|(_, value)| -> Vec<IpAddr> {
        match value {
            SvcParamValue::Ipv4Hint(hint) => hint.0.iter().map(|a| IpAddr::V4(a.0)).collect(),
            SvcParamValue::Ipv6Hint(hint) => hint.0.iter().map(|a| IpAddr::V6(a.0)).collect(),
            _ => Vec::new(),
        }
    })
}

/// RFC 2181 §8: a TTL with its highest bit set counts as zero.
fn ttl(record: &Record) -> u32 {
    if record.ttl > i32::MAX as u32 { 0 } else { record.ttl }
}

/// What a failing upstream gave as its reason.
fn explained(message: &Message) -> Ede {
    let option = message.edns.as_ref().and_then(|edns| edns.option(EdnsCode::Unknown(15)));
    match option {
        Some(EdnsOption::Unknown(_, octets)) => match octets.get(..2) {
            // RFC 8914 §4.7 to §4.13: all that is wrong with signatures.
            Some([0, 5..=12]) => Ede::DnssecBogus,
            Some([0, 22]) => Ede::NoReachableAuthority,
            Some([0, 23]) => Ede::NetworkError,
            _ => Ede::Other,
        },
        _ => Ede::Other,
    }
}

/// Whether a record is of the type asked for.
fn answers_type(record: &Record, qtype: u16) -> bool {
    qtype == u16::from(RecordType::ANY) || u16::from(record.record_type()) == qtype
}

/// The records that answer the question: those of the name, and of the names that its aliases lead to; and the last
/// of these names.
fn belonging(mut name: Name, qtype: u16, records: &[Record], dnssec_ok: bool) -> (Vec<Record>, Name) {
    let mut chosen: Vec<Record> = Vec::with_capacity(records.len());
    let mut seen = vec![name.clone()];
    for _ in 0..=records.len() {
        let mut alias = None;
        for record in records.iter().filter(|record| record.dns_class == DNSClass::IN) {
            // RFC 6672 §3.1: the record that an alias was made of stands above the name.
            let made_of = dnssec_ok
                && u16::from(record.record_type()) == 39
                && record.name.zone_of(&name)
                && !chosen.contains(record);
            if made_of {
                chosen.push(record.clone());
            } else if record.name != name {
                continue;
            } else if answers_type(record, qtype) || (dnssec_ok && u16::from(record.record_type()) == 46) {
                chosen.push(record.clone());
            } else if let RData::CNAME(target) = &record.data {
                // RFC 2181 §10.1: a name has one alias at most.
                if alias.is_none() {
                    chosen.push(record.clone());
                    alias = Some(target.0.clone());
                }
            }
        }
        match alias {
            Some(target) if !seen.contains(&target) => {
                name = target;
                seen.push(name.clone());
            }
            _ => break,
        }
    }
    (chosen, name)
}
