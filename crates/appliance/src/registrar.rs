//! The only writer. It takes what came in, decides, makes it durable, publishes one new world, brings the
//! kernel up to it, and only then lets the replies go.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use arc_swap::ArcSwap;
use hyper::StatusCode;
use proximity_admin::{Edit, Problem};
use proximity_dhcp::{Answer, Drop, Reply, Request, Server, Stats};
use proximity_store::{State, Store, StoreError};
use proximity_table::{
    Change, Facts, Generation, Health, Intent, Lease, LeaseState, Ledger, ProbeKey, ResolvedForward,
    Timestamp, Touched, Wan, World,
};
use tokio::sync::{oneshot, watch};

use crate::kernel::{Kernel, LeasedChange};
use crate::objects::ApiObjects;
use crate::upgrade::followers::Followers;
use crate::{clock, log, vital};

/// Most commands that wait; DHCP clients beyond that try again by themselves.
const QUEUE: usize = 4096;
/// Most commands that share one durable commit.
const BATCH: usize = 512;
/// Generations are taken from the store in blocks of this many, so that those which nothing durable
/// happened in are not used again after a restart either.
const GENERATION_BLOCK: u64 = 1024;
/// Longest sleep without work.
const LONGEST_SLEEP: Duration = Duration::from_secs(3600);

/// A handle to the registrar's thread.
#[derive(Clone)]
pub struct Registrar {
    commands: SyncSender<Command>,
    world: Arc<ArcSwap<World>>,
    published: watch::Receiver<u64>,
    trouble: Arc<ArcSwap<Option<String>>>,
}

/// Where a DHCP reply leaves by.
pub trait ReplySender: Send + Sync {
    /// Sends a reply to the client whose message came in as `from`.
    fn send(&self, reply: &Reply, from: &Inquiry);
}

/// A DHCP message with where it came from.
pub struct Inquiry {
    /// What is asked.
    pub request: Request,
    /// Network that it came in on.
    pub network: Arc<str>,
    /// Hardware address of the frame's sender: the client or its relay.
    pub sender: proximity_table::Mac,
    /// The way back.
    pub replies: Arc<dyn ReplySender>,
}

/// Something for the registrar to do.
pub enum Command {
    /// A DHCP message.
    Dhcp(Box<Inquiry>),
    /// A change by the admin API.
    Edit(Edit, oneshot::Sender<Result<Generation, Problem>>),
    /// A probe changed its verdict.
    Health(Arc<str>, ProbeKey, Option<Health>),
    /// The outside link changed.
    Wan(Wan, oneshot::Sender<()>),
    /// A configuration was read.
    Intent(Box<Intent>, oneshot::Sender<Generation>),
    /// Another process is to take over: close the store, say so, and wait for what becomes of it.
    Rest(oneshot::Sender<()>, Receiver<Rested>),
    /// The process that took over tells what changed.
    Follow(Generation, Vec<Change>),
}

/// What became of the process that was to take over. That nobody says so counts as [`Rested::GoOn`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rested {
    /// It failed: open the store again.
    GoOn,
    /// It is the only writer now.
    Replaced,
}

/// What a registrar begins with.
pub struct Beginning<'a> {
    /// Where everything durable goes.
    pub store: Store,
    /// What is in it.
    pub state: State,
    /// What the file says.
    pub intent: &'a Intent,
    /// The outside link.
    pub wan: Wan,
    /// What another process' probes found.
    pub verdicts: Vec<(Arc<str>, ProbeKey, Health)>,
    /// The firewall.
    pub kernel: Kernel,
    /// DHCP counters.
    pub stats: Arc<Stats>,
    /// Processes that are told of every change.
    pub followers: Followers,
}

