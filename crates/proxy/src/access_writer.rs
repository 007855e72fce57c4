use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use proximity_table::{LogSettings, Name};

use crate::access::Batch;
use crate::access_file::{AtEnd, Bounds, LogFile, Moment};
use crate::access_names::{DEFAULT_NAME, file_name, put_aside};
use crate::access_shelf::Shelf;
use crate::free_space::{FreeSpace, Keep};

/// Batches that may wait for the writer; each holds up to some 100 KiB, so this is what a log costs at most while
/// its disk is slower than the traffic, and as much again that the writer has taken.
const QUEUE: usize = 64;
/// Files kept open: a quarter of what the process may open, within these bounds. The others are opened for each write:
/// closing one for another would help nobody when all are written in turn.
const FEWEST_OPEN: u64 = 128;
const MOST_OPEN: u64 = 16 * 1024;
/// Files of which it is known how long and how old they are.
const MOST_KNOWN: usize = 16 * 1024;
/// How long a file stays open that nobody writes.
const IDLE: Duration = Duration::from_secs(60);
/// How long a disk may take for one round of writing until it is said to hang.
const HANGS: Duration = Duration::from_secs(5);
/// How long the last lines may take. Whoever stops or is replaced does not wait for a disk that hangs.
const LAST_LINES: Duration = Duration::from_secs(5);
/// How long writing must have worked before the next trouble is told: a disk that is now full and now not
/// would be told of with every batch.
const QUIET: Duration = Duration::from_secs(60);
/// Octets of `default.log`, if a vhost's may be longer. Whoever knocks with random names decides how much goes
/// there, so it is the one log that ends by itself, until it is too old or moved away.
const DEFAULT_LENGTH: u64 = 16 << 20;
/// What the logs leave to others. Leases are stored on the same disk as a rule, and without a durable commit
/// nobody gets an address. 64 MiB is more than their whole store; a share is left to the rest of the system, and
/// a GiB is enough of that on any disk.
const KEEP: Keep = Keep { percent: 5, least: 64 << 20, most: 1 << 30 };

/// The writer of the access logs: one thread, one file for each vhost, and a second thread that compresses
/// what was put aside. What cannot be written is counted and told once; traffic never waits for it.
///
/// A file that is full or old becomes `<hostname>.log.1`, and that `<hostname>.log.1.gz`. While little is left
/// free on the disk nothing is written.
#[derive(Debug)]
pub struct AccessLog {
    sink: AccessSink,
    settings: Arc<ArcSwap<LogSettings>>,
    shelf: Arc<Shelf>,
    threads: Vec<JoinHandle<()>>,
    /// Disconnected when the threads have ended.
    ended: Receiver<()>,
}

/// Where data threads leave their log lines.
#[derive(Clone, Debug)]
pub struct AccessSink {
    queue: SyncSender<Work>,
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

#[derive(Debug)]
enum Work {
    Lines(Batch),
    /// The settings are others.
    Changed,
}

#[derive(Debug, Default)]
struct Counts {
    written: AtomicU64,
    behind: AtomicU64,
    failed: AtomicU64,
    default_full: AtomicU64,
    disk_full: AtomicU64,
    /// Since when the writer is at work on the disk.
    at_work: Mutex<Option<Instant>>,
}

struct Writer<F> {
    dir: PathBuf,
    space: FreeSpace,
    shelf: Arc<Shelf>,
    files: HashMap<Option<Name>, LogFile>,
    /// Those with lines that wait.
    waiting: Vec<Option<Name>>,
    open: usize,
    most_open: usize,
    /// When the next file may be too old, in seconds since the Unix epoch.
    due: Option<u64>,
    tidied: Instant,
    counts: Arc<Counts>,
    tell: F,
    /// When there was trouble last.
    trouble: Option<Instant>,
}

impl AccessLog {
    /// Starts the writer on `dir`, which is made when it is missing. `tell` gets a sentence when writing
    /// begins to fail, once until it has worked for a minute.
    pub fn start(
        dir: PathBuf,
        settings: LogSettings,
        tell: impl Fn(&str) + Clone + Send + 'static,
    ) -> io::Result<AccessLog> {
        let (queue, work) = sync_channel(QUEUE);
        let counts = Arc::new(Counts::default());
        let settings = Arc::new(ArcSwap::from_pointee(settings));
        let shelf = Arc::new(Shelf::new(settings.clone()));
        let (space, told, keeper) = (FreeSpace::new(dir.clone(), KEEP), tell.clone(), shelf.clone());
        let thread = |name: &str| std::thread::Builder::new().name(name.to_owned());
        // Nothing is ever sent on it.
        let (end, ended) = sync_channel(0);
        let (writer_end, compressor_end) = (end.clone(), end);
        let compressing = thread("log-compressor").spawn(move || {
            keeper.run(space, told);
            drop::<SyncSender<()>>(compressor_end);
        })?;
        let mut writer = Writer::new(dir, KEEP, shelf.clone(), counts.clone(), tell);
        let writing = thread("access-log").spawn(move || {
            writer.run(&work);
            drop(writer_end);
        });
        if writing.is_err() {
            shelf.stop();
        }
        let threads = vec![writing?, compressing];
        Ok(AccessLog { sink: AccessSink { queue, counts }, settings, shelf, threads, ended })
    }

