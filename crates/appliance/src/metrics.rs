//! What `/metrics` shows. Labels come from the table and from closed sets, never from clients.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use proximity_admin::{Appliance, ForwardFigures, MetricKind, MetricsText};
use proximity_dhcp::Drop;
use proximity_dns::DnsSnapshot;
use proximity_proxy::{AccessLogCounts, AppTotals, BackendLoad, Circuit, Reason, Totals};
use proximity_table::{AppState, ResolvedForward, UpstreamKey, Verdict, World};

use crate::control::Control;
use crate::{forwarding, log};

use MetricKind::{Counter, Gauge, Histogram};

/// The page.
pub fn page(control: &Control) -> String {
    let world = control.world();
    // So that nothing is shown that is no longer there.
    control.data.tidy(&world);
    let mut page = MetricsText::default();
    let version = env!("CARGO_PKG_VERSION");
    let mut build = page.family("proximity_build_info", Gauge, "What runs.");
    build.sample(&[("version", version)], 1);
    let uptime = control.uptime.milliseconds() / 1000;
    page.single("proximity_uptime_seconds", Gauge, "Time since the start of the process.", uptime);
    let ready = u8::from(control.ready().is_ok());
    page.single("proximity_ready", Gauge, "Whether everything serves and the kernel is as planned.", ready);
    page.single("proximity_generation", Gauge, "Number of the published world.", world.generation.0);
    let lost = log::lost();
    page.single("proximity_log_lines_lost_total", Counter, "Lines of the log that nobody took.", lost);
    table(&mut page, &world);
    dhcp(&mut page, control);
    dns(&mut page, &control.data.dns_totals());
    forwarding::figures(&mut page, &control.forwarder.load().status());
    control.data.blocking().figures(&mut page);
    proxy(&mut page, &control.data.proxy_totals());
    let (apps, others) = control.data.app_totals();
    by_app(&mut page, &apps, &others);
    by_backend(&mut page, &world, &control.data.backend_loads());
    by_forward(&mut page, &world, |forward| control.forward_figures(forward));
    access_log(&mut page, &control.data.access_log_counts());
    page.finish()
}

fn table(page: &mut MetricsText, world: &World) {
    let ledger = world.facts.ledger();
    page.single("proximity_leases", Gauge, "Leases in force.", ledger.bound_count());
    let help = "Apps with a lease or a reservation, present or past, by their state.";
    let mut apps = page.family("proximity_apps", Gauge, help);
    for state in [AppState::Active, AppState::Reserved, AppState::Stopped] {
        let count = world.app_states().filter(|app| *app == state).count();
        apps.sample(&[("state", state.as_str())], count);
    }
    let mut vhosts = page.family("proximity_vhosts", Gauge, "Host names by what a request meets there.");
    for verdict in [Verdict::Ready, Verdict::Starting, Verdict::Stopped, Verdict::Disabled] {
        let count = world.routes.values().filter(|route| route.verdict() == verdict).count();
        vhosts.sample(&[("verdict", verdict.as_str())], count);
    }
}

fn dhcp(page: &mut MetricsText, control: &Control) {
    let stats = &control.dhcp;
    let mut received = page.family("proximity_dhcp_received_total", Counter, "DHCP messages from clients.");
    stats.received().for_each(|(kind, count)| received.sample(&[("type", kind)], count));
    let mut sent = page.family("proximity_dhcp_sent_total", Counter, "DHCP messages to clients.");
    stats.sent().for_each(|(kind, count)| sent.sample(&[("type", kind)], count));
    let mut dropped = page.family("proximity_dhcp_dropped_total", Counter, "DHCP messages without answer.");
    stats
        .dropped()
        .for_each(|(reason, count): (Drop, u64)| dropped.sample(&[("reason", reason.label())], count));
}

