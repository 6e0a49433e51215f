//! The `taskpipeline` command: subcommands, nothing else.

use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};
use taskpipeline_processor::config::{LogFormat, NatsConnection, Pipeline, Settings};
use taskpipeline_processor::dead_letters::DeadLetters;
use taskpipeline_processor::pipeline;
use taskpipeline_processor::publish::Publish;
use taskpipeline_processor::resync::Resync;
use taskpipeline_processor::telemetry::logs;
use tokio::signal::unix::{SignalKind, signal};

/// Under full load a quarter of the processor's time went into glibc's malloc. With jemalloc the same load took a
/// quarter less CPU and as much memory. It is told to keep few arenas, by `.cargo/config.toml`.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Task events from NATS to Cloudflare's edge.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs the pipeline, configured by environment variables (see .env.example)
    Run,
    /// Publishes an event, to try the pipeline
    #[command(subcommand)]
    Publish(Publish),
    /// Lists, shows, replays and drops the events and tasks that could not go on
    #[command(subcommand)]
    DeadLetters(DeadLetters),
    /// Writes the whole ledger to KV, or compares the two; exits with 2 where they differ
    Resync(Resync),
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Cli::parse().command).await {
        Ok(()) => ExitCode::SUCCESS,
        // The whole chain on one line, and no backtrace: these are errors for people to mend.
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Run => {
            logs::start(LogFormat::from_env());
            let settings = Settings::from_env()?;
            Ok(pipeline::run(settings, shutdown()?).await?)
        }
        Command::Publish(publish) => {
            let done = publish.run(&NatsConnection::from_env()?).await?;
            println!("{done}");
            Ok(())
        }
        Command::DeadLetters(letters) => Ok(letters.run(&Pipeline::from_env()?).await?),
        Command::Resync(resync) => {
            logs::start_for_command();
            let outcome = resync.run(Settings::from_env()?, shutdown()?).await?;
            print!("{}", outcome.text);
            if !outcome.equal {
                std::process::exit(2);
            }
            Ok(())
        }
    }
}

/// Resolves at the first SIGTERM or SIGINT. A second one ends the process at once: whoever sends it does
/// not want to wait for the drain.
fn shutdown() -> anyhow::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tokio::spawn(async move {
            let signal = tokio::select! {
                _ = terminate.recv() => 15,
                _ = interrupt.recv() => 2,
            };
            tracing::warn!("a second signal: stopping at once, what was in hand is lost");
            std::process::exit(128 + signal);
        });
    })
}
