//! Netlink messages of the netfilter subsystem as bytes: a small writer and a reader that never trusts a
//! length. Pure; sockets are elsewhere.

/// Attributes nest by this bit of their type.
const NESTED: u16 = 0x8000;
/// The bits of an attribute's type that name it.
const TYPE_MASK: u16 = 0x3fff;
/// `struct nlmsghdr`
const HEADER: usize = 16;
/// `struct nfgenmsg`, which follows the header in every netfilter message.
const FAMILY_HEADER: usize = 4;

/// A message being written. Lengths are filled in as it grows.
#[derive(Debug, Clone)]
pub(crate) struct Message {
    bytes: Vec<u8>,
}

impl Message {
    /// An nf_tables message (`NFT_MSG_*`) with `NLM_F_REQUEST` and the given flags.
    pub(crate) fn new(kind: i32, flags: i32, family: u8) -> Self {
        let subsystem = (libc::NFNL_SUBSYS_NFTABLES as u16) << 8;
        Message::with_kind(subsystem | kind as u16, flags, family, 0)
    }

    /// The message that opens (`NFNL_MSG_BATCH_BEGIN`) or closes (`NFNL_MSG_BATCH_END`) a transaction.
    pub(crate) fn batch(kind: i32) -> Self {
        Message::with_kind(kind as u16, 0, libc::AF_UNSPEC as u8, libc::NFNL_SUBSYS_NFTABLES as u16)
    }

    fn with_kind(kind: u16, flags: i32, family: u8, resource: u16) -> Self {
        let mut bytes = vec![0; HEADER + FAMILY_HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&((libc::NLM_F_REQUEST | flags) as u16).to_ne_bytes());
        bytes[16] = family;
        bytes[18..20].copy_from_slice(&resource.to_be_bytes());
        let mut message = Message { bytes };
        message.fix_length();
        message
    }

    /// Takes a message some other code wrote; bytes past its own length are dropped. `None` if it is no
    /// whole message.
    pub(crate) fn from_bytes(mut bytes: Vec<u8>) -> Option<Self> {
        let len = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
        if len < HEADER + FAMILY_HEADER || len > bytes.len() {
            return None;
        }
        bytes.truncate(len);
        Some(Message { bytes })
    }

    /// Bytes so far.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Appends an attribute.
    pub(crate) fn put(&mut self, kind: u16, value: &[u8]) {
        let len = (4 + value.len()) as u16;
        self.bytes.extend_from_slice(&len.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.pad();
        self.fix_length();
    }

    /// Appends a string attribute with its final zero.
    pub(crate) fn put_str(&mut self, kind: u16, value: &str) {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.put(kind, &bytes);
    }

    /// Appends a big-endian number, as nf_tables wants them.
    pub(crate) fn put_u32(&mut self, kind: u16, value: u32) {
        self.put(kind, &value.to_be_bytes());
    }

    /// Appends an attribute that holds what `fill` appends. The caller keeps it under 64 KiB.
    pub(crate) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Message)) {
        let start = self.bytes.len();
        self.put(kind | NESTED, &[]);
        fill(self);
        let len = (self.bytes.len() - start) as u16;
        self.bytes[start..start + 2].copy_from_slice(&len.to_ne_bytes());
    }

    /// Sets the sequence number, and whether the kernel acknowledges success (errors always come).
    pub(crate) fn finish(mut self, sequence: u32, acknowledge: bool) -> Vec<u8> {
        let flags = u16::from_ne_bytes([self.bytes[6], self.bytes[7]]);
        let ack = libc::NLM_F_ACK as u16;
        let flags = if acknowledge { flags | ack } else { flags & !ack };
        self.bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.bytes
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn fix_length(&mut self) {
        let len = self.bytes.len() as u32;
        self.bytes[..4].copy_from_slice(&len.to_ne_bytes());
    }
}

/// A received message.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Received<'a> {
    /// `nlmsg_type`
    pub(crate) kind: u16,
    /// `nlmsg_flags`
    pub(crate) flags: u16,
    /// `nlmsg_seq`
    pub(crate) sequence: u32,
    /// `nlmsg_pid`: whose request this answers or reports.
    pub(crate) port: u32,
    payload: &'a [u8],
}

impl<'a> Received<'a> {
    /// The `NFT_MSG_*` number if this is an nf_tables message.
    pub(crate) fn nft_kind(&self) -> Option<i32> {
        let subsystem = self.kind >> 8;
        (i32::from(subsystem) == libc::NFNL_SUBSYS_NFTABLES).then_some(i32::from(self.kind & 0xff))
    }

    /// Address family of a netfilter message.
    pub(crate) fn family(&self) -> Option<u8> {
        self.payload.first().copied()
    }

