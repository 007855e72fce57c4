//! A node: one emulated machine or container, made of namespaces of its own.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Read, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{Arc, Mutex, Weak},
    thread,
    time::Duration,
};

use nix::{
    sched::{CloneFlags, setns, unshare},
    sys::signal::{Signal, kill},
};

use crate::{
    LabError, Output, Process, deps,
    process::{collect, lock, raw_pid},
};

/// How long [`Node::run`] lets a program work.
pub const RUN_TIMEOUT: Duration = Duration::from_secs(15);

const SETUP: &str = include_str!("node_setup.sh");

/// One emulated machine: network, mount, UTS and PID namespaces, addressed by its first process.
///
/// `/etc`, `/run`, `/var/lib` and `/var/log` are private memory; the rest of the file system is the
/// machine's own. Dropping a node kills all that runs in it.
#[derive(Debug)]
pub struct Node {
    name: String,
    pid: u32,
    /// `None` once killed.
    alive: Mutex<Option<Alive>>,
    background: Mutex<Vec<Weak<Mutex<Child>>>>,
}

/// Keeps the node's first process alive: it ends when its standard input closes, so a node never
/// outlives its owner, however that one ends.
#[derive(Debug)]
struct Alive {
    unshare: Child,
    _lifeline: ChildStdin,
    namespaces: Arc<Namespaces>,
    /// Network cards, which are cables to elsewhere.
    cards: Vec<String>,
}

#[derive(Debug)]
struct Namespaces {
    net: File,
    mount: File,
    uts: File,
    pid: File,
}

impl Node {
    /// Starts a node whose host name is `name`. Two nodes may bear the same name.
    ///
    /// # Errors
    /// [`LabError::NotInside`] outside of the private namespaces; [`LabError::NodeStart`] with what
    /// its set-up printed.
    pub fn start(name: &str) -> Result<Self, LabError> {
        crate::enter::check_inside()?;
        let failed = |detail: String| LabError::NodeStart { node: name.to_owned(), detail };
        let mut unshare = Command::new("unshare")
            .args(["--net", "--mount", "--uts", "--pid", "--fork", "--kill-child"])
            .args(["sh", "-c", "eval \"$PROXIMITY_LAB_NODE\"", "node", name, &machine_id(name)])
            .env("PATH", deps::search_path())
            .env("PROXIMITY_LAB_NODE", SETUP)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|source| LabError::Spawn { command: "unshare".to_owned(), source })?;
        let (Some(lifeline), Some(stdout), Some(stderr)) =
            (unshare.stdin.take(), unshare.stdout.take(), unshare.stderr.take())
        else {
            return Err(failed("its pipes are missing".to_owned()));
        };

