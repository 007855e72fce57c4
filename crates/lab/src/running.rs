//! Finding running labs: each one started by `up` keeps a directory of its own, private to its user.
//!
//! It holds `first` (PID and identity of the first process inside, as the machine sees them),
//! `nodes` (name and PID, as the lab sees them), the unix sockets that carry connections, and logs.

use std::{
    ffi::OsString,
    fs::{self, DirBuilder},
    os::unix::{
        fs::{DirBuilderExt, MetadataExt},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::Command,
};

use nix::unistd::Uid;

use crate::{LabError, deps, enter};

/// The directory of one lab that runs, or is about to.
#[derive(Debug, Clone)]
pub struct RunningLab {
    directory: PathBuf,
}

impl RunningLab {
    /// Makes the directory of a new lab, named after the calling process.
    ///
    /// # Errors
    /// [`LabError::File`]; [`LabError::Invalid`] if another user owns the place.
    pub fn create() -> Result<Self, LabError> {
        Ok(Self { directory: own_directory("lab")? })
    }

    /// The lab in `directory`, which [`RunningLab::create`] made.
    pub fn at(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// What `--lab` takes.
    pub fn id(&self) -> String {
        let name = self.directory.file_name().unwrap_or_default().to_string_lossy();
        name.strip_prefix("lab-").unwrap_or(&name).to_owned()
    }

    /// Records the first process inside, as the machine sees it.
    ///
    /// # Errors
    /// [`LabError::File`].
    pub fn record_first(&self, pid: u32) -> Result<(), LabError> {
        self.write("first", &format!("{pid} {}\n", identity(pid)?))
    }

    /// Records the nodes and their PIDs, as the lab sees them.
    ///
    /// # Errors
    /// [`LabError::File`].
    pub fn record_nodes(&self, nodes: &[(&str, u32)]) -> Result<(), LabError> {
        let lines: String = nodes.iter().map(|(name, pid)| format!("{name} {pid}\n")).collect();
        self.write("nodes", &lines)
    }

    /// Removes the directory.
    pub fn remove(&self) {
        let _ = fs::remove_dir_all(&self.directory);
    }

    /// Labs of this user that are running, oldest first.
    pub fn all() -> Vec<Self> {
        let Ok(entries) = fs::read_dir(root()) else { return Vec::new() };
        let mut labs: Vec<_> = entries
            .flatten()
            .filter(|_| check_owner(&root()).is_ok())
            .map(|entry| Self::at(entry.path()))
            .filter(|lab| lab.first().is_some())
            .collect();
        labs.sort_by_key(|lab| fs::metadata(&lab.directory).and_then(|data| data.modified()).ok());
        labs
    }

    /// The lab with this id, or the only one running.
    ///
    /// # Errors
    /// [`LabError::NoSuchLab`] says what is running.
    pub fn find(id: Option<&str>) -> Result<Self, LabError> {
        let mut labs = Self::all();
        let running: Vec<_> = labs.iter().map(Self::id).collect();
        if let Some(id) = id {
            labs.retain(|lab| lab.id() == id);
        }
        match labs.len() {
            1 => Ok(labs.remove(0)),
            0 if running.is_empty() => {
                Err(LabError::NoSuchLab("no lab of yours is running: start one with `make lab`".to_owned()))
            }
            _ => {
                Err(LabError::NoSuchLab(format!("choose one with --lab: {} are running", running.join(", "))))
            }
        }
    }

    /// Names of the nodes.
    pub fn node_names(&self) -> Vec<String> {
        self.nodes().into_iter().map(|(name, _)| name).collect()
    }

    /// Replaces the calling process by `command`, run in a node.
    ///
    /// # Errors
    /// [`LabError::NoSuchLab`] names the nodes there are; [`LabError::Spawn`].
    pub fn exec(&self, node: &str, command: &[OsString]) -> Result<std::convert::Infallible, LabError> {
        let gone = || LabError::NoSuchLab(format!("lab {} has ended", self.id()));
        let first = self.first().ok_or_else(gone)?;
        let Some((_, pid)) = self.nodes().into_iter().find(|(name, _)| name == node) else {
            let names = self.node_names().join(", ");
            return Err(LabError::NoSuchLab(format!(
                "no node {node} in lab {}: there are {names}",
                self.id()
            )));
        };
        let mut nsenter = Command::new("nsenter");
        nsenter.args(["-t", &first.to_string()]);
        let users = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/user")).ok();
        if users(&first.to_string()) != users("self") {
            nsenter.args(["-U", "--preserve-credentials"]);
        }
        // First into the lab, where the node's PID has a meaning, then into the node.
        nsenter.args(["-n", "-m", "-p", "--", "nsenter", "-t", &pid.to_string()]);
        nsenter.args(["-n", "-m", "-u", "-p", "--"]).args(command);
        let source = nsenter.env("PATH", deps::search_path()).exec();
        Err(LabError::Spawn { command: "nsenter".to_owned(), source })
    }

    /// PID of the first process inside, if it still is the one that was recorded.
    fn first(&self) -> Option<u32> {
        let text = fs::read_to_string(self.directory.join("first")).ok()?;
        let (pid, recorded) = text.trim().split_once(' ')?;
        let pid = pid.parse().ok()?;
        (identity(pid).ok()? == recorded).then_some(pid)
    }

    fn nodes(&self) -> Vec<(String, u32)> {
        let text = fs::read_to_string(self.directory.join("nodes")).unwrap_or_default();
        text.lines()
            .filter_map(|line| {
                let (name, pid) = line.split_once(' ')?;
                Some((name.to_owned(), pid.parse().ok()?))
            })
            .collect()
    }

    fn write(&self, name: &str, content: &str) -> Result<(), LabError> {
        // Written aside and renamed: readers see all of it or nothing.
        let (path, draft) = (self.directory.join(name), self.directory.join(format!("{name}.new")));
        fs::write(&draft, content).map_err(LabError::file(&draft))?;
        fs::rename(&draft, &path).map_err(LabError::file(path))
    }
}

/// Makes a directory `kind-PID` of the calling process, and removes those of processes that are gone.
pub(crate) fn own_directory(kind: &str) -> Result<PathBuf, LabError> {
    let root = root();
    let private = |path: &Path| {
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(LabError::file(path))
    };
    private(&root)?;
    check_owner(&root)?;
    for entry in fs::read_dir(&root).map_err(LabError::file(&root))?.flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.rsplit('-').next());
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    let directory = root.join(format!("{kind}-{}", std::process::id()));
    // Left over from a process that had the same PID.
    let _ = fs::remove_dir_all(&directory);
    private(&directory)?;
    Ok(directory)
}

fn root() -> PathBuf {
    // PIDs mean something else inside namespaces, so labs started there keep to themselves.
    let place = if enter::is_inside() { enter::scratch_directory() } else { std::env::temp_dir() };
    place.join(format!("proximity-labs-{}", Uid::effective()))
}

/// The directory for temporary files is everyone's: another user must not be able to feed us PIDs.
fn check_owner(root: &Path) -> Result<(), LabError> {
    let data = fs::symlink_metadata(root).map_err(LabError::file(root))?;
    if data.is_dir() && data.uid() == Uid::effective().as_raw() && data.mode() & 0o022 == 0 {
        return Ok(());
    }
    Err(LabError::Invalid(format!("{} is not a private directory of this user: remove it", root.display())))
}

/// Start time of a process: with its PID, it names the process for as long as the machine runs.
fn identity(pid: u32) -> Result<String, LabError> {
    let path = format!("/proc/{pid}/stat");
    let stat = fs::read_to_string(&path).map_err(LabError::file(&path))?;
    // Field 22 of proc(5); the second may contain blanks.
    let start = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(19));
    start.map(str::to_owned).ok_or_else(|| LabError::Invalid(format!("{path} is not understood")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lab_whose_process_is_another_one_is_gone() {
        let directory = std::env::temp_dir().join(format!("proximity-lab-test-{}", std::process::id()));
        fs::create_dir_all(&directory).expect("a directory");
        let lab = RunningLab::at(directory);
        lab.record_first(std::process::id()).expect("recorded");
        assert_eq!(lab.first(), Some(std::process::id()));
        lab.write("first", &format!("{} 1\n", std::process::id())).expect("written");
        assert_eq!(lab.first(), None, "same PID, other start time");
        lab.remove();
        assert!(!lab.directory().exists());
    }

    #[test]
    fn nodes_are_read_back() {
        let directory = std::env::temp_dir().join(format!("proximity-lab-nodes-{}", std::process::id()));
        fs::create_dir_all(&directory).expect("a directory");
        let lab = RunningLab::at(directory);
        lab.record_nodes(&[("client", 12), ("wiki", 13)]).expect("recorded");
        assert_eq!(lab.nodes(), [("client".to_owned(), 12), ("wiki".to_owned(), 13)]);
        lab.remove();
    }
}
