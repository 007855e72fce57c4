use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use proximity_table::{Action, PathRoute, Rate, Redirect, Route, UpstreamKey, Verdict, VhostPolicy};

use crate::mixing::fnv;
use crate::pool::{Lane, Pool};
use crate::{
    AccessRules, AppCounters, BasicUsers, CompiledEdits, Member, NormalPath, Passive, Reason, RetryBudget,
    Rules, Shared, split_target, strip_prefix, with_path,
};

/// Retries each second that a vhost with few requests has, too.
const LEAST_RETRIES: u32 = 5;

/// A route with what a data thread has ready for its requests.
pub struct Site {
    pub route: Arc<Route>,
    /// Why nobody is answered here: the vhost asks for what cannot be done.
    pub fault: Option<Reason>,
    /// What this thread counts of the app.
    pub counters: Arc<AppCounters>,
    /// Who may ask; `None` when everybody may.
    pub access: Option<AccessRules>,
    /// Who may by name and password; `None` when nobody is asked.
    pub users: Option<Arc<BasicUsers>>,
    pub request_edits: Option<CompiledEdits>,
    pub response_edits: Option<CompiledEdits>,
    /// Names that the trailers of a request must not have: those that its header must not have.
    pub withheld: Option<Rc<CompiledEdits>>,
    pub rules: Rules,
    pub passive: Passive,
    pub budget: RetryBudget,
    pub rate: Option<Rate>,
    /// Tells the limits of this vhost from those of others.
    pub scope: u64,
    /// The way to the service that is asked who may pass.
    pub auth: Option<Ways>,
    /// The ways to the backends: of the root first, then of each path.
    ways: Vec<Ways>,
    turn: Cell<usize>,
}

/// The ways to the usable backends of a service.
#[derive(Default)]
pub struct Ways {
    pub members: Vec<Member>,
    /// In the order of `members`.
    pub lanes: Vec<Rc<Lane>>,
    /// The path below which requests come here.
    pub path: Box<str>,
    /// Whether backends do not see it.
    pub strips: bool,
}

/// Where a request goes.
pub enum Place<'a> {
    /// To a backend, with this target.
    Backends(&'a Ways, Target<'a>),
    /// Elsewhere; the target is what `{uri}` stands for.
    Redirect(&'a Redirect, Target<'a>),
}

/// The target of a request as it is matched and sent on.
pub enum Target<'a> {
    /// As it came.
    AsSent(&'a [u8]),
    Changed(Vec<u8>),
}

impl Site {
    pub fn new(route: Arc<Route>, pool: &Pool, shared: &Shared, now_ms: u64) -> Site {
        let from_lease = route.from_lease();
        let policy = &*route.policy;
        let of = |(path, strips, action): (&str, bool, &Action)| match action {
            Action::Proxy(service) => {
                let usable = service.usable(from_lease).map(|backend| service.upstream(backend.key));
                Ways { strips, ..Ways::new(path, usable, pool, shared, now_ms) }
            }
            Action::Redirect(_) => Ways::default(),
        };
        let paths = route.paths.iter().map(|path| (&*path.prefix, path.strip, &path.action));
        let ways = std::iter::once(("/", false, &route.root)).chain(paths).map(of).collect();
        let access = AccessRules::from(&policy.access);
        let auth = route
            .auth_backend
            .as_ref()
            .map(|backend| Ways::new("/", [UpstreamKey::plain(backend.key)], pool, shared, now_ms));
        // The configuration was checked, perhaps by another version: what nevertheless cannot be done closes the vhost,
        // for a header that was to go may be a secret.
        let compiled = Compiled::new(policy);
        let fault = compiled.is_none().then_some(Reason::Misconfigured);
        let Compiled { users, request_edits, response_edits, withheld } = compiled.unwrap_or_default();
        Site {
            fault,
            counters: shared.apps.counters(&route.app),
            access: (!access.is_open()).then_some(access),
            users,
            request_edits,
            response_edits,
            withheld,
            rules: Rules::of(policy),
            passive: Passive::from(policy.passive),
            budget: RetryBudget::new(policy.retries.budget, LEAST_RETRIES, now_ms),
            rate: policy.limits.client_rate,
            scope: fnv(route.app.as_bytes()),
            auth,
            ways,
            turn: Cell::new(0),
            route,
        }
    }

    /// The policy of the vhost.
    pub fn policy(&self) -> &VhostPolicy {
        &self.route.policy
    }

