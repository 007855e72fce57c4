use std::borrow::Borrow;
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// One label of a host name: 1 to 63 letters, digits and inner hyphens, lower case (RFC 1123 §2.1).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Label(Arc<str>);

/// An absolute domain name, kept as its lower-case wire form (RFC 1035 §3.1) so that a query's own bytes find it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(Arc<[u8]>);

/// Why a text is not a name.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NameError {
    /// An empty name, or an empty label between two dots.
    #[error("`{0}` has an empty label: remove the doubled, leading or missing part")]
    EmptyLabel(String),
    /// A label of more than 63 octets.
    #[error("`{0}` has a label longer than 63 characters: shorten it")]
    LabelTooLong(String),
    /// More than 255 octets in wire form.
    #[error("`{0}` is longer than 255 octets: shorten it")]
    NameTooLong(String),
    /// A character that names cannot hold.
    #[error("`{0}` has the character {1:?}: use letters, digits and hyphens")]
    BadCharacter(String, char),
    /// A host name label that starts or ends with a hyphen.
    #[error("`{0}` starts or ends with a hyphen: begin and end with a letter or digit")]
    EdgeHyphen(String),
    /// A `*` that stands for anything else than every name below another.
    #[error("`{0}` has a `*` that is not the whole first label: write it as *.shop.prox.local")]
    Wildcard(String),
}

impl Label {
    /// The label as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Makes a label of whatever a DHCP client sent as its host name (options 12 and 81): the first
    /// label, lower case, with spaces and underscores as hyphens. `None` when nothing usable is left.
    pub fn from_client(bytes: &[u8]) -> Option<Label> {
        let first = bytes.split(|&b| b == b'.' || b == 0).next()?;
        let mut text = String::with_capacity(first.len().min(63));
        for &byte in first.iter().take(255) {
            match byte.to_ascii_lowercase() {
                b @ (b'a'..=b'z' | b'0'..=b'9') => text.push(char::from(b)),
                b'-' | b'_' | b' ' => text.push('-'),
                _ => {}
            }
            if text.len() == 63 {
                break;
            }
        }
        let text = text.trim_matches('-');
        (!text.is_empty()).then(|| Label(text.into()))
    }
}

impl Name {
    /// The lower-case wire form: length-prefixed labels and the root's zero octet.
    pub fn as_wire(&self) -> &[u8] {
        &self.0
    }

    /// The name of a wire form; `None` when it is not well formed. Upper case is lowered.
    pub fn from_wire(wire: &[u8]) -> Option<Name> {
        let mut at = 0;
        while *wire.get(at)? != 0 {
            let length = usize::from(wire[at]);
            if length > 63 {
                return None;
            }
            at += 1 + length;
        }
        (at + 1 == wire.len() && wire.len() <= 255).then(|| Name(wire.to_ascii_lowercase().into()))
    }

    /// The name above all others.
    pub fn root() -> Name {
        Name([0].into())
    }

    /// `label` put before this name. Errors when the result is over 255 octets.
    pub fn child(&self, label: &Label) -> Result<Name, NameError> {
        let text = label.as_str();
        if text.len() + 1 + self.0.len() > 255 {
            return Err(NameError::NameTooLong(format!("{text}.{self}")));
        }
        let mut wire = Vec::with_capacity(text.len() + 1 + self.0.len());
        wire.push(text.len() as u8);
        wire.extend_from_slice(text.as_bytes());
        wire.extend_from_slice(&self.0);
        Ok(Name(wire.into()))
    }

    /// The name without its first label; `None` for the root.
    pub fn parent(&self) -> Option<Name> {
        let length = usize::from(self.0[0]);
        (length > 0).then(|| Name(self.0[1 + length..].into()))
    }

    /// The first label as text; empty for the root.
    pub fn first_label(&self) -> String {
        String::from_utf8_lossy(&self.0[1..1 + usize::from(self.0[0])]).into_owned()
    }

    /// The name that visitors ask for: nobody asks for a star, so of a wildcard what its names lie below.
    pub fn visited(&self) -> Option<Name> {
        if self.is_wildcard() { self.parent() } else { Some(self.clone()) }
    }

