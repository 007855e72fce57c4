//! A set of millions of names, to be asked of every name of others.

use std::hash::{BuildHasher, RandomState};
use std::mem::size_of;
use std::ops::ControlFlow;

/// Beside the hash: whether the names below are meant too.
const BELOW: u64 = 1;
/// Most labels of a name (RFC 1035 §2.3.4: 255 octets, of which the root has one and every other label two).
const MOST_LABELS: usize = 127;

/// What names are hashed with. Sets that are asked together share one.
#[derive(Clone, Copy, Debug)]
pub struct HashKey([u64; 2]);

/// A set of names that never changes, at about 12 octets for each.
///
/// It holds 63 bits of a keyed hash instead of a name. A name that is not in a set of `n` is taken for one that is
/// by a chance of its labels × `n` / 2^63: once in a trillion names at a million entries. The key is drawn anew in
/// every process, so that nobody can choose a name that is taken for another everywhere.
#[derive(Clone, Debug, Default)]
pub struct NameSet {
    /// Each entry stands at its [`place`] or as soon behind it as there is room, all of them in ascending order;
    /// 0 is an empty place.
    slots: Box<[u64]>,
    /// How many places [`place`] knows; there are some more for what is pushed beyond the last.
    places: usize,
    names: usize,
}

/// Collects the names of a [`NameSet`].
#[derive(Debug)]
pub struct NameSetBuilder {
    key: HashKey,
    entries: Vec<u64>,
}

impl HashKey {
    /// A key of this entropy.
    pub fn new(entropy: [u64; 2]) -> HashKey {
        HashKey(entropy)
    }

    /// A key that nobody knows.
    pub fn random() -> HashKey {
        let random = RandomState::new();
        HashKey([random.hash_one(0), random.hash_one(1)])
    }

    /// Goes over a lower-case wire name and all names above it, without the root, the shortest first. `each` is told
    /// where in `name` it starts, and its hash.
    pub(crate) fn suffixes<T>(
        self,
        name: &[u8],
        mut each: impl FnMut(usize, u64) -> ControlFlow<T>,
    ) -> Option<T> {
        let mut starts = [0u8; MOST_LABELS];
        let (mut count, mut at) = (0, 0);
        while let Some(&length) = name.get(at)
            && length != 0
        {
            *starts.get_mut(count)? = at as u8;
            count += 1;
            at += 1 + usize::from(length);
        }
        let mut state = self.0[0];
        let mut end = at;
        for &start in starts[..count].iter().rev() {
            let start = usize::from(start);
            state = self.mix(state, name.get(start..end)?);
            if let ControlFlow::Break(found) = each(start, state) {
                return Some(found);
            }
            end = start;
        }
        None
    }

    /// Takes a label with its length octet into a hash.
    fn mix(self, mut state: u64, label: &[u8]) -> u64 {
        for chunk in label.chunks(16) {
            let mut words = [0; 16];
            words[..chunk.len()].copy_from_slice(chunk);
            let (low, high) = words.split_at(8);
            let word = |half: &[u8]| half.iter().rev().fold(0, |word, &octet| word << 8 | u64::from(octet));
            let product = u128::from(word(low) ^ self.0[1]) * u128::from(word(high) ^ state);
            state = product as u64 ^ (product >> 64) as u64;
        }
        state
    }
}

impl NameSet {
    /// How many names there are.
    pub fn len(&self) -> usize {
        self.names
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.names == 0
    }

    /// Octets of memory.
    pub fn size(&self) -> usize {
        size_of::<NameSet>() + self.slots.len() * size_of::<u64>()
    }

    /// Whether a lower-case wire name is in the set, or below a name that stands for all below it. The key is the one
    /// that the set was built with.
    pub fn contains(&self, key: HashKey, name: &[u8]) -> bool {
        let found = key.suffixes(name, |start, hash| match self.has(hash, start == 0) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        });
        found.is_some()
    }

    /// Whether the name of this hash is in the set: the name itself when it is the `whole` name asked about, else as
    /// one that stands for all below it.
    pub(crate) fn has(&self, hash: u64, whole: bool) -> bool {
        let wanted = entry(hash, false);
        for &slot in self.slots.get(place(wanted, self.places)..).unwrap_or_default() {
            let found = slot & !BELOW;
            if found == wanted {
                return whole || slot & BELOW != 0;
            }
            if found == 0 || found > wanted {
                return false;
            }
        }
        false
    }
}

impl NameSetBuilder {
    /// An empty set.
    pub fn new(key: HashKey) -> NameSetBuilder {
        NameSetBuilder { key, entries: Vec::new() }
    }

    /// Adds a lower-case wire name, and if `below` all names below it. The root cannot be added.
    pub fn add(&mut self, name: &[u8], below: bool) {
        let hash = self.key.suffixes(name, |start, hash| match start {
            0 => ControlFlow::Break(hash),
            _ => ControlFlow::Continue(()),
        });
        self.entries.extend(hash.map(|hash| entry(hash, below)));
    }

    /// How many were added, some perhaps twice.
    pub fn added(&self) -> usize {
        self.entries.len()
    }

