use http::header::{CONNECTION, CONTENT_LENGTH, HOST, HeaderMap, HeaderName, HeaderValue, UPGRADE};

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");

/// What an unambiguous name is made of; looked up, since every octet of every name is asked about.
const PLAIN: [bool; 256] = {
    let mut plain = [false; 256];
    let mut byte = 0;
    while byte < plain.len() {
        plain[byte] = (byte as u8).is_ascii_alphanumeric() || byte as u8 == b'-';
        byte += 1;
    }
    plain
};

/// What a backend is told about the request it gets.
#[derive(Clone, Debug)]
pub struct Forwarding {
    /// Address of the client, as text.
    pub client_ip: HeaderValue,
    /// Scheme the client used.
    pub scheme: HeaderValue,
    /// Authority the client asked for.
    pub asked_host: HeaderValue,
}

/// Makes a client's headers fit for a backend: hop-by-hop fields go, and what the client claims about
/// itself is replaced by what is known. Nothing is appended to a client's claim, so nobody can forge an
/// address that a backend would believe.
///
/// `Host` is left to [`set_host`], since it may change from one tried backend to the next. Returns how many
/// fields went only because of how their name is written.
pub fn rewrite_request(headers: &mut HeaderMap, forwarding: &Forwarding) -> u64 {
    strip_named_by_connection(headers);
    let ambiguous = remove_claims(headers);
    headers.insert(X_REAL_IP, forwarding.client_ip.clone());
    headers.insert(X_FORWARDED_FOR, forwarding.client_ip.clone());
    headers.insert(X_FORWARDED_PROTO, forwarding.scheme.clone());
    headers.insert(X_FORWARDED_HOST, forwarding.asked_host.clone());
    ambiguous
}

/// Makes the trailers of a client's request fit for a backend: one that merges them into the header must not
/// find there what [`rewrite_request`] takes away. Returns the same count.
pub fn rewrite_trailers(trailers: &mut HeaderMap) -> u64 {
    strip_named_by_connection(trailers);
    remove_claims(trailers)
}

/// The one place of the Host policy: a backend sees its own address and port, as the seed's
/// `header_up Host {upstream_hostport}` has it. The name that was asked for is in `X-Forwarded-Host`.
pub fn set_host(headers: &mut HeaderMap, backend: HeaderValue) {
    headers.insert(HOST, backend);
}

/// Removes what concerns one connection only.
///
/// RFC 9110 §7.6.1: the fields named by Connection, Connection itself, and the fields that were
/// connection-specific before they had to be named.
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    strip_named_by_connection(headers);
    remove_all(headers, is_hop_by_hop);
}

/// The protocol that a request asks to change to, if it may.
///
/// `h2c` may not: a backend that agreed would get a tunnel whose requests nobody here sees.
pub fn upgrade_requested(headers: &HeaderMap) -> Option<HeaderValue> {
    let protocol = headers.get(UPGRADE)?;
    let named = headers
        .get_all(CONNECTION)
        .iter()
        .flat_map(tokens)
        .any(|token| token.eq_ignore_ascii_case(b"upgrade"));
    let is_h2c = tokens(protocol).any(|token| token.to_ascii_lowercase().starts_with(b"h2c"));
    (named && !is_h2c).then(|| protocol.clone())
}

/// Puts the upgrade back that [`strip_hop_by_hop`] removed: it is forwarded as this hop's own.
pub fn set_upgrade(headers: &mut HeaderMap, protocol: HeaderValue) {
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, protocol);
}

fn strip_named_by_connection(headers: &mut HeaderMap) {
    if !headers.contains_key(CONNECTION) {
        return;
    }
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .flat_map(tokens)
        .filter(|token| !token.eq_ignore_ascii_case(b"close") && !token.eq_ignore_ascii_case(b"keep-alive"))
        .filter_map(|token| HeaderName::from_bytes(token).ok())
        // These describe the message, not the connection: a sender must not list them, and taking them
        // away would change what the message says.
        .filter(|name| *name != HOST && *name != CONTENT_LENGTH)
        .collect();
    for name in named {
        headers.remove(name);
    }
    headers.remove(CONNECTION);
}

/// Removes what a client may not tell a backend. Returns how many names were ambiguous.
fn remove_claims(headers: &mut HeaderMap) -> u64 {
    let removed = remove_all(headers, |name| is_hop_by_hop(name) || is_claim(name) || is_ambiguous(name));
    removed.iter().filter(|name| is_ambiguous(name.as_str())).count() as u64
}

