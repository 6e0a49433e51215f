//! Plays many histories, some at a time, and sums them up.
//!
//! It judges only how often each kind of fault has happened.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use super::moment::Servers;
use super::plan::Plan;
use super::run::{Report, run};

/// The number of failures after which no more history begins: the others would most likely fail for the same reason.
const ENOUGH_FAILURES: usize = 3;

/// The number of histories, and their seeds.
#[derive(Clone, Copy, Debug)]
pub struct Series {
    /// The first seed; the others follow it.
    pub first: u64,
    /// Plays at least this many, however long they take.
    pub least: usize,
    /// Plays at most this many.
    pub most: usize,
    /// Begins no history after this time, if enough were played.
    pub within: Duration,
    /// Plays this many at a time; they mostly wait.
    pub at_a_time: usize,
    /// Plays all on these nats-servers; if `None`, each seed chooses.
    pub servers: Option<Servers>,
}

/// The sums over the histories of a series.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    /// The number of histories.
    pub histories: usize,
    /// The number of events, by kind.
    pub events: BTreeMap<&'static str, u64>,
    /// For each kind of fault: how often it happened, and in how many histories.
    pub faults: BTreeMap<String, (u64, usize)>,
    /// The number of histories on three nats-servers.
    pub on_three_servers: usize,
    /// The number of replicas that were started.
    pub replicas: u64,
    /// The number of requests to KV.
    pub requests: u64,
    /// The number of publishes that were repeated because they had no ack.
    pub repeated: u64,
    /// The duration of the series.
    pub took: Duration,
}

impl Series {
    /// Plays the histories; each prints a line.
    ///
    /// # Errors
    /// Names every history that failed, with its seed.
    pub async fn play(self) -> anyhow::Result<Totals> {
        let begun = Instant::now();
        let (mut totals, mut failures) = (Totals::default(), Vec::new());
        let mut begun_so_far = 0;
        let mut playing = FuturesUnordered::new();
        loop {
            while playing.len() < self.at_a_time.max(1) && failures.len() < ENOUGH_FAILURES {
                let enough = begun_so_far >= self.least && begun.elapsed() >= self.within;
                if enough || begun_so_far >= self.most {
                    break;
                }
                let seed = self.first.wrapping_add(begun_so_far as u64);
                let plan = self.servers.map_or_else(|| Plan::new(seed), |servers| Plan::on(servers, seed));
                begun_so_far += 1;
                playing.push(run(plan));
            }
            let Some(played) = playing.next().await else { break };
            match played {
                Ok(report) => {
                    println!("{report}");
                    totals.add(&report);
                }
                Err(error) => {
                    println!("{error:#}");
                    failures.push(error);
                }
            }
        }
        totals.took = begun.elapsed();
        if let Some(first) = failures.first() {
            println!("{totals}");
            bail!("{} histories failed, {} did not. The first:\n{first:#}", failures.len(), totals.histories);
        }
        Ok(totals)
    }
}

impl Totals {
    fn add(&mut self, report: &Report) {
        self.histories += 1;
        self.on_three_servers += usize::from(report.three_servers);
        self.replicas += u64::from(report.replicas);
        self.requests += report.requests;
        self.repeated += report.repeated;
        for (kind, count) in &report.events {
            *self.events.entry(kind).or_default() += count;
        }
        for (kind, times) in &report.fired {
            let (all, histories) = self.faults.entry(kind.clone()).or_default();
            *all += times;
            *histories += usize::from(*times > 0);
        }
    }

    /// The number of kinds of faults that happened at least this often.
    #[must_use]
    pub fn kinds(&self, least: u64) -> usize {
        self.faults.values().filter(|(times, _)| *times >= least).count()
    }

    /// Checks that every kind of fault happened at least this often.
    ///
    /// # Errors
    /// Names the kinds that did not.
    pub fn ensure_each(&self, least: u64) -> anyhow::Result<()> {
        let mut seldom = self.faults.iter().filter(|(_, (times, _))| *times < least).peekable();
        if seldom.peek().is_some() {
            let seldom: Vec<_> = seldom.map(|(kind, (times, _))| format!("{kind} {times}")).collect();
            bail!("these faults happened less than {least} times: {}", seldom.join(", "));
        }
        ensure!(!self.faults.is_empty(), "no fault happened");
        Ok(())
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<36}{:>8}{:>12}", "fault", "times", "histories")?;
        for (kind, (times, histories)) in &self.faults {
            writeln!(f, "{kind:<36}{times:>8}{histories:>12}")?;
        }
        let events: Vec<_> = self.events.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
        let all: u64 = self.events.values().sum();
        writeln!(f, "{all} events: {}; {} publishes repeated", events.join(", "), self.repeated)?;
        write!(
            f,
            "{} histories without a difference, {} of them on three nats-servers; {} replicas, {} requests to KV, {:.0} s",
            self.histories,
            self.on_three_servers,
            self.replicas,
            self.requests,
            self.took.as_secs_f64()
        )
    }
}
