use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use proximity_table::{BackendKey, PassivePolicy, UpstreamKey};

use crate::backend_slots::{Full, InFlight, QueueFull, Slots, Waiting};
use crate::{LastFailure, LastMet, Reason};

/// The weight of a backend that is past its slow start.
pub const FULL_WEIGHT: u32 = 256;
/// The weight at the very beginning of a slow start: one request of ten.
const FIRST_WEIGHT: u32 = FULL_WEIGHT / 10;
/// Bits of the failure count; the other 40 of the word hold when the window began (in ms, 34 years).
const COUNT_BITS: u32 = 24;
const COUNT_MASK: u64 = (1 << COUNT_BITS) - 1;

/// What the requests of all data threads have found out about one backend. Times are milliseconds of one
/// clock that never goes back.
///
/// ```text
///          failures in the window           the pause is over
/// closed ─────────────────────────► open ─────────────────────► half-open
///    ▲                               ▲                             │   │
///    │                               └──── the trial failed ───────┘   │
///    └──────────────────────────────────── the trial succeeded ────────┘
/// ```
#[derive(Debug)]
pub struct BackendState {
    slots: Arc<Slots>,
    /// 0 while closed; else the end of the pause, and in the lowest bit whether a trial is on its way. A
    /// trial sets the end anew, so that one that never reports cannot shut the backend out for ever.
    gate: AtomicU64,
    /// Beginning of the failure window and the failures in it.
    failures: AtomicU64,
    usable_since: AtomicU64,
    pauses: AtomicU32,
    /// What whoever asked met last.
    pub met: LastMet,
}

/// When failures of requests pause a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Passive {
    /// Failures that begin a pause, 0 for never.
    pub failures: u32,
    /// How long after its first failure a window counts, in ms.
    pub window_ms: u64,
    /// Length of a pause, in ms.
    pub pause_ms: u64,
}

/// Whether requests go to a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Circuit {
    /// They do.
    Closed,
    /// It is paused until then, in ms.
    Open {
        /// End of the pause.
        until_ms: u64,
    },
    /// The pause is over, and one request at a time tries whether it works again.
    HalfOpen,
}

/// What [`BackendState::claim`] allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passage {
    /// A request as any other.
    Free,
    /// The one request that tries the backend after its pause.
    Trial,
    /// None now.
    Paused,
}

/// What is shown of a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackendLoad {
    /// Requests carried now.
    pub in_flight: u32,
    /// Requests that wait for a slot.
    pub waiting: u32,
    /// Failures counted in the last window.
    pub failures: u32,
    /// How often it was paused.
    pub pauses: u32,
    /// Whether requests go there.
    pub circuit: Circuit,
    /// The last request that came to nothing, if any did.
    pub last_failure: Option<LastFailure>,
    /// Whether anybody knows that it answers, or that it does not.
    pub is_known: bool,
    /// How long it has been usable without a break, in ms.
    pub usable_for_ms: u64,
}

/// Every backend's state, one for each way in which it is spoken to: these share its slots alone. Data threads keep
/// what they found, and ask again only for a route that is new to them.
#[derive(Debug, Default)]
pub struct Backends {
    states: Mutex<HashMap<BackendKey, States>>,
}

/// Nearly always one.
type States = Vec<(UpstreamKey, Arc<BackendState>)>;

impl From<PassivePolicy> for Passive {
    fn from(policy: PassivePolicy) -> Passive {
        let ms = |seconds: u32| u64::from(seconds) * 1000;
        Passive { failures: policy.failures, window_ms: ms(policy.window), pause_ms: ms(policy.pause) }
    }
}

impl BackendState {
    /// A backend that becomes usable now.
    pub fn new(now_ms: u64) -> BackendState {
        BackendState::with(Arc::default(), now_ms)
    }

    fn with(slots: Arc<Slots>, now_ms: u64) -> BackendState {
        BackendState {
            slots,
            gate: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            usable_since: AtomicU64::new(now_ms),
            pauses: AtomicU32::new(0),
            met: LastMet::default(),
        }
    }

    /// Takes a slot for a request; `limit` 0 is none.
    pub fn enter(&self, limit: u32) -> Result<InFlight, Full> {
        self.slots.enter(limit)
    }

    /// Waits for a slot behind fewer than `most` others.
    pub fn wait(&self, limit: u32, most: u32) -> Result<Waiting, QueueFull> {
        self.slots.wait(limit, most)
    }

    /// Whether a request would have to wait.
    pub fn is_full(&self, limit: u32) -> bool {
        self.slots.is_full(limit)
    }

