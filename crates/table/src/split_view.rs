//! Where a name leads whoever looks it up: to the app itself, or to the proxy in front of it.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::derive::gateway;
use crate::{
    Action, Apex, BackendProtocol, Facts, Host, HostKind, Name, RRset, Route, Service, Source, Timestamp,
    Verdict,
};

/// Longest time to live of a name that may move, in seconds: an app that restarts elsewhere is found again
/// within a minute.
pub const MOVING_TTL: u32 = 60;
/// Time to live of what only the configuration changes, in seconds.
pub const FIXED_TTL: u32 = 300;

/// Where the names of a vhost lead apps. On the WAN every name leads to the appliance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NameLeads {
    /// The name of a container to the container, if it can be asked there as at the proxy: at port 80, or 443 for
    /// TLS. Every other to the proxy; names outside our domains are left to others.
    #[default]
    Auto,
    /// To the container, or else to the backends, whatever their ports.
    Direct,
    /// To the proxy.
    Proxy,
}

impl NameLeads {
    /// Whether nothing was written.
    pub fn is_auto(&self) -> bool {
        *self == NameLeads::Auto
    }

    /// The word used in the file and the API.
    pub fn as_str(self) -> &'static str {
        match self {
            NameLeads::Auto => "auto",
            NameLeads::Direct => "direct",
            NameLeads::Proxy => "proxy",
        }
    }
}

/// The address of a name, when nobody wrote one.
pub fn address(
    facts: &Facts,
    apex: Option<&Apex>,
    name: &Name,
    host: Option<&Host>,
    route: Option<&Route>,
) -> Option<RRset> {
    let vhost = facts.claimant(name).map(|(_, vhost)| vhost);
    let leads = vhost.map_or(NameLeads::Auto, |vhost| vhost.dns);
    if apex.is_none() && leads.is_auto() {
        return None;
    }
    let own = || host.filter(|host| host.resolves()).map(own_address);
    let proxy = || RRset::address(gateway(facts, name), MOVING_TTL, Timestamp::NEVER);
    // A vhost that was asked for always has an address: the proxy knows what to say of its app. One made from a
    // lease goes with the lease. The domain itself leads to the proxy too.
    let is_domain = apex.is_some_and(|apex| apex.name == *name && !apex.reverse);
    let at_least = || (vhost.is_some() || is_domain).then(proxy);
    match leads {
        NameLeads::Proxy => Some(proxy()),
        NameLeads::Direct => own().or_else(|| backends(facts, route?)).or_else(at_least),
        NameLeads::Auto if needs_proxy(facts, host, route) => Some(proxy()),
        NameLeads::Auto => own().or_else(at_least),
    }
}

fn own_address(host: &Host) -> RRset {
    let (ttl, expires) = match (&host.lease, host.kind) {
        (_, HostKind::Appliance) => (FIXED_TTL, Timestamp::NEVER),
        // The address stays the client's after the lease, so only the state may move.
        (_, HostKind::Reserved) => (MOVING_TTL, Timestamp::NEVER),
        (lease, HostKind::Leased) => (MOVING_TTL, lease.as_ref().map_or(Timestamp::NEVER, |l| l.expires)),
    };
    RRset::address(host.ip, ttl, expires)
}

/// Whether the container of a name does not answer there what the name stands for.
fn needs_proxy(facts: &Facts, host: Option<&Host>, route: Option<&Route>) -> bool {
    let (Some(host), Some(route)) = (host.filter(|host| host.resolves()), route) else { return false };
    if host.kind == HostKind::Appliance || facts.intent().proxy_listen.is_empty() {
        return false;
    }
    match &route.root {
        Action::Redirect(_) => true,
        Action::Proxy(service) => match (service.verdict, route.source) {
            (Verdict::Disabled | Verdict::Stopped, _) => false,
            (_, Source::Lease) => {
                // The first that passed its probe is the app's port; before, nobody knows better than the name.
                let proven = service.candidates.iter().find(|backend| backend.was_proven());
                proven.is_some_and(|backend| !is_web(service, backend.key.addr.port()))
            }
            _ => !service
                .candidates
                .iter()
                .any(|b| *b.key.addr.ip() == host.ip && is_web(service, b.key.addr.port())),
        },
    }
}

/// Whether clients ask at this port when they are told none.
fn is_web(service: &Service, port: u16) -> bool {
    match service.protocol {
        BackendProtocol::Https => port == 443,
        BackendProtocol::Http | BackendProtocol::H2c => port == 80,
    }
}

