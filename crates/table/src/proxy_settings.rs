use ipnet::IpNet;

use crate::Rate;

/// What holds for the whole proxy, whatever the vhost. Times are in seconds, sizes in octets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxySettings {
    /// Networks of proxies whose `Forwarded` and `X-Forwarded-*` are believed and extended.
    pub trusted_proxies: Vec<IpNet>,
    /// Networks whose connections begin with a PROXY protocol header.
    pub proxy_protocol: Vec<IpNet>,
    /// Whether `Via` is added (RFC 9110 §7.6.3).
    pub via: bool,
    /// Client connections that one data thread holds.
    pub max_connections: u32,
    /// Connections from one client address; 0 = no limit.
    pub client_connections: u32,
    /// Requests from one client address over all vhosts.
    pub client_rate: Option<Rate>,
    /// Seconds that a request's header may take.
    pub head_timeout: u32,
    /// Seconds that a client connection may wait for its next request, or leave an answer unread.
    pub idle_timeout: u32,
    /// Seconds that requests may go on when the proxy stops.
    pub drain: u32,
    /// Longest header of a request, in octets.
    pub max_header: u32,
    /// Longest body of a request, in octets; 0 = no limit. A vhost may have its own.
    pub max_body: u64,
    /// The access logs.
    pub log: LogSettings,
}

/// The access logs of all vhosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogSettings {
    /// Whether they are written.
    pub enabled: bool,
    /// One request of so many is written, errors always; a vhost may have its own.
    pub sample: u32,
    /// Octets of a file after which it is put aside.
    pub max_size: u64,
    /// Seconds after which a file is put aside; 0 = never.
    pub max_age: u32,
    /// Files of a vhost that are kept beside the present one.
    pub keep: u32,
    /// Whether files that are put aside are compressed (gzip).
    pub compress: bool,
    /// Whether the values in queries are left out: some apps take tokens there.
    pub redact_query: bool,
}

impl Default for ProxySettings {
    fn default() -> ProxySettings {
        ProxySettings {
            trusted_proxies: Vec::new(),
            proxy_protocol: Vec::new(),
            via: false,
            max_connections: 10_000,
            client_connections: 0,
            client_rate: None,
            head_timeout: 10,
            idle_timeout: 75,
            drain: 30,
            max_header: 32 << 10,
            max_body: 0,
            log: LogSettings::default(),
        }
    }
}

impl Default for LogSettings {
    fn default() -> LogSettings {
        LogSettings {
            enabled: true,
            sample: 1,
            max_size: 64 << 20,
            max_age: 7 * 86_400,
            keep: 5,
            compress: true,
            redact_query: false,
        }
    }
}
