use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use axum::Extension;
use axum::Json;
use axum::Router;
use axum::body::Bytes;
use axum::extract::rejection::QueryRejection;
use axum::extract::{DefaultBodyLimit, Path, Query, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use proximity_config::Spelling;
use proximity_table::{Facts, Label, Name, Protocol, Vhost, VhostPolicy};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::dns_view::{DnsAnswerView, FlushInput, Flushed, QuestionInput};
use crate::explain_forward::explain_forward;
use crate::metrics::CONTENT_TYPE;
use crate::objects::{RecordInput, ReservationInput, UpgradeInput};
use crate::view::{AppView, LeaseView, Page, RecordView, ReservationView, Upgraded};
use crate::{
    Appliance, BASE, COMMAND_LINE, Change, ExplainView, ForwardView, HealthView, Problem, SPELLING_FIELD,
    ServiceVerb, Subject, Token, VhostView, auth, edit, forward_input, vhost_input,
};

/// Most octets of a request's body.
const MOST_BODY: usize = 1 << 20;

/// What a browser finds at the root until there are pages.
const LANDING: &str = "Proximity's admin API is here, under /api/v1/appliance (status, apps, vhosts, dhcp/leases, dns/records).\n\
    Over TCP it wants `Authorization: Bearer <token>`; the token is in state_dir/admin.token.\n\
    This version has no web pages; the command `proximity status` shows the same.\n";

/// Who may use the API on a listener.
#[derive(Clone, Debug)]
pub enum Trust {
    /// Whoever can open the socket.
    Everybody,
    /// Whoever carries the token, unless it comes from an app network.
    Token(Token),
}

/// The peer of a TCP connection, put into each request by the listener.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub IpAddr);

type Answer<T> = Result<Json<T>, Problem>;

pub fn router<A: Appliance>(appliance: Arc<A>, trust: Trust) -> Router {
    let api = Router::new()
        .route("/status", get(async |State(a): State<Arc<A>>| Json(a.status())))
        .route("/services", get(async |State(a): State<Arc<A>>| page(a.services())))
        .route("/services/{name}/{verb}", post(set_service::<A>))
        .route("/upgrade", post(upgrade::<A>))
        .route("/reload", post(async |State(a): State<Arc<A>>| a.reload().await.map(Json)))
        .route(
            "/vhosts",
            get(async |State(a): State<Arc<A>>| page(VhostView::all(&a.world()))).post(create_vhost::<A>),
        )
        .route("/vhosts/{name}", get(show_vhost::<A>).put(put_vhost::<A>).delete(delete_vhost::<A>))
        .route("/vhosts/{name}/health", get(vhost_health::<A>))
        .route("/dhcp/leases", get(async |State(a): State<Arc<A>>| page(LeaseView::all(&a.world()))))
        .route("/dhcp/leases/{ip}", delete(delete_lease::<A>))
        .route(
            "/dhcp/reservations",
            get(async |State(a): State<Arc<A>>| page(ReservationView::all(&a.world())))
                .post(create_reservation::<A>),
        )
        .route("/dhcp/reservations/{mac}", delete(delete_reservation::<A>))
        .route(
            "/dns/records",
            get(async |State(a): State<Arc<A>>| page(RecordView::all(&a.world()))).post(add_record::<A>),
        )
        .route("/dns/records/{name}/{type}", delete(delete_records::<A>))
        .route("/dns/upstreams", get(async |State(a): State<Arc<A>>| page(a.dns_upstreams())))
        .route("/dns/flush", post(flush_dns::<A>))
        .route("/dns/query", post(ask_dns::<A>))
        .route("/apps", get(async |State(a): State<Arc<A>>| page(all_apps(&*a))))
        .route("/apps/{name}", get(show_app::<A>))
        .route("/apps/{name}/explain", get(explain_app::<A>))
        .route(
            "/forwards",
            get(async |State(a): State<Arc<A>>| page(all_forwards(&*a))).post(create_forward::<A>),
        )
        .route("/forwards/{protocol}/{port}", get(show_forward::<A>).delete(delete_forward::<A>))
        .route("/forwards/{protocol}/{port}/explain", get(explain_port::<A>))
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(MOST_BODY))
        .layer(Extension(trust.clone()))
        .layer(middleware::from_fn_with_state((appliance.clone(), trust.clone()), authorize::<A>));
    let metrics = Router::new()
        .route("/metrics", get(metrics::<A>))
        .layer(middleware::from_fn_with_state((appliance.clone(), trust.clone()), authorize::<A>));
    Router::new()
        .nest(BASE, api)
        .merge(metrics)
        .route("/", get(async || LANDING))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready::<A>))
        .fallback(unknown_path)
        .layer(middleware::from_fn_with_state((appliance.clone(), trust), admit::<A>))
        .with_state(appliance)
}

