//! The PROXY protocol on both sides: who a connection is from, told in front of its first octet.

use std::io::Read;
use std::sync::Mutex;
use std::sync::mpsc::channel;

use proximity_proxy::Reason;
use proximity_table::{ProxyProtocol, ProxySettings};

use crate::support::{Backend, Client, PATIENCE, Proxy, Table, read_line, vhost, with};

const GET: &str = "GET / HTTP/1.1\r\nHost: wiki.prox.local\r\n\r\n";

fn believing(networks: &[&str]) -> ProxySettings {
    let proxy_protocol = networks.iter().map(|network| network.parse().unwrap()).collect();
    ProxySettings { proxy_protocol, head_timeout: 1, ..ProxySettings::default() }
}

fn send(client: &mut Client, octets: &[u8]) {
    std::io::Write::write_all(client.stream.get_mut(), octets).unwrap();
}

/// A version 2 header from 203.0.113.7:4711 to 10.20.0.1:80.
fn v2(command: u8) -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
    header.extend([0x20 | command, 0x11, 0, 12, 203, 0, 113, 7, 10, 20, 0, 1]);
    header.extend([4711_u16.to_be_bytes(), 80_u16.to_be_bytes()].concat());
    header
}

#[test]
fn who_a_header_announces_is_the_client() {
    let backend = Backend::answering("");
    let table = Table::of(vec![vhost("wiki", &[backend.addr])]);
    let proxy = Proxy::with(&table, believing(&["127.0.0.0/8"]), None);
    let v1: &[u8] = b"PROXY TCP4 203.0.113.7 10.20.0.1 4711 80\r\n";
    let v6: &[u8] = b"PROXY TCP6 2001:db8::7 2001:db8::1 4711 80\r\n";
    for (header, ip) in [
        (v1, "203.0.113.7"),
        (v6, "2001:db8::7"),
        (&v2(1), "203.0.113.7"),
        // Whoever announces itself is the client.
        (b"PROXY UNKNOWN\r\n", "127.0.0.1"),
        (&v2(0), "127.0.0.1"),
    ] {
        let mut client = proxy.connect();
        send(&mut client, &[header, GET.as_bytes()].concat());
        assert_eq!(client.response().status, 200, "{header:?}");
        // It holds for the whole connection.
        client.send(GET);
        assert_eq!(client.response().status, 200);
        for request in backend.requests().iter().rev().take(2) {
            assert_eq!(request.header("x-real-ip"), [ip], "{header:?}");
            assert_eq!(request.header("x-forwarded-for"), [ip]);
        }
    }
}

#[test]
fn a_header_may_come_in_pieces() {
    let backend = Backend::answering("");
    let table = Table::of(vec![vhost("wiki", &[backend.addr])]);
    let proxy = Proxy::with(&table, ProxySettings { head_timeout: 20, ..believing(&["127.0.0.0/8"]) }, None);
    let mut client = proxy.connect();
    let header = [v2(1).as_slice(), GET.as_bytes()].concat();
    for piece in header.chunks(5) {
        send(&mut client, piece);
        // What another connection gets an answer to has been read after this.
        assert!(proxy.connect().rest().is_empty());
    }
    assert_eq!(client.response().status, 200);
    assert_eq!(backend.requests()[0].header("x-real-ip"), ["203.0.113.7"]);
}

#[test]
fn a_connection_without_its_header_is_closed_unheard() {
    let backend = Backend::answering("");
    let table = Table::of(vec![vhost("wiki", &[backend.addr])]);
    let proxy = Proxy::with(&table, believing(&["127.0.0.0/8"]), None);
    let long = format!("PROXY TCP4 {} \r\n", "1".repeat(200));
    let begun = &v2(1)[..20];
    let cases: [&[u8]; 6] = [
        GET.as_bytes(),
        b"PROXY TCP4 203.0.113.7 10.20.0.1 4711\r\n",
        b"PROXY TCP4 203.0.113.7 10.20.0.1 4711 80\n",
        b"PROXY TCP4 evil 10.20.0.1 4711 80\r\n",
        long.as_bytes(),
        // Begun and not ended: as slow as a head may be.
        begun,
    ];
    for (count, header) in (1..).zip(cases) {
        let mut client = proxy.connect();
        send(&mut client, header);
        if header != begun {
            send(&mut client, GET.as_bytes());
        }
        assert!(client.is_closed(), "{header:?}");
        proxy.until("counted", |totals| totals.of(Reason::ProxyHeader) == count);
    }
    assert_eq!(backend.requests().len(), 0);
}

#[test]
fn a_header_from_elsewhere_is_no_request() {
    let backend = Backend::answering("");
    let table = Table::of(vec![vhost("wiki", &[backend.addr])]);
    let proxy = Proxy::with(&table, believing(&["10.0.0.0/8"]), None);
    for header in [&b"PROXY TCP4 203.0.113.7 10.20.0.1 4711 80\r\n"[..], &v2(1)] {
        let mut client = proxy.connect();
        send(&mut client, &[header, GET.as_bytes()].concat());
        assert_eq!(client.response().status, 400);
        assert!(client.is_closed());
    }
    assert_eq!(proxy.get("wiki.prox.local", "/").status, 200);
    assert_eq!(backend.requests().len(), 1);
}

#[test]
fn a_backend_is_told_who_connects_and_its_connection_serves_nobody_else() {
    for version in [ProxyProtocol::V1, ProxyProtocol::V2] {
        let (heard, headers) = channel();
        let heard = Mutex::new(heard);
        let backend = Backend::script(move |mut conn| {
            let header = match version {
                ProxyProtocol::V1 => read_line(&mut conn.stream).unwrap().into_bytes(),
                ProxyProtocol::V2 => {
                    let mut header = vec![0; 28];
                    conn.stream.read_exact(&mut header).unwrap();
                    header
                }
            };
            heard.lock().unwrap().send(header).unwrap();
            while conn.request().is_some() {
                conn.answer("hello");
            }
        });
        let wiki = with(vhost("wiki", &[backend.addr]), |policy| policy.send_proxy_protocol = Some(version));
        let proxy = Proxy::start(&Table::of(vec![wiki]));
        let mut client = proxy.connect();
        let ports = [client.stream.get_ref().local_addr().unwrap().port(), proxy.addr.port()];
        for count in 1..=2 {
            client.send(GET);
            assert_eq!(client.response().text(), "hello");
            let header = headers.recv_timeout(PATIENCE).unwrap();
            match version {
                ProxyProtocol::V1 => assert_eq!(
                    String::from_utf8(header).unwrap(),
                    format!("PROXY TCP4 127.0.0.1 127.0.0.1 {} {}", ports[0], ports[1])
                ),
                ProxyProtocol::V2 => {
                    let ports = ports.map(u16::to_be_bytes).concat();
                    assert_eq!(&header[..16], b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c");
                    assert_eq!(header[16..], [&[127, 0, 0, 1, 127, 0, 0, 1], &ports[..]].concat());
                }
            }
            assert_eq!(backend.accepted(), count);
        }
    }
}