/// Every address behind a route, for as long as each is held.
fn backends(facts: &Facts, route: &Route) -> Option<RRset> {
    let Action::Proxy(service) = &route.root else { return None };
    let addresses: BTreeSet<Ipv4Addr> = service.candidates.iter().map(|b| *b.key.addr.ip()).collect();
    let lease_end = |ip: &Ipv4Addr| facts.ledger().bound_at(*ip).map(|lease| lease.expires);
    let reserved = |ip: &Ipv4Addr| facts.intent().reservation_at(*ip).is_some();
    let expires = addresses.iter().filter(|ip| !reserved(ip)).filter_map(lease_end).min();
    let first = RRset::address(*addresses.first()?, MOVING_TTL, expires.unwrap_or(Timestamp::NEVER));
    Some(RRset { rdata: addresses.iter().map(|ip| ip.octets().into()).collect(), ..first })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world_tests::{Table, intent, ip, lease, vhost};
    use crate::*;

    const PROXY: Option<Ipv4Addr> = Some(Ipv4Addr::new(10, 20, 0, 1));

    /// `app` has a lease; the proxy listens.
    fn table() -> Table {
        let mut intent = intent();
        intent.proxy_listen = vec!["0.0.0.0:80".parse().unwrap()];
        let mut table = Table::new();
        table.apply(Change::Intent(intent.into()));
        table.apply(Change::Lease(lease(101, 1, "app", 1)));
        table
    }

    fn to_app(name: &str, port: u16, dns: NameLeads) -> Vhost {
        let target = BackendTarget::App { name: "app".parse().unwrap(), port };
        Vhost { dns, ..vhost(name, target) }
    }

    fn put(table: &mut Table, vhost: Vhost) {
        table.apply(Change::Vhost(Source::Api, vhost.into()));
    }

    /// FEATURES: an app gets the app's address, or the proxy's if the app's port is not 80 or 443 or policy says so.
    #[test]
    fn a_container_that_serves_elsewhere_is_met_at_the_proxy() {
        let mut table = table();
        assert_eq!(table.address("app.prox.local"), Some(ip(101)), "no vhost was asked for");
        for (port, protocol, dns, expected) in [
            (80, BackendProtocol::Http, NameLeads::Auto, Some(ip(101))),
            (443, BackendProtocol::Https, NameLeads::Auto, Some(ip(101))),
            (443, BackendProtocol::Http, NameLeads::Auto, PROXY),
            (80, BackendProtocol::Https, NameLeads::Auto, PROXY),
            (3000, BackendProtocol::Http, NameLeads::Auto, PROXY),
            (3000, BackendProtocol::Http, NameLeads::Direct, Some(ip(101))),
            (80, BackendProtocol::Http, NameLeads::Proxy, PROXY),
        ] {
            put(&mut table, Vhost { protocol, ..to_app("app", port, dns) });
            assert_eq!(table.address("app.prox.local"), expected, "{port} {protocol:?} {dns:?}");
        }
        table.apply(Change::RemoveVhost("app".parse().unwrap()));
        assert_eq!(table.address("app.prox.local"), Some(ip(101)));
    }

    #[test]
    fn a_vhost_of_a_lease_follows_the_port_that_was_proven() {
        let mut table = table();
        let proven = |table: &mut Table, port: u16| {
            table.health("app", &format!("10.20.0.101:{port}"), 1, HealthState::Healthy);
        };
        proven(&mut table, 8080);
        assert_eq!(table.address("app.prox.local"), PROXY);
        proven(&mut table, 80);
        assert_eq!(table.address("app.prox.local"), Some(ip(101)));
    }

    #[test]
    fn without_a_proxy_nothing_leads_there() {
        let mut table = table();
        table.apply(Change::Intent(intent().into()));
        put(&mut table, to_app("app", 3000, NameLeads::Auto));
        assert_eq!(table.address("app.prox.local"), Some(ip(101)));
    }

    /// Names that are no container's lead to the proxy, unless they are to lead past it: then as long as the lease.
    #[test]
    fn further_names_lead_to_the_backends_when_they_are_told_to() {
        let mut table = table();
        put(&mut table, to_app("shop", 80, NameLeads::Auto));
        assert_eq!(table.address("shop.prox.local"), PROXY);
        let mut shop = to_app("shop", 3000, NameLeads::Direct);
        shop.backends.push(BackendTarget::Address("10.20.0.9:80".parse().unwrap()));
        put(&mut table, shop);
        let name: Name = "shop.prox.local".parse().unwrap();
        let node = table.world.zones.node(name.as_wire()).unwrap().to_node();
        let addresses: Vec<&[u8]> = node.rrsets[0].rdata.iter().map(|rdata| &**rdata).collect();
        assert_eq!(addresses, [&[10, 20, 0, 9][..], &[10, 20, 0, 101]]);
        assert_eq!((node.rrsets[0].ttl, node.rrsets[0].expires), (60, Timestamp(1_000)));
        table.apply(Change::ForgetLease(ip(101)));
        assert_eq!(table.address("shop.prox.local"), Some(ip(9)));
    }

    #[test]
    fn names_outside_our_domains_are_led_only_where_somebody_says_so() {
        let mut table = table();
        for (dns, expected) in
            [(NameLeads::Auto, None), (NameLeads::Proxy, PROXY), (NameLeads::Direct, Some(ip(101)))]
        {
            let hostname = "blog.example.com".parse().unwrap();
            put(&mut table, Vhost { hostname, ..to_app("blog", 80, dns) });
            assert_eq!(table.address("blog.example.com"), expected, "{dns:?}");
        }
    }

    #[test]
    fn a_redirect_is_met_at_the_proxy_and_a_disabled_vhost_is_not() {
        let mut table = table();
        let mut redirect = to_app("app", 80, NameLeads::Auto);
        redirect.backends.clear();
        redirect.redirect = Some(Redirect { to: "https://new.example{uri}".to_owned(), status: 308 });
        put(&mut table, redirect);
        assert_eq!(table.address("app.prox.local"), PROXY);
        put(&mut table, Vhost { enabled: false, ..to_app("app", 3000, NameLeads::Auto) });
        assert_eq!(table.address("app.prox.local"), Some(ip(101)));
    }
}
