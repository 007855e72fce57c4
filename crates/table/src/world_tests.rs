//! Derive as users and the other rooms see it.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;

use crate::*;

pub(crate) fn intent() -> Intent {
    let domain: Name = "prox.local".parse().unwrap();
    let network = Network {
        name: "apps".into(),
        interface: "eth1".into(),
        address: "10.20.0.1/24".parse().unwrap(),
        manage_link: true,
        domain: domain.clone(),
        dhcp_enabled: true,
        range: "10.20.0.100-10.20.0.250".parse().unwrap(),
        lease_time: 43_200,
        router: ip(1),
        dns: vec![ip(1)],
        domain_search: vec![domain.clone()],
        ntp: vec![],
        mtu: None,
        options: vec![],
        auto_vhost: AutoVhost { enabled: true, ports: vec![80, 8080] },
    };
    Intent {
        hostname: "prox-appliance".parse().unwrap(),
        domain,
        wan_interface: "eth0".into(),
        networks: vec![Arc::new(network)],
        reservations: Default::default(),
        records: Default::default(),
        vhosts: Default::default(),
        forwards: Default::default(),
        own_ports: vec![],
        proxy_listen: vec![],
        admin_listen: vec![],
        masquerade: true,
        isolate_management: true,
        wan_dns: false,
        forwarded: Vec::new(),
    }
}

pub(crate) fn ip(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 20, 0, last)
}

pub(crate) fn lease(last: u8, client: u8, name: &str, epoch: u64) -> Lease {
    Lease {
        ip: ip(last),
        mac: Mac([2, 0, 0, 0, 0, client]),
        client_id: None,
        hostname: Label::from_client(name.as_bytes()),
        network: "apps".into(),
        state: LeaseState::Bound,
        expires: Timestamp(1_000),
        epoch,
    }
}

pub(crate) fn vhost(app: &str, target: BackendTarget) -> Vhost {
    Vhost::new(app.parse().unwrap(), format!("{app}.prox.local").parse().unwrap(), vec![target])
}

/// The backends of a route that nothing but the host name leads to.
fn service(route: &Route) -> &Service {
    route.root.service().expect("no redirect")
}

fn usable(route: &Route) -> Vec<String> {
    service(route).usable(route.from_lease()).map(|backend| backend.key.addr.to_string()).collect()
}

/// Facts with a world that follows each change by patching.
pub(crate) struct Table {
    facts: Facts,
    pub(crate) world: World,
}

impl Table {
    pub(crate) fn new() -> Table {
        let facts = Facts::new(intent(), Ledger::default());
        Table { world: World::derive(facts.clone(), Generation(1)), facts }
    }

    pub(crate) fn apply(&mut self, change: Change) {
        let mut touched = Touched::default();
        self.facts.apply(change, &mut touched);
        self.world = self.world.next(self.facts.clone(), &touched, Generation(self.world.generation.0 + 1));
    }

    pub(crate) fn address(&self, name: &str) -> Option<Ipv4Addr> {
        let name: Name = name.parse().unwrap();
        let rrset = self
            .world
            .zones
            .node(name.as_wire())?
            .to_node()
            .rrsets
            .into_iter()
            .find(|rrset| rrset.rtype == 1)?;
        Some(<[u8; 4]>::try_from(&*rrset.rdata[0]).unwrap().into())
    }

    fn pointer(&self, last: u8) -> Option<String> {
        let node = self.world.zones.node(Name::reverse(ip(last)).as_wire())?;
        let rrset = node.to_node().rrsets.into_iter().find(|rrset| rrset.rtype == 12)?;
        Name::from_wire(&rrset.rdata[0]).map(|name| name.to_string())
    }

    pub(crate) fn health(&mut self, app: &str, backend: &str, epoch: u64, state: HealthState) {
        // What a forward asks; vhosts ask the default question here.
        let forwards = self.facts.intent().forwards.values();
        let forward = forwards.map(|(_, forward)| forward).find(|forward| *forward.health_name() == *app);
        let question = Question::plain(forward.and_then(|forward| forward.health.as_deref()));
        let key = ProbeKey { backend: BackendKey { addr: backend.parse().unwrap(), epoch }, question };
        let health = Health { state, since: Timestamp(1), reason: None };
        self.apply(Change::Health(app.into(), key, Some(health)));
    }
}

