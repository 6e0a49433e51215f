//! The plots of a report. Pure.

use crate::measurement::Scenario;
use crate::system::Kind;

use super::rows::Row;
use super::svg::{Bar, Line, bars, lines};
use super::table::number;

/// A plot: the name of its file, its scenario, its subject, and the SVG.
pub(crate) struct Plot {
    pub(crate) file: &'static str,
    pub(crate) scenario: Scenario,
    pub(crate) title: &'static str,
    pub(crate) svg: String,
}

/// Returns all plots of these rows.
pub(crate) fn plots(rows: &[Row]) -> Vec<Plot> {
    let bar = |file, scenario, title, figure, unit, decimals| {
        let svg = figure_bars(rows, scenario, title, figure, unit, decimals)?;
        Some(Plot { file, scenario, title, svg })
    };
    let series = |file, title, start, unit| {
        let svg = longest_run(rows, title, start, unit)?;
        Some(Plot { file, scenario: Scenario::Limit, title, svg })
    };
    [
        bar(
            "limit.svg",
            Scenario::Limit,
            "Under Cloudflare's limit",
            "events/s that last",
            "events landed per second that last",
            1,
        ),
        series(
            "limit-minutes.svg",
            "Under the limit, minute by minute",
            "events/s by minute",
            "events landed per second",
        ),
        series("memory.svg", "Memory under the limit", "memory of replica", "MB"),
        bar("nolimit.svg", Scenario::Nolimit, "Without a limit", "events/s", "events landed per second", 0),
        bar(
            "latency.svg",
            Scenario::Latency,
            "From publishing to KV, p99 (KV itself: 100 ms)",
            "p99, ms",
            "ms",
            0,
        ),
        bar(
            "cost.svg",
            Scenario::Cost,
            "CPU time of all replicas",
            "CPU seconds per 100,000 events",
            "CPU seconds per 100,000 events",
            1,
        ),
        bar(
            "ledger-size.svg",
            Scenario::LedgerSize,
            "Cost by the size of the ledger",
            "CPU µs per event, replicas",
            "CPU µs per event",
            1,
        ),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn figure_bars(
    rows: &[Row],
    scenario: Scenario,
    title: &str,
    figure: &str,
    unit: &str,
    decimals: usize,
) -> Option<String> {
    let bar = |row: &Row| {
        let value = row.figures.get(figure)?;
        let colour = match row.system.kind {
            Kind::Durable | Kind::Core => 0,
            Kind::Peer => 1,
            Kind::Floor | Kind::GuardedFloor | Kind::PeerFloor => 2,
        };
        Some(Bar { label: row.title(), value: value.median, spread: (value.least, value.most), colour })
    };
    let all: Vec<_> = rows.iter().filter(|row| row.scenario == scenario).filter_map(bar).collect();
    let show = |value: f64| number(value, if value < 100.0 { decimals } else { 0 });
    (!all.is_empty()).then(|| bars(title, unit, &all, show))
}

/// Plots the series whose names begin with `start`, of the longest run under the limit.
fn longest_run(rows: &[Row], title: &str, start: &str, unit: &str) -> Option<String> {
    let runs = rows.iter().filter(|row| row.scenario == Scenario::Limit && row.system.kind != Kind::Peer);
    let row = runs.max_by_key(|row| row.knobs.seconds)?;
    let matching = row.series.iter().filter(|(name, points)| name.starts_with(start) && points.len() > 1);
    let line = |(name, points): (&String, &Vec<[f64; 2]>)| {
        let label = name.strip_prefix("memory of ").unwrap_or(name).to_owned();
        Line { label, points: points.clone() }
    };
    let all: Vec<_> = matching.map(line).collect();
    let x = if start.ends_with("minute") { "minute" } else { "seconds" };
    (!all.is_empty()).then(|| lines(title, x, &format!("{unit}: {}", row.title()), &all))
}
