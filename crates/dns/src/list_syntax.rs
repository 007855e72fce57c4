//! Lists of names as they are published: hosts files, plain domains, AdBlock rules, also mixed in one file.
//!
//! | line | what it means |
//! |---|---|
//! | `0.0.0.0 ads.example`, also `127.0.0.1`, `::`, `::1` | the name itself |
//! | `ads.example` | the name itself |
//! | `*.ads.example`, `.ads.example` | the name and all below it |
//! | `\|\|ads.example^` | the name and all below it |
//! | `@@\|\|good.example^` | the name and all below it are let through |
//! | `# …`, `! …`, `[Adblock Plus …]` | a comment |

use std::io::{self, BufRead, Read};
use std::net::IpAddr;

use crate::blocklist::{HashKey, NameSet, NameSetBuilder};

/// A longer line holds no name that anybody could ask for.
const LONGEST_LINE: usize = 4096;
/// Of how many skipped lines the number is kept.
const SKIPPED_SHOWN: usize = 5;
/// Longest name in wire form without its root label (RFC 1035 §2.3.4).
const LONGEST_NAME: usize = 254;

/// How much of a list is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListLimits {
    /// Octets.
    pub octets: u64,
    /// Names, counted as often as they are written.
    pub names: usize,
}

/// What a list says.
#[derive(Clone, Debug, Default)]
pub struct NameList {
    /// Names that are blocked.
    pub block: NameSet,
    /// Names that are let through all the same.
    pub allow: NameSet,
    /// Lines that say nothing about names, or nothing that is understood.
    pub skipped: u64,
    /// The numbers of the first of them, from 1.
    pub first_skipped: Vec<u64>,
    /// Whether there was more than the limits let in.
    pub is_cut: bool,
}

/// Collects what a list and further names say.
#[derive(Debug)]
pub struct ListReader {
    block: NameSetBuilder,
    allow: NameSetBuilder,
    limits: ListLimits,
    list: NameList,
}

/// What a line says about a name.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    Block { below: bool },
    Allow { below: bool },
}

impl Default for ListLimits {
    /// More than any published list has.
    fn default() -> ListLimits {
        ListLimits { octets: 512 << 20, names: 16 << 20 }
    }
}

impl ListReader {
    /// An empty list.
    pub fn new(key: HashKey, limits: ListLimits) -> ListReader {
        let [block, allow] = [NameSetBuilder::new(key), NameSetBuilder::new(key)];
        ListReader { block, allow, limits, list: NameList::default() }
    }

    /// Blocks a lower-case wire name and all below it.
    pub fn block(&mut self, name: &[u8]) {
        self.block.add(name, true);
    }

    /// Lets a lower-case wire name and all below it through.
    pub fn allow(&mut self, name: &[u8]) {
        self.allow.add(name, true);
    }

    /// Reads the lines of a list.
    pub fn read(&mut self, text: impl BufRead) -> io::Result<()> {
        // One octet more tells whether there is more.
        let mut text = text.take(self.limits.octets + 1);
        let mut line = Vec::new();
        for number in 1.. {
            line.clear();
            if text.by_ref().take(LONGEST_LINE as u64).read_until(b'\n', &mut line)? == 0 {
                break;
            }
            let is_long = line.len() == LONGEST_LINE && line.last() != Some(&b'\n');
            if is_long {
                skip_line(&mut text)?;
            }
            if text.limit() == 0 || self.block.added() + self.allow.added() >= self.limits.names {
                self.list.is_cut = true;
                break;
            }
            let line = if number == 1 { line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&line) } else { &line };
            if is_long || !self.line(line) {
                self.list.skipped += 1;
                if self.list.first_skipped.len() < SKIPPED_SHOWN {
                    self.list.first_skipped.push(number);
                }
            }
        }
        Ok(())
    }

    /// The whole.
    pub fn finish(self) -> NameList {
        NameList { block: self.block.build(), allow: self.allow.build(), ..self.list }
    }

    /// Takes a line; whether it was understood.
    fn line(&mut self, line: &[u8]) -> bool {
        let line = line.trim_ascii();
        // Names in other letters than these are written in punycode wherever they are looked up.
        let Ok(text) = std::str::from_utf8(line) else { return matches!(line.first(), Some(b'#' | b'!')) };
        let (block, allow) = (&mut self.block, &mut self.allow);
        read_line(text, |said, name| match said {
            Said::Block { below } => block.add(name, below),
            Said::Allow { below } => allow.add(name, below),
        })
    }
}

