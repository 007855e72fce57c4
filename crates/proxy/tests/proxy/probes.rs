//! Probes as the health policy and the service want them.

use std::net::SocketAddrV4;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Response;
use proximity_proxy::{HealthReport, Probed as Told, Reason, probe};
use proximity_table::{
    BackendKey, BackendProtocol, BackendTls, Health, HealthPolicy, HealthState, HostPolicy, VhostPolicy,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::scripts::{h2c, served_by};
use crate::support::{Backend, PATIENCE, Table, vhost};

/// What the prober says of a vhost with one backend.
struct Probed {
    reports: mpsc::Receiver<HealthReport>,
    /// Probes that are over.
    told: Arc<Mutex<Vec<Told>>>,
}

impl Probed {
    fn new(addr: SocketAddrV4, change: impl FnOnce(&mut proximity_table::Vhost)) -> Probed {
        let mut wiki = vhost("wiki", &[addr]);
        change(&mut wiki);
        let table = Table::of(vec![wiki]);
        let (reports, received) = mpsc::channel(16);
        let told = Arc::new(Mutex::new(Vec::new()));
        let over = told.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let tell = move |probed: Told| over.lock().unwrap().push(probed);
            let (snapshot, generations) = (table.snapshot.clone(), table.generations.subscribe());
            runtime.block_on(probe(snapshot, generations, reports, tell, Arc::default(), 7));
        });
        Probed { reports: received, told }
    }

    /// How often a backend became healthy.
    fn recoveries(&self) -> usize {
        self.told.lock().unwrap().iter().filter(|probed| probed.became_healthy).count()
    }

    fn of(addr: SocketAddrV4, health: HealthPolicy) -> Probed {
        Probed::new(addr, |wiki| wiki.health = health)
    }

    fn next(&mut self) -> Health {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let report = runtime.block_on(async { timeout(PATIENCE, self.reports.recv()).await });
        report.expect("a report in time").expect("a prober").2.expect("a verdict")
    }

    fn is_healthy(&mut self) {
        let health = self.next();
        assert_eq!((health.state, health.reason), (HealthState::Healthy, None));
    }

    fn is_not(&mut self, reason: &str) {
        let health = self.next();
        let told = health.reason.unwrap_or_default();
        assert!(health.state == HealthState::Unproven && told.contains(reason), "{told}");
    }
}

fn policy() -> HealthPolicy {
    HealthPolicy { uri: "/up".to_owned(), interval: 1, timeout: 5, ..HealthPolicy::default() }
}

#[test]
fn the_method_of_the_policy_is_used_and_an_answer_to_head_needs_no_body() {
    for method in ["HEAD", "OPTIONS"] {
        let backend = Backend::script(|mut conn| {
            conn.request();
            conn.write("HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n");
        });
        Probed::of(backend.addr, HealthPolicy { method: method.to_owned(), ..policy() }).is_healthy();
        assert_eq!(backend.requests()[0].line, format!("{method} /up HTTP/1.1"));
    }
}

#[test]
fn another_port_can_be_asked() {
    let (backend, checked) = (Backend::answering("requests"), Backend::answering("probes"));
    let health = HealthPolicy { port: Some(checked.addr.port()), ..policy() };
    let mut probed = Probed::of(backend.addr, health);
    probed.is_healthy();
    assert_eq!(probed.told.lock().unwrap()[0].met, None, "requests go elsewhere");
    assert_eq!((backend.accepted(), checked.accepted()), (0, 1));
    assert_eq!(checked.requests()[0].header("host"), [checked.addr.to_string()]);
}

#[test]
fn the_body_must_contain_what_is_looked_for() {
    let backend = Backend::script(|mut conn| {
        conn.request();
        let body = if conn.number == 0 { "ne edle" } else { "a needle" };
        conn.write(&format!(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n",
            body.len()
        ));
        if conn.number == 0 {
            conn.write("0\r\n\r\n");
        } else {
            // Enough was seen: nobody waits for the end.
            conn.request();
        }
    });
    let mut probed = Probed::of(backend.addr, HealthPolicy { body: Some("needle".to_owned()), ..policy() });
    probed.is_not("lacks the text");
    probed.is_healthy();
}

