//! Names and passwords, and services that are asked who may pass.

use std::sync::Mutex;
use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;

use base64ct::{Base64, Encoding};
use proximity_proxy::Reason;
use proximity_table::{BackendTarget, BasicAuth, BasicUser, ForwardAuth, Timeouts, VhostPolicy};

use crate::scripts::nobody;
use crate::support::{Backend, BackendConn, PATIENCE, Proxy, Request, Response, Table, vhost, with};

// Made by other implementations: crypt(3), and `argon2 saltsaltsaltsalt -id -t 1 -k 64 -p 1 -l 32 -e`.
pub const BCRYPT: &str = "$2b$04$abcdefghijklmnopqrstuu2r9OfJnfCsdneAXAGHnS4UpFFP8WIrW";
const ARGON2: &str =
    "$argon2id$v=19$m=64,t=1,p=1$c2FsdHNhbHRzYWx0c2FsdA$+v0rf6ETYAIpqJIjJyARZ3W3zqJlkf+0TRXzsLHmR6o";

fn guarded(backend: &Backend, users: &[(&str, &str)]) -> Proxy {
    let users = users.iter().map(|(name, hash)| BasicUser { name: name.to_string(), hash: hash.to_string() });
    let users = users.collect();
    Proxy::start(&Table::of(vec![with(vhost("wiki", &[backend.addr]), |policy| {
        policy.basic_auth = Some(BasicAuth { realm: "the wiki".to_owned(), users });
    })]))
}

fn ask(proxy: &Proxy, fields: &str) -> Response {
    let mut client = proxy.connect();
    client.send(&format!("GET /secret?x=1 HTTP/1.1\r\nHost: wiki.prox.local\r\n{fields}\r\n"));
    client.response()
}

pub fn basic(credentials: &str) -> String {
    format!("Authorization: Basic {}\r\n", Base64::encode_string(credentials.as_bytes()))
}

// RFC 9110 §11.6.1: "A server generating a 401 (Unauthorized) response MUST send a WWW-Authenticate header field".
#[test]
fn only_the_right_name_and_password_pass() {
    let backend = Backend::answering("secret");
    let proxy = guarded(&backend, &[("alice", BCRYPT), ("bob", ARGON2)]);
    for wrong in [
        String::new(),
        basic("alice:wrong"),
        basic("alice:"),
        basic("bob:secret "),
        basic("carol:secret"),
        basic("alice"),
        basic(":"),
        "Authorization: Basic ????\r\n".to_owned(),
        "Authorization: Bearer YWxpY2U6c2VjcmV0\r\n".to_owned(),
        "Authorization:\r\n".to_owned(),
        // Two of them are not one.
        format!("{}{}", basic("alice:wrong"), basic("alice:secret")),
    ] {
        let response = ask(&proxy, &wrong);
        assert_eq!(response.status, 401, "{wrong:?}");
        let challenge = response.header("www-authenticate");
        assert!(challenge.len() == 1 && challenge[0].contains("realm=\"the wiki\""), "{challenge:?}");
    }
    assert_eq!((proxy.count(Reason::Unauthorized), backend.requests().len()), (11, 0));
    for right in ["alice:secret", "bob:secret"] {
        assert_eq!(ask(&proxy, &basic(right)).text(), "secret", "{right}");
    }
}

#[test]
fn a_right_password_is_remembered_and_a_wrong_one_is_not() {
    let backend = Backend::answering("secret");
    // Dear enough to be told from everything else that a request costs.
    let hash = bcrypt::hash_with_salt("secret", 9, [7; 16]).unwrap().to_string();
    let proxy = guarded(&backend, &[("alice", &hash)]);
    let took = |credentials: &str, status: u16| {
        let began = Instant::now();
        assert_eq!(ask(&proxy, &basic(credentials)).status, status);
        began.elapsed()
    };
    let first = took("alice:secret", 200);
    let next = (0..10).map(|_| took("alice:secret", 200)).min().unwrap();
    assert!(next < first / 4, "{next:?} after {first:?}");
    let wrong = (0..3).map(|_| took("alice:wrong", 401)).min().unwrap();
    assert!(wrong > first / 4, "{wrong:?} after {first:?}");
}

