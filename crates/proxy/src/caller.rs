use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;

use proximity_table::{BackendKey, Service, Verdict};

use crate::access::client_fields;
use crate::http1::{Kind, RequestHead, Version};
use crate::site::Site;
use crate::worker::Worker;
use crate::{
    CompiledEdits, Hop, Origin, Reason, Scheme, Told, origin, write_forwarded, write_forwarded_for,
    write_forwarded_rest, write_x_forwarded_for,
};

/// The fields that tell a backend who asks, and through whom.
const TOLD: [&[u8]; 6] =
    [b"X-Real-IP", b"X-Forwarded-For", b"X-Forwarded-Proto", b"X-Forwarded-Host", b"Forwarded", b"Via"];

/// Who is at the other end of a client's connection.
pub struct Caller {
    pub worker: Rc<Worker>,
    /// The client, or the proxy that speaks for it.
    pub peer: SocketAddr,
    /// Where the connection arrived.
    pub local: SocketAddr,
    /// The fields of the client in the log, the same for all its requests.
    pub log_prefix: String,
    /// Whether what it says about others is believed.
    is_trusted: bool,
    /// What a backend is told of it, up to where the host is named: the same for all its requests.
    introduction: Vec<u8>,
}

impl Caller {
    /// The other end of a connection from `peer` that arrived at `local`.
    pub fn new(worker: Rc<Worker>, peer: SocketAddr, local: SocketAddr) -> Caller {
        let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
        let trusted = &worker.settings().trusted_proxies;
        let is_trusted = trusted.iter().any(|network| network.contains(&peer.ip()));
        let log_prefix = client_fields(peer, peer.ip());
        Caller { worker, peer, local, log_prefix, is_trusted, introduction: introduction(peer) }
    }

    /// Whether a host leads to a backend still as it did to a site: the app's lease has not ended, and nobody has
    /// changed its vhost so that the backend is another one.
    pub fn leads_to(&self, host: &[u8], site: &Site, backend: BackendKey) -> bool {
        self.worker.site(host).is_ok_and(|now| {
            let now = &now.route;
            let open = |service: &&Service| matches!(service.verdict, Verdict::Ready | Verdict::Starting);
            let backends = now.services().filter(open).flat_map(|service| &service.candidates);
            let mut asked = backends.chain(&now.auth_backend);
            now.app == site.route.app && asked.any(|candidate| candidate.key == backend)
        })
    }

    /// Whether its connections begin with a PROXY protocol header.
    pub fn is_announced(&self) -> bool {
        let settings = self.worker.settings();
        settings.proxy_protocol.iter().any(|network| network.contains(&self.peer.ip()))
    }

    /// For whom a trusted proxy asks; `None` when the other end asks for itself.
    pub fn origin(&self, head: &RequestHead, bytes: &[u8]) -> Result<Option<Origin>, Reason> {
        if !self.is_trusted {
            return Ok(None);
        }
        let values = |kind| head.values(kind, bytes).collect::<Vec<_>>();
        let told = Told {
            x_for: &values(Kind::ForwardedFor),
            x_proto: &values(Kind::ForwardedProto),
            x_host: &values(Kind::ForwardedHost),
            forwarded: &values(Kind::Forwarded),
        };
        let settings = self.worker.settings();
        let is_trusted = |ip: IpAddr| settings.trusted_proxies.iter().any(|network| network.contains(&ip));
        Ok(Some(origin(self.peer.ip(), &told, is_trusted)?))
    }

    /// What a backend is told of the client, as field lines, when somebody with that `origin` asks for `host`; `None`
    /// is the other end of the connection itself. Nothing is appended to the claim of one that is not trusted, so
    /// nobody can forge an address that a backend would believe.
    pub fn identity(
        &self,
        origin: Option<&Origin>,
        version: Version,
        host: &[u8],
        edits: Option<&CompiledEdits>,
    ) -> Vec<u8> {
        let via = if self.worker.settings().via { version.via() } else { b"" };
        let hides = |edits: &CompiledEdits| TOLD.iter().any(|name| edits.is_removed(name));
        let mut lines = Vec::new();
        match origin {
            None if !edits.is_some_and(hides) => {
                lines.reserve_exact(self.introduction.len() + 2 * host.len() + via.len() + 64);
                lines.extend_from_slice(&self.introduction);
                write_forwarded_rest(&mut lines, text(host), Scheme::Http);
                lines.extend_from_slice(b"\r\nX-Forwarded-Host: ");
                lines.extend_from_slice(host);
                lines.extend_from_slice(b"\r\n");
                lines.extend_from_slice(via);
            }
            None => {
                let direct = Origin { client: self.peer.ip(), before: Vec::new(), scheme: None, host: None };
                self.tell(&mut lines, &direct, host, edits, via);
            }
            Some(origin) => self.tell(&mut lines, origin, host, edits, via),
        }
        lines
    }

    /// Line by line, without those that the administrator removes.
    fn tell(
        &self,
        lines: &mut Vec<u8>,
        origin: &Origin,
        host: &[u8],
        edits: Option<&CompiledEdits>,
        via: &[u8],
    ) {
        let [real, x_for, x_proto, x_host, forwarded, via_name] = TOLD;
        let mut line = |name: &[u8], value: &dyn Fn(&mut Vec<u8>)| {
            if !edits.is_some_and(|edits| edits.is_removed(name)) {
                lines.extend_from_slice(name);
                lines.extend_from_slice(b": ");
                value(lines);
                lines.extend_from_slice(b"\r\n");
            }
        };
        let scheme = origin.scheme.unwrap_or(Scheme::Http);
        let host = origin.host.as_ref().map_or(host, |host| host.as_bytes());
        line(real, &|to| to.extend_from_slice(origin.client.to_string().as_bytes()));
        line(x_for, &|to| write_x_forwarded_for(to, &origin.before, self.peer.ip()));
        line(x_proto, &|to| to.extend_from_slice(scheme.as_str().as_bytes()));
        line(x_host, &|to| to.extend_from_slice(host));
        let hop = Hop { client: self.peer, with_port: false, host: text(host), scheme };
        line(forwarded, &|to| write_forwarded(to, &origin.before, &hop));
        if !via.is_empty() && !edits.is_some_and(|edits| edits.is_removed(via_name)) {
            lines.extend_from_slice(via);
        }
    }
}

/// What a backend is told of a client that asks for itself, up to the place where `Forwarded` names the host.
fn introduction(peer: SocketAddr) -> Vec<u8> {
    let ip = peer.ip();
    let mut lines = format!("X-Real-IP: {ip}\r\nX-Forwarded-For: {ip}\r\n").into_bytes();
    lines.extend_from_slice(b"X-Forwarded-Proto: http\r\nForwarded: ");
    write_forwarded_for(&mut lines, &[], peer, false);
    lines.shrink_to_fit();
    lines
}

fn text(host: &[u8]) -> &str {
    std::str::from_utf8(host).unwrap_or_default()
}
