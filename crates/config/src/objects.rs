use std::sync::Arc;

use imbl::OrdMap;
use proximity_table::{
    BackendTarget, Forward, ForwardTarget, Name, Owned, Protocol, Record, RecordData, RecordType, Source,
};

use crate::section::Section;
use crate::vhost::backend_target;

/// The target of a port forward as text: `address:port`, or `app:port`.
pub fn forward_target(text: &str) -> Option<(ForwardTarget, u16)> {
    match backend_target(text)? {
        BackendTarget::Address(addr) => Some((ForwardTarget::Address(*addr.ip()), addr.port())),
        BackendTarget::App { name, port } => Some((ForwardTarget::App(name), port)),
    }
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
