use std::net::Ipv4Addr;
use std::sync::Arc;

use imbl::{HashMap, OrdMap, OrdSet};

use crate::{Label, Lease, LeaseState, Mac, Timestamp};

/// The holders of a host name by epoch: the oldest comes first.
type Holders = OrdSet<(u64, Ipv4Addr)>;

/// Every lease, by address, by client, by host name and by end. Cloning costs a few pointers, so that a
/// batch can be tried and thrown away and a snapshot kept.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    by_ip: OrdMap<Ipv4Addr, Arc<Lease>>,
    by_client: HashMap<(Arc<str>, Mac), Ipv4Addr>,
    by_hostname: HashMap<(Arc<str>, Label), Holders>,
    /// Bound and declined leases by the moment at which something must be done about them.
    ends: OrdSet<(Timestamp, Ipv4Addr)>,
    /// Ended leases, the longest ended first: the order in which addresses are given to others.
    idle: OrdSet<(Timestamp, Ipv4Addr)>,
    bound: usize,
}

impl Ledger {
    /// A ledger of these leases. Where a client has two on a network, the later one counts.
    pub fn of(leases: impl IntoIterator<Item = Lease>) -> Ledger {
        let mut ledger = Ledger::default();
        let mut leases: Vec<Lease> = leases.into_iter().collect();
        leases.sort_by_key(|lease| lease.epoch);
        for lease in leases {
            ledger.put(lease);
        }
        ledger
    }

    /// Writes a lease; whatever stood at its address, and what the same client held elsewhere on the
    /// same network, is replaced. Returns the leases that are gone.
    pub fn put(&mut self, lease: Lease) -> Vec<Arc<Lease>> {
        let mut gone = Vec::new();
        gone.extend(self.remove(lease.ip));
        // A declined address is nobody's: it must not stop its finder from getting another one.
        if lease.state != LeaseState::Declined {
            let client = (lease.network.clone(), lease.mac);
            if let Some(&elsewhere) = self.by_client.get(&client) {
                gone.extend(self.remove(elsewhere));
            }
            self.by_client.insert(client, lease.ip);
        }
        if let Some(hostname) = &lease.hostname {
            let key = (lease.network.clone(), hostname.clone());
            self.by_hostname.entry(key).or_default().insert((lease.epoch, lease.ip));
        }
        match lease.state {
            LeaseState::Bound | LeaseState::Declined => self.ends.insert((lease.expires, lease.ip)),
            LeaseState::Expired | LeaseState::Released => self.idle.insert((lease.expires, lease.ip)),
        };
        self.bound += usize::from(lease.is_bound());
        self.by_ip.insert(lease.ip, Arc::new(lease));
        gone
    }

    /// Forgets the lease of an address and returns it.
    pub fn remove(&mut self, ip: Ipv4Addr) -> Option<Arc<Lease>> {
        let lease = self.by_ip.remove(&ip)?;
        let client = (lease.network.clone(), lease.mac);
        if self.by_client.get(&client) == Some(&ip) {
            self.by_client.remove(&client);
        }
        if let Some(hostname) = &lease.hostname {
            let key = (lease.network.clone(), hostname.clone());
            if let Some(holders) = self.by_hostname.get_mut(&key) {
                holders.remove(&(lease.epoch, ip));
                if holders.is_empty() {
                    self.by_hostname.remove(&key);
                }
            }
        }
        self.ends.remove(&(lease.expires, ip));
        self.idle.remove(&(lease.expires, ip));
        self.bound -= usize::from(lease.is_bound());
        Some(lease)
    }

    /// The lease of an address, whatever its state.
    pub fn at(&self, ip: Ipv4Addr) -> Option<&Arc<Lease>> {
        self.by_ip.get(&ip)
    }

    /// The lease of an address if a client holds it.
    pub fn bound_at(&self, ip: Ipv4Addr) -> Option<&Arc<Lease>> {
        self.at(ip).filter(|lease| lease.is_bound())
    }

    /// What a client holds or last held on a network.
    pub fn of_client(&self, network: &Arc<str>, mac: Mac) -> Option<&Arc<Lease>> {
        self.at(*self.by_client.get(&(network.clone(), mac))?)
    }

