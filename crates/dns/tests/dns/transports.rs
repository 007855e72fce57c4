//! Real sockets: UDP, TCP, and the stock client.

use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::RecordType;
use proximity_dns::{DnsServer, DnsStats, listen_tcp, listen_udp};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::fixture::*;

pub struct Running {
    pub addr: SocketAddr,
    pub stats: Arc<DnsStats>,
    stop: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
}

/// Serves one address over UDP and TCP.
pub async fn run((server, stats): (DnsServer, Arc<DnsStats>)) -> Running {
    let (udp, tcp) = loop {
        let udp = listen_udp("127.0.0.1:0".parse().unwrap()).unwrap();
        if let Ok(tcp) = listen_tcp(udp.local_addr().unwrap()) {
            break (udp, tcp);
        }
    };
    let addr = udp.local_addr().unwrap();
    let (stop, stopped) = watch::channel(false);
    let (udp_server, tcp_server, tcp_stopped) = (server.clone(), server, stopped.clone());
    // On a thread of its own, as on a data thread: its buffers do not leave it.
    let runtime = tokio::runtime::Handle::current();
    let tasks = vec![
        tokio::task::spawn_blocking(move || runtime.block_on(udp_server.serve_udp(udp, stopped))),
        tokio::spawn(async move { tcp_server.serve_tcp(tcp, tcp_stopped).await }),
    ];
    Running { addr, stats, stop, tasks }
}

pub async fn over_udp(addr: SocketAddr, wire: &[u8]) -> Message {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(addr).await.unwrap();
    socket.send(wire).await.unwrap();
    let mut reply = [0; 4096];
    let length =
        tokio::time::timeout(Duration::from_secs(10), socket.recv(&mut reply)).await.unwrap().unwrap();
    Message::from_vec(&reply[..length]).unwrap()
}

pub async fn write_framed(stream: &mut TcpStream, message: &Message) {
    let wire = message.to_vec().unwrap();
    stream.write_all(&[&(wire.len() as u16).to_be_bytes()[..], &wire].concat()).await.unwrap();
}

pub async fn read_framed(stream: &mut TcpStream) -> Message {
    let length = stream.read_u16().await.unwrap();
    let mut wire = vec![0; usize::from(length)];
    stream.read_exact(&mut wire).await.unwrap();
    Message::from_vec(&wire).unwrap()
}

fn slow_internet(query: &Message, mut reply: Message, _: bool) -> Option<Message> {
    reply.add_answer(a(&query.queries[0].name().to_string(), 40, [203, 0, 113, 1]));
    Some(reply)
}

#[tokio::test]
async fn udp_answers_our_names_and_others() {
    let upstream = ScriptedUpstream::start(slow_internet).await;
    let running = run(server(&[upstream.addr])).await;
    for (name, address) in [("nginx.prox.local.", "10.20.0.101"), ("example.com.", "203.0.113.1")] {
        let reply = over_udp(running.addr, &query(name, RecordType::A).to_vec().unwrap()).await;
        assert_eq!(reply.answers[0].data.to_string(), address);
    }
    let counted = running.stats.snapshot();
    assert_eq!((counted.udp_queries, counted.forwarded), (2, 1));
}

/// A question that was read is answered although the server stops, and one that comes later waits in the socket
/// for whoever else has it.
#[tokio::test]
async fn a_stop_leaves_no_question_behind() {
    let upstream = ScriptedUpstream::start(|query, reply, over_tcp| {
        // Truncated: the answer takes two more round trips.
        if over_tcp {
            slow_internet(query, reply, true)
        } else {
            let mut reply = reply;
            reply.metadata.truncation = true;
            Some(reply)
        }
    })
    .await;
    let (server, stats) = server(&[upstream.addr]);
    let own = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    own.set_nonblocking(true).unwrap();
    let (addr, socket) = (own.local_addr().unwrap(), own.try_clone().unwrap());
    let (stop, stopped) = watch::channel(false);
    let runtime = tokio::runtime::Handle::current();
    let serving = tokio::task::spawn_blocking(move || runtime.block_on(server.serve_udp(socket, stopped)));
    let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    client.connect(addr).await.unwrap();
    client.send(&query("example.com.", RecordType::A).to_vec().unwrap()).await.unwrap();
    while stats.snapshot().udp_queries == 0 {
        tokio::task::yield_now().await;
    }
    stop.send_replace(true);
    let mut reply = [0; 512];
    let length =
        tokio::time::timeout(Duration::from_secs(10), client.recv(&mut reply)).await.unwrap().unwrap();
    assert_eq!(Message::from_vec(&reply[..length]).unwrap().answers.len(), 1);
    serving.await.unwrap();
    client.send(b"for somebody else").await.unwrap();
    assert_eq!(UdpSocket::from_std(own).unwrap().recv(&mut reply).await.unwrap(), 17);
}

