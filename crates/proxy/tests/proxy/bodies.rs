//! Messages on their way: in both directions at once, in pieces, in chunks, with what comes before and behind them.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use proximity_proxy::Reason;

use crate::support::{Backend, Client, PATIENCE, Proxy, Table, raw_head, read_chunk, read_line, vhost};

fn proxy(backend: &Backend) -> Proxy {
    Proxy::start(&Table::of(vec![vhost("wiki", &[backend.addr])]))
}

fn send(client: &mut Client, line: &str, fields: &str, body: &str) {
    client.send(&format!("{line} HTTP/1.1\r\nHost: wiki.prox.local\r\n{fields}\r\n{body}"));
}

/// A channel whose receiving end several threads may have.
fn signal<T>() -> (Sender<T>, Mutex<Receiver<T>>) {
    let (sender, receiver) = channel();
    (sender, Mutex::new(receiver))
}

fn wait<T>(receiver: &Mutex<Receiver<T>>) -> T {
    receiver.lock().unwrap().recv_timeout(PATIENCE).unwrap()
}

#[test]
fn an_answer_until_the_end_of_the_connection_streams_as_chunks() {
    let (release, released) = signal::<()>();
    let backend = Backend::script(move |mut conn| {
        conn.request();
        conn.write("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n");
        for event in ["data: 1\n\n", "data: 2\n\n"] {
            conn.write(event);
            wait(&released);
        }
    });
    let proxy = proxy(&backend);
    let mut client = proxy.connect();
    send(&mut client, "GET /events", "", "");
    assert_eq!(client.head().header("transfer-encoding"), ["chunked"]);
    for event in ["data: 1\n\n", "data: 2\n\n"] {
        assert_eq!(read_chunk(&mut client.stream).unwrap(), event.as_bytes());
        release.send(()).unwrap();
    }
    assert_eq!(read_chunk(&mut client.stream).unwrap(), b"");
}

#[test]
fn pieces_of_a_known_length_pass_as_they_come_however_long_the_whole_is() {
    const LONG: usize = 10 << 20;
    let (release, released) = signal::<()>();
    let backend = Backend::script(move |mut conn| {
        conn.request();
        conn.write(&format!("HTTP/1.1 200 OK\r\nContent-Length: {LONG}\r\n\r\n"));
        for piece in ["one", "two", "three"] {
            conn.write(piece);
            wait(&released);
        }
    });
    let proxy = proxy(&backend);
    let mut client = proxy.connect();
    send(&mut client, "GET /", "", "");
    assert_eq!(client.head().status, 200);
    for piece in ["one", "two", "three"] {
        let mut octets = vec![0; piece.len()];
        client.stream.read_exact(&mut octets).unwrap();
        assert_eq!(octets, piece.as_bytes());
        release.send(()).unwrap();
    }
}

#[test]
fn a_long_poll_is_answered_when_there_is_something() {
    let (release, released) = signal::<()>();
    let (arrived, arrivals) = signal();
    let arrived = Mutex::new(arrived);
    let backend = Backend::script(move |mut conn| {
        conn.request();
        arrived.lock().unwrap().send(()).unwrap();
        wait(&released);
        conn.answer("news");
    });
    let proxy = proxy(&backend);
    let mut client = proxy.connect();
    send(&mut client, "GET /poll", "", "");
    wait(&arrivals);
    // Others are served meanwhile, by the same thread.
    assert_eq!(proxy.get("nobody.prox.local", "/").status, 404);
    release.send(()).unwrap();
    assert_eq!(client.response().text(), "news");
}

#[test]
fn a_client_that_leaves_takes_the_backends_connection_along() {
    for begin in [
        "",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 9000000\r\n\r\nabc",
    ] {
        let (arrived, arrivals) = signal();
        let (ended, ends) = signal();
        let (arrived, ended) = (Mutex::new(arrived), Mutex::new(ended));
        let backend = Backend::script(move |mut conn| {
            conn.request();
            conn.write(begin);
            arrived.lock().unwrap().send(()).unwrap();
            assert!(conn.request().is_none());
            ended.lock().unwrap().send(Instant::now()).unwrap();
        });
        let proxy = proxy(&backend);
        let mut client = proxy.connect();
        send(&mut client, "GET /", "", "");
        wait(&arrivals);
        if !begin.is_empty() {
            assert_eq!(client.head().status, 200);
        }
        let left = Instant::now();
        drop(client);
        let promptly = wait(&ends).duration_since(left);
        assert!(promptly < Duration::from_secs(2), "{promptly:?} after {begin:?}");
        proxy.until("counted", |totals| totals.of(Reason::ClientGone) == 1 && totals.open == 0);
    }
}

