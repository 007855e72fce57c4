use std::io;
use std::net::{IpAddr, UdpSocket};
use std::sync::Arc;

use arc_swap::ArcSwap;
use proximity_table::{Timestamp, World};
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::answer::{Asker, Outcome, Transport, answer};
use crate::foreign::Foreign;
use crate::forward::{Forwarder, Origin, overloaded};
use crate::front::Front;
use crate::policy::{Policy, PublishedPolicy};
use crate::query::DropReason;
use crate::stats::{DnsStats, Over};
use crate::{tcp, udp};

/// Questions that one server asks upstreams at the same time.
const IN_FLIGHT: usize = 1024;

/// Answers DNS on sockets that are given to it. One per data thread; cloning shares everything.
#[derive(Clone)]
pub struct DnsServer {
    world: Arc<ArcSwap<World>>,
    forwarder: Arc<ArcSwap<Forwarder>>,
    pub(crate) stats: Arc<DnsStats>,
    clock: fn() -> Timestamp,
    in_flight: Arc<Semaphore>,
    policy: PublishedPolicy,
}

/// What holds for one batch of messages.
pub(crate) struct Snapshot {
    world: Arc<World>,
    now: Timestamp,
    policy: Option<Arc<Policy>>,
}

/// What is left to do about a message.
pub(crate) enum Next {
    /// Send the reply in the buffer.
    Reply,
    /// Nothing.
    Nothing,
    /// Ask upstreams, then send.
    Wait(Box<Pending>),
}

/// A question that waits for an upstream.
pub(crate) struct Pending {
    partial: Vec<u8>,
    foreign: Foreign,
    _permit: OwnedSemaphorePermit,
}

impl DnsServer {
    /// A server that answers from whatever world is published, by the wall clock `clock`.
    pub fn new(
        world: Arc<ArcSwap<World>>,
        forwarder: Arc<ArcSwap<Forwarder>>,
        stats: Arc<DnsStats>,
        clock: fn() -> Timestamp,
    ) -> DnsServer {
        let in_flight = Arc::new(Semaphore::new(IN_FLIGHT));
        DnsServer { world, forwarder, stats, clock, in_flight, policy: PublishedPolicy::default() }
    }

    /// The same server, which does not look up what is blocked by whatever policy is published.
    pub fn with_policy(self, policy: PublishedPolicy) -> DnsServer {
        DnsServer { policy, ..self }
    }

    /// Serves a UDP socket that does not block, on a thread of its own, until `stop` becomes true or its sender is
    /// gone, and what was asked until then is answered.
    pub async fn serve_udp(&self, socket: UdpSocket, stop: watch::Receiver<bool>) {
        udp::serve(self, socket, stop).await;
    }

    /// Serves a TCP listener until `stop` becomes true or its sender is gone, and the connections that were open
    /// then have ended or had their time.
    pub async fn serve_tcp(&self, listener: TcpListener, stop: watch::Receiver<bool>) {
        tcp::serve(self, listener, stop).await;
    }

    /// Answers a message from inside the process; `None` when it is one that is not answered.
    pub async fn resolve_wire(&self, message: &[u8], client: IpAddr) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        let asker = Asker { client, transport: Transport::Tcp };
        match self.handle(&self.snapshot(), Over::Process, asker, message, None, &mut out) {
            Next::Reply => Some(out),
            Next::Nothing => None,
            Next::Wait(pending) => Some(self.forward(pending).await),
        }
    }

    /// What is published, and the time, to be used for one batch of messages.
    pub(crate) fn snapshot(&self) -> Snapshot {
        Snapshot { world: self.world.load_full(), now: (self.clock)(), policy: self.policy.load_full() }
    }

    /// Answers one message as far as that goes without waiting. Only a question for an upstream allocates. `front` is
    /// what the calling thread has at hand of upstreams' answers.
    pub(crate) fn handle(
        &self,
        Snapshot { world, now, policy }: &Snapshot,
        over: Over,
        asker: Asker,
        message: &[u8],
        front: Option<&mut Front>,
        out: &mut Vec<u8>,
    ) -> Next {
        self.stats.query(over);
        match answer(world, *now, asker, message, out) {
            Outcome::Answered(rcode) => self.stats.answer(rcode),
            Outcome::Malformed(reason) => self.stats.malformed(reason),
            Outcome::Drop(reason) => {
                self.stats.dropped(reason);
                return Next::Nothing;
            }
            Outcome::Forward(foreign) => {
                let blocked = policy.as_ref().and_then(|policy| policy.answer(world, asker, &foreign, out));
                let Some(rcode) = blocked else { return self.elsewhere(foreign, front, *now, out) };
                self.stats.blocked();
                self.stats.answer(rcode);
            }
        }
        Next::Reply
    }

    fn elsewhere(
        &self,
        foreign: Foreign,
        front: Option<&mut Front>,
        now: Timestamp,
        out: &mut Vec<u8>,
    ) -> Next {
        let forwarder = self.forwarder.load();
        if let Some(rcode) = forwarder.answer_at_once(&foreign, front, self.clock, now, out) {
            self.stats.forwarded(Origin::Cache);
            self.stats.answer(rcode);
            return Next::Reply;
        }
        if let Ok(permit) = self.in_flight.clone().try_acquire_owned() {
            let pending = Pending { partial: out.clone(), foreign, _permit: permit };
            return Next::Wait(Box::new(pending));
        }
        self.stats.overloaded();
        self.stats.answer(overloaded(out, &foreign));
        Next::Reply
    }

    /// Asks upstreams and completes the reply.
    pub(crate) async fn forward(&self, pending: Box<Pending>) -> Vec<u8> {
        let forwarder = self.forwarder.load_full();
        let Pending { partial, foreign, _permit } = *pending;
        let (reply, rcode, origin) = forwarder.complete(partial, &foreign, self.clock).await;
        self.stats.forwarded(origin);
        self.stats.answer(rcode);
        reply
    }

    /// Counts what the kernel did not take.
    pub(crate) fn sent(&self, result: io::Result<usize>) {
        if result.is_err() {
            self.stats.dropped(DropReason::SendFailed);
        }
    }
}

/// Resolves when serving shall end.
pub(crate) async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error means that whoever could say so is gone.
    let _ = stop.wait_for(|stop| *stop).await;
}
