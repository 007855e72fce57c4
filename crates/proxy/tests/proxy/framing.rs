use std::io::Write;

use proximity_proxy::Reason;
use proximity_table::ProxySettings;

use crate::support::{Backend, Proxy, Table, vhost};

/// Sends `head` and a request that must never reach the backend.
fn refused(head: &str, reason: Reason) {
    let what = &head[..head.len().min(150)];
    let backend = Backend::answering("reached");
    let proxy = Proxy::start(&Table::of(vec![vhost("wiki", &[backend.addr])]));
    let mut client = proxy.connect();
    client.send(&format!("{head}GET /smuggled HTTP/1.1\r\nHost: wiki.prox.local\r\n\r\n"));
    let answer = client.response();
    assert_eq!(answer.status, reason.status(), "{what:?}");
    assert!(client.is_closed(), "{what:?}");
    proxy.until(&format!("counted for {what:?}"), |totals| totals.of(reason) == 1);
    assert_eq!(backend.requests().len(), 0, "{what:?} reached the backend");
}

#[test]
fn requests_that_two_parsers_could_read_differently_are_refused() {
    let head =
        |fields: &str| format!("POST / HTTP/1.1\r\nHost: wiki.prox.local\r\n{fields}\r\n\r\n0\r\n\r\n");
    refused(&head("Content-Length: 5\r\nTransfer-Encoding: chunked"), Reason::AmbiguousLength);
    refused(&head("Transfer-Encoding: chunked\r\nContent-Length: 5"), Reason::AmbiguousLength);
    refused(&head("Content-Length: 5\r\nContent-Length: 6"), Reason::AmbiguousLength);
    refused(&head("Content-Length: 5\r\nContent-Length: 5"), Reason::AmbiguousLength);
    refused(&head("Content-Length: -5"), Reason::AmbiguousLength);
    refused(&head("Transfer-Encoding: gzip, chunked"), Reason::TransferCoding);
    refused(&head("X: a\r\n continued"), Reason::FoldedHeader);
    refused(&head("Content-Length : 5"), Reason::SpaceBeforeColon);
    refused(&head("Host: wiki.prox.local"), Reason::DuplicateHost);
    refused("GET / HTTP/1.1\nHost: wiki.prox.local\n\n", Reason::BareLineFeed);
    refused("GET / HTTP/1.1\r\nHost: wiki.prox.local\r\nX: a\n\r\n", Reason::BareLineFeed);
    refused("GET  / HTTP/1.1\r\nHost: wiki.prox.local\r\n\r\n", Reason::Malformed);
    refused("GET / HTTP/1.1\r\nHost: wiki.prox.local\r\nX: a\0b\r\n\r\n", Reason::Malformed);
    refused(&format!("GET / HTTP/1.1\r\nX: {}", "x".repeat(70_000)), Reason::HeadTooLarge);
}

#[test]
fn a_bad_host_is_refused_and_the_connection_lives() {
    let backend = Backend::answering("reached");
    let proxy = Proxy::start(&Table::of(vec![vhost("wiki", &[backend.addr])]));
    let mut client = proxy.connect();
    let mut ask = |line: &str, hosts: &str| {
        client.send(&format!("{line} HTTP/1.1\r\n{hosts}\r\n"));
        client.response().status
    };
    assert_eq!(ask("GET /", ""), 400);
    assert_eq!(ask("GET /", "Host: wiki.prox.local, other\r\n"), 400);
    assert_eq!(ask("GET ftp://wiki.prox.local/", "Host: wiki.prox.local\r\n"), 400);
    assert_eq!(ask("CONNECT wiki.prox.local:443", "Host: wiki.prox.local\r\n"), 405);
    assert_eq!(ask("GET /", "Host: wiki.prox.local\r\n"), 200);
    for reason in [Reason::MissingHost, Reason::InvalidHost, Reason::InvalidTarget, Reason::ConnectMethod] {
        assert_eq!(proxy.count(reason), 1, "{reason:?}");
    }
    assert_eq!(backend.requests().len(), 1);
}

#[test]
fn a_bad_chunk_ends_the_upload() {
    let backend = Backend::script(|mut conn| drop(conn.request()));
    let proxy = Proxy::start(&Table::of(vec![vhost("wiki", &[backend.addr])]));
    let mut client = proxy.connect();
    client.send("POST / HTTP/1.1\r\nHost: wiki.prox.local\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabcd\r\n0\r\n\r\n");
    proxy.until("refused", |totals| totals.of(Reason::BadChunk) == 1);
    assert_eq!(backend.requests().iter().filter(|request| request.body == b"abcd").count(), 0);
}

#[test]
fn a_slow_head_is_cut_and_an_idle_client_is_closed() {
    let settings = ProxySettings { head_timeout: 1, idle_timeout: 1, ..ProxySettings::default() };
    let proxy = Proxy::with(&Table::of(vec![]), settings, None);
    let (mut slow, mut idle) = (proxy.connect(), proxy.connect());
    slow.send("GET / HTTP/1.1\r\nHost: wiki");
    assert_eq!(slow.response().status, 408);
    assert!(slow.is_closed() && idle.is_closed());
    assert_eq!(proxy.count(Reason::HeadTimeout), 1);
}

#[test]
fn connections_are_bounded() {
    let backend = Backend::answering("hello");
    let settings = ProxySettings { max_connections: 2, ..ProxySettings::default() };
    let proxy = Proxy::with(&Table::of(vec![vhost("wiki", &[backend.addr])]), settings, None);
    let mut held = [proxy.connect(), proxy.connect()];
    for client in &mut held {
        client.send("GET / HTTP/1.1\r\nHost: wiki.prox.local\r\n\r\n");
        assert_eq!(client.response().status, 200);
    }
    assert!(proxy.connect().is_closed());
    assert_eq!(proxy.count(Reason::ConnectionLimit), 1);
    drop(held);
    proxy.until("closed", |totals| totals.open == 0);
    assert_eq!(proxy.get("wiki.prox.local", "/").status, 200);
}

#[test]
fn garbage_never_stops_the_proxy() {
    let backend = Backend::answering("alive");
    let proxy = Proxy::start(&Table::of(vec![vhost("wiki", &[backend.addr])]));
    let valid = "POST /a?b HTTP/1.1\r\nHost: wiki.prox.local\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    let mut answers = 0;
    for round in 0..1000 {
        let mut bytes = valid.as_bytes().to_vec();
        if round % 4 == 0 {
            bytes = (0..random(300)).map(|_| random(256) as u8).collect();
        }
        for _ in 0..random(6) {
            let at = random(bytes.len() + 1);
            match random(3) {
                0 if at < bytes.len() => bytes[at] = random(256) as u8,
                1 if at < bytes.len() => drop(bytes.remove(at)),
                _ => bytes.insert(at, b"\r\n\0: ;\xff"[random(7)]),
            }
        }
        let mut client = proxy.connect();
        client.stream.get_mut().write_all(&bytes).unwrap();
        answers += usize::from(client.rest().starts_with(b"HTTP/1.1 "));
    }
    assert!(answers > 100, "only {answers} of the mutants were answered at all");
    let response = proxy.get("wiki.prox.local", "/");
    assert_eq!((response.status, response.text().as_str()), (200, "alive"));
    proxy.until("all closed", |totals| totals.open == 0);
}
