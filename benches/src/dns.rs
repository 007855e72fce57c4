//! Name servers: the same leased names in dnsmasq and in our table.

use std::path::Path;

use crate::error::BenchError;
use crate::load::{Load, dnsperf_queries};
use crate::measure::{Plan, Subject, take_turns};
use crate::peers;
use crate::process::Server;
use crate::report::{Figure, Report};
use crate::world;

/// Names of a small table and of a large one.
const FEW: usize = 200;
const MANY: usize = 60_000;

/// Measures and adds to the report.
pub async fn run(plan: Plan, report: &mut Report) -> Result<(), BenchError> {
    let dir = tempfile::tempdir()?;
    let place = dir.path();
    eprintln!("dns: starting dnsmasq and our tables of {FEW} and {MANY} names");
    let (few_dnsmasq, few_dnsmasq_address) = peers::dnsmasq(place, FEW)?;
    let (many_dnsmasq, many_dnsmasq_address) = peers::dnsmasq(place, MANY)?;
    let (few, few_address) = ours(place, FEW)?;
    let (many, many_address) = ours(place, MANY)?;

    let load = |address, names: usize| {
        let queries = place.join(format!("queries-{names}"));
        let names: Vec<String> = (0..names).map(world::host).collect();
        std::fs::write(&queries, dnsperf_queries(&names))?;
        Ok::<_, BenchError>(Load::Dns { address, queries })
    };
    let mut subjects = [
        Subject::new(&few_dnsmasq, load(few_dnsmasq_address, FEW)?, None),
        Subject::new(&few, load(few_address, FEW)?, None),
        Subject::new(&many, load(many_address, MANY)?, None),
        Subject::new(&many_dnsmasq, load(many_dnsmasq_address, MANY)?, None),
    ];
    take_turns("dns", &mut subjects, plan).await?;
    let [few_dnsmasq, few, many, many_dnsmasq] = &subjects;
    let part = report.part(
        "DNS, local names over UDP",
        "dnsperf -c8 -q200 -T1, type A; query logs off, our counters on",
        "query",
        "mean ms",
        &subjects,
    );
    part.ratio("CPU, ours / dnsmasq, 200 names", Figure::Cpu, few, Some(few_dnsmasq), Some(0.60));
    part.ratio("CPU, ours / dnsmasq, 60,000 names", Figure::Cpu, many, Some(many_dnsmasq), Some(0.60));
    part.ratio("CPU, ours, 60,000 / 200 names", Figure::Cpu, many, Some(few), Some(1.10));
    part.limit("RSS MiB at 60,000 names", Figure::Rss, many, 64.0);
    Ok(())
}

fn ours(place: &Path, names: usize) -> Result<(Server, std::net::SocketAddrV4), BenchError> {
    let words = ["serve-dns".to_owned(), names.to_string()];
    let (mut server, address) = Server::start_self(&format!("ours, {names} names"), &words, place)?;
    peers::check_dns(&mut server, address, names)?;
    Ok((server, address))
}
