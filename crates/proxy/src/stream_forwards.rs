//! Forwarded ports that the appliance carries itself: which are listened on, by all data threads together.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddrV4, TcpListener, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use proximity_table::{BackendKey, Generation, Protocol, ResolvedForward, UpstreamKey, World};
use socket2::SockRef;
use tokio::sync::{mpsc, watch};

use crate::backend_state::{BackendLoad, Backends};
use crate::server::listen;
use crate::stream_stats::{StreamCounters, StreamGauge, StreamLoad};
use crate::stream_thread::{Order, StreamThread};
use crate::stream_udp::hear_on;
use crate::worker::Snapshot;
use crate::{Reason, StreamReason};

/// A port of the appliance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamPort {
    /// Transport.
    pub protocol: Protocol,
    /// Its number.
    pub number: u16,
}

/// The forwards of an appliance that its data threads carry.
///
/// [`StreamForwards::thread`] is called once for each data thread, then [`StreamForwards::follow`] for each
/// world: ports come and go by that, and those that stay are not touched.
#[derive(Debug)]
pub struct StreamForwards {
    shared: Arc<StreamShared>,
    generations: watch::Receiver<u64>,
    address: Ipv4Addr,
    control: Mutex<Control>,
}

/// What all data threads share.
#[derive(Debug)]
pub struct StreamShared {
    pub snapshot: Snapshot,
    pub backends: Backends,
    pub counters: StreamCounters,
    /// How long connections may go on after the stop signal, in ms.
    drain_ms: AtomicU64,
    gauges: Mutex<HashMap<StreamPort, Arc<StreamGauge>>>,
    began: Instant,
}

#[derive(Debug, Default)]
struct Control {
    inboxes: Vec<mpsc::UnboundedSender<Order>>,
    /// Sockets of each port, the threads' own as well: those here can be handed to another process.
    listening: BTreeMap<StreamPort, Result<Vec<OwnedFd>, String>>,
    inherited: HashMap<StreamPort, Vec<OwnedFd>>,
    followed: Generation,
    seen: Option<Arc<[Arc<ResolvedForward>]>>,
    has_ended: bool,
}

impl StreamForwards {
    /// Forwards on `address` (usually 0.0.0.0) by the world in `snapshot`; `generations` tells that it is another.
    pub fn new(
        snapshot: Snapshot,
        generations: watch::Receiver<u64>,
        address: Ipv4Addr,
        drain: Duration,
    ) -> StreamForwards {
        let shared = StreamShared {
            snapshot,
            backends: Backends::default(),
            counters: StreamCounters::default(),
            drain_ms: AtomicU64::new(millis(drain)),
            gauges: Mutex::default(),
            began: Instant::now(),
        };
        StreamForwards { shared: Arc::new(shared), generations, address, control: Mutex::default() }
    }

    /// One more data thread. It listens at the ports that are found afterwards.
    pub fn thread(&self) -> StreamThread {
        let (inbox, orders) = mpsc::unbounded_channel();
        self.control().inboxes.push(inbox);
        StreamThread { shared: self.shared.clone(), orders, generations: self.generations.clone() }
    }

    /// Sockets that another process listened on, for the ports that will be wanted. Those of others are closed
    /// by the next [`StreamForwards::follow`].
    pub fn adopt(&self, sockets: impl IntoIterator<Item = (StreamPort, OwnedFd)>) {
        let mut control = self.control();
        for (port, socket) in sockets {
            control.inherited.entry(port).or_default().push(socket);
        }
    }

    /// Copies of the listening sockets, for another process. They may be taken while they are served.
    pub fn sockets(&self) -> io::Result<Vec<(StreamPort, OwnedFd)>> {
        let control = self.control();
        let open =
            control.listening.iter().filter_map(|(port, sockets)| Some((port, sockets.as_ref().ok()?)));
        let all = open.flat_map(|(port, sockets)| sockets.iter().map(|socket| (*port, socket)));
        all.map(|(port, socket)| Ok((port, socket.try_clone()?))).collect()
    }

