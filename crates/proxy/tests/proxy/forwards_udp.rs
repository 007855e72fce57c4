//! Forwarded ports that the proxy carries: UDP.

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::sync::Arc;

use proximity_proxy::StreamReason;
use proximity_table::{BackendTarget, Change, Forward, LeaseState, Protocol, StreamPolicy};

use crate::forward_support::{Carried, udp_forward};
use crate::support::{PATIENCE, Table, lease};

/// Answers each datagram with its own name and the datagram, as long as it is held.
fn answering(name: &'static str, at: SocketAddrV4) -> (SocketAddrV4, Arc<UdpSocket>) {
    let socket = Arc::new(UdpSocket::bind(at).unwrap());
    let std::net::SocketAddr::V4(addr) = socket.local_addr().unwrap() else { unreachable!() };
    let here = socket.clone();
    std::thread::spawn(move || {
        let mut datagram = vec![0; 65_535];
        while let Ok((length, from)) = here.recv_from(&mut datagram) {
            let answer = [name.as_bytes(), b":", &datagram[..length]].concat();
            // A client that has gone is none of ours.
            let _ = here.send_to(&answer, from);
        }
    });
    (addr, socket)
}

fn anywhere() -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)
}

struct Peer(UdpSocket);

impl Peer {
    fn of(ip: Ipv4Addr, number: u16) -> Peer {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        // Connected: what comes from any other address than was spoken to is not heard.
        socket.connect((ip, number)).unwrap();
        Peer(socket)
    }

    fn ask(&self, text: &str) -> String {
        self.0.send(text.as_bytes()).unwrap();
        let mut answer = vec![0; 65_535];
        let length = self.0.recv(&mut answer).unwrap();
        String::from_utf8(answer[..length].to_vec()).unwrap()
    }
}

#[test]
fn datagrams_are_carried_both_ways_and_answered_from_the_address_that_was_asked() {
    let (backend, _held) = answering("echo", anywhere());
    let carried = Carried::start(Table::new("127.0.0.1/8", 80));
    let number = carried.add_udp(|number| udp_forward(number, &[backend]));
    let peers = [Ipv4Addr::LOCALHOST, Ipv4Addr::new(127, 0, 0, 9)].map(|ip| Peer::of(ip, number));
    for round in 0..3 {
        for (at, peer) in peers.iter().enumerate() {
            let text = format!("{round} of {at}");
            assert_eq!(peer.ask(&text), format!("echo:{text}"));
        }
    }
    assert_eq!(peers[0].ask(""), "echo:", "an empty datagram is one");
    let long = "x".repeat(60_000);
    assert_eq!(peers[1].ask(&long).len(), 60_005);
    carried.until("all is counted", |carried| carried.udp_load(number).sent > 60_000);
    let load = carried.udp_load(number);
    assert_eq!((load.open, load.taken), (2, 2));
    assert_eq!(load.sent - load.received, 8 * "echo:".len() as u64);
}

#[test]
fn a_client_stays_with_its_target_while_it_lasts() {
    let ips = [Ipv4Addr::new(127, 0, 0, 2), Ipv4Addr::new(127, 0, 0, 3)];
    let (first, _one) = answering("old", SocketAddrV4::new(ips[0], 0));
    let (_, _two) = answering("new", SocketAddrV4::new(ips[1], first.port()));
    let mut table = Table::new("127.0.0.1/8", 80);
    table.change(Change::Lease(lease("dns", ips[0], 1, LeaseState::Bound)));
    let carried = Carried::start(table);
    let app = BackendTarget::App { name: "dns".parse().unwrap(), port: first.port() };
    let number = carried.add_udp(|number| Forward {
        proxy: Some(StreamPolicy::of(Protocol::Udp).into()),
        ..Forward::new(Protocol::Udp, number, app.clone())
    });
    let peer = Peer::of(Ipv4Addr::LOCALHOST, number);
    assert_eq!(peer.ask("a"), "old:a");
    carried.change(Change::Lease(lease("dns", ips[0], 1, LeaseState::Bound)));
    assert_eq!((peer.ask("b").as_str(), carried.udp_load(number).taken), ("old:b", 1));
    carried.change(Change::Lease(lease("dns", ips[0], 1, LeaseState::Released)));
    carried.until("forgotten", |carried| carried.udp_load(number).open == 0);
    assert_eq!(carried.count(StreamReason::TargetLeft), 1);
    carried.change(Change::Lease(lease("dns", ips[1], 2, LeaseState::Bound)));
    assert_eq!(peer.ask("c"), "new:c");
}

