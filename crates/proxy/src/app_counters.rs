use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};

use crate::Reason;
use crate::histogram::{Durations, Histogram};
use crate::stats::add;

/// Apps that are counted one by one; those beyond are counted together with requests for nobody. It bounds
/// what is kept and what a scrape gets.
const MOST_APPS: usize = 1000;
/// Switching protocols: what follows is no answer whose duration says anything.
const SWITCHING: u16 = 101;

/// What one data thread counts of the requests for one app. Only that thread writes, so adding needs no locked
/// instruction.
#[derive(Debug, Default)]
pub struct AppCounters {
    responses: [AtomicU64; 6],
    durations: Histogram,
    received: AtomicU64,
    sent: AtomicU64,
    turned_away: [AtomicU64; TURNS_AWAY.len()],
}

/// What was counted of an app.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AppTotals {
    /// Requests by the class of their answer: `[0]` is none sent, `[2]` is 2xx.
    pub responses: [u64; 6],
    /// How long they took, those that changed to another protocol left out.
    pub durations: Durations,
    /// Body octets received from clients.
    pub received: u64,
    /// Body octets sent to clients.
    pub sent: u64,
    /// Requests by the rule that turned them away, in the order of [`TURNS_AWAY`].
    turned_away: [u64; TURNS_AWAY.len()],
}

/// The counters of all apps and threads.
///
/// What was counted is never lost: an app that leaves the table takes its name with it, and its counts join
/// those of nobody, also the ones of requests that are still on their way then.
#[derive(Debug, Default)]
pub struct Apps(Mutex<Registered>);

#[derive(Debug, Default)]
struct Registered {
    apps: HashMap<Arc<str>, ByThread>,
    nobody: ByThread,
    /// Of apps that left, while somebody still counts there.
    leaving: Vec<Arc<AppCounters>>,
    gone: AppTotals,
}

/// The rules of a vhost that turn requests away, which are counted for each app.
const TURNS_AWAY: [Reason; 8] = [
    Reason::Forbidden,
    Reason::Unauthorized,
    Reason::AuthUnavailable,
    Reason::RateLimited,
    Reason::ClientConnections,
    Reason::BodyTooLarge,
    Reason::QueueFull,
    Reason::QueueTimeout,
];

type ByThread = Vec<(ThreadId, Arc<AppCounters>)>;

impl AppCounters {
    /// Counts a request: status of its answer (0 for none), body octets, and how long it took.
    pub fn observe(&self, status: u16, received: u64, sent: u64, micros: u64) {
        add(&self.responses[usize::from(status / 100).min(5)], 1);
        if status != SWITCHING {
            self.durations.observe(micros);
        }
        add(&self.received, received);
        add(&self.sent, sent);
    }

    /// Counts a request that got a page for this reason, where a rule of the vhost is one.
    pub fn turned_away(&self, reason: Reason) {
        if let Some(at) = TURNS_AWAY.iter().position(|rule| *rule == reason) {
            add(&self.turned_away[at], 1);
        }
    }

    /// The present figures.
    pub fn snapshot(&self) -> AppTotals {
        AppTotals {
            responses: std::array::from_fn(|at| self.responses[at].load(Relaxed)),
            durations: self.durations.snapshot(),
            received: self.received.load(Relaxed),
            sent: self.sent.load(Relaxed),
            turned_away: std::array::from_fn(|at| self.turned_away[at].load(Relaxed)),
        }
    }
}

impl AppTotals {
    /// Adds others.
    pub fn add(&mut self, others: &AppTotals) {
        self.responses.iter_mut().zip(others.responses).for_each(|(to, from)| *to += from);
        self.durations.add(&others.durations);
        self.received += others.received;
        self.sent += others.sent;
        self.turned_away.iter_mut().zip(others.turned_away).for_each(|(to, from)| *to += from);
    }

    /// Requests that a rule of the vhost turned away; 0 for reasons that are no such rule.
    pub fn turned_away_by(&self, reason: Reason) -> u64 {
        TURNS_AWAY.iter().position(|rule| *rule == reason).map_or(0, |at| self.turned_away[at])
    }
}

impl Apps {
    /// The counters of an app on the calling thread, which alone may write them.
    pub fn counters(&self, app: &Arc<str>) -> Arc<AppCounters> {
        let mut registered = self.lock();
        let Registered { apps, nobody, .. } = &mut *registered;
        let is_full = apps.len() >= MOST_APPS;
        let by_thread = match apps.get_mut(app) {
            Some(by_thread) => by_thread,
            None if is_full => nobody,
            None => apps.entry(app.clone()).or_default(),
        };
        of_this_thread(by_thread)
    }

    /// The counters of requests for no app, on the calling thread.
    pub fn nobody(&self) -> Arc<AppCounters> {
        of_this_thread(&mut self.lock().nobody)
    }

    /// Lets go of the names of apps that are not known any more.
    pub fn retain(&self, mut is_known: impl FnMut(&str) -> bool) {
        let mut registered = self.lock();
        let Registered { apps, leaving, gone, .. } = &mut *registered;
        apps.retain(|app, by_thread| {
            let stays = is_known(app);
            if !stays {
                leaving.extend(by_thread.drain(..).map(|(_, counters)| counters));
            }
            stays
        });
        for counters in std::mem::take(leaving) {
            match Arc::try_unwrap(counters) {
                Ok(counters) => gone.add(&counters.snapshot()),
                Err(counters) => leaving.push(counters),
            }
        }
    }

