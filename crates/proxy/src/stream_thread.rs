use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, UdpSocket};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use proximity_table::{
    BackendKey, PassivePolicy, Protocol, ResolvedForward, StreamPolicy, UpstreamKey, World,
};
use slab::Slab;
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, sleep_until};

use crate::buffer::Buffers;
use crate::stream_choice::{Attempts, leads_to};
use crate::stream_forwards::{StreamPort, StreamShared};
use crate::stream_stats::StreamGauge;
use crate::stream_tcp::{self, Connection};
use crate::stream_udp::{Scratch, UdpForward};
use crate::{Reason, StreamReason, mixing};

/// Wait after the kernel had nothing to give, so that a lack of descriptors does not spin.
const PAUSE: Duration = Duration::from_millis(50);
/// How often time is looked at.
const SWEEP: Duration = Duration::from_secs(1);
/// Silence after which a connection has nothing under way that a stop should wait for, in ms.
const QUIET_MS: u64 = 1000;
/// How often a drain looks for connections that became quiet.
const DRAIN_STEP: Duration = Duration::from_millis(20);

/// One data thread of the forwards; it serves what it is told to.
#[derive(Debug)]
pub struct StreamThread {
    pub(crate) shared: Arc<StreamShared>,
    pub(crate) orders: mpsc::UnboundedReceiver<Order>,
    pub(crate) generations: watch::Receiver<u64>,
}

/// What a data thread is told.
#[derive(Debug)]
pub enum Order {
    /// Take connections here.
    Accept(StreamPort, TcpListener),
    /// Hear datagrams here.
    Hear(StreamPort, UdpSocket),
    /// Take nothing at this port any more.
    Close(StreamPort),
    /// Take nothing any more, as another process does now; what is open goes on.
    Retire,
    /// Take nothing any more, and end.
    Stop,
}

/// What the tasks of one data thread share. Nothing of it leaves the thread.
pub struct Worker {
    shared: Arc<StreamShared>,
    /// The forwards of the world that was last followed.
    seen: RefCell<Arc<[Arc<ResolvedForward>]>>,
    open: RefCell<Slab<Rc<Open>>>,
    udp: RefCell<HashMap<u16, Vec<Rc<UdpForward>>>>,
    /// Notified when there is something to sweep again.
    busy: Notify,
    random: Cell<u64>,
    pub buffers: Rc<Buffers>,
    pub scratch: RefCell<Scratch>,
}

/// What must be known of a connection to end it in time.
pub struct Open {
    port: StreamPort,
    /// Where it goes; `None` while that is open.
    target: Cell<Option<BackendKey>>,
    used_ms: Cell<u64>,
    /// Longest silence, 0 for any.
    idle_ms: u64,
    told: Cell<Option<StreamReason>>,
    notify: Notify,
}

/// Removes a connection from the list when its task ends, however it ends.
struct Registered(Rc<Worker>, usize);

impl StreamThread {
    /// Serves until it is told to stop, or to retire and nothing is open any more; must be polled where local
    /// tasks can be spawned.
    pub async fn serve(mut self) {
        let worker = Rc::new(Worker {
            shared: self.shared,
            seen: RefCell::default(),
            open: RefCell::default(),
            udp: RefCell::default(),
            busy: Notify::new(),
            random: Cell::new(RandomState::new().hash_one(0)),
            buffers: Rc::default(),
            scratch: RefCell::new(Scratch::new()),
        });
        let mut listening: HashMap<StreamPort, Vec<AbortHandle>> = HashMap::new();
        let mut retired = false;
        let mut world_moves = true;
        let mut next_sweep = Instant::now();
        while !retired || !worker.is_idle() {
            tokio::select! {
                order = self.orders.recv() => match order {
                    Some(Order::Accept(port, listener)) => match accepting(&worker, port, listener) {
                        Ok(task) => listening.entry(port).or_default().push(task),
                        Err(_) => worker.stopped_at(port, StreamReason::AcceptFailed),
                    },
                    Some(Order::Hear(port, socket)) => match hearing(&worker, port, socket) {
                        Ok(task) => listening.entry(port).or_default().push(task),
                        Err(_) => worker.stopped_at(port, StreamReason::AcceptFailed),
                    },
                    Some(Order::Close(port)) => {
                        listening.remove(&port).iter().flatten().for_each(AbortHandle::abort);
                        worker.close(port);
                    }
                    Some(Order::Retire) => {
                        retired = true;
                        listening.drain().for_each(|(_, tasks)| tasks.iter().for_each(AbortHandle::abort));
                    }
                    Some(Order::Stop) | None => break,
                },
                changed = self.generations.changed(), if world_moves => match changed {
                    Ok(()) => worker.follow(),
                    Err(_) => world_moves = false,
                },
                () = sleep_until(next_sweep), if !worker.is_idle() => {
                    worker.sweep();
                    next_sweep = Instant::now() + SWEEP;
                }
                () = worker.busy.notified(), if worker.is_idle() => {}
            }
        }
        listening.into_values().flatten().for_each(|task| task.abort());
        worker.drain().await;
    }
}

