use std::time::Duration;

use proximity_table::{Health, HealthPolicy, HealthState, Timestamp};

use crate::Reason;

/// Wait between the first probes of a backend that has not answered yet; it doubles from there.
const FIRST_WAIT: Duration = Duration::from_millis(250);
/// Share of the interval by which probes are spread, so that a thousand vhosts of one start do not stay in
/// step for ever.
const SPREAD: f64 = 0.1;

/// What is said of connections that did not come about.
const REFUSED: &str = "connection refused: nothing listens on the port";
const UNREACHABLE: &str = "no way to the address: the machine is off, or not on this network";
const UNCONNECTED: &str = "no connection within";
const TLS: &str = "no encrypted connection: perhaps the port does not speak https";
const SPEAKS_TLS: &str = "the port speaks https, and is asked by http: set protocol = \"https\"";
const UNTRUSTED: &str = "its certificate is not trusted:";

/// The health state machine of one backend: probe results in, verdicts and the time of the next probe out.
///
/// ```text
///          rise passed           fall failed
/// unproven ─────────► healthy ─────────► unhealthy
///                        ▲   rise passed     │
///                        └───────────────────┘
/// ```
#[derive(Clone, Debug)]
pub struct Monitor {
    health: Health,
    /// Probes since the start, while unproven.
    tries: u32,
    /// Probes in a row that speak against the present verdict.
    against: u32,
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
    /// No connection in time.
    Unconnected,
    /// A connection, and no answer in time.
    TimedOut,
    /// The connection closed, or what came was not HTTP.
    Broke,
    /// It answered as it should, but without the text that was looked for.
    Lacks,
    /// It wants TLS and was asked without.
    SpeaksTls,
    /// The TLS handshake failed.
    Tls,
    /// Its certificate is not good, and it was to be.
    Untrusted(Distrust),
}

/// What is not good about a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Distrust {
    /// Nobody who is trusted has signed it.
    Issuer,
    /// It is for another name.
    Name,
    /// It names no host at all where names are looked for (RFC 9525 §6.3).
    Nameless,
    /// It is in force no more.
    Expired,
    /// It is not in force yet.
    NotYet,
    /// The file of the authority cannot be used, so nothing can be looked at.
    NoAuthority,
    /// Whatever else the rules of certificates ask for.
    Other,
}

impl Outcome {
    /// Whether the backend is alive.
    ///
    /// Where the policy names no statuses, any below 500 counts: many apps answer `/` with a redirect, with 401
    /// (Plex, registries) or with 404 (plain APIs) in perfect health, and a check that calls those ill would
    /// take them away.
    pub fn passed(self, policy: &HealthPolicy) -> bool {
        match self {
            Outcome::Answered(status) => is_expected(status, policy),
            Outcome::Connected => true,
            _ => false,
        }
    }

    /// What was seen, in words; `None` when the probe passed.
    pub fn reason(self, policy: &HealthPolicy) -> Option<String> {
        if self.passed(policy) {
            return None;
        }
        let uri = &policy.uri;
        Some(match self {
            Outcome::Connected => return None,
            Outcome::Answered(status) => match policy.status {
                None => format!("{uri} answered {status}"),
                Some((first, last)) if first == last => format!("{uri} answered {status}, not {first}"),
                Some((first, last)) => format!("{uri} answered {status}, not {first}-{last}"),
            },
            Outcome::Refused => REFUSED.to_owned(),
            Outcome::Unreachable => UNREACHABLE.to_owned(),
            Outcome::Unconnected => format!("{UNCONNECTED} {} s", policy.timeout),
            Outcome::TimedOut => format!("no answer within {} s", policy.timeout),
            Outcome::Broke => "the connection closed without an HTTP answer".to_owned(),
            Outcome::Lacks => format!("the answer to {uri} lacks the text that health.body looks for"),
            Outcome::SpeaksTls => SPEAKS_TLS.to_owned(),
            Outcome::Tls => TLS.to_owned(),
            Outcome::Untrusted(why) => format!("{UNTRUSTED} {}", why.words()),
        })
    }
}

impl Distrust {
    /// What is wrong and what to do.
    pub fn words(self) -> &'static str {
        match self {
            Distrust::Issuer => "it is not signed by an authority that is known here: name that with tls_ca",
            Distrust::Name => "it is for another name: set tls_server_name to one that it has",
            Distrust::Nameless => {
                "it has no subjectAltName, so it is nobody's: make another with `openssl req … -addext \
                 subjectAltName=DNS:NAME`, NAME being the vhost's host name, or take tls_ca away and set tls_verify = \
                 false to accept any"
            }
            Distrust::Expired => "it has expired: renew it",
            Distrust::NotYet => "it is not in force yet: compare the clocks",
            Distrust::NoAuthority => "the file of tls_ca cannot be used: `proximity validate` says why",
            Distrust::Other => {
                "it is not made for a server (what `openssl req -x509` makes is an authority's, CA:TRUE): give the app \
                 another one"
            }
        }
    }
}

/// What a request meets at a backend of which a probe said this, as far as that follows. It does where no connection
/// came about; what an app answers, or when, may be another thing for another request.
pub fn meets(reason: &str) -> Option<Reason> {
    match reason {
        REFUSED => Some(Reason::BackendRefused),
        UNREACHABLE => Some(Reason::BackendTimedOut),
        TLS => Some(Reason::BackendTls),
        _ if reason.starts_with(UNTRUSTED) => Some(Reason::BackendUntrusted),
        _ => reason.starts_with(UNCONNECTED).then_some(Reason::BackendTimedOut),
    }
}

