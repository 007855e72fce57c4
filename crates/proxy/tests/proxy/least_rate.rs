//! Clients that send or read just enough not to time out, and those that only look like them.

use std::io::Write;
use std::time::{Duration, Instant};

use proximity_proxy::Reason;
use proximity_table::{BackendProtocol, Timeouts, Vhost, VhostPolicy};

use crate::frames::{DATA, END_HEADERS, FrameBackend, HEADERS, INITIAL_WINDOW_SIZE, Peer, RST_STREAM, get};
use crate::support::{Backend, Client, PATIENCE, Proxy, Table, raw_head, read_chunk, vhost, with};

/// Between two octets of a client that drips: often enough for a limit of a second.
const DRIP: Duration = Duration::from_millis(200);
/// Octets of a body that may be sent to an HTTP/2 backend before it says more (RFC 9113 §6.9.2).
const WINDOW: usize = 65_535;

fn proxy(backend: &Backend, timeouts: Timeouts) -> Proxy {
    let change = |policy: &mut VhostPolicy| policy.timeouts = timeouts;
    Proxy::start(&Table::of(vec![with(vhost("wiki", &[backend.addr]), change)]))
}

/// Sends a piece again and again until something comes back or the connection is gone.
fn drip(client: &mut Client, piece: &[u8]) {
    let began = Instant::now();
    client.stream.get_ref().set_read_timeout(Some(DRIP)).unwrap();
    while client
        .stream
        .get_ref()
        .peek(&mut [0])
        .is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
    {
        assert!(began.elapsed() < PATIENCE, "never given up");
        if client.stream.get_mut().write_all(piece).is_err() {
            break;
        }
    }
    client.stream.get_ref().set_read_timeout(Some(PATIENCE)).unwrap();
}

#[test]
fn an_upload_that_drips_is_given_up() {
    for (framing, piece) in
        [("Content-Length: 100000", &b"x"[..]), ("Transfer-Encoding: chunked", b"1\r\nx\r\n")]
    {
        let backend = Backend::script(|mut conn| drop(conn.request()));
        let proxy = proxy(&backend, Timeouts { header: 1, ..Timeouts::default() });
        let mut client = proxy.connect();
        client.send(&format!("POST / HTTP/1.1\r\nHost: wiki.prox.local\r\n{framing}\r\n\r\n"));
        drip(&mut client, piece);
        assert_eq!(client.response().status, 408, "{framing}");
        assert!(client.is_closed());
        assert_eq!(proxy.count(Reason::UploadSlow), 1, "{framing}");
    }
}

#[test]
fn an_upload_that_drips_over_http_2_is_given_up() {
    let backend = Backend::script(|mut conn| drop(conn.request()));
    let proxy = proxy(&backend, Timeouts { header: 1, ..Timeouts::default() });
    let mut peer = Peer::client(proxy.addr, &[]);
    // `:method: POST` of the static table (RFC 7541 appendix A).
    let block = [&[0x83], &get("/")[1..]].concat();
    peer.send(HEADERS, END_HEADERS, 1, &block);
    let began = Instant::now();
    while proxy.count(Reason::UploadSlow) == 0 {
        assert!(began.elapsed() < PATIENCE, "never given up");
        peer.send(DATA, 0, 1, b"x");
        std::thread::sleep(DRIP);
    }
    assert_eq!(peer.until(HEADERS).map(|head| head.stream), Some(1));
}

#[test]
fn what_is_left_of_an_upload_must_not_drip_behind_an_early_answer() {
    let backend = Backend::script(|mut conn| {
        raw_head(&mut conn.stream);
        conn.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n");
        // It takes what comes, until the end.
        let _ = std::io::copy(&mut conn.stream, &mut std::io::sink());
    });
    let proxy = proxy(&backend, Timeouts { idle: 1, ..Timeouts::default() });
    let mut client = proxy.connect();
    client.send("POST / HTTP/1.1\r\nHost: wiki.prox.local\r\nContent-Length: 100000\r\n\r\n");
    assert_eq!(client.head().status, 200);
    assert_eq!(read_chunk(&mut client.stream).unwrap(), b"hi");
    drip(&mut client, b"x");
    assert!(client.is_closed());
    assert_eq!(proxy.count(Reason::UploadSlow), 1, "{:?}", proxy.totals());
}

