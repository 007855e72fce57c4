//! Processes that were replaced and still carry connections: they are told of every change of the world, so that
//! none of their connections outlives what it was opened to.

use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use proximity_net::fd_channel::framed;
use proximity_table::{Change, Generation};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::messages::Message;
use crate::log;

/// Batches of changes that may wait for a process that does not read; one that is further behind is let go.
const QUEUE: usize = 4096;
/// How long a process may take to read what waits for it when the next one takes over.
const PATIENCE: Duration = Duration::from_secs(1);

/// Those who are told.
#[derive(Clone, Default)]
pub struct Followers {
    all: Arc<Mutex<Vec<Follower>>>,
}

struct Follower {
    pid: u32,
    queue: mpsc::Sender<Arc<[u8]>>,
    /// Writes the queue out; gives the connection back when the queue is closed and empty.
    task: Option<JoinHandle<Option<StdUnixStream>>>,
    /// Until the connection may be written to.
    waiting: Option<mpsc::Receiver<Arc<[u8]>>>,
}

impl Followers {
    /// Notes a process that will follow: what changes from now on waits for it until it is attached.
    pub fn expect(&self, pid: u32) {
        let (queue, waiting) = mpsc::channel(QUEUE);
        self.lock().push(Follower { pid, queue, task: None, waiting: Some(waiting) });
    }

    /// Connects a process that is expected. Must be called in a tokio runtime.
    pub fn attach(&self, pid: u32, stream: StdUnixStream) {
        let mut all = self.lock();
        let Some(follower) = all.iter_mut().find(|follower| follower.pid == pid) else { return };
        let Some(waiting) = follower.waiting.take() else { return };
        let followers = self.clone();
        follower.task = Some(tokio::spawn(async move {
            let stream = write_out(stream, waiting).await;
            if stream.is_none() {
                followers.lock().retain(|follower| follower.pid != pid);
                log!(Info, "upgrade", "a replaced process has ended", pid = pid);
            }
            stream
        }));
    }

    /// The processes that follow.
    pub fn pids(&self) -> Vec<u32> {
        self.lock().iter().map(|follower| follower.pid).collect()
    }

    /// Tells everybody of changes that were published.
    pub fn tell(&self, generation: Generation, changes: &[Change]) {
        self.send(&Message::Changes(generation, changes.into()));
    }

    /// Tells everybody that the appliance is stopped.
    pub fn stop(&self) {
        self.send(&Message::Stop);
    }

    /// Ends the telling; returns the connections of those who have read everything. The others see theirs closed.
    pub async fn release(&self) -> Vec<(u32, StdUnixStream)> {
        let all = std::mem::take(&mut *self.lock());
        let mut released = Vec::new();
        for Follower { pid, queue, task, .. } in all {
            drop(queue);
            let Some(mut task) = task else { continue };
            match tokio::time::timeout(PATIENCE, &mut task).await {
                Ok(Ok(Some(stream))) => released.push((pid, stream)),
                _ => task.abort(),
            }
        }
        released
    }

    fn send(&self, message: &Message<'_>) {
        let mut all = self.lock();
        if all.is_empty() {
            return;
        }
        let bytes = serde_json::to_vec(message).map_err(std::io::Error::other).and_then(|json| framed(&json));
        let bytes: Arc<[u8]> = match bytes {
            Ok(bytes) => bytes.into(),
            Err(error) => {
                log!(Error, "upgrade", "replaced processes cannot be told", error = error);
                // Without knowledge of the world they end.
                return all.drain(..).for_each(|follower| follower.let_go());
            }
        };
        all.retain(|follower| {
            let told = follower.queue.try_send(bytes.clone()).is_ok();
            if !told {
                log!(Warn, "upgrade", "a replaced process is too slow", pid = follower.pid);
                follower.let_go();
            }
            told
        });
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Follower>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Follower {
    /// Closes its connection, which it may not be reading from.
    fn let_go(&self) {
        self.task.iter().for_each(JoinHandle::abort);
    }
}

/// Writes until the queue is closed, which gives the connection back, or the process is gone.
async fn write_out(stream: StdUnixStream, mut queue: mpsc::Receiver<Arc<[u8]>>) -> Option<StdUnixStream> {
    stream.set_nonblocking(true).ok()?;
    let mut stream = UnixStream::from_std(stream).ok()?;
    let mut nothing = [0; 16];
    loop {
        tokio::select! {
            biased;
            bytes = queue.recv() => match bytes {
                Some(bytes) => stream.write_all(&bytes).await.ok()?,
                None => return stream.into_std().ok(),
            },
            // It never says anything: this is its end.
            _ = stream.read(&mut nothing) => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upgrade::messages::hear;
    use proximity_net::FdChannel;

    const SOON: Option<Duration> = Some(Duration::from_secs(5));

    #[tokio::test]
    async fn changes_wait_for_the_connection_and_go_on_over_another_process() {
        let (here, there) = FdChannel::pair().unwrap();
        let followers = Followers::default();
        followers.tell(Generation(1), &[]);
        followers.expect(7);
        followers.tell(Generation(2), &[Change::ForgetLease([10, 20, 0, 5].into())]);
        followers.attach(7, here.into_stream());
        followers.tell(Generation(3), &[]);
        let mut released = followers.release().await;
        let (7, stream) = released.remove(0) else { panic!() };
        assert!(followers.pids().is_empty());

        let next = Followers::default();
        next.expect(7);
        next.tell(Generation(4), &[]);
        next.attach(7, stream);
        next.stop();
        let heard = tokio::task::spawn_blocking(move || {
            for generation in 2..=4 {
                let (message, _) = hear(&there, SOON).unwrap();
                let Message::Changes(of, changes) = message else { panic!("{message:?}") };
                assert_eq!((of.0, changes.len()), (generation, usize::from(generation == 2)));
            }
            assert!(matches!(hear(&there, SOON), Ok((Message::Stop, _))));
            there
        });
        // Held on to: whoever closes its end is forgotten.
        let _there = heard.await.unwrap();
        assert_eq!(next.pids(), [7]);
    }

    #[tokio::test]
    async fn whoever_ends_or_is_too_slow_is_forgotten() {
        let (here, there) = FdChannel::pair().unwrap();
        let followers = Followers::default();
        followers.expect(7);
        followers.attach(7, here.into_stream());
        drop(there);
        while !followers.pids().is_empty() {
            tokio::task::yield_now().await;
        }
        followers.expect(8);
        for _ in 0..QUEUE {
            followers.tell(Generation(1), &[]);
        }
        assert_eq!(followers.pids(), [8]);
        followers.tell(Generation(1), &[]);
        assert!(followers.pids().is_empty());
    }
}
