//! The `taskpipeline` command: subcommands, nothing else.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use clap::{Parser, Subcommand};
use taskpipeline_processor::check::Check;
use taskpipeline_processor::config::{LogFormat, NatsConnection, Pipeline, Settings};
use taskpipeline_processor::crd::{Crd, CrdError};
use taskpipeline_processor::dead_letters::DeadLetters;
use taskpipeline_processor::live::report::Report;
use taskpipeline_processor::live::resource::Own;
use taskpipeline_processor::live::{self, Live};
use taskpipeline_processor::operator::Operator;
use taskpipeline_processor::pipeline;
use taskpipeline_processor::publish::Publish;
use taskpipeline_processor::resync::Resync;
use taskpipeline_processor::telemetry::{Telemetry, logs};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

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
    Run(Run),
    /// Makes of each TaskPipeline in a cluster a running processor, and keeps it so
    Operator(Operator),
    /// Prints the CustomResourceDefinition of TaskPipelines, or brings it up to date in a cluster; exits with 2 where a newer
    /// one is there
    Crd(Crd),
    /// Publishes a task, sees it land in KV, and deletes it again: whether the pipeline works
    Check(Check),
    /// Publishes an event, to try the pipeline
    #[command(subcommand)]
    Publish(Publish),
    /// Lists, shows, replays and drops the events and tasks that could not go on
    #[command(subcommand)]
    DeadLetters(DeadLetters),
    /// Writes the whole ledger to KV, or compares the two; exits with 2 where they differ
    Resync(Resync),
}

/// What `taskpipeline run` can be told.
#[derive(clap::Args)]
struct Run {
    /// A file with a TaskPipeline, which is followed as it changes; secrets stay in the environment
    #[arg(long, conflicts_with = "resource")]
    file: Option<PathBuf>,
    /// The TaskPipeline in the cluster whose settings are followed, in the namespace of POD_NAMESPACE
    #[arg(long)]
    resource: Option<String>,
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
        Command::Run(run) => {
            logs::start(LogFormat::from_env());
            run_pipeline(run).await
        }
        Command::Operator(operator) => {
            logs::start(LogFormat::from_env());
            Ok(operator.run(shutdown()?).await?)
        }
        Command::Crd(crd) => {
            match crd.run().await {
                Ok(said) => print!("{said}"),
                // To be told from what may pass: trying again does not make it older.
                Err(newer @ CrdError::Newer { .. }) => {
                    eprintln!("error: {newer}");
                    std::process::exit(2);
                }
                Err(other) => return Err(other.into()),
            }
            Ok(())
        }
        Command::Check(check) => {
            println!("{}", check.run(&Settings::from_env()?).await?);
            Ok(())
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

async fn run_pipeline(run: Run) -> anyhow::Result<()> {
    let shutdown = shutdown()?;
    let telemetry = Telemetry::new()?;
    let metrics = || Arc::clone(&telemetry.metrics);
    if let Some(file) = run.file {
        let seen = live::file::look(&file);
        let (pipeline, tuning) = live::file::read(&file)?;
        let settings = Settings::of(&pipeline.spec, tuning.clone())?;
        let (live, changes) = Live::new(tuning, settings.delivery.clone(), metrics());
        tokio::spawn(live::file::follow(file, seen, live));
        return Ok(pipeline::run(settings, changes, telemetry, shutdown).await?);
    }
    let mut settings = Settings::from_env()?;
    let Some(name) = run.resource else {
        // The environment does not change.
        let (_live, changes) = Live::new(settings.tuning.clone(), settings.delivery.clone(), metrics());
        return Ok(pipeline::run(settings, changes, telemetry, shutdown).await?);
    };
    let own = Own {
        namespace: std::env::var("POD_NAMESPACE").context("POD_NAMESPACE is not set")?,
        name,
        state: std::env::var_os("STATE_DIRECTORY").map(PathBuf::from),
    };
    let client = live::resource::client().await?;
    let pipeline = own.read(&client).await;
    if let Some(pipeline) = &pipeline {
        match live::resource::tuning(pipeline) {
            Ok(tuning) if settings.delivery.admits(&tuning).is_ok() => settings.tuning = tuning,
            // The resource is newer than this pod, which is about to be replaced.
            Ok(_) => tracing::warn!(
                "the TaskPipeline's requestTimeout does not go with the SETTLE_AFTER of this pod, the defaults are used"
            ),
            Err(why) => {
                tracing::warn!("the TaskPipeline's settings are refused, the defaults are used: {why}");
            }
        }
    }
    let (live, changes) = Live::new(settings.tuning.clone(), settings.delivery.clone(), metrics());
    let (latest, seen) = watch::channel(pipeline);
    let report = Report {
        own: own.clone(),
        client: client.clone(),
        telemetry: telemetry.clone(),
        refused: live.refused(),
        latest: seen,
    };
    tokio::spawn(report.run());
    tokio::spawn(own.follow(client, live, latest));
    Ok(pipeline::run(settings, changes, telemetry, shutdown).await?)
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
