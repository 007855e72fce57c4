//! Objects as clients of the API write them.

use std::net::{Ipv4Addr, SocketAddrV4};

use proximity_config::{backend_target, forward_target, vhost_hostname};
use proximity_table::{
    BackendProtocol, BackendTarget, Forward, HealthPolicy, Intent, Label, Mac, Name, Protocol, Record,
    RecordData, Reservation, Vhost,
};
use serde::de::{Error, IgnoredAny};
use serde::{Deserialize, Deserializer, Serialize};

use crate::Problem;

/// Most backends of a vhost.
const MOST_BACKENDS: usize = 256;
/// Most aliases of a vhost.
const MOST_ALIASES: usize = 64;

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
    /// What is shown of a vhost beside its settings is passed over.
    #[serde(default, skip_serializing)]
    pub source: Option<IgnoredAny>,
    #[serde(default, skip_serializing)]
    pub verdict: Option<IgnoredAny>,
    #[serde(default, skip_serializing)]
    pub url: Option<IgnoredAny>,
}

/// How a vhost is to be probed; times in seconds, or as `30s`. What is shown of its health is passed over.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct HealthInput {
    pub uri: Option<String>,
    #[serde(default, deserialize_with = "seconds")]
    pub interval: Option<u32>,
    #[serde(default, deserialize_with = "seconds")]
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
        if self.aliases.len() > MOST_ALIASES {
            let detail = format!("the vhost has {} aliases", self.aliases.len());
            return Err(Problem::invalid(detail, format!("give at most {MOST_ALIASES}")));
        }
        let aliases = self.aliases.iter().map(|alias| vhost_hostname(alias, domain));
        let hostname = hostname.map_err(Problem::explained)?;
        Ok(Vhost {
            aliases: aliases.collect::<Result<_, _>>().map_err(Problem::explained)?,
            protocol: self.protocol.unwrap_or_default(),
            enabled: self.enabled.unwrap_or(true),
            health: self.health.clone().unwrap_or_default().build()?,
            ..Vhost::new(app_name, hostname, self.targets()?)
        })
    }

    fn targets(&self) -> Result<Vec<BackendTarget>, Problem> {
        let hint = "give backend_ip and backend_port, or backends such as [\"10.20.0.101:80\"], or backend = app name";
        let port = self.backend_port.unwrap_or(80);
        if port == 0 {
            return Err(Problem::invalid("backend_port cannot be 0", "use a port from 1 to 65535"));
        }
        if self.backends.len() > MOST_BACKENDS {
            let detail = format!("the vhost has {} backends", self.backends.len());
            return Err(Problem::invalid(detail, format!("give at most {MOST_BACKENDS}")));
        }
        let parse = |text: &String| {
            backend_target(text).ok_or_else(|| Problem::invalid(format!("`{text}` is not a backend"), hint))
        };
        let listed = self.backends.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
        let single = match (self.backend_ip, &self.backend) {
            (Some(ip), None) => Some(BackendTarget::Address(SocketAddrV4::new(ip, port))),
            (None, Some(app)) => {
                Some(BackendTarget::App { name: app.parse().map_err(Problem::explained)?, port })
            }
            (None, None) => None,
            (Some(_), Some(_)) => {
                return Err(Problem::invalid("backend_ip and backend are both given", hint));
            }
        };
        match (single, listed.first()) {
            (None, None) => Err(Problem::invalid("the vhost has no backend", hint)),
            (Some(single), None) => Ok(vec![single]),
            (None, Some(_)) => Ok(listed),
            // A vhost is shown with both, and may come back as it was shown: for an app that is followed,
            // backend_ip is where it happened to be.
            (Some(single), Some(first)) => match first {
                BackendTarget::App { .. } => Ok(listed),
                first if *first == single => Ok(listed),
                _ => Err(Problem::invalid("backend_ip and backends differ", "change both, or leave one out")),
            },
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
            ..defaults
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

/// A number of seconds, or a text such as `30s`, which is how health times are shown.
fn seconds<'de, D: Deserializer<'de>>(input: D) -> Result<Option<u32>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Time {
        Number(u32),
        Text(String),
    }
    match Option::<Time>::deserialize(input)? {
        None => Ok(None),
        Some(Time::Number(seconds)) => Ok(Some(seconds)),
        Some(Time::Text(text)) => match proximity_config::parse_duration(&text) {
            Some(seconds) => Ok(Some(seconds)),
            None => Err(D::Error::custom(format!("`{text}` is not a time such as \"30s\" or \"5m\""))),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn build(json: &str) -> Result<Vhost, Problem> {
        let input: VhostInput = serde_json::from_str(json).expect("the input is of the right shape");
        input.build(None, &"prox.local".parse().unwrap())
    }

    #[test]
    fn three_fields_are_enough() {
        let vhost =
            build(r#"{"app_name": "wiki", "backend_ip": "10.20.0.101", "backend_port": 8080}"#).unwrap();
        assert_eq!(vhost.hostname.to_string(), "wiki.prox.local");
        assert_eq!(vhost.backends, [BackendTarget::Address("10.20.0.101:8080".parse().unwrap())]);
        assert_eq!(vhost.health, HealthPolicy::default());
    }

    #[test]
    fn a_vhost_may_come_back_as_it_was_shown() {
        let shown = r#"{"app_name": "docs", "hostname": "docs.prox.local", "aliases": [], "backend_ip": "10.20.0.112",
            "backend_port": 80, "backends": ["wiki:80"], "protocol": "http", "enabled": true, "source": "api",
            "verdict": "ready", "url": "http://docs.prox.local", "health": {"state": "healthy", "since": null,
            "reason": null, "uri": "/up", "interval": "10s", "timeout": "5s", "backends": []}}"#;
        let vhost = build(shown).unwrap();
        assert!(matches!(&vhost.backends[..], [BackendTarget::App { port: 80, .. }]));
        assert_eq!((vhost.health.uri.as_str(), vhost.health.interval), ("/up", 10));
    }

    #[test]
    fn contradictions_are_told() {
        let error = build(r#"{"app_name": "a", "backend_ip": "10.20.0.1", "backends": ["10.20.0.2:80"]}"#)
            .unwrap_err();
        assert!(error.detail.contains("differ"), "{error:?}");
        assert!(build(r#"{"app_name": "a"}"#).unwrap_err().detail.contains("no backend"));
        let many = format!(r#"{{"app_name": "a", "backends": {:?}}}"#, vec!["10.20.0.2:80"; 257]);
        assert!(build(&many).unwrap_err().detail.contains("257"));
    }
}
