//! The data threads: each has its own runtime and its own sockets, and serves DNS and HTTP from the
//! published world.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use arc_swap::ArcSwap;
use proximity_config::Config;
use proximity_dns::{DnsServer, DnsSnapshot, DnsStats, Forwarder};
use proximity_proxy::{AccessLog, Counters, DataPlane, Shared, Totals};
use proximity_table::{ProxySettings, World};
use tokio::sync::{mpsc, watch};

use crate::{clock, log, salt};

/// Most data threads: a small network's traffic does not fill more.
const MOST_THREADS: usize = 4;

/// The running data threads, and the services on them.
pub struct DataThreads {
    threads: Mutex<Vec<JoinHandle<()>>>,
    inboxes: Mutex<Vec<mpsc::UnboundedSender<Work>>>,
    /// Ends each running service; `None` while it is stopped.
    dns_stop: Mutex<Option<watch::Sender<bool>>>,
    proxy_stop: Mutex<Option<watch::Sender<bool>>>,
    access_log: Mutex<Option<AccessLog>>,
    world: Arc<ArcSwap<World>>,
    forwarder: Arc<ArcSwap<Forwarder>>,
    /// What the threads' proxies know together; it stays while the service is stopped.
    shared: Arc<Shared>,
    proxy: Mutex<Vec<Arc<Counters>>>,
    dns: Vec<Arc<DnsStats>>,
}

/// A service on one of the threads.
enum Work {
    Dns(Vec<UdpSocket>, Vec<TcpListener>, DnsServer, watch::Receiver<bool>),
    Proxy(Vec<TcpListener>, Box<DataPlane>, watch::Receiver<bool>),
}

/// A socket that cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {protocol} {address}: {source}: stop what listens there, or change {key}")]
pub struct ListenError {
    protocol: &'static str,
    address: SocketAddr,
    key: &'static str,
    source: io::Error,
}

/// Addresses that DNS listens on: those of the file, else port 53 of every app network's own address.
pub fn dns_addresses(config: &Config) -> Vec<SocketAddr> {
    if !config.dns.enabled {
        return Vec::new();
    }
    if !config.dns.listen.is_empty() {
        return config.dns.listen.clone();
    }
    config.intent.networks.iter().map(|net| SocketAddr::new(net.address.addr.into(), 53)).collect()
}

impl DataThreads {
    /// Starts the threads and the services that the configuration wants.
    pub fn start(
        config: &Config,
        world: &Arc<ArcSwap<World>>,
        forwarder: &Arc<ArcSwap<Forwarder>>,
    ) -> Result<DataThreads, ListenError> {
        let count = thread::available_parallelism().map_or(1, usize::from).min(MOST_THREADS);
        let mut threads = Vec::new();
        let mut inboxes = Vec::new();
        for index in 0..count {
            let (inbox, work) = mpsc::unbounded_channel();
            inboxes.push(inbox);
            let body = move || {
                if let Err(error) = run(work) {
                    log!(Error, "data", "a data thread ended", error = error);
                }
            };
            let thread = thread::Builder::new().name(format!("data-{index}")).spawn(body);
            threads.push(thread.expect("threads can be made"));
        }
        let salt = salt::load_or_make(&config.appliance.state_dir);
        let started = DataThreads {
            threads: Mutex::new(threads),
            inboxes: Mutex::new(inboxes),
            dns_stop: Mutex::new(None),
            proxy_stop: Mutex::new(None),
            access_log: Mutex::new(config.proxy.enabled.then(|| start_access_log(config)).flatten()),
            world: world.clone(),
            forwarder: forwarder.clone(),
            shared: Arc::new(Shared::new(config.proxy.settings.clone(), salt, salt::random())),
            proxy: Mutex::default(),
            dns: (0..count).map(|_| Arc::default()).collect(),
        };
        started.start_dns(config)?;
        started.start_proxy(config)?;
        Ok(started)
    }

    /// Serves DNS on every thread, unless it is served or not wanted.
    pub fn start_dns(&self, config: &Config) -> Result<(), ListenError> {
        let addresses = dns_addresses(config);
        let mut running = lock(&self.dns_stop);
        if running.is_some() || addresses.is_empty() {
            return Ok(());
        }
        let (stop, stopped) = watch::channel(false);
        let inboxes = lock(&self.inboxes);
        let mut sockets = Vec::new();
        for _ in inboxes.iter() {
            // Opened here so that a taken port stops the start; each thread takes its own to its runtime.
            let udp = addresses.iter().map(|&address| {
                let socket = proximity_dns::listen_udp(address).and_then(tokio::net::UdpSocket::into_std);
                socket.map_err(failed("UDP", address, "dns.listen"))
            });
            let tcp = addresses.iter().map(|&address| {
                let socket = proximity_dns::listen_tcp(address).and_then(tokio::net::TcpListener::into_std);
                socket.map_err(failed("TCP", address, "dns.listen"))
            });
            sockets.push((udp.collect::<Result<_, _>>()?, tcp.collect::<Result<_, _>>()?));
        }
        for ((inbox, stats), (udp, tcp)) in inboxes.iter().zip(&self.dns).zip(sockets) {
            let server =
                DnsServer::new(self.world.clone(), self.forwarder.clone(), stats.clone(), clock::now);
            // A thread that ended has said so.
            let _ = inbox.send(Work::Dns(udp, tcp, server, stopped.clone()));
        }
        *running = Some(stop);
        Ok(())
    }

