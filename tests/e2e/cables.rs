//! Pulled cables.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use proximity_lab::{DhcpClient, Lab, Node, WebServer, addresses};
use proximity_tests::dns_probe::DnsProbe;
use proximity_tests::open_connection::OpenConnection;
use proximity_tests::{PATIENCE, Site, fetch, polling::until};
use serde_json::json;

/// The host's end of the appliance's cable.
fn port_of(lab: &Lab, interface: &str) -> String {
    let number = |node: &Node, device: &str, file: &str| {
        node.run(&["cat", &format!("/sys/class/net/{device}/{file}")])
            .expect("sysfs")
            .stdout
            .trim()
            .to_owned()
    };
    let peer = number(lab.appliance(), interface, "iflink");
    let links = lab.host().run(&["ip", "-o", "link"]).expect("links").stdout;
    let line = links.lines().find(|line| line.starts_with(&format!("{peer}: "))).expect("the other end");
    line.split_whitespace().nth(1).and_then(|name| name.split('@').next()).expect("a name").to_owned()
}

fn internet(node: &Node) -> Result<String, String> {
    fetch(node, "http://www.example.com/").map_err(|error| error.to_string())
}

#[test]
fn apps_live_on_without_the_wan_and_get_it_back() {
    let site = Site::start("");
    site.wait_wan();
    let (one, _) = site.app("one", DhcpClient::Udhcpc, WebServer::Busybox);
    let (_two, address) = site.app("two", DhcpClient::Dhclient, WebServer::Nginx);
    assert_eq!(internet(one.node()).expect("the internet"), "hello from the internet\n");
    let through_proxy = |host: &str| {
        let header = format!("Host: {host}");
        let curl = ["curl", "-sS", "--fail", "-m", "5", "-H", &header, "http://10.20.0.1/"];
        one.node().run(&curl).map(|output| output.stdout)
    };
    until("the proxy", PATIENCE, || through_proxy("two.prox.local"));

    let cable = port_of(&site.lab, "eth0");
    site.lab.host().ip(&[&format!("link set {cable} down")]).expect("pulled");
    let dns = DnsProbe::open(one.node(), [10, 20, 0, 1].into());
    assert_eq!(dns.address("two.prox.local"), Some(address));
    assert_eq!(fetch(one.node(), "http://two.prox.local/").expect("a page"), "hello from two\n");
    assert_eq!(through_proxy("two.prox.local").expect("a page"), "hello from two\n");
    let (_three, third) = site.app("three", DhcpClient::Udhcpc, WebServer::None);
    assert_eq!(dns.address("three.prox.local"), Some(third), "no new app without a WAN");
    assert!(internet(one.node()).is_err(), "the cable is not pulled at all");

    site.lab.host().ip(&[&format!("link set {cable} up")]).expect("plugged in");
    until("the internet", PATIENCE, || internet(one.node()));
    let url = "http://two.prox.local/";
    assert_eq!(until(url, PATIENCE, || fetch(site.lab.client(), url)), "hello from two\n");
}

#[test]
fn a_start_without_a_wan_serves_apps_and_gets_it_later() {
    let lab = Site::surroundings();
    let cable = port_of(&lab, "eth0");
    lab.host().ip(&[&format!("link set {cable} down")]).expect("pulled");
    let site = Site::run_in(lab);
    let (one, address) = site.app("one", DhcpClient::Udhcpc, WebServer::Busybox);
    let dns = DnsProbe::open(one.node(), [10, 20, 0, 1].into());
    assert_eq!(dns.address("one.prox.local"), Some(address));
    assert!(site.api().get("/status")["wan_ip"].is_null());
    site.lab.host().ip(&[&format!("link set {cable} up")]).expect("plugged in");
    site.wait_wan();
    until("the internet", PATIENCE, || internet(one.node()));
}

#[test]
fn dhcp_works_again_after_the_lan_was_away() {
    let site = Site::start("");
    site.wait_wan();
    let (one, address) = site.app("one", DhcpClient::Udhcpc, WebServer::Busybox);
    let cable = port_of(&site.lab, "eth1");
    let dns = DnsProbe::open(one.node(), [10, 20, 0, 1].into());
    for times in 1..=3 {
        site.lab
            .host()
            .ip(&[&format!("link set {cable} down"), &format!("link set {cable} up")])
            .expect("flapped");
        let (_app, _) = site.app(&format!("new-{times}"), DhcpClient::Udhcpc, WebServer::None);
        assert_eq!(dns.address("one.prox.local"), Some(address));
    }
    // On our own side of the cable somebody is wrong, and it is undone.
    let node = site.lab.appliance();
    for damage in ["link set eth1 down", "address flush dev eth1", "address flush dev eth0"] {
        node.ip(&[damage]).expect(damage);
        until(damage, PATIENCE, || dns.ask("one.prox.local", hickory_proto::rr::RecordType::A));
        until(damage, PATIENCE, || internet(one.node()));
    }
    let (_app, last) = site.app("last", DhcpClient::Dhcpcd, WebServer::None);
    assert_eq!(dns.address("last.prox.local"), Some(last));
    assert_eq!(internet(one.node()).expect("the internet"), "hello from the internet\n");
}

#[test]
fn a_machine_that_vanished_is_given_up_by_what_it_does_not_acknowledge() {
    let site = Site::start("");
    site.wait_wan();
    let (one, _) = site.app("one", DhcpClient::Udhcpc, WebServer::Nginx);
    let (_two, _) = site.app("two", DhcpClient::Udhcpc, WebServer::Nginx);
    // Requests are to find out, not probes.
    for (name, backends) in [("sole", json!(["one:80"])), ("pair", json!(["one:80", "two:80"]))] {
        let vhost = json!({"app_name": name, "backends": backends, "health": {"interval": "1h"}});
        site.api().call("POST", "/vhosts", Some(vhost)).expect(201);
    }
    // All on one connection, so that one data thread has the connections to the backends.
    let to = SocketAddr::from((addresses::APPLIANCE_WAN, 80));
    let mut visitor = OpenConnection::open(site.lab.client(), to).expect("a connection");
    until("both backends", PATIENCE, || {
        let sole = visitor.get("sole.prox.local").map_err(|error| error.to_string())?;
        if sole.status == 200 { Ok(()) } else { Err(sole.body) }
    });
    for _ in 0..4 {
        assert_eq!(visitor.get("pair.prox.local").expect("a page").status, 200);
    }

    one.node().ip(&["link set eth0 down"]).expect("pulled");
    // The kept connection is given up after 3 s and a new one does not come about in 3 s: the machine is gone. The
    // response header may take 60 s.
    let began = Instant::now();
    let page = visitor.get("sole.prox.local").expect("an answer");
    let took = began.elapsed();
    assert_eq!(page.status, 504, "{page:?}");
    assert!((3..10).contains(&took.as_secs()), "{took:?}");
    // Whoever has another backend is answered by that.
    for _ in 0..4 {
        let page = visitor.get("pair.prox.local").expect("an answer");
        assert_eq!((page.status, page.body.as_str()), (200, "hello from two\n"));
    }
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
}
