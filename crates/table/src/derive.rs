//! The pure rules by which facts become hosts, routes and DNS data, one name at a time.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;

use crate::split_view::{self, FIXED_TTL, MOVING_TTL};
use crate::{
    Action, Apex, Backend, BackendKey, BackendProtocol, BackendTarget, BackendTls, Facts, Forward,
    HealthPolicy, Host, HostKind, Label, Lease, Ledger, Name, Network, PathRoute, ProbeKey, Question, RRset,
    RecordType, Redirect, Reservation, ResolvedForward, Route, Service, Source, Timestamp, Verdict, Vhost,
    VhostPolicy, Zones,
};

/// The zones we answer for: each network's domain and reverse zone, and the appliance's own domain.
pub fn apexes(facts: &Facts) -> Vec<Apex> {
    let intent = facts.intent();
    let primary = appliance_name(facts);
    let forward = intent.networks.iter().map(|net| (net.domain.clone(), false));
    let reverse = intent.networks.iter().map(|net| (Name::reverse_zone(net.address), true));
    let names: BTreeSet<(Name, bool)> =
        std::iter::once((intent.domain.clone(), false)).chain(forward).chain(reverse).collect();
    names.into_iter().map(|(name, reverse)| Apex { name, primary: primary.clone(), reverse }).collect()
}

/// Every name that something may be derived for.
pub fn all_names(facts: &Facts) -> BTreeSet<Name> {
    let intent = facts.intent();
    let mut names: BTreeSet<Name> = apexes(facts).into_iter().map(|apex| apex.name).collect();
    names.insert(appliance_name(facts));
    names.extend(intent.records.keys().map(|(name, _)| name.clone()));
    names.extend(intent.networks.iter().map(|net| Name::reverse(net.address.addr)));
    for (_, vhost) in intent.vhosts.values() {
        names.extend(vhost.names().cloned());
    }
    for (_, reservation) in intent.reservations.values() {
        names.insert(Name::reverse(reservation.ip));
        names.extend(fqdn(facts, &reservation.network, reservation.hostname.as_ref()));
    }
    for lease in facts.ledger().iter() {
        names.insert(Name::reverse(lease.ip));
        names.extend(fqdn(facts, &lease.network, lease.hostname.as_ref()));
    }
    names
}

/// Who owns a host name among the leases: whoever has held it longest of those that are there; if nobody is
/// there, whoever left last.
pub fn owner<'a>(ledger: &'a Ledger, network: &Arc<str>, hostname: &Label) -> Option<&'a Arc<Lease>> {
    let mut last_gone: Option<&Arc<Lease>> = None;
    for lease in ledger.of_hostname(network, hostname) {
        if lease.is_bound() {
            return Some(lease);
        }
        if last_gone.is_none_or(|gone| gone.expires <= lease.expires) {
            last_gone = Some(lease);
        }
    }
    last_gone
}

/// The host that owns an absolute name: the appliance before a reservation before a lease.
pub fn host(facts: &Facts, name: &Name) -> Option<Host> {
    let intent = facts.intent();
    if *name == appliance_name(facts) {
        let network =
            intent.networks.iter().find(|net| net.domain == intent.domain).or(intent.networks.first())?;
        return Some(Host {
            fqdn: name.clone(),
            label: intent.hostname.clone(),
            network: network.clone(),
            ip: network.address.addr,
            kind: HostKind::Appliance,
            lease: None,
            mac: None,
            contenders: 0,
        });
    }
    let label: Label = name.first_label().parse().ok()?;
    let parent = name.parent()?;
    intent
        .networks
        .iter()
        .filter(|net| net.domain == parent)
        .find_map(|net| host_on(facts, net, &label, name))
}

/// The host of an app by its name alone, on the first network that has it.
pub fn app_host(facts: &Facts, label: &Label) -> Option<Host> {
    let mut found =
        facts.intent().networks.iter().filter_map(|net| host(facts, &net.domain.child(label).ok()?));
    let first = found.next()?;
    if first.resolves() { Some(first) } else { found.find(Host::resolves).or(Some(first)) }
}

