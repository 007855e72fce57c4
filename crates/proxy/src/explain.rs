use std::net::IpAddr;

use proximity_table::{
    Action, Backend, BackendTarget, HealthState, ProxySettings, Route, Service, Timestamp, UpstreamKey,
    Verdict, World,
};

use crate::condition::is_full;
use crate::health::meets;
use crate::pages::words;
use crate::site::{claim, fault, ready};
use crate::{AccessRules, AppTotals, BackendLoad, Circuit, Reason, explain_steps};

/// A request that is to be explained, and what is known of where it goes.
#[derive(Clone, Copy)]
pub struct Question<'a> {
    /// The network as it is.
    pub world: &'a World,
    /// The target of the request in origin form, such as `/api/x?y=z`.
    pub target: &'a str,
    /// Who asks, if that is to be looked at.
    pub from: Option<IpAddr>,
    /// What holds for all vhosts.
    pub settings: &'a ProxySettings,
    /// What was counted of the app.
    pub counts: &'a AppTotals,
    /// What requests found out of a backend.
    pub load: &'a dyn Fn(&UpstreamKey) -> Option<BackendLoad>,
    /// The present time.
    pub now: Timestamp,
}

/// What a visitor meets, in the words of the page that says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// Why no backend answers; `None` when one does, as far as is known.
    pub reason: Option<Reason>,
    /// The word of the reason, `ok`, or `unhealthy` where requests are carried to backends that fail their probes.
    pub verdict: &'static str,
    /// The page's title.
    pub title: &'static str,
    /// What happened.
    pub why: &'static str,
    /// What to do.
    pub advice: &'static str,
    /// What was looked at, in the order in which a request meets it.
    pub steps: Vec<Step>,
    /// Whom the request may be sent to, as it was written; nobody for a vhost made from a lease, which is the app's own.
    pub targets: Vec<BackendTarget>,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// What it is: `vhost`, `limits`, `access`, `password`, `auth`, `path`, `backend`, `requests` or `header`.
    pub step: &'static str,
    /// Whether it lets the request through.
    pub ok: bool,
    /// What is known of it.
    pub says: String,
}

/// What becomes of a request that is not refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Answered,
    Redirected,
    /// By backends whose probes fail.
    Doubtful,
}

/// Tells what a request for a vhost meets, by the same rules and in the same words as the proxy.
pub fn explain(question: &Question<'_>, route: Option<&Route>) -> Explanation {
    let (steps, targets) = explain_steps::of(question, route);
    let outcome = route.ok_or(Reason::UnknownHost).and_then(|route| question.outcome(route));
    let (verdict, title, why, advice) = match outcome {
        Err(reason) => {
            let words = words(reason);
            (reason.as_str(), words.title, words.why, words.advice)
        }
        Ok(Outcome::Answered) => (
            "ok",
            "This app answers",
            "Requests are carried to it, and nothing that is known speaks against it.",
            "Nothing needs to be done.",
        ),
        Ok(Outcome::Redirected) => (
            "ok",
            "Visitors are sent elsewhere",
            "This address answers with a redirect, as it was set up to.",
            "Nothing needs to be done.",
        ),
        Ok(Outcome::Doubtful) => (
            "unhealthy",
            "This app fails its health checks",
            "Requests are carried to it all the same, as there is nothing better to carry them to.",
            "Look into the log of the app, or correct the health check if the app is well.",
        ),
    };
    Explanation { reason: outcome.err(), verdict, title, why, advice, steps, targets }
}

