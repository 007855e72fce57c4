//! A million requests and two hundred WebSockets while everything around their vhosts changes: none fails, and no
//! connection to their backends is given up.

use std::cell::Cell;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use hickory_proto::rr::RecordType;
use proximity_lab::{DhcpClient, Node, WebServer, addresses};
use proximity_table::Mac;
use proximity_tests::counting_backend::CountingBackend;
use proximity_tests::dhcp_probe::{DhcpProbe, Go, RawClient, on_wire};
use proximity_tests::dns_probe::DnsProbe;
use proximity_tests::load_connection::LoadConnection;
use proximity_tests::{PATIENCE, Site, polling::until};
use serde_json::{Value, json};

use crate::stream_load::{Load, Manner, STREAMS, Tally, Vhost, drive, drive_http2, drive_websockets};

const REQUESTS: usize = 1_000_000;
const CHANGES: usize = 1_000;
const RELOADS: usize = 10;
const UPGRADES: usize = 2;
const WEBSOCKETS: usize = 200;
/// Longest time that no client at all gets an answer from a vhost that nobody touches. A lost SYN alone costs a
/// second; the rest is for machines with other things to do.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 20, 0, 1);
const MACHINE: &str = "10.20.0.5";
/// Backends that vhosts are moved between.
const MOVED: [(&str, u16); 2] = [("here", 9001), ("there", 9002)];

/// Clients of HTTP/1.1, and how many of each manner there are.
const MANNERS: [(Manner, usize); 5] = [
    (Manner { name: "pipelining", depth: 8, per_connection: None, uploads: false }, 4),
    (Manner { name: "keeping", depth: 1, per_connection: None, uploads: false }, 2),
    (Manner { name: "hundred", depth: 1, per_connection: Some(100), uploads: false }, 1),
    (Manner { name: "closing", depth: 1, per_connection: Some(1), uploads: false }, 1),
    (Manner { name: "uploading", depth: 1, per_connection: None, uploads: true }, 1),
];

pub fn proxy() -> SocketAddr {
    (addresses::APPLIANCE_WAN, 80).into()
}

/// What is asked on the side, of vhosts that have just been changed.
fn visit(client: &Node, host: &str) -> io::Result<(u16, String)> {
    let asked = client.enter(|| {
        let mut connection = LoadConnection::open(proxy())?;
        connection
            .send(format!("GET /now HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").as_bytes())?;
        let status = connection.answer()?.status;
        let body = String::from_utf8_lossy(connection.body()).into_owned();
        connection.end()?;
        Ok((status, body))
    });
    asked.map_err(|error| io::Error::other(error.to_string()))?
}

