use std::io;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::sync::Arc;

use arc_swap::ArcSwap;
use proximity_table::{Timestamp, World};
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::answer::{Asker, Outcome, Transport, answer};
use crate::delegation::Delegated;
use crate::foreign::Foreign;
use crate::forward::{Forwarder, Origin, overloaded};
use crate::front::Front;
use crate::guards::Guards;
use crate::options::Options;
use crate::policy::{Policy, PublishedPolicy};
use crate::query::DropReason;
use crate::rates::Verdict;
use crate::stats::{DnsStats, Over};
use crate::wan_view::{answer_on_wan, slip};
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
    guards: Option<Arc<Guards>>,
    /// The appliance's address there, where the WAN is served: others are asked nothing, and see nothing else.
    wan: Option<Ipv4Addr>,
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
    asked: Asked,
    asker: Asker,
    options: Options,
    _permit: OwnedSemaphorePermit,
}

#[expect(clippy::large_enum_variant, reason = "what waits lies in a box of its own")]
enum Asked {
    Upstreams(Foreign),
    Delegate(Delegated),
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
        let policy = PublishedPolicy::default();
        DnsServer { world, forwarder, stats, clock, in_flight, policy, guards: None, wan: None }
    }

    /// The same server, which does not look up what is blocked by whatever policy is published.
    pub fn with_policy(self, policy: PublishedPolicy) -> DnsServer {
        DnsServer { policy, ..self }
    }

    /// The same with cookies, and limits of how often clients may ask.
    pub fn guarded(self, guards: Arc<Guards>) -> DnsServer {
        DnsServer { guards: Some(guards), ..self }
    }

    /// The same for sockets on the WAN, where the appliance has this address: it answers for names of apps with that
    /// address, and refuses everything else.
    pub fn on_wan(self, address: Ipv4Addr) -> DnsServer {
        DnsServer { wan: Some(address), ..self }
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
        let guards = self.guards.as_deref();
        if let (Some(guards), None) = (guards, self.wan)
            && over != Over::Process
            && !guards.may_ask(asker.client, *now)
        {
            self.stats.dropped(DropReason::ClientRate);
            return Next::Nothing;
        }
        let outcome = match self.wan {
            None => answer(world, *now, asker, message, out),
            Some(address) => self.answer_on_wan((world, *now), address, asker, message, out),
        };
        let options = guards.map_or(Options::default(), |_| Options::read(message));
        let waits = match outcome {
            Outcome::Answered(rcode) => {
                self.stats.answer(rcode);
                None
            }
            Outcome::Malformed(reason) => {
                self.stats.malformed(reason);
                None
            }
            Outcome::Drop(reason) => {
                self.stats.dropped(reason);
                return Next::Nothing;
            }
            Outcome::Forward(foreign) => {
                let blocked = policy.as_ref().and_then(|policy| policy.answer(world, asker, &foreign, out));
                match blocked {
                    Some(rcode) => {
                        self.stats.blocked();
                        self.stats.answer(rcode);
                        None
                    }
                    None => self.elsewhere(foreign, front, *now, out),
                }
            }
            Outcome::Delegated(delegated) => Some(Asked::Delegate(delegated)),
        };
        if let Some(asked) = waits {
            if let Ok(permit) = self.in_flight.clone().try_acquire_owned() {
                let partial = out.clone();
                return Next::Wait(Box::new(Pending { partial, asked, asker, options, _permit: permit }));
            }
            self.stats.overloaded();
            self.stats.answer(match &asked {
                Asked::Upstreams(foreign) => overloaded(out, foreign),
                Asked::Delegate(delegated) => delegated.overloaded(out),
            });
        }
        self.answer_options(&options, asker, *now, out);
        Next::Reply
    }

    /// Answers a question for upstreams by what they said before; `Some` when they have to be asked.
    fn elsewhere(
        &self,
        foreign: Foreign,
        front: Option<&mut Front>,
        now: Timestamp,
        out: &mut Vec<u8>,
    ) -> Option<Asked> {
        let forwarder = self.forwarder.load();
        match forwarder.answer_at_once(&foreign, front, self.clock, now, out) {
            Some(rcode) => {
                self.stats.forwarded(Origin::Cache);
                self.stats.answer(rcode);
                None
            }
            None => Some(Asked::Upstreams(foreign)),
        }
    }

    /// Answers from the WAN's view, as often as the client's network may be answered.
    fn answer_on_wan(
        &self,
        (world, now): (&World, Timestamp),
        address: Ipv4Addr,
        asker: Asker,
        message: &[u8],
        out: &mut Vec<u8>,
    ) -> Outcome {
        let outcome = answer_on_wan(world, address, asker, message, out);
        let (Some(guards), Transport::Udp) = (&self.guards, asker.transport) else { return outcome };
        match guards.verdict_on(&outcome, asker.client, message, out, now) {
            Verdict::Send => outcome,
            Verdict::Slip => {
                self.stats.slipped();
                slip(asker, message, out)
            }
            Verdict::Drop => Outcome::Drop(DropReason::ResponseRate),
        }
    }

    fn answer_options(&self, options: &Options, asker: Asker, now: Timestamp, reply: &mut Vec<u8>) {
        if let (Some(guards), false) = (&self.guards, options.is_empty()) {
            let whom = (asker.client, asker.transport);
            options.answer(reply, whom, guards.cookies(), now, tcp::IDLE.as_secs() as u16);
        }
    }

    /// Asks upstreams and completes the reply.
    pub(crate) async fn forward(&self, pending: Box<Pending>) -> Vec<u8> {
        let Pending { partial, asked, asker, options, _permit } = *pending;
        let (mut reply, rcode) = match asked {
            Asked::Upstreams(foreign) => {
                let forwarder = self.forwarder.load_full();
                let (reply, rcode, origin) = forwarder.complete(partial, &foreign, self.clock).await;
                self.stats.forwarded(origin);
                (reply, rcode)
            }
            Asked::Delegate(delegated) => {
                self.stats.delegated();
                delegated.complete(&partial).await
            }
        };
        self.stats.answer(rcode);
        self.answer_options(&options, asker, (self.clock)(), &mut reply);
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
