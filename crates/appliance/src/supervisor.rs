//! A small process that outlives upgrades, for where the first process must stay: in a container it is PID 1.
//!
//! It starts the appliance, passes signals on, collects whatever ends, and starts the appliance again when that
//! crashed. The appliance tells it of its successors over a socket which nobody but the present process has open:
//! when it closes, that process is gone, whoever its parent is.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, dup2_stdin};

use crate::upgrade::{predecessor, successor};

/// Least time between two starts: what crashes at once must not fill the log.
const BETWEEN_STARTS: Duration = Duration::from_secs(1);
/// Signals that the appliance ends by.
const STOPPING: [Signal; 3] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGPWR];
/// Signals that are passed on beside those.
const OTHERS: [Signal; 2] = [Signal::SIGHUP, Signal::SIGUSR2];
/// How the process says that it is being supervised and serves.
const SERVES: &str = "serves";
/// How it says that another one serves in its place: behind it come PID and file.
const SUCCESSOR: &str = "successor";

/// Supervises the appliance until it ends: a new one, or the one that the supervisor before us had.
pub fn run(config: &Path, supervised: Option<i32>) -> ExitCode {
    match Supervisor::start(config, supervised).and_then(Supervisor::watch) {
        Ok(code) => code,
        Err(error) => {
            tell(&format!("the appliance cannot be supervised: {error}: run it without --supervise"));
            ExitCode::FAILURE
        }
    }
}

/// Tells the supervisor that this process serves.
pub fn tell_serving(supervisor: &OwnedFd) {
    write(supervisor, SERVES);
}

/// Tells the supervisor which process serves in this one's place.
pub fn tell_successor(supervisor: &OwnedFd, pid: u32, binary: &Path) {
    write(supervisor, &format!("{SUCCESSOR} {pid} {}", binary.display()));
}

/// A supervisor that is gone takes the appliance with it, or does not mind.
fn write(supervisor: &OwnedFd, line: &str) {
    if let Ok(supervisor) = supervisor.try_clone() {
        let _ = UnixStream::from(supervisor).write_all(format!("{line}\n").as_bytes());
    }
}

struct Supervisor {
    config: PathBuf,
    signals: SignalFd,
    worker: Worker,
    /// It was told to stop.
    stopping: bool,
}

/// The process that is the appliance.
struct Worker {
    pid: Pid,
    lines: BufReader<UnixStream>,
    started: Instant,
    /// It has served, so what is wrong is not the configuration.
    served: bool,
    /// How it ended, where that was collected already.
    status: Option<WaitStatus>,
}

impl Supervisor {
    fn start(config: &Path, supervised: Option<i32>) -> io::Result<Supervisor> {
        predecessor::own_binary();
        let mut set = SigSet::empty();
        STOPPING.iter().chain(&OTHERS).chain(&[Signal::SIGCHLD]).for_each(|signal| set.add(*signal));
        set.thread_block()?;
        let signals = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        // Whoever loses its parent becomes ours: the processes of an upgrade start each other.
        nix::sys::prctl::set_child_subreaper(true)?;
        let worker = match supervised {
            Some(pid) => Worker::of(Pid::from_raw(pid), successor::connection_on_stdin()?, true),
            None => Worker::start(config)?,
        };
        Ok(Supervisor { config: config.to_owned(), signals, worker, stopping: false })
    }

