use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddrV4};
use std::sync::Arc;

use proximity_table::{
    Access, BackendKey, BackendTarget, BasicAuth, BasicUser, Change, Facts, ForwardAuth, Generation, Health,
    HealthState, Lease, LeaseState, Ledger, ProbeKey, ProxySettings, Question as Asked, Rate, Redirect,
    Source, Timestamp, Touched, Vhost, VhostLimits, VhostPath, VhostPolicy, World,
};

use super::*;
use crate::{AppCounters, Circuit, LastFailure};

const NOW: Timestamp = Timestamp(10_000);

/// A network and what requests found out of it.
struct Scene {
    facts: Facts,
    loads: HashMap<BackendKey, BackendLoad>,
    counters: AppCounters,
    settings: ProxySettings,
}

impl Scene {
    fn new() -> Scene {
        let intent = proximity_config::Config::default().intent;
        Scene {
            facts: Facts::new(intent, Ledger::default()),
            loads: HashMap::new(),
            counters: AppCounters::default(),
            settings: ProxySettings::default(),
        }
    }

    fn of(vhost: Vhost) -> Scene {
        let mut scene = Scene::new();
        scene.apply(Change::Vhost(Source::Api, vhost.into()));
        scene
    }

    fn apply(&mut self, change: Change) {
        self.facts.apply(change, &mut Touched::default());
    }

    fn lease(&mut self, last: u8, name: &str, state: LeaseState) {
        self.apply(Change::Lease(Lease {
            ip: [10, 20, 0, last].into(),
            mac: proximity_table::Mac([2, 0, 0, 0, 0, last]),
            client_id: None,
            hostname: Some(name.parse().unwrap()),
            network: "apps".into(),
            state,
            expires: NOW.plus(60),
            epoch: u64::from(last),
        }));
    }

    fn probed(&mut self, app: &str, key: BackendKey, state: HealthState, reason: Option<&str>) {
        let health = Health { state, since: Timestamp(NOW.0 - 300), reason: reason.map(str::to_owned) };
        // Whatever the vhost asks.
        let world = World::derive(self.facts.clone(), Generation(1));
        let of_app = world.routes.values().filter(|route| *route.app == *app);
        let asks = |service: &Service| service.candidates.iter().any(|one| one.key == key);
        let mut questions: HashSet<Asked> = of_app
            .flat_map(|route| route.services().filter(|service| asks(service)).map(Service::question))
            .collect();
        if questions.is_empty() {
            questions.insert(Asked::default());
        }
        for question in questions {
            self.apply(Change::Health(app.into(), ProbeKey { backend: key, question }, Some(health.clone())));
        }
    }

    fn failed(&mut self, key: BackendKey, reason: Reason, is_past: bool) {
        self.load(key, Circuit::Closed, Some(LastFailure { reason, ago_ms: 180_000, is_past }));
    }

    fn load(&mut self, key: BackendKey, circuit: Circuit, last_failure: Option<LastFailure>) {
        let load = BackendLoad {
            in_flight: 0,
            waiting: 0,
            failures: 0,
            pauses: 0,
            circuit,
            last_failure,
            is_known: true,
            usable_for_ms: 1_000_000,
        };
        self.loads.insert(key, load);
    }

    fn ask(&self, host: &str, target: &str, from: Option<&str>) -> Told {
        let world = World::derive(self.facts.clone(), Generation(1));
        let question = Question {
            world: &world,
            target,
            from: from.map(|from| from.parse::<IpAddr>().unwrap()),
            settings: &self.settings,
            counts: &self.counters.snapshot(),
            load: &|key| self.loads.get(&key.backend).copied(),
            now: NOW,
        };
        Told(explain(&question, world.route(host).map(|route| &**route)))
    }
}

struct Told(Explanation);

impl Told {
    /// Whether there is a step with this outcome and these words.
    #[track_caller]
    fn has(&self, step: &str, ok: bool, words: &str) -> &Told {
        let found =
            self.0.steps.iter().any(|told| told.step == step && told.ok == ok && told.says.contains(words));
        assert!(found, "{step} {ok} {words}: {:#?}", self.0);
        self
    }

    #[track_caller]
    fn is(&self, verdict: &str) -> &Told {
        assert_eq!(self.0.verdict, verdict, "{:#?}", self.0);
        self
    }

    fn lacks(&self, step: &str) -> &Told {
        assert!(self.0.steps.iter().all(|told| told.step != step), "{step}: {:#?}", self.0);
        self
    }
}

fn addr(last: u8, port: u16) -> SocketAddrV4 {
    SocketAddrV4::new([10, 20, 0, last].into(), port)
}

