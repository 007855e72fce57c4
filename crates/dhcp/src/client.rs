use std::net::Ipv4Addr;

use dhcproto::v4::{
    DhcpOption, Encodable, Encoder, Flags, Message, MessageType, OptionCode, UnknownOption, borrowed,
};
use proximity_table::{Ipv4Net, Label, Mac};
use serde::{Deserialize, Serialize};

/// First wait for an answer, in milliseconds; doubled for each try. RFC 2131 §4.1 suggests 4 s, made for
/// the Ethernets of 1997; a container that boots should be there in one second.
const FIRST_WAIT: u64 = 1_000;
/// Longest wait for an answer, in milliseconds (RFC 2131 §4.1).
const LONGEST_WAIT: u64 = 64_000;
/// Tries of a REQUEST before starting again.
const REQUEST_TRIES: u32 = 4;
/// Least wait between two REQUESTs while renewing, in milliseconds (RFC 2131 §4.4.5: 60 s).
const RENEW_WAIT: u64 = 60_000;

/// A DHCP client for the WAN link (RFC 2131 §4.4) on a clock of milliseconds that the caller keeps.
#[derive(Debug)]
pub struct Client {
    mac: Mac,
    hostname: Label,
    xid: u32,
    entropy: u64,
    state: State,
    /// When [`Client::handle_timeout`] is due.
    wake: u64,
    /// When the address that is still in use while asking anew must be given up (RFC 2131 §4.4.5).
    lapse: Option<u64>,
}

/// What the shell must do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Send this payload from port 68 to port 67, to everybody, or from an address to a server.
    Send {
        /// The message.
        payload: Vec<u8>,
        /// Source and target of a unicast; `None` for a broadcast from 0.0.0.0.
        unicast: Option<(Ipv4Addr, Ipv4Addr)>,
    },
    /// Give the link this address and route.
    Bind(Binding),
    /// Take the address away: its lease is over.
    Unbind,
}

/// What a server granted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Binding {
    /// Address with the network's prefix length.
    pub address: Ipv4Net,
    /// Default gateway.
    pub gateway: Option<Ipv4Addr>,
    /// The server.
    pub server: Ipv4Addr,
    /// Lease time in seconds.
    pub lease_time: u32,
}

/// A lease on its way to another process, whose clock is another one: times are counted from now, in
/// milliseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// What was granted.
    pub binding: Binding,
    /// Until it is renewed.
    pub renew_in: u64,
    /// Until any server is asked.
    pub rebind_in: u64,
    /// Until the address must be given up.
    pub end_in: u64,
}

#[derive(Debug)]
enum State {
    Selecting { tries: u32 },
    Requesting { address: Ipv4Addr, server: Ipv4Addr, tries: u32 },
    Bound { binding: Binding, renew: u64, rebind: u64, end: u64 },
}

/// What is read from a server's message.
#[derive(Default)]
struct Served {
    kind: Option<MessageType>,
    server: Option<Ipv4Addr>,
    mask: Option<Ipv4Addr>,
    router: Option<Ipv4Addr>,
    times: [Option<u32>; 3],
}

impl Client {
    /// A client that has nothing yet and begins at `now`. `entropy` makes transactions unpredictable and
    /// spreads the retries of many clients.
    pub fn new(mac: Mac, hostname: Label, now: u64, entropy: u64) -> Client {
        Client {
            mac,
            hostname,
            xid: entropy as u32,
            entropy,
            state: State::Selecting { tries: 0 },
            wake: now,
            lapse: None,
        }
    }

    /// A client that another process has been before, holding `held` since. It goes on where that one was.
    pub fn resume(mac: Mac, hostname: Label, now: u64, entropy: u64, held: Held) -> Client {
        let Held { binding, renew_in, rebind_in, end_in } = held;
        let (renew, rebind, end) = (now + renew_in, now + rebind_in, now + end_in);
        let mut client = Client::new(mac, hostname, renew, entropy);
        client.state = State::Bound { binding, renew, rebind: rebind.max(renew), end };
        client
    }

