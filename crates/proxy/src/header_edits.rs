use proximity_table::HeaderEdits;
use thiserror::Error;

/// Longest name or value, in octets; a head has to hold it.
const LONGEST: usize = 8 * 1024;

/// Fields that say where a message ends, where it goes or how this connection is used (RFC 9112 §6, RFC 9110
/// §7.2, §7.6.1): an edit of them would not change what the message says but what it is.
const UNTOUCHABLE: [&str; 10] = [
    "connection",
    "content-length",
    "host",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "expect",
];

/// Changes of header fields, made ready for heads that are copied octet by octet: what to leave out, and a
/// block of lines to put in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CompiledEdits {
    /// The lengths of the removed names, one bit each; the highest stands for 63 and more.
    lengths: u64,
    /// Lower case.
    removed: Box<[Box<[u8]>]>,
    /// `Name: value\r\n` for each field to put in.
    lines: Box<[u8]>,
    fields: Box<[(Box<str>, Box<str>)]>,
}

/// Why a change cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum EditError {
    /// Not a token (RFC 9110 §5.6.2).
    #[error("`{0}` is not a header name: use letters, digits and hyphens")]
    Name(String),
    /// A field that is not the administrator's to change.
    #[error("`{0}` belongs to the connection and cannot be edited: remove it from the list")]
    Untouchable(String),
    /// A value with a line break or another control character, or with space at its ends.
    #[error("the value of `{0}` has a control character, or space at an end: remove it")]
    Value(String),
    /// A name or value that is too long.
    #[error("`{0}` is longer than {LONGEST} octets: shorten it")]
    TooLong(String),
}

impl CompiledEdits {
    /// Makes changes ready: `set` replaces whatever fields of the name are there, `add` comes beside them,
    /// `remove` goes.
    pub fn new<'a>(
        set: impl IntoIterator<Item = (&'a str, &'a str)>,
        add: impl IntoIterator<Item = (&'a str, &'a str)>,
        remove: impl IntoIterator<Item = &'a str>,
    ) -> Result<CompiledEdits, EditError> {
        let (mut removed, mut lines, mut fields) = (Vec::new(), Vec::new(), Vec::new());
        for name in remove {
            removed.push(checked_name(name)?);
        }
        let set = set.into_iter().map(|field| (field, true));
        let add = add.into_iter().map(|field| (field, false));
        for ((name, value), replaces) in set.chain(add) {
            let lower = checked_name(name)?;
            check_value(name, value)?;
            if replaces {
                removed.push(lower);
            }
            for part in [name, ": ", value, "\r\n"] {
                lines.extend_from_slice(part.as_bytes());
            }
            fields.push((name.into(), value.into()));
        }
        removed.sort_unstable();
        removed.dedup();
        let lengths = removed.iter().fold(0, |lengths, name| lengths | length_bit(name));
        Ok(CompiledEdits { lengths, removed: removed.into(), lines: lines.into(), fields: fields.into() })
    }

    /// Whether nothing changes.
    pub fn is_empty(&self) -> bool {
        self.lengths == 0 && self.lines.is_empty()
    }

    /// Whether a field of this name is left out, whatever its case. Costs one comparison when no removed name
    /// has this length.
    pub fn is_removed(&self, name: &[u8]) -> bool {
        self.lengths & length_bit(name) != 0
            && self.removed.iter().any(|removed| name.eq_ignore_ascii_case(removed))
    }

    /// The lines to put in, each with its end.
    pub fn lines(&self) -> &[u8] {
        &self.lines
    }

    /// The fields to put in, for a message that has no lines (HTTP/2).
    pub fn fields(&self) -> impl Iterator<Item = (&str, &str)> {
        self.fields.iter().map(|(name, value)| (&**name, &**value))
    }
}

impl TryFrom<&HeaderEdits> for CompiledEdits {
    type Error = EditError;

    fn try_from(edits: &HeaderEdits) -> Result<CompiledEdits, EditError> {
        fn fields(list: &[(String, String)]) -> impl Iterator<Item = (&str, &str)> {
            list.iter().map(|(name, value)| (name.as_str(), value.as_str()))
        }
        CompiledEdits::new(fields(&edits.set), fields(&edits.add), edits.remove.iter().map(String::as_str))
    }
}

fn length_bit(name: &[u8]) -> u64 {
    1 << name.len().min(63)
}

