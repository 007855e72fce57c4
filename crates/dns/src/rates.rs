//! How often somebody did something in the present second, for everybody, in a table of fixed size.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use proximity_table::Timestamp;

use crate::cookies::siphash;
use crate::reply::Rcode;

/// Places of the table: 64 KiB.
const PLACES: usize = 8192;
/// Places that one key may be at.
const WAYS: usize = 8;

const TAG: u64 = 0xffff_0000_0000_0000;
const SECOND: u64 = 0x0000_ffff_ff00_0000;
const COUNT: u64 = 0x0000_0000_00ff_ffff;

/// Counts by key and second. Threads share it without a lock; of two that count at the same moment one may be lost.
pub struct Rates {
    secret: [u64; 2],
    /// A part of the key's hash (16 bits), the second (24 bits) and the count (24 bits).
    places: Box<[AtomicU64]>,
}

/// What kind of response goes to a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    Answer = 1,
    Empty = 2,
    Refused = 3,
    Error = 4,
}

/// What becomes of a response that may be one of a flood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is sent.
    Send,
    /// An empty one with TC is sent instead: whoever did ask comes back over TCP.
    Slip,
    /// Nothing is sent.
    Drop,
}

impl Rates {
    /// A table whose places nobody can foresee, by 16 octets of entropy.
    pub fn new(entropy: [u8; 16]) -> Rates {
        let (words, _) = entropy.as_chunks::<8>();
        let secret = [u64::from_le_bytes(words[0]), u64::from_le_bytes(words[1])];
        Rates { secret, places: (0..PLACES).map(|_| AtomicU64::new(0)).collect() }
    }

    /// Counts one query of a client; returns whether it is within `most` in a second.
    pub(crate) fn may_ask(&self, client: IpAddr, most: u32, now: Timestamp) -> bool {
        let hash = match client.to_canonical() {
            // Clients are few and cannot choose their addresses: mixing is enough, and costs next to nothing.
            IpAddr::V4(ip) => mix(self.secret[0] ^ u64::from(u32::from(ip))),
            IpAddr::V6(ip) => siphash(self.secret, &ip.octets()),
        };
        self.count(hash, now) <= most
    }

    /// Counts one response to a client's network (/24, /56) and says what becomes of it, when so many of its kind are
    /// the `most` in a second.
    pub(crate) fn may_answer(
        &self,
        client: IpAddr,
        (rcode, is_empty): (Rcode, bool),
        most: u32,
        now: Timestamp,
    ) -> Verdict {
        let kind = match rcode {
            Rcode::NoError if is_empty => Kind::Empty,
            Rcode::NoError => Kind::Answer,
            Rcode::NxDomain => Kind::Empty,
            Rcode::Refused => Kind::Refused,
            _ => Kind::Error,
        };
        let mut key = [kind as u8; 8];
        match client.to_canonical() {
            IpAddr::V4(ip) => key[..3].copy_from_slice(&ip.octets()[..3]),
            IpAddr::V6(ip) => key[..7].copy_from_slice(&ip.octets()[..7]),
        }
        let count = self.count(siphash(self.secret, &key), now);
        match count.checked_sub(most) {
            None | Some(0) => Verdict::Send,
            // Every second one: an attacker gains nothing, for it is no longer than the question.
            Some(over) if over % 2 == 1 => Verdict::Slip,
            Some(_) => Verdict::Drop,
        }
    }

    /// How often this key was counted in this second, with this time. When all of its places are taken by others, it
    /// is let through: nobody is kept out for what another did.
    fn count(&self, hash: u64, now: Timestamp) -> u32 {
        let stamp = (hash & TAG) | (now.0 << 24 & SECOND);
        let first = hash as usize % PLACES;
        let mut free = None;
        for way in 0..WAYS {
            let place = &self.places[(first + way) % PLACES];
            let there = place.load(Ordering::Relaxed);
            if there & (TAG | SECOND) == stamp {
                let count = (there & COUNT).saturating_add(1).min(COUNT);
                place.store(stamp | count, Ordering::Relaxed);
                return count as u32;
            }
            if there & SECOND != stamp & SECOND {
                free = free.or(Some(place));
            }
        }
        if let Some(place) = free {
            place.store(stamp | 1, Ordering::Relaxed);
        }
        1
    }
}

fn mix(word: u64) -> u64 {
    let wide = u128::from(word ^ 0x9e37_79b9_7f4a_7c15) * 0xd6e8_feb8_6659_fd93_u128;
    (wide >> 64) as u64 ^ wide as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_800_000_000);
    const LATER: Timestamp = Timestamp(1_800_000_001);

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_client_may_ask_so_often_in_a_second() {
        let rates = Rates::new([3; 16]);
        let asked = |client: &str, now| (0..20).filter(|_| rates.may_ask(ip(client), 10, now)).count();
        assert_eq!(asked("10.20.0.5", NOW), 10);
        assert_eq!(asked("10.20.0.6", NOW), 10, "another client");
        assert_eq!(asked("fd00::5", NOW), 10);
        assert_eq!(asked("10.20.0.5", LATER), 10, "another second");
    }

    #[test]
    fn a_full_table_keeps_nobody_out() {
        let rates = Rates::new([3; 16]);
        let clients = |index: u32| IpAddr::V4(std::net::Ipv4Addr::from(0x0a00_0000 + index));
        // Nobody asks twice; one in some ten thousand is taken for another.
        let refused = (0..100_000).filter(|index| !rates.may_ask(clients(*index), 1, NOW)).count();
        assert!(refused < 50, "{refused}");
        assert_eq!(rates.places.len(), PLACES);
    }

    #[test]
    fn a_network_of_ten_thousand_is_counted_almost_exactly() {
        let rates = Rates::new([9; 16]);
        let clients = |index: u32| IpAddr::V4(std::net::Ipv4Addr::from(0x0a14_0000 + index));
        let refused = (0..4000u32)
            .filter(|index| (0..3).filter(|_| rates.may_ask(clients(*index), 2, NOW)).count() == 2)
            .count();
        assert!(refused > 3900, "{refused} of 4000");
    }

    /// Vixie and Schryver, DNS Response Rate Limiting: by network and kind of response, with a slip of 2.
    #[test]
    fn responses_to_a_network_are_limited_by_kind() {
        let rates = Rates::new([3; 16]);
        let verdicts = |client: &str, said, now| -> Vec<Verdict> {
            (0..7).map(|_| rates.may_answer(ip(client), said, 3, now)).collect()
        };
        use Verdict::{Drop, Send, Slip};
        let limited = [Send, Send, Send, Slip, Drop, Slip, Drop];
        assert_eq!(verdicts("192.0.2.7", (Rcode::Refused, true), NOW), limited);
        // Others of the network are in the same boat, other kinds and networks are not.
        let verdict = rates.may_answer(ip("192.0.2.200"), (Rcode::Refused, true), 3, NOW);
        assert_eq!(verdict, Slip);
        assert_eq!(verdicts("192.0.2.7", (Rcode::NoError, false), NOW), limited);
        assert_eq!(verdicts("192.0.2.7", (Rcode::NoError, true), NOW), limited);
        assert_eq!(verdicts("192.0.3.7", (Rcode::Refused, true), NOW), limited);
        assert_eq!(verdicts("192.0.2.7", (Rcode::Refused, true), LATER), limited);
    }
}
