//! DHCP on the wire of an app network: frames in, replies out.

use std::net::Ipv4Addr;
use std::sync::Arc;

use proximity_dhcp::{Datagram, Destination, Drop, Reply, Request, Stats, build, parse};
use proximity_net::{LinkError, Links, PacketError, PacketSocket};
use proximity_table::{Mac, Network};

use crate::log;
use crate::registrar::{Inquiry, Registrar, ReplySender};

/// Longest frame that is read; DHCP messages fit an Ethernet frame.
const LONGEST_FRAME: usize = 2048;
const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;

/// One network's wire.
pub struct Wire {
    socket: PacketSocket,
    interface: Arc<str>,
    mac: Mac,
    gateway: Ipv4Addr,
}

impl Wire {
    /// Listens on a network's interface.
    pub async fn open(network: &Network, links: &Links) -> Result<Wire, WireError> {
        let mac = Mac(links.mac(&network.interface).await?);
        let socket = PacketSocket::bind(&network.interface, SERVER_PORT)?;
        Ok(Wire { socket, interface: network.interface.clone(), mac, gateway: network.address.addr })
    }

    /// Hands what comes in to the registrar, for ever.
    pub async fn serve(self: Arc<Wire>, network: Arc<str>, registrar: Registrar, stats: Arc<Stats>) {
        let mut buffer = [0; LONGEST_FRAME];
        loop {
            let frame = match self.socket.recv(&mut buffer).await {
                Ok(frame) => frame,
                Err(error) => {
                    // The link went down; it is heard again when it is back.
                    log!(Warn, "dhcp", "the link cannot be read", interface = self.interface, error = error);
                    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
                    continue;
                }
            };
            let read = parse(&buffer[..frame.len], frame.checksum_ready).map_err(Drop::from);
            let request =
                read.and_then(|datagram| Ok((Request::read(datagram.payload)?, datagram.source_mac)));
            match request {
                Ok((request, sender)) => {
                    let inquiry =
                        Inquiry { request, network: network.clone(), sender, replies: self.clone() };
                    if !registrar.inquire(inquiry) {
                        stats.count_drop(Drop::Overloaded);
                    }
                }
                Err(reason) => stats.count_drop(reason),
            }
        }
    }
}

impl ReplySender for Wire {
    fn send(&self, reply: &Reply, from: &Inquiry) {
        let (target_mac, target, target_port) = match reply.to {
            Destination::Broadcast => (Mac::BROADCAST, Ipv4Addr::BROADCAST, CLIENT_PORT),
            Destination::Client(mac, ip) => (mac, ip, CLIENT_PORT),
            Destination::Relay(ip) => (from.sender, ip, SERVER_PORT),
        };
        let frame = build(&Datagram {
            source_mac: self.mac,
            target_mac,
            source: self.gateway,
            target,
            source_port: SERVER_PORT,
            target_port,
            payload: &reply.payload,
        });
        if let Err(error) = self.socket.try_send(&frame) {
            log!(Warn, "dhcp", "a reply could not be sent", mac = from.request.mac, error = error);
        }
    }
}

/// Brings loopback and the app networks' links up and gives them their addresses.
pub async fn bring_up(links: &Links, networks: &[Arc<Network>]) -> Result<(), LinkError> {
    // In a container of unmanaged type nobody else does.
    links.ensure_up("lo").await?;
    for network in networks.iter().filter(|network| network.manage_link) {
        links.ensure_up(&network.interface).await?;
        links.set_address(&network.interface, network.address, &[]).await?;
    }
    Ok(())
}

/// Why a network's wire cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The link is missing or refuses.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// Raw frames are refused.
    #[error(transparent)]
    Packet(#[from] PacketError),
}
