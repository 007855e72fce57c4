//! `proximity run`: everything is made in order, and undone in the opposite one.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use arc_swap::ArcSwap;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use proximity_admin::Appliance;
use proximity_config::{Config, Report};
use proximity_dhcp::Stats;
use proximity_dns::Forwarder;
use proximity_net::{LinkError, Links, Setting, sysctl};
use proximity_proxy::Authority;
use proximity_store::{Store, StoreError};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use crate::clock::Uptime;
use crate::control::{Control, Running};
use crate::data_plane::{DataThreads, ListenError};
use crate::forwarding;
use crate::kernel::Kernel;
use crate::lan::{self, Slot, Wire, WireError};
use crate::registrar::{Beginning, Registrar};
use crate::tasks::{AdminSockets, Tasks, Work};
use crate::upgrade::followers::Followers;
use crate::upgrade::handover::{self, Request, Requests};
use crate::upgrade::messages::TalkError;
use crate::upgrade::predecessor;
use crate::upgrade::sockets::Label;
use crate::upgrade::successor::{self, HandedOver, Takeover};
use crate::uplink::{self, Uplink};
use crate::{log, supervisor};

/// Why the appliance does not run.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum RunError {
    #[error("{0}")]
    Config(String),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error("the upstreams cannot be used: {0}")]
    Upstream(#[from] proximity_dns::ForwardError),
    #[error("cannot serve the admin API on {place}: {source}: {hint}")]
    Admin { place: String, source: std::io::Error, hint: &'static str },
    #[error("nothing was handed over: {0}: ask the running appliance by `proximity upgrade`")]
    Takeover(#[from] TalkError),
    #[error("the process cannot be set up: {0}")]
    Process(#[from] std::io::Error),
}

/// How a process came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Somebody started it.
    Alone,
    /// A supervisor did, and listens on standard input.
    Supervised,
    /// The process that it replaces did, and waits on standard input.
    Takeover,
}

/// Runs the appliance until it is told to stop, or another process has replaced it.
pub fn run(config_path: &Path, uptime: Uptime, origin: Origin) -> Result<(), RunError> {
    // A supervisor hears signals in its own way, which children inherit.
    nix::sys::signal::SigSet::empty().thread_set_mask().map_err(std::io::Error::from)?;
    predecessor::own_binary();
    let mut takeover = (origin == Origin::Takeover).then(Takeover::from_stdin).transpose()?;
    let mut supervisor = None;
    if origin == Origin::Supervised {
        supervisor = Some(successor::connection_on_stdin()?.into());
    }
    let result = read_config(config_path).and_then(|config| {
        log::set_level(config.appliance.log_level);
        raise_descriptor_limit();
        // Pages of 2 MiB for a heap of a few: memory for nothing.
        if let Err(error) = nix::sys::prctl::set_thp_disable(true) {
            log!(Debug, "appliance", "huge pages stay on", error = error);
        }
        // One thread for everything that is not a hot path.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(serve(config_path, config, uptime, supervisor, &mut takeover))
    });
    if let (Err(error), Some(takeover)) = (&result, takeover) {
        takeover.refuse(error.to_string());
    }
    log::flush();
    result
}

async fn serve(
    config_path: &Path,
    config: Config,
    uptime: Uptime,
    supervisor: Option<OwnedFd>,
    takeover: &mut Option<Takeover>,
) -> Result<(), RunError> {
    let mut signals = Signals::new()?;
    let mut handed = match takeover {
        Some(takeover) => takeover.begin()?,
        None => HandedOver::default(),
    };
    let supervisor = handed.sockets.take_one(&Label::Supervisor).or(supervisor);
    let admin_ports =
        config.admin.listen.iter().map(|addr| addr.port()).filter(|_| config.admin.enabled).collect();
    let forwarding = handed.state.forwarding_before.take();
    let forwarding = forwarding.map(|before| Setting::made_before(sysctl::IP_FORWARD, before));
    let kernel = Kernel::start(admin_ports, forwarding);
    let result = match begin(config_path, config, uptime, &kernel, handed, takeover).await {
        Ok((work, requests)) => live(work, requests, &mut signals, supervisor).await,
        Err(error) => Err(error),
    };
    match &result {
        Ok(End::Replaced) => log!(Info, "appliance", "ended, another process serves"),
        // The process that we were to replace goes on.
        Err(_) if takeover.is_some() => kernel.leave(),
        // Last, and also when the start failed half way: forwarding ends, then the firewall goes.
        _ => kernel.remove(),
    }
    if matches!(result, Ok(End::Stopped)) {
        log!(Info, "appliance", "stopped");
    }
    result.map(drop)
}

/// Why a process ends.
enum End {
    Stopped,
    Replaced,
}

/// Makes everything, in order. What may fail does so before anything is taken from the process before us.
async fn begin(
    config_path: &Path,
    config: Config,
    uptime: Uptime,
    kernel: &Kernel,
    handed: HandedOver,
    takeover: &mut Option<Takeover>,
) -> Result<((Work, Tasks), Requests), RunError> {
    let HandedOver { state: before, mut sockets } = handed;
    let store = Store::open(&config.appliance.state_dir)?;
    let state = store.load()?;
    log!(Info, "store", "state read", leases = state.leases.len(), objects = state.objects.len());
    let followers = Followers::default();
    let retired = sockets.take_retired();
    retired.iter().for_each(|(pid, _)| followers.expect(*pid));
    if takeover.is_some() {
        followers.expect(before.pid);
    }

    let links = Links::new()?;
    let mut wan = uplink::present(&links, &config.intent.wan_interface, config.wan).await;
    wan.gateway = wan.gateway.or(before.gateway);
    let dhcp = Arc::new(Stats::default());
    // The firewall stands before the links carry anything; packets are forwarded only while it does.
    let registrar = Registrar::start(Beginning {
        store,
        state,
        intent: &config.intent,
        wan,
        verdicts: before.verdicts,
        kernel: kernel.clone(),
        stats: dhcp.clone(),
        followers: followers.clone(),
    })?;
    lan::bring_up(&links, &config.intent.networks).await?;
    let mut networks = Vec::new();
    for network in &config.intent.networks {
        let slot = Slot::default();
        if network.dhcp_enabled {
            slot.store(Some(Arc::new(Wire::open(network, &links, &mut sockets).await?)));
        }
        networks.push((network.clone(), slot));
    }
    let admin = AdminSockets::open(&config, &mut sockets)?;
    let forwarder = Arc::new(ArcSwap::from_pointee(Forwarder::new(&forwarding::settings(&config))?));
    let (world, published) = (registrar.world(), registrar.published());
    let data = DataThreads::start(&config, world, &forwarder, published, &mut sockets, &before.stopped)?;
    let ready_after = uptime.milliseconds();

    let left: Vec<_> = sockets.left_paths().cloned().collect();
    // Closes what is not wanted any more. The process before us listens there until it retires.
    drop(sockets);
    if let Some(takeover) = takeover.take() {
        takeover.complete(before.pid, &followers);
    }
    retired.into_iter().for_each(|(pid, stream)| followers.attach(pid, stream.into()));
    for path in left {
        let _ = std::fs::remove_file(path);
    }
    let uplink = Uplink {
        interface: config.intent.wan_interface.clone(),
        hostname: config.intent.hostname.clone(),
        address: config.wan,
        registrar: registrar.clone(),
    };
    let state_dir = config.appliance.state_dir.clone();
    let (upgrades, requests) = mpsc::channel(1);
    let serves_dhcp = !before.stopped.iter().any(|service| service == "dhcp");
    let control = Arc::new(Control {
        registrar,
        kernel: kernel.clone(),
        config_path: config_path.to_owned(),
        running: Mutex::new(Running { started: config, waiting: Vec::new(), refused: None }),
        forwarder,
        dhcp,
        data: Arc::new(data),
        dhcp_serving: Arc::new(AtomicBool::new(serves_dhcp)),
        upgrades,
        followers,
        uptime,
        ready_after,
    });
    let work = Work { control, networks, admin, uplink, state_dir };
    let tasks = Tasks::start(&work, before.wan_lease);
    log!(Info, "appliance", "ready", version = env!("CARGO_PKG_VERSION"), milliseconds = ready_after);
    Ok(((work, tasks), requests))
}

/// Lives until the appliance is stopped, or replaced and nothing of it is left.
async fn live(
    (work, mut tasks): (Work, Tasks),
    mut requests: Requests,
    signals: &mut Signals,
    supervisor: Option<OwnedFd>,
) -> Result<End, RunError> {
    supervisor.iter().for_each(supervisor::tell_serving);
    loop {
        let request = tokio::select! {
            told = signals.next() => match told {
                Told::Stop => break,
                Told::Reload => {
                    // The outcome is logged and shown in the status.
                    drop(work.control.reload().await);
                    continue;
                }
                Told::Upgrade => Request::default(),
            },
            Some(request) = requests.recv() => request,
        };
        let (binary, reply) = request.take();
        tasks = match handover::hand_over(&work, tasks, binary, supervisor.as_ref()).await {
            Ok(retired) => {
                log!(Info, "upgrade", "replaced", pid = retired.upgraded().pid);
                reply.answer(Ok(retired.upgraded().clone()));
                retired.live(work, signals).await;
                return Ok(End::Replaced);
            }
            Err((refusal, tasks)) => {
                log!(Error, "upgrade", "this version serves on", reason = refusal);
                reply.answer(Err(refusal));
                tasks
            }
        };
    }
    log!(Info, "appliance", "stopping");
    // No lease is promised any more while requests that are under way end.
    tasks.stop_dhcp();
    let Control { data, followers, .. } = &*work.control;
    followers.stop();
    let stopping = data.clone();
    tokio::task::spawn_blocking(move || stopping.stop()).await.map_err(std::io::Error::other)?;
    // Those who were replaced have read it by now.
    followers.release().await;
    Ok(End::Stopped)
}

/// The signals that the appliance listens to.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    power: Signal,
    hangup: Signal,
    upgrade: Signal,
}

/// What a signal says.
enum Told {
    Stop,
    Reload,
    Upgrade,
}

impl Signals {
    fn new() -> std::io::Result<Signals> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            // How a container is told to halt.
            power: signal(SignalKind::from_raw(nix::sys::signal::Signal::SIGPWR as i32))?,
            // Read the configuration again.
            hangup: signal(SignalKind::hangup())?,
            // Have the binary at our own path take over.
            upgrade: signal(SignalKind::user_defined2())?,
        })
    }

    /// The next signal.
    async fn next(&mut self) -> Told {
        tokio::select! {
            _ = self.terminate.recv() => Told::Stop,
            _ = self.interrupt.recv() => Told::Stop,
            _ = self.power.recv() => Told::Stop,
            _ = self.hangup.recv() => Told::Reload,
            _ = self.upgrade.recv() => Told::Upgrade,
        }
    }

    /// Waits until the process shall stop; what else it is told is not its business any more.
    pub async fn stop(&mut self) {
        while !matches!(self.next().await, Told::Stop) {}
    }
}

