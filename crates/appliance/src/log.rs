//! One JSON line on stdout for each event.

use std::io::Write;
use std::sync::atomic::{AtomicU8, Ordering};

use proximity_config::LogLevel;
use serde_json::{Map, Value};

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
    let mut line = Map::new();
    line.insert("level".to_owned(), word.into());
    line.insert("ts".to_owned(), proximity_admin::rfc3339(crate::clock::now()).into());
    line.insert("logger".to_owned(), logger.into());
    line.insert("msg".to_owned(), message.into());
    line.extend(fields.iter().map(|(key, value)| ((*key).to_owned(), Value::from(value.as_str()))));
    let mut text = Value::Object(line).to_string();
    text.push('\n');
    // A reader that went away must not stop the network.
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
}
