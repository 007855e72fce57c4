use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Defines [`Reason`] with the word and the status of each.
macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident, $word:literal, $status:literal;)*) => {
        /// Why a request or a connection was not carried to a backend, or was cut on the way. The set is closed:
        /// it labels counters.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Reason { $($(#[$doc])* $name,)* }

        impl Reason {
            /// Every reason, in the order of its number.
            pub const ALL: [Reason; [$($word),*].len()] = [$(Reason::$name),*];

            /// The word that labels its counter.
            pub fn as_str(self) -> &'static str {
                match self { $(Reason::$name => $word,)* }
            }

            /// The status that a client gets, where it gets an answer.
            pub fn status(self) -> u16 {
                match self { $(Reason::$name => $status,)* }
            }
        }
    };
}

reasons! {
    /// HTTP/1.1 without `Host`.
    MissingHost, "missing_host", 400;
    /// More than one `Host`.
    DuplicateHost, "duplicate_host", 400;
    /// A `Host` that is no `host[:port]`.
    InvalidHost, "invalid_host", 400;
    /// A request target that is neither a path nor plain `http(s)://host/…`.
    InvalidTarget, "invalid_target", 400;
    /// A path that two servers could understand differently.
    PathRefused, "path_refused", 400;
    /// The method CONNECT: this is no forward proxy.
    ConnectMethod, "connect_method", 405;
    /// Content-Length beside Transfer-Encoding, twice, or not a number.
    AmbiguousLength, "ambiguous_length", 400;
    /// A transfer coding other than `chunked`.
    TransferCoding, "transfer_coding", 501;
    /// A line that ends in a bare line feed.
    BareLineFeed, "bare_line_feed", 400;
    /// A header continued on the next line.
    FoldedHeader, "folded_header", 400;
    /// Whitespace between a field's name and its colon.
    SpaceBeforeColon, "space_before_colon", 400;
    /// A chunk whose size cannot be read.
    BadChunk, "bad_chunk", 400;
    /// More chunk extensions than a body may have.
    ChunkExtensions, "chunk_extensions", 400;
    /// An expectation other than `100-continue`.
    Expectation, "expectation", 417;
    /// A request head over the limit.
    HeadTooLarge, "head_too_large", 431;
    /// A request line that is longer than a head may be.
    UriTooLong, "uri_too_long", 414;
    /// A request head that did not arrive in time.
    HeadTimeout, "head_timeout", 408;
    /// A connection that had to begin with a PROXY protocol header and did not.
    ProxyHeader, "proxy_header", 400;
    /// A trusted proxy whose account of the client cannot be read.
    ForwardedHeader, "forwarded_header", 400;
    /// Whatever else the parser refused.
    Malformed, "malformed", 400;
    /// More connections than a data thread takes.
    ConnectionLimit, "connection_limit", 503;
    /// More connections than one client may have.
    ClientConnections, "client_connections", 429;
    /// More requests than one client may send.
    RateLimited, "rate_limited", 429;
    /// HTTP/2 frames of the kind that only an attack sends so many of.
    Flood, "flood", 400;
    /// A client that cancels more HTTP/2 requests than it takes answers.
    CancelFlood, "cancel_flood", 400;
    /// The kernel gave no connection (out of descriptors or memory).
    AcceptFailed, "accept_failed", 503;
    /// No vhost of that name.
    UnknownHost, "unknown_host", 404;
    /// The vhost is not for this client.
    Forbidden, "forbidden", 403;
    /// No name and password, or wrong ones.
    Unauthorized, "unauthorized", 401;
    /// More passwords to check than there is time for.
    AuthBusy, "auth_busy", 503;
    /// The app that is asked who may pass gave no answer.
    AuthUnavailable, "auth_unavailable", 503;
    /// A request body over the limit.
    BodyTooLarge, "body_too_large", 413;
    /// OPTIONS or TRACE that nobody behind us may get: we are the last, and offer neither.
    MaxForwards, "max_forwards", 405;
    /// A request body that stopped coming, or came at less than the least rate.
    UploadSlow, "upload_slow", 408;
    /// The app holds no lease.
    Stopped, "stopped", 503;
    /// The app has not answered a probe yet.
    Starting, "starting", 503;
    /// The administrator disabled the vhost.
    Disabled, "disabled", 503;
    /// The vhost asks for header edits or has users that cannot be.
    Misconfigured, "misconfigured", 500;
    /// Every backend is at its limit, and so is the queue.
    QueueFull, "queue_full", 503;
    /// No backend became free in time.
    QueueTimeout, "queue_timeout", 503;
    /// No backend took the connection.
    BackendRefused, "backend_refused", 502;
    /// No backend took the connection in time.
    BackendTimedOut, "backend_timed_out", 504;
    /// The TLS handshake with the backend failed.
    BackendTls, "backend_tls", 502;
    /// The backend's certificate is not good, and it was to be.
    BackendUntrusted, "backend_untrusted", 502;
    /// The backend closed before the response head.
    BackendBroke, "backend_broke", 502;
    /// The backend's answer was not HTTP.
    BackendNonsense, "backend_nonsense", 502;
    /// The backend took the request and did not answer in time.
    BackendSlow, "backend_slow", 504;
    /// The backend stopped in the middle of a response.
    BackendCut, "backend_cut", 502;
    /// The backend of an upgraded connection is no longer the vhost's.
    BackendLeft, "backend_left", 502;
    /// The exchange took longer than it may as a whole.
    TotalTimeout, "total_timeout", 504;
    /// The client did not take its answer, or took it at less than the least rate.
    ClientSlow, "client_slow", 408;
    /// The client left before the response was complete.
    ClientGone, "client_gone", 499;
    /// The appliance stops, and this did not end in time.
    Stopping, "stopping", 503;
    /// The writer of the access log is behind: lines were dropped.
    LogBehind, "log_behind", 500;
    /// A request field whose name backends could read as another's: the request went on without it.
    HeaderName, "header_name", 400;
}

