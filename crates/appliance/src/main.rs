//! The appliance: wiring, threads, signals and the command line.

#![forbid(unsafe_code)]

mod api_client;
mod blocking;
mod cli;
mod clock;
mod commands;
mod control;
mod daemon;
mod data_plane;
mod dns_command;
mod dotted_key;
mod explain_command;
mod export;
mod forward_command;
mod forwarding;
mod hash_password;
mod kernel;
mod lan;
mod log;
mod metrics;
mod objects;
mod registrar;
mod salt;
mod setting_rows;
mod supervisor;
mod table_text;
mod tasks;
mod token;
mod upgrade;
mod uplink;
mod vhost_command;
mod vhost_edit;
mod vital;
mod wan_dns;

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let uptime = clock::Uptime::start();
    cli::run(uptime)
}
