use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Wall-clock time for log lines, told from the monotonic clock so that a request reads one clock only.
#[derive(Debug)]
pub struct Clock {
    anchor: Cell<(Instant, u64)>,
    date: RefCell<Rc<[u8]>>,
}

impl Clock {
    pub fn new() -> Clock {
        Clock { anchor: Cell::new(anchor()), date: RefCell::new(date_line()) }
    }

    /// Follows steps of the wall clock; called now and then.
    pub fn adjust(&self) {
        self.anchor.set(anchor());
        *self.date.borrow_mut() = date_line();
    }

    /// The `Date` field with its line end (RFC 9110 §6.6.1), right to a second or two.
    pub fn date(&self) -> Rc<[u8]> {
        self.date.borrow().clone()
    }

    /// Microseconds since the Unix epoch.
    pub fn unix_micros(&self, at: Instant) -> u64 {
        let (anchor, micros) = self.anchor.get();
        match at.checked_duration_since(anchor) {
            Some(later) => micros.saturating_add(as_micros(later)),
            None => micros.saturating_sub(as_micros(anchor.duration_since(at))),
        }
    }
}

/// A span in microseconds.
pub fn as_micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}

/// Whole seconds since the Unix epoch.
pub fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn date_line() -> Rc<[u8]> {
    format!("Date: {}\r\n", httpdate::fmt_http_date(SystemTime::now())).into_bytes().into()
}

fn anchor() -> (Instant, u64) {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    (Instant::now(), as_micros(unix))
}
