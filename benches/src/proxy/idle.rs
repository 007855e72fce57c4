//! Memory of connections that have nothing to do.

use std::io;
use std::net::SocketAddrV4;
use std::time::Duration;

use super::{ASKED, FEW, Proxy, Stand};
use crate::client::Client;
use crate::error::BenchError;
use crate::measure::Spread;
use crate::report::Report;
use crate::world;

/// Connections that are held open.
const CONNECTIONS: usize = 5000;
/// Requests under way at a time.
const AT_ONCE: usize = 64;
/// Processes that are measured, each anew: the first connections of one need what later ones find.
const PROCESSES: usize = 3;
/// Memory that was in use during the requests has this long to be given back.
const REST: Duration = Duration::from_secs(2);

pub async fn run(stand: &Stand, report: &mut Report) -> Result<(), BenchError> {
    let (mut ours, mut nginx) = (Vec::new(), Vec::new());
    for process in 1..=PROCESSES {
        ours.push(measure(&stand.ours(FEW, ASKED)?).await?);
        nginx.push(measure(&stand.nginx(false)?).await?);
        let (ours, nginx) = (ours[process - 1], nginx[process - 1]);
        eprintln!(
            "proxy, idle connections, {process} of {PROCESSES}: ours {ours:.2} KiB, nginx {nginx:.2} KiB"
        );
    }
    let part = report.part(
        "Proxy, idle connections",
        &format!("{CONNECTIONS} connections, one request on each; growth of RSS, {PROCESSES} processes"),
        "connection",
        "",
        &[],
    );
    part.figure("KiB for each, ours", Spread::of(ours), Some(12.0));
    part.figure("KiB for each, nginx", Spread::of(nginx), None);
    Ok(())
}

/// KiB of resident memory that each connection adds.
async fn measure(proxy: &Proxy) -> Result<f64, BenchError> {
    let before = proxy.server.rss_kib()?;
    let address = proxy.address;
    let opened = tokio::task::spawn_blocking(move || open(address)).await.map_err(io::Error::other)?;
    let open = opened?;
    tokio::time::sleep(REST).await;
    let after = proxy.server.rss_kib()?;
    let closed = open.iter().filter(|client| !client.is_idle()).count();
    if closed > 0 {
        let (server, failed) = (proxy.server.name().to_owned(), closed as u64);
        return Err(BenchError::Failed { server, failed, units: open.len() as u64 });
    }
    Ok(after.saturating_sub(before) as f64 / open.len() as f64)
}

/// Connections that each have carried one request.
fn open(address: SocketAddrV4) -> io::Result<Vec<Client>> {
    let mut open = Vec::with_capacity(CONNECTIONS);
    while open.len() < CONNECTIONS {
        let first = open.len();
        for _ in 0..AT_ONCE.min(CONNECTIONS - first) {
            let mut client = Client::connect(address)?;
            client.ask(&world::host(0))?;
            open.push(client);
        }
        for client in &mut open[first..] {
            match client.take_answer()? {
                200 => {}
                status => return Err(io::Error::other(format!("an answer of status {status}"))),
            }
        }
    }
    Ok(open)
}
