//! Kinds of values that single keys of the proxy have.

use std::net::IpAddr;
use std::ops::{Range, RangeInclusive};

use ipnet::IpNet;
use proximity_table::Rate;
use toml_edit::Item;

use super::Section;

/// Most entries of a list or table that the proxy walks through for a request.
const MOST: usize = 256;

/// A text under a name that the writer chose.
pub struct Entry {
    pub name: String,
    pub value: String,
    pub span: Option<Range<usize>>,
}

impl<'a> Section<'a> {
    /// A whole number.
    pub fn number(&mut self, key: &'static str, default: u32, range: RangeInclusive<u32>) -> u32 {
        let range = i64::from(*range.start())..=i64::from(*range.end());
        self.integer(key, range).and_then(|number| u32::try_from(number).ok()).unwrap_or(default)
    }

    /// Octets: a number, or a text such as `10MiB`.
    pub fn size(&mut self, key: &'static str, default: u64, range: RangeInclusive<u64>) -> u64 {
        let Some(item) = self.take(key) else { return default };
        let octets = match (item.as_integer(), item.as_str()) {
            (Some(number), _) => u64::try_from(number).ok(),
            (_, Some(text)) => parse_size(text),
            _ => None,
        };
        octets.filter(|octets| range.contains(octets)).unwrap_or_else(|| {
            let expected = match range.start() {
                0 => "octets, or a size such as \"10MiB\"".to_owned(),
                least => {
                    format!("octets from {least} to {}, or a size such as \"10MiB\"", range.end())
                }
            };
            self.wrong(key, item, &expected);
            default
        })
    }

    /// One of some words, or nothing.
    pub fn choice(&mut self, key: &'static str, words: &[&'static str]) -> Option<&'static str> {
        let item = self.take(key)?;
        let found = item.as_str().and_then(|text| words.iter().find(|word| **word == text));
        if found.is_none() {
            self.wrong(key, item, &format!("one of {}", words.join(", ")));
        }
        found.copied()
    }

    /// A text that may be absent.
    pub fn text(&mut self, key: &'static str) -> Option<String> {
        let item = self.take(key)?;
        let text = item.as_str().map(str::to_owned);
        if text.is_none() {
            self.wrong(key, item, "a text in quotes");
        }
        text
    }

    /// The path of a file that must be there; whoever can look does ([`crate::Config::parse_with`]).
    pub fn file(&mut self, key: &'static str) -> Option<String> {
        let path = self.text(key)?;
        if !path.starts_with('/') || path.len() > 4096 || path.contains(char::is_control) {
            self.refuse(
                key,
                &format!("{} is not the path of a file", self.full(key)),
                "begin the path with /",
            );
            return None;
        }
        self.note_file(key, &path);
        Some(path)
    }

    /// A list of networks; an address stands for itself alone.
    pub fn networks(&mut self, key: &'static str) -> Vec<IpNet> {
        let parse = |text: &str| {
            let alone = || text.parse::<IpAddr>().ok().map(IpNet::from);
            text.parse::<IpNet>().ok().or_else(alone).map(|network| network.trunc())
        };
        let networks = self.list(key, "a network such as \"192.168.1.0/24\", or an address", parse);
        let networks = networks.unwrap_or_default();
        self.bound(key, networks.len());
        networks
    }

    /// `client_rate` and `client_burst`.
    pub fn rate(&mut self) -> Option<Rate> {
        let per_second = self.number("client_rate", 0, 0..=1_000_000);
        let burst = self.number("client_burst", per_second.saturating_mul(5), 1..=10_000_000);
        if per_second == 0 && self.has("client_burst") {
            let hint = "write client_rate, in requests per second, beside it";
            self.refuse("client_burst", "client_burst has no client_rate", hint);
        }
        (per_second > 0).then_some(Rate { per_second, burst })
    }

    /// A range of statuses as a text such as `200-399`, or one status.
    pub fn statuses(&mut self, key: &'static str) -> Option<(u16, u16)> {
        let item = self.take(key)?;
        let one = item.as_integer().map(|status| status.to_string());
        let text = one.as_deref().or(item.as_str()).unwrap_or_default();
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let status =
            |text: &str| text.trim().parse::<u16>().ok().filter(|status| (200..=599).contains(status));
        let range = status(first).zip(status(last)).filter(|(first, last)| first <= last);
        if range.is_none() {
            self.wrong(key, item, "a range of statuses such as \"200-399\"");
        }
        range
    }

    /// A table of texts. A list of texts stands for as many of one name.
    pub fn entries(&mut self, key: &'static str, expected: &str) -> Vec<Entry> {
        let Some(item) = self.take(key) else { return Vec::new() };
        let Some(table) = item.as_table_like() else {
            self.wrong(key, item, expected);
            return Vec::new();
        };
        let mut entries = Vec::new();
        for (name, item) in table.iter() {
            let mut add = |value: &str| {
                let value = value.to_owned();
                entries.push(Entry { name: name.to_owned(), value, span: item.span() });
            };
            let list = item.as_array().map(|list| list.iter().map(|value| value.as_str()).collect());
            match (item, list) {
                (Item::Value(value), _) if value.is_str() => add(value.as_str().unwrap_or_default()),
                (_, Some(Some(list))) => {
                    let list: Vec<&str> = list;
                    list.into_iter().for_each(&mut add);
                }
                _ => {
                    let message = format!("{}.{name} is not a text", self.full(key));
                    self.refuse_at(item.span(), message, "write it in quotes");
                }
            }
        }
        self.bound(key, entries.len());
        entries
    }

    /// Refuses more of something than should be walked through for each request.
    pub fn bound(&self, key: &str, count: usize) {
        if count > MOST {
            self.refuse(
                key,
                &format!("{} has {count} entries", self.full(key)),
                &format!("give at most {MOST}"),
            );
        }
    }

    /// Notes a problem at a place of the file.
    pub fn refuse_at(&self, span: Option<Range<usize>>, message: String, hint: &str) {
        self.report.add(span, message, hint.to_owned());
    }
}

/// Octets of a text such as `0`, `4096`, `64KiB`, `10MiB`, `1GiB` or, in thousands, `10MB`.
fn parse_size(text: &str) -> Option<u64> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..split].parse().ok()?;
    let unit = match text[split..].trim_start() {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "kB" | "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        _ => return None,
    };
    number.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::parse_size;

    #[test]
    fn sizes_have_units() {
        for (text, octets) in [
            ("0", Some(0)),
            ("4096", Some(4096)),
            ("64KiB", Some(65_536)),
            ("10 MiB", Some(10_485_760)),
            ("1GB", Some(1_000_000_000)),
            ("", None),
            ("MiB", None),
            ("-1", None),
            ("1.5MiB", None),
            ("10mib", None),
            ("18446744073709551615GiB", None),
        ] {
            assert_eq!(parse_size(text), octets, "{text:?}");
        }
    }
}
