//! Interfaces, addresses, routes and settings.

use crate::host::{Host, command, runtime};
use proximity_net::policy::Ipv4Net;
use proximity_net::sysctl;
use proximity_net::{LinkChange, LinkError, LinkWatch, Links};
use std::net::Ipv4Addr;

fn net(last: u8, prefix_len: u8) -> Ipv4Net {
    Ipv4Net::new(Ipv4Addr::new(10, 20, 0, last), prefix_len).unwrap()
}

#[test]
fn a_link_is_switched_on_and_gets_our_address_while_others_stay() {
    let Some(host) = Host::new() else { return };
    host.ip("link add eth1 address 02:00:00:00:00:07 mtu 1400 type veth peer name peer");
    host.run(|| {
        runtime().block_on(async {
            let links = Links::new().unwrap();
            assert!(!links.link("eth1").await.unwrap().up);
            links.ensure_up("eth1").await.unwrap();
            links.ensure_up("eth1").await.unwrap();
            let link = links.link("eth1").await.unwrap();
            assert!(link.up && !link.running);
            assert_eq!(links.mac("eth1").await.unwrap(), [2, 0, 0, 0, 0, 7]);
            assert_eq!(links.mtu("eth1").await.unwrap(), 1400);

            command("ip", "address add 172.16.0.9/30 dev eth1", "");
            let foreign = Ipv4Net::new(Ipv4Addr::new(172, 16, 0, 9), 30).unwrap();
            links.set_address("eth1", net(1, 24), &[]).await.unwrap();
            links.set_address("eth1", net(1, 24), &[net(1, 24)]).await.unwrap();
            assert_eq!(links.addresses("eth1").await.unwrap(), [foreign, net(1, 24)]);
            // Same subnet: removing the old one must not take the new one along.
            links.set_address("eth1", net(2, 24), &[net(1, 24)]).await.unwrap();
            assert_eq!(links.addresses("eth1").await.unwrap(), [foreign, net(2, 24)]);
            // Same address, other prefix length.
            links.set_address("eth1", net(2, 16), &[net(2, 24)]).await.unwrap();
            assert_eq!(links.addresses("eth1").await.unwrap(), [foreign, net(2, 16)]);
            links.remove_address("eth1", net(2, 16)).await.unwrap();
            links.remove_address("eth1", net(2, 16)).await.unwrap();
            assert_eq!(links.addresses("eth1").await.unwrap(), [foreign]);
        });
    });
}

#[test]
fn an_interface_that_is_not_there_is_named_with_those_that_are() {
    let Some(host) = Host::new() else { return };
    host.ip("link add eth1 type veth peer name peer");
    host.run(|| {
        runtime().block_on(async {
            let error = Links::new().unwrap().ensure_up("eth0").await.unwrap_err();
            let LinkError::Missing { name, existing } = &error else { panic!("{error}") };
            assert_eq!(name, "eth0");
            assert!(existing.contains(&"eth1".to_owned()) && existing.contains(&"lo".to_owned()));
            assert!(error.to_string().contains("there is no interface eth0"), "{error}");
        });
    });
}

#[test]
fn the_default_route_is_replaced_and_removed() {
    let Some(host) = Host::new() else { return };
    host.ip("link add eth0 type veth peer name peer");
    host.ip("link set eth0 up");
    host.ip("link set peer up");
    host.ip("address add 192.168.77.5/24 dev eth0");
    host.run(|| {
        runtime().block_on(async {
            let links = Links::new().unwrap();
            let routes = || command("ip", "route show default", "");
            for last in [1, 2, 2] {
                links.replace_default_route(Ipv4Addr::new(192, 168, 77, last), "eth0").await.unwrap();
                let routes = routes();
                assert_eq!(routes.lines().count(), 1, "{routes}");
                assert!(routes.starts_with(&format!("default via 192.168.77.{last} dev eth0")), "{routes}");
            }
            // A gateway outside the subnet, as with /32 addresses.
            links.replace_default_route(Ipv4Addr::new(10, 0, 0, 1), "eth0").await.unwrap();
            assert!(routes().contains("default via 10.0.0.1 dev eth0 proto static onlink"), "{}", routes());
            links.remove_default_route("eth0").await.unwrap();
            links.remove_default_route("eth0").await.unwrap();
            assert_eq!(routes(), "");
        });
    });
}

#[test]
fn changes_of_addresses_and_links_are_told() {
    let Some(host) = Host::new() else { return };
    host.ip("link add eth0 type veth peer name peer");
    host.run(|| {
        runtime().block_on(async {
            let links = Links::new().unwrap();
            let index = links.index("eth0").await.unwrap();
            let mut watch = LinkWatch::new().unwrap();
            let address = net(9, 24);

            command("ip", "address add 10.20.0.9/24 dev eth0", "");
            assert_eq!(watch.changed().await.unwrap(), LinkChange::AddressAdded { index, address });
            command("ip", "address del 10.20.0.9/24 dev eth0", "");
            assert_eq!(watch.changed().await.unwrap(), LinkChange::AddressRemoved { index, address });
            links.ensure_up("eth0").await.unwrap();
            loop {
                match watch.changed().await.unwrap() {
                    LinkChange::Link(link) if link.name == "eth0" && link.up => break,
                    LinkChange::Link(_) => {}
                    other => panic!("{other:?}"),
                }
            }
            command("ip", "link del eth0", "");
            loop {
                match watch.changed().await.unwrap() {
                    LinkChange::LinkRemoved(link) if link.name == "eth0" => break,
                    LinkChange::LinkRemoved(_) | LinkChange::Link(_) => {}
                    other => panic!("{other:?}"),
                }
            }
        });
    });
}

#[test]
fn forwarding_is_switched_on_and_put_back() {
    let Some(host) = Host::new() else { return };
    host.run(|| {
        let now = || std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap();
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "0").unwrap();
        let first = sysctl::set(sysctl::IP_FORWARD, "1").unwrap();
        let second = sysctl::set(sysctl::IP_FORWARD, "1").unwrap();
        assert_eq!((first.changed(), second.changed(), now().as_str()), (true, false, "1\n"));
        second.restore().unwrap();
        assert_eq!(now(), "1\n");
        first.restore().unwrap();
        assert_eq!(now(), "0\n");
    });
}
