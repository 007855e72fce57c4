use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use thiserror::Error;

/// The requests that one backend carries now, and those that wait for it in a bounded line.
///
/// Counting is one atomic addition; the lock of the line is taken only while somebody waits. Several vhosts
/// with limits of their own, or none, may lead to the same backend.
#[derive(Debug, Default)]
pub struct Slots {
    in_flight: AtomicU32,
    /// How many wait, written under the lock of `line`.
    waiting: AtomicU32,
    line: Mutex<Line>,
}

/// A request on its way; dropping it gives its slot to the next in the line.
#[derive(Debug)]
pub struct InFlight(Arc<Slots>);

/// A place in the line. It becomes ready with the slot; dropping it earlier leaves the line.
#[derive(Debug)]
#[must_use = "nobody waits until it is polled"]
pub struct Waiting {
    /// `None` once the slot was handed out.
    slots: Option<Arc<Slots>>,
    id: u64,
}

/// The backend carries as many requests as it may, or others wait already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the backend carries as many requests as `backend_connections` allows")]
pub struct Full;

/// As many wait as may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("as many requests wait for the backend as `queue` allows")]
pub struct QueueFull;

#[derive(Debug, Default)]
struct Line {
    next_id: u64,
    waiters: VecDeque<Waiter>,
}

#[derive(Debug)]
struct Waiter {
    id: u64,
    limit: u32,
    waker: Option<Waker>,
}

impl Slots {
    /// Takes a slot when fewer than `limit` are taken and nobody waits; a `limit` of 0 is none.
    pub fn enter(self: &Arc<Slots>, limit: u32) -> Result<InFlight, Full> {
        if self.is_full(limit) || !self.try_take(limit) {
            return Err(Full);
        }
        Ok(InFlight(self.clone()))
    }

    /// Goes to the end of the line when fewer than `most` stand there. Slots are given in that order.
    pub fn wait(self: &Arc<Slots>, limit: u32, most: u32) -> Result<Waiting, QueueFull> {
        let mut line = self.line();
        if line.waiters.len() >= most as usize {
            return Err(QueueFull);
        }
        let id = line.next_id;
        line.next_id += 1;
        line.waiters.push_back(Waiter { id, limit, waker: None });
        self.note_waiting(&line);
        drop(line);
        // Whoever left before he could see us waiting woke nobody: look once ourselves.
        self.let_in();
        Ok(Waiting { slots: Some(self.clone()), id })
    }

    /// Whether a request would have to wait.
    pub fn is_full(&self, limit: u32) -> bool {
        limit > 0 && (self.waiting.load(SeqCst) > 0 || self.in_flight.load(SeqCst) >= limit)
    }

    /// Requests carried now.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(SeqCst)
    }

    /// Requests that wait now.
    pub fn waiting(&self) -> u32 {
        self.waiting.load(SeqCst)
    }

    fn try_take(&self, limit: u32) -> bool {
        if limit == 0 {
            self.in_flight.fetch_add(1, SeqCst);
            return true;
        }
        self.in_flight.fetch_update(SeqCst, SeqCst, |taken| (taken < limit).then_some(taken + 1)).is_ok()
    }

    /// The order matters: here first the slot and then the line, in `wait` first the line and then the slots.
    /// Whichever way the two interleave, one of them sees the other.
    fn release(&self) {
        self.in_flight.fetch_sub(1, SeqCst);
        if self.waiting.load(SeqCst) > 0 {
            self.let_in();
        }
    }

    /// Gives free slots to those who wait. Somebody whose own limit is lower holds up those behind him: they
    /// came later.
    fn let_in(&self) {
        let mut woken = Vec::new();
        let mut line = self.line();
        while let Some(first) = line.waiters.front() {
            if !self.try_take(first.limit) {
                break;
            }
            woken.extend(line.waiters.pop_front().and_then(|waiter| waiter.waker));
        }
        self.note_waiting(&line);
        drop(line);
        woken.into_iter().for_each(Waker::wake);
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        // No code that could panic runs under the lock.
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note_waiting(&self, line: &Line) {
        self.waiting.store(line.waiters.len() as u32, SeqCst);
    }
}

