use std::io;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use h2::server::SendResponse;
use tokio::net::TcpStream;

use crate::escape::push_number;
use crate::http1::write::{self, Back};
use crate::http1::{Delimiter, Length, ResponseHead, Version};
use crate::http2::body::{Incoming, Outgoing};
use crate::http2::message;
use crate::side::{Cut, Side, Sink, Source};

/// The client's side of an exchange.
pub enum Down<'a> {
    /// Over HTTP/1: the connection itself.
    Http1(&'a mut Side),
    /// Over HTTP/2: a stream.
    Http2(Box<Http2>),
}

/// A stream of a client's HTTP/2 connection.
pub struct Http2 {
    incoming: Incoming,
    respond: SendResponse<Bytes>,
    outgoing: Option<Outgoing>,
}

/// An answer of our own.
pub struct OwnAnswer<'a> {
    pub status: u16,
    /// Field lines with their ends.
    pub fields: &'a [u8],
    /// `Date` with its line end.
    pub date: &'a [u8],
    pub body: &'a [u8],
    /// Whether the body is only measured, as `HEAD` asks for.
    pub head_only: bool,
    pub version: Version,
    pub keep_alive: bool,
}

impl Http2 {
    pub fn new(body: h2::RecvStream, respond: SendResponse<Bytes>) -> Http2 {
        Http2 { incoming: Incoming::new(body), respond, outgoing: None }
    }
}

impl Down<'_> {
    /// Expects the request's body from its beginning.
    pub fn expect_request_body(&mut self, length: Length) {
        if let Down::Http1(side) = self {
            side.expect_request_body(length);
        }
    }

    /// Whether the request's body was taken whole.
    pub fn is_over(&self) -> bool {
        match self {
            Down::Http1(side) => side.is_over(),
            Down::Http2(stream) => stream.incoming.is_over(),
        }
    }

    /// Begins an answer with the head of a backend's.
    pub fn respond(&mut self, response: &ResponseHead, bytes: &[u8], back: &Back<'_>) {
        match self {
            Down::Http1(side) => {
                write::response(side.begin(back.delimiter == Delimiter::Chunked), response, bytes, back);
            }
            Down::Http2(stream) => {
                stream.begin(message::response(response, bytes, back), back.delimiter == Delimiter::None);
            }
        }
    }

    /// Answers without a backend.
    pub fn respond_own(&mut self, answer: &OwnAnswer<'_>) {
        let body = if answer.head_only { &[] } else { answer.body };
        match self {
            Down::Http1(side) => {
                // What waits to be written are interim responses, perhaps written in part: the answer follows them.
                let out = side.begin(false);
                answer.write(out);
                out.extend_from_slice(body);
            }
            Down::Http2(stream) => {
                let mut lines = [answer.fields, answer.date, b"Content-Length: "].concat();
                push_number(&mut lines, answer.body.len() as u64);
                lines.extend_from_slice(b"\r\n");
                let mut response = http::Response::new(());
                *response.status_mut() =
                    http::StatusCode::from_u16(answer.status).unwrap_or(http::StatusCode::BAD_GATEWAY);
                *response.headers_mut() = message::fields(&lines);
                stream.begin(response, body.is_empty());
                if let Some(outgoing) = stream.outgoing.as_mut().filter(|outgoing| !outgoing.is_ended()) {
                    outgoing.send_whole(Bytes::copy_from_slice(body));
                }
            }
        }
    }

    /// Passes an interim response on; nobody waits for it to leave.
    pub fn interim(&mut self, response: &ResponseHead, bytes: &[u8], version: Version) {
        let back = Back::interim(version);
        match self {
            Down::Http1(side) => write::response(side.begin(false), response, bytes, &back),
            Down::Http2(stream) => {
                // A client that is gone needs none.
                let _ = stream.respond.send_informational(message::response(response, bytes, &back));
            }
        }
    }

    /// Tells a client that waits for it that it may send the body.
    pub fn say_continue(&mut self) {
        match self {
            Down::Http1(side) => side.begin(false).extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n"),
            Down::Http2(stream) => {
                let mut response = http::Response::new(());
                *response.status_mut() = http::StatusCode::CONTINUE;
                let _ = stream.respond.send_informational(response);
            }
        }
    }

    /// Whether the client left. What it sends ahead is kept, as much as fits.
    pub fn is_gone(&mut self, cx: &mut Context<'_>) -> bool {
        match self {
            Down::Http1(side) => side.is_gone(cx),
            Down::Http2(stream) => match &mut stream.outgoing {
                Some(outgoing) => outgoing.poll_reset(cx).is_ready(),
                None => stream.respond.poll_reset(cx).is_ready(),
            },
        }
    }

    /// Whether the client took the request back (`RST_STREAM`).
    pub fn is_cancelled(&mut self) -> bool {
        let nobody = &mut Context::from_waker(Waker::noop());
        let Down::Http2(stream) = self else { return false };
        let reset = match &mut stream.outgoing {
            Some(outgoing) => outgoing.poll_reset(nobody),
            None => stream.respond.poll_reset(nobody),
        };
        matches!(reset, Poll::Ready(Ok(_)))
    }

    /// Has an HTTP/1 connection reset when it is dropped, instead of ended.
    pub fn reset(&mut self) {
        if let Down::Http1(side) = self {
            side.stream.reset();
        }
    }

    /// Lets nobody take a part for the whole.
    pub fn cut(&mut self) {
        if let Down::Http2(stream) = self {
            match &mut stream.outgoing {
                Some(outgoing) => outgoing.reset(h2::Reason::INTERNAL_ERROR),
                None => stream.respond.send_reset(h2::Reason::INTERNAL_ERROR),
            }
        }
    }
}

