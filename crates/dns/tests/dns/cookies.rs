//! Cookies, keepalive and how often one client may ask.

use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::RecordType;
use hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption};
use proximity_dns::Guards;

use crate::fixture::*;
use crate::transports::{Running, dig, over_udp, read_framed, run, write_framed};

/// A query with an option.
pub fn with_option(message: Message, code: u16, value: &[u8]) -> Vec<u8> {
    let mut message = with_edns(message, 1232);
    let edns = message.edns.as_mut().unwrap();
    edns.options_mut().insert(EdnsOption::Unknown(code, value.to_vec()));
    message.to_vec().unwrap()
}

/// The value of an option of a reply.
pub fn option(reply: &Message, code: u16) -> Option<Vec<u8>> {
    match reply.edns.as_ref()?.option(EdnsCode::from(code))? {
        EdnsOption::Unknown(_, value) => Some(value.clone()),
        other => Vec::<u8>::try_from(other).ok(),
    }
}

async fn guarded(client_rate: u32, upstreams: &[std::net::SocketAddr]) -> Running {
    let guards = Guards::new([5; 32]);
    guards.set_rates(client_rate, 0);
    let (server, stats) = server(upstreams);
    run((server.guarded(Arc::new(guards)), stats)).await
}

/// RFC 7873 §5.2.3: "the server SHALL process the request and provide a normal response"; "a COOKIE option in the
/// response containing the client's cookie and a valid server cookie". RFC 9018 §4: it begins with version 1.
#[tokio::test]
async fn every_reply_brings_a_cookie_to_who_sends_one() {
    let upstream = ScriptedUpstream::start(|query, mut reply, _| {
        reply.add_answer(a(&query.queries[0].name().to_string(), 40, [203, 0, 113, 1]));
        Some(reply)
    })
    .await;
    let running = guarded(0, &[upstream.addr]).await;
    for (name, code) in [
        ("nginx.prox.local.", ResponseCode::NoError),
        ("nobody.prox.local.", ResponseCode::NXDomain),
        ("example.com.", ResponseCode::NoError),
    ] {
        let mut given = Vec::new();
        for _ in 0..2 {
            let wire = with_option(query(name, RecordType::A), 10, &[&b"12345678"[..], &given].concat());
            let reply = over_udp(running.addr, &wire).await;
            assert_eq!(reply.metadata.response_code, code, "{name}");
            let cookie = option(&reply, 10).unwrap();
            assert_eq!((&cookie[..8], cookie.len(), cookie[8]), (&b"12345678"[..], 24, 1), "{name}");
            given = cookie[8..].to_vec();
        }
        // A cookie that is not ours is answered as if there were none.
        let wire = with_option(query(name, RecordType::A), 10, b"12345678 of somebody else");
        assert_eq!(option(&over_udp(running.addr, &wire).await, 10).unwrap()[8..], given);
        let plain = with_edns(query(name, RecordType::A), 1232).to_vec().unwrap();
        assert_eq!(option(&over_udp(running.addr, &plain).await, 10), None);
    }
    let wire = with_option(query("nginx.prox.local.", RecordType::A), 10, b"short");
    assert_eq!(over_udp(running.addr, &wire).await.metadata.response_code, ResponseCode::FormErr);
}

/// dig takes the cookie, checks it and shows it as good when it comes back.
#[tokio::test]
async fn dig_finds_our_cookies_good() {
    let running = guarded(0, &[]).await;
    let text = dig(&running, &["nginx.prox.local", "+cookie=0123456789abcdef"]).await;
    let given = text.split("COOKIE: ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap().to_owned();
    assert!(
        given.starts_with("0123456789abcdef01") && given.len() == 48 && text.contains("(good)"),
        "{text}"
    );
    let text = dig(&running, &["nginx.prox.local", &format!("+cookie={given}")]).await;
    assert!(text.contains("(good)") && text.contains("status: NOERROR"), "{text}");
}

/// RFC 7828 §3.3.2: "A DNS server that receives a query sent using TCP transport that includes an OPT RR (with or
/// without the edns-tcp-keepalive option) MAY include the edns-tcp-keepalive option in the response"; §3.3.1: "over
/// UDP [...] MUST ignore the option".
#[tokio::test]
async fn keepalive_is_told_over_tcp_alone() {
    let running = guarded(0, &[]).await;
    let wire = with_option(query("nginx.prox.local.", RecordType::A), 11, &[]);
    let mut stream = tokio::net::TcpStream::connect(running.addr).await.unwrap();
    write_framed(&mut stream, &Message::from_vec(&wire).unwrap()).await;
    let reply = read_framed(&mut stream).await;
    assert_eq!(option(&reply, 11), Some(vec![0, 100]), "ten seconds, in tenths");
    assert_eq!(option(&over_udp(running.addr, &wire).await, 11), None);
}

/// A client that asks without end is not answered without end, and the others do not feel it.
#[tokio::test]
async fn one_client_may_ask_so_often() {
    let running = guarded(5, &[]).await;
    let wire = query("nginx.prox.local.", RecordType::A).to_vec().unwrap();
    let socket = tokio::net::UdpSocket::bind("127.0.0.9:0").await.unwrap();
    socket.connect(running.addr).await.unwrap();
    for _ in 0..8 {
        socket.send(&wire).await.unwrap();
    }
    let mut room = [0; 512];
    for _ in 0..5 {
        tokio::time::timeout(Duration::from_secs(10), socket.recv(&mut room)).await.unwrap().unwrap();
    }
    // The other is served by the same task, so the eight are done with.
    assert_eq!(over_udp(running.addr, &wire).await.answers.len(), 1);
    let drops = running.stats.snapshot().drops;
    assert!(drops.contains(&("client_rate", 3)), "{drops:?}");
}
