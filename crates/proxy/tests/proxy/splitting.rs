//! Answers in which two parsers could see different messages, and what a backend says unasked: none of it may
//! reach the next client.

use std::sync::Mutex;
use std::sync::mpsc::channel;

use proximity_proxy::Reason;

use crate::support::{Backend, Client, PATIENCE, Proxy, Table, raw_head, vhost};

/// A backend that answers each request with the text of its path's number in `answers`.
fn saying(answers: &'static [&'static str]) -> Backend {
    Backend::script(move |mut conn| {
        while let Some(request) = conn.request() {
            let number: usize = request.line.split(['/', ' ']).nth(2).unwrap().parse().unwrap();
            conn.write(answers[number]);
        }
    })
}

fn get(client: &mut Client, number: usize) {
    client.send(&format!("GET /{number} HTTP/1.1\r\nHost: wiki.prox.local\r\n\r\n"));
}

const FINE: &str = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfine";

#[test]
fn answers_that_could_be_read_differently_become_a_page() {
    const ANSWERS: [&str; 14] = [
        "HTTP/1.1 200 OK\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nfine",
        "HTTP/1.1 200 OK\r\nContent-Length: 4, 4\r\n\r\nfine",
        "HTTP/1.1 200 OK\r\nContent-Length: +4\r\n\r\nfine",
        "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\nfine",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n4\r\nfine\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\nContent-Length: 4\r\n\r\nfine",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nfine\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX: a\r\n folded\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX: a\rSet-Cookie: b\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX: a\0b\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX Y: a\r\n\r\n",
        "HTTP/2 200 OK\r\n\r\n",
        "HTTP/1.1 99 No\r\n\r\n",
        "fine\r\n\r\n",
    ];
    for (number, text) in ANSWERS.iter().enumerate() {
        let backend = saying(&ANSWERS);
        let proxy = Proxy::start(&Table::of(vec![vhost("wiki", &[backend.addr])]));
        let mut client = proxy.connect();
        get(&mut client, number);
        assert_eq!(client.response().status, 502, "{text:?}");
        assert_eq!(proxy.count(Reason::BackendNonsense), 1, "{text:?}: {:?}", proxy.totals());
    }
}

// RFC 9112 §6.3: "If a message is received with both […], the Transfer-Encoding overrides the Content-Length."
#[test]
fn a_coding_wins_over_a_length_and_the_connection_is_not_used_again() {
    let backend = saying(&[
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nfine\r\n0\r\n\r\n",
        FINE,
    ]);
    let proxy = Proxy::start(&Table::of(vec![vhost("wiki", &[backend.addr])]));
    let mut client = proxy.connect();
    get(&mut client, 0);
    let response = client.response();
    assert_eq!((response.text().as_str(), response.header("content-length").len()), ("fine", 0));
    get(&mut client, 1);
    assert_eq!((client.response().text().as_str(), backend.accepted()), ("fine", 2));
}

// RFC 9110 §8.6: "a sender MUST NOT forward a message with a Content-Length header field value that is known to
// be incorrect"; a recipient of several equal ones may take them for one, and sends one on.
#[test]
fn equal_lengths_go_on_as_one() {
    let backend = saying(&["HTTP/1.1 200 OK\r\nContent-Length: 4\r\nContent-Length: 4\r\n\r\nfine"]);
    let proxy = Proxy::start(&Table::of(vec![vhost("wiki", &[backend.addr])]));
    let mut client = proxy.connect();
    get(&mut client, 0);
    let response = client.response();
    assert_eq!((response.text().as_str(), response.header("content-length")), ("fine", vec!["4"]));
}

#[test]
fn what_follows_an_answer_never_reaches_the_next_client() {
    const EVIL: &str =
        "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfineHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil";
    const EVIL_CHUNKED: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nfine\r\n0\r\n\r\nHTTP/1.1 200 OK\r\n\r\nevil";
    const EVIL_EMPTY: &str =
        "HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil";
    const EVIL_NONE: &str = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nevil";
    let backend = saying(&[EVIL, EVIL_CHUNKED, EVIL_EMPTY, EVIL_NONE, FINE]);
    let proxy = Proxy::start(&Table::of(vec![vhost("wiki", &[backend.addr])]));
    for number in 0..4 {
        let mut client = proxy.connect();
        get(&mut client, number);
        if number == 2 {
            assert_eq!(client.head().status, 204);
        } else {
            assert_eq!(client.response().text(), if number == 3 { "" } else { "fine" });
        }
        // Neither the same client nor another one gets it.
        get(&mut client, 4);
        assert_eq!(client.response().text(), "fine", "after {number}");
        assert_eq!(proxy.get("wiki.prox.local", "/4").text(), "fine", "after {number}");
    }
}

#[test]
fn what_comes_on_a_kept_connection_unasked_ends_it() {
    let (said, waiting) = channel();
    let said = Mutex::new(said);
    let (speak, may_speak) = channel::<()>();
    let may_speak = Mutex::new(may_speak);
    let backend = Backend::script(move |mut conn| {
        conn.request();
        conn.answer("fine");
        if conn.number == 0 {
            may_speak.lock().unwrap().recv_timeout(PATIENCE).unwrap();
            conn.write("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil");
            said.lock().unwrap().send(()).unwrap();
        }
        conn.request();
        conn.answer("more");
    });
    let proxy = Proxy::start(&Table::of(vec![vhost("wiki", &[backend.addr])]));
    assert_eq!(proxy.get("wiki.prox.local", "/").text(), "fine");
    speak.send(()).unwrap();
    waiting.recv_timeout(PATIENCE).unwrap();
    // What arrived is an event like others: give it a turn.
    assert_eq!(proxy.get("nobody.prox.local", "/").status, 404);
    assert_eq!(proxy.get("wiki.prox.local", "/").text(), "fine");
    assert_eq!(backend.accepted(), 2);
}

