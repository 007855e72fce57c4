/// Where a piece of a head lies in the head's octets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    start: u32,
    end: u32,
}

/// One field line of a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Its name, as it was written.
    pub name: Span,
    /// Its value without the whitespace around it.
    pub value: Span,
    /// What the name means here.
    pub kind: Kind,
}

/// What a field means to a proxy. Most mean nothing and are passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Of no interest.
    Plain,
    Host,
    Connection,
    ContentLength,
    TransferEncoding,
    Upgrade,
    Expect,
    Te,
    Date,
    Accept,
    AcceptEncoding,
    Authorization,
    ContentEncoding,
    ContentType,
    Cookie,
    Via,
    /// Told anew where it counts.
    MaxForwards,
    /// Concerns one connection only (RFC 9110 §7.6.1), or is named by `Connection`.
    HopByHop,
    /// RFC 7239.
    Forwarded,
    ForwardedFor,
    ForwardedProto,
    ForwardedHost,
    /// What other proxies set and backends believe, whoever sent it; none of it is a client's to say.
    Claim,
    /// A name that a backend may take for another one.
    Ambiguous,
}

impl Span {
    /// The place of `part` inside `whole`, of which it must be a subslice.
    pub fn of(part: &[u8], whole: &[u8]) -> Span {
        let start = (part.as_ptr() as usize).wrapping_sub(whole.as_ptr() as usize);
        debug_assert!(start + part.len() <= whole.len());
        Span { start: start as u32, end: (start + part.len()) as u32 }
    }

    /// The place between two offsets.
    pub fn at(start: usize, end: usize) -> Span {
        Span { start: start as u32, end: end as u32 }
    }

    /// The octets themselves.
    pub fn in_(self, whole: &[u8]) -> &[u8] {
        whole.get(self.start as usize..self.end as usize).unwrap_or_default()
    }
}

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

impl Kind {
    /// What a name of a request means.
    pub fn of_request(name: &[u8]) -> Kind {
        let is = |word: &str| name.eq_ignore_ascii_case(word.as_bytes());
        let begins =
            |word: &str| name.get(..word.len()).is_some_and(|x| x.eq_ignore_ascii_case(word.as_bytes()));
        let kind = match name.first().map_or(0, u8::to_ascii_lowercase) {
            b'a' if is("accept") => Kind::Accept,
            b'a' if is("accept-encoding") => Kind::AcceptEncoding,
            b'a' if is("authorization") => Kind::Authorization,
            b'c' => match name.len() {
                6 if is("cookie") => Kind::Cookie,
                10 if is("connection") => Kind::Connection,
                14 if is("content-length") => Kind::ContentLength,
                16 if is("cf-connecting-ip") => Kind::Claim,
                18 if is("cf-connecting-ipv6") => Kind::Claim,
                _ => Kind::Plain,
            },
            b'e' if is("expect") => Kind::Expect,
            b'f' if is("forwarded") => Kind::Forwarded,
            b'f' if is("front-end-https") || is("fastly-client-ip") => Kind::Claim,
            b'h' if is("host") => Kind::Host,
            b'h' if is("http2-settings") => Kind::HopByHop,
            b'm' if is("max-forwards") => Kind::MaxForwards,
            b'k' if is("keep-alive") => Kind::HopByHop,
            b'p' if is("proxy-connection") || is("proxy-authenticate") => Kind::HopByHop,
            // `Proxy` becomes the variable HTTP_PROXY of a CGI program, which would send its own requests to
            // that address.
            b'p' if is("proxy") || is("proxy-authorization") => Kind::Claim,
            b't' if is("te") => Kind::Te,
            b't' if is("transfer-encoding") => Kind::TransferEncoding,
            b't' if is("true-client-ip") => Kind::Claim,
            b'u' if is("upgrade") => Kind::Upgrade,
            b'v' if is("via") => Kind::Via,
            b'x' if is("x-forwarded-for") => Kind::ForwardedFor,
            b'x' if is("x-forwarded-proto") => Kind::ForwardedProto,
            b'x' if is("x-forwarded-host") => Kind::ForwardedHost,
            // The `X-Original-*` and `X-Rewrite-*` kinds make some frameworks act on another path or host than
            // the one that was asked for, past every rule that looked at the request.
            b'x' if begins("x-forwarded")
                || begins("x-original-")
                || begins("x-rewrite-")
                || is("x-real-ip")
                || is("x-client-ip")
                || is("x-cluster-client-ip") =>
            {
                Kind::Claim
            }
            _ => Kind::Plain,
        };
        // CGI, FastCGI, WSGI and PHP know a field as a variable in which `-` and `_`, with some servers every
        // other sign too, are the same `_`: `X_Real_IP` would stand where ours does.
        if kind == Kind::Plain && !name.iter().all(|&byte| PLAIN[usize::from(byte)]) {
            return Kind::Ambiguous;
        }
        kind
    }

