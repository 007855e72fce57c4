//! CPU per request and per query of the data plane, as ratios to its peers in the same run; its memory; and how
//! soon a change is served.
//!
//! What counts is the CPU time of the server's process (utime + stime) divided by the work done: on a shared
//! machine throughput swings twofold from minute to minute, that figure does not. Peers and we take turns,
//! the ratio is taken in every round, and the median of the rounds is what is reported.

#![forbid(unsafe_code)]

mod client;
mod dns;
mod error;
mod load;
mod measure;
mod namespace;
mod peers;
mod process;
mod proxy;
mod registrar;
mod report;
mod serve;
mod tools;
mod world;

use std::net::SocketAddrV4;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};

use crate::error::BenchError;
use crate::measure::Plan;
use crate::report::Report;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// CPU per request and per query, as ratios to peers in the same run; memory, and how soon changes are live.
#[derive(Debug, Parser)]
#[command(name = "bench")]
struct Cli {
    /// Rounds; the median counts.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Seconds of load in each round for each server.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=3600))]
    seconds: u32,
    /// Only these parts, separated by commas.
    #[arg(long, value_delimiter = ',', value_name = "PARTS")]
    only: Vec<Part>,
    /// Writes the figures to this file, too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Stays in the network namespace of the caller.
    #[arg(long)]
    here: bool,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Everything of the proxy.
    Proxy,
    /// Small answers, with few and many vhosts.
    Small,
    /// Answers of 1 MiB.
    Large,
    /// HTTP/2 in front.
    Http2,
    /// 2,000 connections at work.
    Crowd,
    /// Memory of idle connections.
    Idle,
    /// Adding vhosts.
    Live,
    /// Name servers.
    Dns,
}

/// What is measured runs as a process of its own: this program, started by itself.
#[derive(Debug, Subcommand)]
enum Verb {
    /// Serves HTTP by the data plane of the appliance, on one data thread, until killed.
    #[command(hide = true)]
    ServeProxy {
        /// Where every vhost leads.
        backend: SocketAddrV4,
        /// How many vhosts there are.
        vhosts: usize,
        /// Where access logs are written.
        log_dir: PathBuf,
    },
    /// Adds vhosts to a proxy of its own and prints how long each took to answer.
    #[command(hide = true)]
    AddVhosts {
        /// Where every vhost leads.
        backend: SocketAddrV4,
        /// How many vhosts there are.
        vhosts: usize,
        /// How many are added.
        added: usize,
        /// Where access logs are written.
        log_dir: PathBuf,
        /// Where vhosts are made durable.
        state_dir: PathBuf,
    },
    /// Serves DNS by the data plane of the appliance, on one data thread, until killed.
    #[command(hide = true)]
    ServeDns {
        /// How many leased names there are.
        names: usize,
        /// Who is asked about names of others.
        upstream: Option<SocketAddrV4>,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match &cli.verb {
        Some(Verb::ServeProxy { backend, vhosts, log_dir }) => serve::proxy(*backend, *vhosts, log_dir),
        Some(Verb::AddVhosts { backend, vhosts, added, log_dir, state_dir }) => {
            serve::add_vhosts(*backend, *vhosts, *added, log_dir, state_dir)
        }
        Some(Verb::ServeDns { names, upstream }) => serve::dns(*names, *upstream),
        None => bench(&cli),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(BenchError::Interrupted) => ExitCode::from(130),
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn bench(cli: &Cli) -> Result<(), BenchError> {
    tools::check()?;
    process::allow_many_connections();
    if !cli.here {
        // Does not return where a namespace of our own can be had.
        namespace::enter();
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut hangup = signal(SignalKind::hangup())?;
        // Whatever was started and written belongs to the future and ends with it.
        tokio::select! {
            done = run(cli) => done,
            _ = interrupt.recv() => Err(BenchError::Interrupted),
            _ = terminate.recv() => Err(BenchError::Interrupted),
            _ = hangup.recv() => Err(BenchError::Interrupted),
        }
    })
}

async fn run(cli: &Cli) -> Result<(), BenchError> {
    let plan = Plan { rounds: cli.rounds, seconds: cli.seconds };
    let mut report = Report::new(plan);
    let is_chosen = |part: Part| cli.only.is_empty() || cli.only.contains(&part);
    if cli.only.iter().any(|part| *part != Part::Dns) || cli.only.is_empty() {
        let of_proxy = |part: Part| is_chosen(part) || cli.only.contains(&Part::Proxy);
        proxy::run(plan, of_proxy, &mut report).await?;
    }
    if is_chosen(Part::Dns) {
        dns::run(plan, &mut report).await?;
    }
    print!("{}", report.text());
    if let Some(path) = &cli.json {
        std::fs::write(path, report.json())
            .map_err(|source| BenchError::File { path: path.clone(), source })?;
    }
    Ok(())
}
