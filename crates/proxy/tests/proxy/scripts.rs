//! Backends that do what several tests need.

use std::net::{SocketAddr, SocketAddrV4, TcpListener};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};

use socket2::{Domain, Socket, Type};

use crate::support::{Backend, PATIENCE};

/// An address on which nothing listens.
pub fn nobody() -> SocketAddrV4 {
    v4(TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap())
}

/// An address whose connections neither come about nor fail, as long as what comes with it lives.
pub fn swallowing() -> (SocketAddrV4, Vec<Socket>) {
    // A listener whose queue is full swallows further connections.
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    listener.listen(0).unwrap();
    let addr = v4(listener.local_addr().unwrap().as_socket().unwrap());
    let filling = |_| {
        let filler = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        filler.set_nonblocking(true).unwrap();
        let _ = filler.connect(&SocketAddr::V4(addr).into());
        filler
    };
    let mut held: Vec<Socket> = (0..4).map(filling).collect();
    held.push(listener);
    (addr, held)
}

/// Takes each request and closes.
pub fn breaking() -> Backend {
    Backend::script(|mut conn| drop(conn.request()))
}

/// A backend that says `begin`, and then nothing until the proxy closes.
pub fn stalling(begin: &'static str) -> Backend {
    Backend::script(move |mut conn| {
        conn.request();
        conn.write(begin);
        conn.request();
    })
}

/// A backend that tells of each request by its path, and answers with that when it is told to.
pub fn working() -> (Backend, Receiver<String>, Sender<()>) {
    let (arrived, arrivals) = channel();
    let (release, released) = channel::<()>();
    let (arrived, released) = (Mutex::new(arrived), Mutex::new(released));
    let backend = Backend::script(move |mut conn| {
        while let Some(request) = conn.request() {
            let path = request.line.split(' ').nth(1).unwrap().to_owned();
            // Whoever does not ask any more has what it wanted.
            let _ = arrived.lock().unwrap().send(path.clone());
            if released.lock().unwrap().recv_timeout(PATIENCE).is_err() {
                return;
            }
            conn.answer(&path);
        }
    });
    (backend, arrivals, release)
}

/// A backend whose connections are served by `serve`, all on one thread.
pub fn served_by<S, F>(serve: S) -> SocketAddrV4
where
    S: Fn(tokio::net::TcpStream) -> F + Send + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = v4(listener.local_addr().unwrap());
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            listener.set_nonblocking(true).unwrap();
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream));
            }
        });
    });
    addr
}

/// A backend that speaks HTTP/2 by prior knowledge and answers each request by `answer`.
pub fn h2c<A, F>(answer: A) -> SocketAddrV4
where
    A: Fn(http::Request<h2::RecvStream>, h2::server::SendResponse<bytes::Bytes>) -> F
        + Clone
        + Send
        + Sync
        + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    served_by(move |stream| {
        let answer = answer.clone();
        async move {
            let Ok(mut connection) = h2::server::handshake(stream).await else { return };
            while let Some(Ok((request, respond))) = connection.accept().await {
                tokio::spawn(answer(request, respond));
            }
        }
    })
}

fn v4(addr: SocketAddr) -> SocketAddrV4 {
    match addr {
        SocketAddr::V4(addr) => addr,
        SocketAddr::V6(addr) => panic!("{addr}"),
    }
}
