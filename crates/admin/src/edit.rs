//! Changes as functions of the facts. Each looks at what is there and answers with the changes to make, or
//! with why not.

use std::net::Ipv4Addr;

use proximity_config::Spelling;
use proximity_table::{
    Change, Facts, Forward, Label, LeaseState, Mac, Name, Protocol, Record, RecordType, Reservation, Source,
    Vhost, VhostPolicy,
};

use crate::Problem;

/// Most records of one name and type: an answer that fits a TCP message.
const MOST_RECORDS: usize = 256;
/// Most objects of a kind that the API takes.
const MOST_OBJECTS: usize = 100_000;

/// Creates a vhost, or with `replace` puts it in the place of one made by the API. `spelling` is that of the problem.
pub fn put_vhost(
    facts: &Facts,
    vhost: Vhost,
    replace: bool,
    spelling: Spelling,
) -> Result<Vec<Change>, Problem> {
    let vhosts = &facts.intent().vhosts;
    let name = vhost.app_name.to_string();
    let there = vhosts.get(&vhost.app_name);
    if let Some((Source::Config, _)) = there {
        return Err(Problem::owned_by_file("vhost", &name));
    }
    let vhost = with_kept_hashes(vhost, there.map(|(_, there)| &**there))?;
    match there {
        Some((_, same)) if **same == vhost => return Ok(Vec::new()),
        Some(_) if !replace => {
            let hint = match spelling {
                Spelling::Line => format!("`proximity vhost set {name} …` changes it"),
                _ => format!("change it with PUT /vhosts/{name}, or `proximity vhost set {name} …`"),
            };
            return Err(Problem::conflict(format!("there is a vhost `{name}` already"), hint));
        }
        None if vhosts.len() >= MOST_OBJECTS => return Err(full("vhosts")),
        _ => {}
    }
    let default = facts.default_vhost().filter(|(_, other)| other.app_name != vhost.app_name);
    if let Some((_, other)) = default.filter(|_| vhost.default) {
        let detail = format!("unknown hosts go to the vhost `{}` already", other.app_name);
        let hint = format!("`proximity vhost set {} --set default=false` first", other.app_name);
        return Err(Problem::conflict(detail, hint));
    }
    for hostname in vhost.names() {
        if let Some((_, other)) =
            facts.claimant(hostname).filter(|(_, other)| other.app_name != vhost.app_name)
        {
            let detail = format!("{hostname} belongs to the vhost `{}`", other.app_name);
            return Err(Problem::conflict(detail, "choose another host name"));
        }
    }
    if let Some(circle) = facts.circle(&vhost) {
        return Err(Problem::explained(circle));
    }
    Ok(vec![Change::Vhost(Source::Api, vhost.into())])
}

/// Removes a vhost made by the API.
pub fn remove_vhost(facts: &Facts, name: &str) -> Result<Vec<Change>, Problem> {
    let label: Label = name.parse().map_err(|_| Problem::absent("vhost", name, "proximity vhost ls"))?;
    match facts.intent().vhosts.get(&label) {
        Some((Source::Config, _)) => Err(Problem::owned_by_file("vhost", name)),
        Some(_) => Ok(vec![Change::RemoveVhost(label)]),
        None if facts.intent().networks.iter().any(|net| has_lease(facts, &net.name, &label)) => {
            let hint =
                "it comes and goes with the lease; set network.auto_vhost.enabled = false to have none";
            Err(Problem::conflict(format!("the vhost `{name}` is made from a lease"), hint))
        }
        None => Err(Problem::absent("vhost", name, "proximity vhost ls")),
    }
}

/// Forgets a lease: the address, the name and the row are free at once.
pub fn remove_lease(facts: &Facts, ip: Ipv4Addr) -> Result<Vec<Change>, Problem> {
    match facts.ledger().at(ip) {
        Some(_) => Ok(vec![Change::ForgetLease(ip)]),
        None => Err(Problem::absent("lease", &ip.to_string(), "proximity lease ls")),
    }
}

