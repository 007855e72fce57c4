//! The old process' part of an upgrade, step by step, and back again where a step fails.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::mpsc::SyncSender;
use std::time::Duration;

use hyper::StatusCode;
use proximity_admin::{Appliance, Problem, Upgraded};
use tokio::sync::{mpsc, oneshot};
use tokio::task::spawn_blocking;

use super::messages::State;
use super::predecessor::{Candidate, Refusal, own_binary};
use super::retired::Retired;
use super::sockets::{Kept, Label};
use crate::registrar::Rested;
use crate::tasks::{Paused, Tasks, Work};
use crate::{log, supervisor};

/// How long the registrar may take to close the store: its disk may be slow.
const CLOSING: Duration = Duration::from_secs(10);

/// Wishes for another binary.
pub type Requests = mpsc::Receiver<Request>;

/// A wish for another binary; the one at our own path where none is named.
#[derive(Debug, Default)]
pub struct Request {
    binary: Option<PathBuf>,
    reply: Reply,
}

/// Who wants to know what came of it, if anybody.
#[derive(Debug, Default)]
pub struct Reply(Option<oneshot::Sender<Result<Upgraded, Problem>>>);

impl Request {
    /// A wish, and where the answer will be.
    pub fn new(binary: Option<PathBuf>) -> (Request, oneshot::Receiver<Result<Upgraded, Problem>>) {
        let (reply, answer) = oneshot::channel();
        (Request { binary, reply: Reply(Some(reply)) }, answer)
    }

    /// The binary, and who is to be answered.
    pub fn take(self) -> (Option<PathBuf>, Reply) {
        (self.binary, self.reply)
    }
}

impl Reply {
    /// Answers.
    pub fn answer(self, result: Result<Upgraded, Refusal>) {
        let explained = |refusal: Refusal| {
            let detail = format!("{} does not take over: {}", refusal.binary.display(), refusal.why);
            Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail, refusal.hint)
        };
        if let Some(reply) = self.0 {
            // Whoever asked may have gone away.
            let _ = reply.send(result.map_err(explained));
        }
    }
}

/// What rests while the new process takes over.
struct Resting {
    paused: Paused,
    /// Tells the registrar what became of it; `None` when it could not be brought to rest.
    outcome: Option<SyncSender<Rested>>,
    /// Processes that were replaced earlier.
    followers: Vec<(u32, UnixStream)>,
}

/// Has a binary take over. When this fails everything is as it was.
pub async fn hand_over(
    work: &Work,
    tasks: Tasks,
    binary: Option<PathBuf>,
    supervisor: Option<&OwnedFd>,
) -> Result<Retired, (Refusal, Tasks)> {
    let binary = binary.unwrap_or_else(|| own_binary().to_owned());
    let failed = |why: String| Refusal { binary: binary.clone(), why, hint: "look at the log and try again" };
    log!(Info, "upgrade", "starting another process", binary = binary.display());
    let (file, config) = (binary.clone(), work.control.config_path.clone());
    let started = spawn_blocking(move || Candidate::start(file, &config)).await;
    let candidate = match started.unwrap_or_else(|panic| Err(failed(panic.to_string()))) {
        Ok(candidate) => candidate,
        Err(refusal) => return Err((refusal, tasks)),
    };
    let mut resting = rest(work, tasks).await;
    let handed = match leave(work, &mut resting, supervisor).await {
        Ok((kept, state)) => {
            let handed = spawn_blocking(move || candidate.hand_over(&kept, state)).await;
            handed.unwrap_or_else(|panic| Err(failed(panic.to_string())))
        }
        // The candidate sees its connection closed, and ends.
        Err(why) => Err(failed(why)),
    };
    match handed {
        Ok(candidate) => Ok(retire(work, resting, candidate, supervisor).await),
        Err(refusal) => Err((refusal, go_on(work, resting))),
    }
}

/// Stops writing, everywhere. DNS and the proxy serve on.
async fn rest(work: &Work, tasks: Tasks) -> Resting {
    let paused = tasks.pause().await;
    let outcome = tokio::time::timeout(CLOSING, work.control.registrar.rest()).await.ok().flatten();
    let followers = work.control.followers.release().await;
    Resting { paused, outcome, followers }
}

/// Gathers what the new process needs.
async fn leave(
    work: &Work,
    resting: &mut Resting,
    supervisor: Option<&OwnedFd>,
) -> Result<(Kept, State), String> {
    if resting.outcome.is_none() {
        return Err("the store is not closed: the disk does not answer".to_owned());
    }
    let control = &work.control;
    let kernel = control.kernel.clone();
    let forwarding = spawn_blocking(move || kernel.rest()).await.map_err(|panic| panic.to_string())??;
    let kept = || -> std::io::Result<Kept> {
        let mut kept = control.data.kept()?;
        kept.extend(work.admin.kept()?);
        for wire in work.networks.iter().filter_map(|(_, slot)| slot.load_full()) {
            kept.push(wire.kept()?);
        }
        for (pid, stream) in &resting.followers {
            kept.push((Label::Retired(*pid), stream.try_clone()?.into()));
        }
        kept.push((Label::Stderr, std::io::stderr().as_fd().try_clone_to_owned()?));
        if let Some(supervisor) = supervisor {
            kept.push((Label::Supervisor, supervisor.try_clone()?));
        }
        Ok(kept)
    };
    let kept = kept().map_err(|error| format!("the sockets cannot be sent: {error}"))?;
    let world = control.world();
    let verdicts = world.facts.verdicts();
    let state = State {
        pid: std::process::id(),
        verdicts: verdicts.map(|(app, key, health)| (app.clone(), key, health.clone())).collect(),
        gateway: world.facts.wan().gateway,
        wan_lease: resting.paused.held.clone(),
        forwarding_before: forwarding.map(|setting| setting.previous().map(str::to_owned)),
        stopped: control.stopped(),
    };
    Ok((kept, state))
}

/// Lets go of everything: the new process serves.
async fn retire(
    work: &Work,
    resting: Resting,
    candidate: Candidate,
    supervisor: Option<&OwnedFd>,
) -> Retired {
    let control = &work.control;
    let data = control.data.clone();
    // A panic would be the data threads' own, who have told of it.
    let _ = spawn_blocking(move || data.retire()).await;
    if let Some(outcome) = resting.outcome {
        let _ = outcome.send(Rested::Replaced);
    }
    control.kernel.leave();
    // Before this process can end: the end of the one that it knows is the end of the appliance.
    if let Some(supervisor) = supervisor {
        supervisor::tell_successor(supervisor, candidate.pid(), candidate.binary());
    }
    let upgraded = Upgraded {
        binary: candidate.binary().display().to_string(),
        old_version: env!("CARGO_PKG_VERSION").to_owned(),
        new_version: candidate.version().to_owned(),
        old_pid: std::process::id(),
        pid: candidate.pid(),
    };
    Retired::new(upgraded, candidate.retired(), resting.paused.answering)
}

/// Goes on as if nothing had happened.
fn go_on(work: &Work, resting: Resting) -> Tasks {
    let Resting { mut paused, outcome, followers } = resting;
    for (pid, stream) in followers {
        work.control.followers.expect(pid);
        work.control.followers.attach(pid, stream);
    }
    work.control.kernel.go_on();
    if let Some(outcome) = outcome {
        let _ = outcome.send(Rested::GoOn);
    }
    paused.answering.detach_all();
    Tasks::start(work, paused.held)
}
