//! Vhosts as the API shows them. What is shown may be sent back: its settings are spelled as they are written.

use std::net::Ipv4Addr;

use proximity_table::{
    Backend, BackendTarget, Health, HealthPolicy, HealthState, Label, Name, Route, Service, Source,
    UpstreamKey, Vhost, VhostPath, World,
};
use serde::{Deserialize, Serialize};

use crate::vhost_settings::{self, Settings};
use crate::view::rfc3339;

/// A virtual host.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct VhostView {
    pub app_name: String,
    pub hostname: String,
    pub aliases: Vec<String>,
    pub backend_ip: Option<Ipv4Addr>,
    pub backend_port: Option<u16>,
    /// Every backend as it was asked for; none where clients are sent elsewhere.
    pub backends: Vec<String>,
    pub protocol: String,
    pub enabled: bool,
    pub source: Source,
    /// What a request meets: ready, starting, stopped or disabled; shadowed when another vhost has the name.
    pub verdict: String,
    /// Where a browser finds it; nowhere when all its names are wildcards.
    pub url: Option<String>,
    pub health: HealthView,
    /// What needs attention, in words.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub path: Vec<PathView>,
    /// What works and perhaps is not meant, in words.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// Everything else that differs from the default.
    #[serde(flatten)]
    pub settings: Settings,
}

/// What of a vhost goes elsewhere by its path.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct PathView {
    pub prefix: String,
    pub strip: bool,
    pub backends: Vec<String>,
    pub protocol: String,
    pub verdict: String,
    pub health: HealthView,
    /// Everything else that differs from the vhost's own.
    #[serde(flatten)]
    pub settings: Settings,
}

/// What the probes of a vhost found.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct HealthView {
    pub state: String,
    pub since: Option<String>,
    pub reason: Option<String>,
    pub uri: String,
    pub interval: String,
    pub timeout: String,
    pub backends: Vec<CheckView>,
    /// Everything else that differs from the default.
    #[serde(flatten)]
    pub settings: Settings,
}

/// What the probes of one backend found.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct CheckView {
    pub backend: String,
    pub state: String,
    pub since: Option<String>,
    pub reason: Option<String>,
    /// What requests found, since the start of the process; absent before the first one, and in lists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load: Option<LoadView>,
    #[serde(skip)]
    pub key: Option<UpstreamKey>,
}

/// What requests found of a backend.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct LoadView {
    /// Requests that it works on.
    pub in_flight: u32,
    /// Requests that wait for it.
    pub waiting: u32,
    /// closed, open while it is left alone for its failures, half_open while one request tries it, queue_full while
    /// it has as many requests as it may, slow_start while it takes up its share.
    pub circuit: String,
    /// The same in words, unless it is closed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// Failures that count towards the next pause.
    pub failures: u32,
    /// How often it was left alone.
    pub pauses: u32,
    /// What the last request met, if it failed.
    pub last_failure: Option<String>,
}

impl VhostView {
    /// Every vhost by app name, those made from leases too.
    pub fn all(world: &World) -> Vec<VhostView> {
        let asked = world
            .facts
            .intent()
            .vhosts
            .values()
            .map(|(source, vhost)| VhostView::asked(world, *source, vhost));
        let leased = world.routes.values().filter(|route| route.from_lease());
        let mut views: Vec<VhostView> = asked.chain(leased.map(|route| VhostView::leased(route))).collect();
        views.sort_by(|a, b| (&a.app_name, &a.hostname).cmp(&(&b.app_name, &b.hostname)));
        views
    }

