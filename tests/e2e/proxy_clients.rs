//! The proxy with clients that others wrote: curl, nghttp, h2load and wrk, and a WebSocket.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use proximity_lab::{DhcpClient, Output, WebServer};
use proximity_tests::counting_backend::CountingBackend;
use proximity_tests::http_exchange::header;
use proximity_tests::load_connection::LoadConnection;
use proximity_tests::test_backend::TestBackend;
use proximity_tests::{PATIENCE, Site, polling::until};

use crate::command_line::{done, json};
use crate::stream::proxy;

const MACHINE: &str = "10.20.0.5/24";
/// More than any window of HTTP/2 takes at once, and for curl enough to ask before it sends it.
const UPLOAD: usize = 1_500_000;

/// An upload as the backend got it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Upload {
    head: String,
    octets: usize,
    trailers: Vec<String>,
}

/// A site whose vhost `shop` leads to port 8080 of a machine.
fn shop() -> (Site, proximity_lab::Node) {
    let site = Site::start("");
    site.wait_wan();
    let machine = site.probe_machine(MACHINE);
    done(&site, &["vhost", "add", "shop", "10.20.0.5:8080"]);
    (site, machine)
}

fn run(site: &Site, command: &[&str]) -> Output {
    let output = site.lab.client().try_run(command, PATIENCE).unwrap_or_else(|error| panic!("{error}"));
    assert!(output.status.success(), "{command:?}: {output:?}");
    output
}

fn curl(site: &Site, arguments: &[&str]) -> Output {
    run(site, &[&["curl", "-sS", "-m", "10"], arguments].concat())
}

/// Takes a body of either framing, and what comes behind it.
fn take(head: &str, stream: &mut TcpStream) -> io::Result<Upload> {
    if header(head, "expect").is_some() {
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
    }
    let mut upload = Upload { head: head.to_owned(), ..Upload::default() };
    let mut stream = BufReader::new(stream);
    let mut skip = |stream: &mut BufReader<&mut TcpStream>, octets: usize| {
        io::copy(&mut stream.take(octets as u64), &mut io::sink()).map(|read| upload.octets += read as usize)
    };
    let bad = |line: &str| io::Error::other(format!("no length: {line}"));
    if let Some(length) = header(head, "content-length") {
        skip(&mut stream, length.parse().map_err(|_| bad(length))?)?;
        return Ok(upload);
    }
    if header(head, "transfer-encoding").is_none() {
        return Ok(upload);
    }
    let line = |stream: &mut BufReader<&mut TcpStream>| {
        let mut line = String::new();
        stream.read_line(&mut line).map(|_| line.trim_end().to_owned())
    };
    loop {
        let size = line(&mut stream)?;
        match usize::from_str_radix(&size, 16).map_err(|_| bad(&size))? {
            0 => break,
            size => skip(&mut stream, size)?,
        }
        line(&mut stream)?;
    }
    loop {
        let trailer = line(&mut stream)?;
        if trailer.is_empty() {
            return Ok(upload);
        }
        upload.trailers.push(trailer.to_ascii_lowercase());
    }
}

/// Answers in chunks of which the last has a trailer: how many octets came.
fn uploads(machine: &proximity_lab::Node) -> (TestBackend, Arc<Mutex<Vec<Upload>>>) {
    let taken = Arc::new(Mutex::new(Vec::new()));
    let taking = taken.clone();
    let backend = TestBackend::start(machine, 8080, move |head, stream| {
        let upload = take(head, stream)?;
        let octets = upload.octets;
        if !head.contains("Proximity-Health") {
            taking.lock().expect("no panic").push(upload);
        }
        write!(
            stream,
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Octets\r\nConnection: close\r\n\r\n\
             6\r\nthanks\r\n0\r\nX-Octets: {octets}\r\n\r\n"
        )
    });
    (backend, taken)
}

