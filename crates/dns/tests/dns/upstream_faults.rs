//! Upstreams that are slow, wrong, hostile or not there: each ends in the right answer to the client.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use hickory_proto::op::{Message, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, NS, SOA};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use proximity_dns::{DnsServer, DnsSettings, DnsStats, Forwarder, Upstream};
use tokio::net::UdpSocket;

use crate::fixture::*;
use crate::kept_answers::ede;

const RIGHT: [u8; 4] = [203, 0, 113, 1];
const FORGED: [u8; 4] = [203, 0, 113, 66];

fn question(name: &str) -> Message {
    with_edns(query(name, RecordType::A), 1232)
}

fn answer_to(query: &Message, ip: [u8; 4]) -> Message {
    let mut reply = Message::response(query.metadata.id, OpCode::Query);
    reply.metadata.recursion_available = true;
    reply.add_queries(query.queries.iter().cloned());
    reply.add_answer(a(&query.queries[0].name().to_string(), 60, ip));
    reply
}

fn forwarding(settings: DnsSettings) -> (DnsServer, Arc<Forwarder>) {
    let forwarder = Arc::new(Forwarder::new(&settings).unwrap());
    let world = Arc::new(arc_swap::ArcSwap::from_pointee(world()));
    let shared = Arc::new(arc_swap::ArcSwap::new(forwarder.clone()));
    (DnsServer::new(world, shared, Arc::new(DnsStats::default()), clock), forwarder)
}

fn asking(upstreams: &[SocketAddr]) -> DnsSettings {
    let upstream = upstreams.iter().map(|addr| Upstream::Plain(*addr)).collect();
    DnsSettings { upstream, ..DnsSettings::default() }
}

/// An upstream that sends back, to each query, what `script` makes of it: datagrams as they are.
async fn raw(script: impl Fn(&Message) -> Vec<Vec<u8>> + Send + 'static) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let addr = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut wire = [0; 4096];
        while let Ok((length, peer)) = socket.recv_from(&mut wire).await {
            for datagram in script(&Message::from_vec(&wire[..length]).unwrap()) {
                socket.send_to(&datagram, peer).await.unwrap();
            }
        }
    });
    addr
}

/// RFC 5452 §9.1: "A resolver implementation MUST match responses to all of the following attributes of the query:
/// Source address against query destination address [...] Query ID, Query name, Query class and type".
#[tokio::test]
async fn what_does_not_match_the_question_is_not_believed() {
    let upstream = raw(|query| {
        let right = answer_to(query, RIGHT);
        let mut other_id = answer_to(query, FORGED);
        other_id.metadata.id = query.metadata.id.wrapping_add(1);
        let mut other_name = answer_to(query, FORGED);
        other_name.queries[0].set_name(Name::from_ascii("bank.example.").unwrap());
        let mut other_type = answer_to(query, FORGED);
        other_type.queries[0].set_query_type(RecordType::AAAA);
        [other_id, other_name, other_type, right].map(|message| message.to_vec().unwrap()).to_vec()
    })
    .await;
    let (server, _) = forwarding(asking(&[upstream]));
    let reply = resolve(&server, APP, &question("example.com.")).await;
    assert_eq!(lines(&reply.answers), ["example.com. 60 A 203.0.113.1"]);
}

#[tokio::test]
async fn an_answer_from_another_address_is_not_believed() {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let upstream = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let elsewhere = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let another = UdpSocket::bind("127.0.0.2:0").await.unwrap();
        let mut wire = [0; 4096];
        while let Ok((length, peer)) = socket.recv_from(&mut wire).await {
            let query = Message::from_vec(&wire[..length]).unwrap();
            let forged = answer_to(&query, FORGED).to_vec().unwrap();
            elsewhere.send_to(&forged, peer).await.unwrap();
            another.send_to(&forged, peer).await.unwrap();
            socket.send_to(&answer_to(&query, RIGHT).to_vec().unwrap(), peer).await.unwrap();
        }
    });
    let (server, _) = forwarding(asking(&[upstream]));
    let reply = resolve(&server, APP, &question("example.com.")).await;
    assert_eq!(lines(&reply.answers), ["example.com. 60 A 203.0.113.1"]);
}

