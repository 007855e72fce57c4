//! Headers, EDNS, sizes: what holds for every reply.

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{DNSClass, RecordType};
use proximity_dns::{Asker, Malformed, Outcome, Rcode, Transport, answer};

use crate::fixture::*;

fn ask_wire(wire: &[u8]) -> (Outcome, Vec<u8>) {
    let mut out = b"left over".to_vec();
    let outcome = answer(&world(), NOW, Asker { client: APP, transport: Transport::Udp }, wire, &mut out);
    (outcome, out)
}

/// RFC 1035 §4.1.1: the identifier and RD are copied, RFC 4035 §3.2.2: "A security-aware name server MUST copy the
/// CD bit from a query into the corresponding response." Z and AD are not ours to set.
#[test]
fn the_header_mirrors_the_query() {
    let mut wire = query("nginx.prox.local.", RecordType::A).to_vec().unwrap();
    wire[..4].copy_from_slice(&[0xab, 0xcd, 0x01, 0x70]);
    let (_, out) = ask_wire(&wire);
    assert_eq!(out[..4], [0xab, 0xcd, 0x85, 0x90]);
}

/// draft-vixie-dnsext-dns0x20 §2.2: the question's octets come back as they were.
#[test]
fn the_case_of_the_question_is_kept() {
    let asked = query("NgInX.pRoX.LoCaL.", RecordType::A);
    let (_, reply) = ask_over(&world(), Transport::Udp, APP, &asked);
    assert!(reply.queries[0].name().eq_case(asked.queries[0].name()));
    assert!(reply.answers[0].name.eq_case(asked.queries[0].name()));
    assert_eq!(reply.answers.len(), 1);
}

/// RFC 1035 §4.1.4: names that repeat are pointers to their first place.
#[test]
fn repeated_names_are_pointers() {
    let (_, out) = ask_wire(&query("nginx.prox.local.", RecordType::A).to_vec().unwrap());
    // Header, question (18 + 4), and a record of 2 + 10 + 4 octets.
    assert_eq!(out.len(), 12 + 22 + 16);
    assert_eq!(out[34..36], [0xc0, 0x0c]);
    let (_, out) = ask_wire(&query("nobody.prox.local.", RecordType::A).to_vec().unwrap());
    // The zone is a pointer into the question, and so are the ends of the names in the SOA record.
    assert_eq!(out.len(), 12 + 23 + 2 + 10 + (15 + 2) + (11 + 2) + 20);
    assert_eq!(Message::from_vec(&out).unwrap().authorities[0].name.to_string(), "prox.local.");
}

/// RFC 1035 §4.1.1 (RCODE 5): what is not ours to answer is refused.
#[test]
fn other_classes_and_meta_types_are_refused() {
    for class in [DNSClass::CH, DNSClass::HS, DNSClass::ANY] {
        let mut asked = query("version.bind.", RecordType::TXT);
        asked.queries[0].query_class = class;
        let (outcome, _) = ask_over(&world(), Transport::Udp, APP, &asked);
        assert_eq!(outcome, Outcome::Answered(Rcode::Refused));
    }
    for rtype in [RecordType::AXFR, RecordType::IXFR, RecordType::from(250), RecordType::from(0)] {
        let (outcome, _) = ask_over(&world(), Transport::Tcp, APP, &query("prox.local.", rtype));
        assert_eq!(outcome, Outcome::Answered(Rcode::Refused), "{rtype}");
    }
}

/// RFC 3597 §3: types that nobody knows are looked up like others.
#[test]
fn unknown_types_are_no_data() {
    let reply = ask(&world(), "nginx.prox.local.", RecordType::from(65_280));
    assert_eq!((reply.metadata.response_code, reply.authorities.len()), (ResponseCode::NoError, 1));
}

/// RFC 1035 §4.1.1: RCODE 4, "The name server does not support the requested kind of query."
#[test]
fn other_opcodes_are_not_implemented() {
    let mut wire = query("prox.local.", RecordType::SOA).to_vec().unwrap();
    for opcode in 1..16u8 {
        wire[2] = opcode << 3;
        let (outcome, out) = ask_wire(&wire);
        assert_eq!(outcome, Outcome::Answered(Rcode::NotImp));
        assert_eq!((out.len(), out[2], out[3] & 0xf), (12, 0x80 | opcode << 3, 4));
    }
}

/// RFC 9619 §4: "A DNS message with OPCODE = 0 MUST NOT include a QDCOUNT parameter whose value is greater than 1.
/// It follows that the Question section of a DNS message with OPCODE = 0 MUST NOT contain more than one question.
/// A DNS message with OPCODE = 0 and QDCOUNT > 1 MUST be treated as an incorrectly formatted message."
#[test]
fn two_questions_are_a_format_error() {
    let mut asked = query("nginx.prox.local.", RecordType::A);
    asked.add_query(asked.queries[0].clone());
    let (outcome, out) = ask_wire(&asked.to_vec().unwrap());
    assert_eq!(outcome, Outcome::Malformed(Malformed::QuestionCount));
    let reply = Message::from_vec(&out).unwrap();
    assert_eq!((reply.metadata.id, reply.metadata.response_code), (0x4242, ResponseCode::FormErr));
}

