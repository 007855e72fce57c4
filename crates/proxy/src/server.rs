use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, Cache};
use proximity_table::{Generation, ProxySettings, Route, World};
use slab::Slab;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpStream;
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;

use crate::access::{Batch, Line};
use crate::buffer::Buffers;
use crate::caller::Caller;
use crate::clock::Clock;
use crate::decide::EVERYWHERE;
use crate::http1::{RequestHead, ResponseHead};
use crate::peers::Patience;
use crate::pool::Pool;
use crate::site::Site;
use crate::splice::Pipes;
use crate::watch::{Phase, Signal, Ticks, Watch};
use crate::{AccessSink, AppCounters, Counters, Course, Reason, Shared, front, mixing, peers};

/// Where the proxy reads the world: one immutable snapshot at a time.
pub type Snapshot = Arc<ArcSwap<World>>;

/// Connections that wait in the kernel to be taken.
const BACKLOG: i32 = 4096;
/// Heads that a thread keeps to use their lists of fields again.
const MOST_HEADS: usize = 1024;
/// Seconds that a connection to a backend is kept for the next request.
const BACKEND_IDLE: u32 = 60;
/// Seconds after which a site that nobody visits is forgotten.
const SITE_IDLE: u32 = 60;
/// Octets of log lines after which the writer gets them at once.
const LOG_BATCH: usize = 32 * 1024;
/// How long log lines may wait for more.
const LOG_WAIT: Duration = Duration::from_millis(100);
/// Wait after the kernel had no connection to give, so that a lack of descriptors does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How often a drain looks for connections that became idle.
const DRAIN_STEP: Duration = Duration::from_millis(20);
/// How often a retired thread looks whether anything is left; that may take hours.
const RETIRED_STEP: Duration = Duration::from_millis(250);

/// One data thread of the proxy.
#[derive(Debug)]
pub struct DataPlane {
    snapshot: Snapshot,
    shared: Arc<Shared>,
    log: Option<AccessSink>,
    counters: Arc<Counters>,
}

/// What the tasks of one data thread share. Nothing of it leaves the thread.
pub(crate) struct Worker {
    world: RefCell<Cache<Snapshot, Arc<World>>>,
    sites: RefCell<HashMap<*const Route, (Rc<Site>, u32)>>,
    pub shared: Arc<Shared>,
    settings: RefCell<Rc<ProxySettings>>,
    random: Cell<u64>,
    sink: Option<AccessSink>,
    log: RefCell<Batch>,
    log_begun: Notify,
    /// Notified when there is something to sweep again.
    busy: Notify,
    pub clock: Clock,
    ticks: Ticks,
    connections: RefCell<Slab<Rc<Watch>>>,
    /// Streams of HTTP/2 connections.
    streams: RefCell<Slab<Rc<Watch>>>,
    request_heads: RefCell<Vec<RequestHead>>,
    response_heads: RefCell<Vec<ResponseHead>>,
    pub buffers: Rc<Buffers>,
    pub pipes: Rc<Pipes>,
    /// The next answer of each connection is its last.
    pub draining: Cell<bool>,
    /// Nobody waits for the connections to end.
    pub retired: Cell<bool>,
    /// The world that the tunnels have looked at.
    swept: Cell<Generation>,
    pub pool: Pool,
    pub counters: Arc<Counters>,
    /// Counts requests for no app.
    pub nobody: Arc<AppCounters>,
}

/// Removes a connection from the list when its task ends, however it ends.
struct Registered(Rc<Worker>, usize);

/// A stream of an HTTP/2 connection, looked after as a connection is.
pub(crate) struct RegisteredStream {
    worker: Rc<Worker>,
    id: usize,
    pub watch: Rc<Watch>,
}

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

impl DataPlane {
    /// A data thread that is not serving yet.
    pub fn new(snapshot: Snapshot, shared: Arc<Shared>, log: Option<AccessSink>) -> DataPlane {
        DataPlane { snapshot, shared, log, counters: Arc::default() }
    }

    /// Its counters; they may be read from any thread.
    pub fn counters(&self) -> Arc<Counters> {
        self.counters.clone()
    }

    /// Serves on this thread until `course` says otherwise (or its sender is gone, which means to stop) and
    /// what is open has ended. Errors only before anything is served.
    pub fn run(self, listeners: Vec<TcpListener>, course: watch::Receiver<Course>) -> io::Result<()> {
        let mut runtime = Builder::new_current_thread();
        let runtime = runtime.enable_io().enable_time().build_local(LocalOptions::default())?;
        runtime.block_on(self.serve(listeners, course))
    }

