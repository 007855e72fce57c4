use std::cell::{Cell, RefCell};
use std::net::IpAddr;
use std::rc::Rc;

use proximity_table::Generation;

use crate::access::client_fields;
use crate::server::Worker;
use crate::site::Site;
use crate::{Reason, host};

/// Who is at the other end of a client's connection.
pub struct Caller {
    pub worker: Rc<Worker>,
    pub ip: IpAddr,
    pub port: u16,
    /// The fields of the client in the log, the same for all its requests.
    pub log_prefix: String,
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
    pub fn new(worker: Rc<Worker>, ip: IpAddr, port: u16) -> Caller {
        Caller { worker, ip, port, log_prefix: client_fields(ip, port), last: RefCell::new(None) }
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
        let visit = Rc::new(Visit {
            written: written.into(),
            generation: Cell::new(generation),
            site: self.worker.site(route),
            identity: self.identity(written),
        });
        *last = Some(visit.clone());
        Ok(visit)
    }

    /// What a backend is told of the client. Nothing is appended to a client's claim, so nobody can forge an
    /// address that a backend would believe.
    fn identity(&self, host: &[u8]) -> Vec<u8> {
        let ip = self.ip;
        let mut lines = format!(
            "X-Real-IP: {ip}\r\nX-Forwarded-For: {ip}\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Host: "
        )
        .into_bytes();
        lines.extend_from_slice(host);
        lines.extend_from_slice(b"\r\n");
        lines.shrink_to_fit();
        lines
    }
}
