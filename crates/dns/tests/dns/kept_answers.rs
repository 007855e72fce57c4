//! Answers of others that are kept: for how long, for whom, and what happens when their time is over.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use hickory_proto::op::{Edns, Message, ResponseCode};
use hickory_proto::rr::rdata::SOA;
use hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use proximity_dns::{DnsServer, DnsSettings, DnsStats, Ede, Forwarder, TtlBounds, Upstream};
use proximity_table::Timestamp;

use crate::fixture::*;

/// Makes a clock that a test moves on its own.
macro_rules! own_clock {
    () => {{
        static TIME: AtomicU64 = AtomicU64::new(NOW.0);
        fn clock() -> Timestamp {
            Timestamp(TIME.load(Ordering::SeqCst))
        }
        (clock as fn() -> Timestamp, &TIME)
    }};
}

struct Kept {
    server: DnsServer,
    forwarder: Arc<Forwarder>,
}

fn serve(settings: DnsSettings, clock: fn() -> Timestamp) -> Kept {
    let forwarder = Arc::new(Forwarder::new(&settings).unwrap());
    let world = Arc::new(ArcSwap::from_pointee(world()));
    let shared = Arc::new(ArcSwap::new(forwarder.clone()));
    Kept { server: DnsServer::new(world, shared, Arc::new(DnsStats::default()), clock), forwarder }
}

fn asking(upstream: &ScriptedUpstream) -> DnsSettings {
    DnsSettings { upstream: vec![Upstream::Plain(upstream.addr)], ..DnsSettings::default() }
}

/// The extended error of a reply (RFC 8914 §2).
pub fn ede(reply: &Message) -> Option<u16> {
    match reply.edns.as_ref()?.option(EdnsCode::Unknown(15))? {
        EdnsOption::Unknown(_, octets) => Some(u16::from_be_bytes([octets[0], octets[1]])),
        other => panic!("{other:?}"),
    }
}

fn question(name: &str) -> Message {
    with_edns(query(name, RecordType::A), 1232)
}

/// Each answer is a new address, so that a test sees which it got.
static ANSWERS: AtomicUsize = AtomicUsize::new(1);

fn counting(query: &Message, mut reply: Message, _: bool) -> Option<Message> {
    let next = ANSWERS.fetch_add(1, Ordering::SeqCst);
    let name = query.queries[0].name().to_string();
    reply.add_answer(a(&name, 100, [203, 0, (next >> 8) as u8, next as u8]));
    Some(reply)
}

/// RFC 1035 §3.2.1: a TTL is "the time interval that the resource record may be cached"; what is given out of a cache
/// says what is left.
#[tokio::test]
async fn times_run_down() {
    let (clock, time) = own_clock!();
    let upstream = ScriptedUpstream::start(counting).await;
    let kept = serve(DnsSettings { prefetch: false, ..asking(&upstream) }, clock);
    let first = resolve(&kept.server, APP, &question("example.com.")).await;
    assert_eq!(first.answers[0].ttl, 100);
    for (age, ttl) in [(1, 99), (50, 50), (99, 1)] {
        time.store(NOW.0 + age, Ordering::SeqCst);
        let reply = resolve(&kept.server, APP, &question("EXAMPLE.com.")).await;
        assert_eq!(reply.answers[0].ttl, ttl);
        assert_eq!(reply.answers[0].data, first.answers[0].data);
        assert_eq!(reply.queries[0].name().to_string(), "EXAMPLE.com.");
    }
    assert_eq!(upstream.asked(), (1, 0));
    time.store(NOW.0 + 100, Ordering::SeqCst);
    let reply = resolve(&kept.server, APP, &question("example.com.")).await;
    assert_eq!((reply.answers[0].ttl, upstream.asked()), (100, (2, 0)));
    // A clock that is set back makes no answer live longer.
    time.store(NOW.0 - 5000, Ordering::SeqCst);
    resolve(&kept.server, APP, &question("example.com.")).await;
    assert_eq!(upstream.asked(), (3, 0));
}

