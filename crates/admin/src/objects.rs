//! Objects as clients of the API write them.

use std::net::{Ipv4Addr, SocketAddrV4};

use proximity_config::{backend_target, forward_target, vhost_hostname};
use proximity_table::{
    BackendProtocol, BackendTarget, Forward, HealthPolicy, Intent, Label, Mac, Name, Protocol, Record,
    RecordData, Reservation, Vhost,
};
use serde::{Deserialize, Serialize};

use crate::Problem;

/// A vhost to create; `app_name`, `backend_ip` and `backend_port` are enough.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct VhostInput {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub app_name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend_ip: Option<Ipv4Addr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend_port: Option<u16>,
    /// `address:port` or `app:port`, instead of `backend_ip`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub backends: Vec<String>,
    /// Host name of an app, instead of `backend_ip`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<BackendProtocol>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthInput>,
}

/// How a vhost is to be probed; times in seconds.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct HealthInput {
    pub uri: Option<String>,
    pub interval: Option<u32>,
    pub timeout: Option<u32>,
}

/// A record to add.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct RecordInput {
    pub name: String,
    #[serde(rename = "type")]
    pub rtype: String,
    pub value: String,
    pub ttl: Option<u32>,
}

/// A reservation to make; the network follows from the address.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct ReservationInput {
    pub mac: String,
    pub ip: Ipv4Addr,
    pub hostname: Option<String>,
}

/// A port forward to make.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct ForwardInput {
    pub protocol: Option<Protocol>,
    pub port: u16,
    pub to: String,
}

impl VhostInput {
    /// The vhost that is meant, once it makes sense. `name` is the one in the path of a PUT.
    pub fn build(self, name: Option<&str>, domain: &Name) -> Result<Vhost, Problem> {
        let app_name = match (self.app_name.as_deref(), name) {
            (Some(body), Some(path)) if !body.eq_ignore_ascii_case(path) => {
                let hint = "leave app_name out, or delete the vhost and create another";
                return Err(Problem::invalid(
                    format!("app_name `{body}` is not the `{path}` of the path"),
                    hint,
                ));
            }
            (Some(name), _) | (None, Some(name)) => name.to_owned(),
            (None, None) => {
                return Err(Problem::invalid("app_name is missing", "name the app, such as \"nginx\""));
            }
        };
        let app_name: Label = app_name.parse().map_err(Problem::explained)?;
        let hostname = match self.hostname.as_deref() {
            Some(text) => vhost_hostname(text, domain),
            None => domain.child(&app_name),
        };
        let aliases = self.aliases.iter().map(|alias| vhost_hostname(alias, domain));
        Ok(Vhost {
            hostname: hostname.map_err(Problem::explained)?,
            aliases: aliases.collect::<Result<_, _>>().map_err(Problem::explained)?,
            backends: self.targets()?,
            protocol: self.protocol.unwrap_or_default(),
            enabled: self.enabled.unwrap_or(true),
            health: self.health.unwrap_or_default().build()?,
            app_name,
        })
    }

    fn targets(&self) -> Result<Vec<BackendTarget>, Problem> {
        let hint = "give backend_ip and backend_port, or backends such as [\"10.20.0.101:80\"], or backend = app name";
        let port = self.backend_port.unwrap_or(80);
        if port == 0 {
            return Err(Problem::invalid("backend_port cannot be 0", "use a port from 1 to 65535"));
        }
        match (self.backend_ip, &self.backend, &self.backends[..]) {
            (Some(ip), None, []) => Ok(vec![BackendTarget::Address(SocketAddrV4::new(ip, port))]),
            (None, Some(app), []) => {
                Ok(vec![BackendTarget::App { name: app.parse().map_err(Problem::explained)?, port }])
            }
            (None, None, [_, ..]) => {
                let parse = |text: &String| {
                    let wrong = || Problem::invalid(format!("`{text}` is not a backend"), hint);
                    backend_target(text).ok_or_else(wrong)
                };
                self.backends.iter().take(256).map(parse).collect()
            }
            (None, None, []) => Err(Problem::invalid("the vhost has no backend", hint)),
            _ => Err(Problem::invalid("the vhost names its backends in two ways", hint)),
        }
    }
}

impl HealthInput {
    fn build(self) -> Result<HealthPolicy, Problem> {
        let defaults = HealthPolicy::default();
        let policy = HealthPolicy {
            uri: self.uri.unwrap_or(defaults.uri),
            interval: self.interval.unwrap_or(defaults.interval),
            timeout: self.timeout.unwrap_or(defaults.timeout),
        };
        if !policy.uri.starts_with('/') || policy.uri.bytes().any(|b| !b.is_ascii_graphic()) {
            return Err(Problem::invalid(
                format!("`{}` is not a path", policy.uri),
                "begin health.uri with /",
            ));
        }
        if policy.interval == 0 || policy.timeout == 0 {
            return Err(Problem::invalid("health times cannot be 0", "use seconds, at least 1"));
        }
        Ok(policy)
    }
}

impl RecordInput {
    /// The record that is meant; names are relative to `domain` unless they end with a dot.
    pub fn build(&self, domain: &Name) -> Result<Record, Problem> {
        Ok(Record {
            name: Name::relative(&self.name, domain).map_err(Problem::explained)?,
            data: RecordData::parse(&self.rtype, &self.value, domain).map_err(Problem::explained)?,
            ttl: self.ttl.unwrap_or(300),
        })
    }
}

impl ReservationInput {
    /// The reservation that is meant.
    pub fn build(&self, intent: &Intent) -> Result<Reservation, Problem> {
        let mac: Mac = self.mac.parse().map_err(Problem::explained)?;
        let network = intent.network_of(self.ip).ok_or_else(|| {
            Problem::invalid(
                format!("{} lies in no app network", self.ip),
                "take an address of an app network",
            )
        })?;
        let net = network.address;
        if [net.addr, net.network(), net.broadcast()].contains(&self.ip) {
            let hint = "take a free address other than the appliance's own";
            return Err(Problem::invalid(format!("{} cannot be reserved in {net}", self.ip), hint));
        }
        let hostname = self.hostname.as_deref().map(str::parse).transpose().map_err(Problem::explained)?;
        Ok(Reservation { network: network.name.clone(), mac, ip: self.ip, hostname })
    }
}

impl ForwardInput {
    /// The forward that is meant.
    pub fn build(&self) -> Result<Forward, Problem> {
        let hint = "write an app or an address with a port, such as gitea:22 or 10.20.0.10:22";
        let wrong = || Problem::invalid(format!("`{}` is not a target", self.to), hint);
        let (to, to_port) = forward_target(&self.to).ok_or_else(wrong)?;
        if self.port == 0 {
            return Err(Problem::invalid("port cannot be 0", "use a port from 1 to 65535"));
        }
        Ok(Forward { protocol: self.protocol.unwrap_or(Protocol::Tcp), port: self.port, to, to_port })
    }
}