    /// Listens at the ports that a world wants carried and no longer at others; returns when that is so. A port
    /// that cannot be had is tried again with each world; returned are those that cannot be had since this one, and
    /// why. Older worlds than the last are passed over.
    pub fn follow(&self, world: &World) -> Vec<(StreamPort, String)> {
        let mut control = self.control();
        if control.has_ended || world.generation < control.followed {
            return Vec::new();
        }
        control.followed = world.generation;
        let is_done = control.listening.values().all(Result::is_ok) && control.inherited.is_empty();
        let seen = control.seen.replace(world.forwards.clone());
        if is_done && seen.is_some_and(|seen| Arc::ptr_eq(&seen, &world.forwards)) {
            return Vec::new();
        }
        let carried = world.forwards.iter().filter(|forward| forward.proxy.is_some());
        let port = |protocol, number| StreamPort { protocol, number };
        let wanted: BTreeSet<StreamPort> =
            carried.clone().map(|forward| port(forward.protocol, forward.port)).collect();
        let left: Vec<StreamPort> =
            control.listening.keys().filter(|port| !wanted.contains(port)).copied().collect();
        left.into_iter().for_each(|port| control.close(port));
        let mut failed = Vec::new();
        for port in wanted.iter().copied() {
            if !matches!(control.listening.get(&port), Some(Ok(_))) {
                let opened = control.open(port, self.address).map_err(|error| error.to_string());
                let reason = opened.as_ref().err().cloned();
                let before = control.listening.insert(port, opened).and_then(Result::err);
                failed.extend(
                    reason.filter(|reason| before.as_ref() != Some(reason)).map(|reason| (port, reason)),
                );
            }
        }
        control.inherited.clear();
        drop(control);
        let targets: HashSet<UpstreamKey> = carried
            .flat_map(|forward| &forward.targets)
            .map(|target| UpstreamKey::plain(target.key))
            .collect();
        self.shared.backends.retain(|key| targets.contains(key));
        self.shared.gauges().retain(|port, _| wanted.contains(port));
        failed
    }

    /// Takes nothing any more, because another process has the sockets; what is open goes on, and the threads end
    /// with it.
    pub fn retire(&self) {
        self.end(|| Order::Retire);
    }

    /// Takes nothing any more; what is under way may end, and the threads with it.
    pub fn stop(&self) {
        self.control().listening.iter().for_each(|(port, sockets)| shut(*port, sockets));
        self.end(|| Order::Stop);
    }

    /// Ports that should be listened on, and why they are not.
    pub fn troubles(&self) -> Vec<(StreamPort, String)> {
        let control = self.control();
        let failed = control.listening.iter();
        failed.filter_map(|(port, sockets)| Some((*port, sockets.as_ref().err()?.clone()))).collect()
    }

    /// How long connections may go on after the stop signal.
    pub fn set_drain(&self, drain: Duration) {
        self.shared.drain_ms.store(millis(drain), Relaxed);
    }

    /// What was counted of all ports that there are now.
    pub fn total(&self) -> StreamLoad {
        self.shared.gauges().values().fold(StreamLoad::default(), |sum, gauge| sum + gauge.load())
    }

    /// What was counted of a port.
    pub fn load(&self, port: StreamPort) -> StreamLoad {
        self.shared.gauges().get(&port).map(|gauge| gauge.load()).unwrap_or_default()
    }

    /// For how long a port was counted: since it is forwarded, by this process.
    pub fn counted_for(&self, port: StreamPort) -> Option<Duration> {
        let now = Instant::now();
        self.shared.gauges().get(&port).map(|gauge| gauge.age(now))
    }

    /// Notes what a probe met at a target: what connections met before may be past.
    pub fn target_probed(&self, upstream: &UpstreamKey, met: Result<(), Reason>) {
        let Some(state) = self.shared.backends.find(upstream) else { return };
        match met {
            Ok(()) => state.met.note_answer(),
            Err(reason @ (Reason::BackendRefused | Reason::BackendTimedOut)) => {
                state.met.note_failure(reason, self.shared.now_ms());
            }
            // It took the connection, which is all that is asked of it here.
            Err(_) => state.met.note_answer(),
        }
    }

