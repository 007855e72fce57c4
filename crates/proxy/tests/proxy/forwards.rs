//! Forwarded ports that the proxy carries: TCP.

use std::io::{BufRead, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proximity_proxy::{Addresses, ProxyHeader, StreamReason, write_proxy_header};
use proximity_table::{
    BackendTarget, Balance, Change, Forward, LeaseState, Protocol, ProxyProtocol, Source, StreamPolicy,
};

use crate::forward_support::{Carried, forward, port, taken_tcp_port};
use crate::health::taken_port;
use crate::support::{Backend, BackendConn, Client, PATIENCE, Table, lease, read_line};

fn echo() -> Backend {
    Backend::script(|mut conn| {
        let mut octets = [0; 64 * 1024];
        while let Ok(length @ 1..) = conn.stream.read(&mut octets) {
            if conn.stream.get_mut().write_all(&octets[..length]).is_err() {
                return;
            }
        }
    })
}

/// A backend that says its name and then echoes.
fn named(name: &'static str) -> Backend {
    Backend::script(move |conn| named_script(name, conn))
}

fn echoes(client: &mut Client, text: &str) -> bool {
    client.send(&format!("{text}\n"));
    read_line(&mut client.stream).as_deref() == Some(text)
}

fn name_of(client: &mut Client) -> String {
    read_line(&mut client.stream).expect("a name")
}

/// Whether it ended by a reset, which no client takes for a good end.
fn is_reset(client: &mut Client) -> bool {
    let ended = client.stream.fill_buf().map(<[u8]>::len);
    ended.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset)
}

#[test]
fn each_direction_is_carried_whole_and_ends_by_itself() {
    const SIZE: usize = 5 << 20;
    let octet = |at: usize| (at % 251) as u8;
    let backend = Backend::script(move |mut conn| {
        let mut got = Vec::new();
        conn.stream.read_to_end(&mut got).unwrap();
        // The client has ended, and still hears what it asked for.
        assert_eq!(got.len(), SIZE);
        let back: Vec<u8> = got.iter().map(|octet| octet ^ 0xff).collect();
        conn.stream.get_mut().write_all(&back).unwrap();
    });
    let carried = Carried::start(Table::new("127.0.0.1/8", 80));
    let number = carried.add(|number| forward(number, &[backend.addr]));
    let mut client = carried.connect(number).stream.into_inner();
    let sent: Vec<u8> = (0..SIZE).map(octet).collect();
    client.write_all(&sent).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut got = Vec::new();
    client.read_to_end(&mut got).unwrap();
    assert!(got.len() == SIZE && got.iter().zip(&sent).all(|(got, sent)| got ^ 0xff == *sent));
    carried.until("the end is counted", |carried| carried.load(number).open == 0);
    let load = carried.load(number);
    assert_eq!((load.taken, load.received, load.sent), (1, SIZE as u64, SIZE as u64));
}

#[test]
fn no_more_is_read_than_the_other_side_takes() {
    let (written, told) = channel();
    let written = Mutex::new(written);
    let backend = Backend::script(move |conn| {
        let mut stream = conn.stream.into_inner();
        stream.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
        let mut octets = 0usize;
        while let Ok(length) = stream.write(&[7; 64 * 1024]) {
            octets += length;
            assert!(octets < 1 << 30, "it takes everything");
        }
        written.lock().unwrap().send(octets).unwrap();
    });
    let carried = Carried::start(Table::new("127.0.0.1/8", 80));
    let number = carried.add(|number| forward(number, &[backend.addr]));
    let client = carried.connect(number);
    // The buffers of two connections and of the proxy, and no more.
    let octets = told.recv_timeout(PATIENCE).unwrap();
    assert!(octets < 64 << 20, "{octets}");
    let mut got = Vec::new();
    client.stream.into_inner().read_to_end(&mut got).unwrap();
    assert_eq!(got.len(), octets);
}

fn header_of(mut conn: BackendConn) -> (ProxyHeader, Vec<u8>) {
    let mut octets = Vec::new();
    conn.stream.read_to_end(&mut octets).unwrap();
    let header = ProxyHeader::read(&octets).unwrap().expect("a whole header");
    octets.drain(..header.length);
    (header, octets)
}

