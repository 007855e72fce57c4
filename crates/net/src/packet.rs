//! Raw Ethernet frames of one interface, for DHCP: clients without an address can neither be heard nor
//! answered through an ordinary UDP socket. Frames only; what is inside is somebody else's matter.

#![allow(unsafe_code)] // AF_PACKET has no safe interface in std

use nix::errno::Errno;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// linux/if_packet.h
const PACKET_IGNORE_OUTGOING: libc::c_int = 23;
/// linux/if_packet.h: the kernel left the checksum to the network card, so it is not filled in.
const TP_STATUS_CSUMNOTREADY: u32 = 1 << 3;

/// The socket could not be made ready.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen for frames on {interface}: {step}: {errno}{hint}", hint = hint(*.errno))]
pub struct PacketError {
    /// Interface name.
    pub interface: String,
    /// What failed.
    pub step: &'static str,
    /// What the kernel said.
    pub errno: Errno,
}

fn hint(errno: Errno) -> &'static str {
    match errno {
        Errno::EPERM | Errno::EACCES => ". Run as root or with CAP_NET_RAW",
        Errno::ENODEV | Errno::ENXIO => ". There is no such interface; `ip link` lists those that exist",
        _ => "",
    }
}

/// One frame received into the caller's buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// Bytes of the buffer that are the frame, Ethernet header first.
    pub len: usize,
    /// Whether the transport checksum is filled in. It is not on frames from a local container (veth with
    /// checksum offload): they were never on a wire, and must not be dropped for a wrong checksum.
    pub checksum_ready: bool,
    /// Whether the frame was longer than the buffer.
    pub truncated: bool,
}

/// A raw socket on one interface that hears unfragmented IPv4 UDP to one port, unicast to anybody on this
/// interface's MAC and broadcast, and sends any frame.
pub struct PacketSocket {
    fd: AsyncFd<OwnedFd>,
}

impl PacketSocket {
    /// Opens the socket. Frames to other ports never leave the kernel. Must be called in a tokio runtime
    /// with IO enabled.
    pub fn bind(interface: &str, udp_destination_port: u16) -> Result<Self, PacketError> {
        let failed = |step| move |errno| PacketError { interface: interface.to_owned(), step, errno };
        let index = nix::net::if_::if_nametoindex(interface).map_err(failed("look up the interface"))?;
        // Protocol 0: nothing is received before the filter is in place and the socket is bound.
        let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        // SAFETY: no pointers.
        let fd = Errno::result(unsafe { libc::socket(libc::AF_PACKET, kind, 0) })
            .map_err(failed("open a socket"))?;
        // SAFETY: a fresh descriptor that nobody else owns.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };

        let mut filter = udp_port_filter(udp_destination_port);
        let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
        set(&fd, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program).map_err(failed("attach the filter"))?;
        set(&fd, libc::SOL_PACKET, libc::PACKET_AUXDATA, &1).map_err(failed("ask for checksum states"))?;
        set(&fd, libc::SOL_PACKET, PACKET_IGNORE_OUTGOING, &1).map_err(failed("leave out our own frames"))?;

        // SAFETY: all-zero is a valid sockaddr_ll.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = (libc::ETH_P_IP as u16).to_be();
        address.sll_ifindex = index as libc::c_int;
        let len = size_of_val(&address) as libc::socklen_t;
        // SAFETY: the address is valid for the call and of the length given.
        let rc = unsafe { libc::bind(fd.as_raw_fd(), std::ptr::from_ref(&address).cast(), len) };
        Errno::result(rc).map_err(failed("bind"))?;
        PacketSocket::adopt(fd).map_err(|error| {
            failed("register with the runtime")(error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))
        })
    }

    /// Takes over a socket that was bound by another process, with the frames that wait in it. Must be called
    /// in a tokio runtime with IO enabled.
    pub fn adopt(fd: OwnedFd) -> io::Result<Self> {
        // SAFETY: the descriptor is owned, open and stays the same for the life of the registration.
        let fd = unsafe { AsyncFd::register(fd) }.map_err(io::Error::from)?;
        Ok(PacketSocket { fd })
    }

    /// Waits for a frame. Cancel safe: a frame is either returned or still queued.
    ///
    /// # Errors
    /// `ENETDOWN` when the interface went down; it can be awaited again and hears when the interface is back
    /// up. After the interface was deleted nothing more comes: bind anew.
    pub async fn recv(&self, buffer: &mut [u8]) -> io::Result<Frame> {
        // A link that goes down is an error condition without anything to read.
        self.fd.async_io(Interest::READABLE | Interest::ERROR, |fd| receive(fd, buffer)).await
    }

    /// Sends a whole frame, Ethernet header first; waits while the queue is full.
    pub async fn send(&self, frame: &[u8]) -> io::Result<()> {
        self.fd.async_io(Interest::WRITABLE, |fd| transmit(fd, frame)).await
    }

    /// As [`send`](Self::send), but fails with `WouldBlock` instead of waiting.
    pub fn try_send(&self, frame: &[u8]) -> io::Result<()> {
        transmit(self.fd.get_ref(), frame)
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.get_ref().as_fd()
    }
}

