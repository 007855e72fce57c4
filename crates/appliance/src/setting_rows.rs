//! Settings of vhosts and forwards as lines for people.

use serde_json::Value;

/// Adds a setting as a line, those of a part as one each with dots.
pub fn add(rows: &mut Vec<(String, String)>, key: &str, value: &Value) {
    match value {
        Value::Object(part) => {
            part.iter().for_each(|(inner, value)| add(rows, &format!("{key}.{inner}"), value))
        }
        value => rows.push((key.to_owned(), plain(value))),
    }
}

/// A value without quotes and brackets.
pub fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(values) => values.iter().map(plain).collect::<Vec<_>>().join(", "),
        value => value.to_string(),
    }
}
