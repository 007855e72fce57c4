//! Requests in which two parsers could see different messages (RFC 9112 §11.2): each shape is followed by a
//! second request that must never reach the backend.

use proximity_proxy::Reason;
use proximity_proxy::Reason::{
    AmbiguousLength, BadChunk, BareLineFeed, DuplicateHost, FoldedHeader, HeadTooLarge, Malformed,
    SpaceBeforeColon, TransferCoding, UriTooLong,
};

use crate::support::{Backend, Proxy, Table, vhost, with};
use crate::wiretap::Wiretap;

const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: wiki.prox.local\r\n\r\n";

/// Sends `shape` and the second request at once. The proxy must refuse the first for `reason` and close; gives
/// what the backend heard, which is never anything of the second.
fn refused(shape: &str, reason: Reason) -> Vec<String> {
    let what = &shape[..shape.len().min(200)];
    let backend = Wiretap::silent();
    let proxy = Proxy::start(&Table::of(vec![vhost("wiki", &[backend.addr])]));
    let mut client = proxy.connect();
    client.send(&format!("{shape}{SMUGGLED}"));
    let answer = client.response();
    assert_eq!(answer.status, reason.status(), "{what:?}: {}", answer.text());
    assert!(client.is_closed(), "{what:?} leaves the connection open");
    drop(client);
    proxy.until(&format!("closed after {what:?}"), |totals| totals.open == 0);
    assert_eq!(proxy.count(reason), 1, "{what:?} has another reason: {:?}", proxy.totals());
    let heard = backend.after(proxy);
    assert!(!heard.iter().any(|tape| tape.contains("smuggled")), "{what:?}: the backend heard {heard:?}");
    heard
}

/// As [`refused`], by the head alone: the backend hears nothing at all.
fn refused_unheard(shape: &str, reason: Reason) {
    let heard = refused(shape, reason);
    assert!(heard.is_empty(), "{shape:?}: the backend heard {heard:?}");
}

fn post(fields: &str, body: &str) -> String {
    format!("POST /first HTTP/1.1\r\nHost: wiki.prox.local\r\n{fields}\r\n\r\n{body}")
}

// RFC 9112 §6.3: "If a message is received with both a Transfer-Encoding and a Content-Length header field […]
// such a message might indicate an attempt to perform request smuggling […] and ought to be handled as an error."
#[test]
fn a_body_with_two_lengths() {
    for fields in [
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 5",
        "Content-Length: 0\r\nTransfer-Encoding: chunked",
        "content-length: 5\r\nX-Between: 1\r\ntransfer-encoding: CHUNKED",
        "Connection: content-length\r\nContent-Length: 5\r\nTransfer-Encoding: chunked",
        "Content-Length: 5\r\nContent-Length: 5",
        "Content-Length: 5\r\nContent-Length: 50",
        "Content-Length: 0\r\nContent-Length: 50",
    ] {
        refused_unheard(&post(fields, "0\r\n\r\n"), AmbiguousLength);
    }
}

// RFC 9110 §8.6: "Content-Length = 1*DIGIT"; §8.6 again: a list of values "MUST" be refused or be one value.
#[test]
fn a_length_that_is_no_number() {
    for value in [
        "+5",
        "-5",
        "0x5",
        "5, 5",
        "5 5",
        "5,",
        "1e1",
        "5.0",
        "five",
        "",
        "\"5\"",
        "18446744073709551616",
        "99999999999999999999",
        "00000000000000000000005",
    ] {
        refused_unheard(&post(&format!("Content-Length: {value}"), "0\r\n\r\n"), AmbiguousLength);
    }
}

