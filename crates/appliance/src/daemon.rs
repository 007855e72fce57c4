//! `proximity run`: everything is made in order, and undone in the opposite one.

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use arc_swap::ArcSwap;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use proximity_admin::{Appliance, Listener};
use proximity_config::Config;
use proximity_dhcp::Stats;
use proximity_dns::Forwarder;
use proximity_net::{LinkError, Links, NftError, Watch};
use proximity_store::{Store, StoreError};
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::AbortHandle;

use crate::clock::{self, Uptime};
use crate::control::{Control, Running, dns_settings};
use crate::data_plane::{DataThreads, ListenError};
use crate::kernel::{Kernel, TABLE};
use crate::lan::{self, Wire, WireError};
use crate::log;
use crate::registrar::{Command, Registrar};
use crate::uplink::{self, Uplink};
use crate::{export, token};

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
    #[error("the process cannot be set up: {0}")]
    Process(#[from] std::io::Error),
}

/// Runs the appliance until it is told to stop.
pub fn run(config_path: &Path, uptime: Uptime) -> Result<(), RunError> {
    let config = read_config(config_path)?;
    log::set_level(config.appliance.log_level);
    raise_descriptor_limit();
    // Pages of 2 MiB for a heap of a few: memory for nothing.
    if let Err(error) = nix::sys::prctl::set_thp_disable(true) {
        log!(Debug, "appliance", "huge pages stay on", error = error);
    }
    // One thread for everything that is not a hot path.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(serve(config_path, config, uptime))
}

async fn serve(config_path: &Path, config: Config, uptime: Uptime) -> Result<(), RunError> {
    let admin_ports =
        config.admin.listen.iter().map(|addr| addr.port()).filter(|_| config.admin.enabled).collect();
    let kernel = Kernel::start(admin_ports);
    let result = serve_with(config_path, config, uptime, &kernel).await;
    // Last, and also when the start failed half way: forwarding ends, then the firewall goes.
    kernel.remove();
    if result.is_ok() {
        log!(Info, "appliance", "stopped");
    }
    log::flush();
    result
}

async fn serve_with(
    config_path: &Path,
    config: Config,
    uptime: Uptime,
    kernel: &Kernel,
) -> Result<(), RunError> {
    let mut signals = Signals::new()?;
    let store = Store::open(&config.appliance.state_dir)?;
    let state = store.load()?;
    log!(Info, "store", "state read", leases = state.leases.len(), objects = state.objects.len());

    let links = Links::new()?;
    let wan = uplink::present(&links, &config.intent.wan_interface, config.wan).await;
    let dhcp = Arc::new(Stats::default());
    // The firewall stands before the links carry anything; packets are forwarded only while it does.
    let registrar = Registrar::start(store, state, &config.intent, wan, kernel.clone(), dhcp.clone())?;
    lan::bring_up(&links, &config.intent.networks).await?;

    let forwarder = Arc::new(ArcSwap::from_pointee(Forwarder::new(&dns_settings(&config))?));
    let data = Arc::new(DataThreads::start(&config, registrar.world(), &forwarder)?);
    let dhcp_serving = Arc::new(AtomicBool::new(true));
    let mut lans = Vec::new();
    for network in &config.intent.networks {
        let wire = match network.dhcp_enabled {
            true => Some(Arc::new(Wire::open(network, &links).await?)),
            false => None,
        };
        let kept = lan::keep(wire, network.clone(), registrar.clone(), dhcp.clone(), dhcp_serving.clone());
        lans.push(tokio::spawn(kept).abort_handle());
    }
    let admin = open_admin(&config).await?;

    let uplink = Uplink {
        interface: config.intent.wan_interface.clone(),
        hostname: config.intent.hostname.clone(),
        address: config.wan,
        registrar: registrar.clone(),
    };
    tokio::spawn(uplink.run());
    tokio::spawn(export::run(
        config.appliance.state_dir.clone(),
        registrar.world().clone(),
        registrar.published(),
    ));
    tokio::spawn(watch_firewall(kernel.clone()));
    spawn_prober(&registrar);

    let ready_after = uptime.milliseconds();
    let control = Arc::new(Control {
        registrar,
        kernel: kernel.clone(),
        config_path: config_path.to_owned(),
        running: Mutex::new(Running { started: config, needs_restart: Vec::new(), refused: None }),
        forwarder,
        dhcp,
        data: data.clone(),
        dhcp_serving,
        uptime,
        ready_after,
    });
    for listener in admin {
        tokio::spawn(proximity_admin::serve(control.clone(), listener));
    }
    log!(Info, "appliance", "ready", version = env!("CARGO_PKG_VERSION"), milliseconds = ready_after);
    signals.wait_for_stop(&control).await;

    log!(Info, "appliance", "stopping");
    // No lease is promised any more while requests that are under way end.
    lans.iter().for_each(AbortHandle::abort);
    tokio::task::spawn_blocking(move || data.stop()).await.map_err(std::io::Error::other)?;
    Ok(())
}

