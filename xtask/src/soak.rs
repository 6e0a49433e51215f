//! `cargo xtask soak`: plays histories of faults for any time.
//!
//! This module builds and starts. The test program that plays some histories in every test run also plays these. So
//! both are played in the same way.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::progress::say;
use crate::run;
use crate::tools::Workshop;
use crate::workspace::Workspace;

/// The processor with crash points.
pub(crate) const CRASHABLE: &str = "taskpipeline-crashable";

/// The options of `soak`.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Begin no more histories after this many minutes
    #[arg(long, value_name = "MINUTES", required_unless_present = "histories")]
    minutes: Option<u64>,
    /// Begin with this seed; the others follow it [default: the first seed of the tests]
    #[arg(long, value_name = "SEED")]
    seed: Option<u64>,
    /// Play at most this many histories; without --minutes all of them, however long they take
    #[arg(long, value_name = "COUNT")]
    histories: Option<u64>,
    /// Play this many histories at a time; they mostly wait
    #[arg(long, value_name = "COUNT", default_value_t = 3)]
    at_a_time: u64,
    /// Play on 1 or 3 nats-servers [default: each seed chooses]
    #[arg(long, value_name = "COUNT", value_parser = ["1", "3"])]
    servers: Option<String>,
}

/// Plays histories until the time is over, all are played, or some fail.
///
/// # Errors
/// If a part cannot be obtained, built or started, or a history fails.
pub(crate) fn run(shop: &Workshop, options: &Options) -> Result<ExitCode> {
    let nats_server = shop.nats_server()?;
    let crashable = shop
        .progress
        .step("build the processor with crash points (release)", || crashable_processor(&shop.workspace))?;
    shop.progress.step("build the processor (release)", || {
        run::output(&mut shop.workspace.build(&["taskpipeline"]))
    })?;
    let output = shop.workspace.root.join("test-output");
    std::fs::create_dir_all(&output).with_context(|| format!("cannot create {}", output.display()))?;
    let mut command = shop.workspace.cargo();
    command
        .args(["test", "--release", "--workspace", "--test", "histories", "--", "--nocapture"])
        .env("TASKPIPELINE_NATS_SERVER", nats_server)
        .env("TASKPIPELINE_BIN", shop.workspace.binary("taskpipeline"))
        .env("TASKPIPELINE_CRASHABLE_BIN", crashable)
        .env("TASKPIPELINE_TEST_OUTPUT", output);
    let told = [
        ("TASKPIPELINE_SOAK_MINUTES", options.minutes),
        ("TASKPIPELINE_SEED", options.seed),
        ("TASKPIPELINE_HISTORIES", options.histories),
        ("TASKPIPELINE_AT_A_TIME", Some(options.at_a_time)),
        ("TASKPIPELINE_SERVERS", options.servers.as_ref().and_then(|count| count.parse().ok())),
    ];
    for (name, value) in told {
        // An option that is not given must not come from the environment either.
        match value {
            Some(value) => command.env(name, value.to_string()),
            None => command.env_remove(name),
        };
    }
    let shown = run::describe(&command);
    let mut child = command.spawn().with_context(|| format!("cannot start {shown}"))?;
    let status = run::wait(&mut child, &shown)?;
    say(if status.success() { "every history passed" } else { "a history FAILED: see above" });
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Builds the processor that can abort at a crash point.
///
/// Cargo gives both processors the same name, so this one is copied to a name of its own.
///
/// # Errors
/// If the processor cannot be built.
pub(crate) fn crashable_processor(workspace: &Workspace) -> Result<PathBuf> {
    let mut build = workspace.build(&["taskpipeline"]);
    run::output(build.args(["--features", "taskpipeline-processor/crash-points"]))?;
    let (built, aside) = (workspace.binary("taskpipeline"), workspace.binary(CRASHABLE));
    // A running program's file cannot be overwritten.
    let _ = std::fs::remove_file(&aside);
    std::fs::copy(&built, &aside).with_context(|| format!("cannot copy {}", built.display()))?;
    Ok(aside)
}
