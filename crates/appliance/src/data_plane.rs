//! The data threads: each has its own runtime and its own sockets, and serves DNS and HTTP from the
//! published world.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::AsFd;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use proximity_config::Config;
use proximity_dns::{DnsServer, DnsSnapshot, DnsStats, Forwarder, Guards};
use proximity_proxy::{
    AccessLog, AccessLogCounts, AppTotals, BackendLoad, Counters, Course, DataPlane, KeptAuthorities, Probed,
    Shared, StreamForwards, StreamThread, Totals,
};
use proximity_table::{ProxySettings, UpstreamKey, World};
use socket2::{Domain, Socket, Type};
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::blocking::Blocking;
use crate::upgrade::sockets::{Inherited, Kept, Label, deal};
use crate::wan_dns::{self, Serving, WanDns};
use crate::{clock, log, salt};

/// Most data threads: a small network's traffic does not fill more.
const MOST_THREADS: usize = 4;

/// How long the data threads may take to notice that they are replaced; they do at their next turn.
const RETIREMENT: Duration = Duration::from_secs(1);
/// How long DNS questions that were read may take to be answered by upstreams, when another process reads now.
const LAST_ANSWERS: Duration = Duration::from_secs(10);

/// The running data threads, and the services on them.
pub struct DataThreads {
    threads: Mutex<Vec<JoinHandle<()>>>,
    inboxes: Mutex<Vec<mpsc::UnboundedSender<Work>>>,
    dns_running: Mutex<Option<Running<bool>>>,
    proxy_running: Mutex<Option<Running<Course>>>,
    access_log: Mutex<Option<AccessLog>>,
    world: Arc<ArcSwap<World>>,
    forwarder: Arc<ArcSwap<Forwarder>>,
    blocking: Arc<Blocking>,
    /// What the threads' proxies know together; it stays while the service is stopped.
    shared: Arc<Shared>,
    proxy: Mutex<Vec<Arc<Counters>>>,
    dns: Vec<Arc<DnsStats>>,
    /// What the threads' DNS knows together.
    guards: Arc<Guards>,
    wan_dns: WanDns,
    forwards: StreamForwards,
}

/// A service that is not stopped.
struct Running<C> {
    course: watch::Sender<C>,
    /// The sockets of all threads, for another process.
    kept: Kept,
}

