use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};

/// How soon a peer that is gone without a word is noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// Silence after which the kernel asks whether the peer is still there.
    pub idle: Duration,
    /// Time between questions.
    pub interval: Duration,
    /// Questions without answer after which the connection ends.
    pub probes: u32,
}

impl Patience {
    /// Two minutes. A laptop that was carried to another room keeps its WebSocket; an address translation on
    /// the way, which forgets silent connections after some minutes, is reminded of them.
    pub const USUAL: Patience =
        Patience { idle: Duration::from_secs(60), interval: Duration::from_secs(15), probes: 4 };

    /// From the last sign of life to the end.
    pub fn total(self) -> Duration {
        self.idle + self.interval * self.probes
    }
}

/// Lets the kernel end connections to clients that are gone: set on the listening socket, since what it
/// accepts takes over its options (tcp(7)), and then it costs a connection nothing.
///
/// Keepalive sees only silence; octets that nobody acknowledges would be sent again for a quarter of an hour,
/// so the user timeout bounds them too. It also ends a client that takes nothing of what waits for it for as
/// long (RFC 5482 §3.1).
pub fn watch_clients(listener: &impl AsFd, patience: Patience) -> io::Result<()> {
    let socket = SockRef::from(listener);
    socket.set_tcp_keepalive(&keepalive(patience))?;
    socket.set_tcp_user_timeout(Some(patience.total()))
}

/// Lets the kernel end a connection to a backend that is gone: one that is silent for as long as `patience` has it,
/// and with `unacknowledged` one that does not acknowledge for so long what it was sent. With such a limit a single
/// question of keepalive without answer is enough.
pub fn watch_backend(
    stream: &impl AsFd,
    patience: Patience,
    unacknowledged: Option<Duration>,
) -> io::Result<()> {
    SockRef::from(stream).set_tcp_keepalive(&keepalive(patience))?;
    limit_unacknowledged(stream, unacknowledged)
}

/// Limits how long what was sent may stay unacknowledged; `None` leaves it to the kernel, which sends again for a
/// quarter of an hour. The limit also ends a connection whose other side acknowledges and makes no room for more
/// (RFC 5482 §3.1), so it is not for uploads: a backend may leave one unread while it works on what it has.
pub fn limit_unacknowledged(stream: &impl AsFd, limit: Option<Duration>) -> io::Result<()> {
    SockRef::from(stream).set_tcp_user_timeout(limit)
}

fn keepalive(patience: Patience) -> TcpKeepalive {
    TcpKeepalive::new()
        .with_time(patience.idle)
        .with_interval(patience.interval)
        .with_retries(patience.probes)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    fn watched(socket: &impl AsFd) -> (bool, Patience, Option<Duration>) {
        let socket = SockRef::from(socket);
        let patience = Patience {
            idle: socket.tcp_keepalive_time().unwrap(),
            interval: socket.tcp_keepalive_interval().unwrap(),
            probes: socket.tcp_keepalive_retries().unwrap(),
        };
        (socket.keepalive().unwrap(), patience, socket.tcp_user_timeout().unwrap())
    }

    #[test]
    fn accepted_connections_take_over_what_their_listener_has() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        watch_clients(&listener, Patience::USUAL).unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        assert_eq!(watched(&accepted), (true, Patience::USUAL, Some(Duration::from_secs(120))));
    }

    #[test]
    fn a_backend_may_take_its_time_with_an_upload_but_not_vanish() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert!(!watched(&stream).0);
        let limit = Duration::from_secs(3);
        watch_backend(&stream, Patience::USUAL, Some(limit)).unwrap();
        assert_eq!(watched(&stream), (true, Patience::USUAL, Some(limit)));
        limit_unacknowledged(&stream, None).unwrap();
        assert!(watched(&stream).2.is_none_or(|limit| limit.is_zero()));
    }
}
