use std::sync::atomic::{AtomicU64, Ordering};

use thiserror::Error;

use crate::FrameError;

/// Why a DHCP message got no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum Drop {
    #[error("frame is cut short")]
    FrameTruncated,
    #[error("frame is not a whole IPv4 UDP datagram")]
    FrameNotUdp,
    #[error("IP header checksum is wrong")]
    FrameIpChecksum,
    #[error("UDP checksum is wrong")]
    FrameUdpChecksum,
    #[error("message is shorter than 240 octets or lacks the magic cookie")]
    Malformed,
    #[error("not a request of an Ethernet client")]
    NotBootRequest,
    #[error("message type is missing or not a client's")]
    MessageType,
    #[error("hardware address is zero, broadcast or multicast")]
    HardwareAddress,
    #[error("relayed from a subnet that is not ours")]
    ForeignRelay,
    #[error("client chose another server")]
    OtherServer,
    #[error("every address of the pool is taken")]
    PoolExhausted,
    #[error("client is unknown and another server may know it")]
    UnknownClient,
    #[error("release or decline of an address that the client does not hold")]
    NotHolder,
    #[error("request names no address")]
    NoAddress,
    #[error("reply could not be encoded")]
    Encoding,
    #[error("lease could not be made durable")]
    NotDurable,
    #[error("too many messages wait; the client tries again")]
    Overloaded,
    #[error("the service is stopped")]
    Stopped,
}

/// Counters of a DHCP server since its start.
#[derive(Debug)]
pub struct Stats {
    received: [AtomicU64; 9],
    sent: [AtomicU64; 9],
    dropped: [AtomicU64; Drop::ALL.len()],
}

impl Drop {
    /// Every reason, in the order of the counters.
    pub const ALL: [Drop; 18] = [
        Drop::FrameTruncated,
        Drop::FrameNotUdp,
        Drop::FrameIpChecksum,
        Drop::FrameUdpChecksum,
        Drop::Malformed,
        Drop::NotBootRequest,
        Drop::MessageType,
        Drop::HardwareAddress,
        Drop::ForeignRelay,
        Drop::OtherServer,
        Drop::PoolExhausted,
        Drop::UnknownClient,
        Drop::NotHolder,
        Drop::NoAddress,
        Drop::Encoding,
        Drop::NotDurable,
        Drop::Overloaded,
        Drop::Stopped,
    ];

    /// The reason as a metric label.
    pub fn label(self) -> &'static str {
        match self {
            Drop::FrameTruncated => "frame_truncated",
            Drop::FrameNotUdp => "frame_not_udp",
            Drop::FrameIpChecksum => "frame_ip_checksum",
            Drop::FrameUdpChecksum => "frame_udp_checksum",
            Drop::Malformed => "malformed",
            Drop::NotBootRequest => "not_boot_request",
            Drop::MessageType => "message_type",
            Drop::HardwareAddress => "hardware_address",
            Drop::ForeignRelay => "foreign_relay",
            Drop::OtherServer => "other_server",
            Drop::PoolExhausted => "pool_exhausted",
            Drop::UnknownClient => "unknown_client",
            Drop::NotHolder => "not_holder",
            Drop::NoAddress => "no_address",
            Drop::Encoding => "encoding",
            Drop::NotDurable => "not_durable",
            Drop::Overloaded => "overloaded",
            Drop::Stopped => "stopped",
        }
    }
}

/// Names of the message types by their codes (RFC 2132 §9.6); 0 stands for those unknown.
const TYPES: [&str; 9] =
    ["unknown", "discover", "offer", "request", "decline", "ack", "nak", "release", "inform"];

impl Stats {
    /// Counts a received message by its type code.
    pub fn count_received(&self, code: u8) {
        self.received[usize::from(if code < 9 { code } else { 0 })].fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a sent message by its type code.
    pub fn count_sent(&self, code: u8) {
        self.sent[usize::from(if code < 9 { code } else { 0 })].fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a message that got no answer.
    pub fn count_drop(&self, reason: Drop) {
        self.dropped[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Received messages by type.
    pub fn received(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        TYPES.into_iter().zip(&self.received).map(|(name, count)| (name, count.load(Ordering::Relaxed)))
    }

    /// Sent messages by type.
    pub fn sent(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        TYPES.into_iter().zip(&self.sent).map(|(name, count)| (name, count.load(Ordering::Relaxed)))
    }

    /// Drops by reason.
    pub fn dropped(&self) -> impl Iterator<Item = (Drop, u64)> + '_ {
        Drop::ALL.into_iter().map(|reason| (reason, self.dropped[reason as usize].load(Ordering::Relaxed)))
    }
}

impl Default for Stats {
    fn default() -> Stats {
        let zero = |_| AtomicU64::new(0);
        Stats {
            received: std::array::from_fn(zero),
            sent: std::array::from_fn(zero),
            dropped: std::array::from_fn(zero),
        }
    }
}

impl From<FrameError> for Drop {
    fn from(error: FrameError) -> Drop {
        match error {
            FrameError::Truncated => Drop::FrameTruncated,
            FrameError::NotUdp => Drop::FrameNotUdp,
            FrameError::IpChecksum => Drop::FrameIpChecksum,
            FrameError::UdpChecksum => Drop::FrameUdpChecksum,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_own_counter_and_label() {
        let stats = Stats::default();
        for (index, reason) in Drop::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index);
            stats.count_drop(reason);
        }
        assert!(stats.dropped().all(|(_, count)| count == 1));
        let labels: std::collections::BTreeSet<_> = Drop::ALL.iter().map(|r| r.label()).collect();
        assert_eq!(labels.len(), Drop::ALL.len());
    }
}
