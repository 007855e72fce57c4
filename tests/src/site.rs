//! An appliance at work in an emulated Proxmox host.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use proximity_lab::{
    App, AppSpec, ApplianceProc, DhcpClient, Lab, LabError, LabOptions, Node, Output, WebServer,
};
use proximity_lab::{addresses, enter};

use crate::admin_api::AdminApi;
use crate::polling::until;

/// For whatever takes as long as it takes on a busy machine; a failure is slow, success is not.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// Where the appliance looks for its configuration when it is told nothing.
const CONFIG: &str = "/etc/proximity/proximity.toml";

/// A lab with a running appliance.
#[derive(Debug)]
pub struct Site {
    /// The appliance's process.
    pub appliance: ApplianceProc,
    /// Its surroundings.
    pub lab: Lab,
    /// How long it took to be ready.
    pub ready_after: Duration,
    binary: PathBuf,
}

impl Site {
    /// Builds the surroundings and starts the appliance on this configuration.
    ///
    /// # Panics
    /// Outside of private namespaces, and when the appliance does not become ready.
    pub fn start(config: &str) -> Site {
        let lab = Site::surroundings();
        lab.appliance().write(CONFIG, config).expect("the configuration is written");
        Site::run_in(lab)
    }

    /// As [`Site::start`] without any configuration file.
    ///
    /// # Panics
    /// As [`Site::start`].
    pub fn without_config() -> Site {
        Site::run_in(Site::surroundings())
    }

    /// The surroundings alone.
    ///
    /// # Panics
    /// Outside of private namespaces.
    pub fn surroundings() -> Lab {
        enter::require_inside();
        Lab::start(LabOptions::default()).unwrap_or_else(|error| panic!("no lab: {error}"))
    }

    /// Starts the appliance in surroundings that are there.
    ///
    /// # Panics
    /// When it does not become ready.
    pub fn run_in(lab: Lab) -> Site {
        let binary = crate::appliance_binary::appliance_binary();
        let (appliance, ready_after) = run(&lab, &binary);
        Site { appliance, lab, ready_after, binary }
    }

    /// Starts the appliance again, after its process has ended.
    ///
    /// # Panics
    /// When it does not become ready.
    pub fn start_again(&mut self) {
        (self.appliance, self.ready_after) = run(&self.lab, &self.binary);
    }

    /// The admin API on the unix socket.
    pub fn api(&self) -> AdminApi {
        AdminApi::new(self.appliance.admin_socket())
    }

    /// The secret for the API over TCP.
    ///
    /// # Panics
    /// When there is none.
    pub fn token(&self) -> String {
        let text = self.lab.appliance().read("/var/lib/proximity/admin.token").expect("a token");
        text.trim().to_owned()
    }

    /// Runs a command of the binary in the appliance's container.
    ///
    /// # Panics
    /// When it does not end.
    pub fn cli(&self, arguments: &[&str]) -> Output {
        let binary = self.binary_inside();
        let command: Vec<&str> = std::iter::once(binary.as_str()).chain(arguments.iter().copied()).collect();
        self.lab.appliance().try_run(&command, PATIENCE).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Writes the configuration file; the running appliance is not told.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn write_config(&self, text: &str) {
        self.lab.appliance().write(CONFIG, text).expect("the configuration is written");
    }

    /// Waits until the appliance has its WAN address.
    ///
    /// # Panics
    /// When it gets none.
    pub fn wait_wan(&self) -> &Site {
        let wan = addresses::APPLIANCE_WAN.to_string();
        until("the WAN address", PATIENCE, || {
            let status = self.api().get("/status");
            if status["wan_ip"] == wan { Ok(()) } else { Err(format!("wan_ip is {}", status["wan_ip"])) }
        });
        self
    }

    /// Boots an app and waits for its lease.
    ///
    /// # Panics
    /// When it gets none.
    pub fn app(&self, name: &str, client: DhcpClient, server: WebServer) -> (App, Ipv4Addr) {
        self.boot(AppSpec { name: name.to_owned(), mac: self.lab.new_mac(), client, server })
    }

    /// As [`Site::app`], of this make.
    ///
    /// # Panics
    /// As [`Site::app`].
    pub fn boot(&self, spec: AppSpec) -> (App, Ipv4Addr) {
        let app = self.lab.boot(spec).unwrap_or_else(|error| panic!("no app: {error}"));
        let address = app.wait_lease(PATIENCE).unwrap_or_else(|error| panic!("{error}"));
        (app, address)
    }

    /// A machine on the app LAN with a fixed address outside of the pool, for probes.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn probe_machine(&self, address: &str) -> Node {
        let node =
            self.lab.machine("probe", proximity_lab::Lan::Apps, self.lab.new_mac()).expect("a machine");
        node.ip(&[&format!("addr add {address} dev eth0"), "link set eth0 up"]).expect("an address");
        node
    }

    /// The path of the binary inside the container.
    ///
    /// # Panics
    /// When the path is not UTF-8.
    pub fn binary_inside(&self) -> String {
        // The lab copies binaries from directories that a container hides.
        let copy = "/run/lab-appliance";
        if self.lab.appliance().path(copy).exists() {
            return copy.to_owned();
        }
        self.binary.to_str().expect("the path is UTF-8").to_owned()
    }
}

fn run(lab: &Lab, binary: &std::path::Path) -> (ApplianceProc, Duration) {
    let mut appliance = lab.run_appliance(binary, None).unwrap_or_else(|error| panic!("{error}"));
    let ready_after = appliance.wait_ready(PATIENCE).unwrap_or_else(|error| panic!("{error}"));
    (appliance, ready_after)
}

/// The page at `url` as `node` sees it, by curl and the node's own resolver.
///
/// # Errors
/// When there is no answer with a good status.
pub fn fetch(node: &Node, url: &str) -> Result<String, LabError> {
    Ok(node.run(&["curl", "-sS", "--fail", "--max-time", "5", url])?.stdout)
}
