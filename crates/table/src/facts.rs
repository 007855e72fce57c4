use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;

use imbl::{HashMap, OrdSet, Vector};
use serde::{Deserialize, Serialize};

use crate::{
    BackendTarget, Forward, Health, Intent, Label, Lease, Ledger, Mac, Name, ProbeKey, Protocol, Record,
    RecordType, Reservation, Source, Vhost, Wan, derive,
};

/// Everything the world is derived from. Only the registrar changes it.
#[derive(Clone, Debug)]
pub struct Facts {
    intent: Arc<Intent>,
    ledger: Ledger,
    health: HashMap<(Arc<str>, ProbeKey), Health>,
    wan: Wan,
    /// Which vhosts claim a host name, follow an app, or point at an address: what a change touches.
    claims: HashMap<Name, OrdSet<Label>>,
    followers: HashMap<Label, OrdSet<Label>>,
    pointers: HashMap<Ipv4Addr, OrdSet<Label>>,
    /// Vhosts that ask for what nobody else claims.
    defaults: OrdSet<Label>,
    /// Host names whose last lease was taken away, the latest last.
    released: Vector<Label>,
}

/// Host names that are remembered after their last lease.
const MOST_RELEASED: usize = 256;

/// One change of the facts.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Change {
    /// A lease was granted, renewed, ended or marked.
    Lease(Lease),
    /// A lease is forgotten.
    ForgetLease(Ipv4Addr),
    /// A vhost is created or replaced.
    Vhost(Source, Arc<Vhost>),
    /// A vhost is removed.
    RemoveVhost(Label),
    /// A reservation is created or replaced.
    Reservation(Source, Reservation),
    /// A reservation is removed.
    RemoveReservation(Arc<str>, Mac),
    /// The records of a name and type are replaced.
    Records(Source, Name, RecordType, Vec<Record>),
    /// The records of a name and type are removed.
    RemoveRecords(Name, RecordType),
    /// A port forward is created or replaced.
    Forward(Source, Forward),
    /// A port forward is removed.
    RemoveForward(Protocol, u16),
    /// A probe came to another verdict, or, with `None`, its backend is no longer asked so.
    Health(Arc<str>, ProbeKey, Option<Health>),
    /// The outside link changed.
    Wan(Wan),
    /// The whole intent is replaced: a configuration was loaded.
    Intent(Arc<Intent>),
}

/// What has to be derived anew after some changes.
#[derive(Clone, Debug, Default)]
pub struct Touched {
    /// Everything.
    pub everything: bool,
    /// These names, forward and reverse.
    pub names: BTreeSet<Name>,
}

impl Facts {
    /// Facts with nothing but an intent and the leases found in the store.
    pub fn new(intent: Intent, ledger: Ledger) -> Facts {
        let mut facts = Facts {
            intent: Arc::new(intent),
            ledger,
            health: HashMap::new(),
            wan: Wan::default(),
            claims: HashMap::new(),
            followers: HashMap::new(),
            pointers: HashMap::new(),
            defaults: OrdSet::new(),
            released: Vector::new(),
        };
        facts.index_all();
        facts
    }

    /// What the administrator asked for.
    pub fn intent(&self) -> &Arc<Intent> {
        &self.intent
    }

    /// The leases.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// The outside link.
    pub fn wan(&self) -> &Wan {
        &self.wan
    }

    /// Whether a host name had a lease that was taken away, or that another one took the place of, and has none since.
    /// Of very many the latest are known, and none of before the start of the process.
    pub fn was_released(&self, hostname: &Label) -> bool {
        self.released.contains(hostname)
    }

    /// What the probes of an app found of a backend that they ask so.
    pub fn health(&self, app: &Arc<str>, key: ProbeKey) -> Option<&Health> {
        self.health.get(&(app.clone(), key))
    }

    /// Everything that the probes found: app, backend and verdict.
    pub fn verdicts(&self) -> impl Iterator<Item = (&Arc<str>, ProbeKey, &Health)> {
        self.health.iter().map(|((app, key), health)| (app, *key, health))
    }

    /// Makes one change and notes in `touched` what follows from it.
    pub fn apply(&mut self, change: Change, touched: &mut Touched) {
        match change {
            Change::Lease(lease) => {
                // Whoever carries one of these names before or after may gain or lose it.
                let (ip, network) = (lease.ip, lease.network.clone());
                let held = self.ledger.of_client(&network, lease.mac).cloned();
                let there = self.ledger.at(ip).cloned();
                let leases: Vec<Arc<Lease>> =
                    held.into_iter().chain(there).chain([Arc::new(lease.clone())]).collect();
                leases.iter().for_each(|lease| self.touch_lease(lease, touched));
                let gone = self.ledger.put(lease);
                gone.iter().for_each(|lease| self.note_released(lease));
                leases.iter().for_each(|lease| self.touch_lease(lease, touched));
            }
            Change::ForgetLease(ip) => {
                if let Some(lease) = self.ledger.at(ip).cloned() {
                    self.touch_lease(&lease, touched);
                    self.ledger.remove(ip);
                    self.note_released(&lease);
                    self.touch_lease(&lease, touched);
                }
            }
            Change::Vhost(source, vhost) => {
                self.unindex(&vhost.app_name.clone(), touched);
                let app = vhost.app_name.clone();
                self.intent_mut().vhosts.insert(app.clone(), (source, vhost));
                self.index(&app, touched);
            }
            Change::RemoveVhost(app) => {
                self.unindex(&app, touched);
                self.intent_mut().vhosts.remove(&app);
            }
            Change::Health(app, key, health) => {
                match health {
                    Some(health) => self.health.insert((app.clone(), key), health),
                    None => self.health.remove(&(app.clone(), key)),
                };
                touched.names.extend(derive::names_of_app(self, &app, key.backend));
            }
            Change::Wan(wan) => {
                self.wan = wan;
            }
            Change::Intent(intent) => {
                self.intent = intent;
                self.index_all();
                touched.everything = true;
            }
            Change::Reservation(source, reservation) => {
                let key = (reservation.network.clone(), reservation.mac);
                self.intent_mut().reservations.insert(key, (source, Arc::new(reservation)));
                touched.everything = true;
            }
            Change::RemoveReservation(network, mac) => {
                self.intent_mut().reservations.remove(&(network, mac));
                touched.everything = true;
            }
            Change::Records(source, name, rtype, records) => {
                touched.names.insert(name.clone());
                self.intent_mut().records.insert((name, rtype), (source, Arc::new(records)));
            }
            Change::RemoveRecords(name, rtype) => {
                self.intent_mut().records.remove(&(name.clone(), rtype));
                touched.names.insert(name);
            }
            Change::Forward(source, forward) => {
                let key = (forward.protocol, forward.port);
                self.intent_mut().forwards.insert(key, (source, Arc::new(forward)));
            }
            Change::RemoveForward(protocol, port) => {
                self.intent_mut().forwards.remove(&(protocol, port));
            }
        }
    }