/// What the proxy does with a name: a vhost that was asked for wins over one made from a lease.
pub fn route(facts: &Facts, name: &Name, host: Option<&Host>) -> Option<Route> {
    if let Some((source, vhost)) = facts.claimant(name) {
        return Some(vhost_route(facts, *source, vhost));
    }
    let host = host?;
    if host.kind == HostKind::Appliance || !host.network.auto_vhost.enabled {
        return None;
    }
    let app: Arc<str> = host.label.as_str().into();
    let addrs = host.network.auto_vhost.ports.iter().map(|&port| SocketAddrV4::new(host.ip, port));
    let candidates: Vec<Backend> =
        addrs.map(|addr| backend(facts, &app, addr, Question::default())).collect();
    let verdict = match host.lease.as_ref().is_some_and(|lease| lease.is_bound()) {
        false => Verdict::Stopped,
        true if candidates.iter().any(Backend::was_proven) => Verdict::Ready,
        true => Verdict::Starting,
    };
    let service = Service {
        protocol: BackendProtocol::Http,
        tls: BackendTls::default(),
        health: HealthPolicy::default().shared(),
        candidates,
        verdict,
    };
    Some(Route {
        app,
        hostname: name.clone(),
        source: Source::Lease,
        policy: VhostPolicy::unchanged(),
        root: Action::Proxy(service),
        paths: Vec::new(),
        auth_backend: None,
    })
}

/// The RRsets of a name. What the administrator wrote wins over what follows from hosts and vhosts. A name outside
/// our zones has what was written of it, and nothing else.
pub fn rrsets(
    facts: &Facts,
    zones: &Zones,
    name: &Name,
    host: Option<&Host>,
    route: Option<&Route>,
) -> Vec<RRset> {
    let intent = facts.intent();
    let apex = zones.apex_of(name.as_wire());
    let mut rrsets: Vec<RRset> = intent
        .records_of(name)
        .map(|(rtype, (_, records))| RRset {
            rtype: rtype.code(),
            ttl: records.iter().map(|record| record.ttl).min().unwrap_or(FIXED_TTL),
            expires: Timestamp::NEVER,
            rdata: records.iter().map(|record| record.data.to_wire().into()).collect(),
        })
        .collect();
    let at_apex = apex.filter(|apex| apex.name == *name);
    if let Some(at) = rrsets.iter().position(|rrset| rrset.rtype == RecordType::CNAME.code())
        && at_apex.is_none()
    {
        // RFC 1034 §3.6.2: no other data beside a CNAME.
        return vec![rrsets.swap_remove(at)];
    }
    rrsets.retain(|rrset| rrset.rtype != RecordType::CNAME.code());
    if !intent.may_be_delegated(name) {
        rrsets.retain(|rrset| rrset.rtype != RecordType::NS.code());
    }
    let has = |rrsets: &[RRset], rtype: RecordType| rrsets.iter().any(|rrset| rrset.rtype == rtype.code());
    if !has(&rrsets, RecordType::A)
        && !has(&rrsets, RecordType::AAAA)
        && let Some(address) = split_view::address(facts, apex, name, host, route)
    {
        rrsets.push(address);
    }
    if apex.is_some_and(|apex| apex.reverse)
        && !has(&rrsets, RecordType::PTR)
        && let Some(pointer) = pointer(facts, name)
    {
        rrsets.push(pointer);
    }
    if let Some(apex) = at_apex {
        rrsets.push(RRset::name(RecordType::NS.code(), &apex.primary, FIXED_TTL, Timestamp::NEVER));
    }
    rrsets
}

