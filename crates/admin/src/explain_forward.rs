//! Why a forwarded port leads to somebody or does not.

use proximity_table::{
    App, Backend, BackendKey, BackendTarget, Forward, HealthState, Protocol, ResolvedForward, Span,
    StreamPolicy, Timestamp, World,
};

use crate::{DialFailure, ExplainView, ForwardFigures, LastDial, StepView, TargetFigures};

/// Explains a forwarded port.
pub fn explain_forward(
    world: &World,
    forward: &Forward,
    figures: &ForwardFigures,
    now: Timestamp,
) -> ExplainView {
    let name = forward.health_name().to_string();
    let (verdict, title, why, advice) = verdict(world, forward, figures);
    let mut steps = vec![port(forward, figures)];
    for target in forward.targets() {
        steps.push(target_step(world, forward, &target, figures, now));
    }
    if let Some(policy) = &forward.proxy {
        steps.extend(traffic(forward, policy, figures, now));
    }
    let stopped = figures.stopped.iter().filter(|stopped| stopped.count > 0);
    steps.extend(stopped.map(|stopped| {
        let (count, says) = (stopped.count, stopped.says);
        let what = if count == 1 { "1 was".to_owned() } else { format!("{count} were") };
        StepView::new("connections", true, format!("{what} refused or cut because {says}"))
    }));
    ExplainView {
        name,
        url: None,
        verdict: verdict.to_owned(),
        title: title.to_owned(),
        why,
        advice: advice.to_owned(),
        steps,
    }
}

/// One step for each forwarded port that leads to an app.
pub fn forwards_of(
    world: &World,
    app: &App,
    figures: impl Fn(&ResolvedForward) -> ForwardFigures,
    now: Timestamp,
) -> Vec<StepView> {
    let Some(host) = app.own_host() else { return Vec::new() };
    let is_here = |target: &BackendTarget| match target {
        BackendTarget::App { name, .. } => *name == host.label,
        BackendTarget::Address(addr) => *addr.ip() == host.ip,
    };
    let mut steps = Vec::new();
    for (_, forward) in world.facts.intent().forwards.values() {
        for target in forward.targets().filter(is_here) {
            let resolved = world.forward(forward.protocol, forward.port);
            let figures = resolved.map(|resolved| figures(resolved)).unwrap_or_default();
            let mut step = match &figures.trouble {
                Some(_) => port(forward, &figures),
                None => target_step(world, forward, &target, &figures, now),
            };
            step.step = "forward".to_owned();
            step.says = format!("{} of the appliance: {}", in_words(forward), step.says);
            steps.push(step);
        }
    }
    steps
}