/// The file: vhosts that stay as they are, and one that every reload moves.
fn file(steady: &[(&'static str, u16)], reload: usize) -> String {
    let mut text = "[proxy.log]\nmax_size = \"1MiB\"\nkeep = 1\n".to_owned();
    for (app, port) in steady.iter().copied().chain([("filed", MOVED[reload % 2].1)]) {
        text +=
            &format!("[[vhost]]\napp_name = \"{app}\"\nbackend_ip = \"{MACHINE}\"\nbackend_port = {port}\n");
    }
    text + &format!("[[dns.record]]\nname = \"filed-{reload}\"\ntype = \"A\"\nvalue = \"10.20.0.50\"\n")
}

/// Changes the table again and again; after each change, whatever it is, the new state is what clients see.
struct Changer<'a> {
    site: &'a Site,
    client: &'a Node,
    machine: &'a Node,
    load: &'a Load,
    dns: DnsProbe,
    visits: Cell<usize>,
}

impl Changer<'_> {
    /// One of eight changes that undo each other, but for the leases.
    fn change(&self, at: usize) {
        let round = at / 8;
        let (app, record) = (format!("moving-{round}"), format!("record-{round}.prox.local"));
        let vhost = |backend: usize| json!({"backend_ip": MACHINE, "backend_port": MOVED[backend].1});
        let put = |vhost: Value| self.call("PUT", &format!("/vhosts/{app}"), Some(vhost), 200);
        let aliased = |mut vhost: Value| {
            vhost["aliases"] = json!([format!("alias-{round}")]);
            vhost
        };
        let (host, alias) = (format!("{app}.prox.local"), format!("alias-{round}.prox.local"));
        match at % 8 {
            0 => {
                let mut vhost = vhost(0);
                vhost["app_name"] = json!(app);
                self.call("POST", "/vhosts", Some(vhost), 201);
                self.serves(&host, Some("here"));
            }
            1 => {
                put(vhost(1));
                self.serves(&host, Some("there"));
            }
            2 => {
                put(aliased(vhost(1)));
                self.serves(&alias, Some("there"));
            }
            3 => {
                put(vhost(0));
                self.serves(&alias, None);
                self.serves(&host, Some("here"));
            }
            4 => {
                self.call("DELETE", &format!("/vhosts/{app}"), None, 204);
                self.serves(&host, None);
            }
            5 => {
                let body = json!({"name": format!("record-{round}"), "type": "A", "value": "10.20.0.60"});
                self.call("POST", "/dns/records", Some(body), 201);
                self.resolves(&record, Some([10, 20, 0, 60].into()));
            }
            6 => {
                self.call("DELETE", &format!("/dns/records/record-{round}/A"), None, 204);
                self.resolves(&record, None);
            }
            _ => {
                let name = format!("leased-{round}");
                let mac = Mac([0xbc, 0x24, 0x11, 0x68, 0, round as u8]);
                let mut raw = [RawClient::new(mac, &name, false)];
                on_wire(self.machine, async || {
                    DhcpProbe::open().lease_all(&mut raw, PATIENCE, |_, _| Go::On).await
                });
                self.resolves(&format!("{name}.prox.local"), raw[0].granted);
            }
        }
    }

    fn call(&self, method: &str, path: &str, body: Option<Value>, status: u16) {
        match self.site.api().try_call(method, path, body) {
            Ok(answer) if answer.status == status => {}
            other => self.load.failed(format!("{method} {path}: {other:?}")),
        }
    }

    /// A vhost answers from that backend, or is not known.
    fn serves(&self, host: &str, name: Option<&str>) {
        let expected = name.map_or(404, |_| 200);
        self.visits.set(self.visits.get() + 1);
        match visit(self.client, host) {
            Ok((status, body)) if status == expected && name.is_none_or(|name| body.starts_with(name)) => {}
            other => self.load.failed(format!("{host}, not {name:?}: {other:?}")),
        }
    }

    fn resolves(&self, name: &str, address: Option<Ipv4Addr>) {
        match self.dns.ask(name, RecordType::A) {
            Ok(answer) if answer.answers.first().cloned() == address.map(|address| address.to_string()) => {}
            other => self.load.failed(format!("{name}, not {address:?}: {other:?}")),
        }
    }
}