impl Registrar {
    /// Starts the thread on what the store remembers and the configuration says. The first world is
    /// published when this returns; the kernel follows it.
    pub fn start(beginning: Beginning<'_>) -> Result<Registrar, StoreError> {
        let Beginning { mut store, state, intent, wan, verdicts, kernel, stats, followers } = beginning;
        let block_end = state.generation + GENERATION_BLOCK;
        store.commit(&[], Some(block_end))?;
        let objects = ApiObjects::of(state.objects);
        let facts = facts(&objects, intent, state.leases, wan, verdicts);
        let generation = Generation(state.generation + 1);
        let world = Arc::new(World::derive(facts, generation));
        // Of leases they know as much as the store; the file may say something else by now.
        followers.tell(generation, &[Change::Intent(world.facts.intent().clone())]);
        let shared = Arc::new(ArcSwap::new(world.clone()));
        let (notify, published) = watch::channel(generation.0);
        let (commands, inbox) = sync_channel(QUEUE);
        kernel.sync(&world, true, LeasedChange::default());
        let trouble = Arc::new(ArcSwap::from_pointee(None));
        let writer = Writer {
            trouble: trouble.clone(),
            store,
            kernel,
            stats,
            followers,
            file: intent.clone(),
            objects,
            server: Server::default(),
            world: shared.clone(),
            published: notify,
            block_end,
        };
        vital::spawn("registrar", move || writer.run(&inbox));
        Ok(Registrar { commands, world: shared, published, trouble })
    }

    /// The published world.
    pub fn world(&self) -> &Arc<ArcSwap<World>> {
        &self.world
    }

    /// Why nothing can be made durable at the moment.
    pub fn trouble(&self) -> Option<String> {
        (**self.trouble.load()).clone()
    }

    /// Tells of each new generation.
    pub fn published(&self) -> watch::Receiver<u64> {
        self.published.clone()
    }

    /// Hands over a DHCP message; `false` when too many wait.
    pub fn inquire(&self, inquiry: Inquiry) -> bool {
        !matches!(self.commands.try_send(Command::Dhcp(Box::new(inquiry))), Err(TrySendError::Full(_)))
    }

