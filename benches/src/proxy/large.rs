//! Large answers: where moving octets is what costs.

use super::{ASKED, FEW, Stand};
use crate::error::BenchError;
use crate::measure::{Plan, take_turns};
use crate::peers::LARGE;
use crate::report::{Figure, Report};

const CONNECTIONS: u32 = 16;

pub async fn run(plan: Plan, stand: &Stand, report: &mut Report) -> Result<(), BenchError> {
    let (nginx, haproxy, ours) = (stand.nginx(false)?, stand.haproxy(report)?, stand.ours(FEW, ASKED)?);
    let load = |address| stand.load(address, FEW, ASKED, LARGE, CONNECTIONS);
    let mut subjects = vec![nginx.under(load(nginx.address)?), ours.under(load(ours.address)?)];
    if let Some(haproxy) = &haproxy {
        subjects.push(haproxy.under(load(haproxy.address)?));
    }
    take_turns("proxy, 1 MiB", &mut subjects, plan).await?;
    let part = report.part(
        "Proxy, answers of 1 MiB",
        &format!("wrk -t1 -c{CONNECTIONS}"),
        "MiB",
        "p99 ms",
        &subjects,
    );
    let (nginx, ours, haproxy) = (&subjects[0], &subjects[1], subjects.get(2));
    part.ratio("CPU, ours / HAProxy", Figure::Cpu, ours, haproxy, Some(0.60));
    part.ratio("CPU, ours / nginx", Figure::Cpu, ours, Some(nginx), None);
    Ok(())
}
