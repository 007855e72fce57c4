//! Our table in the kernel: applied, changed, verified, removed.

use crate::host::{Host, command};
use proximity_net::plan::plan;
use proximity_net::policy::{Ipv4Net, LanPolicy, Policy, PortForward, Protocol};
use proximity_net::ruleset::Ruleset;
use proximity_net::{Finding, Nft, VerifyError};
use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddrV4};

fn net(a: u8, b: u8, c: u8, d: u8, prefix_len: u8) -> Ipv4Net {
    Ipv4Net::new(Ipv4Addr::new(a, b, c, d), prefix_len).unwrap()
}

fn policy() -> Policy {
    let lan = |interface: &str, third| LanPolicy {
        interface: interface.into(),
        subnet: net(10, 20, third, 0, 24),
        gateway: Ipv4Addr::new(10, 20, third, 1),
    };
    let forward = |protocol, port, to| PortForward {
        protocol,
        port,
        to: SocketAddrV4::new(Ipv4Addr::new(10, 20, 0, 101), to),
    };
    Policy {
        wan_addresses: vec![net(192, 168, 1, 5, 24), net(192, 168, 1, 6, 25), net(172, 16, 9, 1, 32)],
        networks: vec![lan("eth1", 0), lan("a-long-name-15b", 1)],
        wan_dns: true,
        forwards: vec![forward(Protocol::Tcp, 2222, 22), forward(Protocol::Udp, 5353, 53)],
        proxied: vec![(Protocol::Tcp, 2223), (Protocol::Udp, 51820)],
        ..Policy::new("eth0")
    }
}

fn seed() -> Ruleset {
    plan(&Policy { wan_dns: false, ..policy() }).unwrap()
}

fn addresses(count: u32) -> Vec<Ipv4Addr> {
    (0..count).map(|n| Ipv4Addr::new(10, 20, 0, 2).to_bits() + n).map(Ipv4Addr::from_bits).collect()
}

fn findings(result: Result<(), VerifyError>) -> Vec<Finding> {
    match result {
        Ok(()) => vec![],
        Err(VerifyError::Diverged(divergence)) => divergence.findings().to_vec(),
        Err(VerifyError::Failed(error)) => panic!("{error}"),
    }
}

fn listing() -> String {
    command("nft", "list table inet proximity", "")
}

#[test]
fn the_text_form_and_the_netlink_form_make_the_same_table() {
    let Some(host) = Host::new() else { return };
    host.run(|| {
        for policy in [policy(), Policy { isolate_management: false, ..Policy::new("wan0") }] {
            let ruleset = plan(&policy).unwrap();
            let text = ruleset.to_string();
            command("nft", "-c -f -", &text);
            command("nft", "-f -", &text);
            let by_text = listing();
            let mut nft = Nft::open().unwrap();
            nft.apply(&ruleset, []).unwrap();
            let by_netlink = listing();
            nft.remove("proximity").unwrap();
            assert_eq!(by_netlink, by_text);
            assert!(
                by_text.contains("comment \"isolate-management\"") == policy.isolate_management,
                "{by_text}"
            );
        }
    });
}

#[test]
fn applying_twice_or_removing_twice_is_fine_and_foreign_tables_survive() {
    let Some(host) = Host::new() else { return };
    host.run(|| {
        let foreign = "table ip proximity {\n\tchain c {\n\t\tcounter\n\t}\n}\ntable inet other {\n}\n";
        command("nft", "-f -", foreign);
        let others =
            || (command("nft", "list table ip proximity", ""), command("nft", "list table inet other", ""));
        let before = others();
        let mut nft = Nft::open().unwrap();
        for _ in 0..2 {
            nft.apply(&seed(), addresses(3)).unwrap();
            assert_eq!(findings(nft.verify(&seed(), addresses(3))), []);
        }
        for _ in 0..2 {
            nft.remove("proximity").unwrap();
            assert_eq!(findings(nft.verify(&seed(), addresses(3))), [Finding::TableMissing]);
        }
        assert_eq!(others(), before);
        assert_eq!(nft.counters("proximity").unwrap().len(), 0);
    });
}

#[test]
fn leased_addresses_come_and_go_whether_or_not_they_were_there() {
    let Some(host) = Host::new() else { return };
    host.run(|| {
        let mut nft = Nft::open().unwrap();
        nft.apply(&seed(), addresses(2)).unwrap();
        let all = addresses(5);
        nft.change_leased("proximity", &all[1..4], &all[..1]).unwrap();
        assert_eq!(nft.leased("proximity").unwrap(), all[1..4].iter().copied().collect());
        nft.change_leased("proximity", &all[1..4], &all[..1]).unwrap();
        nft.change_leased("proximity", &[all[4], all[4]], &[all[3], all[3], all[0]]).unwrap();
        let expected = BTreeSet::from([all[1], all[2], all[4]]);
        assert_eq!(nft.leased("proximity").unwrap(), expected);
        assert_eq!(findings(nft.verify(&seed(), expected)), []);
        nft.change_leased("proximity", &[], &[]).unwrap();
    });
}

