//! Durable state: one redb transaction per registrar batch.
//!
//! What is stored are the facts that nobody else remembers: leases and objects made by the API. A commit
//! returns after its data is on disk (fdatasync), so whoever waits for it may promise it to others.

#![forbid(unsafe_code)]

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use proximity_table::{
    Change, Forward, Lease, Mac, Name, Protocol, Record, RecordType, Reservation, Source, Vhost,
};
use redb::backends::FileBackend;
use redb::{
    Database, ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition, WriteTransaction,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

/// Version of what the tables hold; a file of a later version is refused, not guessed at.
const SCHEMA: u64 = 1;

/// Octets of the file that are kept in memory.
const CACHE: usize = 4 << 20;

/// Name of the file below `state_dir`.
pub const FILE_NAME: &str = "state.redb";

const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
const LEASES: TableDefinition<u32, &[u8]> = TableDefinition::new("leases");
/// Objects made by the API: kind and key to JSON.
const OBJECTS: TableDefinition<(&str, &str), &[u8]> = TableDefinition::new("objects");

/// The open state file; one process at a time.
#[derive(Debug)]
pub struct Store {
    /// `None` while it is closed for another process, or an error keeps it from being opened again.
    database: Option<Database>,
    path: PathBuf,
}

/// Everything that was stored.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// All leases, ended ones too.
    pub leases: Vec<Lease>,
    /// Objects made by the API, as the changes that make them again.
    pub objects: Vec<Change>,
    /// No generation up to this one may be used again.
    pub generation: u64,
}

/// Why state could not be read or written.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The directory or file cannot be used.
    #[error("cannot open {path}: {source}: check that the directory exists, is writable and has room")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Another process has it, or its content is damaged.
    #[error(
        "cannot use {path}: {source}: free disk space, stop another proximity, or restore a backup over it"
    )]
    Database {
        /// The file.
        path: PathBuf,
        /// What the database said.
        source: Box<redb::Error>,
    },
    /// Written by a later version.
    #[error("{path} has schema {found}, this version reads {SCHEMA}: install the version that wrote it")]
    Schema {
        /// The file.
        path: PathBuf,
        /// Its schema.
        found: u64,
    },
    /// A row that is not what it should be.
    #[error("{path} holds a {kind} that cannot be read ({source}): restore a backup over it")]
    Row {
        /// The file.
        path: PathBuf,
        /// Kind of the row.
        kind: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
}

impl Store {
    /// Opens or creates the state file in a directory, which is made if it is missing.
    pub fn open(directory: &Path) -> Result<Store, StoreError> {
        let path = directory.join(FILE_NAME);
        std::fs::create_dir_all(directory)
            .map_err(|source| StoreError::File { path: path.clone(), source })?;
        let mut store = Store { database: None, path };
        store.reopen()?;
        Ok(store)
    }

    /// Closes the file, so that another process can open it; until [`Store::open_again`] nothing can be read.
    pub fn close(&mut self) {
        self.database = None;
    }

    /// Opens the file that was closed and reads everything: another process may have written it.
    pub fn open_again(&mut self) -> Result<State, StoreError> {
        self.reopen()?;
        self.load()
    }

    /// Reads everything.
    pub fn load(&self) -> Result<State, StoreError> {
        let read = self.database()?.begin_read().map_err(|e| self.broken(e))?;
        let mut state = State::default();
        let meta = read.open_table(META).map_err(|e| self.broken(e))?;
        state.generation =
            meta.get("generation").map_err(|e| self.broken(e))?.map_or(0, |value| value.value());
        let leases = read.open_table(LEASES).map_err(|e| self.broken(e))?;
        state.leases.reserve(leases.len().map_err(|e| self.broken(e))? as usize);
        for row in leases.iter().map_err(|e| self.broken(e))? {
            let (_, value) = row.map_err(|e| self.broken(e))?;
            state.leases.push(self.decode("lease", value.value())?);
        }
        let objects = read.open_table(OBJECTS).map_err(|e| self.broken(e))?;
        for row in objects.iter().map_err(|e| self.broken(e))? {
            let (key, value) = row.map_err(|e| self.broken(e))?;
            state.objects.extend(self.object(key.value().0, value.value())?);
        }
        Ok(state)
    }