/// RFC 6891 §6.1.1: "If an OPT record is present in a received request, compliant responders MUST include an OPT
/// record in their respective responses." §7: "lack of presence of an OPT record in a request MUST be taken as an
/// indication that the requestor does not implement any part of this specification and that the responder MUST
/// NOT include an OPT record in its response." RFC 3225 §3: "The DO bit of the query MUST be copied".
#[test]
fn opt_answers_opt() {
    let world = world();
    for name in ["nginx.prox.local.", "nobody.prox.local."] {
        let (_, reply) = ask_over(&world, Transport::Udp, APP, &query(name, RecordType::A));
        assert!(reply.edns.is_none());
        let mut asked = with_edns(query(name, RecordType::A), 4096);
        asked.edns.as_mut().unwrap().set_dnssec_ok(true);
        let (_, reply) = ask_over(&world, Transport::Udp, APP, &asked);
        let edns = reply.edns.unwrap();
        assert_eq!((edns.version(), edns.max_payload(), edns.flags().dnssec_ok), (0, 1232, true));
    }
    let (_, reply) =
        ask_over(&world, Transport::Udp, STRANGER, &with_edns(query("a.example.", RecordType::A), 512));
    assert!(reply.edns.is_some() && reply.metadata.response_code == ResponseCode::Refused);
}

/// RFC 6891 §6.1.3: "If a responder does not implement the VERSION level of the request, then it MUST respond with
/// RCODE=BADVERS. [...] All responses MUST be limited in format to the VERSION level of the request, and the
/// VERSION of each response SHOULD be the highest implementation level of the responder."
#[test]
fn unknown_edns_versions_get_badvers() {
    let mut asked = with_edns(query("nginx.prox.local.", RecordType::A), 1232);
    asked.edns.as_mut().unwrap().set_version(1);
    let (outcome, reply) = ask_over(&world(), Transport::Udp, APP, &asked);
    assert_eq!(outcome, Outcome::Answered(Rcode::BadVers));
    assert_eq!(u16::from(reply.metadata.response_code), 16);
    assert!(reply.answers.is_empty());
    assert_eq!(reply.edns.unwrap().version(), 0);
}

/// RFC 1035 §4.2.1: "Messages carried by UDP are restricted to 512 bytes [...] Longer messages are truncated and
/// the TC bit is set in the header." RFC 6891 §6.2.5: "Values lower than 512 MUST be treated as equal to 512."
#[test]
fn replies_keep_to_the_size_that_the_client_takes() {
    let text = "x".repeat(450);
    let world = world_with(&[
        ("mid", "TXT", text.as_str()),
        ("big", "TXT", text.as_str()),
        ("big", "TXT", "second"),
        ("huge", "TXT", &"y".repeat(4000)),
    ]);
    let reply_to = |transport, asked: &Message| {
        let mut out = Vec::new();
        let asker = Asker { client: APP, transport };
        assert_eq!(
            answer(&world, NOW, asker, &asked.to_vec().unwrap(), &mut out),
            Outcome::Answered(Rcode::NoError)
        );
        (out.len(), Message::from_vec(&out).unwrap())
    };
    let (length, reply) = reply_to(Transport::Udp, &query("mid.prox.local.", RecordType::TXT));
    assert!(length <= 512 && !reply.metadata.truncation && reply.answers.len() == 1);
    for size in [None, Some(0), Some(512)] {
        let asked = query("big.prox.local.", RecordType::TXT);
        let asked = size.map_or(asked.clone(), |size| with_edns(asked, size));
        let (length, reply) = reply_to(Transport::Udp, &asked);
        assert!(length <= 512 && reply.metadata.truncation && reply.answers.is_empty(), "{size:?} {reply}");
        assert_eq!(reply.edns.is_some(), size.is_some());
    }
    let (length, reply) =
        reply_to(Transport::Udp, &with_edns(query("big.prox.local.", RecordType::TXT), 1232));
    assert!(length > 512 && !reply.metadata.truncation && reply.answers.len() == 2);
    // What the client takes is bounded by what we send, lest fragments get lost.
    let (_, reply) = reply_to(Transport::Udp, &with_edns(query("huge.prox.local.", RecordType::TXT), 65_535));
    assert!(reply.metadata.truncation);
    let (length, reply) = reply_to(Transport::Tcp, &query("huge.prox.local.", RecordType::TXT));
    assert!(length > 4000 && !reply.metadata.truncation && reply.answers.len() == 1);
}

/// RFC 2181 §9: "The TC bit should not be set merely because some extra information could have been included, but
/// there was insufficient room."
#[test]
fn extra_records_are_left_out_without_truncation() {
    let hosts: Vec<String> = (0..12).map(|index| format!("10 exchange-{index:02}")).collect();
    let names: Vec<String> = (0..12).map(|index| format!("exchange-{index:02}")).collect();
    let mut records: Vec<(&str, &str, &str)> = hosts.iter().map(|host| ("mx", "MX", host.as_str())).collect();
    records.extend(names.iter().map(|name| (name.as_str(), "A", "10.20.0.25")));
    let world = world_with(&records);
    let (_, reply) = ask_over(&world, Transport::Udp, APP, &query("mx.prox.local.", RecordType::MX));
    assert_eq!(reply.answers.len(), 12);
    assert!(
        !reply.metadata.truncation && !reply.additionals.is_empty() && reply.additionals.len() < 12,
        "{reply}"
    );
}
