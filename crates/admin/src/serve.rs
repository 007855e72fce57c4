use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
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

/// Serves the API on a listener, for ever.
pub async fn serve<A: Appliance>(appliance: Arc<A>, listener: Listener) {
    let slots = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    let trust = match &listener {
        Listener::Unix(_) => Trust::Everybody,
        Listener::Tcp(_, token) => Trust::Token(token.clone()),
    };
    let router = router(appliance, trust);
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        let router = router.clone();
        let accepted = match &listener {
            Listener::Unix(listener) => listener.accept().await.map(|(stream, _)| {
                tokio::spawn(async move {
                    connection(stream, router, None).await;
                    drop(slot);
                });
            }),
            Listener::Tcp(listener, _) => listener.accept().await.map(|(stream, peer)| {
                tokio::spawn(async move {
                    connection(stream, router, Some(Peer(peer.ip()))).await;
                    drop(slot);
                });
            }),
        };
        if accepted.is_err() {
            // Out of descriptors: give those that are open time to end, instead of turning in circles.
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

async fn connection(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    router: Router,
    peer: Option<Peer>,
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
    // A client that goes away in the middle is its own business.
    let _ = served.await;
}
