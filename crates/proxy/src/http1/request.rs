use std::mem::MaybeUninit;

use super::field::{self, Field, Kind, Span, decimal, tokens};
use crate::Reason;

/// Fields of one head, at most.
pub const MOST_FIELDS: usize = 128;

/// Options that `Connection` may name.
const MOST_OPTIONS: usize = 32;

/// The head of a request. It is parsed again and again in place: only the list of fields is on the heap, and
/// it is kept.
#[derive(Clone, Debug, Default)]
pub struct RequestHead {
    /// The method.
    pub method: Method,
    /// The method as it was written.
    pub method_text: Span,
    /// The whole request target as it was written.
    pub target: Span,
    /// The version of the message.
    pub version: Version,
    /// The fields in their order.
    pub fields: Vec<Field>,
    /// How long the body is.
    pub length: Length,
    /// Whether the client wants to send another request afterwards.
    pub keep_alive: bool,
    /// The protocol that the client asks to change to, if it may.
    pub upgrade: Option<Span>,
    /// Whether the client waits for `100 (Continue)` before it sends the body.
    pub expects_continue: bool,
    /// Whether the client takes trailers (`TE: trailers`).
    pub takes_trailers: bool,
    /// The `Host` field.
    pub host: Option<Span>,
    /// Fields whose names backends could read as others.
    pub ambiguous: u32,
}

/// A request method, as far as it makes a difference.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Method {
    #[default]
    Get,
    Head,
    Options,
    Trace,
    Put,
    Delete,
    Post,
    Connect,
    /// Any other: neither safe nor idempotent as far as we know.
    Other,
}

/// The version of a message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    Http10,
    #[default]
    Http11,
    Http2,
}

impl Version {
    /// The field that tells of a message that came in this version (RFC 9110 §7.6.3).
    pub fn via(self) -> &'static [u8] {
        match self {
            Version::Http10 => b"Via: 1.0 proximity\r\n",
            Version::Http11 => b"Via: 1.1 proximity\r\n",
            Version::Http2 => b"Via: 2.0 proximity\r\n",
        }
    }
}

/// How long the body of a request is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Length {
    /// There is none.
    #[default]
    None,
    /// That many octets, at least one.
    Known(u64),
    /// Until the last chunk.
    Chunked,
}

