//! What backends that speak HTTP/2 say beside answers, and what both versions carry alike.

use std::future::poll_fn;
use std::net::SocketAddrV4;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use proximity_proxy::Reason;
use proximity_table::{BackendProtocol, Vhost};

use crate::frames::{
    DATA, END_HEADERS, END_STREAM, ENHANCE_YOUR_CALM, FrameBackend, HEADERS, NO_ERROR, SETTINGS,
};
use crate::http2::{connect, exchange, get, run};
use crate::scripts::h2c;
use crate::support::{Backend, Client, PATIENCE, Proxy, Table, vhost};

/// HTTP/2 connections that the proxy opens to one backend.
const MOST_SHARED: usize = 8;

fn speaking_h2c(addr: SocketAddrV4) -> Vhost {
    Vhost { protocol: BackendProtocol::H2c, ..vhost("wiki", &[addr]) }
}

fn ask(proxy: &Proxy, method: &str) -> Client {
    let mut client = proxy.connect();
    client.send(&format!("{method} / HTTP/1.1\r\nHost: wiki.prox.local\r\n\r\n"));
    client
}

// RFC 9113 §6.8: "Streams identified with a number higher than the included last stream identifier [were not
// processed]. […] requests that have not been processed can be retried", whatever the error code says.
#[test]
fn what_a_goodbye_does_not_count_goes_to_a_new_connection() {
    for code in [NO_ERROR, ENHANCE_YOUR_CALM] {
        let (arrived, arrivals) = channel();
        let arrived = Mutex::new(arrived);
        let backend = FrameBackend::script(move |number, mut peer| {
            if number > 0 {
                while let Some(request) = peer.until(HEADERS) {
                    peer.answer(request.stream, "new");
                }
                return;
            }
            let seen = peer.until(HEADERS).unwrap().stream;
            arrived.lock().unwrap().send(()).unwrap();
            peer.until(HEADERS).unwrap();
            peer.go_away(seen, code);
            peer.answer(seen, "old");
        });
        let proxy = Proxy::start(&Table::of(vec![speaking_h2c(backend.addr)]));
        // Neither may be sent twice.
        let mut first = ask(&proxy, "POST");
        arrivals.recv_timeout(PATIENCE).unwrap();
        let mut second = ask(&proxy, "POST");
        assert_eq!((second.response().text().as_str(), first.response().text().as_str()), ("new", "old"));
        assert_eq!((backend.accepted(), proxy.totals().retries), (2, 1));
        assert_eq!(proxy.count(Reason::BackendBroke), 0);
    }
}

#[test]
fn what_a_goodbye_counts_and_leaves_unanswered_is_not_sent_again() {
    for (method, status) in [("POST", 502), ("GET", 200)] {
        let backend = FrameBackend::script(|number, mut peer| {
            let first = peer.until(HEADERS).unwrap().stream;
            peer.answer(first, "first");
            if let Some(second) = peer.until(HEADERS) {
                match number {
                    0 => peer.go_away(second.stream, NO_ERROR),
                    _ => peer.answer(second.stream, "second"),
                }
            }
        });
        let proxy = Proxy::start(&Table::of(vec![speaking_h2c(backend.addr)]));
        assert_eq!(ask(&proxy, "GET").response().status, 200);
        assert_eq!(ask(&proxy, method).response().status, status, "{method}");
        assert_eq!(backend.accepted(), if status == 200 { 2 } else { 1 }, "{method}");
    }
}

#[test]
fn a_backend_that_always_says_goodbye_is_not_asked_for_ever() {
    let backend = FrameBackend::script(|_, mut peer| {
        peer.until(HEADERS).unwrap();
        peer.go_away(0, NO_ERROR);
    });
    let proxy = Proxy::start(&Table::of(vec![speaking_h2c(backend.addr)]));
    assert_eq!(ask(&proxy, "GET").response().status, 502);
    assert_eq!((backend.accepted(), proxy.count(Reason::BackendBroke)), (2, 1));
}

