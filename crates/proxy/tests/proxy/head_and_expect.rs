//! `HEAD` and `Expect: 100-continue` where one side speaks HTTP/2, or both do.

use std::future::poll_fn;
use std::net::SocketAddrV4;
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::server::SendResponse;
use http::{Method, Request, Response};
use proximity_proxy::Reason;
use proximity_table::{BackendProtocol, Vhost};

use crate::http2::{connect, exchange, get, run};
use crate::scripts::h2c;
use crate::support::{Backend, Proxy, Table, vhost};

/// Less than the second after which we say `100 (Continue)` ourselves.
const AT_ONCE: Duration = Duration::from_millis(900);

fn speaking_h2c(addr: SocketAddrV4) -> Vhost {
    Vhost { protocol: BackendProtocol::H2c, ..vhost("wiki", &[addr]) }
}

/// A backend of either version that has nine octets, and knows what HEAD is.
fn knowing_head() -> [Vhost; 2] {
    let old = Backend::script(|mut conn| {
        while let Some(request) = conn.request() {
            if request.line.starts_with("HEAD ") {
                conn.write("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n");
            } else {
                conn.answer("012345678");
            }
        }
    });
    let new = h2c(|request, mut respond| async move {
        let is_head = request.method() == Method::HEAD;
        let response = Response::builder().header("content-length", 9).body(()).unwrap();
        let mut body = respond.send_response(response, is_head).unwrap();
        if !is_head {
            body.send_data(Bytes::from_static(b"012345678"), true).unwrap();
        }
    });
    [vhost("wiki", &[old.addr]), speaking_h2c(new)]
}

// RFC 9110 §9.3.2: "the server MUST NOT send content in the response", and it says what GET would have been answered.
#[test]
fn head_is_answered_without_a_body_whoever_speaks_what() {
    for app in knowing_head() {
        let protocol = app.protocol;
        let proxy = Proxy::start(&Table::of(vec![app]));
        let mut old = proxy.connect();
        for _ in 0..2 {
            old.send("HEAD / HTTP/1.1\r\nHost: wiki.prox.local\r\n\r\n");
            let head = old.head();
            assert_eq!((head.status, head.header("content-length")), (200, vec!["9"]), "{protocol:?}");
            // Nothing stands between it and the next answer.
            old.send("GET / HTTP/1.1\r\nHost: wiki.prox.local\r\n\r\n");
            assert_eq!(old.response().text(), "012345678", "{protocol:?}");
        }
        let addr = proxy.addr;
        run(async move {
            let mut new = connect(addr).await;
            let head = || Request::head("http://wiki.prox.local/").body(()).unwrap();
            for (request, text) in [(head(), ""), (get("/"), "012345678"), (head(), "")] {
                let (response, body, _) = exchange(&mut new, request, None).await;
                assert_eq!(
                    (response.status().as_u16(), body),
                    (200, text.as_bytes().to_vec()),
                    "{protocol:?}"
                );
                assert_eq!(response.headers()["content-length"], "9", "{protocol:?}");
            }
        });
    }
}

/// What an h2c backend does with a request that expects `100 (Continue)`.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Does {
    /// It says so, and answers with what it gets.
    Continue,
    /// It knows nothing of it, and waits for the body.
    Wait,
    /// It wants no body.
    Refuse,
}

async fn expecting(does: Does, request: Request<h2::RecvStream>, mut respond: SendResponse<Bytes>) {
    assert_eq!(request.headers()["expect"], "100-continue");
    match does {
        Does::Continue => {
            let go_on = Response::builder().status(100).body(()).unwrap();
            respond.send_informational(go_on).unwrap();
        }
        Does::Wait => {}
        Does::Refuse => {
            let refused = Response::builder().status(403).body(()).unwrap();
            respond.send_response(refused, true).unwrap();
            return;
        }
    }
    let mut body = request.into_body();
    let mut whole = Vec::new();
    while let Some(chunk) = body.data().await {
        whole.extend_from_slice(&chunk.unwrap());
    }
    let mut stream = respond.send_response(Response::new(()), false).unwrap();
    stream.send_data(whole.into(), true).unwrap();
}

fn proxy(does: Does) -> Proxy {
    let addr = h2c(move |request, respond| expecting(does, request, respond));
    Proxy::start(&Table::of(vec![speaking_h2c(addr)]))
}

const EXPECTING: &str =
    "PUT / HTTP/1.1\r\nHost: wiki.prox.local\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n";

// RFC 9110 §10.1.1: "A proxy MUST, upon receiving an HTTP/1.1 (or later) request that has a valid method, target URI, and
// complete header section that contains a 100-continue expectation […] forward the request".
#[test]
fn an_h2c_backend_says_continue_to_clients_of_both_versions() {
    let both = |does| {
        let proxy = proxy(does);
        let mut old = proxy.connect();
        let began = Instant::now();
        old.send(EXPECTING);
        assert_eq!(old.head().status, 100, "{does:?}");
        let first = began.elapsed();
        old.send("abc");
        assert_eq!(old.response().text(), "abc", "{does:?}");
        // The connection lives on.
        old.send(EXPECTING);
        assert_eq!(old.head().status, 100, "{does:?}");
        let addr = proxy.addr;
        let second = run(async move {
            let mut sender = connect(addr).await;
            poll_fn(|cx| sender.poll_ready(cx)).await.unwrap();
            let request = Request::put("http://wiki.prox.local/").header("expect", "100-continue");
            let began = Instant::now();
            let (mut response, mut upload) = sender.send_request(request.body(()).unwrap(), false).unwrap();
            let interim = poll_fn(|cx| response.poll_informational(cx)).await.unwrap().unwrap();
            let waited = began.elapsed();
            assert_eq!(interim.status(), 100, "{does:?}");
            upload.send_data(Bytes::from_static(b"abc"), true).unwrap();
            let mut body = response.await.unwrap().into_body();
            assert_eq!(body.data().await.unwrap().unwrap(), "abc", "{does:?}");
            waited
        });
        [first, second]
    };
    assert!(both(Does::Continue).iter().all(|waited| *waited < AT_ONCE));
    assert!(both(Does::Wait).iter().all(|waited| *waited >= AT_ONCE));
}

#[test]
fn a_body_that_an_h2c_backend_does_not_want_is_not_asked_for() {
    let proxy = proxy(Does::Refuse);
    let mut old = proxy.connect();
    old.send(EXPECTING);
    assert_eq!(old.head().status, 403, "and no 100 before");
    let addr = proxy.addr;
    run(async move {
        let mut sender = connect(addr).await;
        poll_fn(|cx| sender.poll_ready(cx)).await.unwrap();
        let request = Request::put("http://wiki.prox.local/").header("expect", "100-continue");
        let (mut response, _upload) = sender.send_request(request.body(()).unwrap(), false).unwrap();
        assert!(poll_fn(|cx| response.poll_informational(cx)).await.is_none());
        assert_eq!(response.await.unwrap().status(), 403);
    });
    assert_eq!((proxy.totals().bytes_in, proxy.count(Reason::BackendBroke)), (0, 0));
}
