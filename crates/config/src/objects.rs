use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;

use imbl::OrdMap;
use proximity_table::{
    BackendProtocol, BackendTarget, Forward, ForwardTarget, HealthPolicy, Label, Name, NameError, Owned,
    Protocol, Record, RecordData, RecordType, Source, Vhost,
};

use crate::section::Section;

/// A backend as text: `address:port`, or `app:port`.
pub fn backend_target(text: &str) -> Option<BackendTarget> {
    if let Ok(addr) = text.parse::<SocketAddrV4>() {
        return (addr.port() > 0).then_some(BackendTarget::Address(addr));
    }
    let (name, port) = text.split_once(':')?;
    let port = port.parse().ok().filter(|port| *port > 0)?;
    Some(BackendTarget::App { name: host_label(name)?, port })
}

/// The target of a port forward as text: `address:port`, or `app:port`.
pub fn forward_target(text: &str) -> Option<(ForwardTarget, u16)> {
    match backend_target(text)? {
        BackendTarget::Address(addr) => Some((ForwardTarget::Address(*addr.ip()), addr.port())),
        BackendTarget::App { name, port } => Some((ForwardTarget::App(name), port)),
    }
}

/// A vhost's host name: one word is a name of the domain, more than one stand for themselves. A wildcard is
/// refused: no route would match what DNS would answer.
pub fn vhost_hostname(text: &str, domain: &Name) -> Result<Name, NameError> {
    if text.contains('*') {
        return Err(NameError::BadCharacter(text.to_owned(), '*'));
    }
    if text.contains('.') { text.parse() } else { Name::relative(text, domain) }
}

pub fn records(dns: &mut Section<'_>, domain: &Name) -> OrdMap<(Name, RecordType), Owned<Vec<Record>>> {
    let mut sets: OrdMap<(Name, RecordType), Owned<Vec<Record>>> = OrdMap::new();
    for mut table in dns.tables("record") {
        let name: Option<String> = table.required("name", "printer");
        let rtype: Option<String> = table.required("type", "A");
        let value: Option<String> = table.required("value", "10.20.0.50");
        let ttl = table.duration("ttl", 300, 0);
        if let (Some(name), Some(rtype), Some(value)) = (name, rtype, value) {
            let name =
                Name::relative(&name, domain).map_err(|error| table.explain("name", &error.to_string()));
            let data = RecordData::parse(&rtype, &value, domain).map_err(|error| {
                let key =
                    if matches!(error, proximity_table::RecordError::Type(_)) { "type" } else { "value" };
                table.explain(key, &error.to_string());
            });
            if let (Ok(name), Ok(data)) = (name, data) {
                let (_, set) =
                    sets.entry((name.clone(), data.rtype())).or_insert((Source::Config, Arc::default()));
                Arc::make_mut(set).push(Record { name, data, ttl });
            }
        }
        table.finish();
    }
    sets
}

pub fn vhosts(root: &mut Section<'_>, domain: &Name) -> OrdMap<Label, Owned<Vhost>> {
    let mut vhosts = OrdMap::new();
    for mut table in root.tables("vhost") {
        if let Some(vhost) = vhost(&mut table, domain) {
            let key = vhost.app_name.clone();
            if vhosts.insert(key.clone(), (Source::Config, Arc::new(vhost))).is_some() {
                let hint =
                    "give each vhost its own app_name; one vhost can have several backends and aliases";
                table.refuse("app_name", &format!("two vhosts are called `{key}`"), hint);
            }
        }
        table.finish();
    }
    vhosts
}

