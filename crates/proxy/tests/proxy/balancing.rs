//! Which of several backends gets a request, and what keeps a client at one of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use proximity_proxy::Circuit;
use proximity_table::{
    Affinity, BackendKey, Balance, Change, PassivePolicy, Source, UpstreamKey, VhostLimits, VhostPolicy,
};

use crate::scripts::working;
use crate::support::{Backend, Client, PATIENCE, Proxy, Table, vhost, with};

fn proxy(backends: &[&Backend], change: impl FnOnce(&mut VhostPolicy)) -> Proxy {
    let addrs: Vec<_> = backends.iter().map(|backend| backend.addr).collect();
    Proxy::start(&Table::of(vec![with(vhost("wiki", &addrs), change)]))
}

fn ask(proxy: &Proxy, fields: &str) -> crate::support::Response {
    let mut client = proxy.connect();
    client.send(&format!("GET / HTTP/1.1\r\nHost: wiki.prox.local\r\n{fields}\r\n"));
    client.response()
}

fn hold(proxy: &Proxy) -> Client {
    let mut client = proxy.connect();
    client.send("GET /hold HTTP/1.1\r\nHost: wiki.prox.local\r\n\r\n");
    client
}

#[test]
fn round_robin_takes_turns() {
    let backends = [Backend::answering("a"), Backend::answering("b"), Backend::answering("c")];
    let proxy = proxy(&backends.each_ref(), |_| {});
    let answers: String = (0..9).map(|_| ask(&proxy, "").text()).collect();
    assert_eq!(answers, "abcabcabc");
}

#[test]
fn the_backend_with_the_fewest_requests_in_flight_is_preferred() {
    for balance in [Balance::LeastConnections, Balance::RandomTwo] {
        let (busy, arrivals, release) = working();
        let free = Backend::answering("free");
        let proxy = proxy(&[&busy, &free], |policy| policy.balance = balance);
        // Until the busy one has got one to hold.
        let mut held = Vec::new();
        while arrivals.try_recv().is_err() {
            let mut client = hold(&proxy);
            client.stream.get_ref().set_read_timeout(Some(Duration::from_millis(200))).unwrap();
            let mut first = [0];
            if client.stream.get_ref().peek(&mut first).is_ok() {
                assert_eq!(client.response().text(), "free");
            } else {
                held.push(client);
            }
        }
        for _ in 0..20 {
            assert_eq!(ask(&proxy, "").text(), "free", "{balance:?}");
        }
        release.send(()).unwrap();
        let mut held = held.pop().unwrap();
        held.stream.get_ref().set_read_timeout(Some(PATIENCE)).unwrap();
        assert_eq!(held.response().text(), "/hold");
    }
}

#[test]
fn random_two_leaves_nobody_out() {
    let backends = [Backend::answering("a"), Backend::answering("b"), Backend::answering("c")];
    let proxy = proxy(&backends.each_ref(), |policy| policy.balance = Balance::RandomTwo);
    for _ in 0..90 {
        assert_eq!(ask(&proxy, "").status, 200);
    }
    let shares = backends.each_ref().map(|backend| backend.requests().len());
    assert!(shares.iter().all(|share| (10..=60).contains(share)), "{shares:?}");
}

#[test]
fn an_address_stays_at_its_backend() {
    let (a, b) = (Backend::answering("a"), Backend::answering("b"));
    let proxy = proxy(&[&a, &b], |policy| policy.affinity = Some(Affinity::ClientIp));
    for last in 2..42 {
        let mut answers = (0..4).map(|_| {
            let mut client = proxy.connect_from(last);
            client.send("GET / HTTP/1.1\r\nHost: wiki.prox.local\r\n\r\n");
            client.response().text()
        });
        let first = answers.next().unwrap();
        assert!(answers.all(|answer| answer == first), "127.0.0.{last}");
    }
    // 40 clients: that all fall to one side has the chance of two coins in forty throws.
    let shares = (a.requests().len(), b.requests().len());
    assert!(shares.0 > 20 && shares.1 > 20, "{shares:?}");
}

#[test]
fn the_value_of_a_header_stays_at_its_backend() {
    let (a, b) = (Backend::answering("a"), Backend::answering("b"));
    let proxy = proxy(&[&a, &b], |policy| policy.affinity = Some(Affinity::Header("x-user".to_owned())));
    for user in 0..40 {
        let mut answers = (0..4).map(|_| ask(&proxy, &format!("X-User: {user}\r\n")).text());
        let first = answers.next().unwrap();
        assert!(answers.all(|answer| answer == first), "{user}");
    }
    let shares = (a.requests().len(), b.requests().len());
    assert!(shares.0 > 20 && shares.1 > 20, "{shares:?}");
    // Without the header they take turns.
    let answers: String = (0..4).map(|_| ask(&proxy, "").text()).collect();
    assert!(answers == "abab" || answers == "baba", "{answers}");
}

