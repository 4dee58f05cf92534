//! The report's pictures, as SVG that takes its colours from the page.

use std::fmt::Write as _;
use std::time::Duration;

use super::report::escape;
use super::table::{kept, short};
use super::{Results, Row};

const WIDTH: f64 = 860.0;
const LEFT: f64 = 210.0;
const RIGHT: f64 = 70.0;
const TOP: f64 = 34.0;
const ROW: f64 = 26.0;
const BOTTOM: f64 = 34.0;
/// Nothing is drawn faster than this, so that a logarithm exists.
const FASTEST: f64 = 1e-4;
/// Ticks of the axis of a share.
const SHARES: [f64; 5] = [0.0, 0.25, 0.5, 0.75, 1.0];

/// An axis from left to right.
struct Axis {
    from: f64,
    to: f64,
    is_log: bool,
}

impl Axis {
    fn x(&self, value: f64) -> f64 {
        let scale = |value: f64| if self.is_log { value.max(FASTEST).log10() } else { value };
        let (from, to) = (scale(self.from), scale(self.to));
        let share = (scale(value) - from) / (to - from);
        LEFT + share.clamp(0.0, 1.0) * (WIDTH - LEFT - RIGHT)
    }
}

/// Whole decades around these seconds.
fn decades(least: f64, most: f64) -> (f64, f64, Vec<f64>) {
    let first = least.max(FASTEST).log10().floor() as i32;
    let last = (most.max(FASTEST).log10().ceil() as i32).max(first + 1);
    (10_f64.powi(first), 10_f64.powi(last), (first..=last).map(|power| 10_f64.powi(power)).collect())
}

/// p50, p95 and p99 of every policy, on a logarithmic axis.
pub(super) fn latencies(rows: &[Row]) -> String {
    let quantiles = |row: &Row| [0.5, 0.95, 0.99].map(|share| row.outcome.latency.quantile(share).as_secs_f64());
    let all: Vec<[f64; 3]> = rows.iter().map(quantiles).collect();
    let least = all.iter().map(|found| found[0]).fold(f64::INFINITY, f64::min);
    let most = all.iter().map(|found| found[2]).fold(0.0, f64::max);
    let (from, to, ticks) = decades(if least.is_finite() { least } else { FASTEST }, most);
    let axis = Axis { from, to, is_log: true };
    let mut out = open("p50, p95 and p99 of each policy", rows.len());
    for tick in ticks {
        grid(&mut out, axis.x(tick), rows.len(), &round(tick));
    }
    for (at, (row, found)) in rows.iter().zip(&all).enumerate() {
        let y = middle(at);
        let [p50, p95, p99] = found.map(|value| axis.x(value));
        label(&mut out, y, &row.policy.name);
        let _ = writeln!(
            out,
            "<line class=\"span\" x1=\"{p50:.1}\" x2=\"{p99:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
             <circle class=\"a\" cx=\"{p50:.1}\" cy=\"{y:.1}\" r=\"5\"/><circle class=\"b\" cx=\"{p95:.1}\" cy=\"{y:.1}\" r=\"5\"/>\
             <circle class=\"c\" cx=\"{p99:.1}\" cy=\"{y:.1}\" r=\"5\"/><text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            p99 + 10.0,
            y + 4.0,
            short(Duration::from_secs_f64(found[2]))
        );
    }
    legend(&mut out, &[("a", "p50"), ("b", "p95"), ("c", "p99")]);
    close(out)
}

/// Every server's requests in flight, averaged over time: a dot each.
pub(super) fn loads(rows: &[Row]) -> String {
    let servers = rows.iter().flat_map(|row| &row.outcome.servers);
    let most = servers.map(|server| server.in_flight).fold(0.0, f64::max);
    let step = nice_step(most);
    let ticks = (0..=8).map(|number| f64::from(number) * step);
    let ticks: Vec<f64> = ticks.take_while(|tick| *tick < most + step).collect();
    let axis = Axis { from: 0.0, to: ticks.last().copied().unwrap_or(1.0).max(step), is_log: false };
    let mut out = open("Requests in flight on each server", rows.len());
    for tick in &ticks {
        grid(&mut out, axis.x(*tick), rows.len(), &format!("{tick:.*}", usize::from(step < 1.0)));
    }
    for (at, row) in rows.iter().enumerate() {
        let y = middle(at);
        label(&mut out, y, &row.policy.name);
        for server in &row.outcome.servers {
            let _ = writeln!(
                out,
                "<circle class=\"a half\" cx=\"{:.1}\" cy=\"{y:.1}\" r=\"5\"><title>{}: {:.1}</title></circle>",
                axis.x(server.in_flight),
                escape(&server.name),
                server.in_flight
            );
        }
    }
    close(out)
}

