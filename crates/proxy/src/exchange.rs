use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use proximity_table::{Affinity, HostPolicy, Timeouts};
use tokio::time::Sleep;

use crate::auth::{self, Verdict};
use crate::balance::{Ask, Choice, Chosen, Sticky, Tried, choose, cookie_value};
use crate::caller::Caller;
use crate::decide::{Asked, Refusal, decide};
use crate::down::Down;
use crate::encode::{self, Coding, Encoded, Encoding, VARY};
use crate::http1::write::{self, Back, Onward};
use crate::http1::{Delimiter, Kind, Length, Method, RequestHead, ResponseHead, Version};
use crate::pool::{Lane, Pool, unacknowledged};
use crate::relay::{Relay, Stopped};
use crate::side::{Side, Sink};
use crate::site::{Place, Ways};
use crate::ticket::Ticket;
use crate::tunnel::Switch;
use crate::up::Up;
use crate::watch::{Phase, Signal, Watch};
use crate::{Addresses, Reason, reply, write_proxy_header};

/// Interim responses (RFC 9110 §15.2) to one request. Work that tells of its progress sends a few dozen; without
/// a bound a backend could keep its client, and us, for ever.
const MOST_INTERIM: u32 = 64;
/// How long a client waits for a backend to say `100 (Continue)`. Backends that do not know of it would wait for
/// the body, and the client for them.
const CONTINUE_WITHIN: Duration = Duration::from_secs(1);
/// Octets of a request's body that a backend's kernel takes whether the backend reads or not.
const ROOM: u64 = 4096;

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
pub struct Exchange<'a, 'b, 'c> {
    pub ticket: &'a mut Ticket<'b>,
    pub watch: &'a Watch,
    pub down: &'a mut Down<'c>,
    pub upload: Relay,
    timeouts: Timeouts,
    /// Until when a backend may leave a client waiting that waits for `100 (Continue)`.
    patience: Option<Pin<Box<Sleep>>>,
    /// Interim responses so far.
    interims: u32,
}

/// Why an attempt at a backend came to nothing.
struct Failure {
    reason: Reason,
    /// Whether the backend cannot have acted on the request.
    unseen: bool,
}

/// What goes to a backend beside what the client sent.
struct Onto<'a> {
    target: &'a [u8],
    /// From the service that decided that the request may pass.
    granted: Vec<(String, Vec<u8>)>,
}

/// Answers one request.
pub async fn answer(
    caller: &Caller,
    watch: &Watch,
    head: &RequestHead,
    bytes: &[u8],
    down: &mut Down<'_>,
) -> Fate {
    let mut ticket = Ticket::new(caller, head, bytes);
    watch.enter(Phase::Busy, 0);
    down.expect_request_body(head.length);
    let fate = match decide(caller, &mut ticket) {
        Ok(asked) => {
            let timeouts = asked.site.policy().timeouts;
            let upload = Relay::of_request(asked.body_limit)
                .by_pipes(&caller.worker.pipes)
                .withholding(asked.site.withheld.as_ref());
            watch.end_in(timeouts.total);
            Exchange { ticket: &mut ticket, watch, down, upload, timeouts, patience: None, interims: 0 }
                .run(caller, asked)
                .await
        }
        Err(refusal) => Err(refusal),
    };
    watch.no_end();
    match fate {
        Ok(fate) => fate,
        Err(refusal) => reply::page(&mut ticket, watch, &refusal, down).await,
    }
}

/// Whether a backend may leave some of the request unread for a while. Less than this finds room in the kernel of
/// any machine.
fn is_long_upload(head: &RequestHead) -> bool {
    match head.length {
        Length::None => false,
        Length::Known(octets) => octets > ROOM,
        Length::Chunked => true,
    }
}

