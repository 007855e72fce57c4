//! DHCP on the wire of an app network: frames in, replies out.

use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwapOption;
use proximity_dhcp::{Datagram, Destination, Drop, Reply, Request, Stats, build, parse};
use proximity_net::{LinkError, LinkWatch, Links, PacketError, PacketSocket};
use proximity_table::{Mac, Network};

use crate::log;
use crate::registrar::{Inquiry, Registrar, ReplySender};
use crate::upgrade::sockets::{Inherited, Label};

/// Longest frame that is read; DHCP messages fit an Ethernet frame.
const LONGEST_FRAME: usize = 2048;
const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;

/// Where a network's present wire is; empty where no DHCP is served.
pub type Slot = Arc<ArcSwapOption<Wire>>;

/// One network's wire.
pub struct Wire {
    socket: PacketSocket,
    interface: Arc<str>,
    /// Index of the interface: another link of the same name is another wire.
    index: u32,
    mac: Mac,
    gateway: Ipv4Addr,
}

impl Wire {
    /// Listens on a network's interface, by the socket of another process where that is of the same link.
    pub async fn open(
        network: &Network,
        links: &Links,
        inherited: &mut Inherited,
    ) -> Result<Wire, WireError> {
        let mac = Mac(links.mac(&network.interface).await?);
        let index = links.index(&network.interface).await?;
        let label = Label::Wire(network.interface.to_string(), index);
        let adopted = inherited.take_one(&label).and_then(|socket| PacketSocket::adopt(socket).ok());
        let socket = match adopted {
            Some(socket) => socket,
            None => PacketSocket::bind(&network.interface, SERVER_PORT)?,
        };
        Ok(Wire { socket, interface: network.interface.clone(), index, mac, gateway: network.address.addr })
    }

    /// Its socket, for another process.
    pub fn kept(&self) -> std::io::Result<(Label, OwnedFd)> {
        let label = Label::Wire(self.interface.to_string(), self.index);
        Ok((label, self.socket.as_fd().try_clone_to_owned()?))
    }

    /// Hands what comes in to the registrar, for ever.
    async fn serve(
        self: Arc<Wire>,
        network: Arc<str>,
        registrar: Registrar,
        stats: Arc<Stats>,
        serving: Arc<AtomicBool>,
    ) {
        let mut buffer = [0; LONGEST_FRAME];
        loop {
            let frame = match self.socket.recv(&mut buffer).await {
                Ok(frame) => frame,
                Err(error) => {
                    // The link went down, or away: then the wire is opened anew.
                    log!(Warn, "dhcp", "the link cannot be read", interface = self.interface, error = error);
                    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
                    continue;
                }
            };
            if !serving.load(Ordering::Relaxed) {
                stats.count_drop(Drop::Stopped);
                continue;
            }
            // A frame that was longer than the buffer is cut short, and says so by its own length.
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

/// Keeps a network's link addressed and its wire served, for ever, also when the link goes and another of its
/// name comes.
pub async fn keep(
    slot: Slot,
    network: Arc<Network>,
    registrar: Registrar,
    stats: Arc<Stats>,
    serving: Arc<AtomicBool>,
) {
    loop {
        let wire = slot.load_full();
        let served = async {
            match wire.clone() {
                Some(wire) => {
                    wire.serve(network.name.clone(), registrar.clone(), stats.clone(), serving.clone()).await
                }
                None => std::future::pending().await,
            }
        };
        let index = wire.as_ref().map(|wire| wire.index);
        let trouble = tokio::select! {
            () = served => continue,
            result = watch(&network, index) => result.err(),
        };
        if let Some(error) = trouble {
            log!(Warn, "lan", "the link does not work", interface = network.interface, error = error);
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        }
        if let Ok(links) = Links::new()
            && network.dhcp_enabled
            && let Ok(anew) = Wire::open(&network, &links, &mut Inherited::default()).await
        {
            slot.store(Some(Arc::new(anew)));
        }
    }
}

/// Gives the link back what it loses; returns when the wire has to be opened anew, because the interface is
/// another one than `index`.
async fn watch(network: &Network, index: Option<u32>) -> Result<(), LinkError> {
    let mut changes = LinkWatch::new()?;
    let links = Links::new()?;
    loop {
        let present = links.index(&network.interface).await?;
        if network.manage_link {
            let link = links.link(&network.interface).await?;
            let addressed = links.addresses(&network.interface).await?.contains(&network.address);
            if !link.up || !addressed {
                raise(&links, network).await?;
                log!(Info, "lan", "the link has its address", interface = network.interface);
            }
        }
        if index.is_some_and(|index| index != present) {
            return Ok(());
        }
        changes.changed().await?;
    }
}

/// Brings loopback and the app networks' links up and gives them their addresses.
pub async fn bring_up(links: &Links, networks: &[Arc<Network>]) -> Result<(), LinkError> {
    // In a container of unmanaged type nobody else does.
    links.ensure_up("lo").await?;
    for network in networks.iter().filter(|network| network.manage_link) {
        raise(links, network).await?;
    }
    Ok(())
}

async fn raise(links: &Links, network: &Network) -> Result<(), LinkError> {
    links.ensure_up(&network.interface).await?;
    links.set_address(&network.interface, network.address, &[]).await
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