        let mut line = String::new();
        let read = BufReader::new(stdout).read_line(&mut line);
        let Some(pid) = line.strip_prefix("ready ").and_then(|pid| pid.trim().parse().ok()) else {
            let _ = unshare.kill();
            let mut detail = String::new();
            let _ = BufReader::new(stderr).read_to_string(&mut detail);
            let _ = unshare.wait();
            return Err(failed(match read {
                Ok(_) => format!("{line}{}", detail.trim()),
                Err(error) => error.to_string(),
            }));
        };
        let namespaces = Arc::new(Namespaces::of(pid)?);
        let alive = Alive { unshare, _lifeline: lifeline, namespaces, cards: Vec::new() };
        Ok(Self { name: name.to_owned(), pid, alive: Mutex::new(Some(alive)), background: Mutex::default() })
    }

    /// The node's name, which is also its host name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// PID of the node's first process, as seen by the lab.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The path by which a file of the node is reached from outside, e.g. `/etc/resolv.conf`.
    ///
    /// Absolute symbolic links on the way are resolved outside of the node.
    pub fn path(&self, inside: impl AsRef<Path>) -> PathBuf {
        let inside = inside.as_ref();
        Path::new(&format!("/proc/{}/root", self.pid)).join(inside.strip_prefix("/").unwrap_or(inside))
    }

    /// Writes a file of the node, making its directories.
    ///
    /// # Errors
    /// [`LabError::File`].
    pub fn write(&self, inside: &str, content: &str) -> Result<(), LabError> {
        let path = self.path(inside);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(LabError::file(parent))?;
        }
        fs::write(&path, content).map_err(LabError::file(path))
    }

    /// Reads a file of the node.
    ///
    /// # Errors
    /// [`LabError::File`].
    pub fn read(&self, inside: &str) -> Result<String, LabError> {
        let path = self.path(inside);
        fs::read_to_string(&path).map_err(LabError::file(path))
    }

    /// A command that will run in the node, however and whenever it is started. It is a child of
    /// `nsenter`, and dies with it.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(["-t", &self.pid.to_string(), "-n", "-m", "-u", "-p", "--"])
            .args(["setpriv", "--pdeathsig", "KILL", program])
            .env("PATH", deps::search_path());
        command
    }

    /// Starts `command` in the node as a direct child of the caller, who must collect it: the node
    /// cannot end before that.
    fn spawn(&self, command: &mut Command) -> Result<Child, LabError> {
        command.env("PATH", deps::search_path());
        self.on_thread(CloneFlags::all(), || {
            command.spawn().map_err(|source| LabError::Spawn { command: self.describe(command), source })
        })?
    }

    /// Runs a program to its end.
    ///
    /// # Errors
    /// [`LabError::Failed`] on an exit status other than 0, with what it printed;
    /// [`LabError::TimedOut`] after [`RUN_TIMEOUT`].
    pub fn run(&self, command: &[&str]) -> Result<Output, LabError> {
        let output = self.try_run(command, RUN_TIMEOUT)?;
        if !output.status.success() {
            return Err(LabError::Failed {
                command: format!("{}: {}", self.name, command.join(" ")),
                status: output.status,
                detail: format!("{}{}", output.stderr, output.stdout).trim().to_owned(),
            });
        }
        Ok(output)
    }

    /// Runs a program to its end, whatever its exit status.
    ///
    /// # Errors
    /// [`LabError::TimedOut`] after `timeout`; the program is killed.
    pub fn try_run(&self, command: &[&str], timeout: Duration) -> Result<Output, LabError> {
        let mut built = build(command)?;
        built.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = self.spawn(&mut built)?;
        collect(&self.describe(&built), child, timeout)
    }

    /// Runs a shell script to its end.
    ///
    /// # Errors
    /// As [`Node::run`].
    pub fn sh(&self, script: &str) -> Result<Output, LabError> {
        self.run(&["sh", "-euc", script])
    }

    /// Starts a program in the background, its output appended to `log`.
    ///
    /// # Errors
    /// [`LabError::File`] if the log cannot be opened, [`LabError::Spawn`].
    pub fn background(&self, command: &[&str], log: &Path) -> Result<Process, LabError> {
        let file = File::options().create(true).append(true).open(log).map_err(LabError::file(log))?;
        let errors = file.try_clone().map_err(LabError::file(log))?;
        let mut built = build(command)?;
        built.stdin(Stdio::null()).stdout(file).stderr(errors);
        let child = Arc::new(Mutex::new(self.spawn(&mut built)?));
        let mut background = lock(&self.background);
        background.retain(|child| child.strong_count() > 0);
        background.push(Arc::downgrade(&child));
        Ok(Process::new(self.describe(&built), child, log.to_owned()))
    }

    /// Executes lines of `ip` in one go, e.g. `addr add 192.0.2.1/24 dev eth0`.
    ///
    /// # Errors
    /// [`LabError::Failed`] with the line at fault.
    pub fn ip(&self, lines: &[&str]) -> Result<(), LabError> {
        // In the lab's own PID namespace, so that `netns PID` may name any node.
        let output = self.on_thread(CloneFlags::CLONE_NEWNET, || ip_batch(&(lines.join("\n") + "\n")))??;
        if !output.status.success() {
            return Err(LabError::Failed {
                command: format!("{}: ip -batch: {}", self.name, lines.join("; ")),
                status: output.status,
                detail: output.stderr.trim().to_owned(),
            });
        }
        Ok(())
    }

    /// Calls `action` on a fresh thread inside the node's network namespace. Sockets opened there
    /// stay there; files are the caller's.
    ///
    /// # Errors
    /// [`LabError::Namespace`] if the namespace cannot be entered.
    pub fn enter<T: Send>(&self, action: impl FnOnce() -> T + Send) -> Result<T, LabError> {
        self.on_thread(CloneFlags::CLONE_NEWNET, action)
    }

    /// Stops the node as a container is stopped by force: all its processes die, its interfaces
    /// and their other ends disappear. Doing it twice is allowed.
    pub fn kill(&self) {
        let Some(mut alive) = lock(&self.alive).take() else { return };
        // The first process of a PID namespace takes all others with it. `unshare` is not yet
        // collected, so neither can its child's PID have been given to another.
        let _ = kill(raw_pid(self.pid), Signal::SIGKILL);
        // It waits for every process of the namespace to be collected, and some are ours to collect.
        for child in lock(&self.background).drain(..).filter_map(|child| child.upgrade()) {
            let _ = lock(&child).wait();
        }
        let _ = alive.unshare.wait();
        // The kernel itself answers pings until the namespace is cleared away, which it does at
        // leisure. Pulled cables are silent at once.
        if !alive.cards.is_empty() {
            let lines: String = alive.cards.iter().map(|card| format!("link del {card}\n")).collect();
            let namespaces = &alive.namespaces;
            let _ = thread::scope(|scope| {
                scope.spawn(|| namespaces.join(CloneFlags::CLONE_NEWNET).map(|()| ip_batch(&lines))).join()
            });
        }
    }

    /// Notes a network card, to be unplugged when the node is killed.
    pub(crate) fn note_card(&self, interface: &str) {
        if let Some(alive) = lock(&self.alive).as_mut() {
            alive.cards.push(interface.to_owned());
        }
    }

    /// Whether the node has been killed.
    pub fn is_killed(&self) -> bool {
        lock(&self.alive).is_none()
    }

    fn on_thread<T: Send>(
        &self,
        wanted: CloneFlags,
        action: impl FnOnce() -> T + Send,
    ) -> Result<T, LabError> {
        let namespaces = match lock(&self.alive).as_ref() {
            Some(alive) => Arc::clone(&alive.namespaces),
            None => {
                let detail = "it was killed".to_owned();
                return Err(LabError::NodeStart { node: self.name.clone(), detail });
            }
        };
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                namespaces.join(wanted).map_err(|(what, source)| LabError::Namespace {
                    node: self.name.clone(),
                    what,
                    source,
                })?;
                Ok(action())
            });
            match thread.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    fn describe(&self, command: &Command) -> String {
        let mut text = format!("{}: {}", self.name, command.get_program().to_string_lossy());
        for argument in command.get_args() {
            text.push(' ');
            text.push_str(&argument.to_string_lossy());
        }
        text
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Namespaces {
    fn of(pid: u32) -> Result<Self, LabError> {
        let open = |kind: &str| {
            let path = format!("/proc/{pid}/ns/{kind}");
            File::open(&path).map_err(LabError::file(path))
        };
        Ok(Self { net: open("net")?, mount: open("mnt")?, uts: open("uts")?, pid: open("pid")? })
    }

    /// Moves the calling thread into some of them; the failed step otherwise.
    fn join(&self, wanted: CloneFlags) -> Result<(), (&'static str, nix::Error)> {
        if wanted.contains(CloneFlags::CLONE_NEWNS) {
            // A thread that shares its working directory with others may not change mounts.
            unshare(CloneFlags::CLONE_FS).map_err(|error| ("leaving the working directory", error))?;
        }
        for (kind, file, what) in [
            (CloneFlags::CLONE_NEWNET, &self.net, "entering the network"),
            (CloneFlags::CLONE_NEWUTS, &self.uts, "entering the host name"),
            (CloneFlags::CLONE_NEWPID, &self.pid, "entering the processes"),
            (CloneFlags::CLONE_NEWNS, &self.mount, "entering the mounts"),
        ] {
            if wanted.contains(kind) {
                setns(file, kind).map_err(|error| (what, error))?;
            }
        }
        Ok(())
    }
}

/// Feeds lines to one `ip` in the network namespace of the calling thread.
fn ip_batch(lines: &str) -> Result<Output, LabError> {
    let mut child = Command::new("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .env("PATH", deps::search_path())
        .spawn()
        .map_err(|source| LabError::Spawn { command: "ip".to_owned(), source })?;
    if let Some(mut stdin) = child.stdin.take() {
        // A failing `ip` stops reading; its message says more than the broken pipe.
        let _ = stdin.write_all(lines.as_bytes());
    }
    collect("ip -batch", child, RUN_TIMEOUT)
}

fn build(command: &[&str]) -> Result<Command, LabError> {
    let [program, arguments @ ..] = command else {
        return Err(LabError::Invalid("an empty command".to_owned()));
    };
    let mut built = Command::new(program);
    built.args(arguments);
    Ok(built)
}

/// 32 hex digits that differ between nodes of different names; DHCP clients derive identities from it.
fn machine_id(name: &str) -> String {
    let hash = |seed: u64| {
        name.bytes().fold(seed, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
    };
    format!("{:016x}{:016x}", hash(0xcbf2_9ce4_8422_2325), hash(0x9e37_79b9_7f4a_7c15))
}
