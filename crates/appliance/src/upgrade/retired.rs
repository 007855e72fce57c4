//! A process that was replaced: it takes nothing any more and ends with its last connection.

use std::time::Duration;

use proximity_admin::Upgraded;
use proximity_net::FdChannel;
use tokio::sync::oneshot;
use tokio::task::{JoinSet, spawn_blocking};

use super::messages::{Message, hear};
use crate::daemon::Signals;
use crate::log;
use crate::registrar::Registrar;
use crate::tasks::Work;

/// How long the last answers of the admin API may take to be read.
const LAST_ANSWERS: Duration = Duration::from_secs(5);
/// Longest life after being replaced: a page that is open all day keeps its WebSocket, and opens another one
/// when that ends; what is older is forgotten somewhere, and costs the memory of a whole process.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// A process that was replaced.
pub struct Retired {
    upgraded: Upgraded,
    channel: FdChannel,
    answering: JoinSet<()>,
}

impl Retired {
    /// `channel` leads to the new process; `answering` are API requests that are being answered.
    pub fn new(upgraded: Upgraded, channel: FdChannel, answering: JoinSet<()>) -> Retired {
        Retired { upgraded, channel, answering }
    }

    /// By whom it was replaced.
    pub fn upgraded(&self) -> &Upgraded {
        &self.upgraded
    }

    /// Lives until the last connection has ended, it is told to end, or there is nobody any more who tells of the
    /// world: whose addresses are whose can then not be known here.
    pub async fn live(self, work: Work, signals: &mut Signals) {
        let Retired { channel, mut answering, .. } = self;
        // Everything that listens is the other's alone.
        let control = work.control.clone();
        drop(work);
        // A name that tells the two apart in lists of processes.
        let _ = nix::sys::prctl::set_name(c"proximity-old");
        let (alone, left_alone) = oneshot::channel::<()>();
        let registrar = control.registrar.clone();
        std::thread::Builder::new()
            .name("follow".to_owned())
            .spawn(move || {
                follow(&channel, &registrar);
                drop(alone);
            })
            .expect("threads can be made");
        let data = control.data.clone();
        let finished = spawn_blocking(move || data.finish());
        tokio::pin!(finished);
        let reason = tokio::select! {
            _ = finished.as_mut() => None,
            _ = left_alone => Some("nobody tells of the network any more"),
            () = signals.stop() => Some("it was told to"),
            () = tokio::time::sleep(LONGEST) => Some("it has lived long enough"),
        };
        if let Some(reason) = reason {
            log!(Info, "upgrade", "closing the connections that are left", reason = reason);
            control.data.stop_proxy();
            let _ = finished.await;
        }
        let answered = async { while answering.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(LAST_ANSWERS, answered).await;
    }
}

/// Publishes what the new process tells, until it tells nothing more.
fn follow(channel: &FdChannel, registrar: &Registrar) {
    loop {
        match hear(channel, None) {
            Ok((Message::Changes(generation, changes), _)) => {
                registrar.follow(generation, changes.into_owned());
            }
            Ok((Message::Stop, _)) => return,
            Ok(_) => {}
            Err(error) => return log!(Warn, "upgrade", "the new process is not heard", reason = error),
        }
    }
}
