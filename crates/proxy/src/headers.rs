use http::header::{CONNECTION, CONTENT_LENGTH, HOST, HeaderMap, HeaderName, HeaderValue, UPGRADE};

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");

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
/// `Host` is left to [`set_host`], since it may change from one tried backend to the next.
pub fn rewrite_request(headers: &mut HeaderMap, forwarding: &Forwarding) {
    strip_hop_by_hop(headers);
    remove_all(headers, is_of_another_proxy);
    headers.insert(X_REAL_IP, forwarding.client_ip.clone());
    headers.insert(X_FORWARDED_FOR, forwarding.client_ip.clone());
    headers.insert(X_FORWARDED_PROTO, forwarding.scheme.clone());
    headers.insert(X_FORWARDED_HOST, forwarding.asked_host.clone());
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
    if headers.contains_key(CONNECTION) {
        strip_named_by_connection(headers);
    }
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

/// Removes the fields that `is_unwanted` names. Most messages have none or one of them, and to walk past the
/// fields that are there costs a tenth of asking for each that might be.
fn remove_all(headers: &mut HeaderMap, is_unwanted: fn(&str) -> bool) {
    while let Some(name) = headers.keys().find(|name| is_unwanted(name.as_str())).cloned() {
        headers.remove(name);
    }
}

fn is_hop_by_hop(name: &str) -> bool {
    matches!(
        name,
        "keep-alive" | "proxy-connection" | "te" | "transfer-encoding" | "upgrade" | "proxy-authenticate"
    )
}

/// What other proxies set and backends believe; none of it is ours.
fn is_of_another_proxy(name: &str) -> bool {
    matches!(
        name,
        "forwarded"
            | "x-forwarded-port"
            | "x-forwarded-prefix"
            | "x-forwarded-server"
            | "proxy-authorization"
    )
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
        rewrite_request(&mut headers, &forwarding());
        let expected = map(&[
            ("cookie", "a=b"),
            ("x-real-ip", "192.168.1.7"),
            ("x-forwarded-for", "192.168.1.7"),
            ("x-forwarded-proto", "http"),
            ("x-forwarded-host", "nginx.prox.local"),
        ]);
        assert_eq!(headers, expected);
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
