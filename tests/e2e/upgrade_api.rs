//! The admin API while another binary takes over: everybody is answered, and nothing is done twice or left undone.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use proximity_tests::http_exchange::header;
use proximity_tests::{PATIENCE, Site, polling::until};
use serde_json::json;

fn upgrade(site: &Site) {
    let output = site.cli(&["upgrade"]);
    assert!(output.status.success(), "{output:?}");
}

/// A connection that asks again and again.
struct Kept(BufReader<UnixStream>);

impl Kept {
    fn open(site: &Site) -> Kept {
        let stream = UnixStream::connect(site.appliance.admin_socket()).expect("connected");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        Kept(BufReader::new(stream))
    }

    /// Asks; whether the answer says that it is the last one here.
    fn is_last(&mut self, line: &str) -> io::Result<bool> {
        write!(self.0.get_mut(), "{line} HTTP/1.1\r\nHost: here\r\n\r\n")?;
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if self.0.read_line(&mut head)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        let length = header(&head, "content-length").and_then(|text| text.parse().ok());
        let mut body = vec![0; length.ok_or(io::ErrorKind::InvalidData)?];
        self.0.read_exact(&mut body)?;
        assert!(head.starts_with("HTTP/1.1 200 ") && body == b"ok\n", "{head}");
        Ok(header(&head, "connection").is_some_and(|value| value == "close"))
    }
}

/// Whoever changes something while another binary takes over has it changed, or is told that it was not and when to ask
/// again; nobody is left without an answer.
#[test]
fn no_change_is_lost_or_left_open_by_upgrades() {
    let site = Site::start("");
    site.wait_wan();
    let over = AtomicBool::new(false);
    let (answered, refused, commands) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    let lasts = AtomicUsize::new(0);
    let until_over = |work: &(dyn Fn(usize) + Sync)| {
        let mut turn = 0;
        while !over.load(Ordering::Relaxed) {
            work(turn);
            turn += 1;
        }
    };
    thread::scope(|scope| {
        scope.spawn(|| {
            until_over(&|turn| {
                let record = json!({"name": "edit", "type": "TXT", "value": format!("turn {turn}")});
                // One request each: what was taken is answered.
                let answer = site.api().try_call("POST", "/dns/records", Some(record)).expect("an answer");
                match answer.status {
                    201 => {
                        answered.fetch_add(1, Ordering::Relaxed);
                        let removed = site.api().try_call("DELETE", "/dns/records/edit/TXT", None);
                        let status = removed.expect("an answer").status;
                        assert!([204, 503].contains(&status), "{status}");
                    }
                    503 => {
                        assert_eq!(answer.header("retry-after"), Some("1"), "{answer:?}");
                        refused.fetch_add(1, Ordering::Relaxed);
                    }
                    _ => panic!("{answer:?}"),
                }
            })
        });
        scope.spawn(|| {
            until_over(&|turn| {
                let output = site.cli(&["dns", "add", &format!("cli-{turn}"), "TXT", "here"]);
                assert!(output.status.success(), "{output:?}");
                commands.fetch_add(1, Ordering::Relaxed);
            })
        });
        scope.spawn(|| {
            let kept = Mutex::new(Kept::open(&site));
            until_over(&|_| {
                let mut kept = kept.lock().expect("one at a time");
                if kept.is_last("GET /healthz").expect("an answer on a connection that is open") {
                    lasts.fetch_add(1, Ordering::Relaxed);
                    *kept = Kept::open(&site);
                }
            })
        });
        for _ in 0..4 {
            let before = (answered.load(Ordering::Relaxed), commands.load(Ordering::Relaxed));
            until("changes go on", PATIENCE, || {
                let now = (answered.load(Ordering::Relaxed), commands.load(Ordering::Relaxed));
                if now.0 > before.0 + 5 && now.1 > before.1 + 2 { Ok(()) } else { Err(format!("{now:?}")) }
            });
            upgrade(&site);
        }
        over.store(true, Ordering::Relaxed);
    });
    assert_eq!(lasts.load(Ordering::Relaxed), 4, "each process has told the last answer from the others");
    let commands = commands.load(Ordering::Relaxed);
    println!(
        "{} changes, {} refused, {commands} by command",
        answered.load(Ordering::Relaxed),
        refused.load(Ordering::Relaxed)
    );
    let records = site.api().items("/dns/records");
    for turn in 0..commands {
        let name = format!("cli-{turn}.prox.local");
        assert!(records.iter().any(|record| record["name"] == name), "{name} is lost");
    }
}