    /// Makes changes durable, all or none, in one transaction, and returns when they are on disk. Changes
    /// that follow from elsewhere (health, WAN, what stands in the file) are passed over. `generation`
    /// raises the mark below which no generation is used again.
    ///
    /// After an error of the disk the database refuses everything until it is opened again, so that is
    /// tried once: a disk that has room again is used again.
    pub fn commit(&mut self, changes: &[Change], generation: Option<u64>) -> Result<(), StoreError> {
        let Err(first) = self.try_commit(changes, generation) else { return Ok(()) };
        self.reopen().map_err(|_| first)?;
        self.try_commit(changes, generation)
    }

    /// Whether a change is one that a commit would write.
    pub fn is_durable(change: &Change) -> bool {
        !matches!(
            change,
            Change::Health(..)
                | Change::Wan(_)
                | Change::Intent(_)
                | Change::Vhost(Source::Config | Source::Lease, _)
                | Change::Reservation(Source::Config | Source::Lease, _)
                | Change::Records(Source::Config | Source::Lease, ..)
                | Change::Forward(Source::Config | Source::Lease, _)
        )
    }

    fn try_commit(&self, changes: &[Change], generation: Option<u64>) -> Result<(), StoreError> {
        let write = self.database()?.begin_write().map_err(|e| self.broken(e))?;
        self.write(&write, changes, generation)?;
        write.commit().map_err(|e| self.broken(e))
    }

    fn reopen(&mut self) -> Result<(), StoreError> {
        // Closed first: the file is locked by whoever has it open.
        self.database = None;
        let path = &self.path;
        // Created by us so that only we may read it: it holds what clients told in confidence.
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(path).map_err(|source| StoreError::File { path: path.clone(), source })?;
        let broken = |source: redb::DatabaseError| self.broken(source);
        let backend = FileBackend::new(file).map_err(broken)?;
        let database =
            Database::builder().set_cache_size(CACHE).create_with_backend(backend).map_err(broken)?;
        self.database = Some(database);
        self.prepare()
    }

    fn database(&self) -> Result<&Database, StoreError> {
        self.database.as_ref().ok_or_else(|| self.broken(redb::Error::PreviousIo))
    }

    fn prepare(&self) -> Result<(), StoreError> {
        let write = self.database()?.begin_write().map_err(|e| self.broken(e))?;
        {
            let mut meta = write.open_table(META).map_err(|e| self.broken(e))?;
            let found = meta.get("schema").map_err(|e| self.broken(e))?.map(|value| value.value());
            match found {
                Some(SCHEMA) => {}
                Some(found) => return Err(StoreError::Schema { path: self.path.clone(), found }),
                None => {
                    meta.insert("schema", SCHEMA).map_err(|e| self.broken(e))?;
                }
            }
            write.open_table(LEASES).map_err(|e| self.broken(e))?;
            write.open_table(OBJECTS).map_err(|e| self.broken(e))?;
        }
        write.commit().map_err(|e| self.broken(e))
    }

