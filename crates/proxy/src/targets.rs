use std::collections::HashMap;
use std::sync::Arc;

use proximity_table::{
    BackendProtocol, BackendTls, HealthPolicy, HostPolicy, Name, ProbeKey, Question, ResolvedForward, Route,
    Verdict, World,
};

/// What is probed: a backend of an app that is asked something, whatever names lead to it.
pub type TargetKey = (Arc<str>, ProbeKey);

/// The probed backends of a world, kept up with the next worlds by what changed in them.
#[derive(Debug, Default)]
pub struct Targets {
    claims: HashMap<TargetKey, Vec<Claim>>,
    world: Option<Arc<World>>,
}

/// How a backend is probed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProbePlan {
    /// What is asked, how often, and what must come.
    pub policy: Arc<HealthPolicy>,
    /// How it is spoken to.
    pub protocol: BackendProtocol,
    /// Whom it must prove to be.
    pub tls: BackendTls,
    /// What stands in `Host`; `None` for the address that is asked.
    pub host: Option<Name>,
}

/// A change of what is probed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Probe a backend this way from now on: a new one, or one with another plan.
    Probe(TargetKey, Arc<ProbePlan>),
    /// Probe it no longer.
    Forget(TargetKey),
}

/// One name's wish for a backend to be probed.
#[derive(Clone, Debug)]
struct Claim {
    name: Arc<str>,
    plan: Arc<ProbePlan>,
    from_lease: bool,
}

impl Targets {
    /// Moves on to another world and tells what changes.
    pub fn follow(&mut self, world: &Arc<World>) -> Vec<Change> {
        let old = self.world.replace(world.clone());
        let mut changes = HashMap::new();
        let mut known = 0;
        for (name, route) in &world.routes {
            let before = old.as_ref().and_then(|old| old.routes.get(name));
            known += usize::from(before.is_some());
            if before.is_some_and(|before| Arc::ptr_eq(before, route)) {
                continue;
            }
            self.step(
                name,
                route.from_lease(),
                probed(route),
                before.map(|route| probed(route)),
                &mut changes,
            );
        }
        if let Some(old) = old.as_ref().filter(|old| old.routes.len() > known) {
            for (name, route) in old.routes.iter().filter(|(name, _)| !world.routes.contains_key(*name)) {
                self.step(name, false, HashMap::new(), Some(probed(route)), &mut changes);
            }
        }
        self.follow_forwards(old.as_deref(), world, &mut changes);
        changes.into_iter().filter_map(|(key, before)| self.change_of(key, before)).collect()
    }

    fn follow_forwards(&mut self, old: Option<&World>, world: &World, changes: &mut Before) {
        if old.is_some_and(|old| Arc::ptr_eq(&old.forwards, &world.forwards)) {
            return;
        }
        for forward in world.forwards.iter() {
            let before = old.and_then(|old| old.forward(forward.protocol, forward.port));
            if !before.is_some_and(|before| Arc::ptr_eq(before, forward)) {
                let (now, before) = (probed_targets(forward), before.map(|before| probed_targets(before)));
                self.step(&forward.health_name(), false, now, before, changes);
            }
        }
        let there = |gone: &&Arc<ResolvedForward>| world.forward(gone.protocol, gone.port).is_none();
        for gone in old.into_iter().flat_map(|old| old.forwards.iter()).filter(there) {
            self.step(&gone.health_name(), false, HashMap::new(), Some(probed_targets(gone)), changes);
        }
    }

    /// Moves the wishes of one name on.
    fn step(
        &mut self,
        name: &Arc<str>,
        from_lease: bool,
        now: Wishes,
        before: Option<Wishes>,
        changes: &mut Before,
    ) {
        // New claims first: what stays claimed is not forgotten in between.
        for (key, plan) in &now {
            let claim = Claim { name: name.clone(), plan: plan.clone(), from_lease };
            self.claim(key.clone(), claim, changes);
        }
        for key in before.iter().flat_map(|before| before.keys()).filter(|key| !now.contains_key(*key)) {
            self.release(key, name, changes);
        }
    }

