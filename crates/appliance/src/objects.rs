use std::collections::BTreeMap;
use std::sync::Arc;

use proximity_table::{
    Change, Facts, Intent, Label, Ledger, Mac, Name, Protocol, RecordType, Source, Touched,
};

/// Objects made by the API, as the changes that make them again. They outlive every reload of the file: an
/// object that the file hides for a while comes back when the file lets it.
#[derive(Clone, Debug, Default)]
pub struct ApiObjects(BTreeMap<Key, Change>);

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Vhost(Label),
    Reservation(Arc<str>, Mac),
    Records(Name, RecordType),
    Forward(Protocol, u16),
}

impl ApiObjects {
    /// The objects that were stored.
    pub fn of(objects: Vec<Change>) -> ApiObjects {
        let mut all = ApiObjects::default();
        for object in objects {
            all.note(&object);
        }
        all
    }

    /// Follows a change.
    pub fn note(&mut self, change: &Change) {
        match change {
            Change::Vhost(Source::Api, vhost) => self.put(Key::Vhost(vhost.app_name.clone()), change),
            Change::Reservation(Source::Api, own) => {
                self.put(Key::Reservation(own.network.clone(), own.mac), change)
            }
            Change::Records(Source::Api, name, rtype, _) => {
                self.put(Key::Records(name.clone(), *rtype), change)
            }
            Change::Forward(Source::Api, own) => self.put(Key::Forward(own.protocol, own.port), change),
            Change::RemoveVhost(app) => self.remove(&Key::Vhost(app.clone())),
            Change::RemoveReservation(network, mac) => self.remove(&Key::Reservation(network.clone(), *mac)),
            Change::RemoveRecords(name, rtype) => self.remove(&Key::Records(name.clone(), *rtype)),
            Change::RemoveForward(protocol, port) => self.remove(&Key::Forward(*protocol, *port)),
            _ => {}
        }
    }

    /// The file's intent with these objects added, wherever the file does not say otherwise.
    pub fn merge(&self, file: &Intent) -> Intent {
        let mut facts = Facts::new(file.clone(), Ledger::default());
        for (key, change) in &self.0 {
            if !key.is_taken(file) {
                facts.apply(change.clone(), &mut Touched::default());
            }
        }
        (**facts.intent()).clone()
    }

    fn put(&mut self, key: Key, change: &Change) {
        self.0.insert(key, change.clone());
    }

    fn remove(&mut self, key: &Key) {
        self.0.remove(key);
    }
}

impl Key {
    fn is_taken(&self, file: &Intent) -> bool {
        match self {
            Key::Vhost(app) => file.vhosts.contains_key(app),
            Key::Reservation(network, mac) => file.reservations.contains_key(&(network.clone(), *mac)),
            Key::Records(name, rtype) => file.records.contains_key(&(name.clone(), *rtype)),
            Key::Forward(protocol, port) => file.forwards.contains_key(&(*protocol, *port)),
        }
    }
}