    /// How often `reason` stopped something at a port, since it is forwarded.
    pub fn count_at(&self, port: StreamPort, reason: StreamReason) -> u64 {
        self.shared.gauges().get(&port).map_or(0, |gauge| gauge.stopped().of(reason))
    }

    /// How busy a target is, if anything was ever sent there.
    pub fn target_load(&self, key: &BackendKey) -> Option<BackendLoad> {
        self.shared.backends.find(&UpstreamKey::plain(*key)).map(|state| state.load(self.shared.now_ms()))
    }

    /// How often `reason` stopped something.
    pub fn count(&self, reason: StreamReason) -> u64 {
        self.shared.counters.of(reason)
    }

    fn end(&self, order: impl Fn() -> Order) {
        let mut control = self.control();
        control.has_ended = true;
        control.listening.clear();
        control.inherited.clear();
        control.tell(order);
    }

    fn control(&self) -> MutexGuard<'_, Control> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StreamShared {
    pub fn now_ms(&self) -> u64 {
        millis(self.began.elapsed())
    }

    pub fn drain(&self) -> Duration {
        Duration::from_millis(self.drain_ms.load(Relaxed))
    }

    pub fn gauge(&self, port: StreamPort) -> Arc<StreamGauge> {
        let mut gauges = self.gauges();
        gauges.entry(port).or_insert_with(|| Arc::new(StreamGauge::new(Instant::now()))).clone()
    }

    /// Counts what was stopped at a port.
    pub fn stopped_at(&self, port: StreamPort, reason: StreamReason) {
        self.counters.stopped_by(reason);
        if let Some(gauge) = self.gauges().get(&port) {
            gauge.stopped().stopped_by(reason);
        }
    }

    fn gauges(&self) -> MutexGuard<'_, HashMap<StreamPort, Arc<StreamGauge>>> {
        self.gauges.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Control {
    /// Gives each thread a socket of its own, at least: connections may wait in each that was inherited.
    fn open(&mut self, port: StreamPort, address: Ipv4Addr) -> io::Result<Vec<OwnedFd>> {
        let address = SocketAddrV4::new(address, port.number);
        let mut sockets = self.inherited.remove(&port).unwrap_or_default();
        while sockets.len() < self.inboxes.len() {
            sockets.push(match port.protocol {
                Protocol::Tcp => accept_on(address)?.into(),
                Protocol::Udp => hear_on(address)?.into(),
            });
        }
        let kept: Vec<OwnedFd> = sockets.iter().map(OwnedFd::try_clone).collect::<io::Result<_>>()?;
        for (socket, inbox) in sockets.into_iter().zip(self.inboxes.iter().cycle()) {
            // A thread that ended takes nothing, and what waits at its socket waits in vain: so it is closed.
            let _ = inbox.send(match port.protocol {
                Protocol::Tcp => Order::Accept(port, TcpListener::from(socket)),
                Protocol::Udp => Order::Hear(port, UdpSocket::from(socket)),
            });
        }
        Ok(kept)
    }

    fn close(&mut self, port: StreamPort) {
        if let Some(sockets) = self.listening.remove(&port) {
            shut(port, &sockets);
        }
        self.tell(|| Order::Close(port));
    }

    fn tell(&self, order: impl Fn() -> Order) {
        for inbox in &self.inboxes {
            let _ = inbox.send(order());
        }
    }
}

/// Takes no more connections from now on, not only when the last thread has heard it.
fn shut(port: StreamPort, sockets: &Result<Vec<OwnedFd>, String>) {
    for socket in sockets.iter().flatten().filter(|_| port.protocol == Protocol::Tcp) {
        let _ = SockRef::from(&socket.as_fd()).shutdown(Shutdown::Both);
    }
}

/// A listening socket of a data thread. Unlike that of HTTP, it leaves clients alone who do not read for a while:
/// they may have stopped their terminal.
fn accept_on(address: SocketAddrV4) -> io::Result<TcpListener> {
    let listener = listen(address.into())?;
    SockRef::from(&listener).set_tcp_user_timeout(None)?;
    Ok(listener)
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

impl fmt::Display for StreamPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.protocol, self.number)
    }
}
