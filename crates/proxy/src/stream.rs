use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use rustix::net::{RecvFlags, SendFlags, recv, send};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

use crate::buffer::Buffer;
use crate::peers;

/// A connection to a client or to a backend.
#[derive(Debug)]
pub enum Stream {
    /// In clear.
    Tcp(TcpStream),
    /// To a backend over TLS.
    Tls(Box<tokio_rustls::client::TlsStream<TcpStream>>),
}

impl Stream {
    /// Waits until there is something to read, or the end, without a buffer for it.
    pub fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Stream::Tcp(stream) => stream.poll_read_ready(cx),
            Stream::Tls(stream) => stream.get_ref().0.poll_read_ready(cx),
        }
    }

    /// Reads what is there into the free part of `buffer`, which must have one. 0 is the end.
    pub fn poll_fill(&mut self, cx: &mut Context<'_>, buffer: &mut Buffer) -> Poll<io::Result<usize>> {
        debug_assert!(!buffer.space().is_empty());
        let octets = match self {
            Stream::Tcp(stream) => ready!(poll_receive(stream, cx, buffer.space()))?,
            Stream::Tls(stream) => {
                let mut space = ReadBuf::new(buffer.space());
                ready!(Pin::new(&mut **stream).poll_read(cx, &mut space))?;
                space.filled().len()
            }
        };
        buffer.filled(octets);
        Poll::Ready(Ok(octets))
    }

    /// Reads what is there without asking whether it was announced. Who fails to write must look before it gives up: an
    /// answer may have come before the end, in events that are not fetched yet. Only for connections in clear.
    pub fn fill_now(&mut self, buffer: &mut Buffer) {
        if let Stream::Tcp(stream) = self
            && let Ok((_, octets)) = recv(stream, buffer.space(), RecvFlags::empty())
        {
            buffer.filled(octets);
        }
    }

    /// Reads into a buffer of somebody else's.
    pub fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self {
            Stream::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Stream::Tls(stream) => Pin::new(&mut **stream).poll_read(cx, buf),
        }
    }

    /// Writes some of `data`.
    pub fn poll_write(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        match self {
            Stream::Tcp(stream) => poll_transmit(stream, cx, data),
            Stream::Tls(stream) => Pin::new(&mut **stream).poll_write(cx, data),
        }
    }

    /// Writes some of several pieces with one system call.
    pub fn poll_write_vectored(
        &mut self,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self {
            Stream::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, pieces),
            Stream::Tls(stream) => Pin::new(&mut **stream).poll_write_vectored(cx, pieces),
        }
    }

    /// Lets what TLS holds back leave.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Stream::Tcp(_) => Poll::Ready(Ok(())),
            Stream::Tls(stream) => Pin::new(&mut **stream).poll_flush(cx),
        }
    }

    /// Says that nothing more will come from here.
    pub fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Stream::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Tls(stream) => Pin::new(&mut **stream).poll_shutdown(cx),
        }
    }

    /// Has the connection reset when it is dropped, instead of ended.
    pub fn reset(&self) {
        // A failure leaves the usual end.
        let _ = SockRef::from(self.tcp()).set_linger(Some(Duration::ZERO));
    }

    /// As [`peers::limit_unacknowledged`].
    pub fn limit_unacknowledged(&self, limit: Option<Duration>) {
        // A failure leaves the limit that there was.
        let _ = peers::limit_unacknowledged(self.tcp(), limit);
    }

    fn tcp(&self) -> &TcpStream {
        match self {
            Stream::Tcp(stream) => stream,
            Stream::Tls(stream) => stream.get_ref().0,
        }
    }

    /// Whether a kept connection is of no use any more: its other side closed it, or said something unasked.
    pub fn is_stale(&mut self) -> bool {
        let mut nobody = Context::from_waker(Waker::noop());
        // TLS may hold what it has read already.
        if matches!(self, Stream::Tcp(_)) && self.poll_readable(&mut nobody).is_pending() {
            return false;
        }
        // A read that took just what was there leaves the connection marked as readable: only reading tells.
        let mut octet = [0];
        self.poll_read(&mut nobody, &mut ReadBuf::new(&mut octet)).is_ready()
    }
}

/// Receives by a bare system call: what the C library puts around it (it is a cancellation point there) costs a
/// fiftieth of a small request.
fn poll_receive(stream: &TcpStream, cx: &mut Context<'_>, space: &mut [u8]) -> Poll<io::Result<usize>> {
    loop {
        ready!(stream.poll_read_ready(cx))?;
        let room = space.len();
        let receive = || Ok(recv(stream, &mut *space, RecvFlags::empty())?.1);
        if let Some(done) = at_once(stream, Interest::READABLE, room, receive) {
            return Poll::Ready(done);
        }
    }
}

/// As [`poll_receive`], the other way. Writing to a connection that the other side has closed is an error, and no
/// signal.
fn poll_transmit(stream: &TcpStream, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
    loop {
        ready!(stream.poll_write_ready(cx))?;
        let transmit = || Ok(send(stream, data, SendFlags::NOSIGNAL)?);
        if let Some(done) = at_once(stream, Interest::WRITABLE, data.len(), transmit) {
            return Poll::Ready(done);
        }
    }
}

/// Moves up to `most` octets; `None` when the kernel was not ready. Fewer than that, but some, mean that it is not
/// ready any more: asking once more would tell just that, and it tells by itself when it is again (edge-triggered).
fn at_once(
    stream: &TcpStream,
    interest: Interest,
    most: usize,
    mut call: impl FnMut() -> io::Result<usize>,
) -> Option<io::Result<usize>> {
    let mut moved = None;
    let outcome = stream.try_io(interest, || {
        let octets = *moved.insert(call()?);
        if octets > 0 && octets < most { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(octets) }
    });
    match (moved, outcome) {
        (Some(octets), _) => Some(Ok(octets)),
        (None, Err(error)) if error.kind() == io::ErrorKind::WouldBlock => None,
        (None, outcome) => Some(outcome),
    }
}
