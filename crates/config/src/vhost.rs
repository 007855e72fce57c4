//! `[[vhost]]`: names in front, and where their requests go.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;

use imbl::OrdMap;
use proximity_table::{
    BackendProtocol, BackendTarget, BackendTls, HealthPolicy, Label, Name, NameError, NameLeads, Owned,
    Redirect, Source, Vhost, VhostPath,
};

use crate::section::Section;
use crate::vhost_policy;

/// Whether a user of `[vhost.auth]` must come with the hash of the password.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hashes {
    /// Yes.
    Required,
    /// A user without one keeps the hash that the vhost has now: it then is empty.
    MayBeKept,
}

/// A backend as text: `address:port`, or `app:port`.
pub fn backend_target(text: &str) -> Option<BackendTarget> {
    if let Ok(addr) = text.parse::<SocketAddrV4>() {
        return (addr.port() > 0).then_some(BackendTarget::Address(addr));
    }
    let (name, port) = text.split_once(':')?;
    let port = port.parse().ok().filter(|port| *port > 0)?;
    Some(BackendTarget::App { name: name.parse().ok()?, port })
}

/// A vhost's host name: one word is a name of the domain, more than one stand for themselves. In front, `*.`
/// makes it a wildcard; a `*` alone is that of the domain.
pub fn vhost_hostname(text: &str, domain: &Name) -> Result<Name, NameError> {
    let is_whole = text.strip_prefix("*.").unwrap_or(text).contains('.');
    let name: Name = if is_whole { text.parse()? } else { Name::relative(text, domain)? };
    let stars = text.bytes().filter(|byte| *byte == b'*').count();
    match (stars, name.is_wildcard() && name.label_count() > 1) {
        (0, _) | (1, true) => Ok(name),
        _ => Err(NameError::Wildcard(text.to_owned())),
    }
}

/// Every `[[vhost]]`.
pub fn read_all(root: &mut Section<'_>, domain: &Name) -> OrdMap<Label, Owned<Vhost>> {
    let mut vhosts = OrdMap::new();
    for mut table in root.tables("vhost") {
        if let Some(vhost) = read(&mut table, domain, Hashes::Required) {
            let key = vhost.app_name.clone();
            if vhosts.insert(key.clone(), (Source::Config, Arc::new(vhost))).is_some() {
                let hint =
                    "give each vhost its own app_name; one vhost can have several backends and aliases";
                table.refuse("app_name", &format!("two vhosts are called `{key}`"), hint);
            }
        }
        table.finish();
    }
    vhosts
}

/// One vhost; `None` when too much of it is wrong to tell what is meant.
pub fn read(table: &mut Section<'_>, domain: &Name, hashes: Hashes) -> Option<Vhost> {
    let app_name: Option<Label> = table.required("app_name", "nginx");
    let hostname = table.string("hostname", "");
    let hostname = match hostname.as_str() {
        "" => app_name.as_ref().and_then(|app| domain.child(app).ok()),
        text => {
            vhost_hostname(text, domain).map_err(|error| table.explain("hostname", &error.to_string())).ok()
        }
    };
    let aliases = table.list("aliases", "host names in quotes", |text| vhost_hostname(text, domain).ok());
    let aliases = aliases.unwrap_or_default();
    table.bound("aliases", aliases.len());
    let enabled = table.boolean("enabled", true);
    let default = table.boolean("default", false);
    let dns = match table.choice("dns", &["auto", "direct", "proxy"]) {
        Some("direct") => NameLeads::Direct,
        Some("proxy") => NameLeads::Proxy,
        _ => NameLeads::Auto,
    };
    let root = Service::read(table, &Service::default());
    let paths = paths(table, &root);
    let policy = vhost_policy::read(table, app_name.as_ref(), hashes).shared();
    let (app_name, hostname) = (app_name?, hostname?);
    root.leads_somewhere().then(|| Vhost {
        aliases,
        protocol: root.protocol,
        tls: root.tls,
        enabled,
        health: root.health,
        redirect: root.redirect,
        paths,
        default,
        dns,
        policy,
        ..Vhost::new(app_name, hostname, root.backends)
    })
}

/// Whether a text can be asked for as a path, with or without a query.
pub fn is_path(text: &str) -> bool {
    text.starts_with('/')
        && text.len() <= 2048
        && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#')
}

/// What a vhost and each of its paths say alike.
#[derive(Default)]
struct Service {
    backends: Vec<BackendTarget>,
    protocol: BackendProtocol,
    tls: BackendTls,
    health: HealthPolicy,
    redirect: Option<Redirect>,
}

impl Service {
    /// Reads what is said; the rest is as in `base`.
    fn read(table: &mut Section<'_>, base: &Service) -> Service {
        let redirect = redirect(table);
        let protocol = match table.choice("protocol", &["http", "https", "h2c"]) {
            Some("http") => BackendProtocol::Http,
            Some("https") => BackendProtocol::Https,
            Some("h2c") => BackendProtocol::H2c,
            _ => base.protocol,
        };
        Service {
            backends: backends(table, redirect.is_some()),
            protocol,
            tls: tls(table, &base.tls),
            health: health(table, &base.health),
            redirect,
        }
    }

