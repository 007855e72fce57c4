//! What each command asks of the appliance and prints of its answer.

use std::path::PathBuf;

use hyper::Method;
use proximity_admin::{
    AppView, BlocklistView, LeaseView, Page, RecordInput, RecordView, Reloaded, ReservationInput, Status,
    Upgraded,
};
use proximity_config::Config;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::api_client::ApiClient;
use crate::cli::{AppCommand, DnsCommand, LeaseCommand, Place};
use crate::{daemon, dns_command, say, table_text, vhost_command};

/// What holds for every command.
pub struct Asked {
    /// Where configuration and appliance are.
    pub place: Place,
    /// Whether JSON is wanted.
    pub json: bool,
}

pub type Done = Result<(), String>;

pub fn validate(asked: &Asked, file: Option<PathBuf>) -> Done {
    let path = file.unwrap_or_else(|| asked.place.config.clone());
    let text = daemon::read_text(&path).map_err(|error| error.to_string())?;
    let result = Config::parse_with(&text, daemon::check_authority);
    if asked.json {
        let problems = result.as_ref().err().map(proximity_config::Report::problems).unwrap_or_default();
        let problems = problems.iter().map(|p| json!({"line": p.line, "message": p.message, "hint": p.hint}));
        let problems: Vec<Value> = problems.collect();
        let warnings = result.as_ref().map(Config::warnings).unwrap_or_default();
        let valid = result.is_ok();
        say!("{}", json!({"file": path, "valid": valid, "problems": problems, "warnings": warnings}));
    }
    match result {
        Ok(_) if asked.json => Ok(()),
        Ok(_) if !path.exists() => {
            say!("{} does not exist: the defaults hold", path.display());
            Ok(())
        }
        Ok(config) => {
            say!("{} is right", path.display());
            warn(config.warnings());
            Ok(())
        }
        Err(report) => {
            let count = report.problems().len();
            if !asked.json {
                eprintln!("{}", report.for_file(&path.display().to_string()));
            }
            Err(format!("{} has {count} problem{}", path.display(), if count == 1 { "" } else { "s" }))
        }
    }
}

pub fn version(asked: &Asked) -> Done {
    let version = env!("CARGO_PKG_VERSION");
    if asked.json {
        say!(
            "{}",
            json!({"name": "proximity", "version": version, "target_os": std::env::consts::OS, "target_arch": std::env::consts::ARCH})
        );
    } else {
        say!("proximity {version} ({} {})", std::env::consts::OS, std::env::consts::ARCH);
    }
    Ok(())
}

pub fn reload(asked: &Asked) -> Done {
    let answer = asked.call(Method::POST, "/reload", None)?;
    asked.show(answer, |done: Reloaded| {
        say!("the configuration is in force as generation {}", done.generation);
        warn(&done.warnings);
    })
}

pub fn upgrade(asked: &Asked, binary: Option<PathBuf>) -> Done {
    let path = |binary: PathBuf| {
        let shown = binary.display().to_string();
        std::path::absolute(binary).map_err(|error| format!("{shown}: {error}: name the path of a binary"))
    };
    let binary = binary.map(path).transpose()?;
    let answer = asked.call(Method::POST, "/upgrade", Some(&json!({"binary": binary})))?;
    asked.show(answer, |done: Upgraded| {
        say!(
            "version {} (process {}) has taken over from {} (process {}), which ends with its last connection",
            done.new_version,
            done.pid,
            done.old_version,
            done.old_pid
        );
    })
}

