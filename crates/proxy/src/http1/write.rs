use crate::encode::VARY;
use crate::escape::push_number;
use crate::header_edits::CompiledEdits;

use super::field::Kind;
use super::request::{Length, RequestHead, Version};
use super::response::{Delimiter, ResponseHead};
use crate::relocation::LOCATION;

/// How a request goes on to a backend.
#[derive(Clone, Copy, Debug)]
pub struct Onward<'a> {
    /// The target in origin form (RFC 9112 §3.2.1), or `*`.
    pub target: &'a [u8],
    /// What the backend gets as `Host`.
    pub host: &'a [u8],
    /// Field lines that tell who asked: `X-Forwarded-For` and the like.
    pub identity: &'a [u8],
    /// Fields that replace the client's own of those names; those with an empty value only remove.
    pub granted: &'a [(String, Vec<u8>)],
    /// What the administrator wants changed.
    pub edits: Option<&'a CompiledEdits>,
    /// How long the body is, as it is sent on.
    pub length: Length,
}

/// How a response goes on to a client.
#[derive(Clone, Copy, Debug)]
pub struct Back<'a> {
    /// Version of the request.
    pub version: Version,
    /// Whether the connection stays open afterwards.
    pub keep_alive: bool,
    /// Where the body ends, as it is sent on.
    pub delimiter: Delimiter,
    /// `Date: …` with its line end, for a response that has none.
    pub date: &'a [u8],
    /// Further field lines.
    pub extra: &'a [u8],
    /// What the administrator wants changed.
    pub edits: Option<&'a CompiledEdits>,
    /// Whether the body's coding is changed on the way: what describes the octets of the old one goes.
    pub recoded: bool,
    /// Whether `extra` says what the response varies by, in place of the backend's own lines.
    pub varies: bool,
    /// Whether `extra` says where the client is sent, in place of the backend's own line.
    pub relocated: bool,
}

impl Onward<'_> {
    /// Whether the client's own fields of this name are replaced.
    pub fn replaces(&self, name: &[u8]) -> bool {
        self.granted.iter().any(|(granted, _)| granted.as_bytes().eq_ignore_ascii_case(name))
    }
}

impl Back<'_> {
    /// An interim response, or one that changes the protocol.
    pub fn interim(version: Version) -> Back<'static> {
        Back {
            version,
            keep_alive: true,
            delimiter: Delimiter::None,
            date: b"",
            extra: b"",
            edits: None,
            recoded: false,
            varies: false,
            relocated: false,
        }
    }
}

/// Appends a request as a backend gets it. Hop-by-hop fields go, and what the client claims about itself is
/// replaced by what is known: nobody can forge an address that a backend would believe.
pub fn request(out: &mut Vec<u8>, head: &RequestHead, bytes: &[u8], onward: &Onward<'_>) {
    out.extend_from_slice(head.method_text.in_(bytes));
    out.push(b' ');
    out.extend_from_slice(onward.target);
    out.extend_from_slice(b" HTTP/1.1\r\nHost: ");
    out.extend_from_slice(onward.host);
    out.extend_from_slice(b"\r\n");
    request_fields(head, bytes, onward.edits, |name, value| {
        if !onward.replaces(name) {
            push_field(out, name, value);
        }
    });
    match onward.length {
        Length::Chunked => out.extend_from_slice(b"Transfer-Encoding: chunked\r\n"),
        Length::Known(_) | Length::None => {}
    }
    if let Some(protocol) = head.upgrade {
        // RFC 9110 §7.8: an intermediary forwards it as an upgrade of its own.
        out.extend_from_slice(b"Connection: upgrade\r\n");
        push_field(out, b"Upgrade", protocol.in_(bytes));
    }
    if head.expects_continue {
        out.extend_from_slice(b"Expect: 100-continue\r\n");
    }
    out.extend_from_slice(onward.identity);
    for (name, value) in onward.granted.iter().filter(|(_, value)| !value.is_empty()) {
        push_field(out, name.as_bytes(), value);
    }
    if let Some(edits) = onward.edits {
        out.extend_from_slice(edits.lines());
    }
    out.extend_from_slice(b"\r\n");
}

