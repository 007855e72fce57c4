//! HTTP/2 in front, by prior knowledge.

use super::{ASKED, FEW, Proxy, Stand};
use crate::error::BenchError;
use crate::load::Load;
use crate::measure::{Plan, take_turns};
use crate::report::{Figure, Report};
use crate::{tools, world};

const CONNECTIONS: u32 = 8;
const STREAMS: u32 = 16;

pub async fn run(plan: Plan, stand: &Stand, report: &mut Report) -> Result<(), BenchError> {
    if let Err(words) = tools::find_optional("h2load") {
        report.skip(format!("HTTP/2: {words}"));
        return Ok(());
    }
    let (nginx, ours) = (stand.nginx(false)?, stand.ours(FEW, ASKED)?);
    let load = |proxy: &Proxy| Load::Http2 {
        address: proxy.http2,
        host: world::host(0),
        connections: CONNECTIONS,
        streams: STREAMS,
    };
    let mut subjects = [nginx.under(load(&nginx)), ours.under(load(&ours))];
    take_turns("proxy, HTTP/2", &mut subjects, plan).await?;
    let part = report.part(
        "Proxy, HTTP/2 in front, answers of 101 octets",
        &format!("h2load -t1 -c{CONNECTIONS} -m{STREAMS}; our JSON access log is on"),
        "request",
        "mean ms",
        &subjects,
    );
    let [nginx, ours] = &subjects;
    part.ratio("CPU, ours / nginx without log", Figure::Cpu, ours, Some(nginx), Some(0.80));
    Ok(())
}
