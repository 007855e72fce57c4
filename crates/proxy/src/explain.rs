use proximity_table::{Action, BackendKey, Route, Verdict};

use crate::pages::words;
use crate::{BackendLoad, Reason, site};

/// What a visitor meets, in the words of the page that says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// Why no backend answers; `None` when one does, as far as is known.
    pub reason: Option<Reason>,
    /// The page's title.
    pub title: &'static str,
    /// What happened.
    pub why: &'static str,
    /// What to do.
    pub advice: &'static str,
}

/// Tells what a request for the root of a vhost meets, by the same rules and in the same words as the proxy. `load`
/// tells what requests found out of a backend.
pub fn explain(route: Option<&Route>, load: impl Fn(&BackendKey) -> Option<BackendLoad>) -> Explanation {
    let Some(route) = route else { return Explanation::of(Some(Reason::UnknownHost)) };
    if let Some(reason) = site::fault(&route.policy) {
        return Explanation::of(Some(reason));
    }
    let Action::Proxy(service) = &route.root else { return Explanation::of(None) };
    Explanation::of(match service.verdict {
        Verdict::Disabled => Some(Reason::Disabled),
        Verdict::Stopped => Some(Reason::Stopped),
        Verdict::Starting => Some(Reason::Starting),
        Verdict::Ready => {
            // As long as one of those that may be asked answers, requests are answered.
            let mut failures = service
                .usable(route.from_lease())
                .map(|backend| load(&backend.key).and_then(|load| load.last_failure));
            let first = failures.next().unwrap_or(Some(Reason::BackendRefused));
            first.filter(|_| failures.all(|failure| failure.is_some()))
        }
    })
}

impl Explanation {
    fn of(reason: Option<Reason>) -> Explanation {
        match reason.map(words) {
            Some(words) => Explanation { reason, title: words.title, why: words.why, advice: words.advice },
            None => Explanation {
                reason,
                title: "This app answers",
                why: "Requests are carried to it, and nothing that is known speaks against it.",
                advice: "Nothing needs to be done.",
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proximity_table::{
        Backend, BackendProtocol, BackendTls, Health, HealthPolicy, HealthState, Service, Source, Timestamp,
        VhostPolicy,
    };

    use super::*;
    use crate::Circuit;

    fn route(verdict: Verdict, backends: u16) -> Route {
        let health = Health { state: HealthState::Healthy, since: Timestamp(0), reason: None };
        let candidates = (0..backends).map(|port| Backend {
            key: BackendKey { addr: format!("10.20.0.5:{}", 80 + port).parse().unwrap(), epoch: 1 },
            health: Some(health.clone()),
        });
        Route {
            app: "wiki".into(),
            hostname: "wiki.prox.local".parse().unwrap(),
            source: Source::Api,
            policy: VhostPolicy::unchanged(),
            root: Action::Proxy(Service {
                protocol: BackendProtocol::Http,
                tls: BackendTls::default(),
                health: Arc::new(HealthPolicy::default()),
                candidates: candidates.collect(),
                verdict,
            }),
            paths: Vec::new(),
            auth_backend: None,
        }
    }

    fn load(last_failure: Option<Reason>) -> BackendLoad {
        BackendLoad {
            in_flight: 0,
            waiting: 0,
            failures: 0,
            pauses: 0,
            circuit: Circuit::Closed,
            last_failure,
        }
    }

    #[test]
    fn what_is_said_is_what_the_page_says() {
        let of = |verdict| explain(Some(&route(verdict, 1)), |_| None).reason;
        assert_eq!(explain(None, |_| None).reason, Some(Reason::UnknownHost));
        assert_eq!(of(Verdict::Stopped), Some(Reason::Stopped));
        assert_eq!(of(Verdict::Starting), Some(Reason::Starting));
        assert_eq!(of(Verdict::Disabled), Some(Reason::Disabled));
        assert_eq!(of(Verdict::Ready), None);
    }

    #[test]
    fn a_vhost_that_lets_nobody_in_is_told() {
        let mut closed = route(Verdict::Ready, 1);
        let mut policy = VhostPolicy::default();
        policy.request_headers.remove = vec!["host".to_owned()];
        closed.policy = policy.shared();
        assert_eq!(explain(Some(&closed), |_| None).reason, Some(Reason::Misconfigured));
    }

    #[test]
    fn an_app_is_broken_when_all_of_its_backends_are() {
        let two = route(Verdict::Ready, 2);
        let refused = Some(Reason::BackendRefused);
        assert_eq!(explain(Some(&two), |_| Some(load(refused))).reason, refused);
        let one_of_them = |key: &BackendKey| Some(load(refused.filter(|_| key.addr.port() == 80)));
        assert_eq!(explain(Some(&two), one_of_them).reason, None);
    }
}