#[test]
fn a_lease_gives_name_pointer_and_route_at_once() {
    let mut table = Table::new();
    table.apply(Change::Lease(lease(101, 1, "nginx-01", 2)));
    assert_eq!(table.address("nginx-01.prox.local"), Some(ip(101)));
    assert_eq!(table.pointer(101).as_deref(), Some("nginx-01.prox.local"));
    let route = table.world.route("nginx-01.prox.local").unwrap();
    assert_eq!((route.verdict(), route.source), (Verdict::Starting, Source::Lease));
    assert_eq!(usable(route).len(), 0, "nothing is sent to an unproven guess");
    let app = table.world.app("nginx-01").unwrap();
    assert_eq!(app.state(), AppState::Active);
}

#[test]
fn the_first_proven_port_is_used() {
    let mut table = Table::new();
    table.apply(Change::Lease(lease(101, 1, "web", 2)));
    table.health("web", "10.20.0.101:8080", 2, HealthState::Healthy);
    let route = table.world.route("web.prox.local").unwrap();
    assert_eq!(route.verdict(), Verdict::Ready);
    assert_eq!(usable(route), ["10.20.0.101:8080"]);
    table.health("web", "10.20.0.101:8080", 2, HealthState::Unhealthy);
    let route = table.world.route("web.prox.local").unwrap();
    assert_eq!(usable(route).len(), 1, "a sole backend is not paused");
}

#[test]
fn what_was_proven_of_a_former_owner_means_nothing() {
    let mut table = Table::new();
    table.apply(Change::Lease(lease(101, 1, "a", 2)));
    table.health("a", "10.20.0.101:80", 2, HealthState::Healthy);
    table.apply(Change::Lease(lease(101, 9, "a", 7)));
    let route = table.world.route("a.prox.local").unwrap();
    assert_eq!(route.verdict(), Verdict::Starting);
    assert!(route.backends().all(|backend| backend.key.epoch == 7));
}

#[test]
fn an_ended_lease_loses_its_name_and_is_known_as_stopped() {
    let mut table = Table::new();
    table.apply(Change::Lease(lease(101, 1, "web", 2)));
    table.apply(Change::Lease(Lease { state: LeaseState::Released, ..lease(101, 1, "web", 2) }));
    assert_eq!(table.address("web.prox.local"), None);
    assert_eq!(table.pointer(101), None);
    assert_eq!(table.world.route("web.prox.local").unwrap().verdict(), Verdict::Stopped);
    table.apply(Change::ForgetLease(ip(101)));
    assert!(table.world.route("web.prox.local").is_none());
    assert!(table.world.app("web").is_none());
}

#[test]
fn a_name_belongs_to_whoever_holds_it_longest() {
    let mut table = Table::new();
    table.apply(Change::Lease(lease(101, 1, "web", 2)));
    table.apply(Change::Lease(lease(102, 2, "web", 3)));
    assert_eq!(table.address("web.prox.local"), Some(ip(101)));
    assert_eq!(table.pointer(102), None, "a contender has no name");
    assert_eq!(table.world.app("web").unwrap().host.unwrap().contenders, 1);
    table.apply(Change::Lease(Lease { state: LeaseState::Expired, ..lease(101, 1, "web", 2) }));
    assert_eq!(table.address("web.prox.local"), Some(ip(102)));
    assert_eq!(table.pointer(102).as_deref(), Some("web.prox.local"));
}

#[test]
fn a_reservation_owns_its_name_and_resolves_without_a_lease() {
    let mut table = Table::new();
    table.apply(Change::Lease(lease(101, 1, "db", 2)));
    let hostname = Some("db".parse().unwrap());
    let reservation =
        Reservation { network: "apps".into(), mac: Mac([2, 0, 0, 0, 0, 7]), ip: ip(10), hostname };
    table.apply(Change::Reservation(Source::Api, reservation));
    assert_eq!(table.address("db.prox.local"), Some(ip(10)));
    assert_eq!(table.pointer(10).as_deref(), Some("db.prox.local"));
    assert_eq!(table.pointer(101), None);
}

#[test]
fn a_vhost_that_was_asked_for_always_has_a_name() {
    let mut table = Table::new();
    let target = BackendTarget::Address(SocketAddrV4::new(ip(50), 8080));
    table.apply(Change::Vhost(Source::Api, vhost("wiki", target).into()));
    assert_eq!(table.address("wiki.prox.local"), Some(ip(1)), "it leads to the proxy");
    assert_eq!(table.world.route("wiki.prox.local").unwrap().verdict(), Verdict::Ready);
    table.apply(Change::RemoveVhost("wiki".parse().unwrap()));
    assert_eq!(table.address("wiki.prox.local"), None);
    assert!(table.world.route("wiki.prox.local").is_none());
}

