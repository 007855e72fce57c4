use std::sync::Arc;

use proximity_table::{BackendKey, PassivePolicy, ResolvedForward, StreamPolicy, UpstreamKey};

use crate::Reason;
use crate::backend_slots::InFlight;
use crate::backend_state::{Backends, Passive};
use crate::balance::{Ask, Choice, Chosen, Member, Rules, Sticky, Tried, choose};

/// Targets that one connection tries at most: as many as are remembered to have been tried.
const MOST_TRIES: usize = 8;

/// The targets that one connection of a forward may go to, and those that it has tried.
#[derive(Debug)]
pub struct Attempts {
    members: Vec<Member>,
    rules: Rules,
    passive: Passive,
    turn: usize,
    entropy: u64,
    tried: Tried,
    tries: usize,
}

/// A target that is to be tried.
#[derive(Debug)]
pub struct Attempt {
    /// What it is known by.
    pub key: BackendKey,
    /// Its place among those that are busy there, until dropped.
    pub slot: InFlight,
    index: usize,
    trial: bool,
}

impl Attempts {
    /// The usable targets of a forward. `turn` counts its connections, `entropy` is another number each time.
    pub fn new(
        forward: &ResolvedForward,
        policy: &StreamPolicy,
        backends: &Backends,
        turn: usize,
        entropy: u64,
        now_ms: u64,
    ) -> Attempts {
        let passive = PassivePolicy::default();
        let member = |key| Member { key, state: backends.state(&UpstreamKey::plain(key), now_ms) };
        Attempts {
            members: forward.usable().map(|target| member(target.key)).collect(),
            rules: Rules {
                spread: policy.balance,
                pause_ms: Passive::from(passive).pause_ms,
                ..Rules::default()
            },
            passive: passive.into(),
            turn,
            entropy,
            tried: Tried::default(),
            tries: 0,
        }
    }

    /// Whether there is no target at all.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// The target to try next; `None` when all were tried.
    pub fn next(&mut self, now_ms: u64) -> Option<Attempt> {
        if self.tries >= MOST_TRIES.min(self.members.len()) {
            return None;
        }
        let ask =
            Ask { turn: self.turn, entropy: self.entropy, now_ms, sticky: Sticky::Free, tried: self.tried };
        let Choice::Chosen(Chosen { index, slot, trial, .. }) = choose(&self.members, &self.rules, &ask)
        else {
            return None;
        };
        self.tries += 1;
        self.tried.add(index);
        Some(Attempt { key: self.members[index].key, slot, index, trial })
    }

    /// The target took the connection.
    pub fn succeeded(&self, attempt: &Attempt, now_ms: u64) {
        let state = &self.members[attempt.index].state;
        state.succeeded(attempt.trial, now_ms);
        state.met.note_answer();
    }

    /// The target did not, and what was met instead. After some of that it is left alone for a while, if there is
    /// another one.
    pub fn failed(&self, attempt: &Attempt, met: Reason, now_ms: u64) {
        let state = &self.members[attempt.index].state;
        state.failed(attempt.trial, &self.passive, now_ms);
        state.met.note_failure(met, now_ms);
    }
}

/// Whether a forward still leads to a target.
pub fn leads_to(forward: Option<&Arc<ResolvedForward>>, key: &BackendKey) -> bool {
    forward.is_some_and(|forward| {
        forward.proxy.is_some() && forward.targets.iter().any(|target| target.key == *key)
    })
}

#[cfg(test)]
mod tests {
    use proximity_table::{Backend, Balance, Health, HealthPolicy, HealthState, Protocol, Timestamp};

    use super::*;

    fn key(last: u8) -> BackendKey {
        BackendKey { addr: format!("10.20.0.{last}:22").parse().unwrap(), epoch: u64::from(last) }
    }

