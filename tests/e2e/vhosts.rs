//! Virtual hosts: made by the API, by the command line, by the file and by leases.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};

use proximity_lab::{AppSpec, DhcpClient, WebServer, addresses};
use proximity_tests::admin_api::{BASE, call_over_tcp};
use proximity_tests::dns_probe::DnsProbe;
use proximity_tests::http_exchange::{Answer, exchange, header};
use proximity_tests::test_backend::TestBackend;
use proximity_tests::{PATIENCE, Site, polling::until};
use serde_json::json;

/// What the proxy on the WAN address answers a browser of the management LAN.
fn visit(site: &Site, host: &str) -> Answer {
    let to = SocketAddr::from((addresses::APPLIANCE_WAN, 80));
    let stream = site.lab.client().enter(|| TcpStream::connect_timeout(&to, PATIENCE));
    let mut stream = stream.expect("entered").expect("the proxy takes connections");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    exchange(&mut stream, "GET", "/", &[&format!("Host: {host}"), "Accept: text/html"], "")
        .expect("an answer")
}

fn expect_page(site: &Site, host: &str, page: &str) {
    let answer = visit(site, host);
    assert_eq!((answer.status, answer.body.as_str()), (200, page), "{host}: {answer:?}");
}

#[test]
fn a_vhost_made_by_the_api_serves_until_it_is_deleted() {
    let mut site = Site::start("");
    site.wait_wan();
    let machine = site.probe_machine("10.20.0.5/24");
    let _backend = TestBackend::page(&machine, 8080, "from the backend");
    assert_eq!(visit(&site, "shop.prox.local").status, 404);

    let vhost = json!({"app_name": "shop", "backend_ip": "10.20.0.5", "backend_port": 8080});
    let made = site.api().call("POST", "/vhosts", Some(vhost.clone())).expect(201);
    assert_eq!(made["hostname"], "shop.prox.local");
    assert_eq!((made["source"].as_str(), made["enabled"].as_bool()), (Some("api"), Some(true)));
    // No waiting: the answer came after the generation was published.
    expect_page(&site, "shop.prox.local", "from the backend");
    // The same again changes nothing; another one under that name is refused.
    site.api().call("POST", "/vhosts", Some(vhost)).expect(201);
    let other = json!({"app_name": "shop", "backend_ip": "10.20.0.6", "backend_port": 80});
    let refused = site.api().call("POST", "/vhosts", Some(other)).expect(409);
    assert!(refused["hint"].as_str().is_some_and(|hint| hint.contains("PUT")), "{refused}");

    // kill -9 directly behind the answer: it was durable by then.
    let aliased = json!({"backend_ip": "10.20.0.5", "backend_port": 8080, "aliases": ["store"]});
    site.api().call("PUT", "/vhosts/shop", Some(aliased)).expect(200);
    site.appliance.kill9().expect("killed");
    site.start_again();
    site.wait_wan();
    expect_page(&site, "shop.prox.local", "from the backend");
    expect_page(&site, "store.prox.local", "from the backend");

    assert_eq!(site.api().call("DELETE", "/vhosts/shop", None).status, 204);
    let gone = visit(&site, "shop.prox.local");
    assert_eq!(gone.status, 404);
    assert!(gone.body.contains("No app answers to this name"), "{gone:?}");
    assert_eq!(visit(&site, "store.prox.local").status, 404);
    site.api().call("DELETE", "/vhosts/shop", None).expect(404);
    site.appliance.terminate(PATIENCE).expect("it ends");
    site.start_again();
    assert!(site.api().items("/vhosts").is_empty());
}

