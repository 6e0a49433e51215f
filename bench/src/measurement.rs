//! What a measurement is and what it found, as it is written to a file and read back. Nothing is decided here.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::system::System;

/// One measurement to make: what, of which system, with which load.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Job {
    /// Which scenario.
    pub(crate) scenario: Scenario,
    /// Of what.
    pub(crate) system: System,
    /// With which load.
    pub(crate) knobs: Knobs,
    /// Which repeat, from 1.
    pub(crate) round: u32,
}

/// What is measured.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Scenario {
    /// Events landed per second under Cloudflare's limit
    Limit,
    /// Events landed per second without a limit
    Nolimit,
    /// From publishing an event to its being in KV
    Latency,
    /// CPU time, requests, keys and memory at a steady load
    Cost,
    /// Differences from an in-order replay on hot ids
    Hot,
    /// Events lost after a kill -9
    Kill,
    /// What one malformed message does
    Malformed,
    /// From the start of the process to its being ready
    Start,
    /// Cost per event by how many tasks there are
    LedgerSize,
    /// Many updates to one task
    HotTask,
}

/// The load, as far as it is not the scenario's own. Zero means the scenario's usual.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, clap::Args)]
pub(crate) struct Knobs {
    /// How many events
    #[arg(long, default_value_t = 0)]
    pub(crate) events: u64,
    /// For how many seconds
    #[arg(long, default_value_t = 0)]
    pub(crate) seconds: u64,
    /// Every tenth event is a delete
    #[arg(long)]
    pub(crate) deletes: bool,
    /// Events come while the clock runs, instead of being stored before it starts
    #[arg(long)]
    pub(crate) live: bool,
    /// Kill the active replica in the middle
    #[arg(long)]
    pub(crate) failover: bool,
    /// Over how many ids creates go round
    #[arg(long, default_value_t = 2_000_000)]
    pub(crate) ids: u64,
    /// How many events wait in front of the system, at the most
    #[arg(long, default_value_t = 0)]
    pub(crate) backlog: u64,
    /// Events a second
    #[arg(long, default_value_t = 0)]
    pub(crate) rate: u64,
    /// Without Cloudflare's limit on requests, in scenarios that have one
    #[arg(long)]
    #[serde(default)]
    pub(crate) unlimited: bool,
    /// How many tasks are there before
    #[arg(long, default_value_t = 0)]
    #[serde(default)]
    pub(crate) tasks: u64,
    /// One more variable for our replicas, NAME=VALUE; may be given several times
    #[arg(long = "set", value_name = "NAME=VALUE", value_parser = variable)]
    #[serde(default)]
    pub(crate) set: Vec<(String, String)>,
}

impl Knobs {
    /// The time that was asked for, or this.
    pub(crate) fn time_or(&self, usual: Duration) -> Duration {
        if self.seconds == 0 { usual } else { Duration::from_secs(self.seconds) }
    }

    /// The number of events that was asked for, or this.
    pub(crate) fn events_or(&self, usual: u64) -> u64 {
        if self.events == 0 { usual } else { self.events }
    }
}

fn variable(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("must be NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Findings {
    /// Figures by name.
    pub(crate) figures: BTreeMap<String, f64>,
    /// Figures over time, `(seconds, value)`, by name.
    #[serde(default)]
    pub(crate) series: BTreeMap<String, Vec<[f64; 2]>>,
    /// What has to be said beside them.
    #[serde(default)]
    pub(crate) notes: Vec<String>,
}

impl Findings {
    /// Adds a figure.
    pub(crate) fn figure(&mut self, name: &str, value: f64) {
        self.figures.insert(name.to_owned(), value);
    }

    /// Adds what has to be said.
    pub(crate) fn note(&mut self, text: impl fmt::Display) {
        self.notes.push(text.to_string());
    }
}

impl fmt::Display for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Knobs { events, seconds, deletes, live, failover, rate, unlimited, tasks, .. } = &self.knobs;
        write!(f, "{:?} {}", self.scenario, self.system)?;
        for (name, value) in [("events", events), ("seconds", seconds), ("rate", rate), ("tasks", tasks)] {
            if *value > 0 {
                write!(f, " {name}={value}")?;
            }
        }
        for (name, set) in
            [("live", live), ("deletes", deletes), ("failover", failover), ("unlimited", unlimited)]
        {
            if *set {
                write!(f, " {name}")?;
            }
        }
        write!(f, " round {}", self.round)
    }
}

/// A measurement that was made: one line of a run's file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Measurement {
    /// What was to be measured.
    pub(crate) job: Job,
    /// What was found.
    pub(crate) findings: Findings,
    /// How long it took with all that went before and after, in seconds.
    pub(crate) seconds: f64,
    /// How many processes wanted a core before it began, where the system says it: what else was going on.
    pub(crate) load_before: Option<f64>,
}
