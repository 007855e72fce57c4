use proximity_table::{FieldError, HeaderEdits, check_field_value, editable_field};

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

impl CompiledEdits {
    /// Makes changes ready: `set` replaces whatever fields of the name are there, `add` comes beside them,
    /// `remove` goes.
    pub fn new<'a>(
        set: impl IntoIterator<Item = (&'a str, &'a str)>,
        add: impl IntoIterator<Item = (&'a str, &'a str)>,
        remove: impl IntoIterator<Item = &'a str>,
    ) -> Result<CompiledEdits, FieldError> {
        let (mut removed, mut lines, mut fields) = (Vec::new(), Vec::new(), Vec::new());
        for name in remove {
            removed.push(checked(name)?);
        }
        let set = set.into_iter().map(|field| (field, true));
        let add = add.into_iter().map(|field| (field, false));
        for ((name, value), replaces) in set.chain(add) {
            let lower = checked(name)?;
            check_field_value(name, value)?;
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
    type Error = FieldError;

    fn try_from(edits: &HeaderEdits) -> Result<CompiledEdits, FieldError> {
        fn fields(list: &[(String, String)]) -> impl Iterator<Item = (&str, &str)> {
            list.iter().map(|(name, value)| (name.as_str(), value.as_str()))
        }
        CompiledEdits::new(fields(&edits.set), fields(&edits.add), edits.remove.iter().map(String::as_str))
    }
}

fn length_bit(name: &[u8]) -> u64 {
    1 << name.len().min(63)
}

fn checked(name: &str) -> Result<Box<[u8]>, FieldError> {
    editable_field(name).map(|name| name.into_bytes().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edits(
        set: &[(&str, &str)],
        add: &[(&str, &str)],
        remove: &[&str],
    ) -> Result<CompiledEdits, FieldError> {
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

    #[test]
    fn what_may_not_be_edited_is_refused_wherever_it_stands() {
        let untouchable = Err(FieldError::Untouchable("host".into()));
        assert_eq!(edits(&[], &[], &["Host"]), untouchable);
        assert_eq!(edits(&[("Host", "x")], &[], &[]), untouchable);
        assert_eq!(edits(&[], &[("a b", "x")], &[]), Err(FieldError::Name("a b".into())));
        for value in ["a\r\nX: b", " a"] {
            assert_eq!(edits(&[("X-A", value)], &[], &[]), Err(FieldError::Value("X-A".into())), "{value:?}");
            assert_eq!(edits(&[], &[("X-A", value)], &[]), Err(FieldError::Value("X-A".into())), "{value:?}");
        }
    }
}
