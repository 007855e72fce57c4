//! Servers as processes of their own: started, measured, ended.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::error::BenchError;
use crate::tools;

/// `USER_HZ`: the unit of CPU times in /proc is the same 10 ms wherever Linux runs.
const TICK: Duration = Duration::from_millis(10);
/// How long a server may take to begin or to end.
const PATIENCE: Duration = Duration::from_secs(60);
const TIME_TO_END: Duration = Duration::from_secs(2);
const BETWEEN_LOOKS: Duration = Duration::from_millis(10);

/// A server under measurement. It ends with its owner, and with this program however that ends.
#[derive(Debug)]
pub struct Server {
    name: String,
    child: Child,
    stderr: PathBuf,
}

impl Server {
    /// Starts a program; what it complains about goes to a file in `dir`.
    pub fn start(name: &str, program: &Path, arguments: &[String], dir: &Path) -> Result<Server, BenchError> {
        Server::spawn(name, program, arguments, dir, Stdio::null())
    }

    /// Starts this very program with `arguments` and waits for the address that it prints.
    pub fn start_self(
        name: &str,
        arguments: &[String],
        dir: &Path,
    ) -> Result<(Server, SocketAddrV4), BenchError> {
        let program = std::env::current_exe()?;
        let mut server = Server::spawn(name, &program, arguments, dir, Stdio::piped())?;
        let mut line = String::new();
        if let Some(stdout) = server.child.stdout.take() {
            BufReader::new(stdout).read_line(&mut line)?;
        }
        match line.trim().parse() {
            Ok(address) => Ok((server, address)),
            Err(_) => Err(server.not_serving("it printed no address")),
        }
    }

    fn spawn(
        name: &str,
        program: &Path,
        arguments: &[String],
        dir: &Path,
        stdout: Stdio,
    ) -> Result<Server, BenchError> {
        let stderr = dir.join(format!("{}.stderr", name.replace([' ', ','], "-")));
        let log =
            File::create(&stderr).map_err(|source| BenchError::File { path: stderr.clone(), source })?;
        let setpriv = tools::find("setpriv").unwrap_or_else(|| PathBuf::from("setpriv"));
        let child = Command::new(setpriv)
            .args(["--pdeathsig", "KILL", "--"])
            .arg(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(log)
            .spawn()
            .map_err(|source| BenchError::Start { program: program.display().to_string(), source })?;
        Ok(Server { name: name.to_owned(), child, stderr })
    }

    /// The name given at the start.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// CPU time of all its threads so far.
    pub fn cpu(&self) -> Result<Duration, BenchError> {
        let text = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap_or_default();
        cpu_of(&text).ok_or_else(|| self.ended())
    }

    /// Resident memory, in KiB.
    pub fn rss_kib(&self) -> Result<u64, BenchError> {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap_or_default();
        rss_of(&text).ok_or_else(|| self.ended())
    }

    /// Repeats `look` until it succeeds; its last error is told when it does not in time.
    pub fn wait_until<T>(&mut self, mut look: impl FnMut() -> io::Result<T>) -> Result<T, BenchError> {
        let begun = Instant::now();
        loop {
            let error = match look() {
                Ok(seen) => return Ok(seen),
                Err(error) => error,
            };
            if self.child.try_wait()?.is_some() {
                return Err(self.not_serving("it has ended"));
            }
            if begun.elapsed() > PATIENCE {
                return Err(self.not_serving(&error.to_string()));
            }
            std::thread::sleep(BETWEEN_LOOKS);
        }
    }

    fn not_serving(&self, seen: &str) -> BenchError {
        BenchError::NotServing { server: self.name.clone(), seen: seen.to_owned(), stderr: self.complaints() }
    }

    fn ended(&self) -> BenchError {
        BenchError::Ended { server: self.name.clone(), stderr: self.complaints() }
    }

    fn complaints(&self) -> String {
        std::fs::read_to_string(&self.stderr).unwrap_or_default()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM);
        let begun = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) {
            if begun.elapsed() > TIME_TO_END {
                let _ = self.child.kill();
                let _ = self.child.wait();
                return;
            }
            std::thread::sleep(BETWEEN_LOOKS);
        }
    }
}

/// Allows as many open files as the system lets this process allow itself; what it starts inherits that.
pub fn allow_many_connections() {
    // Where it cannot be had, the part that needs it fails and says so.
    if let Ok((_, most)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, most, most);
    }
}

/// An address on loopback that nobody listens on, for servers that cannot choose one themselves.
pub fn free_address() -> io::Result<SocketAddrV4> {
    loop {
        let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = tcp.local_addr()?.port();
        if UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(SocketAddrV4::new(Ipv4Addr::LOCALHOST, port));
        }
    }
}

/// The body of `path`, if the answer is 200.
pub fn get(address: SocketAddrV4, host: &str, path: &str) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(TIME_TO_END))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n");
    match end {
        Some(end) if answer.starts_with(b"HTTP/1.1 200 ") => Ok(answer.split_off(end + 4)),
        _ => {
            let line = answer.split(|octet| *octet == b'\r').next().unwrap_or_default();
            Err(io::Error::other(format!("GET {path}: {}", String::from_utf8_lossy(line))))
        }
    }
}

/// utime + stime of /proc/PID/stat (proc(5)). The name may hold anything, also spaces and parentheses.
fn cpu_of(stat: &str) -> Option<Duration> {
    let (_, fields) = stat.rsplit_once(')')?;
    // Counted from the state, which is the third field: utime is the 14th, stime the 15th.
    let mut fields = fields.split_whitespace().skip(11);
    let ticks = fields.next()?.parse::<u32>().ok()?.checked_add(fields.next()?.parse().ok()?)?;
    Some(TICK * ticks)
}

/// `VmRSS` of /proc/PID/status; a process that has ended has none.
fn rss_of(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_user_and_system_time() {
        let stat = "42 (a) b (c)) S 1 42 42 0 -1 4194304 100 0 0 0 250 150 7 9 20 0 1 0 500 1 2 3";
        assert_eq!(cpu_of(stat), Some(Duration::from_secs(4)));
        assert_eq!(cpu_of(""), None);
        assert_eq!(cpu_of("42 (a) S 1 42"), None);
    }

    #[test]
    fn resident_memory_is_read_in_kib() {
        assert_eq!(rss_of("Name:\ta\nVmRSS:\t   10240 kB\nThreads:\t1\n"), Some(10240));
        assert_eq!(rss_of("Name:\ta\nState:\tZ (zombie)\n"), None);
    }

    #[test]
    fn a_server_is_gone_when_it_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let server =
            Server::start("sleeper", Path::new("/bin/sleep"), &["600".to_owned()], dir.path()).unwrap();
        let proc = PathBuf::from(format!("/proc/{}", server.child.id()));
        assert!(proc.exists());
        drop(server);
        assert!(!proc.exists());
    }

    #[test]
    fn a_server_that_ends_is_reported_with_its_words() {
        let dir = tempfile::tempdir().unwrap();
        let script = ["-c".to_owned(), "echo no such thing >&2; exit 1".to_owned()];
        let mut server = Server::start("failing", Path::new("/bin/sh"), &script, dir.path()).unwrap();
        let error = server.wait_until(|| Err::<(), _>(io::Error::other("nothing"))).unwrap_err();
        assert!(error.to_string().contains("no such thing"), "{error}");
    }
}
