//! What happens to header fields on the way to a backend and back.

use std::path::PathBuf;

use proximity_proxy::{AccessLog, Reason};
use proximity_table::{
    BackendProtocol, BackendTarget, BackendTls, BasicAuth, BasicUser, ForwardAuth, HeaderEdits, HealthPolicy,
    HostPolicy, LogSettings, ProxySettings, Vhost, VhostPath, VhostPolicy,
};

use crate::support::{Backend, Client, Proxy, Request, Table, vhost, with};

/// What the backend gets of a request with these fields.
fn onward(settings: ProxySettings, fields: &str) -> Request {
    let backend = Backend::answering("");
    let proxy = Proxy::with(&Table::of(vec![vhost("wiki", &[backend.addr])]), settings, None);
    let mut client = proxy.connect();
    client.send(&format!("GET / HTTP/1.1\r\nHost: wiki.prox.local\r\n{fields}\r\n"));
    assert_eq!(client.response().status, 200);
    backend.requests().remove(0)
}

fn trusting(networks: &[&str]) -> ProxySettings {
    let trusted_proxies = networks.iter().map(|network| network.parse().unwrap()).collect();
    ProxySettings { trusted_proxies, ..ProxySettings::default() }
}

fn fields(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
}

fn names(list: &[&str]) -> Vec<String> {
    list.iter().map(|name| name.to_string()).collect()
}

#[test]
fn the_host_is_the_backends_or_the_clients_as_the_vhost_says() {
    let backend = Backend::answering("");
    let table = Table::of(vec![
        vhost("wiki", &[backend.addr]),
        with(vhost("shop", &[backend.addr]), |policy| policy.host = HostPolicy::Preserve),
    ]);
    let proxy = Proxy::start(&table);
    assert_eq!(proxy.get("wiki.prox.local", "/").status, 200);
    assert_eq!(proxy.get("Shop.Prox.Local:80", "/").status, 200);
    let requests = backend.requests();
    assert_eq!(requests[0].header("host"), [backend.addr.to_string()]);
    assert_eq!(requests[1].header("host"), ["Shop.Prox.Local:80"]);
}

#[test]
fn edits_change_both_directions() {
    let backend = Backend::script(|mut conn| {
        while conn.request().is_some() {
            conn.write(
                "HTTP/1.1 200 OK\r\nX-Frame-Options: DENY\r\nServer: old\r\nserver: older\r\nX-Both: 1\r\n\
                 Content-Length: 0\r\n\r\n",
            );
        }
    });
    let wiki = with(vhost("wiki", &[backend.addr]), |policy| {
        policy.request_headers = HeaderEdits {
            set: fields(&[("x-set", "ours"), ("x-forwarded-proto", "https")]),
            add: fields(&[("x-add", "more")]),
            remove: names(&["cookie", "x-real-ip"]),
        };
        policy.response_headers = HeaderEdits {
            set: fields(&[("server", "new")]),
            add: fields(&[("x-both", "2")]),
            remove: names(&["x-frame-options"]),
        };
    });
    let proxy = Proxy::start(&Table::of(vec![wiki]));
    let mut client = proxy.connect();
    client.send(
        "GET / HTTP/1.1\r\nHost: wiki.prox.local\r\nX-Set: theirs\r\nx-set: again\r\nX-Add: one\r\nCOOKIE: a=b\r\n\r\n",
    );
    let response = client.response();
    assert_eq!(response.header("server"), ["new"]);
    assert_eq!(response.header("x-both"), ["1", "2"]);
    assert!(response.header("x-frame-options").is_empty());
    let request = backend.requests().remove(0);
    assert_eq!(request.header("x-set"), ["ours"]);
    assert_eq!(request.header("x-add"), ["one", "more"]);
    assert_eq!(request.header("x-forwarded-proto"), ["https"]);
    for name in ["cookie", "x-real-ip"] {
        assert!(request.header(name).is_empty(), "{name}: {request:?}");
    }
    assert_eq!(request.header("x-forwarded-for"), ["127.0.0.1"], "what was not named stays");
}

