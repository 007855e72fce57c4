use std::io;
use std::path::PathBuf;

use proximity_store::StoreError;

/// Why there are no figures.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum BenchError {
    #[error("programs are missing ({programs}): apt-get install -y {packages}")]
    Missing { programs: String, packages: String },
    #[error("{path}: {source}", path = path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("cannot start {program}: {source}")]
    Start { program: String, source: io::Error },
    #[error("{server} does not serve: {seen}\n{stderr}")]
    NotServing { server: String, seen: String, stderr: String },
    #[error("{server} has ended in the middle of the run\n{stderr}")]
    Ended { server: String, stderr: String },
    #[error("{program} said nothing that can be read: {output}")]
    Unreadable { program: &'static str, output: String },
    #[error("{server}: {failed} of {units} answers were wrong or missing: no figure is made of that")]
    Failed { server: String, failed: u64, units: u64 },
    #[error("{0}")]
    Store(#[from] StoreError),
    #[error("interrupted")]
    Interrupted,
    #[error("{0}")]
    Process(#[from] io::Error),
}
