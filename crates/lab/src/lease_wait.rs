//! Awaiting the work of a DHCP client: the kernel and the file system tell when something changed.

use std::{
    io,
    net::Ipv4Addr,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        inotify::{AddWatchFlags, InitFlags, Inotify},
        socket::{
            AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
        },
    },
};

use crate::{LabError, Node};

/// Multicast groups of rtnetlink(7): IPv4 addresses and IPv4 routes.
const RTMGRP_IPV4_IFADDR: u32 = 0x10;
const RTMGRP_IPV4_ROUTE: u32 = 0x40;

/// What a DHCP client has set up so far on one interface.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Progress {
    pub(crate) address: Option<Ipv4Addr>,
    pub(crate) default_route: bool,
    pub(crate) nameserver: bool,
}

impl Progress {
    fn of(node: &Node, interface: &str) -> Result<Self, LabError> {
        let addresses = node.run(&["ip", "-4", "-o", "addr", "show", "dev", interface])?.stdout;
        let routes = node.run(&["ip", "-4", "route", "show", "default", "dev", interface])?.stdout;
        // Clients replace the file; between two versions it may be missing.
        let resolver = node.read("/etc/resolv.conf").unwrap_or_default();
        Ok(Self {
            address: address_in(&addresses),
            default_route: !routes.trim().is_empty(),
            nameserver: resolver.lines().any(|line| line.starts_with("nameserver ")),
        })
    }
}

/// Waits until `done` says so of what is set up on `interface`, and returns the address.
pub(crate) fn await_progress(
    node: &Node,
    interface: &str,
    timeout: Duration,
    done: impl Fn(&Progress) -> bool,
) -> Result<Ipv4Addr, LabError> {
    let deadline = Instant::now() + timeout;
    let refused = |what| move |source| LabError::Namespace { node: node.name().to_owned(), what, source };
    // Both watches exist before the first look, so no change can fall in between.
    let kernel = node.enter(subscribe)?.map_err(refused("watching addresses"))?;
    let files = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)
        .map_err(refused("watching resolv.conf"))?;
    let changes = AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_MOVED_TO;
    files.add_watch(&node.path("/etc"), changes).map_err(refused("watching resolv.conf"))?;

    loop {
        let progress = Progress::of(node, interface)?;
        if let (true, Some(address)) = (done(&progress), progress.address) {
            return Ok(address);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(LabError::TimedOut {
                what: format!("DHCP lease of {}", node.name()),
                after: timeout,
                detail: format!("{progress:?}"),
            });
        }
        let mut watched =
            [PollFd::new(kernel.as_fd(), PollFlags::POLLIN), PollFd::new(files.as_fd(), PollFlags::POLLIN)];
        let wait = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut watched, wait) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(source) => return Err(refused("waiting for a change")(source)),
        }
        drain(&kernel);
        let _ = files.read_events();
    }
}

fn subscribe() -> nix::Result<OwnedFd> {
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        SockProtocol::NetlinkRoute,
    )?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, RTMGRP_IPV4_IFADDR | RTMGRP_IPV4_ROUTE))?;
    Ok(socket)
}

/// What changed does not matter, only that something did; overruns (ENOBUFS) count as a change.
fn drain(kernel: &OwnedFd) {
    let mut message = [0; 8192];
    loop {
        match recv(kernel.as_raw_fd(), &mut message, MsgFlags::empty()) {
            Ok(_) => {}
            Err(errno) if io::Error::from(errno).kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

/// First address in the output of `ip -4 -o addr show`.
fn address_in(text: &str) -> Option<Ipv4Addr> {
    let mut words = text.split_whitespace().skip_while(|word| *word != "inet").skip(1);
    words.next()?.split('/').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_is_read_from_ip() {
        let text = "2: eth0    inet 10.20.0.117/24 brd 10.20.0.255 scope global eth0\\       valid_lft";
        assert_eq!(address_in(text), Some(Ipv4Addr::new(10, 20, 0, 117)));
        assert_eq!(address_in(""), None);
    }
}
