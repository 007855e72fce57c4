//! The flags of `vhost add` and `vhost set` as edits of the JSON that the API takes.

use serde_json::{Map, Value, json};

use crate::cli::VhostSettings;

/// A vhost in JSON.
pub type Body = Map<String, Value>;

/// What `vhost add` sends.
pub fn add(name: &str, backends: &[String], settings: &VhostSettings) -> Result<Body, String> {
    let mut body = Body::new();
    body.insert("app_name".to_owned(), json!(name));
    edit(&mut body, backends, settings)?;
    Ok(body)
}

/// What `vhost set` sends, given how the vhost is shown now.
pub fn set(
    name: &str,
    shown: Option<&Value>,
    backends: &[String],
    settings: &VhostSettings,
) -> Result<Body, String> {
    let shown =
        shown.filter(|shown| shown["app_name"].as_str().is_some_and(|app| app.eq_ignore_ascii_case(name)));
    let mut body = match shown.and_then(Value::as_object) {
        // What comes and goes with a lease is kept as a vhost that follows the app.
        Some(shown) if shown.get("source") == Some(&json!("lease")) => {
            let port = shown.get("backend_port").and_then(Value::as_u64).unwrap_or(80);
            Body::from_iter([
                ("hostname".to_owned(), shown.get("hostname").cloned().unwrap_or_default()),
                ("backends".to_owned(), json!([format!("{name}:{port}")])),
            ])
        }
        Some(shown) => shown.clone(),
        None => Body::new(),
    };
    body.insert("app_name".to_owned(), json!(name));
    edit(&mut body, backends, settings)?;
    Ok(body)
}

fn edit(body: &mut Body, backends: &[String], settings: &VhostSettings) -> Result<(), String> {
    for key in &settings.unset {
        unset(body, key);
    }
    if !backends.is_empty() {
        lead(body, json!(backends.iter().map(|backend| with_port(backend)).collect::<Vec<_>>()));
    }
    if let Some(to) = &settings.redirect {
        for key in ["backends", "backend", "backend_ip", "backend_port"] {
            body.remove(key);
        }
        body.insert("redirect".to_owned(), json!(to));
    }
    let mut put =
        |key: &str, value: Option<Value>| value.map(|value| insert(body, key, value)).unwrap_or(Ok(()));
    let list = |list: &[String]| (!list.is_empty()).then(|| json!(list));
    put("hostname", settings.hostname.as_ref().map(|value| json!(value)))?;
    put("aliases", list(&settings.alias))?;
    put("protocol", settings.protocol.as_ref().map(|value| json!(value)))?;
    put("health.uri", settings.health_uri.as_ref().map(|value| json!(value)))?;
    put("redirect_status", settings.redirect_status.map(|value| json!(value)))?;
    put("balance", settings.balance.as_ref().map(|value| json!(value)))?;
    put("affinity", settings.affinity.as_ref().map(|value| json!(value)))?;
    put("host_header", settings.host_header.as_ref().map(|value| json!(value)))?;
    put("access.allow", list(&settings.allow))?;
    put("access.deny", list(&settings.deny))?;
    put("access.apps", list(&settings.allow_app))?;
    put("default", settings.default.then_some(json!(true)))?;
    put("compress", settings.compress.then_some(json!(true)))?;
    put("enabled", (settings.disabled || settings.enabled).then(|| json!(settings.enabled)))?;
    let kept = settings.path.iter().map(|path| (path, false));
    for (text, strip) in kept.chain(settings.strip_path.iter().map(|path| (path, true))) {
        add_path(body, path(text, strip)?)?;
    }
    for text in &settings.set {
        let wrong = || format!("`{text}` is not KEY=VALUE: write it such as timeouts.total=30s");
        let (key, value) = text.split_once('=').filter(|(key, _)| !key.is_empty()).ok_or_else(wrong)?;
        // What is no JSON is a text: most values are, and need no quotes.
        insert(body, key, serde_json::from_str(value).unwrap_or_else(|_| json!(value)))?;
    }
    Ok(())
}

/// Makes a vhost lead to backends, whatever it led to before.
fn lead(body: &mut Body, backends: Value) {
    for key in ["redirect", "redirect_status", "backend", "backend_ip", "backend_port"] {
        body.remove(key);
    }
    body.insert("backends".to_owned(), backends);
}

/// A bare address or app means port 80.
fn with_port(backend: &str) -> String {
    if backend.contains(':') { backend.to_owned() } else { format!("{backend}:80") }
}

fn path(text: &str, strip: bool) -> Result<Value, String> {
    let wrong = || format!("`{text}` is not PREFIX=TO: write it such as /api=api:3000");
    let (prefix, to) = text.split_once('=').filter(|(_, to)| !to.is_empty()).ok_or_else(wrong)?;
    if to.starts_with('/') || to.contains("://") {
        return Ok(json!({"prefix": prefix, "strip": strip, "redirect": to}));
    }
    let backends: Vec<String> = to.split(',').map(with_port).collect();
    Ok(json!({"prefix": prefix, "strip": strip, "backends": backends}))
}

/// Adds a path, or puts it in the place of the one with its prefix.
fn add_path(body: &mut Body, path: Value) -> Result<(), String> {
    let paths = body.entry("path").or_insert_with(|| json!([]));
    let paths = paths.as_array_mut().ok_or("the vhost's paths are not a list: --unset path first")?;
    let prefix = |path: &Value| path["prefix"].as_str().unwrap_or_default().trim_end_matches('/').to_owned();
    paths.retain(|there| prefix(there) != prefix(&path));
    paths.push(path);
    Ok(())
}

