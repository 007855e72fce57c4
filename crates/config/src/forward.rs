//! `[[forward]]`: ports that lead to apps.

use std::sync::Arc;

use imbl::OrdMap;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use proximity_table::{
    BackendTarget, Balance, Forward, HealthPolicy, Owned, Protocol, ProxyProtocol, Source, StreamPolicy,
};

use crate::section::Section;
use crate::vhost::backend_target;

/// Most targets of one forward.
const MOST_TARGETS: usize = 32;
/// What only the proxy can do.
const OF_THE_PROXY: [&str; 5] =
    ["proxy_protocol", "accept_proxy_protocol", "balance", "idle_timeout", "max_connections"];
/// What is said of a target that cannot be one.
const TARGET_HINT: &str = "write an app or an address with a port, such as gitea:22 or 10.20.0.10:22";

pub fn read_all(root: &mut Section<'_>) -> OrdMap<(Protocol, u16), Owned<Forward>> {
    let mut forwards = OrdMap::new();
    for mut table in root.tables("forward") {
        if let Some(forward) = read(&mut table) {
            let (protocol, port) = (forward.protocol, forward.port);
            if forwards.insert((protocol, port), (Source::Config, Arc::new(forward))).is_some() {
                let message = format!("{protocol} port {port} is forwarded twice");
                table.refuse("port", &message, "use another port for one of them");
            }
        }
        table.finish();
    }
    forwards
}

/// One forward; `None` when it lacks what it must have, and then that was noted.
pub fn read(table: &mut Section<'_>) -> Option<Forward> {
    let protocol = match table.word("protocol", &["tcp", "udp"]) {
        "udp" => Protocol::Udp,
        _ => Protocol::Tcp,
    };
    let port = table.port("port");
    if port.is_none() && !table.has("port") {
        let hint = format!("add {}", table.pair("port", "2222"));
        table.refuse_all(&format!("{} has no port", table.heading()), &hint);
    }
    let targets = targets(table);
    let is_proxied = table.word("mode", &["nat", "proxy"]) == "proxy";
    if !is_proxied {
        refuse_what_nat_cannot(table, targets.len());
    }
    let policy = policy(table, protocol);
    let health = health(table, protocol);
    let mut targets = targets.into_iter();
    let mut forward = Forward::new(protocol, port?, targets.next()?);
    forward.more = targets.collect();
    forward.health = health.map(Arc::new);
    forward.proxy = is_proxied.then(|| Arc::new(policy));
    Some(forward)
}

fn targets(table: &mut Section<'_>) -> Vec<BackendTarget> {
    let targets: Vec<BackendTarget> = if table.is_list("to") {
        let expected = "an app or an address with a port, such as \"gitea:22\" or \"10.20.0.10:22\"";
        let targets = table.list("to", expected, backend_target).unwrap_or_default();
        if table.is_empty_list("to") {
            table.refuse("to", "the list of targets is empty", TARGET_HINT);
        }
        targets
    } else {
        let text: Option<String> = table.required("to", "gitea:22");
        let target = text.as_deref().and_then(backend_target);
        if let (Some(text), None) = (&text, &target) {
            table.refuse("to", &format!("`{text}` is not a target"), TARGET_HINT);
        }
        target.into_iter().collect()
    };
    if targets.len() > MOST_TARGETS {
        let message = format!("the forward has {} targets", targets.len());
        table.refuse("to", &message, &format!("give at most {MOST_TARGETS}"));
    }
    if let Some(twice) = (1..targets.len()).find(|&at| targets[..at].contains(&targets[at])) {
        table.refuse("to", &format!("{} is written twice", targets[twice]), "write each target once");
    }
    targets
}

fn refuse_what_nat_cannot(table: &mut Section<'_>, targets: usize) {
    let by_proxy = table.pair("mode", "\"proxy\"");
    let hint = format!("add {by_proxy} (the app then sees the appliance's address instead of the client's)");
    if targets > 1 {
        table.refuse("to", "the kernel forwards a port to one target", &hint);
    }
    for key in OF_THE_PROXY {
        if table.has(key) {
            table.refuse(key, &format!("{key} goes with {by_proxy}"), &hint);
        }
    }
}

