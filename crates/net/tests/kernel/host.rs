//! An emulated machine: a thread in a network namespace of its own. The namespace goes when the thread does.

use nix::sched::{CloneFlags, unshare};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread::JoinHandle;

type Job = Box<dyn FnOnce() + Send>;

/// A network namespace with a thread in it that runs what it is given.
pub struct Host {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    namespace: String,
}

impl Host {
    /// `None` if the tests may be skipped for want of privilege; panics if they may not.
    pub fn new() -> Option<Host> {
        let (jobs, queue) = mpsc::channel::<Job>();
        let (ready, started) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let namespace = unshare(CloneFlags::CLONE_NEWNET)
                .map(|()| format!("/proc/{}/task/{}/ns/net", std::process::id(), nix::unistd::gettid()));
            let failed = namespace.is_err();
            ready.send(namespace).expect("the test waits");
            if failed {
                return;
            }
            for job in queue {
                job();
            }
        });
        match started.recv().expect("the thread answers") {
            Ok(namespace) => {
                let host = Host { jobs: Some(jobs), thread: Some(thread), namespace };
                host.ip("link set lo up");
                Some(host)
            }
            Err(errno) if std::env::var("PROXIMITY_SKIP_KERNEL_TESTS").as_deref() == Ok("1") => {
                eprintln!("SKIPPED: no network namespace of our own: {errno}");
                None
            }
            Err(errno) => panic!(
                "this test needs a network namespace ({errno}): run it as root, or inside \
                 `unshare --user --map-root-user --net`, or set PROXIMITY_SKIP_KERNEL_TESTS=1"
            ),
        }
    }

    /// Runs the closure inside the namespace and waits for it.
    pub fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        self.start(job)()
    }

    /// Starts the closure inside the namespace; the returned closure waits for its result. Jobs of one host
    /// run one after the other.
    pub fn start<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> impl FnOnce() -> T {
        let (answer, result) = mpsc::channel();
        let job: Job = Box::new(move || {
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(job));
            let _ = answer.send(outcome);
        });
        self.jobs.as_ref().expect("set until drop").send(job).expect("the host runs");
        move || match result.recv().expect("the host answers") {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// `ip ARGUMENTS`
    pub fn ip(&self, arguments: &str) {
        self.command("ip", arguments);
    }

    /// Runs a program inside and returns what it prints; it must succeed.
    pub fn command(&self, program: &'static str, arguments: &str) -> String {
        let arguments = arguments.to_owned();
        self.run(move || command(program, &arguments, ""))
    }

    /// Path other programs can enter the namespace by.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.jobs.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Runs a program where the caller is, with that standard input, and returns what it prints.
pub fn command(program: &str, arguments: &str, input: &str) -> String {
    use std::io::Write;
    let mut child = Command::new(program)
        .args(arguments.split_whitespace())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("the program reads");
    let output = child.wait_with_output().expect("the program ends");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments}: {errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A runtime for the caller's thread: its sockets are of the caller's namespace.
pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}
