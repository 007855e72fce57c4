use std::io::Read;
use std::sync::Arc;

use proximity_table::VhostPolicy;

use crate::support::{Backend, Proxy, Table, vhost};

#[test]
fn what_a_client_takes_is_compressed_and_nothing_else() {
    let text = "All work and no play makes Jack a dull boy. ".repeat(200);
    let page = text.clone();
    let backend = Backend::script(move |mut conn| {
        while let Some(request) = conn.request() {
            let kind = if request.line.contains("/png") { "image/png" } else { "text/plain" };
            let head =
                format!("HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nETag: \"1\"\r\nAccept-Ranges: bytes\r\n");
            conn.write(&format!("{head}Content-Length: {}\r\n\r\n{page}", page.len()));
        }
    });
    let mut app = vhost("wiki", &[backend.addr]);
    app.policy = Arc::new(VhostPolicy { compress: true, ..VhostPolicy::default() });
    let proxy = Proxy::start(&Table::of(vec![app, vhost("plain", &[backend.addr])]));
    let mut client = proxy.connect();
    let mut ask = |host: &str, path: &str, accept: &str| {
        client.send(&format!(
            "GET {path} HTTP/1.1\r\nHost: {host}.prox.local\r\nAccept-Encoding: {accept}\r\n\r\n"
        ));
        client.response()
    };
    for (accept, coding) in [("gzip, deflate", "gzip"), ("gzip, zstd", "zstd")] {
        let response = ask("wiki", "/", accept);
        assert_eq!(response.header("content-encoding"), [coding]);
        assert_eq!(
            (response.header("vary"), response.header("etag")),
            (vec!["Accept-Encoding"], vec!["W/\"1\""])
        );
        assert!(response.header("accept-ranges").is_empty() && response.header("content-length").is_empty());
        assert!(response.body.len() < text.len() / 10, "{} octets", response.body.len());
        let mut plain = String::new();
        match coding {
            "gzip" => flate2::read::GzDecoder::new(&response.body[..]).read_to_string(&mut plain).unwrap(),
            _ => zstd::Decoder::new(&response.body[..]).unwrap().read_to_string(&mut plain).unwrap(),
        };
        assert_eq!(plain, text);
    }
    for (host, path, accept) in [("wiki", "/", "br"), ("wiki", "/png", "gzip"), ("plain", "/", "gzip")] {
        let response = ask(host, path, accept);
        assert!(
            response.header("content-encoding").is_empty() && response.text() == text,
            "{host} {path} {accept}"
        );
    }
    assert_eq!(backend.accepted(), 1, "the connections are kept all the same");
}
