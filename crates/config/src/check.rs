//! What only the whole configuration shows.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;

use proximity_table::{Name, Network};
use toml_edit::{Item, TableLike};

use crate::places::{Places, says};
use crate::waiting::overlap;
use crate::{Config, Report};

pub fn all(config: &Config, places: Places<'_>, report: &Report) {
    let check = Check { config, places, report };
    check.networks();
    check.vhosts();
    check.records();
    check.forwards();
    check.listens();
}

/// A configuration, and where its problems are told.
struct Check<'a> {
    config: &'a Config,
    places: Places<'a>,
    report: &'a Report,
}

impl Check<'_> {
    fn add(&self, at: Option<Range<usize>>, message: String, hint: &str) {
        self.report.add(at, message, hint.to_owned());
    }

    fn of_vhost(&self, app: &str, keys: &[&str]) -> Option<Range<usize>> {
        self.places.of("vhost", |vhost| says(vhost, "app_name", app), keys)
    }

    /// Networks on the interface of the WAN.
    fn networks(&self) {
        let intent = &self.config.intent;
        let on_wan = |network: &Arc<Network>| network.interface == intent.wan_interface;
        if let Some(at) = intent.networks.iter().position(on_wan) {
            let network = &intent.networks[at];
            let message = format!("network `{}` and the WAN both use {}", network.name, network.interface);
            let place = self
                .places
                .nth("network", at, &["interface"])
                .or_else(|| self.places.key("wan", "interface"));
            self.add(
                place,
                message,
                "give the app network its own interface; with one interface, add a second NIC to the LXC",
            );
        }
    }

    /// Host names and the default place that two vhosts want, and vhosts that lead to themselves.
    fn vhosts(&self) {
        let intent = &self.config.intent;
        let mut claims: BTreeMap<&Name, &str> = BTreeMap::new();
        for (_, vhost) in intent.vhosts.values() {
            for name in vhost.names() {
                if let Some(other) = claims.insert(name, vhost.app_name.as_str()) {
                    let message =
                        format!("{name} is claimed by the vhosts `{other}` and `{}`", vhost.app_name);
                    let key = if vhost.hostname == *name { "hostname" } else { "aliases" };
                    self.add(
                        self.of_vhost(vhost.app_name.as_str(), &[key]),
                        message,
                        "give each host name to one vhost",
                    );
                }
            }
        }
        let mut defaults = intent.vhosts.values().filter(|(_, vhost)| vhost.default);
        if let (Some((_, first)), Some((_, second))) = (defaults.next(), defaults.next()) {
            let message =
                format!("the vhosts `{}` and `{}` are both default", first.app_name, second.app_name);
            let place = self.of_vhost(second.app_name.as_str(), &["default"]);
            self.add(place, message, "write default = true in one of them");
        }
        for circle in intent.circles(&self.config.wan_addresses()) {
            let text = circle.to_string();
            let (message, hint) = text.rsplit_once(": ").unwrap_or((&text, "lead it elsewhere"));
            self.add(self.of_vhost(circle.vhost(), &[]), message.to_owned(), hint);
        }
    }

    /// Records that nobody could be answered with.
    fn records(&self) {
        let intent = &self.config.intent;
        for ((name, rtype), (_, records)) in &intent.records {
            let place = || {
                let is_name = |text: &str| Name::owner(text, &intent.domain).is_ok_and(|own| own == *name);
                let named =
                    |record: &dyn TableLike| record.get("name").and_then(Item::as_str).is_some_and(is_name);
                let is_meant =
                    |record: &dyn TableLike| named(record) && says(record, "type", &rtype.to_string());
                self.places.of("dns.record", is_meant, &["name"])
            };
            if let Some(trouble) = intent.record_trouble(name, *rtype) {
                let (message, hint) = trouble.rsplit_once(": ").unwrap_or((&trouble, "choose another name"));
                self.add(place(), format!("the record {name} {rtype}: {message}"), hint);
            }
            if *rtype == proximity_table::RecordType::CNAME {
                let others = intent.records.keys().filter(|(other, _)| other == name).count();
                if others > 1 || records.len() > 1 {
                    self.add(
                        place(),
                        format!("{name} has a CNAME beside other records"),
                        "RFC 1034 §3.6.2: keep the CNAME alone",
                    );
                }
            }
        }
    }

    /// Ports that cannot be forwarded.
    fn forwards(&self) {
        let intent = &self.config.intent;
        for (_, forward) in intent.forwards.values() {
            if let Some(conflict) = intent.forward_conflict(forward) {
                let message =
                    format!("{} port {} cannot be forwarded: {conflict}", forward.protocol, forward.port);
                let is_meant = |table: &dyn TableLike| {
                    let protocol = table.get("protocol").and_then(Item::as_str).unwrap_or("tcp");
                    protocol == forward.protocol.as_str() && says(table, "port", &forward.port.to_string())
                };
                let key =
                    if intent.own_ports.contains(&(forward.protocol, forward.port)) { "port" } else { "to" };
                let place = self.places.of("forward", is_meant, &[key]);
                self.add(place, message, "choose another port, and an app or its address as the target");
            }
        }
    }

    /// Listeners without an address, and addresses that are to be listened on twice.
    fn listens(&self) {
        if self.config.intent.wan_dns && !self.config.dns.enabled {
            let message = "app names cannot be answered on the WAN without DNS".to_owned();
            let hint = "write dns.enabled = true, or wan.dns = \"off\"";
            self.add(self.places.key("wan", "dns"), message, hint);
        }
        if self.config.dns.enabled && self.config.dns.upstream.is_empty() {
            self.add(
                self.places.key("dns", "upstream"),
                "dns.upstream is empty".to_owned(),
                "name at least one server such as \"8.8.8.8\"",
            );
        }
        if self.config.dns.enabled {
            let known = |name: &str| self.config.intent.networks.iter().any(|network| *network.name == *name);
            for network in self.config.dns.block.iter().flat_map(|block| &block.networks) {
                if !known(network.as_str()) {
                    let message = format!("dns.block is for `{network}`, which is no app network");
                    let is_meant = |table: &dyn TableLike| {
                        let names = table.get("networks").and_then(Item::as_array);
                        names.is_some_and(|names| {
                            names.iter().any(|name| name.as_str() == Some(network.as_str()))
                        })
                    };
                    let place = self.places.of("dns.block", is_meant, &["networks"]);
                    self.add(place, message, "write the name of a [[network]]");
                }
            }
            for (message, hint) in self.config.dns.upstream_trouble(&dns_listens(self.config)) {
                self.add(self.places.key("dns", "upstream"), message, hint);
            }
        }
        for (enabled, key, listen) in [
            (self.config.proxy.enabled, "proxy.listen", &self.config.proxy.listen),
            (self.config.admin.enabled, "admin.listen", &self.config.admin.listen),
        ] {
            if enabled && listen.is_empty() {
                self.add(
                    listen_of(self.places, key),
                    format!("{key} is empty"),
                    "name an address, or write enabled = false",
                );
            }
        }

        listens(self.config, &|key, message, hint| self.add(listen_of(self.places, key), message, hint));
    }
}

