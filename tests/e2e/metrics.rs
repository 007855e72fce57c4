//! What Prometheus scrapes.

use std::net::{SocketAddr, TcpStream};

use proximity_lab::addresses;
use proximity_tests::admin_api::call_over_tcp;
use proximity_tests::http_exchange::exchange;
use proximity_tests::test_backend::TestBackend;
use proximity_tests::{PATIENCE, Site, polling::until};
use serde_json::json;

/// The status of a request to the proxy from the management LAN.
fn visit(site: &Site, host: &str) -> u16 {
    let to = SocketAddr::from((addresses::APPLIANCE_WAN, 80));
    let stream = site.lab.client().enter(|| TcpStream::connect_timeout(&to, PATIENCE));
    let mut stream = stream.expect("entered").expect("the proxy takes connections");
    exchange(&mut stream, "GET", "/", &[&format!("Host: {host}")], "").expect("an answer").status
}

#[test]
fn a_scrape_has_the_requests_of_each_app_and_the_health_of_its_backends() {
    let site = Site::start("");
    site.wait_wan();
    let machine = site.probe_machine("10.20.0.5/24");
    let _backend = TestBackend::page(&machine, 8080, "hello");
    let vhost = json!({"app_name": "shop", "backend_ip": "10.20.0.5", "backend_port": 8080});
    site.api().call("POST", "/vhosts", Some(vhost)).expect(201);
    assert_eq!([visit(&site, "shop.prox.local"), visit(&site, "shop.prox.local")], [200, 200]);
    assert_eq!(visit(&site, "made-up-by-the-client.prox.local"), 404);

    let admin = SocketAddr::from((addresses::APPLIANCE_WAN, 9090));
    let scrape = |token: Option<&str>| {
        call_over_tcp(site.lab.client(), admin, token, ("GET", "/metrics"), "").expect("an answer")
    };
    assert_eq!(scrape(None).status, 401, "the names of the apps are nobody's business");
    let token = site.token();
    let expected = [
        "# TYPE proximity_http_requests_total counter",
        r#"proximity_http_requests_total{app="shop",class="2xx"} 2"#,
        r#"proximity_http_requests_total{app="",class="4xx"} 1"#,
        r#"proximity_http_request_duration_seconds_count{app="shop"} 2"#,
        r#"proximity_http_response_body_bytes_total{app="shop"} 10"#,
        r#"proximity_http_stopped_total{reason="unknown_host"} 1"#,
        r#"proximity_backend_healthy{app="shop",backend="10.20.0.5:8080"} 1"#,
        r#"proximity_backend_paused{app="shop",backend="10.20.0.5:8080"} 0"#,
        r#"proximity_access_log_lines_total{result="written"} 3"#,
        "proximity_ready 1",
    ];
    // The probe and the writer of the log take their time.
    let page = until("a full page", PATIENCE, || {
        let page = scrape(Some(&token));
        assert_eq!(page.status, 200);
        assert_eq!(page.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
        match expected.iter().find(|line| !page.body.lines().any(|there| there == **line)) {
            None => Ok(page.body),
            Some(missing) => Err(format!("{missing} is not in\n{}", page.body)),
        }
    });
    assert!(!page.contains("made-up"), "{page}");

    // What is gone keeps its place in the sums, without its name.
    assert_eq!(site.api().call("DELETE", "/vhosts/shop", None).status, 204);
    until("the name is gone", PATIENCE, || {
        let page = scrape(Some(&token)).body;
        let kept = page.lines().any(|line| line == r#"proximity_http_requests_total{app="",class="2xx"} 2"#);
        if kept && !page.contains("shop") { Ok(()) } else { Err(page) }
    });
}

#[test]
fn a_backend_that_fails_requests_is_told_of_while_its_probes_pass() {
    let site = Site::start("");
    site.wait_wan();
    let machine = site.probe_machine("10.20.0.5/24");
    let _backend = TestBackend::page(&machine, 8080, "hello");
    // Nothing listens on the second one, and its health is asked elsewhere.
    let vhost = json!({"app_name": "shop", "backends": ["10.20.0.5:8080", "10.20.0.5:9999"],
        "health": {"port": 8080, "rise": 1}});
    site.api().call("POST", "/vhosts", Some(vhost)).expect(201);
    until("both are proven", PATIENCE, || {
        let health = site.api().get("/vhosts/shop/health");
        let all = health["backends"].as_array().expect("a list");
        if all.iter().all(|check| check["state"] == "healthy") { Ok(()) } else { Err(health.clone()) }
    });
    until("the second one is left alone", PATIENCE, || {
        assert_eq!(visit(&site, "shop.prox.local"), 200, "the first one makes it good");
        let circuits = site.api().get("/status")["circuits"].clone();
        if circuits.as_array().is_some_and(Vec::is_empty) { Err(circuits) } else { Ok(()) }
    });
    let status = site.api().get("/status");
    let open = &status["circuits"][0];
    assert_eq!((&open["app"], &open["backend"]), (&"shop".into(), &"10.20.0.5:9999".into()), "{status}");
    assert_eq!((&open["circuit"], &open["last_failure"]), (&"open".into(), &"backend_refused".into()));
    let health = site.api().get("/vhosts/shop/health");
    let of = |backend: &str| {
        let all = health["backends"].as_array().expect("a list");
        all.iter().find(|check| check["backend"] == backend).expect("it is there")["load"].clone()
    };
    let (good, bad) = (of("10.20.0.5:8080"), of("10.20.0.5:9999"));
    assert_eq!(
        (&good["circuit"], &good["pauses"], &good["last_failure"]),
        (&"closed".into(), &0.into(), &json!(null))
    );
    assert_eq!((&bad["circuit"], &bad["pauses"], &bad["in_flight"]), (&"open".into(), &1.into(), &0.into()));
}
