//! Port forwards that the appliance carries itself.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Mutex;
use std::sync::mpsc::channel;

use proximity_lab::{DhcpClient, Node, WebServer, addresses};
use proximity_tests::admin_api::call_over_tcp;
use proximity_tests::stream_backend::{DatagramClient, StreamBackend, StreamClient, answer_datagrams};
use proximity_tests::{PATIENCE, Site, polling::until};
use serde_json::{Value, json};

const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 20, 0, 1);

fn outside(port: u16) -> SocketAddr {
    (addresses::APPLIANCE_WAN, port).into()
}

fn connect(from: &Node, port: u16) -> StreamClient {
    StreamClient::connect(from, outside(port)).unwrap_or_else(|error| panic!("port {port}: {error}"))
}

fn add(site: &Site, forward: Value) -> Value {
    site.api().call("POST", "/forwards", Some(forward)).expect(201)
}

fn shown(site: &Site, port: u16) -> Value {
    let all = site.api().items("/forwards");
    all.into_iter().find(|forward| forward["port"] == port).expect("the forward")
}

/// The app is behind the proxy, and still knows who asks.
#[test]
fn an_app_is_told_who_asks_by_either_version() {
    let site = Site::start(
        "[[forward]]\nport = 2223\nto = \"gitea:22\"\nmode = \"proxy\"\nproxy_protocol = \"v2\"\n\
         [[forward]]\nport = 2224\nto = \"gitea:22\"\nmode = \"proxy\"\nproxy_protocol = \"v1\"\n\
         accept_proxy_protocol = [\"192.168.1.0/24\"]\n",
    );
    site.wait_wan();
    let (app, _) = site.app("gitea", DhcpClient::Udhcpc, WebServer::None);
    let (sibling, sibling_address) = site.app("wiki", DhcpClient::Udhcpc, WebServer::None);
    let (told, heard) = channel();
    let told = Mutex::new(told);
    let _ssh = StreamBackend::start(app.node(), 22, move |mut stream| {
        let mut first = vec![0; 512];
        // The header is one segment (specification §2), what follows is another.
        let length = std::io::Read::read(&mut stream, &mut first).expect("a header");
        first.truncate(length);
        let _ = told.lock().expect("one at a time").send(first);
    });
    let header = || heard.recv_timeout(PATIENCE).expect("the app was asked");
    add(&site, json!({"port": 2222, "to": "gitea:22", "mode": "proxy", "proxy_protocol": "v1"}));

    let client = connect(site.lab.client(), 2222);
    let line = format!("PROXY TCP4 {} 192.168.1.2 {} 2222\r\n", client.local().ip(), client.local().port());
    assert_eq!(String::from_utf8_lossy(&header()), line);
    // From inside, by either address of the appliance.
    for to in [GATEWAY, addresses::APPLIANCE_WAN] {
        let inside = StreamClient::connect(sibling.node(), (to, 2222)).expect("a connection");
        let line = format!("PROXY TCP4 {sibling_address} {to} {} 2222\r\n", inside.local().port());
        assert_eq!(String::from_utf8_lossy(&header()), line);
    }

    let client = connect(site.lab.client(), 2223);
    let mut binary = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c".to_vec();
    binary.extend(addresses::CLIENT.octets().into_iter().chain(addresses::APPLIANCE_WAN.octets()));
    binary.extend(client.local().port().to_be_bytes().into_iter().chain(2223u16.to_be_bytes()));
    assert_eq!(header(), binary);

    // Who speaks for others says so, and is believed.
    let mut client = connect(site.lab.client(), 2224);
    client.send(b"PROXY TCP4 203.0.113.9 198.51.100.1 4321 22\r\n").expect("sent");
    assert_eq!(String::from_utf8_lossy(&header()), "PROXY TCP4 203.0.113.9 198.51.100.1 4321 22\r\n");
    let mut silent = connect(site.lab.client(), 2224);
    silent.send(b"SSH-2.0-client\r\n").expect("sent");
    assert!(silent.rest().is_err(), "it is not taken for a good end");
    // An app is not in that network, and is itself.
    let inside = StreamClient::connect(sibling.node(), (GATEWAY, 2224)).expect("a connection");
    let line = format!("PROXY TCP4 {sibling_address} {GATEWAY} {} 2224\r\n", inside.local().port());
    assert_eq!(String::from_utf8_lossy(&header()), line);
    let drops = site.api().get("/status")["drops"].clone();
    assert_eq!(drops["forward.proxy_header"], 1, "{drops}");
}

