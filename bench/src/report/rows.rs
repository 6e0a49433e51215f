//! Combines the rounds of a measurement: the median of each figure and its spread. Pure.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::measurement::{Knobs, Measurement, Scenario};
use crate::stats::{median, spread};
use crate::system::System;

/// A figure over all rounds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Figure {
    pub(crate) median: f64,
    pub(crate) least: f64,
    pub(crate) most: f64,
    pub(crate) rounds: usize,
}

/// A measurement with all its rounds.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) scenario: Scenario,
    pub(crate) system: System,
    pub(crate) knobs: Knobs,
    pub(crate) figures: BTreeMap<String, Figure>,
    /// The series of the last round.
    pub(crate) series: BTreeMap<String, Vec<[f64; 2]>>,
    pub(crate) notes: Vec<String>,
}

impl Row {
    /// The median of a figure.
    pub(crate) fn median(&self, name: &str) -> Option<f64> {
        self.figures.get(name).map(|figure| figure.median)
    }

    /// The system and the load, as a report names them.
    pub(crate) fn title(&self) -> String {
        let mut title = self.system.title();
        for (set, words) in [
            (self.knobs.live, ", published live"),
            (self.knobs.deletes, ", 10 % deletes"),
            (self.knobs.failover, ", one killed"),
            (self.knobs.unlimited, ", no limit"),
        ] {
            if set {
                title.push_str(words);
            }
        }
        for (value, unit) in [(self.knobs.rate, "events/s"), (self.knobs.tasks, "tasks")] {
            if value > 0 {
                title.push_str(&format!(", {value} {unit}"));
            }
        }
        title
    }
}

/// Returns all rows, in the order of their first rounds.
pub(crate) fn summary(measurements: &[Measurement]) -> Vec<Row> {
    let mut groups: Vec<(&Measurement, Vec<&Measurement>)> = Vec::new();
    for measurement in measurements {
        let job = &measurement.job;
        let same = |first: &Measurement| {
            (first.job.scenario, first.job.system, &first.job.knobs) == (job.scenario, job.system, &job.knobs)
        };
        match groups.iter_mut().find(|(first, _)| same(first)) {
            Some((_, rounds)) => rounds.push(measurement),
            None => groups.push((measurement, vec![measurement])),
        }
    }
    groups.into_iter().map(|(first, rounds)| row(first, &rounds)).collect()
}

fn row(first: &Measurement, rounds: &[&Measurement]) -> Row {
    let mut values: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for (name, value) in rounds.iter().flat_map(|round| &round.findings.figures) {
        values.entry(name).or_default().push(*value);
    }
    let figures = values.into_iter().filter_map(|(name, values)| {
        let (least, most) = spread(&values)?;
        Some((name.to_owned(), Figure { median: median(&values)?, least, most, rounds: values.len() }))
    });
    Row {
        scenario: first.job.scenario,
        system: first.job.system,
        knobs: first.job.knobs.clone(),
        figures: figures.collect(),
        series: rounds.last().map(|round| round.findings.series.clone()).unwrap_or_default(),
        notes: rounds.iter().flat_map(|round| round.findings.notes.clone()).collect(),
    }
}

/// Measurements for the tests of reports.
#[cfg(test)]
pub(super) mod samples {
    use crate::measurement::{Findings, Job};
    use crate::system::Kind;

    use super::*;

    pub(crate) fn measurement(
        scenario: Scenario,
        kind: Kind,
        round: u32,
        figures: &[(&str, f64)],
    ) -> Measurement {
        let mut findings = Findings::default();
        figures.iter().for_each(|(name, value)| findings.figure(name, *value));
        let job = Job { scenario, system: System { kind, replicas: 1 }, knobs: Knobs::default(), round };
        Measurement { job, findings, seconds: 1.0, load_before: None }
    }
}

#[cfg(test)]
mod tests {
    use super::samples::measurement;
    use super::*;
    use crate::system::Kind;

    #[test]
    fn rounds_become_a_median_and_a_spread() {
        let rounds: Vec<_> = [(1, 10.0), (2, 30.0), (3, 20.0)]
            .map(|(round, rate)| measurement(Scenario::Nolimit, Kind::Durable, round, &[("events/s", rate)]))
            .into();
        let other = measurement(Scenario::Nolimit, Kind::Peer, 1, &[("events/s", 1.0)]);
        let rows = summary(&[rounds, vec![other]].concat());
        assert_eq!(rows.len(), 2);
        let figure = Figure { median: 20.0, least: 10.0, most: 30.0, rounds: 3 };
        assert_eq!(rows[0].figures["events/s"], figure);
    }
}
