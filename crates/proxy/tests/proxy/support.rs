//! A small table with one writer, the proxy on a thread, scripted backends and a raw client.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::ArcSwap;
use proximity_config::Config;
use proximity_proxy::{AccessSink, Counters, Course, DataPlane, Reason, Shared, Snapshot, Totals, listen};
use proximity_table::{
    BackendTarget, Change, Facts, Generation, Intent, Lease, LeaseState, Ledger, ProxySettings, Source,
    Timestamp, Touched, Vhost, VhostPolicy, World,
};
use socket2::{Domain, Socket, Type};
use tokio::sync::watch;

/// Longest wait for anything; a test that gets here fails.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The facts and the world that follows from them: a registrar without DHCP and store.
pub struct Table {
    facts: Facts,
    pub snapshot: Snapshot,
    pub generations: watch::Sender<u64>,
}

impl Table {
    /// A table with one app network, e.g. `10.20.0.1/24`, whose leases become vhosts on `port`.
    pub fn new(network: &str, port: u16) -> Table {
        let facts = Facts::new(intent(network, port), Ledger::default());
        let world = World::derive(facts.clone(), Generation(1));
        Table { facts, snapshot: Arc::new(ArcSwap::from_pointee(world)), generations: watch::Sender::new(1) }
    }

    /// A table of vhosts whose clients (on loopback) are outside the app network.
    pub fn of(vhosts: Vec<Vhost>) -> Table {
        let mut table = Table::new("10.20.0.1/24", 80);
        for vhost in vhosts {
            table.change(Change::Vhost(Source::Config, vhost.into()));
        }
        table
    }

    pub fn change(&mut self, change: Change) {
        let mut touched = Touched::default();
        self.facts.apply(change, &mut touched);
        let before = self.snapshot.load_full();
        let generation = Generation(before.generation.0 + 1);
        self.snapshot.store(Arc::new(before.next(self.facts.clone(), &touched, generation)));
        self.generations.send_replace(generation.0);
    }
}

pub fn vhost(app: &str, backends: &[SocketAddrV4]) -> Vhost {
    let hostname = format!("{app}.prox.local").parse().unwrap();
    let backends = backends.iter().map(|addr| BackendTarget::Address(*addr)).collect();
    Vhost {
        aliases: vec![format!("{app}.example.org").parse().unwrap()],
        ..Vhost::new(app.parse().unwrap(), hostname, backends)
    }
}

/// A vhost with another policy than the default.
pub fn with(mut vhost: Vhost, change: impl FnOnce(&mut VhostPolicy)) -> Vhost {
    let mut policy = VhostPolicy::default();
    change(&mut policy);
    vhost.policy = policy.shared();
    vhost
}

pub fn lease(hostname: &str, ip: Ipv4Addr, epoch: u64, state: LeaseState) -> Lease {
    Lease {
        ip,
        mac: format!("bc:24:11:00:00:{epoch:02x}").parse().unwrap(),
        client_id: None,
        hostname: Some(hostname.parse().unwrap()),
        network: "apps".into(),
        state,
        expires: Timestamp(u64::MAX - 1),
        epoch,
    }
}

fn intent(network: &str, port: u16) -> Intent {
    let mut intent = Config::default().intent;
    let apps = Arc::make_mut(&mut intent.networks[0]);
    apps.address = network.parse().unwrap();
    apps.auto_vhost.ports = vec![port];
    intent
}

/// A proxy on one data thread.
pub struct Proxy {
    pub addr: SocketAddr,
    pub shared: Arc<Shared>,
    counters: Arc<Counters>,
    course: watch::Sender<Course>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    pub fn start(table: &Table) -> Proxy {
        Proxy::with(table, ProxySettings::default(), None)
    }

    pub fn with(table: &Table, settings: ProxySettings, log: Option<AccessSink>) -> Proxy {
        Proxy::sharing(table, Arc::new(Shared::new(settings, 7, [7; 32])), log)
    }

