//! Tells of changes of interfaces and IPv4 addresses, so that nobody has to poll for the uplink's address.

use crate::links::{Link, LinkError, read_address, read_link};
use crate::policy::Ipv4Net;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket, protocols::NETLINK_ROUTE};
use std::collections::VecDeque;

/// linux/rtnetlink.h, as bits
const RTMGRP_LINK: u32 = 1;
const RTMGRP_IPV4_IFADDR: u32 = 0x10;

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkChange {
    /// An interface came or changed.
    Link(Link),
    /// An interface went.
    LinkRemoved(Link),
    /// An interface got an IPv4 address.
    AddressAdded {
        /// Index of the interface.
        index: u32,
        /// The address.
        address: Ipv4Net,
    },
    /// An interface lost an IPv4 address.
    AddressRemoved {
        /// Index of the interface.
        index: u32,
        /// The address.
        address: Ipv4Net,
    },
    /// Too much happened at once, or something unreadable: read the state anew.
    Lost,
}

/// A subscription to changes of all interfaces and their IPv4 addresses. What the kernel queues is bounded;
/// overflow is [`LinkChange::Lost`].
pub struct LinkWatch {
    socket: TokioSocket,
    pending: VecDeque<LinkChange>,
}

impl LinkWatch {
    /// Starts watching. Must be called in a tokio runtime with IO enabled. Subscribe first, then read the
    /// state: a change in between is then seen twice rather than never.
    pub fn new() -> Result<Self, LinkError> {
        let mut socket = TokioSocket::new(NETLINK_ROUTE).map_err(failed)?;
        socket.socket_mut().bind(&SocketAddr::new(0, RTMGRP_LINK | RTMGRP_IPV4_IFADDR)).map_err(failed)?;
        Ok(LinkWatch { socket, pending: VecDeque::new() })
    }

    /// Waits for the next change. Cancel safe.
    pub async fn changed(&mut self) -> Result<LinkChange, LinkError> {
        loop {
            if let Some(change) = self.pending.pop_front() {
                return Ok(change);
            }
            match self.socket.recv_from_full().await {
                Ok((bytes, from)) if from.port_number() == 0 => self.pending.extend(read(&bytes)),
                Ok(_) => {} // not from the kernel
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => return Ok(LinkChange::Lost),
                Err(error) => return Err(failed(error)),
            }
        }
    }
}

fn failed(error: std::io::Error) -> LinkError {
    LinkError::Connection { step: "watch interfaces".to_owned(), reason: error.to_string() }
}

/// Changes in one datagram.
fn read(mut bytes: &[u8]) -> Vec<LinkChange> {
    let mut changes = Vec::new();
    while let Some(header) = bytes.get(..4) {
        let len = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let Some(message) = bytes.get(..len).filter(|message| message.len() >= 16) else {
            changes.push(LinkChange::Lost);
            break;
        };
        match NetlinkMessage::<RouteNetlinkMessage>::deserialize(message) {
            Ok(message) => changes.extend(change(message.payload)),
            Err(_) => changes.push(LinkChange::Lost),
        }
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    changes
}

fn change(payload: NetlinkPayload<RouteNetlinkMessage>) -> Option<LinkChange> {
    let NetlinkPayload::InnerMessage(message) = payload else { return None };
    match message {
        RouteNetlinkMessage::NewLink(message) => Some(LinkChange::Link(read_link(&message))),
        RouteNetlinkMessage::DelLink(message) => Some(LinkChange::LinkRemoved(read_link(&message))),
        RouteNetlinkMessage::NewAddress(message) => {
            let address = read_address(&message)?;
            Some(LinkChange::AddressAdded { index: message.header.index, address })
        }
        RouteNetlinkMessage::DelAddress(message) => {
            let address = read_address(&message)?;
            Some(LinkChange::AddressRemoved { index: message.header.index, address })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_is_told_and_never_loops_or_panics() {
        assert_eq!(read(&[]), []);
        assert_eq!(read(&[0; 64]), [LinkChange::Lost]);
        assert_eq!(read(&[255; 64]), [LinkChange::Lost]);
        let mut short = vec![0; 20];
        short[0] = 20;
        short[4] = 16; // RTM_NEWLINK without its own header
        assert_eq!(read(&short), [LinkChange::Lost]);
    }
}
