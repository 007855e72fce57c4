//! A log whose disk neither writes nor fails: a write that does not come back, as on network storage that is gone.

use std::time::Instant;

use proximity_lab::Node;
use proximity_tests::counting_backend::CountingBackend;
use proximity_tests::{PATIENCE, Site, polling::until};
use serde_json::Value;

use crate::command_line::{done, json};

const LOGS: &str = "/var/log/proximity";
/// Lines as long as a head may well be, so that few requests make much log.
const PATH: usize = 4000;
/// Octets of lines for which there is no room in the process if nothing is dropped.
const DROPPED: u64 = 96 << 20;
/// KiB by which the process may grow while these are dropped.
const MOST_GROWTH: u64 = 24 << 10;

/// A second of load, of which nothing fails. The requests that were answered.
fn load(client: &Node, path: &str) -> u64 {
    let url = format!("http://shop.prox.local/{path}");
    let command = ["wrk", "-t1", "-c16", "-d1s", &url];
    let told = client.run(&command).unwrap_or_else(|error| panic!("{error}")).stdout;
    assert!(!told.contains("Socket errors") && !told.contains("Non-2xx"), "{told}");
    let count = told.lines().find_map(|line| line.trim().split_once(" requests in "));
    count.and_then(|(count, _)| count.parse().ok()).expect("a count")
}

fn dropped(status: &Value) -> u64 {
    status["drops"]["proxy.log_behind"].as_u64().unwrap_or(0)
}

fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its memory");
    line.trim().trim_end_matches(" kB").parse().expect("KiB")
}

/// The problem that the status names, if it names one.
fn trouble(site: &Site) -> Option<String> {
    let problems = json(site, &["status"])["problems"].as_array().cloned().expect("a list");
    problems
        .iter()
        .filter_map(Value::as_str)
        .find(|says| says.starts_with("access logs: "))
        .map(str::to_owned)
}

fn wait_for_trouble(site: &Site) -> String {
    until("the trouble", PATIENCE, || trouble(site).ok_or("no trouble"))
}

#[test]
fn a_log_disk_that_hangs_stops_neither_requests_nor_an_upgrade_nor_the_end() {
    let lab = Site::surroundings();
    // A pipe that nobody reads takes 64 KiB, and then no more.
    let log = format!("{LOGS}/shop.prox.local.log");
    lab.appliance().sh(&format!("mkdir -p {LOGS} && mkfifo {log}")).expect("a pipe");
    let mut site = Site::run_in(lab);
    site.wait_wan();
    let machine = site.probe_machine("10.20.0.5/24");
    let _backend = CountingBackend::start(&machine, 8080, "shop");
    done(&site, &["vhost", "add", "shop", "10.20.0.5:8080"]);
    let client = site.lab.client().clone();
    let first = site.appliance.process().pid();
    let path = "x".repeat(PATH);

    // Until the queue is full, and then for as much again as the process could not hold.
    let deadline = Instant::now() + 6 * PATIENCE;
    let mut answers = 0;
    let mut until_dropped = |lines: u64| loop {
        let status = json(&site, &["status"]);
        if dropped(&status) >= lines {
            return status;
        }
        assert!(Instant::now() < deadline, "{} of {lines} lines dropped: {status}", dropped(&status));
        answers += load(&client, &path);
    };
    let begun = dropped(&until_dropped(1));
    let before = resident(first);
    let status = until_dropped(begun + DROPPED / PATH as u64);
    let after = resident(first);
    println!("{answers} requests, {} lines dropped, VmRSS {before} kB, then {after} kB", dropped(&status));
    assert!(after < before + MOST_GROWTH, "from {before} to {after} kB");
    let written = status["statistics"]["access_log_lines"].as_u64().expect("a number");
    assert!(written < 64 && dropped(&status) <= answers, "{written} written: {status}");
    let says = wait_for_trouble(&site);
    for part in [LOGS, " hangs since ", "appliance.log_dir"] {
        assert!(says.contains(part), "{part}: {says}");
    }
    assert_eq!(json(&site, &["status"])["health_status"], "degraded");
    let drops = done(&site, &["status"]);
    assert!(drops.contains("proxy.log_behind") && drops.contains(&says[..20]), "{drops}");

    // Whoever is told to end, or replaced, gives up the lines that are left.
    let ended = site.appliance.terminate(PATIENCE).expect("it ends");
    assert!(ended.success(), "{ended}");
    site.start_again();
    site.wait_wan();
    load(&client, &path);
    wait_for_trouble(&site);
    done(&site, &["upgrade"]);
    let ended = site.appliance.process().wait(PATIENCE).expect("the replaced process ends");
    assert!(ended.success(), "{ended}");

    load(&client, &path);
    wait_for_trouble(&site);
    // It writes on by itself once it can.
    let written = || json(&site, &["status"])["statistics"]["access_log_lines"].as_u64().expect("a number");
    let before = written();
    let reader = site.lab.appliance().background(&["cat", &log], &site.lab.log_directory().join("lines"));
    let _reader = reader.expect("a reader");
    until("the disk that is back", PATIENCE, || match (trouble(&site), written()) {
        (None, now) if now > before => Ok(()),
        other => Err(format!("{other:?}")),
    });
    assert_eq!(json(&site, &["status"])["health_status"], "healthy");
}
