use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tower::ServiceExt;

use crate::routes::{Peer, Trust, router};
use crate::{Appliance, Token};

/// Most connections at once on a listener; more wait in the kernel's queue.
const MOST_CONNECTIONS: usize = 256;
/// How long a client may take to send the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// Where the API is served.
#[derive(Debug)]
pub enum Listener {
    /// On the unix socket: trusted by its file mode.
    Unix(UnixListener),
    /// On TCP, with the token.
    Tcp(TcpListener, Token),
}

/// Serves the API on a listener until `stop` says true or its sender is gone. Then no connection is taken any
/// more, and this returns when the requests that were asked are answered.
pub async fn serve<A: Appliance>(appliance: Arc<A>, listener: Listener, mut stop: watch::Receiver<bool>) {
    let slots = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    let trust = match &listener {
        Listener::Unix(_) => Trust::Everybody,
        Listener::Tcp(_, token) => Trust::Token(token.clone()),
    };
    let router = router(appliance, trust);
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let taken = async {
            let slot = slots.clone().acquire_owned().await;
            (accept(&listener).await, slot)
        };
        let (accepted, slot) = tokio::select! {
            taken = taken => taken,
            () = stopped(&mut stop) => break,
        };
        let (router, stop) = (router.clone(), stop.clone());
        let accepted = accepted.map(|accepted| {
            connections.spawn(async move {
                match accepted {
                    Accepted::Unix(stream) => connection(stream, router, None, stop).await,
                    Accepted::Tcp(stream, peer) => {
                        connection(stream, router, Some(Peer(peer.ip())), stop).await;
                    }
                }
                drop(slot);
            })
        });
        if accepted.is_err() {
            // Out of descriptors: give those that are open time to end, instead of turning in circles.
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

enum Accepted {
    Unix(UnixStream),
    Tcp(TcpStream, SocketAddr),
}

async fn accept(listener: &Listener) -> std::io::Result<Accepted> {
    match listener {
        Listener::Unix(listener) => listener.accept().await.map(|(stream, _)| Accepted::Unix(stream)),
        Listener::Tcp(listener, _) => {
            listener.accept().await.map(|(stream, peer)| Accepted::Tcp(stream, peer))
        }
    }
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error means that whoever could say so is gone.
    let _ = stop.wait_for(|stop| *stop).await;
}

async fn connection(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    router: Router,
    peer: Option<Peer>,
    mut stop: watch::Receiver<bool>,
) {
    let service = hyper::service::service_fn(move |request: hyper::Request<Incoming>| {
        let mut request: Request = request.map(axum::body::Body::new);
        if let Some(peer) = peer {
            request.extensions_mut().insert(peer);
        }
        router.clone().oneshot(request)
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        // A client that has said all it wants to say still waits for the answer.
        .half_close(true)
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(64 * 1024)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(served);
    // A client that goes away in the middle is its own business.
    tokio::select! {
        _ = served.as_mut() => {}
        () = stopped(&mut stop) => {
            served.as_mut().graceful_shutdown();
            let _ = served.await;
        }
    }
}
