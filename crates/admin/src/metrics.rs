//! Figures in the text format that Prometheus scrapes.

use std::fmt::{Display, Write};

/// What the format is called in `Content-Type`.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A page of figures under way.
#[derive(Debug, Default)]
pub struct MetricsText(String);

/// What can be done with the figures of a family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricKind {
    /// Only grows, until the process starts anew.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Durations by size.
    Histogram,
}

/// The figures of one name. It stands on the page from its first figure on.
#[derive(Debug)]
pub struct Family<'a> {
    page: &'a mut String,
    name: &'static str,
    kind: MetricKind,
    help: &'static str,
    is_begun: bool,
}

impl MetricsText {
    /// Begins a family. A name may be begun only once.
    pub fn family(&mut self, name: &'static str, kind: MetricKind, help: &'static str) -> Family<'_> {
        Family { page: &mut self.0, name, kind, help, is_begun: false }
    }

    /// A family of a single figure without labels.
    pub fn single(&mut self, name: &'static str, kind: MetricKind, help: &'static str, value: impl Display) {
        self.family(name, kind, help).sample(&[], value);
    }

    /// The page.
    pub fn finish(self) -> String {
        self.0
    }
}

impl Family<'_> {
    /// A figure. What is in the labels must be bounded by the table: each is a series that is kept.
    pub fn sample(&mut self, labels: &[(&str, &str)], value: impl Display) {
        self.part("", labels, value);
    }

    /// A figure of a part of a histogram: `_bucket`, `_sum` or `_count`.
    pub fn part(&mut self, part: &str, labels: &[(&str, &str)], value: impl Display) {
        if !std::mem::replace(&mut self.is_begun, true) {
            let kind = match self.kind {
                MetricKind::Counter => "counter",
                MetricKind::Gauge => "gauge",
                MetricKind::Histogram => "histogram",
            };
            let help = self.help.replace('\\', "\\\\").replace('\n', "\\n");
            // Writing to a string does not fail.
            let _ = write!(self.page, "# HELP {0} {help}\n# TYPE {0} {kind}\n", self.name);
        }
        self.page.push_str(self.name);
        self.page.push_str(part);
        for (at, (name, text)) in labels.iter().enumerate() {
            self.page.push(if at == 0 { '{' } else { ',' });
            self.page.push_str(name);
            self.page.push_str("=\"");
            push_escaped(self.page, text);
            self.page.push('"');
        }
        if !labels.is_empty() {
            self.page.push('}');
        }
        let _ = writeln!(self.page, " {value}");
    }
}

fn push_escaped(to: &mut String, text: &str) {
    for c in text.chars() {
        match c {
            '\\' => to.push_str("\\\\"),
            '"' => to.push_str("\\\""),
            '\n' => to.push_str("\\n"),
            c => to.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_has_each_familys_kind_and_help_once() {
        let mut page = MetricsText::default();
        let mut requests = page.family("a_total", MetricKind::Counter, "All of them.\nReally: \\o/");
        requests.sample(&[("app", "wiki"), ("class", "2xx")], 3);
        requests.sample(&[("app", "we\"ird\\\n")], 1.5);
        page.family("b", MetricKind::Gauge, "Nothing to tell.");
        page.single("c", MetricKind::Gauge, "One.", 7);
        let mut durations = page.family("d_seconds", MetricKind::Histogram, "How long.");
        durations.part("_bucket", &[("le", "+Inf")], 2);
        durations.part("_count", &[], 2);
        assert_eq!(
            page.finish(),
            "# HELP a_total All of them.\\nReally: \\\\o/\n\
             # TYPE a_total counter\n\
             a_total{app=\"wiki\",class=\"2xx\"} 3\n\
             a_total{app=\"we\\\"ird\\\\\\n\"} 1.5\n\
             # HELP c One.\n\
             # TYPE c gauge\n\
             c 7\n\
             # HELP d_seconds How long.\n\
             # TYPE d_seconds histogram\n\
             d_seconds_bucket{le=\"+Inf\"} 2\n\
             d_seconds_count 2\n"
        );
    }
}