/// Over HTTP/1 the kernel takes and gives so much at a time that who reads so slowly is silent for long, too.
#[test]
fn a_client_that_reads_an_octet_at_a_time_is_cut() {
    let backend = Backend::script(|mut conn| {
        conn.request();
        conn.answer(&"x".repeat(1000));
        conn.request();
    });
    let proxy = proxy(&backend, Timeouts { idle: 1, ..Timeouts::default() });
    let mut peer = Peer::client(proxy.addr, &[(INITIAL_WINDOW_SIZE, 1)]);
    peer.get(1, "/");
    let began = Instant::now();
    while proxy.count(Reason::ClientSlow) == 0 {
        assert!(began.elapsed() < PATIENCE, "never cut");
        std::thread::sleep(DRIP);
        peer.widen(1, 1);
    }
    assert_eq!(peer.until(RST_STREAM).map(|reset| reset.stream), Some(1));
    proxy.until("let go", |totals| totals.bytes_out < 100);
}

/// An app that says an octet now and then, for longer than a client may be slow.
fn chatting(events: usize) -> Backend {
    Backend::script(move |mut conn| {
        raw_head(&mut conn.stream);
        conn.write(
            "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n",
        );
        for _ in 0..events {
            conn.write("1\r\n.\r\n");
            std::thread::sleep(DRIP);
        }
        conn.write("0\r\n\r\n");
    })
}

#[test]
fn an_app_that_has_little_to_say_is_not_held_against_its_client() {
    let backend = chatting(20);
    let proxy = proxy(&backend, Timeouts { idle: 1, ..Timeouts::default() });
    let asks = [
        "GET / HTTP/1.1\r\nHost: wiki.prox.local\r\n\r\n",
        // Whoever holds a conversation says something when there is something to say.
        "POST / HTTP/1.1\r\nHost: wiki.prox.local\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n",
    ];
    let mut clients = asks.map(|ask| {
        let mut client = proxy.connect();
        client.send(ask);
        client
    });
    for client in &mut clients {
        assert_eq!(client.head().status, 200);
        let events =
            std::iter::from_fn(|| read_chunk(&mut client.stream)).take_while(|event| !event.is_empty());
        assert_eq!(events.count(), 20);
    }
    assert_eq!((proxy.count(Reason::ClientSlow), proxy.count(Reason::UploadSlow)), (0, 0));
}

#[test]
fn an_app_that_takes_its_time_is_not_held_against_its_client() {
    // It takes what the window is at first, and then an octet at a time.
    let backend = FrameBackend::script(|_, mut peer| {
        let stream = peer.until(HEADERS).unwrap().stream;
        let mut taken = 0;
        while taken < WINDOW {
            taken += peer.until(DATA).unwrap().payload.len();
        }
        for _ in 0..20 {
            std::thread::sleep(DRIP);
            peer.widen(0, 1);
            peer.widen(stream, 1);
            assert_eq!(peer.until(DATA).unwrap().payload.len(), 1);
        }
        peer.answer(stream, "taken");
    });
    let app = with(vhost("wiki", &[backend.addr]), |policy| {
        policy.timeouts = Timeouts { header: 1, ..Timeouts::default() };
    });
    let proxy = Proxy::start(&Table::of(vec![Vhost { protocol: BackendProtocol::H2c, ..app }]));
    let mut client = proxy.connect();
    client.send("POST / HTTP/1.1\r\nHost: wiki.prox.local\r\nContent-Length: 100000\r\n\r\n");
    client.send(&"x".repeat(100_000));
    let answer = client.response();
    assert_eq!((answer.status, answer.text().as_str()), (200, "taken"), "{:?}", proxy.totals());
}
