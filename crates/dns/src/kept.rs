//! An answer of an upstream in wire form, to be put behind the question of whoever asks.
//!
//! The name of a question has the same length in whatever case it is written, so that all that stands behind it stands
//! at the same place in every reply, and compression pointers into the question hold.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering::Relaxed};

use hickory_proto::op::{Message, OpCode, Query, ResponseCode};
use hickory_proto::serialize::binary::{BinEncodable, BinEncoder};
use proximity_table::Timestamp;

use crate::ede::{Ede, opt_length, put_opt};
use crate::foreign::{Foreign, parts};
use crate::query::HEADER;
use crate::reply::{Rcode, TC};
use crate::said::Said;

/// TTL of an answer that is given out although its time is over, in seconds (RFC 8767 §4).
const STALE_TTL: u32 = 30;
/// A name that was asked for so often again is worth being fetched before its time is over.
const POPULAR: u8 = 2;
const AD: u16 = 0x0020;

/// An answer that is kept.
pub(crate) struct Kept {
    /// What it is kept under.
    pub key: Arc<[u8]>,
    pub rcode: Rcode,
    pub ede: Option<Ede>,
    stored: Timestamp,
    /// Seconds from then until its time is over.
    lifetime: u32,
    authentic: bool,
    counts: [u16; 3],
    /// All that stands behind the question.
    body: Box<[u8]>,
    /// Where in the body TTLs stand.
    ttls: Box<[u16]>,
    /// How often it was given out again, up to [`POPULAR`].
    hits: AtomicU8,
    refreshing: AtomicBool,
}

/// How old an answer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Age {
    /// So many seconds, and it still holds.
    Fresh(u32),
    /// Its time is over since so many seconds.
    Stale(u32),
}

impl Kept {
    /// Encodes what an upstream said; `None` when it is too long for any message.
    pub fn of(said: &Said, key: &[u8], query: &Query, now: Timestamp) -> Option<Kept> {
        let mut message = Message::response(0, OpCode::Query);
        message.add_query(query.clone());
        message.add_answers(said.answers.iter().cloned());
        message.add_authorities(said.authority.iter().cloned());
        let mut wire = Vec::with_capacity(512);
        message.emit(&mut BinEncoder::new(&mut wire)).ok()?;
        let body_at = HEADER + parts(key).0.len() + 4;
        if wire.len() + opt_length(Some(Ede::Other)) > usize::from(u16::MAX) {
            return None;
        }
        let count = |at: usize| Some(u16::from_be_bytes([*wire.get(at)?, *wire.get(at + 1)?]));
        let counts = [count(6)?, count(8)?, count(10)?];
        let body = wire.get(body_at..)?;
        let ttls = places(body, counts.iter().map(|count| usize::from(*count)).sum())?;
        let rcode = match said.code {
            ResponseCode::NXDomain => Rcode::NxDomain,
            _ => Rcode::NoError,
        };
        Some(Kept {
            key: key.into(),
            rcode,
            ede: said.ede,
            stored: now,
            lifetime: said.lifetime,
            authentic: said.authentic,
            counts,
            body: body.into(),
            ttls: ttls.into(),
            hits: AtomicU8::new(0),
            refreshing: AtomicBool::new(false),
        })
    }

    /// Octets that it takes.
    pub fn size(&self) -> usize {
        self.key.len() + self.body.len() + 2 * self.ttls.len()
    }

    /// Whether it is worth being kept.
    pub fn lasts(&self) -> bool {
        self.lifetime > 0
    }

    /// How old it is. When the clock has been set back, its time is over.
    pub fn age(&self, now: Timestamp) -> Age {
        let lifetime = u64::from(self.lifetime);
        match now.0.checked_sub(self.stored.0) {
            Some(age) if age < lifetime => Age::Fresh(age as u32),
            Some(age) => Age::Stale(u32::try_from(age - lifetime).unwrap_or(u32::MAX)),
            None => Age::Stale(0),
        }
    }

    /// Notes that it is given out again. True, once, when it is popular and its time nearly over: then it is to be
    /// fetched again.
    pub fn is_due(&self, age: u32) -> bool {
        if self.hits.load(Relaxed) < POPULAR {
            self.hits.fetch_add(1, Relaxed);
            return false;
        }
        let left = self.lifetime - age.min(self.lifetime);
        left <= self.lifetime / 10 && !self.refreshing.swap(true, Relaxed)
    }

