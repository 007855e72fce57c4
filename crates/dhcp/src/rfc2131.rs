//! The server core against RFC 2131, 2132, 3046, 3397 and 4702, section by section.

use std::net::Ipv4Addr;

use dhcproto::v4::{DhcpOption, Flags, MessageType, OptionCode, UnknownOption};
use proximity_table::{Change, Lease, LeaseState, Touched};

use crate::testing::{Lan, discover, encode, ip, mac, message, option, select, yiaddr};
use crate::{Destination, Drop};

/// §3.1, and the seed: address from the pool, twelve hours, gateway, DNS, domain.
#[test]
fn a_client_gets_address_router_dns_and_domain() {
    let mut lan = Lan::new();
    let offer = lan.send(&discover(mac(1), "nginx-01")).unwrap();
    assert!(offer.lease.is_none(), "an offer is not a lease");
    let address = yiaddr(&offer.reply.unwrap().payload);
    assert!(lan.facts.intent().networks[0].range.contains(address));
    let ack = lan.send(&select(mac(1), address, "nginx-01")).unwrap();
    let lease = ack.lease.unwrap();
    assert_eq!(lease.hostname.as_ref().unwrap().as_str(), "nginx-01");
    assert_eq!(lease.expires, lan.now.plus(43_200));
    let reply = ack.reply.unwrap().payload;
    let is =
        |code: u8, value: &[u8]| assert_eq!(option(&reply, code).as_deref(), Some(value), "option {code}");
    is(1, &[255, 255, 255, 0]);
    is(3, &[10, 20, 0, 1]);
    is(6, &[10, 20, 0, 1]);
    is(15, b"prox.local");
    is(51, &43_200u32.to_be_bytes());
    is(53, &[5]);
    is(54, &[10, 20, 0, 1]);
    is(119, b"\x04prox\x05local\x00");
    assert!(reply.len() >= 300);
}

/// §4.4.5: "T1 defaults to (0.5 * duration_of_lease). T2 defaults to (0.875 * duration_of_lease)."
#[test]
fn renewal_times_are_half_and_seven_eighths() {
    let mut lan = Lan::new();
    let address = lan.lease(mac(1), "a");
    let reply = lan.send(&select(mac(1), address, "a")).unwrap().reply.unwrap().payload;
    assert_eq!(option(&reply, 58).unwrap(), 21_600u32.to_be_bytes());
    assert_eq!(option(&reply, 59).unwrap(), 37_800u32.to_be_bytes());
}

/// §4.3.1: "the server chooses a network address … the client's current address … the client's previous
/// address".
#[test]
fn a_client_keeps_its_address_over_release_and_expiry() {
    let mut lan = Lan::new();
    let first = lan.lease(mac(1), "a");
    let mut release = message(MessageType::Release, mac(1));
    release.set_ciaddr(first);
    assert_eq!(lan.send(&release).unwrap().lease.unwrap().state, LeaseState::Released);
    for other in 2..60 {
        assert_ne!(lan.lease(mac(other), "b"), first);
    }
    assert_eq!(lan.lease(mac(1), "a"), first);
    let held = lan.facts.ledger().at(first).unwrap().clone();
    lan.now = held.expires.plus(1);
    let expired = Lease { state: LeaseState::Expired, ..(*held).clone() };
    lan.facts.apply(Change::Lease(expired), &mut Touched::default());
    assert_eq!(lan.lease(mac(1), "a"), first);
}

/// §4.3.1: the address "in the 'Requested IP Address' option, if that address is valid and not already
/// allocated".
#[test]
fn a_requested_address_is_offered_when_it_is_free() {
    let mut lan = Lan::new();
    let mut wish = discover(mac(1), "a");
    wish.opts_mut().insert(DhcpOption::RequestedIpAddress(ip(200)));
    assert_eq!(yiaddr(&lan.send(&wish).unwrap().reply.unwrap().payload), ip(200));
    let mut same = discover(mac(2), "b");
    same.opts_mut().insert(DhcpOption::RequestedIpAddress(ip(200)));
    assert_ne!(yiaddr(&lan.send(&same).unwrap().reply.unwrap().payload), ip(200), "it is offered to another");
    let mut outside = discover(mac(3), "c");
    outside.opts_mut().insert(DhcpOption::RequestedIpAddress(ip(50)));
    assert_ne!(yiaddr(&lan.send(&outside).unwrap().reply.unwrap().payload), ip(50), "it is not in the pool");
}

