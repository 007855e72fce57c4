use std::path::Path;

use crate::log;

/// Name of the file below `state_dir`.
const FILE_NAME: &str = "proxy.salt";

/// What is mixed into the names of backends in cookies: the same after every restart, so that visitors stay at
/// their backend. Where it cannot be kept it is made anew each time.
pub fn load_or_make(directory: &Path) -> u64 {
    let path = directory.join(FILE_NAME);
    let kept = std::fs::read(&path).ok().and_then(|bytes| <[u8; 8]>::try_from(bytes).ok());
    u64::from_le_bytes(kept.unwrap_or_else(|| {
        let fresh = random();
        if let Err(error) = std::fs::write(&path, fresh) {
            log!(Warn, "proxy", "visitors may change their backend at the next start", error = error);
        }
        fresh
    }))
}

/// Octets that nobody can foresee.
pub fn random<const COUNT: usize>() -> [u8; COUNT] {
    let mut octets = [0; COUNT];
    getrandom::fill(&mut octets).expect("the kernel has randomness");
    octets
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_salt_outlives_restarts_and_is_another_one_elsewhere() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let salt = load_or_make(one.path());
        assert_eq!(load_or_make(one.path()), salt);
        assert_ne!(load_or_make(two.path()), salt);
    }
}
