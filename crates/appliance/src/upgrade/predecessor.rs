//! The old process: hands the network over, or goes on when that fails.

use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use proximity_net::FdChannel;

use super::messages::{Message, PROTOCOL, State, TalkError, hear, say};
use super::sockets::{self, Kept};

/// How long a new process may take to read its configuration, and then to serve. Reading 60,000 leases takes
/// a second on a slow machine; DHCP and the admin API rest meanwhile.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a process that closed its connection may take to end.
const END: Duration = Duration::from_secs(1);
/// Most of what is told of a program's own words, in octets.
const MOST_WORDS: usize = 400;

/// A new process that said hello and waits.
#[derive(Debug)]
pub struct Candidate {
    binary: PathBuf,
    version: String,
    child: Child,
    channel: FdChannel,
}

/// Why a binary does not run in our place.
#[derive(Debug, thiserror::Error)]
#[error("{binary} does not take over: {why}: {hint}", binary = binary.display())]
pub struct Refusal {
    /// The binary.
    pub binary: PathBuf,
    /// What it did, or did not do.
    pub why: String,
    /// What to do.
    pub hint: &'static str,
}

/// What to do when a binary is no proximity of ours.
const WRONG_BINARY: &str = "name the binary of another version: proximity upgrade PATH";
/// What to do when it had something to say.
const ITS_OWN_WORDS: &str = "mend that and try again; this version serves on";

/// The path that this process was started from, where another version would be put in its place. To be asked at
/// the start for the first time: the kernel's answer follows a file that is moved away.
pub fn own_binary() -> &'static Path {
    static OWN: OnceLock<PathBuf> = OnceLock::new();
    OWN.get_or_init(|| {
        let path = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("/proc/self/exe"));
        // The kernel says so when the file was replaced already.
        let text = path.to_str().and_then(|text| text.strip_suffix(" (deleted)")).map(PathBuf::from);
        text.unwrap_or(path)
    })
}