#[test]
fn sixty_thousand_leases_at_start_and_thousands_per_batch() {
    let Some(host) = Host::new() else { return };
    host.run(|| {
        let mut nft = Nft::open().unwrap();
        let all = addresses(60_000);
        let mut policy = policy();
        policy.networks[0].subnet = net(10, 20, 0, 0, 16);
        let seed = || plan(&policy).unwrap();
        nft.apply(&seed(), all.iter().copied()).unwrap();
        assert_eq!(findings(nft.verify(&seed(), all.iter().copied())), []);
        nft.change_leased("proximity", &[], &all[5_000..25_000]).unwrap();
        let left = || all[..5_000].iter().chain(&all[25_000..]).copied();
        assert_eq!(findings(nft.verify(&seed(), left())), []);
        nft.change_leased("proximity", &all[5_000..15_000], &all[30_000..35_000]).unwrap();
        assert_eq!(nft.leased("proximity").unwrap().len(), 45_000);
        nft.apply(&seed(), all.iter().copied()).unwrap();
        assert_eq!(nft.leased("proximity").unwrap().len(), 60_000);
    });
}

#[test]
fn a_change_without_a_table_is_refused_by_name() {
    let Some(host) = Host::new() else { return };
    host.run(|| {
        let mut nft = Nft::open().unwrap();
        let error = nft.change_leased("proximity", &addresses(1), &[]).unwrap_err();
        assert_eq!(error.errno(), Some(nix::errno::Errno::ENOENT));
        assert!(error.to_string().contains("add to set leased"), "{error}");
        nft.apply(&seed(), []).unwrap();
    });
}

#[test]
fn verify_names_what_somebody_changed() {
    let Some(host) = Host::new() else { return };
    host.run(|| {
        let mut nft = Nft::open().unwrap();
        let ruleset = seed();
        let mut changed = |change: &str| {
            nft.apply(&ruleset, addresses(4)).unwrap();
            assert_eq!(findings(nft.verify(&ruleset, addresses(4))), []);
            command("nft", "-f -", change);
            findings(nft.verify(&ruleset, addresses(4)))
        };
        let chain = || "forward".to_owned();
        let handle = |id: &str| {
            let all = command("nft", "-a list table inet proximity", "");
            let line =
                all.lines().find(|line| line.contains(&format!("comment \"{id}\""))).unwrap().to_owned();
            line.rsplit(' ').next().unwrap().to_owned()
        };
        assert_eq!(
            changed("flush set inet proximity leased"),
            [Finding::Elements { set: "leased".into(), missing: 4, unexpected: 0 }]
        );
        assert_eq!(
            changed("add element inet proximity wan_subnets { 10.9.0.0/16 }"),
            [Finding::Elements { set: "wan_subnets".into(), missing: 0, unexpected: 2 }]
        );
        assert_eq!(changed("add set inet proximity s { type mark; }"), [Finding::SetUnexpected("s".into())]);
        assert_eq!(changed("add chain inet proximity c"), [Finding::ChainUnexpected("c".into())]);
        assert_eq!(
            changed("chain inet proximity forward { policy drop; }"),
            [Finding::ChainChanged(chain())]
        );
        assert_eq!(changed("table inet proximity { flags dormant; }"), [Finding::TableFlags(1)]);
        assert_eq!(changed("delete table inet proximity"), [Finding::TableMissing]);
        assert!(matches!(
            &changed("insert rule inet proximity forward accept")[..],
            [Finding::RuleUnexpected { chain, .. }] if chain == "forward"
        ));

        changed("");
        let gone = format!("delete rule inet proximity forward handle {}", handle("isolate-management"));
        command("nft", "-f -", &gone);
        let missing = Finding::RuleMissing { chain: chain(), id: "isolate-management".into() };
        assert_eq!(findings(nft.verify(&ruleset, addresses(4))), [missing]);

        nft.apply(&ruleset, addresses(4)).unwrap();
        let replaced = format!(
            "replace rule inet proximity forward handle {} accept comment \"from-lan\"",
            handle("from-lan")
        );
        command("nft", "-f -", &replaced);
        let replaced = Finding::RuleChanged { chain: chain(), id: "from-lan".into() };
        assert_eq!(findings(nft.verify(&ruleset, addresses(4))), [replaced]);
    });
}
