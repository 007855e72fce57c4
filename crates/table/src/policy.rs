use std::sync::{Arc, LazyLock};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{BackendTarget, Label};

/// How the proxy treats the requests of one vhost. The default is what a vhost of three lines, or one made
/// from a lease, has. Times are in seconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct VhostPolicy {
    /// What stands in `Host` towards the backend.
    #[serde(skip_serializing_if = "is_default")]
    pub host: HostPolicy,
    /// Who of several backends gets a request.
    #[serde(skip_serializing_if = "is_default")]
    pub balance: Balance,
    /// What keeps a visitor at the same backend, if anything.
    #[serde(skip_serializing_if = "is_default")]
    pub affinity: Option<Affinity>,
    /// When requests that fail pause a backend.
    #[serde(skip_serializing_if = "is_default")]
    pub passive: PassivePolicy,
    /// Seconds over which a backend that became usable takes up its full share; 0 = at once.
    #[serde(skip_serializing_if = "is_default")]
    pub slow_start: u32,
    /// How often a request is tried again.
    #[serde(skip_serializing_if = "is_default")]
    pub retries: RetryPolicy,
    /// How long a backend may take.
    #[serde(skip_serializing_if = "is_default")]
    pub timeouts: Timeouts,
    /// What clients and backends may be asked to bear.
    #[serde(skip_serializing_if = "is_default")]
    pub limits: VhostLimits,
    /// Edits of the request's header towards the backend, the last before it is sent.
    #[serde(skip_serializing_if = "is_default")]
    pub request_headers: HeaderEdits,
    /// Edits of the response's header towards the client, the last before it is sent.
    #[serde(skip_serializing_if = "is_default")]
    pub response_headers: HeaderEdits,
    /// Who may pass by name and password (RFC 7617).
    #[serde(skip_serializing_if = "is_default")]
    pub basic_auth: Option<BasicAuth>,
    /// Who is asked whether a request may pass.
    #[serde(skip_serializing_if = "is_default")]
    pub forward_auth: Option<ForwardAuth>,
    /// Who may pass by address.
    #[serde(skip_serializing_if = "is_default")]
    pub access: Access,
    /// Whether responses are compressed for clients that take it.
    #[serde(skip_serializing_if = "is_default")]
    pub compress: bool,
    /// The header with the client's address that precedes each connection to a backend, if any.
    #[serde(skip_serializing_if = "is_default")]
    pub send_proxy_protocol: Option<ProxyProtocol>,
    /// What goes into the access log.
    #[serde(skip_serializing_if = "is_default")]
    pub log: LogPolicy,
}

/// What stands in `Host` towards the backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HostPolicy {
    /// The backend's own address and port, as the seed had it.
    #[default]
    Backend,
    /// What the client sent.
    Preserve,
}

/// Who of several backends gets a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Balance {
    /// Each in turn.
    #[default]
    RoundRobin,
    /// The one with the fewest requests in flight.
    LeastConnections,
    /// The one of two taken by chance that has fewer requests in flight.
    RandomTwo,
}

/// What keeps a visitor at the same backend.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Affinity {
    /// The client's address.
    ClientIp,
    /// A cookie of this name that the proxy sets.
    Cookie(String),
    /// The value of the request's header field of this (lower-case) name.
    Header(String),
}

/// When requests that fail pause a backend that has others beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct PassivePolicy {
    /// Failed requests within the window that pause it; 0 = never.
    pub failures: u32,
    /// Length of the window in seconds.
    pub window: u32,
    /// Length of the pause in seconds.
    pub pause: u32,
}

/// How often a request is tried again, where that is safe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct RetryPolicy {
    /// Tries beyond the first; 0 = none.
    pub attempts: u32,
    /// Most retries in percent of the requests, beside a few each second.
    pub budget: u32,
}

/// How long a backend may take, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct Timeouts {
    /// Until the connection stands.
    pub connect: u32,
    /// From the sent request to the response's header.
    pub header: u32,
    /// From one piece of a body to the next.
    pub idle: u32,
    /// For the whole exchange; 0 = no limit.
    pub total: u32,
}

/// What clients and backends may be asked to bear.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct VhostLimits {
    /// Longest request body in octets; 0 = the proxy's own limit ([`crate::ProxySettings::max_body`]).
    pub body: u64,
    /// Requests in flight at each backend; 0 = no limit.
    pub backend_connections: u32,
    /// Requests that wait for a backend when all are at their limit.
    pub queue: u32,
    /// Seconds that they wait.
    pub queue_timeout: u32,
    /// Connections from one client address with a request under way; 0 = no limit.
    pub client_connections: u32,
    /// Requests from one client address.
    pub client_rate: Option<Rate>,
}

/// A token bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Rate {
    /// Requests each second in the long run, at least 1.
    pub per_second: u32,
    /// Requests at once, at least 1.
    pub burst: u32,
}

/// Edits of a message's header: first `remove`, then `set`, then `add`. Names are lower-case tokens, none of
/// them about the connection or the message's length (RFC 9110 §7.6.1); values hold no control characters.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HeaderEdits {
    /// Fields that replace all of their name.
    pub set: Vec<(String, String)>,
    /// Fields beside those of their name.
    pub add: Vec<(String, String)>,
    /// Names that go.
    pub remove: Vec<String>,
}

/// Who may pass by name and password (RFC 7617).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BasicAuth {
    /// What the browser shows.
    pub realm: String,
    /// Those who may, each name once; at least one.
    pub users: Vec<BasicUser>,
}