#[test]
fn a_cookie_keeps_a_client_and_is_set_when_it_has_to_be() {
    let (a, b) = (Backend::answering("a"), Backend::answering("b"));
    let dead = Backend::script(drop);
    let affinity = |policy: &mut VhostPolicy| policy.affinity = Some(Affinity::Cookie("stick".to_owned()));
    let both = proxy(&[&a, &b], affinity);
    for name in ["a", "b"] {
        let first = ask(&both, "Cookie: other=1\r\n");
        assert_eq!(first.text(), name);
        let [cookie] = first.header("set-cookie")[..] else { panic!("{first:?}") };
        let (pair, attributes) = cookie.split_once("; ").unwrap();
        assert!(pair.starts_with("stick=") && attributes.contains("HttpOnly"), "{cookie}");
        assert!(!cookie.contains("127"), "an address is told: {cookie}");
        // An even number, so that the next one without a cookie is the other's turn.
        for _ in 0..6 {
            let again = ask(&both, &format!("Cookie: other=1; {pair}; more=2\r\n"));
            assert_eq!((again.text().as_str(), again.header("set-cookie").len()), (name, 0));
        }
    }
    // A cookie that names nobody is replaced.
    assert_eq!(ask(&both, "Cookie: stick=0123456789abcdef\r\n").header("set-cookie").len(), 1);
    // So is that of a backend that fails.
    let half = proxy(&[&dead, &a], affinity);
    for _ in 0..2 {
        let response = ask(&half, "");
        assert_eq!((response.text().as_str(), response.header("set-cookie").len()), ("a", 1));
    }
}

fn key(backend: &Backend) -> BackendKey {
    BackendKey { addr: backend.addr, epoch: 0 }
}

/// Waits until so many stand in line for a backend.
fn until_waiting(proxy: &Proxy, backend: &Backend, count: u32) {
    let state = proxy.shared.backends.find(&UpstreamKey::plain(key(backend))).unwrap();
    let began = Instant::now();
    while state.waiting() != count {
        assert!(began.elapsed() < PATIENCE, "{} wait", state.waiting());
        std::thread::yield_now();
    }
}

fn one_at_a_time(policy: &mut VhostPolicy) {
    policy.limits =
        VhostLimits { backend_connections: 1, queue: 1, queue_timeout: 20, ..VhostLimits::default() };
}

#[test]
fn whoever_stood_in_line_gets_the_cookie_too() {
    let (backend, arrivals, release) = working();
    let proxy = proxy(&[&backend], |policy| {
        one_at_a_time(policy);
        policy.affinity = Some(Affinity::Cookie("stick".to_owned()));
    });
    let mut first = hold(&proxy);
    arrivals.recv_timeout(PATIENCE).unwrap();
    let mut second = hold(&proxy);
    until_waiting(&proxy, &backend, 1);
    let mut cookie = String::new();
    for client in [&mut first, &mut second] {
        release.send(()).unwrap();
        let response = client.response();
        let [set] = response.header("set-cookie")[..] else { panic!("{response:?}") };
        cookie = set.split(';').next().unwrap().to_owned();
    }
    // Whoever has it already does not get it again.
    let mut third = hold(&proxy);
    assert!(arrivals.iter().take(2).all(|path| path == "/hold"));
    let mut last = proxy.connect();
    last.send(&format!("GET / HTTP/1.1\r\nHost: wiki.prox.local\r\nCookie: {cookie}\r\n\r\n"));
    until_waiting(&proxy, &backend, 1);
    release.send(()).unwrap();
    release.send(()).unwrap();
    assert_eq!(third.response().status, 200);
    let response = last.response();
    assert_eq!((response.text().as_str(), response.header("set-cookie").len()), ("/", 0));
}

/// A success of before a pause says nothing of what came after it. One that stood in line was sent when it left it.
#[test]
fn who_waited_speaks_for_the_time_after_the_wait() {
    let (arrived, arrivals) = std::sync::mpsc::channel();
    let arrived = std::sync::Mutex::new(arrived);
    let backend = Backend::script(move |mut conn| {
        while let Some(request) = conn.request() {
            match request.line.split(' ').nth(1).unwrap() {
                "/break" => return,
                "/hold" => arrived.lock().unwrap().send(()).unwrap(),
                _ => conn.answer("fine"),
            }
        }
    });
    let proxy = proxy(&[&backend], |policy| {
        one_at_a_time(policy);
        policy.passive = PassivePolicy { failures: 1, window: 30, pause: 1 };
    });
    let state = |proxy: &Proxy| proxy.shared.backends.find(&UpstreamKey::plain(key(&backend))).unwrap();
    assert_eq!(proxy.get("wiki.prox.local", "/break").status, 502);
    let held = hold(&proxy);
    arrivals.recv_timeout(PATIENCE).unwrap();
    let mut waiting = proxy.connect();
    waiting.send("GET /next HTTP/1.1\r\nHost: wiki.prox.local\r\n\r\n");
    until_waiting(&proxy, &backend, 1);
    let began = Instant::now();
    while state(&proxy).circuit(proxy.now_ms()) != Circuit::HalfOpen {
        assert!(began.elapsed() < PATIENCE, "the pause never ends");
        std::thread::yield_now();
    }
    drop(held);
    assert_eq!(waiting.response().text(), "fine");
    assert_eq!(state(&proxy).circuit(proxy.now_ms()), Circuit::Closed);
}

