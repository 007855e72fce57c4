//! Connections to the proxy that stay open: kept alive between requests, or upgraded.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use proximity_lab::Node;

use crate::http_exchange::header;

const PATIENCE: Duration = Duration::from_secs(10);

/// A connection of a browser.
#[derive(Debug)]
pub struct OpenConnection {
    stream: BufReader<TcpStream>,
}

/// An answer on a connection that may stay open.
#[derive(Clone, Debug)]
pub struct Page {
    /// Status code.
    pub status: u16,
    /// The body.
    pub body: String,
    /// Whether the proxy said that it was the last answer.
    pub last: bool,
}

impl OpenConnection {
    /// Connects from a node.
    ///
    /// # Errors
    /// When nobody takes the connection.
    pub fn open(from: &Node, to: SocketAddr) -> io::Result<OpenConnection> {
        from.enter(|| OpenConnection::here(to)).map_err(|error| io::Error::other(error.to_string()))?
    }

    /// Connects from the namespace that the calling thread is in.
    ///
    /// # Errors
    /// When nobody takes the connection.
    pub fn here(to: SocketAddr) -> io::Result<OpenConnection> {
        let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(OpenConnection { stream: BufReader::new(stream) })
    }

    /// Asks for `/` of a host.
    ///
    /// # Errors
    /// When the connection breaks, or what comes is no answer with a length.
    pub fn get(&mut self, host: &str) -> io::Result<Page> {
        let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
        self.stream.get_mut().write_all(request.as_bytes())?;
        let head = self.head()?;
        let nonsense = || io::Error::new(io::ErrorKind::InvalidData, head.clone());
        let length =
            header(&head, "content-length").and_then(|text| text.parse().ok()).ok_or_else(nonsense)?;
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body)?;
        let last = header(&head, "connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
        let body = String::from_utf8(body).map_err(io::Error::other)?;
        Ok(Page { status: status(&head).ok_or_else(nonsense)?, body, last })
    }

    /// Upgrades to a protocol in which every line comes back.
    ///
    /// # Errors
    /// When that is refused.
    pub fn upgrade(mut self, host: &str) -> io::Result<OpenConnection> {
        let request =
            format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n");
        self.stream.get_mut().write_all(request.as_bytes())?;
        let head = self.head()?;
        if status(&head) == Some(101) { Ok(self) } else { Err(io::Error::other(head)) }
    }

    /// Whether a line comes back on an upgraded connection.
    ///
    /// # Errors
    /// When the connection is broken.
    pub fn echoes(&mut self, text: &str) -> io::Result<bool> {
        writeln!(self.stream.get_mut(), "{text}")?;
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        Ok(line.trim_end() == text)
    }

    /// Waits until the other side closes, with nothing more to read; false when it does not in time.
    pub fn closes(&mut self) -> bool {
        match self.stream.fill_buf() {
            Ok(rest) => rest.is_empty(),
            Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
        }
    }

    fn head(&mut self) -> io::Result<String> {
        let mut head = String::new();
        loop {
            if self.stream.read_line(&mut head)? == 0 {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("after {head:?}")));
            }
            if head.ends_with("\r\n\r\n") {
                return Ok(head);
            }
        }
    }
}

fn status(head: &str) -> Option<u16> {
    head.strip_prefix("HTTP/1.1 ")?.split_whitespace().next()?.parse().ok()
}

/// What a test backend answers on an upgraded connection: the lines that it gets.
///
/// # Errors
/// When the connection breaks.
pub fn echo(stream: &mut TcpStream) -> io::Result<()> {
    write!(stream, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")?;
    stream.set_read_timeout(None)?;
    let mut buffer = [0; 1024];
    loop {
        let read = stream.read(&mut buffer)?;
        if read == 0 {
            return Ok(());
        }
        stream.write_all(&buffer[..read])?;
    }
}