/// A user and the hash of the password.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BasicUser {
    /// Name, without a colon (RFC 7617 §2).
    pub name: String,
    /// Argon2id as a PHC string (`$argon2id$…`), or bcrypt (`$2b$…`).
    pub hash: String,
}

/// A service that is asked whether a request may pass: below 300 it passes, anything else is the answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForwardAuth {
    /// Where it is.
    pub to: BackendTarget,
    /// Path that it is asked at.
    pub path: String,
    /// Fields of its response (lower-case names) that the backend gets with the request, in place of the
    /// client's own of those names.
    pub copy_headers: Vec<String>,
}

/// Who may pass by address. `deny` goes before the others; with `allow` or `apps`, only whoever is in one
/// of them passes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Access {
    /// Networks that may.
    pub allow: Vec<IpNet>,
    /// Networks that may not.
    pub deny: Vec<IpNet>,
    /// Apps that may, by the host name of the lease or reservation that the caller's address has.
    pub apps: Vec<Label>,
}

/// Version of the PROXY protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProxyProtocol {
    /// The line of text.
    V1,
    /// The binary header.
    V2,
}

/// What of a vhost goes into its access log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct LogPolicy {
    /// Whether anything does; the proxy's own switch must be on as well.
    pub enabled: bool,
    /// One request of so many does, errors always; 1 = as the proxy has it ([`crate::LogSettings::sample`]).
    pub sample: u32,
}

static DEFAULT: LazyLock<Arc<VhostPolicy>> = LazyLock::new(Arc::default);

impl VhostPolicy {
    /// The one default policy, shared by every vhost that has nothing of its own.
    pub fn unchanged() -> Arc<VhostPolicy> {
        DEFAULT.clone()
    }

    /// The policy to be kept: the shared default if it is no different.
    pub fn shared(self) -> Arc<VhostPolicy> {
        if self == **DEFAULT { DEFAULT.clone() } else { Arc::new(self) }
    }
}

impl HostPolicy {
    /// The word used in the file and the API.
    pub fn as_str(self) -> &'static str {
        match self {
            HostPolicy::Backend => "backend",
            HostPolicy::Preserve => "preserve",
        }
    }
}

impl Balance {
    /// The word used in the file and the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Balance::RoundRobin => "round_robin",
            Balance::LeastConnections => "least_connections",
            Balance::RandomTwo => "random_two",
        }
    }
}

impl ProxyProtocol {
    /// The word used in the file and the API.
    pub fn as_str(self) -> &'static str {
        match self {
            ProxyProtocol::V1 => "v1",
            ProxyProtocol::V2 => "v2",
        }
    }
}

impl HeaderEdits {
    /// Whether nothing is edited.
    pub fn is_empty(&self) -> bool {
        self.set.is_empty() && self.add.is_empty() && self.remove.is_empty()
    }
}

impl Access {
    /// Whether everybody may pass.
    pub fn is_open(&self) -> bool {
        self.allow.is_empty() && self.deny.is_empty() && self.apps.is_empty()
    }
}

impl Default for PassivePolicy {
    fn default() -> PassivePolicy {
        PassivePolicy { failures: 3, window: 30, pause: 10 }
    }
}

impl Default for RetryPolicy {
    fn default() -> RetryPolicy {
        RetryPolicy { attempts: 2, budget: 20 }
    }
}

impl Default for Timeouts {
    fn default() -> Timeouts {
        Timeouts { connect: 3, header: 60, idle: 300, total: 0 }
    }
}

impl Default for VhostLimits {
    fn default() -> VhostLimits {
        VhostLimits {
            body: 0,
            backend_connections: 0,
            queue: 128,
            queue_timeout: 5,
            client_connections: 0,
            client_rate: None,
        }
    }
}

impl Default for LogPolicy {
    fn default() -> LogPolicy {
        LogPolicy { enabled: true, sample: 1 }
    }
}

impl std::fmt::Debug for BasicUser {
    /// A hash does not belong into a log line.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BasicUser").field("name", &self.name).finish_non_exhaustive()
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_untouched_policy_is_shared_and_stored_as_nothing() {
        let read: VhostPolicy = serde_json::from_str("{}").unwrap();
        assert_eq!(serde_json::to_string(&read).unwrap(), "{}");
        assert!(Arc::ptr_eq(&read.shared(), &VhostPolicy::unchanged()));
        let other = VhostPolicy { compress: true, ..VhostPolicy::default() };
        assert_eq!(serde_json::to_string(&other).unwrap(), r#"{"compress":true}"#);
        assert!(!Arc::ptr_eq(&other.shared(), &VhostPolicy::unchanged()));
    }

    #[test]
    fn what_a_part_leaves_out_has_its_default() {
        let read: VhostPolicy =
            serde_json::from_str(r#"{"timeouts":{"total":9},"limits":{"body":5},"log":{"sample":10}}"#)
                .unwrap();
        assert_eq!(read.timeouts, Timeouts { connect: 3, header: 60, idle: 300, total: 9 });
        assert_eq!((read.limits.body, read.limits.queue), (5, 128));
        assert_eq!((read.log.enabled, read.log.sample), (true, 10));
    }

    #[test]
    fn hashes_are_not_printed() {
        let user = BasicUser { name: "alice".into(), hash: "$2b$12$secret".into() };
        let shown = format!("{user:?}");
        assert!(shown.contains("alice") && !shown.contains("secret"), "{shown}");
    }
}
