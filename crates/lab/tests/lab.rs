//! The lab by itself, with an appliance put together from stock daemons in place of ours.
//!
//! Run as `proximity-lab enter -- cargo test -p proximity-lab`.

use std::{
    fs,
    io::{BufRead, BufReader},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use proximity_lab::{
    AppSpec, ApplianceProc, DhcpClient, Lab, LabError, LabOptions, Lan, Node, WebServer, addresses, enter,
};

const PATIENCE: Duration = Duration::from_secs(20);

fn stock_appliance() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/stock/appliance.sh")
}

/// A lab whose stock appliance is serving.
fn lab_with_appliance() -> (Lab, ApplianceProc) {
    enter::require_inside();
    let lab = Lab::start(LabOptions::default()).expect("a lab");
    let mut appliance = lab.run_appliance(&stock_appliance(), None).expect("an appliance");
    appliance.wait_ready(PATIENCE).expect("a ready appliance");
    (lab, appliance)
}

fn fetch(node: &Node, url: &str) -> Result<String, LabError> {
    Ok(node.run(&["curl", "-sS", "--max-time", "5", url])?.stdout)
}

/// Gets a lease with `client` and checks all that an app needs of it.
fn client_gets_a_working_network(name: &str, client: DhcpClient, server: WebServer) {
    let (lab, _appliance) = lab_with_appliance();
    let app = lab.app(name, client, server).expect("an app");
    let address = app.wait_lease(PATIENCE).expect("a lease");

    assert_eq!(address.octets()[..3], [10, 20, 0]);
    assert!((100..=250).contains(&address.octets()[3]), "{address} is not of the pool");
    let routes = app.node().run(&["ip", "route", "show", "default"]).expect("routes").stdout;
    assert!(routes.contains("via 10.20.0.1"), "{routes}");
    let resolver = app.node().read("/etc/resolv.conf").expect("resolv.conf");
    assert!(resolver.contains("nameserver 10.20.0.1") && resolver.contains("prox.local"), "{resolver}");
    let leases = lab.appliance().read("/var/lib/misc/dnsmasq.leases").expect("leases");
    assert!(leases.contains(&format!("{address} {name} ")), "the host name was not sent: {leases}");

    let internet = fetch(app.node(), "http://www.example.com/").expect("the internet");
    assert_eq!(internet, "hello from the internet\n");
    let own = fetch(lab.client(), &format!("http://{name}.prox.local/")).expect("the app through the proxy");
    assert_eq!(own, format!("hello from {name}\n"));
    assert!(fetch(app.node(), "http://192.168.1.50:8006/").is_err(), "the management LAN is open");
    app.node().run(&["ping", "-c1", "-W2", "10.20.0.1"]).expect("the gateway answers");
}

#[test]
fn udhcpc_with_nginx_gets_a_working_network() {
    client_gets_a_working_network("nginx-01", DhcpClient::Udhcpc, WebServer::Nginx);
}

#[test]
fn dhclient_with_busybox_gets_a_working_network() {
    client_gets_a_working_network("wiki", DhcpClient::Dhclient, WebServer::Busybox);
}

#[test]
fn dhcpcd_with_busybox_gets_a_working_network() {
    client_gets_a_working_network("blog", DhcpClient::Dhcpcd, WebServer::Busybox);
}

#[test]
fn appliance_starts_with_both_cards_down_and_unaddressed() {
    enter::require_inside();
    let lab = Lab::start(LabOptions::default()).expect("a lab");
    for card in ["eth0", "eth1"] {
        let text = lab.appliance().run(&["ip", "-o", "addr", "show", "dev", card]).expect("addresses").stdout;
        assert_eq!(text, "", "{card} has an address");
        let link = lab.appliance().run(&["ip", "-o", "link", "show", "dev", card]).expect("link").stdout;
        assert!(link.contains("state DOWN"), "{link}");
    }
}

#[test]
fn router_gives_the_appliance_its_reserved_address() {
    let (lab, _appliance) = lab_with_appliance();
    let text = lab.appliance().run(&["ip", "-4", "-o", "addr", "show", "dev", "eth0"]).expect("addresses");
    assert!(text.stdout.contains("inet 192.168.1.2/24"), "{}", text.stdout);
    let routes = lab.appliance().run(&["ip", "route", "show", "default"]).expect("routes").stdout;
    assert!(routes.contains("via 192.168.1.1"), "{routes}");
}

