//! Header fields that an administrator may edit: the one list for whoever reads edits and whoever makes them.

use thiserror::Error;

/// Longest name of an edited field, in octets.
const LONGEST_NAME: usize = 128;
/// Longest value of an edited field, in octets: a head has to hold it.
const LONGEST_VALUE: usize = 4096;

/// Fields that say where a message ends, where it goes or how this connection is used (RFC 9110 §7.2, §7.6.1, §8.6,
/// §10.1.1, §11.7; RFC 9112 §6): whoever edited them would make two readers see two messages.
const UNTOUCHABLE: [&str; 13] = [
    "connection",
    "content-length",
    "expect",
    "host",
    "http2-settings",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Why a header field cannot be edited.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum FieldError {
    /// Not a token (RFC 9110 §5.6.2), or too long a one.
    #[error("`{0}` is not the name of a header field: write it such as X-Frame-Options")]
    Name(String),
    /// A field that is not the administrator's to change, in lower case.
    #[error(
        "{0} cannot be edited: leave it out, for the proxy itself writes what holds between it and its neighbours"
    )]
    Untouchable(String),
    /// A value that no header can hold, or too long a one.
    #[error(
        "the value of {0} cannot be sent in a header: write up to {LONGEST_VALUE} ASCII characters without line breaks, \
         and no space at the ends"
    )]
    Value(String),
}

/// Whether an octet may stand in a token (RFC 9110 §5.6.2): the name of a header field, a method, a cookie's name.
pub const fn is_token_octet(octet: u8) -> bool {
    matches!(octet, b'!' | b'#'..=b'\'' | b'*' | b'+' | b'-' | b'.' | b'0'..=b'9' | b'A'..=b'Z' | b'^'..=b'z' | b'|' | b'~')
}

/// Whether a text is a token of at least one octet (RFC 9110 §5.6.2).
pub fn is_token(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().copied().all(is_token_octet)
}

/// The name of a field that may be edited, in lower case.
pub fn editable_field(name: &str) -> Result<String, FieldError> {
    if !is_token(name.as_bytes()) || name.len() > LONGEST_NAME {
        return Err(FieldError::Name(name.to_owned()));
    }
    let lower = name.to_ascii_lowercase();
    if UNTOUCHABLE.contains(&lower.as_str()) { Err(FieldError::Untouchable(lower)) } else { Ok(lower) }
}

/// Looks whether a value can be sent in the field `name` (RFC 9110 §5.5): visible characters, with spaces and tabs
/// between them.
pub fn check_field_value(name: &str, value: &str) -> Result<(), FieldError> {
    let is_fine = value.bytes().all(|octet| octet == b'\t' || (b' '..=b'~').contains(&octet));
    if !is_fine || value.trim() != value || value.len() > LONGEST_VALUE {
        return Err(FieldError::Value(name.to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    // RFC 9110 §5.6.2: tchar = "!" / "#" / "$" / "%" / "&" / "'" / "*" / "+" / "-" / "." / "^" / "_" / "`" / "|" / "~" /
    // DIGIT / ALPHA
    #[test]
    fn the_token_alphabet_is_that_of_the_rfc() {
        for octet in 0..=u8::MAX {
            let is_one = octet.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&octet);
            assert_eq!(is_token_octet(octet), is_one, "{octet:#x}");
        }
        assert!(!is_token(b"") && is_token(b"X-A") && !is_token(b"X A"));
    }

    #[test]
    fn framing_and_the_connection_cannot_be_edited() {
        for name in
            ["Host", "content-length", "Transfer-Encoding", "TE", "Proxy-Authorization", "HTTP2-Settings"]
        {
            let refused = Err(FieldError::Untouchable(name.to_ascii_lowercase()));
            assert_eq!(editable_field(name), refused);
        }
        assert_eq!(editable_field("X-Frame-Options").as_deref(), Ok("x-frame-options"));
        for name in ["", "a b", "a:", "a\r\n", "caf\u{e9}", &"x".repeat(LONGEST_NAME + 1)] {
            assert_eq!(editable_field(name), Err(FieldError::Name(name.to_owned())));
        }
    }

    // RFC 9110 §5.5: "Field values containing CR, LF, or NUL characters are invalid and dangerous".
    #[test]
    fn what_would_end_the_field_is_refused() {
        let long = "x".repeat(LONGEST_VALUE + 1);
        for value in ["a\r\nX: b", "a\nb", "a\0", "\u{7f}", " a", "a\t", "caf\u{e9}", &long] {
            assert!(check_field_value("a", value).is_err(), "{value:?}");
        }
        for value in ["", "a", "a \t\"b\", c", &long[1..]] {
            assert_eq!(check_field_value("a", value), Ok(()), "{value:?}");
        }
    }
}
