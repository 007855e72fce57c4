//! `proximity vhost …`

use hyper::Method;
use proximity_admin::{HealthView, PathView, VhostView};
use serde_json::{Map, Value, json};

use crate::cli::VhostCommand;
use crate::commands::{Asked, Done, escape, text, warn};
use crate::setting_rows::{self, plain};
use crate::{say, vhost_edit};

pub fn run(asked: &Asked, command: VhostCommand) -> Done {
    match command {
        VhostCommand::Ls => asked.list(
            "/vhosts",
            "no vhost",
            &["app", "hostname", "backends", "verdict", "health", "source"],
            |vhost: VhostView| {
                let to = match vhost.path.len() {
                    0 => target(&vhost),
                    1 => format!("{} +1 path", target(&vhost)),
                    count => format!("{} +{count} paths", target(&vhost)),
                };
                let health = health(&vhost.backends, &vhost.health);
                vec![vhost.app_name, vhost.hostname, to, vhost.verdict, health, plain(&json!(vhost.source))]
            },
        ),
        VhostCommand::Show { name } => {
            let answer = asked.call(Method::GET, &format!("/vhosts/{}", escape(&name)), None)?;
            asked.show(answer, |vhost: VhostView| {
                rows(&vhost).into_iter().for_each(|(key, value)| say!("{key:28} {value}"))
            })
        }
        VhostCommand::Add { name, backend, settings } => {
            let body = vhost_edit::add(&name, &backend, &settings)?;
            put(asked, Method::POST, "/vhosts", body, &format!("the vhost {name} is there"))
        }
        VhostCommand::Set { name, backend, settings } => {
            let path = format!("/vhosts/{}", escape(&name));
            let shown = asked.client().find(&path)?;
            let body = vhost_edit::set(&name, shown.as_ref(), &backend, &settings)?;
            if !LEADING.iter().any(|key| body.contains_key(*key)) {
                return Err(nowhere(&name, shown.as_ref()));
            }
            put(asked, Method::PUT, &path, body, &format!("the vhost {name} is set"))
        }
        VhostCommand::Rm { name } => asked.change(
            Method::DELETE,
            &format!("/vhosts/{}", escape(&name)),
            None,
            &format!("the vhost {name} is removed"),
        ),
    }
}

/// Keys that say where a vhost leads.
const LEADING: [&str; 4] = ["backends", "backend", "backend_ip", "redirect"];

/// Says that there is no vhost of this name that could be changed.
fn nowhere(name: &str, shown: Option<&Value>) -> String {
    let other = shown.and_then(|shown| shown["app_name"].as_str());
    match other.filter(|other| !other.eq_ignore_ascii_case(name)) {
        Some(other) => format!(
            "`{name}` is a host name of the vhost `{other}`; `proximity vhost set {other} …` changes it"
        ),
        None => format!(
            "there is no vhost `{name}`, and nothing says where it should lead; `proximity vhost ls` shows those that \
             exist, and `proximity vhost add {name} BACKEND` makes one"
        ),
    }
}

/// Sends a vhost, and tells what is noticed of it.
fn put(asked: &Asked, method: Method, path: &str, body: Map<String, Value>, done: &str) -> Done {
    let answer = asked.call(method, path, Some(&Value::Object(body)))?;
    asked.show(answer, |vhost: VhostView| {
        say!("{done}");
        vhost.notes.iter().for_each(|note| say!("note: {note}"));
        warn(&vhost.warnings);
    })
}

/// Where a vhost leads, in a few words.
pub fn target(vhost: &VhostView) -> String {
    to(&vhost.backends, &vhost.settings)
}

fn to(backends: &[String], settings: &Map<String, Value>) -> String {
    match settings.get("redirect") {
        Some(to) => format!("redirect to {}", plain(to)),
        None => backends.join(", "),
    }
}

/// How a vhost is, in a word.
pub fn health(backends: &[String], health: &HealthView) -> String {
    if backends.is_empty() { "-".to_owned() } else { health.state.clone() }
}

