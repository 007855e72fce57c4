use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, header};
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use proximity_table::{BackendKey, Health, HealthPolicy, ProbeKind, Timestamp, World};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use crate::clock::unix_seconds;
use crate::targets::{Change, TargetKey, Targets};
use crate::{Monitor, Outcome, Snapshot};

/// Probes on their way at once. Ten thousand vhosts at 30 s are 333 probes a second of some milliseconds.
const MOST_AT_ONCE: usize = 256;
/// Comparing worlds may take this share of the time: after it took t, the next waits 20 t.
const REST: u32 = 20;

/// A backend came to another verdict; `None` when it is no longer probed.
pub type HealthReport = (Arc<str>, BackendKey, Option<Health>);

/// Probes every backend and every forward's target of the present world and reports changes of the verdict, until `generations` or
/// `reports` is closed. `generations` tells that a new world is in `snapshot`; `seed` spreads the probes.
pub async fn probe(
    snapshot: Snapshot,
    mut generations: watch::Receiver<u64>,
    reports: mpsc::Sender<HealthReport>,
    seed: u64,
) {
    let mut schedule = Schedule { random: seed, ..Schedule::default() };
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
                if let Some(report) = schedule.change(change, &world)
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
                    && let Some(report) = schedule.finish(id, turn, outcome)
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
    random: u64,
}

struct Entry {
    key: TargetKey,
    policy: Arc<HealthPolicy>,
    monitor: Monitor,
    turn: u64,
    reported: bool,
}

impl Schedule {
    fn change(&mut self, change: Change, world: &World) -> Option<HealthReport> {
        match change {
            Change::Probe(key, policy) => {
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
                    policy: policy.clone(),
                    turn: 0,
                });
                entry.policy = policy;
                entry.turn += 1;
                self.due.push(Reverse((Instant::now(), id, entry.turn)));
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
                let (key, policy) = (entry.key.1, entry.policy.clone());
                self.running.spawn(async move { (id, turn, ask(key, &policy).await) });
            }
            self.due.pop();
        }
    }

    fn next_due(&self) -> Option<Instant> {
        let free = self.running.len() < MOST_AT_ONCE;
        self.due.peek().filter(|_| free).map(|Reverse((at, ..))| *at)
    }

    fn finish(&mut self, id: u64, turn: u64, outcome: Outcome) -> Option<HealthReport> {
        let entropy = splitmix(&mut self.random);
        let entry = self.entries.get_mut(&id).filter(|entry| entry.turn == turn)?;
        let health = entry.monitor.handle_outcome(outcome, &entry.policy, Timestamp(unix_seconds()));
        let wait = entry.monitor.wait(&entry.policy, entropy);
        self.due.push(Reverse((Instant::now() + wait, id, turn)));
        let health = health?;
        entry.reported = true;
        Some((entry.key.0.clone(), entry.key.1, Some(health)))
    }
}

/// One probe: a GET on a connection of its own, judged by the status alone; or nothing but the connection.
async fn ask(key: BackendKey, policy: &HealthPolicy) -> Outcome {
    let limit = Duration::from_secs(u64::from(policy.timeout.max(1)));
    timeout(limit, exchange(key, policy)).await.unwrap_or(Outcome::TimedOut)
}

async fn exchange(key: BackendKey, policy: &HealthPolicy) -> Outcome {
    let stream = match TcpStream::connect(key.addr).await {
        Ok(stream) => stream,
        Err(error) => return why_not(&error),
    };
    if policy.kind == ProbeKind::Connect {
        return Outcome::Connected;
    }
    let request = Request::get(policy.uri.as_str())
        .header(header::HOST, key.addr.to_string())
        .header(header::USER_AGENT, "Proximity-Health/1")
        .header(header::ACCEPT, "*/*")
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new());
    // A path that cannot be asked for is the configuration's fault; config validation refuses it.
    let Ok(request) = request else { return Outcome::Broke };
    let Ok((mut sender, connection)) = http1::handshake(TokioIo::new(stream)).await else {
        return Outcome::Broke;
    };
    tokio::pin!(connection);
    let mut answer = std::pin::pin!(sender.send_request(request));
    tokio::select! {
        biased;
        answer = &mut answer => judge(answer),
        // The connection may end in the same moment in which it delivers the answer.
        _ = &mut connection => judge(answer.await),
    }
}

fn judge<B>(answer: hyper::Result<http::Response<B>>) -> Outcome {
    answer.map_or(Outcome::Broke, |response| Outcome::Answered(response.status().as_u16()))
}

fn why_not(error: &io::Error) -> Outcome {
    match error.kind() {
        io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => Outcome::Refused,
        io::ErrorKind::TimedOut => Outcome::TimedOut,
        _ => Outcome::Unreachable,
    }
}

/// SplitMix64: spreads probes; no secret hangs on it.
fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}
