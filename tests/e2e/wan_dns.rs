//! App names on the WAN: the appliance's address there, and nothing else.

use std::net::Ipv4Addr;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;
use proximity_lab::{DhcpClient, Node, WebServer, addresses};
use proximity_tests::dns_probe::DnsProbe;
use proximity_tests::{PATIENCE, Site, polling::until};

const ON: &str = "[wan]\ndns = \"authoritative\"\n";
const SECOND: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 77);

fn answers_with(client: &Node, server: Ipv4Addr, name: &str) {
    let probe = DnsProbe::open(client, server);
    until("an answer on the WAN", PATIENCE, || match probe.ask(name, RecordType::A) {
        Ok(answer) if answer.answers == [server.to_string()] && answer.authoritative => Ok(()),
        other => Err(format!("{other:?}")),
    });
    let answer = probe.ask_over_tcp(client, name, RecordType::A).expect("an answer over TCP");
    assert_eq!((answer.code, answer.answers), (ResponseCode::NoError, vec![server.to_string()]));
}

fn is_closed(client: &Node, server: Ipv4Addr, name: &str) {
    let probe = DnsProbe::open(client, server);
    until("silence on the WAN", PATIENCE, || match probe.ask(name, RecordType::A) {
        Err(_) => Ok(()),
        Ok(answer) => Err(format!("{answer:?}")),
    });
    let over_tcp = probe.ask_over_tcp(client, name, RecordType::A);
    assert!(over_tcp.is_err(), "{over_tcp:?}");
}

fn reload(site: &Site, config: &str) {
    site.write_config(config);
    let output = site.cli(&["reload"]);
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn app_names_lead_to_the_wan_address_while_it_is_switched_on() {
    let site = Site::start("");
    site.wait_wan();
    let (app, address) = site.app("wiki", DhcpClient::Udhcpc, WebServer::Busybox);
    let client = site.lab.client();
    is_closed(client, addresses::APPLIANCE_WAN, "wiki.prox.local.");

    reload(&site, ON);
    answers_with(client, addresses::APPLIANCE_WAN, "wiki.prox.local.");
    let probe = DnsProbe::open(client, addresses::APPLIANCE_WAN);
    for name in ["www.example.com.", "prox.local.", "prox-appliance.prox.local.", "nobody.prox.local."] {
        let answer = probe.ask(name, RecordType::A).expect("an answer");
        assert_eq!((answer.code, answer.answers.len()), (ResponseCode::Refused, 0), "{name}");
    }
    let answer = probe.ask("wiki.prox.local.", RecordType::AAAA).expect("an answer");
    assert_eq!((answer.code, answer.answers.len()), (ResponseCode::NoError, 0));
    // Apps still get the app itself, and the gateway's address is no way in from outside.
    let inside = DnsProbe::open(app.node(), Ipv4Addr::new(10, 20, 0, 1));
    assert_eq!(inside.address("wiki.prox.local."), Some(address));
    client.ip(&["route add 10.20.0.0/24 via 192.168.1.2"]).expect("a route");
    assert!(
        DnsProbe::open(client, Ipv4Addr::new(10, 20, 0, 1)).ask("www.example.com.", RecordType::A).is_err()
    );
    // What the name leads to is there.
    until("the app's page", PATIENCE, || {
        let curl = ["curl", "-sSf", "-m", "5", "-H", "Host: wiki.prox.local", "http://192.168.1.2/"];
        let page = client.try_run(&curl, PATIENCE).expect("curl ends");
        if page.status.success() { Ok(()) } else { Err(page.stderr) }
    });
    let services = site.api().get("/services").to_string();
    assert!(services.contains("192.168.1.2:53"), "{services}");

    // It follows the link's addresses, and ends when it is switched off.
    site.lab.appliance().ip(&[&format!("addr add {SECOND}/24 dev eth0")]).expect("an address");
    answers_with(client, SECOND, "wiki.prox.local.");
    answers_with(client, addresses::APPLIANCE_WAN, "wiki.prox.local.");
    site.lab.appliance().ip(&[&format!("addr del {SECOND}/24 dev eth0")]).expect("no address");
    is_closed(client, SECOND, "wiki.prox.local.");
    reload(&site, "");
    is_closed(client, addresses::APPLIANCE_WAN, "wiki.prox.local.");
}

/// The sockets go with an upgrade, and with the service.
#[test]
fn it_outlives_upgrades_and_stops_with_dns() {
    let site = Site::start(ON);
    site.wait_wan();
    let (_app, _) = site.app("wiki", DhcpClient::Udhcpc, WebServer::Busybox);
    let client = site.lab.client();
    answers_with(client, addresses::APPLIANCE_WAN, "wiki.prox.local.");
    let output = site.cli(&["upgrade"]);
    assert!(output.status.success(), "{output:?}");
    let answer = DnsProbe::open(client, addresses::APPLIANCE_WAN).ask("wiki.prox.local.", RecordType::A);
    assert_eq!(answer.expect("an answer at once").answers, [addresses::APPLIANCE_WAN.to_string()]);
    site.api().call("POST", "/services/dns/stop", None).expect(200);
    is_closed(client, addresses::APPLIANCE_WAN, "wiki.prox.local.");
    site.api().call("POST", "/services/dns/start", None).expect(200);
    answers_with(client, addresses::APPLIANCE_WAN, "wiki.prox.local.");
}
