use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::mpsc::channel;

use proximity_proxy::{AccessLog, Reason};
use proximity_table::{Change, LogPolicy, LogSettings, ProxySettings, Source, VhostPolicy};

use crate::support::{Backend, Client, PATIENCE, Proxy, Table, read_line, vhost};

#[test]
fn a_stop_finishes_what_runs_and_closes_what_is_idle() {
    let (release, released) = channel::<()>();
    let released = Mutex::new(released);
    let (arrived, arrivals) = channel();
    let arrived = Mutex::new(arrived);
    let backend = Backend::script(move |mut conn| {
        while conn.request().is_some() {
            arrived.lock().unwrap().send(()).unwrap();
            released.lock().unwrap().recv_timeout(PATIENCE).unwrap();
            conn.answer("finished");
        }
    });
    let proxy = Proxy::start(&Table::of(vec![vhost("wiki", &[backend.addr])]));
    let (mut running, mut idle) = (proxy.connect(), proxy.connect());
    running.send("GET / HTTP/1.1\r\nHost: wiki.prox.local\r\n\r\n");
    arrivals.recv_timeout(PATIENCE).unwrap();
    proxy.until("both taken", |totals| totals.open == 2);
    proxy.begin_stop();
    assert!(idle.is_closed());
    assert!(TcpStream::connect(proxy.addr).is_err(), "nothing new is taken");
    release.send(()).unwrap();
    let response = running.response();
    assert_eq!((response.text().as_str(), response.header("connection")), ("finished", vec!["close"]));
    assert!(running.is_closed());
    proxy.join();
}

/// Nothing that a client has open may fail because another process took the listeners over: neither a request
/// that is on its way to us nor one that is asked on a connection which was idle.
#[test]
fn a_retired_thread_answers_the_last_request_of_every_connection() {
    let backend = Backend::answering("hello");
    let proxy = Proxy::start(&Table::of(vec![vhost("wiki", &[backend.addr])]));
    const REQUEST: &str = "GET / HTTP/1.1\r\nHost: wiki.prox.local\r\n\r\n";
    let (mut idle, mut fresh, mut half) = (proxy.connect(), proxy.connect(), proxy.connect());
    idle.send(REQUEST);
    assert_eq!(idle.response().text(), "hello");
    half.send(&REQUEST[..20]);
    proxy.until("all taken", |totals| totals.open == 3);
    proxy.retire();
    let began = std::time::Instant::now();
    while TcpStream::connect(proxy.addr).is_ok() {
        assert!(began.elapsed() < PATIENCE, "it still listens");
    }
    half.send(&REQUEST[20..]);
    idle.send(REQUEST);
    fresh.send(REQUEST);
    for client in [&mut half, &mut idle, &mut fresh] {
        let response = client.response();
        assert_eq!((response.text().as_str(), response.header("connection")), ("hello", vec!["close"]));
        assert!(client.is_closed());
    }
    proxy.ended();
}

/// An echo behind an upgrade.
fn echo() -> Backend {
    Backend::script(|mut conn| {
        if conn.request().is_some_and(|request| !request.header("upgrade").is_empty()) {
            conn.write("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n");
            while let Some(line) = read_line(&mut conn.stream) {
                conn.write(&format!("{line}\n"));
            }
        }
    })
}

fn upgrade(proxy: &Proxy) -> Client {
    let mut client = proxy.connect();
    client.send("GET / HTTP/1.1\r\nHost: wiki.prox.local\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n");
    assert_eq!(client.head().status, 101);
    client
}

fn echoes(client: &mut Client) -> bool {
    client.send("ping\n");
    read_line(&mut client.stream).as_deref() == Some("ping")
}

#[test]
fn an_upgraded_connection_outlives_retirement_and_ends_it() {
    let backend = echo();
    let proxy = Proxy::start(&Table::of(vec![vhost("wiki", &[backend.addr])]));
    let mut client = upgrade(&proxy);
    proxy.retire();
    for _ in 0..3 {
        assert!(echoes(&mut client));
    }
    drop(client);
    proxy.ended();
}

