//! Entering one private set of namespaces, in which labs are then built.
//!
//! The caller stays outside as a guardian; inside, a first process passes signals on, collects
//! orphans and hands back the exit code. When either of them ends, for whatever reason, the kernel
//! ends everything inside.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs, io,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::Duration,
};

use nix::{
    mount::{MsFlags, mount},
    sys::{
        signal::{SigSet, Signal, kill},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{Pid, Uid},
};

use crate::{
    LabError, deps,
    process::{collect, raw_pid},
    running,
};

/// Holds the identity of the network namespace that was left behind.
const LEFT_NETWORK: &str = "PROXIMITY_LAB_LEFT";
/// Directory for logs and files of labs, removed by the guardian.
const SCRATCH: &str = "PROXIMITY_LAB_SCRATCH";
/// How long a command may take to end after Ctrl-C before it is killed.
const GRACE: Duration = Duration::from_secs(5);

/// Whether the caller is inside private namespaces.
pub fn is_inside() -> bool {
    match (env::var_os(LEFT_NETWORK), fs::read_link("/proc/self/ns/net")) {
        (Some(left), Ok(here)) => left.as_os_str() != here.as_os_str(),
        _ => false,
    }
}

/// As [`is_inside`], for use with `?`.
///
/// # Errors
/// [`LabError::NotInside`] says what to run.
pub fn check_inside() -> Result<(), LabError> {
    if is_inside() {
        return Ok(());
    }
    let command = env::args().map(|argument| argument.replace('\n', " ")).collect::<Vec<_>>().join(" ");
    Err(LabError::NotInside { command })
}

/// For the first line of tests: without namespaces they must fail, not pass unseen.
///
/// # Panics
/// Outside of the private namespaces, with the command to run instead.
pub fn require_inside() {
    assert!(is_inside(), "run inside proximity-lab enter: `proximity-lab enter -- cargo test`");
}

/// Where labs keep logs and files; the guardian's directory, or the system's for temporary files.
pub(crate) fn scratch_directory() -> PathBuf {
    env::var_os(SCRATCH).map_or_else(env::temp_dir, PathBuf::from)
}

/// How a command inside ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It ended by itself with this exit code (128 + signal if killed).
    Exit(u8),
    /// It was ended because the guardian received this signal.
    Interrupted(Signal),
}

impl End {
    /// The exit code to hand on, as a shell would.
    pub fn code(self) -> u8 {
        match self {
            Self::Exit(code) => code,
            Self::Interrupted(signal) => 128 + u8::try_from(signal as i32).unwrap_or(0),
        }
    }
}

/// Runs `command` in fresh private namespaces and waits for its end. `guardian` is the
/// `proximity-lab` binary; `started` receives the PID of the first process inside.
///
/// Must be called from a program's main thread: the inside ends with the calling thread.
///
/// # Errors
/// [`LabError::NeedsRoot`] or [`LabError::Refused`] when namespaces cannot be had, and
/// [`LabError::Spawn`].
pub fn run_inside(guardian: &Path, command: &[OsString], started: impl FnOnce(u32)) -> Result<End, LabError> {
    let namespaces = probe()?;
    let scratch = running::own_directory("scratch")?;
    let left = fs::read_link("/proc/self/ns/net").map_err(LabError::file("/proc/self/ns/net"))?;

    let mut child = Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "unshare"])
        .args(namespaces)
        .arg("--")
        .arg(guardian)
        .args(["init", "--"])
        .args(command)
        .env("PATH", deps::search_path())
        .env(LEFT_NETWORK, left)
        .env(SCRATCH, &scratch)
        .spawn()
        .map_err(|source| LabError::Spawn { command: "unshare".to_owned(), source })?;
    // Only now, because children inherit the mask. A signal before this point ends the guardian,
    // and with it the child.
    let signals = block_signals()?;
    if let Some(first) = await_first_process(&mut child) {
        started(first);
    }
    let end = await_end(&mut child, &signals);
    leave(&scratch, &end);
    end
}

