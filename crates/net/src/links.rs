//! Interfaces, addresses and routes, by rtnetlink.

use crate::policy::Ipv4Net;
use futures_util::TryStreamExt;
use nix::errno::Errno;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use rtnetlink::packet_route::route::RouteMessage;
use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder};
use std::net::{IpAddr, Ipv4Addr};
use tokio::task::JoinHandle;

/// An interface, an address or a route could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// No interface of that name.
    #[error(
        "there is no interface {name}. There are: {}. \
         Name the right one in the configuration, or give the container that network device",
        existing.join(", ")
    )]
    Missing {
        /// The name asked for.
        name: String,
        /// The names there are.
        existing: Vec<String>,
    },
    /// The kernel refused.
    #[error("cannot {step}: {errno}{hint}", hint = hint(*.errno))]
    Refused {
        /// What was being done.
        step: String,
        /// What the kernel said.
        errno: Errno,
    },
    /// The connection to the kernel failed.
    #[error("cannot {step}: the connection to the kernel failed: {reason}")]
    Connection {
        /// What was being done.
        step: String,
        /// What failed.
        reason: String,
    },
}

fn hint(errno: Errno) -> &'static str {
    match errno {
        Errno::EPERM | Errno::EACCES => ". Run as root or with CAP_NET_ADMIN",
        Errno::ENETUNREACH => ". The gateway is not in a subnet of the interface's addresses",
        Errno::ENETDOWN => ". The interface is down",
        _ => "",
    }
}

/// One interface as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Index.
    pub index: u32,
    /// Name.
    pub name: String,
    /// Ethernet address, if it has one.
    pub mac: Option<[u8; 6]>,
    /// Largest IP packet in bytes.
    pub mtu: u32,
    /// Switched on.
    pub up: bool,
    /// Has a carrier.
    pub running: bool,
}

/// A connection to the kernel's interfaces, addresses and routes, in the network namespace it was made in.
pub struct Links {
    handle: Handle,
    connection: JoinHandle<()>,
}

impl Drop for Links {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Links {
    /// Connects. Must be called in a tokio runtime, which also drives the connection.
    pub fn new() -> Result<Self, LinkError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(|error| LinkError::Connection {
            step: "open a route socket".to_owned(),
            reason: error.to_string(),
        })?;
        Ok(Links { handle, connection: tokio::spawn(connection) })
    }

    /// All interfaces, loopback included.
    pub async fn all(&self) -> Result<Vec<Link>, LinkError> {
        let links = self.handle.link().get().execute().try_collect::<Vec<_>>().await;
        Ok(links.map_err(refused("list interfaces"))?.iter().map(read_link).collect())
    }

    /// The interface of that name.
    pub async fn link(&self, name: &str) -> Result<Link, LinkError> {
        // One request for one interface would do, but the error names all of them.
        let all = self.all().await?;
        let found = all.iter().find(|link| link.name == name).cloned();
        found.ok_or_else(|| LinkError::Missing {
            name: name.to_owned(),
            existing: all.into_iter().map(|link| link.name).collect(),
        })
    }

    /// Index of the interface.
    pub async fn index(&self, name: &str) -> Result<u32, LinkError> {
        Ok(self.link(name).await?.index)
    }

    /// Ethernet address of the interface.
    pub async fn mac(&self, name: &str) -> Result<[u8; 6], LinkError> {
        self.link(name).await?.mac.ok_or_else(|| LinkError::Refused {
            step: format!("use {name}: it has no Ethernet address"),
            errno: Errno::EAFNOSUPPORT,
        })
    }

    /// MTU of the interface in bytes.
    pub async fn mtu(&self, name: &str) -> Result<u32, LinkError> {
        Ok(self.link(name).await?.mtu)
    }

    /// Switches the interface on.
    pub async fn ensure_up(&self, name: &str) -> Result<(), LinkError> {
        let link = self.link(name).await?;
        if link.up {
            return Ok(());
        }
        let message = LinkUnspec::new_with_index(link.index).up().build();
        self.handle.link().change(message).execute().await.map_err(refused(format!("switch on {name}")))
    }

    /// IPv4 addresses of the interface with their prefix lengths.
    pub async fn addresses(&self, name: &str) -> Result<Vec<Ipv4Net>, LinkError> {
        let index = self.index(name).await?;
        Ok(self.address_messages(index, name).await?.iter().filter_map(read_address).collect())
    }

