//! Vhosts as the API shows them. What is shown may be sent back: its settings are spelled as they are written.

use std::net::Ipv4Addr;

use proximity_table::{
    Backend, BackendTarget, Health, HealthPolicy, HealthState, Label, Name, Route, Service, Source, Vhost,
    VhostPath, World,
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
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub path: Vec<PathView>,
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
            return Some(VhostView::asked(world, *source, vhost));
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
            path: paths,
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
            path: Vec::new(),
            settings: Settings::new(),
        }
    }
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
            backends: backends.iter().map(CheckView::of).collect(),
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
        }
    }
}

#[cfg(test)]
mod tests {
    use proximity_config::Config;
    use proximity_table::{Change, Facts, Generation, Ledger, Touched};
    use serde_json::{Map, Value};

    use super::*;
    use crate::{edit, vhost_input};

    const HASH: &str = "$2b$12$abcdefghijklmnopqrstuuABCDEFGHIJKLMNOPQRSTUVWXYZ01234";

    fn facts() -> Facts {
        Facts::new(Config::default().intent, Ledger::default())
    }

    fn object(text: &str) -> Map<String, Value> {
        serde_json::from_str(text).unwrap()
    }

    /// Puts a vhost by its JSON; the facts after it, and how it is shown.
    fn put(facts: &mut Facts, body: Map<String, Value>) -> Result<VhostView, crate::Problem> {
        let vhost = vhost_input::vhost(body, None, &"prox.local".parse().unwrap())?;
        let name = vhost.app_name.to_string();
        for change in edit::put_vhost(facts, vhost, true)? {
            facts.apply(change, &mut Touched::default());
        }
        let world = World::derive(facts.clone(), Generation(1));
        Ok(VhostView::named(&world, &name).expect("it is there"))
    }

    fn shown(view: &VhostView) -> Map<String, Value> {
        let Value::Object(shown) = serde_json::to_value(view).unwrap() else { panic!("an object") };
        shown
    }

    const PLAIN: &str = r#"{"app_name": "wiki", "backend_ip": "10.20.0.5", "backend_port": 8080}"#;

    #[test]
    fn a_plain_vhost_is_shown_as_ever() {
        let view = shown(&put(&mut facts(), object(PLAIN)).unwrap());
        let keys: Vec<&str> = view.keys().map(String::as_str).collect();
        assert_eq!(
            keys,
            [
                "aliases",
                "app_name",
                "backend_ip",
                "backend_port",
                "backends",
                "enabled",
                "health",
                "hostname",
                "protocol",
                "source",
                "url",
                "verdict"
            ]
        );
        assert_eq!(
            (view["url"].as_str(), view["verdict"].as_str()),
            (Some("http://wiki.prox.local"), Some("ready"))
        );
        assert_eq!(view["health"].as_object().unwrap().len(), 7);
    }

