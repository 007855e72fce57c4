use proximity_table::{BackendTarget, RecordType, Vhost};

use super::*;

fn problems(text: &str) -> Vec<(usize, String, String)> {
    let report = Config::parse(text).expect_err("the text is wrong");
    report.problems().into_iter().map(|p| (p.line, p.message, p.hint)).collect()
}

/// The seed, key by key: `seed-network-appliance-platinum.md`, "Network Addressing Convention" and "Services".
#[test]
fn an_empty_file_is_the_seeds_appliance() {
    let config = Config::parse("").unwrap();
    let intent = &config.intent;
    assert_eq!(
        (intent.hostname.as_str(), intent.domain.to_string().as_str()),
        ("prox-appliance", "prox.local")
    );
    assert_eq!((&*intent.wan_interface, config.wan), ("eth0", WanAddress::Dhcp));
    let [net] = &intent.networks[..] else { panic!("one network") };
    assert_eq!((&*net.name, &*net.interface), ("apps", "eth1"));
    assert_eq!(net.address.to_string(), "10.20.0.1/24");
    assert_eq!(net.range.to_string(), "10.20.0.100-10.20.0.250");
    assert_eq!(net.range.size(), 151);
    assert_eq!(net.lease_time, 12 * 3600);
    assert_eq!(net.router.to_string(), "10.20.0.1");
    assert_eq!(net.dns, [net.router]);
    assert_eq!(net.domain.to_string(), "prox.local");
    assert_eq!(net.domain_search, std::slice::from_ref(&net.domain));
    assert!(net.dhcp_enabled && net.manage_link && net.auto_vhost.enabled);
    assert_eq!(net.auto_vhost.ports, [80]);
    assert_eq!(config.dns.upstream.iter().map(|u| u.to_string()).collect::<Vec<_>>(), ["8.8.8.8", "1.1.1.1"]);
    assert!(config.dns.enabled && config.dns.listen.is_empty() && !intent.wan_dns);
    assert_eq!(config.proxy.listen[0].to_string(), "0.0.0.0:80");
    assert_eq!(config.admin.listen[0].to_string(), "0.0.0.0:9090");
    assert!(intent.masquerade && intent.isolate_management);
    assert_eq!(config.appliance.state_dir.to_str(), Some("/var/lib/proximity"));
    assert_eq!(config.appliance.log_dir.to_str(), Some("/var/log/proximity"));
    assert_eq!(config.appliance.run_dir.to_str(), Some("/run/proximity"));
    assert!(intent.vhosts.is_empty() && intent.records.is_empty() && intent.forwards.is_empty());
    let health = proximity_table::HealthPolicy::default();
    assert_eq!((health.uri.as_str(), health.interval, health.timeout), ("/", 30, 5));
}

#[test]
fn the_contracts_example_is_read_whole() {
    let config = Config::parse(include_str!("../../../appliance-image/proximity.example.toml")).unwrap();
    let intent = &config.intent;
    let (_, vhost) = intent.vhosts.values().next().unwrap();
    assert_eq!(vhost.hostname.to_string(), "nginx.prox.local");
    assert_eq!(vhost.backends, [BackendTarget::Address("10.20.0.101:80".parse().unwrap())]);
    // What it calls a default is one.
    let plain = Vhost::new(vhost.app_name.clone(), vhost.hostname.clone(), vhost.backends.clone());
    assert_eq!(**vhost, plain);
    assert_eq!(config.proxy, Config::default().proxy);
    let (_, records) = &intent.records[&("printer.prox.local".parse().unwrap(), RecordType::A)];
    assert_eq!(records[0].ttl, 60);
    assert_eq!(intent.forwards.len(), 1);
    assert_eq!(intent.reservations.len(), 1);
}