/// A connection carries an epoch: whoever gets the address next is not spoken to through it, and what does not
/// concern it does not end it.
#[test]
fn an_upgraded_connection_ends_when_its_backend_is_no_longer_the_vhosts() {
    let (backend, other) = (echo(), Backend::answering("other"));
    let mut table = Table::of(vec![vhost("wiki", &[backend.addr])]);
    let proxy = Proxy::start(&table);
    for retired in [false, true] {
        let mut client = upgrade(&proxy);
        if retired {
            proxy.retire();
        }
        table.change(Change::Vhost(Source::Config, vhost("blog", &[other.addr]).into()));
        table.change(Change::Vhost(Source::Config, vhost("wiki", &[other.addr, backend.addr]).into()));
        assert!(echoes(&mut client));
        table.change(Change::Vhost(Source::Config, vhost("wiki", &[other.addr]).into()));
        assert!(client.is_closed());
        assert_eq!(proxy.count(Reason::BackendLeft), 1 + u64::from(retired));
        table.change(Change::Vhost(Source::Config, vhost("wiki", &[backend.addr]).into()));
    }
    proxy.ended();
}

#[test]
fn a_retired_thread_can_be_stopped() {
    let backend = echo();
    let settings = ProxySettings { drain: 1, ..ProxySettings::default() };
    let proxy = Proxy::with(&Table::of(vec![vhost("wiki", &[backend.addr])]), settings, None);
    let mut client = upgrade(&proxy);
    proxy.retire();
    assert!(echoes(&mut client));
    proxy.join();
}

#[test]
fn a_stop_does_not_wait_for_ever() {
    let backend = Backend::script(|mut conn| {
        conn.request();
        // Never answers; ends when the proxy gives up.
        conn.request();
    });
    let settings = ProxySettings { drain: 1, ..ProxySettings::default() };
    let proxy = Proxy::with(&Table::of(vec![vhost("wiki", &[backend.addr])]), settings, None);
    let mut client = proxy.connect();
    client.send("GET / HTTP/1.1\r\nHost: wiki.prox.local\r\n\r\n");
    proxy.until("sent", |totals| totals.upstream_connects == 1);
    proxy.join();
    assert!(client.is_closed());
}

/// The kernel's timer of a connection on 127.0.0.1 (proc(5), `/proc/net/tcp`): its kind, and the hundredths of
/// a second until it goes off.
fn timer(local_port: u16, peer_port: u16) -> (u8, u64) {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let ends = [local_port, peer_port].map(|port| format!("0100007F:{port:04X}"));
    let line = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let line = line.into_iter().find(|fields| fields[1..3] == ends).unwrap();
    let (kind, left) = line[5].split_once(':').unwrap();
    (kind.parse().unwrap(), u64::from_str_radix(left, 16).unwrap())
}

#[test]
fn the_kernel_asks_silent_peers_on_both_sides_whether_they_are_there() {
    const KEEPALIVE: u8 = 2;
    let (arrived, arrivals) = channel();
    let arrived = Mutex::new(arrived);
    let backend = Backend::script(move |mut conn| {
        conn.request();
        arrived.lock().unwrap().send(conn.stream.get_ref().peer_addr().unwrap().port()).unwrap();
        // Never answers; ends when the proxy does.
        conn.request();
    });
    let proxy = Proxy::start(&Table::of(vec![vhost("wiki", &[backend.addr])]));
    let mut client = proxy.connect();
    client.send("GET / HTTP/1.1\r\nHost: wiki.prox.local\r\n\r\n");
    let upstream = arrivals.recv_timeout(PATIENCE).unwrap();
    let client = client.stream.get_ref().local_addr().unwrap().port();
    // The two hours that the kernel takes by itself would be 720,000.
    let watched = |local, peer| matches!(timer(local, peer), (KEEPALIVE, left) if left <= 6_000);
    let began = std::time::Instant::now();
    // What was just sent has a timer of its own until it is acknowledged.
    while !(watched(proxy.addr.port(), client) && watched(upstream, backend.addr.port())) {
        let timers = [timer(proxy.addr.port(), client), timer(upstream, backend.addr.port())];
        assert!(began.elapsed() < PATIENCE, "{timers:?}");
        std::thread::yield_now();
    }
}

