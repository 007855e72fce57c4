use memchr::memchr;

use crate::Reason;

/// Longest line that gives the size of a chunk, with its extensions.
const LONGEST_SIZE_LINE: usize = 1024;
/// Octets of chunk extensions in one body, all together. Hardly anybody sends any, and they are all dropped: who sends
/// much of them wants to be busy with something else than a body.
const MOST_EXTENSIONS: usize = 16 * 1024;
/// Longest trailer section, in octets.
const LONGEST_TRAILERS: usize = 16 * 1024;

/// Follows a chunked body (RFC 9112 §7.1) to its end. Extensions are dropped, the trailer section is kept.
#[derive(Debug, Default)]
pub struct Chunked {
    place: Place,
    /// The part of a line that has come so far.
    line: Vec<u8>,
    /// Octets of extensions so far.
    extensions: usize,
    /// The complete trailer section with its line ends, without the empty line.
    trailers: Vec<u8>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Place {
    #[default]
    Size,
    Data(u64),
    DataEnd,
    Trailers,
    End,
}

/// What comes next in a chunked body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// `skip` octets of framing, then `data` octets of the body.
    Data { skip: usize, data: usize },
    /// `skip` octets of framing; more octets are needed.
    More { skip: usize },
    /// `skip` octets of framing, and the body is over.
    End { skip: usize },
}

impl Chunked {
    /// What the next octets mean. The caller passes over what it is told of before it asks again.
    pub fn step(&mut self, bytes: &[u8]) -> Result<Step, Reason> {
        let mut skip = 0;
        loop {
            let rest = &bytes[skip..];
            match self.place {
                Place::End => return Ok(Step::End { skip }),
                Place::Data(left) => {
                    if rest.is_empty() {
                        return Ok(Step::More { skip });
                    }
                    let data = left.min(rest.len() as u64);
                    self.place = if data == left { Place::DataEnd } else { Place::Data(left - data) };
                    return Ok(Step::Data { skip, data: data as usize });
                }
                Place::Size | Place::DataEnd | Place::Trailers => {
                    let Some(end) = memchr(b'\n', rest) else {
                        self.keep(rest)?;
                        return Ok(Step::More { skip: bytes.len() });
                    };
                    skip += end + 1;
                    if self.line.is_empty() {
                        self.judge(&rest[..end])?;
                    } else {
                        self.keep(&rest[..end])?;
                        let line = std::mem::take(&mut self.line);
                        self.judge(&line)?;
                    }
                }
            }
        }
    }

    /// Whether the last chunk and the trailers have passed.
    pub fn is_over(&self) -> bool {
        self.place == Place::End
    }

    /// The trailer section: field lines with their ends.
    pub fn trailers(&self) -> &[u8] {
        &self.trailers
    }

    fn keep(&mut self, part: &[u8]) -> Result<(), Reason> {
        let longest = if self.place == Place::Trailers { LONGEST_TRAILERS } else { LONGEST_SIZE_LINE };
        if self.line.len() + part.len() > longest {
            return Err(if self.place == Place::Trailers { Reason::HeadTooLarge } else { Reason::BadChunk });
        }
        self.line.extend_from_slice(part);
        Ok(())
    }

    /// Judges a line without its line feed.
    fn judge(&mut self, line: &[u8]) -> Result<(), Reason> {
        let line = line.strip_suffix(b"\r").ok_or(Reason::BareLineFeed)?;
        match self.place {
            Place::Size if line.len() > LONGEST_SIZE_LINE => return Err(Reason::BadChunk),
            Place::Size => {
                let (size, extension) = size(line).ok_or(Reason::BadChunk)?;
                self.extensions += extension;
                if self.extensions > MOST_EXTENSIONS {
                    return Err(Reason::ChunkExtensions);
                }
                self.place = if size == 0 { Place::Trailers } else { Place::Data(size) };
            }
            Place::DataEnd if line.is_empty() => self.place = Place::Size,
            Place::Trailers if line.is_empty() => self.place = Place::End,
            Place::Trailers => {
                if self.trailers.len() + line.len() + 2 > LONGEST_TRAILERS {
                    return Err(Reason::HeadTooLarge);
                }
                self.trailers.extend_from_slice(line);
                self.trailers.extend_from_slice(b"\r\n");
            }
            _ => return Err(Reason::BadChunk),
        }
        Ok(())
    }
}