    #[test]
    fn what_is_shown_can_be_sent_back() {
        let bodies = [
            PLAIN.to_owned(),
            r#"{"app_name": "a", "backends": ["a:80", "10.20.0.5:80"], "hostname": "*.a.prox.local", "default": true}"#
                .to_owned(),
            r#"{"app_name": "a", "redirect": "https://new.example{uri}", "redirect_status": 302, "aliases": ["b"]}"#
                .to_owned(),
            format!(
                r#"{{"app_name": "a", "backend": "a", "balance": "random_two", "affinity": "header:X-Id",
                "host_header": "preserve", "compress": true, "slow_start": 30, "retries": 0, "retry_budget": 5,
                "send_proxy_protocol": "v1", "protocol": "https", "tls_verify": true, "tls_server_name": "a.local",
                "max_body": "10MiB", "log": false, "log_sample": 7, "enabled": false,
                "health": {{"uri": "/up", "method": "HEAD", "port": 81, "status": 204, "rise": 2, "fall": 3}},
                "passive": {{"failures": 0, "window": 5, "pause": "1m"}},
                "timeouts": {{"connect": 1, "header": 2, "idle": 3, "total": "infinite"}},
                "limits": {{"backend_connections": 1, "queue": 0, "queue_timeout": 9, "client_connections": 2,
                    "client_rate": 3, "client_burst": 4}},
                "request_headers": {{"set": {{"X-A": "b"}}, "remove": ["Cookie"]}},
                "response_headers": {{"add": {{"Link": ["a", "b", "c"], "Vary": "d"}}}},
                "auth": {{"realm": "R", "users": {{"alice": "{HASH}"}}, "forward": "auth:9091",
                    "forward_path": "/v", "copy_headers": ["Remote-User"]}},
                "access": {{"allow": ["10.0.0.0/8"], "deny": ["10.1.0.1"], "apps": ["p"]}},
                "path": [
                    {{"prefix": "/z", "strip": true, "backends": ["z:1"], "protocol": "h2c", "tls_verify": false,
                      "health": {{"method": "GET", "status": "200-299", "body": "ok"}}}},
                    {{"prefix": "/a", "redirect": "/b"}}
                ]}}"#
            ),
        ];
        for body in bodies {
            let mut facts = facts();
            let view = put(&mut facts, object(&body)).unwrap_or_else(|problem| panic!("{problem:?}: {body}"));
            let made = facts.intent().vhosts.values().next().unwrap().1.clone();
            let again = shown(&view);
            put(&mut facts, again.clone()).unwrap_or_else(|problem| panic!("{problem:?}: {again:?}"));
            let after = &facts.intent().vhosts.values().next().unwrap().1;
            let mut made = (*made).clone();
            made.paths.sort_by(|a, b| a.prefix.cmp(&b.prefix));
            assert_eq!(**after, made, "{again:?}");
        }
    }

    #[test]
    fn hashes_are_kept_and_never_shown() {
        let mut facts = facts();
        let with = |users: &str| {
            object(&format!(r#"{{"app_name": "a", "backend": "a", "auth": {{"users": {users}}}}}"#))
        };
        let view = put(&mut facts, with(&format!(r#"{{"alice": "{HASH}", "bob": "{HASH}"}}"#))).unwrap();
        let text = serde_json::to_string(&view).unwrap();
        assert!(!text.contains("$2b$") && text.contains(r#""users":["alice","bob"]"#), "{text}");
        let hashes = |facts: &Facts| {
            let vhost = &facts.intent().vhosts.values().next().unwrap().1;
            let users = vhost.policy.basic_auth.as_ref().unwrap().users.clone();
            users.into_iter().map(|user| (user.name, user.hash)).collect::<Vec<_>>()
        };
        let other = HASH.replace("01234", "43210");
        put(&mut facts, with(&format!(r#"{{"alice": "", "carol": "{other}"}}"#))).unwrap();
        assert_eq!(
            hashes(&facts),
            [("alice".to_owned(), HASH.to_owned()), ("carol".to_owned(), other.clone())]
        );
        put(&mut facts, with(r#"["carol"]"#)).unwrap();
        assert_eq!(hashes(&facts), [("carol".to_owned(), other)]);
        let unknown = put(&mut facts, with(r#"["alice"]"#)).unwrap_err();
        assert!(unknown.status == 422 && unknown.detail.contains("`alice`"), "{unknown:?}");
    }

    #[test]
    fn one_vhost_at_most_is_the_default() {
        let mut facts = facts();
        let default =
            |app: &str| object(&format!(r#"{{"app_name": "{app}", "backend": "a", "default": true}}"#));
        put(&mut facts, default("a")).unwrap();
        put(&mut facts, default("a")).unwrap();
        let refused = put(&mut facts, default("b")).unwrap_err();
        assert!(refused.status == 409 && refused.detail.contains("`a`"), "{refused:?}");
    }

    #[test]
    fn each_path_has_a_verdict_of_its_own() {
        let body = r#"{"app_name": "a", "backend_ip": "10.20.0.5", "path": [
            {"prefix": "/gone", "backend": "gone"}, {"prefix": "/old", "redirect": "/new"}]}"#;
        let mut facts = facts();
        let view = put(&mut facts, object(body)).unwrap();
        let verdicts: Vec<(&str, &str)> =
            view.path.iter().map(|path| (path.prefix.as_str(), path.verdict.as_str())).collect();
        assert_eq!(
            (view.verdict.as_str(), &verdicts[..]),
            ("ready", &[("/gone", "stopped"), ("/old", "ready")][..])
        );
        // Sent elsewhere: no backend, no health.
        assert!(view.path[1].backends.is_empty());
        let mut off = object(body);
        off.insert("enabled".into(), false.into());
        let view = put(&mut facts, off).unwrap();
        assert!(view.path.iter().all(|path| path.verdict == "disabled"));
    }

    #[test]
    fn a_vhost_of_wildcards_has_no_url() {
        let mut facts = facts();
        let view = put(&mut facts, object(r#"{"app_name": "a", "backend": "a", "hostname": "*"}"#)).unwrap();
        assert_eq!((view.hostname.as_str(), view.url), ("*.prox.local", None));
        let world = World::derive(facts, Generation(1));
        assert!(VhostView::named(&world, "whatever").is_none(), "no vhost is called so");
        assert!(VhostView::named(&world, "whatever.prox.local").is_some(), "but one answers");
    }

    #[test]
    fn whoever_lost_its_name_is_shadowed() {
        let mut facts = facts();
        put(&mut facts, object(PLAIN)).unwrap();
        let mut other = Vhost::new("b".parse().unwrap(), "wiki.prox.local".parse().unwrap(), vec![]);
        other.backends = vec![BackendTarget::App { name: "b".parse().unwrap(), port: 80 }];
        facts.apply(Change::Vhost(Source::Config, other.into()), &mut Touched::default());
        let view = VhostView::named(&World::derive(facts, Generation(1)), "wiki").unwrap();
        assert_eq!(view.verdict, "shadowed");
    }
}