    /// The vhost of this name or host name: one that was asked for before one made from a lease.
    pub fn named(world: &World, name: &str) -> Option<VhostView> {
        let name = name.to_ascii_lowercase();
        let asked = name.parse().ok().and_then(|label: Label| world.facts.intent().vhosts.get(&label));
        if let Some((source, vhost)) = asked {
            let notes = unknown(world, vhost, |name| world.nearest_host(name.as_str()));
            return Some(VhostView { notes, ..VhostView::asked(world, *source, vhost) });
        }
        let of_app = || {
            let label: Label = name.parse().ok()?;
            let networks = &world.facts.intent().networks;
            // A wildcard claims many names, but is not called by them.
            networks
                .iter()
                .find_map(|net| world.routes.get(net.domain.child(&label).ok()?.to_string().as_str()))
        };
        world.route(&name).or_else(of_app).and_then(|route| VhostView::of(world, route))
    }

    /// Adds what requests found of each backend; `load` gets the backend and whether it is the only one.
    pub fn with_loads(mut self, load: impl Fn(&UpstreamKey, bool) -> Option<LoadView>) -> VhostView {
        for health in self.healths() {
            let is_sole = health.backends.len() == 1;
            for check in &mut health.backends {
                check.load = check.key.as_ref().and_then(|key| load(key, is_sole));
            }
        }
        let noted = |check: &mut CheckView| {
            let note = check.load.as_ref()?.note.as_ref()?;
            Some(format!("{}: {note}", check.backend))
        };
        let notes: Vec<String> = self.checks().filter_map(noted).collect();
        self.notes.extend(notes);
        self
    }

    /// What is known of each backend, of the paths too.
    pub fn checks(&mut self) -> impl Iterator<Item = &mut CheckView> {
        self.healths().flat_map(|health| &mut health.backends)
    }

    fn healths(&mut self) -> impl Iterator<Item = &mut HealthView> {
        std::iter::once(&mut self.health).chain(self.path.iter_mut().map(|path| &mut path.health))
    }

    /// The vhost that a route belongs to.
    pub fn of(world: &World, route: &Route) -> Option<VhostView> {
        if route.from_lease() {
            return Some(VhostView::leased(route));
        }
        let (source, vhost) = world.facts.intent().vhosts.get(&route.app.parse::<Label>().ok()?)?;
        Some(VhostView::asked(world, *source, vhost))
    }

    fn asked(world: &World, source: Source, vhost: &Vhost) -> VhostView {
        let mut route = world.routes.get(vhost.hostname.to_string().as_str());
        route = route.filter(|route| *route.app == *vhost.app_name.as_str());
        let service = route.and_then(|route| route.root.service());
        let first = service.and_then(|service| service.candidates.first()).map(|backend| backend.key.addr);
        let port = vhost.backends.first().map(|target| match target {
            BackendTarget::Address(addr) => addr.port(),
            BackendTarget::App { port, .. } => *port,
        });
        let with_url = vhost.names().find(|name| !name.is_wildcard());
        let mut paths: Vec<PathView> =
            vhost.paths.iter().map(|path| PathView::of(vhost, path, route.map(|route| &**route))).collect();
        paths.sort_by(|a, b| a.prefix.cmp(&b.prefix));
        VhostView {
            app_name: vhost.app_name.to_string(),
            hostname: vhost.hostname.to_string(),
            aliases: vhost.aliases.iter().map(Name::to_string).collect(),
            backend_ip: first.map(|addr| *addr.ip()),
            backend_port: port,
            backends: vhost.backends.iter().map(ToString::to_string).collect(),
            protocol: vhost.protocol.as_str().to_owned(),
            enabled: vhost.enabled,
            source,
            verdict: route.map_or("shadowed", |route| route.verdict().as_str()).to_owned(),
            url: with_url.map(|name| format!("http://{name}")),
            health: HealthView::of(&vhost.health, &HealthPolicy::default(), service),
            notes: unknown(world, vhost, |_| None),
            path: paths,
            warnings: world.vhost_warnings(vhost),
            settings: vhost_settings::of_vhost(vhost),
        }
    }