    fn forward(targets: &[u8]) -> ResolvedForward {
        ResolvedForward {
            protocol: Protocol::Tcp,
            port: 2222,
            health: None,
            proxy: Some(StreamPolicy::default().into()),
            targets: targets.iter().map(|&last| Backend { key: key(last), health: None }).collect(),
        }
    }

    fn attempts(forward: &ResolvedForward, backends: &Backends, turn: usize) -> Attempts {
        let policy = forward.proxy.as_deref().unwrap();
        Attempts::new(forward, policy, backends, turn, 7, 0)
    }

    fn chosen(forward: &ResolvedForward, backends: &Backends, turn: usize) -> Option<u64> {
        attempts(forward, backends, turn).next(0).map(|attempt| attempt.key.epoch)
    }

    #[test]
    fn connections_take_turns_and_each_target_is_tried_once() {
        let (forward, backends) = (forward(&[1, 2, 3]), Backends::default());
        let first: Vec<_> = (0..4).map(|turn| chosen(&forward, &backends, turn)).collect();
        assert_eq!(first, [Some(1), Some(2), Some(3), Some(1)]);
        let mut attempts = attempts(&forward, &backends, 0);
        let mut tried: Vec<_> =
            std::iter::from_fn(|| attempts.next(0)).map(|attempt| attempt.key.epoch).collect();
        tried.sort_unstable();
        assert_eq!(tried, [1, 2, 3]);
    }

    #[test]
    fn the_least_busy_gets_the_next() {
        let mut forward = forward(&[1, 2]);
        let policy = StreamPolicy { balance: Balance::LeastConnections, ..StreamPolicy::default() };
        forward.proxy = Some(policy.into());
        let backends = Backends::default();
        let held = attempts(&forward, &backends, 0).next(0).unwrap();
        assert_eq!(held.key, key(1));
        assert!((0..4).all(|turn| chosen(&forward, &backends, turn) == Some(2)));
        drop(held);
        assert_eq!(chosen(&forward, &backends, 0), Some(1));
    }

    #[test]
    fn who_fails_is_left_alone_while_there_is_another() {
        let (both, backends) = (forward(&[1, 2]), Backends::default());
        for _ in 0..3 {
            let mut attempts = attempts(&both, &backends, 0);
            let first = attempts.next(0).unwrap();
            assert_eq!(first.key, key(1));
            attempts.failed(&first, Reason::BackendRefused, 0);
            let second = attempts.next(0).unwrap();
            assert_eq!(second.key, key(2), "the next one is taken");
            attempts.succeeded(&second, 0);
        }
        assert!((0..4).all(|turn| chosen(&both, &backends, turn) == Some(2)));
        assert_eq!(chosen(&forward(&[1]), &backends, 0), Some(1), "a sole target is never paused");
    }

    #[test]
    fn probes_decide_who_is_asked() {
        let mut forward = forward(&[1, 2]);
        let health = Health { state: HealthState::Healthy, since: Timestamp(1), reason: None };
        forward.targets[1].health = Some(health);
        let backends = Backends::default();
        assert_eq!(chosen(&forward, &backends, 0), Some(1), "without probes a verdict means nothing");
        forward.health = Some(HealthPolicy::connect().into());
        assert!((0..4).all(|turn| chosen(&forward, &backends, turn) == Some(2)));
    }

    #[test]
    fn a_target_is_the_forwards_for_as_long_as_its_lease_lasts() {
        let mut forward = forward(&[1]);
        let leads = |forward: &ResolvedForward| leads_to(Some(&Arc::new(forward.clone())), &key(1));
        assert!(leads(&forward) && !leads_to(None, &key(1)));
        forward.targets[0].key.epoch += 1;
        assert!(!leads(&forward), "the address has another owner");
        forward.targets.clear();
        assert!(!leads(&forward));
        assert!(attempts(&forward, &Backends::default(), 0).is_empty());
        let mut translated = self::forward(&[1]);
        translated.proxy = None;
        assert!(!leads(&translated));
    }
}
