//! Vhosts changed piece by piece on the command line, and what is said of those that are perhaps not meant.

use proximity_lab::{DhcpClient, Output, WebServer};
use proximity_tests::test_backend::TestBackend;
use proximity_tests::{PATIENCE, Site};
use serde_json::json;

use crate::command_line::{done, json, refused};

/// Of the password `secret`, by crypt(3).
const HASH: &str = "$2b$04$abcdefghijklmnopqrstuu2r9OfJnfCsdneAXAGHnS4UpFFP8WIrW";

/// What curl gets of the shop on the management LAN: the head of the answer.
fn head(site: &Site, arguments: &[&str]) -> String {
    let curl = ["curl", "-sS", "-m", "5", "-o", "/dev/null", "-D", "-", "http://shop.prox.local/"];
    let command: Vec<&str> = curl.iter().chain(arguments).copied().collect();
    site.lab.client().try_run(&command, PATIENCE).expect("curl").stdout
}

fn passes(site: &Site, user: &str) -> bool {
    head(site, &["-u", &format!("{user}:secret")]).starts_with("HTTP/1.1 200 ")
}

#[test]
fn one_user_comes_and_goes_and_the_others_stay() {
    let site = Site::start("");
    site.wait_wan();
    let machine = site.probe_machine("10.20.0.5/24");
    let _backend = TestBackend::page(&machine, 8080, "the shop");
    let user = |name: &str| format!("auth.users.{name}={HASH}");
    done(
        &site,
        &["vhost", "add", "shop", "10.20.0.5:8080", "--set", "auth.realm=Staff", "--set", &user("alice")],
    );
    assert!(passes(&site, "alice") && !passes(&site, "b.c@example.org"));
    done(&site, &["vhost", "set", "shop", "--set", &user("b.c@example.org")]);
    assert!(passes(&site, "alice") && passes(&site, "b.c@example.org"));
    done(&site, &["vhost", "set", "shop", "--unset", "auth.users.alice"]);
    assert!(!passes(&site, "alice") && passes(&site, "b.c@example.org"));
    assert!(head(&site, &[]).contains("realm=\"Staff\""), "{}", head(&site, &[]));

    refused(&site, &["vhost", "set", "shop", "--unset", "auth.users.alice"], "has no `auth.users.alice`");
    refused(
        &site,
        &["vhost", "set", "shop", "--unset", "auth.users.b.c@example.org"],
        "the last of auth.users",
    );
    assert!(passes(&site, "b.c@example.org") && head(&site, &[]).starts_with("HTTP/1.1 401 "));
    done(&site, &["vhost", "set", "shop", "--unset", "auth.users"]);
    assert!(head(&site, &[]).starts_with("HTTP/1.1 200 "));
}

#[test]
fn whose_lease_was_released_is_not_taken_for_misspelt() {
    let site = Site::start("");
    let (_app, address) = site.app("wiki", DhcpClient::Udhcpc, WebServer::Busybox);
    done(&site, &["vhost", "add", "docs", "wiki:80"]);
    done(&site, &["forward", "add", "2222", "wiki:22"]);
    done(&site, &["lease", "release", &address.to_string()]);
    let note = "the container `wiki` has no address, as its lease was released";
    for command in [
        &["vhost", "show", "docs"][..],
        &["explain", "docs"],
        &["explain", "2222"],
        &["forward", "show", "2222"],
    ] {
        let output = site.cli(command).stdout;
        assert!(output.contains(note), "{command:?}: {output}");
    }
    assert_eq!(json(&site, &["status"])["statistics"]["apps"], 0);
    let added = done(&site, &["forward", "add", "2223", "wkii:22"]);
    assert!(added.contains("note: no container is called `wkii`"), "{added}");
    let refused_twice = ["forward", "add", "2224", "wiki:22", "docs:22"];
    refused(&site, &refused_twice, "add --mode proxy");
    refused(&site, &["vhost", "set", "nosuch", "--compress"], "there is no vhost `nosuch`");
}

#[test]
fn a_header_is_set_again_in_whatever_case() {
    let site = Site::start("");
    site.wait_wan();
    let machine = site.probe_machine("10.20.0.5/24");
    let _backend = TestBackend::page(&machine, 8080, "the shop");
    let set = |key: &str| done(&site, &["vhost", "set", "shop", "10.20.0.5:8080", "--set", key]);
    set("response_headers.set.X-Frame-Options=DENY");
    set("response_headers.set.x-frame-options=SAMEORIGIN");
    set("response_headers.set.X-FRAME-OPTIONS=1");
    let fields: Vec<String> = head(&site, &[])
        .lines()
        .filter(|line| line.to_ascii_lowercase().starts_with("x-frame-options"))
        .map(str::to_ascii_lowercase)
        .collect();
    assert_eq!(fields, ["x-frame-options: 1"]);
    done(&site, &["vhost", "set", "shop", "--unset", "response_headers.set.X-Frame-Options"]);
    assert!(!head(&site, &[]).to_ascii_lowercase().contains("x-frame-options"));
}