#[test]
fn no_address_is_given_twice_and_a_full_pool_is_silent() {
    let mut lan = Lan::with_range("10.20.0.100-10.20.0.109");
    let mut given = std::collections::BTreeSet::new();
    for client in 1..=10 {
        assert!(given.insert(lan.lease(mac(client), "x")));
    }
    assert_eq!(lan.send(&discover(mac(11), "x")).unwrap_err(), Drop::PoolExhausted);
    let mut release = message(MessageType::Release, mac(4));
    release.set_ciaddr(lan.facts.ledger().of_client(&"apps".into(), mac(4)).unwrap().ip);
    lan.send(&release).unwrap();
    lan.lease(mac(11), "x");
    assert_eq!(lan.send(&discover(mac(4), "x")).unwrap_err(), Drop::PoolExhausted);
}

#[test]
fn the_address_left_longest_ago_is_given_first() {
    let mut lan = Lan::with_range("10.20.0.100-10.20.0.102");
    let held: Vec<_> = (1..=3).map(|client| (client, lan.lease(mac(client), "x"))).collect();
    for (client, address) in [held[1], held[0], held[2]] {
        lan.now = lan.now.plus(10);
        let mut release = message(MessageType::Release, mac(client));
        release.set_ciaddr(address);
        lan.send(&release).unwrap();
    }
    assert_eq!(lan.lease(mac(9), "x"), held[1].1);
}

/// Reservations, inside or outside the pool, and their names win.
#[test]
fn a_reservation_gives_address_and_name() {
    let mut lan = Lan::new();
    lan.reserve(mac(1), ip(10), "db");
    lan.reserve(mac(2), ip(100), "cache");
    assert_eq!(lan.lease(mac(1), "whatever"), ip(10));
    assert_eq!(lan.facts.ledger().at(ip(10)).unwrap().hostname.as_ref().unwrap().as_str(), "db");
    for other in 3..=152 {
        assert_ne!(lan.lease(mac(other), "x"), ip(100), "reserved addresses are not for others");
    }
    assert_eq!(lan.lease(mac(2), "x"), ip(100));
}

/// A reservation made while the client holds another address takes hold at its next renewal.
#[test]
fn a_reservation_wins_over_a_held_lease() {
    let mut lan = Lan::new();
    let before = lan.lease(mac(1), "a");
    lan.reserve(mac(1), ip(10), "db");
    let mut renew = message(MessageType::Request, mac(1));
    renew.set_ciaddr(before);
    assert_eq!(lan.send(&renew).unwrap().reply.unwrap().kind, MessageType::Nak);
    assert_eq!(lan.lease(mac(1), "a"), ip(10));
    assert!(lan.facts.ledger().at(before).is_none());
}

/// §4.3.2: "If the client's REQUEST … 'server identifier' … MUST be filled in", and a client that chose
/// another server is none of ours.
#[test]
fn a_client_of_another_server_is_left_alone() {
    let mut lan = Lan::new();
    let mut request = select(mac(1), ip(120), "a");
    request.opts_mut().insert(DhcpOption::ServerIdentifier(ip(99)));
    assert_eq!(lan.send(&request).unwrap_err(), Drop::OtherServer);
}

/// §4.3.2: "If the DHCP server detects that the client is on the wrong net … the server SHOULD send a
/// DHCPNAK", and "If the DHCP server has no record of this client, then it MUST remain silent".
#[test]
fn init_reboot_is_confirmed_refused_or_ignored() {
    let mut lan = Lan::new();
    let reboot = |address: Ipv4Addr, client| {
        let mut request = message(MessageType::Request, client);
        request.opts_mut().insert(DhcpOption::RequestedIpAddress(address));
        request
    };
    let wrong_net = lan.send(&reboot(Ipv4Addr::new(192, 168, 7, 7), mac(1))).unwrap();
    assert_eq!(wrong_net.reply.as_ref().unwrap().kind, MessageType::Nak);
    assert_eq!(wrong_net.reply.unwrap().to, Destination::Broadcast);
    assert_eq!(lan.send(&reboot(ip(120), mac(1))).unwrap_err(), Drop::UnknownClient);
    let address = lan.lease(mac(1), "a");
    assert_eq!(lan.send(&reboot(address, mac(1))).unwrap().reply.unwrap().kind, MessageType::Ack);
    let other = lan.lease(mac(2), "b");
    assert_eq!(lan.send(&reboot(other, mac(1))).unwrap().reply.unwrap().kind, MessageType::Nak);
}

