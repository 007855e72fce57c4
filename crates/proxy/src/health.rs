use std::time::Duration;

use proximity_table::{Health, HealthPolicy, HealthState, Timestamp};

/// Wait between the first probes of a backend that has not answered yet; it doubles from there.
const FIRST_WAIT: Duration = Duration::from_millis(250);
/// Share of the interval by which probes are spread, so that a thousand vhosts of one start do not stay in
/// step for ever.
const SPREAD: f64 = 0.1;

/// The health state machine of one backend: probe results in, verdicts and the time of the next probe out.
///
/// ```text
///            passed              failed
/// unproven ─────────► healthy ─────────► unhealthy
///                        ▲     passed        │
///                        └───────────────────┘
/// ```
#[derive(Clone, Debug)]
pub struct Monitor {
    health: Health,
    /// Probes without an answer since the start, while unproven.
    tries: u32,
}

/// What a probe saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The backend answered with this status.
    Answered(u16),
    /// It took a connection, which is all that was asked for.
    Connected,
    /// Nothing listens on the port.
    Refused,
    /// No way to the address.
    Unreachable,
    /// No answer in time.
    TimedOut,
    /// The connection closed, or what came was not HTTP.
    Broke,
}

impl Outcome {
    /// Whether the backend is alive.
    ///
    /// Any status below 500 counts: many apps answer `/` with a redirect, with 401 (Plex, registries) or
    /// with 404 (plain APIs) in perfect health, and a check that calls those ill would take them away.
    pub fn passed(self) -> bool {
        match self {
            Outcome::Answered(status) => status < 500,
            Outcome::Connected => true,
            _ => false,
        }
    }

    /// What was seen, in words; `None` when the probe passed.
    pub fn reason(self, policy: &HealthPolicy) -> Option<String> {
        match self {
            Outcome::Connected => None,
            Outcome::Answered(status) if status < 500 => None,
            Outcome::Answered(status) => Some(format!("{} answered {status}", policy.uri)),
            Outcome::Refused => Some("connection refused: nothing listens on the port".to_owned()),
            Outcome::Unreachable => Some("address unreachable".to_owned()),
            Outcome::TimedOut => Some(format!("no answer within {} s", policy.timeout)),
            Outcome::Broke => Some("the connection closed without an HTTP answer".to_owned()),
        }
    }
}

impl Monitor {
    /// A backend of which nothing is known.
    pub fn new(now: Timestamp) -> Monitor {
        Monitor { health: Health { state: HealthState::Unproven, since: now, reason: None }, tries: 0 }
    }

    /// A backend of which somebody else came to this verdict.
    pub fn known(health: Health) -> Monitor {
        Monitor { health, tries: 0 }
    }

    /// The present verdict.
    pub fn health(&self) -> &Health {
        &self.health
    }

    /// Takes the result of a probe. Returns the verdict when it, or the reason for it, is another one.
    pub fn handle_outcome(
        &mut self,
        outcome: Outcome,
        policy: &HealthPolicy,
        now: Timestamp,
    ) -> Option<Health> {
        let state = match (self.health.state, outcome.passed()) {
            (_, true) => HealthState::Healthy,
            (HealthState::Unproven, false) => HealthState::Unproven,
            (HealthState::Healthy | HealthState::Unhealthy, false) => HealthState::Unhealthy,
        };
        let reason = outcome.reason(policy);
        self.tries = self.tries.saturating_add(1);
        if state == self.health.state && reason == self.health.reason {
            return None;
        }
        let since = if state == self.health.state { self.health.since } else { now };
        self.health = Health { state, since, reason };
        Some(self.health.clone())
    }

