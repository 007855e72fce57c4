//! The appliance under test: a `proximity` binary running in its own container.

use std::{
    fs,
    io::{Read, Write},
    net::Shutdown,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::ExitStatus,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use crate::{LabError, Node, Process, process::tail};

const CONFIG: &str = "/etc/proximity/proximity.toml";
const ADMIN_SOCKET: &str = "/run/proximity/admin.sock";
/// Directories that are private memory in a node, and hide what the machine has there.
const HIDDEN: [&str; 4] = ["/etc", "/run", "/var/lib", "/var/log"];

/// A running appliance. Its state, logs and sockets are in the container's `/var/lib/proximity`,
/// `/var/log/proximity` and `/run/proximity`, which outlive the process. Dropping it kills it.
#[derive(Debug)]
pub struct ApplianceProc {
    node: Arc<Node>,
    process: Process,
}

impl ApplianceProc {
    pub(crate) fn start(
        node: &Arc<Node>,
        binary: &Path,
        config: Option<&Path>,
        log: &Path,
        supervise: bool,
    ) -> Result<Self, LabError> {
        let program = reachable(node, binary)?;
        let mut command = vec![program.as_str(), "run"];
        command.extend(supervise.then_some("--supervise"));
        if let Some(config) = config {
            let text = fs::read_to_string(config).map_err(LabError::file(config))?;
            node.write(CONFIG, &text)?;
            command.extend(["--config", CONFIG]);
        }
        // A dead process leaves its socket behind; it must not be taken for the new one's.
        let _ = fs::remove_file(node.path(ADMIN_SOCKET));
        let process = node.background(&command, log)?;
        Ok(Self { node: Arc::clone(node), process })
    }

    /// The container it runs in; `node().path("/var/lib/proximity")` is its state.
    pub fn node(&self) -> &Arc<Node> {
        &self.node
    }

    /// Path of its configuration file as seen from outside: write to it, then reload.
    pub fn config_path(&self) -> PathBuf {
        self.node.path(CONFIG)
    }

    /// Path of its unix socket as seen from outside.
    pub fn admin_socket(&self) -> PathBuf {
        self.node.path(ADMIN_SOCKET)
    }

    /// The process, for its PID, log and signals.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Kills it as a crash would.
    ///
    /// # Errors
    /// As [`Process::kill9`].
    pub fn kill9(&mut self) -> Result<ExitStatus, LabError> {
        self.process.kill9()
    }

    /// Asks it to end and waits for that.
    ///
    /// # Errors
    /// As [`Process::terminate`].
    pub fn terminate(&mut self, timeout: Duration) -> Result<ExitStatus, LabError> {
        self.process.terminate(timeout)
    }

    /// Waits until `GET /readyz` on the unix socket answers 200, and says how long that took.
    ///
    /// # Errors
    /// [`LabError::Failed`] if the process ends instead, [`LabError::TimedOut`]; both with the end
    /// of its log.
    pub fn wait_ready(&mut self, timeout: Duration) -> Result<Duration, LabError> {
        let start = Instant::now();
        loop {
            let answer = self.get("/readyz");
            if matches!(answer, Ok((200, _))) {
                return Ok(start.elapsed());
            }
            if !self.process.is_running() {
                let status = self.process.wait(Duration::ZERO)?;
                let detail = tail(&self.process.log());
                return Err(LabError::Failed { command: "proximity run".to_owned(), status, detail });
            }
            if start.elapsed() >= timeout {
                let answer = match answer {
                    Ok((status, body)) => format!("/readyz answers {status}: {body}"),
                    Err(error) => format!("/readyz: {error}"),
                };
                return Err(LabError::TimedOut {
                    what: "appliance ready".to_owned(),
                    after: timeout,
                    detail: format!("{answer}; its log ends with:\n{}", tail(&self.process.log())),
                });
            }
            // Readiness is an answer, not an event.
            thread::sleep(Duration::from_millis(3));
        }
    }

    /// `GET path` over the unix socket: status code and body.
    ///
    /// # Errors
    /// [`LabError::File`] if the socket does not answer, [`LabError::Invalid`] if it is not HTTP.
    pub fn get(&self, path: &str) -> Result<(u16, String), LabError> {
        let socket = self.admin_socket();
        let exchange = || {
            let mut stream = UnixStream::connect(&socket)?;
            stream.set_read_timeout(Some(Duration::from_secs(2)))?;
            // HTTP/1.0 keeps the answer free of chunks.
            write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
            let _ = stream.shutdown(Shutdown::Write);
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer)?;
            Ok(String::from_utf8_lossy(&answer).into_owned())
        };
        let answer = exchange().map_err(LabError::file(&socket))?;
        parse_answer(&answer).ok_or_else(|| LabError::Invalid(format!("not an HTTP answer: {answer:?}")))
    }
}

fn parse_answer(answer: &str) -> Option<(u16, String)> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/1.")?.split_whitespace().nth(1)?.parse().ok()?;
    Some((status, body.to_owned()))
}

/// A path by which the binary can be executed inside the node.
fn reachable(node: &Node, binary: &Path) -> Result<String, LabError> {
    let mut path = fs::canonicalize(binary).map_err(LabError::file(binary))?;
    if HIDDEN.iter().any(|directory| path.starts_with(directory)) {
        let inside = Path::new("/run/lab-appliance");
        let copy = node.path(inside);
        fs::copy(&path, &copy).map_err(LabError::file(copy))?;
        path = inside.to_owned();
    }
    path.into_os_string()
        .into_string()
        .map_err(|path| LabError::Invalid(format!("{} is not UTF-8", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_split_into_status_and_body() {
        let answer = "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 3\r\n\r\nnot";
        assert_eq!(parse_answer(answer), Some((503, "not".to_owned())));
        assert_eq!(parse_answer("HTTP/1.1 200 OK\r\n"), None);
        assert_eq!(parse_answer("SSH-2.0-OpenSSH\r\n\r\n"), None);
    }
}
