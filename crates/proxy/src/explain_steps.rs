//! What is said of each thing that a request meets on its way, in words for whoever runs the network at home.

use std::fmt::Display;

use proximity_table::{
    Access, Action, Backend, BackendTarget, HostPolicy, Label, Rate, Redirect, Route, Service, Source, Span,
    UpstreamKey, Verdict, Vhost,
};

use crate::condition::{Condition, met};
use crate::explain::{Question, Step};
use crate::site::{claim, fault};
use crate::{BackendLoad, NormalPath, Reason, health, redirect_location, split_target};

/// Backends that are told of one by one.
const MOST_BACKENDS: usize = 32;

/// What is known of each thing, in the order in which the request meets it, and whom the request may be sent to.
pub fn of(question: &Question<'_>, route: Option<&Route>) -> (Vec<Step>, Vec<BackendTarget>) {
    let mut steps = Steps { question, list: Vec::new(), targets: Vec::new() };
    match route {
        None => steps.add("vhost", false, "no vhost has this name"),
        Some(route) => steps.tell(route),
    }
    (steps.list, steps.targets)
}

struct Steps<'a> {
    question: &'a Question<'a>,
    list: Vec<Step>,
    targets: Vec<BackendTarget>,
}

impl Steps<'_> {
    fn add(&mut self, step: &'static str, ok: bool, says: impl Into<String>) {
        self.list.push(Step { step, ok, says: says.into() });
    }

    fn tell(&mut self, route: &Route) {
        let written = route.app.parse::<Label>().ok();
        let vhosts = &self.question.world.facts.intent().vhosts;
        let written = written.filter(|_| !route.from_lease()).and_then(|app| vhosts.get(&app));
        let written = written.map(|(_, vhost)| &**vhost);
        self.vhost(route);
        self.limits(route);
        self.access(route);
        self.password(route);
        self.auth(route);
        let Some(at) = self.path(route, written) else { return };
        if let (Action::Proxy(service), targets) = place(route, written, at) {
            let asked = route.policy.forward_auth.iter().map(|auth| &auth.to);
            let targets_of_all = targets.into_iter().flatten().take(MOST_BACKENDS).chain(asked);
            self.targets = targets_of_all.cloned().collect();
            self.backends(route, service, targets);
        }
    }

    fn vhost(&mut self, route: &Route) {
        let made = match route.source {
            Source::Lease => "made by itself when the container got its address",
            Source::Config => "set up in the configuration file",
            Source::Api => "set up by the API or the command line",
        };
        let says = format!("{} is a vhost, {made}", route.hostname);
        if route.verdict() != Verdict::Disabled {
            if fault(&route.policy).is_none() {
                return self.add("vhost", true, says);
            }
            let why = "and asks for what cannot be done: look at its users and header fields";
            return self.add("vhost", false, format!("{says}, {why}"));
        }
        let how = match route.source {
            Source::Config => "write enabled = true in the file".to_owned(),
            _ => format!("`proximity vhost set {} --enabled` switches it on", route.app),
        };
        self.add("vhost", false, format!("{says}, and switched off: {how}"));
    }

    fn limits(&mut self, route: &Route) {
        let (limits, settings) = (&route.policy.limits, self.question.settings);
        let counts = self.question.counts;
        let rate = |rate: Rate| format!("{} requests a second, {} at once", rate.per_second, rate.burst);
        if let Some(all) = settings.client_rate {
            self.add("limits", true, format!("each visitor may send {} to all apps together", rate(all)));
        }
        if let Some(own) = limits.client_rate {
            let refused = so_far(counts.turned_away_by(Reason::RateLimited), "turned away for more");
            self.add("limits", true, format!("each visitor may send it {}{refused}", rate(own)));
        }
        if limits.client_connections > 0 {
            let refused = so_far(counts.turned_away_by(Reason::ClientConnections), "turned away for more");
            let says =
                format!("each visitor may have {} requests under way{refused}", limits.client_connections);
            self.add("limits", true, says);
        }
        if limits.backend_connections > 0 {
            let (full, late) =
                (counts.turned_away_by(Reason::QueueFull), counts.turned_away_by(Reason::QueueTimeout));
            let says = format!(
                "a backend works on {} requests at once, {} more wait up to {}{}{}",
                limits.backend_connections,
                limits.queue,
                Span(limits.queue_timeout.into()),
                so_far(full, "turned away because as many waited"),
                so_far(late, "turned away because they waited for too long"),
            );
            self.add("limits", true, says);
        }
        let body = if limits.body > 0 { limits.body } else { settings.max_body };
        let larger = counts.turned_away_by(Reason::BodyTooLarge);
        if limits.body > 0 || larger > 0 {
            let refused = so_far(larger, "turned away for more");
            self.add("limits", true, format!("uploads may have {body} octets{refused}"));
        }
    }

    fn access(&mut self, route: &Route) {
        let access = &route.policy.access;
        if access.is_open() && self.question.from.is_none() {
            return;
        }
        let refused = so_far(self.question.counts.turned_away_by(Reason::Forbidden), "turned away");
        let may = self.question.access(route).is_ok();
        let judged = self.question.from.map(|from| format!(": {from} may{}", if may { "" } else { " not" }));
        self.add("access", may, format!("{}{}{refused}", who(access), judged.unwrap_or_default()));
        for app in &access.apps {
            if let Some(unknown) = self.question.world.unknown(app) {
                self.add("access", false, unknown.to_string());
            }
        }
    }

    fn password(&mut self, route: &Route) {
        let Some(auth) = &route.policy.basic_auth else { return };
        let users: Vec<&str> = auth.users.iter().map(|user| &*user.name).collect();
        let refused = so_far(
            self.question.counts.turned_away_by(Reason::Unauthorized),
            "turned away for having none, as the first one of each browser is",
        );
        let says = format!("a name and a password are asked for, which {} have{refused}", list(&users));
        self.add("password", true, says);
    }

    fn auth(&mut self, route: &Route) {
        let Some(auth) = &route.policy.forward_auth else { return };
        let asked = "is asked who may come in";
        let refused = so_far(
            self.question.counts.turned_away_by(Reason::AuthUnavailable),
            "turned away because it did not answer",
        );
        let (ok, says) = match &route.auth_backend {
            None => {
                let absence = self.question.world.absence(&auth.to);
                (false, format!("nobody may come in: {} is to be asked, and {absence}", auth.to))
            }
            Some(backend) => {
                let name = named(&auth.to, backend);
                let load =
                    (self.question.load)(&UpstreamKey::plain(backend.key)).filter(|load| load.is_known);
                let reason = backend.health.as_ref().and_then(|health| health.reason.as_deref());
                let seen = match (load, reason) {
                    (Some(load), _) => format!("; it {}", last_request(&load)),
                    (None, Some(reason)) => format!("; its last health check failed: {reason}"),
                    (None, None) => String::new(),
                };
                (self.question.auth_failure(backend).is_none(), format!("{name} {asked}{seen}"))
            }
        };
        self.add("auth", ok, format!("{says}{refused}"));
    }

    /// The path that the request belongs to: its index, or `None` for the vhost itself; nothing when it is refused.
    fn path(&mut self, route: &Route, written: Option<&Vhost>) -> Option<Option<usize>> {
        let target = self.question.target;
        let (found, sent) = match claim(route, target.as_bytes()) {
            Err(_) => {
                self.add("path", false, format!("{target} could be understood in more than one way"));
                return None;
            }
            Ok(None) => (None, None),
            Ok(Some((found, sent))) => (found, Some(String::from_utf8_lossy(sent.as_bytes()).into_owned())),
        };
        let changed = sent.as_deref().filter(|sent| *sent != target);
        let (action, targets) = place(route, written, found);
        let whose = match found {
            Some(at) => format!("{target} belongs to the path {}", route.paths[at].prefix),
            None if route.paths.is_empty() => target.to_owned(),
            None => {
                let prefixes: Vec<&str> = route.paths.iter().map(|path| &*path.prefix).collect();
                format!("{target} belongs to none of the paths {}", list(&prefixes))
            }
        };
        match action {
            Action::Redirect(redirect) => {
                let says = match location(redirect, changed.unwrap_or(target)) {
                    Some(to) => format!("{whose} and is sent on to {to} ({})", redirect.status),
                    None => format!("{whose} and is sent on ({})", redirect.status),
                };
                let says = if route.paths.is_empty() { says.replacen(" and is", " is", 1) } else { says };
                self.add("path", true, says);
            }
            // Nothing was asked, and there is nothing to tell.
            Action::Proxy(_) if route.paths.is_empty() && target == "/" => {}
            Action::Proxy(_) => {
                let names: Vec<String> =
                    targets.into_iter().flatten().take(MOST_BACKENDS).map(ToString::to_string).collect();
                let to = if names.is_empty() { route.app.to_string() } else { list(&names) };
                let as_what = changed.map(|sent| format!(" as {sent}")).unwrap_or_default();
                let joined = if route.paths.is_empty() { " goes" } else { " and goes" };
                self.add("path", true, format!("{whose}{joined} to {to}{as_what}"));
            }
        }
        Some(found)
    }

    fn backends(&mut self, route: &Route, service: &Service, written: Option<&[BackendTarget]>) {
        let usable: Vec<&Backend> = service.usable(route.from_lease()).collect();
        let is_sole = usable.len() == 1;
        let Some(written) = written else {
            // The ports of a lease are guesses: once one is right, the others do not matter.
            let shown: Vec<&Backend> = match service.verdict {
                Verdict::Ready => usable,
                Verdict::Starting => service.candidates.iter().collect(),
                Verdict::Stopped | Verdict::Disabled => Vec::new(),
            };
            for backend in shown {
                self.backend(route, service, backend.key.addr.to_string(), backend, is_sole, true);
            }
            return;
        };
        if service.verdict == Verdict::Disabled {
            return;
        }
        for target in written.iter().take(MOST_BACKENDS) {
            match self.question.world.backend_of(&route.app, service, target) {
                None => {
                    let says = format!("{target}: {}", self.question.world.absence(target));
                    self.add("backend", false, says);
                }
                Some(backend) => {
                    let gets = usable.iter().any(|one| one.key == backend.key);
                    self.backend(route, service, named(target, &backend), &backend, is_sole, gets);
                }
            }
        }
        if let Some(more @ 1..) = written.len().checked_sub(MOST_BACKENDS) {
            self.add("backend", true, format!("{more} more are not told of here"));
        }
    }

    fn backend(
        &mut self,
        route: &Route,
        service: &Service,
        name: String,
        backend: &Backend,
        is_sole: bool,
        gets_requests: bool,
    ) {
        let reason = backend.health.as_ref().and_then(|health| health.reason.as_deref());
        let since = backend.health.as_ref().map(|health| Span(self.question.now.seconds_after(health.since)));
        let (ok, checks) = match (backend.is_healthy(), backend.was_proven(), reason) {
            (true, _, None) => (true, "passes its health checks".to_owned()),
            (true, _, Some(reason)) => (true, format!("is healthy, but its last check failed: {reason}")),
            (false, true, reason) => {
                let for_long = since.map(|since| format!(" for {since}")).unwrap_or_default();
                (false, format!("fails its health checks{for_long}{}", behind_colon(reason)))
            }
            (false, false, Some(reason)) => (false, format!("has not passed a health check yet: {reason}")),
            (false, false, None) => (true, "has not been checked yet".to_owned()),
        };
        let passed_over = if gets_requests { "" } else { "; others that are healthy get its requests" };
        self.add("backend", ok, format!("{name} {checks}{passed_over}"));
        if let Some(status) = reason.and_then(health::answered)
            && [400, 403, 404, 421].contains(&status)
            && route.policy.host == HostPolicy::Backend
        {
            let says = format!(
                "{name} sees {} in Host; an app that wants its own name there answers {status}: try host_header = \"preserve\"",
                backend.key.addr
            );
            self.add("header", false, says);
        }
        let Some(load) = (self.question.load)(&service.upstream(backend.key)) else { return };
        let condition = Condition::of(&load, &route.policy);
        if !load.is_known && load.in_flight == 0 && condition == Condition::Closed {
            return;
        }
        let mut says = format!("{name} {}", last_request(&load));
        if load.in_flight > 0 {
            says.push_str(&format!("; {} under way", load.in_flight));
        }
        if load.waiting > 0 {
            says.push_str(&format!("; {} wait", load.waiting));
        }
        condition
            .says(&load, &route.policy, is_sole)
            .into_iter()
            .for_each(|more| says.push_str(&format!("; {more}")));
        let lets_through = !matches!(condition, Condition::Open | Condition::QueueFull);
        self.add("requests", load.failing().is_none() && lets_through, says);
    }
}

