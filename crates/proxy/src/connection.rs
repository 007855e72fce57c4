use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering::Relaxed};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::{Framing, Reason};

/// What the sweeper and the drain need to know of a client connection. The connection and its requests
/// write it, all on one thread; it is atomic only because an upgraded connection must be `Send`.
#[derive(Debug)]
pub struct Activity {
    /// Seconds of the thread's clock.
    tick: Arc<AtomicU32>,
    /// When the present phase began, or when octets last moved.
    since: AtomicU32,
    /// A request is being answered.
    busy: AtomicBool,
    /// A request head has begun and not ended.
    inside_head: AtomicBool,
    /// The client does not take what was written.
    blocked: AtomicBool,
    /// The connection was upgraded: what it carries is no longer HTTP.
    upgraded: AtomicBool,
    /// `Reason` as a number plus one, 0 for none.
    refused: AtomicU8,
}

/// What a connection is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Nothing.
    Idle,
    /// It is sending a request head.
    Head,
    /// A request is being answered, and octets move or are waited for.
    Answering,
    /// The client does not take its answer.
    Unread,
}

/// A client connection whose octets pass the framing check before the HTTP parser sees them.
///
/// What is refused is overwritten with NUL, which no parser accepts in a head: so the parser itself answers
/// the requests before it in order, then 400, and closes.
#[derive(Debug)]
pub struct Guarded {
    stream: TcpStream,
    framing: Framing,
    activity: Arc<Activity>,
}

impl Activity {
    pub fn new(tick: Arc<AtomicU32>) -> Activity {
        Activity {
            since: AtomicU32::new(tick.load(Relaxed)),
            tick,
            busy: AtomicBool::new(false),
            inside_head: AtomicBool::new(false),
            blocked: AtomicBool::new(false),
            upgraded: AtomicBool::new(false),
            refused: AtomicU8::new(0),
        }
    }

    pub fn request_began(&self) {
        self.busy.store(true, Relaxed);
    }

    pub fn request_ended(&self) {
        self.busy.store(false, Relaxed);
        self.touch();
    }

    pub fn upgraded(&self) {
        self.upgraded.store(true, Relaxed);
    }

    pub fn refused(&self) -> Option<Reason> {
        Reason::ALL.get(usize::from(self.refused.load(Relaxed)).checked_sub(1)?).copied()
    }

    /// What the connection is doing, and for how many seconds.
    pub fn phase(&self) -> (Phase, u32) {
        let phase = if self.blocked.load(Relaxed) {
            Phase::Unread
        } else if self.busy.load(Relaxed) {
            Phase::Answering
        } else if self.inside_head.load(Relaxed) {
            Phase::Head
        } else {
            Phase::Idle
        };
        (phase, self.tick.load(Relaxed).wrapping_sub(self.since.load(Relaxed)))
    }

    fn touch(&self) {
        self.since.store(self.tick.load(Relaxed), Relaxed);
    }
}

impl Guarded {
    pub fn new(stream: TcpStream, activity: Arc<Activity>) -> Guarded {
        Guarded { stream, framing: Framing::default(), activity }
    }

    fn inspect(&mut self, buf: &mut ReadBuf<'_>, before: usize) {
        let fresh = &mut buf.filled_mut()[before..];
        if let Err(refused) = self.framing.inspect(fresh) {
            fresh[refused.at] = 0;
            buf.set_filled(before + refused.at + 1);
            if self.activity.refused.load(Relaxed) == 0 {
                self.activity.refused.store(refused.reason as u8 + 1, Relaxed);
            }
        }
        let inside = self.framing.is_inside_head();
        if inside != self.activity.inside_head.load(Relaxed) {
            self.activity.inside_head.store(inside, Relaxed);
            self.activity.touch();
        }
    }
}

impl AsyncRead for Guarded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        if buf.filled().len() > before && !self.activity.upgraded.load(Relaxed) {
            self.inspect(buf, before);
        }
        Poll::Ready(Ok(()))
    }
}

impl Guarded {
    fn note_write<T>(&self, result: &Poll<T>) {
        if result.is_pending() != self.activity.blocked.load(Relaxed) {
            self.activity.blocked.store(result.is_pending(), Relaxed);
            self.activity.touch();
        }
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.note_write(&result);
        result
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.note_write(&result);
        result
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