/// RFC 5452 §9.2: "Resolver implementations MUST: Use an unpredictable source port for outgoing queries [...] Use an
/// unpredictable query ID".
#[tokio::test]
async fn ports_and_identifiers_cannot_be_guessed() {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let upstream = socket.local_addr().unwrap();
    let seen: Arc<Mutex<Vec<(u16, u16)>>> = Arc::default();
    let noted = seen.clone();
    tokio::spawn(async move {
        let mut wire = [0; 4096];
        while let Ok((length, peer)) = socket.recv_from(&mut wire).await {
            let query = Message::from_vec(&wire[..length]).unwrap();
            noted.lock().unwrap().push((peer.port(), query.metadata.id));
            socket.send_to(&answer_to(&query, RIGHT).to_vec().unwrap(), peer).await.unwrap();
        }
    });
    let (server, _) = forwarding(asking(&[upstream]));
    for number in 0..200 {
        resolve(&server, APP, &question(&format!("n{number}.example.com."))).await;
    }
    let seen = seen.lock().unwrap();
    let distinct = |pick: fn(&(u16, u16)) -> u16| seen.iter().map(pick).collect::<HashSet<_>>().len();
    assert!(distinct(|seen| seen.0) > 190 && distinct(|seen| seen.1) > 190, "{seen:?}");
    // Neither runs through its space in order.
    for pick in [|seen: &(u16, u16)| seen.0, |seen: &(u16, u16)| seen.1] {
        let next = seen.windows(2).filter(|pair| pick(&pair[1]).wrapping_sub(pick(&pair[0])) < 8).count();
        assert!(next < 10, "{seen:?}");
    }
}

#[tokio::test]
async fn garbage_ends_in_a_failure_or_in_another_upstream() {
    let garbage = raw(|query| {
        let mut wire = query.metadata.id.to_be_bytes().to_vec();
        wire.extend([0x81, 0x80, 0, 9, 0, 9, 0xff]);
        vec![b"x".to_vec(), wire]
    })
    .await;
    let (server, _) = forwarding(asking(&[garbage]));
    let reply = resolve(&server, APP, &question("example.com.")).await;
    assert_eq!((reply.metadata.response_code, ede(&reply)), (ResponseCode::ServFail, Some(23)));
    let good = raw(|query| vec![answer_to(query, RIGHT).to_vec().unwrap()]).await;
    let (server, _) = forwarding(asking(&[garbage, good]));
    assert_eq!(resolve(&server, APP, &question("example.com.")).await.answers.len(), 1);
}

/// A server that refuses, or that only tells whom else to ask, is no recursive one.
#[tokio::test]
async fn lame_upstreams_are_passed_over() {
    let lame: [fn(&mut Message); 4] = [
        |reply| reply.metadata.response_code = ResponseCode::Refused,
        |reply| reply.metadata.response_code = ResponseCode::ServFail,
        |reply| reply.metadata.recursion_available = false,
        |reply| {
            let ns = RData::NS(NS(Name::from_ascii("a.gtld-servers.net.").unwrap()));
            reply.add_authority(Record::from_rdata(Name::from_ascii("com.").unwrap(), 60, ns));
        },
    ];
    for make in lame {
        let bad = raw(move |query| {
            let mut reply = answer_to(query, RIGHT);
            reply.answers.clear();
            make(&mut reply);
            vec![reply.to_vec().unwrap()]
        })
        .await;
        let (server, _) = forwarding(asking(&[bad]));
        let reply = resolve(&server, APP, &question("example.com.")).await;
        assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
        assert!(matches!(ede(&reply), Some(0 | 22)), "{reply}");
        let good = raw(|query| vec![answer_to(query, RIGHT).to_vec().unwrap()]).await;
        let (server, forwarder) = forwarding(asking(&[bad, good]));
        let reply = resolve(&server, APP, &question("example.com.")).await;
        assert_eq!(lines(&reply.answers), ["example.com. 60 A 203.0.113.1"]);
        assert!(forwarder.status().upstreams.iter().any(|upstream| upstream.answers == 1));
    }
}