/// What pins cost: p99 over the share of requests that stayed. Nothing where no policy has pins.
pub(super) fn trade(results: &Results) -> Option<String> {
    let points: Vec<(&Row, f64)> = results.rows.iter().filter_map(|row| Some((row, kept(row)?))).collect();
    let p99 = |row: &Row| row.outcome.latency.quantile(0.99).as_secs_f64();
    let most = points.iter().map(|(row, _)| p99(row)).fold(0.0, f64::max);
    let least = points.iter().map(|(row, _)| p99(row)).fold(f64::INFINITY, f64::min);
    if points.is_empty() {
        return None;
    }
    let (from, to, ticks) = decades(least, most);
    let axis = Axis { from, to, is_log: true };
    let height = SHARES.len() * 2;
    let y = |share: f64| TOP + (1.0 - share) * (height as f64 * ROW);
    let mut out = open("p99 over the share of requests that stayed on their server", height);
    for tick in ticks {
        grid(&mut out, axis.x(tick), height, &round(tick));
    }
    for share in SHARES {
        label(&mut out, y(share), &format!("{:.0} % kept", share * 100.0));
    }
    for (row, share) in points {
        let (x, y) = (axis.x(p99(row)), y(share));
        // Names stay inside of the picture.
        let (anchor, beside) = if x > WIDTH / 2.0 { ("end", x - 10.0) } else { ("start", x + 10.0) };
        let _ = writeln!(
            out,
            "<circle class=\"c\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"6\"><title>{name}: p99 {}, {:.1} % kept</title></circle>\
             <text x=\"{beside:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{name}</text>",
            short(Duration::from_secs_f64(p99(row))),
            share * 100.0,
            y + 4.0,
            name = escape(&shortened(&row.policy.name))
        );
    }
    Some(close(out))
}

/// 1, 2 or 5 times a power of ten, so that at most eight fit.
fn nice_step(most: f64) -> f64 {
    let rough = (most / 6.0).max(0.1);
    let power = 10_f64.powf(rough.log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power);
    steps.into_iter().find(|step| *step >= rough).unwrap_or(10.0 * power)
}

/// A decade's name: "10 ms".
fn round(seconds: f64) -> String {
    if seconds < 0.9 { format!("{} ms", (seconds * 1e4).round() / 10.0) } else { format!("{seconds:.0} s") }
}

fn middle(row: usize) -> f64 {
    TOP + (row as f64 + 0.5) * ROW
}

fn open(title: &str, rows: usize) -> String {
    let height = TOP + rows as f64 * ROW + BOTTOM;
    format!("<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{title}\">\n")
}

fn close(mut out: String) -> String {
    out.push_str("</svg>\n");
    out
}

/// A line down, and what it stands for below.
fn grid(out: &mut String, x: f64, rows: usize, text: &str) {
    let end = TOP + rows as f64 * ROW;
    let _ = writeln!(
        out,
        "<line class=\"grid\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{TOP}\" y2=\"{end}\"/>\
         <text class=\"quiet\" x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{text}</text>",
        end + 18.0
    );
}

fn label(out: &mut String, y: f64, text: &str) {
    let _ = writeln!(
        out,
        "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
        LEFT - 14.0,
        y + 4.0,
        escape(&shortened(text))
    );
}

/// Names from a configuration may be long.
fn shortened(text: &str) -> String {
    const MOST: usize = 30;
    if text.chars().count() <= MOST { text.to_owned() } else { text.chars().take(MOST - 1).chain(['…']).collect() }
}

fn legend(out: &mut String, entries: &[(&str, &str)]) {
    for (at, (class, text)) in entries.iter().enumerate() {
        let x = LEFT + at as f64 * 70.0;
        let _ = writeln!(
            out,
            "<circle class=\"{class}\" cx=\"{x}\" cy=\"14\" r=\"5\"/><text x=\"{}\" y=\"18\">{text}</text>",
            x + 10.0
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_end_on_round_numbers() {
        let (from, to, ticks) = decades(0.020, 1.9);
        assert_eq!((round(from), round(to), ticks.len()), ("10 ms".to_owned(), "10 s".to_owned(), 4));
        assert_eq!(decades(0.0, 0.0).2.len(), 2, "where nothing was served");
        for (most, step) in [(0.0, 0.1), (5.0, 1.0), (9.0, 2.0), (55.0, 10.0), (170.0, 50.0)] {
            assert!((nice_step(most) - step).abs() < 1e-9, "{most}: {}", nice_step(most));
        }
    }

    #[test]
    fn what_is_off_the_axis_is_drawn_at_its_end() {
        let axis = Axis { from: 0.01, to: 10.0, is_log: true };
        assert_eq!([axis.x(0.0), axis.x(0.01), axis.x(99.0)], [LEFT, LEFT, WIDTH - RIGHT]);
        assert!((axis.x(0.1) - (LEFT + (WIDTH - LEFT - RIGHT) / 3.0)).abs() < 1e-6);
    }
}
