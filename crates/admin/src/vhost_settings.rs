//! What of a vhost differs from the default, spelled as it is written.

use proximity_table::{
    Affinity, BackendTls, BasicAuth, ForwardAuth, HeaderEdits, HealthPolicy, NameLeads, Rate, Redirect,
    Vhost, VhostLimits, VhostPolicy,
};
use serde_json::{Map, Value, json};

/// Keys and values, in the order of the keys.
pub type Settings = Map<String, Value>;

/// What a vhost says beside what is always shown of it. Hashes of passwords are left out: users are a list of
/// names.
pub fn of_vhost(vhost: &Vhost) -> Settings {
    let mut settings = of_policy(&vhost.policy);
    note(&mut settings, "default", &vhost.default, &false, |value| json!(value));
    note(&mut settings, "dns", &vhost.dns, &NameLeads::Auto, |value| json!(value.as_str()));
    settings.extend(of_tls(&vhost.tls, &BackendTls::default()));
    settings.extend(of_redirect(vhost.redirect.as_ref()));
    settings
}

/// `redirect` and `redirect_status`.
pub fn of_redirect(redirect: Option<&Redirect>) -> Settings {
    let mut settings = Settings::new();
    if let Some(redirect) = redirect {
        settings.insert("redirect".to_owned(), json!(redirect.to));
        note(&mut settings, "redirect_status", &redirect.status, &Redirect::STATUS, |value| json!(value));
    }
    settings
}

/// `tls_verify`, `tls_server_name` and `tls_ca`, where they are not as in `base`.
pub fn of_tls(tls: &BackendTls, base: &BackendTls) -> Settings {
    let mut settings = Settings::new();
    note(&mut settings, "tls_verify", &tls.verify, &base.verify, |value| json!(value));
    note(&mut settings, "tls_server_name", &tls.server_name, &base.server_name, |value| json!(value));
    note(&mut settings, "tls_ca", &tls.ca, &base.ca, |value| json!(value));
    settings
}

/// What of a health check is not as in `base` and not always shown.
pub fn of_health(health: &HealthPolicy, base: &HealthPolicy) -> Settings {
    let mut settings = Settings::new();
    note(&mut settings, "method", &health.method, &base.method, |value| json!(value));
    note(&mut settings, "port", &health.port, &base.port, |value| json!(value));
    let range = |status: &Option<(u16, u16)>| json!(status.map(|(first, last)| format!("{first}-{last}")));
    note(&mut settings, "status", &health.status, &base.status, range);
    note(&mut settings, "body", &health.body, &base.body, |value| json!(value));
    note(&mut settings, "rise", &health.rise, &base.rise, |value| json!(value));
    note(&mut settings, "fall", &health.fall, &base.fall, |value| json!(value));
    settings
}

fn of_policy(policy: &VhostPolicy) -> Settings {
    let base = VhostPolicy::default();
    let mut all = Settings::new();
    note(&mut all, "host_header", &policy.host, &base.host, |value| json!(value.as_str()));
    note(&mut all, "balance", &policy.balance, &base.balance, |value| json!(value.as_str()));
    if let Some(affinity) = &policy.affinity {
        let text = match affinity {
            Affinity::ClientIp => "ip".to_owned(),
            Affinity::Cookie(name) => format!("cookie:{name}"),
            Affinity::Header(name) => format!("header:{name}"),
        };
        all.insert("affinity".to_owned(), json!(text));
    }
    note(&mut all, "slow_start", &policy.slow_start, &base.slow_start, seconds);
    note(&mut all, "retries", &policy.retries.attempts, &base.retries.attempts, |value| json!(value));
    note(&mut all, "retry_budget", &policy.retries.budget, &base.retries.budget, |value| json!(value));
    note(&mut all, "compress", &policy.compress, &base.compress, |value| json!(value));
    let version = policy.send_proxy_protocol.map(|version| version.as_str());
    note(&mut all, "send_proxy_protocol", &version, &None, |value| json!(value));
    note(&mut all, "log", &policy.log.enabled, &base.log.enabled, |value| json!(value));
    note(&mut all, "log_sample", &policy.log.sample, &base.log.sample, |value| json!(value));
    note(&mut all, "max_body", &policy.limits.body, &base.limits.body, |value| json!(value));

    let (mut part, mine, base_part) = (Settings::new(), &policy.passive, &base.passive);
    note(&mut part, "failures", &mine.failures, &base_part.failures, |value| json!(value));
    note(&mut part, "window", &mine.window, &base_part.window, seconds);
    note(&mut part, "pause", &mine.pause, &base_part.pause, seconds);
    add_part(&mut all, "passive", part);

    let (mut part, mine, base_part) = (Settings::new(), &policy.timeouts, &base.timeouts);
    note(&mut part, "connect", &mine.connect, &base_part.connect, seconds);
    note(&mut part, "header", &mine.header, &base_part.header, seconds);
    note(&mut part, "idle", &mine.idle, &base_part.idle, seconds);
    note(&mut part, "total", &mine.total, &base_part.total, seconds);
    add_part(&mut all, "timeouts", part);

    add_part(&mut all, "limits", of_limits(&policy.limits, &base.limits));
    add_part(&mut all, "request_headers", of_edits(&policy.request_headers));
    add_part(&mut all, "response_headers", of_edits(&policy.response_headers));
    add_part(&mut all, "auth", of_auth(policy.basic_auth.as_ref(), policy.forward_auth.as_ref()));

    let mut part = Settings::new();
    let networks = |networks: &Vec<_>| json!(networks);
    note(&mut part, "allow", &policy.access.allow, &Vec::new(), networks);
    note(&mut part, "deny", &policy.access.deny, &Vec::new(), networks);
    note(&mut part, "apps", &policy.access.apps, &Vec::new(), |apps| json!(apps));
    add_part(&mut all, "access", part);
    all
}