    /// Hands over a command, waiting for room without holding up the runtime.
    pub async fn order(&self, command: Command) {
        let mut command = command;
        while let Err(TrySendError::Full(back)) = self.commands.try_send(command) {
            command = back;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Makes a change; returns when it is durable, published and in the kernel.
    pub async fn edit(&self, edit: Edit) -> Result<Generation, Problem> {
        let (done, result) = oneshot::channel();
        self.order(Command::Edit(edit, done)).await;
        result.await.unwrap_or_else(|_| Err(not_durable("the registrar has stopped")))
    }

    /// Replaces what the file says.
    pub async fn set_intent(&self, intent: Intent) -> Option<Generation> {
        let (done, result) = oneshot::channel();
        self.order(Command::Intent(Box::new(intent), done)).await;
        result.await.ok()
    }

    /// Has the registrar stop writing; returns when the store is closed. Then everything waits until it is told
    /// what became of the process that was to take over.
    pub async fn rest(&self) -> Option<SyncSender<Rested>> {
        let (outcome, told) = sync_channel(1);
        let (done, rests) = oneshot::channel();
        self.order(Command::Rest(done, told)).await;
        rests.await.ok().map(|()| outcome)
    }

    /// Follows the process that took over. Blocks while too much waits.
    pub fn follow(&self, generation: Generation, changes: Vec<Change>) {
        // Without its thread the process ends anyway.
        let _ = self.commands.send(Command::Follow(generation, changes));
    }

    /// Tells of the outside link; returns when the firewall knows.
    pub async fn set_wan(&self, wan: Wan) {
        let (done, result) = oneshot::channel();
        self.order(Command::Wan(wan, done)).await;
        let _ = result.await;
    }
}

struct Writer {
    store: Store,
    kernel: Kernel,
    stats: Arc<Stats>,
    followers: Followers,
    /// What the file says.
    file: Intent,
    objects: ApiObjects,
    server: Server,
    world: Arc<ArcSwap<World>>,
    published: watch::Sender<u64>,
    /// Why the last commit failed.
    trouble: Arc<ArcSwap<Option<String>>>,
    /// Last generation of the block that the store knows to be used.
    block_end: u64,
}

/// What a batch has come to.
struct Batch {
    facts: Facts,
    generation: Generation,
    now: Timestamp,
    changes: Vec<Change>,
    touched: Touched,
    replies: Vec<(Box<Inquiry>, Reply, bool)>,
    /// Whoever waits for the commit.
    waiting: Vec<oneshot::Sender<Result<Generation, Problem>>>,
    told: Vec<Told>,
    /// What the file says, when it was read in this batch.
    file: Option<Intent>,
}

enum Told {
    Intent(oneshot::Sender<Generation>),
    Wan(oneshot::Sender<()>),
}

impl Writer {
    fn run(mut self, inbox: &Receiver<Command>) {
        loop {
            let first = match inbox.recv_timeout(self.sleep()) {
                Ok(command) => Some(command),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let world = self.world.load_full();
            let mut batch = Batch {
                facts: world.facts.clone(),
                generation: Generation(world.generation.0 + 1),
                now: clock::now(),
                changes: Vec::new(),
                touched: Touched::default(),
                replies: Vec::new(),
                waiting: Vec::new(),
                told: Vec::new(),
                file: None,
            };
            // Whatever arrived during the last commit shares the next one.
            let more = std::iter::from_fn(|| inbox.try_recv().ok());
            let mut rest = None;
            for command in first.into_iter().chain(more).take(BATCH) {
                if let Command::Rest(done, told) = command {
                    rest = Some((done, told));
                    break;
                }
                self.take(&mut batch, command);
            }
            batch.end_leases();
            self.finish(&world, batch);
            if let Some((done, told)) = rest {
                self.store.close();
                let _ = done.send(());
                match told.recv() {
                    Ok(Rested::Replaced) => return self.follow(inbox),
                    Ok(Rested::GoOn) | Err(_) => self.go_on(),
                }
            }
        }
    }

    /// Takes the store back from a process that had it for a while. What it may have written counts.
    fn go_on(&mut self) {
        let begun = self.store.open_again().and_then(|state| {
            let block_end = state.generation.max(self.block_end) + GENERATION_BLOCK;
            self.store.commit(&[], Some(block_end))?;
            Ok((state, block_end))
        });
        let (state, block_end) = match begun {
            Ok(begun) => begun,
            Err(error) => {
                // The next commit opens it again; until then nothing is promised.
                log!(Error, "store", "the store cannot be opened again", error = error);
                return self.trouble.store(Arc::new(Some(error.to_string())));
            }
        };
        let before = self.world.load_full();
        self.objects = ApiObjects::of(state.objects);
        let verdicts = before.facts.verdicts();
        let verdicts = verdicts.map(|(app, key, health)| (app.clone(), key, health.clone())).collect();
        let wan = before.facts.wan().clone();
        let facts = facts(&self.objects, &self.file, state.leases, wan, verdicts);
        let generation = Generation(state.generation.max(before.generation.0) + 1);
        self.block_end = block_end;
        let world = Arc::new(World::derive(facts, generation));
        self.followers.tell(generation, &[Change::Intent(world.facts.intent().clone())]);
        self.world.store(world.clone());
        self.kernel.sync(&world, true, LeasedChange::default());
        self.published.send_replace(generation.0);
    }

    /// Another process is the only writer: what it tells is published, so that the connections that are left here
    /// see the same world, and nothing else is done any more.
    fn follow(self, inbox: &Receiver<Command>) {
        for command in inbox {
            match command {
                Command::Follow(generation, changes) => {
                    let before = self.world.load_full();
                    let (mut facts, mut touched) = (before.facts.clone(), Touched::default());
                    changes.into_iter().for_each(|change| facts.apply(change, &mut touched));
                    let world = Arc::new(before.next(facts, &touched, generation));
                    self.world.store(world);
                    self.published.send_replace(generation.0);
                }
                Command::Edit(_, done) => {
                    let _ = done.send(Err(Problem::taken_over()));
                }
                Command::Dhcp(_) => self.stats.count_drop(Drop::Stopped),
                // Whoever waits for these sees that nobody answers.
                Command::Health(..) | Command::Wan(..) | Command::Intent(..) | Command::Rest(..) => {}
            }
        }
    }

    /// Until the next lease ends.
    fn sleep(&self) -> Duration {
        let next = self.world.load().facts.ledger().next_end();
        let seconds = next.map_or(u64::MAX, |end| end.seconds_after(clock::now()));
        Duration::from_secs(seconds).clamp(Duration::from_millis(200), LONGEST_SLEEP)
    }

    fn take(&mut self, batch: &mut Batch, command: Command) {
        match command {
            Command::Dhcp(inquiry) => self.take_inquiry(batch, inquiry),
            Command::Edit(edit, done) => match edit(&batch.facts) {
                Ok(changes) => {
                    changes.into_iter().for_each(|change| batch.apply(change));
                    batch.waiting.push(done);
                }
                Err(problem) => {
                    let _ = done.send(Err(problem));
                }
            },
            Command::Health(app, key, health) => {
                if let Some(health) = &health {
                    let reason = health.reason.as_deref().unwrap_or("");
                    log!(
                        Info,
                        "health",
                        health.state.as_str(),
                        app = app,
                        backend = key.backend.addr,
                        reason = reason
                    );
                }
                batch.apply(Change::Health(app, key, health));
            }
            Command::Wan(wan, done) => {
                if *batch.facts.wan() != wan {
                    batch.apply(Change::Wan(wan));
                }
                batch.told.push(Told::Wan(done));
            }
            Command::Intent(intent, done) => {
                // Objects changed earlier in this batch are in the facts and not yet among the objects.
                let mut objects = self.objects.clone();
                batch.changes.iter().for_each(|change| objects.note(change));
                batch.apply(Change::Intent(Arc::new(objects.merge(&intent))));
                batch.file = Some(*intent);
                batch.told.push(Told::Intent(done));
            }
            // Taken before the batch, and only while another process is the writer.
            Command::Rest(..) | Command::Follow(..) => {}
        }
    }

    fn take_inquiry(&mut self, batch: &mut Batch, inquiry: Box<Inquiry>) {
        let request = &inquiry.request;
        self.stats.count_received(request.kind.into());
        let Some(network) =
            batch.facts.intent().network(&inquiry.network).filter(|net| net.dhcp_enabled).cloned()
        else {
            return self.stats.count_drop(Drop::ForeignRelay);
        };
        let handled = self.server.handle(request, &network, &batch.facts, batch.now, batch.generation.0);
        match handled {
            Ok(Answer { lease, reply }) => {
                let durable = lease.is_some();
                if let Some(lease) = lease {
                    batch.apply(Change::Lease(lease));
                }
                if let Some(reply) = reply {
                    batch.replies.push((inquiry, reply, durable));
                }
            }
            Err(reason) => {
                log!(Debug, "dhcp", "no answer", mac = request.mac, reason = reason);
                self.stats.count_drop(reason);
            }
        }
    }

    fn finish(&mut self, before: &World, mut batch: Batch) {
        let committed = self.commit(&batch);
        self.trouble.store(Arc::new(committed.as_ref().err().map(ToString::to_string)));
        if let Err(error) = committed {
            log!(Error, "store", "no lease or object of this batch was granted", error = error);
            batch = self.without_durable(before, batch, &error);
        }
        let mut generation = before.generation;
        if !batch.changes.is_empty() {
            generation = batch.generation;
            self.publish(before, &batch);
        }
        self.send(batch, generation);
    }

    /// What is left of a batch that could not be made durable: the facts that need no disk (health, WAN, the
    /// file), and the replies that promise nothing.
    fn without_durable(&self, before: &World, mut batch: Batch, error: &StoreError) -> Batch {
        let changes = std::mem::take(&mut batch.changes);
        batch.facts = before.facts.clone();
        batch.touched = Touched::default();
        for change in changes.into_iter().filter(|change| !Store::is_durable(change)) {
            batch.apply(match (change, &batch.file) {
                // Made anew: the one of the batch holds objects that are lost.
                (Change::Intent(_), Some(file)) => Change::Intent(Arc::new(self.objects.merge(file))),
                (change, _) => change,
            });
        }
        let (lost, free): (Vec<_>, Vec<_>) = batch.replies.drain(..).partition(|(.., durable)| *durable);
        lost.iter().for_each(|_| self.stats.count_drop(Drop::NotDurable));
        batch.replies = free;
        for done in batch.waiting.drain(..) {
            let _ = done.send(Err(not_durable(error)));
        }
        batch
    }

    fn publish(&mut self, before: &World, batch: &Batch) {
        for change in &batch.changes {
            self.objects.note(change);
            log_change(change);
        }
        if let Some(file) = &batch.file {
            self.file = file.clone();
        }
        let world = Arc::new(before.next(batch.facts.clone(), &batch.touched, batch.generation));
        let leased = leased_change(before, &world, &batch.changes);
        self.world.store(world.clone());
        self.kernel.sync(&world, ruleset_differs(before, &world), leased);
        self.published.send_replace(world.generation.0);
        self.followers.tell(world.generation, &batch.changes);
    }

    fn commit(&mut self, batch: &Batch) -> Result<(), StoreError> {
        let durable = batch.changes.iter().any(Store::is_durable);
        let next_block = batch.generation.0 >= self.block_end && !batch.changes.is_empty();
        if !durable && !next_block {
            return Ok(());
        }
        let block_end = if next_block { batch.generation.0 + GENERATION_BLOCK } else { self.block_end };
        self.store.commit(&batch.changes, next_block.then_some(block_end))?;
        self.block_end = block_end;
        Ok(())
    }

    fn send(&self, batch: Batch, generation: Generation) {
        for (inquiry, reply, _) in &batch.replies {
            self.stats.count_sent(reply.kind.into());
            inquiry.replies.send(reply, inquiry);
        }
        for done in batch.waiting {
            let _ = done.send(Ok(generation));
        }
        for told in batch.told {
            match told {
                Told::Intent(done) => drop(done.send(generation)),
                Told::Wan(done) => drop(done.send(())),
            }
        }
    }
}

impl Batch {
    fn apply(&mut self, change: Change) {
        // A client holds one address of a network: what it held before is given up in the same commit, or a
        // restart would find both.
        if let Change::Lease(lease) = &change
            && lease.state != LeaseState::Declined
            && let Some(held) = self.facts.ledger().of_client(&lease.network, lease.mac).map(|held| held.ip)
            && held != lease.ip
        {
            self.apply(Change::ForgetLease(held));
        }
        self.changes.push(change.clone());
        self.facts.apply(change, &mut self.touched);
    }

    /// Leases whose time is over end; declined addresses are free again.
    fn end_leases(&mut self) {
        let ended: Vec<Arc<Lease>> = self.facts.ledger().ended(self.now).cloned().collect();
        for lease in ended {
            match lease.state {
                LeaseState::Declined => self.apply(Change::ForgetLease(lease.ip)),
                _ => {
                    self.apply(Change::Lease(Lease { state: LeaseState::Expired, ..(*lease).clone() }));
                }
            }
        }
    }
}

/// The facts that a process begins with.
fn facts(
    objects: &ApiObjects,
    file: &Intent,
    leases: Vec<Lease>,
    wan: Wan,
    verdicts: Vec<(Arc<str>, ProbeKey, Health)>,
) -> Facts {
    let mut facts = Facts::new(objects.merge(file), Ledger::of(leases));
    let mut apply = |change| facts.apply(change, &mut Touched::default());
    apply(Change::Wan(wan));
    verdicts.into_iter().for_each(|(app, key, health)| apply(Change::Health(app, key, Some(health))));
    facts
}

/// Which addresses began or ceased to be leased by these changes.
fn leased_change(before: &World, after: &World, changes: &[Change]) -> LeasedChange {
    let mut touched: BTreeSet<Ipv4Addr> = BTreeSet::new();
    for change in changes {
        match change {
            Change::Lease(lease) => {
                touched.insert(lease.ip);
                // A client that moved left another address.
                touched
                    .extend(before.facts.ledger().of_client(&lease.network, lease.mac).map(|held| held.ip));
            }
            Change::ForgetLease(ip) => {
                touched.insert(*ip);
            }
            _ => {}
        }
    }
    let mut leased = LeasedChange::default();
    for ip in touched {
        let bound = |world: &World| world.facts.ledger().bound_at(ip).is_some();
        match (bound(before), bound(after)) {
            (false, true) => leased.added.push(ip),
            (true, false) => leased.removed.push(ip),
            _ => {}
        }
    }
    leased
}

/// Whether the firewall's plan can differ between two worlds.
fn ruleset_differs(before: &World, after: &World) -> bool {
    let (old, new) = (before.facts.intent(), after.facts.intent());
    forwards_differ(before, after)
        || before.facts.wan() != after.facts.wan()
        || old.networks != new.networks
        || old.wan_interface != new.wan_interface
        || (old.masquerade, old.isolate_management, old.wan_dns)
            != (new.masquerade, new.isolate_management, new.wan_dns)
}

/// Whether the firewall does something else for a forwarded port: verdicts of probes are not its business.
fn forwards_differ(before: &World, after: &World) -> bool {
    let plan = |forward: &Arc<ResolvedForward>| {
        (forward.protocol, forward.port, forward.proxy.is_some(), forward.translated_to())
    };
    !Arc::ptr_eq(&before.forwards, &after.forwards)
        && !before.forwards.iter().map(plan).eq(after.forwards.iter().map(plan))
}

/// One line for each change that somebody asked for or a client caused.
fn log_change(change: &Change) {
    let object = |what: &str, name: &dyn std::fmt::Display| log!(Info, "table", what, name = name);
    match change {
        Change::Lease(lease) => log_lease(lease),
        Change::ForgetLease(ip) => object("lease forgotten", ip),
        Change::Vhost(_, vhost) => object("vhost set", &vhost.app_name),
        Change::RemoveVhost(app) => object("vhost removed", app),
        Change::Reservation(_, own) => object("reservation set", &format_args!("{} {}", own.mac, own.ip)),
        Change::RemoveReservation(_, mac) => object("reservation removed", mac),
        Change::Records(_, name, rtype, _) => object("records set", &format_args!("{name} {rtype}")),
        Change::RemoveRecords(name, rtype) => object("records removed", &format_args!("{name} {rtype}")),
        Change::Forward(_, own) => object("forward set", &format_args!("{}/{}", own.protocol, own.port)),
        Change::RemoveForward(protocol, port) => {
            object("forward removed", &format_args!("{protocol}/{port}"))
        }
        Change::Health(..) | Change::Wan(_) | Change::Intent(_) => {}
    }
}

fn log_lease(lease: &Lease) {
    let what = match lease.state {
        LeaseState::Bound => "lease granted",
        LeaseState::Expired => "lease expired",
        LeaseState::Released => "lease released",
        LeaseState::Declined => "address declined",
    };
    let name = lease.hostname.as_ref().map(ToString::to_string).unwrap_or_default();
    log!(Info, "dhcp", what, ip = lease.ip, mac = lease.mac, hostname = name, network = lease.network);
}

fn not_durable(error: impl std::fmt::Display) -> Problem {
    let detail = format!("the change could not be made durable: {error}");
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail, "free disk space in state_dir and try again")
}