/// A service on one of the threads.
enum Work {
    Dns(Vec<UdpSocket>, Vec<TcpListener>, DnsServer, watch::Receiver<bool>),
    Proxy(Vec<TcpListener>, Box<DataPlane>, watch::Receiver<Course>),
    /// The services have been told to retire; says when they have heard it.
    Retire(SyncSender<()>),
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
    /// Starts the threads and the services that the configuration wants and nobody has `stopped` by hand, on the
    /// sockets of another process where it left any.
    pub fn start(
        config: &Config,
        world: &Arc<ArcSwap<World>>,
        forwarder: &Arc<ArcSwap<Forwarder>>,
        published: watch::Receiver<u64>,
        inherited: &mut Inherited,
        stopped: &[String],
    ) -> Result<DataThreads, ListenError> {
        let drain = Duration::from_secs(config.proxy.settings.drain.into());
        let forwards = StreamForwards::new(world.clone(), published, Ipv4Addr::UNSPECIFIED, drain);
        let count = thread::available_parallelism().map_or(1, usize::from).min(MOST_THREADS);
        let mut threads = Vec::new();
        let mut inboxes = Vec::new();
        for index in 0..count {
            let (inbox, work) = mpsc::unbounded_channel();
            inboxes.push(inbox);
            let streams = forwards.thread();
            let body = move || {
                if let Err(error) = run(work, streams) {
                    log!(Error, "data", "a data thread ended", error = error);
                }
            };
            let thread = thread::Builder::new().name(format!("data-{index}")).spawn(body);
            threads.push(thread.expect("threads can be made"));
        }
        let salt = salt::load_or_make(&config.appliance.state_dir);
        let authorities = KeptAuthorities::telling(|trouble| log!(Warn, "proxy", trouble));
        let shared = Shared::new(config.proxy.settings.clone(), salt, salt::random());
        let started = DataThreads {
            threads: Mutex::new(threads),
            inboxes: Mutex::new(inboxes),
            dns_running: Mutex::new(None),
            proxy_running: Mutex::new(None),
            access_log: Mutex::new(config.proxy.enabled.then(|| start_access_log(config)).flatten()),
            world: world.clone(),
            forwarder: forwarder.clone(),
            blocking: Arc::new(Blocking::new(config)),
            shared: Arc::new(shared.with_authorities(authorities)),
            proxy: Mutex::default(),
            dns: (0..count).map(|_| Arc::default()).collect(),
            guards: Arc::new(Guards::new(salt::random())),
            wan_dns: WanDns::default(),
            forwards,
        };
        started.set_dns_rates(config);
        let wanted = |service: &str| !stopped.iter().any(|stopped| stopped == service);
        // All sockets before anything is served: what fails is to fail before.
        let count = started.threads();
        if inherited.is_empty() {
            refuse_shared(config, wanted)?;
        }
        let dns = wanted("dns").then(|| dns_sockets(config, count, inherited)).transpose()?;
        let proxy = wanted("proxy").then(|| proxy_sockets(config, count, inherited)).transpose()?;
        dns.into_iter().for_each(|sockets| started.serve_dns(sockets));
        proxy.into_iter().for_each(|sockets| started.serve_proxy(sockets));
        // A port that cannot be had is the forward's trouble alone.
        started.forwards.adopt(inherited.take_forwards());
        started.follow_forwards();
        started.follow_wan(inherited);
        Ok(started)
    }

    /// Serves DNS on every thread, unless it is served or not wanted.
    pub fn start_dns(&self, config: &Config) -> Result<(), ListenError> {
        if lock(&self.dns_running).is_none() {
            self.serve_dns(dns_sockets(config, self.threads(), &mut Inherited::default())?);
            self.follow_wan(&mut Inherited::default());
        }
        Ok(())
    }

    /// Serves HTTP on every thread, unless it is served or not wanted.
    pub fn start_proxy(&self, config: &Config) -> Result<(), ListenError> {
        if lock(&self.proxy_running).is_none() {
            self.serve_proxy(proxy_sockets(config, self.threads(), &mut Inherited::default())?);
        }
        Ok(())
    }

    /// Names that are blocked.
    pub fn blocking(&self) -> &Arc<Blocking> {
        &self.blocking
    }

    /// The ports that are forwarded here.
    pub fn forwards(&self) -> &StreamForwards {
        &self.forwards
    }

    /// Listens wherever the present world wants it, and no longer elsewhere: at forwarded ports, and for DNS on the
    /// WAN.
    pub fn follow_world(&self) {
        self.follow_forwards();
        self.follow_wan(&mut Inherited::default());
    }

    /// The addresses on the WAN that app names are answered at.
    pub fn wan_dns_addresses(&self) -> Vec<Ipv4Addr> {
        self.wan_dns.addresses()
    }

    /// Has clients ask, and be answered, as often as a changed configuration says.
    pub fn set_dns_rates(&self, config: &Config) {
        self.guards.set_rates(config.dns.client_rate, config.dns.response_rate);
    }

    /// DNS that is stopped is stopped on the WAN too.
    fn follow_wan(&self, inherited: &mut Inherited) {
        let running = lock(&self.dns_running).is_some();
        let wanted = if running { wan_dns::wanted(&self.world.load()) } else { Default::default() };
        self.wan_dns.follow(&wanted, |ip| self.serve_wan(ip, inherited));
    }