impl Http2 {
    fn begin(&mut self, response: http::Response<()>, is_whole: bool) {
        // A client that has reset the stream is noticed where its answer is sent.
        if let Ok(stream) = self.respond.send_response(response, is_whole) {
            self.outgoing = Some(Outgoing::new(stream, is_whole));
        }
    }
}

impl OwnAnswer<'_> {
    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"HTTP/1.1 ");
        push_number(out, u64::from(self.status));
        out.push(b' ');
        let phrase =
            http::StatusCode::from_u16(self.status).ok().and_then(|status| status.canonical_reason());
        out.extend_from_slice(phrase.unwrap_or_default().as_bytes());
        out.extend_from_slice(b"\r\n");
        out.extend_from_slice(self.fields);
        out.extend_from_slice(self.date);
        out.extend_from_slice(b"Content-Length: ");
        push_number(out, self.body.len() as u64);
        out.extend_from_slice(match (self.keep_alive, self.version) {
            (false, _) => b"\r\nConnection: close\r\n\r\n",
            (true, Version::Http10) => b"\r\nConnection: keep-alive\r\n\r\n",
            (true, _) => b"\r\n\r\n",
        });
    }
}

impl Source for Down<'_> {
    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, Cut>> {
        match self {
            Down::Http1(side) => side.poll_data(cx),
            Down::Http2(stream) => stream.incoming.poll_data(cx),
        }
    }

    fn data(&self) -> &[u8] {
        match self {
            Down::Http1(side) => side.data(),
            Down::Http2(stream) => stream.incoming.data(),
        }
    }

    fn ends_here(&self) -> bool {
        match self {
            Down::Http1(side) => side.ends_here(),
            Down::Http2(stream) => stream.incoming.ends_here(),
        }
    }

    fn consume(&mut self, octets: usize) {
        match self {
            Down::Http1(side) => side.consume(octets),
            Down::Http2(stream) => stream.incoming.consume(octets),
        }
    }

    fn trailers(&self) -> &[u8] {
        match self {
            Down::Http1(side) => side.trailers(),
            Down::Http2(stream) => stream.incoming.trailers(),
        }
    }

    fn spoil(&mut self) {
        if let Down::Http1(side) = self {
            side.spoil();
        }
    }

    fn raw_rest(&mut self) -> Option<(&TcpStream, &mut u64)> {
        match self {
            Down::Http1(side) => side.raw_rest(),
            Down::Http2(_) => None,
        }
    }
}

impl Sink for Down<'_> {
    fn poll_send(&mut self, cx: &mut Context<'_>, data: &[u8], is_last: bool) -> Poll<io::Result<usize>> {
        match self {
            Down::Http1(side) => side.poll_send(cx, data, is_last),
            Down::Http2(stream) => match &mut stream.outgoing {
                Some(outgoing) => outgoing.poll_send(cx, data, is_last),
                None => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            },
        }
    }

    fn finish(&mut self, trailers: &[u8]) {
        match self {
            Down::Http1(side) => side.finish(trailers),
            Down::Http2(stream) => {
                if let Some(outgoing) = &mut stream.outgoing {
                    outgoing.finish(trailers);
                }
            }
        }
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Down::Http1(side) => side.poll_flush(cx),
            // The task of the connection writes.
            Down::Http2(_) => Poll::Ready(Ok(())),
        }
    }

    fn is_flushed(&self) -> bool {
        match self {
            Down::Http1(side) => side.is_flushed(),
            Down::Http2(_) => true,
        }
    }

    fn raw(&self) -> Option<&TcpStream> {
        match self {
            Down::Http1(side) => side.raw(),
            Down::Http2(_) => None,
        }
    }
}
