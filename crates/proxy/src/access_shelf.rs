use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use arc_swap::ArcSwap;
use flate2::Compression;
use flate2::write::GzEncoder;
use nix::fcntl::{Flock, FlockArg};
use proximity_table::LogSettings;

use crate::access_file::identity;
use crate::access_names::{put_aside, unfinished};
use crate::free_space::FreeSpace;

/// How much is compressed between two looks whether to stop.
const STEP: usize = 128 * 1024;
/// Log lines are much alike: the fastest level makes a twelfth of them, and the next ones cost twice the time
/// for little more.
const LEVEL: u32 = 1;
/// The least priority there is: compressing can wait, requests cannot.
const LEAST_PRIORITY: i32 = 19;

/// Log files that were put aside: `<name>.1`, which is the latest, to `<name>.N`, compressed one after the other
/// by a thread that runs when nobody else wants to.
#[derive(Debug)]
pub struct Shelf {
    settings: Arc<ArcSwap<LogSettings>>,
    /// Held while files change their numbers.
    renames: Mutex<()>,
    jobs: Mutex<Jobs>,
    wake: Condvar,
}

#[derive(Debug, Default)]
struct Jobs {
    /// Logs whose put-aside files are to be looked at.
    paths: BTreeSet<PathBuf>,
    stop: bool,
}

impl Shelf {
    /// An empty one. The settings may change at any time.
    pub fn new(settings: Arc<ArcSwap<LogSettings>>) -> Shelf {
        Shelf { settings, renames: Mutex::default(), jobs: Mutex::default(), wake: Condvar::new() }
    }

    /// The settings in force.
    pub fn settings(&self) -> LogSettings {
        **self.settings.load()
    }

    /// Puts a log aside, and removes the one that is too many then.
    pub fn put_aside(&self, path: &Path) -> io::Result<()> {
        let keep = self.settings().keep;
        let turn = lock(&self.renames);
        if keep == 0 {
            return fs::remove_file(path);
        }
        let is_taken = |number: &u32| both(path, *number).iter().any(|path| path.symlink_metadata().is_ok());
        let taken = (1..=keep).take_while(is_taken).count() as u32;
        for number in (1..=taken).rev() {
            for compressed in [false, true] {
                let from = put_aside(path, number, compressed);
                let done = match number {
                    number if number == keep => fs::remove_file(&from),
                    number => fs::rename(&from, put_aside(path, number + 1, compressed)),
                };
                absent_is_fine(done)?;
            }
        }
        fs::rename(path, put_aside(path, 1, false))?;
        drop(turn);
        self.tend(path.to_owned());
        Ok(())
    }

    /// Has the put-aside files of a log compressed, and those removed that are too many.
    pub fn tend(&self, path: PathBuf) {
        lock(&self.jobs).paths.insert(path);
        self.wake.notify_one();
    }

    /// Ends [`Shelf::run`] soon. What is not compressed then is when the log is next written to.
    pub fn stop(&self) {
        lock(&self.jobs).stop = true;
        self.wake.notify_one();
    }

    /// Does what is to be done until it is stopped. `tell` gets a sentence when something begins to fail.
    pub fn run(&self, mut space: FreeSpace, tell: impl Fn(&str)) {
        // Refused where an administrator forbids it, and then it runs like everybody else.
        let _ = rustix::process::setpriority_process(None, LEAST_PRIORITY);
        let mut is_failing = false;
        while let Some(path) = self.next() {
            match self.work(&path, &mut space) {
                Ok(()) => is_failing = false,
                Err(error) => {
                    if !std::mem::replace(&mut is_failing, true) {
                        let path = path.display();
                        tell(&format!(
                            "cannot compress what was put aside of {path}: {error}; it stays as it is"
                        ));
                    }
                }
            }
        }
    }

