//! The report: one page without scripts that asks for nothing else, light or dark as the reader has it.
//!
//! What comes out of a log or a configuration is escaped wherever it is shown.

use std::fmt::Write as _;

use super::logs::Unreadable;
use super::policies::MEANINGS;
use super::{Results, plots, table};

const STYLE: &str = include_str!("report.css");

/// The whole page.
pub(super) fn html(results: &Results) -> String {
    let scenario = &results.scenario;
    let title = escape(&scenario.title);
    let mut out = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>steadfast simulate: {title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n\
         <h1>{title}</h1>\n<p>{}</p>\n<p class=\"quiet\">{}</p>\n",
        escape(&scenario.story),
        escape(&table::headline(results))
    );
    out.push_str(&table_of(results));
    section(&mut out, "Latency", "On a logarithmic axis; the figure is the p99.", &plots::latencies(&results.rows));
    section(
        &mut out,
        "Load",
        "Requests in flight on each server, averaged over the time that it was there: a dot per server. \
         Dots that lie apart are capacity that cannot be used.",
        &plots::loads(&results.rows),
    );
    if let Some(trade) = plots::trade(results) {
        let words =
            "Each policy with pins: its p99, and the share of requests that stayed. Up and to the left is better.";
        section(&mut out, "What pins cost", words, &trade);
    }
    assumed(&mut out, results);
    unreadable(&mut out, &scenario.unreadable);
    meanings(&mut out, results);
    out.push_str("</main>\n</body>\n</html>\n");
    out
}

/// Text as HTML shows it, in an element and in a quoted attribute alike.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for each in text.chars() {
        match each {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // No page may have these, and no reader sees them.
            other if other.is_control() && !matches!(other, '\n' | '\t') => out.push('\u{fffd}'),
            other => out.push(other),
        }
    }
    out
}

fn section(out: &mut String, heading: &str, words: &str, picture: &str) {
    // Writing to memory does not fail.
    let _ = writeln!(out, "<section>\n<h2>{heading}</h2>\n<p class=\"quiet\">{words}</p>\n{picture}</section>");
}

fn table_of(results: &Results) -> String {
    let mut out = "<div class=\"wide\"><table>\n<thead><tr>".to_owned();
    for (name, meaning) in table::COLUMNS {
        let _ = write!(out, "<th scope=\"col\" title=\"{}\">{name}</th>", escape(meaning));
    }
    out.push_str("</tr></thead>\n<tbody>\n");
    for (at, row) in results.rows.iter().enumerate() {
        let is_own = at == 0 && results.has_own;
        out.push_str(if is_own { "<tr class=\"own\">" } else { "<tr>" });
        for (at, cell) in table::cells(row, &results.scenario).iter().enumerate() {
            let cell = escape(cell);
            let _ = if at == 0 { write!(out, "<th scope=\"row\">{cell}</th>") } else { write!(out, "<td>{cell}</td>") };
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</tbody>\n</table></div>\n");
    out
}

fn assumed(out: &mut String, results: &Results) {
    out.push_str("<section>\n<h2>What was taken for granted</h2>\n<ul>\n");
    for note in table::notes(results) {
        let _ = writeln!(out, "<li>{}</li>", escape(&note));
    }
    out.push_str("</ul>\n</section>\n");
}

fn unreadable(out: &mut String, lines: &Unreadable) {
    if lines.count == 0 {
        return;
    }
    out.push_str("<section>\n<h2>Lines that could not be read</h2>\n<ul>\n");
    for example in &lines.examples {
        let (number, why, text) = (example.number, escape(example.why), escape(&example.text));
        let _ = writeln!(out, "<li>line {number}: {why}: <code>{text}</code></li>");
    }
    let more = lines.count - lines.examples.len() as u64;
    if more > 0 {
        let _ = writeln!(out, "<li>and {} more</li>", table::grouped(more));
    }
    out.push_str("</ul>\n</section>\n");
}

fn meanings(out: &mut String, results: &Results) {
    out.push_str("<section>\n<h2>Words</h2>\n<dl>\n");
    if results.has_own {
        out.push_str("<dt>as configured</dt><dd>the pool's own mode, balance policy and pins</dd>\n");
    }
    for (name, meaning) in MEANINGS.iter().chain(table::COLUMNS.iter().skip(1)) {
        let _ = writeln!(out, "<dt>{}</dt><dd>{}</dd>", escape(name), escape(meaning));
    }
    out.push_str("</dl>\n</section>\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_a_text_is_taken_for_html() {
        let text = "<script>alert('x')</script> & \"q\" \u{1b}[31m";
        let shown = escape(text);
        assert_eq!(shown, "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; &amp; &quot;q&quot; \u{fffd}[31m");
    }

    #[test]
    fn the_page_asks_for_nothing_else() {
        for outside in ["url(", "@import", "http"] {
            assert!(!STYLE.contains(outside), "{outside}");
        }
    }
}
