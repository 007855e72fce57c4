use axum::Json;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

/// An error as RFC 9457 wants it, with a hint of what to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// HTTP status code.
    pub status: u16,
    /// What kind of error it is.
    pub title: String,
    /// What is wrong this time.
    pub detail: String,
    /// What to do.
    pub hint: String,
    /// Where several things are wrong, each by itself; `detail` and `hint` have all of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<Flaw>,
    /// Seconds after which to ask again, where nothing else needs to be done; sent as `Retry-After`.
    #[serde(skip)]
    pub retry_after: Option<u32>,
}

/// One of several things that are wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flaw {
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub hint: String,
}

impl Problem {
    /// A problem with these texts; the title follows from the status.
    pub fn new(status: StatusCode, detail: impl Into<String>, hint: impl Into<String>) -> Problem {
        Problem {
            status: status.as_u16(),
            title: status.canonical_reason().unwrap_or("Error").to_owned(),
            detail: detail.into(),
            hint: hint.into(),
            problems: Vec::new(),
            retry_after: None,
        }
    }

    /// Another process is taking over, and nothing was done here.
    pub fn taken_over() -> Problem {
        let detail = "another process is taking over, and nothing was changed";
        let problem =
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail, "ask again: the new process answers");
        Problem { retry_after: Some(1), ..problem }
    }

    /// The request says something that cannot be.
    pub fn invalid(detail: impl Into<String>, hint: impl Into<String>) -> Problem {
        Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail, hint)
    }

    /// An error text of ours that says what to do behind its last colon.
    pub fn explained(error: impl std::fmt::Display) -> Problem {
        let text = error.to_string();
        let (detail, hint) = text.rsplit_once(": ").unwrap_or((&text, "correct the value"));
        Problem::invalid(detail, hint)
    }

    /// Everything that is wrong with an object.
    pub fn reported(report: &proximity_config::Report) -> Problem {
        let problems = report.problems();
        let join = |text: fn(&proximity_config::Problem) -> &String| {
            let mut texts: Vec<&str> = problems.iter().map(|problem| text(problem).as_str()).collect();
            texts.dedup();
            texts.join("; ")
        };
        let mut all = Problem::invalid(join(|problem| &problem.message), join(|problem| &problem.hint));
        if problems.len() > 1 {
            let flaw =
                |problem: proximity_config::Problem| Flaw { message: problem.message, hint: problem.hint };
            all.problems = problems.into_iter().map(flaw).collect();
        }
        all
    }

    /// There is no such thing.
    pub fn absent(kind: &str, name: &str, list: &str) -> Problem {
        let hint = format!("`{list}` shows those that exist");
        Problem::new(StatusCode::NOT_FOUND, format!("there is no {kind} `{name}`"), hint)
    }

    /// The change clashes with what is there.
    pub fn conflict(detail: impl Into<String>, hint: impl Into<String>) -> Problem {
        Problem::new(StatusCode::CONFLICT, detail, hint)
    }

    /// The object stands in the configuration file.
    pub fn owned_by_file(kind: &str, name: &str) -> Problem {
        let detail = format!("the {kind} `{name}` belongs to the configuration file");
        Problem::conflict(detail, "change it in the file, then run `proximity reload`")
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(&self)).into_response();
        let kind = header::HeaderValue::from_static("application/problem+json");
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        if let Some(seconds) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}