/// The first process inside: runs `command` and ends with it. Returns its exit code.
///
/// # Errors
/// [`LabError::Invalid`] if called elsewhere, [`LabError::Spawn`].
pub fn run_init(command: &[OsString]) -> Result<u8, LabError> {
    if std::process::id() != 1 || !is_inside() {
        return Err(LabError::Invalid("`init` is only for the inside of `proximity-lab enter`".to_owned()));
    }
    let [program, arguments @ ..] = command else {
        return Err(LabError::Invalid("no command to run".to_owned()));
    };
    // Best effort: shows the private interfaces instead of the machine's.
    let _ = mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), None::<&str>);
    let lo = Command::new("ip").args(["link", "set", "lo", "up"]).status();
    if !lo.is_ok_and(|status| status.success()) {
        return Err(LabError::Invalid("cannot bring up the loopback interface".to_owned()));
    }
    let child = Command::new(program)
        .args(arguments)
        .spawn()
        .map_err(|source| LabError::Spawn { command: program.to_string_lossy().into_owned(), source })?;
    let main = raw_pid(child.id());
    // Only now, because children inherit the mask; hence the first look before the first wait.
    let signals = block_signals()?;
    loop {
        if let Some(code) = collect_children(main) {
            return Ok(code);
        }
        match signals.wait() {
            Ok(Signal::SIGCHLD) | Err(_) => {}
            Ok(signal) => {
                let _ = kill(main, signal);
            }
        }
    }
}

/// Holds back the signals that are then taken one by one with [`SigSet::wait`].
fn block_signals() -> Result<SigSet, LabError> {
    let signals: SigSet =
        [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGCHLD].into_iter().collect();
    signals
        .thread_block()
        .map_err(|errno| LabError::Invalid(format!("cannot hold back signals: {}", errno.desc())))?;
    Ok(signals)
}

/// Collects every ended child; the exit code of `main` once it is among them.
fn collect_children(main: Pid) -> Option<u8> {
    let mut code = None;
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, status)) if pid == main => {
                code = Some(u8::try_from(status).unwrap_or(1));
            }
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == main => {
                code = Some(128 + u8::try_from(signal as i32).unwrap_or(0));
            }
            Ok(WaitStatus::StillAlive) | Err(_) => return code,
            Ok(_) => {}
        }
    }
}

/// Arguments for `unshare` that work for this user on this machine.
fn probe() -> Result<Vec<&'static str>, LabError> {
    const BASE: [&str; 6] = ["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"];
    if Uid::effective().is_root() {
        return attempt(BASE.to_vec()).map_err(|detail| LabError::Refused { detail });
    }
    let mapped = [&["--user", "--map-root-user"], &BASE[..]].concat();
    let single = attempt(mapped.clone()).map_err(|detail| LabError::NeedsRoot { detail })?;
    // Subordinate ids let daemons drop privileges as on a real machine; one id is enough otherwise.
    // Tried second: where namespaces are refused altogether, `unshare --map-auto` leaves a child
    // behind that waits for ever.
    Ok(attempt([&mapped[..], &["--map-auto"]].concat()).unwrap_or(single))
}

/// Tries an actual mount inside, because some kernels grant a user namespace without its rights.
fn attempt(arguments: Vec<&'static str>) -> Result<Vec<&'static str>, String> {
    let child = Command::new("unshare")
        .args(&arguments)
        .args(["sh", "-c", "mount -t tmpfs probe /run && ip link set lo up"])
        .env("PATH", deps::search_path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("unshare: {error}"))?;
    let output = collect("unshare", child, GRACE).map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(arguments);
    }
    Err(output.stderr.lines().next().unwrap_or("unshare failed").trim().to_owned())
}

