//! The outside link: its address by DHCP or by hand, and what the kernel says of it.

use std::net::Ipv4Addr;
use std::sync::Arc;

use proximity_config::WanAddress;
use proximity_dhcp::{Binding, Client, Command, Datagram, Held, build, parse};
use proximity_net::{LinkChange, LinkError, LinkWatch, Links, PacketSocket};
use proximity_table::{Ipv4Net, Label, Mac, Wan};
use tokio::sync::watch;

use crate::clock::{Uptime, entropy};
use crate::lan::WireError;
use crate::log;
use crate::registrar::Registrar;

const CLIENT_PORT: u16 = 68;
const SERVER_PORT: u16 = 67;

/// The outside link.
#[derive(Clone)]
pub struct Uplink {
    /// Its interface.
    pub interface: Arc<str>,
    /// Name that the DHCP server is told.
    pub hostname: Label,
    /// How it gets its address.
    pub address: WanAddress,
    /// Whom to tell.
    pub registrar: Registrar,
}

impl Uplink {
    /// Keeps the link addressed and the registrar informed until `stop` says true; returns the lease that it
    /// holds then, and begins with `held`. Trouble is logged and tried again: the app networks live without an
    /// outside.
    pub async fn run(self, mut held: Option<Held>, mut stop: watch::Receiver<bool>) -> Option<Held> {
        let mut told = None;
        // Outlives trouble: the address that a server gave is ours until its lease ends.
        let mut dhcp = None;
        loop {
            if let Err(error) = self.serve(&mut dhcp, &mut held, &mut stop).await {
                let text = error.to_string();
                if told.as_ref() != Some(&text) {
                    log!(Error, "uplink", "the outside link does not work", error = text);
                    told = Some(text);
                }
            }
            let rest = std::time::Duration::from_secs(2);
            if tokio::time::timeout(rest, stopped(&mut stop)).await.is_ok() {
                return dhcp.as_ref().and_then(DhcpClient::held).or(held);
            }
        }
    }

    /// Returns when it is told to stop.
    async fn serve(
        &self,
        dhcp: &mut Option<DhcpClient>,
        held: &mut Option<Held>,
        stop: &mut watch::Receiver<bool>,
    ) -> Result<(), WireError> {
        let mut watch = LinkWatch::new()?;
        let links = Links::new()?;
        if self.address != WanAddress::Unmanaged {
            links.ensure_up(&self.interface).await?;
        }
        self.tell(&links).await?;
        if self.address == WanAddress::Dhcp {
            let mac = Mac(links.mac(&self.interface).await?);
            let socket = PacketSocket::bind(&self.interface, CLIENT_PORT)?;
            match dhcp {
                Some(dhcp) => dhcp.socket = socket,
                None => *dhcp = Some(DhcpClient::new(mac, self.hostname.clone(), socket, held.take())),
            }
        }
        self.take_static(&links).await?;
        let mut running = links.link(&self.interface).await?.running;
        loop {
            tokio::select! {
                change = watch.changed() => {
                    self.tell(&links).await?;
                    self.restore(&links, dhcp.as_ref()).await?;
                    if let LinkChange::Link(link) = change?
                        && link.name == *self.interface
                    {
                        if link.running && !running {
                            // The cable came back, perhaps in another network.
                            self.take_static(&links).await?;
                            if let Some(dhcp) = dhcp {
                                dhcp.client.handle_link_up(dhcp.uptime.milliseconds());
                            }
                        }
                        running = link.running;
                    }
                }
                command = next_command(dhcp) => self.obey(&links, dhcp.as_mut(), command).await?,
                () = stopped(stop) => return Ok(()),
            }
        }
    }

    /// Gives the link back an address of ours that somebody took away.
    async fn restore(&self, links: &Links, dhcp: Option<&DhcpClient>) -> Result<(), LinkError> {
        let ours = match self.address {
            WanAddress::Static { address, gateway } => Some((address, gateway)),
            _ => dhcp.and_then(|dhcp| dhcp.bound.as_ref()).map(|bound| (bound.address, bound.gateway)),
        };
        match ours {
            Some((address, gateway)) if !links.addresses(&self.interface).await?.contains(&address) => {
                log!(Warn, "uplink", "the address was taken away, giving it back", address = address);
                self.take(links, address, gateway, &[]).await
            }
            _ => Ok(()),
        }
    }

    async fn take_static(&self, links: &Links) -> Result<(), LinkError> {
        match self.address {
            WanAddress::Static { address, gateway } => self.take(links, address, gateway, &[]).await,
            WanAddress::Dhcp | WanAddress::Unmanaged => Ok(()),
        }
    }

    async fn obey(
        &self,
        links: &Links,
        dhcp: Option<&mut DhcpClient>,
        command: Command,
    ) -> Result<(), WireError> {
        let Some(dhcp) = dhcp else { return Ok(()) };
        match command {
            Command::Send { payload, unicast } => dhcp.send(&payload, unicast),
            Command::Bind(binding) if self.clashes(binding.address) => {
                let server = binding.server;
                log!(
                    Error,
                    "uplink",
                    "the offered address lies in an app network",
                    address = binding.address,
                    server = server
                );
            }
            Command::Bind(binding) => {
                let renewal = dhcp.bound.as_ref().is_some_and(|bound| bound.address == binding.address);
                if !renewal {
                    log!(
                        Info,
                        "uplink",
                        "address received",
                        address = binding.address,
                        server = binding.server
                    );
                }
                let ours: Vec<_> = dhcp.bound.iter().map(|bound| bound.address).collect();
                self.take(links, binding.address, binding.gateway, &ours).await?;
                dhcp.bound = Some(binding);
            }
            Command::Unbind => {
                log!(Warn, "uplink", "the address is lost");
                if let Some(bound) = dhcp.bound.take() {
                    links.remove_address(&self.interface, bound.address).await?;
                }
            }
        }
        Ok(())
    }

