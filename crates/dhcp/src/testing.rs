//! A network in memory for the tests of this crate: the server core with a ledger that follows it.

use std::net::Ipv4Addr;

use dhcproto::v4::{DhcpOption, Encodable, Encoder, Message, MessageType, borrowed};
use proximity_config::Config;
use proximity_table::{Change, Facts, Ledger, Mac, Reservation, Source, Timestamp, Touched};

use crate::{Answer, Drop, Request, Server};

pub struct Lan {
    pub server: Server,
    pub facts: Facts,
    pub now: Timestamp,
    pub epoch: u64,
}

pub fn mac(last: u8) -> Mac {
    Mac([2, 0, 0, 0, 0, last])
}

pub fn ip(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 20, 0, last)
}

impl Lan {
    pub fn new() -> Lan {
        Lan::with_range("10.20.0.100-10.20.0.250")
    }

    pub fn with_range(range: &str) -> Lan {
        let text = format!(
            "[[network]]\n[network.dhcp]\nrange = \"{range}\"\noptions = [{{ code = 66, value = \"tftp\" }}]\n"
        );
        let intent = Config::parse(&text).expect("the test's configuration is right").intent;
        let facts = Facts::new(intent, Ledger::default());
        Lan { server: Server::default(), facts, now: Timestamp(1_000_000), epoch: 1 }
    }

    pub fn reserve(&mut self, client: Mac, ip: Ipv4Addr, hostname: &str) {
        let reservation = Reservation {
            network: "apps".into(),
            mac: client,
            ip,
            hostname: Some(hostname.parse().unwrap()),
        };
        self.facts.apply(Change::Reservation(Source::Config, reservation), &mut Touched::default());
    }

    /// Lets the server decide on a payload and writes what follows, as the registrar would.
    pub fn payload(&mut self, payload: &[u8]) -> Result<Answer, Drop> {
        let request = Request::read(payload)?;
        let network = self.facts.intent().networks[0].clone();
        self.epoch += 1;
        let answer = self.server.handle(&request, &network, &self.facts, self.now, self.epoch)?;
        if let Some(lease) = &answer.lease {
            self.facts.apply(Change::Lease(lease.clone()), &mut Touched::default());
        }
        Ok(answer)
    }

    pub fn send(&mut self, message: &Message) -> Result<Answer, Drop> {
        self.payload(&encode(message))
    }

    /// DISCOVER and REQUEST; the address that was granted.
    pub fn lease(&mut self, client: Mac, hostname: &str) -> Ipv4Addr {
        let offer = self.send(&discover(client, hostname)).unwrap().reply.unwrap();
        let ip = yiaddr(&offer.payload);
        let ack = self.send(&select(client, ip, hostname)).unwrap().reply.unwrap();
        assert_eq!(ack.kind, MessageType::Ack);
        assert_eq!(yiaddr(&ack.payload), ip);
        ip
    }
}

pub fn message(kind: MessageType, client: Mac) -> Message {
    let none = Ipv4Addr::UNSPECIFIED;
    let mut message = Message::new_with_id(0xdead_beef, none, none, none, none, &client.0);
    message.opts_mut().insert(DhcpOption::MessageType(kind));
    message
}

pub fn discover(client: Mac, hostname: &str) -> Message {
    let mut message = message(MessageType::Discover, client);
    message.opts_mut().insert(DhcpOption::Hostname(hostname.to_owned()));
    message
}

/// The REQUEST of a client that chose our offer.
pub fn select(client: Mac, ip: Ipv4Addr, hostname: &str) -> Message {
    let mut message = message(MessageType::Request, client);
    message.opts_mut().insert(DhcpOption::Hostname(hostname.to_owned()));
    message.opts_mut().insert(DhcpOption::ServerIdentifier(self::ip(1)));
    message.opts_mut().insert(DhcpOption::RequestedIpAddress(ip));
    message
}

pub fn encode(message: &Message) -> Vec<u8> {
    let mut bytes = Vec::new();
    message.encode(&mut Encoder::new(&mut bytes)).unwrap();
    bytes
}

pub fn yiaddr(payload: &[u8]) -> Ipv4Addr {
    borrowed::Message::new(payload).unwrap().yiaddr()
}

/// The value of an option in a message, if it is there.
pub fn option(payload: &[u8], code: u8) -> Option<Vec<u8>> {
    let message = borrowed::Message::new(payload).unwrap();
    message.opts().find(|option| u8::from(option.code()) == code).map(|option| option.data().to_vec())
}