// RFC 9112 §6.1: "A server that receives a request message with a transfer coding it does not understand SHOULD
// respond with 501 (Not Implemented)."
#[test]
fn transfer_codings_other_than_one_plain_chunked() {
    for value in [
        "chunked, identity",
        "identity, chunked",
        "chunked, chunked",
        "gzip, chunked",
        "xchunked",
        "chunked;q=1",
        "\"chunked\"",
        "identity",
        "",
    ] {
        refused_unheard(&post(&format!("Transfer-Encoding: {value}"), "0\r\n\r\n"), TransferCoding);
    }
    let chunked = "Transfer-Encoding: chunked";
    for second in ["chunked", "identity", "x"] {
        let fields = format!("{chunked}\r\nTransfer-Encoding: {second}");
        refused_unheard(&post(&fields, "0\r\n\r\n"), AmbiguousLength);
    }
    refused_unheard(&post(&format!("Transfer-Encoding: identity\r\n{chunked}"), ""), TransferCoding);
    // RFC 9112 §6.1: with HTTP/1.0 "the framing is faulty".
    let old =
        format!("POST / HTTP/1.0\r\nHost: wiki.prox.local\r\nConnection: keep-alive\r\n{chunked}\r\n\r\n");
    refused_unheard(&format!("{old}0\r\n\r\n"), TransferCoding);
    // A server of HTTP/1.0 reads the length, one of HTTP/1.1 the coding.
    let both = |first: &str, second: &str| {
        format!(
            "POST / HTTP/1.0\r\nHost: wiki.prox.local\r\nConnection: keep-alive\r\n{first}\r\n{second}\r\n\r\n0\r\n\r\n"
        )
    };
    for length in ["Content-Length: 5", "Content-Length: 0", "Content-Length: 60"] {
        refused_unheard(&both(length, chunked), AmbiguousLength);
        refused_unheard(&both(chunked, length), TransferCoding);
    }
}

/// What is known of a client's version does not reach the backend: it gets HTTP/1.1 and one length.
#[test]
fn an_upload_of_http_1_0_has_one_length_at_the_backend() {
    let backend = Wiretap::saying("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    let proxy = Proxy::start(&Table::of(vec![vhost("wiki", &[backend.addr])]));
    let mut client = proxy.connect();
    let upload = "POST /old HTTP/1.0\r\nHost: wiki.prox.local\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\n0\r\n\r\n";
    client.send(&format!("{upload}{upload}"));
    assert_eq!((client.response().status, client.response().status), (200, 200));
    drop(client);
    let heard = backend.after(proxy).concat();
    assert_eq!(heard.matches("POST /old HTTP/1.1\r\n").count(), 2, "{heard}");
    assert_eq!(heard.matches("Content-Length: 5\r\n").count(), 2, "{heard}");
    assert!(
        !heard.contains("HTTP/1.0") && !heard.to_ascii_lowercase().contains("transfer-encoding"),
        "{heard}"
    );
}

#[test]
fn fields_that_hide_from_some_parsers() {
    // RFC 9112 §5.1: "A server MUST reject […] any received request message that contains whitespace between a
    // header field name and colon".
    for name in ["Transfer-Encoding ", "Transfer-Encoding\t", "Content-Length ", "Host "] {
        refused_unheard(&post(&format!("{name}: chunked"), "0\r\n\r\n"), SpaceBeforeColon);
    }
    // RFC 9112 §5.2: obs-fold.
    for fields in [
        "Transfer-Encoding:\r\n chunked",
        "Transfer-Encoding: x\r\n\tchunked",
        "X: 1\r\n Content-Length: 50",
        "X: 1\r\n \r\nContent-Length: 50",
    ] {
        refused_unheard(&post(fields, "0\r\n\r\n"), FoldedHeader);
    }
    refused_unheard("GET / HTTP/1.1\r\n Host: wiki.prox.local\r\nX: 1\r\n\r\n", FoldedHeader);
    for fields in [
        "Transfer-Encoding:\x0bchunked",
        "Transfer-Encoding: chunked\x0c",
        "Transfer-Encoding: chunked\0",
        "Transfer-Encoding\0: chunked",
        "X: \0",
        "X: 1\x7f",
        "X: 1\rTransfer-Encoding: chunked",
        "Transfer-Encoding: \rchunked",
        "X: 1\r\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding",
        ": chunked",
        "(Transfer-Encoding): chunked",
        "Transfer\u{2011}Encoding: chunked",
    ] {
        refused_unheard(&post(fields, "0\r\n\r\n"), Malformed);
    }
}

// RFC 9112 §2.2 lets a recipient take a lone LF for a line's end. Not all do.
#[test]
fn lines_that_end_in_a_bare_line_feed() {
    for shape in [
        "GET / HTTP/1.1\nHost: wiki.prox.local\r\n\r\n",
        "GET / HTTP/1.1\nHost: wiki.prox.local\n\n",
        "GET / HTTP/1.1\r\nHost: wiki.prox.local\n\r\n",
        "GET / HTTP/1.1\r\nHost: wiki.prox.local\nX: 1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: wiki.prox.local\r\n\n",
        "GET / HTTP/1.1\r\nX: 1\nTransfer-Encoding: chunked\r\nHost: wiki.prox.local\r\n\r\n0\r\n\r\n",
        "\nGET / HTTP/1.1\r\nHost: wiki.prox.local\r\n\r\n",
    ] {
        refused_unheard(shape, BareLineFeed);
    }
}

#[test]
fn request_lines_that_are_none() {
    for line in [
        "GET /",
        "GET / ",
        "GET  / HTTP/1.1",
        "GET / HTTP/1.1 ",
        "GET\t/ HTTP/1.1",
        "GET / HTTP/1.1\rX: 1",
        "GET / HTTP/0.9",
        "GET / HTTP/1.2",
        "GET / HTTP/2.0",
        "GET / http/1.1",
        "GET /a b HTTP/1.1",
        "GET /\x01 HTTP/1.1",
        " GET / HTTP/1.1",
        "G(T / HTTP/1.1",
        "HTTP/1.1 200 OK",
    ] {
        refused_unheard(&format!("{line}\r\nHost: wiki.prox.local\r\n\r\n"), Malformed);
    }
    // HTTP/0.9 has no version, no header and no end but that of the line.
    refused_unheard("GET /\r\n\r\n", Malformed);
    refused_unheard("GET /caf\u{e9} HTTP/1.1\r\nHost: wiki.prox.local\r\n\r\n", Reason::InvalidTarget);
}

// RFC 9112 §3.2: "A server MUST respond with a 400 (Bad Request) status code to […] any request message that
// contains more than one Host header field line".
#[test]
fn two_hosts() {
    for hosts in [
        "Host: wiki.prox.local\r\nHost: shop.prox.local",
        "Host: wiki.prox.local\r\nX: 1\r\nhost: wiki.prox.local",
        "Host: wiki.prox.local\r\nHost:",
    ] {
        refused_unheard(&format!("GET / HTTP/1.1\r\n{hosts}\r\n\r\n"), DuplicateHost);
    }
}

#[test]
fn heads_without_end() {
    refused_unheard(&format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat(40_000)), UriTooLong);
    refused_unheard(&format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(40_000)), HeadTooLarge);
    let fields = "X: 1\r\n".repeat(200);
    refused_unheard(&format!("GET / HTTP/1.1\r\nHost: wiki.prox.local\r\n{fields}\r\n"), HeadTooLarge);
    refused_unheard(&"\r\n".repeat(20_000), HeadTooLarge);
}

