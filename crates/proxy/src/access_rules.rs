use std::net::IpAddr;

use ipnet::IpNet;
use proximity_table::{Access, Label};

use crate::Reason;

/// Who may ask a vhost: networks that may not, networks that may, and apps that may.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AccessRules {
    deny: Box<[IpNet]>,
    allow: Box<[IpNet]>,
    apps: Box<[Label]>,
}

/// Why a client is kept out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denied<'a> {
    /// It is in a network that may not.
    Network(&'a IpNet),
    /// It is neither in a network that may nor an app that may.
    NotListed,
}

impl AccessRules {
    /// Rules of these lists. IPv4 networks written as IPv6 (`::ffff:10.0.0.0/104`) are IPv4 networks.
    pub fn new(
        allow: impl IntoIterator<Item = IpNet>,
        deny: impl IntoIterator<Item = IpNet>,
        apps: impl IntoIterator<Item = Label>,
    ) -> AccessRules {
        AccessRules {
            deny: deny.into_iter().map(canonical).collect(),
            allow: allow.into_iter().map(canonical).collect(),
            apps: apps.into_iter().collect(),
        }
    }

    /// Whether everybody may, and nobody has to be asked about.
    pub fn is_open(&self) -> bool {
        self.deny.is_empty() && self.allow.is_empty() && self.apps.is_empty()
    }

    /// Judges a client. Who may not goes before who may; once anybody is listed as allowed, everybody else is
    /// not. `caller` tells the app at an address, by its lease, and is asked only when it matters.
    pub fn judge<L: AsRef<str>>(
        &self,
        client: IpAddr,
        caller: impl FnOnce(IpAddr) -> Option<L>,
    ) -> Result<(), Denied<'_>> {
        let client = client.to_canonical();
        if let Some(network) = self.deny.iter().find(|network| network.contains(&client)) {
            return Err(Denied::Network(network));
        }
        if (self.allow.is_empty() && self.apps.is_empty())
            || self.allow.iter().any(|network| network.contains(&client))
        {
            return Ok(());
        }
        let is_listed = |name: &str| self.apps.iter().any(|app| app.as_str() == name);
        if !self.apps.is_empty() && caller(client).is_some_and(|app| is_listed(app.as_ref())) {
            return Ok(());
        }
        Err(Denied::NotListed)
    }
}

impl From<&Access> for AccessRules {
    fn from(access: &Access) -> AccessRules {
        AccessRules::new(
            access.allow.iter().copied(),
            access.deny.iter().copied(),
            access.apps.iter().cloned(),
        )
    }
}

impl From<Denied<'_>> for Reason {
    fn from(_: Denied<'_>) -> Reason {
        Reason::Forbidden
    }
}

/// A mapped network is the IPv4 network: clients are compared in that form.
fn canonical(network: IpNet) -> IpNet {
    let IpNet::V6(v6) = network else { return network };
    let mapped = v6.network().to_ipv4_mapped().zip(v6.prefix_len().checked_sub(96));
    let v4 = mapped.and_then(|(address, length)| ipnet::Ipv4Net::new(address, length).ok());
    v4.map_or(network, IpNet::V4)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn networks(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn rules(allow: &[&str], deny: &[&str], apps: &[&str]) -> AccessRules {
        let apps = apps.iter().map(|&app| Label::try_from(app.to_owned()).unwrap());
        AccessRules::new(networks(allow), networks(deny), apps)
    }

    fn judge<'a>(rules: &'a AccessRules, client: &str) -> Result<(), Denied<'a>> {
        let prometheus: IpAddr = "10.20.0.9".parse().unwrap();
        rules.judge(client.parse().unwrap(), |ip| (ip == prometheus).then_some("prometheus"))
    }

    #[test]
    fn without_rules_everybody_may() {
        let open = rules(&[], &[], &[]);
        assert!(open.is_open());
        assert_eq!(judge(&open, "192.0.2.1"), Ok(()));
    }

    #[test]
    fn who_may_not_goes_before_who_may() {
        let rules = rules(&["192.168.0.0/16"], &["192.168.1.0/24"], &[]);
        assert!(!rules.is_open());
        assert_eq!(judge(&rules, "192.168.2.1"), Ok(()));
        let guests = "192.168.1.0/24".parse().unwrap();
        assert_eq!(judge(&rules, "192.168.1.9"), Err(Denied::Network(&guests)));
        assert_eq!(judge(&rules, "192.0.2.1"), Err(Denied::NotListed));
    }

    #[test]
    fn only_those_denied_are_kept_out_when_nobody_is_listed_as_allowed() {
        let rules = rules(&[], &["2001:db8::/32"], &[]);
        assert_eq!(judge(&rules, "2001:db9::1"), Ok(()));
        assert!(judge(&rules, "2001:db8::1").is_err());
    }

    #[test]
    fn apps_are_told_by_their_lease() {
        let apps = rules(&["192.168.1.0/24"], &[], &["prometheus"]);
        assert_eq!(judge(&apps, "10.20.0.9"), Ok(()));
        assert_eq!(judge(&apps, "10.20.0.8"), Err(Denied::NotListed));
        assert_eq!(judge(&apps, "192.168.1.7"), Ok(()));
        assert_eq!(judge(&rules(&[], &[], &["grafana"]), "10.20.0.9"), Err(Denied::NotListed));
        let denied = rules(&[], &["10.20.0.0/24"], &["prometheus"]);
        assert!(judge(&denied, "10.20.0.9").is_err());
    }

    #[test]
    fn mapped_addresses_are_ipv4_on_both_sides() {
        let rules = rules(&["::ffff:10.0.0.0/104", "::/0"], &["10.1.0.0/16"], &[]);
        assert_eq!(judge(&rules, "10.2.0.1"), Ok(()));
        assert_eq!(judge(&rules, "::ffff:10.2.0.1"), Ok(()));
        assert!(judge(&rules, "::ffff:10.1.0.1").is_err());
        assert_eq!(judge(&rules, "11.0.0.1"), Err(Denied::NotListed), "::/0 is not IPv4");
        assert_eq!(judge(&rules, "2001:db8::1"), Ok(()));
    }
}