    /// Where data threads leave their lines.
    pub fn sink(&self) -> AccessSink {
        self.sink.clone()
    }

    /// Has other settings followed from now on.
    pub fn set(&self, settings: LogSettings) {
        self.settings.store(Arc::new(settings));
        // A writer with a full queue is about to look at the settings anyway.
        let _ = self.sink.queue.try_send(Work::Changed);
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

    /// For how long the disk has not come back from what the writer wants of it, if that is longer than a disk
    /// takes that is only slow.
    pub fn hangs_for(&self) -> Option<Duration> {
        let since = *at_work(&self.sink.counts);
        since.map(|since| since.elapsed()).filter(|waited| *waited >= HANGS)
    }

    /// Writes what is queued and ends the threads; what is not compressed yet is after the next start. Every other
    /// sink must be gone. Blocks, but not for longer than some seconds: what a disk that hangs has not taken by
    /// then is lost, and false is returned.
    #[must_use]
    pub fn finish(self) -> bool {
        let AccessLog { sink, shelf, threads, ended, .. } = self;
        drop(sink);
        if ended.recv_timeout(LAST_LINES) == Err(RecvTimeoutError::Timeout) {
            shelf.stop();
            return false;
        }
        for thread in threads {
            let _ = thread.join();
        }
        true
    }
}

impl AccessSink {
    /// Hands lines over. Returns how many were dropped because the writer is behind.
    pub(crate) fn send(&self, batch: Batch) -> u64 {
        match self.queue.try_send(Work::Lines(batch)) {
            Ok(()) => 0,
            Err(TrySendError::Full(work) | TrySendError::Disconnected(work)) => {
                let Work::Lines(batch) = work else { return 0 };
                let lines = batch.lines();
                self.counts.behind.fetch_add(lines, Relaxed);
                lines
            }
        }
    }
}

/// Why the lines of a file were dropped.
enum Unwritten {
    /// The file is as long as it may be.
    FileFull,
    DiskFull,
    Failed(io::Error),
}

impl Unwritten {
    /// What is told of it; a file that is full is as it should be.
    fn trouble(self, dir: &Path, file: &LogFile) -> Option<String> {
        match self {
            Unwritten::FileFull => None,
            Unwritten::DiskFull => Some(format!(
                "the file system of {} is nearly full; requests are served without log: make room there, or set \
                 appliance.log_dir to a directory elsewhere",
                dir.display()
            )),
            Unwritten::Failed(error) => Some(format!(
                "cannot write {}: {error}; requests are served without log",
                file.path().display()
            )),
        }
    }
}

/// Writes what waits for a file; one that cannot be written is opened anew the next time.
fn write(file: &mut LogFile, now: Moment, bounds: Bounds, shelf: &Shelf) -> Result<(), Unwritten> {
    match file.write(now, bounds, shelf) {
        Ok(true) => Ok(()),
        Ok(false) => Err(Unwritten::FileFull),
        Err(error) => {
            file.close();
            Err(Unwritten::Failed(error))
        }
    }
}

impl Counts {
    /// Where lines are counted of which this became.
    fn of(&self, written: &Result<(), Unwritten>) -> &AtomicU64 {
        match written {
            Ok(()) => &self.written,
            Err(Unwritten::FileFull) => &self.default_full,
            Err(Unwritten::DiskFull) => &self.disk_full,
            Err(Unwritten::Failed(_)) => &self.failed,
        }
    }
}

fn at_work(counts: &Counts) -> MutexGuard<'_, Option<Instant>> {
    counts.at_work.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<F: Fn(&str)> Writer<F> {
    fn new(dir: PathBuf, keep: Keep, shelf: Arc<Shelf>, counts: Arc<Counts>, tell: F) -> Writer<F> {
        let space = FreeSpace::new(dir.clone(), keep);
        Writer {
            dir,
            space,
            shelf,
            files: HashMap::new(),
            waiting: Vec::new(),
            open: 0,
            most_open: most_open(),
            due: None,
            tidied: Instant::now(),
            counts,
            tell,
            trouble: None,
        }
    }

    fn run(&mut self, work: &Receiver<Work>) {
        loop {
            let now = Moment::now();
            *at_work(&self.counts) = Some(now.at);
            if self.due.is_some_and(|due| due <= now.unix) {
                self.put_old_aside(now);
            }
            *at_work(&self.counts) = None;
            let first = match self.due {
                None => work.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(due) => work.recv_timeout(Duration::from_secs(due.saturating_sub(now.unix))),
            };
            let now = Moment::now();
            *at_work(&self.counts) = Some(now.at);
            match first {
                Ok(first) => self.take(first, now),
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => break,
            }
            // What has come meanwhile is written together.
            for more in work.try_iter().take(QUEUE) {
                self.take(more, now);
            }
            self.write_all(Moment::now());
        }
        self.shelf.stop();
    }

    fn take(&mut self, work: Work, now: Moment) {
        match work {
            Work::Lines(batch) => self.sort(batch, now),
            Work::Changed => {
                self.files.values().for_each(|file| self.shelf.tend(file.path().to_owned()));
                self.put_old_aside(now);
            }
        }
    }

    fn sort(&mut self, batch: Batch, now: Moment) {
        let mut at = 0;
        for (route, octets, lines) in batch.marks {
            let name = route.map(|route| route.hostname.clone());
            let (dir, shelf) = (&self.dir, &self.shelf);
            let file = self.files.entry(name.clone()).or_insert_with_key(|name| {
                let (name, at_end) = match name {
                    Some(name) => (file_name(name), AtEnd::Rotate),
                    None => (DEFAULT_NAME.to_owned(), AtEnd::Stop),
                };
                let path = dir.join(name);
                // Left by a process that ended before it was compressed.
                if put_aside(&path, 1, false).exists() {
                    shelf.tend(path.clone());
                }
                LogFile::new(path, at_end)
            });
            if file.pending.is_empty() {
                self.waiting.push(name);
            }
            file.pending.extend_from_slice(&batch.text[at..at + octets]);
            file.pending_lines += lines;
            file.used = Some(now.at);
            at += octets;
        }
    }

    fn write_all(&mut self, now: Moment) {
        let mut trouble = None;
        let settings = self.shelf.settings();
        // The memory of a few thousand files adds up.
        let crowded = self.files.len() > FEWEST_OPEN as usize;
        for name in self.waiting.drain(..) {
            let Some(file) = self.files.get_mut(&name) else { continue };
            let was_open = file.is_open();
            let lines = std::mem::take(&mut file.pending_lines);
            let bounds = bounds(file.at_end(), &settings);
            let written = match self.space.take(file.pending.len(), now.at) {
                true => write(file, now, bounds, &self.shelf),
                false => Err(Unwritten::DiskFull),
            };
            let counter = self.counts.of(&written);
            if let Err(why) = written {
                trouble = trouble.or_else(|| why.trouble(&self.dir, file));
            }
            counter.fetch_add(lines, Relaxed);
            file.pending.clear();
            if crowded {
                file.pending = Vec::new();
            }
            if !was_open && self.open >= self.most_open {
                file.close();
            }
            self.open = self.open + usize::from(file.is_open()) - usize::from(was_open);
            self.due = earlier(self.due, file.due(bounds));
        }
        if let Some(trouble) = trouble {
            self.complain(&trouble, now);
        }
        if now.at.duration_since(self.tidied) >= IDLE {
            self.tidy(now);
        }
    }

    /// Puts aside what is too old, and notes when the next file will be.
    fn put_old_aside(&mut self, now: Moment) {
        let settings = self.shelf.settings();
        let mut trouble = None;
        (self.due, self.open) = (None, 0);
        for file in self.files.values_mut() {
            let bounds = bounds(file.at_end(), &settings);
            let done = file.put_old_aside(now, bounds, &self.shelf);
            if let Err(error) = done {
                trouble = Some(format!("{}: {error}; lines are added to it", file.path().display()));
            }
            self.due = earlier(self.due, file.due(bounds));
            self.open += usize::from(file.is_open());
        }
        if let Some(trouble) = trouble {
            self.complain(&trouble, now);
        }
    }

    fn complain(&mut self, trouble: &str, now: Moment) {
        let is_new = self.trouble.is_none_or(|last| now.at.duration_since(last) >= QUIET);
        self.trouble = Some(now.at);
        if is_new {
            (self.tell)(trouble);
        }
    }

    /// Closes what nobody writes any more.
    fn tidy(&mut self, now: Moment) {
        self.tidied = now.at;
        let is_idle = |file: &LogFile| file.used.is_none_or(|used| now.at.duration_since(used) >= IDLE);
        self.files.values_mut().filter(|file| is_idle(file)).for_each(LogFile::close);
        self.open = self.files.values().filter(|file| file.is_open()).count();
        if self.files.len() > MOST_KNOWN {
            self.files.retain(|_, file| file.is_open());
        }
    }
}

/// How many files may stay open.
fn most_open() -> usize {
    let most = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    (most.unwrap_or(u64::MAX) / 4).clamp(FEWEST_OPEN, MOST_OPEN) as usize
}

fn earlier(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    a.into_iter().chain(b).min()
}

/// How long and how old a file may become.
fn bounds(at_end: AtEnd, settings: &LogSettings) -> Bounds {
    let length = match at_end {
        AtEnd::Rotate => settings.max_size,
        AtEnd::Stop => settings.max_size.min(DEFAULT_LENGTH),
    };
    Bounds { length, age: u64::from(settings.max_age) }
}

#[cfg(test)]
#[path = "access_writer_tests.rs"]
mod tests;