#[test]
fn an_endless_body_is_not_waited_for() {
    let backend = Backend::script(|mut conn| {
        conn.request();
        conn.write("HTTP/1.1 200 OK\r\n\r\n");
        for _ in 0..40 {
            conn.write(&" ".repeat(4096));
        }
        conn.request();
    });
    let mut probed = Probed::of(backend.addr, HealthPolicy { body: Some("needle".to_owned()), ..policy() });
    probed.is_not("lacks the text");
}

#[test]
fn a_slow_start_begins_when_probes_pass_again_and_not_before() {
    let backend = Backend::script(|mut conn| {
        conn.request();
        let status = if [1, 2].contains(&conn.number) { "503 No" } else { "200 OK" };
        conn.write(&format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n"));
    });
    let mut probed = Probed::of(backend.addr, HealthPolicy { fall: 2, status: Some((200, 200)), ..policy() });
    probed.is_healthy();
    let doubted = probed.next();
    assert_eq!(doubted.state, HealthState::Healthy, "one is not enough");
    assert_eq!(doubted.reason.as_deref(), Some("/up answered 503, not 200"));
    assert_eq!(probed.next().state, HealthState::Unhealthy);
    assert_eq!(probed.recoveries(), 1);
    probed.is_healthy();
    assert_eq!(probed.recoveries(), 2);
    let key = BackendKey { addr: backend.addr, epoch: 0 };
    let told = probed.told.lock().unwrap();
    assert!(told.iter().all(|probed| probed.upstream.backend == key));
    // That the app answers 503 to one question says nothing of others.
    assert!(told.iter().all(|probed| probed.met.is_none_or(|met| met == Ok(()))));
    assert!(told.iter().any(|probed| probed.met == Some(Ok(()))));
}

#[test]
fn the_host_of_a_probe_is_that_of_requests() {
    let backend = Backend::answering("");
    let preserve = VhostPolicy { host: HostPolicy::Preserve, ..VhostPolicy::default() };
    Probed::new(backend.addr, |wiki| wiki.policy = preserve.clone().shared()).is_healthy();
    Probed::new(backend.addr, |wiki| {
        wiki.policy = preserve.shared();
        wiki.hostname = "*.wiki.example".parse().unwrap();
    })
    .is_healthy();
    let hosts: Vec<_> =
        backend.requests().iter().map(|request| request.header("host")[0].to_owned()).collect();
    assert_eq!(hosts, ["wiki.prox.local", "wiki.example"]);
}

#[test]
fn an_h2c_backend_is_asked_by_http2() {
    let heads = Arc::new(Mutex::new(Vec::new()));
    let seen = heads.clone();
    let addr = h2c(move |request, mut respond| {
        seen.lock().unwrap().push(format!("{} {}", request.method(), request.uri()));
        async move {
            let response = Response::builder().status(200).body(()).unwrap();
            let mut body = respond.send_response(response, false).unwrap();
            body.send_data(Bytes::from_static(b"all is well"), true).unwrap();
        }
    });
    let h2c = |health: HealthPolicy| {
        Probed::new(addr, move |wiki| {
            wiki.protocol = BackendProtocol::H2c;
            wiki.health = health;
        })
    };
    h2c(HealthPolicy { body: Some("is well".to_owned()), ..policy() }).is_healthy();
    h2c(HealthPolicy { body: Some("is bad".to_owned()), ..policy() }).is_not("lacks the text");
    assert_eq!(heads.lock().unwrap()[0], format!("GET http://{addr}/up"));
    // One that speaks HTTP/1 only would fail every request, so its probe must not pass.
    let plain = Backend::script(|mut conn| conn.write("HTTP/1.1 400 Bad Request\r\n\r\n"));
    let mut probed = Probed::new(plain.addr, |wiki| wiki.protocol = BackendProtocol::H2c);
    probed.is_not("without an HTTP answer");
}

/// A backend over TLS with a certificate and its key.
pub fn tls_backend(pem: &'static [u8]) -> SocketAddrV4 {
    let chain = CertificateDer::pem_slice_iter(pem).map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_slice(pem).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    served_by(move |stream| {
        let acceptor = acceptor.clone();
        async move {
            // A client that does not trust us is what some of the tests are about.
            let Ok(mut stream) = acceptor.accept(stream).await else { return };
            let mut request = [0; 1024];
            // One that only wants to know whether TLS is spoken here asks nothing.
            let Ok(octets @ 1..) = stream.read(&mut request).await else { return };
            assert!(request[..octets].starts_with(b"GET /up HTTP/1.1\r\n"));
            stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
            let _ = stream.shutdown().await;
        }
    })
}

fn https(addr: SocketAddrV4, tls: BackendTls) -> Probed {
    Probed::new(addr, move |wiki| {
        wiki.protocol = BackendProtocol::Https;
        wiki.tls = tls;
        wiki.health = policy();
    })
}

#[test]
fn an_https_backend_is_asked_by_tls_and_must_prove_itself_only_on_demand() {
    let backend = tls_backend(include_bytes!("certificates/self_signed.pem"));
    https(backend, BackendTls::default()).is_healthy();
    https(backend, BackendTls { verify: true, ..BackendTls::default() }).is_not("not signed by an authority");
    let plain = Backend::script(|mut conn| conn.write("HTTP/1.1 400 Bad Request\r\n\r\n"));
    let mut probed = https(plain.addr, BackendTls::default());
    probed.is_not("no encrypted connection");
    assert_eq!(probed.told.lock().unwrap()[0].met, Some(Err(Reason::BackendTls)), "requests meet the same");
}

#[test]
fn what_is_wrong_with_a_certificate_is_said() {
    let named = |file: &str| {
        let path = format!("{}/tests/proxy/certificates/{file}", env!("CARGO_MANIFEST_DIR"));
        BackendTls { verify: true, ca: Some(path), ..BackendTls::default() }
    };
    let signed = tls_backend(include_bytes!("certificates/signed.pem"));
    https(signed, named("authority.pem")).is_healthy();
    let other = BackendTls { server_name: Some("nas.example".to_owned()), ..named("authority.pem") };
    https(signed, other).is_not("it is for another name");
    https(signed, named("self_signed.pem")).is_not("not signed by an authority");
    https(signed, named("nowhere.pem")).is_not("the file of tls_ca cannot be used");
    let expired = tls_backend(include_bytes!("certificates/expired.pem"));
    https(expired, named("authority.pem")).is_not("it has expired");
    let of_an_authority = tls_backend(include_bytes!("certificates/own_authority.pem"));
    https(of_an_authority, named("authority.pem")).is_not("not made for a server");
    // What `openssl req -x509` makes when it is not asked for more: no name will do, so none is asked for.
    let nameless = tls_backend(include_bytes!("certificates/nameless.pem"));
    let told = "no subjectAltName, so it is nobody's: make another with `openssl req … -addext subjectAltName=DNS:NAME`";
    https(nameless, named("nameless.pem")).is_not(told);
}

#[test]
fn a_port_of_https_that_is_asked_by_http_is_told() {
    let http = |addr| Probed::new(addr, |wiki| wiki.health = policy());
    http(tls_backend(include_bytes!("certificates/self_signed.pem"))).is_not("set protocol = \"https\"");
    let broken = Backend::script(drop);
    http(broken.addr).is_not("closed without an HTTP answer");
    let strict = Backend::script(|mut conn| {
        conn.request();
        conn.write("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
    });
    let mut probed = http(strict.addr);
    probed.is_healthy();
    // It is asked once whether it speaks TLS, and not with every probe.
    let began = Instant::now();
    while probed.told.lock().unwrap().len() < 3 {
        assert!(began.elapsed() < PATIENCE, "it is not probed again");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(strict.accepted(), 4);
}
