//! Another binary takes over, and nobody notices; or it does not, and nobody notices either.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use dhcproto::v4::MessageType;
use hickory_proto::rr::RecordType;
use nix::sys::signal::Signal;
use proximity_lab::{DhcpClient, Node, WebServer, addresses};
use proximity_table::Mac;
use proximity_tests::admin_api::{BASE, call_over_tcp};
use proximity_tests::dhcp_probe::{DhcpProbe, Go, RawClient, on_wire};
use proximity_tests::dns_probe::DnsProbe;
use proximity_tests::open_connection::{OpenConnection, echo};
use proximity_tests::test_backend::TestBackend;
use proximity_tests::{PATIENCE, Site, polling::until};
use serde_json::{Value, json};

const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 20, 0, 1);

fn proxy() -> SocketAddr {
    (addresses::APPLIANCE_WAN, 80).into()
}

/// Serves a page, and lines that come back.
fn backend(node: &Node, port: u16, page: &'static str) -> TestBackend {
    TestBackend::start(node, port, move |head, stream| {
        use std::io::Write;
        if head.contains("Upgrade: echo") || head.contains("upgrade: echo") {
            return echo(stream);
        }
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{page}", page.len())
    })
}

fn status(site: &Site) -> Value {
    site.api().get("/status")
}

fn draining(site: &Site) -> usize {
    status(site)["draining_processes"].as_array().expect("a list").len()
}

/// Waits for the new process: its socket takes whoever comes as soon as the old one's does not.
fn upgrade(site: &Site) -> Value {
    let output = site.cli(&["upgrade", "--json"]);
    assert!(output.status.success(), "{output:?}");
    serde_json::from_str(&output.stdout).expect("JSON")
}

/// What the clients of a network do all the time, each kind counting what it got and telling what failed.
#[derive(Default)]
struct Load {
    over: AtomicBool,
    kept: AtomicUsize,
    fresh: AtomicUsize,
    answers: AtomicUsize,
    leases: AtomicUsize,
}

impl Load {
    fn repeat(&self, count: &AtomicUsize, mut once: impl FnMut(usize)) {
        while !self.over.load(Ordering::Relaxed) {
            once(count.fetch_add(1, Ordering::Relaxed));
        }
    }

    fn counts(&self) -> [usize; 4] {
        [&self.kept, &self.fresh, &self.answers, &self.leases].map(|count| count.load(Ordering::Relaxed))
    }

    /// Waits until every kind has done this many things more.
    fn wait(&self, more: usize) {
        let goal = self.counts().map(|count| count + more);
        until("the load goes on", PATIENCE, || {
            let counts = self.counts();
            if counts.iter().zip(goal).all(|(count, goal)| *count >= goal) {
                Ok(())
            } else {
                Err(format!("{counts:?}"))
            }
        });
    }
}