#[test]
fn the_client_that_was_silent_longest_makes_room() {
    let (backend, _held) = answering("echo", anywhere());
    let carried = Carried::start(Table::new("127.0.0.1/8", 80));
    let policy = StreamPolicy { max_connections: 4, ..StreamPolicy::of(Protocol::Udp) };
    let number = carried
        .add_udp(|number| Forward { proxy: Some(policy.clone().into()), ..udp_forward(number, &[backend]) });
    let peers: Vec<Peer> = (0..40).map(|_| Peer::of(Ipv4Addr::LOCALHOST, number)).collect();
    for (at, peer) in peers.iter().enumerate() {
        if carried.udp_load(number).open == 4 {
            // The thread that hears it may have nobody to forget; then its datagram is dropped, and counted.
            peer.0.send(b"x").unwrap();
            let refused = |carried: &Carried| {
                carried.count(StreamReason::Evicted) + carried.count(StreamReason::ConnectionLimit)
            };
            carried.until("decided", |carried| refused(carried) == at as u64 - 3);
        } else {
            assert_eq!(peer.ask("x"), "echo:x");
        }
        assert!(carried.udp_load(number).open <= 4);
    }
    assert!(carried.count(StreamReason::Evicted) > 0);
}

#[test]
fn who_is_silent_for_too_long_is_forgotten() {
    let (backend, _held) = answering("echo", anywhere());
    let carried = Carried::start(Table::new("127.0.0.1/8", 80));
    let policy = StreamPolicy { idle_timeout: 1, ..StreamPolicy::of(Protocol::Udp) };
    let number = carried
        .add_udp(|number| Forward { proxy: Some(policy.clone().into()), ..udp_forward(number, &[backend]) });
    let peer = Peer::of(Ipv4Addr::LOCALHOST, number);
    assert_eq!(peer.ask("x"), "echo:x");
    carried.until("forgotten", |carried| carried.udp_load(number).open == 0);
    assert_eq!((peer.ask("y").as_str(), carried.udp_load(number).taken), ("echo:y", 2));
}

/// The target's machine answers that nothing listens there, and the next datagram finds another one.
#[test]
fn a_target_that_is_gone_is_left() {
    // An address of loopback that no other test listens on.
    let gone = SocketAddrV4::new(Ipv4Addr::new(127, 77, 0, 1), 9);
    let (backend, _held) = answering("alive", anywhere());
    let carried = Carried::start(Table::new("127.0.0.1/8", 80));
    let number = carried.add_udp(|number| udp_forward(number, &[gone, backend]));
    let peer = Peer::of(Ipv4Addr::LOCALHOST, number);
    peer.0.send(b"lost").unwrap();
    carried.until("noticed", |carried| carried.count(StreamReason::BackendReset) == 1);
    assert_eq!(peer.ask("again"), "alive:again");
}

#[test]
fn a_way_that_leads_back_carries_nothing() {
    let carried = Carried::start(Table::new("127.0.0.1/8", 80));
    let number =
        carried.add_udp(|number| udp_forward(number, &[SocketAddrV4::new(Ipv4Addr::LOCALHOST, number)]));
    let peer = Peer::of(Ipv4Addr::LOCALHOST, number);
    peer.0.send(b"round and round").unwrap();
    carried.until("stopped", |carried| carried.count(StreamReason::Loop) == 1);
    assert_eq!(carried.udp_load(number).open, 0);
}
