use std::net::Ipv4Addr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{Label, Mac, Timestamp};

/// A binding of an address to a client (RFC 2131 §2.2). Ended leases stay, so that a client which comes
/// back finds its address and a visitor learns that the app is stopped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The address.
    pub ip: Ipv4Addr,
    /// The client's hardware address: the key of a client, since cloned guests share client identifiers.
    pub mac: Mac,
    /// Option 61 as the client sent it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_id: Option<Vec<u8>>,
    /// Host name: the reservation's, else the one the client sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<Label>,
    /// Name of the network it was given on.
    pub network: Arc<str>,
    /// What became of it.
    pub state: LeaseState,
    /// When it ends, or ended.
    pub expires: Timestamp,
    /// Generation in which this client first got this address; a new owner has a greater one.
    pub epoch: u64,
}

/// What became of a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LeaseState {
    /// The client holds the address.
    Bound,
    /// Time ran out.
    Expired,
    /// The client gave it back (DHCPRELEASE) or the administrator took it.
    Released,
    /// The client found the address in use (DHCPDECLINE); kept away from everybody until `expires`.
    Declined,
}

impl Lease {
    /// Whether the client holds the address.
    pub fn is_bound(&self) -> bool {
        self.state == LeaseState::Bound
    }
}
