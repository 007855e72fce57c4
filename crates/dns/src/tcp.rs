//! DNS over TCP (RFC 7766). Framing and idle timeout are hickory's; the answers are the core's.
//!
//! hickory-server's own accept loop knows no bound on connections, and answers what it cannot parse by itself,
//! past our counters; so the loop is ours.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures_util::StreamExt;
use hickory_proto::op::SerialMessage;
use hickory_server::net::runtime::iocompat::AsyncIoTokioAsStd;
use hickory_server::net::tcp::TcpStream as Framed;
use hickory_server::net::xfer::DnsStreamHandle;
use hickory_server::server::TimeoutStream;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::answer::{Asker, Transport};
use crate::server::{DnsServer, Next, stopped};
use crate::stats::Over;

/// Connections at the same time, for each listener.
const MAX_CONNECTIONS: usize = 256;
/// Of those, for one client address: nobody keeps the others out.
const MAX_PER_CLIENT: usize = 32;
/// A connection on which no whole message came for so long is closed (RFC 7766 §6.2.3).
pub(crate) const IDLE: Duration = Duration::from_secs(10);
/// How long connections go on when no more are taken: as long as a stub resolver waits for an answer.
const LINGER: Duration = Duration::from_secs(5);
/// Questions of one connection that wait for upstreams; further ones are not read until one is answered.
const MAX_WAITING: usize = 16;
/// Replies that wait to be written: all that wait for upstreams, and the one just made.
const REPLY_QUEUE: usize = 2 * MAX_WAITING;
/// Pause after accepting failed, which happens when the process is out of descriptors.
const AFTER_ERROR: Duration = Duration::from_millis(50);

pub(crate) async fn serve(server: &DnsServer, listener: TcpListener, mut stop: watch::Receiver<bool>) {
    let mut connections: JoinSet<IpAddr> = JoinSet::new();
    let mut clients: HashMap<IpAddr, usize> = HashMap::new();
    loop {
        let (stream, peer) = tokio::select! {
            () = stopped(&mut stop) => break,
            Some(ended) = connections.join_next() => {
                if let Ok(client) = ended {
                    leave(&mut clients, client);
                }
                continue;
            }
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(_) => {
                    server.stats.socket_error();
                    tokio::time::sleep(AFTER_ERROR).await;
                    continue;
                }
            },
        };
        let client = peer.ip();
        let of_client = clients.get(&client).copied().unwrap_or(0);
        if connections.len() >= MAX_CONNECTIONS || of_client >= MAX_PER_CLIENT {
            server.stats.tcp_refused();
            continue;
        }
        server.stats.tcp_connection();
        clients.insert(client, of_client + 1);
        let server = server.clone();
        connections.spawn(async move {
            converse(server, stream, peer).await;
            client
        });
    }
    // No connection is taken any more, but those that are open may have asked.
    drop(listener);
    let _ = tokio::time::timeout(LINGER, async { while connections.join_next().await.is_some() {} }).await;
}

/// Answers the messages of one connection, in whatever order the answers are known (RFC 7766 §7).
async fn converse(server: DnsServer, stream: TcpStream, peer: SocketAddr) {
    // Replies are single writes; waiting to fill segments only delays them.
    let _ = stream.set_nodelay(true);
    let (framed, replies) =
        Framed::from_stream_with_buffer_size(AsyncIoTokioAsStd(stream), peer, REPLY_QUEUE);
    let mut messages = TimeoutStream::new(framed, IDLE);
    let mut waiting: JoinSet<bool> = JoinSet::new();
    let asker = Asker { client: peer.ip(), transport: Transport::Tcp };
    while let Some(Ok(message)) = messages.next().await {
        while waiting.try_join_next().is_some() {}
        let mut out = Vec::new();
        match server.handle(&server.snapshot(), Over::Tcp, asker, message.bytes(), None, &mut out) {
            Next::Nothing => {}
            Next::Reply => {
                if !send(&server, replies.clone(), out, peer) {
                    return;
                }
            }
            Next::Wait(pending) => {
                while waiting.len() >= MAX_WAITING {
                    waiting.join_next().await;
                }
                let (server, replies) = (server.clone(), replies.clone());
                waiting.spawn(async move {
                    let reply = server.forward(pending).await;
                    send(&server, replies, reply, peer)
                });
            }
        }
    }
    // A client may close its side behind its last question and still wants the answers.
    while waiting.join_next().await.is_some() {}
    let _ = messages.next().await;
}

/// Queues a reply; false when the client takes none any more.
fn send(server: &DnsServer, mut replies: impl DnsStreamHandle, reply: Vec<u8>, peer: SocketAddr) -> bool {
    let result = replies.send(SerialMessage::new(reply, peer));
    let taken = result.is_ok();
    server.sent(if taken { Ok(0) } else { Err(std::io::ErrorKind::BrokenPipe.into()) });
    taken
}

fn leave(clients: &mut HashMap<IpAddr, usize>, client: IpAddr) {
    if let Some(count) = clients.get_mut(&client) {
        *count -= 1;
        if *count == 0 {
            clients.remove(&client);
        }
    }
}
