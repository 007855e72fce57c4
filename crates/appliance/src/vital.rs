use std::process::abort;
use std::thread::{self, JoinHandle};

/// Starts a thread that the appliance cannot do without. Should it panic, the process ends, loudly and to be
/// started again, instead of going on as half an appliance that looks well.
pub fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    let guarded = move || {
        let guard = Guard;
        body();
        drop(guard);
    };
    thread::Builder::new().name(name.to_owned()).spawn(guarded).expect("threads can be made")
}

struct Guard;

impl Drop for Guard {
    fn drop(&mut self) {
        if thread::panicking() {
            abort();
        }
    }
}
