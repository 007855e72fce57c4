use std::sync::Arc;

use crate::{BackendKey, BackendProtocol, Health, HealthPolicy, Name, Source};

/// What the proxy does with requests for one host name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The app: key of the vhost, or the leased host name.
    pub app: Arc<str>,
    /// The vhost's main host name, whatever alias led here; names the access log.
    pub hostname: Name,
    /// Where the vhost comes from.
    pub source: Source,
    /// How backends are spoken to.
    pub protocol: BackendProtocol,
    /// How backends are probed.
    pub health: Arc<HealthPolicy>,
    /// Everything that is probed for this vhost, in the order of preference.
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
    /// The backends that a request may go to: the healthy ones, else all of those that may be tried.
    ///
    /// A vhost made from a lease offers ports that are only guesses until a probe passes, so only the
    /// first proven port is used. One that was asked for is tried even while its probes fail: pausing a
    /// sole backend turns a slow probe into an outage.
    pub fn usable(&self) -> impl Iterator<Item = &Backend> {
        let any_healthy = self.candidates.iter().any(Backend::is_healthy);
        let from_lease = self.source == Source::Lease;
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
