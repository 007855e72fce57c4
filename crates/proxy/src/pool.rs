use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use proximity_table::{BackendKey, BackendProtocol, UpstreamKey};
use tokio::net::TcpStream;
use tokio::sync::Notify;

use crate::http2::connection;
use crate::peers::Patience;
use crate::stream::Stream;
use crate::tls::{NoTls, Tls};
use crate::watch::Ticks;
use crate::{Counters, Reason, peers};

/// Kept connections of one thread, all backends together.
const MOST_KEPT: usize = 4096;
/// Connections kept for one backend while it is busy.
const KEPT_BUSY: usize = 2048;
/// Connections kept for one backend when it is not: an app with a few dozen workers must not have them all
/// taken by silence.
const KEPT_QUIET: usize = 32;
/// HTTP/2 connections to one backend.
const MOST_SHARED: usize = 8;
/// Kept connections looked at for a live one.
const LOOKED_AT: usize = 8;
/// The shortest time after which a backend that acknowledges nothing is given up: three packets may get lost.
const UNACKNOWLEDGED: Duration = Duration::from_secs(3);
/// The same for one that is spoken to in HTTP/2: it has the uploads of many requests to read, and a moment in
/// which it reads nothing must not end them all.
const UNACKNOWLEDGED_SHARED: Duration = Duration::from_secs(30);
/// A request that must not be sent twice takes a kept connection only within this many seconds: many
/// servers close idle ones after 2 to 5 s, and a close that crosses the request would fail it.
const FRESH: u32 = 2;

/// The connections of one data thread to the backends. They are kept by address *and* lease epoch: the next
/// owner of an address never gets a connection that was opened to the one before.
#[derive(Debug)]
pub struct Pool {
    lanes: RefCell<HashMap<UpstreamKey, Rc<Lane>, BuildHasherDefault<KeyHasher>>>,
    kept: Rc<Cell<usize>>,
    ticks: Ticks,
    /// Seconds after which a kept connection is closed.
    idle: u32,
    tls: Tls,
    counters: Arc<Counters>,
}

/// The way to one backend.
#[derive(Debug)]
pub struct Lane {
    pub key: UpstreamKey,
    /// `address:port`, as the backend is told.
    pub host: String,
    kept: RefCell<Vec<Kept>>,
    /// Connections that carry many requests at a time.
    shared: RefCell<Vec<Sender>>,
    /// How many more of them are being opened.
    opening: Cell<usize>,
    /// Notified when one of those was opened, or could not be.
    opened: Notify,
    /// Kept connections of all lanes.
    total: Rc<Cell<usize>>,
    used: Cell<u32>,
}

/// What a request finds that wants a place on an HTTP/2 connection.
enum Share<'a> {
    Has(Sender),
    MayOpen(Opening<'a>),
    /// As many as may be are being opened, and none is open.
    MustWait,
}

/// An HTTP/2 connection that is being opened.
struct Opening<'a>(&'a Lane);

impl Opening<'_> {
    fn begin(lane: &Lane) -> Opening<'_> {
        lane.opening.set(lane.opening.get() + 1);
        Opening(lane)
    }
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        self.0.opening.set(self.0.opening.get() - 1);
        self.0.opened.notify_waiters();
    }
}

/// A place for one request on an HTTP/2 connection to a backend.
#[derive(Clone, Debug)]
pub struct Sender {
    pub requests: SendRequest<Bytes>,
    /// One for each place that is in use, and one of the lane.
    in_use: Rc<()>,
    /// Whether the connection carried other requests before.
    pub is_reused: bool,
}

#[derive(Debug)]
struct Kept {
    stream: Stream,
    since: u32,
}

/// Hashes backends. Their addresses are the administrator's and DHCP's choice, not that of whoever sends
/// requests: nobody can make them collide, and a keyed hash would be the dearest part of a look-up.
#[derive(Debug, Default)]
struct KeyHasher(u64);

impl Lane {
    /// The backend that it leads to.
    pub fn backend(&self) -> BackendKey {
        self.key.backend
    }
}

