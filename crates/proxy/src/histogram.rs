use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::stats::add;

/// Upper bounds of the buckets in microseconds, each of them inside its bucket; one more holds the rest. From
/// what an app next door takes for a small page to what a person takes for a fault.
pub const BOUNDS: [u64; 13] = [
    1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 5_000_000,
    10_000_000,
];

/// Durations by size. One thread writes.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; BOUNDS.len() + 1],
    micros: AtomicU64,
}

/// What a histogram holds, or several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Durations {
    /// How many fell into each bucket, in the order of [`BOUNDS`], and how many were longer.
    pub buckets: [u64; BOUNDS.len() + 1],
    /// Their sum in microseconds.
    pub micros: u64,
}

impl Histogram {
    /// Counts a duration in microseconds.
    pub fn observe(&self, micros: u64) {
        let at = BOUNDS.iter().position(|bound| micros <= *bound).unwrap_or(BOUNDS.len());
        add(&self.buckets[at], 1);
        add(&self.micros, micros);
    }

    /// The present figures.
    pub fn snapshot(&self) -> Durations {
        Durations {
            buckets: std::array::from_fn(|at| self.buckets[at].load(Relaxed)),
            micros: self.micros.load(Relaxed),
        }
    }
}

impl Durations {
    /// How many there are.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// Upper bounds in microseconds, and how many durations were no longer.
    pub fn cumulative(&self) -> impl Iterator<Item = (u64, u64)> {
        let sums = self.buckets.iter().scan(0, |sum, count| {
            *sum += count;
            Some(*sum)
        });
        BOUNDS.into_iter().zip(sums)
    }

    /// Adds others.
    pub fn add(&mut self, others: &Durations) {
        self.buckets.iter_mut().zip(others.buckets).for_each(|(to, from)| *to += from);
        self.micros += others.micros;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_falls_into_the_first_bucket_that_holds_it() {
        let histogram = Histogram::default();
        for micros in [0, 1_000, 1_001, 10_000_000, 10_000_001, 1 << 50] {
            histogram.observe(micros);
        }
        let durations = histogram.snapshot();
        assert_eq!((durations.buckets[0], durations.buckets[1]), (2, 1));
        assert_eq!((durations.buckets[12], durations.buckets[13], durations.count()), (1, 2, 6));
        assert_eq!(durations.micros, 2_001 + 20_000_001 + (1 << 50));
        let cumulative: Vec<(u64, u64)> = durations.cumulative().collect();
        assert_eq!((cumulative[0], cumulative[1], cumulative[12]), ((1_000, 2), (2_500, 3), (10_000_000, 4)));
        assert!(BOUNDS.is_sorted() && cumulative.is_sorted());
        let mut both = durations;
        both.add(&durations);
        assert_eq!((both.count(), both.micros), (12, 2 * durations.micros));
    }
}
