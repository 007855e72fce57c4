use std::net::Ipv4Addr;
use std::sync::Arc;

use dhcproto::v4::MessageType;
use proximity_table::{Facts, Label, Lease, LeaseState, Mac, Network, Timestamp};

use crate::allocate::{Offers, Pool};
use crate::reply::{self, Content};
use crate::{Drop, Request};

/// Shortest lease that a client can ask for, in seconds: shorter ones would only be renewals.
const LEAST_LEASE: u32 = 120;
/// Seconds for which a declined address is given to nobody.
const DECLINE_SECONDS: u64 = 3600;

/// The DHCP server of all networks. It remembers offers; the leases are in the ledger, which it only reads.
#[derive(Debug, Default)]
pub struct Server {
    offers: Offers,
}

/// What follows from a message.
#[derive(Clone, Debug)]
pub struct Answer {
    /// To be written to the ledger and made durable before the reply leaves.
    pub lease: Option<Lease>,
    /// To be sent, last of all.
    pub reply: Option<Reply>,
}

/// A message to a client.
#[derive(Clone, Debug)]
pub struct Reply {
    /// What it is.
    pub kind: MessageType,
    /// The UDP payload.
    pub payload: Vec<u8>,
    /// Where it goes.
    pub to: Destination,
}

/// Where a reply goes (RFC 2131 §4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// To everybody on the link, port 68.
    Broadcast,
    /// To the client's hardware address, IP address and port 68.
    Client(Mac, Ipv4Addr),
    /// To the relay, port 67.
    Relay(Ipv4Addr),
}

/// A message together with what is needed to decide on it.
struct Case<'a> {
    request: &'a Request,
    network: &'a Arc<Network>,
    facts: &'a Facts,
    now: Timestamp,
    epoch: u64,
}

impl Server {
    /// Decides on a message that came in on `network`. `epoch` is the generation that a change would be
    /// published in.
    pub fn handle(
        &mut self,
        request: &Request,
        network: &Arc<Network>,
        facts: &Facts,
        now: Timestamp,
        epoch: u64,
    ) -> Result<Answer, Drop> {
        // A relay speaks for its own link: only for one that is a network of ours.
        let network = match request.giaddr {
            Ipv4Addr::UNSPECIFIED => network,
            // A relay of another network would be an app that reaches over.
            relay if network.address.contains(relay) => network,
            _ => return Err(Drop::ForeignRelay),
        };
        let ours = network.address.addr;
        if matches!(request.kind, MessageType::Decline | MessageType::Release)
            && request.server.is_some_and(|server| server != ours)
        {
            return Err(Drop::OtherServer);
        }
        let case = Case { request, network, facts, now, epoch };
        match request.kind {
            MessageType::Discover => self.discover(&case),
            MessageType::Request => self.request(&case),
            MessageType::Decline => self.decline(&case),
            MessageType::Release => self.release(&case),
            MessageType::Inform => case.inform(),
            _ => Err(Drop::MessageType),
        }
    }

    /// How many offers are waiting for their clients.
    pub fn offers(&self) -> usize {
        self.offers.len()
    }

    fn discover(&mut self, case: &Case<'_>) -> Result<Answer, Drop> {
        let ip =
            self.offers.choose(case.pool(), case.mac(), case.request.requested).ok_or(Drop::PoolExhausted)?;
        let lease = case.lease(ip);
        let reply = case.reply(MessageType::Offer, &lease)?;
        Ok(Answer { lease: None, reply: Some(reply) })
    }

