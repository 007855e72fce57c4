use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use h2::client::ResponseFuture;
use tokio::net::TcpStream;

use crate::Reason;
use crate::http1::write::{self, Onward};
use crate::http1::{Delimiter, Length, Method, RequestHead, ResponseHead};
use crate::http2::body::{Incoming, Outgoing};
use crate::http2::message;
use crate::pool::{Lane, Pool, Sender, is_out_of_reach};
use crate::side::{Cut, Side, Sink, Source};

/// Longest head of a response, in octets.
const LONGEST_RESPONSE_HEAD: usize = 64 * 1024;

/// The backend's side of an exchange.
pub enum Up {
    /// Over HTTP/1: a connection.
    Http1(Side),
    /// Over HTTP/2: a stream, or what it will be made of.
    Http2(Box<Http2>),
}

/// A stream of a backend's HTTP/2 connection.
pub struct Http2 {
    sender: Sender,
    answer: Option<ResponseFuture>,
    outgoing: Option<Outgoing>,
    incoming: Option<Incoming>,
    /// What the response's head speaks of.
    bytes: Vec<u8>,
    /// Whether the backend said that it has not looked at the request.
    is_unseen: bool,
    /// Whether that was its goodbye to the connection.
    is_farewell: bool,
}

impl Up {
    pub fn http2(sender: Sender) -> Up {
        Up::Http2(Box::new(Http2 {
            sender,
            answer: None,
            outgoing: None,
            incoming: None,
            bytes: Vec::new(),
            is_unseen: false,
            is_farewell: false,
        }))
    }

    /// Begins a request.
    pub fn ask(&mut self, head: &RequestHead, bytes: &[u8], onward: &Onward<'_>) -> Result<(), Reason> {
        match self {
            Up::Http1(side) => {
                write::request(side.begin(onward.length == Length::Chunked), head, bytes, onward);
                Ok(())
            }
            Up::Http2(http2) => {
                let request = message::request(head, bytes, onward).ok_or(Reason::Malformed)?;
                let is_whole = onward.length == Length::None;
                let (answer, stream) = http2
                    .sender
                    .requests
                    .send_request(request, is_whole)
                    .map_err(|_| Reason::BackendBroke)?;
                http2.answer = Some(answer);
                http2.outgoing = Some(Outgoing::new(stream, is_whole));
                Ok(())
            }
        }
    }

    /// Takes the next head of an answer in, an interim one too. Returns its length among [`Up::head_bytes`].
    pub fn poll_response(
        &mut self,
        cx: &mut Context<'_>,
        response: &mut ResponseHead,
        method: Method,
    ) -> Poll<Result<usize, Reason>> {
        match self {
            Up::Http1(side) => poll_head(cx, side, response, method),
            Up::Http2(http2) => http2.poll_response(cx, response, method),
        }
    }

    /// Takes in what has come and was not announced yet.
    pub fn look_again(&mut self) {
        if let Up::Http1(side) = self {
            side.look_again();
        }
    }

    /// What the response's head speaks of.
    pub fn head_bytes(&self) -> &[u8] {
        match self {
            Up::Http1(side) => side.input.as_ref().map_or(&[], |input| input.data()),
            Up::Http2(http2) => &http2.bytes,
        }
    }

    /// Passes over the head, to the body that ends there.
    pub fn pass_head(&mut self, length: usize, delimiter: Delimiter) {
        match self {
            Up::Http1(side) => {
                if let Some(input) = &mut side.input {
                    input.consume(length);
                }
                side.expect_response_body(delimiter);
            }
            // RFC 9110 §6.4.1: 204 and 304 have no body. Octets behind one would be the client's next answer.
            Up::Http2(http2) if delimiter == Delimiter::None => {
                http2.incoming.iter_mut().for_each(Incoming::expect_nothing);
            }
            Up::Http2(_) => {}
        }
    }

    /// Limits how long what was sent may stay unacknowledged ([`crate::peers`]). A connection that others use too
    /// keeps the limit that it has.
    pub fn limit_unacknowledged(&self, limit: Option<Duration>) {
        if let Up::Http1(side) = self {
            side.stream.limit_unacknowledged(limit);
        }
    }

    /// Whether the backend cannot have acted on the request.
    pub fn is_unseen(&self) -> bool {
        match self {
            Up::Http1(side) => side.nothing_left(),
            Up::Http2(http2) => http2.is_unseen,
        }
    }

    /// Whether a new connection may do what this one did not: it carried requests before, or its backend took its
    /// leave of it.
    pub fn is_worn(&self) -> bool {
        match self {
            Up::Http1(_) => false,
            Up::Http2(http2) => http2.sender.is_reused || http2.is_farewell,
        }
    }

    /// Gives the connection back after an answer, if it can carry another request.
    pub fn give_back(self, pool: &Pool, lane: &Lane, response: &ResponseHead) {
        if let Up::Http1(mut side) = self {
            side.rest();
            let has_rest = side.input.as_ref().is_some_and(|input| !input.is_empty());
            if response.keep_alive && side.is_over() && !has_rest {
                pool.put(lane, side.stream);
            }
        }
    }
}

