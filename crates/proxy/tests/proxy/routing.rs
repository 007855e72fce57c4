use proximity_proxy::Reason;
use proximity_table::{Change, LeaseState, Source};

use crate::support::{Backend, Proxy, Table, lease, vhost};

#[test]
fn the_host_decides_which_backend_answers() {
    let (wiki, shop) = (Backend::answering("wiki"), Backend::answering("shop"));
    let table = Table::of(vec![vhost("wiki", &[wiki.addr]), vhost("shop", &[shop.addr])]);
    let proxy = Proxy::start(&table);
    for host in ["wiki.prox.local", "WIKI.prox.LOCAL:80", "wiki.prox.local.", "wiki.example.org"] {
        assert_eq!(proxy.get(host, "/").text(), "wiki", "{host}");
    }
    assert_eq!(proxy.get("shop.prox.local", "/").text(), "shop");
    let mut client = proxy.connect();
    client.send("GET http://shop.prox.local/a?b=1 HTTP/1.1\r\nHost: wiki.prox.local\r\n\r\n");
    assert_eq!(client.response().text(), "shop");
    let last = shop.requests().pop().unwrap();
    assert_eq!(last.line, "GET /a?b=1 HTTP/1.1");
    assert_eq!(last.header("x-forwarded-host"), ["shop.prox.local"]);
}

#[test]
fn an_unknown_host_gets_a_page_that_lists_apps_to_insiders_only() {
    let backend = Backend::answering("wiki");
    let outside = Proxy::start(&Table::of(vec![vhost("wiki", &[backend.addr])]));
    let page = outside.get("nobody.prox.local", "/");
    assert_eq!((page.status, page.header("cache-control")), (404, vec!["no-store"]));
    assert!(!page.text().contains("wiki"), "{}", page.text());
    assert_eq!(outside.count(Reason::UnknownHost), 1);

    let mut table = Table::new("127.0.0.1/8", 80);
    table.change(Change::Vhost(Source::Api, vhost("wiki", &[backend.addr]).into()));
    let page = Proxy::start(&table).get("nobody.prox.local", "/");
    assert_eq!(page.status, 404);
    assert!(page.text().contains("<a href=\"//wiki.prox.local/\">wiki</a>"), "{}", page.text());
}

#[test]
fn a_stopped_and_a_disabled_app_say_so() {
    let mut table = Table::new("127.0.0.1/8", 80);
    table.change(Change::Lease(lease("db", "127.0.0.9".parse().unwrap(), 1, LeaseState::Expired)));
    let mut off = vhost("off", &["127.0.0.1:9".parse().unwrap()]);
    off.enabled = false;
    table.change(Change::Vhost(Source::Api, off.into()));
    let proxy = Proxy::start(&table);
    let page = proxy.get("db.prox.local", "/");
    assert_eq!((page.status, proxy.count(Reason::Stopped)), (503, 1));
    assert!(page.text().contains("stopped"));
    let page = proxy.get("off.prox.local", "/");
    assert_eq!((page.status, proxy.count(Reason::Disabled)), (503, 1));
    assert!(page.text().contains("switched off"));
}

#[test]
fn api_clients_get_problems_instead_of_pages() {
    let proxy = Proxy::start(&Table::of(vec![]));
    let mut client = proxy.connect();
    client.send("GET / HTTP/1.1\r\nHost: x.prox.local\r\nAccept: application/json\r\n\r\n");
    let response = client.response();
    assert_eq!(response.header("content-type"), ["application/problem+json"]);
    let problem: serde_json::Value = serde_json::from_slice(&response.body).unwrap();
    assert_eq!((&problem["status"], &problem["reason"]), (&404.into(), &"unknown_host".into()));
}

#[test]
fn a_change_of_the_table_is_seen_by_the_next_request_of_an_open_connection() {
    let backend = Backend::answering("wiki");
    let mut table = Table::of(vec![]);
    let proxy = Proxy::start(&table);
    let mut client = proxy.connect();
    let mut ask = || {
        client.send("GET / HTTP/1.1\r\nHost: wiki.prox.local\r\n\r\n");
        client.response().status
    };
    assert_eq!(ask(), 404);
    table.change(Change::Vhost(Source::Api, vhost("wiki", &[backend.addr]).into()));
    assert_eq!(ask(), 200);
    table.change(Change::RemoveVhost("wiki".parse().unwrap()));
    assert_eq!(ask(), 404);
    assert_eq!(proxy.totals().connections, 1);
}
