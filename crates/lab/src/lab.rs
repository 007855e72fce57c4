//! The whole lab: who is there, and which cable goes where.
//!
//! ```text
//!  internet 203.0.113.10 ── 203.0.113.1 router 192.168.1.1 ──┐
//!  (web; 8.8.8.8, 1.1.1.1)  (DHCP, DNS, NAT)                 │ vmbr0   ┌─ host ─┐
//!                           client 192.168.1.50 ─────────────┼─────────┤        │
//!                           appliance eth0 192.168.1.2 ──────┘         │        │
//!                           appliance eth1 10.20.0.1 ────┬─────────────┤        │
//!                           apps eth0 ───────────────────┘ proximity-lan└───────┘
//! ```

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crate::{
    App, AppSpec, ApplianceProc, Bridge, DhcpClient, LabError, Mac, Node, WebServer, deps, enter, link,
};

/// Fixed addresses of the lab.
pub mod addresses {
    use std::net::Ipv4Addr;

    use crate::Mac;

    /// The home router on the management LAN: its gateway, DHCP server and DNS server.
    pub const ROUTER: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 1);
    /// The appliance's WAN address, reserved for [`APPLIANCE_WAN_MAC`] by the router.
    pub const APPLIANCE_WAN: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 2);
    /// A machine on the management LAN, with "the Proxmox UI" on port 8006.
    pub const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 50);
    /// The web server of the internet, `www.example.com`.
    pub const INTERNET: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
    /// The router's side of the internet link; apps appear to the internet under this address.
    pub const ROUTER_WAN: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
    /// Network card `eth0` of the appliance.
    pub const APPLIANCE_WAN_MAC: Mac = Mac([0xbc, 0x24, 0x11, 0xff, 0x00, 0x01]);
    /// Network card `eth1` of the appliance.
    pub const APPLIANCE_LAN_MAC: Mac = Mac([0xbc, 0x24, 0x11, 0xff, 0x00, 0x02]);
}

/// One of the two LANs of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lan {
    /// `vmbr0`, 192.168.1.0/24.
    Management,
    /// `proximity-lan`, served by the appliance.
    Apps,
}

/// Receives the name and duration of each step.
pub type Progress = Box<dyn Fn(&str, Duration)>;

/// How a lab is to be built.
#[derive(Default)]
pub struct LabOptions {
    /// Where logs go; a fresh directory that is removed with the lab if `None`.
    pub log_directory: Option<PathBuf>,
    /// A directory to hold the appliance's `/var/lib/proximity`; memory if `None`.
    pub appliance_state: Option<PathBuf>,
    /// Called after each step with its name and duration.
    pub progress: Option<Progress>,
}

impl fmt::Debug for LabOptions {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("LabOptions")
            .field("log_directory", &self.log_directory)
            .field("appliance_state", &self.appliance_state)
            .finish_non_exhaustive()
    }
}

/// An emulated Proxmox host and its surroundings. Dropping it ends everything in it.
#[derive(Debug)]
pub struct Lab {
    host: Arc<Node>,
    router: Arc<Node>,
    internet: Arc<Node>,
    client: Arc<Node>,
    appliance: Arc<Node>,
    management: Bridge,
    apps: Bridge,
    logs: Logs,
    guests: AtomicU32,
}

impl Lab {
    /// Builds the lab: when this returns, router and internet are serving, and the appliance's
    /// container waits with both network cards down.
    ///
    /// # Errors
    /// [`LabError::NotInside`], [`LabError::MissingPackages`], or whatever step failed.
    pub fn start(options: LabOptions) -> Result<Self, LabError> {
        enter::check_inside()?;
        deps::check()?;
        let LabOptions { log_directory, appliance_state, progress } = options;
        let step = |name: &str, start: Instant| {
            if let Some(progress) = &progress {
                progress(name, start.elapsed());
            }
        };

        let start = Instant::now();
        let logs = Logs::new(log_directory)?;
        let [host, router, internet, client, appliance] =
            start_nodes(["pve", "router", "internet", "client", "prox-appliance"])?;
        if let Some(state) = appliance_state {
            bind_state(&appliance, &state)?;
        }
        step("containers: host, router, internet, client, appliance", start);

        let start = Instant::now();
        let management = Bridge::new(&host, "vmbr0")?;
        let apps = Bridge::new(&host, "proximity-lan")?;
        management.connect(&router, "eth0", Mac::guest(0x00ff_0010))?;
        management.connect(&client, "eth0", Mac::guest(0x00ff_0011))?;
        management.connect(&appliance, "eth0", addresses::APPLIANCE_WAN_MAC)?;
        apps.connect(&appliance, "eth1", addresses::APPLIANCE_LAN_MAC)?;
        link(&router, "wan0", &internet, "eth0")?;
        step("bridges vmbr0 and proximity-lan, cables", start);

        let start = Instant::now();
        set_up_internet(&internet)?;
        step("internet: www.example.com, resolvers 8.8.8.8 and 1.1.1.1", start);
        let start = Instant::now();
        set_up_router(&router)?;
        step("home router: DHCP, DNS and NAT on 192.168.1.1", start);
        let start = Instant::now();
        set_up_client(&client)?;
        step("client 192.168.1.50", start);

        let guests = AtomicU32::new(1);
        Ok(Self { host, router, internet, client, appliance, management, apps, logs, guests })
    }

