use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use imbl::HashMap;
use serde::{Deserialize, Serialize};

use crate::{
    Backend, BackendTarget, Facts, Forward, Ipv4Net, Label, Lease, Mac, Name, Network, Protocol,
    ResolvedForward, Route, Service, Touched, Vhost, Zones, derive,
};

/// The number of a published world. It only ever grows, across restarts too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Generation(pub u64);

/// One immutable, consistent view of the whole network: whoever sees a lease sees its name and route.
#[derive(Clone, Debug)]
pub struct World {
    /// Its number.
    pub generation: Generation,
    /// What it was derived from.
    pub facts: Facts,
    /// Named hosts by absolute name.
    pub hosts: HashMap<Name, Arc<Host>>,
    /// Authoritative DNS data.
    pub zones: Zones,
    /// Routes by host name as text, those of wildcards by `*.…` too.
    pub routes: HashMap<Arc<str>, Arc<Route>>,
    /// The same routes of wildcards by what stands behind the `*.`.
    wildcards: HashMap<Arc<str>, Arc<Route>>,
    /// Where requests for unknown hosts go.
    default: Option<Arc<Route>>,
    /// Every port forward, by protocol and port. One that did not change is the same in the next world.
    pub forwards: Arc<[Arc<ResolvedForward>]>,
}

/// A host that owns a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Its absolute name.
    pub fqdn: Name,
    /// Its host name.
    pub label: Label,
    /// Network it is on.
    pub network: Arc<Network>,
    /// Its address.
    pub ip: Ipv4Addr,
    /// What it is.
    pub kind: HostKind,
    /// The lease behind it.
    pub lease: Option<Arc<Lease>>,
    /// Its hardware address.
    pub mac: Option<Mac>,
    /// Others on the network that carry the same name and do not own it.
    pub contenders: usize,
}

/// What a host is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HostKind {
    /// The appliance itself.
    Appliance,
    /// A reservation; it resolves without a lease.
    Reserved,
    /// A DHCP client.
    Leased,
}

/// Whether an app is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AppState {
    /// It holds a lease.
    Active,
    /// It has a reservation and no lease.
    Reserved,
    /// It held a lease.
    Stopped,
    /// It is only a vhost; the table knows no lease of it.
    Static,
}

/// The joined row: everything the table knows of one app.
#[derive(Clone, Debug)]
pub struct App {
    /// The app's name.
    pub name: Arc<str>,
    /// Its host, if it has one.
    pub host: Option<Arc<Host>>,
    /// Its route, if it has one.
    pub route: Option<Arc<Route>>,
}

/// The outside link as the kernel has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wan {
    /// Its addresses.
    pub addresses: Vec<Ipv4Net>,
    /// The default gateway.
    pub gateway: Option<Ipv4Addr>,
    /// Whether the link has a carrier: the cable is in, the bridge is up.
    pub running: bool,
}

impl World {
    /// The world that follows from these facts.
    pub fn derive(facts: Facts, generation: Generation) -> World {
        let mut world = World {
            generation,
            zones: Zones::of(derive::apexes(&facts)),
            facts,
            hosts: HashMap::new(),
            routes: HashMap::new(),
            wildcards: HashMap::new(),
            default: None,
            forwards: Arc::default(),
        };
        let names = derive::all_names(&world.facts);
        world.derive_names(names);
        world
    }

    /// The world after some changes: the same as [`World::derive`], at the cost of what was touched.
    pub fn next(&self, facts: Facts, touched: &Touched, generation: Generation) -> World {
        if touched.everything {
            return World::derive(facts, generation);
        }
        let mut world = World { generation, facts, ..self.clone() };
        world.derive_names(touched.names.iter().cloned());
        world
    }

    /// The route of a lower-case host name: its own, else that of the nearest wildcard. `*.b.c` stands for
    /// `a.b.c` and `x.a.b.c`, not for `b.c`.
    pub fn route(&self, host: &str) -> Option<&Arc<Route>> {
        self.routes.get(host).or_else(|| self.wildcard_route(host))
    }

    /// The route for hosts that nobody else claims: the vhost with `default = true`. One whose host name
    /// belongs to another vhost does not count.
    pub fn default_route(&self) -> Option<&Arc<Route>> {
        self.default.as_ref()
    }

    /// The forward of a port.
    pub fn forward(&self, protocol: Protocol, port: u16) -> Option<&Arc<ResolvedForward>> {
        let at = self.forwards.binary_search_by_key(&(protocol, port), |found| (found.protocol, found.port));
        at.ok().map(|at| &self.forwards[at])
    }

    /// The backend that a target of a forward stands for now; `None` while its app has no address.
    pub fn forward_target(&self, forward: &Forward, target: &BackendTarget) -> Option<Backend> {
        derive::forward_target(&self.facts, forward, target)
    }