fn policy(table: &mut Section<'_>, protocol: Protocol) -> StreamPolicy {
    let defaults = StreamPolicy::of(protocol);
    let is_udp = protocol == Protocol::Udp;
    let send_proxy_protocol = table.choice("proxy_protocol", &["v1", "v2"]).map(|version| match version {
        "v1" => ProxyProtocol::V1,
        _ => ProxyProtocol::V2,
    });
    let accept_proxy_protocol = if table.is_list("accept_proxy_protocol") {
        table.networks("accept_proxy_protocol")
    } else if table.boolean("accept_proxy_protocol", false) {
        vec![IpNet::V4(Ipv4Net::default()), IpNet::V6(Ipv6Net::default())]
    } else {
        Vec::new()
    };
    for key in ["proxy_protocol", "accept_proxy_protocol"] {
        if is_udp && table.has(key) {
            table.refuse(key, &format!("{key} is for TCP"), "leave it out of a UDP forward");
        }
    }
    let balance = match table.word("balance", &["round_robin", "least_connections", "random_two"]) {
        "least_connections" => Balance::LeastConnections,
        "random_two" => Balance::RandomTwo,
        _ => Balance::RoundRobin,
    };
    StreamPolicy {
        balance,
        send_proxy_protocol,
        accept_proxy_protocol,
        // A UDP client never says that it has finished.
        idle_timeout: table.duration("idle_timeout", defaults.idle_timeout, u32::from(is_udp)),
        max_connections: table.number("max_connections", defaults.max_connections, 1..=1_000_000),
    }
}

fn health(table: &mut Section<'_>, protocol: Protocol) -> Option<HealthPolicy> {
    let written = table.has("health");
    let defaults = HealthPolicy::connect();
    let mut health = table.table("health");
    let policy = HealthPolicy {
        interval: health.duration("interval", defaults.interval, 1),
        timeout: health.duration("timeout", defaults.timeout, 1),
        rise: health.number("rise", defaults.rise, 1..=100),
        fall: health.number("fall", defaults.fall, 1..=100),
        ..defaults
    };
    health.finish();
    if written && protocol == Protocol::Udp {
        let hint = "leave health out: a UDP port that is open need not answer anything";
        table.refuse("health", "a UDP forward cannot be probed", hint);
    }
    written.then_some(policy)
}

#[cfg(test)]
mod tests {
    use crate::Config;

    use super::*;

    fn read(text: &str) -> Forward {
        let config = Config::parse(text).unwrap_or_else(|report| panic!("{report}\n{text}"));
        let (source, forward) = config.intent.forwards.values().next().unwrap();
        assert_eq!(*source, Source::Config);
        (**forward).clone()
    }

    fn trouble(text: &str) -> String {
        let report = Config::parse(text).expect_err(text);
        format!("{:?}", report.problems())
    }

    #[test]
    fn the_kernel_does_it_unless_told_otherwise() {
        let plain = read("[[forward]]\nport = 2222\nto = \"gitea:22\"\n");
        let target = BackendTarget::App { name: "gitea".parse().unwrap(), port: 22 };
        assert_eq!(plain, Forward::new(Protocol::Tcp, 2222, target));
        let probed = read(
            "[[forward]]\nport = 2222\nto = \"gitea:22\"\nmode = \"nat\"\nhealth = { interval = \"5s\" }",
        );
        assert_eq!(probed.health.unwrap().interval, 5);
        assert_eq!(probed.proxy, None);
    }

