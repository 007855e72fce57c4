//! Which backend a path leads to, and that no other spelling of a path leads around it.

use proximity_proxy::Reason;
use proximity_table::{BackendTarget, HostPolicy, Redirect, Vhost, VhostPath};

use crate::support::{Backend, Proxy, Table, vhost, with};

fn path(prefix: &str, backends: &[&Backend]) -> VhostPath {
    VhostPath {
        prefix: prefix.to_owned(),
        strip: false,
        backends: backends.iter().map(|backend| BackendTarget::Address(backend.addr)).collect(),
        protocol: Default::default(),
        tls: Default::default(),
        health: Default::default(),
        redirect: None,
    }
}

fn redirect(to: &str, status: u16) -> Option<Redirect> {
    Some(Redirect { to: to.to_owned(), status })
}

/// A backend that answers with its name and the target that it was asked for.
fn telling(name: &'static str) -> Backend {
    Backend::script(move |mut conn| {
        while let Some(request) = conn.request() {
            conn.answer(&format!("{name} {}", request.line.split(' ').nth(1).unwrap()));
        }
    })
}

fn ask(proxy: &Proxy, target: &str) -> String {
    let response = proxy.get("wiki.prox.local", target);
    if response.status == 200 { response.text() } else { response.status.to_string() }
}

#[test]
fn the_longest_prefix_of_whole_segments_wins() {
    let (root, api, deep) = (telling("root"), telling("api"), telling("deep"));
    let mut wiki = vhost("wiki", &[root.addr]);
    wiki.paths = vec![path("/api", &[&api]), path("/api/v2/deep", &[&deep])];
    let proxy = Proxy::start(&Table::of(vec![wiki]));
    for (target, answer) in [
        ("/", "root /"),
        ("/apix", "root /apix"),
        ("/ap", "root /ap"),
        ("/API", "root /API"),
        ("/x/api", "root /x/api"),
        ("/?a=/api", "root /?a=/api"),
        ("/api", "api /api"),
        ("/api?x=1&y=%20", "api /api?x=1&y=%20"),
        ("/api/", "api /api/"),
        ("/api/v2", "api /api/v2"),
        ("/api/v2/deeper", "api /api/v2/deeper"),
        ("/api/v2/deep", "deep /api/v2/deep"),
        ("/api/v2/deep/er", "deep /api/v2/deep/er"),
    ] {
        assert_eq!(ask(&proxy, target), answer);
    }
}

#[test]
fn a_prefix_is_stripped_where_it_is_asked_for() {
    let (root, api) = (telling("root"), telling("api"));
    let mut wiki = vhost("wiki", &[root.addr]);
    wiki.paths = vec![VhostPath { strip: true, ..path("/api", &[&api]) }];
    let proxy = Proxy::start(&Table::of(vec![wiki]));
    for (target, answer) in [
        ("/api", "api /"),
        ("/api/", "api /"),
        ("/api?x=1", "api /?x=1"),
        ("/api/v2/%C3%A9?x", "api /v2/%C3%A9?x"),
        ("/api/api", "api /api"),
        ("/apix", "root /apix"),
        ("/api//evil.example/x", "api /evil.example/x"),
    ] {
        assert_eq!(ask(&proxy, target), answer);
    }
}

/// `/admin` goes to one backend and everything else to another; `answer` is what the client gets.
fn spelled(target: &str) -> String {
    let (root, admin) = (telling("root"), telling("admin"));
    let mut wiki = vhost("wiki", &[root.addr]);
    wiki.paths = vec![path("/admin", &[&admin])];
    ask(&Proxy::start(&Table::of(vec![wiki])), target)
}

// RFC 3986 §6.2.2: these are all the same path, and the backend gets it in the form in which it was matched.
#[test]
fn other_spellings_of_a_path_lead_to_the_same_backend() {
    for target in [
        "/%61dmin",
        "/%61%64%6d%69%6e",
        "/%61%64%6D%69%6E",
        "/x/../admin",
        "/./admin",
        "/x/y/../../admin",
        "/x/%2e%2e/admin",
        "/x/.%2E/admin",
        "/../admin",
        "//admin",
        "///admin",
        "/x;/../admin",
    ] {
        assert_eq!(spelled(target), "admin /admin", "{target}");
    }
    assert_eq!(spelled("/admin/../x"), "root /x");
    assert_eq!(spelled("/admin/%2e%2e/x"), "root /x");
    assert_eq!(spelled("/adm%69n/x?y=/../z"), "admin /admin/x?y=/../z");
}

#[test]
fn paths_that_a_backend_may_read_differently_are_refused() {
    for target in [
        "/admin;x",
        "/admin;x=1/y",
        "/x/..;/admin",
        "/admin%2Fx",
        "/x%2F..%2Fadmin",
        "/x/..%2Fadmin",
        "/%2Fadmin",
        "/.//admin/..;/x",
        "/admin%00",
        "/admin%",
        "/admin%zz",
        "/%2",
        "/\\admin",
        "/x\\..\\admin",
        "/x%5C..%5Cadmin",
    ] {
        let answer = spelled(target);
        assert!(answer == "400", "{target}: {answer}");
    }
    // What is harmless is left as it is.
    for target in ["/a%2Fb", "/a;b/c", "/a//b", "/files/%D0%B9%20x", "/a%3Bb"] {
        assert_eq!(spelled(target), format!("root {target}"));
    }
}

