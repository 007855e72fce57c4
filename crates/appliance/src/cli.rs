use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::clock::Uptime;
use crate::daemon::{self, Origin};
use crate::{commands, explain_command, forward_command, hash_password, supervisor, vhost_command};

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
    /// Run the appliance; as the first process of a container it starts itself below a supervisor
    Run(RunArgs),
    /// Check a configuration file and tell every problem
    Validate {
        /// The file; the one of --config when left out
        file: Option<PathBuf>,
    },
    /// Have the running appliance read its configuration again
    Reload,
    /// Put another binary in the running one's place, without losing a request
    Upgrade {
        /// The binary; the one at the path that the running one was started from when left out
        binary: Option<PathBuf>,
    },
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
    /// Tell why an app answers or does not, or where a forwarded port leads, step by step
    Explain {
        /// App, host name or URL, with a path if one is meant: wiki, wiki.prox.local/api; or a forwarded port: 2222,
        /// udp/53
        #[arg(value_name = "HOST[/PATH]|PORT")]
        name: String,
        /// Who asks: whether this address may
        #[arg(long, value_name = "ADDRESS")]
        from: Option<String>,
    },
    /// Make the hash of a password for auth.users of a vhost; asks for it, or reads it from standard input
    HashPassword,
    /// Show the version
    Version,
}

#[derive(Debug, Args)]
struct RunArgs {
    /// Stay as a small process that outlives upgrades and restarts the appliance after a crash
    #[arg(long)]
    supervise: bool,
    /// The process that a supervisor goes on with, in a new binary
    #[arg(long, hide = true, value_name = "PID")]
    supervising: Option<i32>,
    /// Started by a supervisor, which is on standard input
    #[arg(long, hide = true)]
    supervised: bool,
    /// Started by the process to be replaced, which is on standard input
    #[arg(long, hide = true, conflicts_with_all = ["supervise", "supervised"])]
    takeover: bool,
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
        /// Relative to the domain, or absolute with a trailing dot; the first label may be *
        name: String,
        /// A, AAAA, CNAME, TXT, SRV, MX, PTR, CAA, HTTPS, SVCB, or NS to delegate a name
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
    /// Forget what upstreams answered
    Flush {
        /// This name and all below it; everything when left out
        name: Option<String>,
    },
    /// Ask for a name as a client on this host would, and tell where the answer is from
    Query {
        /// An app, or a name in full: wiki, www.example.com
        name: String,
        #[arg(value_name = "TYPE", default_value = "A")]
        rtype: String,
    },
}

#[derive(Debug, Subcommand)]
pub enum VhostCommand {
    /// List all vhosts
    Ls,
    /// Show one vhost with everything that differs from the default
    Show { name: String },
    /// Create a vhost: `vhost add wiki mediawiki:8080`
    Add {
        /// The app
        name: String,
        /// Backend: address:port, address, or app:port; several for balancing
        #[arg(required_unless_present = "redirect")]
        backend: Vec<String>,
        #[command(flatten)]
        settings: Box<VhostSettings>,
    },
    /// Change what is given of a vhost, or create it; the rest stays
    Set {
        /// The app
        name: String,
        /// Backends, in place of those that it has
        backend: Vec<String>,
        #[command(flatten)]
        settings: Box<VhostSettings>,
    },
    /// Remove a vhost
    Rm { name: String },
}

/// What `vhost add` and `vhost set` take beside the backends. Lists replace those that are there.
#[derive(Debug, Default, Args)]
pub struct VhostSettings {
    /// Host name, `*.…` for all below [default: NAME.DOMAIN]
    #[arg(long)]
    pub hostname: Option<String>,
    /// Further host name; may be given more than once
    #[arg(long)]
    pub alias: Vec<String>,
    /// http, https or h2c towards the backends
    #[arg(long)]
    pub protocol: Option<String>,
    /// Path that is probed
    #[arg(long, value_name = "PATH")]
    pub health_uri: Option<String>,
    /// Send clients there instead, such as https://new.example{uri}
    #[arg(long, value_name = "URL", conflicts_with = "backend")]
    pub redirect: Option<String>,
    /// 301, 302, 303, 307 or 308
    #[arg(long, value_name = "STATUS")]
    pub redirect_status: Option<u16>,
    /// What goes elsewhere: `/api=api:3000`, several backends with commas, or `/old=/new{uri}`; may be given
    /// more than once, and beside those that are there
    #[arg(long, value_name = "PREFIX=TO")]
    pub path: Vec<String>,
    /// The same, the prefix taken away on the way
    #[arg(long, value_name = "PREFIX=TO")]
    pub strip_path: Vec<String>,
    /// round_robin, least_connections or random_two
    #[arg(long, value_name = "HOW")]
    pub balance: Option<String>,
    /// Keep visitors at a backend by ip, cookie, cookie:NAME or header:NAME
    #[arg(long, value_name = "WHAT")]
    pub affinity: Option<String>,
    /// What the backend sees in Host: backend or preserve
    #[arg(long, value_name = "WHAT")]
    pub host_header: Option<String>,
    /// Network that may; may be given more than once
    #[arg(long, value_name = "NETWORK")]
    pub allow: Vec<String>,
    /// Network that may not; may be given more than once
    #[arg(long, value_name = "NETWORK")]
    pub deny: Vec<String>,
    /// App that may; may be given more than once
    #[arg(long, value_name = "APP")]
    pub allow_app: Vec<String>,
    /// Requests for unknown hosts come here
    #[arg(long)]
    pub default: bool,
    /// Compress responses
    #[arg(long)]
    pub compress: bool,
    /// Answer with a page that says the vhost is disabled
    #[arg(long)]
    pub disabled: bool,
    /// No longer disabled
    #[arg(long, conflicts_with = "disabled")]
    pub enabled: bool,
    /// Any key of [[vhost]], such as timeouts.total=30s, auth.users.alice='$2b$…' or
    /// response_headers.remove='["X-Frame-Options"]'; may be given more than once
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Back to the default, such as auth or path, or one off a list, such as auth.users.alice or path./api; may be
    /// given more than once
    #[arg(long, value_name = "KEY")]
    pub unset: Vec<String>,
}

