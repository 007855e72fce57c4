//! The page of every reason that has one, as browsers and as programs get it, from outside the app networks.

use std::any::Any;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::LazyLock;

use proximity_proxy::Reason;
use proximity_table::{
    BackendProtocol, BackendTarget, BackendTls, BasicAuth, BasicUser, Change, ForwardAuth, LeaseState,
    ProxySettings, Rate, Source, Vhost, VhostPolicy,
};

use crate::auth::BCRYPT;
use crate::https;
use crate::scripts::{breaking, nobody, stalling, swallowing, working};
use crate::support::{Backend, Client, PATIENCE, Proxy, Table, lease, vhost, with};

/// The name of an app that no page tells strangers of.
const HIDDEN: &str = "hidden";

type Preparation = dyn FnOnce(&Proxy) -> Box<dyn Any>;

/// A proxy that answers a request for a reason.
struct Scene {
    table: Table,
    settings: ProxySettings,
    /// The host that the request is for, when the page can name one.
    host: &'static str,
    /// The request without the fields that ask for a form.
    line: &'static str,
    fields: &'static str,
    body: &'static str,
    /// What has to be done before the request is sent, and is kept until it is answered.
    before: Box<Preparation>,
    /// Backends that have to live.
    held: Vec<Box<dyn Any>>,
}

impl Scene {
    /// A GET of `wiki`.
    fn of(wiki: Vhost) -> Scene {
        // The other address of the network is the host's; the clients of these tests are outside.
        let mut table = Table::new("127.0.0.1/30", 80);
        let hidden = vhost(HIDDEN, &[SocketAddrV4::new(Ipv4Addr::new(10, 20, 0, 99), 4321)]);
        table.change(Change::Vhost(Source::Config, hidden.into()));
        table.change(Change::Vhost(Source::Config, wiki.into()));
        Scene {
            table,
            settings: ProxySettings::default(),
            host: "wiki.prox.local",
            line: "GET /",
            fields: "Host: wiki.prox.local\r\n",
            body: "",
            before: Box::new(|_| Box::new(())),
            held: Vec::new(),
        }
    }

    fn to(backend: Backend) -> Scene {
        Scene::of(vhost("wiki", &[backend.addr])).holding(backend)
    }

    fn under(change: impl FnOnce(&mut VhostPolicy)) -> Scene {
        Scene::under_to(Backend::answering("fine"), change)
    }

    fn under_to(backend: Backend, change: impl FnOnce(&mut VhostPolicy)) -> Scene {
        Scene::of(with(vhost("wiki", &[backend.addr]), change)).holding(backend)
    }

    /// One whose backend is at work for somebody else.
    fn at_work(change: impl FnOnce(&mut VhostPolicy)) -> Scene {
        let (backend, arrivals, release) = working();
        let mut scene = Scene::under_to(backend, change);
        scene.before = Box::new(move |proxy| {
            let first = get(proxy);
            arrivals.recv_timeout(PATIENCE).unwrap();
            Box::new((first, arrivals, release))
        });
        scene
    }

    fn holding(mut self, what: impl Any) -> Scene {
        self.held.push(Box::new(what));
        self
    }

    fn asking(mut self, line: &'static str, fields: &'static str, body: &'static str) -> Scene {
        (self.line, self.fields, self.body) = (line, fields, body);
        self
    }

    fn for_host(mut self, host: &'static str, fields: &'static str) -> Scene {
        (self.host, self.fields) = (host, fields);
        self
    }

    fn set(mut self, change: impl FnOnce(&mut ProxySettings)) -> Scene {
        change(&mut self.settings);
        self
    }
}

/// A client outside the app network that has sent a request.
fn get(proxy: &Proxy) -> Client {
    let mut client = proxy.connect_from(9);
    client.send("GET / HTTP/1.1\r\nHost: wiki.prox.local\r\n\r\n");
    client
}

const HOST_AND_CHUNKS: &str = "Host: wiki.prox.local\r\nTransfer-Encoding: chunked\r\n";
const HOST_AND_LENGTH: &str = "Host: wiki.prox.local\r\nContent-Length: 100\r\n";

/// A body with more chunk extensions than one may have.
fn extended_chunks() -> &'static str {
    static BODY: LazyLock<String> = LazyLock::new(|| format!("1;{}\r\na\r\n", "x".repeat(1000)).repeat(17));
    &BODY
}