    fn write(
        &self,
        write: &WriteTransaction,
        changes: &[Change],
        generation: Option<u64>,
    ) -> Result<(), StoreError> {
        let mut leases = write.open_table(LEASES).map_err(|e| self.broken(e))?;
        let mut objects = write.open_table(OBJECTS).map_err(|e| self.broken(e))?;
        let mut put = |kind: &str, key: &str, json: Option<Vec<u8>>| match json {
            Some(json) => objects.insert((kind, key), json.as_slice()).map(drop),
            None => objects.remove((kind, key)).map(drop),
        };
        for change in changes.iter().filter(|change| Store::is_durable(change)) {
            match change {
                Change::Lease(lease) => {
                    leases
                        .insert(u32::from(lease.ip), encode(lease).as_slice())
                        .map_err(|e| self.broken(e))?;
                    continue;
                }
                Change::ForgetLease(ip) => {
                    leases.remove(u32::from(*ip)).map_err(|e| self.broken(e))?;
                    continue;
                }
                Change::Vhost(_, vhost) => put("vhost", vhost.app_name.as_str(), Some(encode(&**vhost))),
                Change::RemoveVhost(app) => put("vhost", app.as_str(), None),
                Change::Reservation(_, reservation) => {
                    let key = reservation_key(&reservation.network, reservation.mac);
                    put("reservation", &key, Some(encode(reservation)))
                }
                Change::RemoveReservation(network, mac) => {
                    put("reservation", &reservation_key(network, *mac), None)
                }
                Change::Records(_, name, rtype, records) => {
                    put("records", &records_key(name, *rtype), Some(encode(records)))
                }
                Change::RemoveRecords(name, rtype) => put("records", &records_key(name, *rtype), None),
                Change::Forward(_, forward) => {
                    put("forward", &forward_key(forward.protocol, forward.port), Some(encode(forward)))
                }
                Change::RemoveForward(protocol, port) => put("forward", &forward_key(*protocol, *port), None),
                Change::Health(..) | Change::Wan(_) | Change::Intent(_) => continue,
            }
            .map_err(|e| self.broken(e))?;
        }
        if let Some(generation) = generation {
            let mut meta = write.open_table(META).map_err(|e| self.broken(e))?;
            meta.insert("generation", generation).map_err(|e| self.broken(e))?;
        }
        Ok(())
    }

    fn object(&self, kind: &str, json: &[u8]) -> Result<Option<Change>, StoreError> {
        let api = Source::Api;
        Ok(match kind {
            "vhost" => Some(Change::Vhost(api, self.decode::<Vhost>(kind, json)?.into())),
            "reservation" => Some(Change::Reservation(api, self.decode::<Reservation>(kind, json)?)),
            "forward" => Some(Change::Forward(api, self.decode::<Forward>(kind, json)?)),
            "records" => {
                let records: Vec<Record> = self.decode(kind, json)?;
                let first = records.first().map(|record| (record.name.clone(), record.data.rtype()));
                first.map(|(name, rtype)| Change::Records(api, name, rtype, records))
            }
            _ => None,
        })
    }

    fn decode<T: DeserializeOwned>(&self, kind: &str, json: &[u8]) -> Result<T, StoreError> {
        serde_json::from_slice(json).map_err(|source| StoreError::Row {
            path: self.path.clone(),
            kind: kind.to_owned(),
            source,
        })
    }

    fn broken(&self, error: impl Into<redb::Error>) -> StoreError {
        StoreError::Database { path: self.path.clone(), source: Box::new(error.into()) }
    }
}

fn encode(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("the table's types have text keys and finite numbers")
}

fn reservation_key(network: &str, mac: Mac) -> String {
    format!("{network}/{mac}")
}

fn records_key(name: &Name, rtype: RecordType) -> String {
    format!("{name}/{rtype}")
}

