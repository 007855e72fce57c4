//! Names of our zones that other servers answer for, and names of others that we answer for.

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;
use proximity_dns::{Outcome, Rcode, Transport};
use proximity_table::World;

use crate::fixture::*;

fn delegating() -> World {
    world_with(&[
        ("lab", "NS", "ns.lab"),
        ("lab", "NS", "ns2.example.com."),
        ("ns.lab", "A", "10.20.0.70"),
        ("ns.lab", "AAAA", "fd00::70"),
        ("www.lab", "A", "10.20.0.71"),
        ("inner.lab", "NS", "ns"),
        ("to-lab", "CNAME", "www.lab"),
        ("40.0.20.10.in-addr.arpa.", "NS", "ns.lab"),
    ])
}

/// RFC 1034 §4.3.2 step 3b: "If a match would take us out of the authoritative data, we have a referral. [...] Copy
/// the NS RRs for the subzone into the authority section of the reply. Put whatever addresses are available into
/// the additional section, using glue RRs". RFC 1034 §6.2.6: such a response is not authoritative.
#[test]
fn a_delegated_name_is_a_referral() {
    let world = delegating();
    for (name, rtype) in [
        ("lab.prox.local.", RecordType::A),
        ("lab.prox.local.", RecordType::NS),
        ("lab.prox.local.", RecordType::SOA),
        ("www.lab.prox.local.", RecordType::A),
        ("nobody.lab.prox.local.", RecordType::MX),
        // The highest cut counts: what lies below it is not ours, whatever was written of it.
        ("x.inner.lab.prox.local.", RecordType::A),
        ("ns.lab.prox.local.", RecordType::A),
    ] {
        let mut asked = query(name, rtype);
        asked.metadata.recursion_desired = false;
        let (outcome, reply) = ask_over(&world, Transport::Udp, STRANGER, &asked);
        assert_eq!(outcome, Outcome::Answered(Rcode::NoError), "{name}");
        assert!(!reply.metadata.authoritative && reply.answers.is_empty(), "{reply}");
        assert_eq!(
            lines(&reply.authorities),
            ["lab.prox.local. 120 NS ns.lab.prox.local.", "lab.prox.local. 120 NS ns2.example.com."]
        );
        assert_eq!(
            lines(&reply.additionals),
            ["ns.lab.prox.local. 120 A 10.20.0.70", "ns.lab.prox.local. 120 AAAA fd00::70"]
        );
    }
}

/// Stub resolvers follow no referrals: who may ask for recursion gets the end of the matter.
#[test]
fn for_those_who_may_the_servers_are_asked() {
    let world = delegating();
    let asked = query("WWW.lab.prox.local.", RecordType::A);
    let (outcome, partial) = ask_over(&world, Transport::Udp, APP, &asked);
    let Outcome::Delegated(delegated) = outcome else { panic!("{outcome:?}") };
    assert_eq!(&*delegated.name, b"\x03www\x03lab\x04prox\x05local\x00");
    assert_eq!(&*delegated.cut, b"\x03lab\x04prox\x05local\x00");
    assert_eq!(
        delegated.servers,
        ["10.20.0.70".parse::<std::net::IpAddr>().unwrap(), "fd00::70".parse().unwrap()]
    );
    assert!(partial.answers.is_empty() && !partial.metadata.authoritative);
    // Strangers are told where to ask.
    let (outcome, reply) = ask_over(&world, Transport::Udp, STRANGER, &asked);
    assert_eq!(outcome, Outcome::Answered(Rcode::NoError));
    assert_eq!(reply.authorities.len(), 2);
    // A reverse name can be delegated too.
    let asked = query("40.0.20.10.in-addr.arpa.", RecordType::PTR);
    assert!(matches!(ask_over(&world, Transport::Udp, APP, &asked).0, Outcome::Delegated(_)));
}

/// The alias is ours and authoritative, its target is not.
#[test]
fn an_alias_may_lead_into_a_delegation() {
    let world = delegating();
    let asked = query("to-lab.prox.local.", RecordType::A);
    let (outcome, partial) = ask_over(&world, Transport::Udp, APP, &asked);
    assert!(matches!(outcome, Outcome::Delegated(_)), "{outcome:?}");
    assert_eq!(lines(&partial.answers), ["to-lab.prox.local. 120 CNAME www.lab.prox.local."]);
    let (_, reply) = ask_over(&world, Transport::Udp, STRANGER, &asked);
    assert!(reply.metadata.authoritative, "the first owner's name is ours (RFC 1035 §4.1.1)");
    assert_eq!((reply.answers.len(), reply.authorities.len()), (1, 2));
}

