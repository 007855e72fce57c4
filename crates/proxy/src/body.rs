use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use http::{HeaderValue, Method, Uri, Version};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use proximity_table::Route;

use crate::access::Line;
use crate::clock::as_micros;
use crate::pool::Connection;
use crate::server::Client;
use crate::{Reason, headers};

/// nginx's word for a client that left before it got an answer.
const CLIENT_CLOSED_REQUEST: u16 = 499;

/// The body of a request on its way to a backend.
pub enum Upload {
    Empty,
    Streaming { body: Incoming, count: Rc<Cell<u64>>, client: Rc<Client> },
}

/// The body of a response on its way to a client, with everything that is due when it ends.
pub struct Answer {
    payload: Payload,
    ticket: Option<Ticket>,
}

enum Payload {
    Empty,
    Page(Option<Bytes>),
    Carried { body: Incoming, connection: Option<Connection> },
    Ended,
}

/// One request from its arrival to the end of its answer. When it is dropped the request is over: it is
/// counted, logged, and its connection is idle again.
pub struct Ticket {
    pub client: Rc<Client>,
    pub route: Option<Arc<Route>>,
    pub method: Method,
    pub uri: Uri,
    pub host: HeaderValue,
    pub version: Version,
    pub start: Instant,
    pub status: u16,
    pub received: Option<Rc<Cell<u64>>>,
    pub sent: u64,
}

impl Answer {
    pub fn page(body: Bytes, ticket: Ticket) -> Answer {
        Answer { payload: Payload::Page(Some(body)), ticket: Some(ticket) }
    }

    pub fn carried(body: Incoming, connection: Connection, ticket: Ticket) -> Answer {
        let mut answer =
            Answer { payload: Payload::Carried { body, connection: Some(connection) }, ticket: Some(ticket) };
        answer.settle();
        answer
    }

    /// The answer that only says that the protocol changes.
    pub fn switching() -> Answer {
        Answer { payload: Payload::Empty, ticket: None }
    }

    /// Gives the backend connection back once the whole body is here.
    fn settle(&mut self) {
        if let (Payload::Carried { body, connection }, Some(ticket)) = (&mut self.payload, &self.ticket)
            && body.is_end_stream()
            && let Some(connection) = connection.take()
        {
            ticket.client.worker.pool.put(connection);
        }
    }

    fn end(&mut self) {
        if let (Payload::Carried { connection, .. }, Some(ticket)) = (&mut self.payload, &self.ticket)
            && let Some(connection) = connection.take()
        {
            ticket.client.worker.pool.put(connection);
        }
        self.payload = Payload::Ended;
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = match &mut self.payload {
            Payload::Empty | Payload::Ended => return Poll::Ready(None),
            Payload::Page(page) => page.take().map(|page| Ok(Frame::data(page))),
            Payload::Carried { body, .. } => ready!(Pin::new(body).poll_frame(cx)),
        };
        match &frame {
            Some(Ok(frame)) => {
                if let (Some(data), Some(ticket)) = (frame.data_ref(), &mut self.ticket) {
                    ticket.sent += data.len() as u64;
                }
                self.settle();
            }
            Some(Err(_)) => {
                if let Some(ticket) = &self.ticket {
                    ticket.client.worker.counters.stopped_by(Reason::BackendCut, 1);
                }
                self.payload = Payload::Ended;
            }
            None => self.end(),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.payload {
            Payload::Empty | Payload::Ended => true,
            Payload::Page(page) => page.is_none(),
            Payload::Carried { body, .. } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.payload {
            Payload::Empty | Payload::Ended => SizeHint::with_exact(0),
            Payload::Page(page) => SizeHint::with_exact(page.as_ref().map_or(0, |page| page.len() as u64)),
            Payload::Carried { body, .. } => body.size_hint(),
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if let (Payload::Carried { connection: Some(_), .. }, Some(ticket)) = (&self.payload, &self.ticket) {
            ticket.client.worker.counters.stopped_by(Reason::ClientGone, 1);
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let client = &self.client;
        let worker = &client.worker;
        client.activity.request_ended();
        let received = self.received.as_ref().map_or(0, |count| count.get());
        worker.counters.bytes(received, self.sent);
        worker.counters.response(self.status);
        if self.status == 0 {
            worker.counters.stopped_by(Reason::ClientGone, 1);
        }
        worker.log(self.route.take(), |clock| Line {
            at_micros: clock.unix_micros(self.start),
            client: &client.log_prefix,
            version: self.version,
            method: &self.method,
            host: &self.host,
            uri: &self.uri,
            received,
            duration_micros: as_micros(self.start.elapsed()),
            size: self.sent,
            status: if self.status == 0 { CLIENT_CLOSED_REQUEST } else { self.status },
        });
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut *self {
            Upload::Empty => Poll::Ready(None),
            Upload::Streaming { body, count, client } => {
                let mut frame = ready!(Pin::new(body).poll_frame(cx));
                if let Some(Ok(frame)) = &mut frame {
                    if let Some(data) = frame.data_ref() {
                        count.set(count.get() + data.len() as u64);
                    } else if let Some(trailers) = frame.trailers_mut() {
                        let ambiguous = headers::rewrite_trailers(trailers);
                        client.worker.counters.stopped_by(Reason::HeaderName, ambiguous);
                    }
                }
                Poll::Ready(frame)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Upload::Empty => true,
            Upload::Streaming { body, .. } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Upload::Empty => SizeHint::with_exact(0),
            Upload::Streaming { body, .. } => body.size_hint(),
        }
    }
}