    /// Whether the first label is `*`: the name stands for the names below its parent.
    pub fn is_wildcard(&self) -> bool {
        self.0.starts_with(b"\x01*")
    }

    /// Whether this name is `ancestor` or lies below it.
    pub fn is_in(&self, ancestor: &Name) -> bool {
        let (mine, theirs) = (&self.0, &ancestor.0);
        let mut at = 0;
        while mine.len() - at > theirs.len() {
            at += 1 + usize::from(mine[at]);
        }
        mine[at..] == theirs[..]
    }

    /// How many labels the name has, the root not counted.
    pub fn label_count(&self) -> usize {
        let mut at = 0;
        let mut count = 0;
        while self.0[at] != 0 {
            at += 1 + usize::from(self.0[at]);
            count += 1;
        }
        count
    }

    /// Parses `text` relative to `domain`, or as absolute when it ends with a dot; `@` is the domain itself.
    pub fn relative(text: &str, domain: &Name) -> Result<Name, NameError> {
        if text == "@" {
            return Ok(domain.clone());
        }
        if text.ends_with('.') {
            return text.parse();
        }
        format!("{text}.{domain}").parse()
    }

    /// The owner that is meant by whoever writes a record: relative to `domain`, unless it ends with a dot, with
    /// the domain itself, or as reverse names do.
    pub fn owner(text: &str, domain: &Name) -> Result<Name, NameError> {
        let whole: Option<Name> = text.parse().ok();
        let is_whole = |name: &Name| {
            let reverse = [&b"\x07in-addr\x04arpa\x00"[..], b"\x03ip6\x04arpa\x00"];
            name.is_in(domain) || reverse.iter().any(|zone| name.as_wire().ends_with(zone))
        };
        whole.filter(is_whole).map_or_else(|| Name::relative(text, domain), Ok)
    }

    /// The reverse name of an address, `1.0.20.10.in-addr.arpa` (RFC 1035 §3.5).
    pub fn reverse(ip: Ipv4Addr) -> Name {
        Name::reverse_of_octets(&ip.octets())
    }

    /// The name of the reverse zone that covers a network: its whole octets, at least one (RFC 1035 §3.5).
    pub fn reverse_zone(network: crate::Ipv4Net) -> Name {
        let octets = network.network().octets();
        Name::reverse_of_octets(&octets[..usize::from(network.prefix / 8).clamp(1, 4)])
    }

    fn reverse_of_octets(octets: &[u8]) -> Name {
        let mut text = String::new();
        for octet in octets.iter().rev() {
            text.push_str(&octet.to_string());
            text.push('.');
        }
        text.push_str("in-addr.arpa");
        encode(&text).expect("octets make short labels")
    }
}

fn encode(text: &str) -> Result<Name, NameError> {
    let trimmed = text.strip_suffix('.').unwrap_or(text);
    let mut wire = Vec::with_capacity(trimmed.len() + 2);
    for label in trimmed.split('.') {
        if label.is_empty() {
            return Err(NameError::EmptyLabel(text.to_owned()));
        }
        if label.len() > 63 {
            return Err(NameError::LabelTooLong(text.to_owned()));
        }
        if let Some(bad) =
            label.chars().find(|&c| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '*')))
        {
            return Err(NameError::BadCharacter(text.to_owned(), bad));
        }
        wire.push(label.len() as u8);
        wire.extend(label.bytes().map(|b| b.to_ascii_lowercase()));
    }
    wire.push(0);
    if wire.len() > 255 { Err(NameError::NameTooLong(text.to_owned())) } else { Ok(Name(wire.into())) }
}