    fn claim(&mut self, key: TargetKey, claim: Claim, changes: &mut Before) {
        let claims = self.claims.entry(key.clone()).or_default();
        changes.entry(key).or_insert_with(|| plan_of(claims));
        match claims.iter_mut().find(|there| there.name == claim.name) {
            Some(there) => *there = claim,
            None => claims.push(claim),
        }
    }

    fn release(&mut self, key: &TargetKey, name: &Arc<str>, changes: &mut Before) {
        if let Some(claims) = self.claims.get_mut(key) {
            changes.entry(key.clone()).or_insert_with(|| plan_of(claims));
            claims.retain(|claim| claim.name != *name);
        }
    }

    fn change_of(&mut self, key: TargetKey, before: Option<Arc<ProbePlan>>) -> Option<Change> {
        let now = self.claims.get(&key).and_then(|claims| plan_of(claims));
        match (before, now) {
            (_, None) => {
                self.claims.remove(&key);
                Some(Change::Forget(key))
            }
            (Some(before), Some(now)) if before == now => None,
            (_, Some(now)) => Some(Change::Probe(key, now)),
        }
    }
}

/// What one name wants probed, and how.
type Wishes = HashMap<TargetKey, Arc<ProbePlan>>;
/// Which plan the touched backends had before.
type Before = HashMap<TargetKey, Option<Arc<ProbePlan>>>;

/// All ask the same, in the same way. They may differ in the `Host`: that of a vhost that was written down wins over
/// that of one made from a lease.
fn plan_of(claims: &[Claim]) -> Option<Arc<ProbePlan>> {
    claims.iter().min_by_key(|claim| claim.from_lease).map(|claim| claim.plan.clone())
}

/// The backends of a route that are probed, and how: as requests reach them. An app that is stopped or switched
/// off is left alone. What several paths ask of a backend in the same way is asked once. The service that decides who
/// may pass is asked whether it answers.
fn probed(route: &Route) -> Wishes {
    let mut probed = HashMap::new();
    let host = (route.policy.host == HostPolicy::Preserve).then(|| route.hostname.visited()).flatten();
    for service in route.services() {
        if !matches!(service.verdict, Verdict::Ready | Verdict::Starting) || service.candidates.is_empty() {
            continue;
        }
        let plan = Arc::new(ProbePlan {
            policy: service.health.clone(),
            protocol: service.protocol,
            tls: service.tls.clone(),
            host: host.clone(),
        });
        let question = service.question();
        for backend in &service.candidates {
            let key = ProbeKey { backend: backend.key, question };
            probed.entry((route.app.clone(), key)).or_insert_with(|| plan.clone());
        }
    }
    if let Some(backend) = route.auth_backend.as_ref().filter(|_| route.verdict() != Verdict::Disabled) {
        let plan =
            || Arc::new(ProbePlan { policy: HealthPolicy::default().shared(), ..ProbePlan::default() });
        probed.entry((route.app.clone(), ProbeKey::plain(backend.key))).or_insert_with(plan);
    }
    probed
}

