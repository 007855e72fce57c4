//! What is in our zones, and what is not.

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{RData, RecordType};
use proximity_dns::{Outcome, Rcode, Transport};
use proximity_table::{BackendTarget, Change, Generation, Source, Touched, Vhost, World};

use crate::fixture::*;

#[test]
fn a_lease_resolves_forward_and_backward() {
    let world = world();
    let reply = ask(&world, "nginx.prox.local.", RecordType::A);
    assert_eq!(lines(&reply.answers), ["nginx.prox.local. 60 A 10.20.0.101"]);
    let reply = ask(&world, "101.0.20.10.in-addr.arpa.", RecordType::PTR);
    assert_eq!(lines(&reply.answers), ["101.0.20.10.in-addr.arpa. 60 PTR nginx.prox.local."]);
}

#[test]
fn a_reservation_resolves_without_a_lease() {
    let world = world();
    assert_eq!(
        lines(&ask(&world, "db.prox.local.", RecordType::A).answers),
        ["db.prox.local. 60 A 10.20.0.10"]
    );
    let reply = ask(&world, "10.0.20.10.in-addr.arpa.", RecordType::PTR);
    assert_eq!(lines(&reply.answers), ["10.0.20.10.in-addr.arpa. 60 PTR db.prox.local."]);
}

/// DESIGN: the time to live is never longer than the lease, and what has ended is not there.
#[test]
fn time_to_live_ends_with_the_lease() {
    let world = world();
    assert_eq!(ask(&world, "brief.prox.local.", RecordType::A).answers[0].ttl, 7);
    assert_eq!(ask(&world, "102.0.20.10.in-addr.arpa.", RecordType::PTR).answers[0].ttl, 7);
    let reply = ask(&world, "gone.prox.local.", RecordType::A);
    assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain);
    let reply = ask(&world, "103.0.20.10.in-addr.arpa.", RecordType::PTR);
    assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain);
}

#[test]
fn every_written_type_is_answered() {
    let world = world();
    for (name, rtype, answers) in [
        ("printer.prox.local.", RecordType::A, &["printer.prox.local. 120 A 10.20.0.50"][..]),
        ("printer.prox.local.", RecordType::AAAA, &["printer.prox.local. 120 AAAA fd00::50"]),
        ("note.prox.local.", RecordType::TXT, &["note.prox.local. 120 TXT hello world"]),
        ("prox.local.", RecordType::MX, &["prox.local. 120 MX 10 mail.prox.local."]),
        ("_pg._tcp.prox.local.", RecordType::SRV, &["_pg._tcp.prox.local. 120 SRV 0 5 5432 db.prox.local."]),
        ("www.prox.local.", RecordType::CNAME, &["www.prox.local. 120 CNAME nginx.prox.local."]),
        (
            "250.0.20.10.in-addr.arpa.",
            RecordType::PTR,
            &["250.0.20.10.in-addr.arpa. 120 PTR printer.prox.local."],
        ),
    ] {
        let reply = ask(&world, name, rtype);
        assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
        assert_eq!(lines(&reply.answers), answers);
    }
    let reply = ask(&world, "prox.local.", RecordType::CAA);
    let RData::CAA(caa) = &reply.answers[0].data else { panic!("{reply}") };
    assert_eq!((caa.tag.as_str(), &caa.value[..]), ("issue", &b"letsencrypt.org"[..]));
}

/// RFC 1034 §4.3.2 step 6: "Using local data only, attempt to add other RRs which may be useful to the
/// additional section of the query."
#[test]
fn the_hosts_that_answers_name_come_along() {
    let world = world();
    let reply = ask(&world, "prox.local.", RecordType::MX);
    assert_eq!(lines(&reply.additionals), ["mail.prox.local. 120 A 10.20.0.25"]);
    let reply = ask(&world, "_pg._tcp.prox.local.", RecordType::SRV);
    assert_eq!(lines(&reply.additionals), ["db.prox.local. 60 A 10.20.0.10"]);
    let reply = ask(&world, "prox.local.", RecordType::NS);
    assert_eq!(lines(&reply.answers), ["prox.local. 300 NS prox-appliance.prox.local."]);
    assert_eq!(lines(&reply.additionals), ["prox-appliance.prox.local. 300 A 10.20.0.1"]);
}

