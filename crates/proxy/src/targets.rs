use std::collections::HashMap;
use std::sync::Arc;

use proximity_table::{
    BackendKey, BackendProtocol, BackendTls, HealthPolicy, HostPolicy, Name, ResolvedForward, Route, Verdict,
    World,
};

/// What is probed: a backend of an app, whatever names lead to it.
pub type TargetKey = (Arc<str>, BackendKey);

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

/// A plan that was written down wins over the default of a vhost made from a lease.
fn plan_of(claims: &[Claim]) -> Option<Arc<ProbePlan>> {
    claims.iter().min_by_key(|claim| claim.from_lease).map(|claim| claim.plan.clone())
}

/// The backends of a route that are probed, and how: as requests reach them. An app that is stopped or switched
/// off is left alone. A backend of several paths is probed the way of the first, and the service that decides
/// who may pass by whether it answers.
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
        for backend in &service.candidates {
            probed.entry((route.app.clone(), backend.key)).or_insert_with(|| plan.clone());
        }
    }
    if let Some(backend) = route.auth_backend.as_ref().filter(|_| route.verdict() != Verdict::Disabled) {
        let plan =
            || Arc::new(ProbePlan { policy: HealthPolicy::default().shared(), ..ProbePlan::default() });
        probed.entry((route.app.clone(), backend.key)).or_insert_with(plan);
    }
    probed
}

