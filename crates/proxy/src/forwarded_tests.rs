use super::*;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// 10.0.0.0/8 and fd00::/8 are trusted.
fn is_trusted(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.octets()[0] == 10,
        IpAddr::V6(ip) => ip.octets()[0] == 0xfd,
    }
}

fn ask(peer: &str, told: &Told<'_>) -> Result<Origin, ForwardedError> {
    origin(ip(peer), told, is_trusted)
}

fn x_for(peer: &str, fields: &[&str]) -> Result<(IpAddr, Vec<IpAddr>), ForwardedError> {
    let fields: Vec<&[u8]> = fields.iter().map(|field| field.as_bytes()).collect();
    ask(peer, &Told { x_for: &fields, ..Told::default() }).map(|origin| (origin.client, origin.before))
}

fn forwarded(fields: &[&str]) -> Result<Origin, ForwardedError> {
    let fields: Vec<&[u8]> = fields.iter().map(|field| field.as_bytes()).collect();
    ask("10.0.0.1", &Told { forwarded: &fields, ..Told::default() })
}

#[test]
fn strangers_are_not_believed() {
    let told = Told {
        x_for: &[b"10.0.0.9"],
        x_proto: &[b"https"],
        x_host: &[b"evil"],
        forwarded: &[b"for=10.0.0.9;proto=https"],
    };
    let direct = Origin { client: ip("192.0.2.1"), before: vec![], scheme: None, host: None };
    assert_eq!(ask("192.0.2.1", &told), Ok(direct.clone()));
    assert_eq!(ask("::ffff:192.0.2.1", &told), Ok(direct));
}

#[test]
fn the_client_is_the_rightmost_stranger() {
    let of = |client: &str, before: &[&str]| {
        Ok((ip(client), before.iter().map(|text| ip(text)).collect::<Vec<_>>()))
    };
    assert_eq!(x_for("10.0.0.1", &["192.0.2.1"]), of("192.0.2.1", &["192.0.2.1"]));
    assert_eq!(
        x_for("10.0.0.1", &["1.1.1.1, 192.0.2.1, 10.0.0.2"]),
        of("192.0.2.1", &["192.0.2.1", "10.0.0.2"])
    );
    assert_eq!(
        x_for("10.0.0.1", &["1.1.1.1", "192.0.2.1,10.0.0.2"]),
        of("192.0.2.1", &["192.0.2.1", "10.0.0.2"])
    );
    assert_eq!(x_for("10.0.0.1", &["10.0.0.3, 10.0.0.2"]), of("10.0.0.3", &["10.0.0.3", "10.0.0.2"]));
    assert_eq!(x_for("fd00::1", &["[2001:db8::1]:4711"]), of("2001:db8::1", &["2001:db8::1"]));
    assert_eq!(x_for("fd00::1", &["192.0.2.1:4711"]), of("192.0.2.1", &["192.0.2.1"]));
    assert_eq!(x_for("fd00::1", &["::ffff:192.0.2.1, ,"]), of("192.0.2.1", &["192.0.2.1"]));
    // What stands left of the stranger is his own claim, whatever it is.
    assert_eq!(x_for("10.0.0.1", &["\"'<junk>, 192.0.2.1"]), of("192.0.2.1", &["192.0.2.1"]));
    assert_eq!(x_for("10.0.0.1", &["unknown"]), of("10.0.0.1", &[]));
}

#[test]
fn what_cannot_be_read_is_not_taken_for_the_proxys_own() {
    assert_eq!(x_for("10.0.0.1", &["192.0.2.1, junk"]), Err(ForwardedError::BadAddress));
    assert_eq!(x_for("10.0.0.1", &["192.0.2.1, 10.0.0.300"]), Err(ForwardedError::BadAddress));
    let loop_of_proxies = vec!["10.0.0.2"; 1000].join(",");
    assert_eq!(x_for("10.0.0.1", &[&loop_of_proxies]), Err(ForwardedError::TooManyHops));
    assert_eq!(forwarded(&["for=\"x, for=192.0.2.1"]), Err(ForwardedError::BadForwarded));
}

#[test]
fn x_forwarded_for_wins_over_a_forwarded_that_the_client_may_have_sent() {
    let told = Told { x_for: &[b"192.0.2.1"], forwarded: &[b"for=10.0.0.9;proto=https"], ..Told::default() };
    let origin = ask("10.0.0.1", &told).unwrap();
    assert_eq!((origin.client, origin.scheme), (ip("192.0.2.1"), None));
}

#[test]
fn scheme_and_host_are_those_of_the_clients_hop() {
    let ask = |x_for: &str, x_proto: &str, x_host: &str| {
        let (x_for, x_proto, x_host) = ([x_for.as_bytes()], [x_proto.as_bytes()], [x_host.as_bytes()]);
        let told = Told { x_for: &x_for, x_proto: &x_proto, x_host: &x_host, ..Told::default() };
        let origin = ask("10.0.0.1", &told).unwrap();
        (origin.scheme, origin.host)
    };
    assert_eq!(ask("192.0.2.1", "https", "a.example"), (Some(Scheme::Https), Some("a.example".into())));
    assert_eq!(ask("192.0.2.1, 10.0.0.2", "HTTPS", "a:81"), (Some(Scheme::Https), Some("a:81".into())));
    assert_eq!(ask("9.9.9.9, 192.0.2.1, 10.0.0.2", "ftp,https,http", "x,y,z").0, Some(Scheme::Https));
    assert_eq!(ask("9.9.9.9, 192.0.2.1, 10.0.0.2", "ftp,https,http", "x,y,z").1.as_deref(), Some("y"));
    assert_eq!(ask("192.0.2.1", "gopher", "a b"), (None, None));
    let only_proto = Told { x_proto: &[b"https"], ..Told::default() };
    assert_eq!(super::origin(ip("10.0.0.1"), &only_proto, is_trusted).unwrap().scheme, Some(Scheme::Https));
}

