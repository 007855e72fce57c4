//! Questions of the operator: answered as a client on this host would be, and told from where.

use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption};
use hickory_proto::rr::{Name as DnsName, Record, RecordType};
use hickory_proto::serialize::binary::BinDecodable;
use proximity_table::{Name, Timestamp, World};
use thiserror::Error;

use crate::forward::Forwarder;
use crate::policy::PublishedPolicy;
use crate::reply::OUR_UDP_SIZE;
use crate::server::DnsServer;
use crate::stats::DnsStats;

/// What was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lookup {
    /// The response code in the words of its registry, such as `NXDOMAIN`.
    pub rcode: String,
    /// Those that are set, in lower case.
    pub flags: Vec<&'static str>,
    /// The answer section.
    pub answers: Vec<LookedUp>,
    /// The authority section.
    pub authority: Vec<LookedUp>,
    /// `zone`, `blocked`, `cache`, `upstream` or `nobody`.
    pub origin: &'static str,
    /// What an extended error says, in the words of RFC 8914.
    pub error: Option<String>,
    /// How long it took.
    pub took: Duration,
}

/// A record in words.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct LookedUp {
    pub name: String,
    pub ttl: u32,
    pub rtype: String,
    pub value: String,
}

/// Why there is nothing to ask, or no answer to read.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum LookupError {
    /// The text names no type.
    #[error("`{0}` is no record type: write one such as A, AAAA, MX or TYPE65")]
    Type(String),
    /// The answer makes no sense.
    #[error("the answer cannot be read: look at the log")]
    Unreadable,
}

/// Asks for a name as a client on this host would. What is counted of it is counted nowhere.
pub async fn look_up(
    world: Arc<ArcSwap<World>>,
    forwarder: Arc<ArcSwap<Forwarder>>,
    policy: PublishedPolicy,
    clock: fn() -> Timestamp,
    name: &Name,
    rtype: &str,
) -> Result<Lookup, LookupError> {
    let qtype = record_type(rtype).ok_or_else(|| LookupError::Type(rtype.to_owned()))?;
    let name = DnsName::from_bytes(name.as_wire()).map_err(|_| LookupError::Unreadable)?;
    let mut message = Message::new(0, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.metadata.authentic_data = true;
    message.add_query(Query::query(name, qtype));
    let mut edns = Edns::new();
    edns.set_max_payload(OUR_UDP_SIZE).set_version(0);
    message.set_edns(edns);
    let wire = message.to_vec().map_err(|_| LookupError::Unreadable)?;
    let stats = Arc::new(DnsStats::default());
    let server = DnsServer::new(world, forwarder, stats.clone(), clock).with_policy(policy);
    let started = Instant::now();
    let reply = server.resolve_wire(&wire, IpAddr::V4(Ipv4Addr::LOCALHOST)).await;
    let took = started.elapsed();
    let reply = reply.and_then(|reply| Message::from_vec(&reply).ok()).ok_or(LookupError::Unreadable)?;
    let counted = stats.snapshot();
    let origin = match (counted.forwarded, counted.cache_hits, counted.upstream_failures) {
        (0, ..) if counted.blocked > 0 => "blocked",
        (0, ..) => "zone",
        (_, 1.., _) => "cache",
        (_, _, 1..) => "nobody",
        _ if reply.metadata.response_code == ResponseCode::Refused => "nobody",
        _ => "upstream",
    };
    let header = &reply.metadata;
    let flags = [
        ("aa", header.authoritative),
        ("tc", header.truncation),
        ("rd", header.recursion_desired),
        ("ra", header.recursion_available),
        ("ad", header.authentic_data),
        ("cd", header.checking_disabled),
    ];
    Ok(Lookup {
        rcode: code(header.response_code),
        flags: flags.into_iter().filter(|(_, set)| *set).map(|(name, _)| name).collect(),
        answers: reply.answers.iter().map(shown).collect(),
        authority: reply.authorities.iter().map(shown).collect(),
        origin,
        error: error(&reply),
        took,
    })
}

fn record_type(text: &str) -> Option<RecordType> {
    let upper = text.to_ascii_uppercase();
    match upper.strip_prefix("TYPE") {
        Some(number) => number.parse().ok().map(|number: u16| RecordType::from(number)),
        None => RecordType::from_str(&upper).ok(),
    }
}

fn code(code: ResponseCode) -> String {
    match code {
        ResponseCode::NoError => "NOERROR".to_owned(),
        other => format!("{other:?}").to_ascii_uppercase(),
    }
}

fn shown(record: &Record) -> LookedUp {
    LookedUp {
        name: record.name.to_string(),
        ttl: record.ttl,
        rtype: record.record_type().to_string(),
        value: record.data.to_string(),
    }
}

fn error(reply: &Message) -> Option<String> {
    let EdnsOption::Unknown(_, octets) = reply.edns.as_ref()?.option(EdnsCode::Unknown(15))? else {
        return None;
    };
    let code = u16::from_be_bytes([*octets.first()?, *octets.get(1)?]);
    Some(match code {
        0 => "Other Error".to_owned(),
        3 => "Stale Answer".to_owned(),
        6 => "DNSSEC Bogus".to_owned(),
        15 => "Blocked".to_owned(),
        18 => "Prohibited".to_owned(),
        19 => "Stale NXDOMAIN Answer".to_owned(),
        22 => "No Reachable Authority".to_owned(),
        23 => "Network Error".to_owned(),
        other => format!("error {other} of RFC 8914"),
    })
}