/// How it comes to a reason; `None` for those that have no page.
#[rustfmt::skip]
fn scene(reason: Reason) -> Option<Scene> {
    let fine = || Scene::to(Backend::answering("fine"));
    let scene = match reason {
        Reason::MissingHost => fine().for_host("", ""),
        Reason::InvalidHost => fine().for_host("wiki, other", "Host: wiki, other\r\n"),
        Reason::InvalidTarget => fine().asking("GET ftp://wiki.prox.local/", "Host: wiki.prox.local\r\n", "").nameless(),
        Reason::PathRefused => judged_by(Backend::answering("")).asking("GET /a%2F..%2Fb", "Host: wiki.prox.local\r\n", ""),
        Reason::ConnectMethod => fine().asking("CONNECT wiki.prox.local:443", "Host: wiki.prox.local\r\n", "").nameless(),
        Reason::BadChunk => fine().asking("POST /", HOST_AND_CHUNKS, "x\r\n"),
        Reason::ChunkExtensions => fine().asking("POST /", HOST_AND_CHUNKS, extended_chunks()),
        Reason::ForwardedHeader => {
            fine().for_host("wiki.prox.local", "Host: wiki.prox.local\r\nX-Forwarded-For: nobody knows\r\n")
                .set(|settings| settings.trusted_proxies = vec!["127.0.0.0/8".parse().unwrap()])
        }
        Reason::ClientConnections => Scene::at_work(|policy| policy.limits.client_connections = 1),
        Reason::RateLimited => {
            let mut scene = Scene::under(|policy| {
                policy.limits.client_rate = Some(Rate { per_second: 1, burst: 1 });
            });
            scene.before = Box::new(|proxy| Box::new(get(proxy).response()));
            scene
        }
        Reason::UnknownHost => fine().for_host("nobody.prox.local", "Host: nobody.prox.local\r\n"),
        Reason::Forbidden => Scene::under(|policy| policy.access.deny = vec!["127.0.0.0/8".parse().unwrap()]),
        Reason::Unauthorized => Scene::under(|policy| {
            let alice = BasicUser { name: "alice".to_owned(), hash: BCRYPT.to_owned() };
            policy.basic_auth = Some(BasicAuth { realm: "the wiki".to_owned(), users: vec![alice] });
        }),
        Reason::AuthUnavailable => judged_by(breaking()),
        Reason::AuthBusy => {
            let alice = BasicUser { name: "alice".to_owned(), hash: BCRYPT.to_owned() };
            let mut scene = Scene::under(|policy| {
                policy.basic_auth = Some(BasicAuth { realm: "the wiki".to_owned(), users: vec![alice] });
            });
            scene.fields = "Host: wiki.prox.local\r\nAuthorization: Basic YWxpY2U6Z3Vlc3M=\r\n";
            scene.before = Box::new(|proxy| {
                // Each for another vhost and of another client.
                let others = 1..1000_u32;
                let checks = &proxy.shared.password_checks;
                let waiting = others.map_while(|at| checks.wait(at.into(), Ipv4Addr::from(at).into()).ok());
                Box::new(waiting.collect::<Vec<_>>())
            });
            scene
        }
        Reason::MaxForwards => fine().asking("OPTIONS /", "Host: wiki.prox.local\r\nMax-Forwards: 0\r\n", ""),
        Reason::BodyTooLarge => {
            Scene::under(|policy| policy.limits.body = 1).asking("POST /", HOST_AND_LENGTH, "")
        }
        Reason::UploadSlow => {
            Scene::under_to(stalling(""), |policy| policy.timeouts.header = 1)
                .asking("POST /", HOST_AND_LENGTH, "some")
        }
        Reason::Stopped => leased(LeaseState::Expired),
        Reason::Starting => leased(LeaseState::Bound),
        Reason::Misconfigured => Scene::under(|policy| policy.request_headers.remove = vec!["no name".to_owned()]),
        Reason::Disabled => Scene::of(Vhost { enabled: false, ..vhost("wiki", &[nobody()]) }),
        Reason::QueueFull => Scene::at_work(|policy| {
            (policy.limits.backend_connections, policy.limits.queue) = (1, 0);
        }),
        Reason::QueueTimeout => Scene::at_work(|policy| {
            policy.limits.backend_connections = 1;
            (policy.limits.queue, policy.limits.queue_timeout) = (1, 1);
        }),
        Reason::BackendRefused => Scene::of(vhost("wiki", &[nobody()])),
        Reason::BackendTimedOut => {
            let (addr, held) = swallowing();
            Scene::of(with(vhost("wiki", &[addr]), |policy| policy.timeouts.connect = 1)).holding(held)
        }
        Reason::BackendTls => {
            let clear = Backend::script(|mut conn| conn.write("HTTP/1.1 400 Bad Request\r\n\r\n"));
            let wiki = Vhost { protocol: BackendProtocol::Https, ..vhost("wiki", &[clear.addr]) };
            Scene::of(wiki).holding(clear)
        }
        Reason::BackendUntrusted => {
            let backend = https::answering();
            Scene::of(https::https(backend.addr, BackendTls { verify: true, ..BackendTls::default() })).holding(backend)
        }
        Reason::BackendBroke => Scene::to(breaking()),
        Reason::BackendNonsense => Scene::to(stalling("10.20.0.99 says no\r\n\r\n")),
        Reason::BackendSlow => Scene::under_to(stalling(""), |policy| policy.timeouts.header = 1),
        Reason::TotalTimeout => Scene::under_to(stalling(""), |policy| policy.timeouts.total = 1),
        // Refused by the parser, on a connection that closes.
        Reason::DuplicateHost | Reason::AmbiguousLength | Reason::TransferCoding | Reason::BareLineFeed
        | Reason::FoldedHeader | Reason::SpaceBeforeColon | Reason::Expectation | Reason::HeadTooLarge
        | Reason::UriTooLong
        | Reason::HeadTimeout | Reason::Malformed
        // Connections that are not answered at all.
        | Reason::ProxyHeader | Reason::ConnectionLimit | Reason::Flood | Reason::CancelFlood
        | Reason::AcceptFailed | Reason::Stopping
        // The client has got the head of its answer already, or does not wait for one.
        | Reason::BackendCut | Reason::ClientSlow | Reason::ClientGone
        // The request is decided anew.
        | Reason::BackendLeft
        // The request went on.
        | Reason::LogBehind | Reason::HeaderName => return None,
    };
    Some(scene)
}

