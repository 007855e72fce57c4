use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use proximity_table::Name;

use crate::access::Batch;

/// Batches that may wait for the writer; each holds up to some 32 KiB.
const QUEUE: usize = 256;
/// Files kept open; the least recently written one is closed for another.
const MOST_OPEN: usize = 128;
/// Octets of `default.log`. Whoever knocks with random names decides how much goes there, so it is the one
/// log that ends by itself, until it is moved away.
const LONGEST_DEFAULT: u64 = 16 << 20;
/// How often a file is compared with its name, to notice that it was moved by a log rotation.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
const DEFAULT_NAME: &str = "default.log";

/// The writer of the access logs: one thread, one file for each vhost. What it cannot write is counted and
/// told once; traffic never waits for it.
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
}

#[derive(Debug, Default)]
struct Counts {
    written: AtomicU64,
    behind: AtomicU64,
    failed: AtomicU64,
    default_full: AtomicU64,
}

struct Writer<F> {
    dir: PathBuf,
    files: HashMap<Option<Name>, LogFile>,
    turn: u64,
    counts: Arc<Counts>,
    tell: F,
    /// Whether the present trouble has been told.
    told: bool,
}

#[derive(Default)]
struct LogFile {
    path: PathBuf,
    open: Option<File>,
    size: u64,
    looked: Option<Instant>,
    used: u64,
    pending: Vec<u8>,
    pending_lines: u64,
}

impl AccessLog {
    /// Starts the writer on `dir`, which is made when it is missing. `tell` gets a sentence when writing
    /// begins to fail, once until it works again.
    pub fn start(dir: PathBuf, tell: impl FnMut(&str) + Send + 'static) -> io::Result<AccessLog> {
        let (queue, batches) = sync_channel(QUEUE);
        let counts = Arc::new(Counts::default());
        let mut writer =
            Writer { dir, files: HashMap::new(), turn: 0, counts: counts.clone(), tell, told: false };
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
            let dir = &self.dir;
            let file = self.files.entry(name).or_insert_with_key(|name| LogFile {
                path: dir.join(name.as_ref().map_or(DEFAULT_NAME.to_owned(), |name| format!("{name}.log"))),
                ..LogFile::default()
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
        for (name, file) in &mut self.files {
            if file.pending.is_empty() {
                continue;
            }
            let lines = std::mem::take(&mut file.pending_lines);
            let result = file.write(&self.dir, name.is_none(), now);
            file.pending.clear();
            if crowded {
                // Not all of these can stay open, not even until the end of this round.
                file.open = None;
            }
            let counter = match result {
                Ok(true) => &self.counts.written,
                Ok(false) => &self.counts.default_full,
                Err(error) => {
                    file.open = None;
                    trouble.get_or_insert_with(|| {
                        format!(
                            "cannot write {}: {error}; requests are served without log",
                            file.path.display()
                        )
                    });
                    &self.counts.failed
                }
            };
            counter.fetch_add(lines, Relaxed);
        }
        match trouble {
            Some(trouble) if !self.told => {
                self.told = true;
                (self.tell)(&trouble);
            }
            Some(_) => {}
            None => self.told = false,
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

impl LogFile {
    /// Writes what is pending; false when the file has reached its end.
    fn write(&mut self, dir: &Path, is_default: bool, now: Instant) -> io::Result<bool> {
        if self.looked.is_none_or(|looked| now.duration_since(looked) >= LOOK_AGAIN) {
            self.looked = Some(now);
            if self.was_moved() {
                self.open = None;
            }
        }
        let file = match &mut self.open {
            Some(file) => file,
            None => {
                fs::create_dir_all(dir)?;
                let file = OpenOptions::new().append(true).create(true).mode(0o640).open(&self.path)?;
                self.size = file.metadata()?.len();
                self.open.insert(file)
            }
        };
        if is_default && self.size >= LONGEST_DEFAULT {
            return Ok(false);
        }
        file.write_all(&self.pending)?;
        self.size += self.pending.len() as u64;
        Ok(true)
    }

    fn was_moved(&self) -> bool {
        let identity = |meta: fs::Metadata| (meta.dev(), meta.ino());
        match (&self.open, fs::metadata(&self.path)) {
            (Some(file), Ok(there)) => file.metadata().map(identity).ok() != Some(identity(there)),
            (_, Err(_)) => true,
            (None, Ok(_)) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn writer(name: &str) -> Writer<impl FnMut(&str)> {
        let dir = std::env::temp_dir().join(format!("proximity-access-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        let tell = |trouble: &str| panic!("{trouble}");
        Writer { dir, files: HashMap::new(), turn: 0, counts: Arc::default(), tell, told: false }
    }

    fn lines(text: &str) -> Batch {
        Batch { text: text.into(), marks: vec![(None, text.len(), 1)] }
    }

    #[test]
    fn a_moved_file_is_left_and_a_new_one_begun() {
        let mut writer = writer("moved");
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
        let mut writer = writer("full");
        let line = "x".repeat(1 << 20);
        for _ in 0..20 {
            writer.sort(lines(&line));
            writer.write_all(Instant::now());
        }
        assert_eq!(fs::metadata(writer.dir.join(DEFAULT_NAME)).unwrap().len(), LONGEST_DEFAULT);
        assert_eq!(writer.counts.default_full.load(Relaxed), 4);
        fs::remove_dir_all(&writer.dir).unwrap();
    }

    #[test]
    fn a_writer_that_is_behind_drops_lines_and_counts_them() {
        let (queue, _batches) = sync_channel(1);
        let sink = AccessSink { queue, counts: Arc::default() };
        assert_eq!((sink.send(lines("a")), sink.send(lines("b"))), (0, 1));
        assert_eq!(sink.counts.behind.load(Relaxed), 1);
    }
}
