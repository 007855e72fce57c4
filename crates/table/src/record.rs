use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{Name, NameError, ServiceBinding, ServiceBindingError};

/// A DNS record that the administrator wrote.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Owner name, absolute; its first label may be `*`.
    pub name: Name,
    /// Type and value.
    pub data: RecordData,
    /// Time to live in seconds.
    pub ttl: u32,
}

/// The types of records that can be written by hand, with their codes (RFC 1035 §3.2.2 and successors).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[repr(u16)]
#[allow(missing_docs)]
pub enum RecordType {
    A = 1,
    NS = 2,
    CNAME = 5,
    SOA = 6,
    PTR = 12,
    MX = 15,
    TXT = 16,
    AAAA = 28,
    SRV = 33,
    SVCB = 64,
    HTTPS = 65,
    CAA = 257,
}

/// The value of a record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type")]
#[allow(missing_docs)]
pub enum RecordData {
    A { address: Ipv4Addr },
    AAAA { address: Ipv6Addr },
    CNAME { target: Name },
    PTR { target: Name },
    TXT { text: String },
    MX { preference: u16, exchange: Name },
    SRV { priority: u16, weight: u16, port: u16, target: Name },
    CAA { flags: u8, tag: String, value: String },
    NS { target: Name },
    SVCB { binding: ServiceBinding },
    HTTPS { binding: ServiceBinding },
}