/// Removes the fields that `is_unwanted` names, in one walk past those that are there: most messages have none
/// or one of them, and to ask for each that might be costs ten times as much.
fn remove_all(headers: &mut HeaderMap, is_unwanted: impl Fn(&str) -> bool) -> Vec<HeaderName> {
    let unwanted: Vec<HeaderName> =
        headers.keys().filter(|name| is_unwanted(name.as_str())).cloned().collect();
    for name in &unwanted {
        headers.remove(name);
    }
    unwanted
}

fn is_hop_by_hop(name: &str) -> bool {
    match name.as_bytes().first() {
        Some(b'k' | b'p' | b't' | b'u') => matches!(
            name,
            "keep-alive" | "proxy-connection" | "te" | "transfer-encoding" | "upgrade" | "proxy-authenticate"
        ),
        _ => false,
    }
}

/// What other proxies set and backends believe, whoever sent it; none of it is a client's to say.
///
/// `Proxy` becomes the variable `HTTP_PROXY` of a CGI program, which would send its own requests to that
/// address. The `X-Original-*` and `X-Rewrite-*` kinds make some frameworks act on another path or host than
/// the one that was asked for, past every rule that looked at the request.
fn is_claim(name: &str) -> bool {
    match name.as_bytes().first() {
        Some(b'x') => {
            name.starts_with("x-forwarded")
                || name.starts_with("x-original-")
                || name.starts_with("x-rewrite-")
                || matches!(name, "x-real-ip" | "x-client-ip" | "x-cluster-client-ip")
        }
        Some(b'f') => matches!(name, "forwarded" | "front-end-https"),
        Some(b'p') => matches!(name, "proxy" | "proxy-authorization"),
        Some(b't') => name == "true-client-ip",
        _ => false,
    }
}

/// Whether a backend may take the name for another one. CGI, FastCGI, WSGI and PHP know a field as a variable
/// in which `-` and `_`, with some servers every other sign too, are the same `_`: `X_Real_IP` would stand
/// where ours does.
fn is_ambiguous(name: &str) -> bool {
    !name.bytes().all(|byte| PLAIN[usize::from(byte)])
}

