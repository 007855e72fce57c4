//! Which upstreams are asked, in which order, and when the next one is asked too.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use proximity_table::Timestamp;
use tokio::time::Instant;

use crate::ede::Ede;
use crate::health::Health;
use crate::link::{Asked, SharedLink};
use crate::said::{Said, TtlBounds};

/// No question takes longer, whatever happens below; clients give up after five seconds (resolv.conf(5)).
const DEADLINE: Duration = Duration::from_millis(4500);
/// The next upstream is asked too when the first took longer than is usual for it, but not sooner or later than this.
const HEDGE: [Duration; 2] = [Duration::from_millis(50), Duration::from_millis(500)];
/// Every so many questions two upstreams are asked at once, so that it is known how the others do.
const EXPLORE: usize = 32;
/// When all upstreams are down, one question in this time is sent to see whether they are back.
const PROBE: Duration = Duration::from_millis(1000);

/// One upstream.
pub(crate) struct Runner {
    pub label: String,
    pub link: SharedLink,
    pub health: Health,
}

/// The upstreams for a domain.
pub(crate) struct Runners {
    runners: Vec<Arc<Runner>>,
    asked: AtomicUsize,
    started: Instant,
    /// Milliseconds after `started` of the last question that was sent while all were down.
    probed: AtomicU64,
}

impl Runners {
    pub fn new(runners: Vec<Arc<Runner>>) -> Runners {
        Runners { runners, asked: AtomicUsize::new(0), started: Instant::now(), probed: AtomicU64::new(0) }
    }

    pub fn iter(&self) -> impl Iterator<Item = &Arc<Runner>> {
        self.runners.iter()
    }

    /// Asks the best upstream, the next ones when it fails or is slow, and all of them a second time when no answer
    /// came; the first usable answer counts.
    pub async fn ask(
        &self,
        asked: &Asked,
        bounds: &TtlBounds,
        clock: fn() -> Timestamp,
    ) -> Result<Said, Ede> {
        if !self.may_ask() {
            return Err(Ede::NoReachableAuthority);
        }
        let race = self.race(asked, bounds, clock);
        tokio::time::timeout(DEADLINE, race).await.unwrap_or(Err(Ede::NoReachableAuthority))
    }

    async fn race(&self, asked: &Asked, bounds: &TtlBounds, clock: fn() -> Timestamp) -> Result<Said, Ede> {
        let order = self.order();
        let mut next = order.iter().chain(&order);
        let mut running = FuturesUnordered::new();
        let (mut begun, mut why) = (0, None);
        let mut at_once =
            if order.len() > 1 && self.asked.fetch_add(1, Relaxed) % EXPLORE == EXPLORE - 1 { 2 } else { 1 };
        loop {
            let mut wait = HEDGE[1];
            for &index in next.by_ref().take(at_once) {
                let runner = self.runners[index].clone();
                wait = runner.health.mean().map_or(HEDGE[1], |mean| mean * 2).clamp(HEDGE[0], HEDGE[1]);
                running.push(run(runner, asked.clone(), *bounds, clock));
                begun += 1;
            }
            if running.is_empty() {
                return Err(why.unwrap_or(Ede::NoReachableAuthority));
            }
            at_once = tokio::select! {
                Some(result) = running.next() => match result {
                    Ok(said) => {
                        if !running.is_empty() {
                            // How the slower ones do is worth knowing.
                            tokio::spawn(async move { while running.next().await.is_some() {} });
                        }
                        return Ok(said);
                    }
                    Err(error) => {
                        why = Some(why.map_or(error, |before| weightier(before, error)));
                        1
                    }
                },
                // A second round is for those that were asked in vain, not for those that are still at it.
                () = tokio::time::sleep(wait), if begun < order.len() => 1,
                else => 0,
            };
        }
    }

    /// Those that are up first, among them the fastest first; one that was never asked has its chance early. Whose
    /// turn it is to be explored comes second.
    fn order(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.runners.len()).collect();
        order.sort_by_cached_key(|index| {
            let health = &self.runners[*index].health;
            (!health.is_up(), health.mean().unwrap_or_default())
        });
        let asked = self.asked.load(Relaxed);
        if order.len() > 2 && asked % EXPLORE == EXPLORE - 1 {
            let turn = 1 + asked / EXPLORE % (order.len() - 1);
            order.swap(1, turn);
        }
        order
    }

    /// Whether there is a point in asking: an upstream is up, or it is time to see.
    fn may_ask(&self) -> bool {
        if self.runners.iter().any(|runner| runner.health.is_up()) {
            return true;
        }
        let now = self.started.elapsed().as_millis() as u64;
        let last = self.probed.load(Relaxed);
        let is_time = last == 0 || now.saturating_sub(last) >= PROBE.as_millis() as u64;
        is_time && self.probed.compare_exchange(last, now.max(1), Relaxed, Relaxed).is_ok()
    }
}

async fn run(
    runner: Arc<Runner>,
    asked: Asked,
    bounds: TtlBounds,
    clock: fn() -> Timestamp,
) -> Result<Said, Ede> {
    let started = Instant::now();
    let result = runner.link.ask(&asked, &bounds).await;
    match &result {
        // With the last two it answered, although nothing of use.
        Ok(_) | Err(Ede::Other | Ede::DnssecBogus) => runner.health.answered(started.elapsed(), clock().0),
        Err(_) => runner.health.failed(clock().0),
    }
    result
}

/// Which of two reasons says more.
fn weightier(a: Ede, b: Ede) -> Ede {
    let weight = |ede| match ede {
        Ede::DnssecBogus => 3,
        Ede::Other => 2,
        Ede::NetworkError => 1,
        _ => 0,
    };
    if weight(b) > weight(a) { b } else { a }
}
