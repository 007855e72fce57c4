use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use proximity_table::{HostPolicy, PathRoute, Service};
use tokio::time::Sleep;

use crate::caller::{Caller, Visit};
use crate::http1::write::{self, Back, Onward};
use crate::http1::{Delimiter, Length, RequestHead, ResponseHead, Version};
use crate::pool::Lane;
use crate::relay::{Relay, Stopped};
use crate::side::Side;
use crate::site::{Place, Ways};
use crate::ticket::Ticket;
use crate::watch::{Phase, Signal, Watch};
use crate::{Reason, host, reply};

/// Longest head of a response, in octets.
const LONGEST_RESPONSE_HEAD: usize = 64 * 1024;
/// How long a client waits for a backend to say `100 (Continue)`. Backends that do not know of it would wait for
/// the body, and the client for them.
const CONTINUE_WITHIN: Duration = Duration::from_secs(1);

/// What becomes of a client's connection after an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Another request may follow.
    Stay,
    /// It is closed; the client may still read what it was sent.
    Close,
    /// It is cut, so that nobody takes a part for the whole.
    Cut,
}

/// An exchange under way.
struct Exchange<'a, 'b> {
    ticket: &'a mut Ticket<'b>,
    watch: &'a Watch,
    down: &'a mut Side,
    upload: Relay,
    /// Until when a backend may leave a client waiting that waits for `100 (Continue)`.
    patience: Option<Pin<Box<Sleep>>>,
}

/// Why an attempt at a backend came to nothing.
struct Failure {
    reason: Reason,
    /// Whether the backend cannot have acted on the request.
    unseen: bool,
}

/// Answers one request.
pub async fn answer(
    caller: &Caller,
    watch: &Watch,
    head: &RequestHead,
    bytes: &[u8],
    down: &mut Side,
) -> Fate {
    let mut ticket = Ticket::new(&caller.worker, &caller.log_prefix, head, bytes);
    watch.enter(Phase::Busy, 0);
    down.expect_request_body(head.length);
    let fate = match decide(caller, &mut ticket) {
        Ok((visit, target)) => {
            let upload = Relay::of_request(0);
            let exchange = Exchange { ticket: &mut ticket, watch, down, upload, patience: None };
            exchange.run(caller, &visit, target).await
        }
        Err(reason) => Err(reason),
    };
    watch.no_end();
    match fate {
        Ok(fate) => fate,
        Err(reason) => reply::page(&mut ticket, caller, watch, reason, down).await,
    }
}

/// Whose request it is and what it asks for.
fn decide<'a>(caller: &Caller, ticket: &mut Ticket<'a>) -> Result<(Rc<Visit>, &'a [u8]), Reason> {
    let (written, target) = host::target(ticket.head, ticket.bytes)?;
    let visit = caller.visit(written)?;
    ticket.route = Some(visit.site.route.clone());
    if ticket.head.ambiguous > 0 {
        ticket.worker.counters.stopped_by(Reason::HeaderName, u64::from(ticket.head.ambiguous));
    }
    Ok((visit, target))
}

impl Exchange<'_, '_> {
    async fn run(mut self, caller: &Caller, visit: &Visit, target: &[u8]) -> Result<Fate, Reason> {
        let path = target.split(|&byte| byte == b'?').next().unwrap_or_default();
        let path = std::str::from_utf8(path).map_err(|_| Reason::InvalidTarget)?;
        match visit.site.place(path)? {
            Place::Redirect(redirect) => {
                Ok(reply::redirect(self.ticket, self.watch, redirect, target, self.down).await)
            }
            Place::Service(service, ways, claimed) => {
                let target = strip(target, claimed);
                self.carry(caller, visit, service, ways, target).await
            }
        }
    }

