//! What is true at the moment the DHCPACK is seen on the wire.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use dhcproto::v4::{DhcpOption, MessageType, OptionCode};
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;
use proximity_net::Nft;
use proximity_table::Mac;
use proximity_tests::dhcp_probe::{DhcpProbe, Go, Heard, RawClient, on_wire};
use proximity_tests::dns_probe::DnsProbe;
use proximity_tests::{PATIENCE, Site};

const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 20, 0, 1);
const TABLE: &str = "proximity";

fn client(number: u8, broadcast: bool) -> RawClient {
    RawClient::new(Mac([0xbc, 0x24, 0x11, 0x77, 0, number]), &format!("raw-{number}"), broadcast)
}

/// A client that holds an ACK resolves, backwards too, and is known to the firewall. Each is asked about
/// once, at once, without a second try; before its REQUEST nobody knew the name.
#[test]
fn an_acknowledged_client_is_in_dns_and_in_the_firewall_already() {
    let site = Site::start("");
    let machine = site.probe_machine("10.20.0.5/24");
    let dns = DnsProbe::open(&machine, GATEWAY);
    let mut nft = site.lab.appliance().enter(Nft::open).expect("entered").expect("nftables");
    let mut slowest = Duration::ZERO;
    let granted = on_wire(&machine, async || {
        let probe = DhcpProbe::open();
        let mut granted = Vec::new();
        for number in 0..50 {
            let client = client(number, number % 2 == 0);
            let name = format!("{}.prox.local", client.hostname);
            let mut clients = [client];
            probe
                .lease_all(&mut clients, PATIENCE, |client, heard| {
                    let ip = heard.message.yiaddr();
                    match heard.message.opts().msg_type() {
                        Some(MessageType::Offer) => {
                            let before = dns.ask(&name, RecordType::A).expect("an answer");
                            assert_eq!(before.code, ResponseCode::NXDomain, "{name} was only offered");
                            assert!(
                                !nft.leased(TABLE).expect("the set").contains(&ip),
                                "{ip} was only offered"
                            );
                        }
                        Some(MessageType::Ack) => {
                            let seen = Instant::now();
                            let answer = dns.ask(&name, RecordType::A).expect("an answer");
                            let leased = nft.leased(TABLE).expect("the set");
                            slowest = slowest.max(seen.elapsed());
                            assert_eq!(answer.answers, [ip.to_string()], "{name}: {answer:?}");
                            assert!(
                                leased.contains(&ip),
                                "{ip} of {name} is not in the firewall: {leased:?}"
                            );
                            assert_eq!(dns.name_of(ip), Some(format!("{name}.")));
                            assert_eq!(client.granted, Some(ip));
                        }
                        other => panic!("{other:?} to {name}"),
                    }
                    Go::On
                })
                .await;
            granted.extend(clients[0].granted);
        }
        granted
    });
    assert_eq!(granted.len(), 50);
    println!("name and firewall were looked at within {slowest:?} of the ACK");
}

/// A burst shares commits; the order holds for each client of it.
#[test]
fn the_order_holds_in_a_burst() {
    let site = Site::start("");
    let machine = site.probe_machine("10.20.0.5/24");
    let dns = DnsProbe::open(&machine, GATEWAY);
    let mut nft = site.lab.appliance().enter(Nft::open).expect("entered").expect("nftables");
    let mut clients: Vec<RawClient> = (0..100).map(|number| client(number, number % 2 == 0)).collect();
    on_wire(&machine, async || {
        let probe = DhcpProbe::open();
        let check = |client: &RawClient, heard: &Heard| {
            if heard.message.opts().msg_type() == Some(MessageType::Ack) {
                let ip = heard.message.yiaddr();
                assert_eq!(dns.address(&format!("{}.prox.local", client.hostname)), Some(ip));
                assert!(nft.leased(TABLE).expect("the set").contains(&ip), "{ip}");
            }
            Go::On
        };
        probe.lease_all(&mut clients, PATIENCE, check).await;
    });
    let mut addresses: Vec<_> = clients.iter().filter_map(|client| client.granted).collect();
    addresses.sort();
    addresses.dedup();
    assert_eq!(addresses.len(), 100, "an address was given twice");
}

/// RFC 2131 §4.1: "If the broadcast bit is not set and 'giaddr' is zero and 'ciaddr' is zero, then the server
/// unicasts DHCPOFFER and DHCPACK messages to the client's hardware address and 'yiaddr' address." "If the
/// broadcast bit is set, then the server [...] MUST broadcast".
#[test]
fn replies_go_where_the_broadcast_flag_says_with_right_checksums() {
    let site = Site::start("");
    let machine = site.probe_machine("10.20.0.5/24");
    let mut clients = [client(1, true), client(2, false)];
    let mut heard = Vec::new();
    on_wire(&machine, async || {
        let probe = DhcpProbe::open();
        probe
            .lease_all(&mut clients, PATIENCE, |client, reply| {
                heard.push((client.clone(), reply.clone()));
                Go::On
            })
            .await;
        // Renewing: "if the broadcast bit is not set and [...] 'ciaddr' is non-zero, then the server unicasts
        // to the address in 'ciaddr'".
        for client in &clients {
            heard.push((client.clone(), probe.ask(client, &client.renewal()).await));
        }
    });
    let kinds = |broadcast: bool| {
        let own = heard.iter().filter(move |(client, _)| client.broadcast == broadcast);
        own.filter_map(|(_, reply)| reply.message.opts().msg_type()).collect::<Vec<_>>()
    };
    assert_eq!(kinds(true), [MessageType::Offer, MessageType::Ack, MessageType::Ack]);
    assert_eq!(kinds(false), kinds(true));
    for (client, reply) in &heard {
        let to_all = client.broadcast && reply.message.ciaddr().is_unspecified();
        let expected =
            if to_all { (Mac::BROADCAST, Ipv4Addr::BROADCAST) } else { (client.mac, reply.message.yiaddr()) };
        assert_eq!((reply.target_mac, reply.target), expected, "{client:?}: {reply:?}");
        assert_eq!(reply.source, GATEWAY);
        // RFC 768: "An all zero transmitted checksum value means that the transmitter generated no checksum".
        // The probe has checked that a checksum which is there is right.
        assert_ne!(reply.checksum, 0, "no UDP checksum: {reply:?}");
        let options = reply.message.opts();
        assert_eq!(options.get(OptionCode::Router), Some(&DhcpOption::Router(vec![GATEWAY])));
        assert_eq!(options.get(OptionCode::AddressLeaseTime), Some(&DhcpOption::AddressLeaseTime(43200)));
        assert_eq!(options.get(OptionCode::Renewal), Some(&DhcpOption::Renewal(21600)));
        assert_eq!(options.get(OptionCode::Rebinding), Some(&DhcpOption::Rebinding(37800)));
    }
}
