//! Keys with dots, such as `timeouts.total` or `auth.users.alice`, in the JSON of a vhost.

use serde_json::{Map, Value, json};

/// Tables whose keys are names that somebody chose: further dots belong to the name.
const NAMED: [&str; 5] = [
    "auth.users",
    "request_headers.add",
    "request_headers.set",
    "response_headers.add",
    "response_headers.set",
];

/// Lists of texts, which need no brackets where they are set: commas are enough.
const LISTS: [&str; 8] = [
    "access.allow",
    "access.apps",
    "access.deny",
    "aliases",
    "auth.copy_headers",
    "backends",
    "request_headers.remove",
    "response_headers.remove",
];

/// What became of a key that was taken away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unset {
    /// It was there and is no longer.
    Done,
    /// It was the last one of the list under this key, which is there still and empty.
    Emptied(String),
    /// There is no such thing.
    Absent,
}

/// Puts a value under a key. What is no JSON is a text: most values are, and need no quotes.
pub fn set(body: &mut Map<String, Value>, key: &str, text: &str) -> Result<(), String> {
    let parts = parts(key);
    if LISTS.contains(&key) && !text.starts_with('[') {
        let texts: Vec<&str> = text.split(',').map(str::trim).collect();
        return put(body, &parts, json!(texts));
    }
    if NAMED.contains(&key) && !text.starts_with(['{', '[']) && text != "null" {
        let name = if key == "auth.users" { "alice='$2b$…'" } else { "X-Frame-Options=DENY" };
        return Err(format!("{key} takes a name behind it: write --set {key}.{name}"));
    }
    let is_text = is_named(key) && !text.starts_with(['"', '[']);
    let value = serde_json::from_str(text).ok().filter(|_| !is_text).unwrap_or_else(|| json!(text));
    put(body, &parts, value)
}

/// Puts a JSON value under a key.
pub fn insert(body: &mut Map<String, Value>, key: &str, value: Value) -> Result<(), String> {
    put(body, &parts(key), value)
}

/// Takes away what stands under a key: a value, a part with all that is in it, or one of a list.
pub fn unset(body: &mut Map<String, Value>, key: &str) -> Unset {
    take(body, &parts(key), key)
}

/// Whether an empty list stands under a key.
pub fn is_empty_list(body: &Map<String, Value>, key: &str) -> bool {
    let (first, rest) = key.split_once('.').unwrap_or((key, ""));
    let below = rest.split('.').filter(|part| !part.is_empty());
    let found = below.fold(body.get(first), |value, part| value?.get(part));
    found.and_then(Value::as_array).is_some_and(Vec::is_empty)
}

fn parts(key: &str) -> Vec<&str> {
    let named = NAMED.iter().find_map(|table| {
        let name = key.strip_prefix(table)?.strip_prefix('.')?;
        Some(table.split('.').chain([name]).collect())
    });
    named.unwrap_or_else(|| key.split('.').collect())
}

fn is_named(key: &str) -> bool {
    NAMED.iter().any(|table| key.strip_prefix(table).is_some_and(|rest| rest.starts_with('.')))
}

fn put(body: &mut Map<String, Value>, parts: &[&str], value: Value) -> Result<(), String> {
    match parts {
        [] | [""] => Err("a key is missing: write it such as timeouts.total=30s".to_owned()),
        [last] => {
            body.insert((*last).to_owned(), value);
            Ok(())
        }
        [outer, inner @ ..] => {
            let part = body.entry(*outer).or_insert_with(|| json!({}));
            if part.is_null() {
                *part = json!({});
            }
            if let Value::Array(names) = part
                && *outer == "users"
            {
                // Users are shown by name; one that has no hash here keeps the one that it has.
                let names = names.iter().filter_map(Value::as_str);
                *part = names.map(|name| (name.to_owned(), json!(""))).collect();
            }
            let part =
                part.as_object_mut().ok_or_else(|| format!("{outer} has no parts: set it as a whole"))?;
            if let ("set" | "add", [name]) = (*outer, inner) {
                // RFC 9110 §5.1: names of fields have no case.
                part.retain(|there, _| !there.eq_ignore_ascii_case(name));
            }
            put(part, inner, value)
        }
    }
}

fn take(body: &mut Map<String, Value>, parts: &[&str], key: &str) -> Unset {
    let is_nothing = |value: &Value| value.is_null() || value.as_array().is_some_and(Vec::is_empty);
    match parts {
        [] => Unset::Absent,
        [last] => {
            let found = body.keys().find(|there| *there == last || there.eq_ignore_ascii_case(last)).cloned();
            let taken = found.and_then(|found| body.remove(&found));
            if taken.is_some_and(|value| !is_nothing(&value)) { Unset::Done } else { Unset::Absent }
        }
        [outer, inner @ ..] => match body.get_mut(*outer) {
            Some(Value::Object(part)) => {
                let taken = take(part, inner, key);
                if part.is_empty() {
                    body.remove(*outer);
                }
                taken
            }
            Some(Value::Array(list)) => {
                let wanted = inner.join(".");
                match list.iter().position(|one| is_called(outer, one, &wanted)) {
                    None => Unset::Absent,
                    Some(_) if list.len() == 1 => {
                        list.clear();
                        Unset::Emptied(
                            key.strip_suffix(&wanted).unwrap_or(key).trim_end_matches('.').to_owned(),
                        )
                    }
                    Some(at) => {
                        list.remove(at);
                        Unset::Done
                    }
                }
            }
            _ => Unset::Absent,
        },
    }
}

