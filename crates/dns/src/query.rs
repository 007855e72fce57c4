//! A query datagram, read without allocating and without trusting it.

use crate::options::cookie_is_whole;

/// Length of the message header (RFC 1035 §4.1.1).
pub(crate) const HEADER: usize = 12;

const QR: u16 = 0x8000;
const OPCODE: u16 = 0x7800;
const RD: u16 = 0x0100;
const OPT: u16 = 41;
const MAX_NAME: usize = 255;

/// One question, with all that bears on how it is answered.
#[derive(Clone, Debug)]
pub struct Query<'m> {
    /// The client's identifier.
    pub id: u16,
    /// The second word of the header: opcode, RD and CD are the client's.
    pub flags: u16,
    /// QTYPE.
    pub qtype: u16,
    /// QCLASS.
    pub qclass: u16,
    /// What the client said of itself by EDNS.
    pub edns: Option<Edns>,
    message: &'m [u8],
    name: [u8; MAX_NAME],
    length: usize,
}

/// What an OPT record says (RFC 6891 §6.1.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Edns {
    /// Largest UDP payload the client takes, in octets.
    pub size: u16,
    /// Version; we speak 0.
    pub version: u8,
    /// The DO bit (RFC 3225).
    pub dnssec_ok: bool,
}

/// Why a message is not a question that can be looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unanswerable {
    /// No reply at all.
    Drop(DropReason),
    /// NOTIMP: another opcode than QUERY.
    NotImplemented,
    /// FORMERR.
    Malformed(Malformed),
}

/// Why nothing is sent back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropReason {
    /// Less than a header: there is no identifier to answer to.
    TooShort,
    /// It is a response itself; answering it could start a loop.
    Response,
    /// The source is no address that a reply can be sent to.
    UnsafeSource,
    /// The kernel did not take the reply.
    SendFailed,
    /// The client asks more often than `dns.client_rate` allows.
    ClientRate,
    /// Its network is sent too many responses of this kind on the WAN.
    ResponseRate,
}

/// What is wrong with a message that claims to be a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// Not exactly one question (RFC 9619).
    QuestionCount,
    /// Answer or authority records in a query.
    UnexpectedRecords,
    /// The message ends inside the question.
    TruncatedQuestion,
    /// A compression pointer in the question: there is nothing before it to point to.
    CompressedQuestion,
    /// A label of a kind that does not exist (RFC 6891 §5).
    LabelKind,
    /// A name over 255 octets (RFC 1035 §2.3.4).
    NameTooLong,
    /// The message ends inside a record.
    TruncatedRecord,
    /// A second OPT record (RFC 6891 §6.1.1).
    SecondOpt,
    /// An OPT record with an owner or with broken options.
    BadOpt,
    /// Octets after the last record.
    TrailingBytes,
}

impl<'m> Query<'m> {
    /// Reads a message as a query.
    pub fn parse(message: &'m [u8]) -> Result<Query<'m>, Unanswerable> {
        if message.len() < HEADER {
            return Err(Unanswerable::Drop(DropReason::TooShort));
        }
        let flags = word(message, 2).unwrap_or(0);
        if flags & QR != 0 {
            return Err(Unanswerable::Drop(DropReason::Response));
        }
        if flags & OPCODE != 0 {
            return Err(Unanswerable::NotImplemented);
        }
        Query::parse_body(message, flags).map_err(Unanswerable::Malformed)
    }

    fn parse_body(message: &'m [u8], flags: u16) -> Result<Query<'m>, Malformed> {
        let count = |at| word(message, at).unwrap_or(0);
        let [questions, answers, authorities, additionals] = [count(4), count(6), count(8), count(10)];
        if questions != 1 {
            return Err(Malformed::QuestionCount);
        }
        // RFC 1995 §3: an IXFR query carries one SOA record in the authority section.
        if answers != 0 || authorities > 1 {
            return Err(Malformed::UnexpectedRecords);
        }
        let length = name_length(&message[HEADER..])?;
        let end = HEADER + length;
        let cut = Malformed::TruncatedQuestion;
        let mut query = Query {
            id: word(message, 0).unwrap_or(0),
            flags,
            qtype: word(message, end).ok_or(cut)?,
            qclass: word(message, end + 2).ok_or(cut)?,
            edns: None,
            message,
            name: [0; MAX_NAME],
            length,
        };
        query.name[..length].copy_from_slice(&message[HEADER..end]);
        // Length octets are below 64, so that lowering the whole name changes letters only.
        query.name[..length].make_ascii_lowercase();
        query.edns = read_records(message, end + 4, authorities, additionals)?;
        Ok(query)
    }

    /// The name asked for, in lower-case wire form.
    pub fn name(&self) -> &[u8] {
        &self.name[..self.length]
    }

    /// The question as the client wrote it: name in its own case, type and class.
    pub fn question(&self) -> &'m [u8] {
        &self.message[HEADER..HEADER + self.length + 4]
    }

    /// Whether the client wants the name looked up elsewhere when it is not ours.
    pub fn recursion_desired(&self) -> bool {
        self.flags & RD != 0
    }
}

impl DropReason {
    /// Every reason.
    pub const ALL: [DropReason; 6] = [
        DropReason::TooShort,
        DropReason::Response,
        DropReason::UnsafeSource,
        DropReason::SendFailed,
        DropReason::ClientRate,
        DropReason::ResponseRate,
    ];