/// Turns away whoever comes from an app network, before anything else.
async fn admit<A: Appliance>(
    State((appliance, trust)): State<(Arc<A>, Trust)>,
    request: Request,
    next: Next,
) -> Response {
    if let (Trust::Token(_), Some(Peer(peer))) = (&trust, request.extensions().get::<Peer>())
        && let Err(problem) = auth::admit(&appliance.world(), *peer)
    {
        return problem.into_response();
    }
    next.run(request).await
}

async fn authorize<A: Appliance>(
    State((_, trust)): State<(Arc<A>, Trust)>,
    request: Request,
    next: Next,
) -> Response {
    if let Trust::Token(token) = &trust
        && let Err(problem) = token.check(request.headers())
    {
        let mut response = problem.into_response();
        let challenge = header::HeaderValue::from_static("Bearer realm=\"proximity\"");
        response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
        return response;
    }
    next.run(request).await
}

async fn ready<A: Appliance>(State(appliance): State<Arc<A>>) -> Response {
    match appliance.ready() {
        Ok(()) => "ready\n".into_response(),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response(),
    }
}

/// Off the thread that everybody else waits for: with thousands of apps it is some milliseconds of work.
async fn metrics<A: Appliance>(State(appliance): State<Arc<A>>) -> Result<Response, Problem> {
    let page = tokio::task::spawn_blocking(move || appliance.metrics()).await.map_err(|_| {
        let hint = "look into the log, and report it";
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "the figures could not be put together", hint)
    })?;
    Ok(([(header::CONTENT_TYPE, CONTENT_TYPE)], page).into_response())
}

async fn set_service<A: Appliance>(
    State(appliance): State<Arc<A>>,
    Path((name, verb)): Path<(String, String)>,
) -> Result<Response, Problem> {
    let verb = match verb.as_str() {
        "start" => ServiceVerb::Start,
        "stop" => ServiceVerb::Stop,
        "restart" => ServiceVerb::Restart,
        _ => {
            let detail = format!("`{verb}` cannot be done to a service");
            return Err(Problem::new(StatusCode::NOT_FOUND, detail, "use start, stop or restart"));
        }
    };
    appliance.set_service(&name, verb)?;
    let service = appliance.services().into_iter().find(|service| service.name == name);
    Ok(Json(service).into_response())
}

/// Runs a program of the asker's choice with our privileges: not for whoever has a token.
async fn upgrade<A: Appliance>(
    State(appliance): State<Arc<A>>,
    trust: Extension<Trust>,
    body: Bytes,
) -> Answer<Upgraded> {
    if !matches!(*trust, Trust::Everybody) {
        let detail = "a binary is replaced over the unix socket only";
        return Err(Problem::new(StatusCode::FORBIDDEN, detail, "use `proximity upgrade` on the appliance"));
    }
    let input = if body.is_empty() { UpgradeInput::default() } else { read(&body)? };
    appliance.upgrade(input.binary).await.map(Json)
}

