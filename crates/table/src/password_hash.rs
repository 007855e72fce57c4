//! Hashes of passwords that are taken: the one judgement of whoever reads them and whoever checks passwords.

use std::ops::RangeInclusive;

/// Rounds of bcrypt, as a power of two; the highest takes some seconds.
const COSTS: RangeInclusive<u32> = 4..=15;
/// Most memory of one Argon2 check, in KiB.
const MOST_MEMORY: u32 = 256 << 10;
/// Most passes of one Argon2 check.
const MOST_PASSES: u32 = 16;
/// Most lanes of one Argon2 check.
const MOST_LANES: u32 = 16;

/// Alphabets of base64, in the order of their values.
const BCRYPT: &[u8; 64] = b"./ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
const PHC: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Why a text is not the hash of a password that can be checked, as what to do about it; `None` when it is one. A
/// hash that takes very long to check is refused: everybody may make the proxy check it. OWASP advises 19 MiB and two
/// passes for Argon2id, and cost 10 for bcrypt.
pub fn password_hash_trouble(text: &str) -> Option<&'static str> {
    if text.starts_with("$argon2id$") { argon2(text) } else { bcrypt(text) }
}

/// `$2b$12$` and 53 characters: 22 of salt, 31 of hash.
fn bcrypt(text: &str) -> Option<&'static str> {
    let rest = ["$2a$", "$2b$", "$2y$"].iter().find_map(|prefix| text.strip_prefix(prefix));
    let Some((cost, digest)) = rest.and_then(|rest| rest.split_once('$')) else {
        return Some("write $argon2id$… or $2b$…: `proximity hash-password` makes one");
    };
    let is_two_digits = cost.len() == 2 && cost.bytes().all(|digit| digit.is_ascii_digit());
    let Some(cost) = cost.parse().ok().filter(|_| is_two_digits) else {
        return Some("its cost is not of two digits: copy the whole hash");
    };
    let is_whole = digest
        .split_at_checked(22)
        .is_some_and(|(salt, hash)| hash.len() == 31 && is_base64(salt, BCRYPT) && is_base64(hash, BCRYPT));
    match () {
        () if !COSTS.contains(&cost) => Some("use a cost from 4 to 15, such as 12"),
        () if !is_whole => Some("copy the whole hash, 60 characters"),
        () => None,
    }
}

/// `$argon2id$v=19$m=19456,t=2,p=1$salt$hash`, the PHC string of RFC 9106's function.
fn argon2(text: &str) -> Option<&'static str> {
    let parts: Vec<&str> = text.split('$').collect();
    let [_, _, "v=19", parameters, salt, hash] = &parts[..] else {
        return Some("write it as $argon2id$v=19$m=…,t=…,p=…$salt$hash");
    };
    let parameters: Vec<&str> = parameters.split(',').collect();
    let values =
        parameters.iter().zip(["m=", "t=", "p="]).map(|(part, name)| decimal(part.strip_prefix(name)?));
    let values: Option<Vec<u32>> = values.collect();
    let Some([memory, passes, lanes]) = values.as_deref().filter(|_| parameters.len() == 3) else {
        return Some("its parameters are not m=…,t=…,p=…: copy the whole hash");
    };
    // RFC 9106 §3.1: at least 8 KiB a lane.
    let bearable = (1..=MOST_LANES).contains(lanes)
        && (8 * lanes..=MOST_MEMORY).contains(memory)
        && (1..=MOST_PASSES).contains(passes);
    // 8 to 48 octets of salt and 10 to 64 of hash, as the PHC string format bounds them.
    let is_whole = (11..=64).contains(&salt.len())
        && (14..=86).contains(&hash.len())
        && is_base64(salt, PHC)
        && is_base64(hash, PHC);
    match () {
        () if !bearable => Some("use at most m=262144 (256 MiB), t=16 and p=16, such as m=19456,t=2,p=1"),
        () if !is_whole => Some("copy the whole hash, salt and all"),
        () => None,
    }
}

/// A number without sign or leading zeros.
fn decimal(text: &str) -> Option<u32> {
    text.parse().ok().filter(|number: &u32| number.to_string() == text)
}

/// Whether a text is whole octets in base64 without padding, and the bits beyond the last octet are zero.
fn is_base64(text: &str, alphabet: &[u8; 64]) -> bool {
    let value = |octet: u8| alphabet.iter().position(|&sign| sign == octet);
    let spare = match text.len() % 4 {
        0 => 0,
        2 => 0b1111,
        3 => 0b11,
        _ => return false,
    };
    let is_rounded = text.bytes().last().and_then(value).is_some_and(|last| last & spare == 0);
    is_rounded && text.bytes().all(|octet| value(octet).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SALT: &str = "c2FsdHNhbHRzYWx0";
    const HASH: &str = "6Y2sYxYnDXbGAdx6DPPWrE1CjXYmRLpcMoV2gTzVbFE";

    #[test]
    fn hashes_of_common_tools_are_recognised() {
        let digest = "u".repeat(53);
        for hash in [
            format!("$2b$12${digest}"),
            format!("$2y$05${digest}"),
            format!("$2a$10${digest}"),
            "$2b$04$abcdefghijklmnopqrstuu2r9OfJnfCsdneAXAGHnS4UpFFP8WIrW".to_owned(),
            format!("$argon2id$v=19$m=19456,t=2,p=1${SALT}${HASH}"),
            format!("$argon2id$v=19$m=65536,t=3,p=4${SALT}${HASH}"),
        ] {
            assert_eq!(password_hash_trouble(&hash), None, "{hash}");
        }
    }

    #[test]
    fn what_cannot_be_checked_or_would_take_for_ever_is_refused() {
        let digest = "u".repeat(53);
        for hash in [
            "".to_owned(),
            "secret".to_owned(),
            "$1$salt$md5".to_owned(),
            "$apr1$a$b".to_owned(),
            format!("$2b$31${digest}"),
            format!("$2b$16${digest}"),
            format!("$2b$3${digest}"),
            format!("$2b$+9${digest}"),
            format!("$2b$12${}", &digest[1..]),
            format!("$2b$12${}!", &digest[1..]),
            format!("$2b$12${}v", &digest[1..]),
            format!("$2b$12$é{}", &digest[2..]),
            format!("$argon2i$v=19$m=19456,t=2,p=1${SALT}${HASH}"),
            format!("$argon2id$v=16$m=19456,t=2,p=1${SALT}${HASH}"),
            format!("$argon2id$v=19$m=4194304,t=2,p=1${SALT}${HASH}"),
            format!("$argon2id$v=19$m=+19456,t=2,p=1${SALT}${HASH}"),
            format!("$argon2id$v=19$m=19456,t=2,p=0${SALT}${HASH}"),
            format!("$argon2id$v=19$m=19456,t=2${SALT}${HASH}"),
            format!("$argon2id$v=19$m=19456,t=2,p=1,q=1${SALT}${HASH}"),
            format!("$argon2id$v=19$m=19456,t=2,p=1${SALT}"),
            format!("$argon2id$v=19$m=19456,t=2,p=1${SALT}$short"),
            format!("$argon2id$v=19$m=19456,t=2,p=1${SALT}${}", "A".repeat(88)),
        ] {
            assert!(password_hash_trouble(&hash).is_some_and(|hint| !hint.is_empty()), "{hash}");
        }
    }
}
