//! Hashes of passwords as `[vhost.auth]` takes them.

/// Most rounds of bcrypt, as a power of two: some seconds.
const MOST_COST: u32 = 15;
/// Most memory of one Argon2 check, in KiB.
const MOST_MEMORY: u32 = 256 << 10;
/// Most passes of one Argon2 check.
const MOST_PASSES: u32 = 16;

/// Why a text is not the hash of a password that can be checked; `None` when it is one. A hash that takes
/// very long to check is refused: everybody may make the proxy check it.
pub fn trouble(text: &str) -> Option<&'static str> {
    if text.starts_with("$argon2id$") { argon2(text) } else { bcrypt(text) }
}

/// `$2b$12$` and 53 characters: 22 of salt, 31 of hash.
fn bcrypt(text: &str) -> Option<&'static str> {
    let rest = ["$2a$", "$2b$", "$2y$"].iter().find_map(|prefix| text.strip_prefix(prefix));
    let Some((cost, digest)) = rest.and_then(|rest| rest.split_once('$')) else {
        return Some("write $argon2id$… or $2b$…: `htpasswd -nB NAME` makes one");
    };
    let Some(cost) = Some(cost).filter(|cost| cost.len() == 2).and_then(|cost| cost.parse::<u32>().ok())
    else {
        return Some("its cost is not of two digits: copy the whole hash");
    };
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'.' || byte == b'/';
    match () {
        () if !(4..=MOST_COST).contains(&cost) => Some("use a cost from 4 to 15, such as 12"),
        () if digest.len() != 53 || !digest.bytes().all(plain) => Some("copy the whole hash, 60 characters"),
        () => None,
    }
}

/// `$argon2id$v=19$m=19456,t=2,p=1$salt$hash`, the PHC string of RFC 9106's function.
fn argon2(text: &str) -> Option<&'static str> {
    let parts: Vec<&str> = text.split('$').collect();
    let [_, _, "v=19", parameters, salt, hash] = &parts[..] else {
        return Some("write it as $argon2id$v=19$m=…,t=…,p=…$salt$hash");
    };
    let values: Option<Vec<u32>> = parameters
        .split(',')
        .zip(["m=", "t=", "p="])
        .map(|(part, name)| part.strip_prefix(name)?.parse().ok())
        .collect();
    let Some([memory, passes, lanes]) = values.as_deref() else {
        return Some("its parameters are not m=…,t=…,p=…: copy the whole hash");
    };
    let base64 = |text: &str, least: usize| {
        (least..=128).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'+' || byte == b'/')
    };
    // RFC 9106 §3.1: at least 8 KiB a lane.
    let bearable = (1..=16).contains(lanes)
        && (8 * lanes..=MOST_MEMORY).contains(memory)
        && (1..=MOST_PASSES).contains(passes);
    match () {
        () if parameters.split(',').count() != 3 => {
            Some("its parameters are not m=…,t=…,p=…: copy the whole hash")
        }
        () if !bearable => Some("use at most m=262144 (256 MiB), t=16 and p=16, such as m=19456,t=2,p=1"),
        () if !base64(salt, 11) || !base64(hash, 14) => Some("copy the whole hash, salt and all"),
        () => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SALT: &str = "c2FsdHNhbHRzYWx0";
    const HASH: &str = "6Y2sYxYnDXbGAdx6DPPWrE1CjXYmRLpcMoV2gTzVbFE";

    #[test]
    fn hashes_of_common_tools_are_recognised() {
        let digest = "x".repeat(53);
        for hash in [
            format!("$2b$12${digest}"),
            format!("$2y$05${digest}"),
            format!("$2a$10${digest}"),
            format!("$argon2id$v=19$m=19456,t=2,p=1${SALT}${HASH}"),
            format!("$argon2id$v=19$m=65536,t=3,p=4${SALT}${HASH}"),
        ] {
            assert_eq!(trouble(&hash), None, "{hash}");
        }
    }

    #[test]
    fn what_cannot_be_checked_or_would_take_for_ever_is_refused() {
        let digest = "x".repeat(53);
        for hash in [
            "".to_owned(),
            "secret".to_owned(),
            "$1$salt$md5".to_owned(),
            "$apr1$a$b".to_owned(),
            format!("$2b$31${digest}"),
            format!("$2b$3${digest}"),
            format!("$2b$12${}", &digest[1..]),
            format!("$2b$12${}!", &digest[1..]),
            format!("$argon2i$v=19$m=19456,t=2,p=1${SALT}${HASH}"),
            format!("$argon2id$v=16$m=19456,t=2,p=1${SALT}${HASH}"),
            format!("$argon2id$v=19$m=4194304,t=2,p=1${SALT}${HASH}"),
            format!("$argon2id$v=19$m=19456,t=2${SALT}${HASH}"),
            format!("$argon2id$v=19$m=19456,t=2,p=1,q=1${SALT}${HASH}"),
            format!("$argon2id$v=19$m=19456,t=2,p=1${SALT}"),
            format!("$argon2id$v=19$m=19456,t=2,p=1${SALT}$short"),
        ] {
            assert!(trouble(&hash).is_some_and(|hint| !hint.is_empty()), "{hash}");
        }
    }
}