async fn create_vhost<A: Appliance>(
    State(appliance): State<Arc<A>>,
    head: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let spelling = spelling(&head);
    let vhost = read_vhost(&*appliance, &body, None, spelling)?;
    let name = vhost.app_name.to_string();
    change(&*appliance, move |facts| edit::put_vhost(facts, vhost, false, spelling)).await?;
    Ok((StatusCode::CREATED, find_vhost(&*appliance, &name)?).into_response())
}

async fn put_vhost<A: Appliance>(
    State(appliance): State<Arc<A>>,
    Path(name): Path<String>,
    head: HeaderMap,
    body: Bytes,
) -> Answer<VhostView> {
    let spelling = spelling(&head);
    let vhost = read_vhost(&*appliance, &body, Some(&name), spelling)?;
    change(&*appliance, move |facts| edit::put_vhost(facts, vhost, true, spelling)).await?;
    find_vhost(&*appliance, &name)
}

/// In which words the asker is told what is wrong with a body.
fn spelling(head: &HeaderMap) -> Spelling {
    match head.get(SPELLING_FIELD).is_some_and(|value| value == COMMAND_LINE) {
        true => Spelling::Line,
        false => Spelling::Json,
    }
}

/// The vhost that a body means, once all that it names is there.
fn read_vhost<A: Appliance>(
    appliance: &A,
    body: &Bytes,
    name: Option<&str>,
    spelling: Spelling,
) -> Result<Vhost, Problem> {
    let world = appliance.world();
    let vhost = vhost_input::vhost(read(body)?, name, &world.facts.intent().domain, spelling)?;
    for path in vhost.authorities() {
        appliance.check_authority(path).map_err(|text| Problem::explained(format!("tls_ca: {text}")))?;
    }
    Ok(vhost)
}

async fn show_vhost<A: Appliance>(
    State(appliance): State<Arc<A>>,
    Path(name): Path<String>,
) -> Answer<VhostView> {
    find_vhost(&*appliance, &name)
}

async fn delete_vhost<A: Appliance>(
    State(appliance): State<Arc<A>>,
    Path(name): Path<String>,
) -> Result<StatusCode, Problem> {
    change(&*appliance, move |facts| edit::remove_vhost(facts, &name)).await
}

async fn vhost_health<A: Appliance>(
    State(appliance): State<Arc<A>>,
    Path(name): Path<String>,
) -> Answer<HealthView> {
    find_vhost(&*appliance, &name).map(|Json(vhost)| Json(vhost.health))
}

async fn delete_lease<A: Appliance>(
    State(appliance): State<Arc<A>>,
    Path(ip): Path<String>,
) -> Result<StatusCode, Problem> {
    let ip: Ipv4Addr = ip
        .parse()
        .map_err(|_| Problem::invalid(format!("`{ip}` is not an address"), "write it as 10.20.0.101"))?;
    change(&*appliance, move |facts| edit::remove_lease(facts, ip)).await
}

async fn create_reservation<A: Appliance>(
    State(appliance): State<Arc<A>>,
    body: Bytes,
) -> Result<Response, Problem> {
    let reservation = read::<ReservationInput>(&body)?.build(appliance.world().facts.intent())?;
    let mac = reservation.mac.to_string();
    change(&*appliance, move |facts| edit::put_reservation(facts, reservation)).await?;
    let made = ReservationView::all(&appliance.world()).into_iter().find(|view| view.mac == mac);
    Ok((StatusCode::CREATED, Json(made)).into_response())
}

async fn delete_reservation<A: Appliance>(
    State(appliance): State<Arc<A>>,
    Path(mac): Path<String>,
) -> Result<StatusCode, Problem> {
    change(&*appliance, move |facts| edit::remove_reservation(facts, &mac)).await
}

