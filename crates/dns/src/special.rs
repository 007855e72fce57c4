//! Names that never leave the host, whoever asks (RFC 6761, RFC 6303), unless they have servers of their own.
//!
//! `ipv4only.arpa` is not among them: whoever translates addresses is upstream of us and answers it (RFC 8880 §7.1).

/// What a special-use name means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Special<'n> {
    /// `localhost` and names below it: the loopback addresses (RFC 6761 §6.3).
    Localhost(&'n [u8]),
    /// Nothing is there. The slice is the zone that says so.
    Nowhere(&'n [u8]),
}

/// How many labels at the end of a name have to be seen.
const DEPTH: usize = 7;

/// What a lower-case wire name outside our zones means, when it is special.
pub(crate) fn special(name: &[u8]) -> Option<Special<'_>> {
    let (starts, labels) = last_labels(name);
    let nowhere = |depth: usize| Some(Special::Nowhere(&name[starts[depth - 1]..]));
    let number = |label: &[u8]| std::str::from_utf8(label).ok().and_then(|text| text.parse::<u8>().ok());
    match labels {
        [b"localhost", ..] => Some(Special::Localhost(&name[starts[0]..])),
        // RFC 6761 §6.2 and §6.4, RFC 7686 §2, RFC 6762 §22.1.
        [b"invalid" | b"test" | b"onion" | b"local", ..] => nowhere(1),
        // RFC 8375 §4, RFC 9462 §6.4, RFC 9665 §10.
        [b"arpa", b"home" | b"resolver" | b"service", ..] => nowhere(2),
        [b"arpa", b"in-addr", b"0" | b"10" | b"127", ..] => nowhere(3),
        [b"arpa", b"in-addr", b"192", b"168", ..] if !labels[3].is_empty() => nowhere(4),
        [b"arpa", b"in-addr", b"169", b"254", ..] => nowhere(4),
        [b"arpa", b"in-addr", b"172", second, ..] => {
            number(second).filter(|octet| (16..32).contains(octet)).and_then(|_| nowhere(4))
        }
        // RFC 7793 §2.
        [b"arpa", b"in-addr", b"100", second, ..] => {
            number(second).filter(|octet| (64..128).contains(octet)).and_then(|_| nowhere(4))
        }
        // RFC 6303 §4.2: networks for examples, and the broadcast address.
        [b"arpa", b"in-addr", b"192", b"0", b"2", ..]
        | [b"arpa", b"in-addr", b"198", b"51", b"100", ..]
        | [b"arpa", b"in-addr", b"203", b"0", b"113", ..] => nowhere(5),
        [b"arpa", b"in-addr", b"255", b"255", b"255", b"255", ..] => nowhere(6),
        // Unique local addresses, fd00::/8.
        [b"arpa", b"ip6", b"f", b"d", ..] => nowhere(4),
        // Link-local addresses, fe80::/10.
        [b"arpa", b"ip6", b"f", b"e", b"8" | b"9" | b"a" | b"b", ..] => nowhere(5),
        // "::" and "::1": 32 nibbles of which all but the last are 0.
        [b"arpa", b"ip6", b"0", b"0", b"0", b"0", b"0"] => is_unspecified_or_loopback(name),
        _ => None,
    }
}

/// RFC 6303 §4.3: the names of `::` and `::1`, each a zone of its own.
fn is_unspecified_or_loopback(name: &[u8]) -> Option<Special<'_>> {
    const ZEROS: usize = 31;
    const IP6_ARPA: &[u8] = b"\x03ip6\x04arpa\0";
    let zone = &name[name.len().checked_sub(2 * (ZEROS + 1) + IP6_ARPA.len())?..];
    let (nibbles, end) = zone.split_at(2 * (ZEROS + 1));
    let is_one = matches!(nibbles[..2], [1, b'0' | b'1']) && end == IP6_ARPA;
    (is_one && nibbles[2..].chunks(2).all(|label| label == [1, b'0'])).then_some(Special::Nowhere(zone))
}

