use std::fmt;
use std::net::SocketAddrV4;

use crate::{BackendTarget, Label, World};

/// Why a target has no address. Displayed in words for whoever wrote the target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Absence {
    /// The container that has the name is not on the network.
    Stopped(Label),
    /// No lease or reservation, present or past, has the name: it is misspelt, or of a container that was never
    /// started.
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

    /// That nobody ever had a name; `None` when somebody has or had.
    pub fn unknown(&self, name: &Label) -> Option<Absence> {
        let nearest = || self.nearest_host(name.as_str());
        (!self.knows_app(name)).then(|| Absence::Unknown { name: name.clone(), nearest: nearest() })
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
                write!(f, "no container was ever called `{name}`: start it, or correct the name")
            }
            Absence::Address(addr) => write!(f, "{addr} has no owner"),
        }
    }
}
