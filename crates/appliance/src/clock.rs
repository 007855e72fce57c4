use std::time::{Instant, SystemTime, UNIX_EPOCH};

use proximity_table::Timestamp;

/// The wall clock in seconds: leases outlive the process.
pub fn now() -> Timestamp {
    Timestamp(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()))
}

/// A clock that only goes forward, in milliseconds since it was made.
#[derive(Clone, Copy, Debug)]
pub struct Uptime(Instant);

impl Uptime {
    /// A clock that begins now.
    pub fn start() -> Uptime {
        Uptime(Instant::now())
    }

    /// Milliseconds since the beginning.
    pub fn milliseconds(self) -> u64 {
        self.0.elapsed().as_millis() as u64
    }

    /// The moment at which the clock shows `milliseconds`.
    pub fn at(self, milliseconds: u64) -> Instant {
        self.0 + std::time::Duration::from_millis(milliseconds)
    }
}

/// Eight octets that nobody can guess.
pub fn entropy() -> u64 {
    // The kernel's generator does not fail once it is seeded; at boot the call waits for that.
    getrandom::u64().expect("the kernel gives random octets")
}
