use std::net::SocketAddrV4;
use std::sync::{Arc, LazyLock};

use serde::{Deserialize, Deserializer, Serialize};

use crate::{Label, Name, NameLeads, VhostPolicy};

/// A virtual host that the administrator asked for: names in front, backends behind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vhost {
    /// Key of the vhost, unique; the `{name}` of the API.
    pub app_name: Label,
    /// Name that the `Host` header must carry; `*.shop.prox.local` stands for every name below.
    pub hostname: Name,
    /// Further names with the same meaning.
    #[serde(default)]
    pub aliases: Vec<Name>,
    /// Where requests go; at least one, unless they are redirected.
    #[serde(default)]
    pub backends: Vec<BackendTarget>,
    /// How the backends are spoken to.
    pub protocol: BackendProtocol,
    /// Whom the backends must prove to be, with [`BackendProtocol::Https`].
    #[serde(default)]
    pub tls: BackendTls,
    /// A disabled vhost answers with a page that says so.
    pub enabled: bool,
    /// How the backends are probed.
    pub health: HealthPolicy,
    /// Where clients are sent instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redirect: Option<Redirect>,
    /// What goes elsewhere by its path; each prefix once, in any order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<VhostPath>,
    /// Whether requests for unknown hosts come here.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub default: bool,
    /// Where its names lead apps that look them up.
    #[serde(default, skip_serializing_if = "NameLeads::is_auto")]
    pub dns: NameLeads,
    /// How requests are treated.
    #[serde(
        default = "VhostPolicy::unchanged",
        deserialize_with = "shared_policy",
        skip_serializing_if = "is_unchanged"
    )]
    pub policy: Arc<VhostPolicy>,
}

/// What of a vhost goes elsewhere by its path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VhostPath {
    /// `/api`: absolute, without trailing slash, empty or dot segments.
    pub prefix: String,
    /// Whether the prefix is taken away before the backend sees the path, or before the path becomes the
    /// `{uri}` of a redirect.
    #[serde(default)]
    pub strip: bool,
    /// Where requests go; at least one, unless they are redirected.
    #[serde(default)]
    pub backends: Vec<BackendTarget>,
    /// How the backends are spoken to.
    #[serde(default)]
    pub protocol: BackendProtocol,
    /// Whom the backends must prove to be.
    #[serde(default)]
    pub tls: BackendTls,
    /// How the backends are probed. A backend that the vhost itself has too is probed the vhost's way.
    #[serde(default)]
    pub health: HealthPolicy,
    /// Where clients are sent instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redirect: Option<Redirect>,
}

/// One backend as the administrator names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackendTarget {
    /// A fixed address and port.
    Address(SocketAddrV4),
    /// An app by its host name, followed through its lease.
    App {
        /// Host name of the app on any network.
        name: Label,
        /// TCP port.
        port: u16,
    },
}

/// How a backend is spoken to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackendProtocol {
    /// HTTP/1.1 in clear.
    #[default]
    Http,
    /// HTTP/1.1 over TLS.
    Https,
    /// HTTP/2 in clear, by prior knowledge.
    H2c,
}

/// Whom a backend must prove to be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct BackendTls {
    /// Whether its certificate must be good. Off by default: apps at home sign their own.
    pub verify: bool,
    /// Name asked for by SNI (RFC 6066 §3) and looked for in the certificate; `None`: the vhost's host name, of a
    /// wildcard what its names lie below. In a route it is the one that is asked for.
    pub server_name: Option<String>,
    /// PEM file of the only authority that is trusted; `None`: those that browsers trust.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
}

/// An answer that sends the client elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Redirect {
    /// Absolute URL or absolute path. A trailing `{uri}` stands for the request's path and query.
    pub to: String,
    /// 301, 302, 303, 307 or 308 (RFC 9110 §15.4).
    pub status: u16,
}

/// How a backend is asked whether it is well.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProbeKind {
    /// By a request.
    #[default]
    Http,
    /// By a TCP connection that is closed again: of [`HealthPolicy`], `uri`, `method`, `status` and `body` mean
    /// nothing then.
    Connect,
}

/// Active health check of each backend; the seed's defaults.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct HealthPolicy {
    /// How it is asked.
    #[serde(skip_serializing_if = "is_http")]
    pub kind: ProbeKind,
    /// Path of the probe.
    pub uri: String,
    /// Seconds from one probe to the next, at least 1.
    pub interval: u32,
    /// Seconds after which a probe has failed, at least 1.
    pub timeout: u32,
    /// GET, HEAD or OPTIONS.
    pub method: String,
    /// TCP port that is probed instead of the backend's own.
    pub port: Option<u16>,
    /// First and last status that passes; `None`: every one below 500.
    pub status: Option<(u16, u16)>,
    /// Text that the body must contain.
    pub body: Option<String>,
    /// Probes in a row that must pass before a backend is healthy, at least 1.
    pub rise: u32,
    /// Probes in a row that must fail before a backend is unhealthy, at least 1.
    pub fall: u32,
}

static DEFAULT_HEALTH: LazyLock<Arc<HealthPolicy>> = LazyLock::new(Arc::default);

impl Vhost {
    /// A vhost with nothing but what it must have.
    pub fn new(app_name: Label, hostname: Name, backends: Vec<BackendTarget>) -> Vhost {
        Vhost {
            app_name,
            hostname,
            aliases: Vec::new(),
            backends,
            protocol: BackendProtocol::default(),
            tls: BackendTls::default(),
            enabled: true,
            health: HealthPolicy::default(),
            redirect: None,
            paths: Vec::new(),
            default: false,
            dns: NameLeads::Auto,
            policy: VhostPolicy::unchanged(),
        }
    }