#[test]
fn a_wildcard_vhost_serves_every_name_below() {
    let site = Site::start("");
    site.wait_wan();
    let machine = site.probe_machine("10.20.0.5/24");
    let _backend = TestBackend::page(&machine, 8080, "for all of them");
    let vhost = json!({"app_name": "shop", "hostname": "*shop", "backends": ["10.20.0.5:8080"]});
    let refused = site.api().call("POST", "/vhosts", Some(vhost)).expect(422);
    assert!(refused["detail"].as_str().is_some_and(|detail| detail.contains("hostname")), "{refused}");
    let vhost = json!({"app_name": "shop", "hostname": "*.shop", "backends": ["10.20.0.5:8080"]});
    let made = site.api().call("POST", "/vhosts", Some(vhost)).expect(201);
    assert_eq!((&made["hostname"], made["url"].is_null()), (&json!("*.shop.prox.local"), true));
    expect_page(&site, "a.shop.prox.local", "for all of them");
    expect_page(&site, "x.y.shop.prox.local", "for all of them");
    assert_eq!(visit(&site, "shop.prox.local").status, 404);
    let dns = DnsProbe::open(&machine, [10, 20, 0, 1].into());
    assert_eq!(dns.address("a.shop.prox.local"), Some([10, 20, 0, 1].into()));
    assert_eq!(site.api().call("DELETE", "/vhosts/shop", None).status, 204);
    assert_eq!(visit(&site, "a.shop.prox.local").status, 404);
    assert_eq!(dns.address("a.shop.prox.local"), None);
}

#[test]
fn the_api_over_tcp_takes_the_token() {
    let site = Site::start("");
    site.wait_wan();
    let machine = site.probe_machine("10.20.0.5/24");
    let _backend = TestBackend::page(&machine, 80, "by TCP");
    let call = |token: Option<&str>, method: &str, path: &str, body: &str| {
        let admin = SocketAddr::from((addresses::APPLIANCE_WAN, 9090));
        let path = format!("{BASE}{path}");
        call_over_tcp(site.lab.client(), admin, token, (method, &path), body).expect("an answer")
    };
    let vhost = r#"{"app_name": "shop", "backend_ip": "10.20.0.5", "backend_port": 80}"#;
    assert_eq!(call(None, "POST", "/vhosts", vhost).status, 401);
    assert_eq!(visit(&site, "shop.prox.local").status, 404, "a refused change has an effect");
    let token = site.token();
    call(Some(&token), "POST", "/vhosts", vhost).expect(201);
    expect_page(&site, "shop.prox.local", "by TCP");
    assert_eq!(call(None, "DELETE", "/vhosts/shop", "").status, 401);
    expect_page(&site, "shop.prox.local", "by TCP");
    assert_eq!(call(Some(&token), "DELETE", "/vhosts/shop", "").status, 204);
    assert_eq!(visit(&site, "shop.prox.local").status, 404);
}

#[test]
fn what_the_file_says_belongs_to_the_file() {
    let site = Site::start(
        "[[vhost]]\napp_name = \"blog\"\nbackend_ip = \"10.20.0.5\"\nbackend_port = 8080\n\
         [[dns.record]]\nname = \"printer\"\ntype = \"A\"\nvalue = \"10.20.0.50\"\n",
    );
    site.wait_wan();
    let machine = site.probe_machine("10.20.0.5/24");
    let _backend = TestBackend::page(&machine, 8080, "of the file");
    expect_page(&site, "blog.prox.local", "of the file");
    let other = json!({"app_name": "blog", "backend_ip": "10.20.0.6", "backend_port": 80});
    for (method, path, body) in [
        ("POST", "/vhosts", Some(other.clone())),
        ("PUT", "/vhosts/blog", Some(other)),
        ("DELETE", "/vhosts/blog", None),
        ("DELETE", "/dns/records/printer/A", None),
    ] {
        let answer = site.api().call(method, path, body);
        assert_eq!(answer.header("content-type"), Some("application/problem+json"));
        let problem = answer.expect(409);
        let hint = problem["hint"].as_str().expect("a hint");
        assert!(hint.contains("file") && hint.contains("reload"), "{method} {path}: {problem}");
    }
    expect_page(&site, "blog.prox.local", "of the file");
}

const PIECE: usize = 1 << 20;
const PIECES: usize = 8;

/// The octet at a place of the download.
fn octet(at: usize) -> u8 {
    (at % 251) as u8
}

