use std::collections::VecDeque;
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use thiserror::Error;

use crate::Reason;
use crate::client_key::ClientKey;

/// Passwords that are checked at a time: each takes as much memory as its hash was made to take.
const CHECKS: usize = 2;
/// Of those, passwords of one vhost: whoever guesses at one leaves a place to the others.
const CHECKS_OF_VHOST: usize = 1;
/// Requests that wait, all together.
const WAITING: usize = 256;
/// Of those, requests for one vhost.
const WAITING_OF_VHOST: usize = 32;
/// Of those, requests of one client, for whatever vhosts.
const WAITING_OF_CLIENT: usize = 16;

/// The passwords that are being checked, and the requests that wait for it. Places are given to the vhosts in turn, and
/// among the requests for one vhost to its clients in turn: who guesses much waits much, and holds nobody else up.
#[derive(Debug, Default)]
pub struct PasswordChecks {
    line: Mutex<Line>,
}

/// A check under way; dropping it lets the next one in.
#[derive(Debug)]
pub struct Checking {
    checks: Arc<PasswordChecks>,
    vhost: u64,
}

/// A place in the line. It becomes ready when the check may begin; dropping it earlier leaves the line.
#[derive(Debug)]
#[must_use = "nobody waits until it is polled"]
pub struct WaitingCheck {
    /// `None` once the check may begin.
    checks: Option<Arc<PasswordChecks>>,
    vhost: u64,
    id: u64,
}

/// As many wait as may: of the vhost, of the client, or of all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("too many passwords wait to be checked: try again in a moment")]
pub struct TooManyChecks;

#[derive(Debug, Default)]
struct Line {
    next_id: u64,
    /// The vhosts of the checks under way.
    running: Vec<u64>,
    /// Each with somebody who waits; the next in turn first.
    vhosts: VecDeque<OfVhost>,
}

#[derive(Debug)]
struct OfVhost {
    vhost: u64,
    clients: VecDeque<OfClient>,
}

#[derive(Debug)]
struct OfClient {
    client: ClientKey,
    waiters: VecDeque<Waiter>,
}

#[derive(Debug)]
struct Waiter {
    id: u64,
    waker: Option<Waker>,
}

impl PasswordChecks {
    /// Goes into the line for a check of a client's password for a vhost.
    pub fn wait(
        self: &Arc<PasswordChecks>,
        vhost: u64,
        client: IpAddr,
    ) -> Result<WaitingCheck, TooManyChecks> {
        let mut line = self.line();
        let id = line.join(vhost, ClientKey::from(client))?;
        self.let_in(line);
        Ok(WaitingCheck { checks: Some(self.clone()), vhost, id })
    }

    /// Checks that wait now.
    pub fn waiting(&self) -> usize {
        self.line().waiters().count()
    }

    /// Lets those in for whom there is a place.
    fn let_in(&self, mut line: MutexGuard<'_, Line>) {
        let woken: Vec<Waker> =
            std::iter::from_fn(|| line.next()).filter_map(|waiter| waiter.waker).collect();
        drop(line);
        woken.into_iter().for_each(Waker::wake);
    }