#[test]
fn via_is_told_both_ways_when_it_is_wanted() {
    for via in [false, true] {
        let backend = Backend::script(|mut conn| {
            while conn.request().is_some() {
                conn.write("HTTP/1.1 200 OK\r\nVia: 1.1 inner\r\nContent-Length: 0\r\n\r\n");
            }
        });
        let settings = ProxySettings { via, ..ProxySettings::default() };
        let proxy = Proxy::with(&Table::of(vec![vhost("wiki", &[backend.addr])]), settings, None);
        let mut client = proxy.connect();
        client.send("GET / HTTP/1.1\r\nHost: wiki.prox.local\r\nVia: 1.0 outer\r\n\r\n");
        let ours: &[&str] = if via { &["1.1 proximity"] } else { &[] };
        assert_eq!(client.response().header("via"), [&["1.1 inner"], ours].concat());
        // RFC 9110 §7.6.3: each recipient appends its own.
        assert_eq!(backend.requests()[0].header("via"), [&["1.0 outer"], ours].concat());
        let mut old = proxy.connect();
        old.send("GET / HTTP/1.0\r\nHost: wiki.prox.local\r\n\r\n");
        assert_eq!(old.response().status, 200);
        let received: &[&str] = if via { &["1.0 proximity"] } else { &[] };
        assert_eq!(backend.requests()[1].header("via"), received, "the version in which it came");
    }
}

const CHAIN: &str = "X-Forwarded-For: 203.0.113.7, 10.9.9.9\r\nX-Forwarded-Proto: https\r\n\
                     X-Forwarded-Host: shop.example\r\nX-Real-IP: 6.6.6.6\r\n";

#[test]
fn a_trusted_proxys_account_is_extended() {
    let request = onward(trusting(&["127.0.0.0/8", "10.0.0.0/8"]), CHAIN);
    assert_eq!(request.header("x-forwarded-for"), ["203.0.113.7, 10.9.9.9, 127.0.0.1"]);
    assert_eq!(request.header("x-real-ip"), ["203.0.113.7"]);
    assert_eq!(request.header("x-forwarded-proto"), ["https"]);
    assert_eq!(request.header("x-forwarded-host"), ["shop.example"]);
    assert_eq!(
        request.header("forwarded"),
        ["for=203.0.113.7, for=10.9.9.9, for=127.0.0.1;host=shop.example;proto=https"]
    );
}

#[test]
fn the_chain_is_believed_only_as_far_as_trusted_proxies_wrote_it() {
    // 10.9.9.9 is not trusted: it is the client, and what it says of others is its own invention.
    let request = onward(trusting(&["127.0.0.0/8"]), CHAIN);
    assert_eq!(request.header("x-real-ip"), ["10.9.9.9"]);
    assert!(!request.header("x-forwarded-for")[0].contains("203.0.113.7"), "{request:?}");
}

#[test]
fn forwarded_of_a_trusted_proxy_is_read_too() {
    let told = "Forwarded: for=\"[2001:db8::7]:4711\";proto=https;host=shop.example\r\n";
    let request = onward(trusting(&["127.0.0.1/32"]), told);
    assert_eq!(request.header("x-real-ip"), ["2001:db8::7"]);
    assert_eq!(request.header("x-forwarded-for"), ["2001:db8::7, 127.0.0.1"]);
    assert_eq!(request.header("x-forwarded-proto"), ["https"]);
    assert!(
        request.header("forwarded")[0].starts_with("for=\"[2001:db8::7]\", for=127.0.0.1;"),
        "{request:?}"
    );
}

#[test]
fn a_stranger_cannot_say_who_it_is() {
    let request = onward(trusting(&["10.0.0.0/8"]), CHAIN);
    assert_eq!(request.header("x-forwarded-for"), ["127.0.0.1"]);
    assert_eq!(request.header("x-real-ip"), ["127.0.0.1"]);
    assert_eq!(request.header("x-forwarded-proto"), ["http"]);
    assert_eq!(request.header("x-forwarded-host"), ["wiki.prox.local"]);
    assert_eq!(request.header("forwarded"), ["for=127.0.0.1;host=wiki.prox.local;proto=http"]);
}

#[test]
fn a_trusted_proxy_that_cannot_be_read_is_refused() {
    let backend = Backend::answering("");
    let table = Table::of(vec![vhost("wiki", &[backend.addr])]);
    let proxy = Proxy::with(&table, trusting(&["127.0.0.1/32"]), None);
    for field in ["X-Forwarded-For: evil", "Forwarded: for=;;="] {
        let mut client = proxy.connect();
        client.send(&format!("GET / HTTP/1.1\r\nHost: wiki.prox.local\r\n{field}\r\n\r\n"));
        assert_eq!(client.response().status, 400, "{field}");
    }
    assert_eq!((proxy.count(Reason::ForwardedHeader), backend.requests().len()), (2, 0));
}