    /// The main name and the aliases.
    pub fn names(&self) -> impl Iterator<Item = &Name> {
        std::iter::once(&self.hostname).chain(&self.aliases)
    }

    /// The files of authorities that it names.
    pub fn authorities(&self) -> impl Iterator<Item = &str> {
        let of_paths = self.paths.iter().map(|path| &path.tls);
        std::iter::once(&self.tls).chain(of_paths).filter_map(|tls| tls.ca.as_deref())
    }

    /// Everything that it leads to or asks: what moves the vhost when it moves.
    pub fn targets(&self) -> impl Iterator<Item = &BackendTarget> {
        let of_paths = self.paths.iter().flat_map(|path| &path.backends);
        let asked = self.policy.forward_auth.iter().map(|auth| &auth.to);
        self.backends.iter().chain(of_paths).chain(asked)
    }
}

impl Redirect {
    /// Statuses that may be sent (RFC 9110 §15.4).
    pub const STATUSES: [u16; 5] = [301, 302, 303, 307, 308];
    /// The default status: permanent, and the method stays what it is.
    pub const STATUS: u16 = 308;
    /// What stands for the request's path and query at the end of [`Redirect::to`].
    pub const URI: &str = "{uri}";
}

impl BackendProtocol {
    /// The word used in the file and the API.
    pub fn as_str(self) -> &'static str {
        match self {
            BackendProtocol::Http => "http",
            BackendProtocol::Https => "https",
            BackendProtocol::H2c => "h2c",
        }
    }
}

impl HealthPolicy {
    /// The default for what is no HTTP.
    pub fn connect() -> HealthPolicy {
        HealthPolicy { kind: ProbeKind::Connect, ..HealthPolicy::default() }
    }

    /// Whether it is what everybody gets.
    pub fn is_default(&self) -> bool {
        *self == **DEFAULT_HEALTH
    }

    /// The policy to be kept: the one shared default if it is no different.
    pub fn shared(&self) -> Arc<HealthPolicy> {
        if self.is_default() { DEFAULT_HEALTH.clone() } else { Arc::new(self.clone()) }
    }
}

impl Default for HealthPolicy {
    fn default() -> HealthPolicy {
        HealthPolicy {
            kind: ProbeKind::default(),
            uri: "/".to_owned(),
            interval: 30,
            timeout: 5,
            method: "GET".to_owned(),
            port: None,
            status: None,
            body: None,
            rise: 1,
            fall: 1,
        }
    }
}

impl std::fmt::Display for BackendTarget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            BackendTarget::Address(addr) => write!(f, "{addr}"),
            BackendTarget::App { name, port } => write!(f, "{name}:{port}"),
        }
    }
}

fn shared_policy<'de, D: Deserializer<'de>>(input: D) -> Result<Arc<VhostPolicy>, D::Error> {
    VhostPolicy::deserialize(input).map(VhostPolicy::shared)
}

fn is_http(kind: &ProbeKind) -> bool {
    *kind == ProbeKind::Http
}

fn is_unchanged(policy: &Arc<VhostPolicy>) -> bool {
    **policy == VhostPolicy::default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vhost_of_the_first_version_is_read() {
        let old = r#"{"app_name":"web","hostname":"web.prox.local","aliases":[],
            "backends":[{"app":{"name":"web","port":80}},{"address":"10.20.0.5:81"}],"protocol":"http",
            "enabled":true,"health":{"uri":"/up","interval":10,"timeout":2}}"#;
        let read: Vhost = serde_json::from_str(old).unwrap();
        let backends = read.backends.clone();
        let mut expected = Vhost::new("web".parse().unwrap(), "web.prox.local".parse().unwrap(), backends);
        expected.health =
            HealthPolicy { uri: "/up".into(), interval: 10, timeout: 2, ..HealthPolicy::default() };
        assert_eq!(read, expected);
        assert_eq!(read.targets().map(ToString::to_string).collect::<Vec<_>>(), ["web:80", "10.20.0.5:81"]);
        assert!(Arc::ptr_eq(&read.policy, &VhostPolicy::unchanged()));
    }

    #[test]
    fn what_is_stored_is_read_again() {
        let mut vhost = Vhost::new("web".parse().unwrap(), "*.web.local".parse().unwrap(), vec![]);
        vhost.redirect = Some(Redirect { to: "https://new.example{uri}".into(), status: 308 });
        vhost.default = true;
        vhost.paths = vec![VhostPath {
            prefix: "/api".into(),
            strip: true,
            backends: vec![BackendTarget::App { name: "api".parse().unwrap(), port: 8080 }],
            protocol: BackendProtocol::Https,
            tls: BackendTls { verify: true, server_name: Some("api.local".into()), ca: Some("/ca".into()) },
            health: HealthPolicy { status: Some((200, 299)), rise: 2, ..HealthPolicy::default() },
            redirect: None,
        }];
        let access = crate::Access { allow: vec!["10.0.0.0/8".parse().unwrap()], ..Default::default() };
        vhost.policy = VhostPolicy { access, slow_start: 9, ..VhostPolicy::default() }.shared();
        let stored = serde_json::to_string(&vhost).unwrap();
        assert_eq!(serde_json::from_str::<Vhost>(&stored).unwrap(), vhost, "{stored}");
    }
}
