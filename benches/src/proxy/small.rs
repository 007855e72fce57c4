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
    let (few, many) = (stand.ours(FEW)?, stand.ours(MANY)?);

    let mut subjects = Vec::new();
    let mut add = |proxy, vhosts| add(&mut subjects, stand, proxy, vhosts);
    let quiet = add(Some(&quiet), FEW)?;
    let few = add(Some(&few), FEW)?;
    let haproxy = add(haproxy.as_ref(), FEW)?;
    let logging = add(Some(&logging), FEW)?;
    let many = add(Some(&many), MANY)?;
    let caddy = add(caddy.as_ref(), FEW)?;
    take_turns("proxy", &mut subjects, plan).await?;

    let [quiet, few, haproxy, logging, many, caddy] =
        [quiet, few, haproxy, logging, many, caddy].map(|at| at.map(|at| &subjects[at]));
    let (Some(few), Some(many)) = (few, many) else { return Ok(()) };
    let part = report.part(
        "Proxy, answers of 101 octets",
        &format!("wrk -t1 -c{CONNECTIONS}, {ASKED} hosts; our JSON access log is on"),
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
    Ok(())
}

/// Where among the subjects a proxy is, if there is one.
fn add<'a>(
    subjects: &mut Vec<Subject<'a>>,
    stand: &Stand,
    proxy: Option<&'a super::Proxy>,
    vhosts: usize,
) -> Result<Option<usize>, BenchError> {
    let Some(proxy) = proxy else { return Ok(None) };
    subjects.push(proxy.under(stand.load(proxy.address, vhosts, SMALL, CONNECTIONS)?));
    Ok(Some(subjects.len() - 1))
}
