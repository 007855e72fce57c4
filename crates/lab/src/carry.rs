//! Carrying connections between the machine's own network and the lab.
//!
//! A unix socket in the file system belongs to no network namespace: outside, a TCP listener hands
//! its connections to such a socket; inside, they go on by TCP from one of the nodes.

use std::{
    io,
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use crate::{LabError, Node};

/// Connections carried at a time by one listener; further ones are closed at once.
const MAX_CONNECTIONS: usize = 512;

/// Binds `wanted` on 127.0.0.1, or the next free port above it.
///
/// # Errors
/// [`LabError::Invalid`] if a hundred ports in a row are taken.
pub fn bind_local(wanted: u16) -> Result<TcpListener, LabError> {
    (wanted..=wanted.saturating_add(100))
        .find_map(|port| TcpListener::bind(("127.0.0.1", port)).ok())
        .ok_or_else(|| LabError::Invalid(format!("no free port from {wanted} on; choose another one")))
}

/// Outside: carries connections of `listener` to the unix socket `inside`, for ever.
pub fn carry_in(listener: TcpListener, inside: &Path) {
    let inside = inside.to_owned();
    serve(move || listener.accept().map(|(stream, _)| stream), move || UnixStream::connect(&inside));
}

/// Inside: carries connections of the unix socket `outside` to `target`, from `node`, for ever.
///
/// # Errors
/// [`LabError::File`] if the socket cannot be made.
pub fn carry_out(outside: &Path, node: Arc<Node>, target: SocketAddr) -> Result<(), LabError> {
    let listener = UnixListener::bind(outside).map_err(LabError::file(outside))?;
    let connect =
        move || node.enter(|| TcpStream::connect(target)).map_err(io::Error::other).and_then(|stream| stream);
    serve(move || listener.accept().map(|(stream, _)| stream), connect);
    Ok(())
}

/// A stream that can be read and written by two threads and closed one way.
trait Duplex: io::Read + io::Write + Send + Sized + 'static {
    fn clone_handle(&self) -> io::Result<Self>;
    fn close(&self, how: Shutdown);
}

impl Duplex for TcpStream {
    fn clone_handle(&self) -> io::Result<Self> {
        self.try_clone()
    }
    fn close(&self, how: Shutdown) {
        let _ = self.shutdown(how);
    }
}

impl Duplex for UnixStream {
    fn clone_handle(&self) -> io::Result<Self> {
        self.try_clone()
    }
    fn close(&self, how: Shutdown) {
        let _ = self.shutdown(how);
    }
}

fn serve<A: Duplex, B: Duplex>(
    accept: impl Fn() -> io::Result<A> + Send + 'static,
    connect: impl Fn() -> io::Result<B> + Send + Sync + 'static,
) {
    let open = Arc::new(AtomicUsize::new(0));
    let connect = Arc::new(connect);
    thread::spawn(move || {
        loop {
            let near = match accept() {
                Ok(near) => near,
                // Out of file descriptors or an aborted handshake: later ones may succeed.
                Err(_) => {
                    thread::yield_now();
                    continue;
                }
            };
            if open.fetch_add(1, Ordering::AcqRel) >= MAX_CONNECTIONS {
                open.fetch_sub(1, Ordering::AcqRel);
                continue;
            }
            let (open, connect) = (Arc::clone(&open), Arc::clone(&connect));
            thread::spawn(move || {
                if let Ok(far) = connect() {
                    let _ = carry(near, far);
                }
                open.fetch_sub(1, Ordering::AcqRel);
            });
        }
    });
}

/// Copies both ways until both are done.
fn carry<A: Duplex, B: Duplex>(near: A, far: B) -> io::Result<()> {
    let (mut near_reader, mut far_writer) = (near.clone_handle()?, far.clone_handle()?);
    let (mut far_reader, mut near_writer) = (far, near);
    let there = thread::spawn(move || copy_and_close(&mut near_reader, &mut far_writer));
    copy_and_close(&mut far_reader, &mut near_writer);
    let _ = there.join();
    Ok(())
}

fn copy_and_close<A: Duplex, B: Duplex>(from: &mut A, to: &mut B) {
    if io::copy(from, to).is_err() {
        // A broken direction must not leave the other one waiting.
        from.close(Shutdown::Both);
        to.close(Shutdown::Both);
    } else {
        to.close(Shutdown::Write);
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn a_taken_port_gives_way_to_the_next_free_one() {
        let first = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let taken = first.local_addr().expect("an address").port();
        let second = bind_local(taken).expect("another free port");
        assert!(second.local_addr().expect("an address").port() > taken);
    }

    #[test]
    fn both_directions_are_carried_and_closed_one_by_one() {
        let (mut caller, near) = UnixStream::pair().expect("a pair");
        let (far, mut callee) = UnixStream::pair().expect("a pair");
        let carrier = thread::spawn(move || carry(near, far));

        caller.write_all(b"request").expect("written");
        caller.shutdown(Shutdown::Write).expect("closed");
        let mut request = String::new();
        callee.read_to_string(&mut request).expect("end of request");
        assert_eq!(request, "request");

        callee.write_all(b"answer").expect("written");
        drop(callee);
        let mut answer = String::new();
        caller.read_to_string(&mut answer).expect("end of answer");
        assert_eq!(answer, "answer");
        carrier.join().expect("no panic").expect("carried");
    }
}
