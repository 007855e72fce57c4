//! Makes the kernel's firewall match the world, and finds out when it does not any more.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use proximity_net::policy::{LanPolicy, Policy, PortForward};
use proximity_net::ruleset::Ruleset;
use proximity_net::sysctl::{self, Setting};
use proximity_net::{Nft, VerifyError};
use proximity_table::World;

use crate::{log, vital};

/// Name of the one nftables table that is ours.
pub const TABLE: &str = "proximity";
/// How long the registrar waits for the kernel before it goes on with a divergence: an app without its
/// element in a set is better off than one without an address.
const PATIENCE: Duration = Duration::from_millis(500);
/// How long the thread may take for what it is waited for; longer, and it is stuck in the kernel.
const STUCK: Duration = Duration::from_secs(5);
/// How often everything is compared although nobody told of a change.
const RESYNC: Duration = Duration::from_secs(300);
/// How soon a failed attempt is made again.
const RETRY: Duration = Duration::from_secs(5);

/// A handle to the thread that owns the firewall.
#[derive(Clone)]
pub struct Kernel {
    orders: SyncSender<Order>,
    /// In what the kernel differs from the plan; `None` while it does not.
    divergence: Arc<ArcSwap<Option<String>>>,
    /// The newest world that there was no room to order: too many orders wait.
    missed: Arc<ArcSwapOption<World>>,
    port: Option<u32>,
}

/// Addresses whose lease began or ended.
#[derive(Clone, Debug, Default)]
pub struct LeasedChange {
    pub added: Vec<Ipv4Addr>,
    pub removed: Vec<Ipv4Addr>,
}

enum Order {
    /// Make the kernel match this world: the whole ruleset, or only the set of leased addresses.
    Match { world: Arc<World>, ruleset: bool, leased: LeasedChange, done: SyncSender<()> },
    /// Somebody else touched the table.
    Check,
    /// Leave everything alone, and tell what forwarding was before it was switched on here.
    Rest(SyncSender<Option<Setting>>),
    /// Make up for what happened meanwhile.
    GoOn,
    /// Take the table away.
    Remove(SyncSender<()>),
    /// End, and leave the kernel as it is: it is another process's now.
    Leave,
}

impl Kernel {
    /// Starts the thread. Without nftables it runs on and reports a divergence. `forwarding` is what another
    /// process has set already.
    pub fn start(admin_ports: Vec<u16>, forwarding: Option<Setting>) -> Kernel {
        let (orders, inbox) = sync_channel(64);
        let divergence = Arc::new(ArcSwap::from_pointee(Some("the firewall was not applied yet".to_owned())));
        let nft = Nft::open().map_err(|error| error.to_string());
        let port = nft.as_ref().ok().map(Nft::port);
        let missed = Arc::new(ArcSwapOption::empty());
        let state = Thread {
            nft,
            admin_ports,
            divergence: divergence.clone(),
            missed: missed.clone(),
            world: None,
            plan: None,
            forwarding,
            rests: false,
        };
        vital::spawn("kernel", move || state.run(&inbox));
        Kernel { orders, divergence, missed, port }
    }

    /// Makes the kernel match a world; returns when it does, or when it took too long or failed, which then
    /// is a divergence.
    pub fn sync(&self, world: &Arc<World>, ruleset: bool, leased: LeasedChange) {
        if !ruleset && leased.added.is_empty() && leased.removed.is_empty() {
            return;
        }
        let (done, finished) = sync_channel(1);
        let order = Order::Match { world: world.clone(), ruleset, leased, done };
        // A thread that is stuck in the kernel must not stop the registrar too: what it misses now it makes
        // up by applying everything.
        if self.orders.try_send(order).is_err() {
            self.missed.store(Some(world.clone()));
        }
        if finished.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
            log!(Warn, "kernel", "the firewall is late", generation = world.generation);
        }
    }

    /// Compares kernel and plan at the next opportunity.
    pub fn check(&self) {
        // A full queue holds orders that compare as well.
        let _ = self.orders.try_send(Order::Check);
    }

    /// Leaves the kernel alone from now on, and says what forwarding was before, if it was switched on here.
    /// Blocks; an error says that the thread is stuck.
    pub fn rest(&self) -> Result<Option<Setting>, String> {
        let (done, finished) = sync_channel(1);
        let _ = self.orders.send(Order::Rest(done));
        finished.recv_timeout(STUCK).map_err(|_| "the firewall's thread does not answer".to_owned())
    }

    /// Ends the rest, and makes the kernel match whatever was published meanwhile.
    pub fn go_on(&self) {
        let _ = self.orders.send(Order::GoOn);
    }

    /// Ends the thread without touching anything.
    pub fn leave(&self) {
        let _ = self.orders.send(Order::Leave);
    }

    /// Ends forwarding, then removes the table, then the thread: nothing is applied any more.
    pub fn remove(&self) {
        let (done, finished) = sync_channel(1);
        if self.orders.send(Order::Remove(done)).is_ok() {
            let _ = finished.recv_timeout(STUCK);
        }
    }

    /// In what the kernel differs from the plan.
    pub fn divergence(&self) -> Option<String> {
        (**self.divergence.load()).clone()
    }

    /// The netlink port whose changes are our own.
    pub fn port(&self) -> Option<u32> {
        self.port
    }
}

struct Thread {
    nft: Result<Nft, String>,
    admin_ports: Vec<u16>,
    divergence: Arc<ArcSwap<Option<String>>>,
    missed: Arc<ArcSwapOption<World>>,
    world: Option<Arc<World>>,
    /// What the kernel should have; `None` after a failure, so that everything is applied anew.
    plan: Option<Ruleset>,
    /// Set when packets are forwarded: not before the firewall stands.
    forwarding: Option<Setting>,
    /// Another process may be at it.
    rests: bool,
}

