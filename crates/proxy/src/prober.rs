use std::cell::Cell;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;

use proximity_table::{Health, HealthState, ProbeKey, Timestamp, UpstreamKey, World};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use crate::clock::unix_seconds;
use crate::health::meets;
use crate::probe_exchange::{SpeaksClear, ask};
use crate::targets::{Change, ProbePlan, TargetKey, Targets};
use crate::tls::Tls;
use crate::{KeptAuthorities, Monitor, Outcome, Reason, Snapshot, mixing};

/// Probes on their way at once. Ten thousand vhosts at 30 s are 333 probes a second of some milliseconds.
const MOST_AT_ONCE: usize = 256;
/// Comparing worlds may take this share of the time: after it took t, the next waits 20 t.
const REST: u32 = 20;

/// A backend of an app came to another verdict on what it is asked; `None` when it is asked no longer.
pub type HealthReport = (Arc<str>, ProbeKey, Option<Health>);

/// A probe that is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probed {
    /// The backend, and how it was spoken to.
    pub upstream: UpstreamKey,
    /// What requests meet there, where the probe asked as they do: an answer, or what follows from a connection that
    /// did not come about. `None` where that does not follow.
    pub met: Option<Result<(), Reason>>,
    /// Whether it became healthy by it.
    pub became_healthy: bool,
}

/// Probes every backend and every forward's target of the present world and reports changes of the verdict, until
/// `generations` or `reports` is closed. `generations` tells that a new world is in `snapshot`; `told` is
/// told of each probe, before the report; `authorities` are those that requests trust, too; `seed` spreads the probes.
pub async fn probe(
    snapshot: Snapshot,
    mut generations: watch::Receiver<u64>,
    reports: mpsc::Sender<HealthReport>,
    told: impl Fn(Probed),
    authorities: Arc<KeptAuthorities>,
    seed: u64,
) {
    let tls = Arc::new(Tls::new(authorities));
    let mut schedule = Schedule { random: Cell::new(seed), tls, ..Schedule::default() };
    let mut targets = Targets::default();
    let mut next_look = Instant::now();
    let mut look_due = true;
    loop {
        if look_due && Instant::now() >= next_look {
            look_due = false;
            let began = Instant::now();
            generations.mark_unchanged();
            let world = snapshot.load_full();
            for change in targets.follow(&world) {
                if let Some(report) = schedule.change(change, &world, began)
                    && reports.send(report).await.is_err()
                {
                    return;
                }
            }
            next_look = began + began.elapsed() * REST;
        }
        schedule.start_due(Instant::now());
        let wake = [schedule.next_due(), look_due.then_some(next_look)].into_iter().flatten().min();
        tokio::select! {
            changed = generations.changed(), if !look_due => {
                if changed.is_err() {
                    return;
                }
                look_due = true;
            }
            Some(done) = schedule.running.join_next() => {
                if let Ok((id, turn, outcome)) = done
                    && let Some(report) = schedule.finish(id, turn, outcome, Instant::now(), &told)
                    && reports.send(report).await.is_err()
                {
                    return;
                }
            }
            () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {}
            () = reports.closed() => return,
        }
    }
}

/// When which backend is probed.
#[derive(Default)]
struct Schedule {
    ids: HashMap<TargetKey, u64>,
    entries: HashMap<u64, Entry>,
    /// Time, id and turn; an entry with another turn has been put anew.
    due: BinaryHeap<Reverse<(Instant, u64, u64)>>,
    running: JoinSet<(u64, u64, Outcome)>,
    next_id: u64,
    random: Cell<u64>,
    tls: Arc<Tls>,
}

struct Entry {
    key: TargetKey,
    plan: Arc<ProbePlan>,
    monitor: Monitor,
    turn: u64,
    reported: bool,
    speaks_clear: Option<SpeaksClear>,
}

impl Schedule {
    fn change(&mut self, change: Change, world: &World, now: Instant) -> Option<HealthReport> {
        match change {
            Change::Probe(key, plan) => {
                let id = *self.ids.entry(key.clone()).or_insert_with(|| {
                    self.next_id += 1;
                    self.next_id
                });
                // What another process found before us holds until our own probes say otherwise.
                let known = world.facts.health(&key.0, key.1);
                let entry = self.entries.entry(id).or_insert_with(|| Entry {
                    reported: known.is_some(),
                    monitor: match known {
                        Some(health) => Monitor::known(health.clone()),
                        None => Monitor::new(Timestamp(unix_seconds())),
                    },
                    key,
                    plan: plan.clone(),
                    turn: 0,
                    speaks_clear: None,
                });
                entry.plan = plan;
                entry.turn += 1;
                self.due.push(Reverse((now, id, entry.turn)));
                None
            }
            Change::Forget(key) => {
                let entry = self.entries.remove(&self.ids.remove(&key)?)?;
                // A backend of which nothing was said needs no word when it goes.
                entry.reported.then_some((key.0, key.1, None))
            }
        }
    }

