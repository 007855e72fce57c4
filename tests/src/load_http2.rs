//! A client that speaks HTTP/2 by prior knowledge and has several requests open at a time.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use http::{Request, Version};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

/// How long an answer may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// A connection of HTTP/2.
pub struct LoadHttp2 {
    requests: SendRequest<Bytes>,
    connection: JoinHandle<Result<(), h2::Error>>,
}

impl LoadHttp2 {
    /// Connects from the network that the calling thread is in. Needs a runtime.
    ///
    /// # Errors
    /// When nobody takes the connection.
    pub async fn open(to: SocketAddr) -> io::Result<LoadHttp2> {
        let stream = TcpStream::connect(to).await?;
        stream.set_nodelay(true)?;
        let (requests, connection) = h2::client::handshake(stream).await.map_err(io::Error::other)?;
        Ok(LoadHttp2 { requests, connection: tokio::spawn(connection) })
    }

    /// Sends a request; `None` when the proxy has said that it takes no more on this connection (GOAWAY,
    /// RFC 9113 §6.8).
    ///
    /// # Errors
    /// When the request cannot be sent.
    pub async fn ask(&mut self, host: &str, target: &str) -> io::Result<Option<ResponseFuture>> {
        let Ok(mut requests) = self.requests.clone().ready().await else { return Ok(None) };
        let request = Request::get(format!("http://{host}{target}")).version(Version::HTTP_2).body(());
        let request = request.map_err(io::Error::other)?;
        let (response, _) = requests.send_request(request, true).map_err(io::Error::other)?;
        Ok(Some(response))
    }

    /// Waits for the end of a connection that takes no more requests.
    ///
    /// # Errors
    /// When it is not an orderly one.
    pub async fn end(self) -> io::Result<()> {
        drop(self.requests);
        within(async { self.connection.await.map_err(io::Error::other)?.map_err(io::Error::other) }).await
    }
}

/// Takes an answer: its status and its body; `None` when the proxy has said that it will not act on the request
/// (RFC 9113 §6.8: its stream is later than the last one that GOAWAY names), so that it may be sent again.
///
/// # Errors
/// When the answer is not complete.
pub async fn answer(response: ResponseFuture) -> io::Result<Option<(u16, Vec<u8>)>> {
    within(async {
        let (parts, mut stream) = match response.await {
            Ok(response) => response.into_parts(),
            Err(error) if is_left_out(&error) => return Ok(None),
            Err(error) => return Err(io::Error::other(error)),
        };
        let mut body = Vec::new();
        while let Some(data) = stream.data().await {
            let data = data.map_err(io::Error::other)?;
            stream.flow_control().release_capacity(data.len()).map_err(io::Error::other)?;
            body.extend_from_slice(&data);
        }
        Ok(Some((parts.status.as_u16(), body)))
    })
    .await
}

/// Requests on streams that GOAWAY does not leave out are not told of it.
fn is_left_out(error: &h2::Error) -> bool {
    error.is_go_away() && error.is_remote() && error.reason() == Some(h2::Reason::NO_ERROR)
}

async fn within<T>(action: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(PATIENCE, action).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}