/// Every port forward with the targets that have an address, by protocol and port.
pub fn forwards(facts: &Facts) -> impl Iterator<Item = ResolvedForward> {
    facts.intent().forwards.values().map(|(_, forward)| {
        let target = |target| forward_target(facts, forward, &target);
        ResolvedForward {
            protocol: forward.protocol,
            port: forward.port,
            health: forward.health.clone(),
            proxy: forward.proxy.clone(),
            targets: forward.targets().filter_map(target).collect(),
        }
    })
}

/// The names whose route a probe of this backend of this app bears on.
pub fn names_of_app(facts: &Facts, app: &str, key: BackendKey) -> Vec<Name> {
    let mut names = Vec::new();
    if let Ok(label) = app.parse::<Label>() {
        if let Some((_, vhost)) = facts.intent().vhosts.get(&label) {
            names.extend(vhost.names().cloned());
        }
        if let Some(network) = facts.intent().network_of(*key.addr.ip()) {
            names.extend(network.domain.child(&label));
        }
    }
    names
}

fn host_on(facts: &Facts, network: &Arc<Network>, label: &Label, fqdn: &Name) -> Option<Host> {
    let ledger = facts.ledger();
    let held = || ledger.of_hostname(&network.name, label);
    let make = |ip, kind, mac, lease: Option<&Arc<Lease>>| Host {
        fqdn: fqdn.clone(),
        label: label.clone(),
        network: network.clone(),
        ip,
        kind,
        contenders: held().filter(|lease| lease.is_bound() && lease.mac != mac).count(),
        mac: Some(mac),
        lease: lease.cloned(),
    };
    if let Some(reservation) = reservation_named(facts, &network.name, label) {
        let lease = ledger.at(reservation.ip).filter(|lease| lease.mac == reservation.mac);
        return Some(make(reservation.ip, HostKind::Reserved, reservation.mac, lease));
    }
    let lease = owner(ledger, &network.name, label)?;
    Some(make(lease.ip, HostKind::Leased, lease.mac, Some(lease)))
}

fn reservation_named<'a>(facts: &'a Facts, network: &str, label: &Label) -> Option<&'a Arc<Reservation>> {
    let mut all = facts.intent().reservations.values().map(|(_, reservation)| reservation);
    all.find(|reservation| &*reservation.network == network && reservation.hostname.as_ref() == Some(label))
}

fn vhost_route(facts: &Facts, source: Source, vhost: &Vhost) -> Route {
    let app: Arc<str> = vhost.app_name.as_str().into();
    let proxy = |targets: &[BackendTarget], protocol, tls: &BackendTls, health: &HealthPolicy| {
        let mut tls = tls.clone();
        if protocol == BackendProtocol::Https && tls.server_name.is_none() {
            tls.server_name = vhost.hostname.visited().map(|name| name.to_string());
        }
        let question = Question::new(protocol, &tls, health);
        let candidates: Vec<Backend> =
            targets.iter().filter_map(|target| target_backend(facts, &app, target, question)).collect();
        let verdict = match (vhost.enabled, candidates.is_empty()) {
            (false, _) => Verdict::Disabled,
            (true, true) => Verdict::Stopped,
            (true, false) => Verdict::Ready,
        };
        Action::Proxy(Service { protocol, tls, health: health.shared(), candidates, verdict })
    };
    // A disabled vhost sends nobody anywhere: it has neither redirects nor paths.
    let sent = |redirect: &Option<Redirect>| redirect.clone().filter(|_| vhost.enabled).map(Action::Redirect);
    let mut paths: Vec<PathRoute> = vhost
        .paths
        .iter()
        .filter(|_| vhost.enabled)
        .map(|path| PathRoute {
            prefix: path.prefix.as_str().into(),
            strip: path.strip,
            action: sent(&path.redirect)
                .unwrap_or_else(|| proxy(&path.backends, path.protocol, &path.tls, &path.health)),
        })
        .collect();
    paths.sort_by(|a, b| (b.prefix.len(), &a.prefix).cmp(&(a.prefix.len(), &b.prefix)));
    let auth = vhost.policy.forward_auth.as_ref();
    Route {
        root: sent(&vhost.redirect)
            .unwrap_or_else(|| proxy(&vhost.backends, vhost.protocol, &vhost.tls, &vhost.health)),
        paths,
        auth_backend: auth.and_then(|auth| target_backend(facts, &app, &auth.to, Question::default())),
        hostname: vhost.hostname.clone(),
        source,
        policy: vhost.policy.clone(),
        app,
    }
}

