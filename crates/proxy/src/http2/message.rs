use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Uri, request, response};

use crate::Reason;
use crate::http1::field::{Field, Span};
use crate::http1::write::{Back, Onward, request_fields, response_fields};
use crate::http1::{Delimiter, Kind, Length, Method, RequestHead, ResponseHead, Version};

/// Puts a request into the form of an HTTP/1 head: `head` speaks of what is appended to `bytes`.
///
/// RFC 9113 §8.3.1: the method, the path and the authority are pseudo-header fields; `Host` must agree with the
/// authority, and stands for it where there is none.
pub fn take_request(
    parts: &request::Parts,
    has_body: bool,
    head: &mut RequestHead,
    bytes: &mut Vec<u8>,
) -> Result<(), Reason> {
    let mut spans = Spans { bytes };
    head.version = Version::Http2;
    head.method_text = spans.push(parts.method.as_str().as_bytes());
    head.method = Method::of(parts.method.as_str().as_bytes());
    let target = parts.uri.path_and_query().map_or("/", |target| target.as_str());
    // As over HTTP/1 (RFC 9112 §3.2): what goes on to a backend is written in its request line.
    if !target.bytes().all(|octet| octet.is_ascii_graphic()) {
        return Err(Reason::Malformed);
    }
    head.target = spans.push(target.as_bytes());
    head.fields.clear();
    let authority = parts.uri.authority().map(|authority| authority.as_str().as_bytes());
    if let Some(authority) = authority {
        head.fields.push(Field { name: spans.push(b"host"), value: spans.push(authority), kind: Kind::Host });
    }
    for (name, value) in &parts.headers {
        let kind = Kind::of_request(name.as_str().as_bytes());
        match kind {
            Kind::Host if authority == Some(value.as_bytes()) => continue,
            // RFC 9113 §8.2.2: connection-specific fields make a message malformed.
            Kind::Connection | Kind::TransferEncoding | Kind::Upgrade | Kind::HopByHop => {
                return Err(Reason::Malformed);
            }
            _ => {}
        }
        head.fields.push(Field {
            name: spans.push(name.as_str().as_bytes()),
            value: spans.push(value.as_bytes()),
            kind,
        });
    }
    join_cookies(&mut head.fields, bytes);
    head.understand(bytes)?;
    head.keep_alive = true;
    // h2 holds the body to its `content-length`, so what is sent on in HTTP/1 is framed by it.
    head.length = match (has_body, head.length) {
        (false, _) => Length::None,
        (true, Length::Known(octets)) => Length::Known(octets),
        (true, _) => Length::Chunked,
    };
    Ok(())
}

/// RFC 9113 §8.2.3: cookies may be split over several fields, and are joined again for whoever does not know it.
fn join_cookies(fields: &mut Vec<Field>, bytes: &mut Vec<u8>) {
    let mut cookies = fields.iter().filter(|field| field.kind == Kind::Cookie);
    if cookies.by_ref().nth(1).is_none() {
        return;
    }
    let values: Vec<Vec<u8>> = fields
        .iter()
        .filter(|field| field.kind == Kind::Cookie)
        .map(|field| field.value.in_(bytes).to_vec())
        .collect();
    let joined = values.join(&b"; "[..]);
    let mut spans = Spans { bytes };
    let (name, value) = (spans.push(b"cookie"), spans.push(&joined));
    fields.retain(|field| field.kind != Kind::Cookie);
    fields.push(Field { name, value, kind: Kind::Cookie });
}

/// A response to a client that speaks HTTP/2.
pub fn response(head: &ResponseHead, bytes: &[u8], back: &Back<'_>) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::from_u16(head.status).unwrap_or(StatusCode::BAD_GATEWAY);
    let headers = response.headers_mut();
    headers.reserve(head.fields.len() + 2);
    let has_date = response_fields(head, bytes, back, |name, value| append(headers, name, value));
    if head.status >= 200 {
        if !has_date {
            append_lines(headers, back.date);
        }
        append_lines(headers, back.extra);
        if let Some(edits) = back.edits {
            edits.fields().for_each(|(name, value)| append(headers, name.as_bytes(), value.as_bytes()));
        }
    }
    response
}

/// A request to a backend that speaks HTTP/2; `None` when it cannot be said so.
pub fn request(head: &RequestHead, bytes: &[u8], onward: &Onward<'_>) -> Option<Request<()>> {
    let mut request = Request::new(());
    *request.version_mut() = http::Version::HTTP_2;
    *request.method_mut() = http::Method::from_bytes(head.method_text.in_(bytes)).ok()?;
    *request.uri_mut() =
        Uri::builder().scheme("http").authority(onward.host).path_and_query(onward.target).build().ok()?;
    let headers = request.headers_mut();
    headers.reserve(head.fields.len() + 8);
    request_fields(head, bytes, onward.edits, |name, value| {
        if !onward.replaces(name) {
            append(headers, name, value);
        }
    });
    if head.takes_trailers {
        headers.insert(http::header::TE, HeaderValue::from_static("trailers"));
    }
    if head.expects_continue {
        headers.insert(http::header::EXPECT, HeaderValue::from_static("100-continue"));
    }
    append_lines(headers, onward.identity);
    for (name, value) in onward.granted.iter().filter(|(_, value)| !value.is_empty()) {
        append(headers, name.as_bytes(), value);
    }
    if let Some(edits) = onward.edits {
        edits.fields().for_each(|(name, value)| append(headers, name.as_bytes(), value.as_bytes()));
    }
    Some(request)
}

