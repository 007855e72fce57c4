//! The flags of `vhost add` and `vhost set` as edits of the JSON that the API takes.

use serde_json::{Map, Value, json};

use crate::cli::VhostSettings;
use crate::dotted_key::{self, Unset};

/// A vhost in JSON.
pub type Body = Map<String, Value>;

/// What `vhost add` sends.
pub fn add(name: &str, backends: &[String], settings: &VhostSettings) -> Result<Body, String> {
    let mut body = Body::new();
    body.insert("app_name".to_owned(), json!(name));
    edit(name, &mut body, backends, settings)?;
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
        Some(shown) => {
            let mut body = shown.clone();
            proximity_admin::forget_what_is_shown(&mut body);
            body
        }
        None => Body::new(),
    };
    body.insert("app_name".to_owned(), json!(name));
    edit(name, &mut body, backends, settings)?;
    Ok(body)
}

fn edit(name: &str, body: &mut Body, backends: &[String], settings: &VhostSettings) -> Result<(), String> {
    let mut troubles = Vec::new();
    let mut emptied = Vec::new();
    for key in &settings.unset {
        match dotted_key::unset(body, key) {
            Unset::Done => {}
            Unset::Emptied(list) => emptied.push((key, list)),
            Unset::Absent => troubles.push(format!(
                "the vhost `{name}` has no `{key}` to unset; `proximity vhost show {name}` shows what it has"
            )),
        }
    }
    if let Err(trouble) = put_flags(body, backends, settings) {
        troubles.push(trouble);
    }
    for text in &settings.set {
        let put = match text.split_once('=') {
            Some((key, value)) if !key.is_empty() => dotted_key::set(body, key, value),
            _ => Err(format!("`{text}` is not KEY=VALUE: write it such as timeouts.total=30s")),
        };
        troubles.extend(put.err());
    }
    // An empty list of users or networks lets everybody in: whoever means that says so.
    for (key, list) in emptied.into_iter().filter(|(_, list)| dotted_key::is_empty_list(body, list)) {
        troubles.push(format!("`{key}` is the last of {list}; --unset {list} takes it away as a whole"));
    }
    let names_realm = settings.set.iter().any(|text| text.starts_with("auth.realm="));
    if settings.unset.iter().any(|key| key == "auth.users") && !names_realm {
        forget_realm_without_users(body);
    }
    match troubles.len() {
        0 => Ok(()),
        1 => Err(troubles.remove(0)),
        count => Err(format!("{count} problems:\n  {}", troubles.join("\n  "))),
    }
}

/// A realm is what users are asked with: it goes when they all do.
fn forget_realm_without_users(body: &mut Body) {
    let Some(auth) = body.get_mut("auth").and_then(Value::as_object_mut) else { return };
    if auth.get("users").is_none_or(Value::is_null) {
        auth.remove("realm");
    }
    if auth.is_empty() {
        body.remove("auth");
    }
}

fn put_flags(body: &mut Body, backends: &[String], settings: &VhostSettings) -> Result<(), String> {
    if !backends.is_empty() {
        lead(body, json!(backends.iter().map(|backend| with_port(backend)).collect::<Vec<_>>()));
    }
    if let Some(to) = &settings.redirect {
        for key in ["backends", "backend", "backend_ip", "backend_port"] {
            body.remove(key);
        }
        body.insert("redirect".to_owned(), json!(to));
    }
    let mut put = |key: &str, value: Option<Value>| {
        value.map(|value| dotted_key::insert(body, key, value)).unwrap_or(Ok(()))
    };
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

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(list: &[&str]) -> Vec<String> {
        list.iter().map(|text| (*text).to_owned()).collect()
    }

    fn shown() -> Value {
        json!({"app_name": "wiki", "hostname": "wiki.prox.local", "backends": ["wiki:80"], "source": "api",
            "verdict": "disabled", "enabled": false, "auth": {"users": ["alice"]}, "timeouts": {"total": "30s"},
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

    fn set_and_unset(set_keys: &[&str], unset_keys: &[&str]) -> Result<Value, String> {
        let settings =
            VhostSettings { set: texts(set_keys), unset: texts(unset_keys), ..VhostSettings::default() };
        set("wiki", Some(&guarded()), &[], &settings).map(Value::Object)
    }

    fn guarded() -> Value {
        let mut shown = shown();
        shown["auth"] = json!({"realm": "R", "users": ["alice", "bob"], "forward": "auth:80"});
        shown["access"] = json!({"allow": ["10.0.0.0/8"]});
        shown
    }

    #[test]
    fn one_user_comes_or_goes_and_the_rest_stays() {
        let added = set_and_unset(&["auth.users.carol=$2b$12$x"], &[]).unwrap();
        let users = json!({"alice": "", "bob": "", "carol": "$2b$12$x"});
        assert_eq!(added["auth"], json!({"realm": "R", "users": users, "forward": "auth:80"}));
        let removed = set_and_unset(&[], &["auth.users.alice"]).unwrap();
        assert_eq!(removed["auth"], json!({"realm": "R", "users": ["bob"], "forward": "auth:80"}));
        let replaced =
            set_and_unset(&["auth.users.carol=x"], &["auth.users.alice", "auth.users.bob"]).unwrap();
        assert_eq!(replaced["auth"]["users"], json!({"carol": "x"}));
        assert_eq!(replaced["auth"]["realm"], "R");
    }

    #[test]
    fn nobody_opens_a_vhost_by_removing_the_last_of_a_list() {
        let trouble = set_and_unset(&[], &["auth.users.alice", "auth.users.bob"]).unwrap_err();
        assert!(trouble.contains("`auth.users.bob`") && trouble.contains("--unset auth.users "), "{trouble}");
        let trouble = set_and_unset(&[], &["access.allow.10.0.0.0/8"]).unwrap_err();
        assert!(trouble.contains("--unset access.allow "), "{trouble}");
        // Who says it, means it; the realm goes along.
        let opened = set_and_unset(&[], &["auth.users", "access"]).unwrap();
        assert_eq!((&opened["auth"], &opened["access"]), (&json!({"forward": "auth:80"}), &Value::Null));
    }

    #[test]
    fn what_is_not_there_is_named_each_on_a_line() {
        let trouble = set_and_unset(&[], &["balance"]).unwrap_err();
        assert!(trouble.starts_with("the vhost `wiki` has no `balance` to unset; "), "{trouble}");
        assert!(set_and_unset(&[], &["verdict"]).is_err(), "what is only shown is not there");
        let trouble = set_and_unset(&["retries", "enabled.x=1"], &["blance", "auth.users.dave"]).unwrap_err();
        let lines: Vec<&str> = trouble.lines().collect();
        assert_eq!(lines.len(), 5, "{trouble}");
        assert_eq!(lines[0], "4 problems:");
        for (line, part) in lines[1..].iter().zip(["`blance`", "`auth.users.dave`", "KEY=VALUE", "no parts"])
        {
            assert!(line.starts_with("  ") && line.contains(part), "{trouble}");
        }
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