#[test]
fn management_lan_resolves_and_reaches_the_internet() {
    enter::require_inside();
    let lab = Lab::start(LabOptions::default()).expect("a lab");
    let lookup = |name: &str, server: &str| {
        lab.client().try_run(&["busybox", "nslookup", name, server], PATIENCE).expect("nslookup ran").stdout
    };
    assert_eq!(fetch(lab.client(), "http://www.example.com/").expect("a page"), "hello from the internet\n");
    for server in ["192.168.1.1", "8.8.8.8", "1.1.1.1"] {
        let answer = lookup("www.example.com", server);
        assert!(answer.contains("203.0.113.10"), "{server}: {answer}");
        let answer = lookup("no-such-name.example.org", server);
        assert!(answer.contains("NXDOMAIN"), "{server}: {answer}");
    }
    let answer = lookup("anything.prox.local", "192.168.1.1");
    assert!(answer.contains("192.168.1.2"), "{answer}");
    lab.client().run(&["ping", "-c1", "-W2", "1.1.1.1"]).expect("pings pass the router");
}

#[test]
fn management_lan_gives_leases_from_its_pool() {
    enter::require_inside();
    let lab = Lab::start(LabOptions::default()).expect("a lab");
    let laptop = lab.machine("laptop", Lan::Management, lab.new_mac()).expect("a machine");
    laptop.sh("ip link set eth0 up; udhcpc -q -n -f -i eth0 -T 1 -t 10").expect("a lease");
    let text = laptop.run(&["ip", "-4", "-o", "addr", "show", "dev", "eth0"]).expect("addresses").stdout;
    let last: u8 = text
        .split("inet 192.168.1.")
        .nth(1)
        .and_then(|rest| rest.split('/').next())
        .and_then(|last| last.parse().ok())
        .unwrap_or_else(|| panic!("no address of the LAN: {text}"));
    assert!((100..=199).contains(&last), "{text}");
}

#[test]
fn two_labs_do_not_meet() {
    let (first, _first_appliance) = lab_with_appliance();
    let (second, _second_appliance) = lab_with_appliance();
    let one = first.app("one", DhcpClient::Udhcpc, WebServer::Busybox).expect("an app");
    let two = second.app("two", DhcpClient::Udhcpc, WebServer::Busybox).expect("an app");
    // Same network card addresses in both labs, so one LAN could not carry both.
    assert_eq!(one.spec().mac, two.spec().mac);
    one.wait_lease(PATIENCE).expect("a lease");
    two.wait_lease(PATIENCE).expect("a lease");
    let leases = |lab: &Lab| lab.appliance().read("/var/lib/misc/dnsmasq.leases").expect("leases");
    assert!(leases(&first).contains(" one ") && !leases(&first).contains(" two "), "{}", leases(&first));
    assert!(leases(&second).contains(" two ") && !leases(&second).contains(" one "), "{}", leases(&second));
    drop(first);
    assert_eq!(fetch(second.client(), "http://two.prox.local/").expect("a page"), "hello from two\n");
}

#[test]
fn stopped_app_is_gone_and_can_be_recreated() {
    let (lab, _appliance) = lab_with_appliance();
    let app = lab.app("shop", DhcpClient::Udhcpc, WebServer::Nginx).expect("an app");
    let address = app.wait_lease(PATIENCE).expect("a lease");
    let (spec, pid) = (app.spec().clone(), app.node().pid());
    app.stop();
    assert!(!Path::new(&format!("/proc/{pid}")).exists(), "its first process is still there");
    assert!(lab.appliance().run(&["ping", "-c1", "-W1", &address.to_string()]).is_err(), "it still answers");

    let again = lab.boot(AppSpec { server: WebServer::Busybox, ..spec }).expect("the same app");
    assert_eq!(again.wait_lease(PATIENCE).expect("a lease"), address, "same network card, same address");
    assert_eq!(fetch(lab.client(), "http://shop.prox.local/").expect("a page"), "hello from shop\n");
}

#[test]
fn appliance_state_survives_its_process() {
    let (lab, mut appliance) = lab_with_appliance();
    lab.appliance().write("/var/lib/proximity/ledger", "kept").expect("written");
    let status = appliance.kill9().expect("killed");
    assert!(!status.success());
    assert!(!appliance.process().is_running());
    // What the stock daemons left behind would be in the way of the next ones.
    lab.appliance().sh("kill -9 -1; nft flush ruleset; ip addr flush dev eth1").expect("swept");
    assert!(appliance.get("/readyz").is_err(), "nobody is left to answer");
    let mut appliance = lab.run_appliance(&stock_appliance(), None).expect("an appliance");
    appliance.wait_ready(PATIENCE).expect("ready again");
    assert_eq!(lab.appliance().read("/var/lib/proximity/ledger").expect("the file"), "kept");
    assert!(appliance.terminate(PATIENCE).expect("ended").success(), "{}", appliance.process().log());
}

#[test]
fn appliance_state_can_be_kept_in_a_directory_of_the_machine() {
    enter::require_inside();
    let state = std::env::temp_dir().join(format!("proximity-lab-state-{}", std::process::id()));
    fs::create_dir_all(&state).expect("a directory");
    let options = || LabOptions { appliance_state: Some(state.clone()), ..LabOptions::default() };
    let lab = Lab::start(options()).expect("a lab");
    lab.appliance().sh("echo kept > /var/lib/proximity/ledger").expect("written");
    assert_eq!(fs::read_to_string(state.join("ledger")).expect("the file"), "kept\n");
    drop(lab);
    let lab = Lab::start(options()).expect("another lab");
    assert_eq!(lab.appliance().sh("cat /var/lib/proximity/ledger").expect("read").stdout, "kept\n");
    drop(lab);
    fs::remove_dir_all(state).expect("removed");
}

