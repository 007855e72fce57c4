//! Limits on what clients may send and hold, and who may come at all.

use std::io::Write;
use std::net::Ipv4Addr;
use std::sync::Mutex;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use proximity_proxy::Reason;
use proximity_table::{
    Access, Change, LeaseState, ProxySettings, Rate, Source, Timeouts, Vhost, VhostLimits, VhostPolicy,
};

use crate::support::{Backend, Client, PATIENCE, Proxy, Table, lease, vhost, with};

fn get(client: &mut Client) -> u16 {
    client.send("GET / HTTP/1.1\r\nHost: wiki.prox.local\r\n\r\n");
    client.response().status
}

fn proxy(backend: &Backend, settings: ProxySettings, change: impl FnOnce(&mut VhostPolicy)) -> Proxy {
    Proxy::with(&Table::of(vec![with(vhost("wiki", &[backend.addr]), change)]), settings, None)
}

#[test]
fn a_head_is_as_long_as_it_may_be_and_no_longer() {
    for max_header in [4 << 10, 20 << 10, 60 << 10] {
        let backend = Backend::answering("");
        let proxy = proxy(&backend, ProxySettings { max_header, ..ProxySettings::default() }, |_| {});
        let head = |length: usize| {
            let frame = "GET / HTTP/1.1\r\nHost: wiki.prox.local\r\nX: \r\n\r\n".len();
            let filling = "x".repeat(length - frame);
            format!("GET / HTTP/1.1\r\nHost: wiki.prox.local\r\nX: {filling}\r\n\r\n")
        };
        let most = max_header as usize;
        for (length, status) in [(most - 1, 200), (most, 200), (most + 1, 431), (most + 5000, 431)] {
            let mut client = proxy.connect();
            client.send(&head(length));
            assert_eq!(client.response().status, status, "{length} of {most}");
        }
        // What comes behind a head does not count.
        let mut client = proxy.connect();
        client.send(&format!("{}{}", head(most), head(most)));
        assert_eq!((client.response().status, client.response().status), (200, 200), "{most}");
        assert_eq!(proxy.count(Reason::HeadTooLarge), 2);
    }
}

#[test]
fn a_body_that_is_too_long_is_refused_before_it_comes() {
    let backend = Backend::answering("stored");
    let proxy = proxy(&backend, ProxySettings { max_body: 5, ..ProxySettings::default() }, |_| {});
    let mut client = proxy.connect();
    let upload =
        |length: usize| format!("POST / HTTP/1.1\r\nHost: wiki.prox.local\r\nContent-Length: {length}\r\n");
    client.send(&format!("{}\r\n12345", upload(5)));
    assert_eq!(client.response().text(), "stored");
    // Not an octet of the body is sent.
    client.send(&format!("{}Expect: 100-continue\r\n\r\n", upload(6)));
    let page = client.response();
    assert_eq!((page.status, page.header("connection")), (413, vec!["close"]));
    assert!(client.is_closed());
    assert_eq!((proxy.count(Reason::BodyTooLarge), backend.requests().len()), (1, 1));
}

#[test]
fn a_chunked_body_is_cut_where_it_becomes_too_long() {
    let backend = Backend::answering("stored");
    // A vhost's own limit goes before that of all.
    let settings = ProxySettings { max_body: 1, ..ProxySettings::default() };
    let proxy = proxy(&backend, settings, |policy| policy.limits.body = 5);
    let mut client = proxy.connect();
    let head = "POST / HTTP/1.1\r\nHost: wiki.prox.local\r\nTransfer-Encoding: chunked\r\n\r\n";
    client.send(&format!("{head}3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"));
    assert_eq!(client.response().text(), "stored");
    client.send(&format!(
        "{head}3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\nGET /next HTTP/1.1\r\nHost: wiki.prox.local\r\n\r\n"
    ));
    assert_eq!(client.response().status, 413);
    assert!(client.is_closed());
    proxy.until("counted", |totals| totals.of(Reason::BodyTooLarge) == 1);
    assert_eq!(backend.requests()[0].body, b"abcde");
    assert!(!backend.requests().iter().any(|request| request.line.contains("/next")));
}

#[test]
fn a_head_that_drips_is_cut_however_busy_it_is() {
    let backend = Backend::answering("");
    let proxy = proxy(&backend, ProxySettings { head_timeout: 1, ..ProxySettings::default() }, |_| {});
    let mut client = proxy.connect();
    // The second request of a connection as well as the first.
    assert_eq!(get(&mut client), 200);
    client.send("GET / HTTP/1.1\r\nHost: wiki.prox.local\r\n");
    let began = Instant::now();
    let mut octet = [0];
    client.stream.get_ref().set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    while client.stream.get_ref().peek(&mut octet).is_err() {
        assert!(began.elapsed() < PATIENCE, "never cut");
        if client.stream.get_mut().write_all(b"X: 1\r\n").is_err() {
            break;
        }
    }
    client.stream.get_ref().set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(client.response().status, 408);
    assert_eq!(proxy.count(Reason::HeadTimeout), 1);
}

