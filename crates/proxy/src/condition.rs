use proximity_table::{Span, VhostPolicy};

use crate::{BackendLoad, Circuit, Reason};

/// What keeps requests from a backend, or lets only some of them through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Nothing does.
    Closed,
    /// It is paused for the requests that failed.
    Open,
    /// The pause is over, and one request at a time tries it.
    HalfOpen,
    /// It works on as many requests as it may, and as many wait as may.
    QueueFull,
    /// It became usable lately, and gets its full share little by little.
    SlowStart,
}

impl Condition {
    /// How a backend is by the policy of its vhost.
    pub fn of(load: &BackendLoad, policy: &VhostPolicy) -> Condition {
        let is_full = is_full(load, policy);
        match load.circuit {
            Circuit::Open { .. } => Condition::Open,
            Circuit::HalfOpen => Condition::HalfOpen,
            Circuit::Closed if is_full => Condition::QueueFull,
            Circuit::Closed if load.usable_for_ms < slow_start_ms(policy) => Condition::SlowStart,
            Circuit::Closed => Condition::Closed,
        }
    }

    /// The word of the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Condition::Closed => "closed",
            Condition::Open => "open",
            Condition::HalfOpen => "half_open",
            Condition::QueueFull => "queue_full",
            Condition::SlowStart => "slow_start",
        }
    }

    /// The same in words that go on a sentence about the backend; nothing where nothing keeps requests from it.
    /// `is_sole`: there is no other to ask, and then no pause counts.
    pub fn says(self, load: &BackendLoad, policy: &VhostPolicy, is_sole: bool) -> Option<String> {
        Some(match self {
            Condition::Closed => return None,
            Condition::Open | Condition::HalfOpen if is_sole => {
                "it is asked all the same, as there is no other".to_owned()
            }
            Condition::Open => {
                let pause = Span(policy.passive.pause.into());
                format!("others get its requests, and it is tried again within {pause}")
            }
            Condition::HalfOpen => "one request at a time tries whether it works again".to_owned(),
            Condition::QueueFull => {
                let (limit, waiting) = (policy.limits.backend_connections, load.waiting);
                format!("it is busy: it works on {limit} requests, {waiting} wait, and more are turned away")
            }
            Condition::SlowStart => {
                let left = slow_start_ms(policy).saturating_sub(load.usable_for_ms).div_ceil(1000);
                format!("it is back, and gets its full share of requests in {}", Span(left))
            }
        })
    }
}

/// Whether a backend turns a request away: nobody may wait for it any more.
pub fn is_full(load: &BackendLoad, policy: &VhostPolicy) -> bool {
    let limits = &policy.limits;
    let limit = limits.backend_connections;
    // Whoever comes while others wait goes behind them.
    limit > 0 && (load.in_flight >= limit || load.waiting > 0) && load.waiting >= limits.queue
}

/// How a backend is, in a sentence that stands alone: what it met last and what follows from that; `None` when nothing
/// keeps requests from it.
pub fn note(load: &BackendLoad, policy: &VhostPolicy, is_sole: bool) -> Option<String> {
    let says = Condition::of(load, policy).says(load, policy, is_sole)?;
    Some(match load.failing() {
        Some(reason) => format!("it {}; {says}", met(reason)),
        None => says,
    })
}

/// What a request met at a backend, in words that go on a sentence about the backend.
pub fn met(reason: Reason) -> &'static str {
    match reason {
        Reason::BackendRefused => "did not accept a connection",
        Reason::BackendTimedOut => "could not be reached in time",
        Reason::BackendTls => "made no encrypted connection",
        Reason::BackendUntrusted => "showed a certificate that is not trusted",
        Reason::BackendBroke => "closed the connection without an answer",
        Reason::BackendNonsense => "answered something that is not HTTP",
        Reason::BackendSlow => "did not answer in time",
        _ => "failed",
    }
}

fn slow_start_ms(policy: &VhostPolicy) -> u64 {
    u64::from(policy.slow_start) * 1000
}

#[cfg(test)]
mod tests {
    use proximity_table::VhostLimits;

    use super::*;

    fn load(circuit: Circuit) -> BackendLoad {
        BackendLoad {
            in_flight: 2,
            waiting: 3,
            failures: 0,
            pauses: 0,
            circuit,
            last_failure: None,
            is_known: false,
            usable_for_ms: 4_000,
        }
    }

    #[test]
    fn the_worst_is_told() {
        let limits = VhostLimits { backend_connections: 2, queue: 3, ..VhostLimits::default() };
        let full = VhostPolicy { limits, slow_start: 10, ..VhostPolicy::default() };
        let roomy = VhostPolicy { limits: VhostLimits { queue: 4, ..limits }, ..full.clone() };
        let of = |circuit, policy: &VhostPolicy| Condition::of(&load(circuit), policy);
        assert_eq!(of(Circuit::Open { until_ms: 1 }, &full), Condition::Open);
        assert_eq!(of(Circuit::HalfOpen, &full), Condition::HalfOpen);
        assert_eq!(of(Circuit::Closed, &full), Condition::QueueFull);
        assert_eq!(of(Circuit::Closed, &roomy), Condition::SlowStart);
        assert_eq!(of(Circuit::Closed, &VhostPolicy { slow_start: 4, ..roomy.clone() }), Condition::Closed);
        let says = |condition: Condition| condition.says(&load(Circuit::Closed), &full, false).unwrap();
        assert!(says(Condition::QueueFull).contains("works on 2 requests, 3 wait"));
        assert!(says(Condition::SlowStart).ends_with("in 6 s"));
        assert!(says(Condition::Open).ends_with("within 10 s"));
        let sole = Condition::Open.says(&load(Circuit::HalfOpen), &full, true);
        assert!(sole.unwrap().contains("no other"));
    }
}
