use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use proximity_table::Rate;
use thiserror::Error;

use crate::Reason;
use crate::client_key::ClientKey;

/// Places for clients that share a hash, and a lock. 2048 × 8 clients are remembered, in 300 KB.
const SETS: usize = 2048;
const WAYS: usize = 8;

/// The client has to wait before it asks again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("too many requests: try again in {seconds} s")]
pub struct RetryAfter {
    /// Value of `Retry-After` (RFC 9110 §10.2.3), at least 1.
    pub seconds: u32,
}

/// The buckets of the clients that asked lately, shared by the data threads.
///
/// The table has one size for ever. A new client takes the place of the one of its set whose bucket is the
/// fullest: that one loses the least by being forgotten, most often nothing, and those who are held back stay.
#[derive(Debug)]
pub struct RateTable {
    /// Keyed, so that nobody can choose addresses that fall into the set of another.
    hasher: RandomState,
    sets: Box<[Mutex<[Entry; WAYS]>]>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    /// Hash of the client; 0 for none.
    id: u64,
    /// When its bucket is full again, in microseconds.
    full_at: u64,
}

impl RateTable {
    /// An empty table; `hasher` is its randomness.
    pub fn new(hasher: RandomState) -> RateTable {
        RateTable { hasher, sets: (0..SETS).map(|_| Mutex::default()).collect() }
    }

    /// Takes a token out of the client's bucket, or tells when there will be one. `scope` tells the buckets of
    /// different vhosts apart. With a rate of 0 there is no limit.
    pub fn take(&self, scope: u64, client: IpAddr, rate: Rate, now_ms: u64) -> Result<(), RetryAfter> {
        if rate.per_second == 0 {
            return Ok(());
        }
        let id = self.hasher.hash_one((scope, ClientKey::from(client))).max(1);
        let now = now_ms.saturating_mul(1000);
        let token = (1_000_000 / u64::from(rate.per_second)).max(1);
        let capacity = token * u64::from(rate.burst.max(1));
        let Some(set) = self.sets.get(id as usize % SETS) else { return Ok(()) };
        let mut set = set.lock().unwrap_or_else(PoisonError::into_inner);
        // Unused places are full since the beginning of time.
        let place = set.iter().position(|entry| entry.id == id);
        let fullest = (0..WAYS).min_by_key(|&at| set[at].full_at).unwrap_or(0);
        let entry = &mut set[place.unwrap_or(fullest)];
        if entry.id != id {
            *entry = Entry { id, full_at: now };
        }
        // Never emptier than empty: a bucket may have been larger before the administrator changed it.
        let full_at = entry.full_at.clamp(now, now.saturating_add(capacity));
        let after = full_at.saturating_add(token);
        let missing = after.saturating_sub(now).saturating_sub(capacity);
        if missing > 0 {
            let seconds = missing.div_ceil(1_000_000).min(u64::from(u32::MAX)) as u32;
            return Err(RetryAfter { seconds });
        }
        entry.full_at = after;
        Ok(())
    }
}

impl From<RetryAfter> for Reason {
    fn from(_: RetryAfter) -> Reason {
        Reason::RateLimited
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const FIVE: Rate = Rate { per_second: 5, burst: 10 };

    fn table() -> RateTable {
        RateTable::new(RandomState::new())
    }

    fn client(number: u32) -> IpAddr {
        Ipv4Addr::from(0x0a00_0000 + number).into()
    }

    fn granted(table: &RateTable, rate: Rate, now: u64, asked: usize) -> usize {
        (0..asked).filter(|_| table.take(0, client(1), rate, now).is_ok()).count()
    }

    #[test]
    fn a_burst_passes_and_then_the_rate() {
        let table = table();
        assert_eq!(granted(&table, FIVE, 1000, 100), 10);
        assert_eq!(granted(&table, FIVE, 1199, 100), 0);
        assert_eq!(granted(&table, FIVE, 1200, 100), 1);
        assert_eq!(granted(&table, FIVE, 2200, 100), 5);
        assert_eq!(granted(&table, FIVE, 100_000, 100), 10);
        assert_eq!(granted(&table, FIVE, 0, 100), 0, "a clock that goes back gives nothing");
    }

    #[test]
    fn over_a_minute_the_rate_holds_however_often_it_is_asked() {
        let table = table();
        let passed: usize = (0..60_000).map(|ms| granted(&table, FIVE, ms, 2)).sum();
        assert!((309..=310).contains(&passed), "{passed}");
    }

    #[test]
    fn who_is_held_back_learns_for_how_long() {
        let table = table();
        let slow = Rate { per_second: 1, burst: 1 };
        assert_eq!(table.take(0, client(1), slow, 0), Ok(()));
        assert_eq!(table.take(0, client(1), slow, 0), Err(RetryAfter { seconds: 1 }));
        assert_eq!(table.take(0, client(1), slow, 999), Err(RetryAfter { seconds: 1 }));
        assert_eq!(table.take(0, client(1), slow, 1000), Ok(()));
        // A bucket that was made smaller heals at once.
        let large = Rate { per_second: 1, burst: 1000 };
        assert_eq!(granted(&table, large, 1_000_000, 1000), 1000);
        assert_eq!(table.take(0, client(1), slow, 1_000_000), Err(RetryAfter { seconds: 1 }));
    }

    #[test]
    fn clients_and_vhosts_have_buckets_of_their_own() {
        let table = table();
        let one = Rate { per_second: 1, burst: 1 };
        assert!(table.take(1, client(1), one, 0).is_ok());
        assert!(table.take(1, client(1), one, 0).is_err());
        assert!(table.take(2, client(1), one, 0).is_ok());
        assert!(table.take(1, client(2), one, 0).is_ok());
        let none = Rate { per_second: 0, burst: 0 };
        assert!((0..100).all(|_| table.take(1, client(1), none, 0).is_ok()));
        let huge = Rate { per_second: u32::MAX, burst: u32::MAX };
        assert!((0..100).all(|_| table.take(3, client(1), huge, u64::MAX).is_ok()));
    }

    #[test]
    fn those_held_back_are_not_forgotten_when_many_others_come() {
        let table = table();
        let strict = Rate { per_second: 1, burst: 100 };
        while table.take(0, client(0), strict, 0).is_ok() {}
        let many = 4 * (SETS * WAYS) as u32;
        (1..many).for_each(|number| assert!(table.take(0, client(number), strict, 0).is_ok()));
        assert!(table.take(0, client(0), strict, 500).is_err());
    }
}