/// A chunked body after a head that is in order: the backend has got the head, and nothing that follows.
fn refused_chunks(body: &str, reason: Reason) {
    let heard = refused(&post("Transfer-Encoding: chunked", body), reason);
    for tape in heard {
        assert_eq!(tape.matches("HTTP/1.1").count(), 1, "{body:?}: the backend heard {tape:?}");
        assert!(!tape.ends_with("0\r\n\r\n"), "{body:?} looked whole to the backend: {tape:?}");
    }
}

// RFC 9112 §7.1: "chunk-size = 1*HEXDIG"; "A recipient MUST be able to parse […] and anticipate potentially
// large hexadecimal numerals and prevent parsing errors due to integer conversion overflows".
#[test]
fn chunk_sizes_that_are_none() {
    for size in [
        "",
        "-1",
        "+1",
        "0x1",
        "1_0",
        "g",
        "1g",
        " 1",
        "\t1",
        "1 2",
        "1\t2;x",
        "0 x",
        "10000000000000001",
        "fffffffffffffffff",
        "00000000000000000000001",
        "1\r",
        "1;a\rb",
        "1;\0",
    ] {
        refused_chunks(&format!("{size}\r\nA\r\n0\r\n\r\n"), BadChunk);
    }
    // The size does not fit the data.
    refused_chunks("1\r\nAB\r\n0\r\n\r\n", BadChunk);
    refused_chunks("1\r\nA0\r\n\r\n", BadChunk);
    refused_chunks("1\r\nA\rB\r\n0\r\n\r\n", BadChunk);
}

