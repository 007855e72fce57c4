use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// An Ethernet address, written `bc:24:11:00:00:01`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac(pub [u8; 6]);

/// An IPv4 address together with the prefix length of its network, such as `10.20.0.1/24`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Ipv4Net {
    /// The host's own address; the network's is [`Ipv4Net::network`].
    pub addr: Ipv4Addr,
    /// Prefix length in bits, 0 to 32.
    pub prefix: u8,
}

/// An inclusive range of addresses, such as `10.20.0.100-10.20.0.250`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Ipv4Range {
    /// First address of the range.
    pub start: Ipv4Addr,
    /// Last address of the range, not before `start`.
    pub end: Ipv4Addr,
}

/// Why a text is not an address.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum AddressError {
    /// Not six hexadecimal pairs.
    #[error("`{0}` is not a MAC address: write six hexadecimal pairs such as bc:24:11:00:00:01")]
    Mac(String),
    /// Not `address/prefix`.
    #[error("`{0}` is not an IPv4 network: write an address and a prefix length such as 10.20.0.1/24")]
    Net(String),
    /// Not `first-last`.
    #[error(
        "`{0}` is not an address range: write the first and the last address such as 10.20.0.100-10.20.0.250"
    )]
    Range(String),
    /// First address after the last one.
    #[error("the range `{0}` ends before it starts: write the lower address first")]
    RangeBackwards(String),
}

impl Mac {
    /// The broadcast address, `ff:ff:ff:ff:ff:ff`.
    pub const BROADCAST: Mac = Mac([0xff; 6]);
}

impl Ipv4Net {
    /// A network of these parts; `None` when `prefix` is over 32.
    pub fn new(addr: Ipv4Addr, prefix: u8) -> Option<Ipv4Net> {
        (prefix <= 32).then_some(Ipv4Net { addr, prefix })
    }

    /// The network without the host's own part: `10.20.0.0/24` of `10.20.0.1/24`.
    pub fn subnet(self) -> Ipv4Net {
        Ipv4Net { addr: self.network(), ..self }
    }

    /// The netmask, such as `255.255.255.0`.
    pub fn mask(self) -> Ipv4Addr {
        Ipv4Addr::from(self.mask_bits())
    }

    /// The first address of the network.
    pub fn network(self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.addr) & self.mask_bits())
    }

    /// The last address of the network.
    pub fn broadcast(self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.addr) | !self.mask_bits())
    }

    /// Whether `ip` lies in the network.
    pub fn contains(self, ip: Ipv4Addr) -> bool {
        u32::from(ip) & self.mask_bits() == u32::from(self.network())
    }

    /// Whether the two networks share an address.
    pub fn overlaps(self, other: Ipv4Net) -> bool {
        self.contains(other.network()) || other.contains(self.network())
    }

    fn mask_bits(self) -> u32 {
        u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0)
    }
}

impl Ipv4Range {
    /// Whether `ip` lies in the range.
    pub fn contains(self, ip: Ipv4Addr) -> bool {
        self.start <= ip && ip <= self.end
    }

    /// How many addresses the range holds; at least 1.
    pub fn size(self) -> u64 {
        u64::from(u32::from(self.end)) - u64::from(u32::from(self.start)) + 1
    }

    /// The `index`-th address counted from the start; `None` past the end.
    pub fn nth(self, index: u64) -> Option<Ipv4Addr> {
        (index < self.size()).then(|| Ipv4Addr::from((u64::from(u32::from(self.start)) + index) as u32))
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Display for Ipv4Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.prefix)
    }
}

impl fmt::Display for Ipv4Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.start, self.end)
    }
}

impl FromStr for Mac {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Mac, AddressError> {
        let bad = || AddressError::Mac(text.to_owned());
        let mut bytes = [0; 6];
        let mut parts = text.split([':', '-']);
        for byte in &mut bytes {
            let part = parts.next().ok_or_else(bad)?;
            if part.len() != 2 || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(bad());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| bad())?;
        }
        if parts.next().is_some() { Err(bad()) } else { Ok(Mac(bytes)) }
    }
}

impl FromStr for Ipv4Net {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Ipv4Net, AddressError> {
        let bad = || AddressError::Net(text.to_owned());
        let (addr, prefix) = text.split_once('/').ok_or_else(bad)?;
        let addr = addr.parse().map_err(|_| bad())?;
        let prefix: u8 = prefix.parse().map_err(|_| bad())?;
        Ipv4Net::new(addr, prefix).ok_or_else(bad)
    }
}

impl FromStr for Ipv4Range {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Ipv4Range, AddressError> {
        let bad = || AddressError::Range(text.to_owned());
        let (start, end) = text.split_once('-').ok_or_else(bad)?;
        let start = start.trim().parse().map_err(|_| bad())?;
        let end = end.trim().parse().map_err(|_| bad())?;
        if start > end {
            Err(AddressError::RangeBackwards(text.to_owned()))
        } else {
            Ok(Ipv4Range { start, end })
        }
    }
}

crate::as_text!(AddressError: Mac, Ipv4Net, Ipv4Range);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn network_arithmetic_covers_the_whole_prefix_range() {
        let net: Ipv4Net = "10.20.0.1/24".parse().unwrap();
        assert_eq!(net.mask(), Ipv4Addr::new(255, 255, 255, 0));
        assert_eq!(net.network(), Ipv4Addr::new(10, 20, 0, 0));
        assert_eq!(net.subnet().to_string(), "10.20.0.0/24");
        assert_eq!(net.broadcast(), Ipv4Addr::new(10, 20, 0, 255));
        assert!(net.contains(Ipv4Addr::new(10, 20, 0, 250)) && !net.contains(Ipv4Addr::new(10, 20, 1, 0)));
        let all: Ipv4Net = "0.0.0.0/0".parse().unwrap();
        assert!(all.contains(Ipv4Addr::BROADCAST));
        assert_eq!("1.2.3.4/32".parse::<Ipv4Net>().unwrap().network(), Ipv4Addr::new(1, 2, 3, 4));
        assert!("10.20.0.1/33".parse::<Ipv4Net>().is_err());
    }

    #[test]
    fn a_range_counts_both_ends() {
        let range: Ipv4Range = "10.20.0.100-10.20.0.250".parse().unwrap();
        assert_eq!(range.size(), 151);
        assert_eq!(range.nth(150), Some(Ipv4Addr::new(10, 20, 0, 250)));
        assert_eq!(range.nth(151), None);
        assert!(matches!("10.0.0.2-10.0.0.1".parse::<Ipv4Range>(), Err(AddressError::RangeBackwards(_))));
    }

    #[test]
    fn a_mac_is_six_pairs_and_nothing_else() {
        assert_eq!("BC-24-11-00-00-01".parse::<Mac>().unwrap().to_string(), "bc:24:11:00:00:01");
        for bad in ["", "bc:24:11:00:00", "bc:24:11:00:00:01:02", "bc:24:11:00:00:+1", "XX:24:11:00:00:01"] {
            assert!(bad.parse::<Mac>().is_err(), "{bad}");
        }
    }
}