    fn request(&mut self, case: &Case<'_>) -> Result<Answer, Drop> {
        let request = case.request;
        if let Some(server) = request.server {
            // SELECTING, RFC 2131 §4.3.2.
            if server != case.network.address.addr {
                self.offers.forget(&case.network.name, case.mac());
                return Err(Drop::OtherServer);
            }
            return self.grant(case, request.requested.ok_or(Drop::NoAddress)?);
        }
        if !request.ciaddr.is_unspecified() {
            // RENEWING or REBINDING. We are the network's only server: a client that we do not know (its
            // lease was lost with a disk, or another server gave it) keeps its address if it is free.
            return self.grant(case, request.ciaddr);
        }
        // INIT-REBOOT.
        let ip = request.requested.ok_or(Drop::NoAddress)?;
        let known = case.held().is_some() || case.reservation().is_some();
        if case.network.address.contains(ip) && !known {
            // "If the DHCP server has no record of this client, then it MUST remain silent".
            return Err(Drop::UnknownClient);
        }
        // "Server SHOULD send a DHCPNAK message to the client if … the client's notion is wrong".
        let right = case.reservation().or(case.held().map(|lease| lease.ip));
        if right.is_some_and(|right| right != ip) {
            self.offers.forget(&case.network.name, case.mac());
            return Ok(Answer { lease: None, reply: Some(case.nak("another address is yours")?) });
        }
        self.grant(case, ip)
    }

    /// Gives the client the address that it names, or tells it to start again.
    fn grant(&mut self, case: &Case<'_>, ip: Ipv4Addr) -> Result<Answer, Drop> {
        let reserved = case.reservation();
        let wrong = if !case.network.address.contains(ip) {
            Some("address is not in this network")
        } else if reserved.is_some_and(|own| own != ip && self.offers.is_open(case.pool(), case.mac(), own)) {
            Some("another address is reserved for you")
        } else if !self.offers.is_open(case.pool(), case.mac(), ip) {
            Some("address is not available")
        } else {
            None
        };
        if let Some(message) = wrong {
            self.offers.forget(&case.network.name, case.mac());
            return Ok(Answer { lease: None, reply: Some(case.nak(message)?) });
        }
        self.offers.forget(&case.network.name, case.mac());
        let lease = case.lease(ip);
        let reply = case.reply(MessageType::Ack, &lease)?;
        Ok(Answer { lease: Some(lease), reply: Some(reply) })
    }

    fn decline(&mut self, case: &Case<'_>) -> Result<Answer, Drop> {
        let ip = case.request.requested.ok_or(Drop::NoAddress)?;
        // Only the client that was given the address may spoil it.
        let held = case.held().filter(|lease| lease.ip == ip && lease.is_bound()).ok_or(Drop::NotHolder)?;
        self.offers.forget(&case.network.name, case.mac());
        let lease = Lease {
            state: LeaseState::Declined,
            expires: case.now.plus(DECLINE_SECONDS),
            hostname: None,
            ..(**held).clone()
        };
        Ok(Answer { lease: Some(lease), reply: None })
    }

    fn release(&mut self, case: &Case<'_>) -> Result<Answer, Drop> {
        let held = case.held().filter(|lease| lease.ip == case.request.ciaddr && lease.is_bound());
        let held = held.ok_or(Drop::NotHolder)?;
        // The name and the address stay with the client for when it comes back.
        let lease = Lease { state: LeaseState::Released, expires: case.now, ..(**held).clone() };
        Ok(Answer { lease: Some(lease), reply: None })
    }
}