#[test]
fn nothing_fails_during_two_upgrades_and_a_websocket_outlives_both() {
    let mut site = Site::start("");
    site.wait_wan();
    let (app, address) = site.app("web", DhcpClient::Udhcpc, WebServer::None);
    let _backend = backend(app.node(), 80, "hello");
    let machine = site.probe_machine("10.20.0.5/24");
    let client = site.lab.client().clone();
    until("the app is ready", PATIENCE, || {
        match OpenConnection::open(&client, proxy())?.get("web.prox.local")? {
            page if page.status == 200 => Ok(()),
            page => Err(std::io::Error::other(format!("{page:?}"))),
        }
    });
    let open = || OpenConnection::open(&client, proxy()).expect("a connection");
    let mut websocket = open().upgrade("web.prox.local").expect("an upgrade");
    let mut idle = open();
    assert_eq!(idle.get("web.prox.local").expect("a page").body, "hello");
    site.api()
        .call(
            "POST",
            "/vhosts",
            Some(json!({"app_name": "other", "backend_ip": address, "backend_port": 80})),
        )
        .expect(201);
    let first = status(&site);

    let load = Load::default();
    let load = &load;
    let leases = thread::scope(|scope| {
        let entered = |node: &Node, body: &(dyn Fn() + Sync)| node.enter(body).expect("entered");
        let (client, machine) = (&client, &machine);
        scope.spawn(move || {
            entered(client, &|| {
                let mut kept = OpenConnection::here(proxy()).expect("a connection");
                load.repeat(&load.kept, |_| {
                    let page = kept.get("web.prox.local").expect("a page on a kept connection");
                    assert_eq!((page.status, page.body.as_str()), (200, "hello"));
                    if page.last {
                        kept = OpenConnection::here(proxy()).expect("another connection");
                    }
                });
            })
        });
        scope.spawn(move || {
            entered(client, &|| {
                load.repeat(&load.fresh, |_| {
                    let page =
                        OpenConnection::here(proxy()).and_then(|mut fresh| fresh.get("web.prox.local"));
                    assert_eq!(page.expect("a page on a fresh connection").body, "hello");
                });
            })
        });
        scope.spawn(move || {
            let dns = DnsProbe::open(machine, GATEWAY);
            load.repeat(&load.answers, |turn| {
                let answer = if turn % 8 == 0 {
                    dns.ask_over_tcp(machine, "web.prox.local", RecordType::A)
                } else {
                    dns.ask("web.prox.local", RecordType::A)
                };
                assert_eq!(
                    answer.expect("an answer, at the first time of asking").answers,
                    [address.to_string()]
                );
            });
        });
        let leases = scope.spawn(move || {
            on_wire(machine, async || {
                let probe = DhcpProbe::open();
                let mut granted = Vec::new();
                while !load.over.load(Ordering::Relaxed) {
                    let at = load.leases.load(Ordering::Relaxed) as u8;
                    assert!(at < 100, "the pool is too small for so many");
                    let mac = Mac([0xbc, 0x24, 0x11, 0x66, 0, at]);
                    let mut raw = RawClient::new(mac, &format!("raw-{at}"), false);
                    // Each message once: what is lost is not sent again.
                    let offer = ask_once(&probe, &raw, &raw.message(MessageType::Discover)).await;
                    let mut request = raw.message(MessageType::Request);
                    request.opts_mut().insert(dhcproto::v4::DhcpOption::ServerIdentifier(GATEWAY));
                    request.opts_mut().insert(dhcproto::v4::DhcpOption::RequestedIpAddress(offer));
                    raw.granted = Some(ask_once(&probe, &raw, &request).await);
                    granted.push((mac.to_string(), raw.granted));
                    load.leases.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(30)).await;
                }
                granted
            })
        });

        load.wait(5);
        // By signal, then by command.
        site.appliance.process().signal(Signal::SIGUSR2).expect("signalled");
        let second = until("a new process", PATIENCE, || {
            let status =
                site.api().try_call("GET", "/status", None).map_err(|error| error.to_string())?.expect(200);
            if status["generation"].as_u64() > first["generation"].as_u64()
                && status["draining_processes"] != json!([])
            {
                Ok(status)
            } else {
                Err(status.to_string())
            }
        });
        assert!(second["ready_after_ms"].as_u64().is_some_and(|ready| ready < 5_000), "{second}");
        assert!(websocket.echoes("after one").expect("it is open"));
        load.wait(5);
        let done = upgrade(&site);
        assert_ne!(done["pid"], done["old_pid"], "{done}");
        assert!(websocket.echoes("after two").expect("it is open"));
        load.wait(5);
        load.over.store(true, Ordering::Relaxed);
        leases.join().expect("DHCP went on")
    });
    println!("kept, fresh, DNS, leases: {:?}", load.counts());

    // A connection that was idle all the time is answered once more.
    let page = idle.get("web.prox.local").expect("the last answer");
    assert_eq!((page.body.as_str(), page.last), ("hello", true));
    let held: Vec<Value> = site.api().items("/dhcp/leases");
    for (mac, granted) in &leases {
        let lease =
            held.iter().find(|lease| lease["mac"] == mac.as_str()).unwrap_or_else(|| panic!("{mac} is lost"));
        assert_eq!(lease["ip"], granted.expect("granted").to_string());
    }
    assert_eq!(site.api().get("/vhosts/other")["source"], "api");
    let mut nft = site.lab.appliance().enter(proximity_net::Nft::open).expect("entered").expect("nftables");
    assert_eq!(nft.leased("proximity").expect("the set").len(), held.len());
    let last = status(&site);
    assert_eq!(
        (&last["health_status"], &last["wan_ip"]),
        (&json!("healthy"), &json!(addresses::APPLIANCE_WAN)),
        "{last}"
    );
    let token = site.token();
    let admin = (addresses::APPLIANCE_WAN, 9090).into();
    let over_tcp = call_over_tcp(&client, admin, Some(&token), ("GET", &format!("{BASE}/status")), "");
    assert_eq!(over_tcp.expect("the API over TCP").status, 200);

    // The first process carries the WebSocket; the second has nothing to do once the clients are gone.
    until("one process drains", PATIENCE, || match draining(&site) {
        1 => Ok(()),
        count => Err(format!("{count} drain")),
    });
    assert!(site.appliance.process().is_running());
    assert!(websocket.echoes("still").expect("it is open"));
    drop(websocket);
    let ended = site.appliance.process().wait(PATIENCE).expect("the first process ends");
    assert!(ended.success(), "{ended}");
    until("nobody drains", PATIENCE, || match draining(&site) {
        0 => Ok(()),
        count => Err(format!("{count} drain")),
    });
    assert_eq!(site.api().get("/apps/web")["vhost"]["verdict"], "ready");
}

