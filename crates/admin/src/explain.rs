use std::net::Ipv4Addr;
use std::sync::Arc;

use proximity_table::{App, AppState, BackendTarget, Host, Label, Name, RecordType, Span, Timestamp, World};
use serde::{Deserialize, Serialize};

use crate::explain_forward::forwards_of;
use crate::{ForwardFigures, Problem};

/// Why something answers or does not: what a visitor meets, in the words of the page, and the way there step by step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct ExplainView {
    /// The app, or the port of a forward such as `tcp/2222`.
    pub name: String,
    pub url: Option<String>,
    /// `ok`, `unhealthy` where requests are carried although probes fail, or the word that page and counters have.
    pub verdict: String,
    pub title: String,
    pub why: String,
    pub advice: String,
    pub steps: Vec<StepView>,
}

/// One step on the way from a container to a page.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct StepView {
    /// lease, name, vhost, limits, access, password, auth, path, backend, requests, header or forward.
    pub step: String,
    pub ok: bool,
    pub says: String,
}

/// What the proxy says of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// The word of the page, or `ok` or `unhealthy`.
    pub verdict: &'static str,
    /// The title of the page.
    pub title: &'static str,
    /// What happened.
    pub why: &'static str,
    /// What to do.
    pub advice: &'static str,
    /// What the request meets on its way through the proxy.
    pub steps: Vec<StepView>,
    /// Whom the request may be sent to, as it was written; nobody where the app's own vhost is asked.
    pub targets: Vec<BackendTarget>,
}

/// Whom a question is about.
#[derive(Clone, Debug)]
pub struct Subject {
    /// The app that requests go to.
    pub app: App,
    /// The host that was asked for, when nobody has it and the default vhost takes its requests.
    pub by_default: Option<String>,
}

impl Subject {
    /// Whom the name of an app or a host means.
    pub fn of(world: &World, name: &str) -> Result<Subject, Problem> {
        let lower = name.trim_end_matches('.').to_ascii_lowercase();
        let is_host = lower.contains('.');
        let by_host = is_host.then(|| world.app_at(&lower)).flatten();
        if let Some(app) = by_host.or_else(|| world.app(&lower)) {
            return Ok(Subject { app, by_default: None });
        }
        if let Some(route) = world.default_route().filter(|_| is_host) {
            let app = App { name: route.app.clone(), host: None, route: Some(route.clone()) };
            return Ok(Subject { app, by_default: Some(lower) });
        }
        Err(nobody(world, name, &lower))
    }
}

/// Says that there is no such app, and which one may be meant.
fn nobody(world: &World, name: &str, lower: &str) -> Problem {
    let vhost = lower.parse().ok().and_then(|label: Label| world.facts.intent().vhosts.get(&label));
    if let Some((_, vhost)) = vhost {
        let owner = world.facts.claimant(&vhost.hostname).map(|(_, owner)| owner.app_name.to_string());
        let detail = format!(
            "the vhost `{lower}` gets no requests: its host name {} belongs to the vhost `{}`",
            vhost.hostname,
            owner.unwrap_or_default()
        );
        return Problem::conflict(detail, "give one of the two another hostname");
    }
    let mut problem = Problem::absent("app", name, "proximity app ls");
    let first = lower.split('.').next().unwrap_or(lower);
    if let Some(near) = world.nearest_app(first) {
        problem.hint = format!("the nearest name is `{near}`; {}", problem.hint);
    }
    problem
}

impl ExplainView {
    /// Joins what the table, the proxy and the forwarded ports know of a request.
    pub fn of(
        world: &World,
        subject: &Subject,
        said: Said,
        figures: impl Fn(&proximity_table::ResolvedForward) -> ForwardFigures,
        now: Timestamp,
    ) -> ExplainView {
        let Subject { app, by_default } = subject;
        let mut steps = Vec::new();
        steps.extend(hosts(world, app, &said.targets).iter().filter_map(|host| lease(host, now)));
        steps.extend(name(world, app, by_default.as_deref()));
        steps.extend(said.steps);
        steps.extend(forwards_of(world, app, figures, now));
        let with_url = app.route.as_ref().filter(|route| !route.hostname.is_wildcard());
        ExplainView {
            name: app.name.to_string(),
            url: with_url.map(|route| format!("http://{}", route.hostname)),
            verdict: said.verdict.to_owned(),
            title: said.title.to_owned(),
            why: said.why.to_owned(),
            advice: said.advice.to_owned(),
            steps,
        }
    }
}

impl StepView {
    /// A step.
    pub fn new(step: &str, ok: bool, says: impl Into<String>) -> StepView {
        StepView { step: step.to_owned(), ok, says: says.into() }
    }
}