#[test]
fn a_target_is_told_who_asks() {
    let (told, headers) = channel();
    let told = Mutex::new(told);
    let backend = Backend::script(move |conn| told.lock().unwrap().send(header_of(conn)).unwrap());
    let carried = Carried::start(Table::new("127.0.0.1/8", 80));
    for version in [ProxyProtocol::V1, ProxyProtocol::V2] {
        let policy = StreamPolicy { send_proxy_protocol: Some(version), ..StreamPolicy::default() };
        let number = carried
            .add(|number| Forward { proxy: Some(policy.clone().into()), ..forward(number, &[backend.addr]) });
        let mut client = carried.connect(number);
        let source = client.stream.get_ref().local_addr().unwrap();
        client.send("hello");
        client.stream.get_ref().shutdown(Shutdown::Write).unwrap();
        let (header, rest) = headers.recv_timeout(PATIENCE).unwrap();
        let destination = SocketAddr::from((Ipv4Addr::LOCALHOST, number));
        assert_eq!(header.addresses, Some(Addresses { source, destination }), "{version:?}");
        assert_eq!(rest, b"hello");
    }
}

#[test]
fn who_has_to_say_for_whom_it_speaks_is_believed_or_refused() {
    let (told, headers) = channel();
    let told = Mutex::new(told);
    let backend = Backend::script(move |conn| told.lock().unwrap().send(header_of(conn)).unwrap());
    let carried = Carried::start(Table::new("127.0.0.1/8", 80));
    let policy = StreamPolicy {
        accept_proxy_protocol: vec!["127.0.0.0/8".parse().unwrap()],
        send_proxy_protocol: Some(ProxyProtocol::V1),
        ..StreamPolicy::default()
    };
    let number = carried
        .add(|number| Forward { proxy: Some(policy.clone().into()), ..forward(number, &[backend.addr]) });
    let visitor = Addresses {
        source: "203.0.113.7:4242".parse().unwrap(),
        destination: "192.0.2.1:2222".parse().unwrap(),
    };
    for addresses in [Some(visitor), None] {
        for version in [ProxyProtocol::V1, ProxyProtocol::V2] {
            let mut client = carried.connect(number).stream.into_inner();
            let mut header = Vec::new();
            write_proxy_header(version, &mut header, addresses);
            // In pieces, and with what follows in the last of them.
            let (first, last) = header.split_at(9);
            client.write_all(first).unwrap();
            client.write_all(&[last, b"SSH-2.0-x\r\n"].concat()).unwrap();
            client.shutdown(Shutdown::Write).unwrap();
            let (header, rest) = headers.recv_timeout(PATIENCE).unwrap();
            assert_eq!((header.addresses, rest.as_slice()), (addresses, &b"SSH-2.0-x\r\n"[..]));
        }
    }
    let mut client = carried.connect(number);
    client.send("SSH-2.0-x\r\n");
    assert!(is_reset(&mut client));
    assert_eq!(carried.count(StreamReason::ProxyHeader), 1);
    assert_eq!(backend.accepted(), 4, "nobody is bothered with it");
}

#[test]
fn the_next_target_is_taken_when_one_is_dead() {
    let (_closed, dead) = taken_port();
    let dead = SocketAddrV4::new(Ipv4Addr::LOCALHOST, dead);
    let backend = named("alive");
    let carried = Carried::start(Table::new("127.0.0.1/8", 80));
    let number = carried.add(|number| forward(number, &[dead, backend.addr]));
    for _ in 0..6 {
        assert_eq!(name_of(&mut carried.connect(number)), "alive");
    }
    let alone = carried.add(|number| forward(number, &[dead]));
    assert!(is_reset(&mut carried.connect(alone)));
    assert_eq!(carried.count(StreamReason::BackendRefused), 1);
    let nobody = carried.add(|number| {
        let app = BackendTarget::App { name: "gone".parse().unwrap(), port: 22 };
        Forward { proxy: Some(Arc::default()), ..Forward::new(Protocol::Tcp, number, app) }
    });
    assert!(is_reset(&mut carried.connect(nobody)));
    assert_eq!(carried.count(StreamReason::Stopped), 1);
}

#[test]
fn connections_go_where_the_fewest_are() {
    let (one, two) = (named("one"), named("two"));
    let carried = Carried::start(Table::new("127.0.0.1/8", 80));
    let policy = StreamPolicy { balance: Balance::LeastConnections, ..StreamPolicy::default() };
    let number = carried.add(|number| Forward {
        proxy: Some(policy.clone().into()),
        ..forward(number, &[one.addr, two.addr])
    });
    let mut held: Vec<(String, Client)> = Vec::new();
    for _ in 0..4 {
        let mut client = carried.connect(number);
        held.push((name_of(&mut client), client));
    }
    assert_eq!(held.iter().filter(|(name, _)| name == "one").count(), 2);
    held.retain(|(name, _)| name == "one");
    carried.until("they have ended", |carried| carried.load(number).open == 2);
    for _ in 0..2 {
        let mut client = carried.connect(number);
        let name = name_of(&mut client);
        assert_eq!(name, "two");
        held.push((name, client));
    }
}

