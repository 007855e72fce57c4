use std::cell::Cell;

/// Spreads every bit over the whole word (the finaliser of SplitMix64).
pub fn mix(word: u64) -> u64 {
    let word = word.wrapping_add(STEP);
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// Another number each time, for choices that nobody gains from foreseeing (SplitMix64).
pub fn next(state: &Cell<u64>) -> u64 {
    let number = mix(state.get());
    state.set(state.get().wrapping_add(STEP));
    number
}

/// FNV-1a: the same on every thread and after every restart. Not for what strangers could make collide to their gain.
pub fn fnv(octets: &[u8]) -> u64 {
    octets
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// What the state of SplitMix64 grows by.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_those_of_the_algorithms() {
        // The first outputs of the reference implementation for the seed 0, and of FNV-1a for "a".
        let state = Cell::new(0);
        assert_eq!([next(&state), next(&state)], [0xe220_a839_7b1d_cdaf, 0x6e78_9e6a_a1b9_65f4]);
        assert_eq!(fnv(b"a"), 0xaf63_dc4c_8601_ec8c);
    }
}
