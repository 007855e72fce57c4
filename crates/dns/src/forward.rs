use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_proto::op::{DnsRequestOptions, DnsResponse, Edns, Message, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use hickory_proto::serialize::binary::{BinDecodable, BinEncodable, BinEncoder};
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::xfer::{DnsHandle, FirstAnswer, RetryDnsHandle};
use hickory_resolver::net::{DnsError, NetError, NoRecords};
use hickory_resolver::{NameServerPool, PoolContext, ResponseCache, TlsConfig, TtlConfig};
use thiserror::Error;

use crate::answer::Foreign;
use crate::reply::{OUR_UDP_SIZE, Rcode};
use crate::settings::{DnsSettings, Upstream};

/// How long one try waits for an upstream.
const TRY: Duration = Duration::from_secs(2);
/// Tries after the first.
const RETRIES: usize = 1;
/// No question takes longer, whatever happens below; clients give up after five seconds (resolv.conf(5)).
const DEADLINE: Duration = Duration::from_millis(4500);
/// Longest time that an answer is kept.
const POSITIVE_MAX: Duration = Duration::from_secs(86_400);
/// Longest time that "there is nothing" is kept.
const NEGATIVE_MAX: Duration = Duration::from_secs(900);
/// Questions under way on one TCP connection to an upstream.
const PER_CONNECTION: usize = 256;

/// Asks upstreams about names of others, and remembers what they said.
///
/// It may be shared by threads and replaced while questions are under way; those end with the old one. Upstreams
/// are recursive: where an alias leads is theirs to say. To ask again about its target, as hickory's `Resolver`
/// would, could send our own names out.
pub struct Forwarder {
    /// `None` without upstreams.
    upstreams: Option<Upstreams>,
}

struct Upstreams {
    /// Races servers, retries, falls back to TCP, and asks once for questions that come at the same time.
    pool: RetryDnsHandle<NameServerPool<TokioRuntimeProvider>>,
    cache: ResponseCache,
    request: DnsRequestOptions,
}

/// Where an answer came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    Cache,
    Upstream,
    /// There is no upstream to ask.
    Nobody,
    /// No upstream gave a usable answer.
    Failure,
}

/// Why a forwarder cannot be made of some settings.
#[derive(Debug, Error)]
pub enum ForwardError {
    /// An upstream that is spoken to in a way that is not built in.
    #[error(
        "upstream `{0}` is encrypted, which this version cannot do: write its plain address such as 1.1.1.1"
    )]
    Encrypted(Upstream),
    /// The resolver refused its configuration.
    #[error("the resolver cannot be set up: {0}")]
    Resolver(NetError),
}

/// What an upstream said.
#[derive(Default)]
struct Said {
    code: ResponseCode,
    answers: Vec<Record>,
    /// With no answers: the record that tells for how long.
    soa: Option<Record>,
}

impl Forwarder {
    /// A forwarder with an empty cache.
    pub fn new(settings: &DnsSettings) -> Result<Forwarder, ForwardError> {
        if settings.upstream.is_empty() {
            return Ok(Forwarder { upstreams: None });
        }
        let mut servers = Vec::with_capacity(settings.upstream.len());
        for upstream in &settings.upstream {
            let Upstream::Plain(addr) = upstream else {
                return Err(ForwardError::Encrypted(upstream.clone()));
            };
            let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
                connection.port = addr.port();
                connection
            });
            servers.push(NameServerConfig::new(addr.ip(), true, connections.into()));
        }
        let mut options = ResolverOpts::default();
        options.timeout = TRY;
        options.positive_max_ttl = Some(POSITIVE_MAX);
        options.negative_max_ttl = Some(NEGATIVE_MAX);
        options.max_active_requests = PER_CONNECTION;
        let cache = ResponseCache::new(settings.cache_size, TtlConfig::from_opts(&options));
        let tls = TlsConfig::new().map_err(ForwardError::Resolver)?;
        let context = Arc::new(PoolContext::new(options, tls));
        let pool = NameServerPool::from_config(servers, context, TokioRuntimeProvider::default());
        let mut request = DnsRequestOptions::default();
        request.edns_payload_len = OUR_UDP_SIZE;
        let pool = RetryDnsHandle::new(pool, RETRIES);
        Ok(Forwarder { upstreams: Some(Upstreams { pool, cache, request }) })
    }

    /// Completes a reply by what upstreams say. Always gives a reply.
    pub(crate) async fn complete(&self, partial: &[u8], foreign: &Foreign) -> (Vec<u8>, Rcode, Origin) {
        let (said, origin) = match &self.upstreams {
            None => (Said::only(ResponseCode::Refused), Origin::Nobody),
            Some(upstreams) => upstreams
                .ask(foreign)
                .await
                .unwrap_or_else(|| (Said::only(ResponseCode::ServFail), Origin::Failure)),
        };
        let (reply, rcode) = finish(partial, foreign, said);
        (reply, rcode, origin)
    }
}

