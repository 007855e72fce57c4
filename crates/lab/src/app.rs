//! Apps: containers on the app LAN with a stock DHCP client and a stock web server.

use std::{net::Ipv4Addr, path::PathBuf, sync::Arc, time::Duration};

use crate::{
    LabError, Mac, Node, Process,
    lease_wait::{Progress, await_progress},
    process::tail,
};

/// The network card of an app, which is also the name Proxmox gives it.
const INTERFACE: &str = "eth0";

/// A stock DHCP client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DhcpClient {
    /// `udhcpc` of busybox, as in Alpine.
    Udhcpc,
    /// `dhclient` of ISC, as in Debian and Ubuntu containers with ifupdown.
    Dhclient,
    /// `dhcpcd`, as in Debian 13 and Arch.
    Dhcpcd,
}

/// A stock web server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WebServer {
    /// nginx.
    Nginx,
    /// `httpd` of busybox.
    Busybox,
    /// No web server: nothing listens.
    None,
}

/// What an app is made of.
#[derive(Debug, Clone)]
pub struct AppSpec {
    /// Host name, sent with DHCP.
    pub name: String,
    /// Address of its network card; give the same one to recreate a container.
    pub mac: Mac,
    /// DHCP client.
    pub client: DhcpClient,
    /// Web server, on port 80.
    pub server: WebServer,
}

/// A running app. Dropping it is a container's stop by force.
#[derive(Debug)]
pub struct App {
    spec: AppSpec,
    node: Arc<Node>,
    client: Process,
}

impl App {
    /// Boots the container `node`, whose network card is plugged in: web server, then DHCP client.
    pub(crate) fn boot(node: Arc<Node>, spec: AppSpec, log: PathBuf) -> Result<Self, LabError> {
        node.write("/run/www/index.html", &format!("hello from {}\n", spec.name))?;
        spec.server.start(&node)?;
        node.ip(&[&format!("link set {INTERFACE} up")])?;
        let client = spec.client.start(&node, &spec.name, log)?;
        Ok(Self { spec, node, client })
    }

    /// What it was made from.
    pub fn spec(&self) -> &AppSpec {
        &self.spec
    }

    /// The container.
    pub fn node(&self) -> &Arc<Node> {
        &self.node
    }

    /// The DHCP client, to signal it or to read its log.
    pub fn dhcp_client(&mut self) -> &mut Process {
        &mut self.client
    }

    /// Waits until the client has set up address, default route and DNS server; the address.
    ///
    /// # Errors
    /// [`LabError::TimedOut`] says what is still missing and how the client's log ends.
    pub fn wait_lease(&self, timeout: Duration) -> Result<Ipv4Addr, LabError> {
        self.wait(timeout, |progress| progress.default_route && progress.nameserver)
    }

    /// Waits for an address only, for servers that hand out neither router nor DNS.
    ///
    /// # Errors
    /// As [`App::wait_lease`].
    pub fn wait_address(&self, timeout: Duration) -> Result<Ipv4Addr, LabError> {
        self.wait(timeout, |_| true)
    }

    /// Stops the container by force: no DHCPRELEASE is sent.
    pub fn stop(self) {
        self.node.kill();
    }

    fn wait(&self, timeout: Duration, done: impl Fn(&Progress) -> bool) -> Result<Ipv4Addr, LabError> {
        await_progress(&self.node, INTERFACE, timeout, done).map_err(|error| match error {
            LabError::TimedOut { what, after, detail } => LabError::TimedOut {
                what,
                after,
                detail: format!("{detail}; its client said:\n{}", tail(&self.client.log())),
            },
            other => other,
        })
    }
}

impl DhcpClient {
    fn start(self, node: &Node, name: &str, log: PathBuf) -> Result<Process, LabError> {
        match self {
            Self::Udhcpc => {
                let hostname = format!("hostname:{name}");
                let quick = ["-T", "1", "-t", "4", "-A", "1"];
                let stock = ["udhcpc", "-f", "-i", INTERFACE, "-x", &hostname];
                node.background(&[&stock[..], &quick].concat(), &log)
            }
            Self::Dhclient => {
                node.write("/etc/dhcp/dhclient.conf", DHCLIENT_CONF)?;
                node.background(&["dhclient", "-d", "-v", INTERFACE], &log)
            }
            Self::Dhcpcd => {
                node.write("/etc/dhcpcd.conf", DHCPCD_CONF)?;
                node.background(&["dhcpcd", "--nobackground", INTERFACE], &log)
            }
        }
    }
}

impl WebServer {
    /// Starts it in the background; it listens when this returns.
    fn start(self, node: &Node) -> Result<(), LabError> {
        match self {
            Self::Nginx => {
                node.write("/etc/nginx/nginx.conf", &nginx_conf())?;
                node.run(&["nginx"])?;
            }
            Self::Busybox => {
                node.run(&["busybox", "httpd", "-p", "80", "-h", "/run/www"])?;
            }
            Self::None => {}
        }
        Ok(())
    }
}

/// Debian's file with short first retries: the lab's server answers at once or not at all.
const DHCLIENT_CONF: &str = "\
option rfc3442-classless-static-routes code 121 = array of unsigned integer 8;
send host-name = gethostname();
request subnet-mask, broadcast-address, time-offset, routers,
        domain-name, domain-name-servers, domain-search, host-name,
        interface-mtu, rfc3442-classless-static-routes, ntp-servers;
initial-delay 0;
initial-interval 1;
backoff-cutoff 2;
retry 2;
";

/// Debian's file for IPv4 only, and without the five seconds of ARP probing before an address is used.
const DHCPCD_CONF: &str = "\
hostname
duid
persistent
option domain_name_servers, domain_name, domain_search
option classless_static_routes
option interface_mtu
option host_name
require dhcp_server_identifier
ipv4only
noarp
nodelay
";

fn nginx_conf() -> String {
    // Workers change their user, for which a single mapped user lacks the right.
    let single_user = std::fs::read_to_string("/proc/self/setgroups").is_ok_and(|text| text.trim() == "deny");
    let processes =
        if single_user { "user root; master_process off;" } else { "user www-data; worker_processes 1;" };
    format!(
        "{processes}
pid /run/nginx.pid;
error_log /var/log/nginx/error.log;
events {{ worker_connections 512; }}
http {{
    include /etc/nginx/mime.types;
    access_log /var/log/nginx/access.log;
    server {{
        listen 80;
        root /run/www;
    }}
}}
"
    )
}