fn dns(page: &mut MetricsText, dns: &DnsSnapshot) {
    let mut queries = page.family("proximity_dns_queries_total", Counter, "DNS queries.");
    for (transport, count) in
        [("udp", dns.udp_queries), ("tcp", dns.tcp_queries), ("process", dns.process_queries)]
    {
        queries.sample(&[("transport", transport)], count);
    }
    let mut answers = page.family("proximity_dns_responses_total", Counter, "DNS responses.");
    dns.answers.iter().for_each(|(rcode, count)| answers.sample(&[("rcode", rcode)], count));
    let mut dropped = page.family("proximity_dns_dropped_total", Counter, "DNS messages without answer.");
    dns.drops.iter().for_each(|(reason, count)| dropped.sample(&[("reason", reason)], count));
    let mut malformed =
        page.family("proximity_dns_malformed_total", Counter, "DNS messages that made no sense.");
    dns.malformed.iter().for_each(|(reason, count)| malformed.sample(&[("reason", reason)], count));
    let mut single = |name, help, value| page.single(name, Counter, help, value);
    single("proximity_dns_forwarded_total", "Questions about names of others.", dns.forwarded);
    single("proximity_dns_cache_hits_total", "Of those, the ones answered from the cache.", dns.cache_hits);
    single("proximity_dns_blocked_total", "Questions about names that are blocked.", dns.blocked);
    single(
        "proximity_dns_delegated_total",
        "Questions asked of the servers of delegated names.",
        dns.delegated,
    );
    single("proximity_dns_slipped_total", "Responses truncated because there were too many.", dns.slipped);
    let failures = dns.upstream_failures;
    single(
        "proximity_dns_upstream_failures_total",
        "Of those, the ones that no upstream answered.",
        failures,
    );
}

fn proxy(page: &mut MetricsText, totals: &Totals) {
    let mut single = |name, kind, help, value| page.single(name, kind, help, value);
    single("proximity_http_connections", Gauge, "Client connections open now.", totals.open);
    single("proximity_http_connections_total", Counter, "Client connections ever taken.", totals.connections);
    single("proximity_http_tunnels", Gauge, "Upgraded connections (WebSocket) open now.", totals.tunnels);
    single("proximity_http_retries_total", Counter, "Requests sent to a backend again.", totals.retries);
    let connects = totals.upstream_connects;
    single("proximity_upstream_connects_total", Counter, "Connections opened to backends.", connects);
    let reuses = totals.upstream_reuses;
    single("proximity_upstream_reuses_total", Counter, "Requests sent on a kept connection.", reuses);
    let help = "Requests and connections that were stopped, and why.";
    let mut stopped = page.family("proximity_http_stopped_total", Counter, help);
    for reason in Reason::ALL {
        stopped.sample(&[("reason", reason.as_str())], totals.of(reason));
    }
}

/// Requests for no app of the table have an empty name.
fn by_app(page: &mut MetricsText, apps: &[(Arc<str>, AppTotals)], others: &AppTotals) {
    let all = || apps.iter().map(|(app, totals)| (&**app, totals)).chain([("", others)]);
    let help = "Requests by app and by the class of their answer (0xx: the client left before it).";
    let mut requests = page.family("proximity_http_requests_total", Counter, help);
    for (app, totals) in all() {
        for (class, count) in ["0xx", "1xx", "2xx", "3xx", "4xx", "5xx"].into_iter().zip(totals.responses) {
            if count > 0 {
                requests.sample(&[("app", app), ("class", class)], count);
            }
        }
    }
    let help = "From a request's arrival to the end of its answer; changes of protocol are left out.";
    let mut durations = page.family("proximity_http_request_duration_seconds", Histogram, help);
    for (app, totals) in all() {
        for (bound, count) in totals.durations.cumulative() {
            durations.part("_bucket", &[("app", app), ("le", &seconds(bound).to_string())], count);
        }
        let count = totals.durations.count();
        durations.part("_bucket", &[("app", app), ("le", "+Inf")], count);
        durations.part("_sum", &[("app", app)], seconds(totals.durations.micros));
        durations.part("_count", &[("app", app)], count);
    }
    let help = "Octets of bodies received from clients.";
    let mut received = page.family("proximity_http_request_body_bytes_total", Counter, help);
    all().for_each(|(app, totals)| received.sample(&[("app", app)], totals.received));
    let help = "Octets of bodies sent to clients.";
    let mut sent = page.family("proximity_http_response_body_bytes_total", Counter, help);
    all().for_each(|(app, totals)| sent.sample(&[("app", app)], totals.sent));
}

