//! DHCP clients made of raw frames: many at once on one network card, each with an address of its own.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use dhcproto::v4::{Decodable, Decoder, DhcpOption, Encodable, Encoder, Flags, Message, MessageType};
use dhcproto::v4::{Opcode, OptionCode};
use proximity_dhcp::{Datagram, build, parse};
use proximity_lab::Node;
use proximity_net::PacketSocket;
use proximity_table::Mac;

/// How long a client waits for an answer before it asks again.
const RETRY: Duration = Duration::from_millis(500);

/// Runs `action` on the network of a node, with a runtime for its sockets.
///
/// # Panics
/// When the node cannot be entered.
pub fn on_wire<T: Send, F: Future<Output = T>>(node: &Node, action: impl FnOnce() -> F + Send) -> T {
    node.enter(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async { action().await })
    })
    .unwrap_or_else(|error| panic!("{error}"))
}

/// A message of the server, with the frame that it came in.
#[derive(Clone, Debug)]
pub struct Heard {
    /// Ethernet destination.
    pub target_mac: Mac,
    /// IP source.
    pub source: Ipv4Addr,
    /// IP destination.
    pub target: Ipv4Addr,
    /// UDP checksum as it is in the frame; it was found right, but zero would be "none".
    pub checksum: u16,
    /// The message.
    pub message: Message,
}

/// A card on the wire.
pub struct DhcpProbe {
    socket: PacketSocket,
}

/// One client, at whatever point of its life.
#[derive(Clone, Debug)]
pub struct RawClient {
    /// Its hardware address.
    pub mac: Mac,
    /// The name that it sends.
    pub hostname: String,
    /// Whether it asks for broadcast answers.
    pub broadcast: bool,
    /// The address that it was granted.
    pub granted: Option<Ipv4Addr>,
    step: Step,
    asked_at: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Step {
    Discovering,
    Requesting(Ipv4Addr),
    Bound,
}

/// Whether a run goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Go {
    /// More to come.
    On,
    /// Enough was seen.
    Stop,
}

impl RawClient {
    /// A client that has no address yet.
    pub fn new(mac: Mac, hostname: &str, broadcast: bool) -> RawClient {
        let hostname = hostname.to_owned();
        RawClient { mac, hostname, broadcast, granted: None, step: Step::Discovering, asked_at: None }
    }

    fn question(&self) -> Option<Message> {
        let server = Ipv4Addr::new(10, 20, 0, 1);
        match self.step {
            Step::Discovering => Some(self.message(MessageType::Discover)),
            Step::Requesting(ip) => {
                let mut message = self.message(MessageType::Request);
                message.opts_mut().insert(DhcpOption::ServerIdentifier(server));
                message.opts_mut().insert(DhcpOption::RequestedIpAddress(ip));
                Some(message)
            }
            Step::Bound => None,
        }
    }

    /// A message of this client.
    pub fn message(&self, kind: MessageType) -> Message {
        let none = Ipv4Addr::UNSPECIFIED;
        let [_, _, a, b, c, d] = self.mac.0;
        let mut message =
            Message::new_with_id(u32::from_be_bytes([a, b, c, d]), none, none, none, none, &self.mac.0);
        if self.broadcast {
            message.set_flags(Flags::default().set_broadcast());
        }
        let options = message.opts_mut();
        options.insert(DhcpOption::MessageType(kind));
        options.insert(DhcpOption::Hostname(self.hostname.clone()));
        let wanted = [1, 3, 6, 12, 15, 28, 42, 51, 58, 59, 119].map(OptionCode::from);
        options.insert(DhcpOption::ParameterRequestList(wanted.to_vec()));
        message
    }

    /// The REQUEST that extends the lease (RFC 2131 §4.3.2, RENEWING).
    ///
    /// # Panics
    /// Before it has one.
    pub fn renewal(&self) -> Message {
        let mut message = self.message(MessageType::Request);
        message.set_ciaddr(self.granted.expect("only a lease can be renewed"));
        message
    }

    fn hear(&mut self, message: &Message) {
        match (self.step, message.opts().msg_type()) {
            (Step::Discovering, Some(MessageType::Offer)) => {
                self.step = Step::Requesting(message.yiaddr());
                self.asked_at = None;
            }
            (Step::Requesting(_), Some(MessageType::Ack)) => {
                self.step = Step::Bound;
                self.granted = Some(message.yiaddr());
            }
            (Step::Requesting(_), Some(MessageType::Nak)) => {
                self.step = Step::Discovering;
                self.asked_at = None;
            }
            _ => {}
        }
    }
}