#[tokio::test]
async fn times_have_bounds() {
    let (clock, _) = own_clock!();
    let upstream = ScriptedUpstream::start(|query, mut reply, _| {
        let name = query.queries[0].name().clone();
        let soa = SOA::new(name.clone(), name.clone(), 1, 1, 1, 1, 5000);
        match name.to_string().as_str() {
            "long.example.com." => {
                reply.add_answer(a("long.example.com.", 5000, [203, 0, 113, 1]));
            }
            "short.example.com." => {
                reply.add_answer(a("short.example.com.", 1, [203, 0, 113, 1]));
            }
            // RFC 2181 §8: "Implementations should treat TTL values received with the most significant bit set as if
            // the entire value received was zero."
            "signed.example.com." => {
                reply.add_answer(a("signed.example.com.", 0x8000_0001, [203, 0, 113, 1]));
            }
            _ => {
                reply.metadata.response_code = ResponseCode::NXDomain;
                reply.add_authority(Record::from_rdata(name, 5000, RData::SOA(soa)));
            }
        }
        Some(reply)
    })
    .await;
    let ttl = TtlBounds { min: 10, max: 600, negative_max: 60 };
    let kept = serve(DnsSettings { ttl, ..asking(&upstream) }, clock);
    for (name, ttl) in [("long", 600), ("short", 10), ("signed", 10), ("missing", 60)] {
        let reply = resolve(&kept.server, APP, &question(&format!("{name}.example.com."))).await;
        let record = reply.answers.first().or(reply.authorities.first()).unwrap();
        assert_eq!(record.ttl, ttl, "{name}");
    }
}

#[tokio::test]
async fn a_flush_forgets_a_name_and_what_is_below_it() {
    let (clock, _) = own_clock!();
    let upstream = ScriptedUpstream::start(counting).await;
    let kept = serve(asking(&upstream), clock);
    let names = ["example.com.", "www.example.com.", "example.net.", "xexample.com."];
    for name in names {
        resolve(&kept.server, APP, &question(name)).await;
    }
    assert_eq!(kept.forwarder.status().cached, 4);
    assert_eq!(kept.forwarder.flush(Some(&"example.com".parse().unwrap())), 2);
    for name in names {
        resolve(&kept.server, APP, &question(name)).await;
    }
    assert_eq!(upstream.asked(), (6, 0));
    assert_eq!(kept.forwarder.flush(None), 4);
    assert_eq!(kept.forwarder.status().cached, 0);
    resolve(&kept.server, APP, &question("example.net.")).await;
    assert_eq!(upstream.asked(), (7, 0));
}

#[tokio::test]
async fn no_more_is_kept_than_there_is_room_for() {
    let (clock, _) = own_clock!();
    let upstream = ScriptedUpstream::start(counting).await;
    let kept = serve(DnsSettings { cache_size: 20, ..asking(&upstream) }, clock);
    for number in 0..100 {
        resolve(&kept.server, APP, &question(&format!("n{number}.example.com."))).await;
    }
    assert!((15..=20).contains(&kept.forwarder.status().cached), "{:?}", kept.forwarder.status());
    // What was asked for last is what is kept.
    resolve(&kept.server, APP, &question("n99.example.com.")).await;
    assert_eq!(upstream.asked(), (100, 0));
}

/// Many clients, one question.
#[tokio::test]
async fn the_same_question_is_asked_once_at_a_time() {
    let (clock, _) = own_clock!();
    let upstream = ScriptedUpstream::start(counting).await;
    let kept = serve(asking(&upstream), clock);
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let server = kept.server.clone();
        clients.spawn(async move { resolve(&server, APP, &question("example.com.")).await });
    }
    let replies = clients.join_all().await;
    assert!(replies.iter().all(|reply| reply.answers == replies[0].answers && reply.answers.len() == 1));
    assert_eq!((upstream.asked(), kept.forwarder.status().joined), ((1, 0), 49));
}

