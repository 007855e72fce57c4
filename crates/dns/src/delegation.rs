//! Names of our zones that were delegated to other servers: those are asked on behalf of clients that want the end
//! of the matter.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::{Edns as OptRecord, Message, MessageType, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use hickory_proto::serialize::binary::BinDecodable;
use proximity_table::RRsetRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

use crate::query::Edns;
use crate::reply::{OUR_UDP_SIZE, Rcode};

/// Servers of one delegation that are asked, at most.
pub(crate) const MOST_SERVERS: usize = 3;

const PORT: u16 = 53;
/// How long one server is waited for.
const TRY: Duration = Duration::from_millis(1500);
/// No question takes longer; clients give up after five seconds (resolv.conf(5)).
const DEADLINE: Duration = Duration::from_millis(4500);

/// A question for the servers of a delegated name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delegated {
    /// The name, in lower-case wire form.
    pub name: Box<[u8]>,
    /// QTYPE; the class is IN.
    pub qtype: u16,
    /// What the client said of itself by EDNS.
    pub edns: Option<Edns>,
    /// Longest reply that the client takes, in octets.
    pub limit: usize,
    /// The name that was delegated: `name`, or one above it.
    pub cut: Box<[u8]>,
    /// Who answers for it.
    pub servers: Vec<IpAddr>,
}

/// The addresses in an RRset of type A or AAAA; none of another.
pub(crate) fn addresses(rrset: RRsetRef<'_>) -> impl Iterator<Item = IpAddr> {
    rrset.rdata().filter_map(move |rdata| match rrset.rtype {
        1 => Some(IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(rdata).ok()?))),
        28 => Some(IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(rdata).ok()?))),
        _ => None,
    })
}

impl Delegated {
    /// Completes a reply by what the servers say. Always gives a reply.
    pub(crate) async fn complete(&self, partial: &[u8]) -> (Vec<u8>, Rcode) {
        let said = tokio::time::timeout(DEADLINE, self.ask(PORT)).await.ok().flatten();
        self.finish(partial, said)
    }

    /// The reply when nobody is asked, because too many questions are under way.
    pub(crate) fn overloaded(&self, out: &mut Vec<u8>) -> Rcode {
        let (reply, rcode) = self.finish(out, None);
        *out = reply;
        rcode
    }

    async fn ask(&self, port: u16) -> Option<Message> {
        let mut question = Message::query();
        question.add_query(Query::query(Name::from_bytes(&self.name).ok()?, RecordType::from(self.qtype)));
        let mut opt = OptRecord::new();
        opt.set_max_payload(OUR_UDP_SIZE);
        question.set_edns(opt);
        for server in &self.servers {
            let server = SocketAddr::new(*server, port);
            let over_udp = tokio::time::timeout(TRY, over_udp(server, &question)).await;
            let said = match over_udp.ok().flatten() {
                Some(said) if said.metadata.truncation => {
                    tokio::time::timeout(TRY, over_tcp(server, &question)).await.ok().flatten()
                }
                said => said,
            };
            if let Some(said) = said.filter(|said| self.is_usable(said)) {
                return Some(said);
            }
        }
        None
    }

    /// A server that knows nothing of the name, or sends elsewhere, is of no use.
    fn is_usable(&self, said: &Message) -> bool {
        let negative = said.answers.is_empty()
            && said.authorities.iter().any(|record| record.record_type() == RecordType::SOA);
        match said.metadata.response_code {
            ResponseCode::NoError => !said.answers.is_empty() || negative || said.metadata.authoritative,
            ResponseCode::NXDomain => true,
            _ => false,
        }
    }