impl Pool {
    pub fn new(ticks: Ticks, idle: u32, tls: Tls, counters: Arc<Counters>) -> Pool {
        Pool { lanes: RefCell::default(), kept: Rc::default(), ticks, idle, tls, counters }
    }

    /// The way to a backend.
    pub fn lane(&self, key: UpstreamKey) -> Rc<Lane> {
        let mut lanes = self.lanes.borrow_mut();
        let lane = lanes.entry(key).or_insert_with_key(|key| {
            Rc::new(Lane {
                key: key.clone(),
                host: key.backend.addr.to_string(),
                kept: RefCell::default(),
                shared: RefCell::default(),
                opening: Cell::default(),
                opened: Notify::new(),
                total: self.kept.clone(),
                used: Cell::new(0),
            })
        });
        lane.used.set(self.ticks.now());
        lane.clone()
    }

    /// A kept connection: the last used one. `once_only` requests get only fresh ones.
    pub fn take(&self, lane: &Lane, once_only: bool) -> Option<Stream> {
        let now = self.ticks.now();
        lane.used.set(now);
        let mut kept = lane.kept.borrow_mut();
        for _ in 0..LOOKED_AT {
            let age = now.wrapping_sub(kept.last()?.since);
            if once_only && age >= FRESH {
                // The ones below have waited even longer.
                return None;
            }
            let mut last = kept.pop()?;
            self.kept.set(self.kept.get() - 1);
            if age <= self.idle && !last.stream.is_stale() {
                self.counters.upstream_reused();
                return Some(last.stream);
            }
        }
        None
    }

    /// A new connection to a backend.
    pub async fn connect(&self, lane: &Lane, within: Duration) -> Result<Stream, Reason> {
        // What is not there in time: a connection, or what was to be agreed on over it.
        let missing = Cell::new(Reason::BackendTimedOut);
        let connecting = async {
            let stream = TcpStream::connect(lane.key.backend.addr).await.map_err(|error| why_not(&error))?;
            missing.set(Reason::BackendTls);
            // A failure here costs latency only, or that a silent end is noticed late.
            let _ = stream.set_nodelay(true);
            let unacknowledged = Some(unacknowledged(lane, within));
            let _ = peers::watch_backend(&stream, Patience::USUAL, unacknowledged);
            let Some(tls) = &lane.key.tls else {
                return Ok::<_, Reason>(Stream::Tcp(stream));
            };
            let host = (*lane.key.backend.addr.ip()).into();
            let stream = self.tls.connect(stream, tls, host).await.map_err(|why| match why {
                NoTls::Handshake => Reason::BackendTls,
                NoTls::Untrusted(_) => Reason::BackendUntrusted,
            })?;
            Ok(Stream::Tls(Box::new(stream)))
        };
        let stream = tokio::time::timeout(within, connecting).await.map_err(|_| missing.get())??;
        self.counters.upstream_connected();
        Ok(stream)
    }

    /// Closes what is kept for a backend whose machine is gone: each would be found out in its own time.
    pub fn forget(&self, lane: &Lane) {
        let mut kept = lane.kept.borrow_mut();
        self.kept.set(self.kept.get() - kept.len());
        kept.clear();
    }

    /// A place for one more request on an HTTP/2 connection to a backend.
    pub async fn sender(&self, lane: &Lane, within: Duration) -> Result<Sender, Reason> {
        lane.used.set(self.ticks.now());
        let _opening = loop {
            match self.share(lane) {
                Share::Has(sender) => return Ok(sender),
                Share::MayOpen(opening) => break opening,
                Share::MustWait => {
                    let opened = tokio::time::timeout(within, lane.opened.notified());
                    opened.await.map_err(|_| Reason::BackendTimedOut)?;
                }
            }
        };
        let stream = self.connect(lane, within).await?;
        let opening = tokio::time::timeout(within, connection::open(stream));
        let requests =
            opening.await.map_err(|_| Reason::BackendTimedOut)?.map_err(|_| Reason::BackendNonsense)?;
        let sender = Sender { requests, in_use: Rc::new(()), is_reused: false };
        lane.shared.borrow_mut().push(sender.clone());
        Ok(sender)
    }