/// The fields of a request that go on to a backend, whatever version of HTTP it speaks.
pub fn request_fields<'a>(
    head: &RequestHead,
    bytes: &'a [u8],
    edits: Option<&CompiledEdits>,
    mut each: impl FnMut(&'a [u8], &'a [u8]),
) {
    for field in &head.fields {
        match field.kind {
            Kind::Plain
            | Kind::Date
            | Kind::Accept
            | Kind::AcceptEncoding
            | Kind::Authorization
            | Kind::ContentEncoding
            | Kind::ContentType
            | Kind::Cookie
            | Kind::Via => {}
            Kind::ContentLength if head.length != Length::Chunked => {}
            _ => continue,
        }
        let name = field.name.in_(bytes);
        if edits.is_some_and(|edits| edits.is_removed(name)) {
            continue;
        }
        each(name, field.value.in_(bytes));
    }
}

/// Appends the head of a response as a client gets it.
pub fn response(out: &mut Vec<u8>, head: &ResponseHead, bytes: &[u8], back: &Back<'_>) {
    if head.status == 200 {
        out.extend_from_slice(b"HTTP/1.1 200 OK\r\n");
    } else {
        out.extend_from_slice(b"HTTP/1.1 ");
        push_number(out, u64::from(head.status));
        out.push(b' ');
        out.extend_from_slice(head.phrase.in_(bytes));
        out.extend_from_slice(b"\r\n");
    }
    let has_date = response_fields(head, bytes, back, |name, value| push_field(out, name, value));
    if !has_date && head.status >= 200 {
        out.extend_from_slice(back.date);
    }
    if head.status >= 200 {
        if back.delimiter == Delimiter::Chunked {
            out.extend_from_slice(b"Transfer-Encoding: chunked\r\n");
        }
        match (back.version, back.keep_alive) {
            (Version::Http10, true) => out.extend_from_slice(b"Connection: keep-alive\r\n"),
            (_, false) => out.extend_from_slice(b"Connection: close\r\n"),
            _ => {}
        }
        out.extend_from_slice(back.extra);
        if let Some(edits) = back.edits {
            out.extend_from_slice(edits.lines());
        }
    }
    out.extend_from_slice(b"\r\n");
}

/// The fields of a response that go on to a client, whatever version of HTTP it speaks. Returns whether `Date`
/// was among them.
pub fn response_fields<'a>(
    head: &ResponseHead,
    bytes: &'a [u8],
    back: &Back<'_>,
    mut each: impl FnMut(&'a [u8], &'a [u8]),
) -> bool {
    let mut has_date = false;
    for field in &head.fields {
        let name = field.name.in_(bytes);
        match field.kind {
            Kind::Plain if back.recoded && is_of_the_octets(name) => continue,
            Kind::Plain if back.varies && name.eq_ignore_ascii_case(VARY) => continue,
            Kind::Plain if back.relocated && name.eq_ignore_ascii_case(LOCATION) => continue,
            Kind::Plain | Kind::ContentType | Kind::ContentEncoding | Kind::Via => {}
            Kind::Date => has_date = true,
            Kind::ContentLength if back.delimiter != Delimiter::Chunked && !back.recoded => {}
            Kind::Upgrade if head.status == 101 || head.status == 426 => {
                // RFC 9110 §7.8: a sender of Upgrade must name it in Connection.
                each(b"Connection", b"upgrade");
            }
            _ => continue,
        }
        if !back.edits.is_some_and(|edits| edits.is_removed(name)) {
            each(name, field.value.in_(bytes));
        }
    }
    has_date
}

/// Whether a field tells of the octets of a body, and not of what they mean.
fn is_of_the_octets(name: &[u8]) -> bool {
    [&b"accept-ranges"[..], b"content-md5", b"etag", b"repr-digest", b"content-digest"]
        .iter()
        .any(|field| name.eq_ignore_ascii_case(field))
}

