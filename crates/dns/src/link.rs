//! The way to one upstream: connections by hickory, opened when needed and again when broken.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{DnsRequest, DnsRequestOptions, Message, Query};
use hickory_proto::rr::{Name, RData, RecordType};
use hickory_resolver::config::{ConnectionConfig, ResolverOpts};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::xfer::{DnsHandle, FirstAnswer};
use hickory_resolver::{ConnectionProvider, PoolContext, TlsConfig};
use proximity_table::Upstream;
use tokio::sync::Mutex;

use crate::ede::Ede;
use crate::reply::OUR_UDP_SIZE;
use crate::said::{Said, TtlBounds, Unusable};
use crate::upstream_tls::TlsClient;

/// How long one try waits.
pub(crate) const TRY: Duration = Duration::from_secs(2);
/// Questions under way on one stream.
const PER_CONNECTION: usize = 256;

type Connection = <TokioRuntimeProvider as ConnectionProvider>::Conn;

/// One upstream and the connections to it.
pub(crate) struct Link {
    /// Where it is; for a host name only once that is known.
    place: Place,
    /// Over what it is asked first, and over what when an answer is too long for that.
    ways: Vec<Way>,
    context: PoolContext,
    /// Connections end with it.
    provider: TokioRuntimeProvider,
}

enum Place {
    At(IpAddr),
    /// To be asked of the plain upstreams.
    Named {
        host: Name,
        among: Vec<SharedLink>,
        found: Mutex<Option<IpAddr>>,
    },
}

struct Way {
    config: ConnectionConfig,
    connection: Mutex<Option<Connection>>,
}

/// A question as upstreams are asked it.
#[derive(Clone)]
pub(crate) struct Asked {
    pub query: Query,
    pub dnssec_ok: bool,
    pub checking_disabled: bool,
}

impl Link {
    /// A way to an upstream; `plain` are those that the address of a host name is asked of.
    pub fn new(upstream: &Upstream, plain: &[SharedLink], tls: &TlsClient) -> Link {
        let mut options = ResolverOpts::default();
        options.timeout = TRY;
        options.max_active_requests = PER_CONNECTION;
        let context = PoolContext::new(options, TlsConfig { config: tls.config() });
        let with_port = |mut config: ConnectionConfig, port| {
            config.port = port;
            config
        };
        let (place, configs) = match upstream {
            Upstream::Plain(addr) => {
                let ways = [ConnectionConfig::udp(), ConnectionConfig::tcp()];
                (Place::At(addr.ip()), ways.map(|way| with_port(way, addr.port())).to_vec())
            }
            Upstream::Tls { addr, server_name } => {
                let way = ConnectionConfig::tls(server_name.as_str().into());
                (Place::At(addr.ip()), vec![with_port(way, addr.port())])
            }
            Upstream::Https { host, port, path } => {
                let way = ConnectionConfig::https(host.as_str().into(), Some(path.as_str().into()));
                let place = match (host.parse(), Name::from_ascii(format!("{host}."))) {
                    (Err(_), Ok(host)) => {
                        Place::Named { host, among: plain.to_vec(), found: Mutex::default() }
                    }
                    (ip, _) => Place::At(ip.unwrap_or(IpAddr::from([0, 0, 0, 0]))),
                };
                (place, vec![with_port(way, *port)])
            }
        };
        let way = |config| Way { config, connection: Mutex::default() };
        Link {
            place,
            ways: configs.into_iter().map(way).collect(),
            context,
            provider: TokioRuntimeProvider::default(),
        }
    }

