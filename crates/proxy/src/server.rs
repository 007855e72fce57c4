use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, Cache};
use http::HeaderValue;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use proximity_table::{Route, World};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpStream;
use tokio::sync::{Notify, watch};
use tokio::task::{AbortHandle, LocalSet};

use crate::access::{Batch, Line, client_fields};
use crate::balance::Turns;
use crate::clock::Clock;
use crate::connection::{Activity, Guarded, Phase};
use crate::peers::Patience;
use crate::pool::{Limits, Pool};
use crate::{AccessSink, Counters, Reason, forward, peers};

/// Where the proxy reads the world: one immutable snapshot at a time.
pub type Snapshot = Arc<ArcSwap<World>>;

/// Connections that wait in the kernel to be taken.
const BACKLOG: i32 = 4096;
/// Longest request head that is answered with its own status; a longer one that never ends is cut by the
/// framing check.
const LONGEST_HEAD: usize = 32 * 1024;
/// Octets of log lines after which the writer gets them at once.
const LOG_BATCH: usize = 32 * 1024;
/// How long log lines may wait for more.
const LOG_WAIT: Duration = Duration::from_millis(100);
/// Wait after the kernel had no connection to give, so that a lack of descriptors does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How often a drain looks for connections that became idle.
const DRAIN_STEP: Duration = Duration::from_millis(20);

/// Limits and times of a data thread.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Client connections (upgraded ones too) that one thread holds; further ones are closed at once.
    pub max_connections: usize,
    /// Seconds that a request head may take.
    pub head_timeout: u32,
    /// Seconds that a client connection may wait for its next request, or leave an answer unread.
    pub idle_timeout: u32,
    /// How long a connection to a backend may take.
    pub connect_timeout: Duration,
    /// Seconds that a connection to a backend is kept for the next request.
    pub backend_idle_timeout: u32,
    /// Connections kept for each backend.
    pub kept_per_backend: usize,
    /// How long requests may go on after the stop signal.
    pub drain: Duration,
}

/// One data thread of the proxy.
#[derive(Debug)]
pub struct DataPlane {
    snapshot: Snapshot,
    settings: Settings,
    log: Option<AccessSink>,
    counters: Arc<Counters>,
}

/// What the tasks of one data thread share. Nothing of it leaves the thread.
pub(crate) struct Worker {
    world: RefCell<Cache<Snapshot, Arc<World>>>,
    settings: Settings,
    sink: Option<AccessSink>,
    log: RefCell<Batch>,
    log_begun: Notify,
    clock: Clock,
    tick: Arc<AtomicU32>,
    connections: RefCell<HashMap<u64, (Arc<Activity>, AbortHandle)>>,
    next_connection: Cell<u64>,
    tunnels: Cell<usize>,
    http: http1::Builder,
    pub draining: Cell<bool>,
    pub pool: Pool,
    pub turns: RefCell<Turns>,
    pub counters: Arc<Counters>,
}

/// A client connection as its requests see it.
pub(crate) struct Client {
    pub worker: Rc<Worker>,
    pub activity: Arc<Activity>,
    pub ip: IpAddr,
    pub ip_text: HeaderValue,
    pub log_prefix: String,
}

/// Removes a connection from the list when its task ends, however it ends.
struct Registered(Rc<Worker>, u64);

/// Counts an upgraded connection as long as it lives.
pub(crate) struct OpenTunnel(Rc<Worker>);

/// A listening socket that several data threads may each have one of (`SO_REUSEPORT`): the kernel spreads
/// connections over them, and ends those whose client is gone. Errors are the kernel's, e.g. address in use.
pub fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    if addr.is_ipv6() {
        // `[::]` and `0.0.0.0` may both be listened on.
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    // Before anybody can connect, so that every connection has it.
    peers::watch_clients(&socket, Patience::USUAL)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            max_connections: 10_000,
            head_timeout: 10,
            idle_timeout: 75,
            connect_timeout: Duration::from_secs(3),
            backend_idle_timeout: 60,
            kept_per_backend: 64,
            drain: Duration::from_secs(30),
        }
    }
}

impl DataPlane {
    /// A data thread that is not serving yet.
    pub fn new(snapshot: Snapshot, settings: Settings, log: Option<AccessSink>) -> DataPlane {
        DataPlane { snapshot, settings, log, counters: Arc::default() }
    }

    /// Its counters; they may be read from any thread.
    pub fn counters(&self) -> Arc<Counters> {
        self.counters.clone()
    }

