//! What the access log says beside Caddy's keys.

use std::io::Read;
use std::path::PathBuf;

use proximity_proxy::{AccessLog, Reason};
use proximity_table::{
    BackendTarget, BasicAuth, BasicUser, ForwardAuth, LogPolicy, LogSettings, ProxySettings, Vhost,
};
use serde_json::Value;

use crate::scripts::nobody;
use crate::support::{Backend, Proxy, Table, vhost, with};

/// A proxy whose log is read when it has ended.
struct Logged {
    proxy: Proxy,
    log: AccessLog,
    dir: PathBuf,
}

impl Logged {
    fn start(name: &str, vhosts: Vec<Vhost>) -> Logged {
        let dir = std::env::temp_dir().join(format!("proximity-proxy-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        let log = AccessLog::start(dir.clone(), LogSettings::default(), |trouble| panic!("{trouble}"));
        let log = log.unwrap();
        let proxy = Proxy::with(&Table::of(vhosts), ProxySettings::default(), Some(log.sink()));
        Logged { proxy, log, dir }
    }

    /// The lines of a file.
    fn lines(self, file: &str) -> Vec<Value> {
        self.proxy.join();
        assert!(self.log.finish());
        let text = std::fs::read_to_string(self.dir.join(file)).unwrap();
        std::fs::remove_dir_all(&self.dir).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

/// An answer of ten octets that breaks off after three.
fn breaking_off() -> Backend {
    Backend::script(|mut conn| {
        conn.request();
        conn.write("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc");
    })
}

#[test]
fn the_backend_is_named_and_nothing_else_of_an_ordinary_answer() {
    let backend = Backend::answering("hello");
    let logged = Logged::start("backend", vec![vhost("wiki", &[backend.addr])]);
    assert_eq!(logged.proxy.get("wiki.prox.local", "/").status, 200);
    let lines = logged.lines("wiki.prox.local.log");
    assert_eq!(lines.len(), 1);
    assert_eq!(lines[0]["backend"], backend.addr.to_string());
    assert_eq!((lines[0].get("reason"), lines[0].get("aborted")), (None, None));
    assert_eq!(lines[0]["user_id"], "");
}

#[test]
fn a_page_has_its_reason_and_the_backend_that_was_tried() {
    let gone = nobody();
    let logged = Logged::start("refused", vec![vhost("wiki", &[gone])]);
    assert_eq!(logged.proxy.get("wiki.prox.local", "/").status, 502);
    let lines = logged.lines("wiki.prox.local.log");
    assert_eq!((&lines[0]["status"], &lines[0]["reason"]), (&502.into(), &"backend_refused".into()));
    assert_eq!((&lines[0]["backend"], lines[0].get("aborted")), (&gone.to_string().into(), None));
}

#[test]
fn a_page_that_no_backend_was_asked_for_names_none() {
    let logged = Logged::start("unknown", Vec::new());
    assert_eq!(logged.proxy.get("nobody.prox.local", "/").status, 404);
    let lines = logged.lines("default.log");
    assert_eq!((&lines[0]["reason"], lines[0].get("backend")), (&"unknown_host".into(), None));
}

#[test]
fn an_answer_that_the_backend_breaks_off_is_marked_and_logged_however_few_are() {
    let backend = breaking_off();
    let rare = with(vhost("wiki", &[backend.addr]), |policy| {
        policy.log = LogPolicy { enabled: true, sample: u32::MAX };
    });
    let logged = Logged::start("cut", vec![rare]);
    let mut client = logged.proxy.connect();
    client.send("GET / HTTP/1.1\r\nHost: wiki.prox.local\r\n\r\n");
    assert_eq!(client.head().status, 200);
    // It stays to the end: one that says goodbye first would be the one that broke off.
    let mut body = Vec::new();
    client.stream.read_to_end(&mut body).unwrap();
    assert_eq!(body, b"abc");
    let lines = logged.lines("wiki.prox.local.log");
    assert_eq!((&lines[0]["status"], &lines[0]["size"]), (&200.into(), &3.into()));
    assert_eq!((&lines[0]["reason"], &lines[0]["aborted"]), (&"backend_cut".into(), &true.into()));
}

#[test]
fn an_answer_that_the_client_does_not_wait_for_is_marked() {
    let backend = Backend::script(|mut conn| {
        conn.request();
        conn.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n");
        // Until the proxy goes.
        conn.request();
    });
    let logged = Logged::start("left", vec![vhost("wiki", &[backend.addr])]);
    let mut client = logged.proxy.connect();
    client.send("GET / HTTP/1.1\r\nHost: wiki.prox.local\r\n\r\n");
    assert_eq!(client.head().status, 200);
    drop(client);
    logged.proxy.until("noticed", |totals| totals.of(Reason::ClientGone) == 1);
    let lines = logged.lines("wiki.prox.local.log");
    assert_eq!((&lines[0]["status"], &lines[0]["reason"]), (&200.into(), &"client_gone".into()));
    assert_eq!(lines[0]["aborted"], true);
}

#[test]
fn a_user_is_named_by_the_right_password_only() {
    // crypt(3) of `secret`.
    const HASH: &str = "$2b$04$abcdefghijklmnopqrstuu2r9OfJnfCsdneAXAGHnS4UpFFP8WIrW";
    let backend = Backend::answering("hello");
    let guarded = with(vhost("wiki", &[backend.addr]), |policy| {
        let alice = BasicUser { name: "alice".to_owned(), hash: HASH.to_owned() };
        policy.basic_auth = Some(BasicAuth { realm: "wiki".to_owned(), users: vec![alice] });
    });
    let logged = Logged::start("user", vec![guarded]);
    // `alice:wrong`, then `alice:secret` as it is checked, and as it is remembered.
    for (credentials, status) in
        [("YWxpY2U6d3Jvbmc=", 401), ("YWxpY2U6c2VjcmV0", 200), ("YWxpY2U6c2VjcmV0", 200)]
    {
        let mut client = logged.proxy.connect();
        client.send(&format!(
            "GET / HTTP/1.1\r\nHost: wiki.prox.local\r\nAuthorization: Basic {credentials}\r\n\r\n"
        ));
        assert_eq!(client.response().status, status);
    }
    let lines = logged.lines("wiki.prox.local.log");
    let users: Vec<_> = lines.iter().map(|line| line["user_id"].as_str().unwrap()).collect();
    assert_eq!(users, ["", "alice", "alice"]);
    assert_eq!((&lines[0]["reason"], lines[0].get("backend")), (&"unauthorized".into(), None));
}

#[test]
fn a_user_is_named_by_the_service_that_lets_the_request_pass() {
    let backend = Backend::answering("hello");
    let service = Backend::script(|mut conn| {
        while let Some(request) = conn.request() {
            match request.header("x-forwarded-uri")[..] {
                ["/in"] => conn.write("HTTP/1.1 200 OK\r\nRemote-User: bob\r\nContent-Length: 0\r\n\r\n"),
                _ => conn.write("HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n"),
            }
        }
    });
    let to = service.addr;
    let guarded = with(vhost("wiki", &[backend.addr]), |policy| {
        policy.forward_auth = Some(ForwardAuth {
            to: BackendTarget::Address(to),
            path: "/".to_owned(),
            copy_headers: vec!["remote-user".to_owned()],
        });
    });
    let logged = Logged::start("service", vec![guarded]);
    let mut client = logged.proxy.connect();
    for (path, status) in [("/in", 200), ("/out", 403)] {
        // What a client claims is nobody's name.
        client.send(&format!("GET {path} HTTP/1.1\r\nHost: wiki.prox.local\r\nRemote-User: root\r\n\r\n"));
        assert_eq!(client.response().status, status, "{path}");
    }
    drop(client);
    let lines = logged.lines("wiki.prox.local.log");
    assert_eq!(
        (&lines[0]["user_id"], &lines[0]["backend"]),
        (&"bob".into(), &backend.addr.to_string().into())
    );
    // The service answered the other one itself.
    assert_eq!((&lines[1]["user_id"], &lines[1]["backend"]), (&"".into(), &service.addr.to_string().into()));
}
