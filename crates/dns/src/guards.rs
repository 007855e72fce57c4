use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, Ordering};

use proximity_table::Timestamp;

use crate::answer::Outcome;
use crate::cookies::Cookies;
use crate::options::Options;
use crate::rates::{Rates, Verdict};
use crate::reply::Rcode;

/// What keeps one client from harming others: cookies, and limits of how often is asked and answered. Shared by all
/// threads of a process.
pub struct Guards {
    cookies: Cookies,
    rates: Rates,
    client_rate: AtomicU32,
    response_rate: AtomicU32,
}

impl Guards {
    /// Guards without limits, by 32 octets that nobody can foresee.
    pub fn new(entropy: [u8; 32]) -> Guards {
        let (halves, _) = entropy.as_chunks::<16>();
        Guards {
            cookies: Cookies::new(halves[0]),
            rates: Rates::new(halves[1]),
            client_rate: AtomicU32::new(0),
            response_rate: AtomicU32::new(0),
        }
    }

    /// Sets how many queries in a second one client may ask, and how many responses of a kind one network on the WAN
    /// gets; 0 is no limit.
    pub fn set_rates(&self, client_rate: u32, response_rate: u32) {
        self.client_rate.store(client_rate, Ordering::Relaxed);
        self.response_rate.store(response_rate, Ordering::Relaxed);
    }

    pub(crate) fn cookies(&self) -> &Cookies {
        &self.cookies
    }

    /// Counts a query; whether the client may ask it.
    pub(crate) fn may_ask(&self, client: IpAddr, now: Timestamp) -> bool {
        let most = self.client_rate.load(Ordering::Relaxed);
        most == 0 || self.rates.may_ask(client, most, now)
    }

    /// Counts a response; what becomes of it. Who shows a good cookie is where it says, and harms nobody.
    pub(crate) fn verdict_on(
        &self,
        outcome: &Outcome,
        client: IpAddr,
        message: &[u8],
        reply: &[u8],
        now: Timestamp,
    ) -> Verdict {
        let rcode = match outcome {
            Outcome::Answered(rcode) => *rcode,
            Outcome::Malformed(_) => Rcode::FormErr,
            _ => return Verdict::Send,
        };
        let most = self.response_rate.load(Ordering::Relaxed);
        if most == 0 {
            return Verdict::Send;
        }
        let cookie = Options::read(message).cookie;
        if cookie.is_some_and(|offered| self.cookies.is_good(&offered, client, now)) {
            return Verdict::Send;
        }
        let is_empty = reply.get(6..8) == Some(&[0, 0]);
        self.rates.may_answer(client, (rcode, is_empty), most, now)
    }
}
