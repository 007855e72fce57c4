use std::fmt;

use serde::{Deserialize, Serialize};

/// A moment in whole seconds since the Unix epoch, UTC.
///
/// Leases outlive the process, so the table counts wall-clock time; seconds are DHCP's own unit
/// (RFC 2131 §3.3). Cores receive it as an argument and never read a clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(pub u64);

/// A length of time in seconds, displayed in the largest unit that fits: `40 s`, `5 min`, `11 h`, `3 days`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub u64);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            seconds @ ..120 => write!(f, "{seconds} s"),
            seconds @ ..7_200 => write!(f, "{} min", seconds / 60),
            seconds @ ..172_800 => write!(f, "{} h", seconds / 3_600),
            seconds => write!(f, "{} days", seconds / 86_400),
        }
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_is_told_in_its_largest_unit() {
        let told = [0, 119, 120, 7_199, 7_200, 172_799, 172_800].map(|seconds| Span(seconds).to_string());
        assert_eq!(told, ["0 s", "119 s", "2 min", "119 min", "2 h", "47 h", "2 days"]);
    }
}
