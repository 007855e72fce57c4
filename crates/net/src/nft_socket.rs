//! The netfilter netlink socket: transactions and dumps.

#![allow(unsafe_code)] // socket options and flags of a descriptor that libmnl owns

use crate::netlink::{Message, Received, messages};
use crate::nft_encode::Step;
use nix::errno::Errno;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Attempts at a dump that other writers keep disturbing.
const DUMP_ATTEMPTS: usize = 8;
/// What we ask for as send buffer. 60,000 set elements are about 1 MB.
const SEND_BUFFER: libc::c_int = 8 << 20;
/// Room left in a transaction for its frame.
const FRAME: usize = 4096;

/// Why the kernel's firewall could not be changed or read.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// No netfilter netlink socket.
    #[error("cannot open a netfilter socket: {errno}{hint}", hint = hint(*errno))]
    Open {
        /// What the kernel said.
        errno: Errno,
    },
    /// The kernel refused a step; nothing of the transaction took effect.
    #[error("nftables: cannot {step}: {errno}{text}{hint}", hint = hint(*errno))]
    Refused {
        /// What was being done.
        step: String,
        /// What the kernel said.
        errno: Errno,
        /// The kernel's own words in parentheses, or empty.
        text: String,
    },
    /// Sending or receiving failed.
    #[error("nftables: cannot {step}: talking to the kernel failed: {errno}{hint}", hint = hint(*errno))]
    Io {
        /// What was being done.
        step: String,
        /// What the socket said.
        errno: Errno,
    },
    /// The kernel neither refused nor acknowledged.
    #[error("nftables: cannot tell whether this worked: {step}: the kernel gave no answer")]
    NoAnswer {
        /// What was being done.
        step: String,
    },
    /// Someone changes the firewall faster than it can be read.
    #[error("nftables: cannot {step}: another process keeps changing the firewall")]
    Restless {
        /// What was being done.
        step: String,
    },
}

impl NftError {
    /// The errno behind it, if there is one.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            NftError::Open { errno } | NftError::Refused { errno, .. } | NftError::Io { errno, .. } => {
                Some(*errno)
            }
            NftError::NoAnswer { .. } | NftError::Restless { .. } => None,
        }
    }
}

fn hint(errno: Errno) -> &'static str {
    match errno {
        Errno::EPERM | Errno::EACCES => ". Run as root or with CAP_NET_ADMIN",
        Errno::EOPNOTSUPP | Errno::EPROTONOSUPPORT => {
            ". nf_tables not available: load the module on the Proxmox host: modprobe nf_tables"
        }
        Errno::ENOENT => {
            ". If the step adds a rule or chain, a kernel module is missing; on the Proxmox host: \
             modprobe -a nft_chain_nat nft_ct nft_masq nft_nat nft_reject_inet"
        }
        Errno::EMSGSIZE | Errno::ENOBUFS => ". Raise net.core.wmem_max and net.core.rmem_max on the host",
        _ => "",
    }
}

/// A socket to nf_tables. Never blocks: the kernel answers a request before `send` returns.
pub(crate) struct NftSocket {
    inner: mnl::Socket,
}

// SAFETY: the struct behind libmnl's pointer holds a descriptor and an address, is written only while the
// socket is opened and bound, and has no tie to a thread. Sending and receiving are system calls on the
// descriptor.
unsafe impl Send for NftSocket {}
// SAFETY: as above.
unsafe impl Sync for NftSocket {}

impl AsRawFd for NftSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.inner.as_raw_fd()
    }
}

/// Receive buffer. Dumps come in pieces of at most 32 KiB.
#[repr(C, align(8))]
pub(crate) struct Buffer([u8; 64 * 1024]);

impl Buffer {
    pub(crate) fn new() -> Box<Self> {
        Box::new(Buffer([0; 64 * 1024]))
    }
}

