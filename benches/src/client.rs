use std::io::{self, Read, Write};
use std::net::{SocketAddrV4, TcpStream};
use std::time::Duration;

/// How long one answer may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest answer that is taken.
const MOST: usize = 64 * 1024;

/// A connection that carries one request after the other.
#[derive(Debug)]
pub struct Client {
    stream: TcpStream,
    answer: Vec<u8>,
}

impl Client {
    /// Connects.
    pub fn connect(address: SocketAddrV4) -> io::Result<Client> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Client { stream, answer: Vec::new() })
    }

    /// Asks for `/` at a host.
    pub fn ask(&mut self, host: &str) -> io::Result<()> {
        self.stream.write_all(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes())
    }

    /// Takes the whole answer to [`Client::ask`]; returns its status.
    pub fn take_answer(&mut self) -> io::Result<u16> {
        self.answer.clear();
        let mut piece = [0; 4096];
        loop {
            if let Some((status, length)) = head(&self.answer)
                && self.answer.len() >= length
            {
                return Ok(status);
            }
            match self.stream.read(&mut piece)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                _ if self.answer.len() > MOST => return Err(io::Error::other("the answer has no end")),
                octets => self.answer.extend_from_slice(&piece[..octets]),
            }
        }
    }

    /// Whether the connection is open and nothing comes.
    pub fn is_idle(&self) -> bool {
        let nothing = self.stream.set_nonblocking(true).and_then(|()| self.stream.peek(&mut [0]));
        let _ = self.stream.set_nonblocking(false);
        nothing.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }
}

/// Status and length of an answer with `Content-Length`, once its head is there.
fn head(answer: &[u8]) -> Option<(u16, usize)> {
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let text = std::str::from_utf8(&answer[..end]).ok()?;
    let status = text.split(' ').nth(1)?.parse().ok()?;
    let body = text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    })?;
    Some((status, end + body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_ends_where_its_length_says() {
        let answer = b"HTTP/1.1 404 Not Found\r\nDate: x\r\ncontent-length: 3\r\n\r\nabc";
        assert_eq!(head(answer), Some((404, answer.len())));
        assert_eq!(head(&answer[..answer.len() - 5]), None);
        assert_eq!(head(b"HTTP/1.1 200 OK\r\n\r\n"), None);
    }
}