#[test]
fn a_vhost_follows_its_app_from_lease_to_lease() {
    let mut table = Table::new();
    let target = BackendTarget::App { name: "wiki".parse().unwrap(), port: 3000 };
    table.apply(Change::Vhost(Source::Api, vhost("docs", target).into()));
    let backend = |table: &Table| {
        let route = table.world.route("docs.prox.local").unwrap().clone();
        (route.verdict(), route.backends().next().map(|backend| backend.key.addr.to_string()))
    };
    assert_eq!(backend(&table), (Verdict::Stopped, None));
    table.apply(Change::Lease(lease(101, 1, "wiki", 2)));
    assert_eq!(backend(&table), (Verdict::Ready, Some("10.20.0.101:3000".into())));
    table.apply(Change::Lease(lease(120, 1, "wiki", 3)));
    assert_eq!(backend(&table), (Verdict::Ready, Some("10.20.0.120:3000".into())));
    table.apply(Change::ForgetLease(ip(120)));
    assert_eq!(backend(&table), (Verdict::Stopped, None));
}

fn app_target(name: &str, port: u16) -> BackendTarget {
    BackendTarget::App { name: name.parse().unwrap(), port }
}

fn targets(table: &Table) -> Vec<(String, u64)> {
    let forward = table.world.forward(Protocol::Tcp, 2222).unwrap();
    forward.targets.iter().map(|target| (target.key.addr.to_string(), target.key.epoch)).collect()
}

#[test]
fn forwards_follow_the_app() {
    let mut table = Table::new();
    table.apply(Change::Forward(Source::Api, Forward::new(Protocol::Tcp, 2222, app_target("gitea", 22))));
    let translated = |table: &Table| table.world.forward(Protocol::Tcp, 2222).unwrap().translated_to();
    assert_eq!(translated(&table), None);
    table.apply(Change::Lease(lease(101, 1, "gitea", 2)));
    assert_eq!(translated(&table), Some(SocketAddrV4::new(ip(101), 22)));
    table.apply(Change::Lease(Lease { state: LeaseState::Expired, ..lease(101, 1, "gitea", 2) }));
    assert_eq!(translated(&table), None);
    table.apply(Change::RemoveForward(Protocol::Tcp, 2222));
    assert!(table.world.forwards.is_empty());
}

#[test]
fn a_proxied_forward_leads_to_those_of_its_targets_that_are_there_and_well() {
    let mut table = Table::new();
    let mut forward = Forward::new(Protocol::Tcp, 2222, app_target("gitea", 22));
    forward.more = vec![app_target("mirror", 22), BackendTarget::Address(SocketAddrV4::new(ip(9), 22))];
    forward.health = Some(HealthPolicy::connect().into());
    forward.proxy = Some(StreamPolicy::default().into());
    table.apply(Change::Forward(Source::Api, forward));
    assert_eq!(targets(&table), [("10.20.0.9:22".to_owned(), 0)]);
    table.apply(Change::Lease(lease(101, 1, "gitea", 2)));
    table.apply(Change::Lease(lease(102, 2, "mirror", 3)));
    let of = |addr: &str, epoch| (addr.to_owned(), epoch);
    assert_eq!(targets(&table), [of("10.20.0.101:22", 2), of("10.20.0.102:22", 3), of("10.20.0.9:22", 0)]);

    let usable = |table: &Table| {
        let forward = table.world.forward(Protocol::Tcp, 2222).unwrap();
        forward.usable().map(|target| target.key.addr.ip().octets()[3]).collect::<Vec<_>>()
    };
    assert_eq!(usable(&table), [101, 102, 9], "nothing is known yet");
    let unrelated = table.world.forwards.clone();
    table.health("web", "10.20.0.102:80", 3, HealthState::Healthy);
    assert!(Arc::ptr_eq(&unrelated, &table.world.forwards), "what did not change is the same");
    table.health("tcp/2222", "10.20.0.102:22", 3, HealthState::Healthy);
    assert_eq!(usable(&table), [102]);
    table.health("tcp/2222", "10.20.0.102:22", 3, HealthState::Unhealthy);
    assert_eq!(usable(&table), [101, 102, 9], "a bad target is better than none");
    assert_eq!(table.world.forward(Protocol::Tcp, 2222).unwrap().translated_to(), None);
}

