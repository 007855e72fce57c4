//! A DNS client that asks once and shows what came back.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use proximity_lab::Node;

/// How long an answer may take: a lost one is a failure, not a reason to ask again.
const PATIENCE: Duration = Duration::from_secs(3);

/// A socket in a node, for questions to one server.
#[derive(Debug)]
pub struct DnsProbe {
    udp: UdpSocket,
    server: SocketAddr,
}

/// What was answered.
#[derive(Clone, Debug)]
pub struct DnsAnswer {
    /// RCODE.
    pub code: ResponseCode,
    /// Whether the server speaks for the zone.
    pub authoritative: bool,
    /// The data of the answers, as text.
    pub answers: Vec<String>,
    /// Types of the records in the authority section.
    pub authorities: Vec<RecordType>,
}

impl DnsProbe {
    /// Opens the socket in a node.
    ///
    /// # Panics
    /// When it cannot be had.
    pub fn open(node: &Node, server: Ipv4Addr) -> DnsProbe {
        let server = SocketAddr::from((server, 53));
        let udp = node
            .enter(|| {
                let socket = UdpSocket::bind("0.0.0.0:0")?;
                socket.connect(server)?;
                socket.set_read_timeout(Some(PATIENCE))?;
                io::Result::Ok(socket)
            })
            .expect("the node can be entered");
        DnsProbe { udp: udp.expect("a socket for DNS"), server }
    }

    /// Asks once over UDP.
    ///
    /// # Errors
    /// When no answer comes.
    pub fn ask(&self, name: &str, rtype: RecordType) -> io::Result<DnsAnswer> {
        let (id, query) = question(name, rtype);
        self.udp.send(&query)?;
        let mut buffer = [0; 4096];
        loop {
            let length = self.udp.recv(&mut buffer)?;
            let message = Message::from_vec(&buffer[..length]).map_err(io::Error::other)?;
            if message.metadata.id == id {
                return Ok(read(&message));
            }
        }
    }

    /// The address of a name; `None` when it has none.
    ///
    /// # Panics
    /// When no answer comes.
    pub fn address(&self, name: &str) -> Option<Ipv4Addr> {
        let answer = self.ask(name, RecordType::A).unwrap_or_else(|error| panic!("{name}: {error}"));
        answer.answers.first().and_then(|text| text.parse().ok())
    }

    /// The name of an address, with its final dot.
    ///
    /// # Panics
    /// When no answer comes.
    pub fn name_of(&self, address: Ipv4Addr) -> Option<String> {
        let [a, b, c, d] = address.octets();
        let answer = self.ask(&format!("{d}.{c}.{b}.{a}.in-addr.arpa."), RecordType::PTR);
        answer.unwrap_or_else(|error| panic!("{address}: {error}")).answers.into_iter().next()
    }

    /// Asks once over TCP, from `node`.
    ///
    /// # Errors
    /// When no answer comes.
    pub fn ask_over_tcp(&self, node: &Node, name: &str, rtype: RecordType) -> io::Result<DnsAnswer> {
        let (_, query) = question(name, rtype);
        let mut stream = node
            .enter(|| TcpStream::connect_timeout(&self.server, PATIENCE))
            .map_err(|error| io::Error::other(error.to_string()))??;
        stream.set_read_timeout(Some(PATIENCE))?;
        let length = u16::try_from(query.len()).map_err(io::Error::other)?;
        stream.write_all(&[&length.to_be_bytes(), &query[..]].concat())?;
        let mut length = [0; 2];
        stream.read_exact(&mut length)?;
        let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut answer)?;
        Ok(read(&Message::from_vec(&answer).map_err(io::Error::other)?))
    }
}

fn question(name: &str, rtype: RecordType) -> (u16, Vec<u8>) {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    let mut name = Name::from_ascii(name).unwrap_or_else(|error| panic!("{name}: {error}"));
    name.set_fqdn(true);
    message.add_query(Query::query(name, rtype));
    let bytes = message.to_vec().expect("a question can be written");
    (message.metadata.id, bytes)
}

fn read(message: &Message) -> DnsAnswer {
    let text = |data: &RData| match data {
        RData::A(address) => address.0.to_string(),
        other => other.to_string(),
    };
    DnsAnswer {
        code: message.metadata.response_code,
        authoritative: message.metadata.authoritative,
        answers: message.answers.iter().map(|record| text(&record.data)).collect(),
        authorities: message.authorities.iter().map(|record| record.record_type()).collect(),
    }
}
