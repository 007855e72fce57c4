use std::io::{ErrorKind, Read, Write};
use std::sync::Mutex;
use std::sync::mpsc::channel;
use std::time::Duration;

use proximity_proxy::Reason;
use proximity_table::Change;

use crate::support::{Backend, PATIENCE, Proxy, Table, read_chunk, vhost};

#[test]
fn a_chunk_reaches_the_client_before_the_next_one_exists() {
    let (release, released) = channel::<()>();
    let released = Mutex::new(released);
    let backend = Backend::script(move |mut conn| {
        conn.request();
        conn.write(
            "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n",
        );
        for event in ["one", "two", "three"] {
            conn.write(&format!("{:x}\r\n{event}\r\n", event.len()));
            released.lock().unwrap().recv_timeout(PATIENCE).unwrap();
        }
        conn.write("0\r\n\r\n");
    });
    let proxy = Proxy::start(&Table::of(vec![vhost("wiki", &[backend.addr])]));
    let mut client = proxy.connect();
    client.send("GET /events HTTP/1.1\r\nHost: wiki.prox.local\r\n\r\n");
    assert_eq!(client.head().status, 200);
    for event in ["one", "two", "three"] {
        assert_eq!(read_chunk(&mut client.stream).unwrap(), event.as_bytes());
        release.send(()).unwrap();
    }
    assert_eq!(read_chunk(&mut client.stream).unwrap(), b"");
}

#[test]
fn a_hundred_megabytes_flow_without_being_stored() {
    const SIZE: usize = 100 << 20;
    // Socket buffers on two connections and the proxy's own; far less than the body.
    const IN_FLIGHT: usize = 32 << 20;
    let (stalled, stalls) = channel();
    let stalled = Mutex::new(stalled);
    let backend = Backend::script(move |mut conn| {
        conn.request();
        conn.write(&format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n"));
        let stream = conn.stream.get_mut();
        stream.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
        let chunk = [b'x'; 64 << 10];
        let (mut sent, mut told) = (0, false);
        while sent < SIZE {
            match stream.write(&chunk[..chunk.len().min(SIZE - sent)]) {
                Ok(written) => sent += written,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if !told {
                        stalled.lock().unwrap().send(sent).unwrap();
                    }
                    told = true;
                }
                Err(error) => panic!("{error}"),
            }
        }
    });
    let proxy = Proxy::start(&Table::of(vec![vhost("wiki", &[backend.addr])]));
    let mut client = proxy.connect();
    client.send("GET /big HTTP/1.1\r\nHost: wiki.prox.local\r\n\r\n");
    assert_eq!(client.head().status, 200);
    // The client reads nothing more: the backend must come to a stop.
    let stored = stalls.recv_timeout(PATIENCE).unwrap();
    assert!(stored < IN_FLIGHT, "{stored} octets were taken from the backend with nobody reading");
    let mut body = client.stream.by_ref().take(SIZE as u64);
    assert_eq!(std::io::copy(&mut body, &mut std::io::sink()).unwrap(), SIZE as u64);
    proxy.until("counted", |totals| totals.bytes_out == SIZE as u64);
}

#[test]
fn an_upload_streams_to_the_backend() {
    const HALF: usize = 20 << 20;
    let (arrived, arrivals) = channel();
    let arrived = Mutex::new(arrived);
    let backend = Backend::script(move |mut conn| {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            std::io::BufRead::read_line(&mut conn.stream, &mut head).unwrap();
        }
        for _ in 0..2 {
            let mut half = conn.stream.by_ref().take(HALF as u64);
            assert_eq!(std::io::copy(&mut half, &mut std::io::sink()).unwrap(), HALF as u64);
            arrived.lock().unwrap().send(head.clone()).unwrap();
        }
        conn.answer("stored");
    });
    let proxy = Proxy::start(&Table::of(vec![vhost("wiki", &[backend.addr])]));
    let mut client = proxy.connect();
    client.send(&format!("PUT /f HTTP/1.1\r\nHost: wiki.prox.local\r\nContent-Length: {}\r\n\r\n", 2 * HALF));
    let half = vec![b'y'; HALF];
    for _ in 0..2 {
        client.stream.get_mut().write_all(&half).unwrap();
        let head = arrivals.recv_timeout(PATIENCE).unwrap();
        assert!(head.contains(&format!("Content-Length: {}", 2 * HALF)), "{head}");
    }
    assert_eq!(client.response().text(), "stored");
    proxy.until("counted", |totals| totals.bytes_in == 2 * HALF as u64);
}

