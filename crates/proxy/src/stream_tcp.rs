use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use proximity_table::{Protocol, ResolvedForward, StreamPolicy};
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::backend_slots::InFlight;
use crate::buffer::Buffer;
use crate::peers::{Patience, watch_backend};
use crate::proxy_protocol::{Addresses, LONGEST, ProxyHeader, write_proxy_header};
use crate::stream_pair::Pair;
use crate::stream_stats::StreamSlot;
use crate::stream_thread::{Open, Worker};
use crate::{Reason, StreamReason};

/// How long a PROXY protocol header may take: its sender has it ready when it connects, so this is for one lost
/// segment to come again (specification §2: at least 3 s).
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a target may take to accept, as with a vhost.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// A client's connection to a forwarded port.
pub struct Connection {
    pub forward: Arc<ResolvedForward>,
    pub policy: Arc<StreamPolicy>,
    pub client: TcpStream,
    pub peer: SocketAddr,
    pub slot: StreamSlot,
}

/// Carries a connection to its end, and counts why it had to end early.
pub async fn carry(worker: Rc<Worker>, open: Rc<Open>, connection: Connection) {
    let mut is_joined = false;
    let carried = tokio::select! {
        biased;
        reason = open.told() => Err(reason),
        carried = connection.carry(&worker, &open, &mut is_joined) => carried,
    };
    if let Err(reason) = carried {
        worker.stopped(connection.slot.gauge(), reason);
        if !is_joined || reason == StreamReason::TargetLeft {
            refuse(&connection.client);
        }
    }
}

/// Has the connection closed by a reset, so that the client does not take it for one that ended well.
pub fn refuse(client: &TcpStream) {
    let _ = SockRef::from(client).set_linger(Some(Duration::ZERO));
}

impl Connection {
    async fn carry(&self, worker: &Worker, open: &Open, is_joined: &mut bool) -> Result<(), StreamReason> {
        // A failure here costs latency only.
        let _ = self.client.set_nodelay(true);
        let peer = self.peer.ip().to_canonical();
        let local = self.client.local_addr().map_err(|_| StreamReason::ClientGone)?;
        let mut addresses = Some(Addresses {
            source: SocketAddr::new(peer, self.peer.port()),
            destination: SocketAddr::new(local.ip().to_canonical(), local.port()),
        });
        let mut first = None;
        if self.policy.accept_proxy_protocol.iter().any(|network| network.contains(&peer)) {
            let mut buffer = worker.buffers.small();
            let header = timeout(HEADER_TIMEOUT, read_header(&self.client, &mut buffer)).await;
            let header = header.map_err(|_| StreamReason::HeaderTimeout)??;
            buffer.consume(header.length);
            addresses = header.addresses;
            first = Some(buffer);
        }
        let (target, _busy) = self.connect(worker, open).await?;
        *is_joined = true;
        if let Some(version) = self.policy.send_proxy_protocol {
            let mut header = Vec::with_capacity(LONGEST);
            write_proxy_header(version, &mut header, addresses);
            let mut buffer = worker.buffers.small();
            buffer.append(&header);
            if let Some(rest) = first {
                // What came with a header is no longer than the longest header.
                buffer.append(rest.data());
            }
            first = Some(buffer);
        }
        let gauge = self.slot.gauge();
        let moved = |received, sent| {
            open.used(worker.now_ms());
            gauge.moved(received, sent);
        };
        Pair::new(&self.client, &target, first, &worker.buffers).run(moved).await
    }

    /// Connects to the first target that takes the connection. Nothing was sent yet, so any may be tried.
    async fn connect(&self, worker: &Worker, open: &Open) -> Result<(TcpStream, InFlight), StreamReason> {
        let turn = self.slot.gauge().turn();
        let mut attempts = worker.attempts(&self.forward, &self.policy, turn);
        let mut reason = StreamReason::BackendRefused;
        if attempts.is_empty() {
            return Err(StreamReason::Stopped);
        }
        while let Some(attempt) = attempts.next(worker.now_ms()) {
            // From here on its lease may not end.
            open.goes_to(attempt.key);
            if !worker.leads_to(open) {
                return Err(StreamReason::TargetLeft);
            }
            if worker.is_loop(Protocol::Tcp, attempt.key.addr) {
                reason = StreamReason::Loop;
                attempts.failed(&attempt, Reason::BackendRefused, worker.now_ms());
                continue;
            }
            let connected = timeout(CONNECT_TIMEOUT, TcpStream::connect(attempt.key.addr)).await;
            let met = match connected {
                Ok(Ok(target)) => {
                    attempts.succeeded(&attempt, worker.now_ms());
                    let _ = target.set_nodelay(true);
                    let _ = watch_backend(&target, Patience::USUAL, None);
                    return Ok((target, attempt.slot));
                }
                Ok(Err(error)) if error.kind() != io::ErrorKind::TimedOut => {
                    reason = StreamReason::BackendRefused;
                    Reason::BackendRefused
                }
                _ => {
                    reason = StreamReason::BackendTimedOut;
                    Reason::BackendTimedOut
                }
            };
            attempts.failed(&attempt, met, worker.now_ms());
        }
        Err(reason)
    }
}

/// Reads until the header is whole; what came with it stays behind it.
async fn read_header(client: &TcpStream, buffer: &mut Buffer) -> Result<ProxyHeader, StreamReason> {
    loop {
        if let Some(header) = ProxyHeader::read(buffer.data()).map_err(|_| StreamReason::ProxyHeader)? {
            return Ok(header);
        }
        client.readable().await.map_err(|_| StreamReason::ClientGone)?;
        let room = LONGEST.saturating_sub(buffer.data().len()).max(1);
        let space = buffer.space();
        let room = room.min(space.len());
        match client.try_read(&mut space[..room]) {
            Ok(0) => return Err(StreamReason::ClientGone),
            Ok(octets) => buffer.filled(octets),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return Err(StreamReason::ClientGone),
        }
    }
}
