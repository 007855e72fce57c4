//! One JSON line on stdout for each event.

use std::fmt::Write as _;
use std::io::Write;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Duration;

use proximity_config::LogLevel;
use serde_json::Value;

/// Most lines that wait for a slow reader.
const MOST_WAITING: usize = 4096;

static QUEUE: OnceLock<SyncSender<Entry>> = OnceLock::new();
static LOST: AtomicU64 = AtomicU64::new(0);
static LEAST: AtomicU8 = AtomicU8::new(LogLevel::Info as u8);

enum Entry {
    Line(String),
    Flush(SyncSender<()>),
}

/// From now on only events of this level or above are written.
pub fn set_level(level: LogLevel) {
    LEAST.store(level as u8, Ordering::Relaxed);
}

/// Writes an event: `log!(Info, "dhcp", "lease granted", ip = lease.ip, mac = lease.mac)`.
#[macro_export]
macro_rules! log {
    ($level:ident, $logger:expr, $message:expr $(, $key:ident = $value:expr)* $(,)?) => {
        $crate::log::write(proximity_config::LogLevel::$level, $logger, $message.as_ref(), &[$((stringify!($key), $value.to_string())),*])
    };
}

/// Writes an event with its fields.
pub fn write(level: LogLevel, logger: &str, message: &str, fields: &[(&str, String)]) {
    if (level as u8) < LEAST.load(Ordering::Relaxed) {
        return;
    }
    let word = match level {
        LogLevel::Debug => "debug",
        LogLevel::Info => "info",
        LogLevel::Warn => "warn",
        LogLevel::Error => "error",
    };
    let ts = proximity_admin::rfc3339(crate::clock::now()).unwrap_or_default();
    let mut line = format!("{{\"level\":\"{word}\",\"ts\":\"{ts}\"");
    for (key, value) in [("logger", logger), ("msg", message)] {
        push(&mut line, key, value);
    }
    fields.iter().for_each(|(key, value)| push(&mut line, key, value));
    line.push_str("}\n");
    let queue = QUEUE.get_or_init(start_writer);
    if queue.try_send(Entry::Line(line)).is_err() {
        LOST.fetch_add(1, Ordering::Relaxed);
    }
}

/// Lines that were dropped because nobody reads stdout fast enough.
pub fn lost() -> u64 {
    LOST.load(Ordering::Relaxed)
}

/// Waits until everything that was written is out, at most a second.
pub fn flush() {
    let (done, finished) = sync_channel(1);
    if QUEUE.get().is_some_and(|queue| queue.try_send(Entry::Flush(done)).is_ok()) {
        let _ = finished.recv_timeout(Duration::from_secs(1));
    }
}

/// A reader of stdout that stands still (a pager, a stuck journal) must not make the network stand still: the
/// lines wait for a thread of their own, and are dropped and counted when too many wait.
fn start_writer() -> SyncSender<Entry> {
    let (queue, entries) = sync_channel(MOST_WAITING);
    std::thread::Builder::new()
        .name("log".to_owned())
        .spawn(move || {
            for entry in entries {
                match entry {
                    Entry::Line(line) => drop(std::io::stdout().lock().write_all(line.as_bytes())),
                    Entry::Flush(done) => drop(done.send(())),
                }
            }
        })
        .expect("threads can be made");
    queue
}

fn push(line: &mut String, key: &str, value: &str) {
    let _ = write!(line, ",{}:{}", Value::from(key), Value::from(value));
}