/// What is known of one address of an app, however it is spoken to.
struct BackendRow {
    upstreams: Vec<UpstreamKey>,
    is_healthy: bool,
}

/// An address that an app speaks to in several ways (a path by HTTPS) is one series: counts are summed, and it is well
/// only if it is in every way.
fn by_backend(page: &mut MetricsText, world: &World, loads: &HashMap<UpstreamKey, BackendLoad>) {
    let mut known: BTreeMap<(&str, String), BackendRow> = BTreeMap::new();
    for route in world.routes.values() {
        for (upstream, backend) in route.upstreams() {
            let row = known
                .entry((&route.app, backend.key.addr.to_string()))
                .or_insert_with(|| BackendRow { upstreams: Vec::new(), is_healthy: true });
            row.is_healthy &= backend.is_healthy();
            if !row.upstreams.contains(&upstream) {
                row.upstreams.push(upstream);
            }
        }
    }
    let help = "Whether the last probes of a backend passed, all of them where it is asked in several ways.";
    let mut healthy = page.family("proximity_backend_healthy", Gauge, help);
    for ((app, backend), row) in &known {
        healthy.sample(&[("app", app), ("backend", backend)], u8::from(row.is_healthy));
    }
    // Those that got requests.
    let loads: Vec<(&str, &str, Vec<&BackendLoad>)> = known
        .iter()
        .map(|((app, backend), row)| {
            let loads = row.upstreams.iter().filter_map(|upstream| loads.get(upstream)).collect();
            (*app, backend.as_str(), loads)
        })
        .filter(|(.., loads): &(_, _, Vec<_>)| !loads.is_empty())
        .collect();
    let mut each = |name, kind, help, value: fn(&[&BackendLoad]) -> u64| {
        let mut family = page.family(name, kind, help);
        for (app, backend, loads) in &loads {
            family.sample(&[("app", app), ("backend", backend)], value(loads));
        }
    };
    let help = "Requests that a backend works on.";
    each("proximity_backend_requests_in_flight", Gauge, help, |loads| sum(loads, |load| load.in_flight));
    let help = "Requests that wait for a backend.";
    each("proximity_backend_requests_waiting", Gauge, help, |loads| sum(loads, |load| load.waiting));
    let help = "Whether a backend is left alone for its failures, or tried again after that.";
    each("proximity_backend_paused", Gauge, help, |loads| {
        u64::from(loads.iter().any(|load| load.circuit != Circuit::Closed))
    });
    let help = "How often a backend was left alone for its failures.";
    each("proximity_backend_pauses_total", Counter, help, |loads| sum(loads, |load| load.pauses));
}

fn sum(loads: &[&BackendLoad], value: fn(&BackendLoad) -> u32) -> u64 {
    loads.iter().map(|load| u64::from(value(load))).sum()
}

