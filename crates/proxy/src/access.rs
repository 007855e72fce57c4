use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use proximity_table::{LogPolicy, LogSettings, Route};

use crate::Reason;
use crate::escape::{push_json, push_millionths, push_number};
use crate::http1::{RequestHead, Version};

/// What every line begins with; the time follows.
pub const BEGINNING: &[u8] = b"{\"level\":\"info\",\"ts\":";
/// Octets of a header field that are shown.
const LONGEST_FIELD: usize = 512;
/// Caddy's word for what is not shown.
const REDACTED: &[u8] = b"REDACTED";

/// One answered request, in the words of Caddy's access log; what Caddy has no word for follows.
#[derive(Debug)]
pub struct Line<'a> {
    /// When the request arrived, in microseconds since the Unix epoch.
    pub at_micros: u64,
    /// The fields of the client, made once for each connection by [`client_fields`].
    pub client: &'a str,
    pub version: Version,
    pub method: &'a [u8],
    pub host: &'a [u8],
    pub uri: &'a [u8],
    pub shown: Shown<'a>,
    /// Whether values in queries are left out.
    pub redact_query: bool,
    /// Octets of the request's body.
    pub received: u64,
    /// Who asked, by password or in the words of the service that was asked who may pass; empty where nobody is known.
    pub user: &'a [u8],
    pub duration_micros: u64,
    /// Octets of the response's body.
    pub size: u64,
    pub status: u16,
    /// `address:port` of the backend that answered, or of the last that was tried.
    pub backend: Option<&'a str>,
    /// Why the proxy itself answered, or why the answer broke off.
    pub reason: Option<Reason>,
    /// Whether the answer broke off after its head.
    pub aborted: bool,
}

/// What of a request's header is logged: what statistics are made of. A log must not hold credentials, so these
/// are chosen, and the rest stays out whatever its name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shown<'a> {
    /// `User-Agent`
    pub user_agent: Option<&'a [u8]>,
    /// `Referer`
    pub referer: Option<&'a [u8]>,
}

/// Log lines of one data thread until the writer gets them.
#[derive(Debug, Default)]
pub struct Batch {
    /// Lines as text.
    pub text: Vec<u8>,
    /// Which vhost the lines belong to (`None`: no vhost), how many octets and how many lines they are.
    pub marks: Vec<(Option<Arc<Route>>, usize, u64)>,
}

impl Batch {
    /// Appends a line.
    pub fn push(&mut self, route: Option<&Arc<Route>>, line: &Line<'_>) {
        let before = self.text.len();
        line.write(&mut self.text);
        let length = self.text.len() - before;
        match self.marks.last_mut() {
            Some((last, octets, lines)) if same(last.as_ref(), route) => {
                *octets += length;
                *lines += 1;
            }
            _ => self.marks.push((route.cloned(), length, 1)),
        }
    }

    /// How many lines there are.
    pub fn lines(&self) -> u64 {
        self.marks.iter().map(|(_, _, lines)| lines).sum()
    }
}

impl Line<'_> {
    /// Appends the line with its end.
    pub fn write(&self, to: &mut Vec<u8>) {
        to.extend_from_slice(BEGINNING);
        push_millionths(to, self.at_micros);
        to.extend_from_slice(b",\"logger\":\"http.log.access\",\"msg\":\"handled request\",\"request\":{");
        to.extend_from_slice(self.client.as_bytes());
        to.extend_from_slice(match self.version {
            Version::Http10 => b",\"proto\":\"HTTP/1.0\",\"method\":",
            Version::Http11 => b",\"proto\":\"HTTP/1.1\",\"method\":",
            Version::Http2 => b",\"proto\":\"HTTP/2.0\",\"method\":",
        });
        push_json(to, self.method);
        to.extend_from_slice(b",\"host\":");
        push_json(to, &without_user(self.host));
        to.extend_from_slice(b",\"uri\":");
        push_json(to, &without_secrets(self.uri, self.redact_query));
        to.extend_from_slice(b",\"headers\":{");
        if let Some(agent) = self.shown.user_agent {
            to.extend_from_slice(b"\"User-Agent\":[");
            push_json(to, beginning(agent));
            to.push(b']');
        }
        if let Some(referer) = self.shown.referer {
            let name = if self.shown.user_agent.is_some() { ",\"Referer\":[" } else { "\"Referer\":[" };
            to.extend_from_slice(name.as_bytes());
            push_json(to, beginning(&without_secrets(referer, self.redact_query)));
            to.push(b']');
        }
        to.extend_from_slice(b"}},\"bytes_read\":");
        push_number(to, self.received);
        if self.user.is_empty() {
            to.extend_from_slice(b",\"user_id\":\"\",\"duration\":");
        } else {
            to.extend_from_slice(b",\"user_id\":");
            push_json(to, beginning(self.user));
            to.extend_from_slice(b",\"duration\":");
        }
        push_millionths(to, self.duration_micros);
        to.extend_from_slice(b",\"size\":");
        push_number(to, self.size);
        to.extend_from_slice(b",\"status\":");
        push_number(to, u64::from(self.status));
        // Neither words nor addresses have anything in them that JSON would want escaped.
        if let Some(backend) = self.backend {
            to.extend_from_slice(b",\"backend\":\"");
            to.extend_from_slice(backend.as_bytes());
            to.push(b'"');
        }
        if let Some(reason) = self.reason {
            to.extend_from_slice(b",\"reason\":\"");
            to.extend_from_slice(reason.as_str().as_bytes());
            to.push(b'"');
        }
        if self.aborted {
            to.extend_from_slice(b",\"aborted\":true");
        }
        to.extend_from_slice(b"}\n");
    }
}

