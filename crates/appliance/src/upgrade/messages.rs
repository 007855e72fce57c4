//! What the processes of an upgrade say to each other. The new one may be of a later version: it is the one that
//! knows both.

use std::borrow::Cow;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use proximity_dhcp::Held;
use proximity_net::FdChannel;
use proximity_table::{Change, Generation, Health, ProbeKey};
use serde::{Deserialize, Serialize};

use super::sockets::Label;

/// Version of these messages; another one is refused, which leaves a restart.
pub const PROTOCOL: u32 = 1;
/// How long the other side may take nothing.
const PATIENCE: Duration = Duration::from_secs(10);

/// A message. The order in which they come is that of the upgrade.
#[derive(Debug, Serialize, Deserialize)]
pub enum Message<'a> {
    /// New to old: the configuration is good, hand over.
    Hello {
        /// [`PROTOCOL`].
        protocol: u32,
        /// Its own.
        version: Cow<'a, str>,
    },
    /// New to old: it will not do; go on yourself.
    Refused {
        /// Why, and what to do.
        reason: String,
    },
    /// Old to new: what the descriptors of this frame are.
    Sockets(Vec<Label>),
    /// Old to new: everything else; the store is closed.
    State(Box<State>),
    /// New to old: the network is mine.
    Serving,
    /// Old to new: nothing is taken here any more.
    Retired,
    /// New to those before it: what changed in the world.
    Changes(Generation, Cow<'a, [Change]>),
    /// New to those before it: the appliance is stopped.
    Stop,
}

/// What a process knows that neither the store nor the kernel nor the file tells.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct State {
    /// The old process.
    pub pid: u32,
    /// What the probes found.
    pub verdicts: Vec<(Arc<str>, ProbeKey, Health)>,
    /// The WAN's default gateway.
    pub gateway: Option<Ipv4Addr>,
    /// The WAN's lease.
    pub wan_lease: Option<Held>,
    /// Set when forwarding was switched on: the value before, if that was another.
    pub forwarding_before: Option<Option<String>>,
    /// Services that were stopped by hand.
    pub stopped: Vec<String>,
}

/// Why nothing was understood.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum TalkError {
    #[error("it closed the connection")]
    Closed,
    #[error("it did not answer within {} s", .0.as_secs())]
    Silent(Duration),
    #[error("it says what nobody understands: {0}")]
    Nonsense(#[from] serde_json::Error),
    #[error("the connection to it failed: {0}")]
    Broken(#[from] io::Error),
}

/// Says something, with the descriptors that belong to it.
pub fn say(
    channel: &FdChannel,
    message: &Message<'_>,
    descriptors: &[BorrowedFd<'_>],
) -> Result<(), TalkError> {
    Ok(channel.send(&serde_json::to_vec(message)?, descriptors, PATIENCE)?)
}

/// Hears the next message; without `patience` it waits for ever.
pub fn hear(
    channel: &FdChannel,
    patience: Option<Duration>,
) -> Result<(Message<'static>, Vec<OwnedFd>), TalkError> {
    match channel.receive(patience) {
        Ok(Some(frame)) => Ok((serde_json::from_slice(&frame.bytes)?, frame.descriptors)),
        Ok(None) => Err(TalkError::Closed),
        Err(error) => Err(match (error.kind(), patience) {
            (io::ErrorKind::TimedOut, Some(patience)) => TalkError::Silent(patience),
            (io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset, _) => TalkError::Closed,
            _ => TalkError::Broken(error),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn what_is_said_is_heard_and_what_is_not_is_told() {
        let (here, there) = FdChannel::pair().unwrap();
        let null = std::fs::File::open("/dev/null").unwrap();
        say(&here, &Message::Sockets(vec![Label::Stderr]), &[null.as_fd()]).unwrap();
        let (Message::Sockets(labels), descriptors) = hear(&there, Some(PATIENCE)).unwrap() else { panic!() };
        assert_eq!((labels.as_slice(), descriptors.len()), (&[Label::Stderr][..], 1));
        let silent = hear(&there, Some(Duration::from_millis(10)));
        assert!(matches!(silent, Err(TalkError::Silent(_))), "{silent:?}");
        here.send(b"{\"Dance\":1}", &[], PATIENCE).unwrap();
        assert!(matches!(hear(&there, Some(PATIENCE)), Err(TalkError::Nonsense(_))));
        drop(here);
        assert!(matches!(hear(&there, None), Err(TalkError::Closed)));
    }
}