#[test]
fn an_answer_to_head_has_no_body_whatever_the_backend_says() {
    let backend = saying(&["HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", FINE]);
    let proxy = Proxy::start(&Table::of(vec![vhost("wiki", &[backend.addr])]));
    let mut client = proxy.connect();
    client.send("HEAD /0 HTTP/1.1\r\nHost: wiki.prox.local\r\n\r\n");
    let head = client.head();
    assert_eq!((head.status, head.header("content-length")), (200, vec!["4"]));
    get(&mut client, 1);
    assert_eq!(client.response().text(), "fine");
}

// RFC 9110 §8.6: "A server MUST NOT send a Content-Length header field in any response with a status code of 1xx
// (Informational) or 204 (No Content)." Clients that believe it wait for a body.
#[test]
fn a_length_where_there_is_no_body_is_not_passed_on() {
    let backend = saying(&[
        "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n\
         HTTP/1.1 204 No Content\r\nContent-Length: 4\r\nX-Last: 1\r\n\r\n",
        "HTTP/1.1 304 Not Modified\r\nContent-Length: 4\r\n\r\n",
    ]);
    let proxy = Proxy::start(&Table::of(vec![vhost("wiki", &[backend.addr])]));
    let mut client = proxy.connect();
    get(&mut client, 0);
    assert_eq!(raw_head(&mut client.stream), "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n");
    let last = raw_head(&mut client.stream);
    assert!(last.starts_with("HTTP/1.1 204 No Content\r\nX-Last: 1\r\n"), "{last}");
    assert!(!last.contains("ength"), "{last}");
    // RFC 9110 §8.6: here it is the length that a GET would have had.
    get(&mut client, 1);
    let head = client.head();
    assert_eq!((head.status, head.header("content-length")), (304, vec!["4"]));
}

#[test]
fn interim_answers_are_bounded() {
    let backend = Backend::script(|mut conn| {
        conn.request();
        let flood = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n".repeat(1000);
        for _ in 0..1000 {
            conn.write(&flood);
        }
        conn.answer("late");
    });
    let proxy = Proxy::start(&Table::of(vec![vhost("wiki", &[backend.addr])]));
    let mut client = proxy.connect();
    get(&mut client, 0);
    let mut interim = 0;
    let last = loop {
        let head = client.head();
        match head.status {
            103 => interim += 1,
            _ => break head,
        }
    };
    assert_eq!((last.status, proxy.count(Reason::BackendNonsense)), (502, 1));
    assert!(interim <= 100, "{interim} interim answers");
}

#[test]
fn a_head_without_end_is_cut_off() {
    for field in ["X: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "X: 1"] {
        let backend = Backend::script(move |mut conn| {
            conn.request();
            conn.write("HTTP/1.1 200 OK\r\n");
            for _ in 0..10_000 {
                conn.write(&format!("{field}\r\n"));
            }
            conn.write("\r\n");
        });
        let proxy = Proxy::start(&Table::of(vec![vhost("wiki", &[backend.addr])]));
        assert_eq!(proxy.get("wiki.prox.local", "/").status, 502);
        assert_eq!(proxy.count(Reason::BackendNonsense), 1);
    }
}

// RFC 9112 §6.1: "A client that receives an HTTP/1.0 message containing a Transfer-Encoding […] MUST close the
// connection after processing the message."
#[test]
fn a_coding_in_http_1_0_is_not_trusted_for_more_than_one_answer() {
    // With a length beside it, too: whichever of the two the backend meant, the rest is nobody's.
    let backend = saying(&[
        "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nfine\r\n0\r\n\r\n",
        "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 60\r\nTransfer-Encoding: chunked\r\n\r\n\
         4\r\nfine\r\n0\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
        "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\nContent-Length: 14\r\n\r\n\
         4\r\nfine\r\n0\r\n\r\n",
    ]);
    let proxy = Proxy::start(&Table::of(vec![vhost("wiki", &[backend.addr])]));
    let mut client = proxy.connect();
    for (number, at) in [0, 0, 1, 2, 0].into_iter().enumerate() {
        get(&mut client, at);
        let response = client.response();
        assert_eq!((response.text().as_str(), response.header("content-length").len()), ("fine", 0), "{at}");
        assert_eq!(backend.accepted(), number + 1, "{at}");
    }
}

#[test]
fn chunks_of_an_answer_that_are_none_cut_it() {
    for body in
        ["x\r\nfine\r\n0\r\n\r\n", "4\nfine\r\n0\r\n\r\n", "4\r\nfineevil\r\n0\r\n\r\n", "0\r\nX\r\n\r\n"]
    {
        let backend = Backend::script(move |mut conn| {
            conn.request();
            conn.write(&format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{body}"));
            // Open until the proxy closes.
            conn.request();
        });
        let proxy = Proxy::start(&Table::of(vec![vhost("wiki", &[backend.addr])]));
        let mut client = proxy.connect();
        get(&mut client, 0);
        assert_eq!(client.head().status, 200);
        let rest = String::from_utf8(client.rest()).unwrap();
        assert!(!rest.ends_with("0\r\n\r\n") && !rest.contains("evil"), "{body:?} passed as whole: {rest:?}");
        proxy.until(&format!("counted for {body:?}"), |totals| totals.of(Reason::BackendCut) == 1);
    }
}