/// The address in the server's answer to a message that is sent once.
async fn ask_once(probe: &DhcpProbe, client: &RawClient, message: &dhcproto::v4::Message) -> Ipv4Addr {
    probe.send(client.mac, message).await.expect("the link is up");
    loop {
        let heard = probe.hear(PATIENCE).await.unwrap_or_else(|| panic!("no answer to {message:?}"));
        if heard.message.chaddr() == client.mac.0 {
            return heard.message.yiaddr();
        }
    }
}

/// An address changes its owner while a connection of before the upgrade leads to it: the process that carries it
/// hears of that, closes it, and asks nobody else's backend for the next request of another one.
#[test]
fn a_replaced_process_follows_the_world() {
    let lab = Site::surroundings();
    let appliance = lab.appliance().clone();
    let forwarding = || appliance.sh("cat /proc/sys/net/ipv4/ip_forward").expect("readable").stdout;
    let before = forwarding();
    let mut site = Site::run_in(lab);
    site.wait_wan();
    let machine = site.probe_machine("10.20.0.5/24");
    let _one = backend(&machine, 8001, "one");
    let _two = backend(&machine, 8002, "two");
    let client = site.lab.client().clone();
    let vhost = |app: &str, port: u16| {
        let vhost = json!({"backend_ip": "10.20.0.5", "backend_port": port});
        site.api().call("PUT", &format!("/vhosts/{app}"), Some(vhost)).expect(200);
    };
    vhost("moving", 8001);
    vhost("staying", 8001);
    vhost("filed", 8001);
    let open = || OpenConnection::open(&client, proxy()).expect("a connection");
    let mut moving = open().upgrade("moving.prox.local").expect("an upgrade");
    let mut staying = open().upgrade("staying.prox.local").expect("an upgrade");
    let mut filed = open().upgrade("filed.prox.local").expect("an upgrade");
    let (mut kept, mut gone) = (open(), open());
    assert_eq!(kept.get("moving.prox.local").expect("a page").body, "one");
    assert_eq!(gone.get("moving.prox.local").expect("a page").body, "one");
    upgrade(&site);
    // Again, so that it is told by a process that it did not start.
    upgrade(&site);
    for upgraded in [&mut moving, &mut staying, &mut filed] {
        assert!(upgraded.echoes("all are open").expect("it is open"));
    }
    vhost("moving", 8002);
    assert!(moving.closes());
    assert_eq!(kept.get("moving.prox.local").expect("a page").body, "two");
    // The file takes two of them, and sends each to the other backend.
    let file = |app: &str, port: u16| {
        format!("[[vhost]]\napp_name = \"{app}\"\nbackend_ip = \"10.20.0.5\"\nbackend_port = {port}\n")
    };
    site.write_config(&(file("moving", 8001) + &file("filed", 8002)));
    site.api().call("POST", "/reload", None).expect(200);
    assert!(filed.closes());
    let page = gone.get("moving.prox.local").expect("a page");
    assert_eq!((page.body.as_str(), page.last), ("one", true));
    assert!(staying.echoes("untouched").expect("it is open"));
    // An end of the whole appliance is an end of what it has replaced, too.
    let old = site.appliance.process().pid();
    assert!(fs::exists(format!("/proc/{old}")).expect("readable"));
    let pid =
        site.lab.appliance().sh("pidof proximity | tr ' ' '\\n' | sort -n | tail -1").expect("a pid").stdout;
    site.lab.appliance().sh(&format!("kill -TERM {}", pid.trim())).expect("killed");
    until("it has ended", Duration::from_secs(60), || match site.api().try_call("GET", "/status", None) {
        Ok(_) => Err("it answers"),
        Err(_) => Ok(()),
    });
    site.appliance.process().wait(Duration::from_secs(60)).expect("the first process ends");
    assert!(staying.closes());
    assert_eq!(
        (before.trim(), forwarding().trim()),
        ("0", "0"),
        "the last process knew what it was before the first"
    );
}