/// A backend that breaks every connection as long as the switch is on.
fn breaking() -> (Backend, Arc<AtomicBool>) {
    let broken = Arc::new(AtomicBool::new(true));
    let switch = broken.clone();
    let backend = Backend::script(move |mut conn| {
        while conn.request().is_some() && !switch.load(SeqCst) {
            conn.answer("mended");
        }
    });
    (backend, broken)
}

#[test]
fn a_backend_that_fails_is_paused_tried_and_taken_back() {
    let (bad, broken) = breaking();
    let good = Backend::answering("good");
    let proxy = proxy(&[&bad, &good], |policy| {
        policy.passive = PassivePolicy { failures: 2, window: 30, pause: 1 };
    });
    while bad.accepted() < 2 {
        assert_eq!(ask(&proxy, "").text(), "good", "the other one makes good");
    }
    let paused = Instant::now();
    for _ in 0..20 {
        assert_eq!(ask(&proxy, "").text(), "good");
    }
    if paused.elapsed() < Duration::from_secs(1) {
        assert_eq!(bad.accepted(), 2, "a paused backend is asked");
    }
    // After the pause a single request tries it, and begins another pause.
    let until = |count: usize| {
        while bad.accepted() < count {
            assert!(paused.elapsed() < PATIENCE, "never tried again");
            assert_eq!(ask(&proxy, "").text(), "good");
        }
    };
    until(3);
    assert!(paused.elapsed() >= Duration::from_millis(900), "{:?}", paused.elapsed());
    broken.store(false, SeqCst);
    while ask(&proxy, "").text() != "mended" {
        assert!(paused.elapsed() < PATIENCE, "never taken back");
    }
    assert_eq!(bad.accepted(), 4, "one trial of each pause");
    let answers: Vec<String> = (0..4).map(|_| ask(&proxy, "").text()).collect();
    assert_eq!(answers.iter().filter(|answer| *answer == "mended").count(), 2, "{answers:?}");
}

#[test]
fn the_only_backend_is_never_paused() {
    let (bad, broken) = breaking();
    let proxy = proxy(&[&bad], |policy| {
        policy.passive = PassivePolicy { failures: 1, window: 3600, pause: 3600 };
    });
    for count in 1..=5 {
        assert_eq!((ask(&proxy, "").status, bad.accepted()), (502, count));
    }
    broken.store(false, SeqCst);
    assert_eq!(ask(&proxy, "").text(), "mended");
}

#[test]
fn when_all_are_paused_they_are_asked_nevertheless() {
    let ((one, one_broken), (two, _)) = (breaking(), breaking());
    let proxy = proxy(&[&one, &two], |policy| {
        policy.passive = PassivePolicy { failures: 1, window: 3600, pause: 3600 };
    });
    assert_eq!(ask(&proxy, "").status, 502);
    one_broken.store(false, SeqCst);
    for _ in 0..4 {
        assert_eq!(ask(&proxy, "").text(), "mended");
    }
}

#[test]
fn a_backend_that_joins_gets_little_at_first() {
    const SLOW_START: u32 = 1;
    const FULL_WEIGHT: u32 = 256;
    let (old, new) = (Backend::answering("old"), Backend::answering("new"));
    let wiki = |addrs: &[std::net::SocketAddrV4]| {
        with(vhost("wiki", addrs), |policy| policy.slow_start = SLOW_START)
    };
    let mut table = Table::of(vec![wiki(&[old.addr])]);
    let proxy = Proxy::start(&table);
    assert_eq!(ask(&proxy, "").text(), "old");
    // Only time brings the old one to its full share.
    let state = proxy.shared.backends.find(&UpstreamKey::plain(key(&old))).unwrap();
    let began = Instant::now();
    while state.weight(proxy.now_ms(), u64::from(SLOW_START) * 1000) < FULL_WEIGHT {
        assert!(began.elapsed() < PATIENCE, "never there");
        std::thread::yield_now();
    }
    table.change(Change::Vhost(Source::Config, wiki(&[old.addr, new.addr]).into()));
    let joined = Instant::now();
    let share = || (0..100).filter(|_| ask(&proxy, "").text() == "new").count();
    let early = share();
    if joined.elapsed() < Duration::from_millis(250) {
        assert!(early < 35, "{early} of the first hundred");
    }
    while share() != 50 {
        assert!(joined.elapsed() < PATIENCE, "never an equal share");
    }
    // A hundred in turn may be a chance before, and is none a second later.
    if joined.elapsed() > Duration::from_secs(u64::from(SLOW_START)) {
        assert_eq!(share(), 50);
    }
}
