use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use proximity_table::Route;

use crate::escape::{push_json, push_millionths, push_number};
use crate::http1::Version;

/// One answered request, in the words of Caddy's access log. Request and response headers are left out: a
/// log must not hold credentials, and nothing else in them is worth its size.
#[derive(Debug)]
pub struct Line<'a> {
    /// When the request arrived, in microseconds since the Unix epoch.
    pub at_micros: u64,
    /// The fields of the client, made once for each connection by [`client_fields`].
    pub client: &'a str,
    pub version: Version,
    pub method: &'a [u8],
    pub host: &'a [u8],
    pub uri: &'a [u8],
    /// Octets of the request's body.
    pub received: u64,
    pub duration_micros: u64,
    /// Octets of the response's body.
    pub size: u64,
    pub status: u16,
}

/// Log lines of one data thread until the writer gets them.
#[derive(Debug, Default)]
pub struct Batch {
    /// Lines as text.
    pub text: Vec<u8>,
    /// Which vhost the lines belong to (`None`: no vhost), how many octets and how many lines they are.
    pub marks: Vec<(Option<Arc<Route>>, usize, u64)>,
}

impl Batch {
    /// Appends a line.
    pub fn push(&mut self, route: Option<Arc<Route>>, line: &Line<'_>) {
        let before = self.text.len();
        line.write(&mut self.text);
        let length = self.text.len() - before;
        match self.marks.last_mut() {
            Some((last, octets, lines)) if same(last.as_ref(), route.as_ref()) => {
                *octets += length;
                *lines += 1;
            }
            _ => self.marks.push((route, length, 1)),
        }
    }

    /// How many lines there are.
    pub fn lines(&self) -> u64 {
        self.marks.iter().map(|(_, _, lines)| lines).sum()
    }
}

impl Line<'_> {
    /// Appends the line with its end.
    pub fn write(&self, to: &mut Vec<u8>) {
        to.extend_from_slice(b"{\"level\":\"info\",\"ts\":");
        push_millionths(to, self.at_micros);
        to.extend_from_slice(b",\"logger\":\"http.log.access\",\"msg\":\"handled request\",\"request\":{");
        to.extend_from_slice(self.client.as_bytes());
        to.extend_from_slice(match self.version {
            Version::Http10 => b",\"proto\":\"HTTP/1.0\",\"method\":",
            Version::Http11 => b",\"proto\":\"HTTP/1.1\",\"method\":",
            Version::Http2 => b",\"proto\":\"HTTP/2.0\",\"method\":",
        });
        push_json(to, self.method);
        to.extend_from_slice(b",\"host\":");
        push_json(to, self.host);
        to.extend_from_slice(b",\"uri\":");
        push_json(to, self.uri);
        to.extend_from_slice(b"},\"bytes_read\":");
        push_number(to, self.received);
        to.extend_from_slice(b",\"user_id\":\"\",\"duration\":");
        push_millionths(to, self.duration_micros);
        to.extend_from_slice(b",\"size\":");
        push_number(to, self.size);
        to.extend_from_slice(b",\"status\":");
        push_number(to, u64::from(self.status));
        to.extend_from_slice(b"}\n");
    }
}

/// The fields of a client: the other end of the connection, and who asked if a trusted proxy asks for somebody.
pub fn client_fields(peer: SocketAddr, client: IpAddr) -> String {
    let (ip, port) = (peer.ip(), peer.port());
    format!("\"remote_ip\":\"{ip}\",\"remote_port\":\"{port}\",\"client_ip\":\"{client}\"")
}

fn same(a: Option<&Arc<Route>>, b: Option<&Arc<Route>>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => Arc::ptr_eq(a, b),
        (None, None) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_caddys_keys() {
        let line = Line {
            at_micros: 1_700_000_000_123_456,
            client: &client_fields("192.168.1.7:41342".parse().unwrap(), "192.168.1.7".parse().unwrap()),
            version: Version::Http11,
            method: b"GET",
            host: b"we\"ird\xff",
            uri: b"/a?q=1",
            received: 3,
            duration_micros: 929,
            size: 10900,
            status: 200,
        };
        let mut text = Vec::new();
        line.write(&mut text);
        assert_eq!(text.last(), Some(&b'\n'));
        let json: serde_json::Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(json["level"], "info");
        assert_eq!(json["ts"], 1_700_000_000.123_456);
        assert_eq!(json["logger"], "http.log.access");
        assert_eq!(json["msg"], "handled request");
        assert_eq!(json["request"]["remote_ip"], "192.168.1.7");
        assert_eq!(json["request"]["remote_port"], "41342");
        assert_eq!(json["request"]["client_ip"], "192.168.1.7");
        assert_eq!(json["request"]["proto"], "HTTP/1.1");
        assert_eq!(json["request"]["method"], "GET");
        assert_eq!(json["request"]["host"], "we\"ird\u{fffd}");
        assert_eq!(json["request"]["uri"], "/a?q=1");
        assert_eq!(json["bytes_read"], 3);
        assert_eq!(json["user_id"], "");
        assert_eq!(json["duration"], 0.000_929);
        assert_eq!(json["size"], 10900);
        assert_eq!(json["status"], 200);
    }
}