impl<'a> Shown<'a> {
    /// What is logged of the head in `bytes`; of several fields of a name the first.
    pub fn of(head: &RequestHead, bytes: &'a [u8]) -> Shown<'a> {
        let mut shown = Shown::default();
        for field in &head.fields {
            let name = field.name.in_(bytes);
            let (place, wanted) = match name.len() {
                7 => (&mut shown.referer, &b"referer"[..]),
                10 => (&mut shown.user_agent, &b"user-agent"[..]),
                _ => continue,
            };
            if place.is_none() && name.eq_ignore_ascii_case(wanted) {
                *place = Some(field.value.in_(bytes));
            }
        }
        shown
    }
}

/// Whether a request is logged. Errors always are, and what got no answer (`status` 0); of the others one of so
/// many as the vhost or else the proxy has it: `turn` is another number each time, in turn or by chance.
pub fn wants(status: u16, policy: LogPolicy, settings: &LogSettings, turn: u64) -> bool {
    let sample = if policy.sample > 1 { policy.sample } else { settings.sample };
    settings.enabled
        && policy.enabled
        && (sample <= 1 || !(100..400).contains(&status) || turn.is_multiple_of(u64::from(sample)))
}

/// The fields of a client: the other end of the connection, and who asked if a trusted proxy asks for somebody.
pub fn client_fields(peer: SocketAddr, client: IpAddr) -> String {
    let (ip, port) = (peer.ip(), peer.port());
    format!("\"remote_ip\":\"{ip}\",\"remote_port\":\"{port}\",\"client_ip\":\"{client}\"")
}

fn beginning(value: &[u8]) -> &[u8] {
    &value[..value.len().min(LONGEST_FIELD)]
}

/// An authority without name and password before the host.
fn without_user(authority: &[u8]) -> Cow<'_, [u8]> {
    match memchr::memrchr(b'@', authority) {
        None => Cow::Borrowed(authority),
        Some(at) => Cow::Owned([REDACTED, &authority[at..]].concat()),
    }
}

/// A URI without what may be a secret in it: name and password, and the values of its query when they are to be
/// left out.
fn without_secrets(uri: &[u8], redact_query: bool) -> Cow<'_, [u8]> {
    let is_path = uri.starts_with(b"/") && !uri.starts_with(b"//");
    let query = if redact_query { memchr::memchr(b'?', uri) } else { None };
    let has_user = !is_path && memchr::memchr(b'@', uri).is_some();
    if query.is_none() && !has_user {
        return Cow::Borrowed(uri);
    }
    let (rest, query) = uri.split_at(query.unwrap_or(uri.len()));
    let mut safe = Vec::with_capacity(uri.len() + REDACTED.len());
    if has_user {
        let begin = memchr::memmem::find(rest, b"//").map_or(0, |at| at + 2);
        let (scheme, rest) = rest.split_at(begin);
        let length = rest.iter().position(|byte| b"/?#".contains(byte)).unwrap_or(rest.len());
        let (authority, rest) = rest.split_at(length);
        safe.extend_from_slice(scheme);
        safe.extend_from_slice(&without_user(authority));
        safe.extend_from_slice(rest);
    } else {
        safe.extend_from_slice(rest);
    }
    // The first piece is what comes before the question mark: nothing.
    for (at, parameter) in query.split(|byte| matches!(byte, b'?' | b'&' | b';')).enumerate().skip(1) {
        safe.push(if at == 1 { b'?' } else { b'&' });
        if let Some(equals) = memchr::memchr(b'=', parameter) {
            safe.extend_from_slice(&parameter[..=equals]);
        }
        safe.extend_from_slice(REDACTED);
    }
    Cow::Owned(safe)
}