#[test]
fn a_refused_upload_is_not_read() {
    let backend = Backend::answering("secret");
    let proxy = guarded(&backend, &[("alice", BCRYPT)]);
    let mut client = proxy.connect();
    client.send("POST / HTTP/1.1\r\nHost: wiki.prox.local\r\nContent-Length: 1000000\r\n\r\nsome");
    assert_eq!(client.response().status, 401);
    assert!(client.is_closed());
}

/// A vhost whose requests are judged by a service, as the two tell of what they get.
struct Judged {
    proxy: Proxy,
    app: Backend,
    service: Backend,
}

fn judged(answer: &'static str) -> Judged {
    judged_by(Backend::script(move |mut conn| {
        while conn.request().is_some() {
            conn.write(answer);
        }
    }))
}

fn judged_by(service: Backend) -> Judged {
    let app = Backend::answering("secret");
    let change = |policy: &mut VhostPolicy| {
        policy.forward_auth = Some(ForwardAuth {
            to: BackendTarget::Address(service.addr),
            path: "/api/verify?rd=x".to_owned(),
            copy_headers: vec!["remote-user".to_owned(), "remote-groups".to_owned()],
        });
        policy.timeouts = Timeouts { header: 1, ..Timeouts::default() };
    };
    let proxy = Proxy::start(&Table::of(vec![with(vhost("wiki", &[app.addr]), change)]));
    Judged { proxy, app, service }
}

const PASSES: &str = "HTTP/1.1 200 OK\r\nRemote-User: alice\r\nX-Other: 1\r\nContent-Length: 2\r\n\r\nok";

#[test]
fn a_service_lets_requests_pass_and_says_for_whom() {
    let judged = judged(PASSES);
    let spoofed = "Cookie: session=1\r\nRemote-User: root\r\nREMOTE-GROUPS: admins\r\nX-Mine: 1\r\n";
    assert_eq!(ask(&judged.proxy, spoofed).text(), "secret");
    let question = judged.service.requests().remove(0);
    assert_eq!(question.line, "GET /api/verify?rd=x HTTP/1.1");
    for (name, value) in [
        ("host", "wiki.prox.local"),
        ("x-forwarded-method", "GET"),
        ("x-forwarded-uri", "/secret?x=1"),
        ("x-forwarded-host", "wiki.prox.local"),
        ("x-forwarded-proto", "http"),
        ("x-forwarded-for", "127.0.0.1"),
        ("cookie", "session=1"),
    ] {
        assert_eq!(question.header(name), [value], "{question:?}");
    }
    let request = judged.app.requests().remove(0);
    assert_eq!(request.header("remote-user"), ["alice"]);
    assert!(request.header("remote-groups").is_empty(), "{request:?}");
    assert!(request.header("x-other").is_empty(), "{request:?}");
    assert_eq!(request.header("x-mine"), ["1"]);
}

#[test]
fn a_trailer_cannot_say_what_only_the_service_may() {
    let judged = judged(PASSES);
    let tape = crate::wiretap::Wiretap::saying("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    let change = |policy: &mut VhostPolicy| {
        policy.forward_auth = Some(ForwardAuth {
            to: BackendTarget::Address(judged.service.addr),
            path: "/".to_owned(),
            copy_headers: vec!["remote-user".to_owned()],
        });
        policy.request_headers.remove = vec!["x-secret".to_owned()];
    };
    let proxy = Proxy::start(&Table::of(vec![with(vhost("wiki", &[tape.addr]), change)]));
    let mut client = proxy.connect();
    client.send(
        "POST / HTTP/1.1\r\nHost: wiki.prox.local\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\
         Remote-User: root\r\nX-Secret: 1\r\nX-Fine: 1\r\n\r\n",
    );
    assert_eq!(client.response().status, 200);
    drop(client);
    let heard = tape.after(proxy).concat();
    assert!(heard.contains("Remote-User: alice\r\n") || heard.contains("remote-user: alice\r\n"), "{heard}");
    assert!(heard.ends_with("0\r\nX-Fine: 1\r\n\r\n"), "{heard}");
}