#[test]
fn renewing_extends_the_lease_and_keeps_epoch_and_name() {
    let mut lan = Lan::new();
    let address = lan.lease(mac(1), "a");
    let before = lan.facts.ledger().at(address).unwrap().clone();
    lan.now = lan.now.plus(20_000);
    let mut renew = message(MessageType::Request, mac(1));
    renew.set_ciaddr(address);
    let answer = lan.send(&renew).unwrap();
    let after = answer.lease.unwrap();
    assert_eq!(after.expires, lan.now.plus(43_200));
    assert_eq!((after.epoch, &after.hostname), (before.epoch, &before.hostname));
    assert_eq!(answer.reply.unwrap().to, Destination::Client(mac(1), address));
}

#[test]
fn a_new_owner_of_an_address_has_a_new_epoch() {
    let mut lan = Lan::with_range("10.20.0.100-10.20.0.100");
    let address = lan.lease(mac(1), "a");
    let epoch = lan.facts.ledger().at(address).unwrap().epoch;
    let mut release = message(MessageType::Release, mac(1));
    release.set_ciaddr(address);
    lan.send(&release).unwrap();
    assert_eq!(lan.lease(mac(2), "b"), address);
    assert!(lan.facts.ledger().at(address).unwrap().epoch > epoch);
}

/// §4.3.3: "If the server receives a DHCPDECLINE message, the client has discovered through some other means
/// that the suggested network address is already in use. The server MUST mark the network address as not
/// available".
#[test]
fn a_declined_address_is_given_to_nobody_for_a_while() {
    let mut lan = Lan::new();
    let address = lan.lease(mac(1), "a");
    let decline = |client| {
        let mut decline = message(MessageType::Decline, client);
        decline.opts_mut().insert(DhcpOption::RequestedIpAddress(address));
        decline
    };
    assert_eq!(lan.send(&decline(mac(2))).unwrap_err(), Drop::NotHolder, "a stranger cannot spoil addresses");
    assert_eq!(lan.send(&decline(mac(1))).unwrap().lease.unwrap().state, LeaseState::Declined);
    assert_ne!(lan.lease(mac(1), "a"), address);
    let mut wish = discover(mac(3), "c");
    wish.opts_mut().insert(DhcpOption::RequestedIpAddress(address));
    assert_ne!(yiaddr(&lan.send(&wish).unwrap().reply.unwrap().payload), address);
    lan.now = lan.now.plus(3601);
    let mut later = discover(mac(4), "d");
    later.opts_mut().insert(DhcpOption::RequestedIpAddress(address));
    assert_eq!(yiaddr(&lan.send(&later).unwrap().reply.unwrap().payload), address);
}

/// §4.3.5: "The server responds to a DHCPINFORM message by sending a DHCPACK message directly to the address
/// given in the 'ciaddr' field … The server MUST NOT send a lease expiration time … and SHOULD NOT fill in
/// 'yiaddr'."
#[test]
fn inform_is_answered_without_a_lease() {
    let mut lan = Lan::new();
    let mut inform = message(MessageType::Inform, mac(1));
    inform.set_ciaddr(ip(50));
    let answer = lan.send(&inform).unwrap();
    assert!(answer.lease.is_none());
    let reply = answer.reply.unwrap();
    assert_eq!(reply.to, Destination::Client(mac(1), ip(50)));
    assert_eq!(yiaddr(&reply.payload), Ipv4Addr::UNSPECIFIED);
    assert_eq!(option(&reply.payload, 51), None);
    assert_eq!(option(&reply.payload, 3).unwrap(), [10, 20, 0, 1]);
}

