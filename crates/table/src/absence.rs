use std::fmt;
use std::net::SocketAddrV4;

use crate::{BackendTarget, Forward, Label, World};

/// Why a target has no address. Displayed in words for whoever wrote the target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Absence {
    /// The container that has the name is not on the network.
    Stopped(Label),
    /// The container that has the name had a lease, which was taken away: its address is anybody's.
    Released(Label),
    /// No lease or reservation that is known has the name: it is misspelt, or of a container that was not started.
    Unknown {
        /// The name.
        name: Label,
        /// The name of a container that is the most like it.
        nearest: Option<String>,
    },
    /// An address has no owner; it is there all the same.
    Address(SocketAddrV4),
}

impl World {
    /// Why a target has no address, if it has none.
    pub fn absence(&self, target: &BackendTarget) -> Absence {
        match target {
            BackendTarget::App { name, .. } => {
                self.unknown(name).unwrap_or_else(|| Absence::Stopped(name.clone()))
            }
            BackendTarget::Address(addr) => Absence::Address(*addr),
        }
    }

    /// The targets of a forward whose names nobody has. `nearest` looks for the name that may be meant.
    pub fn unknown_targets(
        &self,
        forward: &Forward,
        nearest: impl Fn(&Label) -> Option<String>,
    ) -> Vec<Absence> {
        let unknown = |target| match target {
            BackendTarget::App { name, .. } => self.unknown_beside(&name, &nearest),
            BackendTarget::Address(_) => None,
        };
        forward.targets().filter_map(unknown).collect()
    }

    /// That nobody has a name, not even somebody who is off; `None` when somebody has.
    pub fn unknown(&self, name: &Label) -> Option<Absence> {
        self.unknown_beside(name, |name| self.nearest_host(name.as_str()))
    }

    /// As [`World::unknown`], the nearest name looked for in another way.
    pub fn unknown_beside(
        &self,
        name: &Label,
        nearest: impl FnOnce(&Label) -> Option<String>,
    ) -> Option<Absence> {
        if self.knows_app(name) {
            return None;
        }
        Some(match self.facts.was_released(name) {
            true => Absence::Released(name.clone()),
            false => Absence::Unknown { name: name.clone(), nearest: nearest(name) },
        })
    }
}

impl fmt::Display for Absence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Absence::Stopped(name) => write!(f, "the container `{name}` is not on the network: start it"),
            Absence::Unknown { name, nearest: Some(near) } => {
                write!(f, "no container is called `{name}`: the nearest name is `{near}`")
            }
            Absence::Unknown { name, nearest: None } => {
                write!(f, "no container is called `{name}`: start it, or correct the name")
            }
            Absence::Released(name) => write!(
                f,
                "the container `{name}` has no address, as its lease was released: restart it, so that it asks for \
                 another"
            ),
            Absence::Address(addr) => write!(f, "{addr} has no owner"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world_tests::{Table, lease};
    use crate::{Change, Lease, LeaseState};

    fn says(table: &Table, name: &str) -> Option<String> {
        table.world.unknown(&name.parse().unwrap()).map(|absence| absence.to_string())
    }

    #[test]
    fn whose_lease_was_taken_away_is_not_taken_for_misspelt() {
        let mut table = Table::new();
        assert_eq!(
            says(&table, "wiki").unwrap(),
            "no container is called `wiki`: start it, or correct the name"
        );
        table.apply(Change::Lease(lease(101, 1, "wiki", 2)));
        assert_eq!(says(&table, "wiki"), None);
        assert!(says(&table, "wki").unwrap().ends_with("the nearest name is `wiki`"));
        table.apply(Change::ForgetLease([10, 20, 0, 101].into()));
        let told = says(&table, "wiki").unwrap();
        assert!(told.contains("lease was released: restart it"), "{told}");
        let target = BackendTarget::App { name: "wiki".parse().unwrap(), port: 80 };
        assert_eq!(table.world.absence(&target), Absence::Released("wiki".parse().unwrap()));
        table.apply(Change::Lease(lease(102, 1, "wiki", 3)));
        assert_eq!(says(&table, "wiki"), None, "it is back");
        // Who left the network is known by a lease that has ended.
        table.apply(Change::Lease(Lease { state: LeaseState::Released, ..lease(102, 1, "wiki", 3) }));
        assert_eq!(says(&table, "wiki"), None);
        assert_eq!(table.world.absence(&target), Absence::Stopped("wiki".parse().unwrap()));
    }

    #[test]
    fn who_takes_a_name_or_an_address_over_leaves_the_last_one_known() {
        let mut table = Table::new();
        table.apply(Change::Lease(lease(101, 1, "wiki", 2)));
        table.apply(Change::Lease(lease(101, 1, "docs", 2)));
        assert!(says(&table, "wiki").unwrap().contains("lease was released"), "renamed");
        table.apply(Change::Lease(lease(102, 2, "wiki", 3)));
        table.apply(Change::Lease(lease(103, 3, "wiki", 4)));
        table.apply(Change::ForgetLease([10, 20, 0, 102].into()));
        assert_eq!(says(&table, "wiki"), None, "another one has the name");
    }

    #[test]
    fn of_very_many_the_latest_are_remembered() {
        let mut table = Table::new();
        for at in 0..300 {
            table.apply(Change::Lease(lease(101, 1, &format!("app{at}"), 2)));
        }
        assert!(says(&table, "app43").unwrap().starts_with("the container `app43`"));
        assert!(says(&table, "app42").unwrap().starts_with("no container"));
    }
}
