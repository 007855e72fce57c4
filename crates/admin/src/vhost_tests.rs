//! Vhosts through the API: as they are written, kept and shown.

use proximity_config::Config;
use proximity_table::{BackendTarget, Change, Facts, Generation, Ledger, Source, Touched, Vhost, World};
use serde_json::{Map, Value};

use crate::{VhostView, edit, vhost_input};

const HASH: &str = "$2b$12$abcdefghijklmnopqrstuuABCDEFGHIJKLMNOPQRSTUVWXYZ01232";

fn facts() -> Facts {
    Facts::new(Config::default().intent, Ledger::default())
}

fn object(text: &str) -> Map<String, Value> {
    serde_json::from_str(text).unwrap()
}

/// Puts a vhost by its JSON; the facts after it, and how it is shown.
fn put(facts: &mut Facts, body: Map<String, Value>) -> Result<VhostView, crate::Problem> {
    let vhost =
        vhost_input::vhost(body, None, &"prox.local".parse().unwrap(), proximity_config::Spelling::Json)?;
    let name = vhost.app_name.to_string();
    for change in edit::put_vhost(facts, vhost, true, proximity_config::Spelling::Json)? {
        facts.apply(change, &mut Touched::default());
    }
    let world = World::derive(facts.clone(), Generation(1));
    Ok(VhostView::named(&world, &name).expect("it is there"))
}

fn shown(view: &VhostView) -> Map<String, Value> {
    let Value::Object(shown) = serde_json::to_value(view).unwrap() else { panic!("an object") };
    shown
}

const PLAIN: &str = r#"{"app_name": "wiki", "backend_ip": "10.20.0.5", "backend_port": 8080}"#;

#[test]
fn a_plain_vhost_is_shown_as_ever() {
    let view = shown(&put(&mut facts(), object(PLAIN)).unwrap());
    let keys: Vec<&str> = view.keys().map(String::as_str).collect();
    assert_eq!(
        keys,
        [
            "aliases",
            "app_name",
            "backend_ip",
            "backend_port",
            "backends",
            "enabled",
            "health",
            "hostname",
            "protocol",
            "source",
            "url",
            "verdict"
        ]
    );
    assert_eq!(
        (view["url"].as_str(), view["verdict"].as_str()),
        (Some("http://wiki.prox.local"), Some("ready"))
    );
    assert_eq!(view["health"].as_object().unwrap().len(), 7);
}

#[test]
fn what_is_shown_can_be_sent_back() {
    let bodies = [
        PLAIN.to_owned(),
        r#"{"app_name": "a", "backends": ["a:80", "10.20.0.5:80"], "hostname": "*.a.prox.local", "default": true}"#
            .to_owned(),
        r#"{"app_name": "a", "redirect": "https://new.example{uri}", "redirect_status": 302, "aliases": ["b"], "dns": "direct"}"#
            .to_owned(),
        format!(
            r#"{{"app_name": "a", "backend": "a", "balance": "random_two", "affinity": "header:X-Id",
            "host_header": "preserve", "compress": true, "slow_start": 30, "retries": 0, "retry_budget": 5,
            "send_proxy_protocol": "v1", "protocol": "https", "tls_verify": true, "tls_server_name": "a.local",
            "tls_ca": "/etc/ssl/a.pem",
            "max_body": "10MiB", "log": false, "log_sample": 7, "enabled": false,
            "health": {{"uri": "/up", "method": "HEAD", "port": 81, "status": 204, "rise": 2, "fall": 3}},
            "passive": {{"failures": 0, "window": 5, "pause": "1m"}},
            "timeouts": {{"connect": 1, "header": 2, "idle": 3, "total": "infinite"}},
            "limits": {{"backend_connections": 1, "queue": 0, "queue_timeout": 9, "client_connections": 2,
                "client_rate": 3, "client_burst": 4}},
            "request_headers": {{"set": {{"X-A": "b"}}, "remove": ["Cookie"]}},
            "response_headers": {{"add": {{"Link": ["a", "b", "c"], "Vary": "d"}}}},
            "auth": {{"realm": "R", "users": {{"alice": "{HASH}"}}, "forward": "auth:9091",
                "forward_path": "/v", "copy_headers": ["Remote-User"]}},
            "access": {{"allow": ["10.0.0.0/8"], "deny": ["10.1.0.1"], "apps": ["p"]}},
            "path": [
                {{"prefix": "/z", "strip": true, "backends": ["z:1"], "protocol": "h2c", "tls_verify": false,
                  "health": {{"method": "GET", "status": "200-299", "body": "ok"}}}},
                {{"prefix": "/a", "redirect": "/b"}}
            ]}}"#
        ),
    ];
    for body in bodies {
        let mut facts = facts();
        let view = put(&mut facts, object(&body)).unwrap_or_else(|problem| panic!("{problem:?}: {body}"));
        let made = facts.intent().vhosts.values().next().unwrap().1.clone();
        let again = shown(&view);
        put(&mut facts, again.clone()).unwrap_or_else(|problem| panic!("{problem:?}: {again:?}"));
        let after = &facts.intent().vhosts.values().next().unwrap().1;
        let mut made = (*made).clone();
        made.paths.sort_by(|a, b| a.prefix.cmp(&b.prefix));
        assert_eq!(**after, made, "{again:?}");
    }
}