/// A connection carries an epoch: whoever gets the address next is not spoken to through it.
#[test]
fn a_connection_ends_with_the_lease_that_it_was_made_to_and_the_next_follows_the_app() {
    let (first, second) = (Ipv4Addr::new(127, 0, 0, 2), Ipv4Addr::new(127, 0, 0, 3));
    let bind = |ip: Ipv4Addr, number| TcpListener::bind((ip, number)).unwrap();
    let old = Backend::on(bind(first, 0), |conn| named_script("old", conn));
    let new = Backend::on(bind(second, old.addr.port()), |conn| named_script("new", conn));
    let other = named("other");
    let mut table = Table::new("127.0.0.1/8", 80);
    table.change(Change::Lease(lease("gitea", first, 1, LeaseState::Bound)));
    let carried = Carried::start(table);
    let app = BackendTarget::App { name: "gitea".parse().unwrap(), port: old.addr.port() };
    let number = carried.add(|number| Forward {
        proxy: Some(Arc::default()),
        ..Forward::new(Protocol::Tcp, number, app.clone())
    });
    let untouched = carried.add(|number| forward(number, &[other.addr]));
    let mut client = carried.connect(number);
    let mut bystander = carried.connect(untouched);
    assert_eq!((name_of(&mut client), name_of(&mut bystander)), ("old".into(), "other".into()));

    // A renewal changes nothing.
    carried.change(Change::Lease(lease("gitea", first, 1, LeaseState::Bound)));
    assert!(echoes(&mut client, "still there"));
    carried.change(Change::Lease(lease("gitea", first, 1, LeaseState::Released)));
    assert!(is_reset(&mut client));
    assert_eq!(carried.count(StreamReason::TargetLeft), 1);
    carried.change(Change::Lease(lease("gitea", second, 2, LeaseState::Bound)));
    assert_eq!(name_of(&mut carried.connect(number)), "new");
    assert_eq!((old.accepted(), new.accepted()), (1, 1));
    assert!(echoes(&mut bystander, "all the time"));
}

fn named_script(name: &str, mut conn: BackendConn) {
    conn.write(&format!("{name}\n"));
    while let Some(line) = read_line(&mut conn.stream) {
        conn.write(&format!("{line}\n"));
    }
}

#[test]
fn ports_come_and_go_and_those_that_stay_are_not_touched() {
    let backend = echo();
    let carried = Carried::start(Table::new("127.0.0.1/8", 80));
    let stays = carried.add(|number| forward(number, &[backend.addr]));
    let mut kept = carried.connect(stays);
    assert!(echoes(&mut kept, "one"));
    let goes = carried.add(|number| forward(number, &[backend.addr]));
    let mut cut = carried.connect(goes);
    assert!(echoes(&mut cut, "two"));
    carried.change(Change::RemoveForward(Protocol::Tcp, goes));
    let refused = TcpStream::connect((Ipv4Addr::LOCALHOST, goes)).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused, "as soon as it is gone");
    assert!(is_reset(&mut cut));
    // The kernel's from now on: the port is not listened on either.
    let translated = carried.add(|number| forward(number, &[backend.addr]));
    carried.change(Change::Forward(
        Source::Api,
        Forward::new(Protocol::Tcp, translated, BackendTarget::Address(backend.addr)),
    ));
    assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, translated)).is_err());
    assert!(echoes(&mut kept, "three"));
    assert_eq!(carried.forwards.sockets().unwrap().len(), 2, "one for each thread");
}