/// The last labels of a name, the very last first, with where they start; empty where there are none.
fn last_labels(name: &[u8]) -> ([usize; DEPTH], [&[u8]; DEPTH]) {
    let mut starts = [name.len().saturating_sub(1); DEPTH];
    let mut labels: [&[u8]; DEPTH] = [b""; DEPTH];
    let mut at = 0;
    while name[at] != 0 {
        let end = at + 1 + usize::from(name[at]);
        starts.rotate_right(1);
        labels.rotate_right(1);
        starts[0] = at;
        labels[0] = &name[at + 1..end];
        at = end;
    }
    (starts, labels)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proximity_table::Name;

    fn zone_of(name: &str) -> Option<String> {
        let name: Name = name.parse().unwrap();
        let zone = match special(name.as_wire())? {
            Special::Localhost(zone) | Special::Nowhere(zone) => zone,
        };
        Some(Name::from_wire(zone).unwrap().to_string())
    }

    #[test]
    fn private_reverse_names_belong_to_their_zone() {
        let cases = [
            ("1.0.0.10.in-addr.arpa", Some("10.in-addr.arpa")),
            ("10.in-addr.arpa", Some("10.in-addr.arpa")),
            ("1.2.168.192.in-addr.arpa", Some("168.192.in-addr.arpa")),
            ("1.2.15.172.in-addr.arpa", None),
            ("1.2.16.172.in-addr.arpa", Some("16.172.in-addr.arpa")),
            ("1.2.31.172.in-addr.arpa", Some("31.172.in-addr.arpa")),
            ("1.2.32.172.in-addr.arpa", None),
            ("172.in-addr.arpa", None),
            ("192.in-addr.arpa", None),
            ("8.8.8.8.in-addr.arpa", None),
            ("1.0.d.f.ip6.arpa", Some("d.f.ip6.arpa")),
            ("0.8.e.f.ip6.arpa", Some("8.e.f.ip6.arpa")),
            ("0.0.c.e.f.ip6.arpa", None),
            ("1.0.64.100.in-addr.arpa", Some("64.100.in-addr.arpa")),
            ("1.0.63.100.in-addr.arpa", None),
            ("7.2.0.192.in-addr.arpa", Some("2.0.192.in-addr.arpa")),
            ("7.3.0.192.in-addr.arpa", None),
            ("255.255.255.255.in-addr.arpa", Some("255.255.255.255.in-addr.arpa")),
        ];
        for (name, zone) in cases {
            assert_eq!(zone_of(name).as_deref(), zone, "{name}");
        }
    }

    #[test]
    fn special_suffixes_count_at_label_boundaries() {
        assert_eq!(zone_of("a.b.localhost").as_deref(), Some("localhost"));
        assert_eq!(zone_of("xlocalhost"), None);
        assert_eq!(zone_of("localhost.example"), None);
        assert_eq!(zone_of("service.onion").as_deref(), Some("onion"));
        assert_eq!(zone_of("printer.local").as_deref(), Some("local"));
        assert_eq!(zone_of("a.test").as_deref(), Some("test"));
        assert_eq!(zone_of("_dns.resolver.arpa").as_deref(), Some("resolver.arpa"));
        assert_eq!(zone_of("nas.home.arpa").as_deref(), Some("home.arpa"));
        for name in ["ipv4only.arpa", "example", "www.example.com", "arpa", "ip6.arpa", "home"] {
            assert_eq!(zone_of(name), None, "{name}");
        }
        let zeros = "0.".repeat(31);
        for (first, is_special) in [("0.", true), ("1.", true), ("2.", false), ("x.1.", true)] {
            let name = format!("{first}{zeros}ip6.arpa");
            assert_eq!(zone_of(&name).is_some(), is_special, "{name}");
        }
        assert_eq!(special(&[0]), None);
    }
}
