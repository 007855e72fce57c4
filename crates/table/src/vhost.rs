use std::net::SocketAddrV4;

use serde::{Deserialize, Serialize};

use crate::{Label, Name};

/// A virtual host that the administrator asked for: names in front, backends behind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vhost {
    /// Key of the vhost, unique; the `{name}` of the API.
    pub app_name: Label,
    /// Name that the `Host` header must carry.
    pub hostname: Name,
    /// Further names with the same meaning.
    #[serde(default)]
    pub aliases: Vec<Name>,
    /// Where requests go; at least one.
    pub backends: Vec<BackendTarget>,
    /// How the backends are spoken to.
    pub protocol: BackendProtocol,
    /// A disabled vhost answers with a page that says so.
    pub enabled: bool,
    /// How the backends are probed.
    pub health: HealthPolicy,
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

/// Active health check of each backend; the seed's defaults.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HealthPolicy {
    /// Path of the probe.
    pub uri: String,
    /// Seconds from one probe to the next, at least 1.
    pub interval: u32,
    /// Seconds after which a probe has failed, at least 1.
    pub timeout: u32,
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

impl Default for HealthPolicy {
    fn default() -> HealthPolicy {
        HealthPolicy { uri: "/".to_owned(), interval: 30, timeout: 5 }
    }
}