#[test]
fn an_upload_that_stops_is_given_up() {
    let backend = Backend::script(|mut conn| drop(conn.request()));
    let proxy = proxy(&backend, ProxySettings::default(), |policy| {
        policy.timeouts = Timeouts { header: 1, ..Timeouts::default() };
    });
    let mut client = proxy.connect();
    client.send("POST / HTTP/1.1\r\nHost: wiki.prox.local\r\nContent-Length: 100\r\n\r\nsome");
    assert_eq!(client.response().status, 408);
    assert!(client.is_closed());
    assert_eq!(proxy.count(Reason::UploadSlow), 1);
}

#[test]
fn a_client_that_does_not_read_is_cut() {
    let (gone, ended) = channel();
    let gone = Mutex::new(gone);
    let backend = Backend::script(move |mut conn| {
        conn.request();
        conn.write("HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n");
        while conn.stream.get_mut().write_all(&[b'x'; 1 << 16]).is_ok() {}
        gone.lock().unwrap().send(()).unwrap();
    });
    let proxy = proxy(&backend, ProxySettings::default(), |policy| {
        policy.timeouts = Timeouts { idle: 1, ..Timeouts::default() };
    });
    let mut client = proxy.connect();
    client.send("GET / HTTP/1.1\r\nHost: wiki.prox.local\r\n\r\n");
    assert_eq!(client.head().status, 200);
    // The backend is let go, too.
    ended.recv_timeout(PATIENCE).unwrap();
    proxy.until("cut", |totals| totals.open == 0);
    assert_eq!(proxy.count(Reason::ClientSlow), 1, "{:?}", proxy.totals());
}

#[test]
fn one_client_has_so_many_connections() {
    let backend = Backend::answering("");
    let settings = ProxySettings { client_connections: 2, ..ProxySettings::default() };
    let proxy = proxy(&backend, settings, |_| {});
    let mut held = [proxy.connect_from(2), proxy.connect_from(2)];
    for client in &mut held {
        assert_eq!(get(client), 200);
    }
    assert!(proxy.connect_from(2).is_closed());
    assert_eq!(proxy.count(Reason::ClientConnections), 1);
    assert_eq!(get(&mut proxy.connect_from(3)), 200, "another client is not meant");
    drop(held);
    proxy.until("closed", |totals| totals.open == 0);
    assert_eq!(get(&mut proxy.connect_from(2)), 200);
}

#[test]
fn one_client_has_so_many_connections_at_work_for_a_vhost() {
    let (arrived, arrivals) = channel();
    let (release, released) = channel::<()>();
    let (arrived, released) = (Mutex::new(arrived), Mutex::new(released));
    let slow = Backend::script(move |mut conn| {
        conn.request();
        arrived.lock().unwrap().send(()).unwrap();
        released.lock().unwrap().recv_timeout(PATIENCE).unwrap();
        conn.answer("slow");
    });
    let other = Backend::answering("other");
    let limited = |policy: &mut VhostPolicy| {
        policy.limits = VhostLimits { client_connections: 1, ..VhostLimits::default() };
    };
    let table = Table::of(vec![with(vhost("wiki", &[slow.addr]), limited), vhost("other", &[other.addr])]);
    let proxy = Proxy::start(&table);
    let mut first = proxy.connect_from(2);
    first.send("GET / HTTP/1.1\r\nHost: wiki.prox.local\r\n\r\n");
    arrivals.recv_timeout(PATIENCE).unwrap();
    let mut second = proxy.connect_from(2);
    assert_eq!(get(&mut second), 429);
    assert_eq!(proxy.count(Reason::ClientConnections), 1);
    second.send("GET / HTTP/1.1\r\nHost: other.prox.local\r\n\r\n");
    assert_eq!(second.response().text(), "other");
    let mut third = proxy.connect_from(3);
    third.send("GET / HTTP/1.1\r\nHost: wiki.prox.local\r\n\r\n");
    arrivals.recv_timeout(PATIENCE).unwrap();
    for client in [&mut first, &mut third] {
        release.send(()).unwrap();
        assert_eq!(client.response().text(), "slow");
    }
    release.send(()).unwrap();
    assert_eq!(get(&mut second), 200);
}

#[test]
fn requests_beyond_the_rate_are_told_when_to_come_again() {
    let rate = Some(Rate { per_second: 1, burst: 3 });
    let of_all = ProxySettings { client_rate: rate, ..ProxySettings::default() };
    for (settings, own) in [(of_all, None), (ProxySettings::default(), rate)] {
        let backend = Backend::answering("");
        let proxy = proxy(&backend, settings, |policy| policy.limits.client_rate = own);
        let began = Instant::now();
        let mut client = proxy.connect_from(2);
        let mut passed = 0;
        let page = loop {
            client.send("GET / HTTP/1.1\r\nHost: wiki.prox.local\r\n\r\n");
            let response = client.response();
            if response.status != 200 {
                break response;
            }
            passed += 1;
            assert!(passed < 100);
        };
        let allowed = 3 + began.elapsed().as_secs() as usize + 1;
        assert!((3..=allowed).contains(&passed), "{passed} of {allowed}");
        assert_eq!((page.status, page.header("retry-after")), (429, vec!["1"]));
        assert_eq!((proxy.count(Reason::RateLimited), backend.requests().len()), (1, passed));
        assert_eq!(get(&mut proxy.connect_from(3)), 200, "another client is not meant");
        // It is told the truth.
        std::thread::sleep(Duration::from_secs(1));
        assert_eq!(get(&mut client), 200);
    }
}