/// The targets of a forward, if they are to be probed.
fn probed_targets(forward: &ResolvedForward) -> Wishes {
    let Some(policy) = &forward.health else { return HashMap::new() };
    let name = forward.health_name();
    let plan = Arc::new(ProbePlan { policy: policy.clone(), ..ProbePlan::default() });
    let question = Question::plain(Some(policy));
    let key = |backend| (name.clone(), ProbeKey { backend, question });
    forward.targets.iter().map(|target| (key(target.key), plan.clone())).collect()
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddrV4};

    use imbl::HashMap as WorldMap;
    use proximity_table::{
        Action, Backend, BackendKey, BackendTls, Facts, Generation, Ledger, PathRoute, Protocol, Service,
        Source, VhostPolicy,
    };

    use super::*;

    fn world(routes: &[(&str, Route)]) -> Arc<World> {
        let intent = proximity_config::Config::default().intent;
        let mut world = World::derive(Facts::new(intent, Ledger::default()), Generation(1));
        let routes = routes.iter().map(|(name, route)| (Arc::from(*name), Arc::new(route.clone())));
        world.routes = routes.collect::<WorldMap<Arc<str>, Arc<Route>>>();
        Arc::new(world)
    }

    fn backend(port: u16) -> BackendKey {
        BackendKey { addr: SocketAddrV4::new(Ipv4Addr::new(10, 20, 0, 9), port), epoch: 1 }
    }

    fn policy(uri: &str) -> Arc<HealthPolicy> {
        HealthPolicy { uri: uri.to_owned(), ..HealthPolicy::default() }.shared()
    }

    fn asked(app: &str, port: u16, policy: &HealthPolicy) -> TargetKey {
        (app.into(), ProbeKey { backend: backend(port), question: Question::plain(Some(policy)) })
    }

    fn service(ports: &[u16], uri: &str, verdict: Verdict) -> Action {
        Action::Proxy(Service {
            protocol: BackendProtocol::Http,
            tls: BackendTls::default(),
            health: policy(uri),
            candidates: ports.iter().map(|&port| Backend { key: backend(port), health: None }).collect(),
            verdict,
        })
    }

    fn route(app: &str, ports: &[u16], source: Source, uri: &str) -> Route {
        Route {
            app: app.into(),
            hostname: format!("{app}.prox.local").parse().unwrap(),
            source,
            policy: VhostPolicy::unchanged(),
            root: service(ports, uri, Verdict::Ready),
            paths: Vec::new(),
            auth_backend: None,
        }
    }

    fn probe(app: &str, port: u16, uri: &str) -> Change {
        let plan = ProbePlan { policy: policy(uri), ..ProbePlan::default() };
        Change::Probe(asked(app, port, &plan.policy), Arc::new(plan))
    }

    fn forget(app: &str, port: u16, uri: &str) -> Change {
        Change::Forget(asked(app, port, &policy(uri)))
    }

    /// What is new first, in the order of the ports.
    fn sorted(mut changes: Vec<Change>) -> Vec<Change> {
        changes.sort_by_key(|change| match change {
            Change::Probe((_, key), _) => (false, key.backend.addr.port()),
            Change::Forget((_, key)) => (true, key.backend.addr.port()),
        });
        changes
    }

    #[test]
    fn a_backend_is_probed_once_however_many_names_lead_to_it() {
        let mut targets = Targets::default();
        let wiki = route("wiki", &[80], Source::Config, "/");
        assert_eq!(
            targets.follow(&world(&[("wiki", wiki.clone()), ("alias", wiki.clone())])),
            [probe("wiki", 80, "/")]
        );
        assert!(targets.follow(&world(&[("alias", wiki.clone())])).is_empty());
        assert_eq!(targets.follow(&world(&[])), [forget("wiki", 80, "/")]);
        assert_eq!(targets.claims.len(), 0);
        assert_eq!(targets.follow(&world(&[("wiki", wiki)])), [probe("wiki", 80, "/")]);
    }

    #[test]
    fn only_what_changed_is_told() {
        let mut targets = Targets::default();
        targets.follow(&world(&[("wiki", route("wiki", &[80, 81], Source::Config, "/"))]));
        // The same again, in another allocation.
        assert!(
            targets.follow(&world(&[("wiki", route("wiki", &[80, 81], Source::Config, "/"))])).is_empty()
        );
        let moved = world(&[("wiki", route("wiki", &[81, 82], Source::Config, "/"))]);
        let changes = sorted(targets.follow(&moved));
        assert_eq!(changes, [probe("wiki", 82, "/"), forget("wiki", 80, "/")]);
        // Another question has a verdict of its own.
        let other = world(&[("wiki", route("wiki", &[81], Source::Config, "/up"))]);
        let changes = sorted(targets.follow(&other));
        let expected = [probe("wiki", 81, "/up"), forget("wiki", 81, "/"), forget("wiki", 82, "/")];
        assert_eq!(changes, expected);
    }

    #[test]
    fn two_names_that_ask_otherwise_each_have_a_verdict() {
        let mut targets = Targets::default();
        let leased = route("wiki", &[80], Source::Lease, "/");
        let mut written = route("wiki", &[80], Source::Api, "/up");
        assert_eq!(targets.follow(&world(&[("a", leased.clone())])), [probe("wiki", 80, "/")]);
        let both = world(&[("a", leased.clone()), ("b", written.clone())]);
        assert_eq!(targets.follow(&both), [probe("wiki", 80, "/up")]);
        assert_eq!(targets.follow(&world(&[("a", leased.clone())])), [forget("wiki", 80, "/up")]);
        // The same question is asked with the `Host` of the one that was written down.
        written.root = leased.root.clone();
        written.policy = VhostPolicy { host: HostPolicy::Preserve, ..VhostPolicy::default() }.shared();
        let plan = ProbePlan { host: Some("wiki.prox.local".parse().unwrap()), ..ProbePlan::default() };
        let changes = targets.follow(&world(&[("a", leased.clone()), ("b", written)]));
        assert_eq!(changes, [Change::Probe(asked("wiki", 80, &plan.policy), Arc::new(plan.clone()))]);
        assert_eq!(targets.follow(&world(&[("a", leased)])), [probe("wiki", 80, "/")]);
    }

    #[test]
    fn apps_that_are_not_there_are_left_alone() {
        let mut targets = Targets::default();
        let mut wiki = route("wiki", &[80], Source::Config, "/");
        targets.follow(&world(&[("wiki", wiki.clone())]));
        for verdict in [Verdict::Stopped, Verdict::Disabled] {
            wiki.root = service(&[80], "/", verdict);
            assert_eq!(targets.follow(&world(&[("wiki", wiki.clone())])), [forget("wiki", 80, "/")]);
            wiki.root = service(&[80], "/", Verdict::Starting);
            assert_eq!(targets.follow(&world(&[("wiki", wiki.clone())])), [probe("wiki", 80, "/")]);
        }
    }

    #[test]
    fn each_path_asks_its_own_question_and_what_is_asked_twice_is_asked_once() {
        let mut targets = Targets::default();
        let mut wiki = route("wiki", &[80], Source::Config, "/");
        let path = |action| PathRoute { prefix: "/api".into(), strip: false, action };
        wiki.paths = vec![path(service(&[80, 81], "/", Verdict::Ready))];
        let changes = sorted(targets.follow(&world(&[("wiki", wiki.clone())])));
        assert_eq!(changes, [probe("wiki", 80, "/"), probe("wiki", 81, "/")]);
        wiki.paths = vec![path(service(&[80], "/up", Verdict::Ready))];
        let changes = sorted(targets.follow(&world(&[("wiki", wiki.clone())])));
        assert_eq!(changes, [probe("wiki", 80, "/up"), forget("wiki", 81, "/")]);
        // The same by TLS is another question.
        let mut action = service(&[80], "/", Verdict::Ready);
        let Action::Proxy(encrypted) = &mut action else { panic!() };
        encrypted.protocol = BackendProtocol::Https;
        let question = encrypted.question();
        wiki.paths = vec![path(action)];
        let changes = sorted(targets.follow(&world(&[("wiki", wiki.clone())])));
        let plan = ProbePlan { protocol: BackendProtocol::Https, ..ProbePlan::default() };
        let key = ("wiki".into(), ProbeKey { backend: backend(80), question });
        assert_eq!(changes, [Change::Probe(key, Arc::new(plan)), forget("wiki", 80, "/up")]);
    }

    #[test]
    fn a_backend_is_asked_as_requests_reach_it() {
        let mut targets = Targets::default();
        let mut wiki = route("wiki", &[443], Source::Config, "/");
        let Action::Proxy(service) = &mut wiki.root else { panic!() };
        service.protocol = BackendProtocol::Https;
        service.tls = BackendTls { verify: true, server_name: Some("wiki.example".into()), ca: None };
        let (tls, health) = (service.tls.clone(), service.health.clone());
        let plan = |wiki: &Route| match &targets.follow(&world(&[("wiki", wiki.clone())]))[..] {
            [Change::Probe(_, plan)] => ProbePlan::clone(plan),
            other => panic!("{other:?}"),
        };
        let mut plan = plan;
        let mut expected = ProbePlan { policy: health, protocol: BackendProtocol::Https, tls, host: None };
        assert_eq!(plan(&wiki), expected);
        wiki.policy = VhostPolicy { host: HostPolicy::Preserve, ..VhostPolicy::default() }.shared();
        expected.host = Some("wiki.prox.local".parse().unwrap());
        assert_eq!(plan(&wiki), expected);
        wiki.hostname = "*.wiki.example".parse().unwrap();
        expected.host = Some("wiki.example".parse().unwrap());
        assert_eq!(plan(&wiki), expected);
    }

    #[test]
    fn the_service_that_decides_who_may_pass_is_probed() {
        let mut targets = Targets::default();
        let mut wiki = route("wiki", &[80], Source::Config, "/up");
        targets.follow(&world(&[("wiki", wiki.clone())]));
        wiki.auth_backend = Some(Backend { key: backend(9091), health: None });
        assert_eq!(targets.follow(&world(&[("wiki", wiki.clone())])), [probe("wiki", 9091, "/")]);
        // One that is a backend as well is asked as both.
        wiki.auth_backend = Some(Backend { key: backend(80), health: None });
        let changes = sorted(targets.follow(&world(&[("wiki", wiki.clone())])));
        assert_eq!(changes, [probe("wiki", 80, "/"), forget("wiki", 9091, "/")]);
        wiki.root = service(&[80], "/up", Verdict::Disabled);
        let changes = sorted(targets.follow(&world(&[("wiki", wiki)])));
        assert_eq!(changes.len(), 2, "{changes:?}");
        assert!(changes.contains(&forget("wiki", 80, "/up")) && changes.contains(&forget("wiki", 80, "/")));
        assert!(targets.claims.is_empty());
    }

    #[test]
    fn targets_of_forwards_are_probed_when_somebody_asked_for_it() {
        let forward = |ports: &[u16], health: Option<HealthPolicy>| ResolvedForward {
            protocol: Protocol::Tcp,
            port: 2222,
            health: health.map(Arc::new),
            proxy: None,
            targets: ports.iter().map(|&port| Backend { key: backend(port), health: None }).collect(),
        };
        let with = |forwards: Vec<ResolvedForward>| {
            let mut world = (*world(&[])).clone();
            world.forwards = forwards.into_iter().map(Arc::new).collect();
            Arc::new(world)
        };
        let probe = |port, policy: &HealthPolicy| {
            let plan = ProbePlan { policy: Arc::new(policy.clone()), ..ProbePlan::default() };
            Change::Probe(asked("tcp/2222", port, policy), Arc::new(plan))
        };
        let often = HealthPolicy { interval: 1, ..HealthPolicy::connect() };
        let mut targets = Targets::default();
        assert!(targets.follow(&with(vec![forward(&[22], None)])).is_empty());
        let changes = targets.follow(&with(vec![forward(&[22], Some(often.clone()))]));
        assert_eq!(changes, [probe(22, &often)]);
        assert!(targets.follow(&with(vec![forward(&[22], Some(often.clone()))])).is_empty());
        let changes = sorted(targets.follow(&with(vec![forward(&[23], Some(often.clone()))])));
        assert_eq!(changes, [probe(23, &often), Change::Forget(asked("tcp/2222", 22, &often))]);
        assert_eq!(targets.follow(&with(vec![])), [Change::Forget(asked("tcp/2222", 23, &often))]);
        assert!(targets.claims.is_empty());
    }
}