    /// The name used in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            DropReason::TooShort => "too_short",
            DropReason::Response => "response",
            DropReason::UnsafeSource => "unsafe_source",
            DropReason::SendFailed => "send_failed",
            DropReason::ClientRate => "client_rate",
            DropReason::ResponseRate => "response_rate",
        }
    }
}

impl Malformed {
    /// Every kind.
    pub const ALL: [Malformed; 10] = [
        Malformed::QuestionCount,
        Malformed::UnexpectedRecords,
        Malformed::TruncatedQuestion,
        Malformed::CompressedQuestion,
        Malformed::LabelKind,
        Malformed::NameTooLong,
        Malformed::TruncatedRecord,
        Malformed::SecondOpt,
        Malformed::BadOpt,
        Malformed::TrailingBytes,
    ];

    /// The name used in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Malformed::QuestionCount => "question_count",
            Malformed::UnexpectedRecords => "unexpected_records",
            Malformed::TruncatedQuestion => "truncated_question",
            Malformed::CompressedQuestion => "compressed_question",
            Malformed::LabelKind => "label_kind",
            Malformed::NameTooLong => "name_too_long",
            Malformed::TruncatedRecord => "truncated_record",
            Malformed::SecondOpt => "second_opt",
            Malformed::BadOpt => "bad_opt",
            Malformed::TrailingBytes => "trailing_bytes",
        }
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    let pair = bytes.get(at..at + 2)?;
    Some(u16::from_be_bytes([pair[0], pair[1]]))
}

/// Length of the uncompressed name at the start of `bytes`, its root label included.
fn name_length(bytes: &[u8]) -> Result<usize, Malformed> {
    let mut at = 0;
    loop {
        let length = usize::from(*bytes.get(at).ok_or(Malformed::TruncatedQuestion)?);
        match length {
            0 => return if at < MAX_NAME { Ok(at + 1) } else { Err(Malformed::NameTooLong) },
            1..=63 => at += 1 + length,
            0xc0.. => return Err(Malformed::CompressedQuestion),
            _ => return Err(Malformed::LabelKind),
        }
        if at >= MAX_NAME {
            return Err(Malformed::NameTooLong);
        }
    }
}

/// Walks over the records behind the question; returns what the OPT record among them says.
fn read_records(
    message: &[u8],
    mut at: usize,
    authorities: u16,
    additionals: u16,
) -> Result<Option<Edns>, Malformed> {
    let mut edns = None;
    for index in 0..u32::from(authorities) + u32::from(additionals) {
        let owner = at;
        at = skip_name(message, at)?;
        let fixed = message.get(at..at + 10).ok_or(Malformed::TruncatedRecord)?;
        let length = usize::from(u16::from_be_bytes([fixed[8], fixed[9]]));
        let data = message.get(at + 10..at + 10 + length).ok_or(Malformed::TruncatedRecord)?;
        at += 10 + length;
        if u16::from_be_bytes([fixed[0], fixed[1]]) != OPT || index < u32::from(authorities) {
            continue;
        }
        if edns.is_some() {
            return Err(Malformed::SecondOpt);
        }
        let read = Edns {
            size: u16::from_be_bytes([fixed[2], fixed[3]]),
            version: fixed[5],
            dnssec_ok: fixed[6] & 0x80 != 0,
        };
        // What the options of another version look like is not known.
        if message[owner] != 0 || (read.version == 0 && !options_are_whole(data)) {
            return Err(Malformed::BadOpt);
        }
        edns = Some(read);
    }
    if at == message.len() { Ok(edns) } else { Err(Malformed::TrailingBytes) }
}

/// The end of a possibly compressed name.
fn skip_name(message: &[u8], mut at: usize) -> Result<usize, Malformed> {
    let start = at;
    loop {
        match *message.get(at).ok_or(Malformed::TruncatedRecord)? {
            0 => return Ok(at + 1),
            length @ 1..=63 => at += 1 + usize::from(length),
            0xc0.. => return Ok(at + 2),
            _ => return Err(Malformed::LabelKind),
        }
        if at - start >= MAX_NAME {
            return Err(Malformed::NameTooLong);
        }
    }
}

