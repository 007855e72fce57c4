//! The clients of the stream test, and what they have seen together.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use proximity_tests::load_connection::LoadConnection;
use proximity_tests::load_http2::{LoadHttp2, answer};

/// Failures after which there is no use in going on.
const MOST_FAILURES: usize = 20;
/// Answers after which those who wait for progress look at it.
const STEP: usize = 100;
/// Requests that an HTTP/2 client has open at a time.
pub const STREAMS: usize = 8;
/// Octets of uploads, one after the other.
const UPLOADS: [usize; 5] = [0, 1, 1_000, 20_000, 70_000];
/// How long progress may stand still.
const STANDSTILL: Duration = Duration::from_secs(60);

/// A vhost that nobody touches while it is asked.
pub struct Vhost {
    pub host: String,
    /// Its backend's name.
    pub name: &'static str,
    answers: AtomicUsize,
    last_at: AtomicU64,
    longest_pause: AtomicU64,
}

/// What all clients share.
pub struct Load {
    pub vhosts: Vec<Vhost>,
    start: Instant,
    answers: AtomicUsize,
    is_over: AtomicBool,
    failures: Mutex<Vec<String>>,
    progress: Condvar,
}

/// How a client of HTTP/1.1 uses its connections.
#[derive(Clone, Copy)]
pub struct Manner {
    pub name: &'static str,
    /// Requests that it sends before it reads the first answer.
    pub depth: usize,
    /// Requests after which it asks for the end of a connection.
    pub per_connection: Option<usize>,
    /// Whether it uploads.
    pub uploads: bool,
}

/// What a client has seen.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    pub answers: usize,
    pub connections: usize,
    /// Connections that the proxy ended with an answer which said so.
    pub renewed: usize,
    /// Requests sent again, because the proxy had said that it will not act on them: those that came behind one
    /// whose answer was the last of its connection (RFC 9112 §9.6), or later than GOAWAY allows (RFC 9113 §6.8).
    pub resent: usize,
    pub slowest: Duration,
}

/// Ends everything when the thread that holds it fails, so that the others do not wait for it.
struct EndOnPanic<'a>(&'a Load);

impl Drop for EndOnPanic<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.end();
        }
    }
}

impl Vhost {
    pub fn new(host: String, name: &'static str) -> Vhost {
        let (answers, last_at, longest_pause) = Default::default();
        Vhost { host, name, answers, last_at, longest_pause }
    }

    /// Its answers, and the longest time without any.
    pub fn seen(&self) -> (usize, Duration) {
        (self.answers.load(Relaxed), Duration::from_micros(self.longest_pause.load(Relaxed)))
    }
}

impl Load {
    pub fn new(vhosts: Vec<Vhost>) -> Load {
        let (answers, is_over, failures, progress) = Default::default();
        Load { vhosts, start: Instant::now(), answers, is_over, failures, progress }
    }

    /// Requests that were answered as they should be.
    pub fn answers(&self) -> usize {
        self.answers.load(Relaxed)
    }

    pub fn is_over(&self) -> bool {
        self.is_over.load(Relaxed)
    }

    /// Has everybody stop once what they asked is answered.
    pub fn end(&self) {
        self.is_over.store(true, Relaxed);
        self.progress.notify_all();
    }

    /// What failed.
    pub fn failures(&self) -> Vec<String> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn failed(&self, what: String) {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        println!("{:>8.3}s {} FAILED {what}", self.start.elapsed().as_secs_f64(), self.answers());
        failures.push(what);
        if failures.len() >= MOST_FAILURES {
            self.end();
        }
    }

