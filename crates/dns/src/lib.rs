//! Authoritative zones answered from the World, and a private forwarder for the rest.
//!
//! The core is pure and works on bytes: [`Query::parse`] reads a datagram, [`answer`] writes the reply
//! into the caller's buffer or says that somebody else has to be asked. Neither knows a socket, a clock or
//! a lease. The shell ([`DnsServer`], [`Forwarder`]) moves bytes between the network and the core.

#![forbid(unsafe_code)]

mod answer;
mod datagrams;
mod forward;
mod listen;
mod query;
mod reply;
mod server;
mod settings;
mod special;
mod stats;
mod tcp;
mod udp;

pub use answer::{Asker, Foreign, Outcome, Transport, answer, in_zone, recursion_allowed};
pub use forward::{ForwardError, Forwarder};
pub use listen::{listen_tcp, listen_udp};
pub use query::{DropReason, Edns, Malformed, Query, Unanswerable};
pub use reply::{OUR_UDP_SIZE, Rcode};
pub use server::DnsServer;
pub use settings::{DnsSettings, Upstream, UpstreamError};
pub use stats::{DnsSnapshot, DnsStats, Over};