/// Makes a reservation.
pub fn put_reservation(facts: &Facts, new: Reservation) -> Result<Vec<Change>, Problem> {
    let reservations = &facts.intent().reservations;
    let key = (new.network.clone(), new.mac);
    match reservations.get(&key) {
        Some((Source::Config, _)) => return Err(Problem::owned_by_file("reservation", &new.mac.to_string())),
        Some((_, same)) if **same == new => return Ok(Vec::new()),
        Some((_, other)) => {
            let hint = format!("remove it first: `proximity lease unreserve {}`", new.mac);
            return Err(Problem::conflict(format!("{} has a reservation for {}", new.mac, other.ip), hint));
        }
        None if reservations.len() >= MOST_OBJECTS => return Err(full("reservations")),
        _ => {}
    }
    for (_, other) in
        reservations.values().filter(|(_, other)| other.network == new.network && other.mac != new.mac)
    {
        if other.ip == new.ip {
            let detail = format!("{} is reserved for {}", other.ip, other.mac);
            return Err(Problem::conflict(detail, "choose another address, or remove that reservation"));
        }
        if other.hostname.is_some() && other.hostname == new.hostname {
            return Err(Problem::conflict(
                format!("{} has that name", other.mac),
                "choose another host name",
            ));
        }
    }
    let holder = facts.ledger().bound_at(new.ip).filter(|lease| lease.mac != new.mac);
    if let Some(lease) = holder {
        let name = lease.hostname.as_ref().map_or_else(|| lease.mac.to_string(), ToString::to_string);
        let hint = "choose another address, or release that lease first";
        return Err(Problem::conflict(format!("{} is leased to {name}", new.ip), hint));
    }
    if let Some(hostname) = &new.hostname
        && let Some(owner) = facts
            .ledger()
            .of_hostname(&new.network, hostname)
            .find(|lease| lease.is_bound() && lease.mac != new.mac)
    {
        let detail = format!("{hostname} is the name of {} ({})", owner.ip, owner.mac);
        return Err(Problem::conflict(detail, "choose another host name, or rename that app first"));
    }
    let mut changes = vec![Change::Reservation(Source::Api, new.clone())];
    // A lease on the very address takes the reserved name at once, not at its next renewal.
    if let Some(lease) = facts.ledger().bound_at(new.ip).filter(|_| new.hostname.is_some()) {
        let renamed = proximity_table::Lease { hostname: new.hostname, ..(**lease).clone() };
        changes.push(Change::Lease(renamed));
    }
    Ok(changes)
}

/// Removes a reservation made by the API, on whatever network it is.
pub fn remove_reservation(facts: &Facts, mac: &str) -> Result<Vec<Change>, Problem> {
    let parsed: Mac = mac.parse().map_err(Problem::explained)?;
    let mut found = facts.intent().reservations.iter().filter(|((_, key), _)| *key == parsed);
    match found.next() {
        Some((_, (Source::Config, _))) => Err(Problem::owned_by_file("reservation", mac)),
        Some(((network, mac), _)) => Ok(vec![Change::RemoveReservation(network.clone(), *mac)]),
        None => Err(Problem::absent("reservation for", mac, "proximity lease ls")),
    }
}

/// Adds a record to the RRset of its name and type.
pub fn add_record(facts: &Facts, new: Record) -> Result<Vec<Change>, Problem> {
    let all = &facts.intent().records;
    let rtype = new.data.rtype();
    let label = format!("{} {rtype}", new.name);
    if let Some(trouble) = facts.intent().record_trouble(&new.name, rtype) {
        return Err(Problem::explained(trouble));
    }
    let at_name = |kind: RecordType| all.contains_key(&(new.name.clone(), kind));
    let others = facts.intent().records_of(&new.name).count();
    // RFC 1034 §3.6.2: no other data beside a CNAME.
    let clash = if rtype == RecordType::CNAME { others > 0 } else { at_name(RecordType::CNAME) };
    if clash {
        let detail = format!("{} would have a CNAME beside other records", new.name);
        return Err(Problem::conflict(detail, "remove the records of that name first"));
    }
    let mut records = match all.get(&(new.name.clone(), rtype)) {
        Some((Source::Config, _)) => return Err(Problem::owned_by_file("record", &label)),
        Some((_, records)) => (**records).clone(),
        None if all.len() >= MOST_OBJECTS => return Err(full("records")),
        None => Vec::new(),
    };
    records.retain(|record| record.data != new.data);
    if records.len() >= MOST_RECORDS {
        return Err(Problem::conflict(format!("{label} has {MOST_RECORDS} records"), "remove some of them"));
    }
    let name = new.name.clone();
    records.push(new);
    Ok(vec![Change::Records(Source::Api, name, rtype, records)])
}