    /// One more data thread that knows what others do.
    pub fn sharing(table: &Table, shared: Arc<Shared>, log: Option<AccessSink>) -> Proxy {
        let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let addr = listener.local_addr().unwrap();
        let plane = DataPlane::new(table.snapshot.clone(), shared.clone(), log);
        let counters = plane.counters();
        let (course, told) = watch::channel(Course::Serve);
        let thread = std::thread::spawn(move || plane.run(vec![listener], told).unwrap());
        Proxy { addr, shared, counters, course, thread: Some(thread) }
    }

    pub fn connect(&self) -> Client {
        Client::new(TcpStream::connect(self.addr).unwrap())
    }

    /// A client whose address is 127.0.0.`last`.
    pub fn connect_from(&self, last: u8) -> Client {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from((Ipv4Addr::new(127, 0, 0, last), 0)).into()).unwrap();
        socket.connect(&self.addr.into()).unwrap();
        Client::new(TcpStream::from(socket))
    }

    /// One GET on a connection of its own.
    pub fn get(&self, host: &str, path: &str) -> Response {
        let mut client = self.connect();
        client.send(&format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        client.response()
    }

    /// Milliseconds on the clock of the backends' states.
    pub fn now_ms(&self) -> u64 {
        self.shared.millis(std::time::Instant::now())
    }

    pub fn totals(&self) -> Totals {
        self.counters.snapshot()
    }

    pub fn count(&self, reason: Reason) -> u64 {
        self.totals().of(reason)
    }

    /// Waits until the counters say so.
    pub fn until(&self, what: &str, holds: impl Fn(&Totals) -> bool) {
        let began = std::time::Instant::now();
        while !holds(&self.totals()) {
            assert!(began.elapsed() < PATIENCE, "never {what}: {:?}", self.totals());
            std::thread::yield_now();
        }
    }

    pub fn retire(&self) {
        self.course.send_replace(Course::Retire);
    }

    /// Waits until it has nothing left to do by itself.
    pub fn ended(mut self) {
        self.thread.take().unwrap().join().unwrap();
    }

    pub fn begin_stop(&self) {
        self.course.send_replace(Course::Stop);
    }

    pub fn join(mut self) {
        self.begin_stop();
        self.thread.take().unwrap().join().unwrap();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.begin_stop();
    }
}

/// A backend whose connections run a script, each on its own thread.
pub struct Backend {
    pub addr: SocketAddrV4,
    accepted: Arc<AtomicUsize>,
    requests: Arc<Mutex<Vec<Request>>>,
}

/// One connection of a backend; `number` counts from 0.
pub struct BackendConn {
    pub number: usize,
    pub stream: BufReader<TcpStream>,
    requests: Arc<Mutex<Vec<Request>>>,
}

#[derive(Clone, Debug)]
pub struct Request {
    pub line: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

#[derive(Clone, Debug)]
pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Backend {
    pub fn script(script: impl Fn(BackendConn) + Send + Sync + 'static) -> Backend {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        Backend::on(listener, script)
    }

    pub fn on(listener: TcpListener, script: impl Fn(BackendConn) + Send + Sync + 'static) -> Backend {
        let SocketAddr::V4(addr) = listener.local_addr().unwrap() else { unreachable!() };
        let (accepted, requests) = (Arc::new(AtomicUsize::new(0)), Arc::default());
        let backend = Backend { addr, accepted: accepted.clone(), requests: Arc::clone(&requests) };
        let script = Arc::new(script);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                stream.set_nodelay(true).unwrap();
                let number = accepted.fetch_add(1, SeqCst);
                let conn = BackendConn { number, stream: BufReader::new(stream), requests: requests.clone() };
                let script = script.clone();
                std::thread::spawn(move || script(conn));
            }
        });
        backend
    }

    /// A backend that answers every request with `body`.
    pub fn answering(body: &'static str) -> Backend {
        Backend::script(move |mut conn| {
            while conn.request().is_some() {
                conn.answer(body);
            }
        })
    }

    pub fn accepted(&self) -> usize {
        self.accepted.load(SeqCst)
    }

    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }
}

impl BackendConn {
    /// Reads a request with its body; `None` when the connection ends.
    pub fn request(&mut self) -> Option<Request> {
        let (line, headers) = read_head(&mut self.stream)?;
        let body = read_body(&mut self.stream, &headers, false).ok()?;
        let request = Request { line, headers, body };
        self.requests.lock().unwrap().push(request.clone());
        Some(request)
    }

