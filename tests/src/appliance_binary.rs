//! Where the binary under test is.

use std::path::PathBuf;

/// The `proximity` binary: `PROXIMITY_BIN`, else the one that was built beside the running test.
///
/// # Panics
/// When it is not there, with what to do.
pub fn appliance_binary() -> PathBuf {
    if let Some(named) = std::env::var_os("PROXIMITY_BIN") {
        let named = PathBuf::from(named);
        assert!(named.is_file(), "PROXIMITY_BIN={} is not a file", named.display());
        return named;
    }
    // target/PROFILE/deps/e2e-HASH
    let test = std::env::current_exe().expect("a test knows its own path");
    let profile =
        test.parent().and_then(|deps| deps.parent()).expect("tests are built in target/PROFILE/deps");
    let binary = profile.join("proximity");
    assert!(
        binary.is_file(),
        "{} is missing: run `cargo build -p proximity-appliance`, or set PROXIMITY_BIN",
        binary.display()
    );
    binary
}
