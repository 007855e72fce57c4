use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How often a file is compared with its name, to notice that it was moved by a log rotation.
pub const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// What becomes of a file that is as long as it may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtEnd {
    /// It is renamed to `<name>.1`, in place of the one before, and begun anew.
    Rotate,
    /// It takes nothing more until it is moved away.
    Stop,
}

/// A log file and the lines that wait to be written to it.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    at_end: AtEnd,
    /// Octets that the file may have.
    longest: u64,
    open: Option<File>,
    size: u64,
    looked: Option<Instant>,
    /// Whole lines.
    pub pending: Vec<u8>,
    /// How many they are.
    pub pending_lines: u64,
    /// The turn in which lines came last.
    pub used: u64,
}

impl LogFile {
    /// The file `path`, which is opened when something is written.
    pub fn new(path: PathBuf, longest: u64, at_end: AtEnd) -> LogFile {
        LogFile {
            path,
            at_end,
            longest,
            open: None,
            size: 0,
            looked: None,
            pending: Vec::new(),
            pending_lines: 0,
            used: 0,
        }
    }

    /// Its present name.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Closes it until the next write.
    pub fn close(&mut self) {
        self.open = None;
    }

    /// Writes what is pending; false when the file has reached its end.
    pub fn write(&mut self, now: Instant) -> io::Result<bool> {
        if self.looked.is_none_or(|looked| now.duration_since(looked) >= LOOK_AGAIN) {
            self.looked = Some(now);
            self.look();
        }
        self.open()?;
        if self.would_be_too_long() {
            if self.at_end == AtEnd::Stop {
                return Ok(false);
            }
            // Somebody else's rotation may have come first; the file it left must not be lost to a second one.
            self.look();
            self.open()?;
            if self.would_be_too_long() {
                self.rotate()?;
                self.open()?;
            }
        }
        let Some(file) = &mut self.open else { return Ok(false) };
        file.write_all(&self.pending)?;
        self.size += self.pending.len() as u64;
        Ok(true)
    }

    fn would_be_too_long(&self) -> bool {
        self.size > 0 && self.size.saturating_add(self.pending.len() as u64) > self.longest
    }

    fn open(&mut self) -> io::Result<()> {
        if self.open.is_none() {
            if let Some(dir) = self.path.parent() {
                fs::create_dir_all(dir)?;
            }
            let file = OpenOptions::new().append(true).create(true).mode(0o640).open(&self.path)?;
            self.size = file.metadata()?.len();
            self.open = Some(file);
        }
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        let mut former = OsString::from(&self.path);
        former.push(".1");
        self.open = None;
        fs::rename(&self.path, &former).map_err(|error| {
            io::Error::new(error.kind(), format!("it is full and cannot be renamed to *.1: {error}"))
        })
    }

    /// Lets go of a file that no longer has its name, and notices that it was cut.
    fn look(&mut self) {
        let identity = |meta: &fs::Metadata| (meta.dev(), meta.ino());
        let Some(file) = &self.open else { return };
        match (file.metadata(), fs::metadata(&self.path)) {
            (Ok(ours), Ok(there)) if identity(&ours) == identity(&there) => self.size = there.len(),
            _ => self.open = None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of at most 10 octets in a directory of its own.
    fn log_file(name: &str, at_end: AtEnd) -> LogFile {
        let dir = std::env::temp_dir().join(format!("proximity-access-file-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        LogFile::new(dir.join("a.log"), 10, at_end)
    }

    fn write(file: &mut LogFile, text: &str, now: Instant) -> bool {
        file.pending = text.into();
        file.write(now).unwrap()
    }

    fn texts(file: &LogFile) -> [Option<String>; 2] {
        ["a.log", "a.log.1"].map(|name| fs::read_to_string(file.path().with_file_name(name)).ok())
    }

    fn remove(file: &LogFile) {
        fs::remove_dir_all(file.path().parent().unwrap()).unwrap();
    }

    #[test]
    fn a_full_file_is_renamed_and_begun_anew_so_that_two_are_all() {
        let mut file = log_file("rotate", AtEnd::Rotate);
        let now = Instant::now();
        assert!(write(&mut file, "111\n222\n", now));
        assert!(write(&mut file, "3\n", now));
        assert_eq!(texts(&file), [Some("111\n222\n3\n".into()), None], "ten octets fit");
        assert!(write(&mut file, "4\n", now));
        assert_eq!(texts(&file), [Some("4\n".into()), Some("111\n222\n3\n".into())]);
        assert!(write(&mut file, "555\n666\n777\n", now));
        assert_eq!(texts(&file), [Some("555\n666\n777\n".into()), Some("4\n".into())], "lines are not torn");
        let mut files = fs::read_dir(file.path().parent().unwrap()).unwrap();
        assert!(files.by_ref().take(2).all(|entry| entry.is_ok()) && files.next().is_none());
        remove(&file);
    }

    #[test]
    fn the_length_of_a_file_that_was_there_counts() {
        let mut file = log_file("restart", AtEnd::Rotate);
        assert!(write(&mut file, "11111111\n", Instant::now()));
        let mut again = LogFile::new(file.path().to_owned(), 10, AtEnd::Rotate);
        assert!(write(&mut again, "2\n", Instant::now()));
        assert_eq!(texts(&file), [Some("2\n".into()), Some("11111111\n".into())]);
        remove(&file);
    }

    #[test]
    fn a_file_that_cannot_be_renamed_grows_no_further() {
        let mut file = log_file("stuck", AtEnd::Rotate);
        let now = Instant::now();
        assert!(write(&mut file, "11111111\n", now));
        fs::create_dir(file.path().with_file_name("a.log.1")).unwrap();
        file.pending = "2\n".into();
        for _ in 0..2 {
            let error = file.write(now).unwrap_err().to_string();
            assert!(error.contains("cannot be renamed"), "{error}");
        }
        assert_eq!(texts(&file)[0].as_deref(), Some("11111111\n"));
        remove(&file);
    }

    #[test]
    fn a_file_that_stops_goes_on_when_it_is_moved_or_cut() {
        let mut file = log_file("stop", AtEnd::Stop);
        let start = Instant::now();
        assert!(write(&mut file, "11111111\n", start));
        assert!(!write(&mut file, "2\n", start));
        fs::rename(file.path(), file.path().with_file_name("a.log.1")).unwrap();
        assert!(write(&mut file, "33333333\n", start + LOOK_AGAIN));
        assert_eq!(texts(&file), [Some("33333333\n".into()), Some("11111111\n".into())]);
        assert!(!write(&mut file, "4\n", start + LOOK_AGAIN));
        OpenOptions::new().write(true).open(file.path()).unwrap().set_len(0).unwrap();
        assert!(write(&mut file, "5\n", start + 2 * LOOK_AGAIN));
        assert_eq!(texts(&file)[0].as_deref(), Some("5\n"));
        remove(&file);
    }

    #[test]
    fn a_rotation_by_somebody_else_is_not_followed_by_ours() {
        let mut file = log_file("both", AtEnd::Rotate);
        let now = Instant::now();
        assert!(write(&mut file, "11111111\n", now));
        fs::rename(file.path(), file.path().with_file_name("a.log.1")).unwrap();
        assert!(write(&mut file, "22\n", now));
        assert_eq!(texts(&file), [Some("22\n".into()), Some("11111111\n".into())]);
        remove(&file);
    }
}