#[test]
fn a_refused_path_has_its_reason_and_the_connection_lives() {
    let (root, admin) = (telling("root"), telling("admin"));
    let mut wiki = vhost("wiki", &[root.addr]);
    wiki.paths = vec![path("/admin", &[&admin])];
    let proxy = Proxy::start(&Table::of(vec![wiki]));
    let mut client = proxy.connect();
    client.send("GET /admin;x HTTP/1.1\r\nHost: wiki.prox.local\r\n\r\n");
    assert_eq!(client.response().status, 400);
    client.send("GET /ok HTTP/1.1\r\nHost: wiki.prox.local\r\n\r\n");
    assert_eq!(client.response().text(), "root /ok");
    assert_eq!(proxy.count(Reason::PathRefused), 1);
}

#[test]
fn a_vhost_without_paths_passes_every_target_on_as_it_came() {
    let root = telling("root");
    let proxy = Proxy::start(&Table::of(vec![vhost("wiki", &[root.addr])]));
    for target in ["/x/../y", "//a//b", "/%61;x", "/a%2Fb", "/a\\b", "/%zz"] {
        assert_eq!(ask(&proxy, target), format!("root {target}"));
    }
    let mut client = proxy.connect();
    client.send("OPTIONS * HTTP/1.1\r\nHost: wiki.prox.local\r\n\r\n");
    assert_eq!(client.response().text(), "root *");
}

#[test]
fn a_redirect_sends_path_and_query_along() {
    let root = telling("root");
    let mut wiki = vhost("wiki", &[root.addr]);
    wiki.paths = vec![
        VhostPath { redirect: redirect("https://new.example/base{uri}", 301), ..path("/old", &[]) },
        VhostPath { redirect: redirect("https://new.example{uri}", 308), strip: true, ..path("/cut", &[]) },
        VhostPath { redirect: redirect("/here", 302), ..path("/there", &[]) },
        VhostPath { redirect: redirect("https://login.example/?to={uri}", 303), ..path("/login", &[]) },
    ];
    let proxy = Proxy::start(&Table::of(vec![wiki]));
    for (target, status, location) in [
        ("/old/a?b=c", 301, "https://new.example/base/old/a?b=c"),
        ("/cut/a?b=c", 308, "https://new.example/a?b=c"),
        ("/cut", 308, "https://new.example/"),
        ("/cut//evil.example", 308, "https://new.example/evil.example"),
        ("/there/a?b", 302, "/here"),
        ("/login/a?b=c&d", 303, "https://login.example/?to=/login/a%3Fb%3Dc%26d"),
        ("/old/%0d%0aSet-Cookie:x", 301, "https://new.example/base/old/%0D%0ASet-Cookie:x"),
    ] {
        let response = proxy.get("wiki.prox.local", target);
        assert_eq!((response.status, response.header("location")), (status, vec![location]), "{target}");
        assert_eq!(response.header("content-length"), ["0"], "{target}");
    }
    assert_eq!(root.requests().len(), 0);
}

#[test]
fn a_redirected_vhost_needs_no_backend() {
    let gone = Vhost { redirect: redirect("https://new.example{uri}", 308), ..vhost("gone", &[]) };
    let proxy = Proxy::start(&Table::of(vec![gone]));
    let mut client = proxy.connect();
    client.send("POST /form?x HTTP/1.1\r\nHost: gone.prox.local\r\nContent-Length: 0\r\n\r\n");
    let response = client.response();
    assert_eq!((response.status, response.header("location")), (308, vec!["https://new.example/form?x"]));
    // The connection is open for the next one.
    client.send("HEAD / HTTP/1.1\r\nHost: gone.prox.local\r\n\r\n");
    assert_eq!(client.response().header("location"), ["https://new.example/"]);
}

#[test]
fn wildcards_and_the_default_vhost_take_what_nobody_else_has() {
    let (exact, shop, deep, rest) = (telling("exact"), telling("shop"), telling("deep"), telling("rest"));
    let wildcard = |app: &str, host: &str, backend: &Backend| Vhost {
        hostname: host.parse().unwrap(),
        aliases: Vec::new(),
        ..vhost(app, &[backend.addr])
    };
    let mut default = vhost("rest", &[rest.addr]);
    default.default = true;
    let table = Table::of(vec![
        wildcard("exact", "a.shop.prox.local", &exact),
        wildcard("shop", "*.shop.prox.local", &shop),
        wildcard("deep", "*.deep.shop.prox.local", &deep),
        with(default, |policy| policy.host = HostPolicy::Preserve),
    ]);
    let proxy = Proxy::start(&table);
    for (host, name) in [
        ("a.shop.prox.local", "exact"),
        ("A.Shop.prox.local:80", "exact"),
        ("b.shop.prox.local", "shop"),
        ("x.a.shop.prox.local", "shop"),
        ("x.deep.shop.prox.local", "deep"),
        ("y.x.deep.shop.prox.local.", "deep"),
        ("deep.shop.prox.local", "shop"),
        ("shop.prox.local", "rest"),
        ("10.20.0.1", "rest"),
        ("[::1]:80", "rest"),
        ("nobody.example", "rest"),
    ] {
        assert_eq!(proxy.get(host, "/").text(), format!("{name} /"), "{host}");
    }
    assert_eq!(rest.requests()[3].header("host"), ["nobody.example"]);
    // HTTP/1.0 without a host is for nobody, and so for the default.
    let mut old = proxy.connect();
    old.send("GET / HTTP/1.0\r\n\r\n");
    assert_eq!(old.response().text(), "rest /");
    assert_eq!(proxy.count(Reason::UnknownHost), 0);
}
