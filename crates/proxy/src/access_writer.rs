use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use proximity_table::Name;

use crate::access::Batch;
use crate::access_file::{AtEnd, LogFile};
use crate::free_space::{FreeSpace, Keep};

/// Batches that may wait for the writer; each holds up to some 32 KiB.
const QUEUE: usize = 256;
/// Files kept open; the least recently written one is closed for another.
const MOST_OPEN: usize = 128;
/// How long writing must have worked before the next trouble is told: a disk that is now full and now not
/// would be told of with every batch.
const QUIET: Duration = Duration::from_secs(60);
const DEFAULT_NAME: &str = "default.log";

/// How much of a disk the logs may take.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    /// Octets of a vhost's file; one more of the same length is kept beside it.
    vhost_file: u64,
    /// Octets of `default.log`.
    default_file: u64,
    /// What stays free for others.
    keep: Keep,
}

impl Bounds {
    const USUAL: Bounds = Bounds {
        // Some 150,000 lines: enough to look back on, and eight busy apps with the file before it take one GiB.
        vhost_file: 64 << 20,
        // Whoever knocks with random names decides how much goes there, so it is the one log that ends by
        // itself, until it is moved away.
        default_file: 16 << 20,
        // Leases are stored on the same disk as a rule, and without a durable commit nobody gets an address.
        // 64 MiB is more than their whole store; a share is left to the rest of the system, and a GiB is
        // enough of that on any disk.
        keep: Keep { percent: 5, least: 64 << 20, most: 1 << 30 },
    };
}

/// The writer of the access logs: one thread, one file for each vhost. What it cannot write is counted and
/// told once; traffic never waits for it.
///
/// A file that is full becomes `<hostname>.log.1`, in place of the one before. While little is left free on the
/// disk nothing is written.
#[derive(Debug)]
pub struct AccessLog {
    sink: AccessSink,
    thread: Option<JoinHandle<()>>,
}

/// Where data threads leave their log lines.
#[derive(Clone, Debug)]
pub struct AccessSink {
    queue: SyncSender<Batch>,
    counts: Arc<Counts>,
}

/// What became of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AccessLogCounts {
    /// Lines written.
    pub written: u64,
    /// Lines dropped because the writer was behind.
    pub behind: u64,
    /// Lines dropped because their file could not be written.
    pub failed: u64,
    /// Lines of unknown hosts dropped because `default.log` is full.
    pub default_full: u64,
    /// Lines dropped because little is left free on the disk.
    pub disk_full: u64,
}

#[derive(Debug, Default)]
struct Counts {
    written: AtomicU64,
    behind: AtomicU64,
    failed: AtomicU64,
    default_full: AtomicU64,
    disk_full: AtomicU64,
}

struct Writer<F> {
    dir: PathBuf,
    bounds: Bounds,
    space: FreeSpace,
    files: HashMap<Option<Name>, LogFile>,
    turn: u64,
    counts: Arc<Counts>,
    tell: F,
    /// When there was trouble last.
    trouble: Option<Instant>,
}

impl AccessLog {
    /// Starts the writer on `dir`, which is made when it is missing. `tell` gets a sentence when writing
    /// begins to fail, once until it has worked for a minute.
    pub fn start(dir: PathBuf, tell: impl FnMut(&str) + Send + 'static) -> io::Result<AccessLog> {
        let (queue, batches) = sync_channel(QUEUE);
        let counts = Arc::new(Counts::default());
        let mut writer = Writer::new(dir, Bounds::USUAL, counts.clone(), tell);
        let thread =
            std::thread::Builder::new().name("access-log".to_owned()).spawn(move || writer.run(&batches))?;
        Ok(AccessLog { sink: AccessSink { queue, counts }, thread: Some(thread) })
    }

    /// Where data threads leave their lines.
    pub fn sink(&self) -> AccessSink {
        self.sink.clone()
    }

    /// What became of the lines so far.
    pub fn counts(&self) -> AccessLogCounts {
        let counts = &self.sink.counts;
        AccessLogCounts {
            written: counts.written.load(Relaxed),
            behind: counts.behind.load(Relaxed),
            failed: counts.failed.load(Relaxed),
            default_full: counts.default_full.load(Relaxed),
            disk_full: counts.disk_full.load(Relaxed),
        }
    }

