//! The load generators: what they are told and what they say.

use std::net::SocketAddrV4;
use std::path::PathBuf;
use std::process::Stdio;

use tokio::process::Command;

use crate::error::BenchError;

/// What is thrown at a server.
#[derive(Clone, Debug)]
pub enum Load {
    /// HTTP by wrk on one thread; the requests are made by a script.
    Http {
        /// Where to.
        address: SocketAddrV4,
        /// The script, see [`wrk_script`].
        script: PathBuf,
        /// Open connections.
        connections: u32,
    },
    /// HTTP/2 by prior knowledge, by h2load on one thread.
    Http2 {
        /// Where to.
        address: SocketAddrV4,
        /// The host that is asked for.
        host: String,
        /// Open connections.
        connections: u32,
        /// Requests under way on each.
        streams: u32,
    },
    /// DNS over UDP by dnsperf: 8 sockets, 200 queries under way.
    Dns {
        /// Where to.
        address: SocketAddrV4,
        /// Queries, see [`dnsperf_queries`].
        queries: PathBuf,
    },
}

/// What came of a load.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outcome {
    /// Answers that are right.
    pub units: u64,
    /// Answers that are wrong.
    pub failed: u64,
    /// Questions that were never answered.
    pub lost: u64,
    /// Seconds that it took.
    pub seconds: f64,
    /// The time for an answer in milliseconds: the 99th percentile of HTTP/1, the mean of HTTP/2 and DNS.
    pub latency_ms: f64,
}

impl Load {
    /// Runs the generator for so many seconds.
    pub async fn run(&self, seconds: u32) -> Result<Outcome, BenchError> {
        match self {
            Load::Http { address, script, connections } => {
                let mut wrk = tied("wrk");
                wrk.args(["-t1", "--latency", &format!("-c{connections}"), &format!("-d{seconds}s"), "-s"])
                    .arg(script)
                    .arg(format!("http://{address}/"));
                let output = say("wrk", wrk).await?;
                wrk_outcome(&output).ok_or(BenchError::Unreadable { program: "wrk", output })
            }
            Load::Http2 { address, host, connections, streams } => {
                let mut h2load = tied("h2load");
                let options =
                    ["-t1", &format!("-c{connections}"), &format!("-m{streams}"), &format!("-D{seconds}")];
                h2load
                    .args(options)
                    .args(["-H", &format!(":authority: {host}")])
                    .arg(format!("http://{address}/"));
                let output = say("h2load", h2load).await?;
                h2load_outcome(&output).ok_or(BenchError::Unreadable { program: "h2load", output })
            }
            Load::Dns { address, queries } => {
                let mut dnsperf = tied("dnsperf");
                dnsperf
                    .args([
                        "-c8",
                        "-q200",
                        "-T1",
                        "-t1",
                        &format!("-l{seconds}"),
                        "-s",
                        &address.ip().to_string(),
                    ])
                    .args(["-p", &address.port().to_string(), "-d"])
                    .arg(queries);
                let output = say("dnsperf", dnsperf).await?;
                dnsperf_outcome(&output).ok_or(BenchError::Unreadable { program: "dnsperf", output })
            }
        }
    }
}

/// What this very program says when it is started with `arguments`.
pub async fn said_by_self(arguments: &[String]) -> Result<String, BenchError> {
    let program = std::env::current_exe()?;
    let mut command = tied(&program.display().to_string());
    command.args(arguments);
    say("bench", command).await
}

/// A script for wrk that asks `hosts` in turn for `path`.
pub fn wrk_script(hosts: &[String], path: &str) -> String {
    let hosts: String = hosts.iter().map(|host| format!("\"{host}\", ")).collect();
    format!(
        "local hosts, requests, at = {{ {hosts} }}, {{}}, 0\n\
         function init(args)\n\
         \x20 for i, host in ipairs(hosts) do\n\
         \x20   requests[i] = wrk.format(\"GET\", \"{path}\", {{ Host = host }})\n\
         \x20 end\n\
         end\n\
         function request()\n\
         \x20 at = at % #requests + 1\n\
         \x20 return requests[at]\n\
         end\n"
    )
}