#[test]
fn nghttp_has_several_streams_with_trailers_both_ways_on_one_connection() {
    let (site, machine) = shop();
    let (_backend, taken) = uploads(&machine);
    site.lab.client().sh(&format!("head -c {UPLOAD} /dev/zero >/run/upload")).expect("a file");
    let url = |path: &str| format!("http://shop.prox.local/{path}");
    let urls = [url("a"), url("b"), url("c")];
    let mut command =
        vec!["nghttp", "-v", "-n", "-H", "x-asked-by: nghttp", "--trailer", "x-sum: 42", "-d", "/run/upload"];
    // A body of known length goes to a backend of HTTP/1.1 with that length, and has no place for trailers there.
    command.push("--no-content-length");
    command.extend(urls.iter().map(String::as_str));
    let told = run(&site, &command).stdout;

    let uploads = taken.lock().expect("no panic").clone();
    assert_eq!(uploads.len(), 3, "{told}");
    for upload in &uploads {
        assert_eq!((upload.octets, &upload.trailers[..]), (UPLOAD, &["x-sum: 42".to_owned()][..]), "{told}");
        assert_eq!(header(&upload.head, "x-asked-by"), Some("nghttp"));
        assert_eq!(header(&upload.head, "host"), Some("10.20.0.5:8080"));
    }
    // `recv (stream_id=13) :status: 200`
    let received = |field: &str| {
        let lines = told.lines().filter(|line| line.contains("recv (stream_id=") && line.ends_with(field));
        lines.count()
    };
    assert_eq!((received(" :status: 200"), received(&format!(" x-octets: {UPLOAD}"))), (3, 3), "{told}");
    assert_eq!(
        told.matches("recv SETTINGS frame").count(),
        2,
        "settings of ours and their acknowledgement: {told}"
    );
    // Data never ends a stream here: the trailers do.
    let ends = |frame: &str| {
        let events = told.split("\n[").filter(|event| event.contains(&format!("] recv {frame} frame")));
        events.filter(|event| event.contains("END_STREAM")).count()
    };
    assert_eq!((ends("HEADERS"), ends("DATA")), (3, 0), "{told}");
    for bad in ["RST_STREAM", "recv GOAWAY", "some requests were not processed"] {
        assert!(!told.contains(bad), "{bad}: {told}");
    }
    let lines = until("the access log", PATIENCE, || {
        let text = site.lab.appliance().read("/var/log/proximity/shop.prox.local.log");
        let text = text.map_err(|error| error.to_string())?;
        if text.lines().count() == 3 { Ok(text) } else { Err(text) }
    });
    assert_eq!(lines.matches("\"proto\":\"HTTP/2.0\"").count(), 3, "{lines}");
}

#[test]
fn h2load_gets_an_answer_to_every_request() {
    let (site, machine) = shop();
    let backend = CountingBackend::start(&machine, 8080, "shop");
    let arguments = ["-n", "2000", "-c", "10", "-m", "20", "http://shop.prox.local/"];
    let told = run(&site, &[&["h2load"], &arguments[..]].concat()).stdout;
    for line in [
        "requests: 2000 total, 2000 started, 2000 done, 2000 succeeded, 0 failed, 0 errored, 0 timeout",
        "status codes: 2000 2xx, 0 3xx, 0 4xx, 0 5xx",
        "Application protocol: h2c",
    ] {
        assert!(told.lines().any(|there| there == line), "{line}: {told}");
    }
    assert_eq!(backend.requests(), 2000);
    // As HTTP/1.1, which h2load pipelines.
    let told = run(&site, &[&["h2load", "--h1"], &arguments[..]].concat()).stdout;
    for line in ["status codes: 2000 2xx, 0 3xx, 0 4xx, 0 5xx", "Application protocol: http/1.1"] {
        assert!(told.lines().any(|there| there == line), "{line}: {told}");
    }
    assert_eq!(backend.requests(), 4000);
    // What is no app's has an answer too, and a connection for all of them.
    let told = run(&site, &["h2load", "-n", "50", "-c", "1", "-m", "10", "http://nobody.prox.local/"]).stdout;
    assert!(told.contains("50 done, 0 succeeded, 50 failed, 0 errored"), "{told}");
    assert!(told.contains("status codes: 0 2xx, 0 3xx, 50 4xx, 0 5xx"), "{told}");
    assert_eq!(backend.requests(), 4000);
}

#[test]
fn wrk_sees_no_error_on_64_connections() {
    let (site, machine) = shop();
    let backend = CountingBackend::start(&machine, 8080, "shop");
    let before = json(&site, &["status"])["statistics"]["http_requests"].as_u64().expect("a number");
    let told = run(&site, &["wrk", "-t1", "-c64", "-d2s", "http://shop.prox.local/"]).stdout;
    // wrk names either only where there were some.
    assert!(!told.contains("Socket errors") && !told.contains("Non-2xx"), "{told}");
    let line = told.lines().find_map(|line| line.trim().split_once(" requests in ")).expect("a count");
    let answers: u64 = line.0.parse().expect("a number");
    // Requests under way when wrk ends are in one count only.
    let asked = json(&site, &["status"])["statistics"]["http_requests"].as_u64().expect("a number") - before;
    assert!(answers > 100 && (answers..=answers + 64).contains(&asked), "{asked}: {told}");
    assert!((asked..=asked + 64).contains(&(backend.requests() as u64)), "{} {asked}", backend.requests());
    assert!(backend.connections() < 200, "{} connections", backend.connections());
}

