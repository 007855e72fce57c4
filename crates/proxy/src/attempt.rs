use std::future::{Future, poll_fn};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use proximity_table::HostPolicy;

use crate::caller::Caller;
use crate::decide::Asked;
use crate::exchange::Exchange;
use crate::http1::write::Onward;
use crate::http1::{Delimiter, Length, Method, RequestHead, ResponseHead, Version};
use crate::pool::{Lane, Pool};
use crate::relay::Stopped;
use crate::side::{Side, Sink};
use crate::stream::Stream;
use crate::up::Up;
use crate::{Addresses, Reason, write_proxy_header};

/// Interim responses (RFC 9110 §15.2) to one request. Work that tells of its progress sends a few dozen; without
/// a bound a backend could keep its client, and us, for ever.
const MOST_INTERIM: u32 = 64;
/// How long a client waits for a backend to say `100 (Continue)`. Backends that do not know of it would wait for
/// the body, and the client for them.
const CONTINUE_WITHIN: Duration = Duration::from_secs(1);
/// Octets of a request's body that a backend's kernel takes whether the backend reads or not.
const ROOM: u64 = 4096;

/// Why an attempt at a backend came to nothing.
pub struct Failure {
    pub reason: Reason,
    /// Whether the backend cannot have acted on the request.
    pub unseen: bool,
}

/// What goes to a backend beside what the client sent.
pub struct Onto<'a> {
    pub target: &'a [u8],
    /// From the service that decided that the request may pass.
    pub granted: Vec<(String, Vec<u8>)>,
}

/// Whether a backend may leave some of the request unread for a while. Less than this finds room in the kernel of
/// any machine.
pub fn is_long_upload(head: &RequestHead) -> bool {
    match head.length {
        Length::None => false,
        Length::Known(octets) => octets > ROOM,
        Length::Chunked => true,
    }
}

