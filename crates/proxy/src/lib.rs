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
mod access_writer;
mod buffer;
mod caller;
mod clock;
mod escape;
mod exchange;
mod free_space;
mod front;
mod header_edits;
mod health;
mod host;
mod http1;
mod pages;
mod peers;
mod pool;
mod prober;
mod relay;
mod reply;
mod server;
mod side;
mod site;
mod stats;
mod stream;
mod targets;
mod ticket;
mod tls;
mod watch;

pub use access_writer::{AccessLog, AccessLogCounts, AccessSink};
pub use health::{Monitor, Outcome};
pub use host::{HostError, normalise};
pub use pages::{AppLink, Inside, Page, Rendered};
pub use prober::{HealthReport, probe};
pub use server::{DataPlane, Settings, Snapshot, listen};
pub use stats::{ByReason, Counters, Reason, Totals};