#[test]
fn an_upload_that_breaks_off_is_not_taken_for_whole() {
    for (framing, part) in [("Content-Length: 10", "abc"), ("Transfer-Encoding: chunked", "3\r\nabc\r\n")] {
        let (heard, tape) = signal();
        let heard = Mutex::new(heard);
        let backend = Backend::script(move |mut conn| {
            let mut all = String::new();
            let _ = conn.stream.read_to_string(&mut all);
            heard.lock().unwrap().send(all).unwrap();
        });
        let proxy = proxy(&backend);
        let mut client = proxy.connect();
        send(&mut client, "POST /", &format!("{framing}\r\n"), part);
        proxy.until("begun", |totals| totals.upstream_connects == 1);
        drop(client);
        let tape = wait(&tape);
        assert!(tape.contains("POST /") && !tape.ends_with("0\r\n\r\n"), "{tape:?}");
        proxy.until("counted", |totals| totals.of(Reason::ClientGone) == 1);
    }
}

// RFC 9110 §15.2: "A proxy MUST forward 1xx responses".
#[test]
fn interim_answers_pass_before_the_last_one() {
    let (release, released) = signal::<()>();
    let backend = Backend::script(move |mut conn| {
        while conn.request().is_some() {
            conn.write("HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n");
            wait(&released);
            conn.answer("done");
        }
    });
    let proxy = proxy(&backend);
    let mut client = proxy.connect();
    send(&mut client, "GET /", "", "");
    assert_eq!(raw_head(&mut client.stream), "HTTP/1.1 102 Processing\r\n\r\n");
    assert_eq!(raw_head(&mut client.stream), "HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n");
    release.send(()).unwrap();
    assert_eq!(client.response().text(), "done");
    // HTTP/1.0 knows none.
    let mut old = proxy.connect();
    old.send("GET / HTTP/1.0\r\nHost: wiki.prox.local\r\n\r\n");
    release.send(()).unwrap();
    assert_eq!(old.response().text(), "done");
}