    /// Gives the interface that address, and takes away those of `ours` that it still has: addresses we gave
    /// it earlier. Any other address stays: it is somebody else's.
    pub async fn set_address(&self, name: &str, address: Ipv4Net, ours: &[Ipv4Net]) -> Result<(), LinkError> {
        let index = self.index(name).await?;
        self.add_address(index, name, address).await?;
        if self.remove_addresses(index, name, |found| found != address && ours.contains(&found)).await? {
            // Where promote_secondaries is off, the first address of a subnet takes the others with it.
            self.add_address(index, name, address).await?;
        }
        Ok(())
    }

    /// Takes the address away; fine if it is not there.
    pub async fn remove_address(&self, name: &str, address: Ipv4Net) -> Result<(), LinkError> {
        let index = self.index(name).await?;
        self.remove_addresses(index, name, |found| found == address).await.map(drop)
    }

    /// Makes the IPv4 default route (metric 0) go by that gateway and interface.
    pub async fn replace_default_route(&self, via: Ipv4Addr, dev: &str) -> Result<(), LinkError> {
        let index = self.index(dev).await?;
        let step = || format!("route by {via} on {dev}");
        let route = || RouteMessageBuilder::<Ipv4Addr>::new().gateway(via).output_interface(index);
        match self.handle.route().add(route().build()).replace().execute().await.map_err(refused(step())) {
            // The gateway is outside our subnet, as with /32 leases: it is on the link all the same.
            Err(LinkError::Refused { errno: Errno::ENETUNREACH, .. }) => {
                let request = self.handle.route().add(route().onlink().build()).replace();
                request.execute().await.map_err(refused(step()))
            }
            result => result,
        }
    }

    /// Removes the IPv4 default route (metric 0) by that interface; fine if there is none.
    pub async fn remove_default_route(&self, dev: &str) -> Result<(), LinkError> {
        let index = self.index(dev).await?;
        let route: RouteMessage = RouteMessageBuilder::<Ipv4Addr>::new().output_interface(index).build();
        let result = self.handle.route().del(route).execute().await;
        match result.map_err(refused(format!("remove the default route by {dev}"))) {
            Err(LinkError::Refused { errno: Errno::ESRCH, .. }) => Ok(()),
            result => result,
        }
    }

    async fn add_address(&self, index: u32, name: &str, address: Ipv4Net) -> Result<(), LinkError> {
        let request = self.handle.address().add(index, IpAddr::V4(address.addr), address.prefix);
        request.replace().execute().await.map_err(refused(format!("add {address} to {name}")))
    }

    /// Whether any was removed.
    async fn remove_addresses(
        &self,
        index: u32,
        name: &str,
        which: impl Fn(Ipv4Net) -> bool,
    ) -> Result<bool, LinkError> {
        let mut removed = false;
        for message in self.address_messages(index, name).await? {
            let Some(address) = read_address(&message).filter(|address| which(*address)) else { continue };
            let result = self.handle.address().del(message).execute().await;
            match result.map_err(refused(format!("remove {address} from {name}"))) {
                Ok(()) => removed = true,
                // Gone with the primary of its subnet.
                Err(LinkError::Refused { errno: Errno::EADDRNOTAVAIL, .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(removed)
    }

    async fn address_messages(&self, index: u32, name: &str) -> Result<Vec<AddressMessage>, LinkError> {
        let request = self.handle.address().get().set_link_index_filter(index);
        request.execute().try_collect().await.map_err(refused(format!("list addresses of {name}")))
    }
}

pub(crate) fn read_link(message: &LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        mac: None,
        mtu: 0,
        up: message.header.flags.contains(LinkFlags::Up),
        running: message.header.flags.contains(LinkFlags::LowerUp),
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Address(bytes) => link.mac = bytes.as_slice().try_into().ok(),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            _ => {}
        }
    }
    link
}

/// The interface's own IPv4 address: `Local`, which differs from `Address` on point-to-point links.
pub(crate) fn read_address(message: &AddressMessage) -> Option<Ipv4Net> {
    let find = |local: bool| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(IpAddr::V4(address)) if local => Some(*address),
            AddressAttribute::Address(IpAddr::V4(address)) if !local => Some(*address),
            _ => None,
        })
    };
    Ipv4Net::new(find(true).or_else(|| find(false))?, message.header.prefix_len)
}

fn refused(step: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> LinkError {
    move |error| match error {
        rtnetlink::Error::NetlinkError(message) => LinkError::Refused {
            step: step.into(),
            errno: Errno::from_raw(message.raw_code().saturating_neg()),
        },
        error => LinkError::Connection { step: step.into(), reason: error.to_string() },
    }
}