/// Of ports that the kernel forwards only the health is known.
fn by_forward(page: &mut MetricsText, world: &World, figures: impl Fn(&ResolvedForward) -> ForwardFigures) {
    let number = |forward: &ResolvedForward| forward.port.to_string();
    let all: Vec<ForwardRow> =
        world.forwards.iter().map(|forward| (&**forward, number(forward), figures(forward))).collect();
    let carried = || all.iter().filter(|(forward, ..)| forward.proxy.is_some());
    let mut each = |name, kind, help, value: fn(&ForwardFigures) -> u64| {
        let mut family = page.family(name, kind, help);
        for (forward, port, figures) in carried() {
            family.sample(&[("protocol", forward.protocol.as_str()), ("port", port)], value(figures));
        }
    };
    let help = "Whether a port is listened on that the appliance is to carry.";
    each("proximity_forward_listening", Gauge, help, |figures| u64::from(figures.trouble.is_none()));
    let help = "Connections of a port that the appliance carries; of UDP the clients that are remembered.";
    each("proximity_forward_connections", Gauge, help, |figures| figures.open);
    let help = "Connections of a port ever taken.";
    each("proximity_forward_connections_total", Counter, help, |figures| figures.taken);
    let help = "Octets from clients of a port.";
    each("proximity_forward_received_bytes_total", Counter, help, |figures| figures.received);
    let help = "Octets to clients of a port.";
    each("proximity_forward_sent_bytes_total", Counter, help, |figures| figures.sent);
    let help = "Connections and datagrams of a port that were refused or cut, and why.";
    let mut stopped = page.family("proximity_forward_stopped_total", Counter, help);
    for (forward, port, figures) in carried() {
        for one in &figures.stopped {
            let labels = [("protocol", forward.protocol.as_str()), ("port", port), ("reason", one.reason)];
            stopped.sample(&labels, one.count);
        }
    }
    let mut of_targets = |name, help, value: &dyn Fn(&ForwardRow, usize) -> Option<u64>| {
        let mut family = page.family(name, Gauge, help);
        for row in &all {
            for (at, target) in row.0.targets.iter().enumerate() {
                let address = target.key.addr.to_string();
                let labels =
                    [("protocol", row.0.protocol.as_str()), ("port", &*row.1), ("target", &*address)];
                value(row, at).into_iter().for_each(|value| family.sample(&labels, value));
            }
        }
    };
    let help = "Connections that the appliance carries to a target, of all ports.";
    of_targets("proximity_forward_target_connections", help, &|(forward, _, figures), at| {
        figures.targets.get(at).filter(|_| forward.proxy.is_some()).map(|target| target.open)
    });
    let help = "Whether the last probes of a target passed.";
    of_targets("proximity_forward_target_healthy", help, &|(forward, ..), at| {
        forward.health.is_some().then(|| u64::from(forward.targets[at].is_healthy()))
    });
}

/// A forward, its port as text, and what is known of it.
type ForwardRow<'a> = (&'a ResolvedForward, String, ForwardFigures);

fn access_log(page: &mut MetricsText, counts: &AccessLogCounts) {
    let help = "Lines of the access logs by what became of them.";
    let mut lines = page.family("proximity_access_log_lines_total", Counter, help);
    for (result, count) in [
        ("written", counts.written),
        ("behind", counts.behind),
        ("failed", counts.failed),
        ("default_full", counts.default_full),
        ("disk_full", counts.disk_full),
    ] {
        lines.sample(&[("result", result)], count);
    }
}

