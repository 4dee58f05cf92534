//! What is wrong with a configuration: all of it at once, each with its place and what would be right.

use std::cell::RefCell;
use std::ops::Range;
use std::path::PathBuf;

use annotate_snippets::renderer::DecorStyle;
use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};
use serde_json::{Value, json};

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The configuration cannot be used.
    Error,
    /// It can, but probably says something else than was meant.
    Warning,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub severity: Severity,
    /// Bytes of the file.
    pub span: Range<usize>,
    pub message: String,
    /// What would be right.
    pub help: Option<String>,
}

/// Problems as they are found.
#[derive(Default)]
pub struct Problems(RefCell<Vec<Problem>>);

impl Problems {
    /// An error at a place.
    pub fn error(&self, span: Range<usize>, message: impl Into<String>, help: Option<String>) {
        self.0.borrow_mut().push(Problem { severity: Severity::Error, span, message: message.into(), help });
    }

    /// A warning at a place.
    pub fn warn(&self, span: Range<usize>, message: impl Into<String>, help: Option<String>) {
        self.0.borrow_mut().push(Problem { severity: Severity::Warning, span, message: message.into(), help });
    }

    /// Whether any error was found.
    pub fn has_errors(&self) -> bool {
        self.0.borrow().iter().any(|problem| problem.severity == Severity::Error)
    }

    /// All of them, in the order of the file.
    pub fn into_sorted(self) -> Vec<Problem> {
        let mut problems = self.0.into_inner();
        problems.sort_by_key(|problem| problem.span.start);
        problems
    }
}

/// All problems of one file.
#[derive(Clone, Debug)]
pub struct Report {
    pub path: String,
    pub source: String,
    /// The file itself and those that it names, as far as they were come by.
    pub files: Vec<PathBuf>,
    pub problems: Vec<Problem>,
}

impl Report {
    /// Whether the configuration cannot be used.
    pub fn has_errors(&self) -> bool {
        self.problems.iter().any(|problem| problem.severity == Severity::Error)
    }

    /// For people: each problem with its line, underlined.
    pub fn human(&self, colours: bool) -> String {
        let renderer = if colours { Renderer::styled() } else { Renderer::plain() }.decor_style(DecorStyle::Ascii);
        let rendered = self.problems.iter().map(|problem| {
            let level = match problem.severity {
                Severity::Error => Level::ERROR,
                Severity::Warning => Level::WARNING,
            };
            let place = AnnotationKind::Primary.span(self.within(&problem.span));
            let snippet = Snippet::source(&self.source).path(&self.path).annotation(place);
            let mut group = level.primary_title(&problem.message).element(snippet);
            if let Some(help) = &problem.help {
                group = group.element(Level::HELP.message(help));
            }
            renderer.render(&[group]).to_string() + "\n"
        });
        let mut text = rendered.collect::<Vec<_>>().join("\n");
        let errors = self.problems.iter().filter(|problem| problem.severity == Severity::Error).count();
        if errors > 0 {
            let plural = if errors == 1 { "" } else { "s" };
            text.push_str(&format!("\n{}: {errors} error{plural}\n", self.path));
        }
        text
    }

    /// For editors.
    pub fn json(&self) -> Value {
        let problems = self.problems.iter().map(|problem| {
            let span = self.within(&problem.span);
            let (line, column) = self.line_and_column(span.start);
            let severity = if problem.severity == Severity::Error { "error" } else { "warning" };
            json!({
                "severity": severity, "file": self.path, "line": line, "column": column,
                "text": &self.source[span], "message": problem.message, "help": problem.help,
            })
        });
        Value::Array(problems.collect())
    }

    /// Both count from 1; columns are characters.
    fn line_and_column(&self, at: usize) -> (usize, usize) {
        let before = &self.source[..at];
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
    }

    /// The span, cut to the source and to its first line, on character boundaries.
    fn within(&self, span: &Range<usize>) -> Range<usize> {
        let floor =
            |at: usize| (0..=at.min(self.source.len())).rev().find(|at| self.source.is_char_boundary(*at)).unwrap_or(0);
        let start = floor(span.start);
        let end = floor(span.end).max(start);
        let line_end = self.source[start..end].find('\n').map_or(end, |newline| start + newline);
        start..line_end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_a_line_and_a_column() {
        let problems = Problems::default();
        problems.error(8..11, "three is no number", Some("3".to_owned()));
        let report = Report {
            path: "a.toml".into(),
            source: "é = 1\nb = x y\n".into(),
            files: Vec::new(),
            problems: problems.into_sorted(),
        };
        assert_eq!(report.json()[0]["line"], 2);
        assert_eq!(report.json()[0]["column"], 2);
        assert!(report.human(false).contains("a.toml:2:2"), "{}", report.human(false));
    }
}
