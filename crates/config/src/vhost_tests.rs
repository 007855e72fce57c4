//! The keys of `[proxy]` and `[[vhost]]`, in the file and in JSON.

use proximity_table::{
    Access, Affinity, Balance, BasicAuth, BasicUser, ForwardAuth, HeaderEdits, HealthPolicy, HostPolicy,
    LogPolicy, LogSettings, PassivePolicy, ProxyProtocol, ProxySettings, Rate, Redirect, RetryPolicy,
    Timeouts, Vhost, VhostLimits, VhostPolicy,
};
use serde_json::{Value, json};

use super::*;

const BCRYPT: &str = "$2b$12$abcdefghijklmnopqrstuuABCDEFGHIJKLMNOPQRSTUVWXYZ01232";

const EVERY_KEY: &str = r#"
[[vhost]]
app_name = "shop"
hostname = "*.shop.prox.local"
aliases = ["store"]
backends = ["10.20.0.101:80", "web2:8080"]
balance = "least_connections"
affinity = "cookie:SHOP"
host_header = "preserve"
default = true
compress = true
slow_start = "30s"
retries = 1
retry_budget = 10
send_proxy_protocol = "v2"
protocol = "https"
tls_verify = true
tls_server_name = "shop.internal"
tls_ca = "/etc/ssl/shop.pem"
max_body = "10MiB"
log = false
log_sample = 100
[vhost.health]
uri = "/up?deep=1"
interval = "10s"
timeout = "2s"
method = "OPTIONS"
port = 8081
status = "200-299"
body = "ok"
rise = 2
fall = 3
[vhost.passive]
failures = 5
window = "1m"
pause = "20s"
[vhost.timeouts]
connect = 1
header = "30s"
idle = "2m"
total = "1h"
[vhost.limits]
backend_connections = 64
queue = 10
queue_timeout = "2s"
client_connections = 20
client_rate = 50
client_burst = 100
[vhost.request_headers]
set = { X-Env = "lab" }
remove = ["Cookie"]
[vhost.response_headers]
add = { Vary = "Accept", Link = ["</a>", "</b>"] }
remove = ["X-Frame-Options", "x-frame-options"]
[vhost.auth]
realm = "Shop"
users = { alice = "$2b$12$abcdefghijklmnopqrstuuABCDEFGHIJKLMNOPQRSTUVWXYZ01232" }
forward = "authelia:9091"
forward_path = "/api/verify"
copy_headers = ["Remote-User"]
[vhost.access]
allow = ["192.168.1.7/24", "10.0.0.1"]
deny = ["fd00::/8"]
apps = ["prometheus"]
[[vhost.path]]
prefix = "/api/"
strip = true
backend = "api"
backend_port = 3000
protocol = "http"
[[vhost.path]]
prefix = "/old"
redirect = "/new{uri}"
redirect_status = 301
"#;

fn only(text: &str) -> Vhost {
    let config = Config::parse(text).unwrap_or_else(|report| panic!("{report}"));
    let (_, vhost) = config.intent.vhosts.values().next().expect("a vhost");
    (**vhost).clone()
}

/// What is wrong with a vhost that says this beside its name and backend.
fn wrong(keys: &str) -> String {
    let text = format!("[[vhost]]\napp_name = \"a\"\nbackend = \"a\"\n{keys}\n");
    let report = Config::parse(&text).err().unwrap_or_else(|| panic!("nothing is wrong with {keys}"));
    let problems = report.problems();
    assert!(problems.iter().all(|problem| problem.line > 0 && !problem.hint.is_empty()), "{keys}: {report}");
    report.to_string()
}

