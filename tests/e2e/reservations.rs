//! Addresses and names that are promised to a network card.

use std::net::Ipv4Addr;

use dhcproto::v4::MessageType;
use proximity_lab::{AppSpec, DhcpClient, WebServer};
use proximity_table::Mac;
use proximity_tests::dhcp_probe::{DhcpProbe, Go, RawClient, on_wire};
use proximity_tests::dns_probe::DnsProbe;
use proximity_tests::{PATIENCE, Site};
use serde_json::json;

const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 20, 0, 1);

fn gets_what_is_reserved(site: &Site, spec: AppSpec, address: Ipv4Addr, name: &str) {
    let machine = site.probe_machine("10.20.0.5/24");
    let dns = DnsProbe::open(&machine, GATEWAY);
    let fqdn = format!("{name}.prox.local");
    // Before there is a lease.
    assert_eq!(dns.address(&fqdn), Some(address));
    assert_eq!(dns.name_of(address), Some(format!("{fqdn}.")));
    let row = site.api().items("/dhcp/leases").into_iter().find(|lease| lease["ip"] == address.to_string());
    assert_eq!(row.expect("a row")["state"], "reserved");

    let sent = format!("{}.prox.local", spec.name);
    let (_app, given) = site.boot(spec);
    assert_eq!(given, address);
    assert_eq!(dns.address(&fqdn), Some(address));
    assert_eq!(dns.name_of(address), Some(format!("{fqdn}.")));
    assert_eq!(dns.address(&sent), None, "the reserved name counts, not the one the client sends");
    let app = site.api().get(&format!("/apps/{name}"));
    assert_eq!((&app["ip"], &app["state"]), (&json!(address.to_string()), &json!("active")));
}

fn spec(client: DhcpClient) -> AppSpec {
    let mac = proximity_lab::Mac([0xbc, 0x24, 0x11, 0x44, 0, 1]);
    AppSpec { name: "whatever".into(), mac, client, server: WebServer::None }
}

#[test]
fn a_reservation_of_the_file_gives_address_and_name() {
    let site = Site::start(
        "[[network]]\n[[network.reservation]]\n\
         hostname = \"db\"\nmac = \"bc:24:11:44:00:01\"\nip = \"10.20.0.10\"\n",
    );
    let refused = site.api().call("DELETE", "/dhcp/reservations/bc:24:11:44:00:01", None).expect(409);
    assert!(refused["hint"].as_str().is_some_and(|hint| hint.contains("file")), "{refused}");
    gets_what_is_reserved(&site, spec(DhcpClient::Dhclient), [10, 20, 0, 10].into(), "db");
}

#[test]
fn a_reservation_of_the_api_gives_address_and_name() {
    let mut site = Site::start("");
    let body = json!({"mac": "BC:24:11:44:00:01", "ip": "10.20.0.10", "hostname": "db"});
    site.api().call("POST", "/dhcp/reservations", Some(body)).expect(201);
    site.appliance.kill9().expect("killed");
    site.start_again();
    gets_what_is_reserved(&site, spec(DhcpClient::Udhcpc), [10, 20, 0, 10].into(), "db");
    assert_eq!(site.api().call("DELETE", "/dhcp/reservations/bc:24:11:44:00:01", None).status, 204);
    assert!(site.api().items("/dhcp/reservations").is_empty());
}

/// A reservation inside of the pool is nobody else's, and a client that holds another address moves.
#[test]
fn a_client_moves_to_the_address_that_is_reserved_for_it() {
    let site = Site::start("[[network]]\n[network.dhcp]\nrange = \"10.20.0.100-10.20.0.102\"\n");
    let machine = site.probe_machine("10.20.0.5/24");
    let client =
        |number: u8, name: &str| RawClient::new(Mac([0xbc, 0x24, 0x11, 0x44, 0, number]), name, false);
    let mut first = [client(1, "mover")];
    let api = site.api();
    on_wire(&machine, async || {
        let probe = DhcpProbe::open();
        probe.lease_all(&mut first, PATIENCE, |_, _| Go::On).await;
        let old = first[0].granted.expect("a lease");
        let pool = (100..=102).map(|last| Ipv4Addr::new(10, 20, 0, last));
        let new = pool.clone().find(|ip| *ip != old).expect("another one");
        let body = json!({"mac": first[0].mac.to_string(), "ip": new.to_string(), "hostname": "mover"});
        api.call("POST", "/dhcp/reservations", Some(body)).expect(201);

        // Others get what is left, and no more.
        let mut other = [client(2, "other")];
        probe.lease_all(&mut other, PATIENCE, |_, _| Go::On).await;
        let others = other[0].granted.expect("a lease");
        assert!(others != old && others != new, "{others} is taken");

        let refused = probe.ask(&first[0], &first[0].renewal()).await;
        assert_eq!(refused.message.opts().msg_type(), Some(MessageType::Nak));
        let mut again = [client(1, "mover")];
        probe.lease_all(&mut again, PATIENCE, |_, _| Go::On).await;
        assert_eq!(again[0].granted, Some(new));
        let dns = DnsProbe::open(&machine, GATEWAY);
        assert_eq!(dns.address("mover.prox.local"), Some(new));
        let held = |ip: Ipv4Addr| {
            let leases = api.items("/dhcp/leases");
            leases.iter().any(|lease| lease["ip"] == ip.to_string() && lease["state"] == "active")
        };
        assert!(held(new) && !held(old), "{:?}", api.items("/dhcp/leases"));
    });
}