fn temp_dir(name: &str) -> PathBuf {
    let dir = std::env::temp_dir().join(format!("proximity-proxy-{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    dir
}

#[test]
fn every_request_is_logged_in_the_file_of_its_vhost() {
    let dir = temp_dir("log");
    let backend = Backend::answering("hello");
    let mut table = Table::of(vec![vhost("wiki", &[backend.addr])]);
    let log = AccessLog::start(dir.clone(), LogSettings::default(), |trouble| panic!("{trouble}")).unwrap();
    let proxy = Proxy::with(&table, ProxySettings::default(), Some(log.sink()));
    let mut client = proxy.connect();
    client.send(
        "POST /a?q='1' HTTP/1.1\r\nHost: wiki.example.org\r\nCookie: secret\r\nAuthorization: Basic secret\r\n\
         Content-Length: 3\r\n\r\nabc",
    );
    assert_eq!(client.response().status, 200);
    assert_eq!(proxy.get("../../etc/passwd.prox.local", "/").status, 400);
    assert_eq!(proxy.get("nobody.prox.local", "/").status, 404);
    table.change(Change::RemoveVhost("wiki".parse().unwrap()));
    drop(client);
    proxy.join();
    assert_eq!(log.counts().behind, 0);
    assert!(log.finish());

    let mut files: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|file| file.unwrap().file_name()).collect();
    files.sort();
    assert_eq!(files, ["default.log", "wiki.prox.local.log"]);
    let text = std::fs::read_to_string(dir.join("wiki.prox.local.log")).unwrap();
    assert!(!text.contains("secret"));
    let lines: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 1);
    let line = &lines[0];
    assert_eq!(line["request"]["host"], "wiki.example.org");
    assert_eq!(line["request"]["uri"], "/a?q='1'");
    assert_eq!(line["request"]["method"], "POST");
    assert_eq!(line["request"]["remote_ip"], "127.0.0.1");
    assert_eq!((&line["bytes_read"], &line["size"], &line["status"]), (&3.into(), &5.into(), &200.into()));
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    assert!((now - line["ts"].as_f64().unwrap()).abs() < 60.0);
    assert!(line["duration"].as_f64().unwrap() < 60.0);
    let unknown = std::fs::read_to_string(dir.join("default.log")).unwrap();
    assert_eq!(unknown.lines().count(), 2);
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn what_nobody_wants_logged_is_not() {
    let dir = temp_dir("wants");
    let backend = Backend::script(|mut conn| {
        while let Some(request) = conn.request() {
            match request.line.contains("token") {
                true => conn.write("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"),
                false => conn.answer("hello"),
            }
        }
    });
    let mut quiet = vhost("quiet", &[backend.addr]);
    quiet.policy =
        VhostPolicy { log: LogPolicy { enabled: false, sample: 1 }, ..VhostPolicy::default() }.shared();
    let mut rare = vhost("rare", &[backend.addr]);
    rare.policy =
        VhostPolicy { log: LogPolicy { enabled: true, sample: u32::MAX }, ..VhostPolicy::default() }.shared();
    let log = AccessLog::start(dir.clone(), LogSettings::default(), |trouble| panic!("{trouble}")).unwrap();
    let settings = ProxySettings {
        log: LogSettings { redact_query: true, ..LogSettings::default() },
        ..ProxySettings::default()
    };
    let proxy = Proxy::with(&Table::of(vec![quiet, rare]), settings, Some(log.sink()));
    assert_eq!(proxy.get("quiet.prox.local", "/").status, 200);
    assert_eq!(proxy.get("rare.prox.local", "/").status, 200);
    // An error is logged in any case, without what may be a token.
    assert_eq!(proxy.get("rare.prox.local", "/?token=secret").status, 404);
    proxy.join();
    assert!(log.finish());
    let logs: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|file| file.unwrap().path()).collect();
    let text: String = logs.iter().map(|log| std::fs::read_to_string(log).unwrap()).collect();
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.contains("\"status\":404") && !text.contains("secret"), "{text}");
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn a_log_that_cannot_be_written_is_told_once_and_stops_nothing() {
    let dir = temp_dir("no-dir");
    std::fs::write(&dir, "a file where the directory should be").unwrap();
    let backend = Backend::answering("hello");
    let (told, troubles) = channel();
    let log = AccessLog::start(dir.clone(), LogSettings::default(), move |trouble| {
        told.send(trouble.to_owned()).unwrap()
    })
    .unwrap();
    let proxy = Proxy::with(
        &Table::of(vec![vhost("wiki", &[backend.addr])]),
        ProxySettings::default(),
        Some(log.sink()),
    );
    for round in 1..=2 {
        assert_eq!(proxy.get("wiki.prox.local", "/").status, 200);
        let began = std::time::Instant::now();
        while log.counts().failed < round {
            assert!(began.elapsed() < PATIENCE, "never failed: {:?}", log.counts());
            std::thread::yield_now();
        }
    }
    proxy.join();
    assert!(log.finish());
    let troubles: Vec<String> = troubles.iter().collect();
    assert_eq!(troubles.len(), 1, "{troubles:?}");
    assert!(troubles[0].contains("cannot write"), "{troubles:?}");
    std::fs::remove_file(&dir).unwrap();
}