#[test]
fn several_problems_are_a_line_each() {
    let site = Site::start("");
    done(&site, &["vhost", "add", "shop", "10.20.0.5"]);
    let lines = |arguments: &[&str]| {
        let Output { status, stdout, stderr } = site.cli(&[&["vhost", "set", "shop"], arguments].concat());
        assert_eq!((status.code(), stdout.as_str()), (Some(1), ""), "{stderr}");
        stderr.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let told = lines(&["--set", "retries=99", "--set", "blance=fair", "--set", "auth.realm=R"]);
    assert_eq!((told.len(), told[0].as_str()), (4, "proximity: 3 problems:"), "{told:?}");
    for part in ["`99`; write a whole number from 0 to 10", "`vhost.blance`; the nearest key is `balance`"] {
        assert!(told.iter().any(|line| line.starts_with("  ") && line.contains(part)), "{part}: {told:?}");
    }
    assert!(told.iter().any(|line| line.contains("--set auth.users.NAME=hash")), "{told:?}");
    let told = lines(&["--unset", "blance", "--unset", "timeouts"]);
    assert_eq!(told.len(), 3, "{told:?}");
    assert!(told[1].contains("no `blance`") && told[2].contains("no `timeouts`"), "{told:?}");

    let body = json!({"app_name": "a", "backend": "a", "retries": 99, "blance": 1});
    let problem = site.api().call("POST", "/vhosts", Some(body)).expect(422);
    let problems = problem["problems"].as_array().expect("a list");
    assert!(problems.len() == 2 && problems.iter().all(|one| one["hint"].is_string()), "{problem}");
}

#[test]
fn a_vhost_that_takes_an_apps_own_name_is_told() {
    let site = Site::start("");
    let (_app, _) = site.app("wiki", DhcpClient::Udhcpc, WebServer::Busybox);
    let added = done(&site, &["vhost", "add", "shop", "10.20.0.5", "--alias", "wiki"]);
    let warning = added.lines().find(|line| line.starts_with("warning: ")).unwrap_or_default();
    for part in ["wiki.prox.local", "the app `wiki`", "the vhost `shop`"] {
        assert!(warning.contains(part), "{part}: {added}");
    }
    assert!(done(&site, &["app", "show", "wiki"]).contains("the vhost `shop` has this app's own name"));
    assert!(done(&site, &["vhost", "show", "shop"]).contains("wiki.prox.local is the own name"));
    let status = json(&site, &["status"]);
    assert_eq!(
        (&status["health_status"], &status["warnings"].as_array().map(Vec::len)),
        (&json!("healthy"), &Some(1))
    );
    // A warning is no key: the vhost goes back as it was shown.
    let mut shown = json(&site, &["vhost", "show", "shop"]);
    shown["aliases"] = json!([]);
    let put = site.api().call("PUT", "/vhosts/shop", Some(shown)).expect(200);
    assert!(put["warnings"].is_null(), "{put}");
    assert_eq!(json(&site, &["status"])["warnings"], json!([]));

    site.write_config("[[vhost]]\napp_name = \"docs\"\nhostname = \"wiki\"\nbackend_ip = \"10.20.0.5\"\n");
    let reloaded = done(&site, &["reload"]);
    assert!(reloaded.contains("warning: wiki.prox.local") && reloaded.contains("`docs`"), "{reloaded}");
}

#[test]
fn requests_that_would_go_in_circles_are_refused() {
    let site = Site::start("");
    site.wait_wan();
    for own in ["10.20.0.1", "192.168.1.2", "127.0.0.1", "prox-appliance"] {
        let add = ["vhost", "add", "shop", own, "--host-header", "preserve"];
        refused(&site, &add, "is this proxy itself");
    }
    refused(&site, &["vhost", "add", "shop", "--redirect", "http://shop.prox.local{uri}"], "leads to itself");
    refused(&site, &["vhost", "add", "shop", "web", "--path", "/old=/old/x"], "leads to itself");
    assert!(site.api().items("/vhosts").is_empty());
    done(&site, &["vhost", "add", "shop", "--redirect", "https://shop.prox.local{uri}"]);

    site.lab
        .appliance()
        .write(
            "/run/circle.toml",
            "[[vhost]]\napp_name = \"a\"\nbackend_ip = \"10.20.0.1\"\nhost_header = \"preserve\"\n",
        )
        .expect("written");
    let output = site.cli(&["validate", "/run/circle.toml"]);
    assert!(output.status.code() == Some(1) && output.stderr.contains("this proxy itself"), "{output:?}");
    site.lab
        .appliance()
        .write("/run/twice.toml", "[proxy]\nlisten = [\"0.0.0.0:80\", \"0.0.0.0:80\"]\n")
        .expect("written");
    let output = site.cli(&["validate", "/run/twice.toml"]);
    assert!(output.status.code() == Some(1) && output.stderr.contains("twice"), "{output:?}");
}
