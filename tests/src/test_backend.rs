//! A web server for tests, in a node: it notes what it is asked and answers as the test says.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use proximity_lab::Node;

/// A running server. Dropping it stops it from taking connections.
#[derive(Debug)]
pub struct TestBackend {
    listener: Arc<TcpListener>,
    heads: Arc<Mutex<Vec<String>>>,
}

impl TestBackend {
    /// Serves on a port of `node`. `answer` gets each request's head and writes the whole response; the
    /// connection is closed after it.
    ///
    /// # Panics
    /// When the port cannot be had.
    pub fn start(
        node: &Node,
        port: u16,
        answer: impl Fn(&str, &mut TcpStream) -> std::io::Result<()> + Send + Sync + 'static,
    ) -> TestBackend {
        let listener = node.enter(|| TcpListener::bind(SocketAddr::from(([0, 0, 0, 0], port))));
        let listener = Arc::new(listener.expect("the node can be entered").expect("the port is free"));
        let heads = Arc::new(Mutex::new(Vec::new()));
        let (accepting, noted, answer) = (listener.clone(), heads.clone(), Arc::new(answer));
        thread::spawn(move || {
            // `accept` fails once the socket is shut down.
            while let Ok((mut stream, _)) = accepting.accept() {
                let (noted, answer) = (noted.clone(), answer.clone());
                thread::spawn(move || {
                    let _ = stream.set_read_timeout(Some(Duration::from_secs(30)));
                    let Some(head) = read_head(&mut stream) else { return };
                    noted.lock().unwrap_or_else(PoisonError::into_inner).push(head.clone());
                    // The client may have gone away.
                    let _ = answer(&head, &mut stream);
                });
            }
        });
        TestBackend { listener, heads }
    }

    /// Serves one page.
    ///
    /// # Panics
    /// When the port cannot be had.
    pub fn page(node: &Node, port: u16, text: &'static str) -> TestBackend {
        TestBackend::start(node, port, move |_, stream| {
            write!(
                stream,
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}",
                text.len()
            )
        })
    }

    /// Heads of the requests so far, probes of the appliance left out.
    pub fn requests(&self) -> Vec<String> {
        let heads = self.heads.lock().unwrap_or_else(PoisonError::into_inner);
        heads.iter().filter(|head| !head.contains("Proximity-Health")).cloned().collect()
    }
}

impl Drop for TestBackend {
    fn drop(&mut self) {
        let _ = socket2::SockRef::from(&*self.listener).shutdown(std::net::Shutdown::Both);
    }
}

fn read_head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() > 64 * 1024 || stream.read(&mut byte).ok()? == 0 {
            return None;
        }
        head.push(byte[0]);
    }
    String::from_utf8(head).ok()
}
