//! What works as it was asked for and perhaps is not what was meant.

use std::sync::Arc;

use crate::{
    BackendTarget, Change, Circle, Facts, Forward, Host, HostKind, Intent, Ipv4Net, Ledger, Name, Touched,
    Vhost, Wan, World, derive,
};

/// Most warnings that are told at a time.
const MOST: usize = 20;

impl World {
    /// Everything that should be looked at, in words; of very many the first.
    pub fn warnings(&self) -> Vec<String> {
        let intent = self.facts.intent();
        let of_vhosts = intent.vhosts.values().flat_map(|(_, vhost)| self.vhost_warnings(vhost));
        first(of_vhosts.chain(self.facts.warnings_of_forwards()))
    }

    /// What should be looked at of a port forward, in words.
    pub fn forward_warnings(&self, forward: &Forward) -> Vec<String> {
        self.facts.forward_warnings(forward)
    }

    /// What should be looked at of a vhost, in words.
    pub fn vhost_warnings(&self, vhost: &Vhost) -> Vec<String> {
        self.facts.vhost_warnings(vhost, |name| self.hosts.get(name).cloned())
    }
}

impl Intent {
    /// As [`World::warnings`], as far as that can be told before there is any lease.
    pub fn warnings(&self, wan: &[Ipv4Net]) -> Vec<String> {
        let facts = self.alone(wan);
        let host = |name: &Name| derive::host(&facts, name).map(Arc::new);
        let of_vhosts = self.vhosts.values().flat_map(|(_, vhost)| facts.vhost_warnings(vhost, host));
        first(of_vhosts.chain(facts.warnings_of_forwards()))
    }

    /// The vhosts whose requests would never end, with these addresses on the WAN link.
    pub fn circles(&self, wan: &[Ipv4Net]) -> Vec<Circle> {
        let facts = self.alone(wan);
        self.vhosts.values().filter_map(|(_, vhost)| facts.circle(vhost)).collect()
    }

    fn alone(&self, wan: &[Ipv4Net]) -> Facts {
        let mut facts = Facts::new(self.clone(), Ledger::default());
        let wan = Wan { addresses: wan.to_vec(), ..Wan::default() };
        facts.apply(Change::Wan(wan), &mut Touched::default());
        facts
    }
}

impl Facts {
    /// The vhost that has a running app's own name and does not lead to that app.
    pub fn name_taken(&self, host: &Host) -> Option<&Arc<Vhost>> {
        let (_, vhost) = self.claimant(&host.fqdn)?;
        let is_meant = |target: &BackendTarget| match target {
            BackendTarget::App { name, .. } => *name == host.label,
            BackendTarget::Address(addr) => *addr.ip() == host.ip,
        };
        // A vhost that is called as the app is the app's.
        let is_of_app = vhost.app_name == host.label || vhost.backends.iter().any(is_meant);
        (host.kind != HostKind::Appliance && host.resolves() && !is_of_app).then_some(vhost)
    }

    fn vhost_warnings(&self, vhost: &Vhost, host: impl Fn(&Name) -> Option<Arc<Host>>) -> Vec<String> {
        let circle = self.circle(vhost).map(|circle| circle.to_string());
        let backends = vhost.targets().filter(|_| circle.is_none());
        let own: Vec<String> = backends
            .filter_map(|to| {
                self.own_warning(to, &format!("{to}, which the vhost `{}` leads to,", vhost.app_name))
            })
            .collect();
        let takes =
            |host: &Arc<Host>| self.name_taken(host).is_some_and(|winner| winner.app_name == vhost.app_name);
        let taken = vhost.names().filter_map(host).filter(takes).map(|host| {
            format!(
                "{} is the own name of the app `{}`: whoever asks the proxy for it gets the vhost `{}`, not the \
                 app; give the vhost another name, unless this is what you want",
                host.fqdn, host.label, vhost.app_name
            )
        });
        circle.into_iter().chain(own).chain(taken).collect()
    }

    fn warnings_of_forwards(&self) -> impl Iterator<Item = String> {
        self.intent().forwards.values().flat_map(|(_, forward)| self.forward_warnings(forward))
    }

    fn forward_warnings(&self, forward: &Forward) -> Vec<String> {
        let name = forward.health_name();
        let warning = |to| self.own_warning(&to, &format!("{to}, which the forward {name} leads to,"));
        forward.targets().filter_map(warning).collect()
    }

    /// That a target is no app, but this machine.
    fn own_warning(&self, to: &BackendTarget, what: &str) -> Option<String> {
        let addr = self.own_address(to)?;
        let intent = self.intent();
        Some(if self.listens(&intent.admin_listen, addr) {
            format!(
                "{what} is the admin API of this appliance: whoever comes that way is kept out by its token alone; \
                 name the app that is meant"
            )
        } else if self.listens(&intent.proxy_listen, addr) {
            format!("{what} is the proxy of this appliance itself, and no app: name the app that is meant")
        } else {
            format!("{what} is this appliance itself, and no app: name the app, unless this is what you want")
        })
    }
}

