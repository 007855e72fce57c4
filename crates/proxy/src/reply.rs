use std::future::poll_fn;
use std::net::IpAddr;
use std::task::{Poll, ready};

use proximity_table::{Redirect, Route, Verdict, World};

use crate::accept::prefers_json;
use crate::decide::Refusal;
use crate::down::{Down, OwnAnswer};
use crate::exchange::Fate;
use crate::http1::write::push_field;
use crate::http1::{Kind, Method};
use crate::pages::{AppLink, Inside, Page};
use crate::side::Sink;
use crate::ticket::Ticket;
use crate::watch::{Signal, Watch};
use crate::{NormalPath, Reason, redirect_location, split_target};

/// Apps listed by an unknown-host page.
const MOST_LISTED: usize = 200;
/// Seconds that a client may take to read a page.
const PATIENCE: u32 = 30;

/// Answers with a page that says why no backend does.
pub async fn page(ticket: &mut Ticket<'_>, watch: &Watch, refusal: &Refusal, down: &mut Down<'_>) -> Fate {
    let worker = ticket.worker;
    let reason = refusal.reason;
    worker.counters.stopped_by(reason, 1);
    ticket.reason = Some(reason);
    ticket.site.as_ref().map_or(&worker.nobody, |site| &site.counters).turned_away(reason);
    if reason == Reason::ClientGone || watch.signal() == Signal::Close {
        return Fate::Cut;
    }
    let world = worker.world();
    let inside = is_inside(&world, ticket.client).then(|| Inside {
        detail: ticket.site.as_ref().and_then(|site| seen(&site.route)),
        apps: if reason == Reason::UnknownHost { apps(&world) } else { Vec::new() },
    });
    let host = std::str::from_utf8(ticket.host).unwrap_or_default();
    let as_json = prefers_json(ticket.head.values(Kind::Accept, ticket.bytes));
    let mut page = Page { reason, host, inside }.render(as_json);
    page.fields.extend_from_slice(&refusal.fields);
    send(ticket, watch, page.status, &page.fields, &page.body, down).await
}

/// Sends the client elsewhere.
pub async fn redirect(
    ticket: &mut Ticket<'_>,
    watch: &Watch,
    redirect: &Redirect,
    target: &[u8],
    down: &mut Down<'_>,
) -> Result<Fate, Reason> {
    let (path, query) = split_target(target);
    let location = redirect_location(&redirect.to, &NormalPath::new(path)?, query);
    let mut fields = Vec::new();
    push_field(&mut fields, b"Location", &location);
    Ok(send(ticket, watch, redirect.status, &fields, b"", down).await)
}

/// Sends an answer of our own. A body of the request that was not read is not waited for.
async fn send(
    ticket: &mut Ticket<'_>,
    watch: &Watch,
    status: u16,
    fields: &[u8],
    body: &[u8],
    down: &mut Down<'_>,
) -> Fate {
    let worker = ticket.worker;
    let keep_alive = ticket.head.keep_alive && down.is_over() && !worker.draining.get();
    let head_only = ticket.head.method == Method::Head;
    down.respond_own(&OwnAnswer {
        status,
        fields,
        date: &worker.clock.date(),
        body,
        head_only,
        version: ticket.head.version,
        keep_alive,
    });
    ticket.status = status;
    ticket.sent = if head_only { 0 } else { body.len() as u64 };
    watch.no_end();
    watch.extend(PATIENCE);
    let written = poll_fn(|cx| {
        if watch.signal() != Signal::None {
            return Poll::Ready(Err(()));
        }
        ready!(down.poll_flush(cx)).map_err(|_| ())?;
        Poll::Ready(Ok(()))
    });
    match written.await {
        Err(()) => {
            ticket.reason.get_or_insert(Reason::ClientGone);
            ticket.aborted = true;
            Fate::Cut
        }
        Ok(()) if keep_alive => Fate::Stay,
        Ok(()) => Fate::Close,
    }
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

/// The first apps by name, each by the name that it is mainly known by and that leads to it.
fn apps(world: &World) -> Vec<AppLink> {
    let named = world.routes.iter().filter(|(name, route)| {
        !route.hostname.is_wildcard()
            && route.verdict() != Verdict::Disabled
            && route.hostname.to_string().as_str() == &***name
    });
    let mut apps: Vec<AppLink> =
        named.map(|(name, route)| AppLink { name: route.app.to_string(), host: name.to_string() }).collect();
    apps.sort();
    apps.truncate(MOST_LISTED);
    apps
}

#[cfg(test)]
mod tests {
    use proximity_config::Config;
    use proximity_table::{Change, Facts, Generation, Ledger, Source, Touched, Vhost};

    use super::*;

    fn vhost(app: &str, hostname: &str) -> Vhost {
        let backend = proximity_table::BackendTarget::Address("10.20.0.5:80".parse().unwrap());
        Vhost::new(app.parse().unwrap(), hostname.parse().unwrap(), vec![backend])
    }

    fn listed(vhosts: Vec<Vhost>) -> Vec<String> {
        let mut facts = Facts::new(Config::default().intent, Ledger::default());
        for vhost in vhosts {
            facts.apply(Change::Vhost(Source::Api, vhost.into()), &mut Touched::default());
        }
        let world = World::derive(facts, Generation(1));
        apps(&world).into_iter().map(|app| format!("{} {}", app.name, app.host)).collect()
    }

    #[test]
    fn apps_are_listed_by_their_main_names_and_only_where_a_link_leads_somewhere() {
        let mut wiki = vhost("wiki", "wiki.prox.local");
        wiki.aliases = ["a.example.org", "*.wiki.prox.local"].map(|alias| alias.parse().unwrap()).into();
        let mut off = vhost("off", "off.prox.local");
        off.enabled = false;
        let all = vec![wiki, vhost("any", "*.any.prox.local"), off, vhost("db", "db.prox.local")];
        assert_eq!(listed(all), ["db db.prox.local", "wiki wiki.prox.local"]);
    }

    #[test]
    fn of_too_many_apps_the_first_by_name_are_listed() {
        let many = (0..MOST_LISTED + 50).rev().map(|at| {
            let mut one = vhost(&format!("app-{at:03}"), &format!("app-{at:03}.prox.local"));
            one.aliases = vec![format!("aaa-{at:03}.example.org").parse().unwrap()];
            one
        });
        let listed = listed(many.collect());
        let first: Vec<_> =
            (0..MOST_LISTED).map(|at| format!("app-{at:03} app-{at:03}.prox.local")).collect();
        assert_eq!(listed, first);
    }
}
