//! Names of others that are not looked up.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType as DnsType;
use hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption};
use proximity_dns::{
    BlockAnswer, BlockRule, DnsServer, DnsStats, HashKey, ListLimits, ListReader, NameList, Policy,
    PublishedPolicy,
};

use crate::fixture::{APP, STRANGER, lines, query, resolve, server, with_edns};

fn list(key: HashKey, text: &str) -> Arc<NameList> {
    let mut reader = ListReader::new(key, ListLimits::default());
    reader.read(text.as_bytes()).unwrap();
    Arc::new(reader.finish())
}

/// A server without upstreams: what is not blocked is refused without an extended error.
fn blocking(text: &str, rule: BlockRule) -> (DnsServer, Arc<DnsStats>) {
    let key = HashKey::new([3, 4]);
    let (server, stats) = server(&[]);
    let published = PublishedPolicy::default();
    let rule = BlockRule { list: list(key, text), ..rule };
    published.store(Some(Arc::new(Policy::new(key, vec![rule]))));
    (server.with_policy(published), stats)
}

async fn ask(
    server: &DnsServer,
    name: &str,
    rtype: DnsType,
) -> (ResponseCode, Vec<String>, Vec<String>, bool) {
    let reply = resolve(server, APP, &with_edns(query(name, rtype), 1232)).await;
    let option = reply.edns.as_ref().and_then(|edns| edns.option(EdnsCode::Unknown(15)).cloned());
    // RFC 8914 §4.16: "Blocked" is 15.
    let is_blocked = matches!(option, Some(EdnsOption::Unknown(_, octets)) if octets == [0, 15]);
    (reply.metadata.response_code, lines(&reply.answers), lines(&reply.authorities), is_blocked)
}

fn soa(name: &str) -> Vec<String> {
    vec![format!("{name} 10 SOA {name} nobody.invalid. 1 3600 600 1209600 10")]
}

#[tokio::test]
async fn a_blocked_name_has_the_addresses_of_nobody() {
    let (server, stats) = blocking("||ads.example^\n", BlockRule::default());
    for (name, rtype, answers, authority) in [
        ("ads.example.", DnsType::A, vec!["ads.example. 10 A 0.0.0.0"], vec![]),
        ("x.Ads.example.", DnsType::AAAA, vec!["x.Ads.example. 10 AAAA ::"], vec![]),
        ("ads.example.", DnsType::HTTPS, vec![], soa("ads.example.")),
    ] {
        let (code, got, soa, is_blocked) = ask(&server, name, rtype).await;
        assert_eq!((code, is_blocked), (ResponseCode::NoError, true), "{name}");
        assert_eq!((got, soa), (answers.into_iter().map(str::to_owned).collect(), authority), "{name}");
    }
    let (code, .., is_blocked) = ask(&server, "example.", DnsType::A).await;
    assert_eq!((code, is_blocked), (ResponseCode::Refused, false));
    let counted = stats.snapshot();
    assert_eq!((counted.blocked, counted.forwarded), (3, 1));
}

#[tokio::test]
async fn a_blocked_name_does_not_exist_or_is_refused() {
    for (answer, code, authority) in [
        (BlockAnswer::NxDomain, ResponseCode::NXDomain, soa("ads.example.")),
        (BlockAnswer::Refused, ResponseCode::Refused, vec![]),
    ] {
        let (server, _) = blocking("ads.example", BlockRule { answer, ..BlockRule::default() });
        assert_eq!(ask(&server, "ads.example.", DnsType::A).await, (code, vec![], authority, true));
    }
}

/// Without EDNS the reply has no OPT record; and the longest name fits in the shortest reply.
#[tokio::test]
async fn a_plain_client_gets_a_plain_reply() {
    let name = format!("{0}.{0}.{0}.{1}.", "a".repeat(63), "a".repeat(61));
    let (server, _) = blocking(&name, BlockRule { answer: BlockAnswer::NxDomain, ..BlockRule::default() });
    let reply = resolve(&server, APP, &query(&name, DnsType::A)).await;
    assert_eq!((reply.metadata.response_code, reply.authorities.len()), (ResponseCode::NXDomain, 1));
    assert!(reply.edns.is_none() && !reply.metadata.truncation);
    assert!(reply.to_vec().unwrap().len() <= 512);
}

#[tokio::test]
async fn our_own_names_and_what_is_let_through_are_not_blocked() {
    let text = "||local^\n||example^\n||com^\n@@||good.example^\n";
    let blocked = Arc::new(AtomicU64::new(0));
    let (server, stats) = blocking(text, BlockRule { blocked: blocked.clone(), ..BlockRule::default() });
    let (code, answers, ..) = ask(&server, "nginx.prox.local.", DnsType::A).await;
    assert_eq!((code, answers.len()), (ResponseCode::NoError, 1));
    assert!(!ask(&server, "www.good.example.", DnsType::A).await.3);
    // The administrator's alias to a name below `com`.
    assert!(!ask(&server, "blog.prox.local.", DnsType::A).await.3);
    assert!(ask(&server, "bad.example.", DnsType::A).await.3);
    assert_eq!((stats.snapshot().blocked, blocked.load(Ordering::Relaxed)), (1, 1));
}

#[tokio::test]
async fn a_rule_holds_for_its_networks_and_apps() {
    let networks = |text: &str| vec![text.parse().unwrap()];
    let apps = |name: &str| vec![name.parse().unwrap()];
    for (rule, is_blocked) in [
        (BlockRule { networks: networks("10.20.0.0/24"), ..BlockRule::default() }, true),
        (BlockRule { networks: networks("10.21.0.0/24"), ..BlockRule::default() }, false),
        (BlockRule { apps: apps("nginx"), ..BlockRule::default() }, true),
        (BlockRule { apps: apps("brief"), ..BlockRule::default() }, false),
        (BlockRule { networks: networks("10.21.0.0/24"), apps: apps("nginx"), ..BlockRule::default() }, true),
    ] {
        let (server, _) = blocking("ads.example", rule.clone());
        assert_eq!(ask(&server, "ads.example.", DnsType::A).await.3, is_blocked, "{rule:?}");
    }
    // A stranger is refused whatever is blocked.
    let (server, stats) = blocking("ads.example", BlockRule::default());
    let reply = resolve(&server, STRANGER, &query("ads.example.", DnsType::A)).await;
    assert_eq!(reply.metadata.response_code, ResponseCode::Refused);
    assert_eq!(stats.snapshot().blocked, 0);
}