fn await_end(child: &mut Child, signals: &SigSet) -> Result<End, LabError> {
    let mut interrupted = None;
    loop {
        let waited =
            child.try_wait().map_err(|source| LabError::Spawn { command: "unshare".into(), source })?;
        if let Some(status) = waited {
            return Ok(interrupted.map_or_else(|| End::Exit(exit_code(status)), End::Interrupted));
        }
        match signals.wait() {
            Ok(Signal::SIGCHLD) | Err(_) => {}
            Ok(signal) => {
                if interrupted.replace(signal).is_none() {
                    end_inside(child.id());
                }
            }
        }
    }
}

/// Asks the inside to end, and kills it if it does not within [`GRACE`].
fn end_inside(unshare: u32) {
    match child_of(unshare) {
        Some(first) => {
            let _ = kill(raw_pid(first), Signal::SIGTERM);
            thread::spawn(move || {
                thread::sleep(GRACE);
                let _ = kill(raw_pid(first), Signal::SIGKILL);
            });
        }
        None => {
            let _ = kill(raw_pid(unshare), Signal::SIGKILL);
        }
    }
}

/// The first process inside appears as the only child of `unshare`, after some milliseconds.
fn await_first_process(unshare: &mut Child) -> Option<u32> {
    loop {
        if let Some(first) = child_of(unshare.id()) {
            return Some(first);
        }
        // There is no event for a grandchild's birth.
        thread::sleep(Duration::from_millis(2));
        if !matches!(unshare.try_wait(), Ok(None)) {
            return None;
        }
    }
}

/// The child of process `parent` that is the first process of a PID namespace, found by walking
/// `/proc`. (`unshare` has other, passing children: the programs that write the user mappings.)
fn child_of(parent: u32) -> Option<u32> {
    fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let status = fs::read_to_string(entry.path().join("status")).ok()?;
        is_first_child(&status, parent).then_some(pid)
    })
}

/// Whether `/proc/PID/status` is that of a child of `parent` which is PID 1 of a deeper namespace.
fn is_first_child(status: &str, parent: u32) -> bool {
    let field = |name: &str| {
        status.lines().find_map(|line| line.strip_prefix(name)).map(|rest| rest.split_whitespace())
    };
    let has_parent = field("PPid:").is_some_and(|mut ids| ids.next() == Some(&parent.to_string()));
    let is_first = field("NSpid:").is_some_and(|ids| ids.clone().count() > 1 && ids.last() == Some("1"));
    has_parent && is_first
}

fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    u8::try_from(code).unwrap_or(1)
}

/// Removes the scratch directory, unless a failed command left logs in it.
fn leave(scratch: &Path, end: &Result<End, LabError>) {
    let removed: io::Result<()> = match end {
        Ok(End::Exit(code)) if *code != 0 => fs::remove_dir(scratch),
        _ => fs::remove_dir_all(scratch),
    };
    if removed.is_err() {
        eprintln!("proximity-lab: logs are kept in {} until the next run", scratch.display());
    }
}

/// The command line of this program, for messages to the user: how it was called.
pub fn own_name() -> String {
    env::args_os().next().as_deref().map(OsStr::to_string_lossy).map_or("proximity-lab".into(), Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_process_of_a_deeper_namespace_counts() {
        let status = |parent: u32, ids: &str| format!("Name:\tcat\nPPid:\t{parent}\nNSpid:\t{ids}\n");
        assert!(is_first_child(&status(34, "35\t1"), 34));
        assert!(!is_first_child(&status(33, "35\t1"), 34), "another's child");
        assert!(!is_first_child(&status(34, "35\t2"), 34), "not the first");
        assert!(!is_first_child(&status(34, "1"), 34), "not deeper");
        assert!(!is_first_child("", 34));
    }

    #[test]
    fn codes_are_those_of_a_shell() {
        assert_eq!(End::Exit(3).code(), 3);
        assert_eq!(End::Interrupted(Signal::SIGINT).code(), 130);
        assert_eq!(exit_code(ExitStatus::from_raw(Signal::SIGKILL as i32)), 137);
    }
}