    /// As [`DataPlane::run`], on a runtime of the caller's; must be polled where local tasks can
    /// be spawned.
    pub async fn serve(
        self,
        listeners: Vec<TcpListener>,
        mut course: watch::Receiver<Course>,
    ) -> io::Result<()> {
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
        let end = course.wait_for(|course| *course != Course::Serve).await.map_or(Course::Stop, |end| *end);
        loops.iter().for_each(AbortHandle::abort);
        if end == Course::Retire {
            worker.retire(&mut course).await;
        }
        worker.drain().await;
        helpers.iter().for_each(AbortHandle::abort);
        worker.hand_over_log();
        Ok(())
    }

    fn into_worker(self) -> Worker {
        let ticks = Ticks::default();
        Worker {
            world: RefCell::new(Cache::new(self.snapshot)),
            sites: RefCell::default(),
            pool: Pool::new(ticks.clone(), BACKEND_IDLE, self.counters.clone()),
            settings: RefCell::new(Rc::new(ProxySettings::clone(&self.shared.settings.load()))),
            nobody: self.shared.apps.nobody(),
            shared: self.shared,
            random: Cell::new(RandomState::new().build_hasher().finish()),
            sink: self.log,
            log: RefCell::default(),
            log_begun: Notify::new(),
            busy: Notify::new(),
            clock: Clock::new(),
            ticks,
            connections: RefCell::default(),
            streams: RefCell::default(),
            request_heads: RefCell::default(),
            response_heads: RefCell::default(),
            buffers: Rc::default(),
            pipes: Rc::default(),
            draining: Cell::new(false),
            retired: Cell::new(false),
            swept: Cell::default(),
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

/// Once a second, as long as there is anything to look after.
async fn sweep(worker: Rc<Worker>) {
    loop {
        let before = Instant::now();
        tokio::time::sleep(Duration::from_secs(1)).await;
        // Rounded, so that a second of a thousand and one milliseconds is one.
        worker.ticks.advance((before.elapsed().as_millis() as u32 + 500) / 1000);
        worker.clock.adjust();
        worker.follow_settings();
        worker.pool.sweep();
        worker.buffers.trim();
        worker.pipes.trim();
        worker.forget_sites();
        let is_new = worker.swept.replace(worker.generation()) != worker.generation();
        for (_, watch) in worker.connections.borrow().iter().chain(worker.streams.borrow().iter()) {
            watch.sweep();
            if is_new && watch.phase() == Phase::Tunnel {
                // Its backend may be somebody else's by now.
                watch.wake();
            }
        }
        // Lets go of an old world that no request asks for any more.
        drop(worker.world());
        if worker.connections.borrow().is_empty() && worker.pool.is_empty() {
            worker.busy.notified().await;
            worker.clock.adjust();
        }
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

    /// How clients are treated on the whole.
    pub fn settings(&self) -> Rc<ProxySettings> {
        self.settings.borrow().clone()
    }

    /// Takes over changed settings.
    fn follow_settings(&self) {
        let settings = self.shared.settings.load();
        if **self.settings.borrow() != **settings {
            *self.settings.borrow_mut() = Rc::new(ProxySettings::clone(&settings));
        }
    }

    /// Milliseconds on the clock of the backends' states.
    pub fn now_ms(&self) -> u64 {
        self.shared.millis(Instant::now())
    }

    /// Another number each time.
    pub fn entropy(&self) -> u64 {
        mixing::next(&self.random)
    }

    /// The number of the present world.
    pub fn generation(&self) -> Generation {
        self.world.borrow_mut().load().generation
    }

    /// The route of a host name in the present world, or what unknown hosts get.
    pub fn route(&self, host: &str) -> Option<Arc<Route>> {
        let mut world = self.world.borrow_mut();
        let world = world.load();
        world.route(host).or_else(|| world.default_route()).cloned()
    }

    /// What this thread has ready for a route.
    pub fn site(&self, route: Arc<Route>) -> Rc<Site> {
        let now = self.ticks.now();
        let mut sites = self.sites.borrow_mut();
        let (site, used) = sites
            .entry(Arc::as_ptr(&route))
            .or_insert_with(|| (Rc::new(Site::new(route, &self.pool, &self.shared, self.now_ms())), now));
        *used = now;
        site.clone()
    }

    /// Forgets the sites that nobody has visited for a while. One that is kept keeps its route, so that no other
    /// route can have the same address in memory.
    fn forget_sites(&self) {
        let now = self.ticks.now();
        let mut sites = self.sites.borrow_mut();
        sites.retain(|_, (site, used)| {
            if Rc::strong_count(site) > 1 {
                *used = now;
            }
            now.wrapping_sub(*used) < SITE_IDLE
        });
    }

    /// A head whose list of fields was used before.
    pub fn request_head(&self) -> RequestHead {
        self.request_heads.borrow_mut().pop().unwrap_or_default()
    }

    pub fn keep_request_head(&self, head: RequestHead) {
        let mut heads = self.request_heads.borrow_mut();
        if heads.len() < MOST_HEADS {
            heads.push(head);
        }
    }

    /// As [`Worker::request_head`].
    pub fn response_head(&self) -> ResponseHead {
        self.response_heads.borrow_mut().pop().unwrap_or_default()
    }

    pub fn keep_response_head(&self, head: ResponseHead) {
        let mut heads = self.response_heads.borrow_mut();
        if heads.len() < MOST_HEADS {
            heads.push(head);
        }
    }

    /// Notes a log line.
    pub fn log<'a>(&self, route: Option<&Arc<Route>>, line: impl FnOnce(&Clock) -> Line<'a>) {
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
        self.counters.tunnel_opened();
        OpenTunnel(self.clone())
    }

    /// Has a stream looked after.
    pub fn watch_stream(self: &Rc<Worker>) -> RegisteredStream {
        let watch = Rc::new(Watch::new(self.ticks.clone()));
        let id = self.streams.borrow_mut().insert(watch.clone());
        RegisteredStream { worker: self.clone(), id, watch }
    }

    fn hand_over_log(&self) {
        let batch = self.log.take();
        if let Some(sink) = self.sink.as_ref().filter(|_| !batch.marks.is_empty()) {
            self.counters.stopped_by(Reason::LogBehind, sink.send(batch));
        }
    }

    fn admit(self: &Rc<Worker>, stream: TcpStream, peer: SocketAddr) {
        self.follow_settings();
        let settings = self.settings();
        if self.connections.borrow().len() >= settings.max_connections as usize {
            self.counters.stopped_by(Reason::ConnectionLimit, 1);
            return;
        }
        let local = stream.local_addr().unwrap_or(peer);
        let caller = Caller::new(self.clone(), peer, local);
        // Whoever is announced is known, and counted, when the announcement is read.
        let limit = if caller.is_announced() { 0 } else { settings.client_connections };
        let Ok(slot) = self.shared.clients.enter(EVERYWHERE, caller.peer.ip(), limit) else {
            self.counters.stopped_by(Reason::ClientConnections, 1);
            return;
        };
        // A failure here costs latency only.
        let _ = stream.set_nodelay(true);
        let watch = Rc::new(Watch::new(self.ticks.clone()));
        watch.enter(Phase::Head, settings.head_timeout);
        let id = self.connections.borrow_mut().insert(watch.clone());
        let registered = Registered(self.clone(), id);
        tokio::task::spawn_local(async move {
            let _registered = (registered, slot);
            front::serve(caller, &watch, stream).await;
        });
        self.counters.connection_opened();
        self.busy.notify_one();
    }

    /// Waits until nothing is open any more, or until it is time to drain. No connection is closed for it: the
    /// answers say that they are the last.
    async fn retire(&self, course: &mut watch::Receiver<Course>) {
        self.draining.set(true);
        self.retired.set(true);
        // Those that carry several requests at a time tell their clients at once.
        self.connections.borrow().iter().for_each(|(_, watch)| watch.wake());
        while !self.connections.borrow().is_empty() {
            tokio::select! {
                _ = course.wait_for(|course| *course == Course::Stop) => break,
                () = tokio::time::sleep(RETIRED_STEP) => {}
            }
        }
        self.retired.set(false);
    }

    /// Lets requests finish and closes connections as they become idle.
    async fn drain(&self) {
        self.draining.set(true);
        let within = Duration::from_secs(u64::from(self.settings().drain));
        let deadline = tokio::time::Instant::now() + within;
        // Those that speak HTTP/2 say goodbye as soon as they know.
        self.connections.borrow().iter().for_each(|(_, watch)| watch.wake());
        while !self.connections.borrow().is_empty() && tokio::time::Instant::now() < deadline {
            self.close_those(|phase| matches!(phase, Phase::Idle | Phase::Head));
            tokio::time::sleep(DRAIN_STEP).await;
        }
        self.close_those(|_| true);
        // Those that were told end when they are next polled.
        tokio::task::yield_now().await;
    }

    fn close_those(&self, due: impl Fn(Phase) -> bool) {
        let (connections, streams) = (self.connections.borrow(), self.streams.borrow());
        for (_, watch) in connections.iter().chain(streams.iter()).filter(|(_, watch)| due(watch.phase())) {
            watch.tell(Signal::Close);
        }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.0.connections.borrow_mut().try_remove(self.1);
        self.0.counters.connection_closed();
    }
}

impl Drop for RegisteredStream {
    fn drop(&mut self) {
        self.worker.streams.borrow_mut().try_remove(self.id);
    }
}

impl Drop for OpenTunnel {
    fn drop(&mut self) {
        self.0.counters.tunnel_closed();
    }
}
