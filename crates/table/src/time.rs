use std::fmt;

use serde::{Deserialize, Serialize};

/// A moment in whole seconds since the Unix epoch, UTC.
///
/// Leases outlive the process, so the table counts wall-clock time; seconds are DHCP's own unit
/// (RFC 2131 §3.3). Cores receive it as an argument and never read a clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// The end of time: what never expires (an infinite lease, RFC 2131 §3.3).
    pub const NEVER: Timestamp = Timestamp(u64::MAX);

    /// This moment moved `seconds` later; [`Timestamp::NEVER`] when that is past the end of time.
    pub fn plus(self, seconds: u64) -> Timestamp {
        Timestamp(self.0.saturating_add(seconds))
    }

    /// Seconds from `now` until this moment, 0 when it has passed.
    pub fn seconds_after(self, now: Timestamp) -> u64 {
        self.0.saturating_sub(now.0)
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}