    /// The Proxmox host: the two bridges are here.
    pub fn host(&self) -> &Arc<Node> {
        &self.host
    }

    /// The home router.
    pub fn router(&self) -> &Arc<Node> {
        &self.router
    }

    /// The internet.
    pub fn internet(&self) -> &Arc<Node> {
        &self.internet
    }

    /// A machine on the management LAN.
    pub fn client(&self) -> &Arc<Node> {
        &self.client
    }

    /// The container of the appliance: `eth0` on the management LAN, `eth1` on the app LAN.
    pub fn appliance(&self) -> &Arc<Node> {
        &self.appliance
    }

    /// The bridge of one of the LANs.
    pub fn bridge(&self, lan: Lan) -> &Bridge {
        match lan {
            Lan::Management => &self.management,
            Lan::Apps => &self.apps,
        }
    }

    /// Where the logs are: one file for each app and for the appliance.
    pub fn log_directory(&self) -> &Path {
        &self.logs.directory
    }

    /// A network card address not yet used in this lab.
    pub fn new_mac(&self) -> Mac {
        Mac::guest(self.guests.fetch_add(1, Ordering::Relaxed))
    }

    /// Boots an app on the app LAN with a new network card.
    ///
    /// # Errors
    /// As [`Lab::boot`].
    pub fn app(&self, name: &str, client: DhcpClient, server: WebServer) -> Result<App, LabError> {
        self.boot(AppSpec { name: name.to_owned(), mac: self.new_mac(), client, server })
    }

    /// Boots an app on the app LAN.
    ///
    /// # Errors
    /// [`LabError::NodeStart`], or whatever step failed.
    pub fn boot(&self, spec: AppSpec) -> Result<App, LabError> {
        let node = self.machine(&spec.name, Lan::Apps, spec.mac)?;
        let log = self.logs.file(&spec.name);
        App::boot(Arc::new(node), spec, log)
    }

    /// A bare machine on a LAN: `eth0` is down and nothing runs in it.
    ///
    /// # Errors
    /// [`LabError::NodeStart`], [`LabError::Failed`].
    pub fn machine(&self, name: &str, lan: Lan, mac: Mac) -> Result<Node, LabError> {
        let node = Node::start(name)?;
        self.bridge(lan).connect(&node, "eth0", mac)?;
        Ok(node)
    }

    /// Starts `binary run [--config FILE]` in the appliance's container. The configuration is
    /// copied in; state is kept between one process and the next.
    ///
    /// # Errors
    /// [`LabError::File`], [`LabError::Spawn`].
    pub fn run_appliance(&self, binary: &Path, config: Option<&Path>) -> Result<ApplianceProc, LabError> {
        ApplianceProc::start(&self.appliance, binary, config, &self.logs.file("appliance"), false)
    }

    /// The same below a supervisor, as in a container of its own: it outlives upgrades.
    ///
    /// # Errors
    /// As [`Lab::run_appliance`].
    pub fn supervise_appliance(
        &self,
        binary: &Path,
        config: Option<&Path>,
    ) -> Result<ApplianceProc, LabError> {
        ApplianceProc::start(&self.appliance, binary, config, &self.logs.file("appliance"), true)
    }
}

/// Starts nodes side by side.
fn start_nodes<const N: usize>(names: [&str; N]) -> Result<[Arc<Node>; N], LabError> {
    let nodes: Vec<Arc<Node>> = thread::scope(|scope| {
        let threads = names.map(|name| scope.spawn(move || Node::start(name).map(Arc::new)));
        threads
            .into_iter()
            .map(|thread| match thread.join() {
                Ok(node) => node,
                Err(panic) => std::panic::resume_unwind(panic),
            })
            .collect::<Result<_, _>>()
    })?;
    nodes.try_into().map_err(|_| LabError::Invalid("a node is missing".to_owned()))
}