/// Answers until it is told to be silent.
static SILENT: AtomicUsize = AtomicUsize::new(0);

fn until_silent(query: &Message, mut reply: Message, tcp: bool) -> Option<Message> {
    match SILENT.load(Ordering::SeqCst) {
        0 => counting(query, reply, tcp),
        1 => {
            reply.metadata.response_code = ResponseCode::ServFail;
            Some(reply)
        }
        _ => None,
    }
}

/// RFC 8767 §4: "If the data is unable to be authoritatively refreshed when the TTL expires, the record MAY be used as
/// though it is unexpired"; §5: "when no authorities are able to be reached during a resolution attempt, the resolver
/// should attempt to refresh the delegation [...]" but not more often than its failure recheck timer says.
#[tokio::test]
async fn what_is_over_is_better_than_nothing() {
    let (clock, time) = own_clock!();
    let upstream = ScriptedUpstream::start(until_silent).await;
    let kept = serve(asking(&upstream), clock);
    let first = resolve(&kept.server, APP, &question("example.com.")).await;
    SILENT.store(1, Ordering::SeqCst);
    time.store(NOW.0 + 200, Ordering::SeqCst);
    let reply = resolve(&kept.server, APP, &question("example.com.")).await;
    assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
    assert_eq!(reply.answers[0].data, first.answers[0].data);
    assert_eq!((reply.answers[0].ttl, ede(&reply)), (30, Some(Ede::StaleAnswer as u16)));
    let asked = upstream.asked();
    for _ in 0..5 {
        resolve(&kept.server, APP, &question("example.com.")).await;
    }
    assert_eq!(upstream.asked(), asked, "asked again within the recheck time");
    assert_eq!(kept.forwarder.status().stale, 6);
    // One that does not answer at all is not waited for longer than a client has patience.
    SILENT.store(2, Ordering::SeqCst);
    time.store(NOW.0 + 210, Ordering::SeqCst);
    let started = std::time::Instant::now();
    let reply = resolve(&kept.server, APP, &question("example.com.")).await;
    assert_eq!(ede(&reply), Some(3));
    assert!(started.elapsed() < Duration::from_millis(2400), "{:?}", started.elapsed());
    // It recovers by itself.
    SILENT.store(0, Ordering::SeqCst);
    time.store(NOW.0 + 230, Ordering::SeqCst);
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    loop {
        let reply = resolve(&kept.server, APP, &question("example.com.")).await;
        if ede(&reply).is_none() {
            assert!(reply.answers[0].data != first.answers[0].data);
            break;
        }
        assert!(std::time::Instant::now() < deadline, "{reply}");
        time.fetch_add(6, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn nothing_is_given_out_forever() {
    let (clock, time) = own_clock!();
    let upstream = ScriptedUpstream::start(|query, reply, tcp| {
        static FIRST: AtomicUsize = AtomicUsize::new(0);
        match FIRST.fetch_add(1, Ordering::SeqCst) {
            0 | 1 => counting(query, reply, tcp),
            _ => {
                let mut reply = reply;
                reply.metadata.response_code = ResponseCode::ServFail;
                Some(reply)
            }
        }
    })
    .await;
    let off = serve(DnsSettings { serve_stale: 0, ..asking(&upstream) }, clock);
    let brief = serve(DnsSettings { serve_stale: 50, ..asking(&upstream) }, clock);
    for server in [&off.server, &brief.server] {
        assert_eq!(resolve(server, APP, &question("example.com.")).await.answers.len(), 1);
    }
    for (age, by_off, by_brief) in [(100, 0, 1), (149, 0, 1), (160, 0, 0)] {
        time.store(NOW.0 + age, Ordering::SeqCst);
        for (server, answers) in [(&off.server, by_off), (&brief.server, by_brief)] {
            let reply = resolve(server, APP, &question("example.com.")).await;
            assert_eq!(reply.answers.len(), answers, "{age}");
            assert_eq!(reply.metadata.response_code == ResponseCode::ServFail, answers == 0);
        }
    }
}

/// A popular name is fetched again before its time is over, and nobody waits for it.
#[tokio::test]
async fn popular_names_are_fetched_early() {
    let (clock, time) = own_clock!();
    let upstream = ScriptedUpstream::start(counting).await;
    let kept = serve(asking(&upstream), clock);
    let asked = question("example.com.");
    let ask = || resolve(&kept.server, APP, &asked);
    let first = ask().await;
    for age in [10, 20, 89] {
        time.store(NOW.0 + age, Ordering::SeqCst);
        assert_eq!(ask().await.answers[0].data, first.answers[0].data);
    }
    assert_eq!(upstream.asked(), (1, 0));
    time.store(NOW.0 + 92, Ordering::SeqCst);
    let last = ask().await;
    assert_eq!((last.answers[0].ttl, &last.answers[0].data), (8, &first.answers[0].data));
    tokio::time::timeout(Duration::from_secs(5), async {
        while ask().await.answers[0].ttl != 100 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    assert_eq!((upstream.asked(), kept.forwarder.status().prefetched), ((2, 0), 1));
}

/// RFC 9520 §3.2: "Resolvers MUST cache resolution failures for at least 1 second."
#[tokio::test]
async fn failures_are_kept_a_moment() {
    let (clock, time) = own_clock!();
    let upstream = ScriptedUpstream::start(|_, mut reply, _| {
        reply.metadata.response_code = ResponseCode::ServFail;
        let mut edns = Edns::new();
        edns.options_mut().insert(EdnsOption::Unknown(15, vec![0, 6]));
        reply.set_edns(edns);
        Some(reply)
    })
    .await;
    let kept = serve(asking(&upstream), clock);
    for _ in 0..5 {
        let reply = resolve(&kept.server, APP, &question("example.com.")).await;
        assert_eq!((reply.metadata.response_code, ede(&reply)), (ResponseCode::ServFail, Some(6)));
    }
    let asked = upstream.asked();
    assert_eq!(asked, (2, 0), "one question, and once more");
    let plain = resolve(&kept.server, APP, &query("example.com.", RecordType::A)).await;
    assert!(plain.edns.is_none(), "RFC 6891 §6.1.1: no OPT in a reply to a query without one");
    time.store(NOW.0 + 5, Ordering::SeqCst);
    resolve(&kept.server, APP, &question("example.com.")).await;
    assert_eq!(upstream.asked(), (4, 0));
}

/// Clients that want signatures get them from answers that have them, and others do not.
#[tokio::test]
async fn who_wants_signatures_is_answered_apart() {
    let (clock, _) = own_clock!();
    let upstream = ScriptedUpstream::start(|query, mut reply, _| {
        reply.add_answer(a("example.com.", 100, [203, 0, 113, 1]));
        let signature = RData::Unknown {
            code: RecordType::RRSIG,
            rdata: hickory_proto::rr::rdata::NULL::with(vec![0, 1, 13, 2, 0, 0, 0, 100]),
        };
        if query.edns.as_ref().is_some_and(|edns| edns.flags().dnssec_ok) {
            let owner = Name::from_ascii("example.com.").unwrap();
            reply.add_answer(Record::from_rdata(owner, 100, signature));
        }
        Some(reply)
    })
    .await;
    let kept = serve(asking(&upstream), clock);
    let mut signed = question("example.com.");
    signed.edns.as_mut().unwrap().set_dnssec_ok(true);
    for _ in 0..2 {
        let reply = resolve(&kept.server, APP, &signed).await;
        assert_eq!(reply.answers.len(), 2, "{reply}");
        assert!(reply.edns.as_ref().unwrap().flags().dnssec_ok && !reply.metadata.authentic_data);
        assert_eq!(resolve(&kept.server, APP, &question("example.com.")).await.answers.len(), 1);
    }
    assert_eq!(upstream.asked(), (2, 0));
}

/// What a data thread has at hand is written behind each client's own question, fitted to what that client takes, runs
/// down, is fetched again when it is popular, and is gone after a flush.
#[tokio::test]
async fn answers_at_hand_are_everybodys_own() {
    let (clock, time) = own_clock!();
    let upstream = ScriptedUpstream::start(|query, mut reply, tcp| {
        let name = query.queries[0].name().to_string();
        if name.starts_with("long") {
            reply.answers.extend((0..40).map(|last| a(&name, 100, [203, 0, 113, last])));
            return Some(reply);
        }
        counting(query, reply, tcp)
    })
    .await;
    let kept = serve(asking(&upstream), clock);
    let socket = proximity_dns::listen_udp("127.0.0.1:0".parse().unwrap()).unwrap();
    let addr = socket.local_addr().unwrap();
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let server = kept.server.clone();
    let serving = tokio::spawn(async move { server.serve_udp(socket, stopped).await });
    let client = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    client.connect(addr).await.unwrap();
    let ask = async |message: &Message| {
        client.send(&message.to_vec().unwrap()).await.unwrap();
        let mut wire = [0; 4096];
        let received = tokio::time::timeout(Duration::from_secs(5), client.recv(&mut wire)).await;
        Message::from_vec(&wire[..received.unwrap().unwrap()]).unwrap()
    };
    let first = ask(&question("example.com.")).await;
    for (age, name, id) in [(1, "EXAMPLE.com.", 7), (2, "example.COM.", 8), (3, "eXaMpLe.CoM.", 9)] {
        time.store(NOW.0 + age, Ordering::SeqCst);
        let mut asked = question(name);
        asked.metadata.id = id;
        asked.metadata.checking_disabled = false;
        let reply = ask(&asked).await;
        assert_eq!((reply.metadata.id, reply.queries[0].name().to_string()), (id, name.to_owned()));
        assert_eq!(reply.answers[0].name.to_string(), name, "the owner is the question");
        assert_eq!(
            (u64::from(reply.answers[0].ttl), &reply.answers[0].data),
            (100 - age, &first.answers[0].data)
        );
        assert!(reply.metadata.recursion_available && !reply.metadata.authoritative && reply.edns.is_some());
    }
    assert!(ask(&query("example.com.", RecordType::A)).await.edns.is_none());
    assert_eq!(upstream.asked(), (1, 0));
    // It is popular by now; the thread has no runtime of its own to ask in.
    time.store(NOW.0 + 95, Ordering::SeqCst);
    assert_eq!(ask(&question("example.com.")).await.answers[0].ttl, 5);
    while kept.forwarder.status().upstreams[0].answers < 2 {
        tokio::task::yield_now().await;
    }
    while ask(&question("example.com.")).await.answers[0].ttl != 100 {
        tokio::task::yield_now().await;
    }
    assert_eq!(kept.forwarder.status().prefetched, 1);
    // The same answer is whole for one client and too long for another.
    for (size, answers) in [(1232, 40), (512, 0), (1232, 40)] {
        let reply = ask(&with_edns(query("long.example.com.", RecordType::A), size)).await;
        assert_eq!((reply.answers.len(), reply.metadata.truncation), (answers, answers == 0));
        assert!(reply.edns.is_some());
    }
    assert_eq!(upstream.asked(), (3, 0));
    kept.forwarder.flush(Some(&"long.example.com".parse().unwrap()));
    ask(&question("long.example.com.")).await;
    ask(&question("example.com.")).await;
    assert_eq!(upstream.asked(), (4, 0));
    stop.send_replace(true);
    serving.await.unwrap();
}
