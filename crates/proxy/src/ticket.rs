use std::borrow::Cow;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Instant;

use crate::access::{Line, Shown, wants};
use crate::caller::Caller;
use crate::clock::as_micros;
use crate::http1::RequestHead;
use crate::site::Site;
use crate::worker::Worker;

/// nginx's word for a client that left before it got an answer.
const CLIENT_CLOSED_REQUEST: u16 = 499;

/// One request from its arrival to the end of its answer. When it is dropped the request is over: it is
/// counted and logged, however it ended.
pub struct Ticket<'a> {
    pub worker: &'a Rc<Worker>,
    /// The fields of the client in the log.
    pub log_prefix: Cow<'a, str>,
    /// Who asks: the other end of the connection, or whom a trusted proxy asks for.
    pub client: IpAddr,
    pub head: &'a RequestHead,
    /// The octets that `head` speaks of.
    pub bytes: &'a [u8],
    /// The authority that the client asked for, as it was written.
    pub host: &'a [u8],
    /// Whose request it is, when it is anybody's.
    pub site: Option<Rc<Site>>,
    pub start: Instant,
    /// Status of the answer; 0 as long as there is none.
    pub status: u16,
    /// Octets of the request's body.
    pub received: u64,
    /// Octets of the response's body.
    pub sent: u64,
}

impl<'a> Ticket<'a> {
    pub fn new(caller: &'a Caller, head: &'a RequestHead, bytes: &'a [u8]) -> Ticket<'a> {
        Ticket {
            worker: &caller.worker,
            log_prefix: Cow::Borrowed(&caller.log_prefix),
            client: caller.peer.ip(),
            head,
            bytes,
            host: head.host.map_or(&[], |host| host.in_(bytes)),
            site: None,
            start: Instant::now(),
            status: 0,
            received: 0,
            sent: 0,
        }
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        let worker = self.worker;
        let site = self.site.take();
        let duration = as_micros(self.start.elapsed());
        worker.counters.bytes(self.received, self.sent);
        worker.counters.response(self.status);
        let app = site.as_ref().map_or(&worker.nobody, |site| &site.counters);
        app.observe(self.status, self.received, self.sent, duration);
        let status = if self.status == 0 { CLIENT_CLOSED_REQUEST } else { self.status };
        let policy = site.as_ref().map_or_else(Default::default, |site| site.policy().log);
        let settings = worker.settings();
        if !wants(status, policy, &settings.log, worker.entropy()) {
            return;
        }
        worker.log(site.as_ref().map(|site| &site.route), |clock| Line {
            at_micros: clock.unix_micros(self.start),
            client: &self.log_prefix,
            version: self.head.version,
            method: self.head.method_text.in_(self.bytes),
            host: self.host,
            uri: self.head.target.in_(self.bytes),
            shown: Shown::of(self.head, self.bytes),
            redact_query: settings.log.redact_query,
            received: self.received,
            duration_micros: duration,
            size: self.sent,
            status,
        });
    }
}