    /// What another process needs to go on, where `bound` is what the link has of this client.
    pub fn held(&self, now: u64, bound: &Binding) -> Option<Held> {
        let left = |at: u64| at.saturating_sub(now);
        match (&self.state, self.lapse) {
            (State::Bound { binding, renew, rebind, end }, _) => Some(Held {
                binding: binding.clone(),
                renew_in: left(*renew),
                rebind_in: left(*rebind),
                end_in: left(*end),
            }),
            // Asking anew while the address is in use: the other one asks at once.
            (_, Some(lapse)) => {
                Some(Held { binding: bound.clone(), renew_in: 0, rebind_in: 0, end_in: left(lapse) })
            }
            (_, None) => None,
        }
    }

    /// When [`Client::handle_timeout`] must be called.
    pub fn poll_timeout(&self) -> u64 {
        self.lapse.map_or(self.wake, |lapse| self.wake.min(lapse))
    }

    /// What it holds.
    pub fn binding(&self) -> Option<&Binding> {
        match &self.state {
            State::Bound { binding, .. } => Some(binding),
            _ => None,
        }
    }

    /// The link came up again, perhaps elsewhere: ask anew, keeping the address until told otherwise.
    pub fn handle_link_up(&mut self, now: u64) {
        self.begin(now);
    }

    /// Time has come for the next message.
    pub fn handle_timeout(&mut self, now: u64) -> Option<Command> {
        if self.lapse.is_some_and(|lapse| now >= lapse) {
            self.lapse = None;
            return Some(Command::Unbind);
        }
        if now < self.wake {
            return None;
        }
        match &mut self.state {
            State::Selecting { tries } => {
                *tries = tries.saturating_add(1);
                let tries = *tries;
                self.wake = now + self.wait(tries);
                Some(self.send(MessageType::Discover, Ipv4Addr::UNSPECIFIED, None, None))
            }
            State::Requesting { tries, .. } if *tries >= REQUEST_TRIES => {
                self.begin(now);
                self.handle_timeout(now)
            }
            State::Requesting { address, server, tries } => {
                *tries += 1;
                let (address, server, tries) = (*address, *server, *tries);
                self.wake = now + self.wait(tries);
                Some(self.send(MessageType::Request, Ipv4Addr::UNSPECIFIED, Some((address, server)), None))
            }
            State::Bound { end, .. } if now >= *end => {
                self.begin(now);
                self.lapse = None;
                Some(Command::Unbind)
            }
            State::Bound { binding, renew, rebind, end } => {
                let (address, server) = (binding.address.addr, binding.server);
                let rebinding = now >= *rebind;
                // RFC 2131 §4.4.5: wait half of what is left until the next phase, at least a minute.
                let next = if rebinding { *end } else { *rebind };
                let wait = ((next - now) / 2).max(RENEW_WAIT).min(next.saturating_sub(now).max(1));
                if now < *renew {
                    self.wake = *renew;
                    return None;
                }
                self.wake = now + wait;
                let unicast = (!rebinding).then_some((address, server));
                Some(self.send(MessageType::Request, address, None, unicast))
            }
        }
    }

