use std::future::poll_fn;
use std::task::{Context, Poll, ready};

use proximity_table::BackendKey;

use crate::Reason;
use crate::caller::Caller;
use crate::down::Down;
use crate::exchange::{Exchange, Fate};
use crate::http1::{Delimiter, ResponseHead};
use crate::relay::Relay;
use crate::side::Side;
use crate::site::Site;
use crate::up::Up;
use crate::watch::{Phase, Signal};

/// What an upgraded connection was asked for, and with whom it was made.
pub struct Switch<'a> {
    pub caller: &'a Caller,
    /// Whose it was then.
    pub site: &'a Site,
    pub backend: BackendKey,
}

/// One direction of a tunnel.
struct Half {
    relay: Relay,
    is_shut: bool,
}

impl Exchange<'_, '_, '_> {
    /// Connects the two sides of an upgrade that the backend accepted (RFC 9110 §7.8).
    pub async fn switch(
        &mut self,
        onto: Switch<'_>,
        up: Up,
        response: &ResponseHead,
        length: usize,
    ) -> Result<Fate, Reason> {
        let (Up::Http1(mut up), Some(_)) = (up, self.ticket.head.upgrade) else {
            return Err(Reason::BackendNonsense);
        };
        // RFC 9110 §7.8: the new protocol begins behind the request. What is left of a body is none of it.
        let Some(input) = up.input.as_mut().filter(|_| self.upload.is_done) else {
            return Err(Reason::BackendNonsense);
        };
        self.down.interim(response, input.data(), self.ticket.head.version);
        let Down::Http1(down) = &mut *self.down else { return Err(Reason::BackendNonsense) };
        input.consume(length);
        self.ticket.status = 101;
        up.expect_response_body(Delimiter::Close);
        down.expect_response_body(Delimiter::Close);
        self.watch.no_end();
        self.watch.enter(Phase::Tunnel, 0);
        // Either side may leave unread what it likes; keepalive finds out who is gone.
        up.stream.limit_unacknowledged(None);
        let worker = self.ticket.worker;
        let _open = worker.tunnel_opened();
        let mut generation = None;
        let (mut outward, mut inward) = (Half::new(), Half::new());
        poll_fn(|cx| {
            if self.watch.signal() == Signal::Close {
                self.ticket.reason = Some(Reason::Stopping);
                self.ticket.aborted = true;
                return Poll::Ready(());
            }
            // Whoever has the address now may not be the one that the client speaks to.
            let present = Some(worker.generation());
            if present != generation {
                generation = present;
                if !onto.caller.leads_to(self.ticket.host, onto.site, onto.backend) {
                    self.ticket.break_off(Reason::BackendLeft);
                    return Poll::Ready(());
                }
            }
            // Either side may just go away; there is nobody left to tell.
            let there = outward.poll(cx, down, &mut up);
            let back = inward.poll(cx, &mut up, down);
            match (there, back) {
                (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => Poll::Ready(()),
                (Poll::Ready(Err(())), _) | (_, Poll::Ready(Err(()))) => Poll::Ready(()),
                _ => {
                    down.rest();
                    up.rest();
                    Poll::Pending
                }
            }
        })
        .await;
        self.ticket.received = outward.relay.moved;
        self.ticket.sent = inward.relay.moved;
        Ok(Fate::Cut)
    }
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