impl Exchange<'_, '_, '_> {
    async fn run(mut self, caller: &Caller, asked: Asked<'_>) -> Result<Fate, Refusal> {
        let site = &asked.site;
        if site.users.is_some() {
            auth::by_password(self.ticket, &asked).await?;
        }
        let mut granted = Vec::new();
        if site.policy().forward_auth.is_some() {
            match Box::pin(self.by_service(&asked)).await? {
                Verdict::Passes(fields) => granted = fields,
                Verdict::Answered(fate) => return Ok(fate),
            }
        }
        match site.place(asked.target)? {
            Place::Redirect(redirect, target) => {
                Ok(reply::redirect(self.ticket, self.watch, redirect, target.as_bytes(), self.down).await?)
            }
            Place::Backends(ways, target) => {
                let onto = Onto { target: target.as_bytes(), granted };
                self.carry(caller, &asked, ways, &onto).await
            }
        }
    }

    /// Sends the request to the backends in turn until one answers. Another backend, or the same on a new
    /// connection, is tried only where the request cannot have been acted on twice.
    async fn carry(
        &mut self,
        caller: &Caller,
        asked: &Asked<'_>,
        ways: &Ways,
        onto: &Onto<'_>,
    ) -> Result<Fate, Refusal> {
        let worker = self.ticket.worker;
        let site = &asked.site;
        let head = self.ticket.head;
        // RFC 9110 §9.2.2: what may be repeated without harm. An upload cannot be sent again.
        let repeatable = head.length == Length::None && head.method.is_idempotent();
        let turn = site.next_turn();
        let mut failure = Reason::BackendRefused;
        let mut tried = Tried::default();
        let mut attempts = site.policy().retries.attempts;
        let now_ms = worker.shared.millis(self.ticket.start);
        site.budget.count_request();
        loop {
            let sticky = self.sticky(asked);
            let ask = Ask { turn, entropy: worker.entropy(), now_ms, sticky, tried };
            let chosen = match choose(&ways.members, &site.rules, &ask) {
                Choice::Chosen(chosen) => chosen,
                Choice::Full(index) => self.wait_for(index, asked, ways).await?,
                Choice::Nobody => return Err(failure.into()),
            };
            tried.add(chosen.index);
            let (lane, member) = (&ways.lanes[chosen.index], &ways.members[chosen.index]);
            self.ticket.lane = Some(lane.clone());
            match self.attempt(caller, asked, lane, onto, repeatable).await {
                Ok((up, response, length)) => {
                    member.state.succeeded(chosen.trial, now_ms);
                    member.state.note(None);
                    if response.status == 101 {
                        let onto = Switch { caller, site, backend: lane.backend() };
                        return Ok(Box::pin(self.switch(onto, up, &response, length)).await?);
                    }
                    let fate = self.pass_on(up, lane, &response, length, asked, Some((&chosen, ways))).await;
                    worker.keep_response_head(response);
                    return Ok(fate?);
                }
                Err(broke) => {
                    failure = broke.reason;
                    if failure.is_of_backend() {
                        member.state.note(Some(failure));
                        member.state.failed(chosen.trial, &site.passive, worker.now_ms());
                    }
                    let may_repeat = self.upload.moved == 0
                        && failure.is_of_backend()
                        && failure != Reason::BackendSlow
                        && (repeatable || broke.unseen);
                    if !may_repeat || attempts == 0 || !site.budget.take(worker.now_ms()) {
                        return Err(failure.into());
                    }
                    attempts -= 1;
                    worker.counters.retried();
                    self.upload.again();
                }
            }
        }
    }

    /// What keeps the client at one backend.
    fn sticky(&self, asked: &Asked<'_>) -> Sticky<'_> {
        let (head, bytes) = (self.ticket.head, self.ticket.bytes);
        match &asked.site.policy().affinity {
            None => Sticky::Free,
            Some(Affinity::ClientIp) => Sticky::Client(self.ticket.client),
            Some(Affinity::Header(name)) => Sticky::Header(head.named(name.as_bytes(), bytes)),
            Some(Affinity::Cookie(name)) => Sticky::Cookie {
                value: head
                    .values(Kind::Cookie, bytes)
                    .find_map(|field| cookie_value(field, name.as_bytes())),
                salt: self.ticket.worker.shared.salt,
            },
        }
    }

    /// Stands in the line of a backend that carries as much as it may.
    async fn wait_for(&mut self, index: usize, asked: &Asked<'_>, ways: &Ways) -> Result<Chosen, Reason> {
        let limits = &asked.site.policy().limits;
        let state = &ways.members[index].state;
        let waiting = state.wait(limits.backend_connections, limits.queue).map_err(|_| Reason::QueueFull)?;
        let within = Duration::from_secs(u64::from(limits.queue_timeout));
        let waiting = tokio::time::timeout(within, waiting);
        let slot = self.unless_gone(waiting).await?.map_err(|_| Reason::QueueTimeout)?;
        Ok(Chosen { index, slot, trial: false, set_cookie: None })
    }

    /// Waits for something as long as the client does, and as long as the exchange may take.
    pub async fn unless_gone<T>(&mut self, work: impl Future<Output = T>) -> Result<T, Reason> {
        let mut work = pin!(work);
        // It has an end of its own.
        self.watch.extend(0);
        poll_fn(|cx| {
            if let Poll::Ready(done) = work.as_mut().poll(cx) {
                return Poll::Ready(Ok(done));
            }
            match self.watch.signal() {
                Signal::None if self.down.is_gone(cx) => Poll::Ready(Err(Reason::ClientGone)),
                Signal::None => Poll::Pending,
                Signal::Overdue => Poll::Ready(Err(Reason::TotalTimeout)),
                Signal::Close => Poll::Ready(Err(Reason::Stopping)),
            }
        })
        .await
    }

    /// Sends the request to one backend: on a kept connection first, on a new one if that turns out dead.
    async fn attempt(
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
        loop {
            let is_reused = kept.is_some();
            let mut up = match kept.take() {
                Some(stream) => Up::Http1(Side::new(stream, worker.buffers.clone())),
                None => self.connect(lane).await.map_err(|reason| Failure { reason, unseen: true })?,
            };
            // Whoever waited may find the address in other hands.
            let is_as_decided = worker.generation() == asked.generation;
            if !is_as_decided && !caller.leads_to(self.ticket.host, &asked.site, lane.backend()) {
                return Err(Failure { reason: Reason::BackendLeft, unseen: true });
            }
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
            match poll_fn(|cx| self.poll_head(cx, &mut up, &mut response)).await {
                Ok(length) => return Ok((up, response, length)),
                Err(broke) => {
                    worker.keep_response_head(response);
                    if broke.reason == Reason::BackendTimedOut {
                        worker.pool.forget(lane);
                    }
                    let is_gone = matches!(broke.reason, Reason::BackendBroke | Reason::BackendTimedOut);
                    let is_dead = is_reused && is_gone && self.upload.moved == 0;
                    if !is_dead || !(repeatable || broke.unseen) {
                        return Err(broke);
                    }
                    worker.counters.retried();
                    self.upload.again();
                }
            }
        }
    }

    /// A new connection to a backend, or a new stream on one.
    pub async fn connect(&mut self, lane: &Lane) -> Result<Up, Reason> {
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

    fn connect_within(&self) -> Duration {
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
        let overdue = || match self.upload.is_done || self.upload.is_held_up(self.down, up) {
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
                Poll::Ready(Err(Stopped::Sink)) => is_refused = true,
            }
            if self.upload.moved > before {
                self.watch.extend(self.timeouts.header);
            }
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

    /// Passes an answer on to the client.
    pub async fn pass_on(
        &mut self,
        mut up: Up,
        lane: &Lane,
        response: &ResponseHead,
        length: usize,
        asked: &Asked<'_>,
        chosen: Option<(&Chosen, &Ways)>,
    ) -> Result<Fate, Reason> {
        let worker = self.ticket.worker;
        let head = self.ticket.head;
        let site = &asked.site;
        let depends =
            site.policy().compress && encode::depends_on_client(head.method, response, up.head_bytes());
        let coding = if depends { Coding::choose(head, self.ticket.bytes, response) } else { None };
        // What is compressed is as long as it turns out to be.
        let delimiter = match (response.delimiter, coding, head.version) {
            (Delimiter::Known(octets), None, _) => Delimiter::Known(octets),
            (Delimiter::None, None, _) => Delimiter::None,
            (_, _, Version::Http10) => Delimiter::Close,
            _ => Delimiter::Chunked,
        };
        let upload_is_over = self.upload.is_done || (chosen.is_none() && self.down.is_over());
        let keep_alive =
            head.keep_alive && delimiter != Delimiter::Close && !worker.draining.get() && upload_is_over;
        let mut extra = Vec::new();
        if let (Some((value, ways)), Some(Affinity::Cookie(name))) =
            (chosen.and_then(|(chosen, ways)| Some((chosen.set_cookie?, ways))), &site.policy().affinity)
        {
            write::push_field(
                &mut extra,
                b"Set-Cookie",
                value.set_cookie(name, &ways.path, false).as_bytes(),
            );
        }
        if worker.settings().via {
            extra.extend_from_slice(b"Via: 1.1 proximity\r\n");
        }
        // Whoever edits what the answer varies by has the last word.
        let edited = site.response_edits.as_ref().is_some_and(|edits| edits.is_removed(VARY));
        let vary = if depends && !edited { encode::vary(response, up.head_bytes()) } else { None };
        extra.extend_from_slice(vary.as_deref().unwrap_or_default());
        if let Some(coding) = coding {
            extra.extend_from_slice(&coding.fields(response.named(b"etag", up.head_bytes())));
        }
        let back = Back {
            version: head.version,
            keep_alive,
            delimiter,
            date: &worker.clock.date(),
            extra: &extra,
            edits: site.response_edits.as_ref(),
            recoded: coding.is_some(),
            varies: vary.is_some(),
        };
        self.down.respond(response, up.head_bytes(), &back);
        up.pass_head(length, response.delimiter);
        self.ticket.status = response.status;
        self.watch.extend(self.timeouts.idle);
        let mut download = Relay::of_response().by_pipes(&worker.pipes);
        if chosen.is_none() {
            // The answer of somebody else than the app: the app's upload is not begun.
            self.upload.is_done = true;
        }
        // Boxed, so that the many that are not compressed do not hold room for it.
        let passed = match coding.map(Encoding::new).transpose() {
            Ok(encoding) => {
                let mut encoding = encoding.map(Box::new);
                poll_fn(|cx| self.poll_bodies(cx, &mut up, &mut download, encoding.as_deref_mut())).await
            }
            Err(_) => Err(Reason::BackendCut),
        };
        self.ticket.received = self.upload.moved;
        self.ticket.sent = download.moved;
        worker.counters.stopped_by(Reason::HeaderName, u64::from(self.upload.ambiguous));
        if let Err(reason) = passed {
            self.ticket.break_off(reason);
            if delimiter == Delimiter::Close {
                // The end of such an answer is the end of the connection: a reset says that this is not it.
                self.down.reset();
            }
            return Ok(Fate::Cut);
        }
        if self.upload.is_done && site.policy().send_proxy_protocol.is_none() {
            if is_long_upload(head) {
                up.limit_unacknowledged(Some(unacknowledged(lane, self.connect_within())));
            }
            up.give_back(&worker.pool, lane, response);
        }
        Ok(if keep_alive { Fate::Stay } else { Fate::Close })
    }

    fn poll_bodies(
        &mut self,
        cx: &mut Context<'_>,
        up: &mut Up,
        download: &mut Relay,
        encoding: Option<&mut Encoding>,
    ) -> Poll<Result<(), Reason>> {
        let overdue = || match download.is_held_up(up, self.down) {
            true => Reason::ClientSlow,
            false => Reason::BackendCut,
        };
        if let Some(reason) = self.watch.must_stop(overdue) {
            return Poll::Ready(Err(reason));
        }
        let before = self.upload.moved + download.moved;
        if !self.upload.is_done {
            match self.upload.poll(cx, self.down, up) {
                Poll::Ready(Err(Stopped::Source(cut))) => return Poll::Ready(Err(cut.of_request())),
                Poll::Ready(Err(Stopped::TooLarge)) => return Poll::Ready(Err(Reason::BodyTooLarge)),
                // The backend has said what it had to say without reading all.
                Poll::Ready(Err(Stopped::Sink)) | Poll::Ready(Ok(())) | Poll::Pending => {}
            }
        }
        let polled = match encoding {
            None => download.poll(cx, up, self.down),
            Some(encoding) => download.poll(cx, &mut Encoded { source: up, encoding }, self.down),
        };
        if self.upload.moved + download.moved > before {
            self.watch.extend(self.timeouts.idle);
        }
        match polled {
            Poll::Ready(Ok(())) => Poll::Ready(Ok(())),
            Poll::Ready(Err(Stopped::Source(_) | Stopped::TooLarge)) => Poll::Ready(Err(Reason::BackendCut)),
            Poll::Ready(Err(Stopped::Sink)) => Poll::Ready(Err(Reason::ClientGone)),
            Poll::Pending if self.upload.is_done && self.down.is_gone(cx) => {
                Poll::Ready(Err(Reason::ClientGone))
            }
            Poll::Pending => Poll::Pending,
        }
    }
}
