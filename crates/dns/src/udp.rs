//! The UDP data path: drain, answer in place, send; what has to wait goes to a task of its own.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::answer::{Asker, Transport};
use crate::query::DropReason;
use crate::server::{DnsServer, Next, stopped};
use crate::stats::Over;

/// Messages answered before other tasks of the thread get their turn.
const BATCH: usize = 64;
/// No query is longer; what is, is cut and then malformed.
const LONGEST_QUERY: usize = 4096;
/// Pause after an error of the socket, so that a dead link does not burn the thread.
const AFTER_ERROR: Duration = Duration::from_millis(20);

/// How a batch ended.
enum Batch {
    /// No more messages wait.
    Drained,
    /// There may be more.
    Full,
    /// The kernel's send buffer is full: the reply in the buffer goes out first.
    Blocked(SocketAddr),
    Failed,
}

pub(crate) async fn serve(server: &DnsServer, socket: UdpSocket, mut stop: watch::Receiver<bool>) {
    let socket = Arc::new(socket);
    let mut waiting = JoinSet::new();
    let mut message = vec![0; LONGEST_QUERY];
    let mut out = Vec::with_capacity(2048);
    loop {
        tokio::select! {
            biased;
            () = stopped(&mut stop) => break,
            ready = socket.readable() => if ready.is_err() {
                server.stats.socket_error();
                tokio::time::sleep(AFTER_ERROR).await;
            },
        }
        match batch(server, &socket, &mut waiting, &mut message, &mut out) {
            Batch::Drained => {}
            Batch::Full => tokio::task::yield_now().await,
            Batch::Blocked(peer) => server.sent(socket.send_to(&out, peer).await),
            Batch::Failed => {
                server.stats.socket_error();
                tokio::time::sleep(AFTER_ERROR).await;
            }
        }
        while waiting.try_join_next().is_some() {}
    }
    // Nothing more is read, perhaps because another process reads now; what was read is answered.
    while waiting.join_next().await.is_some() {}
}

/// Answers what waits, each from the world of its arrival: who was told of a change before asking sees it.
fn batch(
    server: &DnsServer,
    socket: &Arc<UdpSocket>,
    waiting: &mut JoinSet<()>,
    message: &mut [u8],
    out: &mut Vec<u8>,
) -> Batch {
    let mut snapshot = server.snapshot();
    for _ in 0..BATCH {
        let (length, peer) = match socket.try_recv_from(message) {
            Ok(received) => received,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Batch::Drained,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => return Batch::Failed,
        };
        server.renew(&mut snapshot);
        if !is_safe(peer) {
            server.stats.query(Over::Udp);
            server.stats.dropped(DropReason::UnsafeSource);
            continue;
        }
        let asker = Asker { client: peer.ip(), transport: Transport::Udp };
        match server.handle(&snapshot, Over::Udp, asker, &message[..length], out) {
            Next::Nothing => {}
            Next::Reply => match socket.try_send_to(out, peer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Batch::Blocked(peer),
                result => server.sent(result),
            },
            Next::Wait(pending) => {
                let (server, socket) = (server.clone(), socket.clone());
                waiting.spawn(async move {
                    let reply = server.forward(pending).await;
                    server.sent(socket.send_to(&reply, peer).await);
                });
            }
        }
    }
    Batch::Full
}

/// Whether a reply to this source goes to one host and starts no loop.
fn is_safe(peer: SocketAddr) -> bool {
    let host = match peer.ip() {
        IpAddr::V4(ip) => !(ip.is_unspecified() || ip.is_broadcast() || ip.is_multicast()),
        IpAddr::V6(ip) => !(ip.is_unspecified() || ip.is_multicast()),
    };
    host && peer.port() != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_go_to_single_hosts_only() {
        for (peer, safe) in [
            ("10.20.0.5:4000", true),
            ("10.20.0.5:0", false),
            ("0.0.0.0:4000", false),
            ("255.255.255.255:4000", false),
            ("224.0.0.251:5353", false),
            ("[::1]:4000", true),
            ("[ff02::fb]:5353", false),
        ] {
            assert_eq!(is_safe(peer.parse().unwrap()), safe, "{peer}");
        }
    }
}
