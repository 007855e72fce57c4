//! Name servers, each with one worker, and the zone that they have in common.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::path::Path;
use std::time::Duration;

use crate::error::BenchError;
use crate::peers::{path, program, write};
use crate::process::{Server, free_address};
use crate::world;

/// How long a name server may take for one answer.
const ANSWER: Duration = Duration::from_millis(500);

/// Ours, with so many leased names; it asks `upstream` about others.
pub fn ours(
    dir: &Path,
    names: usize,
    upstream: Option<SocketAddrV4>,
) -> Result<(Server, SocketAddrV4), BenchError> {
    let mut words = vec!["serve-dns".to_owned(), names.to_string()];
    words.extend(upstream.map(|upstream| upstream.to_string()));
    let (mut server, address) = Server::start_self(&format!("ours, {names} names"), &words, dir)?;
    check(&mut server, address, &ends(names))?;
    Ok((server, address))
}

/// dnsmasq with the same names and addresses as [`world::with_leases`].
pub fn dnsmasq(dir: &Path, names: usize) -> Result<(Server, SocketAddrV4), BenchError> {
    let address = free_address()?;
    let hosts = dir.join(format!("hosts-{names}"));
    let lines: String =
        (0..names).map(|at| format!("{} {}\n", world::address(at), world::host(at))).collect();
    write(&hosts, lines)?;
    let arguments = [
        // Stays in the foreground and keeps its user, which may be the only one there is.
        "--no-daemon".to_owned(),
        "--conf-file=/dev/null".to_owned(),
        "--no-resolv".to_owned(),
        "--no-hosts".to_owned(),
        "--bind-interfaces".to_owned(),
        "--local=/prox.local/".to_owned(),
        format!("--listen-address={}", address.ip()),
        format!("--port={}", address.port()),
        format!("--addn-hosts={}", hosts.display()),
    ];
    let mut server = Server::start(&format!("dnsmasq, {names} names"), &program("dnsmasq"), &arguments, dir)?;
    check(&mut server, address, &ends(names))?;
    Ok((server, address))
}

/// Knot with a zone of the same names and addresses.
pub fn knot(dir: &Path, names: usize) -> Result<(Server, SocketAddrV4), BenchError> {
    let hosts = (0..names).map(|at| (world::host(at), world::address(at)));
    let name = format!("Knot, {names} names");
    let (mut server, address) = authority(dir, &name, "prox.local", hosts)?;
    check(&mut server, address, &ends(names))?;
    Ok((server, address))
}

/// Whom forwarders ask: Knot with a zone of others.
pub fn others(dir: &Path, names: usize) -> Result<(Server, SocketAddrV4), BenchError> {
    let hosts = (0..names).map(|at| (world::other_host(at), world::other_address(at)));
    let (mut server, address) = authority(dir, "the authority of others", "example.net", hosts)?;
    check_others(&mut server, address, names)?;
    Ok((server, address))
}

/// unbound on one thread, which forwards everything and keeps the answers; nothing is validated.
pub fn unbound(dir: &Path, upstream: SocketAddrV4) -> Result<(Server, SocketAddrV4), BenchError> {
    let address = free_address()?;
    let text = format!(
        "server:\n interface: {ip}@{port}\n access-control: 127.0.0.0/8 allow\n num-threads: 1\n\
         \x20chroot: \"\"\n username: \"\"\n directory: {dir:?}\n pidfile: \"\"\n use-syslog: no\n\
         \x20module-config: iterator\n do-not-query-localhost: no\n do-daemonize: no\n\
         remote-control:\n control-enable: no\n\
         forward-zone:\n name: .\n forward-addr: {up}@{up_port}\n",
        ip = address.ip(),
        port = address.port(),
        up = upstream.ip(),
        up_port = upstream.port(),
    );
    let file = dir.join("unbound.conf");
    write(&file, text)?;
    let arguments = ["-d", "-c", path(&file)].map(str::to_owned);
    Ok((Server::start("unbound", &program("unbound"), &arguments, dir)?, address))
}

/// Sees that the names of others are answered, and so are in the cache.
pub fn check_others(server: &mut Server, address: SocketAddrV4, names: usize) -> Result<(), BenchError> {
    let all: Vec<_> = (0..names).map(|at| (world::other_host(at), world::other_address(at))).collect();
    check(server, address, &all)
}

fn authority(
    dir: &Path,
    name: &str,
    zone: &str,
    hosts: impl Iterator<Item = (String, Ipv4Addr)>,
) -> Result<(Server, SocketAddrV4), BenchError> {
    let address = free_address()?;
    let home = dir.join(format!("knot-{}", address.port()));
    std::fs::create_dir_all(&home)?;
    let records: String = hosts.map(|(host, ip)| format!("{host}. 3600 A {ip}\n")).collect();
    let soa = format!(
        "{zone}. 3600 SOA ns.{zone}. hostmaster.{zone}. 1 3600 600 1209600 60\n{zone}. NS ns.{zone}.\n"
    );
    write(&home.join("zone"), format!("{soa}ns.{zone}. A 127.0.0.1\n{records}"))?;
    let text = format!(
        "server:\n  listen: {ip}@{port}\n  rundir: {home:?}\n  udp-workers: 1\n  tcp-workers: 1\n\
         \x20 background-workers: 1\ndatabase:\n  storage: {home:?}\n\
         zone:\n  - domain: {zone}\n    storage: {home:?}\n    file: zone\n    journal-content: none\n\
         \x20   zonefile-sync: -1\n    semantic-checks: off\n",
        ip = address.ip(),
        port = address.port(),
    );
    let file = home.join("knot.conf");
    write(&file, text)?;
    let arguments = ["-c", path(&file)].map(str::to_owned);
    Ok((Server::start(name, &program("knotd"), &arguments, dir)?, address))
}

/// The first and the last name.
fn ends(names: usize) -> [(String, Ipv4Addr); 2] {
    [0, names - 1].map(|at| (world::host(at), world::address(at)))
}

/// Waits until a name server serves, and sees that all these names have their addresses.
fn check(server: &mut Server, address: SocketAddrV4, names: &[(String, Ipv4Addr)]) -> Result<(), BenchError> {
    for (name, ip) in names {
        let query = query(name);
        server.wait_until(|| {
            let socket = UdpSocket::bind("127.0.0.1:0")?;
            socket.connect(address)?;
            socket.set_read_timeout(Some(ANSWER))?;
            socket.send(&query)?;
            let mut answer = [0; 512];
            let length = socket.recv(&mut answer)?;
            let is_right = answer[..length].windows(4).any(|window| window == ip.octets());
            is_right.then_some(()).ok_or_else(|| io::Error::other(format!("no address of {name}")))
        })?;
    }
    Ok(())
}

/// A query for the address of a name (RFC 1035 §4.1), recursion desired as stub resolvers do.
fn query(name: &str) -> Vec<u8> {
    let mut query = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        query.push(label.len() as u8);
        query.extend_from_slice(label.as_bytes());
    }
    query.extend_from_slice(&[0, 0, 1, 0, 1]);
    query
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_has_the_wire_form_of_its_name() {
        let wire = query("app0.prox.local");
        assert_eq!(&wire[12..], b"\x04app0\x04prox\x05local\0\0\x01\0\x01");
    }
}