    fn serve_wan(&self, ip: Ipv4Addr, inherited: &mut Inherited) -> Result<Serving, ListenError> {
        let address = SocketAddr::new(ip.into(), 53);
        let sockets = dns_sockets_at(vec![address], "wan.dns", self.threads(), inherited)?;
        let stop = self.hand_dns(sockets.hands, |server| server.on_wan(ip));
        Ok(Serving { stop, kept: sockets.kept })
    }

    fn follow_forwards(&self) {
        for (port, reason) in self.forwards.follow(&self.world.load()) {
            log!(Error, "forward", "a port is not listened on", port = port, reason = reason);
        }
    }

    /// What requests found out of a backend; `None` when there was none.
    pub fn backend_load(&self, key: &UpstreamKey) -> Option<BackendLoad> {
        let shared = &self.shared;
        shared.backends.find(key).map(|state| state.load(shared.millis(Instant::now())))
    }

    /// Has the proxies treat clients by changed settings from now on.
    pub fn set_proxy_settings(&self, settings: &ProxySettings) {
        self.shared.settings.store(Arc::new(settings.clone()));
        self.forwards.set_drain(Duration::from_secs(settings.drain.into()));
        if let Some(log) = &*lock(&self.access_log) {
            log.set(settings.log);
        }
    }

    /// Stops answering DNS.
    pub fn stop_dns(&self) {
        if let Some(running) = lock(&self.dns_running).take() {
            running.course.send_replace(true);
        }
        self.wan_dns.stop();
    }

    /// Stops taking HTTP connections; requests that are under way end.
    pub fn stop_proxy(&self) {
        if let Some(running) = lock(&self.proxy_running).take() {
            running.course.send_replace(Course::Stop);
        }
    }

    /// Whether DNS and the proxy are served.
    pub fn serving(&self) -> (bool, bool) {
        (lock(&self.dns_running).is_some(), lock(&self.proxy_running).is_some())
    }

    /// The sockets, for another process. They may be taken while they are served.
    pub fn kept(&self) -> io::Result<Kept> {
        let (dns, proxy) = (lock(&self.dns_running), lock(&self.proxy_running));
        let dns = dns.iter().flat_map(|running| &running.kept);
        let proxy = proxy.iter().flat_map(|running| &running.kept);
        let services = dns.chain(proxy).map(|(label, socket)| Ok((label.clone(), socket.try_clone()?)));
        let forwards = self.forwards.sockets()?.into_iter();
        let forwards =
            forwards.map(|(port, socket)| Ok((Label::Forward(port.protocol, port.number), socket)));
        services.chain(self.wan_dns.kept()?.into_iter().map(Ok)).chain(forwards).collect()
    }

    /// Takes nothing any more, because another process has the sockets; what is open goes on. Blocks until the
    /// threads have heard it.
    pub fn retire(&self) {
        if let Some(running) = lock(&self.dns_running).as_mut() {
            running.course.send_replace(true);
            running.kept.clear();
        }
        self.wan_dns.stop();
        if let Some(running) = lock(&self.proxy_running).as_mut() {
            running.course.send_replace(Course::Retire);
            running.kept.clear();
        }
        self.forwards.retire();
        let inboxes = lock(&self.inboxes);
        let (heard, all) = sync_channel(inboxes.len());
        // A thread that ended has said so.
        inboxes.iter().for_each(|inbox| drop(inbox.send(Work::Retire(heard.clone()))));
        drop(heard);
        let deadline = Instant::now() + RETIREMENT;
        while all.recv_timeout(deadline.saturating_duration_since(Instant::now())).is_ok() {}
    }

    fn threads(&self) -> usize {
        lock(&self.inboxes).len()
    }

    fn serve_dns(&self, sockets: Option<DnsSockets>) {
        let Some(DnsSockets { hands, kept }) = sockets else { return };
        let course = self.hand_dns(hands, |server| server);
        *lock(&self.dns_running) = Some(Running { course, kept });
    }