    /// Requests carried now.
    pub fn in_flight(&self) -> u32 {
        self.slots.in_flight()
    }

    /// Requests that wait for a slot now.
    pub fn waiting(&self) -> u32 {
        self.slots.waiting()
    }

    /// Whether it is anything but closed.
    pub fn is_suspect(&self) -> bool {
        self.gate.load(Relaxed) != 0
    }

    /// Whether [`BackendState::claim`] would allow a request.
    pub fn may_pass(&self, now_ms: u64) -> bool {
        now_ms >= self.gate.load(Relaxed) >> 1
    }

    /// Asks to send a request. After a pause one gets [`Passage::Trial`], and the others wait for its outcome,
    /// or for another pause when it has none.
    pub fn claim(&self, now_ms: u64, pause_ms: u64) -> Passage {
        let gate = self.gate.load(Relaxed);
        if gate == 0 {
            return Passage::Free;
        }
        if now_ms < gate >> 1 {
            return Passage::Paused;
        }
        let trial = gate_until(now_ms, pause_ms) | 1;
        match self.gate.compare_exchange(gate, trial, Relaxed, Relaxed) {
            Ok(_) => Passage::Trial,
            Err(_) => Passage::Paused,
        }
    }

    /// The backend answered. Only a trial ends a pause: what was sent before it began says little of what
    /// happened since.
    pub fn succeeded(&self, trial: bool, now_ms: u64) {
        let gate = self.gate.load(Relaxed);
        if gate != 0
            && (trial || now_ms >= gate >> 1)
            && self.gate.compare_exchange(gate, 0, Relaxed, Relaxed).is_ok()
        {
            self.failures.store(0, Relaxed);
            self.became_usable(now_ms);
        }
    }

    /// The backend took no connection, broke it, or was too slow. Returns whether a pause begins.
    pub fn failed(&self, trial: bool, passive: &Passive, now_ms: u64) -> bool {
        if passive.failures == 0 {
            return false;
        }
        let gate = self.gate.load(Relaxed);
        let begins = match gate {
            0 => self.count_failure(passive.window_ms, now_ms) >= passive.failures,
            // Latecomers of the time before the pause do not make it longer.
            _ => trial || now_ms >= gate >> 1,
        };
        let pause = gate_until(now_ms, passive.pause_ms);
        if begins && self.gate.compare_exchange(gate, pause, Relaxed, Relaxed).is_ok() {
            self.failures.store(0, Relaxed);
            self.pauses.fetch_add(1, Relaxed);
            return true;
        }
        false
    }

    /// Begins a slow start: the probes say that it is healthy again.
    pub fn became_usable(&self, now_ms: u64) {
        self.usable_since.store(now_ms, Relaxed);
    }

    /// The share of requests that it may get, 1 to 256; grows over `slow_start_ms` (0 for at once).
    pub fn weight(&self, now_ms: u64, slow_start_ms: u64) -> u32 {
        if slow_start_ms == 0 {
            return FULL_WEIGHT;
        }
        let passed = now_ms.saturating_sub(self.usable_since.load(Relaxed));
        if passed >= slow_start_ms {
            return FULL_WEIGHT;
        }
        let grown = u128::from(FULL_WEIGHT) * u128::from(passed) / u128::from(slow_start_ms);
        (grown as u32).max(FIRST_WEIGHT)
    }

    /// Whether requests go there now.
    pub fn circuit(&self, now_ms: u64) -> Circuit {
        let gate = self.gate.load(Relaxed);
        match gate {
            0 => Circuit::Closed,
            _ if gate & 1 == 1 || now_ms >= gate >> 1 => Circuit::HalfOpen,
            _ => Circuit::Open { until_ms: gate >> 1 },
        }
    }

    /// What is shown of it.
    pub fn load(&self, now_ms: u64) -> BackendLoad {
        BackendLoad {
            in_flight: self.in_flight(),
            waiting: self.waiting(),
            failures: (self.failures.load(Relaxed) & COUNT_MASK) as u32,
            pauses: self.pauses.load(Relaxed),
            circuit: self.circuit(now_ms),
            last_failure: self.met.failure(now_ms),
            is_known: self.met.is_known(),
            usable_for_ms: now_ms.saturating_sub(self.usable_since.load(Relaxed)),
        }
    }

