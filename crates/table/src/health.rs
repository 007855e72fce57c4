use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddrV4;

use serde::{Deserialize, Serialize};

use crate::{BackendProtocol, BackendTls, HealthPolicy, Timestamp};

/// What is asked of a backend by its probes: two services that ask the same of one address share the verdict, and two
/// that ask otherwise (by TLS, for another path) each have their own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Question(u64);

/// A backend as it is probed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ProbeKey {
    /// The backend.
    #[serde(flatten)]
    pub backend: BackendKey,
    /// What it is asked. One that an older process tells of was asked what everybody is.
    #[serde(default)]
    pub question: Question,
}

/// What a backend is known by. The epoch makes the next owner of an address start unproven.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BackendKey {
    /// Address and port.
    pub addr: SocketAddrV4,
    /// Epoch of the lease that holds the address, 0 for an address without lease.
    pub epoch: u64,
}

/// What the probes found of one backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// The verdict.
    pub state: HealthState,
    /// When it became so.
    pub since: Timestamp,
    /// What the last probe saw, in words; `None` while nothing was seen.
    pub reason: Option<String>,
}

/// Verdict of the active health checks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HealthState {
    /// No probe has passed yet.
    #[default]
    Unproven,
    /// The last probe passed.
    Healthy,
    /// It was healthy and the last probe failed.
    Unhealthy,
}

impl Question {
    /// What a service asks: in the way in which it is spoken to (`tls` matters to HTTPS alone), by a policy. The
    /// default policy without TLS is the default question. Others are told apart by 64 bits of a hash, so that a
    /// verdict needs no text; they are the same in another process of the same build, and in another build a verdict
    /// that is not found is asked for anew.
    pub fn new(protocol: BackendProtocol, tls: &BackendTls, policy: &HealthPolicy) -> Question {
        if protocol == BackendProtocol::Http && policy.is_default() {
            return Question::default();
        }
        let mut hasher = DefaultHasher::new();
        (protocol, (protocol == BackendProtocol::Https).then_some(tls), policy).hash(&mut hasher);
        // Never the default one.
        Question(hasher.finish().max(1))
    }

    /// What a policy asks of what is spoken to in clear; without one the default.
    pub fn plain(policy: Option<&HealthPolicy>) -> Question {
        policy.map_or_else(Question::default, |policy| {
            Question::new(BackendProtocol::Http, &BackendTls::default(), policy)
        })
    }
}

impl ProbeKey {
    /// A backend that is asked what is asked by default.
    pub fn plain(backend: BackendKey) -> ProbeKey {
        ProbeKey { backend, question: Question::default() }
    }
}

impl HealthState {
    /// The word used by the API.
    pub fn as_str(self) -> &'static str {
        match self {
            HealthState::Unproven => "unproven",
            HealthState::Healthy => "healthy",
            HealthState::Unhealthy => "unhealthy",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_differ_by_what_is_asked_and_how() {
        use BackendProtocol::{H2c, Http, Https};
        let (any, strict) = (BackendTls::default(), BackendTls { verify: true, ..BackendTls::default() });
        let policy = HealthPolicy::default();
        let up = HealthPolicy { uri: "/up".to_owned(), ..HealthPolicy::default() };
        let patient = HealthPolicy { fall: 3, ..HealthPolicy::default() };
        let asked = [
            Question::new(Http, &any, &policy),
            Question::new(Https, &any, &policy),
            Question::new(Https, &strict, &policy),
            Question::new(H2c, &any, &policy),
            Question::new(Http, &any, &up),
            Question::new(Http, &any, &patient),
            Question::plain(Some(&HealthPolicy::connect())),
        ];
        for (at, question) in asked.iter().enumerate() {
            assert_eq!(asked.iter().position(|other| other == question), Some(at));
        }
        assert_eq!(asked[0], Question::default());
        assert_eq!(Question::plain(None), Question::default());
        assert_eq!(Question::new(Http, &strict, &up), asked[4], "without TLS it does not matter");
    }

    /// Processes of an upgrade tell each other verdicts, and one of them may be older.
    #[test]
    fn a_verdict_without_a_question_is_on_the_default_one() {
        let backend = BackendKey { addr: "10.20.0.5:80".parse().unwrap(), epoch: 3 };
        let older = serde_json::to_string(&backend).unwrap();
        assert_eq!(serde_json::from_str::<ProbeKey>(&older).unwrap(), ProbeKey::plain(backend));
        let key = ProbeKey { backend, question: Question(u64::MAX) };
        let told = serde_json::to_string(&key).unwrap();
        assert_eq!(serde_json::from_str::<ProbeKey>(&told).unwrap(), key);
        assert_eq!(
            serde_json::from_str::<BackendKey>(&told).unwrap(),
            backend,
            "which is read by older ones"
        );
    }
}
