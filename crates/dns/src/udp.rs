//! The UDP data path: a thread that drains the socket, answers in place and sends; what has to wait goes to a task of the
//! runtime.
//!
//! It is a thread and no task because a socket that a runtime watches costs its kernel a tenth of each query: every
//! datagram that comes or leaves is told to whoever watches, also while he is awake.

use std::io::{self, PipeReader};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::answer::{Asker, Transport};
use crate::datagrams::{Received, Replies, Sent};
use crate::front::Front;
use crate::query::DropReason;
use crate::server::{DnsServer, Next, Pending, stopped};
use crate::stats::Over;

/// Pause after an error of the socket, so that a dead link does not burn the thread.
const AFTER_ERROR: Duration = Duration::from_millis(20);
/// So many queries that come together are a crowd.
const CROWD: usize = 24;
/// Pause after a crowd: the next ones come together too, and each costs less.
const AFTER_CROWD: Duration = Duration::from_micros(50);
/// Batches until it is looked whether to stop.
const ROUNDS: usize = 64;
/// How long a reply may wait for room in the kernel, and how often it is tried.
const FOR_ROOM: Duration = Duration::from_millis(5);
const TRIES: u32 = 20;

pub(crate) async fn serve(server: &DnsServer, socket: UdpSocket, mut stop: watch::Receiver<bool>) {
    let socket = Arc::new(socket);
    // Bounded by the questions that one server may have under way.
    let (queue, mut asked) = mpsc::unbounded_channel();
    let Ok(mut going) = start(server, &socket, queue).map(Some) else {
        server.stats.socket_error();
        return;
    };
    let mut waiting = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            () = stopped(&mut stop), if going.is_some() => drop(going.take()),
            next = asked.recv() => {
                // Nothing more is read, perhaps because another process reads now; what was read is answered.
                let Some((pending, peer)) = next else { break };
                let (server, socket) = (server.clone(), socket.clone());
                waiting.spawn(async move {
                    let reply = server.forward(pending).await;
                    send_alone(&server, &socket, &reply, peer).await;
                });
            }
            Some(_) = waiting.join_next() => {}
        }
    }
    while waiting.join_next().await.is_some() {}
}

/// Starts the thread; it ends when the pipe does that is returned.
fn start(
    server: &DnsServer,
    socket: &Arc<UdpSocket>,
    queue: mpsc::UnboundedSender<(Box<Pending>, SocketAddr)>,
) -> io::Result<io::PipeWriter> {
    let (going, go) = io::pipe()?;
    let (server, socket) = (server.clone(), socket.clone());
    let runtime = Handle::current();
    let body = move || {
        // What is asked again in the background is asked there.
        let _inside = runtime.enter();
        run(&server, &socket, &going, &queue);
    };
    thread::Builder::new().name("dns".to_owned()).spawn(body)?;
    Ok(go)
}

fn run(
    server: &DnsServer,
    socket: &UdpSocket,
    going: &PipeReader,
    queue: &mpsc::UnboundedSender<(Box<Pending>, SocketAddr)>,
) {
    let (mut received, mut replies) = (Received::new(), Replies::new());
    let mut front = Front::new();
    loop {
        let mut watched =
            [PollFd::new(going.as_fd(), PollFlags::POLLIN), PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
        // An error is an interruption, or tells itself below.
        let _ = poll(&mut watched, PollTimeout::NONE);
        if watched[0].any().unwrap_or(true) {
            return;
        }
        for _ in 0..ROUNDS {
            match received.receive(socket) {
                Ok(count) => {
                    answer(server, queue, &received, &mut front, &mut replies);
                    send(server, socket, &mut replies);
                    if count < CROWD {
                        break;
                    }
                    thread::sleep(AFTER_CROWD);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    server.stats.socket_error();
                    thread::sleep(AFTER_ERROR);
                    break;
                }
            }
        }
    }
}

/// Answers what came together, from the world that is published when all of it is here: who was told of a change before
/// asking sees it.
fn answer(
    server: &DnsServer,
    queue: &mpsc::UnboundedSender<(Box<Pending>, SocketAddr)>,
    received: &Received,
    front: &mut Front,
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
        match server.handle(&snapshot, Over::Udp, asker, message, Some(front), replies.next()) {
            Next::Nothing => {}
            Next::Reply => replies.to(to),
            // Whoever would ask is gone only when the whole runtime is.
            Next::Wait(pending) => drop(queue.send((pending, peer))),
        }
    }
}

fn send(server: &DnsServer, socket: &UdpSocket, replies: &mut Replies) {
    loop {
        let (refused, is_over) = match replies.send(socket) {
            Sent::All { refused } => (refused, true),
            Sent::Blocked { refused } => {
                let mut room = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
                (refused, poll(&mut room, PollTimeout::NONE).is_err())
            }
        };
        (0..refused).for_each(|_| server.stats.dropped(DropReason::SendFailed));
        if is_over {
            return;
        }
    }
}

/// Sends a reply that had to wait.
async fn send_alone(server: &DnsServer, socket: &UdpSocket, reply: &[u8], peer: SocketAddr) {
    let mut tries = 0;
    let sent = loop {
        match socket.send_to(reply, peer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && tries < TRIES => {
                tries += 1;
                tokio::time::sleep(FOR_ROOM).await;
            }
            sent => break sent,
        }
    };
    server.sent(sent);
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
