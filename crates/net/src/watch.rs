//! Tells when some other process changed our table, so that the caller verifies and applies again at once
//! rather than at the next poll.

use crate::netlink::messages;
use crate::nft_encode::FAMILY;
use crate::nft_socket::{Buffer, NftError, NftSocket};
use nix::errno::Errno;
use std::collections::BTreeSet;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Lost notifications show as an error condition.
const READABLE: Interest = Interest::READABLE.add(Interest::ERROR);
/// The table's name has this attribute number in every message about a table, chain, rule, set or element.
const NFTA_TABLE: u16 = 1;
const NFTA_GEN_PROC_NAME: u16 = 3;

/// Someone else changed our table, or may have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableChanged {
    /// The process that did it, as the kernel names it (15 bytes); `None` if notifications were lost and the
    /// table may or may not have changed.
    pub by: Option<String>,
}

/// A subscription to changes of one table.
pub struct Watch {
    socket: AsyncFd<NftSocket>,
    buffer: Box<Buffer>,
    table: String,
    own_ports: Vec<u32>,
    /// Ports of open transactions that touched the table; the kernel closes each with a "generation" message.
    touched: BTreeSet<u32>,
}

impl Watch {
    /// Starts watching; changes made through connections with these ports ([`crate::Nft::port`]) are not
    /// reported. Must be called in a tokio runtime with IO enabled.
    pub fn open(table: impl Into<String>, own_ports: impl Into<Vec<u32>>) -> Result<Self, NftError> {
        let socket = NftSocket::open(1 << (libc::NFNLGRP_NFTABLES - 1))?.watched()?;
        Ok(Watch {
            socket,
            buffer: Buffer::new(),
            table: table.into(),
            own_ports: own_ports.into(),
            touched: BTreeSet::new(),
        })
    }

    /// Waits for the next change by someone else. Cancel safe.
    ///
    /// # Errors
    /// Only if the socket itself fails; then watch anew.
    pub async fn changed(&mut self) -> Result<TableChanged, NftError> {
        loop {
            let mut ready = self.socket.ready(READABLE).await.map_err(|error| open_error(&error))?;
            match self.socket.get_ref().receive(&mut self.buffer) {
                Ok(received) => {
                    let news = read(received, &self.table, &self.own_ports, &mut self.touched);
                    if let Some(changed) = news {
                        return Ok(changed);
                    }
                }
                Err(Errno::EAGAIN) => ready.clear_ready(),
                // The receive buffer overflowed; ENOSPC: a notification larger than ours.
                Err(Errno::ENOBUFS | Errno::ENOSPC) => {
                    self.touched.clear();
                    return Ok(TableChanged { by: None });
                }
                Err(errno) => return Err(NftError::Io { step: "watch our table".to_owned(), errno }),
            }
        }
    }
}

fn open_error(error: &std::io::Error) -> NftError {
    NftError::Open { errno: crate::nft_socket::errno_of(error) }
}

/// Reads one batch of notifications. The last change of a batch wins: the caller verifies the whole anyway.
fn read(received: &[u8], table: &str, own: &[u32], touched: &mut BTreeSet<u32>) -> Option<TableChanged> {
    let mut changed = None;
    for message in messages(received) {
        let Some(kind) = message.nft_kind() else { continue };
        if own.contains(&message.port) {
            continue;
        }
        if kind == libc::NFT_MSG_NEWGEN {
            if touched.remove(&message.port) {
                let name = message.attributes().string(NFTA_GEN_PROC_NAME).unwrap_or("unknown");
                changed = Some(TableChanged { by: Some(name.to_owned()) });
            }
        } else if message.family() == Some(FAMILY) && message.attributes().string(NFTA_TABLE) == Some(table) {
            touched.insert(message.port);
        }
    }
    changed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::Message;

    fn about(kind: i32, family: u8, table: &str, port: u32) -> Vec<u8> {
        let mut message = Message::new(kind, 0, family);
        message.put_str(NFTA_TABLE, table);
        if kind == libc::NFT_MSG_NEWGEN {
            message.put_str(NFTA_GEN_PROC_NAME, "nft");
        }
        let mut bytes = message.finish(0, false);
        bytes[12..16].copy_from_slice(&port.to_ne_bytes());
        bytes
    }

    #[test]
    fn only_transactions_of_others_on_our_table_count() {
        let mut touched = BTreeSet::new();
        let mut read = |bytes: &[u8]| read(bytes, "proximity", &[7], &mut touched);
        let generation = |port| about(libc::NFT_MSG_NEWGEN, 0, "", port);
        let ours = about(libc::NFT_MSG_NEWRULE, FAMILY, "proximity", 7);
        let foreign = about(libc::NFT_MSG_NEWRULE, FAMILY, "proximity", 9);
        let other_table = about(libc::NFT_MSG_NEWRULE, FAMILY, "other", 9);
        let other_family = about(libc::NFT_MSG_NEWRULE, libc::NFPROTO_IPV4 as u8, "proximity", 9);

        assert_eq!(read(&[ours, generation(7)].concat()), None);
        assert_eq!(read(&[other_table, other_family, generation(9)].concat()), None);
        assert_eq!(read(&foreign), None, "the transaction is not complete yet");
        assert_eq!(read(&generation(8)), None);
        assert_eq!(read(&generation(9)), Some(TableChanged { by: Some("nft".into()) }));
        assert_eq!(read(&generation(9)), None);
    }
}
