//! Others' changes of our table are told, ours are not.

use crate::host::{Host, command, runtime};
use proximity_net::plan::plan;
use proximity_net::policy::{Ipv4Net, LanPolicy, Policy};
use proximity_net::{Nft, TableChanged, Watch};
use std::net::Ipv4Addr;
use std::time::Duration;

#[test]
fn a_change_by_another_process_wakes_the_watcher_and_ours_do_not() {
    let Some(host) = Host::new() else { return };
    host.run(|| {
        runtime().block_on(async {
            let ruleset = plan(&Policy::new("eth0")).unwrap();
            let mut nft = Nft::open().unwrap();
            let mut watch = Watch::open("proximity", [nft.port()]).unwrap();
            let by_nft = TableChanged { by: Some("nft".into()) };
            for change in ["flush chain inet proximity input", "delete table inet proximity", "flush ruleset"]
            {
                nft.apply(&ruleset, []).unwrap();
                // Changes of other tables come first and must not be taken for ours.
                command("nft", "add table inet other", "");
                command("nft", change, "");
                assert_eq!(watch.changed().await.unwrap(), by_nft, "{change}");
                assert!(nft.verify(&ruleset, []).is_err(), "{change}");
            }
            nft.apply(&ruleset, []).unwrap();
            nft.remove("proximity").unwrap();
            let silence = tokio::time::timeout(Duration::from_millis(50), watch.changed()).await;
            assert!(silence.is_err(), "{silence:?}");
        });
    });
}

#[test]
fn lost_notifications_are_a_change_too() {
    let Some(host) = Host::new() else { return };
    host.run(|| {
        runtime().block_on(async {
            let mut policy = Policy::new("eth0");
            policy.networks.push(LanPolicy {
                interface: "eth1".into(),
                subnet: Ipv4Net::new(Ipv4Addr::new(10, 20, 0, 0), 16).unwrap(),
                gateway: Ipv4Addr::new(10, 20, 0, 1),
            });
            Nft::open().unwrap().apply(&plan(&policy).unwrap(), []).unwrap();
            let mut watch = Watch::open("proximity", []).unwrap();
            for third in 0..80 {
                let addresses: Vec<_> = (0..250).map(|last| format!("10.20.{third}.{last}")).collect();
                let elements = addresses.join(",");
                command("nft", "-f -", &format!("add element inet proximity leased {{ {elements} }}"));
            }
            assert_eq!(watch.changed().await.unwrap(), TableChanged { by: None });
        });
    });
}
