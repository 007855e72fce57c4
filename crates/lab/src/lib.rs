//! An emulated Proxmox host made of network namespaces.
//!
//! A [`Lab`] is the appliance's surroundings in small: a Proxmox host with its two bridges, a home
//! router with DHCP and DNS, an internet with one web server and two public resolvers, a client on
//! the management LAN, and apps that run a *stock* DHCP client and a *stock* web server. The
//! appliance under test sits in the middle, with both network cards down and unaddressed, as an
//! unmanaged LXC would find them.
//!
//! ```no_run
//! use proximity_lab::{DhcpClient, Lab, LabOptions, WebServer};
//! use std::{path::Path, time::Duration};
//!
//! # fn main() -> Result<(), proximity_lab::LabError> {
//! proximity_lab::enter::require_inside();
//! let lab = Lab::start(LabOptions::default())?;
//! let mut appliance = lab.run_appliance(Path::new("target/debug/proximity"), None)?;
//! appliance.wait_ready(Duration::from_secs(5))?;
//! let wiki = lab.app("wiki", DhcpClient::Udhcpc, WebServer::Nginx)?;
//! let address = wiki.wait_lease(Duration::from_secs(10))?;
//! let page = lab.client().run(&["curl", "-s", "http://wiki.prox.local/"])?.stdout;
//! assert!(page.contains("wiki"), "{address}: {page}");
//! # Ok(())
//! # }
//! ```
//!
//! # Isolation
//!
//! Nothing has a global name. `proximity-lab enter -- CMD` re-executes itself into one private set
//! of network, mount and PID namespaces (and a user namespace for an ordinary user); each [`Node`]
//! is a further set inside it, found by the PID of its first process. Any number of labs live side
//! by side, and the end of the outer process is the end of every process, mount and interface.

#![forbid(unsafe_code)]

mod app;
mod appliance;
pub mod carry;
pub mod deps;
pub mod enter;
mod error;
mod lab;
mod lease_wait;
mod node;
mod process;
pub mod running;
mod wiring;

pub use app::{App, AppSpec, DhcpClient, WebServer};
pub use appliance::ApplianceProc;
pub use error::LabError;
pub use lab::{Lab, LabOptions, Lan, Progress, addresses};
pub use node::Node;
pub use process::{Output, Process};
pub use wiring::{Bridge, Mac, link};
