//! Waiting for what tells nobody when it happens.

use std::fmt::Display;
use std::thread;
use std::time::{Duration, Instant};

/// Asks again and again until the answer is right, and returns it. For conditions of other processes that
/// announce no change: a page that is served, a rule that is back in the kernel.
///
/// # Panics
/// After `timeout`, with the last answer that was not right.
pub fn until<T, E: Display>(what: &str, timeout: Duration, mut ask: impl FnMut() -> Result<T, E>) -> T {
    let deadline = Instant::now() + timeout;
    loop {
        match ask() {
            Ok(value) => return value,
            Err(last) if Instant::now() >= deadline => panic!("{what}: not within {timeout:?}: {last}"),
            Err(_) => thread::sleep(Duration::from_millis(10)),
        }
    }
}
