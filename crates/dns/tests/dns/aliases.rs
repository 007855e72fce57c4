//! CNAME records: followed in our zones, and out of them.

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;
use proximity_dns::{Outcome, Rcode, Transport};

use crate::fixture::*;

/// RFC 1034 §3.6.2: "When a name server fails to find a desired RR in the resource set associated with the domain
/// name, it checks to see if the resource set consists of a CNAME record with a matching class. If so, the name
/// server includes the CNAME record in the response and restarts the query at the domain name specified".
#[test]
fn aliases_are_followed_to_the_address() {
    let reply = ask(&world(), "hop.prox.local.", RecordType::A);
    assert_eq!(
        lines(&reply.answers),
        [
            "hop.prox.local. 120 CNAME www.prox.local.",
            "www.prox.local. 120 CNAME nginx.prox.local.",
            "nginx.prox.local. 60 A 10.20.0.101",
        ]
    );
}

/// RFC 6604 §3: the code of a chain is that of the last name.
#[test]
fn the_end_of_the_chain_gives_the_code() {
    let world = world();
    let reply = ask(&world, "dangling.prox.local.", RecordType::A);
    assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain);
    assert_eq!(lines(&reply.answers), ["dangling.prox.local. 120 CNAME nobody.prox.local."]);
    let reply = ask(&world, "www.prox.local.", RecordType::AAAA);
    assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
    assert_eq!((reply.answers.len(), reply.authorities.len()), (1, 1));
}

#[test]
fn loops_end() {
    let world = world();
    let reply = ask(&world, "loop1.prox.local.", RecordType::A);
    assert_eq!(
        lines(&reply.answers),
        ["loop1.prox.local. 120 CNAME loop2.prox.local.", "loop2.prox.local. 120 CNAME loop1.prox.local."]
    );
    assert_eq!(ask(&world, "self.prox.local.", RecordType::A).answers.len(), 1);
}

#[test]
fn long_chains_end() {
    let names: Vec<(String, String)> =
        (0..40).map(|index| (format!("c{index}"), format!("c{}", index + 1))).collect();
    let records: Vec<(&str, &str, &str)> =
        names.iter().map(|(name, target)| (name.as_str(), "CNAME", target.as_str())).collect();
    let world = world_with(&records);
    let asked = with_edns(query("c0.prox.local.", RecordType::A), 1232);
    let (outcome, reply) = ask_over(&world, Transport::Udp, APP, &asked);
    assert_eq!(outcome, Outcome::Answered(Rcode::NoError));
    assert_eq!(reply.answers.len(), 9);
}

/// An alias to a name of others: whoever may not ask about those gets the alias alone.
#[test]
fn aliases_out_of_our_zones_are_asked_elsewhere() {
    let world = world();
    let asked = query("blog.prox.local.", RecordType::A);
    let (outcome, partial) = ask_over(&world, Transport::Udp, APP, &asked);
    let Outcome::Forward(foreign) = outcome else { panic!("{outcome:?}") };
    assert_eq!(&*foreign.name, b"\x03web\x07example\x03com\x00");
    assert_eq!(lines(&partial.answers), ["blog.prox.local. 120 CNAME web.example.com."]);
    let (outcome, reply) = ask_over(&world, Transport::Udp, STRANGER, &asked);
    assert_eq!(outcome, Outcome::Answered(Rcode::NoError));
    assert_eq!(lines(&reply.answers), ["blog.prox.local. 120 CNAME web.example.com."]);
}

#[tokio::test]
async fn the_whole_chain_reaches_the_client() {
    let upstream = ScriptedUpstream::start(|_, mut reply, _| {
        reply.add_answer(a("web.example.com.", 300, [203, 0, 113, 9]));
        Some(reply)
    })
    .await;
    let (server, _) = server(&[upstream.addr]);
    let reply = resolve(&server, APP, &query("blog.prox.local.", RecordType::A)).await;
    assert_eq!(
        lines(&reply.answers),
        ["blog.prox.local. 120 CNAME web.example.com.", "web.example.com. 300 A 203.0.113.9"]
    );
    assert!(reply.metadata.authoritative && reply.metadata.recursion_available);
}