/// The backend that a target of a forward stands for.
pub fn forward_target(facts: &Facts, forward: &Forward, target: &BackendTarget) -> Option<Backend> {
    let question = Question::plain(forward.health.as_deref());
    target_backend(facts, &forward.health_name(), target, question)
}

/// The backend that a target stands for, with the verdict on what the probes of an app ask it.
pub fn target_backend(
    facts: &Facts,
    app: &Arc<str>,
    target: &BackendTarget,
    question: Question,
) -> Option<Backend> {
    let addr = match target {
        BackendTarget::Address(addr) => *addr,
        BackendTarget::App { name, port } => {
            let host = app_host(facts, name).filter(Host::resolves)?;
            SocketAddrV4::new(host.ip, *port)
        }
    };
    Some(backend(facts, app, addr, question))
}

fn backend(facts: &Facts, app: &Arc<str>, addr: SocketAddrV4, question: Question) -> Backend {
    let epoch = facts.ledger().bound_at(*addr.ip()).map_or(0, |lease| lease.epoch);
    let key = BackendKey { addr, epoch };
    Backend { key, health: facts.health(app, ProbeKey { backend: key, question }).cloned() }
}

fn pointer(facts: &Facts, name: &Name) -> Option<RRset> {
    let ip = reverse_address(name)?;
    let intent = facts.intent();
    let network = intent.network_of(ip)?;
    let target =
        |target: &Name, expires| Some(RRset::name(RecordType::PTR.code(), target, MOVING_TTL, expires));
    if ip == network.address.addr {
        return target(&appliance_name(facts), Timestamp::NEVER);
    }
    if let Some(reservation) = intent.reservation_at(ip)
        && let Some(name) = fqdn(facts, &reservation.network, reservation.hostname.as_ref())
    {
        return target(&name, Timestamp::NEVER);
    }
    let lease = facts.ledger().bound_at(ip)?;
    let name = fqdn(facts, &lease.network, lease.hostname.as_ref())?;
    // Only the owner of a name is pointed to it: A and PTR agree.
    host(facts, &name).filter(|host| host.ip == ip).and_then(|host| target(&host.fqdn, lease.expires))
}

fn reverse_address(name: &Name) -> Option<Ipv4Addr> {
    let text = name.to_string();
    let mut octets = text.strip_suffix(".in-addr.arpa")?.split('.').map(|octet| octet.parse::<u8>().ok());
    let [d, c, b, a] = [octets.next()??, octets.next()??, octets.next()??, octets.next()??];
    octets.next().is_none().then(|| Ipv4Addr::new(a, b, c, d))
}

/// The appliance's own address nearest to a name.
pub fn gateway(facts: &Facts, name: &Name) -> Ipv4Addr {
    let networks = &facts.intent().networks;
    let closest =
        networks.iter().filter(|net| name.is_in(&net.domain)).max_by_key(|net| net.domain.as_wire().len());
    closest.or(networks.first()).map_or(Ipv4Addr::UNSPECIFIED, |net| net.address.addr)
}

fn appliance_name(facts: &Facts) -> Name {
    let intent = facts.intent();
    intent.domain.child(&intent.hostname).unwrap_or_else(|_| intent.domain.clone())
}

fn fqdn(facts: &Facts, network: &str, hostname: Option<&Label>) -> Option<Name> {
    facts.intent().network(network)?.domain.child(hostname?).ok()
}
