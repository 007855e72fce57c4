use std::io;
use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpStream;
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::caller::Caller;
use crate::decide::EVERYWHERE;
use crate::peers::Patience;
use crate::watch::{Phase, Signal, Watch};
use crate::worker::{Snapshot, Worker};
use crate::{AccessSink, Counters, Course, Reason, Shared, front, peers};

/// Connections that wait in the kernel to be taken.
const BACKLOG: i32 = 4096;
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

/// Removes a connection from the list when its task ends, however it ends.
struct Registered(Rc<Worker>, usize);

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
        let worker = Rc::new(Worker::new(self.snapshot, self.shared, self.log, self.counters));
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
    fn admit(self: &Rc<Worker>, stream: TcpStream, peer: SocketAddr) {
        if self.connections.borrow().is_empty() {
            // Nobody kept the time while nobody was here.
            self.clock.adjust();
        }
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