/// The size of a chunk, and how many octets of extensions follow it, which are passed over. RFC 9112 §7.1.1 lets whitespace stand before their `;`, and
/// nothing else.
fn size(line: &[u8]) -> Option<(u64, usize)> {
    let end = line.iter().position(|byte| !byte.is_ascii_hexdigit()).unwrap_or(line.len());
    let (digits, extension) = line.split_at(end);
    let is_clean = !extension.iter().any(|byte| matches!(byte, b'\r' | 0));
    let begins_well = matches!(extension.trim_ascii_start().first(), None | Some(b';'));
    if !(1..=15).contains(&digits.len()) || !begins_well || !is_clean {
        return None;
    }
    let size = u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    Some((size, extension.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The body, the trailers and what was left over; the same however the octets are split.
    fn decode(input: &str) -> Result<(String, String, usize), Reason> {
        let whole = run(input.as_bytes(), input.len().max(1));
        for size in [1, 2, 3, 7, 64] {
            assert_eq!(run(input.as_bytes(), size), whole, "split by {size}: {input:?}");
        }
        whole
    }

    fn run(input: &[u8], size: usize) -> Result<(String, String, usize), Reason> {
        let mut chunked = Chunked::default();
        let mut body = Vec::new();
        let mut used = 0;
        for piece in input.chunks(size) {
            let mut at = 0;
            loop {
                match chunked.step(&piece[at..])? {
                    Step::Data { skip, data } => {
                        body.extend_from_slice(&piece[at + skip..at + skip + data]);
                        at += skip + data;
                    }
                    Step::More { skip } => {
                        assert_eq!(at + skip, piece.len());
                        used += piece.len();
                        break;
                    }
                    Step::End { skip } => {
                        used += at + skip;
                        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
                        return Ok((text(&body), text(chunked.trailers()), input.len() - used));
                    }
                }
            }
        }
        Ok((String::from_utf8(body).unwrap(), "unfinished".to_owned(), 0))
    }

    #[test]
    fn a_body_is_its_chunks() {
        let text = "5;x=y\r\na\n\r\nb\r\nA\r\n0123456789\r\n0\r\nT: 1\r\nU: 2\r\n\r\nGET";
        assert_eq!(decode(text), Ok(("a\n\r\nb0123456789".into(), "T: 1\r\nU: 2\r\n".into(), 3)));
        assert_eq!(decode("0\r\n\r\n"), Ok((String::new(), String::new(), 0)));
        assert_eq!(decode("3\r\nab").unwrap().1, "unfinished");
    }

    // RFC 9112 §7.1.1: "A server ought to limit the total length of chunk extensions received in a request to an amount
    // reasonable for the services provided".
    #[test]
    fn a_body_has_so_many_extensions() {
        let body = |length: usize, chunks: usize| {
            let extension = format!(";{}", "x".repeat(length - 1));
            format!("{}0\r\n\r\n", format!("1{extension}\r\na\r\n").repeat(chunks))
        };
        assert_eq!(decode(&body(1000, 16)).unwrap().0, "a".repeat(16));
        assert_eq!(decode(&body(1000, 17)), Err(Reason::ChunkExtensions));
        assert_eq!(decode(&body(1, MOST_EXTENSIONS)).unwrap().0.len(), MOST_EXTENSIONS);
        assert_eq!(decode(&body(1, MOST_EXTENSIONS + 1)), Err(Reason::ChunkExtensions));
        // Spaces before an extension that does not come count, too.
        let spaces = format!("1{}\r\na\r\n", " ".repeat(1000));
        assert_eq!(decode(&spaces.repeat(17)), Err(Reason::ChunkExtensions));
    }

    #[test]
    fn a_chunk_must_be_one() {
        for body in [
            "x\r\n",
            "\r\n",
            "-1\r\n",
            "0x5\r\n",
            "5 x\r\n",
            "fffffffffffffffff\r\n",
            "1\r\nab\r\n",
            "1\r\na\rb\r\n",
            "1;a\rb\r\n",
            &format!("1;{}\r\n", "x".repeat(2000)),
        ] {
            assert_eq!(decode(body), Err(Reason::BadChunk), "{body:?}");
        }
        assert_eq!(decode("1\n"), Err(Reason::BareLineFeed));
        assert_eq!(decode("0\r\n\n"), Err(Reason::BareLineFeed));
        let endless = format!("0\r\n{}", "X: 1\r\n".repeat(5000));
        assert_eq!(decode(&endless), Err(Reason::HeadTooLarge));
    }
}
