use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use h2::client::SendRequest;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::buffer::Buffer;
use crate::stream::Stream;

/// How much of one body may be on its way before it is taken.
const STREAM_WINDOW: u32 = 256 * 1024;
/// The same for all bodies of a connection.
const CONNECTION_WINDOW: u32 = 1024 * 1024;

/// How much of one answer waits for a client that does not read.
const SEND_BUFFER: usize = 32 * 1024;

/// A connection whose first octets were read already.
pub struct Begun {
    read: Option<Buffer>,
    stream: Stream,
}

impl Begun {
    pub fn new(read: Option<Buffer>, stream: Stream) -> Begun {
        Begun { read, stream }
    }
}

/// Opens an HTTP/2 connection to a backend by prior knowledge (RFC 9113 §3.3). Its task ends with the last of
/// its senders.
pub async fn open(stream: Stream) -> Result<SendRequest<Bytes>, h2::Error> {
    let (sender, connection) = h2::client::Builder::new()
        .enable_push(false)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(64 * 1024)
        .handshake(Begun::new(None, stream))
        .await?;
    tokio::task::spawn_local(async move {
        // What goes wrong is told to the requests that are on the connection.
        let _ = connection.await;
    });
    Ok(sender)
}

/// Takes a client's HTTP/2 connection up. The limits are those of h2, with its defenses against resets
/// (CVE-2023-44487), endless headers (CVE-2024-27316) and empty frames in force; these bound what one client can
/// hold.
pub async fn accept(
    begun: Begun,
    max_header: u32,
) -> Result<h2::server::Connection<Begun, Bytes>, h2::Error> {
    h2::server::Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(128)
        .max_header_list_size(max_header)
        .max_send_buffer_size(SEND_BUFFER)
        .max_pending_accept_reset_streams(20)
        .max_concurrent_reset_streams(20)
        .max_local_error_reset_streams(Some(100))
        .handshake(begun)
        .await
}

impl AsyncRead for Begun {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(read) = &mut self.read {
            let octets = read.data().len().min(buf.remaining());
            buf.put_slice(&read.data()[..octets]);
            read.consume(octets);
            if read.is_empty() {
                self.read = None;
            }
            if octets > 0 {
                return Poll::Ready(Ok(()));
            }
        }
        self.stream.poll_read(cx, buf)
    }
}

impl AsyncWrite for Begun {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.stream.poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.stream.poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.poll_shutdown(cx)
    }
}
