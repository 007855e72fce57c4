//! A small world to ask about, and the means to ask.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arc_swap::ArcSwap;
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name as DnsName, RData, Record as DnsRecord, RecordType as DnsType};
use proximity_config::Config;
use proximity_dns::{
    Asker, DnsServer, DnsSettings, DnsStats, Forwarder, Outcome, Transport, Upstream, answer,
};
use proximity_table::{
    Facts, Generation, Lease, LeaseState, Ledger, Name, Record, RecordData, Reservation, Source, Timestamp,
    World,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};

/// The moment at which everything is asked.
pub const NOW: Timestamp = Timestamp(1_800_000_000);
/// An app.
pub const APP: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 20, 0, 101));
/// Somebody who is on no app network.
pub const STRANGER: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7));

pub fn clock() -> Timestamp {
    NOW
}

/// Records as an administrator writes them: name, type, value.
const RECORDS: &[(&str, &str, &str)] = &[
    ("printer", "A", "10.20.0.50"),
    ("printer", "AAAA", "fd00::50"),
    ("www", "CNAME", "nginx"),
    ("hop", "CNAME", "www"),
    ("blog", "CNAME", "web.example.com."),
    ("dangling", "CNAME", "nobody"),
    ("loop1", "CNAME", "loop2"),
    ("loop2", "CNAME", "loop1"),
    ("self", "CNAME", "self"),
    ("note", "TXT", "hello world"),
    ("@", "MX", "10 mail"),
    ("mail", "A", "10.20.0.25"),
    ("_pg._tcp", "SRV", "0 5 5432 db"),
    ("@", "CAA", "0 issue letsencrypt.org"),
    ("*.dev", "A", "10.20.0.60"),
    ("*.dev", "TXT", "any"),
    ("real.dev", "TXT", "own"),
    ("a.b.deep", "A", "10.20.0.61"),
    ("x.*.odd", "A", "10.20.0.62"),
    ("250.0.20.10.in-addr.arpa.", "PTR", "printer"),
];

/// `nginx` has a lease for an hour, `brief` one for 7 seconds, `gone` one that has just run out and of which
/// nobody told the table; `db` has a reservation.
pub fn world() -> World {
    world_with(&[])
}

pub fn world_with(more: &[(&str, &str, &str)]) -> World {
    let mut intent = Config::default().intent;
    let (domain, network) = (intent.domain.clone(), intent.networks[0].name.clone());
    let long = "l".repeat(3000);
    let long = [("long", "TXT", long.as_str())];
    for (name, rtype, value) in RECORDS.iter().chain(more).chain(&long) {
        let name = Name::relative(name, &domain).unwrap();
        let data = RecordData::parse(rtype, value, &domain).unwrap();
        let entry = intent.records.entry((name.clone(), data.rtype()));
        let (_, records) = entry.or_insert_with(|| (Source::Config, Arc::default()));
        Arc::make_mut(records).push(Record { name, data, ttl: 120 });
    }
    let reservation = Reservation {
        network: network.clone(),
        mac: "02:00:00:00:00:0a".parse().unwrap(),
        ip: Ipv4Addr::new(10, 20, 0, 10),
        hostname: Some("db".parse().unwrap()),
    };
    intent.reservations.insert((network.clone(), reservation.mac), (Source::Config, Arc::new(reservation)));
    let lease = |last: u8, hostname: &str, expires: u64| Lease {
        ip: Ipv4Addr::new(10, 20, 0, last),
        mac: format!("02:00:00:00:00:{last:02x}").parse().unwrap(),
        client_id: None,
        hostname: Some(hostname.parse().unwrap()),
        network: network.clone(),
        state: LeaseState::Bound,
        expires: Timestamp(expires),
        epoch: u64::from(last),
    };
    let leases =
        [lease(101, "nginx", NOW.0 + 3600), lease(102, "brief", NOW.0 + 7), lease(103, "gone", NOW.0)];
    World::derive(Facts::new(intent, Ledger::of(leases)), Generation(77))
}

/// A query as a stub resolver sends it: RD set, no EDNS.
pub fn query(name: &str, rtype: DnsType) -> Message {
    let mut message = Message::new(0x4242, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(DnsName::from_ascii(name).unwrap(), rtype));
    message
}

pub fn with_edns(mut message: Message, size: u16) -> Message {
    let mut edns = Edns::new();
    edns.set_max_payload(size).set_version(0);
    message.set_edns(edns);
    message
}

