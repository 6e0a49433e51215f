//! `cargo xtask soak`: histories of faults for as long as one likes.
//!
//! It builds and starts; the histories are played by the same test program that plays a share of them in
//! every test run, so that there is one way to play them.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::progress::say;
use crate::run;
use crate::tools::Workshop;
use crate::workspace::Workspace;

/// The processor with crash points.
pub(crate) const CRASHABLE: &str = "taskpipeline-crashable";

/// What `soak` can be told.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Begin no more histories after so many minutes
    #[arg(long, value_name = "MINUTES", required_unless_present = "histories")]
    minutes: Option<u64>,
    /// The first seed; the others follow it [default: the one that the tests begin with]
    #[arg(long, value_name = "SEED")]
    seed: Option<u64>,
    /// At most so many histories; without --minutes all of them, however long they take
    #[arg(long, value_name = "COUNT")]
    histories: Option<u64>,
    /// So many at a time; they mostly wait
    #[arg(long, value_name = "COUNT", default_value_t = 3)]
    at_a_time: u64,
    /// On so many nats-servers, 1 or 3 [default: as each seed says]
    #[arg(long, value_name = "COUNT", value_parser = ["1", "3"])]
    servers: Option<String>,
}

/// Plays histories until the time is over, they are all played, or some fail.
///
/// # Errors
/// When something cannot be got, built or started, or a history fails.
pub(crate) fn run(shop: &Workshop, options: &Options) -> Result<ExitCode> {
    let nats_server = shop.nats_server()?;
    let crashable = shop
        .progress
        .step("build the processor with crash points (release)", || crashable_processor(&shop.workspace))?;
    shop.progress.step("build the processor (release)", || {
        run::output(&mut shop.workspace.build(&["taskpipeline"]))
    })?;
    let output = shop.workspace.root.join("test-output");
    std::fs::create_dir_all(&output).with_context(|| format!("cannot make {}", output.display()))?;
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
        // What was not asked for must not come in from outside either.
        match value {
            Some(value) => command.env(name, value.to_string()),
            None => command.env_remove(name),
        };
    }
    let shown = run::describe(&command);
    let mut child = command.spawn().with_context(|| format!("cannot start {shown}"))?;
    let status = run::wait(&mut child, &shown)?;
    say(if status.success() { "every history ended well" } else { "a history FAILED: see above" });
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Builds the processor that can be made to abort at a crash point, beside the one without: both have the
/// same name while cargo builds them, so this one is put aside.
///
/// # Errors
/// When it cannot be built.
pub(crate) fn crashable_processor(workspace: &Workspace) -> Result<PathBuf> {
    let mut build = workspace.build(&["taskpipeline"]);
    run::output(build.args(["--features", "taskpipeline-processor/crash-points"]))?;
    let (built, aside) = (workspace.binary("taskpipeline"), workspace.binary(CRASHABLE));
    // Not over one that runs.
    let _ = std::fs::remove_file(&aside);
    std::fs::copy(&built, &aside).with_context(|| format!("cannot copy {}", built.display()))?;
    Ok(aside)
}
