//! Port forwards as the API shows them. What is shown may be sent back: its settings are spelled as they are
//! written.

use proximity_table::{
    Backend, Forward, Label, Protocol, ResolvedForward, Source, Span, StreamPolicy, Timestamp, World,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::view::rfc3339;

/// A port forward.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct ForwardView {
    pub protocol: String,
    pub port: u16,
    /// The target as it was written, or a list of them.
    pub to: Value,
    /// nat: the kernel translates addresses; proxy: the appliance carries it.
    pub mode: String,
    /// Where it leads now, the first of them; absent while no app of it has an address.
    pub target: Option<String>,
    pub targets: Vec<ForwardTargetView>,
    pub source: Source,
    /// Connections that the appliance carries now; of UDP the clients that are remembered.
    pub connections: u64,
    /// Connections ever taken, since `counted_since`.
    pub taken: u64,
    /// Since when this process counts; absent where the kernel forwards.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counted_since: Option<String>,
    pub bytes_received: u64,
    pub bytes_sent: u64,
    /// Why the port is not listened on, if it should be.
    pub trouble: Option<String>,
    /// What needs attention, in words.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// What works and perhaps is not meant, in words.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// Everything else that differs from the default.
    #[serde(flatten)]
    pub settings: Map<String, Value>,
}

/// A target of a port forward.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct ForwardTargetView {
    pub to: String,
    /// Where that is now.
    pub address: Option<String>,
    /// What the probes found: unproven, healthy or unhealthy; absent where there are none.
    pub state: Option<String>,
    pub since: Option<String>,
    pub reason: Option<String>,
    /// Connections that the appliance carries there now, of all forwards.
    pub connections: u64,
    /// closed, open or half_open: whether connections failed lately, so that others are preferred.
    pub circuit: Option<String>,
}

/// What the data threads know of a forward.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs)]
pub struct ForwardFigures {
    pub open: u64,
    pub taken: u64,
    pub received: u64,
    pub sent: u64,
    /// Since when this is counted.
    pub counted_since: Option<Timestamp>,
    pub trouble: Option<String>,
    /// Of each target in [`ResolvedForward::targets`].
    pub targets: Vec<TargetFigures>,
    /// What was refused or cut, by the reason; all reasons.
    pub stopped: Vec<Stopped>,
}

/// What the data threads know of a target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TargetFigures {
    /// Connections carried there now, of all forwards.
    pub open: u64,
    /// closed, open or half_open.
    pub circuit: Option<&'static str>,
    /// What was met there last.
    pub last: LastDial,
}

/// What whoever connected to a target met last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LastDial {
    /// Nobody did, as far as is known.
    #[default]
    Unknown,
    /// It took the connection.
    Taken {
        /// What failed before that, if anything did.
        failed_before: Option<DialFailure>,
    },
    /// It did not.
    Failed(DialFailure),
}

/// A connection to a target that came to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DialFailure {
    /// The word of the reason.
    pub reason: &'static str,
    /// What the target did, such as "did not accept a connection".
    pub met: &'static str,
    /// How long ago.
    pub ago: Span,
}

/// Connections or datagrams that were refused or cut for one reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stopped {
    /// The word of the reason.
    pub reason: &'static str,
    /// The same in words that go on after "because".
    pub says: &'static str,
    /// How often.
    pub count: u64,
}

impl ForwardView {
    /// Every port forward.
    pub fn all(world: &World, figures: impl Fn(&ResolvedForward) -> ForwardFigures) -> Vec<ForwardView> {
        let all = world.facts.intent().forwards.values();
        // Looking for the nearest name is not for lists.
        all.map(|(source, forward)| ForwardView::of(world, *source, forward, &figures, |_| None)).collect()
    }

    /// The forward of a port.
    pub fn one(
        world: &World,
        port: (Protocol, u16),
        figures: impl Fn(&ResolvedForward) -> ForwardFigures,
    ) -> Option<ForwardView> {
        let (source, forward) = world.facts.intent().forwards.get(&port)?;
        let nearest = |name: &Label| world.nearest_host(name.as_str());
        Some(ForwardView::of(world, *source, forward, &figures, nearest))
    }

