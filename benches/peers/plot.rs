//! The table as a picture: one group of bars per scenario, each bar the ratio to the best peer.

use std::fmt::Write as _;

const ROW: usize = 16;
const GROUP_GAP: usize = 18;
const LEFT: usize = 290;
const SCALE: f64 = 150.0;
/// Bars end here; the figure says how long they would be.
const MOST: f64 = 3.0;
const COLOURS: [&str; 6] = ["#c2410c", "#0369a1", "#7dd3fc", "#4d7c0f", "#bef264", "#737373"];

/// `rows`: a scenario and, for each of `names`, its ratio to the best of all but the first.
pub(crate) fn svg(names: &[&str], rows: &[(&str, Vec<f64>)]) -> String {
    let group = names.len() * ROW + GROUP_GAP;
    let (width, height) = (LEFT + (MOST * SCALE) as usize + 60, 60 + rows.len() * group);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n"
    );
    for (at, name) in names.iter().enumerate() {
        let x = 10 + at * 130;
        let _ = writeln!(
            out,
            "<rect x=\"{x}\" y=\"10\" width=\"12\" height=\"12\" fill=\"{}\"/>",
            COLOURS[at % COLOURS.len()]
        );
        let _ = writeln!(out, "<text x=\"{}\" y=\"20\">{name}</text>", x + 17);
    }
    for (number, (scenario, ratios)) in rows.iter().enumerate() {
        let top = 45 + number * group;
        let middle = top + names.len() * ROW / 2 + 4;
        let _ = writeln!(out, "<text x=\"{}\" y=\"{middle}\" text-anchor=\"end\">{scenario}</text>", LEFT - 8);
        for (at, ratio) in ratios.iter().enumerate() {
            let (y, length) = (top + at * ROW, ratio.min(MOST) * SCALE);
            let _ = writeln!(
                out,
                "<rect x=\"{LEFT}\" y=\"{y}\" width=\"{length:.0}\" height=\"{}\" fill=\"{}\"/><text x=\"{:.0}\" y=\"{}\">{ratio:.2}</text>",
                ROW - 3,
                COLOURS[at % COLOURS.len()],
                LEFT as f64 + length + 4.0,
                y + ROW - 5,
            );
        }
    }
    let best = LEFT as f64 + SCALE;
    let _ = writeln!(
        out,
        "<line x1=\"{best}\" y1=\"38\" x2=\"{best}\" y2=\"{}\" stroke=\"#000\" stroke-dasharray=\"3 3\"/>\n\
         <text x=\"{best}\" y=\"36\" text-anchor=\"middle\">best peer</text>\n</svg>",
        height - 12
    );
    out
}