#[test]
fn a_million_requests_and_200_websockets_outlive_changes_reloads_and_upgrades() {
    let of_file = [("steady-a", 8001), ("steady-b", 8002), ("steady-c", 8003), ("steady-d", 8004)];
    let of_api = [("steady-e", 8005), ("steady-f", 8006), ("steady-g", 8007), ("steady-h", 8008)];
    let mut site = Site::start(&file(&of_file, 0));
    site.wait_wan();
    let machine = site.probe_machine(&format!("{MACHINE}/24"));
    let client = site.lab.client().clone();
    let _moved = MOVED.map(|(name, port)| CountingBackend::start(&machine, port, name));
    let (leased, _) = site.app("steady-i", DhcpClient::Udhcpc, WebServer::None);
    let mut backends = vec![CountingBackend::start(leased.node(), 80, "steady-i")];
    let mut vhosts = vec![Vhost::new("steady-i.prox.local".to_owned(), "steady-i")];
    for (app, port) in of_file.into_iter().chain(of_api) {
        backends.push(CountingBackend::start(&machine, port, app));
        vhosts.push(Vhost::new(format!("{app}.prox.local"), app));
    }
    for (app, port) in of_api {
        let vhost = json!({"app_name": app, "backend_ip": MACHINE, "backend_port": port});
        site.api().call("POST", "/vhosts", Some(vhost)).expect(201);
    }
    let mut asked_before = 0;
    for vhost in &vhosts {
        until(&vhost.host, PATIENCE, || match visit(&client, &vhost.host) {
            Ok((200, _)) => {
                asked_before += 1;
                Ok(())
            }
            other => Err(format!("{other:?}")),
        });
    }

    let start = Instant::now();
    let load = &Load::new(vhosts);
    let connections = || backends.iter().map(CountingBackend::connections).collect::<Vec<_>>();
    let (tallies, echoes, opened, (changes, visits), operated) = thread::scope(|scope| {
        let (site, client, machine) = (&site, &client, &machine);
        let (opened, all_open) = channel();
        let websockets = scope.spawn(move || {
            load.guarded(|| {
                client.enter(|| drive_websockets(load, WEBSOCKETS, || drop(opened))).expect("entered")
            })
        });
        // Nothing is sent: it ends when they are open.
        let _: Result<(), _> = all_open.recv();
        let mut clients = Vec::new();
        for (manner, count) in MANNERS {
            for _ in 0..count {
                let id = clients.len();
                let body = move || client.enter(|| drive(load, manner, id)).expect("entered");
                clients.push((manner.name, scope.spawn(move || load.guarded(body))));
            }
        }
        let id = clients.len();
        let body = move || on_wire(client, async || drive_http2(load, id).await);
        clients.push(("HTTP/2", scope.spawn(move || load.guarded(body))));

        let changes = scope.spawn(move || {
            load.guarded(|| {
                let dns = DnsProbe::open(machine, GATEWAY);
                let changer = Changer { site, client, machine, load, dns, visits: Cell::new(0) };
                let due = (1..=CHANGES).take_while(|at| load.reaches(at * (REQUESTS / CHANGES)));
                (due.map(|at| changer.change(at - 1)).count(), changer.visits.get())
            })
        });
        let operator = scope.spawn(move || load.guarded(|| operate(site, client, load, &of_file)));
        // From when the pools are filled until the first upgrade, which is a process with pools of its own.
        load.reaches(REQUESTS / 20);
        let filled = connections();
        load.reaches(REQUESTS * 3 / 10 - REQUESTS / 100);
        let opened: Vec<_> = connections().into_iter().zip(filled).map(|(now, then)| now - then).collect();
        let changes = changes.join();
        let operated = operator.join();
        load.reaches(REQUESTS);
        load.end();
        let tallies: Vec<(_, Tally)> =
            clients.into_iter().map(|(name, client)| (name, client.join().expect("a client"))).collect();
        let echoes = websockets.join().expect("the WebSockets");
        let changed = changes.expect("the changes");
        let operated = operated.expect("reloads and upgrades");
        (tallies, echoes, opened, changed, operated)
    });
    let took = start.elapsed();
    println!(
        "{} requests in {took:.1?}: {:.0}/s",
        load.answers(),
        load.answers() as f64 / took.as_secs_f64()
    );
    tallies.iter().for_each(|(name, tally)| println!("{name}: {tally:?}"));
    println!(
        "{WEBSOCKETS} WebSockets, {echoes} echoes; {changes} changes, {visits} visits of what was changed"
    );
    for (vhost, (backend, opened)) in load.vhosts.iter().zip(backends.iter().zip(&opened)) {
        let (answers, pause) = vhost.seen();
        println!(
            "{}: {answers} answers, longest pause {pause:?}, {} connections, {opened} of them while the table changed",
            vhost.name,
            backend.connections()
        );
    }

    assert_eq!(load.failures(), [""; 0]);
    assert_eq!((changes, operated), (CHANGES, (RELOADS, UPGRADES)));
    assert!(load.answers() >= REQUESTS);
    assert_eq!(load.answers(), tallies.iter().map(|(_, tally)| tally.answers).sum::<usize>());
    // None was lost on the way, and none came to a backend twice.
    let requests: usize = backends.iter().map(CountingBackend::requests).sum();
    assert_eq!(requests, load.answers() + asked_before);
    assert_eq!(backends.iter().map(CountingBackend::websockets).sum::<usize>(), WEBSOCKETS);
    // Only what the proxy had declined was sent again, and only because of upgrades.
    for (name, tally) in &tallies {
        let manner = MANNERS.iter().find(|(manner, _)| manner.name == *name);
        let declined = manner.map_or(STREAMS, |(manner, _)| manner.depth - 1);
        assert!(tally.answers > 0 && tally.resent <= tally.renewed * declined, "{name}: {tally:?}");
        // Once for each upgrade, and once more where a thread took the new connection that had not heard of it yet.
        assert!(tally.renewed <= 2 * UPGRADES, "{name}: {tally:?}");
    }
    // Changes and reloads cost no connection: each data thread opens as many as its clients want at a time.
    let at_a_time = MANNERS.iter().map(|(_, count)| count).sum::<usize>() + STREAMS;
    let most = at_a_time * thread::available_parallelism().map_or(1, usize::from);
    for ((vhost, backend), opened) in load.vhosts.iter().zip(&backends).zip(opened) {
        let (_, pause) = vhost.seen();
        assert!(pause < LONGEST_PAUSE, "{} paused for {pause:?}", vhost.name);
        assert!(opened <= most, "{opened} connections to {} while the table changed", vhost.name);
        let all = backend.connections();
        assert!(all <= most * (UPGRADES + 1), "{all} connections to {}", vhost.name);
    }

    let status = site.api().get("/status");
    assert_eq!(status["health_status"], "healthy", "{status}");
    assert_eq!(site.api().items("/dhcp/leases").len(), CHANGES / 8 + 1);
    // The first process lived for the WebSockets alone.
    let ended = site.appliance.process().wait(PATIENCE).expect("the first process ends");
    assert!(ended.success(), "{ended}");
    until("nobody drains", PATIENCE, || match &site.api().get("/status")["draining_processes"] {
        none if *none == json!([]) => Ok(()),
        some => Err(some.to_string()),
    });
}

