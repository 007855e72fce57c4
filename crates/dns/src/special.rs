//! Names that never leave the host, whoever asks (RFC 6761, RFC 6303, RFC 7686).

/// What a special-use name means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Special<'n> {
    /// `localhost` and names below it: the loopback addresses (RFC 6761 §6.3).
    Localhost(&'n [u8]),
    /// Nothing is there. The slice is the zone that says so.
    Nowhere(&'n [u8]),
}

/// How many labels at the end of a name have to be seen.
const DEPTH: usize = 5;

/// What a lower-case wire name outside our zones means, when it is special.
pub(crate) fn special(name: &[u8]) -> Option<Special<'_>> {
    let (starts, labels) = last_labels(name);
    let zone = |depth: usize| &name[starts[depth - 1]..];
    match labels {
        [b"localhost", ..] => Some(Special::Localhost(zone(1))),
        [b"invalid" | b"onion", ..] => Some(Special::Nowhere(zone(1))),
        [b"arpa", b"in-addr", b"10" | b"127", ..] => Some(Special::Nowhere(zone(3))),
        [b"arpa", b"in-addr", b"192", b"168", _] | [b"arpa", b"in-addr", b"169", b"254", _] => {
            Some(Special::Nowhere(zone(4)))
        }
        [b"arpa", b"in-addr", b"172", second, _] => {
            let second: Option<u8> = std::str::from_utf8(second).ok()?.parse().ok();
            second.is_some_and(|octet| (16..32).contains(&octet)).then_some(Special::Nowhere(zone(4)))
        }
        // Unique local addresses, fd00::/8.
        [b"arpa", b"ip6", b"f", b"d", _] => Some(Special::Nowhere(zone(4))),
        // Link-local addresses, fe80::/10.
        [b"arpa", b"ip6", b"f", b"e", b"8" | b"9" | b"a" | b"b"] => Some(Special::Nowhere(zone(5))),
        _ => None,
    }
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
        assert_eq!(special(&[0]), None);
    }
}