/// Why a record's value does not fit its type.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RecordError {
    /// A type that cannot be written by hand.
    #[error("`{0}` is not a record type: use A, AAAA, CNAME, TXT, SRV, MX, PTR, CAA, HTTPS, SVCB or NS")]
    Type(String),
    /// A value of another shape than the type wants.
    #[error("`{value}` is not the value of {rtype} record: write {expected}")]
    Value {
        /// The type, with its article.
        rtype: &'static str,
        /// The value as written.
        value: String,
        /// What would have been right.
        expected: &'static str,
    },
    /// A name inside the value that is not a name.
    #[error("{0}")]
    Name(#[from] NameError),
    /// The value of an HTTPS or SVCB record that is none.
    #[error("{0}")]
    Binding(#[from] ServiceBindingError),
}

impl Record {
    /// A record with the type and value of these texts; names in them are relative to `domain` unless they are
    /// whole ([`Name::owner`]).
    pub fn parse(
        name: &str,
        rtype: &str,
        value: &str,
        ttl: u32,
        domain: &Name,
    ) -> Result<Record, RecordError> {
        let name = Name::owner(name, domain)?;
        Ok(Record { name, data: RecordData::parse(rtype, value, domain)?, ttl })
    }
}

impl RecordType {
    /// The type with the lowest code.
    pub const FIRST: RecordType = RecordType::A;
    /// The type with the highest code.
    pub const LAST: RecordType = RecordType::CAA;

    /// Every type that can be written by hand.
    pub const WRITTEN: [RecordType; 11] = [
        RecordType::A,
        RecordType::AAAA,
        RecordType::CNAME,
        RecordType::TXT,
        RecordType::SRV,
        RecordType::MX,
        RecordType::PTR,
        RecordType::CAA,
        RecordType::HTTPS,
        RecordType::SVCB,
        RecordType::NS,
    ];

    /// The code on the wire.
    pub fn code(self) -> u16 {
        self as u16
    }
}

impl RecordData {
    /// Parses the text of a value, the way it stands in a zone file; names are relative to `domain`.
    pub fn parse(rtype: &str, value: &str, domain: &Name) -> Result<RecordData, RecordError> {
        let wrong = |rtype, expected| RecordError::Value { rtype, value: value.to_owned(), expected };
        let words: Vec<&str> = value.split_whitespace().collect();
        match rtype.to_ascii_uppercase().as_str() {
            "A" => {
                let address =
                    value.parse().map_err(|_| wrong("an A", "an IPv4 address such as 10.20.0.50"))?;
                Ok(RecordData::A { address })
            }
            "AAAA" => {
                let address =
                    value.parse().map_err(|_| wrong("an AAAA", "an IPv6 address such as fd00::50"))?;
                Ok(RecordData::AAAA { address })
            }
            "CNAME" => Ok(RecordData::CNAME { target: Name::relative(value, domain)? }),
            "PTR" => Ok(RecordData::PTR { target: Name::relative(value, domain)? }),
            "NS" => Ok(RecordData::NS { target: Name::relative(value, domain)? }),
            "SVCB" => Ok(RecordData::SVCB { binding: ServiceBinding::parse(value, domain)? }),
            "HTTPS" => Ok(RecordData::HTTPS { binding: ServiceBinding::parse(value, domain)? }),
            "TXT" if value.len() <= 4096 => Ok(RecordData::TXT { text: value.to_owned() }),
            "TXT" => Err(wrong("a TXT", "at most 4096 characters")),
            "MX" => {
                let expected = "a preference and a host such as `10 mail`";
                let [preference, exchange] = words[..] else { return Err(wrong("an MX", expected)) };
                let preference = preference.parse().map_err(|_| wrong("an MX", expected))?;
                Ok(RecordData::MX { preference, exchange: Name::relative(exchange, domain)? })
            }
            "SRV" => {
                let expected = "priority, weight, port and host such as `0 5 5432 db`";
                let [priority, weight, port, target] = words[..] else {
                    return Err(wrong("an SRV", expected));
                };
                let number = |text: &str| text.parse::<u16>().map_err(|_| wrong("an SRV", expected));
                Ok(RecordData::SRV {
                    priority: number(priority)?,
                    weight: number(weight)?,
                    port: number(port)?,
                    target: Name::relative(target, domain)?,
                })
            }
            "CAA" => {
                let expected = "flags, tag and value such as `0 issue letsencrypt.org`";
                let [flags, tag, value] = words[..] else { return Err(wrong("a CAA", expected)) };
                let flags = flags.parse().map_err(|_| wrong("a CAA", expected))?;
                if tag.is_empty() || tag.len() > 15 || !tag.bytes().all(|b| b.is_ascii_alphanumeric()) {
                    return Err(wrong("a CAA", expected));
                }
                Ok(RecordData::CAA { flags, tag: tag.to_owned(), value: value.trim_matches('"').to_owned() })
            }
            _ => Err(RecordError::Type(rtype.to_owned())),
        }
    }

    /// The type of this value.
    pub fn rtype(&self) -> RecordType {
        match self {
            RecordData::A { .. } => RecordType::A,
            RecordData::AAAA { .. } => RecordType::AAAA,
            RecordData::CNAME { .. } => RecordType::CNAME,
            RecordData::PTR { .. } => RecordType::PTR,
            RecordData::TXT { .. } => RecordType::TXT,
            RecordData::MX { .. } => RecordType::MX,
            RecordData::SRV { .. } => RecordType::SRV,
            RecordData::CAA { .. } => RecordType::CAA,
            RecordData::NS { .. } => RecordType::NS,
            RecordData::SVCB { .. } => RecordType::SVCB,
            RecordData::HTTPS { .. } => RecordType::HTTPS,
        }
    }

    /// The value in uncompressed wire form (RFC 1035 §3.3, RFC 2782, RFC 3596, RFC 8659, RFC 9460).
    pub fn to_wire(&self) -> Vec<u8> {
        let mut wire = Vec::new();
        match self {
            RecordData::A { address } => wire.extend(address.octets()),
            RecordData::AAAA { address } => wire.extend(address.octets()),
            RecordData::CNAME { target } | RecordData::PTR { target } | RecordData::NS { target } => {
                wire.extend(target.as_wire())
            }
            RecordData::SVCB { binding } | RecordData::HTTPS { binding } => wire = binding.to_wire(),
            RecordData::TXT { text } => {
                // RFC 1035 §3.3.14: one or more strings of at most 255 octets; an empty text is one empty string.
                let mut chunks = text.as_bytes().chunks(255).peekable();
                if chunks.peek().is_none() {
                    wire.push(0);
                }
                for chunk in chunks {
                    wire.push(chunk.len() as u8);
                    wire.extend(chunk);
                }
            }
            RecordData::MX { preference, exchange } => {
                wire.extend(preference.to_be_bytes());
                wire.extend(exchange.as_wire());
            }
            RecordData::SRV { priority, weight, port, target } => {
                for number in [priority, weight, port] {
                    wire.extend(number.to_be_bytes());
                }
                wire.extend(target.as_wire());
            }
            RecordData::CAA { flags, tag, value } => {
                wire.push(*flags);
                wire.push(tag.len() as u8);
                wire.extend(tag.as_bytes());
                wire.extend(value.as_bytes());
            }
        }
        wire
    }
}

impl fmt::Display for RecordType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl FromStr for RecordType {
    type Err = RecordError;

    fn from_str(text: &str) -> Result<RecordType, RecordError> {
        RecordType::WRITTEN
            .into_iter()
            .find(|rtype| rtype.to_string().eq_ignore_ascii_case(text))
            .ok_or_else(|| RecordError::Type(text.to_owned()))
    }
}

impl fmt::Display for RecordData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RecordData::A { address } => write!(f, "{address}"),
            RecordData::AAAA { address } => write!(f, "{address}"),
            RecordData::CNAME { target } | RecordData::PTR { target } | RecordData::NS { target } => {
                write!(f, "{target}.")
            }
            RecordData::SVCB { binding } | RecordData::HTTPS { binding } => write!(f, "{binding}"),
            RecordData::TXT { text } => f.write_str(text),
            RecordData::MX { preference, exchange } => write!(f, "{preference} {exchange}."),
            RecordData::SRV { priority, weight, port, target } => {
                write!(f, "{priority} {weight} {port} {target}.")
            }
            RecordData::CAA { flags, tag, value } => write!(f, "{flags} {tag} \"{value}\""),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_parses_and_prints_alike() {
        let domain: Name = "prox.local".parse().unwrap();
        for (rtype, value, printed) in [
            ("A", "10.20.0.50", "10.20.0.50"),
            ("aaaa", "fd00::50", "fd00::50"),
            ("CNAME", "web", "web.prox.local."),
            ("PTR", "host.example.", "host.example."),
            ("TXT", "v=spf1 -all", "v=spf1 -all"),
            ("MX", "10 mail", "10 mail.prox.local."),
            ("SRV", "0 5 5432 db", "0 5 5432 db.prox.local."),
            ("CAA", "0 issue letsencrypt.org", "0 issue \"letsencrypt.org\""),
            ("NS", "ns.lab", "ns.lab.prox.local."),
            ("https", "1 . alpn=h2,h3 ipv4hint=10.20.0.5", "1 . alpn=h2,h3 ipv4hint=10.20.0.5"),
            ("SVCB", "0 web", "0 web.prox.local."),
        ] {
            let data = RecordData::parse(rtype, value, &domain).unwrap();
            assert_eq!(data.to_string(), printed);
            assert_eq!(RecordData::parse(rtype, printed, &domain).unwrap(), data);
            assert_eq!(rtype.parse(), Ok(data.rtype()));
            let stored = serde_json::to_string(&data).unwrap();
            assert_eq!(serde_json::from_str::<RecordData>(&stored).unwrap(), data);
        }
    }

    #[test]
    fn wrong_values_say_what_would_be_right() {
        let domain: Name = "prox.local".parse().unwrap();
        let error = RecordData::parse("MX", "mail", &domain).unwrap_err();
        assert!(error.to_string().contains("10 mail"), "{error}");
        assert!(RecordData::parse("HINFO", "x", &domain).is_err());
    }

    #[test]
    fn long_text_is_cut_into_strings_of_255_octets() {
        let wire = RecordData::TXT { text: "x".repeat(300) }.to_wire();
        assert_eq!((wire[0], wire[256], wire.len()), (255, 45, 302));
        assert_eq!(RecordData::TXT { text: String::new() }.to_wire(), [0]);
    }
}
