//! How the requests of a vhost are treated: what `[[vhost]]` says beside names and backends.

use proximity_table::{
    Access, Affinity, Balance, BasicAuth, BasicUser, ForwardAuth, HostPolicy, Label, LogPolicy,
    PassivePolicy, ProxyProtocol, RetryPolicy, Timeouts, VhostLimits, VhostPolicy, is_token,
    password_hash_trouble,
};

use crate::header_edits;
use crate::section::Section;
use crate::vhost::{Hashes, backend_target, is_path};

/// Cookie that keeps a visitor at a backend when none is named.
const COOKIE: &str = "proximity_backend";

/// The policy in a `[[vhost]]`.
pub fn read(table: &mut Section<'_>, app: Option<&Label>, hashes: Hashes) -> VhostPolicy {
    let defaults = VhostPolicy::default();
    let (basic_auth, forward_auth) = auth(table, app, hashes);
    VhostPolicy {
        host: match table.word("host_header", &["backend", "preserve"]) {
            "preserve" => HostPolicy::Preserve,
            _ => HostPolicy::Backend,
        },
        balance: match table.word("balance", &["round_robin", "least_connections", "random_two"]) {
            "least_connections" => Balance::LeastConnections,
            "random_two" => Balance::RandomTwo,
            _ => Balance::RoundRobin,
        },
        affinity: affinity(table),
        passive: passive(table),
        slow_start: table.duration("slow_start", defaults.slow_start, 0),
        retries: RetryPolicy {
            attempts: table.number("retries", defaults.retries.attempts, 0..=10),
            budget: table.number("retry_budget", defaults.retries.budget, 0..=100),
        },
        timeouts: timeouts(table),
        limits: limits(table),
        request_headers: header_edits::read(table, "request_headers"),
        response_headers: header_edits::read(table, "response_headers"),
        basic_auth,
        forward_auth,
        access: access(table),
        compress: table.boolean("compress", false),
        send_proxy_protocol: table.choice("send_proxy_protocol", &["v1", "v2"]).map(
            |version| match version {
                "v1" => ProxyProtocol::V1,
                _ => ProxyProtocol::V2,
            },
        ),
        log: LogPolicy {
            enabled: table.boolean("log", true),
            sample: table.number("log_sample", defaults.log.sample, 1..=1_000_000),
        },
    }
}

fn affinity(table: &mut Section<'_>) -> Option<Affinity> {
    let text = table.text("affinity")?;
    // RFC 6265 §4.1.1 and RFC 9110 §5.6.2: both names are tokens.
    let token = |name: &str| (name.len() <= 64 && is_token(name.as_bytes())).then(|| name.to_owned());
    let affinity = match text.split_once(':') {
        None if text == "ip" => Some(Affinity::ClientIp),
        None if text == "cookie" => Some(Affinity::Cookie(COOKIE.to_owned())),
        Some(("cookie", name)) => token(name).map(Affinity::Cookie),
        Some(("header", name)) => token(&name.to_ascii_lowercase()).map(Affinity::Header),
        _ => None,
    };
    if affinity.is_none() {
        let hint = "write \"ip\", \"cookie\", \"cookie:NAME\" or \"header:NAME\"";
        table.refuse("affinity", &format!("`{text}` keeps nobody at a backend"), hint);
    }
    affinity
}

fn passive(table: &mut Section<'_>) -> PassivePolicy {
    let defaults = PassivePolicy::default();
    let mut passive = table.table("passive");
    let policy = PassivePolicy {
        failures: passive.number("failures", defaults.failures, 0..=1000),
        window: passive.duration("window", defaults.window, 1),
        pause: passive.duration("pause", defaults.pause, 1),
    };
    passive.finish();
    policy
}

fn timeouts(table: &mut Section<'_>) -> Timeouts {
    let defaults = Timeouts::default();
    let mut timeouts = table.table("timeouts");
    let policy = Timeouts {
        connect: timeouts.duration("connect", defaults.connect, 1),
        header: timeouts.duration("header", defaults.header, 1),
        idle: timeouts.duration("idle", defaults.idle, 1),
        total: timeouts.duration("total", defaults.total, 0),
    };
    timeouts.finish();
    policy
}

fn limits(table: &mut Section<'_>) -> VhostLimits {
    let defaults = VhostLimits::default();
    let body = table.size("max_body", defaults.body, 0..=u64::MAX);
    let mut limits = table.table("limits");
    let policy = VhostLimits {
        body,
        backend_connections: limits.number("backend_connections", 0, 0..=1_000_000),
        queue: limits.number("queue", defaults.queue, 0..=100_000),
        queue_timeout: limits.duration("queue_timeout", defaults.queue_timeout, 1),
        client_connections: limits.number("client_connections", 0, 0..=1_000_000),
        client_rate: limits.rate(),
    };
    limits.finish();
    policy
}