fn bind_state(appliance: &Node, state: &Path) -> Result<(), LabError> {
    let state = fs::canonicalize(state).map_err(LabError::file(state))?;
    let text = state.to_string_lossy();
    appliance.run(&["mount", "--bind", &text, "/var/lib/proximity"])?;
    Ok(())
}

fn set_up_internet(node: &Node) -> Result<(), LabError> {
    node.ip(&[
        "addr add 203.0.113.10/24 dev eth0",
        "addr add 8.8.8.8/32 dev lo",
        "addr add 1.1.1.1/32 dev lo",
        "link set eth0 up",
    ])?;
    node.write("/run/www/index.html", "hello from the internet\n")?;
    node.write("/etc/dnsmasq.conf", INTERNET_DNS)?;
    // Each of these returns when it listens.
    node.sh("busybox httpd -p 80 -h /run/www; dnsmasq")?;
    Ok(())
}

fn set_up_router(node: &Node) -> Result<(), LabError> {
    node.ip(&[
        "addr add 192.168.1.1/24 dev eth0",
        "addr add 203.0.113.1/24 dev wan0",
        "link set eth0 up",
        "link set wan0 up",
        "route add default via 203.0.113.10",
    ])?;
    node.write("/etc/dnsmasq.conf", &router_dns())?;
    node.write("/etc/nftables.conf", ROUTER_NAT)?;
    node.sh("echo 1 > /proc/sys/net/ipv4/ip_forward; nft -f /etc/nftables.conf; dnsmasq")?;
    Ok(())
}

fn set_up_client(node: &Node) -> Result<(), LabError> {
    node.ip(&["addr add 192.168.1.50/24 dev eth0", "link set eth0 up", "route add default via 192.168.1.1"])?;
    node.write("/etc/resolv.conf", "nameserver 192.168.1.1\n")?;
    node.write("/run/www/index.html", "Proxmox Virtual Environment (stand-in)\n")?;
    node.run(&["busybox", "httpd", "-p", "8006", "-h", "/run/www"])?;
    Ok(())
}

/// `user=root`: an ordinary user's namespace may know no other.
const INTERNET_DNS: &str = "\
user=root
no-resolv
no-hosts
host-record=www.example.com,203.0.113.10
host-record=example.com,203.0.113.10
host-record=deb.debian.org,203.0.113.10
host-record=dns.google,8.8.8.8
host-record=one.one.one.one,1.1.1.1
txt-record=example.com,\"v=spf1 -all\"
mx-host=example.com,www.example.com,10
cname=alias.example.com,www.example.com
local=/#/
log-queries
log-facility=/var/log/dnsmasq.log
";

const ROUTER_NAT: &str = "\
table ip nat {
    chain postrouting {
        type nat hook postrouting priority srcnat;
        oifname \"wan0\" masquerade
    }
}
";

fn router_dns() -> String {
    format!(
        "user=root
no-resolv
no-hosts
server=8.8.8.8
server=1.1.1.1
address=/prox.local/{wan}
interface=eth0
dhcp-range=192.168.1.100,192.168.1.199,255.255.255.0,1h
dhcp-host={mac},{wan}
dhcp-option=option:router,192.168.1.1
dhcp-authoritative
no-ping
log-dhcp
log-facility=/var/log/dnsmasq.log
",
        wan = addresses::APPLIANCE_WAN,
        mac = addresses::APPLIANCE_WAN_MAC,
    )
}

/// A directory for logs, removed at the end unless a test is failing.
#[derive(Debug)]
struct Logs {
    directory: PathBuf,
    temporary: bool,
}

impl Logs {
    fn new(wanted: Option<PathBuf>) -> Result<Self, LabError> {
        if let Some(directory) = wanted {
            fs::create_dir_all(&directory).map_err(LabError::file(&directory))?;
            return Ok(Self { directory, temporary: false });
        }
        let scratch = enter::scratch_directory();
        let directory = nix::unistd::mkdtemp(&scratch.join("lab.XXXXXX"))
            .map_err(|errno| LabError::File { path: scratch, source: errno.into() })?;
        Ok(Self { directory, temporary: true })
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.log"))
    }
}

impl Drop for Logs {
    fn drop(&mut self) {
        if self.temporary && !thread::panicking() {
            let _ = fs::remove_dir_all(&self.directory);
        }
    }
}
