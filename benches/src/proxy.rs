//! Proxies: the same backend behind nginx and behind us.

use crate::error::BenchError;
use crate::load::{Load, wrk_script};
use crate::measure::{Plan, Subject, take_turns};
use crate::peers::{self, LARGE, SMALL};
use crate::process::Server;
use crate::report::{Figure, Report};
use crate::world;

/// Vhosts of a small table and of a large one.
const FEW: usize = 10;
const MANY: usize = 10_000;
/// Hosts that are asked for, spread over the table: as many in the large one as in the small one, so that
/// only its size makes a difference.
const ASKED: usize = 10;
const SMALL_CONNECTIONS: u32 = 64;
const LARGE_CONNECTIONS: u32 = 16;

/// Measures and adds to the report.
pub async fn run(plan: Plan, report: &mut Report) -> Result<(), BenchError> {
    let dir = tempfile::tempdir()?;
    let place = dir.path();
    eprintln!("proxy: starting nginx and our tables of {FEW} and {MANY} vhosts");
    let (_backend, backend) = peers::backend(place)?;

    let logs = |name: &str| {
        let logs = place.join(format!("logs-{name}"));
        std::fs::create_dir_all(&logs).map(|()| logs)
    };
    let script = |vhosts: usize, path: &str| {
        let hosts: Vec<String> = (0..ASKED).map(|at| world::host(at * (vhosts / ASKED))).collect();
        let file = place.join(format!("ask-{vhosts}-{}.lua", path.trim_matches('/')));
        std::fs::write(&file, wrk_script(&hosts, path)).map(|()| file)
    };
    let (nginx_log, few_log, many_log) = (logs("nginx")?, logs("few")?, logs("many")?);
    let ours = |vhosts: usize, logs: &std::path::Path| {
        let words =
            ["serve-proxy".to_owned(), backend.to_string(), vhosts.to_string(), logs.display().to_string()];
        let (mut server, address) = Server::start_self(&format!("ours, {vhosts} vhosts"), &words, place)?;
        peers::check_http(&mut server, address)?;
        Ok::<_, BenchError>((server, address))
    };
    let (quiet, quiet_address) = peers::nginx_proxy(place, backend, None)?;
    let (logging, logging_address) = peers::nginx_proxy(place, backend, Some(&nginx_log))?;
    let (few, few_address) = ours(FEW, &few_log)?;
    let (many, many_address) = ours(MANY, &many_log)?;

    let small = |address, vhosts| {
        Ok::<_, BenchError>(Load::Http {
            address,
            script: script(vhosts, SMALL)?,
            connections: SMALL_CONNECTIONS,
        })
    };
    let mut subjects = [
        Subject::new(&quiet, small(quiet_address, FEW)?, None),
        Subject::new(&few, small(few_address, FEW)?, Some(few_log.clone())),
        Subject::new(&logging, small(logging_address, FEW)?, Some(nginx_log)),
        Subject::new(&many, small(many_address, MANY)?, Some(many_log)),
    ];
    take_turns("proxy", &mut subjects, plan).await?;
    let [quiet_small, few_small, logging_small, many_small] = &subjects;
    let part = report.part(
        "Proxy, answers of 101 octets",
        &format!("wrk -t1 -c{SMALL_CONNECTIONS}, {ASKED} hosts; our JSON access log is on"),
        "request",
        "p99 ms",
        &subjects,
    );
    part.ratio("CPU, ours / nginx without log", Figure::Cpu, few_small, quiet_small, Some(0.95));
    part.ratio("CPU, ours / nginx with log", Figure::Cpu, few_small, logging_small, Some(0.85));
    part.ratio("CPU, 10,000 vhosts / 10 vhosts", Figure::Cpu, many_small, few_small, Some(1.05));
    part.ratio("p99, ours / nginx without log", Figure::Latency, few_small, quiet_small, Some(1.0));
    part.ratio("requests/s, nginx without log / ours", Figure::Rate, quiet_small, few_small, None);
    part.limit("RSS MiB at 10,000 vhosts", Figure::Rss, many_small, 64.0);

    let large = |address| {
        let script = script(FEW, LARGE)?;
        Ok::<_, BenchError>(Load::Http { address, script, connections: LARGE_CONNECTIONS })
    };
    let mut subjects = [
        Subject::new(&quiet, large(quiet_address)?, None),
        Subject::new(&few, large(few_address)?, Some(few_log)),
    ];
    take_turns("proxy, 1 MiB", &mut subjects, plan).await?;
    let [quiet_large, few_large] = &subjects;
    let part = report.part(
        "Proxy, answers of 1 MiB",
        &format!(
            "wrk -t1 -c{LARGE_CONNECTIONS}; the target stands for 0.60 of HAProxy, which takes 0.76 of nginx"
        ),
        "MiB",
        "p99 ms",
        &subjects,
    );
    part.ratio("CPU, ours / nginx without log", Figure::Cpu, few_large, quiet_large, Some(0.45));
    Ok(())
}