fn rows(vhost: &VhostView) -> Vec<(String, String)> {
    let mut rows =
        vec![("name".to_owned(), vhost.app_name.clone()), ("host name".to_owned(), vhost.hostname.clone())];
    let mut row = |key: &str, value: String| rows.push((key.to_owned(), value));
    if !vhost.aliases.is_empty() {
        row("aliases", vhost.aliases.join(", "));
    }
    vhost.warnings.iter().for_each(|warning| row("warning", warning.clone()));
    row("URL", text(vhost.url.clone()));
    row("source", plain(&json!(vhost.source)));
    row("verdict", vhost.verdict.clone());
    row("leads to", format!("{} ({})", target(vhost), vhost.protocol));
    vhost.notes.iter().for_each(|note| row("note", note.clone()));
    add_health(&mut rows, "", &vhost.backends, &vhost.health);
    add_settings(&mut rows, "", &vhost.settings);
    for path in &vhost.path {
        let PathView { prefix, strip, backends, protocol, verdict, health, settings } = path;
        let stripped = if *strip { ", stripped" } else { "" };
        let to = format!("{} ({protocol}{stripped}), {verdict}", to(backends, settings));
        rows.push((format!("path {prefix}"), to));
        add_health(&mut rows, "  ", backends, health);
        add_settings(&mut rows, "  ", settings);
    }
    rows
}

fn add_health(rows: &mut Vec<(String, String)>, indent: &str, backends: &[String], health: &HealthView) {
    if backends.is_empty() {
        return;
    }
    let HealthView { uri, interval, timeout, .. } = health;
    rows.push((
        format!("{indent}health"),
        format!("{}, asks {uri} every {interval}, waits {timeout}", health.state),
    ));
    for check in &health.backends {
        let reason = check.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
        rows.push((format!("{indent}  {}", check.backend), format!("{}{reason}", check.state)));
    }
    add_settings(rows, &format!("{indent}health."), &health.settings);
}

/// Each setting as a line, those of a part with dots; the redirect is told already.
fn add_settings(rows: &mut Vec<(String, String)>, before: &str, settings: &Map<String, Value>) {
    for (key, value) in settings.iter().filter(|(key, _)| *key != "redirect") {
        setting_rows::add(rows, &format!("{before}{key}"), value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vhost_is_shown_line_by_line() {
        let health = json!({"state": "healthy", "since": null, "reason": null, "uri": "/", "interval": "30s",
            "timeout": "5s", "rise": 2, "backends": [
                {"backend": "10.20.0.5:80", "state": "unhealthy", "since": null, "reason": "refused"}]});
        let vhost: VhostView = serde_json::from_value(json!({
            "app_name": "wiki", "hostname": "*.wiki.local", "aliases": [], "backend_ip": null, "backend_port": null,
            "backends": ["10.20.0.5:80"], "protocol": "http", "enabled": true, "source": "api", "verdict": "ready",
            "url": null, "health": health, "balance": "random_two", "timeouts": {"idle": "9s"},
            "path": [{"prefix": "/old", "strip": true, "backends": [], "protocol": "http", "verdict": "ready",
                "health": {"state": "unproven", "since": null, "reason": null, "uri": "/", "interval": "30s",
                    "timeout": "5s", "backends": []}, "redirect": "/new{uri}"}],
        }))
        .unwrap();
        let shown: Vec<String> =
            rows(&vhost).into_iter().map(|(key, value)| format!("{key}={value}")).collect();
        assert_eq!(
            shown,
            [
                "name=wiki",
                "host name=*.wiki.local",
                "URL=-",
                "source=api",
                "verdict=ready",
                "leads to=10.20.0.5:80 (http)",
                "health=healthy, asks / every 30s, waits 5s",
                "  10.20.0.5:80=unhealthy: refused",
                "health.rise=2",
                "balance=random_two",
                "timeouts.idle=9s",
                "path /old=redirect to /new{uri} (http, stripped), ready",
            ]
        );
    }
}
