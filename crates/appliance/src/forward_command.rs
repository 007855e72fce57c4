//! `proximity forward …`

use hyper::Method;
use proximity_admin::ForwardView;
use serde_json::{Map, Value, json};

use crate::cli::{ForwardCommand, ForwardSettings};
use crate::commands::{Asked, Done, escape};
use crate::say;
use crate::setting_rows::{self, plain};

pub fn run(asked: &Asked, command: ForwardCommand) -> Done {
    match command {
        ForwardCommand::Ls => asked.list(
            "/forwards",
            "no port forward",
            &["protocol", "port", "mode", "to", "leads to", "health", "open", "source"],
            |forward: ForwardView| {
                vec![
                    forward.protocol.clone(),
                    forward.port.to_string(),
                    forward.mode.clone(),
                    plain(&forward.to),
                    leads_to(&forward),
                    health(&forward),
                    if forward.mode == "proxy" { forward.connections.to_string() } else { "-".to_owned() },
                    plain(&json!(forward.source)),
                ]
            },
        ),
        ForwardCommand::Show { name } => {
            let answer = find(asked, &name)?;
            asked.show(answer, |forward: ForwardView| {
                rows(&forward).into_iter().for_each(|(key, value)| say!("{key:28} {value}"))
            })
        }
        ForwardCommand::Add { port, to, settings } => {
            let done = format!("{} port {port} leads to {}", settings.protocol, to.join(", "));
            asked.change(Method::POST, "/forwards", Some(body(port, &to, &settings)), &done)
        }
        ForwardCommand::Rm { port, protocol } => {
            let path = format!("/forwards/{}/{port}", escape(&protocol));
            let done = format!("{protocol} port {port} leads nowhere any more");
            asked.change(Method::DELETE, &path, None, &done)
        }
    }
}

/// The forward that is called by its port, or by protocol and port as in `tcp/2222`. A port alone is one of TCP before
/// one of UDP.
fn find(asked: &Asked, name: &str) -> Result<Value, String> {
    let path = |protocol: &str, port: &str| format!("/forwards/{}/{}", escape(protocol), escape(port));
    match name.split_once('/') {
        Some((protocol, port)) => asked.call(Method::GET, &path(protocol, port), None),
        None => match asked.client().find(&path("tcp", name))? {
            Some(found) => Ok(found),
            None => asked.client().find(&path("udp", name))?.ok_or_else(|| {
                format!("there is no forward `{name}`; `proximity forward ls` shows those that exist")
            }),
        },
    }
}

fn rows(forward: &ForwardView) -> Vec<(String, String)> {
    let mut rows = vec![
        ("port".to_owned(), format!("{}/{}", forward.protocol, forward.port)),
        ("source".to_owned(), plain(&json!(forward.source))),
        ("mode".to_owned(), forward.mode.clone()),
        ("leads to".to_owned(), leads_to(forward)),
    ];
    let mut row = |key: String, value: String| rows.push((key, value));
    forward.warnings.iter().for_each(|warning| row("warning".to_owned(), warning.clone()));
    forward.notes.iter().for_each(|note| row("note".to_owned(), note.clone()));
    for target in &forward.targets {
        let state = target.state.as_deref().unwrap_or("not probed");
        let reason = target.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
        let at = target.address.as_deref().unwrap_or("no address now");
        row(format!("  {}", target.to), format!("{at}, {state}{reason}"));
        if let Some(circuit) = target.circuit.as_ref().filter(|circuit| *circuit != "closed") {
            row(format!("  {} circuit", target.to), circuit.clone());
        }
    }
    if forward.mode == "proxy" {
        let since = forward.counted_since.as_ref().map(|since| format!(" since {since}")).unwrap_or_default();
        row(
            "connections".to_owned(),
            format!("{} open, {} taken{since}", forward.connections, forward.taken),
        );
        row("octets".to_owned(), format!("{} received, {} sent", forward.bytes_received, forward.bytes_sent));
    }
    forward.settings.iter().for_each(|(key, value)| setting_rows::add(&mut rows, key, value));
    rows
}