/// RFC 6891 §7: one that does not know EDNS says FORMERR, and is asked without.
#[tokio::test]
async fn old_upstreams_are_asked_without_edns() {
    let old = raw(|query| {
        let mut reply = answer_to(query, RIGHT);
        if query.edns.is_some() {
            reply.answers.clear();
            reply.metadata.response_code = ResponseCode::FormErr;
        }
        vec![reply.to_vec().unwrap()]
    })
    .await;
    let (server, _) = forwarding(asking(&[old]));
    assert_eq!(resolve(&server, APP, &question("example.com.")).await.answers.len(), 1);
}

/// A zone that the name is not in says nothing about it (bailiwick).
#[tokio::test]
async fn strangers_do_not_vouch_for_a_name() {
    let upstream = raw(|query| {
        let mut reply = answer_to(query, RIGHT);
        reply.answers.clear();
        reply.metadata.response_code = ResponseCode::NXDomain;
        let bank = Name::from_ascii("bank.example.").unwrap();
        let soa = SOA::new(bank.clone(), bank.clone(), 1, 1, 1, 1, 600);
        reply.add_authority(Record::from_rdata(bank, 600, RData::SOA(soa)));
        reply.add_additional(a("bank.example.", 600, FORGED));
        vec![reply.to_vec().unwrap()]
    })
    .await;
    let (server, forwarder) = forwarding(asking(&[upstream]));
    let reply = resolve(&server, APP, &question("example.com.")).await;
    assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain);
    assert!(reply.authorities.is_empty() && reply.additionals.is_empty(), "{reply}");
    assert_eq!(forwarder.status().cached, 0);
}

/// RFC 8914 §4.23: nobody answers. One question shows it; when all upstreams are down, others are not kept waiting.
#[tokio::test]
async fn silence_is_a_failure_that_says_so() {
    let silent = raw(|_| vec![]).await;
    let (server, forwarder) = forwarding(asking(&[silent]));
    let reply = resolve(&server, APP, &question("n0.example.com.")).await;
    assert_eq!((reply.metadata.response_code, ede(&reply)), (ResponseCode::ServFail, Some(22)));
    resolve(&server, APP, &question("n1.example.com.")).await;
    assert!(!forwarder.status().upstreams[0].is_up);
    let mut clients = tokio::task::JoinSet::new();
    let started = std::time::Instant::now();
    for number in 2..40 {
        let server = server.clone();
        clients.spawn(async move {
            let reply = resolve(&server, APP, &question(&format!("n{number}.example.com."))).await;
            (std::time::Instant::now(), ede(&reply))
        });
    }
    let replies = clients.join_all().await;
    let at_once = replies.iter().filter(|(when, _)| (*when - started).as_millis() < 1500).count();
    assert!(at_once >= 36, "only {at_once} were told at once");
    assert!(replies.iter().all(|(_, ede)| *ede == Some(22)));
}

/// An address that a stranger's name has no business to lead to is not handed out, in whatever dress; a domain that
/// the operator knows may.
#[tokio::test]
async fn names_of_others_do_not_lead_inside() {
    let upstream = raw(|query| {
        let mut reply = answer_to(query, RIGHT);
        let name = query.queries[0].name().clone();
        let mut put = |data| reply.answers.push(Record::from_rdata(name.clone(), 60, data));
        match name.to_string().split('.').next().unwrap() {
            "v4" => put(RData::A(A::new(192, 168, 1, 1))),
            "own" => put(RData::A(A::new(10, 20, 0, 1))),
            "loop" => put(RData::A(A::new(127, 0, 0, 1))),
            "mapped" => put(RData::AAAA(AAAA("::ffff:10.0.0.1".parse().unwrap()))),
            "local" => put(RData::AAAA(AAAA("fe80::1".parse().unwrap()))),
            _ => {}
        }
        vec![reply.to_vec().unwrap()]
    })
    .await;
    let protected =
        DnsSettings { rebind_exempt: vec!["plex.direct".parse().unwrap()], ..asking(&[upstream]) };
    let (server, forwarder) = forwarding(protected.clone());
    for (name, answers) in [
        ("v4.example.com.", 0),
        ("own.example.com.", 0),
        ("loop.example.com.", 0),
        ("mapped.example.com.", 0),
        ("local.example.com.", 0),
        ("public.example.com.", 1),
        ("v4.a.plex.direct.", 2),
    ] {
        let v6 = name.starts_with("mapped") || name.starts_with("local");
        let rtype = if v6 { RecordType::AAAA } else { RecordType::A };
        let reply = resolve(&server, APP, &with_edns(query(name, rtype), 1232)).await;
        assert_eq!(
            (reply.answers.len(), reply.metadata.response_code),
            (answers, ResponseCode::NoError),
            "{name}"
        );
        assert_eq!(ede(&reply), (answers == 0).then_some(15), "{name}");
    }
    assert_eq!(forwarder.status().rebinding, 5);
    let corp = ("corp.example".parse().unwrap(), vec![Upstream::Plain(upstream)]);
    for settings in [
        DnsSettings { rebind_protection: false, ..protected.clone() },
        DnsSettings { forward: vec![corp], ..protected },
    ] {
        let (server, _) = forwarding(settings);
        assert_eq!(resolve(&server, APP, &question("v4.corp.example.")).await.answers.len(), 2);
    }
}

