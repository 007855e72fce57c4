//! What the WAN sees, and how much of it.

use std::net::Ipv4Addr;
use std::sync::Arc;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{RData, RecordType};
use proximity_dns::{Asker, Guards, Outcome, Rcode, Transport, answer_on_wan};
use proximity_table::{BackendTarget, Change, Generation, Source, Touched, Vhost, World};

use crate::fixture::*;
use crate::transports::{Running, over_udp, read_framed, run, write_framed};

const WAN: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 4);

/// The world with the vhosts `*.shop.prox.local` and `blog.example.com`, and a record outside our domains.
fn world_of_vhosts() -> World {
    let mut facts = world_with(&[("nas.example.org.", "A", "10.20.0.80"), ("lab", "NS", "printer")]).facts;
    for (app, hostname) in [("shop", "*.shop.prox.local"), ("blog", "blog.example.com")] {
        let backend = BackendTarget::App { name: "nginx".parse().unwrap(), port: 80 };
        let vhost = Vhost::new(app.parse().unwrap(), hostname.parse().unwrap(), vec![backend]);
        facts.apply(Change::Vhost(Source::Api, vhost.into()), &mut Touched::default());
    }
    World::derive(facts, Generation(78))
}

fn ask_on_wan(world: &World, query: &Message) -> (Outcome, Message) {
    let mut out = Vec::new();
    let asker = Asker { client: STRANGER, transport: Transport::Udp };
    let outcome = answer_on_wan(world, WAN, asker, &query.to_vec().unwrap(), &mut out);
    (outcome, Message::from_vec(&out).unwrap())
}

#[test]
fn names_of_apps_lead_to_the_appliance() {
    let world = world_of_vhosts();
    for name in ["nginx.prox.local.", "NGINX.prox.local.", "a.shop.prox.local.", "blog.example.com."] {
        let (outcome, reply) = ask_on_wan(&world, &query(name, RecordType::A));
        assert_eq!(outcome, Outcome::Answered(Rcode::NoError), "{name}");
        assert_eq!(reply.answers[0].data, RData::A(WAN.into()));
        assert!(reply.metadata.authoritative && !reply.metadata.recursion_available);
        assert_eq!(reply.queries[0].name().to_string(), name, "in the case of the client");
        // There is an address and nothing else.
        for rtype in [RecordType::AAAA, RecordType::HTTPS, RecordType::TXT, RecordType::SOA] {
            let (_, reply) = ask_on_wan(&world, &query(name, rtype));
            assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
            assert!(reply.answers.is_empty() && reply.authorities[0].record_type() == RecordType::SOA);
        }
    }
    let (_, reply) = ask_on_wan(&world, &query("nginx.prox.local.", RecordType::ANY));
    assert_eq!(lines(&reply.answers), ["nginx.prox.local. 60 A 198.51.100.4"]);
}

/// Neither what others answer for nor what stands beside the apps in our zones: the LAN's addresses stay inside.
#[test]
fn everything_else_is_refused_on_the_wan() {
    let world = world_of_vhosts();
    for (name, rtype) in [
        ("prox.local.", RecordType::A),
        ("prox.local.", RecordType::SOA),
        ("prox.local.", RecordType::NS),
        ("prox-appliance.prox.local.", RecordType::A),
        ("printer.prox.local.", RecordType::A),
        ("nobody.prox.local.", RecordType::A),
        ("x.lab.prox.local.", RecordType::A),
        ("shop.prox.local.", RecordType::A),
        ("nas.example.org.", RecordType::A),
        ("example.com.", RecordType::A),
        ("101.0.20.10.in-addr.arpa.", RecordType::PTR),
        ("localhost.", RecordType::A),
        (".", RecordType::NS),
        ("nginx.prox.local.", RecordType::AXFR),
    ] {
        let (outcome, reply) = ask_on_wan(&world, &query(name, rtype));
        assert_eq!(outcome, Outcome::Answered(Rcode::Refused), "{name} {rtype}");
        assert!(reply.answers.is_empty() && reply.authorities.is_empty() && reply.additionals.is_empty());
    }
}

/// A server on the WAN with so many responses of a kind in a second.
async fn guarded_wan(response_rate: u32) -> Running {
    let guards = Guards::new([5; 32]);
    guards.set_rates(0, response_rate);
    let (server, stats) = server(&[]);
    run((server.guarded(Arc::new(guards)).on_wan(WAN), stats)).await
}

/// Vixie and Schryver: what goes beyond the rate is truncated (slip) or dropped in turn, so that a spoofed source gets
/// nothing out of it and a real one comes back over TCP.
#[tokio::test]
async fn floods_are_answered_sparingly() {
    let running = guarded_wan(3).await;
    let wire = query("nobody.prox.local.", RecordType::A).to_vec().unwrap();
    for _ in 0..3 {
        assert_eq!(over_udp(running.addr, &wire).await.metadata.response_code, ResponseCode::Refused);
    }
    let slipped = over_udp(running.addr, &wire).await;
    assert!(slipped.metadata.truncation && slipped.answers.is_empty());
    let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(running.addr).await.unwrap();
    socket.send(&wire).await.unwrap();
    // The fifth is dropped; the sixth, of its own identifier, slips.
    let mut next = query("nobody.prox.local.", RecordType::A);
    next.metadata.id = 6;
    socket.send(&next.to_vec().unwrap()).await.unwrap();
    let mut room = [0; 512];
    let length = socket.recv(&mut room).await.unwrap();
    let reply = Message::from_vec(&room[..length]).unwrap();
    assert!(reply.metadata.id == 6 && reply.metadata.truncation, "{reply}");
    // Answers are of another kind, and TCP is no flood.
    let asked = query("nginx.prox.local.", RecordType::A);
    assert_eq!(over_udp(running.addr, &asked.to_vec().unwrap()).await.answers.len(), 1);
    let mut stream = tokio::net::TcpStream::connect(running.addr).await.unwrap();
    for _ in 0..10 {
        write_framed(&mut stream, &query("nobody.prox.local.", RecordType::A)).await;
        assert_eq!(read_framed(&mut stream).await.metadata.response_code, ResponseCode::Refused);
    }
    let counted = running.stats.snapshot();
    assert!(counted.drops.contains(&("response_rate", 1)) && counted.slipped == 2, "{counted:?}");
}

/// RFC 7873 §5.2.3: "If the server is under load, it may send BADCOOKIE"; §5.2.5: with a good cookie it answers.
#[tokio::test]
async fn whoever_shows_a_cookie_is_no_flood() {
    let running = guarded_wan(1).await;
    let asked = |server: &[u8]| {
        let value = [&[7u8; 8][..], server].concat();
        crate::cookies::with_option(query("nginx.prox.local.", RecordType::A), 10, &value)
    };
    let first = over_udp(running.addr, &asked(&[])).await;
    assert_eq!(first.answers.len(), 1);
    let server = crate::cookies::option(&first, 10).unwrap()[8..].to_vec();
    let second = over_udp(running.addr, &asked(&[])).await;
    assert_eq!(second.metadata.response_code, ResponseCode::BADCOOKIE);
    assert_eq!(crate::cookies::option(&second, 10).unwrap()[8..], server);
    for _ in 0..5 {
        assert_eq!(over_udp(running.addr, &asked(&server)).await.answers.len(), 1);
    }
    assert_eq!(running.stats.snapshot().answered(Rcode::BadCookie), 1);
}
