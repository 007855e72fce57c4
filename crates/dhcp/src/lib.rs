//! DHCPv4 server and WAN client cores: pure state machines without sockets or clock.
//!
//! The shell reads frames, asks [`Server::handle`] what follows from each, makes the change durable and
//! visible, and only then sends the reply. Nothing here touches the ledger: the registrar writes it.

#![forbid(unsafe_code)]

mod allocate;
mod client;
mod frame;
mod reply;
mod request;
mod server;
mod stats;

pub use client::{Binding, Client, Command, Held};
pub use frame::{Datagram, FrameError, build, parse};
pub use request::Request;
pub use server::{Answer, Destination, Reply, Server};
pub use stats::{Drop, Stats};

#[cfg(test)]
mod rfc2131;
#[cfg(test)]
mod testing;