    #[test]
    fn every_key_of_a_proxied_forward_is_read() {
        let forward = read(
            "[[forward]]\nprotocol = \"tcp\"\nport = 2222\nto = [\"gitea:22\", \"10.20.0.9:2022\"]\nmode = \"proxy\"\n\
             proxy_protocol = \"v2\"\naccept_proxy_protocol = [\"192.168.1.0/24\"]\nbalance = \"least_connections\"\n\
             idle_timeout = \"10m\"\nmax_connections = 5\nhealth = { interval = \"10s\", timeout = \"2s\", rise = 2, fall = 3 }\n",
        );
        let targets: Vec<String> = forward.targets().map(|target| target.to_string()).collect();
        assert_eq!(targets, ["gitea:22", "10.20.0.9:2022"]);
        let policy = StreamPolicy {
            balance: Balance::LeastConnections,
            send_proxy_protocol: Some(ProxyProtocol::V2),
            accept_proxy_protocol: vec!["192.168.1.0/24".parse().unwrap()],
            idle_timeout: 600,
            max_connections: 5,
        };
        assert_eq!(forward.proxy.as_deref(), Some(&policy));
        let health = HealthPolicy { interval: 10, timeout: 2, rise: 2, fall: 3, ..HealthPolicy::connect() };
        assert_eq!(forward.health.as_deref(), Some(&health));
    }

    #[test]
    fn defaults_are_those_of_the_transport() {
        let of = |protocol: &str| {
            let text = format!(
                "[[forward]]\nprotocol = \"{protocol}\"\nport = 2222\nto = \"a:22\"\nmode = \"proxy\"\n"
            );
            (*read(&text).proxy.unwrap()).clone()
        };
        assert_eq!(of("tcp"), StreamPolicy::of(Protocol::Tcp));
        assert_eq!((of("udp").idle_timeout, of("tcp").idle_timeout), (300, 0));
        let everybody =
            read("[[forward]]\nport = 2222\nto = \"a:22\"\nmode = \"proxy\"\naccept_proxy_protocol = true\n");
        let networks = &everybody.proxy.as_ref().unwrap().accept_proxy_protocol;
        assert_eq!(networks.iter().map(ToString::to_string).collect::<Vec<_>>(), ["0.0.0.0/0", "::/0"]);
    }

    #[test]
    fn what_cannot_be_is_refused_with_what_to_do() {
        let head = "[[forward]]\nport = 2222\n";
        for (rest, told) in [
            ("to = [\"a:1\", \"b:1\"]", "to one target"),
            ("to = \"a:1\"\nproxy_protocol = \"v1\"", "mode = \\\"proxy\\\""),
            ("to = \"a:1\"\nmax_connections = 9", "max_connections goes with"),
            ("to = \"a:1\"\nmode = \"proxy\"\nproxy_protocol = \"v3\"", "v1, v2"),
            ("to = \"a:1\"\nmode = \"splice\"", "nat, proxy"),
            ("to = []\nmode = \"proxy\"", "empty"),
            ("to = [\"a:1\", \"a:1\"]\nmode = \"proxy\"", "twice"),
            ("to = \"a\"", "not a target"),
            ("to = [\"a\"]\nmode = \"proxy\"", "cannot hold"),
            ("mode = \"proxy\"", "has no to"),
            ("to = \"a:1\"\nhealth = { uri = \"/\" }", "unknown key"),
            ("to = \"a:1\"\nprotocol = \"udp\"\nhealth = {}", "cannot be probed"),
            ("to = \"a:1\"\nprotocol = \"udp\"\nmode = \"proxy\"\nproxy_protocol = \"v2\"", "is for TCP"),
            ("to = \"a:1\"\nprotocol = \"udp\"\nmode = \"proxy\"\nidle_timeout = 0", "at least 1 s"),
            ("to = \"a:1\"\nmode = \"proxy\"\nmax_connections = 0", "from 1 to"),
            ("to = \"10.20.0.1:22\"\nmode = \"proxy\"", "the appliance itself"),
            ("to = \"192.168.9.9:22\"\nmode = \"proxy\"", "no app network"),
        ] {
            let found = trouble(&format!("{head}{rest}\n"));
            assert!(found.contains(told), "{rest}: {found}");
        }
        let twice = "[[forward]]\nport = 1000\nto = \"a:1\"\n".repeat(2);
        assert!(trouble(&twice).contains("forwarded twice"));
        let many: Vec<String> = (0..33).map(|at| format!("\"a{at}:1\"")).collect();
        assert!(
            trouble(&format!("{head}mode = \"proxy\"\nto = [{}]", many.join(","))).contains("at most 32")
        );
    }
}