/// Appends `name: value` with its line end.
pub fn push_field(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.reserve(name.len() + value.len() + 4);
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// Appends the line that begins a chunk of `size` octets.
pub fn push_chunk_size(out: &mut Vec<u8>, size: usize) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let digits = (usize::BITS - size.leading_zeros()).div_ceil(4).max(1);
    for at in (0..digits).rev() {
        out.push(HEX[(size >> (at * 4)) & 15]);
    }
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http1::Method;

    fn onward(text: &str, edits: Option<&CompiledEdits>) -> String {
        let mut head = RequestHead::default();
        head.parse(text.as_bytes()).unwrap().unwrap();
        let mut out = Vec::new();
        let onward = Onward {
            target: head.target.in_(text.as_bytes()),
            host: b"10.20.0.101:80",
            identity: b"X-Real-IP: 192.168.1.7\r\n",
            granted: &[
                ("Remote-User".to_owned(), b"alice".to_vec()),
                ("Remote-Group".to_owned(), Vec::new()),
            ],
            edits,
            length: head.length,
        };
        request(&mut out, &head, text.as_bytes(), &onward);
        String::from_utf8(out).unwrap()
    }

    fn back(text: &str, version: Version, keep_alive: bool) -> String {
        let mut head = ResponseHead::default();
        head.parse(text.as_bytes(), Method::Get).unwrap().unwrap();
        let mut out = Vec::new();
        let back = Back {
            version,
            keep_alive,
            delimiter: head.delimiter,
            date: b"Date: now\r\n",
            extra: b"",
            edits: None,
            recoded: false,
            varies: false,
            relocated: false,
        };
        response(&mut out, &head, text.as_bytes(), &back);
        String::from_utf8(out).unwrap()
    }

    // RFC 9110 §7.6.1: hop-by-hop fields; and what a client claims about itself.
    #[test]
    fn a_request_goes_on_without_claims_and_without_what_concerns_one_hop() {
        let text = "POST /a?b HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, X-Mine\r\nX-Mine: 1\r\nKeep-Alive: 5\r\n\
                    TE: trailers\r\nX-Forwarded-For: 1.2.3.4\r\nForwarded: for=1.2.3.4\r\nX-Real-IP: 1.2.3.4\r\n\
                    Remote-User: root\r\nRemote-Group: root\r\nProxy: evil\r\nX_Real_IP: 1.2.3.4\r\nCookie: a=b\r\nContent-Length: 3\r\nAccept: */*\r\n\r\n";
        assert_eq!(
            onward(text, None),
            "POST /a?b HTTP/1.1\r\nHost: 10.20.0.101:80\r\nCookie: a=b\r\nContent-Length: 3\r\nAccept: */*\r\n\
             X-Real-IP: 192.168.1.7\r\nRemote-User: alice\r\n\r\n"
        );
    }

    #[test]
    fn an_upgrade_and_an_expectation_go_on_as_our_own() {
        let text = "GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: k\r\n\
                    Expect: 100-continue\r\n\r\n";
        assert_eq!(
            onward(text, None),
            "GET /ws HTTP/1.1\r\nHost: 10.20.0.101:80\r\nSec-WebSocket-Key: k\r\nConnection: upgrade\r\n\
             Upgrade: websocket\r\nExpect: 100-continue\r\nX-Real-IP: 192.168.1.7\r\nRemote-User: alice\r\n\r\n"
        );
    }

    #[test]
    fn a_response_goes_back_with_our_framing_and_a_date() {
        let text = "HTTP/1.0 404 Nope\r\nServer: x\r\nConnection: close, X-Mine\r\nX-Mine: 1\r\nContent-Length: 3\r\n\r\n";
        assert_eq!(
            back(text, Version::Http11, true),
            "HTTP/1.1 404 Nope\r\nServer: x\r\nContent-Length: 3\r\nDate: now\r\n\r\n"
        );
        assert_eq!(
            back(text, Version::Http10, true),
            "HTTP/1.1 404 Nope\r\nServer: x\r\nContent-Length: 3\r\nDate: now\r\nConnection: keep-alive\r\n\r\n"
        );
        let chunked =
            "HTTP/1.1 200 Fine\r\nDate: then\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n";
        assert_eq!(
            back(chunked, Version::Http11, false),
            "HTTP/1.1 200 OK\r\nDate: then\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        );
    }

    #[test]
    fn chunk_sizes_are_hexadecimal() {
        for size in [0, 1, 15, 16, 255, 4096, 1 << 20] {
            let mut out = Vec::new();
            push_chunk_size(&mut out, size);
            assert_eq!(String::from_utf8(out).unwrap(), format!("{size:x}\r\n"));
        }
    }
}
