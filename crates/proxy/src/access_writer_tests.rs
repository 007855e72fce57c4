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
    let mut writer = writer("disk", ALL_OF_IT, |trouble: &str| told.borrow_mut().push(trouble.to_owned()));
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