    /// Gives each thread its sockets and a server for them; what is returned ends them.
    fn hand_dns(&self, hands: Vec<DnsHand>, make: impl Fn(DnsServer) -> DnsServer) -> watch::Sender<bool> {
        let (course, stopped) = watch::channel(false);
        for ((inbox, stats), (udp, tcp)) in lock(&self.inboxes).iter().zip(&self.dns).zip(hands) {
            let server =
                DnsServer::new(self.world.clone(), self.forwarder.clone(), stats.clone(), clock::now)
                    .with_policy(self.blocking.published());
            // A thread that ended has said so.
            let _ =
                inbox.send(Work::Dns(udp, tcp, make(server.guarded(self.guards.clone())), stopped.clone()));
        }
        course
    }

    fn serve_proxy(&self, sockets: Option<ProxySockets>) {
        let Some(ProxySockets { hands, kept }) = sockets else { return };
        let (course, told) = watch::channel(Course::Serve);
        for (inbox, http) in lock(&self.inboxes).iter().zip(hands) {
            let sink = lock(&self.access_log).as_ref().map(AccessLog::sink);
            let plane = DataPlane::new(self.world.clone(), self.shared.clone(), sink);
            lock(&self.proxy).push(plane.counters());
            let _ = inbox.send(Work::Proxy(http, Box::new(plane), told.clone()));
        }
        *lock(&self.proxy_running) = Some(Running { course, kept });
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

    /// What the threads' proxies have counted of each app, and of requests for no app.
    pub fn app_totals(&self) -> (Vec<(Arc<str>, AppTotals)>, AppTotals) {
        self.shared.apps.totals()
    }

    /// The authorities that backends are trusted by.
    pub fn authorities(&self) -> Arc<KeptAuthorities> {
        self.shared.authorities.clone()
    }

    /// A probe is over: what requests met before may be past, and a backend that is healthy again starts slowly.
    pub fn backend_probed(&self, probed: Probed) {
        if let Some(met) = probed.met {
            self.forwards.target_probed(&probed.upstream, met);
        }
        let backends = &self.shared.backends;
        let now_ms = self.shared.millis(Instant::now());
        if let Some(state) = backends.find(&probed.upstream) {
            match probed.met {
                Some(Ok(())) => state.met.note_answer(),
                Some(Err(reason)) => state.met.note_failure(reason, now_ms),
                None => {}
            }
        }
        if probed.became_healthy {
            backends.of(&probed.upstream.backend).iter().for_each(|state| state.became_usable(now_ms));
        }
    }

    /// What was counted of an app.
    pub fn app_total(&self, app: &str) -> AppTotals {
        self.shared.apps.of(app)
    }

    /// How clients are treated on the whole.
    pub fn proxy_settings(&self) -> Arc<ProxySettings> {
        self.shared.settings.load_full()
    }

    /// What requests have found out about the backends.
    pub fn backend_loads(&self) -> HashMap<UpstreamKey, BackendLoad> {
        self.shared.backends.loads(self.shared.millis(Instant::now()))
    }

    /// What became of the lines of the access logs.
    pub fn access_log_counts(&self) -> AccessLogCounts {
        lock(&self.access_log).as_ref().map(AccessLog::counts).unwrap_or_default()
    }

    /// For how long the disk of the access logs hangs.
    pub fn access_log_hangs_for(&self) -> Option<Duration> {
        lock(&self.access_log).as_ref().and_then(AccessLog::hangs_for)
    }

    /// Lets go of what is known of apps and backends that the world no longer has.
    pub fn tidy(&self, world: &World) {
        let mut apps: HashSet<&str> = HashSet::new();
        let mut backends: HashSet<UpstreamKey> = HashSet::new();
        for route in world.routes.values() {
            apps.insert(&route.app);
            backends.extend(route.upstreams().map(|(upstream, _)| upstream));
            backends.extend(route.auth_backend.iter().map(|backend| UpstreamKey::plain(backend.key)));
        }
        self.shared.apps.retain(|app| apps.contains(app));
        self.shared.backends.retain(|key| backends.contains(key));
    }

    /// Stops listening, lets what is under way end, and writes the logs out.
    pub fn stop(&self) {
        self.stop_dns();
        self.stop_proxy();
        self.forwards.stop();
        self.finish();
    }

    /// Waits until what is stopped or retired has ended, and writes the logs out. Blocks.
    pub fn finish(&self) {
        lock(&self.inboxes).clear();
        for thread in std::mem::take(&mut *lock(&self.threads)) {
            let _ = thread.join();
        }
        // Let go of first: a status is not to wait for the disk.
        let log = lock(&self.access_log).take();
        if log.is_some_and(|log| !log.finish()) {
            log!(Error, "access", "the disk of the access logs hangs; the last lines are lost");
        }
    }
}

/// The sockets of DNS of one thread.
type DnsHand = (Vec<UdpSocket>, Vec<TcpListener>);

/// The sockets of DNS: for each thread its own, and all of them for another process.
struct DnsSockets {
    hands: Vec<DnsHand>,
    kept: Kept,
}

/// The same of the proxy.
struct ProxySockets {
    hands: Vec<Vec<TcpListener>>,
    kept: Kept,
}

/// Opened here so that a taken port stops the start; each thread takes its own to its runtime.
fn dns_sockets(
    config: &Config,
    threads: usize,
    inherited: &mut Inherited,
) -> Result<Option<DnsSockets>, ListenError> {
    let addresses = dns_addresses(config);
    if addresses.is_empty() {
        return Ok(None);
    }
    dns_sockets_at(addresses, "dns.listen", threads, inherited).map(Some)
}

/// Sockets at these addresses, which `key` asks for.
fn dns_sockets_at(
    addresses: Vec<SocketAddr>,
    key: &'static str,
    threads: usize,
    inherited: &mut Inherited,
) -> Result<DnsSockets, ListenError> {
    let mut sockets = DnsSockets { hands: Vec::new(), kept: Vec::new() };
    sockets.hands.resize_with(threads, Default::default);
    for address in addresses {
        let udp = inherited.take(&Label::DnsUdp(address)).into_iter().map(UdpSocket::from).collect();
        let open = || proximity_dns::listen_udp(address);
        let udp = deal(udp, threads, open).map_err(failed("UDP", address, key))?;
        let tcp = inherited.take(&Label::DnsTcp(address)).into_iter().map(TcpListener::from).collect();
        let open = || proximity_dns::listen_tcp(address).and_then(tokio::net::TcpListener::into_std);
        let tcp = deal(tcp, threads, open).map_err(failed("TCP", address, key))?;
        keep(&mut sockets.kept, &udp, &Label::DnsUdp(address)).map_err(failed("UDP", address, key))?;
        keep(&mut sockets.kept, &tcp, &Label::DnsTcp(address)).map_err(failed("TCP", address, key))?;
        for (hand, (udp, tcp)) in sockets.hands.iter_mut().zip(udp.into_iter().zip(tcp)) {
            hand.0.extend(udp);
            hand.1.extend(tcp);
        }
    }
    Ok(sockets)
}

fn proxy_sockets(
    config: &Config,
    threads: usize,
    inherited: &mut Inherited,
) -> Result<Option<ProxySockets>, ListenError> {
    if !config.proxy.enabled {
        return Ok(None);
    }
    let mut sockets = ProxySockets { hands: Vec::new(), kept: Vec::new() };
    sockets.hands.resize_with(threads, Vec::new);
    for &address in &config.proxy.listen {
        let http = inherited.take(&Label::Proxy(address)).into_iter().map(TcpListener::from).collect();
        let open = || proximity_proxy::listen(address);
        let http = deal(http, threads, open).map_err(failed("TCP", address, "proxy.listen"))?;
        keep(&mut sockets.kept, &http, &Label::Proxy(address)).map_err(failed(
            "TCP",
            address,
            "proxy.listen",
        ))?;
        for (hand, http) in sockets.hands.iter_mut().zip(http) {
            hand.extend(http);
        }
    }
    Ok(Some(sockets))
}

/// Refuses addresses that somebody else listens at. Our own sockets share theirs, one for each thread, so the kernel would
/// let another process of the same user, say a second appliance, take a part of what comes.
fn refuse_shared(config: &Config, wanted: impl Fn(&str) -> bool) -> Result<(), ListenError> {
    let alone = |address: SocketAddr, kind: Type| {
        let socket = Socket::new(Domain::for_address(address), kind, None)?;
        // What a former process left to time out is no obstacle; another listener is.
        socket.set_reuse_address(kind == Type::STREAM)?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.bind(&address.into())
    };
    for address in dns_addresses(config).into_iter().filter(|_| wanted("dns")) {
        alone(address, Type::DGRAM).map_err(failed("UDP", address, "dns.listen"))?;
        alone(address, Type::STREAM).map_err(failed("TCP", address, "dns.listen"))?;
    }
    let proxy = config.proxy.listen.iter().filter(|_| config.proxy.enabled && wanted("proxy"));
    for &address in proxy {
        alone(address, Type::STREAM).map_err(failed("TCP", address, "proxy.listen"))?;
    }
    Ok(())
}

fn keep(kept: &mut Kept, hands: &[Vec<impl AsFd>], label: &Label) -> io::Result<()> {
    for socket in hands.iter().flatten() {
        kept.push((label.clone(), socket.as_fd().try_clone_to_owned()?));
    }
    Ok(())
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
fn run(mut inbox: mpsc::UnboundedReceiver<Work>, streams: StreamThread) -> io::Result<()> {
    let mut runtime = Builder::new_current_thread();
    let runtime = runtime.enable_io().enable_time().build_local(LocalOptions::default())?;
    runtime.block_on(async move {
        let streams = tokio::task::spawn_local(streams.serve());
        let mut proxies = Vec::new();
        let mut dns_tasks = JoinSet::new();
        let mut retired = false;
        while let Some(work) = inbox.recv().await {
            match work {
                Work::Dns(udp, tcp, dns, stop) => {
                    while dns_tasks.try_join_next().is_some() {}
                    for socket in udp {
                        let (dns, stop) = (dns.clone(), stop.clone());
                        dns_tasks.spawn_local(async move { dns.serve_udp(socket, stop).await });
                    }
                    for listener in tcp {
                        let (dns, stop) = (dns.clone(), stop.clone());
                        let listener = tokio::net::TcpListener::from_std(listener)?;
                        dns_tasks.spawn_local(async move { dns.serve_tcp(listener, stop).await });
                    }
                }
                Work::Proxy(http, plane, course) => {
                    proxies.push(tokio::task::spawn_local(plane.serve(http, course)))
                }
                Work::Retire(heard) => {
                    retired = true;
                    // Whoever was woken before us has its turn before us: first the services, then their
                    // listening tasks, which they end.
                    for _ in 0..4 {
                        tokio::task::yield_now().await;
                    }
                    let _ = heard.send(());
                }
            }
        }
        for proxy in proxies {
            if let Ok(Err(error)) = proxy.await {
                log!(Error, "data", "the proxy ended", error = error);
            }
        }
        // It ends by itself when it was stopped, or retired and nothing is open any more.
        let _ = streams.await;
        if retired {
            let answered = async { while dns_tasks.join_next().await.is_some() {} };
            let _ = tokio::time::timeout(LAST_ANSWERS, answered).await;
        }
        Ok(())
    })
}

/// Without its directory the proxy serves on without logs.
fn start_access_log(config: &Config) -> Option<AccessLog> {
    let tell = |trouble: &str| log!(Error, "access", trouble);
    match AccessLog::start(config.appliance.log_dir.clone(), config.proxy.settings.log, tell) {
        Ok(log) => Some(log),
        Err(error) => {
            log!(Error, "access", "access logs are not written", error = error);
            None
        }
    }
}