fn first(mut all: impl Iterator<Item = String>) -> Vec<String> {
    let mut warnings: Vec<String> = all.by_ref().take(MOST).collect();
    match all.count() {
        0 => {}
        more => {
            let rest = format!("{more} more of the kind: `proximity vhost show NAME` tells those of a vhost");
            warnings.push(rest);
        }
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world_tests::{Table, lease, named};
    use crate::{Change, LeaseState, Source};

    fn put(table: &mut Table, source: Source, vhost: Vhost) {
        table.apply(Change::Vhost(source, vhost.into()));
    }

    #[test]
    fn a_vhost_with_an_apps_own_name_is_told_as_long_as_the_app_is_there() {
        let mut table = Table::new();
        put(&mut table, Source::Api, named("shop", "shop.prox.local", &["wiki.prox.local"]));
        assert!(table.world.warnings().is_empty(), "nobody has the name");
        table.apply(Change::Lease(lease(101, 1, "wiki", 2)));
        let warnings = table.world.warnings();
        let [warning] = &warnings[..] else { panic!("one: {warnings:?}") };
        for part in ["wiki.prox.local", "app `wiki`", "vhost `shop`"] {
            assert!(warning.contains(part), "{part}: {warning}");
        }
        let shop = table.world.facts.intent().vhosts.values().next().unwrap().1.clone();
        assert_eq!(table.world.vhost_warnings(&shop), warnings);
        table.apply(Change::Lease(crate::Lease { state: LeaseState::Released, ..lease(101, 1, "wiki", 2) }));
        assert!(table.world.warnings().is_empty(), "the app has gone");
    }

    #[test]
    fn what_is_for_the_app_is_no_matter() {
        let mut table = Table::new();
        table.apply(Change::Lease(lease(101, 1, "wiki", 2)));
        let to = |text: &str| match text.parse() {
            Ok(addr) => BackendTarget::Address(addr),
            Err(_) => BackendTarget::App { name: text.parse().unwrap(), port: 80 },
        };
        for (app, hostname, target) in [
            ("wiki", "wiki.prox.local", "10.20.0.9:80"),
            ("docs", "wiki.prox.local", "wiki"),
            ("docs", "wiki.prox.local", "10.20.0.101:8080"),
            ("docs", "*.prox.local", "10.20.0.9:80"),
            ("docs", "prox-appliance.prox.local", "10.20.0.9:80"),
        ] {
            let vhost = Vhost { backends: vec![to(target)], ..named(app, hostname, &[]) };
            put(&mut table, Source::Api, vhost);
            assert_eq!(table.world.warnings(), [""; 0], "{app} {hostname} {target}");
            table.apply(Change::RemoveVhost(app.parse().unwrap()));
        }
    }

    #[test]
    fn what_leads_to_the_appliance_itself_is_told() {
        let listens = |text: &str| vec![text.parse().unwrap()];
        let intent = Intent {
            proxy_listen: listens("0.0.0.0:80"),
            admin_listen: listens("0.0.0.0:9090"),
            ..crate::world_tests::intent()
        };
        let told = |to: &str| {
            let target: BackendTarget = match to.parse() {
                Ok(addr) => BackendTarget::Address(addr),
                Err(_) => BackendTarget::App { name: "prox-appliance".parse().unwrap(), port: 9090 },
            };
            let vhost = Vhost { backends: vec![target.clone()], ..named("web", "web.prox.local", &[]) };
            let mut intent = intent.clone();
            intent.vhosts.insert(vhost.app_name.clone(), (Source::Api, vhost.into()));
            let forward = Forward::new(crate::Protocol::Tcp, 2222, target);
            let key = (forward.protocol, forward.port);
            intent.forwards.insert(key, (Source::Api, forward.into()));
            intent.warnings(&["192.168.1.2/24".parse().unwrap()])
        };
        for (to, words) in [
            ("10.20.0.1:9090", "the admin API"),
            ("192.168.1.2:9090", "the admin API"),
            ("127.0.0.1:9090", "the admin API"),
            ("prox-appliance:9090", "the admin API"),
            ("10.20.0.1:80", "the proxy"),
            ("10.20.0.1:8080", "this appliance itself"),
        ] {
            let warnings = told(to);
            let [vhost, forward] = &warnings[..] else { panic!("{to}: {warnings:?}") };
            assert!(vhost.starts_with(to) && vhost.contains("the vhost `web`"), "{vhost}");
            assert!(forward.starts_with(to) && forward.contains("the forward tcp/2222"), "{forward}");
            assert!(vhost.contains(words) && forward.contains(words), "{warnings:?}");
        }
        assert_eq!(told("10.20.0.9:9090"), [""; 0]);
    }

    #[test]
    fn only_the_vhost_that_wins_is_told() {
        let mut table = Table::new();
        table.apply(Change::Lease(lease(101, 1, "wiki", 2)));
        put(&mut table, Source::Api, named("api", "wiki.prox.local", &[]));
        put(&mut table, Source::Config, named("file", "wiki.prox.local", &[]));
        let warnings = table.world.warnings();
        assert!(warnings.len() == 1 && warnings[0].contains("`file`"), "{warnings:?}");
    }

    #[test]
    fn of_very_many_the_first_are_told() {
        let mut table = Table::new();
        for at in 0..30 {
            table.apply(Change::Lease(lease(100 + at, at, &format!("app{at}"), 2)));
            put(&mut table, Source::Api, named(&format!("v{at}"), &format!("app{at}.prox.local"), &[]));
        }
        let warnings = table.world.warnings();
        assert_eq!(warnings.len(), MOST + 1);
        assert!(warnings[MOST].starts_with("10 more"), "{}", warnings[MOST]);
    }
}