impl NftSocket {
    /// Opens the socket, listening to the given multicast groups (a bit mask).
    pub(crate) fn open(groups: u32) -> Result<Self, NftError> {
        let inner = mnl::Socket::open(mnl::Bus::Netfilter)
            .and_then(|socket| socket.bind(groups, mnl::mnl_sys::MNL_SOCKET_AUTOPID).map(|()| socket))
            .map_err(|error| NftError::Open { errno: errno_of(&error) })?;
        let socket = NftSocket { inner };
        let fd = socket.as_raw_fd();
        // SAFETY: plain flag calls on a descriptor we own.
        let ours_alone = unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) >= 0 };
        // SAFETY: as above.
        let nonblocking = unsafe {
            let flags = libc::fcntl(fd, libc::F_GETFL);
            flags >= 0 && libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK) >= 0
        };
        if !ours_alone || !nonblocking {
            return Err(NftError::Open { errno: Errno::last() });
        }
        // Errors without a copy of the request, with the kernel's own words. Both older than our kernels.
        for option in [libc::NETLINK_CAP_ACK, libc::NETLINK_EXT_ACK] {
            socket.set(libc::SOL_NETLINK, option, 1).map_err(|errno| NftError::Open { errno })?;
        }
        // FORCE needs privilege over the host; an unprivileged container gets what wmem_max allows.
        if socket.set(libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, SEND_BUFFER).is_err() {
            socket
                .set(libc::SOL_SOCKET, libc::SO_SNDBUF, SEND_BUFFER)
                .map_err(|errno| NftError::Open { errno })?;
        }
        Ok(socket)
    }

    /// Registers the socket with the current tokio runtime.
    pub(crate) fn watched(self) -> Result<AsyncFd<Self>, NftError> {
        // SAFETY: libmnl keeps the descriptor open, and the same, until the socket is dropped.
        unsafe { AsyncFd::register_with_interest(self, Interest::READABLE | Interest::ERROR) }
            .map_err(|error| NftError::Open { errno: errno_of(&io::Error::from(error)) })
    }

    /// The port that marks our changes in others' notifications.
    pub(crate) fn port(&self) -> u32 {
        self.inner.portid()
    }

    /// Largest transaction in bytes.
    pub(crate) fn transaction_limit(&self) -> usize {
        let mut value: libc::c_int = 0;
        let mut len = size_of::<libc::c_int>() as libc::socklen_t;
        // SAFETY: value and length are valid for the call.
        let rc = unsafe {
            libc::getsockopt(
                self.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_SNDBUF,
                std::ptr::from_mut(&mut value).cast(),
                &mut len,
            )
        };
        let size = if rc == 0 { usize::try_from(value).unwrap_or(0) } else { 0 };
        size.saturating_sub(FRAME).max(32 * 1024)
    }

    /// One atomic transaction: all steps or none. Returns when the kernel has committed it.
    pub(crate) fn transact(&self, first_sequence: u32, steps: Vec<Step>) -> Result<(), NftError> {
        let Some(last) = steps.len().checked_sub(1) else { return Ok(()) };
        let mut names = Vec::with_capacity(steps.len());
        let mut bytes = Message::batch(libc::NFNL_MSG_BATCH_BEGIN).finish(first_sequence, false);
        let sequence_of = |index: usize| first_sequence.wrapping_add(1).wrapping_add(index as u32);
        for (index, (name, message)) in steps.into_iter().enumerate() {
            // One acknowledgement for the whole: hundreds would overflow the receive buffer.
            bytes.extend(message.finish(sequence_of(index), index == last));
            names.push(name);
        }
        bytes.extend(Message::batch(libc::NFNL_MSG_BATCH_END).finish(sequence_of(last + 1), false));
        self.send(&bytes).map_err(|errno| NftError::Io { step: names[0].clone(), errno })?;

        let mut buffer = Buffer::new();
        let mut done = false;
        let mut refused = None;
        loop {
            let received = match self.receive(&mut buffer) {
                Ok(received) => received,
                Err(Errno::EAGAIN) => break,
                Err(errno) => return Err(NftError::Io { step: names[0].clone(), errno }),
            };
            for message in messages(received) {
                let index = message.sequence.wrapping_sub(first_sequence) as usize;
                if i32::from(message.kind) != libc::NLMSG_ERROR || index > last + 2 {
                    continue; // left over from an earlier request
                }
                match message.errno() {
                    0 => done |= index == last + 1,
                    errno => {
                        let step = index.checked_sub(1).and_then(|at| names.get(at));
                        let step = step.map_or_else(|| format!("{} (transaction)", names[0]), String::clone);
                        refused.get_or_insert(NftError::Refused {
                            step,
                            errno: Errno::from_raw(errno),
                            text: message.error_text().map(|text| format!(" ({text})")).unwrap_or_default(),
                        });
                    }
                }
            }
        }
        match refused {
            Some(error) => Err(error),
            None if done => Ok(()),
            None => Err(NftError::NoAnswer { step: names.swap_remove(last) }),
        }
    }

    /// Asks for a list and reads each entry. A list that changed while it was read is read again.
    pub(crate) fn dump<T>(
        &self,
        first_sequence: u32,
        step: &str,
        request: &Message,
        mut read: impl FnMut(&Received<'_>) -> Option<T>,
    ) -> Result<Vec<T>, NftError> {
        let io = |errno| NftError::Io { step: step.to_owned(), errno };
        let mut buffer = Buffer::new();
        for attempt in 0..DUMP_ATTEMPTS {
            let sequence = first_sequence.wrapping_add(attempt as u32);
            self.send(&request.clone().finish(sequence, false)).map_err(io)?;
            let mut entries = Vec::new();
            let mut disturbed = false;
            'answer: loop {
                let received = match self.receive(&mut buffer) {
                    Ok(received) => received,
                    Err(Errno::EAGAIN) => return Err(NftError::NoAnswer { step: step.to_owned() }),
                    Err(errno) => return Err(io(errno)),
                };
                for message in messages(received).filter(|message| message.sequence == sequence) {
                    disturbed |= i32::from(message.flags) & libc::NLM_F_DUMP_INTR != 0;
                    match i32::from(message.kind) {
                        libc::NLMSG_ERROR | libc::NLMSG_DONE => match message.errno() {
                            0 => break 'answer,
                            libc::EINTR | libc::EAGAIN => {
                                disturbed = true;
                                break 'answer;
                            }
                            errno => {
                                let text =
                                    message.error_text().map(|text| format!(" ({text})")).unwrap_or_default();
                                let errno = Errno::from_raw(errno);
                                return Err(NftError::Refused { step: step.to_owned(), errno, text });
                            }
                        },
                        _ => entries.extend(read(&message)),
                    }
                }
            }
            if !disturbed {
                return Ok(entries);
            }
        }
        Err(NftError::Restless { step: step.to_owned() })
    }

    /// What is there to read now; `EAGAIN` if nothing.
    pub(crate) fn receive<'a>(&self, buffer: &'a mut Buffer) -> Result<&'a [u8], Errno> {
        loop {
            match self.inner.recv_raw(&mut buffer.0) {
                Ok(len) => return Ok(&buffer.0[..len]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(errno_of(&error)),
            }
        }
    }

    fn send(&self, bytes: &[u8]) -> Result<(), Errno> {
        loop {
            match self.inner.send(bytes) {
                Ok(len) if len == bytes.len() => return Ok(()),
                Ok(_) => return Err(Errno::EMSGSIZE),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(errno_of(&error)),
            }
        }
    }

    fn set(&self, level: libc::c_int, option: libc::c_int, value: libc::c_int) -> Result<(), Errno> {
        let len = size_of_val(&value) as libc::socklen_t;
        // SAFETY: the value is valid for the call and of the length given.
        let rc = unsafe {
            libc::setsockopt(self.as_raw_fd(), level, option, std::ptr::from_ref(&value).cast(), len)
        };
        Errno::result(rc).map(drop)
    }
}

pub(crate) fn errno_of(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}
