//! What one client can have us do and hold over HTTP/2.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use proximity_proxy::Reason;
use proximity_table::{ProxySettings, Timeouts};

use crate::frames::{
    CANCEL, CONTINUATION, DATA, END_HEADERS, END_STREAM, ENHANCE_YOUR_CALM, GOAWAY, HEADERS,
    INITIAL_WINDOW_SIZE, NO_ERROR, PING, Peer, RST_STREAM, SETTINGS, field, frame, get,
};
use crate::support::{Backend, Proxy, Table, vhost, with};

/// Stream numbers of a client (RFC 9113 §5.1.1).
fn numbers() -> impl Iterator<Item = u32> {
    (1..).step_by(2)
}

fn proxy(backend: &Backend) -> Proxy {
    Proxy::start(&Table::of(vec![vhost("wiki", &[backend.addr])]))
}

/// Takes requests, and answers what is `/wanted`.
fn mostly_silent() -> Backend {
    Backend::script(|mut conn| {
        while let Some(request) = conn.request() {
            if request.line.contains("/wanted") {
                conn.answer("wanted");
            }
        }
    })
}

// CVE-2023-44487: requests that are reset at once cost the server and not the client.
#[test]
fn requests_that_are_reset_at_once_end_the_connection() {
    let backend = mostly_silent();
    let proxy = proxy(&backend);
    let mut peer = Peer::client(proxy.addr, &[]);
    let mut burst = Vec::new();
    for stream in numbers().take(60) {
        burst.extend(frame(HEADERS, END_HEADERS | END_STREAM, stream, &get("/")));
        burst.extend(frame(RST_STREAM, 0, stream, &CANCEL.to_be_bytes()));
    }
    peer.stream.get_mut().write_all(&burst).unwrap();
    assert_eq!(peer.goodbye(), Some(ENHANCE_YOUR_CALM));
    proxy.until("counted", |totals| totals.of(Reason::Flood) == 1 && totals.open == 0);
    assert_eq!(backend.accepted(), 0, "the backend was asked");
}

/// The same, slowly: each when a backend has got it.
#[test]
fn requests_that_are_cancelled_when_a_backend_has_them_end_the_connection() {
    let backend = mostly_silent();
    let proxy = proxy(&backend);
    let mut peer = Peer::client(proxy.addr, &[]);
    let mut asked = 0;
    for stream in numbers().take(1000) {
        if proxy.count(Reason::CancelFlood) > 0 || !peer.get(stream, "/") {
            break;
        }
        asked += 1;
        proxy.until("sent or enough", |totals| {
            totals.upstream_connects == asked || totals.of(Reason::CancelFlood) > 0
        });
        peer.reset(stream, CANCEL);
        proxy.until("noticed or enough", |totals| {
            totals.of(Reason::ClientGone) >= asked || totals.of(Reason::CancelFlood) > 0
        });
    }
    assert_eq!(peer.goodbye(), Some(ENHANCE_YOUR_CALM));
    proxy.until("closed", |totals| totals.of(Reason::CancelFlood) == 1 && totals.open == 0);
    assert!((200..300).contains(&asked), "{asked}");
    assert_eq!(proxy.count(Reason::Flood), 0);
}

/// A browser whose user goes elsewhere cancels everything that it has asked for.
#[test]
fn a_page_that_is_left_ends_nothing() {
    const OPEN: usize = 120;
    let backend = mostly_silent();
    let proxy = proxy(&backend);
    let mut peer = Peer::client(proxy.addr, &[]);
    let mut numbers = numbers();
    for round in 1..=2 {
        let page: Vec<u32> = numbers.by_ref().take(OPEN).collect();
        page.iter().for_each(|&stream| assert!(peer.get(stream, "/")));
        proxy.until("all sent", |totals| totals.upstream_connects >= OPEN as u64 * round);
        page.iter().for_each(|&stream| assert!(peer.reset(stream, CANCEL)));
        proxy.until("all gone", |totals| totals.of(Reason::ClientGone) == OPEN as u64 * round);
    }
    let next = numbers.next().unwrap();
    peer.get(next, "/wanted");
    let answer = peer.until(DATA).unwrap();
    assert_eq!((answer.stream, answer.payload.as_slice()), (next, &b"wanted"[..]));
    assert_eq!(proxy.count(Reason::CancelFlood), 0);
}