    /// Counts a failure in the window that the first one begins; returns how many it holds.
    fn count_failure(&self, window_ms: u64, now_ms: u64) -> u32 {
        let count = |word: u64| {
            let (began, count) = (word >> COUNT_BITS, word & COUNT_MASK);
            if count == 0 || now_ms.saturating_sub(began) > window_ms {
                (now_ms << COUNT_BITS) | 1
            } else {
                (word & !COUNT_MASK) | (count + 1).min(COUNT_MASK)
            }
        };
        let before = self.failures.fetch_update(Relaxed, Relaxed, |word| Some(count(word)));
        (count(before.unwrap_or_else(|word| word)) & COUNT_MASK) as u32
    }
}

impl Backends {
    /// The state of a backend; a new one becomes usable now.
    pub fn state(&self, key: &UpstreamKey, now_ms: u64) -> Arc<BackendState> {
        let mut all = self.lock();
        let states = all.entry(key.backend).or_default();
        if let Some((_, state)) = states.iter().find(|(known, _)| known == key) {
            return state.clone();
        }
        let slots = states.first().map(|(_, state)| state.slots.clone()).unwrap_or_default();
        let state = Arc::new(BackendState::with(slots, now_ms));
        states.push((key.clone(), state.clone()));
        state
    }

    /// The state of a backend that is known already.
    pub fn find(&self, key: &UpstreamKey) -> Option<Arc<BackendState>> {
        let all = self.lock();
        let (_, state) = all.get(&key.backend)?.iter().find(|(known, _)| known == key)?;
        Some(state.clone())
    }

    /// The states of a backend, however it is spoken to.
    pub fn of(&self, backend: &BackendKey) -> Vec<Arc<BackendState>> {
        let all = self.lock();
        all.get(backend).into_iter().flatten().map(|(_, state)| state.clone()).collect()
    }

    /// Forgets the backends that the world no longer has. Requests that are on their way to one end as they
    /// would have.
    pub fn retain(&self, mut is_known: impl FnMut(&UpstreamKey) -> bool) {
        self.lock().retain(|_, states| {
            states.retain(|(key, _)| is_known(key));
            !states.is_empty()
        });
    }

    /// Every backend as it is now.
    pub fn loads(&self, now_ms: u64) -> HashMap<UpstreamKey, BackendLoad> {
        let all = self.lock();
        all.values().flatten().map(|(key, state)| (key.clone(), state.load(now_ms))).collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<BackendKey, States>> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BackendLoad {
    /// What requests meet, as far as the last one tells; `None` when it was answered, or a probe since.
    pub fn failing(&self) -> Option<Reason> {
        self.last_failure.filter(|last| !last.is_past).map(|last| last.reason)
    }
}

impl Circuit {
    /// The word used in status.
    pub fn as_str(self) -> &'static str {
        match self {
            Circuit::Closed => "closed",
            Circuit::Open { .. } => "open",
            Circuit::HalfOpen => "half_open",
        }
    }
}

/// A gate that is shut for `pause_ms`, at least for one: 0 would mean closed.
fn gate_until(now_ms: u64, pause_ms: u64) -> u64 {
    now_ms.saturating_add(pause_ms.max(1)).min(u64::MAX >> 1) << 1
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddrV4};

    use proximity_table::{BackendProtocol, BackendTls};

    use super::*;

    const PASSIVE: Passive = Passive { failures: 3, window_ms: 1000, pause_ms: 500 };

    fn paused_at(now: u64) -> BackendState {
        let state = BackendState::new(0);
        assert!(!state.failed(false, &PASSIVE, now));
        assert!(!state.failed(false, &PASSIVE, now));
        assert!(state.failed(false, &PASSIVE, now));
        state
    }

    #[test]
    fn failures_within_the_window_pause_it() {
        let state = paused_at(100);
        assert_eq!(state.circuit(100), Circuit::Open { until_ms: 600 });
        assert_eq!(state.claim(599, 500), Passage::Paused);
        assert!(!state.may_pass(599) && state.may_pass(600));
        assert_eq!((state.load(100).pauses, state.load(100).failures), (1, 0));
        // What was on its way when the pause began changes nothing.
        state.succeeded(false, 200);
        assert!(!state.failed(false, &PASSIVE, 300));
        assert_eq!(state.circuit(300), Circuit::Open { until_ms: 600 });
    }

    #[test]
    fn failures_far_apart_do_not() {
        let state = BackendState::new(0);
        for now in [0, 600, 1100, 1700, 2300, 2900] {
            assert!(!state.failed(false, &PASSIVE, now), "at {now}");
        }
        assert_eq!(state.circuit(2900), Circuit::Closed);
        let off = Passive { failures: 0, ..PASSIVE };
        assert!((0..100).all(|_| !state.failed(false, &off, 0)));
        assert_eq!(state.claim(0, 500), Passage::Free);
    }