/// What stands in the way of a takeover, from a file that is no program to one that fails when everything was
/// handed over already.
#[test]
fn a_refused_upgrade_leaves_everything_as_it_was() {
    let mut site = Site::start("");
    site.wait_wan();
    let machine = site.probe_machine("10.20.0.5/24");
    let _backend = backend(&machine, 8001, "one");
    let node = site.lab.appliance().clone();
    let client = site.lab.client().clone();
    let vhost = json!({"app_name": "shop", "backend_ip": "10.20.0.5", "backend_port": 8001});
    site.api().call("POST", "/vhosts", Some(vhost)).expect(201);
    let mut websocket = OpenConnection::open(&client, proxy())
        .and_then(|open| open.upgrade("shop.prox.local"))
        .expect("an upgrade");
    let program = |name: &str, text: &str| {
        let path = format!("/run/{name}");
        node.write(&path, text).expect("written");
        node.sh(&format!("chmod 755 {path}")).expect("executable");
        path
    };
    let corrupt = program("corrupt", "\u{7f}ELF but nothing else");
    let hello = "{\"Hello\":{\"protocol\":1,\"version\":\"9.9.9\"}}";
    let escaped = hello.replace('"', "\\\"");
    let says_hello =
        format!("#!/bin/sh\nprintf '\\{:03o}\\0\\0\\0' >&0\nprintf \"{escaped}\" >&0\n", hello.len());
    let late = program("late", &format!("{says_hello}sleep 0.5\necho 'no room for me' >&2\nexit 4\n"));
    let silent = program("silent", &format!("{says_hello}exec sleep 60\n"));
    let far = program("far", &says_hello.replace("\\\"protocol\\\":1", "\\\"protocol\\\":2"));
    let rules = || {
        let mut nft = node.enter(proximity_net::Nft::open).expect("entered").expect("nftables");
        nft.counters("proximity").expect("the rules").into_keys().collect::<Vec<_>>()
    };
    let firewall = rules();
    assert!(!firewall.is_empty());

    for (binary, expected) in [
        ("/bin/false", "exit status: 1"),
        ("/run/nothing", "cannot be started"),
        (&corrupt, "does not take over"),
        (&far, "too far"),
        (&late, "no room for me"),
        (&silent, "did not answer within 10 s"),
    ] {
        let began = std::time::Instant::now();
        let output = site.cli(&["upgrade", binary]);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(output.stderr.contains(expected) && output.stderr.contains(binary), "{output:?}");
        println!("{binary}: {:?}: {}", began.elapsed(), output.stderr.trim());
        assert!(websocket.echoes(binary).expect("it is open"));
        let page = OpenConnection::open(&client, proxy()).and_then(|mut open| open.get("shop.prox.local"));
        assert_eq!(page.expect("a page").body, "one");
        let ended = status(&site);
        assert_eq!(
            (&ended["health_status"], &ended["draining_processes"]),
            (&json!("healthy"), &json!([])),
            "{ended}"
        );
    }
    // The new process reads the file, and a mistake in it is told by line.
    site.write_config("[dns]\nupstreams = []\n");
    let output = site.cli(&["upgrade"]);
    assert!(output.stderr.contains("upstreams") && output.stderr.contains("proximity.toml:2"), "{output:?}");
    site.write_config("");
    // Nobody outside may choose what runs here.
    let token = site.token();
    let admin = (addresses::APPLIANCE_WAN, 9090).into();
    let answer = call_over_tcp(&client, admin, Some(&token), ("POST", &format!("{BASE}/upgrade")), "{}");
    answer.expect("an answer").expect(403);

    // Everything that rested goes on: DHCP, the store, the export, the firewall, the API.
    let mut raw = [RawClient::new(Mac([0xbc, 0x24, 0x11, 0x67, 0, 1]), "raw", false)];
    on_wire(&machine, async || DhcpProbe::open().lease_all(&mut raw, PATIENCE, |_, _| Go::On).await);
    let granted = raw[0].granted.expect("a lease");
    assert_eq!(DnsProbe::open(&machine, GATEWAY).address("raw.prox.local"), Some(granted));
    until("the lease file", PATIENCE, || {
        let text = node.read("/var/lib/proximity/dnsmasq.leases").map_err(|error| error.to_string())?;
        if text.contains(" raw ") { Ok(()) } else { Err(text) }
    });
    assert_eq!(rules(), firewall);
    site.api().call("DELETE", "/vhosts/shop", None);
    assert!(websocket.closes());
    site.appliance.terminate(PATIENCE).expect("it ends");
    site.start_again();
    assert_eq!(site.api().items("/dhcp/leases")[0]["ip"], granted.to_string());
    assert!(site.api().items("/vhosts").iter().all(|vhost| vhost["app_name"] != "shop"));
    // And after all that, it can be done.
    upgrade(&site);
    assert_eq!(site.api().items("/dhcp/leases")[0]["ip"], granted.to_string());
}

