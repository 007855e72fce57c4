use std::io;
use std::net::{SocketAddr, UdpSocket};

use rustix::net::sockopt::{self, Ipv4PathMtuDiscovery};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;

/// Receive buffer asked for, in octets: a burst of some ten thousand queries waits instead of being lost.
const RECEIVE_BUFFER: usize = 4 << 20;
/// Connections that wait to be accepted.
const BACKLOG: i32 = 256;

/// A UDP socket of its own for one data thread: several may be bound to the same address, the kernel spreads
/// the clients over them.
pub fn listen_udp(addr: SocketAddr) -> io::Result<UdpSocket> {
    let socket = bound(addr, Type::DGRAM, Protocol::UDP)?;
    // Our replies fit every link, and nobody can forge a part of what may not be taken apart (RFC 9715 §3.1). It also
    // spares the kernel a number for each. IPv6 has no fragments on the way.
    if addr.is_ipv4() {
        sockopt::set_ip_mtu_discover(&socket, Ipv4PathMtuDiscovery::PROBE)?;
    }
    Ok(socket.into())
}

/// A TCP listener of its own for one data thread, like [`listen_udp`]. Must be called inside a tokio runtime.
pub fn listen_tcp(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = bound(addr, Type::STREAM, Protocol::TCP)?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

fn bound(addr: SocketAddr, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(addr), kind.nonblocking(), Some(protocol))?;
    socket.set_reuse_port(true)?;
    if kind == Type::STREAM {
        socket.set_reuse_address(true)?;
    } else {
        // The kernel gives what net.core.rmem_max allows; less is no reason not to serve.
        let _ = socket.set_recv_buffer_size(RECEIVE_BUFFER);
    }
    if addr.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&addr.into())?;
    Ok(socket)
}