fn auth(
    table: &mut Section<'_>,
    app: Option<&Label>,
    hashes: Hashes,
) -> (Option<BasicAuth>, Option<ForwardAuth>) {
    let mut auth = table.table("auth");
    let users = users(&mut auth, hashes);
    let realm = auth.text("realm");
    let forward = auth.text("forward");
    let path = auth.text("forward_path");
    let copied = auth.list("copy_headers", "the names of fields in quotes", |text| Some(text.to_owned()));
    let has_copied = copied.is_some();
    let copied = copied.unwrap_or_default();
    auth.bound("copy_headers", copied.len());
    let copy_headers = header_edits::names(&auth, "copy_headers", copied);

    if auth.is_written() && !auth.has("users") && forward.is_none() {
        let heading = auth.heading();
        let (users, forward) = (one_user(&auth), auth.pair("forward", "\"app:port\""));
        let hint = format!("write {users}, or {forward}; leave {heading} out for none");
        auth.refuse_all(&format!("{heading} lets nobody in and asks nobody"), &hint);
    } else if realm.is_some() && !auth.has("users") {
        auth.refuse("realm", "realm goes with users", &format!("write {} beside it", one_user(&auth)));
    }
    if forward.is_none() && (path.is_some() || has_copied) {
        let key = if path.is_some() { "forward_path" } else { "copy_headers" };
        let hint = format!("write {} beside it", auth.pair("forward", "\"app:port\""));
        auth.refuse(key, &format!("{key} goes with forward"), &hint);
    }
    let realm = realm.unwrap_or_else(|| app.map_or_else(|| "Proximity".to_owned(), Label::to_string));
    // RFC 9110 §5.6.4: what a quoted string holds without escapes.
    let quotable = |byte: u8| (b' '..=b'~').contains(&byte) && byte != b'"' && byte != b'\\';
    if realm.len() > 128 || !realm.bytes().all(quotable) {
        let hint = "write up to 128 ASCII characters without quotes and backslashes";
        auth.refuse("realm", "the realm cannot be sent in a header", hint);
    }
    let path = path.unwrap_or_else(|| "/".to_owned());
    if !is_path(&path) {
        auth.refuse(
            "forward_path",
            &format!("`{path}` is not a path"),
            "begin it with / and leave out white space",
        );
    }
    let forward = forward.and_then(|text| {
        let to = backend_target(&text);
        if to.is_none() {
            let hint = "write an app or an address with a port, such as authelia:9091";
            auth.refuse("forward", &format!("`{text}` cannot be asked"), hint);
        }
        to.map(|to| ForwardAuth { to, path, copy_headers })
    });
    auth.finish();
    ((!users.is_empty()).then_some(BasicAuth { realm, users }), forward)
}

fn one_user(auth: &Section<'_>) -> String {
    auth.pair("users", &auth.inline("NAME", "\"hash\""))
}

fn users(auth: &mut Section<'_>, hashes: Hashes) -> Vec<BasicUser> {
    let expected = auth.table_such_as("alice", "\"$2b$…\"");
    let mut users: Vec<BasicUser> = Vec::new();
    if hashes == Hashes::MayBeKept && auth.is_list("users") {
        let names = auth.list("users", "names in quotes", |name| Some(name.to_owned())).unwrap_or_default();
        users.extend(names.into_iter().map(|name| BasicUser { name, hash: String::new() }));
    } else {
        for entry in auth.entries("users", &expected) {
            let kept = hashes == Hashes::MayBeKept && entry.value.is_empty();
            if let Some(hint) = password_hash_trouble(&entry.value).filter(|_| !kept) {
                let message = format!("the hash of {} cannot be checked", entry.name);
                auth.refuse_at(entry.span, message, hint);
            }
            users.push(BasicUser { name: entry.name, hash: entry.value });
        }
    }
    auth.bound("users", users.len());
    if auth.has("users") && users.is_empty() {
        auth.refuse("users", "auth.users has no user", "add one, or leave users out");
    }
    for (at, user) in users.iter().enumerate() {
        // RFC 7617 §2: a colon ends the name.
        let good =
            (1..=128).contains(&user.name.len()) && !user.name.contains(|c: char| c == ':' || c.is_control());
        if !good {
            auth.refuse(
                "users",
                &format!("`{}` is not a user's name", user.name),
                "leave out colons and control characters",
            );
        }
        if users[..at].iter().any(|other| other.name == user.name) {
            auth.refuse("users", &format!("{} is named twice", user.name), "write each user once");
        }
    }
    users
}

fn access(table: &mut Section<'_>) -> Access {
    let mut access = table.table("access");
    let apps = access.list("apps", "host names of apps in quotes", |text| text.parse().ok());
    let apps: Vec<Label> = apps.unwrap_or_default();
    access.bound("apps", apps.len());
    let policy = Access { allow: access.networks("allow"), deny: access.networks("deny"), apps };
    access.finish();
    policy
}
