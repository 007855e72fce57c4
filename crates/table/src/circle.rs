//! Vhosts whose requests come back to the proxy that sent them, again and again.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};

use thiserror::Error;

use crate::{
    BackendProtocol, BackendTarget, Facts, HostKind, HostPolicy, Name, Redirect, Vhost, VhostPath, derive,
};

/// Port of a URL that names none (RFC 9110 §4.2.1).
const HTTP_PORT: u16 = 80;

/// A way on which requests go round for ever.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Circle {
    /// A backend is the proxy itself, which finds the same vhost there.
    #[error(
        "the backend {0} of the vhost `{1}` is this proxy itself, and requests find the same vhost there again: name the \
         app that is meant, or its address"
    )]
    Backend(String, String),
    /// So is the service that is asked who may pass.
    #[error(
        "auth.forward of the vhost `{1}` asks {0}, which is this proxy itself, for the same vhost again: name the app that \
         knows who may pass, such as authelia:9091"
    )]
    Auth(String, String),
    /// Clients are sent to where they come from.
    #[error(
        "the redirect of the vhost `{1}` to {0} leads to itself: send clients to another host, or to another path"
    )]
    Redirect(String, String),
}

impl Circle {
    /// The vhost that begins it.
    pub fn vhost(&self) -> &str {
        let (Circle::Backend(_, vhost) | Circle::Auth(_, vhost) | Circle::Redirect(_, vhost)) = self;
        vhost
    }
}

impl Facts {
    /// Why requests for a vhost would never end, if that can be known: two proxies that send each other in
    /// circles are not found. The vhost need not be among the facts.
    pub fn circle(&self, vhost: &Vhost) -> Option<Circle> {
        let name = vhost.app_name.to_string();
        let asked = vhost.policy.forward_auth.as_ref().map(|auth| &auth.to);
        // The question has the visitor's own Host.
        if let Some(asked) = asked.filter(|asked| self.own_listener(asked).is_some()) {
            return Some(Circle::Auth(asked.to_string(), name));
        }
        let root = (&vhost.backends, vhost.protocol);
        // What is stripped away is missing when the request comes back.
        let paths = vhost.paths.iter().filter(|path| !path.strip).map(|path| (&path.backends, path.protocol));
        let clear =
            std::iter::once(root).chain(paths).filter(|(_, protocol)| *protocol != BackendProtocol::Https);
        let mut backends = clear.flat_map(|(backends, _)| backends);
        if let Some(target) = backends.find(|target| self.comes_back(vhost, target)) {
            return Some(Circle::Backend(target.to_string(), name));
        }
        let root = vhost.redirect.iter().map(|redirect| (redirect, None));
        let paths = vhost.paths.iter().filter_map(|path| Some((path.redirect.as_ref()?, Some(path))));
        let mut redirects = root.chain(paths);
        let (redirect, _) =
            redirects.find(|(redirect, path)| self.leads_to_itself(vhost, redirect, *path))?;
        Some(Circle::Redirect(redirect.to.clone(), name))
    }

    /// The address of a target where the proxy itself listens.
    pub(crate) fn own_listener(&self, target: &BackendTarget) -> Option<SocketAddrV4> {
        let addr = self.fixed_address(target)?;
        self.listens(&self.intent().proxy_listen, addr).then_some(addr)
    }

    /// The address of a target that is this machine.
    pub(crate) fn own_address(&self, target: &BackendTarget) -> Option<SocketAddrV4> {
        self.fixed_address(target).filter(|addr| self.is_own_address(*addr.ip()))
    }

    /// Whether a connection to an address of this machine comes to one of these sockets.
    pub(crate) fn listens(&self, sockets: &[SocketAddr], addr: SocketAddrV4) -> bool {
        sockets.iter().any(|listen| {
            let everywhere =
                listen.ip() == IpAddr::V4(Ipv4Addr::UNSPECIFIED) && self.is_own_address(*addr.ip());
            listen.port() == addr.port() && (everywhere || listen.ip() == IpAddr::V4(*addr.ip()))
        })
    }

