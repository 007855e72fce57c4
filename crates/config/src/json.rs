//! Objects of the admin API are written in JSON and spelled as in the file, so the same code reads both.

use proximity_table::{Forward, Name, Vhost};
use serde_json::{Map, Value};
use toml_edit::{Array, InlineTable, Item, Table};

use crate::Report;
use crate::forward;
use crate::section::{Section, Spelling};
use crate::vhost::{self, Hashes};

/// A vhost as JSON: the keys of `[[vhost]]`. `null` is as good as nothing. `spelling` is that of the problems.
///
/// A user of `auth.users` whose hash is an empty text, or all of them in a list of names, are to keep the hash
/// that the vhost has: their `hash` is empty in the result, and whoever stores it must fill it in.
pub fn vhost_from_json(
    object: &Map<String, Value>,
    domain: &Name,
    spelling: Spelling,
) -> Result<Vhost, Report> {
    let report = Report::of_object(spelling);
    let table = table(object);
    let mut section = Section::named("vhost", &table, &report);
    let vhost = vhost::read(&mut section, domain, Hashes::MayBeKept);
    section.finish();
    match vhost {
        Some(vhost) => report.into_result(vhost),
        None => Err(report),
    }
}

/// A port forward as JSON: the keys of `[[forward]]`. `null` is as good as nothing. `spelling` is that of the problems.
pub fn forward_from_json(object: &Map<String, Value>, spelling: Spelling) -> Result<Forward, Report> {
    let report = Report::of_object(spelling);
    let table = table(object);
    let mut section = Section::named("forward", &table, &report);
    let forward = forward::read(&mut section);
    section.finish();
    match forward {
        Some(forward) => report.into_result(forward),
        None => Err(report),
    }
}

fn table(object: &Map<String, Value>) -> Table {
    let mut table = Table::new();
    for (key, value) in object {
        if let Some(value) = value_of(value) {
            table.insert(key, Item::Value(value));
        }
    }
    table
}

fn value_of(value: &Value) -> Option<toml_edit::Value> {
    Some(match value {
        Value::Null => return None,
        Value::Bool(value) => (*value).into(),
        Value::Number(number) => match number.as_i64() {
            Some(number) => number.into(),
            None => number.as_f64()?.into(),
        },
        Value::String(text) => text.as_str().into(),
        Value::Array(values) => {
            toml_edit::Value::Array(values.iter().filter_map(value_of).collect::<Array>())
        }
        Value::Object(object) => {
            let mut table = InlineTable::new();
            for (key, value) in object {
                if let Some(value) = value_of(value) {
                    table.insert(key, value);
                }
            }
            toml_edit::Value::InlineTable(table)
        }
    })
}
