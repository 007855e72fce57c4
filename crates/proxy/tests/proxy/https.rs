//! Backends over TLS, with a certificate that nobody but themselves has signed.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};

use proximity_proxy::Reason;
use proximity_table::{BackendProtocol, BackendTls, Vhost};
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::support::{Backend, PATIENCE, Proxy, Table, read_chunk, vhost};

/// Made by `openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 36500` for the name
/// wiki.prox.local; worth nothing.
const SELF_SIGNED: &[u8] = include_bytes!("self_signed.pem");

type Conn = BufReader<StreamOwned<ServerConnection, TcpStream>>;

/// A backend over TLS that tells for which name it was asked (SNI).
struct TlsBackend {
    addr: SocketAddrV4,
    accepted: Arc<AtomicUsize>,
    names: Receiver<Option<String>>,
}

fn tls_backend(script: impl Fn(Conn) + Send + Sync + 'static) -> TlsBackend {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let SocketAddr::V4(addr) = listener.local_addr().unwrap() else { unreachable!() };
    let certificate = CertificateDer::from_pem_slice(SELF_SIGNED).unwrap();
    let key = PrivateKeyDer::from_pem_slice(SELF_SIGNED).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let (config, script, accepted) = (Arc::new(config), Arc::new(script), Arc::new(AtomicUsize::new(0)));
    let (told, names) = channel();
    let (count, told) = (accepted.clone(), Mutex::new(told));
    let told = Arc::new(told);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (config, script, told) = (config.clone(), script.clone(), told.clone());
            count.fetch_add(1, SeqCst);
            std::thread::spawn(move || {
                let mut stream = stream.unwrap();
                let mut tls = ServerConnection::new(config).unwrap();
                while tls.is_handshaking() {
                    if tls.complete_io(&mut stream).is_err() {
                        return;
                    }
                }
                // Nobody may ask.
                let _ = told.lock().unwrap().send(tls.server_name().map(str::to_owned));
                script(BufReader::new(StreamOwned::new(tls, stream)));
            });
        }
    });
    TlsBackend { addr, accepted, names }
}

/// A head up to its empty line; `None` at the end.
fn head(conn: &mut Conn) -> Option<String> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        conn.read_line(&mut head).ok().filter(|read| *read > 0)?;
    }
    Some(head)
}

fn write(conn: &mut Conn, text: &str) {
    // A proxy that has gone is what some tests are about.
    let _ = conn.get_mut().write_all(text.as_bytes());
}

/// Answers every request with `secret`.
fn answering() -> TlsBackend {
    tls_backend(|mut conn| {
        while head(&mut conn).is_some() {
            write(&mut conn, "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecret");
        }
    })
}

fn https(addr: SocketAddrV4, tls: BackendTls) -> Vhost {
    Vhost { protocol: BackendProtocol::Https, tls, ..vhost("wiki", &[addr]) }
}

fn proxy(backend: &TlsBackend, tls: BackendTls) -> Proxy {
    Proxy::start(&Table::of(vec![https(backend.addr, tls)]))
}

#[test]
fn a_self_signed_backend_is_taken_and_its_connection_kept() {
    let backend = answering();
    let proxy = proxy(&backend, BackendTls::default());
    for _ in 0..10 {
        assert_eq!(proxy.get("wiki.prox.local", "/").text(), "secret");
    }
    assert_eq!(backend.accepted.load(SeqCst), 1);
}

#[test]
fn with_tls_verify_it_is_not() {
    let backend = answering();
    let server_name = Some("wiki.prox.local".to_owned());
    let proxy = proxy(&backend, BackendTls { verify: true, server_name });
    let page = proxy.get("wiki.prox.local", "/");
    assert_eq!((page.status, proxy.count(Reason::BackendTls)), (502, 1));
    assert!(page.text().contains("certificate"), "{}", page.text());
    assert!(backend.names.try_recv().is_err(), "the handshake came about");
}

#[test]
fn a_backend_that_speaks_no_tls_is_told_apart() {
    let clear = Backend::answering("clear");
    let proxy = Proxy::start(&Table::of(vec![https(clear.addr, BackendTls::default())]));
    let page = proxy.get("wiki.prox.local", "/");
    assert_eq!((page.status, proxy.count(Reason::BackendTls)), (502, 1));
}

#[test]
fn long_bodies_pass_both_ways() {
    const SIZE: usize = 5 << 20;
    let backend = tls_backend(|mut conn| {
        let head = head(&mut conn).unwrap();
        let mut body = vec![0; SIZE];
        conn.read_exact(&mut body).unwrap();
        assert!(head.starts_with("PUT /"), "{head}");
        write(&mut conn, &format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n"));
        conn.get_mut().write_all(&body).unwrap();
    });
    let proxy = proxy(&backend, BackendTls::default());
    let mut client = proxy.connect();
    client.send(&format!("PUT / HTTP/1.1\r\nHost: wiki.prox.local\r\nContent-Length: {SIZE}\r\n\r\n"));
    let sent: Vec<u8> = (0..SIZE).map(|at| (at % 253) as u8).collect();
    client.stream.get_mut().write_all(&sent).unwrap();
    assert!(client.response().body == sent);
}

#[test]
fn a_chunk_does_not_wait_for_the_next_one() {
    let (release, released) = channel::<()>();
    let released = Mutex::new(released);
    let backend = tls_backend(move |mut conn| {
        head(&mut conn);
        write(&mut conn, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        for event in ["one", "two"] {
            write(&mut conn, &format!("3\r\n{event}\r\n"));
            released.lock().unwrap().recv_timeout(PATIENCE).unwrap();
        }
        write(&mut conn, "0\r\n\r\n");
    });
    let proxy = proxy(&backend, BackendTls::default());
    let mut client = proxy.connect();
    client.send("GET / HTTP/1.1\r\nHost: wiki.prox.local\r\n\r\n");
    assert_eq!(client.head().status, 200);
    for event in ["one", "two"] {
        assert_eq!(read_chunk(&mut client.stream).unwrap(), event.as_bytes());
        release.send(()).unwrap();
    }
    assert_eq!(read_chunk(&mut client.stream).unwrap(), b"");
}

#[test]
fn a_websocket_passes_through_tls() {
    let backend = tls_backend(|mut conn| {
        let head = head(&mut conn).unwrap();
        assert!(head.contains("Upgrade: websocket\r\n"), "{head}");
        write(
            &mut conn,
            "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nhello",
        );
        let mut frame = [0; 4];
        while conn.read_exact(&mut frame).is_ok() {
            conn.get_mut().write_all(&frame).unwrap();
        }
    });
    let proxy = proxy(&backend, BackendTls::default());
    let mut client = proxy.connect();
    client.send(
        "GET /ws HTTP/1.1\r\nHost: wiki.prox.local\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    );
    assert_eq!(client.head().status, 101);
    let mut hello = [0; 5];
    client.stream.read_exact(&mut hello).unwrap();
    assert_eq!(&hello, b"hello");
    for frame in [b"\n\0\n\0", b"\xff\xfe\n\n"] {
        client.stream.get_mut().write_all(frame).unwrap();
        let mut echo = [0; 4];
        client.stream.read_exact(&mut echo).unwrap();
        assert_eq!(&echo, frame);
    }
    drop(client);
    proxy.until("closed", |totals| totals.tunnels == 0 && totals.open == 0);
}
