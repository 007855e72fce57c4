//! Keys and values as their writer spells them: TOML in the file, JSON in the API.

use toml_edit::{Item, Value};

use super::Section;

/// Longest value that is shown whole, in characters.
const LONGEST_SHOWN: usize = 40;

/// In which language something is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spelling {
    /// The configuration file's.
    Toml,
    /// The API's.
    Json,
    /// The command line's.
    Line,
}

impl Section<'_> {
    /// A key with its value. Texts in quotes, numbers and truth values are written alike in all languages, but that the
    /// command line has no quotes.
    pub fn pair(&self, key: &str, value: &str) -> String {
        match self.spelling() {
            Spelling::Line => {
                let bare = value.trim_matches('"');
                match self.path.strip_prefix("vhost") {
                    // Of one in line, the name is behind a dot.
                    Some(_) if bare.starts_with('.') => format!("--set {}{bare}", self.short(key)),
                    Some(_) => format!("--set {}={bare}", self.short(key)),
                    None => format!("--{} {bare}", key.replace('_', "-")),
                }
            }
            Spelling::Toml => format!("{key} = {value}"),
            Spelling::Json => format!("\"{key}\": {value}"),
        }
    }

    /// A table of one key in a line.
    pub fn inline(&self, key: &str, value: &str) -> String {
        match self.spelling() {
            Spelling::Line => format!(".{key}={}", value.trim_matches('"')),
            Spelling::Toml => format!("{{ {} }}", self.pair(key, value)),
            Spelling::Json => format!("{{{}}}", self.pair(key, value)),
        }
    }

    /// What is asked for where a table must stand, with an example.
    pub fn table_such_as(&self, key: &str, value: &str) -> String {
        let kind = match self.spelling() {
            Spelling::Line => "each by its own name behind a dot,",
            Spelling::Toml => "a table",
            Spelling::Json => "an object",
        };
        format!("{kind} such as {}", self.inline(key, value))
    }

    /// The table itself.
    pub fn heading(&self) -> String {
        match self.spelling() {
            Spelling::Toml => format!("[{}]", self.path),
            Spelling::Json | Spelling::Line => self.path.clone(),
        }
    }

    /// What is said of a `key` that is no table, and what to do.
    pub fn no_table(&self, key: &str) -> (String, String) {
        let full = self.full(key);
        match self.spelling() {
            Spelling::Line => (
                format!("{full} has several keys"),
                format!("write each by itself, as --set {}.KEY=VALUE", self.short(key)),
            ),
            Spelling::Toml => (format!("{full} is a table"), format!("write [{full}] and its keys below")),
            Spelling::Json => {
                (format!("{full} is an object"), "write it with its keys, as {\"KEY\": VALUE}".to_owned())
            }
        }
    }

    /// The same of one that is no list of tables.
    pub fn no_tables(&self, key: &str) -> (String, String) {
        let full = self.full(key);
        match self.spelling() {
            Spelling::Toml => {
                (format!("{full} is a list of tables"), format!("write [[{full}]] once for each"))
            }
            Spelling::Json | Spelling::Line => (
                format!("{full} is a list of objects"),
                "write each with its keys, as [{\"KEY\": VALUE}]".to_owned(),
            ),
        }
    }

    /// Paths are objects in a list, on the command line too: flags do not reach into them.
    fn spelling(&self) -> Spelling {
        match self.report.spelling() {
            Spelling::Line if self.path.starts_with("vhost.path") => Spelling::Json,
            spelling => spelling,
        }
    }

    /// A key as `--set` has it.
    fn short(&self, key: &str) -> String {
        let full = self.full(key);
        full.strip_prefix("vhost.").unwrap_or(&full).to_owned()
    }

    /// A value as it was written, its end left out if it is long.
    pub fn shown(&self, item: &Item) -> String {
        let text = match self.report.spelling() {
            Spelling::Toml => item.to_string(),
            Spelling::Json | Spelling::Line => json(item).to_string(),
        };
        let text = text.trim();
        match text.char_indices().nth(LONGEST_SHOWN) {
            Some((end, _)) => format!("`{}…`", &text[..end]),
            None => format!("`{text}`"),
        }
    }
}

/// What of JSON became this; tables made of it have no dates.
fn json(item: &Item) -> serde_json::Value {
    let of = |value: &Value| json(&Item::Value(value.clone()));
    if let Some(table) = item.as_table_like() {
        return table.iter().map(|(key, item)| (key.to_owned(), json(item))).collect();
    }
    match item.as_value() {
        Some(Value::String(text)) => text.value().as_str().into(),
        Some(Value::Integer(number)) => (*number.value()).into(),
        Some(Value::Float(number)) => (*number.value()).into(),
        Some(Value::Boolean(value)) => (*value.value()).into(),
        Some(Value::Array(values)) => values.iter().map(of).collect(),
        _ => serde_json::Value::Null,
    }
}
