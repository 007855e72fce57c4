//! Backends over TLS: with a certificate that nobody but themselves has signed, and with one of a private authority.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};

use proximity_proxy::Reason;
use proximity_table::{BackendProtocol, BackendTarget, BackendTls, Vhost};
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::support::{Backend, PATIENCE, Proxy, Table, read_chunk, vhost};

/// Certificates with their keys, all for the name wiki.prox.local and worth nothing; made by OpenSSL.
///
/// It signed itself, and says that it is a server's.
const SELF_SIGNED: &[u8] = include_bytes!("certificates/self_signed.pem");
/// It signed itself, and says that it is an authority's, as most of those do.
const OWN_AUTHORITY: &[u8] = include_bytes!("certificates/own_authority.pem");
/// The authority of `authority.pem` signed it.
const SIGNED: &[u8] = include_bytes!("certificates/signed.pem");
/// The same did, and it has expired.
const EXPIRED: &[u8] = include_bytes!("certificates/expired.pem");

type Conn = BufReader<StreamOwned<ServerConnection, TcpStream>>;

/// A backend over TLS that tells for which name it was asked (SNI).
pub struct TlsBackend {
    pub addr: SocketAddrV4,
    accepted: Arc<AtomicUsize>,
    names: Receiver<Option<String>>,
}

fn tls_backend(script: impl Fn(Conn) + Send + Sync + 'static) -> TlsBackend {
    tls_backend_with(SELF_SIGNED, script)
}

