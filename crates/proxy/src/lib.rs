//! Reverse proxy: Host to vhost to backend, health, pages and access log.
//!
//! The pure modules decide (`host`, `framing`, `headers`, `pages`, `health`, `balance`, `targets`, `access`,
//! `escape`); the shells move bytes (`server`, `connection`, `forward`, `body`, `pool`, `prober`, `peers`) and
//! log lines (`access_writer`, `access_file`, `free_space`). A data thread owns its listeners, its upstream
//! connections and its log buffer, and reads one world per request; it shares nothing that it would have to
//! lock.

#![forbid(unsafe_code)]

mod access;
mod access_file;
mod access_rules;
mod access_writer;
mod backend_slots;
mod backend_state;
mod balance;
mod basic_auth;
mod body;
mod clock;
mod connection;
mod escape;
mod forward;
mod forwarded;
mod framing;
mod free_space;
mod header_edits;
mod headers;
mod health;
mod host;
mod pages;
mod path;
mod peers;
mod pool;
mod prober;
mod server;
mod stats;
mod targets;

pub use access_rules::{AccessRules, Denied};
pub use access_writer::{AccessLog, AccessLogCounts, AccessSink};
pub use backend_slots::{Full, InFlight, QueueFull, Slots, Waiting};
pub use backend_state::{BackendLoad, BackendState, Backends, Circuit, Passage, Passive};
pub use balance::{
    Ask, Choice, Chosen, CookieValue, Member, Rules, Spread, Sticky, Tried, choose, cookie_value,
};
pub use basic_auth::{Answer, Attempt, BasicAuthError, BasicUsers, RightPassword, VerifiedPasswords};
pub use forwarded::{
    Element, ForwardedError, Hop, Node, Origin, Scheme, Told, origin, parse_forwarded, write_forwarded,
    write_x_forwarded_for,
};
pub use framing::{Framing, Refused};
pub use header_edits::{CompiledEdits, EditError};
pub use headers::{Forwarding, rewrite_request, strip_hop_by_hop, upgrade_requested};
pub use health::{Monitor, Outcome};
pub use host::{HostError, Target, normalise, target};
pub use pages::{AppLink, Inside, Page};
pub use path::{NormalPath, PathError, has_prefix, redirect_location, split_target, strip_prefix};
pub use prober::{HealthReport, probe};
pub use server::{DataPlane, Settings, Snapshot, listen};
pub use stats::{Counters, Reason, Totals};
