//! The peers, each with one worker, and the backend behind the proxies.

use std::io;
use std::net::SocketAddrV4;
use std::path::{Path, PathBuf};

use crate::error::BenchError;
use crate::process::{Server, free_address, get};
use crate::{tools, world};

/// The small answer: 101 octets.
pub const SMALL: &str = "/";
/// The large answer: 1 MiB.
pub const LARGE: &str = "/mebibyte";
const SMALL_OCTETS: usize = 101;
const LARGE_OCTETS: usize = 1 << 20;

/// What every nginx here has: one process that is its own worker, nothing outside `dir`. It keeps its user,
/// which may be the only one there is.
fn nginx(name: &str, dir: &Path, http: &str) -> Result<Server, BenchError> {
    let home = dir.join(name.replace([' ', ','], "-"));
    std::fs::create_dir_all(&home)?;
    let places: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|part| format!("{part}_temp_path {}/{part};\n", home.display()))
        .collect();
    let text = format!(
        "user root;\ndaemon off;\nmaster_process off;\nworker_processes 1;\npid {home}/pid;\nerror_log stderr warn;\n\
         events {{ worker_connections 16384; }}\nhttp {{\nkeepalive_requests 1000000000;\n{places}{http}\n}}\n",
        home = home.display()
    );
    let file = home.join("nginx.conf");
    write(&file, text)?;
    let arguments = ["-p", path(&home), "-e", "stderr", "-c", path(&file)].map(str::to_owned);
    Server::start(name, &program("nginx"), &arguments, dir)
}

/// The backend of all proxies.
pub fn backend(dir: &Path) -> Result<(Server, SocketAddrV4), BenchError> {
    let address = free_address()?;
    let www = dir.join("www");
    std::fs::create_dir_all(&www)?;
    std::fs::write(www.join(LARGE.trim_start_matches('/')), vec![b'x'; LARGE_OCTETS])?;
    let http = format!(
        "access_log off; sendfile on; server {{ listen {address}; location = / {{ return 200 \"{}\\n\"; }} \
         location / {{ root {}; }} }}",
        "0".repeat(SMALL_OCTETS - 1),
        www.display()
    );
    let mut server = nginx("backend", dir, &http)?;
    check_http(&mut server, address)?;
    Ok((server, address))
}

/// nginx as a reverse proxy with kept connections and the three headers, with its usual access log or none.
/// Listens for HTTP/1 at the first address and for HTTP/2 at the second.
pub fn nginx_proxy(
    dir: &Path,
    backend: SocketAddrV4,
    log: Option<&Path>,
) -> Result<(Server, SocketAddrV4, SocketAddrV4), BenchError> {
    let (address, http2) = (free_address()?, free_address()?);
    let name = if log.is_some() { "nginx, access log on" } else { "nginx, access log off" };
    let log = log.map_or("off".to_owned(), |dir| dir.join("access.log").display().to_string());
    let http = format!(
        "access_log {log};\nupstream backend {{ server {backend}; keepalive 2048; keepalive_requests 1000000000; }}\n\
         server {{ listen {address} backlog=4096; listen {http2} http2; location / {{ proxy_pass http://backend; \
         proxy_http_version 1.1; proxy_set_header Connection \"\"; proxy_set_header X-Real-IP $remote_addr; \
         proxy_set_header X-Forwarded-For $remote_addr; proxy_set_header X-Forwarded-Proto $scheme; }} }}"
    );
    let mut server = nginx(name, dir, &http)?;
    check_http(&mut server, address)?;
    Ok((server, address, http2))
}

/// HAProxy with one thread, kept connections and the three headers.
pub fn haproxy(
    program: &Path,
    dir: &Path,
    backend: SocketAddrV4,
) -> Result<(Server, SocketAddrV4), BenchError> {
    let address = free_address()?;
    let text = format!(
        "global\n nbthread 1\n maxconn 4096\n\
         defaults\n mode http\n timeout connect 5s\n timeout client 60s\n timeout server 60s\n\
         listen proxy\n bind {address} backlog 4096\n option forwardfor\n http-reuse always\n\
         \x20http-request set-header X-Real-IP %[src]\n\
         \x20http-request set-header X-Forwarded-Proto http\n server backend {backend}\n"
    );
    let file = dir.join("haproxy.cfg");
    write(&file, text)?;
    let mut server =
        Server::start("HAProxy", program, &["-db", "-q", "-f", path(&file)].map(str::to_owned), dir)?;
    check_http(&mut server, address)?;
    Ok((server, address))
}

/// Caddy on one processor, with kept connections and the three headers, two of which it sets by itself.
pub fn caddy(
    program: &Path,
    dir: &Path,
    backend: SocketAddrV4,
) -> Result<(Server, SocketAddrV4), BenchError> {
    let address = free_address()?;
    let text = format!(
        "{{\n admin off\n auto_https off\n grace_period 1s\n}}\n\
         :{port} {{\n bind {ip}\n reverse_proxy {backend} {{\n header_up X-Real-IP {{remote_host}}\n\
         \x20transport http {{\n keepalive_idle_conns_per_host 2048\n }}\n }}\n}}\n",
        port = address.port(),
        ip = address.ip(),
    );
    let file = dir.join("Caddyfile");
    write(&file, text)?;
    let home = dir.join("caddy");
    std::fs::create_dir_all(&home)?;
    let mut words = vec!["GOMAXPROCS=1".to_owned()];
    for variable in ["HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"] {
        words.push(format!("{variable}={}", home.display()));
    }
    words.push(path(program).to_owned());
    words.extend(["run", "--adapter", "caddyfile", "--config", path(&file)].map(str::to_owned));
    let env = tools::find("env").unwrap_or_else(|| PathBuf::from("env"));
    let mut server = Server::start("Caddy", &env, &words, dir)?;
    check_http(&mut server, address)?;
    Ok((server, address))
}

/// Waits until a proxy serves, and sees that it serves what it should.
pub fn check_http(server: &mut Server, address: SocketAddrV4) -> Result<(), BenchError> {
    for (path, octets) in [(SMALL, SMALL_OCTETS), (LARGE, LARGE_OCTETS)] {
        server.wait_until(|| {
            let body = get(address, &world::host(0), path)?;
            let is_right = body.len() == octets;
            is_right.then_some(()).ok_or_else(|| io::Error::other(format!("{path}: {} octets", body.len())))
        })?;
    }
    Ok(())
}

/// Writes a configuration.
pub fn write(file: &Path, text: String) -> Result<(), BenchError> {
    std::fs::write(file, text).map_err(|source| BenchError::File { path: file.to_owned(), source })
}

/// Where a program is that there must be.
pub fn program(name: &str) -> PathBuf {
    tools::find(name).unwrap_or_else(|| PathBuf::from(name))
}

/// A path as an argument.
pub fn path(path: &Path) -> &str {
    path.to_str().unwrap_or_default()
}
