use std::io;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h2::{RecvStream, SendStream};

use super::message;
use crate::side::Cut;

/// The body that comes in on a stream.
pub struct Incoming {
    stream: RecvStream,
    chunk: Bytes,
    trailers: Vec<u8>,
    is_over: bool,
}

/// The body that goes out on a stream.
pub struct Outgoing {
    stream: SendStream<Bytes>,
    is_ended: bool,
}

impl Incoming {
    pub fn new(stream: RecvStream) -> Incoming {
        Incoming { is_over: stream.is_end_stream(), stream, chunk: Bytes::new(), trailers: Vec::new() }
    }

    /// Takes it that there is no body. What comes all the same is not read: the stream is reset when this is dropped.
    pub fn expect_nothing(&mut self) {
        self.chunk.clear();
        self.is_over = true;
    }

    /// Octets that are there; 0 when the body is over.
    pub fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, Cut>> {
        while self.chunk.is_empty() && !self.is_over {
            match ready!(self.stream.poll_data(cx)) {
                Some(Ok(chunk)) => self.chunk = chunk,
                Some(Err(_)) => return Poll::Ready(Err(Cut::Connection)),
                None => {
                    let trailers = ready!(self.stream.poll_trailers(cx)).map_err(|_| Cut::Connection)?;
                    self.trailers = trailers.as_ref().map(message::lines).unwrap_or_default();
                    self.is_over = true;
                }
            }
        }
        Poll::Ready(Ok(self.chunk.len()))
    }

    pub fn data(&self) -> &[u8] {
        &self.chunk
    }

    /// Whether what [`Incoming::data`] has is the end, and no trailers follow.
    pub fn ends_here(&self) -> bool {
        self.is_over || self.stream.is_end_stream()
    }

    pub fn consume(&mut self, octets: usize) {
        self.chunk.advance(octets.min(self.chunk.len()));
        // The sender may go on by as much as was passed on, and no more is held here than its window.
        let _ = self.stream.flow_control().release_capacity(octets);
    }

    pub fn trailers(&self) -> &[u8] {
        &self.trailers
    }

    pub fn is_over(&self) -> bool {
        self.is_over && self.chunk.is_empty()
    }
}

impl Outgoing {
    pub fn new(stream: SendStream<Bytes>, is_ended: bool) -> Outgoing {
        Outgoing { stream, is_ended }
    }

    /// Takes as much as the other side's window allows.
    pub fn poll_send(&mut self, cx: &mut Context<'_>, data: &[u8], is_last: bool) -> Poll<io::Result<usize>> {
        if self.stream.capacity() == 0 {
            self.stream.reserve_capacity(data.len());
        }
        let capacity = loop {
            match self.stream.capacity() {
                0 => match ready!(self.stream.poll_capacity(cx)) {
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return Poll::Ready(Err(io::Error::other(error))),
                    None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
                },
                capacity => break capacity,
            }
        };
        let taken = capacity.min(data.len());
        let ends = is_last && taken == data.len();
        self.stream.send_data(Bytes::copy_from_slice(&data[..taken]), ends).map_err(io::Error::other)?;
        self.is_ended = ends;
        Poll::Ready(Ok(taken))
    }

    /// Sends the whole body at once; h2 holds it until the window allows.
    pub fn send_whole(&mut self, body: Bytes) {
        self.is_ended = true;
        let _ = self.stream.send_data(body, true);
    }

    /// Ends the body, unless its last piece has done so.
    pub fn finish(&mut self, trailers: &[u8]) {
        if std::mem::replace(&mut self.is_ended, true) {
            return;
        }
        // A stream that was reset meanwhile needs no end.
        let _ = match trailers {
            [] => self.stream.send_data(Bytes::new(), true),
            trailers => self.stream.send_trailers(message::fields(trailers)),
        };
    }

    pub fn is_ended(&self) -> bool {
        self.is_ended
    }

    /// Ready when the other side wants no more; an error when the connection is gone.
    pub fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<Result<h2::Reason, h2::Error>> {
        self.stream.poll_reset(cx)
    }

    /// Tells the other side that this is not the whole.
    pub fn reset(&mut self, reason: h2::Reason) {
        self.stream.send_reset(reason);
    }
}