fn tokens(value: &HeaderValue) -> impl Iterator<Item = &[u8]> {
    value.as_bytes().split(|&byte| byte == b',').map(<[u8]>::trim_ascii).filter(|token| !token.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(fields: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
        headers
    }

    fn forwarding() -> Forwarding {
        Forwarding {
            client_ip: HeaderValue::from_static("192.168.1.7"),
            scheme: HeaderValue::from_static("http"),
            asked_host: HeaderValue::from_static("nginx.prox.local"),
        }
    }

    /// What a backend gets when these are the fields that pass.
    fn ours_and(fields: &[(&str, &str)]) -> HeaderMap {
        let mut headers = map(fields);
        headers.extend(map(&[
            ("x-real-ip", "192.168.1.7"),
            ("x-forwarded-for", "192.168.1.7"),
            ("x-forwarded-proto", "http"),
            ("x-forwarded-host", "nginx.prox.local"),
        ]));
        headers
    }

    // RFC 9110 §7.6.1: "Intermediaries MUST parse a received Connection header field before a message is
    // forwarded and, for each connection-option in this field, remove any header or trailer field(s) from
    // the message with the same name as the connection-option, and then remove the Connection header field
    // itself".
    #[test]
    fn hop_by_hop_fields_are_removed() {
        let mut headers = map(&[
            ("connection", "close, X-Private"),
            ("connection", "keep-alive"),
            ("x-private", "1"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("te", "trailers"),
            ("te", "gzip"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "websocket"),
            ("proxy-authenticate", "Basic"),
            ("accept", "*/*"),
            ("content-length", "3"),
        ]);
        strip_hop_by_hop(&mut headers);
        assert_eq!(headers, map(&[("accept", "*/*"), ("content-length", "3")]));
    }

    #[test]
    fn connection_cannot_take_away_what_the_message_needs_or_what_we_add() {
        let mut headers = map(&[
            ("connection", "host, content-length, x-real-ip, x-forwarded-for"),
            ("host", "a"),
            ("content-length", "3"),
        ]);
        rewrite_request(&mut headers, &forwarding());
        assert_eq!(headers["host"], "a");
        assert_eq!(headers["content-length"], "3");
        assert_eq!(headers["x-real-ip"], "192.168.1.7");
        assert_eq!(headers["x-forwarded-for"], "192.168.1.7");
    }

    #[test]
    fn what_a_client_claims_about_itself_is_replaced() {
        let mut headers = map(&[
            ("x-forwarded-for", "1.2.3.4"),
            ("x-forwarded-for", "5.6.7.8"),
            ("x-real-ip", "1.2.3.4"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "evil.example"),
            ("x-forwarded-prefix", "/admin"),
            ("x-forwarded-port", "1"),
            ("x-forwarded-server", "evil"),
            ("forwarded", "for=1.2.3.4"),
            ("proxy-authorization", "Basic eA=="),
            ("cookie", "a=b"),
        ]);
        assert_eq!(rewrite_request(&mut headers, &forwarding()), 0);
        assert_eq!(headers, ours_and(&[("cookie", "a=b")]));
    }

    #[test]
    fn nothing_that_a_backend_would_believe_passes() {
        let claims = [
            "Forwarded",
            "Front-End-Https",
            "Proxy",
            "True-Client-IP",
            "X-Client-IP",
            "X-Cluster-Client-IP",
            "X-Forwarded",
            "X-Forwarded-By",
            "X-Forwarded-Port",
            "X-Forwarded-Prefix",
            "X-Forwarded-Protocol",
            "X-Forwarded-Scheme",
            "X-Forwarded-Server",
            "X-Forwarded-Ssl",
            "X-Forwarded-Uri",
            "X-Original-For",
            "X-Original-Host",
            "X-Original-URL",
            "X-Rewrite-URL",
        ];
        for name in claims {
            let mut headers = map(&[(name, "1"), (name, "2")]);
            assert_eq!(rewrite_request(&mut headers, &forwarding()), 0);
            assert_eq!(headers, ours_and(&[]), "{name}");
        }
        let mut headers = map(&claims.map(|name| (name, "1")));
        rewrite_request(&mut headers, &forwarding());
        assert_eq!(headers, ours_and(&[]), "all at once");
    }

    #[test]
    fn names_that_backends_read_as_others_are_dropped_and_counted() {
        let ambiguous = [
            "X_Forwarded_For",
            "X-Forwarded_For",
            "x_real_ip",
            "_",
            "Content_Length",
            "X.Real.IP",
            "X-Real~IP",
            "api_key",
        ];
        for name in ambiguous {
            let mut headers = map(&[(name, "1"), (name, "2")]);
            assert_eq!(rewrite_request(&mut headers, &forwarding()), 1, "{name}");
            assert_eq!(headers, ours_and(&[]), "{name}");
        }
    }

    #[test]
    fn what_is_no_claim_passes() {
        let kept = [
            ("accept", "*/*"),
            ("authorization", "Basic eA=="),
            ("if-none-match", "\"x_1\""),
            ("sec-ch-ua-platform", "\"Linux\""),
            ("upgrade-insecure-requests", "1"),
            ("x-api-key2", "a_b"),
            ("x-requested-with", "XMLHttpRequest"),
        ];
        let mut headers = map(&kept);
        assert_eq!(rewrite_request(&mut headers, &forwarding()), 0);
        assert_eq!(headers, ours_and(&kept));
    }

    // RFC 9110 §6.5.1: "Trailer fields ought to be processed and stored separately from the fields in the header
    // section". Those who merge them must not be fooled.
    #[test]
    fn trailers_carry_no_claims_either() {
        let mut trailers = map(&[
            ("x-forwarded-for", "1.2.3.4"),
            ("x_real_ip", "1.2.3.4"),
            ("x-checksum", "abc"),
            ("transfer-encoding", "chunked"),
        ]);
        assert_eq!(rewrite_trailers(&mut trailers), 1);
        assert_eq!(trailers, map(&[("x-checksum", "abc")]));
    }

    #[test]
    fn only_a_named_upgrade_counts_and_h2c_does_not() {
        let upgrade = |fields: &[(&str, &str)]| upgrade_requested(&map(fields));
        let asked = upgrade(&[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")]);
        assert_eq!(asked.unwrap(), "websocket");
        assert_eq!(upgrade(&[("connection", "keep-alive"), ("upgrade", "websocket")]), None);
        assert_eq!(upgrade(&[("connection", "Upgrade, HTTP2-Settings"), ("upgrade", "h2c")]), None);
    }
}
