use proximity_proxy::Reason;

use crate::scripts::{nobody, swallowing};
use crate::support::{Backend, Proxy, Table, vhost};

#[test]
fn headers_are_rebuilt_for_the_backend_and_stripped_for_the_client() {
    let backend = Backend::script(|mut conn| {
        while conn.request().is_some() {
            conn.write(
                "HTTP/1.1 200 OK\r\nConnection: keep-alive, X-Secret\r\nX-Secret: 1\r\nKeep-Alive: timeout=5\r\n\
                 Set-Cookie: a=1\r\nSet-Cookie: b=2\r\nContent-Length: 0\r\n\r\n",
            );
        }
    });
    let proxy = Proxy::start(&Table::of(vec![vhost("wiki", &[backend.addr])]));
    let mut client = proxy.connect();
    client.send(
        "GET /a HTTP/1.1\r\nHost: Wiki.prox.local:80\r\nX-Forwarded-For: 6.6.6.6\r\nX-Real-IP: 6.6.6.6\r\n\
         X-Forwarded-Proto: https\r\nX-Forwarded-Host: evil\r\nForwarded: for=6.6.6.6\r\nConnection: keep-alive, X-Hop\r\n\
         X-Hop: 1\r\nTE: trailers\r\nUpgrade: h2c\r\nCookie: c=1\r\nAuthorization: Basic eA==\r\n\r\n",
    );
    let response = client.response();
    assert_eq!(response.status, 200);
    assert_eq!(response.header("set-cookie"), ["a=1", "b=2"]);
    for name in ["x-secret", "keep-alive", "connection"] {
        assert!(response.header(name).is_empty(), "{name}: {response:?}");
    }
    let request = backend.requests().remove(0);
    assert_eq!(request.header("host"), [backend.addr.to_string()]);
    assert_eq!(request.header("x-real-ip"), ["127.0.0.1"]);
    assert_eq!(request.header("x-forwarded-for"), ["127.0.0.1"]);
    assert_eq!(request.header("x-forwarded-proto"), ["http"]);
    assert_eq!(request.header("x-forwarded-host"), ["Wiki.prox.local:80"]);
    assert_eq!(request.header("cookie"), ["c=1"]);
    assert_eq!(request.header("authorization"), ["Basic eA=="]);
    assert_eq!(request.header("forwarded"), ["for=127.0.0.1;host=\"Wiki.prox.local:80\";proto=http"]);
    for name in ["connection", "x-hop", "te", "upgrade"] {
        assert!(request.header(name).is_empty(), "{name}: {request:?}");
    }
}

#[test]
fn no_header_of_a_client_can_stand_in_for_ours() {
    let backend = Backend::answering("");
    let proxy = Proxy::start(&Table::of(vec![vhost("wiki", &[backend.addr])]));
    let mut client = proxy.connect();
    client.send(
        "GET / HTTP/1.1\r\nHost: wiki.prox.local\r\nX_Forwarded_For: 6.6.6.6\r\nX-Real_IP: 6.6.6.6\r\n\
         X.Forwarded.Host: evil\r\nProxy: http://evil\r\nX-Forwarded-Ssl: on\r\nX-Original-URL: /admin\r\n\
         True-Client-IP: 6.6.6.6\r\nX-Api-Key: 1\r\n\r\n",
    );
    assert_eq!(client.response().status, 200);
    let request = backend.requests().remove(0);
    let mut names: Vec<&str> = request.headers.iter().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    let ours = ["x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip"];
    let expected: Vec<&str> = ["forwarded", "host", "x-api-key"].into_iter().chain(ours).collect();
    assert_eq!(names, expected);
    assert_eq!(proxy.count(Reason::HeaderName), 3);
}