/// Puts a value under a key with dots.
fn insert(body: &mut Body, key: &str, value: Value) -> Result<(), String> {
    match key.split_once('.') {
        None => drop(body.insert(key.to_owned(), value)),
        Some((outer, inner)) => {
            let part = body.entry(outer).or_insert_with(|| json!({}));
            if part.is_null() {
                *part = json!({});
            }
            let part =
                part.as_object_mut().ok_or_else(|| format!("{outer} has no parts: set it as a whole"))?;
            insert(part, inner, value)?;
        }
    }
    Ok(())
}

fn unset(body: &mut Body, key: &str) {
    match key.split_once('.') {
        None => drop(body.remove(key)),
        Some((outer, inner)) => {
            if let Some(part) = body.get_mut(outer).and_then(Value::as_object_mut) {
                unset(part, inner);
                if part.is_empty() {
                    body.remove(outer);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(list: &[&str]) -> Vec<String> {
        list.iter().map(|text| (*text).to_owned()).collect()
    }

    fn shown() -> Value {
        json!({"app_name": "wiki", "hostname": "wiki.prox.local", "backends": ["wiki:80"], "source": "api",
            "enabled": false, "auth": {"users": ["alice"]}, "timeouts": {"total": "30s"},
            "path": [{"prefix": "/api", "strip": false, "backends": ["api:80"]}]})
    }

    #[test]
    fn flags_are_keys() {
        let settings = VhostSettings {
            alias: texts(&["a", "b"]),
            host_header: Some("preserve".into()),
            health_uri: Some("/up".into()),
            path: texts(&["/api=api,10.20.0.5:81", "/old=/new{uri}"]),
            strip_path: texts(&["/x=https://x.example{uri}"]),
            allow: texts(&["10.0.0.0/8"]),
            allow_app: texts(&["prometheus"]),
            set: texts(&["timeouts.total=30s", "retries=0", "response_headers.remove=[\"Server\"]"]),
            default: true,
            ..VhostSettings::default()
        };
        let expected = json!({
            "app_name": "wiki", "backends": ["10.20.0.5:80", "wiki:81"], "aliases": ["a", "b"],
            "host_header": "preserve", "health": {"uri": "/up"}, "default": true,
            "access": {"allow": ["10.0.0.0/8"], "apps": ["prometheus"]},
            "path": [
                {"prefix": "/api", "strip": false, "backends": ["api:80", "10.20.0.5:81"]},
                {"prefix": "/old", "strip": false, "redirect": "/new{uri}"},
                {"prefix": "/x", "strip": true, "redirect": "https://x.example{uri}"},
            ],
            "timeouts": {"total": "30s"}, "retries": 0, "response_headers": {"remove": ["Server"]},
        });
        let body = add("wiki", &texts(&["10.20.0.5", "wiki:81"]), &settings).unwrap();
        assert_eq!(Value::Object(body), expected);
    }

    #[test]
    fn set_changes_what_is_given_and_keeps_the_rest() {
        let settings = VhostSettings {
            balance: Some("random_two".into()),
            enabled: true,
            path: texts(&["/api/=next:80"]),
            set: texts(&["timeouts.idle=5s"]),
            unset: texts(&["timeouts.total", "auth"]),
            ..VhostSettings::default()
        };
        let body = Value::Object(set("wiki", Some(&shown()), &[], &settings).unwrap());
        assert_eq!((&body["backends"], &body["enabled"]), (&json!(["wiki:80"]), &json!(true)));
        assert_eq!((&body["timeouts"], &body["auth"]), (&json!({"idle": "5s"}), &Value::Null));
        assert_eq!(body["path"], json!([{"prefix": "/api/", "strip": false, "backends": ["next:80"]}]));

        let moved = set("wiki", Some(&shown()), &texts(&["10.20.0.9"]), &VhostSettings::default()).unwrap();
        assert_eq!(moved["backends"], json!(["10.20.0.9:80"]));
        assert_eq!(moved["auth"], shown()["auth"]);
        let sent = VhostSettings { redirect: Some("https://new.example".into()), ..VhostSettings::default() };
        let sent = set("wiki", Some(&shown()), &[], &sent).unwrap();
        assert!(sent.get("backends").is_none() && sent["redirect"] == "https://new.example", "{sent:?}");
    }

    #[test]
    fn what_a_lease_made_is_followed_from_then_on() {
        let leased = json!({"app_name": "wiki", "hostname": "wiki.prox.local", "source": "lease",
            "backends": ["10.20.0.101:80", "10.20.0.101:8080"], "backend_port": 8080, "verdict": "ready"});
        let settings = VhostSettings { host_header: Some("preserve".into()), ..VhostSettings::default() };
        let body = Value::Object(set("wiki", Some(&leased), &[], &settings).unwrap());
        let expected = json!({"app_name": "wiki", "hostname": "wiki.prox.local", "backends": ["wiki:8080"],
            "host_header": "preserve"});
        assert_eq!(body, expected);
        // Found by a host name of another vhost: that one is left alone.
        let other = set("wiki.prox.local", Some(&leased), &[], &VhostSettings::default()).unwrap();
        assert_eq!(other.len(), 1);
    }

    #[test]
    fn what_is_no_edit_is_told() {
        let set_of = |text: &str| VhostSettings { set: texts(&[text]), ..VhostSettings::default() };
        let path_of = |text: &str| VhostSettings { path: texts(&[text]), ..VhostSettings::default() };
        for settings in
            [set_of("retries"), set_of("=3"), set_of("enabled.x=3"), path_of("/api"), path_of("/api=")]
        {
            assert!(set("wiki", Some(&shown()), &[], &settings).is_err(), "{settings:?}");
        }
    }
}
