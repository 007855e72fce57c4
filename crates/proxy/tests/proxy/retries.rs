//! What is tried again and what is not, how long a backend may take, and how many requests it gets at once.

use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use proximity_proxy::Reason;
use proximity_table::{
    BackendTarget, Change, LeaseState, PassivePolicy, RetryPolicy, Source, Timeouts, Vhost, VhostLimits,
    VhostPolicy,
};

use crate::scripts::{breaking, nobody, stalling, working};
use crate::support::{Backend, Client, PATIENCE, Proxy, Table, lease, vhost, with};

/// A proxy of one vhost whose backends are never paused, so that each test sees what one request does.
fn proxy(backends: &[SocketAddrV4], change: impl FnOnce(&mut VhostPolicy)) -> Proxy {
    let wiki = with(vhost("wiki", backends), |policy| {
        policy.passive = PassivePolicy { failures: 0, ..PassivePolicy::default() };
        change(policy);
    });
    Proxy::start(&Table::of(vec![wiki]))
}

fn send(proxy: &Proxy, method: &str, body: &str) -> Client {
    let mut client = proxy.connect();
    let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
    client.send(&format!("{method} /x HTTP/1.1\r\nHost: wiki.prox.local\r\n{length}\r\n{body}"));
    client
}

// RFC 9110 §9.2.2: "A proxy MUST NOT automatically retry non-idempotent requests."
#[test]
fn what_a_backend_may_have_acted_on_is_repeated_only_if_that_does_no_harm() {
    for (method, body, repeated) in [
        ("GET", "", true),
        ("HEAD", "", true),
        ("OPTIONS", "", true),
        ("PUT", "", true),
        ("DELETE", "", true),
        ("POST", "", false),
        ("PATCH", "", false),
        ("MKCOL", "", false),
        ("get", "", false),
        // An upload cannot be sent again.
        ("PUT", "abc", false),
        ("POST", "abc", false),
    ] {
        let (bad, good) = (breaking(), Backend::answering("good"));
        let proxy = proxy(&[bad.addr, good.addr], |_| {});
        let status = send(&proxy, method, body).head().status;
        assert_eq!(status, if repeated { 200 } else { 502 }, "{method} {body:?}");
        assert_eq!(bad.requests().len(), 1);
        assert_eq!(good.requests().len(), usize::from(repeated), "{method} {body:?}");
        assert_eq!(proxy.totals().retries, u64::from(repeated));
    }
}