fn key(last: u8, port: u16) -> BackendKey {
    BackendKey { addr: addr(last, port), epoch: 0 }
}

fn app(name: &str, port: u16) -> BackendTarget {
    BackendTarget::App { name: name.parse().unwrap(), port }
}

fn vhost(backends: Vec<BackendTarget>) -> Vhost {
    Vhost::new("wiki".parse().unwrap(), "wiki.prox.local".parse().unwrap(), backends)
}

fn fixed() -> Vhost {
    vhost(vec![BackendTarget::Address(addr(5, 80))])
}

fn with_policy(policy: VhostPolicy) -> Vhost {
    Vhost { policy: policy.shared(), ..fixed() }
}

fn path(prefix: &str, strip: bool, backends: Vec<BackendTarget>, redirect: Option<&str>) -> VhostPath {
    VhostPath {
        prefix: prefix.to_owned(),
        strip,
        backends,
        protocol: Default::default(),
        tls: Default::default(),
        health: Default::default(),
        redirect: redirect.map(|to| Redirect { to: to.to_owned(), status: 308 }),
    }
}

const WIKI: &str = "wiki.prox.local";

#[test]
fn a_host_that_nobody_has() {
    Scene::new().ask("nobody.prox.local", "/", None).is("unknown_host").has("vhost", false, "no vhost");
}

#[test]
fn an_app_of_a_lease_from_its_start_to_its_end() {
    let mut scene = Scene::new();
    scene.lease(101, "wiki", LeaseState::Bound);
    let leased = BackendKey { epoch: 101, ..key(101, 80) };
    let refused = "connection refused: nothing listens on the port";
    scene.probed("wiki", leased, HealthState::Unproven, Some(refused));
    let told = scene.ask(WIKI, "/", None);
    told.is("starting").has("vhost", true, "made by itself");
    told.has("backend", false, "10.20.0.101:80 has not passed a health check yet: connection refused");
    scene.probed("wiki", leased, HealthState::Healthy, None);
    scene.ask(WIKI, "/", None).is("ok").has("backend", true, "passes its health checks").lacks("path");
    // Without a request: what the probe met is what a request will.
    scene.probed("wiki", leased, HealthState::Unhealthy, Some(refused));
    let told = scene.ask(WIKI, "/", None);
    told.is("backend_refused").has("backend", false, "fails its health checks for 5 min: connection refused");
    scene.lease(101, "wiki", LeaseState::Expired);
    scene.ask(WIKI, "/", None).is("stopped").lacks("backend");
}

#[test]
fn a_vhost_that_is_switched_off() {
    let told = Scene::of(Vhost { enabled: false, ..fixed() }).ask(WIKI, "/", None);
    told.is("disabled").has("vhost", false, "`proximity vhost set wiki --enabled` switches it on");
    // Before anything else that might refuse.
    let mut policy = VhostPolicy::default();
    policy.access.allow = vec!["10.99.0.0/16".parse().unwrap()];
    policy.request_headers.remove = vec!["host".to_owned()];
    let scene = Scene::of(Vhost { enabled: false, ..with_policy(policy) });
    scene.ask(WIKI, "/", Some("10.20.0.9")).is("disabled").has("vhost", false, "switched off");
}

#[test]
fn a_vhost_that_lets_nobody_in() {
    let mut policy = VhostPolicy::default();
    policy.request_headers.remove = vec!["host".to_owned()];
    let told = Scene::of(with_policy(policy)).ask(WIKI, "/", None);
    told.is("misconfigured").has("vhost", false, "asks for what cannot be done");
}

#[test]
fn what_the_last_request_met_is_told_until_something_answers() {
    let mut scene = Scene::of(fixed());
    for (reason, words) in [
        (Reason::BackendRefused, "did not accept a connection 3 min ago"),
        (Reason::BackendTimedOut, "could not be reached in time 3 min ago"),
        (Reason::BackendSlow, "did not answer in time"),
        (Reason::BackendNonsense, "not HTTP"),
    ] {
        scene.failed(key(5, 80), reason, false);
        let told = scene.ask(WIKI, "/", None);
        told.is(reason.as_str()).has("requests", false, words);
        let of_page = words_of(reason);
        assert_eq!((told.0.title, told.0.why, told.0.advice), of_page);
    }
    scene.failed(key(5, 80), Reason::BackendRefused, true);
    let told = scene.ask(WIKI, "/", None);
    told.is("ok").has(
        "requests",
        true,
        "answers; 3 min ago it did not accept a connection, and it has answered since",
    );
}