fn tls_backend_with(pem: &[u8], script: impl Fn(Conn) + Send + Sync + 'static) -> TlsBackend {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let SocketAddr::V4(addr) = listener.local_addr().unwrap() else { unreachable!() };
    let certificate = CertificateDer::from_pem_slice(pem).unwrap();
    let key = PrivateKeyDer::from_pem_slice(pem).unwrap();
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
pub fn answering() -> TlsBackend {
    answering_with(SELF_SIGNED)
}

fn answering_with(pem: &[u8]) -> TlsBackend {
    tls_backend_with(pem, |mut conn| {
        while head(&mut conn).is_some() {
            write(&mut conn, "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecret");
        }
    })
}

pub fn https(addr: SocketAddrV4, tls: BackendTls) -> Vhost {
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
fn what_one_vhost_asks_of_a_certificate_is_not_held_against_the_backend() {
    let backend = answering();
    let strict = BackendTls { verify: true, ..BackendTls::default() };
    let strict = Vhost {
        app_name: "strict".parse().unwrap(),
        hostname: "strict.prox.local".parse().unwrap(),
        aliases: Vec::new(),
        ..https(backend.addr, strict)
    };
    // Were the first backend paused, the second would get every request.
    let mut both = https(backend.addr, BackendTls::default());
    both.backends.push(BackendTarget::Address(answering().addr));
    let proxy = Proxy::start(&Table::of(vec![strict, both]));
    for _ in 0..20 {
        assert_eq!(proxy.get("strict.prox.local", "/").status, 502);
    }
    for _ in 0..4 {
        assert_eq!(proxy.get("wiki.prox.local", "/").text(), "secret");
    }
    assert_eq!(backend.names.try_iter().count(), 1, "its turn came, on one kept connection");
}

#[test]
fn what_one_vhost_speaks_wrongly_is_not_held_against_the_backend() {
    let backend = answering();
    let wrong = Vhost::new(
        "wrong".parse().unwrap(),
        "wrong.prox.local".parse().unwrap(),
        vec![BackendTarget::Address(backend.addr)],
    );
    // Were the first backend paused, the second would get every request.
    let mut both = https(backend.addr, BackendTls::default());
    let other = answering();
    both.backends.push(BackendTarget::Address(other.addr));
    let proxy = Proxy::start(&Table::of(vec![wrong, both]));
    for _ in 0..20 {
        assert_eq!(proxy.get("wrong.prox.local", "/").status, 502);
    }
    let before = backend.accepted.load(SeqCst);
    for _ in 0..4 {
        assert_eq!(proxy.get("wiki.prox.local", "/").text(), "secret");
    }
    let carried = (backend.accepted.load(SeqCst) - before, other.accepted.load(SeqCst));
    assert_eq!(carried, (1, 1), "both have their turns, on one kept connection each");
}

#[test]
fn with_tls_verify_it_is_not() {
    let backend = answering();
    let proxy = proxy(&backend, BackendTls { verify: true, ..BackendTls::default() });
    let page = proxy.get("wiki.prox.local", "/");
    assert_eq!((page.status, proxy.count(Reason::BackendUntrusted)), (502, 1));
    assert!(page.text().contains("certificate"), "{}", page.text());
    assert!(backend.names.try_recv().is_err(), "the handshake came about");
}

/// Trust in what is in a file of `certificates/`.
fn trusting(file: &str) -> BackendTls {
    let path = format!("{}/tests/proxy/certificates/{file}", env!("CARGO_MANIFEST_DIR"));
    BackendTls { verify: true, ca: Some(path), ..BackendTls::default() }
}

#[test]
fn the_name_that_is_asked_for_is_the_vhosts_or_the_one_that_is_written() {
    for (server_name, asked) in [(None, "wiki.prox.local"), (Some("inner.example"), "inner.example")] {
        let backend = answering();
        let server_name = server_name.map(str::to_owned);
        let proxy = proxy(&backend, BackendTls { server_name, ..BackendTls::default() });
        // Whatever name the client uses.
        assert_eq!(proxy.get("wiki.example.org", "/").status, 200);
        assert_eq!(backend.names.recv_timeout(PATIENCE).unwrap().as_deref(), Some(asked));
    }
}

#[test]
fn a_named_authority_is_trusted_and_so_is_a_certificate_that_is_named_itself() {
    for (certificate, file) in
        [(SIGNED, "authority.pem"), (SELF_SIGNED, "self_signed.pem"), (OWN_AUTHORITY, "own_authority.pem")]
    {
        let backend = answering_with(certificate);
        let proxy = proxy(&backend, trusting(file));
        for _ in 0..3 {
            assert_eq!(proxy.get("wiki.prox.local", "/").text(), "secret", "{file}");
        }
        assert_eq!(backend.accepted.load(SeqCst), 1, "{file}");
    }
}

#[test]
fn whatever_else_is_wrong_with_a_certificate_counts() {
    let other = |file: &str| BackendTls { server_name: Some("nas.example".to_owned()), ..trusting(file) };
    for (what, certificate, tls) in [
        ("another authority", SIGNED, trusting("own_authority.pem")),
        ("nobody", OWN_AUTHORITY, trusting("authority.pem")),
        ("the name", SIGNED, other("authority.pem")),
        ("the name of one that is named itself", OWN_AUTHORITY, other("own_authority.pem")),
        ("the time", EXPIRED, trusting("authority.pem")),
        ("the time of one that is named itself", EXPIRED, trusting("expired.pem")),
        ("the file", SIGNED, trusting("nowhere.pem")),
    ] {
        let backend = answering_with(certificate);
        let proxy = proxy(&backend, tls);
        let page = proxy.get("wiki.prox.local", "/");
        assert_eq!((page.status, proxy.count(Reason::BackendUntrusted)), (502, 1), "{what}");
        assert!(page.text().contains("certificate was not accepted"), "{what}: {}", page.text());
        assert!(backend.names.try_recv().is_err(), "the handshake came about in spite of {what}");
    }
}

#[test]
fn a_renewed_authority_is_trusted_at_once() {
    let path = std::env::temp_dir().join(format!("proximity-proxy-authority-{}.pem", std::process::id()));
    std::fs::write(&path, OWN_AUTHORITY).unwrap();
    let backend = answering_with(SIGNED);
    let ca = path.to_str().map(str::to_owned);
    let proxy = proxy(&backend, BackendTls { verify: true, ca, ..BackendTls::default() });
    assert_eq!(proxy.get("wiki.prox.local", "/").status, 502);
    std::fs::write(&path, include_bytes!("certificates/authority.pem")).unwrap();
    assert_eq!(proxy.get("wiki.prox.local", "/").text(), "secret");
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn an_authority_whose_file_is_lost_is_trusted_on() {
    let path = std::env::temp_dir().join(format!("proximity-proxy-lost-{}.pem", std::process::id()));
    std::fs::write(&path, include_bytes!("certificates/authority.pem")).unwrap();
    // Each request needs a connection of its own.
    let backend = tls_backend_with(SIGNED, |mut conn| {
        head(&mut conn);
        write(&mut conn, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 6\r\n\r\nsecret");
    });
    let ca = path.to_str().map(str::to_owned);
    let app = https(backend.addr, BackendTls { verify: true, ca, ..BackendTls::default() });
    let table = Table::of(vec![app]);
    let before = Proxy::start(&table);
    assert_eq!(before.get("wiki.prox.local", "/").text(), "secret");
    std::fs::remove_file(&path).unwrap();
    // So it is on a thread that has not met it yet.
    for proxy in [&before, &Proxy::sharing(&table, before.shared.clone(), None)] {
        for _ in 0..3 {
            assert_eq!(proxy.get("wiki.prox.local", "/").text(), "secret");
        }
    }
    assert_eq!(backend.accepted.load(SeqCst), 7);
    // Those who share nothing with it have nobody to trust.
    assert_eq!(Proxy::start(&table).get("wiki.prox.local", "/").status, 502);
    // Another one in its place counts.
    std::fs::write(&path, OWN_AUTHORITY).unwrap();
    assert_eq!(before.get("wiki.prox.local", "/").status, 502);
    std::fs::remove_file(&path).unwrap();
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
    client.echoes(&[b"\n\0\n\0", b"\xff\xfe\n\n"]);
    drop(client);
    proxy.until("closed", |totals| totals.tunnels == 0 && totals.open == 0);
}
