//! Benchmarks: real nats-server, real replicas, one run on one machine. They print what they measured and
//! judge nothing.

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

/// Benchmarks of the pipeline
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    subject: Subject,
}

#[derive(Subcommand)]
enum Subject {
    /// The full comparison, or a quick one
    All(run::Options),
    /// Write the report of a run anew
    Report(run::ReportOptions),
    /// From stored events to the ledger: events a second, with nats-server on the same machine
    Ledger(ledger::Options),
    /// One scenario, of one system
    Run(Single),
    #[command(hide = true)]
    Publish(publisher::Options),
    #[command(hide = true)]
    Floor(floor::Options),
}

/// What `run` can be told.
#[derive(clap::Args)]
struct Single {
    /// Which scenario
    #[arg(long, value_enum)]
    only: Scenario,
    /// durable, core, peer, floor or peer-floor
    #[arg(long, default_value = "durable")]
    system: Kind,
    /// How many replicas of it
    #[arg(long, default_value_t = 1)]
    replicas: usize,
    /// How often
    #[arg(long, default_value_t = 1)]
    repeats: u32,
    /// For how many minutes, instead of --seconds
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