#[test]
fn a_forward_may_not_lead_to_the_appliance_itself() {
    let intent = intent();
    let to = |last| BackendTarget::Address(SocketAddrV4::new(ip(last), 22));
    let mut forward = Forward::new(Protocol::Tcp, 2222, to(9));
    forward.proxy = Some(StreamPolicy::default().into());
    assert_eq!(intent.forward_conflict(&forward), None);
    forward.more = vec![to(1)];
    assert!(intent.forward_conflict(&forward).unwrap().contains("the appliance itself"));
    forward.more = vec![BackendTarget::Address("192.168.1.9:22".parse().unwrap())];
    assert!(intent.forward_conflict(&forward).unwrap().contains("no app network"));
    let mut named = Forward::new(Protocol::Tcp, 2222, app_target("prox-appliance", 2222));
    assert_eq!(intent.forward_conflict(&named), None, "the kernel does not come back to it");
    named.proxy = Some(StreamPolicy::default().into());
    assert!(intent.forward_conflict(&named).unwrap().contains("the appliance itself"));
}

#[test]
fn a_misspelt_app_is_told_from_one_that_is_stopped() {
    let mut table = Table::new();
    table.apply(Change::Lease(lease(101, 1, "wiki", 2)));
    table.apply(Change::Lease(Lease { state: LeaseState::Expired, ..lease(102, 2, "gitea", 3) }));
    let mut vhost = vhost("docs", app_target("wki", 80));
    vhost.backends.extend([app_target("gitea", 80), app_target("wiki", 80)]);
    let access = crate::Access { apps: vec!["prometheus".parse().unwrap()], ..Default::default() };
    vhost.policy = VhostPolicy { access, ..VhostPolicy::default() }.shared();
    let unknown = table.world.unknown_apps(&vhost);
    assert_eq!(unknown.iter().map(|name| name.as_str()).collect::<Vec<_>>(), ["prometheus", "wki"]);
    assert_eq!(table.world.nearest_host("wki").as_deref(), Some("wiki"));
    assert_eq!(table.world.nearest_host("gitae").as_deref(), Some("gitea"));
    assert_eq!(table.world.nearest_host("prometheus"), None);
    table.apply(Change::Vhost(Source::Api, vhost.into()));
    assert_eq!(table.world.nearest_app("dosc").as_deref(), Some("docs"));
}

#[test]
fn an_app_is_found_by_every_name_that_leads_to_it() {
    let mut table = Table::new();
    table.apply(Change::Vhost(Source::Api, named("shop", "*.shop.prox.local", &["store.prox.local"]).into()));
    let found = |host: &str| table.world.app_at(host).map(|app| app.name.to_string());
    assert_eq!(found("a.shop.prox.local").as_deref(), Some("shop"));
    assert_eq!(found("store.prox.local").as_deref(), Some("shop"));
    assert_eq!(found("shop.prox.local"), None);
}

#[test]
fn the_administrators_records_win() {
    let mut table = Table::new();
    table.apply(Change::Lease(lease(101, 1, "web", 2)));
    let name: Name = "web.prox.local".parse().unwrap();
    let record = Record { name: name.clone(), data: RecordData::A { address: ip(7) }, ttl: 30 };
    table.apply(Change::Records(Source::Api, name.clone(), RecordType::A, vec![record]));
    assert_eq!(table.address("web.prox.local"), Some(ip(7)));
    table.apply(Change::RemoveRecords(name, RecordType::A));
    assert_eq!(table.address("web.prox.local"), Some(ip(101)));
}

/// A vhost of one app with other names than its own.
pub(crate) fn named(app: &str, hostname: &str, aliases: &[&str]) -> Vhost {
    let target = BackendTarget::Address(SocketAddrV4::new(ip(50), 8080));
    let aliases = aliases.iter().map(|alias| alias.parse().unwrap()).collect();
    Vhost { hostname: hostname.parse().unwrap(), aliases, ..vhost(app, target) }
}

/// A second table that is told of changes as text, as another process is.
struct Follower(Table);

impl Follower {
    fn hear(&mut self, change: &Change) {
        let text = serde_json::to_string(change).unwrap();
        self.0.apply(serde_json::from_str(&text).unwrap());
    }
}

fn assert_same(one: &World, other: &World, shown: &str) {
    assert_eq!(one.hosts, other.hosts, "{shown}");
    assert_eq!(one.routes, other.routes, "{shown}");
    assert_eq!(one.default_route(), other.default_route(), "{shown}");
    assert_eq!(one.route("x.b.prox.local"), other.route("x.b.prox.local"), "{shown}");
    assert_eq!(one.route("x.prox.local"), other.route("x.prox.local"), "{shown}");
    assert_eq!(one.forwards, other.forwards, "{shown}");
    assert_eq!(one.zones, other.zones, "{shown}");
}

