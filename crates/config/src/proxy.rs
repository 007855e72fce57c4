//! `[proxy]`: what holds for every vhost.

use std::net::SocketAddr;

use proximity_table::{LogSettings, ProxySettings};

use crate::section::Section;

/// `[proxy]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proxy {
    /// Whether HTTP is served.
    pub enabled: bool,
    /// Addresses to listen on.
    pub listen: Vec<SocketAddr>,
    /// Limits, times and logs.
    pub settings: ProxySettings,
}

pub fn read(root: &mut Section<'_>) -> Proxy {
    let mut table = root.table("proxy");
    let proxy = Proxy {
        enabled: table.boolean("enabled", true),
        listen: table.addresses("listen", 80, &["0.0.0.0:80"]),
        settings: settings(&mut table),
    };
    if table.has("listen_tls") {
        table.refuse("listen_tls", "TLS is not served by this version yet", "remove listen_tls");
    }
    table.finish();
    proxy
}

fn settings(table: &mut Section<'_>) -> ProxySettings {
    let defaults = ProxySettings::default();
    let trusted_proxies = table.networks("trusted_proxies");
    if trusted_proxies.iter().any(|network| network.prefix_len() == 0) {
        let hint = "name the addresses of your proxies alone";
        table.refuse("trusted_proxies", "everybody could claim to be anybody", hint);
    }
    ProxySettings {
        trusted_proxies,
        proxy_protocol: table.networks("proxy_protocol"),
        via: table.boolean("via", defaults.via),
        max_connections: table.number("max_connections", defaults.max_connections, 1..=1_000_000),
        client_connections: table.number("client_connections", 0, 0..=1_000_000),
        client_rate: table.rate(),
        head_timeout: table.duration("head_timeout", defaults.head_timeout, 1),
        idle_timeout: table.duration("idle_timeout", defaults.idle_timeout, 1),
        drain: table.duration("drain", defaults.drain, 0),
        max_header: table.size("max_header", u64::from(defaults.max_header), 1024..=1 << 20) as u32,
        max_body: table.size("max_body", defaults.max_body, 0..=u64::MAX),
        log: log(table),
    }
}

fn log(table: &mut Section<'_>) -> LogSettings {
    let defaults = LogSettings::default();
    let mut log = table.table("log");
    let settings = LogSettings {
        enabled: log.boolean("enabled", defaults.enabled),
        sample: log.number("sample", defaults.sample, 1..=1_000_000),
        max_size: log.size("max_size", defaults.max_size, 64 << 10..=1 << 40),
        max_age: log.duration("max_age", defaults.max_age, 0),
        keep: log.number("keep", defaults.keep, 0..=1000),
        compress: log.boolean("compress", defaults.compress),
        redact_query: log.boolean("redact_query", defaults.redact_query),
    };
    log.finish();
    settings
}
