//! What packets experience. One site: an uplink host (the management LAN's router, 192.168.77.1, with an
//! "internet" address 203.0.113.9 behind it), our router (192.168.77.5 and 10.20.0.1), and two apps
//! (10.20.0.101 and .102) on a bridge.

use crate::host::Host;
use proximity_net::plan::plan;
use proximity_net::policy::{Ipv4Net, LanPolicy, Policy, PortForward, Protocol};
use proximity_net::sysctl;
use proximity_net::{Counter, Nft};
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

const UPLINK: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 1);
const INTERNET: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);
const OUTER: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 5);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 20, 0, 1);
const A: Ipv4Addr = Ipv4Addr::new(10, 20, 0, 101);
const B: Ipv4Addr = Ipv4Addr::new(10, 20, 0, 102);

struct Site {
    uplink: Host,
    router: Host,
    /// Holds the bridge, as the Proxmox node does.
    node: Host,
    a: Host,
    b: Host,
}

impl Site {
    fn new() -> Option<Site> {
        let host = Host::new;
        let site = Site { uplink: host()?, router: host()?, node: host()?, a: host()?, b: host()? };
        let Site { uplink, router, node, a, b } = &site;
        router.ip(&format!("link add eth0 type veth peer name eth0 netns {}", uplink.namespace()));
        node.ip("link add br0 type bridge");
        node.ip("link set br0 up");
        for (machine, interface, port) in
            [(router, "eth1", "port-r"), (a, "eth0", "port-a"), (b, "eth0", "port-b")]
        {
            node.ip(&format!(
                "link add {port} type veth peer name {interface} netns {}",
                machine.namespace()
            ));
            node.ip(&format!("link set {port} master br0 up"));
        }
        for (app, address) in [(a, A), (b, B)] {
            app.ip(&format!("address add {address}/24 dev eth0"));
            app.ip("link set eth0 up");
            app.ip(&format!("route add default via {GATEWAY}"));
        }
        router.ip(&format!("address add {GATEWAY}/24 dev eth1"));
        router.ip(&format!("address add {OUTER}/24 dev eth0"));
        router.ip("link set eth0 up");
        router.ip("link set eth1 up");
        router.ip(&format!("route add default via {UPLINK}"));
        uplink.ip(&format!("address add {UPLINK}/24 dev eth0"));
        uplink.ip(&format!("address add {INTERNET}/32 dev lo"));
        uplink.ip("link set eth0 up");
        uplink.ip(&format!("route add 10.20.0.0/24 via {OUTER}"));
        router.run(|| {
            let _ = sysctl::set(sysctl::IP_FORWARD, "1").unwrap();
        });
        Some(site)
    }

    fn apply(&self, policy: &Policy, leased: &[Ipv4Addr]) {
        let (ruleset, leased) = (plan(policy).unwrap(), leased.to_vec());
        self.router.run(move || Nft::open().unwrap().apply(&ruleset, leased).unwrap());
    }

    fn counters(&self) -> BTreeMap<String, Counter> {
        self.router.run(|| Nft::open().unwrap().counters("proximity").unwrap())
    }

    fn packets(&self, rule: &str) -> u64 {
        self.counters()[rule].packets
    }

    /// Waits until the rule has counted that many packets: a datagram may wait for ARP first.
    fn await_packets(&self, rule: &str, packets: u64) {
        let end = Instant::now() + Duration::from_secs(5);
        while self.packets(rule) < packets {
            assert!(Instant::now() < end, "{rule} counted {} of {packets}", self.packets(rule));
            std::thread::sleep(Duration::from_millis(2));
        }
        assert_eq!(self.packets(rule), packets, "{rule}");
    }
}

fn policy() -> Policy {
    Policy {
        wan_addresses: vec![Ipv4Net::new(OUTER, 24).unwrap()],
        networks: vec![LanPolicy {
            interface: "eth1".into(),
            subnet: Ipv4Net::new(GATEWAY, 24).unwrap(),
            gateway: GATEWAY,
        }],
        ..Policy::new("eth0")
    }
}

fn listen(host: &Host, address: Ipv4Addr, port: u16) -> TcpListener {
    host.run(move || TcpListener::bind((address, port)).unwrap())
}

fn connect(host: &Host, address: Ipv4Addr, port: u16) -> Result<TcpStream, ErrorKind> {
    let to = SocketAddr::from((address, port));
    host.run(move || TcpStream::connect_timeout(&to, Duration::from_secs(5)).map_err(|error| error.kind()))
}

/// Address the server sees for a connection that must succeed.
fn seen(client: &Host, to: Ipv4Addr, port: u16, server: &TcpListener) -> IpAddr {
    let _stream = connect(client, to, port).unwrap();
    server.accept().unwrap().1.ip()
}