fn accepting(worker: &Rc<Worker>, port: StreamPort, listener: TcpListener) -> io::Result<AbortHandle> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    Ok(tokio::task::spawn_local(accept(worker.clone(), port, listener)).abort_handle())
}

fn hearing(worker: &Rc<Worker>, port: StreamPort, socket: UdpSocket) -> io::Result<AbortHandle> {
    let forward = Rc::new(UdpForward::new(port.number, socket, worker.gauge(port))?);
    worker.udp.borrow_mut().entry(port.number).or_default().push(forward.clone());
    Ok(tokio::task::spawn_local(forward.hear(worker.clone())).abort_handle())
}

async fn accept(worker: Rc<Worker>, port: StreamPort, listener: tokio::net::TcpListener) {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted, InvalidInput};
    loop {
        match listener.accept().await {
            Ok((client, peer)) => worker.admit(port, client, peer),
            Err(error) => match error.kind() {
                // The client left before it was served.
                ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted => {}
                // The socket was shut: the order to close it is on its way.
                InvalidInput => worker.pause().await,
                _ => {
                    worker.stopped_at(port, StreamReason::AcceptFailed);
                    worker.pause().await;
                }
            },
        }
    }
}

impl Worker {
    /// The present world.
    pub fn world(&self) -> Arc<World> {
        self.shared.snapshot.load_full()
    }

    /// Milliseconds of the clock of all data threads.
    pub fn now_ms(&self) -> u64 {
        self.shared.now_ms()
    }

    /// Counts what was stopped.
    pub fn stopped(&self, gauge: &StreamGauge, reason: StreamReason) {
        self.shared.counters.stopped_by(reason);
        gauge.stopped().stopped_by(reason);
    }

    /// Counts what was stopped at a port.
    fn stopped_at(&self, port: StreamPort, reason: StreamReason) {
        self.shared.stopped_at(port, reason);
    }

    pub fn gauge(&self, port: StreamPort) -> Arc<StreamGauge> {
        self.shared.gauge(port)
    }

    /// The targets for a connection.
    pub fn attempts(&self, forward: &ResolvedForward, policy: &StreamPolicy, turn: usize) -> Attempts {
        let entropy = mixing::next(&self.random);
        Attempts::new(forward, policy, &self.shared.backends, turn, entropy, self.now_ms())
    }

    /// Notes that nothing listens at a target.
    pub fn target_failed(&self, key: BackendKey) {
        if let Some(state) = self.shared.backends.find(&UpstreamKey::plain(key)) {
            state.failed(false, &PassivePolicy::default().into(), self.now_ms());
            state.met.note_failure(Reason::BackendRefused, self.now_ms());
        }
    }

    /// Notes that a target is there.
    pub fn target_answered(&self, key: BackendKey) {
        if let Some(state) = self.shared.backends.find(&UpstreamKey::plain(key)) {
            state.succeeded(true, self.now_ms());
            state.met.note_answer();
        }
    }

    /// Whether a connection to a target would come back to a port that is forwarded here, and so without end.
    ///
    /// Only then the kernel is asked whose the address is: it knows every address of this machine, also those that
    /// somebody else gave it.
    pub fn is_loop(&self, protocol: Protocol, target: SocketAddrV4) -> bool {
        let world = self.world();
        let forward = world.forward(protocol, target.port());
        forward.is_some_and(|forward| forward.proxy.is_some()) && is_of_this_machine(target)
    }

    /// Whether the forward of a connection leads to where it goes.
    pub fn leads_to(&self, open: &Open) -> bool {
        let world = self.world();
        let forward = world.forward(open.port.protocol, open.port.number);
        match open.target.get() {
            Some(key) => leads_to(forward, &key),
            None => forward.is_some_and(|forward| forward.proxy.is_some()),
        }
    }

    /// Has the time looked at from now on.
    pub fn wake(&self) {
        self.busy.notify_one();
    }

    pub async fn pause(&self) {
        sleep(PAUSE).await;
    }

    fn is_idle(&self) -> bool {
        self.open.borrow().is_empty() && self.udp.borrow().values().flatten().all(|forward| forward.is_idle())
    }