    fn next(&self) -> Option<PathBuf> {
        let mut jobs = lock(&self.jobs);
        loop {
            if jobs.stop {
                return None;
            }
            match jobs.paths.pop_first() {
                Some(path) => return Some(path),
                None => jobs = self.wake.wait(jobs).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    fn work(&self, path: &Path, space: &mut FreeSpace) -> io::Result<()> {
        let settings = self.settings();
        self.remove_surplus(path, settings.keep)?;
        if !settings.compress {
            return Ok(());
        }
        // The oldest first: what is left when this is cut short are the lowest numbers, so that a look at `.1`
        // tells whether there is anything to do.
        for number in (1..=settings.keep).rev() {
            let from = put_aside(path, number, false);
            if from.symlink_metadata().is_ok_and(|meta| meta.is_file()) {
                let to = unfinished(path);
                let Some(output) = open_alone(&to)? else { return Ok(()) };
                let done = self.compress(path, &from, &to, output, space);
                if !matches!(done, Ok(true)) {
                    absent_is_fine(fs::remove_file(&to))?;
                }
                done?;
            }
        }
        Ok(())
    }

    /// Numbers have no gaps, so the first one that is not there is the end.
    fn remove_surplus(&self, path: &Path, keep: u32) -> io::Result<()> {
        let _turn = lock(&self.renames);
        for number in keep.saturating_add(1)..=u32::MAX {
            let mut there = false;
            for path in both(path, number) {
                there |= absent_is_fine(fs::remove_file(path))?;
            }
            if !there {
                break;
            }
        }
        Ok(())
    }

    /// Compresses a file; false when it was given up because we stop, the disk is nearly full, or the file went
    /// meanwhile.
    fn compress(
        &self,
        path: &Path,
        from: &Path,
        to: &Path,
        output: Flock<File>,
        space: &mut FreeSpace,
    ) -> io::Result<bool> {
        let mut input = File::open(from)?;
        let meta = input.metadata()?;
        let mut encoder = GzEncoder::new(Locked(output), Compression::new(LEVEL));
        let mut step = vec![0; STEP];
        loop {
            let octets = input.read(&mut step)?;
            if octets == 0 {
                break;
            }
            if lock(&self.jobs).stop || !space.take(octets / 8, Instant::now()) {
                return Ok(false);
            }
            encoder.write_all(&step[..octets])?;
        }
        // Locked until it has its last name.
        let Locked(output) = encoder.finish()?;
        output.set_modified(meta.modified()?)?;
        // After a power cut there may be the one or the other or both, but not only half of it.
        output.sync_data()?;
        let _turn = lock(&self.renames);
        // It may have been put further back meanwhile, or out.
        let is_ours = |there: fs::Metadata| identity(&there) == identity(&meta);
        let now = (1..=self.settings().keep)
            .find(|&number| put_aside(path, number, false).symlink_metadata().is_ok_and(is_ours));
        let Some(number) = now else { return Ok(false) };
        fs::rename(to, put_aside(path, number, true))?;
        fs::remove_file(put_aside(path, number, false))?;
        Ok(true)
    }
}

/// A file that is written and locked.
struct Locked(Flock<File>);

impl Write for Locked {
    fn write(&mut self, octets: &[u8]) -> io::Result<usize> {
        self.0.write(octets)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Opens an empty file that nobody else writes; `None` when somebody does: while a binary is upgraded two
/// processes look after the same logs.
fn open_alone(path: &Path) -> io::Result<Option<Flock<File>>> {
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o640).open(path)?;
    let Ok(file) = Flock::lock(file, FlockArg::LockExclusiveNonblock) else { return Ok(None) };
    // It may have been finished, and have got another name, between the one and the other.
    let (ours, there) = (file.metadata()?, path.metadata());
    if !there.is_ok_and(|there| identity(&there) == identity(&ours)) {
        return Ok(None);
    }
    file.set_len(0)?;
    Ok(Some(file))
}

/// Whether it was done; that nothing was there is no error.
fn absent_is_fine(done: io::Result<()>) -> io::Result<bool> {
    match done {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn both(path: &Path, number: u32) -> [PathBuf; 2] {
    [false, true].map(|compressed| put_aside(path, number, compressed))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use flate2::read::GzDecoder;

    use super::*;
    use crate::free_space::Keep;

    const NOTHING: Keep = Keep { percent: 0, least: 0, most: 0 };
    const ALL_OF_IT: Keep = Keep { percent: 0, least: u64::MAX, most: u64::MAX };

    /// A shelf, a log `a.log` in a directory of its own, and room to compress it.
    struct Case {
        shelf: Shelf,
        path: PathBuf,
        space: FreeSpace,
    }

    impl Case {
        fn new(name: &str, keep: u32, compress: bool) -> Case {
            let dir = std::env::temp_dir().join(format!("proximity-shelf-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&dir);
            fs::create_dir(&dir).unwrap();
            let settings = LogSettings { keep, compress, ..LogSettings::default() };
            let space = FreeSpace::new(dir.clone(), NOTHING);
            let shelf = Shelf::new(Arc::new(ArcSwap::from_pointee(settings)));
            Case { shelf, path: dir.join("a.log"), space }
        }

        fn put_aside(&self, text: &str) {
            fs::write(&self.path, text).unwrap();
            self.shelf.put_aside(&self.path).unwrap();
        }

        fn work(&mut self) {
            while lock(&self.shelf.jobs).paths.pop_first().is_some() {
                self.shelf.work(&self.path, &mut self.space).unwrap();
            }
        }

        fn compress(&mut self, from: &Path, to: &Path) -> bool {
            let output = open_alone(to).unwrap().unwrap();
            self.shelf.compress(&self.path, from, to, output, &mut self.space).unwrap()
        }

        /// Every file there is, without the `a.log` that all begin with, and what it holds.
        fn files(&self) -> Vec<(String, String)> {
            let entries = fs::read_dir(self.path.parent().unwrap()).unwrap().map(|entry| entry.unwrap());
            let mut files: Vec<_> = entries
                .map(|entry| {
                    let name = entry.file_name().into_string().unwrap();
                    let mut text = String::new();
                    let file = File::open(entry.path()).unwrap();
                    match name.ends_with(".gz") {
                        true => GzDecoder::new(file).read_to_string(&mut text).unwrap(),
                        false => { file }.read_to_string(&mut text).unwrap(),
                    };
                    (name.strip_prefix("a.log").unwrap().to_owned(), text)
                })
                .collect();
            files.sort();
            files
        }

        fn holds(&self, expected: &[(&str, &str)]) {
            let files = self.files();
            let files: Vec<(&str, &str)> = files.iter().map(|(name, text)| (&**name, &**text)).collect();
            assert_eq!(files, expected);
        }
    }

    impl Drop for Case {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(self.path.parent().unwrap());
        }
    }

    #[test]
    fn so_many_are_kept_and_the_oldest_goes() {
        let mut case = Case::new("keep", 3, true);
        for text in ["one", "two", "three", "four"] {
            case.put_aside(text);
            case.work();
        }
        case.holds(&[(".1.gz", "four"), (".2.gz", "three"), (".3.gz", "two")]);
        let mode = fs::metadata(put_aside(&case.path, 1, true)).unwrap().mode();
        assert_eq!(mode & 0o777 & !0o640, 0, "others may not read it");
        // Fewer from now on.
        case.shelf.settings.store(Arc::new(LogSettings { keep: 1, ..case.shelf.settings() }));
        case.shelf.tend(case.path.clone());
        case.work();
        case.holds(&[(".1.gz", "four")]);
        case.shelf.settings.store(Arc::new(LogSettings { keep: 0, ..case.shelf.settings() }));
        case.put_aside("five");
        case.shelf.tend(case.path.clone());
        case.work();
        case.holds(&[]);
    }

    #[test]
    fn they_stay_as_they_are_where_nobody_wants_them_compressed() {
        let mut case = Case::new("plain", 2, false);
        for text in ["one", "two", "three"] {
            case.put_aside(text);
            case.work();
        }
        case.holds(&[(".1", "three"), (".2", "two")]);
        // Whoever changes his mind gets those compressed that are there.
        case.shelf.settings.store(Arc::new(LogSettings { compress: true, ..case.shelf.settings() }));
        case.shelf.tend(case.path.clone());
        case.work();
        case.holds(&[(".1.gz", "three"), (".2.gz", "two")]);
    }

    #[test]
    fn whoever_is_behind_compresses_all_of_them_later() {
        let mut case = Case::new("behind", 5, true);
        // As left by a process that ended in the middle.
        fs::write(unfinished(&case.path), "half").unwrap();
        for text in ["one", "two", "three"] {
            case.put_aside(text);
        }
        case.work();
        case.holds(&[(".1.gz", "three"), (".2.gz", "two"), (".3.gz", "one")]);
    }

    #[test]
    fn a_file_that_moves_on_while_it_is_compressed_is_found_again() {
        let mut case = Case::new("moves", 2, true);
        case.put_aside("one");
        let (from, to) = (put_aside(&case.path, 1, false), unfinished(&case.path));
        let input = fs::metadata(&from).unwrap();
        case.put_aside("two");
        let moved = put_aside(&case.path, 2, false);
        assert_eq!(fs::metadata(&moved).unwrap().ino(), input.ino());
        // Opened under its old number: what counts is where it is when it is done.
        fs::hard_link(&moved, case.path.with_file_name("a.log.old")).unwrap();
        let opened = case.path.with_file_name("a.log.old");
        assert!(case.compress(&opened, &to));
        fs::remove_file(&opened).unwrap();
        case.holds(&[(".1", "two"), (".2.gz", "one")]);
        // And one that was put out meanwhile is not brought back.
        fs::hard_link(&from, &opened).unwrap();
        fs::remove_file(&from).unwrap();
        assert!(!case.compress(&opened, &to));
    }

    #[test]
    fn what_another_process_compresses_is_left_to_it() {
        let mut case = Case::new("two", 2, true);
        case.put_aside("one");
        let theirs = open_alone(&unfinished(&case.path)).unwrap().unwrap();
        theirs.set_len(7).unwrap();
        case.work();
        assert_eq!(fs::metadata(unfinished(&case.path)).unwrap().len(), 7, "it is not even cut");
        drop(theirs);
        case.shelf.tend(case.path.clone());
        case.work();
        case.holds(&[(".1.gz", "one")]);
    }

    #[test]
    fn without_room_or_when_it_stops_nothing_is_lost() {
        let mut case = Case::new("room", 2, true);
        case.put_aside(&"one\n".repeat(1000));
        case.space = FreeSpace::new(case.path.parent().unwrap().to_owned(), ALL_OF_IT);
        case.work();
        case.holds(&[(".1", &"one\n".repeat(1000))]);
        case.space = FreeSpace::new(case.path.parent().unwrap().to_owned(), NOTHING);
        case.shelf.stop();
        case.shelf.tend(case.path.clone());
        case.work();
        case.holds(&[(".1", &"one\n".repeat(1000))]);
        lock(&case.shelf.jobs).stop = false;
        case.shelf.tend(case.path.clone());
        case.work();
        case.holds(&[(".1.gz", &"one\n".repeat(1000))]);
    }
}