fn datagram(host: &Host, from: Ipv4Addr, to: Ipv4Addr, port: u16) {
    host.run(move || UdpSocket::bind((from, 0)).unwrap().send_to(b"x", (to, port)).unwrap());
}

#[test]
fn an_app_reaches_the_internet_by_the_uplinks_address_leased_or_not() {
    let Some(site) = Site::new() else { return };
    site.apply(&policy(), &[A]);
    let internet = listen(&site.uplink, INTERNET, 8080);
    assert_eq!(seen(&site.a, INTERNET, 8080, &internet), OUTER);
    assert_eq!((site.packets("leased-out"), site.packets("static-out")), (1, 0));
    assert_eq!(seen(&site.b, INTERNET, 8080, &internet), OUTER);
    assert_eq!((site.packets("leased-out"), site.packets("static-out")), (1, 1));

    site.router.run(|| Nft::open().unwrap().change_leased("proximity", &[B], &[A]).unwrap());
    seen(&site.b, INTERNET, 8080, &internet);
    seen(&site.a, INTERNET, 8080, &internet);
    assert_eq!((site.packets("leased-out"), site.packets("static-out")), (2, 2));
    // Applying again loses no counts.
    site.apply(&policy(), &[A]);
    assert_eq!((site.packets("leased-out"), site.packets("static-out")), (2, 2));
    assert_eq!(site.packets("masquerade-eth1"), 4);
}

#[test]
fn without_masquerading_the_apps_own_address_is_seen() {
    let Some(site) = Site::new() else { return };
    site.apply(&Policy { masquerade: false, ..policy() }, &[A]);
    let internet = listen(&site.uplink, INTERNET, 8080);
    assert_eq!(seen(&site.a, INTERNET, 8080, &internet), A);
}

#[test]
fn an_app_reaches_neither_the_management_lan_nor_the_admin_port() {
    let Some(site) = Site::new() else { return };
    site.apply(&policy(), &[A]);
    let management = listen(&site.uplink, UPLINK, 8006);
    let admin = listen(&site.router, Ipv4Addr::UNSPECIFIED, 9090);
    let web = listen(&site.router, Ipv4Addr::UNSPECIFIED, 80);

    assert_eq!(connect(&site.a, UPLINK, 8006).unwrap_err(), ErrorKind::HostUnreachable);
    assert_eq!(site.packets("isolate-management"), 1);
    for address in [GATEWAY, OUTER] {
        assert_eq!(connect(&site.a, address, 9090).unwrap_err(), ErrorKind::ConnectionRefused);
        seen(&site.a, address, 80, &web);
    }
    assert_eq!(site.packets("admin-from-lan-9090"), 2);
    assert_eq!(seen(&site.uplink, OUTER, 9090, &admin), UPLINK);

    site.apply(&Policy { isolate_management: false, ..policy() }, &[A]);
    assert_eq!(seen(&site.a, UPLINK, 8006, &management), OUTER);
    assert_eq!(seen(&site.a, GATEWAY, 9090, &admin), A);
}

#[test]
fn the_admin_port_is_closed_to_apps_over_ipv6_as_well() {
    let Some(site) = Site::new() else { return };
    for (host, address, dev) in [(&site.router, "fd00::1", "eth1"), (&site.a, "fd00::2", "eth0")] {
        host.ip(&format!("address add {address}/64 dev {dev} nodad"));
    }
    let _admin = site.router.run(|| TcpListener::bind("[::]:9090").unwrap());
    let connect = || {
        site.a.run(|| {
            let to = "[fd00::1]:9090".parse().unwrap();
            TcpStream::connect_timeout(&to, Duration::from_secs(5)).map(drop).map_err(|error| error.kind())
        })
    };
    assert_eq!(connect(), Ok(()));
    site.apply(&policy(), &[A]);
    assert_eq!(connect(), Err(ErrorKind::ConnectionRefused));
}

#[test]
fn a_published_port_leads_to_the_app_from_everywhere() {
    let Some(site) = Site::new() else { return };
    let forward = PortForward { protocol: Protocol::Tcp, port: 2222, to: SocketAddrV4::new(B, 22) };
    site.apply(&Policy { forwards: vec![forward], ..policy() }, &[A, B]);
    let app = listen(&site.b, B, 22);
    assert_eq!(seen(&site.uplink, OUTER, 2222, &app), UPLINK);
    // From the app's neighbour and from the app itself, by either address of ours: answers must come back
    // through us, so we are who is seen.
    for client in [&site.a, &site.b] {
        for address in [OUTER, GATEWAY] {
            assert_eq!(seen(client, address, 2222, &app), GATEWAY);
        }
    }
    // Addressed to the app rather than to us: not redirected.
    let other = listen(&site.b, B, 2222);
    assert_eq!(seen(&site.uplink, B, 2222, &other), UPLINK);
    assert_eq!((site.packets("forward-tcp-2222"), site.packets("hairpin-tcp-2222")), (1, 4));

    // A strange host gets in by the published port only.
    site.router.run(|| assert_eq!(Nft::open().unwrap().leased("proximity").unwrap().len(), 2));
    datagram(&site.uplink, INTERNET, B, 5000);
    site.await_packets("to-lan", 1);
}