/// The status that a probe's reason speaks of, if it does.
pub fn answered(reason: &str) -> Option<u16> {
    let (_, status) = reason.split_once(" answered ")?;
    status.split(',').next()?.parse().ok()
}

/// Whether a status is one of a healthy backend.
pub fn is_expected(status: u16, policy: &HealthPolicy) -> bool {
    policy.status.map_or(status < 500, |(first, last)| (first..=last).contains(&status))
}

impl Monitor {
    /// A backend of which nothing is known.
    pub fn new(now: Timestamp) -> Monitor {
        Monitor {
            health: Health { state: HealthState::Unproven, since: now, reason: None },
            tries: 0,
            against: 0,
        }
    }

    /// A backend of which somebody else came to this verdict.
    pub fn known(health: Health) -> Monitor {
        Monitor { health, tries: 0, against: 0 }
    }

    /// The present verdict.
    pub fn health(&self) -> &Health {
        &self.health
    }

    /// Takes the result of a probe. Returns the verdict when it, or what the last probe saw, is another one.
    pub fn handle_outcome(
        &mut self,
        outcome: Outcome,
        policy: &HealthPolicy,
        now: Timestamp,
    ) -> Option<Health> {
        let passed = outcome.passed(policy);
        let is_against = passed != (self.health.state == HealthState::Healthy);
        self.against = if is_against { self.against.saturating_add(1) } else { 0 };
        let needed = if passed { policy.rise } else { policy.fall };
        let state = match self.health.state {
            // It was never there, so it cannot be gone.
            HealthState::Unproven if !passed => HealthState::Unproven,
            before if !is_against || self.against < needed => before,
            _ if passed => HealthState::Healthy,
            _ => HealthState::Unhealthy,
        };
        if state != self.health.state {
            self.against = 0;
        }
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
        assert!([200, 204, 302, 401, 403, 404, 418].iter().all(|&s| Outcome::Answered(s).passed(&policy())));
        assert!(![500, 502, 503, 599].iter().any(|&s| Outcome::Answered(s).passed(&policy())));
    }

    #[test]
    fn the_statuses_of_the_policy_are_the_ones_that_count() {
        let policy = HealthPolicy { status: Some((204, 299)), uri: "/up".to_owned(), ..policy() };
        let passed: Vec<u16> =
            [200, 204, 299, 300, 503].into_iter().filter(|&s| Outcome::Answered(s).passed(&policy)).collect();
        assert_eq!(passed, [204, 299]);
        let reason = Outcome::Answered(200).reason(&policy);
        assert_eq!(reason.as_deref(), Some("/up answered 200, not 204-299"));
        let maintenance = HealthPolicy { status: Some((503, 503)), ..policy };
        assert_eq!(Outcome::Answered(503).reason(&maintenance), None);
        assert!(Outcome::Lacks.reason(&maintenance).unwrap().contains("/up"));
    }

    #[test]
    fn what_a_probe_saw_tells_what_requests_meet_where_no_connection_came_about() {
        let said = |outcome: Outcome| outcome.reason(&policy()).unwrap();
        for (outcome, expected) in [
            (Outcome::Refused, Some(Reason::BackendRefused)),
            (Outcome::Unreachable, Some(Reason::BackendTimedOut)),
            (Outcome::Unconnected, Some(Reason::BackendTimedOut)),
            (Outcome::Tls, Some(Reason::BackendTls)),
            (Outcome::Untrusted(Distrust::Expired), Some(Reason::BackendUntrusted)),
            (Outcome::TimedOut, None),
            (Outcome::Broke, None),
            (Outcome::Lacks, None),
            (Outcome::Answered(503), None),
        ] {
            assert_eq!(meets(&said(outcome)), expected, "{outcome:?}");
        }
        assert_eq!(answered(&said(Outcome::Answered(503))), Some(503));
        let strict = HealthPolicy { status: Some((200, 200)), ..policy() };
        assert_eq!(answered(&Outcome::Answered(400).reason(&strict).unwrap()), Some(400));
        assert_eq!(answered(&said(Outcome::Refused)), None);
    }

    #[test]
    fn so_many_in_a_row_change_the_verdict() {
        let policy = HealthPolicy { rise: 2, fall: 3, ..policy() };
        let mut monitor = Monitor::new(NOW);
        let mut step = |outcome| {
            monitor.handle_outcome(outcome, &policy, NOW);
            monitor.health().state
        };
        let (good, bad) = (Outcome::Answered(200), Outcome::Refused);
        use HealthState::{Healthy, Unhealthy, Unproven};
        assert_eq!([good, bad, good].map(&mut step), [Unproven; 3]);
        assert_eq!(step(good), Healthy);
        assert_eq!([bad, bad, good, bad, bad].map(&mut step), [Healthy; 5]);
        assert_eq!([bad, good, bad, good].map(&mut step), [Unhealthy; 4]);
        assert_eq!(step(good), Healthy);
    }

    #[test]
    fn what_a_probe_saw_is_told_before_it_is_believed() {
        let policy = HealthPolicy { fall: 2, ..policy() };
        let mut monitor = Monitor::new(NOW);
        monitor.handle_outcome(Outcome::Answered(200), &policy, NOW);
        let doubted = monitor.handle_outcome(Outcome::Refused, &policy, Timestamp(101)).unwrap();
        assert_eq!((doubted.state, doubted.since), (HealthState::Healthy, NOW));
        assert!(doubted.reason.unwrap().contains("refused"));
        let ill = monitor.handle_outcome(Outcome::Refused, &policy, Timestamp(102)).unwrap();
        assert_eq!((ill.state, ill.since), (HealthState::Unhealthy, Timestamp(102)));
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
