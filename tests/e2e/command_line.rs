//! The command line: tables for people, JSON for scripts, and exit codes for both.

use proximity_lab::{DhcpClient, Output, WebServer};
use proximity_tests::Site;
use serde_json::{Value, json};

pub fn done(site: &Site, arguments: &[&str]) -> String {
    let Output { status, stdout, stderr } = site.cli(arguments);
    assert_eq!(status.code(), Some(0), "{arguments:?}: {stderr}{stdout}");
    assert_eq!(stderr, "", "{arguments:?}");
    stdout
}

pub fn json(site: &Site, arguments: &[&str]) -> Value {
    let text = done(site, &[arguments, &["--json"]].concat());
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {text}"))
}

/// One clear line (and a hint below it) on stderr, nothing on stdout.
pub fn refused(site: &Site, arguments: &[&str], says: &str) {
    let Output { status, stdout, stderr } = site.cli(arguments);
    assert_eq!(status.code(), Some(1), "{arguments:?}: {stderr}{stdout}");
    assert_eq!(stdout, "", "{arguments:?}");
    assert!(stderr.starts_with("proximity: ") && stderr.contains(says), "{arguments:?}: {stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
}

#[test]
fn what_is_there_is_listed_as_a_table_and_as_json() {
    let site = Site::start("");
    site.wait_wan();
    let (_app, address) = site.app("wiki", DhcpClient::Udhcpc, WebServer::Busybox);
    let address = address.to_string();

    let status = done(&site, &["status"]);
    assert!(status.starts_with("prox-appliance is healthy"), "{status}");
    for part in ["WAN eth0 192.168.1.2", "dhcp", "dns", "proxy", "nat", "admin", "active_leases"] {
        assert!(status.contains(part), "{part}: {status}");
    }
    let status = json(&site, &["status"]);
    assert_eq!((&status["health_status"], &status["wan_ip"]), (&"healthy".into(), &"192.168.1.2".into()));
    assert_eq!(status["statistics"]["active_leases"], 1);

    let line = |text: &str| text.lines().find(|line| line.contains("wiki")).unwrap_or_default().to_owned();
    let apps = line(&done(&site, &["app", "ls"]));
    for part in ["active", &address, "http://wiki.prox.local"] {
        assert!(apps.contains(part), "{part}: {apps}");
    }
    let apps = json(&site, &["app", "ls"]);
    let row =
        apps["items"].as_array().expect("rows").iter().find(|row| row["name"] == "wiki").expect("the app");
    assert_eq!((&row["ip"], &row["state"]), (&address.as_str().into(), &"active".into()));
    let app = done(&site, &["app", "show", "wiki"]);
    assert!(app.contains(&address) && app.contains("wiki.prox.local"), "{app}");
    assert_eq!(json(&site, &["app", "show", "wiki"])["fqdn"], "wiki.prox.local");

    let leases = line(&done(&site, &["lease", "ls"]));
    assert!(leases.contains(&address) && leases.contains("active"), "{leases}");
    let lease = &json(&site, &["lease", "ls"])["items"][0];
    assert_eq!((&lease["ip"], &lease["hostname"]), (&address.as_str().into(), &"wiki".into()));
    let expires = lease["expires"].as_str().expect("a time");
    assert!(expires.ends_with('Z') && expires.contains('T'), "{expires} is not RFC 3339 in UTC");

    let records = done(&site, &["dns", "ls"]);
    assert!(
        records.lines().any(|line| line.contains("wiki.prox.local") && line.contains(&address)),
        "{records}"
    );
    let records = json(&site, &["dns", "ls"]);
    let of_app = |record: &&Value| record["name"] == "wiki.prox.local" && record["type"] == "A";
    let record = records["items"].as_array().expect("rows").iter().find(of_app).expect("the record");
    assert_eq!((&record["value"], &record["source"]), (&address.as_str().into(), &"lease".into()));

    let vhosts = line(&done(&site, &["vhost", "ls"]));
    assert!(vhosts.contains("wiki.prox.local") && vhosts.contains("lease"), "{vhosts}");
    assert_eq!(json(&site, &["vhost", "ls"])["items"][0]["source"], "lease");

    let version = done(&site, &["version"]);
    assert!(version.starts_with("proximity "), "{version}");
    assert_eq!(json(&site, &["version"])["version"], json(&site, &["status"])["version"]);
}

#[test]
fn what_is_added_is_there_and_what_is_removed_is_gone() {
    let site = Site::start("");
    let names = |path: &str, key: &str| -> Vec<String> {
        let items = site.api().items(path);
        items.iter().map(|item| item[key].as_str().expect("a text").to_owned()).collect()
    };

    done(&site, &["dns", "add", "printer", "A", "10.20.0.50", "--ttl", "60"]);
    json(&site, &["dns", "add", "note", "TXT", "two", "words"]);
    let records = names("/dns/records", "name");
    assert!(records.contains(&"printer.prox.local".into()) && records.contains(&"note.prox.local".into()));
    let machine = site.probe_machine("10.20.0.5/24");
    let dns = proximity_tests::dns_probe::DnsProbe::open(&machine, [10, 20, 0, 1].into());
    assert_eq!(dns.address("printer.prox.local"), Some([10, 20, 0, 50].into()));
    done(&site, &["dns", "rm", "printer", "A"]);
    json(&site, &["dns", "rm", "note.prox.local.", "TXT"]);
    assert_eq!(dns.address("printer.prox.local"), None);
    refused(&site, &["dns", "rm", "printer", "A"], "there is no record");
    for (name, rtype, value, added) in [
        ("web", "https", "1 . alpn=h2,h3 ipv4hint=10.20.0.5", "web.prox.local HTTPS 1 . alpn=h2,h3"),
        ("*.dev", "A", "10.20.0.60", "*.dev.prox.local A 10.20.0.60"),
        ("nas.example.com.", "A", "10.20.0.61", "nas.example.com A 10.20.0.61"),
        ("lab", "NS", "ns.lab", "lab.prox.local NS ns.lab.prox.local."),
    ] {
        let arguments: Vec<&str> = ["dns", "add", name, rtype].into_iter().chain(value.split(' ')).collect();
        let said = done(&site, &arguments);
        assert!(said.contains(added), "{said}");
        assert!(done(&site, &["dns", "ls"]).contains(value.split(' ').next_back().unwrap_or_default()));
    }
    assert_eq!(dns.address("x.dev.prox.local"), Some([10, 20, 0, 60].into()));
    assert_eq!(dns.address("nas.example.com"), Some([10, 20, 0, 61].into()));
    for (name, rtype) in [("*.dev", "A"), ("nas.example.com", "A"), ("web", "HTTPS"), ("lab", "ns")] {
        done(&site, &["dns", "rm", name, rtype]);
    }
    assert_eq!(dns.address("x.dev.prox.local"), None);
    refused(&site, &["dns", "add", "@", "NS", "ns"], "cannot be delegated");
    refused(&site, &["dns", "add", "web", "HTTPS", "1", ".", "apln=h2"], "alpn");
    refused(&site, &["dns", "add", "printer", "A", "not-an-address"], "not-an-address");

    done(&site, &["vhost", "add", "shop", "10.20.0.5:8080"]);
    assert_eq!(
        json(&site, &["vhost", "set", "shop", "10.20.0.5", "--alias", "store"])["aliases"][0],
        "store.prox.local"
    );
    assert_eq!(json(&site, &["vhost", "add", "blog", "10.20.0.5"])["backend_port"], 80);
    refused(&site, &["vhost", "add", "blog", "10.20.0.6"], "vhost set");
    assert_eq!(names("/vhosts", "app_name"), ["blog", "shop"]);
    done(&site, &["vhost", "rm", "shop"]);
    json(&site, &["vhost", "rm", "blog"]);
    assert!(names("/vhosts", "app_name").is_empty());
    refused(&site, &["vhost", "rm", "shop"], "no vhost");

    done(&site, &["lease", "reserve", "bc:24:11:00:00:aa", "10.20.0.10", "--hostname", "db"]);
    assert_eq!(names("/dhcp/reservations", "hostname"), ["db"]);
    refused(&site, &["lease", "reserve", "bc:24:11:00:00:ab", "10.20.0.10"], "reserved");
    json(&site, &["lease", "unreserve", "bc:24:11:00:00:aa"]);
    assert!(names("/dhcp/reservations", "hostname").is_empty());

    done(&site, &["forward", "add", "2222", "10.20.0.5:22"]);
    assert!(done(&site, &["forward", "ls"]).contains("10.20.0.5:22"));
    assert_eq!(json(&site, &["forward", "ls"])["items"][0]["port"], 2222);
    for name in ["2222", "tcp/2222"] {
        let shown = done(&site, &["forward", "show", name]);
        for part in ["tcp/2222", "nat", "api", "10.20.0.5:22"] {
            assert!(shown.contains(part), "{part}: {shown}");
        }
        assert_eq!(json(&site, &["forward", "show", name]), json(&site, &["forward", "ls"])["items"][0]);
    }
    for name in ["2223", "udp/2222", "tcp/x", "2222/tcp", "icmp/1"] {
        refused(&site, &["forward", "show", name], "there is no forward");
    }
    done(&site, &["forward", "rm", "2222"]);
    assert!(site.api().items("/forwards").is_empty());
}

#[test]
fn a_vhost_is_set_key_by_key_and_outlives_a_restart() {
    let mut site = Site::start("");
    let hash = "$2b$12$abcdefghijklmnopqrstuuABCDEFGHIJKLMNOPQRSTUVWXYZ01232";
    let users = format!("auth.users.alice={hash}");
    let add =
        ["vhost", "add", "shop", "10.20.0.5:8080", "web:81", "--balance", "random_two", "--set", &users];
    done(&site, &add);
    done(&site, &["vhost", "set", "shop", "--set", "timeouts.total=30s", "--path", "/api=api:3000"]);
    refused(&site, &["vhost", "set", "shop", "--set", "blance=fair"], "`balance`");
    refused(&site, &["vhost", "set", "shop", "--redirect-status", "307"], "goes with redirect");
    site.appliance.terminate(proximity_tests::PATIENCE).expect("it ends");
    site.start_again();
    let shown = json(&site, &["vhost", "show", "shop"]);
    assert_eq!(shown["backends"], json!(["10.20.0.5:8080", "web:81"]));
    assert_eq!((&shown["balance"], &shown["timeouts"]), (&json!("random_two"), &json!({"total": "30s"})));
    assert_eq!(shown["auth"]["users"], json!(["alice"]));
    assert_eq!(
        (&shown["path"][0]["prefix"], &shown["path"][0]["verdict"]),
        (&json!("/api"), &json!("stopped"))
    );
    let text = done(&site, &["vhost", "show", "shop"]);
    for part in ["random_two", "timeouts.total", "path /api", "alice"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(!text.contains("$2b$") && !shown.to_string().contains("$2b$"), "{text}");
    done(&site, &["vhost", "set", "shop", "--unset", "auth", "--redirect", "https://new.example{uri}"]);
    let shown = json(&site, &["vhost", "show", "shop"]);
    assert_eq!((&shown["redirect"], &shown["backends"]), (&json!("https://new.example{uri}"), &json!([])));
    assert!(
        shown["auth"].is_null() && done(&site, &["vhost", "ls"]).contains("redirect to https://new.example")
    );
    done(&site, &["vhost", "add", "old", "--redirect", "https://new.example", "--default"]);
    refused(&site, &["vhost", "set", "shop", "--default"], "`old`");
}

#[test]
fn exit_codes_tell_refusal_from_misuse() {
    let mut site = Site::start("");
    refused(&site, &["app", "show", "nobody"], "no app `nobody`");
    for arguments in [&["app", "show", "nobody", "--json"][..], &["lease", "release", "10.20.0.9"]] {
        refused(&site, arguments, "there is no");
    }
    for misuse in [&["bogus"][..], &["app"], &["vhost", "add", "only-a-name"], &["status", "--no-such-flag"]]
    {
        let output = site.cli(misuse);
        assert_eq!(output.status.code(), Some(2), "{misuse:?}: {output:?}");
        assert!(output.stderr.contains("Usage"), "{misuse:?}: {output:?}");
    }
    site.appliance.terminate(proximity_tests::PATIENCE).expect("it ends");
    refused(&site, &["status"], "proximity run");
    refused(&site, &["--socket", "/run/nowhere.sock", "app", "ls"], "/run/nowhere.sock");
}
