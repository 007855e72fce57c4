use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use thiserror::Error;

use crate::Reason;
use crate::client_key::ClientKey;

/// Parts of the table, each with a lock of its own, so that data threads seldom meet.
const SHARDS: usize = 16;

/// How many connections each client has. A client is there only as long as it has one: the table is as large
/// as the connections that the data threads take.
#[derive(Debug)]
pub struct ClientConnections {
    hasher: RandomState,
    shards: [Mutex<HashMap<Key, u32>>; SHARDS],
}

/// A counted connection, until dropped.
#[derive(Debug)]
pub struct ClientSlot {
    of: Arc<ClientConnections>,
    key: Key,
}

/// The client has as many connections as it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the client has as many connections as `client_connections` allows")]
pub struct TooManyConnections;

type Key = (u64, ClientKey);

impl ClientConnections {
    /// An empty table; `hasher` is its randomness.
    pub fn new(hasher: RandomState) -> ClientConnections {
        ClientConnections { hasher, shards: Default::default() }
    }

    /// Counts a connection of a client that has fewer than `limit`; with a `limit` of 0 nothing is counted.
    /// `scope` tells the counts of different vhosts apart.
    pub fn enter(
        self: &Arc<ClientConnections>,
        scope: u64,
        client: IpAddr,
        limit: u32,
    ) -> Result<Option<ClientSlot>, TooManyConnections> {
        if limit == 0 {
            return Ok(None);
        }
        let key = (scope, ClientKey::from(client));
        let mut shard = self.shard(&key);
        let count = shard.get(&key).copied().unwrap_or(0);
        if count >= limit {
            return Err(TooManyConnections);
        }
        shard.insert(key, count + 1);
        drop(shard);
        Ok(Some(ClientSlot { of: self.clone(), key }))
    }

    fn shard(&self, key: &Key) -> MutexGuard<'_, HashMap<Key, u32>> {
        let at = self.hasher.hash_one(key) as usize % SHARDS;
        self.shards[at].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for ClientSlot {
    fn drop(&mut self) {
        if let Entry::Occupied(mut count) = self.of.shard(&self.key).entry(self.key) {
            match count.get().checked_sub(1) {
                None | Some(0) => drop(count.remove()),
                Some(left) => *count.get_mut() = left,
            }
        }
    }
}

impl From<TooManyConnections> for Reason {
    fn from(_: TooManyConnections) -> Reason {
        Reason::ClientConnections
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn clients(table: &ClientConnections) -> usize {
        table.shards.iter().map(|shard| shard.lock().unwrap().len()).sum()
    }

    #[test]
    fn connections_are_counted_while_they_are_held() {
        let table = Arc::new(ClientConnections::new(RandomState::new()));
        let enter = |scope, client| table.enter(scope, ip(client), 2);
        let first = enter(0, "2001:db8::1").unwrap();
        let second = enter(0, "2001:db8::2").unwrap();
        assert_eq!(enter(0, "2001:db8::3").unwrap_err(), TooManyConnections);
        let others = [enter(0, "2001:db8:0:1::1").unwrap(), enter(1, "2001:db8::1").unwrap()];
        assert_eq!(clients(&table), 3);
        drop(first);
        let third = enter(0, "2001:db8::3").unwrap();
        assert_eq!(enter(0, "2001:db8::1").unwrap_err(), TooManyConnections);
        drop((second, third, others));
        assert_eq!(clients(&table), 0);
    }

    #[test]
    fn without_a_limit_nothing_is_counted() {
        let table = Arc::new(ClientConnections::new(RandomState::new()));
        assert!((0..100).all(|_| table.enter(0, ip("192.0.2.1"), 0).unwrap().is_none()));
        assert_eq!(clients(&table), 0);
    }

    #[test]
    fn threads_count_together() {
        let table = Arc::new(ClientConnections::new(RandomState::new()));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..1000 {
                        let held: Vec<_> = (0..3).map(|_| table.enter(0, ip("192.0.2.1"), 5)).collect();
                        assert!(table.shard(&(0, ip("192.0.2.1").into())).values().all(|&count| count <= 5));
                        drop(held);
                    }
                });
            }
        });
        assert_eq!(clients(&table), 0);
    }
}
