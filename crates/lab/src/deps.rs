//! The programs a lab is made of, and the Debian packages that bring them.

use std::path::PathBuf;

use crate::LabError;

/// Package and the program by which its presence is known. Debian 12/13 and Ubuntu 24.04 names.
const PROGRAMS: &[(&str, &str)] = &[
    ("util-linux", "unshare"),
    ("util-linux", "nsenter"),
    ("util-linux", "setpriv"),
    ("util-linux", "mount"),
    ("hostname", "hostname"),
    ("iproute2", "ip"),
    ("iputils-ping", "ping"),
    ("nftables", "nft"),
    ("dnsmasq-base", "dnsmasq"),
    ("udhcpc", "udhcpc"),
    ("isc-dhcp-client", "dhclient"),
    ("dhcpcd-base", "dhcpcd"),
    ("nginx-light", "nginx"),
    ("busybox", "busybox"),
    ("curl", "curl"),
    ("tcpdump", "tcpdump"),
];

/// Packages that must be named to `apt-get install`, sorted and without repetition.
pub fn packages() -> Vec<&'static str> {
    let mut packages: Vec<_> = PROGRAMS.iter().map(|(package, _)| *package).collect();
    packages.sort_unstable();
    packages.dedup();
    packages
}

/// Packages of which a program is missing on this machine.
pub fn missing() -> Vec<&'static str> {
    let mut missing: Vec<_> = PROGRAMS
        .iter()
        .filter(|(_, program)| find_program(program).is_none())
        .map(|(package, _)| *package)
        .collect();
    missing.dedup();
    missing
}

/// Checks that everything is installed.
///
/// # Errors
/// [`LabError::MissingPackages`] names the packages to install.
pub fn check() -> Result<(), LabError> {
    let missing = missing();
    if missing.is_empty() { Ok(()) } else { Err(LabError::MissingPackages(missing)) }
}

/// The caller's `PATH`, followed by the system directories that ordinary users often lack.
pub fn search_path() -> String {
    const SYSTEM: [&str; 6] = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];
    let mut path = std::env::var("PATH").unwrap_or_default();
    for directory in SYSTEM {
        if !path.split(':').any(|entry| entry == directory) {
            if !path.is_empty() {
                path.push(':');
            }
            path.push_str(directory);
        }
    }
    path
}

fn find_program(name: &str) -> Option<PathBuf> {
    search_path().split(':').map(|directory| PathBuf::from(directory).join(name)).find(|path| path.exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_are_listed_once() {
        let packages = packages();
        assert_eq!(packages.iter().filter(|package| **package == "util-linux").count(), 1);
        assert!(packages.contains(&"dnsmasq-base") && packages.contains(&"isc-dhcp-client"));
    }

    #[test]
    fn a_program_that_does_not_exist_is_not_found() {
        assert_eq!(find_program("no-such-program-of-any-package"), None);
        assert!(find_program("sh").is_some());
    }

    #[test]
    fn system_directories_are_searched_too() {
        assert!(search_path().split(':').any(|entry| entry == "/usr/sbin"));
    }
}
