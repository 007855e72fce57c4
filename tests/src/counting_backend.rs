//! A web server for load: it keeps its connections, answers with what it was asked, and counts.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread;

use proximity_lab::Node;

/// A running server. Dropping it stops it from taking connections.
#[derive(Debug)]
pub struct CountingBackend {
    listener: Arc<TcpListener>,
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    requests: AtomicUsize,
    connections: AtomicUsize,
    websockets: AtomicUsize,
}

/// One request, but for its body.
#[derive(Default)]
struct Request {
    target: Vec<u8>,
    length: usize,
    chunked: bool,
    websocket: bool,
    /// The appliance looks whether we are there.
    probe: bool,
}

impl CountingBackend {
    /// Serves on a port of `node`. The answer to a request is `NAME TARGET ` and the request's body; a WebSocket
    /// gets each of its messages back.
    ///
    /// # Panics
    /// When the port cannot be had.
    pub fn start(node: &Node, port: u16, name: &str) -> CountingBackend {
        let listener = node.enter(|| TcpListener::bind(SocketAddr::from(([0, 0, 0, 0], port))));
        let listener = Arc::new(listener.expect("the node can be entered").expect("the port is free"));
        let counts = Arc::<Counts>::default();
        let (accepting, counting, name) = (listener.clone(), counts.clone(), name.to_owned());
        thread::spawn(move || {
            // `accept` fails once the socket is shut down.
            while let Ok((stream, _)) = accepting.accept() {
                let (counts, name) = (counting.clone(), name.clone());
                // Whoever asks may have gone away.
                thread::spawn(move || serve(stream, name.as_bytes(), &counts));
            }
        });
        CountingBackend { listener, counts }
    }

    /// Requests answered, without probes of the appliance and WebSockets.
    pub fn requests(&self) -> usize {
        self.counts.requests.load(Relaxed)
    }

    /// Connections on which such requests came.
    pub fn connections(&self) -> usize {
        self.counts.connections.load(Relaxed)
    }

    /// WebSockets ever opened.
    pub fn websockets(&self) -> usize {
        self.counts.websockets.load(Relaxed)
    }
}

impl Drop for CountingBackend {
    fn drop(&mut self) {
        let _ = socket2::SockRef::from(&*self.listener).shutdown(std::net::Shutdown::Both);
    }
}

fn serve(stream: TcpStream, name: &[u8], counts: &Counts) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut stream = BufReader::new(stream);
    let (mut request, mut line, mut body, mut answer) = (Request::default(), vec![], vec![], vec![]);
    let mut is_first = true;
    while read_head(&mut stream, &mut line, &mut request)? {
        if request.websocket {
            counts.websockets.fetch_add(1, Relaxed);
            return echo(&mut stream);
        }
        read_body(&mut stream, &mut line, &request, &mut body)?;
        if !request.probe {
            counts.requests.fetch_add(1, Relaxed);
            counts.connections.fetch_add(usize::from(is_first), Relaxed);
            is_first = false;
        }
        let length = name.len() + request.target.len() + 2 + body.len();
        answer.clear();
        write!(answer, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n")?;
        for part in [name, b" ", &request.target, b" ", &body] {
            answer.extend_from_slice(part);
        }
        stream.get_mut().write_all(&answer)?;
    }
    Ok(())
}

/// Reads a request's head; false when no more comes.
fn read_head(stream: &mut impl BufRead, line: &mut Vec<u8>, request: &mut Request) -> io::Result<bool> {
    if !read_line(stream, line)? {
        return Ok(false);
    }
    *request = Request { target: std::mem::take(&mut request.target), ..Request::default() };
    request.target.clear();
    request.target.extend_from_slice(line.split(|octet| *octet == b' ').nth(1).ok_or_else(|| wrong(line))?);
    while read_line(stream, line)? {
        if line.is_empty() {
            return Ok(true);
        }
        let colon = line.iter().position(|octet| *octet == b':').ok_or_else(|| wrong(line))?;
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        let is = |wanted: &str| name.eq_ignore_ascii_case(wanted.as_bytes());
        if is("content-length") {
            request.length = number(value, 10).ok_or_else(|| wrong(line))?;
        } else if is("transfer-encoding") {
            request.chunked = value.eq_ignore_ascii_case(b"chunked");
        } else if is("upgrade") {
            request.websocket = value.eq_ignore_ascii_case(b"websocket");
        } else if is("user-agent") {
            request.probe = value.starts_with(b"Proximity-Health");
        }
    }
    Err(io::ErrorKind::UnexpectedEof.into())
}

fn read_body(
    stream: &mut impl BufRead,
    line: &mut Vec<u8>,
    request: &Request,
    body: &mut Vec<u8>,
) -> io::Result<()> {
    body.clear();
    if !request.chunked {
        body.resize(request.length, 0);
        return stream.read_exact(body);
    }
    loop {
        read_line(stream, line)?;
        let size = number(line, 16).ok_or_else(|| wrong(line))?;
        let before = body.len();
        body.resize(before + size, 0);
        stream.read_exact(&mut body[before..])?;
        // Behind a chunk, and behind the last one as there are no trailers.
        read_line(stream, line)?;
        if size == 0 {
            return Ok(());
        }
    }
}

/// A WebSocket whose peer sends short messages, each in one masked frame (RFC 6455 §5.2), of which each comes back.
fn echo(stream: &mut BufReader<TcpStream>) -> io::Result<()> {
    // The accept value of the RFC's own sample key (§1.3), which our clients send.
    let accepted = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
    stream.get_mut().write_all(accepted.as_bytes())?;
    loop {
        let mut head = [0; 6];
        stream.read_exact(&mut head)?;
        let [kind, length, mask @ ..] = head;
        let mut frame = vec![kind, length & 0x7f];
        frame.resize(2 + usize::from(length & 0x7f), 0);
        stream.read_exact(&mut frame[2..])?;
        frame[2..].iter_mut().zip(mask.iter().cycle()).for_each(|(octet, mask)| *octet ^= mask);
        stream.get_mut().write_all(&frame)?;
    }
}

/// Reads a line without its end; false when none comes.
pub(crate) fn read_line(stream: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<bool> {
    line.clear();
    if stream.read_until(b'\n', line)? == 0 {
        return Ok(false);
    }
    if !line.ends_with(b"\r\n") {
        return Err(wrong(line));
    }
    line.truncate(line.len() - 2);
    Ok(true)
}

pub(crate) fn number(text: &[u8], radix: u32) -> Option<usize> {
    usize::from_str_radix(std::str::from_utf8(text).ok()?, radix).ok()
}

pub(crate) fn wrong(line: &[u8]) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, String::from_utf8_lossy(line).into_owned())
}
