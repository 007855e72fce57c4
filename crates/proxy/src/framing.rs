use memchr::memchr;

use crate::Reason;

/// Longest head of a request, in octets, however it is split over packets.
const LONGEST_HEAD: usize = 64 * 1024;
/// Longest line that gives the size of a chunk, with its extensions.
const LONGEST_CHUNK_LINE: usize = 1024;
/// How much of a line is kept when it arrives in pieces: enough for every field that is looked at.
const KEPT: usize = 64;

/// Follows where requests begin and end in what one client sends, and refuses what two parsers could
/// understand differently (RFC 9112 §11.2, request smuggling).
///
/// It runs before the HTTP parser, which accepts bare line feeds, resolves Content-Length beside
/// Transfer-Encoding silently, and therefore cannot be asked afterwards.
#[derive(Debug)]
pub struct Framing {
    place: Place,
    line: [u8; KEPT],
    /// Octets of the current line so far, more than `KEPT` when it is longer than what is kept.
    line_len: usize,
    last: u8,
    /// Octets of the current head (or trailer section) so far.
    head_len: usize,
    request_line_seen: bool,
    length: Option<u64>,
    chunked: bool,
}

/// What was refused, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Index of the octet at which it became clear.
    pub at: usize,
    /// Why.
    pub reason: Reason,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Head,
    Body(u64),
    ChunkSize,
    Chunk(u64),
    ChunkEnd,
    Trailers,
    Refused,
}

impl Default for Framing {
    fn default() -> Framing {
        Framing {
            place: Place::Head,
            line: [0; KEPT],
            line_len: 0,
            last: 0,
            head_len: 0,
            request_line_seen: false,
            length: None,
            chunked: false,
        }
    }
}

impl Framing {
    /// Whether a request head has begun and not ended.
    pub fn is_inside_head(&self) -> bool {
        self.place == Place::Head && self.head_len > 0
    }

    /// Looks at the next octets from the client. After an error everything is refused.
    pub fn inspect(&mut self, bytes: &[u8]) -> Result<(), Refused> {
        let mut at = 0;
        while at < bytes.len() {
            let rest = &bytes[at..];
            match self.place {
                Place::Body(left) => {
                    let taken = left.min(rest.len() as u64);
                    self.place = if left == taken { Place::Head } else { Place::Body(left - taken) };
                    at += taken as usize;
                }
                Place::Chunk(left) => {
                    let taken = left.min(rest.len() as u64);
                    self.place = if left == taken { Place::ChunkEnd } else { Place::Chunk(left - taken) };
                    at += taken as usize;
                }
                Place::Head | Place::ChunkSize | Place::ChunkEnd | Place::Trailers => {
                    at = self.take_line(bytes, at).inspect_err(|_| self.place = Place::Refused)?;
                }
                Place::Refused => return Err(Refused { at, reason: Reason::Malformed }),
            }
        }
        Ok(())
    }

    /// Takes octets up to the end of the line or of what is there, and returns where to go on.
    fn take_line(&mut self, bytes: &[u8], at: usize) -> Result<usize, Refused> {
        let rest = &bytes[at..];
        let end = memchr(b'\n', rest);
        let part = &rest[..end.unwrap_or(rest.len())];
        self.head_len += part.len() + usize::from(end.is_some());
        let refuse = |offset: usize, reason| Err(Refused { at: at + offset, reason });
        let limit = match self.place {
            Place::ChunkSize | Place::ChunkEnd => LONGEST_CHUNK_LINE,
            _ => LONGEST_HEAD,
        };
        if self.head_len > limit {
            let reason = if limit == LONGEST_HEAD { Reason::HeadTooLarge } else { Reason::BadChunk };
            return refuse(0, reason);
        }
        let Some(end) = end else {
            self.keep(part);
            return Ok(bytes.len());
        };
        if part.last().copied().unwrap_or(self.last) != b'\r' {
            return refuse(end, Reason::BareLineFeed);
        }
        let judged = if self.line_len == 0 {
            self.judge(&part[..part.len() - 1], false)
        } else {
            self.keep(part);
            let (kept, length) = (self.line, self.line_len - 1);
            self.judge(&kept[..length.min(KEPT)], length > KEPT)
        };
        self.line_len = 0;
        self.last = 0;
        judged.map_err(|reason| Refused { at: at + end, reason })?;
        Ok(at + end + 1)
    }