#[test]
fn hashes_are_kept_and_never_shown() {
    let mut facts = facts();
    let with = |users: &str| {
        object(&format!(r#"{{"app_name": "a", "backend": "a", "auth": {{"users": {users}}}}}"#))
    };
    let view = put(&mut facts, with(&format!(r#"{{"alice": "{HASH}", "bob": "{HASH}"}}"#))).unwrap();
    let text = serde_json::to_string(&view).unwrap();
    assert!(!text.contains("$2b$") && text.contains(r#""users":["alice","bob"]"#), "{text}");
    let hashes = |facts: &Facts| {
        let vhost = &facts.intent().vhosts.values().next().unwrap().1;
        let users = vhost.policy.basic_auth.as_ref().unwrap().users.clone();
        users.into_iter().map(|user| (user.name, user.hash)).collect::<Vec<_>>()
    };
    let other = HASH.replace("01232", "43212");
    put(&mut facts, with(&format!(r#"{{"alice": "", "carol": "{other}"}}"#))).unwrap();
    assert_eq!(hashes(&facts), [("alice".to_owned(), HASH.to_owned()), ("carol".to_owned(), other.clone())]);
    put(&mut facts, with(r#"["carol"]"#)).unwrap();
    assert_eq!(hashes(&facts), [("carol".to_owned(), other)]);
    let unknown = put(&mut facts, with(r#"["alice"]"#)).unwrap_err();
    assert!(unknown.status == 422 && unknown.detail.contains("`alice`"), "{unknown:?}");
}

#[test]
fn one_vhost_at_most_is_the_default() {
    let mut facts = facts();
    let default = |app: &str| object(&format!(r#"{{"app_name": "{app}", "backend": "a", "default": true}}"#));
    put(&mut facts, default("a")).unwrap();
    put(&mut facts, default("a")).unwrap();
    let refused = put(&mut facts, default("b")).unwrap_err();
    assert!(refused.status == 409 && refused.detail.contains("`a`"), "{refused:?}");
}

#[test]
fn each_path_has_a_verdict_of_its_own() {
    let body = r#"{"app_name": "a", "backend_ip": "10.20.0.5", "path": [
        {"prefix": "/gone", "backend": "gone"}, {"prefix": "/old", "redirect": "/new"}]}"#;
    let mut facts = facts();
    let view = put(&mut facts, object(body)).unwrap();
    let verdicts: Vec<(&str, &str)> =
        view.path.iter().map(|path| (path.prefix.as_str(), path.verdict.as_str())).collect();
    assert_eq!(
        (view.verdict.as_str(), &verdicts[..]),
        ("ready", &[("/gone", "stopped"), ("/old", "ready")][..])
    );
    // Sent elsewhere: no backend, no health.
    assert!(view.path[1].backends.is_empty());
    let mut off = object(body);
    off.insert("enabled".into(), false.into());
    let view = put(&mut facts, off).unwrap();
    assert!(view.path.iter().all(|path| path.verdict == "disabled"));
}

#[test]
fn a_vhost_of_wildcards_has_no_url() {
    let mut facts = facts();
    let view = put(&mut facts, object(r#"{"app_name": "a", "backend": "a", "hostname": "*"}"#)).unwrap();
    assert_eq!((view.hostname.as_str(), view.url), ("*.prox.local", None));
    let world = World::derive(facts, Generation(1));
    assert!(VhostView::named(&world, "whatever").is_none(), "no vhost is called so");
    assert!(VhostView::named(&world, "whatever.prox.local").is_some(), "but one answers");
}

#[test]
fn whoever_lost_its_name_is_shadowed() {
    let mut facts = facts();
    put(&mut facts, object(PLAIN)).unwrap();
    let mut other = Vhost::new("b".parse().unwrap(), "wiki.prox.local".parse().unwrap(), vec![]);
    other.backends = vec![BackendTarget::App { name: "b".parse().unwrap(), port: 80 }];
    facts.apply(Change::Vhost(Source::Config, other.into()), &mut Touched::default());
    let view = VhostView::named(&World::derive(facts, Generation(1)), "wiki").unwrap();
    assert_eq!(view.verdict, "shadowed");
}
