use std::path::{Path, PathBuf};

use crate::mixing::fnv;

use proximity_table::Name;

/// Where requests for unknown hosts are logged.
pub const DEFAULT_NAME: &str = "default.log";
/// Longest host name that is a file name as it is: endings must fit into the 255 octets of a file name, too.
const LONGEST_STEM: usize = 200;

/// The name of a vhost's log file: its host name and `.log`. The star of a wildcard would be somebody's pattern
/// some day, so `*.shop.prox.local` has `wildcard_.shop.prox.local.log`.
pub fn file_name(hostname: &Name) -> String {
    let text = hostname.to_string();
    let mut stem = match text.strip_prefix("*") {
        Some(below) => format!("wildcard_{below}"),
        None if format!("{text}.log") == DEFAULT_NAME => format!("{text}_"),
        None => text,
    };
    if stem.len() > LONGEST_STEM {
        let hash = fnv(stem.as_bytes());
        stem.truncate(LONGEST_STEM);
        stem = format!("{stem}~{hash:016x}");
    }
    stem + ".log"
}

/// The file that was put aside so many times, 1 for the latest: `<name>.1`, or `<name>.1.gz`.
pub fn put_aside(path: &Path, number: u32, compressed: bool) -> PathBuf {
    ending(path, &format!(".{number}{}", if compressed { ".gz" } else { "" }))
}

/// Where a file is compressed to, until it is complete.
pub fn unfinished(path: &Path) -> PathBuf {
    ending(path, ".gz.tmp")
}

/// When the first line of a log was written, in seconds since the Unix epoch; `None` when the octets are not
/// the beginning of one.
pub fn begun(octets: &[u8]) -> Option<u64> {
    let at = octets.strip_prefix(crate::access::BEGINNING)?;
    let digits = at.iter().take_while(|byte| byte.is_ascii_digit()).count();
    std::str::from_utf8(&at[..digits]).ok()?.parse().ok()
}

fn ending(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(hostname: &str) -> String {
        file_name(&hostname.parse().unwrap())
    }

    #[test]
    fn every_host_name_has_a_harmless_file_name_of_its_own() {
        assert_eq!(of("wiki.prox.local"), "wiki.prox.local.log");
        assert_eq!(of("*.shop.prox.local"), "wildcard_.shop.prox.local.log");
        assert_eq!(of("default"), "default_.log");
        let label = "a".repeat(63);
        let long = |end: &str| of(&format!("{label}.{label}.{label}.{}{end}", "b".repeat(50)));
        assert_ne!(long("x"), long("y"));
        assert!(long("x").len() + ".1000.gz.tmp".len() <= 255 && long("x").ends_with(".log"));
    }

    #[test]
    fn what_is_put_aside_is_numbered() {
        let path = Path::new("/log/wiki.prox.local.log");
        assert_eq!(put_aside(path, 1, false), Path::new("/log/wiki.prox.local.log.1"));
        assert_eq!(put_aside(path, 12, true), Path::new("/log/wiki.prox.local.log.12.gz"));
        assert_eq!(unfinished(path), Path::new("/log/wiki.prox.local.log.gz.tmp"));
    }

    #[test]
    fn the_first_line_tells_the_age() {
        assert_eq!(begun(b"{\"level\":\"info\",\"ts\":1700000000.123456,\"log"), Some(1_700_000_000));
        for other in
            [&b""[..], b"{\"level\":\"info\",\"ts\":", b"127.0.0.1 - - [", b"{\"level\":\"info\",\"ts\":x"]
        {
            assert_eq!(begun(other), None);
        }
    }
}
