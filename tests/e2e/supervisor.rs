//! As the first process of a container.

use std::fs;
use std::time::Instant;

use proximity_lab::{Node, Process};
use proximity_tests::admin_api::AdminApi;
use proximity_tests::appliance_binary::appliance_binary;
use proximity_tests::{PATIENCE, Site, polling::until};
use serde_json::Value;

/// The children of a process, as the lab sees them.
fn children(pid: u32) -> Vec<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

fn kilobytes(pid: u32, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix(field)).expect(field);
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

struct Container {
    process: Process,
    api: AdminApi,
}

impl Container {
    fn start(node: &Node, log: &std::path::Path) -> Container {
        let binary = appliance_binary();
        let command = [
            "unshare",
            "--pid",
            "--fork",
            "--mount-proc",
            "--kill-child",
            binary.to_str().expect("UTF-8"),
            "run",
        ];
        let process = node.background(&command, log).expect("it starts");
        Container { process, api: AdminApi::new(node.path("/run/proximity/admin.sock")) }
    }

    fn status(&self) -> Value {
        until("it answers", PATIENCE, || {
            let answer = self.api.try_call("GET", "/status", None);
            answer.map(|answer| answer.expect(200)).map_err(|error| error.to_string())
        })
    }

    /// The first process.
    fn first(&self) -> u32 {
        until("the first process", PATIENCE, || match children(self.process.pid())[..] {
            [first] => Ok(first),
            ref others => Err(format!("{others:?}")),
        })
    }

    /// The processes below it.
    fn workers(&self) -> Vec<u32> {
        children(self.first())
    }

    /// Waits until exactly one other process than these is below the first.
    fn another(&self, than: &[u32]) -> u32 {
        until("another process", PATIENCE, || match self.workers()[..] {
            [one] if !than.contains(&one) => Ok(one),
            ref others => Err(format!("{others:?}")),
        })
    }
}

#[test]
fn the_first_process_outlives_upgrades_and_crashes() {
    let lab = Site::surroundings();
    let log = lab.log_directory().join("container.log");
    let began = Instant::now();
    let mut container = Container::start(lab.appliance(), &log);
    let ready = container.status();
    println!("ready {:?} after the start, {} ms by its own clock", began.elapsed(), ready["ready_after_ms"]);
    let (first, worker) = (container.first(), container.another(&[]));
    println!(
        "supervisor: VmRSS {} kB, RssAnon {} kB",
        kilobytes(first, "VmRSS:"),
        kilobytes(first, "RssAnon:")
    );
    assert!(kilobytes(first, "RssAnon:") < 8 * 1024);

    let upgraded = container.api.call("POST", "/upgrade", None).expect(200);
    assert_eq!(upgraded["old_pid"].as_u64().map(|pid| pid > 1), Some(true), "{upgraded}");
    let second = container.another(&[worker]);
    assert_eq!(container.first(), first, "the first process is the same");
    let arguments = fs::read_to_string(format!("/proc/{first}/cmdline")).expect("it runs");
    assert!(arguments.contains("--supervising"), "the supervisor runs the new binary, too: {arguments}");
    assert_eq!(container.status()["draining_processes"], serde_json::json!([]));

    // One that was started by another process is noticed when it crashes, like one that was not.
    for victim in [second, 0] {
        let victim = if victim == 0 { container.another(&[second]) } else { victim };
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(victim as i32), nix::sys::signal::Signal::SIGKILL)
            .expect("killed");
        container.another(&[victim]);
        until("it serves again", PATIENCE, || match container.api.try_call("GET", "/status", None) {
            Ok(answer) if answer.status == 200 => Ok(()),
            other => Err(format!("{other:?}")),
        });
    }
    container.api.call("POST", "/upgrade", None).expect(200);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(first as i32), nix::sys::signal::Signal::SIGPWR)
        .expect("halted");
    let ended = container.process.wait(PATIENCE).expect("it ends");
    assert!(ended.success(), "{ended}: {}", container.process.log());
    let mut nft = lab.appliance().enter(proximity_net::Nft::open).expect("entered").expect("nftables");
    assert!(nft.leased("proximity").is_err(), "the firewall went with it");
}

#[test]
fn a_mistake_in_the_configuration_ends_the_container() {
    let lab = Site::surroundings();
    lab.appliance().write("/etc/proximity/proximity.toml", "[dns]\nbogus = 1\n").expect("written");
    let log = lab.log_directory().join("container.log");
    let mut container = Container::start(lab.appliance(), &log);
    let ended = container.process.wait(PATIENCE).expect("it ends");
    assert_eq!(ended.code(), Some(1), "{}", container.process.log());
    assert!(container.process.log().contains("bogus"), "{}", container.process.log());
}