// CVE-2024-27316: header blocks without end.
#[test]
fn headers_without_end_end_the_connection() {
    let large = field("x", &"y".repeat(120)).repeat(128);
    for (what, block) in [("nothing", vec![]), ("little", field("x", "y")), ("much", large)] {
        let backend = Backend::answering("");
        let proxy = proxy(&backend);
        let mut peer = Peer::client(proxy.addr, &[]);
        peer.send(HEADERS, END_STREAM, 1, &get("/"));
        let sent = (0..1000).take_while(|_| peer.send(CONTINUATION, 0, 1, &block)).count();
        // What was still on its way when the proxy closed may have cost the goodbye.
        let code = peer.goodbye();
        assert!(matches!(code, None | Some(ENHANCE_YOUR_CALM)), "{what}: {code:?} after {sent}");
        proxy.until(&format!("ended by {what}"), |totals| totals.of(Reason::Flood) == 1 && totals.open == 0);
        assert_eq!(backend.accepted(), 0);
    }
}

#[test]
fn a_long_header_may_come_in_several_frames() {
    let backend = Backend::answering("fine");
    let proxy = proxy(&backend);
    let mut peer = Peer::client(proxy.addr, &[]);
    // Well within the 32 KiB of the settings.
    peer.send(HEADERS, END_STREAM, 1, &get("/"));
    for number in 0..4 {
        let flags = if number == 3 { END_HEADERS } else { 0 };
        peer.send(CONTINUATION, flags, 1, &field(&format!("x-{number}"), &"y".repeat(120)).repeat(16));
    }
    assert_eq!(peer.until(DATA).unwrap().payload, b"fine");
    assert_eq!(backend.requests()[0].header("x-3").len(), 16);
}

#[test]
fn empty_pieces_of_a_body_end_the_connection() {
    let backend = Backend::script(|mut conn| drop(conn.request()));
    let proxy = proxy(&backend);
    let mut peer = Peer::client(proxy.addr, &[]);
    let mut post = get("/");
    // `:method: POST` of the static table.
    post[0] = 0x83;
    peer.send(HEADERS, END_HEADERS, 1, &post);
    while peer.send(DATA, 0, 1, &[]) && proxy.count(Reason::Flood) == 0 {}
    let code = peer.goodbye();
    assert!(matches!(code, None | Some(ENHANCE_YOUR_CALM)), "{code:?}");
    proxy.until("ended", |totals| totals.of(Reason::Flood) == 1 && totals.open == 0);
}

/// PING and SETTINGS want answers. Whoever takes none is not read from, and ends as anybody who asks for nothing.
#[test]
fn whoever_takes_no_acknowledgements_is_not_read_from() {
    // Socket buffers both ways; read at full speed it would be gone in a moment.
    const MOST: usize = 32 << 20;
    std::thread::scope(|scope| {
        for (kind, payload) in [(PING, vec![0; 8]), (SETTINGS, vec![])] {
            scope.spawn(move || {
                let backend = Backend::answering("");
                let settings = ProxySettings { idle_timeout: 1, drain: 1, ..ProxySettings::default() };
                let table = Table::of(vec![vhost("wiki", &[backend.addr])]);
                let proxy = Proxy::with(&table, settings, None);
                let mut peer = Peer::client(proxy.addr, &[]);
                let frames = frame(kind, 0, 0, &payload).repeat(1000);
                let stream = peer.stream.get_mut();
                stream.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
                let mut sent = 0;
                while stream.write_all(&frames).is_ok() {
                    sent += frames.len();
                    assert!(sent < MOST, "kind {kind}: all of it was read");
                }
                proxy.until(&format!("closed after kind {kind}"), |totals| totals.open == 0);
            });
        }
    });
}

