//! What can go wrong while building or using a lab.

use std::{io, path::PathBuf, time::Duration};

/// A lab could not be built, or something inside it did not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LabError {
    /// The caller is not inside the private namespaces.
    #[error("not inside private namespaces: run inside `proximity-lab enter -- {command}`")]
    NotInside {
        /// The command the caller was started as.
        command: String,
    },
    /// The kernel refuses user namespaces to this user.
    #[error(
        "root is needed: this machine does not let an ordinary user make network namespaces ({detail}); run with sudo"
    )]
    NeedsRoot {
        /// What the probe printed.
        detail: String,
    },
    /// Even root may not make namespaces here.
    #[error("root may not make namespaces here ({detail}); in a container it must be privileged")]
    Refused {
        /// What the probe printed.
        detail: String,
    },
    /// Programs the lab is made of are not installed.
    #[error("these packages are missing: run `apt-get install {}`", .0.join(" "))]
    MissingPackages(Vec<&'static str>),
    /// A node did not come up.
    #[error("node {node} did not start: {detail}")]
    NodeStart {
        /// Name of the node.
        node: String,
        /// What its set-up printed.
        detail: String,
    },
    /// A system call on a namespace failed.
    #[error("{what} of node {node}: {source}")]
    Namespace {
        /// Name of the node.
        node: String,
        /// The step that failed.
        what: &'static str,
        /// The kernel's answer.
        #[source]
        source: nix::Error,
    },
    /// A program could not be started.
    #[error("cannot start `{command}`: {source}")]
    Spawn {
        /// The command line.
        command: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A program ran and failed.
    #[error("`{command}` failed ({status}): {detail}")]
    Failed {
        /// The command line, with the node it ran in.
        command: String,
        /// Exit status.
        status: std::process::ExitStatus,
        /// What it printed, standard error first.
        detail: String,
    },
    /// Something awaited did not happen in time.
    #[error("{what}: not within {after:?}; {detail}")]
    TimedOut {
        /// What was awaited.
        what: String,
        /// How long.
        after: Duration,
        /// The state in which it was left.
        detail: String,
    },
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// No lab, or no such node, is running.
    #[error("{0}")]
    NoSuchLab(String),
    /// A caller's value makes no sense.
    #[error("{0}")]
    Invalid(String),
}

impl LabError {
    /// For `map_err` on operations on `path`.
    pub(crate) fn file(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { path, source }
    }
}
