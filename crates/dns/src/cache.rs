//! Answers of upstreams, kept for all data threads; and names that no upstream could be asked about.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use moka::policy::EvictionPolicy;
use proximity_table::Timestamp;

use crate::ede::Ede;
use crate::foreign::{is_within, parts};
use crate::kept::{Age, Kept};

/// Octets for each answer that may be kept: no number of long answers takes more than this many times the number.
const OCTETS_EACH: usize = 1024;
/// How long a failure is remembered, in seconds (RFC 9520 §3.2: at least one, at most 300).
const FAILURE: u64 = 5;
/// Failures remembered at the same time.
const FAILURES: usize = 4096;

/// No two caches, and no cache before and after a flush, have the same number.
static GENERATIONS: AtomicU64 = AtomicU64::new(1);

/// Until when each is remembered, and why it was.
type Failures = HashMap<Box<[u8]>, (Timestamp, Ede)>;

/// Bounded by the number of answers and by their octets.
pub(crate) struct Cache {
    kept: moka::sync::Cache<Arc<[u8]>, Arc<Kept>>,
    failures: Mutex<Failures>,
    generation: AtomicU64,
}

impl Cache {
    /// A cache of so many answers.
    pub fn new(size: u64) -> Cache {
        // A short answer weighs as much as one of the length that there is room for: so one bound holds both.
        let kept = moka::sync::Cache::builder()
            .max_capacity(size.saturating_mul(OCTETS_EACH as u64))
            .weigher(|_, kept: &Arc<Kept>| u32::try_from(kept.size().max(OCTETS_EACH)).unwrap_or(u32::MAX))
            .eviction_policy(EvictionPolicy::lru())
            .build();
        let generation = AtomicU64::new(GENERATIONS.fetch_add(1, Ordering::Relaxed));
        Cache { kept, failures: Mutex::default(), generation }
    }

    /// What changes when something is flushed.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    pub fn find(&self, key: &[u8]) -> Option<Arc<Kept>> {
        self.kept.get(key)
    }

    /// Keeps an answer that was asked for in a generation, unless it was flushed since.
    pub fn keep(&self, kept: Arc<Kept>, asked_in: u64) {
        self.lock().remove(&kept.key[..]);
        if kept.lasts() && asked_in == self.generation() {
            self.kept.insert(kept.key.clone(), kept);
        }
    }

    /// Notes that nobody could be asked.
    pub fn fail(&self, key: &[u8], now: Timestamp, why: Ede) {
        let mut failures = self.lock();
        if failures.len() >= FAILURES {
            failures.retain(|_, (until, _)| *until > now);
        }
        if failures.len() < FAILURES {
            failures.insert(key.into(), (now.plus(FAILURE), why));
        }
    }

    /// Whether nobody could be asked a moment ago, and why.
    pub fn failed(&self, key: &[u8], now: Timestamp) -> Option<Ede> {
        let failures = self.lock();
        let (until, why) = failures.get(key)?;
        // What was noted by a clock that has been set back since does not count.
        (*until > now && until.seconds_after(now) <= FAILURE).then_some(*why)
    }

    /// Forgets everything, or a name in lower-case wire form with all below it; returns how many answers that were.
    pub fn flush(&self, name: Option<&[u8]>) -> usize {
        // First, so that what is under way is not kept, and no thread goes on with what it has at hand.
        self.generation.store(GENERATIONS.fetch_add(1, Ordering::Relaxed), Ordering::Release);
        self.lock().retain(|key, _| name.is_some_and(|name| !is_within(parts(key).0, name)));
        let is_meant = |key: &[u8]| name.is_none_or(|name| is_within(parts(key).0, name));
        let keys: Vec<_> = self.kept.iter().map(|(key, _)| key).filter(|key| is_meant(key)).collect();
        keys.iter().for_each(|key| self.kept.invalidate(&***key));
        keys.len()
    }

    /// How many answers are kept, and the octets that they take at most.
    pub fn entries(&self) -> u64 {
        self.kept.run_pending_tasks();
        self.kept.entry_count()
    }

    fn lock(&self) -> MutexGuard<'_, Failures> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What may be given out of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Worth {
    /// It holds.
    Fresh(Age),
    /// Only when nobody can be asked.
    Stale(Age),
    Nothing,
}

impl Worth {
    /// Of an answer, when what is over for at most `stale` seconds may still be given out.
    pub fn of(kept: &Kept, now: Timestamp, stale: u32) -> Worth {
        match kept.age(now) {
            age @ Age::Fresh(_) => Worth::Fresh(age),
            age @ Age::Stale(over) if over < stale => Worth::Stale(age),
            Age::Stale(_) => Worth::Nothing,
        }
    }
}