    /// Serves HTTP on every thread, unless it is served or not wanted.
    pub fn start_proxy(&self, config: &Config) -> Result<(), ListenError> {
        let mut running = lock(&self.proxy_stop);
        if running.is_some() || !config.proxy.enabled {
            return Ok(());
        }
        let (stop, stopped) = watch::channel(false);
        let inboxes = lock(&self.inboxes);
        let mut sockets = Vec::new();
        for _ in inboxes.iter() {
            let http = config.proxy.listen.iter().map(|&address| {
                proximity_proxy::listen(address).map_err(failed("TCP", address, "proxy.listen"))
            });
            sockets.push(http.collect::<Result<_, _>>()?);
        }
        for (inbox, http) in inboxes.iter().zip(sockets) {
            let sink = lock(&self.access_log).as_ref().map(AccessLog::sink);
            let plane = DataPlane::new(self.world.clone(), self.shared.clone(), sink);
            lock(&self.proxy).push(plane.counters());
            let _ = inbox.send(Work::Proxy(http, Box::new(plane), stopped.clone()));
        }
        *running = Some(stop);
        Ok(())
    }

    /// Has the proxies treat clients by changed settings from now on.
    pub fn set_proxy_settings(&self, settings: &ProxySettings) {
        self.shared.settings.store(Arc::new(settings.clone()));
    }

    /// Stops answering DNS.
    pub fn stop_dns(&self) {
        if let Some(stop) = lock(&self.dns_stop).take() {
            stop.send_replace(true);
        }
    }

    /// Stops taking HTTP connections; requests that are under way end.
    pub fn stop_proxy(&self) {
        if let Some(stop) = lock(&self.proxy_stop).take() {
            stop.send_replace(true);
        }
    }

    /// Whether DNS and the proxy are served.
    pub fn serving(&self) -> (bool, bool) {
        (lock(&self.dns_stop).is_some(), lock(&self.proxy_stop).is_some())
    }

    /// What the threads' DNS has counted.
    pub fn dns_totals(&self) -> DnsSnapshot {
        let mut totals = DnsSnapshot::default();
        self.dns.iter().for_each(|stats| totals.merge(&stats.snapshot()));
        totals
    }

    /// What the threads' proxies have counted.
    pub fn proxy_totals(&self) -> Totals {
        Totals::sum(lock(&self.proxy).iter().map(|counters| &**counters))
    }

    /// Stops listening, lets what is under way end, and writes the logs out.
    pub fn stop(&self) {
        self.stop_dns();
        self.stop_proxy();
        lock(&self.inboxes).clear();
        for thread in std::mem::take(&mut *lock(&self.threads)) {
            let _ = thread.join();
        }
        if let Some(log) = lock(&self.access_log).take() {
            log.finish();
        }
    }
}

fn failed(
    protocol: &'static str,
    address: SocketAddr,
    key: &'static str,
) -> impl FnOnce(io::Error) -> ListenError {
    move |source| ListenError { protocol, address, key, source }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Serves what comes in, until nothing can come any more and the proxies have drained.
fn run(mut inbox: mpsc::UnboundedReceiver<Work>) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async move {
        let mut proxies = Vec::new();
        while let Some(work) = inbox.recv().await {
            match work {
                Work::Dns(udp, tcp, dns, stop) => {
                    for socket in udp {
                        let (dns, stop) = (dns.clone(), stop.clone());
                        let socket = tokio::net::UdpSocket::from_std(socket)?;
                        tokio::task::spawn_local(async move { dns.serve_udp(socket, stop).await });
                    }
                    for listener in tcp {
                        let (dns, stop) = (dns.clone(), stop.clone());
                        let listener = tokio::net::TcpListener::from_std(listener)?;
                        tokio::task::spawn_local(async move { dns.serve_tcp(listener, stop).await });
                    }
                }
                Work::Proxy(http, plane, stop) => {
                    proxies.push(tokio::task::spawn_local(plane.serve(http, stop)))
                }
            }
        }
        for proxy in proxies {
            if let Ok(Err(error)) = proxy.await {
                log!(Error, "data", "the proxy ended", error = error);
            }
        }
        Ok(())
    })
}

/// Without its directory the proxy serves on without logs.
fn start_access_log(config: &Config) -> Option<AccessLog> {
    let tell = |trouble: &str| log!(Error, "access", trouble);
    match AccessLog::start(config.appliance.log_dir.clone(), tell) {
        Ok(log) => Some(log),
        Err(error) => {
            log!(Error, "access", "access logs are not written", error = error);
            None
        }
    }
}
