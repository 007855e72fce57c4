use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{Name as DnsName, RecordType};
use hickory_proto::serialize::binary::{BinDecodable, BinEncodable, BinEncoder};
use proximity_table::{Name, Timestamp, Upstream};
use thiserror::Error;
use tokio::runtime::Handle;

use crate::cache::{Cache, Worth};
use crate::ede::{Ede, opt_length};
use crate::flights::{Boarding, Flight, Flights, Landed, landed};
use crate::foreign::{Foreign, is_within, parts};
use crate::front::Front;
use crate::health::{Health, UpstreamStatus};
use crate::kept::{Age, Kept, failure};
use crate::link::{Asked, Link};
use crate::query::HEADER;
use crate::race::{Runner, Runners};
use crate::rebind::is_private;
use crate::reply::Rcode;
use crate::settings::DnsSettings;
use crate::upstream_tls::{AuthoritiesError, TlsClient};

/// How long a client waits for upstreams when there is an old answer (RFC 8767 §5).
const PATIENCE: Duration = Duration::from_millis(1800);

/// Asks upstreams about names of others, and remembers what they said.
///
/// It may be shared by threads and replaced while questions are under way; those end with the old one. Upstreams
/// are recursive: where an alias leads is theirs to say. To ask again about its target could send our own names out.
pub struct Forwarder {
    settings: DnsSettings,
    cache: Cache,
    flights: Arc<Flights>,
    /// Who is asked about names of a domain, the longest domain first; the root is the last, if there is one.
    domains: Vec<Domain>,
    counts: Counts,
}

struct Domain {
    name: Box<[u8]>,
    /// As the configuration has it; `None` for all other names.
    written: Option<Name>,
    runners: Runners,
}

#[derive(Default)]
struct Counts {
    stale: AtomicU64,
    prefetched: AtomicU64,
    joined: AtomicU64,
    rebinding: AtomicU64,
}

/// How forwarding does at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ForwardStatus {
    /// Every upstream.
    pub upstreams: Vec<UpstreamStatus>,
    /// Answers that are kept.
    pub cached: u64,
    /// Answers given out after their time because upstreams failed.
    pub stale: u64,
    /// Questions asked again before their time was over.
    pub prefetched: u64,
    /// Questions that waited for the answer to the same question of another client.
    pub joined: u64,
    /// Answers that were kept from clients because they lead into a private network.
    pub rebinding: u64,
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
    /// The file of authorities is not usable.
    #[error("dns.upstream_ca: {0}")]
    Authorities(#[from] AuthoritiesError),
    /// Nobody can be asked where an upstream is.
    #[error(
        "upstream `{0}` has a name that nobody can be asked for: write its address, or a plain upstream such as 1.1.1.1 beside it"
    )]
    NameWithoutPlain(Upstream),
}

impl Forwarder {
    /// A forwarder with an empty cache.
    pub fn new(settings: &DnsSettings) -> Result<Forwarder, ForwardError> {
        let tls = TlsClient::new(settings.upstream_ca.as_deref())?;
        let mut known: Vec<(Upstream, Arc<Runner>)> = Vec::new();
        // Those without a name to be looked up come first: the others need them.
        let all = || settings.forward.iter().flat_map(|(_, upstreams)| upstreams).chain(&settings.upstream);
        for upstream in all().filter(|upstream| upstream.ip().is_some()).chain(all()) {
            if known.iter().any(|(other, _)| other == upstream) {
                continue;
            }
            let plain: Vec<_> =
                settings.upstream.iter().filter(|upstream| upstream.plain().is_some()).collect();
            if upstream.ip().is_none() && plain.is_empty() {
                return Err(ForwardError::NameWithoutPlain(upstream.clone()));
            }
            let plain: Vec<_> = known
                .iter()
                .filter(|(other, _)| plain.contains(&other))
                .map(|(_, runner)| runner.link.clone())
                .collect();
            let link = Arc::new(Link::new(upstream, &plain, &tls));
            let runner = Runner { label: upstream.to_string(), link, health: Health::default() };
            known.push((upstream.clone(), Arc::new(runner)));
        }
        let runners = |upstreams: &[Upstream]| {
            let those = upstreams.iter().filter_map(|one| known.iter().find(|(other, _)| other == one));
            Runners::new(those.map(|(_, runner)| runner.clone()).collect())
        };
        let mut domains: Vec<Domain> = settings
            .forward
            .iter()
            .map(|(name, upstreams)| Domain {
                name: name.as_wire().into(),
                written: Some(name.clone()),
                runners: runners(upstreams),
            })
            .collect();
        domains.sort_by_key(|domain| std::cmp::Reverse(domain.name.len()));
        if !settings.upstream.is_empty() {
            domains.push(Domain { name: [0].into(), written: None, runners: runners(&settings.upstream) });
        }
        Ok(Forwarder {
            settings: settings.clone(),
            cache: Cache::new(settings.cache_size),
            flights: Arc::default(),
            domains,
            counts: Counts::default(),
        })
    }

