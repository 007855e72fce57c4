/// Octets a second that a client must move on the average, while it is the client that is waited for. The slowest
/// networks that people browse with carry ten times as much, and who sends or reads an octet now and then, so that
/// nothing ever times out, keeps a connection and a backend's worker by it.
pub const LEAST_RATE: u64 = 256;

/// How far a client may fall behind the least rate before it is given up: by as much as it may be silent.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pace {
    /// Octets that it may still fall behind by.
    left: u64,
    most: u64,
}

impl Pace {
    /// Of a client that may be silent for `patience` seconds.
    pub fn new(patience: u32) -> Pace {
        let most = LEAST_RATE * u64::from(patience);
        Pace { left: most, most }
    }

    /// The client sent or took so many octets. What it was fast by makes up for what it was slow by before, and not for
    /// what it will be slow by.
    pub fn moved(&mut self, octets: u64) {
        self.left = self.left.saturating_add(octets).min(self.most);
    }

    /// The client was waited for for a second. Returns whether it is too slow.
    pub fn waited(&mut self) -> bool {
        match self.left.checked_sub(LEAST_RATE) {
            Some(left) => {
                self.left = left;
                false
            }
            None => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The second in which a client that moves so many octets in each is given up.
    fn given_up(patience: u32, octets: impl Fn(u32) -> u64) -> Option<u32> {
        let mut pace = Pace::new(patience);
        (1..=100_000).find(|&second| {
            pace.moved(octets(second));
            pace.waited()
        })
    }

    #[test]
    fn a_silent_client_has_its_patience_and_a_dripping_one_not_much_more() {
        assert_eq!(given_up(60, |_| 0), Some(61));
        assert_eq!(given_up(60, |_| 1), Some(61));
        assert_eq!(given_up(60, |second| u64::from(second % 59 == 0)), Some(61));
        assert_eq!(given_up(60, |_| LEAST_RATE / 2), Some(120));
    }

    #[test]
    fn the_least_rate_is_enough_however_it_comes() {
        assert_eq!(given_up(60, |_| LEAST_RATE), None);
        assert_eq!(given_up(60, |second| if second % 60 == 0 { 60 * LEAST_RATE } else { 0 }), None);
        assert_eq!(given_up(1, |_| LEAST_RATE), None);
    }

    #[test]
    fn a_good_beginning_buys_no_time() {
        let first = |second| if second == 1 { 1 << 30 } else { 1 };
        assert_eq!(given_up(60, first), Some(61));
        assert_eq!(given_up(u32::MAX, |_| u64::MAX), None, "no figure is too large");
    }
}