    fn watch(mut self) -> io::Result<ExitCode> {
        loop {
            let descriptors = [self.worker.lines.get_ref().as_fd(), self.signals.as_fd()];
            let mut ready = descriptors.map(|descriptor| PollFd::new(descriptor, PollFlags::POLLIN));
            match poll(&mut ready, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
            let [said, signalled] = ready.map(|fd| fd.any().unwrap_or(false));
            // First what was said: who serves is to be known before somebody's end is judged.
            let mut more = said;
            while more {
                if let Some(code) = self.hear()? {
                    return Ok(code);
                }
                more = !self.worker.lines.buffer().is_empty();
            }
            if signalled {
                self.pass_signals()?;
            }
        }
    }

    /// Takes what the appliance says; the exit code when it has ended for good.
    fn hear(&mut self) -> io::Result<Option<ExitCode>> {
        let mut line = String::new();
        // Lines are short and written at once; one that is not whole ends with the process.
        let read = self.worker.lines.read_line(&mut line).unwrap_or(0);
        if read == 0 {
            return self.ended();
        }
        match line.trim_end().splitn(3, ' ').collect::<Vec<_>>()[..] {
            [SERVES] => self.worker.served = true,
            [SUCCESSOR, pid, binary] => {
                if let Ok(pid) = pid.parse() {
                    self.worker.pid = Pid::from_raw(pid);
                    self.worker.status = None;
                    if self.stopping {
                        self.signal(Signal::SIGTERM);
                    } else {
                        self.become_new(Path::new(binary));
                    }
                }
            }
            _ => {}
        }
        Ok(None)
    }

    /// Goes on in another binary; returns only when that fails, which leaves everything as it is.
    fn become_new(&self, binary: &Path) {
        let stdin = self.worker.lines.get_ref().as_fd();
        if let Err(error) = dup2_stdin(stdin) {
            return tell(&format!("the supervisor stays as it is: {error}"));
        }
        let pid = self.worker.pid.to_string();
        let error = Command::new(binary)
            .arg("run")
            .args(["--supervise", "--supervising", &pid, "--config"])
            .arg(&self.config)
            .exec();
        tell(&format!("the supervisor stays as it is: {}: {error}", binary.display()));
        let _ = File::open("/dev/null").map(dup2_stdin);
    }

    /// The appliance is gone: so are we, unless it crashed.
    fn ended(&mut self) -> io::Result<Option<ExitCode>> {
        let worker = &mut self.worker;
        // One that was started by another process is collected by that.
        let status = worker.status.or_else(|| waitpid(worker.pid, None).ok());
        let code = match status {
            Some(WaitStatus::Exited(_, code)) => Some(code),
            _ => None,
        };
        let orderly = self.stopping || code == Some(0) || !worker.served;
        if orderly {
            self.stop_others();
            let code = if self.stopping { 0 } else { code.unwrap_or(1) };
            return Ok(Some(ExitCode::from(u8::try_from(code).unwrap_or(1))));
        }
        let how = status.map_or_else(|| "ended".to_owned(), |status| format!("ended ({status:?})"));
        tell(&format!("the appliance {how}, starting it again"));
        std::thread::sleep(BETWEEN_STARTS.saturating_sub(worker.started.elapsed()));
        *worker = Worker::start(&self.config)?;
        // It has to show again that it can serve, but what served once is not given up for one bad start.
        worker.served = true;
        Ok(None)
    }

    /// Processes of before an upgrade close what they still have open, and end.
    fn stop_others(&self) {
        loop {
            match waitpid(None, None) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(_) => return,
            }
        }
    }

    fn pass_signals(&mut self) -> io::Result<()> {
        while let Some(info) = self.signals.read_signal()? {
            match Signal::try_from(info.ssi_signo as i32)? {
                Signal::SIGCHLD => self.collect(),
                signal => {
                    self.stopping |= STOPPING.contains(&signal);
                    self.signal(signal);
                }
            }
        }
        Ok(())
    }

    fn signal(&self, signal: Signal) {
        // Its end is heard elsewhere.
        let _ = kill(self.worker.pid, signal);
    }

    fn collect(&mut self) {
        while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            if status == WaitStatus::StillAlive {
                return;
            }
            if status.pid() == Some(self.worker.pid) {
                self.worker.status = Some(status);
            }
        }
    }
}

impl Worker {
    fn start(config: &Path) -> io::Result<Worker> {
        let (ours, theirs) = UnixStream::pair()?;
        let child = Command::new(predecessor::own_binary())
            .args(["run", "--supervised", "--config"])
            .arg(config)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .spawn()?;
        Ok(Worker::of(Pid::from_raw(child.id() as i32), ours, false))
    }

    fn of(pid: Pid, stream: UnixStream, served: bool) -> Worker {
        Worker { pid, lines: BufReader::new(stream), started: Instant::now(), served, status: None }
    }
}

/// The only one who reads it is somebody who looks for what went wrong.
fn tell(text: &str) {
    let _ = writeln!(io::stderr(), "proximity: {text}");
}
