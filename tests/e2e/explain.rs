//! `explain` and the page that a visitor gets say the same.

use std::net::{SocketAddr, TcpStream};

use proximity_lab::addresses;
use proximity_tests::http_exchange::{Answer, exchange};
use proximity_tests::test_backend::TestBackend;
use proximity_tests::{PATIENCE, Site, polling::until};
use serde_json::{Value, json};

/// What an API client of the management LAN is answered.
fn visit(site: &Site, host: &str) -> Answer {
    let to = SocketAddr::from((addresses::APPLIANCE_WAN, 80));
    let stream = site.lab.client().enter(|| TcpStream::connect_timeout(&to, PATIENCE));
    let mut stream = stream.expect("entered").expect("the proxy takes connections");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let fields = [&*format!("Host: {host}"), "Accept: application/json"];
    exchange(&mut stream, "GET", "/", &fields, "").expect("an answer")
}

#[test]
fn explain_says_what_the_page_says() {
    let site = Site::start("");
    site.wait_wan();
    let machine = site.probe_machine("10.20.0.5/24");
    let vhost = json!({"app_name": "shop", "backend_ip": "10.20.0.5", "backend_port": 8080});
    site.api().call("POST", "/vhosts", Some(vhost)).expect(201);
    let explained = || site.api().call("GET", "/apps/shop/explain", None).expect(200);

    let page: Value =
        serde_json::from_str(&visit(&site, "shop.prox.local").body).expect("a problem document");
    let told = explained();
    assert_eq!((page["reason"].as_str(), page["status"].as_u64()), (Some("backend_refused"), Some(502)));
    for (of_page, of_explain) in
        [("reason", "verdict"), ("title", "title"), ("detail", "why"), ("hint", "advice")]
    {
        assert_eq!(page[of_page], told[of_explain], "{of_page}");
    }
    let steps = told["steps"].as_array().expect("steps");
    let failed: Vec<&str> =
        steps.iter().filter(|step| step["ok"] == false).filter_map(|step| step["step"].as_str()).collect();
    assert!(failed.contains(&"requests"), "{steps:?}");
    let said = site.cli(&["explain", "shop"]).stdout;
    assert!(said.contains("does not accept connections") && said.contains("FAIL"), "{said}");

    // The container's server comes up: both say so, the page by being the app's.
    let _backend = TestBackend::page(&machine, 8080, "here");
    until("the app answers", PATIENCE, || match visit(&site, "shop.prox.local") {
        answer if answer.body == "here" => Ok(()),
        answer => Err(answer.body),
    });
    assert_eq!(explained()["verdict"], "ok");

    let update = json!({"backend_ip": "10.20.0.5", "backend_port": 8080, "enabled": false});
    site.api().call("PUT", "/vhosts/shop", Some(update)).expect(200);
    let page: Value =
        serde_json::from_str(&visit(&site, "shop.prox.local").body).expect("a problem document");
    assert_eq!(
        (page["reason"].as_str(), explained()["verdict"].as_str()),
        (Some("disabled"), Some("disabled"))
    );
    site.api().call("GET", "/apps/nobody/explain", None).expect(404);
}