    fn release(&self, vhost: u64) {
        let mut line = self.line();
        if let Some(at) = line.running.iter().position(|&running| running == vhost) {
            line.running.swap_remove(at);
        }
        self.let_in(line);
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Line {
    fn waiters(&self) -> impl Iterator<Item = (u64, ClientKey)> {
        self.vhosts.iter().flat_map(|of| {
            of.clients.iter().flat_map(|client| client.waiters.iter().map(|_| (of.vhost, client.client)))
        })
    }

    fn join(&mut self, vhost: u64, client: ClientKey) -> Result<u64, TooManyChecks> {
        let of_vhost = self.waiters().filter(|waiter| waiter.0 == vhost).count();
        let of_client = self.waiters().filter(|waiter| waiter.1 == client).count();
        if of_vhost >= WAITING_OF_VHOST || of_client >= WAITING_OF_CLIENT || self.waiters().count() >= WAITING
        {
            return Err(TooManyChecks);
        }
        let waiter = Waiter { id: self.next_id, waker: None };
        self.next_id += 1;
        let id = waiter.id;
        let at = self.vhosts.iter().position(|of| of.vhost == vhost);
        let Some(of_vhost) = at.and_then(|at| self.vhosts.get_mut(at)) else {
            let clients = [OfClient { client, waiters: [waiter].into() }].into();
            self.vhosts.push_back(OfVhost { vhost, clients });
            return Ok(id);
        };
        match of_vhost.clients.iter_mut().find(|of| of.client == client) {
            Some(of_client) => of_client.waiters.push_back(waiter),
            None => of_vhost.clients.push_back(OfClient { client, waiters: [waiter].into() }),
        }
        Ok(id)
    }

    /// The next one whose check may begin.
    fn next(&mut self) -> Option<Waiter> {
        if self.running.len() >= CHECKS {
            return None;
        }
        let running = &self.running;
        let may_begin =
            |of: &OfVhost| running.iter().filter(|&&vhost| vhost == of.vhost).count() < CHECKS_OF_VHOST;
        let at = self.vhosts.iter().position(may_begin)?;
        let mut of_vhost = self.vhosts.remove(at)?;
        let mut of_client = of_vhost.clients.pop_front()?;
        let next = of_client.waiters.pop_front()?;
        self.running.push(of_vhost.vhost);
        // Whoever has more goes behind the others.
        if !of_client.waiters.is_empty() {
            of_vhost.clients.push_back(of_client);
        }
        if !of_vhost.clients.is_empty() {
            self.vhosts.push_back(of_vhost);
        }
        Some(next)
    }

    fn find(&mut self, id: u64) -> Option<&mut Waiter> {
        let clients = self.vhosts.iter_mut().flat_map(|of| &mut of.clients);
        clients.flat_map(|of| &mut of.waiters).find(|waiter| waiter.id == id)
    }

    /// Whether it stood in the line.
    fn leave(&mut self, id: u64) -> bool {
        let before = self.waiters().count();
        for of_vhost in &mut self.vhosts {
            for of_client in &mut of_vhost.clients {
                of_client.waiters.retain(|waiter| waiter.id != id);
            }
            of_vhost.clients.retain(|of| !of.waiters.is_empty());
        }
        self.vhosts.retain(|of| !of.clients.is_empty());
        self.waiters().count() < before
    }
}

impl Future for WaitingCheck {
    type Output = Checking;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Checking> {
        let (id, vhost) = (self.id, self.vhost);
        let Some(checks) = self.checks.take() else { return Poll::Pending };
        let mut line = checks.line();
        if let Some(waiter) = line.find(id) {
            waiter.waker = Some(context.waker().clone());
            drop(line);
            self.checks = Some(checks);
            return Poll::Pending;
        }
        drop(line);
        Poll::Ready(Checking { checks, vhost })
    }
}

impl Drop for WaitingCheck {
    fn drop(&mut self) {
        let Some(checks) = self.checks.take() else { return };
        let stood_in_line = checks.line().leave(self.id);
        if !stood_in_line {
            // Its turn came just when nobody wanted it any more.
            checks.release(self.vhost);
        }
    }
}

impl Drop for Checking {
    fn drop(&mut self) {
        self.checks.release(self.vhost);
    }
}

impl From<TooManyChecks> for Reason {
    fn from(_: TooManyChecks) -> Reason {
        Reason::AuthBusy
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Flag(AtomicBool);

    impl Wake for Flag {
        fn wake(self: Arc<Flag>) {
            self.0.store(true, SeqCst);
        }
    }

    fn client(number: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, number])
    }

    fn poll(waiting: &mut WaitingCheck) -> Option<Checking> {
        match Pin::new(waiting).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(checking) => Some(checking),
            Poll::Pending => None,
        }
    }

    fn checks() -> Arc<PasswordChecks> {
        Arc::default()
    }

