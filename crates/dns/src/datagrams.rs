use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg, sendmmsg};

/// Datagrams that one system call moves, at most.
pub(crate) const MOST: usize = 128;
/// No query is longer; what is, is cut and then malformed.
const LONGEST: usize = 2048;

/// Room for the datagrams of one system call, with those whom they came from.
pub(crate) struct Received {
    octets: Vec<u8>,
    headers: MultiHeaders<SockaddrStorage>,
    /// Length and source of each.
    messages: Vec<(usize, Option<SockaddrStorage>)>,
}

/// Replies that leave together.
pub(crate) struct Replies {
    headers: MultiHeaders<SockaddrStorage>,
    buffers: Vec<Vec<u8>>,
    peers: [Option<SockaddrStorage>; MOST],
    /// Of those in `buffers`, which are to be sent: from where, and how many.
    sent: usize,
    count: usize,
}

/// What became of sending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sent {
    /// Everything has left, but for so many that the kernel refused.
    All { refused: u64 },
    /// The kernel takes no more at the moment; so many were refused.
    Blocked { refused: u64 },
}

impl Received {
    pub fn new() -> Received {
        Received {
            octets: vec![0; MOST * LONGEST],
            headers: MultiHeaders::preallocate(MOST, None),
            messages: Vec::with_capacity(MOST),
        }
    }

    /// Takes what waits, as much as there is room for. `WouldBlock` when nothing waits.
    pub fn receive(&mut self, socket: &UdpSocket) -> io::Result<usize> {
        self.messages.clear();
        let mut rooms = self.octets.chunks_exact_mut(LONGEST);
        let mut slices: [[IoSliceMut<'_>; 1]; MOST] =
            std::array::from_fn(|_| [IoSliceMut::new(rooms.next().unwrap_or_default())]);
        let flags = MsgFlags::MSG_DONTWAIT;
        let received = recvmmsg(socket.as_raw_fd(), &mut self.headers, &mut slices, flags, None)?;
        self.messages.extend(received.map(|message| (message.bytes, message.address)));
        Ok(self.messages.len())
    }

    /// The datagrams, each with its source; `None` when the kernel told none that is understood.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], Option<(SocketAddr, SockaddrStorage)>)> {
        self.messages.iter().zip(self.octets.chunks_exact(LONGEST)).map(|((length, source), octets)| {
            let source = source.and_then(|source| Some((address(&source)?, source)));
            (&octets[..(*length).min(LONGEST)], source)
        })
    }
}

impl Replies {
    pub fn new() -> Replies {
        Replies {
            headers: MultiHeaders::preallocate(MOST, None),
            buffers: (0..MOST).map(|_| Vec::with_capacity(512)).collect(),
            peers: [None; MOST],
            sent: 0,
            count: 0,
        }
    }

    /// Forgets what has not left.
    pub fn clear(&mut self) {
        (self.sent, self.count) = (0, 0);
    }

    /// Where the next reply is written; it is one as soon as [`Replies::to`] says for whom. There is room for
    /// [`MOST`].
    pub fn next(&mut self) -> &mut Vec<u8> {
        &mut self.buffers[self.count]
    }

    /// Says for whom the reply is that was written.
    pub fn to(&mut self, peer: SockaddrStorage) {
        self.peers[self.count] = Some(peer);
        self.count += 1;
    }

    /// Sends what was written and has not left.
    pub fn send(&mut self, socket: &UdpSocket) -> Sent {
        let mut refused = 0;
        while self.sent < self.count {
            let range = self.sent..self.count;
            let mut replies = self.buffers[range.clone()].iter();
            let slices: [[IoSlice<'_>; 1]; MOST] =
                std::array::from_fn(|_| [IoSlice::new(replies.next().map_or(&[], Vec::as_slice))]);
            let (slices, peers) = (&slices[..range.len()], &self.peers[range.clone()]);
            let flags = MsgFlags::MSG_DONTWAIT;
            match sendmmsg(socket.as_raw_fd(), &mut self.headers, slices, peers, [], flags) {
                Ok(left) => self.sent += left.count(),
                Err(Errno::EAGAIN) => return Sent::Blocked { refused },
                Err(Errno::EINTR) => {}
                // It is the first that the kernel does not take; the others have their turn.
                Err(_) => {
                    self.sent += 1;
                    refused += 1;
                }
            }
        }
        self.clear();
        Sent::All { refused }
    }
}

fn address(source: &SockaddrStorage) -> Option<SocketAddr> {
    match (source.as_sockaddr_in(), source.as_sockaddr_in6()) {
        (Some(v4), _) => Some(SocketAddr::new(IpAddr::V4(v4.ip()), v4.port())),
        (None, Some(v6)) => Some(SocketAddr::new(IpAddr::V6(v6.ip()), v6.port())),
        (None, None) => None,
    }
}