#[test]
fn a_chunked_upload_and_expect_continue_pass() {
    let backend = Backend::script(|mut conn| {
        while let Some(request) = conn.request() {
            conn.answer(&String::from_utf8(request.body).unwrap());
        }
    });
    let proxy = Proxy::start(&Table::of(vec![vhost("wiki", &[backend.addr])]));
    let mut client = proxy.connect();
    client.send(
        "POST / HTTP/1.1\r\nHost: wiki.prox.local\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    );
    assert_eq!(client.response().text(), "abc");
    client.send(
        "POST / HTTP/1.1\r\nHost: wiki.prox.local\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n",
    );
    assert_eq!(client.head().status, 100);
    client.send("def");
    assert_eq!(client.response().text(), "def");
}

#[test]
fn trailers_of_an_upload_pass_without_claims() {
    let (arrived, arrivals) = channel();
    let arrived = Mutex::new(arrived);
    let backend = Backend::script(move |mut conn| {
        let mut line = String::new();
        while !line.ends_with("\r\n\r\n") {
            std::io::BufRead::read_line(&mut conn.stream, &mut line).unwrap();
        }
        while read_chunk(&mut conn.stream).is_some_and(|chunk| !chunk.is_empty()) {}
        // The end of the last chunk was read with the first octets of what follows it.
        let mut trailers = String::new();
        while !trailers.ends_with("\r\n\r\n") {
            std::io::BufRead::read_line(&mut conn.stream, &mut trailers).unwrap();
        }
        arrived.lock().unwrap().send(trailers).unwrap();
        conn.answer("");
    });
    let proxy = Proxy::start(&Table::of(vec![vhost("wiki", &[backend.addr])]));
    let mut client = proxy.connect();
    client.send(
        "POST / HTTP/1.1\r\nHost: wiki.prox.local\r\nTransfer-Encoding: chunked\r\n\
         Trailer: X-Real-IP, X_Real_IP, X-Checksum\r\n\r\n3\r\nabc\r\n0\r\n\
         X-Real-IP: 6.6.6.6\r\nX_Real_IP: 6.6.6.6\r\nX-Checksum: 42\r\n\r\n",
    );
    let trailers = arrivals.recv_timeout(PATIENCE).unwrap().to_ascii_lowercase();
    assert!(trailers.contains("checksum: 42"), "{trailers}");
    assert!(!trailers.contains("6.6.6.6"), "{trailers}");
    assert_eq!(client.response().status, 200);
    proxy.until("counted", |totals| totals.of(Reason::HeaderName) == 1);
}

#[test]
fn a_download_is_not_cut_by_changes_of_other_vhosts() {
    let (release, released) = channel::<()>();
    let released = Mutex::new(released);
    let slow = Backend::script(move |mut conn| {
        conn.request();
        conn.write("HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf");
        released.lock().unwrap().recv_timeout(PATIENCE).unwrap();
        conn.write("done");
    });
    let other = Backend::answering("other");
    let mut table = Table::of(vec![vhost("slow", &[slow.addr]), vhost("other", &[other.addr])]);
    let proxy = Proxy::start(&table);
    let mut client = proxy.connect();
    client.send("GET / HTTP/1.1\r\nHost: slow.prox.local\r\n\r\n");
    assert_eq!(client.head().status, 200);
    let mut half = [0; 4];
    client.stream.read_exact(&mut half).unwrap();
    table.change(Change::RemoveVhost("other".parse().unwrap()));
    assert_eq!(proxy.get("other.prox.local", "/").status, 404);
    // Not even the end of its own vhost cuts it.
    table.change(Change::RemoveVhost("slow".parse().unwrap()));
    assert_eq!(proxy.get("slow.prox.local", "/").status, 404);
    release.send(()).unwrap();
    client.stream.read_exact(&mut half).unwrap();
    assert_eq!(&half, b"done");
}

#[test]
fn an_answer_that_breaks_off_is_not_passed_on_as_whole() {
    let backend = Backend::script(|mut conn| {
        conn.request();
        conn.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n");
    });
    let proxy = Proxy::start(&Table::of(vec![vhost("wiki", &[backend.addr])]));
    let mut client = proxy.connect();
    client.send("GET / HTTP/1.1\r\nHost: wiki.prox.local\r\n\r\n");
    assert_eq!(client.head().status, 200);
    let mut rest = Vec::new();
    let _ = client.stream.read_to_end(&mut rest);
    assert_eq!(rest, b"3\r\nabc\r\n", "the final chunk must be missing");
    proxy.until("counted", |totals| totals.of(Reason::BackendCut) == 1);
}

#[test]
fn a_websocket_passes_both_ways_and_its_connection_is_not_parsed() {
    let backend = Backend::script(|mut conn| {
        let request = conn.request().unwrap();
        assert_eq!(request.header("connection"), ["upgrade"]);
        assert_eq!(request.header("upgrade"), ["websocket"]);
        assert_eq!(request.header("sec-websocket-key"), ["abc"]);
        conn.write(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhello",
        );
        let mut frame = [0; 4];
        while conn.stream.read_exact(&mut frame).is_ok() {
            conn.stream.get_mut().write_all(&frame).unwrap();
        }
    });
    let proxy = Proxy::start(&Table::of(vec![vhost("wiki", &[backend.addr])]));
    let mut client = proxy.connect();
    client.send(
        "GET /ws HTTP/1.1\r\nHost: wiki.prox.local\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Key: abc\r\n\r\n",
    );
    let head = client.head();
    assert_eq!((head.status, head.header("upgrade")), (101, vec!["websocket"]));
    let mut hello = [0; 5];
    client.stream.read_exact(&mut hello).unwrap();
    assert_eq!(&hello, b"hello");
    client.echoes(&[b"\n\0\n\0", b"\xff\xfe\n\n"]);
    assert_eq!(proxy.totals().tunnels, 1);
    drop(client);
    proxy.until("closed", |totals| totals.tunnels == 0 && totals.open == 0);
}