    /// What it was made of.
    pub fn settings(&self) -> &DnsSettings {
        &self.settings
    }

    /// Forgets all answers, or those about a name and all names below it; returns how many.
    pub fn flush(&self, name: Option<&Name>) -> usize {
        self.cache.flush(name.map(Name::as_wire))
    }

    /// How it does.
    pub fn status(&self) -> ForwardStatus {
        let upstreams = self.domains.iter().flat_map(|domain| {
            let written = domain.written.as_ref().map(Name::to_string);
            domain
                .runners
                .iter()
                .map(move |runner| runner.health.status(runner.label.clone(), written.clone()))
        });
        ForwardStatus {
            upstreams: upstreams.collect(),
            cached: self.cache.entries(),
            stale: self.counts.stale.load(Relaxed),
            prefetched: self.counts.prefetched.load(Relaxed),
            joined: self.counts.joined.load(Relaxed),
            rebinding: self.counts.rebinding.load(Relaxed),
        }
    }

    /// Completes the reply in `out`, which is header and question, by an answer that is kept and holds. Without
    /// waiting, and from `front` without a lock and without allocating.
    pub(crate) fn answer_at_once(
        self: &Arc<Self>,
        foreign: &Foreign,
        mut front: Option<&mut Front>,
        clock: fn() -> Timestamp,
        now: Timestamp,
        out: &mut Vec<u8>,
    ) -> Option<Rcode> {
        if foreign.aliased {
            return None;
        }
        let key = foreign.key();
        let generation = self.cache.generation();
        let place = front.as_deref_mut().and_then(|front| front.find(&key, generation));
        let found = match place {
            Some(_) => None,
            None => Some(self.cache.find(&key)?),
        };
        let kept = match (&found, place.zip(front.as_deref())) {
            (Some(found), _) => {
                if let Some(front) = front {
                    front.keep(found, generation);
                }
                found
            }
            (None, Some((place, front))) => front.at(place)?,
            (None, None) => return None,
        };
        let Age::Fresh(age) = kept.age(now) else { return None };
        if self.settings.prefetch && kept.is_due(age) {
            self.prefetch(&key, clock);
        }
        Some(kept.write(out, foreign, Age::Fresh(age)))
    }

    /// Completes a reply by what upstreams say. Always gives a reply.
    pub(crate) async fn complete(
        self: &Arc<Self>,
        mut partial: Vec<u8>,
        foreign: &Foreign,
        clock: fn() -> Timestamp,
    ) -> (Vec<u8>, Rcode, Origin) {
        let key = foreign.key();
        if self.domain(&foreign.name).is_none() {
            let rcode = failure(&mut partial, foreign, Rcode::Refused, None);
            return (partial, rcode, Origin::Nobody);
        }
        let old =
            self.cache.find(&key).map(|kept| (Worth::of(&kept, clock(), self.settings.serve_stale), kept));
        let (answer, origin) = match old {
            Some((Worth::Fresh(age), kept)) => (Ok((kept, age)), Origin::Cache),
            Some((Worth::Stale(age), old)) => match self.newer(&key, clock, Some(PATIENCE)).await {
                Ok(kept) => (Ok((kept, Age::Fresh(0))), Origin::Upstream),
                Err(_) => {
                    self.counts.stale.fetch_add(1, Relaxed);
                    (Ok((old, age)), Origin::Cache)
                }
            },
            _ => match self.newer(&key, clock, None).await {
                Ok(kept) => (Ok((kept, Age::Fresh(0))), Origin::Upstream),
                Err(why) => (Err(why), Origin::Failure),
            },
        };
        let rcode = match answer {
            Ok((kept, age)) if foreign.aliased => append(&mut partial, foreign, &kept, age),
            Ok((kept, age)) => kept.write(&mut partial, foreign, age),
            Err(why) => failure(&mut partial, foreign, Rcode::ServFail, Some(why)),
        };
        (partial, rcode, origin)
    }

    /// What upstreams say now. The question goes on when the patience is over.
    async fn newer(
        self: &Arc<Self>,
        key: &[u8],
        clock: fn() -> Timestamp,
        patience: Option<Duration>,
    ) -> Landed {
        if let Some(why) = self.cache.failed(key, clock()) {
            return Err(why);
        }
        let waiting = match self.flights.board(key) {
            Boarding::Full => return Err(Ede::Other),
            Boarding::Joined(waiting) => {
                self.counts.joined.fetch_add(1, Relaxed);
                waiting
            }
            Boarding::Own(flight, waiting) => {
                let forwarder = self.clone();
                tokio::spawn(async move { forwarder.fly(flight, clock).await });
                waiting
            }
        };
        match patience {
            None => landed(waiting).await,
            Some(patience) => {
                let landed = tokio::time::timeout(patience, landed(waiting)).await;
                landed.unwrap_or(Err(Ede::NoReachableAuthority))
            }
        }
    }

