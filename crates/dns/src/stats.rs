use std::sync::atomic::{AtomicU64, Ordering};

use crate::forward::Origin;
use crate::query::{DropReason, Malformed};
use crate::reply::Rcode;

/// What happened to queries. Counters only grow; every data thread may have its own and the reader adds them up.
#[derive(Debug, Default)]
pub struct DnsStats {
    queries: [AtomicU64; 3],
    answers: [AtomicU64; Rcode::ALL.len()],
    malformed: [AtomicU64; Malformed::ALL.len()],
    drops: [AtomicU64; DropReason::ALL.len()],
    blocked: AtomicU64,
    forwarded: AtomicU64,
    delegated: AtomicU64,
    cache_hits: AtomicU64,
    upstream_failures: AtomicU64,
    overloaded: AtomicU64,
    slipped: AtomicU64,
    tcp_connections: AtomicU64,
    tcp_refused: AtomicU64,
    socket_errors: AtomicU64,
}

/// How a query came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// A datagram.
    Udp = 0,
    /// A TCP connection.
    Tcp = 1,
    /// A call inside the process.
    Process = 2,
}

/// The counters at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DnsSnapshot {
    /// Messages over UDP.
    pub udp_queries: u64,
    /// Messages over TCP.
    pub tcp_queries: u64,
    /// Questions from inside the process.
    pub process_queries: u64,
    /// Replies by response code.
    pub answers: Vec<(&'static str, u64)>,
    /// Messages answered FORMERR, by what was wrong with them.
    pub malformed: Vec<(&'static str, u64)>,
    /// Messages not answered, by reason.
    pub drops: Vec<(&'static str, u64)>,
    /// Questions about names that are blocked.
    pub blocked: u64,
    /// Questions about names of others.
    pub forwarded: u64,
    /// Questions about names of ours that are delegated to other servers.
    pub delegated: u64,
    /// Of those about names of others, the ones answered from the cache.
    pub cache_hits: u64,
    /// Of those about names of others, the ones that no upstream answered.
    pub upstream_failures: u64,
    /// Questions answered SERVFAIL because too many others were under way.
    pub overloaded: u64,
    /// Responses on the WAN that were sent truncated, because its network is sent too many of their kind.
    pub slipped: u64,
    /// Connections accepted.
    pub tcp_connections: u64,
    /// Connections closed at once because there were too many.
    pub tcp_refused: u64,
    /// Errors of receiving or accepting.
    pub socket_errors: u64,
}

impl DnsStats {
    /// The counters now.
    pub fn snapshot(&self) -> DnsSnapshot {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        DnsSnapshot {
            udp_queries: get(&self.queries[Over::Udp as usize]),
            tcp_queries: get(&self.queries[Over::Tcp as usize]),
            process_queries: get(&self.queries[Over::Process as usize]),
            answers: named(&Rcode::ALL.map(Rcode::as_str), &self.answers),
            malformed: named(&Malformed::ALL.map(Malformed::as_str), &self.malformed),
            drops: named(&DropReason::ALL.map(DropReason::as_str), &self.drops),
            blocked: get(&self.blocked),
            forwarded: get(&self.forwarded),
            delegated: get(&self.delegated),
            cache_hits: get(&self.cache_hits),
            upstream_failures: get(&self.upstream_failures),
            overloaded: get(&self.overloaded),
            slipped: get(&self.slipped),
            tcp_connections: get(&self.tcp_connections),
            tcp_refused: get(&self.tcp_refused),
            socket_errors: get(&self.socket_errors),
        }
    }

    pub(crate) fn query(&self, over: Over) {
        add(&self.queries[over as usize]);
    }

    pub(crate) fn answer(&self, rcode: Rcode) {
        // The discriminants are the codes of the wire, which are not dense.
        add(&self.answers[Rcode::ALL.iter().position(|&known| known == rcode).unwrap_or(0)]);
    }

    pub(crate) fn malformed(&self, reason: Malformed) {
        add(&self.malformed[reason as usize]);
        self.answer(Rcode::FormErr);
    }

    pub(crate) fn dropped(&self, reason: DropReason) {
        add(&self.drops[reason as usize]);
    }

    pub(crate) fn forwarded(&self, origin: Origin) {
        add(&self.forwarded);
        match origin {
            Origin::Cache => add(&self.cache_hits),
            Origin::Failure => add(&self.upstream_failures),
            Origin::Upstream | Origin::Nobody => {}
        }
    }

    pub(crate) fn blocked(&self) {
        add(&self.blocked);
    }

    pub(crate) fn delegated(&self) {
        add(&self.delegated);
    }

    pub(crate) fn overloaded(&self) {
        add(&self.overloaded);
    }

    pub(crate) fn slipped(&self) {
        add(&self.slipped);
    }

    pub(crate) fn tcp_connection(&self) {
        add(&self.tcp_connections);
    }

    pub(crate) fn tcp_refused(&self) {
        add(&self.tcp_refused);
    }

    pub(crate) fn socket_error(&self) {
        add(&self.socket_errors);
    }
}

impl DnsSnapshot {
    /// Adds the counters of another thread.
    pub fn merge(&mut self, other: &DnsSnapshot) {
        self.udp_queries += other.udp_queries;
        self.tcp_queries += other.tcp_queries;
        self.process_queries += other.process_queries;
        self.blocked += other.blocked;
        self.forwarded += other.forwarded;
        self.delegated += other.delegated;
        self.cache_hits += other.cache_hits;
        self.upstream_failures += other.upstream_failures;
        self.overloaded += other.overloaded;
        self.slipped += other.slipped;
        self.tcp_connections += other.tcp_connections;
        self.tcp_refused += other.tcp_refused;
        self.socket_errors += other.socket_errors;
        for (mine, theirs) in [
            (&mut self.answers, &other.answers),
            (&mut self.malformed, &other.malformed),
            (&mut self.drops, &other.drops),
        ] {
            if mine.is_empty() {
                mine.clone_from(theirs);
            } else {
                mine.iter_mut().zip(theirs).for_each(|(mine, theirs)| mine.1 += theirs.1);
            }
        }
    }

    /// How many replies had this code.
    pub fn answered(&self, rcode: Rcode) -> u64 {
        self.answers.iter().find(|(name, _)| *name == rcode.as_str()).map_or(0, |(_, count)| *count)
    }
}

fn add(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

fn named(names: &[&'static str], counters: &[AtomicU64]) -> Vec<(&'static str, u64)> {
    names.iter().zip(counters).map(|(name, counter)| (*name, counter.load(Ordering::Relaxed))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_counter_has_its_own_name_and_place() {
        let stats = DnsStats::default();
        for reason in Malformed::ALL {
            stats.malformed(reason);
        }
        for reason in DropReason::ALL {
            stats.dropped(reason);
        }
        for rcode in Rcode::ALL.into_iter().filter(|&rcode| rcode != Rcode::FormErr) {
            stats.answer(rcode);
        }
        let mut snapshot = stats.snapshot();
        assert!(
            snapshot.malformed.iter().chain(&snapshot.drops).all(|(_, count)| *count == 1),
            "{snapshot:?}"
        );
        assert_eq!(snapshot.answered(Rcode::FormErr), Malformed::ALL.len() as u64);
        assert_eq!(snapshot.answered(Rcode::BadVers), 1);
        let other = snapshot.clone();
        snapshot.merge(&other);
        assert_eq!(snapshot.answered(Rcode::Refused), 2);
        let mut total = DnsSnapshot::default();
        total.merge(&other);
        assert_eq!(total, other);
    }
}