async fn add_record<A: Appliance>(State(appliance): State<Arc<A>>, body: Bytes) -> Result<Response, Problem> {
    let record = read::<RecordInput>(&body)?.build(&appliance.world().facts.intent().domain)?;
    let (name, value) = (record.name.to_string(), record.data.to_string());
    change(&*appliance, move |facts| edit::add_record(facts, record)).await?;
    let made =
        RecordView::all(&appliance.world()).into_iter().find(|view| view.name == name && view.value == value);
    Ok((StatusCode::CREATED, Json(made)).into_response())
}

async fn delete_records<A: Appliance>(
    State(appliance): State<Arc<A>>,
    Path((name, rtype)): Path<(String, String)>,
) -> Result<StatusCode, Problem> {
    change(&*appliance, move |facts| edit::remove_records(facts, &name, &rtype)).await
}

async fn flush_dns<A: Appliance>(State(appliance): State<Arc<A>>, body: Bytes) -> Answer<Flushed> {
    let input = if body.is_empty() { FlushInput::default() } else { read(&body)? };
    let name = input.name.map(|name| name.parse().map_err(Problem::explained)).transpose()?;
    Ok(Json(Flushed { answers: appliance.flush_dns(name.as_ref()) }))
}

async fn ask_dns<A: Appliance>(State(appliance): State<Arc<A>>, body: Bytes) -> Answer<DnsAnswerView> {
    let QuestionInput { name, rtype } = read(&body)?;
    // A single label is an app's, as everywhere; all else is written in full.
    let name = match name.contains('.') {
        false => Name::relative(&name, &appliance.world().facts.intent().domain),
        true => name.parse(),
    };
    let name = name.map_err(Problem::explained)?;
    appliance.ask_dns(name, rtype.unwrap_or_else(|| "A".to_owned())).await.map(Json)
}

async fn show_app<A: Appliance>(
    State(appliance): State<Arc<A>>,
    Path(name): Path<String>,
) -> Answer<AppView> {
    let world = appliance.world();
    let app = world.app(&name).ok_or_else(|| Problem::absent("app", &name, "proximity app ls"))?;
    Ok(Json(AppView::of(&world, &app, |key, policy, is_sole| appliance.backend_load(key, policy, is_sole))))
}

fn all_apps<A: Appliance>(appliance: &A) -> Vec<AppView> {
    AppView::all(&appliance.world(), |key, policy, is_sole| appliance.backend_load(key, policy, is_sole))
}

/// What `explain` is asked beside a name.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Explained {
    /// The target of the request.
    path: Option<String>,
    /// Who asks.
    from: Option<IpAddr>,
}

async fn explain_app<A: Appliance>(
    State(appliance): State<Arc<A>>,
    Path(name): Path<String>,
    asked: Result<Query<Explained>, QueryRejection>,
) -> Answer<ExplainView> {
    let Query(Explained { path, from }) = asked.map_err(|error| {
        Problem::new(StatusCode::BAD_REQUEST, error.body_text(), "ask with ?path=/x and &from=192.168.1.9")
    })?;
    let path = path.filter(|path| !path.is_empty()).unwrap_or_else(|| "/".to_owned());
    let world = appliance.world();
    let subject = Subject::of(&world, &name)?;
    let said = appliance.said(&subject.app, &path, from);
    let figures = |forward: &_| appliance.forward_figures(forward);
    Ok(Json(ExplainView::of(&world, &subject, said, figures, appliance.now())))
}

async fn explain_port<A: Appliance>(
    State(appliance): State<Arc<A>>,
    Path((protocol, port)): Path<(String, String)>,
) -> Answer<ExplainView> {
    let (parsed, number) = forwarded_port(&protocol, &port)?;
    let world = appliance.world();
    let found = world.facts.intent().forwards.get(&(parsed, number));
    let (Some((_, forward)), Some(resolved)) = (found, world.forward(parsed, number)) else {
        return Err(Problem::absent("forward", &format!("{protocol}/{port}"), "proximity forward ls"));
    };
    Ok(Json(explain_forward(&world, forward, &appliance.forward_figures(resolved), appliance.now())))
}