    fn keep(&mut self, part: &[u8]) {
        let from = self.line_len.min(KEPT);
        let taken = part.len().min(KEPT - from);
        self.line[from..from + taken].copy_from_slice(&part[..taken]);
        self.line_len += part.len();
        self.last = part.last().copied().unwrap_or(self.last);
    }

    /// Judges a whole line without its end; `cut` when only its beginning is given.
    fn judge(&mut self, line: &[u8], cut: bool) -> Result<(), Reason> {
        match self.place {
            Place::Head if line.is_empty() && !self.request_line_seen => {
                // RFC 9112 §2.2: an empty line before the request line is ignored.
                self.head_len = 0;
            }
            Place::Head if line.is_empty() => {
                self.place = match (self.chunked, self.length.take()) {
                    (true, _) => Place::ChunkSize,
                    (false, None | Some(0)) => Place::Head,
                    (false, Some(length)) => Place::Body(length),
                };
                self.request_line_seen = false;
                self.chunked = false;
                self.head_len = 0;
            }
            Place::Head if !self.request_line_seen => self.request_line_seen = true,
            Place::Head => self.judge_field(line, cut)?,
            Place::ChunkSize => {
                self.place = match chunk_size(line).ok_or(Reason::BadChunk)? {
                    0 => Place::Trailers,
                    size => Place::Chunk(size),
                };
                self.head_len = 0;
            }
            Place::ChunkEnd => {
                if !line.is_empty() {
                    return Err(Reason::BadChunk);
                }
                self.place = Place::ChunkSize;
                self.head_len = 0;
            }
            Place::Trailers if line.is_empty() => {
                self.place = Place::Head;
                self.head_len = 0;
            }
            Place::Trailers | Place::Body(_) | Place::Chunk(_) | Place::Refused => {}
        }
        Ok(())
    }

    fn judge_field(&mut self, line: &[u8], cut: bool) -> Result<(), Reason> {
        match line[0] {
            b' ' | b'\t' => Err(Reason::FoldedHeader),
            b'c' | b'C' => match value_of(line, b"content-length:") {
                Some(value) => {
                    let twice = self.chunked || self.length.is_some();
                    self.length =
                        Some(decimal(value).filter(|_| !twice && !cut).ok_or(Reason::AmbiguousLength)?);
                    Ok(())
                }
                None => Ok(()),
            },
            b't' | b'T' => match value_of(line, b"transfer-encoding:") {
                Some(_) if self.chunked || self.length.is_some() => Err(Reason::AmbiguousLength),
                Some(value) if value.eq_ignore_ascii_case(b"chunked") && !cut => {
                    self.chunked = true;
                    Ok(())
                }
                Some(_) => Err(Reason::TransferCoding),
                None => Ok(()),
            },
            _ => Ok(()),
        }
    }
}

fn value_of<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let (field, value) = line.split_at_checked(name.len())?;
    field.eq_ignore_ascii_case(name).then(|| value.trim_ascii())
}

fn decimal(text: &[u8]) -> Option<u64> {
    let all_digits = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    all_digits.then(|| std::str::from_utf8(text).ok()?.parse().ok()).flatten()
}