    /// What was counted of one app.
    pub fn of(&self, app: &str) -> AppTotals {
        let registered = self.lock();
        let mut sum = AppTotals::default();
        let counters = registered.apps.get(app).into_iter().flatten();
        counters.for_each(|(_, counters)| sum.add(&counters.snapshot()));
        sum
    }

    /// What was counted of each app in the order of their names, and of all other requests.
    pub fn totals(&self) -> (Vec<(Arc<str>, AppTotals)>, AppTotals) {
        let registered = self.lock();
        let sum = |counters: &mut dyn Iterator<Item = &Arc<AppCounters>>| {
            counters.fold(AppTotals::default(), |mut sum, counters| {
                sum.add(&counters.snapshot());
                sum
            })
        };
        let of = |by_thread: &ByThread| sum(&mut by_thread.iter().map(|(_, counters)| counters));
        let mut apps: Vec<_> =
            registered.apps.iter().map(|(app, by_thread)| (app.clone(), of(by_thread))).collect();
        apps.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        let mut others = of(&registered.nobody);
        others.add(&sum(&mut registered.leaving.iter()));
        others.add(&registered.gone);
        (apps, others)
    }

    fn lock(&self) -> MutexGuard<'_, Registered> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn of_this_thread(by_thread: &mut ByThread) -> Arc<AppCounters> {
    let thread = thread::current().id();
    match by_thread.iter().find(|(of, _)| *of == thread) {
        Some((_, counters)) => counters.clone(),
        None => {
            let counters = Arc::<AppCounters>::default();
            by_thread.push((thread, counters.clone()));
            counters
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requests(totals: &AppTotals) -> u64 {
        totals.responses.iter().sum()
    }

    fn names(apps: &Apps) -> Vec<(String, u64)> {
        apps.totals().0.iter().map(|(app, totals)| (app.to_string(), requests(totals))).collect()
    }

    #[test]
    fn requests_are_counted_by_class_duration_and_octets() {
        let counters = AppCounters::default();
        counters.observe(200, 3, 5, 900);
        counters.observe(206, 0, 7, 2_000);
        counters.observe(0, 1, 0, 10);
        counters.observe(999, 0, 0, 10);
        counters.observe(101, 10, 20, 1 << 40);
        let totals = counters.snapshot();
        assert_eq!(totals.responses, [1, 1, 2, 0, 0, 1]);
        assert_eq!((totals.received, totals.sent), (14, 32));
        assert_eq!((totals.durations.count(), totals.durations.micros), (4, 2_920), "a tunnel is no answer");
    }

    #[test]
    fn an_app_is_the_sum_of_its_threads() {
        let apps = Apps::default();
        let (wiki, shop) = (Arc::from("wiki"), Arc::from("shop"));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..1000).for_each(|_| apps.counters(&wiki).observe(200, 1, 0, 1)));
            }
        });
        apps.counters(&shop).observe(404, 0, 0, 1);
        assert!(Arc::ptr_eq(&apps.counters(&shop), &apps.counters(&shop)));
        apps.nobody().observe(400, 0, 0, 1);
        assert_eq!(names(&apps), [("shop".to_owned(), 1), ("wiki".to_owned(), 4000)]);
        assert_eq!(requests(&apps.totals().1), 1);
    }

    #[test]
    fn what_was_counted_outlives_the_app() {
        let apps = Apps::default();
        let wiki = Arc::from("wiki");
        let counters = apps.counters(&wiki);
        counters.observe(200, 0, 0, 1);
        apps.retain(|app| app == "wiki");
        assert_eq!(names(&apps), [("wiki".to_owned(), 1)]);
        apps.retain(|_| false);
        assert!(names(&apps).is_empty());
        // A request that was on its way then.
        counters.observe(200, 0, 0, 1);
        assert_eq!(requests(&apps.totals().1), 2);
        drop(counters);
        apps.retain(|_| false);
        assert!(apps.lock().leaving.is_empty());
        assert_eq!(requests(&apps.totals().1), 2);
        // Its next life begins anew.
        apps.counters(&wiki).observe(200, 0, 0, 1);
        assert_eq!((names(&apps)[0].1, requests(&apps.totals().1)), (1, 2));
    }

    #[test]
    fn names_do_not_grow_without_bound() {
        let apps = Apps::default();
        for number in 0..MOST_APPS + 5 {
            apps.counters(&format!("app-{number}").into()).observe(200, 0, 0, 1);
        }
        apps.counters(&Arc::from("app-0")).observe(200, 0, 0, 1);
        assert_eq!((names(&apps).len(), requests(&apps.totals().1)), (MOST_APPS, 5));
        apps.retain(|app| app == "app-0");
        apps.counters(&Arc::from("app-new")).observe(200, 0, 0, 1);
        assert_eq!(names(&apps), [("app-0".to_owned(), 2), ("app-new".to_owned(), 1)]);
        assert_eq!(requests(&apps.totals().1), MOST_APPS as u64 + 4);
    }
}