#[test]
fn a_target_that_dies_is_passed_over_and_shown() {
    let site = Site::start("");
    site.wait_wan();
    let (one, one_address) = site.app("one", DhcpClient::Udhcpc, WebServer::None);
    let (two, two_address) = site.app("two", DhcpClient::Udhcpc, WebServer::None);
    let first = StreamBackend::named(one.node(), 22, "one");
    let _second = StreamBackend::named(two.node(), 22, "two");
    let made = add(
        &site,
        json!({"port": 2222, "to": ["one:22", "two:22"], "mode": "proxy",
            "health": {"interval": "1s", "timeout": "1s"}}),
    );
    assert_eq!((&made["mode"], &made["source"]), (&json!("proxy"), &json!("api")));
    let client = site.lab.client();
    let mut held: Vec<StreamClient> = (0..4).map(|_| connect(client, 2222)).collect();
    let mut names: Vec<String> = held.iter_mut().map(|held| held.line().expect("a name")).collect();
    names.sort();
    assert_eq!(names, ["one", "one", "two", "two"]);
    let forward = shown(&site, 2222);
    assert_eq!(forward["connections"], 4, "{forward}");
    assert!(forward["targets"].as_array().expect("a list").iter().all(|target| target["connections"] == 2));
    let state = |target: usize| {
        let forward = shown(&site, 2222);
        forward["targets"][target]["state"].as_str().unwrap_or_default().to_owned()
    };
    until("both are well", PATIENCE, || {
        let states = [state(0), state(1)];
        if states == ["healthy", "healthy"] { Ok(()) } else { Err(format!("{states:?}")) }
    });

    drop(first);
    // Before any probe knows: who refuses is not the client's trouble.
    for _ in 0..4 {
        assert_eq!(connect(client, 2222).line().expect("a name"), "two");
    }
    until("it is shown", PATIENCE, || {
        let state = state(0);
        if state == "unhealthy" { Ok(()) } else { Err(state) }
    });
    let listed = site.cli(&["forward", "ls"]).stdout;
    for part in ["2222", "proxy", "one:22, two:22", "degraded (connection refused", "api"] {
        assert!(listed.contains(part), "{part}: {listed}");
    }
    let app = site.cli(&["app", "show", "one"]).stdout;
    assert!(app.contains("tcp/2222") && app.contains("connection refused"), "{app}");
    let token = site.token();
    let admin = SocketAddr::from((addresses::APPLIANCE_WAN, 9090));
    let scrape = call_over_tcp(client, admin, Some(&token), ("GET", "/metrics"), "").expect("a page").body;
    for line in [
        r#"proximity_forward_listening{protocol="tcp",port="2222"} 1"#.to_owned(),
        r#"proximity_forward_stopped_total{protocol="tcp",port="2222",reason="loop"} 0"#.to_owned(),
        format!(
            r#"proximity_forward_target_healthy{{protocol="tcp",port="2222",target="{one_address}:22"}} 0"#
        ),
        format!(
            r#"proximity_forward_target_healthy{{protocol="tcp",port="2222",target="{two_address}:22"}} 1"#
        ),
    ] {
        assert!(scrape.lines().any(|there| there == line), "{line}: {scrape}");
    }
    // What was open is none of the probes' business.
    assert_eq!(held.len(), 4);
    for held in &mut held {
        assert_eq!(held.ask("still").expect("an echo"), "still");
    }
    // One that the kernel forwards is probed as well, when it is asked for.
    add(&site, json!({"port": 2223, "to": "two:22", "health": {"interval": "1s"}}));
    until("the other is well", PATIENCE, || {
        let forward = shown(&site, 2223);
        if forward["targets"][0]["state"] == "healthy" { Ok(()) } else { Err(forward.to_string()) }
    });
    assert_eq!(shown(&site, 2223)["target"], format!("{two_address}:22"));
    assert_eq!(connect(client, 2223).line().expect("a name"), "two");
}