pub fn forwards(root: &mut Section<'_>) -> OrdMap<(Protocol, u16), Owned<Forward>> {
    let mut forwards = OrdMap::new();
    for mut table in root.tables("forward") {
        let protocol = match table.word("protocol", &["tcp", "udp"]) {
            "udp" => Protocol::Udp,
            _ => Protocol::Tcp,
        };
        let port = table.port("port");
        let to: Option<String> = table.required("to", "gitea:22");
        if let Some(port) = port {
            if let Some((to, to_port)) = to.as_deref().and_then(forward_target) {
                let forward = Forward { protocol, port, to, to_port };
                if forwards.insert((protocol, port), (Source::Config, Arc::new(forward))).is_some() {
                    let message = format!("{} port {port} is forwarded twice", protocol.as_str());
                    table.refuse("port", &message, "use another port for one of them");
                }
            } else if let Some(to) = to {
                let hint = "write an app or an address with a port, such as gitea:22 or 10.20.0.10:22";
                table.refuse("to", &format!("`{to}` is not a target"), hint);
            }
        } else if !table.has("port") {
            table.refuse_all("[forward] has no port", "add port = 2222");
        }
        table.finish();
    }
    forwards
}

fn vhost(table: &mut Section<'_>, domain: &Name) -> Option<Vhost> {
    let app_name: Option<Label> = table.required("app_name", "nginx");
    let hostname = table.string("hostname", "");
    let hostname = match hostname.as_str() {
        "" => app_name.as_ref().and_then(|app| domain.child(app).ok()),
        text => {
            vhost_hostname(text, domain).map_err(|error| table.explain("hostname", &error.to_string())).ok()
        }
    };
    let aliases = table.list("aliases", "host names in quotes", |text| vhost_hostname(text, domain).ok());
    let port = table.port("backend_port");
    let ip: Option<Ipv4Addr> = table.optional("backend_ip", "an IPv4 address such as \"10.20.0.101\"");
    let app: Option<Label> = table.optional("backend", "the host name of an app such as \"nginx\"");
    let listed =
        table.list("backends", "an address or app with a port such as \"10.20.0.101:80\"", backend_target);
    let protocol = match table.word("protocol", &["http", "https", "h2c"]) {
        "https" => BackendProtocol::Https,
        "h2c" => BackendProtocol::H2c,
        _ => BackendProtocol::Http,
    };
    let enabled = table.boolean("enabled", true);
    let health = health(table);

    let mut backends = listed.clone().unwrap_or_default();
    backends.extend(ip.map(|ip| BackendTarget::Address(SocketAddrV4::new(ip, port.unwrap_or(80)))));
    backends.extend(app.clone().map(|name| BackendTarget::App { name, port: port.unwrap_or(80) }));
    let ways = [listed.is_some(), ip.is_some(), app.is_some()].into_iter().filter(|way| *way).count();
    if ways != 1 && !(ways == 0 && (table.has("backend_ip") || table.has("backends") || table.has("backend")))
    {
        let hint = "write one of backend_ip (with backend_port), backends, or backend";
        table.refuse_all(&format!("[vhost] names its backends {ways} times"), hint);
    } else if ways == 1 && backends.is_empty() {
        table.refuse(
            "backends",
            "the list of backends is empty",
            "write at least one, such as \"10.20.0.101:80\"",
        );
    }
    let (app_name, hostname) = (app_name?, hostname?);
    (!backends.is_empty()).then(|| Vhost {
        aliases: aliases.unwrap_or_default(),
        protocol,
        enabled,
        health,
        ..Vhost::new(app_name, hostname, backends)
    })
}

fn health(table: &mut Section<'_>) -> HealthPolicy {
    let defaults = HealthPolicy::default();
    let mut health = table.table("health");
    let policy = HealthPolicy {
        uri: health.string("uri", &defaults.uri),
        interval: health.duration("interval", defaults.interval, 1),
        timeout: health.duration("timeout", defaults.timeout, 1),
        ..defaults
    };
    if !policy.uri.starts_with('/') || policy.uri.bytes().any(|b| !b.is_ascii_graphic()) {
        health.refuse(
            "uri",
            &format!("`{}` is not a path", policy.uri),
            "begin it with / and leave out white space",
        );
    }
    health.finish();
    policy
}

fn host_label(text: &str) -> Option<Label> {
    text.parse().ok()
}