/// §4.1: "If the 'giaddr' field is zero and the 'ciaddr' field is zero, and the broadcast bit is set, then
/// the server broadcasts … If the broadcast bit is not set … unicasts … to the client's hardware address and
/// 'yiaddr' address."
#[test]
fn the_broadcast_bit_decides_how_the_reply_travels() {
    let mut lan = Lan::new();
    let mut asks = discover(mac(1), "a");
    let unicast = lan.send(&asks).unwrap().reply.unwrap();
    assert_eq!(unicast.to, Destination::Client(mac(1), yiaddr(&unicast.payload)));
    asks.set_flags(Flags::default().set_broadcast());
    assert_eq!(lan.send(&asks).unwrap().reply.unwrap().to, Destination::Broadcast);
}

/// RFC 3046 §2.2: the relay's information is echoed; §4.1: replies go to the relay.
#[test]
fn relayed_messages_go_back_through_the_relay() {
    let mut lan = Lan::new();
    let mut relayed = discover(mac(1), "a");
    relayed.set_giaddr(ip(2));
    let mut bytes = encode(&relayed);
    bytes.pop();
    bytes.extend([82, 4, 1, 2, 7, 7, 255]);
    let reply = lan.payload(&bytes).unwrap().reply.unwrap();
    assert_eq!(reply.to, Destination::Relay(ip(2)));
    assert_eq!(option(&reply.payload, 82).unwrap(), [1, 2, 7, 7]);
    relayed.set_giaddr(Ipv4Addr::new(172, 16, 0, 1));
    assert_eq!(lan.send(&relayed).unwrap_err(), Drop::ForeignRelay);
}

/// RFC 4702 §2.3 and §4: wire labels with E, plain text without; the server keeps the records (S) and says
/// when that overrides the client (O).
#[test]
fn option_81_names_the_host() {
    let mut lan = Lan::new();
    for (client, flags, name, answer) in [
        (1u8, 0b101u8, &b"\x06gitea1\x00"[..], 0b101u8),
        (2, 0b000, b"gitea2.example.org", 0b011),
        (3, 0b100, b"\x3fshort", 0b111),
    ] {
        let mut asks = message(MessageType::Discover, mac(client));
        let value = [&[flags, 0, 0], name].concat();
        asks.opts_mut()
            .insert(DhcpOption::Unknown(UnknownOption::new(OptionCode::ClientFQDN, value.clone())));
        let address = yiaddr(&lan.send(&asks).unwrap().reply.unwrap().payload);
        let mut request = select(mac(client), address, "ignored");
        request.opts_mut().remove(OptionCode::Hostname);
        request.opts_mut().insert(DhcpOption::Unknown(UnknownOption::new(OptionCode::ClientFQDN, value)));
        let ack = lan.send(&request).unwrap();
        let name = ack.lease.unwrap().hostname.map(|name| name.to_string());
        let echoed = option(&ack.reply.unwrap().payload, 81);
        match client {
            3 => assert_eq!((name, echoed), (None, None), "a broken name is no name"),
            _ => {
                assert_eq!(name.unwrap(), format!("gitea{client}"));
                assert_eq!(echoed.unwrap()[0], answer);
            }
        }
    }
}

/// RFC 2132 §9.8: options by number go to those who ask for them.
#[test]
fn custom_options_are_sent_when_wanted() {
    let mut lan = Lan::new();
    let mut asks = discover(mac(1), "a");
    assert_eq!(option(&lan.send(&asks).unwrap().reply.unwrap().payload, 66), None);
    asks.opts_mut().insert(DhcpOption::ParameterRequestList(vec![OptionCode::TFTPServerName]));
    assert_eq!(option(&lan.send(&asks).unwrap().reply.unwrap().payload, 66).unwrap(), b"tftp");
}

#[test]
fn short_leases_are_granted_and_long_ones_cut() {
    let mut lan = Lan::new();
    for (asked, granted) in [(600, 600), (1, 120), (u32::MAX, 43_200)] {
        let mut asks = discover(mac(1), "a");
        asks.opts_mut().insert(DhcpOption::AddressLeaseTime(asked));
        let reply = lan.send(&asks).unwrap().reply.unwrap().payload;
        assert_eq!(option(&reply, 51).unwrap(), (granted as u32).to_be_bytes());
    }
}

