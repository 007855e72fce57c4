//! Proxies: the same backend behind the peers and behind us.

mod crowd;
mod http2;
mod idle;
mod large;
mod live;
mod small;

use std::net::SocketAddrV4;
use std::path::PathBuf;

use tempfile::TempDir;

use crate::Part;
use crate::error::BenchError;
use crate::load::{Load, wrk_script};
use crate::measure::{Plan, Subject};
use crate::process::Server;
use crate::report::Report;
use crate::{peers, tools, world};

/// Vhosts of a small table and of a large one.
const FEW: usize = 10;
const MANY: usize = 10_000;
/// Hosts that are asked for, spread over the table: as many in the large one as in the small one, so that
/// only its size makes a difference, unless all are.
const ASKED: usize = 10;

/// What the proxies have in common.
struct Stand {
    backend: SocketAddrV4,
    _backend: Server,
    dir: TempDir,
}

/// A proxy that serves.
struct Proxy {
    server: Server,
    address: SocketAddrV4,
    /// Where it listens for HTTP/2.
    http2: SocketAddrV4,
    logs: Option<PathBuf>,
}

/// Measures what `chosen` says and adds to the report.
pub async fn run(plan: Plan, chosen: impl Fn(Part) -> bool, report: &mut Report) -> Result<(), BenchError> {
    let dir = tempfile::tempdir()?;
    let (server, backend) = peers::backend(dir.path())?;
    let stand = Stand { backend, _backend: server, dir };
    if chosen(Part::Small) {
        small::run(plan, &stand, report).await?;
    }
    if chosen(Part::Large) {
        large::run(plan, &stand, report).await?;
    }
    if chosen(Part::Http2) {
        http2::run(plan, &stand, report).await?;
    }
    if chosen(Part::Crowd) {
        crowd::run(plan, &stand, report).await?;
    }
    if chosen(Part::Idle) {
        idle::run(&stand, report).await?;
    }
    if chosen(Part::Live) {
        live::run(&stand, report).await?;
    }
    Ok(())
}

impl Stand {
    fn nginx(&self, logs: bool) -> Result<Proxy, BenchError> {
        let logs = if logs { Some(self.logs("nginx")?) } else { None };
        let (server, address, http2) = peers::nginx_proxy(self.dir.path(), self.backend, logs.as_deref())?;
        Ok(Proxy { server, address, http2, logs })
    }

    fn haproxy(&self, report: &mut Report) -> Result<Option<Proxy>, BenchError> {
        match tools::find_optional("haproxy") {
            Ok(program) => {
                let (server, address) = peers::haproxy(&program, self.dir.path(), self.backend)?;
                Ok(Some(Proxy { server, address, http2: address, logs: None }))
            }
            Err(words) => {
                report.skip(format!("HAProxy: {words}"));
                Ok(None)
            }
        }
    }

    fn caddy(&self, report: &mut Report) -> Result<Option<Proxy>, BenchError> {
        match tools::find_optional("caddy") {
            Ok(program) => {
                let (server, address) = peers::caddy(&program, self.dir.path(), self.backend)?;
                Ok(Some(Proxy { server, address, http2: address, logs: None }))
            }
            Err(words) => {
                report.skip(format!("Caddy: {words}"));
                Ok(None)
            }
        }
    }

    /// Ours, with so many vhosts of which so many are asked for.
    fn ours(&self, vhosts: usize, asked: usize) -> Result<Proxy, BenchError> {
        let all = if asked == vhosts && vhosts > ASKED { ", all asked" } else { "" };
        let name = format!("ours, {vhosts} vhosts{all}");
        let logs = self.logs(&name)?;
        let words = [
            "serve-proxy".to_owned(),
            self.backend.to_string(),
            vhosts.to_string(),
            logs.display().to_string(),
        ];
        let (mut server, address) = Server::start_self(&name, &words, self.dir.path())?;
        peers::check_http(&mut server, address)?;
        Ok(Proxy { server, address, http2: address, logs: Some(logs) })
    }

    fn logs(&self, name: &str) -> Result<PathBuf, BenchError> {
        let logs = self.dir.path().join(format!("logs-{}", name.replace([' ', ','], "-")));
        std::fs::create_dir_all(&logs)?;
        Ok(logs)
    }

    /// Requests over HTTP/1 for so many hosts that are spread over a table of so many vhosts.
    fn load(
        &self,
        address: SocketAddrV4,
        vhosts: usize,
        asked: usize,
        path: &str,
        connections: u32,
    ) -> Result<Load, BenchError> {
        let hosts: Vec<String> = (0..asked).map(|at| world::host(at * (vhosts / asked))).collect();
        let script = self.dir.path().join(format!("ask-{asked}-of-{vhosts}-{}.lua", path.trim_matches('/')));
        std::fs::write(&script, wrk_script(&hosts, path))?;
        Ok(Load::Http { address, script, connections })
    }
}

impl Proxy {
    fn under(&self, load: Load) -> Subject<'_> {
        Subject::new(&self.server, load, self.logs.clone())
    }
}