    /// Writes what is queued and ends the thread. Blocks until every other sink is gone.
    pub fn finish(mut self) {
        let thread = self.thread.take();
        drop(self);
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }
}

impl AccessSink {
    /// Hands lines over. Returns how many were dropped because the writer is behind.
    pub(crate) fn send(&self, batch: Batch) -> u64 {
        match self.queue.try_send(batch) {
            Ok(()) => 0,
            Err(TrySendError::Full(batch) | TrySendError::Disconnected(batch)) => {
                let lines = batch.lines();
                self.counts.behind.fetch_add(lines, Relaxed);
                lines
            }
        }
    }
}

impl<F: FnMut(&str)> Writer<F> {
    fn new(dir: PathBuf, bounds: Bounds, counts: Arc<Counts>, tell: F) -> Writer<F> {
        let space = FreeSpace::new(dir.clone(), bounds.keep);
        Writer { dir, bounds, space, files: HashMap::new(), turn: 0, counts, tell, trouble: None }
    }

    fn run(&mut self, batches: &Receiver<Batch>) {
        while let Ok(batch) = batches.recv() {
            self.sort(batch);
            // What has come meanwhile is written together.
            for batch in batches.try_iter().take(QUEUE) {
                self.sort(batch);
            }
            self.write_all(Instant::now());
        }
    }

    fn sort(&mut self, batch: Batch) {
        let mut at = 0;
        self.turn += 1;
        for (route, octets, lines) in batch.marks {
            let name = route.map(|route| route.hostname.clone());
            let (dir, bounds) = (&self.dir, &self.bounds);
            let file = self.files.entry(name).or_insert_with_key(|name| match name {
                Some(name) => LogFile::new(dir.join(format!("{name}.log")), bounds.vhost_file, AtEnd::Rotate),
                None => LogFile::new(dir.join(DEFAULT_NAME), bounds.default_file, AtEnd::Stop),
            });
            file.pending.extend_from_slice(&batch.text[at..at + octets]);
            file.pending_lines += lines;
            file.used = self.turn;
            at += octets;
        }
    }

    fn write_all(&mut self, now: Instant) {
        let mut trouble = None;
        let crowded = self.files.len() > MOST_OPEN;
        for file in self.files.values_mut().filter(|file| !file.pending.is_empty()) {
            let lines = std::mem::take(&mut file.pending_lines);
            let counter = if !self.space.take(file.pending.len(), now) {
                trouble.get_or_insert_with(|| {
                    format!(
                        "the file system of {} is nearly full; requests are served without log: make room there, \
                         or set appliance.log_dir to a directory elsewhere",
                        self.dir.display()
                    )
                });
                &self.counts.disk_full
            } else {
                match file.write(now) {
                    Ok(true) => &self.counts.written,
                    Ok(false) => &self.counts.default_full,
                    Err(error) => {
                        file.close();
                        trouble.get_or_insert_with(|| {
                            format!(
                                "cannot write {}: {error}; requests are served without log",
                                file.path().display()
                            )
                        });
                        &self.counts.failed
                    }
                }
            };
            counter.fetch_add(lines, Relaxed);
            file.pending.clear();
            if crowded {
                // Not all of these can stay open, not even until the end of this round.
                file.close();
            }
        }
        if let Some(trouble) = trouble {
            let is_new = self.trouble.is_none_or(|last| now.duration_since(last) >= QUIET);
            self.trouble = Some(now);
            if is_new {
                (self.tell)(&trouble);
            }
        }
        self.close_least_used();
    }