// RFC 9110 §6.4.1: "All 1xx (Informational), 204 (No Content), and 304 (Not Modified) responses do not include
// content."
#[test]
fn what_comes_behind_an_answer_without_a_body_goes_nowhere() {
    // `:status: 204` and `:status: 304` of the static table (RFC 7541 appendix A).
    for (status, indexed) in [(204, 0x89), (304, 0x8b)] {
        let backend = FrameBackend::script(move |_, mut peer| {
            let bad = peer.until(HEADERS).unwrap().stream;
            peer.send(HEADERS, END_HEADERS, bad, &[indexed]);
            peer.send(DATA, END_STREAM, bad, b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\ninjected");
            while let Some(request) = peer.until(HEADERS) {
                peer.answer(request.stream, "its own");
            }
        });
        let proxy = Proxy::start(&Table::of(vec![speaking_h2c(backend.addr)]));
        let mut client = ask(&proxy, "GET");
        assert_eq!(client.head().status, status);
        client.send("GET / HTTP/1.1\r\nHost: wiki.prox.local\r\n\r\n");
        assert_eq!(client.response().text(), "its own", "{status}");
    }
}

#[test]
fn requests_spread_over_the_connections_that_are_open() {
    let (arrived, arrivals) = channel();
    let (release, released) = channel::<()>();
    let (arrived, released) = (Mutex::new(arrived), Arc::new(Mutex::new(released)));
    let backend = FrameBackend::script(move |number, mut peer| {
        // SETTINGS_MAX_CONCURRENT_STREAMS (RFC 9113 §6.5.2): one request at a time.
        peer.send(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 1]);
        while let Some(request) = peer.until(HEADERS) {
            arrived.lock().unwrap().send(number).unwrap();
            released.lock().unwrap().recv_timeout(PATIENCE).unwrap();
            peer.answer(request.stream, "done");
        }
    });
    let proxy = Proxy::start(&Table::of(vec![speaking_h2c(backend.addr)]));
    let burst = |requests: usize| {
        let mut clients: Vec<Client> = (0..requests).map(|_| ask(&proxy, "GET")).collect();
        let at_once = requests.min(backend.accepted());
        let mut used: Vec<usize> = (0..at_once).map(|_| arrivals.recv_timeout(PATIENCE).unwrap()).collect();
        (0..requests).for_each(|_| release.send(()).unwrap());
        clients.iter_mut().for_each(|client| assert_eq!(client.response().text(), "done"));
        while arrivals.try_recv().is_ok() {}
        used.sort_unstable();
        used
    };
    burst(3 * MOST_SHARED);
    let open = backend.accepted();
    assert!((2..=MOST_SHARED).contains(&open), "{open}");
    assert_eq!(burst(open), (0..open).collect::<Vec<_>>(), "each carries one");
}

/// A client over HTTP/2, with what comes before its answer.
fn over_http2(proxy: &Proxy, request: Request<()>) -> (Vec<Response<()>>, Response<Vec<u8>>) {
    let addr = proxy.addr;
    run(async move {
        let mut sender = connect(addr).await;
        poll_fn(|cx| sender.poll_ready(cx)).await.unwrap();
        let (mut response, _) = sender.send_request(request, true).unwrap();
        let mut interim = Vec::new();
        while let Some(one) = poll_fn(|cx| response.poll_informational(cx)).await {
            interim.push(one.unwrap());
        }
        let (parts, mut stream) = response.await.unwrap().into_parts();
        let mut body = Vec::new();
        while let Some(chunk) = stream.data().await {
            body.extend_from_slice(&chunk.unwrap());
        }
        (interim, Response::from_parts(parts, body))
    })
}

/// A backend of either version that hints at what the answer will need before it gives it.
fn hinting() -> [Vhost; 2] {
    let old = Backend::script(|mut conn| {
        while conn.request().is_some() {
            conn.write("HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n");
            conn.write("HTTP/1.1 103 Early Hints\r\nLink: </b.css>\r\n\r\n");
            conn.answer("done");
        }
    });
    let new = h2c(|_, mut respond| async move {
        for link in ["</a.css>", "</b.css>"] {
            let hint = Response::builder().status(103).header("link", link).body(()).unwrap();
            respond.send_informational(hint).unwrap();
        }
        let mut body = respond.send_response(Response::new(()), false).unwrap();
        body.send_data(Bytes::from_static(b"done"), true).unwrap();
    });
    [vhost("wiki", &[old.addr]), speaking_h2c(new)]
}

// RFC 9110 §15.2: "A proxy MUST forward 1xx responses".
#[test]
fn hints_pass_between_the_versions() {
    for app in hinting() {
        let protocol = app.protocol;
        let proxy = Proxy::start(&Table::of(vec![app]));
        let (hints, last) = over_http2(&proxy, get("/"));
        let link = |hint: &Response<()>| {
            (hint.status().as_u16(), hint.headers()["link"].to_str().unwrap().to_owned())
        };
        let links: Vec<_> = hints.iter().map(link).collect();
        assert_eq!(links, ["</a.css>", "</b.css>"].map(|link| (103, link.to_owned())), "{protocol:?}");
        assert!(hints.iter().all(|hint| hint.headers().len() == 1), "{hints:?}");
        assert_eq!((last.status().as_u16(), last.body().as_slice()), (200, &b"done"[..]));
        let mut old = ask(&proxy, "GET");
        for link in ["</a.css>", "</b.css>"] {
            let hint = old.head();
            assert_eq!((hint.status, hint.header("link")), (103, vec![link]), "{protocol:?}");
        }
        assert_eq!(old.response().text(), "done", "{protocol:?}");
    }
}

