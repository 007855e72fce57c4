//! Data threads that carry forwarded ports on loopback, by a small table.

use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};
use proximity_proxy::{StreamForwards, StreamLoad, StreamPort, StreamReason, listen};
use proximity_table::{BackendTarget, Change, Forward, Protocol, Source};
use socket2::{Domain, Socket, Type};

use crate::support::{Client, PATIENCE, Table};

/// Two threads, so that what they share is tested.
const THREADS: usize = 2;

pub struct Carried {
    pub forwards: StreamForwards,
    table: Mutex<Table>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Carried {
    pub fn start(table: Table) -> Carried {
        let carried = Carried::waiting(table);
        carried.forwards.follow(&carried.table().snapshot.load());
        carried
    }

    /// As [`Carried::start`], and follows no world before the next change.
    pub fn waiting(table: Table) -> Carried {
        let (snapshot, generations) = (table.snapshot.clone(), table.generations.subscribe());
        let drain = Duration::from_secs(10);
        let forwards = StreamForwards::new(snapshot, generations, Ipv4Addr::LOCALHOST, drain);
        let threads = (0..THREADS).map(|_| {
            let thread = forwards.thread();
            std::thread::spawn(move || {
                let mut runtime = tokio::runtime::Builder::new_current_thread();
                let runtime = runtime.enable_io().enable_time().build().unwrap();
                tokio::task::LocalSet::new().block_on(&runtime, thread.serve());
            })
        });
        let threads = threads.collect();
        Carried { forwards, table: Mutex::new(table), threads: Mutex::new(threads) }
    }

    pub fn change(&self, change: Change) {
        let mut table = self.table();
        table.change(change);
        self.forwards.follow(&table.snapshot.load());
    }

    /// Makes a forward of a port that nobody has. Its socket is there before it, so nobody can come between.
    pub fn add(&self, make: impl FnOnce(u16) -> Forward) -> u16 {
        let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let number = listener.local_addr().unwrap().port();
        self.forwards.adopt([(port(number), OwnedFd::from(listener))]);
        self.change(Change::Forward(Source::Api, make(number)));
        number
    }

    /// As [`Carried::add`] for UDP, on every address of loopback.
    pub fn add_udp(&self, make: impl FnOnce(u16) -> Forward) -> u16 {
        let mut number = 0;
        // As many as there are threads: those that the forwards open would hear on one address alone.
        for _ in 0..THREADS {
            let socket = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
            socket.set_reuse_address(true).unwrap();
            socket.set_reuse_port(true).unwrap();
            setsockopt(&socket, sockopt::Ipv4PacketInfo, &true).unwrap();
            socket.bind(&SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, number).into()).unwrap();
            number = socket.local_addr().unwrap().as_socket().unwrap().port();
            let port = StreamPort { protocol: Protocol::Udp, number };
            self.forwards.adopt([(port, OwnedFd::from(socket))]);
        }
        self.change(Change::Forward(Source::Api, make(number)));
        number
    }

    pub fn connect(&self, number: u16) -> Client {
        Client::new(TcpStream::connect((Ipv4Addr::LOCALHOST, number)).unwrap())
    }

    pub fn load(&self, number: u16) -> StreamLoad {
        self.forwards.load(port(number))
    }

    pub fn udp_load(&self, number: u16) -> StreamLoad {
        self.forwards.load(StreamPort { protocol: Protocol::Udp, number })
    }

    pub fn count(&self, reason: StreamReason) -> u64 {
        self.forwards.count(reason)
    }

    pub fn until(&self, what: &str, holds: impl Fn(&Carried) -> bool) {
        let began = Instant::now();
        while !holds(self) {
            assert!(began.elapsed() < PATIENCE, "never {what}");
            std::thread::yield_now();
        }
    }

    /// Waits until the threads have nothing left to do.
    pub fn ended(&self) {
        self.threads.lock().unwrap().drain(..).for_each(|thread| thread.join().unwrap());
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap()
    }
}

impl Drop for Carried {
    fn drop(&mut self) {
        self.forwards.stop();
    }
}

pub fn port(number: u16) -> StreamPort {
    StreamPort { protocol: Protocol::Tcp, number }
}

/// A forward of a TCP port to these.
pub fn forward(number: u16, targets: &[SocketAddrV4]) -> Forward {
    to(Protocol::Tcp, number, targets)
}

/// A forward of a UDP port to these.
pub fn udp_forward(number: u16, targets: &[SocketAddrV4]) -> Forward {
    to(Protocol::Udp, number, targets)
}

fn to(protocol: Protocol, number: u16, targets: &[SocketAddrV4]) -> Forward {
    let mut targets = targets.iter().map(|addr| BackendTarget::Address(*addr));
    let mut forward = Forward::new(protocol, number, targets.next().unwrap());
    forward.more = targets.collect();
    forward.proxy = Some(proximity_table::StreamPolicy::of(protocol).into());
    forward
}

/// A port that somebody else listens on.
pub fn taken_tcp_port() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let number = listener.local_addr().unwrap().port();
    (listener, number)
}