/// The containers that the request may be sent to, each once.
fn hosts(world: &World, app: &App, targets: &[BackendTarget]) -> Vec<Arc<Host>> {
    // The vhost that follows from a lease leads to its holder.
    if app.route.as_ref().is_none_or(|route| route.from_lease()) {
        return app.host.iter().cloned().collect();
    }
    let mut hosts: Vec<Arc<Host>> = Vec::new();
    for host in targets.iter().filter_map(|target| world.host_of(target)) {
        if hosts.iter().all(|there| there.fqdn != host.fqdn) {
            hosts.push(host);
        }
    }
    hosts
}

/// Whether a container is there.
fn lease(host: &Host, now: Timestamp) -> Option<StepView> {
    let (ip, label) = (host.ip, &host.label);
    Some(match host.state() {
        AppState::Active => {
            let expires = host.lease.as_ref().map_or(Timestamp::NEVER, |lease| lease.expires);
            let left = match expires {
                Timestamp::NEVER => "for good".to_owned(),
                expires => format!("for another {}", Span(expires.seconds_after(now))),
            };
            StepView::new("lease", true, format!("the container {label} has the address {ip} {left}"))
        }
        AppState::Reserved => {
            let says =
                format!("{ip} is kept for the container {label}, which has not asked for it: it may be off");
            StepView::new("lease", false, says)
        }
        AppState::Stopped => {
            let says = format!("the container {label} is off: it has given up its address or let it run out");
            StepView::new("lease", false, says)
        }
        AppState::Static => return None,
    })
}

/// Where its name leads.
fn name(world: &World, app: &App, by_default: Option<&str>) -> Vec<StepView> {
    let mut steps = Vec::new();
    if let Some(host) = by_default {
        let says = format!("no app has the name {host}, so the default vhost {} takes it", app.name);
        steps.push(StepView::new("name", true, says));
    }
    if let Some(host) = app.host.as_ref().filter(|host| host.contenders > 0) {
        let says = format!(
            "{} more containers on {} call themselves {}: rename them",
            host.contenders, host.network.name, host.label
        );
        steps.push(StepView::new("name", false, says));
    }
    let of_route = app.route.as_ref().map(|route| &route.hostname);
    let Some(name) = of_route.or(app.host.as_ref().map(|host| &host.fqdn)) else { return steps };
    let intent = world.facts.intent();
    let step = match address(world, name) {
        Some(ip) if intent.networks.iter().any(|net| net.address.addr == ip) => {
            StepView::new("name", true, format!("{name} leads to this appliance"))
        }
        Some(ip) => StepView::new("name", true, format!("{name} leads to {ip} for other apps")),
        None if intent.serves(name) => {
            StepView::new("name", false, format!("{name} has no address in DNS while the container is off"))
        }
        None => {
            let says =
                format!("{name} is in no domain of this appliance: whoever serves its DNS must lead it here");
            StepView::new("name", true, says)
        }
    };
    steps.push(step);
    steps
}

/// The address of a name in our DNS.
fn address(world: &World, name: &Name) -> Option<Ipv4Addr> {
    let node = world.zones.node(name.as_wire())?;
    let rrset = node.rrsets().find(|rrset| rrset.rtype == RecordType::A.code())?;
    rrset.rdata().find_map(|data| <[u8; 4]>::try_from(data).ok()).map(Ipv4Addr::from)
}

#[cfg(test)]
mod tests {
    use proximity_table::{
        Change, Facts, Forward, Generation, Lease, LeaseState, Ledger, Mac, Protocol, Source, Touched, Vhost,
    };

    use super::*;

    const NOW: Timestamp = Timestamp(1_000);

    fn world(changes: impl IntoIterator<Item = Change>) -> World {
        let mut facts = Facts::new(proximity_config::Config::default().intent, Ledger::default());
        changes.into_iter().for_each(|change| facts.apply(change, &mut Touched::default()));
        World::derive(facts, Generation(1))
    }

    fn lease(name: &str, state: LeaseState) -> Change {
        lease_at(101, name, state)
    }

    fn lease_at(last: u8, name: &str, state: LeaseState) -> Change {
        Change::Lease(Lease {
            ip: [10, 20, 0, last].into(),
            mac: Mac([2, 0, 0, 0, 0, last]),
            client_id: None,
            hostname: Some(name.parse().unwrap()),
            network: "apps".into(),
            state,
            expires: NOW.plus(40_000),
            epoch: 1,
        })
    }

    fn vhost(app: &str, hostname: &str) -> Vhost {
        let target = BackendTarget::App { name: "wiki".parse().unwrap(), port: 80 };
        Vhost::new(app.parse().unwrap(), hostname.parse().unwrap(), vec![target])
    }

    fn put(source: Source, vhost: Vhost) -> Change {
        Change::Vhost(source, vhost.into())
    }

    fn steps(world: &World, name: &str) -> Vec<(bool, String)> {
        told(world, name, &[])
    }

