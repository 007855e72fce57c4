//! Somebody else changes the firewall: it is repaired, and where it cannot be, everybody is told.

use std::io::Write;
use std::process::{Child, Stdio};

use proximity_lab::{DhcpClient, Node, WebServer};
use proximity_tests::{PATIENCE, Site, fetch, polling::until};

const TABLE: [&str; 5] = ["nft", "list", "table", "inet", "proximity"];

/// The table as text, counters left out.
fn table(node: &Node) -> Result<String, String> {
    let text = node.run(&TABLE).map_err(|error| error.to_string())?.stdout;
    let words = text.split_whitespace().collect::<Vec<_>>();
    let mut kept = Vec::new();
    let mut at = 0;
    while at < words.len() {
        // counter packets N bytes N
        if words[at] == "packets" {
            at += 4;
            continue;
        }
        kept.push(words[at]);
        at += 1;
    }
    Ok(kept.join(" "))
}

#[test]
fn whatever_is_done_to_the_table_is_undone() {
    let site = Site::start("");
    site.wait_wan();
    let (app, address) = site.app("wiki", DhcpClient::Udhcpc, WebServer::Busybox);
    let node = site.lab.appliance();
    let planned = table(node).expect("a table");
    assert!(planned.contains(&format!("elements = {{ {address} }}")), "{planned}");
    for damage in [
        "delete table inet proximity",
        "flush ruleset",
        "flush set inet proximity leased",
        "add element inet proximity leased { 10.20.0.77 }",
        "delete element inet proximity wan_subnets { 192.168.1.0-192.168.1.255 }",
        "flush chain inet proximity forward",
        "insert rule inet proximity forward accept",
        "add rule inet proximity input drop",
        "add chain inet proximity backdoor",
        "delete table inet proximity; add table inet proximity",
    ] {
        node.run(&["nft", damage]).unwrap_or_else(|error| panic!("{error}"));
        // The appliance hears of it from the kernel; the test sees only the outcome.
        until(damage, PATIENCE, || match table(node) {
            Ok(now) if now == planned => Ok(()),
            now => Err(format!("{now:?}")),
        });
    }
    until("readiness", PATIENCE, || match site.appliance.get("/readyz") {
        Ok((200, _)) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    assert_eq!(
        fetch(app.node(), "http://www.example.com/").expect("the internet"),
        "hello from the internet\n"
    );
    let refused = app.node().try_run(&["curl", "-sS", "-m", "3", "http://192.168.1.50:8006/"], PATIENCE);
    assert_eq!(refused.expect("curl ends").status.code(), Some(7));
}

/// A process that makes the table its own, so that the kernel lets nobody else change it.
struct Squatter(Child);

impl Squatter {
    fn sit_on(node: &Node) -> Squatter {
        let mut nft = node.command("nft");
        let mut child = nft.arg("-i").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("nft");
        let stdin = child.stdin.as_mut().expect("a pipe");
        writeln!(stdin, "delete table inet proximity; add table inet proximity {{ flags owner; }}")
            .expect("nft reads");
        Squatter(child)
    }

    fn leave(mut self) {
        // The table goes with its owner.
        drop(self.0.stdin.take());
        self.0.wait().expect("nft ends");
    }
}

#[test]
fn what_cannot_be_repaired_is_told_everywhere() {
    let site = Site::start("");
    site.wait_wan();
    let node = site.lab.appliance();
    let squatter = Squatter::sit_on(node);
    let reason = until("the trouble", PATIENCE, || match site.appliance.get("/readyz") {
        Ok((503, reason)) => Ok(reason),
        other => Err(format!("{other:?}")),
    });
    assert!(reason.contains("firewall"), "{reason}");
    let status = site.api().get("/status");
    assert_eq!(status["health_status"], "degraded");
    assert!(status["problems"].to_string().contains("firewall"), "{status}");
    assert_eq!(status["services"]["nat"], false);
    let shown = site.cli(&["status"]);
    assert!(shown.status.success() && shown.stdout.contains("! firewall:"), "{shown:?}");
    // Apps still get addresses and names: a network without a firewall is told of, not switched off.
    let (_app, address) = site.app("wiki", DhcpClient::Udhcpc, WebServer::Busybox);
    assert_eq!(site.api().get("/apps/wiki")["ip"], address.to_string());

    squatter.leave();
    until("the repair", PATIENCE, || match site.appliance.get("/readyz") {
        Ok((200, _)) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    let now = table(node).expect("a table");
    assert!(now.contains(&address.to_string()), "the lease of the bad time is missing: {now}");
    assert_eq!(site.api().get("/status")["health_status"], "healthy");
}
