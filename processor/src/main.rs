//! The `taskpipeline` command and its subcommands.

mod check;
#[cfg(feature = "cluster")]
mod cluster;
mod dead_letters;
mod environment;
mod http;
mod logs;
mod producer;
mod publish;
mod resync;

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use clap::{Parser, Subcommand};
use taskpipeline_pipeline::live::Live;
use taskpipeline_pipeline::settings::Tuning;
use taskpipeline_pipeline::telemetry::Telemetry;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing::info;

use self::check::Check;
use self::dead_letters::DeadLetters;
use self::environment::LogFormat;
use self::publish::Publish;
use self::resync::Resync;

/// Allocates by jemalloc instead of glibc.
///
/// Under full load a quarter of the processor's time went into glibc's malloc. With jemalloc the same load took a
/// quarter less CPU, and as much memory. `.cargo/config.toml` limits the arenas of jemalloc.
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Task events from NATS to Cloudflare's edge.
#[derive(Parser)]
#[command(version)]
#[cfg_attr(
    not(feature = "cluster"),
    command(
        after_help = "Built without the feature `cluster`: no operator, no crd, and no run --file or --resource. For these: \
                      cargo build --release --package taskpipeline-processor"
    )
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the pipeline, configured by environment variables (see .env.example)
    Run(Run),
    #[cfg(feature = "cluster")]
    #[command(flatten)]
    Cluster(cluster::Command),
    /// Check that the pipeline works: publish a task, wait until it is in KV, and delete it again
    Check(Check),
    /// Publish one event, to try the pipeline
    #[command(subcommand)]
    Publish(Publish),
    /// List, show, replay or delete dead letters
    #[command(subcommand)]
    DeadLetters(DeadLetters),
    /// Write the whole ledger to KV, or compare the two; exit status 2 if they differ
    Resync(Resync),
}

/// The options of `taskpipeline run`.
#[derive(clap::Args)]
struct Run {
    #[cfg(feature = "cluster")]
    #[command(flatten)]
    followed: cluster::Followed,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Cli::parse().command).await {
        Ok(()) => ExitCode::SUCCESS,
        // The whole chain is on one line without a backtrace: a person has to fix these errors.
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
        #[cfg(feature = "cluster")]
        Command::Cluster(command) => command.run().await,
        Command::Check(check) => {
            println!("{}", check.run(&environment::settings()?).await?);
            Ok(())
        }
        Command::Publish(publish) => {
            let done = publish.run(&environment::producer()?).await?;
            println!("{done}");
            Ok(())
        }
        Command::DeadLetters(letters) => Ok(letters.run(&environment::stored()?).await?),
        Command::Resync(resync) => {
            logs::start_for_command();
            let outcome = resync.run(environment::settings()?, shutdown()?).await?;
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
    #[cfg(not(feature = "cluster"))]
    let Run {} = run;
    #[cfg(feature = "cluster")]
    if run.followed.is_any() {
        return run.followed.run(shutdown).await;
    }
    // The environment does not change.
    let environment::Run { settings, http } = environment::run(&environment::process)?;
    let telemetry = Telemetry::new()?;
    let (_live, changes) = Live::new(
        settings.pipeline.tuning.clone(),
        settings.pipeline.delivery.clone(),
        Arc::clone(&telemetry.metrics),
    );
    serve_and_run(environment::Run { settings, http }, changes, telemetry, shutdown).await
}

/// Serves health and metrics, and runs the pipeline until `shutdown` resolves.
async fn serve_and_run(
    environment::Run { settings, http }: environment::Run,
    changes: watch::Receiver<Tuning>,
    telemetry: Telemetry,
    shutdown: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let address = http::serve(http, http::replica(telemetry.clone())).await?;
    info!(version = env!("CARGO_PKG_VERSION"), %address, "serving health and metrics");
    Ok(taskpipeline_pipeline::run(settings, changes, telemetry, shutdown).await?)
}

/// Resolves at the first SIGTERM or SIGINT. A second signal ends the process at once, without the drain.
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
            tracing::warn!(
                "received a second signal; stopping at once. \
                 Events in flight are lost in mode Core, and delivered again in mode Durable"
            );
            std::process::exit(128 + signal);
        });
    })
}