/// What a process does not hand over closes with it.
#[test]
fn no_descriptor_is_left_over_by_upgrades() {
    let site = Site::start("");
    site.wait_wan();
    let sockets = |pid: &Value| {
        let script = format!("ls -l /proc/{pid}/fd | grep -c socket:");
        site.lab.appliance().sh(&script).expect("it runs").stdout.trim().parse::<usize>().expect("a number")
    };
    let counts: Vec<usize> = (0..3).map(|_| sockets(&upgrade(&site)["pid"])).collect();
    // One more or less is a connection of the API that is being closed.
    assert!(counts[0].abs_diff(counts[2]) <= 1, "{counts:?}");
}

/// What a reload leaves for a restart is in force after an upgrade, and what was switched off by hand stays off.
#[test]
fn an_upgrade_is_a_restart_for_the_configuration_and_none_for_the_rest() {
    let site = Site::start("");
    site.wait_wan();
    let connects =
        |port: u16| OpenConnection::open(site.lab.client(), (addresses::APPLIANCE_WAN, port).into());
    assert!(connects(8080).is_err());
    site.write_config("[proxy]\nlisten = [\"0.0.0.0:80\", \"0.0.0.0:8080\"]\n");
    assert_ne!(site.api().call("POST", "/reload", None).expect(200)["needs_restart"], json!([]));
    site.api().call("POST", "/services/dhcp/stop", None).expect(200);
    site.api().call("POST", "/services/dns/stop", None).expect(200);
    upgrade(&site);
    for port in [80, 8080] {
        let page = connects(port).and_then(|mut open| open.get("nobody.prox.local")).expect("a page");
        assert_eq!(page.status, 404);
    }
    let now = status(&site);
    assert_eq!(now["needs_restart"], json!([]));
    assert_eq!((&now["services"]["dhcp"], &now["services"]["dns"]), (&json!(false), &json!(false)), "{now}");
    site.api().call("POST", "/services/dns/start", None).expect(200);
    let asked =
        DnsProbe::open(&site.probe_machine("10.20.0.5/24"), GATEWAY).address("prox-appliance.prox.local");
    assert_eq!(asked, Some(GATEWAY));

    site.write_config("[appliance]\nrun_dir = \"/run/elsewhere\"\n");
    let output = site.cli(&["upgrade", "--socket", "/run/proximity/admin.sock"]);
    assert!(output.status.success(), "{output:?}");
    assert!(connects(8080).is_err(), "nobody listens there any more");
    connects(80).expect("somebody does");
    until("a socket that nobody serves is gone", PATIENCE, || {
        if site.appliance.admin_socket().exists() { Err("it is there") } else { Ok(()) }
    });
    let output = site.cli(&["status", "--json"]);
    assert!(output.status.success(), "{output:?}");
}