#[test]
fn an_appliance_that_dies_is_reported_with_its_log() {
    enter::require_inside();
    let lab = Lab::start(LabOptions::default()).expect("a lab");
    let broken = lab.log_directory().join("broken.sh");
    fs::write(&broken, "#!/bin/sh\necho \"called with $*\"; cat \"$3\"; exit 3\n").expect("written");
    lab.client().run(&["chmod", "755", &broken.to_string_lossy()]).expect("executable");
    let config = lab.log_directory().join("proximity.toml");
    fs::write(&config, "# the configuration\n").expect("written");

    let mut appliance = lab.run_appliance(&broken, Some(&config)).expect("started");
    let error = appliance.wait_ready(PATIENCE).expect_err("it died").to_string();
    assert!(error.contains("called with run --config"), "{error}");
    assert!(error.contains("# the configuration") && error.contains("exit status: 3"), "{error}");
}

#[test]
fn sockets_opened_inside_a_node_stay_inside() {
    enter::require_inside();
    let lab = Lab::start(LabOptions::default()).expect("a lab");
    let web = SocketAddr::from((addresses::INTERNET, 80));
    let patience = Duration::from_secs(2);
    let inside = lab.client().enter(|| TcpStream::connect_timeout(&web, patience)).expect("entered");
    let local = inside.expect("connected").local_addr().expect("an address");
    assert_eq!(local.ip(), Ipv4Addr::new(192, 168, 1, 50));
    assert!(TcpStream::connect_timeout(&web, patience).is_err(), "the test itself has no such network");
}

#[test]
fn a_node_dies_with_all_that_runs_in_it() {
    enter::require_inside();
    let node = Node::start("short").expect("a node");
    let log = std::env::temp_dir().join(format!("proximity-lab-short-{}.log", std::process::id()));
    let mut process = node.background(&["sleep", "1000"], &log).expect("a process");
    node.sh("setsid sleep 1001 >/dev/null 2>&1 &").expect("a daemon");
    let mut prefixed = node
        .command("sh")
        .args(["-c", "echo started; exec sleep 1002"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("a command");
    let mut line = String::new();
    BufReader::new(prefixed.stdout.take().expect("a pipe")).read_line(&mut line).expect("a line");
    assert_eq!(line, "started\n");
    assert!(process.is_running());
    drop(node);
    assert!(!process.wait(PATIENCE).expect("its end").success());
    assert!(!prefixed.wait().expect("its end").success());
    fs::remove_file(log).expect("the log existed");
}

#[test]
fn a_program_that_does_not_end_is_killed_in_time() {
    enter::require_inside();
    let node = Node::start("slow").expect("a node");
    let start = Instant::now();
    let error = node.try_run(&["sleep", "1000"], Duration::from_millis(100)).expect_err("too slow");
    assert!(matches!(error, LabError::TimedOut { .. }), "{error}");
    assert!(start.elapsed() < Duration::from_secs(5));
    let left = node.run(&["busybox", "ps"]).expect("processes").stdout;
    assert!(!left.contains("sleep 1000"), "{left}");
}

#[test]
fn files_of_a_node_are_its_own() {
    enter::require_inside();
    let (one, two) = (Node::start("one").expect("a node"), Node::start("two").expect("a node"));
    one.sh("echo mine > /etc/resolv.conf; echo mine > /run/x; echo mine > /var/lib/x").expect("written");
    for path in ["/run/x", "/var/lib/x"] {
        assert!(one.path(path).exists() && !two.path(path).exists() && !Path::new(path).exists(), "{path}");
    }
    assert_eq!(two.read("/etc/resolv.conf").expect("a file"), "");
    assert_ne!(fs::read_to_string("/etc/resolv.conf").unwrap_or_default(), "mine\n");
    assert_eq!(one.run(&["hostname"]).expect("a name").stdout, "one\n");
    assert_eq!(one.read("/etc/hostname").expect("a name"), "one\n");
    let links = one.run(&["ip", "-br", "link"]).expect("links").stdout;
    assert_eq!(links.lines().count(), 1, "only the loopback: {links}");
}

#[test]
fn a_node_starts_quickly() {
    enter::require_inside();
    let mut fastest = Duration::MAX;
    for _ in 0..5 {
        let start = Instant::now();
        let node = Node::start("quick").expect("a node");
        fastest = fastest.min(start.elapsed());
        drop(node);
    }
    assert!(fastest < Duration::from_millis(250), "{fastest:?}");
}
