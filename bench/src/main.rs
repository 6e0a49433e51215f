//! Benchmarks: a real nats-server and real replicas, one run on one machine. They print their measurements and judge nothing.

mod course;
mod events;
mod fleet;
mod floor;
mod landings;
mod ledger;
mod machine;
mod measurement;
mod meter;
mod pace;
mod plan;
mod publisher;
mod report;
mod run;
mod scenarios;
mod stage;
mod stats;
mod system;
mod usage;

use clap::{Parser, Subcommand};

use measurement::{Job, Knobs, Scenario};
use system::{Kind, System};

/// Benchmark the pipeline
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    subject: Subject,
}

#[derive(Subcommand)]
enum Subject {
    /// Run the full comparison, or with --quick a short one
    All(run::Options),
    /// Write the report of a run again
    Report(run::ReportOptions),
    /// Measure how fast stored events get into the ledger, in events a second, with nats-server on the same machine
    Ledger(ledger::Options),
    /// Run one scenario with one system
    Run(Single),
    #[command(hide = true)]
    Publish(publisher::Options),
    #[command(hide = true)]
    Floor(floor::Options),
}

/// The options of `run`.
#[derive(clap::Args)]
struct Single {
    /// Measure this scenario
    #[arg(long, value_enum)]
    only: Scenario,
    /// Measure this system: durable, core, peer, floor, guarded-floor or peer-floor
    #[arg(long, default_value = "durable")]
    system: Kind,
    /// Start this many replicas
    #[arg(long, default_value_t = 1)]
    replicas: usize,
    /// Repeat the measurement this many times
    #[arg(long, default_value_t = 1)]
    repeats: u32,
    /// Run for this many minutes, instead of --seconds
    #[arg(long)]
    minutes: Option<u64>,
    #[command(flatten)]
    knobs: Knobs,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    match Arguments::parse().subject {
        Subject::All(options) => run::all(&options).await,
        Subject::Report(options) => run::report(&options),
        Subject::Ledger(options) => ledger::run(&options).await,
        Subject::Run(single) => run_single(single).await,
        Subject::Publish(options) => publisher::run(&options).await,
        Subject::Floor(options) => floor::run(&options).await,
    }
}

async fn run_single(single: Single) -> anyhow::Result<()> {
    let Single { only: scenario, system: kind, replicas, repeats, minutes, mut knobs } = single;
    if let Some(minutes) = minutes {
        knobs.seconds = minutes * 60;
    }
    for round in 1..=repeats {
        let system = System { kind, replicas };
        let job = Job { scenario, system, knobs: knobs.clone(), round };
        println!("{job}");
        let findings = scenarios::measure(&job).await?;
        for (name, value) in &findings.figures {
            println!("  {name:<36} {value:>14.2}");
        }
        for (name, points) in &findings.series {
            if points.len() <= 30 {
                let values: Vec<_> = points.iter().map(|point| format!("{:.0}", point[1])).collect();
                println!("  {name:<36} {}", values.join(" "));
            }
        }
        for note in &findings.notes {
            println!("  {note}");
        }
    }
    Ok(())
}
