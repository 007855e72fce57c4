use std::mem::MaybeUninit;

use super::field::{self, Field, Kind, Span, decimal, tokens};
use super::request::{MOST_FIELDS, Method, Version, mark_named_by_connection};

/// The head of a response, parsed in place.
#[derive(Clone, Debug, Default)]
pub struct ResponseHead {
    /// The status code, 100 to 999.
    pub status: u16,
    /// The reason phrase.
    pub phrase: Span,
    /// The version of the message.
    pub version: Version,
    /// The fields in their order.
    pub fields: Vec<Field>,
    /// Where the body ends.
    pub delimiter: Delimiter,
    /// Whether the backend keeps the connection for another request.
    pub keep_alive: bool,
}

/// Where the body of a response ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Delimiter {
    /// There is none.
    #[default]
    None,
    /// After that many octets.
    Known(u64),
    /// After the last chunk.
    Chunked,
    /// When the backend closes.
    Close,
}

/// A response that cannot be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the backend's answer is not HTTP/1")]
pub struct NotHttp;

impl ResponseHead {
    /// Parses the head at the beginning of `bytes`; `None` when its end is not there yet. `method` is that of
    /// the request: it decides whether there is a body.
    pub fn parse(&mut self, bytes: &[u8], method: Method) -> Result<Option<usize>, NotHttp> {
        let mut headers = [const { MaybeUninit::uninit() }; MOST_FIELDS];
        let mut response = httparse::Response::new(&mut []);
        let parsed = httparse::ParserConfig::default().parse_response_with_uninit_headers(
            &mut response,
            bytes,
            &mut headers,
        );
        let length = match parsed {
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(_) => return Err(NotHttp),
        };
        self.status = response.code.filter(|code| (100..1000).contains(code)).ok_or(NotHttp)?;
        self.phrase = response
            .reason
            .filter(|text| !text.is_empty())
            .map_or(Span::default(), |phrase| Span::of(phrase.as_bytes(), bytes));
        self.version = if response.version == Some(0) { Version::Http10 } else { Version::Http11 };
        field::take(&mut self.fields, response.headers, bytes, Kind::of_response);
        self.understand(bytes, method)?;
        Ok(Some(length))
    }

    /// Takes the meaning of the fields in (RFC 9112 §6.3).
    pub fn understand(&mut self, head: &[u8], method: Method) -> Result<(), NotHttp> {
        self.keep_alive = self.version == Version::Http11;
        let (mut length, mut coding, mut names_others) = (None, None, false);
        for field in &mut self.fields {
            let value = field.value.in_(head);
            match field.kind {
                Kind::ContentLength => {
                    let number = decimal(value).ok_or(NotHttp)?;
                    match length.replace(number) {
                        Some(before) if before != number => return Err(NotHttp),
                        // RFC 9110 §8.6: several equal ones are one, and these statuses must have none; clients
                        // that believe it nevertheless wait for a body.
                        Some(_) => field.kind = Kind::HopByHop,
                        None if self.status < 200 || self.status == 204 => field.kind = Kind::HopByHop,
                        None => {}
                    }
                }
                Kind::TransferEncoding => {
                    let is_chunked = value.eq_ignore_ascii_case(b"chunked") && coding.is_none();
                    coding = Some(is_chunked);
                }
                Kind::Connection => {
                    for token in tokens(value) {
                        if token.eq_ignore_ascii_case(b"close") {
                            self.keep_alive = false;
                        } else if token.eq_ignore_ascii_case(b"keep-alive") {
                            self.keep_alive |= self.version == Version::Http10;
                        } else if !token.eq_ignore_ascii_case(b"upgrade") {
                            names_others = true;
                        }
                    }
                }
                _ => {}
            }
        }
        if names_others && !mark_named_by_connection(&mut self.fields, head) {
            return Err(NotHttp);
        }
        let has_no_body = method == Method::Head || self.status < 200 || matches!(self.status, 204 | 304);
        self.delimiter = match (has_no_body, coding, length) {
            (true, ..) => Delimiter::None,
            (_, Some(true), length) => {
                // RFC 9112 §6.3: the transfer coding overrides the length, and such a message might be an attempt
                // at response splitting: the connection is not used again. §6.1: neither is one of HTTP/1.0.
                self.keep_alive &= length.is_none() && self.version > Version::Http10;
                Delimiter::Chunked
            }
            // A coding that is not understood cannot be taken off again.
            (_, Some(false), _) => return Err(NotHttp),
            (_, None, Some(0)) => Delimiter::None,
            (_, None, Some(length)) => Delimiter::Known(length),
            (_, None, None) => Delimiter::Close,
        };
        self.keep_alive &= self.delimiter != Delimiter::Close;
        Ok(())
    }

    /// The value of the first field of a name, whatever its case.
    pub fn named<'a>(&self, name: &[u8], head: &'a [u8]) -> Option<&'a [u8]> {
        let found = self.fields.iter().find(|field| field.name.in_(head).eq_ignore_ascii_case(name))?;
        Some(found.value.in_(head))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Option<ResponseHead>, NotHttp> {
        let mut head = ResponseHead::default();
        Ok(head.parse(text.as_bytes(), Method::Get)?.map(|_| head))
    }

    fn delimiter(status: &str, fields: &str) -> Delimiter {
        parse(&format!("HTTP/1.1 {status}\r\n{fields}\r\n")).unwrap().unwrap().delimiter
    }

    // RFC 9112 §6.3 "Message Body Length", in its order.
    #[test]
    fn the_end_of_a_body_follows_the_rules() {
        assert_eq!(delimiter("204 No Content", "Content-Length: 5\r\n"), Delimiter::None);
        assert_eq!(delimiter("304 Not Modified", "Content-Length: 5\r\n"), Delimiter::None);
        assert_eq!(delimiter("100 Continue", ""), Delimiter::None);
        assert_eq!(
            delimiter("200 OK", "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n"),
            Delimiter::Chunked
        );
        assert_eq!(delimiter("200 OK", "Content-Length: 5\r\nContent-Length: 5\r\n"), Delimiter::Known(5));
        assert_eq!(delimiter("200 OK", "Content-Length: 0\r\n"), Delimiter::None);
        assert_eq!(delimiter("200 OK", ""), Delimiter::Close);
        let mut head = ResponseHead::default();
        let text = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n";
        assert_eq!(head.parse(text, Method::Head), Ok(Some(text.len())));
        assert_eq!(head.delimiter, Delimiter::None);
    }

    #[test]
    fn what_cannot_be_understood_is_refused() {
        for text in [
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            "HTTP/1.1 20 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\r\n",
            "SSH-2.0-OpenSSH_9.2\r\n",
        ] {
            assert_eq!(parse(text).unwrap_err(), NotHttp, "{text}");
        }
        assert!(parse("HTTP/1.1 200 OK\r\nX: 1\r\n").unwrap().is_none());
    }

    #[test]
    fn the_backend_says_whether_it_stays() {
        let stays = |text: &str| parse(text).unwrap().unwrap().keep_alive;
        assert!(stays("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"));
        assert!(!stays("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"));
        assert!(!stays("HTTP/1.1 200 OK\r\n\r\n"));
        assert!(!stays("HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n"));
        assert!(stays("HTTP/1.0 200 OK\r\nContent-Length: 0\r\nConnection: keep-alive\r\n\r\n"));
        assert!(!stays("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n"));
    }
}