    /// Asks once; over a stream again when the answer was cut, and without EDNS when that is not understood.
    pub async fn ask(&self, asked: &Asked, bounds: &TtlBounds) -> Result<Said, Ede> {
        let mut edns = true;
        let mut way = self.ways.iter();
        let mut current = way.next().ok_or(Ede::NetworkError)?;
        loop {
            let message = match self.exchange(current, asked.request(edns)).await {
                Ok(message) => message,
                Err(NetError::Timeout) => return Err(Ede::NoReachableAuthority),
                Err(_) => return Err(Ede::NetworkError),
            };
            match Said::read(message, &asked.query, asked.dnssec_ok && edns, bounds) {
                Ok(said) => return Ok(said),
                Err(Unusable::Truncated) => current = way.next().ok_or(Ede::NetworkError)?,
                // RFC 6891 §7: "FORMERR" is what one without EDNS says.
                Err(Unusable::NoEdns) if edns => edns = false,
                Err(Unusable::NoEdns) => return Err(Ede::Other),
                Err(Unusable::Failed(why)) => return Err(why),
                Err(Unusable::Lame) => return Err(Ede::NoReachableAuthority),
                Err(Unusable::OtherQuestion) => return Err(Ede::NetworkError),
            }
        }
    }

    async fn exchange(&self, way: &Way, request: DnsRequest) -> Result<Message, NetError> {
        let exchange = async {
            let (connection, is_old) = self.connection(way).await?;
            match connection.send(request.clone()).first_answer().await {
                // It was closed while nobody asked; that is no failure of the upstream.
                Err(error) if is_old && !matches!(error, NetError::Timeout) => {
                    *way.connection.lock().await = None;
                    let (connection, _) = self.connection(way).await?;
                    connection.send(request).first_answer().await
                }
                result => result,
            }
        };
        match tokio::time::timeout(TRY, exchange).await {
            Ok(Ok(response)) => Ok(response.into_message()),
            Ok(Err(error)) => {
                *way.connection.lock().await = None;
                Err(error)
            }
            Err(_) => {
                // A stream on which nothing comes back any more may be one that a firewall forgot.
                *way.connection.lock().await = None;
                Err(NetError::Timeout)
            }
        }
    }

    /// The connection, and whether it was there before.
    async fn connection(&self, way: &Way) -> Result<(Connection, bool), NetError> {
        let mut place = way.connection.lock().await;
        if let Some(connection) = &*place {
            return Ok((connection.clone(), true));
        }
        let ip = self.address().await?;
        let connection = self.provider.new_connection(ip, &way.config, &self.context)?.await?;
        *place = Some(connection.clone());
        Ok((connection, false))
    }

    async fn address(&self) -> Result<IpAddr, NetError> {
        let (host, among, found) = match &self.place {
            Place::At(ip) => return Ok(*ip),
            Place::Named { host, among, found } => (host, among, found),
        };
        let mut found = found.lock().await;
        if let Some(ip) = *found {
            return Ok(ip);
        }
        for (link, rtype) in
            among.iter().flat_map(|link| [RecordType::A, RecordType::AAAA].map(|rtype| (link, rtype)))
        {
            let asked = Asked {
                query: Query::query(host.clone(), rtype),
                dnssec_ok: false,
                checking_disabled: false,
            };
            let bounds = TtlBounds { min: 0, max: u32::MAX, negative_max: 0 };
            let Ok(said) = Box::pin(link.ask(&asked, &bounds)).await else { continue };
            let ip = said.answers.iter().find_map(|record| match &record.data {
                RData::A(a) => Some(IpAddr::V4(a.0)),
                RData::AAAA(aaaa) => Some(IpAddr::V6(aaaa.0)),
                _ => None,
            });
            if let Some(ip) = ip {
                *found = Some(ip);
                return Ok(ip);
            }
        }
        Err(NetError::NoConnections)
    }
}

impl Asked {
    /// What the client said of itself stays here: no option of its EDNS goes out (RFC 7871 §11.1).
    fn request(&self, edns: bool) -> DnsRequest {
        let mut options = DnsRequestOptions::default();
        options.use_edns = edns;
        options.edns_payload_len = OUR_UDP_SIZE;
        options.edns_set_dnssec_ok = self.dnssec_ok;
        let mut request = DnsRequest::from_query(self.query.clone(), options);
        request.metadata.checking_disabled = self.checking_disabled;
        request
    }
}

/// Shared so that its connections outlive the question that opened them.
pub(crate) type SharedLink = Arc<Link>;
