use std::net::SocketAddrV4;

use serde::{Deserialize, Serialize};

use crate::Timestamp;

/// What a probed backend is known by. The epoch makes the next owner of an address start unproven.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BackendKey {
    /// Address and port.
    pub addr: SocketAddrV4,
    /// Epoch of the lease that holds the address, 0 for an address without lease.
    pub epoch: u64,
}

/// What the probes found of one backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// The verdict.
    pub state: HealthState,
    /// When it became so.
    pub since: Timestamp,
    /// What the last probe saw, in words; `None` while nothing was seen.
    pub reason: Option<String>,
}

/// Verdict of the active health checks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HealthState {
    /// No probe has passed yet.
    #[default]
    Unproven,
    /// The last probe passed.
    Healthy,
    /// It was healthy and the last probe failed.
    Unhealthy,
}

impl HealthState {
    /// The word used by the API.
    pub fn as_str(self) -> &'static str {
        match self {
            HealthState::Unproven => "unproven",
            HealthState::Healthy => "healthy",
            HealthState::Unhealthy => "unhealthy",
        }
    }
}
