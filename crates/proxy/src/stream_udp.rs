use std::cell::RefCell;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket as StdUdpSocket};
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::sync::Arc;

use nix::libc::{in_addr, in_pktinfo};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn, recv, recvmsg, sendmsg, setsockopt, sockopt,
};
use proximity_table::{BackendKey, Protocol};
use socket2::{Domain, SockRef, Socket, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::task::AbortHandle;

use crate::StreamReason;
use crate::backend_slots::InFlight;
use crate::stream_choice::leads_to;
use crate::stream_session::SessionTable;
use crate::stream_stats::{StreamGauge, StreamSlot};
use crate::stream_thread::Worker;

/// Longest datagram: what IP has room for.
const LONGEST_DATAGRAM: usize = 65_535;

/// Where a thread puts the datagram that it carries.
pub struct Scratch {
    datagram: Vec<u8>,
    control: Vec<u8>,
}

/// A forwarded UDP port on one data thread: its socket and the clients that it remembers.
pub struct UdpForward {
    port: u16,
    socket: UdpSocket,
    gauge: Arc<StreamGauge>,
    sessions: RefCell<SessionTable<Client, Session>>,
}

/// Who speaks to which of our addresses: answers must come from the address that was spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Client {
    peer: SocketAddrV4,
    local: Ipv4Addr,
}

/// A client's way to its target.
struct Session {
    key: BackendKey,
    target: Rc<UdpSocket>,
    /// Waits for answers.
    reader: AbortHandle,
    _slot: StreamSlot,
    _busy: InFlight,
}

impl Scratch {
    pub fn new() -> Scratch {
        Scratch { datagram: vec![0; LONGEST_DATAGRAM], control: nix::cmsg_space!(in_pktinfo) }
    }
}

impl UdpForward {
    /// A port on a socket that hears it ([`hear_on`]).
    pub fn new(port: u16, socket: StdUdpSocket, gauge: Arc<StreamGauge>) -> io::Result<UdpForward> {
        socket.set_nonblocking(true)?;
        Ok(UdpForward { port, socket: UdpSocket::from_std(socket)?, gauge, sessions: RefCell::default() })
    }

    /// Whether no client is remembered.
    pub fn is_idle(&self) -> bool {
        self.sessions.borrow().is_empty()
    }

    /// Carries what clients send, for ever.
    pub async fn hear(self: Rc<UdpForward>, worker: Rc<Worker>) {
        loop {
            let heard = self.socket.async_io(Interest::READABLE, || {
                let mut scratch = worker.scratch.borrow_mut();
                let (client, length) = receive(&self.socket, &mut scratch)?;
                self.take(&worker, client, &scratch.datagram[..length]);
                Ok(())
            });
            if heard.await.is_err() {
                worker.stopped(&self.gauge, StreamReason::AcceptFailed);
                worker.pause().await;
            }
        }
    }

    /// Forgets the clients whose target has left.
    pub fn follow(&self, worker: &Worker) {
        let world = worker.world();
        let forward = world.forward(Protocol::Udp, self.port);
        let left = self.sessions.borrow_mut().remove_where(|session| !leads_to(forward, &session.key));
        left.iter().for_each(|_| worker.stopped(&self.gauge, StreamReason::TargetLeft));
    }

    /// Forgets the clients that were silent for too long.
    pub fn sweep(&self, worker: &Worker) {
        let world = worker.world();
        let policy = world.forward(Protocol::Udp, self.port).and_then(|forward| forward.proxy.as_ref());
        let idle_ms = policy.map_or(0, |policy| u64::from(policy.idle_timeout) * 1000);
        let now = worker.now_ms();
        // That a client has nothing more to say is how UDP ends, so nothing is counted.
        while self.sessions.borrow_mut().expire(now, idle_ms).is_some() {}
    }

    /// Forgets everybody.
    pub fn clear(&self, worker: &Worker, reason: StreamReason) {
        for _ in self.sessions.borrow_mut().remove_where(|_| true) {
            worker.stopped(&self.gauge, reason);
        }
    }

