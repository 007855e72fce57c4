use std::io;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use tokio::net::TcpStream;

use crate::Reason;
use crate::buffer::{Buffer, Buffers, SMALL};
use crate::http1::write::push_chunk_size;
use crate::http1::{Chunked, Delimiter, Length, Step};
use crate::stream::Stream;

/// Octets that wait to be written before more is taken.
const MOST_PENDING: usize = 64 * 1024;
/// Pieces up to this size are joined with what waits; a larger one is written from where it is.
const JOINED: usize = 16 * 1024;

/// Where a body comes from.
pub trait Source {
    /// Octets of the body that are there; 0 when it is over.
    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, Cut>>;
    /// What [`Source::poll_data`] told of.
    fn data(&self) -> &[u8];
    /// Whether that is the end of the body.
    fn ends_here(&self) -> bool;
    /// Passes over octets that were used.
    fn consume(&mut self, octets: usize);
    /// The trailer section of a body that is over.
    fn trailers(&self) -> &[u8];
    /// Takes it that nothing more of what comes can be understood: the body is never over.
    fn spoil(&mut self) {}
    /// The connection that the rest of the body comes from as it is, and how long it is, when nothing of it was
    /// read yet.
    fn raw_rest(&mut self) -> Option<(&TcpStream, &mut u64)> {
        None
    }
}

/// Where a body goes.
pub trait Sink {
    /// Takes some octets; `is_last` when they are the end of the body.
    fn poll_send(&mut self, cx: &mut Context<'_>, data: &[u8], is_last: bool) -> Poll<io::Result<usize>>;
    /// Ends the body.
    fn finish(&mut self, trailers: &[u8]);
    /// Lets everything leave.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
    /// Whether everything that was taken has left.
    fn is_flushed(&self) -> bool {
        true
    }
    /// The connection that the body goes to as it is, when nothing waits before it.
    fn raw(&self) -> Option<&TcpStream> {
        None
    }
}

/// One side of an exchange over HTTP/1: a connection, the body that comes in on it and the one that goes out.
#[derive(Debug)]
pub struct Side {
    pub stream: Stream,
    /// What was read beyond the last head. Held only while there is something.
    pub input: Option<Buffer>,
    inflow: Inflow,
    /// Octets of the body at the beginning of `input`.
    ready: usize,
    pending: Vec<u8>,
    written: usize,
    chunks_out: bool,
    buffers: Rc<Buffers>,
}

/// Where the body that comes in ends.
#[derive(Debug)]
enum Inflow {
    Over,
    Known(u64),
    Chunked(Box<Chunked>),
    Close,
}

/// Why a body broke off.
#[derive(Debug)]
pub enum Cut {
    /// The connection ended or failed.
    Connection,
    /// What came was not a body.
    Nonsense(Reason),
}

impl Side {
    pub fn new(stream: Stream, buffers: Rc<Buffers>) -> Side {
        Side {
            stream,
            input: None,
            inflow: Inflow::Over,
            ready: 0,
            pending: Vec::new(),
            written: 0,
            chunks_out: false,
            buffers,
        }
    }

    /// Expects the body of a request.
    pub fn expect_request_body(&mut self, length: Length) {
        self.ready = 0;
        self.inflow = match length {
            Length::None => Inflow::Over,
            Length::Known(octets) => Inflow::Known(octets),
            Length::Chunked => Inflow::Chunked(Box::default()),
        };
    }

    /// Expects the body of a response.
    pub fn expect_response_body(&mut self, delimiter: Delimiter) {
        self.ready = 0;
        self.inflow = match delimiter {
            Delimiter::None => Inflow::Over,
            Delimiter::Known(octets) => Inflow::Known(octets),
            Delimiter::Chunked => Inflow::Chunked(Box::default()),
            Delimiter::Close => Inflow::Close,
        };
    }

    /// Whether the whole incoming body was taken.
    pub fn is_over(&self) -> bool {
        self.ready == 0
            && match &self.inflow {
                Inflow::Over => true,
                Inflow::Known(left) => *left == 0,
                Inflow::Chunked(chunked) => chunked.is_over(),
                Inflow::Close => false,
            }
    }

    /// Whether the other side left. What it sends ahead is kept, as much as fits.
    pub fn is_gone(&mut self, cx: &mut Context<'_>) -> bool {
        loop {
            match self.stream.poll_readable(cx) {
                Poll::Pending => return false,
                Poll::Ready(Err(_)) => return true,
                Poll::Ready(Ok(())) => {}
            }
            if self.input.as_mut().is_some_and(|input| input.space().is_empty()) {
                return false;
            }
            match self.poll_fill(cx) {
                Poll::Pending => return false,
                Poll::Ready(Ok(0) | Err(_)) => return true,
                Poll::Ready(Ok(_)) => {}
            }
        }
    }

    /// Reads what is there, with room made first. 0 is the end of the connection.
    pub fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let buffer = self.input.get_or_insert_with(|| self.buffers.small());
        let polled = self.stream.poll_fill(cx, buffer);
        if polled.is_pending() && buffer.is_empty() {
            // Of thousands that wait for their backends, none holds room for the answer.
            self.input = None;
        }
        polled
    }

    /// Takes in what the kernel has, although it has not been told of yet.
    pub fn look_again(&mut self) {
        let buffer = self.input.get_or_insert_with(|| self.buffers.small());
        self.stream.fill_now(buffer);
    }

    fn pass(&mut self, octets: usize) {
        if let Some(buffer) = &mut self.input {
            buffer.consume(octets);
        }
    }

