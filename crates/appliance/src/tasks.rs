//! The tasks of the control thread: they can be paused as a whole, and started again.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use proximity_admin::{Listener, Token};
use proximity_config::Config;
use proximity_dhcp::Held;
use proximity_net::{NftError, Watch};
use proximity_table::Network;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinHandle, JoinSet};

use crate::control::Control;
use crate::daemon::RunError;
use crate::kernel::{Kernel, TABLE};
use crate::lan::{self, Slot};
use crate::registrar::Command;
use crate::upgrade::sockets::{Inherited, Kept, Label};
use crate::uplink::Uplink;
use crate::{clock, export, log, token};

/// How long a task may take to come to a point where it can be left.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the tasks work on.
pub struct Work {
    /// The appliance as the API sees it.
    pub control: Arc<Control>,
    /// The app networks, each with its wire.
    pub networks: Vec<(Arc<Network>, Slot)>,
    /// Where the API is served.
    pub admin: AdminSockets,
    /// The outside link.
    pub uplink: Uplink,
    /// Where the lease file is.
    pub state_dir: PathBuf,
}

/// The running tasks.
pub struct Tasks {
    stop: watch::Sender<bool>,
    admin: JoinSet<()>,
    lans: Vec<AbortHandle>,
    watchers: Vec<AbortHandle>,
    export: JoinHandle<()>,
    uplink: JoinHandle<Option<Held>>,
}

/// What is left of paused tasks.
pub struct Paused {
    /// The WAN's lease.
    pub held: Option<Held>,
    /// API requests that are being answered.
    pub answering: JoinSet<()>,
}

impl Tasks {
    /// Starts everything. `held` is the WAN's lease, if there is one already.
    pub fn start(work: &Work, held: Option<Held>) -> Tasks {
        let (stop, stopped) = watch::channel(false);
        let control = &work.control;
        let lan = |(network, slot): &(Arc<Network>, Slot)| {
            let serving = control.dhcp_serving.clone();
            let kept = lan::keep(
                slot.clone(),
                network.clone(),
                control.registrar.clone(),
                control.dhcp.clone(),
                serving,
            );
            tokio::spawn(kept).abort_handle()
        };
        let lans = work.networks.iter().map(lan).collect();
        let mut admin = JoinSet::new();
        match work.admin.listeners() {
            Ok(listeners) => listeners.into_iter().for_each(|listener| {
                admin.spawn(proximity_admin::serve(control.clone(), listener, stopped.clone()));
            }),
            Err(error) => log!(Error, "admin", "the API is not served", error = error),
        }
        let (world, published) = (control.registrar.world().clone(), control.registrar.published());
        let export = export::run(work.state_dir.clone(), world, published, stopped.clone());
        Tasks {
            admin,
            lans,
            watchers: vec![
                tokio::spawn(watch_firewall(control.kernel.clone())).abort_handle(),
                spawn_prober(control),
                tokio::spawn(follow_world(control.clone())).abort_handle(),
                tokio::spawn(control.data.blocking().clone().run()).abort_handle(),
                tokio::spawn(tidy(control.clone())).abort_handle(),
            ],
            export: tokio::spawn(export),
            uplink: tokio::spawn(work.uplink.clone().run(held, stopped)),
            stop,
        }
    }

    /// Promises no lease any more.
    pub fn stop_dhcp(&self) {
        self.lans.iter().for_each(AbortHandle::abort);
    }

    /// Has everything stop where it can be gone on with. DHCP messages wait in their sockets meanwhile, API
    /// connections in theirs.
    pub async fn pause(mut self) -> Paused {
        self.stop.send_replace(true);
        self.stop_dhcp();
        self.watchers.iter().for_each(AbortHandle::abort);
        if tokio::time::timeout(PATIENCE, &mut self.export).await.is_err() {
            self.export.abort();
        }
        let held = match tokio::time::timeout(PATIENCE, &mut self.uplink).await {
            Ok(held) => held.unwrap_or_default(),
            Err(_) => {
                self.uplink.abort();
                None
            }
        };
        Paused { held, answering: self.admin }
    }
}

/// Where the API is served. The sockets stay open while nobody serves on them: whoever connects waits.
pub struct AdminSockets {
    sockets: Kept,
    token: Token,
}

