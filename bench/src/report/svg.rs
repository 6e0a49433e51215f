//! Plots as hand-written SVG: plain shapes and text, and colors that are legible on light and on dark. Pure.

use std::fmt::Write;

/// A bar.
pub(super) struct Bar {
    pub(super) label: String,
    pub(super) value: f64,
    /// The spread over the rounds.
    pub(super) spread: (f64, f64),
    /// The color: 0 for ours, 1 for others, 2 for floors.
    pub(super) colour: usize,
}

/// A line through points.
pub(super) struct Line {
    pub(super) label: String,
    pub(super) points: Vec<[f64; 2]>,
}

const WIDTH: f64 = 760.0;
const LABELS: f64 = 350.0;
const ROW: f64 = 26.0;
const TOP: f64 = 56.0;

/// The style follows the reader's setting, because GitHub shows pictures on both.
const STYLE: &str = "<style>text{font:13px system-ui,sans-serif;fill:#24292f}.t{font-size:15px;font-weight:600}.s{fill:#57606a}\
    .a{stroke:#8c959f;stroke-width:1}.c0{fill:#2563eb}.c1{fill:#d97706}.c2{fill:#8c959f}\
    .l{fill:none;stroke-width:2}.l0{stroke:#2563eb}.l1{stroke:#d97706}.l2{stroke:#059669}.l3{stroke:#db2777}.l4{stroke:#7c3aed}.l5{stroke:#8c959f}\
    @media(prefers-color-scheme:dark){text{fill:#e6edf3}.s{fill:#9198a1}.c0{fill:#60a5fa}.c1{fill:#fbbf24}\
    .l0{stroke:#60a5fa}.l1{stroke:#fbbf24}.l2{stroke:#34d399}.l3{stroke:#f472b6}.l4{stroke:#a78bfa}}</style>";

