use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tower::ServiceExt;

use crate::routes::{Peer, Trust, router};
use crate::{Appliance, Problem, Token};

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

/// How long connections that are open at the end may take to ask once more. Whoever connected just before wants to, and
/// what crosses the end on a kept connection is answered: a client that finds its connection closed cannot know
/// whether its change was made.
const LAST_REQUEST: Duration = Duration::from_secs(1);

/// Serves the API on a listener until `stop` says true or its sender is gone. Then no connection is taken any more:
/// those that are open are answered once, though no change is begun any more, and this returns when they are closed.
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
            // Whoever comes now is the other process's.
            biased;
            () = stopped(&mut stop) => break,
            taken = taken => taken,
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
    let is_over = stop.clone();
    let service = hyper::service::service_fn(move |request: hyper::Request<Incoming>| {
        let mut request: Request = request.map(axum::body::Body::new);
        if let Some(peer) = peer {
            request.extensions_mut().insert(peer);
        }
        answer(request, router.clone(), is_over.clone())
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        // A client that has said all it wants to say still waits for the answer.
        .half_close(true)
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(64 * 1024)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(served);
    // A client that goes away in the middle is its own business. hyper closes a connection that it has read nothing
    // from, so it is told of the end only when nothing can be on its way any more; until then the answers tell.
    tokio::select! {
        _ = served.as_mut() => return,
        () = stopped(&mut stop) => {}
    }
    tokio::select! {
        _ = served.as_mut() => return,
        () = tokio::time::sleep(LAST_REQUEST) => {}
    }
    served.as_mut().graceful_shutdown();
    let _ = served.await;
}

/// Answers a request; one that comes after the end is the last of its connection, and changes nothing.
async fn answer(
    request: Request,
    router: Router,
    stop: watch::Receiver<bool>,
) -> Result<Response, Infallible> {
    let is_over = || *stop.borrow() || stop.has_changed().is_err();
    let mut response = match is_over() && !request.method().is_safe() {
        true => Problem::taken_over().into_response(),
        false => router.oneshot(request).await?,
    };
    if is_over() {
        response.headers_mut().insert(header::CONNECTION, header::HeaderValue::from_static("close"));
    }
    Ok(response)
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read, Write};
    use std::os::unix::net::UnixStream as Client;

    use axum::routing::get;
    use tokio::task::JoinHandle;

    use super::*;

    /// A connection to a service, and what ends it.
    fn open() -> (BufReader<Client>, watch::Sender<bool>, JoinHandle<()>) {
        let (client, server) = Client::pair().unwrap();
        server.set_nonblocking(true).unwrap();
        let server = UnixStream::from_std(server).unwrap();
        let (stop, stopped) = watch::channel(false);
        let router = Router::new().route("/", get(async || "an answer").post(async || "a change"));
        (BufReader::new(client), stop, tokio::spawn(connection(server, router, None, stopped)))
    }

    /// Asks, and reads the answer. Blocks.
    fn ask(client: &mut BufReader<Client>, method: &str) -> String {
        write!(client.get_mut(), "{method} / HTTP/1.1\r\nHost: here\r\nContent-Length: 0\r\n\r\n").unwrap();
        let mut answer = String::new();
        while !answer.ends_with("\r\n\r\n") {
            assert_ne!(client.read_line(&mut answer).unwrap(), 0, "closed after {answer:?}");
        }
        let length = answer.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
        let mut body = vec![0; length.parse().unwrap()];
        client.read_exact(&mut body).unwrap();
        answer + std::str::from_utf8(&body).unwrap()
    }

    async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
        tokio::task::spawn_blocking(work).await.unwrap()
    }

    fn is_closed(client: &mut BufReader<Client>) -> bool {
        client.fill_buf().unwrap().is_empty()
    }

    #[tokio::test]
    async fn what_is_asked_on_an_open_connection_at_the_end_is_answered_once() {
        for has_asked_before in [false, true] {
            let (mut client, stop, serving) = open();
            let closed = blocking(move || {
                if has_asked_before {
                    let first = ask(&mut client, "POST");
                    assert!(first.ends_with("a change") && !first.contains("connection: close"), "{first}");
                }
                stop.send_replace(true);
                let last = ask(&mut client, "GET");
                assert!(last.starts_with("HTTP/1.1 200 OK\r\n") && last.ends_with("an answer"), "{last}");
                assert!(last.contains("connection: close\r\n"), "{last}");
                is_closed(&mut client)
            });
            assert!(closed.await);
            serving.await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_change_that_comes_too_late_is_not_begun_and_may_be_asked_for_again() {
        let (mut client, stop, serving) = open();
        let closed = blocking(move || {
            stop.send_replace(true);
            let refused = ask(&mut client, "POST");
            assert!(
                refused.starts_with("HTTP/1.1 503 ") && refused.contains("retry-after: 1\r\n"),
                "{refused}"
            );
            assert!(refused.contains("connection: close\r\n"), "{refused}");
            is_closed(&mut client)
        });
        assert!(closed.await);
        serving.await.unwrap();
    }

    #[tokio::test]
    async fn whoever_says_nothing_is_not_waited_for() {
        let (mut client, stop, serving) = open();
        stop.send_replace(true);
        tokio::time::timeout(HEAD_TIMEOUT / 2, serving).await.expect("before a head would be due").unwrap();
        assert!(is_closed(&mut client));
    }
}