#[test]
fn the_log_tells_the_client_behind_a_trusted_proxy() {
    let dir = std::env::temp_dir().join(format!("proximity-proxy-client-ip-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    let backend = Backend::answering("");
    let log = AccessLog::start(PathBuf::clone(&dir), LogSettings::default(), |trouble| panic!("{trouble}"))
        .unwrap();
    let table = Table::of(vec![vhost("wiki", &[backend.addr])]);
    let proxy = Proxy::with(&table, trusting(&["127.0.0.1/32"]), Some(log.sink()));
    let mut client = proxy.connect();
    for told in ["", "X-Forwarded-For: 203.0.113.7\r\n", "X-Forwarded-For: 203.0.113.8\r\n", ""] {
        client.send(&format!("GET / HTTP/1.1\r\nHost: wiki.prox.local\r\n{told}\r\n"));
        assert_eq!(client.response().status, 200);
    }
    drop(client);
    proxy.join();
    assert!(log.finish());
    let text = std::fs::read_to_string(dir.join("wiki.prox.local.log")).unwrap();
    std::fs::remove_dir_all(&dir).unwrap();
    let line = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["request"].clone();
    let clients: Vec<_> =
        text.lines().map(|text| line(text)["client_ip"].as_str().unwrap().to_owned()).collect();
    assert_eq!(clients, ["127.0.0.1", "203.0.113.7", "203.0.113.8", "127.0.0.1"]);
    assert!(text.lines().all(|text| line(text)["remote_ip"] == "127.0.0.1"), "{text}");
}

fn answer_of(raw: &'static str) -> (Client, Proxy) {
    let backend = Backend::script(move |mut conn| {
        conn.request();
        conn.write(raw);
    });
    let proxy = Proxy::start(&Table::of(vec![vhost("wiki", &[backend.addr])]));
    let mut client = proxy.connect();
    client.send("GET / HTTP/1.1\r\nHost: wiki.prox.local\r\nTE: trailers\r\nConnection: TE\r\n\r\n");
    (client, proxy)
}

// RFC 9110 §6.6.1: "A recipient with a clock that receives a response message without a Date header field MUST
// […] append a corresponding Date header field".
#[test]
fn a_date_is_added_where_there_is_none() {
    let (mut client, _proxy) = answer_of("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    let response = client.response();
    let [date] = response.header("date")[..] else { panic!("{response:?}") };
    let told = httpdate::parse_http_date(date).unwrap();
    let age = std::time::SystemTime::now().duration_since(told).unwrap_or_default();
    assert!(age.as_secs() < 60, "{date}");
    let then = "Sun, 06 Nov 1994 08:49:37 GMT";
    let (mut client, _proxy) =
        answer_of("HTTP/1.1 200 OK\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(client.response().header("date"), [then]);
}

// RFC 9110 §7.6.1: "Intermediaries MUST parse a received Connection header field before a message is forwarded
// and […] remove any header or trailer field(s) from the message with the same name as the connection-option".
#[test]
fn what_connection_names_stays_behind() {
    let request = onward(
        ProxySettings::default(),
        "Connection: close, X-One,, x-two ,Cookie, X-Forwarded-For, X-Real-IP\r\nX-One: 1\r\nX-Two: 2\r\n\
         X-Three: 3\r\nKeep-Alive: 5\r\nProxy-Connection: keep-alive\r\nTE: trailers, deflate\r\nTrailer: X\r\n",
    );
    for name in ["connection", "x-one", "x-two", "keep-alive", "proxy-connection", "te"] {
        assert!(request.header(name).is_empty(), "{name}: {request:?}");
    }
    assert_eq!(request.header("x-three"), ["3"]);
    // A client cannot have what we say taken away.
    assert_eq!(request.header("x-forwarded-for"), ["127.0.0.1"]);
    assert_eq!(request.header("x-real-ip"), ["127.0.0.1"]);
    let (mut client, _proxy) = answer_of(
        "HTTP/1.1 200 OK\r\nConnection: X-Hop, content-length\r\nX-Hop: 1\r\nProxy-Connection: close\r\n\
         Content-Length: 2\r\n\r\nok",
    );
    let response = client.response();
    assert_eq!((response.text().as_str(), response.header("content-length")), ("ok", vec!["2"]));
    assert!(response.header("x-hop").is_empty() && response.header("proxy-connection").is_empty());
}

/// Objects of another version may ask for what this one cannot do: half of it is not done either.
#[test]
fn a_vhost_whose_policy_cannot_be_carried_out_lets_nobody_in() {
    let backend = Backend::answering("secret");
    let of = |name: &str, change: fn(&mut VhostPolicy)| with(vhost(name, &[backend.addr]), change);
    let unusable = [
        of("removes", |policy| policy.request_headers.remove = names(&["upgrade"])),
        of("sets", |policy| policy.response_headers.set = fields(&[("x-a", "1\r\nX-B: 2")])),
        of("copies", |policy| {
            policy.forward_auth = Some(ForwardAuth {
                to: BackendTarget::Address("127.0.0.1:9".parse().unwrap()),
                path: "/".to_owned(),
                copy_headers: names(&["host"]),
            })
        }),
        of("users", |policy| {
            let users = vec![BasicUser { name: "alice".to_owned(), hash: "secret".to_owned() }];
            policy.basic_auth = Some(BasicAuth { realm: "a".to_owned(), users });
        }),
    ];
    let hosts = ["removes", "sets", "copies", "users"].map(|name| format!("{name}.prox.local"));
    let proxy = Proxy::start(&Table::of(unusable.into()));
    for host in &hosts {
        let mut client = proxy.connect();
        client.send(&format!("GET / HTTP/1.1\r\nHost: {host}\r\nAccept: application/json\r\n\r\n"));
        let response = client.response();
        assert_eq!(response.status, 500, "{host}");
        assert!(response.text().contains("\"reason\":\"misconfigured\""), "{host}: {}", response.text());
    }
    assert_eq!((proxy.count(Reason::Misconfigured), backend.requests().len()), (4, 0));
}

// RFC 9110 §7.6.2: "If the received value is zero (0), the intermediary MUST NOT forward the request; […] If the received
// Max-Forwards value is greater than zero, the intermediary MUST generate an updated Max-Forwards field".
#[test]
fn options_and_trace_go_on_as_often_as_they_may() {
    let backend = Backend::answering("");
    let proxy = Proxy::start(&Table::of(vec![vhost("wiki", &[backend.addr])]));
    let ask = |method: &str, most: &str| {
        let mut client = proxy.connect();
        client.send(&format!("{method} / HTTP/1.1\r\nHost: wiki.prox.local\r\nMax-Forwards: {most}\r\n\r\n"));
        client.response().status
    };
    assert_eq!((ask("OPTIONS", "0"), ask("TRACE", "0")), (405, 405));
    assert_eq!(proxy.count(Reason::MaxForwards), 2);
    assert_eq!((ask("OPTIONS", "7"), ask("TRACE", "1"), ask("GET", "0")), (200, 200, 200));
    let seen: Vec<_> =
        backend.requests().iter().map(|request| request.header("max-forwards").concat()).collect();
    assert_eq!(seen, ["6", "0", ""]);
}

#[test]
fn a_backend_that_sends_clients_to_its_own_address_sends_them_to_the_vhost() {
    let backend = Backend::script(|mut conn| {
        let own = conn.stream.get_ref().local_addr().unwrap();
        while let Some(request) = conn.request() {
            let to = match request.line.split(' ').nth(1).unwrap() {
                "/dir" => format!("http://{own}/dir/?a"),
                "/else" => "https://else.example/".to_owned(),
                _ => "/path".to_owned(),
            };
            conn.write(&format!("HTTP/1.1 301 Moved\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n"));
        }
    });
    let under = |prefix: &str| VhostPath {
        prefix: prefix.to_owned(),
        strip: true,
        backends: vec![BackendTarget::Address(backend.addr)],
        protocol: BackendProtocol::Http,
        tls: BackendTls::default(),
        health: HealthPolicy::default(),
        redirect: None,
    };
    let wiki = Vhost { paths: vec![under("/app")], ..vhost("wiki", &[backend.addr]) };
    let settings = trusting(&["127.0.0.0/8"]);
    let proxy = Proxy::with(&Table::of(vec![wiki]), settings, None);
    let sent_to = |path: &str, fields: &str| {
        let mut client = proxy.connect();
        client.send(&format!("GET {path} HTTP/1.1\r\nHost: wiki.prox.local:8080\r\n{fields}\r\n"));
        client.response().header("location").concat()
    };
    assert_eq!(sent_to("/dir", ""), "http://wiki.prox.local:8080/dir/?a");
    assert_eq!(sent_to("/app/dir", ""), "http://wiki.prox.local:8080/app/dir/?a");
    assert_eq!((sent_to("/else", ""), sent_to("/x", "")), ("https://else.example/".into(), "/path".into()));
    // As it came to the proxy in front of us.
    let front =
        "X-Forwarded-For: 203.0.113.7\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: shop.example\r\n";
    assert_eq!(sent_to("/dir", front), "https://shop.example/dir/?a");
}