fn words_of(reason: Reason) -> (&'static str, &'static str, &'static str) {
    let words = words(reason);
    (words.title, words.why, words.advice)
}

#[test]
fn an_app_is_broken_when_all_of_its_backends_are() {
    let two = vec![BackendTarget::Address(addr(5, 80)), BackendTarget::Address(addr(6, 80))];
    let mut scene = Scene::of(vhost(two));
    scene.failed(key(5, 80), Reason::BackendRefused, false);
    scene.ask(WIKI, "/", None).is("ok").has("requests", false, "10.20.0.5:80 did not accept");
    scene.failed(key(6, 80), Reason::BackendSlow, false);
    scene.ask(WIKI, "/", None).is("backend_refused");
    scene.probed("wiki", key(6, 80), HealthState::Healthy, None);
    let told = scene.ask(WIKI, "/", None);
    told.is("backend_slow").has(
        "backend",
        true,
        "10.20.0.5:80 has not been checked yet; others that are healthy",
    );
}

#[test]
fn backends_that_fail_their_checks_and_are_asked_all_the_same() {
    let mut scene = Scene::of(fixed());
    scene.probed("wiki", key(5, 80), HealthState::Unhealthy, Some("/ answered 503"));
    scene
        .ask(WIKI, "/", None)
        .is("unhealthy")
        .has("backend", false, "for 5 min: / answered 503")
        .lacks("header");
    scene.probed("wiki", key(5, 80), HealthState::Unhealthy, Some("/ answered 400, not 200-299"));
    scene.ask(WIKI, "/", None).is("unhealthy").has("header", false, "host_header = \"preserve\"");
    // Of another port it says nothing.
    let mut elsewhere = fixed();
    elsewhere.health.port = Some(9000);
    let mut scene = Scene::of(elsewhere);
    let refused = Some("connection refused: nothing listens on the port");
    scene.probed("wiki", key(5, 80), HealthState::Unhealthy, refused);
    scene.ask(WIKI, "/", None).is("unhealthy");
}

#[test]
fn what_a_request_met_after_a_probe_counts_more() {
    let refused = Some("connection refused: nothing listens on the port");
    let mut scene = Scene::of(fixed());
    scene.probed("wiki", key(5, 80), HealthState::Unproven, refused);
    scene.ask(WIKI, "/", None).is("backend_refused");
    // Whoever is told of probes has heard of this one: what answered did so after it.
    scene.load(key(5, 80), Circuit::Closed, None);
    scene.ask(WIKI, "/", None).is("ok").has("backend", false, "has not passed a health check yet");
    scene.loads.get_mut(&key(5, 80)).unwrap().is_known = false;
    scene.ask(WIKI, "/", None).is("backend_refused").lacks("requests");
}

#[test]
fn a_misspelt_app_is_told_with_the_nearest_name() {
    let mut scene = Scene::of(vhost(vec![app("mediawkii", 80)]));
    scene.lease(101, "mediawiki", LeaseState::Bound);
    let told = scene.ask(WIKI, "/", None);
    told.is("stopped");
    told.has(
        "backend",
        false,
        "mediawkii:80: no container is called `mediawkii`: the nearest name is `mediawiki`",
    );
    let mut scene = Scene::of(vhost(vec![app("mediawiki", 80)]));
    scene.ask(WIKI, "/", None).has("backend", false, "no container is called `mediawiki`");
    scene.lease(101, "mediawiki", LeaseState::Expired);
    scene.ask(WIKI, "/", None).is("stopped").has("backend", false, "`mediawiki` is not on the network");
}

#[test]
fn who_may_come_in() {
    let access = Access {
        allow: vec!["192.168.1.0/24".parse().unwrap()],
        deny: vec!["192.168.1.66/32".parse().unwrap()],
        apps: vec!["prometheus".parse().unwrap(), "grafna".parse().unwrap()],
    };
    let mut scene = Scene::of(with_policy(VhostPolicy { access, ..VhostPolicy::default() }));
    scene.lease(102, "prometheus", LeaseState::Bound);
    scene.lease(103, "grafana", LeaseState::Bound);
    scene.counters.turned_away(Reason::Forbidden);
    let only = "only 192.168.1.0/24 and the apps prometheus and grafna may come in, but not 192.168.1.66";
    let told = scene.ask(WIKI, "/", None);
    told.is("ok").has("access", true, only).has("access", true, "1 request was turned away");
    told.has("access", false, "no container is called `grafna`: the nearest name is `grafana`");
    for (from, verdict, says) in [
        ("192.168.1.9", "ok", ": 192.168.1.9 may;"),
        ("192.168.1.66", "forbidden", ": 192.168.1.66 may not;"),
        ("10.20.0.102", "ok", ": 10.20.0.102 may;"),
        ("10.20.0.103", "forbidden", ": 10.20.0.103 may not;"),
    ] {
        scene.ask(WIKI, "/", Some(from)).is(verdict).has("access", verdict == "ok", says);
    }
    Scene::of(fixed()).ask(WIKI, "/", Some("10.9.9.9")).is("ok").has(
        "access",
        true,
        "everybody may come in: 10.9.9.9 may",
    );
}

