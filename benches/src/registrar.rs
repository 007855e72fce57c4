//! The only writer of the world, as the appliance has it: what is durable is committed first, then the next world
//! is made from the last one and published. DHCP and the kernel's tables are missing.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::time::Instant;

use proximity_proxy::Snapshot;
use proximity_store::Store;
use proximity_table::{Change, Generation, Health, ProbeKey, Source, Touched, Vhost};
use tokio::sync::{mpsc, watch};

use crate::error::BenchError;

/// Most commands that wait, as in the appliance.
const QUEUE: usize = 4096;

/// A handle to the writer's thread.
#[derive(Debug)]
pub struct Registrar {
    commands: SyncSender<Command>,
    proven: Receiver<()>,
}

enum Command {
    Health(Arc<str>, ProbeKey, Option<Health>),
    Vhost(Arc<Vhost>, Sender<Result<Instant, BenchError>>),
}

struct Writer {
    snapshot: Snapshot,
    published: watch::Sender<u64>,
    store: Option<Store>,
}

impl Registrar {
    /// Starts to write, and to probe what there is: `vhosts` vhosts. What is made later is put into `store`.
    pub fn start(snapshot: &Snapshot, vhosts: usize, store: Option<Store>) -> Registrar {
        let (commands, inbox) = sync_channel(QUEUE);
        let (done, proven) = channel();
        let (published, generations) = watch::channel(1);
        let writer = Writer { snapshot: snapshot.clone(), published, store };
        std::thread::spawn(move || writer.run(&inbox, vhosts, &done));
        let (snapshot, reports) = (snapshot.clone(), commands.clone());
        std::thread::spawn(move || probe(snapshot, generations, &reports));
        Registrar { commands, proven }
    }

    /// Waits until every vhost has been probed once.
    pub fn wait_until_proven(&self) -> Result<(), BenchError> {
        Ok(self.proven.recv().map_err(io::Error::other)?)
    }

    /// Adds a vhost; returns when it was durable, as soon as it is published.
    pub fn add(&self, vhost: Vhost) -> Result<Instant, BenchError> {
        let (done, result) = channel();
        self.commands.send(Command::Vhost(Arc::new(vhost), done)).map_err(io::Error::other)?;
        result.recv().map_err(io::Error::other)?
    }
}

impl Writer {
    fn run(mut self, inbox: &Receiver<Command>, mut unproven: usize, proven: &Sender<()>) {
        for command in inbox {
            match command {
                Command::Health(app, key, health) => {
                    // Nothing of it is durable: there is no commit that could fail.
                    let _ = self.write(Change::Health(app, key, health));
                    unproven = unproven.saturating_sub(1);
                    if unproven == 0 {
                        // Only the first word counts, later ones find nobody.
                        let _ = proven.send(());
                    }
                }
                Command::Vhost(vhost, done) => {
                    let _ = done.send(self.write(Change::Vhost(Source::Api, vhost)));
                }
            }
        }
    }

    /// Makes a change; returns when it was durable.
    fn write(&mut self, change: Change) -> Result<Instant, BenchError> {
        let before = self.snapshot.load_full();
        let (mut facts, mut touched) = (before.facts.clone(), Touched::default());
        facts.apply(change.clone(), &mut touched);
        if let Some(store) = self.store.as_mut().filter(|_| Store::is_durable(&change)) {
            store.commit(&[change], None)?;
        }
        let durable = Instant::now();
        let generation = Generation(before.generation.0 + 1);
        self.snapshot.store(Arc::new(before.next(facts, &touched, generation)));
        self.published.send_replace(generation.0);
        Ok(durable)
    }
}

/// Probes every backend, and tells the writer what comes out.
fn probe(snapshot: Snapshot, published: watch::Receiver<u64>, verdicts: &SyncSender<Command>) {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build() else {
        return;
    };
    runtime.block_on(async {
        let (reports, mut reported) = mpsc::channel(1024);
        tokio::spawn(proximity_proxy::probe(snapshot, published, reports, |_| (), Arc::default(), 1));
        while let Some((app, key, health)) = reported.recv().await {
            if verdicts.send(Command::Health(app, key, health)).is_err() {
                return;
            }
        }
    });
}
