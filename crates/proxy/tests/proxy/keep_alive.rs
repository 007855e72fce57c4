use std::net::Ipv4Addr;
use std::sync::Mutex;
use std::sync::mpsc::channel;

use proximity_proxy::Reason;
use proximity_table::{Change, LeaseState, Source};

use crate::support::{Backend, Client, Proxy, Table, lease, vhost};

fn get(client: &mut Client) -> u16 {
    client.send("GET / HTTP/1.1\r\nHost: wiki.prox.local\r\n\r\n");
    client.response().status
}

#[test]
fn connections_are_kept_on_both_sides() {
    let backend = Backend::answering("hello");
    let proxy = Proxy::start(&Table::of(vec![vhost("wiki", &[backend.addr])]));
    let mut client = proxy.connect();
    for _ in 0..50 {
        assert_eq!(get(&mut client), 200);
    }
    // Another client finds the kept connection, too.
    assert_eq!(get(&mut proxy.connect()), 200);
    assert_eq!(backend.accepted(), 1);
    let totals = proxy.totals();
    assert_eq!((totals.connections, totals.upstream_connects, totals.upstream_reuses), (2, 1, 50));
    proxy.until("all counted", |totals| totals.responses[2] == 51);
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let backend = Backend::script(|mut conn| {
        while let Some(request) = conn.request() {
            conn.answer(request.line.split(' ').nth(1).unwrap());
        }
    });
    let proxy = Proxy::start(&Table::of(vec![vhost("wiki", &[backend.addr])]));
    let mut client = proxy.connect();
    let request = |n| format!("POST /{n} HTTP/1.1\r\nHost: wiki.prox.local\r\nContent-Length: 2\r\n\r\n\n\n");
    client.send(&(0..20).map(request).collect::<String>());
    for n in 0..20 {
        assert_eq!(client.response().text(), format!("/{n}"));
    }
}

/// A backend whose first connection answers once and closes when the second request is there.
fn closes_on_the_second_request() -> Backend {
    Backend::script(|mut conn| {
        conn.request();
        conn.answer("first");
        while conn.request().is_some() && conn.number > 0 {
            conn.answer("again");
        }
    })
}

#[test]
fn a_get_on_a_dying_connection_is_sent_again_once() {
    let backend = closes_on_the_second_request();
    let proxy = Proxy::start(&Table::of(vec![vhost("wiki", &[backend.addr])]));
    let mut client = proxy.connect();
    assert_eq!((get(&mut client), get(&mut client)), (200, 200));
    assert_eq!((backend.accepted(), backend.requests().len()), (2, 3));
    assert_eq!(proxy.totals().retries, 1);
}

#[test]
fn a_post_is_never_sent_twice() {
    for body in ["", "x=1"] {
        let backend = closes_on_the_second_request();
        let proxy = Proxy::start(&Table::of(vec![vhost("wiki", &[backend.addr])]));
        let mut client = proxy.connect();
        assert_eq!(get(&mut client), 200);
        let length = body.len();
        client.send(&format!(
            "POST /pay HTTP/1.1\r\nHost: wiki.prox.local\r\nContent-Length: {length}\r\n\r\n{body}"
        ));
        assert_eq!(client.response().status, 502);
        let posts = backend.requests().iter().filter(|request| request.line.starts_with("POST")).count();
        assert_eq!((posts, proxy.totals().retries), (1, 0));
        assert_eq!(proxy.count(Reason::BackendBroke), 1);
    }
}

#[test]
fn a_connection_closed_in_between_is_not_used() {
    let (closed, wait) = channel();
    let closed = Mutex::new(closed);
    let backend = Backend::script(move |mut conn| {
        conn.request();
        conn.answer("once");
        drop(conn);
        closed.lock().unwrap().send(()).unwrap();
    });
    let proxy = Proxy::start(&Table::of(vec![vhost("wiki", &[backend.addr])]));
    let mut client = proxy.connect();
    for _ in 0..20 {
        // A POST shows it: it would fail if it were sent on the dead connection and lost.
        client.send("POST / HTTP/1.1\r\nHost: wiki.prox.local\r\nContent-Length: 1\r\n\r\nx");
        assert_eq!(client.response().status, 200);
        wait.recv().unwrap();
        // The end of the connection is an event like others: give it a turn.
        assert_eq!(proxy.get("nobody.prox.local", "/").status, 404);
    }
    assert_eq!(backend.accepted(), 20);
}

#[test]
fn the_next_owner_of_an_address_never_gets_a_kept_connection() {
    let backend = Backend::answering("hello");
    let mut table = Table::new("127.0.0.1/8", 80);
    let ip = Ipv4Addr::LOCALHOST;
    table.change(Change::Lease(lease("wiki", ip, 1, LeaseState::Bound)));
    table.change(Change::Vhost(Source::Config, vhost("wiki", &[backend.addr]).into()));
    let proxy = Proxy::start(&table);
    let mut client = proxy.connect();
    assert_eq!((get(&mut client), get(&mut client), backend.accepted()), (200, 200, 1));
    table.change(Change::Lease(lease("shop", ip, 2, LeaseState::Bound)));
    assert_eq!((get(&mut client), backend.accepted()), (200, 2));
}