async fn create_forward<A: Appliance>(
    State(appliance): State<Arc<A>>,
    head: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let forward = forward_input::forward(read(&body)?, spelling(&head))?;
    let wanted = (forward.protocol, forward.port);
    change(&*appliance, move |facts| edit::put_forward(facts, forward)).await?;
    let made = ForwardView::one(&appliance.world(), wanted, |forward| appliance.forward_figures(forward));
    Ok((StatusCode::CREATED, Json(made)).into_response())
}

fn all_forwards<A: Appliance>(appliance: &A) -> Vec<ForwardView> {
    ForwardView::all(&appliance.world(), |forward| appliance.forward_figures(forward))
}

async fn show_forward<A: Appliance>(
    State(appliance): State<Arc<A>>,
    Path((protocol, port)): Path<(String, String)>,
) -> Answer<ForwardView> {
    let wanted = forwarded_port(&protocol, &port)?;
    let figures = |forward: &_| appliance.forward_figures(forward);
    let found = ForwardView::one(&appliance.world(), wanted, figures);
    found.map(Json).ok_or_else(|| no_forward(&protocol, &port))
}

async fn delete_forward<A: Appliance>(
    State(appliance): State<Arc<A>>,
    Path((protocol, port)): Path<(String, String)>,
) -> Result<StatusCode, Problem> {
    let (parsed, port) = forwarded_port(&protocol, &port)?;
    change(&*appliance, move |facts| edit::remove_forward(facts, parsed, port)).await
}

/// The port that a path of the API names.
fn forwarded_port(protocol: &str, port: &str) -> Result<(Protocol, u16), Problem> {
    let known = match protocol {
        "tcp" => Some(Protocol::Tcp),
        "udp" => Some(Protocol::Udp),
        _ => None,
    };
    known.zip(port.parse().ok()).ok_or_else(|| no_forward(protocol, port))
}

fn no_forward(protocol: &str, port: &str) -> Problem {
    Problem::absent("forward", &format!("{protocol}/{port}"), "proximity forward ls")
}

async fn unknown_path(request: Request) -> Problem {
    let detail = format!("there is nothing at {}", request.uri().path());
    Problem::new(StatusCode::NOT_FOUND, detail, format!("the API is under {BASE}, such as {BASE}/status"))
}

async fn wrong_method(request: Request) -> Problem {
    let detail = format!("{} is not done at {}", request.method(), request.uri().path());
    Problem::new(
        StatusCode::METHOD_NOT_ALLOWED,
        detail,
        "lists take GET and POST, single objects GET, PUT and DELETE",
    )
}

fn page<T: Serialize>(items: Vec<T>) -> Json<Page<T>> {
    Json(Page { total: items.len(), items })
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    serde_json::from_slice(body).map_err(|error| {
        Problem::new(
            StatusCode::BAD_REQUEST,
            format!("the body cannot be read: {error}"),
            "send a JSON object",
        )
    })
}

fn find_vhost<A: Appliance>(appliance: &A, name: &str) -> Answer<VhostView> {
    let world = appliance.world();
    let found =
        VhostView::named(&world, name).ok_or_else(|| Problem::absent("vhost", name, "proximity vhost ls"))?;
    let policy = found.app_name.parse().ok().and_then(|app: Label| {
        let (_, vhost) = world.facts.intent().vhosts.get(&app)?;
        Some(vhost.policy.clone())
    });
    let policy = policy.unwrap_or_else(VhostPolicy::unchanged);
    Ok(Json(found.with_loads(|key, is_sole| appliance.backend_load(key, &policy, is_sole))))
}

async fn change<A: Appliance>(
    appliance: &A,
    edit: impl FnOnce(&Facts) -> Result<Vec<Change>, Problem> + Send + 'static,
) -> Result<StatusCode, Problem> {
    appliance.edit(Box::new(edit)).await.map(|_| StatusCode::NO_CONTENT)
}
