//! An empty configuration file is the seed's appliance, key by key, as seen from outside.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use dhcproto::v4::{DhcpOption, OptionCode};
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;
use proximity_lab::{DhcpClient, Node, WebServer, addresses};
use proximity_table::Mac;
use proximity_tests::dhcp_probe::{DhcpProbe, Go, RawClient, on_wire};
use proximity_tests::dns_probe::DnsProbe;
use proximity_tests::{PATIENCE, Site, fetch, polling::until};
use serde_json::{Value, json};

const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 20, 0, 1);

fn stdout(node: &Node, command: &[&str]) -> String {
    node.run(command).unwrap_or_else(|error| panic!("{error}")).stdout
}

/// Local addresses of listening sockets.
fn listening(node: &Node, kind: &str) -> BTreeSet<String> {
    let text = stdout(node, &["ss", "-Hln", kind]);
    text.lines().filter_map(|line| line.split_whitespace().nth(3)).map(str::to_owned).collect()
}

#[test]
fn addresses_nat_and_listeners_are_the_seeds() {
    let site = Site::start("");
    site.wait_wan();
    let node = site.lab.appliance();
    let lan = stdout(node, &["ip", "-4", "-o", "addr", "show", "dev", "eth1"]);
    assert!(lan.contains("inet 10.20.0.1/24 brd 10.20.0.255 "), "{lan}");
    assert_eq!(lan.lines().count(), 1, "{lan}");
    let wan = stdout(node, &["ip", "-4", "-o", "addr", "show", "dev", "eth0"]);
    assert!(wan.contains("inet 192.168.1.2/24 "), "{wan}");
    until("the default route", PATIENCE, || {
        let routes = stdout(node, &["ip", "-4", "route", "show", "default"]);
        if routes.contains("via 192.168.1.1 dev eth0") { Ok(()) } else { Err(routes) }
    });
    assert_eq!(stdout(node, &["cat", "/proc/sys/net/ipv4/ip_forward"]), "1\n");
    let rules = stdout(node, &["nft", "list", "table", "inet", "proximity"]);
    let masquerade = rules.lines().find(|line| line.contains("masquerade comment"));
    let masquerade = masquerade.unwrap_or_else(|| panic!("no masquerade: {rules}"));
    assert!(masquerade.contains("oifname \"eth0\"") && masquerade.contains("10.20.0.0/24"), "{masquerade}");

    let set = |all: &[&str]| all.iter().map(|text| (*text).to_owned()).collect::<BTreeSet<_>>();
    assert_eq!(listening(node, "-t"), set(&["0.0.0.0:80", "0.0.0.0:9090", "10.20.0.1:53"]));
    assert_eq!(listening(node, "-u"), set(&["10.20.0.1:53"]));

    let mode = |path: &str| {
        let metadata = std::fs::metadata(node.path(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
        metadata.permissions().mode() & 0o777
    };
    assert_eq!(mode("/var/lib/proximity/admin.token"), 0o600);
    assert_eq!(mode("/run/proximity/admin.sock"), 0o600);
    // The router knows it by the seed's host name.
    let router = site.lab.router().read("/var/log/dnsmasq.log").expect("the router's log");
    assert!(router.contains("prox-appliance"), "{router}");
}

#[test]
fn the_pool_is_100_to_250_for_twelve_hours_and_not_one_more() {
    let site = Site::start("");
    let machine = site.probe_machine("10.20.0.5/24");
    let client = |number: u8| {
        RawClient::new(Mac([0xbc, 0x24, 0x11, 0x66, 0, number]), &format!("app-{number}"), false)
    };
    let mut clients: Vec<RawClient> = (0..151).map(client).collect();
    let mut last = None;
    on_wire(&machine, async || {
        let probe = DhcpProbe::open();
        probe
            .lease_all(&mut clients, PATIENCE, |_, heard| {
                last = Some(heard.message.clone());
                Go::On
            })
            .await;
        let late = client(200);
        let discover = late.message(dhcproto::v4::MessageType::Discover);
        probe.send(late.mac, &discover).await.expect("the link is up");
        let heard = probe.hear(Duration::from_millis(500)).await;
        assert!(heard.is_none(), "an address beyond the pool: {heard:?}");
    });
    let given: BTreeSet<Ipv4Addr> = clients.iter().filter_map(|client| client.granted).collect();
    let pool: BTreeSet<Ipv4Addr> = (100..=250).map(|last| Ipv4Addr::new(10, 20, 0, last)).collect();
    assert_eq!(given, pool);
    let status = site.api().get("/status");
    assert_eq!(
        (&status["statistics"]["available_ips"], &status["drops"]["dhcp.pool_exhausted"]),
        (&json!(0), &json!(1))
    );

    let ack = last.expect("messages were heard");
    let option = |code| ack.opts().get(code).cloned();
    assert_eq!(option(OptionCode::AddressLeaseTime), Some(DhcpOption::AddressLeaseTime(43_200)));
    assert_eq!(option(OptionCode::SubnetMask), Some(DhcpOption::SubnetMask([255, 255, 255, 0].into())));
    assert_eq!(option(OptionCode::Router), Some(DhcpOption::Router(vec![GATEWAY])));
    assert_eq!(option(OptionCode::DomainNameServer), Some(DhcpOption::DomainNameServer(vec![GATEWAY])));
    assert_eq!(option(OptionCode::DomainName), Some(DhcpOption::DomainName("prox.local".into())));
    assert_eq!(option(OptionCode::ServerIdentifier), Some(DhcpOption::ServerIdentifier(GATEWAY)));
    match option(OptionCode::DomainSearch) {
        Some(DhcpOption::DomainSearch(names)) => {
            assert_eq!(names.iter().map(|name| name.to_string()).collect::<Vec<_>>(), ["prox.local."]);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn names_of_the_domain_are_answered_here_and_others_upstream() {
    let site = Site::start("");
    site.wait_wan();
    let machine = site.probe_machine("10.20.0.5/24");
    let (_app, address) = site.app("wiki", DhcpClient::Udhcpc, WebServer::Busybox);
    let dns = DnsProbe::open(&machine, GATEWAY);
    let ask = |name: &str, rtype| dns.ask(name, rtype).unwrap_or_else(|error| panic!("{name}: {error}"));

    let found = ask("wiki.prox.local", RecordType::A);
    assert_eq!((found.authoritative, found.answers), (true, vec![address.to_string()]));
    assert_eq!(ask("WIKI.Prox.LOCAL", RecordType::A).answers, [address.to_string()]);
    let over_tcp = dns.ask_over_tcp(&machine, "wiki.prox.local", RecordType::A).expect("an answer");
    assert_eq!(over_tcp.answers, [address.to_string()]);
    assert_eq!(dns.name_of(address), Some("wiki.prox.local.".into()));
    assert_eq!(dns.address("prox-appliance.prox.local"), Some(GATEWAY));
    assert_eq!(dns.name_of(GATEWAY), Some("prox-appliance.prox.local.".into()));
    for zone in ["prox.local", "0.20.10.in-addr.arpa"] {
        assert_eq!(ask(zone, RecordType::SOA).answers.len(), 1, "{zone}");
        assert_eq!(ask(zone, RecordType::NS).answers, ["prox-appliance.prox.local."], "{zone}");
    }
    // RFC 2308 §2: both kinds of "no" carry the SOA, so that they can be cached.
    let no_data = ask("wiki.prox.local", RecordType::AAAA);
    assert_eq!((no_data.code, no_data.answers.len()), (ResponseCode::NoError, 0));
    assert_eq!(no_data.authorities, [RecordType::SOA]);
    for name in ["nobody.prox.local", "a.b.prox.local", "99.0.20.10.in-addr.arpa", "1.5.30.10.in-addr.arpa"] {
        let absent = ask(name, RecordType::A);
        assert_eq!(absent.code, ResponseCode::NXDomain, "{name}: {absent:?}");
        assert_eq!(absent.authorities, [RecordType::SOA], "{name}: {absent:?}");
        assert!(absent.authoritative, "{name}");
    }

    let upstream = ask("www.example.com", RecordType::A);
    assert_eq!((upstream.authoritative, upstream.answers), (false, vec![addresses::INTERNET.to_string()]));
    assert_eq!(ask("no-such-name.example.org", RecordType::A).code, ResponseCode::NXDomain);
    let log = site.lab.internet().read("/var/log/dnsmasq.log").expect("the upstream's log");
    assert!(log.contains("query[A] www.example.com"), "{log}");
    for private in ["prox.local", "10.in-addr.arpa"] {
        assert!(!log.contains(private), "{private} was asked upstream: {log}");
    }
}

#[test]
fn dns_is_not_served_on_the_wan() {
    let site = Site::start("");
    site.wait_wan();
    let client = site.lab.client();
    client.ip(&[&format!("route add 10.20.0.0/24 via {}", addresses::APPLIANCE_WAN)]).expect("a route");
    // The second address is reachable from here, but its DNS is not for this side.
    let silent = &|server: Ipv4Addr, over_tcp: bool| {
        let dns = DnsProbe::open(client, server);
        let answer = match over_tcp {
            false => dns.ask("prox-appliance.prox.local", RecordType::A),
            true => dns.ask_over_tcp(client, "www.example.com", RecordType::A),
        };
        assert!(answer.is_err(), "{server} answers the WAN: {answer:?}");
    };
    // Silence takes its time, so all at once.
    std::thread::scope(|scope| {
        for server in [addresses::APPLIANCE_WAN, GATEWAY] {
            scope.spawn(move || silent(server, false));
            scope.spawn(move || silent(server, true));
        }
    });
    client.run(&["ping", "-c1", "-W2", "10.20.0.1"]).expect("the way is open otherwise");
}

#[test]
fn health_log_and_lease_file_are_the_seeds() {
    let mut site = Site::start("");
    site.wait_wan();
    let (app, address) = site.app("wiki", DhcpClient::Dhclient, WebServer::Busybox);
    let health = until("the first probe", PATIENCE, || {
        let health = site.api().get("/vhosts/wiki/health");
        if health["state"] == "healthy" { Ok(health) } else { Err(health.to_string()) }
    });
    assert_eq!([&health["uri"], &health["interval"], &health["timeout"]], ["/", "30s", "5s"]);
    assert_eq!(health["backends"][0]["backend"], format!("{address}:80"));

    fetch(site.lab.client(), "http://wiki.prox.local/?page=1").expect("a page");
    let node = site.lab.appliance();
    let line = until("the access log", PATIENCE, || {
        let text = node.read("/var/log/proximity/wiki.prox.local.log").map_err(|error| error.to_string())?;
        text.lines().next().map(str::to_owned).ok_or("empty".to_owned())
    });
    let line: Value = serde_json::from_str(&line).expect("JSON");
    assert_eq!(
        (&line["request"]["host"], &line["request"]["method"]),
        (&json!("wiki.prox.local"), &json!("GET"))
    );
    for key in ["level", "ts", "logger", "msg", "duration", "size", "status", "bytes_read"] {
        assert!(!line[key].is_null(), "{key}: {line}");
    }

    let leases = until("the lease file", PATIENCE, || {
        let text = node.read("/var/lib/proximity/dnsmasq.leases").map_err(|error| error.to_string())?;
        if text.contains("wiki") { Ok(text) } else { Err(text) }
    });
    let fields: Vec<&str> = leases.lines().next().expect("a line").split(' ').collect();
    let mac = app.spec().mac.to_string();
    assert_eq!(fields[1..4], [mac.as_str(), &address.to_string(), "wiki"], "{leases}");
    assert_eq!(fields.len(), 5, "expiry mac ip hostname client-id: {leases}");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    let left = fields[0].parse::<u64>().expect("seconds since 1970").saturating_sub(now);
    assert!((43_200 - 60..=43_200).contains(&left), "{left} s are left");

    // Every line on stdout is JSON.
    let log = site.appliance.process().log();
    let lines: Vec<&str> = log.lines().collect();
    assert!(lines.len() > 2, "{log}");
    for line in lines {
        let parsed: Result<Value, _> = serde_json::from_str(line);
        assert!(parsed.is_ok_and(|value| value.is_object()), "{line}");
    }
}

#[test]
fn a_clean_stop_leaves_the_kernel_as_it_was() {
    let mut site = Site::start("");
    let node = site.lab.appliance().clone();
    let (_app, _) = site.app("wiki", DhcpClient::Udhcpc, WebServer::Busybox);
    // Somebody else's table is nobody's business.
    node.run(&["nft", "add", "table", "inet", "other"]).expect("a table");
    assert!(stdout(&node, &["nft", "list", "tables"]).contains("proximity"));
    let status = site.appliance.terminate(PATIENCE).expect("it ends");
    assert_eq!(status.code(), Some(0), "{}", site.appliance.process().log());
    assert_eq!(stdout(&node, &["nft", "list", "tables"]), "table inet other\n");
    assert_eq!(stdout(&node, &["cat", "/proc/sys/net/ipv4/ip_forward"]), "0\n");
    assert_eq!(listening(&node, "-t"), BTreeSet::new());
    let to = SocketAddr::from((GATEWAY, 80));
    let refused = node.enter(|| std::net::TcpStream::connect_timeout(&to, PATIENCE)).expect("entered");
    assert!(refused.is_err());
}
