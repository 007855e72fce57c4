//! Tables of any size, made without configuration and store.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use imbl::OrdMap;
use proximity_table::{
    AutoVhost, BackendTarget, Facts, Intent, Ipv4Net, Label, Lease, LeaseState, Ledger, Mac, Network, Source,
    Timestamp, Vhost,
};

/// Most leases: what the network holds beside its own addresses.
pub const MOST_LEASES: usize = 65_000;
/// First address that is leased.
const FIRST: u32 = u32::from_be_bytes([10, 20, 1, 0]);
/// First address of others.
const OTHERS: u32 = u32::from_be_bytes([93, 184, 0, 1]);
const LEASE_TIME: u32 = 43_200;

/// Facts with `vhosts` vhosts that all lead to `backend`.
pub fn with_vhosts(vhosts: usize, backend: SocketAddrV4) -> Facts {
    let vhost = |at: usize| (label(at), (Source::Config, Arc::new(vhost(at, backend))));
    Facts::new(intent((0..vhosts).map(vhost).collect()), Ledger::default())
}

/// A vhost that leads to `backend`.
pub fn vhost(at: usize, backend: SocketAddrV4) -> Vhost {
    let hostname = host(at).parse().expect("a host name");
    Vhost::new(label(at), hostname, vec![BackendTarget::Address(backend)])
}

/// Facts with `names` apps that hold leases, and so have names and vhosts.
pub fn with_leases(names: usize) -> Facts {
    let expires = now().plus(u64::from(LEASE_TIME));
    let lease = |at: usize| {
        let [_, a, b, c] = (at as u32).to_be_bytes();
        Lease {
            ip: address(at),
            mac: Mac([2, 0, 0, a, b, c]),
            client_id: None,
            hostname: Some(label(at)),
            network: "apps".into(),
            state: LeaseState::Bound,
            expires,
            epoch: at as u64 + 1,
        }
    };
    Facts::new(intent(OrdMap::new()), Ledger::of((0..names.min(MOST_LEASES)).map(lease)))
}

/// Host name of an app, leased or not.
pub fn host(at: usize) -> String {
    format!("app{at}.prox.local")
}

/// Address of a leased app.
pub fn address(at: usize) -> Ipv4Addr {
    Ipv4Addr::from(FIRST + at as u32)
}

/// A name of others.
pub fn other_host(at: usize) -> String {
    format!("host{at}.example.net")
}

/// Its address.
pub fn other_address(at: usize) -> Ipv4Addr {
    Ipv4Addr::from(OTHERS + at as u32)
}

/// The wall clock.
pub fn now() -> Timestamp {
    Timestamp(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()))
}

fn label(at: usize) -> Label {
    format!("app{at}").parse().expect("a label")
}

fn intent(vhosts: OrdMap<Label, (Source, Arc<Vhost>)>) -> Intent {
    let address: Ipv4Net = "10.20.0.1/16".parse().expect("a network");
    let domain: proximity_table::Name = "prox.local".parse().expect("a domain");
    let network = Network {
        name: "apps".into(),
        interface: "eth1".into(),
        address,
        manage_link: false,
        domain: domain.clone(),
        dhcp_enabled: true,
        range: "10.20.1.0-10.20.255.250".parse().expect("a range"),
        lease_time: LEASE_TIME,
        router: address.addr,
        dns: vec![address.addr],
        domain_search: vec![domain.clone()],
        ntp: Vec::new(),
        mtu: None,
        options: Vec::new(),
        auto_vhost: AutoVhost { enabled: true, ports: vec![80] },
    };
    Intent {
        hostname: "prox-appliance".parse().expect("a label"),
        domain,
        wan_interface: "eth0".into(),
        networks: vec![Arc::new(network)],
        reservations: OrdMap::new(),
        records: OrdMap::new(),
        vhosts,
        forwards: OrdMap::new(),
        own_ports: Vec::new(),
        proxy_listen: Vec::new(),
        admin_listen: Vec::new(),
        masquerade: true,
        isolate_management: true,
        wan_dns: false,
        forwarded: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use proximity_table::{Generation, Name, Verdict, World};

    use super::*;

    #[test]
    fn every_vhost_is_ready_at_its_name() {
        let backend = "127.0.0.1:80".parse().unwrap();
        let world = World::derive(with_vhosts(100, backend), Generation(1));
        assert!((0..100).all(|at| world.route(&host(at)).unwrap().verdict() == Verdict::Ready));
    }

    #[test]
    fn every_leased_app_has_its_own_address() {
        let world = World::derive(with_leases(1000), Generation(1));
        for at in [0, 255, 256, 999] {
            assert_eq!(world.hosts[&host(at).parse::<Name>().unwrap()].ip, address(at));
        }
        assert_eq!(world.facts.ledger().bound_count(), 1000);
    }
}
