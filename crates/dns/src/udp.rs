//! The UDP data path: drain, answer in place, send; what has to wait goes to a task of its own.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::answer::{Asker, Transport};
use crate::datagrams::{MOST, Received, Replies, Sent};
use crate::query::DropReason;
use crate::server::{DnsServer, Next, stopped};
use crate::stats::Over;

/// Pause after an error of the socket, so that a dead link does not burn the thread.
const AFTER_ERROR: Duration = Duration::from_millis(20);

pub(crate) async fn serve(server: &DnsServer, socket: UdpSocket, mut stop: watch::Receiver<bool>) {
    let socket = Arc::new(socket);
    let mut waiting = JoinSet::new();
    let (mut received, mut replies) = (Received::new(), Replies::new());
    loop {
        tokio::select! {
            biased;
            () = stopped(&mut stop) => break,
            ready = socket.readable() => if ready.is_err() {
                server.stats.socket_error();
                tokio::time::sleep(AFTER_ERROR).await;
            },
        }
        match received.receive(&socket) {
            Ok(count) => {
                answer(server, &socket, &mut waiting, &received, &mut replies);
                send(server, &socket, &mut replies).await;
                if count == MOST {
                    // There may be more, but it is the turn of the thread's other tasks.
                    tokio::task::yield_now().await;
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => {
                server.stats.socket_error();
                tokio::time::sleep(AFTER_ERROR).await;
            }
        }
        while waiting.try_join_next().is_some() {}
    }
    // Nothing more is read, perhaps because another process reads now; what was read is answered.
    while waiting.join_next().await.is_some() {}
}

/// Answers what came together, from the world that is published when all of it is here: who was told of a change before
/// asking sees it.
fn answer(
    server: &DnsServer,
    socket: &Arc<UdpSocket>,
    waiting: &mut JoinSet<()>,
    received: &Received,
    replies: &mut Replies,
) {
    // Nothing is left of the last ones, unless the socket failed.
    replies.clear();
    let snapshot = server.snapshot();
    for (message, source) in received.iter() {
        let Some((peer, to)) = source.filter(|(peer, _)| is_safe(*peer)) else {
            server.stats.query(Over::Udp);
            server.stats.dropped(DropReason::UnsafeSource);
            continue;
        };
        let asker = Asker { client: peer.ip(), transport: Transport::Udp };
        match server.handle(&snapshot, Over::Udp, asker, message, replies.next()) {
            Next::Nothing => {}
            Next::Reply => replies.to(to),
            Next::Wait(pending) => {
                let (server, socket) = (server.clone(), socket.clone());
                waiting.spawn(async move {
                    let reply = server.forward(pending).await;
                    server.sent(socket.send_to(&reply, peer).await);
                });
            }
        }
    }
}

async fn send(server: &DnsServer, socket: &UdpSocket, replies: &mut Replies) {
    loop {
        let (refused, is_over) = match replies.send(socket) {
            Sent::All { refused } => (refused, true),
            Sent::Blocked { refused } => (refused, socket.writable().await.is_err()),
        };
        (0..refused).for_each(|_| server.stats.dropped(DropReason::SendFailed));
        if is_over {
            return;
        }
    }
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
