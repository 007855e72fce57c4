//! One JSON line on stdout for each event.

use std::fmt::Write as _;
use std::io::Write;
use std::sync::atomic::{AtomicU8, Ordering};

use proximity_config::LogLevel;
use serde_json::Value;

static LEAST: AtomicU8 = AtomicU8::new(LogLevel::Info as u8);

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
    // A reader that went away must not stop the network.
    let _ = std::io::stdout().lock().write_all(line.as_bytes());
}

fn push(line: &mut String, key: &str, value: &str) {
    let _ = write!(line, ",{}:{}", Value::from(key), Value::from(value));
}