    /// A message came in on port 68.
    pub fn handle_message(&mut self, now: u64, payload: &[u8]) -> Option<Command> {
        let message = borrowed::Message::new(payload).ok()?;
        let ours = payload[0] == 2 && message.xid() == self.xid && payload[28..34] == self.mac.0;
        if !ours || payload[236..240] != [99, 130, 83, 99] {
            return None;
        }
        let served = Served::read(&message);
        let address = message.yiaddr();
        match (&self.state, served.kind?) {
            (State::Selecting { .. }, MessageType::Offer) if is_usable(address) => {
                self.state = State::Requesting { address, server: served.server?, tries: 0 };
                self.wake = now;
                self.handle_timeout(now)
            }
            (State::Requesting { address: asked, server, .. }, MessageType::Ack) if address == *asked => {
                let server = served.server.unwrap_or(*server);
                self.bind(now, address, server, &served)
            }
            (State::Bound { binding, .. }, MessageType::Ack) if address == binding.address.addr => {
                let server = served.server.unwrap_or(binding.server);
                self.bind(now, address, server, &served)
            }
            (State::Requesting { .. }, MessageType::Nak) => {
                // Not at once: a server that offers and refuses would make us its flood.
                self.begin(now);
                self.wake = now + FIRST_WAIT;
                None
            }
            (State::Bound { .. }, MessageType::Nak) => {
                self.begin(now);
                self.lapse = None;
                Some(Command::Unbind)
            }
            _ => None,
        }
    }

    fn begin(&mut self, now: u64) {
        if let State::Bound { end, .. } = &self.state {
            self.lapse = Some(*end);
        }
        self.state = State::Selecting { tries: 0 };
        self.xid = self.random() as u32;
        self.wake = now;
    }

    fn bind(&mut self, now: u64, address: Ipv4Addr, server: Ipv4Addr, served: &Served) -> Option<Command> {
        let [lease, renew, rebind] = served.times;
        let seconds = lease.filter(|seconds| *seconds > 0)?;
        let milliseconds = |seconds: u32| u64::from(seconds) * 1000;
        let end = now + milliseconds(seconds);
        let renew = now + milliseconds(renew.filter(|t| *t < seconds).unwrap_or(seconds / 2));
        let rebind = now + milliseconds(rebind.filter(|t| *t < seconds).unwrap_or(seconds / 8 * 7));
        // A mask shorter than a class A's would make the whole internet the management network.
        let prefix =
            served.mask.map(|mask| u32::from(mask).leading_ones() as u8).filter(|prefix| *prefix >= 8);
        let prefix = prefix.unwrap_or(24);
        self.lapse = None;
        let binding = Binding {
            address: Ipv4Net { addr: address, prefix },
            gateway: served.router,
            server,
            lease_time: seconds,
        };
        self.wake = renew;
        self.state = State::Bound { binding: binding.clone(), renew, rebind: rebind.max(renew), end };
        Some(Command::Bind(binding))
    }

    fn send(
        &self,
        kind: MessageType,
        ciaddr: Ipv4Addr,
        choice: Option<(Ipv4Addr, Ipv4Addr)>,
        unicast: Option<(Ipv4Addr, Ipv4Addr)>,
    ) -> Command {
        let none = Ipv4Addr::UNSPECIFIED;
        let mut message = Message::new_with_id(self.xid, ciaddr, none, none, none, &self.mac.0);
        message.set_flags(Flags::default());
        let options = message.opts_mut();
        options.insert(DhcpOption::MessageType(kind));
        options.insert(DhcpOption::Hostname(self.hostname.as_str().to_owned()));
        let client_id = std::iter::once(1).chain(self.mac.0).collect();
        options.insert(DhcpOption::Unknown(UnknownOption::new(OptionCode::ClientIdentifier, client_id)));
        options.insert(DhcpOption::ParameterRequestList(vec![
            OptionCode::SubnetMask,
            OptionCode::Router,
            OptionCode::AddressLeaseTime,
            OptionCode::Renewal,
            OptionCode::Rebinding,
        ]));
        if let Some((address, server)) = choice {
            options.insert(DhcpOption::RequestedIpAddress(address));
            options.insert(DhcpOption::ServerIdentifier(server));
        }
        let mut payload = Vec::with_capacity(300);
        // Every option is short and of our own making; encoding has nothing to fail on.
        let _ = message.encode(&mut Encoder::new(&mut payload));
        payload.resize(payload.len().max(300), 0);
        Command::Send { payload, unicast }
    }

