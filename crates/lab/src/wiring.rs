//! Cables: bridges in a node and veth pairs between nodes.
//!
//! Transmit checksum offload stays on, as on a real Proxmox host: packets cross a veth with their
//! checksums unfinished, and whoever reads raw frames must know it.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use crate::{LabError, Node};

/// An Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// The `number`-th address under the prefix Proxmox gives to its guests.
    pub fn guest(number: u32) -> Self {
        let [_, a, b, c] = number.to_be_bytes();
        Self([0xbc, 0x24, 0x11, a, b, c])
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, f] = self.0;
        write!(formatter, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}

/// A bridge inside a node, set up as Proxmox does: no spanning tree, no forwarding delay.
#[derive(Debug)]
pub struct Bridge {
    host: Arc<Node>,
    name: String,
    ports: AtomicU32,
}

impl Bridge {
    /// Makes a bridge in `host`. Its name may be at most 15 bytes long.
    ///
    /// # Errors
    /// [`LabError::Failed`].
    pub fn new(host: &Arc<Node>, name: &str) -> Result<Self, LabError> {
        host.ip(&[
            &format!("link add name {name} type bridge forward_delay 0 stp_state 0"),
            &format!("link set {name} up"),
        ])?;
        Ok(Self { host: Arc::clone(host), name: name.to_owned(), ports: AtomicU32::new(0) })
    }

    /// The bridge's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Gives `node` a network card `interface` plugged into this bridge. The card is left down and
    /// unaddressed; the bridge's side is up. It disappears with the node.
    ///
    /// # Errors
    /// [`LabError::Failed`].
    pub fn connect(&self, node: &Node, interface: &str, mac: Mac) -> Result<(), LabError> {
        let number = self.ports.fetch_add(1, Ordering::Relaxed);
        // Unique in the host, whose bridges are few and differ in their first three letters.
        let port = format!("{}-{number}", self.name.get(..3).unwrap_or(&self.name));
        self.host.ip(&[
            &format!(
                "link add name {port} type veth peer name {interface} address {mac} netns {}",
                node.pid()
            ),
            &format!("link set {port} master {} up", self.name),
        ])?;
        node.note_card(interface);
        Ok(())
    }
}

/// Joins two nodes by a cable of their own; both ends are left down.
///
/// # Errors
/// [`LabError::Failed`].
pub fn link(left: &Node, left_interface: &str, right: &Node, right_interface: &str) -> Result<(), LabError> {
    left.ip(&[&format!(
        "link add name {left_interface} type veth peer name {right_interface} netns {}",
        right.pid()
    )])?;
    // One end takes the other with it.
    right.note_card(right_interface);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_addresses_bear_the_proxmox_prefix() {
        assert_eq!(Mac::guest(1).to_string(), "bc:24:11:00:00:01");
        assert_eq!(Mac::guest(0x0102_0304).to_string(), "bc:24:11:02:03:04");
    }
}
