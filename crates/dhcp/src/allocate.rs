use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use proximity_table::{Intent, LeaseState, Ledger, Mac, Network, Timestamp};

/// Seconds for which an offered address is kept for the client that was offered it.
const OFFER_SECONDS: u64 = 30;
/// Most offers that are remembered; older ones are forgotten first, and a client whose offer is forgotten
/// still gets its address if it is free.
const MOST_OFFERS: usize = 65_536;
/// How many addresses near a client's own place in the range are looked at before the range is walked.
const NEAR: u64 = 8;

/// Addresses that were offered and not yet requested. Offers are promises of memory only: they are never
/// written to the ledger, so a flood of DISCOVERs costs no lease and no disk.
#[derive(Debug, Default)]
pub struct Offers {
    by_client: HashMap<(Arc<str>, Mac), Offer>,
    by_ip: HashMap<Ipv4Addr, Mac>,
    /// Where the walk for a never-used address goes on, by network.
    cursors: HashMap<Arc<str>, u64>,
}

#[derive(Clone, Copy, Debug)]
struct Offer {
    ip: Ipv4Addr,
    until: Timestamp,
}

/// What an allocation looks at.
#[derive(Clone, Copy)]
pub struct Pool<'a> {
    pub network: &'a Network,
    pub intent: &'a Intent,
    pub ledger: &'a Ledger,
    pub now: Timestamp,
}

impl Offers {
    /// Chooses the address for a client: its reservation, what it holds or held, what it was offered, what
    /// it asks for, a never-used one, the one that was left longest ago. `None` when all are taken.
    pub fn choose(&mut self, pool: Pool<'_>, mac: Mac, requested: Option<Ipv4Addr>) -> Option<Ipv4Addr> {
        let reserved = pool.reserved_for(mac);
        let held = pool.ledger.of_client(&pool.network.name, mac).map(|lease| lease.ip);
        let offered = self.offer_of(pool, mac);
        let wishes = [reserved, held, offered, requested];
        let ip = wishes
            .into_iter()
            .flatten()
            .find(|&ip| self.is_open(pool, mac, ip))
            .or_else(|| self.never_used(pool, mac))
            .or_else(|| pool.ledger.idle().map(|lease| lease.ip).find(|&ip| self.is_open(pool, mac, ip)))?;
        self.remember(pool, mac, ip);
        Some(ip)
    }

    /// Whether this client may have this address now.
    pub fn is_open(&self, pool: Pool<'_>, mac: Mac, ip: Ipv4Addr) -> bool {
        let reserved = pool.reserved_for(mac) == Some(ip);
        if !reserved && (!pool.network.range.contains(ip) || pool.reserved_for_another(mac, ip)) {
            return false;
        }
        if ip == pool.network.address.addr {
            return false;
        }
        let free = pool.ledger.at(ip).is_none_or(|lease| match lease.state {
            LeaseState::Bound => lease.mac == mac,
            LeaseState::Declined => lease.expires <= pool.now,
            LeaseState::Expired | LeaseState::Released => true,
        });
        free && self.by_ip.get(&ip).is_none_or(|&other| {
            let offer = self.by_client.get(&(pool.network.name.clone(), other));
            other == mac || reserved || offer.is_none_or(|offer| offer.until <= pool.now)
        })
    }

    /// Forgets what was offered to a client: it took it, refused it, or went elsewhere.
    pub fn forget(&mut self, network: &Arc<str>, mac: Mac) {
        if let Some(offer) = self.by_client.remove(&(network.clone(), mac))
            && self.by_ip.get(&offer.ip) == Some(&mac)
        {
            self.by_ip.remove(&offer.ip);
        }
    }

    /// How many offers are remembered.
    pub fn len(&self) -> usize {
        self.by_client.len()
    }

    fn offer_of(&self, pool: Pool<'_>, mac: Mac) -> Option<Ipv4Addr> {
        self.by_client.get(&(pool.network.name.clone(), mac)).map(|offer| offer.ip)
    }

    fn remember(&mut self, pool: Pool<'_>, mac: Mac, ip: Ipv4Addr) {
        if self.by_client.len() >= MOST_OFFERS {
            self.by_client.retain(|_, offer| offer.until > pool.now);
            if self.by_client.len() >= MOST_OFFERS {
                self.by_client.clear();
            }
            self.by_ip = self.by_client.iter().map(|((_, mac), offer)| (offer.ip, *mac)).collect();
        }
        self.forget(&pool.network.name, mac);
        let until = pool.now.plus(OFFER_SECONDS);
        self.by_client.insert((pool.network.name.clone(), mac), Offer { ip, until });
        self.by_ip.insert(ip, mac);
    }

    /// A never-used address: near the client's own place, so that a lost ledger gives most clients the
    /// same address again; else the next one of a walk that goes on where it stopped, so that finding one
    /// stays cheap while the pool fills.
    fn never_used(&mut self, pool: Pool<'_>, mac: Mac) -> Option<Ipv4Addr> {
        let range = pool.network.range;
        let size = range.size();
        let home = place(mac) % size;
        let fresh = |ip: &Ipv4Addr| pool.ledger.at(*ip).is_none() && self.is_open(pool, mac, *ip);
        let near = (0..NEAR.min(size)).filter_map(|step| range.nth((home + step) % size));
        if let Some(ip) = near.into_iter().find(|ip| fresh(ip)) {
            return Some(ip);
        }
        let start = self.cursors.get(&pool.network.name).copied().unwrap_or(0) % size;
        let found =
            (0..size).map(|step| (start + step) % size).find(|&at| range.nth(at).as_ref().is_some_and(fresh));
        // Nothing fresh: remember it by standing still; the walk is paid again only when leases were forgotten.
        let at = found?;
        self.cursors.insert(pool.network.name.clone(), at + 1);
        range.nth(at)
    }
}

impl Pool<'_> {
    fn reserved_for(&self, mac: Mac) -> Option<Ipv4Addr> {
        let key = (self.network.name.clone(), mac);
        self.intent.reservations.get(&key).map(|(_, reservation)| reservation.ip)
    }

    fn reserved_for_another(&self, mac: Mac, ip: Ipv4Addr) -> bool {
        self.intent.reservation_at(ip).is_some_and(|other| other.mac != mac)
    }
}

/// A number that depends on the whole hardware address (FNV-1a).
fn place(mac: Mac) -> u64 {
    mac.0.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}
