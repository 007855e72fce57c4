use std::net::IpAddr;
use std::sync::Arc;

use proximity_table::{BackendKey, Balance, VhostPolicy};

use crate::backend_slots::InFlight;
use crate::backend_state::{BackendState, FULL_WEIGHT, Passage};
use crate::mixing::{fnv, mix};

/// Backends that one request has tried at most; a retry beyond them may meet the first again.
const MOST_TRIED: usize = 8;
/// How often a choice starts over because another thread was quicker.
const MOST_RACES: usize = 8;

/// A backend that a request may go to, with its state.
#[derive(Clone, Debug)]
pub struct Member {
    /// What it is known by.
    pub key: BackendKey,
    /// What all data threads know of it.
    pub state: Arc<BackendState>,
}

/// What does not change from one request of a vhost to the next.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rules {
    /// How requests are spread.
    pub spread: Balance,
    /// Requests that one backend carries at a time, 0 for any number.
    pub limit: u32,
    /// Length of a pause, in ms.
    pub pause_ms: u64,
    /// Length of a slow start, in ms, 0 for none.
    pub slow_start_ms: u64,
}

/// What keeps a client at one backend.
#[derive(Clone, Copy, Debug, Default)]
pub enum Sticky<'a> {
    /// Nothing.
    #[default]
    Free,
    /// The client's address; of IPv6 the /64, in which clients change theirs.
    Client(IpAddr),
    /// The value of a header. A request without it is free.
    Header(Option<&'a [u8]>),
    /// The value of a cookie that names the backend.
    Cookie {
        /// What the client sent, if anything.
        value: Option<&'a [u8]>,
        /// Mixed into the names of backends, so that they do not tell addresses. It must outlive restarts.
        salt: u64,
    },
}

/// What a choice depends on besides the rules.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    /// Counts the requests of the vhost; may wrap.
    pub turn: usize,
    /// Any number, another one for each request.
    pub entropy: u64,
    /// Milliseconds of the clock of the backend states.
    pub now_ms: u64,
    /// What keeps the client at one backend.
    pub sticky: Sticky<'a>,
    /// The backends that this request has tried.
    pub tried: Tried,
}

/// The backends that one request has tried, by their index.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tried {
    list: [u16; MOST_TRIED],
    count: u8,
}

/// Where a request goes.
#[derive(Debug)]
pub enum Choice {
    /// To this backend, which has a slot for it.
    Chosen(Chosen),
    /// Every backend is full; the line of the one with this index is the shortest, or the client belongs there.
    Full(usize),
    /// None is left.
    Nobody,
}

/// A backend that was chosen.
#[derive(Debug)]
pub struct Chosen {
    /// Its index among the members.
    pub index: usize,
    /// Its slot, until dropped.
    pub slot: InFlight,
    /// Whether its circuit hangs on this request: to be told [`BackendState::succeeded`] and `failed`.
    pub trial: bool,
    /// The cookie value that the client has to be given.
    pub set_cookie: Option<CookieValue>,
}

/// The name of a backend in a cookie: 16 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CookieValue([u8; 16]);

