//! Small answers: where the proxy itself is what costs.

use super::{ASKED, FEW, MANY, Stand};
use crate::error::BenchError;
use crate::measure::{Plan, Subject, take_turns};
use crate::peers::SMALL;
use crate::report::{Figure, Report};

const CONNECTIONS: u32 = 64;

pub async fn run(plan: Plan, stand: &Stand, report: &mut Report) -> Result<(), BenchError> {
    eprintln!("proxy: starting nginx, HAProxy, Caddy and our tables of {FEW} and {MANY} vhosts");
    let (quiet, logging) = (stand.nginx(false)?, stand.nginx(true)?);
    let (haproxy, caddy) = (stand.haproxy(report)?, stand.caddy(report)?);
    let (few, many, all) = (stand.ours(FEW, ASKED)?, stand.ours(MANY, ASKED)?, stand.ours(MANY, MANY)?);

    let mut subjects = Vec::new();
    let mut add = |proxy, vhosts, asked| add(&mut subjects, stand, proxy, vhosts, asked);
    let quiet = add(Some(&quiet), FEW, ASKED)?;
    let few = add(Some(&few), FEW, ASKED)?;
    let haproxy = add(haproxy.as_ref(), FEW, ASKED)?;
    let logging = add(Some(&logging), FEW, ASKED)?;
    let many = add(Some(&many), MANY, ASKED)?;
    let caddy = add(caddy.as_ref(), FEW, ASKED)?;
    let all = add(Some(&all), MANY, MANY)?;
    take_turns("proxy", &mut subjects, plan).await?;

    let [quiet, few, haproxy, logging, many, caddy, all] =
        [quiet, few, haproxy, logging, many, caddy, all].map(|at| at.map(|at| &subjects[at]));
    let (Some(few), Some(many), Some(all)) = (few, many, all) else { return Ok(()) };
    let part = report.part(
        "Proxy, answers of 101 octets",
        &format!("wrk -t1 -c{CONNECTIONS}, {ASKED} hosts unless all are asked; our JSON access log is on"),
        "request",
        "p99 ms",
        &subjects,
    );
    part.ratio("CPU, ours / nginx without log", Figure::Cpu, few, quiet, Some(0.95));
    part.ratio("CPU, ours / nginx with log", Figure::Cpu, few, logging, Some(0.85));
    part.ratio("CPU, ours / HAProxy without log", Figure::Cpu, few, haproxy, Some(0.95));
    part.ratio("CPU, ours / Caddy without log", Figure::Cpu, few, caddy, Some(0.25));
    part.ratio("CPU, 10,000 vhosts / 10 vhosts", Figure::Cpu, many, Some(few), Some(1.05));
    part.ratio("p99, ours / nginx without log", Figure::Latency, few, quiet, Some(1.0));
    part.limit("RSS MiB at 10,000 vhosts", Figure::Rss, many, 64.0);
    part.ratio("CPU, 10,000 vhosts, all asked / 10 vhosts", Figure::Cpu, all, Some(few), None);
    part.ratio("CPU, ours, all of 10,000 asked / nginx without log, 10", Figure::Cpu, all, quiet, None);
    part.limit("RSS MiB at 10,000 vhosts, all asked", Figure::Rss, all, 64.0);
    Ok(())
}

/// Where among the subjects a proxy is, if there is one.
fn add<'a>(
    subjects: &mut Vec<Subject<'a>>,
    stand: &Stand,
    proxy: Option<&'a super::Proxy>,
    vhosts: usize,
    asked: usize,
) -> Result<Option<usize>, BenchError> {
    let Some(proxy) = proxy else { return Ok(None) };
    subjects.push(proxy.under(stand.load(proxy.address, vhosts, asked, SMALL, CONNECTIONS)?));
    Ok(Some(subjects.len() - 1))
}