fn receive(fd: &OwnedFd, buffer: &mut [u8]) -> io::Result<Frame> {
    let mut slice = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let mut control = [0u64; 16];
    // SAFETY: all-zero is a valid msghdr.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &mut slice;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = size_of_val(&control) as _;
    // SAFETY: the header points to a buffer and a control area that live for the call, of the lengths given.
    let len = Errno::result(unsafe { libc::recvmsg(fd.as_raw_fd(), &mut header, 0) })?;
    let mut checksum_ready = true;
    // SAFETY: the kernel filled the control area and set its length; the CMSG walk stays inside it.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(&header) };
    // SAFETY: as above; the walk returns null or a header inside the control area.
    while let Some(item) = unsafe { next.as_ref() } {
        if (item.cmsg_level, item.cmsg_type) == (libc::SOL_PACKET, libc::PACKET_AUXDATA) {
            // SAFETY: a PACKET_AUXDATA item holds this struct, at whatever alignment.
            let data: libc::tpacket_auxdata =
                unsafe { libc::CMSG_DATA(item).cast::<libc::tpacket_auxdata>().read_unaligned() };
            checksum_ready = data.tp_status & TP_STATUS_CSUMNOTREADY == 0;
        }
        // SAFETY: as above.
        next = unsafe { libc::CMSG_NXTHDR(&header, item) };
    }
    let truncated = header.msg_flags & libc::MSG_TRUNC != 0;
    Ok(Frame { len: usize::try_from(len).unwrap_or(0).min(buffer.len()), checksum_ready, truncated })
}

fn transmit(fd: &OwnedFd, frame: &[u8]) -> io::Result<()> {
    // SAFETY: pointer and length are of one slice.
    let sent = Errno::result(unsafe { libc::send(fd.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) })?;
    if usize::try_from(sent) == Ok(frame.len()) { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

fn set<T>(fd: &OwnedFd, level: libc::c_int, option: libc::c_int, value: &T) -> Result<(), Errno> {
    let len = size_of::<T>() as libc::socklen_t;
    // SAFETY: the value is valid for the call and of the length given.
    let rc =
        unsafe { libc::setsockopt(fd.as_raw_fd(), level, option, std::ptr::from_ref(value).cast(), len) };
    Errno::result(rc).map(drop)
}

/// Classic BPF: IPv4, UDP, neither fragmented nor a fragment, that destination port.
fn udp_port_filter(port: u16) -> [libc::sock_filter; 11] {
    const LOAD_HALF: u16 = (libc::BPF_LD | libc::BPF_H | libc::BPF_ABS) as u16;
    const LOAD_BYTE: u16 = (libc::BPF_LD | libc::BPF_B | libc::BPF_ABS) as u16;
    const LOAD_HALF_INDEXED: u16 = (libc::BPF_LD | libc::BPF_H | libc::BPF_IND) as u16;
    const INDEX_BY_IP_HEADER_LENGTH: u16 = (libc::BPF_LDX | libc::BPF_B | libc::BPF_MSH) as u16;
    const JUMP_IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const JUMP_IF_ANY_BIT: u16 = (libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    const ETHERNET: u32 = 14;
    let op = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    [
        op(LOAD_HALF, 0, 0, 12),
        op(JUMP_IF_EQUAL, 0, 8, libc::ETH_P_IP as u32),
        op(LOAD_BYTE, 0, 0, ETHERNET + 9),
        op(JUMP_IF_EQUAL, 0, 6, libc::IPPROTO_UDP as u32),
        op(LOAD_HALF, 0, 0, ETHERNET + 6),
        op(JUMP_IF_ANY_BIT, 4, 0, 0x3fff), // more fragments, or an offset
        op(INDEX_BY_IP_HEADER_LENGTH, 0, 0, ETHERNET),
        op(LOAD_HALF_INDEXED, 0, 0, ETHERNET + 2),
        op(JUMP_IF_EQUAL, 0, 1, u32::from(port)),
        op(RETURN, 0, 0, u32::MAX),
        op(RETURN, 0, 0, 0),
    ]
}