    /// Before the next read of a body: a large buffer when much more is to come.
    fn make_room(&mut self) {
        let buffer = self.input.get_or_insert_with(|| self.buffers.small());
        let is_long = match &self.inflow {
            Inflow::Known(left) => *left > 2 * SMALL as u64,
            _ => false,
        };
        if is_long {
            self.buffers.enlarge(buffer);
        }
    }

    /// The head of a message that goes out first; its body is sent in chunks or as it is.
    pub fn begin(&mut self, chunked: bool) -> &mut Vec<u8> {
        self.chunks_out = chunked;
        if self.pending.capacity() == 0 {
            self.pending = self.buffers.words();
        }
        &mut self.pending
    }

    /// Whether nothing that was begun has left yet.
    pub fn nothing_left(&self) -> bool {
        self.written == 0 && !self.pending.is_empty()
    }

    /// Gives memory back before a wait: nothing stays allocated for an idle connection.
    pub fn rest(&mut self) {
        if self.input.as_ref().is_some_and(Buffer::is_empty) {
            self.input = None;
        }
        if self.pending.is_empty() {
            self.buffers.put_words(std::mem::take(&mut self.pending));
        }
    }

    fn wrote_all(&mut self) {
        self.written = 0;
        self.pending.clear();
    }
}

impl Source for Side {
    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, Cut>> {
        loop {
            if self.ready > 0 {
                return Poll::Ready(Ok(self.ready));
            }
            let held = self.input.as_ref().map_or(&[][..], Buffer::data);
            let mut skip = 0;
            match &mut self.inflow {
                Inflow::Over => return Poll::Ready(Ok(0)),
                Inflow::Known(left) => {
                    self.ready = (held.len() as u64).min(*left) as usize;
                    *left -= self.ready as u64;
                    if *left == 0 && self.ready == 0 {
                        return Poll::Ready(Ok(0));
                    }
                }
                Inflow::Chunked(chunked) => match chunked.step(held).map_err(Cut::Nonsense)? {
                    Step::Data { skip: framing, data } => (skip, self.ready) = (framing, data),
                    Step::More { skip: framing } => skip = framing,
                    Step::End { skip: framing } => {
                        self.pass(framing);
                        return Poll::Ready(Ok(0));
                    }
                },
                Inflow::Close => self.ready = held.len(),
            }
            self.pass(skip);
            if self.ready > 0 {
                continue;
            }
            self.make_room();
            match ready!(self.poll_fill(cx)) {
                Ok(0) if matches!(self.inflow, Inflow::Close) => self.inflow = Inflow::Over,
                Ok(0) | Err(_) => return Poll::Ready(Err(Cut::Connection)),
                Ok(_) => {}
            }
        }
    }

    fn data(&self) -> &[u8] {
        self.input.as_ref().map_or(&[], |buffer| &buffer.data()[..self.ready])
    }

    fn consume(&mut self, octets: usize) {
        self.ready -= octets.min(self.ready);
        self.pass(octets);
    }

    fn trailers(&self) -> &[u8] {
        match &self.inflow {
            Inflow::Chunked(chunked) => chunked.trailers(),
            _ => &[],
        }
    }

    fn ends_here(&self) -> bool {
        matches!(self.inflow, Inflow::Over | Inflow::Known(0))
    }

    fn spoil(&mut self) {
        self.ready = 0;
        self.inflow = Inflow::Close;
    }

    fn raw_rest(&mut self) -> Option<(&TcpStream, &mut u64)> {
        if self.ready > 0 || self.input.as_ref().is_some_and(|input| !input.is_empty()) {
            return None;
        }
        match (&self.stream, &mut self.inflow) {
            (Stream::Tcp(stream), Inflow::Known(left)) => Some((stream, left)),
            _ => None,
        }
    }
}

impl Sink for Side {
    fn poll_send(&mut self, cx: &mut Context<'_>, data: &[u8], _: bool) -> Poll<io::Result<usize>> {
        if self.chunks_out {
            if self.pending.len() >= MOST_PENDING {
                ready!(self.poll_flush(cx))?;
            }
            let data = &data[..data.len().min(MOST_PENDING)];
            push_chunk_size(&mut self.pending, data.len());
            self.pending.extend_from_slice(data);
            self.pending.extend_from_slice(b"\r\n");
            return Poll::Ready(Ok(data.len()));
        }
        loop {
            if self.pending.is_empty() {
                return self.stream.poll_write(cx, data);
            }
            if data.len() <= JOINED && self.pending.len() < MOST_PENDING {
                self.pending.extend_from_slice(data);
                return Poll::Ready(Ok(data.len()));
            }
            let head = &self.pending[self.written..];
            let pieces = [io::IoSlice::new(head), io::IoSlice::new(data)];
            let octets = ready!(self.stream.poll_write_vectored(cx, &pieces))?;
            match octets.checked_sub(head.len()) {
                None => self.written += octets,
                Some(0) => self.wrote_all(),
                Some(of_data) => {
                    self.wrote_all();
                    return Poll::Ready(Ok(of_data));
                }
            }
        }
    }

    fn finish(&mut self, trailers: &[u8]) {
        if std::mem::take(&mut self.chunks_out) {
            self.pending.extend_from_slice(b"0\r\n");
            self.pending.extend_from_slice(trailers);
            self.pending.extend_from_slice(b"\r\n");
        }
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.pending.len() {
            let octets = ready!(self.stream.poll_write(cx, &self.pending[self.written..]))?;
            if octets == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += octets;
        }
        self.wrote_all();
        self.stream.poll_flush(cx)
    }

    fn is_flushed(&self) -> bool {
        self.pending.is_empty()
    }

    fn raw(&self) -> Option<&TcpStream> {
        match &self.stream {
            Stream::Tcp(stream) if self.pending.is_empty() && !self.chunks_out => Some(stream),
            _ => None,
        }
    }
}
