use std::cell::{Cell, RefCell};
use std::rc::Rc;

/// Octets of a buffer for a request's head, which is held until the answer has left. Most heads fit.
pub const HEAD: usize = 4 * 1024;
/// Octets of an ordinary buffer: a small answer with its head fits.
pub const SMALL: usize = 16 * 1024;
/// Octets of a buffer for a body that keeps coming. A quarter MiB in one system call costs half of what
/// sixteen times 16 KiB do.
pub const LARGE: usize = 256 * 1024;
/// Octets of room for a head that is written, at first and when it is kept.
const WORDS: usize = 2 * 1024;
const MOST_WORDS: usize = 32 * 1024;
/// Unused buffers that a thread keeps. A request under way holds one for its head, and one for what is written; one
/// for what is read only while something is there.
const MOST_HEADS: usize = 2048;
const MOST_SMALL: usize = 256;
const MOST_LARGE: usize = 32;
/// Large buffers in use at once; beyond that, bodies move in small pieces, so that ten thousand slow readers
/// cannot hold gigabytes.
const MOST_LARGE_IN_USE: usize = 256;

/// Octets that were read and not used yet. Its memory goes back to the thread's store when it is dropped.
#[derive(Debug)]
pub struct Buffer {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
    store: Option<Rc<Buffers>>,
}

/// The unused buffers of a thread. A connection holds one only while something is on the way, so that idle
/// connections cost little.
#[derive(Debug, Default)]
pub struct Buffers {
    heads: RefCell<Vec<Vec<u8>>>,
    small: RefCell<Vec<Vec<u8>>>,
    large: RefCell<Vec<Vec<u8>>>,
    large_in_use: Cell<usize>,
    words: RefCell<Vec<Vec<u8>>>,
}

impl Buffer {
    /// An empty buffer of that size.
    pub fn new(size: usize) -> Buffer {
        Buffer { bytes: vec![0; size], start: 0, end: 0, store: None }
    }

    /// What is in it.
    pub fn data(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Octets it can hold.
    pub fn size(&self) -> usize {
        self.bytes.len()
    }

    /// Passes over octets that were used.
    pub fn consume(&mut self, octets: usize) {
        self.start = self.start.saturating_add(octets).min(self.end);
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
        }
    }

    /// Room for more; what is there moves to the front when there is none behind it. Empty when it is full.
    pub fn space(&mut self) -> &mut [u8] {
        if self.end == self.bytes.len() && self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        &mut self.bytes[self.end..]
    }

    /// Tells that the first octets of the space were filled.
    pub fn filled(&mut self, octets: usize) {
        self.end = (self.end + octets).min(self.bytes.len());
    }

    /// Puts octets behind what is there, as many as fit. Returns how many.
    pub fn append(&mut self, octets: &[u8]) -> usize {
        let space = self.space();
        let taken = octets.len().min(space.len());
        space[..taken].copy_from_slice(&octets[..taken]);
        self.filled(taken);
        taken
    }

    /// Makes it hold `size` octets, at least.
    pub fn grow(&mut self, size: usize) {
        if size > self.bytes.len() {
            let mut larger = Buffer::new(size);
            larger.append(self.data());
            *self = larger;
        }
    }

    /// Removes what is behind the first `octets` and gives it.
    pub fn split_off(&mut self, octets: usize) -> &[u8] {
        let (from, to) = ((self.start + octets).min(self.end), self.end);
        self.end = from;
        &self.bytes[from..to]
    }
}

impl Buffers {
    /// An empty buffer of 4 KiB.
    pub fn head(self: &Rc<Buffers>) -> Buffer {
        self.take(&self.heads, HEAD)
    }

    /// An empty buffer of 16 KiB.
    pub fn small(self: &Rc<Buffers>) -> Buffer {
        self.take(&self.small, SMALL)
    }

    /// Makes room in a full buffer, in steps of 16 KiB up to `most` octets.
    pub fn grow(self: &Rc<Buffers>, buffer: &mut Buffer, most: usize) {
        if buffer.size() < SMALL {
            let mut small = self.small();
            small.append(buffer.data());
            *buffer = small;
        } else {
            buffer.grow((buffer.size() + SMALL).min(most));
        }
    }