    /// Waits until so many requests were answered; false when it comes to an end before.
    pub fn reaches(&self, answers: usize) -> bool {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        while self.answers() < answers && !self.is_over() {
            let before = self.answers();
            let waited = self.progress.wait_timeout(failures, STANDSTILL);
            let (held, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
            failures = held;
            assert!(!timeout.timed_out() || self.answers() > before, "the load stands still");
        }
        !self.is_over()
    }

    /// Does something of which the failure ends everything.
    pub fn guarded<T>(&self, action: impl FnOnce() -> T) -> T {
        let _guard = EndOnPanic(self);
        action()
    }

    /// Everybody goes round.
    fn vhost(&self, turn: usize) -> &Vhost {
        &self.vhosts[turn % self.vhosts.len()]
    }

    fn answered(&self, vhost: &Vhost) {
        let now = self.start.elapsed().as_micros() as u64;
        let before = vhost.last_at.swap(now, Relaxed);
        if vhost.answers.fetch_add(1, Relaxed) > 0 {
            vhost.longest_pause.fetch_max(now.saturating_sub(before), Relaxed);
        }
        if (self.answers.fetch_add(1, Relaxed) + 1).is_multiple_of(STEP) {
            self.progress.notify_all();
        }
    }
}

/// A client of HTTP/1.1. No request is sent twice but those that a last answer leaves unanswered.
struct Client<'a> {
    load: &'a Load,
    manner: Manner,
    id: usize,
    connection: Option<LoadConnection>,
    sent: usize,
    answered: usize,
    /// When the oldest request without an answer was sent.
    asked_at: Instant,
    tally: Tally,
    requests: Vec<u8>,
    expected: Vec<u8>,
}

/// Asks as fast as it is answered, until the load is over.
pub fn drive(load: &Load, manner: Manner, id: usize) -> Tally {
    let mut client = Client {
        load,
        manner,
        id,
        connection: None,
        sent: 0,
        answered: 0,
        asked_at: Instant::now(),
        tally: Tally::default(),
        requests: Vec::new(),
        expected: Vec::new(),
    };
    while client.answered < client.sent || !load.is_over() {
        if let Err(error) = client.step() {
            let lost = client.sent - client.answered;
            load.failed(format!("{} request {} (and {lost} in all): {error}", manner.name, client.answered));
            client.connection = None;
            client.answered = client.sent;
        }
    }
    client.tally
}

impl Client<'_> {
    /// Sends what may be sent, and takes one answer.
    fn step(&mut self) -> io::Result<()> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => {
                let mut connection = LoadConnection::open(crate::stream::proxy())?;
                self.tally.connections += 1;
                self.tally.resent += self.sent - self.answered;
                self.send(&mut connection, self.answered..self.sent)?;
                connection
            }
        };
        if self.sent == self.answered {
            let from = self.sent;
            self.sent += self.manner.depth;
            self.asked_at = Instant::now();
            self.send(&mut connection, from..self.sent)?;
        }
        let answer = connection.answer()?;
        let vhost = self.load.vhost(self.id + self.answered);
        self.expected.clear();
        write!(self.expected, "{} /{}/{} ", vhost.name, self.id, self.answered)?;
        if self.manner.uploads {
            put_body(&mut self.expected, self.answered);
        }
        if answer.status != 200 || connection.body() != self.expected {
            let body = String::from_utf8_lossy(&connection.body()[..connection.body().len().min(200)]);
            return Err(io::Error::other(format!("{}: {answer:?} {body}", vhost.host)));
        }
        self.tally.slowest = self.tally.slowest.max(self.asked_at.elapsed());
        let wanted_last = self.is_last(self.answered);
        self.answered += 1;
        self.tally.answers += 1;
        self.load.answered(vhost);
        if answer.last {
            self.tally.renewed += usize::from(!wanted_last);
            return connection.end();
        }
        if wanted_last {
            return Err(io::Error::other("the connection is kept open"));
        }
        self.connection = Some(connection);
        Ok(())
    }

    fn is_last(&self, request: usize) -> bool {
        self.manner.per_connection.is_some_and(|per| request % per == per - 1)
    }

    fn send(&mut self, connection: &mut LoadConnection, requests: std::ops::Range<usize>) -> io::Result<()> {
        self.requests.clear();
        for request in requests {
            let method = if self.manner.uploads { "POST" } else { "GET" };
            let host = &self.load.vhost(self.id + request).host;
            write!(self.requests, "{method} /{}/{request} HTTP/1.1\r\nHost: {host}\r\n", self.id)?;
            if self.is_last(request) {
                self.requests.extend_from_slice(b"Connection: close\r\n");
            }
            match self.manner.uploads {
                false => self.requests.extend_from_slice(b"\r\n"),
                true => put_upload(&mut self.requests, request)?,
            }
        }
        connection.send(&self.requests)
    }
}

