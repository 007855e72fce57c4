//! Our side: the data plane of the appliance as a process of its own, on one data thread.
//!
//! These are the appliance's own parts, put together as it does: published world, access log, counters,
//! health checks. What is missing is what a request never meets: DHCP, kernel tables, store and admin API.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::Path;
use std::sync::Arc;

use arc_swap::ArcSwap;
use proximity_dns::{DnsServer, DnsSettings, DnsStats, Forwarder, Guards, Upstream};
use proximity_proxy::{AccessLog, Course, DataPlane, Shared, Snapshot};
use proximity_store::Store;
use proximity_table::{Change, Generation, LogSettings, ProxySettings, Source, World};
use tokio::sync::watch;
use tokio::task::LocalSet;

use crate::client::Client;
use crate::error::BenchError;
use crate::registrar::Registrar;
use crate::world;

/// Serves HTTP until killed.
pub fn proxy(backend: SocketAddrV4, vhosts: usize, log_dir: &Path) -> Result<(), BenchError> {
    like_the_appliance();
    let snapshot = snapshot(vhosts, backend);
    let registrar = Registrar::start(&snapshot, vhosts, None);
    let log = AccessLog::start(log_dir.to_owned(), LogSettings::default(), |trouble| eprintln!("{trouble}"))?;
    let plane = data_plane(snapshot, &log);
    let listener = proximity_proxy::listen(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    // The first probes of thousands of vhosts are no part of what is measured; the later ones are.
    registrar.wait_until_proven()?;
    println!("{}", listener.local_addr()?);
    let (_go_on, course) = watch::channel(Course::Serve);
    Ok(plane.run(vec![listener], course)?)
}

/// Adds vhosts to a proxy of this process, one after the other, and prints for each the microseconds from its
/// durable commit to the end of the first answer that it gives, on a connection that is open already.
pub fn add_vhosts(
    backend: SocketAddrV4,
    vhosts: usize,
    added: usize,
    log_dir: &Path,
    state_dir: &Path,
) -> Result<(), BenchError> {
    like_the_appliance();
    let mut store = Store::open(state_dir)?;
    let stored: Vec<Change> =
        (0..vhosts).map(|at| Change::Vhost(Source::Api, Arc::new(world::vhost(at, backend)))).collect();
    store.commit(&stored, Some(1))?;
    let snapshot = snapshot(vhosts, backend);
    let registrar = Registrar::start(&snapshot, vhosts, Some(store));
    let log = AccessLog::start(log_dir.to_owned(), LogSettings::default(), |trouble| eprintln!("{trouble}"))?;
    let plane = data_plane(snapshot, &log);
    let listener = proximity_proxy::listen(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    let SocketAddr::V4(address) = listener.local_addr()? else { unreachable!("bound to an IPv4 address") };
    let (_go_on, course) = watch::channel(Course::Serve);
    std::thread::spawn(move || plane.run(vec![listener], course));
    registrar.wait_until_proven()?;

    let mut client = Client::connect(address)?;
    for at in vhosts..vhosts + added {
        let host = world::host(at);
        expect(&mut client, &host, 404)?;
        let durable = registrar.add(world::vhost(at, backend))?;
        expect(&mut client, &host, 200)?;
        println!("{}", durable.elapsed().as_micros());
    }
    Ok(())
}

fn expect(client: &mut Client, host: &str, expected: u16) -> Result<(), BenchError> {
    client.ask(host)?;
    match client.take_answer()? {
        status if status == expected => Ok(()),
        status => Err(std::io::Error::other(format!("{host}: {status} instead of {expected}")).into()),
    }
}

fn snapshot(vhosts: usize, backend: SocketAddrV4) -> Snapshot {
    let world = World::derive(world::with_vhosts(vhosts, backend), Generation(1));
    Arc::new(ArcSwap::from_pointee(world))
}

fn data_plane(snapshot: Snapshot, log: &AccessLog) -> DataPlane {
    let shared = Arc::new(Shared::new(ProxySettings::default(), 0, [0; 32]));
    DataPlane::new(snapshot, shared, Some(log.sink()))
}

/// Serves DNS until killed.
pub fn dns(names: usize, upstream: Option<SocketAddrV4>) -> Result<(), BenchError> {
    like_the_appliance();
    let world = World::derive(world::with_leases(names), Generation(1));
    let upstream = upstream.map(|address| Upstream::Plain(address.into())).into_iter().collect();
    let settings = DnsSettings { upstream, ..DnsSettings::default() };
    let forwarder = Forwarder::new(&settings).map_err(std::io::Error::other)?;
    let server = DnsServer::new(
        Arc::new(ArcSwap::from_pointee(world)),
        Arc::new(ArcSwap::from_pointee(forwarder)),
        Arc::new(DnsStats::default()),
        world::now,
    );
    // As in the appliance, with a limit that one client does not meet.
    let guards = Guards::new([7; 32]);
    guards.set_rates(u32::MAX, 0);
    let server = server.guarded(Arc::new(guards));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    LocalSet::new().block_on(&runtime, async {
        let socket = proximity_dns::listen_udp(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
        println!("{}", socket.local_addr()?);
        let (_go_on, stop) = watch::channel(false);
        // As on a data thread: a task among others.
        let serving = tokio::task::spawn_local(async move { server.serve_udp(socket, stop).await });
        serving.await.map_err(std::io::Error::other)?;
        Ok(())
    })
}

/// Sets the process up as the appliance does.
fn like_the_appliance() {
    if let Err(error) = nix::sys::prctl::set_thp_disable(true) {
        eprintln!("huge pages stay on: {error}");
    }
}
