//! Connections of clients that ask a lot and take nothing but what they asked for.

use std::io::{self, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::counting_backend::{number, read_line, wrong};

/// How long an answer may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// A connection of HTTP/1.1.
#[derive(Debug)]
pub struct LoadConnection {
    stream: BufReader<TcpStream>,
    line: Vec<u8>,
    body: Vec<u8>,
}

/// An answer but for its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answered {
    /// Status code.
    pub status: u16,
    /// Whether the proxy said that it was the last one (RFC 9112 §9.6).
    pub last: bool,
}

/// An open WebSocket.
#[derive(Debug)]
pub struct WebSocket {
    stream: TcpStream,
}

impl LoadConnection {
    /// Connects from the network that the calling thread is in.
    ///
    /// # Errors
    /// When nobody takes the connection.
    pub fn open(to: SocketAddr) -> io::Result<LoadConnection> {
        let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(LoadConnection { stream: BufReader::new(stream), line: Vec::new(), body: Vec::new() })
    }

    /// Sends whole requests, one or more.
    ///
    /// # Errors
    /// When the connection is broken.
    pub fn send(&mut self, requests: &[u8]) -> io::Result<()> {
        self.stream.get_mut().write_all(requests)
    }

    /// Takes the next answer.
    ///
    /// # Errors
    /// When the connection breaks, or what comes is no answer with a length.
    pub fn answer(&mut self) -> io::Result<Answered> {
        let LoadConnection { stream, line, body } = self;
        if !read_line(stream, line)? {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "closed before the answer"));
        }
        let status = line.strip_prefix(b"HTTP/1.1 ").and_then(|rest| number(rest.get(..3)?, 10));
        let mut answered = Answered { status: status.ok_or_else(|| wrong(line))? as u16, last: false };
        let mut length = None;
        while read_line(stream, line)? && !line.is_empty() {
            let colon = line.iter().position(|octet| *octet == b':').ok_or_else(|| wrong(line))?;
            let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
            if name.eq_ignore_ascii_case(b"content-length") {
                length = number(value, 10);
            } else if name.eq_ignore_ascii_case(b"connection") {
                answered.last = value.eq_ignore_ascii_case(b"close");
            }
        }
        body.clear();
        body.resize(length.ok_or_else(|| io::Error::other("an answer without length"))?, 0);
        stream.read_exact(body)?;
        Ok(answered)
    }

    /// The body of the last answer.
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    /// Waits for the end behind the last answer: an orderly one, and nothing before it.
    ///
    /// # Errors
    /// When it is another one.
    pub fn end(&mut self) -> io::Result<()> {
        let mut more = [0; 64];
        match self.stream.read(&mut more)? {
            0 => Ok(()),
            read => Err(wrong(&more[..read])),
        }
    }

    /// Makes a WebSocket of a fresh connection.
    ///
    /// # Errors
    /// When that is refused.
    pub fn websocket(mut self, host: &str) -> io::Result<WebSocket> {
        // The sample of RFC 6455 §1.3.
        let request = format!(
            "GET /socket HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        self.send(request.as_bytes())?;
        read_line(&mut self.stream, &mut self.line)?;
        if !self.line.starts_with(b"HTTP/1.1 101 ") {
            return Err(wrong(&self.line));
        }
        let mut accepted = false;
        while read_line(&mut self.stream, &mut self.line)? && !self.line.is_empty() {
            accepted |= self.line.ends_with(b" s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        }
        match accepted && self.stream.buffer().is_empty() {
            true => Ok(WebSocket { stream: self.stream.into_inner() }),
            false => Err(io::Error::other("not a WebSocket's answer")),
        }
    }
}

impl WebSocket {
    /// Sends a message and waits until it comes back.
    ///
    /// # Errors
    /// When something else comes, or the connection is broken.
    pub fn echo(&mut self, text: &str) -> io::Result<()> {
        let length = u8::try_from(text.len()).ok().filter(|length| *length < 126).expect("a short message");
        let mask = [0x37, 0xfa, 0x21, 0x3d];
        let mut frame = vec![0x81, 0x80 | length];
        frame.extend(mask);
        frame.extend(text.bytes().zip(mask.iter().cycle()).map(|(octet, mask)| octet ^ mask));
        self.stream.write_all(&frame)?;
        let mut back = vec![0; 2 + text.len()];
        self.stream.read_exact(&mut back)?;
        match back[..2] == [0x81, length] && &back[2..] == text.as_bytes() {
            true => Ok(()),
            false => Err(wrong(&back)),
        }
    }
}
