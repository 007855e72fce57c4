use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{Backend, BackendTarget, Balance, HealthPolicy, Label, Protocol, ProxyProtocol};

/// A port of the appliance that leads to an app.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forward {
    /// Transport.
    pub protocol: Protocol,
    /// Port on the appliance.
    pub port: u16,
    /// Who gets it.
    pub to: ForwardTarget,
    /// Port there.
    pub to_port: u16,
    /// Others who get it too; only where it is carried by the proxy.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub more: Vec<BackendTarget>,
    /// How the targets are probed; not at all without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<Arc<HealthPolicy>>,
    /// How the proxy carries it. Without it the kernel translates addresses, and the app sees the client's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy: Option<Arc<StreamPolicy>>,
}

/// Who gets a forwarded port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ForwardTarget {
    /// A fixed address.
    Address(Ipv4Addr),
    /// An app by its host name, followed through its lease.
    App(Label),
}

/// How the proxy carries a forwarded port. Times are in seconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StreamPolicy {
    /// Who of several targets gets a connection.
    pub balance: Balance,
    /// The header with the client's address that precedes each connection to a target, if any; TCP alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub send_proxy_protocol: Option<ProxyProtocol>,
    /// Networks whose connections begin with such a header; TCP alone.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub accept_proxy_protocol: Vec<IpNet>,
    /// Silence after which a connection ends; 0 = never, for TCP alone.
    pub idle_timeout: u32,
    /// Connections at once, at least 1; for UDP the clients that are remembered.
    pub max_connections: u32,
}

/// A port forward with the present addresses of its targets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedForward {
    /// Transport.
    pub protocol: Protocol,
    /// Port on the appliance.
    pub port: u16,
    /// How the targets are probed.
    pub health: Option<Arc<HealthPolicy>>,
    /// How the proxy carries it; `None` leaves it to the kernel.
    pub proxy: Option<Arc<StreamPolicy>>,
    /// The targets that have an address now, in the order in which they were written.
    pub targets: Vec<Backend>,
}

impl Forward {
    /// A forward that the kernel does, to one target.
    pub fn new(protocol: Protocol, port: u16, to: BackendTarget) -> Forward {
        let (to, to_port) = match to {
            BackendTarget::Address(addr) => (ForwardTarget::Address(*addr.ip()), addr.port()),
            BackendTarget::App { name, port } => (ForwardTarget::App(name), port),
        };
        Forward { protocol, port, to, to_port, more: Vec::new(), health: None, proxy: None }
    }

    /// Every target, in the order in which they were written; at least one.
    pub fn targets(&self) -> impl Iterator<Item = BackendTarget> {
        let first = match &self.to {
            ForwardTarget::Address(ip) => BackendTarget::Address(SocketAddrV4::new(*ip, self.to_port)),
            ForwardTarget::App(name) => BackendTarget::App { name: name.clone(), port: self.to_port },
        };
        std::iter::once(first).chain(self.more.iter().cloned())
    }

    /// What the verdicts on its targets are kept under; no app can have such a name.
    pub fn health_name(&self) -> Arc<str> {
        health_name(self.protocol, self.port)
    }
}

impl StreamPolicy {
    /// Silence after which a UDP client is forgotten: RFC 4787 §4.3 asks for two minutes at least and
    /// recommends five.
    pub const UDP_IDLE: u32 = 300;
    /// Connections at once.
    pub const MAX_CONNECTIONS: u32 = 10_000;

    /// What holds when nothing is written.
    pub fn of(protocol: Protocol) -> StreamPolicy {
        StreamPolicy {
            balance: Balance::default(),
            send_proxy_protocol: None,
            accept_proxy_protocol: Vec::new(),
            // The kernel finds TCP peers that are gone; SSH sessions are silent for hours.
            idle_timeout: if protocol == Protocol::Udp { StreamPolicy::UDP_IDLE } else { 0 },
            max_connections: StreamPolicy::MAX_CONNECTIONS,
        }
    }
}

impl Default for StreamPolicy {
    fn default() -> StreamPolicy {
        StreamPolicy::of(Protocol::Tcp)
    }
}

impl ResolvedForward {
    /// Where the kernel sends it: `None` while no target has an address, and where the proxy carries it.
    pub fn translated_to(&self) -> Option<SocketAddrV4> {
        self.targets.first().filter(|_| self.proxy.is_none()).map(|target| target.key.addr)
    }

    /// The targets that a connection may go to: those that are not found ill, else all. Without probes all are.
    pub fn usable(&self) -> impl Iterator<Item = &Backend> {
        let any_healthy = self.health.is_some() && self.targets.iter().any(Backend::is_healthy);
        self.targets.iter().filter(move |target| !any_healthy || target.is_healthy())
    }

    /// What the verdicts on its targets are kept under.
    pub fn health_name(&self) -> Arc<str> {
        health_name(self.protocol, self.port)
    }
}

fn health_name(protocol: Protocol, port: u16) -> Arc<str> {
    format!("{protocol}/{port}").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forward_of_the_first_version_is_read_and_stored_as_it_was() {
        let old = r#"{"protocol":"tcp","port":2222,"to":{"app":"gitea"},"to_port":22}"#;
        let read: Forward = serde_json::from_str(old).unwrap();
        let target = BackendTarget::App { name: "gitea".parse().unwrap(), port: 22 };
        assert_eq!(read, Forward::new(Protocol::Tcp, 2222, target));
        assert_eq!(serde_json::to_string(&read).unwrap(), old);
    }

    #[test]
    fn what_is_stored_is_read_again() {
        let target = BackendTarget::Address("10.20.0.9:22".parse().unwrap());
        let mut forward = Forward::new(Protocol::Tcp, 2222, target);
        forward.more = vec![BackendTarget::App { name: "gitea".parse().unwrap(), port: 22 }];
        forward.health = Some(Arc::new(HealthPolicy { interval: 7, ..HealthPolicy::connect() }));
        forward.proxy = Some(Arc::new(StreamPolicy {
            balance: Balance::LeastConnections,
            send_proxy_protocol: Some(ProxyProtocol::V2),
            accept_proxy_protocol: vec!["192.168.1.0/24".parse().unwrap()],
            idle_timeout: 60,
            max_connections: 5,
        }));
        let stored = serde_json::to_string(&forward).unwrap();
        assert_eq!(serde_json::from_str::<Forward>(&stored).unwrap(), forward, "{stored}");
        let targets: Vec<String> = forward.targets().map(|target| target.to_string()).collect();
        assert_eq!(targets, ["10.20.0.9:22", "gitea:22"]);
    }
}
