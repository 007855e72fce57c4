//! Where in the file something was written that only the whole of it shows to be wrong.

use std::ops::Range;

use toml_edit::{Item, TableLike, Value};

type Span = Option<Range<usize>>;

/// The tables of a file.
#[derive(Clone, Copy)]
pub struct Places<'a>(pub &'a dyn TableLike);

impl<'a> Places<'a> {
    /// Of a key in a table, `dns.listen`; of the table, if the key is not written.
    pub fn key(&self, table: &str, key: &str) -> Span {
        let item = self.0.get(table)?;
        item.as_table_like().and_then(|table| span_of(table, key)).or_else(|| item.span())
    }

    /// Of the first of these keys that is written in the table that is meant of a list, such as `vhost` or `dns.record`;
    /// of the table, if none is.
    pub fn of(&self, list: &str, is_meant: impl Fn(&dyn TableLike) -> bool, keys: &[&str]) -> Span {
        let mut tables = self.tables(list).into_iter();
        let (table, span) = tables.find(|(table, _)| is_meant(*table))?;
        keys.iter().find_map(|key| span_of(table, key)).or(span)
    }

    /// The same of the table at an index.
    pub fn nth(&self, list: &str, index: usize, keys: &[&str]) -> Span {
        let (table, span) = self.tables(list).into_iter().nth(index)?;
        keys.iter().find_map(|key| span_of(table, key)).or(span)
    }

    fn tables(&self, list: &str) -> Vec<(&'a dyn TableLike, Span)> {
        let item = match list.split_once('.') {
            Some((table, list)) => {
                self.0.get(table).and_then(Item::as_table_like).and_then(|table| table.get(list))
            }
            None => self.0.get(list),
        };
        let Some(item) = item else { return Vec::new() };
        if let Some(array) = item.as_array_of_tables() {
            return array.iter().map(|table| (table as &dyn TableLike, table.span())).collect();
        }
        let inline = item.as_array().into_iter().flatten().filter_map(Value::as_inline_table);
        inline.map(|table| (table as &dyn TableLike, table.span())).collect()
    }
}

/// Whether a text, a number or what stands for one is written under a key.
pub fn says(table: &dyn TableLike, key: &str, text: &str) -> bool {
    let Some(item) = table.get(key) else { return false };
    let number = || item.as_integer().is_some_and(|number| number.to_string() == text);
    item.as_str().is_some_and(|written| written.eq_ignore_ascii_case(text)) || number()
}

fn span_of(table: &dyn TableLike, key: &str) -> Span {
    let (key, item) = table.get_key_value(key)?;
    key.span().or_else(|| item.span())
}
