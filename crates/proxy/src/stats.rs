use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Why a request or a connection was not carried to a backend, or was cut on the way. The set is closed:
/// it labels counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Reason {
    /// HTTP/1.1 without `Host`.
    MissingHost,
    /// More than one `Host`.
    DuplicateHost,
    /// A `Host` that is no `host[:port]`.
    InvalidHost,
    /// An absolute request target that is not plain `http(s)://host/…`.
    InvalidTarget,
    /// The method CONNECT: this is no forward proxy.
    ConnectMethod,
    /// Content-Length beside Transfer-Encoding, twice, or not a number.
    AmbiguousLength,
    /// A transfer coding other than `chunked`.
    TransferCoding,
    /// A line that ends in a bare line feed.
    BareLineFeed,
    /// A header continued on the next line.
    FoldedHeader,
    /// A chunk whose size cannot be read.
    BadChunk,
    /// A request head over the limit.
    HeadTooLarge,
    /// A request head that did not arrive in time.
    HeadTimeout,
    /// Whatever else the parser refused.
    Malformed,
    /// More connections than a data thread takes.
    ConnectionLimit,
    /// The kernel gave no connection (out of descriptors or memory).
    AcceptFailed,
    /// No vhost of that name.
    UnknownHost,
    /// The app holds no lease.
    Stopped,
    /// The app has not answered a probe yet.
    Starting,
    /// The administrator disabled the vhost.
    Disabled,
    /// No backend took the connection.
    BackendRefused,
    /// No backend took the connection in time.
    BackendTimedOut,
    /// The backend closed or answered nonsense before the response head.
    BackendBroke,
    /// The backend stopped in the middle of a response.
    BackendCut,
    /// A backend protocol that is not spoken yet.
    BackendProtocol,
    /// The client left before the response was complete.
    ClientGone,
    /// The writer of the access log is behind: lines were dropped.
    LogBehind,
    /// A request field whose name backends could read as another's: the request went on without it.
    HeaderName,
    /// A path that backends could read as another one.
    PathRefused,
    /// A client that the access rules of the vhost keep out.
    Forbidden,
    /// No credentials, or wrong ones.
    Unauthorized,
    /// More requests than the client may send in a time.
    RateLimited,
    /// More connections than one client may have.
    ClientConnections,
    /// Every backend carries what it may, and as many requests as may wait do.
    QueueFull,
    /// No backend had a slot in time.
    QueueTimeout,
    /// A request body over the limit.
    BodyTooLarge,
    /// The backend took the request and sent no response head in time.
    BackendSlow,
    /// A connection whose PROXY protocol header is missing or malformed.
    ProxyHeader,
    /// A trusted proxy whose account of the client cannot be read.
    ForwardedHeader,
}