/// Reads a line without white space around it; `each` is told every name in it. Whether it was understood.
fn read_line(line: &str, mut each: impl FnMut(Said, &[u8])) -> bool {
    if line.is_empty() || line.starts_with(['#', '!', '[']) {
        return true;
    }
    let mut wire = Wire::default();
    if line.starts_with("@@") || line.starts_with("||") {
        let (rule, said) = match line.strip_prefix("@@") {
            Some(rule) => (rule, Said::Allow { below: true }),
            None => (line, Said::Block { below: true }),
        };
        let name = adblock_name(rule).and_then(|name| wire.of(name.strip_prefix("*.").unwrap_or(name)));
        return name.map(|name| each(said, name)).is_some();
    }
    // A comment stands apart: `example.com##.banner` is no name with a comment.
    let mut words = line.split_ascii_whitespace().take_while(|word| !word.starts_with('#'));
    let Some(first) = words.next() else { return true };
    if let Ok(ip) = first.parse::<IpAddr>() {
        // Any other address would be an answer, and not none.
        if !ip.is_unspecified() && !ip.is_loopback() {
            return false;
        }
        let mut understood = true;
        for word in words {
            match wire.of(word) {
                Some(name) if is_single(name) => {}
                Some(name) => each(Said::Block { below: false }, name),
                // `0.0.0.0 0.0.0.0` stands in widespread lists.
                None => understood &= word.parse::<IpAddr>().is_ok(),
            }
        }
        return understood;
    }
    if words.next().is_some() {
        return false;
    }
    let wide = first.strip_prefix("*.").or_else(|| first.strip_prefix('.'));
    match wire.of(wide.unwrap_or(first)) {
        Some(name) if wide.is_some() || !is_single(name) => {
            each(Said::Block { below: wide.is_some() }, name);
            true
        }
        _ => false,
    }
}

/// The name in a rule that means nothing but a name and all below it.
fn adblock_name(rule: &str) -> Option<&str> {
    let (name, rest) = rule.strip_prefix("||")?.split_once('^')?;
    // What looks at more than names cannot be decided by a name; importance is a matter among rules.
    matches!(rest, "" | "|" | "$important" | "|$important").then_some(name)
}

/// Whether a wire name has one label, such as `localhost` in a hosts file.
fn is_single(name: &[u8]) -> bool {
    name.first().is_some_and(|&length| name.len() == usize::from(length) + 2)
}

/// Room for a name in wire form.
struct Wire([u8; LONGEST_NAME + 1]);

impl Default for Wire {
    fn default() -> Wire {
        Wire([0; LONGEST_NAME + 1])
    }
}

impl Wire {
    /// A written name in lower-case wire form, if it is one that hosts have.
    fn of(&mut self, text: &str) -> Option<&[u8]> {
        let text = text.strip_suffix('.').unwrap_or(text);
        let mut at = 0;
        let mut numeric = true;
        for label in text.split('.') {
            let label = label.as_bytes();
            let known = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
            if !(1..=63).contains(&label.len()) || !label.iter().all(known) {
                return None;
            }
            numeric = label.iter().all(u8::is_ascii_digit);
            let place = self.0[..LONGEST_NAME].get_mut(at..=at + label.len())?;
            place[0] = label.len() as u8;
            place[1..].copy_from_slice(label);
            place[1..].make_ascii_lowercase();
            at += 1 + label.len();
        }
        self.0[at] = 0;
        // A name that ends in a number is an address.
        (!numeric).then_some(&self.0[..=at])
    }
}

