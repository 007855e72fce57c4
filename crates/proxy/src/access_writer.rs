use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
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
            let counter = if !self.space.take(file.pending.len(), now.at) {
                trouble.get_or_insert_with(|| {
                    format!(
                        "the file system of {} is nearly full; requests are served without log: make room there, \
                         or set appliance.log_dir to a directory elsewhere",
                        self.dir.display()
                    )
                });
                &self.counts.disk_full
            } else {
                match file.write(now, bounds, &self.shelf) {
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
mod tests {
    use std::cell::RefCell;
    use std::fs;
    use std::io::Read;
    use std::os::unix::fs::MetadataExt;

    use proximity_table::{Action, Redirect, Route, Source, VhostPolicy};

    use super::*;
    use crate::access_file::LOOK_AGAIN;
    use crate::access_names::unfinished;

    const ALL_OF_IT: Keep = Keep { percent: 0, least: u64::MAX, most: u64::MAX };
    const NOTHING: Keep = Keep { percent: 0, least: 0, most: 0 };

    fn writer<F: Fn(&str)>(name: &str, keep: Keep, tell: F) -> Writer<F> {
        let dir = std::env::temp_dir().join(format!("proximity-access-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        let shelf = Arc::new(Shelf::new(Arc::default()));
        Writer::new(dir, keep, shelf, Arc::default(), tell)
    }

    fn after(start: Moment, span: Duration) -> Moment {
        Moment { at: start.at + span, unix: start.unix + span.as_secs() }
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
        let start = Moment::now();
        writer.sort(lines("a\n"), start);
        writer.write_all(start);
        fs::rename(&path, &moved).unwrap();
        writer.sort(lines("b\n"), start);
        writer.write_all(after(start, LOOK_AGAIN));
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
            writer.sort(lines(&line), Moment::now());
            writer.write_all(Moment::now());
        }
        assert_eq!(fs::metadata(writer.dir.join(DEFAULT_NAME)).unwrap().len(), DEFAULT_LENGTH);
        assert_eq!(writer.counts.default_full.load(Relaxed), 4);
        fs::remove_dir_all(&writer.dir).unwrap();
    }

    #[test]
    fn a_disk_that_is_nearly_full_gets_no_lines_and_is_told_of_once() {
        let told = RefCell::new(Vec::new());
        let mut writer =
            writer("disk", ALL_OF_IT, |trouble: &str| told.borrow_mut().push(trouble.to_owned()));
        let start = Moment::now();
        let write = |writer: &mut Writer<_>, passed: Duration| {
            writer.sort(lines("a\n"), start);
            writer.write_all(after(start, passed));
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
        let told = told.into_inner();
        assert_eq!(told.len(), 2, "{told:?}");
        assert!(told[0].contains("nearly full") && told[0].contains(dir.to_str().unwrap()), "{told:?}");
        fs::remove_dir_all(&dir).unwrap();
    }

    #[test]
    fn more_files_than_may_be_open_are_written_all_the_same() {
        let mut writer = writer("many", NOTHING, no_trouble);
        writer.most_open = 2;
        let start = Moment::now();
        let name = |at: usize| -> Name { format!("app{at}.prox.local").parse().unwrap() };
        for round in 0..3 {
            for at in 0..5 {
                let route = Arc::new(Route {
                    app: "app".into(),
                    hostname: name(at),
                    source: Source::Config,
                    policy: VhostPolicy::unchanged(),
                    root: Action::Redirect(Redirect { to: "/".into(), status: 308 }),
                    paths: Vec::new(),
                    auth_backend: None,
                });
                let text = format!("{round}\n").into_bytes();
                writer.sort(Batch { marks: vec![(Some(route), text.len(), 1)], text }, start);
            }
            writer.write_all(after(start, Duration::from_secs(round)));
            assert_eq!(writer.open, 2);
            assert_eq!(writer.files.values().filter(|file| file.is_open()).count(), 2);
        }
        for at in 0..5 {
            let text = fs::read_to_string(writer.dir.join(file_name(&name(at)))).unwrap();
            assert_eq!(text, "0\n1\n2\n", "{at}");
        }
        // Nobody writes: nothing stays open, and all are put aside when they are too old.
        writer.tidy(after(start, IDLE));
        assert_eq!((writer.open, writer.files.len()), (0, 5));
        let age = u64::from(LogSettings::default().max_age);
        assert_eq!(writer.due, Some(start.unix + age));
        writer.put_old_aside(after(start, Duration::from_secs(age)));
        let aside = (0..5).filter(|&at| put_aside(&writer.dir.join(file_name(&name(at))), 1, false).exists());
        assert_eq!((aside.count(), writer.due), (5, None));
        fs::remove_dir_all(&writer.dir).unwrap();
    }

    #[test]
    fn a_file_that_becomes_too_old_is_put_aside_even_when_nothing_is_logged() {
        let mut writer = writer("idle", NOTHING, no_trouble);
        let path = writer.dir.join(DEFAULT_NAME);
        let start = Moment::now();
        assert_eq!(writer.due, None, "nothing to wake for");
        writer.sort(lines("a\n"), start);
        writer.write_all(start);
        let age = u64::from(LogSettings::default().max_age);
        assert_eq!(writer.due, Some(start.unix + age));
        writer.put_old_aside(after(start, Duration::from_secs(age - 1)));
        assert!(path.exists());
        writer.put_old_aside(after(start, Duration::from_secs(age)));
        assert_eq!((path.exists(), writer.due), (false, None));
        assert_eq!(fs::read_to_string(put_aside(&path, 1, false)).unwrap(), "a\n");
        fs::remove_dir_all(&writer.dir).unwrap();
    }

    #[test]
    fn logs_are_bounded_compressed_and_follow_the_settings() {
        let dir = std::env::temp_dir().join(format!("proximity-access-whole-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir(&dir).unwrap();
        let path = dir.join(DEFAULT_NAME);
        // What a process left that was killed while it compressed.
        fs::write(put_aside(&path, 1, false), "left\n").unwrap();
        fs::write(unfinished(&path), "half").unwrap();
        let settings = LogSettings { max_size: 10, max_age: 1, keep: 2, ..LogSettings::default() };
        let log = AccessLog::start(dir.clone(), settings, no_trouble).unwrap();
        let sink = log.sink();
        let until = |what: &str, holds: &dyn Fn() -> bool| {
            let began = Instant::now();
            while !holds() {
                assert!(began.elapsed() < Duration::from_secs(20), "never {what}");
                std::thread::yield_now();
            }
        };
        assert_eq!(sink.send(lines("11111111\n")), 0);
        // It is a second old soon: nothing else comes that would put it aside.
        let (first, second) = (put_aside(&path, 1, true), put_aside(&path, 2, true));
        // Names change one by one: what counts is what stands there in the end.
        let holds = |path: &PathBuf, wanted: &str| {
            let Ok(file) = fs::File::open(path) else { return false };
            let mut text = String::new();
            flate2::read::GzDecoder::new(file).read_to_string(&mut text).is_ok() && text == wanted
        };
        until("compressed", &|| {
            holds(&first, "11111111\n") && holds(&second, "left\n") && !put_aside(&path, 1, false).exists()
        });
        assert!(!path.exists());
        assert!(!unfinished(&path).exists());
        log.set(LogSettings { keep: 1, max_age: 0, ..settings });
        until("removed", &|| !second.exists());
        assert_eq!((log.counts().written, log.counts().behind), (1, 0));
        drop(sink);
        assert!(log.finish());
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
