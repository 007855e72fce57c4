use std::borrow::Cow;

use thiserror::Error;

use crate::Reason;

/// `%`: something is written as its octet's number.
const ESCAPE: u8 = 1;
/// An octet that no path holds (RFC 3986 §3.3), and that some backends read as another one.
const REFUSED: u8 = 2;
/// Not ASCII: browsers escape it, and so do we.
const HIGH: u8 = 4;
/// `;`: what follows in the segment is a parameter to some backends.
const PARAMETER: u8 = 8;
/// `//`, `/.`: segments that may have to go.
const SEGMENTS: u8 = 16;

const CLASS: [u8; 256] = {
    let mut class = [0; 256];
    let mut byte = 0;
    while byte < class.len() {
        class[byte] = match byte as u8 {
            b'%' => ESCAPE,
            0..=b' ' | 0x7f | b'\\' | b'#' | b'?' => REFUSED,
            0x80.. => HIGH,
            b';' => PARAMETER,
            _ => 0,
        };
        byte += 1;
    }
    class
};

/// A path in the one form in which it is matched *and* sent on, so that the backend cannot see another path
/// than the rules did.
///
/// It begins with exactly one `/` and has no dot segments (RFC 3986 §5.2.4); what need not be escaped is not,
/// what has to be is, with upper-case digits (§6.2.2). Escaped delimiters such as `%2F` stay as they are, and
/// so do empty segments further inside: there are apps that need them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NormalPath<'a> {
    bytes: Cow<'a, [u8]>,
    is_ambiguous: bool,
}

/// Why a path is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PathError {
    /// It does not begin with `/`.
    #[error("the path does not begin with `/`")]
    NotAbsolute,
    /// `%` without two hexadecimal digits.
    #[error("the path has a `%` without two hexadecimal digits: write a percent sign as `%25`")]
    BadEscape,
    /// `%00`, where C programs think that it ends.
    #[error("the path has an escaped NUL")]
    Nul,
    /// An octet that a path cannot hold.
    #[error("the path has the octet 0x{0:02x}: escape it as `%{0:02X}`")]
    Octet(u8),
    /// A dot segment that only some would take for one: `..;`, or between escaped slashes.
    #[error("the path has `..` beside an escaped slash or a `;`")]
    HiddenDots,
    /// Different prefixes apply, depending on how the backend reads the path.
    #[error("the path leads elsewhere when its escapes, `//` and `;` are resolved: write it plainly")]
    Ambiguous,
}

/// The path of a request target in origin form, and the query after its `?`.
pub fn split_target(target: &[u8]) -> (&[u8], Option<&[u8]>) {
    match memchr::memchr(b'?', target) {
        Some(at) => (&target[..at], Some(&target[at + 1..])),
        None => (target, None),
    }
}