impl DhcpProbe {
    /// Listens on `eth0` of the namespace that the calling thread is in.
    ///
    /// # Panics
    /// When it cannot.
    pub fn open() -> DhcpProbe {
        DhcpProbe { socket: PacketSocket::bind("eth0", 68).unwrap_or_else(|error| panic!("{error}")) }
    }

    /// Sends a client's message to everybody.
    ///
    /// # Errors
    /// What the link says.
    pub async fn send(&self, from: Mac, message: &Message) -> io::Result<()> {
        let mut payload = Vec::new();
        message.encode(&mut Encoder::new(&mut payload)).map_err(io::Error::other)?;
        let frame = build(&Datagram {
            source_mac: from,
            target_mac: Mac::BROADCAST,
            source: message.ciaddr(),
            target: Ipv4Addr::BROADCAST,
            source_port: 68,
            target_port: 67,
            payload: &payload,
        });
        self.socket.send(&frame).await
    }

    /// The server's next message; `None` when `timeout` is over.
    ///
    /// # Panics
    /// On a frame whose checksums are wrong, or that is no DHCP: the server sent nonsense.
    pub async fn hear(&self, timeout: Duration) -> Option<Heard> {
        let deadline = tokio::time::Instant::now() + timeout;
        let mut buffer = [0; 2048];
        loop {
            let received = tokio::time::timeout_at(deadline, self.socket.recv(&mut buffer)).await.ok()?;
            let frame = &buffer[..received.expect("the link is up").len];
            // Checked whatever the kernel says of it: these frames are to be right as they are.
            let datagram = parse(frame, true).unwrap_or_else(|error| panic!("{error}: {frame:02x?}"));
            let message = Message::decode(&mut Decoder::new(datagram.payload)).expect("a DHCP message");
            if message.opcode() != Opcode::BootReply {
                continue;
            }
            return Some(Heard {
                target_mac: datagram.target_mac,
                source: datagram.source,
                target: datagram.target,
                // Behind 14 octets of Ethernet, 20 of IP (the server sends no IP options) and 6 of UDP.
                checksum: u16::from_be_bytes([frame[40], frame[41]]),
                message,
            });
        }
    }

    /// Asks and waits for the answer to this very client, asking again when there is none.
    ///
    /// # Panics
    /// When there is no answer for ten seconds.
    pub async fn ask(&self, client: &RawClient, message: &Message) -> Heard {
        for _ in 0..20 {
            self.send(client.mac, message).await.expect("the link is up");
            let deadline = Instant::now() + RETRY;
            while let Some(heard) = self.hear(deadline.saturating_duration_since(Instant::now())).await {
                if heard.message.chaddr() == client.mac.0 {
                    return heard;
                }
            }
        }
        panic!("no answer to {} for ten seconds: {message:?}", client.mac);
    }

    /// Gets every client a lease, all at once; each message of the server is shown to `seen` first, in the
    /// moment it arrives.
    ///
    /// # Panics
    /// When it takes longer than `timeout`.
    pub async fn lease_all(
        &self,
        clients: &mut [RawClient],
        timeout: Duration,
        mut seen: impl FnMut(&RawClient, &Heard) -> Go,
    ) {
        let deadline = Instant::now() + timeout;
        let by_mac: HashMap<Mac, usize> = clients.iter().enumerate().map(|(at, c)| (c.mac, at)).collect();
        while clients.iter().any(|client| client.step != Step::Bound) {
            let now = Instant::now();
            assert!(
                now < deadline,
                "{} clients have no lease",
                clients.iter().filter(|c| c.granted.is_none()).count()
            );
            for client in clients.iter_mut() {
                let due = client.asked_at.is_none_or(|at| now.duration_since(at) >= RETRY);
                if let Some(message) = client.question().filter(|_| due) {
                    client.asked_at = Some(now);
                    self.send(client.mac, &message).await.expect("the link is up");
                }
            }
            // Answers that are there already are all taken before anybody asks again.
            let mut wait = Duration::from_millis(100);
            while let Some(heard) = self.hear(wait).await {
                wait = Duration::ZERO;
                let mac = <[u8; 6]>::try_from(heard.message.chaddr()).ok().map(Mac);
                let Some(&at) = mac.as_ref().and_then(|mac| by_mac.get(mac)) else { continue };
                clients[at].hear(&heard.message);
                if seen(&clients[at], &heard) == Go::Stop {
                    return;
                }
            }
        }
    }

    /// Takes the answers that are on the wire already.
    pub async fn take_rest(&self, clients: &mut [RawClient]) {
        // Nothing tells that no more frames come; on a wire inside one machine they come at once.
        while let Some(heard) = self.hear(Duration::from_millis(100)).await {
            if let Some(client) = clients.iter_mut().find(|client| heard.message.chaddr() == client.mac.0) {
                client.hear(&heard.message);
            }
        }
    }
}