    fn admit(self: &Rc<Worker>, port: StreamPort, client: TcpStream, peer: SocketAddr) {
        let world = self.world();
        let forward = world.forward(port.protocol, port.number);
        let Some((forward, policy)) = forward.and_then(|forward| Some((forward, forward.proxy.as_ref()?)))
        else {
            // The listener is about to go.
            self.stopped_at(port, StreamReason::TargetLeft);
            return stream_tcp::refuse(&client);
        };
        let Some(slot) = self.gauge(port).enter(policy.max_connections) else {
            self.stopped_at(port, StreamReason::ConnectionLimit);
            return stream_tcp::refuse(&client);
        };
        let open = Rc::new(Open {
            port,
            target: Cell::new(None),
            used_ms: Cell::new(self.now_ms()),
            idle_ms: u64::from(policy.idle_timeout) * 1000,
            told: Cell::new(None),
            notify: Notify::new(),
        });
        let registered = Registered(self.clone(), self.open.borrow_mut().insert(open.clone()));
        let connection = Connection { forward: forward.clone(), policy: policy.clone(), client, peer, slot };
        let worker = self.clone();
        tokio::task::spawn_local(async move {
            let _registered = registered;
            stream_tcp::carry(worker, open, connection).await;
        });
        self.wake();
    }

    /// Ends what the present world does not have.
    fn follow(&self) {
        let forwards = self.world().forwards.clone();
        if Arc::ptr_eq(&self.seen.replace(forwards.clone()), &forwards) {
            return;
        }
        for (_, open) in self.open.borrow().iter().filter(|(_, open)| !self.leads_to(open)) {
            open.tell(StreamReason::TargetLeft);
        }
        self.udp.borrow().values().flatten().for_each(|forward| forward.follow(self));
    }

    /// Ends what was silent for too long. Called once a second.
    fn sweep(&self) {
        let now = self.now_ms();
        let is_due = |open: &Open| open.idle_ms > 0 && open.silent_ms(now) > open.idle_ms;
        for (_, open) in self.open.borrow().iter().filter(|(_, open)| is_due(open)) {
            open.tell(StreamReason::IdleTimeout);
        }
        self.udp.borrow().values().flatten().for_each(|forward| forward.sweep(self));
        self.buffers.trim();
    }

    /// A port is no longer listened on: it was removed, or the kernel does it now.
    fn close(&self, port: StreamPort) {
        for (_, open) in self.open.borrow().iter().filter(|(_, open)| open.port == port) {
            open.tell(StreamReason::TargetLeft);
        }
        if port.protocol == Protocol::Udp {
            let forwards = self.udp.borrow_mut().remove(&port.number);
            forwards.iter().flatten().for_each(|forward| forward.clear(self, StreamReason::TargetLeft));
        }
    }

    /// Lets what is under way end. A stream does not say when it has nothing more to do, so one that is quiet
    /// is taken to be idle.
    async fn drain(&self) {
        self.udp.take().values().flatten().for_each(|forward| forward.clear(self, StreamReason::Stopping));
        let deadline = Instant::now() + self.shared.drain();
        while !self.open.borrow().is_empty() && Instant::now() < deadline {
            let now = self.now_ms();
            for (_, open) in self.open.borrow().iter().filter(|(_, open)| open.silent_ms(now) >= QUIET_MS) {
                open.tell(StreamReason::Stopping);
            }
            sleep(DRAIN_STEP).await;
        }
        self.open.borrow().iter().for_each(|(_, open)| open.tell(StreamReason::Stopping));
        // Those that were told end when they are next polled.
        tokio::task::yield_now().await;
    }
}

/// To an address of its own a machine sends from that address. Nothing is sent for asking.
fn is_of_this_machine(target: SocketAddrV4) -> bool {
    let asked = || {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect(target)?;
        socket.local_addr()
    };
    asked().is_ok_and(|from: SocketAddr| from.ip() == *target.ip())
}

impl Open {
    /// Notes that something passed.
    pub fn used(&self, now_ms: u64) {
        self.used_ms.set(now_ms);
    }

    /// Notes where it goes.
    pub fn goes_to(&self, target: BackendKey) {
        self.target.set(Some(target));
    }

    /// Waits until it has to end.
    pub async fn told(&self) -> StreamReason {
        loop {
            if let Some(reason) = self.told.get() {
                return reason;
            }
            self.notify.notified().await;
        }
    }

    fn tell(&self, reason: StreamReason) {
        if self.told.get().is_none() {
            self.told.set(Some(reason));
        }
        self.notify.notify_one();
    }

    fn silent_ms(&self, now_ms: u64) -> u64 {
        now_ms.saturating_sub(self.used_ms.get())
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.0.open.borrow_mut().try_remove(self.1);
        // A retired thread ends with its last connection.
        self.0.wake();
    }
}