    fn of(
        world: &World,
        source: Source,
        forward: &Forward,
        figures: &impl Fn(&ResolvedForward) -> ForwardFigures,
        nearest: impl Fn(&Label) -> Option<String>,
    ) -> ForwardView {
        let resolved = world.forward(forward.protocol, forward.port).map(|resolved| &**resolved);
        let figures = resolved.map(figures).unwrap_or_default();
        let written: Vec<String> = forward.targets().map(|target| target.to_string()).collect();
        let there = resolved.map_or(&[][..], |resolved| &resolved.targets);
        let targets = forward.targets().map(|target| {
            let backend = world.forward_target(forward, &target);
            let at = backend.as_ref().and_then(|found| there.iter().position(|one| one.key == found.key));
            let figures = at.and_then(|at| figures.targets.get(at)).copied().unwrap_or_default();
            ForwardTargetView::of(target.to_string(), backend, forward.health.is_some(), figures)
        });
        ForwardView {
            protocol: forward.protocol.as_str().to_owned(),
            port: forward.port,
            mode: if forward.proxy.is_some() { "proxy" } else { "nat" }.to_owned(),
            target: there.first().map(|target| target.key.addr.to_string()),
            targets: targets.collect(),
            to: if let [one] = &written[..] { json!(one) } else { json!(written) },
            source,
            connections: figures.open,
            taken: figures.taken,
            counted_since: figures.counted_since.and_then(rfc3339),
            bytes_received: figures.received,
            bytes_sent: figures.sent,
            trouble: figures.trouble,
            notes: world.unknown_targets(forward, nearest).iter().map(ToString::to_string).collect(),
            warnings: world.forward_warnings(forward),
            settings: settings(forward),
        }
    }

    /// How its targets are, in a word: healthy, degraded when only some are, what the first is when none is, and
    /// `-` where nobody asks.
    pub fn state(&self) -> &str {
        let states = || self.targets.iter().filter_map(|target| target.state.as_deref());
        let all = self.targets.len();
        match states().filter(|state| *state == "healthy").count() {
            0 => states().next().unwrap_or("-"),
            healthy if healthy == all => "healthy",
            _ => "degraded",
        }
    }
}

impl ForwardTargetView {
    fn of(
        to: String,
        backend: Option<Backend>,
        is_probed: bool,
        figures: TargetFigures,
    ) -> ForwardTargetView {
        let probed = backend.as_ref().filter(|_| is_probed);
        let health = probed.and_then(|backend| backend.health.as_ref());
        ForwardTargetView {
            to,
            address: backend.as_ref().map(|backend| backend.key.addr.to_string()),
            state: probed.map(|backend| backend.state().as_str().to_owned()),
            since: health.and_then(|health| rfc3339(health.since)),
            reason: health.and_then(|health| health.reason.clone()),
            connections: figures.open,
            circuit: figures.circuit.map(str::to_owned),
        }
    }
}

/// What a forward says beside what is always shown of it.
fn settings(forward: &Forward) -> Map<String, Value> {
    let mut settings = Map::new();
    let mut note = |key: &str, value: Option<Value>| {
        value.map(|value| settings.insert(key.to_owned(), value));
    };
    if let Some(health) = &forward.health {
        let mut part = Map::new();
        part.insert("interval".to_owned(), json!(format!("{}s", health.interval)));
        part.insert("timeout".to_owned(), json!(format!("{}s", health.timeout)));
        if (health.rise, health.fall) != (1, 1) {
            part.insert("rise".to_owned(), json!(health.rise));
            part.insert("fall".to_owned(), json!(health.fall));
        }
        note("health", Some(Value::Object(part)));
    }
    if let Some(policy) = &forward.proxy {
        let base = StreamPolicy::of(forward.protocol);
        note("proxy_protocol", policy.send_proxy_protocol.map(|version| json!(version.as_str())));
        let accepted = &policy.accept_proxy_protocol;
        note("accept_proxy_protocol", (!accepted.is_empty()).then(|| json!(accepted)));
        note("balance", (policy.balance != base.balance).then(|| json!(policy.balance.as_str())));
        let idle = policy.idle_timeout;
        note("idle_timeout", (idle != base.idle_timeout).then(|| json!(format!("{idle}s"))));
        let most = policy.max_connections;
        note("max_connections", (most != base.max_connections).then(|| json!(most)));
    }
    settings
}

