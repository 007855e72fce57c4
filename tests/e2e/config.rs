//! Wrong configurations are refused with all that is wrong; right ones take effect without a restart.

use std::net::Ipv4Addr;

use nix::sys::signal::Signal;
use proximity_lab::{DhcpClient, WebServer};
use proximity_tests::dns_probe::DnsProbe;
use proximity_tests::test_backend::TestBackend;
use proximity_tests::{PATIENCE, Site, fetch, polling::until};
use serde_json::json;

/// The certificate of an authority; worth nothing.
const AUTHORITY: &str = include_str!("../../crates/proxy/tests/proxy/certificates/authority.pem");

const WRONG: &str = "\
[appliance]
hostnme = \"x\"

[[network]]
address = \"10.20.0.1/33\"
[network.dhcp]
lease_time = \"soon\"

[[vhost]]
app_name = \"web\"
protocol = \"ftp\"
backends = [\"nonsense\"]
";
/// Lines of WRONG that hold a mistake, with a word that the message must hold.
const MISTAKES: [(usize, &str); 5] =
    [(2, "hostnme"), (5, "10.20.0.1/33"), (7, "soon"), (11, "ftp"), (12, "nonsense")];
const RIGHT: &str = "\
[[dns.record]]
name = \"printer\"
type = \"A\"
value = \"10.20.0.50\"
[[vhost]]
app_name = \"files\"
backend_ip = \"10.20.0.5\"
backend_port = 8080
";

fn names_every_mistake(text: &str, file: &str) {
    for (line, word) in MISTAKES {
        let place = format!("{file}:{line}: ");
        let found = text.lines().find(|text| text.contains(&place) && text.contains(word));
        assert!(found.is_some(), "nothing of line {line} ({word}) in:\n{text}");
    }
    let problems = text.lines().filter(|line| line.contains(&format!("{file}:"))).count();
    let hints = text.lines().filter(|line| line.contains("hint: ")).count();
    assert!(hints >= MISTAKES.len() && problems >= MISTAKES.len(), "{text}");
}

#[test]
fn validate_tells_every_problem_with_file_line_and_hint() {
    let site = Site::start("");
    site.lab.appliance().write("/run/wrong.toml", WRONG).expect("written");
    let output = site.cli(&["validate", "/run/wrong.toml"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    names_every_mistake(&output.stderr, "/run/wrong.toml");
    let output = site.cli(&["validate", "/run/wrong.toml", "--json"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let report: serde_json::Value = serde_json::from_str(&output.stdout).expect("JSON");
    assert_eq!(report["valid"], false);
    let lines: Vec<u64> =
        report["problems"].as_array().expect("a list").iter().filter_map(|p| p["line"].as_u64()).collect();
    for (line, _) in MISTAKES {
        assert!(lines.contains(&(line as u64)), "line {line} is not among {lines:?}");
    }

    site.lab.appliance().write("/run/right.toml", RIGHT).expect("written");
    let output = site.cli(&["validate", "/run/right.toml"]);
    assert_eq!((output.status.code(), output.stderr.as_str()), (Some(0), ""), "{output:?}");
    assert_eq!(site.cli(&["validate", "/run/absent.toml"]).status.code(), Some(1));
}

#[test]
fn a_file_of_certificates_must_be_there_and_hold_some() {
    let site = Site::start("");
    site.wait_wan();
    let vhost = |path: &str| {
        format!(
            "[[vhost]]\napp_name = \"nas\"\nbackends = [\"192.168.1.20:5001\"]\nprotocol = \"https\"\ntls_ca = \"{path}\"\n"
        )
    };
    let appliance = site.lab.appliance();
    appliance.write("/run/empty.pem", "nothing here").expect("written");
    for (path, wrong) in [("/run/absent.pem", "cannot be read"), ("/run/empty.pem", "has no certificate")] {
        appliance.write("/run/wrong.toml", &vhost(path)).expect("written");
        let output = site.cli(&["validate", "/run/wrong.toml"]);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let said = output.stderr;
        assert!(said.contains("/run/wrong.toml:5: vhost.tls_ca: ") && said.contains(wrong), "{said}");

        let body = json!({"app_name": "nas", "backends": ["192.168.1.20:5001"], "tls_ca": path});
        let refused = site.api().call("POST", "/vhosts", Some(body)).expect(422);
        assert!(refused["detail"].as_str().is_some_and(|detail| detail.contains(wrong)), "{refused}");
        let set = format!("tls_ca={path}");
        let output = site.cli(&["vhost", "add", "nas", "192.168.1.20:5001", "--set", &set]);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(output.stderr.contains(wrong), "{output:?}");

        site.write_config(&vhost(path));
        assert_eq!(site.cli(&["reload"]).status.code(), Some(1));
        assert!(site.api().items("/vhosts").is_empty(), "the last good file is in force");
    }
    appliance.write("/run/ca.pem", AUTHORITY).expect("written");
    site.write_config(&vhost("/run/ca.pem"));
    assert_eq!(site.cli(&["validate"]).status.code(), Some(0));
    assert_eq!(site.cli(&["reload"]).status.code(), Some(0));
    let shown = site.api().get("/vhosts/nas");
    assert_eq!((&shown["tls_ca"], &shown["tls_verify"]), (&"/run/ca.pem".into(), &true.into()));
}

#[test]
fn a_start_does_not_fail_for_one_apps_certificates() {
    let site = Site::start(
        "[[vhost]]\napp_name = \"nas\"\nbackend_ip = \"10.20.0.5\"\nprotocol = \"https\"\ntls_ca = \"/run/absent.pem\"\n",
    );
    assert_eq!(site.api().get("/vhosts/nas")["tls_ca"], "/run/absent.pem");
}

#[test]
fn a_wrong_file_stops_a_start_and_says_why() {
    let lab = Site::surroundings();
    lab.appliance().write("/etc/proximity/proximity.toml", WRONG).expect("written");
    let binary = proximity_tests::appliance_binary::appliance_binary();
    let mut appliance = lab.run_appliance(&binary, None).expect("started");
    let status = appliance.process().wait(PATIENCE).expect("it ends");
    assert_eq!(status.code(), Some(1));
    names_every_mistake(&appliance.process().log(), "/etc/proximity/proximity.toml");
    let rules = lab.appliance().run(&["nft", "list", "ruleset"]).expect("nft").stdout;
    assert_eq!(rules, "", "a start that was refused left rules behind");
}

/// DHCP, DNS, proxy: all three at work for a new app.
fn still_serves(site: &Site, name: &str, dns: &DnsProbe) {
    let (app, address) = site.app(name, DhcpClient::Udhcpc, WebServer::Busybox);
    assert_eq!(dns.address(&format!("{name}.prox.local")), Some(address));
    let url = format!("http://{name}.prox.local/");
    let page = until(&url, PATIENCE, || fetch(site.lab.client(), &url));
    assert_eq!(page, format!("hello from {name}\n"));
    assert_eq!(
        fetch(app.node(), "http://www.example.com/").expect("the internet"),
        "hello from the internet\n"
    );
}

#[test]
fn a_running_appliance_keeps_the_last_good_file() {
    let site = Site::start(RIGHT);
    site.wait_wan();
    let machine = site.probe_machine("10.20.0.5/24");
    let dns = DnsProbe::open(&machine, Ipv4Addr::new(10, 20, 0, 1));
    let _backend = TestBackend::page(&machine, 8080, "files");
    let generation = || site.api().get("/status")["generation"].as_u64().expect("a number");

    // By the command.
    site.write_config(WRONG);
    let before = generation();
    let output = site.cli(&["reload"]);
    assert_eq!((output.status.code(), output.stdout.as_str()), (Some(1), ""), "{output:?}");
    names_every_mistake(&output.stderr, "/etc/proximity/proximity.toml");
    let status = site.api().get("/status");
    assert_eq!(status["health_status"], "degraded");
    let problems = status["problems"].to_string();
    assert!(problems.contains("last good") && problems.contains("hostnme"), "{problems}");
    assert_eq!(generation(), before, "a refused file changed something");
    assert_eq!(dns.address("printer.prox.local"), Some(Ipv4Addr::new(10, 20, 0, 50)));
    assert_eq!(fetch(site.lab.client(), "http://files.prox.local/").expect("a page"), "files");
    still_serves(&site, "one", &dns);
    let output = site.cli(&["status"]);
    assert!(output.stdout.contains("! the configuration file is wrong"), "{output:?}");

    // A good one then takes effect: a record and a vhost go, others come.
    site.write_config(&RIGHT.replace("printer", "scanner").replace("files", "media"));
    let output = site.cli(&["reload"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(site.api().get("/status")["problems"].to_string(), "[]");
    assert_eq!(dns.address("printer.prox.local"), None);
    assert_eq!(dns.address("scanner.prox.local"), Some(Ipv4Addr::new(10, 20, 0, 50)));
    assert_eq!(fetch(site.lab.client(), "http://media.prox.local/").expect("a page"), "files");
    assert!(fetch(site.lab.client(), "http://files.prox.local/").is_err(), "the old vhost still serves");
}

#[test]
fn sighup_is_a_reload() {
    let mut site = Site::start(RIGHT);
    let machine = site.probe_machine("10.20.0.5/24");
    let dns = DnsProbe::open(&machine, Ipv4Addr::new(10, 20, 0, 1));
    let is_degraded = |site: &Site| site.api().get("/status")["health_status"] == "degraded";
    site.write_config(WRONG);
    site.appliance.process().signal(Signal::SIGHUP).expect("signalled");
    // A signal gets no answer.
    until("the refusal", PATIENCE, || if is_degraded(&site) { Ok(()) } else { Err("still healthy") });
    assert_eq!(dns.address("printer.prox.local"), Some(Ipv4Addr::new(10, 20, 0, 50)));
    assert!(site.appliance.process().is_running());

    site.write_config(&RIGHT.replace("printer", "scanner"));
    site.appliance.process().signal(Signal::SIGHUP).expect("signalled");
    until("the new record", PATIENCE, || dns.address("scanner.prox.local").ok_or("not there"));
    assert_eq!(dns.address("printer.prox.local"), None);
    assert!(!is_degraded(&site));
}

/// What cannot change while it runs is told, and the rest of the file holds.
#[test]
fn what_needs_a_restart_is_said() {
    let mut site = Site::start("");
    let machine = site.probe_machine("10.20.0.5/24");
    let dns = DnsProbe::open(&machine, Ipv4Addr::new(10, 20, 0, 1));
    site.write_config(&format!("[proxy]\nlisten = [\"0.0.0.0:8081\"]\n{RIGHT}"));
    let output = site.cli(&["reload"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let told = "warning: proxy.listen waits for `proximity upgrade`, which loses nothing, or a restart";
    assert!(output.stdout.lines().any(|line| line == told), "{output:?}");
    let status = site.cli(&["status"]).stdout;
    assert!(status.contains("! proxy.listen waits for `proximity upgrade`"), "{status}");
    assert_eq!(site.api().get("/status")["needs_restart"][0], "proxy.listen");
    assert_eq!(dns.address("printer.prox.local"), Some(Ipv4Addr::new(10, 20, 0, 50)));
    site.appliance.terminate(PATIENCE).expect("it ends");
    site.start_again();
    assert!(site.api().get("/status")["needs_restart"].as_array().is_some_and(Vec::is_empty));
    let page = machine.try_run(&["curl", "-s", "-m", "3", "http://10.20.0.1:8081/"], PATIENCE).expect("curl");
    assert!(page.stdout.contains("No app answers"), "{page:?}");
}
