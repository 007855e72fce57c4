//! `proximity explain …`

use hyper::Method;
use proximity_admin::ExplainView;

use crate::commands::{Asked, Done, escape};
use crate::say;

pub fn run(asked: &Asked, name: &str, from: Option<&str>) -> Done {
    let paths = questions(name, from);
    let mut found = None;
    for path in &paths {
        found = asked.client().find(path)?;
        if found.is_some() {
            break;
        }
    }
    let answer = match found {
        Some(answer) => answer,
        // It says what there is instead.
        None => asked.call(Method::GET, &paths[0], None)?,
    };
    asked.show(answer, |told: ExplainView| {
        say!("{}: {}", told.name, told.title);
        if told.verdict != "ok" {
            say!("{} {}", told.why, told.advice);
        }
        let width = told.steps.iter().map(|step| step.step.len()).max().unwrap_or(0);
        for step in told.steps {
            say!("  {} {:width$}  {}", if step.ok { "ok  " } else { "FAIL" }, step.step, step.says);
        }
    })
}

/// What is asked of the API, at least one, in this order until there is something: a number is a TCP port, else a UDP
/// port.
fn questions(name: &str, from: Option<&str>) -> Vec<String> {
    let of_port = |protocol: &str, port: u16| format!("/forwards/{protocol}/{port}/explain");
    if let Ok(port) = name.parse::<u16>() {
        return vec![of_port("tcp", port), of_port("udp", port)];
    }
    let forward = name.split_once('/').filter(|(protocol, _)| ["tcp", "udp"].contains(protocol));
    if let Some((protocol, Ok(port))) = forward.map(|(protocol, port)| (protocol, port.parse::<u16>())) {
        return vec![of_port(protocol, port)];
    }
    let (host, path) = host_and_path(name);
    let mut query = format!("?path={}", escape(path));
    if let Some(from) = from {
        query.push_str(&format!("&from={}", escape(from)));
    }
    vec![format!("/apps/{}/explain{query}", escape(host))]
}

/// A host name and the path behind it, of something that may have been copied from a browser.
fn host_and_path(name: &str) -> (&str, &str) {
    let plain = ["http://", "https://"].iter().find_map(|scheme| name.strip_prefix(scheme)).unwrap_or(name);
    let plain = plain.split_once('#').map_or(plain, |(plain, _)| plain);
    let (authority, path) = match plain.find('/') {
        Some(at) => plain.split_at(at),
        None => (plain, "/"),
    };
    let is_port = |port: &str| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    let host =
        authority.rsplit_once(':').filter(|(_, port)| is_port(port)).map_or(authority, |(host, _)| host);
    (host, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_names_an_app_or_a_port_is_understood() {
        assert_eq!(host_and_path("wiki"), ("wiki", "/"));
        assert_eq!(host_and_path("wiki.prox.local/api/x?y=1"), ("wiki.prox.local", "/api/x?y=1"));
        assert_eq!(host_and_path("https://wiki.prox.local:443/a#b"), ("wiki.prox.local", "/a"));
        assert_eq!(host_and_path("http://wiki.prox.local"), ("wiki.prox.local", "/"));
        let forward = "/forwards/udp/53/explain".to_owned();
        assert_eq!(questions("udp/53", None), [&*forward]);
        assert_eq!(questions("53", None), ["/forwards/tcp/53/explain".to_owned(), forward]);
        assert_eq!(questions("tcp/x", None), ["/apps/tcp/explain?path=%2Fx"]);
        let from = questions("wiki/a b", Some("fd00::1"));
        assert_eq!(from, ["/apps/wiki/explain?path=%2Fa%20b&from=fd00::1"]);
    }
}