    /// Room for a head that is written.
    pub fn words(&self) -> Vec<u8> {
        self.words.borrow_mut().pop().unwrap_or_else(|| Vec::with_capacity(WORDS))
    }

    /// Takes such room back.
    pub fn put_words(&self, mut words: Vec<u8>) {
        let mut kept = self.words.borrow_mut();
        if (WORDS..=MOST_WORDS).contains(&words.capacity()) && kept.len() < MOST_HEADS {
            words.clear();
            kept.push(words);
        }
    }

    /// Makes a buffer large; it stays as it is when too many are in use.
    pub fn enlarge(self: &Rc<Buffers>, buffer: &mut Buffer) {
        if buffer.size() >= LARGE || self.large_in_use.get() >= MOST_LARGE_IN_USE {
            return;
        }
        self.large_in_use.set(self.large_in_use.get() + 1);
        let mut large = self.take(&self.large, LARGE);
        large.append(buffer.data());
        *buffer = large;
    }

    fn take(self: &Rc<Buffers>, unused: &RefCell<Vec<Vec<u8>>>, size: usize) -> Buffer {
        let bytes = unused.borrow_mut().pop().unwrap_or_else(|| vec![0; size]);
        Buffer { bytes, start: 0, end: 0, store: Some(self.clone()) }
    }

    fn take_back(&self, bytes: Vec<u8>) {
        let (store, most) = match bytes.len() {
            HEAD => (&self.heads, MOST_HEADS),
            SMALL => (&self.small, MOST_SMALL),
            LARGE => {
                self.large_in_use.set(self.large_in_use.get().saturating_sub(1));
                (&self.large, MOST_LARGE)
            }
            _ => return,
        };
        let mut store = store.borrow_mut();
        if store.len() < most {
            store.push(bytes);
        }
    }

    /// Lets go of what was needed in busier times.
    pub fn trim(&self) {
        self.large.borrow_mut().clear();
        for kept in [&self.heads, &self.small, &self.words] {
            let mut kept = kept.borrow_mut();
            let half = kept.len() / 2;
            kept.truncate(half);
            kept.shrink_to_fit();
        }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(store) = self.store.take() {
            store.take_back(std::mem::take(&mut self.bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_used_stays_and_makes_room() {
        let mut buffer = Buffer::new(4);
        assert_eq!(buffer.append(b"abcdef"), 4);
        assert!(buffer.space().is_empty());
        buffer.consume(3);
        assert_eq!(buffer.append(b"xyz"), 3);
        assert_eq!(buffer.data(), b"dxyz");
        assert_eq!(buffer.split_off(1), b"xyz");
        assert_eq!(buffer.data(), b"d");
        buffer.consume(9);
        assert!(buffer.is_empty());
        assert_eq!(buffer.space().len(), 4);
    }

    #[test]
    fn a_full_buffer_grows_in_steps_to_its_limit() {
        let buffers = Rc::new(Buffers::default());
        let mut buffer = buffers.head();
        buffer.append(&[b'x'; HEAD]);
        let sizes = [0; 4].map(|_| {
            buffers.grow(&mut buffer, 2 * SMALL + 1);
            buffer.size()
        });
        assert_eq!(sizes, [SMALL, 2 * SMALL, 2 * SMALL + 1, 2 * SMALL + 1]);
        assert_eq!(buffer.data(), [b'x'; HEAD]);
    }

    #[test]
    fn large_buffers_are_few() {
        let buffers = Rc::new(Buffers::default());
        let take = || {
            let mut buffer = buffers.small();
            buffer.append(b"kept");
            buffers.enlarge(&mut buffer);
            buffer
        };
        let mut held: Vec<Buffer> = (0..MOST_LARGE_IN_USE + 1).map(|_| take()).collect();
        assert_eq!(held.pop().unwrap().size(), SMALL);
        assert!(held.iter().all(|buffer| buffer.size() == LARGE && buffer.data() == b"kept"));
        drop(held.pop());
        assert_eq!(take().size(), LARGE);
    }
}
