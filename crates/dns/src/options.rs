//! The EDNS options that a reply answers whatever it says: cookies and keepalive. They are found in the query and
//! added to the finished reply, so that whoever makes replies need not know of them.

use std::net::IpAddr;

use proximity_table::Timestamp;

use crate::answer::Transport;
use crate::cookies::{Cookies, Offered};
use crate::query::HEADER;
use crate::reply::OUR_UDP_SIZE;

const COOKIE: u16 = 10;
const KEEPALIVE: u16 = 11;
const OPT: u16 = 41;
/// An OPT record without options.
const OPT_LENGTH: usize = 11;

/// What a query asks of us in options.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Options {
    pub cookie: Option<Offered>,
    keepalive: bool,
    /// Octets that the client takes in a datagram.
    size: u16,
}

impl Options {
    /// Reads the options of a message; none of one that is no query. The OPT record is where clients put it, last.
    pub fn read(message: &[u8]) -> Options {
        // One look tells most queries apart: there is no additional record.
        if message.len() < HEADER + OPT_LENGTH || message[10..12] == [0, 0] {
            return Options::default();
        }
        Options::behind_question(message).unwrap_or_default()
    }

    fn behind_question(message: &[u8]) -> Option<Options> {
        let mut at = HEADER;
        while let length @ 1..=63 = *message.get(at)? {
            at += 1 + usize::from(length);
        }
        let opt = message.get(at + 5..)?;
        let data = opt.get(OPT_LENGTH..)?;
        let is_opt = opt[0] == 0 && opt[1..3] == OPT.to_be_bytes() && message[6..10] == [0; 4];
        // Options of another version than 0 are not known.
        let is_known = opt[6] == 0 && usize::from(u16::from_be_bytes([opt[9], opt[10]])) == data.len();
        (is_opt && is_known).then(|| {
            let mut options = Options { size: u16::from_be_bytes([opt[3], opt[4]]), ..Options::default() };
            each(data, |code, value| match code {
                COOKIE => options.cookie = options.cookie.or(offered(value)),
                KEEPALIVE => options.keepalive = true,
                _ => {}
            });
            options
        })
    }

    /// Whether there is nothing to answer.
    pub fn is_empty(&self) -> bool {
        self.cookie.is_none() && !self.keepalive
    }

    /// Adds the answers to a reply that ends with an OPT record, as far as the client has room. `idle` is how long
    /// a connection may be silent, in seconds.
    pub fn answer(
        &self,
        reply: &mut Vec<u8>,
        (client, transport): (IpAddr, Transport),
        cookies: &Cookies,
        now: Timestamp,
        idle: u16,
    ) {
        let room = match transport {
            Transport::Tcp => usize::from(u16::MAX),
            Transport::Udp => usize::from(self.size.clamp(512, OUR_UDP_SIZE)),
        };
        if let Some(offered) = self.cookie {
            let mut value = [0; 24];
            value[..8].copy_from_slice(&offered.client);
            value[8..].copy_from_slice(&cookies.make(offered.client, client, now));
            append(reply, COOKIE, &value, room);
        }
        // RFC 7828 §3.2.2: over UDP it means nothing.
        if self.keepalive && transport == Transport::Tcp {
            append(reply, KEEPALIVE, &idle.saturating_mul(10).to_be_bytes(), room);
        }
    }
}

/// Whether a COOKIE option has a length that it can have (RFC 7873 §4).
pub(crate) fn cookie_is_whole(code: u16, length: usize) -> bool {
    code != COOKIE || length == 8 || (16..=40).contains(&length)
}

fn offered(value: &[u8]) -> Option<Offered> {
    let (client, server) = value.split_first_chunk::<8>()?;
    Some(Offered { client: *client, server: server.try_into().ok() })
}

fn each(mut data: &[u8], mut see: impl FnMut(u16, &[u8])) {
    while let Some((&[a, b, c, d], rest)) = data.split_first_chunk::<4>() {
        let length = usize::from(u16::from_be_bytes([c, d]));
        let Some((value, behind)) = rest.split_at_checked(length) else { return };
        see(u16::from_be_bytes([a, b]), value);
        data = behind;
    }
}