/// Removes the records of a name and type that were made by the API.
pub fn remove_records(facts: &Facts, name: &str, rtype: &str) -> Result<Vec<Change>, Problem> {
    let rtype: RecordType = rtype.parse().map_err(Problem::explained)?;
    let domain = &facts.intent().domain;
    // Names are listed absolute and without a final dot, so both readings are tried.
    let readings = [name.parse::<Name>(), Name::relative(name, domain)];
    for name in readings.into_iter().flatten() {
        match facts.intent().records.get(&(name.clone(), rtype)) {
            Some((Source::Config, _)) => {
                return Err(Problem::owned_by_file("record", &format!("{name} {rtype}")));
            }
            Some(_) => return Ok(vec![Change::RemoveRecords(name, rtype)]),
            None => {}
        }
    }
    let hint = "records of leases and of the system go with what they come from; `proximity dns ls` shows each source";
    let detail = format!("there is no record `{name} {rtype}` that somebody added");
    Err(Problem::new(axum::http::StatusCode::NOT_FOUND, detail, hint))
}

/// Makes a port forward.
pub fn put_forward(facts: &Facts, new: Forward) -> Result<Vec<Change>, Problem> {
    let label = format!("{}/{}", new.protocol.as_str(), new.port);
    if let Some(conflict) = facts.intent().forward_conflict(&new) {
        let hint = "choose another port, and an app or its address as the target";
        return Err(Problem::conflict(format!("{label} cannot be forwarded: {conflict}"), hint));
    }
    match facts.intent().forwards.get(&(new.protocol, new.port)) {
        Some((Source::Config, _)) => Err(Problem::owned_by_file("forward", &label)),
        Some((_, same)) if **same == new => Ok(Vec::new()),
        Some(_) => {
            let hint = format!("`proximity forward rm {} --protocol {}` first", new.port, new.protocol);
            Err(Problem::conflict(format!("{label} is forwarded already"), hint))
        }
        None => Ok(vec![Change::Forward(Source::Api, new)]),
    }
}

/// Removes a port forward made by the API.
pub fn remove_forward(facts: &Facts, protocol: Protocol, port: u16) -> Result<Vec<Change>, Problem> {
    let label = format!("{}/{port}", protocol.as_str());
    match facts.intent().forwards.get(&(protocol, port)) {
        Some((Source::Config, _)) => Err(Problem::owned_by_file("forward", &label)),
        Some(_) => Ok(vec![Change::RemoveForward(protocol, port)]),
        None => Err(Problem::absent("forward", &label, "proximity forward ls")),
    }
}

/// Users that come without a hash keep the one that they have: hashes are never shown, so whoever sends a vhost
/// back as it was shown has none.
fn with_kept_hashes(mut vhost: Vhost, there: Option<&Vhost>) -> Result<Vhost, Problem> {
    let Some(auth) = vhost.policy.basic_auth.as_ref() else { return Ok(vhost) };
    if auth.users.iter().all(|user| !user.hash.is_empty()) {
        return Ok(vhost);
    }
    let mut auth = auth.clone();
    let known = there.and_then(|there| there.policy.basic_auth.as_ref());
    for user in auth.users.iter_mut().filter(|user| user.hash.is_empty()) {
        let same = known.and_then(|known| known.users.iter().find(|known| known.name == user.name));
        let Some(same) = same else {
            let detail = format!(
                "the vhost `{}` has no user `{}` whose hash could be kept",
                vhost.app_name, user.name
            );
            return Err(Problem::invalid(detail, "give the hash, such as { \"alice\": \"$2b$…\" }"));
        };
        user.hash.clone_from(&same.hash);
    }
    let policy = VhostPolicy { basic_auth: Some(auth), ..(*vhost.policy).clone() };
    vhost.policy = policy.shared();
    Ok(vhost)
}

fn has_lease(facts: &Facts, network: &std::sync::Arc<str>, label: &Label) -> bool {
    facts.ledger().of_hostname(network, label).any(|lease| lease.state != LeaseState::Declined)
}

fn full(kind: &str) -> Problem {
    Problem::conflict(format!("there are {MOST_OBJECTS} {kind}"), "remove some of them")
}