    /// One of the HTTP/2 connections that are open: one that takes another request, or when there may be no more of
    /// them, the one with the fewest.
    fn share<'a>(&self, lane: &'a Lane) -> Share<'a> {
        let mut shared = lane.shared.borrow_mut();
        let now = &mut Context::from_waker(Waker::noop());
        shared.retain_mut(|sender| !matches!(sender.requests.poll_ready(now), Poll::Ready(Err(_))));
        let is_full = shared.len() + lane.opening.get() >= MOST_SHARED;
        let free = shared.iter().find(|sender| sender.is_free());
        let fewest = || shared.iter().min_by_key(|sender| Rc::strong_count(&sender.in_use));
        match free.or_else(|| is_full.then(fewest).flatten()) {
            Some(sender) => {
                self.counters.upstream_reused();
                Share::Has(Sender { is_reused: true, ..sender.clone() })
            }
            None if is_full => Share::MustWait,
            None => Share::MayOpen(Opening::begin(lane)),
        }
    }

    /// Keeps a connection whose answer is complete.
    pub fn put(&self, lane: &Lane, stream: Stream) {
        let mut kept = lane.kept.borrow_mut();
        if self.kept.get() < MOST_KEPT && kept.len() < KEPT_BUSY {
            kept.push(Kept { stream, since: self.ticks.now() });
            self.kept.set(self.kept.get() + 1);
        }
    }

    /// Closes what was idle for too long and forgets backends that nobody asks for.
    pub fn sweep(&self) {
        let now = self.ticks.now();
        self.lanes.borrow_mut().retain(|_, lane| {
            let mut kept = lane.kept.borrow_mut();
            let before = kept.len();
            // The longest unused ones are at the front.
            let mut surplus = kept.len().saturating_sub(KEPT_QUIET);
            kept.retain_mut(|kept| {
                let age = now.wrapping_sub(kept.since);
                let is_surplus = surplus > 0 && age > FRESH;
                surplus -= usize::from(is_surplus);
                age <= self.idle && !is_surplus && !kept.stream.is_stale()
            });
            self.kept.set(self.kept.get() - (before - kept.len()));
            if kept.capacity() > 4 * kept.len().max(KEPT_QUIET) {
                kept.shrink_to(KEPT_QUIET);
            }
            if now.wrapping_sub(lane.used.get()) > self.idle {
                lane.shared.borrow_mut().clear();
            }
            !kept.is_empty() || now.wrapping_sub(lane.used.get()) <= self.idle || Rc::strong_count(lane) > 1
        });
    }

    /// Whether the backend is spoken to in HTTP/2.
    pub fn is_http2(lane: &Lane) -> bool {
        lane.key.protocol == BackendProtocol::H2c
    }

    /// Whether no connection is kept.
    pub fn is_empty(&self) -> bool {
        self.kept.get() == 0
    }
}

impl Sender {
    /// Whether the backend takes one more request on the connection.
    fn is_free(&self) -> bool {
        Rc::strong_count(&self.in_use) <= self.requests.current_max_send_streams()
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.total.set(self.total.get() - self.kept.borrow().len());
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

/// How long what was sent on a connection may stay unacknowledged. A machine on the same network answers the kernel
/// in a millisecond however long its app takes, so this is as the time for a connection.
pub fn unacknowledged(lane: &Lane, connect: Duration) -> Duration {
    if Pool::is_http2(lane) { UNACKNOWLEDGED_SHARED } else { connect.max(UNACKNOWLEDGED) }
}

/// Whether the kernel says that there is nobody at the address any more.
pub fn is_out_of_reach(error: &io::Error) -> bool {
    use io::ErrorKind::{HostUnreachable, NetworkUnreachable, TimedOut};
    matches!(error.kind(), TimedOut | HostUnreachable | NetworkUnreachable)
}

fn why_not(error: &io::Error) -> Reason {
    if is_out_of_reach(error) { Reason::BackendTimedOut } else { Reason::BackendRefused }
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
