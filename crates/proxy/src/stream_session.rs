use std::collections::HashMap;
use std::hash::Hash;

use slab::Slab;

/// An end of the list that has nothing behind it.
const NONE: usize = usize::MAX;

/// What is remembered of UDP clients, ordered by when each was last heard of. As all may be silent for the same
/// time, the one that expires next is the first; and it is the one that goes when there is no room.
///
/// Times are milliseconds of one clock that never goes back. How many there may be is the caller's to bound.
#[derive(Debug)]
pub struct SessionTable<K, V> {
    of: HashMap<K, usize>,
    entries: Slab<Entry<K, V>>,
    oldest: usize,
    newest: usize,
}

#[derive(Debug)]
struct Entry<K, V> {
    key: K,
    value: V,
    used_ms: u64,
    older: usize,
    newer: usize,
}

impl<K: Clone + Eq + Hash, V> SessionTable<K, V> {
    /// How many clients are remembered.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// What is remembered of a client that is heard of now.
    pub fn touch(&mut self, key: &K, now_ms: u64) -> Option<&mut V> {
        let at = *self.of.get(key)?;
        if self.newest != at {
            self.unlink(at);
            self.link_newest(at);
        }
        let entry = &mut self.entries[at];
        entry.used_ms = now_ms;
        Some(&mut entry.value)
    }

    /// Remembers a client that is heard of now. Returns what was remembered of it before.
    pub fn insert(&mut self, key: K, value: V, now_ms: u64) -> Option<V> {
        let before = self.remove(&key);
        let entry = Entry { key: key.clone(), value, used_ms: now_ms, older: NONE, newer: NONE };
        let at = self.entries.insert(entry);
        self.of.insert(key, at);
        self.link_newest(at);
        before
    }

    /// Forgets a client.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        let at = self.of.remove(key)?;
        self.unlink(at);
        Some(self.entries.remove(at).value)
    }

    /// Forgets the client that was not heard of for the longest time.
    pub fn remove_oldest(&mut self) -> Option<V> {
        let key = self.entries.get(self.oldest)?.key.clone();
        self.remove(&key)
    }

    /// Forgets one that was not heard of for longer than `idle_ms`; to be called until there is none.
    pub fn expire(&mut self, now_ms: u64, idle_ms: u64) -> Option<V> {
        let silent = now_ms.saturating_sub(self.entries.get(self.oldest)?.used_ms);
        if silent > idle_ms { self.remove_oldest() } else { None }
    }

    /// Forgets those of whom it holds. Returns what was remembered of them.
    pub fn remove_where(&mut self, holds: impl Fn(&V) -> bool) -> Vec<V> {
        let found = self.entries.iter().filter(|(_, entry)| holds(&entry.value));
        let keys: Vec<K> = found.map(|(_, entry)| entry.key.clone()).collect();
        keys.iter().filter_map(|key| self.remove(key)).collect()
    }

    fn unlink(&mut self, at: usize) {
        let (older, newer) = (self.entries[at].older, self.entries[at].newer);
        match self.entries.get_mut(older) {
            Some(entry) => entry.newer = newer,
            None => self.oldest = newer,
        }
        match self.entries.get_mut(newer) {
            Some(entry) => entry.older = older,
            None => self.newest = older,
        }
    }

    fn link_newest(&mut self, at: usize) {
        let older = std::mem::replace(&mut self.newest, at);
        match self.entries.get_mut(older) {
            Some(entry) => entry.newer = at,
            None => self.oldest = at,
        }
        let entry = &mut self.entries[at];
        (entry.older, entry.newer) = (older, NONE);
    }
}

impl<K, V> Default for SessionTable<K, V> {
    fn default() -> SessionTable<K, V> {
        SessionTable { of: HashMap::new(), entries: Slab::new(), oldest: NONE, newest: NONE }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_silent_longest_goes_first() {
        let mut table = SessionTable::default();
        for (at, client) in ["a", "b", "c"].into_iter().enumerate() {
            assert_eq!(table.insert(client, client, at as u64), None);
        }
        assert_eq!(table.touch(&"a", 10), Some(&mut "a"));
        assert_eq!(table.touch(&"x", 10), None);
        assert_eq!(table.remove_oldest(), Some("b"));
        assert_eq!(table.insert("c", "again", 11), Some("c"));
        assert_eq!((table.remove_oldest(), table.remove_oldest()), (Some("a"), Some("again")));
        assert_eq!((table.remove_oldest(), table.is_empty()), (None, true));
        table.insert("d", "d", 12);
        assert_eq!(table.len(), 1);
    }

    #[test]
    fn a_client_is_remembered_as_long_as_it_may_be_silent() {
        let mut table = SessionTable::default();
        table.insert(1, "one", 0);
        table.insert(2, "two", 500);
        assert_eq!(table.expire(1000, 1000), None);
        assert_eq!(table.expire(1001, 1000), Some("one"));
        assert_eq!(table.expire(1001, 1000), None);
        table.touch(&2, 1400);
        assert_eq!(table.expire(2400, 1000), None);
        assert_eq!(table.expire(2401, 1000), Some("two"));
    }

    #[test]
    fn those_of_a_target_that_left_are_forgotten() {
        let mut table = SessionTable::default();
        for client in 0..10 {
            table.insert(client, client % 3, 0);
        }
        assert_eq!(table.remove_where(|target| *target == 1), [1, 1, 1]);
        assert_eq!(table.remove_where(|target| *target == 1), [0; 0]);
        assert_eq!(table.len(), 7);
    }

    /// Against a list in which everything is searched for.
    #[test]
    fn any_history_gives_what_a_plain_list_gives() {
        for seed in 1..=20u64 {
            let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let mut below = |limit: u64| {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                random % limit
            };
            let mut table = SessionTable::default();
            let mut list: Vec<(u64, u64, u64)> = Vec::new();
            for now in 0..400 {
                let key = below(12);
                let at = list.iter().position(|(there, ..)| *there == key);
                match below(6) {
                    0 => {
                        let before = at.map(|at| list.remove(at).1);
                        list.push((key, now, now));
                        assert_eq!(table.insert(key, now, now), before);
                    }
                    1 => assert_eq!(table.remove(&key), at.map(|at| list.remove(at).1)),
                    2 => {
                        let first = (!list.is_empty()).then(|| list.remove(0).1);
                        assert_eq!(table.remove_oldest(), first);
                    }
                    3 => {
                        let due = list.first().filter(|(.., used)| now - used > 20).is_some();
                        let expired = due.then(|| list.remove(0).1);
                        assert_eq!(table.expire(now, 20), expired);
                    }
                    _ => {
                        let found = at.map(|at| {
                            let (key, value, _) = list.remove(at);
                            list.push((key, value, now));
                            value
                        });
                        assert_eq!(table.touch(&key, now).copied(), found);
                    }
                }
                assert_eq!(table.len(), list.len());
            }
        }
    }
}
