//! Vhosts as clients of the API write them: the keys of `[[vhost]]` in the configuration file.

use proximity_config::{Spelling, vhost_from_json};
use proximity_table::{Name, Vhost};
use serde_json::{Map, Value, json};

use crate::Problem;

/// What is shown of a vhost beside its settings; it is passed over, so that a vhost may come back as it was
/// shown.
const SHOWN: [&str; 5] = ["source", "verdict", "url", "notes", "warnings"];
/// The same of its health.
const SHOWN_OF_HEALTH: [&str; 4] = ["state", "since", "reason", "backends"];

/// The vhost that a body means, once it makes sense. `name` is the one in the path of a PUT. Users without a
/// hash are to keep the one that is there ([`vhost_from_json`]).
pub fn vhost(
    mut body: Map<String, Value>,
    name: Option<&str>,
    domain: &Name,
    spelling: Spelling,
) -> Result<Vhost, Problem> {
    match (body.get("app_name").and_then(Value::as_str), name) {
        (Some(body), Some(path)) if !body.eq_ignore_ascii_case(path) => {
            let hint = "leave app_name out, or delete the vhost and create another";
            let detail = format!("app_name `{body}` is not the `{path}` of the path");
            return Err(Problem::invalid(detail, hint));
        }
        (None, Some(path)) => drop(body.insert("app_name".to_owned(), json!(path))),
        _ => {}
    }
    one_way_to_the_backends(&mut body)?;
    forget_what_is_shown(&mut body);
    vhost_from_json(&body, domain, spelling).map_err(|report| Problem::reported(&report))
}

/// Takes away what is shown of a vhost and cannot be set.
pub fn forget_what_is_shown(body: &mut Map<String, Value>) {
    forget(body, &SHOWN);
    for path in body.get_mut("path").and_then(Value::as_array_mut).into_iter().flatten() {
        path.as_object_mut().into_iter().for_each(|path| forget(path, &SHOWN));
    }
}

fn forget(object: &mut Map<String, Value>, shown: &[&str]) {
    object.retain(|key, _| !shown.contains(&key.as_str()));
    let health = object.get_mut("health").and_then(Value::as_object_mut);
    health.into_iter().for_each(|health| health.retain(|key, _| !SHOWN_OF_HEALTH.contains(&key.as_str())));
    // A redirect is shown with no backends.
    if object.get("backends").and_then(Value::as_array).is_some_and(Vec::is_empty)
        && object.get("redirect").is_some_and(|to| !to.is_null())
    {
        object.remove("backends");
    }
}

/// A vhost is shown with `backends`, and with the address and port of the first as the seed had it. For an app
/// that is followed, the address is where it happened to be.
fn one_way_to_the_backends(body: &mut Map<String, Value>) -> Result<(), Problem> {
    let first = body.get("backends").and_then(Value::as_array).and_then(|list| list.first());
    let Some(first) = first.and_then(Value::as_str).map(str::to_owned) else { return Ok(()) };
    let is_address = first.parse::<std::net::SocketAddrV4>().is_ok();
    let port = body.get("backend_port").and_then(Value::as_u64).unwrap_or(80);
    if let Some(ip) = body.get("backend_ip").and_then(Value::as_str)
        && is_address
        && first != format!("{ip}:{port}")
    {
        return Err(Problem::invalid("backend_ip and backends differ", "change both, or leave one out"));
    }
    forget_keys(body, &["backend_ip", "backend_port"]);
    Ok(())
}

fn forget_keys(object: &mut Map<String, Value>, keys: &[&str]) {
    object.retain(|key, _| !keys.contains(&key.as_str()));
}

#[cfg(test)]
mod tests {
    use proximity_table::{BackendTarget, HealthPolicy};

    use super::*;

    fn build(json: &str) -> Result<Vhost, Problem> {
        let body = serde_json::from_str(json).expect("the input is of the right shape");
        vhost(body, None, &"prox.local".parse().unwrap(), Spelling::Json)
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
    fn a_vhost_may_come_back_as_the_first_version_showed_it() {
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

    #[test]
    fn every_problem_of_a_body_is_told() {
        let error =
            build(r#"{"app_name": "a", "backend": "a", "balence": "fair", "retries": -1}"#).unwrap_err();
        assert_eq!(error.status, 422);
        assert!(
            error.detail.contains("vhost.balence") && error.detail.contains("vhost.retries"),
            "{error:?}"
        );
        assert!(error.hint.contains("`balance`") && error.hint.contains("from 0 to 10"), "{error:?}");
    }
}