#[test]
fn passwords_and_the_service_that_is_asked() {
    let users = ["alice", "bob"].map(|name| BasicUser {
        name: name.into(),
        hash: "$2b$04$abcdefghijklmnopqrstuu2r9OfJnfCsdneAXAGHnS4UpFFP8WIrW".into(),
    });
    let auth = BasicAuth { realm: "home".into(), users: users.into() };
    let asked = ForwardAuth { to: app("authelia", 9091), path: "/".into(), copy_headers: Vec::new() };
    let policy = VhostPolicy { basic_auth: Some(auth), forward_auth: Some(asked), ..VhostPolicy::default() };
    let mut scene = Scene::of(with_policy(policy));
    let told = scene.ask(WIKI, "/", None);
    told.is("auth_unavailable").has("password", true, "which alice and bob have");
    told.has("auth", false, "nobody may come in: authelia:9091 is to be asked, and no container is called");
    scene.lease(107, "authelia", LeaseState::Bound);
    scene.ask(WIKI, "/", None).is("ok").has(
        "auth",
        true,
        "authelia (10.20.0.107:9091) is asked who may come in",
    );
    scene.counters.turned_away(Reason::AuthUnavailable);
    scene.counters.turned_away(Reason::Unauthorized);
    let there = BackendKey { epoch: 107, ..key(107, 9091) };
    scene.failed(there, Reason::BackendRefused, false);
    let told = scene.ask(WIKI, "/", None);
    told.is("auth_unavailable").has("auth", false, "did not accept a connection 3 min ago");
    told.has("auth", false, "1 request was turned away because it did not answer");
    told.has("password", true, "1 request was turned away for having none");
    scene.failed(there, Reason::BackendRefused, true);
    scene.ask(WIKI, "/", None).is("ok").has("auth", true, "has answered since");
    scene.loads.clear();
    let refused = Some("connection refused: nothing listens on the port");
    scene.probed("wiki", there, HealthState::Unproven, refused);
    let told = scene.ask(WIKI, "/", None);
    told.is("auth_unavailable").has("auth", false, "its last health check failed: connection refused");
}

#[test]
fn paths_lead_where_they_lead() {
    let mut wiki = fixed();
    wiki.paths = vec![
        path("/api", true, vec![app("api", 3000)], None),
        path("/old", true, Vec::new(), Some("/new{uri}")),
    ];
    let mut scene = Scene::of(wiki);
    scene.lease(108, "api", LeaseState::Bound);
    scene.failed(BackendKey { epoch: 108, ..key(108, 3000) }, Reason::BackendSlow, false);
    let told = scene.ask(WIKI, "/api/x?y=1", None);
    told.is("backend_slow").has(
        "path",
        true,
        "/api/x?y=1 belongs to the path /api and goes to api:3000 as /x?y=1",
    );
    told.has("requests", false, "api (10.20.0.108:3000) did not answer in time");
    let told = scene.ask(WIKI, "/", None);
    told.is("ok").has("path", true, "/ belongs to none of the paths /api and /old and goes to 10.20.0.5:80");
    let told = scene.ask(WIKI, "/old/x?y", None);
    told.is("ok")
        .has("path", true, "belongs to the path /old and is sent on to /new/x?y (308)")
        .lacks("backend");
    assert_eq!(told.0.title, "Visitors are sent elsewhere");
    scene.ask(WIKI, "/%2e%2e%2f..;/api", None).is("path_refused").has("path", false, "more than one way");
    scene.lease(108, "api", LeaseState::Expired);
    scene.ask(WIKI, "/api", None).is("stopped").has("backend", false, "`api` is not on the network");
    let mut moved = fixed();
    (moved.backends, moved.redirect) =
        (Vec::new(), Some(Redirect { to: "https://new.example{uri}".into(), status: 301 }));
    let told = Scene::of(moved).ask(WIKI, "/x", None);
    told.is("ok").has("path", true, "/x is sent on to https://new.example/x (301)");
}