    fn leads_somewhere(&self) -> bool {
        !self.backends.is_empty() || self.redirect.is_some()
    }
}

fn backends(table: &mut Section<'_>, redirected: bool) -> Vec<BackendTarget> {
    let port = table.port("backend_port");
    let ip: Option<Ipv4Addr> = table.optional("backend_ip", "an IPv4 address such as \"10.20.0.101\"");
    let app: Option<Label> = table.optional("backend", "the host name of an app such as \"nginx\"");
    let listed =
        table.list("backends", "an address or app with a port such as \"10.20.0.101:80\"", backend_target);
    let written = ["backend_ip", "backend", "backends"].into_iter().filter(|key| table.has(key)).count();
    let mut backends = listed.unwrap_or_default();
    backends.extend(ip.map(|ip| BackendTarget::Address(SocketAddrV4::new(ip, port.unwrap_or(80)))));
    backends.extend(app.map(|name| BackendTarget::App { name, port: port.unwrap_or(80) }));
    let place = table.heading();
    if redirected && written > 0 {
        let hint = "write redirect, or one of backend_ip, backends and backend";
        table.refuse("redirect", &format!("{place} has backends and a redirect"), hint);
    } else if !redirected && written != 1 {
        let hint = "write one of backend_ip (with backend_port), backends, backend, or redirect";
        let message = match written {
            0 => format!("{place} has no backend"),
            _ => format!("{place} names its backends {written} times"),
        };
        table.refuse_all(&message, hint);
    } else if written == 1 && table.is_empty_list("backends") {
        let hint = "write at least one, such as \"10.20.0.101:80\"";
        table.refuse("backends", "the list of backends is empty", hint);
    }
    table.bound("backends", backends.len());
    backends
}

fn redirect(table: &mut Section<'_>) -> Option<Redirect> {
    let to = table.text("redirect");
    let has_status = table.has("redirect_status");
    let status = table.number("redirect_status", u32::from(Redirect::STATUS), 300..=399) as u16;
    if !Redirect::STATUSES.contains(&status) {
        let message = format!("a redirect cannot have the status {status}");
        table.refuse("redirect_status", &message, "write 301, 302, 303, 307 or 308");
    }
    if to.is_none() && has_status {
        let hint = format!("write {} beside it", table.pair("redirect", "\"https://new.example{uri}\""));
        table.refuse("redirect_status", "redirect_status goes with redirect", &hint);
    }
    let to = to?;
    if let Some(hint) = redirect_trouble(&to) {
        table.refuse("redirect", &format!("nobody can be sent to `{to}`"), hint);
    }
    Some(Redirect { to, status })
}

/// Why a text is no target of a redirect.
fn redirect_trouble(to: &str) -> Option<&'static str> {
    let fixed = to.strip_suffix(Redirect::URI).unwrap_or(to);
    let host = ["http://", "https://"].iter().find_map(|scheme| fixed.strip_prefix(scheme));
    let good = fixed.bytes().all(|byte| byte.is_ascii_graphic() && !b"\"<>\\^`{|}".contains(&byte));
    match () {
        () if to.len() > 2048 || !good => {
            Some("write a URL of ASCII characters; only {uri} at its end is replaced")
        }
        // `//host` leads to another host, which then would be the visitor's choice.
        () if fixed.starts_with("//") || (fixed.len() < to.len() && fixed.ends_with('/')) => Some(
            "{uri} begins with a slash of its own: leave out the one before it, and begin with a single one",
        ),
        () if host.is_some_and(|host| !host.starts_with(['/', '?', '#', ':']) && !host.is_empty()) => None,
        () if host.is_none() && fixed.starts_with('/') => None,
        () => Some(
            "write an absolute URL such as \"https://new.example{uri}\", or a path such as \"/new{uri}\"",
        ),
    }
}

fn tls(table: &mut Section<'_>, base: &BackendTls) -> BackendTls {
    let server_name = table.text("tls_server_name");
    if let Some(name) = &server_name
        && (name.parse::<Name>().is_err() || name.contains('*'))
    {
        let hint = "write the name in the backend's certificate, such as nas.example.org";
        table.refuse("tls_server_name", &format!("`{name}` is not a host name"), hint);
    }
    let ca = table.file("tls_ca");
    // Whoever names an authority wants it asked.
    let verify = table.boolean("tls_verify", base.verify || ca.is_some());
    if ca.is_some() && !verify {
        let message = "without tls_verify nobody looks at tls_ca";
        table.refuse("tls_verify", message, "leave out one of the two");
    }
    BackendTls {
        verify,
        server_name: server_name.or_else(|| base.server_name.clone()),
        ca: ca.or_else(|| base.ca.clone()),
    }
}

