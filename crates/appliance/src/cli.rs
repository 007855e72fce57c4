use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::clock::Uptime;
use crate::{commands, daemon};

/// The whole network of a Proxmox host's apps: DHCP, DNS, reverse proxy, NAT and firewall from one table.
#[derive(Debug, Parser)]
#[command(name = "proximity", version, disable_version_flag = true, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    place: Place,
    /// Print JSON instead of a table
    #[arg(long, global = true)]
    pub json: bool,
}

/// Where the configuration and the running appliance are.
#[derive(Clone, Debug, Args)]
pub struct Place {
    /// Configuration file
    #[arg(long, global = true, value_name = "FILE", default_value = proximity_config::DEFAULT_PATH)]
    pub config: PathBuf,
    /// Admin socket of the running appliance [default: run_dir/admin.sock of the configuration]
    #[arg(long, global = true, value_name = "PATH")]
    pub socket: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the appliance
    Run,
    /// Check a configuration file and tell every problem
    Validate {
        /// The file; the one of --config when left out
        file: Option<PathBuf>,
    },
    /// Have the running appliance read its configuration again
    Reload,
    /// Show how the appliance is
    Status,
    /// Apps: each with address, name, URL and health
    #[command(subcommand)]
    App(AppCommand),
    /// DHCP leases and reservations
    #[command(subcommand)]
    Lease(LeaseCommand),
    /// DNS records
    #[command(subcommand)]
    Dns(DnsCommand),
    /// Virtual hosts of the reverse proxy
    #[command(subcommand)]
    Vhost(VhostCommand),
    /// Port forwards to apps
    #[command(subcommand)]
    Forward(ForwardCommand),
    /// Show the version
    Version,
}

#[derive(Debug, Subcommand)]
pub enum AppCommand {
    /// List all apps
    Ls,
    /// Show one app
    Show { name: String },
}

#[derive(Debug, Subcommand)]
pub enum LeaseCommand {
    /// List leases and reservations
    Ls,
    /// Forget the lease of an address: address and name are free at once
    Release { ip: String },
    /// Reserve an address, and a name, for a MAC address
    Reserve {
        mac: String,
        ip: String,
        #[arg(long)]
        hostname: Option<String>,
    },
    /// Remove the reservation of a MAC address
    Unreserve { mac: String },
}

#[derive(Debug, Subcommand)]
pub enum DnsCommand {
    /// List all records that are served
    Ls,
    /// Add a record
    Add {
        /// Relative to the domain, or absolute with a trailing dot
        name: String,
        /// A, AAAA, CNAME, TXT, SRV, MX, PTR or CAA
        #[arg(value_name = "TYPE")]
        rtype: String,
        /// As in a zone file; several words need no quotes
        #[arg(required = true)]
        value: Vec<String>,
        /// Time to live in seconds
        #[arg(long)]
        ttl: Option<u32>,
    },
    /// Remove the records of a name and type
    Rm {
        name: String,
        #[arg(value_name = "TYPE")]
        rtype: String,
    },
}

#[derive(Debug, Subcommand)]
pub enum VhostCommand {
    /// List all vhosts
    Ls,
    /// Create a vhost
    Add(VhostArgs),
    /// Create or replace a vhost
    Set(VhostArgs),
    /// Remove a vhost
    Rm { name: String },
}

#[derive(Debug, Args)]
pub struct VhostArgs {
    /// The app
    pub name: String,
    /// Backend: address:port, address, or app:port; several for balancing
    #[arg(required = true)]
    pub backend: Vec<String>,
    /// Host name [default: NAME.DOMAIN]
    #[arg(long)]
    pub hostname: Option<String>,
    /// Further host name; may be given more than once
    #[arg(long)]
    pub alias: Vec<String>,
    /// Path that is probed
    #[arg(long, value_name = "PATH")]
    pub health_uri: Option<String>,
    /// Answer with a page that says the vhost is disabled
    #[arg(long)]
    pub disabled: bool,
}

#[derive(Debug, Subcommand)]
pub enum ForwardCommand {
    /// List port forwards
    Ls,
    /// Forward a port to an app: `forward add 2222 gitea:22`
    Add {
        port: u16,
        /// address:port or app:port
        to: String,
        /// tcp or udp
        #[arg(long, default_value = "tcp")]
        protocol: String,
    },
    /// Remove a port forward
    Rm {
        port: u16,
        /// tcp or udp
        #[arg(long, default_value = "tcp")]
        protocol: String,
    },
}

/// Runs the command line: 0 done, 1 refused or failed, 2 usage.
pub fn run(uptime: Uptime) -> ExitCode {
    let cli = Cli::parse();
    let asked = commands::Asked { place: cli.place, json: cli.json };
    let result = match cli.command {
        Command::Run => daemon::run(&asked.place.config, uptime).map_err(|error| error.to_string()),
        Command::Validate { file } => commands::validate(&asked, file),
        Command::Version => commands::version(&asked),
        Command::Reload => commands::reload(&asked),
        Command::Status => commands::status(&asked),
        Command::App(command) => commands::app(&asked, command),
        Command::Lease(command) => commands::lease(&asked, command),
        Command::Dns(command) => commands::dns(&asked, command),
        Command::Vhost(command) => commands::vhost(&asked, command),
        Command::Forward(command) => commands::forward(&asked, command),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("proximity: {message}");
            ExitCode::FAILURE
        }
    }
}
