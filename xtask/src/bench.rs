//! `cargo xtask bench`: builds what is measured, and runs the benchmarks.

use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::run;
use crate::tools::Workshop;

/// What `bench` can be told.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Which benchmark, and its options: `ledger`, `ledger --replicas 2`, `help`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    benchmark: Vec<String>,
}

/// Runs one.
///
/// # Errors
/// When something cannot be got, built or started.
pub(crate) fn run(shop: &Workshop, options: &Options) -> Result<ExitCode> {
    let nats_server = shop.nats_server()?;
    shop.progress.step("build the processor and the benchmarks (release)", || {
        run::output(&mut shop.workspace.build(&["taskpipeline", "taskpipeline-bench"]))
    })?;
    let mut command = std::process::Command::new(shop.workspace.binary("taskpipeline-bench"));
    command
        .args(&options.benchmark)
        .env("TASKPIPELINE_NATS_SERVER", nats_server)
        .env("TASKPIPELINE_BIN", shop.workspace.binary("taskpipeline"));
    let shown = run::describe(&command);
    let mut child = command.spawn().with_context(|| format!("cannot start {shown}"))?;
    let status = run::wait(&mut child, &shown)?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