    /// Serves on this thread until `stop` says true (or its sender is gone) and the drain is over. Errors
    /// only before anything is served.
    pub fn run(self, listeners: Vec<TcpListener>, stop: watch::Receiver<bool>) -> io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
        LocalSet::new().block_on(&runtime, self.serve(listeners, stop))
    }

    /// As [`DataPlane::run`], on a runtime of the caller's; must be polled inside a [`LocalSet`].
    pub async fn serve(self, listeners: Vec<TcpListener>, mut stop: watch::Receiver<bool>) -> io::Result<()> {
        let worker = Rc::new(self.into_worker());
        let mut loops = Vec::with_capacity(listeners.len() + 2);
        for listener in listeners {
            listener.set_nonblocking(true)?;
            let listener = tokio::net::TcpListener::from_std(listener)?;
            loops.push(tokio::task::spawn_local(accept(worker.clone(), listener)).abort_handle());
        }
        let helpers = [
            tokio::task::spawn_local(sweep(worker.clone())).abort_handle(),
            tokio::task::spawn_local(flush(worker.clone())).abort_handle(),
        ];
        // A sender that is gone means that nobody is left to stop us later.
        let _ = stop.wait_for(|stop| *stop).await;
        loops.iter().for_each(AbortHandle::abort);
        worker.drain().await;
        helpers.iter().for_each(AbortHandle::abort);
        worker.hand_over_log();
        Ok(())
    }

    fn into_worker(self) -> Worker {
        let tick = Arc::new(AtomicU32::new(0));
        let limits = Limits {
            connect_timeout: self.settings.connect_timeout,
            idle: self.settings.backend_idle_timeout,
            kept_per_backend: self.settings.kept_per_backend,
        };
        let mut http = http1::Builder::new();
        // Heads are timed by the sweeper: a timer for each request would cost more than routing it.
        http.half_close(false).header_read_timeout(None).max_header_size(LONGEST_HEAD);
        Worker {
            world: RefCell::new(Cache::new(self.snapshot)),
            pool: Pool::new(tick.clone(), limits, self.counters.clone()),
            settings: self.settings,
            sink: self.log,
            log: RefCell::default(),
            log_begun: Notify::new(),
            clock: Clock::new(),
            tick,
            connections: RefCell::default(),
            next_connection: Cell::new(0),
            tunnels: Cell::new(0),
            http,
            draining: Cell::new(false),
            turns: RefCell::default(),
            counters: self.counters,
        }
    }
}