    /// Gives the link an address. The firewall learns of it first, so that there is no moment at which apps
    /// could reach the management network.
    async fn take(
        &self,
        links: &Links,
        address: Ipv4Net,
        gateway: Option<Ipv4Addr>,
        ours: &[Ipv4Net],
    ) -> Result<(), LinkError> {
        let mut addresses = links.addresses(&self.interface).await?;
        addresses.retain(|found| *found == address || !ours.contains(found));
        addresses.push(address);
        self.announce(links, addresses, gateway).await;
        links.set_address(&self.interface, address, ours).await?;
        match gateway {
            Some(gateway) => links.replace_default_route(gateway, &self.interface).await,
            None => Ok(()),
        }
    }

    /// Tells the registrar which addresses the link has.
    async fn tell(&self, links: &Links) -> Result<(), LinkError> {
        let addresses = links.addresses(&self.interface).await?;
        let gateway = self.registrar.world().load().facts.wan().gateway;
        self.announce(links, addresses, gateway).await;
        Ok(())
    }

    /// Has the firewall follow, unless it knows already.
    async fn announce(&self, links: &Links, mut addresses: Vec<Ipv4Net>, gateway: Option<Ipv4Addr>) {
        addresses.sort();
        addresses.dedup();
        let running = links.link(&self.interface).await.is_ok_and(|link| link.running);
        let wan = Wan { addresses, gateway, running };
        let known = self.registrar.world().load().facts.wan().clone();
        if known.running != running {
            log!(
                Info,
                "uplink",
                if running { "the link is up" } else { "the link is down" },
                interface = self.interface
            );
        }
        if known != wan {
            self.registrar.set_wan(wan).await;
        }
    }

    /// Whether an address would shadow an app network.
    fn clashes(&self, address: Ipv4Net) -> bool {
        let world = self.registrar.world().load();
        world.facts.intent().networks.iter().any(|network| network.address.overlaps(address))
    }
}

/// The addresses that the outside link has before anything is done to it, and will have if they are fixed: the
/// first firewall must know them.
pub async fn present(links: &Links, interface: &str, address: WanAddress) -> Wan {
    let mut wan = Wan {
        addresses: links.addresses(interface).await.unwrap_or_default(),
        gateway: None,
        running: links.link(interface).await.is_ok_and(|link| link.running),
    };
    if let WanAddress::Static { address, gateway } = address {
        wan.addresses.push(address);
        wan.gateway = gateway;
    }
    wan.addresses.sort();
    wan.addresses.dedup();
    wan
}

/// The client core with its socket and its clock.
struct DhcpClient {
    client: Client,
    socket: PacketSocket,
    mac: Mac,
    uptime: Uptime,
    bound: Option<Binding>,
}

impl DhcpClient {
    fn new(mac: Mac, hostname: Label, socket: PacketSocket, held: Option<Held>) -> DhcpClient {
        let bound = held.as_ref().map(|held| held.binding.clone());
        let client = match held {
            Some(held) => Client::resume(mac, hostname, 0, entropy(), held),
            None => Client::new(mac, hostname, 0, entropy()),
        };
        DhcpClient { client, socket, mac, uptime: Uptime::start(), bound }
    }

    /// What another process needs to go on.
    fn held(&self) -> Option<Held> {
        self.client.held(self.uptime.milliseconds(), self.bound.as_ref()?)
    }

    async fn next(&mut self) -> Command {
        let mut buffer = [0; 2048];
        loop {
            let due = self.uptime.at(self.client.poll_timeout());
            let command = tokio::select! {
                () = tokio::time::sleep_until(due.into()) => {
                    self.client.handle_timeout(self.uptime.milliseconds())
                }
                received = self.socket.recv(&mut buffer) => match received {
                    Ok(frame) => parse(&buffer[..frame.len], frame.checksum_ready).ok().and_then(|datagram| {
                        self.client.handle_message(self.uptime.milliseconds(), datagram.payload)
                    }),
                    // The link is down; its coming back is heard elsewhere.
                    Err(_) => {
                        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
                        None
                    }
                },
            };
            if let Some(command) = command {
                return command;
            }
        }
    }

    fn send(&self, payload: &[u8], unicast: Option<(Ipv4Addr, Ipv4Addr)>) {
        // A renewal goes to the server's address in a broadcast frame, which saves finding its hardware address.
        // A server that insists on a unicast frame is reached when the client rebinds.
        let (source, target) = unicast.unwrap_or((Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST));
        let frame = build(&Datagram {
            source_mac: self.mac,
            target_mac: Mac::BROADCAST,
            source,
            target,
            source_port: CLIENT_PORT,
            target_port: SERVER_PORT,
            payload,
        });
        if let Err(error) = self.socket.try_send(&frame) {
            log!(Debug, "uplink", "a DHCP message could not be sent", error = error);
        }
    }
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error means that whoever could say so is gone.
    let _ = stop.wait_for(|stop| *stop).await;
}

async fn next_command(dhcp: &mut Option<DhcpClient>) -> Command {
    match dhcp {
        Some(dhcp) => dhcp.next().await,
        None => std::future::pending().await,
    }
}