    fn start_due(&mut self, now: Instant) {
        while self.running.len() < MOST_AT_ONCE {
            let Some(&Reverse((at, id, turn))) = self.due.peek() else { return };
            let entry = self.entries.get(&id).filter(|entry| entry.turn == turn);
            if let Some(entry) = entry {
                if at > now {
                    return;
                }
                let (addr, known) = (entry.key.1.backend.addr, entry.speaks_clear);
                let (plan, tls) = (entry.plan.clone(), self.tls.clone());
                self.running.spawn(async move { (id, turn, ask(addr, &plan, &tls, known).await) });
            }
            self.due.pop();
        }
    }

    fn next_due(&self) -> Option<Instant> {
        let free = self.running.len() < MOST_AT_ONCE;
        self.due.peek().filter(|_| free).map(|Reverse((at, ..))| *at)
    }

    fn finish(
        &mut self,
        id: u64,
        turn: u64,
        outcome: Outcome,
        now: Instant,
        told: impl Fn(Probed),
    ) -> Option<HealthReport> {
        let entropy = mixing::next(&self.random);
        let entry = self.entries.get_mut(&id).filter(|entry| entry.turn == turn)?;
        entry.speaks_clear = SpeaksClear::next(entry.speaks_clear, outcome);
        let policy = &entry.plan.policy;
        let was_healthy = entry.monitor.health().state == HealthState::Healthy;
        let health = entry.monitor.handle_outcome(outcome, policy, Timestamp(unix_seconds()));
        let wait = entry.monitor.wait(policy, entropy);
        self.due.push(Reverse((now + wait, id, turn)));
        let key = entry.key.1.backend;
        let asked_itself = policy.port.is_none_or(|port| port == key.addr.port());
        let met = match outcome.reason(policy) {
            None => Some(Ok(())),
            Some(reason) => meets(&reason).map(Err),
        };
        let became_healthy = !was_healthy && entry.monitor.health().state == HealthState::Healthy;
        let upstream = UpstreamKey::new(key, entry.plan.protocol, &entry.plan.tls);
        told(Probed { upstream, met: met.filter(|_| asked_itself), became_healthy });
        let health = health?;
        entry.reported = true;
        Some((entry.key.0.clone(), entry.key.1, Some(health)))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::time::Duration;

    use proximity_table::{BackendKey, Facts, Generation, Ledger};

    use super::*;

    /// What is probed at once when we start must not be probed at once for ever.
    #[test]
    fn probes_of_two_backends_fall_out_of_step() {
        let intent = proximity_config::Config::default().intent;
        let world = World::derive(Facts::new(intent, Ledger::default()), Generation(1));
        let start = Instant::now();
        let mut schedule = Schedule { random: Cell::new(21), ..Schedule::default() };
        for last in [5, 6] {
            let backend = BackendKey { addr: format!("10.20.0.{last}:80").parse().unwrap(), epoch: 0 };
            let change = Change::Probe(("wiki".into(), ProbeKey::plain(backend)), Arc::default());
            assert_eq!(schedule.change(change, &world, start), None);
        }
        // Every probe is answered at the instant for which it was planned, so nothing but the plan counts.
        let mut apart = Vec::new();
        for _ in 0..20 {
            let planned: Vec<_> = std::iter::from_fn(|| schedule.due.pop()).collect();
            let mut next = Vec::new();
            for Reverse((at, id, turn)) in planned {
                schedule.finish(id, turn, Outcome::Answered(200), at, |_| ());
                let found = schedule.due.iter().find(|Reverse((_, of, _))| *of == id).unwrap();
                let due = found.0.0;
                assert!((27.0..=33.0).contains(&(due - at).as_secs_f64()), "{:?}", due - at);
                next.push(due);
            }
            let [one, other] = next[..] else { panic!("{next:?}") };
            apart.push(one.max(other) - one.min(other));
        }
        // The first numbers of this seed are 3 % and 92 % of the 6 s by which an interval is spread.
        assert!(apart[0] > Duration::from_secs(5), "{apart:?}");
        assert_eq!(apart.iter().collect::<BTreeSet<_>>().len(), apart.len(), "each round is spread anew");
    }
}