fn health(table: &mut Section<'_>, base: &HealthPolicy) -> HealthPolicy {
    let mut health = table.table("health");
    let method = health.choice("method", &["GET", "HEAD", "OPTIONS"]);
    let policy = HealthPolicy {
        kind: base.kind,
        uri: health.string("uri", &base.uri),
        interval: health.duration("interval", base.interval, 1),
        timeout: health.duration("timeout", base.timeout, 1),
        method: method.map_or_else(|| base.method.clone(), str::to_owned),
        port: health.port("port").or(base.port),
        status: health.statuses("status").or(base.status),
        body: health.text("body").or_else(|| base.body.clone()),
        rise: health.number("rise", base.rise, 1..=100),
        fall: health.number("fall", base.fall, 1..=100),
    };
    if !is_path(&policy.uri) {
        let message = format!("`{}` is not a path", policy.uri);
        health.refuse("uri", &message, "begin it with / and leave out white space");
    }
    if policy.body.as_ref().is_some_and(|body| body.is_empty() || body.len() > 1024) {
        health.refuse(
            "body",
            "no such text is looked for",
            "write 1 to 1024 octets that the answer must contain",
        );
    }
    if policy.body.is_some() && policy.method == "HEAD" {
        health.refuse("method", "an answer to HEAD has no body to look into", "use GET, or leave body out");
    }
    health.finish();
    policy
}

fn paths(table: &mut Section<'_>, root: &Service) -> Vec<VhostPath> {
    let mut paths: Vec<VhostPath> = Vec::new();
    let tables = table.tables("path");
    table.bound("path", tables.len());
    for mut table in tables {
        let prefix = table.required::<String>("prefix", "/api").and_then(|text| {
            let prefix = normalised(&text);
            if let Err(hint) = prefix {
                table.refuse("prefix", &format!("`{text}` is not the beginning of a path"), hint);
            }
            prefix.ok()
        });
        let strip = table.boolean("strip", false);
        let Service { backends, protocol, tls, health, redirect } = Service::read(&mut table, root);
        if let Some(prefix) = prefix {
            if paths.iter().any(|path| path.prefix == prefix) {
                let message = format!("two paths of one vhost begin with {prefix}");
                table.refuse("prefix", &message, "write it once, with all its backends");
            }
            paths.push(VhostPath { prefix, strip, backends, protocol, tls, health, redirect });
        }
        table.finish();
    }
    paths
}

/// A prefix without trailing slash, or what is wrong with it.
fn normalised(text: &str) -> Result<String, &'static str> {
    let prefix = text.trim_end_matches('/');
    // RFC 3986 §3.3, but for percent-encoding: requests are decoded before they are compared.
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@/".contains(&byte);
    match prefix.strip_prefix('/') {
        _ if text.len() > 1024 => Err("write at most 1024 characters"),
        None if text.starts_with('/') => Err("requests for / go to the vhost's own backends: write those"),
        None => Err("begin it with /"),
        Some(_) if !prefix.bytes().all(good) => Err("write the path itself, without %, ?, # and white space"),
        Some(rest) if rest.split('/').any(|segment| matches!(segment, "" | "." | "..")) => {
            Err("leave out empty segments, . and ..")
        }
        Some(_) => Ok(prefix.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_is_the_whole_first_label() {
        let domain: Name = "prox.local".parse().unwrap();
        let name = |text: &str| vhost_hostname(text, &domain).map(|name| name.to_string()).ok();
        assert_eq!(name("*.Shop.prox.local").as_deref(), Some("*.shop.prox.local"));
        assert_eq!(name("*.shop").as_deref(), Some("*.shop.prox.local"));
        assert_eq!(name("*.local.").as_deref(), Some("*.local"));
        assert_eq!(name("*").as_deref(), Some("*.prox.local"));
        assert_eq!(name("shop").as_deref(), Some("shop.prox.local"));
        for wrong in ["a*.local", "a.*.local", "*.*.local", "**.local", "*.", "a*"] {
            assert_eq!(name(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn prefixes_are_normalised() {
        assert_eq!(normalised("/api/"), Ok("/api".to_owned()));
        assert_eq!(normalised("/a/b-c.d~e"), Ok("/a/b-c.d~e".to_owned()));
        for wrong in
            ["", "/", "//", "api", "/a//b", "/a/../b", "/./a", "/a%20b", "/a b", "/a?b", "/a#b", "/ä"]
        {
            assert!(normalised(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn redirects_lead_where_the_writer_wants() {
        for good in [
            "https://new.example{uri}",
            "http://new.example:8080/x",
            "/new{uri}",
            "/",
            "https://new.example/?from=old",
        ] {
            assert_eq!(redirect_trouble(good), None, "{good}");
        }
        for wrong in [
            "",
            "new.example",
            "ftp://new.example",
            "https://",
            "https:///x",
            "{uri}",
            "//new.example{uri}",
            "/{uri}",
            "https://new.example/{uri}",
            "https://new.example{uri}/x",
            "https://{host}/x",
            "https://new.example/a b",
            "https://new.example/\r\nSet-Cookie: a=b",
        ] {
            assert!(redirect_trouble(wrong).is_some(), "{wrong}");
        }
    }
}
