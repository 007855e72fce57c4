//! The admin API, over its unix socket and over TCP.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use proximity_lab::Node;
use serde_json::Value;

use crate::http_exchange::{Answer, exchange};

/// Root of the API.
pub const BASE: &str = "/api/v1/appliance";
const PATIENCE: Duration = Duration::from_secs(10);

/// The API on the unix socket.
#[derive(Clone, Debug)]
pub struct AdminApi {
    socket: PathBuf,
}

impl AdminApi {
    /// The API behind this socket.
    pub fn new(socket: PathBuf) -> AdminApi {
        AdminApi { socket }
    }

    /// Asks; `path` is below [`BASE`].
    ///
    /// # Panics
    /// When nobody answers.
    pub fn call(&self, method: &str, path: &str, body: Option<Value>) -> Answer {
        let asked = self.try_call(method, path, body);
        asked.unwrap_or_else(|error| panic!("{method} {path} on {}: {error}", self.socket.display()))
    }

    /// As [`AdminApi::call`].
    ///
    /// # Errors
    /// When nobody answers.
    pub fn try_call(&self, method: &str, path: &str, body: Option<Value>) -> io::Result<Answer> {
        let mut stream = UnixStream::connect(&self.socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let body = body.map(|body| body.to_string()).unwrap_or_default();
        exchange(&mut stream, method, &format!("{BASE}{path}"), &["Host: appliance"], &body)
    }

    /// What there is at `path`.
    ///
    /// # Panics
    /// When nothing is.
    pub fn get(&self, path: &str) -> Value {
        self.call("GET", path, None).expect(200)
    }

    /// The rows of a list.
    ///
    /// # Panics
    /// When it is no list, or says to hold another number of rows than it does.
    pub fn items(&self, path: &str) -> Vec<Value> {
        let page = self.get(path);
        let items = page["items"].as_array().unwrap_or_else(|| panic!("no items: {page}")).clone();
        assert_eq!(page["total"], items.len(), "{page}");
        items
    }
}

/// Asks over TCP from a node. `path` is whole.
///
/// # Errors
/// When there is no way to the port, or it is refused.
pub fn call_over_tcp(
    from: &Node,
    to: SocketAddr,
    token: Option<&str>,
    (method, path): (&str, &str),
    body: &str,
) -> io::Result<Answer> {
    let mut stream = from
        .enter(|| TcpStream::connect_timeout(&to, Duration::from_secs(3)))
        .map_err(|error| io::Error::other(error.to_string()))??;
    stream.set_read_timeout(Some(PATIENCE))?;
    let authorization = token.map(|token| format!("Authorization: Bearer {token}"));
    let headers: Vec<&str> = std::iter::once("Host: appliance").chain(authorization.as_deref()).collect();
    exchange(&mut stream, method, path, &headers, body)
}
