//! Reverse proxy: Host to vhost to backend, health, pages and access log.
//!
//! The pure modules decide (`http1`, `host`, `path`, `balance`, `access_rules`, `basic_auth`, `forwarded`, `pages`,
//! `health`, `targets`, `access`, `escape`). The shells move bytes: `server` admits connections, `front` reads requests,
//! `decide` says where they go by the `site` of their host, `exchange` carries them through `attempt` and `delivery`,
//! over `side`, `stream`, `http2`, `relay`, `pool`, `tls` and `tunnel`; `prober` and `probe_exchange` look at backends,
//! `access_writer`, `access_file` and `access_shelf` keep logs. A data thread (`worker`) owns its listeners, its upstream
//! connections and its log buffer, and reads one world per request; it shares nothing that it would have to lock.
//!
//! Ports that are forwarded by the proxy are beside that: `stream_forwards` opens and closes them as worlds come,
//! `stream_thread` serves them on each data thread, `stream_tcp`, `stream_pair` and `stream_udp` carry, and the
//! pure `stream_choice` and `stream_session` decide.

#![forbid(unsafe_code)]

mod accept;
mod access;
mod access_file;
mod access_names;
mod access_rules;
mod access_shelf;
mod access_writer;
mod app_counters;
mod attempt;
mod auth;
mod authority;
mod backend_slots;
mod backend_state;
mod balance;
mod basic_auth;
mod buffer;
mod caller;
mod client_connections;
mod client_key;
mod clock;
mod condition;
mod course;
mod decide;
mod delivery;
mod down;
mod encode;
mod escape;
mod exchange;
mod explain;
mod explain_steps;
mod forwarded;
mod free_space;
mod front;
mod header_edits;
mod health;
mod histogram;
mod host;
mod http1;
mod http2;
mod kept_authorities;
mod last_met;
mod least_rate;
mod mixing;
mod pages;
mod password_checks;
mod path;
mod peers;
mod pool;
mod probe_exchange;
mod prober;
mod proxy_protocol;
mod rate;
mod relay;
mod relocation;
mod reply;
mod retry_budget;
mod server;
mod shared;
mod side;
mod site;
mod sites;
mod splice;
mod stats;
mod stream;
mod stream_choice;
mod stream_forwards;
mod stream_pair;
mod stream_session;
mod stream_stats;
mod stream_tcp;
mod stream_thread;
mod stream_udp;
mod targets;
mod ticket;
mod tls;
mod tunnel;
mod up;
mod watch;
mod worker;

pub use access_rules::{AccessRules, Denied};
pub use access_writer::{AccessLog, AccessLogCounts, AccessSink};
pub use app_counters::{AppCounters, AppTotals, Apps};
pub use authority::{Authority, AuthorityError};
pub use backend_slots::{Full, InFlight, QueueFull, Slots, Waiting};
pub use backend_state::{BackendLoad, BackendState, Backends, Circuit, Passage, Passive};
pub use balance::{Ask, Choice, Chosen, CookieValue, Member, Rules, Sticky, Tried, choose, cookie_value};
pub use basic_auth::{
    Answer, Attempt, BasicAuthError, BasicUsers, RightPassword, VerifiedPasswords, hash_password,
};
pub use client_connections::{ClientConnections, ClientSlot, TooManyConnections};
pub use condition::{Condition, met, note};
pub use course::Course;
pub use explain::{Explanation, Question, Step, explain};
pub use forwarded::{
    Element, ForwardedError, Hop, Node, Origin, Scheme, Told, origin, parse_forwarded, write_forwarded,
    write_forwarded_for, write_forwarded_rest, write_x_forwarded_for,
};
pub use header_edits::CompiledEdits;
pub use health::{Distrust, Monitor, Outcome};
pub use histogram::{BOUNDS as DURATION_BOUNDS, Durations, Histogram};
pub use host::{HostError, normalise};
pub use kept_authorities::KeptAuthorities;
pub use last_met::{LastFailure, LastMet};
pub use pages::{AppLink, Inside, Page, Rendered};
pub use password_checks::{Checking, PasswordChecks, TooManyChecks, WaitingCheck};
pub use path::{NormalPath, PathError, has_prefix, redirect_location, split_target, strip_prefix, with_path};
pub use prober::{HealthReport, Probed, probe};
pub use proxy_protocol::{
    Addresses, LONGEST as LONGEST_PROXY_HEADER, ProxyHeader, ProxyHeaderError, write_proxy_header,
};
pub use rate::{RateTable, RetryAfter};
pub use retry_budget::RetryBudget;
pub use server::{DataPlane, listen};
pub use shared::Shared;
pub use stats::{ByReason, Counters, Reason, Totals};
pub use stream_forwards::{StreamForwards, StreamPort};
pub use stream_stats::{StreamLoad, StreamReason};
pub use stream_thread::StreamThread;
pub use worker::Snapshot;