    /// Where a request for a target goes.
    pub fn place<'a>(&'a self, target: &'a [u8]) -> Result<Place<'a>, Reason> {
        let Some((at, target)) = claim(&self.route, target)? else {
            return self.at(&self.route.root, &self.ways[0], Target::AsSent(target));
        };
        match at {
            None => self.at(&self.route.root, &self.ways[0], target),
            Some(at) => self.at(&self.route.paths[at].action, &self.ways[at + 1], target),
        }
    }

    fn at<'a>(&'a self, action: &'a Action, ways: &'a Ways, target: Target<'a>) -> Result<Place<'a>, Reason> {
        match action {
            Action::Redirect(redirect) => Ok(Place::Redirect(redirect, target)),
            Action::Proxy(service) => {
                ready(service.verdict)?;
                Ok(Place::Backends(ways, target))
            }
        }
    }

    /// The number of the next request.
    pub fn next_turn(&self) -> usize {
        let turn = self.turn.get();
        self.turn.set(turn.wrapping_add(1));
        turn
    }
}

impl Ways {
    fn new(
        path: &str,
        upstreams: impl IntoIterator<Item = UpstreamKey>,
        pool: &Pool,
        shared: &Shared,
        now_ms: u64,
    ) -> Ways {
        let mut ways = Ways { path: path.into(), ..Ways::default() };
        for upstream in upstreams {
            let state = shared.backends.state(&upstream, now_ms);
            ways.members.push(Member { key: upstream.backend, state });
            ways.lanes.push(pool.lane(upstream));
        }
        ways
    }
}

impl Target<'_> {
    /// Its octets.
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Target::AsSent(bytes) => bytes,
            Target::Changed(bytes) => bytes,
        }
    }
}

/// What a policy says of users and header fields, made ready.
#[derive(Default)]
struct Compiled {
    users: Option<Arc<BasicUsers>>,
    request_edits: Option<CompiledEdits>,
    response_edits: Option<CompiledEdits>,
    withheld: Option<Rc<CompiledEdits>>,
}

/// Why requests for a vhost of this policy are refused, if they are.
pub fn fault(policy: &VhostPolicy) -> Option<Reason> {
    Compiled::new(policy).is_none().then_some(Reason::Misconfigured)
}

impl Compiled {
    /// `None` when something of it cannot be done.
    fn new(policy: &VhostPolicy) -> Option<Compiled> {
        let some = |edits: CompiledEdits| Some(edits).filter(|edits| !edits.is_empty());
        let edits = |edits| CompiledEdits::try_from(edits).map(some).ok();
        let users = policy.basic_auth.as_ref().map(BasicUsers::try_from).transpose();
        Some(Compiled {
            users: users.ok()?.map(Arc::new),
            request_edits: edits(&policy.request_headers)?,
            response_edits: edits(&policy.response_headers)?,
            withheld: some(withheld(policy)?).map(Rc::new),
        })
    }
}

/// The path that claims a target, and the target as the backend gets it; `None` when there are no paths and
/// nothing has to be looked at.
pub fn claim<'a>(route: &Route, target: &'a [u8]) -> Result<Option<(Option<usize>, Target<'a>)>, Reason> {
    // Where a service judges paths the app gets them as they were judged.
    let is_looked_at = !route.paths.is_empty() || route.auth_backend.is_some();
    if !is_looked_at || target == b"*" {
        return Ok(None);
    }
    let (path, query) = split_target(target);
    let normal = NormalPath::new(path)?;
    let found = normal.prefix(route.paths.iter().map(|path| &*path.prefix))?;
    let strips = found.map(|at| &route.paths[at]).filter(|path| path.strip);
    if strips.is_none() && normal.is_as_sent() {
        return Ok(Some((found, Target::AsSent(target))));
    }
    let path = match strips {
        Some(PathRoute { prefix, .. }) => strip_prefix(normal.as_bytes(), prefix.as_bytes()),
        None => normal.as_bytes(),
    };
    Ok(Some((found, Target::Changed(with_path(path, query)))))
}

/// What the administrator takes or replaces, and what only the auth service may say.
fn withheld(policy: &VhostPolicy) -> Option<CompiledEdits> {
    let edits = &policy.request_headers;
    let replaced = edits.set.iter().map(|(name, _)| name);
    let granted = policy.forward_auth.iter().flat_map(|auth| &auth.copy_headers);
    let names = edits.remove.iter().chain(replaced).chain(granted).map(String::as_str);
    CompiledEdits::new([], [], names).ok()
}

/// Whether requests may go to the backends of a service.
pub fn ready(verdict: Verdict) -> Result<(), Reason> {
    match verdict {
        Verdict::Disabled => Err(Reason::Disabled),
        Verdict::Stopped => Err(Reason::Stopped),
        Verdict::Starting => Err(Reason::Starting),
        Verdict::Ready => Ok(()),
    }
}
