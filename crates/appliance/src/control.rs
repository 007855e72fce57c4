//! The appliance as the admin API sees it.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, SocketAddrV4};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use hyper::StatusCode;
use proximity_admin::{
    Appliance, CircuitView, DialFailure, DnsAnswerView, Edit, ForwardFigures, LastDial, LoadView, Problem,
    Reloaded, Said, ServiceVerb, ServiceView, Status, StepView, Stopped, TargetFigures, Upgraded,
    UpstreamView,
};
use proximity_config::{Config, Waiting};
use proximity_dhcp::Stats;
use proximity_dns::Forwarder;
use proximity_proxy::{BackendLoad, Condition, Explanation, Question, Reason, StreamPort, StreamReason};
use proximity_table::{
    App, AppState, Backend, Generation, HealthState, Name, ResolvedForward, Route, Span, Timestamp,
    UpstreamKey, Verdict, VhostPolicy, World,
};
use tokio::sync::mpsc;

use crate::clock::Uptime;
use crate::data_plane::DataThreads;
use crate::kernel::Kernel;
use crate::registrar::Registrar;
use crate::upgrade::followers::Followers;
use crate::upgrade::handover::Request;
use crate::{clock, daemon, forwarding, log, metrics};

/// Everything that is asked about or changed from outside.
pub struct Control {
    /// The only writer.
    pub registrar: Registrar,
    /// The firewall.
    pub kernel: Kernel,
    /// The configuration file.
    pub config_path: PathBuf,
    /// What of the file is in force.
    pub running: Mutex<Running>,
    /// Asks foreign names.
    pub forwarder: Arc<ArcSwap<Forwarder>>,
    /// DHCP counters.
    pub dhcp: Arc<Stats>,
    /// DNS and the proxy.
    pub data: Arc<DataThreads>,
    /// Whether DHCP messages are answered.
    pub dhcp_serving: Arc<AtomicBool>,
    /// Asks for another binary to take over.
    pub upgrades: mpsc::Sender<Request>,
    /// Processes that were replaced by this one or before it.
    pub followers: Followers,
    /// Since the start of the process.
    pub uptime: Uptime,
    /// Milliseconds from the start of the process to serving.
    pub ready_after: u64,
}

/// What of the file is in force.
pub struct Running {
    /// The configuration that the sockets and links were made of.
    pub started: Config,
    /// What the file says beyond that and waits for another process.
    pub waiting: Vec<Waiting>,
    /// What is wrong with the file since it was last read.
    pub refused: Option<String>,
}