/// RFC 1035 §3.3.13; the serial is the number of the published world.
#[test]
fn the_apex_has_its_own_records() {
    let world = world();
    for (zone, rname) in [
        ("prox.local.", "hostmaster.prox.local."),
        ("0.20.10.in-addr.arpa.", "hostmaster.0.20.10.in-addr.arpa."),
    ] {
        let reply = ask(&world, zone, RecordType::SOA);
        let RData::SOA(soa) = &reply.answers[0].data else { panic!("{reply}") };
        assert_eq!(soa.mname.to_string(), "prox-appliance.prox.local.");
        assert_eq!(soa.rname.to_string(), rname);
        assert_eq!(soa.serial, 77);
        let reply = ask(&world, zone, RecordType::NS);
        assert_eq!(lines(&reply.answers), [format!("{zone} 300 NS prox-appliance.prox.local.")]);
    }
    let reply = ask(&world, "prox.local.", RecordType::A);
    assert_eq!(lines(&reply.answers), ["prox.local. 60 A 10.20.0.1"]);
}

/// RFC 1982 §3.1: the serial counts in 32 bits and begins again at 0. RFC 1982 §3.2: each is greater than the one
/// before all the same.
#[test]
fn the_serial_wraps_with_the_generation() {
    let serial = |generation: u64| {
        let world = World::derive(world().facts, Generation(generation));
        let RData::SOA(soa) = &ask(&world, "prox.local.", RecordType::SOA).answers[0].data else { panic!() };
        soa.serial
    };
    let greater = |new: u32, old: u32| new != old && new.wrapping_sub(old) < 1 << 31;
    for generation in [1, u64::from(u32::MAX) - 1, u64::from(u32::MAX), 1 << 32, (7 << 32) - 1] {
        assert!(greater(serial(generation + 1), serial(generation)), "{generation}");
    }
    assert_eq!((serial(u64::from(u32::MAX)), serial(1 << 32)), (u32::MAX, 0));
}

/// RFC 2308 §2.1, §2.2 and §3: "Name servers authoritative for a zone MUST include the SOA record of the zone in
/// the authority section of the response when reporting an NXDOMAIN or indicating that no data of the requested
/// type exists." "The TTL of this record is set from the minimum of the MINIMUM field of the SOA record and the
/// TTL of the SOA itself".
#[test]
fn negative_answers_carry_the_soa() {
    let world = world();
    for (name, rtype, code) in [
        ("nginx.prox.local.", RecordType::AAAA, ResponseCode::NoError),
        ("nobody.prox.local.", RecordType::A, ResponseCode::NXDomain),
        ("x.nginx.prox.local.", RecordType::A, ResponseCode::NXDomain),
        ("7.0.20.10.in-addr.arpa.", RecordType::PTR, ResponseCode::NXDomain),
        ("0.20.10.in-addr.arpa.", RecordType::A, ResponseCode::NoError),
    ] {
        let reply = ask(&world, name, rtype);
        assert_eq!(reply.metadata.response_code, code, "{name}");
        assert!(reply.answers.is_empty());
        let [record] = &reply.authorities[..] else { panic!("{reply}") };
        let RData::SOA(soa) = &record.data else { panic!("{reply}") };
        assert_eq!((record.ttl, soa.minimum), (60, 60));
    }
}