type Words = (&'static str, &'static str, String, &'static str);

fn verdict(world: &World, forward: &Forward, figures: &ForwardFigures) -> Words {
    let resolved = world.forward(forward.protocol, forward.port).map(|resolved| &**resolved);
    let there = resolved.map_or(&[][..], |resolved| &resolved.targets);
    let usable = || resolved.into_iter().flat_map(|resolved| resolved.usable());
    let seen = |target: &Backend| figures_of(resolved, target.key, figures);
    let failed = || usable().find_map(|target| dial_failure(&seen(target)));
    let most = forward.proxy.as_ref().map(|policy| u64::from(policy.max_connections));
    if let Some(trouble) = &figures.trouble {
        let why = format!("The port is not listened on: {trouble}.");
        let advice = "Stop what listens there, or forward another port.";
        return ("not_listening", "This port cannot be had", why, advice);
    }
    if there.is_empty() {
        let why = "The container that this port leads to is not on the network.".to_owned();
        return (
            "stopped",
            "Nobody is there to take this port",
            why,
            "Start the container, or correct the target.",
        );
    }
    // As long as one of those that are asked takes connections, connections are carried.
    let all_fail = usable().all(|target| dial_failure(&seen(target)).is_some());
    if let Some((reason, met)) = failed().filter(|_| all_fail) {
        let why = match there.len() {
            1 => format!("The target {met} when it was last asked."),
            _ => format!("None of the targets took a connection when it was last asked; the first {met}."),
        };
        let advice = "Check that the app runs and listens on the port that the forward leads to.";
        return (reason, "The target takes no connections", why, advice);
    }
    let is_ill = |target: &Backend| fails_probes(forward, target) && seen(target).last == LastDial::Unknown;
    let was_ill = |target: &Backend| forward.health.is_some() && target.state() == HealthState::Unhealthy;
    if usable().all(|target| is_ill(target) || was_ill(target)) {
        let why = "Connections are carried to it all the same, as there is nothing better.".to_owned();
        let advice = "Check that the app runs and listens on the port that the forward leads to.";
        return ("unhealthy", "The target fails its health checks", why, advice);
    }
    if most.is_some_and(|most| figures.open >= most) {
        let why = "As many connections are open as max_connections allows, and more are refused.".to_owned();
        return ("connection_limit", "This port is busy", why, "Close some, or raise max_connections.");
    }
    let why =
        "Connections are carried to the target, and nothing that is known speaks against it.".to_owned();
    ("ok", "This port is forwarded", why, "Nothing needs to be done.")
}

/// What is known of a target.
fn figures_of(
    resolved: Option<&ResolvedForward>,
    key: BackendKey,
    figures: &ForwardFigures,
) -> TargetFigures {
    let at = resolved.and_then(|found| found.targets.iter().position(|one| one.key == key));
    at.and_then(|at| figures.targets.get(at)).copied().unwrap_or_default()
}

/// The word and the words of what the last connection met, if it failed.
fn dial_failure(target: &TargetFigures) -> Option<(&'static str, &'static str)> {
    match target.last {
        LastDial::Failed(failure) => Some((failure.reason, failure.met)),
        LastDial::Unknown | LastDial::Taken { .. } => None,
    }
}

/// Whether the last probe failed, of one that is not healthy all the same.
fn fails_probes(forward: &Forward, target: &Backend) -> bool {
    let has_reason = target.health.as_ref().is_some_and(|health| health.reason.is_some());
    forward.health.is_some() && has_reason && !target.is_healthy()
}

fn port(forward: &Forward, figures: &ForwardFigures) -> StepView {
    let name = in_words(forward);
    match (&figures.trouble, &forward.proxy) {
        (Some(trouble), _) => StepView::new("port", false, format!("{name} is not listened on: {trouble}")),
        (None, Some(_)) => {
            let says = format!("the appliance listens on {name} and carries what comes (mode = \"proxy\")");
            StepView::new("port", true, says)
        }
        (None, None) => {
            let says = format!("the kernel passes {name} on, and the app sees who asks (mode = \"nat\")");
            StepView::new("port", true, says)
        }
    }
}

fn target_step(
    world: &World,
    forward: &Forward,
    target: &BackendTarget,
    figures: &ForwardFigures,
    now: Timestamp,
) -> StepView {
    let Some(backend) = world.forward_target(forward, target) else {
        return StepView::new("target", false, format!("{target}: {}", world.absence(target)));
    };
    let resolved = world.forward(forward.protocol, forward.port);
    let known = figures_of(resolved.map(|resolved| &**resolved), backend.key, figures);
    let name = match target {
        BackendTarget::App { name, .. } => format!("{name} ({})", backend.key.addr),
        BackendTarget::Address(addr) => addr.to_string(),
    };
    let mut says = format!("{name} gets it");
    let mut ok = true;
    if forward.proxy.is_some() {
        says.push_str(&format!(", {} open now", known.open));
    }
    match known.last {
        LastDial::Unknown | LastDial::Taken { failed_before: None } => {}
        LastDial::Taken { failed_before: Some(DialFailure { met, ago, .. }) } => {
            says.push_str(&format!("; {} it {met}, and it has answered since", before(ago)));
        }
        LastDial::Failed(DialFailure { met, ago, .. }) => {
            ok = false;
            says.push_str(&format!("; it {met} {}, when it was last asked", before(ago)));
        }
    }
    if forward.health.is_some() {
        ok &= backend.state() != HealthState::Unhealthy && !fails_probes(forward, &backend);
        says.push_str(&checks(&backend, now));
    }
    StepView::new("target", ok, says)
}

fn before(ago: Span) -> String {
    if ago < Span(2) { "just now".to_owned() } else { format!("{ago} ago") }
}

fn checks(backend: &Backend, now: Timestamp) -> String {
    let health = backend.health.as_ref();
    let reason = health.and_then(|health| health.reason.as_deref());
    let reason = reason.map(|reason| format!(": {reason}")).unwrap_or_default();
    match (backend.state(), health) {
        (HealthState::Healthy, _) if reason.is_empty() => "; it passes its health checks".to_owned(),
        (HealthState::Healthy, _) => format!("; it is healthy, but its last check failed{reason}"),
        (HealthState::Unhealthy, Some(health)) => {
            let since = Span(now.seconds_after(health.since));
            format!("; it fails its health checks for {since}{reason}")
        }
        _ if reason.is_empty() => "; it has not been checked yet".to_owned(),
        _ => format!("; it has not passed a health check yet{reason}"),
    }
}

fn traffic(
    forward: &Forward,
    policy: &StreamPolicy,
    figures: &ForwardFigures,
    now: Timestamp,
) -> Vec<StepView> {
    // What is counted ends with the process: with an upgrade, too.
    let since = figures.counted_since.map(|since| Span(now.seconds_after(since)));
    let since = since.map(|since| format!(" in the last {since}, since this process forwards the port"));
    let what = if forward.protocol == Protocol::Udp { "clients" } else { "connections" };
    let mut steps = vec![StepView::new(
        "connections",
        figures.open < u64::from(policy.max_connections),
        format!(
            "{} of at most {} {what} are open; {} came{}, {} bytes came from them, {} went to them",
            figures.open,
            policy.max_connections,
            figures.taken,
            since.unwrap_or_default(),
            figures.received,
            figures.sent
        ),
    )];
    if !policy.accept_proxy_protocol.is_empty() {
        let networks: Vec<String> = policy.accept_proxy_protocol.iter().map(ToString::to_string).collect();
        let says = format!("those from {} must begin with a PROXY protocol header", networks.join(", "));
        steps.push(StepView::new("connections", true, says));
    }
    steps
}

fn in_words(forward: &Forward) -> String {
    format!("{} port {}", forward.protocol.as_str().to_uppercase(), forward.port)
}

#[cfg(test)]
mod tests {
    use proximity_table::{
        Change, Facts, Generation, Health, HealthPolicy, Lease, LeaseState, Ledger, Mac, ProbeKey, Question,
        Source, Touched,
    };

    use super::*;
    use crate::Stopped;

    const NOW: Timestamp = Timestamp(10_000);

    fn world(forward: Forward, lease: Option<LeaseState>, health: Option<HealthState>) -> World {
        let mut facts = Facts::new(proximity_config::Config::default().intent, Ledger::default());
        let mut apply = |change| facts.apply(change, &mut Touched::default());
        if let Some(state) = lease {
            apply(Change::Lease(Lease {
                ip: [10, 20, 0, 101].into(),
                mac: Mac([2, 0, 0, 0, 0, 1]),
                client_id: None,
                hostname: Some("gitea".parse().unwrap()),
                network: "apps".into(),
                state,
                expires: NOW.plus(60),
                epoch: 7,
            }));
        }
        if let Some(state) = health {
            let key = BackendKey { addr: "10.20.0.101:22".parse().unwrap(), epoch: 7 };
            let reason = (state != HealthState::Healthy).then(|| "no connection within 5 s".to_owned());
            let health = Health { state, since: Timestamp(NOW.0 - 600), reason };
            let key = ProbeKey { backend: key, question: Question::plain(forward.health.as_deref()) };
            apply(Change::Health(forward.health_name(), key, Some(health)));
        }
        apply(Change::Forward(Source::Api, forward));
        World::derive(facts, Generation(1))
    }

    fn gitea() -> Forward {
        let to = BackendTarget::App { name: "gitea".parse().unwrap(), port: 22 };
        Forward::new(Protocol::Tcp, 2222, to)
    }

    fn proxied() -> Forward {
        let proxy = Some(StreamPolicy { max_connections: 9, ..StreamPolicy::default() }.into());
        Forward { proxy, health: Some(HealthPolicy::connect().into()), ..gitea() }
    }

    fn told(world: &World, forward: &Forward, figures: &ForwardFigures) -> (String, Vec<String>) {
        let view = explain_forward(world, forward, figures, NOW);
        let line =
            |step: &StepView| format!("{}{} {}", if step.ok { "" } else { "! " }, step.step, step.says);
        (view.verdict, view.steps.iter().map(line).collect())
    }

    const TAKEN: LastDial = LastDial::Taken { failed_before: None };

    fn refused(ago: u64) -> DialFailure {
        DialFailure { reason: "backend_refused", met: "did not accept a connection", ago: Span(ago) }
    }

    fn busy(open: u64, last: LastDial) -> ForwardFigures {
        let target = TargetFigures { open, circuit: Some("closed"), last };
        let counted_since = Some(Timestamp(NOW.0 - 7200));
        ForwardFigures { open, taken: 12, counted_since, targets: vec![target], ..ForwardFigures::default() }
    }

    #[test]
    fn a_port_is_explained_in_the_order_of_what_can_be_wrong() {
        use HealthState::{Healthy, Unhealthy};
        let bound = Some(LeaseState::Bound);
        let none = ForwardFigures::default();
        let refused = LastDial::Failed(refused(180));
        let is = |world: &World, figures: &ForwardFigures, verdict: &str, line: &str| {
            let (found, lines) = told(world, &proxied(), figures);
            assert!(found == verdict && lines.iter().any(|told| told.contains(line)), "{found}: {lines:#?}");
        };
        let well = world(proxied(), bound, Some(Healthy));
        is(
            &well,
            &busy(3, TAKEN),
            "ok",
            "gitea (10.20.0.101:22) gets it, 3 open now; it passes its health checks",
        );
        is(
            &well,
            &busy(3, TAKEN),
            "ok",
            "3 of at most 9 connections are open; 12 came in the last 2 h, since this process forwards the port",
        );
        is(&well, &busy(9, TAKEN), "connection_limit", "! connections 9 of at most 9");
        is(
            &well,
            &busy(0, refused),
            "backend_refused",
            "! target gitea (10.20.0.101:22) gets it, 0 open now; it did not accept a connection 3 min ago",
        );
        let ill = world(proxied(), bound, Some(Unhealthy));
        is(
            &ill,
            &busy(0, LastDial::Unknown),
            "unhealthy",
            "fails its health checks for 10 min: no connection within 5 s",
        );
        let trouble = ForwardFigures { trouble: Some("address in use".into()), ..ForwardFigures::default() };
        is(&well, &trouble, "not_listening", "! port TCP port 2222 is not listened on: address in use");
        is(
            &world(proxied(), Some(LeaseState::Expired), None),
            &none,
            "stopped",
            "`gitea` is not on the network",
        );
        is(&world(proxied(), None, None), &none, "stopped", "no container is called `gitea`");
        let mut figures = busy(1, TAKEN);
        figures.stopped = vec![Stopped { reason: "loop", says: "it came back", count: 2 }];
        is(&well, &figures, "ok", "connections 2 were refused or cut because it came back");
    }

    /// The proxy's own judgement: one failed connection is enough, one that was taken since too.
    #[test]
    fn a_dead_target_is_no_port_that_is_forwarded() {
        use HealthState::{Healthy, Unproven};
        let (bound, forward) = (Some(LeaseState::Bound), proxied());
        let failed = LastDial::Failed(refused(0));
        let unprobed = Forward { health: None, ..forward.clone() };
        let plain = world(unprobed.clone(), bound, None);
        assert_eq!(told(&plain, &unprobed, &busy(0, failed)).0, "backend_refused", "without probes");
        let back = told(&plain, &unprobed, &busy(0, LastDial::Taken { failed_before: Some(refused(60)) }));
        assert_eq!(back.0, "ok");
        assert!(back.1.iter().any(|line| line.contains("; 60 s ago it did not accept")), "{:?}", back.1);
        // Nobody connected yet, and its probes fail since it was made.
        let new = world(forward.clone(), bound, Some(Unproven));
        let (verdict, lines) = told(&new, &forward, &busy(0, LastDial::Unknown));
        assert_eq!(verdict, "unhealthy");
        assert!(
            lines.iter().any(|line| line.starts_with("! target") && line.contains("not passed")),
            "{lines:?}"
        );
        // Of two the healthy one gets what comes, whatever the other does.
        let mut both = forward;
        both.more = vec![BackendTarget::Address("10.20.0.9:22".parse().unwrap())];
        let table = world(both.clone(), bound, Some(Healthy));
        let mut figures = busy(0, TAKEN);
        figures.targets.push(TargetFigures { last: failed, ..TargetFigures::default() });
        assert_eq!(told(&table, &both, &figures).0, "ok");
        figures.targets.swap(0, 1);
        assert_eq!(told(&table, &both, &figures).0, "backend_refused", "the other one is not asked");
    }

    #[test]
    fn the_kernels_ports_and_those_of_an_app() {
        let plain = world(gitea(), Some(LeaseState::Bound), None);
        let (verdict, lines) = told(&plain, &gitea(), &ForwardFigures::default());
        let kernel = "port the kernel passes TCP port 2222 on, and the app sees who asks (mode = \"nat\")";
        assert_eq!(
            (verdict.as_str(), lines),
            ("ok", vec![kernel.to_owned(), "target gitea (10.20.0.101:22) gets it".to_owned()])
        );
        let app = plain.app("gitea").unwrap();
        let steps = forwards_of(&plain, &app, |_| ForwardFigures::default(), NOW);
        let says = "TCP port 2222 of the appliance: gitea (10.20.0.101:22) gets it";
        assert_eq!(steps, [StepView::new("forward", true, says)]);
    }
}
