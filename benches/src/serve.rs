//! Our side: the data plane of the appliance as a process of its own, on one data thread.
//!
//! These are the appliance's own parts, put together as it does: published world, access log, counters,
//! health checks. What is missing is what a request never meets: DHCP, kernel tables, store and admin API.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::Path;
use std::sync::Arc;

use arc_swap::ArcSwap;
use proximity_dns::{DnsServer, DnsSettings, DnsStats, Forwarder};
use proximity_proxy::{AccessLog, Course, DataPlane, Shared, Snapshot};
use proximity_table::{Change, Facts, Generation, ProxySettings, Touched, World};
use tokio::sync::{mpsc, watch};
use tokio::task::LocalSet;

use crate::error::BenchError;
use crate::world;

/// Serves HTTP until killed.
pub fn proxy(backend: SocketAddrV4, vhosts: usize, log_dir: &Path) -> Result<(), BenchError> {
    like_the_appliance();
    let facts = world::with_vhosts(vhosts, backend);
    let snapshot: Snapshot = Arc::new(ArcSwap::from_pointee(World::derive(facts.clone(), Generation(1))));
    let (proven, all_proven) = std::sync::mpsc::channel();
    let control = snapshot.clone();
    std::thread::spawn(move || check_health(&control, facts, vhosts, &proven));

    let log = AccessLog::start(log_dir.to_owned(), |trouble| eprintln!("{trouble}"))?;
    let shared = Arc::new(Shared::new(ProxySettings::default(), 0, [0; 32]));
    let plane = DataPlane::new(snapshot, shared, Some(log.sink()));
    let listener = proximity_proxy::listen(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    // The first probes of thousands of vhosts are no part of what is measured; the later ones are.
    all_proven.recv().map_err(std::io::Error::other)?;
    println!("{}", listener.local_addr()?);
    let (_go_on, course) = watch::channel(Course::Serve);
    Ok(plane.run(vec![listener], course)?)
}

/// Serves DNS until killed.
pub fn dns(names: usize) -> Result<(), BenchError> {
    like_the_appliance();
    let world = World::derive(world::with_leases(names), Generation(1));
    let nobody = DnsSettings { upstream: Vec::new(), ..DnsSettings::default() };
    let forwarder = Forwarder::new(&nobody).map_err(std::io::Error::other)?;
    let server = DnsServer::new(
        Arc::new(ArcSwap::from_pointee(world)),
        Arc::new(ArcSwap::from_pointee(forwarder)),
        Arc::new(DnsStats::default()),
        world::now,
    );
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

/// Probes every backend and publishes what comes out, as the appliance's one writer does. Tells `proven` when
/// every vhost has been probed once.
fn check_health(snapshot: &Snapshot, mut facts: Facts, vhosts: usize, proven: &std::sync::mpsc::Sender<()>) {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build() else {
        return;
    };
    runtime.block_on(async {
        let (generations, published) = watch::channel(1);
        let (reports, mut verdicts) = mpsc::channel(1024);
        tokio::spawn(proximity_proxy::probe(snapshot.clone(), published, reports, 1));
        let mut left = vhosts;
        while let Some((app, key, health)) = verdicts.recv().await {
            let mut touched = Touched::default();
            facts.apply(Change::Health(app, key, health), &mut touched);
            let before = snapshot.load_full();
            let generation = Generation(before.generation.0 + 1);
            snapshot.store(Arc::new(before.next(facts.clone(), &touched, generation)));
            generations.send_replace(generation.0);
            left = left.saturating_sub(1);
            if left == 0 {
                // Only the first word counts, later ones find nobody.
                let _ = proven.send(());
            }
        }
    });
}
