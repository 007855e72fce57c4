//! What the API shows, made from the published world.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use proximity_table::{
    App, AppState, Backend, HostKind, Lease, LeaseState, Name, RecordType, Reservation, Source, Timestamp,
    UpstreamKey, VhostPolicy, World,
};
use serde::{Deserialize, Serialize};

use crate::{BlocklistView, LoadView, UpstreamView, VhostView};

/// A list, and how many there are.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Page<T> {
    /// The rows.
    pub items: Vec<T>,
    /// How many rows there are.
    pub total: usize,
}

/// A lease, or a reservation that has none.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct LeaseView {
    pub ip: Ipv4Addr,
    pub mac: String,
    pub hostname: Option<String>,
    pub client_id: Option<String>,
    pub fqdn: Option<String>,
    pub expires: Option<String>,
    /// active, reserved, expired or declined.
    pub state: String,
    pub network: String,
}

/// A reservation.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct ReservationView {
    pub network: String,
    pub mac: String,
    pub ip: Ipv4Addr,
    pub hostname: Option<String>,
    pub source: Source,
}

/// A DNS record.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct RecordView {
    pub name: String,
    #[serde(rename = "type")]
    pub rtype: String,
    pub value: String,
    pub ttl: u32,
    /// config, api, lease, or system for what follows from the configuration.
    pub source: String,
}

/// The joined row of an app.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct AppView {
    pub name: String,
    /// active, reserved, stopped or static.
    pub state: String,
    pub fqdn: Option<String>,
    pub url: Option<String>,
    pub ip: Option<Ipv4Addr>,
    pub mac: Option<String>,
    pub network: Option<String>,
    pub lease_expires: Option<String>,
    pub vhost: Option<VhostView>,
    /// Ports of the appliance that lead to it, such as `tcp/2222`.
    #[serde(default)]
    pub forwards: Vec<String>,
    /// What needs attention, in words.
    pub notes: Vec<String>,
}

/// A part of the appliance.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct ServiceView {
    pub name: String,
    /// running, stopped, disabled or failed.
    pub status: String,
    pub healthy: bool,
    pub detail: String,
}

/// How the appliance is.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Status {
    pub hostname: String,
    pub version: String,
    /// healthy or degraded.
    pub health_status: String,
    pub generation: u64,
    pub uptime_seconds: u64,
    /// Milliseconds from the start of the process to serving.
    pub ready_after_ms: u64,
    pub wan_interface: String,
    pub wan_ip: Option<Ipv4Addr>,
    pub lan_interface: String,
    pub lan_ip: Ipv4Addr,
    pub services: BTreeMap<String, bool>,
    pub statistics: BTreeMap<String, u64>,
    /// Counted drops and refusals by reason, those that never happened left out.
    pub drops: BTreeMap<String, u64>,
    /// Backends that are left alone for their failures or tried again after that, that are busy, or that take up
    /// their share.
    #[serde(default)]
    pub circuits: Vec<CircuitView>,
    /// Who is asked about names of others.
    #[serde(default)]
    pub upstreams: Vec<UpstreamView>,
    /// What is blocked by what.
    #[serde(default)]
    pub blocklists: Vec<BlocklistView>,
    /// What is wrong, in words.
    pub problems: Vec<String>,
    /// Where the configuration comes from.
    pub config_file: String,
    /// What is written in the file and waits for an upgrade or a restart; `problems` has what to do.
    pub needs_restart: Vec<String>,
    /// What works and perhaps is not meant, in words.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// Processes that were replaced by an upgrade and still carry connections.
    #[serde(default)]
    pub draining_processes: Vec<u32>,
}

/// A backend that requests are kept from, or only some of them are carried to.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct CircuitView {
    pub app: String,
    pub backend: String,
    /// open, half_open, queue_full or slow_start.
    pub circuit: String,
    /// The same in words.
    #[serde(default)]
    pub note: String,
    /// What the last request met.
    pub last_failure: Option<String>,
}

/// What an upgrade did.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Upgraded {
    pub binary: String,
    pub old_version: String,
    pub new_version: String,
    /// The process that ends when its last connection does.
    pub old_pid: u32,
    pub pid: u32,
}

