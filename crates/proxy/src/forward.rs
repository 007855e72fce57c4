use std::cell::Cell;
use std::convert::Infallible;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use http::header::{CONNECTION, HeaderMap, HeaderValue, UPGRADE};
use http::{Method, Request, Response, StatusCode, Uri, Version, request};
use http_body::Body;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use proximity_table::{BackendProtocol, Route, Service, Verdict, World};

use crate::body::{Answer, Ticket, Upload};
use crate::headers::{self, Forwarding};
use crate::pages::{AppLink, Inside, Page};
use crate::pool::Connection;
use crate::server::{Client, Worker};
use crate::{Reason, host};

/// Apps listed by an unknown-host page.
const MOST_LISTED: usize = 200;

/// Answers one request.
pub async fn answer(
    client: Rc<Client>,
    mut request: Request<Incoming>,
) -> Result<Response<Answer>, Infallible> {
    client.activity.request_began();
    let mut ticket = Ticket {
        route: None,
        method: request.method().clone(),
        uri: request.uri().clone(),
        host: HeaderValue::from_static(""),
        version: request.version(),
        start: Instant::now(),
        status: 0,
        received: None,
        sent: 0,
        client,
    };
    let found = {
        let target = host::target(request.method(), request.uri(), request.version(), request.headers());
        match target {
            Ok(target) => {
                ticket.host = target.written;
                ticket.client.worker.route(&target.host).ok_or(Reason::UnknownHost)
            }
            Err(error) => {
                if let Some(written) = request.headers().get(http::header::HOST) {
                    ticket.host = written.clone();
                }
                Err(error.into())
            }
        }
    };
    let route = match found.and_then(|route| {
        ticket.route = Some(route.clone());
        // Paths and redirects are not served yet: every request goes to the vhost's own backends.
        ready(&route).map(|()| route)
    }) {
        Ok(route) => route,
        Err(reason) => return Ok(page(ticket, reason, request.headers())),
    };
    let upgrade = headers::upgrade_requested(request.headers())
        .map(|protocol| (protocol, hyper::upgrade::on(&mut request)));
    let (mut head, body) = request.into_parts();
    let accept = head.headers.get(http::header::ACCEPT).cloned();
    prepare(&mut head, &ticket);
    let (protocol, upgraded) = upgrade.unzip();
    if let Some(protocol) = protocol {
        headers::set_upgrade(&mut head.headers, protocol);
    }
    let upload = if body.is_end_stream() {
        Upload::Empty
    } else {
        let count = Rc::new(Cell::new(0));
        ticket.received = Some(count.clone());
        Upload::Streaming { body, count, client: ticket.client.clone() }
    };
    match carry(&ticket.client.worker, &route, Request::from_parts(head, upload)).await {
        Ok((connection, response)) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
            Ok(switch(ticket, response, upgraded).unwrap_or_else(|ticket| {
                drop(connection);
                page(*ticket, Reason::BackendBroke, &HeaderMap::new())
            }))
        }
        Ok((connection, response)) => {
            let (mut head, body) = response.into_parts();
            headers::strip_hop_by_hop(&mut head.headers);
            if ticket.client.worker.draining.get() {
                head.headers.insert(CONNECTION, HeaderValue::from_static("close"));
            }
            // An HTTP/1.0 answer is passed on in our own version (RFC 9112 §2.3).
            head.version = Version::HTTP_11;
            ticket.status = head.status.as_u16();
            Ok(Response::from_parts(head, Answer::carried(body, connection, ticket)))
        }
        Err(reason) => {
            let mut headers = HeaderMap::new();
            headers.extend(accept.map(|accept| (http::header::ACCEPT, accept)));
            Ok(page(ticket, reason, &headers))
        }
    }
}

/// Whether requests may go to the backends of a route.
fn ready(route: &Route) -> Result<(), Reason> {
    let Some(service) = route.root.service() else { return Err(Reason::BackendProtocol) };
    match (service.verdict, service.protocol) {
        (Verdict::Disabled, _) => Err(Reason::Disabled),
        (Verdict::Stopped, _) => Err(Reason::Stopped),
        (Verdict::Starting, _) => Err(Reason::Starting),
        (Verdict::Ready, BackendProtocol::Http) => Ok(()),
        (Verdict::Ready, BackendProtocol::Https | BackendProtocol::H2c) => Err(Reason::BackendProtocol),
    }
}

fn prepare(head: &mut request::Parts, ticket: &Ticket) {
    let forwarding = Forwarding {
        client_ip: ticket.client.ip_text.clone(),
        scheme: HeaderValue::from_static("http"),
        asked_host: ticket.host.clone(),
    };
    let ambiguous = headers::rewrite_request(&mut head.headers, &forwarding);
    if ambiguous > 0 {
        ticket.client.worker.counters.stopped_by(Reason::HeaderName, ambiguous);
    }
    head.version = Version::HTTP_11;
    if head.uri.authority().is_some() {
        // RFC 9112 §3.2.1: an origin server is asked in origin form.
        let path = std::mem::take(&mut head.uri).into_parts().path_and_query;
        head.uri = path.map_or_else(|| Uri::from_static("/"), Uri::from);
    }
}