#[test]
fn from_the_uplink_only_its_own_subnet_reaches_apps() {
    let Some(site) = Site::new() else { return };
    site.apply(&policy(), &[A]);
    let app = listen(&site.a, A, 80);
    assert_eq!(seen(&site.uplink, A, 80, &app), UPLINK);
    assert_eq!(site.packets("management-to-lan"), 1);
    datagram(&site.uplink, INTERNET, A, 5000);
    site.await_packets("to-lan", 1);
}

#[test]
fn dns_and_dhcp_are_not_served_on_the_uplink() {
    let Some(site) = Site::new() else { return };
    let server = site.router.run(|| UdpSocket::bind("0.0.0.0:53").unwrap());
    server.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut buffer = [0; 16];
    site.apply(&policy(), &[A]);
    datagram(&site.uplink, UPLINK, OUTER, 53);
    datagram(&site.uplink, UPLINK, GATEWAY, 53);
    datagram(&site.uplink, UPLINK, OUTER, 67);
    site.await_packets("wan-dns-udp", 2);
    site.await_packets("wan-dhcp", 1);
    datagram(&site.a, A, GATEWAY, 53);
    assert_eq!(server.recv_from(&mut buffer).unwrap().1.ip(), A, "and the first two never came");

    // Answers to our own DHCP client and to our own queries come in.
    let client = site.router.run(|| UdpSocket::bind("0.0.0.0:68").unwrap());
    client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    datagram(&site.uplink, UPLINK, OUTER, 68);
    assert_eq!(client.recv_from(&mut buffer).unwrap().1.ip(), UPLINK);

    // With DNS on the uplink: by our uplink address, still not by the gateway's.
    site.apply(&Policy { wan_dns: true, ..policy() }, &[A]);
    datagram(&site.uplink, UPLINK, GATEWAY, 53);
    site.await_packets("wan-dns-udp-to-eth1", 1);
    datagram(&site.uplink, UPLINK, OUTER, 53);
    assert_eq!(server.recv_from(&mut buffer).unwrap().1.ip(), UPLINK);
    server.set_nonblocking(true).unwrap();
    assert_eq!(server.recv_from(&mut buffer).unwrap_err().kind(), ErrorKind::WouldBlock);
}

#[test]
fn made_up_source_addresses_stop_at_the_router() {
    let Some(site) = Site::new() else { return };
    site.apply(&policy(), &[A]);
    let liar = Ipv4Addr::new(10, 99, 0, 1);
    site.a.ip(&format!("address add {liar}/32 dev lo"));
    // Without a route back, reverse path filtering would drop it before our rules.
    site.router.ip("route add 10.99.0.0/24 dev eth1");
    datagram(&site.a, liar, INTERNET, 5000);
    site.await_packets("spoof-eth1", 1);
    datagram(&site.a, liar, GATEWAY, 53);
    site.await_packets("spoof-input-eth1", 1);
    assert_eq!((site.packets("leased-out"), site.packets("static-out")), (0, 0));
}

#[test]
fn other_interfaces_traffic_is_not_ours_to_judge() {
    let Some(site) = Site::new() else { return };
    let Some(third) = Host::new() else { return };
    site.router.ip(&format!("link add vpn0 type veth peer name eth0 netns {}", third.namespace()));
    site.router.ip("address add 10.50.0.1/24 dev vpn0");
    site.router.ip("link set vpn0 up");
    third.ip("address add 10.50.0.2/24 dev eth0");
    third.ip("link set eth0 up");
    third.ip("route add default via 10.50.0.1");
    site.uplink.ip(&format!("route add 10.50.0.0/24 via {OUTER}"));
    site.apply(&policy(), &[A]);
    let management = listen(&site.uplink, UPLINK, 8006);
    assert_eq!(seen(&third, UPLINK, 8006, &management), Ipv4Addr::new(10, 50, 0, 2));
    // But the apps are nobody's to reach from there, nor it theirs.
    datagram(&third, Ipv4Addr::UNSPECIFIED, A, 5000);
    site.await_packets("to-lan", 1);
    datagram(&site.a, A, Ipv4Addr::new(10, 50, 0, 2), 5000);
    site.await_packets("from-lan", 1);
}
