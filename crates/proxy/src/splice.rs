use std::cell::RefCell;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::unistd::pipe2;
use tokio::io::Interest;
use tokio::net::TcpStream;

/// Octets of a body from which on it is moved inside the kernel: less is moved more cheaply by copying it.
pub const WORTH_IT: u64 = 128 * 1024;
/// Octets that a pipe is asked to hold; the kernel may give less.
const PIPE: i32 = 1024 * 1024;
/// Unused pipes that a thread keeps.
const MOST_KEPT: usize = 16;

/// The unused pipes of a thread, empty.
#[derive(Debug, Default)]
pub struct Pipes {
    kept: RefCell<Vec<Pipe>>,
}

#[derive(Debug)]
struct Pipe {
    out: OwnedFd,
    into: OwnedFd,
}

/// Moves octets from one connection to another without copying them through this process.
#[derive(Debug)]
pub struct Splice {
    pipe: Option<Pipe>,
    /// Octets in the pipe.
    held: usize,
    pipes: Rc<Pipes>,
}

/// Which side an error is of.
#[derive(Debug)]
pub enum Broken {
    /// Where octets come from; an end before the body's end, too.
    Source,
    /// Where they go.
    Sink,
}

impl Pipes {
    /// A way through the kernel; `None` when no pipe can be had.
    pub fn splice(self: &Rc<Pipes>) -> Option<Splice> {
        let kept = self.kept.borrow_mut().pop();
        let pipe = match kept {
            Some(pipe) => pipe,
            None => {
                let (out, into) = pipe2(OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).ok()?;
                // A smaller one only takes more turns.
                let _ = fcntl(&into, FcntlArg::F_SETPIPE_SZ(PIPE));
                Pipe { out, into }
            }
        };
        Some(Splice { pipe: Some(pipe), held: 0, pipes: self.clone() })
    }

    /// Lets go of what was needed in busier times.
    pub fn trim(&self) {
        self.kept.borrow_mut().clear();
    }
}

impl Splice {
    /// Whether octets wait inside for the other side.
    pub fn holds_some(&self) -> bool {
        self.held > 0
    }

    /// Moves what can be moved now, at most `left` octets, and takes what arrived off it. Returns how many octets
    /// arrived, as soon as any did; ready with 0 when `left` is 0 and nothing is held.
    pub fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &TcpStream,
        to: &TcpStream,
        left: &mut u64,
    ) -> Poll<Result<usize, Broken>> {
        let Some(pipe) = &self.pipe else { return Poll::Ready(Err(Broken::Sink)) };
        let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
        loop {
            while self.held > 0 {
                ready!(to.poll_write_ready(cx)).map_err(|_| Broken::Sink)?;
                let more = if *left > 0 { SpliceFFlags::SPLICE_F_MORE } else { SpliceFFlags::empty() };
                let moved = to.try_io(Interest::WRITABLE, || {
                    splice(&pipe.out, None, to, None, self.held, flags | more).map_err(io::Error::from)
                });
                match moved {
                    Ok(moved) => {
                        self.held -= moved;
                        if moved > 0 {
                            return Poll::Ready(Ok(moved));
                        }
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(_) => return Poll::Ready(Err(Broken::Sink)),
                }
            }
            if *left == 0 {
                return Poll::Ready(Ok(0));
            }
            ready!(from.poll_read_ready(cx)).map_err(|_| Broken::Source)?;
            let most = usize::try_from(*left).unwrap_or(usize::MAX).min(PIPE as usize);
            let moved = from.try_io(Interest::READABLE, || {
                splice(from, None, &pipe.into, None, most, flags).map_err(io::Error::from)
            });
            match moved {
                Ok(0) => return Poll::Ready(Err(Broken::Source)),
                Ok(moved) => {
                    self.held = moved;
                    *left -= moved as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return Poll::Ready(Err(Broken::Source)),
            }
        }
    }
}

impl Drop for Splice {
    fn drop(&mut self) {
        // What is left in a pipe must never get into another connection.
        if self.held == 0
            && let Some(pipe) = self.pipe.take()
        {
            let mut kept = self.pipes.kept.borrow_mut();
            if kept.len() < MOST_KEPT {
                kept.push(pipe);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (there, here) = tokio::join!(TcpStream::connect(addr), listener.accept());
        (there.unwrap(), here.unwrap().0)
    }

    #[tokio::test]
    async fn octets_arrive_in_order_and_the_pipe_is_used_again() {
        let pipes = Rc::new(Pipes::default());
        for _ in 0..2 {
            let ((mut source, from), (to, mut sink)) = (pair().await, pair().await);
            let sent: Vec<u8> = (0..3_000_000_u32).map(|at| (at % 251) as u8).collect();
            let expected = sent.clone();
            let writer = tokio::spawn(async move { source.write_all(&sent).await.map(|()| source) });
            let reader = tokio::spawn(async move {
                let mut got = vec![0; expected.len()];
                sink.read_exact(&mut got).await.unwrap();
                assert!(got == expected);
            });
            let mut way = pipes.splice().unwrap();
            let (mut left, mut moved) = (3_000_000, 0);
            while moved < 3_000_000 {
                moved += poll_fn(|cx| way.poll(cx, &from, &to, &mut left)).await.unwrap();
            }
            reader.await.unwrap();
            drop(writer.await.unwrap().unwrap());
            drop(way);
            assert_eq!(pipes.kept.borrow().len(), 1);
        }
    }

    #[tokio::test]
    async fn an_early_end_is_an_error_and_what_is_held_goes_nowhere_else() {
        let pipes = Rc::new(Pipes::default());
        let ((mut source, from), (to, _sink)) = (pair().await, pair().await);
        source.write_all(b"part").await.unwrap();
        drop(source);
        let mut way = pipes.splice().unwrap();
        let mut left = 10;
        assert_eq!(poll_fn(|cx| way.poll(cx, &from, &to, &mut left)).await.unwrap(), 4);
        assert!(poll_fn(|cx| way.poll(cx, &from, &to, &mut left)).await.is_err());
        way.held = 1;
        drop(way);
        assert!(pipes.kept.borrow().is_empty());
    }
}
