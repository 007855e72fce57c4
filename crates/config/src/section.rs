use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use proximity_table::Upstream;
use toml_edit::{Item, TableLike, Value};

use crate::Report;

mod spelling;
mod values;

pub use spelling::Spelling;
pub use values::Entry;

/// Longest unknown key that is compared with the known ones, in octets.
const LONGEST_KEY: usize = 64;
/// Most keys that are listed for one that is unknown.
const MOST_LISTED: usize = 12;

/// One table of the file while it is read: each key is asked for once, and what was never asked for is a
/// mistake of the writer.
pub struct Section<'a> {
    table: Option<&'a dyn TableLike>,
    path: String,
    span: Option<Range<usize>>,
    known: Vec<&'static str>,
    report: &'a Report,
}

impl<'a> Section<'a> {
    pub fn root(table: &'a dyn TableLike, report: &'a Report) -> Section<'a> {
        Section { table: Some(table), path: String::new(), span: None, known: Vec::new(), report }
    }

    /// A table that stands by itself; its problems are told as of `name`.
    pub fn named(name: &str, table: &'a dyn TableLike, report: &'a Report) -> Section<'a> {
        Section { path: name.to_owned(), ..Section::root(table, report) }
    }

    /// The table under `key`; an empty one when it is absent.
    pub fn table(&mut self, key: &'static str) -> Section<'a> {
        let item = self.take(key);
        let table = item.and_then(Item::as_table_like);
        if table.is_none() && item.is_some() {
            let (message, hint) = self.no_table(key);
            self.refuse(key, &message, &hint);
        }
        self.below(table, self.full(key), item.and_then(Item::span))
    }

    /// A table that nobody wrote: everything in it has its default.
    pub fn absent(&self) -> Section<'a> {
        self.below(None, String::new(), None)
    }

    /// The tables of an array of tables, each with its place in the path.
    pub fn tables(&mut self, key: &'static str) -> Vec<Section<'a>> {
        let Some(item) = self.take(key) else { return Vec::new() };
        let path = self.full(key);
        if let Some(array) = item.as_array_of_tables() {
            return array.iter().map(|table| self.below(Some(table), path.clone(), table.span())).collect();
        }
        let inline =
            item.as_array().map(|array| array.iter().map(Value::as_inline_table).collect::<Vec<_>>());
        match inline {
            Some(tables) if tables.iter().all(Option::is_some) => {
                let tables = tables.into_iter().flatten();
                tables.map(|table| self.below(Some(table), path.clone(), table.span())).collect()
            }
            _ => {
                let (message, hint) = self.no_tables(key);
                self.refuse(key, &message, &hint);
                Vec::new()
            }
        }
    }

    /// Whether the table itself is there.
    pub fn is_written(&self) -> bool {
        self.table.is_some()
    }

    pub fn has(&mut self, key: &'static str) -> bool {
        self.take(key).is_some()
    }

    pub fn is_list(&mut self, key: &'static str) -> bool {
        self.take(key).is_some_and(Item::is_array)
    }

    pub fn is_empty_list(&mut self, key: &'static str) -> bool {
        self.take(key).and_then(Item::as_array).is_some_and(|list| list.is_empty())
    }

    pub fn boolean(&mut self, key: &'static str, default: bool) -> bool {
        let Some(item) = self.take(key) else { return default };
        item.as_bool().unwrap_or_else(|| {
            self.wrong(key, item, "true or false");
            default
        })
    }

    pub fn string(&mut self, key: &'static str, default: &str) -> String {
        let Some(item) = self.take(key) else { return default.to_owned() };
        item.as_str().map(str::to_owned).unwrap_or_else(|| {
            self.wrong(key, item, "a text in quotes");
            default.to_owned()
        })
    }

    pub fn path(&mut self, key: &'static str, default: &str) -> PathBuf {
        let text = self.string(key, default);
        if !text.starts_with('/') {
            self.refuse(
                key,
                &format!("{} `{text}` is not absolute", self.full(key)),
                "begin the path with /",
            );
        }
        text.into()
    }

    /// One of some words; the first is the default.
    pub fn word(&mut self, key: &'static str, words: &[&'static str]) -> &'static str {
        let text = self.string(key, words[0]);
        words.iter().find(|word| **word == text).copied().unwrap_or_else(|| {
            let hint = format!("write one of {}", words.join(", "));
            self.refuse(key, &format!("{} cannot be `{text}`", self.full(key)), &hint);
            words[0]
        })
    }

    /// A value that has a text form; its own error says what is wrong with it.
    pub fn parsed<T: FromStr<Err: std::fmt::Display>>(&mut self, key: &'static str, default: &str) -> T {
        let text = self.string(key, default);
        text.parse().unwrap_or_else(|error: T::Err| {
            self.explain(key, &error.to_string());
            default.parse().unwrap_or_else(|_| unreachable!("the default of {key} is right"))
        })
    }

    /// A value that must be there.
    pub fn required<T: FromStr<Err: std::fmt::Display>>(
        &mut self,
        key: &'static str,
        example: &str,
    ) -> Option<T> {
        let Some(item) = self.take(key) else {
            let hint = format!("add {}", self.pair(key, &format!("\"{example}\"")));
            self.report.add(self.span.clone(), format!("{} has no {key}", self.heading()), hint);
            return None;
        };
        let Some(text) = item.as_str() else {
            self.wrong(key, item, &format!("a text in quotes such as \"{example}\""));
            return None;
        };
        text.parse().map_err(|error: T::Err| self.explain(key, &error.to_string())).ok()
    }

    /// A value that may be absent.
    pub fn optional<T: FromStr>(&mut self, key: &'static str, expected: &str) -> Option<T> {
        let item = self.take(key)?;
        let value = item.as_str().and_then(|text| text.parse().ok());
        if value.is_none() {
            self.wrong(key, item, expected);
        }
        value
    }

    pub fn integer(&mut self, key: &'static str, range: std::ops::RangeInclusive<i64>) -> Option<i64> {
        let item = self.take(key)?;
        let value = item.as_integer().filter(|value| range.contains(value));
        if value.is_none() {
            self.wrong(key, item, &format!("a whole number from {} to {}", range.start(), range.end()));
        }
        value
    }

    pub fn port(&mut self, key: &'static str) -> Option<u16> {
        self.integer(key, 1..=65535).map(|port| port as u16)
    }

    /// A span of time in seconds: a number of seconds, or a text such as `30s`, `5m`, `12h`, `7d`, `infinite`.
    pub fn duration(&mut self, key: &'static str, default: u32, least: u32) -> u32 {
        let Some(item) = self.take(key) else { return default };
        let seconds = match (item.as_integer(), item.as_str()) {
            (Some(number), _) => u32::try_from(number).ok(),
            (_, Some(text)) => parse_duration(text),
            _ => None,
        };
        seconds.filter(|seconds| *seconds >= least).unwrap_or_else(|| {
            self.wrong(
                key,
                item,
                &format!("a time of at least {least} s such as \"30s\", \"5m\", \"12h\" or \"7d\""),
            );
            default
        })
    }

    /// The name of a network interface.
    pub fn interface(&mut self, key: &'static str, default: &str) -> Arc<str> {
        let text = self.string(key, default);
        // The kernel's own rule (dev_valid_name): 1 to 15 octets, no slash, colon or white space.
        let good = (1..=15).contains(&text.len())
            && text != "."
            && text != ".."
            && text.bytes().all(|b| b.is_ascii_graphic() && b != b'/' && b != b':');
        if !good {
            let hint = "write the name that `ip link` shows, such as eth0";
            self.refuse(key, &format!("{} `{text}` is not an interface name", self.full(key)), hint);
            return default.into();
        }
        text.into()
    }

    /// A list of texts that are parsed one by one.
    pub fn list<T>(
        &mut self,
        key: &'static str,
        expected: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Option<Vec<T>> {
        let item = self.take(key)?;
        let Some(array) = item.as_array() else {
            self.wrong(key, item, &format!("a list of {expected}"));
            return None;
        };
        let mut values = Vec::new();
        for value in array {
            match value.as_str().and_then(&parse) {
                Some(value) => values.push(value),
                None => {
                    let message =
                        format!("{} cannot hold {}", self.full(key), self.shown(&Item::Value(value.clone())));
                    self.report.add(value.span(), message, format!("write {expected}"));
                }
            }
        }
        Some(values)
    }

    /// A list of ports.
    pub fn ports(&mut self, key: &'static str, default: &[u16]) -> Vec<u16> {
        let Some(item) = self.take(key) else { return default.to_vec() };
        let ports = item.as_array().and_then(|array| {
            array
                .iter()
                .map(|v| v.as_integer().and_then(|p| u16::try_from(p).ok()).filter(|p| *p > 0))
                .collect()
        });
        ports.filter(|ports: &Vec<u16>| (1..=8).contains(&ports.len())).unwrap_or_else(|| {
            self.wrong(key, item, "a list of one to eight ports such as [80, 8080]");
            default.to_vec()
        })
    }

    /// Addresses to listen on; `port` is for those written without one.
    pub fn addresses(&mut self, key: &'static str, port: u16, default: &[&str]) -> Vec<SocketAddr> {
        let parse = |text: &str| parse_address(text, port);
        self.list(key, &format!("an address such as \"0.0.0.0:{port}\""), parse)
            .unwrap_or_else(|| default.iter().filter_map(|text| parse(text)).collect())
    }

    /// Servers for names of others.
    pub fn upstreams(&mut self, key: &'static str, default: &[&str]) -> Vec<Upstream> {
        let expected = "an upstream such as \"8.8.8.8\", \"8.8.8.8:53\", \"tls://1.1.1.1#cloudflare-dns.com\" or \"https://1.1.1.1/dns-query\"";
        let parse = |text: &str| text.parse().ok();
        self.list(key, expected, parse)
            .unwrap_or_else(|| default.iter().filter_map(|text| parse(text)).collect())
    }

    /// Notes a problem at a key.
    pub fn refuse(&self, key: &str, message: &str, hint: &str) {
        self.report.add(self.span_of(key), message.to_owned(), hint.to_owned());
    }

    /// Notes a file that is to be looked at.
    pub fn note_file(&self, key: &str, path: &str) {
        self.report.note_file(self.span_of(key), self.full(key), path.to_owned());
    }

    /// Notes a problem whose text tells what to do behind a colon.
    pub fn explain(&self, key: &str, text: &str) {
        let (message, hint) = text.rsplit_once(": ").unwrap_or((text, "correct the value"));
        self.refuse(key, &format!("{}: {message}", self.full(key)), hint);
    }

    /// Notes a problem of the table as a whole.
    pub fn refuse_all(&self, message: &str, hint: &str) {
        self.report.add(self.span.clone(), message.to_owned(), hint.to_owned());
    }

    /// Refuses the keys that nobody asked for.
    pub fn finish(self) {
        let Some(table) = self.table else { return };
        for (key, _) in table.iter().filter(|(key, _)| !self.known.contains(key)) {
            let hint = match nearest(key, &self.known) {
                Some(near) => format!("the nearest key is `{near}`"),
                None if (1..=MOST_LISTED).contains(&self.known.len()) => {
                    format!("remove it, or write one of {}", self.known.join(", "))
                }
                None => "remove it: no key here is called so or nearly so".to_owned(),
            };
            self.report.add(self.span_of(key), format!("unknown key `{}`", self.full(key)), hint);
        }
    }

    fn below(
        &self,
        table: Option<&'a dyn TableLike>,
        path: String,
        span: Option<Range<usize>>,
    ) -> Section<'a> {
        Section { table, path, span, known: Vec::new(), report: self.report }
    }

    fn take(&mut self, key: &'static str) -> Option<&'a Item> {
        if !self.known.contains(&key) {
            self.known.push(key);
        }
        self.table?.get(key)
    }

    fn wrong(&self, key: &str, item: &Item, expected: &str) {
        let message = format!("{} cannot be {}", self.full(key), self.shown(item));
        self.refuse(key, &message, &format!("write {expected}"));
    }

    fn full(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    fn span_of(&self, key: &str) -> Option<Range<usize>> {
        let (key, item) = self.table?.get_key_value(key)?;
        key.span().or_else(|| item.span())
    }
}

/// The key that was probably meant, if any: at most a third of its letters differ.
fn nearest<'a>(key: &str, known: &[&'a str]) -> Option<&'a str> {
    if key.len() > LONGEST_KEY {
        return None;
    }
    let key = key.to_ascii_lowercase();
    let distances = known.iter().map(|other| (strsim::osa_distance(&key, other), *other));
    let (distance, near) = distances.min_by_key(|(distance, _)| *distance)?;
    (distance <= near.len().max(key.len()) / 3).then_some(near)
}

fn parse_address(text: &str, port: u16) -> Option<SocketAddr> {
    text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, port)))
}

/// Seconds of a text such as `30s`, `5m`, `12h`, `7d` or `infinite`.
pub fn parse_duration(text: &str) -> Option<u32> {
    if text == "infinite" {
        return Some(u32::MAX);
    }
    let split = text.find(|c: char| !c.is_ascii_digit())?;
    let number: u32 = text[..split].parse().ok()?;
    let unit = match &text[split..] {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86400,
        _ => return None,
    };
    number.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn only_a_key_that_is_near_is_suggested() {
        let known = ["listen", "via", "max_body", "trusted_proxies", "log"];
        for (key, near) in [
            ("lisen", Some("listen")),
            ("Listen", Some("listen")),
            ("max-body", Some("max_body")),
            ("maxbody", Some("max_body")),
            ("trusted_proxy", Some("trusted_proxies")),
            ("lgo", Some("log")),
            ("cache", None),
            ("tls", None),
            ("x", None),
            ("", None),
            ("compression", None),
        ] {
            assert_eq!(nearest(key, &known), near, "{key}");
        }
        assert_eq!(nearest("x", &[]), None);
        assert_eq!(nearest(&"listen".repeat(1000), &known), None);
    }
}