impl AdminSockets {
    /// Opens what the configuration wants, or takes what another process left.
    pub fn open(config: &Config, inherited: &mut Inherited) -> Result<AdminSockets, RunError> {
        let failed = |place: String, hint| move |source| RunError::Admin { place, source, hint };
        let path = config.appliance.run_dir.join("admin.sock");
        let label = Label::AdminUnix(path.clone());
        let unix = match inherited.take_one(&label).filter(|_| path.exists()) {
            Some(socket) => socket,
            None => open_socket(&path)
                .map_err(failed(path.display().to_string(), "check appliance.run_dir"))?
                .into(),
        };
        let mut sockets = vec![(label, unix)];
        for address in config.admin.listen.iter().filter(|_| config.admin.enabled) {
            let hint = "stop what listens there, or change admin.listen";
            let label = Label::AdminTcp(*address);
            let socket = match inherited.take_one(&label) {
                Some(socket) => socket,
                None => open_tcp(*address).map_err(failed(address.to_string(), hint))?,
            };
            sockets.push((label, socket));
        }
        let directory = &config.appliance.state_dir;
        let token = token::load_or_make(directory)
            .map_err(failed(directory.display().to_string(), "check appliance.state_dir"))?;
        Ok(AdminSockets { sockets, token })
    }

    /// The sockets, for another process.
    pub fn kept(&self) -> std::io::Result<Kept> {
        self.sockets.iter().map(|(label, socket)| Ok((label.clone(), socket.try_clone()?))).collect()
    }

    fn listeners(&self) -> std::io::Result<Vec<Listener>> {
        let listener = |(label, socket): (Label, OwnedFd)| match label {
            Label::AdminUnix(_) => {
                let listener = std::os::unix::net::UnixListener::from(socket);
                listener.set_nonblocking(true)?;
                tokio::net::UnixListener::from_std(listener).map(Listener::Unix)
            }
            _ => {
                let listener = std::net::TcpListener::from(socket);
                listener.set_nonblocking(true)?;
                let listener = tokio::net::TcpListener::from_std(listener)?;
                Ok(Listener::Tcp(listener, self.token.clone()))
            }
        };
        self.kept()?.into_iter().map(listener).collect()
    }
}

fn open_tcp(address: SocketAddr) -> std::io::Result<OwnedFd> {
    // Sets SO_REUSEADDR: connections of a process before do not keep the port.
    std::net::TcpListener::bind(address).map(OwnedFd::from)
}

/// The admin socket, for its owner alone. The state file's lock has shown that no other appliance uses it.
fn open_socket(path: &Path) -> std::io::Result<std::os::unix::net::UnixListener> {
    use std::os::unix::fs::PermissionsExt;
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = std::os::unix::net::UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Opens and closes sockets as worlds come: of forwarded ports, and for DNS on the WAN. An edit does so itself before it is answered; this is for
/// what else changes the world, and for ports that could not be had.
async fn follow_world(control: Arc<Control>) {
    let mut published = control.registrar.published();
    while published.changed().await.is_ok() {
        control.data.follow_world();
    }
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
        tokio::time::sleep(Duration::from_secs(60)).await;
    }
}

/// Has the proxy let go of what left the world. There is no hurry, and at many changes it is no small work.
async fn tidy(control: Arc<Control>) {
    let mut published = control.registrar.published();
    while published.changed().await.is_ok() {
        control.data.tidy(&control.registrar.world().load_full());
        tokio::time::sleep(Duration::from_secs(60)).await;
    }
}

fn spawn_prober(control: &Arc<Control>) -> AbortHandle {
    let (reports, mut verdicts) = tokio::sync::mpsc::channel(1024);
    let (registrar, data) = (control.registrar.clone(), control.data.clone());
    let (world, published) = (registrar.world().clone(), registrar.published());
    let authorities = data.authorities();
    let told = move |probed| data.backend_probed(probed);
    let probing = proximity_proxy::probe(world, published, reports, told, authorities, clock::entropy());
    // Ends with the prober.
    tokio::spawn(async move {
        while let Some((app, key, health)) = verdicts.recv().await {
            registrar.order(Command::Health(app, key, health)).await;
        }
    });
    tokio::spawn(probing).abort_handle()
}