impl Reason {
    /// Whether it tells of a backend that another one may make good.
    pub fn is_of_backend(self) -> bool {
        matches!(
            self,
            Reason::BackendRefused
                | Reason::BackendTimedOut
                | Reason::BackendTls
                | Reason::BackendUntrusted
                | Reason::BackendBroke
                | Reason::BackendNonsense
                | Reason::BackendSlow
        )
    }
}

/// Something for each reason, in the order of [`Reason::ALL`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ByReason<T>(pub [T; Reason::ALL.len()]);

impl<T: Default> Default for ByReason<T> {
    fn default() -> ByReason<T> {
        ByReason(std::array::from_fn(|_| T::default()))
    }
}

/// Counters of one data thread. Only that thread writes, so adding needs no locked instruction.
#[derive(Debug, Default)]
pub struct Counters {
    responses: [AtomicU64; 6],
    reasons: ByReason<AtomicU64>,
    connections: AtomicU64,
    open: AtomicU64,
    tunnels: AtomicU64,
    upstream_connects: AtomicU64,
    upstream_reuses: AtomicU64,
    retries: AtomicU64,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
}

/// What some data threads have counted since they started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Requests by the class of their answer: `[0]` is none sent, `[2]` is 2xx.
    pub responses: [u64; 6],
    /// Requests and connections by what stopped them, in the order of [`Reason::ALL`].
    pub reasons: ByReason<u64>,
    /// Client connections ever taken.
    pub connections: u64,
    /// Client connections open now.
    pub open: u64,
    /// Upgraded connections (WebSocket) open now.
    pub tunnels: u64,
    /// Connections opened to backends.
    pub upstream_connects: u64,
    /// Requests sent on a kept backend connection.
    pub upstream_reuses: u64,
    /// Requests sent again after a kept connection turned out dead.
    pub retries: u64,
    /// Body bytes received from clients.
    pub bytes_in: u64,
    /// Body bytes sent to clients.
    pub bytes_out: u64,
}