impl Candidate {
    /// Starts a binary and waits for its hello. Blocks.
    pub fn start(binary: PathBuf, config: &Path) -> Result<Candidate, Refusal> {
        let failed = |why: String| Refusal { binary: binary.clone(), why, hint: WRONG_BINARY };
        if !binary.is_absolute() {
            return Err(failed("the path is not absolute".to_owned()));
        }
        let (ours, theirs) = UnixStream::pair().map_err(|error| failed(error.to_string()))?;
        let child = Command::new(&binary)
            .arg("run")
            .arg("--takeover")
            .arg("--config")
            .arg(config)
            .stdin(OwnedFd::from(theirs))
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| failed(format!("it cannot be started: {error}")))?;
        let channel = FdChannel::new(ours);
        let mut candidate = Candidate { binary: binary.clone(), version: String::new(), child, channel };
        match hear(&candidate.channel, Some(PATIENCE)) {
            Ok((Message::Hello { protocol: PROTOCOL, version }, _)) => {
                candidate.version = version.into_owned();
                Ok(candidate)
            }
            Ok((Message::Hello { version, .. }, _)) => {
                let why = format!("version {version} is too far from {}", env!("CARGO_PKG_VERSION"));
                candidate.kill();
                Err(Refusal { binary, why, hint: "stop this one and start the other" })
            }
            other => Err(candidate.give_up(other.map(|(message, _)| message))),
        }
    }

    /// Its version.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its file.
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// Hands everything over and waits until it serves; after a refusal it is gone. Blocks.
    pub fn hand_over(self, kept: &Kept, state: State) -> Result<Candidate, Refusal> {
        let said = sockets::send(&self.channel, kept)
            .and_then(|()| say(&self.channel, &Message::State(Box::new(state)), &[]))
            .and_then(|()| hear(&self.channel, Some(PATIENCE)));
        match said {
            Ok((Message::Serving, _)) => Ok(self),
            other => Err(self.give_up(other.map(|(message, _)| message))),
        }
    }

    /// Says that nothing is taken here any more. The connection is to be followed from now on.
    pub fn retired(self) -> FdChannel {
        // When it is gone already, following it will show.
        let _ = say(&self.channel, &Message::Retired, &[]);
        self.channel
    }

    /// Makes sure that it is gone, and says why it did not do.
    fn give_up(mut self, last: Result<Message<'_>, TalkError>) -> Refusal {
        let ended = self.wait();
        let status = self.kill();
        let words = self.words();
        let why = match (last, ended, status, words) {
            (Ok(Message::Refused { reason }), ..) => reason,
            (_, true, Some(status), Some(words)) => format!("it ended with {status}, saying: {words}"),
            (_, true, Some(status), None) => format!("it ended with {status} and said nothing"),
            (Ok(_), ..) => "it speaks out of turn".to_owned(),
            (Err(error), _, _, Some(words)) => format!("{error}, saying: {words}"),
            (Err(error), ..) => error.to_string(),
        };
        Refusal { binary: self.binary.clone(), why, hint: ITS_OWN_WORDS }
    }

    /// Whether it ends by itself, which takes a moment after its connection is closed.
    fn wait(&mut self) -> bool {
        let deadline = Instant::now() + END;
        while Instant::now() < deadline {
            match self.child.try_wait() {
                // There is no event for the end of a child but a signal, which is the whole process's.
                Ok(None) => std::thread::sleep(Duration::from_millis(5)),
                Ok(Some(_)) => return true,
                Err(_) => return false,
            }
        }
        false
    }

    fn kill(&mut self) -> Option<ExitStatus> {
        let _ = self.child.kill();
        self.child.wait().ok()
    }

    /// What it printed: the line with the error, else the last one.
    fn words(&mut self) -> Option<String> {
        let mut stderr = self.child.stderr.take()?;
        // Somebody else may have it open for ever.
        fcntl(&stderr, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).ok()?;
        let mut bytes = Vec::new();
        let _ = Read::by_ref(&mut stderr).take(64 * 1024).read_to_end(&mut bytes);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let lines = || text.lines().map(str::trim).filter(|line| !line.is_empty());
        let line = lines().find(|line| line.starts_with("error")).or(lines().next_back())?;
        Some(line.chars().take(MOST_WORDS).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn refusal(binary: &Path) -> String {
        Candidate::start(binary.to_owned(), Path::new("/nowhere.toml")).unwrap_err().to_string()
    }

    #[test]
    fn a_binary_that_will_not_do_is_gone_and_says_why() {
        let directory = tempfile::tempdir().unwrap();
        let script = |name: &str, text: &str| {
            let path = directory.path().join(name);
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
            path
        };
        for (binary, expected) in [
            (PathBuf::from("/bin/false"), "ended with exit status: 1 and said nothing"),
            (PathBuf::from("/nowhere/proximity"), "cannot be started: No such file"),
            (PathBuf::from("proximity"), "not absolute"),
            (script("corrupt", "\u{1}\u{2}\u{3} no program"), "does not take over"),
            (
                script("talks", "#!/bin/sh\necho one >&2; echo the disk is full >&2; exit 3"),
                "3, saying: the disk is full",
            ),
            (
                script(
                    "usage",
                    "#!/bin/sh\necho \"error: unknown --takeover\nFor more, --help\" >&2; exit 2",
                ),
                "saying: error: unknown --takeover",
            ),
            (script("dies", "#!/bin/sh\nkill -SEGV $$"), "signal: 11"),
            (
                script("closes", "#!/bin/sh\nexec 0<&-; echo closing >&2; exec sleep 60"),
                "closed the connection, saying: closing",
            ),
        ] {
            let text = refusal(&binary);
            assert!(text.contains(expected) && text.contains(binary.to_str().unwrap()), "{text}");
        }
    }

    #[test]
    fn our_own_binary_is_where_it_was_started_from() {
        assert_eq!(own_binary(), std::fs::canonicalize("/proc/self/exe").unwrap());
    }
}