    #[test]
    fn one_request_tries_it_after_the_pause() {
        let state = paused_at(0);
        assert_eq!(state.circuit(500), Circuit::HalfOpen);
        assert_eq!(state.claim(500, 500), Passage::Trial);
        assert_eq!(state.claim(501, 500), Passage::Paused);
        assert_eq!(state.circuit(501), Circuit::HalfOpen);
        state.succeeded(true, 510);
        assert_eq!(state.circuit(510), Circuit::Closed);
        assert_eq!(state.claim(510, 500), Passage::Free);
        assert_eq!(state.weight(510, 1000), FIRST_WEIGHT, "it starts slowly");
    }

    #[test]
    fn a_trial_that_fails_pauses_it_again_and_one_without_end_only_for_a_while() {
        let state = paused_at(0);
        assert_eq!(state.claim(500, 500), Passage::Trial);
        assert!(state.failed(true, &PASSIVE, 520));
        assert_eq!(state.circuit(1019), Circuit::Open { until_ms: 1020 });
        assert_eq!(state.claim(1020, 500), Passage::Trial);
        assert_eq!(state.claim(1519, 500), Passage::Paused);
        assert_eq!(state.claim(1520, 500), Passage::Trial);
    }

    #[test]
    fn one_of_many_threads_gets_the_trial() {
        let state = paused_at(0);
        let trials = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let got = (0..1000).filter(|_| state.claim(700, 500) == Passage::Trial).count();
                    trials.fetch_add(got as u32, Relaxed);
                });
            }
        });
        assert_eq!(trials.load(Relaxed), 1);
    }

    #[test]
    fn weight_grows_over_the_slow_start() {
        let state = BackendState::new(1000);
        assert_eq!(state.weight(1000, 0), FULL_WEIGHT);
        assert_eq!(state.weight(0, 1000), FIRST_WEIGHT);
        assert_eq!(state.weight(1500, 1000), FULL_WEIGHT / 2);
        assert_eq!(state.weight(2000, 1000), FULL_WEIGHT);
        assert_eq!(state.weight(u64::MAX, u64::MAX), FULL_WEIGHT - 1);
    }

    #[test]
    fn extreme_times_do_not_overflow() {
        let state = BackendState::new(u64::MAX);
        let passive = Passive { failures: 1, window_ms: u64::MAX, pause_ms: u64::MAX };
        assert!(state.failed(false, &passive, u64::MAX));
        assert_ne!(state.circuit(0), Circuit::Closed);
    }

    #[test]
    fn the_next_owner_of_an_address_starts_anew_and_the_former_is_forgotten() {
        let addr = SocketAddrV4::new(Ipv4Addr::new(10, 20, 0, 9), 80);
        let [old, new] = [1, 2].map(|epoch| UpstreamKey::plain(BackendKey { addr, epoch }));
        let backends = Backends::default();
        let slot = backends.state(&old, 0).enter(0).unwrap();
        assert_eq!(backends.state(&old, 5).in_flight(), 1);
        assert_eq!(backends.state(&new, 5).in_flight(), 0);
        assert_eq!(backends.loads(5).len(), 2);
        backends.retain(|key| *key == new);
        assert!(backends.find(&old).is_none() && backends.find(&new).is_some());
        drop(slot);
    }

    #[test]
    fn what_is_wrong_with_one_way_to_speak_to_a_backend_does_not_pause_another() {
        let addr = SocketAddrV4::new(Ipv4Addr::new(10, 20, 0, 9), 443);
        let clear = UpstreamKey::plain(BackendKey { addr, epoch: 1 });
        let tls = BackendTls::default();
        let https = UpstreamKey::new(clear.backend, BackendProtocol::Https, &tls);
        let backends = Backends::default();
        let (wrong, right) = (backends.state(&clear, 0), backends.state(&https, 0));
        assert!((0..3).any(|_| wrong.failed(false, &PASSIVE, 0)), "it is paused");
        assert_eq!(wrong.circuit(0), Circuit::Open { until_ms: 500 });
        assert_eq!(right.circuit(0), Circuit::Closed);
        // It carries as many requests as it may, whoever sends them.
        let slot = wrong.enter(1).unwrap();
        assert!(right.is_full(1) && backends.of(&clear.backend).len() == 2);
        drop(slot);
        assert!(!right.is_full(1));
    }
}