/// Adds an option to the OPT record at the end of a reply, if there is one and there is room.
fn append(reply: &mut Vec<u8>, code: u16, value: &[u8], room: usize) {
    let added = 4 + value.len();
    let Some(at) = last_opt(reply).filter(|_| reply.len() + added <= room) else { return };
    let length_at = at + OPT_LENGTH - 2;
    let length = usize::from(u16::from_be_bytes([reply[length_at], reply[length_at + 1]])) + added;
    reply[length_at..length_at + 2].copy_from_slice(&(length as u16).to_be_bytes());
    reply.extend_from_slice(&code.to_be_bytes());
    reply.extend_from_slice(&(value.len() as u16).to_be_bytes());
    reply.extend_from_slice(value);
}

/// Where the OPT record starts that a reply ends with. Replies are our own, and whole.
fn last_opt(reply: &[u8]) -> Option<usize> {
    let count = |at| reply.get(at..at + 2).map(|pair| usize::from(u16::from_be_bytes([pair[0], pair[1]])));
    let records = count(6)? + count(8)? + count(10)?;
    // Without further options it is the last eleven octets, whatever comes before.
    let tail = reply.len().checked_sub(OPT_LENGTH)?;
    if count(10)? > 0 && reply[tail..tail + 3] == [0, 0, OPT as u8] && reply[tail + 9..] == [0, 0] {
        return Some(tail);
    }
    let mut at = HEADER;
    for _ in 0..count(4)? {
        at = skip_name(reply, at)? + 4;
    }
    let mut last = None;
    for _ in 0..records {
        let fixed = skip_name(reply, at)?;
        let length = usize::from(u16::from_be_bytes([*reply.get(fixed + 8)?, *reply.get(fixed + 9)?]));
        let is_opt = reply[fixed..fixed + 2] == OPT.to_be_bytes();
        last = is_opt.then_some(at);
        at = fixed + 10 + length;
    }
    last.filter(|_| at == reply.len())
}

fn skip_name(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *message.get(at)? {
            0 => return Some(at + 1),
            length @ 1..=63 => at += 1 + usize::from(length),
            _ => return Some(at + 2),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUESTION: &[u8] = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x01\x01a\x00\x00\x01\x00\x01";
    const HEAD: &[u8] = b"\x00\x00\x29\x04\xd0\x00\x00\x00\x00";

    fn message(options: &[u8]) -> Vec<u8> {
        [QUESTION, HEAD, &(options.len() as u16).to_be_bytes(), options].concat()
    }

    #[test]
    fn options_are_found_among_others() {
        let wire = message(b"\x00\x03\x00\x00\x00\x0a\x00\x0812345678\x00\x0b\x00\x00");
        let options = Options::read(&wire);
        assert_eq!(options.cookie, Some(Offered { client: *b"12345678", server: None }));
        assert!(options.keepalive && options.size == 1232 && !options.is_empty());
        let wire = message(b"\x00\x0a\x00\x1812345678abcdefghijklmnop");
        assert_eq!(Options::read(&wire).cookie.unwrap().server, Some(*b"abcdefghijklmnop"));
        // A server cookie of another make is none of ours.
        let wire = message(b"\x00\x0a\x00\x1012345678abcdefgh");
        assert_eq!(Options::read(&wire).cookie.unwrap().server, None);
    }

    #[test]
    fn scraps_have_no_options() {
        let wire = message(b"\x00\x0a\x00\x0812345678");
        for end in 0..wire.len() {
            assert!(Options::read(&wire[..end]).is_empty(), "{end}");
        }
        assert!(Options::read(&message(b"\x00\x0a\x00\x09")).is_empty());
    }

    /// The option goes into the OPT record that is there, with whatever it already says, and nowhere else.
    #[test]
    fn answers_are_added_to_the_last_record() {
        for before in [&b""[..], b"\x00\x0f\x00\x02\x00\x12"] {
            let mut reply = message(before);
            append(&mut reply, KEEPALIVE, &[0, 100], 1232);
            assert_eq!(reply, message(&[before, b"\x00\x0b\x00\x02\x00\x64"].concat()));
        }
        let full = message(b"");
        let mut reply = full.clone();
        append(&mut reply, KEEPALIVE, &[0, 100], full.len() + 5);
        assert_eq!(reply, full, "there is no room");
        let mut plain = QUESTION.to_vec();
        plain[11] = 0;
        let mut reply = plain.clone();
        append(&mut reply, KEEPALIVE, &[0, 100], 1232);
        assert_eq!(reply, plain, "there is no OPT record");
    }
}