// RFC 9110 §10.1.1: "A proxy MUST, upon receiving an HTTP/1.1 request that has […] a 100-continue expectation […]
// either forward the request […] or generate an immediate final response".
#[test]
fn who_waits_for_continue_gets_it_or_the_answer() {
    let backend = Backend::script(|mut conn| {
        let head = raw_head(&mut conn.stream);
        assert!(head.contains("Expect: 100-continue\r\n"), "{head}");
        if head.contains("/refused") {
            conn.write("HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno");
            return;
        }
        if head.contains("/told") {
            conn.write("HTTP/1.1 100 Continue\r\n\r\n");
        }
        // One that does not know of it only waits for the body.
        let mut body = [0; 3];
        conn.stream.read_exact(&mut body).unwrap();
        let body = std::str::from_utf8(&body).unwrap();
        conn.write(&format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 3\r\n\r\n{body}"));
    });
    let proxy = proxy(&backend);
    // The backend has a second to say it.
    for (path, after) in [("/told", 0), ("/untold", 900)] {
        let mut client = proxy.connect();
        let began = Instant::now();
        send(&mut client, &format!("PUT {path}"), "Content-Length: 3\r\nExpect: 100-continue\r\n", "");
        assert_eq!(raw_head(&mut client.stream), "HTTP/1.1 100 Continue\r\n\r\n", "{path}");
        assert!(began.elapsed() >= Duration::from_millis(after), "{path}: {:?}", began.elapsed());
        client.send("abc");
        assert_eq!(client.response().text(), "abc", "{path}");
    }
    let mut client = proxy.connect();
    send(&mut client, "PUT /refused", "Content-Length: 3\r\nExpect: 100-continue\r\n", "");
    let response = client.response();
    assert_eq!((response.status, response.text().as_str()), (403, "no"));
    // Nobody knows whether the body comes: the connection cannot be used again.
    assert!(client.is_closed());
}

#[test]
fn an_early_answer_reaches_a_client_that_is_still_sending() {
    let backend = Backend::script(|mut conn| {
        raw_head(&mut conn.stream);
        conn.write("HTTP/1.1 413 Too Large\r\nContent-Length: 4\r\nConnection: close\r\n\r\nmuch");
        // Takes a little more, as servers do before they close.
        let _ = std::io::copy(&mut conn.stream.by_ref().take(1 << 20), &mut std::io::sink());
    });
    let proxy = proxy(&backend);
    let mut client = proxy.connect();
    send(&mut client, "PUT /", "Content-Length: 100000000\r\n", "");
    let mut sender = client.stream.get_ref().try_clone().unwrap();
    let sending = std::thread::spawn(move || while sender.write_all(&[b'x'; 1 << 14]).is_ok() {});
    let response = client.response();
    assert_eq!((response.status, response.text().as_str()), (413, "much"));
    assert_eq!(response.header("connection"), ["close"]);
    sending.join().unwrap();
    proxy.until("closed", |totals| totals.open == 0);
}

#[test]
fn both_directions_flow_at_once() {
    const SIZE: usize = 8 << 20;
    let backend = Backend::script(|mut conn| {
        raw_head(&mut conn.stream);
        conn.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        // Echoes as it reads: neither side may wait for the other's end.
        let mut buffer = vec![0; 1 << 15];
        let mut left = SIZE;
        while left > 0 {
            let most = left.min(buffer.len());
            let read = conn.stream.read(&mut buffer[..most]).unwrap();
            left -= read;
            let out = conn.stream.get_mut();
            out.write_all(format!("{read:x}\r\n").as_bytes()).unwrap();
            out.write_all(&buffer[..read]).unwrap();
            out.write_all(b"\r\n").unwrap();
        }
        conn.write("0\r\n\r\n");
    });
    let proxy = proxy(&backend);
    let mut client = proxy.connect();
    send(&mut client, "POST /", &format!("Content-Length: {SIZE}\r\n"), "");
    let mut sender = client.stream.get_ref().try_clone().unwrap();
    let sent: Vec<u8> = (0..SIZE).map(|at| (at % 251) as u8).collect();
    let expected = sent.clone();
    let sending = std::thread::spawn(move || sender.write_all(&sent).unwrap());
    assert!(client.response().body == expected);
    sending.join().unwrap();
}

#[test]
fn chunks_and_trailers_pass_both_ways() {
    let backend = Backend::script(|mut conn| {
        raw_head(&mut conn.stream);
        let mut body = Vec::new();
        while let Some(line) = read_line(&mut conn.stream).filter(|line| line != "0") {
            let mut chunk = vec![0; usize::from_str_radix(&line, 16).unwrap() + 2];
            conn.stream.read_exact(&mut chunk).unwrap();
            body.extend_from_slice(&chunk[..chunk.len() - 2]);
        }
        assert_eq!(raw_head(&mut conn.stream), "X-Sum: 1\r\n\r\n");
        let body = String::from_utf8(body).unwrap();
        conn.write(&format!(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n{:x};ext\r\n{body}\r\n0\r\nX-Sum: 2\r\n\r\n",
            body.len()
        ));
    });
    let proxy = proxy(&backend);
    let mut client = proxy.connect();
    send(
        &mut client,
        "POST /",
        "Transfer-Encoding: chunked\r\nTE: trailers\r\nTrailer: X-Sum\r\n",
        "3\r\nabc\r\n2;x=\"y\"\r\nde\r\n0\r\nX-Sum: 1\r\n\r\n",
    );
    assert!(raw_head(&mut client.stream).contains("Trailer: X-Sum\r\n"));
    assert_eq!(raw_head(&mut client.stream), "5\r\nabcde\r\n0\r\nX-Sum: 2\r\n\r\n");
}

#[test]
fn an_http_1_0_client_gets_a_chunked_answer_in_the_clear() {
    let backend = Backend::script(|mut conn| {
        while conn.request().is_some() {
            conn.write(
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\nX: 1\r\n\r\n",
            );
        }
    });
    let proxy = proxy(&backend);
    let mut client = proxy.connect();
    client.send("GET / HTTP/1.0\r\nHost: wiki.prox.local\r\nConnection: keep-alive\r\n\r\n");
    let response = client.response();
    assert_eq!(response.text(), "abcde");
    for name in ["transfer-encoding", "trailer", "content-length"] {
        assert!(response.header(name).is_empty(), "{name}: {response:?}");
    }
    assert_eq!(response.header("connection"), ["close"], "its end is the end of the connection");
}

#[test]
fn a_hundred_requests_in_one_piece_are_answered_in_order() {
    let backend = Backend::script(|mut conn| {
        while let Some(request) = conn.request() {
            let path = request.line.split(' ').nth(1).unwrap().to_owned();
            conn.answer(&format!("{path} {}", request.body.len()));
        }
    });
    let proxy = proxy(&backend);
    let mut client = proxy.connect();
    let request = |n: usize| match n % 3 {
        0 => format!("GET /{n} HTTP/1.1\r\nHost: wiki.prox.local\r\nX: {}\r\n\r\n", "x".repeat(n * 7)),
        1 => format!(
            "POST /{n} HTTP/1.1\r\nHost: wiki.prox.local\r\nContent-Length: {n}\r\n\r\n{}",
            "y".repeat(n)
        ),
        _ => format!(
            "PUT /{n} HTTP/1.1\r\nHost: wiki.prox.local\r\nTransfer-Encoding: chunked\r\n\r\n{n:x}\r\n{}\r\n0\r\n\r\n",
            "z".repeat(n)
        ),
    };
    client.send(&(0..100).map(request).collect::<String>());
    for n in 0..100 {
        let length = if n % 3 == 0 { 0 } else { n };
        assert_eq!(client.response().text(), format!("/{n} {length}"));
    }
    assert_eq!(backend.accepted(), 1);
}

const UPGRADE: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\n";
const SWITCHED: &str =
    "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";

#[test]
fn what_both_sides_send_before_an_upgrade_is_through_is_not_lost() {
    let (heard, tape) = signal();
    let heard = Mutex::new(heard);
    let backend = Backend::script(move |mut conn| {
        raw_head(&mut conn.stream);
        conn.write(&format!("{SWITCHED}early from the backend"));
        let mut early = [0; 21];
        conn.stream.read_exact(&mut early).unwrap();
        heard.lock().unwrap().send(early).unwrap();
    });
    let proxy = proxy(&backend);
    let mut client = proxy.connect();
    send(&mut client, "GET /ws", UPGRADE, "early from the client");
    assert_eq!(client.head().status, 101);
    let mut early = [0; 22];
    client.stream.read_exact(&mut early).unwrap();
    assert_eq!(&early, b"early from the backend");
    assert_eq!(&wait(&tape), b"early from the client");
}

#[test]
fn one_half_of_a_websocket_may_end_before_the_other() {
    let backend = Backend::script(|mut conn| {
        raw_head(&mut conn.stream);
        conn.write(SWITCHED);
        // Answers only after the other side has said its last word.
        let mut all = Vec::new();
        conn.stream.read_to_end(&mut all).unwrap();
        all.reverse();
        conn.stream.get_mut().write_all(&all).unwrap();
    });
    let proxy = proxy(&backend);
    let mut client = proxy.connect();
    send(&mut client, "GET /ws", UPGRADE, "");
    assert_eq!(client.head().status, 101);
    client.send("abc");
    client.stream.get_ref().shutdown(Shutdown::Write).unwrap();
    let mut all = Vec::new();
    client.stream.read_to_end(&mut all).unwrap();
    assert_eq!(all, b"cba");
    proxy.until("closed", |totals| totals.tunnels == 0 && totals.open == 0);
}

#[test]
fn a_refused_upgrade_is_an_answer_as_any_other() {
    let backend = Backend::script(|mut conn| {
        while conn.request().is_some() {
            conn.write("HTTP/1.1 426 Upgrade Required\r\nConnection: upgrade\r\nUpgrade: x/2\r\nContent-Length: 2\r\n\r\nno");
        }
    });
    let proxy = proxy(&backend);
    let mut client = proxy.connect();
    for _ in 0..2 {
        send(&mut client, "GET /ws", UPGRADE, "");
        let response = client.response();
        assert_eq!((response.status, response.text().as_str()), (426, "no"));
        assert_eq!(
            (response.header("upgrade"), response.header("connection")),
            (vec!["x/2"], vec!["upgrade"])
        );
    }
    assert_eq!(proxy.totals().tunnels, 0);
}

// RFC 9110 §7.8: "A client cannot begin using an upgraded protocol on the connection until it has completely sent the
// request message". Docker's attach and exec ask with a body for a protocol that they call tcp.
#[test]
fn an_upgrade_may_have_a_body_and_begins_behind_it() {
    const TCP: &str = "Connection: Upgrade\r\nUpgrade: tcp\r\n";
    let (heard, tape) = signal();
    let heard = Mutex::new(heard);
    let backend = Backend::script(move |mut conn| {
        let request = conn.request().unwrap();
        assert_eq!((request.header("upgrade"), request.header("connection")), (vec!["tcp"], vec!["upgrade"]));
        heard.lock().unwrap().send(request.body).unwrap();
        conn.write("HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n");
        let mut octets = [0; 4];
        while conn.stream.read_exact(&mut octets).is_ok() {
            conn.stream.get_mut().write_all(&octets).unwrap();
        }
    });
    let proxy = proxy(&backend);
    // In one piece with its head, in several, and with the first octets of the new protocol right behind it. The last
    // body is long enough to move inside the kernel.
    let long = "x".repeat(300_000);
    let cases = [
        ("{\"Tty\":true}", "", ""),
        ("{\"Tty\"", ":true}", ""),
        ("{\"Tty\"", ":true}", "ping"),
        ("", &long, "GET "),
    ];
    for (number, (first, second, early)) in cases.into_iter().enumerate() {
        let mut client = proxy.connect();
        let fields = format!("{TCP}Content-Length: {}\r\n", first.len() + second.len());
        send(&mut client, "POST /exec/1/start", &fields, first);
        if !second.is_empty() {
            // The head goes on before the body is whole.
            proxy.until("asked", |_| backend.accepted() > number);
            client.send(&format!("{second}{early}"));
        }
        assert_eq!(client.head().status, 101);
        assert!(wait(&tape) == format!("{first}{second}").as_bytes());
        let mut echo = vec![0; early.len()];
        client.stream.read_exact(&mut echo).unwrap();
        assert_eq!(echo, early.as_bytes());
        client.echoes(&[b"\n\0\n\0", b"GET ", b"0\r\n\r"]);
        drop(client);
        proxy.until("closed", |totals| totals.tunnels == 0 && totals.open == 0);
    }
}

#[test]
fn nobody_gets_a_tunnel_who_did_not_ask_for_one() {
    let backend = Backend::script(|mut conn| {
        raw_head(&mut conn.stream);
        conn.write(SWITCHED);
        let _ = conn.stream.read_to_end(&mut Vec::new());
    });
    let proxy = proxy(&backend);
    for fields in ["", "Upgrade: websocket\r\n", "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"] {
        let mut client = proxy.connect();
        send(&mut client, "GET /ws", fields, "");
        assert_eq!(client.response().status, 502, "{fields:?}");
    }
    // Nor does one whose request is not through.
    for length in ["Content-Length: 100\r\n", "Transfer-Encoding: chunked\r\n"] {
        let mut client = proxy.connect();
        send(&mut client, "POST /ws", &format!("{length}{UPGRADE}"), "4\r\nsome\r\n");
        assert_eq!(client.response().status, 502, "{length:?}");
        assert!(client.is_closed(), "what follows {length:?} is no request");
    }
    assert_eq!(proxy.count(Reason::BackendNonsense), 5);
}
