use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use base64ct::{Base64, Encoding};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{Name, NameError};

/// The value of an HTTPS or SVCB record (RFC 9460): where a service is, and how it is spoken to. Stored and shown
/// the way it stands in a zone file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ServiceBinding {
    /// 0 makes it an alias (§2.4.2); of others the lowest is tried first.
    pub priority: u16,
    /// Who serves; the root stands for the owner of the record (§2.5).
    pub target: Name,
    /// Parameters by their numbers, each in wire form.
    params: BTreeMap<u16, Vec<u8>>,
}

/// Why a text is no service binding.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ServiceBindingError {
    /// Priority or target are missing.
    #[error(
        "`{0}` is not a service: write priority, host and parameters such as `1 . alpn=h2,h3 ipv4hint=10.20.0.5`"
    )]
    Shape(String),
    /// A parameter that nobody knows.
    #[error(
        "`{0}` is not a parameter: use mandatory, alpn, no-default-alpn, port, ipv4hint, ech, ipv6hint, dohpath or key followed by a number"
    )]
    Key(String),
    /// A value of another shape than its parameter wants.
    #[error("`{value}` is not the value of {key}: write {expected}")]
    Value {
        /// The parameter.
        key: String,
        /// The value as written.
        value: String,
        /// What would have been right.
        expected: &'static str,
    },
    /// A parameter is there twice (§2.1).
    #[error("{0} is there twice: write it once")]
    Twice(String),
    /// An alias with parameters (§2.4.2).
    #[error("priority 0 makes it an alias, which has no parameters: write 1, or leave them out")]
    Alias,
    /// A parameter that is said to be mandatory, or that another needs, is not there (§7.1.1, §8).
    #[error("{0} is not there: write it, or leave out what asks for it")]
    Missing(String),
    /// The target is no name.
    #[error("{0}")]
    Name(#[from] NameError),
}

const MANDATORY: u16 = 0;
const ALPN: u16 = 1;
const NO_DEFAULT_ALPN: u16 = 2;
const PORT: u16 = 3;
const IPV4HINT: u16 = 4;
const ECH: u16 = 5;
const IPV6HINT: u16 = 6;
const DOHPATH: u16 = 7;
/// RFC 9460 §14.3.2, RFC 9461 §5.
const NAMES: [(&str, u16); 8] = [
    ("mandatory", MANDATORY),
    ("alpn", ALPN),
    ("no-default-alpn", NO_DEFAULT_ALPN),
    ("port", PORT),
    ("ipv4hint", IPV4HINT),
    ("ech", ECH),
    ("ipv6hint", IPV6HINT),
    ("dohpath", DOHPATH),
];
/// Octets that a value may have, so that a record fits many times into a message.
const LONGEST: usize = 2048;

impl ServiceBinding {
    /// Parses priority, host and parameters; the host is relative to `domain`, and `.` is the owner itself.
    pub fn parse(text: &str, domain: &Name) -> Result<ServiceBinding, ServiceBindingError> {
        let shape = || ServiceBindingError::Shape(text.to_owned());
        let words = words(text).ok_or_else(shape)?;
        let [priority, target, params @ ..] = &words[..] else { return Err(shape()) };
        let priority = priority.parse().map_err(|_| shape())?;
        let target = match target.as_str() {
            "." => Name::root(),
            target => Name::relative(target, domain)?,
        };
        let mut binding = ServiceBinding { priority, target, params: BTreeMap::new() };
        for param in params {
            let (name, value) = param.split_once('=').map_or((param.as_str(), ""), |pair| pair);
            let key = number_of(name).ok_or_else(|| ServiceBindingError::Key(name.to_owned()))?;
            let wire = value_to_wire(key, name, value)?;
            if binding.params.insert(key, wire).is_some() {
                return Err(ServiceBindingError::Twice(name.to_owned()));
            }
        }
        binding.check()?;
        Ok(binding)
    }

    /// The value in uncompressed wire form (§2.2): parameters in the order of their numbers.
    pub fn to_wire(&self) -> Vec<u8> {
        let mut wire = self.priority.to_be_bytes().to_vec();
        wire.extend(self.target.as_wire());
        for (key, value) in &self.params {
            wire.extend(key.to_be_bytes());
            wire.extend((value.len() as u16).to_be_bytes());
            wire.extend(value);
        }
        wire
    }

