//! Authoritative zones answered from the World, and a private forwarder for the rest.
//!
//! The core is pure and works on bytes: [`Query::parse`] reads a datagram, [`answer`] writes the reply
//! into the caller's buffer or says that somebody else has to be asked. Neither knows a socket, a clock or
//! a lease. The shell ([`DnsServer`], [`Forwarder`]) moves bytes between the network and the core.

#![forbid(unsafe_code)]

mod answer;
mod blocklist;
mod cache;
mod cookies;
mod datagrams;
mod delegation;
mod ede;
mod flights;
mod foreign;
mod forward;
mod front;
mod guards;
mod health;
mod kept;
mod link;
mod list_syntax;
mod listen;
mod lookup;
mod options;
mod policy;
mod query;
mod race;
mod rates;
mod rebind;
mod reply;
mod said;
mod server;
mod settings;
mod special;
mod stats;
mod tcp;
mod udp;
mod upstream_tls;
mod wan_view;

pub use answer::{Asker, Outcome, Transport, answer, in_zone, recursion_allowed};
pub use blocklist::{HashKey, NameSet, NameSetBuilder};
pub use delegation::Delegated;
pub use ede::Ede;
pub use foreign::{Foreign, ForeignName};
pub use forward::{ForwardError, ForwardStatus, Forwarder};
pub use guards::Guards;
pub use health::UpstreamStatus;
pub use list_syntax::{ListLimits, ListReader, NameList};
pub use listen::{listen_tcp, listen_udp};
pub use lookup::{LookedUp, Lookup, LookupError, look_up};
pub use policy::{BlockAnswer, BlockRule, Policy, PublishedPolicy};
pub use proximity_table::{Upstream, UpstreamError};
pub use query::{DropReason, Edns, Malformed, Query, Unanswerable};
pub use reply::{OUR_UDP_SIZE, Rcode};
pub use said::TtlBounds;
pub use server::DnsServer;
pub use settings::DnsSettings;
pub use stats::{DnsSnapshot, DnsStats, Over};
pub use upstream_tls::AuthoritiesError;
pub use wan_view::answer_on_wan;