    /// What a name of a response means.
    pub fn of_response(name: &[u8]) -> Kind {
        let is = |word: &str| name.eq_ignore_ascii_case(word.as_bytes());
        match name.first().map_or(0, u8::to_ascii_lowercase) {
            b'c' => match name.len() {
                10 if is("connection") => Kind::Connection,
                14 if is("content-length") => Kind::ContentLength,
                16 if is("cf-connecting-ip") => Kind::Claim,
                18 if is("cf-connecting-ipv6") => Kind::Claim,
                16 if is("content-encoding") => Kind::ContentEncoding,
                12 if is("content-type") => Kind::ContentType,
                _ => Kind::Plain,
            },
            b'd' if is("date") => Kind::Date,
            b'k' if is("keep-alive") => Kind::HopByHop,
            b'p' if is("proxy-connection") => Kind::HopByHop,
            b't' if is("transfer-encoding") => Kind::TransferEncoding,
            b'u' if is("upgrade") => Kind::Upgrade,
            b'v' if is("via") => Kind::Via,
            _ => Kind::Plain,
        }
    }
}

/// Puts what httparse found in `bytes` into a list of fields; `of` tells what a name means.
pub fn take(fields: &mut Vec<Field>, headers: &[httparse::Header<'_>], bytes: &[u8], of: fn(&[u8]) -> Kind) {
    fields.clear();
    fields.extend(headers.iter().map(|header| Field {
        name: Span::of(header.name.as_bytes(), bytes),
        value: Span::of(header.value, bytes),
        kind: of(header.name.as_bytes()),
    }));
}

/// The comma-separated words of a value, without the empty ones.
pub fn tokens(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii).filter(|token| !token.is_empty())
}

/// A decimal number of octets: digits only, or `None`.
pub fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || text.len() > 19 {
        return None;
    }
    text.iter().try_fold(0_u64, |sum, digit| {
        digit.is_ascii_digit().then(|| sum.checked_mul(10)?.checked_add(u64::from(digit - b'0'))).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_known_whatever_their_case() {
        for (name, kind) in [
            ("Host", Kind::Host),
            ("HOST", Kind::Host),
            ("content-Length", Kind::ContentLength),
            ("Transfer-encoding", Kind::TransferEncoding),
            ("TE", Kind::Te),
            ("Accept", Kind::Accept),
            ("Accept-Language", Kind::Plain),
            ("X-Forwarded-For", Kind::ForwardedFor),
            ("Forwarded", Kind::Forwarded),
            ("X-Requested-With", Kind::Plain),
            ("upgrade-insecure-requests", Kind::Plain),
        ] {
            assert_eq!(Kind::of_request(name.as_bytes()), kind, "{name}");
        }
    }

    #[test]
    fn nothing_that_a_backend_would_believe_is_plain() {
        for name in [
            "Front-End-Https",
            "Proxy",
            "Proxy-Authorization",
            "True-Client-IP",
            "X-Client-IP",
            "X-Cluster-Client-IP",
            "X-Forwarded",
            "X-Forwarded-By",
            "X-Forwarded-Port",
            "X-Forwarded-Prefix",
            "X-Forwarded-Ssl",
            "X-Original-URL",
            "X-Rewrite-URL",
            "X-Real-IP",
        ] {
            assert_eq!(Kind::of_request(name.as_bytes()), Kind::Claim, "{name}");
        }
    }

    #[test]
    fn names_that_backends_read_as_others_are_ambiguous() {
        for name in
            ["X_Forwarded_For", "x_real_ip", "_", "Content_Length", "X.Real.IP", "X-Real~IP", "api_key"]
        {
            assert_eq!(Kind::of_request(name.as_bytes()), Kind::Ambiguous, "{name}");
        }
    }

    #[test]
    fn a_number_is_digits_and_nothing_else() {
        assert_eq!(decimal(b"0"), Some(0));
        assert_eq!(decimal(b"1048576"), Some(1_048_576));
        for text in ["", "+5", "-1", "5, 5", "0x5", "99999999999999999999", " 5"] {
            assert_eq!(decimal(text.as_bytes()), None, "{text:?}");
        }
    }

    #[test]
    fn a_span_finds_its_octets_again() {
        let whole = b"Host: a";
        let span = Span::of(&whole[6..], whole);
        assert_eq!(span.in_(whole), b"a");
    }
}
