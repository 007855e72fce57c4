use std::path::{Path, PathBuf};

use crate::error::BenchError;

/// Programs without which nothing is measured, and the Debian and Ubuntu packages that bring them.
const PROGRAMS: &[(&str, &str)] = &[
    ("nginx", "nginx-light"),
    ("dnsmasq", "dnsmasq-base"),
    ("knotd", "knot"),
    ("unbound", "unbound"),
    ("wrk", "wrk"),
    ("dnsperf", "dnsperf"),
    ("setpriv", "util-linux"),
];

/// Programs without which a part of the report is missing.
const OPTIONAL: &[(&str, &str)] = &[("haproxy", "haproxy"), ("caddy", "caddy"), ("h2load", "nghttp2-client")];

/// Where programs of ordinary users' `PATH` often are not.
const SYSTEM: &[&str] = &["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// Checks that everything is installed; the error has the line that installs what is not.
pub fn check() -> Result<(), BenchError> {
    let missing: Vec<_> = PROGRAMS.iter().filter(|(program, _)| find(program).is_none()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let list = |pick: fn(&(&'static str, &'static str)) -> &'static str| {
        missing.iter().map(|pair| pick(pair)).collect::<Vec<_>>()
    };
    Err(BenchError::Missing {
        programs: list(|pair| pair.0).join(", "),
        packages: list(|pair| pair.1).join(" "),
    })
}

/// Where an optional program is, or the words that say what is not measured without it.
pub fn find_optional(program: &str) -> Result<PathBuf, String> {
    find(program).ok_or_else(|| {
        let package = OPTIONAL.iter().find(|pair| pair.0 == program).map_or(program, |pair| pair.1);
        format!("{program} is missing: apt-get install --no-install-recommends {package}")
    })
}

/// Where a program is.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(SYSTEM.iter().map(PathBuf::from))
        .map(|directory| directory.join(program))
        .find(|path| is_program(path))
}

fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_told_with_its_package() {
        assert_eq!(find_optional("sh").ok(), find("sh"));
        let words = find_optional("no-such-program-of-any-package").unwrap_err();
        assert!(words.contains("apt-get install"), "{words}");
    }

    #[test]
    fn a_program_is_found_only_where_one_is() {
        assert!(find("sh").is_some());
        assert_eq!(find("no-such-program-of-any-package"), None);
        assert!(!is_program(Path::new("/etc/passwd")) && !is_program(Path::new("/usr/bin")));
    }
}
