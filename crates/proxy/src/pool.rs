use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use http::{HeaderValue, Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1};
use hyper_util::rt::TokioIo;
use proximity_table::BackendKey;
use tokio::net::TcpStream;

use crate::body::Upload;
use crate::peers::Patience;
use crate::{Counters, Reason, peers};

/// Kept connections of one thread, all backends together.
const MOST_KEPT: usize = 4096;
/// Kept connections looked at for a free one; the rest would be still busy with their last request.
const LOOKED_AT: usize = 8;
/// A request that must not be sent twice takes a kept connection only within this many seconds: many
/// servers close idle ones after 2 to 5 s, and a close that crosses the request would fail it.
const FRESH: u32 = 2;

/// The connections of one data thread to the backends. They are kept by address *and* lease epoch: the next
/// owner of an address never gets a connection that was opened to the one before.
#[derive(Debug)]
pub struct Pool {
    lanes: RefCell<HashMap<BackendKey, Lane, BuildHasherDefault<KeyHasher>>>,
    kept: Cell<usize>,
    tick: Arc<AtomicU32>,
    limits: Limits,
    counters: Arc<Counters>,
}

/// Limits of a pool.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub connect_timeout: Duration,
    /// Seconds after which a kept connection is closed.
    pub idle: u32,
    pub kept_per_backend: usize,
}

/// A connection to a backend, taken out of the pool.
#[derive(Debug)]
pub struct Connection {
    key: BackendKey,
    sender: http1::SendRequest<Upload>,
    reused: bool,
}

#[derive(Debug)]
struct Lane {
    /// `address:port`, as the backend is told.
    host: HeaderValue,
    kept: Vec<Kept>,
    used: u32,
}

/// Hashes backends. Their addresses are the administrator's and DHCP's choice, not that of whoever sends
/// requests: nobody can make them collide, and a keyed hash would be the dearest part of a look-up.
#[derive(Debug, Default)]
struct KeyHasher(u64);

#[derive(Debug)]
struct Kept {
    sender: http1::SendRequest<Upload>,
    since: u32,
}

impl Pool {
    pub fn new(tick: Arc<AtomicU32>, limits: Limits, counters: Arc<Counters>) -> Pool {
        Pool { lanes: RefCell::default(), kept: Cell::new(0), tick, limits, counters }
    }

    /// The `Host` of a backend, and a kept connection to it: the last used one. `once_only` requests get
    /// only fresh ones.
    pub fn take(&self, key: BackendKey, once_only: bool) -> (HeaderValue, Option<Connection>) {
        let mut lanes = self.lanes.borrow_mut();
        let lane = lanes.entry(key).or_insert_with(|| Lane::new(key));
        lane.used = self.tick.load(Relaxed);
        let host = lane.host.clone();
        (host, self.take_from(lane, key, once_only))
    }

    fn take_from(&self, lane: &mut Lane, key: BackendKey, once_only: bool) -> Option<Connection> {
        let now = self.tick.load(Relaxed);
        let mut at = lane.kept.len();
        for _ in 0..LOOKED_AT {
            at = at.checked_sub(1)?;
            let kept = &lane.kept[at];
            let age = now.wrapping_sub(kept.since);
            if kept.sender.is_closed() || age > self.limits.idle {
                lane.kept.remove(at);
                self.kept.set(self.kept.get() - 1);
            } else if once_only && age >= FRESH {
                // The ones below have waited even longer.
                return None;
            } else if kept.sender.is_ready() {
                let kept = lane.kept.remove(at);
                self.kept.set(self.kept.get() - 1);
                self.counters.upstream_reused();
                return Some(Connection { key, sender: kept.sender, reused: true });
            }
        }
        None
    }

