use std::net::SocketAddr;
use std::path::PathBuf;

use proximity_table::{Ipv4Net, Name, Upstream};

use crate::said::TtlBounds;

/// What the administrator decides about names of others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsSettings {
    /// Who is asked about names of others. Empty: such names are refused.
    pub upstream: Vec<Upstream>,
    /// Who is asked about names of a domain; the longest domain counts.
    pub forward: Vec<(Name, Vec<Upstream>)>,
    /// A PEM file of further authorities for the certificates of upstreams.
    pub upstream_ca: Option<PathBuf>,
    /// How many answers of upstreams are kept.
    pub cache_size: u64,
    /// For how long.
    pub ttl: TtlBounds,
    /// For how many seconds after its time an answer is given out when upstreams fail; 0: never.
    pub serve_stale: u32,
    /// Whether popular names are asked for again before their time is over.
    pub prefetch: bool,
    /// Whether answers of upstreams that lead into private networks are kept from clients.
    pub rebind_protection: bool,
    /// Domains of which such answers are let through.
    pub rebind_exempt: Vec<Name>,
    /// Our own networks, which are private whatever their addresses are.
    pub own_networks: Vec<Ipv4Net>,
}

impl Default for DnsSettings {
    fn default() -> DnsSettings {
        let plain = |ip: [u8; 4]| Upstream::Plain(SocketAddr::from((ip, 53)));
        DnsSettings {
            upstream: vec![plain([8, 8, 8, 8]), plain([1, 1, 1, 1])],
            forward: Vec::new(),
            upstream_ca: None,
            cache_size: 8192,
            ttl: TtlBounds { min: 0, max: 86_400, negative_max: 900 },
            serve_stale: 86_400,
            prefetch: true,
            rebind_protection: true,
            rebind_exempt: Vec::new(),
            own_networks: Vec::new(),
        }
    }
}