/// Reloads and upgrades, evenly spread; how many of each were done.
fn operate(site: &Site, client: &Node, load: &Load, steady: &[(&'static str, u16)]) -> (usize, usize) {
    let mut done = (0, 0);
    let tenth = REQUESTS / RELOADS;
    for turn in 0..RELOADS {
        if !load.reaches(turn * tenth + tenth / 2) {
            break;
        }
        done.0 += 1;
        site.write_config(&file(steady, done.0));
        let output = site.cli(&["reload"]);
        if !output.status.success() {
            load.failed(format!("reload {}: {output:?}", done.0));
        }
        match visit(client, "filed.prox.local") {
            Ok((200, body)) if body.starts_with(MOVED[done.0 % 2].0) => {}
            other => load.failed(format!("after reload {}: {other:?}", done.0)),
        }
        // At 30 % and 70 % of the way.
        if turn == 2 || turn == 6 {
            if !load.reaches((turn + 1) * tenth) {
                break;
            }
            done.1 += 1;
            let began = Instant::now();
            let output = site.cli(&["upgrade", "--json"]);
            println!("upgrade {} at {} took {:?}", done.1, load.answers(), began.elapsed());
            if !output.status.success() {
                load.failed(format!("upgrade {}: {output:?}", done.1));
            }
        }
    }
    done
}