/// What `forward add` takes beside the targets.
#[derive(Debug, Args)]
pub struct ForwardSettings {
    /// tcp or udp
    #[arg(long, default_value = "tcp")]
    pub protocol: String,
    /// nat: the kernel translates addresses, and the app sees the client's; proxy: the appliance carries it
    #[arg(long)]
    pub mode: Option<String>,
    /// Header with the client's address towards the target: v1 or v2
    #[arg(long, value_name = "VERSION")]
    pub proxy_protocol: Option<String>,
    /// Network whose connections begin with such a header, or `all`; may be given more than once
    #[arg(long, value_name = "NETWORK")]
    pub accept_proxy_protocol: Vec<String>,
    /// round_robin, least_connections or random_two
    #[arg(long, value_name = "HOW")]
    pub balance: Option<String>,
    /// Probe the targets by connecting to them
    #[arg(long)]
    pub health: bool,
    /// Time between probes, such as 10s
    #[arg(long, value_name = "TIME")]
    pub health_interval: Option<String>,
    /// Time that a probe may take
    #[arg(long, value_name = "TIME")]
    pub health_timeout: Option<String>,
    /// Silence after which a connection ends, such as 10m
    #[arg(long, value_name = "TIME")]
    pub idle_timeout: Option<String>,
    /// Connections at once
    #[arg(long, value_name = "COUNT")]
    pub max_connections: Option<u32>,
}

#[derive(Debug, Subcommand)]
pub enum ForwardCommand {
    /// List port forwards
    Ls,
    /// Show one port forward with everything that differs from the default
    Show {
        /// Its port, or protocol and port such as udp/53
        #[arg(value_name = "PORT")]
        name: String,
    },
    /// Forward a port to an app: `forward add 2222 gitea:22`
    Add {
        port: u16,
        /// address:port or app:port; several for balancing, by the proxy
        #[arg(required = true)]
        to: Vec<String>,
        #[command(flatten)]
        settings: Box<ForwardSettings>,
    },
    /// Remove a port forward
    Rm {
        port: u16,
        /// tcp or udp
        #[arg(long, default_value = "tcp")]
        protocol: String,
    },
}

impl RunArgs {
    /// How this process came to be; `None` when it is to be the supervisor.
    fn origin(&self) -> Option<Origin> {
        match self {
            RunArgs { takeover: true, .. } => Some(Origin::Takeover),
            RunArgs { supervised: true, .. } => Some(Origin::Supervised),
            // The first process of a container may not end: it cannot be the one that is replaced.
            RunArgs { supervise: true, .. } => None,
            _ if std::process::id() == 1 => None,
            _ => Some(Origin::Alone),
        }
    }
}

/// Runs the command line: 0 done, 1 refused or failed, 2 usage.
pub fn run(uptime: Uptime) -> ExitCode {
    let cli = Cli::parse();
    let asked = commands::Asked { place: cli.place, json: cli.json };
    let result = match cli.command {
        Command::Run(args) => match args.origin() {
            Some(origin) => {
                daemon::run(&asked.place.config, uptime, origin).map_err(|error| error.to_string())
            }
            None => return supervisor::run(&asked.place.config, args.supervising),
        },
        Command::Validate { file } => commands::validate(&asked, file),
        Command::Version => commands::version(&asked),
        Command::HashPassword => hash_password::run(asked.json),
        Command::Reload => commands::reload(&asked),
        Command::Upgrade { binary } => commands::upgrade(&asked, binary),
        Command::Status => commands::status(&asked),
        Command::App(command) => commands::app(&asked, command),
        Command::Explain { name, from } => explain_command::run(&asked, &name, from.as_deref()),
        Command::Lease(command) => commands::lease(&asked, command),
        Command::Dns(command) => commands::dns(&asked, command),
        Command::Vhost(command) => vhost_command::run(&asked, command),
        Command::Forward(command) => forward_command::run(&asked, command),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("proximity: {message}");
            ExitCode::FAILURE
        }
    }
}