/// RFC 8020 §2 and RFC 4592 §2.2.2: empty non-terminals "own no resource records but have subdomains that do";
/// they exist.
#[test]
fn empty_non_terminals_exist() {
    let world = world();
    for name in ["b.deep.prox.local.", "deep.prox.local.", "_tcp.prox.local."] {
        let reply = ask(&world, name, RecordType::A);
        assert_eq!(reply.metadata.response_code, ResponseCode::NoError, "{name}");
        assert!(reply.answers.is_empty());
        assert_eq!(reply.authorities[0].record_type(), RecordType::SOA);
    }
    let reply = ask(&world, "c.deep.prox.local.", RecordType::A);
    assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain);
}

/// RFC 4592 §2.2.1 in our own zone.
#[test]
fn wildcards_cover_what_does_not_exist() {
    let world = world();
    let code = |name, rtype| ask(&world, name, rtype).metadata.response_code;
    let reply = ask(&world, "app.dev.prox.local.", RecordType::A);
    assert_eq!(lines(&reply.answers), ["app.dev.prox.local. 120 A 10.20.0.60"]);
    // "the wildcard's closest encloser" may be several labels up.
    let reply = ask(&world, "x.y.dev.prox.local.", RecordType::A);
    assert_eq!(lines(&reply.answers), ["x.y.dev.prox.local. 120 A 10.20.0.60"]);
    // A type that the wildcard lacks is no data, not a missing name.
    assert_eq!(code("app.dev.prox.local.", RecordType::MX), ResponseCode::NoError);
    // A name that exists is not covered, nor is anything below it.
    let reply = ask(&world, "real.dev.prox.local.", RecordType::A);
    assert!(reply.answers.is_empty() && reply.metadata.response_code == ResponseCode::NoError);
    assert_eq!(code("x.real.dev.prox.local.", RecordType::A), ResponseCode::NXDomain);
    // The wildcard itself can be asked for, and its parent is not covered by it.
    let reply = ask(&world, "*.dev.prox.local.", RecordType::TXT);
    assert_eq!(lines(&reply.answers), ["*.dev.prox.local. 120 TXT any"]);
    assert_eq!(code("dev.prox.local.", RecordType::A), ResponseCode::NoError);
}

/// A vhost for `*.shop.prox.local` is found by every name below that is not there by itself.
#[test]
fn a_wildcard_vhost_leads_to_the_proxy() {
    let mut facts = world_with(&[("own.shop", "A", "10.20.0.70")]).facts;
    let hostname = "*.shop.prox.local".parse().unwrap();
    let backend = BackendTarget::App { name: "nginx".parse().unwrap(), port: 80 };
    let shop = Vhost::new("shop".parse().unwrap(), hostname, vec![backend]);
    facts.apply(Change::Vhost(Source::Api, shop.into()), &mut Touched::default());
    let world = World::derive(facts, Generation(78));
    for name in ["a.shop.prox.local.", "x.y.shop.prox.local."] {
        let reply = ask(&world, name, RecordType::A);
        assert_eq!(lines(&reply.answers), [format!("{name} 60 A 10.20.0.1")]);
        let reply = ask(&world, name, RecordType::AAAA);
        assert!(reply.answers.is_empty() && reply.metadata.response_code == ResponseCode::NoError);
    }
    let reply = ask(&world, "own.shop.prox.local.", RecordType::A);
    assert_eq!(lines(&reply.answers), ["own.shop.prox.local. 120 A 10.20.0.70"]);
    let reply = ask(&world, "shop.prox.local.", RecordType::A);
    assert!(reply.answers.is_empty(), "the wildcard is below that name");
}

/// RFC 4592 §4.9: a wildcard that is an empty non-terminal still covers: with no data.
#[test]
fn a_wildcard_without_records_answers_no_data() {
    let reply = ask(&world(), "y.odd.prox.local.", RecordType::A);
    assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
    assert!(reply.answers.is_empty());
}