/// What a reload did.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Reloaded {
    pub generation: u64,
    /// Keys that wait for an upgrade or a restart.
    pub needs_restart: Vec<String>,
    /// What to do for them, and what works and perhaps is not meant, in words.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// A moment as RFC 3339 in UTC; `None` for what never happens.
pub fn rfc3339(at: Timestamp) -> Option<String> {
    let seconds = i64::try_from(at.0).ok()?;
    jiff::Timestamp::from_second(seconds).ok().map(|at| at.to_string())
}

impl LeaseView {
    /// Every lease by address, and the reservations without one.
    pub fn all(world: &World) -> Vec<LeaseView> {
        let intent = world.facts.intent();
        let ledger = world.facts.ledger();
        let leases = ledger.iter().map(|lease| LeaseView::of(world, lease));
        let idle = intent.reservations.values().map(|(_, reservation)| reservation);
        let idle = idle.filter(|reservation| ledger.at(reservation.ip).is_none());
        let mut views: Vec<LeaseView> = leases.chain(idle.map(|r| LeaseView::reserved(world, r))).collect();
        views.sort_by_key(|view| view.ip);
        views
    }

    fn of(world: &World, lease: &Lease) -> LeaseView {
        let reserved = world.facts.intent().reservation_at(lease.ip).is_some_and(|own| own.mac == lease.mac);
        let state = match lease.state {
            LeaseState::Bound => "active",
            LeaseState::Declined => "declined",
            _ if reserved => "reserved",
            _ => "expired",
        };
        LeaseView {
            ip: lease.ip,
            mac: lease.mac.to_string(),
            hostname: lease.hostname.as_ref().map(ToString::to_string),
            client_id: lease
                .client_id
                .as_ref()
                .map(|id| id.iter().map(|byte| format!("{byte:02x}")).collect()),
            fqdn: world.host_at(lease.ip).map(|host| host.fqdn.to_string()),
            expires: rfc3339(lease.expires),
            state: state.to_owned(),
            network: lease.network.to_string(),
        }
    }

    fn reserved(world: &World, reservation: &Reservation) -> LeaseView {
        LeaseView {
            ip: reservation.ip,
            mac: reservation.mac.to_string(),
            hostname: reservation.hostname.as_ref().map(ToString::to_string),
            client_id: None,
            fqdn: world.host_at(reservation.ip).map(|host| host.fqdn.to_string()),
            expires: None,
            state: "reserved".to_owned(),
            network: reservation.network.to_string(),
        }
    }
}

impl ReservationView {
    /// Every reservation.
    pub fn all(world: &World) -> Vec<ReservationView> {
        let all = world.facts.intent().reservations.values();
        all.map(|(source, reservation)| ReservationView {
            network: reservation.network.to_string(),
            mac: reservation.mac.to_string(),
            ip: reservation.ip,
            hostname: reservation.hostname.as_ref().map(ToString::to_string),
            source: *source,
        })
        .collect()
    }
}

impl RecordView {
    /// Every record that is served, whoever made it.
    pub fn all(world: &World) -> Vec<RecordView> {
        let intent = world.facts.intent();
        let mut views = Vec::new();
        for ((name, rtype), (source, records)) in &intent.records {
            views.extend(records.iter().map(|record| RecordView {
                name: name.to_string(),
                rtype: rtype.to_string(),
                value: record.data.to_string(),
                ttl: record.ttl,
                source: source_text(*source).to_owned(),
            }));
        }
        for (name, node) in world.zones.iter() {
            let Some(name) = Name::from_wire(name) else { continue };
            for rrset in node.rrsets() {
                let derived = |rtype: RecordType| {
                    rrset.rtype == rtype.code() && !intent.records.contains_key(&(name.clone(), rtype))
                };
                let text = |data: &[u8]| match <[u8; 4]>::try_from(data) {
                    Ok(octets) if rrset.rtype == RecordType::A.code() => {
                        Some(Ipv4Addr::from(octets).to_string())
                    }
                    _ => Name::from_wire(data).map(|name| format!("{name}.")),
                };
                let Some(rtype) =
                    [RecordType::A, RecordType::PTR, RecordType::NS].into_iter().find(|r| derived(*r))
                else {
                    continue;
                };
                let leased = rrset.expires != Timestamp::NEVER;
                views.extend(rrset.rdata().filter_map(text).map(|value| RecordView {
                    name: name.to_string(),
                    rtype: rtype.to_string(),
                    value,
                    ttl: rrset.ttl,
                    source: if leased { "lease" } else { "system" }.to_owned(),
                }));
            }
        }
        views.sort_by(|a, b| (&a.name, &a.rtype, &a.value).cmp(&(&b.name, &b.rtype, &b.value)));
        views
    }
}