impl Control {
    /// What is wrong, in words.
    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        problems.extend(self.kernel.divergence().map(|reason| format!("firewall: {reason}")));
        let world = self.world();
        let interface = &world.facts.intent().wan_interface;
        if !world.facts.wan().running {
            problems.push(format!(
                "the WAN link {interface} is down: look at its cable, bridge or firewall in Proxmox"
            ));
        }
        let trouble = self.registrar.trouble();
        problems.extend(trouble.map(|reason| format!("no lease or change is granted: {reason}")));
        let running = self.running();
        if let Some(refused) = &running.refused {
            problems
                .push(format!("the configuration file is wrong, the last good one is in force: {refused}"));
        }
        for (port, reason) in self.data.forwards().troubles() {
            problems.push(format!(
                "{port} is not forwarded: {reason}: stop what listens there, or forward another port"
            ));
        }
        if let Some(hangs) = self.data.access_log_hangs_for() {
            problems.push(format!(
                "access logs: writing to {} hangs since {} s; requests are served without log: look after the \
                 disk or the mount there, or set appliance.log_dir to a directory elsewhere",
                running.started.appliance.log_dir.display(),
                hangs.as_secs()
            ));
        }
        problems.extend(self.data.blocking().troubles());
        problems.extend(Waiting::advice(&running.waiting));
        problems
    }

    /// Services that the configuration wants and somebody has stopped.
    pub fn stopped(&self) -> Vec<String> {
        let stopped = self.services().into_iter().filter(|service| service.status == "stopped");
        stopped.map(|service| service.name).collect()
    }

    /// Held for a moment only: the control thread serves everybody else too.
    fn running(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn service(
        name: &str,
        (enabled, serving): (bool, bool),
        trouble: Option<String>,
        detail: String,
    ) -> ServiceView {
        let status = match (enabled, serving, &trouble) {
            (false, ..) => "disabled",
            (true, false, _) => "stopped",
            (true, true, Some(_)) => "failed",
            (true, true, None) => "running",
        };
        let healthy = status == "running";
        ServiceView {
            name: name.to_owned(),
            status: status.to_owned(),
            healthy,
            detail: trouble.unwrap_or(detail),
        }
    }

    fn drops(&self) -> BTreeMap<String, u64> {
        let dhcp = self.dhcp.dropped().map(|(reason, count)| (format!("dhcp.{}", reason.label()), count));
        let dns = self.data.dns_totals();
        let dns_drops = dns.drops.into_iter().map(|(reason, count)| (format!("dns.{reason}"), count));
        let malformed = dns.malformed.into_iter().map(|(reason, count)| (format!("dns.{reason}"), count));
        let totals = self.data.proxy_totals();
        let proxy =
            Reason::ALL.into_iter().map(|reason| (format!("proxy.{}", reason.as_str()), totals.of(reason)));
        let forwards = self.data.forwards();
        let streams = StreamReason::ALL.into_iter();
        let streams = streams.map(|reason| (format!("forward.{}", reason.as_str()), forwards.count(reason)));
        // What the writer had no time for is among the proxy's reasons.
        let log = self.data.access_log_counts();
        let log = [("failed", log.failed), ("default_full", log.default_full), ("disk_full", log.disk_full)];
        let log = log.into_iter().map(|(reason, count)| (format!("access_log.{reason}"), count));
        dhcp.chain(dns_drops)
            .chain(malformed)
            .chain(proxy)
            .chain(streams)
            .chain(log)
            .filter(|(_, count)| *count > 0)
            .collect()
    }

    /// Backends that requests are kept from, or only some of them are carried to, each once.
    fn circuits(&self, world: &World) -> Vec<CircuitView> {
        let loads = self.data.backend_loads();
        let mut found: BTreeMap<(String, SocketAddrV4), CircuitView> = BTreeMap::new();
        for route in world.routes.values() {
            for service in route.services() {
                let is_sole = service.candidates.len() == 1;
                for backend in &service.candidates {
                    let addr = backend.key.addr;
                    let Some(load) = loads.get(&service.upstream(backend.key)) else { continue };
                    let Some(note) = proximity_proxy::note(load, &route.policy, is_sole) else { continue };
                    let view = CircuitView {
                        app: route.app.to_string(),
                        backend: addr.to_string(),
                        circuit: Condition::of(load, &route.policy).as_str().to_owned(),
                        note,
                        last_failure: load.failing().map(|reason| reason.as_str().to_owned()),
                    };
                    found.insert((route.app.to_string(), addr), view);
                }
            }
        }
        found.into_values().collect()
    }

    fn statistics(&self, world: &World) -> BTreeMap<String, u64> {
        let intent = world.facts.intent();
        let pool: u64 =
            intent.networks.iter().filter(|net| net.dhcp_enabled).map(|net| net.range.size()).sum();
        let in_pool = |ip| intent.networks.iter().any(|net| net.range.contains(ip));
        let ledger = world.facts.ledger();
        let taken = ledger.iter().filter(|lease| lease.is_bound() && in_pool(lease.ip)).count() as u64;
        let dns = self.data.dns_totals();
        let forwarding = self.forwarder.load().status();
        let proxy = self.data.proxy_totals();
        let ready = world.routes.values().filter(|route| route.verdict() == Verdict::Ready).count();
        let failing = |route: &&Arc<Route>| {
            let mut probed = route.backends().peekable();
            probed.peek().is_some() && probed.all(|b| b.state() == HealthState::Unhealthy)
        };
        let streams = self.data.forwards().total();
        let forwards_unhealthy = world.forwards.iter().filter(|forward| is_unhealthy(forward)).count();
        let unhealthy = world.routes.values().filter(failing).count();
        [
            ("active_leases", ledger.bound_count() as u64),
            ("available_ips", pool.saturating_sub(taken)),
            ("apps", world.app_states().count() as u64),
            ("apps_active", world.app_states().filter(|state| *state == AppState::Active).count() as u64),
            ("vhosts", world.routes.len() as u64),
            ("vhosts_ready", ready as u64),
            ("vhosts_unhealthy", unhealthy as u64),
            ("dns_queries", dns.udp_queries + dns.tcp_queries),
            ("dns_forwarded", dns.forwarded),
            ("dns_blocked", dns.blocked),
            ("dns_cache_hits", dns.cache_hits),
            ("dns_upstream_failures", dns.upstream_failures),
            ("dns_cached", forwarding.cached),
            ("dns_stale_answers", forwarding.stale),
            ("http_requests", proxy.responses.iter().sum()),
            ("http_5xx", proxy.responses[5]),
            ("http_connections", proxy.open),
            ("http_tunnels", proxy.tunnels),
            ("http_retries", proxy.retries),
            ("access_log_lines", self.data.access_log_counts().written),
            ("forwards", world.forwards.len() as u64),
            ("forwards_unhealthy", forwards_unhealthy as u64),
            ("forward_connections", streams.open),
            ("forward_connections_taken", streams.taken),
            ("forward_bytes_received", streams.received),
            ("forward_bytes_sent", streams.sent),
            ("log_lines_lost", log::lost()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
    }
}

impl Appliance for Control {
    fn world(&self) -> Arc<World> {
        self.registrar.world().load_full()
    }

    fn status(&self) -> Status {
        let world = self.world();
        let intent = world.facts.intent();
        let problems = self.problems();
        let first = intent.networks.first();
        let services = self.services();
        let needs_restart = keys(&self.running().waiting);
        Status {
            hostname: intent.hostname.to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            health_status: if problems.is_empty() { "healthy" } else { "degraded" }.to_owned(),
            generation: world.generation.0,
            uptime_seconds: self.uptime.milliseconds() / 1000,
            ready_after_ms: self.ready_after,
            wan_interface: intent.wan_interface.to_string(),
            wan_ip: world.facts.wan().addresses.first().map(|net| net.addr),
            lan_interface: first.map(|net| net.interface.to_string()).unwrap_or_default(),
            lan_ip: first.map_or([0, 0, 0, 0].into(), |net| net.address.addr),
            services: services.into_iter().map(|service| (service.name, service.healthy)).collect(),
            statistics: self.statistics(&world),
            drops: self.drops(),
            circuits: self.circuits(&world),
            upstreams: self.dns_upstreams(),
            blocklists: self.data.blocking().views(),
            problems,
            config_file: self.config_path.display().to_string(),
            needs_restart,
            warnings: world.warnings(),
            draining_processes: self.followers.pids(),
        }
    }

    fn said(&self, app: &App, target: &str, from: Option<IpAddr>) -> Said {
        let world = self.world();
        let route = app.route.as_deref();
        let question = Question {
            world: &world,
            target,
            from,
            settings: &self.data.proxy_settings(),
            counts: &route.map(|route| self.data.app_total(&route.app)).unwrap_or_default(),
            load: &|key| self.data.backend_load(key),
            now: clock::now(),
        };
        let Explanation { verdict, title, why, advice, steps, targets, .. } =
            proximity_proxy::explain(&question, route);
        let steps = steps.into_iter().map(|step| StepView::new(step.step, step.ok, step.says));
        Said { verdict, title, why, advice, steps: steps.collect(), targets }
    }

    fn check_authority(&self, path: &str) -> Result<(), String> {
        daemon::check_authority(path)
    }

    fn backend_load(&self, key: &UpstreamKey, policy: &VhostPolicy, is_sole: bool) -> Option<LoadView> {
        let load = self.data.backend_load(key)?;
        Some(LoadView {
            in_flight: load.in_flight,
            waiting: load.waiting,
            circuit: Condition::of(&load, policy).as_str().to_owned(),
            note: proximity_proxy::note(&load, policy, is_sole),
            failures: load.failures,
            pauses: load.pauses,
            last_failure: load.failing().map(|reason| reason.as_str().to_owned()),
        })
    }

    fn now(&self) -> Timestamp {
        clock::now()
    }

    fn flush_dns(&self, name: Option<&Name>) -> usize {
        let answers = self.forwarder.load().flush(name);
        let what = name.map_or_else(|| "everything".to_owned(), Name::to_string);
        log!(Info, "dns", "answers of upstreams are forgotten", name = what, answers = answers);
        answers
    }

    fn dns_upstreams(&self) -> Vec<UpstreamView> {
        self.forwarder.load().status().upstreams.into_iter().map(forwarding::upstream_view).collect()
    }

    async fn ask_dns(&self, name: Name, rtype: String) -> Result<DnsAnswerView, Problem> {
        let policy = self.data.blocking().published();
        forwarding::ask(self.registrar.world().clone(), self.forwarder.clone(), policy, name, rtype).await
    }

    fn forward_figures(&self, forward: &ResolvedForward) -> ForwardFigures {
        let forwards = self.data.forwards();
        let port = StreamPort { protocol: forward.protocol, number: forward.port };
        let load = forwards.load(port);
        let of_target = |target: &Backend| {
            let load = forwards.target_load(&target.key).filter(|_| forward.proxy.is_some());
            load.map(|load| target_figures(&load)).unwrap_or_default()
        };
        ForwardFigures {
            open: load.open,
            taken: load.taken,
            received: load.received,
            sent: load.sent,
            counted_since: forwards
                .counted_for(port)
                .map(|span| Timestamp(clock::now().0.saturating_sub(span.as_secs()))),
            trouble: forwards.troubles().into_iter().find(|(other, _)| *other == port).map(|(_, why)| why),
            targets: forward.targets.iter().map(of_target).collect(),
            stopped: StreamReason::ALL
                .map(|reason| Stopped {
                    reason: reason.as_str(),
                    says: reason.says(),
                    count: forwards.count_at(port, reason),
                })
                .into(),
        }
    }

    fn services(&self) -> Vec<ServiceView> {
        let world = self.world();
        let running = self.running();
        let config = &running.started;
        let intent = world.facts.intent();
        let dhcp = intent.networks.iter().any(|net| net.dhcp_enabled);
        let dhcp_serving = self.dhcp_serving.load(Ordering::Relaxed);
        let (dns_serving, proxy_serving) = self.data.serving();
        let mut dns_listens = crate::data_plane::dns_addresses(config);
        dns_listens.extend(self.data.wan_dns_addresses().into_iter().map(|ip| SocketAddr::from((ip, 53))));
        let nat = if intent.masquerade { "masquerading" } else { "routing only" };
        let listens = |list: &[std::net::SocketAddr]| {
            list.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
        };
        let ranges: Vec<String> =
            intent.networks.iter().map(|net| format!("{} on {}", net.range, net.interface)).collect();
        vec![
            Control::service("dhcp", (dhcp, dhcp_serving), None, ranges.join(", ")),
            Control::service("dns", (config.dns.enabled, dns_serving), None, listens(&dns_listens)),
            Control::service(
                "proxy",
                (config.proxy.enabled, proxy_serving),
                None,
                listens(&config.proxy.listen),
            ),
            Control::service("nat", (true, true), self.kernel.divergence(), nat.to_owned()),
            Control::service("admin", (true, true), None, listens(&config.admin.listen)),
        ]
    }

    fn metrics(&self) -> String {
        metrics::page(self)
    }

    fn ready(&self) -> Result<(), String> {
        if let Some(reason) = self.kernel.divergence() {
            return Err(format!("the firewall is not as planned: {reason}"));
        }
        match self.registrar.trouble() {
            Some(reason) => Err(format!("no lease or change is granted: {reason}")),
            None => Ok(()),
        }
    }

    async fn edit(&self, edit: Edit) -> Result<Generation, Problem> {
        let edited = self.registrar.edit(edit).await;
        // A port that was added is listened on before anybody is told.
        self.data.follow_world();
        edited
    }

    fn set_service(&self, name: &str, verb: ServiceVerb) -> Result<(), Problem> {
        let config = self.running().started.clone();
        let (stop, start) = (verb != ServiceVerb::Start, verb != ServiceVerb::Stop);
        let started = match name {
            "dhcp" => {
                self.dhcp_serving.store(start, Ordering::Relaxed);
                Ok(())
            }
            "dns" => {
                stop.then(|| self.data.stop_dns());
                if start { self.data.start_dns(&config) } else { Ok(()) }
            }
            "proxy" => {
                stop.then(|| self.data.stop_proxy());
                if start { self.data.start_proxy(&config) } else { Ok(()) }
            }
            "nat" | "admin" => {
                let hint = "it goes with the appliance: stop or restart the whole process";
                return Err(Problem::conflict(format!("{name} is not switched by itself"), hint));
            }
            _ => return Err(Problem::absent("service", name, "proximity status")),
        };
        log!(Info, "appliance", "service switched", service = name, running = start);
        started.map_err(Problem::explained)
    }

    async fn upgrade(&self, binary: Option<PathBuf>) -> Result<Upgraded, Problem> {
        let (request, answer) = Request::new(binary);
        let hint = "wait for it; `proximity status` shows the version that runs";
        self.upgrades
            .try_send(request)
            .map_err(|_| Problem::conflict("an upgrade is under way already", hint))?;
        answer.await.unwrap_or_else(|_| Err(Problem::conflict("another upgrade came first", hint)))
    }

    async fn reload(&self) -> Result<Reloaded, Problem> {
        let parsed = daemon::check_config(&self.config_path).map_err(|error| error.to_string());
        let mut new = match parsed {
            Ok(config) => config,
            Err(report) => {
                log!(
                    Error,
                    "config",
                    "the file is refused, the last good one stays in force",
                    problems = report
                );
                self.running().refused = Some(report.clone());
                let hint =
                    "correct the file and reload; until then the last good configuration stays in force";
                return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, report, hint));
            }
        };
        let waiting = {
            let mut running = self.running();
            let waiting = new.waiting(&running.started);
            // Links and sockets are as they were made; the world must not say otherwise.
            if waiting.iter().any(|waiting| waiting.key.starts_with("network")) {
                new.intent.networks.clone_from(&self.world().facts.intent().networks);
            }
            new.intent.wan_interface.clone_from(&running.started.intent.wan_interface);
            new.intent.proxy_listen.clone_from(&running.started.intent.proxy_listen);
            new.intent.admin_listen.clone_from(&running.started.intent.admin_listen);
            running.waiting.clone_from(&waiting);
            running.refused = None;
            waiting
        };
        log::set_level(new.appliance.log_level);
        let settings = forwarding::settings(&new);
        // What is kept of upstreams' answers, and what is known of their health, is not thrown away for nothing.
        let is_new = *self.forwarder.load().settings() != settings;
        match is_new.then(|| Forwarder::new(&settings)).transpose() {
            Ok(forwarder) => forwarder.into_iter().for_each(|new| self.forwarder.store(Arc::new(new))),
            Err(error) => log!(Error, "dns", "the upstreams stay as they were", error = error),
        }
        self.data.blocking().follow(&new);
        self.data.set_proxy_settings(&new.proxy.settings);
        self.data.set_dns_rates(&new);
        let generation = self.registrar.set_intent(new.intent).await;
        self.data.follow_world();
        // The registrar does nothing for us any more.
        let generation = generation.ok_or_else(Problem::taken_over)?.0;
        log!(Info, "config", "the file is in force", generation = generation);
        Ok(Reloaded {
            generation,
            needs_restart: keys(&waiting),
            warnings: Waiting::advice(&waiting).into_iter().chain(self.world().warnings()).collect(),
        })
    }
}

fn keys(waiting: &[Waiting]) -> Vec<String> {
    waiting.iter().map(|waiting| waiting.key.to_owned()).collect()
}

fn target_figures(load: &BackendLoad) -> TargetFigures {
    let last = match load.last_failure {
        _ if !load.is_known => LastDial::Unknown,
        None => LastDial::Taken { failed_before: None },
        Some(last) => {
            let failure = DialFailure {
                reason: last.reason.as_str(),
                met: proximity_proxy::met(last.reason),
                ago: Span(last.ago_ms / 1000),
            };
            match last.is_past {
                true => LastDial::Taken { failed_before: Some(failure) },
                false => LastDial::Failed(failure),
            }
        }
    };
    TargetFigures { open: load.in_flight.into(), circuit: Some(load.circuit.as_str()), last }
}

/// Whether every target of a forward was probed in vain.
fn is_unhealthy(forward: &ResolvedForward) -> bool {
    let ill = |target: &Backend| target.state() == HealthState::Unhealthy;
    forward.health.is_some() && !forward.targets.is_empty() && forward.targets.iter().all(ill)
}