    /// The set.
    pub fn build(mut self) -> NameSet {
        self.entries.sort_unstable();
        // Of two that differ in nothing else, the one that stands for more is the later.
        self.entries.dedup_by(|later, kept| {
            let is_same = *later & !BELOW == *kept & !BELOW;
            *kept |= if is_same { *later & BELOW } else { 0 };
            is_same
        });
        let names = self.entries.len();
        if names == 0 {
            return NameSet::default();
        }
        // A third stays empty, so that what is sought is found in the first line of memory that is looked at.
        let places = names + names / 2 + 1;
        let mut slots = vec![0; places];
        let mut free = 0;
        for found in self.entries {
            let at = free.max(place(found & !BELOW, places));
            match slots.get_mut(at) {
                Some(slot) => *slot = found,
                None => slots.push(found),
            }
            free = at + 1;
        }
        NameSet { slots: slots.into(), places, names }
    }
}

/// A hash as it stands in a slot; never 0.
fn entry(hash: u64, below: bool) -> u64 {
    (hash & !BELOW).max(2) | if below { BELOW } else { 0 }
}

/// Where an entry belongs among so many places: places ascend as entries do.
fn place(entry: u64, places: usize) -> usize {
    ((u128::from(entry) * places as u128) >> 64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use proximity_table::Name;

    const KEY: HashKey = HashKey([0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3211]);

    fn set(names: &[(&str, bool)]) -> NameSet {
        let mut builder = NameSetBuilder::new(KEY);
        for (name, below) in names {
            builder.add(name.parse::<Name>().unwrap().as_wire(), *below);
        }
        builder.build()
    }

    fn has(set: &NameSet, name: &str) -> bool {
        set.contains(KEY, name.parse::<Name>().unwrap().as_wire())
    }

    #[test]
    fn a_name_stands_for_itself_or_for_all_below_it() {
        let set = set(&[("exact.example", false), ("all.example", true), ("zip", true)]);
        for (name, is_in) in [
            ("exact.example", true),
            ("www.exact.example", false),
            ("all.example", true),
            ("a.b.all.example", true),
            ("xall.example", false),
            ("example", false),
            ("all.example.org", false),
            ("movie.zip", true),
        ] {
            assert_eq!(has(&set, name), is_in, "{name}");
        }
        assert!(!set.contains(KEY, b"\0"));
    }

    #[test]
    fn of_a_name_added_twice_the_wider_meaning_stays() {
        for twice in
            [[("a.example", false), ("a.example", true)], [("a.example", true), ("a.example", false)]]
        {
            let set = set(&twice);
            assert_eq!(set.len(), 1);
            assert!(has(&set, "below.a.example"));
        }
    }

    #[test]
    fn long_labels_differ_in_every_octet() {
        let label = |last: char| format!("{}{last}.example", "a".repeat(62));
        let set = set(&[(&label('x'), false)]);
        assert!(has(&set, &label('x')));
        assert!(!has(&set, &label('y')));
        // The longest name there is has 127 labels.
        let deep = [&b"\x01a".repeat(126)[..], b"\x01b\0"].concat();
        assert!(!set.contains(KEY, &deep));
    }

    #[test]
    fn nothing_is_in_an_empty_set() {
        let set = NameSetBuilder::new(KEY).build();
        assert!(set.is_empty() && !has(&set, "a.example"));
    }

    #[test]
    fn what_is_no_name_is_in_no_set() {
        let set = set(&[("a.example", true)]);
        for name in [&b""[..], b"\x05ab", b"\x3f", &[1; 300]] {
            assert!(!set.contains(KEY, name), "{name:?}");
        }
    }

    /// A million names: each is found, no other is, and they take little room.
    #[test]
    fn a_million_names_take_less_than_40_octets_each() {
        const NAMES: u32 = 1_000_000;
        fn write(name: &mut Vec<u8>, kind: &str, number: u32) {
            name.clear();
            let label = format!("{kind}{number}");
            name.push(label.len() as u8);
            name.extend(label.as_bytes());
            name.extend(b"\x07example\x03com\0");
        }
        let mut builder = NameSetBuilder::new(KEY);
        let mut name = Vec::new();
        for number in 0..NAMES {
            write(&mut name, "ads", number);
            builder.add(&name, number % 2 == 0);
        }
        let set = builder.build();
        assert_eq!(set.len(), NAMES as usize);
        assert!(set.size() <= 40 * NAMES as usize, "{}", set.size());
        assert!(set.size() <= 13 * NAMES as usize, "{}", set.size());
        for number in 0..NAMES {
            write(&mut name, "ads", number);
            assert!(set.contains(KEY, &name), "{number}");
            write(&mut name, "app", number);
            assert!(!set.contains(KEY, &name), "{number}");
        }
        // Full places stand close to where they are sought.
        let furthest = set.slots.iter().enumerate().filter(|(_, slot)| **slot != 0);
        let furthest = furthest.map(|(at, slot)| at - place(*slot & !BELOW, set.places)).max().unwrap();
        assert!(furthest < 64, "{furthest}");
    }
}
