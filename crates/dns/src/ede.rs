use crate::reply::{OUR_UDP_SIZE, Rcode};

/// What an extended error says beside the response code (RFC 8914 §4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ede {
    /// The upstream said no more than that it failed.
    Other = 0,
    /// Upstreams do not answer; what they said earlier is given out (RFC 8767).
    StaleAnswer = 3,
    /// The records are not what their zone signed.
    DnssecBogus = 6,
    /// Our own operator does not let this answer through.
    Blocked = 15,
    /// We look nothing up for this client.
    Prohibited = 18,
    /// Old "there is nothing", as [`Ede::StaleAnswer`].
    StaleNxDomain = 19,
    /// No upstream answered in time.
    NoReachableAuthority = 22,
    /// The way to the upstreams is broken.
    NetworkError = 23,
}

/// Octets of an OPT record without options.
const OPT: usize = 11;
/// Octets of an extended error without text.
const OPTION: usize = 6;

/// Octets that [`put_opt`] writes.
pub(crate) fn opt_length(ede: Option<Ede>) -> usize {
    OPT + if ede.is_some() { OPTION } else { 0 }
}

/// Writes the OPT record of a reply (RFC 6891 §6.1.2), with an extended error if there is one.
pub(crate) fn put_opt(out: &mut Vec<u8>, rcode: Rcode, dnssec_ok: bool, ede: Option<Ede>) {
    let [high, low] = OUR_UDP_SIZE.to_be_bytes();
    let length = if ede.is_some() { OPTION as u8 } else { 0 };
    // RFC 3225 §3: the DO bit of the query is copied.
    let dnssec_ok = if dnssec_ok { 0x80 } else { 0 };
    out.extend_from_slice(&[0, 0, 41, high, low, rcode.high(), 0, dnssec_ok, 0, 0, length]);
    if let Some(ede) = ede {
        out.extend_from_slice(&[0, 15, 0, 2, 0, ede as u8]);
    }
}