    fn leased(route: &Route) -> VhostView {
        let service = route.root.service();
        let usable = service.and_then(|service| service.usable(true).next());
        let backend = usable.or(route.backends().next()).map(|backend| backend.key.addr);
        VhostView {
            app_name: route.app.to_string(),
            hostname: route.hostname.to_string(),
            aliases: Vec::new(),
            backend_ip: backend.map(|addr| *addr.ip()),
            backend_port: backend.map(|addr| addr.port()),
            backends: route.backends().map(|backend| backend.key.addr.to_string()).collect(),
            protocol: service.map(|service| service.protocol).unwrap_or_default().as_str().to_owned(),
            enabled: true,
            source: Source::Lease,
            verdict: route.verdict().as_str().to_owned(),
            url: Some(format!("http://{}", route.hostname)),
            health: HealthView::of(&HealthPolicy::default(), &HealthPolicy::default(), service),
            notes: Vec::new(),
            path: Vec::new(),
            warnings: Vec::new(),
            settings: Settings::new(),
        }
    }
}

/// Says which apps of a vhost nobody knows. Looking for the nearest name is not for lists.
fn unknown(world: &World, vhost: &Vhost, nearest: impl Fn(&Label) -> Option<String>) -> Vec<String> {
    let names = world.unknown_apps(vhost).into_iter();
    names
        .filter_map(|name| world.unknown_beside(&name, &nearest))
        .map(|absence| absence.to_string())
        .collect()
}

impl PathView {
    fn of(vhost: &Vhost, path: &VhostPath, route: Option<&Route>) -> PathView {
        let derived = route.and_then(|route| route.paths.iter().find(|found| *found.prefix == *path.prefix));
        let service = derived.and_then(|derived| derived.action.service());
        let verdict = match (route, derived) {
            (None, _) => "shadowed",
            // A disabled vhost has no paths.
            (Some(route), None) => route.verdict().as_str(),
            (_, Some(_)) => service.map_or("ready", |service| service.verdict.as_str()),
        };
        let mut settings = vhost_settings::of_redirect(path.redirect.as_ref());
        settings.extend(vhost_settings::of_tls(&path.tls, &vhost.tls));
        PathView {
            prefix: path.prefix.clone(),
            strip: path.strip,
            backends: path.backends.iter().map(ToString::to_string).collect(),
            protocol: path.protocol.as_str().to_owned(),
            verdict: verdict.to_owned(),
            health: HealthView::of(&path.health, &vhost.health, service),
            settings,
        }
    }
}

impl HealthView {
    fn of(policy: &HealthPolicy, base: &HealthPolicy, service: Option<&Service>) -> HealthView {
        let backends = service.map_or(&[][..], |service| &service.candidates);
        let check = |backend: &Backend| CheckView {
            key: service.map(|service| service.upstream(backend.key)),
            ..CheckView::of(backend)
        };
        let rank = |backend: &&Backend| match backend.state() {
            HealthState::Healthy => 0,
            HealthState::Unproven => 1,
            HealthState::Unhealthy => 2,
        };
        let best = backends.iter().min_by_key(rank);
        let health = best.and_then(|backend| backend.health.as_ref());
        HealthView {
            state: best.map(|backend| backend.state()).unwrap_or_default().as_str().to_owned(),
            since: health.and_then(|health| rfc3339(health.since)),
            reason: health.and_then(|health| health.reason.clone()),
            uri: policy.uri.clone(),
            interval: format!("{}s", policy.interval),
            timeout: format!("{}s", policy.timeout),
            backends: backends.iter().map(check).collect(),
            settings: vhost_settings::of_health(policy, base),
        }
    }
}

impl CheckView {
    fn of(backend: &Backend) -> CheckView {
        let health: Option<&Health> = backend.health.as_ref();
        CheckView {
            backend: backend.key.addr.to_string(),
            state: backend.state().as_str().to_owned(),
            since: health.and_then(|health| rfc3339(health.since)),
            reason: health.and_then(|health| health.reason.clone()),
            load: None,
            key: None,
        }
    }
}