#[test]
fn chunks_whose_lines_end_in_a_bare_line_feed() {
    for body in [
        "1\nA\r\n0\r\n\r\n",
        "1\r\nA\n0\r\n\r\n",
        "1;ext\nA\r\n0\r\n\r\n",
        "0\n\r\n",
        "0\r\n\n",
        "0\r\nX-Trailer: 1\n\r\n",
        "0\r\nX-Trailer: 1\r\n\n",
    ] {
        refused_chunks(body, BareLineFeed);
    }
}

#[test]
fn chunk_extensions_and_trailers_are_bounded() {
    refused_chunks(&format!("1;{}\r\nA\r\n0\r\n\r\n", "x".repeat(5_000)), BadChunk);
    refused_chunks(&format!("1;{}", "x".repeat(100_000)), BadChunk);
    refused_chunks(&format!("0\r\nX: {}\r\n\r\n", "x".repeat(20_000)), HeadTooLarge);
    refused_chunks(&format!("0\r\n{}\r\n", "X: 1\r\n".repeat(4_000)), HeadTooLarge);
}

#[test]
fn the_chunk_extensions_of_a_whole_body_are_bounded() {
    let chunks = format!("1;{}\r\na\r\n", "x".repeat(1000)).repeat(17);
    refused_chunks(&format!("{chunks}0\r\n\r\n"), Reason::ChunkExtensions);
}

#[test]
fn trailers_that_are_none() {
    for line in [
        "X",
        "X : 1",
        " X: 1",
        "X: 1\r\n folded",
        "X: \0",
        "X: 1\rY: 2",
        "GET /smuggled HTTP/1.1",
        &"X: 1\r\n".repeat(70),
    ] {
        refused_chunks(&format!("0\r\n{}\r\n\r\n", line.trim_end_matches("\r\n")), Malformed);
    }
}

#[test]
fn what_is_in_order_arrives_once_and_in_one_form() {
    let backend = Wiretap::saying("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
    let proxy = Proxy::start(&Table::of(vec![vhost("wiki", &[backend.addr])]));
    let mut client = proxy.connect();
    for (fields, body) in [
        ("Transfer-Encoding: chunked", "2;ext=\"a;b\" ;c\r\nAB\r\n00\r\n\r\n"),
        ("Transfer-Encoding:\t chunked \t", "2 \r\nAB\r\n0\r\n\r\n"),
        ("Connection: transfer-encoding, host\r\nTransfer-Encoding: chunked", "2\r\nAB\r\n0\r\n\r\n"),
    ] {
        client.send(&format!("{}{}", post(fields, body), post("Content-Length: 0", "")));
        assert_eq!((client.response().status, client.response().status), (200, 200), "{fields:?}");
    }
    drop(client);
    let heard = backend.after(proxy).concat();
    let requests: Vec<&str> = heard.split("POST ").skip(1).collect();
    assert_eq!(requests.len(), 6, "{heard}");
    for pair in requests.chunks(2) {
        assert!(pair[0].contains("Transfer-Encoding: chunked\r\n"), "{heard}");
        assert!(pair[0].ends_with("\r\n\r\n2\r\nAB\r\n0\r\n\r\n"), "{heard}");
        assert!(pair[1].ends_with("\r\n\r\n") && !pair[1].contains("chunked"), "{heard}");
    }
}

// RFC 9112 §3.2.2: "When a proxy receives a request with an absolute-form of request-target, the proxy MUST
// ignore the received Host header field (if any) and instead replace it with the host information of the
// request-target."
#[test]
fn a_host_that_is_not_the_targets_is_ignored() {
    let (wiki, shop) = (Backend::answering("wiki"), Backend::answering("shop"));
    let preserving =
        |app, addr| with(vhost(app, &[addr]), |policy| policy.host = proximity_table::HostPolicy::Preserve);
    let proxy = Proxy::start(&Table::of(vec![preserving("wiki", wiki.addr), preserving("shop", shop.addr)]));
    let mut client = proxy.connect();
    client.send("GET http://wiki.prox.local/a HTTP/1.1\r\nHost: shop.prox.local\r\n\r\n");
    assert_eq!(client.response().text(), "wiki");
    let request = wiki.requests().remove(0);
    assert_eq!(request.line, "GET /a HTTP/1.1");
    assert_eq!(request.header("host"), ["wiki.prox.local"]);
    assert_eq!(request.header("x-forwarded-host"), ["wiki.prox.local"]);
    assert_eq!(shop.requests().len(), 0);
}
