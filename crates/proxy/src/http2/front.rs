use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use h2::server::{Connection, SendResponse};
use http::Request;

use super::connection::{self, Begun};
use super::message;
use super::tally::Tally;
use crate::Reason;
use crate::buffer::Buffer;
use crate::caller::Caller;
use crate::down::{Down, Http2};
use crate::exchange::{self, Fate};
use crate::stream;
use crate::watch::{Phase, Signal, Watch};

/// What a client sends first to speak HTTP/2 by prior knowledge (RFC 9113 §3.4).
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Seconds that a client which is sent away has to take the reason.
const FAREWELL: u32 = 2;

/// What the requests of a connection share.
struct Answering {
    caller: Caller,
    tally: RefCell<Tally>,
    /// Whether the client cancels more than it wants answered.
    is_flood: Cell<bool>,
}

/// How far the end of a connection has come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Parting {
    /// It goes on.
    None,
    /// What was asked is still answered.
    Polite,
    /// Nothing is.
    Abrupt,
}

/// Serves a client that speaks HTTP/2 until its connection ends.
pub async fn serve(caller: Caller, watch: &Rc<Watch>, read: Buffer, stream: stream::Stream) {
    let worker = caller.worker.clone();
    let settings = worker.settings();
    let begun = Begun::new(Some(read), stream);
    watch.enter(Phase::Head, settings.head_timeout);
    let mut handshake = Box::pin(connection::accept(begun, settings.max_header));
    let accepted = poll_fn(|cx| match watch.signal() {
        Signal::None => handshake.as_mut().poll(cx).map(Some),
        _ => Poll::Ready(None),
    });
    let Some(Ok(mut connection)) = accepted.await else {
        return worker.counters.stopped_by(Reason::Malformed, 1);
    };
    drop(handshake);
    let answering = Rc::new(Answering { caller, tally: RefCell::default(), is_flood: Cell::new(false) });
    watch.enter(Phase::Idle, settings.idle_timeout);
    let mut parting = Parting::None;
    loop {
        match poll_fn(|cx| poll_request(cx, &mut connection, watch, &answering, &mut parting)).await {
            Some(Ok((request, respond))) => {
                answering.tally.borrow_mut().begin();
                watch.enter(Phase::Busy, 0);
                let (answering, idle) = (answering.clone(), watch.clone());
                let idle_timeout = settings.idle_timeout;
                tokio::task::spawn_local(async move {
                    let is_cancelled = answer(&answering.caller, request, respond).await;
                    let worker = &answering.caller.worker;
                    let mut tally = answering.tally.borrow_mut();
                    let is_flood = is_cancelled && tally.cancel(worker.now_ms());
                    tally.end();
                    if is_flood {
                        answering.is_flood.set(true);
                        idle.wake();
                    } else if tally.open() == 0 && !worker.draining.get() && !answering.is_flood.get() {
                        // One that leaves ends by itself, when everything has left.
                        idle.enter(Phase::Idle, idle_timeout);
                        idle.wake();
                    }
                });
            }
            Some(Err(error)) => {
                if error.is_library() {
                    let is_flood = error.reason() == Some(h2::Reason::ENHANCE_YOUR_CALM);
                    let reason = if is_flood { Reason::Flood } else { Reason::Malformed };
                    worker.counters.stopped_by(reason, 1);
                }
                return;
            }
            None => return,
        }
    }
}

/// The next request; `None` when the connection is over.
#[allow(clippy::type_complexity)]
fn poll_request(
    cx: &mut Context<'_>,
    connection: &mut Connection<Begun, Bytes>,
    watch: &Watch,
    answering: &Answering,
    parting: &mut Parting,
) -> Poll<Option<Result<(Request<h2::RecvStream>, SendResponse<Bytes>), h2::Error>>> {
    let worker = &answering.caller.worker;
    let is_told = watch.signal() != Signal::None || worker.draining.get();
    if answering.is_flood.get() && *parting != Parting::Abrupt {
        *parting = Parting::Abrupt;
        worker.counters.stopped_by(Reason::CancelFlood, 1);
        // The requests that are still open learn of it, and let their backends go.
        connection.abrupt_shutdown(h2::Reason::ENHANCE_YOUR_CALM);
        watch.clear();
        watch.enter(Phase::Busy, FAREWELL);
    } else if is_told && *parting == Parting::None {
        // RFC 9113 §6.8: the client learns which requests will still be answered.
        *parting = Parting::Polite;
        connection.graceful_shutdown();
        let within = match (worker.retired.get(), answering.tally.borrow().open()) {
            (false, _) => worker.settings().drain.max(1),
            (true, 0) => worker.settings().idle_timeout,
            // Until the last of them is answered.
            (true, _) => 0,
        };
        watch.clear();
        watch.enter(Phase::Busy, within);
    } else if *parting != Parting::None && watch.signal() != Signal::None {
        return Poll::Ready(None);
    }
    connection.poll_accept(cx)
}

/// Answers one request. Returns whether the client cancelled it.
async fn answer(caller: &Caller, request: Request<h2::RecvStream>, mut respond: SendResponse<Bytes>) -> bool {
    let worker = &caller.worker;
    let (parts, body) = request.into_parts();
    let mut head = worker.request_head();
    let mut bytes = Vec::with_capacity(512);
    if let Err(reason) = message::take_request(&parts, !body.is_end_stream(), &mut head, &mut bytes) {
        worker.counters.stopped_by(reason, 1);
        respond.send_reset(h2::Reason::PROTOCOL_ERROR);
        return false;
    }
    drop(parts);
    let registered = worker.watch_stream();
    let mut down = Down::Http2(Box::new(Http2::new(body, respond)));
    poll_fn(|cx| {
        registered.watch.attach(cx);
        Poll::Ready(())
    })
    .await;
    let fate = exchange::answer(caller, &registered.watch, &head, &bytes, &mut down).await;
    let is_cancelled = down.is_cancelled();
    if fate == Fate::Cut {
        down.cut();
    }
    worker.keep_request_head(head);
    is_cancelled
}