/// Whoever gets the address next is not spoken to through a connection of before.
#[test]
fn a_connection_ends_with_its_lease_and_the_next_follows_the_app() {
    let site = Site::start("");
    site.wait_wan();
    let (first, address) = site.app("gitea", DhcpClient::Udhcpc, WebServer::None);
    let _old = StreamBackend::named(first.node(), 22, "old");
    let (other, _) = site.app("other", DhcpClient::Udhcpc, WebServer::None);
    let _other = StreamBackend::named(other.node(), 22, "other");
    answer_datagrams(first.node(), 53, "old");
    for (port, to) in [(2222, "gitea:22"), (2223, "other:22")] {
        add(&site, json!({"port": port, "to": to, "mode": "proxy"}));
    }
    add(&site, json!({"protocol": "udp", "port": 5300, "to": "gitea:53", "mode": "proxy"}));
    let client = site.lab.client();
    let (mut open, mut bystander) = (connect(client, 2222), connect(client, 2223));
    assert_eq!(
        (open.line().expect("a name"), bystander.line().expect("a name")),
        ("old".into(), "other".into())
    );
    let datagrams = DatagramClient::open(client, outside(5300));
    assert_eq!(datagrams.ask("a").expect("an answer"), "old:a");

    first.stop();
    assert_eq!(site.api().call("DELETE", &format!("/dhcp/leases/{address}"), None).status, 204);
    assert!(open.line().is_err(), "the lease has ended");
    // The reset may come before the client has looked whether it is connected.
    let nobody = StreamClient::connect(client, outside(2222)).and_then(|mut client| client.line());
    assert_eq!(nobody.expect_err("nobody is there").kind(), std::io::ErrorKind::ConnectionReset);
    let drops = site.api().get("/status")["drops"].clone();
    assert!(drops["forward.target_left"].as_u64() >= Some(1) && drops["forward.stopped"] == 1, "{drops}");
    let (second, next) = site.app("gitea", DhcpClient::Udhcpc, WebServer::None);
    let _new = StreamBackend::named(second.node(), 22, "new");
    answer_datagrams(second.node(), 53, "new");
    assert_eq!(shown(&site, 2222)["target"], format!("{next}:22"));
    assert_eq!(connect(client, 2222).line().expect("a name"), "new");
    assert_eq!(datagrams.ask("b").expect("an answer"), "new:b");
    assert_eq!(bystander.ask("all the time").expect("an echo"), "all the time");
}

#[test]
fn datagrams_are_answered_from_the_address_that_was_asked() {
    let site = Site::start(
        "[[forward]]\nprotocol = \"udp\"\nport = 5300\nto = \"dns:53\"\nmode = \"proxy\"\nidle_timeout = \"1s\"\n",
    );
    site.wait_wan();
    let (app, _) = site.app("dns", DhcpClient::Udhcpc, WebServer::None);
    answer_datagrams(app.node(), 53, "dns");
    let (sibling, _) = site.app("wiki", DhcpClient::Udhcpc, WebServer::None);
    let clients = [
        DatagramClient::open(site.lab.client(), outside(5300)),
        DatagramClient::open(sibling.node(), (GATEWAY, 5300)),
        // The answer would leave from the gateway's address by itself.
        DatagramClient::open(sibling.node(), outside(5300)),
    ];
    for round in ["one", "two", "three"] {
        for client in &clients {
            assert_eq!(client.ask(round).expect("an answer"), format!("dns:{round}"));
        }
    }
    let long = "x".repeat(8000);
    assert_eq!(clients[0].ask(&long).expect("an answer in pieces").len(), 8004);
    assert_eq!(shown(&site, 5300)["taken"], 3);
    until("they are forgotten", PATIENCE, || {
        let forward = shown(&site, 5300);
        if forward["connections"] == 0 { Ok(()) } else { Err(forward.to_string()) }
    });
    assert_eq!(clients[1].ask("again").expect("an answer"), "dns:again");
}

