//! `explain` and the page that a visitor gets say the same.

use std::net::{SocketAddr, TcpStream};

use proximity_lab::{DhcpClient, WebServer, addresses};
use proximity_tests::http_exchange::{Answer, exchange};
use proximity_tests::stream_backend::{StreamBackend, StreamClient};
use proximity_tests::test_backend::TestBackend;
use proximity_tests::{PATIENCE, Site, polling::until};
use serde_json::{Value, json};

/// What an API client of the management LAN is answered.
fn visit(site: &Site, host: &str) -> Answer {
    visit_path(site, host, "/")
}

fn visit_path(site: &Site, host: &str, path: &str) -> Answer {
    let to = SocketAddr::from((addresses::APPLIANCE_WAN, 80));
    let stream = site.lab.client().enter(|| TcpStream::connect_timeout(&to, PATIENCE));
    let mut stream = stream.expect("entered").expect("the proxy takes connections");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let fields = [&*format!("Host: {host}"), "Accept: application/json"];
    exchange(&mut stream, "GET", path, &fields, "").expect("an answer")
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

/// A site whose app `NAME.prox.local` answers or does not as the API's vhost says.
fn put(site: &Site, name: &str, mut vhost: Value) -> Value {
    vhost["app_name"] = name.into();
    vhost["health"]["interval"] = "1s".into();
    site.api().call("POST", "/vhosts", Some(vhost)).expect(201)
}

/// What the command says of a host or port, as a whole.
fn told(site: &Site, question: &[&str]) -> String {
    let output = site.cli(&[&["explain"], question].concat());
    assert!(output.status.success(), "{output:?}");
    output.stdout
}

/// Waits until the command says all of this.
fn until_told(site: &Site, question: &str, words: &[&str]) -> String {
    until("it is told", PATIENCE, || match told(site, &[question]) {
        text if words.iter().all(|word| text.contains(word)) => Ok(text),
        text => Err(text),
    })
}

/// Everything that a visitor may meet is told with the same verdict as on the page, and with what is the matter.
#[test]
fn every_reason_that_a_visitor_meets_is_explained() {
    let site = Site::start("");
    site.wait_wan();
    let machine = site.probe_machine("10.20.0.5/24");
    let _well = TestBackend::page(&machine, 8080, "here");
    let _ill = TestBackend::start(&machine, 8081, |_, stream| {
        use std::io::Write;
        stream.write_all(b"HTTP/1.1 503 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
    });
    put(&site, "refused", json!({"backends": ["10.20.0.5:8082"]}));
    put(&site, "away", json!({"backends": ["10.20.0.77:80"], "timeouts": {"connect": "1s"}}));
    put(&site, "ill", json!({"backends": ["10.20.0.5:8081"]}));
    put(&site, "inner", json!({"backends": ["10.20.0.5:8080"], "access": {"allow": ["10.99.0.0/16"]}}));
    put(&site, "moved", json!({"redirect": "https://new.example{uri}"}));
    let path = json!([{"prefix": "/api", "strip": true, "backends": ["10.20.0.5:8082"]}]);
    put(&site, "paths", json!({"backends": ["10.20.0.5:8080"], "path": path}));
    put(&site, "asked", json!({"backends": ["10.20.0.5:8080"], "auth": {"forward": "10.20.0.5:9091"}}));
    let (mut app, _) = site.app("wiki", DhcpClient::Udhcpc, WebServer::None);
    let misspelt = put(&site, "docs", json!({"backends": ["wki:80"]}));
    assert!(
        misspelt["notes"][0].as_str().is_some_and(|note| note.contains("nearest name is `wiki`")),
        "{misspelt}"
    );

    // Each reason is met first, then explained, and what helps is among the words.
    let same = |name: &str, path: &str, words: &str| {
        let page: Value = serde_json::from_str(&visit_path(&site, &format!("{name}.prox.local"), path).body)
            .expect("a problem document");
        let told_by_api = site.api().get(&format!("/apps/{name}/explain?path={path}"));
        assert_eq!(page["reason"], told_by_api["verdict"], "{page} {told_by_api:#}");
        let text = until_told(&site, &format!("http://{name}.prox.local{path}"), &[words]);
        println!("http://{name}.prox.local{path}\n{text}");
    };
    same("wiki", "/", ":80 has not passed a health check yet: connection refused");
    same("refused", "/", "FAIL requests  10.20.0.5:8082 did not accept a connection");
    same("away", "/", "FAIL requests  10.20.0.77:80 could not be reached in time");
    same("docs", "/", "FAIL backend  wki:80: no container is called `wki`: the nearest name is `wiki`");
    same("asked", "/", "10.20.0.5:9091 is asked who may come in; it did not accept a connection");
    same(
        "paths",
        "/api/x",
        "ok   path      /api/x belongs to the path /api and goes to 10.20.0.5:8082 as /x",
    );
    app.dhcp_client().signal(nix::sys::signal::Signal::SIGUSR2).expect("signalled");
    until("the release", PATIENCE, || match site.api().get("/apps/wiki")["state"].as_str() {
        Some("stopped") => Ok(()),
        state => Err(format!("{state:?}")),
    });
    same("wiki", "/", "FAIL lease  the container wiki is off");

    // The app's own answer is no page of ours.
    until_told(
        &site,
        "ill",
        &["fails its health checks", "10.20.0.5:8081 has not passed a health check yet: / answered 503"],
    );
    assert_eq!(site.api().get("/apps/ill/explain")["verdict"], "unhealthy");
    assert_eq!(visit(&site, "ill.prox.local").status, 503);

    // Who asks decides; without that who may is told.
    let page: Value =
        serde_json::from_str(&visit(&site, "inner.prox.local").body).expect("a problem document");
    let from = addresses::CLIENT.to_string();
    let judged = site.api().get(&format!("/apps/inner/explain?from={from}"));
    assert_eq!((&page["reason"], &judged["verdict"]), (&json!("forbidden"), &json!("forbidden")));
    let text = told(&site, &["inner", "--from", &from]);
    assert!(
        text.contains(&format!("only 10.99.0.0/16 may come in: {from} may not; 1 request was turned away")),
        "{text}"
    );
    assert!(told(&site, &["inner"]).starts_with("inner: This app answers"));

    let sent = visit_path(&site, "moved.prox.local", "/a?b");
    assert_eq!(sent.header("location"), Some("https://new.example/a?b"));
    assert!(
        told(&site, &["moved.prox.local/a?b"]).contains("/a?b is sent on to https://new.example/a?b (308)")
    );
    assert!(told(&site, &["paths"]).contains("/ belongs to none of the paths /api"));

    let nobody = site.cli(&["explain", "refusd"]);
    assert!(
        !nobody.status.success() && nobody.stderr.contains("the nearest name is `refused`"),
        "{nobody:?}"
    );
    let show = site.cli(&["vhost", "show", "docs"]).stdout;
    assert!(show.contains("note") && show.contains("nearest name is `wiki`"), "{show}");
    assert!(site.cli(&["app", "ls"]).stdout.contains("no container is called `wki`"));
}

/// A failure that a health check has overtaken is told as past.
#[test]
fn what_has_been_mended_is_told_as_past() {
    let site = Site::start("");
    site.wait_wan();
    let machine = site.probe_machine("10.20.0.5/24");
    put(&site, "shop", json!({"backends": ["10.20.0.5:8080"]}));
    assert_eq!(visit(&site, "shop.prox.local").status, 502);
    assert_eq!(site.api().get("/apps/shop/explain")["verdict"], "backend_refused");
    let _backend = TestBackend::page(&machine, 8080, "here");
    // Nobody visits: the probes alone find it.
    until("the probes", PATIENCE, || {
        let told = site.api().get("/apps/shop/explain");
        if told["verdict"] == "ok" { Ok(()) } else { Err(told.to_string()) }
    });
    let text = told(&site, &["shop"]);
    assert!(text.contains("did not accept a connection, and it has answered since"), "{text}");
    assert!(!text.contains("FAIL"), "{text}");
}

/// Backends that requests are kept from are seen wherever somebody looks.
#[test]
fn a_paused_backend_is_seen_in_every_list() {
    let site = Site::start("");
    site.wait_wan();
    let machine = site.probe_machine("10.20.0.5/24");
    let _backend = TestBackend::page(&machine, 8080, "here");
    let backends = json!(["10.20.0.5:8080", "10.20.0.5:9999"]);
    put(&site, "shop", json!({"backends": backends, "health": {"port": 8080}, "passive": {"pause": "1h"}}));
    until("both are proven", PATIENCE, || {
        let health = site.api().get("/vhosts/shop/health");
        let all = health["backends"].as_array().expect("a list");
        if all.iter().all(|check| check["state"] == "healthy") { Ok(()) } else { Err(health.clone()) }
    });
    until("it is paused", PATIENCE, || {
        assert_eq!(visit(&site, "shop.prox.local").status, 200);
        let circuits = site.api().get("/status")["circuits"].clone();
        if circuits[0]["circuit"] == "open" { Ok(()) } else { Err(circuits.to_string()) }
    });
    let note = "it did not accept a connection; others get its requests";
    for command in [&["status"][..], &["app", "ls"], &["app", "show", "shop"], &["vhost", "show", "shop"]] {
        let text = site.cli(command).stdout;
        assert!(text.contains(note) && text.contains("10.20.0.5:9999"), "{command:?}: {text}");
    }
    assert!(told(&site, &["shop"]).contains("FAIL requests  10.20.0.5:9999 did not accept a connection"));
    // What is shown may be sent back.
    let shown = site.api().get("/vhosts/shop");
    assert_eq!(shown["health"]["backends"][1]["load"]["circuit"], "open", "{shown}");
    site.api().call("PUT", "/vhosts/shop", Some(shown)).expect(200);
}

#[test]
fn a_forwarded_port_is_explained_by_its_number_and_its_name() {
    let site = Site::start("");
    site.wait_wan();
    let (app, address) = site.app("gitea", DhcpClient::Udhcpc, WebServer::None);
    let backend = StreamBackend::named(app.node(), 22, "git");
    let add = |forward: Value| site.api().call("POST", "/forwards", Some(forward)).expect(201);
    add(json!({"port": 2222, "to": "gitea:22", "mode": "proxy", "health": {"interval": "1s"}}));
    add(json!({"protocol": "udp", "port": 5353, "to": "gitae:53"}));
    let client = site.lab.client();
    let greeting = || {
        StreamClient::connect(client, (addresses::APPLIANCE_WAN, 2222)).and_then(|mut client| client.line())
    };
    assert_eq!(greeting().expect("a name"), "git");
    until_told(&site, "2222", &["passes its health checks"]);
    let text = told(&site, &["tcp/2222"]);
    assert!(text.starts_with("tcp/2222: This port is forwarded") && !text.contains("FAIL"), "{text}");
    assert!(text.contains(&format!("gitea ({address}:22) gets it")), "{text}");
    assert!(told(&site, &["5353"]).contains("no container is called `gitae`: the nearest name is `gitea`"));
    assert!(told(&site, &["gitea"]).contains("TCP port 2222 of the appliance: gitea"));
    drop(backend);
    greeting().expect_err("nobody listens there");
    until_told(&site, "2222", &["FAIL target", "1 was refused or cut because no target accepted it"]);
    // What would lead back to the appliance is refused when it is asked for.
    for to in ["10.20.0.1:2223", "prox-appliance:2223"] {
        let loops = json!({"port": 2223, "to": to, "mode": "proxy"});
        let refused = site.api().call("POST", "/forwards", Some(loops)).expect(409);
        assert!(
            refused["detail"].as_str().is_some_and(|detail| detail.contains("the appliance itself")),
            "{refused}"
        );
    }
    let output = site.cli(&["explain", "9"]);
    assert!(!output.status.success() && output.stderr.contains("no forward `tcp/9`"), "{output:?}");
}
