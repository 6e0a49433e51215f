//! Benchmarks: real nats-server, real replicas, one run on one machine. They print what they measured and
//! judge nothing.

mod ledger;

use clap::{Parser, Subcommand};

/// Benchmarks of the pipeline
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    subject: Subject,
}

#[derive(Subcommand)]
enum Subject {
    /// From stored events to the ledger: events a second, with nats-server on the same machine
    Ledger(ledger::Options),
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    match Arguments::parse().subject {
        Subject::Ledger(options) => ledger::run(&options).await,
    }
}