    fn close_least_used(&mut self) {
        if self.files.len() <= MOST_OPEN {
            return;
        }
        let mut turns: Vec<u64> = self.files.values().map(|file| file.used).collect();
        turns.sort_unstable();
        let oldest_kept = turns[turns.len() - MOST_OPEN];
        self.files.retain(|_, file| file.used >= oldest_kept);
        // Many of the same turn: any of them goes.
        let mut left = MOST_OPEN;
        self.files.retain(|_, _| {
            let keep = left > 0;
            left = left.saturating_sub(1);
            keep
        });
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::access_file::LOOK_AGAIN;

    const ALL_OF_IT: Keep = Keep { percent: 0, least: u64::MAX, most: u64::MAX };
    const NOTHING: Keep = Keep { percent: 0, least: 0, most: 0 };

    fn writer<F: FnMut(&str)>(name: &str, keep: Keep, tell: F) -> Writer<F> {
        let dir = std::env::temp_dir().join(format!("proximity-access-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        Writer::new(dir, Bounds { keep, ..Bounds::USUAL }, Arc::default(), tell)
    }

    fn no_trouble(trouble: &str) {
        panic!("{trouble}");
    }

    fn lines(text: &str) -> Batch {
        Batch { text: text.into(), marks: vec![(None, text.len(), 1)] }
    }

    #[test]
    fn a_moved_file_is_left_and_a_new_one_begun() {
        let mut writer = writer("moved", NOTHING, no_trouble);
        let (path, moved) = (writer.dir.join(DEFAULT_NAME), writer.dir.join("default.log.1"));
        let start = Instant::now();
        writer.sort(lines("a\n"));
        writer.write_all(start);
        fs::rename(&path, &moved).unwrap();
        writer.sort(lines("b\n"));
        writer.write_all(start + LOOK_AGAIN);
        assert_eq!(fs::read_to_string(&moved).unwrap(), "a\n");
        assert_eq!(fs::read_to_string(&path).unwrap(), "b\n");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o640 & fs::metadata(&moved).unwrap().mode());
        fs::remove_dir_all(&writer.dir).unwrap();
    }

    #[test]
    fn the_log_of_unknown_hosts_ends_by_itself() {
        let mut writer = writer("full", NOTHING, no_trouble);
        let line = "x".repeat(1 << 20);
        for _ in 0..20 {
            writer.sort(lines(&line));
            writer.write_all(Instant::now());
        }
        assert_eq!(fs::metadata(writer.dir.join(DEFAULT_NAME)).unwrap().len(), Bounds::USUAL.default_file);
        assert_eq!(writer.counts.default_full.load(Relaxed), 4);
        fs::remove_dir_all(&writer.dir).unwrap();
    }

    #[test]
    fn a_disk_that_is_nearly_full_gets_no_lines_and_is_told_of_once() {
        let mut told = Vec::new();
        let mut writer = writer("disk", ALL_OF_IT, |trouble: &str| told.push(trouble.to_owned()));
        let start = Instant::now();
        let write = |writer: &mut Writer<_>, after: Duration| {
            writer.sort(lines("a\n"));
            writer.write_all(start + after);
        };
        let second = Duration::from_secs(1);
        write(&mut writer, Duration::ZERO);
        write(&mut writer, second);
        assert!(!writer.dir.exists(), "not even the directory is made");
        writer.space = FreeSpace::new(writer.dir.clone(), NOTHING);
        write(&mut writer, 2 * second);
        assert_eq!(fs::read_to_string(writer.dir.join(DEFAULT_NAME)).unwrap(), "a\n");
        // It fills up again at once: nobody wants to be told with every line.
        writer.space = FreeSpace::new(writer.dir.clone(), ALL_OF_IT);
        write(&mut writer, 3 * second);
        let count = |counter: &AtomicU64| counter.load(Relaxed);
        assert_eq!((count(&writer.counts.disk_full), count(&writer.counts.written)), (3, 1));
        let dir = writer.dir.clone();
        write(&mut writer, 3 * second + QUIET);
        drop(writer);
        assert_eq!(told.len(), 2, "{told:?}");
        assert!(told[0].contains("nearly full") && told[0].contains(dir.to_str().unwrap()), "{told:?}");
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn a_writer_that_is_behind_drops_lines_and_counts_them() {
        let (queue, _batches) = sync_channel(1);
        let sink = AccessSink { queue, counts: Arc::default() };
        assert_eq!((sink.send(lines("a")), sink.send(lines("b"))), (0, 1));
        assert_eq!(sink.counts.behind.load(Relaxed), 1);
    }
}