/// Sends a request to the backends in turn until one answers. Another backend, or the same on a new
/// connection, is tried only where the request cannot have been acted on twice.
async fn carry(
    worker: &Worker,
    route: &Arc<Route>,
    mut request: Request<Upload>,
) -> Result<(Connection, Response<Incoming>), Reason> {
    let backends = |service: &Service| service.usable(route.from_lease()).cloned().collect::<Vec<_>>();
    let backends = route.root.service().map(backends).unwrap_or_default();
    let usable = backends.len();
    let first = worker.turns.borrow_mut().next(&route.app, usable);
    // RFC 9110 §9.2.2: what may be repeated without harm. An upload cannot be sent again.
    let repeatable = request.body().is_end_stream() && request.method().is_idempotent();
    let mut failure = Reason::Starting;
    for turn in 0..usable {
        let Some(backend) = backends.get((first + turn) % usable) else { break };
        let (host, mut kept) = worker.pool.take(backend.key, !repeatable);
        headers::set_host(request.headers_mut(), host);
        loop {
            let mut connection = match kept.take() {
                Some(connection) => connection,
                None => match worker.pool.connect(backend.key).await {
                    Ok(connection) => connection,
                    Err(reason) => {
                        failure = reason;
                        break;
                    }
                },
            };
            let again = (connection.is_reused() && repeatable).then(|| Head::of(&request));
            let mut error = match connection.send(request).await {
                Ok(response) => return Ok((connection, response)),
                Err(error) => error,
            };
            match (error.take_message(), again) {
                (Some(unsent), _) if connection.is_reused() => request = unsent,
                (Some(unsent), _) => {
                    request = unsent;
                    failure = Reason::BackendBroke;
                    break;
                }
                (None, Some(head)) => request = head.into_request(),
                (None, None) => return Err(Reason::BackendBroke),
            }
            worker.counters.retried();
        }
    }
    Err(failure)
}

/// What is needed to send a request without body once more.
struct Head {
    method: Method,
    uri: Uri,
    headers: HeaderMap,
}

impl Head {
    fn of(request: &Request<Upload>) -> Head {
        Head {
            method: request.method().clone(),
            uri: request.uri().clone(),
            headers: request.headers().clone(),
        }
    }

    fn into_request(self) -> Request<Upload> {
        let mut request = Request::new(Upload::Empty);
        *request.method_mut() = self.method;
        *request.uri_mut() = self.uri;
        *request.headers_mut() = self.headers;
        request
    }
}

/// Connects the two sides of an upgrade that the backend accepted. Gives the ticket back when the client
/// had not asked for it.
fn switch(
    mut ticket: Ticket,
    mut response: Response<Incoming>,
    downstream: Option<OnUpgrade>,
) -> Result<Response<Answer>, Box<Ticket>> {
    let (Some(downstream), Some(protocol)) = (downstream, response.headers().get(UPGRADE).cloned()) else {
        return Err(Box::new(ticket));
    };
    let upstream = hyper::upgrade::on(&mut response);
    let (mut head, _) = response.into_parts();
    headers::strip_hop_by_hop(&mut head.headers);
    headers::set_upgrade(&mut head.headers, protocol);
    ticket.client.activity.upgraded();
    ticket.status = StatusCode::SWITCHING_PROTOCOLS.as_u16();
    tokio::task::spawn_local(tunnel(ticket, downstream, upstream));
    Ok(Response::from_parts(head, Answer::switching()))
}

async fn tunnel(mut ticket: Ticket, downstream: OnUpgrade, upstream: OnUpgrade) {
    let worker = ticket.client.worker.clone();
    let _open = worker.tunnel_opened();
    let (Ok(downstream), Ok(upstream)) = tokio::join!(downstream, upstream) else { return };
    let (mut downstream, mut upstream) = (TokioIo::new(downstream), TokioIo::new(upstream));
    // Either side may just go away; there is nobody left to tell.
    if let Ok((up, down)) = tokio::io::copy_bidirectional(&mut downstream, &mut upstream).await {
        ticket.received = Some(Rc::new(Cell::new(up)));
        ticket.sent = down;
    }
}

fn page(mut ticket: Ticket, reason: Reason, request_headers: &HeaderMap) -> Response<Answer> {
    let worker = ticket.client.worker.clone();
    worker.counters.stopped_by(reason, 1);
    let world = worker.world();
    let inside = is_inside(&world, ticket.client.ip).then(|| Inside {
        detail: ticket.route.as_deref().and_then(seen),
        apps: if reason == Reason::UnknownHost { apps(&world) } else { Vec::new() },
    });
    let page = Page { reason, host: ticket.host.to_str().unwrap_or_default(), inside };
    let (mut head, body) = page.render(request_headers).into_parts();
    if worker.draining.get() {
        head.headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    ticket.status = head.status.as_u16();
    Response::from_parts(head, Answer::page(body, ticket))
}

fn is_inside(world: &World, ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V4(ip) if world.facts.intent().network_of(ip).is_some())
}

/// What the last probes saw of the backends.
fn seen(route: &Route) -> Option<String> {
    route.backends().find_map(|backend| {
        let reason = backend.health.as_ref()?.reason.as_ref()?;
        Some(format!("{}: {reason}", backend.key.addr))
    })
}

fn apps(world: &World) -> Vec<AppLink> {
    let mut apps: Vec<AppLink> = world
        .routes
        .values()
        .filter(|route| !route.hostname.is_wildcard())
        .take(MOST_LISTED)
        .map(|route| AppLink { name: route.app.to_string(), host: route.hostname.to_string() })
        .collect();
    apps.sort();
    apps.dedup();
    apps
}