/// Counters of one data thread. Only that thread writes, so adding needs no locked instruction.
#[derive(Debug)]
pub struct Counters {
    responses: [AtomicU64; 6],
    reasons: [AtomicU64; Reason::ALL.len()],
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Totals {
    /// Requests by the class of their answer: `[0]` is none sent, `[2]` is 2xx.
    pub responses: [u64; 6],
    /// Requests and connections by what stopped them, in the order of [`Reason::ALL`].
    pub reasons: [u64; Reason::ALL.len()],
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

// Written out, since arrays as long as `reasons` have no `Default`.
impl Default for Counters {
    fn default() -> Counters {
        Counters {
            responses: Default::default(),
            reasons: std::array::from_fn(|_| AtomicU64::new(0)),
            connections: AtomicU64::new(0),
            open: AtomicU64::new(0),
            tunnels: AtomicU64::new(0),
            upstream_connects: AtomicU64::new(0),
            upstream_reuses: AtomicU64::new(0),
            retries: AtomicU64::new(0),
            bytes_in: AtomicU64::new(0),
            bytes_out: AtomicU64::new(0),
        }
    }
}

impl Default for Totals {
    fn default() -> Totals {
        Counters::default().snapshot()
    }
}

impl Counters {
    /// The present figures.
    pub fn snapshot(&self) -> Totals {
        let read = |counter: &AtomicU64| counter.load(Relaxed);
        Totals {
            responses: std::array::from_fn(|at| read(&self.responses[at])),
            reasons: std::array::from_fn(|at| read(&self.reasons[at])),
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
        add(&self.reasons[reason as usize], count);
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
            sum.reasons.iter_mut().zip(one.reasons).for_each(|(to, from)| *to += from);
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
        self.reasons[reason as usize]
    }
}

impl Reason {
    /// Every reason, in the order of its number.
    pub const ALL: [Reason; 38] = [
        Reason::MissingHost,
        Reason::DuplicateHost,
        Reason::InvalidHost,
        Reason::InvalidTarget,
        Reason::ConnectMethod,
        Reason::AmbiguousLength,
        Reason::TransferCoding,
        Reason::BareLineFeed,
        Reason::FoldedHeader,
        Reason::BadChunk,
        Reason::HeadTooLarge,
        Reason::HeadTimeout,
        Reason::Malformed,
        Reason::ConnectionLimit,
        Reason::AcceptFailed,
        Reason::UnknownHost,
        Reason::Stopped,
        Reason::Starting,
        Reason::Disabled,
        Reason::BackendRefused,
        Reason::BackendTimedOut,
        Reason::BackendBroke,
        Reason::BackendCut,
        Reason::BackendProtocol,
        Reason::ClientGone,
        Reason::LogBehind,
        Reason::HeaderName,
        Reason::PathRefused,
        Reason::Forbidden,
        Reason::Unauthorized,
        Reason::RateLimited,
        Reason::ClientConnections,
        Reason::QueueFull,
        Reason::QueueTimeout,
        Reason::BodyTooLarge,
        Reason::BackendSlow,
        Reason::ProxyHeader,
        Reason::ForwardedHeader,
    ];

    /// The word that labels its counter.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::MissingHost => "missing_host",
            Reason::DuplicateHost => "duplicate_host",
            Reason::InvalidHost => "invalid_host",
            Reason::InvalidTarget => "invalid_target",
            Reason::ConnectMethod => "connect_method",
            Reason::AmbiguousLength => "ambiguous_length",
            Reason::TransferCoding => "transfer_coding",
            Reason::BareLineFeed => "bare_line_feed",
            Reason::FoldedHeader => "folded_header",
            Reason::BadChunk => "bad_chunk",
            Reason::HeadTooLarge => "head_too_large",
            Reason::HeadTimeout => "head_timeout",
            Reason::Malformed => "malformed",
            Reason::ConnectionLimit => "connection_limit",
            Reason::AcceptFailed => "accept_failed",
            Reason::UnknownHost => "unknown_host",
            Reason::Stopped => "stopped",
            Reason::Starting => "starting",
            Reason::Disabled => "disabled",
            Reason::BackendRefused => "backend_refused",
            Reason::BackendTimedOut => "backend_timed_out",
            Reason::BackendBroke => "backend_broke",
            Reason::BackendCut => "backend_cut",
            Reason::BackendProtocol => "backend_protocol",
            Reason::ClientGone => "client_gone",
            Reason::LogBehind => "log_behind",
            Reason::HeaderName => "header_name",
            Reason::PathRefused => "path_refused",
            Reason::Forbidden => "forbidden",
            Reason::Unauthorized => "unauthorized",
            Reason::RateLimited => "rate_limited",
            Reason::ClientConnections => "client_connections",
            Reason::QueueFull => "queue_full",
            Reason::QueueTimeout => "queue_timeout",
            Reason::BodyTooLarge => "body_too_large",
            Reason::BackendSlow => "backend_slow",
            Reason::ProxyHeader => "proxy_header",
            Reason::ForwardedHeader => "forwarded_header",
        }
    }
}

fn add(counter: &AtomicU64, count: u64) {
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
