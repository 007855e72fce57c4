//! What of a changed file a reload does not put in force, and what does.

use std::net::SocketAddr;

use crate::Config;

/// A key that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// The key.
    pub key: &'static str,
    /// What for.
    pub until: Until,
}

/// What puts a key in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// `proximity upgrade`, also to the same binary; or a restart.
    Upgrade,
    /// A restart alone: another process cannot take over.
    Restart,
    /// A restart, while which files have to be moved.
    Move,
}

impl Config {
    /// What in `self` is in force only when another process serves, compared with `running`.
    pub fn waiting(&self, running: &Config) -> Vec<Waiting> {
        let mut waiting = Vec::new();
        let mut note = |differs: bool, key, until| waiting.extend(differs.then_some(Waiting { key, until }));
        let (new, old) = (&self.appliance, &running.appliance);
        note(new.state_dir != old.state_dir, "appliance.state_dir", Until::Move);
        note(new.log_dir != old.log_dir, "appliance.log_dir", Until::Upgrade);
        note(new.run_dir != old.run_dir, "appliance.run_dir", Until::Upgrade);
        note(self.wan != running.wan, "wan.address", Until::Upgrade);
        // The next process would go on with the lease of the other link.
        let interface = |config: &Config| config.intent.wan_interface.clone();
        note(interface(self) != interface(running), "wan.interface", Until::Restart);
        let dns = |config: &Config| (config.dns.enabled, config.dns.listen.clone());
        note(dns(self) != dns(running), "dns.listen", Until::Upgrade);
        let proxy = |config: &Config| (config.proxy.enabled, config.proxy.listen.clone());
        note(proxy(self) != proxy(running), "proxy.listen", Until::Upgrade);
        let admin = if self.admin_is_in_its_own_way(running) { Until::Restart } else { Until::Upgrade };
        note(self.admin != running.admin, "admin.listen", admin);
        let links = |config: &Config| -> Vec<_> {
            let nets = config.intent.networks.iter();
            nets.map(|net| {
                (net.name.clone(), net.interface.clone(), net.address, net.manage_link, net.dhcp_enabled)
            })
            .collect()
        };
        let network = "network (name, interface, address, dhcp.enabled)";
        note(links(self) != links(running), network, Until::Upgrade);
        waiting
    }

    /// Whether an address that the admin API is to have is taken as long as the old process has its own.
    fn admin_is_in_its_own_way(&self, running: &Config) -> bool {
        let (new, old) = (&self.admin, &running.admin);
        let is_taken = |address: &SocketAddr| {
            !old.listen.contains(address) && old.listen.iter().any(|other| overlap(*address, *other))
        };
        new.enabled && old.enabled && new.listen.iter().any(is_taken)
    }
}

impl Waiting {
    /// What is to be done for keys that wait, in words. The next process has all of the file: where an upgrade is not
    /// enough for one key, it is for none.
    pub fn advice(waiting: &[Waiting]) -> Vec<String> {
        let is_enough = waiting.iter().all(|waiting| waiting.until == Until::Upgrade);
        let mut waiting = waiting.to_vec();
        for waiting in waiting.iter_mut().filter(|waiting| waiting.until == Until::Upgrade && !is_enough) {
            waiting.until = Until::Restart;
        }
        let untils = [Until::Upgrade, Until::Restart, Until::Move].into_iter();
        untils.filter_map(|until| until.advice(&waiting)).collect()
    }
}

impl Until {
    fn advice(self, waiting: &[Waiting]) -> Option<String> {
        let mine = waiting.iter().filter(|waiting| waiting.until == self);
        let keys: Vec<&str> = mine.map(|waiting| waiting.key).collect();
        let wait = if let [_] = keys[..] { "waits" } else { "wait" };
        let what = match self {
            Until::Upgrade => "`proximity upgrade`, which loses nothing, or a restart",
            Until::Restart => "a restart; an upgrade is not enough",
            Until::Move => "a restart: stop the appliance, move the directory's files there, and start it",
        };
        (!keys.is_empty()).then(|| format!("{} {wait} for {what}", keys.join(", ")))
    }
}

/// Whether two addresses cannot both be listened on: a port at the same address, or at one of all addresses.
pub fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    let same_kind = a.is_ipv4() == b.is_ipv4();
    a.port() == b.port()
        && same_kind
        && (a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn advice(before: &str, after: &str) -> Vec<String> {
        let [before, after] = [before, after].map(|text| Config::parse(text).unwrap());
        Waiting::advice(&after.waiting(&before))
    }

    #[test]
    fn what_a_reload_does_is_not_waited_for() {
        let after = "[dns]\nupstream = [\"9.9.9.9\"]\n[proxy]\nvia = true\n[[vhost]]\napp_name = \"a\"\nbackend = \"a\"\n";
        assert_eq!(advice("", after), [""; 0]);
    }

    #[test]
    fn an_upgrade_is_enough_for_most() {
        let after = "[proxy]\nlisten = [\"0.0.0.0:8080\"]\n[dns]\nenabled = false\n";
        let told = "dns.listen, proxy.listen wait for `proximity upgrade`, which loses nothing, or a restart";
        assert_eq!(advice("", after), [told]);
        let elsewhere = "[admin]\nlisten = [\"127.0.0.1:9091\"]\n";
        assert!(advice("", elsewhere)[0].starts_with("admin.listen waits for `proximity upgrade`"));
    }

    #[test]
    fn what_an_upgrade_cannot_do_is_said() {
        let narrower = "[admin]\nlisten = [\"127.0.0.1:9090\"]\n";
        assert_eq!(advice("", narrower), ["admin.listen waits for a restart; an upgrade is not enough"]);
        let more = "[admin]\nlisten = [\"127.0.0.1:9090\", \"127.0.0.1:9091\"]\n";
        assert!(advice(narrower, more)[0].contains("upgrade`"), "{:?}", advice(narrower, more));
        let both =
            "[wan]\ninterface = \"eth9\"\n[appliance]\nstate_dir = \"/var/lib/other\"\nlog_dir = \"/tmp\"\n";
        let told = advice("", both);
        assert_eq!(told.len(), 2, "{told:?}");
        assert_eq!(told[0], "appliance.log_dir, wan.interface wait for a restart; an upgrade is not enough");
        assert!(told[1].contains("state_dir waits for a restart: stop"), "{told:?}");
    }
}