/// The configuration of a file as text; an absent default file is an empty one.
pub fn read_text(path: &Path) -> Result<String, RunError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(text),
        Err(error)
            if error.kind() == std::io::ErrorKind::NotFound
                && path == Path::new(proximity_config::DEFAULT_PATH) =>
        {
            Ok(String::new())
        }
        Err(error) => {
            let advice = "check the path, or leave --config out for the defaults";
            Err(RunError::Config(format!("{}: {error}: {advice}", path.display())))
        }
    }
}

/// The configuration of a file, to start with: one app whose file of certificates is gone is no reason not to serve the
/// others.
fn read_config(path: &Path) -> Result<Config, RunError> {
    let text = read_text(path)?;
    let look = |file: &str| {
        if let Err(error) = check_authority(file) {
            log!(Error, "config", "a backend's certificate cannot be checked", tls_ca = error);
        }
        Ok(())
    };
    Config::parse_with(&text, look).map_err(|report| refused(path, &report))
}

/// The configuration of a file, with whatever is wrong with the files that it names.
pub fn check_config(path: &Path) -> Result<Config, RunError> {
    Config::parse_with(&read_text(path)?, check_authority).map_err(|report| refused(path, &report))
}

/// Whether the file of an authority can be used; else what is wrong with it and what to do.
pub fn check_authority(path: &str) -> Result<(), String> {
    Authority::read(path).map(drop).map_err(|error| error.to_string())
}

fn refused(path: &Path, report: &Report) -> RunError {
    RunError::Config(report.for_file(&path.display().to_string()))
}

/// Connections are descriptors, and the usual soft limit of 1,024 is a thousand clients.
fn raise_descriptor_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        log!(Warn, "appliance", "the limit of open files stays as it is", error = error);
    }
}
