use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, UNIX_EPOCH};

use crate::access_names::begun;
use crate::access_shelf::Shelf;
use crate::clock::unix_seconds;

/// How often a file is compared with its name, to notice that it was moved by a log rotation.
pub const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Seconds until a file that is too old and could not be put aside is tried again.
const TRY_AGAIN: u64 = 3600;

/// What becomes of a file that is as long as it may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtEnd {
    /// It is put aside, and begun anew.
    Rotate,
    /// It takes nothing more until it is too old, or moved away.
    Stop,
}

/// How long and how old a file may become.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Octets.
    pub length: u64,
    /// Seconds from its first line; 0 for any age.
    pub age: u64,
}

/// A moment on both clocks: waits are told by the one, and the age of what outlives us by the other.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// On the clock that never goes back.
    pub at: Instant,
    /// Seconds since the Unix epoch.
    pub unix: u64,
}

/// A log file and the lines that wait to be written to it.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    at_end: AtEnd,
    open: Option<File>,
    size: u64,
    /// When its first line was written, in seconds since the Unix epoch; `None` while it has none.
    begun: Option<u64>,
    /// Device and inode of the file that all this was learnt of.
    identity: Option<(u64, u64)>,
    /// Before that it is not put aside for its age.
    not_before: u64,
    looked: Option<Instant>,
    /// Whole lines.
    pub pending: Vec<u8>,
    /// How many they are.
    pub pending_lines: u64,
    /// When lines came last.
    pub used: Option<Instant>,
}

impl Moment {
    /// The present one.
    pub fn now() -> Moment {
        Moment { at: Instant::now(), unix: unix_seconds() }
    }
}

impl LogFile {
    /// The file `path`, which is opened when something is written.
    pub fn new(path: PathBuf, at_end: AtEnd) -> LogFile {
        LogFile {
            path,
            at_end,
            open: None,
            size: 0,
            begun: None,
            identity: None,
            not_before: 0,
            looked: None,
            pending: Vec::new(),
            pending_lines: 0,
            used: None,
        }
    }

    /// Its present name.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What becomes of it when it is as long as it may be.
    pub fn at_end(&self) -> AtEnd {
        self.at_end
    }

    /// Whether it is open.
    pub fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Closes it until the next write.
    pub fn close(&mut self) {
        self.open = None;
    }

    /// Writes what is pending; false when the file has reached its end.
    pub fn write(&mut self, now: Moment, bounds: Bounds, shelf: &Shelf) -> io::Result<bool> {
        if self.looked.is_none_or(|looked| now.at.duration_since(looked) >= LOOK_AGAIN) {
            self.looked = Some(now.at);
            self.look();
        }
        self.open(now)?;
        if self.would_be_too_long(bounds) {
            // Somebody else's rotation may have come first; the file it left must not be lost to a second one.
            self.look();
            self.open(now)?;
            if self.would_be_too_long(bounds) {
                if self.at_end == AtEnd::Stop {
                    return Ok(false);
                }
                self.put_aside(shelf)?;
                self.open(now)?;
            }
        }
        let Some(file) = &mut self.open else { return Ok(false) };
        file.write_all(&self.pending)?;
        self.begun.get_or_insert(now.unix);
        self.size += self.pending.len() as u64;
        Ok(true)
    }

    /// When it will be too old, in seconds since the Unix epoch; `None` for never.
    pub fn due(&self, bounds: Bounds) -> Option<u64> {
        let begun = self.begun.filter(|_| bounds.age > 0)?;
        Some(begun.saturating_add(bounds.age).max(self.not_before))
    }

    /// Puts it aside if it is too old. When that fails it is tried again after an hour, and lines are written
    /// where they were.
    pub fn put_old_aside(&mut self, now: Moment, bounds: Bounds, shelf: &Shelf) -> io::Result<()> {
        if self.due(bounds).is_none_or(|due| due > now.unix) {
            return Ok(());
        }
        self.not_before = now.unix.saturating_add(TRY_AGAIN);
        self.look();
        if self.open.is_none() {
            // Moved, or closed by us: what has the name now counts.
            self.begun = None;
            if !self.path.exists() {
                return Ok(());
            }
            self.open(now)?;
        }
        let is_old = |begun: u64| begun.saturating_add(bounds.age) <= now.unix;
        if !self.begun.is_some_and(is_old) {
            self.not_before = 0;
            return Ok(());
        }
        self.put_aside(shelf)
    }

    fn would_be_too_long(&self, bounds: Bounds) -> bool {
        self.size > 0 && self.size.saturating_add(self.pending.len() as u64) > bounds.length
    }

