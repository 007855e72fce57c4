use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::task::{Poll, ready};

use tokio::net::TcpStream;

use crate::buffer::{Buffer, SMALL};
use crate::caller::Caller;
use crate::decide::EVERYWHERE;
use crate::down::{Down, OwnAnswer};
use crate::exchange::{self, Fate};
use crate::http1::{RequestHead, Version};
use crate::http2::{self, front::PREFACE};
use crate::pages::Page;
use crate::side::{Side, Sink};
use crate::stream::Stream;
use crate::watch::{Phase, Signal, Watch};
use crate::{Addresses, ProxyHeader, Reason};

/// Octets of a client that are thrown away after the last answer, so that it can read that answer.
const MOST_LINGERING: usize = 256 * 1024;
/// Seconds that a client has to take the last answer.
const LINGER: u32 = 2;

/// What came of waiting for a request.
enum Arrival {
    /// A head of that many octets.
    Head(usize),
    /// The preface of HTTP/2.
    Http2,
    /// Nothing yet: it was announced too early, as the first of a connection is.
    Nothing,
    /// Nothing more comes.
    End,
    /// What came is no request, or came too slowly.
    Refused(Reason),
}

/// Serves a client's connection until it ends.
pub async fn serve(mut caller: Caller, watch: &Rc<Watch>, stream: TcpStream) {
    let worker = caller.worker.clone();
    let mut down = Side::new(Stream::Tcp(stream), worker.buffers.clone());
    poll_fn(|cx| {
        watch.attach(cx);
        Poll::Ready(())
    })
    .await;
    let _slot;
    if caller.is_announced() {
        match announced(watch, &mut down).await {
            Ok(Some(Addresses { source, destination })) => {
                caller = Caller::new(worker.clone(), source, destination);
                let limit = worker.settings().client_connections;
                match worker.shared.clients.enter(EVERYWHERE, caller.peer.ip(), limit) {
                    Ok(slot) => _slot = slot,
                    Err(_) => return worker.counters.stopped_by(Reason::ClientConnections, 1),
                }
            }
            // The proxy speaks for itself, as its health checks do.
            Ok(None) => {}
            Err(reason) => return worker.counters.stopped_by(reason, 1),
        }
    }
    if let Some(read) = requests(&caller, watch, &mut down).await {
        // Boxed, so that the many that speak HTTP/1 do not hold room for it.
        Box::pin(http2::front::serve(caller, watch, read, down.stream)).await;
    }
}

/// Reads the header that says who is behind a connection (PROXY protocol).
async fn announced(watch: &Watch, down: &mut Side) -> Result<Option<Addresses>, Reason> {
    poll_fn(|cx| {
        loop {
            let held = down.input.as_ref().map_or(&[][..], Buffer::data);
            if let Some(header) = ProxyHeader::read(held)? {
                if let Some(input) = &mut down.input {
                    input.consume(header.length);
                }
                return Poll::Ready(Ok(header.addresses));
            }
            if watch.signal() != Signal::None {
                return Poll::Ready(Err(Reason::ProxyHeader));
            }
            match ready!(down.poll_fill(cx)) {
                Ok(0) | Err(_) => return Poll::Ready(Err(Reason::ProxyHeader)),
                Ok(_) => {}
            }
        }
    })
    .await
}

/// Answers the requests of a connection, one after the other. Returns what was read of one that turns out to
/// speak HTTP/2.
async fn requests(caller: &Caller, watch: &Watch, down: &mut Side) -> Option<Buffer> {
    let worker = &caller.worker;
    let mut is_first = true;
    loop {
        let mut buffer = match down.input.take() {
            Some(buffer) if !buffer.is_empty() => buffer,
            _ => {
                down.rest();
                watch.enter(Phase::Idle, worker.settings().idle_timeout);
                if wait(watch, down).await.is_err() {
                    return None;
                }
                worker.buffers.head()
            }
        };
        let mut head = worker.request_head();
        match take_head(caller, watch, down, &mut buffer, &mut head, is_first).await {
            Arrival::Head(length) => {
                if buffer.data().len() > length {
                    let mut rest = worker.buffers.small();
                    rest.grow(buffer.data().len() - length);
                    rest.append(buffer.split_off(length));
                    down.input = Some(rest);
                }
                let mut here = Down::Http1(down);
                let fate = exchange::answer(caller, watch, &head, buffer.data(), &mut here).await;
                drop(buffer);
                match fate {
                    Fate::Stay => {}
                    Fate::Close => {
                        linger(watch, down).await;
                        return None;
                    }
                    Fate::Cut => return None,
                }
            }
            Arrival::Nothing => {
                worker.keep_request_head(head);
                continue;
            }
            Arrival::Http2 => return Some(buffer),
            Arrival::End => return None,
            Arrival::Refused(reason) => {
                refuse(caller, watch, reason, down).await;
                return None;
            }
        }
        is_first = false;
        worker.keep_request_head(head);
    }
}