    /// Adds what was said to a reply, and cuts it to what the client takes.
    fn finish(&self, partial: &[u8], said: Option<Message>) -> (Vec<u8>, Rcode) {
        let Ok(mut message) = Message::from_vec(partial) else { return (Vec::new(), Rcode::ServFail) };
        let code = said.as_ref().map_or(ResponseCode::ServFail, |said| said.metadata.response_code);
        message.metadata.response_code = code;
        if let Some(said) = said {
            self.add(&mut message, &said);
        }
        if let Some(edns) = self.edns {
            let mut ours = OptRecord::new();
            ours.set_max_payload(OUR_UDP_SIZE).set_version(0).set_dnssec_ok(edns.dnssec_ok);
            message.set_edns(ours);
        }
        let rcode = match code {
            ResponseCode::NoError => Rcode::NoError,
            ResponseCode::NXDomain => Rcode::NxDomain,
            _ => Rcode::ServFail,
        };
        match message.to_vec() {
            Ok(reply) if reply.len() <= self.limit => (reply, rcode),
            // RFC 6891 §7: the OPT record stays, so that the client sees why it should come back over TCP.
            _ => (message.truncate().to_vec().unwrap_or_default(), rcode),
        }
    }

    /// The records that answer: of the name and of what its aliases lead to, as far as the servers speak for it.
    fn add(&self, message: &mut Message, said: &Message) {
        let (Ok(mut name), Ok(cut)) = (Name::from_bytes(&self.name), Name::from_bytes(&self.cut)) else {
            return;
        };
        let theirs = |record: &&Record| record.dns_class == DNSClass::IN && cut.zone_of(&record.name);
        for _ in 0..=said.answers.len() {
            let mut alias = None;
            for record in said.answers.iter().filter(theirs).filter(|record| record.name == name) {
                let is_asked = self.qtype == 255 || u16::from(record.record_type()) == self.qtype;
                if let (false, RData::CNAME(target)) = (is_asked, &record.data) {
                    alias = Some(target.0.clone());
                } else if !is_asked {
                    continue;
                }
                message.answers.push(record.clone());
            }
            match alias {
                Some(target) if message.answers.iter().all(|record| record.name != target) => name = target,
                _ => break,
            }
        }
        let soa = said.authorities.iter().filter(theirs).find(|r| r.record_type() == RecordType::SOA);
        message.authorities.extend(soa.cloned());
    }
}

/// Asks from a port of its own, so that nobody else can answer who does not see the question (RFC 5452 §9.2).
async fn over_udp(server: SocketAddr, question: &Message) -> Option<Message> {
    let any = if server.is_ipv4() { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0)).await.ok()?;
    socket.connect(server).await.ok()?;
    socket.send(&question.to_vec().ok()?).await.ok()?;
    let mut room = vec![0; usize::from(OUR_UDP_SIZE) + 1];
    loop {
        let length = socket.recv(&mut room).await.ok()?;
        if let Some(said) = room.get(..length).and_then(|wire| answer_to(question, wire)) {
            return Some(said);
        }
    }
}

async fn over_tcp(server: SocketAddr, question: &Message) -> Option<Message> {
    let mut stream = TcpStream::connect(server).await.ok()?;
    let wire = question.to_vec().ok()?;
    let length = u16::try_from(wire.len()).ok()?.to_be_bytes();
    stream.write_all(&[&length[..], &wire].concat()).await.ok()?;
    let mut wire = vec![0; usize::from(stream.read_u16().await.ok()?)];
    stream.read_exact(&mut wire).await.ok()?;
    answer_to(question, &wire)
}

