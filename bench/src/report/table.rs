//! Tables that are legible as text and valid as Markdown. Pure.

use super::rows::{Figure, Row};
use super::texts::{Column, TEXTS, Text};

/// Returns a title and a table for each scenario that has rows.
pub(crate) fn tables(rows: &[Row]) -> String {
    let sections = TEXTS.iter().filter_map(|text| Some(format!("{}\n\n{}", text.title, table(text, rows)?)));
    sections.collect::<Vec<_>>().join("\n")
}

/// Returns one scenario's table; `None` if it was not measured.
pub(super) fn table(text: &Text, rows: &[Row]) -> Option<String> {
    let rows: Vec<_> = rows.iter().filter(|row| row.scenario == text.scenario).collect();
    if rows.is_empty() {
        return None;
    }
    let there = |column: &&Column| rows.iter().any(|row| row.figures.contains_key(column.0));
    let columns: Vec<_> = text.columns.iter().filter(there).collect();
    let mut cells =
        vec![std::iter::once(String::new()).chain(columns.iter().map(|it| it.1.to_owned())).collect()];
    for row in rows {
        let figures = columns.iter().map(|(name, _, decimals)| {
            row.figures.get(*name).map_or_else(String::new, |figure| cell(figure, *decimals))
        });
        cells.push(std::iter::once(row.title()).chain(figures).collect::<Vec<_>>());
    }
    Some(aligned(&cells))
}

/// Formats the median, and the spread if several rounds differ.
fn cell(figure: &Figure, decimals: usize) -> String {
    let number = |value| number(value, decimals);
    let (least, most) = (number(figure.least), number(figure.most));
    if figure.rounds < 2 || least == most {
        return number(figure.median);
    }
    format!("{} ({least} to {most})", number(figure.median))
}

/// Formats a number with commas between thousands.
pub(super) fn number(value: f64, decimals: usize) -> String {
    let text = format!("{:.decimals$}", value.abs());
    let (whole, fraction) =
        text.split_once('.').map_or((text.as_str(), None), |(whole, part)| (whole, Some(part)));
    let mut grouped = String::new();
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    let is_zero = text.chars().all(|c| matches!(c, '0' | '.'));
    let sign = if value < 0.0 && !is_zero { "-" } else { "" };
    fraction.map_or_else(|| format!("{sign}{grouped}"), |part| format!("{sign}{grouped}.{part}"))
}

/// Aligns the columns. The first row is the heading, the first column is text, all others are numbers.
fn aligned(cells: &[Vec<String>]) -> String {
    let columns = cells.first().map_or(0, Vec::len);
    let width =
        |column: usize| cells.iter().map(|row| row[column].chars().count()).max().unwrap_or_default().max(3);
    let widths: Vec<_> = (0..columns).map(width).collect();
    let mut text = String::new();
    for (index, row) in cells.iter().enumerate() {
        for (column, cell) in row.iter().enumerate() {
            let room = widths[column];
            let padded = if column == 0 { format!("| {cell:<room$} ") } else { format!("| {cell:>room$} ") };
            text.push_str(&padded);
        }
        text.push_str("|\n");
        if index == 0 {
            for (column, room) in widths.iter().enumerate() {
                let (dashes, end) = ("-".repeat(room + 1), if column == 0 { "-" } else { ":" });
                text.push_str(&format!("|{dashes}{end}"));
            }
            text.push_str("|\n");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::rows::samples::measurement;
    use super::super::rows::summary;
    use super::*;
    use crate::measurement::Scenario;
    use crate::system::Kind;

    #[test]
    fn numbers_for_people() {
        let shown =
            [(1_234_567.4, 0), (999.0, 0), (0.0314, 3), (-1_000.5, 1), (-0.01, 1)].map(|(v, d)| number(v, d));
        assert_eq!(shown, ["1,234,567", "999", "0.031", "-1,000.5", "0.0"]);
    }

    #[test]
    fn a_table_shows_what_was_measured_and_no_empty_columns() {
        let rounds = [1_000.0, 3_000.0].map(|rate| {
            measurement(Scenario::Nolimit, Kind::Durable, 1, &[("events/s", rate), ("hidden", 1.0)])
        });
        let expected = "\
            |                          |               events/s |\n\
            |--------------------------|-----------------------:|\n\
            | ours, Durable, 1 replica | 2,000 (1,000 to 3,000) |\n";
        let text = tables(&summary(&rounds));
        assert!(text.ends_with(expected), "{text}");
    }

    #[test]
    fn every_scenario_has_its_text() {
        use clap::ValueEnum;
        for scenario in Scenario::value_variants() {
            assert_eq!(TEXTS.iter().filter(|text| text.scenario == *scenario).count(), 1, "{scenario:?}");
        }
    }
}
