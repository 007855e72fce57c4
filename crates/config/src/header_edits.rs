//! Names and values of header fields that an administrator may set.

use std::ops::Range;

use proximity_table::HeaderEdits;

use crate::section::{Entry, Section};

/// Longest value of a field, in octets.
const LONGEST_VALUE: usize = 4096;
/// Longest name of a field, in octets.
const LONGEST_NAME: usize = 128;

/// Fields about one connection or about where a message ends (RFC 9110 §7.6.1, §8.6; RFC 9112 §6): whoever
/// edits them would make two readers see two messages.
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

/// The edits under `key`.
pub fn read(table: &mut Section<'_>, key: &'static str) -> HeaderEdits {
    let mut edits = table.table(key);
    let expected = "a table such as { X-Frame-Options = \"DENY\" }";
    let set = edits.entries("set", expected);
    let add = edits.entries("add", expected);
    let remove = edits.list("remove", "the names of fields in quotes", |text| Some(text.to_owned()));
    let remove = remove.unwrap_or_default();
    edits.bound("remove", remove.len());
    let fields = |edits: &Section<'_>, entries: Vec<Entry>| -> Vec<(String, String)> {
        entries.into_iter().filter_map(|entry| field(edits, entry)).collect()
    };
    let set = fields(&edits, set);
    if let Some((name, _)) = set
        .iter()
        .enumerate()
        .find(|(at, (name, _))| set[..*at].iter().any(|(other, _)| other == name))
        .map(|(_, field)| field)
    {
        let hint = "write it once, or use add for several fields of one name";
        edits.refuse("set", &format!("{key}.set has {name} twice"), hint);
    }
    let add = fields(&edits, add);
    let remove = names(&edits, "remove", remove);
    edits.finish();
    HeaderEdits { set, add, remove }
}

/// Names of fields under `key`, in lower case.
pub fn names(table: &Section<'_>, key: &str, names: Vec<String>) -> Vec<String> {
    let mut good = Vec::new();
    for text in names {
        match name(&text) {
            Ok(name) if good.contains(&name) => {}
            Ok(name) => good.push(name),
            Err((message, hint)) => table.refuse(key, &message, hint),
        }
    }
    good
}

fn field(table: &Section<'_>, entry: Entry) -> Option<(String, String)> {
    let refuse =
        |span: Option<Range<usize>>, message: String, hint: &str| table.refuse_at(span, message, hint);
    let name = match name(&entry.name) {
        Ok(name) => name,
        Err((message, hint)) => {
            refuse(entry.span, message, hint);
            return None;
        }
    };
    // RFC 9110 §5.5: visible characters, with spaces and tabs between them.
    let good = entry.value.bytes().all(|byte| byte == b'\t' || (b' '..=b'~').contains(&byte));
    if !good || entry.value.trim() != entry.value || entry.value.len() > LONGEST_VALUE {
        let message = format!("the value of {} cannot be sent in a header", entry.name);
        let hint = "write up to 4096 ASCII characters without line breaks, and no space at the ends";
        refuse(entry.span, message, hint);
        return None;
    }
    Some((name, entry.value))
}

/// The name of a field in lower case, or why it cannot be edited.
fn name(text: &str) -> Result<String, (String, &'static str)> {
    let name = text.to_ascii_lowercase();
    // RFC 9110 §5.6.2: token.
    let is_token = !name.is_empty()
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte));
    if !is_token || name.len() > LONGEST_NAME {
        return Err((
            format!("`{text}` is not the name of a header field"),
            "write it such as X-Frame-Options",
        ));
    }
    if UNTOUCHABLE.contains(&name.as_str()) {
        let hint = match name.as_str() {
            "host" => "use host_header = \"preserve\" or \"backend\"",
            _ => "leave it out: the proxy itself writes what holds between it and its neighbours",
        };
        return Err((format!("{text} cannot be edited"), hint));
    }
    Ok(name)
}
