//! The data of a measurement and its result, as written to a file and read back.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::system::System;

/// A measurement to make: the scenario, the system and the load.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Job {
    /// Which scenario.
    pub(crate) scenario: Scenario,
    /// The system under test.
    pub(crate) system: System,
    /// The load.
    pub(crate) knobs: Knobs,
    /// The number of the repeat, from 1.
    pub(crate) round: u32,
}

/// The quantity that is measured.
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
    /// The effect of one malformed message
    Malformed,
    /// From the start of the process until it is ready
    Start,
    /// Cost per event by the number of existing tasks
    LedgerSize,
    /// Many updates to one task
    HotTask,
}

/// The load, as far as the scenario does not set it. Zero selects the scenario's default.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, clap::Args)]
pub(crate) struct Knobs {
    /// Publish this many events
    #[arg(long, default_value_t = 0)]
    pub(crate) events: u64,
    /// Run for this many seconds
    #[arg(long, default_value_t = 0)]
    pub(crate) seconds: u64,
    /// Make every tenth event a delete
    #[arg(long)]
    pub(crate) deletes: bool,
    /// Publish events while the clock runs, instead of storing them before it starts
    #[arg(long)]
    pub(crate) live: bool,
    /// Kill the active replica in the middle
    #[arg(long)]
    pub(crate) failover: bool,
    /// Rotate the creates over this many ids
    #[arg(long, default_value_t = 2_000_000)]
    pub(crate) ids: u64,
    /// Keep at most this many events waiting in front of the system
    #[arg(long, default_value_t = 0)]
    pub(crate) backlog: u64,
    /// Publish this many events a second
    #[arg(long, default_value_t = 0)]
    pub(crate) rate: u64,
    /// Run without Cloudflare's limit on requests, in scenarios that have one
    #[arg(long)]
    #[serde(default)]
    pub(crate) unlimited: bool,
    /// Create this many tasks before the clock starts
    #[arg(long, default_value_t = 0)]
    #[serde(default)]
    pub(crate) tasks: u64,
    /// Set a variable for our replicas, NAME=VALUE; repeatable
    #[arg(long = "set", value_name = "NAME=VALUE", value_parser = variable)]
    #[serde(default)]
    pub(crate) set: Vec<(String, String)>,
}

impl Knobs {
    /// The requested time, or this default.
    pub(crate) fn time_or(&self, usual: Duration) -> Duration {
        if self.seconds == 0 { usual } else { Duration::from_secs(self.seconds) }
    }

    /// The requested number of events, or this default.
    pub(crate) fn events_or(&self, usual: u64) -> u64 {
        if self.events == 0 { usual } else { self.events }
    }
}

fn variable(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("must be NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

/// The results of a measurement.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Findings {
    /// Figures by name.
    pub(crate) figures: BTreeMap<String, f64>,
    /// Figures over time, `(seconds, value)`, by name.
    #[serde(default)]
    pub(crate) series: BTreeMap<String, Vec<[f64; 2]>>,
    /// Notes that belong to the figures.
    #[serde(default)]
    pub(crate) notes: Vec<String>,
}

impl Findings {
    /// Adds a figure.
    pub(crate) fn figure(&mut self, name: &str, value: f64) {
        self.figures.insert(name.to_owned(), value);
    }

    /// Adds a note.
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

/// A finished measurement: one line of a run's file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Measurement {
    /// The measurement.
    pub(crate) job: Job,
    /// Its results.
    pub(crate) findings: Findings,
    /// The duration in seconds, including preparation and clean-up.
    pub(crate) seconds: f64,
    /// The average number of processes that wanted a core before the start, if the system reports it: it shows other
    /// load on the machine.
    pub(crate) load_before: Option<f64>,
}