/// What becomes of requests for the path with an index, or for the vhost itself, and the backends as they were written.
fn place<'a>(
    route: &'a Route,
    written: Option<&'a Vhost>,
    at: Option<usize>,
) -> (&'a Action, Option<&'a [BackendTarget]>) {
    let Some(path) = at.map(|at| &route.paths[at]) else {
        return (&route.root, written.map(|vhost| &*vhost.backends));
    };
    let own = written.and_then(|vhost| vhost.paths.iter().find(|own| *own.prefix == *path.prefix));
    (&path.action, own.map(|own| &*own.backends))
}

/// What the last requests to a backend met.
fn last_request(load: &BackendLoad) -> String {
    match load.last_failure {
        None if !load.is_known => "has not been asked yet".to_owned(),
        None => "answers requests".to_owned(),
        Some(last) => {
            let met = met(last.reason);
            let ago = match last.ago_ms / 1000 {
                0 | 1 => "just now".to_owned(),
                seconds => format!("{} ago", Span(seconds)),
            };
            match last.is_past {
                false => format!("{met} {ago}, when it was last asked"),
                true => format!("answers; {ago} it {met}, and it has answered since"),
            }
        }
    }
}

/// Who may come in.
fn who(access: &Access) -> String {
    let texts = |items: &[_]| -> Vec<String> { items.iter().map(ipnet_text).collect() };
    let mut allowed = texts(&access.allow);
    let apps: Vec<&str> = access.apps.iter().map(Label::as_str).collect();
    match apps.len() {
        0 => {}
        1 => allowed.push(format!("the app {}", apps[0])),
        _ => allowed.push(format!("the apps {}", list(&apps))),
    }
    let but = match access.deny.is_empty() {
        true => String::new(),
        false => format!(", but not {}", list(&texts(&access.deny))),
    };
    match allowed.is_empty() {
        true => format!("everybody may come in{but}"),
        false => format!("only {} may come in{but}", list(&allowed)),
    }
}

