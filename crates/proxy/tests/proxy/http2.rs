use std::future::poll_fn;
use std::net::SocketAddr;
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use http::{HeaderMap, Request, Response};
use proximity_proxy::Reason;
use proximity_table::{BackendProtocol, ProxySettings};

use crate::scripts::{h2c, working};
use crate::support::{Backend, Proxy, Table, read_chunk, read_line, vhost};

/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(10);

/// Runs a client or a backend of HTTP/2.
pub fn run<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(PATIENCE, work).await.expect("it takes too long") })
}

pub async fn connect(addr: SocketAddr) -> SendRequest<Bytes> {
    let stream = tokio::net::TcpStream::connect(addr).await.unwrap();
    let (sender, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(async move { drop(connection.await) });
    sender
}

pub async fn exchange(
    sender: &mut SendRequest<Bytes>,
    request: Request<()>,
    body: Option<&[u8]>,
) -> (Response<()>, Vec<u8>, Option<HeaderMap>) {
    poll_fn(|cx| sender.poll_ready(cx)).await.unwrap();
    let (response, mut upload) = sender.send_request(request, body.is_none()).unwrap();
    if let Some(body) = body {
        upload.send_data(Bytes::copy_from_slice(body), true).unwrap();
    }
    let (parts, mut stream) = response.await.unwrap().into_parts();
    let mut whole = Vec::new();
    while let Some(chunk) = stream.data().await {
        let chunk = chunk.unwrap();
        stream.flow_control().release_capacity(chunk.len()).unwrap();
        whole.extend_from_slice(&chunk);
    }
    let trailers = stream.trailers().await.unwrap();
    (Response::from_parts(parts, ()), whole, trailers)
}

pub fn get(path: &str) -> Request<()> {
    Request::get(format!("http://wiki.prox.local{path}")).body(()).unwrap()
}

/// Answers with what came, and a trailer.
async fn echo(request: Request<h2::RecvStream>, mut respond: h2::server::SendResponse<Bytes>) {
    let (parts, mut body) = request.into_parts();
    let mut response =
        Response::builder().status(200).header("x-authority", parts.uri.authority().unwrap().as_str());
    for name in ["te", "content-type", "x-real-ip"] {
        if let Some(value) = parts.headers.get(name) {
            response = response.header(format!("x-saw-{name}"), value);
        }
    }
    let mut stream = respond.send_response(response.body(()).unwrap(), false).unwrap();
    // Each piece goes back before the next one is there.
    while let Some(Ok(chunk)) = body.data().await {
        body.flow_control().release_capacity(chunk.len()).unwrap();
        stream.send_data(chunk, false).unwrap();
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", "0".parse().unwrap());
    stream.send_trailers(trailers).unwrap();
}

#[test]
fn many_requests_share_a_connection() {
    let backend = Backend::answering("hello");
    let proxy = Proxy::start(&Table::of(vec![vhost("wiki", &[backend.addr])]));
    run(async {
        let sender = connect(proxy.addr).await;
        let asked = (0..50).map(|_| {
            let mut sender = sender.clone();
            async move { exchange(&mut sender, get("/a?b"), None).await }
        });
        for (response, body, _) in futures_util::future::join_all(asked).await {
            assert_eq!((response.status().as_u16(), body.as_slice()), (200, &b"hello"[..]));
            assert_eq!(response.headers()["content-length"], "5");
            assert!(
                response.headers().contains_key("date") && !response.headers().contains_key("connection")
            );
        }
    });
    let requests = backend.requests();
    assert!(requests.iter().all(|request| request.line == "GET /a?b HTTP/1.1"));
    assert_eq!(requests[0].header("x-forwarded-host"), ["wiki.prox.local"]);
    proxy.until("counted", |totals| totals.responses[2] == 50 && totals.connections == 1);
}

#[test]
fn bodies_flow_both_ways_and_are_held_to_the_window() {
    let backend = Backend::script(|mut conn| {
        while let Some(request) = conn.request() {
            conn.answer(&String::from_utf8(request.body).unwrap());
        }
    });
    let proxy = Proxy::start(&Table::of(vec![vhost("wiki", &[backend.addr])]));
    let large = "0123456789abcdef".repeat(64 * 1024);
    run(async {
        let mut sender = connect(proxy.addr).await;
        for length in [None, Some(large.len())] {
            let mut request = Request::post("http://wiki.prox.local/");
            if let Some(length) = length {
                request = request.header("content-length", length);
            }
            let (response, body, _) =
                exchange(&mut sender, request.body(()).unwrap(), Some(large.as_bytes())).await;
            assert_eq!(response.status(), 200);
            assert!(body == large.as_bytes(), "{} octets", body.len());
        }
    });
    proxy.until("counted", |totals| totals.bytes_in == 2 * large.len() as u64);
}

// gRPC: HTTP/2 on both sides, TE: trailers, pieces that go back and forth, the status in the trailers.
#[test]
fn grpc_passes_with_its_trailers() {
    let addr = h2c(echo);
    let mut grpc = vhost("wiki", &[addr]);
    grpc.protocol = BackendProtocol::H2c;
    let proxy = Proxy::start(&Table::of(vec![grpc]));
    run(async {
        let mut sender = connect(proxy.addr).await;
        poll_fn(|cx| sender.poll_ready(cx)).await.unwrap();
        let request = Request::post("http://wiki.prox.local/greeter/Chat")
            .header("te", "trailers")
            .header("content-type", "application/grpc")
            .body(())
            .unwrap();
        let (response, mut upload) = sender.send_request(request, false).unwrap();
        let response = response.await.unwrap();
        assert_eq!(response.headers()["x-saw-te"], "trailers");
        assert_eq!(response.headers()["x-saw-content-type"], "application/grpc");
        assert_eq!(response.headers()["x-saw-x-real-ip"], "127.0.0.1");
        assert_eq!(response.headers()["x-authority"], addr.to_string());
        let mut answers = response.into_body();
        for piece in ["one", "two", "three"] {
            upload.send_data(Bytes::from(piece), false).unwrap();
            let chunk = answers.data().await.unwrap().unwrap();
            answers.flow_control().release_capacity(chunk.len()).unwrap();
            assert_eq!(chunk, piece, "a piece comes back before the next one is sent");
        }
        upload.send_data(Bytes::new(), true).unwrap();
        assert!(answers.data().await.is_none());
        assert_eq!(answers.trailers().await.unwrap().unwrap()["grpc-status"], "0");
    });
}

#[test]
fn an_http_1_client_reaches_an_h2c_backend() {
    let mut app = vhost("wiki", &[h2c(echo)]);
    app.protocol = BackendProtocol::H2c;
    let proxy = Proxy::start(&Table::of(vec![app]));
    let mut client = proxy.connect();
    for _ in 0..3 {
        client.send("POST / HTTP/1.1\r\nHost: wiki.prox.local\r\nContent-Length: 3\r\n\r\nabc");
        assert_eq!(client.head().status, 200);
        assert_eq!(read_chunk(&mut client.stream).unwrap(), b"abc");
        assert!(read_chunk(&mut client.stream).unwrap().is_empty());
        // The line after the last chunk was read with it.
        assert_eq!(read_line(&mut client.stream).unwrap(), "pc-status: 0");
        assert_eq!(read_line(&mut client.stream).unwrap(), "");
    }
    proxy.until("one connection", |totals| totals.upstream_connects == 1 && totals.upstream_reuses == 2);
}

#[test]
fn pages_and_unknown_hosts_speak_http_2_too() {
    let proxy = Proxy::start(&Table::of(vec![]));
    run(async {
        let mut sender = connect(proxy.addr).await;
        let request = get("/");
        let (response, body, _) = exchange(&mut sender, request, None).await;
        assert_eq!(response.status(), 404);
        assert!(String::from_utf8(body).unwrap().contains("No app answers"));
        let head = Request::head("http://wiki.prox.local/").body(()).unwrap();
        let (response, body, _) = exchange(&mut sender, head, None).await;
        assert_eq!((response.status().as_u16(), body.len()), (404, 0));
    });
}

// RFC 9113 §8.2.2: a message with connection-specific fields is malformed: a stream error, and the connection
// lives.
#[test]
fn a_malformed_request_ends_its_stream_only() {
    let backend = Backend::answering("hello");
    let proxy = Proxy::start(&Table::of(vec![vhost("wiki", &[backend.addr])]));
    run(async {
        let mut sender = connect(proxy.addr).await;
        poll_fn(|cx| sender.poll_ready(cx)).await.unwrap();
        let twice = Request::get("http://wiki.prox.local/").header("host", "other").body(()).unwrap();
        let (response, _) = sender.send_request(twice, true).unwrap();
        assert_eq!(response.await.unwrap_err().reason(), Some(h2::Reason::PROTOCOL_ERROR));
        assert_eq!(exchange(&mut sender, get("/"), None).await.0.status(), 200);
    });
    assert_eq!(proxy.count(Reason::DuplicateHost), 1);
}

#[test]
fn an_answer_that_breaks_off_resets_its_stream() {
    let backend = Backend::script(|mut conn| {
        conn.request();
        conn.write("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nnot all");
    });
    let proxy = Proxy::start(&Table::of(vec![vhost("wiki", &[backend.addr])]));
    run(async {
        let mut sender = connect(proxy.addr).await;
        poll_fn(|cx| sender.poll_ready(cx)).await.unwrap();
        let (response, _) = sender.send_request(get("/"), true).unwrap();
        // The reset may overtake what was sent before it.
        if let Ok(response) = response.await {
            let mut body = response.into_body();
            let mut last = body.data().await;
            while let Some(Ok(_)) = last {
                last = body.data().await;
            }
            assert!(last.is_some_and(|end| end.is_err()), "a part is not taken for the whole");
        }
    });
    proxy.until("counted", |totals| totals.of(Reason::BackendCut) == 1);
}

/// A client that has asked for `/held`, and what it gets in the end.
fn asking(proxy: &Proxy) -> JoinHandle<(u16, Vec<u8>)> {
    let addr = proxy.addr;
    std::thread::spawn(move || {
        run(async {
            let (response, body, _) = exchange(&mut connect(addr).await, get("/held"), None).await;
            (response.status().as_u16(), body)
        })
    })
}

#[test]
fn a_stop_lets_streams_end_and_says_goodbye() {
    let (backend, arrivals, release) = working();
    let proxy = Proxy::start(&Table::of(vec![vhost("wiki", &[backend.addr])]));
    let client = asking(&proxy);
    arrivals.recv_timeout(PATIENCE).unwrap();
    proxy.begin_stop();
    release.send(()).unwrap();
    assert_eq!(client.join().unwrap(), (200, b"/held".to_vec()));
    proxy.join();
}

/// A retired thread waits for streams for as long as they take, and for nobody who has none.
#[test]
fn retirement_says_goodbye_and_cuts_no_stream() {
    let (backend, arrivals, release) = working();
    let settings = ProxySettings { drain: 1, head_timeout: 2, idle_timeout: 2, ..ProxySettings::default() };
    let proxy = Proxy::with(&Table::of(vec![vhost("wiki", &[backend.addr])]), settings, None);
    let client = asking(&proxy);
    arrivals.recv_timeout(PATIENCE).unwrap();
    let addr = proxy.addr;
    let idle = std::thread::spawn(move || {
        run(async {
            let stream = tokio::net::TcpStream::connect(addr).await.unwrap();
            let (_sender, connection) = h2::client::handshake(stream).await.unwrap();
            connection.await.unwrap();
        });
    });
    proxy.until("taken", |totals| totals.open == 2);
    // One that is closed when it has said nothing for two seconds: by then a drain would have been over.
    let mut silent = proxy.connect();
    proxy.until("taken", |totals| totals.connections == 3);
    proxy.retire();
    idle.join().unwrap();
    assert!(silent.is_closed());
    release.send(()).unwrap();
    assert_eq!(client.join().unwrap(), (200, b"/held".to_vec()));
    proxy.ended();
}
