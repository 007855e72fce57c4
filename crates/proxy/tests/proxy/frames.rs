//! One end of an HTTP/2 connection, frame by frame (RFC 9113 §4): for what no well-behaved peer would send.

use std::io::{BufReader, Read, Write};
use std::net::{SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use socket2::{Domain, Socket, Type};

use crate::support::PATIENCE;

/// Kinds of frames (RFC 9113 §6).
pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

/// Flags.
pub const ACK: u8 = 1;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

/// Error codes (RFC 9113 §7).
pub const NO_ERROR: u32 = 0;
pub const CANCEL: u32 = 8;
pub const ENHANCE_YOUR_CALM: u32 = 11;

/// The setting of how much of a body may be sent before the receiver says more (RFC 9113 §6.5.2).
pub const INITIAL_WINDOW_SIZE: u16 = 4;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

#[derive(Clone, Debug)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

/// One end of a connection.
pub struct Peer {
    pub stream: BufReader<TcpStream>,
}

impl Peer {
    /// A client that has sent its preface with these settings.
    pub fn client(addr: SocketAddr, settings: &[(u16, u32)]) -> Peer {
        // Little is on the way to a client that does not read.
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_recv_buffer_size(64 << 10).unwrap();
        socket.connect(&addr.into()).unwrap();
        let mut peer = Peer::new(socket.into());
        peer.stream.get_mut().write_all(PREFACE).unwrap();
        peer.settings(settings);
        peer
    }

    /// A backend that has read its client's preface; `None` when that is none.
    fn server(stream: TcpStream) -> Option<Peer> {
        let mut peer = Peer::new(stream);
        let mut preface = [0; PREFACE.len()];
        peer.stream.read_exact(&mut preface).ok().filter(|()| preface == PREFACE)?;
        peer.settings(&[]);
        Some(peer)
    }

    fn new(stream: TcpStream) -> Peer {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Peer { stream: BufReader::new(stream) }
    }

    fn settings(&mut self, settings: &[(u16, u32)]) {
        let of = |(name, value): &(u16, u32)| [&name.to_be_bytes()[..], &value.to_be_bytes()].concat();
        let payload: Vec<u8> = settings.iter().flat_map(of).collect();
        assert!(self.send(SETTINGS, 0, 0, &payload));
    }

    /// Sends a frame; false when the connection is gone.
    pub fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> bool {
        self.stream.get_mut().write_all(&frame(kind, flags, stream, payload)).is_ok()
    }

    /// Asks for `path` without a body.
    pub fn get(&mut self, stream: u32, path: &str) -> bool {
        self.send(HEADERS, END_HEADERS | END_STREAM, stream, &get(path))
    }

    /// Answers with 200 and a body.
    pub fn answer(&mut self, stream: u32, body: &str) {
        // `:status: 200` of the static table (RFC 7541 appendix A).
        self.send(HEADERS, END_HEADERS, stream, &[0x88]);
        self.send(DATA, END_STREAM, stream, body.as_bytes());
    }

    /// Says goodbye: streams above `last` were not looked at (RFC 9113 §6.8).
    pub fn go_away(&mut self, last: u32, code: u32) {
        self.send(GOAWAY, 0, 0, &[last.to_be_bytes(), code.to_be_bytes()].concat());
    }

    /// Cancels a stream.
    pub fn reset(&mut self, stream: u32, code: u32) -> bool {
        self.send(RST_STREAM, 0, stream, &code.to_be_bytes())
    }

    /// Lets the other end send so many octets more, on a stream or (0) on all together.
    pub fn widen(&mut self, stream: u32, octets: u32) {
        self.send(WINDOW_UPDATE, 0, stream, &octets.to_be_bytes());
    }

    /// The next frame, with PING and SETTINGS answered on the way; `None` at the end.
    pub fn next(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        self.stream.read_exact(&mut head).ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let mut payload = vec![0; length];
        self.stream.read_exact(&mut payload).ok()?;
        let stream = u32::from_be_bytes([head[5] & 0x7f, head[6], head[7], head[8]]);
        let frame = Frame { kind: head[3], flags: head[4], stream, payload };
        match frame.kind {
            SETTINGS if frame.flags & ACK == 0 => drop(self.send(SETTINGS, ACK, 0, &[])),
            PING if frame.flags & ACK == 0 => drop(self.send(PING, ACK, 0, &frame.payload)),
            _ => {}
        }
        Some(frame)
    }

    /// The next frame of a kind.
    pub fn until(&mut self, kind: u8) -> Option<Frame> {
        std::iter::from_fn(|| self.next()).find(|frame| frame.kind == kind)
    }

    /// The error code of the last goodbye before the connection ends; `None` without one.
    pub fn goodbye(&mut self) -> Option<u32> {
        let frames = std::iter::from_fn(|| self.next());
        frames.filter(|frame| frame.kind == GOAWAY).last().map(|frame| frame.code())
    }

    /// Whether the connection has ended, with whatever was still to come passed over.
    pub fn is_over(&mut self) -> bool {
        while self.next().is_some() {}
        // An end or a reset, but no lack of patience.
        let last = self.stream.read(&mut [0]);
        last.map_or_else(|error| error.kind() != std::io::ErrorKind::WouldBlock, |read| read == 0)
    }
}

impl Frame {
    pub fn ends_stream(&self) -> bool {
        matches!(self.kind, DATA | HEADERS) && self.flags & END_STREAM != 0
    }

    /// The error code of RST_STREAM or GOAWAY.
    pub fn code(&self) -> u32 {
        let at = if self.kind == GOAWAY { 4 } else { 0 };
        u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap())
    }
}

/// A frame as it is sent.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The header block of a GET without anything to remember (RFC 7541 §6.2).
pub fn get(path: &str) -> Vec<u8> {
    // `:method: GET` and `:scheme: http` of the static table; `:path` and `:authority` by its names.
    let mut block = vec![0x82, 0x86];
    for (name, value) in [(4, path), (1, "wiki.prox.local")] {
        block.extend([name, value.len() as u8]);
        block.extend(value.bytes());
    }
    block
}

/// A field of a header block, literally (RFC 7541 §6.2.2); neither part longer than 126 octets.
pub fn field(name: &str, value: &str) -> Vec<u8> {
    let text = |text: &str| [&[text.len() as u8], text.as_bytes()].concat();
    [vec![0], text(name), text(value)].concat()
}

/// An HTTP/2 backend whose connections run a script, each on its own thread; they are numbered from 0.
pub struct FrameBackend {
    pub addr: SocketAddrV4,
    accepted: Arc<AtomicUsize>,
}

impl FrameBackend {
    pub fn script(script: impl Fn(usize, Peer) + Send + Sync + 'static) -> FrameBackend {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let SocketAddr::V4(addr) = listener.local_addr().unwrap() else { unreachable!() };
        let (script, accepted) = (Arc::new(script), Arc::new(AtomicUsize::new(0)));
        let backend = FrameBackend { addr, accepted: accepted.clone() };
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (script, number) = (script.clone(), accepted.fetch_add(1, SeqCst));
                std::thread::spawn(move || Peer::server(stream.unwrap()).map(|peer| script(number, peer)));
            }
        });
        backend
    }

    pub fn accepted(&self) -> usize {
        self.accepted.load(SeqCst)
    }
}
