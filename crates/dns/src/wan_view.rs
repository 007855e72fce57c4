//! What the WAN sees of our zones: the names of apps, all at the appliance's own address there.

use std::net::Ipv4Addr;

use proximity_table::{Timestamp, World};

use crate::answer::{
    A, ANY, Asker, Lookup, NEGATIVE_TTL, Outcome, empty_zone, limit, to_no_query, unanswerable,
};
use crate::options::Options;
use crate::query::Query;
use crate::reply::{QUESTION, Rcode, Reply, Section};

/// Answers one message as somebody on the WAN gets it: a name that the proxy serves has the appliance's `address`
/// there, and everything else is refused. Nobody else is asked.
///
/// `out` is emptied and then holds the reply, if there is one.
pub fn answer_on_wan(
    world: &World,
    address: Ipv4Addr,
    asker: Asker,
    message: &[u8],
    out: &mut Vec<u8>,
) -> Outcome {
    let query = match Query::parse(message) {
        Ok(query) => query,
        Err(unanswerable) => return to_no_query(unanswerable, message, out),
    };
    let mut reply = Reply::to(&query, limit(asker.transport, query.edns), false, out);
    if let Some(rcode) = unanswerable(&query) {
        return Outcome::Answered(reply.finish(rcode));
    }
    let mut text = [0; 256];
    let is_app = host_text(query.name(), &mut text).is_some_and(|host| world.route(host).is_some());
    if !is_app {
        return Outcome::Answered(reply.finish(Rcode::Refused));
    }
    reply.set_authoritative();
    if matches!(query.qtype, A | ANY) {
        reply.record(Section::Answer, QUESTION, A, NEGATIVE_TTL, &address.octets());
    } else {
        match world.zones.apex_of(query.name()) {
            Some(apex) => {
                let now = Timestamp::default();
                Lookup { world, now, query: &query }.soa(&mut reply, Section::Authority, apex);
            }
            None => empty_zone(&mut reply, query.name()),
        }
    }
    Outcome::Answered(reply.finish(Rcode::NoError))
}

/// The reply to whoever may be one of a flood: nothing but a sign to come back, over TCP, or with the cookie that is
/// in the reply (RFC 7873 §5.2.3).
pub(crate) fn slip(asker: Asker, message: &[u8], out: &mut Vec<u8>) -> Outcome {
    let query = match Query::parse(message) {
        Ok(query) => query,
        // It has its few octets already.
        Err(unanswerable) => return to_no_query(unanswerable, message, out),
    };
    let mut reply = Reply::to(&query, limit(asker.transport, query.edns), false, out);
    if Options::read(message).cookie.is_some() {
        return Outcome::Answered(reply.finish(Rcode::BadCookie));
    }
    reply.truncate();
    Outcome::Answered(reply.finish(Rcode::NoError))
}

/// A lower-case wire name as text without final dot; `None` when it is no host name.
fn host_text<'t>(name: &[u8], text: &'t mut [u8; 256]) -> Option<&'t str> {
    let (mut at, mut end) = (0, 0);
    while name[at] != 0 {
        let label = &name[at + 1..at + 1 + usize::from(name[at])];
        if label.iter().any(|byte| !(byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'*'))) {
            return None;
        }
        if end > 0 {
            text[end] = b'.';
            end += 1;
        }
        text[end..end + label.len()].copy_from_slice(label);
        end += label.len();
        at += 1 + label.len();
    }
    std::str::from_utf8(&text[..end]).ok().filter(|text| !text.is_empty())
}