#[test]
fn every_problem_is_told_with_its_line_and_a_hint() {
    let text = r#"
[appliance]
hostnme = "x"

[[network]]
address = "10.20.0.1/33"
[network.dhcp]
lease_time = "soon"

[[vhost]]
app_name = "web"
protocol = "ftp"
backends = ["10.20.0.101"]
[vhost.health]
timeout = 0
"#;
    let found = problems(text);
    let lines: Vec<usize> = found.iter().map(|(line, ..)| *line).collect();
    assert_eq!(lines, [3, 6, 8, 12, 13, 15], "{found:#?}");
    assert!(found[0].1.contains("appliance.hostnme") && found[0].2.contains("hostname"), "{:?}", found[0]);
    assert!(found.iter().all(|(_, message, hint)| !message.is_empty() && !hint.is_empty()));
}

#[test]
fn what_only_the_whole_file_shows_has_a_line_too() {
    let text = r#"
[wan]
interface = "eth1"
[dns]
upstream = []
[[dns.record]]
name = "elsewhere.example."
type = "NS"
value = "ns.elsewhere.example."
[[dns.record]]
name = "www"
type = "cname"
value = "web"
[[dns.record]]
name = "www"
type = "A"
value = "10.20.0.9"
[proxy]
listen = ["0.0.0.0:80", "0.0.0.0:80"]
[admin]
listen = ["127.0.0.1:80"]
[[vhost]]
app_name = "a"
backend_ip = "10.20.0.9"
default = true
[[vhost]]
app_name = "b"
aliases = ["a"]
backend_ip = "10.20.0.9"
default = true
[[vhost]]
app_name = "c"
backend_ip = "10.20.0.1"
host_header = "preserve"
[[forward]]
port = 80
to = "a:1"
[[forward]]
protocol = "udp"
port = 2222
to = "192.168.9.9:1"
"#;
    let found = problems(text);
    let line = |words: &str| {
        let found: Vec<usize> =
            found.iter().filter(|(_, message, _)| message.contains(words)).map(|(line, ..)| *line).collect();
        found
    };
    let lines: Vec<&str> = text.lines().collect();
    for (words, written) in [
        ("and the WAN both use", "interface = \"eth1\""),
        ("dns.upstream is empty", "upstream = []"),
        ("lies in no domain", "name = \"elsewhere.example.\""),
        ("has a CNAME beside", "name = \"www\""),
        ("proxy.listen has", "listen = [\"0.0.0.0:80\", \"0.0.0.0:80\"]"),
        ("both take", "listen = [\"127.0.0.1:80\"]"),
        ("claimed by the vhosts", "aliases = [\"a\"]"),
        ("are both default", "default = true"),
        ("is this proxy itself", "[[vhost]]"),
        ("tcp port 80 cannot be forwarded", "port = 80"),
        ("udp port 2222 cannot be forwarded", "to = \"192.168.9.9:1\""),
    ] {
        let at = line(words);
        assert!(!at.is_empty() && at.iter().all(|at| *at > 0 && lines[at - 1] == written), "{words}: {at:?}");
    }
    assert_eq!((line("are both default"), line("is this proxy itself")), (vec![30], vec![31]));
    // What nobody wrote has no line.
    let found = problems("[[network]]\nmanage_link = false\n[proxy]\nlisten = [\"10.20.0.1:53\"]\n");
    assert_eq!(found.iter().map(|(line, ..)| *line).collect::<Vec<_>>(), [4], "{found:?}");
}

#[test]
fn a_syntax_error_has_its_line() {
    let found = problems("[appliance]\nhostname = \n");
    assert_eq!((found.len(), found[0].0), (1, 2), "{found:?}");
}

#[test]
fn networks_may_not_clash() {
    let found = problems(
        "[[network]]\naddress = \"10.20.0.1/24\"\n[[network]]\nname = \"apps\"\ninterface = \"eth1\"\naddress = \"10.20.0.129/25\"\n",
    );
    let text = format!("{found:?}");
    for what in ["two networks are called", "two networks use eth1", "overlaps"] {
        assert!(text.contains(what), "{what}: {text}");
    }
}