fn ipnet_text(network: &ipnet::IpNet) -> String {
    let is_one = network.prefix_len() == network.max_prefix_len();
    if is_one { network.addr().to_string() } else { network.to_string() }
}

/// Where a redirect leads.
fn location(redirect: &Redirect, target: &str) -> Option<String> {
    let (path, query) = split_target(target.as_bytes());
    let path = NormalPath::new(path).ok()?;
    String::from_utf8(redirect_location(&redirect.to, &path, query)).ok()
}

/// A target with the address that it stands for now.
fn named(target: &BackendTarget, backend: &Backend) -> String {
    match target {
        BackendTarget::App { name, .. } => format!("{name} ({})", backend.key.addr),
        BackendTarget::Address(addr) => addr.to_string(),
    }
}

fn behind_colon(reason: Option<&str>) -> String {
    reason.map(|reason| format!(": {reason}")).unwrap_or_default()
}

fn so_far(count: u64, what: &str) -> String {
    match count {
        0 => String::new(),
        1 => format!("; 1 request was {what}"),
        _ => format!("; {count} requests were {what}"),
    }
}

/// `a`, `a and b`, `a, b and c`.
fn list(items: &[impl Display]) -> String {
    let texts: Vec<String> = items.iter().map(ToString::to_string).collect();
    match texts.split_last() {
        None => String::new(),
        Some((only, [])) => only.clone(),
        Some((last, others)) => format!("{} and {last}", others.join(", ")),
    }
}
