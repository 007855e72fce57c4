//! `proximity-lab`: an emulated Proxmox host to try the appliance on, and to test it in.

#![forbid(unsafe_code)]

mod up;

use std::{convert::Infallible, env, ffi::OsString, path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};
use proximity_lab::{LabError, deps, enter, running::RunningLab};

#[derive(Debug, Parser)]
#[command(name = "proximity-lab", version, about = "An emulated Proxmox host made of network namespaces")]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Start a lab with the appliance and a few apps, until Ctrl-C
    Up(up::Options),
    /// Run a command in a node of a running lab
    Exec {
        /// Which lab, if several are running (see `ls`)
        #[arg(long)]
        lab: Option<String>,
        /// host, router, internet, client, appliance, or the name of an app
        node: String,
        /// The command and its arguments
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
    /// List running labs and their nodes
    Ls,
    /// Run a command inside fresh private namespaces, e.g. tests
    Enter {
        /// The command and its arguments
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
    /// Print the Debian packages the lab needs
    Deps {
        /// Only those that are not installed
        #[arg(long)]
        missing: bool,
    },
    /// First process inside the namespaces
    #[command(hide = true)]
    Init {
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
    /// The inner half of `up`
    #[command(hide = true)]
    UpInside(up::InsideOptions),
}

fn main() -> ExitCode {
    match run(Arguments::parse().verb) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("proximity-lab: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb) -> Result<u8, LabError> {
    match verb {
        Verb::Up(options) => up::run(options),
        Verb::UpInside(options) => up::run_inside(options),
        Verb::Exec { lab, node, command } => {
            let never: Infallible = RunningLab::find(lab.as_deref())?.exec(&node, &command)?;
            match never {}
        }
        Verb::Ls => {
            for lab in RunningLab::all() {
                println!("{}  {}", lab.id(), lab.node_names().join(" "));
            }
            Ok(0)
        }
        Verb::Enter { command } => Ok(enter::run_inside(&own_binary()?, &command, |_| ())?.code()),
        Verb::Deps { missing } => {
            let packages = if missing { deps::missing() } else { deps::packages() };
            println!("{}", packages.join(" "));
            Ok(0)
        }
        Verb::Init { command } => enter::run_init(&command),
    }
}

fn own_binary() -> Result<PathBuf, LabError> {
    env::current_exe().map_err(|source| LabError::File { path: PathBuf::from("/proc/self/exe"), source })
}
