//! Kernel settings of the network namespace, put back on a clean stop.

use std::io;
use std::path::PathBuf;

/// Routing between interfaces. Nothing else is needed: reverse path filters of either kind suit our
/// topology, and the kernel itself holds back ICMP redirects on translated connections.
pub const IP_FORWARD: &str = "net.ipv4.ip_forward";

/// A setting could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum SysctlError {
    /// Not readable: no such setting, or no `/proc`.
    #[error("cannot read {key}: {source}. Mount /proc in this container")]
    Read {
        /// Dotted name.
        key: String,
        /// What the system said.
        source: io::Error,
    },
    /// Not writable, and not yet as wanted.
    #[error(
        "cannot set {key} to {wanted} (it is {found}): {source}. \
         Run as root; in an LXC set it from outside: lxc.sysctl.{key} = {wanted}"
    )]
    Write {
        /// Dotted name.
        key: String,
        /// The value we need.
        wanted: String,
        /// The value it has.
        found: String,
        /// What the system said.
        source: io::Error,
    },
}

/// A setting made, with the value it had before.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "keep it to restore the previous value on stop"]
pub struct Setting {
    key: String,
    /// `None`: it was as wanted already, nothing to restore.
    previous: Option<String>,
}

impl Setting {
    /// Whether the value was changed.
    pub fn changed(&self) -> bool {
        self.previous.is_some()
    }

    /// The value it had before, if that was another.
    pub fn previous(&self) -> Option<&str> {
        self.previous.as_deref()
    }

    /// A setting that another process made, to be restored by this one.
    pub fn made_before(key: &str, previous: Option<String>) -> Setting {
        Setting { key: key.to_owned(), previous }
    }

    /// Puts the previous value back, if it was another.
    pub fn restore(self) -> Result<(), SysctlError> {
        match self.previous {
            Some(previous) => set(&self.key, &previous).map(drop),
            None => Ok(()),
        }
    }
}

/// Sets a value. A read-only `/proc/sys` is fine if the value is right already.
pub fn set(key: &str, value: &str) -> Result<Setting, SysctlError> {
    let path = path(key);
    let found = std::fs::read_to_string(&path)
        .map_err(|source| SysctlError::Read { key: key.to_owned(), source })?
        .trim()
        .to_owned();
    if found == value {
        return Ok(Setting { key: key.to_owned(), previous: None });
    }
    match std::fs::write(&path, value) {
        Ok(()) => Ok(Setting { key: key.to_owned(), previous: Some(found) }),
        Err(source) => {
            Err(SysctlError::Write { key: key.to_owned(), wanted: value.to_owned(), found, source })
        }
    }
}

/// Dots separate, and a `/` stands for a dot inside a name (an interface like `eth0.5`), as in sysctl(8).
fn path(key: &str) -> PathBuf {
    let swap = |c| match c {
        '.' => '/',
        '/' => '.',
        c => c,
    };
    PathBuf::from("/proc/sys").join(key.chars().map(swap).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_paths() {
        assert_eq!(
            path("net.ipv4.conf.eth0/5.rp_filter"),
            PathBuf::from("/proc/sys/net/ipv4/conf/eth0.5/rp_filter")
        );
    }

    #[test]
    fn what_is_right_already_needs_no_write() {
        // Read-only for everybody, always "Linux".
        let setting = set("kernel.ostype", "Linux").unwrap();
        assert!(!setting.changed());
        setting.restore().unwrap();
        let error = set("kernel.ostype", "Plan 9").unwrap_err();
        assert!(matches!(&error, SysctlError::Write { found, .. } if found == "Linux"), "{error}");
        assert!(matches!(set("net.no_such_key", "1").unwrap_err(), SysctlError::Read { .. }));
    }
}
