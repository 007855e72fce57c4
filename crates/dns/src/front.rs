use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use crate::kept::Kept;

/// Answers at hand in one thread; a power of two.
const SLOTS: usize = 4096;
/// Longer ones are fetched from the common cache each time.
const LONGEST: usize = 1500;

/// Answers that one data thread has at hand, to be found without any lock.
///
/// Every key has one place: of two that share it the one asked for last stays.
pub(crate) struct Front {
    hasher: RandomState,
    /// Empty until something is kept.
    slots: Box<[Option<Arc<Kept>>]>,
    generation: u64,
}

impl Front {
    pub fn new() -> Front {
        Front { hasher: RandomState::new(), slots: Box::default(), generation: 0 }
    }

    /// Where an answer of this generation of the common cache is, for [`Front::at`].
    pub fn find(&mut self, key: &[u8], generation: u64) -> Option<usize> {
        if self.generation != generation {
            self.slots.fill(None);
            self.generation = generation;
        }
        let place = self.place(key);
        let kept = self.slots.get(place)?.as_ref()?;
        (*kept.key == *key && !kept.is_being_replaced()).then_some(place)
    }

    /// The answer at a place.
    pub fn at(&self, place: usize) -> Option<&Kept> {
        self.slots.get(place)?.as_deref()
    }

    /// Has an answer at hand from now on.
    pub fn keep(&mut self, kept: &Arc<Kept>, generation: u64) {
        if kept.size() > LONGEST || self.generation != generation {
            return;
        }
        if self.slots.is_empty() {
            self.slots = (0..SLOTS).map(|_| None).collect();
        }
        let place = self.place(&kept.key);
        self.slots[place] = Some(kept.clone());
    }

    fn place(&self, key: &[u8]) -> usize {
        self.hasher.hash_one(key) as usize % SLOTS
    }
}
