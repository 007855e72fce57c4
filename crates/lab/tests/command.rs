//! The `proximity-lab` program, as people and the Makefile call it.
//!
//! Run as `proximity-lab enter -- cargo test -p proximity-lab`.

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    net::TcpListener,
    os::unix::process::ExitStatusExt,
    path::Path,
    process::{Child, ChildStdout, Command, Output, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use proximity_lab::enter;

fn program() -> Command {
    enter::require_inside();
    Command::new(env!("CARGO_BIN_EXE_proximity-lab"))
}

fn output(arguments: &[&str]) -> Output {
    program().args(arguments).stdin(Stdio::null()).output().expect("it runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(child.id().cast_signed()), signal).expect("signalled");
}

/// Processes on this machine whose command line contains `marker`.
fn processes_with(marker: &str) -> Vec<String> {
    let entries = fs::read_dir("/proc").expect("/proc").flatten();
    entries
        .filter_map(|entry| fs::read(entry.path().join("cmdline")).ok())
        .map(|line| text(&line).replace('\0', " "))
        .filter(|line| line.contains(marker))
        .collect()
}

#[test]
fn enter_hands_on_exit_codes() {
    assert_eq!(output(&["enter", "--", "sh", "-c", "exit 42"]).status.code(), Some(42));
    assert_eq!(output(&["enter", "--", "true"]).status.code(), Some(0));
    assert_eq!(output(&["enter", "--", "sh", "-c", "kill -KILL $$"]).status.code(), Some(137));
    let missing = output(&["enter", "--", "no-such-program"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(text(&missing.stderr).contains("no-such-program"), "{}", text(&missing.stderr));
}

#[test]
fn enter_gives_an_empty_network_with_a_loopback() {
    let script = "readlink /proc/self/ns/net; cat /sys/class/net/lo/operstate; ls /sys/class/net | wc -l; \
                  ping -c1 -W1 127.0.0.1 >/dev/null && echo alive";
    let inside = text(&output(&["enter", "--", "sh", "-c", script]).stdout);
    let outside = fs::read_link("/proc/self/ns/net").expect("a link");
    let lines: Vec<_> = inside.lines().collect();
    assert_ne!(lines[0], outside.to_string_lossy());
    assert_eq!(lines[1..], ["unknown", "1", "alive"]);
}

#[test]
fn interrupted_enter_leaves_no_process() {
    for (which, code) in [(Signal::SIGTERM, Some(143)), (Signal::SIGINT, Some(130)), (Signal::SIGKILL, None)]
    {
        let marker =
            format!("9{}", which as i32 * 100_000 + i32::try_from(std::process::id()).expect("small"));
        let script = format!("sleep {marker} & setsid sleep {marker} & echo started; wait");
        let mut child = program()
            .args(["enter", "--", "sh", "-c", &script])
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts");
        let mut stdout = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut line = String::new();
        stdout.read_line(&mut line).expect("a line");
        assert_eq!(line, "started\n");
        assert!(!processes_with(&marker).is_empty());

        signal(&child, which);
        // The pipe closes when the last process that holds it has ended.
        stdout.read_to_string(&mut line).expect("the end");
        let status = child.wait().expect("its end");
        assert_eq!(status.code(), code, "{which}: {status:?}");
        assert_eq!(status.signal().is_some(), code.is_none());
        let left = processes_with(&format!("sleep {marker}"));
        assert!(left.iter().all(|line| line.starts_with("sh ")), "{which}: {left:?}");
    }
}

#[test]
fn deps_are_names_for_apt() {
    let all = text(&output(&["deps"]).stdout);
    for package in ["dnsmasq-base", "udhcpc", "isc-dhcp-client", "dhcpcd-base", "nginx-light", "busybox"] {
        assert!(all.split_whitespace().any(|word| word == package), "{package} is not in {all}");
    }
    assert_eq!(text(&output(&["deps", "--missing"]).stdout).trim(), "");
}

#[test]
fn up_without_a_binary_says_how_to_get_one() {
    let answer = output(&["up", "--bin", "/nowhere/proximity"]);
    assert_eq!(answer.status.code(), Some(1));
    let message = text(&answer.stderr);
    assert!(message.contains("/nowhere/proximity") && message.contains("cargo build"), "{message}");
}

#[test]
fn up_with_an_appliance_that_dies_shows_its_log() {
    let broken = std::env::temp_dir().join(format!("proximity-lab-broken-{}.sh", std::process::id()));
    fs::write(&broken, "#!/bin/sh\necho \"line 3: no such key\"\nexit 1\n").expect("written");
    let status = Command::new("chmod").args(["755"]).arg(&broken).status().expect("chmod");
    assert!(status.success());
    let (ui, proxy) = (free_port(), free_port());
    let answer =
        output(&["up", "--bin", &broken.to_string_lossy(), "--ui-port", &ui, "--proxy-port", &proxy]);
    fs::remove_file(broken).expect("removed");
    assert_eq!(answer.status.code(), Some(1));
    let message = text(&answer.stderr);
    assert!(message.contains("line 3: no such key"), "{message}");
}

/// A running `up`, killed at the end of the test.
struct Up {
    child: Child,
    stdout: BufReader<ChildStdout>,
    said: String,
}

impl Up {
    fn start(ui_port: &str, proxy_port: &str, apps: &str) -> Self {
        let appliance = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/stock/appliance.sh");
        let mut child = program()
            .args(["up", "--ui-port", ui_port, "--proxy-port", proxy_port, "--apps", apps, "--bin"])
            .arg(appliance)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts");
        let stdout = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut up = Self { child, stdout, said: String::new() };
        while !up.said.contains("Ctrl-C ends the lab") {
            assert_ne!(up.stdout.read_line(&mut up.said).expect("a line"), 0, "it ended: {}", up.said);
        }
        up
    }

    fn id(&self) -> &str {
        let rest = self.said.split("Starting lab ").nth(1).expect("an id");
        rest.split(' ').next().expect("an id")
    }

    fn exec(&self, node: &str, command: &[&str]) -> Output {
        output(&[&["exec", "--lab", self.id(), node, "--"], command].concat())
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port that was free a moment ago; `up` takes the next one if it no longer is.
fn free_port() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").port().to_string()
}

fn port_after<'a>(said: &'a str, label: &str) -> &'a str {
    let rest = said.split(label).nth(1).expect("the label");
    let rest = rest.split("127.0.0.1:").nth(1).expect("a URL");
    rest.split('/').next().expect("a port")
}

fn curl(arguments: &[&str]) -> String {
    let output =
        Command::new("curl").args(["-sS", "--max-time", "5"]).args(arguments).output().expect("curl");
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

#[test]
fn up_shows_ui_and_apps_on_this_machine_and_goes_without_a_trace() {
    let holder = TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = holder.local_addr().expect("an address").port();
    let mut up = Up::start(&taken.to_string(), &free_port(), "3");
    assert!(up.said.contains(&format!("Port {taken} is taken")), "{}", up.said);
    for app in ["nginx-01", "wiki", "blog"] {
        assert!(up.said.contains(&format!("http://{app}.prox.local/")), "{}", up.said);
    }

    let (ui, proxy) = (port_after(&up.said, "admin API  "), port_after(&up.said, "reverse proxy"));
    assert_eq!(curl(&[&format!("http://127.0.0.1:{ui}/")]), "stock user interface\n");
    for app in ["nginx-01", "wiki", "blog"] {
        let host = format!("Host: {app}.prox.local");
        assert_eq!(
            curl(&["-H", &host, &format!("http://127.0.0.1:{proxy}/")]),
            format!("hello from {app}\n")
        );
    }

    let page = up.exec("client", &["curl", "-s", "http://wiki.prox.local/"]);
    assert_eq!(text(&page.stdout), "hello from wiki\n", "{}", text(&page.stderr));
    let internet = up.exec("blog", &["curl", "-s", "http://www.example.com/"]);
    assert_eq!(text(&internet.stdout), "hello from the internet\n");
    assert_eq!(up.exec("wiki", &["sh", "-c", "exit 9"]).status.code(), Some(9));
    let unknown = text(&up.exec("nobody", &["true"]).stderr);
    assert!(unknown.contains("no node nobody") && unknown.contains("nginx-01"), "{unknown}");
    let id = up.id().to_owned();
    let listed = text(&output(&["ls"]).stdout);
    assert!(listed.lines().any(|line| line.starts_with(&format!("{id}  host router"))), "{listed}");

    signal(&up.child, Signal::SIGINT);
    up.stdout.read_to_string(&mut up.said).expect("the end");
    assert_eq!(up.child.wait().expect("its end").code(), Some(0));
    assert!(up.said.contains(&format!("Lab {id} is gone")), "{}", up.said);
    assert!(!text(&output(&["ls"]).stdout).contains(&id));
    let directory = format!("lab-{id}");
    assert_eq!(processes_with(&directory), Vec::<String>::new());
}

#[test]
fn two_labs_run_side_by_side_and_exec_asks_which() {
    let (one, two) = (Up::start(&free_port(), &free_port(), "0"), Up::start(&free_port(), &free_port(), "0"));
    assert_ne!(one.id(), two.id());
    let answer = output(&["exec", "client", "--", "true"]);
    assert_eq!(answer.status.code(), Some(1));
    assert!(text(&answer.stderr).contains("--lab"), "{}", text(&answer.stderr));
    for up in [&one, &two] {
        assert_eq!(text(&up.exec("client", &["hostname"]).stdout), "client\n");
    }
    let first = text(&one.exec("client", &["readlink", "/proc/self/ns/net"]).stdout);
    let second = text(&two.exec("client", &["readlink", "/proc/self/ns/net"]).stdout);
    assert_ne!(first, second);
}