impl Borrow<[u8]> for Name {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

impl FromStr for Label {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Label, NameError> {
        if text.is_empty() {
            return Err(NameError::EmptyLabel(text.to_owned()));
        }
        if text.len() > 63 {
            return Err(NameError::LabelTooLong(text.to_owned()));
        }
        if let Some(bad) = text.chars().find(|&c| !(c.is_ascii_alphanumeric() || c == '-')) {
            return Err(NameError::BadCharacter(text.to_owned(), bad));
        }
        if text.starts_with('-') || text.ends_with('-') {
            return Err(NameError::EdgeHyphen(text.to_owned()));
        }
        Ok(Label(text.to_ascii_lowercase().into()))
    }
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Name, NameError> {
        encode(text)
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut at = 0;
        if self.0[0] == 0 {
            return f.write_str(".");
        }
        while self.0[at] != 0 {
            let end = at + 1 + usize::from(self.0[at]);
            if at > 0 {
                f.write_str(".")?;
            }
            write!(f, "{}", self.0[at + 1..end].escape_ascii())?;
            at = end;
        }
        Ok(())
    }
}

crate::as_text!(NameError: Label, Name);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_name_becomes_one_clean_label() {
        let label = |text: &str| Label::from_client(text.as_bytes()).map(|l| l.to_string());
        assert_eq!(label("Nginx_01.example.org").as_deref(), Some("nginx-01"));
        assert_eq!(label("-My App-").as_deref(), Some("my-app"));
        assert_eq!(label("web\0junk").as_deref(), Some("web"));
        assert_eq!(label("..."), None);
        assert_eq!(label("\u{fffd}\u{fffd}"), None);
        assert_eq!(label(&"x".repeat(300)).unwrap().len(), 63);
    }

    #[test]
    fn names_keep_their_wire_form_in_lower_case() {
        let name: Name = "Nginx.Prox.Local.".parse().unwrap();
        assert_eq!(name.as_wire(), b"\x05nginx\x04prox\x05local\x00");
        assert_eq!(name.to_string(), "nginx.prox.local");
        assert_eq!(Name::from_wire(b"\x05NGINX\x04prox\x05local\x00"), Some(name.clone()));
        assert_eq!(name.parent().unwrap().to_string(), "prox.local");
        assert_eq!(name.label_count(), 3);
        assert_eq!(Name::from_wire(b"\x05ngi"), None);
        assert_eq!(Name::from_wire(b"\xc0\x0c"), None);
    }

    #[test]
    fn ancestry_respects_label_boundaries() {
        let name = |text: &str| text.parse::<Name>().unwrap();
        assert!(name("a.prox.local").is_in(&name("prox.local")));
        assert!(name("prox.local").is_in(&name("prox.local")));
        assert!(!name("aprox.local").is_in(&name("prox.local")));
        assert!(!name("local").is_in(&name("prox.local")));
    }

    #[test]
    fn relative_names_hang_below_the_domain() {
        let domain: Name = "prox.local".parse().unwrap();
        assert_eq!(Name::relative("printer", &domain).unwrap().to_string(), "printer.prox.local");
        assert_eq!(Name::relative("host.example.", &domain).unwrap().to_string(), "host.example");
        assert_eq!(Name::relative("@", &domain).unwrap(), domain);
        assert!(Name::relative("a..b", &domain).is_err());
    }

    #[test]
    fn owners_are_relative_where_they_are_not_whole() {
        let domain: Name = "prox.local".parse().unwrap();
        for (text, owner) in [
            ("printer", "printer.prox.local"),
            ("*.dev", "*.dev.prox.local"),
            ("printer.prox.local", "printer.prox.local"),
            ("prox.local", "prox.local"),
            ("5.0.20.10.in-addr.arpa", "5.0.20.10.in-addr.arpa"),
            ("nas.example.com.", "nas.example.com"),
            ("nas.example.com", "nas.example.com.prox.local"),
        ] {
            assert_eq!(Name::owner(text, &domain).unwrap().to_string(), owner, "{text}");
        }
    }

    #[test]
    fn reverse_names_follow_the_octets() {
        assert_eq!(Name::reverse(Ipv4Addr::new(10, 20, 0, 101)).to_string(), "101.0.20.10.in-addr.arpa");
        assert_eq!(Name::reverse_zone("10.20.0.1/24".parse().unwrap()).to_string(), "0.20.10.in-addr.arpa");
        assert_eq!(Name::reverse_zone("10.20.0.1/16".parse().unwrap()).to_string(), "20.10.in-addr.arpa");
    }
}