#[test]
fn whoever_hears_of_an_intent_has_the_same_world() {
    let mut table = Table::new();
    let mut follower = Follower(Table::new());
    let target = BackendTarget::Address(SocketAddrV4::new(ip(5), 80));
    table.apply(Change::Vhost(Source::Config, vhost("wiki", target).into()));
    let reservation = Reservation {
        network: "apps".into(),
        mac: Mac([2, 0, 0, 0, 0, 9]),
        ip: ip(9),
        hostname: "db".parse().ok(),
    };
    table.apply(Change::Reservation(Source::Api, reservation));
    let name: Name = "text.prox.local".parse().unwrap();
    let record = Record { name: name.clone(), data: RecordData::TXT { text: "hello".into() }, ttl: 60 };
    table.apply(Change::Records(Source::Config, name, RecordType::TXT, vec![record]));
    let to = BackendTarget::App { name: "db".parse().unwrap(), port: 22 };
    table.apply(Change::Forward(Source::Api, Forward::new(Protocol::Tcp, 22, to)));
    follower.hear(&Change::Intent(table.facts.intent().clone()));
    assert!(!table.world.routes.is_empty() && !table.world.forwards.is_empty());
    assert_same(&table.world, &follower.0.world, "");
}

/// The one property that makes patching safe: it never shows anything that deriving anew would not. And the one
/// that makes a process that was replaced safe: changes that it hears of give it the same world.
#[test]
fn patching_gives_the_same_world_as_deriving() {
    let names = ["a", "b", "c", "a", "b"];
    for seed in 1..=60u64 {
        let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut below = |limit: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random % limit
        };
        let mut table = Table::new();
        let mut follower = Follower(Table::new());
        for step in 0..60 {
            let name = names[below(5) as usize];
            let last = 100 + below(6) as u8;
            let change = match below(12) {
                0..=3 => Change::Lease(lease(last, below(6) as u8, name, step + 2)),
                4 => match table.facts.ledger().at(ip(last)) {
                    Some(held) => Change::Lease(Lease { state: LeaseState::Released, ..(**held).clone() }),
                    None => continue,
                },
                5 => Change::ForgetLease(ip(last)),
                6 => {
                    let target = BackendTarget::App { name: name.parse().unwrap(), port: 80 };
                    Change::Vhost(Source::Api, vhost(["v", "w", "a"][below(3) as usize], target).into())
                }
                7 => {
                    let target = BackendTarget::Address(SocketAddrV4::new(ip(last), 80));
                    Change::Vhost(Source::Api, vhost(["v", "w"][below(2) as usize], target).into())
                }
                8 => {
                    let mut all =
                        named("w", ["*.prox.local", "*.b.prox.local"][below(2) as usize], &["a.prox.local"]);
                    all.default = below(2) > 0;
                    let backends = vec![BackendTarget::App { name: name.parse().unwrap(), port: 81 }];
                    all.paths = vec![VhostPath {
                        prefix: "/p".into(),
                        strip: false,
                        backends,
                        protocol: BackendProtocol::Http,
                        tls: BackendTls::default(),
                        health: HealthPolicy::default(),
                        redirect: None,
                    }];
                    Change::Vhost([Source::Config, Source::Api][below(2) as usize], all.into())
                }
                9 => Change::RemoveVhost(["v", "w", "a"][below(3) as usize].parse().unwrap()),
                10 => {
                    let epoch = table.facts.ledger().bound_at(ip(last)).map_or(0, |lease| lease.epoch);
                    let key = ProbeKey::plain(BackendKey { addr: SocketAddrV4::new(ip(last), 80), epoch });
                    let health = Health { state: HealthState::Healthy, since: Timestamp(step), reason: None };
                    Change::Health(name.into(), key, (below(3) > 0).then_some(health))
                }
                _ => {
                    let mut forward = Forward::new(Protocol::Tcp, 20 + below(2) as u16, app_target(name, 22));
                    forward.proxy = (below(2) > 0).then(Arc::default);
                    Change::Forward(Source::Api, forward)
                }
            };
            let shown = format!("seed {seed} step {step}: {change:?}");
            follower.hear(&change);
            table.apply(change);
            let anew = World::derive(table.facts.clone(), table.world.generation);
            assert_same(&table.world, &anew, &shown);
            assert_same(&table.world, &follower.0.world, &shown);
        }
    }
}