/// A backend that sends one piece for each word it is given: a download as slow as the test wants.
fn slow_backend(machine: &proximity_lab::Node) -> (TestBackend, Sender<()>) {
    let (allow, allowed) = channel::<()>();
    let allowed: Mutex<Receiver<()>> = Mutex::new(allowed);
    let backend = TestBackend::start(machine, 8080, move |head, stream| {
        if header(head, "user-agent").is_some_and(|agent| agent.contains("Health")) {
            return stream.write_all(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n");
        }
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", PIECE * PIECES)?;
        let allowed = allowed.lock().expect("one download at a time");
        for piece in 0..PIECES {
            allowed.recv().map_err(std::io::Error::other)?;
            let bytes: Vec<u8> = (piece * PIECE..(piece + 1) * PIECE).map(octet).collect();
            stream.write_all(&bytes)?;
        }
        Ok(())
    });
    (backend, allow)
}

#[test]
fn an_open_download_is_not_cut_by_changes_of_other_vhosts() {
    let download = "[[vhost]]\napp_name = \"files\"\nbackend_ip = \"10.20.0.5\"\nbackend_port = 8080\n";
    let site = Site::start(download);
    site.wait_wan();
    let machine = site.probe_machine("10.20.0.5/24");
    let (_backend, allow) = slow_backend(&machine);
    let _other = TestBackend::page(&machine, 80, "another");

    let to = SocketAddr::from((addresses::APPLIANCE_WAN, 80));
    let stream = site.lab.client().enter(|| TcpStream::connect_timeout(&to, PATIENCE));
    let mut stream = stream.expect("entered").expect("connected");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream.write_all(b"GET /big HTTP/1.1\r\nHost: files.prox.local\r\n\r\n").expect("asked");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("the head");
        head.push(byte[0]);
    }
    assert!(head.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&head));

    let mut at = 0;
    let mut piece = vec![0; PIECE];
    let mut next_piece = |what: &str| {
        allow.send(()).expect("the backend waits");
        stream.read_exact(&mut piece).unwrap_or_else(|error| panic!("cut by {what} at {at}: {error}"));
        let wrong = piece.iter().enumerate().find(|(offset, found)| **found != octet(at + offset));
        assert_eq!(wrong, None, "after {what}");
        at += PIECE;
    };
    let api = site.api();
    next_piece("nothing");
    let vhost = json!({"app_name": "shop", "backend_ip": "10.20.0.5", "backend_port": 80});
    api.call("POST", "/vhosts", Some(vhost)).expect(201);
    expect_page(&site, "shop.prox.local", "another");
    next_piece("an added vhost");
    let changed = json!({"backend_ip": "10.20.0.5", "backend_port": 80, "aliases": ["store"]});
    api.call("PUT", "/vhosts/shop", Some(changed)).expect(200);
    next_piece("a changed vhost");
    assert_eq!(api.call("DELETE", "/vhosts/shop", None).status, 204);
    assert_eq!(visit(&site, "shop.prox.local").status, 404);
    next_piece("a deleted vhost");
    site.write_config(&format!(
        "{download}[[vhost]]\napp_name = \"docs\"\nbackend_ip = \"10.20.0.5\"\nbackend_port = 80\n"
    ));
    api.call("POST", "/reload", None).expect(200);
    expect_page(&site, "docs.prox.local", "another");
    next_piece("a reload");
    site.write_config("this is not a configuration");
    api.call("POST", "/reload", None).expect(422);
    next_piece("a refused reload");
    let (_app, _) = site.app("newcomer", DhcpClient::Udhcpc, WebServer::Busybox);
    next_piece("a new app");
    site.lab.appliance().run(&["nft", "delete", "table", "inet", "proximity"]).expect("deleted");
    next_piece("a deleted firewall");
    assert_eq!(at, PIECE * PIECES);
}

