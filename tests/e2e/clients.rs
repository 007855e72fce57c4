//! The main job, with the DHCP clients that Debian and Alpine containers have.

use std::net::{Ipv4Addr, SocketAddr};

use proximity_lab::{App, DhcpClient, Node, WebServer, addresses};
use proximity_tests::admin_api::{BASE, call_over_tcp};
use proximity_tests::dns_probe::DnsProbe;
use proximity_tests::{PATIENCE, Site, fetch, polling::until};

const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 20, 0, 1);

struct Guest {
    name: &'static str,
    app: App,
    address: Ipv4Addr,
}

fn has_what_dhcp_gives(guest: &Guest) {
    let Guest { name, app, address } = guest;
    let [a, b, c, last] = address.octets();
    assert!([a, b, c] == [10, 20, 0] && (100..=250).contains(&last), "{address} is not of the pool");
    let routes = app.node().run(&["ip", "-4", "route", "show", "default"]).expect("routes").stdout;
    assert!(routes.contains("via 10.20.0.1 "), "{name}: {routes}");
    let link = app.node().run(&["ip", "-4", "-o", "addr", "show", "dev", "eth0"]).expect("addresses").stdout;
    assert!(link.contains(&format!("inet {address}/24")), "{name}: {link}");
    let resolver = app.node().read("/etc/resolv.conf").expect("resolv.conf");
    let word = |key: &str| {
        resolver.lines().filter_map(|line| line.split_once(' ')).any(|(word, rest)| {
            word == key && rest.split_whitespace().any(|item| item.trim_end_matches('.') == "prox.local")
        })
    };
    assert!(resolver.lines().any(|line| line.trim() == "nameserver 10.20.0.1"), "{name}: {resolver}");
    assert!(word("search") || word("domain"), "{name} has no search domain: {resolver}");
}

fn sees_its_sibling(guest: &Guest, sibling: &Guest) {
    let (node, name) = (guest.app.node(), sibling.name);
    let dns = DnsProbe::open(node, GATEWAY);
    assert_eq!(dns.address(&format!("{name}.prox.local")), Some(sibling.address), "A of {name}");
    assert_eq!(dns.name_of(sibling.address), Some(format!("{name}.prox.local.")), "PTR of {name}");
    // By the app's own resolver: the whole name, and the short one through the search domain.
    for asked in [format!("{name}.prox.local"), name.to_owned()] {
        let found = node.run(&["getent", "ahostsv4", &asked]).expect("getent").stdout;
        assert!(found.starts_with(&sibling.address.to_string()), "{asked}: {found}");
        node.run(&["ping", "-c1", "-W2", &asked]).unwrap_or_else(|error| panic!("{error}"));
    }
    // A sibling's name leads straight to it, past the proxy.
    assert_eq!(fetch(node, &format!("http://{name}.prox.local/")).expect("a page"), page_of(name));
}

fn cannot_reach_the_management_side(guest: &Guest) {
    let node = guest.app.node();
    for url in [
        format!("http://{}:8006/", addresses::CLIENT),
        format!("http://{}:53/", addresses::ROUTER),
        format!("http://{GATEWAY}:9090/healthz"),
        format!("http://{}:9090/healthz", addresses::APPLIANCE_WAN),
    ] {
        let output = node.try_run(&["curl", "-sS", "-m", "3", &url], PATIENCE).expect("curl ends");
        // 7: refused. Not a timeout (28): isolation says so at once, and not 0 or 22, which are answers.
        assert_eq!(output.status.code(), Some(7), "{}: {url}: {output:?}", guest.name);
    }
    for host in [addresses::CLIENT, addresses::ROUTER] {
        let ping = node.try_run(&["ping", "-c1", "-W1", &host.to_string()], PATIENCE).expect("ping ends");
        assert!(!ping.status.success(), "{} reaches {host}", guest.name);
    }
}

fn page_of(name: &str) -> String {
    format!("hello from {name}\n")
}

#[test]
fn stock_clients_get_address_name_url_and_internet() {
    let site = Site::without_config();
    let guests: Vec<Guest> = [
        ("alpine", DhcpClient::Udhcpc, WebServer::Nginx),
        ("debian-12", DhcpClient::Dhclient, WebServer::Busybox),
        ("debian-13", DhcpClient::Dhcpcd, WebServer::Nginx),
    ]
    .map(|(name, client, server)| {
        let (app, address) = site.app(name, client, server);
        Guest { name, app, address }
    })
    .into();
    site.wait_wan();

    for (at, guest) in guests.iter().enumerate() {
        has_what_dhcp_gives(guest);
        sees_its_sibling(guest, &guests[(at + 1) % guests.len()]);
        let internet = fetch(guest.app.node(), "http://www.example.com/").expect("the internet");
        assert_eq!(internet, "hello from the internet\n", "{}", guest.name);
        cannot_reach_the_management_side(guest);
        // From the management LAN the name leads to the appliance, and the Host header to the app. A vhost
        // made from a lease is used once a probe passed; nobody tells when.
        let url = format!("http://{}.prox.local/", guest.name);
        let page = until(&url, PATIENCE, || fetch(site.lab.client(), &url));
        assert_eq!(page, page_of(guest.name));
    }
    let addresses: std::collections::BTreeSet<_> = guests.iter().map(|guest| guest.address).collect();
    assert_eq!(addresses.len(), guests.len(), "an address was given twice: {addresses:?}");
}

#[test]
fn the_management_side_reaches_the_admin_port_and_the_apps() {
    let site = Site::without_config();
    let (app, address) = site.app("wiki", DhcpClient::Udhcpc, WebServer::Busybox);
    site.wait_wan();
    let admin = SocketAddr::from((addresses::APPLIANCE_WAN, 9090));
    let status = format!("{BASE}/status");
    let ask = |token: Option<&str>| {
        call_over_tcp(site.lab.client(), admin, token, ("GET", &status), "").expect("an answer")
    };
    let refused = ask(None);
    assert_eq!(refused.status, 401);
    assert_eq!(refused.header("content-type"), Some("application/problem+json"));
    assert!(refused.json()["hint"].as_str().is_some_and(|hint| hint.contains("Bearer")), "{refused:?}");
    assert_eq!(ask(Some("not the token at all")).status, 401);
    assert_eq!(ask(Some(&site.token())).expect(200)["hostname"], "prox-appliance");

    let client: &Node = site.lab.client();
    client.ip(&[&format!("route add 10.20.0.0/24 via {}", addresses::APPLIANCE_WAN)]).expect("a route");
    assert_eq!(fetch(client, &format!("http://{address}/")).expect("the app itself"), page_of("wiki"));
    // The way back in is not a way out: what the app starts is still refused.
    let out = app.node().try_run(&["curl", "-sS", "-m", "3", "http://192.168.1.50:8006/"], PATIENCE);
    assert_eq!(out.expect("curl ends").status.code(), Some(7));
}