impl Thread {
    fn run(mut self, inbox: &Receiver<Order>) {
        loop {
            let wait = if self.divergence.load().is_none() { RESYNC } else { RETRY };
            match inbox.recv_timeout(wait) {
                Ok(Order::Match { world, ruleset, leased, done }) => {
                    // What was made up for with a newer world is not undone by an older one.
                    if self.world.as_ref().is_none_or(|known| known.generation < world.generation) {
                        self.world = Some(world);
                        self.report(|thread| thread.apply(ruleset, &leased));
                    }
                    let _ = done.send(());
                }
                Ok(Order::Check) | Err(RecvTimeoutError::Timeout) if self.rests => {}
                Ok(Order::Check) | Err(RecvTimeoutError::Timeout) => self.report(Thread::verify),
                Ok(Order::Rest(done)) => {
                    self.rests = true;
                    let _ = done.send(self.forwarding.clone());
                }
                Ok(Order::GoOn) => {
                    self.rests = false;
                    self.report(Thread::apply_everything);
                }
                Ok(Order::Leave) => return,
                Ok(Order::Remove(done)) => {
                    self.remove();
                    let _ = done.send(());
                    return;
                }
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Runs a step and makes its failure the state that everybody sees.
    fn report(&mut self, step: impl FnOnce(&mut Thread) -> Result<(), String>) {
        if self.world.is_none() {
            return;
        }
        let result = step(self);
        let before = (**self.divergence.load()).clone();
        let after = result.err();
        if after.is_some() {
            self.plan = None;
        }
        if before != after {
            match &after {
                Some(reason) => log!(Error, "kernel", "the firewall is not as planned", reason = reason),
                None => log!(Info, "kernel", "the firewall is as planned"),
            }
            self.divergence.store(Arc::new(after));
        }
    }

    fn apply(&mut self, ruleset: bool, leased: &LeasedChange) -> Result<(), String> {
        let missed = self.missed.swap(None);
        if missed.is_none()
            && !ruleset
            && self.plan.is_some()
            && let Ok(nft) = &mut self.nft
            && nft.change_leased(TABLE, &leased.added, &leased.removed).is_ok()
        {
            return Ok(());
        }
        if missed.is_some() {
            self.world = missed;
        }
        self.apply_everything()
    }

    fn remove(&mut self) {
        if self.world.is_none() {
            // Nothing here is ours: another appliance may run, and the start of this one failed.
            return;
        }
        if let Some(Err(error)) = self.forwarding.take().map(Setting::restore) {
            log!(Warn, "kernel", "forwarding stays as it is", error = error);
        }
        if let Ok(nft) = &mut self.nft
            && let Err(error) = nft.remove(TABLE)
        {
            log!(Error, "kernel", "the firewall table stays behind", error = error);
        }
    }

    /// Applies the whole plan in one transaction and reads it back.
    fn apply_everything(&mut self) -> Result<(), String> {
        let world = self.world.clone().ok_or("no world was published yet")?;
        let plan = proximity_net::plan::plan(&policy(&world, &self.admin_ports))
            .map_err(|error| error.to_string())?;
        let leased: BTreeSet<Ipv4Addr> = world.facts.ledger().bound_addresses().collect();
        let nft = self.nft.as_mut().map_err(|error| error.clone())?;
        nft.apply(&plan, leased.iter().copied()).map_err(|error| error.to_string())?;
        nft.verify(&plan, leased).map_err(|error| error.to_string())?;
        self.plan = Some(plan);
        if self.forwarding.is_none() {
            let setting = sysctl::set(sysctl::IP_FORWARD, "1");
            self.forwarding = Some(setting.map_err(|error| format!("apps have no internet: {error}"))?);
        }
        Ok(())
    }

    /// Compares, and applies everything again where somebody changed something.
    fn verify(&mut self) -> Result<(), String> {
        if self.nft.is_err() {
            self.nft = Nft::open().map_err(|error| error.to_string());
        }
        let (Some(plan), Some(world), Ok(nft)) = (&self.plan, &self.world, &mut self.nft) else {
            return self.apply_everything();
        };
        match nft.verify(plan, world.facts.ledger().bound_addresses()) {
            Ok(()) => Ok(()),
            Err(VerifyError::Diverged(divergence)) => {
                log!(
                    Warn,
                    "kernel",
                    "the firewall was changed by somebody else, applying it again",
                    found = divergence
                );
                self.apply_everything()
            }
            Err(VerifyError::Failed(error)) => Err(error.to_string()),
        }
    }
}

/// The firewall's view of a world.
fn policy(world: &World, admin_ports: &[u16]) -> Policy {
    let intent = world.facts.intent();
    Policy {
        table_name: TABLE.to_owned(),
        wan_addresses: world.facts.wan().addresses.clone(),
        networks: intent
            .networks
            .iter()
            .map(|network| LanPolicy {
                interface: network.interface.to_string(),
                subnet: network.address.subnet(),
                gateway: network.address.addr,
            })
            .collect(),
        masquerade: intent.masquerade,
        isolate_management: intent.isolate_management,
        admin_ports: admin_ports.to_vec(),
        wan_dns: intent.wan_dns,
        forwards: world
            .forwards
            .iter()
            .filter_map(|forward| {
                let (protocol, port) = (forward.protocol, forward.port);
                forward.translated_to().map(|to| PortForward { protocol, port, to })
            })
            .collect(),
        proxied: world
            .forwards
            .iter()
            .filter(|forward| forward.proxy.is_some())
            .map(|forward| (forward.protocol, forward.port))
            .collect(),
        ..Policy::new(intent.wan_interface.to_string())
    }
}
