//! Upgrades: a new process takes the network over from the old one, which loses nothing for it.
//!
//! The old process starts the new one with a unix socket as its standard input. The new one reads the
//! configuration and says hello. Only then the old one stops writing: DHCP and the admin API rest, the store is
//! closed, and every socket goes over with what waits in it, while DNS and the proxy serve on. When the new one
//! serves, the old one takes nothing any more, answers what was asked, and stays for the upgraded connections
//! that it still carries; of the world it is told by the new one. Should anything fail before that, the old one
//! opens the store again and goes on.

pub mod followers;
pub mod handover;
pub mod messages;
pub mod predecessor;
mod retired;
pub mod sockets;
pub mod successor;
