//! Programs running in nodes: bounded waiting, captured output, and no survivors.

use std::{
    fs,
    io::Read,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, ExitStatus},
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::{
        signal::{Signal, kill},
        wait::{Id, WaitPidFlag, waitid},
    },
    unistd::Pid,
};

use crate::LabError;

/// What a finished program printed and returned.
#[derive(Debug, Clone)]
pub struct Output {
    /// Exit status.
    pub status: ExitStatus,
    /// Standard output; bytes that are not UTF-8 are replaced.
    pub stdout: String,
    /// Standard error, likewise.
    pub stderr: String,
}

/// A program running in the background of a node, with its log. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    command: String,
    pid: u32,
    /// Shared with the node, which collects it when the node is killed first.
    child: Arc<Mutex<Child>>,
    log: PathBuf,
}

impl Process {
    pub(crate) fn new(command: String, child: Arc<Mutex<Child>>, log: PathBuf) -> Self {
        let pid = lock(&child).id();
        Self { command, pid, child, log }
    }

    /// Its PID as seen by the lab (and by tests), not by the node it runs in.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Where its standard output and error go.
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// All it has printed so far.
    pub fn log(&self) -> String {
        fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// Whether it is still running.
    pub fn is_running(&mut self) -> bool {
        matches!(lock(&self.child).try_wait(), Ok(None))
    }

    /// Sends a signal. A program that has ended already is left in peace.
    ///
    /// # Errors
    /// [`LabError::Namespace`] if the kernel refuses.
    pub fn signal(&mut self, signal: Signal) -> Result<(), LabError> {
        // Only an uncollected child is signalled, so the PID cannot belong to anyone else.
        let mut child = lock(&self.child);
        if !matches!(child.try_wait(), Ok(None)) {
            return Ok(());
        }
        match kill(raw_pid(self.pid), signal) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(source) => Err(LabError::Namespace {
                node: self.command.clone(),
                what: "signalling the process",
                source,
            }),
        }
    }

    /// Kills it with SIGKILL, as a crash or a power cut would, and waits until it is gone.
    ///
    /// # Errors
    /// [`LabError::File`] if its status cannot be collected.
    pub fn kill9(&mut self) -> Result<ExitStatus, LabError> {
        let mut child = lock(&self.child);
        let _ = child.kill();
        child.wait().map_err(LabError::file(&self.log))
    }

    /// Asks it to end with SIGTERM and waits for that.
    ///
    /// # Errors
    /// [`LabError::TimedOut`] if it is still running after `timeout`.
    pub fn terminate(&mut self, timeout: Duration) -> Result<ExitStatus, LabError> {
        self.signal(Signal::SIGTERM)?;
        self.wait(timeout)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// [`LabError::TimedOut`] if it is still running after `timeout`.
    pub fn wait(&mut self, timeout: Duration) -> Result<ExitStatus, LabError> {
        if self.is_running() && !await_exit(self.pid, timeout) {
            return Err(LabError::TimedOut {
                what: format!("end of `{}`", self.command),
                after: timeout,
                detail: format!("its log ends with:\n{}", tail(&self.log())),
            });
        }
        lock(&self.child).wait().map_err(LabError::file(&self.log))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let mut child = lock(&self.child);
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// The last few lines of a log, for error messages.
pub(crate) fn tail(log: &str) -> String {
    const LINES: usize = 12;
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}

/// Collects output and status of `child`, whose pipes must be open, killing it after `timeout`.
pub(crate) fn collect(command: &str, mut child: Child, timeout: Duration) -> Result<Output, LabError> {
    let deadline = Instant::now() + timeout;
    let stdout = drain(child.stdout.take());
    let stderr = drain(child.stderr.take());
    let in_time = await_exit(child.id(), timeout);
    if !in_time {
        let _ = child.kill();
    }
    let status = child.wait().unwrap_or_else(|_| ExitStatus::from_raw(Signal::SIGKILL as i32));
    // A grandchild may hold a pipe open for ever; what has arrived by then is enough.
    let grace = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(200));
    let stdout = stdout.recv_timeout(grace).unwrap_or_default();
    let stderr = stderr.recv_timeout(grace).unwrap_or_default();
    if !in_time {
        return Err(LabError::TimedOut {
            what: format!("end of `{command}`"),
            after: timeout,
            detail: format!("it printed: {stderr}{stdout}"),
        });
    }
    Ok(Output { status, stdout, stderr })
}

fn drain(pipe: Option<impl Read + Send + 'static>) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            let _ = pipe.read_to_end(&mut bytes);
        }
        let _ = sender.send(String::from_utf8_lossy(&bytes).into_owned());
    });
    receiver
}

/// Waits for the end of child `pid` without collecting it; false after `timeout`.
fn await_exit(pid: u32, timeout: Duration) -> bool {
    let pid = raw_pid(pid);
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        // WNOWAIT leaves the child to be collected by its owner, so its PID stays taken meanwhile.
        while waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) == Err(Errno::EINTR) {}
        let _ = sender.send(());
    });
    receiver.recv_timeout(timeout).is_ok()
}

/// A panic elsewhere must not keep processes from being collected.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn raw_pid(pid: u32) -> Pid {
    Pid::from_raw(pid.cast_signed())
}
