use std::borrow::Cow;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Instant;

use crate::Reason;
use crate::access::{Line, Shown, wants};
use crate::caller::Caller;
use crate::clock::as_micros;
use crate::http1::RequestHead;
use crate::pool::Lane;
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
    /// Who asked, as far as somebody vouches for it.
    pub user: Vec<u8>,
    /// The way to the backend that answers, or that was tried last.
    pub lane: Option<Rc<Lane>>,
    /// Why we answered ourselves, or why the answer broke off.
    pub reason: Option<Reason>,
    /// Whether the answer broke off after its head.
    pub aborted: bool,
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
            user: Vec::new(),
            lane: None,
            reason: None,
            aborted: false,
        }
    }

    /// Counts and notes that the answer breaks off.
    pub fn break_off(&mut self, reason: Reason) {
        self.worker.counters.stopped_by(reason, 1);
        self.reason = Some(reason);
        self.aborted = true;
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
        // A client may leave whenever it likes; anything else that breaks an answer off is an error, whatever the status.
        let is_broken = self.aborted && self.reason != Some(Reason::ClientGone);
        let judged = if is_broken { 0 } else { status };
        if !wants(judged, policy, &settings.log, worker.entropy()) {
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
            user: &self.user,
            duration_micros: duration,
            size: self.sent,
            status,
            backend: self.lane.as_ref().map(|lane| lane.host.as_str()),
            reason: self.reason,
            aborted: self.aborted,
        });
    }
}