/// Waits until something comes from an idle client.
async fn wait(watch: &Watch, down: &mut Side) -> io::Result<()> {
    poll_fn(|cx| {
        if watch.signal() != Signal::None {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        down.stream.poll_readable(cx)
    })
    .await
}

/// Reads until `buffer` holds the head of a request.
async fn take_head(
    caller: &Caller,
    watch: &Watch,
    down: &mut Side,
    buffer: &mut Buffer,
    head: &mut RequestHead,
    is_first: bool,
) -> Arrival {
    let worker = &caller.worker;
    let settings = worker.settings();
    let longest = settings.max_header as usize;
    // Where the search for the end of the head goes on, so that a head of many small pieces is read once.
    let mut searched = 0;
    poll_fn(|cx| {
        loop {
            let data = buffer.data();
            if is_first && data.starts_with(PREFACE) {
                return Poll::Ready(Arrival::Http2);
            }
            // No request begins like the preface, and none of it may be taken for a request.
            let may_be_http2 = is_first && PREFACE.starts_with(data);
            if !may_be_http2 && ends_somewhere(data, &mut searched) {
                match head.parse(data) {
                    // The buffer may be larger than a head may be.
                    Ok(Some(length)) if length > longest => {
                        return Poll::Ready(Arrival::Refused(Reason::HeadTooLarge));
                    }
                    Ok(Some(length)) => return Poll::Ready(Arrival::Head(length)),
                    Ok(None) => {}
                    Err(reason) => return Poll::Ready(Arrival::Refused(reason)),
                }
            }
            if data.len() >= longest {
                // RFC 9112 §3: a target that is longer than any that would be parsed is answered 414.
                let is_line = memchr::memchr(b'\n', data).is_none();
                let reason = if is_line { Reason::UriTooLong } else { Reason::HeadTooLarge };
                return Poll::Ready(Arrival::Refused(reason));
            }
            match watch.signal() {
                Signal::None => {}
                Signal::Overdue if !data.is_empty() => {
                    return Poll::Ready(Arrival::Refused(Reason::HeadTimeout));
                }
                _ => return Poll::Ready(Arrival::End),
            }
            if buffer.space().is_empty() {
                worker.buffers.grow(buffer, longest.max(SMALL));
            }
            match down.stream.poll_fill(cx, buffer) {
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(Arrival::End),
                Poll::Ready(Ok(_)) => {}
                // An idle client holds no room, and has its own time.
                Poll::Pending if buffer.is_empty() => return Poll::Ready(Arrival::Nothing),
                Poll::Pending => {
                    if watch.phase() != Phase::Head {
                        watch.enter(Phase::Head, settings.head_timeout);
                    }
                    return Poll::Pending;
                }
            }
        }
    })
    .await
}

/// Whether an empty line may be in `data`, from where the last search ended.
fn ends_somewhere(data: &[u8], searched: &mut usize) -> bool {
    let from = searched.saturating_sub(3);
    *searched = data.len();
    // A line feed, an optional carriage return, a line feed: whether it may be so is the parser's to say.
    memchr::memchr_iter(b'\n', &data[from..]).any(|at| {
        let next = &data[from + at + 1..];
        next.first() == Some(&b'\n') || next.starts_with(b"\r\n")
    })
}

/// Says what is wrong with what came, and closes.
async fn refuse(caller: &Caller, watch: &Watch, reason: Reason, down: &mut Side) {
    let worker = &caller.worker;
    worker.counters.stopped_by(reason, 1);
    let page = Page { reason, host: "", inside: None }.render(false);
    let status = page.status;
    worker.counters.response(status);
    worker.nobody.observe(status, 0, 0, 0);
    Down::Http1(down).respond_own(&OwnAnswer {
        status,
        fields: &page.fields,
        date: b"",
        body: &page.body,
        head_only: false,
        version: Version::Http11,
        keep_alive: false,
    });
    watch.enter(Phase::Busy, LINGER);
    let flushed = poll_fn(|cx| {
        if watch.signal() != Signal::None {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        down.poll_flush(cx)
    });
    if flushed.await.is_ok() {
        linger(watch, down).await;
    }
}

/// Closes so that the client gets the last answer: octets that nobody reads would make the kernel reset the
/// connection, and the answer would be lost (RFC 9112 §9.6).
async fn linger(watch: &Watch, down: &mut Side) {
    watch.enter(Phase::Busy, LINGER);
    let mut left = MOST_LINGERING;
    let mut is_shut = false;
    poll_fn(|cx| {
        if watch.signal() != Signal::None {
            return Poll::Ready(());
        }
        if !is_shut {
            match down.stream.poll_shutdown(cx) {
                Poll::Ready(Ok(())) => is_shut = true,
                Poll::Ready(Err(_)) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
        }
        loop {
            if let Some(input) = &mut down.input {
                input.consume(usize::MAX);
            }
            match down.poll_fill(cx) {
                Poll::Ready(Ok(octets)) if octets > 0 && octets < left => left -= octets,
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
        }
    })
    .await;
}