// The examples of RFC 7239 §4 and §7.1.
#[test]
fn forwarded_is_read_as_its_rfc_has_it() {
    let element = |node, scheme| Element { node: Some(node), scheme, host: None };
    let v6 = Node::Ip(ip("2001:db8:cafe::17"));
    let v4 = |text| Node::Ip(ip(text));
    let cases: [(&str, Vec<Element>); 8] = [
        ("for=\"_gazonk\"", vec![element(Node::Hidden, None)]),
        ("For=\"[2001:db8:cafe::17]:4711\"", vec![element(v6, None)]),
        ("for=192.0.2.60;proto=http;by=203.0.113.43", vec![element(v4("192.0.2.60"), Some(Scheme::Http))]),
        (
            "for=192.0.2.43, for=198.51.100.17",
            vec![element(v4("192.0.2.43"), None), element(v4("198.51.100.17"), None)],
        ),
        (
            "for=192.0.2.43,for=\"[2001:db8:cafe::17]\",for=unknown",
            vec![element(v4("192.0.2.43"), None), element(v6, None), element(Node::Hidden, None)],
        ),
        ("for=_hidden, for=_SEVKISEK", vec![element(Node::Hidden, None), element(Node::Hidden, None)]),
        ("for=\"192.0.2.43:_port\";secret=x", vec![element(v4("192.0.2.43"), None)]),
        (" , ;, by=1.2.3.4 ,", vec![Element::default()]),
    ];
    for (text, expected) in cases {
        assert_eq!(parse_forwarded(text.as_bytes()), Ok(expected), "{text}");
    }
    let host = parse_forwarded(b"host=\"a\\\"b:80\"").unwrap();
    assert_eq!(host[0].host.as_deref(), Some("a\"b:80"));
}

// RFC 7239 §4: "Each parameter MUST NOT occur more than once per field-value."
#[test]
fn forwarded_that_is_malformed_is_refused() {
    let cases = [
        "for",
        "for=",
        "=a",
        "for =a",
        "for= a",
        "for=a b",
        "for=\"1.2.3.4",
        "for=\"1.2.3.4\\",
        "for=1.2.3.4:80",
        "for=[::1]",
        "for=1.2.3.4;for=1.2.3.5",
        "proto=http;PROTO=https",
        "for=example.com",
        "for=\"\"",
        "\u{e9}=1",
    ];
    for text in cases {
        assert_eq!(parse_forwarded(text.as_bytes()), Err(ForwardedError::BadForwarded), "{text}");
    }
}

#[test]
fn the_rightmost_stranger_of_forwarded_brings_scheme_and_host() {
    let origin =
        forwarded(&["for=9.9.9.9;proto=http", "for=192.0.2.1;proto=https;host=a.example, for=10.0.0.2"])
            .unwrap();
    assert_eq!(origin.client, ip("192.0.2.1"));
    assert_eq!(origin.before, [ip("192.0.2.1"), ip("10.0.0.2")]);
    assert_eq!((origin.scheme, origin.host.as_deref()), (Some(Scheme::Https), Some("a.example")));
    // A field of the client's own that is junk is not looked at.
    assert_eq!(forwarded(&["for=\"", "for=192.0.2.1"]).unwrap().client, ip("192.0.2.1"));
    let hidden = forwarded(&["for=unknown;proto=https"]).unwrap();
    assert_eq!((hidden.client, hidden.before.len(), hidden.scheme), (ip("10.0.0.1"), 0, Some(Scheme::Https)));
}

#[test]
fn what_is_written_can_be_read_again() {
    let hop = |client: &str, with_port, host| Hop {
        client: client.parse().unwrap(),
        with_port,
        host,
        scheme: Scheme::Https,
    };
    let written = |before: &[IpAddr], hop: &Hop<'_>| {
        let mut text = Vec::new();
        write_forwarded(&mut text, before, hop);
        String::from_utf8(text).unwrap()
    };
    assert_eq!(
        written(&[], &hop("192.0.2.1:80", false, "a.example")),
        "for=192.0.2.1;host=a.example;proto=https"
    );
    assert_eq!(
        written(&[], &hop("192.0.2.1:80", true, "a:81")),
        "for=\"192.0.2.1:80\";host=\"a:81\";proto=https"
    );
    let v6 = written(&[ip("192.0.2.1"), ip("2001:db8::1")], &hop("[fd00::1]:80", true, ""));
    assert_eq!(v6, "for=192.0.2.1, for=\"[2001:db8::1]\", for=\"[fd00::1]:80\";proto=https");
    let nasty = written(&[], &hop("[fd00::1]:80", false, "a\"\\\r\nX: b"));
    assert_eq!(nasty, "for=\"[fd00::1]\";host=\"a\\\"\\\\X: b\";proto=https");
    for text in [v6, nasty] {
        assert!(parse_forwarded(text.as_bytes()).is_ok(), "{text}");
    }
    let mut list = Vec::new();
    write_x_forwarded_for(&mut list, &[ip("192.0.2.1"), ip("fd00::9")], ip("::ffff:10.0.0.1"));
    assert_eq!(list, b"192.0.2.1, fd00::9, 10.0.0.1");
}