#[test]
fn the_pool_may_not_hold_the_gateway_or_leave_the_network() {
    let with = |range: &str| problems(&format!("[[network]]\n[network.dhcp]\nrange = \"{range}\"\n"));
    assert!(with("10.20.0.1-10.20.0.9")[0].1.contains("own address"));
    assert!(with("10.20.0.100-10.20.1.9")[0].1.contains("not inside"));
    assert!(with("10.20.0.100-10.20.0.255")[0].1.contains("broadcast"));
}

#[test]
fn reservations_are_unique_and_inside_the_network() {
    let entry = |mac: &str, ip: &str| {
        format!("[[network.reservation]]\nhostname = \"db\"\nmac = \"bc:24:11:00:00:{mac}\"\nip = \"{ip}\"\n")
    };
    let text = format!("[[network]]\n{}{}", entry("01", "10.20.0.10"), entry("01", "10.20.0.10"));
    assert_eq!(problems(&text).len(), 3);
    assert!(
        problems(&format!("[[network]]\n{}", entry("01", "10.21.0.10")))[0].1.contains("cannot be reserved")
    );
    assert!(problems("[[network]]\n[[network.reservation]]\nip = \"10.20.0.9\"\n")[0].1.contains("no mac"));
}

#[test]
fn host_names_belong_to_one_vhost() {
    let text = "[[vhost]]\napp_name = \"a\"\nhostname = \"x\"\nbackend = \"a\"\n[[vhost]]\napp_name = \"b\"\naliases = [\"x.prox.local\"]\nbackend = \"b\"\n";
    assert!(problems(text)[0].1.contains("claimed"));
}

#[test]
fn forwards_may_not_cut_the_appliance_off() {
    for (port, protocol) in [(80, "tcp"), (9090, "tcp"), (53, "udp"), (53, "tcp"), (67, "udp")] {
        let text = format!("[[forward]]\nport = {port}\nprotocol = \"{protocol}\"\nto = \"blog:80\"\n");
        assert!(problems(&text)[0].1.contains("the appliance itself"), "{text}");
    }
    assert!(problems("[[forward]]\nport = 81\nto = \"192.168.1.50:8006\"\n")[0].1.contains("no app network"));
    assert!(Config::parse("[[forward]]\nport = 53\nto = \"dns:53\"\n[dns]\nenabled = false\n").is_ok());
}

#[test]
fn small_networks_get_a_range_of_their_own() {
    for (address, range) in [
        ("192.168.7.1/28", "192.168.7.8-192.168.7.14"),
        ("10.0.0.1/8", "10.0.0.100-10.0.0.250"),
        ("10.9.8.1/30", "10.9.8.2-10.9.8.2"),
    ] {
        let config = Config::parse(&format!("[[network]]\naddress = \"{address}\"\n")).unwrap();
        assert_eq!(config.intent.networks[0].range.to_string(), range);
    }
}

#[test]
fn a_reload_says_what_must_wait_for_a_restart() {
    let new =
        Config::parse("[proxy]\nlisten = [\"0.0.0.0:8080\"]\n[dns]\nupstream = [\"9.9.9.9\"]\n").unwrap();
    let waiting = new.waiting(&Config::default());
    assert_eq!(waiting, [Waiting { key: "proxy.listen", until: Until::Upgrade }]);
}

