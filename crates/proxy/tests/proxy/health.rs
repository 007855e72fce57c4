use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;

use proximity_proxy::{HealthReport, Reason, probe};
use proximity_table::{
    BackendProtocol, BackendTarget, BackendTls, Change, Forward, Health, HealthPolicy, HealthState,
    LeaseState, ProbeKey, Protocol, Service, Source, Timestamp, VhostPath,
};
use socket2::{Domain, Socket, Type};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::probes::tls_backend;
use crate::support::{Backend, PATIENCE, Proxy, Table, lease, vhost};

/// Runs the prober of a table on a thread; what it reports comes out here.
fn probing(table: &Table) -> mpsc::Receiver<HealthReport> {
    let (reports, received) = mpsc::channel(16);
    let (snapshot, generations) = (table.snapshot.clone(), table.generations.subscribe());
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(probe(snapshot, generations, reports, |_| (), Arc::default(), 7));
    });
    received
}

fn next(reports: &mut mpsc::Receiver<HealthReport>) -> HealthReport {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime
        .block_on(async { timeout(PATIENCE, reports.recv()).await })
        .expect("a report in time")
        .expect("a prober")
}

/// A port that is taken and on which nothing listens yet.
pub fn taken_port() -> (Socket, u16) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
    let port = socket.local_addr().unwrap().as_socket().unwrap().port();
    (socket, port)
}

#[test]
fn an_app_is_starting_until_a_probe_passes_and_then_served() {
    let (socket, port) = taken_port();
    let mut table = Table::new("127.0.0.1/8", port);
    let proxy = Proxy::start(&table);
    let mut reports = probing(&table);
    assert_eq!(proxy.get("wiki.prox.local", "/").status, 404);

    table.change(Change::Lease(lease("wiki", Ipv4Addr::LOCALHOST, 1, LeaseState::Bound)));
    let page = proxy.get("wiki.prox.local", "/");
    assert_eq!((page.status, page.header("retry-after")), (503, vec!["2"]));
    assert!(page.text().contains("starting"), "{}", page.text());

    let (app, key, health) = next(&mut reports);
    let health = health.unwrap();
    assert_eq!((health.state, &*app, key.backend.epoch), (HealthState::Unproven, "wiki", 1));
    table.change(Change::Health(app, key, Some(health)));
    // Somebody on the app network is told what the probe saw.
    assert!(proxy.get("wiki.prox.local", "/").text().contains("connection refused"));
    assert_eq!(proxy.count(Reason::Starting), 2);

    socket.listen(16).unwrap();
    let backend = Backend::on(socket.into(), |mut conn| {
        while conn.request().is_some() {
            conn.write("HTTP/1.1 401 Unauthorized\r\nContent-Length: 5\r\n\r\nlogin");
        }
    });
    let (app, key, health) = next(&mut reports);
    assert_eq!(health.as_ref().unwrap().state, HealthState::Healthy);
    table.change(Change::Health(app, key, health));
    let response = proxy.get("wiki.prox.local", "/");
    assert_eq!((response.status, response.text().as_str()), (401, "login"));
    let probe = backend.requests().remove(0);
    assert_eq!(
        (probe.line.as_str(), probe.header("host")),
        ("GET / HTTP/1.1", vec![&*backend.addr.to_string()])
    );
}

#[test]
fn probes_follow_the_table() {
    let backend = Backend::answering("fine");
    let mut table = Table::of(vec![]);
    let mut reports = probing(&table);
    let mut wiki = vhost("wiki", &[backend.addr]);
    wiki.health = HealthPolicy { uri: "/up".to_owned(), ..HealthPolicy::default() };
    table.change(Change::Vhost(Source::Api, wiki.clone().into()));
    let (app, key, health) = next(&mut reports);
    assert_eq!(
        (&*app, key.backend.addr, health.unwrap().state),
        ("wiki", backend.addr, HealthState::Healthy)
    );
    assert_eq!(backend.requests()[0].line, "GET /up HTTP/1.1");

    // A removed vhost is forgotten, so that the facts do not grow; a new one starts unproven.
    table.change(Change::RemoveVhost("wiki".parse().unwrap()));
    assert_eq!(next(&mut reports), (app.clone(), key, None));
    table.change(Change::Vhost(Source::Api, wiki.clone().into()));
    assert_eq!(next(&mut reports).2.unwrap().state, HealthState::Healthy);

    // A disabled one is left alone.
    wiki.enabled = false;
    table.change(Change::Vhost(Source::Api, wiki.into()));
    assert_eq!(next(&mut reports), (app, key, None));
}

#[test]
fn a_sick_backend_is_reported_with_what_was_seen() {
    let backend = Backend::script(|mut conn| {
        conn.request();
        let status = if conn.number == 0 { "204 No Content" } else { "503 Service Unavailable" };
        conn.write(&format!("HTTP/1.1 {status}\r\n\r\n"));
    });
    let mut wiki = vhost("wiki", &[backend.addr]);
    wiki.health.interval = 1;
    let table = Table::of(vec![wiki]);
    let mut reports = probing(&table);
    assert_eq!(next(&mut reports).2.unwrap().state, HealthState::Healthy);
    let sick = next(&mut reports).2.unwrap();
    assert_eq!((sick.state, sick.reason.as_deref()), (HealthState::Unhealthy, Some("/ answered 503")));
}