/// The seed's headers: backends see who asked, and nobody can claim to be somebody else.
#[test]
fn backends_are_told_who_asks() {
    let site =
        Site::start("[[vhost]]\napp_name = \"echo\"\nbackend_ip = \"10.20.0.5\"\nbackend_port = 8080\n");
    site.wait_wan();
    let machine = site.probe_machine("10.20.0.5/24");
    let backend = TestBackend::page(&machine, 8080, "seen");
    let forged =
        ["-H", "X-Real-IP: 6.6.6.6", "-H", "X-Forwarded-For: 6.6.6.6", "-H", "X-Forwarded-Proto: https"];
    let curl = ["curl", "-sS", "-m", "5", "http://echo.prox.local/a?b=c"];
    site.lab.client().run(&[&curl[..], &forged].concat()).expect("a page");
    let requests = backend.requests();
    let [head] = &requests[..] else { panic!("one request: {requests:?}") };
    assert!(head.starts_with("GET /a?b=c HTTP/1.1\r\n"), "{head}");
    let client = addresses::CLIENT.to_string();
    for (name, value) in [
        ("X-Real-IP", client.as_str()),
        ("X-Forwarded-For", &client),
        ("X-Forwarded-Proto", "http"),
        ("X-Forwarded-Host", "echo.prox.local"),
    ] {
        assert_eq!(header(head, name), Some(value), "{name}: {head}");
    }
    assert!(!head.contains("6.6.6.6"), "{head}");

    // The seed's access log: Caddy's keys, one file for each app, shortly after the answer.
    let line = until("the access log", PATIENCE, || {
        let text = site.lab.appliance().read("/var/log/proximity/echo.prox.local.log");
        text.map_err(|error| error.to_string())?.lines().next().map(str::to_owned).ok_or("empty".to_owned())
    });
    let line: serde_json::Value = serde_json::from_str(&line).expect("JSON");
    assert_eq!((&line["request"]["uri"], &line["status"]), (&json!("/a?b=c"), &json!(200)), "{line}");
    assert_eq!((&line["request"]["remote_ip"], &line["size"]), (&json!(client), &json!(4)), "{line}");
}

/// A page for each reason why an app is not there, and the app itself as soon as it is.
#[test]
fn pages_tell_unknown_starting_and_stopped_apart() {
    let site = Site::start("");
    site.wait_wan();
    let unknown = visit(&site, "nobody.prox.local");
    assert_eq!(unknown.status, 404);
    assert!(unknown.body.contains("nobody.prox.local"), "{unknown:?}");

    let mac = site.lab.new_mac();
    let spec = |server| AppSpec { name: "wiki".into(), mac, client: DhcpClient::Udhcpc, server };
    let (mut app, address) = site.boot(spec(WebServer::None));
    let starting = visit(&site, "wiki.prox.local");
    assert_eq!(starting.status, 503, "{starting:?}");
    assert!(starting.body.contains("starting"), "{starting:?}");
    assert_eq!(starting.header("retry-after"), Some("2"));
    let state = site.api().get("/apps/wiki");
    assert_eq!((&state["state"], &state["vhost"]["health"]["state"]), (&json!("active"), &json!("unproven")));

    app.node().run(&["busybox", "httpd", "-p", "80", "-h", "/run/www"]).expect("a web server");
    // The next probe finds it; probes of a starting app come quickly one after the other.
    let page = until("the started app", PATIENCE, || {
        let answer = visit(&site, "wiki.prox.local");
        if answer.status == 200 { Ok(answer.body) } else { Err(format!("{answer:?}")) }
    });
    assert_eq!(page, "hello from wiki\n");
    assert_eq!(site.api().get("/apps/wiki")["vhost"]["health"]["state"], "healthy");

    // udhcpc releases on SIGUSR2 and stays without an address.
    app.dhcp_client().signal(nix::sys::signal::Signal::SIGUSR2).expect("signalled");
    let stopped = until("the release", PATIENCE, || {
        let answer = visit(&site, "wiki.prox.local");
        if answer.status == 503 { Ok(answer) } else { Err(format!("{answer:?}")) }
    });
    assert!(stopped.body.contains("This app is stopped"), "{stopped:?}");
    assert_eq!(site.api().get("/apps/wiki")["state"], "stopped");
    app.stop();

    let (_again, same) = site.boot(spec(WebServer::Busybox));
    assert_eq!(same, address, "the address stays with the app");
    until("the app that came back", PATIENCE, || {
        let answer = visit(&site, "wiki.prox.local");
        if answer.status == 200 { Ok(()) } else { Err(format!("{answer:?}")) }
    });
}