/// The rest of an upload's head, and its body: with a length, or in chunks.
fn put_upload(to: &mut Vec<u8>, request: usize) -> io::Result<()> {
    let length = UPLOADS[request % UPLOADS.len()];
    if request.is_multiple_of(2) {
        write!(to, "Content-Length: {length}\r\n\r\n")?;
        put_body(to, request);
        return Ok(());
    }
    write!(to, "Transfer-Encoding: chunked\r\n\r\n")?;
    if length > 0 {
        write!(to, "{length:x}\r\n")?;
        put_body(to, request);
        to.extend_from_slice(b"\r\n");
    }
    to.extend_from_slice(b"0\r\n\r\n");
    Ok(())
}

fn put_body(to: &mut Vec<u8>, request: usize) {
    to.extend((0..UPLOADS[request % UPLOADS.len()]).map(|at| ((request + at) % 251) as u8));
}

/// As [`drive`], by HTTP/2. What GOAWAY leaves out is asked again, on the next connection.
pub async fn drive_http2(load: &Load, id: usize) -> Tally {
    let mut tally = Tally::default();
    let (mut next, mut left) = (0, Vec::new());
    while !load.is_over() || !left.is_empty() {
        if let Err(error) = use_http2(load, id, &mut tally, &mut next, &mut left).await {
            load.failed(format!("HTTP/2 before request {next}: {error}"));
        }
    }
    tally
}

/// Uses one connection for as long as it may be. `left` are requests without an answer that are to be asked.
async fn use_http2(
    load: &Load,
    id: usize,
    tally: &mut Tally,
    next: &mut usize,
    left: &mut Vec<usize>,
) -> io::Result<()> {
    let mut connection = LoadHttp2::open(crate::stream::proxy()).await?;
    tally.connections += 1;
    loop {
        let mut requests = std::mem::take(left);
        if !load.is_over() {
            let more = STREAMS - requests.len();
            requests.extend(*next..*next + more);
            *next += more;
        }
        if requests.is_empty() {
            return connection.end().await;
        }
        let asked_at = Instant::now();
        let mut open = Vec::with_capacity(STREAMS);
        for request in requests {
            let (vhost, target) = (load.vhost(id + request), format!("/{id}/{request}"));
            match connection.ask(&vhost.host, &target).await? {
                Some(response) => open.push((request, vhost, target, response)),
                None => left.push(request),
            }
        }
        for (request, vhost, target, response) in open {
            let Some((status, body)) = answer(response).await? else {
                tally.resent += 1;
                left.push(request);
                continue;
            };
            if status != 200 || body != format!("{} {target} ", vhost.name).into_bytes() {
                let body = String::from_utf8_lossy(&body);
                return Err(io::Error::other(format!("{}: {status} {body}", vhost.host)));
            }
            tally.answers += 1;
            load.answered(vhost);
        }
        if !left.is_empty() {
            tally.renewed += 1;
            return connection.end().await;
        }
        tally.slowest = tally.slowest.max(asked_at.elapsed());
    }
}

/// Opens WebSockets from the network of the calling thread, has one of them echo at every so many answers, and all of
/// them at the end.
pub fn drive_websockets(load: &Load, count: usize, opened: impl FnOnce()) -> usize {
    let mut open: Vec<_> = (0..count)
        .map(|at| {
            let connection = LoadConnection::open(crate::stream::proxy()).expect("a connection");
            connection.websocket(&load.vhost(at).host).expect("a WebSocket")
        })
        .collect();
    opened();
    let mut echoes = 0;
    let mut next = load.answers();
    while load.reaches(next) {
        let at = echoes % count;
        if let Err(error) = open[at].echo(&format!("message {echoes}")) {
            load.failed(format!("WebSocket {at}: {error}"));
        }
        echoes += 1;
        next += STEP;
    }
    for (at, websocket) in open.iter_mut().enumerate() {
        match websocket.echo("the last") {
            Ok(()) => echoes += 1,
            Err(error) => load.failed(format!("WebSocket {at} at the end: {error}")),
        }
    }
    echoes
}
