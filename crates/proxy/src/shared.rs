use std::hash::RandomState;
use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;
use proximity_table::ProxySettings;

use crate::{
    Apps, Backends, ClientConnections, KeptAuthorities, PasswordChecks, RateTable, VerifiedPasswords,
};

/// Milliseconds that a right password is remembered: a browser sends it with every request.
const PASSWORD_MS: u64 = 10 * 60 * 1000;

/// What the data threads know together. Each look at it is an atomic step or a short lock of a part of it, and
/// most requests need only the state of their backend.
#[derive(Debug)]
pub struct Shared {
    /// How clients are treated on the whole; may change at any time.
    pub settings: ArcSwap<ProxySettings>,
    /// What requests have found out about backends.
    pub backends: Backends,
    /// What is counted of each app.
    pub apps: Apps,
    /// Passwords that were right lately.
    pub passwords: VerifiedPasswords,
    /// Passwords being checked, each for as long as its hash was made to take, and those that wait for it.
    pub password_checks: Arc<PasswordChecks>,
    /// What the files that `tls_ca` names say.
    pub authorities: Arc<KeptAuthorities>,
    /// Who asked how often.
    pub rates: RateTable,
    /// Who holds how many connections.
    pub clients: Arc<ClientConnections>,
    /// Mixed into what is told of backends; outlives restarts.
    pub salt: u64,
    started: Instant,
}

impl Shared {
    /// Of a proxy that starts now. `salt` names backends in cookies; it should outlive restarts. `password_key` is random
    /// and nobody else's.
    pub fn new(settings: ProxySettings, salt: u64, password_key: [u8; 32]) -> Shared {
        Shared {
            settings: ArcSwap::from_pointee(settings),
            backends: Backends::default(),
            apps: Apps::default(),
            passwords: VerifiedPasswords::new(password_key, PASSWORD_MS),
            password_checks: Arc::default(),
            authorities: Arc::default(),
            rates: RateTable::new(RandomState::new()),
            clients: Arc::new(ClientConnections::new(RandomState::new())),
            salt,
            started: Instant::now(),
        }
    }

    /// The same, with authorities that are read elsewhere too, or whose loss is told.
    pub fn with_authorities(self, authorities: KeptAuthorities) -> Shared {
        Shared { authorities: Arc::new(authorities), ..self }
    }

    /// Milliseconds on the clock of the backends' states.
    pub fn millis(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.started).as_millis() as u64
    }
}