#[test]
fn limits_are_told_with_what_they_turned_away() {
    let limits = VhostLimits {
        backend_connections: 2,
        queue: 3,
        body: 1000,
        client_rate: Some(Rate { per_second: 5, burst: 10 }),
        client_connections: 4,
        ..VhostLimits::default()
    };
    let mut scene = Scene::of(with_policy(VhostPolicy { limits, ..VhostPolicy::default() }));
    scene.settings.client_rate = Some(Rate { per_second: 100, burst: 200 });
    for reason in [Reason::RateLimited, Reason::RateLimited, Reason::QueueFull, Reason::BodyTooLarge] {
        scene.counters.turned_away(reason);
    }
    let told = scene.ask(WIKI, "/", None);
    told.has("limits", true, "may send 100 requests a second, 200 at once to all apps");
    told.has(
        "limits",
        true,
        "may send it 5 requests a second, 10 at once; 2 requests were turned away for more",
    );
    told.has("limits", true, "may have 4 requests under way");
    told.has(
        "limits",
        true,
        "works on 2 requests at once, 3 more wait up to 5 s; 1 request was turned away because",
    );
    told.has("limits", true, "uploads may have 1000 octets; 1 request was turned away");
    let full = BackendLoad { in_flight: 2, waiting: 3, ..loaded(Circuit::Closed) };
    scene.loads.insert(key(5, 80), full);
    scene.ask(WIKI, "/", None).has("requests", false, "it is busy: it works on 2 requests, 3 wait");
    Scene::of(fixed()).ask(WIKI, "/", None).lacks("limits").lacks("access").lacks("auth").lacks("password");
}

#[test]
fn an_app_whose_line_is_full_turns_visitors_away() {
    let limits = VhostLimits { backend_connections: 1, queue: 2, ..VhostLimits::default() };
    let policy = VhostPolicy { limits, ..VhostPolicy::default() };
    let mut scene = Scene::of(with_policy(policy.clone()));
    let load = |in_flight, waiting| BackendLoad { in_flight, waiting, ..loaded(Circuit::Closed) };
    for (in_flight, waiting, verdict) in
        [(1, 1, "ok"), (1, 2, "queue_full"), (0, 2, "queue_full"), (0, 0, "ok"), (9, 1, "ok")]
    {
        scene.loads.insert(key(5, 80), load(in_flight, waiting));
        scene.ask(WIKI, "/", None).is(verdict);
    }
    scene.loads.insert(key(5, 80), load(1, 2));
    assert_eq!(scene.ask(WIKI, "/", None).0.title, words(Reason::QueueFull).title);

    // With another backend there is room, unless that is full too or paused.
    let two = vec![BackendTarget::Address(addr(5, 80)), BackendTarget::Address(addr(6, 80))];
    let shared = policy.shared();
    scene.apply(Change::Vhost(Source::Api, Arc::new(Vhost { policy: shared.clone(), ..vhost(two) })));
    scene.ask(WIKI, "/", None).is("ok");
    scene.loads.insert(key(6, 80), load(1, 0));
    scene.ask(WIKI, "/", None).is("ok");
    let open = Circuit::Open { until_ms: 1 };
    scene.loads.insert(key(6, 80), loaded(open));
    scene.ask(WIKI, "/", None).is("queue_full");
    // Where all are paused each is asked, so one with room will do.
    scene.loads.insert(key(5, 80), BackendLoad { circuit: open, ..load(1, 2) });
    scene.ask(WIKI, "/", None).is("ok");
    scene.loads.insert(key(6, 80), BackendLoad { circuit: open, ..load(1, 2) });
    scene.ask(WIKI, "/", None).is("queue_full");
}

#[test]
fn circuits_are_told_by_whether_there_is_another_backend() {
    let mut scene = Scene::of(fixed());
    let open = Circuit::Open { until_ms: 1 };
    let failure = LastFailure { reason: Reason::BackendRefused, ago_ms: 0, is_past: false };
    scene.load(key(5, 80), open, Some(failure));
    scene.ask(WIKI, "/", None).has("requests", false, "it is asked all the same, as there is no other");
    let two = vec![BackendTarget::Address(addr(5, 80)), BackendTarget::Address(addr(6, 80))];
    scene.apply(Change::Vhost(Source::Api, Arc::new(vhost(two))));
    let told = scene.ask(WIKI, "/", None);
    told.is("ok").has("requests", false, "others get its requests, and it is tried again within 10 s");
}

fn loaded(circuit: Circuit) -> BackendLoad {
    let mut scene = Scene::new();
    scene.load(key(5, 80), circuit, None);
    scene.loads[&key(5, 80)]
}