    /// How long to wait for the next probe. A starting app is asked often at first (0, 250 ms, 500 ms, 1 s,
    /// 2 s, … up to the interval), so that it is reachable soon after it is ready. `entropy` spreads probes.
    pub fn wait(&self, policy: &HealthPolicy, entropy: u64) -> Duration {
        let interval = Duration::from_secs(u64::from(policy.interval.max(1)));
        if self.health.state == HealthState::Unproven {
            let Some(doublings) = self.tries.checked_sub(1) else { return Duration::ZERO };
            let wait = FIRST_WAIT.saturating_mul(1_u32.checked_shl(doublings).unwrap_or(u32::MAX));
            if wait < interval {
                return wait;
            }
        }
        let share = (entropy >> 11) as f64 / (1_u64 << 53) as f64;
        interval.mul_f64(1.0 - SPREAD + 2.0 * SPREAD * share)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(100);

    fn policy() -> HealthPolicy {
        HealthPolicy::default()
    }

    #[test]
    fn a_backend_is_proven_by_its_first_answer_and_never_unproven_again() {
        let mut monitor = Monitor::new(NOW);
        let refused = monitor.handle_outcome(Outcome::Refused, &policy(), Timestamp(101)).unwrap();
        assert_eq!((refused.state, refused.since), (HealthState::Unproven, NOW));
        assert!(refused.reason.unwrap().contains("refused"));
        let healthy = monitor.handle_outcome(Outcome::Answered(200), &policy(), Timestamp(102)).unwrap();
        assert_eq!(healthy, Health { state: HealthState::Healthy, since: Timestamp(102), reason: None });
        let ill = monitor.handle_outcome(Outcome::TimedOut, &policy(), Timestamp(103)).unwrap();
        assert_eq!(ill.reason.as_deref(), Some("no answer within 5 s"));
        assert_eq!((ill.state, ill.since), (HealthState::Unhealthy, Timestamp(103)));
        let back = monitor.handle_outcome(Outcome::Answered(301), &policy(), Timestamp(104)).unwrap();
        assert_eq!((back.state, back.since), (HealthState::Healthy, Timestamp(104)));
    }

    #[test]
    fn only_changes_are_told() {
        let mut monitor = Monitor::new(NOW);
        assert!(monitor.handle_outcome(Outcome::Refused, &policy(), NOW).is_some());
        assert!(monitor.handle_outcome(Outcome::Refused, &policy(), NOW).is_none());
        assert!(monitor.handle_outcome(Outcome::TimedOut, &policy(), NOW).is_some());
        assert!(monitor.handle_outcome(Outcome::Answered(401), &policy(), NOW).is_some());
        assert!(monitor.handle_outcome(Outcome::Answered(204), &policy(), NOW).is_none());
    }

    #[test]
    fn statuses_below_500_are_alive() {
        assert!([200, 204, 302, 401, 403, 404, 418].iter().all(|&s| Outcome::Answered(s).passed()));
        assert!(![500, 502, 503, 599].iter().any(|&s| Outcome::Answered(s).passed()));
    }

    #[test]
    fn first_probes_are_fast_and_slow_down_to_the_interval() {
        let mut monitor = Monitor::new(NOW);
        let mut waits = Vec::new();
        for _ in 0..10 {
            waits.push(monitor.wait(&policy(), u64::MAX / 2).as_millis());
            monitor.handle_outcome(Outcome::Refused, &policy(), NOW);
        }
        assert_eq!(waits[..8], [0, 250, 500, 1000, 2000, 4000, 8000, 16000]);
        assert!(waits[8..].iter().all(|wait| (29_990..=30_010).contains(wait)), "{waits:?}");
        for _ in 0..100 {
            monitor.handle_outcome(Outcome::Refused, &policy(), NOW);
        }
        assert!(monitor.wait(&policy(), 0) >= Duration::from_secs(26));
    }

    #[test]
    fn later_probes_are_spread_around_the_interval() {
        let mut monitor = Monitor::new(NOW);
        monitor.handle_outcome(Outcome::Answered(200), &policy(), NOW);
        let (least, most) = (monitor.wait(&policy(), 0), monitor.wait(&policy(), u64::MAX));
        assert_eq!(least, Duration::from_secs(27));
        assert!(most > Duration::from_millis(32_990) && most <= Duration::from_secs(33));
    }
}