    fn open(&mut self, now: Moment) -> io::Result<()> {
        if self.open.is_some() {
            return Ok(());
        }
        let mut options = OpenOptions::new();
        options.read(true).append(true).create(true).mode(0o640);
        let file = match (options.open(&self.path), self.path.parent()) {
            (Err(error), Some(dir)) if error.kind() == io::ErrorKind::NotFound => {
                fs::create_dir_all(dir)?;
                options.open(&self.path)?
            }
            (opened, _) => opened?,
        };
        let meta = file.metadata()?;
        // What was closed for others is as old as it was.
        let is_known = self.identity == Some(identity(&meta)) && meta.len() >= self.size;
        self.size = meta.len();
        self.identity = Some(identity(&meta));
        if self.size == 0 {
            self.begun = None;
        } else if !is_known || self.begun.is_none() {
            self.begun = first_line(&file).or(modified(&meta)).or(Some(now.unix));
        }
        self.open = Some(file);
        Ok(())
    }

    fn put_aside(&mut self, shelf: &Shelf) -> io::Result<()> {
        self.open = None;
        shelf.put_aside(&self.path).map_err(|error| {
            io::Error::new(error.kind(), format!("it is full or old and cannot be put aside: {error}"))
        })?;
        (self.begun, self.not_before) = (None, 0);
        Ok(())
    }

    /// Lets go of a file that no longer has its name, and notices that it was cut.
    fn look(&mut self) {
        let Some(file) = &self.open else { return };
        match (file.metadata(), fs::metadata(&self.path)) {
            (Ok(ours), Ok(there)) if identity(&ours) == identity(&there) => {
                if there.len() < self.size {
                    self.begun = None;
                }
                self.size = there.len();
            }
            _ => self.open = None,
        }
    }
}

/// What tells a file from every other one, whatever its name.
pub fn identity(meta: &fs::Metadata) -> (u64, u64) {
    (meta.dev(), meta.ino())
}

/// When the first line of a file was written: a copy or a restored backup is as old as what it holds.
fn first_line(mut file: &File) -> Option<u64> {
    let mut beginning = [0; 64];
    // A file opened to append is written at its end, wherever it was read.
    let octets = file.read(&mut beginning).ok()?;
    begun(&beginning[..octets])
}

