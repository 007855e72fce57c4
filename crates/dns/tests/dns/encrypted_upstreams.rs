//! Upstreams that are asked over TLS (RFC 7858) and over HTTPS (RFC 8484).

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arc_swap::ArcSwap;
use hickory_proto::op::{Message, OpCode, ResponseCode};
use hickory_proto::rr::RecordType;
use proximity_dns::{AuthoritiesError, DnsServer, DnsSettings, DnsStats, ForwardError, Forwarder, Upstream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::server::TlsStream;

use crate::fixture::*;
use crate::kept_answers::ede;

fn file(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/dns/certificates").join(name)
}

/// A TLS server for `dns.example` and 127.0.0.1, whose certificate only the authority of the tests has signed.
async fn listen(protocol: &[u8]) -> (SocketAddr, TcpListener, TlsAcceptor) {
    let chain = CertificateDer::pem_file_iter(file("server.pem")).unwrap().map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_file(file("server_key.pem")).unwrap();
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let versions =
        ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut config = versions.with_no_client_auth().with_single_cert(chain, key).unwrap();
    config.alpn_protocols = vec![protocol.to_vec()];
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    (listener.local_addr().unwrap(), listener, TlsAcceptor::from(Arc::new(config)))
}

fn answer(wire: &[u8]) -> Vec<u8> {
    let query = Message::from_vec(wire).unwrap();
    let mut reply = Message::response(query.metadata.id, OpCode::Query);
    reply.metadata.recursion_available = true;
    reply.add_queries(query.queries.iter().cloned());
    reply.add_answer(a(&query.queries[0].name().to_string(), 60, [203, 0, 113, 1]));
    reply.to_vec().unwrap()
}

/// Serves connections one after the other; each is closed after `most` answers.
async fn over_tls(most: usize) -> (SocketAddr, Arc<AtomicUsize>) {
    let (addr, listener, acceptor) = listen(b"dot").await;
    let connections = Arc::new(AtomicUsize::new(0));
    let count = connections.clone();
    tokio::spawn(async move {
        loop {
            let Ok(mut stream) = acceptor.accept(listener.accept().await.unwrap().0).await else { continue };
            count.fetch_add(1, Ordering::SeqCst);
            for _ in 0..most {
                let Ok(length) = stream.read_u16().await else { break };
                let mut wire = vec![0; usize::from(length)];
                stream.read_exact(&mut wire).await.unwrap();
                let reply = answer(&wire);
                stream.write_u16(reply.len() as u16).await.unwrap();
                stream.write_all(&reply).await.unwrap();
                stream.flush().await.unwrap();
            }
            let _ = stream.shutdown().await;
        }
    });
    (addr, connections)
}

async fn over_https(path: &'static str) -> SocketAddr {
    let (addr, listener, acceptor) = listen(b"h2").await;
    tokio::spawn(async move {
        loop {
            let Ok(stream) = acceptor.accept(listener.accept().await.unwrap().0).await else { continue };
            tokio::spawn(speak_http(stream, path));
        }
    });
    addr
}

async fn speak_http(stream: TlsStream<TcpStream>, path: &'static str) {
    let mut connection = h2::server::handshake(stream).await.unwrap();
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        assert_eq!(request.uri().path(), path);
        assert_eq!(request.headers()["content-type"], "application/dns-message");
        tokio::spawn(async move {
            let mut body = request.into_body();
            let mut wire = Vec::new();
            while let Some(Ok(data)) = body.data().await {
                wire.extend_from_slice(&data);
            }
            let reply = answer(&wire);
            let head = http::Response::builder()
                .header("content-type", "application/dns-message")
                .header("content-length", reply.len())
                .body(())
                .unwrap();
            respond.send_response(head, false).unwrap().send_data(reply.into(), true).unwrap();
        });
    }
}

fn serve(upstream: Vec<Upstream>, trusted: bool) -> (DnsServer, Arc<Forwarder>) {
    let upstream_ca = trusted.then(|| file("authority.pem"));
    let forwarder =
        Arc::new(Forwarder::new(&DnsSettings { upstream, upstream_ca, ..DnsSettings::default() }).unwrap());
    let world = Arc::new(ArcSwap::from_pointee(world()));
    let shared = Arc::new(ArcSwap::new(forwarder.clone()));
    (DnsServer::new(world, shared, Arc::new(DnsStats::default()), clock), forwarder)
}