/// The signals that the appliance listens to.
struct Signals {
    stop: Signal,
    interrupt: Signal,
    power: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Signals> {
        Ok(Signals {
            stop: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            // How a container is told to halt.
            power: signal(SignalKind::from_raw(nix::sys::signal::Signal::SIGPWR as i32))?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Waits until the appliance shall stop; reads the configuration again whenever it is told to.
    async fn wait_for_stop(&mut self, control: &Control) {
        loop {
            tokio::select! {
                _ = self.stop.recv() => return,
                _ = self.interrupt.recv() => return,
                _ = self.power.recv() => return,
                // The outcome is logged and shown in the status.
                _ = self.hangup.recv() => drop(control.reload().await),
            }
        }
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

/// The configuration of a file.
pub fn read_config(path: &Path) -> Result<Config, RunError> {
    let text = read_text(path)?;
    Config::parse(&text).map_err(|report| RunError::Config(report.for_file(&path.display().to_string())))
}

/// Connections are descriptors, and the usual soft limit of 1,024 is a thousand clients.
fn raise_descriptor_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        log!(Warn, "appliance", "the limit of open files stays as it is", error = error);
    }
}

async fn open_admin(config: &Config) -> Result<Vec<Listener>, RunError> {
    let failed = |place: String, hint| move |source| RunError::Admin { place, source, hint };
    let socket = config.appliance.run_dir.join("admin.sock");
    let place = socket.display().to_string();
    let unix = open_socket(&socket).map_err(failed(place, "check appliance.run_dir"))?;
    let mut listeners = vec![Listener::Unix(unix)];
    let directory = &config.appliance.state_dir;
    let hint = "check appliance.state_dir";
    let token = token::load_or_make(directory).map_err(failed(directory.display().to_string(), hint))?;
    for address in config.admin.listen.iter().filter(|_| config.admin.enabled) {
        let hint = "stop what listens there, or change admin.listen";
        let listener = TcpListener::bind(address).await.map_err(failed(address.to_string(), hint))?;
        listeners.push(Listener::Tcp(listener, token.clone()));
    }
    Ok(listeners)
}

/// The admin socket, for its owner alone. The state file's lock has shown that no other appliance uses it.
fn open_socket(path: &Path) -> std::io::Result<UnixListener> {
    use std::os::unix::fs::PermissionsExt;
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Has the firewall compared whenever somebody else changes it.
async fn watch_firewall(kernel: Kernel) {
    let Some(port) = kernel.port() else { return };
    loop {
        let watched: Result<(), NftError> = async {
            let mut watch = Watch::open(TABLE, vec![port])?;
            loop {
                let changed = watch.changed().await?;
                log!(Warn, "kernel", "the firewall was touched", by = changed.by.unwrap_or_default());
                kernel.check();
            }
        }
        .await;
        if let Err(error) = watched {
            log!(Warn, "kernel", "changes of the firewall are not heard", error = error);
        }
        tokio::time::sleep(std::time::Duration::from_secs(60)).await;
    }
}

fn spawn_prober(registrar: &Registrar) {
    let (reports, mut verdicts) = tokio::sync::mpsc::channel(1024);
    let registrar = registrar.clone();
    tokio::spawn(proximity_proxy::probe(
        registrar.world().clone(),
        registrar.published(),
        reports,
        clock::entropy(),
    ));
    tokio::spawn(async move {
        while let Some((app, key, health)) = verdicts.recv().await {
            registrar.order(Command::Health(app, key, health)).await;
        }
    });
}