fn forward_key(protocol: Protocol, port: u16) -> String {
    format!("{}/{port}", protocol.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proximity_table::{BackendTarget, Label, LeaseState, RecordData, Timestamp};

    fn lease(last: u8) -> Lease {
        Lease {
            ip: [10, 20, 0, last].into(),
            mac: Mac([2, 0, 0, 0, 0, last]),
            client_id: Some(vec![1, 2, 3]),
            hostname: Label::from_client(b"web"),
            network: "apps".into(),
            state: LeaseState::Bound,
            expires: Timestamp(12345),
            epoch: 7,
        }
    }

    fn vhost() -> Vhost {
        let backend = BackendTarget::App { name: "web".parse().unwrap(), port: 80 };
        Vhost::new("web".parse().unwrap(), "web.prox.local".parse().unwrap(), vec![backend])
    }

    #[test]
    fn what_is_committed_is_there_after_opening_again() {
        let directory = tempfile::tempdir().unwrap();
        let record = Record {
            name: "x.prox.local".parse().unwrap(),
            data: RecordData::TXT { text: "hello".into() },
            ttl: 60,
        };
        let gitea = proximity_table::BackendTarget::App { name: "gitea".parse().unwrap(), port: 22 };
        let forward = Forward::new(Protocol::Tcp, 2222, gitea);
        let changes = [
            Change::Lease(lease(1)),
            Change::Lease(lease(2)),
            Change::Vhost(Source::Api, vhost().into()),
            Change::Records(Source::Api, record.name.clone(), RecordType::TXT, vec![record.clone()]),
            Change::Forward(Source::Api, forward),
        ];
        let mut store = Store::open(directory.path()).unwrap();
        store.commit(&changes, Some(41)).unwrap();
        store.commit(&[Change::ForgetLease([10, 20, 0, 2].into())], None).unwrap();
        drop(store);
        let state = Store::open(directory.path()).unwrap().load().unwrap();
        assert_eq!(state.leases, [lease(1)]);
        assert_eq!(state.generation, 41);
        assert_eq!(state.objects.len(), 3);
        assert!(state.objects.iter().any(|o| matches!(o, Change::Vhost(Source::Api, v) if **v == vhost())));
        assert!(state.objects.iter().any(|o| matches!(o, Change::Records(_, _, _, r) if r[0] == record)));
    }

    #[test]
    fn what_others_remember_is_not_stored() {
        let directory = tempfile::tempdir().unwrap();
        let mut store = Store::open(directory.path()).unwrap();
        store.commit(&[Change::Vhost(Source::Config, vhost().into())], None).unwrap();
        assert!(store.load().unwrap().objects.is_empty());
        store.commit(&[Change::Vhost(Source::Api, vhost().into())], None).unwrap();
        store.commit(&[Change::RemoveVhost("web".parse().unwrap())], None).unwrap();
        assert!(store.load().unwrap().objects.is_empty());
    }

    #[test]
    fn a_closed_file_can_be_written_by_another_and_opened_again() {
        let directory = tempfile::tempdir().unwrap();
        let mut store = Store::open(directory.path()).unwrap();
        assert!(Store::open(directory.path()).is_err(), "one process at a time");
        store.close();
        assert!(store.load().is_err());
        let mut other = Store::open(directory.path()).unwrap();
        other.commit(&[Change::Lease(lease(1))], Some(7)).unwrap();
        assert!(store.open_again().is_err());
        drop(other);
        let state = store.open_again().unwrap();
        assert_eq!((state.leases, state.generation), (vec![lease(1)], 7));
        store.close();
        store.commit(&[Change::Lease(lease(2))], None).unwrap();
        assert_eq!(store.load().unwrap().leases.len(), 2);
    }

    #[test]
    fn a_damaged_or_foreign_file_is_refused_with_advice() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(
            directory.path().join(FILE_NAME),
            b"not a database at all, but long enough to look at",
        )
        .unwrap();
        let error = Store::open(directory.path()).unwrap_err().to_string();
        assert!(error.contains("restore a backup"), "{error}");
    }

    #[test]
    fn a_vhost_of_the_first_version_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let row = br#"{"app_name":"web","hostname":"web.prox.local","aliases":[],
            "backends":[{"app":{"name":"web","port":80}}],"protocol":"http","enabled":true,
            "health":{"uri":"/","interval":30,"timeout":5}}"#;
        let write = store.database().unwrap().begin_write().unwrap();
        write.open_table(OBJECTS).unwrap().insert(("vhost", "web"), &row[..]).unwrap();
        write.commit().unwrap();
        let objects = store.load().unwrap().objects;
        assert!(
            matches!(&objects[..], [Change::Vhost(Source::Api, read)] if **read == vhost()),
            "{objects:?}"
        );
    }

    #[test]
    fn only_the_owner_may_read_the_file() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        drop(Store::open(directory.path()).unwrap());
        let mode = std::fs::metadata(directory.path().join(FILE_NAME)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