fn seconds(micros: u64) -> f64 {
    micros as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddrV4;

    use proximity_admin::{Stopped, TargetFigures};
    use proximity_config::Config;
    use proximity_proxy::AppCounters;
    use proximity_table::{
        BackendKey, BackendProtocol, BackendTarget, BackendTls, Change, Facts, Forward, Generation, Health,
        HealthPolicy, HealthState, Lease, LeaseState, Ledger, Mac, ProbeKey, Protocol, Source, Timestamp,
        Touched, Vhost, VhostPath,
    };

    use super::*;

    fn with(write: impl FnOnce(&mut MetricsText)) -> String {
        let mut page = MetricsText::default();
        write(&mut page);
        page.finish()
    }

    fn has(page: &str, line: &str) {
        assert!(page.lines().any(|there| there == line), "{line} is not in\n{page}");
    }

    #[test]
    fn vhosts_are_no_apps() {
        let mut facts = Facts::new(Config::default().intent, Ledger::default());
        let mut apply = |change| facts.apply(change, &mut Touched::default());
        for (last, name, state) in [
            (101, "wiki", LeaseState::Bound),
            (102, "shop", LeaseState::Bound),
            (103, "old", LeaseState::Expired),
        ] {
            apply(Change::Lease(Lease {
                ip: [10, 20, 0, last].into(),
                mac: Mac([2, 0, 0, 0, 0, last]),
                client_id: None,
                hostname: Some(name.parse().unwrap()),
                network: "apps".into(),
                state,
                expires: Timestamp(10),
                epoch: 1,
            }));
        }
        for name in ["docs", "www", "wiki"] {
            let to = BackendTarget::App { name: "wiki".parse().unwrap(), port: 80 };
            let hostname = format!("{name}.example.org").parse().unwrap();
            apply(Change::Vhost(Source::Api, Vhost::new(name.parse().unwrap(), hostname, vec![to]).into()));
        }
        let world = World::derive(facts, Generation(1));
        assert_eq!(world.app_states().count(), 3);
        let page = with(|page| table(page, &world));
        for line in [
            r#"proximity_apps{state="active"} 2"#,
            r#"proximity_apps{state="reserved"} 0"#,
            r#"proximity_apps{state="stopped"} 1"#,
        ] {
            has(&page, line);
        }
    }

    #[test]
    fn apps_are_told_by_class_and_duration_and_the_rest_has_no_name() {
        let counters = AppCounters::default();
        counters.observe(200, 3, 5, 2_000);
        counters.observe(204, 0, 0, 700_000);
        counters.observe(502, 0, 9, 20_000_000);
        let others = AppCounters::default();
        others.observe(404, 0, 1, 1);
        let page = with(|page| by_app(page, &[("wiki".into(), counters.snapshot())], &others.snapshot()));
        for line in [
            "# TYPE proximity_http_requests_total counter",
            r#"proximity_http_requests_total{app="wiki",class="2xx"} 2"#,
            r#"proximity_http_requests_total{app="wiki",class="5xx"} 1"#,
            r#"proximity_http_requests_total{app="",class="4xx"} 1"#,
            "# TYPE proximity_http_request_duration_seconds histogram",
            r#"proximity_http_request_duration_seconds_bucket{app="wiki",le="0.001"} 0"#,
            r#"proximity_http_request_duration_seconds_bucket{app="wiki",le="0.0025"} 1"#,
            r#"proximity_http_request_duration_seconds_bucket{app="wiki",le="1"} 2"#,
            r#"proximity_http_request_duration_seconds_bucket{app="wiki",le="10"} 2"#,
            r#"proximity_http_request_duration_seconds_bucket{app="wiki",le="+Inf"} 3"#,
            r#"proximity_http_request_duration_seconds_sum{app="wiki"} 20.702"#,
            r#"proximity_http_request_duration_seconds_count{app="wiki"} 3"#,
            r#"proximity_http_request_body_bytes_total{app="wiki"} 3"#,
            r#"proximity_http_response_body_bytes_total{app="wiki"} 14"#,
        ] {
            has(&page, line);
        }
        assert!(!page.contains("class=\"0xx\""), "what never happened is left out");
    }

    #[test]
    fn backends_are_told_once_with_health_and_load() {
        let addr = |port| SocketAddrV4::new([10, 20, 0, 5].into(), port);
        let key = |port| BackendKey { addr: addr(port), epoch: 0 };
        let mut facts = Facts::new(Config::default().intent, Ledger::default());
        let targets = vec![BackendTarget::Address(addr(80)), BackendTarget::Address(addr(81))];
        let mut wiki = Vhost::new("wiki".parse().unwrap(), "wiki.prox.local".parse().unwrap(), targets);
        wiki.aliases = vec!["alias.prox.local".parse().unwrap()];
        let health = Health { state: HealthState::Healthy, since: Timestamp(1), reason: None };
        for change in [
            Change::Vhost(Source::Api, wiki.into()),
            Change::Health("wiki".into(), ProbeKey::plain(key(80)), Some(health)),
        ] {
            facts.apply(change, &mut Touched::default());
        }
        let world = World::derive(facts, Generation(1));
        let load = BackendLoad {
            in_flight: 2,
            waiting: 1,
            failures: 3,
            pauses: 4,
            circuit: Circuit::Open { until_ms: 9 },
            last_failure: None,
            is_known: false,
            usable_for_ms: 0,
        };
        let loads = [80, 99].map(|port| (UpstreamKey::plain(key(port)), load)).into();
        let page = with(|page| by_backend(page, &world, &loads));
        for line in [
            r#"proximity_backend_healthy{app="wiki",backend="10.20.0.5:80"} 1"#,
            r#"proximity_backend_healthy{app="wiki",backend="10.20.0.5:81"} 0"#,
            r#"proximity_backend_requests_in_flight{app="wiki",backend="10.20.0.5:80"} 2"#,
            r#"proximity_backend_requests_waiting{app="wiki",backend="10.20.0.5:80"} 1"#,
            r#"proximity_backend_paused{app="wiki",backend="10.20.0.5:80"} 1"#,
            r#"proximity_backend_pauses_total{app="wiki",backend="10.20.0.5:80"} 4"#,
        ] {
            has(&page, line);
        }
        assert_eq!(page.lines().filter(|line| !line.starts_with('#')).count(), 6, "{page}");
    }

    #[test]
    fn an_address_that_is_spoken_to_in_two_ways_is_one_series() {
        let key = BackendKey { addr: SocketAddrV4::new([10, 20, 0, 5].into(), 443), epoch: 0 };
        let target = vec![BackendTarget::Address(key.addr)];
        let mut wiki =
            Vhost::new("wiki".parse().unwrap(), "wiki.prox.local".parse().unwrap(), target.clone());
        wiki.paths = vec![VhostPath {
            prefix: "/s".to_owned(),
            strip: false,
            backends: target,
            protocol: BackendProtocol::Https,
            tls: BackendTls::default(),
            health: HealthPolicy::default(),
            redirect: None,
        }];
        let mut facts = Facts::new(Config::default().intent, Ledger::default());
        facts.apply(Change::Vhost(Source::Api, wiki.into()), &mut Touched::default());
        let world = World::derive(facts.clone(), Generation(1));
        let services: Vec<_> = world.routes["wiki.prox.local"].services().cloned().collect();
        let load = |in_flight, circuit| BackendLoad {
            in_flight,
            waiting: 1,
            failures: 3,
            pauses: 4,
            circuit,
            last_failure: None,
            is_known: true,
            usable_for_ms: 0,
        };
        let open = Circuit::Open { until_ms: 9 };
        let loads: HashMap<_, _> = services
            .iter()
            .zip([load(2, open), load(5, Circuit::Closed)])
            .map(|(service, load)| (service.upstream(key), load))
            .collect();
        assert_eq!(loads.len(), 2);
        // First one of them is well, then both are.
        for (service, is_healthy) in services.iter().zip([0, 1]) {
            let health = Health { state: HealthState::Healthy, since: Timestamp(1), reason: None };
            let probe = ProbeKey { backend: key, question: service.question() };
            facts.apply(Change::Health("wiki".into(), probe, Some(health)), &mut Touched::default());
            let page = with(|page| by_backend(page, &World::derive(facts.clone(), Generation(1)), &loads));
            let labels = r#"{app="wiki",backend="10.20.0.5:443"}"#;
            has(&page, &format!("proximity_backend_healthy{labels} {is_healthy}"));
            has(&page, &format!("proximity_backend_requests_in_flight{labels} 7"));
            has(&page, &format!("proximity_backend_requests_waiting{labels} 2"));
            has(&page, &format!("proximity_backend_paused{labels} 1"));
            has(&page, &format!("proximity_backend_pauses_total{labels} 8"));
            assert_eq!(page.lines().filter(|line| !line.starts_with('#')).count(), 5, "{page}");
        }
    }

    #[test]
    fn forwards_are_told_by_port_and_target() {
        let mut facts = Facts::new(Config::default().intent, Ledger::default());
        let target = |last: u8| BackendTarget::Address(SocketAddrV4::new([10, 20, 0, last].into(), 22));
        let mut carried = Forward::new(Protocol::Tcp, 2222, target(5));
        carried.more = vec![target(6)];
        carried.proxy = Some(Arc::default());
        let mut translated = Forward::new(Protocol::Tcp, 2223, target(7));
        translated.health = Some(Arc::default());
        for forward in [carried, translated] {
            facts.apply(Change::Forward(Source::Api, forward), &mut Touched::default());
        }
        let world = World::derive(facts, Generation(1));
        let target = TargetFigures { open: 2, ..TargetFigures::default() };
        let figures = |forward: &ResolvedForward| ForwardFigures {
            open: 3,
            taken: 4,
            received: 5,
            sent: 6,
            targets: forward.targets.iter().map(|_| target).collect(),
            stopped: vec![Stopped { reason: "loop", says: "it came back", count: 7 }],
            ..ForwardFigures::default()
        };
        let page = with(|page| by_forward(page, &world, figures));
        for line in [
            r#"proximity_forward_listening{protocol="tcp",port="2222"} 1"#,
            r#"proximity_forward_connections{protocol="tcp",port="2222"} 3"#,
            r#"proximity_forward_connections_total{protocol="tcp",port="2222"} 4"#,
            r#"proximity_forward_received_bytes_total{protocol="tcp",port="2222"} 5"#,
            r#"proximity_forward_sent_bytes_total{protocol="tcp",port="2222"} 6"#,
            r#"proximity_forward_stopped_total{protocol="tcp",port="2222",reason="loop"} 7"#,
            r#"proximity_forward_target_connections{protocol="tcp",port="2222",target="10.20.0.5:22"} 2"#,
            r#"proximity_forward_target_connections{protocol="tcp",port="2222",target="10.20.0.6:22"} 2"#,
            r#"proximity_forward_target_healthy{protocol="tcp",port="2223",target="10.20.0.7:22"} 0"#,
        ] {
            has(&page, line);
        }
        assert_eq!(page.lines().filter(|line| !line.starts_with('#')).count(), 9, "{page}");
    }

    #[test]
    fn each_figure_of_the_proxy_has_the_name_of_its_own() {
        let totals = Totals {
            open: 11,
            connections: 22,
            tunnels: 33,
            retries: 44,
            upstream_connects: 55,
            upstream_reuses: 66,
            ..Totals::default()
        };
        let page = with(|page| proxy(page, &totals));
        for line in [
            "# TYPE proximity_http_connections gauge",
            "proximity_http_connections 11",
            "# TYPE proximity_http_connections_total counter",
            "proximity_http_connections_total 22",
            "# TYPE proximity_http_tunnels gauge",
            "proximity_http_tunnels 33",
            "# TYPE proximity_http_retries_total counter",
            "proximity_http_retries_total 44",
            "proximity_upstream_connects_total 55",
            "proximity_upstream_reuses_total 66",
        ] {
            has(&page, line);
        }
    }

    #[test]
    fn every_reason_is_a_series_from_the_start() {
        let page = with(|page| proxy(page, &Totals::default()));
        has(&page, r#"proximity_http_stopped_total{reason="unknown_host"} 0"#);
        assert_eq!(page.matches("{reason=").count(), Reason::ALL.len());
        let page =
            with(|page| access_log(page, &AccessLogCounts { behind: 7, ..AccessLogCounts::default() }));
        has(&page, r#"proximity_access_log_lines_total{result="behind"} 7"#);
    }
}