/// RFC 4035 §3.1.4.1: DS records are at the parent's side of a cut.
#[test]
fn the_parent_answers_for_ds() {
    let reply = ask(&delegating(), "lab.prox.local.", RecordType::DS);
    assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
    assert_eq!(reply.authorities[0].record_type(), RecordType::SOA);
    assert_eq!(reply.authorities[0].name.to_string(), "prox.local.");
}

/// What is beside a delegation stays ours, and an NS record of an apex changes nothing.
#[test]
fn names_beside_a_delegation_stay_ours() {
    let world = world_with(&[("lab", "NS", "ns.lab"), ("@", "NS", "elsewhere.example.")]);
    assert_eq!(ask(&world, "nginx.prox.local.", RecordType::A).answers.len(), 1);
    let reply = ask(&world, "xlab.prox.local.", RecordType::A);
    assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain);
    let reply = ask(&world, "prox.local.", RecordType::NS);
    assert_eq!(lines(&reply.answers), ["prox.local. 300 NS prox-appliance.prox.local."]);
}

/// A record outside our domains is answered in the place of its owner's servers: all types of its name, and nothing
/// else of that domain.
#[test]
fn a_name_of_others_can_be_overridden() {
    let world = world_with(&[
        ("nas.example.com.", "A", "10.20.0.80"),
        ("*.lan.", "A", "10.20.0.81"),
        ("own.lan.", "TXT", "own"),
        ("pc.example.org.", "CNAME", "nginx"),
        ("9.9.168.192.in-addr.arpa.", "PTR", "nas.example.com."),
        ("x.y.9.168.192.in-addr.arpa.", "TXT", "deep"),
    ]);
    for (name, rtype, answers) in [
        ("nas.example.com.", RecordType::A, &["nas.example.com. 120 A 10.20.0.80"][..]),
        ("nas.example.com.", RecordType::AAAA, &[]),
        ("printer.lan.", RecordType::A, &["printer.lan. 120 A 10.20.0.81"]),
        ("a.b.lan.", RecordType::A, &["a.b.lan. 120 A 10.20.0.81"]),
        ("own.lan.", RecordType::TXT, &["own.lan. 120 TXT own"]),
        ("own.lan.", RecordType::A, &[]),
        (
            "pc.example.org.",
            RecordType::A,
            &["pc.example.org. 120 CNAME nginx.prox.local.", "nginx.prox.local. 60 A 10.20.0.101"],
        ),
        (
            "9.9.168.192.in-addr.arpa.",
            RecordType::PTR,
            &["9.9.168.192.in-addr.arpa. 120 PTR nas.example.com."],
        ),
        // RFC 8020 §2: it exists, for something is below.
        ("y.9.168.192.in-addr.arpa.", RecordType::PTR, &[]),
    ] {
        let reply = ask(&world, name, rtype);
        assert_eq!(reply.metadata.response_code, ResponseCode::NoError, "{name}");
        assert_eq!(lines(&reply.answers), answers, "{name}");
        let soa = reply.authorities.iter().filter(|r| r.record_type() == RecordType::SOA).count();
        assert_eq!(soa, usize::from(answers.is_empty()), "{name}");
    }
    for elsewhere in ["example.com.", "www.example.com.", "x.nas.example.com.", "lan.", "example.net."] {
        let asked = query(elsewhere, RecordType::A);
        let (outcome, _) = ask_over(&world, Transport::Udp, APP, &asked);
        assert!(matches!(outcome, Outcome::Forward(_)), "{elsewhere} {outcome:?}");
    }
}

/// RFC 9460 §2.2: the value goes as it is, with no name in it compressed.
#[test]
fn service_bindings_are_answered() {
    let world = world_with(&[
        ("nginx", "HTTPS", "1 . alpn=h2,h3 ipv4hint=10.20.0.101"),
        ("_dns.nginx", "SVCB", "1 nginx port=853 alpn=dot"),
    ]);
    let reply = ask(&world, "nginx.prox.local.", RecordType::HTTPS);
    let [record] = &reply.answers[..] else { panic!("{reply}") };
    let text = record.data.to_string();
    for part in ["1 .", "alpn", "h2", "h3", "10.20.0.101"] {
        assert!(text.contains(part), "{text}");
    }
    // The address stays beside it: only a CNAME stands alone.
    assert_eq!(ask(&world, "nginx.prox.local.", RecordType::A).answers.len(), 1);
    let reply = ask(&world, "_dns.nginx.prox.local.", RecordType::SVCB);
    assert!(reply.answers[0].data.to_string().contains("nginx.prox.local."), "{reply}");
    assert_eq!(lines(&reply.additionals), ["nginx.prox.local. 60 A 10.20.0.101"]);
}