#[test]
fn who_waits_for_continue_over_http_2_is_told_in_time() {
    // One that does not know of it only waits for the body.
    let backend = Backend::script(|mut conn| {
        while let Some(request) = conn.request() {
            conn.answer(&String::from_utf8(request.body).unwrap());
        }
    });
    let proxy = Proxy::start(&Table::of(vec![vhost("wiki", &[backend.addr])]));
    run(async {
        let mut sender = connect(proxy.addr).await;
        poll_fn(|cx| sender.poll_ready(cx)).await.unwrap();
        let request = Request::put("http://wiki.prox.local/")
            .header("expect", "100-continue")
            .header("content-length", 3)
            .body(())
            .unwrap();
        let began = Instant::now();
        let (mut response, mut upload) = sender.send_request(request, false).unwrap();
        let interim = poll_fn(|cx| response.poll_informational(cx)).await.unwrap().unwrap();
        assert_eq!(interim.status(), 100);
        assert!(began.elapsed() >= Duration::from_millis(900), "{:?}", began.elapsed());
        upload.send_data(Bytes::from_static(b"abc"), true).unwrap();
        let mut body = response.await.unwrap().into_body();
        assert_eq!(body.data().await.unwrap().unwrap(), "abc");
    });
}

/// A backend of either version that has nine octets, and gives the part that is asked for.
fn partial() -> [Vhost; 2] {
    fn part(range: Option<&str>, condition: Option<&str>) -> (u16, Option<&'static str>, &'static str) {
        match (range, condition) {
            (Some("bytes=2-4"), None | Some("\"x\"")) => (206, Some("bytes 2-4/9"), "234"),
            (Some("bytes=100-"), None) => (416, Some("bytes */9"), ""),
            // RFC 9110 §13.1.5: the representation has changed, so the whole of it is sent.
            _ => (200, None, "012345678"),
        }
    }
    let old = Backend::script(|mut conn| {
        while let Some(request) = conn.request() {
            let first = |name| request.header(name).first().copied();
            let (status, range, body) = part(first("range"), first("if-range"));
            let range = range.map(|range| format!("Content-Range: {range}\r\n")).unwrap_or_default();
            conn.write(&format!(
                "HTTP/1.1 {status} Some\r\n{range}Content-Length: {}\r\n\r\n{body}",
                body.len()
            ));
        }
    });
    let new = h2c(|request, mut respond| async move {
        let first = |name| request.headers().get(name).map(|value| value.to_str().unwrap());
        let (status, range, body) = part(first("range"), first("if-range"));
        let mut response = Response::builder().status(status).header("content-length", body.len());
        if let Some(range) = range {
            response = response.header("content-range", range);
        }
        let mut stream = respond.send_response(response.body(()).unwrap(), body.is_empty()).unwrap();
        if !body.is_empty() {
            stream.send_data(Bytes::from(body), true).unwrap();
        }
    });
    [vhost("wiki", &[old.addr]), speaking_h2c(new)]
}

#[test]
fn ranges_and_their_answers_pass_between_the_versions() {
    for app in partial() {
        let protocol = app.protocol;
        let proxy = Proxy::start(&Table::of(vec![app]));
        for (range, condition, status, told, text) in [
            ("bytes=2-4", None, 206, Some("bytes 2-4/9"), "234"),
            ("bytes=2-4", Some("\"x\""), 206, Some("bytes 2-4/9"), "234"),
            ("bytes=2-4", Some("\"old\""), 200, None, "012345678"),
            ("bytes=100-", None, 416, Some("bytes */9"), ""),
        ] {
            let what = format!("{protocol:?} {range} {condition:?}");
            let mut request = Request::get("http://wiki.prox.local/").header("range", range);
            if let Some(condition) = condition {
                request = request.header("if-range", condition);
            }
            let addr = proxy.addr;
            let (response, body, _) =
                run(async { exchange(&mut connect(addr).await, request.body(()).unwrap(), None).await });
            let told_there = response.headers().get("content-range").map(|value| value.to_str().unwrap());
            assert_eq!((response.status().as_u16(), told_there), (status, told), "{what}");
            assert_eq!(body, text.as_bytes(), "{what}");
            let condition = condition.map(|value| format!("If-Range: {value}\r\n")).unwrap_or_default();
            let mut client = proxy.connect();
            client.send(&format!(
                "GET / HTTP/1.1\r\nHost: wiki.prox.local\r\nRange: {range}\r\n{condition}\r\n"
            ));
            let response = client.response();
            assert_eq!((response.status, response.header("content-range").first().copied()), (status, told));
            assert_eq!(response.text(), text, "{what}");
        }
    }
}
