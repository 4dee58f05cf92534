//! The table of a simulation: its cells, which the report shows too, and its form for a terminal.

use std::fmt::Write as _;
use std::time::Duration;

use super::{Results, Row, Scenario};
use crate::clock::Moment;
use crate::pool::PinKind;

/// The columns, and what each means.
pub(super) const COLUMNS: [(&str, &str); 12] = [
    ("policy", "how requests were placed"),
    ("p50", "half of the requests that were served took no longer"),
    ("p95", "95 of 100 took no longer"),
    ("p99", "99 of 100 took no longer"),
    ("max/mean", "requests in flight over time, per unit of weight: the most loaded server over the mean; 1 is even"),
    ("Jain", "Jain's fairness of the same loads; 1 is even"),
    ("kept", "share of requests with a pin that their own server served"),
    ("moves", "requests with a pin that another server served"),
    (
        "T90",
        "how long servers that joined waited for 90 % of their fair share, taken over a second, so hardly ever less than that",
    ),
    (
        "lost",
        "sessions that hard pins had given to a server which went, and that asked again: their state went with it",
    ),
    ("refused", "requests that no server took"),
    ("failed", "requests whose server died under them"),
];
const NOTHING: &str = "-";

/// One line of the table.
pub(super) fn cells(row: &Row, scenario: &Scenario) -> [String; COLUMNS.len()] {
    let outcome = &row.outcome;
    let quantile = |share| short(outcome.latency.quantile(share));
    let is_hard = row.policy.pins.is_some_and(|pins| pins.kind == PinKind::Hard);
    let pinned = |text: String| if row.policy.pins.is_some() { text } else { NOTHING.to_owned() };
    [
        row.policy.name.to_string(),
        quantile(0.5),
        quantile(0.95),
        quantile(0.99),
        format!("{:.2}", outcome.imbalance.max_over_mean),
        format!("{:.3}", outcome.imbalance.jain),
        kept(row).map_or(NOTHING.to_owned(), |share| format!("{:.1} %", share * 100.0)),
        pinned(grouped(outcome.moved)),
        until_fair(row, scenario),
        if is_hard { grouped(outcome.sessions_lost) } else { NOTHING.to_owned() },
        grouped(outcome.refused),
        grouped(outcome.failed),
    ]
}

/// The share of requests with a pin that stayed; none where there was no pin to keep.
pub(super) fn kept(row: &Row) -> Option<f64> {
    let pinned = row.outcome.kept + row.outcome.moved;
    (row.policy.pins.is_some() && pinned > 0).then(|| row.outcome.kept as f64 / pinned as f64)
}

/// When the last of those that joined had its share.
fn until_fair(row: &Row, scenario: &Scenario) -> String {
    let took = row.outcome.scale_out.iter().map(|(_, took)| *took);
    match took.collect::<Option<Vec<_>>>() {
        Some(all) => all.into_iter().max().map_or(NOTHING.to_owned(), short),
        None => {
            let joined = scenario.servers.iter().map(|server| server.from).max().unwrap_or_default();
            format!("> {}", short(scenario.length.saturating_sub(joined.since(Moment::default()))))
        }
    }
}

/// The sentences above the table.
pub(super) fn headline(results: &Results) -> String {
    let Scenario { arrivals, length, servers, .. } = &results.scenario;
    format!(
        "{} requests in {}, {} servers, seed {}",
        grouped(arrivals.len() as u64),
        short(*length),
        servers.len(),
        results.seed
    )
}

/// How far the model can be trusted, where a log and the policy in force are known.
pub(super) fn fit(results: &Results) -> Option<String> {
    let measured = results.scenario.measured?;
    let found = format!(
        "The log's own latencies: p50 {}, p95 {}, p99 {}.",
        short(measured.p50),
        short(measured.p95),
        short(measured.p99)
    );
    let own = results.rows.first().filter(|_| results.has_own && !measured.p99.is_zero());
    let Some(own) = own else { return Some(found) };
    let fit = own.outcome.latency.quantile(0.99).as_secs_f64() / measured.p99.as_secs_f64();
    let trust = if (0.8..=1.25).contains(&fit) {
        ""
    } else {
        "; outside of 0.8 to 1.25 the answers are not to be trusted: look at capacity and discipline"
    };
    Some(format!("{found} Fit (the p99 of the policy as configured over it): {fit:.2}{trust}."))
}

/// What is to be known beside the table.
pub(super) fn notes(results: &Results) -> Vec<String> {
    results.scenario.assumed.iter().cloned().chain(fit(results)).collect()
}

/// Everything, for a terminal.
pub(super) fn text(results: &Results) -> String {
    let scenario = &results.scenario;
    let mut out = format!("{}: {}\n{}\n\n", scenario.title, scenario.story, headline(results));
    let head = COLUMNS.map(|(name, _)| name.to_owned());
    let rows: Vec<_> = results.rows.iter().map(|row| cells(row, scenario)).collect();
    let all = || std::iter::once(&head).chain(&rows);
    let widths: [usize; COLUMNS.len()] =
        std::array::from_fn(|at| all().map(|cells| cells[at].chars().count()).max().unwrap_or(0));
    for cells in all() {
        let mut line = String::new();
        for (at, (cell, width)) in cells.iter().zip(widths).enumerate() {
            // Writing to memory does not fail.
            let _ = if at == 0 { write!(line, "{cell:<width$}") } else { write!(line, "  {cell:>width$}") };
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out.push('\n');
    for note in notes(results) {
        let _ = writeln!(out, "{note}");
    }
    for example in &scenario.unreadable.examples {
        let _ = writeln!(out, "  line {}: {}: {}", example.number, example.why, example.text);
    }
    out
}

/// A duration in the unit that fits, with three figures at most.
pub(super) fn short(span: Duration) -> String {
    let seconds = span.as_secs_f64();
    match seconds {
        _ if seconds >= 99.95 => format!("{seconds:.0} s"),
        _ if seconds >= 9.995 => format!("{seconds:.1} s"),
        _ if seconds >= 0.9995 => format!("{seconds:.2} s"),
        _ if seconds >= 0.0995 => format!("{:.0} ms", seconds * 1e3),
        _ => format!("{:.1} ms", seconds * 1e3),
    }
}

/// A count with its thousands apart.
pub(super) fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_short() {
        let cases = [
            (0, "0.0 ms"),
            (1_234, "1.2 ms"),
            (12_345, "12.3 ms"),
            (123_456, "123 ms"),
            (999_400, "999 ms"),
            (999_600, "1.00 s"),
        ];
        for (micros, text) in cases {
            assert_eq!(short(Duration::from_micros(micros)), text);
        }
        assert_eq!([12.34, 123.4].map(|seconds| short(Duration::from_secs_f64(seconds))), ["12.3 s", "123 s"]);
        assert_eq!([0, 999, 1_000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
    }
}