impl Scene {
    /// A page that knows no host: what the request asks for is no host of ours.
    fn nameless(mut self) -> Scene {
        self.host = "";
        self
    }
}

fn judged_by(service: Backend) -> Scene {
    let to = BackendTarget::Address(service.addr);
    Scene::under(|policy| {
        policy.forward_auth = Some(ForwardAuth { to, path: "/".to_owned(), copy_headers: Vec::new() });
    })
    .holding(service)
}

/// An app whose vhost comes from its lease.
fn leased(state: LeaseState) -> Scene {
    let mut scene = Scene::of(vhost("other", &[nobody()]));
    scene.table.change(Change::Lease(lease("wiki", Ipv4Addr::new(127, 0, 0, 2), 1, state)));
    scene
}

/// What a client from outside gets for a reason in the form that it asks for: its status, its kind and its text.
fn page(reason: Reason, scene: Scene, accept: &str) -> (u16, String, String) {
    let Scene { table, settings, line, fields, body, before, held, .. } = scene;
    let proxy = Proxy::with(&table, settings, None);
    let kept = before(&proxy);
    let mut client = proxy.connect_from(9);
    client.send(&format!("{line} HTTP/1.1\r\n{fields}Accept: {accept}\r\n\r\n{body}"));
    let page = client.response();
    let what = format!("{reason:?}: {} {:?} {}", page.status, page.headers, page.text());
    assert_eq!(proxy.count(reason), 1, "{what}");
    assert_eq!(page.header("cache-control"), ["no-store"], "{what}");
    let kind = page.header("content-type").concat();
    let text = page.text();
    // Neither where the app lives nor who else lives here.
    for internal in ["127.0.0.", "10.20.0.", HIDDEN, "bc:24:11", "says no"] {
        assert!(!text.contains(internal), "{what}: tells {internal}");
    }
    drop((kept, held));
    (page.status, kind, text)
}

#[test]
fn every_reason_has_its_page_in_both_forms() {
    std::thread::scope(|scope| {
        let pages = Reason::ALL.into_iter().filter(|&reason| scene(reason).is_some());
        let threads: Vec<_> = pages
            .map(|reason| {
                scope.spawn(move || {
                    let told = scene(reason).unwrap();
                    let host = told.host;
                    let (status, kind, text) = page(reason, told, "text/html,*/*;q=0.1");
                    assert_eq!((status, kind.as_str()), (reason.status(), "text/html; charset=utf-8"));
                    assert!(text.starts_with("<!doctype html>"), "{reason:?}: {text}");
                    assert!(text.contains(&format!("<p class=\"code\">{status}</p>")), "{reason:?}: {text}");
                    let named = text.contains(&format!("<p class=\"host\">{host}</p>"));
                    assert!(named || host.is_empty(), "{reason:?}: {text}");

                    let (status, kind, text) = page(reason, scene(reason).unwrap(), "application/json");
                    assert_eq!((status, kind.as_str()), (reason.status(), "application/problem+json"));
                    let problem: serde_json::Value = serde_json::from_str(&text).unwrap();
                    assert_eq!(problem["status"], reason.status(), "{text}");
                    assert_eq!(problem["reason"], reason.as_str(), "{text}");
                    for member in ["title", "detail", "hint"] {
                        assert!(problem[member].as_str().is_some_and(|words| !words.is_empty()), "{text}");
                    }
                    assert!(host.is_empty() || problem["host"] == host, "{text}");
                    for member in ["seen", "apps"] {
                        assert!(problem.get(member).is_none(), "{text}");
                    }
                    reason
                })
            })
            .collect();
        assert!(threads.len() > 25);
        let failed: Vec<_> = threads.into_iter().filter_map(|thread| thread.join().err()).collect();
        assert!(failed.is_empty(), "{} pages are not as they should be, see above", failed.len());
    });
}