/// The size of a chunk (RFC 9112 §7.1); extensions are passed over.
fn chunk_size(line: &[u8]) -> Option<u64> {
    let end = line.iter().position(|byte| !byte.is_ascii_hexdigit()).unwrap_or(line.len());
    let (digits, extension) = line.split_at(end);
    if !(1..=15).contains(&digits.len()) || !matches!(extension.first(), None | Some(b';' | b' ' | b'\t')) {
        return None;
    }
    u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The verdict must not depend on how the octets are split.
    fn verdict(input: &str) -> Result<bool, Reason> {
        let whole = run(input.as_bytes(), input.len().max(1));
        for size in [1, 2, 3, 7, 64] {
            assert_eq!(run(input.as_bytes(), size), whole, "split by {size}: {input:?}");
        }
        whole
    }

    fn run(input: &[u8], size: usize) -> Result<bool, Reason> {
        let mut framing = Framing::default();
        for piece in input.chunks(size) {
            framing.inspect(piece).map_err(|refused| refused.reason)?;
        }
        Ok(framing.place == Place::Head && !framing.is_inside_head())
    }

    #[test]
    fn requests_end_where_they_say() {
        assert_eq!(verdict("GET / HTTP/1.1\r\nHost: a\r\n\r\n"), Ok(true));
        assert_eq!(verdict("GET / HTTP/1.1\r\nHost: a\r\n"), Ok(false));
        assert_eq!(verdict("POST / HTTP/1.1\r\nContent-Length: 4\r\n\r\na\nb\n"), Ok(true));
        assert_eq!(verdict("POST / HTTP/1.1\r\ncontent-length:4\r\n\r\nabc"), Ok(false));
        let chunked =
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\na\n\r\nb\r\n0\r\nT: 1\r\n\r\n";
        assert_eq!(verdict(chunked), Ok(true));
        let two = format!("{chunked}\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(verdict(&two), Ok(true));
        let long = format!("GET / HTTP/1.1\r\nCookie: {}\r\n\r\n", "x".repeat(5000));
        assert_eq!(verdict(&long), Ok(true));
    }

    // RFC 9112 §6.1: "A server MAY reject a request that contains both Content-Length and
    // Transfer-Encoding".
    #[test]
    fn what_two_parsers_could_read_differently_is_refused() {
        let head =
            |fields: &str| verdict(&format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n\r\n0\r\n\r\n"));
        let ambiguous = Err(Reason::AmbiguousLength);
        assert_eq!(head("Content-Length: 5\r\nTransfer-Encoding: chunked"), ambiguous);
        assert_eq!(head("Transfer-Encoding: chunked\r\nContent-Length: 5"), ambiguous);
        assert_eq!(head("Content-Length: 5\r\nContent-Length: 5"), ambiguous);
        assert_eq!(head("Content-Length: +5"), ambiguous);
        assert_eq!(head("Content-Length: 5, 5"), ambiguous);
        assert_eq!(head("Content-Length:"), ambiguous);
        assert_eq!(head("Content-Length: 99999999999999999999"), ambiguous);
        assert_eq!(head("Transfer-Encoding: gzip, chunked"), Err(Reason::TransferCoding));
        assert_eq!(head("Transfer-Encoding: xchunked"), Err(Reason::TransferCoding));
        assert_eq!(head("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"), ambiguous);
        assert_eq!(head("X: a\r\n b"), Err(Reason::FoldedHeader));
        assert_eq!(verdict("GET / HTTP/1.1\nHost: a\n\n"), Err(Reason::BareLineFeed));
        assert_eq!(verdict("GET / HTTP/1.1\r\nHost: a\r\n\n"), Err(Reason::BareLineFeed));
    }

    #[test]
    fn a_chunk_must_be_one() {
        let body =
            |body: &str| verdict(&format!("POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n{body}"));
        assert_eq!(body("x\r\n"), Err(Reason::BadChunk));
        assert_eq!(body("\r\n"), Err(Reason::BadChunk));
        assert_eq!(body("-1\r\n"), Err(Reason::BadChunk));
        assert_eq!(body("0x5\r\n"), Err(Reason::BadChunk));
        assert_eq!(body("fffffffffffffffff\r\n"), Err(Reason::BadChunk));
        assert_eq!(body("1\r\nab\r\n"), Err(Reason::BadChunk));
        assert_eq!(body("1\n"), Err(Reason::BareLineFeed));
        assert_eq!(body(&format!("1;{}\r\n", "x".repeat(2000))), Err(Reason::BadChunk));
    }

    #[test]
    fn a_head_without_end_is_refused() {
        let endless = format!("GET / HTTP/1.1\r\nX: {}", "x".repeat(LONGEST_HEAD));
        assert_eq!(verdict(&endless), Err(Reason::HeadTooLarge));
    }

    #[test]
    fn after_a_refusal_nothing_passes() {
        let mut framing = Framing::default();
        framing.inspect(b"GET / HTTP/1.1\n").unwrap_err();
        assert!(framing.inspect(b"GET / HTTP/1.1\r\n\r\n").is_err());
    }
}