/// RFC 8482 §4.1: "A DNS responder that receives an ANY query MAY decline to provide a conventional ANY response
/// or MAY instead send a response with a single RRset (or a larger subset of available RRsets)".
#[test]
fn any_gets_one_rrset() {
    let world = world();
    let reply = ask(&world, "printer.prox.local.", RecordType::ANY);
    assert_eq!(reply.answers.len(), 1, "{reply}");
    let reply = ask(&world, "b.deep.prox.local.", RecordType::ANY);
    assert_eq!(reply.answers[0].record_type(), RecordType::HINFO);
    let reply = ask(&world, "nobody.prox.local.", RecordType::ANY);
    assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain);
}

/// RFC 6761 §6.3, RFC 6303 §3, RFC 7686 §2: such names "MUST NOT" or "SHOULD NOT" be looked up elsewhere.
#[test]
fn special_names_end_here() {
    let world = world();
    assert_eq!(lines(&ask(&world, "localhost.", RecordType::A).answers), ["localhost. 60 A 127.0.0.1"]);
    assert_eq!(lines(&ask(&world, "a.localhost.", RecordType::AAAA).answers), ["a.localhost. 60 AAAA ::1"]);
    let reply = ask(&world, "localhost.", RecordType::MX);
    assert_eq!((reply.metadata.response_code, reply.authorities.len()), (ResponseCode::NoError, 1));
    let reply = ask(&world, "1.0.0.127.in-addr.arpa.", RecordType::PTR);
    assert_eq!(lines(&reply.answers), ["1.0.0.127.in-addr.arpa. 60 PTR localhost."]);
    for name in [
        "x.invalid.",
        "secret.onion.",
        "5.4.3.10.in-addr.arpa.",
        "1.1.168.192.in-addr.arpa.",
        "1.1.20.172.in-addr.arpa.",
    ] {
        let reply = ask(&world, name, RecordType::PTR);
        assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain, "{name}");
        assert_eq!(reply.authorities[0].record_type(), RecordType::SOA);
    }
}

/// RFC 8020 §2: "an NXDOMAIN response for a domain name means that no child domains underneath the queried name
/// exist either". Resolvers that minimise names ask for the ancestors of ours first.
#[test]
fn ancestors_of_our_zones_are_not_denied() {
    let world = world();
    for name in ["local.", "20.10.in-addr.arpa.", "10.in-addr.arpa."] {
        assert_eq!(ask(&world, name, RecordType::NS).metadata.response_code, ResponseCode::NoError, "{name}");
    }
    assert_eq!(
        ask(&world, "21.10.in-addr.arpa.", RecordType::NS).metadata.response_code,
        ResponseCode::NXDomain
    );
}

/// Strangers get what is ours and nothing else; so does who does not want recursion.
#[test]
fn names_of_others_are_looked_up_for_apps_only() {
    let world = world();
    let foreign = query("example.com.", RecordType::A);
    let (outcome, reply) = ask_over(&world, Transport::Udp, STRANGER, &foreign);
    assert_eq!(outcome, Outcome::Answered(Rcode::Refused));
    assert!(!reply.metadata.recursion_available && !reply.metadata.authoritative);
    let mut iterative = foreign.clone();
    iterative.metadata.recursion_desired = false;
    let (outcome, reply) = ask_over(&world, Transport::Udp, APP, &iterative);
    assert_eq!(outcome, Outcome::Answered(Rcode::Refused));
    assert!(reply.metadata.recursion_available);
    for client in
        [APP, "127.0.0.1".parse().unwrap(), "::1".parse().unwrap(), "::ffff:10.20.0.9".parse().unwrap()]
    {
        let (outcome, _) = ask_over(&world, Transport::Udp, client, &foreign);
        assert!(matches!(outcome, Outcome::Forward(_)), "{client}");
    }
    let (outcome, _) = ask_over(&world, Transport::Udp, STRANGER, &query("nginx.prox.local.", RecordType::A));
    assert_eq!(outcome, Outcome::Answered(Rcode::NoError));
}
