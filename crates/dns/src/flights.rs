//! Questions under way: many clients, one question upstream.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use crate::ede::Ede;
use crate::kept::Kept;

/// Different questions under way at the same time.
const MOST: usize = 2048;

/// What came of a question.
pub(crate) type Landed = Result<Arc<Kept>, Ede>;

/// Whom a question under way tells what came of it.
pub(crate) type Waiting = watch::Receiver<Option<Landed>>;

/// All questions under way, by key.
#[derive(Default)]
pub(crate) struct Flights {
    under_way: Mutex<HashMap<Box<[u8]>, Waiting>>,
}

/// A question that is to be asked now; while it exists others wait for it.
pub(crate) struct Flight {
    key: Box<[u8]>,
    told: watch::Sender<Option<Landed>>,
    flights: Arc<Flights>,
}

/// How to get an answer.
pub(crate) enum Boarding {
    /// Somebody asks already.
    Joined(Waiting),
    /// It is for the caller to ask.
    Own(Flight, Waiting),
    /// Too many other questions are under way.
    Full,
}

impl Flights {
    pub fn board(self: &Arc<Flights>, key: &[u8]) -> Boarding {
        let mut under_way = self.lock();
        if let Some(waiting) = under_way.get(key) {
            return Boarding::Joined(waiting.clone());
        }
        if under_way.len() >= MOST {
            return Boarding::Full;
        }
        let (told, waiting) = watch::channel(None);
        under_way.insert(key.into(), waiting.clone());
        Boarding::Own(Flight { key: key.into(), told, flights: self.clone() }, waiting)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Box<[u8]>, Waiting>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Flight {
    pub fn key(&self) -> &[u8] {
        &self.key
    }

    pub fn land(self, landed: Landed) {
        self.told.send_replace(Some(landed));
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.flights.lock().remove(&self.key);
    }
}

/// What came of it. When nobody asks any more, because the thread that did was stopped, that is a failure.
pub(crate) async fn landed(mut waiting: Waiting) -> Landed {
    match waiting.wait_for(Option::is_some).await {
        Ok(landed) => landed.clone().unwrap_or(Err(Ede::Other)),
        Err(_) => Err(Ede::Other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_asks_and_all_are_told() {
        let flights = Arc::new(Flights::default());
        let Boarding::Own(flight, first) = flights.board(b"a") else { panic!("taken") };
        let Boarding::Joined(second) = flights.board(b"a") else { panic!("not joined") };
        assert!(matches!(flights.board(b"b"), Boarding::Own(..)));
        flight.land(Err(Ede::DnssecBogus));
        for waiting in [first, second] {
            assert_eq!(landed(waiting).await.err(), Some(Ede::DnssecBogus));
        }
        assert!(matches!(flights.board(b"a"), Boarding::Own(..)));
    }

    #[tokio::test]
    async fn who_gives_up_leaves_nobody_waiting() {
        let flights = Arc::new(Flights::default());
        let Boarding::Own(flight, waiting) = flights.board(b"a") else { panic!("taken") };
        drop(flight);
        assert_eq!(landed(waiting).await.err(), Some(Ede::Other));
    }

    #[test]
    fn they_are_bounded() {
        let flights = Arc::new(Flights::default());
        let all: Vec<_> = (0..MOST as u32).map(|n| flights.board(&n.to_be_bytes())).collect();
        assert!(all.iter().all(|boarding| matches!(boarding, Boarding::Own(..))));
        assert!(matches!(flights.board(b"x"), Boarding::Full));
        assert!(matches!(flights.board(&0u32.to_be_bytes()), Boarding::Joined(_)));
    }
}
