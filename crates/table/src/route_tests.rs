//! What vhosts with wildcards, paths, redirects and policies become.

use crate::world_tests::{Table, ip, lease, named};
use crate::*;

#[test]
fn the_nearest_wildcard_claims_what_no_name_does() {
    let mut table = Table::new();
    table.apply(Change::Vhost(Source::Api, named("far", "*.prox.local", &[]).into()));
    table.apply(Change::Vhost(Source::Api, named("near", "near.local", &["*.shop.prox.local"]).into()));
    table.apply(Change::Lease(lease(101, 1, "web", 2)));
    let app = |table: &Table, host: &str| table.world.route(host).map(|route| route.app.to_string());
    assert_eq!(app(&table, "web.prox.local").as_deref(), Some("web"));
    assert_eq!(app(&table, "a.prox.local").as_deref(), Some("far"));
    assert_eq!(app(&table, "x.a.prox.local").as_deref(), Some("far"));
    assert_eq!(app(&table, "shop.prox.local").as_deref(), Some("far"), "not its own wildcard's");
    assert_eq!(app(&table, "x.y.shop.prox.local").as_deref(), Some("near"));
    assert_eq!(app(&table, "prox.local"), None);
    assert_eq!(app(&table, "other.local"), None);
    assert_eq!(table.world.route("a.prox.local").unwrap().hostname.to_string(), "*.prox.local");
    assert_eq!(table.address("*.shop.prox.local"), Some(ip(1)), "it leads to the proxy");

    table.apply(Change::RemoveVhost("near".parse().unwrap()));
    assert_eq!(app(&table, "x.y.shop.prox.local").as_deref(), Some("far"));
    table.apply(Change::RemoveVhost("far".parse().unwrap()));
    assert_eq!(app(&table, "a.prox.local"), None);
    assert_eq!(table.address("*.prox.local"), None);
}

#[test]
fn one_vhost_gets_what_is_for_nobody_and_the_files_goes_first() {
    let mut table = Table::new();
    let default = |table: &Table| table.world.default_route().map(|route| route.app.to_string());
    let fallback = |app: &str| Vhost { default: true, ..named(app, &format!("{app}.prox.local"), &[]) };
    assert_eq!(default(&table), None);
    table.apply(Change::Vhost(Source::Api, fallback("a").into()));
    assert_eq!(default(&table).as_deref(), Some("a"));
    table.apply(Change::Vhost(Source::Config, fallback("b").into()));
    assert_eq!(default(&table).as_deref(), Some("b"));
    table.apply(Change::Vhost(Source::Config, named("b", "b.prox.local", &[]).into()));
    assert_eq!(default(&table).as_deref(), Some("a"));
    // Whoever lost its host name is not to be found by any other.
    table.apply(Change::Vhost(Source::Config, named("c", "a.prox.local", &[]).into()));
    assert_eq!(default(&table), None);
}

#[test]
fn paths_stand_in_the_order_in_which_they_claim() {
    let mut table = Table::new();
    let path = |prefix: &str, app: &str| VhostPath {
        prefix: prefix.into(),
        strip: true,
        backends: vec![BackendTarget::App { name: app.parse().unwrap(), port: 80 }],
        protocol: BackendProtocol::Http,
        tls: BackendTls::default(),
        health: HealthPolicy::default(),
        redirect: None,
    };
    let mut shop = named("shop", "shop.prox.local", &[]);
    let mut old = path("/old", "none");
    old.backends.clear();
    old.redirect = Some(Redirect { to: "/new{uri}".into(), status: 308 });
    shop.paths = vec![path("/api", "api"), old, path("/api/v2", "next")];
    table.apply(Change::Vhost(Source::Api, shop.clone().into()));
    table.apply(Change::Lease(lease(101, 1, "api", 2)));
    let route = table.world.route("shop.prox.local").unwrap().clone();
    let prefixes: Vec<&str> = route.paths.iter().map(|path| &*path.prefix).collect();
    assert_eq!(prefixes, ["/api/v2", "/api", "/old"], "whoever takes the first that fits takes the longest");
    // Each with a verdict of its own: one app is there, the other is not.
    let verdict = |action: &Action| action.service().map(|service| service.verdict);
    let verdicts: Vec<_> = route.paths.iter().map(|path| verdict(&path.action)).collect();
    assert_eq!(verdicts, [Some(Verdict::Stopped), Some(Verdict::Ready), None]);
    assert_eq!(verdict(&route.root), Some(Verdict::Ready));
    assert_eq!(route.backends().count(), 2);

    table.apply(Change::Lease(lease(102, 2, "next", 3)));
    let next = &table.world.route("shop.prox.local").unwrap().paths[0].action;
    assert_eq!(next.service().unwrap().candidates[0].key.addr.to_string(), "10.20.0.102:80");

    // A disabled vhost says so at every path, and sends nobody elsewhere.
    shop.enabled = false;
    shop.redirect = Some(Redirect { to: "https://else.example{uri}".into(), status: 302 });
    table.apply(Change::Vhost(Source::Api, shop.into()));
    let route = table.world.route("shop.prox.local").unwrap();
    assert!(route.paths.is_empty());
    assert_eq!(route.verdict(), Verdict::Disabled);
}