/// The longest domain counts, and names of no domain go where all others go.
#[tokio::test]
async fn domains_have_upstreams_of_their_own() {
    let answering =
        |last: u8| raw(move |query| vec![answer_to(query, [203, 0, 113, last]).to_vec().unwrap()]);
    let (all, corp, lab) = (answering(1).await, answering(2).await, answering(3).await);
    let forward = [("corp.example", corp), ("lab.corp.example", lab)]
        .map(|(domain, addr)| (domain.parse().unwrap(), vec![Upstream::Plain(addr)]));
    let (server, forwarder) = forwarding(DnsSettings { forward: forward.to_vec(), ..asking(&[all]) });
    for (name, ip) in [
        ("example.", "203.0.113.1"),
        ("xcorp.example.", "203.0.113.1"),
        ("corp.example.", "203.0.113.2"),
        ("a.b.corp.example.", "203.0.113.2"),
        ("LAB.corp.example.", "203.0.113.3"),
        ("a.lab.corp.example.", "203.0.113.3"),
    ] {
        assert_eq!(resolve(&server, APP, &question(name)).await.answers[0].data.to_string(), ip, "{name}");
    }
    let domains: Vec<_> = forwarder.status().upstreams.into_iter().map(|upstream| upstream.domain).collect();
    assert_eq!(domains, [Some("lab.corp.example".to_owned()), Some("corp.example".to_owned()), None]);
}

/// RFC 7871 §11.1: what a client says of its network goes no further.
#[tokio::test]
async fn options_of_clients_stay_here() {
    let seen: Arc<Mutex<Vec<Message>>> = Arc::default();
    let noted = seen.clone();
    let upstream = raw(move |query| {
        noted.lock().unwrap().push(query.clone());
        vec![answer_to(query, RIGHT).to_vec().unwrap()]
    })
    .await;
    let (server, _) = forwarding(asking(&[upstream]));
    let mut asked = question("example.com.");
    let subnet = "198.51.100.0/24".parse().unwrap();
    let options = asked.edns.as_mut().unwrap().options_mut();
    options.insert(hickory_proto::rr::rdata::opt::EdnsOption::Subnet(subnet));
    assert_eq!(resolve(&server, APP, &asked).await.answers.len(), 1);
    let seen = seen.lock().unwrap();
    let [query] = &seen[..] else { panic!("{seen:?}") };
    assert!(query.edns.as_ref().unwrap().options().as_ref().is_empty(), "{query}");
    assert!(query.metadata.recursion_desired && query.metadata.id != asked.metadata.id);
}

/// RFC 8914 §4.19: a stranger is told that it is because of who asks.
#[tokio::test]
async fn strangers_are_told_why() {
    let (server, _) = forwarding(asking(&[]));
    let reply = resolve(&server, STRANGER, &question("example.com.")).await;
    assert_eq!((reply.metadata.response_code, ede(&reply)), (ResponseCode::Refused, Some(18)));
    let reply = resolve(&server, STRANGER, &query("example.com.", RecordType::A)).await;
    assert!(reply.edns.is_none());
}
