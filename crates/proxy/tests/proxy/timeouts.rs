//! How exact time limits are: they are looked at once a second.

use std::io::Read;
use std::time::{Duration, Instant};

use proximity_proxy::Reason;
use proximity_table::{ProxySettings, Timeouts, VhostPolicy};

use crate::support::{Backend, Client, Proxy, Table, vhost, with};

/// A limit of one second holds for one, and has come after two; a loaded machine may take a moment more.
fn assert_about_a_second(what: &str, took: Duration) {
    assert!(took > Duration::from_millis(950), "{what} came after {took:?}");
    assert!(took < Duration::from_millis(2500), "{what} came after {took:?}");
}

/// What a client is answered whose request goes to a backend that does nothing but `say`, and how long that takes.
fn silent(say: &'static str, change: impl FnOnce(&mut VhostPolicy)) -> (u16, Vec<u8>, Duration, Proxy) {
    let backend = Backend::script(move |mut conn| {
        conn.request();
        conn.write(say);
        // Until the proxy goes.
        conn.request();
    });
    let proxy = Proxy::start(&Table::of(vec![with(vhost("wiki", &[backend.addr]), change)]));
    let mut client = proxy.connect();
    let began = Instant::now();
    client.send("GET / HTTP/1.1\r\nHost: wiki.prox.local\r\nConnection: close\r\n\r\n");
    let head = client.head();
    let mut rest = Vec::new();
    let _ = client.stream.read_to_end(&mut rest);
    (head.status, rest, began.elapsed(), proxy)
}

#[test]
fn a_backend_may_take_a_second_for_the_header() {
    let (status, _, took, proxy) = silent("", |policy| {
        policy.timeouts = Timeouts { header: 1, ..Timeouts::default() };
    });
    assert_eq!((status, proxy.count(Reason::BackendSlow)), (504, 1));
    assert_about_a_second("timeouts.header", took);
}

#[test]
fn a_second_may_pass_between_two_pieces_of_a_body() {
    let (status, body, took, proxy) = silent("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc", |policy| {
        policy.timeouts = Timeouts { idle: 1, ..Timeouts::default() };
    });
    assert_eq!((status, &body[..], proxy.count(Reason::BackendCut)), (200, &b"abc"[..], 1));
    assert_about_a_second("timeouts.idle", took);
}

#[test]
fn all_may_take_a_second() {
    let (status, _, took, proxy) = silent("", |policy| {
        policy.timeouts = Timeouts { total: 1, ..Timeouts::default() };
    });
    assert_eq!((status, proxy.count(Reason::TotalTimeout)), (504, 1));
    assert_about_a_second("timeouts.total", took);
}

#[test]
fn clients_have_a_second_for_a_header_and_between_requests() {
    let backend = Backend::answering("");
    let settings = ProxySettings { head_timeout: 1, idle_timeout: 1, ..ProxySettings::default() };
    let proxy = Proxy::with(&Table::of(vec![vhost("wiki", &[backend.addr])]), settings, None);
    let closed_after = |client: &mut Client| {
        let began = Instant::now();
        let _ = client.stream.read_to_end(&mut Vec::new());
        began.elapsed()
    };
    let mut client = proxy.connect();
    client.send("GET / HTTP/1.1\r\nHost:");
    assert_about_a_second("head_timeout", closed_after(&mut client));
    let mut client = proxy.connect();
    client.send("GET / HTTP/1.1\r\nHost: wiki.prox.local\r\n\r\n");
    assert_eq!(client.response().status, 200);
    assert_about_a_second("idle_timeout", closed_after(&mut client));
}