fn checked_name(name: &str) -> Result<Box<[u8]>, EditError> {
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if name.is_empty() || !name.bytes().all(is_token) {
        return Err(EditError::Name(name.to_owned()));
    }
    if name.len() > LONGEST {
        return Err(EditError::TooLong(name.to_owned()));
    }
    let lower = name.to_ascii_lowercase();
    if UNTOUCHABLE.contains(&lower.as_str()) {
        return Err(EditError::Untouchable(name.to_owned()));
    }
    Ok(lower.into_bytes().into())
}

/// RFC 9110 §5.5: visible characters, spaces and tabs, neither of them at an end.
fn check_value(name: &str, value: &str) -> Result<(), EditError> {
    if value.len() > LONGEST {
        return Err(EditError::TooLong(name.to_owned()));
    }
    let is_fine = |byte: u8| byte == b'\t' || (byte >= b' ' && byte != 0x7f);
    if !value.bytes().all(is_fine) || value.trim_matches([' ', '\t']) != value {
        return Err(EditError::Value(name.to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edits(
        set: &[(&str, &str)],
        add: &[(&str, &str)],
        remove: &[&str],
    ) -> Result<CompiledEdits, EditError> {
        CompiledEdits::new(set.iter().copied(), add.iter().copied(), remove.iter().copied())
    }

    #[test]
    fn set_replaces_and_add_comes_beside() {
        let edits = edits(&[("X-A", "1")], &[("X-B", "2"), ("X-B", "")], &["X-Frame-Options"]).unwrap();
        assert_eq!(edits.lines(), b"X-A: 1\r\nX-B: 2\r\nX-B: \r\n");
        assert_eq!(edits.fields().collect::<Vec<_>>(), [("X-A", "1"), ("X-B", "2"), ("X-B", "")]);
        for removed in ["x-a", "X-A", "x-frame-options", "X-FRAME-OPTIONS"] {
            assert!(edits.is_removed(removed.as_bytes()), "{removed}");
        }
        for kept in ["x-b", "x-frame-option", "y-frame-options", "", "x"] {
            assert!(!edits.is_removed(kept.as_bytes()), "{kept}");
        }
    }

    #[test]
    fn long_names_are_told_apart() {
        let (long, other) = ("x".repeat(70), "x".repeat(64));
        let edits = edits(&[], &[], &[&long]).unwrap();
        assert!(edits.is_removed(long.to_uppercase().as_bytes()));
        assert!(!edits.is_removed(other.as_bytes()));
        assert!(!edits.is_empty());
    }

    #[test]
    fn nothing_is_nothing() {
        let none = edits(&[], &[], &[]).unwrap();
        assert_eq!(none, CompiledEdits::default());
        assert!(
            none.is_empty() && none.lines().is_empty() && !none.is_removed(b"") && !none.is_removed(b"a")
        );
    }

    // RFC 9110 §5.5: "Field values containing CR, LF, or NUL characters are invalid and dangerous".
    #[test]
    fn what_would_end_the_field_is_refused() {
        for value in ["a\r\nX: b", "a\nb", "a\0", "\u{7f}", " a", "a\t"] {
            assert_eq!(edits(&[("X-A", value)], &[], &[]), Err(EditError::Value("X-A".into())), "{value:?}");
            assert_eq!(edits(&[], &[("X-A", value)], &[]), Err(EditError::Value("X-A".into())), "{value:?}");
        }
        assert!(edits(&[("X-A", "caf\u{e9}, \"a\tb\"")], &[], &[]).is_ok());
        for name in ["", "a b", "a:", "a\r\n", "caf\u{e9}"] {
            assert_eq!(edits(&[], &[], &[name]), Err(EditError::Name(name.into())), "{name:?}");
            assert_eq!(edits(&[(name, "x")], &[], &[]), Err(EditError::Name(name.into())), "{name:?}");
        }
        let long = "x".repeat(LONGEST + 1);
        assert_eq!(edits(&[("a", &long)], &[], &[]), Err(EditError::TooLong("a".into())));
    }

    #[test]
    fn framing_and_the_connection_cannot_be_edited() {
        for name in ["Host", "content-length", "Transfer-Encoding", "CONNECTION", "Upgrade", "TE"] {
            assert_eq!(edits(&[], &[], &[name]), Err(EditError::Untouchable(name.into())));
            assert_eq!(edits(&[(name, "x")], &[], &[]), Err(EditError::Untouchable(name.into())));
        }
    }
}