/// Chooses a backend out of those that are usable, takes its slot, and passes over those that were tried,
/// that are full or that are paused.
///
/// A pause sends requests to somebody better. So it counts only while there is somebody: a sole backend is
/// never paused, and neither is the last one left.
pub fn choose(members: &[Member], rules: &Rules, ask: &Ask<'_>) -> Choice {
    if let [only] = members {
        return match ask.tried.contains(0) {
            true => Choice::Nobody,
            false => enter(0, only, rules, ask, true).unwrap_or(Choice::Full(0)),
        };
    }
    for _ in 0..MOST_RACES {
        let pauses_count = members
            .iter()
            .enumerate()
            .any(|(at, one)| !ask.tried.contains(at) && one.state.may_pass(ask.now_ms));
        let is_open =
            |at: usize| !ask.tried.contains(at) && (!pauses_count || members[at].state.may_pass(ask.now_ms));
        let is_free = |at: usize| is_open(at) && !members[at].state.is_full(rules.limit);
        let named = ask.sticky.named(members).filter(|&at| is_open(at));
        if let Some(at) = named.filter(|&at| !is_free(at)) {
            // A session lives in one backend: waiting for it is better than losing it.
            return Choice::Full(at);
        }
        let picked = named
            .or_else(|| ask.sticky.highest(members, is_free))
            .or_else(|| rules.pick(members, ask, is_free));
        let Some(at) = picked else {
            let full = (0..members.len()).filter(|&at| is_open(at));
            let shortest = full.min_by_key(|&at| members[at].state.waiting());
            return shortest.map_or(Choice::Nobody, Choice::Full);
        };
        if let Some(choice) = enter(at, &members[at], rules, ask, !pauses_count) {
            return choice;
        }
    }
    Choice::Nobody
}

/// Takes a slot and the passage; `None` when another thread was quicker.
fn enter(index: usize, member: &Member, rules: &Rules, ask: &Ask<'_>, is_last: bool) -> Option<Choice> {
    let slot = member.state.enter(rules.limit).ok()?;
    pass(index, member, rules, ask, slot, is_last).map(Choice::Chosen)
}

/// Takes the passage of a backend whose slot one has: `None` while it is paused and others are left.
pub fn pass(
    index: usize,
    member: &Member,
    rules: &Rules,
    ask: &Ask<'_>,
    slot: InFlight,
    is_last: bool,
) -> Option<Chosen> {
    let trial = if is_last {
        member.state.is_suspect()
    } else {
        match member.state.claim(ask.now_ms, rules.pause_ms) {
            Passage::Free => false,
            Passage::Trial => true,
            Passage::Paused => return None,
        }
    };
    Some(Chosen { index, slot, trial, set_cookie: ask.sticky.cookie_for(&member.key) })
}

impl Rules {
    /// What the policy of a vhost asks for.
    pub fn of(policy: &VhostPolicy) -> Rules {
        Rules {
            spread: policy.balance,
            limit: policy.limits.backend_connections,
            pause_ms: u64::from(policy.passive.pause) * 1000,
            slow_start_ms: u64::from(policy.slow_start) * 1000,
        }
    }

    fn pick(&self, members: &[Member], ask: &Ask<'_>, is_free: impl Fn(usize) -> bool) -> Option<usize> {
        let free = || (0..members.len()).filter(|&at| is_free(at));
        let nth = |n: usize| free().nth(n);
        let weight = |at: usize| members[at].state.weight(ask.now_ms, self.slow_start_ms);
        let load = |at: usize| u64::from(members[at].state.in_flight()) + 1;
        // Requests for each unit of weight, compared without dividing.
        let is_better = |a: usize, b: usize| load(a) * u64::from(weight(b)) < load(b) * u64::from(weight(a));
        let count = free().count();
        if count <= 1 {
            return nth(0);
        }
        match self.spread {
            Balance::RoundRobin => {
                let mut chance = ask.entropy;
                for step in 0..count {
                    let at = nth(ask.turn.wrapping_add(step) % count)?;
                    if weight(at) >= FULL_WEIGHT || chance as u32 % FULL_WEIGHT < weight(at) {
                        return Some(at);
                    }
                    chance = mix(chance);
                }
                nth(ask.turn % count)
            }
            Balance::LeastConnections => {
                // Equals take turns.
                let start = ask.turn % members.len();
                let order = (start..members.len()).chain(0..start).filter(|&at| is_free(at));
                order.reduce(|best, at| if is_better(at, best) { at } else { best })
            }
            Balance::RandomTwo => {
                let first = (ask.entropy % count as u64) as usize;
                let mut second = (mix(ask.entropy) % (count as u64 - 1)) as usize;
                second += usize::from(second >= first);
                let (first, second) = (nth(first)?, nth(second)?);
                Some(if is_better(second, first) { second } else { first })
            }
        }
    }
}

