use std::fmt::Write;

use crate::Reason;
use crate::escape::{html, push_json};

/// Seconds after which a browser asks a starting app again.
const REFRESH: &str = "2";

/// The answer to a request that no backend gets: what happened, why, and what to do.
#[derive(Clone, Debug)]
pub struct Page<'a> {
    /// What happened.
    pub reason: Reason,
    /// The host that was asked for; only what the client itself wrote.
    pub host: &'a str,
    /// For a client inside an app network: what others do not learn.
    pub inside: Option<Inside>,
}

/// What only clients in the app networks are told.
#[derive(Clone, Debug, Default)]
pub struct Inside {
    /// What was seen of the app, e.g. by the last probe.
    pub detail: Option<String>,
    /// Apps to go to instead.
    pub apps: Vec<AppLink>,
}

/// An app in the list of an unknown-host page.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct AppLink {
    /// Its name.
    pub name: String,
    /// Its host name.
    pub host: String,
}

/// A page as it is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    /// Status code.
    pub status: u16,
    /// Field lines with their ends, without those that frame the message.
    pub fields: Vec<u8>,
    /// The body.
    pub body: Vec<u8>,
}

pub struct Words {
    pub title: &'static str,
    pub why: &'static str,
    pub advice: &'static str,
}

impl Page<'_> {
    /// The response: `application/problem+json` (RFC 9457) for a client that prefers JSON, else HTML.
    pub fn render(&self, as_json: bool) -> Rendered {
        let words = words(self.reason);
        let body = if as_json { self.problem(&words) } else { self.html(&words).into_bytes() };
        let kind = if as_json { "application/problem+json" } else { "text/html; charset=utf-8" };
        let mut fields = format!("Content-Type: {kind}\r\nCache-Control: no-store\r\n");
        match self.reason {
            // What ends by itself, in seconds as a rule.
            Reason::Starting | Reason::QueueFull | Reason::QueueTimeout | Reason::AuthBusy => {
                let _ = write!(fields, "Retry-After: {REFRESH}\r\n");
            }
            Reason::ConnectMethod | Reason::MaxForwards => {
                fields.push_str("Allow: GET, HEAD, POST, PUT, DELETE, PATCH, OPTIONS\r\n")
            }
            _ => {}
        }
        Rendered { status: self.reason.status(), fields: fields.into_bytes(), body }
    }

    fn html(&self, words: &Words) -> String {
        let mut page = String::with_capacity(2048);
        page.push_str("<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n");
        page.push_str("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n");
        if self.reason == Reason::Starting {
            let _ = writeln!(page, "<meta http-equiv=\"refresh\" content=\"{REFRESH}\">");
        }
        let _ = writeln!(page, "<title>{}</title>", words.title);
        page.push_str(STYLE);
        let _ = writeln!(page, "</head>\n<body>\n<main>\n<p class=\"code\">{}</p>", self.reason.status());
        let _ = writeln!(page, "<h1>{}</h1>", words.title);
        if !self.host.is_empty() {
            let _ = writeln!(page, "<p class=\"host\">{}</p>", html(self.host));
        }
        let _ = writeln!(page, "<p>{}</p>\n<p>{}</p>", words.why, words.advice);
        if let Some(inside) = &self.inside {
            if let Some(detail) = &inside.detail {
                let _ = writeln!(page, "<p class=\"detail\">{}</p>", html(detail));
            }
            if !inside.apps.is_empty() {
                page.push_str("<h2>Apps</h2>\n<ul>\n");
                // By the scheme and port that led here: the listener is what all apps share.
                let port = port(self.host);
                for app in &inside.apps {
                    let (name, host) = (html(&app.name), html(&app.host));
                    let _ =
                        writeln!(page, "<li><a href=\"//{host}{port}/\">{name}</a> <span>{host}</span></li>");
                }
                page.push_str("</ul>\n");
            }
        }
        page.push_str("</main>\n</body>\n</html>\n");
        page
    }

    fn problem(&self, words: &Words) -> Vec<u8> {
        let mut json = Vec::with_capacity(512);
        let field = |json: &mut Vec<u8>, name: &str, value: &str| {
            json.push(b',');
            push_json(json, name.as_bytes());
            json.push(b':');
            push_json(json, value.as_bytes());
        };
        json.extend_from_slice(format!("{{\"status\":{}", self.reason.status()).as_bytes());
        field(&mut json, "title", words.title);
        field(&mut json, "detail", words.why);
        field(&mut json, "hint", words.advice);
        field(&mut json, "reason", self.reason.as_str());
        field(&mut json, "host", self.host);
        if let Some(inside) = &self.inside {
            if let Some(detail) = &inside.detail {
                field(&mut json, "seen", detail);
            }
            if !inside.apps.is_empty() {
                json.extend_from_slice(b",\"apps\":[");
                for (at, app) in inside.apps.iter().enumerate() {
                    json.extend_from_slice(if at == 0 { b"{\"name\":" } else { b",{\"name\":" });
                    push_json(&mut json, app.name.as_bytes());
                    field(&mut json, "host", &app.host);
                    json.push(b'}');
                }
                json.push(b']');
            }
        }
        json.extend_from_slice(b"}\n");
        json
    }
}

