use std::time::Duration;

use hickory_proto::op::{Edns, Message, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use hickory_proto::serialize::binary::{BinDecodable, BinEncodable, BinEncoder};
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
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

/// Asks upstreams about names of others, and remembers what they said.
///
/// It may be shared by threads and replaced while questions are under way; those end with the old one.
pub struct Forwarder {
    /// `None` without upstreams.
    resolver: Option<TokioResolver>,
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
            return Ok(Forwarder { resolver: None });
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
        let config = ResolverConfig::from_name_servers(servers);
        let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        *builder.options_mut() = options(settings);
        let resolver = builder.build().map_err(ForwardError::Resolver)?;
        Ok(Forwarder { resolver: Some(resolver) })
    }

    /// Completes a reply by what upstreams say. Always gives a reply; the flag is whether an upstream answered.
    pub(crate) async fn complete(&self, partial: &[u8], foreign: &Foreign) -> (Vec<u8>, Rcode, bool) {
        let Some(resolver) = &self.resolver else {
            let (reply, rcode) = finish(partial, foreign, Said::only(ResponseCode::Refused));
            return (reply, rcode, true);
        };
        let said = ask(resolver, foreign).await;
        let reached = said.is_some();
        let said = said.unwrap_or_else(|| Said::only(ResponseCode::ServFail));
        let (reply, rcode) = finish(partial, foreign, said);
        (reply, rcode, reached)
    }

    /// Forgets every answer.
    pub fn flush(&self) {
        if let Some(resolver) = &self.resolver {
            resolver.clear_cache();
        }
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
}

fn options(settings: &DnsSettings) -> ResolverOpts {
    let mut options = ResolverOpts::default();
    options.timeout = TRY;
    options.attempts = RETRIES;
    options.cache_size = settings.cache_size;
    options.use_hosts_file = ResolveHosts::Never;
    options.positive_max_ttl = Some(POSITIVE_MAX);
    options.negative_max_ttl = Some(NEGATIVE_MAX);
    options.max_active_requests = 256;
    options.edns_payload_len = OUR_UDP_SIZE;
    options
}

/// Asks the cache, then upstreams; `None` when nobody gave a usable answer.
async fn ask(resolver: &TokioResolver, foreign: &Foreign) -> Option<Said> {
    let mut name = Name::from_bytes(&foreign.name).ok()?;
    // An absolute name is not tried with search domains.
    name.set_fqdn(true);
    let lookup = resolver.lookup(name.clone(), RecordType::from(foreign.qtype));
    match tokio::time::timeout(DEADLINE, lookup).await.ok()? {
        Ok(lookup) => {
            let answers = belonging(name, foreign.qtype, lookup.answers());
            Some(Said { answers, ..Said::default() })
        }
        Err(NetError::Dns(DnsError::NoRecordsFound(nothing))) => {
            let code = nothing.response_code;
            let soa = nothing.soa.map(|soa| soa.into_record_of_rdata());
            matches!(code, ResponseCode::NXDomain | ResponseCode::NoError).then(|| Said {
                code,
                soa,
                ..Said::default()
            })
        }
        Err(_) => None,
    }
}

/// The records that answer the question: those of the name, and of the names that its aliases lead to.
fn belonging(mut name: Name, qtype: u16, records: &[Record]) -> Vec<Record> {
    let any = qtype == u16::from(RecordType::ANY);
    let mut chosen: Vec<Record> = Vec::with_capacity(records.len());
    for _ in 0..=records.len() {
        let mut alias = None;
        for record in records.iter().filter(|record| record.name == name && record.dns_class == DNSClass::IN)
        {
            if any || u16::from(record.record_type()) == qtype {
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
