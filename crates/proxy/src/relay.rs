use std::rc::Rc;
use std::task::{Context, Poll, ready};

use crate::http1::{Kind, trailers};
use crate::side::{Cut, Sink, Source};
use crate::splice::{Broken, Pipes, Splice, WORTH_IT};
use crate::{CompiledEdits, Reason};

/// A body on its way from one side of an exchange to the other.
#[derive(Debug)]
pub struct Relay {
    /// Octets that have passed.
    pub moved: u64,
    /// Most octets that may pass, 0 for any number.
    pub limit: u64,
    /// Whether it has passed whole.
    pub is_done: bool,
    /// Whether what came waits for the other side to take it, as it was when this was last polled. While it does not,
    /// and the body has not passed whole, more is to come.
    pub is_held_up: bool,
    /// Names of trailers that could be read as others.
    pub ambiguous: u32,
    /// What the name of a trailer means.
    meaning: fn(&[u8]) -> Kind,
    ended: Option<Result<(), Cut>>,
    pipes: Option<Rc<Pipes>>,
    splice: Option<Splice>,
    /// What must not be among the trailers.
    withheld: Option<Rc<CompiledEdits>>,
}

/// Why a body did not pass whole.
#[derive(Debug)]
pub enum Stopped {
    /// Where it came from broke off.
    Source(Cut),
    /// Where it went takes no more.
    Sink,
    /// It is longer than it may be.
    TooLarge,
}

impl Relay {
    /// The body of a request, of at most `limit` octets, 0 for any number.
    pub fn of_request(limit: u64) -> Relay {
        Relay {
            moved: 0,
            limit,
            is_done: false,
            is_held_up: false,
            ambiguous: 0,
            meaning: Kind::of_request,
            ended: None,
            pipes: None,
            splice: None,
            withheld: None,
        }
    }

    /// The body of a response.
    pub fn of_response() -> Relay {
        Relay { meaning: Kind::of_response, ..Relay::of_request(0) }
    }

    /// Lets long bodies move inside the kernel.
    pub fn by_pipes(mut self, pipes: &Rc<Pipes>) -> Relay {
        self.pipes = Some(pipes.clone());
        self
    }

    /// Keeps trailers back that these edits remove.
    pub fn withholding(mut self, names: Option<&Rc<CompiledEdits>>) -> Relay {
        self.withheld = names.cloned();
        self
    }

    /// The same body for another attempt, when nothing of it has moved. Its source goes on where it is: the framing
    /// of the first chunk may have been read.
    pub fn again(&mut self) {
        let withheld = self.withheld.take();
        *self = Relay {
            meaning: self.meaning,
            pipes: self.pipes.take(),
            withheld,
            ..Relay::of_request(self.limit)
        };
    }

    /// Moves the rest of a long body inside the kernel, where that can be; ready when it is through, or cannot.
    fn poll_splice(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut impl Source,
        to: &mut impl Sink,
    ) -> Poll<Result<(), Stopped>> {
        let Some(pipes) = self.pipes.as_ref().filter(|_| self.limit == 0) else { return Poll::Ready(Ok(())) };
        if self.splice.is_none() {
            if from.raw_rest().is_none_or(|(_, left)| *left < WORTH_IT) {
                return Poll::Ready(Ok(()));
            }
            // The head goes first.
            ready!(to.poll_flush(cx)).map_err(|_| Stopped::Sink)?;
            if to.raw().is_some() {
                self.splice = pipes.splice();
            }
            if self.splice.is_none() {
                self.pipes = None;
                return Poll::Ready(Ok(()));
            }
        }
        while let (Some(splice), Some(to)) = (&mut self.splice, to.raw()) {
            let Some((from, left)) = from.raw_rest() else { break };
            match ready!(splice.poll(cx, from, to, left)) {
                Ok(0) => self.splice = None,
                Ok(moved) => self.moved += moved as u64,
                Err(Broken::Source) => return Poll::Ready(Err(Stopped::Source(Cut::Connection))),
                Err(Broken::Sink) => return Poll::Ready(Err(Stopped::Sink)),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Moves what can be moved now. Nothing is held back: what came goes out before more is waited for, and no
    /// more is read than the other side takes.
    pub fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut impl Source,
        to: &mut impl Sink,
    ) -> Poll<Result<(), Stopped>> {
        let polled = self.move_on(cx, from, to);
        self.is_held_up = match &polled {
            Poll::Pending => {
                let is_in_pipe = self.splice.as_ref().is_some_and(Splice::holds_some);
                is_in_pipe || !to.is_flushed() || !from.data().is_empty()
            }
            // For ever.
            Poll::Ready(Err(Stopped::Sink)) => true,
            Poll::Ready(_) => false,
        };
        polled
    }

    fn move_on(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut impl Source,
        to: &mut impl Sink,
    ) -> Poll<Result<(), Stopped>> {
        while self.ended.is_none() {
            if self.pipes.is_some() {
                ready!(self.poll_splice(cx, from, to))?;
            }
            match from.poll_data(cx) {
                Poll::Pending => {
                    if let Poll::Ready(Err(_)) = to.poll_flush(cx) {
                        return Poll::Ready(Err(Stopped::Sink));
                    }
                    return Poll::Pending;
                }
                Poll::Ready(Err(cut)) => self.ended = Some(Err(cut)),
                Poll::Ready(Ok(0)) => {
                    match trailers::pass_on(from.trailers(), self.meaning, self.withheld.as_deref()) {
                        Ok((section, ambiguous)) => {
                            to.finish(&section);
                            self.ambiguous = ambiguous;
                            self.ended = Some(Ok(()));
                        }
                        Err(reason) => {
                            from.spoil();
                            self.ended = Some(Err(Cut::Nonsense(reason)));
                        }
                    }
                }
                Poll::Ready(Ok(octets)) => {
                    if self.limit > 0 && self.moved + octets as u64 > self.limit {
                        return Poll::Ready(Err(Stopped::TooLarge));
                    }
                    let polled = to.poll_send(cx, from.data(), from.ends_here());
                    let taken = ready!(polled).map_err(|_| Stopped::Sink)?;
                    from.consume(taken);
                    self.moved += taken as u64;
                }
            }
        }
        // What came before a body broke off goes on, too.
        ready!(to.poll_flush(cx)).map_err(|_| Stopped::Sink)?;
        if let Some(Err(cut)) = self.ended.replace(Ok(())) {
            return Poll::Ready(Err(Stopped::Source(cut)));
        }
        self.is_done = true;
        Poll::Ready(Ok(()))
    }
}

impl Cut {
    /// What a broken request body means.
    pub fn of_request(&self) -> Reason {
        match self {
            Cut::Connection => Reason::ClientGone,
            Cut::Nonsense(reason) => *reason,
        }
    }
}
