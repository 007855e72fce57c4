//! `proximity-lab up`: the appliance at work among apps, for people to look at.
//!
//! The outer half stays in the machine's own network, where a browser can reach it; the inner half
//! owns the lab. They share a directory and two unix sockets.

use std::{
    ffi::OsString,
    io::{self, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use clap::Args;
use proximity_lab::{
    App, DhcpClient, Lab, LabError, LabOptions, Node, WebServer, addresses, carry, deps,
    enter::{self, End},
    running::RunningLab,
};

/// How long an appliance may take to be ready, and an app to get its lease.
const PATIENCE: Duration = Duration::from_secs(30);
/// An appliance that dies sooner than this is broken, and not started again.
const SHORT_LIFE: Duration = Duration::from_secs(2);

/// Options of `up`.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// The appliance's binary [default: `proximity` beside this program]
    #[arg(long)]
    bin: Option<PathBuf>,
    /// Its configuration file [default: none, the defaults of the appliance]
    #[arg(long)]
    config: Option<PathBuf>,
    /// How many apps to start
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(0..=50))]
    apps: u8,
    /// Local port of the appliance's admin API; the next free one if taken
    #[arg(long, default_value_t = 9090)]
    ui_port: u16,
    /// Local port of the appliance's reverse proxy; the next free one if taken
    #[arg(long, default_value_t = 8080)]
    proxy_port: u16,
}

/// What the outer half tells the inner one.
#[derive(Debug, Clone, Args)]
pub(crate) struct InsideOptions {
    #[arg(long)]
    directory: PathBuf,
    #[arg(long)]
    bin: PathBuf,
    #[arg(long)]
    config: Option<PathBuf>,
    #[arg(long)]
    apps: u8,
    #[arg(long)]
    ui_port: u16,
    #[arg(long)]
    proxy_port: u16,
    /// How to call `exec` for this lab, shown in the tour.
    #[arg(long)]
    exec: String,
}

/// The outer half: ports, namespaces, and the end.
pub(crate) fn run(options: Options) -> Result<u8, LabError> {
    deps::check()?;
    let own = super::own_binary()?;
    let bin = appliance_binary(options.bin, &own)?;
    let ui = bind("admin API", options.ui_port)?;
    let proxy = bind("reverse proxy", options.proxy_port)?;
    let mut exec = format!("{} exec", enter::own_name());
    let alone = RunningLab::all().is_empty();
    let running = RunningLab::create()?;
    if !alone {
        exec += &format!(" --lab {}", running.id());
    }

    let mut command: Vec<OsString> = vec![own.clone().into(), "up-inside".into()];
    let mut pass = |name: &str, value: OsString| command.extend([name.into(), value]);
    pass("--directory", running.directory().into());
    pass("--bin", bin.into());
    if let Some(config) = options.config {
        pass("--config", absolute(&config)?.into());
    }
    pass("--apps", options.apps.to_string().into());
    pass("--ui-port", ui.1.to_string().into());
    pass("--proxy-port", proxy.1.to_string().into());
    pass("--exec", exec.into());

    carry::carry_in(ui.0, &running.directory().join("ui.sock"));
    carry::carry_in(proxy.0, &running.directory().join("proxy.sock"));
    say(format_args!("Starting lab {} (logs in {})\n", running.id(), running.directory().display()));
    let end = enter::run_inside(&own, &command, |first| {
        if let Err(error) = running.record_first(first) {
            eprintln!("proximity-lab: `exec` will not find this lab: {error}");
        }
    });
    match end {
        Ok(End::Interrupted(_)) => {
            running.remove();
            say(format_args!("\nLab {} is gone: no process, interface or file is left.\n", running.id()));
            Ok(0)
        }
        Ok(End::Exit(code)) => {
            say(format_args!(
                "\nLab {} has ended; logs are in {}\n",
                running.id(),
                running.directory().display()
            ));
            Ok(code)
        }
        Err(error) => {
            running.remove();
            Err(error)
        }
    }
}