/// Puts a response into the form of an HTTP/1 head, as [`take_request`] does.
pub fn take_response(
    parts: &response::Parts,
    is_over: bool,
    method: Method,
    head: &mut ResponseHead,
    bytes: &mut Vec<u8>,
) -> Result<(), Reason> {
    let mut spans = Spans { bytes };
    head.status = parts.status.as_u16();
    head.version = Version::Http2;
    let phrase = parts.status.canonical_reason().unwrap_or_default();
    head.phrase = spans.push(phrase.as_bytes());
    head.fields.clear();
    for (name, value) in &parts.headers {
        let kind = Kind::of_response(name.as_str().as_bytes());
        head.fields.push(Field {
            name: spans.push(name.as_str().as_bytes()),
            value: spans.push(value.as_bytes()),
            kind,
        });
    }
    head.understand(bytes, method).map_err(|_| Reason::BackendNonsense)?;
    head.keep_alive = true;
    head.delimiter = match head.delimiter {
        _ if is_over => Delimiter::None,
        Delimiter::Known(octets) => Delimiter::Known(octets),
        Delimiter::None => Delimiter::None,
        // The end of the stream is the end of the body.
        Delimiter::Chunked | Delimiter::Close => Delimiter::Chunked,
    };
    Ok(())
}

/// Field lines with their ends as fields.
pub fn fields(lines: &[u8]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    append_lines(&mut headers, lines);
    headers
}

/// Fields as lines with their ends.
pub fn lines(headers: &HeaderMap) -> Vec<u8> {
    let mut lines = Vec::new();
    for (name, value) in headers {
        crate::http1::write::push_field(&mut lines, name.as_str().as_bytes(), value.as_bytes());
    }
    lines
}

fn append_lines(headers: &mut HeaderMap, lines: &[u8]) {
    for line in lines.split(|&byte| byte == b'\n').filter_map(|line| line.strip_suffix(b"\r")) {
        if let Some(colon) = line.iter().position(|&byte| byte == b':') {
            append(headers, &line[..colon], line[colon + 1..].trim_ascii());
        }
    }
}

/// Names were checked when they came or were configured; what `http` does not take nevertheless is left out.
fn append(headers: &mut HeaderMap, name: &[u8], value: &[u8]) {
    // RFC 9113 §8.2.2: what concerns an HTTP/1 connection makes a message malformed here.
    let is_of_connection =
        [&b"connection"[..], b"upgrade", b"keep-alive", b"proxy-connection", b"transfer-encoding"]
            .iter()
            .any(|field| name.eq_ignore_ascii_case(field));
    if is_of_connection {
        return;
    }
    if let (Ok(name), Ok(value)) =
        (HeaderName::from_bytes(name), HeaderValue::from_maybe_shared(Bytes::copy_from_slice(value)))
    {
        let _ = headers.try_append(name, value);
    }
}

struct Spans<'a> {
    bytes: &'a mut Vec<u8>,
}

impl Spans<'_> {
    fn push(&mut self, piece: &[u8]) -> Span {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(piece);
        Span::at(start, self.bytes.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(request: Request<()>, has_body: bool) -> Result<(RequestHead, Vec<u8>), Reason> {
        let (mut head, mut bytes) = (RequestHead::default(), Vec::new());
        take_request(&request.into_parts().0, has_body, &mut head, &mut bytes)?;
        Ok((head, bytes))
    }

    // RFC 9113 §8.3.1: "Clients that generate HTTP/2 requests directly MUST use the ":authority" pseudo-header field
    // to convey authority information".
    #[test]
    fn the_authority_is_the_host() {
        let request = Request::get("http://wiki.prox.local/a?b").header("accept", "*/*").body(()).unwrap();
        let (head, bytes) = taken(request, false).unwrap();
        assert_eq!(head.host.unwrap().in_(&bytes), b"wiki.prox.local");
        assert_eq!(head.target.in_(&bytes), b"/a?b");
        assert_eq!((head.version, head.length, head.method), (Version::Http2, Length::None, Method::Get));
        assert_eq!(head.value(Kind::Accept, &bytes), Some(&b"*/*"[..]));
        let both = Request::get("http://a/").header("host", "a").body(()).unwrap();
        assert!(taken(both, false).is_ok());
        let differ = Request::get("http://a/").header("host", "b").body(()).unwrap();
        assert_eq!(taken(differ, false).unwrap_err(), Reason::DuplicateHost);
    }

    // RFC 9113 §8.2.2: "any message containing connection-specific header fields MUST be treated as malformed".
    #[test]
    fn fields_of_a_connection_make_a_message_malformed() {
        for name in ["connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"] {
            let request = Request::get("http://a/").header(name, "x").body(()).unwrap();
            assert_eq!(taken(request, false).unwrap_err(), Reason::Malformed, "{name}");
        }
    }

    #[test]
    fn split_cookies_are_joined() {
        let request = Request::get("http://a/")
            .header("cookie", "a=1")
            .header("x", "y")
            .header("cookie", "b=2")
            .body(())
            .unwrap();
        let (head, bytes) = taken(request, false).unwrap();
        assert_eq!(head.values(Kind::Cookie, &bytes).collect::<Vec<_>>(), [b"a=1; b=2"]);
    }

    #[test]
    fn a_body_is_framed_by_its_length_or_in_chunks() {
        let post = || Request::post("http://a/");
        let with = post().header("content-length", "5").body(()).unwrap();
        assert_eq!(taken(with, true).unwrap().0.length, Length::Known(5));
        assert_eq!(taken(post().body(()).unwrap(), true).unwrap().0.length, Length::Chunked);
        assert_eq!(taken(post().body(()).unwrap(), false).unwrap().0.length, Length::None);
    }

    #[test]
    fn lines_and_fields_are_the_same() {
        let headers = fields(b"grpc-status: 0\r\nX: a: b\r\nConnection: close\r\n");
        assert_eq!(lines(&headers), b"grpc-status: 0\r\nx: a: b\r\n");
    }
}
