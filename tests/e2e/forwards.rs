//! Port forwards to apps, and the switch of the isolation.

use proximity_lab::{DhcpClient, Node, WebServer};
use proximity_tests::test_backend::TestBackend;
use proximity_tests::{PATIENCE, Site, fetch, polling::until};
use serde_json::json;

const OUTSIDE: &str = "http://192.168.1.2:2222/";

fn is_refused(node: &Node, url: &str) {
    let output = node.try_run(&["curl", "-sS", "-m", "3", url], PATIENCE).expect("curl ends");
    assert_eq!(output.status.code(), Some(7), "{url}: {output:?}");
}

#[test]
fn a_forward_leads_to_the_app_of_that_name() {
    let mut site = Site::start("[[forward]]\nprotocol = \"tcp\"\nport = 2223\nto = \"gitea:22\"\n");
    site.wait_wan();
    let body = json!({"port": 2222, "to": "gitea:22"});
    site.api().call("POST", "/forwards", Some(body)).expect(201);
    let shown = site.api().items("/forwards");
    assert!(shown.iter().all(|forward| forward["target"].is_null()), "the app is not there yet: {shown:?}");
    is_refused(site.lab.client(), OUTSIDE);

    let (app, address) = site.app("gitea", DhcpClient::Udhcpc, WebServer::None);
    let _ssh = TestBackend::page(app.node(), 22, "git over there");
    let (sibling, _) = site.app("wiki", DhcpClient::Udhcpc, WebServer::None);
    let shown = site.api().items("/forwards");
    assert!(shown.iter().all(|forward| forward["target"] == format!("{address}:22")), "{shown:?}");
    // The lease brought the forward with it, before its ACK.
    assert_eq!(fetch(site.lab.client(), OUTSIDE).expect("the app"), "git over there");
    assert_eq!(fetch(site.lab.client(), "http://192.168.1.2:2223/").expect("the app"), "git over there");
    assert_eq!(fetch(sibling.node(), OUTSIDE).expect("by the outer address from inside"), "git over there");
    site.api().call("DELETE", "/forwards/tcp/2223", None).expect(409);

    site.appliance.kill9().expect("killed");
    site.start_again();
    site.wait_wan();
    assert_eq!(fetch(site.lab.client(), OUTSIDE).expect("the app after a crash"), "git over there");

    assert_eq!(site.api().call("DELETE", "/forwards/tcp/2222", None).status, 204);
    is_refused(site.lab.client(), OUTSIDE);
    assert_eq!(
        fetch(site.lab.client(), "http://192.168.1.2:2223/").expect("the other one"),
        "git over there"
    );
}

#[test]
fn isolation_can_be_switched_off_and_on_while_it_runs() {
    let site = Site::start("[firewall]\nisolate_management = false\n");
    site.wait_wan();
    let (app, _) = site.app("wiki", DhcpClient::Udhcpc, WebServer::None);
    let management = "http://192.168.1.50:8006/";
    let page = until("the management LAN", PATIENCE, || fetch(app.node(), management));
    assert!(page.contains("Proxmox"), "{page}");
    assert_eq!(fetch(app.node(), "http://10.20.0.1:9090/healthz").expect("the admin port"), "ok\n");
    site.write_config("");
    site.api().call("POST", "/reload", None).expect(200);
    is_refused(app.node(), management);
    is_refused(app.node(), "http://10.20.0.1:9090/healthz");
    assert_eq!(
        fetch(app.node(), "http://www.example.com/").expect("the internet"),
        "hello from the internet\n"
    );
}

/// Who takes an address that is none of its network's gets nowhere with it.
#[test]
fn forged_source_addresses_are_dropped() {
    let site = Site::start("");
    site.wait_wan();
    let forger = site.probe_machine("10.20.0.5/24");
    forger.ip(&["addr add 192.168.1.77/32 dev eth0", "route add default via 10.20.0.1"]).expect("set up");
    let from = |source: &str, url: &str| {
        let curl = ["curl", "-sS", "-m", "2", "--interface", source, url];
        forger.try_run(&curl, PATIENCE).expect("curl ends").status.code()
    };
    assert_eq!(from("10.20.0.5", "http://203.0.113.10/"), Some(0), "its own address works");
    for url in ["http://203.0.113.10/", "http://192.168.1.50:8006/", "http://10.20.0.1:9090/healthz"] {
        let code = from("192.168.1.77", url);
        assert!(code == Some(28) || code == Some(7), "{url}: {code:?}");
    }
    let rules =
        site.lab.appliance().run(&["nft", "list", "table", "inet", "proximity"]).expect("rules").stdout;
    let counted = |id: &str| {
        let rule = rules.lines().find(|line| line.contains(&format!("\"{id}\""))).expect(id);
        !rule.contains("packets 0 ")
    };
    assert!(counted("spoof-eth1"), "{rules}");
}
