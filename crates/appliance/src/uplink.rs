//! The outside link: its address by DHCP or by hand, and what the kernel says of it.

use std::net::Ipv4Addr;
use std::sync::Arc;

use proximity_config::WanAddress;
use proximity_dhcp::{Binding, Client, Command, Datagram, build, parse};
use proximity_net::{LinkChange, LinkError, LinkWatch, Links, PacketSocket};
use proximity_table::{Ipv4Net, Label, Mac, Wan};

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
    /// Keeps the link addressed and the registrar informed, for ever. Trouble is logged and tried again: the
    /// app networks live without an outside.
    pub async fn run(self) {
        let mut told = None;
        loop {
            if let Err(error) = self.serve().await {
                let text = error.to_string();
                if told.as_ref() != Some(&text) {
                    log!(Error, "uplink", "the outside link does not work", error = text);
                    told = Some(text);
                }
            }
            tokio::time::sleep(std::time::Duration::from_secs(2)).await;
        }
    }

    async fn serve(&self) -> Result<(), WireError> {
        let mut watch = LinkWatch::new()?;
        let links = Links::new()?;
        if self.address != WanAddress::Unmanaged {
            links.ensure_up(&self.interface).await?;
        }
        if let WanAddress::Static { address, gateway } = self.address {
            self.take(&links, address, gateway, &[]).await?;
        }
        let mut told = None;
        self.tell(&links, &mut told).await?;
        let mut dhcp = match self.address {
            WanAddress::Dhcp => Some(DhcpClient::open(self, &links).await?),
            _ => None,
        };
        let mut running = true;
        loop {
            tokio::select! {
                change = watch.changed() => {
                    self.tell(&links, &mut told).await?;
                    if let (LinkChange::Link(link), Some(dhcp)) = (change?, &mut dhcp)
                        && link.name == *self.interface
                    {
                        if link.running && !running {
                            // The cable came back, perhaps in another network.
                            dhcp.client.handle_link_up(dhcp.uptime.milliseconds());
                        }
                        running = link.running;
                    }
                }
                command = next_command(&mut dhcp) => self.obey(&links, dhcp.as_mut(), command).await?,
            }
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
        self.registrar.set_wan(Wan { addresses: vec![address], gateway }).await;
        links.set_address(&self.interface, address, ours).await?;
        match gateway {
            Some(gateway) => links.replace_default_route(gateway, &self.interface).await,
            None => Ok(()),
        }
    }

    /// Tells the registrar which addresses the link has, if they are others than it was told.
    async fn tell(&self, links: &Links, told: &mut Option<Vec<Ipv4Net>>) -> Result<(), LinkError> {
        let mut addresses = links.addresses(&self.interface).await?;
        addresses.sort();
        if told.as_ref() != Some(&addresses) {
            let gateway = self.registrar.world().load().facts.wan().gateway;
            self.registrar.set_wan(Wan { addresses: addresses.clone(), gateway }).await;
            *told = Some(addresses);
        }
        Ok(())
    }
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
    async fn open(uplink: &Uplink, links: &Links) -> Result<DhcpClient, WireError> {
        let mac = Mac(links.mac(&uplink.interface).await?);
        let socket = PacketSocket::bind(&uplink.interface, CLIENT_PORT)?;
        let client = Client::new(mac, uplink.hostname.clone(), 0, entropy());
        Ok(DhcpClient { client, socket, mac, uptime: Uptime::start(), bound: None })
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
        // A renewal goes to the server's address in a broadcast frame: that saves finding its hardware
        // address, and every server takes it.
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

async fn next_command(dhcp: &mut Option<DhcpClient>) -> Command {
    match dhcp {
        Some(dhcp) => dhcp.next().await,
        None => std::future::pending().await,
    }
}
