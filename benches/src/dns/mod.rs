//! Name servers: the same leased names in dnsmasq, in Knot and in our table; the same names of others in the caches of
//! unbound and of ours.

mod servers;

use crate::error::BenchError;
use crate::load::{Load, dnsperf_queries};
use crate::measure::{Plan, Subject, take_turns};
use crate::report::{Figure, Report};
use crate::world;

/// Names of a small table and of a large one.
const FEW: usize = 200;
const MANY: usize = 60_000;
/// Names of others that are asked for.
const OTHERS: usize = 200;

/// Measures and adds to the report.
pub async fn run(plan: Plan, report: &mut Report) -> Result<(), BenchError> {
    let dir = tempfile::tempdir()?;
    let place = dir.path();
    eprintln!("dns: starting dnsmasq, Knot and our tables of {FEW} and {MANY} names");
    let (few_dnsmasq, few_dnsmasq_address) = servers::dnsmasq(place, FEW)?;
    let (many_dnsmasq, many_dnsmasq_address) = servers::dnsmasq(place, MANY)?;
    let (knot, knot_address) = servers::knot(place, FEW)?;
    let (few, few_address) = servers::ours(place, FEW, None)?;
    let (many, many_address) = servers::ours(place, MANY, None)?;

    let load = |address, names: usize| {
        let queries = place.join(format!("queries-{names}"));
        let names: Vec<String> = (0..names).map(world::host).collect();
        std::fs::write(&queries, dnsperf_queries(&names))?;
        Ok::<_, BenchError>(Load::Dns { address, queries })
    };
    let mut subjects = [
        Subject::new(&few_dnsmasq, load(few_dnsmasq_address, FEW)?, None),
        Subject::new(&few, load(few_address, FEW)?, None),
        Subject::new(&knot, load(knot_address, FEW)?, None),
        Subject::new(&many, load(many_address, MANY)?, None),
        Subject::new(&many_dnsmasq, load(many_dnsmasq_address, MANY)?, None),
    ];
    take_turns("dns", &mut subjects, plan).await?;
    let [few_dnsmasq, few, knot, many, many_dnsmasq] = &subjects;
    let part = report.part(
        "DNS, local names over UDP",
        "dnsperf -c8 -q200 -T1, type A; query logs off, our counters on",
        "query",
        "mean ms",
        &subjects,
    );
    part.ratio("CPU, ours / dnsmasq, 200 names", Figure::Cpu, few, Some(few_dnsmasq), Some(0.60));
    part.ratio("CPU, ours / Knot, 200 names", Figure::Cpu, few, Some(knot), Some(0.90));
    part.ratio("CPU, ours / dnsmasq, 60,000 names", Figure::Cpu, many, Some(many_dnsmasq), Some(0.60));
    part.ratio("CPU, ours, 60,000 / 200 names", Figure::Cpu, many, Some(few), Some(1.10));
    part.limit("RSS MiB at 60,000 names", Figure::Rss, many, 64.0);
    drop(subjects);
    forwarded(plan, report).await
}

/// Answers of others, from the cache.
async fn forwarded(plan: Plan, report: &mut Report) -> Result<(), BenchError> {
    let dir = tempfile::tempdir()?;
    let place = dir.path();
    eprintln!("dns: starting Knot as the authority of others, unbound and ours in front of it");
    let (_authority, upstream) = servers::others(place, OTHERS)?;
    let (mut unbound, unbound_address) = servers::unbound(place, upstream)?;
    let (mut ours, ours_address) = servers::ours(place, 1, Some(upstream))?;
    servers::check_others(&mut unbound, unbound_address, OTHERS)?;
    servers::check_others(&mut ours, ours_address, OTHERS)?;
    let queries = place.join("queries");
    let names: Vec<String> = (0..OTHERS).map(world::other_host).collect();
    std::fs::write(&queries, dnsperf_queries(&names))?;
    let load = |address| Load::Dns { address, queries: queries.clone() };
    let mut subjects =
        [Subject::new(&unbound, load(unbound_address), None), Subject::new(&ours, load(ours_address), None)];
    take_turns("dns", &mut subjects, plan).await?;
    let [unbound, ours] = &subjects;
    let part = report.part(
        "DNS, names of others from the cache over UDP",
        &format!("dnsperf -c8 -q200 -T1, type A, {OTHERS} names; nothing is validated"),
        "query",
        "mean ms",
        &subjects,
    );
    part.ratio("CPU, ours / unbound", Figure::Cpu, ours, Some(unbound), Some(0.75));
    Ok(())
}