impl RequestHead {
    /// Parses the head at the beginning of `bytes`; `None` when its end is not there yet. Returns its length
    /// in octets. After an error no more of the connection can be understood.
    ///
    /// What two parsers could understand differently is refused (RFC 9112 §11.2, request smuggling).
    pub fn parse(&mut self, bytes: &[u8]) -> Result<Option<usize>, Reason> {
        let mut headers = [const { MaybeUninit::uninit() }; MOST_FIELDS];
        let mut request = httparse::Request::new(&mut []);
        let length = match request.parse_with_uninit_headers(bytes, &mut headers) {
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(error) => return Err(diagnose(bytes, error)),
        };
        let head = &bytes[..length];
        refuse_bare_line_feeds(head)?;
        let (method, target) = (request.method.unwrap_or_default(), request.path.unwrap_or_default());
        self.method = Method::of(method.as_bytes());
        self.method_text = Span::of(method.as_bytes(), bytes);
        self.target = Span::of(target.as_bytes(), bytes);
        self.version = if request.version == Some(0) { Version::Http10 } else { Version::Http11 };
        if !target.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Reason::InvalidTarget);
        }
        field::take(&mut self.fields, request.headers, bytes, Kind::of_request);
        self.understand(head)?;
        Ok(Some(length))
    }

    /// Takes the meaning of the fields in: what `parse` found in `head`, or what another version of HTTP put
    /// there in the same form.
    pub fn understand(&mut self, head: &[u8]) -> Result<(), Reason> {
        self.length = Length::None;
        self.keep_alive = self.version == Version::Http11;
        self.upgrade = None;
        self.expects_continue = false;
        self.takes_trailers = false;
        self.host = None;
        self.ambiguous = 0;
        let (mut has_length, mut is_chunked, mut names_upgrade, mut names_others) =
            (false, false, false, false);
        for field in &self.fields {
            let value = field.value.in_(head);
            match field.kind {
                Kind::Plain => {}
                Kind::Host if self.host.replace(field.value).is_some() => return Err(Reason::DuplicateHost),
                Kind::ContentLength => {
                    let length = decimal(value).filter(|_| !has_length && !is_chunked);
                    has_length = true;
                    match length.ok_or(Reason::AmbiguousLength)? {
                        0 => {}
                        length => self.length = Length::Known(length),
                    }
                }
                Kind::TransferEncoding => {
                    if has_length || is_chunked {
                        return Err(Reason::AmbiguousLength);
                    }
                    // RFC 9112 §6.1: a transfer coding in HTTP/1.0 is a sign of faulty framing.
                    if !value.eq_ignore_ascii_case(b"chunked") || self.version == Version::Http10 {
                        return Err(Reason::TransferCoding);
                    }
                    is_chunked = true;
                    self.length = Length::Chunked;
                }
                Kind::Connection => {
                    for token in tokens(value) {
                        if token.eq_ignore_ascii_case(b"close") {
                            self.keep_alive = false;
                        } else if token.eq_ignore_ascii_case(b"keep-alive") {
                            self.keep_alive |= self.version == Version::Http10;
                        } else if token.eq_ignore_ascii_case(b"upgrade") {
                            names_upgrade = true;
                        } else {
                            names_others = true;
                        }
                    }
                }
                Kind::Upgrade => self.upgrade = Some(field.value),
                // RFC 9110 §10.1.1: nothing else is defined, and HTTP/1.0 does not know it.
                Kind::Expect => {
                    if !value.eq_ignore_ascii_case(b"100-continue") {
                        return Err(Reason::Expectation);
                    }
                    self.expects_continue = self.version > Version::Http10;
                }
                Kind::Te => {
                    let is_trailers = |token: &[u8]| token.eq_ignore_ascii_case(b"trailers");
                    self.takes_trailers |= tokens(value).any(is_trailers);
                }
                Kind::Ambiguous => self.ambiguous += 1,
                _ => {}
            }
        }
        // An `h2c` upgrade may not: a backend that agreed would get a tunnel whose requests nobody here sees.
        self.upgrade = self.upgrade.filter(|protocol| {
            let is_h2c =
                |token: &[u8]| token.get(..3).is_some_and(|begin| begin.eq_ignore_ascii_case(b"h2c"));
            // RFC 9110 §7.8 lets it have a body, behind which the new protocol begins. Nobody asks so in chunks.
            let may_change = self.version == Version::Http11 && self.length != Length::Chunked;
            names_upgrade && may_change && !tokens(protocol.in_(head)).any(is_h2c)
        });
        if names_others && !mark_named_by_connection(&mut self.fields, head) {
            return Err(Reason::Malformed);
        }
        Ok(())
    }

    /// The values of the fields of a kind.
    pub fn values<'a>(&self, kind: Kind, head: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
        self.fields.iter().filter(move |field| field.kind == kind).map(|field| field.value.in_(head))
    }

    /// The value of the first field of a kind.
    pub fn value<'a>(&self, kind: Kind, head: &'a [u8]) -> Option<&'a [u8]> {
        self.values(kind, head).next()
    }

    /// The value of the first field of a name, whatever its case.
    pub fn named<'a>(&self, name: &[u8], head: &'a [u8]) -> Option<&'a [u8]> {
        let found = self.fields.iter().find(|field| field.name.in_(head).eq_ignore_ascii_case(name))?;
        Some(found.value.in_(head))
    }
}

impl Method {
    /// The method of this name; methods are case-sensitive (RFC 9110 §9.1).
    pub fn of(name: &[u8]) -> Method {
        match name {
            b"GET" => Method::Get,
            b"HEAD" => Method::Head,
            b"OPTIONS" => Method::Options,
            b"TRACE" => Method::Trace,
            b"PUT" => Method::Put,
            b"DELETE" => Method::Delete,
            b"POST" => Method::Post,
            b"CONNECT" => Method::Connect,
            _ => Method::Other,
        }
    }

    /// Whether a request may be sent again without harm (RFC 9110 §9.2.2).
    pub fn is_idempotent(self) -> bool {
        !matches!(self, Method::Post | Method::Connect | Method::Other)
    }
}

/// RFC 9110 §7.6.1: the fields that `Connection` names concern this connection only. Those that describe the
/// message must not be listed there, and taking them away would change what the message says.
///
/// Returns false when it names more than anybody would: each is compared with every field.
pub(super) fn mark_named_by_connection(fields: &mut [Field], head: &[u8]) -> bool {
    let values = fields.iter().filter(|field| field.kind == Kind::Connection);
    if values.flat_map(|field| tokens(field.value.in_(head))).nth(MOST_OPTIONS).is_some() {
        return false;
    }
    for at in 0..fields.len() {
        if fields[at].kind != Kind::Connection {
            continue;
        }
        for token in tokens(fields[at].value.in_(head)) {
            for field in fields.iter_mut() {
                let stays = matches!(
                    field.kind,
                    Kind::Host
                        | Kind::ContentLength
                        | Kind::TransferEncoding
                        | Kind::Connection
                        | Kind::Upgrade
                );
                if !stays && field.name.in_(head).eq_ignore_ascii_case(token) {
                    field.kind = Kind::HopByHop;
                }
            }
        }
    }
    true
}