/// RFC 2181 §9, RFC 6891 §7: a long answer of others is truncated to what the client takes.
#[tokio::test]
async fn long_answers_of_others_are_truncated_over_udp() {
    let upstream = ScriptedUpstream::start(|query, mut reply, _| {
        for last in 0..60 {
            reply.add_answer(a(&query.queries[0].name().to_string(), 40, [203, 0, 113, last]));
        }
        Some(reply)
    })
    .await;
    let running = run(server(&[upstream.addr])).await;
    let asked = query("many.example.com.", RecordType::A);
    let reply = over_udp(running.addr, &asked.to_vec().unwrap()).await;
    assert!(reply.metadata.truncation && reply.answers.is_empty() && reply.queries.len() == 1, "{reply}");
    let reply = over_udp(running.addr, &with_edns(asked.clone(), 1232).to_vec().unwrap()).await;
    assert!(!reply.metadata.truncation && reply.answers.len() == 60 && reply.edns.is_some());
    let mut stream = TcpStream::connect(running.addr).await.unwrap();
    write_framed(&mut stream, &asked).await;
    assert_eq!(read_framed(&mut stream).await.answers.len(), 60);
}

#[tokio::test]
async fn bursts_are_answered_in_full() {
    let running = run(server(&[])).await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(running.addr).await.unwrap();
    for id in 0..200u16 {
        let mut asked = query("nginx.prox.local.", RecordType::A);
        asked.metadata.id = id;
        socket.send(&asked.to_vec().unwrap()).await.unwrap();
    }
    let mut seen = std::collections::BTreeSet::new();
    let mut reply = [0; 512];
    while seen.len() < 200 {
        let length =
            tokio::time::timeout(Duration::from_secs(10), socket.recv(&mut reply)).await.unwrap().unwrap();
        seen.insert(Message::from_vec(&reply[..length]).unwrap().metadata.id);
    }
    assert_eq!(running.stats.snapshot().udp_queries, 200);
}

/// Responses and scraps get no answer, and the server goes on.
#[tokio::test]
async fn what_is_dropped_is_counted() {
    let running = run(server(&[])).await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(running.addr).await.unwrap();
    let mut response = query("nginx.prox.local.", RecordType::A).to_vec().unwrap();
    response[2] |= 0x80;
    socket.send(&response).await.unwrap();
    socket.send(b"scrap").await.unwrap();
    socket.send(b"").await.unwrap();
    let mut asked = query("nginx.prox.local.", RecordType::A);
    asked.metadata.id = 9;
    socket.send(&asked.to_vec().unwrap()).await.unwrap();
    let mut reply = [0; 512];
    let length = socket.recv(&mut reply).await.unwrap();
    assert_eq!(Message::from_vec(&reply[..length]).unwrap().metadata.id, 9);
    let drops = running.stats.snapshot().drops;
    assert!(drops.contains(&("response", 1)) && drops.contains(&("too_short", 2)), "{drops:?}");
}

/// RFC 7766 §6.2.1.1 and §7: "servers [...] SHOULD process pipelined queries", "it MUST be possible for responses
/// to be sent out of order": what is ours does not wait for what is not.
#[tokio::test]
async fn tcp_queries_are_pipelined() {
    let silent = ScriptedUpstream::start(|_, _, _| None).await;
    let running = run(server(&[silent.addr])).await;
    let mut stream = TcpStream::connect(running.addr).await.unwrap();
    let mut foreign = query("example.com.", RecordType::A);
    foreign.metadata.id = 1;
    write_framed(&mut stream, &foreign).await;
    for id in 2..50 {
        let mut asked = query("nginx.prox.local.", RecordType::A);
        asked.metadata.id = id;
        write_framed(&mut stream, &asked).await;
    }
    for id in 2..50 {
        assert_eq!(read_framed(&mut stream).await.metadata.id, id);
    }
    let last = read_framed(&mut stream).await;
    assert_eq!((last.metadata.id, last.metadata.response_code), (1, ResponseCode::ServFail));
}

