use std::io::Read;
use std::sync::Arc;

use proximity_table::VhostPolicy;

use crate::support::{Backend, Proxy, Table, vhost, with};

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

// RFC 9110 §12.5.5: a cache must not give to all what was made for one.
#[test]
fn what_is_compressed_for_some_says_so_to_all() {
    let page = "All work and no play makes Jack a dull boy. ".repeat(200);
    let backend = Backend::script(move |mut conn| {
        while let Some(request) = conn.request() {
            let path = request.line.split(' ').nth(1).unwrap();
            let (kind, vary) = match path {
                "/png" => ("image/png", ""),
                "/cookie" => ("text/html", "Vary: Cookie\r\nVary: Origin\r\n"),
                "/said" => ("text/html", "Vary: Cookie, accept-encoding\r\n"),
                _ => ("text/html", ""),
            };
            let head = format!("HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\n{vary}");
            let body = if request.line.starts_with("HEAD") { "" } else { page.as_str() };
            conn.write(&format!("{head}Content-Length: {}\r\n\r\n{body}", page.len()));
        }
    });
    let compressed = |app: &str| {
        with(vhost(app, &[backend.addr]), |policy| {
            policy.compress = true;
            if app == "edited" {
                policy.response_headers.set = vec![("Vary".to_owned(), "Cookie".to_owned())];
            }
        })
    };
    let proxy = Proxy::start(&Table::of(vec![
        compressed("wiki"),
        compressed("edited"),
        vhost("plain", &[backend.addr]),
    ]));
    let ask = |host: &str, path: &str, accept: &str| {
        let mut client = proxy.connect();
        client.send(&format!(
            "GET {path} HTTP/1.1\r\nHost: {host}.prox.local\r\nAccept-Encoding: {accept}\r\n\r\n"
        ));
        let response = client.response();
        assert_eq!(response.header("content-encoding").is_empty(), accept != "gzip" || host == "plain");
        response.header("vary").join(" | ")
    };
    for accept in ["identity", "gzip"] {
        assert_eq!(ask("wiki", "/", accept), "Accept-Encoding");
        assert_eq!(ask("wiki", "/cookie", accept), "Cookie, Origin, Accept-Encoding");
        assert_eq!(ask("wiki", "/said", accept), "Cookie, accept-encoding");
        assert_eq!(ask("edited", "/said", accept), "Cookie", "the administrator has the last word");
    }
    assert_eq!(ask("wiki", "/png", "identity"), "");
    assert_eq!(ask("plain", "/", "gzip"), "");
    assert_eq!(ask("plain", "/cookie", "gzip"), "Cookie | Origin");
    let mut client = proxy.connect();
    client.send("HEAD / HTTP/1.1\r\nHost: wiki.prox.local\r\n\r\n");
    assert_eq!(client.head().header("vary"), ["Accept-Encoding"]);
}