pub fn status(asked: &Asked) -> Done {
    let answer = asked.call(Method::GET, "/status", None)?;
    asked.show(answer, |status: Status| {
        say!(
            "{} is {} (version {}, generation {})",
            status.hostname,
            status.health_status,
            status.version,
            status.generation
        );
        say!(
            "up {} s, ready {} ms after its start, configuration {}",
            status.uptime_seconds,
            status.ready_after_ms,
            status.config_file
        );
        let wan = status.wan_ip.map_or_else(|| "no address yet".to_owned(), |ip| ip.to_string());
        say!("WAN {} {wan}, apps {} {}", status.wan_interface, status.lan_interface, status.lan_ip);
        if !status.draining_processes.is_empty() {
            let pids: Vec<String> = status.draining_processes.iter().map(u32::to_string).collect();
            say!("processes of before the last upgrades that carry connections: {}", pids.join(", "));
        }
        status.problems.iter().for_each(|problem| say!("! {problem}"));
        for upstream in status.upstreams.iter().filter(|upstream| !upstream.up) {
            let since = text(upstream.last_answer.as_ref());
            say!("! upstream {} does not answer; its last answer: {since}", upstream.upstream);
        }
        for circuit in &status.circuits {
            say!("! backend {} of {}: {}", circuit.backend, circuit.app, circuit.note);
        }
        warn(&status.warnings);
        for blocklist in &status.blocklists {
            say!("{}", in_words(blocklist));
        }
        say!("");
        let services = status.services.iter().map(|(name, healthy)| {
            vec![name.clone(), if *healthy { "running" } else { "not running" }.to_owned()]
        });
        table_text::print(&["service", "state"], &services.collect::<Vec<_>>());
        say!("");
        let count = |map: &std::collections::BTreeMap<String, u64>| {
            map.iter().map(|(name, value)| vec![name.clone(), value.to_string()]).collect::<Vec<_>>()
        };
        table_text::print(&["figure", "value"], &count(&status.statistics));
        if !status.drops.is_empty() {
            say!("");
            table_text::print(&["dropped or refused", "count"], &count(&status.drops));
        }
    })
}

pub fn app(asked: &Asked, command: AppCommand) -> Done {
    match command {
        AppCommand::Ls => asked.list(
            "/apps",
            "no app yet: boot a container on the app network",
            &["name", "state", "ip", "url", "health", "note"],
            |app: AppView| {
                let health = app.vhost.as_ref().map_or_else(
                    || "-".to_owned(),
                    |vhost| vhost_command::health(&vhost.backends, &vhost.health),
                );
                vec![
                    app.name.clone(),
                    app.state.clone(),
                    text(app.ip),
                    text(app.url.clone()),
                    health,
                    app.notes.join("; "),
                ]
            },
        ),
        AppCommand::Show { name } => {
            let answer = asked.call(Method::GET, &format!("/apps/{}", escape(&name)), None)?;
            asked.show(answer, |app: AppView| {
                let mut rows = vec![
                    ("name", app.name),
                    ("state", app.state),
                    ("address", text(app.ip)),
                    ("MAC", text(app.mac)),
                    ("network", text(app.network)),
                    ("DNS name", text(app.fqdn)),
                    ("lease until", text(app.lease_expires)),
                    ("URL", text(app.url)),
                ];
                if let Some(vhost) = app.vhost {
                    rows.push(("vhost", format!("{} ({})", vhost.verdict, vhost_command::target(&vhost))));
                    rows.push((
                        "health",
                        format!(
                            "{} {}",
                            vhost_command::health(&vhost.backends, &vhost.health),
                            vhost.health.reason.unwrap_or_default()
                        ),
                    ));
                }
                if !app.forwards.is_empty() {
                    rows.push(("forwarded", app.forwards.join(", ")));
                }
                rows.extend(app.notes.into_iter().map(|note| ("note", note)));
                rows.into_iter().for_each(|(key, value)| say!("{key:12} {value}"));
            })
        }
    }
}

pub fn lease(asked: &Asked, command: LeaseCommand) -> Done {
    match command {
        LeaseCommand::Ls => asked.list(
            "/dhcp/leases",
            "no lease yet",
            &["ip", "mac", "hostname", "state", "expires", "network"],
            |lease: LeaseView| {
                vec![
                    lease.ip.to_string(),
                    lease.mac,
                    text(lease.hostname),
                    lease.state,
                    text(lease.expires),
                    lease.network,
                ]
            },
        ),
        LeaseCommand::Release { ip } => asked.change(
            Method::DELETE,
            &format!("/dhcp/leases/{}", escape(&ip)),
            None,
            &format!("the lease of {ip} is forgotten"),
        ),
        LeaseCommand::Reserve { mac, ip, hostname } => {
            let address =
                ip.parse().map_err(|_| format!("`{ip}` is not an address: write it as 10.20.0.10"))?;
            let body = json!(ReservationInput { mac: mac.clone(), ip: address, hostname });
            asked.change(
                Method::POST,
                "/dhcp/reservations",
                Some(body),
                &format!("{ip} is reserved for {mac}"),
            )
        }
        LeaseCommand::Unreserve { mac } => asked.change(
            Method::DELETE,
            &format!("/dhcp/reservations/{}", escape(&mac)),
            None,
            &format!("{mac} has no reservation any more"),
        ),
    }
}