    /// Whether a newer one has been asked for.
    pub fn is_being_replaced(&self) -> bool {
        self.refreshing.load(Relaxed)
    }

    /// Completes a reply that consists of header and question.
    pub fn write(&self, out: &mut Vec<u8>, foreign: &Foreign, age: Age) -> Rcode {
        let ede = match (age, self.rcode) {
            (Age::Fresh(_), _) => self.ede,
            (Age::Stale(_), Rcode::NxDomain) => Some(Ede::StaleNxDomain),
            (Age::Stale(_), _) => Some(Ede::StaleAnswer),
        };
        let opt = if foreign.edns.is_some() { opt_length(ede) } else { 0 };
        let body_at = out.len();
        if body_at + self.body.len() + opt > foreign.limit {
            // RFC 6891 §7: the OPT record stays, so that the client sees why it should come back over TCP.
            return end(out, foreign, [0; 3], self.rcode, TC, ede);
        }
        out.extend_from_slice(&self.body);
        for at in &self.ttls {
            let at = body_at + usize::from(*at);
            if let Some(place) =
                out.get_mut(at..at + 4).and_then(|place| <&mut [u8; 4]>::try_from(place).ok())
            {
                let ttl = match age {
                    Age::Fresh(age) => u32::from_be_bytes(*place).saturating_sub(age),
                    Age::Stale(_) => STALE_TTL,
                };
                *place = ttl.to_be_bytes();
            }
        }
        let authentic = self.authentic && foreign.wants_authentic() && matches!(age, Age::Fresh(_));
        end(out, foreign, self.counts, self.rcode, if authentic { AD } else { 0 }, ede)
    }

    /// The whole message, for whoever needs its records one by one.
    pub fn message(&self, question: &[u8], foreign: &Foreign, age: Age) -> Option<Message> {
        let mut wire = vec![0; HEADER];
        wire[5] = 1;
        wire.extend_from_slice(question);
        let foreign = Foreign { edns: None, limit: usize::from(u16::MAX), ..foreign.clone() };
        self.write(&mut wire, &foreign, age);
        Message::from_vec(&wire).ok()
    }
}

/// A reply without records to what `out` holds: header and question, or the aliases that led out of our zones.
pub(crate) fn failure(out: &mut Vec<u8>, foreign: &Foreign, rcode: Rcode, ede: Option<Ede>) -> Rcode {
    let count = |at: usize| u16::from_be_bytes([out[at], out[at + 1]]);
    let counts = if out.len() < HEADER { [0; 3] } else { [count(6), count(8), count(10)] };
    end(out, foreign, counts, rcode, 0, ede)
}

/// Writes the OPT record and what the header does not say yet.
pub(crate) fn end(
    out: &mut Vec<u8>,
    foreign: &Foreign,
    mut counts: [u16; 3],
    rcode: Rcode,
    flags: u16,
    ede: Option<Ede>,
) -> Rcode {
    if foreign.edns.is_some() {
        put_opt(out, rcode, foreign.dnssec_ok(), ede);
        counts[2] += 1;
    }
    if let Some(header) = out.first_chunk_mut::<HEADER>() {
        let flags = u16::from_be_bytes([header[2], header[3]]) | flags | rcode.low();
        header[2..4].copy_from_slice(&flags.to_be_bytes());
        for (place, count) in header[6..].chunks_exact_mut(2).zip(counts) {
            place.copy_from_slice(&count.to_be_bytes());
        }
    }
    rcode
}

/// Where TTLs stand in `count` records.
fn places(body: &[u8], count: usize) -> Option<Vec<u16>> {
    let mut ttls = Vec::with_capacity(count);
    let mut at = 0;
    for _ in 0..count {
        loop {
            match *body.get(at)? {
                0 => break at += 1,
                0xc0.. => break at += 2,
                length => at += 1 + usize::from(length),
            }
        }
        let fixed = body.get(at..at + 10)?;
        ttls.push(u16::try_from(at + 4).ok()?);
        at += 10 + usize::from(u16::from_be_bytes([fixed[8], fixed[9]]));
    }
    (at == body.len()).then_some(ttls)
}
