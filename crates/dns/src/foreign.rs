//! A question about a name of others, and the key that its answer is kept under.

use std::fmt;
use std::ops::Deref;

use crate::query::Edns;

const CD: u16 = 0x0010;
const AD: u16 = 0x0020;
/// Longest name in wire form (RFC 1035 §2.3.4).
const MAX_NAME: usize = 255;
/// Octets of a key behind its name: type and flags.
const TAIL: usize = 3;

/// A question for an upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Foreign {
    /// The name.
    pub name: ForeignName,
    /// QTYPE; the class is IN.
    pub qtype: u16,
    /// The second word of the client's header.
    pub flags: u16,
    /// What the client said of itself by EDNS.
    pub edns: Option<Edns>,
    /// Longest reply that the client takes, in octets.
    pub limit: usize,
    /// Whether aliases of ours led here, so that it is not the name the client asked for.
    pub aliased: bool,
}

/// A name in lower-case wire form. It lies in place, so that a question answered from the cache costs no allocation.
#[derive(Clone)]
pub struct ForeignName {
    octets: [u8; MAX_NAME],
    length: u8,
}

/// What an answer is kept under: the name, the type, and whether the client wants signatures (DO) unchecked (CD).
pub(crate) struct Key {
    octets: [u8; MAX_NAME + TAIL],
    length: u16,
}

impl ForeignName {
    /// A copy; what is no name in wire form, because it is too long, becomes the root.
    pub fn of(name: &[u8]) -> ForeignName {
        let mut octets = [0; MAX_NAME];
        match octets.get_mut(..name.len()) {
            Some(place) if !name.is_empty() => place.copy_from_slice(name),
            _ => return ForeignName { octets, length: 1 },
        }
        ForeignName { octets, length: name.len() as u8 }
    }
}

impl Foreign {
    /// Whether the client wants DNSSEC records (RFC 3225).
    pub(crate) fn dnssec_ok(&self) -> bool {
        self.edns.is_some_and(|edns| edns.dnssec_ok)
    }

    /// Whether the client understands the AD bit (RFC 6840 §5.7).
    pub(crate) fn wants_authentic(&self) -> bool {
        self.flags & AD != 0 || self.dnssec_ok()
    }

    pub(crate) fn key(&self) -> Key {
        let flags = u8::from(self.dnssec_ok()) | u8::from(self.flags & CD != 0) << 1;
        Key::new(&self.name, self.qtype, flags)
    }
}

impl Key {
    fn new(name: &[u8], qtype: u16, flags: u8) -> Key {
        let mut octets = [0; MAX_NAME + TAIL];
        let end = name.len().min(MAX_NAME);
        octets[..end].copy_from_slice(&name[..end]);
        let [high, low] = qtype.to_be_bytes();
        octets[end..end + TAIL].copy_from_slice(&[high, low, flags]);
        Key { octets, length: (end + TAIL) as u16 }
    }
}

/// What a key says: name in wire form, type, DO, CD.
pub(crate) fn parts(key: &[u8]) -> (&[u8], u16, bool, bool) {
    match key.split_last_chunk::<TAIL>() {
        Some((name, [high, low, flags])) => {
            (name, u16::from_be_bytes([*high, *low]), flags & 1 != 0, flags & 2 != 0)
        }
        None => (&[0], 0, false, false),
    }
}

/// Whether a name in wire form is `above` or below it.
pub(crate) fn is_within(name: &[u8], above: &[u8]) -> bool {
    let mut at = 0;
    while name.len() - at > above.len() {
        at += 1 + usize::from(name[at]);
        if at >= name.len() {
            return false;
        }
    }
    name[at..] == *above
}

impl Deref for ForeignName {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.octets[..usize::from(self.length)]
    }
}

impl Deref for Key {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.octets[..usize::from(self.length)]
    }
}

impl PartialEq for ForeignName {
    fn eq(&self, other: &ForeignName) -> bool {
        **self == **other
    }
}

impl Eq for ForeignName {}

impl fmt::Debug for ForeignName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.escape_ascii())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_tells_what_it_was_made_of() {
        for (name, qtype, flags) in [(&b"\0"[..], 1, 0), (b"\x07example\0", 0xfffe, 3), (&[0; 255], 65, 2)] {
            let key = Key::new(name, qtype, flags);
            assert_eq!(parts(&key), (name, qtype, flags & 1 != 0, flags & 2 != 0));
        }
        assert_eq!(&*ForeignName::of(&[1; 256]), b"\0");
    }

    #[test]
    fn names_are_within_at_label_boundaries() {
        let com = b"\x07example\x03com\0";
        for (name, within) in [
            (&b"\x07example\x03com\0"[..], true),
            (b"\x03www\x07example\x03com\0", true),
            (b"\x08xexample\x03com\0", false),
            (b"\x03com\0", false),
            (b"\0", false),
        ] {
            assert_eq!(is_within(name, com), within, "{}", name.escape_ascii());
        }
        assert!(is_within(com, b"\0"));
    }
}