/// The targets of a forward, if they are to be probed.
fn probed_targets(forward: &ResolvedForward) -> Wishes {
    let Some(policy) = &forward.health else { return HashMap::new() };
    let name = forward.health_name();
    let plan = Arc::new(ProbePlan { policy: policy.clone(), ..ProbePlan::default() });
    forward.targets.iter().map(|target| ((name.clone(), target.key), plan.clone())).collect()
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddrV4};

    use imbl::HashMap as WorldMap;
    use proximity_table::{
        Action, Backend, BackendTls, Facts, Generation, Ledger, PathRoute, Protocol, Service, Source,
        VhostPolicy,
    };

    use super::*;

    fn world(routes: &[(&str, Route)]) -> Arc<World> {
        let intent = proximity_config::Config::default().intent;
        let mut world = World::derive(Facts::new(intent, Ledger::default()), Generation(1));
        let routes = routes.iter().map(|(name, route)| (Arc::from(*name), Arc::new(route.clone())));
        world.routes = routes.collect::<WorldMap<Arc<str>, Arc<Route>>>();
        Arc::new(world)
    }

    fn key(app: &str, port: u16) -> TargetKey {
        (app.into(), BackendKey { addr: SocketAddrV4::new(Ipv4Addr::new(10, 20, 0, 9), port), epoch: 1 })
    }

    fn service(app: &str, ports: &[u16], uri: &str, verdict: Verdict) -> Action {
        Action::Proxy(Service {
            protocol: BackendProtocol::Http,
            tls: BackendTls::default(),
            health: Arc::new(HealthPolicy { uri: uri.to_owned(), ..HealthPolicy::default() }),
            candidates: ports.iter().map(|&port| Backend { key: key(app, port).1, health: None }).collect(),
            verdict,
        })
    }

    fn route(app: &str, ports: &[u16], source: Source, uri: &str) -> Route {
        Route {
            app: app.into(),
            hostname: format!("{app}.prox.local").parse().unwrap(),
            source,
            policy: VhostPolicy::unchanged(),
            root: service(app, ports, uri, Verdict::Ready),
            paths: Vec::new(),
            auth_backend: None,
        }
    }

    fn probe(app: &str, port: u16, uri: &str) -> Change {
        let policy = Arc::new(HealthPolicy { uri: uri.to_owned(), ..HealthPolicy::default() });
        Change::Probe(key(app, port), Arc::new(ProbePlan { policy, ..ProbePlan::default() }))
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
        assert_eq!(targets.follow(&world(&[])), [Change::Forget(key("wiki", 80))]);
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
        let mut changes = targets.follow(&moved);
        changes.sort_by_key(|change| matches!(change, Change::Forget(_)));
        assert_eq!(changes, [probe("wiki", 82, "/"), Change::Forget(key("wiki", 80))]);
        let other = world(&[("wiki", route("wiki", &[81], Source::Config, "/up"))]);
        let mut changes = targets.follow(&other);
        changes.sort_by_key(|change| matches!(change, Change::Forget(_)));
        assert_eq!(changes, [probe("wiki", 81, "/up"), Change::Forget(key("wiki", 82))]);
    }

    #[test]
    fn a_written_policy_wins_over_that_of_a_lease() {
        let mut targets = Targets::default();
        let leased = route("wiki", &[80], Source::Lease, "/");
        let written = route("wiki", &[80], Source::Api, "/up");
        assert_eq!(targets.follow(&world(&[("a", leased.clone())])), [probe("wiki", 80, "/")]);
        let both = world(&[("a", leased.clone()), ("b", written)]);
        assert_eq!(targets.follow(&both), [probe("wiki", 80, "/up")]);
        assert_eq!(targets.follow(&world(&[("a", leased)])), [probe("wiki", 80, "/")]);
    }

    #[test]
    fn apps_that_are_not_there_are_left_alone() {
        let mut targets = Targets::default();
        let mut wiki = route("wiki", &[80], Source::Config, "/");
        targets.follow(&world(&[("wiki", wiki.clone())]));
        for verdict in [Verdict::Stopped, Verdict::Disabled] {
            wiki.root = service("wiki", &[80], "/", verdict);
            assert_eq!(targets.follow(&world(&[("wiki", wiki.clone())])), [Change::Forget(key("wiki", 80))]);
            wiki.root = service("wiki", &[80], "/", Verdict::Starting);
            assert_eq!(targets.follow(&world(&[("wiki", wiki.clone())])), [probe("wiki", 80, "/")]);
        }
    }

    #[test]
    fn backends_of_paths_are_probed_too_and_the_roots_way_wins() {
        let mut targets = Targets::default();
        let mut wiki = route("wiki", &[80], Source::Config, "/");
        let path = |action| PathRoute { prefix: "/api".into(), strip: false, action };
        wiki.paths = vec![path(service("wiki", &[80, 81], "/up", Verdict::Ready))];
        let mut changes = targets.follow(&world(&[("wiki", wiki.clone())]));
        changes.sort_by_key(|change| matches!(change, Change::Probe((_, key), _) if key.addr.port() == 81));
        assert_eq!(changes, [probe("wiki", 80, "/"), probe("wiki", 81, "/up")]);
        wiki.paths.clear();
        assert_eq!(targets.follow(&world(&[("wiki", wiki)])), [Change::Forget(key("wiki", 81))]);
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
        wiki.auth_backend = Some(Backend { key: key("wiki", 9091).1, health: None });
        assert_eq!(targets.follow(&world(&[("wiki", wiki.clone())])), [probe("wiki", 9091, "/")]);
        // One that is a backend as well is asked as such.
        wiki.auth_backend = Some(Backend { key: key("wiki", 80).1, health: None });
        assert_eq!(targets.follow(&world(&[("wiki", wiki.clone())])), [Change::Forget(key("wiki", 9091))]);
        wiki.auth_backend = Some(Backend { key: key("wiki", 9091).1, health: None });
        wiki.root = service("wiki", &[80], "/up", Verdict::Disabled);
        assert_eq!(targets.follow(&world(&[("wiki", wiki)])), [Change::Forget(key("wiki", 80))]);
    }

    #[test]
    fn targets_of_forwards_are_probed_when_somebody_asked_for_it() {
        let forward = |ports: &[u16], health: Option<HealthPolicy>| ResolvedForward {
            protocol: Protocol::Tcp,
            port: 2222,
            health: health.map(Arc::new),
            proxy: None,
            targets: ports.iter().map(|&port| Backend { key: key("", port).1, health: None }).collect(),
        };
        let with = |forwards: Vec<ResolvedForward>| {
            let mut world = (*world(&[])).clone();
            world.forwards = forwards.into_iter().map(Arc::new).collect();
            Arc::new(world)
        };
        let probe = |port, policy: &HealthPolicy| {
            let plan = ProbePlan { policy: Arc::new(policy.clone()), ..ProbePlan::default() };
            Change::Probe(key("tcp/2222", port), Arc::new(plan))
        };
        let often = HealthPolicy { interval: 1, ..HealthPolicy::connect() };
        let mut targets = Targets::default();
        assert!(targets.follow(&with(vec![forward(&[22], None)])).is_empty());
        let changes = targets.follow(&with(vec![forward(&[22], Some(often.clone()))]));
        assert_eq!(changes, [probe(22, &often)]);
        assert!(targets.follow(&with(vec![forward(&[22], Some(often.clone()))])).is_empty());
        let mut changes = targets.follow(&with(vec![forward(&[23], Some(often.clone()))]));
        changes.sort_by_key(|change| matches!(change, Change::Forget(_)));
        assert_eq!(changes, [probe(23, &often), Change::Forget(key("tcp/2222", 22))]);
        assert_eq!(targets.follow(&with(vec![])), [Change::Forget(key("tcp/2222", 23))]);
        assert!(targets.claims.is_empty());
    }
}