#[test]
fn a_question_has_no_body_and_the_upload_goes_to_the_app() {
    let judged = judged(PASSES);
    let mut client = judged.proxy.connect();
    for (framing, body) in
        [("Content-Length: 3", "abc"), ("Transfer-Encoding: chunked", "3\r\nabc\r\n0\r\n\r\n")]
    {
        client.send(&format!("PUT /f HTTP/1.1\r\nHost: wiki.prox.local\r\n{framing}\r\n\r\n{body}"));
        assert_eq!(client.response().text(), "secret");
    }
    for (question, request) in judged.service.requests().iter().zip(judged.app.requests()) {
        assert_eq!(question.header("x-forwarded-method"), ["PUT"]);
        assert!(question.header("content-length").is_empty() && question.body.is_empty());
        assert!(question.header("transfer-encoding").is_empty());
        assert_eq!(request.body, b"abc");
    }
    assert_eq!(judged.service.accepted(), 1, "a short answer's connection is kept");
}

#[test]
fn what_the_service_says_instead_is_the_answer() {
    let login = "HTTP/1.1 302 Found\r\nLocation: https://login.example/?rd=x\r\nSet-Cookie: a=1\r\nContent-Length: 5\r\n\r\nlogin";
    let denied = "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nno\r\n0\r\n\r\n";
    let broken = "HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n";
    for (answer, status, text) in [(login, 302, "login"), (denied, 401, "no"), (broken, 500, "")] {
        let judged = judged(answer);
        let mut client = judged.proxy.connect();
        // Its connection lives on.
        for _ in 0..2 {
            client.send("GET / HTTP/1.1\r\nHost: wiki.prox.local\r\n\r\n");
            let response = client.response();
            assert_eq!((response.status, response.text().as_str()), (status, text));
            if status == 302 {
                assert_eq!(response.header("location"), ["https://login.example/?rd=x"]);
                assert_eq!(response.header("set-cookie"), ["a=1"]);
            }
        }
        // Nor does an upload get through.
        client.send("POST / HTTP/1.1\r\nHost: wiki.prox.local\r\nContent-Length: 100000\r\n\r\nsome");
        assert_eq!(client.response().status, status);
        assert!(client.is_closed());
        assert_eq!((judged.app.accepted(), judged.service.accepted()), (0, 1), "{status}");
    }
}

