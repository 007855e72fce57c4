use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Waker};

use crate::Reason;
use crate::least_rate::Pace;

/// A time that never comes.
const NEVER: u32 = u32::MAX;

/// Seconds of a data thread's clock. One for the whole thread: a timer for each request would cost more than
/// routing it, so the sweeper looks at all of them once a second.
#[derive(Clone, Debug, Default)]
pub struct Ticks(Rc<Cell<u32>>);

/// What the sweeper and the drain need to know of a connection, or of a stream on one.
#[derive(Debug)]
pub struct Watch {
    ticks: Ticks,
    phase: Cell<Phase>,
    due: Cell<u32>,
    /// When the whole exchange must be over.
    end: Cell<u32>,
    /// How the client keeps up with the least rate.
    pace: Cell<Pace>,
    /// Whether it is the client that is waited for.
    is_for_client: Cell<bool>,
    signal: Cell<Signal>,
    waker: RefCell<Option<Waker>>,
}

/// What a connection is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Waiting for a request.
    Idle,
    /// Taking a request's head.
    Head,
    /// Answering.
    Busy,
    /// Carrying what is no longer HTTP.
    Tunnel,
}

/// What a connection was told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Signal {
    #[default]
    None,
    /// The time it had is over.
    Overdue,
    /// It must end now.
    Close,
}

impl Ticks {
    /// The present second.
    pub fn now(&self) -> u32 {
        self.0.get()
    }

    /// Moves on.
    pub fn advance(&self, seconds: u32) {
        self.0.set(self.0.get().wrapping_add(seconds));
    }
}

impl Watch {
    pub fn new(ticks: Ticks) -> Watch {
        Watch {
            ticks,
            phase: Cell::new(Phase::Head),
            due: Cell::new(NEVER),
            end: Cell::new(NEVER),
            pace: Cell::default(),
            is_for_client: Cell::new(false),
            signal: Cell::new(Signal::None),
            waker: RefCell::new(None),
        }
    }

    /// Enters a phase that may last `seconds`; 0 is for ever.
    pub fn enter(&self, phase: Phase, seconds: u32) {
        self.phase.set(phase);
        self.extend(seconds);
    }

    /// Gives what is being done another `seconds`; 0 is for ever.
    pub fn extend(&self, seconds: u32) {
        self.due.set(if seconds == 0 { NEVER } else { self.ticks.now().saturating_add(seconds) });
        if self.signal.get() == Signal::Overdue {
            self.signal.set(Signal::None);
        }
    }

    /// Limits everything until [`Watch::no_end`] to `seconds`; 0 is for ever.
    pub fn end_in(&self, seconds: u32) {
        self.end.set(if seconds == 0 { NEVER } else { self.ticks.now().saturating_add(seconds) });
    }

    /// Takes the limit of [`Watch::end_in`] away.
    pub fn no_end(&self) {
        self.end.set(NEVER);
    }

    /// From now on a client that may be silent for `patience` seconds has to keep up with the least rate.
    pub fn set_pace(&self, patience: u32) {
        self.pace.set(Pace::new(patience));
        self.is_for_client.set(false);
    }

    /// The client sent or took octets, and is waited for, or somebody else is.
    pub fn keep_pace(&self, octets: u64, is_for_client: bool) {
        if octets > 0 {
            let mut pace = self.pace.get();
            pace.moved(octets);
            self.pace.set(pace);
        }
        self.is_for_client.set(is_for_client);
    }

    /// Nothing depends on how fast the client is any more.
    pub fn no_pace(&self) {
        self.keep_pace(0, false);
    }

    /// Whether a client that is waited for was waited for too long. Called once a second.
    fn is_too_slow(&self) -> bool {
        let mut pace = self.pace.get();
        let is_too_slow = self.is_for_client.get() && pace.waited();
        self.pace.set(pace);
        is_too_slow
    }

    /// Forgets what it was told, because it is being done.
    pub fn clear(&self) {
        self.signal.set(Signal::None);
    }

    /// What the connection is doing.
    pub fn phase(&self) -> Phase {
        self.phase.get()
    }

    /// What it was told.
    pub fn signal(&self) -> Signal {
        self.signal.get()
    }

    /// Why it must stop, if it must; `overdue` is what it means that the present step took too long.
    pub fn must_stop(&self, overdue: impl FnOnce() -> Reason) -> Option<Reason> {
        match self.signal.get() {
            Signal::None => None,
            Signal::Close => Some(Reason::Stopping),
            Signal::Overdue if self.has_ended() => Some(Reason::TotalTimeout),
            Signal::Overdue => Some(overdue()),
        }
    }

    /// Whether its time was up because the whole exchange took too long.
    fn has_ended(&self) -> bool {
        self.end.get() < self.ticks.now()
    }

    /// Has the task of `cx` woken by signals.
    pub fn attach(&self, cx: &Context<'_>) {
        *self.waker.borrow_mut() = Some(cx.waker().clone());
    }

    /// Tells the connection when its time is over. Called once a second.
    pub fn sweep(&self) {
        if self.signal.get() != Signal::None {
            return;
        }
        if self.due.get().min(self.end.get()) < self.ticks.now() || self.is_too_slow() {
            self.tell(Signal::Overdue);
        }
    }

    /// Tells the connection something.
    pub fn tell(&self, signal: Signal) {
        self.signal.set(signal);
        self.wake();
    }

    /// Has the task look at its watch.
    pub fn wake(&self) {
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_up_after_the_given_seconds_and_not_before() {
        let ticks = Ticks::default();
        let watch = Watch::new(ticks.clone());
        watch.enter(Phase::Head, 2);
        for _ in 0..2 {
            ticks.advance(1);
            watch.sweep();
            assert_eq!(watch.signal(), Signal::None);
        }
        ticks.advance(1);
        watch.sweep();
        assert_eq!(watch.signal(), Signal::Overdue);
        watch.extend(2);
        assert_eq!(watch.signal(), Signal::None);
    }

    #[test]
    fn progress_does_not_move_the_end_of_the_whole() {
        let ticks = Ticks::default();
        let watch = Watch::new(ticks.clone());
        watch.end_in(3);
        for second in 1..=4 {
            watch.extend(2);
            ticks.advance(1);
            watch.sweep();
            assert_eq!(watch.signal() == Signal::Overdue, second > 3, "{second}");
        }
        assert!(watch.has_ended());
    }

    #[test]
    fn only_waiting_for_the_client_counts_against_it() {
        let ticks = Ticks::default();
        let watch = Watch::new(ticks.clone());
        let overdue_after = |octets, is_for_client| {
            watch.set_pace(3);
            (1..=100).find(|_| {
                watch.extend(2);
                watch.keep_pace(octets, is_for_client);
                ticks.advance(1);
                watch.sweep();
                watch.signal() == Signal::Overdue
            })
        };
        assert_eq!(overdue_after(1, true), Some(4));
        assert_eq!(overdue_after(1, false), None, "an app that has little to say");
        assert_eq!(overdue_after(1000, true), None);
        watch.keep_pace(0, true);
        watch.no_pace();
        (0..100).for_each(|_| watch.sweep());
        assert_eq!(watch.signal(), Signal::None);
    }

    #[test]
    fn nothing_is_due_without_a_limit() {
        let ticks = Ticks::default();
        let watch = Watch::new(ticks.clone());
        watch.enter(Phase::Tunnel, 0);
        ticks.advance(1 << 30);
        watch.sweep();
        assert_eq!(watch.signal(), Signal::None);
    }
}