#[test]
fn clones_with_one_client_id_get_an_address_each() {
    let mut lan = Lan::new();
    let mut addresses = std::collections::BTreeSet::new();
    for client in 1..=5 {
        let mut asks = discover(mac(client), "clone");
        asks.opts_mut().insert(DhcpOption::ClientIdentifier(vec![255, 1, 2, 3]));
        let address = yiaddr(&lan.send(&asks).unwrap().reply.unwrap().payload);
        let mut request = select(mac(client), address, "clone");
        request.opts_mut().insert(DhcpOption::ClientIdentifier(vec![255, 1, 2, 3]));
        lan.send(&request).unwrap();
        addresses.insert(address);
    }
    assert_eq!(addresses.len(), 5);
}

/// §2: anything may come in on port 67.
#[test]
fn damaged_messages_never_panic_and_have_a_reason() {
    let mut lan = Lan::new();
    let mut asks = discover(mac(1), "a");
    let fqdn = UnknownOption::new(OptionCode::ClientFQDN, vec![4, 0, 0, 5, b'g', b'i', b't', b'e', b'a', 0]);
    asks.opts_mut().insert(DhcpOption::Unknown(fqdn));
    asks.opts_mut().insert(DhcpOption::ParameterRequestList(vec![OptionCode::Router; 8]));
    let good = encode(&asks);
    let mut reasons = std::collections::BTreeMap::new();
    let mut note = |result: Result<crate::Answer, Drop>| {
        if let Err(reason) = result {
            *reasons.entry(reason.label()).or_insert(0u32) += 1;
        }
    };
    for length in 0..good.len() {
        note(lan.payload(&good[..length]));
    }
    let mut seed = 7u64;
    for _ in 0..20_000 {
        let mut bytes = good.clone();
        for _ in 0..1 + seed % 6 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let at = (seed >> 33) as usize % bytes.len();
            bytes[at] = (seed >> 17) as u8;
        }
        note(lan.payload(&bytes));
    }
    for reason in ["malformed", "not_boot_request", "message_type", "hardware_address"] {
        assert!(reasons.contains_key(reason), "{reason}: {reasons:?}");
    }
}

/// A flood of DISCOVERs from made-up clients costs no lease and no unbounded memory.
#[test]
fn offers_are_bounded_and_run_out() {
    let mut lan = Lan::with_range("10.20.0.100-10.20.0.103");
    let mut answered = 0;
    for client in 0..200u8 {
        answered += u32::from(lan.send(&discover(mac(client), "x")).is_ok());
    }
    assert_eq!(answered, 4);
    assert!(lan.facts.ledger().is_empty());
    lan.now = lan.now.plus(31);
    assert!(lan.send(&discover(mac(210), "x")).is_ok(), "offers that nobody took are free again");
    assert!(lan.server.offers() <= 5);
}

/// §4.3.2, INIT-REBOOT: "Server SHOULD send a DHCPNAK message to the client if the requested IP address is
/// incorrect".
#[test]
fn a_known_client_that_remembers_a_wrong_address_starts_again() {
    let mut lan = Lan::new();
    let address = lan.lease(mac(1), "a");
    let free = if address == ip(200) { ip(201) } else { ip(200) };
    let mut reboot = message(MessageType::Request, mac(1));
    reboot.opts_mut().insert(DhcpOption::RequestedIpAddress(free));
    let answer = lan.send(&reboot).unwrap();
    assert_eq!(answer.reply.unwrap().kind, MessageType::Nak);
    assert!(answer.lease.is_none());
}

/// §4.4.6: RELEASE and DECLINE carry the server identifier; those for another server are not ours.
#[test]
fn a_release_for_another_server_changes_nothing() {
    let mut lan = Lan::new();
    let address = lan.lease(mac(1), "a");
    let mut release = message(MessageType::Release, mac(1));
    release.set_ciaddr(address);
    release.opts_mut().insert(DhcpOption::ServerIdentifier(ip(99)));
    assert_eq!(lan.send(&release).unwrap_err(), Drop::OtherServer);
}