/// The inner half: builds the lab and watches over the appliance.
pub(crate) fn run_inside(options: InsideOptions) -> Result<u8, LabError> {
    let start = Instant::now();
    let running = RunningLab::at(options.directory.clone());
    let lab = Lab::start(LabOptions {
        log_directory: Some(options.directory.clone()),
        progress: Some(Box::new(step)),
        ..LabOptions::default()
    })?;

    let mut started = Instant::now();
    let mut appliance = lab.supervise_appliance(&options.bin, options.config.as_deref())?;
    appliance.wait_ready(PATIENCE)?;
    step("appliance ready", started.elapsed());

    let apps = boot_apps(&lab, options.apps)?;
    carry_ports(&lab, &options)?;
    record(&lab, &apps, &running)?;
    say(format_args!("\n{}", tour(&options, &apps, start.elapsed())));

    loop {
        let status = loop {
            if let Ok(status) = appliance.process().wait(Duration::from_secs(3600)) {
                break status;
            }
        };
        say(format_args!("The appliance has ended ({status}).\n"));
        if started.elapsed() < SHORT_LIFE {
            return Err(LabError::Invalid(format!(
                "it does not stay up; its log ends with:\n{}",
                last_lines(&appliance.process().log())
            )));
        }
        started = Instant::now();
        appliance = lab.supervise_appliance(&options.bin, options.config.as_deref())?;
        appliance.wait_ready(PATIENCE)?;
        say(format_args!("Started again: ready after {} ms.\n", started.elapsed().as_millis()));
    }
}

/// An app and the address it was given.
struct Leased {
    app: App,
    address: Ipv4Addr,
}

fn boot_apps(lab: &Lab, count: u8) -> Result<Vec<Leased>, LabError> {
    let mut apps = Vec::new();
    for number in 0..count {
        let start = Instant::now();
        let (name, client, server) = recipe(number);
        let app = lab.app(&name, client, server)?;
        let address = app.wait_lease(PATIENCE)?;
        step(&format!("app {name} ({client:?}, {server:?}) has {address}"), start.elapsed());
        apps.push(Leased { app, address });
    }
    Ok(apps)
}

/// The three kinds of DHCP client in turn.
fn recipe(number: u8) -> (String, DhcpClient, WebServer) {
    let round = number / 3 + 1;
    match number % 3 {
        0 => (format!("nginx-{round:02}"), DhcpClient::Udhcpc, WebServer::Nginx),
        1 => (numbered("wiki", round), DhcpClient::Dhclient, WebServer::Busybox),
        _ => (numbered("blog", round), DhcpClient::Dhcpcd, WebServer::Busybox),
    }
}

fn numbered(name: &str, round: u8) -> String {
    if round == 1 { name.to_owned() } else { format!("{name}-{round:02}") }
}

fn carry_ports(lab: &Lab, options: &InsideOptions) -> Result<(), LabError> {
    for (socket, port) in [("ui.sock", 9090), ("proxy.sock", 80)] {
        let target = SocketAddr::from((addresses::APPLIANCE_WAN, port));
        carry::carry_out(&options.directory.join(socket), Arc::clone(lab.client()), target)?;
    }
    Ok(())
}

fn record(lab: &Lab, apps: &[Leased], running: &RunningLab) -> Result<(), LabError> {
    let fixed: [(&str, &Arc<Node>); 5] = [
        ("host", lab.host()),
        ("router", lab.router()),
        ("internet", lab.internet()),
        ("client", lab.client()),
        ("appliance", lab.appliance()),
    ];
    let mut nodes: Vec<_> = fixed.iter().map(|(name, node)| (*name, node.pid())).collect();
    nodes.extend(apps.iter().map(|leased| (leased.app.spec().name.as_str(), leased.app.node().pid())));
    running.record_nodes(&nodes)
}

