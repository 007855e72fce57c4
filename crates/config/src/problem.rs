use std::cell::RefCell;
use std::fmt;
use std::ops::Range;

use crate::section::Spelling;

/// One thing that is wrong in a configuration.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Line of the file, from 1; 0 when the problem has no single place.
    pub line: usize,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub hint: String,
}

/// All problems of a configuration, in the order of their lines.
#[derive(Clone, Debug)]
pub struct Report {
    spelling: Spelling,
    line_starts: Vec<usize>,
    problems: RefCell<Vec<Problem>>,
}

impl Report {
    /// The problems, in the order of their lines.
    pub fn problems(&self) -> Vec<Problem> {
        let mut problems = self.problems.borrow().clone();
        problems.sort();
        problems.dedup();
        problems
    }

    /// The report as text, each problem as `file:line: message`, its hint below.
    pub fn for_file(&self, file: &str) -> String {
        let lines = self.problems().into_iter().map(|p| match p.line {
            0 => format!("{file}: {}\n  hint: {}", p.message, p.hint),
            line => format!("{file}:{line}: {}\n  hint: {}", p.message, p.hint),
        });
        lines.collect::<Vec<_>>().join("\n")
    }

    /// Of a file.
    pub(crate) fn collector(text: &str) -> Report {
        let newlines = text.bytes().enumerate().filter(|(_, b)| *b == b'\n').map(|(at, _)| at + 1);
        let line_starts = std::iter::once(0).chain(newlines).collect();
        Report { spelling: Spelling::Toml, line_starts, problems: RefCell::default() }
    }

    /// Of an object of the API, which has no lines.
    pub(crate) fn of_json() -> Report {
        Report { spelling: Spelling::Json, line_starts: Vec::new(), problems: RefCell::default() }
    }

    pub(crate) fn spelling(&self) -> Spelling {
        self.spelling
    }

    pub(crate) fn syntax(text: &str, error: &toml_edit::TomlError) -> Report {
        let report = Report::collector(text);
        let message = error.message().replace('\n', ", ");
        report.add(
            error.span(),
            message,
            "this is not TOML: see https://toml.io for how values are written".into(),
        );
        report
    }

    pub(crate) fn add(&self, span: Option<Range<usize>>, message: String, hint: String) {
        let line = span.map_or(0, |span| self.line_starts.partition_point(|&start| start <= span.start));
        self.problems.borrow_mut().push(Problem { line, message, hint });
    }

    pub(crate) fn into_result<T>(self, value: T) -> Result<T, Report> {
        if self.problems.borrow().is_empty() { Ok(value) } else { Err(self) }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.for_file("configuration"))
    }
}

impl std::error::Error for Report {}