fn fields(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

#[test]
fn every_key_of_a_vhost_is_read() {
    let vhost = only(EVERY_KEY);
    assert_eq!(vhost.hostname.to_string(), "*.shop.prox.local");
    assert_eq!(vhost.aliases[0].to_string(), "store.prox.local");
    assert_eq!(
        vhost.backends.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["10.20.0.101:80", "web2:8080"]
    );
    assert!(vhost.default && vhost.enabled && vhost.tls.verify);
    assert_eq!(vhost.tls.server_name.as_deref(), Some("shop.internal"));
    assert_eq!(vhost.authorities().collect::<Vec<_>>(), ["/etc/ssl/shop.pem"; 3], "paths have it too");
    let health = HealthPolicy {
        kind: Default::default(),
        uri: "/up?deep=1".into(),
        interval: 10,
        timeout: 2,
        method: "OPTIONS".into(),
        port: Some(8081),
        status: Some((200, 299)),
        body: Some("ok".into()),
        rise: 2,
        fall: 3,
    };
    assert_eq!(vhost.health, health);
    let policy = VhostPolicy {
        host: HostPolicy::Preserve,
        balance: Balance::LeastConnections,
        affinity: Some(Affinity::Cookie("SHOP".into())),
        passive: PassivePolicy { failures: 5, window: 60, pause: 20 },
        slow_start: 30,
        retries: RetryPolicy { attempts: 1, budget: 10 },
        timeouts: Timeouts { connect: 1, header: 30, idle: 120, total: 3600 },
        limits: VhostLimits {
            body: 10 << 20,
            backend_connections: 64,
            queue: 10,
            queue_timeout: 2,
            client_connections: 20,
            client_rate: Some(Rate { per_second: 50, burst: 100 }),
        },
        request_headers: HeaderEdits {
            set: fields(&[("x-env", "lab")]),
            add: vec![],
            remove: vec!["cookie".into()],
        },
        response_headers: HeaderEdits {
            set: vec![],
            add: fields(&[("vary", "Accept"), ("link", "</a>"), ("link", "</b>")]),
            remove: vec!["x-frame-options".into()],
        },
        basic_auth: Some(BasicAuth {
            realm: "Shop".into(),
            users: vec![BasicUser { name: "alice".into(), hash: BCRYPT.into() }],
        }),
        forward_auth: Some(ForwardAuth {
            to: crate::vhost::backend_target("authelia:9091").unwrap(),
            path: "/api/verify".into(),
            copy_headers: vec!["remote-user".into()],
        }),
        access: Access {
            allow: vec!["192.168.1.0/24".parse().unwrap(), "10.0.0.1/32".parse().unwrap()],
            deny: vec!["fd00::/8".parse().unwrap()],
            apps: vec!["prometheus".parse().unwrap()],
        },
        compress: true,
        send_proxy_protocol: Some(ProxyProtocol::V2),
        log: LogPolicy { enabled: false, sample: 100 },
    };
    assert_eq!(*vhost.policy, policy);
    let [api, old] = &vhost.paths[..] else { panic!("two paths: {:?}", vhost.paths) };
    assert_eq!(
        (api.prefix.as_str(), api.strip, api.backends[0].to_string()),
        ("/api", true, "api:3000".into())
    );
    assert_eq!(api.protocol.as_str(), "http");
    assert_eq!(api.health, health, "a path has what its vhost has unless it says otherwise");
    assert_eq!(old.redirect, Some(Redirect { to: "/new{uri}".into(), status: 301 }));
}

#[test]
fn a_vhost_of_three_lines_has_the_shared_default() {
    let vhost = only("[[vhost]]\napp_name = \"a\"\nbackend = \"a\"\n");
    assert!(std::sync::Arc::ptr_eq(&vhost.policy, &VhostPolicy::unchanged()));
    assert_eq!(vhost.health, HealthPolicy::default());
    let sent = only("[[vhost]]\napp_name = \"a\"\nredirect = \"https://new.example{uri}\"\n");
    assert_eq!(sent.redirect, Some(Redirect { to: "https://new.example{uri}".into(), status: 308 }));
    assert!(sent.backends.is_empty());
}

#[test]
fn the_proxys_own_keys_are_read() {
    assert_eq!(Config::default().proxy.settings, ProxySettings::default());
    let text = r#"
[proxy]
trusted_proxies = ["192.168.1.2", "10.0.0.0/8"]
proxy_protocol = ["192.168.1.3"]
via = true
max_connections = 500
client_connections = 100
client_rate = 20
head_timeout = "5s"
idle_timeout = 60
drain = "10s"
max_header = "16KiB"
max_body = "1GiB"
[proxy.log]
enabled = false
sample = 10
max_size = "1MiB"
max_age = "1d"
keep = 2
compress = false
redact_query = true
"#;
    let settings = Config::parse(text).unwrap().proxy.settings;
    let expected = ProxySettings {
        trusted_proxies: vec!["192.168.1.2/32".parse().unwrap(), "10.0.0.0/8".parse().unwrap()],
        proxy_protocol: vec!["192.168.1.3/32".parse().unwrap()],
        via: true,
        max_connections: 500,
        client_connections: 100,
        client_rate: Some(Rate { per_second: 20, burst: 100 }),
        head_timeout: 5,
        idle_timeout: 60,
        drain: 10,
        max_header: 16 << 10,
        max_body: 1 << 30,
        log: LogSettings {
            enabled: false,
            sample: 10,
            max_size: 1 << 20,
            max_age: 86_400,
            keep: 2,
            compress: false,
            redact_query: true,
        },
    };
    assert_eq!(settings, expected);
    for (wrong, says) in [
        ("trusted_proxies = [\"0.0.0.0/0\"]", "anybody"),
        ("trusted_proxies = [\"nginx\"]", "trusted_proxies cannot hold"),
        ("max_header = 10", "max_header cannot be"),
        ("max_connections = 0", "max_connections cannot be"),
        ("client_burst = 5", "client_rate"),
        ("log = true", "proxy.log is a table"),
        ("max_bdy = 1", "the nearest key is `max_body`"),
    ] {
        let report = Config::parse(&format!("[proxy]\n{wrong}\n")).expect_err(wrong).to_string();
        assert!(report.contains(says) && report.starts_with("configuration:2: "), "{wrong}: {report}");
    }
    let changed = Config::parse("[proxy]\nvia = true\n").unwrap();
    assert!(changed.waiting(&Config::default()).is_empty(), "a reload is enough");
}

#[test]
fn what_cannot_be_is_told_with_its_line() {
    for (keys, says) in [
        ("balance = \"fair\"", "vhost.balance cannot be `fair`"),
        ("affinity = \"cookie:a b\"", "keeps nobody"),
        ("affinity = \"cookie:\"", "keeps nobody"),
        ("affinity = \"session\"", "keeps nobody"),
        ("host_header = \"client\"", "backend, preserve"),
        ("slow_start = \"soon\"", "slow_start cannot be"),
        ("retries = 11", "from 0 to 10"),
        ("retry_budget = 101", "from 0 to 100"),
        ("send_proxy_protocol = \"v3\"", "v1, v2"),
        ("max_body = \"10 miles\"", "10MiB"),
        ("tls_server_name = \"a b\"", "is not a host name"),
        ("tls_ca = \"ca.pem\"", "begin the path with /"),
        ("tls_ca = \"/ca.pem\"\ntls_verify = false", "nobody looks at tls_ca"),
        ("blance = \"random_two\"", "the nearest key is `balance`"),
        ("timeout = \"5s\"", "the nearest key is `timeouts`"),
        ("cache = true", "remove it: no key here"),
        ("[vhost.passive]\ncolour = 1", "one of failures, window, pause"),
        ("redirect = \"https://new.example\"", "has backends and a redirect"),
        ("redirect_status = 301", "goes with redirect"),
        ("[vhost.health]\nstatus = \"399-200\"", "200-399"),
        ("[vhost.health]\nstatus = 600", "200-399"),
        ("[vhost.health]\nmethod = \"POST\"", "GET, HEAD, OPTIONS"),
        ("[vhost.health]\nmethod = \"HEAD\"\nbody = \"ok\"", "no body to look into"),
        ("[vhost.health]\nuri = \"up\"", "not a path"),
        ("[vhost.health]\nrise = 0", "from 1 to 100"),
        ("[vhost.passive]\nwindow = 0", "at least 1 s"),
        ("[vhost.timeouts]\nconnect = 0", "at least 1 s"),
        ("[vhost.limits]\nclient_burst = 5", "client_rate"),
        ("[vhost.limits]\nqueue = -1", "from 0 to"),
        ("[vhost.request_headers]\nset = { Host = \"x\" }", "host_header"),
        ("[vhost.request_headers]\nset = { Content-Length = \"0\" }", "cannot be edited"),
        ("[vhost.response_headers]\nremove = [\"Transfer-Encoding\"]", "cannot be edited"),
        ("[vhost.response_headers]\nadd = { Connection = \"x\" }", "cannot be edited"),
        ("[vhost.response_headers]\nadd = { \"a b\" = \"x\" }", "not the name of a header field"),
        ("[vhost.response_headers]\nset = { a = \"x\\r\\nSet-Cookie: b\" }", "cannot be sent"),
        ("[vhost.response_headers]\nset = { a = \" x\" }", "cannot be sent"),
        ("[vhost.response_headers]\nset = { a = \"x\", A = \"y\" }", "twice"),
        ("[vhost.response_headers]\nset = { a = 1 }", "is not a text"),
        ("[vhost.response_headers]\nset = \"a: b\"", "a table such as"),
        ("[vhost.auth]\nusers = { alice = \"secret\" }", "hash-password"),
        ("[vhost.auth]\nusers = { alice = \"\" }", "the hash of alice"),
        ("[vhost.auth]\nusers = [\"alice\"]", "a table such as { alice = "),
        ("[vhost.auth]\nrealm = \"a\"", "lets nobody in"),
        ("[vhost.auth]\nforward = \"authelia\"", "authelia:9091"),
        ("[vhost.auth]\nforward_path = \"/x\"", "goes with forward"),
        ("[vhost.auth]\nforward = \"a:1\"\ncopy_headers = [\"Host\"]", "cannot be edited"),
        ("[vhost.access]\nallow = [\"192.168.1.0/33\"]", "a network such as"),
        ("[vhost.access]\napps = [\"no.label\"]", "host names of apps"),
        ("[[vhost.path]]\nbackend = \"b\"", "has no prefix"),
        ("[[vhost.path]]\nprefix = \"/\"\nbackend = \"b\"", "the vhost's own backends"),
        ("[[vhost.path]]\nprefix = \"/a/../b\"\nbackend = \"b\"", "leave out empty segments"),
        ("[[vhost.path]]\nprefix = \"/a\"", "has no backend"),
        (
            "[[vhost.path]]\nprefix = \"/a\"\nbackend = \"b\"\nredirect = \"/c\"",
            "has backends and a redirect",
        ),
        (
            "[[vhost.path]]\nprefix = \"/a\"\nbackend = \"b\"\nbalance = \"random_two\"",
            "unknown key `vhost.path.balance`",
        ),
    ] {
        let report = wrong(keys);
        assert!(report.contains(says), "{keys}: {report}");
    }
    let twice =
        "[[vhost.path]]\nprefix = \"/a\"\nbackend = \"b\"\n[[vhost.path]]\nprefix = \"/a/\"\nbackend = \"c\"";
    assert!(wrong(twice).contains("configuration:8: two paths"), "{}", wrong(twice));
}

#[test]
fn one_vhost_at_most_is_the_default() {
    let vhost = |name: &str| format!("[[vhost]]\napp_name = \"{name}\"\nbackend = \"a\"\ndefault = true\n");
    assert!(Config::parse(&vhost("a")).is_ok());
    let report = Config::parse(&(vhost("a") + &vhost("b"))).unwrap_err().to_string();
    assert!(report.contains("are both default"), "{report}");
}

#[test]
fn a_named_authority_is_asked_and_its_file_looked_at() {
    let text = "[[vhost]]\napp_name = \"a\"\nbackend = \"a\"\ntls_ca = \"/ca.pem\"\n\
        [[vhost.path]]\nprefix = \"/b\"\nbackend = \"b\"\ntls_verify = false\n\
        [[vhost.path]]\nprefix = \"/c\"\nbackend = \"c\"\ntls_ca = \"/other.pem\"\n";
    let vhost = only(text);
    assert!(vhost.tls.verify && !vhost.paths[0].tls.verify && vhost.paths[1].tls.verify);
    let missing = |path: &str| match path {
        "/ca.pem" => Ok(()),
        _ => Err(format!("`{path}` cannot be read: name a file that is there")),
    };
    let report = Config::parse_with(text, missing).unwrap_err();
    let [problem] = &report.problems()[..] else { panic!("{report}") };
    assert_eq!((problem.line, &*problem.hint), (12, "name a file that is there"));
    assert_eq!(problem.message, "vhost.path.tls_ca: `/other.pem` cannot be read");
}

fn from_json(object: Value) -> Result<Vhost, Report> {
    vhost_from_json(object.as_object().unwrap(), &"prox.local".parse().unwrap(), Spelling::Json)
}

#[test]
fn json_spells_a_vhost_as_the_file_does() {
    let json = json!({
        "app_name": "shop", "hostname": "*.shop.prox.local", "aliases": ["store"],
        "backends": ["10.20.0.101:80", "web2:8080"], "balance": "least_connections",
        "affinity": "cookie:SHOP", "host_header": "preserve", "default": true, "compress": true,
        "slow_start": 30, "retries": 1, "retry_budget": 10, "send_proxy_protocol": "v2",
        "protocol": "https", "tls_verify": true, "tls_server_name": "shop.internal",
        "tls_ca": "/etc/ssl/shop.pem",
        "max_body": 10 << 20, "log": false, "log_sample": 100, "redirect": null, "backend": null,
        "health": {"uri": "/up?deep=1", "interval": "10s", "timeout": 2, "method": "OPTIONS", "port": 8081,
            "status": "200-299", "body": "ok", "rise": 2, "fall": 3},
        "passive": {"failures": 5, "window": "1m", "pause": "20s"},
        "timeouts": {"connect": 1, "header": "30s", "idle": "2m", "total": "1h"},
        "limits": {"backend_connections": 64, "queue": 10, "queue_timeout": "2s", "client_connections": 20,
            "client_rate": 50, "client_burst": 100},
        "request_headers": {"set": {"X-Env": "lab"}, "remove": ["Cookie"]},
        "response_headers": {"add": {"Vary": "Accept", "Link": ["</a>", "</b>"]}, "remove": ["X-Frame-Options"]},
        "auth": {"realm": "Shop", "users": {"alice": BCRYPT}, "forward": "authelia:9091",
            "forward_path": "/api/verify", "copy_headers": ["Remote-User"]},
        "access": {"allow": ["192.168.1.0/24", "10.0.0.1"], "deny": ["fd00::/8"], "apps": ["prometheus"]},
        "path": [
            {"prefix": "/api", "strip": true, "backend": "api", "backend_port": 3000, "protocol": "http"},
            {"prefix": "/old", "redirect": "/new{uri}", "redirect_status": 301},
        ],
    });
    let read = from_json(json).unwrap_or_else(|report| panic!("{report}"));
    let mut written = only(EVERY_KEY);
    // Objects of JSON have no order; the file's is kept.
    let mut policy = (*written.policy).clone();
    policy.response_headers.add.sort();
    written.policy = policy.shared();
    assert_eq!(read, written);
}

#[test]
fn only_json_may_leave_a_hash_to_be_kept() {
    let users = |users: Value| {
        let object = json!({"app_name": "a", "backend": "a", "auth": {"users": users}});
        let vhost = from_json(object)?;
        let users = vhost.policy.basic_auth.clone().map(|auth| auth.users).unwrap_or_default();
        Ok(users.into_iter().map(|user| (user.name, user.hash)).collect::<Vec<_>>())
    };
    let kept = |name: &str| (name.to_owned(), String::new());
    let listed: Result<_, Report> = users(json!(["alice", "bob"]));
    assert_eq!(listed.unwrap(), [kept("alice"), kept("bob")]);
    assert_eq!(
        users(json!({"alice": "", "bob": BCRYPT})).unwrap(),
        [kept("alice"), ("bob".into(), BCRYPT.into())]
    );
    assert!(users(json!({"alice": "secret"})).unwrap_err().to_string().contains("hash of alice"));
    assert!(users(json!(["a", "a"])).unwrap_err().to_string().contains("named twice"));
    assert!(users(json!(["a:b"])).unwrap_err().to_string().contains("colons"));
}

/// Whoever writes JSON is told in JSON, whoever writes the file in its language.
#[test]
fn hints_are_written_as_their_reader_writes() {
    let told = |object: Value| from_json(object).expect_err("it is wrong").to_string();
    for (object, says, hint) in [
        (json!({"backend": "a"}), "vhost has no app_name", "add \"app_name\": \"nginx\""),
        (json!({"app_name": "a"}), "vhost has no backend", "redirect"),
        (
            json!({"app_name": "a", "backend": "a", "auth": {"realm": "x"}}),
            "vhost.auth lets nobody in",
            "\"users\": {\"NAME\": \"hash\"}",
        ),
        (
            json!({"app_name": "a", "backend": "a", "auth": {"users": [{"a": 1}]}}),
            "vhost.auth.users cannot hold `{\"a\":1}`",
            "names in quotes",
        ),
        (
            json!({"app_name": "a", "backend": "a", "response_headers": {"set": [1, true]}}),
            "vhost.response_headers.set cannot be `[1,true]`",
            "an object such as {\"X-Frame-Options\": \"DENY\"}",
        ),
        (
            json!({"app_name": "a", "backend": "a", "health": 5}),
            "vhost.health is an object",
            "{\"KEY\": VALUE}",
        ),
        (json!({"app_name": "a", "backend": "a", "path": {}}), "vhost.path is a list of objects", "[{"),
        (
            json!({"app_name": "a", "backend": "a", "redirect_status": 301}),
            "goes with redirect",
            "write \"redirect\": \"https://",
        ),
    ] {
        let report = told(object.clone());
        assert!(report.contains(says) && report.contains(hint), "{object}: {report}");
        assert!(!report.contains(" = ") && !report.contains("[vhost"), "{object}: {report}");
    }
    let forward = json!({"port": 2222, "to": ["a:1", "b:1"], "balance": "random_two"});
    let report = forward_from_json(forward.as_object().unwrap(), Spelling::Json).unwrap_err().to_string();
    assert!(report.contains("add \"mode\": \"proxy\"") && !report.contains(" = "), "{report}");
    let file = wrong("[vhost.auth]\nrealm = \"x\"");
    assert!(
        file.contains("[vhost.auth] lets nobody in") && file.contains("users = { NAME = \"hash\" }"),
        "{file}"
    );
}

#[test]
fn strange_json_is_refused_without_panic() {
    for object in [
        json!({}),
        json!({"app_name": 3, "backend": "a"}),
        json!({"app_name": "a", "backend": "a", "path": {"prefix": "/a"}}),
        json!({"app_name": "a", "backend": "a", "path": [1, "x", []]}),
        json!({"app_name": "a", "backend": "a", "max_body": 18_446_744_073_709_551_615_u64}),
        json!({"app_name": "a", "backend": "a", "retries": 1.5}),
        json!({"app_name": "a", "backend": "a", "": ""}),
        json!({"app_name": "a", "backend": "a", "auth": {"users": [null, 1]}}),
        json!({"app_name": "a", "backends": vec!["a:80"; 257]}),
    ] {
        let report = from_json(object.clone()).err().unwrap_or_else(|| panic!("{object} is taken"));
        assert!(report.problems().iter().all(|problem| !problem.hint.is_empty()), "{object}: {report}");
    }
}