    /// The address of a target that no lease moves: one that was written, or the appliance's own.
    fn fixed_address(&self, target: &BackendTarget) -> Option<SocketAddrV4> {
        match target {
            BackendTarget::Address(addr) => Some(*addr),
            BackendTarget::App { name, port } if *name == self.intent().hostname => {
                let host = derive::app_host(self, name).filter(|host| host.kind == HostKind::Appliance)?;
                Some(SocketAddrV4::new(host.ip, *port))
            }
            BackendTarget::App { .. } => None,
        }
    }

    fn is_own_address(&self, ip: Ipv4Addr) -> bool {
        let networks = self.intent().networks.iter().map(|network| network.address.addr);
        let wan = self.wan().addresses.iter().map(|net| net.addr);
        ip.is_loopback() || ip.is_unspecified() || networks.chain(wan).any(|own| own == ip)
    }

    fn comes_back(&self, vhost: &Vhost, target: &BackendTarget) -> bool {
        let Some(addr) = self.own_listener(target) else { return false };
        vhost.policy.host == HostPolicy::Preserve || self.answers_to_address(vhost, *addr.ip())
    }

    /// Whether a request whose `Host` is an address of ours is for a vhost.
    fn answers_to_address(&self, vhost: &Vhost, ip: Ipv4Addr) -> bool {
        let Ok(name) = ip.to_string().parse::<Name>() else { return vhost.default };
        let other = self.claimant(&name).filter(|(_, other)| other.app_name != vhost.app_name);
        vhost.names().any(|own| *own == name) || (vhost.default && other.is_none())
    }