/// The keys of `[[forward]]`.
fn body(port: u16, to: &[String], settings: &ForwardSettings) -> Value {
    let mut body = Map::new();
    let mut put = |key: &str, value: Option<Value>| {
        value.map(|value| body.insert(key.to_owned(), value));
    };
    put("protocol", Some(json!(settings.protocol)));
    put("port", Some(json!(port)));
    put("to", Some(if let [one] = to { json!(one) } else { json!(to) }));
    put("mode", settings.mode.as_ref().map(|value| json!(value)));
    put("proxy_protocol", settings.proxy_protocol.as_ref().map(|value| json!(value)));
    let accepted = &settings.accept_proxy_protocol;
    let accepted = match accepted.iter().any(|network| network == "all") {
        true => Some(json!(true)),
        false => (!accepted.is_empty()).then(|| json!(accepted)),
    };
    put("accept_proxy_protocol", accepted);
    put("balance", settings.balance.as_ref().map(|value| json!(value)));
    put("idle_timeout", settings.idle_timeout.as_deref().map(time));
    put("max_connections", settings.max_connections.map(|value| json!(value)));
    let times = [("interval", &settings.health_interval), ("timeout", &settings.health_timeout)];
    let times = times.into_iter().filter_map(|(key, value)| Some((key.to_owned(), time(value.as_deref()?))));
    let health: Map<String, Value> = times.collect();
    put("health", (settings.health || !health.is_empty()).then_some(Value::Object(health)));
    Value::Object(body)
}

/// A time as the API takes it: a number is one of seconds.
fn time(text: &str) -> Value {
    text.parse::<u32>().map_or_else(|_| json!(text), |seconds| json!(seconds))
}

fn leads_to(forward: &ForwardView) -> String {
    let addresses: Vec<&str> =
        forward.targets.iter().filter_map(|target| target.address.as_deref()).collect();
    match (&forward.trouble, addresses.is_empty()) {
        (Some(trouble), _) => format!("not listened on: {trouble}"),
        (None, true) => "-".to_owned(),
        (None, false) => addresses.join(", "),
    }
}

/// How the targets are, and of those that are not well why.
fn health(forward: &ForwardView) -> String {
    let reason = forward.targets.iter().find_map(|target| target.reason.as_deref());
    match reason {
        Some(reason) => format!("{} ({reason})", forward.state()),
        None => forward.state().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        settings: ForwardSettings,
    }

    fn built(to: &[&str], flags: &[&str]) -> Value {
        let line = Line::try_parse_from([&["test"], flags].concat()).unwrap();
        let to: Vec<String> = to.iter().map(|to| (*to).to_owned()).collect();
        body(2222, &to, &line.settings)
    }

    #[test]
    fn flags_are_the_keys_of_the_file() {
        assert_eq!(built(&["gitea:22"], &[]), json!({"protocol": "tcp", "port": 2222, "to": "gitea:22"}));
        let flags = "--mode proxy --proxy-protocol v2 --accept-proxy-protocol 10.0.0.0/8 --balance least_connections \
                     --health-interval 5s --health-timeout 2 --idle-timeout 10m --max-connections 9";
        let full = json!({
            "protocol": "tcp", "port": 2222, "to": ["a:22", "b:22"], "mode": "proxy", "proxy_protocol": "v2",
            "accept_proxy_protocol": ["10.0.0.0/8"], "balance": "least_connections", "idle_timeout": "10m",
            "max_connections": 9, "health": {"interval": "5s", "timeout": 2},
        });
        assert_eq!(built(&["a:22", "b:22"], &flags.split_whitespace().collect::<Vec<_>>()), full);
        let Value::Object(full) = full else { unreachable!() };
        assert!(proximity_config::forward_from_json(&full, proximity_config::Spelling::Line).is_ok());
        let all = built(&["a:22"], &["--mode=proxy", "--accept-proxy-protocol=all", "--health"]);
        assert_eq!((&all["accept_proxy_protocol"], &all["health"]), (&json!(true), &json!({})));
    }
}
