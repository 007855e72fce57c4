//! One table: names, addresses, leases, vhosts and the World derived from them.
//!
//! Facts go in ([`Facts`]: what the administrator asked for, what DHCP granted, what the probes and the
//! WAN link reported), a [`World`] comes out. Deriving is pure: the same facts give the same world, and
//! a patch of a few touched keys gives the same world as deriving everything anew.

#![forbid(unsafe_code)]

/// `Debug` and serde by the text form: what is displayed is what is parsed.
macro_rules! as_text {
    ($error:ty: $($kind:ty),*) => {$(
        impl std::fmt::Debug for $kind {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                std::fmt::Display::fmt(self, f)
            }
        }
        impl From<$kind> for String {
            fn from(value: $kind) -> String {
                value.to_string()
            }
        }
        impl TryFrom<String> for $kind {
            type Error = $error;
            fn try_from(text: String) -> Result<$kind, $error> {
                text.parse()
            }
        }
    )*};
}
use as_text;

mod absence;
mod address;
mod circle;
mod derive;
mod facts;
mod forward;
mod header_field;
mod health;
mod intent;
mod lease;
mod ledger;
mod name;
mod nodes;
mod pairs;
mod password_hash;
mod policy;
mod proxy_settings;
mod record;
mod route;
mod service_binding;
mod split_view;
mod time;
mod upstream;
mod vhost;
mod warnings;
mod world;
mod zone;

pub use absence::Absence;
pub use address::{AddressError, Ipv4Net, Ipv4Range, Mac};
pub use circle::Circle;
pub use facts::{Change, Facts, Touched};
pub use forward::{Forward, ForwardTarget, ResolvedForward, StreamPolicy};
pub use header_field::{FieldError, check_field_value, editable_field, is_token, is_token_octet};
pub use health::{BackendKey, Health, HealthState, ProbeKey, Question};
pub use intent::{AutoVhost, CustomOption, Intent, Network, Owned, Protocol, Reservation, Source};
pub use lease::{Lease, LeaseState};
pub use ledger::Ledger;
pub use name::{Label, Name, NameError};
pub use nodes::{NodeRef, RRsetRef};
pub use password_hash::password_hash_trouble;
pub use policy::{
    Access, Affinity, Balance, BasicAuth, BasicUser, ForwardAuth, HeaderEdits, HostPolicy, LogPolicy,
    PassivePolicy, ProxyProtocol, Rate, RetryPolicy, Timeouts, VhostLimits, VhostPolicy,
};
pub use proxy_settings::{LogSettings, ProxySettings};
pub use record::{Record, RecordData, RecordError, RecordType};
pub use route::{Action, Backend, PathRoute, Route, Service, UpstreamKey, Verdict};
pub use service_binding::{ServiceBinding, ServiceBindingError};
pub use split_view::NameLeads;
pub use time::{Span, Timestamp};
pub use upstream::{Upstream, UpstreamError};
pub use vhost::{
    BackendProtocol, BackendTarget, BackendTls, HealthPolicy, ProbeKind, Redirect, Vhost, VhostPath,
};
pub use world::{App, AppState, Generation, Host, HostKind, Wan, World};
pub use zone::{Apex, Node, RRset, Zones};

#[cfg(test)]
mod route_tests;
#[cfg(test)]
mod world_tests;