    /// Whether a request that meets this redirect, of the vhost or of one of its paths, meets it again when it follows.
    fn leads_to_itself(&self, vhost: &Vhost, redirect: &Redirect, path: Option<&VhostPath>) -> bool {
        let fixed = redirect.to.strip_suffix(Redirect::URI);
        let keeps_uri = fixed.is_some();
        let fixed = fixed.unwrap_or(&redirect.to);
        let target = match fixed.strip_prefix("http://") {
            Some(rest) => {
                let (authority, target) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
                if !self.is_host_of(vhost, authority) {
                    return false;
                }
                target
            }
            // TLS is not ours: what answers there is another server.
            None if fixed.starts_with("https://") => return false,
            None => fixed,
        };
        let target = &target[..target.find(['?', '#']).unwrap_or(target.len())];
        let target = target.trim_end_matches('/');
        if target.is_empty() && keeps_uri {
            return path.is_none_or(|path| !path.strip);
        }
        let claims = |prefix: &str| {
            target.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let claiming = vhost.paths.iter().filter(|path| claims(&path.prefix));
        let next = claiming.max_by_key(|path| path.prefix.len()).map(|path| &path.prefix);
        next == path.map(|path| &path.prefix)
    }

    /// Whether requests for the authority of an `http` URL are for a vhost.
    fn is_host_of(&self, vhost: &Vhost, authority: &str) -> bool {
        let (host, port) = authority.rsplit_once(':').unwrap_or((authority, ""));
        let port = if port.is_empty() { Some(HTTP_PORT) } else { port.parse().ok() };
        let is_ours = self.intent().proxy_listen.iter().any(|listen| Some(listen.port()) == port);
        let Some(name) = host.parse::<Name>().ok().filter(|_| is_ours) else { return false };
        if let Ok(ip) = host.parse() {
            return self.is_own_address(ip) && self.answers_to_address(vhost, ip);
        }
        let is_own = |name: &Name| vhost.names().any(|own| own == name);
        let is_others =
            |name: &Name| self.claimant(name).is_some_and(|(_, other)| other.app_name != vhost.app_name);
        if is_own(&name) || is_others(&name) || derive::host(self, &name).is_some() {
            return is_own(&name);
        }
        let mut above = name.parent();
        while let Some(parent) = above {
            if let Ok(wildcard) = format!("*.{parent}").parse()
                && (is_own(&wildcard) || is_others(&wildcard))
            {
                return is_own(&wildcard);
            }
            above = parent.parent();
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::world_tests::{Table, intent, lease, named};
    use crate::{Change, ForwardAuth, Intent, Ledger, Source, Touched, VhostPolicy, Wan};

    fn facts(listen: &[&str]) -> Facts {
        let listen = listen.iter().map(|text| text.parse().unwrap()).collect();
        let mut facts = Facts::new(Intent { proxy_listen: listen, ..intent() }, Ledger::default());
        let wan = Wan { addresses: vec!["192.168.1.2/24".parse().unwrap()], ..Wan::default() };
        facts.apply(Change::Wan(wan), &mut Touched::default());
        facts
    }

    fn target(text: &str) -> BackendTarget {
        match text.parse() {
            Ok(addr) => BackendTarget::Address(addr),
            Err(_) => {
                let (name, port) = text.split_once(':').unwrap();
                BackendTarget::App { name: name.parse().unwrap(), port: port.parse().unwrap() }
            }
        }
    }

    fn leading_to(text: &str, host: HostPolicy) -> Vhost {
        let mut vhost = named("web", "web.prox.local", &["*.web.prox.local"]);
        vhost.backends = vec![target(text)];
        vhost.policy = Arc::new(VhostPolicy { host, ..VhostPolicy::default() });
        vhost
    }

    fn path(prefix: &str, strip: bool) -> VhostPath {
        VhostPath {
            prefix: prefix.to_owned(),
            strip,
            backends: vec![],
            protocol: BackendProtocol::Http,
            tls: Default::default(),
            health: Default::default(),
            redirect: None,
        }
    }

    #[test]
    fn a_backend_that_is_the_proxy_itself_is_found() {
        let everywhere = facts(&["0.0.0.0:80"]);
        for own in ["10.20.0.1:80", "192.168.1.2:80", "127.0.0.1:80", "127.9.9.9:80", "prox-appliance:80"] {
            let circle = everywhere.circle(&leading_to(own, HostPolicy::Preserve));
            assert_eq!(circle, Some(Circle::Backend(own.to_owned(), "web".to_owned())));
        }
        for other in ["10.20.0.1:8080", "10.20.0.9:80", "192.168.1.3:80", "web:80"] {
            assert_eq!(everywhere.circle(&leading_to(other, HostPolicy::Preserve)), None, "{other}");
        }
        let one = facts(&["10.20.0.1:8080"]);
        assert!(one.circle(&leading_to("10.20.0.1:8080", HostPolicy::Preserve)).is_some());
        assert_eq!(one.circle(&leading_to("127.0.0.1:8080", HostPolicy::Preserve)), None);
        assert_eq!(facts(&[]).circle(&leading_to("10.20.0.1:80", HostPolicy::Preserve)), None);
    }

    #[test]
    fn with_another_host_it_comes_back_only_to_who_answers_to_that() {
        let facts = facts(&["0.0.0.0:80"]);
        let mut vhost = leading_to("10.20.0.1:80", HostPolicy::Backend);
        assert_eq!(facts.circle(&vhost), None, "it meets a page");
        vhost.aliases.push("10.20.0.1".parse().unwrap());
        assert!(facts.circle(&vhost).is_some());
        vhost.aliases.clear();
        vhost.default = true;
        assert!(facts.circle(&vhost).is_some());
        vhost.protocol = BackendProtocol::Https;
        assert_eq!(facts.circle(&vhost), None, "no TLS is spoken there");
    }

    #[test]
    fn paths_and_the_auth_service_are_looked_at_too() {
        let facts = facts(&["0.0.0.0:80"]);
        let mut vhost = leading_to("web:80", HostPolicy::Preserve);
        vhost.paths = vec![VhostPath { backends: vec![target("10.20.0.1:80")], ..path("/api", true) }];
        assert_eq!(facts.circle(&vhost), None, "/api/x comes back as /x");
        vhost.paths[0].strip = false;
        assert!(matches!(facts.circle(&vhost), Some(Circle::Backend(..))));
        let mut vhost = leading_to("web:80", HostPolicy::Backend);
        let asks = ForwardAuth { to: target("10.20.0.1:80"), path: "/".to_owned(), copy_headers: vec![] };
        vhost.policy = Arc::new(VhostPolicy { forward_auth: Some(asks), ..VhostPolicy::default() });
        assert!(matches!(facts.circle(&vhost), Some(Circle::Auth(..))));
    }

    fn redirected(to: &str) -> Vhost {
        let mut vhost = named("web", "web.prox.local", &["*.web.prox.local", "10.20.0.1"]);
        vhost.backends.clear();
        vhost.redirect = Some(Redirect { to: to.to_owned(), status: 308 });
        vhost
    }

    #[test]
    fn a_redirect_to_itself_is_found() {
        let mut facts = facts(&["0.0.0.0:80", "0.0.0.0:8080"]);
        let other = named("other", "other.web.prox.local", &["*.deep.web.prox.local"]);
        facts.apply(Change::Vhost(Source::Api, other.into()), &mut Touched::default());
        facts.apply(Change::Lease(lease(101, 1, "app", 2)), &mut Touched::default());
        for itself in [
            "http://web.prox.local{uri}",
            "http://WEB.prox.local/",
            "http://web.prox.local:80{uri}",
            "http://web.prox.local:8080/x{uri}",
            "http://www.web.prox.local{uri}",
            "http://10.20.0.1{uri}",
            "/new{uri}",
            "/",
            "/?from=old",
        ] {
            let circle = facts.circle(&redirected(itself));
            assert_eq!(circle, Some(Circle::Redirect(itself.to_owned(), "web".to_owned())));
        }
        for elsewhere in [
            "https://web.prox.local{uri}",
            "http://web.prox.local:81{uri}",
            "http://new.example{uri}",
            "http://other.web.prox.local{uri}",
            "http://x.deep.web.prox.local{uri}",
            "http://app.prox.local{uri}",
            "http://10.20.0.9{uri}",
            "http://prox.local{uri}",
        ] {
            assert_eq!(facts.circle(&redirected(elsewhere)), None, "{elsewhere}");
        }
    }

    #[test]
    fn a_redirect_to_another_path_ends_there() {
        let facts = facts(&["0.0.0.0:80"]);
        let mut vhost = redirected("/new{uri}");
        vhost.paths = vec![VhostPath { backends: vec![target("web:80")], ..path("/new", false) }];
        assert_eq!(facts.circle(&vhost), None, "/new has backends");
        let of_path = |to: &str, strip| {
            let mut vhost = leading_to("web:80", HostPolicy::Backend);
            let redirect = Some(Redirect { to: to.to_owned(), status: 308 });
            vhost.paths = vec![VhostPath { redirect, ..path("/old", strip) }];
            facts.circle(&vhost).is_some()
        };
        for (to, strip) in [
            ("/old", false),
            ("/old/x{uri}", false),
            ("/old{uri}", true),
            ("http://web.prox.local{uri}", false),
        ] {
            assert!(of_path(to, strip), "{to}");
        }
        for (to, strip) in
            [("/new{uri}", false), ("/older{uri}", false), ("/", false), ("http://web.prox.local{uri}", true)]
        {
            assert!(!of_path(to, strip), "{to}");
        }
    }

    #[test]
    fn what_is_among_the_facts_is_judged_alike() {
        let mut table = Table::new();
        table.apply(Change::Vhost(Source::Api, redirected("/x").into()));
        let facts = &table.world.facts;
        assert!(facts.circle(&facts.intent().vhosts.values().next().unwrap().1).is_some());
    }
}
