//! Which addresses of the WAN app names are answered at: they come and go with the link and the configuration.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use proximity_table::World;
use tokio::sync::watch;

use crate::log;
use crate::upgrade::sockets::Kept;

/// What is served on the WAN.
#[derive(Default)]
pub struct WanDns {
    served: Mutex<Served>,
}

#[derive(Default)]
struct Served {
    at: BTreeMap<Ipv4Addr, Serving>,
    /// Where it could not be, so that each trouble is told once.
    failed: BTreeSet<Ipv4Addr>,
}

/// What answers at one address.
pub struct Serving {
    /// Ends it by `true`.
    pub stop: watch::Sender<bool>,
    /// Its sockets, for another process.
    pub kept: Kept,
}

/// The addresses that the world wants app names answered at on the WAN: none unless it is switched on, and never one
/// of an app network.
pub fn wanted(world: &World) -> BTreeSet<Ipv4Addr> {
    let intent = world.facts.intent();
    let is_gateway = |ip: &Ipv4Addr| intent.networks.iter().any(|net| net.address.addr == *ip);
    let addresses = world.facts.wan().addresses.iter().map(|net| net.addr);
    addresses.filter(|ip| intent.wan_dns && !is_gateway(ip)).collect()
}

impl WanDns {
    /// Serves at these addresses, and no longer at others.
    pub fn follow<E: std::fmt::Display>(
        &self,
        wanted: &BTreeSet<Ipv4Addr>,
        mut open: impl FnMut(Ipv4Addr) -> Result<Serving, E>,
    ) {
        let mut served = self.served();
        served.at.retain(|ip, serving| {
            let stays = wanted.contains(ip);
            if !stays {
                serving.stop.send_replace(true);
                log!(Info, "dns", "app names are no longer answered on the WAN", address = ip);
            }
            stays
        });
        served.failed.retain(|ip| wanted.contains(ip));
        for ip in wanted {
            if served.at.contains_key(ip) {
                continue;
            }
            match open(*ip) {
                Ok(serving) => {
                    log!(Info, "dns", "app names are answered on the WAN", address = ip);
                    served.failed.remove(ip);
                    served.at.insert(*ip, serving);
                }
                // It is tried again with the next world.
                Err(error) if served.failed.insert(*ip) => {
                    log!(Error, "dns", "app names are not answered on the WAN", reason = error);
                }
                Err(_) => {}
            }
        }
    }

    /// Where it is served.
    pub fn addresses(&self) -> Vec<Ipv4Addr> {
        self.served().at.keys().copied().collect()
    }

    /// The sockets, for another process. They may be taken while they are served.
    pub fn kept(&self) -> std::io::Result<Kept> {
        let served = self.served();
        let all = served.at.values().flat_map(|serving| &serving.kept);
        all.map(|(label, socket)| Ok((label.clone(), socket.try_clone()?))).collect()
    }

    /// Takes nothing any more.
    pub fn stop(&self) {
        for (_, serving) in std::mem::take(&mut self.served().at) {
            serving.stop.send_replace(true);
        }
    }

    fn served(&self) -> MutexGuard<'_, Served> {
        self.served.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use proximity_config::Config;
    use proximity_table::{Facts, Generation, Ledger, Wan};

    use super::*;

    fn ip(text: &str) -> Ipv4Addr {
        text.parse().unwrap()
    }

    fn world(config: &str, addresses: &[&str]) -> World {
        let mut facts = Facts::new(Config::parse(config).unwrap().intent, Ledger::default());
        let addresses = addresses.iter().map(|net| net.parse().unwrap()).collect();
        let wan = Wan { addresses, gateway: None, running: true };
        facts.apply(proximity_table::Change::Wan(wan), &mut Default::default());
        World::derive(facts, Generation(1))
    }

    #[test]
    fn nothing_is_wanted_unless_it_is_switched_on() {
        let on = "[wan]\ndns = \"authoritative\"\n";
        assert!(wanted(&world("", &["192.168.1.2/24"])).is_empty());
        assert_eq!(wanted(&world(on, &["192.168.1.2/24"])), [ip("192.168.1.2")].into());
        assert!(wanted(&world(on, &["10.20.0.1/24"])).is_empty(), "an app network's own address");
        assert!(wanted(&world(on, &[])).is_empty());
    }

    #[test]
    fn it_follows_the_addresses_and_tries_again() {
        let wan = WanDns::default();
        let mut opened = Vec::new();
        let mut follow = |wanted: &[&str], works: bool| {
            let mut receivers = Vec::new();
            let wanted = wanted.iter().map(|text| ip(text)).collect();
            wan.follow(&wanted, |ip| {
                opened.push((ip, works));
                let (stop, told) = watch::channel(false);
                receivers.push(told);
                if works { Ok(Serving { stop, kept: Vec::new() }) } else { Err("taken") }
            });
            receivers
        };
        assert!(follow(&["192.168.1.2"], false).len() == 1);
        let first = follow(&["192.168.1.2"], true);
        assert!(follow(&["192.168.1.2"], true).is_empty(), "it is served already");
        assert!(!*first[0].borrow());
        let second = follow(&["192.168.1.9"], true);
        assert!(*first[0].borrow() && !*second[0].borrow());
        assert_eq!(wan.addresses(), [ip("192.168.1.9")]);
        wan.stop();
        assert!(*second[0].borrow() && wan.addresses().is_empty());
        assert_eq!(opened.len(), 3);
    }
}