fn same(a: Option<&Arc<Route>>, b: Option<&Arc<Route>>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => Arc::ptr_eq(a, b),
        (None, None) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: &str = r#""remote_ip":"192.168.1.7","remote_port":"41342","client_ip":"192.168.1.7""#;

    fn line<'a>(uri: &'a [u8], shown: Shown<'a>) -> Line<'a> {
        Line {
            at_micros: 1_700_000_000_123_456,
            client: CLIENT,
            version: Version::Http11,
            method: b"GET",
            host: b"we\"ird\xff",
            uri,
            shown,
            redact_query: false,
            received: 3,
            user: b"",
            duration_micros: 929,
            size: 10900,
            status: 200,
            backend: Some("10.20.0.101:80"),
            reason: None,
            aborted: false,
        }
    }

    fn text(line: &Line<'_>) -> String {
        let mut text = Vec::new();
        line.write(&mut text);
        String::from_utf8(text).unwrap()
    }

    fn json(line: &Line<'_>) -> serde_json::Value {
        serde_json::from_str(&text(line)).unwrap()
    }

    #[test]
    fn a_line_has_caddys_keys() {
        let peer = "192.168.1.7:41342".parse().unwrap();
        assert_eq!(client_fields(peer, peer.ip()), CLIENT);
        let shown = Shown { user_agent: Some(b"curl/8"), referer: Some(b"https://a.example/b") };
        let line = line(b"/a?q=1", shown);
        assert!(text(&line).ends_with("}\n"));
        let json = json(&line);
        assert_eq!(json["level"], "info");
        assert_eq!(json["ts"], 1_700_000_000.123_456);
        assert_eq!(json["logger"], "http.log.access");
        assert_eq!(json["msg"], "handled request");
        assert_eq!(json["request"]["remote_ip"], "192.168.1.7");
        assert_eq!(json["request"]["remote_port"], "41342");
        assert_eq!(json["request"]["client_ip"], "192.168.1.7");
        assert_eq!(json["request"]["proto"], "HTTP/1.1");
        assert_eq!(json["request"]["method"], "GET");
        assert_eq!(json["request"]["host"], "we\"ird\u{fffd}");
        assert_eq!(json["request"]["uri"], "/a?q=1");
        assert_eq!(json["request"]["headers"]["User-Agent"][0], "curl/8");
        assert_eq!(json["request"]["headers"]["Referer"][0], "https://a.example/b");
        assert_eq!(json["bytes_read"], 3);
        assert_eq!(json["user_id"], "");
        assert_eq!(json["duration"], 0.000_929);
        assert_eq!(json["size"], 10900);
        assert_eq!(json["status"], 200);
        assert_eq!(json["backend"], "10.20.0.101:80");
        assert_eq!((json.get("reason"), json.get("aborted")), (None, None), "an ordinary line has no more");
    }

    #[test]
    fn what_went_otherwise_is_said() {
        let line = |user, backend, reason, aborted| {
            json(&Line { user, backend, reason, aborted, ..line(b"/", Shown::default()) })
        };
        let page = line(b"", None, Some(Reason::UnknownHost), false);
        assert_eq!((page.get("backend"), &page["reason"]), (None, &"unknown_host".into()));
        let cut = line(b"", Some("10.20.0.101:80"), Some(Reason::BackendCut), true);
        assert_eq!((&cut["reason"], &cut["aborted"]), (&"backend_cut".into(), &true.into()));
        assert_eq!(line(b"al\"ice\n", None, None, false)["user_id"], "al\"ice\n");
        let long = line(&[b'a'; 4 * LONGEST_FIELD], None, None, false);
        assert_eq!(long["user_id"].as_str().unwrap().len(), LONGEST_FIELD);
    }

    #[test]
    fn headers_are_there_as_far_as_they_were_sent() {
        let headers = |shown| json(&line(b"/", shown))["request"]["headers"].to_string();
        assert_eq!(headers(Shown::default()), "{}");
        assert_eq!(headers(Shown { referer: Some(b"/a"), user_agent: None }), r#"{"Referer":["/a"]}"#);
        assert_eq!(
            headers(Shown { user_agent: Some(b"\x00"), referer: None }),
            r#"{"User-Agent":["\u0000"]}"#
        );
        let long = [b'x'; 4 * LONGEST_FIELD];
        assert!(headers(Shown { user_agent: Some(&long), referer: None }).len() < LONGEST_FIELD + 30);
    }

    #[test]
    fn credentials_never_get_into_a_line() {
        let request = b"GET / HTTP/1.1\r\nHost: a\r\nAuthorization: Basic c2VjcmV0\r\nCookie: id=secret\r\n\
            Proxy-Authorization: secret\r\nSet-Cookie: secret\r\nX-Api-Key: secret\r\nsecrets: 7\r\n\
            X-Secrets1: ten\r\nUSER-AGENT: first\r\nUser-Agent: second\r\nreferer: /from\r\n\r\n";
        let mut head = RequestHead::default();
        head.parse(request).unwrap().unwrap();
        let shown = Shown::of(&head, request);
        assert_eq!(shown, Shown { user_agent: Some(b"first"), referer: Some(b"/from") });
        let text = text(&line(b"/", shown));
        assert!(!text.contains("ecret") && !text.contains("c2VjcmV0") && text.contains("first"), "{text}");
    }

    #[test]
    fn name_and_password_of_a_uri_are_never_shown() {
        for (uri, safe) in [
            ("http://user:pass@host:80/a@b?c@d", "http://REDACTED@host:80/a@b?c@d"),
            ("https://u@x@host", "https://REDACTED@host"),
            ("user:pass@host:443", "REDACTED@host:443"),
            ("//user:pass@host/", "//REDACTED@host/"),
            ("http://host/a@b", "http://host/a@b"),
            ("/a@b", "/a@b"),
            ("*", "*"),
            ("", ""),
        ] {
            assert_eq!(&*without_secrets(uri.as_bytes(), false), safe.as_bytes(), "{uri}");
        }
        let shown = Shown { referer: Some(b"http://user:pass@host/"), user_agent: None };
        let line = Line { host: b"user:pass@host", ..line(b"/", shown) };
        assert!(!text(&line).contains("pass"), "{}", text(&line));
    }

    #[test]
    fn values_in_queries_are_left_out_on_demand() {
        for (uri, safe) in [
            ("/a?token=x&b=;c=d=e&key", "/a?token=REDACTED&b=REDACTED&c=REDACTED&REDACTED"),
            ("/a?", "/a?REDACTED"),
            ("/a", "/a"),
            ("http://u:p@h/?a=b?c", "http://REDACTED@h/?a=REDACTED&REDACTED"),
        ] {
            assert_eq!(&*without_secrets(uri.as_bytes(), true), safe.as_bytes(), "{uri}");
        }
        let shown = Shown { referer: Some(b"https://h/?token=secret"), user_agent: None };
        let line = Line { redact_query: true, ..line(b"/?token=secret", shown) };
        assert!(!text(&line).contains("secret"), "{}", text(&line));
    }

    #[test]
    fn one_of_so_many_is_logged_and_every_error() {
        let settings = |sample| LogSettings { sample, ..LogSettings::default() };
        let policy = |sample| LogPolicy { sample, ..LogPolicy::default() };
        let of_12 = |status, policy, settings: &LogSettings| {
            (0..12).filter(|&turn| wants(status, policy, settings, turn)).count()
        };
        assert_eq!(of_12(200, policy(1), &settings(1)), 12);
        assert_eq!(of_12(200, policy(1), &settings(4)), 3);
        assert_eq!(of_12(101, policy(6), &settings(4)), 2, "a vhost may have its own");
        assert_eq!([0, 404, 499, 502].map(|status| of_12(status, policy(6), &settings(4))), [12; 4]);
        let off = LogPolicy { enabled: false, ..LogPolicy::default() };
        assert_eq!(of_12(502, off, &settings(1)), 0);
        assert_eq!(of_12(502, policy(1), &LogSettings { enabled: false, ..settings(1) }), 0);
    }

    /// What a line costs: `cargo test --release -p proximity-proxy line_costs -- --ignored --nocapture`.
    #[test]
    #[ignore = "measures, and asserts only what any machine does"]
    fn a_line_costs_some_hundred_nanoseconds() {
        let request =
            b"GET /a/b/c?d=e HTTP/1.1\r\nHost: wiki.prox.local\r\nAccept: */*\r\nAccept-Encoding: gzip\r\n\
            User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0\r\n\
            Referer: https://wiki.prox.local/start\r\nCookie: a=b\r\n\r\n";
        let mut head = RequestHead::default();
        head.parse(request).unwrap().unwrap();
        let mut out = Vec::with_capacity(1 << 20);
        let per_line = |with_headers: bool, out: &mut Vec<u8>| {
            let began = std::time::Instant::now();
            const LINES: u32 = 1_000_000;
            for _ in 0..LINES {
                if out.len() > 1 << 19 {
                    out.clear();
                }
                let bytes = std::hint::black_box(&request[..]);
                let shown = if with_headers { Shown::of(&head, bytes) } else { Shown::default() };
                line(head.target.in_(bytes), shown).write(out);
            }
            began.elapsed().as_nanos() / u128::from(LINES)
        };
        let (bare, full) = (per_line(false, &mut out), per_line(true, &mut out));
        println!("{bare} ns without headers, {full} ns with them");
        assert!(full < 100_000);
    }
}