#[cfg(test)]
mod tests {
    use proximity_table::{
        BackendTarget, Change, Facts, Generation, Health, HealthPolicy, HealthState, Ledger, ProbeKey,
        Protocol, Question, Touched,
    };

    use super::*;
    use crate::forward_input;

    fn shown(forwards: &[Forward]) -> Vec<ForwardView> {
        let intent = proximity_config::Config::default().intent;
        let mut facts = Facts::new(intent, Ledger::default());
        let mut apply = |change| facts.apply(change, &mut Touched::default());
        for forward in forwards {
            apply(Change::Forward(Source::Api, forward.clone()));
        }
        let key = proximity_table::BackendKey { addr: "10.20.0.9:22".parse().unwrap(), epoch: 0 };
        let key = ProbeKey { backend: key, question: Question::plain(forwards[0].health.as_deref()) };
        let health =
            Health { state: HealthState::Unhealthy, since: Timestamp(0), reason: Some("refused".into()) };
        apply(Change::Health("tcp/2222".into(), key, Some(health)));
        let world = World::derive(facts, Generation(1));
        let target = TargetFigures { open: 2, circuit: Some("closed"), last: LastDial::Unknown };
        let figures = |forward: &ResolvedForward| ForwardFigures {
            open: 3,
            counted_since: Some(Timestamp(1_000)),
            targets: forward.targets.iter().map(|_| target).collect(),
            ..ForwardFigures::default()
        };
        ForwardView::all(&world, figures)
    }

    fn address(text: &str) -> BackendTarget {
        BackendTarget::Address(text.parse().unwrap())
    }

    #[test]
    fn what_is_shown_may_be_sent_back() {
        let plain = Forward::new(Protocol::Udp, 53, address("10.20.0.9:53"));
        let mut full = Forward::new(Protocol::Tcp, 2222, address("10.20.0.9:22"));
        full.more = vec![BackendTarget::App { name: "gitea".parse().unwrap(), port: 22 }];
        full.health = Some(HealthPolicy { interval: 7, fall: 3, ..HealthPolicy::connect() }.into());
        let policy = StreamPolicy {
            balance: proximity_table::Balance::LeastConnections,
            send_proxy_protocol: Some(proximity_table::ProxyProtocol::V2),
            accept_proxy_protocol: vec!["10.0.0.0/8".parse().unwrap()],
            idle_timeout: 60,
            max_connections: 9,
        };
        full.proxy = Some(policy.into());
        let mut proxied = Forward::new(Protocol::Udp, 54, address("10.20.0.9:53"));
        proxied.proxy = Some(StreamPolicy::of(Protocol::Udp).into());
        let forwards = [full, plain, proxied];
        let views = shown(&forwards);
        assert_eq!(views.len(), 3);
        for (view, forward) in views.iter().zip(&forwards) {
            let Value::Object(body) = json!(view) else { unreachable!() };
            assert_eq!(
                forward_input::forward(body, proximity_config::Spelling::Json).unwrap(),
                *forward,
                "{view:?}"
            );
        }
        assert_eq!(views[1].settings, Map::new());
        assert_eq!((views[1].to.as_str(), views[1].mode.as_str()), (Some("10.20.0.9:53"), "nat"));
    }

    #[test]
    fn targets_are_shown_with_what_is_known_of_them() {
        let mut forward =
            Forward::new(Protocol::Tcp, 2222, BackendTarget::App { name: "gone".parse().unwrap(), port: 22 });
        forward.more = vec![address("10.20.0.9:22")];
        forward.proxy = Some(StreamPolicy::default().into());
        let view = &shown(&[forward.clone()])[0];
        assert_eq!((view.target.as_deref(), view.connections), (Some("10.20.0.9:22"), 3));
        assert_eq!(view.counted_since.as_deref(), Some("1970-01-01T00:16:40Z"));
        assert_eq!(view.notes, ["no container is called `gone`: start it, or correct the name"]);
        assert_eq!((view.targets[0].address.as_ref(), view.targets[0].connections), (None, 0));
        assert_eq!((view.targets[1].connections, view.targets[1].state.as_ref()), (2, None));
        assert_eq!(view.state(), "-", "nobody asks");
        forward.health = Some(HealthPolicy::connect().into());
        let view = &shown(&[forward])[0];
        assert_eq!(view.targets[1].reason.as_deref(), Some("refused"));
        assert_eq!(view.state(), "unhealthy");
    }
}