/// The port of an authority with its colon, when it names one.
fn port(authority: &str) -> &str {
    let colon = authority.rfind(':').unwrap_or(authority.len());
    let port = &authority[colon..];
    if port.len() > 1 && port[1..].bytes().all(|octet| octet.is_ascii_digit()) { port } else { "" }
}

pub fn words(reason: Reason) -> Words {
    let (title, why, advice) = match reason {
        Reason::UnknownHost => (
            "No app answers to this name",
            "The name leads to this appliance, but no app has it.",
            "Check the spelling of the address. A new app answers as soon as its container has an address.",
        ),
        Reason::Stopped => (
            "This app is stopped",
            "The container that this address leads to is not on the network: it has no address at the moment.",
            "Start the container, then load this page again.",
        ),
        Reason::Starting => (
            "This app is starting",
            "The container is on the network, and its web server has not answered yet.",
            "This page loads itself again every few seconds. If it stays, look into the log of the app.",
        ),
        Reason::Disabled => (
            "This app is switched off",
            "The administrator has disabled this address.",
            "Ask the administrator of this network to enable it.",
        ),
        Reason::Misconfigured => (
            "This address is set up wrongly",
            "Its header edits or its users cannot be carried out as they stand, so nobody is let through.",
            "Ask the administrator to set them again: the command \u{201c}vhost set\u{201d} says what is refused.",
        ),
        Reason::Forbidden => (
            "This app is not open to you",
            "The administrator lets only certain addresses or apps in here.",
            "Ask the administrator of this network, or come from another place.",
        ),
        Reason::Unauthorized => (
            "Name and password, please",
            "This app is shown only to those who can tell who they are.",
            "Load the page again and give the name and password that you were given.",
        ),
        Reason::AuthUnavailable => (
            "Nobody can check who you are",
            "The service that decides who may see this app does not answer.",
            "Ask the administrator to look after that service, then load this page again.",
        ),
        Reason::AuthBusy => (
            "Too many passwords at a time",
            "Others are trying passwords, and each takes a moment to check.",
            "Wait a little, then load this page again.",
        ),
        Reason::RateLimited | Reason::ClientConnections => (
            "Too many requests",
            "More requests came from your address than this app takes.",
            "Wait a little, then load this page again.",
        ),
        Reason::HeadTooLarge => (
            "That was too much in one go",
            "The header of your request is larger than this appliance takes. Mostly that is cookies.",
            "Remove the cookies of this address in your browser, then load the page again.",
        ),
        Reason::UriTooLong => (
            "That address is too long",
            "The address that you asked for is longer than this appliance takes.",
            "Go back and ask for less at a time.",
        ),
        Reason::MaxForwards => (
            "Nobody behind this appliance was to be asked",
            "The request says by Max-Forwards that it goes no further than this appliance.",
            "Leave Max-Forwards out to ask the app.",
        ),
        Reason::BodyTooLarge => (
            "That was too large",
            "What you sent is larger than this app takes.",
            "Send less, or ask the administrator to raise the limit.",
        ),
        Reason::QueueFull | Reason::QueueTimeout => (
            "This app is busy",
            "The app has as many requests as it can work on, and others wait already.",
            "Wait a little, then load this page again.",
        ),
        Reason::BackendRefused => (
            "The app does not accept connections",
            "The container is there, and nothing in it listens on the expected port.",
            "Check that the app's web server runs and on which port, then load this page again.",
        ),
        Reason::BackendTimedOut => (
            "The app does not respond",
            "No connection to the container came about in time.",
            "Check that the container runs and that its firewall lets this appliance in.",
        ),
        Reason::BackendTls => (
            "No encrypted connection to the app",
            "The container takes connections, but no encrypted one came about.",
            "Check that its port speaks HTTPS.",
        ),
        Reason::BackendUntrusted => (
            "The app's certificate was not accepted",
            "The app does not prove to be the one that the administrator wants here.",
            "Check who signed its certificate, for which name, and until when it holds: \u{201c}proximity explain\u{201d} says which of these it is.",
        ),
        Reason::BackendSlow | Reason::TotalTimeout => (
            "The app is too slow",
            "The app took the request and did not answer in time.",
            "Load the page again. If it happens again, look into the log of the app.",
        ),
        Reason::BackendBroke | Reason::BackendCut | Reason::BackendLeft => (
            "The app broke off",
            "The app closed the connection without a valid answer.",
            "Load the page again. If it happens again, look into the log of the app.",
        ),
        Reason::BackendNonsense => (
            "The app does not speak HTTP",
            "What the app answered could not be understood.",
            "Check the port and the protocol of this app: it may speak HTTPS, or no HTTP at all.",
        ),
        Reason::Stopping => {
            ("The appliance restarts", "This appliance is about to stop.", "Load the page again in a moment.")
        }
        Reason::ConnectMethod => (
            "Method not allowed",
            "CONNECT asks for a tunnel, and this is not a forward proxy.",
            "Remove this appliance from the proxy settings of the client.",
        ),
        Reason::MissingHost => (
            "Bad request",
            "The request has no Host header, so no app can be found for it.",
            "Send exactly one Host header.",
        ),
        Reason::DuplicateHost => {
            ("Bad request", "The request has more than one Host header.", "Send exactly one Host header.")
        }
        Reason::InvalidHost => (
            "Bad request",
            "The host of the request is not a name with an optional port.",
            "Send a Host such as \u{201c}app.prox.local\u{201d}.",
        ),
        Reason::InvalidTarget | Reason::PathRefused => (
            "Bad request",
            "The path of the request could be understood in more than one way.",
            "Send a path without encoded slashes and without steps above its root.",
        ),
        Reason::UploadSlow => (
            "The request did not arrive",
            "The rest of what you were sending did not come in time.",
            "Try again, perhaps over a better connection.",
        ),
        _ => ("Bad request", "The request could not be understood.", "Send a valid HTTP/1.1 request."),
    };
    Words { title, why, advice }
}