#[test]
fn several_backends_take_turns_and_a_dead_one_is_passed_over() {
    let (one, two) = (Backend::answering("1"), Backend::answering("2"));
    let table = Table::of(vec![
        vhost("both", &[one.addr, two.addr]),
        vhost("half", &[nobody(), two.addr]),
        vhost("none", &[nobody()]),
    ]);
    let proxy = Proxy::start(&table);
    let answers: String = (0..6).map(|_| proxy.get("both.prox.local", "/").text()).collect();
    assert_eq!(answers, "121212");
    for _ in 0..4 {
        assert_eq!(proxy.get("half.prox.local", "/").text(), "2");
    }
    let page = proxy.get("none.prox.local", "/");
    assert_eq!((page.status, proxy.count(Reason::BackendRefused)), (502, 1));
    assert!(page.text().contains("does not accept connections"));
    assert!(!page.text().contains("127.0.0.1"), "internals shown to a stranger: {}", page.text());
}

#[test]
fn an_answer_that_is_none_gives_a_page() {
    let silent = Backend::script(|mut conn| drop(conn.request()));
    let noise = Backend::script(|mut conn| {
        conn.request();
        conn.write("this is not HTTP\r\n\r\n");
    });
    let table = Table::of(vec![vhost("silent", &[silent.addr]), vhost("noise", &[noise.addr])]);
    let proxy = Proxy::start(&table);
    for host in ["silent.prox.local", "noise.prox.local"] {
        assert_eq!(proxy.get(host, "/").status, 502, "{host}");
    }
    assert_eq!((proxy.count(Reason::BackendBroke), proxy.count(Reason::BackendNonsense)), (1, 1));
    assert_eq!(silent.requests().len(), 1, "a request that was sent is not sent again on a new connection");
}

#[test]
fn an_address_that_swallows_packets_times_out() {
    let (addr, _held) = swallowing();
    let mut hole = vhost("hole", &[addr]);
    hole.policy = std::sync::Arc::new(proximity_table::VhostPolicy {
        timeouts: proximity_table::Timeouts { connect: 1, ..Default::default() },
        ..Default::default()
    });
    let proxy = Proxy::start(&Table::of(vec![hole]));
    let page = proxy.get("hole.prox.local", "/");
    assert_eq!((page.status, proxy.count(Reason::BackendTimedOut)), (504, 1));
}

#[test]
fn head_empty_and_http_1_0_answers_pass() {
    let backend = Backend::script(|mut conn| {
        while let Some(request) = conn.request() {
            match request.line.split(' ').nth(1).unwrap() {
                "/empty" => conn.write("HTTP/1.1 204 No Content\r\n\r\n"),
                "/cached" => conn.write("HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\n\r\n"),
                "/old" => {
                    conn.write("HTTP/1.0 200 OK\r\n\r\nuntil the end");
                    return;
                }
                _ => conn.write("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"),
            }
        }
    });
    let proxy = Proxy::start(&Table::of(vec![vhost("wiki", &[backend.addr])]));
    let mut client = proxy.connect();
    client.send("HEAD / HTTP/1.1\r\nHost: wiki.prox.local\r\n\r\n");
    let head = client.head();
    assert_eq!((head.status, head.header("content-length")), (200, vec!["1000"]));
    for (path, status) in [("/empty", 204), ("/cached", 304)] {
        client.send(&format!("GET {path} HTTP/1.1\r\nHost: wiki.prox.local\r\n\r\n"));
        let head = client.head();
        assert_eq!(head.status, status);
    }
    assert_eq!(backend.accepted(), 1, "answers without body keep the connection");
    client.send("GET /old HTTP/1.1\r\nHost: wiki.prox.local\r\n\r\n");
    assert_eq!(client.response().text(), "until the end");
    let mut old = proxy.connect();
    old.send("GET /empty HTTP/1.0\r\nHost: wiki.prox.local\r\n\r\n");
    assert_eq!(old.head().status, 204);
    assert!(old.is_closed(), "HTTP/1.0 closes unless asked otherwise");
}
