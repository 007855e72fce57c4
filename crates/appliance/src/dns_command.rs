//! `proximity dns flush` and `proximity dns query`.

use hyper::Method;
use proximity_admin::{AnsweredRecord, DnsAnswerView, FlushInput, Flushed, QuestionInput};
use serde_json::json;

use crate::commands::{Asked, Done};
use crate::{say, table_text};

/// Forgets a name with all below it, or everything.
pub fn flush(asked: &Asked, name: Option<String>) -> Done {
    let what = name.clone().unwrap_or_else(|| "everything".to_owned());
    let answer = asked.call(Method::POST, "/dns/flush", Some(&json!(FlushInput { name })))?;
    asked.show(answer, |flushed: Flushed| say!("{what} is forgotten: answers {}", flushed.answers))
}

/// Asks for a name.
pub fn query(asked: &Asked, name: String, rtype: String) -> Done {
    let body = json!(QuestionInput { name, rtype: Some(rtype) });
    let answer = asked.call(Method::POST, "/dns/query", Some(&body))?;
    asked.show(answer, |view: DnsAnswerView| {
        say!(
            "{} {}: {} from {} in {:.1} ms, flags {}",
            view.name,
            view.rtype,
            view.rcode,
            view.origin,
            view.microseconds as f64 / 1000.0,
            view.flags.join(" ")
        );
        if let Some(error) = &view.error {
            say!("! {error}");
        }
        let row = |section: &'static str| {
            move |record: &AnsweredRecord| {
                let ttl = record.ttl.to_string();
                vec![section.to_owned(), record.name.clone(), ttl, record.rtype.clone(), record.value.clone()]
            }
        };
        let rows: Vec<_> = view
            .answers
            .iter()
            .map(row("answer"))
            .chain(view.authority.iter().map(row("authority")))
            .collect();
        if !rows.is_empty() {
            table_text::print(&["section", "name", "ttl", "type", "value"], &rows);
        }
    })
}