impl Future for Waiting {
    type Output = InFlight;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<InFlight> {
        let id = self.id;
        let Some(slots) = self.slots.take() else { return Poll::Pending };
        let mut line = slots.line();
        if let Some(waiter) = line.waiters.iter_mut().find(|waiter| waiter.id == id) {
            match &mut waiter.waker {
                Some(waker) => waker.clone_from(context.waker()),
                none => *none = Some(context.waker().clone()),
            }
            drop(line);
            self.slots = Some(slots);
            return Poll::Pending;
        }
        drop(line);
        Poll::Ready(InFlight(slots))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let Some(slots) = self.slots.take() else { return };
        let mut line = slots.line();
        let before = line.waiters.len();
        line.waiters.retain(|waiter| waiter.id != self.id);
        let left = line.waiters.len() < before;
        slots.note_waiting(&line);
        drop(line);
        if left {
            slots.let_in();
        } else {
            // The slot came just when nobody wanted it any more.
            slots.release();
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.release();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;
    use std::task::Wake;
    use std::thread;

    use super::*;

    struct Flag(AtomicBool, thread::Thread);

    impl Wake for Flag {
        fn wake(self: Arc<Flag>) {
            self.0.store(true, SeqCst);
            self.1.unpark();
        }
    }

    fn flag() -> Arc<Flag> {
        Arc::new(Flag(AtomicBool::new(false), thread::current()))
    }

    fn poll(waiting: &mut Waiting, flag: &Arc<Flag>) -> Option<InFlight> {
        let waker = Waker::from(flag.clone());
        match Pin::new(waiting).poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(slot) => Some(slot),
            Poll::Pending => None,
        }
    }

    fn block_on(mut waiting: Waiting) -> InFlight {
        let flag = flag();
        loop {
            if let Some(slot) = poll(&mut waiting, &flag) {
                return slot;
            }
            while !flag.0.swap(false, SeqCst) {
                thread::park();
            }
        }
    }

    #[test]
    fn slots_are_counted_and_limited() {
        let slots = Arc::new(Slots::default());
        let first = slots.enter(2).unwrap();
        let _second = slots.enter(2).unwrap();
        assert_eq!(slots.enter(2).unwrap_err(), Full);
        let _unlimited = slots.enter(0).unwrap();
        assert_eq!(slots.in_flight(), 3);
        drop(first);
        assert_eq!(slots.enter(2).unwrap_err(), Full);
        assert_eq!(slots.in_flight(), 2);
    }

    #[test]
    fn those_who_wait_are_served_in_their_order_and_nobody_passes_them() {
        let slots = Arc::new(Slots::default());
        let taken = slots.enter(1).unwrap();
        let mut first = slots.wait(1, 2).unwrap();
        let mut second = slots.wait(1, 2).unwrap();
        assert_eq!(slots.wait(1, 2).unwrap_err(), QueueFull);
        let (one, two) = (flag(), flag());
        assert!(poll(&mut first, &one).is_none() && poll(&mut second, &two).is_none());
        drop(taken);
        assert!(one.0.load(SeqCst) && !two.0.load(SeqCst));
        assert_eq!(slots.enter(1).unwrap_err(), Full);
        let slot = poll(&mut first, &one).unwrap();
        assert!(poll(&mut second, &two).is_none());
        drop(slot);
        assert!(two.0.load(SeqCst));
        drop(poll(&mut second, &two).unwrap());
        assert_eq!((slots.in_flight(), slots.waiting()), (0, 0));
    }

    #[test]
    fn who_leaves_the_line_loses_nothing_for_the_others() {
        let slots = Arc::new(Slots::default());
        let taken = slots.enter(1).unwrap();
        let first = slots.wait(1, 9).unwrap();
        let granted = slots.wait(1, 9).unwrap();
        let mut last = slots.wait(1, 9).unwrap();
        let flag = flag();
        assert!(poll(&mut last, &flag).is_none());
        drop(first);
        assert_eq!(slots.waiting(), 2);
        drop(taken);
        assert_eq!((slots.in_flight(), slots.waiting()), (1, 1));
        // The slot was given to one who is gone before he took it.
        drop(granted);
        assert!(flag.0.load(SeqCst));
        let slot = poll(&mut last, &flag).unwrap();
        assert!(poll(&mut last, &flag).is_none(), "a slot is given once");
        drop(last);
        assert_eq!(slots.in_flight(), 1);
        drop(slot);
        assert_eq!((slots.in_flight(), slots.waiting()), (0, 0));
    }

    #[test]
    fn a_lower_limit_that_gives_up_lets_the_next_in() {
        let slots = Arc::new(Slots::default());
        let _one = slots.enter(0).unwrap();
        let strict = slots.wait(1, 9).unwrap();
        let mut mild = slots.wait(2, 9).unwrap();
        assert!(poll(&mut mild, &flag()).is_none());
        drop(strict);
        assert!(poll(&mut mild, &flag()).is_some());
    }

    #[test]
    fn no_slot_and_no_waker_is_lost_between_threads() {
        let slots = Arc::new(Slots::default());
        let carried = AtomicU32::new(0);
        let above = AtomicBool::new(false);
        thread::scope(|scope| {
            for number in 0..4_u32 {
                let (slots, carried, above) = (&slots, &carried, &above);
                scope.spawn(move || {
                    for round in 0..2_000_u32 {
                        let slot = match slots.enter(2) {
                            Ok(slot) => slot,
                            // Some leave the line at once.
                            Err(Full) if (round + number) % 7 == 0 => {
                                let _ = slots.wait(2, 64);
                                continue;
                            }
                            Err(Full) => block_on(slots.wait(2, 64).unwrap()),
                        };
                        if carried.fetch_add(1, SeqCst) >= 2 {
                            above.store(true, SeqCst);
                        }
                        thread::yield_now();
                        carried.fetch_sub(1, SeqCst);
                        drop(slot);
                    }
                });
            }
        });
        assert!(!above.load(SeqCst), "more than the limit at once");
        assert_eq!((slots.in_flight(), slots.waiting()), (0, 0));
    }
}
