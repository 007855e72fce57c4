use std::cell::{Cell, RefCell};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use arc_swap::{ArcSwap, Cache};
use proximity_table::{Generation, ProxySettings, Route, World};
use slab::Slab;
use tokio::sync::Notify;

use crate::access::{Batch, Line};
use crate::buffer::Buffers;
use crate::clock::Clock;
use crate::http1::{RequestHead, ResponseHead};
use crate::pool::Pool;
use crate::site::Site;
use crate::sites::Sites;
use crate::splice::Pipes;
use crate::tls::Tls;
use crate::watch::{Ticks, Watch};
use crate::{AccessSink, AppCounters, Counters, Reason, Shared, host, mixing};

/// Where the proxy reads the world: one immutable snapshot at a time.
pub type Snapshot = Arc<ArcSwap<World>>;

/// Heads that a thread keeps to use their lists of fields again.
const MOST_HEADS: usize = 1024;
/// Seconds that a connection to a backend is kept for the next request.
const BACKEND_IDLE: u32 = 60;
/// Octets of log lines after which the writer gets them at once.
const LOG_BATCH: usize = 96 * 1024;

/// What the tasks of one data thread share. Nothing of it leaves the thread.
pub(crate) struct Worker {
    world: RefCell<Cache<Snapshot, Arc<World>>>,
    sites: Sites,
    pub shared: Arc<Shared>,
    settings: RefCell<Rc<ProxySettings>>,
    random: Cell<u64>,
    sink: Option<AccessSink>,
    log: RefCell<Batch>,
    pub log_begun: Notify,
    /// Notified when there is something to sweep again.
    pub busy: Notify,
    pub clock: Clock,
    pub ticks: Ticks,
    pub connections: RefCell<Slab<Rc<Watch>>>,
    /// Streams of HTTP/2 connections.
    pub streams: RefCell<Slab<Rc<Watch>>>,
    request_heads: RefCell<Vec<RequestHead>>,
    response_heads: RefCell<Vec<ResponseHead>>,
    pub buffers: Rc<Buffers>,
    pub pipes: Rc<Pipes>,
    /// The next answer of each connection is its last.
    pub draining: Cell<bool>,
    /// Nobody waits for the connections to end.
    pub retired: Cell<bool>,
    /// The world that the tunnels have looked at.
    pub swept: Cell<Generation>,
    pub pool: Pool,
    pub counters: Arc<Counters>,
    /// Counts requests for no app.
    pub nobody: Arc<AppCounters>,
}

/// A stream of an HTTP/2 connection, looked after as a connection is.
pub(crate) struct RegisteredStream {
    worker: Rc<Worker>,
    id: usize,
    pub watch: Rc<Watch>,
}

/// Counts an upgraded connection as long as it lives.
pub(crate) struct OpenTunnel(Rc<Worker>);

impl Worker {
    /// A data thread that has served nobody yet.
    pub fn new(
        snapshot: Snapshot,
        shared: Arc<Shared>,
        sink: Option<AccessSink>,
        counters: Arc<Counters>,
    ) -> Worker {
        let ticks = Ticks::default();
        Worker {
            world: RefCell::new(Cache::new(snapshot)),
            sites: Sites::default(),
            pool: Pool::new(
                ticks.clone(),
                BACKEND_IDLE,
                Tls::new(shared.authorities.clone()),
                counters.clone(),
            ),
            settings: RefCell::new(Rc::new(ProxySettings::clone(&shared.settings.load()))),
            nobody: shared.apps.nobody(),
            shared,
            random: Cell::new(RandomState::new().build_hasher().finish()),
            sink,
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
            counters,
        }
    }

    /// The present world.
    pub fn world(&self) -> Arc<World> {
        self.world.borrow_mut().load().clone()
    }

    /// How clients are treated on the whole.
    pub fn settings(&self) -> Rc<ProxySettings> {
        self.settings.borrow().clone()
    }

    /// Takes over changed settings.
    pub fn follow_settings(&self) {
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

    /// The site of the host that is asked for, as it was written: that of its route in the present world, or what
    /// unknown hosts get.
    pub fn site(&self, written: &[u8]) -> Result<Rc<Site>, Reason> {
        let generation = self.generation();
        if let Some(site) = self.sites.of_host(written, generation) {
            return Ok(site);
        }
        let name = if written.is_empty() {
            "".into()
        } else {
            host::normalise(written).ok_or(Reason::InvalidHost)?
        };
        let site = self.site_of(self.route(&name).ok_or(Reason::UnknownHost)?);
        self.sites.note(written, generation, &site);
        Ok(site)
    }

    fn route(&self, name: &str) -> Option<Arc<Route>> {
        let mut world = self.world.borrow_mut();
        let world = world.load();
        world.route(name).or_else(|| world.default_route()).cloned()
    }

    fn site_of(&self, route: Arc<Route>) -> Rc<Site> {
        self.sites.of_route(route, self.ticks.now(), |route| {
            Site::new(route, &self.pool, &self.shared, self.now_ms())
        })
    }

    /// Forgets the sites that nobody visits any more.
    pub fn forget_sites(&self) {
        let names = self.world.borrow_mut().load().routes.len();
        self.sites.forget(self.ticks.now(), names);
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

    pub fn hand_over_log(&self) {
        let batch = self.log.take();
        if let Some(sink) = self.sink.as_ref().filter(|_| !batch.marks.is_empty()) {
            self.counters.stopped_by(Reason::LogBehind, sink.send(batch));
        }
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