/// RFC 5452 §9.1: identifier and question are those that were sent.
fn answer_to(question: &Message, wire: &[u8]) -> Option<Message> {
    let said = Message::from_vec(wire).ok()?;
    let same = said.metadata.id == question.metadata.id && said.queries == question.queries;
    (same && said.metadata.message_type == MessageType::Response).then_some(said)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    fn wire(name: &str) -> Box<[u8]> {
        name.parse::<proximity_table::Name>().unwrap().as_wire().into()
    }

    fn delegated(servers: &[&str]) -> Delegated {
        Delegated {
            name: wire("www.lab.prox.local"),
            qtype: 1,
            edns: None,
            limit: 512,
            cut: wire("lab.prox.local"),
            servers: servers.iter().map(|ip| ip.parse().unwrap()).collect(),
        }
    }

    fn record(owner: &str, data: RData) -> Record {
        Record::from_rdata(Name::from_ascii(owner).unwrap(), 30, data)
    }

    fn address(last: u8) -> RData {
        RData::A(Ipv4Addr::new(10, 30, 0, last).into())
    }

    fn partial() -> Vec<u8> {
        let mut message = Message::query();
        message.metadata.message_type = MessageType::Response;
        message.add_query(Query::query(Name::from_ascii("www.lab.prox.local.").unwrap(), RecordType::A));
        message.to_vec().unwrap()
    }

    /// RFC 5452 §6: what a server says of names that are not its own is not believed.
    #[test]
    fn only_what_the_servers_speak_for_is_taken() {
        let alias =
            |target: &str| RData::CNAME(hickory_proto::rr::rdata::CNAME(Name::from_ascii(target).unwrap()));
        let mut said = Message::query();
        said.answers = vec![
            record("www.lab.prox.local.", alias("a.lab.prox.local.")),
            record("a.lab.prox.local.", alias("bank.example.")),
            record("bank.example.", address(66)),
            record("other.lab.prox.local.", address(67)),
        ];
        let (reply, rcode) = delegated(&[]).finish(&partial(), Some(said));
        let reply = Message::from_vec(&reply).unwrap();
        let owners: Vec<String> = reply.answers.iter().map(|r| r.name.to_string()).collect();
        assert_eq!(owners, ["www.lab.prox.local.", "a.lab.prox.local."]);
        assert_eq!(rcode, Rcode::NoError);
    }

    /// A server that is silent, one that refuses, then one that truncates and answers over TCP.
    #[tokio::test]
    async fn servers_are_asked_in_turn_and_again_over_tcp() {
        let good = UdpSocket::bind("127.0.0.3:0").await.unwrap();
        let port = good.local_addr().unwrap().port();
        let silent = UdpSocket::bind(("127.0.0.1", port)).await.unwrap();
        let lame = UdpSocket::bind(("127.0.0.2", port)).await.unwrap();
        let listener = TcpListener::bind(("127.0.0.3", port)).await.unwrap();
        let reply_to = |wire: &[u8], code, truncated, answers| {
            let mut reply = Message::from_vec(wire).unwrap();
            reply.metadata.message_type = MessageType::Response;
            reply.metadata.response_code = code;
            reply.metadata.truncation = truncated;
            reply.answers = answers;
            reply.to_vec().unwrap()
        };
        let serve = async {
            let mut room = [0; 600];
            let (length, peer) = lame.recv_from(&mut room).await.unwrap();
            let refused = reply_to(&room[..length], ResponseCode::Refused, false, vec![]);
            lame.send_to(&refused, peer).await.unwrap();
            let (length, peer) = good.recv_from(&mut room).await.unwrap();
            let mut forged = reply_to(&room[..length], ResponseCode::NXDomain, false, vec![]);
            forged[0] ^= 1;
            good.send_to(&forged, peer).await.unwrap();
            let cut = reply_to(&room[..length], ResponseCode::NoError, true, vec![]);
            good.send_to(&cut, peer).await.unwrap();
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut wire = vec![0; usize::from(stream.read_u16().await.unwrap())];
            stream.read_exact(&mut wire).await.unwrap();
            let answers = vec![record("www.lab.prox.local.", address(7))];
            let reply = reply_to(&wire, ResponseCode::NoError, false, answers);
            stream.write_u16(reply.len() as u16).await.unwrap();
            stream.write_all(&reply).await.unwrap();
        };
        let asked = delegated(&["127.0.0.1", "127.0.0.2", "127.0.0.3"]);
        let (said, ()) = tokio::join!(asked.ask(port), serve);
        assert_eq!(said.unwrap().answers[0].data, address(7));
        let mut room = [0; 600];
        assert!(silent.recv(&mut room).await.unwrap() > 0, "the first was asked too");
    }

    #[tokio::test]
    async fn nobody_there_is_a_server_failure() {
        let nobody = UdpSocket::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
        let asked = delegated(&["127.0.0.1"]);
        assert!(asked.ask(nobody).await.is_none());
        assert_eq!(asked.finish(&partial(), None).1, Rcode::ServFail);
    }
}
