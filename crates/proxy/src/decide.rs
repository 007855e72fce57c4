use std::borrow::Cow;
use std::rc::Rc;

use proximity_table::{BackendKey, Generation, Verdict, World};

use crate::access::client_fields;
use crate::caller::Caller;
use crate::http1::{Kind, Length};
use crate::site::Site;
use crate::ticket::Ticket;
use crate::{ClientSlot, Origin, Reason, RetryAfter, host};

/// Scope of the limits that hold over all vhosts.
pub const EVERYWHERE: u64 = 0;

/// A request that may go on, as far as can be told at once.
pub struct Asked<'a> {
    pub site: Rc<Site>,
    /// The world in which it was decided where it goes.
    generation: Generation,
    /// The target in origin form.
    pub target: &'a [u8],
    /// For whom a trusted proxy asks; `None` when the other end asks for itself.
    pub origin: Option<Origin>,
    /// Field lines that tell the backend who asked.
    pub identity: Vec<u8>,
    /// Most octets that the body may have, 0 for any number.
    pub body_limit: u64,
    /// Counts among the client's requests under way.
    _slot: Option<ClientSlot>,
}

/// Why a request does not go on.
#[derive(Debug)]
pub struct Refusal {
    pub reason: Reason,
    /// Field lines for the answer.
    pub fields: Vec<u8>,
}

impl From<Reason> for Refusal {
    fn from(reason: Reason) -> Refusal {
        Refusal { reason, fields: Vec::new() }
    }
}

impl From<RetryAfter> for Refusal {
    fn from(wait: RetryAfter) -> Refusal {
        let fields = format!("Retry-After: {}\r\n", wait.seconds).into_bytes();
        Refusal { reason: Reason::RateLimited, fields }
    }
}

impl Asked<'_> {
    /// Whether a backend is somebody else's by now, as whoever waited may find.
    pub fn has_left(&self, caller: &Caller, host: &[u8], backend: BackendKey) -> bool {
        caller.worker.generation() != self.generation && !caller.leads_to(host, &self.site, backend)
    }
}

/// Tells for which vhost a request is, and refuses what can be refused without waiting for anybody. One that waited and
/// is decided anew was counted already (`is_first`).
pub fn decide<'a>(caller: &'a Caller, ticket: &mut Ticket<'a>, is_first: bool) -> Result<Asked<'a>, Refusal> {
    let (written, target) = host::target(ticket.head, ticket.bytes)?;
    // RFC 9112 §3.2.2: the host of an absolute target takes the place of the field's.
    ticket.host = written;
    let origin = caller.origin(ticket.head, ticket.bytes)?;
    if let Some(origin) = &origin {
        ticket.client = origin.client;
        ticket.log_prefix = Cow::Owned(client_fields(caller.peer, origin.client));
    }
    let (shared, settings) = (&ticket.worker.shared, ticket.worker.settings());
    if let Some(rate) = settings.client_rate.filter(|_| is_first) {
        shared.rates.take(EVERYWHERE, ticket.client, rate, shared.millis(ticket.start))?;
    }
    let generation = ticket.worker.generation();
    let site = ticket.worker.site(written)?;
    ticket.site = Some(site.clone());
    let mut identity =
        caller.identity(origin.as_ref(), ticket.head.version, written, site.request_edits.as_ref());
    if ticket.head.ambiguous > 0 && is_first {
        ticket.worker.counters.stopped_by(Reason::HeaderName, u64::from(ticket.head.ambiguous));
    }
    // What is switched off needs no guard, and whoever asks for it learns why nothing is there.
    if site.route.verdict() == Verdict::Disabled {
        return Err(Reason::Disabled.into());
    }
    if let Some(rate) = site.rate.filter(|_| is_first) {
        shared.rates.take(site.scope, ticket.client, rate, shared.millis(ticket.start))?;
    }
    if let Some(access) = &site.access {
        let world: std::sync::Arc<World> = ticket.worker.world();
        let caller = |ip| world.caller(ip).map(|label| label.as_str().to_owned());
        access.judge(ticket.client, caller).map_err(Reason::from)?;
    }
    if let Some(reason) = site.fault {
        return Err(reason.into());
    }
    let limits = &site.policy().limits;
    let slot = shared.clients.enter(site.scope, ticket.client, limits.client_connections);
    let slot = slot.map_err(Reason::from)?;
    let own = limits.body;
    let body_limit = if own > 0 { own } else { settings.max_body };
    if matches!(ticket.head.length, Length::Known(octets) if body_limit > 0 && octets > body_limit) {
        return Err(Reason::BodyTooLarge.into());
    }
    if let Some(more) = max_forwards(ticket)? {
        identity.extend_from_slice(format!("Max-Forwards: {more}\r\n").as_bytes());
    }
    Ok(Asked { site, generation, target, origin, identity, body_limit, _slot: slot })
}

/// How many more intermediaries may pass a request on. RFC 9110 §7.6.2: "Each intermediary that receives a TRACE or OPTIONS
/// request containing a Max-Forwards header field MUST check and update its value prior to forwarding the request."
fn max_forwards(ticket: &Ticket<'_>) -> Result<Option<u64>, Reason> {
    let head = ticket.head;
    if !matches!(head.method_text.in_(ticket.bytes), b"OPTIONS" | b"TRACE") {
        return Ok(None);
    }
    let Some(value) = head.value(Kind::MaxForwards, ticket.bytes) else { return Ok(None) };
    let Some(most) = std::str::from_utf8(value).ok().and_then(|value| value.parse::<u64>().ok()) else {
        return Ok(None);
    };
    most.checked_sub(1).map(Some).ok_or(Reason::MaxForwards)
}

impl From<host::HostError> for Refusal {
    fn from(error: host::HostError) -> Refusal {
        Reason::from(error).into()
    }
}
