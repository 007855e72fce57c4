//! The new process: takes the network over.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::unistd::{dup2_stderr, dup2_stdin};
use proximity_net::FdChannel;

use super::followers::Followers;
use super::messages::{Message, PROTOCOL, State, TalkError, hear, say};
use super::sockets::{Inherited, Label};
use crate::log;

/// How long the old process may take to stop writing: its disk may be slow.
const HAND_OVER: Duration = Duration::from_secs(30);
/// How long the old process may take to retire. It is not waited for any longer: the network is ours.
const RETIREMENT: Duration = Duration::from_secs(2);

/// The connection to the process that is to be replaced.
#[derive(Debug)]
pub struct Takeover {
    channel: FdChannel,
}

/// What was handed over.
#[derive(Debug, Default)]
pub struct HandedOver {
    /// What the old process knew.
    pub state: State,
    /// Its sockets.
    pub sockets: Inherited,
}

/// What came on standard input: the connection that a parent of ours put there. Standard input is `/dev/null`
/// afterwards.
pub fn connection_on_stdin() -> io::Result<UnixStream> {
    let stream = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    // Nothing but a connected unix socket has a peer of that kind.
    stream.peer_addr().map_err(|error| {
        let text =
            format!("standard input is no connection of another proximity: {error}: use `proximity upgrade`");
        io::Error::new(io::ErrorKind::InvalidInput, text)
    })?;
    dup2_stdin(File::open("/dev/null")?)?;
    Ok(stream)
}

impl Takeover {
    /// The takeover that the old process started us for.
    pub fn from_stdin() -> io::Result<Takeover> {
        connection_on_stdin().map(|stream| Takeover { channel: FdChannel::new(stream) })
    }

    /// Says that we can run, and takes what the old process hands over. Blocks until it has stopped writing.
    pub fn begin(&self) -> Result<HandedOver, TalkError> {
        let hello = Message::Hello { protocol: PROTOCOL, version: env!("CARGO_PKG_VERSION").into() };
        say(&self.channel, &hello, &[])?;
        let mut sockets = Inherited::default();
        loop {
            match hear(&self.channel, Some(HAND_OVER))? {
                (Message::Sockets(labels), descriptors) => sockets.add(labels, descriptors),
                (Message::State(state), _) => {
                    // Until now the old process listened, to tell why we failed; it will not be there for ever.
                    if let Some(stderr) = sockets.take_one(&Label::Stderr) {
                        dup2_stderr(stderr).map_err(io::Error::from)?;
                    }
                    return Ok(HandedOver { state: *state, sockets });
                }
                _ => {}
            }
        }
    }

    /// Says why it came to nothing; the old process goes on.
    pub fn refuse(&self, reason: String) {
        // When it is gone, nobody is left to tell.
        let _ = say(&self.channel, &Message::Refused { reason }, &[]);
    }

    /// Says that we serve, waits until the old process takes nothing any more, and has it follow the world.
    pub fn complete(self, pid: u32, followers: &Followers) {
        let retired =
            say(&self.channel, &Message::Serving, &[]).and_then(|()| hear(&self.channel, Some(RETIREMENT)));
        match retired {
            Ok((Message::Retired, _)) => log!(Info, "upgrade", "the old process has retired", pid = pid),
            Ok(_) => log!(Warn, "upgrade", "the old process did not retire in order", pid = pid),
            Err(error) => log!(Warn, "upgrade", "the old process did not retire", pid = pid, error = error),
        }
        followers.attach(pid, self.channel.into_stream());
    }
}