#[test]
fn who_is_asked_about_requests_is_followed_through_its_lease() {
    let mut table = Table::new();
    let to = BackendTarget::App { name: "authelia".parse().unwrap(), port: 9091 };
    let forward_auth = Some(ForwardAuth { to, path: "/".into(), copy_headers: vec![] });
    let policy = VhostPolicy { forward_auth, ..VhostPolicy::default() }.shared();
    let shop = Vhost { policy, ..named("shop", "shop.prox.local", &[]) };
    table.apply(Change::Vhost(Source::Api, shop.into()));
    let asked = |table: &Table| {
        let route = table.world.route("shop.prox.local").unwrap();
        route.auth_backend.as_ref().map(|backend| (backend.key.addr.to_string(), backend.key.epoch))
    };
    assert_eq!(asked(&table), None);
    table.apply(Change::Lease(lease(101, 1, "authelia", 2)));
    assert_eq!(asked(&table), Some(("10.20.0.101:9091".into(), 2)));
    table.apply(Change::Lease(Lease { state: LeaseState::Expired, ..lease(101, 1, "authelia", 2) }));
    assert_eq!(asked(&table), None);
}

#[test]
fn a_caller_is_known_by_its_lease_and_not_by_what_it_claims() {
    let mut table = Table::new();
    let caller = |table: &Table, last| table.world.caller(ip(last).into()).map(Label::to_string);
    table.apply(Change::Lease(lease(101, 1, "prometheus", 2)));
    assert_eq!(caller(&table, 101).as_deref(), Some("prometheus"));
    let mapped = ip(101).to_ipv6_mapped().into();
    assert_eq!(table.world.caller(mapped).map(Label::as_str), Some("prometheus"));
    table.apply(Change::Lease(lease(102, 2, "prometheus", 3)));
    assert_eq!(caller(&table, 102), None, "the name is taken");
    table.apply(Change::Lease(Lease { state: LeaseState::Released, ..lease(101, 1, "prometheus", 2) }));
    assert_eq!(caller(&table, 101), None, "the lease has ended");
    assert_eq!(caller(&table, 1), None, "the appliance is no app");
    assert_eq!(table.world.caller("192.168.1.7".parse().unwrap()), None);

    let hostname = Some("db".parse().unwrap());
    let mac = Mac([2, 0, 0, 0, 0, 7]);
    table.apply(Change::Reservation(
        Source::Config,
        Reservation { network: "apps".into(), mac, ip: ip(10), hostname },
    ));
    assert_eq!(caller(&table, 10).as_deref(), Some("db"), "a reservation needs no lease");
    table.apply(Change::Lease(lease(10, 9, "", 4)));
    assert_eq!(caller(&table, 10), None, "somebody else sits on the address");
    table.apply(Change::Lease(lease(10, 9, "db", 4)));
    assert_eq!(caller(&table, 10), None, "and claims the name");
    table.apply(Change::Lease(lease(10, 7, "", 5)));
    assert_eq!(caller(&table, 10).as_deref(), Some("db"));
}

// RFC 6066 §3: "server_name" is the name by which the client knows the server.
#[test]
fn a_backend_over_tls_is_asked_for_by_the_vhosts_name() {
    let mut table = Table::new();
    let mut asked = |hostname: &str, protocol, written: Option<&str>| {
        let mut shop = named("shop", hostname, &[]);
        shop.protocol = protocol;
        shop.tls.server_name = written.map(str::to_owned);
        shop.paths = vec![VhostPath {
            prefix: "/api".into(),
            strip: false,
            backends: shop.backends.clone(),
            protocol: BackendProtocol::Https,
            tls: BackendTls { server_name: Some("api.example".into()), ..BackendTls::default() },
            health: HealthPolicy::default(),
            redirect: None,
        }];
        table.apply(Change::Vhost(Source::Api, shop.into()));
        let route = table.world.routes.values().find(|route| &*route.app == "shop").unwrap();
        let names: Vec<_> = route.services().map(|service| service.tls.server_name.clone()).collect();
        assert_eq!(names[1].as_deref(), Some("api.example"), "a path has its own");
        names[0].clone()
    };
    let https = BackendProtocol::Https;
    assert_eq!(asked("shop.prox.local", https, None).as_deref(), Some("shop.prox.local"));
    assert_eq!(asked("*.shop.prox.local", https, None).as_deref(), Some("shop.prox.local"));
    assert_eq!(asked("shop.prox.local", https, Some("inner.example")).as_deref(), Some("inner.example"));
    assert_eq!(asked("shop.prox.local", BackendProtocol::Http, None), None);
}