    /// The backend that a target of a service of an app stands for now; `None` while the app that it names has no
    /// address.
    pub fn backend_of(&self, app: &Arc<str>, service: &Service, target: &BackendTarget) -> Option<Backend> {
        derive::target_backend(&self.facts, app, target, service.question())
    }

    /// Whether any lease or reservation, present or past, has this host name. One that nobody ever had is misspelt,
    /// or of a container that was not started yet.
    pub fn knows_app(&self, label: &Label) -> bool {
        let networks = &self.facts.intent().networks;
        networks.iter().any(|net| net.domain.child(label).is_ok_and(|name| self.hosts.contains_key(&name)))
    }

    /// The apps that a vhost names and that nobody knows, each once.
    pub fn unknown_apps(&self, vhost: &Vhost) -> BTreeSet<Label> {
        let targets = vhost.targets().filter_map(|target| match target {
            BackendTarget::App { name, .. } => Some(name),
            BackendTarget::Address(_) => None,
        });
        let named = targets.chain(&vhost.policy.access.apps);
        named.filter(|name| !self.knows_app(name)).cloned().collect()
    }

    /// The app or vhost whose name is the most like this one, if any is like it at all.
    pub fn nearest_app(&self, name: &str) -> Option<String> {
        let hosts = self.hosts.values().filter(|host| host.kind != HostKind::Appliance);
        let vhosts = self.facts.intent().vhosts.keys();
        nearest(name, hosts.map(|host| host.label.as_str()).chain(vhosts.map(Label::as_str)))
    }

    /// The container whose name is the most like this one, if any is like it at all.
    pub fn nearest_host(&self, name: &str) -> Option<String> {
        let hosts = self.hosts.values().filter(|host| host.kind != HostKind::Appliance);
        nearest(name, hosts.map(|host| host.label.as_str()))
    }

    /// The host name of the app that calls from an address: of the lease or reservation that it has now. A
    /// caller that merely claims the name of another app has none.
    pub fn caller(&self, ip: IpAddr) -> Option<&Label> {
        let IpAddr::V4(ip) = ip.to_canonical() else { return None };
        let intent = self.facts.intent();
        let network = intent.network_of(ip)?;
        let lease = self.facts.ledger().bound_at(ip);
        let named = lease.and_then(|lease| lease.hostname.as_ref());
        let label = named.or_else(|| {
            // A reservation names its own client, not whoever else sits on the address.
            let reserved = intent.reservation_at(ip)?;
            lease.is_none_or(|lease| lease.mac == reserved.mac).then_some(reserved.hostname.as_ref()?)
        })?;
        let host = self.hosts.get(&network.domain.child(label).ok()?)?;
        let is_there =
            host.ip == ip && host.resolves() && lease.is_none_or(|lease| host.mac == Some(lease.mac));
        (is_there && host.kind != HostKind::Appliance).then_some(&host.label)
    }

    /// The host of an address, if it owns a name.
    pub fn host_at(&self, ip: Ipv4Addr) -> Option<&Arc<Host>> {
        let intent = self.facts.intent();
        let network = intent.network_of(ip)?;
        let label = match self.facts.ledger().at(ip).and_then(|lease| lease.hostname.clone()) {
            Some(label) => label,
            None => intent.reservation_at(ip)?.hostname.clone()?,
        };
        self.hosts.get(&network.domain.child(&label).ok()?).filter(|host| host.ip == ip)
    }

    /// Every app with all that is known of it, in the order of the names.
    pub fn apps(&self) -> Vec<App> {
        let mut apps = BTreeMap::new();
        for host in self.hosts.values().filter(|host| host.kind != HostKind::Appliance) {
            let route = self.routes.get(host.fqdn.to_string().as_str()).cloned();
            let name: Arc<str> = host.label.as_str().into();
            apps.insert(host.fqdn.clone(), App { name, host: Some(host.clone()), route });
        }
        for route in self.routes.values() {
            apps.entry(route.hostname.clone()).or_insert_with(|| App {
                name: route.app.clone(),
                host: self.host_behind(route),
                route: Some(route.clone()),
            });
        }
        let mut apps: Vec<App> = apps.into_values().collect();
        apps.sort_by(|a, b| a.name.cmp(&b.name));
        apps
    }

    /// How each app is: whoever has or had a lease or a reservation with a host name. A vhost is none of its own.
    pub fn app_states(&self) -> impl Iterator<Item = AppState> {
        self.hosts.values().filter(|host| host.kind != HostKind::Appliance).map(|host| host.state())
    }

    /// The host that a target is on, whether it is there or not.
    pub fn host_of(&self, target: &BackendTarget) -> Option<Arc<Host>> {
        match target {
            BackendTarget::App { name, .. } => derive::app_host(&self.facts, name).map(Arc::new),
            BackendTarget::Address(addr) => self.host_at(*addr.ip()).cloned(),
        }
    }

