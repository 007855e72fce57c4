use std::cell::{Cell, RefCell};
use std::collections::HashMap;
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
use crate::{Counters, Reason};

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
    lanes: RefCell<HashMap<BackendKey, Lane>>,
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

#[derive(Debug)]
struct Kept {
    sender: http1::SendRequest<Upload>,
    since: u32,
}

impl Pool {
    pub fn new(tick: Arc<AtomicU32>, limits: Limits, counters: Arc<Counters>) -> Pool {
        Pool { lanes: RefCell::default(), kept: Cell::new(0), tick, limits, counters }
    }

    /// The `Host` of a backend.
    pub fn host(&self, key: BackendKey) -> HeaderValue {
        let mut lanes = self.lanes.borrow_mut();
        let lane = lanes.entry(key).or_insert_with(|| Lane::new(key));
        lane.used = self.tick.load(Relaxed);
        lane.host.clone()
    }

    /// A kept connection to a backend: the last used one. `once_only` requests get only fresh ones.
    pub fn take(&self, key: BackendKey, once_only: bool) -> Option<Connection> {
        let mut lanes = self.lanes.borrow_mut();
        let lane = lanes.get_mut(&key)?;
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
        // A failure here costs latency only.
        let _ = stream.set_nodelay(true);
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

fn why_not(error: &io::Error) -> Reason {
    match error.kind() {
        io::ErrorKind::TimedOut | io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
            Reason::BackendTimedOut
        }
        _ => Reason::BackendRefused,
    }
}
