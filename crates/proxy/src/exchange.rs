use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

use proximity_table::{Affinity, Timeouts, VhostLimits};
use tokio::time::Sleep;

use crate::attempt::{Failure, Onto};
use crate::auth::Judgement;
use crate::backend_slots::InFlight;
use crate::backend_state::BackendState;
use crate::balance::{Ask, Choice, Sticky, Tried, choose, cookie_value, pass};
use crate::caller::Caller;
use crate::decide::{Asked, Refusal, decide};
use crate::down::Down;
use crate::http1::{Kind, Length, RequestHead};
use crate::relay::Relay;
use crate::site::{Place, Ways};
use crate::ticket::Ticket;
use crate::tunnel::Switch;
use crate::watch::{Phase, Signal, Watch};
use crate::{Reason, reply};

/// How often it is decided where a request goes whose app moves while it waits.
const MOST_DECISIONS: u32 = 4;

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
    pub timeouts: Timeouts,
    /// Until when a backend may leave a client waiting that waits for `100 (Continue)`.
    pub patience: Option<Pin<Box<Sleep>>>,
    /// Interim responses so far.
    pub interims: u32,
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
    let mut decisions = 1;
    let fate = loop {
        let fate = match decide(caller, &mut ticket, decisions == 1) {
            Ok(asked) => {
                let timeouts = asked.site.policy().timeouts;
                let upload = Relay::of_request(asked.body_limit)
                    .by_pipes(&caller.worker.pipes)
                    .withholding(asked.site.withheld.as_ref());
                if decisions == 1 {
                    watch.end_in(timeouts.total);
                }
                Exchange { ticket: &mut ticket, watch, down, upload, timeouts, patience: None, interims: 0 }
                    .run(caller, asked)
                    .await
            }
            Err(refusal) => Err(refusal),
        };
        match fate {
            // The request waited, and meanwhile the address became somebody else's: nothing of it was sent.
            Err(Refusal { reason: Reason::BackendLeft, .. }) if decisions < MOST_DECISIONS => {
                ticket.lane = None;
                decisions += 1;
            }
            fate => break fate,
        }
    };
    watch.no_end();
    match fate {
        Ok(fate) => fate,
        Err(refusal) => reply::page(&mut ticket, watch, &refusal, down).await,
    }
}

impl Exchange<'_, '_, '_> {
    async fn run(mut self, caller: &Caller, asked: Asked<'_>) -> Result<Fate, Refusal> {
        let site = &asked.site;
        if site.users.is_some() {
            self.by_password(&asked).await?;
        }
        let mut granted = Vec::new();
        if site.policy().forward_auth.is_some() {
            match Box::pin(self.by_service(caller, &asked)).await? {
                Judgement::Passes(fields) => granted = fields,
                Judgement::Answered(fate) => return Ok(fate),
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
        let mut has_waited = false;
        let mut tried = Tried::default();
        let mut attempts = site.policy().retries.attempts;
        let mut now_ms = worker.shared.millis(self.ticket.start);
        // One that is decided anew has another route, whose site has a budget of its own: none counts it twice.
        site.budget.count_request();
        loop {
            let ask = Ask { turn, entropy: worker.entropy(), now_ms, sticky: self.sticky(asked), tried };
            let chosen = match choose(&ways.members, &site.rules, &ask) {
                Choice::Chosen(chosen) => chosen,
                Choice::Full(index) => {
                    let state = &ways.members[index].state;
                    let slot = self.wait_for(state, &site.policy().limits).await?;
                    now_ms = worker.now_ms();
                    let ask =
                        Ask { turn, entropy: worker.entropy(), now_ms, sticky: self.sticky(asked), tried };
                    // It may have been paused meanwhile, and others not. Nobody stands in line a third time.
                    let is_last = ways.members.len() == 1 || has_waited;
                    has_waited = true;
                    match pass(index, &ways.members[index], &site.rules, &ask, slot, is_last) {
                        Some(chosen) => chosen,
                        None => continue,
                    }
                }
                Choice::Nobody => return Err(failure.into()),
            };
            tried.add(chosen.index);
            let (lane, member) = (&ways.lanes[chosen.index], &ways.members[chosen.index]);
            self.ticket.lane = Some(lane.clone());
            match self.attempt(caller, asked, lane, onto, repeatable).await {
                Ok((up, response, length)) => {
                    member.state.succeeded(chosen.trial, now_ms);
                    member.state.met.note_answer();
                    if response.status == 101 {
                        let onto = Switch { caller, site, backend: lane.backend() };
                        return Ok(Box::pin(self.switch(onto, up, &response, length)).await?);
                    }
                    let fate = self.pass_on(up, lane, &response, length, asked, Some((&chosen, ways))).await;
                    worker.keep_response_head(response);
                    return Ok(fate?);
                }
                Err(Failure { reason: Reason::BackendLeft, .. }) => return Err(Reason::BackendLeft.into()),
                Err(broke) => {
                    failure = broke.reason;
                    now_ms = worker.now_ms();
                    if failure.is_of_backend() {
                        member.state.met.note_failure(failure, now_ms);
                        member.state.failed(chosen.trial, &site.passive, now_ms);
                    }
                    let may_repeat = self.upload.moved == 0
                        && failure.is_of_backend()
                        && failure != Reason::BackendSlow
                        && (repeatable || broke.unseen);
                    if !may_repeat || attempts == 0 || !site.budget.take(now_ms) {
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
    async fn wait_for(&mut self, state: &BackendState, limits: &VhostLimits) -> Result<InFlight, Reason> {
        let waiting = state.wait(limits.backend_connections, limits.queue).map_err(|_| Reason::QueueFull)?;
        let within = Duration::from_secs(u64::from(limits.queue_timeout));
        let waiting = tokio::time::timeout(within, waiting);
        self.unless_gone(waiting).await?.map_err(|_| Reason::QueueTimeout)
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
}
