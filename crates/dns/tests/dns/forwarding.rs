//! Names of others: asked upstream, kept, and never at the expense of our own.

use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::{CNAME, SOA, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use proximity_dns::{
    DnsServer, DnsSettings, DnsStats, ForwardError, Forwarder, Outcome, Rcode, Transport, Upstream,
};

use crate::fixture::*;

fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

/// A little internet.
fn internet(query: &Message, mut reply: Message, tcp: bool) -> Option<Message> {
    let asked = query.queries[0].name().to_string().to_ascii_lowercase();
    let soa = SOA::new(name("ns.example.com."), name("root.example.com."), 5, 1, 1, 1, 30);
    let soa = Record::from_rdata(name("example.com."), 200, RData::SOA(soa));
    match asked.as_str() {
        "www.example.com." => {
            reply.add_answer(Record::from_rdata(
                name("www.example.com."),
                90,
                RData::CNAME(CNAME(name("example.com."))),
            ));
            reply.add_answer(a("example.com.", 40, [203, 0, 113, 1]));
            // Something that was not asked for.
            reply.add_answer(a("bank.example.", 4000, [203, 0, 113, 66]));
        }
        "example.com." if query.queries[0].query_type() == RecordType::A => {
            reply.add_answer(a("example.com.", 40, [203, 0, 113, 1]));
        }
        "example.com." => {
            reply.add_authority(soa);
        }
        "missing.example.com." => {
            reply.metadata.response_code = ResponseCode::NXDomain;
            reply.add_authority(soa);
        }
        "big.example.com." if !tcp => reply.metadata.truncation = true,
        "big.example.com." => {
            let strings = (0..12).map(|_| "z".repeat(200)).collect();
            reply.add_answer(Record::from_rdata(name("big.example.com."), 40, RData::TXT(TXT::new(strings))));
        }
        "half.example.com." => {
            reply.add_answer(Record::from_rdata(
                name("half.example.com."),
                86_000,
                RData::CNAME(CNAME(name("example.com."))),
            ));
            reply.add_authority(soa);
        }
        "inward.example.com." => {
            let target = RData::CNAME(CNAME(name("nginx.prox.local.")));
            reply.metadata.response_code = ResponseCode::NXDomain;
            reply.add_answer(Record::from_rdata(name("inward.example.com."), 90, target));
        }
        "broken.example.com." => reply.metadata.response_code = ResponseCode::ServFail,
        _ => return None,
    }
    Some(reply)
}

#[tokio::test]
async fn an_answer_is_asked_for_once() {
    let upstream = ScriptedUpstream::start(internet).await;
    let (server, stats) = server(&[upstream.addr]);
    for _ in 0..5 {
        let reply = resolve(&server, APP, &query("eXample.com.", RecordType::A)).await;
        assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
        assert!(!reply.metadata.authoritative && reply.metadata.recursion_available);
        assert!(reply.queries[0].name().eq_case(&name("eXample.com.")));
        assert_eq!(reply.answers.len(), 1);
        assert!(reply.answers[0].ttl <= 40 && reply.answers[0].ttl >= 35, "{reply}");
    }
    assert_eq!(upstream.asked(), (1, 0));
    assert_eq!((stats.snapshot().forwarded, stats.snapshot().cache_hits), (5, 4));
}

#[tokio::test]
async fn answers_hold_what_belongs_to_the_question_only() {
    let upstream = ScriptedUpstream::start(internet).await;
    let (server, _) = server(&[upstream.addr]);
    let reply = resolve(&server, APP, &query("www.example.com.", RecordType::A)).await;
    assert_eq!(
        lines(&reply.answers),
        ["www.example.com. 90 CNAME example.com.", "example.com. 40 A 203.0.113.1"]
    );
}

/// RFC 2308 §5: "A negative answer that resulted from a name error (NXDOMAIN) should be cached such that it can be
/// retrieved and returned in response to another query"; §6: "When a server, in answering a query, finds a cached
/// negative response [...] the SOA record MUST be added to the authority section of the response".
#[tokio::test]
async fn nothing_is_remembered_too() {
    let upstream = ScriptedUpstream::start(internet).await;
    let (server, stats) = server(&[upstream.addr]);
    for (asked, rtype, code) in [
        ("missing.example.com.", RecordType::A, ResponseCode::NXDomain),
        ("example.com.", RecordType::AAAA, ResponseCode::NoError),
    ] {
        for _ in 0..3 {
            let reply = resolve(&server, APP, &query(asked, rtype)).await;
            assert_eq!(reply.metadata.response_code, code);
            assert!(reply.answers.is_empty());
            let [soa] = &reply.authorities[..] else { panic!("{reply}") };
            assert_eq!(soa.record_type(), RecordType::SOA);
        }
    }
    assert_eq!(upstream.asked(), (2, 0));
    assert_eq!(stats.snapshot().answered(Rcode::NxDomain), 3);
    assert_eq!(stats.snapshot().upstream_failures, 0);
}

/// RFC 2308 §2.2.1: an alias whose target lacks the type is a NODATA answer, which is kept as long as its SOA
/// record says, not as long as the alias would be.
#[tokio::test]
async fn an_alias_to_nothing_is_a_negative_answer() {
    let upstream = ScriptedUpstream::start(internet).await;
    let (server, _) = server(&[upstream.addr]);
    for _ in 0..2 {
        let reply = resolve(&server, APP, &query("half.example.com.", RecordType::AAAA)).await;
        assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
        assert_eq!((reply.answers.len(), reply.authorities.len()), (1, 1), "{reply}");
        assert!(reply.answers[0].ttl <= 30 && reply.authorities[0].ttl <= 30, "{reply}");
    }
    assert_eq!(upstream.asked(), (1, 0));
}

/// A name of others that points to one of ours: ours is not asked for upstream, and a stranger's zone does not
/// get to hand out our addresses (DNS rebinding).
#[tokio::test]
async fn aliases_into_our_zones_are_not_followed() {
    let upstream = ScriptedUpstream::start(internet).await;
    let (server, _) = server(&[upstream.addr]);
    let reply = resolve(&server, APP, &query("inward.example.com.", RecordType::A)).await;
    assert_eq!(lines(&reply.answers), ["inward.example.com. 0 CNAME nginx.prox.local."]);
    assert_eq!(upstream.asked(), (1, 0));
}

/// The bound on questions under way holds, and what is over it is told so at once.
#[tokio::test]
async fn too_many_questions_are_turned_away() {
    let silent = ScriptedUpstream::start(|_, _, _| None).await;
    let (server, stats) = server(&[silent.addr]);
    let mut waiting = tokio::task::JoinSet::new();
    for _ in 0..1100 {
        let server = server.clone();
        waiting.spawn(async move { resolve(&server, APP, &query("example.com.", RecordType::A)).await });
    }
    while let Some(reply) = waiting.join_next().await {
        assert_eq!(reply.unwrap().metadata.response_code, ResponseCode::ServFail);
    }
    let counted = stats.snapshot();
    assert_eq!((counted.overloaded, counted.upstream_failures), (76, 1024));
    let reply = resolve(&server, APP, &query("nginx.prox.local.", RecordType::A)).await;
    assert_eq!(reply.answers.len(), 1);
}

/// RFC 7766 §5: a truncated answer is fetched again over TCP; whoever asked over UDP is told to do the same.
#[tokio::test]
async fn long_answers_come_over_tcp() {
    let upstream = ScriptedUpstream::start(internet).await;
    let (server, _) = server(&[upstream.addr]);
    let reply = resolve(&server, APP, &query("big.example.com.", RecordType::TXT)).await;
    assert!(!reply.metadata.truncation && reply.answers.len() == 1, "{reply} {:?}", upstream.asked());
    assert_eq!(upstream.asked(), (1, 1));
}

/// In-zone names never leave, found or not; nor do private reverse names and special names.
#[tokio::test]
async fn our_names_are_never_forwarded() {
    let upstream = ScriptedUpstream::start(internet).await;
    let (server, stats) = server(&[upstream.addr]);
    for asked in [
        "nginx.prox.local.",
        "nobody.prox.local.",
        "a.b.c.prox.local.",
        "prox.local.",
        "local.",
        "200.0.20.10.in-addr.arpa.",
        "1.1.168.192.in-addr.arpa.",
        "localhost.",
        "x.onion.",
    ] {
        for rtype in [RecordType::A, RecordType::AAAA, RecordType::PTR, RecordType::ANY, RecordType::from(65)]
        {
            let reply = resolve(&server, APP, &query(asked, rtype)).await;
            assert!(reply.metadata.authoritative, "{reply}");
        }
    }
    let stranger = resolve(&server, STRANGER, &query("example.com.", RecordType::A)).await;
    assert_eq!(stranger.metadata.response_code, ResponseCode::Refused);
    assert_eq!(upstream.asked(), (0, 0));
    assert_eq!(stats.snapshot().forwarded, 0);
}

#[tokio::test]
async fn without_upstreams_local_names_answer() {
    // A port on which nobody listens: bound by a socket that answers nothing on TCP and is closed on UDP.
    let closed: SocketAddr = {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.local_addr().unwrap()
    };
    let (server, stats) = server(&[closed]);
    let asked = with_edns(query("example.com.", RecordType::A), 1232);
    let ours = query("nginx.prox.local.", RecordType::A);
    let (foreign, local) = tokio::join!(resolve(&server, APP, &asked), resolve(&server, APP, &ours));
    assert_eq!(local.answers.len(), 1);
    assert_eq!(foreign.metadata.response_code, ResponseCode::ServFail);
    assert!(foreign.edns.is_some() && foreign.queries.len() == 1 && foreign.metadata.id == 0x4242);
    assert_eq!(stats.snapshot().upstream_failures, 1);
    assert_eq!(stats.snapshot().answered(Rcode::ServFail), 1);
}

#[tokio::test]
async fn a_failing_upstream_is_a_failure() {
    let upstream = ScriptedUpstream::start(internet).await;
    let (server, stats) = server(&[upstream.addr]);
    let reply = resolve(&server, APP, &query("broken.example.com.", RecordType::A)).await;
    assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
    assert_eq!(stats.snapshot().upstream_failures, 1);
}

/// One upstream is silent, the other answers: so do we.
#[tokio::test]
async fn any_upstream_will_do() {
    let silent = ScriptedUpstream::start(|_, _, _| None).await;
    let upstream = ScriptedUpstream::start(internet).await;
    let (server, _) = server(&[silent.addr, upstream.addr]);
    let reply = resolve(&server, APP, &query("example.com.", RecordType::A)).await;
    assert_eq!(lines(&reply.answers), ["example.com. 40 A 203.0.113.1"]);
}

#[tokio::test]
async fn the_forwarder_can_be_replaced_while_serving() {
    let upstream = ScriptedUpstream::start(internet).await;
    let none = DnsSettings { upstream: vec![], cache_size: 10, ..DnsSettings::default() };
    let forwarder = Arc::new(ArcSwap::from_pointee(Forwarder::new(&none).unwrap()));
    let world = Arc::new(ArcSwap::from_pointee(world()));
    let server = DnsServer::new(world, forwarder.clone(), Arc::new(DnsStats::default()), clock);
    let asked = query("example.com.", RecordType::A);
    assert_eq!(resolve(&server, APP, &asked).await.metadata.response_code, ResponseCode::Refused);
    let some = DnsSettings {
        upstream: vec![Upstream::Plain(upstream.addr)],
        cache_size: 10,
        ..DnsSettings::default()
    };
    forwarder.store(Arc::new(Forwarder::new(&some).unwrap()));
    assert_eq!(resolve(&server, APP, &asked).await.answers.len(), 1);
}

#[test]
fn who_is_found_by_name_needs_somebody_to_ask() {
    let upstream: Vec<Upstream> = vec!["https://dns.example/dns-query".parse().unwrap()];
    let settings = DnsSettings { upstream, ..DnsSettings::default() };
    let Err(error) = Forwarder::new(&settings) else { panic!("accepted") };
    assert!(matches!(error, ForwardError::NameWithoutPlain(_)));
    assert!(error.to_string().contains("beside it"), "{error}");
}

#[test]
fn what_is_asked_upstream_is_what_was_asked() {
    let asked = with_edns(query("WWW.Example.COM.", RecordType::AAAA), 900);
    let (outcome, partial) = ask_over(&world(), Transport::Udp, APP, &asked);
    let Outcome::Forward(foreign) = outcome else { panic!("{outcome:?}") };
    assert_eq!(&*foreign.name, b"\x03www\x07example\x03com\x00");
    assert_eq!((foreign.qtype, foreign.limit), (28, 900));
    assert!(partial.queries[0].name().eq_case(asked.queries[0].name()));
}