    fn check(&self) -> Result<(), ServiceBindingError> {
        if self.priority == 0 && !self.params.is_empty() {
            return Err(ServiceBindingError::Alias);
        }
        let mandatory = self.params.get(&MANDATORY).map_or(&[][..], Vec::as_slice);
        let (asked, _) = mandatory.as_chunks::<2>();
        let mut asked = asked.iter().map(|key| u16::from_be_bytes(*key));
        let missing = asked.find(|key| !self.params.contains_key(key)).or_else(|| {
            let lonely = self.params.contains_key(&NO_DEFAULT_ALPN) && !self.params.contains_key(&ALPN);
            lonely.then_some(ALPN)
        });
        missing.map_or(Ok(()), |key| Err(ServiceBindingError::Missing(name_of(key))))
    }
}

impl fmt::Display for ServiceBinding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dot = if self.target == Name::root() { "" } else { "." };
        write!(f, "{} {}{dot}", self.priority, self.target)?;
        for (key, value) in &self.params {
            write!(f, " {}", name_of(*key))?;
            if *key != NO_DEFAULT_ALPN && !value.is_empty() {
                write!(f, "={}", value_to_text(*key, value))?;
            }
        }
        Ok(())
    }
}

impl FromStr for ServiceBinding {
    type Err = ServiceBindingError;

    /// Parses what was shown: the host is absolute.
    fn from_str(text: &str) -> Result<ServiceBinding, ServiceBindingError> {
        ServiceBinding::parse(text, &Name::root())
    }
}

impl TryFrom<String> for ServiceBinding {
    type Error = ServiceBindingError;

    fn try_from(text: String) -> Result<ServiceBinding, ServiceBindingError> {
        text.parse()
    }
}

impl From<ServiceBinding> for String {
    fn from(binding: ServiceBinding) -> String {
        binding.to_string()
    }
}

/// The words of a text; quotes keep white space inside one. `None` when a quote is not closed.
fn words(text: &str) -> Option<Vec<String>> {
    let (mut words, mut word, mut quoted, mut started) = (Vec::new(), String::new(), false, false);
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            // What it means is told by the parameter; here it only keeps a quote from being one.
            '\\' => {
                word.push(c);
                word.extend(chars.next());
                started = true;
            }
            '"' => (quoted, started) = (!quoted, true),
            c if c.is_whitespace() && !quoted => {
                started.then(|| words.push(std::mem::take(&mut word)));
                started = false;
            }
            c => {
                word.push(c);
                started = true;
            }
        }
    }
    started.then(|| words.push(word));
    (!quoted).then_some(words)
}

fn number_of(name: &str) -> Option<u16> {
    let known = NAMES.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, key)| *key);
    // RFC 9460 §2.1: without leading zeros; 65535 is reserved.
    known.or_else(|| {
        let number = name.strip_prefix("key")?;
        let key: u16 = number.parse().ok()?;
        (key != u16::MAX && key.to_string() == number).then_some(key)
    })
}

fn name_of(key: u16) -> String {
    let known = NAMES.iter().find(|(_, known)| *known == key);
    known.map_or_else(|| format!("key{key}"), |(name, _)| (*name).to_owned())
}

fn value_to_wire(key: u16, name: &str, value: &str) -> Result<Vec<u8>, ServiceBindingError> {
    let expected = match key {
        MANDATORY => "other parameters such as alpn,ipv4hint",
        ALPN => "protocols such as h2,h3",
        NO_DEFAULT_ALPN => "it alone, without a value",
        PORT => "a port such as 8443",
        IPV4HINT => "IPv4 addresses such as 10.20.0.5,10.20.0.6",
        ECH => "base64",
        IPV6HINT => "IPv6 addresses such as fd00::5",
        DOHPATH => "a path such as /dns-query{?dns}",
        _ => "at most 2048 printable characters; others as \\ and three digits",
    };
    let wrong = || ServiceBindingError::Value { key: name.to_owned(), value: value.to_owned(), expected };
    let wire = match key {
        MANDATORY => mandatory(value),
        ALPN => alpn(value),
        NO_DEFAULT_ALPN => value.is_empty().then(Vec::new),
        PORT => value.parse::<u16>().ok().map(|port| port.to_be_bytes().to_vec()),
        IPV4HINT => listed(value, |ip| Some(ip.parse::<Ipv4Addr>().ok()?.octets().to_vec())),
        IPV6HINT => listed(value, |ip| Some(ip.parse::<Ipv6Addr>().ok()?.octets().to_vec())),
        ECH => Base64::decode_vec(value).ok().filter(|ech| !ech.is_empty()),
        DOHPATH => (value.starts_with('/') && value.contains("{?dns}") && value.is_ascii())
            .then(|| value.as_bytes().to_vec()),
        _ => unescaped(value),
    };
    wire.filter(|wire| wire.len() <= LONGEST).ok_or_else(wrong)
}

