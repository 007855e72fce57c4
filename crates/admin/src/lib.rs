//! Admin HTTP API over TCP with a token and over the unix socket.
//!
//! Reading shows the published [`World`]; changing hands the registrar an [`Edit`], which it runs on the
//! facts that are true at that moment. Nothing is changed here.

#![forbid(unsafe_code)]

mod auth;
mod dns_view;
mod edit;
mod explain;
mod explain_forward;
mod forward_input;
mod forward_view;
mod metrics;
mod objects;
mod problem;
mod routes;
mod serve;
mod vhost_input;
mod vhost_settings;
mod vhost_view;
mod view;

#[cfg(test)]
mod vhost_tests;

use std::future::Future;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use proximity_table::{
    App, Change, Facts, Generation, Name, ResolvedForward, Timestamp, UpstreamKey, VhostPolicy, World,
};

pub use auth::Token;
pub use dns_view::{
    AnsweredRecord, BlocklistView, DnsAnswerView, FlushInput, Flushed, QuestionInput, UpstreamView,
};
pub use explain::{ExplainView, Said, StepView, Subject};
pub use forward_view::{
    DialFailure, ForwardFigures, ForwardTargetView, ForwardView, LastDial, Stopped, TargetFigures,
};
pub use metrics::{Family, MetricKind, MetricsText};
pub use objects::{RecordInput, ReservationInput, UpgradeInput};
pub use problem::{Flaw, Problem};
pub use serve::{Listener, serve};
pub use vhost_input::forget_what_is_shown;
pub use vhost_view::{CheckView, HealthView, LoadView, PathView, VhostView};
pub use view::{
    AppView, CircuitView, LeaseView, Page, RecordView, Reloaded, ReservationView, ServiceView, Status,
    Upgraded, rfc3339,
};

/// Root of the API.
pub const BASE: &str = "/api/v1/appliance";

/// Field of a request in which the command line says that it asks ([`COMMAND_LINE`]): problems then speak of its flags
/// and not of JSON.
pub const SPELLING_FIELD: &str = "proximity-spelling";
/// What [`SPELLING_FIELD`] has.
pub const COMMAND_LINE: &str = "command-line";

/// A change as a function of the facts: it is run by the only writer, so nothing can come between looking
/// and changing.
pub type Edit = Box<dyn FnOnce(&Facts) -> Result<Vec<Change>, Problem> + Send>;

/// What can be done to a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum ServiceVerb {
    Start,
    Stop,
    Restart,
}

/// What the API needs of the running appliance.
pub trait Appliance: Send + Sync + 'static {
    /// The published world.
    fn world(&self) -> Arc<World>;
    /// How the appliance is.
    fn status(&self) -> Status;
    /// What the data threads know of a port forward.
    fn forward_figures(&self, forward: &ResolvedForward) -> ForwardFigures;
    /// What the proxy says to a visitor of an app who asks for a target such as `/api/x`, and asks from an address
    /// where that is given.
    fn said(&self, app: &App, target: &str, from: Option<IpAddr>) -> Said;
    /// Whether the file of an authority can be used; else what is wrong with it and, behind the last colon, what to
    /// do.
    fn check_authority(&self, path: &str) -> Result<(), String>;
    /// What requests found of a backend, told by the policy of its vhost; `None` before the first one. `is_sole`:
    /// the vhost has no other.
    fn backend_load(&self, key: &UpstreamKey, policy: &VhostPolicy, is_sole: bool) -> Option<LoadView>;
    /// The present time.
    fn now(&self) -> Timestamp;
    /// Its parts.
    fn services(&self) -> Vec<ServiceView>;
    /// The page of figures, made with [`MetricsText`]. It may take a while.
    fn metrics(&self) -> String;
    /// Whether everything serves and the kernel is as planned; else why not.
    fn ready(&self) -> Result<(), String>;
    /// Starts, stops or restarts a part.
    fn set_service(&self, name: &str, verb: ServiceVerb) -> Result<(), Problem>;
    /// Makes a change; returns when it is durable, published and in the kernel.
    fn edit(&self, edit: Edit) -> impl Future<Output = Result<Generation, Problem>> + Send;
    /// Hands everything over to a new process of `binary`, the file at the running one's path when left out.
    fn upgrade(&self, binary: Option<PathBuf>) -> impl Future<Output = Result<Upgraded, Problem>> + Send;
    /// Forgets what upstreams answered, all of it or about a name and all below it; returns how many answers.
    fn flush_dns(&self, name: Option<&Name>) -> usize;
    /// Who is asked about names of others, and how they do.
    fn dns_upstreams(&self) -> Vec<UpstreamView>;
    /// Asks for a name as a client on this host would.
    fn ask_dns(
        &self,
        name: Name,
        rtype: String,
    ) -> impl Future<Output = Result<DnsAnswerView, Problem>> + Send;
    /// Reads the configuration file again.
    fn reload(&self) -> impl Future<Output = Result<Reloaded, Problem>> + Send;
}