pub fn dns(asked: &Asked, command: DnsCommand) -> Done {
    match command {
        DnsCommand::Ls => asked.list(
            "/dns/records",
            "no record",
            &["name", "type", "value", "ttl", "source"],
            |record: RecordView| {
                vec![record.name, record.rtype, record.value, record.ttl.to_string(), record.source]
            },
        ),
        DnsCommand::Add { name, rtype, value, ttl } => {
            let body =
                json!(RecordInput { name: name.clone(), rtype: rtype.clone(), value: value.join(" "), ttl });
            let added = asked.call(Method::POST, "/dns/records", Some(&body))?;
            if asked.json {
                say!("{added}");
                return Ok(());
            }
            // The whole name, for one without a final dot may be meant otherwise.
            let part = |key: &str, written: &str| added[key].as_str().unwrap_or(written).to_owned();
            say!("{} {} {} is added", part("name", &name), part("type", &rtype), part("value", ""));
            Ok(())
        }
        DnsCommand::Rm { name, rtype } => {
            let path = format!("/dns/records/{}/{}", escape(&name), escape(&rtype));
            asked.change(Method::DELETE, &path, None, &format!("{name} {rtype} is removed"))
        }
        DnsCommand::Flush { name } => dns_command::flush(asked, name),
        DnsCommand::Query { name, rtype } => dns_command::query(asked, name, rtype),
    }
}

impl Asked {
    pub fn call(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value, String> {
        self.client().call(method, path, body)
    }

    pub fn client(&self) -> ApiClient {
        let socket = match &self.place.socket {
            Some(socket) => socket.clone(),
            None => {
                let text = std::fs::read_to_string(&self.place.config).unwrap_or_default();
                Config::run_dir(&text).join("admin.sock")
            }
        };
        ApiClient::new(socket)
    }

    pub fn show<T: DeserializeOwned>(&self, answer: Value, print: impl FnOnce(T)) -> Done {
        if self.json {
            say!("{}", if answer.is_null() { json!({}) } else { answer });
            return Ok(());
        }
        let value = serde_json::from_value(answer);
        value.map(print).map_err(|error| format!("the answer is of another version: {error}"))
    }

    pub fn list<T: DeserializeOwned + Serialize>(
        &self,
        path: &str,
        empty: &str,
        headings: &[&str],
        row: impl Fn(T) -> Vec<String>,
    ) -> Done {
        let answer = self.call(Method::GET, path, None)?;
        self.show(answer, |page: Page<T>| {
            if page.items.is_empty() {
                say!("{empty}");
            } else {
                table_text::print(headings, &page.items.into_iter().map(row).collect::<Vec<_>>());
            }
        })
    }

    pub fn change(&self, method: Method, path: &str, body: Option<Value>, done: &str) -> Done {
        let answer = self.call(method, path, body.as_ref())?;
        if self.json {
            say!("{answer}")
        } else {
            say!("{done}");
            let notes = answer["notes"].as_array().into_iter().flatten();
            notes.filter_map(Value::as_str).for_each(|note| say!("note: {note}"));
            let warnings = answer["warnings"].as_array().into_iter().flatten();
            warn(warnings.filter_map(Value::as_str));
        }
        Ok(())
    }
}

/// Prints what works and should be looked at.
pub fn warn(warnings: impl IntoIterator<Item = impl std::fmt::Display>) {
    warnings.into_iter().for_each(|warning| say!("warning: {warning}"));
}

pub fn text(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// A blocklist on one line.
fn in_words(blocklist: &BlocklistView) -> String {
    let list = blocklist.list.as_deref().unwrap_or("names of the configuration");
    let mut words = format!("blocked by {list}: {} names", blocklist.names);
    if blocklist.allowed > 0 {
        words += &format!(", {} let through", blocklist.allowed);
    }
    if blocklist.skipped > 0 {
        let lines: Vec<String> = blocklist.first_skipped.iter().map(u64::to_string).collect();
        let more = if blocklist.skipped > lines.len() as u64 { ", …" } else { "" };
        words += &format!(", {} lines skipped ({}{more})", blocklist.skipped, lines.join(", "));
    }
    if blocklist.is_cut {
        words += ", cut because it is too long";
    }
    if let Some(read) = blocklist.read.as_ref().filter(|_| blocklist.list.is_some()) {
        words += &format!(", read {read}");
    }
    words + &format!(", {} questions", blocklist.blocked)
}

/// A path segment: whatever is not plain is written as its octets.
pub fn escape(segment: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~*:".contains(&b);
    segment.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}