/// Whether one of the list under `key` is meant: a text by itself, a path by its prefix.
fn is_called(key: &str, one: &Value, wanted: &str) -> bool {
    match (key, one.as_str()) {
        // RFC 9110 §5.1: names of fields have no case.
        ("remove" | "copy_headers", Some(name)) => name.eq_ignore_ascii_case(wanted),
        (_, Some(text)) => text == wanted,
        (_, None) => one["prefix"].as_str().is_some_and(|prefix| prefix == wanted.trim_end_matches('/')),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body() -> Map<String, Value> {
        let body = json!({
            "app_name": "shop", "aliases": [], "redirect": null, "timeouts": {"total": "30s"},
            "auth": {"realm": "Shop", "users": ["alice", "b.c@example.org"]},
            "response_headers": {"set": {"x-a": "1"}, "remove": ["server"]},
            "path": [{"prefix": "/api", "backends": ["api:80"]}, {"prefix": "/v1.2", "backends": ["old:80"]}],
        });
        let Value::Object(body) = body else { unreachable!() };
        body
    }

    fn after(edit: impl FnOnce(&mut Map<String, Value>)) -> Value {
        let mut body = body();
        edit(&mut body);
        Value::Object(body)
    }

    #[test]
    fn one_user_is_put_beside_the_others() {
        let changed = after(|body| set(body, "auth.users.dave", "$2b$12$x").unwrap());
        let users = json!({"alice": "", "b.c@example.org": "", "dave": "$2b$12$x"});
        assert_eq!(changed["auth"], json!({"realm": "Shop", "users": users}));
        let changed = after(|body| set(body, "auth.users.b.c@example.org", "$argon2id$v=19$m=1").unwrap());
        assert_eq!(changed["auth"]["users"]["b.c@example.org"], "$argon2id$v=19$m=1");
    }

    #[test]
    fn tables_are_set_name_by_name_and_lists_by_commas() {
        let trouble = set(&mut body(), "response_headers.set", "X-A: 1").unwrap_err();
        assert!(trouble.contains("--set response_headers.set.X-Frame-Options=DENY"), "{trouble}");
        assert!(set(&mut body(), "auth.users", "alice").unwrap_err().contains("--set auth.users.alice="));
        let changed = after(|body| {
            set(body, "response_headers.add", r#"{"X-B": "2"}"#).unwrap();
            set(body, "response_headers.remove", "Server, X-Powered-By").unwrap();
            set(body, "aliases", r#"["a"]"#).unwrap();
        });
        let edits = json!({"set": {"x-a": "1"}, "add": {"X-B": "2"}, "remove": ["Server", "X-Powered-By"]});
        assert_eq!((&changed["response_headers"], &changed["aliases"]), (&edits, &json!(["a"])));
    }

    #[test]
    fn a_field_is_one_field_in_any_case() {
        let changed = after(|body| {
            set(body, "response_headers.set.X-A", "2").unwrap();
            set(body, "response_headers.set.X.Dotted", "true").unwrap();
            set(body, "response_headers.add.Link", r#"["</a>", "</b>"]"#).unwrap();
        });
        let edits = &changed["response_headers"];
        assert_eq!(edits["set"], json!({"X-A": "2", "X.Dotted": "true"}), "values of fields are texts");
        assert_eq!(edits["add"], json!({"Link": ["</a>", "</b>"]}));
        assert_eq!(
            after(|body| assert_eq!(unset(body, "response_headers.set.X-A"), Unset::Done))["response_headers"],
            json!({"remove": ["server"]})
        );
    }

    #[test]
    fn what_is_taken_away_was_there() {
        for (key, left) in [
            ("timeouts.total", json!({"timeouts": null})),
            ("timeouts", json!({"timeouts": null})),
            ("auth.users.alice", json!({"auth": {"realm": "Shop", "users": ["b.c@example.org"]}})),
            ("auth.users.b.c@example.org", json!({"auth": {"realm": "Shop", "users": ["alice"]}})),
            ("path./v1.2/", json!({"path": [{"prefix": "/api", "backends": ["api:80"]}]})),
        ] {
            let changed = after(|body| assert_eq!(unset(body, key), Unset::Done, "{key}"));
            for (key, value) in left.as_object().unwrap() {
                assert_eq!(changed[key], *value, "{key}");
            }
        }
        for key in [
            "timeouts.idle",
            "timeouts.total.x",
            "balance",
            "aliases",
            "redirect",
            "auth.users.Alice",
            "auth.users.carol",
            "path./v1",
            "path.",
            "response_headers.set.x-b",
            "",
            ".",
            "app_name.x",
        ] {
            let changed = after(|body| assert_eq!(unset(body, key), Unset::Absent, "{key}"));
            assert_eq!(changed["timeouts"], body()["timeouts"], "{key}");
        }
    }

    #[test]
    fn the_last_of_a_list_is_told_apart() {
        let last = |body: &mut Map<String, Value>| unset(body, "response_headers.remove.Server");
        assert_eq!(last(&mut body()), Unset::Emptied("response_headers.remove".into()));
    }

    #[test]
    fn what_has_no_parts_gets_none() {
        assert!(set(&mut body(), "app_name.x", "1").is_err());
        assert!(set(&mut body(), "aliases.x", "1").is_err());
        assert!(set(&mut body(), "", "1").is_err());
        assert!(set(&mut body(), "timeouts.", "1").is_err());
        let changed = after(|body| set(body, "redirect.x", "1").unwrap());
        assert_eq!(changed["redirect"], json!({"x": 1}), "the API tells that this is wrong");
    }
}