fn of_limits(mine: &VhostLimits, base: &VhostLimits) -> Settings {
    let mut part = Settings::new();
    let number = |value: &u32| json!(value);
    note(&mut part, "backend_connections", &mine.backend_connections, &base.backend_connections, number);
    note(&mut part, "queue", &mine.queue, &base.queue, number);
    note(&mut part, "queue_timeout", &mine.queue_timeout, &base.queue_timeout, seconds);
    note(&mut part, "client_connections", &mine.client_connections, &base.client_connections, number);
    if let Some(Rate { per_second, burst }) = mine.client_rate {
        part.insert("client_rate".to_owned(), json!(per_second));
        part.insert("client_burst".to_owned(), json!(burst));
    }
    part
}

fn of_edits(edits: &HeaderEdits) -> Settings {
    let mut part = Settings::new();
    let fields = |fields: &Vec<(String, String)>| {
        let mut of_name: Map<String, Value> = Map::new();
        for (name, value) in fields {
            match of_name.get_mut(name) {
                Some(Value::Array(values)) => values.push(json!(value)),
                Some(first) => *first = json!([first.take(), value]),
                None => drop(of_name.insert(name.clone(), json!(value))),
            }
        }
        Value::Object(of_name)
    };
    note(&mut part, "set", &edits.set, &Vec::new(), fields);
    note(&mut part, "add", &edits.add, &Vec::new(), fields);
    note(&mut part, "remove", &edits.remove, &Vec::new(), |names| json!(names));
    part
}

fn of_auth(basic: Option<&BasicAuth>, forward: Option<&ForwardAuth>) -> Settings {
    let mut part = Settings::new();
    if let Some(basic) = basic {
        let names: Vec<&str> = basic.users.iter().map(|user| user.name.as_str()).collect();
        part.insert("realm".to_owned(), json!(basic.realm));
        part.insert("users".to_owned(), json!(names));
    }
    if let Some(forward) = forward {
        part.insert("forward".to_owned(), json!(forward.to.to_string()));
        part.insert("forward_path".to_owned(), json!(forward.path));
        note(&mut part, "copy_headers", &forward.copy_headers, &Vec::new(), |names| json!(names));
    }
    part
}

fn note<T: PartialEq>(
    settings: &mut Settings,
    key: &str,
    value: &T,
    base: &T,
    show: impl FnOnce(&T) -> Value,
) {
    if value != base {
        settings.insert(key.to_owned(), show(value));
    }
}

fn add_part(settings: &mut Settings, key: &str, part: Settings) {
    if !part.is_empty() {
        settings.insert(key.to_owned(), Value::Object(part));
    }
}

fn seconds(value: &u32) -> Value {
    if *value == u32::MAX { json!("infinite") } else { json!(format!("{value}s")) }
}