fn poll_head(
    cx: &mut Context<'_>,
    side: &mut Side,
    response: &mut ResponseHead,
    method: Method,
) -> Poll<Result<usize, Reason>> {
    loop {
        if let Some(buffer) = &mut side.input {
            match response.parse(buffer.data(), method) {
                Ok(Some(length)) => return Poll::Ready(Ok(length)),
                Ok(None) if buffer.space().is_empty() => {
                    if buffer.size() >= LONGEST_RESPONSE_HEAD {
                        return Poll::Ready(Err(Reason::BackendNonsense));
                    }
                    buffer.grow(buffer.size() * 2);
                }
                Ok(None) => {}
                Err(_) => return Poll::Ready(Err(Reason::BackendNonsense)),
            }
        }
        match ready!(side.poll_fill(cx)) {
            Err(error) if is_out_of_reach(&error) => return Poll::Ready(Err(Reason::BackendTimedOut)),
            Ok(0) | Err(_) => return Poll::Ready(Err(Reason::BackendBroke)),
            Ok(_) => {}
        }
    }
}

impl Http2 {
    fn poll_response(
        &mut self,
        cx: &mut Context<'_>,
        response: &mut ResponseHead,
        method: Method,
    ) -> Poll<Result<usize, Reason>> {
        let Some(answer) = &mut self.answer else { return Poll::Ready(Err(Reason::BackendBroke)) };
        self.bytes.clear();
        if let Poll::Ready(Some(Ok(interim))) = answer.poll_informational(cx) {
            message::take_response(&interim.into_parts().0, true, method, response, &mut self.bytes)?;
            return Poll::Ready(Ok(self.bytes.len()));
        }
        match ready!(Pin::new(answer).poll(cx)) {
            Ok(whole) => {
                let (parts, body) = whole.into_parts();
                message::take_response(&parts, body.is_end_stream(), method, response, &mut self.bytes)?;
                self.incoming = Some(Incoming::new(body));
                self.answer = None;
                Poll::Ready(Ok(self.bytes.len()))
            }
            Err(error) => {
                // RFC 9113 §6.8: nor was one above the last that a GOAWAY names, and others h2 does not end for it.
                self.is_farewell = error.is_go_away() && error.is_remote();
                // RFC 9113 §8.7: a refused stream was not looked at.
                self.is_unseen = self.is_farewell || error.reason() == Some(h2::Reason::REFUSED_STREAM);
                Poll::Ready(Err(Reason::BackendBroke))
            }
        }
    }
}

impl Source for Up {
    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, Cut>> {
        match self {
            Up::Http1(side) => side.poll_data(cx),
            Up::Http2(http2) => match &mut http2.incoming {
                Some(incoming) => incoming.poll_data(cx),
                None => Poll::Ready(Err(Cut::Connection)),
            },
        }
    }

    fn data(&self) -> &[u8] {
        match self {
            Up::Http1(side) => side.data(),
            Up::Http2(http2) => http2.incoming.as_ref().map_or(&[], Incoming::data),
        }
    }

    fn ends_here(&self) -> bool {
        match self {
            Up::Http1(side) => side.ends_here(),
            Up::Http2(http2) => http2.incoming.as_ref().is_some_and(Incoming::ends_here),
        }
    }

    fn consume(&mut self, octets: usize) {
        match self {
            Up::Http1(side) => side.consume(octets),
            Up::Http2(http2) => {
                if let Some(incoming) = &mut http2.incoming {
                    incoming.consume(octets);
                }
            }
        }
    }

    fn trailers(&self) -> &[u8] {
        match self {
            Up::Http1(side) => side.trailers(),
            Up::Http2(http2) => http2.incoming.as_ref().map_or(&[], Incoming::trailers),
        }
    }

    fn spoil(&mut self) {
        if let Up::Http1(side) = self {
            side.spoil();
        }
    }

    fn raw_rest(&mut self) -> Option<(&TcpStream, &mut u64)> {
        match self {
            Up::Http1(side) => side.raw_rest(),
            Up::Http2(_) => None,
        }
    }
}

impl Sink for Up {
    fn poll_send(&mut self, cx: &mut Context<'_>, data: &[u8], is_last: bool) -> Poll<io::Result<usize>> {
        match self {
            Up::Http1(side) => side.poll_send(cx, data, is_last),
            Up::Http2(http2) => match &mut http2.outgoing {
                Some(outgoing) => outgoing.poll_send(cx, data, is_last),
                None => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            },
        }
    }

    fn finish(&mut self, trailers: &[u8]) {
        match self {
            Up::Http1(side) => side.finish(trailers),
            Up::Http2(http2) => {
                if let Some(outgoing) = &mut http2.outgoing {
                    outgoing.finish(trailers);
                }
            }
        }
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Up::Http1(side) => side.poll_flush(cx),
            Up::Http2(_) => Poll::Ready(Ok(())),
        }
    }

    fn is_flushed(&self) -> bool {
        match self {
            Up::Http1(side) => side.is_flushed(),
            Up::Http2(_) => true,
        }
    }

    fn raw(&self) -> Option<&TcpStream> {
        match self {
            Up::Http1(side) => side.raw(),
            Up::Http2(_) => None,
        }
    }
}