impl Counters {
    /// The present figures.
    pub fn snapshot(&self) -> Totals {
        let read = |counter: &AtomicU64| counter.load(Relaxed);
        Totals {
            responses: std::array::from_fn(|at| read(&self.responses[at])),
            reasons: ByReason(std::array::from_fn(|at| read(&self.reasons.0[at]))),
            connections: read(&self.connections),
            open: read(&self.open),
            tunnels: read(&self.tunnels),
            upstream_connects: read(&self.upstream_connects),
            upstream_reuses: read(&self.upstream_reuses),
            retries: read(&self.retries),
            bytes_in: read(&self.bytes_in),
            bytes_out: read(&self.bytes_out),
        }
    }

    pub(crate) fn response(&self, status: u16) {
        add(&self.responses[usize::from(status / 100).min(5)], 1);
    }

    pub(crate) fn stopped_by(&self, reason: Reason, count: u64) {
        add(&self.reasons.0[reason as usize], count);
    }

    pub(crate) fn connection_opened(&self) {
        add(&self.connections, 1);
        add(&self.open, 1);
    }

    pub(crate) fn connection_closed(&self) {
        sub(&self.open);
    }

    pub(crate) fn tunnel_opened(&self) {
        add(&self.tunnels, 1);
    }

    pub(crate) fn tunnel_closed(&self) {
        sub(&self.tunnels);
    }

    pub(crate) fn upstream_connected(&self) {
        add(&self.upstream_connects, 1);
    }

    pub(crate) fn upstream_reused(&self) {
        add(&self.upstream_reuses, 1);
    }

    pub(crate) fn retried(&self) {
        add(&self.retries, 1);
    }

    pub(crate) fn bytes(&self, received: u64, sent: u64) {
        add(&self.bytes_in, received);
        add(&self.bytes_out, sent);
    }
}

impl Totals {
    /// The sum of what several threads counted.
    pub fn sum<'a>(threads: impl IntoIterator<Item = &'a Counters>) -> Totals {
        threads.into_iter().map(Counters::snapshot).fold(Totals::default(), |mut sum, one| {
            sum.responses.iter_mut().zip(one.responses).for_each(|(to, from)| *to += from);
            sum.reasons.0.iter_mut().zip(one.reasons.0).for_each(|(to, from)| *to += from);
            sum.connections += one.connections;
            sum.open += one.open;
            sum.tunnels += one.tunnels;
            sum.upstream_connects += one.upstream_connects;
            sum.upstream_reuses += one.upstream_reuses;
            sum.retries += one.retries;
            sum.bytes_in += one.bytes_in;
            sum.bytes_out += one.bytes_out;
            sum
        })
    }

    /// How often `reason` stopped something.
    pub fn of(&self, reason: Reason) -> u64 {
        self.reasons.0[reason as usize]
    }
}

/// Adds where only one thread writes.
pub(crate) fn add(counter: &AtomicU64, count: u64) {
    counter.store(counter.load(Relaxed).wrapping_add(count), Relaxed);
}

fn sub(counter: &AtomicU64) {
    counter.store(counter.load(Relaxed).saturating_sub(1), Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_stands_at_its_number_and_has_its_own_word() {
        let mut words = std::collections::BTreeSet::new();
        for (at, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, at);
            assert!(words.insert(reason.as_str()));
        }
    }

    #[test]
    fn totals_are_the_sum_of_the_threads() {
        let (one, two) = (Counters::default(), Counters::default());
        one.response(200);
        two.response(204);
        two.response(999);
        two.stopped_by(Reason::UnknownHost, 2);
        let totals = Totals::sum([&one, &two]);
        assert_eq!(totals.responses, [0, 0, 2, 0, 0, 1]);
        assert_eq!(totals.of(Reason::UnknownHost), 2);
    }
}