#[test]
fn limits_hold_over_all_threads() {
    let backend = echo();
    let carried = Carried::start(Table::new("127.0.0.1/8", 80));
    let policy = StreamPolicy { max_connections: 2, idle_timeout: 1, ..StreamPolicy::default() };
    let number = carried
        .add(|number| Forward { proxy: Some(policy.clone().into()), ..forward(number, &[backend.addr]) });
    let (mut one, mut two) = (carried.connect(number), carried.connect(number));
    assert!(echoes(&mut one, "one") && echoes(&mut two, "two"));
    assert!(is_reset(&mut carried.connect(number)));
    assert_eq!(carried.count(StreamReason::ConnectionLimit), 1);
    // Silence ends them, and makes room.
    assert!(one.is_closed() && two.is_closed());
    assert_eq!(carried.count(StreamReason::IdleTimeout), 2);
    carried.until("there is room", |carried| carried.load(number).open == 0);
    assert!(echoes(&mut carried.connect(number), "three"));
}

#[test]
fn a_port_that_cannot_be_had_is_told_and_tried_again() {
    let (holder, number) = taken_tcp_port();
    let backend = echo();
    let carried = Carried::start(Table::new("127.0.0.1/8", 80));
    carried.change(Change::Forward(Source::Api, forward(number, &[backend.addr])));
    let troubles = carried.forwards.troubles();
    assert_eq!(troubles.len(), 1, "{troubles:?}");
    assert!(troubles[0].0 == port(number) && troubles[0].1.contains("in use"), "{troubles:?}");
    drop(holder);
    carried.change(Change::ForgetLease(Ipv4Addr::LOCALHOST));
    assert!(carried.forwards.troubles().is_empty());
    assert!(echoes(&mut carried.connect(number), "hello"));
}

#[test]
fn another_process_takes_the_ports_over_and_what_is_open_goes_on() {
    let backend = echo();
    let old = Carried::start(Table::new("127.0.0.1/8", 80));
    let number = old.add(|number| forward(number, &[backend.addr]));
    let mut kept = old.connect(number);
    assert!(echoes(&mut kept, "before"));

    let new = Carried::waiting(Table::new("127.0.0.1/8", 80));
    new.forwards.adopt(old.forwards.sockets().unwrap());
    new.change(Change::Forward(Source::Api, forward(number, &[backend.addr])));
    old.forwards.retire();
    let mut clients: Vec<Client> = (0..50).map(|_| new.connect(number)).collect();
    assert!(clients.iter_mut().all(|client| echoes(client, "after")));
    assert!(echoes(&mut kept, "still"));
    let by_old = old.load(number).taken - 1;
    // It still learns what ends.
    old.change(Change::RemoveForward(Protocol::Tcp, number));
    assert!(is_reset(&mut kept));
    old.ended();
    // It may have taken some before it heard that it retires.
    assert_eq!(new.load(number).taken + by_old, 50);
    assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, number)).is_ok(), "the other one listens on");
}

#[test]
fn a_stop_waits_for_what_moves_and_not_for_what_is_quiet() {
    let backend = echo();
    let carried = Carried::start(Table::new("127.0.0.1/8", 80));
    let number = carried.add(|number| forward(number, &[backend.addr]));
    let (mut busy, mut quiet) = (carried.connect(number), carried.connect(number));
    assert!(echoes(&mut busy, "hello") && echoes(&mut quiet, "hello"));
    carried.forwards.stop();
    assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, number)).is_err());
    quiet.stream.get_ref().set_nonblocking(true).unwrap();
    let ended = |client: &mut Client| !matches!(client.stream.fill_buf(), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock);
    while !ended(&mut quiet) {
        assert!(echoes(&mut busy, "at work"));
    }
    assert!(echoes(&mut busy, "the last"));
    assert!(busy.is_closed());
    carried.ended();
}

/// What leads back to a forwarded port would open connection after connection until there are as many as may be.
#[test]
fn a_way_that_leads_back_ends_at_the_first_step() {
    let carried = Carried::start(Table::new("127.0.0.1/8", 80));
    let here = |number| SocketAddrV4::new(Ipv4Addr::LOCALHOST, number);
    let itself = carried.add(|number| forward(number, &[here(number)]));
    let other = carried.add(|number| forward(number, &[here(itself)]));
    for number in [itself, other] {
        assert!(is_reset(&mut carried.connect(number)));
    }
    assert_eq!(carried.count(StreamReason::Loop), 2);
    assert_eq!(carried.load(itself).taken + carried.load(other).taken, 2, "nothing came back");
    assert_eq!(carried.forwards.count_at(port(itself), StreamReason::Loop), 1);
    // Another target is tried.
    let backend = named("echo");
    let both = carried.add(|number| forward(number, &[here(number), backend.addr]));
    for _ in 0..4 {
        assert_eq!(name_of(&mut carried.connect(both)), "echo");
    }
}
