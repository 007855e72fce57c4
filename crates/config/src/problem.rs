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
    files: RefCell<Vec<NamedFile>>,
}

/// A file that the configuration names.
#[derive(Clone, Debug)]
struct NamedFile {
    span: Option<Range<usize>>,
    key: String,
    path: String,
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
        Report::new(Spelling::Toml, std::iter::once(0).chain(newlines).collect())
    }

    /// Of an object of the API, which has no lines.
    pub(crate) fn of_object(spelling: Spelling) -> Report {
        Report::new(spelling, Vec::new())
    }

    fn new(spelling: Spelling, line_starts: Vec<usize>) -> Report {
        Report { spelling, line_starts, problems: RefCell::default(), files: RefCell::default() }
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

    pub(crate) fn note_file(&self, span: Option<Range<usize>>, key: String, path: String) {
        self.files.borrow_mut().push(NamedFile { span, key, path });
    }

    /// Has the files looked at that were noted. What is wrong with one is said as `what: what to do`.
    pub(crate) fn check_files(&self, look: impl Fn(&str) -> Result<(), String>) {
        for NamedFile { span, key, path } in self.files.take() {
            if let Err(text) = look(&path) {
                let (message, hint) = text.rsplit_once(": ").unwrap_or((&text, "name another file"));
                self.add(span, format!("{key}: {message}"), hint.to_owned());
            }
        }
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
