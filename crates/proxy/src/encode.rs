use std::io::{self, Write};
use std::task::{Context, Poll};

use flate2::Compression;
use flate2::write::GzEncoder;

use crate::http1::field::tokens;
use crate::http1::{Delimiter, Kind, Method, RequestHead, ResponseHead};
use crate::side::{Cut, Source};

/// What [`vary`] takes the place of.
pub const VARY: &[u8] = b"vary";
/// Octets from which on a body of known length is worth it: less fits into one packet anyway.
const WORTH_IT: u64 = 1024;
/// zstd's level for content that is made as it is sent, and the logarithm of the octets that it looks back.
const ZSTD_LEVEL: i32 = 3;
const ZSTD_WINDOW: u32 = 18;

/// A content coding (RFC 9110 §8.4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
}

/// The state of a body that is compressed on its way.
pub struct Encoding {
    encoder: Encoder,
    taken: usize,
    /// Octets were taken that have not come out yet.
    is_behind: bool,
    is_over: bool,
}

/// A body that is compressed on its way.
pub struct Encoded<'a, S> {
    pub source: &'a mut S,
    pub encoding: &'a mut Encoding,
}

enum Encoder {
    Gzip(GzEncoder<Vec<u8>>),
    Zstd(zstd::stream::write::Encoder<'static, Vec<u8>>),
}

impl Coding {
    /// The coding that the client takes, for a response that [`depends_on_client`].
    pub fn choose(request: &RequestHead, bytes: &[u8], response: &ResponseHead) -> Option<Coding> {
        if request.method == Method::Head || response.delimiter == Delimiter::None {
            return None;
        }
        let (mut zstd, mut gzip, mut identity) = (0, 0, 0);
        for element in request.values(Kind::AcceptEncoding, bytes).flat_map(tokens) {
            let (name, weight) = weighted(element);
            for (known, best) in [("zstd", &mut zstd), ("gzip", &mut gzip), ("identity", &mut identity)] {
                if name.eq_ignore_ascii_case(known.as_bytes()) {
                    *best = weight.max(*best);
                }
            }
        }
        // What weighs the same is ours to choose.
        let (coding, weight) = if zstd >= gzip { (Coding::Zstd, zstd) } else { (Coding::Gzip, gzip) };
        (weight > 0 && weight >= identity).then_some(coding)
    }

    /// Field lines for a response with this coding. A strong validator would promise the same octets.
    pub fn fields(self, etag: Option<&[u8]>) -> Vec<u8> {
        let mut lines = format!("Content-Encoding: {}\r\n", self.as_str()).into_bytes();
        if let Some(etag) = etag {
            let weak = if etag.starts_with(b"W/") { &b""[..] } else { b"W/" };
            for part in [b"ETag: ", weak, etag, b"\r\n"] {
                lines.extend_from_slice(part);
            }
        }
        lines
    }

    fn as_str(self) -> &'static str {
        match self {
            Coding::Gzip => "gzip",
            Coding::Zstd => "zstd",
        }
    }

    fn encoder(self) -> io::Result<Encoder> {
        Ok(match self {
            Coding::Gzip => Encoder::Gzip(GzEncoder::new(Vec::new(), Compression::new(5))),
            Coding::Zstd => {
                let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), ZSTD_LEVEL)?;
                encoder.window_log(ZSTD_WINDOW)?;
                Encoder::Zstd(encoder)
            }
        })
    }
}

/// Whether some clients get a response compressed, so that it is another one for others (RFC 9110 §12.5.5).
///
/// A part of a representation, or one that says `no-transform` (RFC 9110 §7.7), stays as it is for everybody.
pub fn depends_on_client(method: Method, response: &ResponseHead, bytes: &[u8]) -> bool {
    let is_long = match response.delimiter {
        // What HEAD is answered with is what GET would be. How long that is may be unknown.
        Delimiter::None => method == Method::Head,
        Delimiter::Known(octets) => octets >= WORTH_IT,
        Delimiter::Chunked | Delimiter::Close => true,
    };
    let is_whole = matches!(response.status, 200 | 201 | 203 | 404 | 410 | 500..=599);
    let named = |name: &[u8]| response.named(name, bytes);
    match response.status {
        // RFC 9110 §15.4.5: it says of what varies what the 200 would have said, and seldom its type.
        304 => named(b"content-type").is_none_or(shrinks),
        _ if !is_whole || !is_long => false,
        _ => {
            named(b"content-type").is_some_and(shrinks)
                && named(b"content-encoding").is_none()
                && named(b"content-range").is_none()
                && !named(b"cache-control").is_some_and(|value| has_token(value, b"no-transform"))
        }
    }
}

