use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Defines [`StreamReason`] with the word of each, and with what is said of it.
macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident, $word:literal, $says:literal;)*) => {
        /// Why a connection or a datagram of a forwarded port was not carried, or was cut on the way. The set is
        /// closed: it labels counters.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum StreamReason { $($(#[$doc])* $name,)* }

        impl StreamReason {
            /// Every reason, in the order of its number.
            pub const ALL: [StreamReason; [$($word),*].len()] = [$(StreamReason::$name),*];

            /// The word that labels its counter.
            pub fn as_str(self) -> &'static str {
                match self { $(StreamReason::$name => $word,)* }
            }

            /// The same in words that go on after "because".
            pub fn says(self) -> &'static str {
                match self { $(StreamReason::$name => $says,)* }
            }
        }
    };
}

reasons! {
    /// The kernel gave no connection (out of descriptors or memory).
    AcceptFailed, "accept_failed", "the appliance had no memory or no room for another connection";
    /// The forward has as many connections as it may.
    ConnectionLimit, "connection_limit", "the forward had as many as max_connections allows";
    /// A connection that had to begin with a PROXY protocol header and did not.
    ProxyHeader, "proxy_header", "it did not begin with the PROXY protocol header that it had to begin with";
    /// The PROXY protocol header did not come in time.
    HeaderTimeout, "header_timeout", "the PROXY protocol header did not come in time";
    /// The client left before it was carried anywhere.
    ClientGone, "client_gone", "the client left before it was carried anywhere";
    /// No target holds a lease.
    Stopped, "stopped", "no target was on the network";
    /// No target took the connection.
    BackendRefused, "backend_refused", "no target accepted it";
    /// The target is the appliance's own forwarded port: carried there it would come back without end.
    Loop, "loop", "its target is a port that the appliance itself forwards";
    /// No target took the connection in time.
    BackendTimedOut, "backend_timed_out", "no target could be reached in time";
    /// The client broke the connection.
    ClientReset, "client_reset", "the client broke it off";
    /// The target broke the connection, or nothing listens on its UDP port any more.
    BackendReset, "backend_reset", "the target broke it off, or nothing listens on its port any more";
    /// The target is no longer the forward's: its lease ended, or the forward was changed or removed.
    TargetLeft, "target_left", "the target left, or the forward was changed";
    /// Nothing passed for as long as nothing may.
    IdleTimeout, "idle_timeout", "nothing passed for as long as idle_timeout allows";
    /// A UDP client was forgotten because others came and there was no room.
    Evicted, "evicted", "others came, and there was no room";
    /// A datagram that a socket had no room for.
    DatagramLost, "datagram_lost", "a datagram was lost for want of room";
    /// The appliance stops.
    Stopping, "stopping", "the appliance stopped";
}

/// What all data threads have counted of all forwards.
#[derive(Debug, Default)]
pub struct StreamCounters([AtomicU64; StreamReason::ALL.len()]);

/// What the data threads have counted of one forward.
#[derive(Debug)]
pub struct StreamGauge {
    began: Instant,
    open: AtomicU64,
    taken: AtomicU64,
    received: AtomicU64,
    sent: AtomicU64,
    turn: AtomicUsize,
    stopped: StreamCounters,
}

/// What is shown of one forward.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamLoad {
    /// Connections open now; of UDP the clients that are remembered.
    pub open: u64,
    /// Connections ever taken.
    pub taken: u64,
    /// Octets from clients.
    pub received: u64,
    /// Octets to clients.
    pub sent: u64,
}

/// A counted connection, until dropped.
#[derive(Debug)]
pub struct StreamSlot(Arc<StreamGauge>);

impl std::ops::Add for StreamLoad {
    type Output = StreamLoad;

    fn add(self, other: StreamLoad) -> StreamLoad {
        StreamLoad {
            open: self.open + other.open,
            taken: self.taken.wrapping_add(other.taken),
            received: self.received.wrapping_add(other.received),
            sent: self.sent.wrapping_add(other.sent),
        }
    }
}

impl StreamCounters {
    /// How often `reason` stopped something.
    pub fn of(&self, reason: StreamReason) -> u64 {
        self.0[reason as usize].load(Relaxed)
    }

    pub(crate) fn stopped_by(&self, reason: StreamReason) {
        self.0[reason as usize].fetch_add(1, Relaxed);
    }
}

impl StreamGauge {
    /// One that counts from `now` on.
    pub fn new(now: Instant) -> StreamGauge {
        StreamGauge {
            began: now,
            open: AtomicU64::new(0),
            taken: AtomicU64::new(0),
            received: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            turn: AtomicUsize::new(0),
            stopped: StreamCounters::default(),
        }
    }

    /// For how long it has counted.
    pub fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.began)
    }

    /// Counts a connection if there are fewer than `most`.
    pub fn enter(self: &Arc<StreamGauge>, most: u32) -> Option<StreamSlot> {
        let one_more = |open| (open < u64::from(most)).then_some(open + 1);
        self.open.fetch_update(Relaxed, Relaxed, one_more).ok()?;
        self.taken.fetch_add(1, Relaxed);
        Some(StreamSlot(self.clone()))
    }

    /// Counts octets.
    pub fn moved(&self, received: u64, sent: u64) {
        if received > 0 {
            self.received.fetch_add(received, Relaxed);
        }
        if sent > 0 {
            self.sent.fetch_add(sent, Relaxed);
        }
    }

    /// What was stopped, by the reason.
    pub fn stopped(&self) -> &StreamCounters {
        &self.stopped
    }

    /// The number of the next connection, over all data threads.
    pub fn turn(&self) -> usize {
        self.turn.fetch_add(1, Relaxed)
    }

    /// The present figures.
    pub fn load(&self) -> StreamLoad {
        StreamLoad {
            open: self.open.load(Relaxed),
            taken: self.taken.load(Relaxed),
            received: self.received.load(Relaxed),
            sent: self.sent.load(Relaxed),
        }
    }
}

impl StreamSlot {
    /// Where it is counted.
    pub fn gauge(&self) -> &Arc<StreamGauge> {
        &self.0
    }
}

impl Drop for StreamSlot {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_stands_at_its_number_and_has_its_own_word() {
        let mut words = std::collections::BTreeSet::new();
        for (at, reason) in StreamReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, at);
            assert!(words.insert(reason.as_str()));
        }
        let counters = StreamCounters::default();
        counters.stopped_by(StreamReason::Stopping);
        assert_eq!((counters.of(StreamReason::Stopping), counters.of(StreamReason::Stopped)), (1, 0));
    }

    #[test]
    fn connections_are_counted_while_they_are_held() {
        let began = Instant::now();
        let gauge = Arc::new(StreamGauge::new(began));
        let first = gauge.enter(2).unwrap();
        let second = gauge.enter(2).unwrap();
        assert!(gauge.enter(2).is_none());
        second.gauge().moved(5, 7);
        drop(first);
        assert!(gauge.enter(2).is_some());
        assert_eq!(gauge.load(), StreamLoad { open: 1, taken: 3, received: 5, sent: 7 });
        assert_eq!(gauge.age(began + Duration::from_secs(9)), Duration::from_secs(9));
    }
}