impl<'a> NormalPath<'a> {
    /// Normalises the path of a request target, without query. Most paths are normal already, and borrowed.
    pub fn new(path: &'a [u8]) -> Result<NormalPath<'a>, PathError> {
        if path.first() != Some(&b'/') {
            return Err(PathError::NotAbsolute);
        }
        let (mut class, mut before) = (0, 0);
        for &byte in path {
            class |= CLASS[usize::from(byte)];
            if before == b'/' && matches!(byte, b'/' | b'.') {
                class |= SEGMENTS;
            }
            before = byte;
        }
        if class & REFUSED != 0 {
            let refused = path.iter().find(|&&byte| CLASS[usize::from(byte)] == REFUSED);
            return Err(PathError::Octet(refused.copied().unwrap_or_default()));
        }
        let is_ambiguous = class & PARAMETER != 0;
        if class & !PARAMETER == 0 {
            return Ok(NormalPath { bytes: Cow::Borrowed(path), is_ambiguous });
        }
        let unescaped = unescape(path)?;
        let bytes = remove_dots(&unescaped)?;
        let is_ambiguous = is_ambiguous || has_reserved_escape(&bytes) || has_empty_segment(&bytes);
        Ok(NormalPath { bytes: Cow::Owned(bytes), is_ambiguous })
    }

    /// The path as it is matched and sent on.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Whether it is the very octets that the client sent.
    pub fn is_as_sent(&self) -> bool {
        matches!(self.bytes, Cow::Borrowed(_))
    }

    /// Index of the first prefix that applies; `prefixes` are normal paths without trailing slash, the longest
    /// first.
    ///
    /// A path that would get to another prefix in a backend that resolves what is left in it is refused:
    /// `/x%2F..%2Fadmin`, `/a//admin` and `/admin;x` must not be ways around a rule for `/admin`.
    pub fn prefix<'p, P>(&self, prefixes: P) -> Result<Option<usize>, PathError>
    where
        P: IntoIterator<Item = &'p str> + Clone,
    {
        let found =
            prefixes.clone().into_iter().position(|prefix| has_prefix(&self.bytes, prefix.as_bytes()));
        if self.is_ambiguous {
            let loose = loose_reading(&self.bytes);
            let position = |prefix: &str| has_prefix(&loose, &loose_reading(prefix.as_bytes()));
            if prefixes.into_iter().position(position) != found {
                return Err(PathError::Ambiguous);
            }
        }
        Ok(found)
    }
}

/// Whether `prefix` covers whole segments of `path`: `/api` those of `/api` and `/api/x`, not of `/apix`.
pub fn has_prefix(path: &[u8], prefix: &[u8]) -> bool {
    let prefix = prefix.strip_suffix(b"/").unwrap_or(prefix);
    path.strip_prefix(prefix).is_some_and(|rest| rest.first().is_none_or(|&byte| byte == b'/'))
}

/// A target with another path: the query stays.
pub fn with_path(path: &[u8], query: Option<&[u8]>) -> Vec<u8> {
    let mut target = path.to_vec();
    if let Some(query) = query {
        target.push(b'?');
        target.extend_from_slice(query);
    }
    target
}

/// What a backend behind a stripped prefix sees: the rest, with one `/` in front.
pub fn strip_prefix<'a>(path: &'a [u8], prefix: &[u8]) -> &'a [u8] {
    let prefix = prefix.strip_suffix(b"/").unwrap_or(prefix);
    let rest = path.strip_prefix(prefix).unwrap_or(path);
    // Two slashes would be read as a host by some.
    let slashes = rest.iter().take_while(|&&byte| byte == b'/').count();
    if slashes == 0 { b"/" } else { &rest[slashes - 1..] }
}

/// The `Location` of a redirect: `to`, with a trailing `{uri}` replaced by the request's path and query. The
/// result is free of what could end the header field or, after an absolute path, name another host.
pub fn redirect_location(to: &str, path: &NormalPath<'_>, query: Option<&[u8]>) -> Vec<u8> {
    let Some(base) = to.strip_suffix("{uri}") else { return to.as_bytes().to_vec() };
    let mut location =
        Vec::with_capacity(base.len() + path.bytes.len() + query.map_or(0, |query| query.len() + 1));
    if base.contains(['?', '#']) {
        // As the value of a parameter it must not add others.
        location.extend_from_slice(base.as_bytes());
        let mut push = |part: &[u8]| part.iter().for_each(|&byte| push_unless(&mut location, byte, is_value));
        push(&path.bytes);
        if let Some(query) = query {
            push(b"?");
            push(query);
        }
    } else {
        location.extend_from_slice(base.strip_suffix('/').unwrap_or(base).as_bytes());
        path.bytes.iter().for_each(|&byte| push_unless(&mut location, byte, is_harmless));
        if let Some(query) = query {
            location.push(b'?');
            query.iter().for_each(|&byte| push_unless(&mut location, byte, is_harmless));
        }
    }
    location
}

impl From<PathError> for Reason {
    fn from(_: PathError) -> Reason {
        Reason::PathRefused
    }
}

fn is_value(byte: u8) -> bool {
    is_unreserved(byte) || byte == b'/'
}