#[test]
fn nobody_listens_twice_at_an_address() {
    let found =
        |text: &str| problems(text).into_iter().map(|(_, message, _)| message).collect::<Vec<_>>().join("\n");
    for (text, says) in [
        ("[proxy]\nlisten = [\"0.0.0.0:80\", \"0.0.0.0\"]", "proxy.listen has 0.0.0.0:80 twice"),
        ("[proxy]\nlisten = [\"0.0.0.0:9090\"]", "proxy.listen and admin.listen both take 0.0.0.0:9090"),
        ("[proxy]\nlisten = [\"10.20.0.1:9090\"]", "proxy.listen and admin.listen both take"),
        ("[proxy]\nlisten = [\"10.20.0.1:53\"]", "dns.listen and proxy.listen both take 10.20.0.1:53"),
        (
            "[admin]\nlisten = [\"0.0.0.0\", \"127.0.0.1\"]",
            "admin.listen has 0.0.0.0:9090 and 127.0.0.1:9090",
        ),
        ("[dns]\nlisten = [\"10.20.0.1\", \"10.20.0.1:53\"]", "dns.listen has 10.20.0.1:53 twice"),
    ] {
        assert!(found(text).contains(says), "{text}: {}", found(text));
    }
    for text in [
        "[proxy]\nlisten = [\"0.0.0.0:80\", \"10.20.0.1:80\", \"[::]:80\", \"0.0.0.0:81\"]",
        "[proxy]\nlisten = [\"0.0.0.0:9090\"]\n[admin]\nenabled = false",
        "[proxy]\nlisten = [\"10.20.0.1:9090\"]\n[admin]\nlisten = [\"127.0.0.1\"]",
    ] {
        Config::parse(text).unwrap_or_else(|report| panic!("{report}\n{text}"));
    }
}

#[test]
fn requests_may_not_go_in_circles() {
    let vhost = |rest: &str| format!("[[vhost]]\napp_name = \"a\"\n{rest}\n");
    for rest in [
        "host_header = \"preserve\"\nbackend_ip = \"10.20.0.1\"",
        "host_header = \"preserve\"\nbackend = \"prox-appliance\"",
        "redirect = \"http://a.prox.local{uri}\"",
        "backend = \"a\"\n[vhost.auth]\nforward = \"127.0.0.1:80\"",
    ] {
        let [(_, message, hint)] = &problems(&vhost(rest))[..] else { panic!("one problem: {rest}") };
        assert!(message.contains("`a`") && !hint.is_empty(), "{rest}: {message}: {hint}");
    }
    let wan = "[wan]\naddress = \"192.168.1.2/24\"\n";
    let to_wan = vhost("host_header = \"preserve\"\nbackend_ip = \"192.168.1.2\"");
    assert!(problems(&(wan.to_owned() + &to_wan))[0].1.contains("192.168.1.2:80"));
    for text in [to_wan, vhost("backend_ip = \"10.20.0.1\"\nbackend_port = 8080\nhost_header = \"preserve\"")]
    {
        Config::parse(&text).unwrap_or_else(|report| panic!("{report}\n{text}"));
    }
    let own_name = "[[forward]]\nport = 2222\nto = \"prox-appliance:22\"\nmode = \"proxy\"\n";
    assert!(problems(own_name)[0].1.contains("the appliance itself"));
}

#[test]
fn a_vhost_with_the_name_of_a_reservation_is_a_warning() {
    let reserved = "[[network]]\n[[network.reservation]]\nhostname = \"db\"\nmac = \"bc:24:11:00:00:01\"\nip = \"10.20.0.10\"\n";
    let vhost = "[[vhost]]\napp_name = \"shop\"\naliases = [\"db\"]\nbackend = \"shop\"\n";
    assert!(Config::parse(vhost).unwrap().warnings().is_empty());
    let warnings = Config::parse(&(reserved.to_owned() + vhost)).unwrap().warnings();
    assert!(
        warnings.len() == 1 && warnings[0].contains("`db`") && warnings[0].contains("`shop`"),
        "{warnings:?}"
    );
}

#[test]
fn garbage_is_refused_without_panic() {
    for text in
        ["\u{0}", "[[network]]\nname = 3", "network = 3", "vhost = [1]", "dns = []", "[dns]\nrecord = [{}]"]
    {
        assert!(Config::parse(text).is_err(), "{text}");
    }
}