fn value_to_text(key: u16, wire: &[u8]) -> String {
    let joined = |items: Vec<String>| items.join(",");
    match key {
        MANDATORY => {
            let (keys, _) = wire.as_chunks::<2>();
            joined(keys.iter().map(|key| name_of(u16::from_be_bytes(*key))).collect())
        }
        ALPN => {
            let (mut rest, mut protocols) = (wire, Vec::new());
            while let Some((length, behind)) = rest.split_first()
                && let Some((protocol, behind)) = behind.split_at_checked(usize::from(*length))
            {
                protocols.push(String::from_utf8_lossy(protocol).into_owned());
                rest = behind;
            }
            joined(protocols)
        }
        PORT => wire.first_chunk().map_or(0, |port| u16::from_be_bytes(*port)).to_string(),
        IPV4HINT => {
            let (addresses, _) = wire.as_chunks::<4>();
            joined(addresses.iter().map(|ip| Ipv4Addr::from(*ip).to_string()).collect())
        }
        IPV6HINT => {
            let (addresses, _) = wire.as_chunks::<16>();
            joined(addresses.iter().map(|ip| Ipv6Addr::from(*ip).to_string()).collect())
        }
        ECH => Base64::encode_string(wire),
        _ => wire.iter().map(|octet| escaped(*octet)).collect(),
    }
}

/// RFC 9460 §8: in the order of the numbers, none twice, and not itself.
fn mandatory(value: &str) -> Option<Vec<u8>> {
    let mut keys: Vec<u16> = value.split(',').map(number_of).collect::<Option<_>>()?;
    keys.sort_unstable();
    let twice = keys.windows(2).any(|pair| pair[0] == pair[1]);
    (!twice && !keys.contains(&MANDATORY)).then(|| keys.iter().flat_map(|key| key.to_be_bytes()).collect())
}

/// RFC 9460 §7.1.1: each with its length. Commas and backslashes inside a protocol are not written here.
fn alpn(value: &str) -> Option<Vec<u8>> {
    listed(value, |protocol| {
        let plain = protocol.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\');
        let length = u8::try_from(protocol.len()).ok().filter(|length| *length > 0 && plain)?;
        Some([&[length], protocol.as_bytes()].concat())
    })
}

fn listed(value: &str, item: impl Fn(&str) -> Option<Vec<u8>>) -> Option<Vec<u8>> {
    Some(value.split(',').map(item).collect::<Option<Vec<_>>>()?.concat())
}

/// RFC 1035 §5.1: `\DDD` is an octet, a backslash before anything else that thing.
fn unescaped(value: &str) -> Option<Vec<u8>> {
    let (mut rest, mut wire) = (value.as_bytes(), Vec::new());
    while let Some((&first, behind)) = rest.split_first() {
        let (octet, behind) = match (first, behind) {
            (b'\\', [a @ b'0'..=b'9', b @ b'0'..=b'9', c @ b'0'..=b'9', behind @ ..]) => {
                let number = [a, b, c].iter().fold(0u16, |sum, digit| sum * 10 + u16::from(**digit - b'0'));
                (u8::try_from(number).ok()?, behind)
            }
            (b'\\', [next, behind @ ..]) if next.is_ascii_graphic() => (*next, behind),
            (b'\\', _) => return None,
            (octet, behind) => (octet, behind),
        };
        wire.push(octet);
        rest = behind;
    }
    Some(wire)
}

