//! Servers for tests that speak no HTTP, in a node: TCP by a script, UDP by an echo with a name.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use proximity_lab::Node;

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// A running TCP server. Dropping it stops it from taking connections.
#[derive(Debug)]
pub struct StreamBackend {
    listener: Arc<TcpListener>,
}

/// A client of such a server, or of whatever carries to it.
#[derive(Debug)]
pub struct StreamClient {
    stream: BufReader<TcpStream>,
}

/// A client of a UDP server. It hears only what comes from where it sends to.
#[derive(Debug)]
pub struct DatagramClient {
    socket: UdpSocket,
}

impl StreamBackend {
    /// Serves on a port of `node`, each connection by `script` on a thread of its own.
    ///
    /// # Panics
    /// When the port cannot be had.
    pub fn start(
        node: &Node,
        port: u16,
        script: impl Fn(TcpStream) + Send + Sync + 'static,
    ) -> StreamBackend {
        let listener = node.enter(|| TcpListener::bind(SocketAddr::from(([0, 0, 0, 0], port))));
        let listener = Arc::new(listener.expect("the node can be entered").expect("the port is free"));
        let (accepting, script) = (listener.clone(), Arc::new(script));
        thread::spawn(move || {
            // `accept` fails once the socket is shut down.
            while let Ok((stream, _)) = accepting.accept() {
                let script = script.clone();
                let _ = stream.set_read_timeout(Some(PATIENCE * 3));
                thread::spawn(move || script(stream));
            }
        });
        StreamBackend { listener }
    }

    /// Says `name` in a line, then sends every line back.
    ///
    /// # Panics
    /// When the port cannot be had.
    pub fn named(node: &Node, port: u16, name: &'static str) -> StreamBackend {
        StreamBackend::start(node, port, move |mut stream| {
            let _ = writeln!(stream, "{name}");
            echo_lines(stream);
        })
    }

    /// Sends every line back.
    ///
    /// # Panics
    /// When the port cannot be had.
    pub fn echo(node: &Node, port: u16) -> StreamBackend {
        StreamBackend::start(node, port, echo_lines)
    }
}

impl Drop for StreamBackend {
    fn drop(&mut self) {
        let _ = socket2::SockRef::from(&*self.listener).shutdown(Shutdown::Both);
    }
}

fn echo_lines(stream: TcpStream) {
    let Ok(mut back) = stream.try_clone() else { return };
    for line in BufReader::new(stream).lines().map_while(Result::ok) {
        if writeln!(back, "{line}").is_err() {
            return;
        }
    }
}

/// Answers every datagram on a port of `node` with `name`, a colon and the datagram, until the test ends.
///
/// # Panics
/// When the port cannot be had.
pub fn answer_datagrams(node: &Node, port: u16, name: &'static str) {
    let socket = node.enter(|| UdpSocket::bind(SocketAddr::from(([0, 0, 0, 0], port))));
    let socket = socket.expect("the node can be entered").expect("the port is free");
    thread::spawn(move || {
        let mut datagram = [0; 65_535];
        while let Ok((length, from)) = socket.recv_from(&mut datagram) {
            let _ = socket.send_to(&[name.as_bytes(), b":", &datagram[..length]].concat(), from);
        }
    });
}

impl StreamClient {
    /// Connects from a node.
    ///
    /// # Errors
    /// When there is no way to the port, or it is refused.
    pub fn connect(from: &Node, to: impl Into<SocketAddr>) -> std::io::Result<StreamClient> {
        let to = to.into();
        let stream = from.enter(|| TcpStream::connect_timeout(&to, PATIENCE));
        let stream = stream.map_err(|error| std::io::Error::other(error.to_string()))??;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(StreamClient { stream: BufReader::new(stream) })
    }

    /// The end at the client.
    ///
    /// # Panics
    /// When it is not connected.
    pub fn local(&self) -> SocketAddr {
        self.stream.get_ref().local_addr().expect("connected")
    }

    /// Sends octets.
    ///
    /// # Errors
    /// When the connection has ended.
    pub fn send(&mut self, octets: &[u8]) -> std::io::Result<()> {
        self.stream.get_mut().write_all(octets)
    }

    /// The next line, without its end.
    ///
    /// # Errors
    /// When the connection has ended.
    pub fn line(&mut self) -> std::io::Result<String> {
        let mut line = String::new();
        match self.stream.read_line(&mut line)? {
            0 => Err(std::io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(line.trim_end().to_owned()),
        }
    }

    /// Sends a line and reads one.
    ///
    /// # Errors
    /// When the connection has ended.
    pub fn ask(&mut self, line: &str) -> std::io::Result<String> {
        self.send(format!("{line}\n").as_bytes())?;
        self.line()
    }

    /// Everything until the other side ends.
    ///
    /// # Errors
    /// When it ends by a reset.
    pub fn rest(mut self) -> std::io::Result<Vec<u8>> {
        let mut rest = Vec::new();
        self.stream.read_to_end(&mut rest)?;
        Ok(rest)
    }
}

impl DatagramClient {
    /// A client in a node.
    ///
    /// # Panics
    /// When it cannot be had.
    pub fn open(from: &Node, to: impl Into<SocketAddr>) -> DatagramClient {
        let to = to.into();
        let socket = from.enter(|| {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.connect(to)?;
            socket.set_read_timeout(Some(PATIENCE))?;
            std::io::Result::Ok(socket)
        });
        DatagramClient { socket: socket.expect("the node can be entered").expect("a socket") }
    }

    /// Sends a datagram and waits for one.
    ///
    /// # Errors
    /// When none comes, or the other side says that nobody listens.
    pub fn ask(&self, text: &str) -> std::io::Result<String> {
        self.socket.send(text.as_bytes())?;
        let mut answer = [0; 65_535];
        let length = self.socket.recv(&mut answer)?;
        Ok(String::from_utf8_lossy(&answer[..length]).into_owned())
    }
}