    #[test]
    fn one_vhost_leaves_a_place_to_the_others() {
        let checks = checks();
        let mut first = checks.wait(1, client(1)).unwrap();
        let mut same = checks.wait(1, client(2)).unwrap();
        let held = poll(&mut first).unwrap();
        assert!(poll(&mut same).is_none());
        let other = poll(&mut checks.wait(2, client(1)).unwrap()).unwrap();
        let mut third = checks.wait(3, client(3)).unwrap();
        assert!(poll(&mut third).is_none(), "there are two places");
        drop(held);
        // The place goes to whoever was there first.
        assert!(poll(&mut third).is_none());
        let same = poll(&mut same).unwrap();
        drop(other);
        assert!(poll(&mut third).is_some());
        drop(same);
        assert_eq!(checks.waiting(), 0);
    }

    #[test]
    fn vhosts_take_turns_and_so_do_the_clients_of_one() {
        let checks = checks();
        let blocked = [8, 9].map(|vhost| poll(&mut checks.wait(vhost, client(9)).unwrap()).unwrap());
        // Vhost and client.
        let line = [(1, 1), (1, 1), (1, 1), (1, 2), (2, 1), (2, 1), (3, 3)];
        let mut waiting: Vec<_> = line
            .iter()
            .map(|&(vhost, from)| ((vhost, from), checks.wait(vhost, client(from)).unwrap()))
            .collect();
        let [_kept, freed] = blocked;
        let mut place = Some(freed);
        let mut order = Vec::new();
        while !waiting.is_empty() {
            drop(place.take());
            let at = waiting.iter_mut().position(|(_, one)| {
                place = poll(one);
                place.is_some()
            });
            order.push(waiting.remove(at.expect("somebody is next")).0);
        }
        assert_eq!(order, [(1, 1), (2, 1), (3, 3), (1, 2), (2, 1), (1, 1), (1, 1)]);
    }

    #[test]
    fn no_client_and_no_vhost_fills_the_line() {
        let checks = checks();
        let _held = [8, 9].map(|vhost| poll(&mut checks.wait(vhost, client(99)).unwrap()).unwrap());
        let mut waiting = Vec::new();
        let mut most = |vhost, from| {
            let more = (0..1000).map_while(|_| checks.wait(vhost, client(from)).ok());
            let before = waiting.len();
            waiting.extend(more);
            waiting.len() - before
        };
        assert_eq!(most(1, 1), WAITING_OF_CLIENT);
        assert_eq!(most(2, 1), 0, "the same client elsewhere");
        assert_eq!([most(1, 2), most(1, 3)], [WAITING_OF_VHOST - WAITING_OF_CLIENT, 0]);
        assert_eq!(most(2, 3), WAITING_OF_CLIENT);
        let others: usize = (10..100_u8).map(|number| most(number.into(), number)).sum();
        assert_eq!(others + WAITING_OF_VHOST + WAITING_OF_CLIENT, WAITING);
        drop(waiting.pop());
        assert!(checks.wait(3, client(200)).is_ok());
        drop(waiting);
        assert_eq!(checks.waiting(), 0);
    }

    #[test]
    fn who_leaves_loses_nothing_for_the_others() {
        let checks = checks();
        let held = poll(&mut checks.wait(1, client(1)).unwrap()).unwrap();
        let leaves = checks.wait(1, client(2)).unwrap();
        let granted = checks.wait(1, client(3)).unwrap();
        let mut last = checks.wait(1, client(4)).unwrap();
        let flag = Arc::new(Flag::default());
        let waker = Waker::from(flag.clone());
        assert!(Pin::new(&mut last).poll(&mut Context::from_waker(&waker)).is_pending());
        drop(leaves);
        drop(held);
        assert!(!flag.0.load(SeqCst) && checks.waiting() == 1);
        // Its turn came, and it is gone before it took it.
        drop(granted);
        assert!(flag.0.load(SeqCst));
        let taken = poll(&mut last).unwrap();
        assert!(poll(&mut last).is_none(), "a place is given once");
        drop((last, taken));
        assert!(checks.line().running.is_empty());
    }
}
