//! `kill -9` in the middle of many leases.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::{SystemTime, UNIX_EPOCH};

use dhcproto::v4::MessageType;
use nix::sys::signal::Signal;
use proximity_table::Mac;
use proximity_tests::dhcp_probe::{DhcpProbe, Go, RawClient, on_wire};
use proximity_tests::{PATIENCE, Site};

const CLIENTS: usize = 200;
const ROUNDS: usize = 4;
const WIDE: &str = "\
[[network]]
address = \"10.20.0.1/22\"
[network.dhcp]
range = \"10.20.0.100-10.20.3.250\"
";

/// Leases that the API shows as held, by hardware address.
fn leases(site: &Site) -> BTreeMap<String, Ipv4Addr> {
    let active = site.api().items("/dhcp/leases").into_iter().filter(|lease| lease["state"] == "active");
    active
        .map(|lease| {
            let text = |key: &str| lease[key].as_str().expect("a text").to_owned();
            (text("mac"), text("ip").parse().expect("an address"))
        })
        .collect()
}

fn check_held(site: &Site, clients: &[RawClient]) {
    let leases = leases(site);
    for client in clients {
        if let Some(granted) = client.granted {
            let held = leases.get(&client.mac.to_string());
            assert_eq!(held, Some(&granted), "{} was acknowledged and is lost", client.mac);
        }
    }
    let mut addresses: Vec<_> = leases.values().collect();
    addresses.sort();
    addresses.dedup();
    assert_eq!(addresses.len(), leases.len(), "two clients hold one address");
}

/// Kills at the n-th message to any of 200 clients: while some have their ACK, some an offer, and some
/// nothing. Whoever has an ACK keeps it; whoever has none gets an address that nobody else has.
#[test]
fn no_acknowledged_lease_is_lost_by_kill_9() {
    let mut site = Site::start(WIDE);
    let machine = site.probe_machine("10.20.0.5/22");
    // Another moment in each run; printed, so that a failure can be played again.
    let mut chance = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_nanos() as u64;
    let mut all: Vec<RawClient> = Vec::new();
    for round in 0..ROUNDS {
        let mut clients: Vec<RawClient> = (0..CLIENTS)
            .map(|at| {
                let mac = Mac([0xbc, 0x24, 0x11, 0x88, round as u8, at as u8]);
                RawClient::new(mac, &format!("app-{round}-{at}"), at % 2 == 0)
            })
            .collect();
        chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let moment = 1 + (chance >> 33) as usize % (CLIENTS - 1);

        let process = site.appliance.process();
        on_wire(&machine, async || {
            let probe = DhcpProbe::open();
            let mut acknowledged = 0;
            probe
                .lease_all(&mut clients, PATIENCE, |_, heard| {
                    acknowledged += usize::from(heard.message.opts().msg_type() == Some(MessageType::Ack));
                    if acknowledged < moment {
                        return Go::On;
                    }
                    process.signal(Signal::SIGKILL).expect("it can be killed");
                    Go::Stop
                })
                .await;
            process.wait(PATIENCE).expect("it is dead");
            // What was sent before the end counts: the client may have it.
            probe.take_rest(&mut clients).await;
        });
        let before = clients.iter().filter(|client| client.granted.is_some()).count();
        println!("round {round}: killed at ACK {moment}, {before} of {CLIENTS} clients have one");
        assert!(before >= moment);

        site.start_again();
        check_held(&site, &clients);
        check_held(&site, &all);

        // The others try on, as clients do; those with a lease renew it.
        on_wire(&machine, async || {
            let probe = DhcpProbe::open();
            probe.lease_all(&mut clients, PATIENCE, |_, _| Go::On).await;
            for client in &clients {
                let reply = probe.ask(client, &client.renewal()).await;
                assert_eq!(reply.message.opts().msg_type(), Some(MessageType::Ack), "{client:?}");
                assert_eq!(Some(reply.message.yiaddr()), client.granted);
            }
        });
        all.extend(clients);
        check_held(&site, &all);
    }
    let mut addresses: Vec<_> = all.iter().filter_map(|client| client.granted).collect();
    addresses.sort();
    addresses.dedup();
    assert_eq!(addresses.len(), ROUNDS * CLIENTS, "an address was given twice");
}

/// A clean stop keeps as much as a crash does.
#[test]
fn leases_and_names_are_there_at_once_after_a_restart() {
    let mut site = Site::start("");
    let machine = site.probe_machine("10.20.0.5/24");
    let mut clients = [RawClient::new(Mac([0xbc, 0x24, 0x11, 0x99, 0, 1]), "keeper", false)];
    on_wire(&machine, async || {
        DhcpProbe::open().lease_all(&mut clients, PATIENCE, |_, _| Go::On).await;
    });
    let status = site.appliance.terminate(PATIENCE).expect("it ends");
    assert!(status.success(), "{status}");
    site.start_again();
    check_held(&site, &clients);
    let dns = proximity_tests::dns_probe::DnsProbe::open(&machine, Ipv4Addr::new(10, 20, 0, 1));
    assert_eq!(dns.address("keeper.prox.local"), clients[0].granted);
    let mut nft = site.lab.appliance().enter(proximity_net::Nft::open).expect("entered").expect("nftables");
    let leased = nft.leased("proximity").expect("the set");
    assert_eq!(leased.into_iter().collect::<Vec<_>>(), clients[0].granted.as_slice());
}