/// Queries for dnsperf that ask for the address of each name once, in an order that has nothing to do with
/// that in which they were made.
pub fn dnsperf_queries(names: &[String]) -> String {
    // A step that shares no factor with the length meets every name once.
    let step = (7919..).find(|step| gcd(*step, names.len()) == 1).unwrap_or(1);
    (0..names.len()).map(|at| format!("{} A\n", names[at * step % names.len()])).collect()
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// A program that ends with this one, however this one ends.
fn tied(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--", program]);
    command
}

async fn say(program: &'static str, mut command: Command) -> Result<String, BenchError> {
    let output = command
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|source| BenchError::Start { program: program.to_owned(), source })?;
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    if output.status.success() { Ok(text) } else { Err(BenchError::Unreadable { program, output: text }) }
}

fn wrk_outcome(text: &str) -> Option<Outcome> {
    let done = text.lines().find(|line| line.contains(" requests in "))?;
    let (answers, rest) = done.trim().split_once(" requests in ")?;
    let seconds = milliseconds(rest.split_once(',')?.0)? / 1e3;
    let worst = text.lines().find_map(|line| line.trim().strip_prefix("99%"))?;
    let number_after = |start: &str| {
        text.lines().find_map(|line| line.trim().strip_prefix(start)?.trim().parse::<u64>().ok())
    };
    // "Socket errors: connect 0, read 0, write 0, timeout 0"
    let lost = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("Socket errors:"))
        .map_or(0, |errors| errors.split([' ', ',']).filter_map(|word| word.parse::<u64>().ok()).sum());
    let failed = number_after("Non-2xx or 3xx responses:").unwrap_or(0);
    let units = answers.parse::<u64>().ok()?.checked_sub(failed)?;
    Some(Outcome { units, failed, lost, seconds, latency_ms: milliseconds(worst)? })
}

/// A time as wrk and h2load write it: `823.00us`, `1.25ms`, `3.00s`, `1.50m`.
fn milliseconds(text: &str) -> Option<f64> {
    let text = text.trim();
    let unit = text.find(|letter: char| letter.is_ascii_alphabetic())?;
    let factor = match &text[unit..] {
        "us" => 1e-3,
        "ms" => 1.0,
        "s" => 1e3,
        "m" => 60e3,
        _ => return None,
    };
    Some(text[..unit].parse::<f64>().ok()? * factor)
}

fn h2load_outcome(text: &str) -> Option<Outcome> {
    let after = |start: &str| text.lines().find_map(|line| line.trim().strip_prefix(start)).map(str::trim);
    // "requests: 90 total, 95 started, 90 done, 88 succeeded, 2 failed, 1 errored, 0 timeout"
    let count = |what: &str| {
        let count = after("requests:")?.split(',').find_map(|part| part.trim().strip_suffix(what))?;
        count.trim().parse::<u64>().ok()
    };
    let seconds = milliseconds(after("finished in")?.split(',').next()?)? / 1e3;
    // "time for request:  30us  2.01ms  833us  285us  79.65%": least, greatest, mean
    let mean = after("time for request:")?.split_whitespace().nth(2)?;
    let (units, failed, lost) = (count("succeeded")?, count("failed")?, count("timeout")?);
    Some(Outcome { units, failed, lost, seconds, latency_ms: milliseconds(mean)? })
}