#[test]
fn the_running_appliance_is_found_through_a_wrong_file() {
    let dir = |text: &str| Config::run_dir(text).display().to_string();
    assert_eq!(dir(""), "/run/proximity");
    assert_eq!(dir("[appliance]\nrun_dir = \"/tmp/x\"\nunknown = 1\n"), "/tmp/x");
    assert_eq!(dir("not toml"), "/run/proximity");
}

#[test]
fn every_configuration_in_the_readme_is_right() {
    let readme = include_str!("../../../README.md");
    let blocks: Vec<&str> =
        readme.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert!(!blocks.is_empty());
    for block in blocks {
        Config::parse(block).unwrap_or_else(|report| panic!("{report}\n{block}"));
    }
}

/// Each of the forwarder's keys is read, and what cannot be meant is refused where it stands.
#[test]
fn the_forwarder_is_told_what_to_do() {
    let text = r#"[dns]
upstream = ["9.9.9.9", "tls://1.1.1.1#cloudflare-dns.com", "https://dns.example/dns-query"]
cache_size = 100
cache_min_ttl = "5s"
cache_max_ttl = "1h"
negative_max_ttl = "1m"
serve_stale = "0s"
prefetch = false
rebind_protection = false
rebind_exempt = ["plex.direct"]
[[dns.forward]]
domain = "corp.local"
upstream = ["10.1.1.1"]
"#;
    let dns = Config::parse(text).unwrap().dns;
    assert_eq!(dns.upstream.len(), 3);
    assert_eq!((dns.cache_size, dns.cache_min_ttl, dns.cache_max_ttl), (100, 5, 3600));
    assert_eq!(
        (dns.negative_max_ttl, dns.serve_stale, dns.prefetch, dns.rebind_protection),
        (60, 0, false, false)
    );
    assert_eq!(dns.rebind_exempt[0].to_string(), "plex.direct");
    assert_eq!(
        (dns.forward[0].0.to_string(), dns.forward[0].1[0].to_string()),
        ("corp.local".into(), "10.1.1.1".into())
    );
    for (text, problem) in [
        ("[dns]\nupstream = [\"udp://1.1.1.1\"]", "upstream"),
        ("[dns]\nupstream = [\"https://dns.example/q\"]", "nobody can be asked where"),
        ("[dns]\nupstream = [\"10.20.0.1\"]", "is the appliance itself"),
        ("[dns]\nlisten = [\"0.0.0.0:5353\"]\nupstream = [\"127.0.0.1:5353\"]", "is the appliance itself"),
        ("[dns]\ncache_min_ttl = \"2d\"", "more than dns.cache_max_ttl"),
        ("[dns]\ncache_size = 0", "cache_size"),
        ("[dns]\nupstream_ca = \"ca.pem\"", "upstream_ca"),
        ("[[dns.forward]]\ndomain = \"corp.example\"", "without upstream"),
        ("[[dns.forward]]\nupstream = [\"10.1.1.1\"]", "no domain"),
        ("[dns]\nrebind_exempt = [\"a..b\"]", "rebind_exempt"),
    ] {
        let report = Config::parse(text).unwrap_err().to_string();
        assert!(report.contains(problem), "{text}: {report}");
    }
}