/// Reads on to the end of the line.
fn skip_line(text: &mut impl BufRead) -> io::Result<()> {
    loop {
        let (used, is_over) = match text.fill_buf()? {
            [] => return Ok(()),
            octets => match octets.iter().position(|&octet| octet == b'\n') {
                Some(end) => (end + 1, true),
                None => (octets.len(), false),
            },
        };
        text.consume(used);
        if is_over {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proximity_table::Name;

    fn said(line: &str) -> (bool, Vec<(Said, String)>) {
        let mut names = Vec::new();
        let understood =
            read_line(line, |said, name| names.push((said, Name::from_wire(name).unwrap().to_string())));
        (understood, names)
    }

    fn read(text: &[u8], limits: ListLimits) -> NameList {
        let mut reader = ListReader::new(HashKey::new([1, 2]), limits);
        reader.read(text).unwrap();
        reader.finish()
    }

    #[test]
    fn each_syntax_names_what_it_blocks() {
        let exact = |name: &str| (Said::Block { below: false }, name.to_owned());
        let below = |name: &str| (Said::Block { below: true }, name.to_owned());
        let allow = |name: &str| (Said::Allow { below: true }, name.to_owned());
        for (line, names) in [
            ("0.0.0.0 ads.example", vec![exact("ads.example")]),
            ("127.0.0.1\tads.example  t.example # both", vec![exact("ads.example"), exact("t.example")]),
            ("::1 ads.example", vec![exact("ads.example")]),
            ("127.0.0.1 localhost", vec![]),
            ("0.0.0.0 0.0.0.0", vec![]),
            ("ADS.Example.", vec![exact("ads.example")]),
            ("_dmarc.ads.example # why", vec![exact("_dmarc.ads.example")]),
            ("*.ads.example", vec![below("ads.example")]),
            (".ads.example", vec![below("ads.example")]),
            ("||ads.example^", vec![below("ads.example")]),
            ("||ads.example^$important", vec![below("ads.example")]),
            ("||*.ads.example^", vec![below("ads.example")]),
            ("||zip^", vec![below("zip")]),
            ("@@||good.example^", vec![allow("good.example")]),
            ("@@||good.example^|", vec![allow("good.example")]),
            ("! comment", vec![]),
            ("# comment", vec![]),
            ("[Adblock Plus 2.0]", vec![]),
            ("", vec![]),
        ] {
            assert_eq!(said(line), (true, names), "{line}");
        }
    }

    #[test]
    fn what_is_not_about_names_alone_is_skipped() {
        for line in [
            "10.0.0.1 router.example",
            "fe80::1%lo0 localhost",
            "||ads.example",
            "||ads.example^$third-party",
            "||ads.example/banner^",
            "||ads*.example^",
            "@@ads.example",
            "/banner[0-9]+/",
            "example.com##.banner",
            "address=/ads.example/0.0.0.0",
            "<html>",
            "two words",
            "word",
            "a..example",
            "1.2.3.4.5",
            "ädvert.example",
            "||^",
            "*.",
            ".",
        ] {
            assert_eq!(said(line), (false, vec![]), "{line}");
        }
        let label = "a".repeat(63);
        assert!(said(&format!("{label}.{label}.{label}.{}", &label[..61])).0);
        assert!(!said(&format!("{label}.{label}.{label}.{}", &label[..62])).0);
        assert!(!said(&format!("a{label}.example")).0);
    }

    #[test]
    fn skipped_lines_are_counted_and_the_first_are_named() {
        let mut text =
            b"\xef\xbb\xbf# list\nads.example\r\n/x/\n\n\xff\xfe.example\n@@||good.example^\n".to_vec();
        text.extend(b"#".repeat(2 * LONGEST_LINE));
        text.extend(b"\nlast.example");
        let list = read(&text, ListLimits::default());
        assert_eq!((list.block.len(), list.allow.len()), (2, 1));
        assert_eq!((list.skipped, &list.first_skipped[..], list.is_cut), (3, &[3, 5, 7][..], false));
        let list = read(&b"/x/\n".repeat(1000), ListLimits::default());
        assert_eq!((list.skipped, &list.first_skipped[..]), (1000, &[1, 2, 3, 4, 5][..]));
    }

    #[test]
    fn a_list_is_read_as_far_as_it_may_be_long() {
        let text = b"a.example\nb.example\nc.example\n";
        let limits = |octets, names| ListLimits { octets, names };
        for (limits, names, is_cut) in [
            (limits(30, 4), 3, false),
            (limits(29, 4), 2, true),
            (limits(30, 2), 2, true),
            (limits(0, 2), 0, true),
        ] {
            let list = read(text, limits);
            assert_eq!((list.block.len(), list.is_cut), (names, is_cut), "{limits:?}");
        }
    }
}
