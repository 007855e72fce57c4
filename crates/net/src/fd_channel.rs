//! Frames with open descriptors between two processes of one machine (`SCM_RIGHTS`, unix(7)): how sockets are
//! handed over.

#![allow(unsafe_code)] // descriptors arrive as numbers

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::cmsg_space;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

/// Most descriptors of one frame; the kernel takes 253 (`SCM_MAX_FD`).
pub const MOST_DESCRIPTORS: usize = 250;
/// Longest frame that is read, in octets: some 100,000 objects of the configuration.
const LONGEST: usize = 256 << 20;
/// Octets before a frame's content: its length, little-endian.
const HEADER: usize = 4;

/// One end of a connection that carries frames and descriptors. Blocking.
#[derive(Debug)]
pub struct FdChannel {
    stream: UnixStream,
}

/// What came in.
#[derive(Debug)]
pub struct Frame {
    /// The content.
    pub bytes: Vec<u8>,
    /// Descriptors that came with it, closed on exec.
    pub descriptors: Vec<OwnedFd>,
}

impl FdChannel {
    /// A channel over a stream of type unix.
    pub fn new(stream: UnixStream) -> FdChannel {
        FdChannel { stream }
    }

    /// Two ends that are connected.
    pub fn pair() -> io::Result<(FdChannel, FdChannel)> {
        let (one, other) = UnixStream::pair()?;
        Ok((FdChannel::new(one), FdChannel::new(other)))
    }

    /// Sends a frame. The descriptors stay open here too.
    ///
    /// # Errors
    /// `InvalidInput` for more than [`MOST_DESCRIPTORS`] or a frame that is too long; else what the socket
    /// says, `WouldBlock` when the other side takes nothing for `patience`.
    pub fn send(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>], patience: Duration) -> io::Result<()> {
        let header = header(bytes)?;
        if descriptors.len() > MOST_DESCRIPTORS {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.stream.set_write_timeout(Some(patience))?;
        let numbers: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&numbers)];
        let control = if numbers.is_empty() { &[][..] } else { &rights[..] };
        // The descriptors go with the header, alone: a reader of the content never meets any.
        let part = [IoSlice::new(&header)];
        let sent = sendmsg::<()>(self.stream.as_raw_fd(), &part, control, MsgFlags::MSG_NOSIGNAL, None)?;
        (&self.stream).write_all(&header[sent..])?;
        (&self.stream).write_all(bytes)
    }

    /// The next frame; `None` when the other side has closed. Without `patience` it waits for ever.
    ///
    /// # Errors
    /// `TimedOut` when the whole frame is not there in time, `InvalidData` when it is none, `UnexpectedEof`
    /// when it breaks off; else what the socket says.
    pub fn receive(&self, patience: Option<Duration>) -> io::Result<Option<Frame>> {
        let deadline = patience.map(|patience| Instant::now() + patience);
        let mut header = [0; HEADER];
        let mut descriptors = Vec::new();
        let mut read = 0;
        while read < HEADER {
            self.wait_at_most(deadline)?;
            match self.receive_some(&mut header[read..], &mut descriptors) {
                Ok(0) if read == 0 => return Ok(None),
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => read += count,
                Err(error) => retry(error)?,
            }
        }
        let length = u32::from_le_bytes(header) as usize;
        if length > LONGEST {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut bytes = Vec::new();
        let mut piece = vec![0; length.min(64 * 1024)];
        while bytes.len() < length {
            self.wait_at_most(deadline)?;
            let room = piece.len().min(length - bytes.len());
            match (&self.stream).read(&mut piece[..room]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => bytes.extend_from_slice(&piece[..count]),
                Err(error) => retry(error)?,
            }
        }
        Ok(Some(Frame { bytes, descriptors }))
    }

    /// The stream below, for frames without descriptors; see [`framed`].
    pub fn into_stream(self) -> UnixStream {
        self.stream
    }

    fn wait_at_most(&self, deadline: Option<Instant>) -> io::Result<()> {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.stream.set_read_timeout(left)
    }

    fn receive_some(&self, buffer: &mut [u8], descriptors: &mut Vec<OwnedFd>) -> io::Result<usize> {
        let mut control = cmsg_space!([RawFd; MOST_DESCRIPTORS]);
        let mut parts = [IoSliceMut::new(buffer)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<()>(self.stream.as_raw_fd(), &mut parts, Some(&mut control), flags)?;
        for item in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(numbers) = item {
                // SAFETY: the kernel made these descriptors for this message; nobody else knows them.
                descriptors.extend(numbers.into_iter().map(|number| unsafe { OwnedFd::from_raw_fd(number) }));
            }
        }
        if message.flags.contains(MsgFlags::MSG_CTRUNC) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "descriptors were lost: too many are open",
            ));
        }
        Ok(message.bytes)
    }
}

/// A frame without descriptors as it goes over the stream.
///
/// # Errors
/// `InvalidInput` for one that would not be read.
pub fn framed(bytes: &[u8]) -> io::Result<Vec<u8>> {
    Ok([&header(bytes)?, bytes].concat())
}

fn header(bytes: &[u8]) -> io::Result<[u8; HEADER]> {
    let length = u32::try_from(bytes.len()).ok().filter(|length| *length as usize <= LONGEST);
    length.map(u32::to_le_bytes).ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

/// A timeout of the socket is looked at by the caller's deadline, an interruption is none of its business.
fn retry(error: io::Error) -> io::Result<()> {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(()),
        _ => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;

    const SOON: Duration = Duration::from_secs(5);

    #[test]
    fn a_listening_socket_goes_over_with_the_connections_that_wait_in_it() {
        let (here, there) = FdChannel::pair().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut early = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        early.write_all(b"early").unwrap();
        here.send(b"a listener", &[listener.as_fd()], SOON).unwrap();
        here.send(b"", &[], SOON).unwrap();
        drop((listener, here));
        let Frame { bytes, mut descriptors } = there.receive(Some(SOON)).unwrap().unwrap();
        assert_eq!((bytes.as_slice(), descriptors.len()), (&b"a listener"[..], 1));
        let (mut stream, _) = TcpListener::from(descriptors.remove(0)).accept().unwrap();
        let mut text = [0; 5];
        stream.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"early");
        let empty = there.receive(Some(SOON)).unwrap().unwrap();
        assert!(empty.bytes.is_empty() && empty.descriptors.is_empty());
        assert!(there.receive(Some(SOON)).unwrap().is_none(), "closed");
    }

    #[test]
    fn frames_are_bounded_and_broken_ones_are_refused() {
        let (here, there) = FdChannel::pair().unwrap();
        let error = there.receive(Some(Duration::from_millis(20))).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let own = here.stream.try_clone().unwrap();
        let many = vec![own.as_fd(); MOST_DESCRIPTORS + 1];
        assert_eq!(here.send(b"", &many, SOON).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        here.send(b"most", &many[1..], SOON).unwrap();
        assert_eq!(there.receive(Some(SOON)).unwrap().unwrap().descriptors.len(), MOST_DESCRIPTORS);
        (&here.stream).write_all(&framed(b"whole").unwrap()).unwrap();
        assert_eq!(there.receive(Some(SOON)).unwrap().unwrap().bytes, b"whole");
        (&here.stream).write_all(&[0xff; 4]).unwrap();
        assert_eq!(there.receive(Some(SOON)).unwrap_err().kind(), io::ErrorKind::InvalidData);
        (&here.stream).write_all(&[9, 0, 0, 0, 1]).unwrap();
        drop((own, here));
        assert_eq!(there.receive(Some(SOON)).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