impl AppView {
    /// Every app by name.
    pub fn all(
        world: &World,
        load: impl Fn(&UpstreamKey, &VhostPolicy, bool) -> Option<LoadView>,
    ) -> Vec<AppView> {
        let mut views: Vec<AppView> = world.apps().iter().map(|app| AppView::of(world, app, &load)).collect();
        for check in views.iter_mut().filter_map(|view| view.vhost.as_mut()).flat_map(VhostView::checks) {
            check.load = None;
        }
        views
    }

    /// The joined row. `load` tells what requests found of a backend, by the policy of its vhost and whether it is
    /// the only one.
    pub fn of(
        world: &World,
        app: &App,
        load: impl Fn(&UpstreamKey, &VhostPolicy, bool) -> Option<LoadView>,
    ) -> AppView {
        let host = app.host.as_deref();
        let route = app.route.as_deref();
        let vhost = route.and_then(|route| VhostView::of(world, route));
        let vhost = vhost
            .zip(route)
            .map(|(vhost, route)| vhost.with_loads(|key, is_sole| load(key, &route.policy, is_sole)));
        let mut notes = Vec::new();
        if let Some(host) = host.filter(|host| host.contenders > 0) {
            let others = host.contenders;
            notes.push(format!(
                "{others} more on {} call themselves {}: rename them",
                host.network.name, host.label
            ));
        }
        if let Some(vhost) = host.and_then(|host| world.facts.name_taken(host)) {
            let name = &vhost.app_name;
            notes.push(format!(
                "the vhost `{name}` has this app's own name: whoever asks the proxy for it gets that vhost"
            ));
        }
        if app.state() == AppState::Stopped {
            notes.push("it holds no lease: start the container".to_owned());
        }
        if let Some(reason) =
            vhost.as_ref().filter(|v| v.health.state != "healthy").and_then(|v| v.health.reason.clone())
        {
            notes.push(reason);
        }
        notes.extend(vhost.iter().flat_map(|vhost| vhost.notes.iter().cloned()));
        let mut forwards = Vec::new();
        for forward in world.forwards.iter() {
            let here =
                |target: &&Backend| app.own_host().is_some_and(|host| host.ip == *target.key.addr.ip());
            let Some(target) = forward.targets.iter().find(here) else { continue };
            let name = forward.health_name();
            let reason = target.health.as_ref().and_then(|health| health.reason.as_ref());
            notes.extend(reason.map(|reason| format!("{name}: {reason}")));
            forwards.push(name.to_string());
        }
        AppView {
            name: app.name.to_string(),
            state: app.state().as_str().to_owned(),
            fqdn: host.map(|host| host.fqdn.to_string()),
            url: vhost.as_ref().and_then(|vhost| vhost.url.clone()),
            ip: host.map(|host| host.ip),
            mac: host.and_then(|host| host.mac).map(|mac| mac.to_string()),
            network: host.map(|host| host.network.name.to_string()),
            lease_expires: host
                .filter(|host| host.kind != HostKind::Appliance)
                .and_then(|host| host.lease.as_ref())
                .and_then(|lease| rfc3339(lease.expires)),
            vhost,
            forwards,
            notes,
        }
    }
}

fn source_text(source: Source) -> &'static str {
    match source {
        Source::Config => "config",
        Source::Api => "api",
        Source::Lease => "lease",
    }
}
