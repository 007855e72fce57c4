//! Objects as clients of the API write them.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use proximity_table::{Intent, Mac, Name, Record, Reservation};
use serde::{Deserialize, Serialize};

use crate::Problem;

/// What an upgrade is to run.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct UpgradeInput {
    pub binary: Option<PathBuf>,
}

/// A record to add.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct RecordInput {
    pub name: String,
    #[serde(rename = "type")]
    pub rtype: String,
    pub value: String,
    pub ttl: Option<u32>,
}

/// A reservation to make; the network follows from the address.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct ReservationInput {
    pub mac: String,
    pub ip: Ipv4Addr,
    pub hostname: Option<String>,
}

impl RecordInput {
    /// The record that is meant; names are relative to `domain` unless they are whole.
    pub fn build(&self, domain: &Name) -> Result<Record, Problem> {
        let ttl = self.ttl.unwrap_or(300);
        Record::parse(&self.name, &self.rtype, &self.value, ttl, domain).map_err(Problem::explained)
    }
}

impl ReservationInput {
    /// The reservation that is meant.
    pub fn build(&self, intent: &Intent) -> Result<Reservation, Problem> {
        let mac: Mac = self.mac.parse().map_err(Problem::explained)?;
        let network = intent.network_of(self.ip).ok_or_else(|| {
            Problem::invalid(
                format!("{} lies in no app network", self.ip),
                "take an address of an app network",
            )
        })?;
        let net = network.address;
        if [net.addr, net.network(), net.broadcast()].contains(&self.ip) {
            let hint = "take a free address other than the appliance's own";
            return Err(Problem::invalid(format!("{} cannot be reserved in {net}", self.ip), hint));
        }
        let hostname = self.hostname.as_deref().map(str::parse).transpose().map_err(Problem::explained)?;
        Ok(Reservation { network: network.name.clone(), mac, ip: self.ip, hostname })
    }
}
