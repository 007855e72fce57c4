use std::cell::{Cell, RefCell};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;

use proximity_table::{BackendKey, Generation, Service, Verdict};

use crate::access::client_fields;
use crate::http1::{Kind, RequestHead};
use crate::server::Worker;
use crate::site::Site;
use crate::{
    CompiledEdits, Hop, Origin, Reason, Scheme, Told, host, origin, write_forwarded, write_x_forwarded_for,
};

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
    /// The host that was asked for last: most clients ask for the same again.
    last: RefCell<Option<Rc<Visit>>>,
}

/// What is the same for all requests of one client for one host.
pub struct Visit {
    /// The authority as it was written.
    written: Box<[u8]>,
    /// The world in which `site` was looked up.
    generation: Cell<Generation>,
    pub site: Rc<Site>,
    /// Field lines that tell the backend who asked and for what.
    pub identity: Vec<u8>,
}

impl Caller {
    /// The other end of a connection from `peer` that arrived at `local`.
    pub fn new(worker: Rc<Worker>, peer: SocketAddr, local: SocketAddr) -> Caller {
        let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
        let trusted = &worker.settings().trusted_proxies;
        let is_trusted = trusted.iter().any(|network| network.contains(&peer.ip()));
        let log_prefix = client_fields(peer, peer.ip());
        Caller { worker, peer, local, log_prefix, is_trusted, last: RefCell::new(None) }
    }

    /// Whether its connections begin with a PROXY protocol header.
    pub fn is_announced(&self) -> bool {
        let settings = self.worker.settings();
        settings.proxy_protocol.iter().any(|network| network.contains(&self.peer.ip()))
    }

    /// The site of the host that is asked for.
    pub fn visit(&self, written: &[u8]) -> Result<Rc<Visit>, Reason> {
        let generation = self.worker.generation();
        if let Some(last) = &*self.last.borrow()
            && *last.written == *written
            && last.generation.get() == generation
        {
            return Ok(last.clone());
        }
        self.look_up(written, generation)
    }

    /// Whether the host that was asked for leads to a backend still: the app's lease has not ended, and nobody has
    /// changed its vhost so that the backend is another one.
    pub fn leads_to(&self, visit: &Visit, backend: BackendKey) -> bool {
        let before = &visit.site.route;
        self.visit(&visit.written).is_ok_and(|now| {
            let now = &now.site.route;
            let open = |service: &&Service| matches!(service.verdict, Verdict::Ready | Verdict::Starting);
            let mut backends = now.services().filter(open).flat_map(|service| &service.candidates);
            now.app == before.app && backends.any(|candidate| candidate.key == backend)
        })
    }

    #[cold]
    fn look_up(&self, written: &[u8], generation: Generation) -> Result<Rc<Visit>, Reason> {
        let name = if written.is_empty() { Some("".into()) } else { host::normalise(written) };
        let name = name.ok_or(Reason::InvalidHost)?;
        let route = self.worker.route(&name).ok_or(Reason::UnknownHost)?;
        let mut last = self.last.borrow_mut();
        if let Some(last) = &*last
            && *last.written == *written
            && std::sync::Arc::ptr_eq(&last.site.route, &route)
        {
            last.generation.set(generation);
            return Ok(last.clone());
        }
        let site = self.worker.site(route);
        let direct = Origin { client: self.peer.ip(), before: Vec::new(), scheme: None, host: None };
        let visit = Rc::new(Visit {
            written: written.into(),
            generation: Cell::new(generation),
            identity: self.identity(&direct, written, site.request_edits.as_ref()),
            site,
        });
        *last = Some(visit.clone());
        Ok(visit)
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

    /// What a backend is told of the client. Nothing is appended to the claim of one that is not trusted, so
    /// nobody can forge an address that a backend would believe.
    pub fn identity(&self, origin: &Origin, host: &[u8], edits: Option<&CompiledEdits>) -> Vec<u8> {
        let mut lines = Vec::with_capacity(256);
        let mut line = |name: &[u8], value: &dyn Fn(&mut Vec<u8>)| {
            if !edits.is_some_and(|edits| edits.is_removed(name)) {
                lines.extend_from_slice(name);
                lines.extend_from_slice(b": ");
                value(&mut lines);
                lines.extend_from_slice(b"\r\n");
            }
        };
        let scheme = origin.scheme.unwrap_or(Scheme::Http);
        let host = origin.host.as_ref().map_or(host, |host| host.as_bytes());
        line(b"X-Real-IP", &|to| to.extend_from_slice(origin.client.to_string().as_bytes()));
        line(b"X-Forwarded-For", &|to| write_x_forwarded_for(to, &origin.before, self.peer.ip()));
        line(b"X-Forwarded-Proto", &|to| to.extend_from_slice(scheme.as_str().as_bytes()));
        line(b"X-Forwarded-Host", &|to| to.extend_from_slice(host));
        let host = std::str::from_utf8(host).unwrap_or_default();
        let hop = Hop { client: self.peer, with_port: false, host, scheme };
        line(b"Forwarded", &|to| write_forwarded(to, &origin.before, &hop));
        if self.worker.settings().via {
            line(b"Via", &|to| to.extend_from_slice(b"1.1 proximity"));
        }
        lines.shrink_to_fit();
        lines
    }
}