impl Exchange<'_, '_, '_> {
    /// Sends the request to one backend: on a kept connection first, on a new one if that turns out dead.
    pub async fn attempt(
        &mut self,
        caller: &Caller,
        asked: &Asked<'_>,
        lane: &Lane,
        onto: &Onto<'_>,
        repeatable: bool,
    ) -> Result<(Up, ResponseHead, usize), Failure> {
        let worker = self.ticket.worker;
        let announces = asked.site.policy().send_proxy_protocol;
        let may_reuse = announces.is_none() && !Pool::is_http2(lane);
        let mut kept = if may_reuse { worker.pool.take(lane, !repeatable) } else { None };
        let mut is_first = true;
        loop {
            let is_reused = kept.is_some();
            let reached = self.reach(caller, asked, lane, kept.take()).await;
            let mut up = reached.map_err(|reason| Failure { reason, unseen: true })?;
            if let (Some(version), Up::Http1(side)) = (announces, &mut up) {
                let addresses = Addresses { source: caller.peer, destination: caller.local };
                write_proxy_header(version, side.begin(false), Some(addresses));
            }
            if is_long_upload(self.ticket.head) {
                up.limit_unacknowledged(None);
            }
            self.begin(asked, lane, onto, &mut up).map_err(|reason| Failure { reason, unseen: true })?;
            self.watch.extend(self.timeouts.header);
            if self.ticket.head.expects_continue {
                self.patience = Some(Box::pin(tokio::time::sleep(CONTINUE_WITHIN)));
            }
            let mut response = worker.response_head();
            self.watch.set_pace(self.timeouts.header);
            let answered = poll_fn(|cx| self.poll_head(cx, &mut up, &mut response)).await;
            self.watch.no_pace();
            match answered {
                Ok(length) => return Ok((up, response, length)),
                Err(broke) => {
                    worker.keep_response_head(response);
                    if broke.reason == Reason::BackendTimedOut {
                        worker.pool.forget(lane);
                    }
                    let is_gone = matches!(broke.reason, Reason::BackendBroke | Reason::BackendTimedOut);
                    let is_worn = is_first && (is_reused || up.is_worn());
                    let is_dead = is_worn && is_gone && self.upload.moved == 0;
                    if !is_dead || !(repeatable || broke.unseen) {
                        return Err(broke);
                    }
                    is_first = false;
                    worker.counters.retried();
                    self.upload.again();
                }
            }
        }
    }

    /// The way to a backend: a kept connection, or else a new one. Whoever waited, before this or for this, may find
    /// the address in other hands, or nobody there any more.
    pub async fn reach(
        &mut self,
        caller: &Caller,
        asked: &Asked<'_>,
        lane: &Lane,
        kept: Option<Stream>,
    ) -> Result<Up, Reason> {
        if asked.has_left(caller, self.ticket.host, lane.backend()) {
            return Err(Reason::BackendLeft);
        }
        let Some(stream) = kept else {
            let reached = self.connect(lane).await;
            let has_left = asked.has_left(caller, self.ticket.host, lane.backend());
            return if has_left { Err(Reason::BackendLeft) } else { reached };
        };
        Ok(Up::Http1(Side::new(stream, self.ticket.worker.buffers.clone())))
    }

    /// A new connection to a backend, or a new stream on one.
    async fn connect(&mut self, lane: &Lane) -> Result<Up, Reason> {
        let worker = self.ticket.worker;
        let within = self.connect_within();
        if Pool::is_http2(lane) {
            let opening = Box::pin(worker.pool.sender(lane, within));
            return Ok(Up::http2(self.unless_gone(opening).await??));
        }
        // Boxed, so that the many that find a kept connection do not hold room for it.
        let stream = self.unless_gone(Box::pin(worker.pool.connect(lane, within))).await??;
        Ok(Up::Http1(Side::new(stream, worker.buffers.clone())))
    }

    pub fn connect_within(&self) -> Duration {
        Duration::from_secs(u64::from(self.timeouts.connect.max(1)))
    }

    /// Puts the request's head where it leaves for the backend.
    fn begin(&self, asked: &Asked<'_>, lane: &Lane, onto: &Onto<'_>, up: &mut Up) -> Result<(), Reason> {
        let (head, bytes) = (self.ticket.head, self.ticket.bytes);
        let site = &asked.site;
        let host = match site.policy().host {
            HostPolicy::Backend => lane.host.as_bytes(),
            HostPolicy::Preserve => self.ticket.host,
        };
        let onward = Onward {
            target: onto.target,
            host,
            identity: &asked.identity,
            granted: &onto.granted,
            edits: site.request_edits.as_ref(),
            length: head.length,
        };
        up.ask(head, bytes, &onward)
    }

    /// Sends the request and takes the head of the answer in. Returns its length in octets.
    fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        up: &mut Up,
        response: &mut ResponseHead,
    ) -> Poll<Result<usize, Failure>> {
        let failed = |reason| Poll::Ready(Err(Failure { reason, unseen: false }));
        let overdue = || match self.upload.is_done || self.upload.is_held_up {
            true => Reason::BackendSlow,
            false => Reason::UploadSlow,
        };
        if let Some(reason) = self.watch.must_stop(overdue) {
            return failed(reason);
        }
        let before = self.upload.moved;
        let mut is_refused = false;
        if !self.upload.is_done {
            match self.upload.poll(cx, self.down, up) {
                Poll::Pending | Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(Stopped::Source(cut))) => return failed(cut.of_request()),
                Poll::Ready(Err(Stopped::TooLarge)) => return failed(Reason::BodyTooLarge),
                // It may have answered all the same, before it closed.
                Poll::Ready(Err(Stopped::Sink)) => {
                    up.look_again();
                    is_refused = true;
                }
            }
            if self.upload.moved > before {
                self.watch.extend(self.timeouts.header);
            }
            // A client that waits for `100 (Continue)` has nothing to send yet.
            let is_for_client = !self.upload.is_done && !self.upload.is_held_up && self.patience.is_none();
            self.watch.keep_pace(self.upload.moved - before, is_for_client);
        }
        match self.poll_response(cx, up, response) {
            Poll::Ready(Err(reason)) => {
                let unseen = up.is_unseen() && reason == Reason::BackendBroke;
                return Poll::Ready(Err(Failure { reason, unseen }));
            }
            Poll::Ready(Ok(length)) => return Poll::Ready(Ok(length)),
            Poll::Pending if is_refused => return failed(Reason::BackendBroke),
            Poll::Pending => {}
        }
        if let Some(sleep) = &mut self.patience
            && sleep.as_mut().poll(cx).is_ready()
        {
            self.patience = None;
            self.down.say_continue();
        }
        if let Poll::Ready(Err(_)) = self.down.poll_flush(cx) {
            return failed(Reason::ClientGone);
        }
        if self.upload.is_done && self.down.is_gone(cx) {
            return failed(Reason::ClientGone);
        }
        Poll::Pending
    }

    /// Sends a question without body, other than the client's request, and takes the head of the answer in.
    pub fn poll_answer(
        &mut self,
        cx: &mut Context<'_>,
        up: &mut Up,
        response: &mut ResponseHead,
    ) -> Poll<Result<usize, Reason>> {
        if let Some(reason) = self.watch.must_stop(|| Reason::BackendSlow) {
            return Poll::Ready(Err(reason));
        }
        if let Poll::Ready(Err(_)) = up.poll_flush(cx) {
            return Poll::Ready(Err(Reason::BackendBroke));
        }
        loop {
            match up.poll_response(cx, response, Method::Get) {
                Poll::Pending if self.down.is_gone(cx) => return Poll::Ready(Err(Reason::ClientGone)),
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(reason)) => return Poll::Ready(Err(reason)),
                // Nobody asked for another protocol.
                Poll::Ready(Ok(_)) if response.status == 101 => {
                    return Poll::Ready(Err(Reason::BackendNonsense));
                }
                Poll::Ready(Ok(length)) if response.status >= 200 => return Poll::Ready(Ok(length)),
                Poll::Ready(Ok(length)) => {
                    // Interim responses to a question are not for the client.
                    self.count_interim()?;
                    up.pass_head(length, Delimiter::None);
                }
            }
        }
    }

    fn count_interim(&mut self) -> Result<(), Reason> {
        self.interims += 1;
        if self.interims > MOST_INTERIM { Err(Reason::BackendNonsense) } else { Ok(()) }
    }

    /// Takes the head of the answer in, and passes on what comes before it (RFC 9110 §15.2).
    fn poll_response(
        &mut self,
        cx: &mut Context<'_>,
        up: &mut Up,
        response: &mut ResponseHead,
    ) -> Poll<Result<usize, Reason>> {
        loop {
            let length = ready!(up.poll_response(cx, response, self.ticket.head.method))?;
            if response.status >= 200 || response.status == 101 {
                return Poll::Ready(Ok(length));
            }
            self.patience = None;
            self.count_interim()?;
            // HTTP/1.0 knows none.
            if self.ticket.head.version > Version::Http10 {
                self.down.interim(response, up.head_bytes(), self.ticket.head.version);
            }
            up.pass_head(length, Delimiter::None);
        }
    }
}
