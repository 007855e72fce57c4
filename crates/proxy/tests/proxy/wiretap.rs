//! A backend that notes every octet it gets, for tests of what reaches a backend and what does not.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};

use crate::support::{PATIENCE, Proxy};

/// What ends a wiretap: a connection that begins with this.
const LAST_CALL: &[u8] = b"LAST CALL";

/// What came in on each connection, and how many of them have ended.
#[derive(Default)]
struct Tapes {
    octets: Vec<Vec<u8>>,
    ended: usize,
}

/// A backend that takes everything down and says what it was told to say after each head.
pub struct Wiretap {
    pub addr: SocketAddrV4,
    tapes: Arc<(Mutex<Tapes>, Condvar)>,
}

impl Wiretap {
    /// A backend that never answers.
    pub fn silent() -> Wiretap {
        Wiretap::saying("")
    }

    /// A backend that says `answer` whenever something that ends in an empty line has come.
    pub fn saying(answer: &'static str) -> Wiretap {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let SocketAddr::V4(addr) = listener.local_addr().unwrap() else { unreachable!() };
        let tapes: Arc<(Mutex<Tapes>, Condvar)> = Arc::default();
        let shared = tapes.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let tapes = shared.clone();
                let number = {
                    let mut tapes = tapes.0.lock().unwrap();
                    tapes.octets.push(Vec::new());
                    tapes.octets.len() - 1
                };
                std::thread::spawn(move || take_down(stream.unwrap(), number, answer, &tapes));
            }
        });
        Wiretap { addr, tapes }
    }

    /// Stops the proxy and gives what came on each connection, in the order in which they were taken.
    pub fn after(self, proxy: Proxy) -> Vec<String> {
        proxy.join();
        // Connections are taken in order: what came before this one has been taken when it is.
        let mut last = TcpStream::connect(self.addr).unwrap();
        last.write_all(LAST_CALL).unwrap();
        last.shutdown(Shutdown::Write).unwrap();
        let (tapes, changed) = &*self.tapes;
        let heard_all = |tapes: &mut Tapes| {
            !(tapes.ended == tapes.octets.len() && tapes.octets.iter().any(|octets| octets == LAST_CALL))
        };
        let (mut tapes, waited) =
            changed.wait_timeout_while(tapes.lock().unwrap(), PATIENCE, heard_all).unwrap();
        assert!(!waited.timed_out(), "a connection to the backend stays open");
        tapes.octets.retain(|octets| octets != LAST_CALL);
        tapes.octets.iter().map(|octets| String::from_utf8_lossy(octets).into_owned()).collect()
    }
}

fn take_down(mut stream: TcpStream, number: usize, answer: &str, tapes: &(Mutex<Tapes>, Condvar)) {
    let (all, changed) = tapes;
    let mut buffer = [0; 4096];
    loop {
        let read = stream.read(&mut buffer).unwrap_or(0);
        let mut tapes = all.lock().unwrap();
        if read == 0 {
            tapes.ended += 1;
            changed.notify_all();
            return;
        }
        let tape = &mut tapes.octets[number];
        tape.extend_from_slice(&buffer[..read]);
        let is_answered = !answer.is_empty() && tape.ends_with(b"\r\n\r\n");
        drop(tapes);
        if is_answered {
            let _ = stream.write_all(answer.as_bytes());
        }
    }
}