#[test]
fn an_answer_to_head_is_without_body_and_leaves_nothing_for_the_next_question() {
    // Whoever is judged second must not get what is left of the first one's judgement.
    let service = Backend::script(|mut conn| {
        if conn.request().unwrap().header("x-forwarded-method") != ["HEAD"] {
            return conn.write("HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n");
        }
        conn.write("HTTP/1.1 401 Unauthorized\r\nContent-Length: 38\r\n\r\n");
        // The body of the first answer comes late.
        conn.request();
        conn.write("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    });
    let judged = judged_by(service);
    let mut client = judged.proxy.connect();
    client.send("HEAD / HTTP/1.1\r\nHost: wiki.prox.local\r\n\r\n");
    let head = client.head();
    assert_eq!((head.status, head.header("content-length")), (401, vec!["38"]));
    client.send("GET / HTTP/1.1\r\nHost: wiki.prox.local\r\n\r\n");
    assert_eq!(client.response().status, 403);
    assert_eq!(judged.app.accepted(), 0);
}

fn closed(judged: &Judged, what: &str) {
    let page = ask(&judged.proxy, "");
    assert_eq!((page.status, judged.proxy.count(Reason::AuthUnavailable)), (503, 1), "{what}");
    assert_eq!(judged.app.accepted(), 0, "{what}: the app was asked");
}

#[test]
fn without_an_answer_nobody_passes() {
    closed(&judged_by(Backend::script(drop)), "breaks");
    closed(
        &judged_by(Backend::script(|mut conn: BackendConn| drop((conn.request(), conn.request())))),
        "silent",
    );
    closed(&judged("nonsense\r\n\r\n"), "nonsense");
    closed(
        &judged("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"),
        "switches",
    );
    closed(&judged("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n"), "unclear");
    let gone = Backend::script(drop);
    let addr = nobody();
    let app = Backend::answering("secret");
    let proxy = Proxy::start(&Table::of(vec![with(vhost("wiki", &[app.addr]), |policy| {
        let to = BackendTarget::Address(addr);
        policy.forward_auth = Some(ForwardAuth { to, path: "/".to_owned(), copy_headers: Vec::new() });
    })]));
    closed(&Judged { proxy, app, service: gone }, "refuses");
}

#[test]
fn a_question_on_a_dying_connection_is_asked_again() {
    let judged = judged_by(Backend::script(|mut conn| {
        conn.request();
        conn.write(PASSES);
        while conn.request().is_some() && conn.number > 0 {
            conn.write(PASSES);
        }
    }));
    for _ in 0..2 {
        assert_eq!(ask(&judged.proxy, "").text(), "secret");
    }
    assert_eq!(judged.service.accepted(), 2);
}

#[test]
fn what_the_service_judges_is_what_the_app_gets() {
    let judged = judged(PASSES);
    let mut client = judged.proxy.connect();
    let uri = |request: Option<&Request>| request.unwrap().header("x-forwarded-uri")[0].to_owned();
    for (target, judged_as) in [
        ("/public/../admin?x=/../y", "/admin?x=/../y"),
        ("/%61dmin", "/admin"),
        ("//admin", "/admin"),
        ("/a%2Fb", "/a%2Fb"),
    ] {
        client.send(&format!("GET {target} HTTP/1.1\r\nHost: wiki.prox.local\r\n\r\n"));
        assert_eq!(client.response().status, 200, "{target}");
        assert_eq!(uri(judged.service.requests().last()), judged_as);
        let line = judged.app.requests().pop().unwrap().line;
        assert_eq!(line, format!("GET {judged_as} HTTP/1.1"));
    }
    let asked = judged.service.requests().len();
    for target in ["/x/..;/admin", "/x%2F..%2Fadmin", "/%00", "/a\\b"] {
        client.send(&format!("GET {target} HTTP/1.1\r\nHost: wiki.prox.local\r\n\r\n"));
        assert_eq!(client.response().status, 400, "{target}");
    }
    assert_eq!(judged.service.requests().len(), asked);
}

#[test]
fn a_client_that_leaves_is_not_judged_on() {
    let (arrived, arrivals): (_, Receiver<()>) = channel();
    let (left, gone) = channel();
    let (arrived, left) = (Mutex::new(arrived), Mutex::new(left));
    let judged = judged_by(Backend::script(move |mut conn| {
        conn.request();
        arrived.lock().unwrap().send(()).unwrap();
        // The end of the connection.
        assert!(conn.request().is_none());
        left.lock().unwrap().send(Instant::now()).unwrap();
    }));
    let mut client = judged.proxy.connect();
    client.send("GET / HTTP/1.1\r\nHost: wiki.prox.local\r\n\r\n");
    arrivals.recv_timeout(PATIENCE).unwrap();
    drop(client);
    gone.recv_timeout(PATIENCE).unwrap();
    judged.proxy.until("counted", |totals| totals.of(Reason::ClientGone) == 1);
    assert_eq!(judged.proxy.count(Reason::AuthUnavailable), 0);
}