fn modified(meta: &fs::Metadata) -> Option<u64> {
    meta.modified().ok()?.duration_since(UNIX_EPOCH).ok().map(|since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arc_swap::ArcSwap;
    use proximity_table::LogSettings;

    use super::*;

    const BOUNDS: Bounds = Bounds { length: 10, age: 0 };
    const DAY: u64 = 86_400;

    /// A file of at most 10 octets in a directory of its own, beside which one is kept.
    struct Case {
        file: LogFile,
        shelf: Shelf,
        bounds: Bounds,
        now: Moment,
    }

    impl Case {
        fn new(name: &str, at_end: AtEnd) -> Case {
            let dir =
                std::env::temp_dir().join(format!("proximity-access-file-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&dir);
            let settings = LogSettings { keep: 1, compress: false, ..LogSettings::default() };
            Case {
                file: LogFile::new(dir.join("a.log"), at_end),
                shelf: Shelf::new(Arc::new(ArcSwap::from_pointee(settings))),
                bounds: BOUNDS,
                now: Moment { at: Instant::now(), unix: unix_seconds() },
            }
        }

        fn pass(&mut self, seconds: u64) {
            self.now.at += Duration::from_secs(seconds);
            self.now.unix += seconds;
        }

        fn try_write(&mut self, text: &str) -> io::Result<bool> {
            self.file.pending = text.into();
            self.file.write(self.now, self.bounds, &self.shelf)
        }

        fn write(&mut self, text: &str) -> bool {
            self.try_write(text).unwrap()
        }

        fn put_old_aside(&mut self) {
            self.file.put_old_aside(self.now, self.bounds, &self.shelf).unwrap();
        }

        fn former(&self) -> PathBuf {
            self.file.path().with_file_name("a.log.1")
        }

        /// What is in the file, and in the one beside it.
        fn texts(&self) -> (String, String) {
            let read = |path: &Path| fs::read_to_string(path).unwrap_or_else(|_| "none".to_owned());
            (read(self.file.path()), read(&self.former()))
        }

        fn holds(&self, now: &str, former: &str) {
            assert_eq!(self.texts(), (now.to_owned(), former.to_owned()));
        }
    }

    impl Drop for Case {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(self.file.path().parent().unwrap());
        }
    }

    #[test]
    fn a_full_file_is_put_aside_and_begun_anew() {
        let mut case = Case::new("rotate", AtEnd::Rotate);
        assert!(case.write("111\n222\n"));
        assert!(case.write("3\n"));
        case.holds("111\n222\n3\n", "none");
        assert!(case.write("4\n"));
        case.holds("4\n", "111\n222\n3\n");
        assert!(case.write("555\n666\n777\n"));
        // Lines are not torn.
        case.holds("555\n666\n777\n", "4\n");
        assert_eq!(fs::read_dir(case.file.path().parent().unwrap()).unwrap().count(), 2);
    }

    #[test]
    fn the_length_of_a_file_that_was_there_counts() {
        let mut case = Case::new("restart", AtEnd::Rotate);
        assert!(case.write("11111111\n"));
        case.file = LogFile::new(case.file.path().to_owned(), AtEnd::Rotate);
        assert!(case.write("2\n"));
        case.holds("2\n", "11111111\n");
    }

    #[test]
    fn a_file_that_cannot_be_put_aside_grows_no_further() {
        let mut case = Case::new("stuck", AtEnd::Rotate);
        assert!(case.write("11111111\n"));
        fs::create_dir(case.former()).unwrap();
        for _ in 0..2 {
            let error = case.try_write("2\n").unwrap_err().to_string();
            assert!(error.contains("cannot be put aside"), "{error}");
        }
        assert_eq!(case.texts().0, "11111111\n");
    }

    #[test]
    fn a_file_that_stops_goes_on_when_it_is_moved_or_cut_or_old() {
        let mut case = Case::new("stop", AtEnd::Stop);
        assert!(case.write("11111111\n"));
        assert!(!case.write("2\n"));
        fs::rename(case.file.path(), case.former()).unwrap();
        case.pass(1);
        assert!(case.write("33333333\n"));
        case.holds("33333333\n", "11111111\n");
        assert!(!case.write("4\n"));
        OpenOptions::new().write(true).open(case.file.path()).unwrap().set_len(0).unwrap();
        case.pass(1);
        assert!(case.write("5555555\n"));
        case.bounds.age = DAY;
        assert!(!case.write("666\n"));
        case.pass(DAY);
        case.put_old_aside();
        assert!(case.write("666\n"));
        case.holds("666\n", "5555555\n");
    }

    #[test]
    fn a_rotation_by_somebody_else_is_not_followed_by_ours() {
        let mut case = Case::new("both", AtEnd::Rotate);
        assert!(case.write("11111111\n"));
        fs::rename(case.file.path(), case.former()).unwrap();
        assert!(case.write("22\n"));
        case.holds("22\n", "11111111\n");
    }

    #[test]
    fn an_old_file_is_put_aside_and_an_empty_one_never() {
        let mut case = Case::new("age", AtEnd::Rotate);
        case.bounds.age = DAY;
        assert_eq!(case.file.due(case.bounds), None);
        assert!(case.write("1\n"));
        let due = case.file.due(case.bounds);
        assert_eq!(due, Some(case.now.unix + DAY));
        case.pass(DAY - 1);
        assert!(case.write("2\n"));
        assert_eq!(case.file.due(case.bounds), due, "the first line counts");
        case.put_old_aside();
        case.holds("1\n2\n", "none");
        case.pass(1);
        case.put_old_aside();
        case.holds("none", "1\n2\n");
        assert_eq!(case.file.due(case.bounds), None);
        case.pass(9 * DAY);
        case.put_old_aside();
        case.holds("none", "1\n2\n");
        case.bounds.age = 0;
        assert!(case.write("3\n"));
        assert_eq!(case.file.due(case.bounds), None, "any age");
    }

    #[test]
    fn the_age_of_a_file_that_was_there_is_that_of_its_first_line() {
        let mut case = Case::new("first", AtEnd::Rotate);
        case.bounds = Bounds { length: 1000, age: DAY };
        fs::create_dir_all(case.file.path().parent().unwrap()).unwrap();
        let line = format!("{{\"level\":\"info\",\"ts\":{}.5,\n", case.now.unix - DAY + 5);
        fs::write(case.file.path(), &line).unwrap();
        assert!(case.write("2\n"));
        assert_eq!(case.texts().0, format!("{line}2\n"));
        assert_eq!(case.file.due(case.bounds), Some(case.now.unix + 5));
        // Closed in between, as one of many.
        case.file.close();
        case.pass(5);
        case.put_old_aside();
        case.holds("none", &format!("{line}2\n"));
    }

    #[test]
    fn an_old_file_that_cannot_be_put_aside_is_written_on_and_tried_again_later() {
        let mut case = Case::new("old-stuck", AtEnd::Rotate);
        case.bounds = Bounds { length: 1000, age: DAY };
        assert!(case.write("1\n"));
        fs::create_dir(case.former()).unwrap();
        case.pass(DAY);
        case.file.put_old_aside(case.now, case.bounds, &case.shelf).unwrap_err();
        assert!(case.write("2\n"));
        assert_eq!(case.texts().0, "1\n2\n");
        assert_eq!(case.file.due(case.bounds), Some(case.now.unix + TRY_AGAIN), "and not at once again");
        fs::remove_dir(case.former()).unwrap();
        case.pass(TRY_AGAIN);
        case.put_old_aside();
        case.holds("none", "1\n2\n");
    }
}
