//! How each upstream does: what its turn depends on, and what operators see.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Failures in a row that make an upstream one that is asked last.
const DOWN_AFTER: u32 = 3;
/// What a failure counts as in the mean time of answers.
const PENALTY: Duration = Duration::from_millis(400);

/// Counters and the mean time of answers of one upstream.
#[derive(Debug, Default)]
pub(crate) struct Health {
    answers: AtomicU64,
    failures: AtomicU64,
    in_a_row: AtomicU32,
    /// Smoothed as RFC 6298 §2 does, in microseconds; 0 before the first answer.
    mean: AtomicU32,
    microseconds: AtomicU64,
    last_answer: AtomicU64,
    last_failure: AtomicU64,
}

/// How an upstream does at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamStatus {
    /// As the configuration writes it.
    pub upstream: String,
    /// The domain that it alone is asked about, if any.
    pub domain: Option<String>,
    /// Whether it is asked before those that are not.
    pub is_up: bool,
    /// Answers that it gave.
    pub answers: u64,
    /// Questions that it gave no usable answer to.
    pub failures: u64,
    /// How long its answers took together.
    pub total: Duration,
    /// How long they take at the moment.
    pub latency: Option<Duration>,
    /// Unix seconds of the last answer.
    pub last_answer: Option<u64>,
    /// Unix seconds of the last failure.
    pub last_failure: Option<u64>,
}

impl Health {
    /// Notes an answer at `now`, in Unix seconds.
    pub fn answered(&self, took: Duration, now: u64) {
        let took = u32::try_from(took.as_micros()).unwrap_or(u32::MAX);
        self.answers.fetch_add(1, Relaxed);
        self.microseconds.fetch_add(took.into(), Relaxed);
        self.in_a_row.store(0, Relaxed);
        self.last_answer.store(now, Relaxed);
        self.smooth(took);
    }

    /// Notes a failure at `now`, in Unix seconds.
    pub fn failed(&self, now: u64) {
        self.failures.fetch_add(1, Relaxed);
        self.in_a_row.fetch_add(1, Relaxed);
        self.last_failure.store(now, Relaxed);
        self.smooth(PENALTY.as_micros() as u32);
    }

    pub fn is_up(&self) -> bool {
        self.in_a_row.load(Relaxed) < DOWN_AFTER
    }

    /// How long an answer takes, as far as known.
    pub fn mean(&self) -> Option<Duration> {
        let mean = self.mean.load(Relaxed);
        (mean > 0).then(|| Duration::from_micros(mean.into()))
    }

    pub fn status(&self, upstream: String, domain: Option<String>) -> UpstreamStatus {
        let moment = |at: &AtomicU64| Some(at.load(Relaxed)).filter(|at| *at > 0);
        UpstreamStatus {
            upstream,
            domain,
            is_up: self.is_up(),
            answers: self.answers.load(Relaxed),
            failures: self.failures.load(Relaxed),
            total: Duration::from_micros(self.microseconds.load(Relaxed)),
            latency: self.mean(),
            last_answer: moment(&self.last_answer),
            last_failure: moment(&self.last_failure),
        }
    }

    fn smooth(&self, sample: u32) {
        let mean = self.mean.load(Relaxed);
        let next = if mean == 0 { sample } else { mean - mean / 8 + sample / 8 };
        self.mean.store(next.max(1), Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_failures_in_a_row_put_it_behind_until_it_answers() {
        let health = Health::default();
        for up in [true, true, false, false] {
            health.failed(7);
            assert_eq!(health.is_up(), up);
        }
        health.answered(Duration::from_millis(20), 9);
        let status = health.status("8.8.8.8".to_owned(), None);
        assert!(status.is_up);
        assert_eq!((status.answers, status.failures), (1, 4));
        assert_eq!((status.last_answer, status.last_failure), (Some(9), Some(7)));
        assert_eq!(status.total, Duration::from_millis(20));
    }

    #[test]
    fn the_mean_follows_what_it_sees() {
        let health = Health::default();
        assert_eq!(health.mean(), None);
        (0..40).for_each(|_| health.answered(Duration::from_millis(10), 1));
        assert_eq!(health.mean(), Some(Duration::from_millis(10)));
        (0..40).for_each(|_| health.answered(Duration::from_millis(80), 1));
        assert!(health.mean().unwrap() > Duration::from_millis(70));
    }
}