fn tour(options: &InsideOptions, apps: &[Leased], took: Duration) -> String {
    let InsideOptions { ui_port, proxy_port, exec, bin, .. } = options;
    let mut text = format!("The lab is up after {:.1} s.\n\n", took.as_secs_f64());
    text += &format!(
        "  {:<14} {:<16} {:<34} {}\n",
        "APP", "ADDRESS", "URL ON THE MANAGEMENT LAN", "DHCP CLIENT, SERVER"
    );
    for Leased { app, address } in apps {
        let spec = app.spec();
        let url = format!("http://{}.prox.local/", spec.name);
        let made_of = format!("{:?}, {:?}", spec.client, spec.server).to_lowercase();
        text += &format!("  {:<14} {:<16} {url:<34} {made_of}\n", spec.name, address.to_string());
    }
    text += &format!(
        "
  On this machine   admin API        http://127.0.0.1:{ui_port}/api/v1/appliance/   (with the token, see below)
                    reverse proxy    http://127.0.0.1:{proxy_port}/   (by Host header)
  Management LAN    192.168.1.0/24   router .1, appliance .2, client .50 (Proxmox UI on :8006)
  App LAN           10.20.0.0/24     appliance .1, apps by DHCP
  Internet          203.0.113.10     http://www.example.com/, DNS on 8.8.8.8 and 1.1.1.1
"
    );
    if let Some(first) = apps.first() {
        let name = &first.app.spec().name;
        let sibling = &apps.last().unwrap_or(first).app.spec().name;
        let bin = bin.display();
        text += &format!(
            "
To try, in another terminal:
  # An app from this machine, through the reverse proxy
  curl -H 'Host: {name}.prox.local' http://127.0.0.1:{proxy_port}/
  # By its name from the management LAN, and from another app
  {exec} client -- curl -s http://{name}.prox.local/
  {exec} {sibling} -- curl -s http://{name}.prox.local/
  # DNS, forward and reverse, as an app sees it
  {exec} {sibling} -- busybox nslookup {name}.prox.local
  {exec} {sibling} -- busybox nslookup {address}
  # An app reaches the internet, but neither the management LAN nor the admin API
  {exec} {name} -- curl -s http://www.example.com/
  {exec} {name} -- curl -sm 3 http://192.168.1.50:8006/ || echo blocked
  {exec} {name} -- curl -sm 3 http://10.20.0.1:9090/ || echo blocked
  # What the appliance knows
  {exec} appliance -- {bin} app ls
  {exec} appliance -- {bin} status
  # The same over the admin API
  TOKEN=$({exec} appliance -- cat /var/lib/proximity/admin.token)
  curl -H \"Authorization: Bearer $TOKEN\" http://127.0.0.1:{ui_port}/api/v1/appliance/apps/{name}
  # Its configuration is read again without a restart
  {exec} appliance -- sh -c 'mkdir -p /etc/proximity; echo log_level=0 > /etc/proximity/proximity.toml'
  {exec} appliance -- {bin} reload     # refused, with the line and a hint; nothing stops
  {exec} appliance -- sh -c ': > /etc/proximity/proximity.toml'
  {exec} appliance -- {bin} reload
  # Another name for an app, at once and for good
  {exec} appliance -- {bin} vhost add docs {name}:80
  curl -H 'Host: docs.prox.local' http://127.0.0.1:{proxy_port}/
",
            address = first.address,
        );
    }
    text + "\nCtrl-C ends the lab.\n"
}

fn appliance_binary(wanted: Option<PathBuf>, own: &Path) -> Result<PathBuf, LabError> {
    let binary = wanted.unwrap_or_else(|| own.with_file_name("proximity"));
    if !binary.is_file() {
        return Err(LabError::Invalid(format!(
            "no appliance binary at {}: build it with `cargo build --bin proximity`, or give --bin PATH",
            binary.display()
        )));
    }
    absolute(&binary)
}

fn absolute(path: &Path) -> Result<PathBuf, LabError> {
    path.canonicalize().map_err(|source| LabError::File { path: path.to_owned(), source })
}

fn bind(what: &str, wanted: u16) -> Result<(TcpListener, u16), LabError> {
    let listener = carry::bind_local(wanted)?;
    let port = listener
        .local_addr()
        .map_err(|source| LabError::Spawn { command: format!("listening for the {what}"), source })?
        .port();
    if port != wanted {
        say(format_args!("Port {wanted} is taken: the {what} is on {port}.\n"));
    }
    Ok((listener, port))
}

fn step(name: &str, took: Duration) {
    say(format_args!("  {name:<62} ok {:>6} ms\n", took.as_millis()));
}

/// Prints at once, also into a pipe; a reader that has gone away does not end the lab.
fn say(text: std::fmt::Arguments<'_>) {
    let mut out = io::stdout().lock();
    let _ = out.write_fmt(text).and_then(|()| out.flush());
}

fn last_lines(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(12)..].join("\n")
}