#[test]
fn curl_gets_ranges_and_heads_of_a_real_server_by_every_version() {
    let site = Site::start("");
    site.wait_wan();
    let (_app, _) = site.app("wiki", DhcpClient::Udhcpc, WebServer::Nginx);
    let url = "http://wiki.prox.local/";
    let whole = until("the app", PATIENCE, || {
        let output = site.lab.client().run(&["curl", "-sS", "--fail", "-m", "5", url]);
        output.map(|output| output.stdout).map_err(|error| error.to_string())
    });
    for (version, told) in [("--http1.0", "1.1"), ("--http1.1", "1.1"), ("--http2-prior-knowledge", "2")] {
        let ask = |arguments: &[&str]| {
            let said = "\n%{http_code} %{http_version} %header{content-range} %header{content-length}";
            let output = curl(&site, &[&[version, "-w", said, url], arguments].concat()).stdout;
            let (body, said) = output.rsplit_once('\n').expect("two parts");
            (body.to_owned(), said.to_owned())
        };
        let size = whole.len();
        assert_eq!(ask(&[]), (whole.clone(), format!("200 {told}  {size}")), "{version}");
        let part = (whole[2..=5].to_owned(), format!("206 {told} bytes 2-5/{size} 4"));
        assert_eq!(ask(&["-r", "2-5"]), part, "{version}");
        let end =
            (whole[size - 3..].to_owned(), format!("206 {told} bytes {}-{}/{size} 3", size - 3, size - 1));
        assert_eq!(ask(&["-r", "-3"]), end, "{version}");
        let (_, beyond) = ask(&["-r", "9999-"]);
        assert!(beyond.starts_with(&format!("416 {told} bytes */{size} ")), "{version}: {beyond}");
        let (head, said) = ask(&["-I"]);
        assert!(head.to_ascii_lowercase().contains(&format!("content-length: {size}")), "{version}: {head}");
        assert_eq!(said, format!("200 {told}  {size}"), "{version}: {head}");
    }
    // With a body that does not belong there, the next answer on the connection would be another one.
    let said = "%{num_connects} ";
    let output = curl(&site, &["-w", said, "-I", url, "--next", "-sS", "-w", said, url]);
    assert!(output.stdout.ends_with(&format!("\r\n\r\n1 {whole}0 ")), "{output:?}");
}

#[test]
fn curl_uploads_by_expectation_in_chunks_and_by_http2() {
    let (site, machine) = shop();
    let (_backend, taken) = uploads(&machine);
    site.lab.client().sh(&format!("head -c {UPLOAD} /dev/zero >/run/upload")).expect("a file");
    let url = "http://shop.prox.local/upload";
    let upload = |arguments: &[&str]| {
        let output = curl(&site, &[&["-v", "--data-binary", "@/run/upload", url], arguments].concat());
        let uploads = std::mem::take(&mut *taken.lock().expect("no panic"));
        let [upload] = &uploads[..] else { panic!("not once: {uploads:?}") };
        assert_eq!((upload.octets, output.stdout.as_str()), (UPLOAD, "thanks"), "{arguments:?}");
        (upload.head.clone(), output.stderr)
    };
    // curl would send after a second without the word.
    let (_, told) = upload(&["-H", "Expect: 100-continue", "--expect100-timeout", "60"]);
    assert_eq!(told.matches("< HTTP/1.1 100 Continue").count(), 1, "{told}");
    assert!(told.contains("< HTTP/1.1 200 OK"), "{told}");
    let (head, told) = upload(&["-H", "Transfer-Encoding: chunked", "-H", "Expect:"]);
    assert!(!told.contains("100 Continue"), "{told}");
    assert_eq!(
        (header(&head, "transfer-encoding"), header(&head, "content-length")),
        (Some("chunked"), None)
    );
    let (_, told) = upload(&["--http2-prior-knowledge"]);
    assert!(told.contains("< HTTP/2 200"), "{told}");
    let raw = curl(&site, &["--raw", url]).stdout;
    assert_eq!(raw, "6\r\nthanks\r\n0\r\nX-Octets: 0\r\n\r\n");
    taken.lock().expect("no panic").clear();
    // HTTP/1.0 knows no chunks: the answer ends with the connection.
    let (_, told) = upload(&["--http1.0"]);
    assert!(!told.to_ascii_lowercase().contains("< transfer-encoding"), "{told}");
    // An Upgrade to HTTP/2 is not taken (RFC 9113 §3.1), and no backend ever hears of it.
    let (head, told) = upload(&["--http2"]);
    assert!(told.contains("> Upgrade: h2c") && told.contains("< HTTP/1.1 200 OK"), "{told}");
    for gone in ["upgrade", "http2-settings"] {
        assert_eq!(header(&head, gone), None, "{head}");
    }
}

#[test]
fn a_websocket_of_a_vhost_echoes_while_others_load_it() {
    let (site, machine) = shop();
    let backend = CountingBackend::start(&machine, 8080, "shop");
    let client = site.lab.client();
    let mut websocket = client
        .enter(|| {
            LoadConnection::open(proxy()).and_then(|connection| connection.websocket("shop.prox.local"))
        })
        .expect("entered")
        .expect("a WebSocket");
    let echoes = AtomicUsize::new(0);
    let told = std::thread::scope(|scope| {
        let load = scope.spawn(|| run(&site, &["wrk", "-t1", "-c16", "-d1s", "http://shop.prox.local/"]));
        while !load.is_finished() {
            let count = echoes.fetch_add(1, Relaxed);
            websocket.echo(&format!("message {count}")).expect("the message comes back");
        }
        load.join().expect("wrk").stdout
    });
    assert!(!told.contains("Socket errors") && !told.contains("Non-2xx"), "{told}");
    assert!(echoes.load(Relaxed) > 10 && backend.websockets() == 1, "{echoes:?}");
    assert_eq!(json(&site, &["status"])["statistics"]["http_tunnels"], 1);
}