async fn ask(server: &DnsServer, name: &str) -> Message {
    resolve(server, APP, &with_edns(query(name, RecordType::A), 1232)).await
}

/// One connection carries many questions, and one that was closed is opened again without anybody noticing.
#[tokio::test]
async fn questions_go_over_tls() {
    let (addr, connections) = over_tls(3).await;
    let (server, forwarder) = serve(vec![format!("tls://{addr}#dns.example").parse().unwrap()], true);
    for number in 0..7 {
        let reply = ask(&server, &format!("n{number}.example.com.")).await;
        assert_eq!(reply.answers.len(), 1, "{reply}");
    }
    assert_eq!(connections.load(Ordering::SeqCst), 3);
    let [upstream] = &forwarder.status().upstreams[..] else { panic!("one upstream") };
    assert_eq!((upstream.answers, upstream.failures), (7, 0));
    assert_eq!(upstream.upstream, format!("tls://{addr}#dns.example"));
}

#[tokio::test]
async fn questions_go_over_https() {
    let addr = over_https("/dns-query").await;
    let (server, _) = serve(vec![format!("https://{addr}/dns-query").parse().unwrap()], true);
    for number in 0..3 {
        assert_eq!(ask(&server, &format!("n{number}.example.com.")).await.answers.len(), 1);
    }
}

/// Where a host is, the plain upstreams are asked; what it says is believed for its certificate alone.
#[tokio::test]
async fn a_host_is_looked_up_first() {
    let addr = over_https("/q").await;
    let plain = ScriptedUpstream::start(|query, mut reply, _| {
        let name = query.queries[0].name().to_string();
        assert_eq!(name, "dns.example.", "asked in the clear");
        reply.add_answer(a(&name, 60, [127, 0, 0, 1]));
        Some(reply)
    })
    .await;
    let url = format!("https://dns.example:{}/q", addr.port());
    let corp = ("corp.example".parse().unwrap(), vec![url.parse().unwrap()]);
    let settings = DnsSettings {
        upstream: vec![Upstream::Plain(plain.addr)],
        forward: vec![corp],
        upstream_ca: Some(file("authority.pem")),
        ..DnsSettings::default()
    };
    let forwarder = Arc::new(ArcSwap::from_pointee(Forwarder::new(&settings).unwrap()));
    let world = Arc::new(ArcSwap::from_pointee(world()));
    let server = DnsServer::new(world, forwarder, Arc::new(DnsStats::default()), clock);
    assert_eq!(ask(&server, "a.corp.example.").await.answers.len(), 1);
    assert_eq!(ask(&server, "b.corp.example.").await.answers.len(), 1);
    assert_eq!(plain.asked(), (1, 0));
}

/// RFC 8310 §5: under a strict profile nobody is asked whose certificate is not what it has to be.
#[tokio::test]
async fn who_cannot_prove_its_name_is_not_asked() {
    let (addr, connections) = over_tls(9).await;
    for (upstream, trusted) in
        [(format!("tls://{addr}#other.example"), true), (format!("tls://{addr}#dns.example"), false)]
    {
        let (server, _) = serve(vec![upstream.parse().unwrap()], trusted);
        let reply = ask(&server, "example.com.").await;
        assert_eq!((reply.metadata.response_code, ede(&reply)), (ResponseCode::ServFail, Some(23)));
    }
    assert_eq!(connections.load(Ordering::SeqCst), 0);
}

#[test]
fn a_file_without_authorities_is_refused() {
    for (name, says) in [("server_key.pem", "holds no certificate"), ("missing.pem", "name a PEM file")] {
        let settings = DnsSettings { upstream_ca: Some(file(name)), ..DnsSettings::default() };
        let Err(error) = Forwarder::new(&settings) else { panic!("{name} accepted") };
        let wrong = matches!(
            error,
            ForwardError::Authorities(AuthoritiesError::Empty(_) | AuthoritiesError::Unreadable { .. })
        );
        assert!(wrong && error.to_string().contains(says), "{error}");
    }
}
