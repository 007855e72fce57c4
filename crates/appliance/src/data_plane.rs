//! The data threads: each has its own runtime and its own sockets, and serves DNS and HTTP from the
//! published world.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use arc_swap::ArcSwap;
use proximity_config::Config;
use proximity_dns::{DnsServer, DnsStats, Forwarder};
use proximity_proxy::{AccessLog, Counters, DataPlane, Settings};
use proximity_table::World;
use tokio::sync::watch;

use crate::{clock, log};

/// Most data threads: a small network's traffic does not fill more.
const MOST_THREADS: usize = 4;

/// The running data threads.
pub struct DataThreads {
    threads: Vec<JoinHandle<()>>,
    stop: watch::Sender<bool>,
    access_log: Option<AccessLog>,
    /// Counters of each thread's proxy.
    pub proxy: Vec<Arc<Counters>>,
    /// Counters of each thread's DNS.
    pub dns: Vec<Arc<DnsStats>>,
}

/// The sockets of one thread.
struct Sockets {
    udp: Vec<UdpSocket>,
    tcp: Vec<TcpListener>,
    http: Vec<TcpListener>,
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
    /// Opens every socket and starts the threads.
    pub fn start(
        config: &Config,
        world: &Arc<ArcSwap<World>>,
        forwarder: &Arc<ArcSwap<Forwarder>>,
    ) -> Result<DataThreads, ListenError> {
        let count = thread::available_parallelism().map_or(1, usize::from).min(MOST_THREADS);
        let sockets = (0..count).map(|_| Sockets::open(config)).collect::<Result<Vec<_>, _>>()?;
        let access_log = config.proxy.enabled.then(|| start_access_log(config)).flatten();
        let (stop, stopped) = watch::channel(false);
        let mut started =
            DataThreads { threads: Vec::new(), stop, access_log, proxy: Vec::new(), dns: Vec::new() };
        for (index, sockets) in sockets.into_iter().enumerate() {
            let sink = started.access_log.as_ref().map(AccessLog::sink);
            let proxy = DataPlane::new(world.clone(), Settings::default(), sink);
            started.proxy.push(proxy.counters());
            let stats = Arc::new(DnsStats::default());
            started.dns.push(stats.clone());
            let server = DnsServer::new(world.clone(), forwarder.clone(), stats, clock::now);
            let stopped = stopped.clone();
            let thread = thread::Builder::new().name(format!("data-{index}")).spawn(move || {
                if let Err(error) = serve(sockets, proxy, server, stopped) {
                    log!(Error, "data", "a data thread ended", error = error);
                }
            });
            started.threads.push(thread.expect("threads can be made"));
        }
        Ok(started)
    }

    /// Stops listening, lets what is under way end, and writes the logs out.
    pub fn stop(self) {
        self.stop.send_replace(true);
        for thread in self.threads {
            let _ = thread.join();
        }
        if let Some(log) = self.access_log {
            log.finish();
        }
    }
}

impl Sockets {
    fn open(config: &Config) -> Result<Sockets, ListenError> {
        let failed = |protocol, address, key| move |source| ListenError { protocol, address, key, source };
        let mut sockets = Sockets { udp: Vec::new(), tcp: Vec::new(), http: Vec::new() };
        for address in dns_addresses(config) {
            // Opened here so that a taken port stops the start; each thread takes its own to its runtime.
            let udp = proximity_dns::listen_udp(address).and_then(tokio::net::UdpSocket::into_std);
            let tcp = proximity_dns::listen_tcp(address).and_then(tokio::net::TcpListener::into_std);
            sockets.udp.push(udp.map_err(failed("UDP", address, "dns.listen"))?);
            sockets.tcp.push(tcp.map_err(failed("TCP", address, "dns.listen"))?);
        }
        for &address in config.proxy.listen.iter().filter(|_| config.proxy.enabled) {
            let http = proximity_proxy::listen(address).map_err(failed("TCP", address, "proxy.listen"))?;
            sockets.http.push(http);
        }
        Ok(sockets)
    }
}

fn serve(sockets: Sockets, proxy: DataPlane, dns: DnsServer, stop: watch::Receiver<bool>) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async move {
        for socket in sockets.udp {
            let (dns, stop) = (dns.clone(), stop.clone());
            let socket = tokio::net::UdpSocket::from_std(socket)?;
            tokio::task::spawn_local(async move { dns.serve_udp(socket, stop).await });
        }
        for listener in sockets.tcp {
            let (dns, stop) = (dns.clone(), stop.clone());
            let listener = tokio::net::TcpListener::from_std(listener)?;
            tokio::task::spawn_local(async move { dns.serve_tcp(listener, stop).await });
        }
        proxy.serve(sockets.http, stop).await
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