/// RFC 9112 §2.2 lets a recipient take a lone LF for a line's end. Not all do, so two of them could see different
/// messages in the same octets.
fn refuse_bare_line_feeds(head: &[u8]) -> Result<(), Reason> {
    for at in memchr::memchr_iter(b'\n', head) {
        if at == 0 || head[at - 1] != b'\r' {
            return Err(Reason::BareLineFeed);
        }
    }
    Ok(())
}

/// Why the parser refused a head, in the words of the counters.
fn diagnose(bytes: &[u8], error: httparse::Error) -> Reason {
    use httparse::Error;
    if error == Error::TooManyHeaders {
        return Reason::HeadTooLarge;
    }
    // The refused octet lies in the last line that has begun; what is wrong with the lines before it decides.
    let mut lines = bytes.split(|&byte| byte == b'\n').skip_while(|line| line.is_empty() || *line == b"\r");
    let first = lines.next().unwrap_or_default();
    if !first.ends_with(b"\r") && first.len() < bytes.len() && bytes.contains(&b'\n') {
        return Reason::BareLineFeed;
    }
    if error == Error::Token || error == Error::Version || error == Error::NewLine {
        return Reason::Malformed;
    }
    for line in lines {
        match line.first() {
            Some(b' ' | b'\t') => return Reason::FoldedHeader,
            _ if line == b"\r" => break,
            _ => {
                let name = line.split(|&byte| byte == b':').next().unwrap_or_default();
                if name.len() < line.len() && name.last().is_some_and(|byte| matches!(byte, b' ' | b'\t')) {
                    return Reason::SpaceBeforeColon;
                }
            }
        }
    }
    Reason::Malformed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Option<RequestHead>, Reason> {
        let mut head = RequestHead::default();
        Ok(head.parse(text.as_bytes())?.map(|_| head))
    }

    fn with(fields: &str) -> Result<RequestHead, Reason> {
        parse(&format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n")).map(Option::unwrap)
    }

    #[test]
    fn a_head_is_taken_apart_in_place() {
        let text =
            b"GET /a?b HTTP/1.1\r\nHost: x\r\nAccept:  text/html \r\nConnection: keep-alive\r\n\r\nrest";
        let mut head = RequestHead::default();
        assert_eq!(head.parse(text), Ok(Some(text.len() - 4)));
        assert_eq!((head.method, head.version, head.keep_alive), (Method::Get, Version::Http11, true));
        assert_eq!(head.target.in_(text), b"/a?b");
        assert_eq!(head.host.unwrap().in_(text), b"x");
        assert_eq!(head.value(Kind::Accept, text), Some(&b"text/html"[..]));
        assert_eq!(head.length, Length::None);
        for cut in 0..text.len() - 5 {
            assert_eq!(head.parse(&text[..cut]), Ok(None), "{cut}");
        }
    }

    #[test]
    fn the_length_of_a_body_is_told_by_one_field() {
        assert_eq!(with("Content-Length: 5").unwrap().length, Length::Known(5));
        assert_eq!(with("Content-Length: 0").unwrap().length, Length::None);
        assert_eq!(with("Transfer-Encoding: Chunked").unwrap().length, Length::Chunked);
    }

    // RFC 9112 §6.1: "A server MAY reject a request that contains both Content-Length and Transfer-Encoding".
    #[test]
    fn what_two_parsers_could_read_differently_is_refused() {
        for fields in [
            "Content-Length: 5\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: chunked\r\nContent-Length: 5",
            "Content-Length: 0\r\nTransfer-Encoding: chunked",
            "Content-Length: 5\r\nContent-Length: 5",
            "Content-Length: 0\r\nContent-Length: 5",
            "Content-Length: +5",
            "Content-Length: 5, 5",
            "Content-Length:",
            "Content-Length: 99999999999999999999",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        ] {
            assert_eq!(with(fields).unwrap_err(), Reason::AmbiguousLength, "{fields}");
        }
        for fields in
            ["Transfer-Encoding: gzip, chunked", "Transfer-Encoding: xchunked", "Transfer-Encoding:"]
        {
            assert_eq!(with(fields).unwrap_err(), Reason::TransferCoding, "{fields}");
        }
        assert_eq!(with("X: a\r\n b").unwrap_err(), Reason::FoldedHeader);
        assert_eq!(with("X : a").unwrap_err(), Reason::SpaceBeforeColon);
        assert_eq!(with("Content-Length : 5").unwrap_err(), Reason::SpaceBeforeColon);
        assert_eq!(with("Host: b").unwrap_err(), Reason::DuplicateHost);
        assert_eq!(with("X: a\0b").unwrap_err(), Reason::Malformed);
        assert_eq!(with("X: a\rb").unwrap_err(), Reason::Malformed);
        assert_eq!(with("Expect: 200-maybe").unwrap_err(), Reason::Expectation);
        let refused = |text: &str| parse(text).unwrap_err();
        assert_eq!(refused("GET / HTTP/1.1\nHost: a\n\n"), Reason::BareLineFeed);
        assert_eq!(refused("GET / HTTP/1.1\r\nHost: a\r\n\n"), Reason::BareLineFeed);
        assert_eq!(refused("GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n"), Reason::BareLineFeed);
        assert_eq!(refused("\nGET / HTTP/1.1\r\nHost: a\r\n\r\n"), Reason::BareLineFeed);
        assert_eq!(refused("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"), Reason::TransferCoding);
        assert_eq!(refused("GET /caf\u{e9} HTTP/1.1\r\nHost: a\r\n\r\n"), Reason::InvalidTarget);
        for line in
            ["GET  / HTTP/1.1", "GET / HTTP/1.1 ", "GET / HTTP/2.0", "GET /", "GET / x", "G@T / HTTP/1.1"]
        {
            assert!(parse(&format!("{line}\r\nHost: a\r\n\r\n")).is_err(), "{line}");
        }
    }

    // RFC 9110 §7.6.1: "Intermediaries MUST parse a received Connection header field before a message is
    // forwarded and, for each connection-option in this field, remove any header or trailer field(s) from
    // the message with the same name as the connection-option".
    #[test]
    fn fields_that_connection_names_are_of_this_hop() {
        let text =
            "GET / HTTP/1.1\r\nHost: a\r\nConnection: X-Mine, host, content-length\r\nx-mine: 1\r\n\r\n";
        let head = parse(text).unwrap().unwrap();
        let kind = |name: &str| {
            let is = |field: &&Field| field.name.in_(text.as_bytes()) == name.as_bytes();
            head.fields.iter().find(is).unwrap().kind
        };
        assert_eq!(kind("x-mine"), Kind::HopByHop);
        assert_eq!(kind("Host"), Kind::Host);
    }

    #[test]
    fn who_wants_to_go_on_says_so() {
        assert!(parse("GET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap().unwrap().keep_alive);
        assert!(!with("Connection: close").unwrap().keep_alive);
        assert!(!parse("GET / HTTP/1.0\r\n\r\n").unwrap().unwrap().keep_alive);
        assert!(parse("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n").unwrap().unwrap().keep_alive);
    }

    #[test]
    fn only_a_named_upgrade_counts_and_h2c_does_not() {
        assert!(with("Connection: keep-alive, Upgrade\r\nUpgrade: websocket").unwrap().upgrade.is_some());
        assert_eq!(with("Connection: keep-alive\r\nUpgrade: websocket").unwrap().upgrade, None);
        assert_eq!(with("Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c").unwrap().upgrade, None);
    }

    // RFC 9110 §7.8: "A client cannot begin using an upgraded protocol on the connection until it has completely sent
    // the request message".
    #[test]
    fn an_upgrade_may_have_a_body_of_known_length() {
        let upgrade =
            |more: &str| with(&format!("Connection: Upgrade\r\nUpgrade: tcp\r\n{more}")).unwrap().upgrade;
        assert!(upgrade("Content-Length: 5").is_some());
        assert_eq!(upgrade("Transfer-Encoding: chunked"), None);
        let old = "POST / HTTP/1.0\r\nContent-Length: 5\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n";
        assert_eq!(parse(old).unwrap().unwrap().upgrade, None);
    }

    #[test]
    fn more_fields_than_fit_are_refused() {
        assert_eq!(with("X: 1\r\n".repeat(MOST_FIELDS).trim_end()).unwrap_err(), Reason::HeadTooLarge);
    }
}