    /// The leases that carry a host name on a network, the oldest holder first.
    pub fn of_hostname<'a>(
        &'a self,
        network: &Arc<str>,
        hostname: &Label,
    ) -> impl Iterator<Item = &'a Arc<Lease>> {
        let holders = self.by_hostname.get(&(network.clone(), hostname.clone()));
        holders.into_iter().flatten().filter_map(|(_, ip)| self.at(*ip))
    }

    /// All leases in the order of their addresses.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Lease>> {
        self.by_ip.values()
    }

    /// Addresses that clients hold.
    pub fn bound_addresses(&self) -> impl Iterator<Item = Ipv4Addr> + '_ {
        self.iter().filter(|lease| lease.is_bound()).map(|lease| lease.ip)
    }

    /// How many addresses clients hold.
    pub fn bound_count(&self) -> usize {
        self.bound
    }

    /// How many leases there are, ended ones too.
    pub fn len(&self) -> usize {
        self.by_ip.len()
    }

    /// Whether there is no lease at all.
    pub fn is_empty(&self) -> bool {
        self.by_ip.is_empty()
    }

    /// When the next bound lease or declined address ends.
    pub fn next_end(&self) -> Option<Timestamp> {
        self.ends.get_min().map(|(when, _)| *when).filter(|&when| when != Timestamp::NEVER)
    }

    /// Bound leases and declined addresses whose time is over at `now`, the earliest first.
    pub fn ended(&self, now: Timestamp) -> impl Iterator<Item = &Arc<Lease>> {
        self.ends.iter().take_while(move |(when, _)| *when <= now).filter_map(|(_, ip)| self.at(*ip))
    }

    /// Ended leases, the longest ended first.
    pub fn idle(&self) -> impl Iterator<Item = &Arc<Lease>> {
        self.idle.iter().filter_map(|(_, ip)| self.at(*ip))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(last: u8, mac: u8, name: &str, epoch: u64) -> Lease {
        Lease {
            ip: Ipv4Addr::new(10, 20, 0, last),
            mac: Mac([2, 0, 0, 0, 0, mac]),
            client_id: None,
            hostname: Label::from_client(name.as_bytes()),
            network: "apps".into(),
            state: LeaseState::Bound,
            expires: Timestamp(100 + u64::from(last)),
            epoch,
        }
    }

    #[test]
    fn a_client_holds_one_address_of_a_network() {
        let mut ledger = Ledger::of([lease(1, 1, "a", 1)]);
        let gone = ledger.put(lease(2, 1, "a", 2));
        assert_eq!(gone.len(), 1);
        assert_eq!((ledger.len(), ledger.bound_count()), (1, 1));
        assert_eq!(ledger.of_client(&"apps".into(), Mac([2, 0, 0, 0, 0, 1])).unwrap().ip.octets()[3], 2);
    }

    #[test]
    fn every_index_forgets_a_removed_lease() {
        let mut ledger = Ledger::of([lease(1, 1, "a", 1), lease(2, 2, "a", 2)]);
        let apps: Arc<str> = "apps".into();
        let name: Label = "a".parse().unwrap();
        let holders: Vec<u8> = ledger.of_hostname(&apps, &name).map(|l| l.ip.octets()[3]).collect();
        assert_eq!(holders, [1, 2]);
        ledger.remove(Ipv4Addr::new(10, 20, 0, 1));
        assert_eq!(ledger.of_hostname(&apps, &name).count(), 1);
        assert_eq!(ledger.next_end(), Some(Timestamp(102)));
        ledger.remove(Ipv4Addr::new(10, 20, 0, 2));
        assert!(ledger.is_empty() && ledger.next_end().is_none() && ledger.by_hostname.is_empty());
    }

    #[test]
    fn ended_leases_are_reused_longest_ended_first() {
        let mut ledger = Ledger::default();
        for (last, ended) in [(1, 50), (2, 40)] {
            let ended =
                Lease { state: LeaseState::Released, expires: Timestamp(ended), ..lease(last, last, "x", 1) };
            ledger.put(ended);
        }
        ledger.put(lease(3, 3, "y", 1));
        assert_eq!(ledger.idle().map(|l| l.ip.octets()[3]).collect::<Vec<_>>(), [2, 1]);
        assert_eq!(ledger.ended(Timestamp(103)).count(), 1);
        assert_eq!(ledger.ended(Timestamp(102)).count(), 0);
    }

    #[test]
    fn a_declined_address_does_not_bind_its_finder() {
        let declined = Lease { state: LeaseState::Declined, ..lease(1, 1, "a", 1) };
        let ledger = Ledger::of([declined]);
        assert!(ledger.of_client(&"apps".into(), Mac([2, 0, 0, 0, 0, 1])).is_none());
    }
}