    /// The app of this name, or with this host name.
    pub fn app(&self, name: &str) -> Option<App> {
        let name = name.to_ascii_lowercase();
        self.apps().into_iter().find(|app| {
            *app.name == *name
                || app.host.as_ref().is_some_and(|host| host.fqdn.to_string() == name)
                || app.route.as_ref().is_some_and(|route| route.hostname.to_string() == name)
        })
    }

    /// The app that requests for a host name go to, by whatever alias or wildcard; not the default one.
    pub fn app_at(&self, host: &str) -> Option<App> {
        let route = self.route(host)?;
        let own: Option<Name> = route.hostname.to_string().parse().ok();
        let host = own.and_then(|name| self.hosts.get(&name).cloned()).or_else(|| self.host_behind(route));
        Some(App { name: route.app.clone(), host, route: Some(route.clone()) })
    }

    fn host_behind(&self, route: &Route) -> Option<Arc<Host>> {
        route.backends().find_map(|backend| self.host_at(*backend.key.addr.ip())).cloned()
    }

    fn derive_names(&mut self, names: impl IntoIterator<Item = Name>) {
        let mut zone_data = Vec::new();
        for name in names {
            let host = derive::host(&self.facts, &name).map(Arc::new);
            let route = derive::route(&self.facts, &name, host.as_deref());
            let rrsets = derive::rrsets(&self.facts, &self.zones, &name, host.as_deref(), route.as_ref());
            zone_data.push((name.clone(), rrsets));
            self.set_route(&name, route.map(Arc::new));
            match host {
                Some(host) => self.hosts.insert(name, host),
                None => self.hosts.remove(&name),
            };
        }
        self.zones.set(zone_data);
        self.derive_forwards();
        self.default = self.facts.default_vhost().and_then(|(_, vhost)| {
            let route = self.routes.get(vhost.hostname.to_string().as_str())?;
            (*route.app == *vhost.app_name.as_str()).then(|| route.clone())
        });
    }

    fn derive_forwards(&mut self) {
        let forwards: Vec<_> = derive::forwards(&self.facts)
            .map(|new| match self.forward(new.protocol, new.port) {
                Some(old) if **old == new => old.clone(),
                _ => Arc::new(new),
            })
            .collect();
        let same = |(new, old): (&Arc<ResolvedForward>, &Arc<ResolvedForward>)| Arc::ptr_eq(new, old);
        if forwards.len() != self.forwards.len() || !forwards.iter().zip(&*self.forwards).all(same) {
            self.forwards = forwards.into();
        }
    }

    fn set_route(&mut self, name: &Name, route: Option<Arc<Route>>) {
        let text = name.to_string();
        if let Some(below) = text.strip_prefix("*.") {
            match &route {
                Some(route) => self.wildcards.insert(below.into(), route.clone()),
                None => self.wildcards.remove(below),
            };
        }
        match route {
            Some(route) => self.routes.insert(text.into(), route),
            None => self.routes.remove(text.as_str()),
        };
    }

    fn wildcard_route(&self, host: &str) -> Option<&Arc<Route>> {
        if self.wildcards.is_empty() {
            return None;
        }
        let mut above = host;
        while let Some((_, parent)) = above.split_once('.') {
            if let Some(route) = self.wildcards.get(parent) {
                return Some(route);
            }
            above = parent;
        }
        None
    }
}

/// How alike two names must be, from 0 to 1, for one to be offered for the other: `wki` and `wiki` are 0.94.
const ALIKE: f64 = 0.75;

fn nearest<'a>(name: &str, all: impl Iterator<Item = &'a str>) -> Option<String> {
    let alike = all.map(|other| (strsim::jaro(name, other), other)).filter(|(alike, _)| *alike >= ALIKE);
    alike.max_by(|(a, x), (b, y)| a.total_cmp(b).then(y.cmp(x))).map(|(_, other)| other.to_owned())
}

impl Host {
    /// Whether the host is there.
    pub fn state(&self) -> AppState {
        match &self.lease {
            Some(lease) if lease.is_bound() => AppState::Active,
            _ if self.kind == HostKind::Reserved => AppState::Reserved,
            Some(_) => AppState::Stopped,
            None => AppState::Static,
        }
    }

    /// Whether its name leads to its address: an app without lease or reservation has lost it.
    pub fn resolves(&self) -> bool {
        self.state() != AppState::Stopped
    }
}

impl App {
    /// The host that the app is itself: not one that only a vhost of another name leads to.
    pub fn own_host(&self) -> Option<&Arc<Host>> {
        self.host.as_ref().filter(|host| host.label.as_str() == &*self.name)
    }

    /// Whether the app is there.
    pub fn state(&self) -> AppState {
        self.host.as_ref().map_or(AppState::Static, |host| host.state())
    }
}

impl AppState {
    /// The word used by the API.
    pub fn as_str(self) -> &'static str {
        match self {
            AppState::Active => "active",
            AppState::Reserved => "reserved",
            AppState::Stopped => "stopped",
            AppState::Static => "static",
        }
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}
