//! Sockets on their way from one process to the next, by what they are.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use proximity_net::FdChannel;
use proximity_net::fd_channel::MOST_DESCRIPTORS;
use proximity_proxy::StreamPort;
use proximity_table::Protocol;
use serde::{Deserialize, Serialize};

use super::messages::{Message, TalkError, say};

/// What a descriptor is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Label {
    /// Listens for HTTP; one for each data thread.
    Proxy(SocketAddr),
    /// Hears DNS questions; one for each data thread.
    DnsUdp(SocketAddr),
    /// Listens for DNS over TCP; one for each data thread.
    DnsTcp(SocketAddr),
    /// Takes what comes for a forwarded port; one for each data thread.
    Forward(Protocol, u16),
    /// Listens for the admin API.
    AdminTcp(SocketAddr),
    /// Listens on the admin socket at this path.
    AdminUnix(PathBuf),
    /// Hears DHCP on the link of this name and index: another link of the same name is another wire.
    Wire(String, u32),
    /// Leads to a process that was replaced earlier and still carries connections.
    Retired(u32),
    /// Leads to the supervisor.
    Supervisor,
    /// Where errors are printed.
    Stderr,
}

/// Sockets that are kept open here so that another process can have them.
pub type Kept = Vec<(Label, OwnedFd)>;

/// What another process left. Whatever is not taken is closed when this is dropped.
#[derive(Debug, Default)]
pub struct Inherited(HashMap<Label, Vec<OwnedFd>>);

impl Inherited {
    /// Adds what came in one frame.
    pub fn add(&mut self, labels: Vec<Label>, descriptors: Vec<OwnedFd>) {
        for (label, descriptor) in labels.into_iter().zip(descriptors) {
            self.0.entry(label).or_default().push(descriptor);
        }
    }

    /// Whether nothing was handed over.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All descriptors of this label.
    pub fn take(&mut self, label: &Label) -> Vec<OwnedFd> {
        self.0.remove(label).unwrap_or_default()
    }

    /// The descriptor of this label.
    pub fn take_one(&mut self, label: &Label) -> Option<OwnedFd> {
        self.take(label).pop()
    }

    /// All that take what comes for forwarded ports.
    pub fn take_forwards(&mut self) -> Vec<(StreamPort, OwnedFd)> {
        let ports = self.0.extract_if(|label, _| matches!(label, Label::Forward(..)));
        let ports = ports.filter_map(|(label, sockets)| match label {
            Label::Forward(protocol, number) => Some((StreamPort { protocol, number }, sockets)),
            _ => None,
        });
        ports.flat_map(|(port, sockets)| sockets.into_iter().map(move |socket| (port, socket))).collect()
    }

    /// The processes that were replaced earlier.
    pub fn take_retired(&mut self) -> Vec<(u32, OwnedFd)> {
        let labels: Vec<u32> = self
            .0
            .keys()
            .filter_map(|label| if let Label::Retired(pid) = label { Some(*pid) } else { None })
            .collect();
        labels.into_iter().filter_map(|pid| Some((pid, self.take_one(&Label::Retired(pid))?))).collect()
    }

    /// Admin sockets at paths that nobody wants any more.
    pub fn left_paths(&self) -> impl Iterator<Item = &PathBuf> {
        self.0.keys().filter_map(|label| if let Label::AdminUnix(path) = label { Some(path) } else { None })
    }
}

/// Sends sockets, in as many frames as they need.
pub fn send(channel: &FdChannel, kept: &Kept) -> Result<(), TalkError> {
    for some in kept.chunks(MOST_DESCRIPTORS) {
        let labels = some.iter().map(|(label, _)| label.clone()).collect();
        let descriptors: Vec<BorrowedFd<'_>> =
            some.iter().map(|(_, descriptor)| descriptor.as_fd()).collect();
        say(channel, &Message::Sockets(labels), &descriptors)?;
    }
    Ok(())
}

/// Deals inherited sockets to `threads` threads: each gets one at least, opened by `open` where too few were
/// left, and none is lost where too many were, for connections may wait in each.
pub fn deal<S, E>(
    inherited: Vec<S>,
    threads: usize,
    mut open: impl FnMut() -> Result<S, E>,
) -> Result<Vec<Vec<S>>, E> {
    let mut hands: Vec<Vec<S>> = (0..threads).map(|_| Vec::new()).collect();
    for (at, socket) in inherited.into_iter().enumerate() {
        hands[at % threads].push(socket);
    }
    for hand in hands.iter_mut().filter(|hand| hand.is_empty()) {
        hand.push(open()?);
    }
    Ok(hands)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upgrade::messages::hear;

    #[test]
    fn every_thread_gets_a_socket_and_none_is_lost() {
        let mut opened = 100;
        let mut deal = |inherited: Vec<u32>, threads| {
            let open = || {
                opened += 1;
                Ok::<u32, ()>(opened)
            };
            deal(inherited, threads, open).unwrap()
        };
        assert_eq!(deal(vec![1, 2, 3, 4, 5], 2), [vec![1, 3, 5], vec![2, 4]]);
        assert_eq!(deal(vec![1], 3), [vec![1], vec![101], vec![102]]);
        assert_eq!(deal(vec![], 1), [vec![103]]);
        assert_eq!(super::deal(vec![], 1, || Err::<u32, _>("taken")), Err("taken"));
    }

    #[test]
    fn more_sockets_than_a_frame_takes_go_in_several() {
        let (here, there) = FdChannel::pair().unwrap();
        let null = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        let count = MOST_DESCRIPTORS + 3;
        let kept: Kept = (0..count).map(|at| (Label::Retired(at as u32), null())).collect();
        send(&here, &kept).unwrap();
        let mut inherited = Inherited::default();
        for _ in 0..2 {
            let (Message::Sockets(labels), descriptors) = hear(&there, None).unwrap() else { panic!() };
            assert_eq!(labels.len(), descriptors.len());
            inherited.add(labels, descriptors);
        }
        let mut pids: Vec<u32> = inherited.take_retired().into_iter().map(|(pid, _)| pid).collect();
        pids.sort_unstable();
        assert_eq!(pids, (0..count as u32).collect::<Vec<_>>());
        assert!(inherited.take_retired().is_empty());
    }
}