    fn told(world: &World, name: &str, targets: &[&str]) -> Vec<(bool, String)> {
        let targets = targets.iter().map(|text| match text.split_once(':').unwrap() {
            (name, port) if name.parse::<Ipv4Addr>().is_err() => {
                BackendTarget::App { name: name.parse().unwrap(), port: port.parse().unwrap() }
            }
            _ => BackendTarget::Address(text.parse().unwrap()),
        });
        let targets = targets.collect();
        let said = Said { verdict: "ok", title: "", why: "", advice: "", steps: Vec::new(), targets };
        let subject = Subject::of(world, name).unwrap();
        let view = ExplainView::of(world, &subject, said, |_| ForwardFigures::default(), NOW);
        view.steps.into_iter().map(|step| (step.ok, step.says)).collect()
    }

    #[test]
    fn a_container_is_told_with_its_address_and_name() {
        let there = steps(&world([lease("wiki", LeaseState::Bound)]), "wiki");
        let expected = [
            (true, "the container wiki has the address 10.20.0.101 for another 11 h".to_owned()),
            (true, "wiki.prox.local leads to 10.20.0.101 for other apps".to_owned()),
        ];
        assert_eq!(there, expected);
        let gone = steps(&world([lease("wiki", LeaseState::Expired)]), "wiki.prox.local.");
        assert!(!gone[0].0 && gone[0].1.contains("wiki is off"), "{gone:?}");
        assert!(!gone[1].0 && gone[1].1.contains("has no address in DNS"), "{gone:?}");
    }

    #[test]
    fn the_lease_of_each_backend_is_told_and_the_forwards_of_the_app_alone() {
        let forward = |port, name: &str| {
            let to = BackendTarget::App { name: name.parse().unwrap(), port: 22 };
            Change::Forward(Source::Api, Forward::new(Protocol::Tcp, port, to))
        };
        let world = world([
            lease_at(101, "wiki", LeaseState::Bound),
            lease_at(102, "wiki2", LeaseState::Released),
            lease_at(103, "wiki3", LeaseState::Bound),
            lease_at(104, "shop", LeaseState::Bound),
            put(Source::Api, vhost("docs", "docs.prox.local")),
            put(Source::Api, vhost("shop", "shop.prox.local")),
            forward(2201, "wiki"),
            forward(2202, "shop"),
        ]);
        let targets = ["wiki:80", "wiki:81", "wiki2:80", "10.20.0.103:80", "10.20.0.9:80", "nobody:80"];
        let lines = |name: &str, word: &str| {
            let all = told(&world, name, &targets).into_iter();
            all.filter(|(_, says)| says.contains(word)).collect::<Vec<_>>()
        };
        let leases = lines("docs", "the container ");
        assert_eq!(leases.iter().map(|(ok, _)| *ok).collect::<Vec<_>>(), [true, false, true], "{leases:?}");
        for ((_, says), name) in leases.iter().zip(["wiki ", "wiki2 ", "wiki3 "]) {
            assert!(says.starts_with(&format!("the container {name}")), "{leases:?}");
        }
        assert_eq!(lines("docs", "TCP port"), [], "a port of wiki, not of docs");
        let ports = lines("shop", "TCP port");
        assert!(ports.len() == 1 && ports[0].1.contains("TCP port 2202"), "{ports:?}");
        let alone = steps(&world, "wiki");
        assert!(alone.iter().any(|(_, says)| says.contains("TCP port 2201")), "{alone:?}");
    }

    #[test]
    fn a_vhost_is_found_by_every_name_and_the_default_one_by_any() {
        let default = Vhost { default: true, ..vhost("shop", "*.shop.prox.local") };
        let world = world([put(Source::Api, default)]);
        let found = |name: &str| Subject::of(&world, name).map(|subject| subject.app.name.to_string());
        assert_eq!(found("a.shop.prox.local").as_deref(), Ok("shop"));
        let by_default = steps(&world, "nobody.example");
        assert!(by_default[0].1.contains("the default vhost shop takes it"), "{by_default:?}");
        assert_eq!(found("nobody").unwrap_err().status, 404, "no host name");
    }

    #[test]
    fn whoever_is_not_there_is_told_with_who_may_be_meant() {
        let world = world([
            lease("mediawiki", LeaseState::Bound),
            put(Source::Config, vhost("first", "docs.prox.local")),
            put(Source::Api, vhost("second", "docs.prox.local")),
        ]);
        let problem = |name: &str| Subject::of(&world, name).unwrap_err();
        assert_eq!(problem("mediawkii").detail, "there is no app `mediawkii`");
        assert!(problem("mediawkii").hint.starts_with("the nearest name is `mediawiki`; "));
        assert!(problem("mediawkii.prox.local").hint.contains("`mediawiki`"));
        assert!(problem("zzz").hint.starts_with("`proximity app ls`"));
        assert!(problem("second").detail.contains("docs.prox.local belongs to the vhost `first`"));
    }
}