    /// Asks again for what will soon be over.
    fn prefetch(self: &Arc<Self>, key: &[u8], clock: fn() -> Timestamp) {
        let Ok(runtime) = Handle::try_current() else { return };
        if let Boarding::Own(flight, _) = self.flights.board(key) {
            self.counts.prefetched.fetch_add(1, Relaxed);
            let forwarder = self.clone();
            runtime.spawn(async move { forwarder.fly(flight, clock).await });
        }
    }

    /// Asks upstreams, keeps what they say, and tells those who wait.
    async fn fly(&self, flight: Flight, clock: fn() -> Timestamp) {
        let generation = self.cache.generation();
        let landed = self.ask(flight.key(), clock).await.map(Arc::new);
        match &landed {
            Ok(kept) => self.cache.keep(kept.clone(), generation),
            Err(why) => self.cache.fail(flight.key(), clock(), *why),
        }
        flight.land(landed);
    }

    async fn ask(&self, key: &[u8], clock: fn() -> Timestamp) -> Result<Kept, Ede> {
        let (wire, qtype, dnssec_ok, checking_disabled) = parts(key);
        let name = DnsName::from_bytes(wire).map_err(|_| Ede::Other)?;
        let query = Query::query(name, RecordType::from(qtype));
        let domain = self.domain(wire).ok_or(Ede::NoReachableAuthority)?;
        let asked = Asked { query, dnssec_ok, checking_disabled };
        let mut said = domain.runners.ask(&asked, &self.settings.ttl, clock).await?;
        // A domain with upstreams of its own is one that the operator knows.
        let is_exempt = !self.settings.rebind_protection
            || domain.written.is_some()
            || self.settings.rebind_exempt.iter().any(|exempt| is_within(wire, exempt.as_wire()));
        if !is_exempt && said.block_private(|ip| is_private(ip, &self.settings.own_networks)) {
            self.counts.rebinding.fetch_add(1, Relaxed);
        }
        Kept::of(&said, key, &asked.query, clock()).ok_or(Ede::Other)
    }

    fn domain(&self, name: &[u8]) -> Option<&Domain> {
        self.domains.iter().find(|domain| is_within(name, &domain.name))
    }
}

/// The reply to a question that nobody is asked about: too many others are under way.
pub(crate) fn overloaded(partial: &mut Vec<u8>, foreign: &Foreign) -> Rcode {
    failure(partial, foreign, Rcode::ServFail, Some(Ede::Other))
}

/// Adds the records of an answer to a reply that already holds aliases of ours, and cuts it to what the client takes.
fn append(partial: &mut Vec<u8>, foreign: &Foreign, kept: &Kept, age: Age) -> Rcode {
    let mut question = foreign.name.to_vec();
    question.extend_from_slice(&foreign.qtype.to_be_bytes());
    question.extend_from_slice(&1u16.to_be_bytes());
    let messages = kept.message(&question, foreign, age).zip(Message::from_vec(partial).ok());
    let whole = messages.and_then(|(theirs, mut ours)| {
        ours.add_answers(theirs.answers);
        ours.add_authorities(theirs.authorities);
        ours.metadata.response_code = ResponseCode::NoError;
        let mut wire = Vec::with_capacity(512);
        ours.emit(&mut BinEncoder::new(&mut wire)).ok()?;
        Some(wire)
    });
    let Some(whole) = whole else {
        return failure(partial, foreign, Rcode::ServFail, Some(Ede::Other));
    };
    let ede = if matches!(age, Age::Stale(_)) { Some(Ede::StaleAnswer) } else { kept.ede };
    let opt = if foreign.edns.is_some() { opt_length(ede) } else { 0 };
    if whole.len() + opt > foreign.limit {
        truncate(partial);
    } else {
        *partial = whole;
    }
    failure(partial, foreign, kept.rcode, ede)
}

/// Leaves the header and the question, and says that there is more.
fn truncate(partial: &mut Vec<u8>) {
    let mut end = HEADER;
    while let Some(&length) = partial.get(end)
        && length != 0
    {
        end += 1 + usize::from(length);
    }
    partial.truncate(end + 5);
    if let Some(header) = partial.first_chunk_mut::<HEADER>() {
        header[2] |= 0x02;
        header[6..].fill(0);
    }
}
