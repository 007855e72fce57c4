//! Many connections at work at the same time.

use super::{ASKED, FEW, Stand};
use crate::error::BenchError;
use crate::measure::{Plan, take_turns};
use crate::peers::SMALL;
use crate::report::{Figure, Report};

const CONNECTIONS: u32 = 2000;

pub async fn run(plan: Plan, stand: &Stand, report: &mut Report) -> Result<(), BenchError> {
    let (nginx, ours) = (stand.nginx(false)?, stand.ours(FEW, ASKED)?);
    let load = |address| stand.load(address, FEW, ASKED, SMALL, CONNECTIONS);
    let mut subjects = [nginx.under(load(nginx.address)?), ours.under(load(ours.address)?)];
    take_turns("proxy, 2,000 connections", &mut subjects, plan).await?;
    let part = report.part(
        "Proxy, 2,000 connections at work",
        &format!("wrk -t1 -c{CONNECTIONS}; our JSON access log is on"),
        "request",
        "p99 ms",
        &subjects,
    );
    let [nginx, ours] = &subjects;
    part.ratio("p99, ours / nginx without log", Figure::Latency, ours, Some(nginx), Some(1.0));
    part.ratio("CPU, ours / nginx without log", Figure::Cpu, ours, Some(nginx), None);
    Ok(())
}