/// Asks the core over a transport; the reply must be one that can be read.
pub fn ask_over(world: &World, transport: Transport, client: IpAddr, query: &Message) -> (Outcome, Message) {
    let mut out = Vec::new();
    let outcome = answer(world, NOW, Asker { client, transport }, &query.to_vec().unwrap(), &mut out);
    (outcome, Message::from_vec(&out).unwrap())
}

/// Asks the core about a name that must be answered without anybody else.
pub fn ask(world: &World, name: &str, rtype: DnsType) -> Message {
    let (outcome, reply) = ask_over(world, Transport::Udp, APP, &query(name, rtype));
    assert!(matches!(outcome, Outcome::Answered(_)), "{outcome:?}");
    assert!(reply.metadata.authoritative, "{reply}");
    reply
}

/// Records as text, `owner ttl type value`.
pub fn lines(records: &[DnsRecord]) -> Vec<String> {
    records.iter().map(|r| format!("{} {} {} {}", r.name, r.ttl, r.record_type(), r.data)).collect()
}

pub fn a(name: &str, ttl: u32, ip: [u8; 4]) -> DnsRecord {
    DnsRecord::from_rdata(DnsName::from_ascii(name).unwrap(), ttl, RData::A(Ipv4Addr::from(ip).into()))
}

/// A server with the world of [`world`] and the given upstreams.
pub fn server(upstreams: &[SocketAddr]) -> (DnsServer, Arc<DnsStats>) {
    let upstream = upstreams.iter().map(|addr| Upstream::Plain(*addr)).collect();
    let forwarder =
        Forwarder::new(&DnsSettings { upstream, cache_size: 1000, ..DnsSettings::default() }).unwrap();
    let stats = Arc::new(DnsStats::default());
    let world = Arc::new(ArcSwap::from_pointee(world()));
    let server = DnsServer::new(world, Arc::new(ArcSwap::from_pointee(forwarder)), stats.clone(), clock);
    (server, stats)
}

/// Asks a server from inside the process.
pub async fn resolve(server: &DnsServer, client: IpAddr, query: &Message) -> Message {
    let reply = server.resolve_wire(&query.to_vec().unwrap(), client).await.unwrap();
    Message::from_vec(&reply).unwrap()
}

/// A name server on loopback that answers by a script, over UDP and TCP on the same port.
pub struct ScriptedUpstream {
    pub addr: SocketAddr,
    udp: Arc<AtomicUsize>,
    tcp: Arc<AtomicUsize>,
}

impl ScriptedUpstream {
    /// `script` gets each query with an empty reply to it, and whether it came over TCP; `None` is silence.
    pub async fn start(script: fn(&Message, Message, bool) -> Option<Message>) -> ScriptedUpstream {
        let (socket, listener) = loop {
            let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            if let Ok(listener) = TcpListener::bind(socket.local_addr().unwrap()).await {
                break (socket, listener);
            }
        };
        let addr = socket.local_addr().unwrap();
        let (udp, tcp) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let run = move |wire: &[u8], over_tcp| {
            let query = Message::from_vec(wire).unwrap();
            let mut reply = Message::response(query.metadata.id, OpCode::Query);
            reply.metadata.recursion_desired = true;
            reply.metadata.recursion_available = true;
            reply.add_queries(query.queries.iter().cloned());
            script(&query, reply, over_tcp).map(|reply| reply.to_vec().unwrap())
        };
        let count = udp.clone();
        tokio::spawn(async move {
            let mut wire = [0; 4096];
            while let Ok((length, peer)) = socket.recv_from(&mut wire).await {
                count.fetch_add(1, Ordering::SeqCst);
                if let Some(reply) = run(&wire[..length], false) {
                    socket.send_to(&reply, peer).await.unwrap();
                }
            }
        });
        let count = tcp.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let count = count.clone();
                tokio::spawn(async move {
                    while let Ok(length) = stream.read_u16().await {
                        let mut wire = vec![0; usize::from(length)];
                        stream.read_exact(&mut wire).await.unwrap();
                        count.fetch_add(1, Ordering::SeqCst);
                        if let Some(reply) = run(&wire, true) {
                            stream.write_u16(reply.len() as u16).await.unwrap();
                            stream.write_all(&reply).await.unwrap();
                        }
                    }
                });
            }
        });
        ScriptedUpstream { addr, udp, tcp }
    }

    /// How many queries came over UDP and over TCP.
    pub fn asked(&self) -> (usize, usize) {
        (self.udp.load(Ordering::SeqCst), self.tcp.load(Ordering::SeqCst))
    }
}
