//! Single services are stopped and started while the others serve on.

use hickory_proto::rr::RecordType;
use proximity_lab::{DhcpClient, WebServer};
use proximity_tests::dns_probe::DnsProbe;
use proximity_tests::polling::until;
use proximity_tests::{PATIENCE, Site, fetch};

#[test]
fn a_stopped_service_serves_nothing_and_the_others_go_on() {
    let site = Site::start("");
    site.wait_wan();
    let (one, address) = site.app("one", DhcpClient::Udhcpc, WebServer::Busybox);
    let dns = DnsProbe::open(one.node(), [10, 20, 0, 1].into());
    let page = || fetch(site.lab.client(), "http://one.prox.local/");
    until("the page", PATIENCE, page);
    let tell = |service: &str, verb: &str| {
        site.api().call("POST", &format!("/services/{service}/{verb}"), None).expect(200)["status"].clone()
    };

    assert_eq!(tell("dns", "stop"), "stopped");
    until("DNS is silent", PATIENCE, || match dns.ask("one.prox.local", RecordType::A) {
        Ok(_) => Err("it answers"),
        Err(_) => Ok(()),
    });
    page().expect("the proxy serves on");
    assert_eq!(tell("dns", "start"), "running");
    assert_eq!(dns.address("one.prox.local"), Some(address));

    assert_eq!(tell("proxy", "stop"), "stopped");
    until("the proxy is silent", PATIENCE, || page().map_or(Ok(()), |_| Err("it answers")));
    assert_eq!(dns.address("one.prox.local"), Some(address));
    assert_eq!(tell("proxy", "restart"), "running");
    page().expect("the proxy serves again");

    assert_eq!(tell("dhcp", "stop"), "stopped");
    assert_eq!(site.api().get("/status")["services"]["dhcp"], false);
    assert_eq!(tell("dhcp", "restart"), "running");
    let (_two, second) = site.app("two", DhcpClient::Dhclient, WebServer::None);
    assert_eq!(dns.address("two.prox.local"), Some(second));

    // The firewall is not switched by itself, and there are no others.
    assert!(site.api().call("POST", "/services/nat/stop", None).expect(409)["hint"].is_string());
    assert!(site.api().call("POST", "/services/cockpit/stop", None).expect(404)["hint"].is_string());
    assert!(site.api().call("POST", "/services/dns/dance", None).expect(404)["hint"].is_string());
}