impl Case<'_> {
    fn mac(&self) -> Mac {
        self.request.mac
    }

    fn pool(&self) -> Pool<'_> {
        Pool {
            network: self.network,
            intent: self.facts.intent(),
            ledger: self.facts.ledger(),
            now: self.now,
        }
    }

    fn held(&self) -> Option<&Arc<Lease>> {
        self.facts.ledger().of_client(&self.network.name, self.mac())
    }

    fn reservation(&self) -> Option<Ipv4Addr> {
        let key = (self.network.name.clone(), self.mac());
        self.facts.intent().reservations.get(&key).map(|(_, reservation)| reservation.ip)
    }

    /// The lease that this client would get on `ip`.
    fn lease(&self, ip: Ipv4Addr) -> Lease {
        let held = self.held();
        let same = held.filter(|lease| lease.ip == ip);
        let longest = self.network.lease_time;
        let seconds =
            self.request.lease_time.map_or(longest, |asked| asked.clamp(LEAST_LEASE.min(longest), longest));
        let expires = match seconds {
            u32::MAX => Timestamp::NEVER,
            seconds => self.now.plus(u64::from(seconds)),
        };
        Lease {
            ip,
            mac: self.mac(),
            client_id: self.request.client_id.clone(),
            hostname: self.hostname(held.and_then(|lease| lease.hostname.as_ref())),
            network: self.network.name.clone(),
            state: LeaseState::Bound,
            expires,
            epoch: same.map_or(self.epoch, |lease| lease.epoch),
        }
    }

    /// The reservation's name, else the one the client sends, else the one it sent before.
    fn hostname(&self, before: Option<&Label>) -> Option<Label> {
        let key = (self.network.name.clone(), self.mac());
        let reserved = self.facts.intent().reservations.get(&key).and_then(|(_, own)| own.hostname.clone());
        reserved.or_else(|| self.request.hostname.clone()).or_else(|| before.cloned())
    }

    fn reply(&self, kind: MessageType, lease: &Lease) -> Result<Reply, Drop> {
        let seconds = match lease.expires {
            Timestamp::NEVER => u32::MAX,
            expires => u32::try_from(expires.seconds_after(self.now)).unwrap_or(u32::MAX),
        };
        let hostname = lease.hostname.as_ref();
        let content = Content { kind, yiaddr: lease.ip, lease_time: Some(seconds), hostname, message: None };
        let payload = reply::encode(self.request, self.network, &content)?;
        Ok(Reply { kind, payload, to: self.destination(lease.ip) })
    }

    fn nak(&self, message: &'static str) -> Result<Reply, Drop> {
        let kind = MessageType::Nak;
        let yiaddr = Ipv4Addr::UNSPECIFIED;
        let content = Content { kind, yiaddr, lease_time: None, hostname: None, message: Some(message) };
        let payload = reply::encode(self.request, self.network, &content)?;
        // RFC 2131 §4.1: "in all cases, when 'giaddr' is zero, the server broadcasts any DHCPNAK messages".
        let to = match self.request.giaddr {
            Ipv4Addr::UNSPECIFIED => Destination::Broadcast,
            relay => Destination::Relay(relay),
        };
        Ok(Reply { kind, payload, to })
    }

    fn inform(&self) -> Result<Answer, Drop> {
        let ciaddr = self.request.ciaddr;
        if !self.network.address.contains(ciaddr) {
            return Err(Drop::NoAddress);
        }
        let kind = MessageType::Ack;
        let hostname = self.hostname(None);
        let content = Content {
            kind,
            yiaddr: Ipv4Addr::UNSPECIFIED,
            lease_time: None,
            hostname: hostname.as_ref(),
            message: None,
        };
        let payload = reply::encode(self.request, self.network, &content)?;
        let to = match self.request.giaddr {
            Ipv4Addr::UNSPECIFIED => Destination::Client(self.mac(), ciaddr),
            relay => Destination::Relay(relay),
        };
        Ok(Answer { lease: None, reply: Some(Reply { kind, payload, to }) })
    }

    fn destination(&self, yiaddr: Ipv4Addr) -> Destination {
        match (self.request.giaddr, self.request.ciaddr) {
            (Ipv4Addr::UNSPECIFIED, Ipv4Addr::UNSPECIFIED) if self.request.broadcast => {
                Destination::Broadcast
            }
            (Ipv4Addr::UNSPECIFIED, Ipv4Addr::UNSPECIFIED) => Destination::Client(self.mac(), yiaddr),
            (Ipv4Addr::UNSPECIFIED, ciaddr) => Destination::Client(self.mac(), ciaddr),
            (relay, _) => Destination::Relay(relay),
        }
    }
}