async fn accept(worker: Rc<Worker>, listener: tokio::net::TcpListener) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => worker.admit(stream, peer),
            // The client left before it was served.
            Err(error) if is_of_the_client(&error) => {}
            Err(_) => {
                worker.counters.stopped_by(Reason::AcceptFailed, 1);
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn is_of_the_client(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

async fn sweep(worker: Rc<Worker>) {
    let mut seconds = tokio::time::interval(Duration::from_secs(1));
    seconds.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut before = Instant::now();
    loop {
        seconds.tick().await;
        let passed = before.elapsed().as_secs() as u32;
        before += Duration::from_secs(u64::from(passed));
        worker.tick.store(worker.tick.load(Relaxed).wrapping_add(passed), Relaxed);
        worker.clock.adjust();
        worker.pool.sweep();
        worker.close_overdue();
        // Lets go of an old world that no request asks for any more.
        drop(worker.world());
    }
}

async fn flush(worker: Rc<Worker>) {
    loop {
        worker.log_begun.notified().await;
        tokio::time::sleep(LOG_WAIT).await;
        worker.hand_over_log();
    }
}

impl Worker {
    /// The present world.
    pub fn world(&self) -> Arc<World> {
        self.world.borrow_mut().load().clone()
    }

    /// The route of a host name in the present world.
    pub fn route(&self, host: &str) -> Option<Arc<Route>> {
        self.world.borrow_mut().load().route(host).cloned()
    }

    /// Notes a log line.
    pub fn log<'a>(&self, route: Option<Arc<Route>>, line: impl FnOnce(&Clock) -> Line<'a>) {
        if self.sink.is_none() {
            return;
        }
        let mut log = self.log.borrow_mut();
        let is_first = log.marks.is_empty();
        if is_first {
            // All at once: growing line by line would copy every line twice.
            log.text.reserve(LOG_BATCH + LOG_BATCH / 8);
        }
        log.push(route, &line(&self.clock));
        let is_full = log.text.len() >= LOG_BATCH;
        drop(log);
        if is_full {
            self.hand_over_log();
        } else if is_first {
            self.log_begun.notify_one();
        }
    }

    pub fn tunnel_opened(self: &Rc<Worker>) -> OpenTunnel {
        self.tunnels.set(self.tunnels.get() + 1);
        self.counters.tunnel_opened();
        OpenTunnel(self.clone())
    }

    fn hand_over_log(&self) {
        let batch = self.log.take();
        if let Some(sink) = self.sink.as_ref().filter(|_| !batch.marks.is_empty()) {
            self.counters.stopped_by(Reason::LogBehind, sink.send(batch));
        }
    }

    fn admit(self: &Rc<Worker>, stream: TcpStream, peer: SocketAddr) {
        let open = self.connections.borrow().len() + self.tunnels.get();
        if open >= self.settings.max_connections {
            self.counters.stopped_by(Reason::ConnectionLimit, 1);
            return;
        }
        // A failure here costs latency only.
        let _ = stream.set_nodelay(true);
        let id = self.next_connection.get();
        self.next_connection.set(id.wrapping_add(1));
        let activity = Arc::new(Activity::new(self.tick.clone()));
        let ip = peer.ip().to_canonical();
        let client = Rc::new(Client {
            worker: self.clone(),
            activity: activity.clone(),
            ip,
            ip_text: HeaderValue::try_from(ip.to_string()).unwrap_or_else(|_| HeaderValue::from_static("")),
            log_prefix: client_fields(ip, peer.port()),
        });
        let task = tokio::task::spawn_local(serve_client(client, stream, Registered(self.clone(), id)));
        self.connections.borrow_mut().insert(id, (activity, task.abort_handle()));
        self.counters.connection_opened();
    }

    /// Closes clients that send no request in time or do not take their answer.
    fn close_overdue(&self) {
        let Settings { head_timeout, idle_timeout, .. } = self.settings;
        self.close_those(|(phase, seconds)| match phase {
            Phase::Head if seconds > head_timeout => {
                self.counters.stopped_by(Reason::HeadTimeout, 1);
                true
            }
            Phase::Head | Phase::Answering => false,
            Phase::Idle | Phase::Unread => seconds > idle_timeout,
        });
    }

    fn close_those(&self, due: impl Fn((Phase, u32)) -> bool) {
        let due: Vec<AbortHandle> = self
            .connections
            .borrow()
            .values()
            .filter(|(activity, _)| due(activity.phase()))
            .map(|(_, task)| task.clone())
            .collect();
        due.iter().for_each(AbortHandle::abort);
    }

    /// Lets requests finish and closes connections as they become idle.
    async fn drain(&self) {
        self.draining.set(true);
        let deadline = tokio::time::Instant::now() + self.settings.drain;
        loop {
            self.close_those(|(phase, _)| matches!(phase, Phase::Idle | Phase::Head));
            // Aborted tasks end when they are next polled.
            tokio::task::yield_now().await;
            let open = self.connections.borrow().len() + self.tunnels.get();
            if open == 0 || tokio::time::Instant::now() >= deadline {
                break;
            }
            tokio::time::sleep(DRAIN_STEP).await;
        }
        self.close_those(|_| true);
        tokio::task::yield_now().await;
    }
}

async fn serve_client(client: Rc<Client>, stream: TcpStream, registered: Registered) {
    let Registered(worker, _) = &registered;
    let io = TokioIo::new(Guarded::new(stream, client.activity.clone()));
    let activity = client.activity.clone();
    let service = service_fn(move |request| forward::answer(client.clone(), request));
    let result = worker.http.serve_connection(io, service).with_upgrades().await;
    let reason = match (activity.refused(), result) {
        (Some(reason), _) => reason,
        (None, Err(error)) if error.is_parse_too_large() => Reason::HeadTooLarge,
        (None, Err(error)) if error.is_parse() => Reason::Malformed,
        // The client went away, or an answer was cut and counted where it was cut.
        (None, _) => return,
    };
    worker.counters.stopped_by(reason, 1);
    worker.counters.response(400);
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.0.connections.borrow_mut().remove(&self.1);
        self.0.counters.connection_closed();
    }
}

impl Drop for OpenTunnel {
    fn drop(&mut self) {
        self.0.tunnels.set(self.0.tunnels.get().saturating_sub(1));
        self.0.counters.tunnel_closed();
    }
}