    /// Sends the request to the backends in turn until one answers. Another backend, or the same on a new
    /// connection, is tried only where the request cannot have been acted on twice.
    async fn carry(
        &mut self,
        caller: &Caller,
        visit: &Visit,
        service: &Service,
        ways: &Ways,
        target: &[u8],
    ) -> Result<Fate, Reason> {
        let worker = self.ticket.worker;
        let policy = &visit.site.route.policy;
        let head = self.ticket.head;
        // RFC 9110 §9.2.2: what may be repeated without harm. An upload cannot be sent again.
        let repeatable = head.length == Length::None && head.method.is_idempotent();
        self.watch.end_in(policy.timeouts.total);
        let first = visit.site.next_turn(ways.lanes.len());
        let mut failure = Reason::Starting;
        let mut response = worker.response_head();
        for turn in 0..ways.lanes.len() {
            let lane = &ways.lanes[(first + turn) % ways.lanes.len()];
            let mut kept = worker.pool.take(lane, !repeatable);
            loop {
                let is_reused = kept.is_some();
                let stream = match kept.take() {
                    Some(stream) => stream,
                    None => {
                        let within = Duration::from_secs(u64::from(policy.timeouts.connect.max(1)));
                        match worker.pool.connect(lane, within).await {
                            Ok(stream) => stream,
                            Err(reason) => {
                                failure = reason;
                                break;
                            }
                        }
                    }
                };
                let mut up = Side::new(stream, worker.buffers.clone());
                self.begin(visit, service, lane, target, &mut up);
                self.watch.extend(policy.timeouts.header);
                if head.expects_continue {
                    self.patience = Some(Box::pin(tokio::time::sleep(CONTINUE_WITHIN)));
                }
                match poll_fn(|cx| self.poll_head(cx, &mut up, &mut response)).await {
                    Ok(length) if response.status == 101 => {
                        return self.switch(up, &response, length).await;
                    }
                    Ok(length) => {
                        let fate = self.pass_on(up, lane, &response, length, visit).await;
                        worker.keep_response_head(response);
                        return fate;
                    }
                    Err(broke) => {
                        failure = broke.reason;
                        let may_repeat = self.upload.moved == 0
                            && matches!(broke.reason, Reason::BackendBroke)
                            && (repeatable || broke.unseen);
                        if !may_repeat {
                            return Err(failure);
                        }
                        self.upload = Relay::of_request(0);
                        self.down.expect_request_body(head.length);
                        if !is_reused {
                            break;
                        }
                        worker.counters.retried();
                    }
                }
            }
        }
        let _ = caller;
        Err(failure)
    }

    /// Puts the request's head where it leaves for the backend.
    fn begin(&self, visit: &Visit, service: &Service, lane: &Lane, target: &[u8], up: &mut Side) {
        let (head, bytes) = (self.ticket.head, self.ticket.bytes);
        let _ = service;
        let host = match visit.site.route.policy.host {
            HostPolicy::Backend => lane.host.as_bytes(),
            HostPolicy::Preserve => self.ticket.host(),
        };
        let onward =
            Onward { target, host, identity: &visit.identity, extra: b"", edits: None, length: head.length };
        write::request(up.begin(head.length == Length::Chunked), head, bytes, &onward);
    }

