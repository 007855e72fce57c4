use std::future::poll_fn;
use std::io;
use std::net::Shutdown;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use socket2::SockRef;
use tokio::net::TcpStream;

use crate::StreamReason;
use crate::buffer::{Buffer, Buffers};

/// Octets on their way between a client and a target, as they come: the end of one direction is passed on as
/// the end of that direction alone, and no more is read than the other side takes. Neither direction holds a
/// buffer while nothing is on the way.
pub struct Pair<'a> {
    client: &'a TcpStream,
    target: &'a TcpStream,
    there: Half,
    back: Half,
    buffers: Rc<Buffers>,
}

struct Half {
    buffer: Option<Buffer>,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// The source has ended; what it sent is on its way.
    Ended,
    /// The end was passed on.
    Shut,
}

/// Which side of a direction broke.
enum Broken {
    Source,
    Sink,
}

impl<'a> Pair<'a> {
    /// Between these two; `first` goes to the target before anything else.
    pub fn new(
        client: &'a TcpStream,
        target: &'a TcpStream,
        first: Option<Buffer>,
        buffers: &Rc<Buffers>,
    ) -> Pair<'a> {
        let half = |buffer| Half { buffer, state: State::Open };
        Pair { client, target, there: half(first), back: half(None), buffers: buffers.clone() }
    }

    /// Carries until both directions have ended or one broke. `moved` is told of the octets from the client and
    /// to it.
    pub async fn run(&mut self, moved: impl Fn(u64, u64)) -> Result<(), StreamReason> {
        poll_fn(|cx| {
            let (mut received, mut sent) = (0, 0);
            let there = self.there.poll(cx, self.client, self.target, &self.buffers, &mut received);
            let back = self.back.poll(cx, self.target, self.client, &self.buffers, &mut sent);
            if received + sent > 0 {
                moved(received, sent);
            }
            match (there, back) {
                (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => Poll::Ready(Ok(())),
                (Poll::Ready(Err(Broken::Source)), _) | (_, Poll::Ready(Err(Broken::Sink))) => {
                    Poll::Ready(Err(StreamReason::ClientReset))
                }
                (Poll::Ready(Err(Broken::Sink)), _) | (_, Poll::Ready(Err(Broken::Source))) => {
                    Poll::Ready(Err(StreamReason::BackendReset))
                }
                _ => Poll::Pending,
            }
        })
        .await
    }
}

impl Half {
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &TcpStream,
        to: &TcpStream,
        buffers: &Rc<Buffers>,
        moved: &mut u64,
    ) -> Poll<Result<(), Broken>> {
        if self.state == State::Shut {
            return Poll::Ready(Ok(()));
        }
        loop {
            if let Some(buffer) = self.buffer.as_mut().filter(|buffer| !buffer.is_empty()) {
                ready!(to.poll_write_ready(cx)).map_err(|_| Broken::Sink)?;
                match to.try_write(buffer.data()) {
                    Ok(octets) => {
                        buffer.consume(octets);
                        *moved += octets as u64;
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(_) => return Poll::Ready(Err(Broken::Sink)),
                }
                continue;
            }
            if self.state == State::Ended {
                self.buffer = None;
                self.state = State::Shut;
                // Whoever is gone already finds out by what it sends.
                let _ = SockRef::from(to).shutdown(Shutdown::Write);
                return Poll::Ready(Ok(()));
            }
            if from.poll_read_ready(cx).map_err(|_| Broken::Source)?.is_pending() {
                self.buffer = None;
                return Poll::Pending;
            }
            let buffer = self.buffer.get_or_insert_with(|| buffers.small());
            match from.try_read(buffer.space()) {
                Ok(0) => self.state = State::Ended,
                Ok(octets) => {
                    buffer.filled(octets);
                    if octets == buffer.size() {
                        // More is coming than fits: it goes faster in large pieces.
                        buffers.enlarge(buffer);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return Poll::Ready(Err(Broken::Source)),
            }
        }
    }
}