#[test]
fn ports_come_and_go_while_others_carry_on() {
    let mut site = Site::start("");
    site.wait_wan();
    let machine = site.probe_machine("10.20.0.5/24");
    let _echo = StreamBackend::echo(&machine, 22);
    let client = site.lab.client().clone();
    let cli = |site: &Site, arguments: &[&str], good: bool| {
        let output = site.cli(arguments);
        assert_eq!(output.status.success(), good, "{arguments:?}: {output:?}");
        format!("{}{}", output.stdout, output.stderr)
    };
    cli(
        &site,
        &["forward", "add", "2222", "10.20.0.5:22", "--mode", "proxy", "--max-connections", "2"],
        true,
    );
    let mut kept = connect(&client, 2222);
    assert_eq!(kept.ask("one").expect("an echo"), "one");
    cli(&site, &["forward", "add", "2223", "10.20.0.5:22", "--mode", "proxy"], true);
    let mut cut = connect(&client, 2223);
    assert_eq!(cut.ask("two").expect("an echo"), "two");
    let rules = |site: &Site| {
        site.lab.appliance().run(&["nft", "list", "table", "inet", "proximity"]).expect("rules").stdout
    };
    let text = rules(&site);
    assert!(text.contains("\"proxied-tcp-2223\"") && !text.contains("dnat ip to"), "{text}");

    cli(&site, &["forward", "rm", "2223"], true);
    let refused = StreamClient::connect(&client, outside(2223)).expect_err("nobody listens any more");
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    assert!(cut.line().is_err());
    assert!(!rules(&site).contains("2223"));
    assert_eq!(kept.ask("three").expect("an echo"), "three");
    // The limit is the forward's.
    let mut second = connect(&client, 2222);
    assert_eq!(second.ask("four").expect("an echo"), "four");
    let third = StreamClient::connect(&client, outside(2222)).and_then(|mut client| client.ask("five"));
    assert_eq!(third.expect_err("one too many").kind(), std::io::ErrorKind::ConnectionReset);

    let told = cli(&site, &["forward", "add", "80", "10.20.0.5:22", "--mode", "proxy"], false);
    assert!(told.contains("the appliance itself uses tcp port 80"), "{told}");
    let told = cli(&site, &["forward", "add", "2224", "10.20.0.1:22", "--mode", "proxy"], false);
    assert!(told.contains("the appliance itself"), "{told}");
    let told = cli(&site, &["forward", "add", "2224", "a:22", "b:22"], false);
    assert!(told.contains("add --mode proxy"), "{told}");
    // A port that somebody else has is told, and had as soon as it is free.
    let appliance = site.lab.appliance().clone();
    let squatter = appliance.enter(|| std::net::TcpListener::bind("0.0.0.0:2225")).expect("entered");
    add(&site, json!({"port": 2225, "to": "10.20.0.5:22", "mode": "proxy"}));
    let problems = site.api().get("/status")["problems"].to_string();
    assert!(problems.contains("tcp/2225") && problems.contains("in use"), "{problems}");
    drop(squatter.expect("the port was free"));
    site.api().call("POST", "/reload", None).expect(200);
    assert_eq!(site.api().get("/status")["problems"], json!([]));
    assert_eq!(connect(&client, 2225).ask("six").expect("an echo"), "six");

    let before = site.api().items("/forwards");
    site.appliance.kill9().expect("killed");
    site.start_again();
    site.wait_wan();
    let settings = |all: &[Value]| -> Vec<Value> {
        all.iter().map(|one| json!([one["port"], one["to"], one["mode"], one["max_connections"]])).collect()
    };
    assert_eq!(settings(&site.api().items("/forwards")), settings(&before), "after a crash");
    let mut kept = connect(&client, 2222);
    assert_eq!(kept.ask("six").expect("an echo"), "six");

    // Another binary takes the ports over, and what is open goes on.
    cli(&site, &["upgrade"], true);
    assert_eq!(kept.ask("seven").expect("an echo"), "seven");
    assert_eq!(connect(&client, 2225).ask("eight").expect("an echo"), "eight");
    cli(&site, &["forward", "rm", "2222"], true);
    assert!(kept.line().is_err(), "the process before hears of it too");
    until("it ends with that", PATIENCE, || {
        let draining = site.api().get("/status")["draining_processes"].clone();
        if draining == json!([]) { Ok(()) } else { Err(draining.to_string()) }
    });
}