    /// RFC 2131 §4.1: doubled for each try, spread by a second to either side.
    fn wait(&mut self, tries: u32) -> u64 {
        let base = (FIRST_WAIT << (tries.min(8) - 1).min(7)).min(LONGEST_WAIT);
        base - base / 4 + self.random() % (base / 2)
    }

    /// The next number of a xorshift sequence from the entropy that was given.
    fn random(&mut self) -> u64 {
        let mut x = self.entropy | 1;
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.entropy = x;
        x
    }
}

fn is_usable(address: Ipv4Addr) -> bool {
    !(address.is_unspecified() || address.is_broadcast() || address.is_multicast() || address.is_loopback())
}

impl Served {
    fn read(message: &borrowed::Message<'_>) -> Served {
        let mut served = Served::default();
        for option in message.opts() {
            let data = option.data();
            let number = data.first_chunk::<4>().map(|bytes| u32::from_be_bytes(*bytes));
            match option.code() {
                OptionCode::MessageType => served.kind = data.first().map(|code| (*code).into()),
                OptionCode::ServerIdentifier => served.server = number.map(Ipv4Addr::from),
                OptionCode::SubnetMask => served.mask = number.map(Ipv4Addr::from),
                OptionCode::Router => served.router = number.map(Ipv4Addr::from),
                OptionCode::AddressLeaseTime => served.times[0] = number,
                OptionCode::Renewal => served.times[1] = number,
                OptionCode::Rebinding => served.times[2] = number,
                _ => {}
            }
        }
        served
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Lan;
    use crate::{Destination, Request};

    fn client() -> Client {
        Client::new(Mac([2, 0, 0, 0, 0, 9]), "prox-appliance".parse().unwrap(), 0, 0x1234_5678_9abc)
    }

    /// Lets the server core of this crate answer the client.
    fn ask(lan: &mut Lan, command: Option<Command>) -> Vec<u8> {
        let Some(Command::Send { payload, .. }) = command else { panic!("{command:?}") };
        lan.payload(&payload).unwrap().reply.unwrap().payload
    }

    fn bound(lan: &mut Lan) -> (Client, Binding) {
        let mut client = client();
        let discover = client.handle_timeout(0);
        let offer = ask(lan, discover);
        let request = client.handle_message(10, &offer);
        let ack = ask(lan, request);
        let Some(Command::Bind(binding)) = client.handle_message(20, &ack) else { panic!() };
        (client, binding)
    }

    #[test]
    fn it_gets_an_address_from_a_server_in_two_exchanges() {
        let (client, binding) = bound(&mut Lan::new());
        assert_eq!(binding.address.prefix, 24);
        assert_eq!(binding.gateway, Some(Ipv4Addr::new(10, 20, 0, 1)));
        assert_eq!(client.poll_timeout(), 20 + 6 * 3600 * 1000, "T1 is half of twelve hours");
    }

    #[test]
    fn it_asks_again_with_growing_waits_and_never_stops() {
        let mut client = client();
        let mut last = 0;
        for _ in 0..40 {
            let now = client.poll_timeout();
            assert!(matches!(client.handle_timeout(now), Some(Command::Send { unicast: None, .. })));
            let wait = client.poll_timeout() - now;
            assert!((500..=LONGEST_WAIT * 5 / 4).contains(&wait), "{wait}");
            last = wait;
        }
        assert!(last > 40_000);
    }

    #[test]
    fn it_renews_by_unicast_then_rebinds_by_broadcast_then_lets_go() {
        let (mut client, binding) = bound(&mut Lan::new());
        let mut unicasts = 0;
        let mut broadcasts = 0;
        let end = loop {
            let now = client.poll_timeout();
            match client.handle_timeout(now) {
                Some(Command::Send { unicast: Some(pair), .. }) => {
                    assert_eq!(pair, (binding.address.addr, binding.server));
                    unicasts += 1;
                }
                Some(Command::Send { unicast: None, .. }) => broadcasts += 1,
                Some(Command::Unbind) => break now,
                other => panic!("{other:?}"),
            }
        };
        assert!(unicasts >= 2 && broadcasts >= 2, "{unicasts} {broadcasts}");
        assert_eq!(end, 20 + 12 * 3600 * 1000);
        assert!(client.binding().is_none());
    }

    #[test]
    fn a_renewal_is_answered_by_our_own_server() {
        let mut lan = Lan::new();
        let (mut client, binding) = bound(&mut lan);
        let now = client.poll_timeout();
        let Some(Command::Send { payload, .. }) = client.handle_timeout(now) else { panic!() };
        assert_eq!(Request::read(&payload).unwrap().ciaddr, binding.address.addr);
        let reply = lan.payload(&payload).unwrap().reply.unwrap();
        assert!(matches!(reply.to, Destination::Client(_, ip) if ip == binding.address.addr));
        assert!(matches!(client.handle_message(now, &reply.payload), Some(Command::Bind(_))));
        assert!(client.poll_timeout() > now + 5 * 3600 * 1000);
    }

    #[test]
    fn an_address_is_given_up_at_its_end_although_the_link_flapped() {
        let (mut client, _) = bound(&mut Lan::new());
        client.handle_link_up(1_000);
        let end = 20 + 12 * 3600 * 1000;
        loop {
            let now = client.poll_timeout();
            match client.handle_timeout(now) {
                Some(Command::Unbind) => break assert_eq!(now, end),
                Some(Command::Send { .. }) => assert!(now < end),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn another_process_goes_on_with_the_lease() {
        let mut lan = Lan::new();
        let (client, binding) = bound(&mut lan);
        let held = client.held(1_000_020, &binding).unwrap();
        assert_eq!(held.renew_in, 6 * 3600 * 1000 - 1_000_000);
        let host = "prox-appliance".parse().unwrap();
        let mut other = Client::resume(client.mac, host, 5, 77, held.clone());
        assert_eq!((other.binding(), other.poll_timeout()), (Some(&binding), 5 + held.renew_in));
        assert_eq!(other.handle_timeout(6), None);
        let now = other.poll_timeout();
        let Some(Command::Send { payload, unicast }) = other.handle_timeout(now) else { panic!() };
        assert_eq!(unicast, Some((binding.address.addr, binding.server)));
        let reply = lan.payload(&payload).unwrap().reply.unwrap();
        assert!(matches!(other.handle_message(now, &reply.payload), Some(Command::Bind(_))));
    }

    #[test]
    fn an_address_in_use_while_asking_anew_is_not_forgotten() {
        let (mut client, binding) = bound(&mut Lan::new());
        client.handle_link_up(1_000);
        let held = client.held(1_000, &binding).unwrap();
        assert_eq!((held.renew_in, held.end_in), (0, 20 + 12 * 3600 * 1000 - 1_000));
        let mut other = Client::resume(client.mac, "prox-appliance".parse().unwrap(), 0, 77, held);
        assert!(matches!(other.handle_timeout(0), Some(Command::Send { unicast: None, .. })), "asks at once");
        assert_eq!(self::client().held(0, &binding), None);
    }

    #[test]
    fn strangers_messages_and_garbage_change_nothing() {
        let mut lan = Lan::new();
        let mut client = client();
        let discover = client.handle_timeout(0);
        let offer = ask(&mut lan, discover);
        for at in 0..offer.len() {
            let mut broken = offer.clone();
            broken[at] ^= 0xff;
            let mut victim = self::client();
            victim.handle_timeout(0);
            let _ = victim.handle_message(1, &broken);
            let _ = victim.handle_message(1, &offer[..at]);
        }
        let mut wrong = offer.clone();
        wrong[4] ^= 1;
        assert_eq!(client.handle_message(1, &wrong), None);
    }
}
