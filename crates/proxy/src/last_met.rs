use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::Reason;

/// Bits of the reason and of whether it is past; the other 48 of the word hold the time.
const REASON_BITS: u32 = 16;

/// What whoever asked a backend met last, request or probe. It is for those who ask why; nothing is decided by it.
///
/// One word: when it came to nothing (ms), a [`Reason`]'s number plus one (0 for none), and in the lowest bit whether
/// the backend has answered since. 0 as long as nobody knows.
#[derive(Debug, Default)]
pub struct LastMet(AtomicU64);

/// The last request to a backend, or connection of a probe, that came to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LastFailure {
    /// What it met.
    pub reason: Reason,
    /// How long ago, in ms.
    pub ago_ms: u64,
    /// Whether the backend has answered since, a request or a probe.
    pub is_past: bool,
}

impl LastMet {
    /// Notes that somebody came to nothing.
    pub fn note_failure(&self, reason: Reason, now_ms: u64) {
        self.0.store((now_ms << REASON_BITS) | ((reason as u64 + 1) << 1), Relaxed);
    }

    /// Notes that somebody was answered: what failed before is past.
    pub fn note_answer(&self) {
        // Most find nothing to do, and reading costs the other threads nothing.
        let word = self.0.load(Relaxed);
        if word & 1 == 0 {
            // Whoever was quicker knows something newer.
            let _ = self.0.compare_exchange(word, word | 1, Relaxed, Relaxed);
        }
    }

    /// Whether anybody asked and knows.
    pub fn is_known(&self) -> bool {
        self.0.load(Relaxed) != 0
    }

    /// The last failure, if there was any.
    pub fn failure(&self, now_ms: u64) -> Option<LastFailure> {
        let word = self.0.load(Relaxed);
        let number = (word & ((1 << REASON_BITS) - 1)) >> 1;
        let reason = *Reason::ALL.get((number as usize).checked_sub(1)?)?;
        let ago_ms = now_ms.saturating_sub(word >> REASON_BITS);
        Some(LastFailure { reason, ago_ms, is_past: word & 1 == 1 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_past_as_soon_as_it_answers() {
        let met = LastMet::default();
        assert!(!met.is_known());
        met.note_answer();
        assert!(met.is_known() && met.failure(10).is_none());
        for reason in Reason::ALL {
            met.note_failure(reason, 1000);
            assert_eq!(met.failure(1500), Some(LastFailure { reason, ago_ms: 500, is_past: false }));
        }
        met.note_answer();
        assert_eq!(met.failure(2000).map(|last| (last.ago_ms, last.is_past)), Some((1000, true)));
        met.note_failure(Reason::BackendSlow, 3000);
        let failure = LastFailure { reason: Reason::BackendSlow, ago_ms: 0, is_past: false };
        assert_eq!(met.failure(3000), Some(failure));
    }
}