#[test]
fn networks_are_let_in_and_kept_out() {
    let access = |allow: &[&str], deny: &[&str]| Access {
        allow: allow.iter().map(|network| network.parse().unwrap()).collect(),
        deny: deny.iter().map(|network| network.parse().unwrap()).collect(),
        apps: Vec::new(),
    };
    for (rules, last, status) in [
        (access(&["127.0.0.2/32"], &[]), 2, 200),
        (access(&["127.0.0.2/32"], &[]), 3, 403),
        (access(&[], &["127.0.0.2/32"]), 2, 403),
        (access(&[], &["127.0.0.2/32"]), 3, 200),
        (access(&["127.0.0.0/8"], &["127.0.0.2/32"]), 2, 403),
        (access(&["127.0.0.0/8"], &["127.0.0.2/32"]), 3, 200),
    ] {
        let backend = Backend::answering("");
        let proxy = proxy(&backend, ProxySettings::default(), |policy| policy.access = rules.clone());
        assert_eq!(get(&mut proxy.connect_from(last)), status, "{rules:?} {last}");
        let refused = u64::from(status == 403);
        assert_eq!((proxy.count(Reason::Forbidden), backend.requests().len() as u64), (refused, 1 - refused));
    }
}

#[test]
fn a_disabled_vhost_says_so_whoever_asks_and_however_often() {
    let backend = Backend::answering("");
    let guarded = with(vhost("wiki", &[backend.addr]), |policy| {
        policy.limits.client_rate = Some(Rate { per_second: 1, burst: 1 });
        policy.access.deny = vec!["127.0.0.2/32".parse().unwrap()];
    });
    let proxy = Proxy::start(&Table::of(vec![Vhost { enabled: false, ..guarded }]));
    let statuses = [1, 1, 1, 2].map(|from| {
        let mut client = proxy.connect_from(from);
        client.send("GET / HTTP/1.1\r\nHost: wiki.prox.local\r\nAccept: application/json\r\n\r\n");
        let answer = client.response();
        assert!(answer.text().contains("\"disabled\""), "{}", answer.text());
        answer.status
    });
    assert_eq!(statuses, [503; 4]);
    assert_eq!((proxy.count(Reason::Disabled), proxy.count(Reason::RateLimited)), (4, 0));
}

#[test]
fn rules_are_for_whom_a_trusted_proxy_asks() {
    let backend = Backend::answering("");
    let settings = ProxySettings {
        trusted_proxies: vec!["127.0.0.1/32".parse().unwrap()],
        client_rate: Some(Rate { per_second: 1, burst: 1 }),
        ..ProxySettings::default()
    };
    let proxy = proxy(&backend, settings, |policy| {
        policy.access.allow = vec!["203.0.113.0/24".parse().unwrap()];
    });
    let ask = |from: u8, told: &str| {
        let mut client = proxy.connect_from(from);
        client.send(&format!("GET / HTTP/1.1\r\nHost: wiki.prox.local\r\nX-Forwarded-For: {told}\r\n\r\n"));
        client.response().status
    };
    assert_eq!(ask(1, "203.0.113.7"), 200);
    assert_eq!(ask(1, "203.0.113.8"), 200, "the rate is that of the client, not of the proxy");
    assert_eq!(ask(1, "198.51.100.1"), 403);
    assert_eq!(ask(2, "203.0.113.9"), 403, "a stranger says so");
}

#[test]
fn apps_are_let_in_by_their_lease() {
    let backend = Backend::answering("");
    let mut table = Table::new("127.0.0.1/8", 80);
    let wiki = with(vhost("wiki", &[backend.addr]), |policy| {
        policy.access.apps = vec!["prometheus".parse().unwrap()];
    });
    table.change(Change::Vhost(Source::Config, wiki.into()));
    let at = |last| Ipv4Addr::new(127, 0, 0, last);
    table.change(Change::Lease(lease("prometheus", at(2), 1, LeaseState::Bound)));
    table.change(Change::Lease(lease("other", at(3), 2, LeaseState::Bound)));
    let proxy = Proxy::start(&table);
    let mut client = proxy.connect_from(2);
    assert_eq!(get(&mut client), 200);
    assert_eq!(get(&mut proxy.connect_from(3)), 403);
    assert_eq!(get(&mut proxy.connect_from(4)), 403);
    // The address goes to another app: it has lost its right on a connection that is open, too.
    table.change(Change::Lease(lease("thief", at(2), 3, LeaseState::Bound)));
    assert_eq!(get(&mut client), 403);
}
