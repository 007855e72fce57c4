use std::sync::Arc;

use crate::{
    BackendKey, BackendProtocol, BackendTls, Health, HealthPolicy, Name, Question, Redirect, Source,
    VhostPolicy,
};

/// What the proxy does with requests for one host name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The app: key of the vhost, or the leased host name.
    pub app: Arc<str>,
    /// The vhost's main host name as it was written, whatever alias led here; names the access log.
    pub hostname: Name,
    /// Where the vhost comes from.
    pub source: Source,
    /// How requests are treated.
    pub policy: Arc<VhostPolicy>,
    /// What becomes of requests that no path claims.
    pub root: Action,
    /// What becomes of the others, the longest prefix first. A disabled vhost has none.
    pub paths: Vec<PathRoute>,
    /// Where `policy.forward_auth` asks; `None` while the app that is asked has no address, and then nobody
    /// may pass.
    pub auth_backend: Option<Backend>,
}

/// What becomes of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// It is carried to a backend.
    Proxy(Service),
    /// The client is sent elsewhere.
    Redirect(Redirect),
}

/// What becomes of requests for the paths below a prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathRoute {
    /// `/api`: normalised, without a trailing slash.
    pub prefix: Box<str>,
    /// Whether the backend sees the path, or the `{uri}` of a redirect has it, without the prefix.
    pub strip: bool,
    /// What becomes of them.
    pub action: Action,
}

/// Backends that are as good as each other, and how they are spoken to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// How backends are spoken to.
    pub protocol: BackendProtocol,
    /// Whom they must prove to be.
    pub tls: BackendTls,
    /// How backends are probed.
    pub health: Arc<HealthPolicy>,
    /// Everything that is probed, in the order of preference.
    pub candidates: Vec<Backend>,
    /// What a request meets.
    pub verdict: Verdict,
}

/// A backend with what is known of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Address, port and the lease's epoch: pooled connections carry it, so that the next owner of the
    /// address never gets them.
    pub key: BackendKey,
    /// What the probes found; `None` before the first result.
    pub health: Option<Health>,
}

/// A backend and how it is spoken to. What one vhost does wrong, say HTTP to a port that speaks TLS, tells others that
/// speak to it as they should nothing.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct UpstreamKey {
    /// The backend.
    pub backend: BackendKey,
    /// How it is spoken to.
    pub protocol: BackendProtocol,
    /// Whom it must prove to be; `None` in clear.
    pub tls: Option<BackendTls>,
}

/// What a request for a vhost meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// It is carried to a backend.
    Ready,
    /// The app has its lease, and no probe has passed yet.
    Starting,
    /// The app is known and holds no lease.
    Stopped,
    /// The administrator disabled the vhost.
    Disabled,
}

impl Route {
    /// Every set of backends, the one without a path first.
    pub fn services(&self) -> impl Iterator<Item = &Service> {
        let actions = std::iter::once(&self.root).chain(self.paths.iter().map(|path| &path.action));
        actions.filter_map(Action::service)
    }

    /// Every backend of every service, in the order of preference.
    pub fn backends(&self) -> impl Iterator<Item = &Backend> {
        self.services().flat_map(|service| &service.candidates)
    }

    /// The same with how each is spoken to.
    pub fn upstreams(&self) -> impl Iterator<Item = (UpstreamKey, &Backend)> {
        self.services().flat_map(|service| {
            service.candidates.iter().map(|backend| (service.upstream(backend.key), backend))
        })
    }

    /// What a request that no path claims meets; a redirect is ready.
    pub fn verdict(&self) -> Verdict {
        self.root.service().map_or(Verdict::Ready, |service| service.verdict)
    }

    /// Whether it was made from a lease: its ports are guesses.
    pub fn from_lease(&self) -> bool {
        self.source == Source::Lease
    }
}

impl Action {
    /// The backends, unless the client is sent elsewhere.
    pub fn service(&self) -> Option<&Service> {
        match self {
            Action::Proxy(service) => Some(service),
            Action::Redirect(_) => None,
        }
    }
}

impl UpstreamKey {
    /// A backend that is spoken to so; `tls` matters to HTTPS alone.
    pub fn new(backend: BackendKey, protocol: BackendProtocol, tls: &BackendTls) -> UpstreamKey {
        let tls = (protocol == BackendProtocol::Https).then(|| tls.clone());
        UpstreamKey { backend, protocol, tls }
    }

    /// A backend that is spoken to in clear.
    pub fn plain(backend: BackendKey) -> UpstreamKey {
        UpstreamKey { backend, protocol: BackendProtocol::Http, tls: None }
    }
}

impl Service {
    /// What its probes ask.
    pub fn question(&self) -> Question {
        Question::new(self.protocol, &self.tls, &self.health)
    }

    /// One of its backends, and how it is spoken to.
    pub fn upstream(&self, backend: BackendKey) -> UpstreamKey {
        UpstreamKey::new(backend, self.protocol, &self.tls)
    }

    /// The backends that a request may go to: the healthy ones, else all of those that may be tried.
    ///
    /// A vhost made from a lease offers ports that are only guesses until a probe passes, so only the
    /// first proven port is used. One that was asked for is tried even while its probes fail: pausing a
    /// sole backend turns a slow probe into an outage.
    pub fn usable(&self, from_lease: bool) -> impl Iterator<Item = &Backend> {
        let any_healthy = self.candidates.iter().any(Backend::is_healthy);
        let limit = if from_lease { 1 } else { usize::MAX };
        self.candidates
            .iter()
            .filter(
                move |backend| {
                    if any_healthy { backend.is_healthy() } else { !from_lease || backend.was_proven() }
                },
            )
            .take(if self.verdict == Verdict::Ready { limit } else { 0 })
    }
}

impl Backend {
    /// Whether the last probe passed.
    pub fn is_healthy(&self) -> bool {
        self.state() == crate::HealthState::Healthy
    }

    /// Whether any probe has ever passed.
    pub fn was_proven(&self) -> bool {
        self.state() != crate::HealthState::Unproven
    }

    /// The verdict of the probes.
    pub fn state(&self) -> crate::HealthState {
        self.health.as_ref().map(|health| health.state).unwrap_or_default()
    }
}

impl Verdict {
    /// The word used by the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Verdict::Ready => "ready",
            Verdict::Starting => "starting",
            Verdict::Stopped => "stopped",
            Verdict::Disabled => "disabled",
        }
    }
}
