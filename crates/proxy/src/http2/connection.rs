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

/// Requests that a client may have open at a time.
const MOST_OPEN: u32 = 128;
/// Octets of a frame: the least that may be (RFC 9113 §4.2), since a frame is held whole until it can be used.
const FRAME: u32 = 16 * 1024;
/// Octets of names and values that the other side may have us remember (RFC 7541 §4).
const HEADER_TABLE: u32 = 4096;
/// Longest header of an answer, in octets.
const LONGEST_ANSWER_HEADER: u32 = 64 * 1024;
/// Streams that were reset and are remembered, so that what is still on its way for them is passed over.
const MOST_RESET: usize = 20;
/// Streams that h2 itself may have to reset, because what came on them was wrong, before the connection is ended
/// (CVE-2025-8671).
const MOST_WRONG: usize = 100;

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
        .max_frame_size(FRAME)
        .header_table_size(HEADER_TABLE)
        .max_header_list_size(LONGEST_ANSWER_HEADER)
        .max_local_error_reset_streams(Some(MOST_WRONG))
        .handshake(Begun::new(None, stream))
        .await?;
    tokio::task::spawn_local(async move {
        // What goes wrong is told to the requests that are on the connection.
        let _ = connection.await;
    });
    Ok(sender)
}

/// Takes a client's HTTP/2 connection up. What it can hold is bounded by these limits. h2 ends connections of resets
/// (CVE-2023-44487), of headers without end (CVE-2024-27316: as many CONTINUATION frames as the longest header needs,
/// and a few) and of empty DATA frames; PING and SETTINGS are answered before more is read, so that a client which
/// takes no answers is not read from.
pub async fn accept(
    begun: Begun,
    max_header: u32,
) -> Result<h2::server::Connection<Begun, Bytes>, h2::Error> {
    h2::server::Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME)
        .header_table_size(HEADER_TABLE)
        .max_concurrent_streams(MOST_OPEN)
        .max_header_list_size(max_header)
        .max_send_buffer_size(SEND_BUFFER)
        .max_pending_accept_reset_streams(MOST_RESET)
        .max_concurrent_reset_streams(MOST_RESET)
        .max_local_error_reset_streams(Some(MOST_WRONG))
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