/// Each key of a blocklist is read, and what cannot be meant is refused where it stands.
#[test]
fn names_are_blocked_by_lists() {
    let text = r#"[[dns.block]]
list = "/etc/proximity/ads.txt"
allow = ["good.example"]
refresh = "1h"
[[dns.block]]
names = ["ads.example", "*.tracker.example"]
networks = ["apps"]
apps = ["tv"]
answer = "nxdomain"
"#;
    let block = Config::parse(text).unwrap().dns.block;
    assert_eq!(block[0].list.as_deref(), Some(std::path::Path::new("/etc/proximity/ads.txt")));
    assert_eq!((block[0].allow[0].to_string(), block[0].refresh), ("good.example".into(), 3600));
    assert_eq!((block[0].answer, block[1].answer), (crate::Blocked::Zero, crate::Blocked::NxDomain));
    assert_eq!((block[1].names[1].to_string(), block[1].refresh), ("tracker.example".into(), 86_400));
    assert_eq!((block[1].networks[0].as_str(), block[1].apps[0].as_str()), ("apps", "tv"));
    for (keys, problem) in [
        ("list = \"https://lists.example/ads.txt\"", "lists are read from files"),
        ("list = \"ads.txt\"", "begin the path with /"),
        ("answer = \"drop\"\nnames = [\"a.example\"]", "write one of zero, nxdomain, refused"),
        ("answer = \"zero\"", "dns.block without names"),
        ("names = [\"a..b\"]", "names"),
        ("names = [\"a.example\"]\nnetworks = [\"lan\"]", "`lan`, which is no app network"),
        ("names = [\"a.example\"]\nrefresh = \"1s\"", "refresh"),
    ] {
        let report = Config::parse(&format!("[[dns.block]]\n{keys}\n")).unwrap_err().to_string();
        assert!(report.contains(problem), "{keys}: {report}");
    }
}

#[test]
fn how_often_clients_may_ask_is_read() {
    let config = Config::parse("").unwrap();
    assert_eq!((config.dns.client_rate, config.dns.response_rate), (100_000, 50));
    let config = Config::parse("[dns]\nclient_rate = 0\nresponse_rate = 5\n").unwrap();
    assert_eq!((config.dns.client_rate, config.dns.response_rate), (0, 5));
    let found = problems("[dns]\nclient_rate = -1\nresponse_rate = \"5\"\nclientrate = 3\n");
    assert_eq!(found.iter().map(|(line, ..)| *line).collect::<Vec<_>>(), [2, 3, 4], "{found:?}");
    assert!(found[2].2.contains("client_rate"), "{found:?}");
}

#[test]
fn dns_on_the_wan_goes_with_dns() {
    assert!(Config::parse("[wan]\ndns = \"authoritative\"\n").unwrap().intent.wan_dns);
    let found = problems("[wan]\ndns = \"authoritative\"\n[dns]\nenabled = false\n");
    assert_eq!(found.iter().map(|(line, ..)| *line).collect::<Vec<_>>(), [2], "{found:?}");
}

#[test]
fn records_of_every_kind_and_place_are_read() {
    let record = |name: &str, rtype: &str, value: &str| {
        format!("[[dns.record]]\nname = '{name}'\ntype = '{rtype}'\nvalue = '{value}'\n")
    };
    let text = [
        ("web", "HTTPS", "1 . alpn=h2,h3 ipv4hint=10.20.0.5"),
        ("lab", "NS", "ns.lab"),
        ("*.dev", "A", "10.20.0.9"),
        ("nas.example.com.", "A", "10.20.0.9"),
        ("printer.prox.local", "A", "10.20.0.9"),
    ]
    .map(|(name, rtype, value)| record(name, rtype, value))
    .concat();
    let records = Config::parse(&text).unwrap().intent.records;
    let mut names: Vec<String> = records.keys().map(|(name, rtype)| format!("{name} {rtype}")).collect();
    names.sort();
    let expected = [
        "*.dev.prox.local A",
        "lab.prox.local NS",
        "nas.example.com A",
        "printer.prox.local A",
        "web.prox.local HTTPS",
    ];
    assert_eq!(names, expected);
    for (name, rtype, value, hint) in [
        ("@", "NS", "ns", "a name below a domain"),
        ("*.x", "NS", "ns", "a name below a domain"),
        ("@", "CNAME", "web", "write A records"),
        ("web", "HTTPS", "1 . apln=h2", "use mandatory, alpn"),
        ("web", "SPF", "x", "HTTPS, SVCB or NS"),
        ("x.localhost.", "A", "10.20.0.9", "choose another"),
    ] {
        let found = problems(&record(name, rtype, value));
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].0 > 0 && found[0].2.contains(hint), "{name} {rtype} {value}: {found:?}");
    }
}