fn dnsperf_outcome(text: &str) -> Option<Outcome> {
    let after = |start: &str| text.lines().find_map(|line| line.trim().strip_prefix(start)).map(str::trim);
    let first = |start: &str| after(start)?.split_whitespace().next();
    // "Response codes: NOERROR 198710 (99.00%), NXDOMAIN 5 (1.00%)"
    let right = after("Response codes:")?
        .split(',')
        .find_map(|code| code.trim().strip_prefix("NOERROR"))
        .and_then(|count| count.split_whitespace().next())
        .map_or(Some(0), |count| count.parse::<u64>().ok())?;
    Some(Outcome {
        units: right,
        failed: first("Queries completed:")?.parse::<u64>().ok()?.checked_sub(right)?,
        lost: first("Queries lost:")?.parse().ok()?,
        seconds: first("Run time (s):")?.parse().ok()?,
        latency_ms: first("Average Latency (s):")?.parse::<f64>().ok()? * 1e3,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRK: &str = "Running 2s test @ http://127.0.0.1:1/\n  1 threads and 64 connections\n  Thread Stats   \
        Avg      Stdev     Max   +/- Stdev\n    Latency     1.12ms  612.00us  18.02ms   92.11%\n  Latency \
        Distribution\n     50%    1.02ms\n     75%    1.22ms\n     90%    1.60ms\n     99%    3.25ms\n  115023 \
        requests in 2.10s, 29.18MB read\n";

    #[test]
    fn wrk_is_understood() {
        let outcome = wrk_outcome(WRK).unwrap();
        assert_eq!(outcome, Outcome { units: 115_023, failed: 0, lost: 0, seconds: 2.1, latency_ms: 3.25 });
    }

    #[test]
    fn what_wrk_counts_as_wrong_is_no_work_done() {
        let text = format!(
            "{WRK}  Socket errors: connect 1, read 2, write 0, timeout 4\n  Non-2xx or 3xx responses: 23\n"
        );
        let outcome = wrk_outcome(&text).unwrap();
        assert_eq!((outcome.units, outcome.failed, outcome.lost), (115_000, 23, 7));
    }

    #[test]
    fn times_are_read_in_every_unit_of_wrk() {
        assert_eq!(milliseconds(" 500.00us"), Some(0.5));
        assert_eq!(milliseconds("1.50m"), Some(90_000.0));
        assert_eq!(milliseconds("2.00s"), Some(2000.0));
        assert_eq!(milliseconds("7"), None);
        assert_eq!(milliseconds("7h"), None);
    }

    #[test]
    fn dnsperf_is_understood() {
        let text = "  Queries sent:         1000\n  Queries completed:    998 (99.80%)\n  Queries lost:         2 \
            (0.20%)\n\n  Response codes:       NOERROR 990 (99.20%), NXDOMAIN 8 (0.80%)\n  Run time (s):         \
            1.000610\n  Average Latency (s):  0.000771 (min 0.000020, max 0.002381)\n";
        let outcome = dnsperf_outcome(text).unwrap();
        assert_eq!((outcome.units, outcome.failed, outcome.lost), (990, 8, 2));
        assert!((outcome.latency_ms - 0.771).abs() < 1e-9 && (outcome.seconds - 1.000_61).abs() < 1e-9);
    }

    #[test]
    fn h2load_is_understood() {
        let text = "finished in 1.01s, 8000.00 req/s, 648.95KB/s\nrequests: 8061 total, 8120 started, 8061 done, \
            8000 succeeded, 61 failed, 60 errored, 1 timeout\nstatus codes: 8000 2xx, 0 3xx, 0 4xx, 0 5xx\n   \
            min         max         mean         sd        +/- sd\ntime for request:       30us      2.01ms       \
            833us       285us    79.65%\ntime for connect:      216us       302us       267us        29us\n";
        let outcome = h2load_outcome(text).unwrap();
        let right = Outcome { units: 8000, failed: 61, lost: 1, seconds: 1.01, latency_ms: 0.833 };
        assert_eq!(outcome, right);
    }

    #[test]
    fn what_cannot_be_read_gives_no_figure() {
        for text in
            ["", "unable to connect", "0 requests in", "requests: x succeeded", "Response codes: NOERROR x"]
        {
            let outcomes = [wrk_outcome(text), h2load_outcome(text), dnsperf_outcome(text)];
            assert_eq!(outcomes, [None, None, None], "{text}");
        }
    }

    #[test]
    fn every_name_is_asked_once() {
        for count in [1, 200, 7919] {
            let names: Vec<String> = (0..count).map(|at| format!("app{at}.prox.local")).collect();
            let mut asked: Vec<String> =
                dnsperf_queries(&names).lines().map(|line| line.trim_end_matches(" A").to_owned()).collect();
            asked.sort();
            let mut expected = names.clone();
            expected.sort();
            assert_eq!(asked, expected);
        }
    }
}