/// A process that takes over from another one goes on with its verdicts: one failed probe of a backend that was
/// healthy makes it unhealthy, not unproven again.
#[test]
fn verdicts_of_another_process_hold_until_a_probe_says_otherwise() {
    let (_closed, port) = taken_port();
    let mut table = Table::new("127.0.0.1/8", port);
    table.change(Change::Lease(lease("wiki", Ipv4Addr::LOCALHOST, 1, LeaseState::Bound)));
    let key = table
        .snapshot
        .load()
        .route("wiki.prox.local")
        .expect("a route")
        .backends()
        .next()
        .expect("a backend")
        .key;
    let key = ProbeKey::plain(key);
    let healthy = Health { state: HealthState::Healthy, since: Timestamp(1), reason: None };
    table.change(Change::Health("wiki".into(), key, Some(healthy)));
    let mut reports = probing(&table);
    let (_, probed, health) = next(&mut reports);
    assert_eq!((probed, health.expect("a verdict").state), (key, HealthState::Unhealthy));
    // What was never reported by us is taken back all the same.
    table.change(Change::ForgetLease(Ipv4Addr::LOCALHOST));
    assert_eq!(next(&mut reports), ("wiki".into(), key, None));
}

/// A forward's target is well when it takes a connection; nobody speaks HTTP to it.
#[test]
fn targets_of_forwards_are_probed_by_connecting() {
    let (socket, port) = taken_port();
    let mut table = Table::new("127.0.0.1/8", 80);
    let target = BackendTarget::Address(SocketAddrV4::new(Ipv4Addr::LOCALHOST, port));
    // Whether the kernel or the proxy carries it makes no difference.
    let mut forward = Forward::new(Protocol::Tcp, 2222, target);
    table.change(Change::Forward(Source::Api, forward.clone()));
    let mut reports = probing(&table);
    forward.health = Some(HealthPolicy { interval: 1, ..HealthPolicy::connect() }.into());
    table.change(Change::Forward(Source::Api, forward));
    let (name, key, refused) = next(&mut reports);
    assert_eq!((&*name, key.backend.addr.port()), ("tcp/2222", port));
    assert_eq!(refused.expect("a verdict").state, HealthState::Unproven);
    socket.listen(16).unwrap();
    let (.., well) = next(&mut reports);
    let well = well.expect("a verdict");
    assert_eq!((well.state, well.reason.as_deref()), (HealthState::Healthy, None));
    table.change(Change::Health(name.clone(), key, Some(well)));
    assert!(table.snapshot.load().forward(Protocol::Tcp, 2222).unwrap().targets[0].is_healthy());
    drop(socket);
    assert_eq!(next(&mut reports).2.expect("a verdict").state, HealthState::Unhealthy);
    table.change(Change::RemoveForward(Protocol::Tcp, 2222));
    assert_eq!(next(&mut reports), (name, key, None));
}

/// A path that speaks otherwise to the address of the root has a verdict of its own, and so has one with another check.
#[test]
fn services_at_one_address_each_have_the_verdict_on_what_they_ask() {
    let mut wiki = vhost("wiki", &[tls_backend(include_bytes!("certificates/self_signed.pem"))]);
    let up = HealthPolicy { uri: "/up".to_owned(), ..HealthPolicy::default() };
    wiki.health = up.clone();
    let path = |prefix: &str, protocol, health| VhostPath {
        prefix: prefix.to_owned(),
        strip: false,
        backends: wiki.backends.clone(),
        protocol,
        tls: BackendTls::default(),
        health,
        redirect: None,
    };
    wiki.paths = vec![
        path("/encrypted", BackendProtocol::Https, up.clone()),
        path("/checked", BackendProtocol::Https, HealthPolicy { status: Some((200, 200)), ..up.clone() }),
        path("/same", BackendProtocol::Http, up),
    ];
    let mut table = Table::of(vec![wiki]);
    let mut reports = probing(&table);
    for _ in 0..3 {
        let (app, key, health) = next(&mut reports);
        table.change(Change::Health(app, key, health));
    }
    let world = table.snapshot.load();
    let route = world.route("wiki.prox.local").expect("a route");
    let found = |service: &Service| {
        let health = service.candidates[0].health.clone().expect("a verdict");
        (health.state, health.reason.unwrap_or_default())
    };
    let at = |prefix: &str| {
        let path = route.paths.iter().find(|path| *path.prefix == *prefix).expect("the path");
        found(path.action.service().expect("backends"))
    };
    let (state, reason) = found(route.root.service().expect("backends"));
    assert!(state == HealthState::Unproven && reason.contains("set protocol = \"https\""), "{reason}");
    assert_eq!(at("/same"), (state, reason));
    assert_eq!(at("/encrypted"), (HealthState::Healthy, String::new()));
    assert_eq!(at("/checked"), (HealthState::Unproven, "/up answered 204, not 200".to_owned()));
    assert_eq!(world.facts.verdicts().count(), 3, "the same question is asked once");
}