/// Draws horizontal bars, on a logarithmic scale if the values are far apart.
pub(super) fn bars(title: &str, unit: &str, bars: &[Bar], show: impl Fn(f64) -> String) -> String {
    let most = bars.iter().map(|bar| bar.spread.1.max(bar.value)).fold(0.0, f64::max);
    let least = bars.iter().map(|bar| bar.value).filter(|value| *value > 0.0).fold(f64::MAX, f64::min);
    let logarithmic = most > 50.0 * least;
    // A logarithmic scale has no zero: the scale begins a little below the smallest value.
    let from = if logarithmic { (least / 2.0).log10() } else { 0.0 };
    let to = if logarithmic { most.max(1e-9).log10() } else { most.max(1e-9) };
    let room = WIDTH - LABELS - 130.0;
    let length = |value: f64| {
        let at = if logarithmic { value.max(least / 2.0).log10() } else { value };
        (at - from) / (to - from) * room
    };
    let height = TOP + ROW * crate::stats::count(bars.len()) + 14.0;
    let scale = if logarithmic { ", logarithmic scale" } else { "" };
    let mut svg = head(height, title, &format!("{unit}{scale}"));
    for (index, bar) in bars.iter().enumerate() {
        let y = TOP + ROW * crate::stats::count(index);
        let (middle, long) = (y + 15.0, length(bar.value));
        text(&mut svg, LABELS - 8.0, middle, "end", "", &bar.label);
        // Writing to a string does not fail, here and below.
        let _ = write!(
            svg,
            r#"<rect class="c{}" x="{LABELS}" y="{:.1}" width="{long:.1}" height="16" rx="2"/>"#,
            bar.colour,
            y + 2.0
        );
        let end = LABELS + length(bar.spread.1).max(long);
        if bar.spread.1 > bar.spread.0 {
            let (x1, x2, y) = (LABELS + length(bar.spread.0), LABELS + length(bar.spread.1), y + 10.0);
            let _ = write!(svg, r#"<line class="a" x1="{x1:.1}" y1="{y:.1}" x2="{x2:.1}" y2="{y:.1}"/>"#);
        }
        text(&mut svg, end + 6.0, middle, "start", "", &show(bar.value));
    }
    svg.push_str("</svg>\n");
    svg
}

/// Draws lines over time, from zero.
pub(super) fn lines(title: &str, x: &str, y: &str, lines: &[Line]) -> String {
    const HEIGHT: f64 = 340.0;
    const LEFT: f64 = 70.0;
    const BOTTOM: f64 = 290.0;
    let points = || lines.iter().flat_map(|line| &line.points);
    let right = points().map(|point| point[0]).fold(1e-9, f64::max);
    let top = round_up(points().map(|point| point[1]).fold(1e-9, f64::max));
    let at_x = |value: f64| LEFT + value / right * (WIDTH - LEFT - 190.0);
    let at_y = |value: f64| BOTTOM - value / top * (BOTTOM - TOP);
    let mut svg = head(HEIGHT, title, y);
    for share in [0.0, 0.25, 0.5, 0.75, 1.0] {
        let (value, across) = (top * share, at_x(right));
        let level = at_y(value);
        let _ = write!(
            svg,
            r#"<line class="a" opacity=".35" x1="{LEFT}" y1="{level:.1}" x2="{across:.1}" y2="{level:.1}"/>"#
        );
        text(
            &mut svg,
            LEFT - 6.0,
            level + 4.0,
            "end",
            "s",
            &super::table::number(value, usize::from(top < 10.0)),
        );
        text(
            &mut svg,
            at_x(right * share),
            BOTTOM + 18.0,
            "middle",
            "s",
            &super::table::number(right * share, 0),
        );
    }
    text(&mut svg, at_x(right / 2.0), BOTTOM + 38.0, "middle", "s", x);
    for (index, line) in lines.iter().enumerate() {
        let colour = index % 6;
        let path: Vec<_> =
            line.points.iter().map(|point| format!("{:.1},{:.1}", at_x(point[0]), at_y(point[1]))).collect();
        let _ = write!(svg, r#"<polyline class="l l{colour}" points="{}"/>"#, path.join(" "));
        let (from, level) = (WIDTH - 180.0, TOP + 8.0 + 20.0 * crate::stats::count(index));
        let _ = write!(
            svg,
            r#"<line class="l l{colour}" x1="{from}" y1="{level}" x2="{}" y2="{level}"/>"#,
            from + 18.0
        );
        text(&mut svg, from + 24.0, level + 4.0, "start", "", &line.label);
    }
    svg.push_str("</svg>\n");
    svg
}

fn head(height: f64, title: &str, subtitle: &str) -> String {
    let mut svg = format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img" aria-label="{}">{STYLE}"#,
        escaped(title)
    );
    text(&mut svg, 10.0, 22.0, "start", "t", title);
    text(&mut svg, 10.0, 42.0, "start", "s", subtitle);
    svg
}

fn text(svg: &mut String, x: f64, y: f64, anchor: &str, class: &str, text: &str) {
    let text = escaped(text);
    let _ =
        write!(svg, r#"<text class="{class}" x="{x:.1}" y="{y:.1}" text-anchor="{anchor}">{text}</text>"#);
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Rounds up to 1, 2, 2.5 or 5 times a power of ten.
fn round_up(value: f64) -> f64 {
    let power = 10_f64.powf(value.log10().floor());
    [1.0, 2.0, 2.5, 5.0, 10.0]
        .map(|step| step * power)
        .into_iter()
        .find(|step| *step >= value)
        .unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_escaped_and_as_long_as_their_values() {
        let bar =
            |label: &str, value| Bar { label: label.to_owned(), value, spread: (value, value), colour: 0 };
        let svg = bars("a < b", "events/s", &[bar("x & y", 10.0), bar("z", 5.0)], |value| format!("{value}"));
        assert!(
            svg.contains("a &lt; b") && svg.contains("x &amp; y") && !svg.contains("logarithmic"),
            "{svg}"
        );
        let long = |share: f64| format!(r#"width="{:.1}" height="16""#, share * (WIDTH - LABELS - 130.0));
        assert!(svg.contains(&long(1.0)) && svg.contains(&long(0.5)), "{svg}");
        let far = bars("t", "u", &[bar("x", 20_000.0), bar("z", 4.0)], |value| format!("{value}"));
        assert!(far.contains("logarithmic"));
    }

    #[test]
    fn scales_end_at_round_numbers() {
        assert_eq!([0.9, 3.0, 24.0, 51.0, 100.0].map(round_up), [1.0, 5.0, 25.0, 100.0, 100.0]);
    }
}