fn escaped(octet: u8) -> String {
    match octet {
        b'"' | b'\\' | b' ' => format!("\\{octet:03}"),
        octet if octet.is_ascii_graphic() => char::from(octet).to_string(),
        octet => format!("\\{octet:03}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<ServiceBinding, ServiceBindingError> {
        ServiceBinding::parse(text, &"prox.local".parse().unwrap())
    }

    /// RFC 9460 appendix D.2.
    #[test]
    fn the_vectors_of_the_rfc_have_its_wire_forms() {
        let foo = b"\x03foo\x07example\x03com\x00";
        for (text, wire) in [
            ("0 foo.example.com.", [&b"\x00\x00"[..], foo].concat()),
            ("1 .", b"\x00\x01\x00".to_vec()),
            ("16 foo.example.com. port=53", [&b"\x00\x10"[..], foo, b"\x00\x03\x00\x02\x00\x35"].concat()),
            ("1 foo.example.com. key667=hello", [&b"\x00\x01"[..], foo, b"\x02\x9b\x00\x05hello"].concat()),
            (
                "1 foo.example.com. key667=\"hello\\210qoo\"",
                [&b"\x00\x01"[..], foo, b"\x02\x9b\x00\x09hello\xd2qoo"].concat(),
            ),
            (
                "1 foo.example.com. ipv6hint=\"2001:db8::1,2001:db8::53:1\"",
                [
                    &b"\x00\x01"[..],
                    foo,
                    b"\x00\x06\x00\x20\x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x01\
                      \x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\x53\0\x01",
                ]
                .concat(),
            ),
            (
                "16 foo.example.org. alpn=h2,h3-19 mandatory=ipv4hint,alpn ipv4hint=192.0.2.1",
                b"\x00\x10\x03foo\x07example\x03org\x00\x00\x00\x00\x04\x00\x01\x00\x04\
                  \x00\x01\x00\x09\x02h2\x05h3-19\x00\x04\x00\x04\xc0\x00\x02\x01"
                    .to_vec(),
            ),
        ] {
            let binding = parse(text).unwrap();
            assert_eq!(binding.to_wire(), wire, "{text}");
            assert_eq!(binding.to_string().parse::<ServiceBinding>().unwrap(), binding, "{text}");
        }
    }

    #[test]
    fn what_users_write_is_shown_alike() {
        for (text, shown) in [
            ("1 . alpn=h2,h3 ipv4hint=10.20.0.5", "1 . alpn=h2,h3 ipv4hint=10.20.0.5"),
            ("1 web ipv4hint=10.20.0.5 port=8443", "1 web.prox.local. port=8443 ipv4hint=10.20.0.5"),
            ("2 . alpn=h2 no-default-alpn ech=AEj+DQ==", "2 . alpn=h2 no-default-alpn ech=AEj+DQ=="),
            ("1 . dohpath=/dns-query{?dns}", "1 . dohpath=/dns-query{?dns}"),
            ("1 . key700=a\\032\\\"b", "1 . key700=a\\032\\034b"),
        ] {
            let binding = parse(text).unwrap();
            assert_eq!(binding.to_string(), shown);
            let stored = serde_json::to_string(&binding).unwrap();
            assert_eq!(serde_json::from_str::<ServiceBinding>(&stored).unwrap(), binding);
        }
    }

    /// RFC 9460 appendix D.3.
    #[test]
    fn what_is_wrong_says_what_would_be_right() {
        for (text, hint) in [
            ("", "1 . alpn=h2,h3"),
            ("1", "1 . alpn=h2,h3"),
            ("one .", "1 . alpn=h2,h3"),
            ("1 . \"alpn=h2", "1 . alpn=h2,h3"),
            ("1 . port=53 port=54", "write it once"),
            ("1 . mandatory", "alpn,ipv4hint"),
            ("1 . mandatory=alpn", "alpn is not there"),
            ("1 . mandatory=mandatory alpn=h2", "alpn,ipv4hint"),
            ("1 . mandatory=alpn,alpn alpn=h2", "alpn,ipv4hint"),
            ("1 . alpn=", "h2,h3"),
            ("1 . alpn=h2,,h3", "h2,h3"),
            ("1 . no-default-alpn", "alpn is not there"),
            ("1 . no-default-alpn=abc alpn=h2", "without a value"),
            ("1 . port=65536", "8443"),
            ("1 . ipv4hint=fd00::1", "10.20.0.5"),
            ("1 . ipv6hint", "fd00::5"),
            ("1 . ech=***", "base64"),
            ("1 . dohpath=dns", "/dns-query{?dns}"),
            ("1 . key01=x", "key followed by a number"),
            ("1 . key65535=x", "key followed by a number"),
            ("1 . apln=h2", "alpn, no-default-alpn"),
            ("0 web alpn=h2", "write 1"),
            ("1 . key700=\\999", "three digits"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(hint) && error.contains(": "), "{text}: {error}");
        }
    }
}