/// Answers every request with so many octets, and counts what it got rid of.
fn large(size: usize) -> (Backend, Arc<AtomicUsize>) {
    let written = Arc::new(AtomicUsize::new(0));
    let count = written.clone();
    let backend = Backend::script(move |mut conn| {
        while conn.request().is_some() {
            conn.write(&format!("HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n"));
            let mut left = size;
            while left > 0 {
                let chunk = [b'x'; 1 << 14];
                let Ok(octets) = conn.stream.get_mut().write(&chunk[..left.min(chunk.len())]) else { return };
                left -= octets;
                count.fetch_add(octets, SeqCst);
            }
        }
    });
    (backend, written)
}

#[test]
fn nothing_piles_up_for_a_client_that_takes_nothing() {
    const SIZE: usize = 64 << 20;
    // Socket buffers between the backend and the proxy, and the proxy's own; far less than the body.
    const IN_FLIGHT: usize = 16 << 20;
    let (backend, written) = large(SIZE);
    let app = with(vhost("wiki", &[backend.addr]), |policy| {
        policy.timeouts = Timeouts { idle: 1, ..Timeouts::default() };
    });
    let proxy = Proxy::start(&Table::of(vec![app]));
    let mut peer = Peer::client(proxy.addr, &[(INITIAL_WINDOW_SIZE, 0)]);
    peer.get(1, "/");
    let head = peer.until(HEADERS).unwrap();
    assert!(!head.ends_stream());
    let end = peer.until(RST_STREAM).unwrap();
    assert_ne!(end.code(), NO_ERROR, "a part is not the whole");
    assert_eq!(proxy.count(Reason::ClientSlow), 1);
    assert!(written.load(SeqCst) < IN_FLIGHT, "{}", written.load(SeqCst));
    // The connection is as good as before.
    peer.get(3, "/");
    assert_eq!(peer.until(HEADERS).unwrap().stream, 3);
}

/// Reads a stream to its end, ten thousand octets at a time; says how many there were.
fn read_slowly(peer: &mut Peer, stream: u32) -> usize {
    let mut body = 0;
    loop {
        peer.widen(stream, 10_000);
        peer.widen(0, 10_000);
        let frame = peer.until(DATA).unwrap_or_else(|| panic!("cut after {body}"));
        body += frame.payload.len();
        if frame.ends_stream() {
            return body;
        }
    }
}

#[test]
fn a_stop_leaves_a_slow_reader_its_answer() {
    const SIZE: usize = 2 << 20;
    let (backend, _) = large(SIZE);
    let proxy = proxy(&backend);
    let mut peer = Peer::client(proxy.addr, &[(INITIAL_WINDOW_SIZE, 0)]);
    peer.get(1, "/");
    peer.until(HEADERS).unwrap();
    proxy.begin_stop();
    assert_eq!(peer.until(GOAWAY).unwrap().code(), NO_ERROR);
    assert_eq!(read_slowly(&mut peer, 1), SIZE);
    assert!(peer.is_over());
    proxy.join();
}

/// An answer that was given to h2 is over for the exchange, and not for the client.
#[test]
fn a_stop_lets_leave_what_waits_to_be_written() {
    const STREAMS: usize = 128;
    // Fits what h2 takes of one stream; all together do not fit the buffers of a connection that nobody reads.
    const SIZE: usize = 32 << 10;
    let (backend, _) = large(SIZE);
    let proxy = proxy(&backend);
    let mut peer = Peer::client(proxy.addr, &[(INITIAL_WINDOW_SIZE, 1 << 20)]);
    peer.widen(0, 1 << 24);
    numbers().take(STREAMS).for_each(|stream| assert!(peer.get(stream, "/")));
    proxy.until("all over", |totals| totals.responses[2] == STREAMS as u64);
    proxy.begin_stop();
    let (mut body, mut ended) = (0, 0);
    while ended < STREAMS {
        let frame = peer.until(DATA).unwrap_or_else(|| panic!("{ended} came whole"));
        body += frame.payload.len();
        ended += usize::from(frame.ends_stream());
    }
    assert_eq!(body, STREAMS * SIZE);
    assert!(peer.is_over());
    proxy.join();
}