const STYLE: &str = "<style>
:root { color-scheme: light dark; --back: #f6f7f9; --fore: #1c2330; --dim: #667085; --line: #d9dde5; }
@media (prefers-color-scheme: dark) { :root { --back: #12161d; --fore: #e6e9ef; --dim: #98a2b3; --line: #2b3340; } }
body { margin: 0; background: var(--back); color: var(--fore); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 34rem; margin: 15vh auto 2rem; padding: 0 1.5rem; }
h1 { margin: 0 0 .5rem; font-size: 1.6rem; line-height: 1.2; }
h2 { margin: 2rem 0 .5rem; font-size: 1.1rem; }
.code, .host, li span { margin: 0; color: var(--dim); font-family: ui-monospace, monospace; }
.host, .detail, li { overflow-wrap: anywhere; }
.detail { padding: .5rem .75rem; border: 1px solid var(--line); border-radius: .4rem; }
ul { margin: 0; padding: 0; list-style: none; }
li { display: flex; flex-wrap: wrap; gap: 0 .6rem; padding: .35rem 0; border-top: 1px solid var(--line); }
a { color: inherit; }
</style>
";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::accept::prefers_json;

    fn page(reason: Reason, inside: Option<Inside>) -> Page<'static> {
        Page { reason, host: "<b>.prox.local", inside }
    }

    fn render(page: &Page<'_>, accept: &str) -> (Rendered, String) {
        let rendered = page.render(prefers_json(std::iter::once(accept.as_bytes())));
        let text = String::from_utf8(rendered.body.clone()).unwrap();
        (rendered, text)
    }

    fn says(rendered: &Rendered, field: &str) -> bool {
        let fields = std::str::from_utf8(&rendered.fields).unwrap();
        fields.lines().any(|line| line == field)
    }

    fn inside() -> Option<Inside> {
        let apps = vec![AppLink { name: "wiki".into(), host: "wiki.prox.local".into() }];
        Some(Inside { detail: Some("10.20.0.9 <refused>".into()), apps })
    }

    #[test]
    fn apps_and_details_are_for_insiders_only() {
        for accept in ["text/html", "application/json"] {
            let (_, outside) = render(&page(Reason::UnknownHost, None), accept);
            assert!(!outside.contains("wiki") && !outside.contains("10.20.0.9"), "{outside}");
            let (_, within) = render(&page(Reason::UnknownHost, inside()), accept);
            assert!(within.contains("wiki.prox.local") && within.contains("10.20.0.9"), "{within}");
        }
    }

    #[test]
    fn apps_are_linked_by_the_port_that_led_here() {
        for (host, link) in [
            ("nobody.prox.local", "\"//wiki.prox.local/\""),
            ("nobody.prox.local:8080", "\"//wiki.prox.local:8080/\""),
            ("nobody.prox.local:", "\"//wiki.prox.local/\""),
            ("nobody:\"8080", "\"//wiki.prox.local/\""),
            ("", "\"//wiki.prox.local/\""),
        ] {
            let page = Page { host, ..page(Reason::UnknownHost, inside()) };
            let (_, text) = render(&page, "text/html");
            assert!(text.contains(&format!("<a href={link}>")), "{host}: {text}");
        }
    }

    #[test]
    fn pages_say_what_to_do_and_cannot_be_injected_into() {
        for reason in Reason::ALL {
            let (response, text) = render(&page(reason, inside()), "text/html,application/xhtml+xml");
            assert!((400..600).contains(&response.status), "{reason:?}");
            assert!(text.starts_with("<!doctype html>") && text.ends_with("</html>\n"));
            assert!(!text.contains("<b>") && !text.contains("<refused>"), "{text}");
            assert_eq!(text.matches("<p>").count(), 2);
        }
    }

    #[test]
    fn a_starting_app_asks_to_come_back() {
        let (response, text) = render(&page(Reason::Starting, None), "text/html");
        assert_eq!(response.status, 503);
        assert!(says(&response, "Retry-After: 2"));
        assert!(text.contains("http-equiv=\"refresh\""));
        assert!(!render(&page(Reason::Stopped, None), "text/html").1.contains("http-equiv"));
    }

    #[test]
    fn api_clients_get_a_problem_document() {
        let (response, text) = render(&page(Reason::BackendTimedOut, inside()), "application/json");
        assert!(says(&response, "Content-Type: application/problem+json"));
        let problem: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(problem["status"], 504);
        assert_eq!(problem["reason"], "backend_timed_out");
        assert_eq!(problem["host"], "<b>.prox.local");
        assert_eq!(problem["apps"][0]["host"], "wiki.prox.local");
        let (response, _) = render(&page(Reason::Stopped, None), "*/*");
        assert!(says(&response, "Content-Type: text/html; charset=utf-8"));
    }
}