fn is_harmless(byte: u8) -> bool {
    byte.is_ascii_graphic() && !matches!(byte, b'"' | b'<' | b'>' | b'\\' | b'#')
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

fn push_unless(to: &mut Vec<u8>, byte: u8, may_stay: fn(u8) -> bool) {
    if may_stay(byte) { to.push(byte) } else { push_escaped(to, byte) }
}

fn push_escaped(to: &mut Vec<u8>, byte: u8) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    to.extend_from_slice(&[b'%', DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
}

/// The octet that `%xx` at the beginning of `text` stands for.
fn escaped(text: &[u8]) -> Option<u8> {
    let &[b'%', high, low, ..] = text else { return None };
    let digit = |byte: u8| char::from(byte).to_digit(16);
    Some((digit(high)? * 16 + digit(low)?) as u8)
}

/// RFC 3986 §6.2.2.1 and §6.2.2.2: unreserved characters plain, everything else escaped with upper-case
/// digits.
fn unescape(path: &[u8]) -> Result<Vec<u8>, PathError> {
    let mut plain = Vec::with_capacity(path.len());
    let mut at = 0;
    while let Some(&byte) = path.get(at) {
        at += 1;
        match byte {
            b'%' => {
                let octet = escaped(&path[at - 1..]).ok_or(PathError::BadEscape)?;
                if octet == 0 {
                    return Err(PathError::Nul);
                }
                push_unless(&mut plain, octet, is_unreserved);
                at += 2;
            }
            0x80.. => push_escaped(&mut plain, byte),
            _ => plain.push(byte),
        }
    }
    Ok(plain)
}

/// RFC 3986 §5.2.4, and no empty segments at the beginning.
fn remove_dots(path: &[u8]) -> Result<Vec<u8>, PathError> {
    let mut normal = Vec::with_capacity(path.len());
    let mut segments = path.split(|&byte| byte == b'/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let is_last = segments.peek().is_none();
        match segment {
            b"." | b".." => {
                if segment == b".." {
                    normal.truncate(normal.iter().rposition(|&byte| byte == b'/').unwrap_or(0));
                }
                if is_last {
                    normal.push(b'/');
                }
            }
            b"" if normal.is_empty() && !is_last => {}
            _ if has_hidden_dots(segment) => return Err(PathError::HiddenDots),
            _ => {
                normal.push(b'/');
                normal.extend_from_slice(segment);
            }
        }
    }
    Ok(normal)
}

/// Whether a part of the segment is a dot segment to whoever knows parameters or resolves `%2F` and `%5C`.
fn has_hidden_dots(segment: &[u8]) -> bool {
    let is_dots = |part: &[u8]| {
        let name = part.split(|&byte| byte == b';').next().unwrap_or_default();
        matches!(name, b"." | b"..")
    };
    let mut rest = segment;
    loop {
        let end = (0..rest.len()).find(|&at| matches!(escaped(&rest[at..]), Some(b'/' | b'\\')));
        if is_dots(&rest[..end.unwrap_or(rest.len())]) {
            return true;
        }
        let Some(end) = end else { return false };
        rest = &rest[end + 3..];
    }
}

fn has_reserved_escape(path: &[u8]) -> bool {
    (0..path.len()).any(|at| escaped(&path[at..]).is_some_and(|octet| octet.is_ascii_graphic()))
}

fn has_empty_segment(path: &[u8]) -> bool {
    path.windows(2).any(|pair| pair == b"//")
}

/// The path as the most obliging backend reads it: unescaped once, backslashes taken for slashes, without
/// parameters and empty segments.
fn loose_reading(path: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(path.len());
    let mut at = 0;
    while let Some(&byte) = path.get(at) {
        let octet = escaped(&path[at..]);
        at += if octet.is_some() { 3 } else { 1 };
        plain.push(if octet.unwrap_or(byte) == b'\\' { b'/' } else { octet.unwrap_or(byte) });
    }
    let mut loose = Vec::with_capacity(plain.len());
    for segment in plain.split(|&byte| byte == b'/') {
        match segment.split(|&byte| byte == b';').next().unwrap_or_default() {
            b"" | b"." => {}
            b".." => loose.truncate(loose.iter().rposition(|&byte| byte == b'/').unwrap_or(0)),
            name => {
                loose.push(b'/');
                loose.extend_from_slice(name);
            }
        }
    }
    loose
}

#[cfg(test)]
#[path = "path_tests.rs"]
mod tests;