    /// The vhost that answers for a name: the first claimant, the file's before the API's.
    pub fn claimant(&self, name: &Name) -> Option<&(Source, Arc<Vhost>)> {
        self.first_of(self.claims.get(name)?)
    }

    /// The vhost that requests for unknown hosts go to: the file's before the API's.
    pub fn default_vhost(&self) -> Option<&(Source, Arc<Vhost>)> {
        self.first_of(&self.defaults)
    }

    fn first_of(&self, apps: &OrdSet<Label>) -> Option<&(Source, Arc<Vhost>)> {
        apps.iter()
            .filter_map(|app| self.intent.vhosts.get(app))
            .min_by_key(|(source, _)| *source == Source::Api)
    }

    fn intent_mut(&mut self) -> &mut Intent {
        Arc::make_mut(&mut self.intent)
    }

    fn note_released(&mut self, lease: &Lease) {
        let Some(hostname) = &lease.hostname else { return };
        if self.ledger.of_hostname(&lease.network, hostname).next().is_some() {
            return;
        }
        self.released.retain(|name| name != hostname);
        self.released.push_back(hostname.clone());
        if self.released.len() > MOST_RELEASED {
            self.released.pop_front();
        }
    }

    fn touch_lease(&self, lease: &Lease, touched: &mut Touched) {
        touched.names.insert(Name::reverse(lease.ip));
        self.touch_vhosts(self.pointers.get(&lease.ip), touched);
        if let Some(hostname) = &lease.hostname {
            self.touch_hostname(&lease.network, hostname, touched);
        }
    }

    /// A change among the holders of a host name moves the name, the reverse names of the old and the
    /// new owner, and the vhosts that follow the name.
    fn touch_hostname(&self, network: &Arc<str>, hostname: &Label, touched: &mut Touched) {
        if let Some(fqdn) = self.intent.network(network).and_then(|net| net.domain.child(hostname).ok()) {
            touched.names.insert(fqdn);
        }
        if let Some(owner) = derive::owner(&self.ledger, network, hostname) {
            touched.names.insert(Name::reverse(owner.ip));
        }
        self.touch_vhosts(self.followers.get(hostname), touched);
    }

    fn touch_vhosts(&self, apps: Option<&OrdSet<Label>>, touched: &mut Touched) {
        for (_, vhost) in apps.into_iter().flatten().filter_map(|app| self.intent.vhosts.get(app)) {
            touched.names.extend(vhost.names().cloned());
        }
    }

    fn index_all(&mut self) {
        self.claims = HashMap::new();
        self.followers = HashMap::new();
        self.pointers = HashMap::new();
        self.defaults = OrdSet::new();
        let apps: Vec<Label> = self.intent.vhosts.keys().cloned().collect();
        for app in apps {
            self.index(&app, &mut Touched::default());
        }
    }

    fn index(&mut self, app: &Label, touched: &mut Touched) {
        self.change_index(app, touched, |set| {
            set.insert(app.clone());
        });
    }

    fn unindex(&mut self, app: &Label, touched: &mut Touched) {
        self.change_index(app, touched, |set| {
            set.remove(app);
        });
    }

    fn change_index(&mut self, app: &Label, touched: &mut Touched, edit: impl Fn(&mut OrdSet<Label>)) {
        let Some((_, vhost)) = self.intent.vhosts.get(app).cloned() else { return };
        for name in vhost.names() {
            edit_set(&mut self.claims, name, &edit);
            touched.names.insert(name.clone());
        }
        if vhost.default {
            edit(&mut self.defaults);
        }
        for target in vhost.targets() {
            match target {
                BackendTarget::Address(addr) => edit_set(&mut self.pointers, addr.ip(), &edit),
                BackendTarget::App { name, .. } => edit_set(&mut self.followers, name, &edit),
            }
        }
    }
}

fn edit_set<K: Clone + Eq + std::hash::Hash>(
    index: &mut HashMap<K, OrdSet<Label>>,
    key: &K,
    edit: impl Fn(&mut OrdSet<Label>),
) {
    let mut set = index.get(key).cloned().unwrap_or_default();
    edit(&mut set);
    if set.is_empty() {
        index.remove(key);
    } else {
        index.insert(key.clone(), set);
    }
}