impl Sticky<'_> {
    /// The cookie that a client has to be given which goes to this backend; `None` when it has it.
    pub fn cookie_for(&self, key: &BackendKey) -> Option<CookieValue> {
        let Sticky::Cookie { value, salt } = *self else { return None };
        Some(CookieValue::of(key, salt)).filter(|name| value != Some(name.as_bytes()))
    }

    /// The backend that the cookie names.
    fn named(&self, members: &[Member]) -> Option<usize> {
        let Sticky::Cookie { value: Some(value), salt } = *self else { return None };
        members.iter().position(|member| CookieValue::of(&member.key, salt).as_bytes() == value)
    }

    /// Rendezvous hashing: the backend with the highest score for this client. One that comes or goes moves
    /// only the clients that it gets or had.
    fn highest(&self, members: &[Member], is_free: impl Fn(usize) -> bool) -> Option<usize> {
        let client = match *self {
            Sticky::Client(ip) => hash_ip(ip),
            Sticky::Header(Some(value)) => fnv(value),
            Sticky::Free | Sticky::Header(None) | Sticky::Cookie { .. } => return None,
        };
        let free = (0..members.len()).filter(|&at| is_free(at));
        free.max_by_key(|&at| mix(client ^ hash_backend(&members[at].key)))
    }
}

impl Tried {
    /// Notes a backend.
    pub fn add(&mut self, index: usize) {
        self.list[usize::from(self.count) % MOST_TRIED] = as_u16(index);
        self.count = if usize::from(self.count) < MOST_TRIED { self.count + 1 } else { MOST_TRIED as u8 };
    }

    /// Whether it was tried.
    pub fn contains(&self, index: usize) -> bool {
        self.list[..usize::from(self.count).min(MOST_TRIED)].contains(&as_u16(index))
    }
}

impl CookieValue {
    /// The name of a backend. The lease's epoch is not in it: an app keeps its clients over its leases.
    pub fn of(key: &BackendKey, salt: u64) -> CookieValue {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let number = mix(hash_backend(key) ^ mix(salt));
        CookieValue(std::array::from_fn(|at| DIGITS[(number >> (60 - 4 * at)) as usize & 15]))
    }

    /// The digits.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The value of a `Set-Cookie` field (RFC 6265 §4.1.1) for the session, out of reach of scripts. Each path has its
    /// own: a browser sends that of the longest path first (§5.4).
    pub fn set_cookie(&self, name: &str, path: &str, secure: bool) -> String {
        let digits = String::from_utf8_lossy(&self.0);
        let secure = if secure { "; Secure" } else { "" };
        format!("{name}={digits}; Path={path}; HttpOnly; SameSite=Lax{secure}")
    }
}

/// The value of a cookie in a `Cookie` field (RFC 6265 §4.2.1); the first when it is there twice.
pub fn cookie_value<'a>(field: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    field.split(|&byte| byte == b';').find_map(|pair| {
        let value = pair.trim_ascii().strip_prefix(name)?.strip_prefix(b"=")?;
        Some(value.strip_prefix(b"\"").and_then(|inner| inner.strip_suffix(b"\"")).unwrap_or(value))
    })
}

fn as_u16(index: usize) -> u16 {
    u16::try_from(index).unwrap_or(u16::MAX)
}

fn hash_backend(key: &BackendKey) -> u64 {
    mix((u64::from(u32::from(*key.addr.ip())) << 16) | u64::from(key.addr.port()))
}

fn hash_ip(ip: IpAddr) -> u64 {
    match ip.to_canonical() {
        IpAddr::V4(ip) => mix(u32::from(ip).into()),
        IpAddr::V6(ip) => mix((u128::from(ip) >> 64) as u64),
    }
}

#[cfg(test)]
#[path = "balance_tests.rs"]
mod tests;