    /// A new connection to a backend.
    pub async fn connect(&self, key: BackendKey) -> Result<Connection, Reason> {
        let connecting = TcpStream::connect(key.addr);
        let stream = match tokio::time::timeout(self.limits.connect_timeout, connecting).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(why_not(&error)),
            Err(_) => return Err(Reason::BackendTimedOut),
        };
        // A failure here costs latency only, or that a silent end is noticed late.
        let _ = stream.set_nodelay(true);
        let _ = peers::watch_backend(&stream, Patience::USUAL);
        let handshake = http1::Builder::new().handshake(TokioIo::new(stream)).await;
        let (sender, connection) = handshake.map_err(|_| Reason::BackendBroke)?;
        tokio::task::spawn_local(async move {
            // What goes wrong is told to the request that is on the connection.
            let _ = connection.with_upgrades().await;
        });
        self.counters.upstream_connected();
        Ok(Connection { key, sender, reused: false })
    }

    /// Keeps a connection whose answer is complete.
    pub fn put(&self, connection: Connection) {
        if connection.sender.is_closed() || self.kept.get() >= MOST_KEPT {
            return;
        }
        let now = self.tick.load(Relaxed);
        let mut lanes = self.lanes.borrow_mut();
        let lane = lanes.entry(connection.key).or_insert_with(|| Lane::new(connection.key));
        if lane.kept.len() < self.limits.kept_per_backend {
            lane.used = now;
            lane.kept.push(Kept { sender: connection.sender, since: now });
            self.kept.set(self.kept.get() + 1);
        }
    }

    /// Closes what was idle for too long and forgets backends that nobody asks for.
    pub fn sweep(&self) {
        let now = self.tick.load(Relaxed);
        let idle = self.limits.idle;
        let mut kept = 0;
        self.lanes.borrow_mut().retain(|_, lane| {
            lane.kept.retain(|kept| !kept.sender.is_closed() && now.wrapping_sub(kept.since) <= idle);
            kept += lane.kept.len();
            !lane.kept.is_empty() || now.wrapping_sub(lane.used) <= idle
        });
        self.kept.set(kept);
    }
}

impl Connection {
    /// Whether it has carried a request before.
    pub fn is_reused(&self) -> bool {
        self.reused
    }

    /// Sends a request; the error holds it when not one octet of it left.
    pub async fn send(
        &mut self,
        request: Request<Upload>,
    ) -> Result<Response<Incoming>, TrySendError<Request<Upload>>> {
        self.sender.try_send_request(request).await
    }
}

impl Lane {
    fn new(key: BackendKey) -> Lane {
        let host = HeaderValue::try_from(key.addr.to_string());
        let host = host.unwrap_or_else(|_| HeaderValue::from_static("backend"));
        Lane { host, kept: Vec::new(), used: 0 }
    }
}

impl Hasher for KeyHasher {
    fn write(&mut self, bytes: &[u8]) {
        for part in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..part.len()].copy_from_slice(part);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u16(&mut self, number: u16) {
        self.write_u64(number.into());
    }

    fn write_u64(&mut self, number: u64) {
        // The golden ratio: an odd number without pattern. The fold brings the high bits down, since a table
        // uses the low ones too.
        let product = (self.0.rotate_left(5) ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = product ^ (product >> 32);
    }

    fn write_usize(&mut self, number: usize) {
        self.write_u64(number as u64);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

fn why_not(error: &io::Error) -> Reason {
    match error.kind() {
        io::ErrorKind::TimedOut | io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
            Reason::BackendTimedOut
        }
        _ => Reason::BackendRefused,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::hash::BuildHasher;
    use std::net::{Ipv4Addr, SocketAddrV4};

    use super::*;

    #[test]
    fn backends_of_one_network_do_not_collide() {
        let hashed = BuildHasherDefault::<KeyHasher>::default();
        let key = |ip: u32, port, epoch| BackendKey {
            addr: SocketAddrV4::new(Ipv4Addr::from(0x0a14_0000 + ip), port),
            epoch,
        };
        let addresses = (0..60_000).map(|ip| key(ip, 80, u64::from(ip)));
        let ports = (1..5_000).map(|port| key(7, port, 0));
        let hashes: Vec<u64> = addresses.chain(ports).map(|key| hashed.hash_one(key)).collect();
        let distinct = |bits: fn(&u64) -> u64| hashes.iter().map(bits).collect::<HashSet<_>>().len();
        assert_eq!(distinct(|hash| *hash), hashes.len());
        // A table takes its place from the low bits and a tag from the high ones: 65,000 keys over 65,536
        // places fill some 63 % of them when they are spread by chance.
        assert!(distinct(|hash| hash & 0xffff) > 35_000);
        assert_eq!(distinct(|hash| hash >> 57), 128);
    }
}
