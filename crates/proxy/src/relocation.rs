use crate::Scheme;

/// Name of the field that sends a client elsewhere (RFC 9110 §10.2.2).
pub const LOCATION: &[u8] = b"Location";

/// Where a client is that asks for what a backend has.
#[derive(Clone, Copy, Debug)]
pub struct Visited<'a> {
    /// How it came.
    pub scheme: Scheme,
    /// The authority that it asked for.
    pub host: &'a [u8],
    /// The prefix of the path that the backend did not see.
    pub prefix: &'a str,
}

/// What a backend that knows only its own address means by a `Location` there, in the words of a client: nobody else can
/// follow it, and whoever is outside should not learn the address. `None` for any other place. `backend` is its
/// `address:port`.
pub fn relocated(location: &[u8], backend: &str, visited: Visited<'_>) -> Option<Vec<u8>> {
    let (address, port) = backend.rsplit_once(':')?;
    let begins = |scheme: &str| {
        location.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme.as_bytes()))
    };
    let (rest, default) = if begins("http://") {
        (&location[7..], "80")
    } else if begins("https://") {
        (&location[8..], "443")
    } else {
        (location.strip_prefix(b"//")?, port)
    };
    let end = rest.iter().position(|octet| b"/?#".contains(octet)).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let is_there = authority == backend.as_bytes() || (authority == address.as_bytes() && port == default);
    is_there.then(|| {
        let scheme = visited.scheme.as_str().as_bytes();
        [scheme, b"://", visited.host, visited.prefix.as_bytes(), path].concat()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn says(location: &str, backend: &str) -> Option<String> {
        let visited = Visited { scheme: Scheme::Https, host: b"wiki.prox.local:8443", prefix: "/api" };
        relocated(location.as_bytes(), backend, visited).map(|there| String::from_utf8(there).unwrap())
    }

    #[test]
    fn the_backends_own_address_becomes_the_one_that_was_asked_for() {
        for (location, backend, expected) in [
            ("http://10.20.0.5:8080/dir/?a#b", "10.20.0.5:8080", "/dir/?a#b"),
            ("HTTPS://10.20.0.5:8080", "10.20.0.5:8080", ""),
            ("//10.20.0.5:8080/x", "10.20.0.5:8080", "/x"),
            ("http://10.20.0.5/x", "10.20.0.5:80", "/x"),
            ("https://10.20.0.5?x", "10.20.0.5:443", "?x"),
        ] {
            let expected = format!("https://wiki.prox.local:8443/api{expected}");
            assert_eq!(says(location, backend), Some(expected), "{location}");
        }
    }

    #[test]
    fn other_places_stay_as_they_are() {
        for location in [
            "/dir/",
            "dir",
            "",
            "http://10.20.0.5/x",
            "http://10.20.0.5:80800/x",
            "http://10.20.0.5:8080.evil.example/",
            "http://10.20.0.5:8080@evil.example/",
            "http://else.example/?http://10.20.0.5:8080/",
            "ftp://10.20.0.5:8080/",
        ] {
            assert_eq!(says(location, "10.20.0.5:8080"), None, "{location}");
        }
    }
}