/// Where a key such as `proxy.listen` is written.
fn listen_of(places: Places<'_>, key: &str) -> Option<Range<usize>> {
    let (table, key) = key.split_once('.')?;
    places.key(table, key)
}

/// Where names are asked for.
fn dns_listens(config: &Config) -> Vec<SocketAddr> {
    let own = config.intent.networks.iter().map(|net| SocketAddr::new(net.address.addr.into(), 53));
    if config.dns.listen.is_empty() { own.collect() } else { config.dns.listen.clone() }
}

/// Finds addresses that are to be listened on twice.
fn listens(config: &Config, add: &impl Fn(&str, String, &str)) {
    let mut all: Vec<(&str, SocketAddr)> = Vec::new();
    let dns = dns_listens(config);
    for (enabled, key, listen) in [
        (config.dns.enabled, "dns.listen", &dns),
        (config.proxy.enabled, "proxy.listen", &config.proxy.listen),
        (config.admin.enabled, "admin.listen", &config.admin.listen),
    ] {
        all.extend(listen.iter().filter(|_| enabled).map(|address| (key, *address)));
    }
    for (at, (key, address)) in all.iter().enumerate() {
        for (other_key, other) in &all[..at] {
            match (key == other_key, address == other) {
                (true, true) => add(key, format!("{key} has {address} twice"), "write it once"),
                // DNS and the proxy may have an address of their own beside that of all; the API may not.
                (true, false) if *key == "admin.listen" && overlap(*address, *other) => {
                    let message = format!("{key} has {other} and {address}, and one includes the other");
                    add(key, message, "write the one that you need");
                }
                (false, _) if overlap(*address, *other) => {
                    let message = format!("{other_key} and {key} both take {address}");
                    let message = if address == other {
                        message
                    } else {
                        format!("{message} ({other} includes it, or the other way)")
                    };
                    // DNS listens by itself, too.
                    let written = if *key == "dns.listen" { other_key } else { key };
                    add(written, message, "give one of them another port");
                }
                _ => {}
            }
        }
    }
}