#[test]
fn what_no_backend_has_seen_goes_to_the_next_whatever_it_is() {
    for (method, body) in [("GET", ""), ("POST", ""), ("POST", "abc"), ("PUT", "abc"), ("PATCH", "abc")] {
        let good = Backend::answering("good");
        let proxy = proxy(&[nobody(), good.addr], |_| {});
        assert_eq!(send(&proxy, method, body).response().text(), "good", "{method}");
        assert_eq!(good.requests()[0].body, body.as_bytes());
    }
    let good = Backend::answering("good");
    let proxy = proxy(&[nobody(), nobody(), good.addr], |_| {});
    let mut client = proxy.connect();
    client.send(
        "POST / HTTP/1.1\r\nHost: wiki.prox.local\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    );
    assert_eq!(
        (client.response().text().as_str(), good.requests()[0].body.as_slice()),
        ("good", &b"abc"[..])
    );
}

#[test]
fn attempts_are_counted() {
    for (attempts, status) in [(0, 502), (1, 502), (2, 200)] {
        let (one, two, good) = (breaking(), breaking(), Backend::answering("good"));
        let proxy = proxy(&[one.addr, two.addr, good.addr], |policy| {
            policy.retries = RetryPolicy { attempts, ..RetryPolicy::default() };
        });
        assert_eq!(send(&proxy, "GET", "").response().status, status, "{attempts}");
        assert_eq!(one.accepted() + two.accepted(), 2.min(attempts as usize + 1));
    }
}

#[test]
fn a_budget_keeps_retries_from_multiplying_the_load() {
    let (bad, good) = (breaking(), Backend::answering("good"));
    let proxy = proxy(&[bad.addr, good.addr], |policy| {
        policy.retries = RetryPolicy { attempts: 2, budget: 0 };
    });
    let began = Instant::now();
    let failed = (0..100).filter(|_| send(&proxy, "GET", "").response().status == 502).count() as u64;
    // Five a second whatever comes, and as many saved up.
    let allowed = 5 * (began.elapsed().as_secs() + 2);
    let retries = proxy.totals().retries;
    assert!((5..=allowed).contains(&retries), "{retries} retries, {allowed} allowed");
    assert_eq!(retries + failed, 50, "every second request met the bad one first");
}

fn timeouts(change: impl FnOnce(&mut Timeouts)) -> impl FnOnce(&mut VhostPolicy) {
    |policy| change(&mut policy.timeouts)
}

#[test]
fn a_backend_that_does_not_answer_is_given_up() {
    let silent = stalling("");
    let other = Backend::answering("other");
    let proxy = proxy(&[silent.addr, other.addr], timeouts(|timeouts| timeouts.header = 1));
    let page = send(&proxy, "GET", "").response();
    assert_eq!((page.status, proxy.count(Reason::BackendSlow)), (504, 1));
    assert_eq!(other.accepted(), 0, "what takes long at one may take long at all");
}

#[test]
fn a_backend_that_takes_no_more_of_an_upload_is_too_slow_and_not_the_client() {
    let (arrived, arrivals) = channel();
    let (done, wait) = channel::<()>();
    let (arrived, wait) = (Mutex::new(arrived), Mutex::new(wait));
    let backend = Backend::script(move |conn| {
        arrived.lock().unwrap().send(()).unwrap();
        // Reads nothing.
        let _ = wait.lock().unwrap().recv_timeout(PATIENCE);
        drop(conn);
    });
    let proxy = proxy(&[backend.addr], timeouts(|timeouts| timeouts.header = 1));
    let mut client = proxy.connect();
    client.send("PUT / HTTP/1.1\r\nHost: wiki.prox.local\r\nContent-Length: 1000000000\r\n\r\n");
    arrivals.recv_timeout(PATIENCE).unwrap();
    let mut sender = client.stream.get_ref().try_clone().unwrap();
    std::thread::spawn(move || while std::io::Write::write_all(&mut sender, &[b'x'; 1 << 16]).is_ok() {});
    assert_eq!(client.head().status, 504);
    assert_eq!(proxy.count(Reason::BackendSlow), 1);
    drop(done);
}

#[test]
fn an_answer_that_stops_is_cut() {
    let stuck = stalling("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nsome");
    let proxy = proxy(&[stuck.addr], timeouts(|timeouts| timeouts.idle = 1));
    let mut client = send(&proxy, "GET", "");
    assert_eq!(client.head().status, 200);
    let mut rest = Vec::new();
    let _ = std::io::Read::read_to_end(&mut client.stream, &mut rest);
    assert_eq!(rest, b"some");
    proxy.until("counted", |totals| totals.of(Reason::BackendCut) == 1);
}

#[test]
fn the_whole_exchange_has_its_end_however_busy_it_is() {
    let silent = stalling("");
    let proxy_of_silent = proxy(&[silent.addr], timeouts(|timeouts| timeouts.total = 1));
    let page = send(&proxy_of_silent, "GET", "").response();
    assert_eq!((page.status, proxy_of_silent.count(Reason::TotalTimeout)), (504, 1));

    let dripping = Backend::script(|mut conn| {
        conn.request();
        conn.write("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n");
        let began = Instant::now();
        while began.elapsed() < PATIENCE && std::io::Write::write_all(conn.stream.get_mut(), b".").is_ok() {
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    let proxy = proxy(&[dripping.addr], timeouts(|timeouts| timeouts.total = 1));
    let began = Instant::now();
    let mut client = send(&proxy, "GET", "");
    assert_eq!(client.head().status, 200);
    let mut rest = Vec::new();
    let _ = std::io::Read::read_to_end(&mut client.stream, &mut rest);
    assert!(rest.len() < 1000 && began.elapsed() < PATIENCE, "{} octets", rest.len());
    proxy.until("counted", |totals| totals.of(Reason::TotalTimeout) == 1);
}

fn limited(queue: u32, queue_timeout: u32) -> impl FnOnce(&mut VhostPolicy) {
    move |policy| {
        policy.limits =
            VhostLimits { backend_connections: 1, queue, queue_timeout, ..VhostLimits::default() };
    }
}

fn get(proxy: &Proxy, path: &str) -> Client {
    let mut client = proxy.connect();
    client.send(&format!("GET {path} HTTP/1.1\r\nHost: wiki.prox.local\r\n\r\n"));
    client
}

#[test]
fn a_full_backend_gets_the_next_request_when_it_has_answered() {
    let (backend, arrivals, release) = working();
    let proxy = proxy(&[backend.addr], limited(2, 20));
    let mut clients = vec![get(&proxy, "/0")];
    assert_eq!(arrivals.recv_timeout(PATIENCE).unwrap(), "/0");
    // Both stand in line, and a third has no place there.
    for number in 1..=2 {
        clients.push(get(&proxy, &format!("/{number}")));
        proxy.until("taken", |totals| totals.connections == number + 1);
    }
    let page = get(&proxy, "/late").response();
    assert_eq!((page.status, proxy.count(Reason::QueueFull)), (503, 1));
    for (number, client) in clients.iter_mut().enumerate() {
        release.send(()).unwrap();
        assert_eq!(client.response().text(), format!("/{number}"));
        if number < 2 {
            assert_eq!(arrivals.recv_timeout(PATIENCE).unwrap(), format!("/{}", number + 1));
        }
    }
    assert_eq!(backend.accepted(), 1);
}

#[test]
fn waiting_for_a_full_backend_has_an_end() {
    let (backend, arrivals, release) = working();
    let proxy = proxy(&[backend.addr], limited(5, 1));
    let mut first = get(&proxy, "/first");
    arrivals.recv_timeout(PATIENCE).unwrap();
    let page = get(&proxy, "/second").response();
    assert_eq!((page.status, proxy.count(Reason::QueueTimeout)), (503, 1));
    release.send(()).unwrap();
    assert_eq!(first.response().text(), "/first");
    assert!(arrivals.try_recv().is_err(), "a request that was given up reached the backend");
    // The place is free again.
    release.send(()).unwrap();
    assert_eq!(get(&proxy, "/third").response().text(), "/third");
}

#[test]
fn a_client_that_leaves_the_line_makes_room() {
    let (backend, arrivals, release) = working();
    let proxy = proxy(&[backend.addr], limited(1, 20));
    let mut first = get(&proxy, "/first");
    arrivals.recv_timeout(PATIENCE).unwrap();
    let waiting = get(&proxy, "/gone");
    proxy.until("taken", |totals| totals.connections == 2);
    drop(waiting);
    proxy.until("gone", |totals| totals.of(Reason::ClientGone) == 1);
    let mut second = get(&proxy, "/second");
    for (client, text) in [(&mut first, "/first"), (&mut second, "/second")] {
        release.send(()).unwrap();
        assert_eq!(client.response().text(), text);
    }
    assert_eq!(arrivals.try_iter().collect::<Vec<_>>(), ["/second"]);
}

#[test]
fn two_full_backends_share_the_work() {
    let (one, one_arrivals, one_release) = working();
    let (two, two_arrivals, two_release) = working();
    let proxy = proxy(&[one.addr, two.addr], limited(0, 1));
    let mut clients = [get(&proxy, "/a"), get(&proxy, "/b")];
    one_arrivals.recv_timeout(PATIENCE).unwrap();
    two_arrivals.recv_timeout(PATIENCE).unwrap();
    assert_eq!(get(&proxy, "/c").response().status, 503);
    one_release.send(()).unwrap();
    two_release.send(()).unwrap();
    clients.iter_mut().for_each(|client| assert_eq!(client.response().status, 200));
}

/// A vhost that follows the app `wiki` on a port, one request at a time and one in the line; the app is on loopback.
fn followed(port: u16) -> Table {
    let app = BackendTarget::App { name: "wiki".parse().unwrap(), port };
    let wiki = Vhost { backends: vec![app], ..vhost("wiki", &[]) };
    let mut table = Table::new("127.0.0.1/8", 1);
    table.change(Change::Lease(lease("wiki", Ipv4Addr::LOCALHOST, 1, LeaseState::Bound)));
    table.change(Change::Vhost(Source::Config, with(wiki, limited(1, 20)).into()));
    table
}

/// One request that is being answered, and one that waits behind it.
fn one_waits(proxy: &Proxy, arrivals: &Receiver<String>) -> (Client, [Client; 2]) {
    let first = get(proxy, "/first");
    assert_eq!(arrivals.recv_timeout(PATIENCE).unwrap(), "/first");
    // There is one place in the line: when one of two was turned away, the other stands there.
    let others = [get(proxy, "/a"), get(proxy, "/b")];
    proxy.until("one waits", |totals| totals.of(Reason::QueueFull) == 1);
    (first, others)
}

#[test]
fn a_request_that_waited_does_not_go_to_the_next_owner_of_the_address() {
    let (backend, arrivals, release) = working();
    let mut table = followed(backend.addr.port());
    let proxy = Proxy::start(&table);
    let (mut first, mut others) = one_waits(&proxy, &arrivals);
    table.change(Change::Lease(lease("shop", Ipv4Addr::LOCALHOST, 2, LeaseState::Bound)));
    release.send(()).unwrap();
    assert_eq!(first.response().status, 200);
    let texts =
        others.each_mut().map(|client| client.response()).map(|response| (response.status, response.text()));
    assert!(texts.iter().all(|(status, _)| *status == 503), "{texts:?}");
    let stopped = texts.iter().filter(|(_, text)| text.contains("is stopped")).count();
    assert_eq!(stopped, 1, "as if it had come now: {texts:?}");
    assert_eq!(backend.requests().len(), 1, "the next owner never sees it");
}

#[test]
fn a_request_that_waited_follows_its_app_to_another_address() {
    let (old, arrivals, release) = working();
    let elsewhere = Ipv4Addr::new(127, 0, 0, 2);
    let new = Backend::on(TcpListener::bind((elsewhere, old.addr.port())).unwrap(), |mut conn| {
        while conn.request().is_some() {
            conn.answer("here now");
        }
    });
    let mut table = followed(old.addr.port());
    let proxy = Proxy::start(&table);
    let (mut first, mut others) = one_waits(&proxy, &arrivals);
    table.change(Change::Lease(lease("shop", Ipv4Addr::LOCALHOST, 2, LeaseState::Bound)));
    table.change(Change::Lease(lease("wiki", elsewhere, 3, LeaseState::Bound)));
    release.send(()).unwrap();
    assert_eq!(first.response().status, 200);
    let texts = others.each_mut().map(|client| client.response().text());
    assert_eq!(texts.iter().filter(|text| *text == "here now").count(), 1, "{texts:?}");
    assert_eq!((old.requests().len(), new.requests().len()), (1, 1));
}
