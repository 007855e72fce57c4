use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use proximity_table::{Action, PathRoute, Route, Service, Verdict};

use crate::Reason;
use crate::pool::{Lane, Pool};

/// A route with what a data thread has ready for its requests.
pub struct Site {
    pub route: Arc<Route>,
    /// The ways to the backends of each service, in the order of [`Route::services`].
    services: Vec<Ways>,
    /// Requests begun.
    turn: Cell<usize>,
}

/// The ways to the usable backends of a service.
pub struct Ways {
    pub lanes: Vec<Rc<Lane>>,
}

/// Where a request goes.
pub enum Place<'a> {
    /// To a backend.
    Service(&'a Service, &'a Ways, Option<&'a PathRoute>),
    /// Elsewhere.
    Redirect(&'a proximity_table::Redirect),
}

impl Site {
    pub fn new(route: Arc<Route>, pool: &Pool) -> Site {
        let from_lease = route.from_lease();
        let services = route
            .services()
            .map(|service| Ways {
                lanes: service.usable(from_lease).map(|backend| pool.lane(backend.key, service)).collect(),
            })
            .collect();
        Site { route, services, turn: Cell::new(0) }
    }

    /// Where a request for a path goes.
    pub fn place(&self, path: &str) -> Result<Place<'_>, Reason> {
        let (action, claimed) = self.route.action(path);
        match action {
            Action::Redirect(redirect) => Ok(Place::Redirect(redirect)),
            Action::Proxy(service) => {
                let at = self.route.services().position(|other| std::ptr::eq(other, service)).unwrap_or(0);
                ready(service.verdict)?;
                Ok(Place::Service(service, &self.services[at], claimed))
            }
        }
    }

    /// The backend that is first in turn.
    pub fn next_turn(&self, backends: usize) -> usize {
        let turn = self.turn.get();
        self.turn.set(turn.wrapping_add(1));
        turn % backends.max(1)
    }
}

/// Whether requests may go to the backends of a service.
fn ready(verdict: Verdict) -> Result<(), Reason> {
    match verdict {
        Verdict::Disabled => Err(Reason::Disabled),
        Verdict::Stopped => Err(Reason::Stopped),
        Verdict::Starting => Err(Reason::Starting),
        Verdict::Ready => Ok(()),
    }
}