/// RFC 7766 §6.2.4 leaves closing to the client; answers to what it asked before still reach it.
#[tokio::test]
async fn a_half_closed_connection_gets_its_answers() {
    let upstream = ScriptedUpstream::start(slow_internet).await;
    let running = run(server(&[upstream.addr])).await;
    let mut stream = TcpStream::connect(running.addr).await.unwrap();
    write_framed(&mut stream, &query("example.com.", RecordType::A)).await;
    stream.shutdown().await.unwrap();
    assert_eq!(read_framed(&mut stream).await.answers.len(), 1);
    assert!(stream.read_u8().await.is_err(), "the connection ends");
}

/// One client cannot take all connections.
#[tokio::test]
async fn connections_of_one_client_are_bounded() {
    let running = run(server(&[])).await;
    let mut streams = Vec::new();
    for _ in 0..40 {
        let mut stream = TcpStream::connect(running.addr).await.unwrap();
        write_framed(&mut stream, &query("nginx.prox.local.", RecordType::A)).await;
        streams.push(stream);
    }
    let mut served = 0;
    for stream in &mut streams {
        served += usize::from(stream.read_u16().await.is_ok());
    }
    assert_eq!(served, 32);
    assert_eq!(running.stats.snapshot().tcp_refused, 8);
    // Whoever leaves makes room.
    streams.clear();
    let again = tokio::time::timeout(Duration::from_secs(10), async {
        loop {
            let mut stream = TcpStream::connect(running.addr).await.unwrap();
            write_framed(&mut stream, &query("nginx.prox.local.", RecordType::A)).await;
            if stream.read_u16().await.is_ok() {
                return;
            }
        }
    });
    again.await.unwrap();
}

#[tokio::test]
async fn stopping_ends_both_servers() {
    let running = run(server(&[])).await;
    let _idle = TcpStream::connect(running.addr).await.unwrap();
    running.stop.send(true).unwrap();
    for task in running.tasks {
        tokio::time::timeout(Duration::from_secs(10), task).await.unwrap().unwrap();
    }
}

/// Several data threads share one address.
#[tokio::test]
async fn an_address_can_be_bound_by_every_thread() {
    let first = listen_udp("127.0.0.1:0".parse().unwrap()).unwrap();
    listen_udp(first.local_addr().unwrap()).unwrap();
    let first = listen_tcp("127.0.0.1:0".parse().unwrap()).unwrap();
    listen_tcp(first.local_addr().unwrap()).unwrap();
}

pub async fn dig(running: &Running, arguments: &[&str]) -> String {
    let port = running.addr.port().to_string();
    let mut command = std::process::Command::new("dig");
    command.args(["@127.0.0.1", "-p", &port, "+tries=1", "+time=5"]).args(arguments).stdin(Stdio::null());
    let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap();
    let output = output.expect("dig of the package bind9-dnsutils");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The stock client, with its defaults: EDNS with a cookie, AD set.
#[tokio::test]
async fn dig_is_content() {
    let (server, stats) = server(&[]);
    let running = run((server, stats)).await;
    for transport in ["+notcp", "+tcp"] {
        let text = dig(&running, &["nginx.prox.local", "A", transport]).await;
        assert!(text.contains("status: NOERROR") && text.contains("flags: qr aa rd ra;"), "{text}");
        assert!(text.contains("10.20.0.101") && text.contains("EDNS: version: 0"), "{text}");
        // dig warns of every name in `.local`, and of what it cannot read.
        let warnings = text.lines().filter(|line| line.to_ascii_lowercase().contains("warning"));
        assert!(warnings.clone().all(|line| line.contains(".local is reserved")), "{text}");
        let text = dig(&running, &["-x", "10.20.0.101", "+short", transport]).await;
        assert_eq!(text, "nginx.prox.local.\n");
        let text = dig(&running, &["nobody.prox.local", transport]).await;
        assert!(text.contains("status: NXDOMAIN") && text.contains("hostmaster.prox.local."), "{text}");
        let text = dig(&running, &["prox.local", "CAA", "+short", transport]).await;
        assert_eq!(text, "0 issue \"letsencrypt.org\"\n");
        // Over UDP dig is told to come back, and does.
        let text = dig(&running, &["long.prox.local", "TXT", transport]).await;
        assert!(text.contains("ANSWER: 1,") && text.contains("(TCP)"), "{text}");
        let text = dig(&running, &["nginx.prox.local", "+edns=1", "+noednsnegotiation", transport]).await;
        assert!(text.contains("status: BADVERS"), "{text}");
    }
    let counted = running.stats.snapshot();
    assert_eq!((counted.udp_queries, counted.tcp_queries), (6, 7));
}