fn options_are_whole(mut data: &[u8]) -> bool {
    while !data.is_empty() {
        let Some(length) = word(data, 2) else { return false };
        let Some(rest) = data.get(4 + usize::from(length)..) else { return false };
        // RFC 7873 §5.2.2: a COOKIE option of another length is a format error.
        if !cookie_is_whole(word(data, 0).unwrap_or(0), usize::from(length)) {
            return false;
        }
        data = rest;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: &[u8] =
        b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x05NgInX\x04prox\x05local\x00\x00\x01\x00\x01";

    fn with(additionals: u16, tail: &[u8]) -> Vec<u8> {
        let mut message = PLAIN.to_vec();
        message[10..12].copy_from_slice(&additionals.to_be_bytes());
        message.extend(tail);
        message
    }

    fn malformed(message: &[u8]) -> Malformed {
        match Query::parse(message) {
            Err(Unanswerable::Malformed(reason)) => reason,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_plain_query_is_read_in_both_cases() {
        let query = Query::parse(PLAIN).unwrap();
        assert_eq!(query.name(), b"\x05nginx\x04prox\x05local\x00");
        assert_eq!(query.question(), &PLAIN[12..]);
        assert_eq!((query.id, query.qtype, query.qclass), (0x1234, 1, 1));
        assert!(query.recursion_desired() && query.edns.is_none());
    }

    #[test]
    fn the_opt_record_is_found_among_others() {
        let opt = b"\x00\x00\x29\x10\x00\x00\x00\x80\x00\x00\x04\x00\x03\x00\x00";
        let other = b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x00\x00\x04\x01\x02\x03\x04";
        let message = with(2, &[&other[..], &opt[..]].concat());
        let edns = Query::parse(&message).unwrap().edns.unwrap();
        assert_eq!(edns, Edns { size: 4096, version: 0, dnssec_ok: true });
    }

    #[test]
    fn what_is_wrong_is_named() {
        let opt = b"\x00\x00\x29\x10\x00\x00\x00\x00\x00\x00\x00";
        assert_eq!(malformed(&with(2, &[&opt[..], &opt[..]].concat())), Malformed::SecondOpt);
        assert_eq!(
            malformed(&with(1, b"\x01a\x00\x00\x29\x10\x00\x00\x00\x00\x00\x00\x00")),
            Malformed::BadOpt
        );
        assert_eq!(
            malformed(&with(1, b"\x00\x00\x29\x10\x00\x00\x00\x00\x00\x00\x03\x00\x0a\x00")),
            Malformed::BadOpt
        );
        // RFC 7873 §5.2.2: "If the COOKIE option [...] is not of a legal length [...] FORMERR".
        for length in [0u8, 7, 9, 15, 41] {
            let cookie = [&[0, 10, 0, length][..], &vec![0; length.into()]].concat();
            let head = [&opt[..9], &(cookie.len() as u16).to_be_bytes()].concat();
            assert_eq!(malformed(&with(1, &[head, cookie].concat())), Malformed::BadOpt, "{length}");
        }
        assert_eq!(malformed(&with(1, &opt[..5])), Malformed::TruncatedRecord);
        assert_eq!(malformed(&with(0, b"x")), Malformed::TrailingBytes);
        assert_eq!(malformed(&PLAIN[..PLAIN.len() - 1]), Malformed::TruncatedQuestion);
        let mut pointer = PLAIN[..14].to_vec();
        pointer[12..14].copy_from_slice(b"\xc0\x0c");
        assert_eq!(malformed(&pointer), Malformed::CompressedQuestion);
        let mut questions = PLAIN.to_vec();
        questions[5] = 2;
        assert_eq!(malformed(&questions), Malformed::QuestionCount);
        let mut answers = PLAIN.to_vec();
        answers[7] = 1;
        assert_eq!(malformed(&answers), Malformed::UnexpectedRecords);
        let mut kind = PLAIN.to_vec();
        kind[12] = 0x41;
        assert_eq!(malformed(&kind), Malformed::LabelKind);
    }

    #[test]
    fn names_end_at_255_octets() {
        let question = |labels: &[usize]| {
            let mut message = PLAIN[..12].to_vec();
            for &length in labels {
                message.push(length as u8);
                message.extend(std::iter::repeat_n(b'a', length));
            }
            message.extend(b"\x00\x00\x01\x00\x01");
            message
        };
        assert_eq!(Query::parse(&question(&[63, 63, 63, 61])).unwrap().name().len(), 255);
        assert_eq!(malformed(&question(&[63, 63, 63, 62])), Malformed::NameTooLong);
        assert_eq!(Query::parse(&question(&[])).unwrap().name(), b"\0");
    }

    #[test]
    fn what_is_no_query_is_not_answered_as_one() {
        assert_eq!(Query::parse(&PLAIN[..11]).unwrap_err(), Unanswerable::Drop(DropReason::TooShort));
        let mut response = PLAIN.to_vec();
        response[2] |= 0x80;
        assert_eq!(Query::parse(&response).unwrap_err(), Unanswerable::Drop(DropReason::Response));
        let mut update = PLAIN.to_vec();
        update[2] = 0x28;
        assert_eq!(Query::parse(&update).unwrap_err(), Unanswerable::NotImplemented);
    }
}