impl Upstreams {
    /// Asks the cache, then upstreams; `None` when nobody gave a usable answer.
    async fn ask(&self, foreign: &Foreign) -> Option<(Said, Origin)> {
        let name = Name::from_bytes(&foreign.name).ok()?;
        let query = Query::query(name, RecordType::from(foreign.qtype));
        if let Some(kept) = self.cache.get(&query, Instant::now()) {
            return Some((Said::of(kept, &query)?, Origin::Cache));
        }
        let response = self.pool.lookup(query.clone(), self.request).first_answer();
        let mut result = tokio::time::timeout(DEADLINE, response).await.ok()?.map(DnsResponse::into_message);
        if let Ok(message) = &mut result {
            bound_times(message, foreign.qtype);
        }
        self.cache.insert(query.clone(), result.clone(), Instant::now());
        Some((Said::of(result, &query)?, Origin::Upstream))
    }
}

/// The reply to a question that nobody is asked about: too many others are under way.
pub(crate) fn overloaded(partial: &[u8], foreign: &Foreign) -> (Vec<u8>, Rcode) {
    finish(partial, foreign, Said::only(ResponseCode::ServFail))
}

impl Said {
    fn only(code: ResponseCode) -> Said {
        Said { code, ..Said::default() }
    }

    /// `None` when it is no answer that a client can use.
    fn of(result: Result<Message, NetError>, query: &Query) -> Option<Said> {
        let (code, answers, soa) = match result {
            Ok(message) => {
                let qtype = u16::from(query.query_type());
                let answers = belonging(query.name().clone(), qtype, &message.answers);
                let ends = answers.last().is_some_and(|last| answers_type(last, qtype));
                let soa = message.authorities.into_iter().find(|r| r.record_type() == RecordType::SOA);
                (message.metadata.response_code, answers, soa.filter(|_| !ends))
            }
            Err(NetError::Dns(DnsError::NoRecordsFound(NoRecords { response_code, soa, .. }))) => {
                (response_code, Vec::new(), soa.map(|soa| soa.into_record_of_rdata()))
            }
            Err(_) => return None,
        };
        matches!(code, ResponseCode::NXDomain | ResponseCode::NoError).then_some(Said { code, answers, soa })
    }
}

/// Keeps times within our bounds: those of records, and of an alias with nothing behind it, which is a negative
/// answer (RFC 2308 §2.1) and not to be kept as long as the alias alone would be.
fn bound_times(message: &mut Message, qtype: u16) {
    let mut longest = POSITIVE_MAX.as_secs() as u32;
    if !message.answers.iter().any(|record| answers_type(record, qtype)) {
        let soa = message.authorities.iter().find_map(|record| match &record.data {
            RData::SOA(soa) => Some(record.ttl.min(soa.minimum)),
            _ => None,
        });
        longest = soa.unwrap_or(0).min(NEGATIVE_MAX.as_secs() as u32);
    }
    for record in message.answers.iter_mut().chain(&mut message.authorities) {
        record.ttl = record.ttl.min(longest);
    }
}

/// Whether a record is of the type asked for.
fn answers_type(record: &Record, qtype: u16) -> bool {
    qtype == u16::from(RecordType::ANY) || u16::from(record.record_type()) == qtype
}

/// The records that answer the question: those of the name, and of the names that its aliases lead to.
fn belonging(mut name: Name, qtype: u16, records: &[Record]) -> Vec<Record> {
    let mut chosen: Vec<Record> = Vec::with_capacity(records.len());
    for _ in 0..=records.len() {
        let mut alias = None;
        for record in records.iter().filter(|record| record.name == name && record.dns_class == DNSClass::IN)
        {
            if answers_type(record, qtype) {
                chosen.push(record.clone());
            } else if let RData::CNAME(target) = &record.data {
                chosen.push(record.clone());
                alias = Some(target.0.clone());
            }
        }
        match alias {
            Some(target) if !chosen.iter().any(|record| record.name == target) => name = target,
            _ => break,
        }
    }
    chosen
}

/// Adds records to a reply and cuts it to what the client takes.
fn finish(partial: &[u8], foreign: &Foreign, said: Said) -> (Vec<u8>, Rcode) {
    let Ok(mut message) = Message::from_vec(partial) else {
        return (Vec::new(), Rcode::ServFail);
    };
    message.metadata.response_code = said.code;
    message.metadata.authentic_data = false;
    message.answers.extend(said.answers);
    message.authorities.extend(said.soa);
    if let Some(edns) = foreign.edns {
        let mut ours = Edns::new();
        ours.set_max_payload(OUR_UDP_SIZE).set_version(0).set_dnssec_ok(edns.dnssec_ok);
        message.set_edns(ours);
    }
    let rcode = match said.code {
        ResponseCode::NoError => Rcode::NoError,
        ResponseCode::NXDomain => Rcode::NxDomain,
        ResponseCode::Refused => Rcode::Refused,
        _ => Rcode::ServFail,
    };
    match encode(&message) {
        Some(reply) if reply.len() <= foreign.limit => (reply, rcode),
        // RFC 6891 §7: the OPT record stays, so that the client sees why it should come back over TCP.
        Some(_) => (encode(&message.truncate()).unwrap_or_default(), rcode),
        None => {
            message.metadata.response_code = ResponseCode::ServFail;
            let mut empty = message.truncate();
            empty.metadata.truncation = false;
            (encode(&empty).unwrap_or_default(), Rcode::ServFail)
        }
    }
}

fn encode(message: &Message) -> Option<Vec<u8>> {
    let mut reply = Vec::with_capacity(512);
    let mut encoder = BinEncoder::new(&mut reply);
    message.emit(&mut encoder).ok()?;
    Some(reply)
}