/// `Vary` for a response that [`depends_on_client`]: what the backend says it varies by, in one line, and
/// `Accept-Encoding`. `None` when the backend says so already.
pub fn vary(response: &ResponseHead, bytes: &[u8]) -> Option<Vec<u8>> {
    let said = response.fields.iter().filter(|field| field.name.in_(bytes).eq_ignore_ascii_case(VARY));
    let said = || said.clone().map(|field| field.value.in_(bytes)).filter(|value| !value.is_empty());
    if said().any(|value| has_token(value, b"*") || has_token(value, b"accept-encoding")) {
        return None;
    }
    let mut line = b"Vary: ".to_vec();
    for value in said() {
        line.extend_from_slice(value);
        line.extend_from_slice(b", ");
    }
    line.extend_from_slice(b"Accept-Encoding\r\n");
    Some(line)
}

/// An element of `Accept-Encoding` and how much it is wanted, in thousandths (RFC 9110 §12.4.2). What is no weight
/// counts as none.
pub fn weighted(element: &[u8]) -> (&[u8], u32) {
    let mut parts = element.split(|&byte| byte == b';').map(<[u8]>::trim_ascii);
    let name = parts.next().unwrap_or_default();
    let value = parts.find_map(|part| part.strip_prefix(b"q=").or_else(|| part.strip_prefix(b"Q=")));
    (name, value.map_or(1000, |value| thousandths(value).unwrap_or(0)))
}

/// `0.25` as 250; at most three decimals and 1.
fn thousandths(value: &[u8]) -> Option<u32> {
    let (&whole, rest) = value.split_first()?;
    let decimals = if rest.is_empty() { rest } else { rest.strip_prefix(b".")? };
    if decimals.len() > 3 {
        return None;
    }
    let mut sum = 0;
    for at in 0..4 {
        let digit = if at == 0 { whole } else { decimals.get(at - 1).copied().unwrap_or(b'0') };
        sum = sum * 10 + char::from(digit).to_digit(10)?;
    }
    (sum <= 1000).then_some(sum)
}

/// Whether content of a type gets shorter. Events are not held back for it.
fn shrinks(kind: &[u8]) -> bool {
    let kind = kind.split(|&byte| byte == b';').next().unwrap_or_default().trim_ascii().to_ascii_lowercase();
    (kind.starts_with(b"text/") && kind != b"text/event-stream")
        || kind.ends_with(b"+json")
        || kind.ends_with(b"+xml")
        || matches!(
            kind.as_slice(),
            b"application/json"
                | b"application/javascript"
                | b"application/xml"
                | b"application/wasm"
                | b"application/manifest+json"
                | b"image/svg+xml"
                | b"image/bmp"
                | b"font/ttf"
                | b"font/otf"
        )
}

fn has_token(value: &[u8], token: &[u8]) -> bool {
    tokens(value).any(|part| part.eq_ignore_ascii_case(token))
}

impl Encoding {
    /// The beginning of a body. The error is one of memory.
    pub fn new(coding: Coding) -> io::Result<Encoding> {
        Ok(Encoding { encoder: coding.encoder()?, taken: 0, is_behind: false, is_over: false })
    }

    fn rest(&self) -> &[u8] {
        &self.encoder.output()[self.taken..]
    }
}

impl Encoder {
    fn output(&self) -> &Vec<u8> {
        match self {
            Encoder::Gzip(encoder) => encoder.get_ref(),
            Encoder::Zstd(encoder) => encoder.get_ref(),
        }
    }

    fn output_mut(&mut self) -> &mut Vec<u8> {
        match self {
            Encoder::Gzip(encoder) => encoder.get_mut(),
            Encoder::Zstd(encoder) => encoder.get_mut(),
        }
    }

    fn take(&mut self, data: &[u8]) -> io::Result<()> {
        match self {
            Encoder::Gzip(encoder) => encoder.write_all(data),
            Encoder::Zstd(encoder) => encoder.write_all(data),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Encoder::Gzip(encoder) => encoder.flush(),
            Encoder::Zstd(encoder) => encoder.flush(),
        }
    }

    fn finish(&mut self) -> io::Result<()> {
        match self {
            Encoder::Gzip(encoder) => encoder.try_finish(),
            Encoder::Zstd(encoder) => encoder.do_finish(),
        }
    }
}