    fn take(self: &Rc<UdpForward>, worker: &Rc<Worker>, client: Client, datagram: &[u8]) {
        let now = worker.now_ms();
        let known = self.sessions.borrow_mut().touch(&client, now).map(|session| session.target.clone());
        let target = match known.map_or_else(|| self.open(worker, client, now), Ok) {
            Ok(target) => target,
            Err(reason) => return worker.stopped(&self.gauge, reason),
        };
        // Past tokio's readiness, which a new socket has none of; there is nearly always room.
        match SockRef::from(&*target).send(datagram) {
            Ok(_) => self.gauge.moved(datagram.len() as u64, 0),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                self.give_up(worker, client);
            }
            Err(_) => worker.stopped(&self.gauge, StreamReason::DatagramLost),
        }
    }

    /// Finds a target for a client that nothing is known of.
    fn open(
        self: &Rc<UdpForward>,
        worker: &Rc<Worker>,
        client: Client,
        now: u64,
    ) -> Result<Rc<UdpSocket>, StreamReason> {
        let world = worker.world();
        let forward = world.forward(Protocol::Udp, self.port).ok_or(StreamReason::Stopped)?;
        let policy = forward.proxy.as_ref().ok_or(StreamReason::Stopped)?;
        let slot = match self.gauge.enter(policy.max_connections) {
            Some(slot) => slot,
            None => {
                // Whoever was silent longest has the least to lose. Other threads have clients of their own.
                drop(self.sessions.borrow_mut().remove_oldest().ok_or(StreamReason::ConnectionLimit)?);
                worker.stopped(&self.gauge, StreamReason::Evicted);
                self.gauge.enter(policy.max_connections).ok_or(StreamReason::ConnectionLimit)?
            }
        };
        let mut attempts = worker.attempts(forward, policy, self.gauge.turn());
        if attempts.is_empty() {
            return Err(StreamReason::Stopped);
        }
        let attempt = attempts.next(now).ok_or(StreamReason::BackendRefused)?;
        if worker.is_loop(Protocol::Udp, attempt.key.addr) {
            return Err(StreamReason::Loop);
        }
        let target = connect(attempt.key.addr).map_err(|_| StreamReason::BackendRefused)?;
        let target = Rc::new(target);
        let reader = self.clone().answer(worker.clone(), client, attempt.key, target.clone());
        let session = Session {
            key: attempt.key,
            target: target.clone(),
            reader: tokio::task::spawn_local(reader).abort_handle(),
            _slot: slot,
            _busy: attempt.slot,
        };
        self.sessions.borrow_mut().insert(client, session, now);
        worker.wake();
        Ok(target)
    }

    /// Carries what a target answers to its client, until the client is forgotten.
    async fn answer(
        self: Rc<UdpForward>,
        worker: Rc<Worker>,
        client: Client,
        key: BackendKey,
        target: Rc<UdpSocket>,
    ) {
        // That nothing listens there is an event of its own, and no datagram.
        let interest = Interest::READABLE | Interest::ERROR;
        let mut has_answered = false;
        loop {
            let Ok(ready) = target.ready(interest).await else { return self.give_up(&worker, client) };
            let mut scratch = worker.scratch.borrow_mut();
            let event = if ready.is_error() { Interest::ERROR } else { Interest::READABLE };
            let heard = target.try_io(event, || {
                Ok(recv(target.as_raw_fd(), &mut scratch.datagram, MsgFlags::MSG_DONTWAIT)?)
            });
            match heard {
                Ok(length) => {
                    self.sessions.borrow_mut().touch(&client, worker.now_ms());
                    if !std::mem::replace(&mut has_answered, true) {
                        worker.target_answered(key);
                    }
                    match send(&self.socket, client, &scratch.datagram[..length]) {
                        Ok(()) => self.gauge.moved(0, length as u64),
                        Err(_) => worker.stopped(&self.gauge, StreamReason::DatagramLost),
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return self.give_up(&worker, client),
            }
        }
    }

    /// The target's machine says that nothing listens there: the client's next datagram finds another one.
    fn give_up(&self, worker: &Worker, client: Client) {
        let removed = self.sessions.borrow_mut().remove(&client);
        if let Some(session) = removed {
            worker.stopped(&self.gauge, StreamReason::BackendReset);
            worker.target_failed(session.key);
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

fn connect(addr: SocketAddrV4) -> io::Result<UdpSocket> {
    let socket = StdUdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(addr)?;
    socket.set_nonblocking(true)?;
    UdpSocket::from_std(socket)
}

/// A socket that hears a port; several data threads may each have one. Errors are the kernel's.
pub fn hear_on(addr: SocketAddrV4) -> io::Result<StdUdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(socket2::Protocol::UDP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
    socket.bind(&SocketAddr::V4(addr).into())?;
    Ok(socket.into())
}

fn receive(socket: &UdpSocket, into: &mut Scratch) -> io::Result<(Client, usize)> {
    let mut room = [IoSliceMut::new(&mut into.datagram)];
    let (control, flags) = (Some(&mut into.control[..]), MsgFlags::MSG_DONTWAIT);
    let got = recvmsg::<SockaddrIn>(socket.as_raw_fd(), &mut room, control, flags)?;
    let local = got.cmsgs()?.find_map(|message| match message {
        ControlMessageOwned::Ipv4PacketInfo(info) => {
            // Where it was sent to, also when that was everybody.
            Some(Ipv4Addr::from(u32::from_be(info.ipi_spec_dst.s_addr)))
        }
        _ => None,
    });
    let peer = got.address.map(SocketAddrV4::from);
    let (Some(peer), Some(local)) = (peer, local) else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a datagram without addresses"));
    };
    Ok((Client { peer, local }, got.bytes))
}

fn send(socket: &UdpSocket, client: Client, datagram: &[u8]) -> io::Result<()> {
    let address = |ip: Ipv4Addr| in_addr { s_addr: u32::from(ip).to_be() };
    let info = in_pktinfo {
        ipi_ifindex: 0,
        ipi_spec_dst: address(client.local),
        ipi_addr: address(Ipv4Addr::UNSPECIFIED),
    };
    let (pieces, control) = ([IoSlice::new(datagram)], [ControlMessage::Ipv4PacketInfo(&info)]);
    let to = SockaddrIn::from(client.peer);
    sendmsg(socket.as_raw_fd(), &pieces, &control, MsgFlags::MSG_DONTWAIT, Some(&to))?;
    Ok(())
}
