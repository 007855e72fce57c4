/// Requests that one client may cancel within a window. A browser that leaves a page cancels at most what it may have
/// open at a time (128); twice that is two pages left in a hurry.
const MOST_CANCELLED: u32 = 256;
/// Length of a window, in ms.
const WINDOW_MS: u64 = 10_000;

/// Counts the requests of one HTTP/2 connection, and those that its client did not want any more.
///
/// A request that is cancelled costs its client a few octets and a backend the work. h2 ends connections whose
/// requests are cancelled before anybody took them up (CVE-2023-44487); this is about those that a backend has got.
#[derive(Debug, Default)]
pub struct Tally {
    open: u32,
    /// Requests that are open or were begun since the window began.
    begun: u32,
    cancelled: u32,
    since_ms: u64,
}

impl Tally {
    /// A request begins.
    pub fn begin(&mut self) {
        self.open += 1;
        self.begun = self.begun.saturating_add(1);
    }

    /// A request is over, however it ended.
    pub fn end(&mut self) {
        self.open = self.open.saturating_sub(1);
    }

    /// The client cancelled a request that is still open. Returns whether nobody who wants answers would do so: most
    /// of the requests of the window were cancelled, and many.
    pub fn cancel(&mut self, now_ms: u64) -> bool {
        if now_ms.saturating_sub(self.since_ms) >= WINDOW_MS {
            *self = Tally { open: self.open, begun: self.open, cancelled: 0, since_ms: now_ms };
        }
        self.cancelled = self.cancelled.saturating_add(1);
        self.cancelled > MOST_CANCELLED && u64::from(self.cancelled) * 2 > u64::from(self.begun)
    }

    /// Requests being answered.
    pub fn open(&self) -> u32 {
        self.open
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Begins and cancels requests at one time; says after how many it was enough.
    fn cancels(tally: &mut Tally, now_ms: u64, most: u32) -> Option<u32> {
        (1..=most).find(|_| {
            tally.begin();
            let is_enough = tally.cancel(now_ms);
            tally.end();
            is_enough
        })
    }

    #[test]
    fn many_cancelled_requests_are_enough() {
        assert_eq!(cancels(&mut Tally::default(), 5, 1000), Some(MOST_CANCELLED + 1));
    }

    #[test]
    fn a_page_that_is_left_is_not() {
        let mut tally = Tally::default();
        for second in 0..20 {
            // All that a browser may have open, every eleven seconds.
            assert_eq!(cancels(&mut tally, second * 11_000, 128), None);
        }
    }

    #[test]
    fn whoever_takes_as_many_answers_may_cancel_as_many_requests() {
        let mut tally = Tally::default();
        for _ in 0..100_000 {
            tally.begin();
            tally.end();
            assert_eq!(cancels(&mut tally, 1, 1), None);
        }
    }

    #[test]
    fn what_was_open_before_the_window_counts_in_it() {
        let mut tally = Tally::default();
        // Long polls, which all end when the client says so.
        (0..MOST_CANCELLED * 2 + 2).for_each(|_| tally.begin());
        for _ in 0..=MOST_CANCELLED {
            assert!(!tally.cancel(WINDOW_MS));
            tally.end();
        }
        assert!(tally.cancel(WINDOW_MS), "more than half");
        assert_eq!(tally.open(), MOST_CANCELLED + 1);
    }

    #[test]
    fn a_slow_drip_is_let_be() {
        let mut tally = Tally::default();
        for number in 0..10_000 {
            // Twenty-five a second.
            assert_eq!(cancels(&mut tally, number * 40, 1), None, "{number}");
        }
    }
}