    /// The attributes of a netfilter message.
    pub(crate) fn attributes(&self) -> Attributes<'a> {
        Attributes { rest: self.payload.get(FAMILY_HEADER..).unwrap_or_default() }
    }

    /// The kernel's own words about an error, if `NETLINK_EXT_ACK` and `NETLINK_CAP_ACK` are set.
    pub(crate) fn error_text(&self) -> Option<&'a str> {
        const NLM_F_ACK_TLVS: u16 = 0x200;
        const NLMSGERR_ATTR_MSG: u16 = 1;
        let attributes = self.payload.get(4 + HEADER..)?;
        if self.flags & NLM_F_ACK_TLVS == 0 {
            None
        } else {
            Attributes::nested(attributes).string(NLMSGERR_ATTR_MSG)
        }
    }

    /// The result carried by an `NLMSG_ERROR` or `NLMSG_DONE` message, as a positive errno; 0 is success.
    pub(crate) fn errno(&self) -> i32 {
        let first = self.payload.get(..4).and_then(|bytes| bytes.try_into().ok());
        first.map_or(0, |bytes| i32::from_ne_bytes(bytes).saturating_neg())
    }
}

/// Splits what one `recv` returned. Stops at the first message whose length makes no sense.
pub(crate) fn messages(buffer: &[u8]) -> impl Iterator<Item = Received<'_>> {
    let mut rest = buffer;
    std::iter::from_fn(move || {
        let header = rest.get(..HEADER)?;
        let word =
            |at: usize| u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let half = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
        let len = word(0) as usize;
        let payload = rest.get(HEADER..len)?;
        let message = Received { kind: half(4), flags: half(6), sequence: word(8), port: word(12), payload };
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// Iterator over attributes: (type without flag bits, value).
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Attributes<'a> {
    rest: &'a [u8],
}

impl<'a> Attributes<'a> {
    /// Reads the attributes nested in a value.
    pub(crate) fn nested(value: &'a [u8]) -> Self {
        Attributes { rest: value }
    }

    /// Value of the first attribute of that type.
    pub(crate) fn find(mut self, kind: u16) -> Option<&'a [u8]> {
        self.find_map(|(found, value)| (found == kind).then_some(value))
    }

    /// As [`find`](Self::find), for a string; the final zero is dropped.
    pub(crate) fn string(self, kind: u16) -> Option<&'a str> {
        let value = self.find(kind)?;
        std::str::from_utf8(value.strip_suffix(&[0]).unwrap_or(value)).ok()
    }

    /// As [`find`](Self::find), for a big-endian number.
    pub(crate) fn u32(self, kind: u16) -> Option<u32> {
        Some(u32::from_be_bytes(self.find(kind)?.try_into().ok()?))
    }

    /// As [`find`](Self::find), for a big-endian number.
    pub(crate) fn u64(self, kind: u16) -> Option<u64> {
        Some(u64::from_be_bytes(self.find(kind)?.try_into().ok()?))
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let header = self.rest.get(..4)?;
        let len = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & TYPE_MASK;
        let value = self.rest.get(4..len)?;
        self.rest = self.rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back() {
        let mut message = Message::new(libc::NFT_MSG_NEWSET, libc::NLM_F_CREATE, 1);
        message.put_str(1, "proximity");
        message.nest(2, |inner| {
            inner.put_u32(7, 0xdead_beef);
            inner.put(8, &[1, 2, 3]);
        });
        let bytes = message.finish(42, true);
        let mut twice = bytes.clone();
        twice.extend_from_slice(&bytes);
        let read: Vec<_> = messages(&twice).collect();
        assert_eq!(read.len(), 2);
        assert_eq!(read[1].nft_kind(), Some(libc::NFT_MSG_NEWSET));
        assert_eq!((read[1].sequence, read[1].family()), (42, Some(1)));
        assert_ne!(i32::from(read[1].flags) & libc::NLM_F_ACK, 0);
        assert_eq!(read[1].attributes().string(1), Some("proximity"));
        let inner = Attributes::nested(read[1].attributes().find(2).unwrap());
        assert_eq!((inner.u32(7), inner.find(8)), (Some(0xdead_beef), Some(&[1, 2, 3][..])));
    }

    #[test]
    fn any_damage_ends_reading_without_panic() {
        let mut message = Message::new(libc::NFT_MSG_NEWRULE, 0, 1);
        message.nest(4, |inner| inner.nest(1, |expression| expression.put_str(1, "counter")));
        let whole = message.finish(1, false);
        for at in 0..whole.len() {
            for value in [0, 1, 3, 4, 0x7f, 0x80, 0xff] {
                let mut bytes = whole.clone();
                bytes[at] = value;
                bytes.truncate(whole.len() - at % 5);
                for read in messages(&bytes).take(100) {
                    let _ = (read.errno(), read.family(), read.nft_kind());
                    for (_, value) in read.attributes().take(100) {
                        let _ = Attributes::nested(value).take(100).count();
                    }
                }
            }
        }
        assert_eq!(messages(&whole[..whole.len() - 1]).count(), 0);
        assert_eq!(messages(&[0; 64]).count(), 0, "a length of zero must not loop");
        assert_eq!(Attributes::nested(&[0; 8]).count(), 0, "a length of zero must not loop");
    }

    #[test]
    fn foreign_messages_are_checked_before_they_are_taken() {
        assert!(Message::from_bytes(vec![]).is_none());
        assert!(Message::from_bytes(vec![255; 20]).is_none());
        let mut spare = Message::new(libc::NFT_MSG_NEWRULE, 0, 1).finish(0, false);
        spare.extend_from_slice(&[9; 100]);
        assert_eq!(Message::from_bytes(spare).unwrap().finish(0, false).len(), HEADER + FAMILY_HEADER);
    }
}