    pub fn answer(&mut self, body: &str) {
        self.write(&format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
    }

    pub fn write(&mut self, text: &str) {
        // A proxy that has gone is what some tests are about.
        let _ = self.stream.get_mut().write_all(text.as_bytes());
    }
}

pub struct Client {
    pub stream: BufReader<TcpStream>,
}

impl Client {
    pub fn new(stream: TcpStream) -> Client {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Client { stream: BufReader::new(stream) }
    }

    pub fn send(&mut self, text: &str) {
        self.stream.get_mut().write_all(text.as_bytes()).unwrap();
    }

    pub fn head(&mut self) -> Response {
        let (line, headers) = read_head(&mut self.stream).expect("an answer");
        let status = line.split(' ').nth(1).unwrap().parse().unwrap();
        Response { status, headers, body: Vec::new() }
    }

    pub fn response(&mut self) -> Response {
        let mut response = self.head();
        response.body = read_body(&mut self.stream, &response.headers, true).expect("a whole body");
        response
    }

    /// Sends frames through an upgraded connection, and expects each back before the next.
    pub fn echoes(&mut self, frames: &[&[u8]]) {
        for frame in frames {
            self.stream.get_mut().write_all(frame).unwrap();
            let mut echo = vec![0; frame.len()];
            self.stream.read_exact(&mut echo).unwrap();
            assert_eq!(&echo, frame);
        }
    }

    /// Whether the proxy has closed the connection, with nothing more to read.
    pub fn is_closed(&mut self) -> bool {
        // A reset is a close, too.
        self.stream.fill_buf().map_or(true, <[u8]>::is_empty)
    }

    /// Everything until the proxy closes.
    pub fn rest(mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        let _ = self.stream.get_mut().shutdown(Shutdown::Write);
        let _ = self.stream.read_to_end(&mut rest);
        rest
    }
}

impl Request {
    pub fn header(&self, name: &str) -> Vec<&str> {
        find(&self.headers, name)
    }
}

impl Response {
    pub fn header(&self, name: &str) -> Vec<&str> {
        find(&self.headers, name)
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }
}

fn find<'a>(headers: &'a [(String, String)], name: &str) -> Vec<&'a str> {
    headers.iter().filter(|(there, _)| there == name).map(|(_, value)| value.as_str()).collect()
}

fn read_head(stream: &mut impl BufRead) -> Option<(String, Vec<(String, String)>)> {
    let line = read_line(stream)?;
    let mut headers = Vec::new();
    loop {
        let field = read_line(stream)?;
        if field.is_empty() {
            return Some((line, headers));
        }
        let (name, value) = field.split_once(':').unwrap();
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
}

/// What comes up to an empty line, as it came.
pub fn raw_head(stream: &mut impl BufRead) -> String {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert!(stream.read_line(&mut head).unwrap() > 0, "{head}");
    }
    head
}

pub fn read_line(stream: &mut impl BufRead) -> Option<String> {
    let mut line = Vec::new();
    stream.read_until(b'\n', &mut line).ok().filter(|read| *read > 0)?;
    Some(String::from_utf8(line).unwrap().trim_end().to_owned())
}

fn read_body(
    stream: &mut impl BufRead,
    headers: &[(String, String)],
    to_end: bool,
) -> std::io::Result<Vec<u8>> {
    let mut body = Vec::new();
    if let Some(length) = find(headers, "content-length").first() {
        body.resize(length.parse().unwrap(), 0);
        stream.read_exact(&mut body)?;
    } else if find(headers, "transfer-encoding") == ["chunked"] {
        while let Some(chunk) = read_chunk(stream).filter(|chunk| !chunk.is_empty()) {
            body.extend(chunk);
        }
    } else if to_end {
        let _ = stream.read_to_end(&mut body);
    }
    Ok(body)
}

/// One chunk; empty at the end of the body, `None` when the connection breaks off.
pub fn read_chunk(stream: &mut impl BufRead) -> Option<Vec<u8>> {
    let size = usize::from_str_radix(&read_line(stream)?, 16).unwrap();
    let mut chunk = vec![0; size + 2];
    stream.read_exact(&mut chunk).ok()?;
    chunk.truncate(size);
    Some(chunk)
}
