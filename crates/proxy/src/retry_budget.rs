use std::cell::Cell;

/// A retry, in the thousandths in which it is saved up for.
const RETRY: u64 = 1000;
/// Retries that may be saved up: what a sudden outage may cost at once.
const MOST_SAVED: u64 = 100;

/// How many retries one vhost may make on one data thread: a share of its requests, and a few each second
/// whatever comes. When everything fails, retries add that share to the load instead of multiplying it.
#[derive(Debug)]
pub struct RetryBudget {
    /// Percent of the requests.
    percent: u32,
    /// Retries each second that quiet vhosts have too.
    per_second: u32,
    saved: Cell<u64>,
    refilled_ms: Cell<u64>,
}

impl RetryBudget {
    /// A budget of `percent` of the requests and `per_second` besides, with one second's worth saved up.
    pub fn new(percent: u32, per_second: u32, now_ms: u64) -> RetryBudget {
        let budget = RetryBudget { percent, per_second, saved: Cell::new(0), refilled_ms: Cell::new(now_ms) };
        budget.save(u64::from(per_second) * RETRY);
        budget
    }

    /// Counts a request, not a retry, of the vhost.
    pub fn count_request(&self) {
        self.save(u64::from(self.percent) * RETRY / 100);
    }

    /// Takes one retry out of the budget, if there is one.
    pub fn take(&self, now_ms: u64) -> bool {
        let passed = now_ms.saturating_sub(self.refilled_ms.get());
        self.refilled_ms.set(now_ms.max(self.refilled_ms.get()));
        // So many retries a second are as many thousandths a millisecond.
        self.save(passed.saturating_mul(u64::from(self.per_second)));
        match self.saved.get().checked_sub(RETRY) {
            Some(left) => {
                self.saved.set(left);
                true
            }
            None => false,
        }
    }

    fn save(&self, thousandths: u64) {
        self.saved.set(self.saved.get().saturating_add(thousandths).min(MOST_SAVED * RETRY));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(budget: &RetryBudget, now: u64, most: usize) -> usize {
        (0..most).take_while(|_| budget.take(now)).count()
    }

    #[test]
    fn retries_are_a_share_of_the_requests() {
        let budget = RetryBudget::new(20, 0, 0);
        assert!(!budget.take(1_000_000));
        (0..99).for_each(|_| budget.count_request());
        assert_eq!(taken(&budget, 0, 1000), 19);
        budget.count_request();
        assert!(budget.take(0), "what is left over counts");
        assert!(!budget.take(0));
    }

    #[test]
    fn when_every_request_fails_the_load_grows_by_the_share_only() {
        let budget = RetryBudget::new(20, 0, 0);
        let retries = (0..10_000).filter(|_| {
            budget.count_request();
            budget.take(0)
        });
        assert_eq!(retries.count(), 2000);
    }

    #[test]
    fn a_quiet_vhost_may_retry_now_and_then() {
        let budget = RetryBudget::new(20, 3, 5000);
        assert_eq!(taken(&budget, 5000, 10), 3);
        assert_eq!(taken(&budget, 5333, 10), 0);
        assert_eq!(taken(&budget, 5334, 10), 1);
        assert_eq!(taken(&budget, 6334, 10), 3);
        assert_eq!(taken(&budget, 0, 10), 0, "a clock that goes back gives nothing");
        assert_eq!(taken(&budget, 6334, 10), 0);
    }

    #[test]
    fn what_is_saved_up_is_bounded() {
        let budget = RetryBudget::new(100, 10, 0);
        (0..100_000).for_each(|_| budget.count_request());
        assert_eq!(taken(&budget, u64::MAX, 1000), MOST_SAVED as usize);
        assert!(!RetryBudget::new(0, 0, 0).take(u64::MAX));
    }
}