    /// Sends the request and takes the head of the answer in. Returns its length in octets.
    fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        up: &mut Side,
        response: &mut ResponseHead,
    ) -> Poll<Result<usize, Failure>> {
        if self.watch.signal() != Signal::None {
            let reason = if self.upload.is_done { Reason::BackendSlow } else { Reason::UploadSlow };
            return Poll::Ready(Err(Failure { reason, unseen: false }));
        }
        let before = self.upload.moved;
        let mut is_refused = false;
        if !self.upload.is_done {
            match self.upload.poll(cx, self.down, up) {
                Poll::Pending | Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(Stopped::Source(cut))) => {
                    return Poll::Ready(Err(Failure { reason: cut.of_request(), unseen: false }));
                }
                Poll::Ready(Err(Stopped::TooLarge)) => {
                    return Poll::Ready(Err(Failure { reason: Reason::BodyTooLarge, unseen: false }));
                }
                // It may have answered all the same, before it closed.
                Poll::Ready(Err(Stopped::Sink)) => is_refused = true,
            }
            if self.upload.moved > before {
                self.watch.extend(self.timeouts().header);
            }
        }
        loop {
            if let Some(buffer) = &mut up.input {
                match response.parse(buffer.data(), self.ticket.head.method) {
                    Ok(Some(length)) if response.status < 200 && response.status != 101 => {
                        self.interim(response, length, up);
                        continue;
                    }
                    Ok(Some(length)) => return Poll::Ready(Ok(length)),
                    Ok(None) if buffer.space().is_empty() => {
                        if buffer.size() >= LONGEST_RESPONSE_HEAD {
                            return Poll::Ready(Err(Failure::broke()));
                        }
                        buffer.grow(buffer.size() * 2);
                    }
                    Ok(None) => {}
                    Err(_) => {
                        return Poll::Ready(Err(Failure { reason: Reason::BackendNonsense, unseen: false }));
                    }
                }
            }
            match up.poll_fill(cx) {
                Poll::Ready(Ok(0) | Err(_)) => {
                    let unseen = up.nothing_left();
                    return Poll::Ready(Err(Failure { unseen, ..Failure::broke() }));
                }
                Poll::Ready(Ok(_)) => {}
                Poll::Pending if is_refused => return Poll::Ready(Err(Failure::broke())),
                Poll::Pending => break,
            }
        }
        if let Some(sleep) = &mut self.patience
            && sleep.as_mut().poll(cx).is_ready()
        {
            self.patience = None;
            self.down.begin(false).extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
        }
        if let Poll::Ready(Err(_)) = self.down.poll_flush(cx) {
            return Poll::Ready(Err(Failure { reason: Reason::ClientGone, unseen: false }));
        }
        if self.upload.is_done && self.is_gone(cx) {
            return Poll::Ready(Err(Failure { reason: Reason::ClientGone, unseen: false }));
        }
        Poll::Pending
    }

    /// Passes an interim response on (RFC 9110 §15.2): HTTP/1.0 knows none.
    fn interim(&mut self, response: &ResponseHead, length: usize, up: &mut Side) {
        let Some(buffer) = &mut up.input else { return };
        self.patience = None;
        if self.ticket.head.version > Version::Http10 {
            let back = Back {
                version: self.ticket.head.version,
                keep_alive: true,
                delimiter: Delimiter::None,
                date: b"",
                extra: b"",
                edits: None,
                recoded: false,
            };
            write::response(self.down.begin(false), response, buffer.data(), &back);
        }
        buffer.consume(length);
    }

    /// Whether the client left. What it sends ahead is kept, as much as fits.
    fn is_gone(&mut self, cx: &mut Context<'_>) -> bool {
        loop {
            match self.down.stream.poll_readable(cx) {
                Poll::Pending => return false,
                Poll::Ready(Err(_)) => return true,
                Poll::Ready(Ok(())) => {}
            }
            if self.down.input.as_mut().is_some_and(|input| input.space().is_empty()) {
                return false;
            }
            match self.down.poll_fill(cx) {
                Poll::Pending => return false,
                Poll::Ready(Ok(0) | Err(_)) => return true,
                Poll::Ready(Ok(_)) => {}
            }
        }
    }

    /// Passes an answer on to the client.
    async fn pass_on(
        &mut self,
        mut up: Side,
        lane: &Lane,
        response: &ResponseHead,
        length: usize,
        visit: &Visit,
    ) -> Result<Fate, Reason> {
        let worker = self.ticket.worker;
        let head = self.ticket.head;
        let delimiter = match (response.delimiter, head.version) {
            (Delimiter::Chunked | Delimiter::Close, Version::Http10) => Delimiter::Close,
            (Delimiter::Close, _) => Delimiter::Chunked,
            (other, _) => other,
        };
        let keep_alive =
            head.keep_alive && delimiter != Delimiter::Close && !worker.draining.get() && self.upload.is_done;
        let Some(input) = &mut up.input else { return Err(Reason::BackendBroke) };
        let back = Back {
            version: head.version,
            keep_alive,
            delimiter,
            date: &worker.clock.date(),
            extra: b"",
            edits: None,
            recoded: false,
        };
        write::response(self.down.begin(delimiter == Delimiter::Chunked), response, input.data(), &back);
        input.consume(length);
        up.expect_response_body(response.delimiter);
        self.ticket.status = response.status;
        self.watch.extend(visit.site.route.policy.timeouts.idle);
        let mut download = Relay::of_response();
        let passed = poll_fn(|cx| self.poll_bodies(cx, &mut up, &mut download)).await;
        self.ticket.received = self.upload.moved;
        self.ticket.sent = download.moved;
        worker.counters.stopped_by(Reason::HeaderName, u64::from(self.upload.ambiguous));
        if let Err(reason) = passed {
            worker.counters.stopped_by(reason, 1);
            return Ok(Fate::Cut);
        }
        let has_rest = up.input.as_ref().is_some_and(|input| !input.is_empty());
        if response.keep_alive && up.is_over() && !has_rest && self.upload.is_done {
            worker.pool.put(lane, up.stream);
        }
        Ok(if keep_alive { Fate::Stay } else { Fate::Close })
    }

    fn poll_bodies(
        &mut self,
        cx: &mut Context<'_>,
        up: &mut Side,
        download: &mut Relay,
    ) -> Poll<Result<(), Reason>> {
        match self.watch.signal() {
            Signal::None => {}
            Signal::Overdue if self.watch.has_ended() => return Poll::Ready(Err(Reason::TotalTimeout)),
            Signal::Overdue if !self.down.is_flushed() => return Poll::Ready(Err(Reason::ClientSlow)),
            Signal::Overdue => return Poll::Ready(Err(Reason::BackendCut)),
            Signal::Close => return Poll::Ready(Err(Reason::Stopping)),
        }
        let before = self.upload.moved + download.moved;
        if !self.upload.is_done
            && let Poll::Ready(Err(Stopped::Source(cut))) = self.upload.poll(cx, self.down, up)
        {
            return Poll::Ready(Err(cut.of_request()));
        }
        let polled = download.poll(cx, up, self.down);
        if self.upload.moved + download.moved > before {
            self.watch.extend(self.timeouts().idle);
        }
        match polled {
            Poll::Ready(Ok(())) => Poll::Ready(Ok(())),
            Poll::Ready(Err(Stopped::Source(_) | Stopped::TooLarge)) => Poll::Ready(Err(Reason::BackendCut)),
            Poll::Ready(Err(Stopped::Sink)) => Poll::Ready(Err(Reason::ClientGone)),
            Poll::Pending if self.upload.is_done && self.is_gone(cx) => Poll::Ready(Err(Reason::ClientGone)),
            Poll::Pending => Poll::Pending,
        }
    }

    /// Connects the two sides of an upgrade that the backend accepted.
    async fn switch(&mut self, mut up: Side, response: &ResponseHead, length: usize) -> Result<Fate, Reason> {
        let worker = self.ticket.worker;
        let Some(input) = up.input.as_mut().filter(|_| self.ticket.head.upgrade.is_some()) else {
            return Err(Reason::BackendNonsense);
        };
        let back = Back {
            version: self.ticket.head.version,
            keep_alive: true,
            delimiter: Delimiter::None,
            date: b"",
            extra: b"",
            edits: None,
            recoded: false,
        };
        write::response(self.down.begin(false), response, input.data(), &back);
        input.consume(length);
        self.ticket.status = 101;
        up.expect_response_body(Delimiter::Close);
        self.down.expect_response_body(Delimiter::Close);
        self.watch.no_end();
        self.watch.enter(Phase::Tunnel, 0);
        let _open = worker.tunnel_opened();
        let (mut outward, mut inward) = (Half::new(), Half::new());
        poll_fn(|cx| {
            if self.watch.signal() == Signal::Close {
                return Poll::Ready(());
            }
            // Either side may just go away; there is nobody left to tell.
            let there = outward.poll(cx, self.down, &mut up);
            let back = inward.poll(cx, &mut up, self.down);
            match (there, back) {
                (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => Poll::Ready(()),
                (Poll::Ready(Err(())), _) | (_, Poll::Ready(Err(()))) => Poll::Ready(()),
                _ => Poll::Pending,
            }
        })
        .await;
        self.ticket.received = outward.relay.moved;
        self.ticket.sent = inward.relay.moved;
        Ok(Fate::Cut)
    }

    fn timeouts(&self) -> proximity_table::Timeouts {
        self.ticket.route.as_ref().map(|route| route.policy.timeouts).unwrap_or_default()
    }
}

/// One direction of a tunnel.
struct Half {
    relay: Relay,
    is_shut: bool,
}

impl Half {
    fn new() -> Half {
        Half { relay: Relay::of_response(), is_shut: false }
    }

    /// Moves what can be moved; the end is passed on as the end of this direction only.
    fn poll(&mut self, cx: &mut Context<'_>, from: &mut Side, to: &mut Side) -> Poll<Result<(), ()>> {
        if !self.relay.is_done {
            ready!(self.relay.poll(cx, from, to)).map_err(|_| ())?;
        }
        if !self.is_shut {
            ready!(to.stream.poll_shutdown(cx)).map_err(|_| ())?;
            self.is_shut = true;
        }
        Poll::Ready(Ok(()))
    }
}

/// The target as the backend gets it.
fn strip<'a>(target: &'a [u8], claimed: Option<&PathRoute>) -> &'a [u8] {
    let Some(claimed) = claimed.filter(|claimed| claimed.strip) else { return target };
    let rest = target.get(claimed.prefix.len()..).unwrap_or_default();
    if rest.first() == Some(&b'/') { rest } else { target }
}

impl Failure {
    fn broke() -> Failure {
        Failure { reason: Reason::BackendBroke, unseen: false }
    }
}