impl<S: Source> Source for Encoded<'_, S> {
    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, Cut>> {
        let Encoded { source, encoding } = self;
        loop {
            match encoding.rest().len() {
                0 if encoding.is_over => return Poll::Ready(Ok(0)),
                0 => {}
                octets => return Poll::Ready(Ok(octets)),
            }
            encoding.encoder.output_mut().clear();
            encoding.taken = 0;
            let done = match source.poll_data(cx) {
                // What came so far is of use now, not when more comes.
                Poll::Pending if encoding.is_behind => {
                    encoding.is_behind = false;
                    encoding.encoder.flush()
                }
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(0)) => {
                    encoding.is_over = true;
                    encoding.encoder.finish()
                }
                Poll::Ready(Ok(octets)) => {
                    encoding.is_behind = true;
                    let done = encoding.encoder.take(source.data());
                    source.consume(octets);
                    done
                }
                Poll::Ready(Err(cut)) => return Poll::Ready(Err(cut)),
            };
            done.map_err(|_| Cut::Connection)?;
        }
    }

    fn data(&self) -> &[u8] {
        self.encoding.rest()
    }

    fn ends_here(&self) -> bool {
        self.encoding.is_over
    }

    fn consume(&mut self, octets: usize) {
        self.encoding.taken += octets;
    }

    fn trailers(&self) -> &[u8] {
        self.source.trailers()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::task::Waker;

    use super::*;

    /// Pieces of a body; `None` is a pause.
    struct Pieces(Vec<Option<&'static [u8]>>);

    impl Source for Pieces {
        fn poll_data(&mut self, _: &mut Context<'_>) -> Poll<Result<usize, Cut>> {
            match self.0.first() {
                None => Poll::Ready(Ok(0)),
                Some(None) => {
                    self.0.remove(0);
                    Poll::Pending
                }
                Some(Some(piece)) => Poll::Ready(Ok(piece.len())),
            }
        }
        fn data(&self) -> &[u8] {
            self.0[0].unwrap()
        }
        fn ends_here(&self) -> bool {
            false
        }
        fn consume(&mut self, _: usize) {
            self.0.remove(0);
        }
        fn trailers(&self) -> &[u8] {
            b""
        }
    }

    fn encode(coding: Coding, pieces: Vec<Option<&'static [u8]>>) -> Vec<Vec<u8>> {
        let mut source = Pieces(pieces);
        let mut encoded = Encoded { source: &mut source, encoding: &mut Encoding::new(coding).unwrap() };
        let mut parts = vec![Vec::new()];
        let cx = &mut Context::from_waker(Waker::noop());
        loop {
            match encoded.poll_data(cx) {
                Poll::Ready(Ok(0)) => return parts,
                Poll::Ready(Ok(octets)) => {
                    let one = octets.min(7);
                    parts.last_mut().unwrap().extend_from_slice(&encoded.data()[..one]);
                    encoded.consume(one);
                }
                Poll::Pending => parts.push(Vec::new()),
                Poll::Ready(Err(cut)) => panic!("{cut:?}"),
            }
        }
    }

    fn decode(coding: Coding, octets: &[u8]) -> Vec<u8> {
        let mut plain = Vec::new();
        // A stream that is still going on ends in an error after what has come.
        let _ = match coding {
            Coding::Gzip => flate2::read::GzDecoder::new(octets).read_to_end(&mut plain),
            Coding::Zstd => zstd::stream::read::Decoder::new(octets).unwrap().read_to_end(&mut plain),
        };
        plain
    }

    #[test]
    fn what_came_can_be_read_before_more_comes() {
        for coding in [Coding::Gzip, Coding::Zstd] {
            // At the first look into a pause what came goes out, at the second there is nothing.
            let pieces = vec![Some(&b"first "[..]), None, None, Some(b"second "), Some(b"third"), None];
            let parts = encode(coding, pieces);
            assert_eq!(decode(coding, &parts[0]), b"first ", "{coding:?}");
            assert_eq!(decode(coding, &parts.concat()), b"first second third", "{coding:?}");
        }
    }

    fn chosen(accept: &str, response: &str) -> Option<Coding> {
        let request = format!("GET / HTTP/1.1\r\nHost: a\r\nAccept-Encoding: {accept}\r\n\r\n");
        let (mut head, mut answer) = (RequestHead::default(), ResponseHead::default());
        head.parse(request.as_bytes()).unwrap().unwrap();
        answer.parse(response.as_bytes(), head.method).unwrap().unwrap();
        let depends = depends_on_client(head.method, &answer, response.as_bytes());
        depends.then(|| Coding::choose(&head, request.as_bytes(), &answer)).flatten()
    }

    #[test]
    fn the_client_decides_and_the_content_does() {
        let html = |more: &str| {
            format!(
                "HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: 5000\r\n{more}\r\n"
            )
        };
        assert_eq!(chosen("gzip, deflate, br, zstd", &html("")), Some(Coding::Zstd));
        assert_eq!(chosen("gzip, deflate", &html("")), Some(Coding::Gzip));
        assert_eq!(chosen("gzip;q=0, zstd; q=0.0", &html("")), None);
        assert_eq!(chosen("br", &html("")), None);
        for more in [
            "Content-Encoding: br\r\n",
            "Cache-Control: private, no-transform\r\n",
            "Content-Range: bytes 0-9/10\r\n",
        ] {
            assert_eq!(chosen("gzip", &html(more)), None, "{more}");
        }
        for head in [
            "HTTP/1.1 206 Partial Content\r\nContent-Type: text/html\r\nContent-Length: 5000\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nContent-Length: 5000\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 50\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n",
            "HTTP/1.1 304 Not Modified\r\nContent-Type: text/html\r\n\r\n",
        ] {
            assert_eq!(chosen("gzip", head), None, "{head}");
        }
    }

    // RFC 9110 §12.5.3: "If multiple content codings are acceptable, the acceptable content coding with the highest
    // non-zero qvalue is preferred" as §12.4.2 weighs them.
    #[test]
    fn the_coding_that_weighs_most_is_taken() {
        let html = "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 5000\r\n\r\n";
        for (accept, coding) in [
            ("gzip;q=1, zstd;q=0.1", Some(Coding::Gzip)),
            ("zstd;q=0.1, gzip; q=1.000", Some(Coding::Gzip)),
            ("gzip;q=0.5, zstd;q=0.501", Some(Coding::Zstd)),
            ("gzip;q=0.5, ZSTD;Q=0.5", Some(Coding::Zstd)),
            ("zstd;q=0, gzip;q=0.001", Some(Coding::Gzip)),
            ("zstd;q=0.000, gzip;q=0.", None),
            ("identity, gzip;q=0.9, zstd;q=0.9", None),
            ("identity;q=0.5, gzip;q=0.5", Some(Coding::Gzip)),
            ("gzip;q=0.1234, zstd;q=2, br", None),
            ("gzip;q=, zstd;q=-1", None),
        ] {
            assert_eq!(chosen(accept, html), coding, "{accept}");
        }
    }

    #[test]
    fn a_strong_validator_becomes_weak() {
        let fields = Coding::Gzip.fields(Some(b"\"x\""));
        assert_eq!(fields, b"Content-Encoding: gzip\r\nETag: W/\"x\"\r\n");
        assert!(Coding::Gzip.fields(Some(b"W/\"x\"")).ends_with(b"ETag: W/\"x\"\r\n"));
    }

    fn depends(method: Method, text: &str) -> bool {
        let mut answer = ResponseHead::default();
        answer.parse(text.as_bytes(), method).unwrap().unwrap();
        depends_on_client(method, &answer, text.as_bytes())
    }

    // RFC 9110 §12.5.5: "An origin server SHOULD generate a Vary header field on a cacheable response when it
    // wishes that response to be selectively reused"; §9.3.2: HEAD is answered with what GET would be.
    #[test]
    fn what_others_get_compressed_depends_on_the_client() {
        let html = "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 5000\r\n\r\n";
        assert!(depends(Method::Get, html) && depends(Method::Head, html));
        assert!(depends(Method::Get, "HTTP/1.1 304 Not Modified\r\n\r\n"));
        let image = "HTTP/1.1 304 Not Modified\r\nContent-Type: image/png\r\n\r\n";
        assert!(!depends(Method::Get, image) && !depends(Method::Get, &image.replace("304", "200")));
        assert!(!depends(Method::Get, &html.replace("5000", "50")));
    }

    #[test]
    fn what_the_backend_varies_by_is_kept_and_nothing_said_twice() {
        let vary = |fields: &str| {
            let text = format!("HTTP/1.1 200 OK\r\n{fields}\r\n");
            let mut answer = ResponseHead::default();
            answer.parse(text.as_bytes(), Method::Get).unwrap().unwrap();
            vary(&answer, text.as_bytes()).map(|line| String::from_utf8(line).unwrap())
        };
        assert_eq!(vary("").as_deref(), Some("Vary: Accept-Encoding\r\n"));
        assert_eq!(
            vary("Vary: Cookie, Origin\r\nX: y\r\nvary: Accept\r\nVary:\r\n").as_deref(),
            Some("Vary: Cookie, Origin, Accept, Accept-Encoding\r\n")
        );
        for said in ["Vary: *\r\n", "Vary: Cookie\r\nVARY: Origin,accept-encoding\r\n"] {
            assert_eq!(vary(said), None, "{said}");
        }
    }
}