impl Question<'_> {
    /// What becomes of the request, decided in the order in which the proxy does.
    fn outcome(&self, route: &Route) -> Result<Outcome, Reason> {
        if route.verdict() == Verdict::Disabled {
            return Err(Reason::Disabled);
        }
        self.access(route)?;
        if let Some(fault) = fault(&route.policy) {
            return Err(fault);
        }
        if route.policy.forward_auth.is_some() && route.auth_backend.is_none() {
            return Err(Reason::AuthUnavailable);
        }
        let action = self.action(route)?;
        if route.auth_backend.as_ref().is_some_and(|service| self.auth_failure(service).is_some()) {
            return Err(Reason::AuthUnavailable);
        }
        let Action::Proxy(service) = action else { return Ok(Outcome::Redirected) };
        ready(service.verdict)?;
        let usable: Vec<&Backend> = service.usable(route.from_lease()).collect();
        if self.are_full(&usable, service, route) {
            return Err(Reason::QueueFull);
        }
        let failures: Vec<Option<Reason>> = usable.iter().map(|one| self.failure(one, service)).collect();
        // As long as one of those that may be asked answers, requests are answered.
        match failures.first().copied().unwrap_or(Some(Reason::BackendRefused)) {
            Some(first) if failures.iter().all(Option::is_some) => Err(first),
            _ if usable.iter().all(|one| is_doubtful(one, service)) => Ok(Outcome::Doubtful),
            _ => Ok(Outcome::Answered),
        }
    }

    /// Whether who asks may.
    pub fn access(&self, route: &Route) -> Result<(), Reason> {
        let Some(from) = self.from else { return Ok(()) };
        let rules = AccessRules::from(&route.policy.access);
        let caller = |ip| self.world.caller(ip).map(|label| label.as_str().to_owned());
        rules.judge(from, caller).map_err(Reason::from)
    }

    /// What a request for the path does.
    pub fn action<'r>(&self, route: &'r Route) -> Result<&'r Action, Reason> {
        Ok(match claim(route, self.target.as_bytes())? {
            Some((Some(at), _)) => &route.paths[at].action,
            _ => &route.root,
        })
    }

    /// Whether there is no room for a request at any of the backends that it may go to: as long as one is not paused,
    /// those that are paused do not count.
    fn are_full(&self, usable: &[&Backend], service: &Service, route: &Route) -> bool {
        let loads: Vec<Option<BackendLoad>> =
            usable.iter().map(|backend| (self.load)(&service.upstream(backend.key))).collect();
        let is_paused = |load: &BackendLoad| matches!(load.circuit, Circuit::Open { .. });
        let are_all_paused = loads.iter().all(|load| load.as_ref().is_some_and(is_paused));
        let mut open =
            loads.iter().filter(|load| are_all_paused || !load.as_ref().is_some_and(is_paused)).peekable();
        open.peek().is_some()
            && open.all(|load| load.as_ref().is_some_and(|load| is_full(load, &route.policy)))
    }

    /// What a request meets at a backend: what the last one did, or as long as there was none what its probes say.
    fn failure(&self, backend: &Backend, service: &Service) -> Option<Reason> {
        match (self.load)(&service.upstream(backend.key)).filter(|load| load.is_known) {
            Some(load) => load.failing(),
            None => met_by_probes(backend, service),
        }
    }

    /// What a question meets at the service that decides who may come in.
    pub fn auth_failure(&self, service: &Backend) -> Option<Reason> {
        match (self.load)(&UpstreamKey::plain(service.key)).filter(|load| load.is_known) {
            Some(load) => load.failing(),
            None => failed_probe(service).and_then(meets),
        }
    }
}

/// What the last probe of a backend said, if it failed and so many before it that this counts.
fn failed_probe(backend: &Backend) -> Option<&str> {
    let health = backend.health.as_ref().filter(|health| health.state != HealthState::Healthy)?;
    health.reason.as_deref()
}

/// What a request meets at a backend by what its probes say, as far as that follows.
fn met_by_probes(backend: &Backend, service: &Service) -> Option<Reason> {
    let asks_itself = service.health.port.is_none_or(|port| port == backend.key.addr.port());
    failed_probe(backend).filter(|_| asks_itself).and_then(meets)
}

/// Whether the probes of a backend fail in a way that tells nothing of what requests meet. If it does tell, requests
/// have been answered since.
fn is_doubtful(backend: &Backend, service: &Service) -> bool {
    failed_probe(backend).is_some() && met_by_probes(backend, service).is_none()
}

#[cfg(test)]
#[path = "explain_tests.rs"]
mod tests;
