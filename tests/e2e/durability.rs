//! What was promised is there after the process died, and nothing is promised that could not be kept.

use std::net::Ipv4Addr;

use proximity_lab::{DhcpClient, LabError, WebServer};
use proximity_table::Mac;
use proximity_tests::dhcp_probe::{DhcpProbe, Go, RawClient, on_wire};
use proximity_tests::dns_probe::DnsProbe;
use proximity_tests::polling::until;
use proximity_tests::{PATIENCE, Site, fetch};
use serde_json::json;

/// The rows of the lease table: address and state, by hardware address.
fn rows(site: &Site, mac: Mac) -> Vec<(String, String)> {
    let of = |lease: serde_json::Value| {
        let text = |key: &str| lease[key].as_str().unwrap_or_default().to_owned();
        (text("mac") == mac.to_string()).then(|| (text("ip"), text("state")))
    };
    site.api().items("/dhcp/leases").into_iter().filter_map(of).collect()
}

/// A client that moved has one lease, after a crash too: the higher one of its two addresses is gone.
#[test]
fn a_client_that_moved_has_one_lease_after_a_crash() {
    let mut site = Site::start("");
    let machine = site.probe_machine("10.20.0.5/24");
    let mac = Mac([0xbc, 0x24, 0x11, 0x55, 0, 1]);
    let mut first = [RawClient::new(mac, "mover", true)];
    on_wire(&machine, async || DhcpProbe::open().lease_all(&mut first, PATIENCE, |_, _| Go::On).await);
    let old = first[0].granted.expect("a lease");
    let new = Ipv4Addr::new(10, 20, 0, 10);
    let body = json!({"mac": mac.to_string(), "ip": new.to_string(), "hostname": "mover"});
    site.api().call("POST", "/dhcp/reservations", Some(body)).expect(201);
    let mut again = [RawClient::new(mac, "mover", true)];
    on_wire(&machine, async || DhcpProbe::open().lease_all(&mut again, PATIENCE, |_, _| Go::On).await);
    assert_eq!(again[0].granted, Some(new));
    assert_ne!(old, new);
    let moved = vec![(new.to_string(), "active".to_owned())];
    assert_eq!(rows(&site, mac), moved);
    site.appliance.kill9().expect("killed");
    site.start_again();
    assert_eq!(rows(&site, mac), moved);
    assert_eq!(DnsProbe::open(&machine, [10, 20, 0, 1].into()).address("mover.prox.local"), Some(new));
}

/// On a full disk nothing is promised and everybody is told; names and pages go on; with room again, leases do.
#[test]
fn a_full_disk_stops_promises_and_nothing_else() {
    let lab = Site::surroundings();
    let node = lab.appliance();
    node.sh("mkdir -p /var/lib/proximity && mount -t tmpfs -o size=4m none /var/lib/proximity")
        .expect("a small disk");
    let site = Site::run_in(lab);
    let node = site.lab.appliance();
    let (one, address) = site.app("one", DhcpClient::Udhcpc, WebServer::Busybox);
    site.wait_wan();
    until("the page", PATIENCE, || fetch(site.lab.client(), "http://one.prox.local/"));
    node.sh("dd if=/dev/zero of=/var/lib/proximity/ballast bs=64k 2>/dev/null || true").expect("a full disk");

    // Enough objects that the file must grow.
    let add = |at: u32| {
        let body = json!({"name": format!("text-{at}"), "type": "TXT", "value": "x".repeat(4000)});
        site.api().call("POST", "/dns/records", Some(body))
    };
    let refused = (0..2000).find(|at| add(*at).status != 201).expect("the disk is full at some time");
    assert_eq!(add(refused).expect(503)["status"], 503);
    let status = site.api().get("/status");
    assert_eq!(status["health_status"], "degraded", "{status}");
    let (ready, reason) = site.appliance.get("/readyz").expect("an answer");
    assert_eq!(ready, 503, "{reason}");
    // What needs no disk goes on.
    let dns = DnsProbe::open(one.node(), [10, 20, 0, 1].into());
    assert_eq!(dns.address("one.prox.local"), Some(address));
    assert_eq!(dns.address(&format!("text-{refused}.prox.local")), None);
    fetch(site.lab.client(), "http://one.prox.local/").expect("the page is there");

    node.sh("rm /var/lib/proximity/ballast").expect("room again");
    until("a change is taken again", PATIENCE, || match add(refused) {
        answer if answer.status == 201 => Ok(()),
        answer => Err(LabError::Invalid(format!("{}", answer.status))),
    });
    let (_two, second) = site.app("two", DhcpClient::Udhcpc, WebServer::None);
    assert_eq!(dns.address("two.prox.local"), Some(second));
    assert_eq!(site.appliance.get("/readyz").expect("an answer").0, 200);
}
