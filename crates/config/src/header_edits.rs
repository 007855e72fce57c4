//! Names and values of header fields that an administrator may set.

use proximity_table::{FieldError, HeaderEdits, check_field_value, editable_field};

use crate::section::{Entry, Section};

/// The edits under `key`.
pub fn read(table: &mut Section<'_>, key: &'static str) -> HeaderEdits {
    let mut edits = table.table(key);
    let expected = edits.table_such_as("X-Frame-Options", "\"DENY\"");
    let set = edits.entries("set", &expected);
    let add = edits.entries("add", &expected);
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
        match editable_field(&text) {
            Ok(name) if good.contains(&name) => {}
            Ok(name) => good.push(name),
            Err(error) => {
                let (message, hint) = words(&error);
                table.refuse(key, &message, &hint);
            }
        }
    }
    good
}

fn field(table: &Section<'_>, entry: Entry) -> Option<(String, String)> {
    let checked = editable_field(&entry.name).and_then(|name| {
        check_field_value(&entry.name, &entry.value)?;
        Ok(name)
    });
    match checked {
        Ok(name) => Some((name, entry.value)),
        Err(error) => {
            let (message, hint) = words(&error);
            table.refuse_at(entry.span, message, &hint);
            None
        }
    }
}

/// What is wrong, and what to do.
fn words(error: &FieldError) -> (String, String) {
    let text = error.to_string();
    let (message, hint) = text.rsplit_once(": ").unwrap_or((&text, "correct it"));
    let hint = match error {
        FieldError::Untouchable(name) if name == "host" => "write preserve or backend in host_header instead",
        _ => hint,
    };
    (message.to_owned(), hint.to_owned())
}
